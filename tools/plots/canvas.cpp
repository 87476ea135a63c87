#include "plots/canvas.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <new>
#include <numbers>
#include <utility>

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image_write.h>

namespace plots {

// ---- Letters ------------------------------------------------------------------------------------
// Each letter is its advance and then strokes, drawn with a round pen, in hundredths of the em, y
// up: baseline 0, small letters 50 high, capitals and digits 70, descenders to -20.
//   ;  begins a stroke      x y  goes there
//   o CENTRE_X CENTRE_Y RADIUS_X RADIUS_Y FROM TO  goes along an ellipse, in degrees,
//                                                  counter-clockwise where FROM < TO
namespace {

// clang-format off
constexpr std::array<std::string_view, 95> letters{
  "32", "28; 14 70 14 22; o 14 1 1 1 0 360", "38; 12 70 12 50; 26 70 26 50",            // ! "
  "70; 27 70 19 0; 51 70 43 0; 9 46 64 46; 6 23 61 23",                                 // #
  "58; o 29 51 18 14 25 235 43 31 o 29 19 20 14 45 -155; 29 78 29 -8",                  // $
  "84; o 21 53 13 17 0 360; o 63 17 13 17 0 360; 62 70 22 0",                           // %
  "70; 62 0 18 47 o 29 56 14 15 215 -45 18 34 o 27 17 20 18 125 325 60 34",             // &
  "24; 12 70 12 50", "34; o 42 27 30 60 130 230", "34; o -8 27 30 60 50 -50",           // ' ( )
  "48; 24 72 24 42; 11 65 37 49; 37 65 11 49", "64; 32 54 32 8; 9 31 55 31",            // * +
  "28; 15 2 10 -13", "40; 8 27 32 27", "28; o 14 1 1 1 0 360", "40; 34 74 6 -8",        // , - . /
  "58; o 29 35 21 36 0 360", "58; 14 57 32 70 32 0",                                    // 0 1
  "58; o 28 50 20 21 165 -38 9 0 50 0",                                                 // 2
  "58; o 27 53 18 18 150 -90 o 27 17 21 18 90 -150",                                    // 3
  "58; 41 0 41 70 7 18 53 18", "58; 47 70 15 70 o 27 22 22 23 132 -145",                // 4 5
  "58; o 30 22 20 23 0 360; o 44 26 34 45 98 187", "58; 8 70 50 70 22 0",               // 6 7
  "58; o 29 53 17 18 0 360; o 29 17 21 18 0 360",                                       // 8
  "58; o 28 48 20 23 0 360; o 14 44 34 45 -82 7",                                       // 9
  "28; o 14 1 1 1 0 360; o 14 44 1 1 0 360", "28; 15 2 10 -13; o 14 44 1 1 0 360",      // : ;
  "64; 54 54 10 31 54 8", "64; 9 41 55 41; 9 21 55 21", "64; 10 54 54 31 10 8",         // < = >
  "50; o 24 53 16 18 165 -55 24 29 24 20; o 24 1 1 1 0 360",                            // ?
  "92; o 45 28 15 17 0 360; 60 45 60 22 o 70 22 10 10 180 340 o 46 28 37 40 -5 295",    // @
  "62; 6 0 31 70 56 0; 15 23 47 23",                                                    // A
  "61; 10 0 10 70 30 70 o 30 54 17 16 90 -90 10 38; 30 38 o 32 19 20 19 90 -90 10 0",   // B
  "67; o 37 35 29 36 48 312", "70; 10 0 10 70 26 70 o 28 35 34 35 90 -90 10 0",         // C D
  "56; 49 70 10 70 10 0 50 0; 10 37 45 37", "53; 48 70 10 70 10 0; 10 36 44 36",        // E F
  "74; o 38 35 30 36 46 360 43 35", "68; 10 0 10 70; 58 0 58 70; 10 37 58 37",          // G H
  "28; 14 0 14 70", "46; 36 70 36 18 o 21 18 15 19 0 -155",                             // I J
  "60; 10 0 10 70; 51 70 10 28; 24 43 55 0", "52; 10 70 10 0 47 0",                     // K L
  "80; 10 0 10 70 40 18 70 70 70 0", "70; 10 0 10 70 60 0 60 70",                       // M N
  "77; o 38 35 31 36 0 360", "58; 10 0 10 70 32 70 o 32 51 19 19 90 -90 10 32",         // O P
  "77; o 38 35 31 36 0 360; 45 17 67 -5",                                               // Q
  "61; 10 0 10 70 32 70 o 32 52 19 18 90 -90 10 34; 32 34 54 0",                        // R
  "60; o 30 52 19 19 32 238 43 33 o 30 18 21 19 50 -152",                               // S
  "58; 5 70 53 70; 29 70 29 0", "68; 10 70 10 24 o 34 24 24 25 180 360 58 70",          // T U
  "60; 5 70 30 0 55 70", "90; 6 70 25 0 45 66 65 0 84 70", "60; 8 70 52 0; 52 70 8 0",  // V W X
  "58; 5 70 29 33 53 70; 29 33 29 0", "58; 9 70 50 70 8 0 51 0",                        // Y Z
  "34; 26 74 12 74 12 -18 26 -18", "40; 6 74 34 -8", "34; 8 74 22 74 22 -18 8 -18",     // [ \ ]
  "64; 12 46 32 70 52 46", "52; 2 -12 50 -12", "32; 10 74 20 62",                       // ^ _ `
  "57; o 28 33 19 18 152 0 47 0; 47 30 26 30 o 25 14 17 16 90 270 o 27 19 20 21 264 345",  // a
  "61; 10 74 10 0; o 31 25 21 26 0 360", "54; o 30 25 22 26 46 314",                    // b c
  "61; 51 74 51 0; o 30 25 21 26 0 360", "59; 9 26 51 26 o 30 25 21 26 2 316",          // d e
  "36; 16 0 16 59 o 30 59 14 15 180 72; 5 50 32 50",                                    // f
  "61; o 30 25 21 26 0 360; 51 50 51 -1 o 30 -1 21 20 0 -148",                          // g
  "58; 10 74 10 0; o 29 31 19 20 180 0 48 0", "26; 13 50 13 0; o 13 68 1 1 0 360",      // h i
  "26; 13 50 13 -7 o 2 -7 11 13 0 -85; o 13 68 1 1 0 360",                              // j
  "53; 10 74 10 0; 43 50 10 18; 22 30 48 0", "26; 13 74 13 0",                          // k l
  "90; 10 50 10 0; o 27 31 17 20 180 0 45 0; 45 31 o 63 31 17 20 180 0 80 0",           // m
  "58; 10 50 10 0; o 29 31 19 20 180 0 48 0", "60; o 30 25 22 26 0 360",                // n o
  "61; 10 50 10 -20; o 31 25 21 26 0 360", "61; 51 50 51 -20; o 30 25 21 26 0 360",     // p q
  "39; 10 50 10 0; o 29 30 19 21 180 75",                                               // r
  "50; o 25 37 15 14 30 240 35 23 o 25 12 16 13 50 -152",                               // s
  "37; 16 66 16 13 o 28 13 12 14 180 285; 5 50 33 50",                                  // t
  "58; 10 50 10 19 o 29 19 19 20 180 360; 48 50 48 0", "52; 6 50 26 0 46 50",           // u v
  "76; 6 50 22 0 38 48 54 0 70 50", "52; 8 50 44 0; 44 50 8 0",                         // w x
  "52; 6 50 27 0; 46 50 25 -6 o 13 -6 12 14 0 -105", "50; 9 50 41 50 9 0 42 0",         // y z
  "38; 30 74 24 74 18 68 18 36 9 28 18 20 18 -12 24 -18 30 -18", "28; 14 76 14 -20",    // { |
  "38; 8 74 14 74 20 68 20 36 29 28 20 20 20 -12 14 -18 8 -18",                         // }
  "64; o 21 28 11 9 180 0 o 43 28 11 9 180 360",                                        // ~
};
// clang-format on

// Nothing for the further bytes of a character in UTF-8.
std::string_view letter(char c) {
  if ((c & 0xC0) == 0x80) return "0";
  return letters[c >= ' ' && c <= '~' ? static_cast<std::size_t>(c - ' ')
                                      : static_cast<std::size_t>('?' - ' ')];
}

// The next number of a letter's text, which loses it.
int take_number(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  int value = 0;
  const char* stop = std::from_chars(text.data(), text.data() + text.size(), value).ptr;
  text.remove_prefix(static_cast<std::size_t>(stop - text.data()));
  return value;
}

void add_arc(Polyline& line, std::string_view& text) {
  std::array<double, 6> n{};
  for (double& number : n) number = take_number(text);
  constexpr double radian = std::numbers::pi / 180;
  const int steps = std::max(2, static_cast<int>(std::abs(n[5] - n[4]) / 8));
  for (int i = 0; i <= steps; ++i) {
    const double angle = radian * (n[4] + (n[5] - n[4]) * i / steps);
    line.push_back({n[0] + n[2] * std::cos(angle), n[1] + n[3] * std::sin(angle)});
  }
}

// Adds a letter's strokes and returns its advance.
int add_letter(std::vector<Polyline>& lines, std::string_view text) {
  const int advance = take_number(text);
  while (!text.empty()) {
    if (text[0] == ' ' || text[0] == ';' || text[0] == 'o') {
      const char what = text[0];
      text.remove_prefix(1);
      if (what == ';') lines.emplace_back();
      if (what == 'o') add_arc(lines.back(), text);
    } else {
      const double x = take_number(text);
      lines.back().push_back({x, static_cast<double>(take_number(text))});
    }
  }
  return advance;
}

}  // namespace

double text_width(std::string_view text, double size) {
  int units = 0;
  for (const char c : text) {
    std::string_view shape = letter(c);
    units += take_number(shape);
  }
  return units * size / 100;
}

// ---- SVG ----------------------------------------------------------------------------------------

namespace {

std::string number(double value, int digits = 1) {
  std::array<char, 400> text;
  char* const end = text.data() + text.size();
  return {text.data(),
          std::to_chars(text.data(), end, value, std::chars_format::fixed, digits).ptr};
}

// name="value"
std::string attribute(std::string_view name, std::string_view value) {
  return std::string(" ").append(name).append("=\"").append(value) + '"';
}

// `what`: "fill" or "stroke".
std::string paint_attributes(const std::string& what, Color color, double alpha) {
  const auto part = [](int value) { return std::to_string(value); };
  return attribute(what, "rgb(" + part(color.red) + "," + part(color.green) + "," +
                             part(color.blue) + ")") +
         (alpha < 1 ? attribute(what + "-opacity", number(alpha, 3)) : "");
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  }
  return out;
}

std::string text_element(Point at, std::string_view text, const TextStyle& style) {
  const std::string x = number(at.x), y = number(at.y);
  std::string out = "<text" + attribute("x", x) + attribute("y", y);
  out += attribute("font-size", number(style.size)) + paint_attributes("fill", style.color, 1);
  if (style.align > 0) out += attribute("text-anchor", style.align < 1 ? "middle" : "end");
  if (style.weight > TextStyle().weight) out += attribute("font-weight", "bold");
  if (style.vertical) out += attribute("transform", "rotate(-90 " + x + " " + y + ")");
  return out + ">" + escaped(text) + "</text>\n";
}

}  // namespace

std::string Canvas::svg() const {
  const std::string width = std::to_string(width_), height = std::to_string(height_);
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\"" +
         attribute("width", width) + attribute("height", height) +
         attribute("viewBox", "0 0 " + width + " " + height) +
         attribute("font-family", "Helvetica, Arial, sans-serif") +
         ">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n" + elements_ + "</svg>\n";
}

// ---- Painting -----------------------------------------------------------------------------------

void Canvas::text(Point at, std::string_view text, const TextStyle& style) {
  const double scale = style.size / 100;
  std::vector<Polyline> lines;
  double pen = -style.align * text_width(text, style.size);
  for (const char c : text) {
    const std::size_t first = lines.size();
    const int advance = add_letter(lines, letter(c));
    for (std::size_t i = first; i < lines.size(); ++i) {
      for (Point& p : lines[i]) {
        const double along = pen + scale * p.x, up = scale * p.y;
        p = style.vertical ? Point{at.x - up, at.y - along} : Point{at.x + along, at.y - up};
      }
    }
    pen += scale * advance;
  }
  paint(lines, style.weight * style.size, style.color, 1);
  if (!text.empty()) elements_ += text_element(at, text, style);
}

void Canvas::blend(std::size_t at, Color color, double share) {
  const auto mix = [share](std::uint8_t& old, std::uint8_t paint) {
    old = static_cast<std::uint8_t>(std::lround(old + share * (paint - old)));
  };
  mix(pixels_[at].red, color.red);
  mix(pixels_[at].green, color.green);
  mix(pixels_[at].blue, color.blue);
}

namespace {

// The pixels from floor(low) to ceil(high), inside 0 ... size.
struct Pixels {
  Pixels(double low, double high, std::size_t size)
      : begin(clamped(std::floor(low), size)), end(clamped(std::ceil(high), size)) {}
  static std::size_t clamped(double value, std::size_t size) {
    return static_cast<std::size_t>(std::clamp(value, 0.0, static_cast<double>(size)));
  }
  std::size_t begin, end;
};

}  // namespace

// A pixel whose centre is at distance d of the line is covered by clamp(radius - d + 1/2, 0, 1):
// exact for a straight edge along the axes, and good to a few hundredths for others.
void Canvas::cover_segment(Point a, Point b, double radius) {
  const double reach = radius + 0.5, dx = b.x - a.x, dy = b.y - a.y, square = dx * dx + dy * dy;
  const Pixels rows(std::min(a.y, b.y) - reach, std::max(a.y, b.y) + reach, height_);
  const Pixels columns(std::min(a.x, b.x) - reach, std::max(a.x, b.x) + reach, width_);
  for (std::size_t row = rows.begin; row < rows.end; ++row) {
    for (std::size_t column = columns.begin; column < columns.end; ++column) {
      const double x = static_cast<double>(column) + 0.5 - a.x;
      const double y = static_cast<double>(row) + 0.5 - a.y;
      const double t = square > 0 ? std::clamp((x * dx + y * dy) / square, 0.0, 1.0) : 0;
      const double d = std::sqrt((x - t * dx) * (x - t * dx) + (y - t * dy) * (y - t * dy));
      float& cover = cover_[row * width_ + column];
      cover = std::max(cover, static_cast<float>(std::clamp(reach - d, 0.0, 1.0)));
    }
  }
}

void Canvas::stroke(std::span<const Polyline> lines, double line_width, Color color, double alpha) {
  paint(lines, line_width, color, alpha);
  std::string path;
  for (const Polyline& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) {
      path += (i == 0 ? "M" : "L") + number(line[i].x) + " " + number(line[i].y);
    }
    if (line.size() == 1) path += "h0";  // a dot as wide as the line
  }
  if (path.empty()) return;
  elements_ += "<path" + attribute("d", path) + " fill=\"none\"" +
               paint_attributes("stroke", color, alpha) +
               attribute("stroke-width", number(line_width)) +
               " stroke-linecap=\"round\" stroke-linejoin=\"round\"/>\n";
}

void Canvas::paint(std::span<const Polyline> lines, double line_width, Color color, double alpha) {
  Point least{1e9, 1e9}, most{-1e9, -1e9};
  for (const Polyline& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) {
      least = {std::min(least.x, line[i].x), std::min(least.y, line[i].y)};
      most = {std::max(most.x, line[i].x), std::max(most.y, line[i].y)};
      if (i > 0 || line.size() == 1)
        cover_segment(line[i > 0 ? i - 1 : 0], line[i], line_width / 2);
    }
  }
  const double reach = line_width / 2 + 1;
  const Pixels rows(least.y - reach, most.y + reach, height_);
  const Pixels columns(least.x - reach, most.x + reach, width_);
  for (std::size_t row = rows.begin; row < rows.end; ++row) {
    for (std::size_t at = row * width_ + columns.begin; at < row * width_ + columns.end; ++at) {
      if (cover_[at] > 0) blend(at, color, alpha * std::exchange(cover_[at], 0.0f));
    }
  }
}

void Canvas::fill(const Box& box, Color color, double alpha) {
  if (alpha <= 0) return;
  elements_ += "<rect" + attribute("x", number(box.left)) + attribute("y", number(box.top)) +
               attribute("width", number(std::max(0.0, box.width()))) +
               attribute("height", number(std::max(0.0, box.height()))) +
               paint_attributes("fill", color, alpha) + "/>\n";
  const auto shared = [](std::size_t pixel, double low, double high) {
    const auto p = static_cast<double>(pixel);
    return std::max(0.0, std::min(p + 1, high) - std::max(p, low));
  };
  const Pixels rows(box.top, box.bottom, height_), columns(box.left, box.right, width_);
  for (std::size_t row = rows.begin; row < rows.end; ++row) {
    for (std::size_t column = columns.begin; column < columns.end; ++column) {
      blend(row * width_ + column, color,
            alpha * shared(row, box.top, box.bottom) * shared(column, box.left, box.right));
    }
  }
}

std::string Canvas::png() const {
  static_assert(sizeof(Color) == 3, "pixels are handed over as bytes");
  std::string bytes;
  const auto append = [](void* out, void* data, int size) {
    static_cast<std::string*>(out)->append(static_cast<const char*>(data),
                                           static_cast<std::size_t>(size));
  };
  const int width = static_cast<int>(width_), height = static_cast<int>(height_);
  if (stbi_write_png_to_func(append, &bytes, width, height, 3, pixels_.data(), 3 * width) == 0) {
    throw std::bad_alloc();
  }
  return bytes;
}

}  // namespace plots
