// Exercise 8: a sort that leaves ties to chance. Read before: chapter 16, Recommendation and
// BestItems.

#include "exercise.hpp"

using namespace bert4rec;
using Items = std::vector<Recommendation>;

#ifdef SOLUTION
#include "solutions/08_ties.hpp"
#else
namespace mine {

// The best `count` of the items, the best first. They arrive in any order: each thread, process or
// file hands over those that it has scored. The same items must give the same list.
Items best_items(Items items, std::size_t count) {
  const auto better = [](const Recommendation& a, const Recommendation& b) {
    return a.score > b.score;
  };
  std::sort(items.begin(), items.end(), better);
  items.resize(std::min(count, items.size()));
  return items;
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

std::vector<std::int32_t> numbers_of(const Items& items) {
  std::vector<std::int32_t> numbers;
  for (const Recommendation& pick : items) numbers.push_back(pick.item);
  return numbers;
}

// A model that was not trained may score all items alike.
void check_untrained() {
  Items items;
  for (std::int32_t item = 0; item < 16; ++item) items.push_back({item, 0.5});
  const auto upwards = numbers_of(mine::best_items(items, 5));
  std::reverse(items.begin(), items.end());
  const auto downwards = numbers_of(mine::best_items(items, 5));
  require(upwards == downwards, "16 items with one and the same score, handed over from the first ",
          "to the last, give the list ", list(upwards), ", and from the last to the first ",
          list(downwards), ": expected the same list. The order of arrival must not decide.");
}

// Scores of four levels in many orders of arrival, against the header, which sees the items in the
// order of their numbers.
void check_header() {
  Items items;
  BestItems best(20);
  for (std::int32_t item = 0; item < 500; ++item) {
    const auto score = static_cast<double>(below(make_key(8), static_cast<std::uint64_t>(item), 4));
    items.push_back({item, score});
    if (best.takes(score)) best.add(item, score);
  }
  const auto expected = numbers_of(best.sorted());
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    shuffle(items, make_key(seed));
    const auto got = numbers_of(mine::best_items(items, 20));
    require(got == expected, "of 500 items of four scores the best twenty are ", list(expected),
            " by BestItems, where the lower number wins a tie; got ", list(got));
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    check_untrained();
    check_header();
    return "with the number of the item as second key no two items tie: one set, one list";
  });
}
