// Trains BERT4Rec on a folder of items.jsonl and histories.jsonl.

#include "cli.hpp"
#include "plots/plots.hpp"

namespace {

using namespace bert4rec;

struct Options {
  ModelConfig model;
  TrainConfig train;
  Path data = "data/demo", output = "output";
  bool resume = false, gpu = false, fp16 = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("train_model", "trains BERT4Rec with the Cloze task",
                        "train_model --data data/demo --output output --epochs 50 --seed 1");
  line.option("data", options.data, "folder with items.jsonl and histories.jsonl");
  line.option("output", options.output, "folder for models, checkpoints, plots and logs");
  line.configuration(options.train, {{"learning_rate", "lr"},
                                     {"validation_ratio", "val-ratio"},
                                     {"mask_probability", "mask-prob"}});
  line.configuration(options.model, {{"max_length", "max-seq-len"}}, {"num_items"});
  line.flag("resume", options.resume, "continue from the last checkpoint in the output folder");
  line.flag("gpu", options.gpu, "train on a CUDA device (not in this version)");
  line.flag("fp16", options.fp16, "half precision on a CUDA device (not in this version)");
  line.parse(argc, argv);
  if (!line.given("attention-dropout")) options.model.attention_dropout = options.model.dropout;
  require(!options.gpu && !options.fp16, options.gpu ? "--gpu" : "--fp16", ": version ",
          BERT4REC_VERSION_STRING, " has no CUDA engine; leave the flag out to train on the CPU");
  return options;
}

void describe_data(const Dataset& data) {
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
void print_warnings(const Dataset& data, const TrainConfig& config) {
  for (const Finding& finding : describe(audit_data(data, config))) {
    if (finding.severity == Severity::warning) std::cout << "warning: " << finding.text << "\n";
  }
}

std::string top_text(const MaskedMetrics& metrics) {
  std::string text;
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    text += join(i == 0 ? "top-1/5/10/20 " : "/", cli::fixed(100 * metrics.accuracy(i), 1));
  }
  return text + "%";
}

void print_epoch(const EpochReport& report) {
  std::cout << "epoch " << report.epoch << "/" << report.epochs << "  train loss "
            << cli::fixed(report.train.loss(), 4) << " " << top_text(report.train)
            << "  validation loss " << cli::fixed(report.validation.loss(), 4) << " "
            << top_text(report.validation) << "  " << cli::fixed(report.seconds, 1) << " s"
            << (report.improved ? "  best" : "") << std::endl;
}

void draw_batch(cli::ProgressBar& bar, const BatchReport& report) {
  const double rate = static_cast<double>(report.batch) / std::max(report.seconds, 1e-9);
  const auto left =
      static_cast<double>((report.epochs - report.epoch + 1) * report.batches - report.batch);
  bar.show(report.batch, report.batches, join("epoch ", report.epoch, "/", report.epochs),
           join("loss ", cli::fixed(report.so_far.loss(), 4), "  top-1 ",
                cli::percent(report.so_far.accuracy(0)), "  ", cli::fixed(rate, 1), " batches/s  ",
                cli::duration(left / rate), " left"));
}

int stopped(const Options& options, std::string command) {
  const int signal = cli::received_signal;
  if (!options.resume) command += " --resume";
  std::cout << "stopped; everything is saved. Continue with:\n  " << command << std::endl;
  return 128 + signal;
}

int train(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Dataset data = Dataset::load(options.data);
  describe_data(data);
  print_warnings(data, options.train);
  Trainer trainer(data, options.model, options.train, options.output);
  std::cout << cli::grouped(trainer.engine().table().size()) << " parameters, "
            << cli::grouped(trainer.split().train_users().size()) << " users to train on, "
            << cli::grouped(trainer.split().validation_users().size()) << " to validate"
            << std::endl;
  if (options.resume) {
    const Path checkpoint = trainer.resume();
    std::cout << "continuing after epoch " << trainer.metrics().epochs() << " from "
              << checkpoint.string() << std::endl;
  }
  cli::catch_stop_signals();
  cli::ProgressBar bar;
  TrainerCallbacks callbacks;
  callbacks.on_batch = [&](const BatchReport& report) { draw_batch(bar, report); };
  callbacks.on_epoch = [&](const EpochReport& report) {
    bar.clear();
    print_epoch(report);
  };
  callbacks.should_stop = [] { return cli::received_signal != 0; };
  const bool finished = trainer.run(callbacks);
  bar.clear();
  if (trainer.metrics().epochs() > 0) {
    plots::draw_plots(trainer.metrics(), options.output / "plots");
  }
  if (!finished) return stopped(options, cli::command_text(argc, argv));
  const TrainingMetrics& metrics = trainer.metrics();
  std::cout << "best epoch " << metrics.best_epoch << ", validation loss "
            << cli::fixed(metrics.val_losses[metrics.best_epoch - 1], 4) << "\nmodels, checkpoints,"
            << " plots and logs are in " << options.output.string() << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("train_model", [&] { return train(argc, argv); });
}
