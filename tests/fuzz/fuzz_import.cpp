// A table of interactions and, behind a NUL, a table of items, read by import_interactions with one
// set of flags or another. What it takes makes a data folder that loads; what it refuses leaves the
// one before as it was.

#define main import_main
#include "../../tools/import_interactions.cpp"
#undef main

#include "fuzz.hpp"

namespace {

// Keeps what is printed, which must not be a terminal's business.
class Silence {
 public:
  Silence() : before_(std::cout.rdbuf(nothing_.rdbuf())) {}
  ~Silence() { std::cout.rdbuf(before_); }
  Silence(const Silence&) = delete;
  Silence& operator=(const Silence&) = delete;
  std::string text() const { return nothing_.str(); }

 private:
  std::ostringstream nothing_;
  std::streambuf* before_;
};

// (Without cli::run, which would catch what is no Error.)
std::string problem_of_import(std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return fuzz::problem_of([&] {
    const Silence silence;
    fuzz::must(import(static_cast<int>(words.size()), argv.data()) == 0, "imported or refused");
    const std::string text = silence.text();
    const auto bad = [](char c) { return c != '\n' && (c == '\x7f' || (c >= 0 && c < ' ')); };
    fuzz::must(std::none_of(text.begin(), text.end(), bad), "a terminal shows what is printed");
  });
}

// The data in a folder, byte for byte.
std::string data_in(const Path& folder) {
  std::string bytes;
  for (const char* name : {"dataset.json", "items.jsonl", "histories.jsonl"}) {
    if (path_exists(folder / name)) bytes += read_file(folder / name);
  }
  return bytes;
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  auto [input, items] = fuzz::two_files(fuzz::view(data, size));
  std::string& one = seed % 4 == 0 ? items : input;
  one = fuzz::mutated(one, most - std::min(most, size - one.size() + 1));
  return fuzz::give(items.empty() ? input : fuzz::one_input(input, items), data, size, most);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<std::vector<std::string>> flags{
      {}, {"--no-header"}, {"--min-user", "2", "--min-item", "2"}, {"--min-rating", "3"}};
  const Path input = fuzz::folder() / "input", items = fuzz::folder() / "items",
             output = fuzz::folder() / "output";
  const auto [interactions, facts] = fuzz::two_files(fuzz::view(data, size));
  std::vector<std::string> words{"import_interactions", "--input", path_text(input), "--output",
                                 path_text(output)};
  const std::vector<std::string>& more = flags[interactions.size() % flags.size()];
  words.insert(words.end(), more.begin(), more.end());
  fuzz::write(input, interactions);
  if (!facts.empty()) {
    fuzz::write(items, facts);
    words.insert(words.end(), {"--items", path_text(items)});
  }
  static std::string before;
  const bool refused = !problem_of_import(words).empty();
  const std::string after = data_in(output);
  if (refused)
    fuzz::must(after == before, "what is refused changes nothing");
  else
    fuzz::must(Dataset::load(output).histories.size() > 0, "what is taken loads");
  before = after;
  return 0;
}
