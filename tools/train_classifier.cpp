// Trains a classifier of texts: a BERT encoder from scratch, from masked text, or from a model.

#include "common/gpu.hpp"
#include "common/texts.hpp"
#include "plots/plots.hpp"

namespace {

using namespace bert4rec;
using texts::LabelledText;

struct Options {
  ModelConfig model;
  TrainConfig train;
  texts::Columns columns;
  Path texts, dev, test, vocab, output = "output", from, unlabelled;
  double dev_share = 0.1, pretrain_rate = 1e-3;
  std::size_t pretrain = 0;
  gpu::Choice gpu;
  bool resume = false, overwrite = false, quiet = false;
};

// ---- The command line ---------------------------------------------------------------------------

const std::vector<std::string_view> hidden_model_fields{"num_items", "objective",   "task",
                                                        "classes",   "fixed_scale", "architecture"};
const std::vector<std::string_view> hidden_train_fields{
    "mask_last",      "static_masks", "window_stride",    "reversed_share", "split",
    "folds",          "fold",         "validation_ratio", "loss",           "negatives",
    "negative_power", "gbce_t",       "neg_ratio"};

Options defaults() {
  Options options;
  options.model.architecture = Architecture::paper;  // as BERT: no dropout inside the feed-forward
  options.model.task = TaskKind::classification;
  options.model.hidden_size = 128;
  options.model.max_length = 128;
  options.model.norm_epsilon = 1e-12;
  options.train.epochs = 3;
  options.train.batch_size = 16;
  options.train.schedule = Schedule::linear;
  options.train.warmup_steps = 200;
  options.train.clip_norm = 1;
  options.train.random_share = options.train.keep_share = 0.1;
  options.train.masking = Masking::words;
  options.train.best_by = Metric::top1;
  return options;
}

Options parse(int argc, char** argv) {
  Options options = defaults();
  cli::CommandLine line("train_classifier", "trains a classifier of texts",
                        "train_classifier --texts data/demo_text/train.tsv --vocab "
                        "data/demo_text/vocab.txt --output output");
  line.option("texts", options.texts, "TSV, CSV or JSON lines of texts and labels to train on");
  line.option("dev", options.dev, "the same to validate on; empty: a share of the texts");
  line.option("dev-share", options.dev_share, "that share, of the texts of each label");
  line.option("test", options.test, "the same, to test the best model on at the end");
  options.columns.add_flags(line);
  line.option("vocab", options.vocab, "vocab.txt: a WordPiece token a line; empty: that of --from");
  line.option("output", options.output, "folder for models, checkpoints, plots and logs");
  line.option("from", options.from,
              "models folder, or checkpoint of Hugging Face, to begin with; its sizes go before "
              "flags");
  line.option("pretrain", options.pretrain,
              "epochs of masked text on the training texts first, in output/pretrained");
  line.option("pretrain-lr", options.pretrain_rate, "AdamW step size in that");
  line.option("unlabelled", options.unlabelled, "further texts for that, in a file as --texts");
  line.configuration(options.train, {{"learning_rate", "lr"}}, hidden_train_fields);
  line.configuration(options.model, {}, hidden_model_fields);
  options.gpu.add_flags(line);
  line.flag("resume", options.resume,
            "continue the run in the output folder; the other flags as "
            "they were");
  line.flag("overwrite", options.overwrite, "replace the run in the output folder");
  line.flag("quiet", options.quiet, "print neither a bar nor a line for each evaluation");
  line.groups({
      {"Texts and output",
       {"texts", "dev", "dev-share", "test", "text-column", "label-column", "delimiter",
        "no-header", "vocab", "output", "resume", "overwrite", "quiet"}},
      {"What to begin with", {"from", "pretrain", "pretrain-lr", "unlabelled"}},
      {"Masked text (--pretrain)", {"mask-probability", "random-share", "keep-share", "masking"}},
      {"Model",
       {"hidden-size", "num-layers", "num-heads", "max-length", "dropout", "attention-dropout",
        "inner-size", "norm-epsilon", "segments", "bigrams", "initializer-range"}},
      {"Learning",
       {"epochs", "batch-size", "lr", "schedule", "warmup-steps", "weight-decay", "clip-norm",
        "adam-beta1", "adam-beta2", "adam-epsilon", "augment", "bigram-dropout", "class-balance"}},
      {"Validation", {"validation-limit", "eval-every", "best-by", "patience"}},
      {"The run", {}},
  });
  line.parse(argc, argv);
  if (options.texts.empty()) throw cli::UsageError("--texts is missing");
  if (options.vocab.empty() && options.from.empty()) throw cli::UsageError("--vocab is missing");
  if (options.resume && options.overwrite) {
    throw cli::UsageError("--resume or --overwrite, not both");
  }
  if (!options.from.empty() && options.pretrain > 0) {
    throw cli::UsageError("--from or --pretrain, not both");
  }
  cli::check_range("pretrain", options.pretrain, 0, 10'000'000);
  if (!(options.pretrain_rate >= 0 && options.pretrain_rate <= 1000)) {
    throw cli::UsageError(join("--pretrain-lr ", options.pretrain_rate, ": expected 0 ... 1000"));
  }
  for (const std::string_view name : {"unlabelled", "pretrain-lr", "masking"}) {
    if (line.given(std::string(name)) && options.pretrain == 0) {
      throw cli::UsageError(join("--", name, " needs --pretrain"));
    }
  }
  if (!(options.dev_share > 0 && options.dev_share < 1)) {
    throw cli::UsageError(join("--dev-share ", options.dev_share, ": expected between 0 and 1"));
  }
  if (!options.from.empty() && !line.given("lr")) options.train.learning_rate = 2e-5;
  return options;
}

// ---- The texts ----------------------------------------------------------------------------------

struct Corpus {
  std::vector<LabelledText> train, dev, test;
};

// Moves a share of the texts of each label from train to dev.
void hold_out(Corpus& corpus, const std::vector<std::string>& labels, const Options& options) {
  std::vector<std::vector<std::size_t>> of_label(labels.size());
  for (std::size_t i = 0; i < corpus.train.size(); ++i) {
    of_label[texts::label_number(labels, corpus.train[i].label)].push_back(i);
  }
  std::vector<bool> held(corpus.train.size());
  for (std::size_t c = 0; c < labels.size(); ++c) {
    shuffle(of_label[c], fold_in(stream_key(options.train.seed, Stream::split), c));
    const double share = options.dev_share * static_cast<double>(of_label[c].size());
    for (std::size_t i = 0; i < static_cast<std::size_t>(share + 0.5); ++i) {
      held[of_label[c][i]] = true;
    }
  }
  std::vector<LabelledText> kept;
  for (std::size_t i = 0; i < held.size(); ++i) {
    (held[i] ? corpus.dev : kept).push_back(std::move(corpus.train[i]));
  }
  corpus.train = std::move(kept);
  require(!corpus.dev.empty(), "--dev-share ", options.dev_share,
          " holds out no text: it must be larger, or --dev a file");
}

void name_examples(const texts::Overlap& found) {
  for (const std::string& example : found.examples) std::cout << "  " << example << "\n";
}

void warn(const texts::FirstLabels& train, const std::vector<LabelledText>& other,
          std::string_view name) {
  const texts::Overlap found = texts::overlap(train, other);
  if (found.repeated == 0) return;
  std::cout << "warning: " << cli::grouped(found.repeated) << " of " << cli::grouped(other.size())
            << " " << name << " texts stand in the training texts too ("
            << cli::grouped(found.contradicted) << " with another label)\n";
  name_examples(found);
}

// Reads the files, and says what makes their figures doubtful.
Corpus read_corpus(const Options& options) {
  Corpus corpus;
  corpus.train = texts::read(options.texts, options.columns, true);
  if (!options.dev.empty()) corpus.dev = texts::read(options.dev, options.columns, true);
  if (!options.test.empty()) corpus.test = texts::read(options.test, options.columns, true);
  const std::vector<std::string> labels = texts::labels_of(corpus.train);
  require(labels.size() >= 2, tables::source_name(options.texts), ": all texts have the label \"",
          shown(labels.front()), "\", expected two labels or more");
  texts::check_labels(labels, corpus.dev, tables::source_name(options.dev));
  texts::check_labels(labels, corpus.test, tables::source_name(options.test));
  if (options.dev.empty()) hold_out(corpus, labels, options);
  const texts::FirstLabels first = texts::first_labels(corpus.train);
  texts::Overlap inside = texts::overlap(first, corpus.train);
  inside.examples.resize(std::min(inside.examples.size(), inside.contradicted));
  std::cout << cli::grouped(corpus.train.size()) << " texts to train on, "
            << cli::grouped(corpus.dev.size()) << " to validate";
  if (!corpus.test.empty()) std::cout << ", " << cli::grouped(corpus.test.size()) << " to test";
  std::cout << "; " << labels.size() << " labels\n";
  if (const std::size_t repeats = corpus.train.size() - first.size()) {
    std::cout << "warning: " << cli::grouped(repeats) << " training texts repeat another ("
              << cli::grouped(inside.contradicted) << " with another label)\n";
    name_examples(inside);
  }
  warn(first, corpus.dev, "validation");
  warn(first, corpus.test, "test");
  return corpus;
}

void add_texts(Texts& rows, const WordPiece& words, const std::vector<LabelledText>& all,
               const std::vector<std::string>& labels, std::size_t max_length) {
  for (const LabelledText& one : all) {
    const std::size_t label = labels.empty() ? 0 : texts::label_number(labels, one.label);
    rows.add(words, one.text, static_cast<std::int32_t>(label), max_length);
  }
}

// Whether a folder holds what Transformers wrote, and not a model of ours.
bool is_checkpoint(const Path& folder) { return path_exists(folder / "config.json"); }

// Those of the model to begin with. Of a checkpoint's positions the first --max-length are taken.
void take_sizes(Options& options) {
  ModelConfig& model = options.model;
  const std::size_t max_length = model.max_length;
  if (is_checkpoint(options.from)) {
    take_sizes(model, HuggingFaceFolder(options.from).config());
    model.max_length = std::min(model.max_length, max_length);
  } else {
    take_sizes(model, stored_config<ModelConfig>(open_model(options.from), "model_config"));
  }
}

// That of a model to begin with must be the same.
std::string read_vocabulary(const Options& options) {
  const Path theirs = options.from / "vocab.txt";
  const std::string text = read_file(options.vocab.empty() ? theirs : options.vocab);
  require(options.from.empty() || read_file(theirs) == text, options.vocab, ": is not the ",
          "vocabulary of ", options.from);
  return text;
}

void describe(std::string_view name, const Texts& rows) {
  if (rows.cut > 0) {
    std::cout << cli::grouped(rows.cut) << " " << name
              << " texts are longer than --max-length: cut\n";
  }
  if (rows.empty > 0) std::cout << cli::grouped(rows.empty) << " " << name << " texts are empty\n";
}

// A vocabulary of another language knows little of the texts.
void warn_of_unknown(const Texts& rows, std::int32_t unknown) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto tokens = rows.row(i);
    count += static_cast<std::size_t>(std::count(tokens.begin(), tokens.end(), unknown));
  }
  const double share = static_cast<double>(count) / static_cast<double>(rows.tokens());
  if (share < 0.05) return;
  std::cout << "warning: " << cli::percent(share) << " of the training tokens are [UNK]: the "
            << "vocabulary does not know these words (--vocab of another language?)\n";
}

// The rate of a run that ends in its warm-up only rises.
void warn_of_warmup(std::size_t texts, const TrainConfig& config) {
  const std::size_t steps = config.epochs * ((texts + config.batch_size - 1) / config.batch_size);
  if (config.warmup_steps < steps) return;
  std::cout << "warning: the run has " << steps << " steps, all of them warm-up (--warmup-steps "
            << config.warmup_steps << "): more --epochs, or a shorter warm-up\n";
}

constexpr std::string_view evaluation_name = "evaluation.json";

// What headings call the texts: "demo_text/train.tsv".
std::string name_of(const Path& texts) {
  return tables::is_standard_input(texts) ? tables::source_name(texts) : last_names(texts, 2);
}

// ---- Training -----------------------------------------------------------------------------------

void print_epoch(const EpochReport& report, const TrainingMetrics& metrics) {
  const Tally& validation = report.validation.tally;
  std::cout << "epoch " << report.epoch << "/" << report.epochs << "  train loss "
            << cli::fixed(report.train.loss(), 4) << " accuracy "
            << cli::percent(report.train.accuracy(0)) << "  validation loss "
            << cli::fixed(validation.loss(), 4) << " accuracy "
            << cli::percent(validation.accuracy(0));
  for (const auto& [name, values] : metrics.val_measures) {
    std::cout << " " << name << " " << cli::percent(values.back());
  }
  std::cout << "  " << cli::fixed(report.seconds, 1) << " s" << (report.improved ? "  best" : "")
            << std::endl;
}

// Whether a folder holds all that a run was to give.
bool is_finished(const Path& output) {
  return path_exists(output / bert4rec::detail::final_model_file);
}

// A run that is replaced goes before the pretraining for the new one, which can be stopped: resuming
// would find the old one.
void remove_run(const Path& output) {
  if (!holds_run(output)) return;
  const FolderLock lock(output);
  settle(lock);
  FileSet set(lock);
  for (const std::string& name : bert4rec::detail::checkpoint_files(output)) set.remove(name);
  set.remove(bert4rec::detail::best_model_file);
  set.remove(bert4rec::detail::final_model_file);
  set.commit();
}

// Trains in `output`; nothing if a signal stopped it.
std::optional<TrainingMetrics> train(std::unique_ptr<Task> task, const TrainConfig& config,
                                     const Path& output, const Path& from, const Options& options) {
  warn_of_warmup(task->examples(), config);
  Trainer trainer(std::move(task), config, output, options.gpu.maker());
  std::cout << cli::grouped(trainer.engine().table().size()) << " parameters\n";
  const bool resume = options.resume && can_resume(output);
  if (resume) {
    const Path checkpoint = trainer.resume();
    std::cout << "continuing after epoch "
              << trainer.metrics().epoch_text(trainer.metrics().evaluations()) << " from "
              << path_text(checkpoint) << "\n"
              << gpu::changed_arithmetic(trainer) << std::flush;
  } else if (!from.empty()) {
    const std::vector<std::string> others = is_checkpoint(from)
                                                ? HuggingFaceFolder(from).load(trainer.engine())
                                                : begin_with(open_model(from), trainer.engine());
    for (const std::string& name : others) std::cout << "  begins anew: " << name << "\n";
  }
  cli::ProgressBar bar(options.quiet);
  TrainerCallbacks callbacks;
  callbacks.on_batch = [&](const BatchReport& report) { bar.show(report, "accuracy"); };
  callbacks.on_epoch = [&](const EpochReport& report) {
    bar.clear();
    if (!options.quiet) print_epoch(report, trainer.metrics());
  };
  callbacks.should_stop = [] { return cli::received_signal != 0; };
  if (options.overwrite || (options.resume && died_early(output))) trainer.overwrite();
  if (options.overwrite) std::filesystem::remove(options.output / evaluation_name);
  const bool finished = trainer.run(callbacks);
  bar.clear();
  const TrainingMetrics& metrics = trainer.metrics();
  if (metrics.evaluations() > 0) plots::draw_plots(metrics, output / "plots");
  if (!finished) return std::nullopt;
  const std::size_t best = metrics.best_epoch - 1;
  std::cout << metrics.best_text() << ", validation loss "
            << cli::fixed(metrics.val_losses[best], 4) << " accuracy "
            << cli::percent(metrics.val_accuracies[0][best]) << std::endl;
  return metrics;
}

// Masked text on all texts that may be seen: what it needs, and its training.
class Pretraining {
 public:
  Pretraining(const Options& options, const Corpus& corpus, const std::string& vocabulary)
      : data_{vocabulary, {}, {}, {}, name_of(options.texts)}, config_(options.train) {
    ModelConfig model = options.model;
    model.task = TaskKind::masked_text;
    config_.epochs = options.pretrain, config_.learning_rate = options.pretrain_rate;
    config_.best_by = Metric::loss, config_.patience = 0, config_.eval_every = 1;
    config_.class_balance = config_.augment = 0;
    const WordPiece words(vocabulary);
    add_texts(data_.train, words, corpus.train, {}, model.max_length);
    if (!options.unlabelled.empty()) {
      const auto more = texts::read(options.unlabelled, options.columns, false);
      add_texts(data_.train, words, more, {}, model.max_length);
    }
    add_texts(data_.held_out, words, corpus.dev, {}, model.max_length);
    task_ = std::make_unique<MaskedTextTask>(data_, model, config_);
  }

  // True if it came to its end.
  bool run(const Options& options) {
    std::cout << "== masked text: " << cli::grouped(data_.train.size()) << " texts, "
              << cli::grouped(data_.train.tokens()) << " tokens\n";
    const Path output = options.output / "pretrained";
    return train(std::move(task_), config_, output, {}, options).has_value();
  }

 private:
  TextData data_;
  TrainConfig config_;
  std::unique_ptr<MaskedTextTask> task_;
};

// The picture is that of the test texts, if there are any.
void report(const Options& options, const Corpus& corpus, const TrainingMetrics& metrics) {
  Classifier classifier(options.output / "models", "best_model", options.train.threads,
                        options.gpu.maker());
  const texts::FirstLabels first = texts::first_labels(corpus.train);
  Json json;
  const auto add = [&](const std::string& name, const std::vector<LabelledText>& all) {
    if (all.empty()) return;
    const Confusion confusion = texts::evaluate(classifier, all);
    texts::print(std::cout, name, confusion, classifier.labels());
    json.set(name, texts::to_json(confusion, classifier.labels()));
    write_file(
        options.output / bert4rec::detail::confusion_file,
        plots::confusion_figure(confusion, classifier.labels(), name, plots::heading(metrics))
            .png());
    const std::vector<LabelledText> unseen = texts::unseen(first, all);
    if (unseen.empty() || unseen.size() == all.size()) return;
    const Confusion honest = texts::evaluate(classifier, unseen);
    std::cout << "  accuracy " << cli::percent(honest.accuracy()) << " on the "
              << cli::grouped(unseen.size()) << " that do not stand in the training texts\n";
    json.set(name + "_unseen", texts::to_json(honest, classifier.labels()));
  };
  add("validation", corpus.dev);
  add("test", corpus.test);
  write_file(options.output / evaluation_name, json.text(2) + "\n");
  std::cout << "models, checkpoints, plots and logs are in " << path_text(options.output)
            << std::endl;
}

int stopped(const Options& options, int argc, char** argv) {
  const int signal = cli::received_signal;
  std::vector<char*> words(argv, argv + argc);
  std::erase_if(words, [](std::string_view word) { return word == "--overwrite"; });
  std::string command = cli::command_text(static_cast<int>(words.size()), words.data());
  if (!options.resume) command += " --resume";
  std::cout << "stopped; everything is saved. Continue with:\n  " << command << std::endl;
  return 128 + signal;
}

int run(int argc, char** argv) {
  Options options = parse(argc, argv);
  for (const Path& output : {options.output, options.output / "pretrained"}) {
    require(options.resume || options.overwrite || !holds_run(output), output,
            ": holds a run already: --resume continues it, --overwrite replaces it");
  }
  const Corpus corpus = read_corpus(options);
  const std::string vocabulary = read_vocabulary(options);
  const WordPiece words(
      vocabulary, path_text(options.vocab.empty() ? options.from / "vocab.txt" : options.vocab));
  if (!options.from.empty()) take_sizes(options);
  cli::catch_stop_signals();
  TextData data{vocabulary, texts::labels_of(corpus.train), {}, {}, name_of(options.texts)};
  add_texts(data.train, words, corpus.train, data.labels, options.model.max_length);
  add_texts(data.held_out, words, corpus.dev, data.labels, options.model.max_length);
  describe("training", data.train);
  describe("validation", data.held_out);
  warn_of_unknown(data.train, words.unknown());
  // What cannot be trained is told before anything is removed.
  auto task = std::make_unique<ClassificationTask>(data, options.model, options.train);
  options.gpu.check(options.train);
  const bool pretrained = options.resume && is_finished(options.output / "pretrained");
  std::optional<Pretraining> pretraining;
  if (options.pretrain > 0 && !pretrained) pretraining.emplace(options, corpus, vocabulary);
  Path from = options.from;
  if (options.pretrain > 0) {
    from = options.output / "pretrained" / "models";
    if (options.overwrite) remove_run(options.output);
    if (pretraining && !pretraining->run(options)) return stopped(options, argc, argv);
    pretraining.reset();
  }
  const auto metrics = train(std::move(task), options.train, options.output, from, options);
  if (!metrics) return stopped(options, argc, argv);
  report(options, corpus, *metrics);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("train_classifier", argc, argv, run); }
