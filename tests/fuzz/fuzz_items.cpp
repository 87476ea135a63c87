// The content of an items.jsonl. A catalogue finds each of its items by its id, and reads back
// equal after it was written.

#include "fuzz.hpp"

namespace {

using namespace fuzz;

std::optional<Catalogue> load(std::string_view text) {
  const Path path = folder() / "items.jsonl";
  write(path, text);
  std::optional<Catalogue> catalogue;
  problem_of([&] { catalogue = Catalogue::load(path); });
  return catalogue;
}

std::string written(const Catalogue& catalogue) {
  std::string lines;
  for (const Item& item : catalogue) lines += to_json(item).text() + "\n";
  return lines;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto catalogue = load(view(data, size));
  if (!catalogue) return 0;
  must(catalogue->size() > 0, "a catalogue is not empty");
  for (std::size_t i = 0; i < catalogue->size(); ++i) {
    const auto number = static_cast<std::int32_t>(i);
    const ItemId& id = (*catalogue)[number].id;
    must(std::visit([&](const auto& known) { return catalogue->find(known); }, id) == number,
         "an item is found by its id");
    must(catalogue->find_typed(id_text(id)) >= 0, "and by what a person types");
    must(!catalogue->title(number).empty() || id_text(id).empty(), "and has a title");
  }
  const std::string lines = written(*catalogue);
  const auto again = load(lines);
  must(again && written(*again) == lines, "what is written reads back equal");
  return 0;
}
