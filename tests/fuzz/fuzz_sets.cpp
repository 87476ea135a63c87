// What a killed writer may have left in a data folder: the journal of a set of files and, behind a
// NUL, a dataset.json. Whatever they say, nothing outside the folder is touched, and data that
// loads is the data that dataset.json speaks of.

#include "fuzz.hpp"

namespace {

using namespace fuzz;

constexpr std::string_view items = "{\"id\": 1}\n{\"id\": 2}\n";
constexpr std::string_view histories =
    "{\"user\": \"a\", \"entries\": [{\"id\": 2}, {\"id\": 1}]}\n";
constexpr std::string_view other = "{\"id\": 3}\n";

void put_folder(const Path& data, std::string_view journal, std::string_view manifest) {
  remove_path(data);
  make_folder(data / "sub");
  write(data / "items.jsonl", items);
  write(data / "histories.jsonl", histories);
  write(data / ".items.jsonl.tmp.1.0", other);
  write(data / "sub" / "file", other);
  if (!manifest.empty()) write(data / "dataset.json", manifest);
  if (!journal.empty()) write(data / ".replacing", journal);
}

// The sum that dataset.json gives a file, or "" if there is no dataset.json.
std::string listed(const Path& data, std::string_view name) {
  if (!path_exists(data / "dataset.json")) return "";
  return read_sealed_json(data / "dataset.json").at(name).string();
}

void check_listed(const Path& data, std::string_view name) {
  const std::string sum = listed(data, name);
  const std::string lines = read_file(data / path_from(name));
  must(sum.empty() || sum == detail::hexadecimal(detail::checksum_of_lines(lines)),
       "what loads is what dataset.json speaks of");
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  auto [journal, manifest] = two_files(view(data, size));
  std::string& one = seed / 2 % 2 == 0 ? journal : manifest;
  one = mutated(one, most - std::min(most, size - one.size() + 1));
  if (seed % 2 != 0) one = resealed(one);
  return give(one_input(journal, manifest), data, size, most);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Path outside = folder() / "outside", inside = folder() / "data";
  const auto [journal, manifest] = two_files(view(data, size));
  put_folder(inside, journal, manifest);
  write(outside, items);
  const bool loads = problem_of([&] { Dataset::load(inside); }).empty();
  must(read_file(outside) == items && names_in_folder(folder()).size() == 2,
       "nothing outside the folder is touched");
  if (!loads) return 0;
  must(!path_exists(inside / ".replacing"), "a journal that was obeyed is gone");
  check_listed(inside, "items.jsonl");
  check_listed(inside, "histories.jsonl");
  return 0;
}
