// Exercise 6: a test set in training. Read before: chapter 14, add_windows(), Sequence and
// DataSplit::sequence(); chapter 17, next_item_cases() and markov_scorer().

#include "exercise.hpp"

using namespace bert4rec;

#ifdef SOLUTION
#include "solutions/06_split.hpp"
#else
namespace mine {

// The windows that training sees: of each user of split.train_users() those of add_windows(), with
// at most `length` items each. Nothing that validation or the test asks for may stand in one.
std::vector<ItemSpan> training_windows(const DataSplit& split, std::size_t length,
                                       std::size_t stride) {
  std::vector<ItemSpan> windows;
  for (const std::size_t user : split.train_users()) {
    add_windows(windows, split.history(user), length, stride);
  }
  return windows;
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

constexpr std::size_t num_items = 1000, num_users = 100, history_length = 10;

// Each history is the begin of a shuffle of all items: what comes next is chance, and nothing else.
Histories histories_by_dice() {
  Histories histories;
  std::vector<std::int32_t> items(num_items);
  std::iota(items.begin(), items.end(), 0);
  for (std::size_t user = 0; user < num_users; ++user) {
    shuffle(items, fold_in(make_key(6), user));
    histories.add(join("user ", user), ItemSpan(items).first(history_length));
  }
  return histories;
}

// HR@10 among all unseen items of a Markov chain that learns from the windows.
double hit_rate(const std::vector<NextItemCase>& cases, std::span<const ItemSpan> windows) {
  const RankingTask task(cases, item_counts(windows, num_items), 1);
  return rank_metrics(task.ranks(markov_scorer(windows, num_items)).at(Protocol::all_unseen))
      .hit[2];
}

// An item held out stands right behind what may be seen before it.
void check_held_out(const DataSplit& split, HeldOut held_out, std::span<const ItemSpan> windows) {
  const std::vector<NextItemCase> cases = next_item_cases(split, held_out);
  for (const NextItemCase& question : cases) {
    const std::int32_t* const target = question.before.data() + question.before.size();
    for (const ItemSpan window : windows) {
      const bool leaks = std::less_equal<>()(window.data(), target) &&
                         std::less<>()(target, window.data() + window.size());
      if (!leaks) continue;
      fail("item ", *target, " of user ", question.user, " is held out for ",
           detail::EnumNames<HeldOut>::names[static_cast<std::size_t>(held_out)],
           " and stands in a training window. Trained on such windows, even a Markov chain finds ",
           number(100 * hit_rate(cases, windows)),
           " % of these items among its best ten, although all histories were drawn by dice, and ",
           "chance finds 1 %.");
    }
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    const Histories histories = histories_by_dice();
    const DataSplit split(histories, TrainConfig{.split = Split::last});
    for (const auto& [length, stride] : {std::pair{20u, 0u}, std::pair{4u, 2u}}) {
      const std::vector<ItemSpan> windows = mine::training_windows(split, length, stride);
      check_held_out(split, HeldOut::test, windows);
      check_held_out(split, HeldOut::validation, windows);
      std::vector<ItemSpan> expected;
      for (const ItemSpan known : known_histories(split, HeldOut::validation)) {
        add_windows(expected, known, length, stride);
      }
      const auto same = [](ItemSpan a, ItemSpan b) {
        return a.data() == b.data() && a.size() == b.size();
      };
      require(std::equal(windows.begin(), windows.end(), expected.begin(), expected.end(), same),
              "no window leaks, but they are not all windows of length ", length, " and stride ",
              stride, " of what is left for training: expected ", expected.size(), ", got ",
              windows.size(), ", or others");
    }
    const auto windows = mine::training_windows(split, 20, 0);
    const double hit = hit_rate(next_item_cases(split, HeldOut::test), windows);
    return join("of what dice drew, a Markov chain now finds ", number(100 * hit),
                " % among its best ten, near the 1 % of chance: the test is not in training");
  });
}
