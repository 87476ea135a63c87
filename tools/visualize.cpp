// Draws the curves of a training run as four pictures.

#include "common/cli.hpp"
#include "plots/plots.hpp"

namespace {

using namespace bert4rec;

int visualize(int argc, char** argv) {
  Path file = "output/plots/training_metrics.json", output;
  plots::Format format = plots::Format::png;
  cli::CommandLine line("visualize", "draws the curves of a training run as pictures",
                        "visualize --metrics output/plots/training_metrics.json");
  line.option("metrics", file, "training_metrics.json that train_model wrote");
  line.option("output", output, "folder for the pictures (that of --metrics)");
  line.option("format", format, "of the pictures");
  line.parse(argc, argv);
  if (output.empty()) output = file.has_parent_path() ? file.parent_path() : Path(".");
  const Json json = read_sealed_json(file);
  const TrainingMetrics metrics = in_context(path_text(file), [&] {
    TrainingMetrics read = TrainingMetrics::from_json(json);
    plots::check_curves(read);
    return read;
  });
  std::string drawn;
  for (const std::string& name : plots::draw_plots(metrics, output, format)) {
    drawn += (drawn.empty() ? "drew " : ", ") + name;
  }
  std::cout << drawn << " in " << path_text(output) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("visualize", argc, argv, visualize); }
