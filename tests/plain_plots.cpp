// In place of tools/plots in the tests that train thousands of times: a text of the curves under
// the name of one of the four pictures, which take a hundred times as long as the training.

#include "plots/plots.hpp"

namespace plots {

void check_curves(const bert4rec::TrainingMetrics&) {}

std::vector<std::string> draw_plots(const bert4rec::TrainingMetrics& metrics,
                                    const bert4rec::Path& folder, Format) {
  bert4rec::make_folder(folder);
  bert4rec::write_file(folder / "loss_curve.png", metrics.to_json().text() + "\n");
  return {"loss_curve.png"};
}

}  // namespace plots
