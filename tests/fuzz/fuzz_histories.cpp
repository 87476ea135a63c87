// The content of a histories.jsonl beside a small catalogue. Every history has items of the
// catalogue, is found by its user, and reads back equal after it was written.

#include "fuzz.hpp"

namespace {

using namespace fuzz;

const Catalogue& catalogue() {
  static const Catalogue items = [] {
    Catalogue catalogue;
    for (const std::int64_t id : {1, 2, 3, 4, 5, 16498, -7, 1 << 30}) {
      Item item;
      item.id = id;
      catalogue.add(std::move(item));
    }
    for (const char* id : {"a", "1", ""}) {
      Item item;
      item.id = std::string(id);
      catalogue.add(std::move(item));
    }
    return catalogue;
  }();
  return items;
}

std::optional<Histories> load(std::string_view text) {
  const Path path = folder() / "histories.jsonl";
  write(path, text);
  std::optional<Histories> histories;
  problem_of([&] { histories = Histories::load(path, catalogue()); });
  return histories;
}

std::string written(const Histories& histories) {
  std::string lines;
  for (std::size_t row = 0; row < histories.size(); ++row) {
    Json::Array entries;
    for (const std::int32_t item : histories.row(row)) {
      const ItemId& id = catalogue()[item].id;
      entries.emplace_back(Json::Object{{"id", std::visit([](auto& i) { return Json(i); }, id)}});
    }
    Json line;
    line.set("user", histories.user(row));
    line.set("entries", std::move(entries));
    lines += line.text() + "\n";
  }
  return lines;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto histories = load(view(data, size));
  if (!histories) return 0;
  must(histories->size() > 0, "histories are not empty");
  std::size_t interactions = 0;
  for (std::size_t row = 0; row < histories->size(); ++row) {
    const ItemSpan items = histories->row(row);
    must(!items.empty(), "a history is not empty");
    detail::require_items(items, catalogue().size());
    must(histories->find(histories->user(row)) == row, "a history is found by its user");
    interactions += items.size();
  }
  must(interactions == histories->interactions(), "every interaction is in one history");
  must(histories->untimed_users + histories->same_time_users <=
           histories->size() + histories->planned_entries,
       "users are counted once");
  const std::string lines = written(*histories);
  const auto again = load(lines);
  must(again && written(*again) == lines, "what is written reads back equal");
  return 0;
}
