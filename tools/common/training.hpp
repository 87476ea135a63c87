// What the programs that train on items and histories share: train_model, and in tools/distributed
// its like on several processes. Flags, resuming, what is printed.

#ifndef BERT4REC_TOOLS_TRAINING_HPP
#define BERT4REC_TOOLS_TRAINING_HPP

#include "common/audit.hpp"
#include "common/gpu.hpp"
#include "plots/plots.hpp"

namespace training {

using namespace bert4rec;

struct Options {
  ModelConfig model;
  TrainConfig train;
  Path data = "data/demo", output = "output", preset, init_from;
  NewItems new_items = NewItems::mean;
  std::size_t seeds = 0;  // so many runs, of so many seeds; 0: one run
  gpu::Choice gpu;
  bool resume = false, overwrite = false, every_fold = false;
  bool allow_collapse = false, quiet = false;

  bool many() const { return every_fold || seeds > 0; }
};

// What several runs give together.
inline constexpr std::string_view folds_file = "cross_validation.json", seeds_file = "seeds.json";

// The flags that are not called like their fields.
inline const std::map<std::string, std::string> flag_names{{"learning_rate", "lr"},
                                                           {"validation_ratio", "val-ratio"},
                                                           {"mask_probability", "mask-prob"},
                                                           {"max_length", "max-seq-len"}};

// {"model": {...}, "train": {...}}: options that go before those there are; or the whole
// training_config.json of a run. Returns the facts about the data in it, if there are any.
inline Json take_options(const Json& json, const Path& path, Options& options) {
  Json data;
  in_context(path_text(path), [&] {
    for (const auto& member : json.object()) {
      const std::string& name = member.first;
      constexpr std::string_view described[] = {"version", "engine",     "compiler",
                                                "system",  "parameters", "data"};
      const bool known =
          name == "model" || name == "train" ||
          std::find(std::begin(described), std::end(described), name) != std::end(described);
      require(known, "unknown field \"", shown(name), "\", expected \"model\" and \"train\"");
    }
    if (const Json* model = json.find("model")) {
      options.model.num_items = 1;  // the data will tell
      options.model = config_from_json<ModelConfig>(*model, options.model);
    }
    if (const Json* train = json.find("train")) {
      options.train = config_from_json<TrainConfig>(*train, options.train);
    }
    if (const Json* found = json.find("data")) data = *found;
  });
  return data;
}

// ---- Resuming: the options of the run that is there ---------------------------------------------

// Whether rank 0, whose folder it is, says so.
inline bool first_says(Collective& ranks, bool yes) {
  return ranks.gather(yes ? "yes" : "no").front() == "yes";
}

// Of the run in the folder of rank 0; of a cross-validation, those of its first fold.
inline Options stored_options(const Path& output, Collective& ranks) {
  Options stored;
  const Path below = bert4rec::detail::configuration_file;
  Path folder = output;
  std::string seeds, text;  // rank 0 reads
  if (ranks.rank() == 0 && path_exists(output / seeds_file)) {
    seeds = read_file(output / seeds_file);
  }
  seeds = ranks.gather(seeds).front();
  stored.every_fold =
      first_says(ranks, !path_exists(output / below) && path_exists(output / "fold_1" / below));
  if (!seeds.empty()) {
    const Json json = Json::parse(seeds, path_text(output / seeds_file));
    stored.seeds = json.at("seeds").array().size();
    folder = output / join("seed_", json.at("seeds").array().at(0).integer());
  } else if (stored.every_fold) {
    folder = output / "fold_1";
  }
  const Path file = folder / below;
  if (ranks.rank() == 0) {
    require(path_exists(file), output, ": no run to resume from: there is no ", path_text(below));
    text = read_sealed_json(file).text();
  }
  const Json json = Json::parse(ranks.gather(text).front(), path_text(file));
  const Json data = take_options(json, file, stored);
  const Json* const data_folder = data.is_null() ? nullptr : data.find("folder");
  if (data_folder != nullptr) stored.data = path_from(data_folder->string());
  return stored;
}

// Throws where flags or a preset would change what a resumed run must keep.
template <class Config>
void require_unchanged(const Config& before, const Config& now, const TrainConfig& train) {
  const Json stored = to_json(before), wanted = to_json(now);
  for (const auto& [field, value] : wanted.object()) {
    const std::string was = stored.at(field).text();
    if (field == "num_items" || may_change(field, train) || value.text() == was) continue;
    const auto renamed = flag_names.find(field);
    std::string flag = renamed == flag_names.end() ? field : renamed->second;
    std::replace(flag.begin(), flag.end(), '_', '-');
    fail("--", flag, " ", value.text(), ": the run was made with ", was, ", and --resume keeps to ",
         "it; only --epochs (where the schedule is constant), --patience, --save-every, --threads ",
         "and --kernels may change");
  }
}

// ---- The command line ---------------------------------------------------------------------------

inline void add_flags(cli::CommandLine& line, Options& options) {
  line.option("data", options.data, "folder with items.jsonl and histories.jsonl");
  line.option("output", options.output, "folder for models, checkpoints, plots and logs");
  line.option("preset", options.preset, "JSON file of options; flags beside it go before it");
  line.configuration(options.train, flag_names,
                     {"augment", "class_balance", "masking", "bigram_dropout"});
  line.configuration(options.model, flag_names, {"num_items", "segments", "classes", "bigrams"});
  line.add_to_meaning("dropout", "; of attention weights too, if --attention-dropout is not given");
  line.choices("task", "items|matching",
               "score all items, or match a user's vector with items' vectors (texts: "
               "train_classifier)");
  line.option("init-from", options.init_from,
              "models folder to begin on, with its sizes: items are matched by id, so the data may "
              "have grown");
  line.option("new-items", options.new_items,
              "how items begin that the model of --init-from does not know");
  line.option("seeds", options.seeds,
              "train so often, with --seed and those that follow it, each in a folder of its own: "
              "mean and deviation; 0: once");
  line.flag("resume", options.resume,
            "continue the run in the output folder, with the options it was begun with");
  line.flag("overwrite", options.overwrite, "replace the run in the output folder");
  line.flag("allow-collapse", options.allow_collapse,
            "matching without negatives (--neg-ratio 0), to see what comes of it");
  line.flag("quiet", options.quiet, "print neither a bar nor a line for each epoch");
  options.gpu.add_flags(line);
  line.groups({
      {"Data and output",
       {"data", "output", "preset", "init-from", "new-items", "resume", "overwrite", "quiet"}},
      {"Model",
       {"architecture", "objective", "task", "hidden-size", "num-layers", "num-heads",
        "max-seq-len", "dropout", "attention-dropout", "inner-size", "norm-epsilon",
        "initializer-range"}},
      {"What is hidden and shown",
       {"mask-prob", "mask-last", "random-share", "keep-share", "static-masks", "window-stride",
        "reversed-share"}},
      {"Loss", {"loss", "negatives", "negative-power", "gbce-t"}},
      {"Matching (--task matching)", {"neg-ratio", "fixed-scale", "allow-collapse"}},
      {"Learning",
       {"epochs", "batch-size", "lr", "schedule", "warmup-steps", "weight-decay", "clip-norm",
        "adam-beta1", "adam-beta2", "adam-epsilon"}},
      {"Validation",
       {"split", "val-ratio", "folds", "fold", "validation-limit", "eval-every", "best-by",
        "patience"}},
      {"The run", {"seed", "seeds"}},
  });
}

inline Options parse(int argc, char** argv, Collective& ranks) {
  Options options;
  cli::CommandLine line("train_model",
                        "trains BERT4Rec, or with --objective causal SASRec,\n"
                        "or with --task matching two vectors to compare",
                        "train_model --data data/demo --output output --epochs 50 --seed 1\n"
                        "  train_model --output output --resume");
  add_flags(line, options);
  line.parse(argc, argv);
  if (options.resume && options.overwrite) {
    throw cli::UsageError("--resume or --overwrite, not both");
  }
  const Options stored = options.resume ? stored_options(options.output, ranks) : Options();
  if (options.resume) {
    options.model = stored.model, options.train = stored.train, options.data = stored.data;
    options.seeds = stored.seeds;
  }
  if (!options.init_from.empty()) {
    if (options.resume) throw cli::UsageError("--init-from begins a run, --resume continues one");
    options.model = stored_config<ModelConfig>(open_model(options.init_from), "model_config");
  } else if (line.given("new-items")) {
    throw cli::UsageError("--new-items needs --init-from");
  }
  if (!options.preset.empty()) {
    take_options(read_sealed_json(options.preset), options.preset, options);
  }
  line.parse(argc, argv);  // again, since flags go before files
  if (line.given("dropout") && !line.given("attention-dropout")) {
    options.model.attention_dropout = options.model.dropout;
  }
  options.every_fold =
      options.resume ? stored.every_fold : options.train.folds > 0 && !line.given("fold");
  if (options.seeds > 0) {
    cli::check_range("seeds", options.seeds, 2, 1000);
    if (options.every_fold) throw cli::UsageError("--seeds or --folds, not both");
    if (options.resume && options.seeds != stored.seeds) {
      throw cli::UsageError(join("--seeds ", options.seeds, ": the runs were begun with ",
                                 stored.seeds, ", and --resume keeps to it"));
    }
  }
  if (options.resume) {
    if (options.every_fold) options.train.fold = stored.train.fold;
    require_unchanged(stored.model, options.model, options.train);
    require_unchanged(stored.train, options.train, options.train);
  }
  if (options.many() && !options.init_from.empty()) {
    throw cli::UsageError("--init-from begins one run: not with --seeds or --folds");
  }
  if (line.given("fixed-scale") && options.model.task != TaskKind::matching) {
    throw cli::UsageError("--fixed-scale needs --task matching");
  }
  const bool positives_alone =
      options.model.task == TaskKind::matching && options.train.neg_ratio == 0;
  if (positives_alone && !options.allow_collapse && !options.resume) {
    throw cli::UsageError(
        "--neg-ratio 0: without negatives all vectors become one (collapse); "
        "--allow-collapse to see it happen");
  }
  return options;
}

inline void describe_data(const Dataset& data) {
  const Histories& histories = data.histories;
  std::cout << cli::grouped(data.catalogue.size()) << " items, " << cli::grouped(histories.size())
            << " users, " << cli::grouped(histories.interactions()) << " interactions\n";
  if (histories.unknown_entries > 0) {
    std::cout << cli::grouped(histories.unknown_entries)
              << " entries left out: not in the catalogue\n";
  }
  if (histories.planned_entries > 0) {
    std::cout << cli::grouped(histories.planned_entries) << " entries left out: only planned\n";
  }
  if (histories.untimed_users > 0) {
    std::cout << cli::grouped(histories.untimed_users)
              << " users without complete times: their items keep the order of the file\n";
  }
}

// Only what makes the figures to come doubtful; audit_dataset tells everything.
inline void print_warnings(const Dataset& data, const TrainConfig& config) {
  for (const audits::Finding& finding : describe(audits::audit_data(data, config))) {
    if (finding.severity != audits::Severity::warning) continue;
    std::cout << "warning: " << finding.text << "\n";
  }
}

inline std::string top_text(const Tally& metrics) {
  std::string text;
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    text += join(i == 0 ? "top-1/5/10/20 " : "/", cli::fixed(100 * metrics.accuracy(i), 1));
  }
  return text + "%";
}

inline std::string measures_text(const TrainingMetrics& metrics) {
  std::string text;
  for (const auto& [name, values] : metrics.val_measures) {
    if (!name.starts_with("similarity_"))
      text += join("  ", name, " ", cli::fixed(values.back(), 4));
  }
  return text;
}

inline void print_epoch(const EpochReport& report, const TrainingMetrics& metrics) {
  const Tally& validation = report.validation.tally;
  // Ranks among the few candidates that matching draws say little.
  const bool ranked = report.validation.measures.empty();
  std::cout << "epoch " << report.epoch << "/" << report.epochs << "  train loss "
            << cli::fixed(report.train.loss(), 4) << (ranked ? " " + top_text(report.train) : "")
            << "  validation loss " << cli::fixed(validation.loss(), 4) << " "
            << top_text(validation) << measures_text(metrics) << "  "
            << cli::fixed(report.seconds, 1) << " s" << (report.improved ? "  best" : "")
            << std::endl;
}

// Whether all items have become one vector.
inline bool collapsed(const TrainingMetrics& metrics) {
  for (const auto& [name, values] : metrics.val_measures) {
    if (name == "item_cosine") return values.back() > 0.9;
  }
  return false;
}

// After a signal to this rank or, if there was none, to another.
inline int stopped(const Options& options, char* program, const Collective& ranks) {
  const int signal = cli::received_signal != 0 ? cli::received_signal.load() : SIGTERM;
  std::string output = "--output=" + path_text(options.output), resume = "--resume";
  char* words[] = {program, output.data(), resume.data()};
  std::string command = cli::command_text(3, words);
  if (ranks.size() > 1) command = join("mpirun -n ", ranks.size(), " ", command);
  command += options.gpu.flags();
  std::cout << "stopped; everything is saved. Continue with:\n  " << command << std::endl;
  return 128 + signal;
}

inline void resume(Trainer& trainer) {
  const Path checkpoint = trainer.resume();
  std::cout << "continuing after epoch "
            << trainer.metrics().epoch_text(trainer.metrics().evaluations()) << " from "
            << path_text(checkpoint) << "\n"
            << gpu::changed_arithmetic(trainer) << std::flush;
}

inline void begin(const Options& options, const Dataset& data, Trainer& trainer) {
  const Safetensors file = open_model(options.init_from);
  const std::size_t known = begin_with_items(file, catalogue_of(options.init_from, file),
                                             trainer.engine(), data.catalogue, options.new_items);
  std::cout << "beginning on " << path_text(file.path()) << ", which knows " << cli::grouped(known)
            << " of the items" << std::endl;
}

// The best evaluation, and what it was chosen by: "best epoch 42, top10 42.29%".
inline std::string best_text(const TrainingMetrics& metrics, const TrainConfig& config) {
  const double quality = metrics.quality(config.best_by, metrics.best_epoch);
  const bool by_loss = config.best_by == Metric::loss;
  return metrics.best_text() + (by_loss ? "" : " " + cli::percent(quality));
}

// Trains in options.output; nothing if a signal stopped it.
inline std::optional<TrainingMetrics> train(const Options& options, const Dataset& data,
                                            Collective& ranks) {
  auto made = make_task(data, options.model, options.train);
  const CatalogueTask& task = *made;
  Trainer trainer(std::move(made), options.train, options.output, options.gpu.maker(), ranks);
  std::cout << cli::grouped(trainer.engine().table().size()) << " parameters, "
            << cli::grouped(task.split().train_users().size()) << " users to train on";
  if (const auto* matching = dynamic_cast<const MatchingTask*>(&task)) {
    const std::size_t positives = matching->positives(), ratio = options.train.neg_ratio;
    std::cout << " (" << cli::grouped(positives) << " interactions, with negatives "
              << cli::grouped(positives * (1 + ratio)) << " samples an epoch)";
  } else if (options.train.window_stride > 0) {
    std::cout << " (" << cli::grouped(task.examples()) << " windows)";
  }
  std::cout << ", " << cli::grouped(task.split().validation_users().size()) << " to validate";
  if (ranks.size() > 1) std::cout << ", " << ranks.size() << " ranks";
  std::cout << std::endl;
  if (options.resume) resume(trainer);
  if (!options.init_from.empty()) begin(options, data, trainer);
  if (options.model.task == TaskKind::matching && options.train.neg_ratio == 0) {
    std::cout << "warning: without negatives nothing keeps vectors apart: they will collapse\n";
  }
  if (draws_negatives(options.train.loss) && options.model.task == TaskKind::items) {
    std::cout << "loss and Top-K in training are among drawn items, in validation among all\n";
  }
  cli::ProgressBar bar(options.quiet);
  bool told = false;
  TrainerCallbacks callbacks;
  callbacks.on_batch = [&](const BatchReport& report) { bar.show(report, "top-1"); };
  callbacks.on_epoch = [&](const EpochReport& report) {
    bar.clear();
    if (!options.quiet) print_epoch(report, trainer.metrics());
    if (told || !collapsed(trainer.metrics())) return;
    told = true;
    std::cout << "collapsed: the mean cosine of two items is above 0.9" << std::endl;
  };
  callbacks.should_stop = [] { return cli::received_signal != 0; };
  if (options.overwrite) trainer.overwrite();
  const bool finished = trainer.run(callbacks);
  bar.clear();
  const TrainingMetrics& metrics = trainer.metrics();
  if (metrics.evaluations() > 0 && ranks.rank() == 0) {
    plots::draw_plots(metrics, options.output / "plots");
  }
  if (!finished) return std::nullopt;
  if (metrics.evaluations() < options.train.epochs * metrics.per_epoch) {
    std::cout << "stopped early: no better epoch since " << metrics.epoch_text(metrics.best_epoch)
              << "\n";
  }
  std::cout << best_text(metrics, options.train) << ", validation loss "
            << cli::fixed(metrics.val_losses[metrics.best_epoch - 1], 4) << "\nmodels, checkpoints,"
            << " plots and logs are in " << path_text(options.output) << std::endl;
  return metrics;
}

// ---- Several runs: K-fold cross-validation (each user is held out once), or several seeds -------

// One of them: its folder below options.output, and what it is trained with.
struct Part {
  std::string folder;
  TrainConfig train;
};

inline std::vector<Part> parts_of(const Options& options) {
  std::vector<Part> parts;
  const std::size_t count = options.every_fold ? options.train.folds : options.seeds;
  for (std::size_t i = 0; i < count; ++i) {
    Part& part = parts.emplace_back(Part{"", options.train});
    if (options.every_fold) {
      part.train.fold = i + 1;
      part.folder = join("fold_", i + 1);
    } else {
      part.train.seed += i;
      part.folder = join("seed_", part.train.seed);
    }
  }
  return parts;
}

// The seeds to come, so that --resume knows them.
inline Json seeds_json(const Options& options) {
  Json::Array seeds;
  for (const Part& part : parts_of(options)) seeds.emplace_back(part.train.seed);
  Json json;
  json.set("seeds", std::move(seeds));
  return json;
}

struct Spread {
  double mean, deviation;  // the sample's
};

inline Spread spread_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, std::sqrt(squares / (n - 1))};
}

// Validation loss and Top-K of the best epoch of each, with mean and spread.
inline void report_parts(const Options& options, const std::vector<TrainingMetrics>& parts) {
  const std::string what = options.every_fold ? "folds" : "seeds";
  const Path file = options.output / (options.every_fold ? folds_file : seeds_file);
  Json json = options.every_fold ? Json() : seeds_json(options);
  std::string line = join("over ", parts.size(), " ", what, ": ");
  const auto add = [&](const std::string& name, double scale, const char* unit, auto&& curve) {
    std::vector<double> values;
    for (const TrainingMetrics& part : parts) values.push_back(curve(part)[part.best_epoch - 1]);
    const auto [mean, deviation] = spread_of(values);
    Json entry;
    entry.set("mean", mean);
    entry.set("standard_deviation", deviation);
    entry.set(what, values);
    json.set(name, std::move(entry));
    line += join(name == "loss" ? "" : ", ", name, " ", cli::fixed(scale * mean, 3), " +- ",
                 cli::fixed(scale * deviation, 3), unit);
  };
  add("loss", 1, "", [](const TrainingMetrics& m) { return m.val_losses; });
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    add(join("top", top_k[i]), 100, "%",
        [&](const TrainingMetrics& m) { return m.val_accuracies[i]; });
  }
  write_file(file, json.text(2) + "\n");
  std::cout << line << "\n(mean and standard deviation of the best epochs; " << path_text(file)
            << ")\n";
}

// True if all were trained.
inline bool train_parts(const Options& options, const Dataset& data, Collective& ranks) {
  if (options.seeds > 0 && !options.resume && ranks.rank() == 0) {
    make_folder(options.output);
    write_file(options.output / seeds_file, seeds_json(options).text(2) + "\n");
  }
  std::vector<TrainingMetrics> done;
  for (const Part& part : parts_of(options)) {
    Options one = options;
    one.train = part.train;
    one.output = options.output / part.folder;
    if (ranks.rank() == 0) settle(one.output);  // or a set that was begun would hide what is there
    one.resume = options.resume && first_says(ranks, can_resume(one.output));
    one.overwrite = options.overwrite || (options.resume && died_early(one.output));
    std::cout << "== " << part.folder << ", " << done.size() + 1 << " of "
              << parts_of(options).size() << std::endl;
    const auto metrics = train(one, data, ranks);
    if (!metrics) return false;
    done.push_back(*metrics);
  }
  if (ranks.rank() == 0) report_parts(options, done);
  return true;
}

// Nothing that is there is replaced unasked.
inline void require_free(const Options& options) {
  if (options.resume) return;
  require(!options.many() || !holds_run(options.output), options.output,
          ": holds a single run, beside which no others can be: give another folder, or remove it");
  if (options.overwrite) return;
  for (const Path& output : {options.output, options.output / "fold_1"}) {
    require(!holds_run(output), output,
            ": holds a run already: --resume continues it, --overwrite replaces it");
  }
  require(
      !path_exists(options.output / seeds_file), options.output,
      ": holds runs of several seeds already: --resume continues them, --overwrite replaces them");
}

// Whether a file of an older cross-validation or of older seeds, or a folder of one.
inline bool is_of_parts(std::string_view name) {
  const bool folder = (name.starts_with("fold_") || name.starts_with("seed_")) &&
                      name.find_first_not_of("0123456789", 5) == name.npos;
  return folder || name == folds_file || name == seeds_file;
}

// Removes what is left of those, as one.
inline void remove_parts(const Path& output, const FolderLock& lock) {
  settle(lock);
  FileSet set(lock);
  for (const Path& path : names_in_folder(output)) {
    const std::string name = path_text(path);
    if (is_of_parts(name)) set.remove(name);
  }
  set.commit();
}

// Only rank 0 writes; what all print is for their programs to show once.
inline int run(int argc, char** argv, Collective& on_host, gpu::Seat seat = {}) {
  Options options = parse(argc, argv, on_host);
  options.gpu.seat = seat;
  const auto between = gpu::between_gpus(on_host, options.gpu);
  Collective& ranks = between ? *between : on_host;
  if (ranks.rank() == 0) require_free(options);
  const Dataset data = Dataset::load(options.data);
  describe_data(data);
  print_warnings(data, options.train);
  cli::catch_stop_signals();
  // One run locks its folder itself; a folder of several stays locked until all are done.
  std::optional<FolderLock> lock;
  if (options.overwrite || options.many()) {
    // What cannot be trained is told before anything is written or removed.
    static_cast<void>(make_task(data, options.model, options.train));
    options.gpu.check(options.train);
    if (ranks.rank() == 0) lock.emplace((make_folder(options.output), options.output));
  }
  if (options.overwrite && ranks.rank() == 0) {
    for (Path path = std::filesystem::weakly_canonical(options.init_from); path.has_relative_path();
         path = path.parent_path()) {
      const bool goes = path.parent_path() == std::filesystem::weakly_canonical(options.output) &&
                        is_of_parts(path_text(path.filename()));
      require(!goes, options.init_from, ": --overwrite would remove it before it is read");
    }
    remove_parts(options.output, *lock);
  }
  if (!options.many()) lock.reset();
  const bool finished =
      options.many() ? train_parts(options, data, ranks) : train(options, data, ranks).has_value();
  return finished ? 0 : stopped(options, argv[0], ranks);
}

}  // namespace training

#endif  // BERT4REC_TOOLS_TRAINING_HPP
