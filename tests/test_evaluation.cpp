// Protocols, scorers and intervals of the evaluation, against values worked out by hand.

#include <set>

#include "bert4rec.hpp"
#include "check.hpp"
#include "small_data.hpp"

using namespace bert4rec;

namespace {

using Items = std::vector<std::int32_t>;

bool same(ItemSpan a, ItemSpan b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

Histories histories_of(const std::vector<Items>& rows) {
  Histories histories;
  for (const Items& row : rows) histories.add(join("user ", histories.size()), row);
  return histories;
}

DataSplit last_split(const Histories& histories) {
  TrainConfig config;
  config.split = Split::last;
  return DataSplit(histories, config);
}

// Gives every case the same scores.
Scorer fixed_scorer(std::vector<float> row) {
  return [row](std::span<const NextItemCase> cases, std::span<float> scores) {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      std::copy(row.begin(), row.end(), scores.data() + i * row.size());
    }
  };
}

void test_ranks_of_each_protocol() {
  const Items before{0, 1};
  // Item 4 never occurs, so popularity never draws it; with so few items all others are drawn.
  const RankingTask task({{before, 2, 0}}, {5, 3, 2, 9, 0, 1}, 7);
  const auto expect = [&](std::vector<float> scores, std::array<std::size_t, 4> expected,
                          Place where = {__builtin_FILE(), __builtin_LINE()}) {
    const auto ranks = task.ranks(fixed_scorer(std::move(scores)));
    for (const Protocol protocol : protocols) {
      check_equal(ranks.at(protocol).at(0), expected[static_cast<std::size_t>(protocol)], where);
    }
  };
  // all-unseen: 3, 4, 5 compete; all-items: all; popular: 3 and 5; uniform: 3, 4, 5.
  expect({9, 8, 5, 4, 7, 1}, {2, 4, 1, 2});
  expect({0, 0, 1, 2, 3, 4}, {4, 4, 3, 4});
  // Ties: half of them, rounded down, are better.
  expect({9, 5, 5, 5, 5, 1}, {2, 3, 1, 2});
  expect({1, 1, 1, 1, 1, 1}, {2, 3, 2, 2});
}

void test_one_pass() {
  const Dataset data = ring_data(40, 300);
  const DataSplit split = last_split(data.histories);
  const RankingTask task(next_item_cases(split, HeldOut::test),
                         item_counts(all_histories(data.histories), 40), 1);
  std::vector<std::size_t> seen;
  const auto ranks = task.ranks([&](std::span<const NextItemCase> cases, std::span<float> scores) {
    for (const NextItemCase& question : cases) seen.push_back(question.user);
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i % 40);
  });
  std::vector<std::size_t> users;
  for (const NextItemCase& question : task.cases()) users.push_back(question.user);
  check(seen == users && users.size() == 300, "every case is scored once");
  for (std::size_t i = 0; i < users.size(); ++i) {
    const auto better = static_cast<std::size_t>(39 - task.cases()[i].target);
    if (ranks.at(Protocol::all_items)[i] == 1 + better) continue;
    check(false, join("the rank of case ", i, " is that of its own scores"));
  }
  const Scorer broken = [](std::span<const NextItemCase>, std::span<float> scores) {
    std::fill(scores.begin(), scores.end(), 0.0f);
    scores[1] = std::nanf("");
  };
  check_throws([&] { task.ranks(broken); }, {"user 0", "NaN"});
  check_throws([] { RankingTask({}, {1, 1}, 1); }, {"no case to rank"});
  check_throws([] { RankingTask({{{}, 2, 0}}, {1, 1}, 1); }, {"item 2", "among the 2"});
}

// 30 users with 20 of 400 items each; item i occurs 1 + i % 50 times, they say.
struct Sampled {
  std::vector<Items> rows;
  std::vector<NextItemCase> cases;
  std::vector<std::uint64_t> counts;

  Sampled() {
    for (std::size_t user = 0; user < 30; ++user) {
      Items& row = rows.emplace_back();
      for (std::size_t i = 0; i < 20; ++i) {
        row.push_back(static_cast<std::int32_t>((user * 37 + i * 19) % 400));
      }
    }
    for (std::size_t user = 0; user < 30; ++user) {
      cases.push_back({ItemSpan(rows[user]).first(19), rows[user].back(), user});
    }
    for (std::size_t item = 0; item < 400; ++item) counts.push_back(1 + item % 50);
  }
};

void test_negatives() {
  const Sampled data;
  const RankingTask task(data.cases, data.counts, 1), again(data.cases, data.counts, 1);
  const RankingTask other(data.cases, data.counts, 2);
  const RankingTask reversed({data.cases.rbegin(), data.cases.rend()}, data.counts, 1);
  double mean_count[2] = {0, 0};
  for (const Protocol protocol : {Protocol::popular_100, Protocol::uniform_100}) {
    for (std::size_t i = 0; i < 30; ++i) {
      const ItemSpan negatives = task.negatives(protocol, i);
      std::set<std::int32_t> distinct(negatives.begin(), negatives.end());
      check(negatives.size() == 100 && distinct.size() == 100, "100 distinct negatives");
      for (const std::int32_t item : data.rows[i]) {  // its last one is the target
        check(!distinct.contains(item), "negatives are unseen and not the target");
      }
      for (const std::int32_t item : negatives) {
        mean_count[protocol == Protocol::uniform_100] +=
            static_cast<double>(data.counts[static_cast<std::size_t>(item)]) / 3000;
      }
      check(same(negatives, again.negatives(protocol, i)), "the same seed, the same draws");
      check(!same(negatives, other.negatives(protocol, i)), "another seed, other draws");
      check(same(negatives, reversed.negatives(protocol, 29 - i)), "a draw belongs to its user");
      check(i == 0 || !same(negatives, task.negatives(protocol, i - 1)), "each user, other draws");
    }
  }
  // Counts 1 ... 50 have the mean 25.5 and, weighted by themselves, 33.7, less what is used up.
  check(mean_count[0] > 31 && mean_count[0] < 33.7, join("by popularity: ", mean_count[0]));
  check(std::abs(mean_count[1] - 25.5) < 1, join("evenly: ", mean_count[1]));
  check_throws([&] { task.negatives(Protocol::all_unseen, 0); }, {"all-unseen draws no negatives"});
  check_throws([&] { task.negatives(Protocol::uniform_100, 30); }, {"case 30 of 30"});
}

// Of 103 items user 0 has seen 2 before the target, user 1 one; three have a count.
void test_few_negatives() {
  const std::vector<std::int32_t> two{0, 1}, one{2};
  std::vector<std::uint64_t> counts(103);
  counts[0] = 5, counts[1] = 1, counts[102] = 2;
  const RankingTask task({{two, 7, 0}, {one, 7, 1}}, counts, 1);
  check_equal(task.fewest_negatives(Protocol::uniform_100), 100u);
  check_equal(task.fewest_negatives(Protocol::popular_100), 1u);
  counts.resize(102);
  const RankingTask smaller({{two, 7, 0}, {one, 7, 1}}, counts, 1);
  check_equal(smaller.fewest_negatives(Protocol::uniform_100), 99u);
}

// What is no item is told, not read.
void test_no_items() {
  const std::vector<std::int32_t> beyond{0, 5}, right{0, 1};
  std::vector<float> scores(5);
  check_throws([&] { rank_among(scores, 5, right); }, {"item 5"});
  check_throws([&] { rank_among(scores, 2, beyond); }, {"item 5"});
  const std::vector<ItemSpan> known{right}, wrong{beyond};
  const Scorer markov = markov_scorer(known, 5);
  check_throws([&] { markov(std::vector<NextItemCase>{{beyond, 1, 0}}, scores); }, {"item 5"});
  check_throws([&] { ListAudit(wrong, 5); }, {"item 5"});
  check_throws([] { ListAudit({}, 5); }, {"nobody's history is known"});
  ListAudit audit(known, 5);
  check_throws([&] { audit.add({right, 2}, std::vector<float>(6)); }, {"6 scores of 5 items"});
  check_throws([] { roc_auc({1}, {0, std::nanf("")}); }, {"a score is NaN"});
  check_throws([] { roc_auc({std::nanf("")}, {0}); }, {"a score is NaN"});
}

void test_sampler() {
  ItemSampler sampler({1, 2, 0, 3, 4});
  const Items none, all = sampler.draw(9, none, make_key(1));
  check_equal(std::set<std::int32_t>(all.begin(), all.end()).size(), 4u);
  check_equal(all.size(), 4u);
  const Items excluded{4, 0, 4};
  check(sampler.draw(1, Items{0, 1, 3}, make_key(1)) == Items{4}, "only item 4 is left");
  constexpr int draws = 20000;
  std::map<std::int32_t, int> first;
  int pair = 0, third = 0;
  for (std::uint64_t i = 0; i < draws; ++i) {
    const Items drawn = sampler.draw(2, none, fold_in(make_key(3), i));
    ++first[drawn[0]];
    pair += drawn[0] == 4 && drawn[1] == 3;
    third += sampler.draw(1, excluded, fold_in(make_key(4), i))[0] == 3;
  }
  const auto near = [](int found, double chance, std::string_view what) {
    const double deviation = std::sqrt(draws * chance * (1 - chance));
    check(std::abs(found - draws * chance) < 4 * deviation, join(what, ": ", found));
  };
  near(first[0], 0.1, "weight 1 of 10"), near(first[1], 0.2, "weight 2 of 10");
  near(first[3], 0.3, "weight 3 of 10"), near(first[4], 0.4, "weight 4 of 10");
  near(pair, 0.4 * 3 / 6, "4, then 3 among the rest");
  near(third, 0.6, "3 where 4 and 0 are excluded");
}

void test_popularity() {
  const Histories histories = histories_of({{0, 1, 2}, {0, 2, 1}, {0, 3, 1}, {2, 3}});
  const DataSplit split = last_split(histories);
  const auto cases = next_item_cases(split, HeldOut::test);
  check_equal(cases.size(), 3u);  // the fourth user has two items only, and is trained on
  const auto counts = item_counts(known_histories(split, HeldOut::test), 4);
  check(counts == std::vector<std::uint64_t>{3, 1, 2, 2}, "counts with the validation items");
  const auto before = item_counts(known_histories(split, HeldOut::validation), 4);
  check(before == std::vector<std::uint64_t>{3, 0, 1, 1}, "counts without them");
  const auto all = item_counts(all_histories(histories), 4);
  check(all == std::vector<std::uint64_t>{3, 3, 3, 2}, "counts with the test items");
  const RankingTask task(cases, all, 1);
  const auto ranks = task.ranks(popularity_scorer(counts)).at(Protocol::all_unseen);
  // 2 and 3 are unseen and tie; 3 is better than 1; 2 is better than 1.
  check(ranks == std::vector<std::size_t>{1, 2, 2}, "ranks by popularity");
  check_throws([&] { task.ranks(popularity_scorer(std::vector<std::uint64_t>(3))); },
               {"12 numbers, expected 9"});
  check_throws([&] { item_counts(all_histories(histories), 3); }, {"item 3"});
}

void test_known_histories_of_users() {
  const Dataset data = ring_data(12, 20);
  const DataSplit split(data.histories, TrainConfig());  // Split::users
  const auto known = known_histories(split, HeldOut::test);
  check_equal(known.size(), split.train_users().size());
  for (std::size_t i = 0; i < known.size(); ++i) {
    check(same(known[i], data.histories.row(split.train_users()[i])),
          "training users whole, held-out users not at all");
  }
}

void test_markov() {
  // Known before the test: 0 1 2, 0 1, 3 0 1 2, 2 0: counts 4, 3, 3, 1, so 2^n is 8.
  const Histories histories = histories_of({{0, 1, 2, 3}, {0, 1, 3}, {3, 0, 1, 2, 4}, {2, 0}, {4}});
  const DataSplit split = last_split(histories);
  const Scorer markov = markov_scorer(known_histories(split, HeldOut::test), 5);
  const auto row = [](const Scorer& scorer, const Items& before) {
    std::vector<float> scores(5, -1.0f);
    const NextItemCase question{before, 0, 0};
    scorer({&question, 1}, scores);
    return scores;
  };
  using Scores = std::vector<float>;
  check(row(markov, {0}) == Scores{4, 3 + 3 * 8, 3, 1, 1}, "after 0: 1, three times");
  check(row(markov, {0, 1}) == Scores{4, 3, 3 + 2 * 8, 1, 1}, "after 1: 2, twice");
  check(row(markov, {1, 2}) == Scores{4 + 8, 3, 3, 1, 1}, "after 2: 0, once");
  check(row(markov, {4}) == Scores{4, 3, 3, 1, 1}, "after 4: popularity decides");
  check(row(markov, {}) == Scores{4, 3, 3, 1, 1}, "after nothing: popularity");
  // Before the validation items: 0 1, 0, 3 0 1, 2 0, 4: counts 4, 2, 1, 1, 1; 1 has no follower.
  const Scorer earlier = markov_scorer(known_histories(split, HeldOut::validation), 5);
  check(row(earlier, {1}) == Scores{4, 2, 1, 1, 1}, "validation items are not known yet");
  check(row(earlier, {0}) == Scores{4, 2 + 2 * 8, 1, 1, 1}, "after 0: 1, twice");
}

void test_shuffled() {
  Sampled data;
  std::vector<Items> shown;
  const Scorer spy = [&](std::span<const NextItemCase> cases, std::span<float>) {
    for (const NextItemCase& question : cases) {
      shown.emplace_back(question.before.begin(), question.before.end());
      check_equal(question.target, data.cases[question.user].target);
    }
  };
  const auto shuffled = [&](std::span<const NextItemCase> cases, std::uint64_t seed) {
    shown.clear();
    shuffled_scorer(spy, seed)(cases, {});
    return shown;
  };
  const std::vector<Items> orders = shuffled(data.cases, 5);
  check_equal(orders.size(), 30u);
  std::size_t changed = 0;
  for (std::size_t i = 0; i < orders.size(); ++i) {
    const ItemSpan before = data.cases[i].before;
    changed += !same(orders[i], before);
    check(std::is_permutation(orders[i].begin(), orders[i].end(), before.begin(), before.end()),
          "the same items");
  }
  check_equal(changed, 30u);
  check(shuffled(data.cases, 5) == orders, "the same seed, the same order");
  check(shuffled(data.cases, 6) != orders, "another seed, another order");
  const auto tail = shuffled(std::span(data.cases).subspan(20), 5);
  check(std::equal(tail.begin(), tail.end(), orders.begin() + 20), "whatever the batch");
}

void test_model_scorer() {
  const Dataset data = ring_data(20, 300);
  const DataSplit split = last_split(data.histories);
  const RankingTask task(next_item_cases(split, HeldOut::test),
                         item_counts(all_histories(data.histories), 20), 1);
  ModelConfig model = small_model();
  model.num_items = 20;
  TrainConfig train = small_train();
  CpuEngine<float> one(model, train);
  train.threads = 3;
  CpuEngine<float> three(model, train);
  const auto ranks = task.ranks(model_scorer(one));
  check(ranks == task.ranks(model_scorer(three)), "the same ranks on any number of threads");
  const NextItemCase& question = task.cases()[299];  // in the second batch of cases
  Batch batch;
  add_next_item_row(batch, question.before, model);
  std::vector<float> scores(20);
  one.score(batch, scores);
  check_equal(ranks.at(Protocol::all_items)[299], rank_all(scores, question.target));
}

void test_bootstrap() {
  std::vector<std::size_t> ranks;
  const Key key = make_key(8);
  for (std::uint64_t user = 0; user < 2000; ++user) ranks.push_back(1 + below(key, user, 30));
  const RankMetrics mean = rank_metrics(ranks);
  const RankIntervals interval = bootstrap_intervals(ranks, 1);
  // The normal approximation: mean +- 1.96 deviations of the mean.
  const auto expect = [&](std::string_view name, double found, double low, double high,
                          double variance) {
    const double half = 1.96 * std::sqrt(variance / 2000);
    check(std::abs(low - (found - half)) < 0.2 * half, join(name, " low ", low));
    check(std::abs(high - (found + half)) < 0.2 * half, join(name, " high ", high));
  };
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    const double p = mean.hit[i];
    expect(join("HR@", top_k[i]), p, interval.low.hit[i], interval.high.hit[i], p * (1 - p));
  }
  double squares = 0;
  for (const std::size_t rank : ranks) squares += std::pow(1 / static_cast<double>(rank), 2) / 2000;
  expect("MRR", mean.mrr, interval.low.mrr, interval.high.mrr, squares - mean.mrr * mean.mrr);

  const RankIntervals again = bootstrap_intervals(ranks, 1), other = bootstrap_intervals(ranks, 2);
  check(again.low.mrr == interval.low.mrr && again.high.ndcg == interval.high.ndcg,
        "the same seed, the same interval");
  check(other.low.mrr != interval.low.mrr, "another seed, another interval");
  const RankIntervals sure = bootstrap_intervals(std::vector<std::size_t>(50, 2), 1);
  check_equal(sure.low.mrr, 0.5);
  check_equal(sure.high.mrr, 0.5);
  check_throws([] { bootstrap_intervals({}, 1); }, {"0 ranks"});
  check_throws([&] { bootstrap_intervals(ranks, 1, 0); }, {"0 resamples"});
}

// Of two models that mostly agree, differences are surer than the models themselves.
void test_paired_bootstrap() {
  std::vector<std::size_t> a, b;
  const Key key = make_key(8);
  for (std::uint64_t user = 0; user < 2000; ++user) {
    a.push_back(1 + below(key, user, 30));
    b.push_back(user % 10 == 0 ? 1 + below(key, 10'000 + user, 30) : a.back());
  }
  double mean = 0, squares = 0;
  for (std::size_t user = 0; user < a.size(); ++user) {
    const double gap = double(a[user] <= 10) - double(b[user] <= 10);
    mean += gap / 2000, squares += gap * gap / 2000;
  }
  const RankIntervals gap = paired_intervals(a, b, 1), alone = bootstrap_intervals(a, 1);
  check(std::abs(difference(rank_metrics(a), rank_metrics(b)).hit[2] - mean) < 1e-12, "the mean");
  const double half = 1.96 * std::sqrt((squares - mean * mean) / 2000);  // normal approximation
  check(std::abs(gap.low.hit[2] - (mean - half)) < 0.2 * half, join("low ", gap.low.hit[2]));
  check(std::abs(gap.high.hit[2] - (mean + half)) < 0.2 * half, join("high ", gap.high.hit[2]));
  check(3 * half < alone.high.hit[2] - alone.low.hit[2], "surer than one alone");
  const RankIntervals none = paired_intervals(a, a, 1);
  check(none.low.mrr == 0 && none.high.mrr == 0, "no difference");
  check_throws([&] { paired_intervals(a, std::span(b).first(9), 1); }, {"of 2000 and of 9 users"});
}

// Three users, 12 items, of which 0 ... 9 head every list that they are not left out of.
void test_list_measures() {
  const std::vector<std::int32_t> first{0, 10}, second{0, 1, 1}, third{0, 1};
  const std::vector<ItemSpan> known{first, second, third};
  ListAudit audit(known, 12);
  std::vector<float> scores(12);
  for (std::size_t i = 0; i < 12; ++i) scores[i] = static_cast<float>(20 - i);
  audit.add({first, 5}, scores);   // 1 ... 9 and 11
  audit.add({second, 5}, scores);  // 2 ... 11
  const ListMeasures found = audit.measures();
  // Known to 3, 2, 1 of 3 users: items 0, 1, and 10; what nobody knows counts as known to one.
  check(std::abs(found.coverage - 11.0 / 12) < 1e-15, join("coverage ", found.coverage));
  const double novelty = -(std::log2(2.0 / 3) + 19 * std::log2(1.0 / 3)) / 20;
  check(std::abs(found.novelty - novelty) < 1e-12, join("novelty ", found.novelty));
  const double lists = (2 + 9 * 1) / 30.0 + 10 / 30.0, histories = 4 / 6.0 + (3 + 2 + 2) / 9.0;
  check(std::abs(found.lift - (lists / histories - 1)) < 1e-12, join("lift ", found.lift));
  const ListMeasures none = ListAudit(known, 12).measures();
  check(none.coverage == 0 && none.novelty == 0 && none.lift == 0, "no lists");
}

// Counted pair by pair.
void test_roc_auc() {
  const Key key = make_key(8);
  const auto draw = [&](std::size_t count, std::uint64_t from) {
    std::vector<float> scores;
    for (std::size_t i = 0; i < count; ++i) {
      scores.push_back(static_cast<float>(below(key, from + i, 12)) - 4);
    }
    return scores;
  };
  const std::vector<float> positives = draw(37, 0), negatives = draw(53, 1000);
  double sum = 0;
  for (const float p : positives) {
    for (const float n : negatives) sum += p > n ? 1 : p == n ? 0.5 : 0;
  }
  check(std::abs(roc_auc(positives, negatives) - sum / (37 * 53)) < 1e-15, join("auc ", sum));
  check_equal(roc_auc({1, 2}, {-1, 0}), 1.0);
  check_equal(roc_auc({1, 2}, {3}), 0.0);
  check(std::isnan(roc_auc({1, 2}, {})), "no pair");
}

}  // namespace

int main() {
  test("ranks of each protocol", test_ranks_of_each_protocol);
  test("one pass over the cases", test_one_pass);
  test("negatives", test_negatives);
  test("fewer negatives than 100", test_few_negatives);
  test("no items", test_no_items);
  test("weighted draws", test_sampler);
  test("popularity", test_popularity);
  test("what baselines know of held-out users", test_known_histories_of_users);
  test("Markov chain", test_markov);
  test("shuffled histories", test_shuffled);
  test("ranks of a model", test_model_scorer);
  test("area under the ROC curve", test_roc_auc);
  test("bootstrap intervals", test_bootstrap);
  test("paired bootstrap", test_paired_bootstrap);
  test("what lists are like", test_list_measures);
  return finish();
}
