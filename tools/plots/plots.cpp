#include "plots/plots.hpp"

namespace plots {

using bert4rec::epoch_text;
using bert4rec::join;
using bert4rec::require;
using bert4rec::top_k;
using bert4rec::TrainingMetrics;

// ---- Numbers ------------------------------------------------------------------------------------

namespace {

// Beyond 1e290 differences and steps would leave the range of double.
bool drawable(double value) { return std::abs(value) < 1e290; }

struct Range {
  double low, high;
};

// From the lowest to the highest drawable value, and a little more; where those are (almost) equal,
// a tenth of the value to both sides.
template <class Curves>
Range range_of(const Curves& curves) {
  Range range{INFINITY, -INFINITY};
  for (const auto& curve : curves) {
    for (const double value : curve.values) {
      if (!drawable(value)) continue;
      range = {std::min(range.low, value), std::max(range.high, value)};
    }
  }
  if (!(range.low <= range.high)) return {0, 1};
  const double size = std::max(std::abs(range.low), std::abs(range.high));
  if (size < 1e-290) return {0, 1};
  const bool constant = range.high - range.low < 1e-9 * size;
  const double margin = constant ? size / 10 : (range.high - range.low) / 25;
  const bool to_zero = range.low >= 0 && range.low <= 2 * margin && !constant;
  return {to_zero ? 0 : range.low - margin, range.high + margin};
}

std::string formatted(const char* format, int digits, double value) {
  char text[400];
  std::snprintf(text, sizeof text, format, digits, value);
  return text;
}

int decimal_exponent(double value) {
  return static_cast<int>(std::floor(std::log10(std::abs(value)) + 1e-9));
}

}  // namespace

std::vector<double> round_ticks(double low, double high, std::size_t most) {
  const auto count = static_cast<double>(std::max<std::size_t>(most, 3));
  for (int exponent = decimal_exponent((high - low) / count);; ++exponent) {
    const double power = std::pow(10.0, std::abs(exponent));
    for (const double digit : {1, 2, 5}) {
      // Dividing by 10^n rounds once; multiplying by an inexact 10^-n would show: 3 * 0.1 > 0.3.
      const auto tick = [&](double i) {
        return exponent < 0 ? i * digit / power : i * digit * power;
      };
      const double first = std::floor(low / tick(1)), last = std::ceil(high / tick(1));
      if (last - first >= count) continue;
      std::vector<double> ticks;
      for (double i = first; i <= last; ++i) ticks.push_back(tick(i));
      return ticks;
    }
  }
}

std::string tick_label(double value, double step) {
  if (std::abs(value) < step / 2) return "0";
  if (step < 1e6 && step > 0.99e-4) {
    return formatted("%.*f", std::max(0, -decimal_exponent(step)), value);
  }
  const int digits = std::max(0, decimal_exponent(value) - decimal_exponent(step));
  std::string text = formatted("%.*e", digits, value);  // 2.5e-05, 1e+06
  const std::size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  return join(text.substr(0, e), "e", exponent);
}

Polyline decimate(const Polyline& points) {
  Polyline kept;
  for (std::size_t begin = 0, end = 0; begin < points.size(); begin = end) {
    const double column = std::floor(points[begin].x);
    std::size_t low = begin, high = begin;
    for (end = begin; end < points.size() && std::floor(points[end].x) == column; ++end) {
      if (points[end].y < points[low].y) low = end;
      if (points[end].y > points[high].y) high = end;
    }
    std::array<std::size_t, 4> order{begin, low, high, end - 1};
    std::sort(order.begin(), order.end());
    const auto last = std::unique(order.begin(), order.end());
    for (auto at = order.begin(); at != last; ++at) kept.push_back(points[*at]);
  }
  return kept;
}

std::vector<double> moving_average(std::span<const double> values, std::size_t reach) {
  std::vector<double> means(values.begin(), values.end());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!drawable(values[i])) continue;
    const std::size_t side = std::max(std::min({reach, i, values.size() - 1 - i}), reach / 8);
    const std::size_t begin = i - std::min(i, side), end = std::min(i + side + 1, values.size());
    double sum = 0, count = 0;
    for (const double value : values.subspan(begin, end - begin)) {
      if (drawable(value)) sum += value, ++count;
    }
    means[i] = sum / count;
  }
  return means;
}

std::optional<std::size_t> lowest(std::span<const double> values) {
  std::optional<std::size_t> best;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (drawable(values[i]) && (!best || values[i] < values[*best])) best = i;
  }
  return best;
}

// ---- Axes ---------------------------------------------------------------------------------------

namespace {

struct Curve {
  std::string name;  // in the legend; empty: not there
  std::vector<double> values;
  Color color;
  double width = 3.5, alpha = 1;
  bool marked = false;  // with a dot at the best epoch
  double dash = 0;      // length of the dashes of a level line, that of values[0]; 0: a curve
};

using Ticks = std::vector<std::pair<double, std::string>>;

struct Panel {
  Box outer;
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
  const TrainingMetrics& metrics;  // where epochs are, and the best one
  double title_size = 30;
  std::vector<Curve> levels = {};  // lines with their names beside them
};

constexpr double label_size = 24, tick_size = 22;

// The place of the data in a picture. On the x axis of curves evaluations are counted, from 1; only
// its ticks are epochs.
struct Frame {
  Box box;
  Range x, y;
  Point at(double px, double py) const {
    return {box.left + (px - x.low) / (x.high - x.low) * box.width(),
            box.bottom - (py - y.low) / (y.high - y.low) * box.height()};
  }
};

Ticks labelled_ticks(Range range, double pixels, double spacing, double least_step) {
  // Two more than fit, since one or two of them lie outside.
  const auto most = static_cast<std::size_t>(std::min(14.0, 2 + pixels / spacing));
  std::vector<double> values = round_ticks(range.low, range.high, most);
  const double step = std::max(least_step, values[1] - values[0]);
  Ticks ticks;
  for (const double value : values) {
    const bool inside = value >= range.low && value <= range.high;
    const bool whole = least_step == 0 || std::fmod(value, least_step) == 0;
    if (inside && whole) ticks.emplace_back(value, tick_label(value, step));
  }
  return ticks;
}

Ticks epoch_ticks(Range evaluations, double pixels, std::size_t per_epoch) {
  const auto count = static_cast<double>(per_epoch);
  const Range epochs{evaluations.low / count, evaluations.high / count};
  Ticks ticks = labelled_ticks(epochs, pixels, 100, per_epoch == 1 ? 1 : 0);
  for (auto& tick : ticks) tick.first *= count;
  return ticks;
}

// A level line, of dashes with gaps of ten pixels.
void draw_dashes(Canvas& canvas, Point from, double to_x, const Curve& level) {
  std::vector<Polyline> dashes;
  for (double x = from.x; x < to_x; x += level.dash + 10) {
    dashes.push_back({{x, from.y}, {std::min(x + level.dash, to_x), from.y}});
  }
  canvas.stroke(dashes, level.width, level.color, level.alpha);
}

void draw_legend(Canvas& canvas, Point at, const std::vector<Curve>& curves) {
  for (const Curve& curve : curves) {
    if (curve.name.empty()) continue;
    const double thick = std::max(5.0, curve.width), y = at.y - 0.35 * label_size;
    const Polyline sample{{at.x + thick / 2, y}, {at.x + 38 - thick / 2, y}};
    if (curve.dash > 0) {
      draw_dashes(canvas, {at.x + 2, y}, at.x + 36, curve);
    } else {
      canvas.stroke({&sample, 1}, thick, curve.color, curve.alpha);
    }
    canvas.text({at.x + 50, at.y}, curve.name, {.size = label_size});
    at.x += 50 + text_width(curve.name, label_size) + 36;
  }
}

// Lines of two whole pixels, so that they stay sharp, also at half the size.
void draw_grid(Canvas& canvas, const Frame& frame, const Ticks& x_ticks, const Ticks& y_ticks,
               bool vertical_lines) {
  const Box& box = frame.box;
  for (const auto& [value, label] : x_ticks) {
    const double x = std::round(frame.at(value, frame.y.low).x);
    if (vertical_lines) canvas.fill({x - 1, box.top, x + 1, box.bottom}, light);
    canvas.text({x, box.bottom + 34}, label, {.size = tick_size, .align = 0.5, .color = gray});
  }
  for (const auto& [value, label] : y_ticks) {
    const double y = std::round(frame.at(frame.x.low, value).y);
    canvas.fill({box.left, y - 1, box.right, y + 1}, light);
    canvas.text({box.left - 14, y + 0.35 * tick_size}, label,
                {.size = tick_size, .align = 1, .color = gray});
  }
  canvas.fill({box.left - 1, box.top, box.left + 1, box.bottom}, gray);
  canvas.fill({box.left - 1, box.bottom - 1, box.right, box.bottom + 1}, gray);
}

// Title, legend, axes with their ticks, grid; returns the place left for the data.
Frame draw_frame(Canvas& canvas, const Panel& panel, Range x, Range y,
                 const std::optional<Ticks>& given_x_ticks = {}) {
  const Box& outer = panel.outer;
  const bool legend = std::any_of(panel.curves.begin(), panel.curves.end(),
                                  [](const Curve& curve) { return !curve.name.empty(); });
  const double top = outer.top + (panel.title.empty() ? 12 : 2.1 * panel.title_size);
  Box box{0, top + (legend ? 60 : 0), outer.right - 40,
          outer.bottom - (panel.x_label.empty() ? 50 : 92)};
  const Ticks y_ticks = labelled_ticks(y, box.height(), 50, 0);
  double widest = 48;
  for (const auto& tick : y_ticks) widest = std::max(widest, text_width(tick.second, tick_size));
  box.left = std::round(outer.left + 76 + std::max(84.0, widest));
  const Ticks x_ticks =
      given_x_ticks ? *given_x_ticks : epoch_ticks(x, box.width(), panel.metrics.per_epoch);
  const Frame frame{box, x, y};
  draw_grid(canvas, frame, x_ticks, y_ticks, !given_x_ticks);
  canvas.text({box.left, outer.top + 1.5 * panel.title_size}, panel.title,
              {.size = panel.title_size, .weight = 0.11});
  if (legend) draw_legend(canvas, {box.left, top + 26}, panel.curves);
  canvas.text({(box.left + box.right) / 2, outer.bottom - 22}, panel.x_label,
              {.size = label_size, .align = 0.5});
  canvas.text({box.left - 34 - widest, (box.top + box.bottom) / 2}, panel.y_label,
              {.size = label_size, .align = 0.5, .vertical = true});
  return frame;
}

// ---- Curves -------------------------------------------------------------------------------------

// A line for each run of finite values.
std::vector<Polyline> lines_of(const Frame& frame, std::span<const double> values) {
  std::vector<Polyline> lines;
  bool open = false;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (drawable(values[i])) {
      if (!open) lines.emplace_back();
      lines.back().push_back(frame.at(static_cast<double>(i + 1), values[i]));
    }
    open = drawable(values[i]);
  }
  for (Polyline& line : lines) line = decimate(line);
  return lines;
}

// Dots where values are few, and where one stands alone.
void draw_curve(Canvas& canvas, const Frame& frame, const Curve& curve) {
  const std::vector<Polyline> lines = lines_of(frame, curve.values);
  canvas.stroke(lines, curve.width, curve.color, curve.alpha);
  std::vector<Polyline> dots;
  for (const Polyline& line : lines) {
    if (curve.values.size() > 30 && line.size() > 1) continue;
    for (const Point& point : line) dots.push_back({point});
  }
  canvas.stroke(dots, 3 * curve.width, curve.color, curve.alpha);
}

Range evaluation_range(std::size_t count) {
  const auto last = static_cast<double>(count);
  const double margin = count == 1 ? 0.5 : (last - 1) / 60;
  return {1 - margin, last + margin};
}

// ---- Labels -------------------------------------------------------------------------------------

// How many pixels of a box are darker than the grid: curves, lines and letters.
std::size_t used_pixels(const Canvas& canvas, const Box& box) {
  std::size_t count = 0;
  for (auto y = static_cast<std::size_t>(box.top); y < static_cast<std::size_t>(box.bottom); ++y) {
    for (auto x = static_cast<std::size_t>(box.left); x < static_cast<std::size_t>(box.right);
         ++x) {
      const auto [red, green, blue] = canvas.pixel(x, y);
      count += std::min({red, green, blue}) < 200;
    }
  }
  return count;
}

// The place near `at` for a text `width` wide where it covers least: the nearest free one.
Box free_place(const Canvas& canvas, const Box& area, Point at, double width) {
  const double height = 1.2 * label_size;
  Box best{};
  std::size_t least = std::numeric_limits<std::size_t>::max();
  for (const double distance : {36.0, 80.0, 130.0, 200.0, 290.0, 400.0}) {
    for (const double y : {at.y - distance, at.y + distance}) {
      for (const double align : {0.5, 0.0, 1.0}) {
        const double left = at.x - align * width + 12 * (1 - 2 * align);  // off the line at at.x
        const Box box{left - 6, y - height / 2, left + width + 6, y + height / 2};
        if (box.left < area.left || box.right > area.right + 30) continue;
        if (box.top < area.top || box.bottom > area.bottom) continue;
        const std::size_t covered = used_pixels(canvas, box);
        if (covered < least) least = covered, best = box;
      }
    }
    if (least == 0) break;
  }
  return best;
}

// A ring on the lowest value, with its epoch.
void mark_lowest(Canvas& canvas, const Frame& frame, const Curve& curve, std::size_t per_epoch) {
  const auto least = lowest(curve.values);
  if (!least) return;
  const double value = curve.values[*least];
  const Point at = frame.at(static_cast<double>(*least + 1), value);
  const std::string label = join("lowest: ", formatted("%.*g", 4, value), " at epoch ",
                                 epoch_text(*least + 1, per_epoch));
  const double width = text_width(label, label_size);
  const Box place = free_place(canvas, frame.box, at, width);
  const Point end{std::clamp(at.x, place.left + 6, place.right - 6),
                  at.y < place.top ? place.top : place.bottom};
  const Polyline disc{at}, leader{at, end};
  if (std::abs((place.top + place.bottom) / 2 - at.y) > 40) {
    canvas.stroke({&leader, 1}, 2, gray);
  }
  canvas.stroke({&disc, 1}, 22, curve.color);
  canvas.stroke({&disc, 1}, 13, white);
  canvas.fill(place, white, 0.75);
  canvas.text({place.left + 6, place.bottom - 0.25 * label_size}, label, {.size = label_size});
}

// ---- Panels -------------------------------------------------------------------------------------

// The name of a level line, above or below it, at that end or in the middle where it covers least.
void label_level(Canvas& canvas, const Frame& frame, const Curve& level) {
  const double width = text_width(level.name, tick_size), height = 1.2 * tick_size;
  const double y = frame.at(frame.x.low, level.values[0]).y;
  Box best{};
  std::size_t least = std::numeric_limits<std::size_t>::max();
  for (const double share : {1.0, 0.0, 0.5}) {
    const double left = frame.box.left + 16 + share * (frame.box.width() - 32 - width);
    for (const double top : {y - height - 4, y + 4}) {
      const Box place{left - 6, top, left + width + 6, top + height};
      if (place.top < frame.box.top || place.bottom > frame.box.bottom) continue;
      const std::size_t covered = used_pixels(canvas, place);
      if (covered < least) least = covered, best = place;
    }
  }
  canvas.fill(best, white, 0.75);
  canvas.text({best.left + 6, best.bottom - 0.3 * tick_size}, level.name,
              {.size = tick_size, .color = gray});
}

// A line at the best epoch, named above the data if there is a legend, which leaves room for it.
void draw_best(Canvas& canvas, const Frame& frame, const Panel& panel) {
  if (panel.metrics.best_epoch == 0) return;
  const double x = frame.at(static_cast<double>(panel.metrics.best_epoch), frame.y.low).x;
  canvas.fill({std::round(x) - 1, frame.box.top, std::round(x) + 1, frame.box.bottom - 1}, gray);
  if (panel.curves[0].name.empty()) return;
  canvas.text({x, frame.box.top - 5}, "best", {.size = 18, .align = 0.5, .color = gray});
}

void mark_best(Canvas& canvas, const Frame& frame, const Curve& curve, std::size_t best) {
  if (best == 0 || !curve.marked || !drawable(curve.values[best - 1])) return;
  const Polyline disc{frame.at(static_cast<double>(best), curve.values[best - 1])};
  canvas.stroke({&disc, 1}, 22, white);
  canvas.stroke({&disc, 1}, 16, curve.color);
}

Frame draw_panel(Canvas& canvas, const Panel& panel, Range y) {
  const Frame frame = draw_frame(canvas, panel, evaluation_range(panel.metrics.evaluations()), y);
  draw_best(canvas, frame, panel);
  for (const Curve& level : panel.levels) {
    draw_dashes(canvas, frame.at(frame.x.low, level.values[0]), frame.box.right, level);
  }
  for (const Curve& curve : panel.curves) draw_curve(canvas, frame, curve);
  for (const Curve& curve : panel.curves) {
    mark_best(canvas, frame, curve, panel.metrics.best_epoch);
  }
  for (const Curve& level : panel.levels) label_level(canvas, frame, level);
  return frame;
}

// Curves with level lines: what an axis must span.
std::vector<Curve> with(std::vector<Curve> curves, const std::vector<Curve>& levels) {
  curves.insert(curves.end(), levels.begin(), levels.end());
  return curves;
}

void draw_losses(Canvas& canvas, const TrainingMetrics& metrics, const Box& outer,
                 double title_size) {
  std::vector<Curve> curves{{"train", metrics.train_losses, train_color},
                            {"validation", metrics.val_losses, validation_color}};
  curves[1].marked = true;
  const std::string title = "Training and validation loss";
  const Panel panel{outer, title, "Epoch", "Loss", curves, metrics, title_size};
  const Frame frame = draw_panel(canvas, panel, range_of(curves));
  mark_lowest(canvas, frame, curves[1], metrics.per_epoch);
}

std::vector<double> percent(std::vector<double> shares) {
  for (double& share : shares) share *= 100;
  return shares;
}

// A classifier is known by its measures.
bool classifies(const TrainingMetrics& metrics) {
  return std::any_of(metrics.val_measures.begin(), metrics.val_measures.end(),
                     [](const auto& measure) { return measure.first == "f1"; });
}

using TopCurves = std::array<std::vector<double>, top_k.size()>;

// A Top-K with K > 1 that is 1 throughout, in training and validation, tells nothing.
// Of no more than K labels (or items) it cannot be less. The only place that leaves one out.
bool tells(const TrainingMetrics& metrics, std::size_t i) {
  const auto below_1 = [](double share) { return share != 1; };
  const auto& train = metrics.train_accuracies[i];
  const auto& validation = metrics.val_accuracies[i];
  return top_k[i] == 1 || std::any_of(train.begin(), train.end(), below_1) ||
         std::any_of(validation.begin(), validation.end(), below_1);
}

// The places in top_k of those that are drawn.
std::vector<std::size_t> told(const TrainingMetrics& metrics) {
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    if (tells(metrics, i)) places.push_back(i);
  }
  return places;
}

std::vector<Curve> top_curves(const TrainingMetrics& metrics, const TopCurves& accuracies) {
  std::vector<Curve> curves;
  for (const std::size_t i : told(metrics)) {
    const bool plain = top_k[i] == 1 && classifies(metrics);
    curves.push_back(
        {plain ? "accuracy" : join("Top-", top_k[i]), percent(accuracies[i]), top_colors[i]});
    curves.back().marked = &accuracies == &metrics.val_accuracies;
  }
  return curves;
}

// Level lines of the baselines, in the accuracy at place i of top_k.
std::vector<Curve> baseline_levels(const TrainingMetrics& metrics, std::size_t i, Color color) {
  std::vector<Curve> levels;
  for (const bert4rec::Baseline& baseline : metrics.facts.baselines) {
    Curve& level = levels.emplace_back();
    level.name = bert4rec::shown(baseline.name, 20);
    level.values = {100 * baseline.accuracies[i]};
    level.color = color, level.width = 3;
    level.dash = levels.size() == 1 ? 12 : 4;
  }
  return levels;
}

// Beside the curves of validation: in one K, so that lines stay few. That by which the best epoch
// was chosen, or 10, or the largest drawn.
std::vector<Curve> top_levels(const TrainingMetrics& metrics) {
  const auto by = static_cast<std::size_t>(metrics.facts.best_by.value_or(bert4rec::Metric::loss));
  std::size_t i = by > 0 ? by - 1 : 2;  // Metric: loss, then the places of top_k
  if (!tells(metrics, i)) i = told(metrics).back();
  std::vector<Curve> levels = baseline_levels(metrics, i, top_colors[i]);
  for (Curve& level : levels) level.name += join(", Top-", top_k[i]);
  return levels;
}

// Measures of a task as curves: those of matching, or those of a classifier in percent.
std::vector<Curve> measure_curves(const TrainingMetrics& metrics) {
  std::vector<Curve> curves;
  const bool of_labels = classifies(metrics);
  if (of_labels) curves.push_back(top_curves(metrics, metrics.val_accuracies).front());
  for (const auto& [name, label] :
       {std::pair("auc", "AUC"), std::pair("ndcg@10", "NDCG@10"), std::pair("rmse", "RMSE"),
        std::pair("mae", "MAE"), std::pair("precision", "precision"), std::pair("recall", "recall"),
        std::pair("f1", "F1")}) {
    for (const auto& [measure, values] : metrics.val_measures) {
      if (measure != name) continue;
      curves.push_back({label, of_labels ? percent(values) : values, top_colors.at(curves.size())});
      curves.back().marked = true;
    }
  }
  return curves;
}

// From 0 to a little above the highest value.
Range share_range(const std::vector<Curve>& curves) {
  const double high = range_of(curves).high;
  return {0, high > 90 && high < 110 ? 103 : high > 0 ? high : 1};
}

// Both accuracies have the same scale, so that they can be compared, unless one would be flattened
// to less than a third of its panel. Where a task has measures of its own, they stand in place of
// the accuracy in training, which a classifier has beside that in validation.
void draw_accuracies(Canvas& canvas, const TrainingMetrics& metrics, const Box& left,
                     const Box& right, double title_size) {
  const auto draw = [&](const Box& outer, std::string title, std::string y_label,
                        const std::vector<Curve>& curves, Range y,
                        const std::vector<Curve>& levels = {}) {
    draw_panel(canvas, {outer, title, "Epoch", y_label, curves, metrics, title_size, levels}, y);
  };
  const std::vector<Curve> measures = measure_curves(metrics);
  if (classifies(metrics)) {
    std::vector<Curve> sides{{"train", percent(metrics.train_accuracies[0]), train_color},
                             {"validation", percent(metrics.val_accuracies[0]), validation_color}};
    sides[1].marked = true;
    const std::vector<Curve> levels = baseline_levels(metrics, 0, gray);
    draw(left, "Accuracy in training and validation", "Accuracy (%)", sides,
         range_of(with(sides, levels)), levels);
    draw(right, "Measures in validation", "Value (%)", measures, range_of(measures));
    return;
  }
  const std::vector<Curve> validation = top_curves(metrics, metrics.val_accuracies);
  const std::vector<Curve> levels = top_levels(metrics);
  Range b = share_range(with(validation, levels));
  if (!measures.empty()) {
    draw(left, "Measures in validation", "Value", measures, share_range(measures));
  } else {
    const std::vector<Curve> train = top_curves(metrics, metrics.train_accuracies);
    Range a = share_range(train);
    const double high = std::max(a.high, b.high);
    if (std::min(a.high, b.high) > high / 3) a = b = {0, high};
    draw(left, "Accuracy in training", "Accuracy (%)", train, a);
  }
  draw(right, "Accuracy in validation", "Accuracy (%)", validation, b, levels);
}

std::vector<double> last_values(const std::vector<Curve>& curves) {
  std::vector<double> values;
  for (const Curve& curve : curves) values.push_back(curve.values.back());
  return values;
}

// A bar from `left`, in units of the x axis, with level lines across it; its value stands above it,
// or above a line that would run through it.
void draw_bar(Canvas& canvas, const Frame& frame, double left, double value, Color color,
              const std::vector<Curve>& levels) {
  const Point foot = frame.at(left, 0);
  const Point head = frame.at(left + 0.37, drawable(value) ? value : 0);
  canvas.fill({foot.x, head.y, head.x, foot.y - 1}, color);
  double top = head.y;
  for (const Curve& level : levels) {
    const double y = frame.at(0, level.values[0]).y;
    draw_dashes(canvas, {foot.x - 4, y}, head.x + 4, level);
    if (y < top && y > top - 34) top = y;
  }
  canvas.text({(foot.x + head.x) / 2, top - 10},
              drawable(value) ? formatted("%.*f", 2, value) : "none", {.size = 21, .align = 0.5});
}

// The Top-K at the end as bars with their values: pairs, or those of validation alone, which have
// the baselines across them; and the measures of a classifier.
void draw_bars(Canvas& canvas, const TrainingMetrics& metrics, const Box& outer,
               double title_size) {
  std::vector<Curve> validation = top_curves(metrics, metrics.val_accuracies);
  const std::vector<Curve> measures = measure_curves(metrics);
  const bool of_labels = classifies(metrics);
  if (of_labels) validation.insert(validation.end(), measures.begin() + 1, measures.end());
  std::vector<Curve> sides{{"validation", last_values(validation), validation_color, 16}};
  if (measures.empty()) {
    const std::vector<Curve> train = top_curves(metrics, metrics.train_accuracies);
    sides.insert(sides.begin(), {"train", last_values(train), train_color, 16});
  }
  const auto count = static_cast<double>(validation.size());
  Ticks names;
  for (const Curve& curve : validation) {
    names.emplace_back(static_cast<double>(names.size()), curve.name);
  }
  const std::vector<Curve> levels = baseline_levels(metrics, told(metrics).back(), ink);
  const Range y{0, 1.06 * share_range(with(sides, levels)).high};
  const std::string after =
      join("After epoch ", epoch_text(metrics.evaluations(), metrics.per_epoch));
  const Panel panel{outer,
                    of_labels ? "Measures at the end" : "Accuracy at the end",
                    after,
                    of_labels ? "Value (%)" : "Accuracy (%)",
                    with(sides, levels),
                    metrics,
                    title_size};
  const Frame frame = draw_frame(canvas, panel, {-0.5, count - 0.5}, y, names);
  const std::vector<std::size_t> places = told(metrics);
  const double first = sides.size() == 2 ? -0.38 : -0.185;
  for (std::size_t side = 0; side < sides.size(); ++side) {
    for (std::size_t i = 0; i < names.size(); ++i) {
      const bool compared = side + 1 == sides.size() && i < places.size();
      draw_bar(canvas, frame, names[i].first + first + 0.39 * static_cast<double>(side),
               sides[side].values[i], sides[side].color,
               compared ? baseline_levels(metrics, places[i], ink) : std::vector<Curve>());
    }
  }
}

// ---- Confusion matrix ---------------------------------------------------------------------------

// A square of cells, [true label, predicted label], whose edges are whole pixels.
struct Matrix {
  double left, top, side;
  std::size_t classes;

  double edge(std::size_t i) const {
    return std::round(side * static_cast<double>(i) / static_cast<double>(classes));
  }
  double middle(std::size_t i) const { return (edge(i) + edge(i + 1)) / 2; }
  double cell() const { return side / static_cast<double>(classes); }
  bool counts_fit() const { return classes <= 20; }
};

std::string number_name(std::size_t c) { return join("#", c + 1); }

// A label as far as Canvas has its characters, else its number.
std::string written_name(std::string_view label, std::size_t c) {
  const bool ascii = std::all_of(label.begin(), label.end(), [](char character) {
    return character >= ' ' && character <= '~';
  });
  if (!ascii || label.empty()) return number_name(c);
  return label.size() <= 24 ? std::string(label) : join(label.substr(0, 21), "...");
}

void draw_cells(Canvas& canvas, const Matrix& matrix, const bert4rec::Confusion& confusion) {
  std::uint64_t most = 0;
  for (std::size_t c = 0; c < matrix.classes; ++c) most = std::max(most, confusion.actual(c));
  const double size = std::min(32.0, 0.8 * matrix.cell() / text_width(join(most), 1));
  for (std::size_t row = 0; row < matrix.classes; ++row) {
    const auto texts = static_cast<double>(std::max<std::uint64_t>(confusion.actual(row), 1));
    for (std::size_t column = 0; column < matrix.classes; ++column) {
      const std::uint64_t count = confusion.count(row, column);
      const double share = static_cast<double>(count) / texts;
      canvas.fill({matrix.left + matrix.edge(column), matrix.top + matrix.edge(row),
                   matrix.left + matrix.edge(column + 1), matrix.top + matrix.edge(row + 1)},
                  train_color, share);
      if (!matrix.counts_fit()) continue;
      const Point at{matrix.left + matrix.middle(column),
                     matrix.top + matrix.middle(row) + 0.35 * size};
      const Color color = count == 0 ? gray : share > 0.7 ? white : ink;
      canvas.text(at, join(count), {.size = size, .align = 0.5, .color = color});
    }
  }
}

void draw_lines(Canvas& canvas, const Matrix& matrix) {
  const auto line = [&](std::size_t i, Color color) {
    const double x = matrix.left + matrix.edge(i), y = matrix.top + matrix.edge(i);
    const double right = matrix.left + matrix.side + 1, bottom = matrix.top + matrix.side + 1;
    canvas.fill({x - 1, matrix.top - 1, x + 1, bottom}, color);
    canvas.fill({matrix.left - 1, y - 1, right, y + 1}, color);
  };
  for (std::size_t i = 1; matrix.counts_fit() && i < matrix.classes; ++i) line(i, light);
  line(0, gray), line(matrix.classes, gray);
}

// Left of the rows and below the columns, there upwards where they are wider than these; of labels
// that stand too close some are skipped.
void draw_names(Canvas& canvas, const Matrix& matrix, const std::vector<std::string>& names,
                double size, bool upwards) {
  const auto step = static_cast<std::size_t>(std::ceil(1.2 * size / matrix.cell()));
  for (std::size_t c = 0; c < names.size(); c += step) {
    canvas.text({matrix.left - 14, matrix.top + matrix.middle(c) + 0.35 * size}, names[c],
                {.size = size, .align = 1});
    const double x = matrix.left + matrix.middle(c), y = matrix.top + matrix.side;
    if (upwards) {
      canvas.text({x + 0.35 * size, y + 14}, names[c],
                  {.size = size, .align = 1, .vertical = true});
    } else {
      canvas.text({x, y + 34}, names[c], {.size = size, .align = 0.5});
    }
  }
}

// What the shades stand for.
void draw_scale(Canvas& canvas, const Matrix& matrix) {
  const double left = matrix.left + matrix.side + 46, right = left + 26;
  const double height = std::min(matrix.side, 600.0), bottom = matrix.top + matrix.side;
  for (double i = 0; i < height; ++i) {
    canvas.fill({left, bottom - i - 1, right, bottom - i}, train_color, (i + 1) / height);
  }
  for (const double share : {0.0, 0.5, 1.0}) {
    const double y = std::round(bottom - share * height);
    canvas.fill({left, y - 1, right + 8, y + 1}, gray);
    canvas.text({right + 16, y + 0.35 * tick_size}, formatted("%.*f%%", 0, 100 * share),
                {.size = tick_size, .color = gray});
  }
  canvas.text({right + 116, bottom - height / 2}, "Share of the true label",
              {.size = label_size, .align = 0.5, .vertical = true});
}

}  // namespace

// ---- Figures ------------------------------------------------------------------------------------

void check_curves(const TrainingMetrics& metrics) {
  require(metrics.evaluations() > 0, "no epochs to draw");
  const auto check = [&](std::string_view name, const std::vector<double>& values) {
    require(values.size() == metrics.evaluations(), name, " has ", values.size(),
            " values, expected ", metrics.evaluations());
  };
  check("val_losses", metrics.val_losses);
  check("learning_rates", metrics.learning_rates);
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    check(join("train_accuracies ", top_k[i]), metrics.train_accuracies[i]);
    check(join("val_accuracies ", top_k[i]), metrics.val_accuracies[i]);
  }
  for (const auto& [name, values] : metrics.val_measures) check(name, values);
}

std::string heading(const TrainingMetrics& metrics) {
  std::string text;
  const auto add = [&](std::string_view part) { text += join(text.empty() ? "" : ", ", part); };
  const bert4rec::RunFacts& facts = metrics.facts;
  if (!facts.data.empty()) add(join("data ", bert4rec::shown(facts.data, 40)));
  if (!facts.run.empty()) add(join("run ", bert4rec::shown(facts.run, 50)));
  if (metrics.best_epoch > 0) add(metrics.best_text());
  return text;
}

namespace {

// What a heading takes of a picture, which one without text does not have.
std::size_t heading_height(std::string_view heading) { return heading.empty() ? 0 : 56; }

// As large as it fits.
void draw_heading(Canvas& canvas, std::string_view heading) {
  const double room = static_cast<double>(canvas.width()) - 120;
  const double size = std::min(label_size, room / std::max(1e-9, text_width(heading, 1)));
  canvas.text({60, 42}, heading, {.size = size, .color = gray});
}

// Of a run: draw(canvas, at) puts a panel at(place), a place of a picture without heading.
template <class Draw>
Canvas draw_figure(const TrainingMetrics& metrics, std::size_t width, std::size_t height,
                   Draw&& draw) {
  check_curves(metrics);
  const std::string text = heading(metrics);
  Canvas canvas(width, height + heading_height(text));
  draw_heading(canvas, text);
  draw(canvas, [top = static_cast<double>(heading_height(text))](const Box& box) {
    return Box{box.left, top + box.top, box.right, top + box.bottom};
  });
  return canvas;
}

}  // namespace

Canvas loss_figure(const TrainingMetrics& metrics) {
  return draw_figure(metrics, 1800, 1100, [&](Canvas& canvas, const auto& at) {
    draw_losses(canvas, metrics, at({0, 0, 1800, 1100}), 34);
  });
}

Canvas accuracy_figure(const TrainingMetrics& metrics) {
  return draw_figure(metrics, 2000, 1000, [&](Canvas& canvas, const auto& at) {
    draw_accuracies(canvas, metrics, at({0, 0, 1000, 1000}), at({1000, 0, 2000, 1000}), 34);
  });
}

Canvas combined_figure(const TrainingMetrics& metrics) {
  return draw_figure(metrics, 2000, 1500, [&](Canvas& canvas, const auto& at) {
    draw_losses(canvas, metrics, at({0, 0, 1000, 750}), 30);
    draw_accuracies(canvas, metrics, at({1000, 0, 2000, 750}), at({0, 750, 1000, 1500}), 30);
    draw_bars(canvas, metrics, at({1000, 750, 2000, 1500}), 30);
  });
}

Canvas learning_figure(const TrainingMetrics& metrics) {
  const std::size_t reach = std::clamp<std::size_t>(metrics.evaluations() / 40, 1, 500);
  const std::string means =
      join("mean over ", 2 * reach + 1, metrics.per_epoch == 1 ? " epochs" : " evaluations");
  const std::vector<double>& rates = metrics.learning_rates;
  const auto least = lowest(rates);
  const bool rate_varies = std::any_of(rates.begin(), rates.end(), [&](double rate) {
    return drawable(rate) && rate != rates[*least];
  });
  const double height = rate_varies ? 860 : 1200;
  std::vector<Curve> curves{
      {"train", metrics.train_losses, train_color, 2.5, 0.45},
      {"validation", metrics.val_losses, validation_color, 2.5, 0.45},
      {"train, " + means, moving_average(metrics.train_losses, reach), train_color},
      {"validation, " + means, moving_average(metrics.val_losses, reach), validation_color}};
  curves[1].marked = true;
  return draw_figure(metrics, 1800, 1200, [&](Canvas& canvas, const auto& at) {
    const std::string x_label = rate_varies ? "" : "Epoch";
    draw_panel(canvas,
               {at({0, 0, 1800, height}), "Learning curve", x_label, "Loss", curves, metrics, 34},
               range_of(curves));
    if (!rate_varies) return;
    const std::vector<Curve> rate{{"", rates, ink}};
    draw_panel(canvas, {at({0, height, 1800, 1200}), "", "Epoch", "Learning rate", rate, metrics},
               range_of(rate));
  });
}

Canvas confusion_figure(const bert4rec::Confusion& confusion,
                        const std::vector<std::string>& labels, std::string_view part,
                        std::string_view heading) {
  const std::size_t classes = confusion.classes();
  require(classes > 0 && labels.size() == classes, "confusion matrix: ", labels.size(),
          " names for ", classes, " labels");
  std::vector<std::string> names;
  bool numbers = false;
  for (std::size_t c = 0; c < classes; ++c) {
    names.push_back(written_name(labels[c], c));
    numbers = numbers || names[c] == number_name(c);
  }
  const auto top = static_cast<double>(heading_height(heading));
  Matrix matrix{0, top + 100, std::min(1200.0, 240.0 * static_cast<double>(classes)), classes};
  const double size = std::clamp(0.8 * matrix.cell(), 11.0, label_size);
  double widest = 0;
  for (const std::string& name : names) widest = std::max(widest, text_width(name, size));
  const bool upwards = widest > 0.9 * matrix.cell();
  matrix.left = std::round(110 + widest);
  const double below = matrix.top + matrix.side + (upwards ? 14 + widest : 40);
  const std::string title =
      join("Confusion matrix", part.empty() ? "" : join(" (", part, ")"), ", accuracy ",
           formatted("%.*f", 2, 100 * confusion.accuracy()), "%");
  const std::string note =
      numbers ? "#1, #2 ...: labels that cannot be written here, in the order of labels.json" : "";
  const double width =
      std::max({matrix.left + matrix.side + 230, 120 + text_width(title, 34),
                120 + text_width(note, tick_size), 120 + text_width(heading, label_size)});
  Canvas canvas(static_cast<std::size_t>(width),
                static_cast<std::size_t>(below + (numbers ? 120 : 76)));
  draw_heading(canvas, heading);
  canvas.text({60, top + 56}, title, {.size = 34, .weight = 0.11});
  draw_cells(canvas, matrix, confusion);
  draw_lines(canvas, matrix);
  draw_names(canvas, matrix, names, size, upwards);
  draw_scale(canvas, matrix);
  canvas.text({60, matrix.top + matrix.side / 2}, "True label",
              {.size = label_size, .align = 0.5, .vertical = true});
  canvas.text({matrix.left + matrix.side / 2, below + 40}, "Predicted label",
              {.size = label_size, .align = 0.5});
  canvas.text({60, below + 90}, note, {.size = tick_size, .color = gray});
  return canvas;
}

std::vector<std::string> draw_plots(const TrainingMetrics& metrics, const bert4rec::Path& folder,
                                    Format format) {
  check_curves(metrics);
  bert4rec::make_folder(folder);
  Canvas (*const figures[])(const TrainingMetrics&) = {loss_figure, accuracy_figure,
                                                       combined_figure, learning_figure};
  std::vector<std::string> names;
  const auto write = [&](std::string name, const std::string& bytes) {
    bert4rec::write_file(folder / name, bytes);
    names.push_back(std::move(name));
  };
  for (std::size_t i = 0; i < std::size(figures); ++i) {
    const Canvas canvas = figures[i](metrics);
    const bert4rec::Path path = bert4rec::detail::picture_files.at(i);
    const std::string name = path.filename().string();
    if (format != Format::svg) write(name + ".png", canvas.png());
    if (format != Format::png) write(name + ".svg", canvas.svg());
  }
  return names;
}

}  // namespace plots
