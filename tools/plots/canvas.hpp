// A picture in memory to draw on with smooth lines, rectangles and text; saved as PNG or SVG, of
// which the one has pixels and letters of its own, the other a record of the same calls.
// Coordinates are pixels, x to the right and y down; (0, 0) is the corner of the first pixel.

#ifndef BERT4REC_TOOLS_PLOTS_CANVAS_HPP
#define BERT4REC_TOOLS_PLOTS_CANVAS_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace plots {

struct Point {
  double x = 0, y = 0;
  bool operator==(const Point&) const = default;
};

using Polyline = std::vector<Point>;

struct Box {
  double left, top, right, bottom;
  double width() const { return right - left; }
  double height() const { return bottom - top; }
};

struct Color {
  std::uint8_t red, green, blue;
  bool operator==(const Color&) const = default;
};

inline constexpr Color white{255, 255, 255}, ink{38, 38, 38}, gray{110, 110, 110},
    light{228, 228, 228};

struct TextStyle {
  double size = 24;      // of the em; capitals are 0.7 of it high
  double align = 0;      // share of the width left of the point: 0 left, 0.5 centred, 1 right
  double weight = 0.09;  // width of a stroke / size
  Color color = ink;
  bool vertical = false;  // upwards instead of to the right
};

class Canvas {
 public:
  Canvas(std::size_t width, std::size_t height)
      : width_(width), height_(height), pixels_(width * height, white), cover_(width * height) {}

  std::size_t width() const { return width_; }
  std::size_t height() const { return height_; }
  Color pixel(std::size_t x, std::size_t y) const { return pixels_[y * width_ + x]; }

  // Lines with round ends and joints, all painted at once: where they overlap, `alpha` counts once.
  // A line of one point is a disc.
  void stroke(std::span<const Polyline> lines, double line_width, Color color, double alpha = 1);
  void fill(const Box& box, Color color, double alpha = 1);
  // The baseline goes through `at`. `text` is UTF-8 without control characters; of what is not
  // ASCII the pixels show question marks.
  void text(Point at, std::string_view text, const TextStyle& style = {});

  std::string png() const;
  std::string svg() const;

 private:
  void paint(std::span<const Polyline> lines, double line_width, Color color, double alpha);
  void cover_segment(Point a, Point b, double radius);
  void blend(std::size_t at, Color color, double share);

  std::size_t width_, height_;
  std::vector<Color> pixels_;
  std::vector<float> cover_;  // scratch of paint(): all zero in between
  std::string elements_;      // of the SVG
};

double text_width(std::string_view text, double size);

}  // namespace plots

#endif  // BERT4REC_TOOLS_PLOTS_CANVAS_HPP
