// The pictures of a training run: the parts they are made of, what can be seen on them, the files,
// and what `visualize` says of metrics that it cannot draw.

#include <cstdio>

#include "bert4rec.hpp"
#include "check.hpp"
#include "plots/plots.hpp"

using namespace bert4rec;
using namespace plots;

namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN();

// ---- Parts --------------------------------------------------------------------------------------

std::string labels(double low, double high, std::size_t most) {
  const std::vector<double> ticks = round_ticks(low, high, most);
  check(ticks.size() >= 2 && ticks.size() <= std::max<std::size_t>(most, 3), "number of ticks");
  check(ticks.front() <= low && ticks.back() >= high, "ticks cover the range");
  std::string text;
  for (const double tick : ticks) text += tick_label(tick, ticks[1] - ticks[0]) + " ";
  return text;
}

void check_ticks() {
  check_equal(labels(0, 1, 11), "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1.0 ");
  check_equal(labels(0, 1, 10), "0 0.2 0.4 0.6 0.8 1.0 ");
  check_equal(labels(0.3, 8.2, 10), "0 1 2 3 4 5 6 7 8 9 ");
  check_equal(labels(0.3, 8.2, 5), "0 5 10 ");
  check_equal(labels(-3, 7, 8), "-4 -2 0 2 4 6 8 ");
  check_equal(labels(-1.1, 1.1, 1), "-2 0 2 ");  // three at least
  check_equal(labels(1, 10000, 9), "0 2000 4000 6000 8000 10000 ");
  check_equal(labels(1e-5, 4.9e-5, 6), "1e-5 2e-5 3e-5 4e-5 5e-5 ");
  check_equal(labels(0, 0.001, 3), "0 0.0005 0.0010 ");
  check_equal(labels(9e5, 1.5e7, 5), "0 5e6 1.0e7 1.5e7 ");
  check_equal(labels(1e6, 1e6 + 2, 3), "1000000 1000001 1000002 ");
  check_equal(labels(-1e289, 1e289, 5), "-1.0e289 -5e288 0 5e288 1.0e289 ");
  check_equal(round_ticks(0, 1, 11)[3], 0.3);  // the very number, not 3 * 0.1
}

// By column of pixels: the first, lowest, highest and last value.
std::map<double, std::array<double, 4>> columns(const Polyline& line) {
  std::map<double, std::array<double, 4>> found;
  for (const auto& [x, y] : line) {
    auto& [first, low, high, last] =
        found.try_emplace(std::floor(x), std::array{y, y, y, y}).first->second;
    low = std::min(low, y), high = std::max(high, y), last = y;
  }
  return found;
}

// 20 to 21 noisy points a column of pixels, with one spike to either side.
void check_decimate() {
  Polyline points;
  const Key key = make_key(3);
  for (std::size_t i = 0; i < 10'000; ++i) {
    points.push_back({0.049 * static_cast<double>(i), truncated_normal(key, i)});
  }
  points[4321].y = 77, points[7777].y = -88;
  const Polyline kept = decimate(points);
  check(kept.size() <= 4 * 491 && kept.size() > 1000, "at most four a column");
  check(columns(points) == columns(kept),
        "every column keeps its first, lowest, highest and last value");
  for (std::size_t i = 1; i < kept.size(); ++i) check(kept[i - 1].x < kept[i].x, "in order");
  const Polyline sparse{{0.5, 3}, {1.5, 1}, {2.5, 2}};
  check(decimate(sparse) == sparse, "few points stay as they are");
  check(decimate({}).empty(), "no points");
}

void check_averages() {
  std::vector<double> line(40), spike(40);
  for (std::size_t i = 0; i < 40; ++i) line[i] = 3 - 0.5 * static_cast<double>(i);
  check(moving_average(line, 7) == line, "a straight line is its own mean, to its ends");
  spike[20] = 11;
  const std::vector<double> means = moving_average(spike, 5);
  for (std::size_t i = 0; i < 40; ++i) check_equal(means[i], i >= 15 && i <= 25 ? 1.0 : 0.0);
  const std::vector<double> gap = moving_average(std::vector<double>{1, 2, none, 4, 6}, 1);
  check(std::isnan(gap[2]), "a gap stays");
  check_equal(gap[1], 1.5);
  check_equal(gap[3], 5.0);
  check(lowest(std::vector<double>{none, 3, 1, -INFINITY, 1}) == 2u, "the first lowest");
  check(!lowest(std::vector<double>{none, INFINITY}), "nothing to mark");
}

// ---- Pictures -----------------------------------------------------------------------------------

// A run whose curves keep apart.
TrainingMetrics sample(std::size_t epochs) {
  TrainingMetrics metrics;
  for (std::size_t i = 0; i < epochs; ++i) {
    const double done = static_cast<double>(i) / static_cast<double>(epochs);
    metrics.train_losses.push_back(1 + 6 * std::exp(-5 * done));
    metrics.val_losses.push_back(2 + 6 * std::exp(-5 * done) + done * done);
    metrics.learning_rates.push_back(1e-3 * (1 - done));
    metrics.epoch_seconds.push_back(1);
    for (std::size_t k = 0; k < top_k.size(); ++k) {
      const double level = 0.2 + 0.1 * static_cast<double>(k);
      metrics.train_accuracies[k].push_back(level + 0.2 * done);
      metrics.val_accuracies[k].push_back(level);
    }
  }
  return metrics;
}

// A run whose heading, best epoch and baselines are known.
TrainingMetrics told(TrainingMetrics metrics, std::size_t best) {
  metrics.best_epoch = best;
  metrics.facts = {"demo", "output/demo", Metric::top10, {}};
  metrics.facts.baselines = {{"popularity", {0.05, 0.15, 0.25, 0.35}},
                             {"Markov", {0.1, 0.2, 0.33, 0.6}}};
  return metrics;
}

// Calls change(values) for every curve but the learning rate.
template <class Change>
TrainingMetrics changed(TrainingMetrics metrics, Change&& change) {
  change(metrics.train_losses), change(metrics.val_losses);
  for (auto& values : metrics.train_accuracies) change(values);
  for (auto& values : metrics.val_accuracies) change(values);
  return metrics;
}

// The pixels of exactly this colour, and where they lie; below the legend (y > 130) if asked.
struct Seen {
  std::size_t count = 0, left = 9999, right = 0, top = 9999, bottom = 0;
};
Seen seen(const Canvas& canvas, Color color, bool below_legend = false) {
  Seen found;
  for (std::size_t y = below_legend ? 130 : 0; y < canvas.height(); ++y) {
    for (std::size_t x = 0; x < canvas.width(); ++x) {
      if (canvas.pixel(x, y) != color) continue;
      ++found.count;
      found.left = std::min(found.left, x), found.right = std::max(found.right, x);
      found.top = std::min(found.top, y), found.bottom = std::max(found.bottom, y);
    }
  }
  return found;
}

// Each curve shows in its colour: `pixels` more than in the picture of a run without any value.
void check_figures(const TrainingMetrics& metrics, std::size_t pixels) {
  const TrainingMetrics blank = changed(
      metrics, [](std::vector<double>& values) { std::fill(values.begin(), values.end(), none); });
  std::vector<Color> sides{train_color, validation_color},
      tops(top_colors.begin(), top_colors.end());
  std::vector<Color> both = sides;
  both.insert(both.end(), tops.begin(), tops.end());
  const auto check_figure = [&](auto figure, const std::vector<Color>& colors) {
    const Canvas drawn = figure(metrics), empty = figure(blank);
    check(drawn.width() >= 1600 && drawn.height() >= 900, "size");
    for (const Color& color : colors) {
      const std::size_t before = seen(empty, color).count, after = seen(drawn, color).count;
      if (after < before + pixels) check_equal(join(after), join("at least ", before + pixels));
    }
  };
  check_figure(loss_figure, sides);
  check_figure(accuracy_figure, tops);
  check_figure(combined_figure, both);
  check_figure(learning_figure, sides);
}

void check_constant() {
  const TrainingMetrics metrics = changed(sample(200), [](std::vector<double>& values) {
    std::fill(values.begin(), values.end(), values[0]);
  });
  check_figures(metrics, 1500);
  const Seen line = seen(loss_figure(metrics), train_color, true);
  check(line.right - line.left > 1500, "from side to side");
  check(line.bottom - line.top < 4, "level");
  TrainingMetrics one_value = sample(50);  // no range at all
  one_value.train_losses.assign(50, 0.3), one_value.val_losses.assign(50, 0.3);
  const Seen middle = seen(loss_figure(one_value), validation_color, true);
  check(middle.count > 3000 && middle.top > 400 && middle.bottom < 700, "in the middle");
}

void check_gaps() {
  const TrainingMetrics metrics = changed(sample(200), [](std::vector<double>& values) {
    std::fill(values.begin() + 90, values.begin() + 110, none);
    values[30] = values[32] = INFINITY;  // leaves 31 alone
  });
  check_figures(metrics, 1000);
  const Canvas canvas = loss_figure(metrics), whole = loss_figure(sample(200));
  const Seen line = seen(canvas, train_color, true);
  const auto in_the_middle = [&](const Canvas& picture) {
    std::size_t count = 0;
    for (std::size_t x = (line.left + line.right) / 2 - 60; x < (line.left + line.right) / 2 + 60;
         ++x) {
      for (std::size_t y = line.top; y <= line.bottom; ++y) {
        count += picture.pixel(x, y) == train_color;
      }
    }
    return count;
  };
  check_equal(in_the_middle(canvas), std::size_t{0});
  check(in_the_middle(whole) >= 120, "no gap without missing values");
}

void check_huge() {
  TrainingMetrics metrics = sample(200);
  metrics.train_losses[100] = 1e285, metrics.val_losses[101] = -3e289,
  metrics.val_losses[9] = 1.7e308, metrics.val_losses[11] = -1.7e308;
  metrics.train_accuracies[0][7] = 1e12, metrics.val_accuracies[3][8] = -1e200;
  check(seen(loss_figure(metrics), validation_color, true).count > 3000, "a line with a spike");
  check_figures(changed(sample(50), [](auto& values) { values.assign(50, 4e-310); }), 0);
  check(seen(combined_figure(metrics), train_color).count > 1500, "drawn");
  check(seen(learning_figure(metrics), validation_color).count > 1500, "drawn");
}

// Below and right in the combined figure: areas are as the sums of the last values.
void check_bars() {
  TrainingMetrics metrics = sample(3);
  for (std::size_t k = 0; k < top_k.size(); ++k) {
    metrics.train_accuracies[k][2] = 0.8 + 0.05 * static_cast<double>(k);  // 0.875 on average
    metrics.val_accuracies[k][2] = 0.1 + 0.1 * static_cast<double>(k);     // 0.25
  }
  const Canvas canvas = combined_figure(metrics);
  double train = 0, validation = 0;
  for (std::size_t y = 860; y < 1500; ++y) {
    for (std::size_t x = 1100; x < 2000; ++x) {
      train += canvas.pixel(x, y) == train_color;
      validation += canvas.pixel(x, y) == validation_color;
    }
  }
  check(validation > 20'000, "bars");
  check(std::abs(train / validation / 3.5 - 1) < 0.03, "in proportion");
}

// The ring is the lowest thing of its colour: an arc below white below an arc.
void check_mark() {
  TrainingMetrics metrics = sample(200);
  metrics.val_losses[149] = 0.5;
  const Canvas canvas = loss_figure(metrics);
  const Seen found = seen(canvas, validation_color, true);
  std::size_t x = found.left;
  while (canvas.pixel(x, found.bottom) != validation_color) ++x;
  check(canvas.pixel(x, found.bottom - 10) == white, "white inside the ring");
  check(canvas.pixel(x, found.bottom - 19) == validation_color, "the ring's upper arc");
  const double share = static_cast<double>(x - 160) / 1600;
  check(std::abs(share - 0.75) < 0.03, "at epoch 150 of 200");
}

// How many pixels of a colour lie in a square.
std::size_t count_in(const Canvas& canvas, Color color, std::size_t left, std::size_t top,
                     std::size_t side) {
  std::size_t count = 0;
  for (std::size_t y = top; y < top + side; ++y) {
    for (std::size_t x = left; x < left + side; ++x) count += canvas.pixel(x, y) == color;
  }
  return count;
}

// A run whose Top-K is 1 from some K on.
TrainingMetrics sure_from(std::size_t k, TrainingMetrics metrics) {
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    if (top_k[i] < k) continue;
    for (double& share : metrics.train_accuracies[i]) share = 1;
    for (double& share : metrics.val_accuracies[i]) share = 1;
  }
  return metrics;
}

// ---- What a run tells beside its curves ---------------------------------------------------------

void check_heading() {
  TrainingMetrics metrics = told(sample(9), 6);
  check_equal(heading(metrics), "data demo, run output/demo, best epoch 6 by top10");
  metrics.per_epoch = 3, metrics.facts = {};
  check_equal(heading(metrics), "best epoch 2");  // a file of an older version
  check_equal(heading(sample(9)), "");
  metrics.facts.data = std::string(90, 'd'), metrics.facts.run = "a\nb";
  check_equal(heading(metrics),
              join("data ", std::string(40, 'd'), "..., run a\\x0ab, best epoch 2"));
  const auto with_heading = [](const std::string& data) {
    TrainingMetrics one = sample(9);
    one.facts.data = data;
    return one;
  };
  for (const auto figure : {loss_figure, accuracy_figure, combined_figure, learning_figure}) {
    const Canvas plain = figure(sample(9)), headed = figure(with_heading("demo"));
    check_equal(headed.height(), plain.height() + 56);
    bool below = true;  // all else as it is without
    for (std::size_t y = 0; y < plain.height(); ++y) {
      for (std::size_t x = 0; x < plain.width(); ++x) {
        below = below && plain.pixel(x, y) == headed.pixel(x, y + 56);
      }
    }
    check(below, "a heading moves the rest down");
    check(headed.png() != figure(with_heading("other")).png(), "the name shows");
  }
  const Canvas wide = loss_figure(with_heading(std::string(40, 'W')));
  check(count_in(wide, gray, 1750, 0, 50) == 0, "a heading fits");
}

// In each panel a grey line of two columns, and on curves of validation a dot.
void check_best() {
  const auto line = [](const Canvas& canvas) {
    std::size_t found = 0;
    for (std::size_t x = 200; x < canvas.width(); ++x) {
      std::size_t count = 0;
      for (std::size_t y = 200; y < 1000; ++y) count += canvas.pixel(x, y) == gray;
      if (count > 600) found = x;
    }
    return found;
  };
  const std::size_t early = line(loss_figure(told(sample(200), 50)));
  const std::size_t late = line(loss_figure(told(sample(200), 150)));
  const Seen curve = seen(loss_figure(sample(200)), train_color, true);
  const double epochs = static_cast<double>(late - early) / 100 * 199;
  check(std::abs(epochs - static_cast<double>(curve.right - curve.left)) < 12, "at their epochs");
  const std::size_t last = line(loss_figure(told(sample(200), 200)));
  check(last + 6 > curve.right && last < curve.right + 6, "the last at the end of the curve");
  check_equal(line(loss_figure(sample(200))), std::size_t{0});
  for (const auto figure : {loss_figure, accuracy_figure, combined_figure, learning_figure}) {
    check(figure(told(sample(200), 50)).png() != figure(told(sample(200), 51)).png(), "moves");
  }
  // The accuracies in validation are level, so that a dot is what goes beyond the line.
  const Canvas dots = accuracy_figure(told(sample(200), 100));
  for (const Color& color : top_colors) {
    Seen dot;
    for (std::size_t y = 180; y < dots.height() - 100; ++y) {
      for (std::size_t x = 1480; x < 1640; ++x) {
        if (dots.pixel(x, y) != color) continue;
        dot.top = std::min(dot.top, y), dot.bottom = std::max(dot.bottom, y);
      }
    }
    check(dot.bottom - dot.top >= 13, "a dot");
  }
}

// How many runs of a colour a row of pixels has.
std::size_t runs(const Canvas& canvas, Color color, std::size_t y, std::size_t left,
                 std::size_t right) {
  std::size_t count = 0;
  for (std::size_t x = left; x < right; ++x) {
    count += canvas.pixel(x, y) == color && canvas.pixel(x - 1, y) != color;
  }
  return count;
}

// Rows of the right half of an accuracy figure with dashes of a colour: more than 30 runs.
std::vector<std::size_t> dashed_rows(const Canvas& canvas, Color color) {
  std::vector<std::size_t> rows;
  for (std::size_t y = 180; y < canvas.height(); ++y) {
    const bool dashed = runs(canvas, color, y, 1001, canvas.width()) > 30;
    if (dashed && (rows.empty() || y > rows.back() + 5)) rows.push_back(y);
  }
  return rows;
}

void check_levels() {
  TrainingMetrics metrics = told(sample(200), 100);
  const auto rows = dashed_rows(accuracy_figure(metrics), top_colors[2]);
  check_equal(rows.size(), std::size_t{2});  // 33 % above 25 %, below the Top-10 at 40 %
  const Canvas canvas = accuracy_figure(metrics);
  const auto level = [&](std::size_t k) {  // of a curve in validation, left of the dots
    for (std::size_t y = 180; y < canvas.height(); ++y) {
      if (canvas.pixel(1400, y) == top_colors[k]) return static_cast<double>(y);
    }
    return 0.0;
  };
  const double point = (level(0) - level(1)) / 10;  // 20 % and 30 %
  check(std::abs(static_cast<double>(rows[1] - rows[0]) - 8 * point) < 3, "8 % apart");
  check(std::abs(level(1) - static_cast<double>(rows[0]) - 3 * point) < 3, "33 % above Top-5's 30");
  metrics.facts.best_by = Metric::top20;
  const Canvas top20 = accuracy_figure(metrics);
  check(dashed_rows(top20, top_colors[2]).empty(), "another K");
  const auto high = dashed_rows(top20, top_colors[3]);
  check_equal(high.size(), std::size_t{2});
  check(high[0] > 180 && high[0] < 500, "the axis reaches to 60 %, above all curves");
  metrics.facts.best_by = Metric::loss;
  check_equal(dashed_rows(accuracy_figure(metrics), top_colors[2]).size(), std::size_t{2});
  metrics.facts.baselines.clear();
  check(dashed_rows(accuracy_figure(metrics), top_colors[2]).empty(), "none");
  TrainingMetrics labels = told(sure_from(5, sample(200)), 100);
  check_equal(dashed_rows(accuracy_figure(labels), top_colors[0]).size(), std::size_t{2});
}

// Across the bars of validation; a value that a line would run through stands above it.
void check_bar_levels() {
  const auto ink_in_bars = [](const TrainingMetrics& metrics) {
    const Canvas canvas = combined_figure(metrics);
    std::size_t count = 0;
    for (std::size_t y = canvas.height() - 560; y < canvas.height() - 100; ++y) {
      for (std::size_t x = 1160; x < 1960; ++x) count += canvas.pixel(x, y) == ink;
    }
    return count;
  };
  TrainingMetrics metrics = told(sample(3), 1);
  const std::size_t with = ink_in_bars(metrics);
  metrics.facts.baselines.clear();
  check(with > ink_in_bars(metrics) + 500, "dashes in the bars");
}

// ---- SVG ----------------------------------------------------------------------------------------

// The names of elements and the texts of an XML file, or an error: tags that are not closed, values
// without quotes, a bare & or <.
std::pair<std::vector<std::string>, std::vector<std::string>> read_xml(std::string_view xml) {
  std::vector<std::string> names, texts, open;
  const auto take = [&](std::string_view end) {
    const std::size_t at = xml.find(end);
    require(at != xml.npos, "no ", end);
    const std::string part(xml.substr(0, at));
    xml.remove_prefix(at + end.size());
    return part;
  };
  require(xml.starts_with("<?xml "), "no declaration");
  take("?>");
  while (!xml.empty()) {
    std::string text = take("<");
    if (open.empty() || open.back() != "text") require(text == "\n", "text outside: ", text);
    if (xml.starts_with("/")) {
      if (open.back() == "text") texts.push_back(text);
      require(!open.empty() && "/" + open.back() == take(">"), "not closed: ", open.back());
      open.pop_back();
      if (open.empty()) break;
      continue;
    }
    for (std::size_t at = 0; (at = text.find('&', at)) != text.npos; ++at) {
      const std::string_view rest = std::string_view(text).substr(at);
      require(rest.starts_with("&amp;") || rest.starts_with("&lt;") || rest.starts_with("&gt;"),
              "a bare &");
    }
    std::string tag = take(">");
    require(std::count(tag.begin(), tag.end(), '"') % 2 == 0 && tag.find('<') == tag.npos, tag);
    names.push_back(tag.substr(0, tag.find(' ')));
    if (tag.back() != '/') open.push_back(names.back());
  }
  require(open.empty() && xml == "\n", "more behind the end");
  return {names, texts};
}

void check_svg() {
  TrainingMetrics metrics = told(sample(20), 6);
  metrics.facts.data = "a <b> & \xE6\x95\xB0", metrics.facts.baselines[1].name = "<M>";
  for (const auto figure : {loss_figure, accuracy_figure, combined_figure, learning_figure}) {
    const std::string svg = figure(metrics).svg();
    check(svg == figure(metrics).svg(), "the same again");
    const auto [names, texts] = read_xml(svg);
    check_equal(names.front(), "svg");
    check(std::count(names.begin(), names.end(), "path") > 5, "curves");
    check(std::count(names.begin(), names.end(), "rect") > 10, "grids");
    const auto shows = [&all = texts](std::string_view text) {
      return std::find(all.begin(), all.end(), text) != all.end();
    };
    check(shows("data a &lt;b&gt; &amp; \xE6\x95\xB0, run output/demo, best epoch 6 by top10"),
          "heading");
    check(shows("Epoch") && shows("best"), "labels");
    const bool of_accuracy = figure == accuracy_figure || figure == combined_figure;
    check_equal(shows("&lt;M&gt;, Top-10") && shows("popularity, Top-10"), of_accuracy);
  }
  Canvas canvas(300, 200);
  const std::array<Polyline, 2> lines{{{{1, 2}, {30.25, 4}}, {{7, 8}}}};
  canvas.stroke(lines, 3, {1, 20, 255}, 0.5);
  canvas.fill({10, 20, 30, 60}, white);
  canvas.fill({10, 20, 30, 60}, ink, 0);  // nothing to see
  canvas.text({5, 6}, "up", {.size = 20, .align = 1, .vertical = true});
  const std::string svg = canvas.svg();
  check_equal(svg.substr(svg.find("<path")),
              "<path d=\"M1.0 2.0L30.2 4.0M7.0 8.0h0\" fill=\"none\" stroke=\"rgb(1,20,255)\" "
              "stroke-opacity=\"0.500\" stroke-width=\"3.0\" stroke-linecap=\"round\" "
              "stroke-linejoin=\"round\"/>\n"
              "<rect x=\"10.0\" y=\"20.0\" width=\"20.0\" height=\"40.0\" "
              "fill=\"rgb(255,255,255)\"/>\n"
              "<text x=\"5.0\" y=\"6.0\" font-size=\"20.0\" fill=\"rgb(38,38,38)\" "
              "text-anchor=\"end\" transform=\"rotate(-90 5.0 6.0)\">up</text>\n</svg>\n");
}

// ---- Several evaluations an epoch ---------------------------------------------------------------

// Where vertical lines of the grid run through a picture of losses.
std::vector<std::size_t> grid_lines(const Canvas& canvas) {
  const auto is_line = [&](std::size_t x) {
    std::size_t count = 0;
    for (std::size_t y = 130; y < 1000; ++y) count += canvas.pixel(x, y) == light;
    return count > 700;
  };
  std::vector<std::size_t> lines;
  for (std::size_t x = 1; x < canvas.width(); ++x) {
    if (is_line(x - 1) && is_line(x)) lines.push_back(x);  // two pixels wide
  }
  return lines;
}

// The lines stand at `epochs`, to which the first and the last value of nine give the scale.
void check_grid(std::size_t per_epoch, const std::vector<double>& epochs) {
  TrainingMetrics metrics = sample(9);
  metrics.per_epoch = per_epoch;
  const Canvas canvas = loss_figure(metrics);
  const std::vector<std::size_t> lines = grid_lines(canvas);
  const Seen curve = seen(canvas, train_color, true);  // ends in dots with a radius of 5
  const double first = static_cast<double>(curve.left) + 5;
  const double last = static_cast<double>(curve.right) - 4;
  check_equal(lines.size(), epochs.size());
  for (std::size_t i = 0; i < std::min(lines.size(), epochs.size()); ++i) {
    const double evaluation = epochs[i] * static_cast<double>(per_epoch);
    const double expected = first + (last - first) * (evaluation - 1) / 8;
    check(std::abs(static_cast<double>(lines[i]) - expected) < 2, join("line at ", epochs[i]));
  }
}

void check_epochs() {
  check_equal(epoch_text(1, 9), "0.11");
  check_equal(epoch_text(6, 9), "0.67");
  check_equal(epoch_text(27, 9), "3");
  check_equal(epoch_text(3, 2), "1.5");
  check_equal(epoch_text(200'000, 1), "200000");
  check_grid(1, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  check_grid(3, {0.5, 1, 1.5, 2, 2.5, 3});
  TrainingMetrics metrics = sample(200);
  metrics.per_epoch = 9;
  check_figures(metrics, 1500);
  metrics = sample(1);
  metrics.per_epoch = 9;
  check_figures(metrics, 30);
}

// ---- Classifiers --------------------------------------------------------------------------------

TrainingMetrics classifier(std::size_t labels) {
  TrainingMetrics metrics = sure_from(labels, sample(27));
  metrics.per_epoch = 9;
  metrics.val_measures = {{"precision", std::vector<double>(27, 0.31)},
                          {"recall", std::vector<double>(27, 0.12)},
                          {"f1", std::vector<double>(27, 0.17)}};
  return metrics;
}

// How many pixels of a colour lie in the columns from `left` to `right`.
std::size_t count_between(const Canvas& canvas, Color color, std::size_t left, std::size_t right) {
  std::size_t count = 0;
  for (std::size_t y = 0; y < canvas.height(); ++y) {
    for (std::size_t x = left; x < right; ++x) count += canvas.pixel(x, y) == color;
  }
  return count;
}

// The bars of validation in a combined figure.
std::size_t bars(const Canvas& canvas) {
  std::size_t count = 0;
  for (std::size_t x = 1100; x < canvas.width(); ++x) {
    count +=
        canvas.pixel(x, 1400) == validation_color && canvas.pixel(x - 1, 1400) != validation_color;
  }
  return count;
}

void check_left_out() {
  const auto curves = [](const TrainingMetrics& metrics) {
    const Canvas canvas = accuracy_figure(metrics);
    std::string text;
    for (std::size_t i = 0; i < top_k.size(); ++i) {
      text += join(seen(canvas, top_colors[i]).count > 0 ? 1 : 0, " ");
    }
    return text;
  };
  check_equal(curves(sample(9)), "1 1 1 1 ");
  check_equal(curves(sure_from(10, sample(9))), "1 1 0 0 ");
  check_equal(curves(sure_from(1, sample(9))), "1 0 0 0 ");  // Top-1 always stays
  TrainingMetrics nearly = sure_from(5, sample(9));
  nearly.train_accuracies[1][3] = nearly.val_accuracies[3][8] = 0.99;
  check_equal(curves(nearly), "1 1 0 1 ");
  check_equal(bars(combined_figure(nearly)), std::size_t{3});
  check_equal(bars(combined_figure(sample(9))), std::size_t{4});
}

void check_classifier() {
  const Canvas canvas = accuracy_figure(classifier(2));
  for (const Color& color : top_colors) {
    check_equal(count_between(canvas, color, 0, 1000), std::size_t{0});
    check(count_between(canvas, color, 1000, 2000) > 1500, "a measure on the right");
  }
  for (const Color& color : {train_color, validation_color}) {
    check(count_between(canvas, color, 0, 1000) > 1500, "accuracy on the left");
    check_equal(count_between(canvas, color, 1000, 2000), std::size_t{0});
  }
  check_equal(bars(combined_figure(classifier(2))), std::size_t{4});
  check_equal(bars(combined_figure(classifier(10))), std::size_t{5});  // with Top-5
  TrainingMetrics uneven = classifier(2);
  uneven.val_measures[1].second.pop_back();
  check_throws([&] { accuracy_figure(uneven); }, {"recall has 26 values, expected 27"});
}

// Cells of 240 pixels; right of them 230 for the scale.
void check_confusion() {
  Confusion confusion(2);
  for (std::size_t i = 0; i < 5; ++i) confusion.add(1, 1);
  for (std::size_t i = 0; i < 4; ++i) confusion.add(0, i == 0 ? 1 : 0);
  const Canvas canvas = confusion_figure(confusion, {"no", "yes"});
  const std::size_t right = canvas.width() - 230, middle = right - 240, left = right - 480;
  check(canvas.pixel(middle + 20, 360) == train_color, "all of the lower row");
  check(canvas.pixel(left + 20, 360) == white, "none of it");
  check(canvas.pixel(left + 20, 120) == Color{64, 149, 197}, "three quarters of the upper row");
  check(canvas.pixel(middle + 20, 120) == Color{191, 220, 236}, "a quarter of it");
  check(count_in(canvas, white, middle + 40, 380, 160) > 30, "5 on dark");
  check(count_in(canvas, gray, left + 40, 380, 160) > 30, "0 in grey");
  check(count_in(canvas, white, left + 40, 140, 160) > 30, "3 on dark");
  check(count_in(canvas, ink, middle + 40, 140, 160) > 30, "1 on light");
  check_equal(int{canvas.pixel(right + 60, 340 + 120).red},
              255 * 3 / 4);  // the scale, at a quarter
}

void check_confusion_names() {
  const auto picture = [](const std::vector<std::string>& labels, std::string_view part = {},
                          std::string_view heading = {}) {
    return confusion_figure(Confusion(labels.size()), labels, part, heading).png();
  };
  check(picture({"\xE4\xBD\x93", "b"}) == picture({"#1", "b"}), "a number for what has no letters");
  check(picture({"a", "\xC3\xA9t\xC3\xA9"}) == picture({"a", "#2"}), "counted from 1");
  check(picture({"a", ""}) == picture({"a", "#2"}), "for an empty label too");
  check(picture({"a", "b"}) != picture({"a", "c"}), "names are shown");
  check(picture({"a", "b"}) != picture({"a", "b"}, "test"), "so is what was predicted");
  check(picture({"a", "b"}) != picture({"a", "b"}, "", "data demo"),
        "and what is known of the run");
  const std::string name = "abcdefghijklmnopqrstuvwxyz";
  check(picture({name, "b"}) == picture({name.substr(0, 21) + "...", "b"}), "long ones are cut");
  check_throws([&] { confusion_figure(Confusion(3), {"a", "b"}); }, {"2 names for 3 labels"});
  check_throws([&] { confusion_figure(Confusion(2), {"a", "b", "c"}); }, {"3 names for 2 labels"});
  check_throws([&] { confusion_figure(Confusion(0), {}); }, {"0 names for 0 labels"});
}

// More than 20 labels: shades without counts.
void check_many_labels() {
  const auto ink_inside = [](std::size_t classes) {
    Confusion confusion(classes);
    for (std::size_t c = 0; c < classes; ++c) {
      confusion.add(c, c), confusion.add(c, 0);
    }
    const Canvas canvas = confusion_figure(confusion, std::vector<std::string>(classes, "a label"));
    const std::size_t left = canvas.width() - 1428, side = 1196;
    check(count_in(canvas, white, left, 102, side) < side * side - 1000, "shades");
    return count_in(canvas, ink, left, 102, side);
  };
  check(ink_inside(20) > 100, "counts");
  check_equal(ink_inside(21), std::size_t{0});
  check_equal(ink_inside(1500), std::size_t{0});
}

void check_letters() {
  const auto ink_of = [](std::string_view text) {
    Canvas canvas(400, 60);
    canvas.text({20, 40}, text, {.size = 40});
    return seen(canvas, ink).count;
  };
  for (char c = '!'; c <= '~'; ++c) {
    if (ink_of({&c, 1}) < 5) check(false, join("a letter for ", c));
  }
  check_equal(ink_of(" "), std::size_t{0});
  check_equal(ink_of("\xC3\xA9\xE6\x95\xB0"), ink_of("??"));  // one for a character
  check_equal(text_width("ab", 50), text_width("a", 50) + text_width("b", 50));
  check(text_width("Epoch", 48) == 2 * text_width("Epoch", 24), "width grows with size");
}

// ---- Files --------------------------------------------------------------------------------------

std::uint32_t big_endian(std::string_view bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i)
    value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

constexpr std::array names{"accuracy_curve.png", "combined_metrics.png", "learning_curve.png",
                           "loss_curve.png"};

constexpr std::array svg_names{"accuracy_curve.svg", "combined_metrics.svg", "learning_curve.svg",
                               "loss_curve.svg"};

void check_files() {
  const TemporaryFolder folder;
  const Path output = folder / "new" / "folder";
  draw_plots(sample(2), output);
  write_file(output / names[0], "old");
  draw_plots(sample(30), output);
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(output)) files += entry.exists();
  check_equal(files, names.size());  // nothing temporary is left
  for (const char* name : names) {
    const std::string bytes = read_file(output / name);
    check(bytes.starts_with("\x89PNG\r\n\x1A\n"), "signature");
    check_equal(bytes.substr(12, 4), "IHDR");
    check(big_endian(bytes, 16) >= 1600 && big_endian(bytes, 20) >= 900, "size");
    check(bytes[24] == 8 && bytes[25] == 2, "8 bits, RGB");
    check_equal(bytes.substr(bytes.size() - 8, 4), "IEND");
    check(bytes.size() > 20'000, "content");
  }
  check_equal(draw_plots(sample(2), output, Format::both).size(), std::size_t{8});
  check_equal(draw_plots(sample(3), folder / "svg", Format::svg).size(), std::size_t{4});
  check(!path_exists(folder / "svg" / names[0]), "SVG alone");
  for (const char* name : svg_names) {
    check(read_file(output / name) != read_file(folder / "svg" / name), "as the curves");
    read_xml(read_file(output / name));
  }
  TrainingMetrics uneven = sample(3);
  uneven.val_accuracies[2].pop_back();
  check_throws([&] { draw_plots(uneven, output); }, {"val_accuracies 10 has 2 values, expected 3"});
  write_file(folder / "file", "");
  check_throws([&] { draw_plots(sample(2), folder / "file"); }, {path_text(folder / "file")});
}

// Runs `visualize`: its exit code and what it printed.
std::pair<int, std::string> visualize(const std::string& flags) {
  const Path program = Path(BERT4REC_BINARY_FOLDER) / "visualize";
  const std::string command = join(Path(program).make_preferred(), " ", flags, " 2>&1");
#ifdef _WIN32
  std::FILE* pipe = nullptr;
  for (int attempt = 0; attempt < 5 && pipe == nullptr; ++attempt) {  // Wine fails now and then
    pipe = ::_popen(command.c_str(), "r");
  }
#else
  std::FILE* pipe = ::popen(command.c_str(), "r");
#endif
  require(pipe != nullptr, "cannot run ", command);
  std::string text;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) text += static_cast<char>(c);
#ifdef _WIN32
  return {::_pclose(pipe), text};
#else
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text};
#endif
}

void check_refused(const std::string& flags, std::string_view part, int code = 1) {
  const auto [found, text] = visualize(flags);
  check_equal(found, code);
  if (text.find(part) == text.npos) check_equal(text, join("... ", part, " ..."));
  check_equal(std::count(text.begin(), text.end(), '\n'), 1);
}

void check_tool() {
  const TemporaryFolder folder;
  const Path file = folder / "metrics.json";
  const std::string flags = join("--metrics ", file);
  check_refused(flags, "metrics.json: cannot open");
  const auto refused = [&](const std::string& text, std::string_view part) {
    write_file(file, text);
    check_refused(flags, join(file, ":"));
    check_refused(flags, part);
  };
  const auto with = [&](std::string_view field, const Json& value) {
    const Json whole = sample(3).to_json();
    Json json;
    for (const auto& [name, old] : whole.object()) json.set(name, name == field ? value : old);
    return json.text(2);
  };
  const std::string good = sample(3).to_json().text(2);
  refused("", "found the end of the text");
  refused(good.substr(0, good.size() / 2), "found the end of the text");
  refused("[1, 2]", "an object");
  refused("{}", "missing field \"train_losses\"");
  refused(with("train_losses", 3), "an array");
  refused(with("val_losses", std::vector<std::string>{"a", "b", "c"}), "a number");
  refused(with("val_losses", std::vector<double>{1, 2}), "different lengths");
  refused(with("val_accuracies", Json::parse(R"({"1": [1], "5": [1], "10": [1], "20": [1]})")),
          "different lengths");
  refused(with("best_epoch", 4), "best_epoch is 4 of 3");
  const auto with_fact = [](std::string_view field, std::string_view value) {
    Json json = sample(3).to_json();
    json.set(field, Json::parse(value));
    return json.text(2);
  };
  refused(with_fact("data", "3"), "a string");
  refused(with_fact("best_by", "\"top3\""), "\"top3\"");
  refused(with_fact("baselines", "{\"popularity\": {\"1\": 0}}"), "missing field \"5\"");
  refused(with_fact("baselines", "{\"x\": {\"1\": 0, \"5\": 2, \"10\": 0, \"20\": 0}}"),
          "\"x\" has 2, expected 0 ... 1");
  check_refused("--format gif", "png|svg|both", 2);
  refused(TrainingMetrics().to_json().text(), "no epochs");
  check_refused("--nonsense", "unknown option --nonsense", 2);
  write_file(file, good);
  check_refused(join(flags, " --output ", file), "metrics.json: cannot create the folder");
  make_folder(folder / "taken" / names[0]);  // a folder where a picture should go
  check_refused(join(flags, " --output ", folder / "taken"), "accuracy_curve.png: cannot replace");
  const auto [code, text] = visualize(flags);
  check_equal(code, 0);
  for (const char* name : names) {
    check(std::filesystem::exists(folder / name), "beside the metrics");
    check(text.find(name) != text.npos, "named");
  }
  check_equal(visualize(join(flags, " --format svg --output ", folder / "svg")).first, 0);
  check(path_exists(folder / "svg" / svg_names[0]) && !path_exists(folder / "svg" / names[0]),
        "SVG alone");
}

// What a run writes, all of it read again.
void check_facts() {
  const TrainingMetrics metrics = told(sample(3), 2);
  const TrainingMetrics read = TrainingMetrics::from_json(Json::parse(metrics.to_json().text()));
  check_equal(read.facts.data + " " + read.facts.run, "demo output/demo");
  check(read.facts.best_by == Metric::top10, "best_by");
  check_equal(read.facts.baselines.size(), std::size_t{2});
  check(read.facts.baselines[1].name == "Markov" &&
            read.facts.baselines[1].accuracies == metrics.facts.baselines[1].accuracies,
        "baselines");
  check_equal(read.to_json().text(), metrics.to_json().text());
  const std::string curves = metrics.curves_json().text();
  check(metrics.to_json().text().starts_with(curves.substr(0, curves.size() - 1)),
        "facts come after all curves");
  TrainingMetrics older = metrics;
  older.facts = {};
  check_equal(older.to_json().text(), curves);
  check(accuracy_figure(metrics).png() == accuracy_figure(read).png(), "and drawn alike");
}

}  // namespace

int main() {
  test("ticks are round and cover the range", check_ticks);
  test("decimation keeps the extremes", check_decimate);
  test("moving averages, lowest value", check_averages);
  test("letters", check_letters);
  test("one epoch", [] { check_figures(sample(1), 30); });
  test("two epochs", [] { check_figures(sample(2), 1500); });
  test("200 epochs", [] { check_figures(sample(200), 1500); });
  test("10,000 epochs", [] { check_figures(sample(10'000), 1500); });
  test("constant curves", check_constant);
  test("gaps", check_gaps);
  test("huge and tiny values", check_huge);
  test("bars", check_bars);
  test("the lowest loss is marked", check_mark);
  test("headings", check_heading);
  test("the best epoch is marked", check_best);
  test("baselines beside the curves", check_levels);
  test("baselines across the bars", check_bar_levels);
  test("SVG", check_svg);
  test("facts of a run in its file", check_facts);
  test("epochs of several evaluations", check_epochs);
  test("curves that are 1 throughout", check_left_out);
  test("a classifier's measures", check_classifier);
  test("confusion matrix", check_confusion);
  test("names in it", check_confusion_names);
  test("many labels in it", check_many_labels);
  test("files", check_files);
  test("the tool", check_tool);
  return finish();
}
