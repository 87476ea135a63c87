// Vectors of items and users: their inner products are the scores, and other programs can read the
// files that hold them.

#include "bert4rec.hpp"
#include "check.hpp"
#include "common/vectors.hpp"
#include "small_data.hpp"

using namespace bert4rec;

namespace {

constexpr std::size_t num_items = 300, num_users = 600;  // more than one block of each file

ModelConfig model_of(Architecture architecture, Objective objective) {
  ModelConfig model = small_model();
  model.num_items = num_items;
  model.architecture = architecture;
  model.objective = objective;
  return model;
}

// A model whose numbers are all random, biases too, which begin as zeros.
std::unique_ptr<Engine> random_engine(const ModelConfig& model) {
  auto engine = make_cpu_engine(model, small_train(), Start::zeros);
  std::vector<float> values(engine->table().size());
  const Key key = make_key(5);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(0.5 * truncated_normal(key, i));
  }
  engine->write(State::parameters, values);
  return engine;
}

Batch question_of(const Histories& histories, const ModelConfig& model) {
  Batch batch;
  for (std::size_t user = 0; user < histories.size(); ++user) {
    add_next_item_row(batch, histories.row(user), model);
  }
  return batch;
}

// users[M,D] items[I,D]^T, added in double.
std::vector<double> products(std::span<const float> users, std::span<const float> items,
                             std::size_t D) {
  std::vector<double> out;
  for (std::size_t u = 0; u < users.size(); u += D) {
    for (std::size_t j = 0; j < items.size(); j += D) {
      double sum = 0;
      for (std::size_t k = 0; k < D; ++k) sum += double(users[u + k]) * double(items[j + k]);
      out.push_back(sum);
    }
  }
  return out;
}

// Of each architecture and objective, and of the matching head: its scale learned, and fixed.
std::vector<ModelConfig> all_models() {
  std::vector<ModelConfig> models;
  for (const auto architecture : {Architecture::torch, Architecture::paper, Architecture::tied}) {
    for (const Objective objective : {Objective::cloze, Objective::causal}) {
      models.push_back(model_of(architecture, objective));
    }
  }
  ModelConfig matching = model_of(Architecture::torch, Objective::cloze);
  matching.task = TaskKind::matching;
  models.push_back(matching);
  matching.fixed_scale = 3;
  models.push_back(matching);
  return models;
}

void test_products() {
  const Dataset data = ring_data(num_items, num_users);
  for (const ModelConfig& model : all_models()) {
    const auto engine = random_engine(model);
    const Batch batch = question_of(data.histories, model);
    const std::size_t D = engine->vector_size();
    check_equal(D, model.hidden_size + (model.task == TaskKind::items));
    std::vector<float> scores(num_users * num_items), users(num_users * D), items(num_items * D);
    engine->score(batch, scores);
    engine->user_vectors(batch, users);
    engine->item_vectors(0, std::span(items).first(7 * D));
    engine->item_vectors(7, std::span(items).subspan(7 * D));
    const std::vector<double> expected = products(users, items, D);
    check_close("scores", std::span(scores), std::span(expected), 1e-5);
  }
}

void test_items_are_rows() {
  const ModelConfig model = model_of(Architecture::paper, Objective::cloze);
  const auto engine = random_engine(model);
  std::vector<float> values(engine->table().size()), vector(engine->vector_size());
  engine->read(State::parameters, values);
  engine->item_vectors(9, vector);
  const auto at = [&](std::string_view name) {
    return values.begin() + static_cast<std::ptrdiff_t>(engine->table().at(name).offset);
  };
  const auto row = at("item_embedding.weight") + token_of(9) * 16;
  check(std::equal(row, row + 16, vector.begin()), "the row of the item table");
  check_equal(vector[16], at("output.bias")[token_of(9)]);
}

void test_double() {
  const Dataset data = ring_data(num_items, 3);
  const ModelConfig model = model_of(Architecture::paper, Objective::cloze);
  CpuEngine<double> wide(model, small_train());
  CpuEngine<float> narrow(model, small_train());
  const Batch batch = question_of(data.histories, model);
  const std::size_t D = wide.vector_size();
  std::vector<float> a(3 * D), b(3 * D), c(num_items * D), d(num_items * D);
  wide.user_vectors(batch, a), narrow.user_vectors(batch, b);
  wide.item_vectors(0, c), narrow.item_vectors(0, d);
  check_close("users", std::span(a), std::span(b), 1e-5);
  check_close("items", std::span(c), std::span(d), 1e-6);
}

void test_wrong_sizes() {
  const Dataset data = ring_data(num_items, 3);
  const ModelConfig model = model_of(Architecture::torch, Objective::cloze);
  CpuEngine<float> engine(model, small_train());
  std::vector<float> out(2 * 17);
  check_throws([&] { engine.user_vectors(question_of(data.histories, model), out); },
               {"user_vectors", "34", "51"});
  check_throws([&] { engine.item_vectors(0, std::span(out).first(16)); }, {"item_vectors", "16"});
  check_throws([&] { engine.item_vectors(299, out); }, {"from item 299", "300 items"});
  check_throws([&] { engine.item_vectors(~std::size_t{0}, out); }, {"300 items"});
}

}  // namespace

// A head whose scores are no products of vectors.
template <class Real>
class PlainHead : private ItemHead<Real> {
 public:
  using ItemHead<Real>::ItemHead, ItemHead<Real>::tensors, ItemHead<Real>::draws,
      ItemHead<Real>::loss, ItemHead<Real>::evaluate, ItemHead<Real>::prepare,
      ItemHead<Real>::score;
};

namespace {

void test_no_vectors() {
  const Dataset data = ring_data(num_items, 3);
  const ModelConfig model = model_of(Architecture::torch, Objective::cloze);
  CpuEngine<float, PlainHead> engine(model, small_train());
  check_equal(engine.vector_size(), 0u);
  std::vector<float> out(17);
  check_throws([&] { engine.item_vectors(0, out); }, {"no vectors of items and users"});
  check_throws([&] { engine.user_vectors(question_of(data.histories, model), out); },
               {"no vectors of items and users"});
}

// What NumPy's format description says, read by other code than wrote it.
std::vector<float> read_npy(const Path& path, std::size_t rows, std::size_t columns) {
  const std::string bytes = read_file(path);
  check(bytes.starts_with(std::string_view("\x93NUMPY\x01\x00", 8)), "the magic word");
  const std::size_t size = static_cast<unsigned char>(bytes[8]) +
                           std::size_t{256} * static_cast<unsigned char>(bytes[9]);
  const std::string_view dict = std::string_view(bytes).substr(10, size);
  check_equal((10 + size) % 64, 0u);
  check(dict.ends_with('\n'), "the end of the dict");
  check_equal(
      dict.substr(0, dict.find('}') + 1),
      join("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows, ", ", columns, "), }"));
  check_equal(bytes.size(), 10 + size + 4 * rows * columns);
  std::vector<float> out((bytes.size() - 10 - size) / 4);
  std::memcpy(out.data(), bytes.data() + 10 + size, 4 * out.size());
  return out;
}

std::vector<float> read_safetensors(const Path& path, const std::string& name, std::size_t rows,
                                    std::size_t columns) {
  const Safetensors file(path);
  std::vector<float> out(rows * columns);
  file.copy(name, std::vector{rows, columns}, out.data());
  return out;
}

void test_files() {
  const Dataset data = ring_data(num_items, num_users);
  const ModelConfig model = model_of(Architecture::paper, Objective::causal);
  const auto engine = random_engine(model);
  const std::size_t D = engine->vector_size();
  std::vector<float> users(num_users * D), items(num_items * D);
  engine->user_vectors(question_of(data.histories, model), users);
  engine->item_vectors(0, items);
  const TemporaryFolder folder;
  const FolderLock lock(folder.path());
  const auto write = [&](vectors::Format format, bool with_users) {
    FileSet set(lock);
    vectors::write_items(set, format, *engine, data.catalogue);
    std::size_t done = 0;
    if (with_users) {
      vectors::write_users(set, format, *engine, data.histories, [&](std::size_t n) { done = n; });
      check_equal(done, num_users);
    }
    vectors::remove_others(set, format, with_users);
    set.commit();
  };
  const auto names = [&] {
    std::string text;
    for (const Path& name : names_in_folder(folder.path())) text += path_text(name) + " ";
    return text;
  };
  write(vectors::Format::npy, true);
  check_equal(names(), ".lock item_ids.json item_vectors.npy user_names.json user_vectors.npy ");
  check(read_npy(folder / "item_vectors.npy", num_items, D) == items, "items in .npy");
  check(read_npy(folder / "user_vectors.npy", num_users, D) == users, "users in .npy");
  const Json ids = Json::parse(read_file(folder / "item_ids.json"));
  const Json people = Json::parse(read_file(folder / "user_names.json"));
  check_equal(ids.array().size(), num_items);
  check_equal(ids.array()[9].integer(), 109);
  check_equal(people.array().size(), num_users);
  check_equal(people.array()[300].string(), data.histories.user(300));
  write(vectors::Format::safetensors, true);
  check_equal(names(),
              ".lock item_ids.json item_vectors.safetensors user_names.json "
              "user_vectors.safetensors ");
  check(
      read_safetensors(folder / "item_vectors.safetensors", "item_vectors", num_items, D) == items,
      "items in .safetensors");
  check(
      read_safetensors(folder / "user_vectors.safetensors", "user_vectors", num_users, D) == users,
      "users in .safetensors");
  write(vectors::Format::npy, false);
  check_equal(names(), ".lock item_ids.json item_vectors.npy ");
}

void test_similar() {
  constexpr std::size_t items = 1100, asked = 1050, count = 20;  // more than one block
  const TemporaryFolder folder;
  const Dataset data = ring_data(items, 20);
  TrainConfig train = small_train();
  train.epochs = 1;
  Trainer(data, small_model(), train, folder.path()).run();
  Recommender recommender(folder / "models");
  Engine& engine = recommender.engine();
  const std::size_t D = engine.vector_size();
  std::vector<float> vectors(items * D);
  engine.item_vectors(0, vectors);
  const std::vector<double> all = products(vectors, vectors, D);
  std::vector<std::pair<double, std::size_t>> expected;  // by falling cosine
  for (std::size_t i = 0; i < items; ++i) {
    if (i == asked) continue;
    const double lengths = std::sqrt(all[i * items + i] * all[asked * items + asked]);
    expected.emplace_back(-all[asked * items + i] / lengths, i);
  }
  std::sort(expected.begin(), expected.end());
  const auto found = recommender.similar(asked, count);
  check_equal(found.size(), count);
  for (std::size_t i = 0; i < found.size(); ++i) {
    check_equal(static_cast<std::size_t>(found[i].item), expected[i].second);
    check(std::abs(found[i].score + expected[i].first) < 1e-6, "the cosine");
  }
  check_equal(recommender.similar(3, 5000).size(), items - 1);
  check(recommender.similar(3, 0).empty(), "none were asked for");
  check_throws([&] { recommender.similar(1100, 1); }, {"item 1100", "among the 1100"});
  std::vector<float> numbers(engine.table().size());
  engine.read(State::parameters, numbers);
  const std::vector<float> before = numbers;
  numbers[engine.table().at("output.weight").offset +
          (special_rows + 7) * small_model().hidden_size] = 1e30f;
  engine.write(State::parameters, numbers);
  check_throws([&] { recommender.similar(3, 5); }, {"items 3 and 7 are too long for a cosine"});
  engine.write(State::parameters, before);

  // The vector of a history finds what is recommended for it.
  const ItemSpan history = data.histories.row(0);
  const std::vector<double> scores = products(recommender.vector(history), vectors, D);
  std::size_t best = items;
  for (std::size_t i = 0; i < items; ++i) {
    const bool seen = std::count(history.begin(), history.end(), static_cast<int>(i)) > 0;
    if (!seen && (best == items || scores[i] > scores[best])) best = i;
  }
  check_equal(static_cast<std::size_t>(recommender.recommend(history, 1).front().item), best);

  // A vector of zeros is like nothing, and like all others of zeros.
  engine.write(State::parameters, std::vector<float>(engine.table().size()));
  const auto like_nothing = recommender.similar(1, 3);
  check_equal(like_nothing.size(), 3u);
  for (const Recommendation& pick : like_nothing) check_equal(pick.score, 0.0);
}

// Many users and items at once, more than a block of either, against one at a time.
void test_recommend_all() {
  constexpr std::size_t items = 4500, users = 520, count = 10;
  std::vector<std::vector<std::int32_t>> rows(users);
  std::vector<ItemSpan> histories;
  for (std::size_t user = 0; user < users; ++user) {
    const Key key = fold_in(make_key(9), user);
    for (std::size_t i = 0; i < user % 30; ++i) {
      rows[user].push_back(static_cast<std::int32_t>(below(key, i, items)));
    }
    histories.push_back(rows[user]);
  }
  for (ModelConfig model : all_models()) {
    model.num_items = items;
    const auto engine = random_engine(model);
    // So that leaving out what was seen matters: the best of user 500 are in its history.
    std::vector<std::vector<Recommendation>> before =
        recommend_all(*engine, std::span(histories).subspan(500, 1), {count});
    for (const Recommendation& pick : before[0]) rows[500].insert(rows[500].begin(), pick.item);
    histories[500] = rows[500];
    const auto all = recommend_all(*engine, histories, {count});
    check_equal(all.size(), users);
    std::vector<float> scores(items);
    for (std::size_t user = 0; user < users; ++user) {
      Batch batch;
      add_next_item_row(batch, histories[user], model);
      engine->score(batch, scores);
      const auto one = top_unseen(scores, histories[user], count);
      bool equal = one.size() == all[user].size();
      for (std::size_t i = 0; equal && i < one.size(); ++i) {
        equal = one[i].item == all[user][i].item && one[i].score == all[user][i].score;
      }
      check(equal, join("user ", user, " is recommended the same at the same probabilities"));
    }
  }
}

void test_recommend_all_misuse() {
  const ModelConfig model = model_of(Architecture::torch, Objective::cloze);
  CpuEngine<float> engine(model, small_train());
  const std::vector<std::int32_t> row{3, 300};
  const std::vector<ItemSpan> histories{row};
  check(recommend_all(engine, {}, {}).empty(), "nobody asks");
  check_throws([&] { recommend_all(engine, histories, {}); }, {"item 300", "among the 300"});
  Batch batch;
  add_next_item_row(batch, histories[0].first(1), model);
  check_throws([&] { engine.top(batch, {}, 10); }, {"0 histories for 1 asked places"});
  const std::vector<std::uint8_t> few(299);
  check_throws([&] { engine.top(batch, {histories.data(), 1}, 10, few); }, {"item 300"});
  const std::vector<ItemSpan> good{histories[0].first(1)};
  check_throws([&] { engine.top(batch, good, 10, few); }, {"of 299 items", "expected 300"});
  check_throws([&] { recommend_all(engine, good, {.candidates = {300}}); }, {"item 300"});
}

// What options let through, and that the scores stay what they are.
void test_options() {
  for (const ModelConfig& model : all_models()) {
    const auto engine = random_engine(model);
    const std::size_t I = model.num_items;
    const std::vector<std::int32_t> history{3, 1, 4};
    const std::vector<ItemSpan> asked{history, ItemSpan(history).first(1)};
    const auto all = recommend_all(*engine, asked, {.count = I, .keep_seen = true});
    const auto expect = [&](const RecommendOptions& options, auto&& may_be) {
      const auto found = recommend_all(*engine, asked, options);
      for (std::size_t row = 0; row < asked.size(); ++row) {
        std::vector<Recommendation> expected;
        for (const Recommendation& pick : all[row]) {
          if (expected.size() < options.count && may_be(row, pick.item)) expected.push_back(pick);
        }
        const bool same = std::equal(
            expected.begin(), expected.end(), found[row].begin(), found[row].end(),
            [](const auto& a, const auto& b) { return a.item == b.item && a.score == b.score; });
        check(same && !expected.empty(), join("row ", row, " of ", options.count));
      }
    };
    const auto unseen = [&](std::size_t row, std::int32_t item) {
      return std::find(asked[row].begin(), asked[row].end(), item) == asked[row].end();
    };
    check_equal(all[0].size(), I);
    expect({.count = 5}, unseen);
    expect({.count = 7, .filter = [](std::int32_t item) { return item % 3 == 0; }},
           [&](std::size_t row, std::int32_t item) { return item % 3 == 0 && unseen(row, item); });
    expect({.count = I, .keep_seen = true, .candidates = {9, 3, 9, 20}},
           [](std::size_t, std::int32_t item) { return item == 3 || item == 9 || item == 20; });
    expect({.count = I,
            .candidates = {9, 3, 20},
            .filter = [](std::int32_t item) { return item != 20; }},
           [&](std::size_t row, std::int32_t item) {
             return item == 9 || (item == 3 && unseen(row, item));
           });
    const auto none = recommend_all(*engine, asked, {.filter = [](std::int32_t) { return false; }});
    check(none[0].empty() && none[1].empty(), "a filter that leaves nothing");
  }
}

// Many threads ask one Recommender, and each gets what one alone would.
void test_many_threads() {
  constexpr std::size_t callers = 8, each = 40, items = 300;
  const TemporaryFolder folder;
  const Dataset data = ring_data(items, 20);
  TrainConfig train = small_train();
  train.epochs = 1;
  Trainer(data, small_model(), train, folder.path()).run();
  const Recommender recommender(folder / "models", "best_model", 2);
  std::vector<std::vector<std::int32_t>> histories;
  for (std::size_t i = 0; i < callers * each; ++i) {
    std::vector<std::int32_t>& history = histories.emplace_back();
    for (std::size_t j = 0; j <= i % 12; ++j) {
      history.push_back(static_cast<std::int32_t>((7 * i + 3 * j) % items));
    }
  }
  const auto text = [&](std::size_t i) {
    std::string answer;
    for (const Recommendation& pick : recommender.recommend(histories[i], 5)) {
      answer += join(pick.item, " ", pick.score, "; ");
    }
    for (const float value : recommender.vector(histories[i])) answer += join(value, " ");
    for (const double value : recommender.reasons(histories[i], 9)) answer += join(value, " ");
    answer += join(recommender.similar(histories[i][0], 1)[0].item);
    return answer;
  };
  std::vector<std::string> alone, together(histories.size());
  for (std::size_t i = 0; i < histories.size(); ++i) alone.push_back(text(i));
  std::vector<std::thread> threads;
  for (std::size_t caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      for (std::size_t i = caller * each; i < (caller + 1) * each; ++i) together[i] = text(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  check(alone == together, "other answers where many ask at once");
}

// Where memory for a second engine is short, the second caller waits for the first.
void test_no_memory_for_a_twin() {
  struct Large : CpuEngine<float, ItemHead> {
    using CpuEngine::CpuEngine;
    std::unique_ptr<Engine> twin(std::size_t) override {
      asked = true;
      throw std::bad_alloc();
    }
    std::atomic<bool> asked{false};
  };
  ModelConfig model = small_model();
  model.num_items = 5;
  auto only = std::make_unique<Large>(model, small_train());
  const Large& large = *only;
  SharedEngine shared(std::move(only));
  std::size_t served = 0;
  std::thread second;
  shared.lend([&](Engine&) {
    second = std::thread([&] {
      try {
        shared.lend([&](Engine&) { return ++served; });
      } catch (const std::bad_alloc&) {
      }
    });
    while (!large.asked) std::this_thread::yield();
    return ++served;
  });
  second.join();
  check_equal(served, std::size_t{2});
}

// The fall of the log-probability, against models that are asked one by one.
void test_reasons() {
  const TemporaryFolder folder;
  const Dataset data = ring_data(30, 20);
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    ModelConfig model = small_model();
    model.objective = objective, model.max_length = 5;
    TrainConfig train = small_train();
    train.epochs = 20, train.learning_rate = 3e-3;
    Trainer(data, model, train, folder.path()).overwrite().run();
    Recommender recommender(folder / "models");
    const std::vector<std::int32_t> history{4, 5, 6, 7, 8, 9, 10};
    const std::int32_t item = 11;
    const auto log_probability = [&](const std::vector<std::int32_t>& row) {
      Batch batch;
      add_next_item_row(batch, row, recommender.engine().config(), item);
      return -recommender.engine().evaluate(batch).loss();
    };
    const std::vector<double> falls = recommender.reasons(history, item);
    check_equal(falls.size(), history.size());
    double most = 0;
    for (std::size_t i = 0; i < history.size(); ++i) {
      std::vector<std::int32_t> rest = history;
      rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(i));
      const double fall = log_probability(history) - log_probability(rest);
      check(std::abs(falls[i] - fall) < 1e-5, join("item ", i, ": ", falls[i], " not ", fall));
      most = std::max(most, std::abs(falls[i]));
    }
    check(most > 1e-3, "some item matters");
    check_equal(falls[0], 0.0);  // in no window
    check_throws([&] { recommender.reasons(history, 30); }, {"item 30"});
  }
}

}  // namespace

int main() {
  test("inner products are scores", test_products);
  test("vectors of items are rows of the table", test_items_are_rows);
  test("in double", test_double);
  test("wrong sizes", test_wrong_sizes);
  test("a model without vectors", test_no_vectors);
  test("files", test_files);
  test("similar items", test_similar);
  test("many users at once", test_recommend_all);
  test("many users at once, misused", test_recommend_all_misuse);
  test("what may be recommended", test_options);
  test("many threads at once", test_many_threads);
  test("no memory for a second engine", test_no_memory_for_a_twin);
  test("reasons", test_reasons);
  return finish();
}
