// Catalogue, histories, splits, batches, and the metrics, against values worked out by hand.

#include "bert4rec.hpp"
#include "check.hpp"
#include "small_data.hpp"

using namespace bert4rec;

namespace {

Dataset load(const TemporaryFolder& folder, std::string_view items, std::string_view histories) {
  write_file(folder / "items.jsonl", items);
  write_file(folder / "histories.jsonl", histories);
  return Dataset::load(folder.path());
}

std::vector<std::int32_t> list(ItemSpan items) { return {items.begin(), items.end()}; }

void test_catalogue() {
  const TemporaryFolder folder;
  const Dataset data =
      load(folder,
           "\xEF\xBB\xBF{\"id\": 7, \"title\": {\"romaji\": \"R\", \"native\": \"n\"}}\r\n"
           "\n"
           "{\"title\": \"Plain\", \"id\": \"7\", \"genres\": [\"A\", \"B\"], \"x\": [1]}\n"
           "{\"id\": -5, \"average_score\": null, \"popularity\": 3}\n"
           "{\"id\": 9000000000}\n"
           "{\"id\": 0}\n{\"id\": \"10000000000000000000\"}",
           "{\"user\": \"u\", \"entries\": [{\"id\": 7}]}");
  const Catalogue& catalogue = data.catalogue;
  check_equal(catalogue.size(), 6u);
  check_equal(catalogue.title(0), "R");
  check_equal(catalogue.title(1), "Plain");
  check_equal(catalogue.title(2), "-5");
  check_equal(catalogue.find(7), 0);
  check_equal(catalogue.find(std::string("7")), 1);
  check_equal(catalogue.find(-5), 2);
  check_equal(catalogue.find(9000000000), 3);
  check_equal(catalogue.find(8), -1);
  check_equal(catalogue.find_typed("7"), 0);
  check_equal(catalogue.find_typed("nothing"), -1);
  check_equal(catalogue.find_typed("0"), 4);
  check_equal(catalogue.find_typed("10000000000000000000"), 5);  // no 64 bits hold it
  check_equal(catalogue.find_typed("99999999999999999999"), -1);
  check_equal(*catalogue[2].popularity, 3);
  check(!catalogue[2].average_score, "null score");
  for (const Item& item : catalogue) {  // what is written is read again
    const std::string text = to_json(item).text();
    JsonReader reader(text);
    check_equal(to_json(detail::read_item(reader)).text(), text);
  }
}

void test_histories() {
  const TemporaryFolder folder;
  const Dataset data = load(
      folder, "{\"id\": 1}\n{\"id\": 2}\n{\"id\": \"x\"}\n",
      "{\"user\": \"timed\", \"entries\": [{\"id\": 2, \"at\": 30}, {\"at\": 10, \"id\": \"x\"},"
      " {\"id\": 1, \"at\": 10}, {\"id\": 99, \"at\": 5}]}\n"
      "{\"entries\": [{\"id\": 2, \"at\": 9}, {\"id\": 1, \"at\": null, \"score\": 1e3}],"
      " \"user\": \"half timed\"}\n"
      "{\"user\": \"plans\", \"entries\": [{\"id\": 1, \"status\": \"PLANNING\"}]}\n"
      "{\"user\": \"both\", \"entries\": [{\"id\": 1, \"at\": 1, \"status\": \"PLANNING\"},"
      " {\"id\": 2, \"at\": 2, \"status\": \"COMPLETED\"}]}\n");
  const Histories& histories = data.histories;
  check_equal(histories.size(), 3u);
  check(list(histories.row(0)) == std::vector<std::int32_t>{2, 0, 1}, "sorted, ties in file order");
  check(list(histories.row(1)) == std::vector<std::int32_t>{1, 0}, "order of the file");
  check(list(histories.row(2)) == std::vector<std::int32_t>{1}, "without plans");
  check_equal(histories.unknown_entries, 1u);
  check_equal(histories.planned_entries, 2u);
  check_equal(histories.untimed_users, 1u);
  check_equal(*histories.find("both"), 2u);
  check(!histories.find("plans"), "nobody who only plans");
  check_throws([] { Histories().add("nobody", {}); }, {"user \"nobody\" has no item"});
}

void test_fingerprint() {
  const Dataset a = ring_data(10, 5), b = ring_data(10, 5), c = ring_data(10, 6),
                d = ring_data(11, 5);
  check_equal(a.fingerprint(), b.fingerprint());
  check(a.fingerprint() != c.fingerprint() && a.fingerprint() != d.fingerprint(), "others differ");
}

void test_cloze_rows() {
  ModelConfig model = small_model();
  model.max_length = 40;
  std::vector<std::int32_t> history(60);
  std::iota(history.begin(), history.end(), 0);
  std::vector<int> hidden(40);
  for (std::uint64_t draw = 0; draw < 4000; ++draw) {
    Batch batch;
    add_cloze_row(batch, history, model, 0.15, make_key(draw));
    check_equal(batch.tokens.size(), 40u);  // the newest 40: items 20 ... 59
    check_equal(batch.asked.size(), 6u);
    for (std::size_t i = 0; i < 6; ++i) {
      check_equal(batch.tokens[batch.asked[i]], mask_token);
      check_equal(batch.targets[i], 20 + static_cast<std::int32_t>(batch.asked[i]));
      ++hidden[batch.asked[i]];
    }
    check_equal(batch.positions.back(), 39);
  }
  for (const int count : hidden) {  // 600 expected, deviation 22.6
    check(std::abs(count - 600) < 115, join("a place was hidden ", count, " times of 600"));
  }
  Batch one;
  add_cloze_row(one, ItemSpan(history).first(1), model, 0.15, make_key(1));
  check_equal(one.asked.size(), 1u);  // at least one
}

void test_next_item_rows() {
  ModelConfig model = small_model();
  model.max_length = 4;
  const std::vector<std::int32_t> history{5, 6, 7, 8, 9};
  Batch batch;
  add_next_item_row(batch, history, model, 2);
  check(batch.tokens == std::vector<std::int32_t>{10, 11, 12, mask_token}, "newest 3 and [MASK]");
  check_equal(batch.asked.front(), 3u);
  check_equal(batch.targets.front(), 2);
  add_next_item_row(batch, {}, model);  // nothing known: just [MASK]
  check_equal(batch.rows(), 2u);
  check_equal(batch.asked.back(), 4u);
}

// Rows of training over draws of the key: `count(batch)` added up.
template <class Count>
double mean_over_rows(ItemSpan window, const ModelConfig& model, const TrainConfig& train,
                      Count&& count) {
  double sum = 0;
  for (std::uint64_t draw = 0; draw < 4000; ++draw) {
    Batch batch;
    add_training_row(batch, window, model, train, make_key(draw));
    sum += count(batch);
  }
  return sum / 4000;
}

void check_share(std::string_view what, double found, double expected, double tolerance) {
  check(std::abs(found - expected) < tolerance, join(what, ": ", found, ", expected ", expected));
}

void test_training_rows() {
  ModelConfig model = small_model();
  model.max_length = 20, model.num_items = 1000;
  std::vector<std::int32_t> history(30);
  std::iota(history.begin(), history.end(), 0);
  TrainConfig train;
  Batch plain, row;  // without choices: the row of add_cloze_row
  add_cloze_row(plain, history, model, train.mask_probability, make_key(5));
  add_training_row(row, history, model, train, make_key(5));
  check(row.tokens == plain.tokens && row.targets == plain.targets, "the plain Cloze row");

  train.mask_last = 0.25;
  const auto only_last = [](const Batch& batch) {
    const bool last = batch.asked == std::vector<std::size_t>{19} && batch.targets[0] == 29;
    return last ? 1.0 : 0.0;
  };
  check_share("mask_last", mean_over_rows(history, model, train, only_last), 0.25, 0.03);
  train.mask_last = 0, train.reversed_share = 0.4;
  const auto reversed = [](const Batch& batch) {
    const std::size_t shown = batch.tokens[0] == mask_token ? 1 : 0;
    return batch.tokens[shown] > batch.tokens[shown + 9] && batch.tokens[shown + 9] != mask_token
               ? 1.0
               : 0.0;
  };
  train.mask_probability = 0.05;  // one place of the 20
  check_share("reversed", mean_over_rows(history, model, train, reversed), 0.4 * 0.95, 0.03);
}

void test_replacement() {
  ModelConfig model = small_model();
  model.max_length = 20, model.num_items = 1000;
  std::vector<std::int32_t> history(20);
  std::iota(history.begin(), history.end(), 500);
  TrainConfig train;
  train.mask_probability = 0.5, train.random_share = 0.1, train.keep_share = 0.2;
  std::size_t masks = 0, kept = 0, random = 0;
  mean_over_rows(history, model, train, [&](const Batch& batch) {
    check_equal(batch.asked.size(), 10u);
    for (std::size_t i = 0; i < 10; ++i) {
      const std::int32_t shown = batch.tokens[batch.asked[i]], target = batch.targets[i];
      check_equal(target, 500 + static_cast<std::int32_t>(batch.asked[i]));  // always the truth
      check(shown >= 0 && shown != pad_token && shown != unknown_token && shown < 1003, "a token");
      ++(shown == mask_token ? masks : shown == token_of(target) ? kept : random);
    }
    return 0;
  });
  check_share("[MASK]", double(masks) / 40000, 0.7, 0.01);
  check_share("kept", double(kept) / 40000, 0.2, 0.01);
  check_share("random", double(random) / 40000, 0.1, 0.01);
}

void test_windows() {
  std::vector<std::int32_t> history(11);
  std::iota(history.begin(), history.end(), 0);
  // Begin and end of each window, newest first.
  const auto windows = [&](std::size_t items, std::size_t length, std::size_t stride) {
    std::vector<ItemSpan> found;
    add_windows(found, ItemSpan(history).first(items), length, stride);
    std::string text;
    for (const ItemSpan window : found) text += join(window.front(), "-", window.back(), " ");
    return text;
  };
  check_equal(windows(11, 4, 0), "7-10 ");
  check_equal(windows(11, 4, 2), "7-10 5-8 3-6 1-4 0-3 ");
  check_equal(windows(11, 4, 4), "7-10 3-6 0-3 ");
  check_equal(windows(11, 4, 100), "7-10 0-3 ");
  check_equal(windows(4, 4, 1), "0-3 ");
  check_equal(windows(3, 4, 1), "0-2 ");
  check_equal(windows(0, 4, 1), "");
}

void test_folds() {
  const Dataset data = ring_data(10, 34);
  TrainConfig config;
  config.folds = 4;
  std::vector<int> held_out(34);
  for (config.fold = 1; config.fold <= 4; ++config.fold) {
    const DataSplit split(data.histories, config);
    check(split.validation_users().size() == 8 || split.validation_users().size() == 9, "a fold");
    check_equal(split.train_users().size() + split.validation_users().size(), 34u);
    for (const std::size_t user : split.validation_users()) {
      ++held_out[user];
      check(split.sequence(user).train.empty(), "held out whole");
    }
  }
  check(held_out == std::vector<int>(34, 1), "every user is held out once");
  config.folds = 35, config.fold = 1;
  check_throws([&] { DataSplit(data.histories, config); }, {"folds is 35", "34 users"});
}

void test_splits() {
  const Dataset data = ring_data(10, 34);
  TrainConfig config;
  const DataSplit users(data.histories, config);
  check_equal(users.validation_users().size(), 3u);  // round(3.4)
  check_equal(users.train_users().size(), 31u);
  for (const std::size_t user : users.validation_users()) {
    check(users.sequence(user).train.empty(), "held out whole");
    check_equal(users.sequence(user).test, data.histories.row(user).back());
  }
  config.split = Split::last;
  const DataSplit last(data.histories, config);
  const ItemSpan row = data.histories.row(4);
  const Sequence s = last.sequence(4);
  check_equal(s.train.size(), row.size() - 2);
  check_equal(s.validation, row[row.size() - 2]);
  check_equal(s.test, row.back());
  check(s.before_test.size() == row.size() - 1, "the test sees the validation item");
}

void test_rank_metrics() {
  check_equal(rank_of(0, 0), 1u);
  check_equal(rank_of(3, 2), 5u);
  check_equal(rank_of(3, 3), 5u);
  const std::vector<std::size_t> ranks{1, 2, 6, 30};
  const RankMetrics metrics = rank_metrics(ranks);
  check_equal(metrics.hit[0], 0.25);
  check_equal(metrics.hit[1], 0.5);
  check_equal(metrics.hit[2], 0.75);
  check_equal(metrics.hit[3], 0.75);
  const double ndcg5 = (1 + 1 / std::log2(3.0)) / 4, ndcg10 = ndcg5 + 1 / std::log2(7.0) / 4;
  check(std::abs(metrics.ndcg[1] - ndcg5) < 1e-12, "NDCG@5");
  check(std::abs(metrics.ndcg[2] - ndcg10) < 1e-12, "NDCG@10");
  check(std::abs(metrics.mrr - (1 + 0.5 + 1.0 / 6 + 1.0 / 30) / 4) < 1e-12, "MRR");

  std::vector<float> scores{5, 4, 4, 3, 9};
  const std::vector<std::int32_t> seen{4};
  check_equal(rank_unseen(scores, {seen, 3}), 4u);  // 4 is seen; 0, 1 and 2 are better
  check_equal(rank_unseen(scores, {{}, 1}), 2u);    // only 0 is better, and half a tie
}

void test_top_unseen() {
  std::vector<float> scores(500);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    scores[i] = static_cast<float>(below(make_key(5), i, 40));  // many ties
  }
  const std::vector<std::int32_t> seen{3, 7, 100, 499};
  std::vector<std::int32_t> order;
  for (std::int32_t i = 0; i < 500; ++i) {
    if (std::find(seen.begin(), seen.end(), i) == seen.end()) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  double sum = 0;
  for (const float score : scores) sum += std::exp(static_cast<double>(score));
  for (const std::size_t count : std::vector<std::size_t>{0, 1, 10, 30, 496, 1000}) {
    const auto best = top_unseen(scores, seen, count);
    check_equal(best.size(), std::min<std::size_t>(count, 496));
    for (std::size_t i = 0; i < best.size(); ++i) {
      check_equal(best[i].item, order[i]);
      const double score = scores[static_cast<std::size_t>(order[i])];
      check(std::abs(best[i].score * sum / std::exp(score) - 1) < 1e-5, "its probability");
    }
  }
  scores[17] = std::nanf("");
  check_throws([&] { top_unseen(scores, seen, 10); }, {"item 17 is nan"});
  const std::vector<float> lost(20, -INFINITY);
  check_throws([&] { top_unseen(lost, {}, 10); }, {"all scores are -inf"});
  check(top_unseen({}, {}, 10).empty(), "of nothing, nothing");
  std::vector<float> many(9000, -INFINITY);  // several blocks, of which the first holds nothing
  many[5000] = 0, many[8000] = 1, many[8001] = 2;
  const auto best = top_unseen(many, std::vector{8001}, 2);
  check(best.size() == 2 && best[0].item == 8000 && best[1].item == 5000, "in several blocks");
  check(std::abs(best[1].score - 1 / (1 + std::exp(1.0) + std::exp(2.0))) < 1e-7,
        "the probability among all blocks");
  many[8500] = INFINITY;
  check_throws([&] { top_unseen(many, {}, 2); }, {"item 8500 is inf"});
  for (const std::int32_t item : {-1, 20, 1 << 30}) {
    check_throws([&] { top_unseen(lost, std::vector{item}, 10); }, {join("item ", item)});
  }
}

void test_learning_rates() {
  TrainConfig config;
  config.learning_rate = 1;
  config.warmup_steps = 4;
  check_equal(learning_rate_at(config, 0, 14), 0.25);
  check_equal(learning_rate_at(config, 3, 14), 1.0);
  check_equal(learning_rate_at(config, 13, 14), 1.0);
  config.schedule = Schedule::linear;
  check_equal(learning_rate_at(config, 9, 14), 0.5);
  config.schedule = Schedule::cosine;
  check(std::abs(learning_rate_at(config, 9, 14) - 0.5) < 1e-12, "cosine, half way");
  check(learning_rate_at(config, 14, 14) < 1e-12, "cosine, at the end");
}

// The counters of dropout have 32 bits for the token and its head.
void test_large_batch() {
  ModelConfig model = small_model();
  model.num_items = 5, model.hidden_size = model.num_heads = 2048, model.num_layers = 1;
  CpuEngine<float> engine(model, small_train(), Start::zeros);
  Batch batch;
  batch.tokens.assign(12 * 180'000, 3);
  batch.positions.resize(batch.tokens.size());
  for (std::size_t end = 12; end <= batch.tokens.size(); end += 12) batch.offsets.push_back(end);
  batch.asked.push_back(0), batch.targets.push_back(0);
  check_throws([&] { engine.train(batch, 0, 1e-3); },
               {"a batch with 2160000 tokens, expected at most 2097151"});
}

void test_bad_batches() {
  ModelConfig model = small_model();
  model.num_items = 5;
  CpuEngine<float> engine(model, small_train());
  const auto refused = [&](std::initializer_list<std::string_view> parts, auto&& change) {
    Batch batch;
    add_cloze_row(batch, std::vector<std::int32_t>{0, 1, 2, 3}, model, 0.5, make_key(1));
    change(batch);
    check_throws([&] { engine.train(batch, 0, 1e-3); }, parts);
  };
  refused({"token 0", "is 8"}, [](Batch& batch) { batch.tokens[0] = 8; });
  refused({"-1"}, [](Batch& batch) { batch.positions[0] = -1; });
  refused({"target 5"}, [](Batch& batch) { batch.targets[0] = 5; });
  refused({"ascend"}, [](Batch& batch) { batch.asked[1] = batch.asked[0]; });
  refused({"ascend"}, [](Batch& batch) { batch.asked[1] = 4; });
  refused({"asks for nothing"}, [](Batch& b) { b.asked.clear(), b.targets.clear(); });
  refused({"targets"}, [](Batch& batch) { batch.targets.pop_back(); });
  refused({"offsets"}, [](Batch& batch) { batch.offsets.back() = 9; });
  for (const double rate : {std::nan(""), -1e-3}) {
    Batch batch;
    add_cloze_row(batch, std::vector<std::int32_t>{0, 1, 2, 3}, model, 0.5, make_key(1));
    check_throws([&] { engine.train(batch, 7, rate); }, {"step 7: the learning rate is"});
  }
  Batch none;
  check_throws([&] { add_training_row(none, {}, model, small_train(), make_key(1)); },
               {"a window of no item"});
  TrainConfig train = small_train();
  train.adam_beta2 = 1;
  check_throws([&] { CpuEngine<float>(model, train); }, {"adam_beta2 is 1"});
  refused({"13 tokens"}, [](Batch& batch) {
    batch.tokens.resize(13, 3), batch.positions.resize(13, 0), batch.offsets.back() = 13;
  });
}

}  // namespace

int main() {
  test("catalogue", test_catalogue);
  test("histories", test_histories);
  test("fingerprint", test_fingerprint);
  test("rows of the Cloze task", test_cloze_rows);
  test("rows that ask for the next item", test_next_item_rows);
  test("rows of training: last item alone, reversed", test_training_rows);
  test("hidden items: [MASK], random, kept", test_replacement);
  test("sliding windows", test_windows);
  test("splits", test_splits);
  test("folds", test_folds);
  test("ranks and their means", test_rank_metrics);
  test("the best unseen items, ties by number", test_top_unseen);
  test("learning rates", test_learning_rates);
  test("bad batches are refused", test_bad_batches);
  test("batches that are too large", test_large_batch);
  return finish();
}
