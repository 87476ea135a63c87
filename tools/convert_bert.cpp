// Turns a BERT checkpoint of Hugging Face into a models folder of ours, or the other way round.

#include "common/cli.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path from, to;
  std::string name = "best_model";
  std::size_t max_length = 0, classes = 0;
  bool overwrite = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("convert_bert",
                        "turns a folder of Hugging Face (config.json, model.safetensors, "
                        "vocab.txt)\ninto a models folder of ours (best_model.safetensors, "
                        "labels.json, vocab.txt), or\nsuch a folder into one that Transformers "
                        "loads: whichever --from is not",
                        "convert_bert --from chinese-roberta-wwm-ext --to output/models");
  line.option("from", options.from, "folder to read (must be given)");
  line.option("to", options.to, "folder to write (must be given)");
  line.option("name", options.name, "which model of ours: best_model or final_model");
  line.option("max-length", options.max_length,
              "keep so many positions of a Hugging Face model; 0: all");
  line.option("classes", options.classes, "make it a classifier of so many labels; 0: what it is");
  line.flag("overwrite", options.overwrite, "replace what the folder holds");
  line.parse(argc, argv);
  if (options.from.empty() || options.to.empty()) {
    throw cli::UsageError("--from and --to must be given");
  }
  return options;
}

void require_free(const Options& options, std::initializer_list<std::string> names) {
  for (const std::string& name : names) {
    require(options.overwrite || !path_exists(options.to / path_from(name)), options.to, ": holds ",
            name, " already; --overwrite replaces it");
  }
}

void report(const Options& options, const Engine& engine) {
  const ModelConfig& config = engine.config();
  std::cout << path_text(options.to) << ": written, " << enum_name(config.task);
  if (config.classes > 0) std::cout << " into " << cli::grouped(config.classes) << " labels";
  std::cout << ", " << config.num_layers << " layers of " << config.hidden_size << ", "
            << cli::grouped(config.num_items) << " tokens, " << cli::grouped(engine.table().size())
            << " parameters\n";
}

// ---- From Hugging Face --------------------------------------------------------------------------

// Texts would be cut otherwise than the model learned them.
void warn_if_cased(const Path& from) {
  const Path path = from / "tokenizer_config.json";
  if (!path_exists(path)) return;
  const Json json = Json::parse(read_file(path), path_text(path));
  const Json* lower = json.find("do_lower_case");
  if (lower == nullptr || lower->text() != "false") return;
  std::cerr << "convert_bert: warning: " << path_text(path)
            << " has do_lower_case false, but tokens are made from lower case here\n";
}

// The model to make of it, with no more tokens than the vocabulary has.
ModelConfig model_of(const HuggingFaceFolder& folder, const WordPiece& words,
                     const Options& options) {
  ModelConfig config = folder.config();
  require(words.size() <= config.num_items, options.from, ": vocab.txt has ", words.size(),
          " tokens, the model ", config.num_items);
  config.num_items = words.size();
  if (options.max_length > 0) config.max_length = options.max_length;
  if (options.classes > 0) {
    config.task = TaskKind::classification, config.classes = options.classes;
  }
  validate(config);
  return config;
}

// Names of labels, in number those of the model.
std::vector<std::string> labels_of(const HuggingFaceFolder& folder, const ModelConfig& config) {
  std::vector<std::string> labels = folder.labels();
  if (labels.size() == config.classes) return labels;
  labels.clear();
  while (labels.size() < config.classes) labels.push_back(join("LABEL_", labels.size()));
  return labels;
}

void from_hugging_face(const Options& options) {
  const std::string file = options.name + ".safetensors";
  require_free(options, {file, "labels.json", "vocab.txt"});
  std::cout << path_text(options.from) << ": of Hugging Face, to a models folder of ours\n";
  const HuggingFaceFolder folder(options.from);
  const std::string vocabulary = read_file(options.from / "vocab.txt");
  const WordPiece words(vocabulary, path_text(options.from / "vocab.txt"));
  const ModelConfig config = model_of(folder, words, options);
  const std::vector<std::string> labels = labels_of(folder, config);
  const auto engine = make_cpu_engine(config, TrainConfig(), Start::random);
  for (const std::string& name : folder.load(*engine)) {
    std::cout << "  begins anew, since the file lacks it: " << name << "\n";
  }
  make_folder(options.to);
  const FolderLock lock(options.to);
  settle(lock);
  remove_stale_temporaries(options.to);
  const std::string data = bert4rec::detail::hexadecimal(checksum(vocabulary));
  FileSet set(lock);
  save_engine(set, file, *engine, {{"data", data}});
  set.write("labels.json", labels_text(data, vocabulary, labels));
  set.write("vocab.txt", vocabulary);
  set.commit();
  report(options, *engine);
  warn_if_cased(options.from);
}

// ---- To Hugging Face ----------------------------------------------------------------------------

void to_hugging_face(const Options& options) {
  if (options.max_length > 0 || options.classes > 0) {
    throw cli::UsageError("--max-length and --classes are for models of Hugging Face");
  }
  require_free(options, {"config.json", "model.safetensors", "vocab.txt"});
  std::cout << path_text(options.from) << ": a models folder of ours, to Hugging Face\n";
  const auto engine = load_model(open_model(options.from, options.name));
  const Path path = options.from / "labels.json";
  std::vector<std::string> labels;
  if (path_exists(path)) {
    const Json json = read_sealed_json(path);
    in_context(path_text(path), [&] {
      for (const Json& label : json.at("labels").array()) labels.push_back(label.string());
    });
  }
  save_hugging_face(options.to, *engine, labels, options.from / "vocab.txt");
  report(options, *engine);
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
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("convert_bert", argc, argv, convert); }
