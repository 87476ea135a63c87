// Chapter 14, "Text", and appendix C: each rule of the tokenizer on a small vocabulary of our own,
// tricky characters, what a vocabulary must be, and a slow twin on random text.

#include "bert4rec.hpp"
#include "check.hpp"
#include "plain_word_piece.hpp"

using namespace bert4rec;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace {

// Every character that the checks below expect, at the begin of a word and inside.
const std::string& vocabulary_text() {
  static const std::string text = [] {
    std::string lines =
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nhel\nplay\n##ing\n##in\n##lot\n";
    for (const std::string_view c :
         {"a",      "b",          "c",          "e",          "i",          "k",      "s",
          "0",      "1",          ".",          "-",          "'",          "[",      "]",
          "$",      "~",          "=",          "`",          ";",          "!",      "\u4E2D",
          "\u6587", "\u8C48",     "\uFF0C",     "\u3002",     "\uFF41",     "\uFF5E", "\u00E6",
          "\u00DF", "\u0142",     "\u03B1",     "\u03C3",     "\u03C2",     "\u304B", "\u1100",
          "\u1161", "\u11A8",     "\u1112",     "\u1175",     "\u11C2",     "\u09C7", "\u09BE",
          "\u302E", "\U0001D158", "\U0001D165", "\U0001D16E", "\U00030000", "\uE000", "\u00B7",
          "\u2028"}) {
      lines += join(c, "\n##", c, "\n");
    }
    return lines + "mask\n";
  }();
  return text;
}

const WordPiece& words(WordPieceRules rules = WordPieceRules::google) {
  static const WordPiece google(vocabulary_text());
  static const WordPiece hugging_face(vocabulary_text(), "vocabulary",
                                      WordPieceRules::hugging_face);
  return rules == WordPieceRules::google ? google : hugging_face;
}

std::string joined(const std::vector<std::string_view>& tokens) {
  std::string text;
  for (const std::string_view token : tokens) text += join(text.empty() ? "" : " ", token);
  return text;
}

void becomes(std::string_view text, std::string_view tokens,
             WordPieceRules rules = WordPieceRules::google,
             Place where = {__builtin_FILE(), __builtin_LINE()}) {
  check_equal(joined(words(rules).tokens(text)), tokens, where);
}

std::string repeated(std::size_t count, std::string_view text) {
  std::string out;
  while (count-- > 0) out += text;
  return out;
}

// ---- The rules ----------------------------------------------------------------------------------

void check_cleaning() {
  becomes("", "");
  becomes(" \t\r\n", "");
  becomes("a\0b"sv, "a ##b");
  becomes("a\x01\x0B\x0C\x1B\x7F\u0085\u00ADb", "a ##b");          // Cc, soft hyphen
  becomes("a\u200B\u200D\uFEFF\u202E\uFFFD\U000E0020b", "a ##b");  // Cf, and U+FFFD
  becomes("a\tb\nc\rs k\u00A0i\u3000e\u2028a\u2029b\u2009c", "a b c s k i e a b c");
  becomes("a\u0378b", "[UNK]");  // unassigned: stays
  becomes("a\uE000b", "a ##\uE000 ##b");
  becomes("a\U0010FFFDb", "[UNK]");
}

void check_invalid_bytes() {
  becomes(
      "a\x80"
      "b\xFF"
      "c",
      "a ##b ##c");
  becomes(
      "a\xC0\x80\xE4\xB8"
      "b",
      "a ##b");  // overlong, cut
  becomes(
      "a\xED\xA0\x80"
      "b\xF4\x90\x80\x80",
      "a ##b");  // a surrogate, beyond U+10FFFF
  becomes("\xE4\xB8", "");
  becomes("\xE4\u4E2D\xB8", "\u4E2D");
}

void check_ideographs() {
  becomes("a\u4E2D\u6587b", "a \u4E2D \u6587 b");
  becomes("\uF900\u4E2D\u0301", "\u8C48 \u4E2D");  // compatibility; a mark alone is gone
  becomes("\u304B\u304B", "\u304B ##\u304B");      // kana are not isolated,
  becomes("\uFF41\uFF41", "\uFF41 ##\uFF41");      // nor full-width letters,
  becomes("a\U00030000b", "a ##\U00030000 ##b");   // nor extension G,
  for (const std::string_view c : {"\u3007", "\u3005", "\u2E80", "\uA000", "\U0002CEB0"}) {
    becomes(join("a", c), "[UNK]");  // nor these, but these are:
  }
  for (const std::string_view c :
       {"\u3400", "\u4DBF", "\u9FFF", "\uFAFF", "\U00020000", "\U0002A6DF", "\U0002A700",
        "\U0002B73F", "\U0002B740", "\U0002B81F", "\U0002B820", "\U0002CEAF", "\U0002FA1F"}) {
    becomes(join("a", c), "a [UNK]");
  }
}

void check_folding() {
  becomes("A\u00C9\u0130\u00C6", "a ##e ##i ##\u00E6");
  becomes("e\u0301\u0323", "e");
  becomes("\u0301a", "a");
  becomes("\u00DF\u0141\u212A", "\u00DF ##\u0142 ##k");  // sharp s stays, Kelvin is a letter
  becomes("\uFF21", "\uFF41");
  becomes("\u304C", "\u304B");
  becomes("\uAC00\uAC01", "\u1100 ##\u1161 ##\u1100 ##\u1161 ##\u11A8");
  becomes("\uD7A3", "\u1112 ##\u1175 ##\u11C2");
  becomes("\u09CB", "\u09C7 ##\u09BE");
  becomes("\U0001D160", "\U0001D158 ##\U0001D165 ##\U0001D16E");
}

// Marks with a place of their own (category Mc) are put in order, but not across a base or a mark
// of class 0, which goes only afterwards.
void check_order() {
  const std::string_view stem = "\U0001D165", dot = "\u302E";  // classes 216 and 224
  const std::string ordered = join("a ##", stem, " ##", dot), kept = join("a ##", dot, " ##", stem);
  becomes(join("a", stem, dot), ordered);
  becomes(join("a", dot, stem), ordered);
  becomes(join("a", dot, "\u0301", stem), ordered);
  becomes(join("a", dot, "\u034F", stem), kept);
  becomes(join("\u034F", dot, stem), join(stem, " ##", dot));
  becomes(join("a", dot, "b", stem), join("a ##", dot, " ##b ##", stem));
}

void check_sigma() {
  const std::string_view S = "\u03A3", s = "\u03C3", final = "\u03C2";
  becomes(S, s);
  becomes(join("A", S), join("a ##", final));
  becomes(join("A", S, "B"), join("a ##", s, " ##b"));
  becomes(join("A", S, S, " ", S), join("a ##", s, " ##", final, " ", s));
  becomes(join("0", S), join("0 ##", s));
  becomes(join("A", S, "0"), join("a ##", final, " ##0"));
  becomes(join("A", S, ".B"), join("a ##", s, " . b"));  // ignorable, though punctuation,
  becomes(join("A.", S), join("a . ", final));           // on both sides,
  becomes(join("A-", S), join("a - ", s));               // which this is not
  becomes(join("A", S, "-B"), join("a ##", final, " - b"));
  becomes(join("A\u0301", S, "\u0301\u200D.\xFF"), join("a ##", final, " ."));
  becomes(join("A", S, "\u4E2D"), join("a ##", final, " \u4E2D"));
  becomes(join("A\u4E2D", S), join("a \u4E2D ", s));
  becomes(join("a", s), join("a ##", s));
}

void check_punctuation() {
  becomes("a.b", "a . b");
  becomes("$0~`=", "$ 0 ~ ` =");  // all of ASCII that is no letter
  becomes("a\uFF0Cb\u3002\u00B7", "a \uFF0C b \u3002 \u00B7");
  becomes("a\uFF5Eb", "a ##\uFF5E ##b");      // category S is none
  becomes("a\u037E\u1FEF\u2260", "a ; ` =");  // become ASCII
  becomes("[MASK]", "[ mask ]");
  becomes("a\u0301.\u0301b", "a . b");
}

void check_pieces() {
  becomes("hello hel hell", "hello hel [UNK]");
  becomes("playing playin hellot", "play ##ing play ##in [UNK]");  // greedy: no hel ##lot
  becomes("ing", "[UNK]");
  becomes("a?b", "a [UNK] b");
  becomes(repeated(200, "a"), "a" + repeated(199, " ##a"));
  becomes(repeated(201, "a"), "[UNK]");
  becomes(repeated(200, "e\u0301") + "\u0301", "e" + repeated(199, " ##e"));
  becomes(repeated(100000, "a") + " b." + repeated(300, "a") + "\u4E2D", "[UNK] b . [UNK] \u4E2D");
}

void check_hugging_face() {
  const auto rules = WordPieceRules::hugging_face;
  becomes(repeated(100, "a"), "a" + repeated(99, " ##a"), rules);
  becomes(repeated(101, "a"), "[UNK]", rules);
  becomes("A[MASK]b[CLS] [mask][[SEP]", "a [MASK] b [CLS] [ mask ] [ [SEP]", rules);
  becomes("[MASK", "[ mask", rules);
  becomes("a\uE000b", "a ##b", rules);
  becomes("A\u03A3", "a ##\u03C3", rules);
  becomes("a\u0378b", "[UNK]", rules);
}

// ---- The vocabulary -----------------------------------------------------------------------------

void check_vocabulary() {
  const WordPiece& vocabulary = words();
  check_equal(vocabulary.pad(), 0);
  check_equal(vocabulary.unknown(), 1);
  check_equal(vocabulary.cls(), 2);
  check_equal(vocabulary.sep(), 3);
  check_equal(vocabulary.mask(), 4);
  check_equal(vocabulary.token(7), "play");
  check_equal(vocabulary.find("##ing"), 8);
  check_equal(vocabulary.find("##"), -1);
  check_equal(vocabulary.find("playing"), -1);
  check_equal(vocabulary.find("pla"), -1);
  check_equal(vocabulary.find(""), -1);
  check_equal(vocabulary.find("mask"), static_cast<std::int32_t>(vocabulary.size()) - 1);
  check(vocabulary.ids("playing") == std::vector<std::int32_t>{7, 8}, "ids");
  check_throws([&] { vocabulary.token(-1); }, {"token -1, expected 0 ... "});
  check_throws([&] { vocabulary.token(1000); }, {"token 1000, expected 0 ... "});
  const WordPiece copy = WordPiece(vocabulary);
  check_equal(joined(copy.tokens("playing")), "play ##ing");
}

// Lines end at "\n", "\r\n" or the end of the file; what editors leave is no part of a token.
void check_lines() {
  const TemporaryFolder folder;
  const Path path = folder / "vocab.txt";
  write_file(path, "[PAD]\r\n[UNK]\r\n\u2028\n\u2028a\n[CLS]\n[SEP]\n[MASK]\n##\nb c\nlast");
  const WordPiece vocabulary = WordPiece::load(path);
  check_equal(vocabulary.size(), 10u);
  check_equal(vocabulary.token(2), "\u2028");
  check_equal(vocabulary.find("last"), 9);
  check_equal(joined(vocabulary.tokens("last ## b c")), "last [UNK] [UNK] [UNK] [UNK]");
  write_file(path, "\xEF\xBB\xBF[PAD]\n[UNK] \n[CLS]\t\r\n[SEP]\n[MASK]\na \t \n \nb\u3000\n");
  const WordPiece edited = WordPiece::load(path);
  check_equal(edited.pad(), 0);
  check_equal(joined(edited.tokens("a")), "a");
  check_equal(edited.token(6), " ");
  check_equal(edited.token(7), "b\u3000");
}

void check_refused() {
  check_throws([] { WordPiece(std::string((16 << 20) + 1, 'a'), "v"); },
               {"v: 16777217 bytes, expected a vocabulary of at most 16777216"});
  const TemporaryFolder folder;
  const Path path = folder / "vocab.txt";
  const std::string special = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n";
  const auto refused = [&](std::string_view text, std::string_view message,
                           Place where = {__builtin_FILE(), __builtin_LINE()}) {
    write_file(path, text);
    check_throws([&] { WordPiece::load(path); }, {path_text(path), message}, where);
  };
  refused("", "vocab.txt: empty, expected a token a line");
  for (const std::string_view token : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) {
    std::string others = special;
    others.replace(others.find(token), token.size(), "other");
    refused(others, join("vocab.txt: no line is ", token, ", which is needed"));
  }
  refused(special + "a\n##a\na\n", "vocab.txt:8: the token \"a\" again, first on line 6");
  refused(special + "##a\n##a\n", "vocab.txt:7: the token \"##a\" again, first on line 6");
  refused(special + "\u4E2D\n\xE4\xB8\n", "vocab.txt:7: invalid UTF-8 in \"\\xe4\\xb8\"");
  refused(special + "a\n\nb\n", "vocab.txt:7: an empty line, expected a token");
  refused(special + "a\r\n\r\nb\r\n", "vocab.txt:7: an empty line, expected a token");
  check_throws([&] { WordPiece::load(folder / "none.txt"); }, {"none.txt: cannot open"});
  check_throws([] { WordPiece(""); }, {"vocabulary: empty"});
}

// ---- The tables, and a twin ---------------------------------------------------------------------

void check_tables() {
  const detail::CharacterTable& table = detail::CharacterTable::instance();
  std::array<std::size_t, 7> kinds{};
  std::array<std::size_t, 3> casings{};
  std::size_t folded = 0;
  for (char32_t code = 0; code < 0x110000; ++code) {
    ++kinds[table[code].kind], ++casings[table[code].casing];
    if (table[code].folded != 0) ++folded;
  }
  using detail::Character;
  check_equal(detail::unicode::version, "15.1.0");
  check_equal(kinds[Character::private_use], 6400u + 2 * 65534);
  check_equal(kinds[Character::space], 17u + 2 + 3);  // Zs, Zl and Zp, and three of Cc
  check_equal(kinds[Character::ideograph], 6592u + 20992 + 512 + 42720 + 10160 + 544);
  check_equal(kinds[Character::mark], 1985u);
  check_equal(kinds[Character::dropped], 65u + 170 + 1 - 3);
  check_equal(kinds[Character::punctuation], 842u + 9 + 4);
  check_equal(folded, 3096u + 11172);
}

// Letters, marks and all that the rules ask for; now and then a damaged byte.
std::string random_text(const Key& key, std::size_t length) {
  static constexpr std::string_view characters[] = {
      "a",      "b",      "A",      "E",      "\u00C9", "\u03A3",     "\u03C3",     "\u0391",
      " ",      "\u3000", ".",      "'",      "-",      "[",          "\u4E2D",     "\u6587",
      "\u0301", "\u0323", "\u034F", "\u302E", "\u200B", "\U0001D165", "\U0001D160", "\uAC01",
      "\u09CB", "\u2260", "\uE000", "\uFF0C", "hello",  "playing",    "\u0378",     "0"};
  std::string text;
  for (std::size_t i = 0; i < length; ++i) text += characters[below(key, i, std::size(characters))];
  if (below(key, length, 4) == 0) text[below(key, length + 1, text.size())] = '\xE4';
  return text;
}

void check_twin() {
  for (const auto rules : {WordPieceRules::google, WordPieceRules::hugging_face}) {
    const WordPiece& vocabulary = words(rules);
    const plain::WordPiece twin(vocabulary, rules == WordPieceRules::google);
    for (std::uint64_t i = 0; i < 5000; ++i) {
      const std::string text = random_text(fold_in(make_key(12), i), 1 + i % 40);
      if (vocabulary.ids(text) == twin.ids(text)) continue;
      check(false, join("the same as its twin: ", shown(text)));
      return;
    }
  }
  check(true, "the same as its twin");
}

}  // namespace

int main() {
  test("cleaning", check_cleaning);
  test("invalid bytes", check_invalid_bytes);
  test("ideographs", check_ideographs);
  test("folding", check_folding);
  test("order of marks", check_order);
  test("final sigma", check_sigma);
  test("punctuation", check_punctuation);
  test("pieces", check_pieces);
  test("rules of Hugging Face", check_hugging_face);
  test("vocabulary", check_vocabulary);
  test("lines of a vocabulary", check_lines);
  test("refused vocabularies", check_refused);
  test("tables", check_tables);
  test("twin", check_twin);
  return finish();
}
