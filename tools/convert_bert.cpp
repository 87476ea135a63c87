// Turns a BERT checkpoint of Hugging Face into a models folder of ours, or the other way round.

#include "common/cli.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path from, to;
  std::string name = "best_model";
  std::size_t max_length = 0;
  bool overwrite = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("convert_bert",
                        "turns a folder of Hugging Face (config.json, model.safetensors, "
                        "vocab.txt)\ninto a models folder of ours (best_model.safetensors, "
                        "vocab.txt), or such a folder\ninto one that Transformers loads: whichever "
                        "--from is not",
                        "convert_bert --from chinese-roberta-wwm-ext --to output/models");
  line.option("from", options.from, "folder to read (must be given)");
  line.option("to", options.to, "folder to write (must be given)");
  line.option("name", options.name, "name of our model file, without .safetensors");
  line.option("max-length", options.max_length,
              "keep so many positions of a Hugging Face model; 0: all");
  line.flag("overwrite", options.overwrite, "replace what the folder holds");
  line.parse(argc, argv);
  if (options.from.empty() || options.to.empty()) {
    throw cli::UsageError("--from and --to must be given");
  }
  return options;
}

// vocab.txt of the folder to read, or an empty path if it has none.
Path vocabulary_of(const Path& from) {
  const Path path = from / "vocab.txt";
  return path_exists(path) ? path : Path();
}

void require_new(const Options& options, std::initializer_list<std::string> names) {
  for (const std::string& name : names) {
    require(options.overwrite || !path_exists(options.to / path_from(name)), options.to, ": holds ",
            name, " already; --overwrite replaces it");
  }
}

// One line: what a model is.
std::string described(const Engine& engine) {
  const ModelConfig& config = engine.config();
  const std::string classes =
      config.classes > 0 ? join(" into ", cli::grouped(config.classes), " labels") : "";
  return join(enum_name(config.task), classes, ", ", config.num_layers, " layers of ",
              config.hidden_size, ", ", cli::grouped(config.num_items), " tokens, ",
              cli::grouped(engine.table().size()), " parameters");
}

// Texts would be cut otherwise than the model learned them.
void warn_if_cased(const Path& from) {
  const Path path = from / "tokenizer_config.json";
  if (!path_exists(path)) return;
  const Json json = Json::parse(read_file(path), path_text(path));
  const Json* lower = json.find("do_lower_case");
  if (lower == nullptr || lower->text() != "false") return;
  std::cerr << "convert_bert: " << path_text(path)
            << " has do_lower_case false, but our tokens are always lower case\n";
}

void from_hugging_face(const Options& options) {
  const std::string file = options.name + ".safetensors";
  require_new(options, {file, "vocab.txt"});
  const HuggingFaceFolder folder(options.from);
  ModelConfig config = folder.config();
  if (options.max_length > 0) config.max_length = options.max_length;
  validate(config);
  const Path vocabulary = vocabulary_of(options.from);
  const std::string words = vocabulary.empty() ? "" : vocabulary_text(vocabulary, config);
  const auto engine = make_cpu_engine(config, TrainConfig(), Start::random);
  const std::vector<std::string> lacking = folder.load(*engine);
  Metadata metadata;
  if (!folder.labels().empty()) {
    metadata["labels"] = Json(Json::Array(folder.labels().begin(), folder.labels().end())).text();
  }
  make_folder(options.to);
  const FolderLock lock(options.to);
  settle(lock);
  remove_stale_temporaries(options.to);
  FileSet set(lock);
  save_engine(set, file, *engine, metadata);
  if (!vocabulary.empty()) set.write("vocab.txt", words);
  set.commit();
  std::cout << path_text(options.from) << ": from Hugging Face: " << described(*engine) << "\n";
  for (const std::string& name : lacking) {
    std::cout << "not in the file, so with initial values: " << name << "\n";
  }
  warn_if_cased(options.from);
}

void to_hugging_face(const Options& options) {
  require_new(options, {"config.json", "model.safetensors", "vocab.txt"});
  const Safetensors file = open_model(options.from, options.name);
  std::vector<std::string> labels;
  const auto stored = file.metadata().find("labels");
  if (stored != file.metadata().end()) {
    const Json names = Json::parse(stored->second, join(file.path(), ": labels"));
    for (const Json& label : names.array()) labels.push_back(label.string());
  }
  const auto engine = load_model(file);
  save_hugging_face(options.to, *engine, labels, vocabulary_of(options.from));
  std::cout << path_text(options.from) << ": to Hugging Face: " << described(*engine) << "\n";
}

int convert(int argc, char** argv) {
  const Options options = parse(argc, argv);
  settle(options.from);
  const bool theirs = path_exists(options.from / "config.json");
  const bool ours = path_exists(options.from / path_from(options.name + ".safetensors"));
  require(theirs != ours, options.from, theirs ? ": holds both" : ": holds neither",
          " config.json (of Hugging Face) ", theirs ? "and " : "nor ", options.name,
          ".safetensors (ours)");
  theirs ? from_hugging_face(options) : to_hugging_face(options);
  std::cout << path_text(options.to) << ": written"
            << (vocabulary_of(options.from).empty() ? ", without a vocab.txt" : "") << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("convert_bert", argc, argv, convert); }
