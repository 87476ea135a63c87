// Tokens of a vocabulary and a text. What is refused names its line; a vocabulary that is accepted
// gives back its tokens, and cuts the text as a slow twin does, by either rules.

#include "../plain_word_piece.hpp"
#include "fuzz.hpp"

namespace {

using namespace fuzz;

constexpr std::string_view special = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";

void compare(const WordPiece& vocabulary, bool google, std::string_view text) {
  const std::vector<std::int32_t> ids = vocabulary.ids(text);
  if (google || text.find('[') == text.npos) {
    must(ids == plain::WordPiece(vocabulary, google).ids(text), "the twin says the same");
  }
  std::vector<std::int32_t> again = vocabulary.ids(join(text, " ", text));
  must(again.size() == 2 * ids.size() && std::equal(ids.begin(), ids.end(), again.begin()) &&
           std::equal(ids.rbegin(), ids.rend(), again.rbegin()),
       "a space separates");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto [lines, text] = two_files(view(data, size));
  for (const auto rules : {WordPieceRules::google, WordPieceRules::hugging_face}) {
    std::optional<WordPiece> vocabulary;
    const std::string problem = problem_of(
        [&, &lines = lines] { vocabulary.emplace(join(special, lines), "vocab.txt", rules); });
    must(problem.empty() || problem.starts_with("vocab.txt:"), "an error names the line");
    if (!vocabulary) continue;
    for (std::size_t i = 0; i < vocabulary->size(); ++i) {
      const auto id = static_cast<std::int32_t>(i);
      must(vocabulary->find(vocabulary->token(id)) == id, "a token is found");
    }
    compare(*vocabulary, rules == WordPieceRules::google, text);
  }
  return 0;
}
