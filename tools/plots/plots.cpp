#include "plots/plots.hpp"

namespace plots {

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
};

using Ticks = std::vector<std::pair<double, std::string>>;

struct Panel {
  Box outer;
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
  double title_size = 30;
};

constexpr double label_size = 24, tick_size = 22;

// The place of the data in a picture.
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

void draw_legend(Canvas& canvas, Point at, const std::vector<Curve>& curves) {
  for (const Curve& curve : curves) {
    if (curve.name.empty()) continue;
    const double thick = std::max(5.0, curve.width), y = at.y - 0.35 * label_size;
    const Polyline sample{{at.x + thick / 2, y}, {at.x + 38 - thick / 2, y}};
    canvas.stroke({&sample, 1}, thick, curve.color, curve.alpha);
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
  Box box{0, top + (legend ? 52 : 0), outer.right - 40,
          outer.bottom - (panel.x_label.empty() ? 50 : 92)};
  const Ticks y_ticks = labelled_ticks(y, box.height(), 50, 0);
  double widest = 48;
  for (const auto& tick : y_ticks) widest = std::max(widest, text_width(tick.second, tick_size));
  box.left = std::round(outer.left + 76 + std::max(84.0, widest));
  const Ticks x_ticks = given_x_ticks ? *given_x_ticks : labelled_ticks(x, box.width(), 100, 1);
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

// Dots where epochs are few, and where one stands alone.
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

Range epoch_range(std::size_t epochs) {
  const auto last = static_cast<double>(epochs);
  const double margin = epochs == 1 ? 0.5 : (last - 1) / 60;
  return {1 - margin, last + margin};
}

Frame draw_panel(Canvas& canvas, const Panel& panel, Range y) {
  const Frame frame = draw_frame(canvas, panel, epoch_range(panel.curves[0].values.size()), y);
  for (const Curve& curve : panel.curves) draw_curve(canvas, frame, curve);
  return frame;
}

// ---- The lowest value ---------------------------------------------------------------------------

// How many pixels of a box are coloured: text and grid are grey, so these are curves.
std::size_t curve_pixels(const Canvas& canvas, const Box& box) {
  std::size_t count = 0;
  for (auto y = static_cast<std::size_t>(box.top); y < static_cast<std::size_t>(box.bottom); ++y) {
    for (auto x = static_cast<std::size_t>(box.left); x < static_cast<std::size_t>(box.right);
         ++x) {
      const auto [red, green, blue] = canvas.pixel(x, y);
      count += std::max({red, green, blue}) - std::min({red, green, blue}) > 20;
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
        const double left = at.x - align * width;
        const Box box{left - 6, y - height / 2, left + width + 6, y + height / 2};
        if (box.left < area.left || box.right > area.right + 30) continue;
        if (box.top < area.top || box.bottom > area.bottom) continue;
        const std::size_t covered = curve_pixels(canvas, box);
        if (covered < least) least = covered, best = box;
      }
    }
    if (least == 0) break;
  }
  return best;
}

// A ring on the lowest value, with its epoch.
void mark_lowest(Canvas& canvas, const Frame& frame, const Curve& curve) {
  const auto epoch = lowest(curve.values);
  if (!epoch) return;
  const double value = curve.values[*epoch];
  const Point at = frame.at(static_cast<double>(*epoch + 1), value);
  const std::string label = join("lowest: ", formatted("%.*g", 4, value), " at epoch ", *epoch + 1);
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

void draw_losses(Canvas& canvas, const TrainingMetrics& metrics, const Box& outer,
                 double title_size) {
  const std::vector<Curve> curves{{"train", metrics.train_losses, train_color},
                                  {"validation", metrics.val_losses, validation_color}};
  const Panel panel{outer, "Training and validation loss", "Epoch", "Loss", curves, title_size};
  mark_lowest(canvas, draw_panel(canvas, panel, range_of(curves)), curves[1]);
}

std::vector<double> percent(std::vector<double> shares) {
  for (double& share : shares) share *= 100;
  return shares;
}

using TopCurves = std::array<std::vector<double>, top_k.size()>;

std::vector<Curve> top_curves(const TopCurves& accuracies) {
  std::vector<Curve> curves;
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    curves.push_back({join("Top-", top_k[i]), percent(accuracies[i]), top_colors[i]});
  }
  return curves;
}

// Measures of a task that are shares, as curves: those of matching.
std::vector<Curve> measure_curves(const TrainingMetrics& metrics) {
  std::vector<Curve> curves;
  for (const auto& [name, label] : {std::pair("auc", "AUC"), std::pair("ndcg@10", "NDCG@10"),
                                    std::pair("rmse", "RMSE"), std::pair("mae", "MAE")}) {
    for (const auto& [measure, values] : metrics.val_measures) {
      if (measure != name) continue;
      curves.push_back({label, values, top_colors.at(curves.size())});
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
// the accuracy in training.
void draw_accuracies(Canvas& canvas, const TrainingMetrics& metrics, const Box& left,
                     const Box& right, double title_size) {
  const std::vector<Curve> validation = top_curves(metrics.val_accuracies);
  if (const std::vector<Curve> measures = measure_curves(metrics); !measures.empty()) {
    const Panel shares{left, "Measures in validation", "Epoch", "Value", measures, title_size};
    draw_panel(canvas, shares, share_range(measures));
    const Panel ranks{right,     "Accuracy in validation", "Epoch", "Accuracy (%)", validation,
                      title_size};
    draw_panel(canvas, ranks, share_range(validation));
    return;
  }
  const std::vector<Curve> train = top_curves(metrics.train_accuracies);
  Range a = share_range(train), b = share_range(validation);
  const double high = std::max(a.high, b.high);
  if (std::min(a.high, b.high) > high / 3) a = b = {0, high};
  draw_panel(canvas, {left, "Accuracy in training", "Epoch", "Accuracy (%)", train, title_size}, a);
  draw_panel(canvas,
             {right, "Accuracy in validation", "Epoch", "Accuracy (%)", validation, title_size}, b);
}

// The Top-K of the last epoch as bars with their values: pairs, or those of validation alone.
void draw_bars(Canvas& canvas, const TrainingMetrics& metrics, const Box& outer,
               double title_size) {
  std::vector<Curve> sides{{"validation", {}, validation_color, 16}};
  std::vector<const TopCurves*> tops{&metrics.val_accuracies};
  if (measure_curves(metrics).empty()) {
    sides.insert(sides.begin(), {"train", {}, train_color, 16});
    tops.insert(tops.begin(), &metrics.train_accuracies);
  }
  Ticks names;
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    names.emplace_back(static_cast<double>(i), join("Top-", top_k[i]));
    for (std::size_t side = 0; side < sides.size(); ++side) {
      sides[side].values.push_back(100 * (*tops[side])[i].back());
    }
  }
  const Range y{0, 1.06 * share_range(sides).high};
  const std::string after = join("After epoch ", metrics.evaluations());
  const Panel panel{outer, "Accuracy at the end", after, "Accuracy (%)", sides, title_size};
  const Frame frame = draw_frame(canvas, panel, {-0.5, 3.5}, y, names);
  for (std::size_t side = 0; side < sides.size(); ++side) {
    for (std::size_t i = 0; i < top_k.size(); ++i) {
      const double value = sides[side].values[i], first = sides.size() == 2 ? -0.38 : -0.185;
      const double left = static_cast<double>(i) + first + 0.39 * static_cast<double>(side);
      const Point foot = frame.at(left, 0);
      const Point head = frame.at(left + 0.37, drawable(value) ? value : 0);
      canvas.fill({foot.x, head.y, head.x, foot.y - 1}, sides[side].color);
      canvas.text({(foot.x + head.x) / 2, head.y - 10},
                  drawable(value) ? formatted("%.*f", 2, value) : "none",
                  {.size = 21, .align = 0.5});
    }
  }
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
}

Canvas loss_figure(const TrainingMetrics& metrics) {
  check_curves(metrics);
  Canvas canvas(1800, 1100);
  draw_losses(canvas, metrics, {0, 0, 1800, 1100}, 34);
  return canvas;
}

Canvas accuracy_figure(const TrainingMetrics& metrics) {
  check_curves(metrics);
  Canvas canvas(2000, 1000);
  draw_accuracies(canvas, metrics, {0, 0, 1000, 1000}, {1000, 0, 2000, 1000}, 34);
  return canvas;
}

Canvas combined_figure(const TrainingMetrics& metrics) {
  check_curves(metrics);
  Canvas canvas(2000, 1500);
  draw_losses(canvas, metrics, {0, 0, 1000, 750}, 30);
  draw_accuracies(canvas, metrics, {1000, 0, 2000, 750}, {0, 750, 1000, 1500}, 30);
  draw_bars(canvas, metrics, {1000, 750, 2000, 1500}, 30);
  return canvas;
}

Canvas learning_figure(const TrainingMetrics& metrics) {
  check_curves(metrics);
  const std::size_t reach = std::clamp<std::size_t>(metrics.evaluations() / 40, 1, 500);
  const std::string means = join("mean over ", 2 * reach + 1, " epochs");
  const std::vector<double>& rates = metrics.learning_rates;
  const auto least = lowest(rates);
  const bool rate_varies = std::any_of(rates.begin(), rates.end(), [&](double rate) {
    return drawable(rate) && rate != rates[*least];
  });
  Canvas canvas(1800, 1200);
  const double height = rate_varies ? 860 : 1200;
  const std::vector<Curve> curves{
      {"train", metrics.train_losses, train_color, 2.5, 0.45},
      {"validation", metrics.val_losses, validation_color, 2.5, 0.45},
      {"train, " + means, moving_average(metrics.train_losses, reach), train_color},
      {"validation, " + means, moving_average(metrics.val_losses, reach), validation_color}};
  const Panel losses{
      {0, 0, 1800, height}, "Learning curve", rate_varies ? "" : "Epoch", "Loss", curves, 34};
  draw_panel(canvas, losses, range_of(curves));
  if (rate_varies) {
    const Panel panel{{0, height, 1800, 1200}, "", "Epoch", "Learning rate", {{"", rates, ink}}};
    draw_panel(canvas, panel, range_of(panel.curves));
  }
  return canvas;
}

void draw_plots(const TrainingMetrics& metrics, const bert4rec::Path& folder) {
  check_curves(metrics);
  bert4rec::make_folder(folder);
  Canvas (*const figures[])(const TrainingMetrics&) = {loss_figure, accuracy_figure,
                                                       combined_figure, learning_figure};
  for (std::size_t i = 0; i < std::size(figures); ++i) {
    const bert4rec::Path name = bert4rec::detail::picture_files.at(i);
    bert4rec::write_file(folder / name.filename(), figures[i](metrics).png());
  }
}

}  // namespace plots
