// Exercise 7: an evaluation that ranks seen items. Read before: chapter 12, rank_of(); chapter 17,
// NextItemCase, rank_unseen() and Protocol.

#include "exercise.hpp"

using namespace bert4rec;

#ifdef SOLUTION
#include "solutions/07_seen_items.hpp"
#else
namespace mine {

// Rank of question.target among the items that the user could be shown: those that are not in
// question.before, and the target itself. scores[i] is that of item i; a better item has a higher
// one, and rank_of() says what ties count.
std::size_t rank_unseen(std::span<const float> scores, const NextItemCase& question) {
  const float target_score = scores[static_cast<std::size_t>(question.target)];
  std::size_t better = 0, ties = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto item = static_cast<std::int32_t>(i);
    if (item == question.target) continue;
    better += scores[i] > target_score;
    ties += scores[i] == target_score;
  }
  return rank_of(better, ties);
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

constexpr std::size_t num_items = 300, num_users = 200;

// The lower its number, the more likely an item: 200 histories of 60 different items.
std::vector<std::vector<std::int32_t>> popular_histories() {
  std::vector<std::vector<std::int32_t>> histories(num_users);
  for (std::size_t user = 0; user < num_users; ++user) {
    std::vector<std::int32_t>& history = histories[user];
    for (std::uint64_t draw = 0; history.size() < 60; ++draw) {
      const double u = uniform(fold_in(make_key(7), user), draw);
      const auto item = static_cast<std::int32_t>(u * u * num_items);
      if (std::find(history.begin(), history.end(), item) == history.end()) history.push_back(item);
    }
  }
  return histories;
}

// What people have seen is what scores high: five such items, and then the target.
void check_small() {
  const std::vector<std::int32_t> before{3, 0, 4, 1, 2};
  const std::vector<float> scores{9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
  const std::size_t rank = mine::rank_unseen(scores, {before, 5});
  require(rank == 1, "items 0 to 4 score higher than the target, item 5, but the user has seen ",
          "them and will not be shown them again: the target has rank 1, got ", rank);
}

// Scores with many ties; items seen twice, and targets seen before.
void check_header() {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const auto draw = [&](std::uint64_t counter, std::size_t count) {
      return static_cast<std::int32_t>(below(make_key(seed), counter, count));
    };
    std::vector<float> scores;
    for (std::uint64_t i = 0; i < 40; ++i) scores.push_back(static_cast<float>(draw(i, 12)));
    std::vector<std::int32_t> before;
    for (std::uint64_t i = 0; i < 20; ++i) before.push_back(draw(100 + i, 40));
    const NextItemCase question{before, draw(200, 40)};
    const std::size_t rank = mine::rank_unseen(scores, question);
    const std::size_t expected = bert4rec::rank_unseen(scores, question);
    require(rank == expected, "of 40 scores with ties and a history with repetitions the target ",
            "has rank ", expected, " by the header, got ", rank);
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    check_small();
    check_header();
    const std::vector<std::vector<std::int32_t>> histories = popular_histories();
    const std::vector<ItemSpan> known(histories.begin(), histories.end());
    std::vector<NextItemCase> cases;
    for (const ItemSpan h : known) cases.push_back({h.first(h.size() - 1), h.back(), cases.size()});
    const std::vector<std::uint64_t> counts = item_counts(known, num_items);
    const auto ranks = RankingTask(cases, counts, 1).ranks(popularity_scorer(counts));
    return join("popularity, same users, same scores: HR@20 is ",
                number(rank_metrics(ranks.at(Protocol::all_items)).hit[3]), " among all items, ",
                number(rank_metrics(ranks.at(Protocol::all_unseen)).hit[3]), " among the unseen");
  });
}
