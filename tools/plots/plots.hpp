// The pictures of a training run, from its curves (plots/training_metrics.json), as .png or .svg:
//   loss_curve        train and validation loss, the lowest validation loss marked
//   accuracy_curve    Top-1, 5, 10, 20; train left, validation right
//   combined_metrics  loss, both accuracies, and bars of the Top-K at the end
//   learning_curve    losses and their moving averages; the learning rate if it varies
// Each is headed by the names of data and run and the best epoch, at which a line stands in all
// panels of curves and a dot on those of validation. Where the run left them (RunFacts), dashed
// lines tell how often its baselines would be right in validation: beside Top-K curves for one K,
// which chose the best epoch, or 10; across the bars for all.
// Of a classifier, accuracy_curve.png has the accuracy left, and accuracy, precision, recall and F1
// in validation right. A Top-K with K > 1 that is 1 throughout is left out of all of them. Values
// stand at their epochs, of which those of several evaluations an epoch are fractions. And from the
// counts of a classifier:
//   confusion_matrix  true labels as rows, predicted as columns, shaded by the share of the row
// Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Values that are
// not finite leave gaps.

#ifndef BERT4REC_TOOLS_PLOTS_PLOTS_HPP
#define BERT4REC_TOOLS_PLOTS_PLOTS_HPP

#include <array>

#include "bert4rec.hpp"
#include "plots/canvas.hpp"

namespace plots {

inline constexpr Color train_color{0, 114, 178}, validation_color{213, 94, 0};  // blue, vermillion
inline constexpr std::array<Color, bert4rec::top_k.size()> top_colors{
    // green, orange, purple, sky
    {{0, 158, 115}, {230, 159, 0}, {204, 121, 167}, {86, 180, 233}}};

enum class Format { png, svg, both };

// Draws all four into `folder`, which is made if missing; returns the names of the files, each of
// which is replaced atomically.
std::vector<std::string> draw_plots(const bert4rec::TrainingMetrics& metrics,
                                    const bert4rec::Path& folder, Format format = Format::png);

// Throws Error for curves without epochs or of different lengths, as do all that draw them.
void check_curves(const bert4rec::TrainingMetrics& metrics);

// "data demo, run output/demo, best epoch 42 by top10", as far as it is known.
std::string heading(const bert4rec::TrainingMetrics& metrics);

Canvas loss_figure(const bert4rec::TrainingMetrics& metrics);
Canvas accuracy_figure(const bert4rec::TrainingMetrics& metrics);
Canvas combined_figure(const bert4rec::TrainingMetrics& metrics);
Canvas learning_figure(const bert4rec::TrainingMetrics& metrics);

// With counts in the cells for up to 20 labels. Labels with characters outside ASCII, which Canvas
// does not have, are shown as their numbers, from 1. `part`, for the title: what was predicted;
// `heading`: a line above it. Throws Error unless each label has a name.
Canvas confusion_figure(const bert4rec::Confusion& confusion,
                        const std::vector<std::string>& labels, std::string_view part = {},
                        std::string_view heading = {});

// ---- Parts, shown for the tests -----------------------------------------------------------------

// Multiples of the smallest step 1, 2 or 5 times 10^k with which at most `most` (3 or more) of them
// reach from below `low` to above `high`, which is more than `low`.
std::vector<double> round_ticks(double low, double high, std::size_t most);
// The text of a tick that stands `step` from the next.
std::string tick_label(double value, double step);
// In each column of pixels only the first, lowest, highest and last point, in their order: the same
// picture from at most four points a column.
Polyline decimate(const Polyline& points);
// Each value's mean with its finite neighbours: `reach` on both sides, towards the ends equally
// fewer (which keeps the mean of a falling curve on it), down to an eighth. Gaps stay gaps.
std::vector<double> moving_average(std::span<const double> values, std::size_t reach);
// The first place (from 0) of the lowest finite value.
std::optional<std::size_t> lowest(std::span<const double> values);

}  // namespace plots

template <>
struct bert4rec::detail::EnumNames<plots::Format> {
  static constexpr std::array<std::string_view, 3> names{"png", "svg", "both"};
};

#endif  // BERT4REC_TOOLS_PLOTS_PLOTS_HPP
