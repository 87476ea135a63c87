// Cuts lines of text into the tokens of a WordPiece vocabulary, one line out for each line in.

#include "common/cli.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path vocab, input = "-";
  WordPieceRules rules = WordPieceRules::google;
  bool ids = false, special = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("tokenize_text",
                        "cuts text into the tokens of BERT (WordPiece, uncased): for each line in, "
                        "its tokens\nin one line out, separated by spaces. A file larger than "
                        "memory passes through; one line\nmust fit. Any bytes are text: what is "
                        "not UTF-8 is skipped.",
                        "tokenize_text --vocab vocab.txt --ids --input texts.txt");
  line.option("vocab", options.vocab, "vocab.txt: a token a line (must be given)");
  line.option("input", options.input, "file of lines; -: the standard input");
  line.flag("ids", options.ids, "print ids instead of tokens");
  line.flag("special", options.special, "put [CLS] before and [SEP] behind each line");
  line.option("rules", options.rules,
              "whose tokenizer in what they differ: hugging-face cuts words\n"
              "                                  longer than 100 characters, not 200, and knows "
              "[MASK] in a text");
  line.parse(argc, argv);
  if (options.vocab.empty()) throw cli::UsageError("--vocab must be given");
  return options;
}

// The tokens of a line, or their ids, as a line.
void append_line(const WordPiece& vocabulary, const Options& options,
                 const std::vector<std::int32_t>& ids, std::string& out) {
  for (const std::int32_t id : ids) {
    if (!out.empty()) out += ' ';
    out += options.ids ? join(id) : vocabulary.token(id);
  }
  out += '\n';
}

int tokenize(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const WordPiece vocabulary = WordPiece::load(options.vocab, options.rules);
  std::vector<std::int32_t> ids;
  std::string out;
  cli::LineReader lines(options.input);
  for (std::string line; lines.next(line);) {
    ids.clear(), out.clear();
    if (options.special) ids.push_back(vocabulary.cls());
    vocabulary.append_ids(line, ids);
    if (options.special) ids.push_back(vocabulary.sep());
    append_line(vocabulary, options, ids, out);
    require(static_cast<bool>(std::cout << out), "cannot write to the standard output");
    if (!lines.has_line()) std::cout.flush();
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("tokenize_text", argc, argv, tokenize); }
