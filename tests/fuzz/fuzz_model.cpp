// A model folder: item_mappings.json and, behind a NUL, best_model.safetensors. What loads gives
// recommendations that are items, sorted, not in the history, with probabilities.

#include "fuzz.hpp"

namespace {

using namespace fuzz;

void check_recommendations(Recommender& recommender) {
  const std::size_t items = recommender.catalogue().size();
  const std::vector<std::int32_t> history{static_cast<std::int32_t>(items - 1), 0};
  std::vector<Recommendation> picks;
  if (!problem_of([&] { picks = recommender.recommend(history, 3); }).empty()) return;
  const std::size_t seen = items == 1 ? 1 : 2;
  must(picks.size() == std::min<std::size_t>(3, items - seen), "as many as asked for");
  for (std::size_t i = 0; i < picks.size(); ++i) {
    const auto [item, score] = picks[i];
    must(item > 0 && static_cast<std::size_t>(item) < items - 1, "an item that was not seen");
    must(score >= 0 && score <= 1, "a score is a probability");
    if (i == 0) continue;
    const auto [before, higher] = picks[i - 1];
    must(higher > score || (higher == score && before != item), "the best come first, once");
  }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  auto [mappings, model] = two_files(view(data, size));
  if (seed / 2 % 2 == 0) {
    model =
        mutated_safetensors(model, std::max(most, mappings.size() + 1) - mappings.size() - 1, seed);
  } else {
    mappings = mutated(mappings, std::max(most, model.size() + 1) - model.size() - 1);
    if (seed % 2 != 0) mappings = resealed(mappings);
  }
  return give(one_input(mappings, model), data, size, most);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto [mappings, model] = two_files(view(data, size));
  write(folder() / "item_mappings.json", mappings);
  write(folder() / "best_model.safetensors", model);
  std::optional<Recommender> recommender;
  if (problem_of([&] { recommender.emplace(folder(), "best_model", 1); }).empty()) {
    check_recommendations(*recommender);
  }
  return 0;
}
