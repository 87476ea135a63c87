// bert4rec.hpp: BERT4Rec in one C++20 header. Version 0.13.0.
// Copyright (c) 2026 The bert4rec.hpp authors. SPDX-License-Identifier: MIT (text at the end).
//
// BERT4Rec (Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder
// Representations from Transformer", CIKM 2019, arXiv 1904.06690) reads what a person watched, in
// order, as BERT reads a sentence: some items are hidden behind [MASK] and the model learns to name
// them from both sides (the Cloze task). To recommend, a [MASK] is put after the newest item.
//
// This file is the whole algorithm: flat files and JSON, a Transformer encoder with its backward
// pass written out, AdamW, the Cloze task, training that resumes bit for bit, evaluation and
// recommendation; and on the same encoder, matching and the classification of texts. It needs the
// C++20 standard library and a POSIX system or Windows, and prints nothing.
//
//     #include "bert4rec.hpp"
//     #include <iostream>
//     int main(int argc, char** argv) {
//       try {
//         const auto data = bert4rec::Dataset::load(argc > 1 ? argv[1] : "data/demo");
//         const bert4rec::ModelConfig model{.hidden_size = 64, .num_heads = 2,
//                                           .objective = bert4rec::Objective::causal};  // or cloze
//         const bert4rec::TrainConfig train{.epochs = 8, .batch_size = 16, .learning_rate = 2e-3};
//         bert4rec::Trainer trainer(data, model, train, "output");
//         trainer.overwrite().run({.on_epoch = [](const bert4rec::EpochReport& report) {
//           std::cerr << "epoch " << report.epoch << ": loss " << report.train.loss()
//                     << ", validation " << report.validation.tally.loss() << "\n";
//         }});
//         const bert4rec::Recommender recommender("output/models");
//         for (const auto& pick : recommender.recommend(data.histories.row(0), 10))
//           std::cout << pick.score << "  " << recommender.catalogue().title(pick.item) << "\n";
//       } catch (const std::exception& error) {
//         std::cerr << error.what() << "\n";
//         return 1;
//       }
//     }
//
// Compile with: g++ -std=c++20 -O2 -pthread (GCC 11, or Clang 14 with libstdc++ 11 or libc++ 14, or
// later; on Windows the g++ of MinGW-w64 with POSIX threads, as MSYS2 has it, and with
// -Wa,-muse-unaligned-vector-move, since that GCC may not align its stack for AVX: its bug 54412)
//
// Notation. Every array is row-major; shapes stand in brackets.
//   B  rows (one user's window each)      H  hidden size (width of a token vector)
//   N  tokens of all rows together        A  attention heads, each D = H / A wide
//   M  asked places of all rows           L  longest window (number of position vectors)
//   V  vocabulary rows: 0 PAD, 1 MASK, 2 UNK, and item i at row i + 3; or the tokens of texts
//   I  items, V - 3                       K  items drawn as negatives, R for each asked place
//   C  labels of a classifier             F  inner width of the feed-forward (4 H if not said)
// "Section" and "eq." without a name are those of the paper above.
// A batch is ragged: rows stand one behind the other in tokens[N] without padding, row r being
// tokens[offsets[r]] ... tokens[offsets[r + 1] - 1]. So no attention mask exists, and no padding
// bug.
//
// Contents
//    1 Version and includes        8 Tensors               15 Optimizer
//    2 Errors                      9 Kernels               16 Engine
//    3 Arithmetic, random numbers 10 Layers                17 Evaluation
//    4 JSON                       11 Encoder               18 Tasks
//    5 Flat files                 12 Losses                19 Training
//    6 Threads                    13 Heads                 20 Use: titles, labels
//    7 Configuration              14 Data                  21 Hugging Face files
//    A Bodies of JSON, safetensors and Hugging Face files (of chapters 4, 5 and 21)
//    B The kernels on vectors (of chapter 9)
//    C The characters of Unicode (of chapter 14, "Text"); stands before B
//
// In an hour: 7 (what can be chosen), 10 and 11 (the network, forward and backward), 12 and 13
// (from vectors to a loss), then of 14 "Batches" and of 18 ItemTask (the Cloze task). Chapter 9
// says what the inner loops compute; 2 to 6 are tools that need no reading before they are used.
// Of texts speak the ends of 13, 14, 18 and 20, and 21.
//
// Options, defined before the include:
//   BERT4REC_PORTABLE   compile only the plain kernels: slower, standard C++ only (chapter 9);
//                       the same in every source file of a program. Compilers other than GCC and
//                       Clang get it without being asked
//   BERT4REC_EXTERN     for programs of many source files: do not compile the float engine here ...
//   BERT4REC_INSTANTIATE  ... but in the one source file that defines this
//
// Errors are exceptions of type bert4rec::Error whose message is one line for a person: what is
// wrong, where (file, line, byte or field), the bad value, and what was expected. (Only memory that
// runs out is a std::bad_alloc.)
//
// The file includes itself (by the name bert4rec.hpp) while chapter 9 is compiled once for each
// instruction set. Readers may ignore that: the text is meant to be read once, from the top.

#ifndef BERT4REC_HPP
#define BERT4REC_HPP

#if defined(__CUDACC__)
#error "bert4rec.hpp is for a C++ compiler: include it in a .cpp file (cuda/README.md says how)"
#endif

// ================================================================================================
// 1  Version and includes
// ================================================================================================

#define BERT4REC_VERSION_MAJOR 0
#define BERT4REC_VERSION_MINOR 13
#define BERT4REC_VERSION_PATCH 0
#define BERT4REC_VERSION 1300  // MAJOR * 10000 + MINOR * 100 + PATCH
#define BERT4REC_VERSION_STRING "0.13.0"

#if defined(min) || defined(max)
#error "bert4rec.hpp needs std::min and std::max: define NOMINMAX before windows.h is included"
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cfloat>
#include <charconv>
#include <chrono>
#include <cmath>
#include <concepts>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#ifndef __GNUC__  // which Clang defines too: both have the vector types of appendix B
#undef BERT4REC_PORTABLE
#define BERT4REC_PORTABLE
#endif
#if defined(__aarch64__) && !defined(BERT4REC_PORTABLE)
#include <arm_neon.h>
#endif

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || defined(_M_FP_FAST) ||                                     \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "bert4rec.hpp needs IEEE arithmetic: compile without -ffast-math and without its parts"
#endif
static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16,
              "bert4rec.hpp needs float arithmetic in float: no x87 (-mfpmath=sse helps)");
static_assert(0.1 != 0.1f,
              "bert4rec.hpp needs constants in double: no -fsingle-precision-constant");

static_assert(std::endian::native == std::endian::little,
              "bert4rec.hpp writes its files in the byte order of the machine: little-endian");

namespace bert4rec {

// ================================================================================================
// 2  Errors
// ================================================================================================
// One exception type. require(condition, parts...) throws it with the parts joined to a sentence.

using Path = std::filesystem::path;

namespace detail {

// Bytes of the UTF-8 sequence that a text begins with, 1 to 4; 0 if it is none: cut, overlong, a
// surrogate, or beyond U+10FFFF.
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return text.empty() ? 0 : 1;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  bool valid = first >= 0xC2 && first <= 0xF4;
  for (std::size_t i = 1; i < length; ++i) valid = valid && (byte(i) & 0xC0) == 0x80;
  valid = valid && !(first == 0xE0 && second < 0xA0) && !(first == 0xED && second > 0x9F) &&
          !(first == 0xF0 && second < 0x90) && !(first == 0xF4 && second > 0x8F);
  return valid ? length : 0;
}

inline bool is_utf8(std::string_view text) {
  while (const std::size_t length = utf8_length(text)) text.remove_prefix(length);
  return text.empty();
}

// Whether a character in UTF-8 does something to a terminal instead of being seen there: control
// characters, line separators, marks that turn the direction of writing.
inline bool is_control(std::string_view c) {
  if (c.size() == 1) return c[0] < ' ' || c[0] == '\x7f';
  if (c.size() == 2) return c[0] == '\xC2' && c < "\xC2\xA0";
  return c == "\xE2\x80\x8E" || c == "\xE2\x80\x8F" ||
         (c >= "\xE2\x80\xA8" && c <= "\xE2\x80\xAE") ||
         (c >= "\xE2\x81\xA6" && c <= "\xE2\x81\xA9");
}

}  // namespace detail

// Text from a file or a server as it may stand in a message or on a terminal: one line whatever it
// is, with "\x1b" for what would move the cursor, and cut after `most` characters.
inline std::string shown(std::string_view text, std::size_t most = 100) {
  constexpr std::string_view hex = "0123456789abcdef";
  std::string out;
  for (std::size_t characters = 0; !text.empty(); ++characters) {
    if (characters == most) return out + "...";
    const std::size_t length = detail::utf8_length(text);
    const std::string_view c = text.substr(0, std::max<std::size_t>(1, length));
    text.remove_prefix(c.size());
    if (length > 0 && !detail::is_control(c)) {
      out += c;
      continue;
    }
    for (const char byte : c) {
      const auto bits = static_cast<unsigned char>(byte);
      out += "\\x", out += hex[bits >> 4], out += hex[bits & 15];
    }
  }
  return out;
}

// Whatever a message is made of, it is one line of at most a thousand characters.
class Error : public std::runtime_error {
 public:
  explicit Error(std::string_view message) : std::runtime_error(shown(message, 1000)) {}
};

// The path as UTF-8 on every system. (path.string() is in another encoding on Windows, or throws.)
inline std::string path_text(const Path& path) {
  try {
    const std::u8string text = path.u8string();
    return {text.begin(), text.end()};
  } catch (const std::system_error&) {  // Windows has names that are no Unicode
    std::string text;
    for (const auto unit : path.native()) {
      const auto code = static_cast<std::uint32_t>(unit);
      text += code < 0x80 ? static_cast<char>(code) : '?';
    }
    return text;
  }
}

// The path that a text in UTF-8 stands for; throws on Windows if it is no UTF-8, and everywhere if
// it holds a NUL, at which the system would cut it.
inline Path path_from(std::string_view text) {
  if (text.find('\0') != text.npos) throw Error("a path with a NUL: " + std::string(text));
  try {
    return std::u8string(text.begin(), text.end());
  } catch (const std::system_error&) {
    throw Error("a path that is not UTF-8: " + std::string(text));
  }
}

namespace detail {

// Shortest decimal text that reads back as the same number, in any locale.
template <class Number>
void append_number(std::string& out, Number value) {
  if constexpr (std::is_floating_point_v<Number>) {
    if (std::isnan(value)) {  // where libraries differ: "nan", "-nan", "-nan(ind)"
      out += "nan";
      return;
    }
  }
  char digits[40];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  out.append(digits, end);
}

template <class Part>
void append_part(std::string& out, const Part& part) {
  if constexpr (std::is_same_v<Part, bool>) {
    out += part ? "true" : "false";
  } else if constexpr (std::is_same_v<Part, char>) {
    out += part;
  } else if constexpr (std::is_arithmetic_v<Part>) {
    append_number(out, part);
  } else if constexpr (std::is_same_v<Part, Path>) {
    out += path_text(part);
  } else {
    out += std::string_view(part);
  }
}

}  // namespace detail

// The parts as one string: join("line ", 3) == "line 3".
template <class... Parts>
std::string join(const Parts&... parts) {
  std::string out;
  (detail::append_part(out, parts), ...);
  return out;
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(join(parts...));
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// What compiled this header, for the record: "g++ 12.2.0".
inline std::string compiler_name() {
#if defined(__clang__)
  return join("clang++ ", __clang_major__, ".", __clang_minor__, ".", __clang_patchlevel__);
#elif defined(__GNUC__)
  return join("g++ ", __GNUC__, ".", __GNUC_MINOR__, ".", __GNUC_PATCHLEVEL__);
#elif defined(_MSC_VER)
  return join("MSVC ", _MSC_FULL_VER);
#else
  return "unknown";
#endif
}

// What it was compiled for: "Linux x86-64".
inline std::string system_name() {
#if defined(_WIN32)
  constexpr std::string_view system = "Windows";
#elif defined(__APPLE__)
  constexpr std::string_view system = "macOS";
#elif defined(__linux__)
  constexpr std::string_view system = "Linux";
#else
  constexpr std::string_view system = "POSIX";
#endif
#if defined(__x86_64__) || defined(_M_X64)
  constexpr std::string_view processor = "x86-64";
#elif defined(__aarch64__) || defined(_M_ARM64)
  constexpr std::string_view processor = "AArch64";
#else
  constexpr std::string_view processor = "unknown processor";
#endif
  return join(system, " ", processor);
}

// Runs body(); puts `context: ` in front of the message of an Error from it.
template <class Body>
auto in_context(const std::string& context, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    fail(context, ": ", error.what());
  }
}

// Product of sizes that come from outside; throws where it does not fit a size_t.
inline std::size_t checked_product(std::span<const std::size_t> factors, std::string_view what) {
  std::size_t product = 1;
  for (const std::size_t factor : factors) {
    require(factor == 0 || product <= std::numeric_limits<std::size_t>::max() / factor, what,
            ": size overflows");
    product *= factor;
  }
  return product;
}

// ================================================================================================
// 3  Arithmetic and random numbers
// ================================================================================================
// The same seed gives the same bits on every machine, with every compiler, at every level of
// optimization: `cmp` and `sha256sum` of two model files are a test that anybody can make. IEEE 754
// fixes the last bit of + - * / and sqrt, this file fixes their order, and chapter 6 keeps threads
// from changing it. Two freedoms remain to compilers and libraries, and both are taken away here:
//   - a * b + c may become one fused instruction, which rounds once instead of twice. So wherever a
//     product is added to something, this file says which is meant: fused(a, b, c), or
//     rounded(a * b) + c.
//   - exp, log, cos and pow of two C libraries differ in the last digit. On the way to a model file
//     stand only functions of our own.
// What options of a compiler could still break, check_arithmetic() finds when an engine is made.

// ---- Rounding ----------------------------------------------------------------------------------

namespace detail {

// x itself, hidden from the compiler, so that a product passed through is rounded by itself.
template <class Real>
inline Real rounded(Real x) {
#if defined(BERT4REC_PORTABLE)
  volatile Real kept = x;
  return kept;
#elif defined(__x86_64__)
  asm("" : "+x"(x));
  return x;
#elif defined(__aarch64__)
  asm("" : "+w"(x));
  return x;
#else
  asm("" : "+m"(x));
  return x;
#endif
}

// a b + c, rounded once. Without an instruction for it, in double: the product of two floats is
// exact there, and so is sum + rest. The sum is then rounded to odd (if it is not exact, its last
// bit becomes 1), so that rounding it once more, to float, gives what one rounding would have given
// (Boldo and Melquiond, IEEE Transactions on Computers, 2008).
inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || (defined(__FMA__) && defined(__GNUC__))
  return std::fma(a, b, c);
#else
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double sum = product + static_cast<double>(c), part = sum - product;
  const double rest = (product - (sum - part)) + (static_cast<double>(c) - part);
  auto bits = std::bit_cast<std::uint64_t>(sum);
  if ((rest < 0 || rest > 0) && bits % 2 == 0) {
    const bool outward = (rest > 0) == (sum > 0);
    bits = outward ? bits + 1 : bits - 1;
  }
  return static_cast<float>(std::bit_cast<double>(bits));
#endif
}

// In double, which serves to check gradients, two roundings will do.
inline double fused(double a, double b, double c) { return rounded(a * b) + c; }

// ---- Functions ---------------------------------------------------------------------------------

// (coefficients[0] x + coefficients[1]) x + ..., one fused step a coefficient.
template <class Real, std::size_t n>
inline Real polynomial(Real x, const Real (&coefficients)[n]) {
  Real sum = coefficients[0];
  for (std::size_t i = 1; i < n; ++i) sum = fused(sum, x, coefficients[i]);
  return sum;
}

// log x for a normal x > 0, within 2 units in the last place; infinity and NaN stay as they are.
// With x = 2^n m, m between sqrt(1/2) and sqrt(2), and s = (m - 1) / (m + 1):
//   log x = n log 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...)
inline double natural_log(double x) {
  if (!(x < std::numeric_limits<double>::infinity())) return x;
  constexpr std::uint64_t root_of_half = 0x3fe6a09e667f3bcd;
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const std::int64_t n = static_cast<std::int64_t>(bits - root_of_half) >> 52;
  const auto m = std::bit_cast<double>(bits - (static_cast<std::uint64_t>(n) << 52));
  const double s = (m - 1) / (m + 1), square = rounded(s * s);
  double series = 0;  // s^2 / 3 + s^4 / 5 + ...
  for (int k = 23; k >= 3; k -= 2) series = rounded(square * (1.0 / k + series));
  // log 2 in two parts, the first of which times n is exact
  constexpr double log2_high = 0x1.62e42fee00000p-1, log2_low = 0x1.a39ef35793c76p-33;
  const auto exponent = static_cast<double>(n);
  const double low = rounded(exponent * log2_low) + rounded(2 * s * series);
  return rounded(exponent * log2_high) + (2 * s + low);
}

// cos(pi x) for 0 <= x <= 1, as the sine of y = pi (1/2 - x):
//   sin y = y (1 - y^2 / (2 3) (1 - y^2 / (4 5) (1 - ...)))
inline double cosine_of_pi(double x) {
  const double y = 3.14159265358979323846 * (0.5 - x), square = rounded(y * y);
  double series = 1;
  for (int k = 20; k >= 2; k -= 2) series = 1 - rounded(square / (k * (k + 1)) * series);
  return rounded(y * series);
}

// base^exponent by squaring.
inline double power(double base, std::uint64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) result *= base;
    base *= base;
  }
  return rounded(result);
}

// x^a for x >= 0 and 0 <= a <= 1, by roots alone, which IEEE 754 rounds correctly: of the binary
// digits a = b0.b1 b2 b3 ..., digit k gives the factor x^(2^-k) if it is 1.
inline double root_power(double x, double a) {
  double result = 1;
  for (int digit = 0; digit < 40 && a > 0; ++digit) {
    if (a >= 1) result = rounded(result * x), a -= 1;
    x = std::sqrt(x), a *= 2;
  }
  return result;
}

// The z below which a normal number, cut to |z| <= 2, lies with probability (1 + q) / 2:
//   z = sqrt 2 erfinv(q erf(sqrt 2)) = q P(q^2) / Q(q^2),   -1 <= q <= 1
// The relative error is below 1e-8, a sixth of what rounding to float costs.
// Coefficients: tests/reference/fit_kernels.py.
inline double truncated_normal_quantile(double q) {
  constexpr double over[] = {-0.010175464749667437, 0.26176150454802109, -1.4776513566077967,
                             3.3226387762722734,    -3.2876576129842021, 1.1962880137706012};
  constexpr double under[] = {-0.0300052479524448, 0.40508087995118488, -1.7561147701816936,
                              3.3703743236184974,  -2.9867332552863277, 1.0};
  const double square = rounded(q * q);
  return q * polynomial(square, over) / polynomial(square, under);
}

}  // namespace detail

// ---- What this stands on -----------------------------------------------------------------------

// Throws where an option of the compiler that shows no macro, or the state of the processor, breaks
// the rules above. A compiler cannot know what it reads from a volatile.
inline void check_arithmetic() {
  const auto float_of = [](float x) {
    volatile float kept = x;
    return kept;
  };
  const auto holds = [](bool condition, std::string_view what) {
    require(condition, "the arithmetic of this program is not that of IEEE 754: ", what,
            ". Compile without parts of -ffast-math, and leave the processor's modes as they are");
  };
  const float one = float_of(1), zero = float_of(0), half_step = float_of(0x1p-24f);
  holds(one + half_step == 1 && one + 3 * half_step == 1 + 0x1p-22f,
        "sums are not rounded to the nearest, ties to even");
  const float smallest = float_of(0x1p-149f), normal = float_of(0x1p-126f);
  holds(smallest + smallest > 0 && normal * float_of(0.5f) > 0, "subnormal numbers become 0");
  const float nan = float_of(std::numeric_limits<float>::quiet_NaN());
  holds(std::isnan(nan) && nan != nan && !(nan < one), "NaN is not recognized");
  const float large = float_of(0x1p30f);
  holds((one + large) - large == 0, "sums are not added in the order they are written");
  holds(!std::signbit(-zero + 0.0f) && !std::signbit(0.0f - zero), "the sign of 0 is lost");
  holds(float_of(5) / 49.0f == 0x1.a1f58ep-4f, "quotients are not rounded correctly");
  holds(std::sqrt(float_of(2)) == 0x1.6a09e6p+0f, "roots are not rounded correctly");
  const float a = float_of(1 + 0x1p-12f), square = 1 + 0x1p-11f;  // a a = square + 2^-24
  holds(detail::rounded(a * a) - square == 0 && detail::fused(a, a, -square) == 0x1p-24f,
        "products are not rounded as they are written");
  const double b = 1 + 0x1p-27 * static_cast<double>(one), wide_square = 1 + 0x1p-26;
  holds(detail::rounded(b * b) - wide_square == 0, "products are not rounded as they are written");
}

// ---- Random numbers ----------------------------------------------------------------------------
// Counter-based: value = f(key, counter), with no state between draws. Masks, dropout, shuffles and
// initial weights are pure functions of (seed, purpose, step, place), so a run gives the same bits
// on any number of threads and after a resume, and nothing about the generator is ever stored.
//
// The function is Threefry-2x32-20 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): twenty rounds of add, rotate, xor. Published test vectors (key, counter -> value):
//   00000000 00000000, 00000000 00000000 -> 6b200159 99ba4efe
//   ffffffff ffffffff, ffffffff ffffffff -> 1cb996fc bb002be7
//   13198a2e 03707344, 243f6a88 85a308d3 -> c4923a9c 483df7a0

struct Key {
  std::uint32_t low = 0, high = 0;
  friend bool operator==(const Key&, const Key&) = default;
};

constexpr Key make_key(std::uint64_t seed) {
  return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
}

namespace detail {

inline constexpr std::uint32_t threefry_parity = 0x1BD11BDA;
inline constexpr int threefry_rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};

constexpr void threefry(Key key, std::uint32_t& x0, std::uint32_t& x1) {
  const std::uint32_t keys[3] = {key.low, key.high, threefry_parity ^ key.low ^ key.high};
  x0 += keys[0];
  x1 += keys[1];
  for (std::uint32_t block = 1; block <= 5; ++block) {
    for (std::uint32_t round = 0; round < 4; ++round) {
      const int turn = threefry_rotations[(block - 1) % 2 * 4 + round];
      x0 += x1;
      x1 = (x1 << turn) | (x1 >> (32 - turn));
      x1 ^= x0;
    }
    x0 += keys[block % 3];
    x1 += keys[(block + 1) % 3] + block;
  }
}

}  // namespace detail

// 64 random bits: word 0 in the low half.
constexpr std::uint64_t random_bits(Key key, std::uint64_t counter) {
  auto x0 = static_cast<std::uint32_t>(counter);
  auto x1 = static_cast<std::uint32_t>(counter >> 32);
  detail::threefry(key, x0, x1);
  return (std::uint64_t{x1} << 32) | x0;
}

// An independent stream for each number: fold_in(fold_in(key, purpose), step).
constexpr Key fold_in(Key key, std::uint64_t number) { return make_key(random_bits(key, number)); }

// What each stream of a run is for: the first number folded into the seed. The order is part of
// every result: a new one goes to the end. demo (data that are made up) and audit are of tools.
enum class Stream : std::uint64_t {
  weights,
  split,
  shuffle,
  masks,
  validation_masks,
  dropout,
  demo,
  negatives,
  bootstrap,
  reordering,
  audit,
  sampled_items,
  own_negatives,
  augment,
  bigrams
};

constexpr Key stream_key(std::uint64_t seed, Stream stream) {
  return fold_in(make_key(seed), static_cast<std::uint64_t>(stream));
}

// Uniform in [0, 1): multiples of 2^-53.
constexpr double uniform(Key key, std::uint64_t counter) {
  return static_cast<double>(random_bits(key, counter) >> 11) * 0x1p-53;
}

// Uniform in 0 ... n - 1 (each within n * 2^-53 of equally likely).
constexpr std::size_t below(Key key, std::uint64_t counter, std::size_t n) {
  return static_cast<std::size_t>(uniform(key, counter) * static_cast<double>(n));
}

// Normal with mean 0 and deviation 1, cut to |z| <= 2: the inverse of its distribution function.
inline double truncated_normal(Key key, std::uint64_t counter) {
  return detail::truncated_normal_quantile(2 * uniform(key, counter) - 1);
}

// Fisher-Yates: every order equally likely.
template <class Element>
void shuffle(std::vector<Element>& elements, Key key) {
  for (std::size_t i = elements.size(); i > 1; --i) {
    std::swap(elements[i - 1], elements[below(key, i, i)]);
  }
}

// ================================================================================================
// 4  JSON
// ================================================================================================
// RFC 8259, strict: UTF-8 only, no NaN, no trailing commas, at most 512 levels. One thing that the
// RFC allows is refused: a name that stands twice in an object, whose meaning it leaves open.
// JsonReader pulls values out of a text without building a tree, which is what makes large
// histories load fast; Json is the small tree used for configurations and metrics. This chapter
// says what they offer; how they do it, appendix A.

// Each call takes the next value off the text, and throws if it is of another kind:
//   reader.object([&](std::string_view name) {
//     if (name == "size") size = reader.integer();
//     else reader.skip();
//   });
class JsonReader {
 public:
  // `file` and `line` (0: no lines) name the text in errors. Both texts must outlive the reader.
  explicit JsonReader(std::string_view text, std::string_view file = "JSON", std::size_t line = 0)
      : text_(text), file_(file), line_(line) {}

  void skip_byte_order_mark() {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;
  }

  // First character of the next value: { [ " - 0...9 t f n, or '\0' at the end of the text.
  char peek();

  // Calls on_member(name) for each member; on_member must read the value or skip() it. The name is
  // valid until the next string is read. A name that stands twice is an error at the end of the
  // object: what two values of one name mean, nobody knows.
  template <class OnMember>
  void object(OnMember&& on_member);

  // Calls on_element() for each element; it must read the value or skip() it.
  template <class OnElement>
  void array(OnElement&& on_element) {
    list('[', ']', "an array", on_element);
  }

  // The decoded string; valid until the next string is read.
  std::string_view string();
  std::int64_t integer();
  double number();
  bool boolean();
  void null() { literal("null"); }
  bool is_null() { return peek() == 'n'; }

  // The next value, whatever it is, checked and dropped; returns its text.
  std::string_view skip();

  // Nothing but space may follow.
  void end();

  // Throws an Error that names the place in the text ...
  template <class... Parts>
  [[noreturn]] void error(const Parts&... parts) const;

  // ... and what was found there instead of what was expected.
  [[noreturn]] void unexpected(std::string_view expected);

 private:
  static constexpr std::size_t max_depth = 512;

  static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  bool accept(char c);
  void expect(char c, std::string_view expected);
  template <class OnElement>
  void list(char open, char close, std::string_view what, OnElement&& on_element);
  void literal(std::string_view word);
  std::string_view number_text();
  void digits();
  static bool is_tiny(std::string_view number);
  std::string_view decode_string(std::size_t start);
  void decode_escape();
  unsigned hex4();
  void append_utf8(unsigned code);
  void keep_name(std::string_view name);
  void forget_names(std::size_t outer);

  std::string_view text_, file_;
  std::size_t line_ = 0, at_ = 0, depth_ = 0;
  std::string decoded_;
  std::vector<std::string_view> names_;  // of the members so far, of all objects that are open
  std::vector<std::unique_ptr<std::string>> decoded_names_;  // those that the text spells otherwise
};

namespace detail {

// A std::variant that can be copied while memory runs out: libstdc++ destroys what it has not built
// where copying one of texts and vectors fails. So the copy is made first and moved in.
template <class... Types>
class Variant : public std::variant<Types...> {
  using Base = std::variant<Types...>;

 public:
  using Base::Base, Base::operator=;
  Variant() = default;
  Variant(const Variant& other) : Base(copied(other)) {}
  Variant(Variant&&) noexcept = default;
  Variant& operator=(const Variant& other) { return *this = Variant(other); }
  Variant& operator=(Variant&&) noexcept = default;

 private:
  static Base copied(const Base& other);
};

}  // namespace detail

// A JSON value as a tree. Members of an object keep the order in which they were added.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;

  Json() = default;  // null
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(double value) : value_(value) {}
  template <std::integral Integer>
  requires(!std::is_same_v<Integer, bool>) Json(Integer value)
      : value_(static_cast<std::int64_t>(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}
  template <class Number>
  Json(const std::vector<Number>& numbers) : value_(Array(numbers.begin(), numbers.end())) {}
  template <class Pointee>
  requires(!std::is_convertible_v<Pointee*, std::string_view>) Json(Pointee*)
  = delete;  // not true

  // The one value of a text, which errors name as JsonReader does; or the next one of a reader.
  static Json parse(std::string_view text, std::string_view file = "JSON", std::size_t line = 0);
  static Json read(JsonReader& reader);

  // The text; `indent` spaces a level, or everything on one line for 0. NaN and infinity, which
  // JSON lacks, are written as null.
  std::string text(int indent = 0) const;

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }

  // The value, which must be of this kind.
  bool boolean() const { return get<bool>("true or false"); }
  std::int64_t integer() const { return get<std::int64_t>("an integer"); }
  double number() const;
  // A number, or NaN for null: the inverse of how text() writes NaN.
  double number_or_nan() const { return is_null() ? std::nan("") : number(); }
  const std::string& string() const { return get<std::string>("a string"); }
  const Array& array() const& { return get<Array>("an array"); }
  const Object& object() const& { return get<Object>("an object"); }
  const Array& array() const&& = delete;  // `for (... : make().array())` would dangle
  const Object& object() const&& = delete;

  // The member of that name, or nullptr; and the one that must be there.
  const Json* find(std::string_view name) const;
  const Json& at(std::string_view name) const;
  // Appends a member, whose name must be new, to an object (or to null, which becomes one).
  void set(std::string_view name, Json value);

 private:
  template <class Type>
  const Type& get(std::string_view expected) const;
  void write(std::string& out, int indent, int depth) const;
  static void write_string(std::string& out, std::string_view value);

  detail::Variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> value_;
};

// ================================================================================================
// 5  Flat files
// ================================================================================================
// Every file is read whole and written whole. A write goes to a temporary file in the same folder,
// is flushed to the disk and then renamed over the old one, so that whoever is killed at any moment
// leaves the old file or the new one, never a mixture. Files that belong together are replaced
// together (FileSet), and what is read back later carries a checksum. Formats: JSON, JSONL (one
// JSON text a line) and safetensors (https://github.com/huggingface/safetensors: 8 bytes
// little-endian header size, a JSON header {name: {dtype, shape, data_offsets}}, then the numbers).

// ---- The operating system ----------------------------------------------------------------------
// All that differs between systems, once for Windows and once for POSIX. What fails returns false,
// a negative number or `no_handle`; last_problem() then tells the system's reason.

}  // namespace bert4rec

#ifdef _WIN32
#include <cstdarg>
// What is needed of windows.h, whose macros stay out of the programs that include this file.
#define BERT4REC_IMPORT __declspec(dllimport)
extern "C" {
struct _SECURITY_ATTRIBUTES;
struct _OVERLAPPED;
union _LARGE_INTEGER;
BERT4REC_IMPORT void* __stdcall CreateFileW(const wchar_t*, unsigned long, unsigned long,
                                            struct _SECURITY_ATTRIBUTES*, unsigned long,
                                            unsigned long, void*);
BERT4REC_IMPORT int __stdcall CloseHandle(void*);
BERT4REC_IMPORT unsigned long __stdcall GetFileType(void*);
BERT4REC_IMPORT int __stdcall GetFileSizeEx(void*, union _LARGE_INTEGER*);
BERT4REC_IMPORT int __stdcall ReadFile(void*, void*, unsigned long, unsigned long*,
                                       struct _OVERLAPPED*);
BERT4REC_IMPORT int __stdcall WriteFile(void*, const void*, unsigned long, unsigned long*,
                                        struct _OVERLAPPED*);
BERT4REC_IMPORT unsigned long __stdcall SetFilePointer(void*, long, long*, unsigned long);
BERT4REC_IMPORT int __stdcall FlushFileBuffers(void*);
BERT4REC_IMPORT int __stdcall LockFile(void*, unsigned long, unsigned long, unsigned long,
                                       unsigned long);
BERT4REC_IMPORT int __stdcall MoveFileExW(const wchar_t*, const wchar_t*, unsigned long);
BERT4REC_IMPORT unsigned long __stdcall GetCurrentProcessId();
BERT4REC_IMPORT unsigned long __stdcall GetLastError();
BERT4REC_IMPORT unsigned long __stdcall FormatMessageW(unsigned long, const void*, unsigned long,
                                                       unsigned long, wchar_t*, unsigned long,
                                                       va_list*);
}
#undef BERT4REC_IMPORT
#else
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace bert4rec::detail::os {

// create: where there is nothing; append, lock: there may be one; stream: to read, may be a pipe.
enum class Use { read, create, append, lock, stream };
enum class Kind { regular, other, unknown };
enum class LockResult { taken, held, failed };

#ifdef _WIN32

using Handle = void*;
inline const Handle no_handle = reinterpret_cast<Handle>(std::intptr_t{-1});

// In the language of the system, and one line.
inline std::string last_problem() {
  const unsigned long number = GetLastError();
  constexpr unsigned long from_system = 0x1000, without_inserts = 0x200, one_line = 0xFF;
  wchar_t text[512];
  const unsigned long length = FormatMessageW(from_system | without_inserts | one_line, nullptr,
                                              number, 0, text, 512, nullptr);
  std::string reason = path_text(std::wstring(text, length));
  while (reason.ends_with(' ') || reason.ends_with('.')) reason.pop_back();
  return join(reason.empty() ? "error" : reason, " (", number, ")");
}

// Others may read, write, rename and delete what is open here, as on POSIX.
inline Handle open(const Path& path, Use use, unsigned = 0) {
  constexpr unsigned long to_read = 0x80000000, to_write = 0x40000000, to_append = 4;
  constexpr unsigned long access[] = {to_read, to_write, to_append, to_read | to_write, to_read};
  constexpr unsigned long create_new = 1, open_existing = 3, open_always = 4;
  constexpr unsigned long way[] = {open_existing, create_new, open_always, open_always,
                                   open_existing};
  constexpr unsigned long share_all = 7, normal_file = 0x80;
  const auto index = static_cast<std::size_t>(use);
  return CreateFileW(path.c_str(), access[index], share_all, nullptr, way[index], normal_file,
                     nullptr);
}

inline bool close(Handle file) { return CloseHandle(file) != 0; }

inline Kind examine(Handle file, std::uint64_t& size) {
  constexpr unsigned long on_disk = 1;
  if (GetFileType(file) != on_disk) return Kind::other;
  const bool known = GetFileSizeEx(file, reinterpret_cast<union _LARGE_INTEGER*>(&size)) != 0;
  return known ? Kind::regular : Kind::unknown;
}

// At most a GiB at once, since Windows counts in 32 bits.
inline unsigned long part_of(std::size_t size) {
  return static_cast<unsigned long>(std::min(size, std::size_t{1} << 30));
}

inline std::ptrdiff_t read(Handle file, char* to, std::size_t size) {
  unsigned long count = 0;
  constexpr unsigned long broken_pipe = 109;  // whoever wrote into it is done
  if (ReadFile(file, to, part_of(size), &count, nullptr) == 0) {
    return GetLastError() == broken_pipe ? 0 : -1;
  }
  return static_cast<std::ptrdiff_t>(count);
}

// Lets the next read() begin at a place that is inside the file.
inline bool seek(Handle file, std::uint64_t place) {
  constexpr unsigned long from_begin = 0, invalid = 0xFFFFFFFF;
  const auto low = static_cast<std::uint32_t>(place);
  long high = static_cast<long>(place >> 32);
  const unsigned long moved =
      SetFilePointer(file, std::bit_cast<std::int32_t>(low), &high, from_begin);
  return moved != invalid || low == invalid;
}

inline std::ptrdiff_t write(Handle file, const char* from, std::size_t size) {
  unsigned long count = 0;
  if (WriteFile(file, from, part_of(size), &count, nullptr) == 0) return -1;
  return static_cast<std::ptrdiff_t>(count);
}

inline bool flush(Handle file) { return FlushFileBuffers(file) != 0; }

inline void copy_permissions(const Path&, Handle) {}  // a new file has those of its folder

// Tries for a second: readers, virus scanners and indexers may hold either file for a moment.
inline bool replace(const Path& from, const Path& to) {
  constexpr unsigned long replace_existing = 1, write_through = 8;
  constexpr unsigned long access_denied = 5, sharing_violation = 32;
  for (int attempt = 0;; ++attempt) {
    if (MoveFileExW(from.c_str(), to.c_str(), replace_existing | write_through) != 0) return true;
    const unsigned long number = GetLastError();
    if (attempt == 40 || (number != access_denied && number != sharing_violation)) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
  }
}

inline bool flush_folder(const Path&) { return true; }  // replace() has written through

// Adds what a folder holds to `names`.
inline bool list(const Path& folder, std::vector<Path>& names) {
  std::error_code problem;
  std::filesystem::directory_iterator entry(folder, problem), end;
  for (; !problem && entry != end; entry.increment(problem)) {
    names.push_back(entry->path().filename());
  }
  return !problem;
}

inline LockResult lock(Handle file) {
  constexpr unsigned long lock_violation = 33, whole = 0xFFFFFFFF;
  if (LockFile(file, 0, 0, whole, whole) != 0) return LockResult::taken;
  return GetLastError() == lock_violation ? LockResult::held : LockResult::failed;
}

inline std::uint64_t process_number() { return GetCurrentProcessId(); }

inline std::tm utc(std::time_t time) {
  std::tm parts{};
  ::gmtime_s(&parts, &time);
  return parts;
}

#else

using Handle = int;
inline constexpr Handle no_handle = -1;

inline std::string last_problem() { return std::generic_category().message(errno); }

inline Handle open(const Path& path, Use use, unsigned permissions = 0644) {
  // O_NONBLOCK: opening a named pipe where a file is meant must not wait for a writer.
  constexpr int flags[] = {O_RDONLY | O_NONBLOCK, O_WRONLY | O_CREAT | O_EXCL,
                           O_WRONLY | O_CREAT | O_APPEND, O_RDWR | O_CREAT, O_RDONLY};
  Handle file = no_handle;
  do file = ::open(path.c_str(), flags[static_cast<std::size_t>(use)] | O_CLOEXEC, permissions);
  while (file < 0 && errno == EINTR);
  return file;
}

inline bool close(Handle file) { return ::close(file) == 0; }

inline Kind examine(Handle file, std::uint64_t& size) {
  struct stat facts {};
  if (::fstat(file, &facts) != 0) return Kind::unknown;
  size = static_cast<std::uint64_t>(facts.st_size);
  return S_ISREG(facts.st_mode) ? Kind::regular : Kind::other;
}

constexpr std::size_t most_at_once = std::size_t{1} << 30;  // macOS refuses 2 GiB

inline std::ptrdiff_t read(Handle file, char* to, std::size_t size) {
  std::ptrdiff_t count = 0;
  do count = ::read(file, to, std::min(size, most_at_once));
  while (count < 0 && errno == EINTR);
  return count;
}

// Lets the next read() begin there.
inline bool seek(Handle file, std::uint64_t place) {
  return ::lseek(file, static_cast<off_t>(place), SEEK_SET) >= 0;
}

inline std::ptrdiff_t write(Handle file, const char* from, std::size_t size) {
  std::ptrdiff_t count = 0;
  do count = ::write(file, from, std::min(size, most_at_once));
  while (count < 0 && errno == EINTR);
  return count;
}

// Who may read a file, may read the one that replaces it, and nobody else. (Where the group cannot
// be that of the old one, it gets what everybody has.)
inline void copy_permissions(const Path& from, Handle to) {
  struct stat old {};
  struct stat own {};
  if (::stat(from.c_str(), &old) != 0 || ::fstat(to, &own) != 0) return;
  bool same_group = own.st_gid == old.st_gid;
  if (!same_group || own.st_uid != old.st_uid) {
    same_group = ::fchown(to, old.st_uid, old.st_gid) == 0 || same_group ||
                 ::fchown(to, static_cast<uid_t>(-1), old.st_gid) == 0;
  }
  const mode_t of_group = same_group ? 070 : (old.st_mode & 07) << 3;
  ::fchmod(to, old.st_mode & (0707 | of_group));
}

inline bool flush(Handle file) {
#ifdef __APPLE__
  if (::fcntl(file, F_FULLFSYNC) == 0) return true;  // fsync() stops at the cache of the disk
#endif
  int failed = 0;
  do failed = ::fsync(file);
  while (failed != 0 && errno == EINTR);
  return failed == 0;
}

inline bool replace(const Path& from, const Path& to) {
  return ::rename(from.c_str(), to.c_str()) == 0;
}

inline bool flush_folder(const Path& folder) {
  const Handle file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return false;
  const bool flushed = flush(file) || errno == EINVAL || errno == ENOTSUP;  // not all can
  const int number = errno;
  ::close(file);
  errno = number;
  return flushed;
}

// (Not std::filesystem::directory_iterator: that of libstdc++ ends the program where memory does.)
inline bool list(const Path& folder, std::vector<Path>& names) {
  struct Closer {
    void operator()(DIR* stream) const { ::closedir(stream); }
  };
  const std::unique_ptr<DIR, Closer> stream(::opendir(folder.c_str()));
  while (stream != nullptr) {
    errno = 0;
    const dirent* const entry = ::readdir(stream.get());
    if (entry == nullptr) return errno == 0;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  return false;
}

inline LockResult lock(Handle file) {
  if (::flock(file, LOCK_EX | LOCK_NB) == 0) return LockResult::taken;
  return errno == EWOULDBLOCK ? LockResult::held : LockResult::failed;
}

inline std::uint64_t process_number() { return static_cast<std::uint64_t>(::getpid()); }

inline std::tm utc(std::time_t time) {
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  return parts;
}

#endif

}  // namespace bert4rec::detail::os

namespace bert4rec {

// ---- Files, whole ------------------------------------------------------------------------------

namespace detail {

[[noreturn]] inline void fail_system(const Path& path, std::string_view action) {
  const std::string reason = os::last_problem();  // before anything else can fail
  fail(path, ": cannot ", action, ": ", reason);
}

// Owns an open file.
class FileHandle {
 public:
  FileHandle(const Path& path, os::Use use, std::string_view action, unsigned permissions = 0644)
      : handle_(os::open(path, use, permissions)) {
    if (handle_ == os::no_handle) fail_system(path, action);
  }
  FileHandle(const FileHandle&) = delete;
  FileHandle& operator=(const FileHandle&) = delete;
  ~FileHandle() { close(); }

  os::Handle handle() const { return handle_; }
  // All of the bytes; `path` is for the message.
  void write(std::string_view bytes, const Path& path) const {
    while (!bytes.empty()) {
      const auto count = os::write(handle_, bytes.data(), bytes.size());
      if (count < 0) fail_system(path, "write");
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
  }
  bool close() {
    return handle_ == os::no_handle || os::close(std::exchange(handle_, os::no_handle));
  }

 private:
  os::Handle handle_;
};

// Another one at each call, in all threads of all processes.
inline Path temporary_name(const Path& name) {
  static std::atomic<std::uint64_t> count{0};
  return path_from(join(".", name, ".tmp.", os::process_number(), ".", count++));
}

inline bool is_temporary_name(std::string_view name) {
  const std::size_t at = name.rfind(".tmp.");
  return name.starts_with('.') && at != name.npos && at + 5 < name.size() &&
         name.find_first_not_of("0123456789.", at + 5) == name.npos;
}

inline Path folder_of(const Path& path) {
  return path.has_parent_path() ? path.parent_path() : Path(".");
}

}  // namespace detail

// The last `count` names of a path, as a heading may have them: "output/demo".
inline std::string last_names(const Path& path, std::size_t count) {
  const auto tidy = [](const Path& some) {
    const Path normal = some.lexically_normal();
    return normal.has_filename() ? normal : normal.parent_path();
  };
  Path whole = tidy(path);
  std::error_code failed;
  if (whole == "." || whole.filename() == "..")
    whole = tidy(std::filesystem::absolute(path, failed));
  std::vector<std::string> names;
  for (const Path& name : whole.relative_path()) names.push_back(path_text(name));
  std::string text;
  for (std::size_t i = names.size() - std::min(count, names.size()); i < names.size(); ++i) {
    text += (text.empty() ? "" : "/") + names[i];
  }
  return shown(text);
}

// A regular file, open for reading.
class InputFile {
 public:
  explicit InputFile(const Path& path)
      : path_(checked(path)), file_(path, detail::os::Use::read, "open") {
    const auto kind = detail::os::examine(file_.handle(), size_);
    if (kind == detail::os::Kind::unknown) detail::fail_system(path, "examine");
    require(kind == detail::os::Kind::regular, path, ": not a regular file");
  }

  const Path& path() const { return path_; }
  std::uint64_t size() const { return size_; }  // in bytes, when it was opened

  // The next bytes; returns how many, fewer than `size` only at the end of the file.
  std::size_t read(char* to, std::size_t size) const {
    std::size_t done = 0;
    while (done < size) {
      const auto count = detail::os::read(file_.handle(), to + done, size - done);
      if (count < 0) detail::fail_system(path_, "read");
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    return done;
  }

  // `size` bytes from a place on, all of them.
  void read_at(std::uint64_t place, char* to, std::size_t size) const {
    if (!detail::os::seek(file_.handle(), place)) detail::fail_system(path_, "read");
    require(read(to, size) == size, path_, ": was cut while it was read");
  }

 private:
  // (Windows would only say that the access to a folder is denied.)
  static const Path& checked(const Path& path) {
    std::error_code ignored;
    require(!std::filesystem::is_directory(path, ignored), path, ": not a regular file");
    return path;
  }

  Path path_;
  detail::FileHandle file_;
  std::uint64_t size_ = 0;
};

// The bytes of a regular file.
inline std::string read_file(const Path& path) {
  const InputFile file(path);
  std::string bytes;
  try {
    bytes.resize(static_cast<std::size_t>(file.size()));
  } catch (const std::exception&) {
    fail(path, ": too large to read: ", file.size(), " bytes");
  }
  bytes.resize(file.read(bytes.data(), bytes.size()));
  return bytes;
}

inline bool path_exists(const Path& path) {
  std::error_code problem;
  const bool exists = std::filesystem::exists(path, problem);
  require(!problem, path, ": cannot examine: ", problem.message());
  return exists;
}

// The names of what a folder holds, sorted.
inline std::vector<Path> names_in_folder(const Path& folder) {
  std::vector<Path> names;
  if (!detail::os::list(folder, names)) detail::fail_system(folder, "list");
  std::sort(names.begin(), names.end());
  return names;
}

// A folder, and those above it, where there is none yet; as lasting as the files in it.
inline void make_folder(const Path& path) {
  std::error_code problem;
  std::vector<Path> above;  // folders that get a new entry
  for (Path at = path; !std::filesystem::is_directory(at, problem); at = above.back()) {
    above.push_back(detail::folder_of(at));
    if (above.back() == at) break;
  }
  std::filesystem::create_directories(path, problem);
  require(!problem, path, ": cannot create the folder: ", problem.message());
  for (const Path& folder : above) {
    if (!detail::os::flush_folder(folder)) detail::fail_system(folder, "flush to the disk");
  }
}

// Removes a file, or a folder with all that is in it, where there is one.
inline void remove_path(const Path& path) {
  std::error_code problem;
  if (std::filesystem::is_directory(std::filesystem::symlink_status(path, problem))) {
    for (const Path& name : names_in_folder(path)) remove_path(path / name);
  }
  std::filesystem::remove(path, problem);
  require(!problem, path, ": cannot remove: ", problem.message());
}

namespace detail {

// A file beside `path` under a name of its own, which goes with its owner unless it is kept.
class TemporaryFile {
 public:
  explicit TemporaryFile(const Path& path)
      : path_(checked(path)),
        temporary_(unused_name(path)),
        file_(temporary_, os::Use::create, "create", path_exists(path) ? 0600u : 0644u) {
    os::copy_permissions(path, file_.handle());  // until then, nobody else may read it
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (kept_) return;
    file_.close();
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
  }

  const Path& path() const { return path_; }
  const Path& temporary() const { return temporary_; }

  void write(std::string_view bytes) { file_.write(bytes, path_); }

  // Everything is on the disk then.
  void finish() {
    if (!os::flush(file_.handle())) fail_system(path_, "flush to the disk");
    if (!file_.close()) fail_system(path_, "close");
  }

  void keep() { kept_ = true; }

 private:
  // (A device such as /dev/null would be gone.)
  static const Path& checked(const Path& path) {
    std::error_code ignored;
    require(!std::filesystem::is_other(path, ignored), path, ": not a regular file");
    return path;
  }

  // (A process of the same number may have been killed here.)
  static Path unused_name(const Path& path) {
    std::error_code ignored;
    for (int attempt = 1;; ++attempt) {
      const Path name = path.parent_path() / temporary_name(path.filename());
      const auto status = std::filesystem::symlink_status(name, ignored);
      if (!std::filesystem::exists(status) || attempt == 1000) return name;
    }
  }

  Path path_, temporary_;
  FileHandle file_;
  bool kept_ = false;
};

}  // namespace detail

// A file that appears under its name only when complete:
//   AtomicFile file(path); file.write(bytes); ...; file.commit();
// Without commit() nothing is left and an older file of that name stays as it was.
class AtomicFile {
 public:
  explicit AtomicFile(const Path& path) : file_(path) {}

  void write(std::string_view bytes) { file_.write(bytes); }

  void commit() {
    file_.finish();
    if (!detail::os::replace(file_.temporary(), file_.path())) {
      detail::fail_system(file_.path(), "replace");
    }
    file_.keep();
    const Path folder = detail::folder_of(file_.path());
    if (!detail::os::flush_folder(folder)) detail::fail_system(folder, "flush to the disk");
  }

 private:
  detail::TemporaryFile file_;
};

inline void write_file(const Path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

namespace detail {

// Takes the lock of a folder, of which `file` is the lock file. While somebody else has it, tries
// again every 20 ms, `attempts` times in all, and then throws. False: wanted() no longer holds, so
// there is nothing to do with the lock.
template <class Wanted>
bool take_lock(const Path& folder, const FileHandle& file, int attempts, Wanted&& wanted) {
  for (int attempt = 1; wanted(); ++attempt) {
    const auto result = os::lock(file.handle());
    if (result == os::LockResult::taken) return wanted();
    if (result == os::LockResult::failed) fail_system(folder, "lock");
    require(attempt < attempts, folder, ": another process or Trainer is writing to this folder");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

}  // namespace detail

// Keeps a second process out of a folder. The kernel drops the lock when its owner ends, however it
// ends, so there are no stale locks.
class FolderLock {
 public:
  explicit FolderLock(const Path& folder)
      : folder_(folder), file_(folder / ".lock", detail::os::Use::lock, "create the lock file") {
    detail::take_lock(folder, file_, 1, [] { return true; });
  }

  const Path& folder() const { return folder_; }

 private:
  Path folder_;
  detail::FileHandle file_;
};

// Removes what killed writers left in a folder (only the holder of the folder's lock may do so).
inline void remove_stale_temporaries(const Path& folder) {
  if (!path_exists(folder)) return;
  for (const Path& name : names_in_folder(folder)) {
    if (detail::is_temporary_name(path_text(name))) remove_path(folder / name);
  }
}

// Calls on_line(line, number) for each line that is not blank; numbers begin at 1.
template <class OnLine>
void for_each_line(std::string_view text, OnLine&& on_line) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t length = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(" \t") != line.npos) on_line(line, number);
  }
}

// FNV-1a over 64-bit words (the last one filled up with zeros): detects damage, not malice.
inline std::uint64_t checksum(std::string_view bytes, std::uint64_t hash = 0xcbf29ce484222325) {
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at));
    hash = (hash ^ word) * 0x100000001b3;
    hash ^= hash >> 29;
  }
  return hash;
}

namespace detail {

inline std::string hexadecimal(std::uint64_t value) {
  char digits[16];
  return {digits, std::to_chars(digits, digits + 16, value, 16).ptr};
}

inline constexpr std::string_view seal_begin = "{\"checksum\": \"";

// Of what stands behind it, but for space at the end.
inline std::string seal_of(std::string_view rest) {
  return hexadecimal(checksum(rest.substr(0, rest.find_last_not_of(" \r\n") + 1)));
}

}  // namespace detail

// ---- Sealed JSON -------------------------------------------------------------------------------
// JSON that is read back later begins with a checksum of everything behind it:
//   {"checksum": "0123456789abcdef", ...
// It is there to find damage. Who changes such a file by hand takes the checksum out.

// The text of a JSON object with members, sealed.
inline std::string sealed(std::string_view object) {
  object.remove_prefix(1);
  const std::string rest = join("\",", object.starts_with('\n') ? "" : " ", object);
  return join(detail::seal_begin, detail::seal_of(rest), rest);
}

// Whether a text is sealed; throws if it is and the checksum does not match.
inline bool check_seal(std::string_view text, std::string_view file) {
  if (!text.starts_with(detail::seal_begin)) return false;
  text.remove_prefix(detail::seal_begin.size());
  const std::size_t end = std::min(text.find('"'), text.size());
  require(text.substr(0, end) == detail::seal_of(text.substr(end)), file,
          ": the checksum does not match: the file is damaged, or was changed by hand (take its "
          "\"checksum\" out then)");
  return true;
}

// The object in a file of JSON, without the checksum that it may begin with.
inline Json read_sealed_json(const Path& path) {
  const std::string text = read_file(path), file = path_text(path);
  const bool is_sealed = check_seal(text, file);
  Json json = Json::parse(text, file);
  return in_context(file, [&] {
    Json::Object members = json.object();
    if (is_sealed) members.erase(members.begin());
    return Json(std::move(members));
  });
}

// ---- Sets of files -----------------------------------------------------------------------------
// Files of one folder (or of folders in it) that belong together:
//   FileSet set(lock); set.write("a", ...); set.write("b", ...); set.remove("c"); set.commit();
// Whoever is killed at any moment leaves all as it was or all as it is meant to be. For that the
// new files wait under temporary names while a journal is written, which says what is to be renamed
// and removed. Once it is there the set counts as replaced: if the writer is killed now, settle()
// does the rest before anybody reads.

namespace detail {

inline constexpr std::string_view journal_name = ".replacing";

// A place inside the folder: what a damaged or forged journal says must not reach further.
inline Path journal_path(const Path& folder, std::string_view name) {
  const Path path = is_utf8(name) ? path_from(name) : Path();
  const auto lacks = [&](const char* part) {
    return std::find(path.begin(), path.end(), Path(part)) == path.end();
  };
  require(path.is_relative() && !path.has_root_path() && path.has_filename() && lacks(".") &&
              lacks(".."),
          "\"", shown(name), "\" is no place in the folder");
  return folder / path;
}

// Flushes each folder once, if it is there.
inline void flush_folders(std::vector<Path> folders) {
  std::sort(folders.begin(), folders.end());
  folders.erase(std::unique(folders.begin(), folders.end()), folders.end());
  for (const Path& folder : folders) {
    if (path_exists(folder) && !os::flush_folder(folder)) fail_system(folder, "flush to the disk");
  }
}

// What a journal may rename: the temporary of a file to that file.
inline bool is_temporary_of(const Path& from, const Path& to) {
  const std::string name = path_text(from.filename());
  return from.parent_path() == to.parent_path() && is_temporary_name(name) &&
         name.starts_with(join(".", to.filename(), ".tmp."));
}

// What a journal may remove: a folder in a folder could stand behind a link, somewhere else.
inline Path removable_path(const Path& folder, std::string_view name) {
  const Path path = journal_path(folder, name);
  std::error_code ignored;
  require(!path_from(name).has_parent_path() || !std::filesystem::is_directory(path, ignored), path,
          " is a folder, expected a file");
  return path;
}

// Does what the journal of a folder says, if there is one. Doing so twice does no harm.
inline void obey_journal(const Path& folder) {
  const Path journal = folder / journal_name;
  if (!path_exists(journal)) return;
  const Json orders = read_sealed_json(journal);
  std::vector<Path> folders;  // that change
  in_context(path_text(journal), [&] {
    for (const Json& pair : orders.at("replace").array()) {
      require(pair.array().size() == 2, "expected pairs of names");
      const Path from = journal_path(folder, pair.array()[0].string());
      const Path to = journal_path(folder, pair.array()[1].string());
      require(is_temporary_of(from, to), from, " is no temporary of ", to);
      if (path_exists(from) && !os::replace(from, to)) fail_system(to, "replace");
      folders.push_back(to.parent_path());
    }
    for (const Json& name : orders.at("remove").array()) {
      const Path path = removable_path(folder, name.string());
      remove_path(path);
      folders.push_back(path.parent_path());
    }
  });
  flush_folders(std::move(folders));
  remove_path(journal);
  // Or a loss of power could bring it back, and what it removes may be there anew.
  if (!os::flush_folder(folder)) fail_system(folder, "flush to the disk");
}

}  // namespace detail

class FileSet {
 public:
  explicit FileSet(const FolderLock& lock) : folder_(lock.folder()) {}

  // Appends to the new file of that name. If it throws, nothing can be committed any more.
  void write(std::string_view name, std::string_view bytes) {
    const Path path = detail::journal_path(folder_, name);
    ++unwritten_;
    auto& file = files_[std::string(name)];
    if (file == nullptr) file = std::make_unique<detail::TemporaryFile>(path);
    file->write(bytes);
    --unwritten_;
  }

  // Lets commit() remove that file, if there is one and the set writes none of that name.
  void remove(std::string_view name) {
    static_cast<void>(detail::removable_path(folder_, name));  // checked
    removed_.emplace_back(name);
  }

  void commit() {
    require(unwritten_ == 0, folder_, ": a file of a set could not be written: none is replaced");
    detail::obey_journal(folder_);  // of a set before, which could not be replaced
    Json::Array replace;
    std::vector<Path> folders;
    for (const auto& [name, file] : files_) {
      file->finish();
      require(path_exists(file->temporary()), file->temporary(), ": is gone: none is replaced");
      const Path temporary = path_from(name).parent_path() / file->temporary().filename();
      replace.push_back(Json::Array{path_text(temporary), name});
      folders.push_back(file->path().parent_path());
    }
    detail::flush_folders(std::move(folders));  // the journal must not last longer than they do
    Json orders;
    orders.set("replace", std::move(replace));
    Json::Array remove;
    for (const std::string& name : removed_) {
      if (!files_.contains(name)) remove.push_back(name);
    }
    orders.set("remove", std::move(remove));
    const Path journal = folder_ / detail::journal_name;
    const auto keep = [&] {
      for (const auto& member : files_) member.second->keep();
    };
    try {
      write_file(journal, sealed(orders.text()));
    } catch (...) {
      std::error_code problem;  // it may be there although it could not be flushed
      if (std::filesystem::exists(journal, problem) || problem) keep();
      throw;
    }
    keep();
    detail::obey_journal(folder_);
  }

 private:
  Path folder_;
  std::map<std::string, std::unique_ptr<detail::TemporaryFile>> files_;
  std::vector<std::string> removed_;
  std::size_t unwritten_ = 0;  // calls of write() that threw
};

// Completes what a killed writer had begun in a folder: for the holder of the lock ...
inline void settle(const FolderLock& lock) { detail::obey_journal(lock.folder()); }

// ... and for a reader, who takes the lock only if there is something to do. A writer who is at it
// is waited for, two seconds at most.
inline void settle(const Path& folder) {
  const auto unfinished = [&] { return path_exists(folder / detail::journal_name); };
  if (!unfinished()) return;
  const detail::FileHandle lock(folder / ".lock", detail::os::Use::lock, "create the lock file");
  if (detail::take_lock(folder, lock, 100, unfinished)) detail::obey_journal(folder);
}

// ---- Safetensors -------------------------------------------------------------------------------

// A named array of floats, as written to and read from a safetensors file.
struct NamedTensor {
  std::string name;
  std::vector<std::size_t> shape;
  const float* data;
};

// Text by name, stored in the header.
using Metadata = std::map<std::string, std::string, std::less<>>;

// Adds "checksum" to the metadata: of the rest of it, and of the numbers.
void write_safetensors(const Path& path, std::span<const NamedTensor> tensors, Metadata metadata);
void write_safetensors(FileSet& set, std::string_view name, std::span<const NamedTensor> tensors,
                       Metadata metadata);

// What stands in such a file before the numbers, for who writes them piece by piece.
std::string safetensors_head(std::span<const NamedTensor> tensors, const Metadata& metadata);

// A safetensors file, of which only the header is held in memory. Refuses anything that the header
// does not account for: holes, overlaps, sizes that disagree with shapes, bytes left over; and, as
// soon as numbers are wanted, a checksum (where there is one) that is wrong.
class Safetensors {
 public:
  explicit Safetensors(const Path& path);

  const Path& path() const { return file_.path(); }
  const Metadata& metadata() const { return metadata_; }
  const std::string& metadata(std::string_view name) const;  // which must be there

  std::vector<std::string> names() const;  // of all tensors, sorted
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }

  // Throws unless there is such a tensor, of numbers that can be read as float.
  void check(std::string_view name, std::span<const std::size_t> shape) const {
    static_cast<void>(checked(name, shape));
  }

  // Compares the numbers with the checksum of the file, if it has one.
  void verify() const;

  // Copies a tensor, which must have this shape and hold finite numbers only.
  void copy(std::string_view name, std::span<const std::size_t> shape, float* out) const;

 private:
  struct Entry {
    std::string dtype;
    std::vector<std::size_t> shape;
    std::size_t begin = 0, end = 0;  // in bytes, from numbers_begin_ on
  };
  static constexpr std::size_t most_dimensions = 8;

  void read_header(JsonReader& reader);
  static Entry read_entry(JsonReader& reader, const std::string& name);
  static std::size_t element_size(std::string_view dtype);
  static std::size_t byte_size(JsonReader& reader, const Entry& entry, std::size_t element);
  void check_layout();
  const Entry& checked(std::string_view name, std::span<const std::size_t> shape) const;
  template <class OnBlock>
  void for_each_block(std::size_t begin, std::size_t end, OnBlock&& on_block) const;

  InputFile file_;
  std::uint64_t numbers_begin_ = 0;  // in the file
  Metadata metadata_;
  std::map<std::string, Entry, std::less<>> tensors_;
  std::vector<std::pair<std::size_t, std::size_t>> ranges_;  // of all tensors, ascending
  mutable bool verified_ = false;
};

// ================================================================================================
// 6  Threads
// ================================================================================================
// Owner computes: parallel_for cuts work in tasks, each task alone writes its part of the output,
// and every sum inside a task has a fixed order. So results do not depend on the number of threads
// or on who runs which task. There are no atomic additions of floats.

class ThreadPool {
 public:
  static constexpr std::size_t most = 1024;  // threads

  // 0: one for each that the hardware runs at once. The caller of parallel_for is one of them.
  explicit ThreadPool(std::size_t threads = 0) {
    const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
    require(threads <= most, "threads is ", threads, ", expected 0 ... ", most);
    if (threads == 0) threads = cores;
    looks_ = threads > cores ? 10 : 10'000;
    workers_.reserve(threads - 1);
    shares_ = std::make_unique<Share[]>(threads);
    try {
      for (std::size_t worker = 1; worker < threads; ++worker) {
        workers_.emplace_back([this, worker] { work(worker); });
      }
    } catch (const std::system_error& error) {
      stop();
      fail("cannot start ", threads, " threads: ", error.what());
    } catch (...) {
      stop();
      throw;
    }
  }
  ~ThreadPool() { stop(); }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t size() const { return workers_.size() + 1; }

  // Runs body(index, worker) for each index < tasks; worker < size() owns its scratch memory.
  // Returns when all are done; rethrows the first exception. One caller at a time: a task must not
  // call it for its own pool, nor for another that is busy, since no thread is left to run that.
  template <class Body>
  void parallel_for(std::size_t tasks, Body&& body) {
    require(running() != this, "parallel_for inside a task of the same ThreadPool");
    const Running mark(this);
    if (tasks <= 1 || workers_.empty()) {
      for (std::size_t index = 0; index < tasks; ++index) body(index, std::size_t{0});
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    problem_ = nullptr;
    for (std::size_t worker = 0; worker < size(); ++worker) {
      shares_[worker].next.store(tasks * worker / size(), std::memory_order_relaxed);
      shares_[worker].end = tasks * (worker + 1) / size();
    }
    busy_.store(workers_.size(), std::memory_order_relaxed);
    publish({[](void* context, std::size_t index, std::size_t worker) {
               (*static_cast<Plain*>(context))(index, worker);
             },
             const_cast<void*>(static_cast<const void*>(&body))});
    run_tasks(job_, 0);
    const auto all_done = [&] { return busy_.load(std::memory_order_acquire) == 0; };
    while (!seen_soon(all_done)) std::this_thread::yield();
    if (problem_) std::rethrow_exception(problem_);
  }

  // Splits 0 ... count - 1 in ranges of whole multiples of `grain`: body(begin, end, worker).
  template <class Body>
  void parallel_ranges(std::size_t count, std::size_t grain, Body&& body) {
    const std::size_t grains = (count + grain - 1) / grain;
    const std::size_t parts = std::min(grains, size());
    parallel_for(parts, [&](std::size_t part, std::size_t worker) {
      const std::size_t begin = grains * part / parts * grain;
      const std::size_t end = std::min(count, grains * (part + 1) / parts * grain);
      body(begin, end, worker);
    });
  }

 private:
  struct Job {
    void (*run)(void*, std::size_t, std::size_t) = nullptr;
    void* context = nullptr;
  };

  // The pool whose task this thread is running; null: none.
  static const ThreadPool*& running() {
    thread_local const ThreadPool* pool = nullptr;
    return pool;
  }
  struct Running {
    explicit Running(const ThreadPool* pool) : before(std::exchange(running(), pool)) {}
    ~Running() { running() = before; }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    const ThreadPool* before;
  };

  // The tasks meant for one worker. The same task of like jobs so meets the same worker, whose
  // caches still hold what it works on; who has done their own share helps the others.
  struct alignas(64) Share {
    std::atomic<std::size_t> next{0};
    std::size_t end = 0;
  };

  // Every worker takes part in every job, so job_ is free again once busy_ is 0.
  void publish(const Job& job) {
    job_ = job;
    {
      const std::lock_guard lock(sleep_mutex_);  // nobody is between looking and falling asleep
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void stop() {
    publish(Job{});
    for (std::thread& worker : workers_) worker.join();
  }

  // Looks for a fraction of a millisecond whether the condition holds. Jobs follow each other
  // closely inside a training step, so looking is cheaper than going to sleep and being woken;
  // unless there are more threads than cores, when it keeps others from their work.
  template <class Condition>
  bool seen_soon(Condition&& condition) const {
    for (int look = 0; look < looks_; ++look) {
      if (condition()) return true;
#if defined(__x86_64__) && !defined(BERT4REC_PORTABLE)
      __builtin_ia32_pause();
#elif defined(__aarch64__) && !defined(BERT4REC_PORTABLE)
      asm volatile("yield");
#endif
    }
    return false;
  }

  void run_tasks(const Job& job, std::size_t worker) {
    for (std::size_t i = 0; i < size(); ++i) {
      Share& share = shares_[(worker + i) % size()];
      for (;;) {
        const std::size_t index = share.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= share.end) break;
        try {
          job.run(job.context, index, worker);
        } catch (...) {
          const std::lock_guard lock(problem_mutex_);
          if (!problem_) problem_ = std::current_exception();
        }
      }
    }
  }

  void work(std::size_t worker) {
    const Running mark(this);
    for (std::uint32_t seen = 0;; ++seen) {
      const auto published = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      if (!seen_soon(published)) {
        // (Not generation_.wait(): where there is no futex, that of libstdc++ misses calls.)
        std::unique_lock lock(sleep_mutex_);
        wake_.wait(lock, published);
      }
      if (job_.run == nullptr) return;
      run_tasks(job_, worker);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  int looks_ = 0;
  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;  // [size()]
  Job job_;
  std::mutex problem_mutex_;
  std::exception_ptr problem_;
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint32_t> generation_{0};  // number of jobs published so far
  std::atomic<std::size_t> busy_{0};
};

// ================================================================================================
// 7  Configuration
// ================================================================================================
// Each option is declared once, in fields(): name, place, range, meaning. Files, command lines,
// validation and the comparison of a checkpoint with a new run all walk that list.

// Which network stands around the same encoder layers.
enum class Architecture {
  torch,  // nn.TransformerEncoder(dropout also inside the feed-forward), an untied linear output
  paper,  // BERT4Rec: dense, GELU, LayerNorm, then the item table itself as output, plus a bias
  tied    // as SASRec: the item table and a bias alone
};

// What the model is asked, and what it may look at to answer.
enum class Objective {
  cloze,  // BERT4Rec: hidden items, from both sides
  causal  // SASRec (Kang and McAuley, ICDM 2018): at every item the next, from earlier items alone
};

// What the model is trained for, and so what stands on its encoder (chapters 13 and 18).
enum class TaskKind {
  items,          // to name the item that belongs at a place
  matching,       // to tell items that belong there from others, by the similarity of two vectors
  masked_text,    // BERT: to name the hidden tokens of a text; what classifiers may begin with
  classification  // to name the label of a text
};

// Of the scores at an asked place (chapter 12). All but softmax see only a few drawn negatives.
enum class Loss { softmax, sampled_softmax, bce, gbce };

// What is hidden as one in a masked text.
enum class Masking {
  tokens,
  words  // a word with all its pieces; an ideograph is one by itself
};

enum class Schedule { constant, linear, cosine };

enum class Split {
  users,  // some users are held out whole
  last    // leave one out: each user's last item is for the test, the one before for validation
};

// What on the validation data tells the best epoch: the lowest loss, or the highest Top-K accuracy.
enum class Metric { loss, top1, top5, top10, top20 };

// Which kernels of chapter 9 an engine computes with. All give the same bits.
enum class KernelSet {
  automatic,  // those that BERT4REC_KERNELS in the environment names, else the widest there are
  plain,      // plain loops
  baseline,   // vectors of 4 floats, without an instruction for multiply-add
  neon,       // AArch64: vectors of 4
  avx2,       // x86-64: vectors of 8
  avx512      // x86-64: vectors of 16
};

namespace detail {

template <class Enum>
struct EnumNames;
template <>
struct EnumNames<Architecture> {
  static constexpr std::array<std::string_view, 3> names{"torch", "paper", "tied"};
};
template <>
struct EnumNames<Objective> {
  static constexpr std::array<std::string_view, 2> names{"cloze", "causal"};
};
template <>
struct EnumNames<TaskKind> {
  static constexpr std::array<std::string_view, 4> names{"items", "matching", "masked-text",
                                                         "classification"};
};
template <>
struct EnumNames<Loss> {
  static constexpr std::array<std::string_view, 4> names{"softmax", "sampled-softmax", "bce",
                                                         "gbce"};
};
template <>
struct EnumNames<Masking> {
  static constexpr std::array<std::string_view, 2> names{"tokens", "words"};
};
template <>
struct EnumNames<Schedule> {
  static constexpr std::array<std::string_view, 3> names{"constant", "linear", "cosine"};
};
template <>
struct EnumNames<Split> {
  static constexpr std::array<std::string_view, 2> names{"users", "last"};
};
template <>
struct EnumNames<KernelSet> {
  static constexpr std::array<std::string_view, 6> names{"automatic", "plain", "baseline",
                                                         "neon",      "avx2",  "avx512"};
};
template <>
struct EnumNames<Metric> {
  static constexpr std::array<std::string_view, 5> names{"loss", "top1", "top5", "top10", "top20"};
};

}  // namespace detail

template <class Enum>
std::string enum_choices() {
  std::string choices;
  for (const std::string_view name : detail::EnumNames<Enum>::names) {
    choices += join(choices.empty() ? "" : "|", name);
  }
  return choices;
}

template <class Enum>
std::string_view enum_name(Enum value) {
  return detail::EnumNames<Enum>::names[static_cast<std::size_t>(value)];
}

template <class Enum>
Enum enum_value(std::string_view name, std::string_view field) {
  const auto& names = detail::EnumNames<Enum>::names;
  const auto found = std::find(names.begin(), names.end(), name);
  require(found != names.end(), field, ": \"", shown(name), "\" is none of ", enum_choices<Enum>());
  return static_cast<Enum>(found - names.begin());
}

inline constexpr std::size_t special_rows = 3;  // vocabulary rows before the first item
inline constexpr std::int32_t pad_token = 0, mask_token = 1, unknown_token = 2;

// Vocabulary row of an item (items count from 0).
constexpr std::int32_t token_of(std::int32_t item) {
  return item + static_cast<std::int32_t>(special_rows);
}

// The encoder of chapter 11 by itself: what it shares with every model that stands on it.
struct EncoderConfig {
  std::size_t vocabulary, hidden_size, inner_size, num_layers, num_heads, max_length, segments;
  std::size_t bigrams;
  double dropout;            // of embeddings and layer outputs
  double attention_dropout;  // of attention weights
  double inner_dropout;      // inside the feed-forward
  double norm_epsilon;       // of every LayerNorm
  bool causal;               // attention looks at no later token

  std::size_t head_size() const { return hidden_size / num_heads; }
};

// A whole model: the encoder, and what stands on it.
struct ModelConfig {
  std::size_t num_items = 0;
  std::size_t hidden_size = 256;
  std::size_t num_layers = 2;
  std::size_t num_heads = 4;
  std::size_t max_length = 200;
  double dropout = 0.1;
  double attention_dropout = 0.1;
  Architecture architecture = Architecture::torch;
  Objective objective = Objective::cloze;
  TaskKind task = TaskKind::items;
  double fixed_scale = 0.0;
  std::size_t inner_size = 0;
  double norm_epsilon = 1e-5;
  std::size_t segments = 0;
  std::size_t classes = 0;
  double initializer_range = 0.02;
  std::size_t bigrams = 0;

  // visit(name, value, minimum, maximum, meaning) for each field. Model files name those of the
  // first version always, later ones where they are not at their default: so the bytes of a model
  // that does not use them stay as they were.
  static constexpr std::size_t first_fields = 8;
  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("num_items", self.num_items, 1, 100'000'000,
          "items in the catalogue, or tokens in the vocabulary of texts");
    visit("hidden_size", self.hidden_size, 1, 65536, "width H of a token vector");
    visit("num_layers", self.num_layers, 1, 1000, "Transformer layers");
    visit("num_heads", self.num_heads, 1, 65536, "attention heads; must divide hidden_size");
    visit("max_length", self.max_length, 2, 65536, "longest window L; the newest items are kept");
    visit("dropout", self.dropout, 0.0, 0.99, "dropout of embeddings and layer outputs");
    visit("attention_dropout", self.attention_dropout, 0.0, 0.99, "dropout of attention weights");
    visit("architecture", self.architecture, 0, 2,
          "output: a linear layer, that of the paper, or the item table alone");
    visit("objective", self.objective, 0, 1, "name hidden items, or the next one at every item");
    visit("task", self.task, 0, 3,
          "score all items, match user and item vectors, guess hidden tokens, or label texts");
    visit("fixed_scale", self.fixed_scale, 0.0, 100.0,
          "matching: of the similarity; 0: it is learned");
    visit("inner_size", self.inner_size, 0, 262'144,
          "width of the feed-forward; 0: 4 times hidden_size");
    visit("norm_epsilon", self.norm_epsilon, 1e-16, 1.0,
          "added to the variance in LayerNorm: 1e-5 in PyTorch, 1e-12 in BERT");
    visit("segments", self.segments, 0, 16,
          "kinds of text that a row may have; 0: no such vectors");
    visit("classes", self.classes, 0, 1'000'000, "labels of a classifier");
    visit("initializer_range", self.initializer_range, 0.0, 1.0,
          "deviation of initial weights; narrow models may want more than BERT's 0.02");
    visit("bigrams", self.bigrams, 0, 16'777'216,
          "texts: rows of a table of pairs of neighbouring tokens; 0: none");
  }

  bool reads_text() const {
    return task == TaskKind::masked_text || task == TaskKind::classification;
  }
  // Vocabulary row of item 0. A text's vocabulary has its special tokens among its own.
  std::size_t first_row() const { return reads_text() ? 0 : special_rows; }
  std::size_t vocabulary() const { return first_row() + num_items; }
  // Whether items are compared with rows of the table they were read from, not with others.
  bool ties_items() const { return architecture != Architecture::torch; }
  // How many answers there are at an asked place.
  std::size_t targets() const { return task == TaskKind::classification ? classes : num_items; }
  EncoderConfig encoder() const {
    return {vocabulary(),
            hidden_size,
            inner_size == 0 ? 4 * hidden_size : inner_size,
            num_layers,
            num_heads,
            max_length,
            segments,
            bigrams,
            dropout,
            attention_dropout,
            architecture == Architecture::torch ? dropout : 0.0,
            norm_epsilon,
            objective == Objective::causal};
  }
};

struct TrainConfig {
  std::size_t epochs = 200;
  std::size_t batch_size = 64;
  double learning_rate = 1e-3;
  double weight_decay = 0.01;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double clip_norm = 0.0;
  Schedule schedule = Schedule::constant;
  std::size_t warmup_steps = 0;
  double mask_probability = 0.15;
  double mask_last = 0.0;
  double random_share = 0.0;
  double keep_share = 0.0;
  std::size_t static_masks = 0;
  std::size_t window_stride = 0;
  double reversed_share = 0.0;
  Split split = Split::users;
  double validation_ratio = 0.1;
  std::size_t folds = 0;
  std::size_t fold = 1;
  std::size_t validation_limit = 0;
  Metric best_by = Metric::loss;
  std::size_t patience = 0;
  std::uint64_t seed = 42;
  std::size_t save_every = 10;
  std::size_t threads = 0;
  KernelSet kernels = KernelSet::automatic;
  Loss loss = Loss::softmax;
  std::size_t negatives = 256;
  double negative_power = 0;
  double gbce_t = 0.75;
  std::size_t neg_ratio = 1;
  double eval_every = 1.0;
  double augment = 0.0;
  double class_balance = 0.0;
  Masking masking = Masking::tokens;
  double bigram_dropout = 0.5;

  static constexpr std::size_t first_fields = 28;
  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("epochs", self.epochs, 1, 10'000'000, "passes over the training data");
    visit("batch_size", self.batch_size, 1, 1'000'000, "rows a step: users, windows or texts");
    visit("learning_rate", self.learning_rate, 0.0, 1000.0, "AdamW step size");
    visit("weight_decay", self.weight_decay, 0.0, 1000.0, "decoupled decay; not of biases, norms");
    visit("adam_beta1", self.adam_beta1, 0.0, 0.999999, "AdamW: memory of the gradient");
    visit("adam_beta2", self.adam_beta2, 0.0, 0.999999, "AdamW: memory of its square");
    visit("adam_epsilon", self.adam_epsilon, 1e-16, 1.0, "AdamW: added to the root");
    visit("clip_norm", self.clip_norm, 0.0, 1e9, "largest gradient norm of a step; 0: no limit");
    visit("schedule", self.schedule, 0, 2,
          "learning rate after the warm-up; linear and cosine fall to 0");
    visit("warmup_steps", self.warmup_steps, 0, 1'000'000'000, "steps of linear rise from 0");
    visit("mask_probability", self.mask_probability, 0.0, 1.0,
          "share of items hidden; at least one");
    visit("mask_last", self.mask_last, 0.0, 1.0, "share of rows that hide just their last item");
    visit("random_share", self.random_share, 0.0, 1.0, "of hidden items: shown as a random item");
    visit("keep_share", self.keep_share, 0.0, 1.0, "of hidden items: shown as they are");
    visit("static_masks", self.static_masks, 0, 1'000'000,
          "fixed masks of a window, used in turn; 0: new ones every epoch");
    visit("window_stride", self.window_stride, 0, 1'000'000,
          "items between windows of a history; 0: only the newest window");
    visit("reversed_share", self.reversed_share, 0.0, 1.0, "share of rows shown newest item first");
    visit("split", self.split, 0, 1, "held out: some users, or each user's last two items");
    visit("validation_ratio", self.validation_ratio, 0.0, 0.99, "share of users held out");
    visit("folds", self.folds, 0, 1'000'000,
          "cut the users in so many parts, of which one is held out; 0: validation_ratio");
    visit("fold", self.fold, 1, 1'000'000, "which of them is held out, from 1");
    visit("validation_limit", self.validation_limit, 0, 1'000'000'000,
          "users or texts to validate on after an epoch, evenly spread; 0: all");
    visit("best_by", self.best_by, 0, 4, "what tells the best epoch");
    visit("patience", self.patience, 0, 10'000'000,
          "stop after so many validations without a better one; 0: never");
    visit("seed", self.seed, 0, 9'223'372'036'854'775'807, "all randomness comes from this number");
    visit("save_every", self.save_every, 1, 10'000'000, "epochs between checkpoints");
    visit("threads", self.threads, 0, ThreadPool::most,
          "threads; 0: one a core. Never changes a result");
    visit("kernels", self.kernels, 0, 5,
          "instructions; automatic: BERT4REC_KERNELS or the widest. Never changes a result");
    visit("loss", self.loss, 0, 3, "over all items, or over drawn negatives");
    visit("negatives", self.negatives, 1, 1'000'000, "items drawn for a step, if the loss draws");
    visit("negative_power", self.negative_power, 0.0, 1.0,
          "drawn by (count of the item)^power; 0: all alike");
    visit("gbce_t", self.gbce_t, 0.0, 1.0, "calibration of gbce; 0: that of bce");
    visit("neg_ratio", self.neg_ratio, 0, 10'000, "matching: negatives drawn for each interaction");
    visit("eval_every", self.eval_every, 0.001, 1.0,
          "epochs between validations, each a point of the curves; evenly spread in an epoch");
    visit("augment", self.augment, 0.0, 0.5,
          "texts: share of tokens left out in training, and of those that change places");
    visit("class_balance", self.class_balance, 0.0, 1.0,
          "classification: losses weigh (texts of the label)^-this; 1: all labels alike");
    visit("masking", self.masking, 0, 1, "masked text: what is hidden as one");
    visit("bigram_dropout", self.bigram_dropout, 0.0, 1.0, "share of bigrams left out in training");
  }
};

// Throws where a field is out of its range, naming it.
template <class Config>
void validate_ranges(const Config& config) {
  Config::fields(config, [](std::string_view name, auto value, auto low, auto high, auto) {
    using Value = decltype(value);
    if constexpr (std::is_enum_v<Value>) {
      const auto number = static_cast<int>(value);
      require(number >= low && number <= high, name, " is number ", number, ", expected ",
              enum_choices<Value>());
    } else {
      const bool inside = value >= static_cast<Value>(low) && value <= static_cast<Value>(high);
      require(inside, name, " is ", value, ", expected ", low, " ... ", high);
    }
  });
}

inline void validate(const ModelConfig& config) {
  validate_ranges(config);
  require(config.hidden_size % config.num_heads == 0, "num_heads is ", config.num_heads,
          ", which does not divide hidden_size ", config.hidden_size);
  const bool classifies = config.task == TaskKind::classification;
  require(classifies ? config.classes >= 2 : config.classes == 0, "classes is ", config.classes,
          ", expected ", classifies ? "at least 2" : "0 but for a classifier");
  require(!config.reads_text() || config.objective == Objective::cloze, "objective is ",
          enum_name(config.objective), ", but texts are read from both sides: cloze");
  require(config.bigrams == 0 || config.reads_text(), "bigrams is ", config.bigrams,
          ", but task is ", enum_name(config.task), ": only texts have bigrams");
  require(config.bigrams != 1, "bigrams is 1, expected 0 or at least 2");
}

inline void validate(const TrainConfig& config) {
  validate_ranges(config);
  require(config.random_share + config.keep_share <= 1, "random_share ", config.random_share,
          " and keep_share ", config.keep_share, " are more than 1 together");
  if (config.folds == 0) return;
  require(config.folds > 1, "folds is 1, expected 0 or at least 2");
  require(config.fold <= config.folds, "fold is ", config.fold, " of ", config.folds);
  require(config.split == Split::users, "folds cut the users: they need split users");
}

template <class Config>
Json to_json(const Config& config) {
  Json json;
  Config::fields(config, [&](std::string_view name, auto value, auto, auto, auto) {
    if constexpr (std::is_enum_v<decltype(value)>)
      json.set(name, enum_name(value));
    else
      json.set(name, value);
  });
  return json;
}

// As model files have it: without later fields that are at their default.
template <class Config>
Json brief_json(const Config& config) {
  const Json all = to_json(config), usual = to_json(Config());
  Json json;
  std::size_t number = 0;
  for (const auto& [name, value] : all.object()) {
    const bool first = number++ < Config::first_fields;
    if (first || value.text() != usual.at(name).text()) json.set(name, value);
  }
  return json;
}

// Reads the fields; a missing one is as in `config`, an unknown or wrong one is an error by name.
template <class Config>
Config config_from_json(const Json& json, Config config = {}) {
  std::vector<std::string_view> known;
  Config::fields(config, [&](std::string_view name, auto& value, auto, auto, auto) {
    using Value = std::remove_reference_t<decltype(value)>;
    known.push_back(name);
    const Json* found = json.find(name);
    if (found == nullptr) return;
    const Json& field = *found;
    try {
      if constexpr (std::is_enum_v<Value>) {
        value = enum_value<Value>(field.string(), name);
      } else if constexpr (std::is_integral_v<Value>) {
        require(field.integer() >= 0, "is ", field.integer(), ", expected no negative number");
        value = static_cast<Value>(field.integer());
      } else {
        value = field.number();
      }
    } catch (const Error& error) {
      fail("field \"", name, "\": ", error.what());
    }
  });
  for (const auto& member : json.object()) {
    require(std::find(known.begin(), known.end(), member.first) != known.end(), "unknown field \"",
            shown(member.first), "\"");
  }
  validate(config);
  return config;
}

// ================================================================================================
// 8  Tensors
// ================================================================================================
// One table says what parameters exist: name, shape, initial values, weight decay. Parameters,
// gradients and both AdamW moments are flat arrays in the order of this table; checkpoints, the
// optimizer, tests and other engines walk it. Names and layouts are those of the state_dict of a
// PyTorch module with nn.TransformerEncoder, so torch loads our files as they are.

enum class Init {
  normal,  // deviation ModelConfig::initializer_range, cut at two deviations (BERT)
  zeros,
  ones,
  log_scale  // first_log_scale
};

inline constexpr double first_log_scale = 2.659260036932778;  // log(1 / 0.07): see MatchingHead

// What the rows of a tensor stand for.
enum class Rows {
  other,
  tokens,  // row t is that of token t: of many items, a step may concern only some (chapter 15)
  bigrams  // of them it always concerns only some
};

using Shape = std::vector<std::size_t>;

struct TensorSpec {
  std::string name;
  Shape shape;
  Init init;
  Rows rows;
  bool decay;          // AdamW decays matrices, not biases and LayerNorms
  std::size_t offset;  // of the first element in the flat array
  std::size_t size;
};

class TensorTable {
 public:
  void add(std::string name, Shape shape, Init init, Rows rows = Rows::other) {
    const std::size_t count = checked_product(shape, name);
    const bool decay = shape.size() > 1;
    specs_.push_back({std::move(name), std::move(shape), init, rows, decay, size_, count});
    size_ += count;
  }

  const TensorSpec& at(std::string_view name) const {
    for (const TensorSpec& spec : specs_) {
      if (spec.name == name) return spec;
    }
    fail("no tensor is called ", name);
  }
  std::size_t size() const { return size_; }  // of the flat array: the number of parameters
  auto begin() const { return specs_.begin(); }
  auto end() const { return specs_.end(); }

 private:
  std::vector<TensorSpec> specs_;
  std::size_t size_ = 0;
};

// A part of a model lists its tensors once, in a struct of pointers with a function
//   for_each(config, visit), which calls visit(pointer, name, shape, init) for each, with
//   Rows::tokens or Rows::bigrams behind that where it is so;
// both the table and the pointers into a flat array of parameters or gradients come from that list.
template <class Tensors, class Config>
void add_tensors(TensorTable& table, const Config& config) {
  Tensors().for_each(
      config, [&](auto&, const std::string& name, Shape shape, Init init, Rows rows = Rows::other) {
        table.add(name, std::move(shape), init, rows);
      });
}

template <class Tensors, class Config, class Real>
Tensors tensors_at(const Config& config, const TensorTable& table, Real* flat) {
  Tensors tensors{};
  tensors.for_each(config, [&](Real*& tensor, const std::string& name, const auto&...) {
    tensor = flat + table.at(name).offset;
  });
  return tensors;
}

inline std::string layer_prefix(std::size_t layer) { return join("encoder.layers.", layer, "."); }

template <class Real>
struct EncoderTensors {
  struct Layer {
    Real *in_weight, *in_bias;            // [3H,H] [3H], rows: queries, keys, values
    Real *out_weight, *out_bias;          // [H,H] [H]
    Real *w1, *b1, *w2, *b2;              // [F,H] [F] [H,F] [H]
    Real *gain1, *bias1, *gain2, *bias2;  // [H]
  };
  Real *item, *position;    // [V,H] [L,H]
  Real* segment = nullptr;  // [segments,H]; none if there are no segments
  Real* bigram = nullptr;   // [bigrams,H]; none if there are no bigrams
  Real *gain, *bias;        // [H]
  std::vector<Layer> layers;

  template <class Visit>
  void for_each(const EncoderConfig& config, Visit&& visit) {
    const std::size_t H = config.hidden_size, inner = config.inner_size;
    visit(item, "item_embedding.weight", Shape{config.vocabulary, H}, Init::normal, Rows::tokens);
    visit(position, "position_embedding.weight", Shape{config.max_length, H}, Init::normal);
    if (config.segments > 0) {
      visit(segment, "segment_embedding.weight", Shape{config.segments, H}, Init::normal);
    }
    if (config.bigrams > 0) {
      visit(bigram, "bigram_embedding.weight", Shape{config.bigrams, H}, Init::zeros,
            Rows::bigrams);
    }
    visit(gain, "embedding_norm.weight", Shape{H}, Init::ones);
    visit(bias, "embedding_norm.bias", Shape{H}, Init::zeros);
    layers.resize(config.num_layers);
    for (std::size_t i = 0; i < config.num_layers; ++i) {
      const std::string prefix = layer_prefix(i);
      Layer& layer = layers[i];
      visit(layer.in_weight, prefix + "self_attn.in_proj_weight", Shape{3 * H, H}, Init::normal);
      visit(layer.in_bias, prefix + "self_attn.in_proj_bias", Shape{3 * H}, Init::zeros);
      visit(layer.out_weight, prefix + "self_attn.out_proj.weight", Shape{H, H}, Init::normal);
      visit(layer.out_bias, prefix + "self_attn.out_proj.bias", Shape{H}, Init::zeros);
      visit(layer.w1, prefix + "linear1.weight", Shape{inner, H}, Init::normal);
      visit(layer.b1, prefix + "linear1.bias", Shape{inner}, Init::zeros);
      visit(layer.w2, prefix + "linear2.weight", Shape{H, inner}, Init::normal);
      visit(layer.b2, prefix + "linear2.bias", Shape{H}, Init::zeros);
      visit(layer.gain1, prefix + "norm1.weight", Shape{H}, Init::ones);
      visit(layer.bias1, prefix + "norm1.bias", Shape{H}, Init::zeros);
      visit(layer.gain2, prefix + "norm2.weight", Shape{H}, Init::ones);
      visit(layer.bias2, prefix + "norm2.bias", Shape{H}, Init::zeros);
    }
  }
};

// Initial values of the parameters: a function of the seed and the place of each number alone.
inline std::vector<float> initial_parameters(const TensorTable& table, double initializer_range,
                                             std::uint64_t seed, ThreadPool& pool) {
  std::vector<float> values(table.size());
  const Key key = stream_key(seed, Stream::weights);
  for (const TensorSpec& spec : table) {
    const std::span<float> tensor(values.data() + spec.offset, spec.size);
    if (spec.init == Init::ones) std::fill(tensor.begin(), tensor.end(), 1.0f);
    if (spec.init == Init::log_scale) tensor[0] = static_cast<float>(first_log_scale);
    if (spec.init != Init::normal) continue;
    pool.parallel_ranges(spec.size, 4096, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        const double z = truncated_normal(key, spec.offset + i);
        tensor[i] = static_cast<float>(initializer_range * z);
      }
    });
  }
  return values;
}

// ================================================================================================
// 9  Kernels
// ================================================================================================
// The inner loops, each twice: here as plain loops that say what is computed, for any Real; and
// below for float on vectors, compiled once for each instruction set. Layers call them through a
// table (struct Kernels) that is chosen at run time for the machine at hand. In float the two agree
// in every bit, and tests compare them so: what stands here is not an outline of the fast kernels,
// it is their result.
//
// So the order of every sum is part of a kernel. A product adds up in ascending k. A sum over a row
// has 16 partial sums, whatever the width of a register: lane j takes the elements j, j + 16, ...,
// and then the upper half of the lanes is added to the lower until one is left.

namespace detail {

// How LayerNorm saw a row: mean and 1 / deviation.
template <class Real>
struct RowStatistics {
  Real mean, inverse_deviation;
};

// Of one softmax: log sum_j exp(scale x_j) = scale largest + log sum.
template <class Real>
struct SoftmaxSum {
  Real largest, sum;
};

// AdamW's constants of step t (the formulas: chapter 15).
template <class Real>
struct AdamConstants {
  Real rate1, rate2;  // 1 - b1, 1 - b2
  Real epsilon;
  Real step_size;        // lr / (1 - b1^t)
  Real root_correction;  // 1 / sqrt(1 - b2^t)
  Real decay_factor;     // 1 - lr decay; 1 for what does not decay
  Real gradient_scale;   // min(1, c / |g|), of clipping
  Real rest_factor;      // of adamw_replay alone: see there
};

struct RankCounts {
  std::size_t better, ties;
};

template <class Real>
struct Kernels {
  const char* name;
  // C[m,n] = start + A[m,k] B[k,n]. A(i,k) = a[i * a_row + k * a_col] and so on, so that one
  // function serves A B, A B^T and A^T B. start(i,j) = start[i * start_row + j]: C itself to add to
  // it, a bias with start_row 0, or nullptr for zeros. Additions run in ascending k for each
  // element of C. One stride of A and one of B must be 1. `scratch` holds scratch_size numbers.
  void (*multiply)(std::size_t m, std::size_t n, std::size_t k, const Real* a, std::size_t a_row,
                   std::size_t a_col, const Real* b, std::size_t b_row, std::size_t b_col,
                   const Real* start, std::size_t start_row, Real* c, std::size_t c_row,
                   Real* scratch);
  std::size_t scratch_size;
  void (*add)(const Real* x, Real* y, std::size_t n);
  void (*scale)(Real* x, Real factor, std::size_t n);
  void (*add_scaled)(Real factor, const Real* x, Real* y, std::size_t n);
  Real (*dot)(const Real* x, const Real* y, std::size_t n);
  Real (*sum_of_squares)(const Real* x, std::size_t n);
  SoftmaxSum<Real> (*softmax)(Real* x, Real scale, std::size_t n);
  void (*softmax_backward)(const Real* p, const Real* q, Real* dq, Real scale, std::size_t n);
  double (*logistic)(Real* x, std::size_t n);
  RankCounts (*count_above)(const Real* x, Real value, std::size_t n);
  void (*gelu)(const Real* x, Real* y, std::size_t n);
  void (*gelu_backward)(const Real* x, Real* dy, std::size_t n);
  void (*dropout)(const Real* x, Real* y, std::size_t n, Key key, std::uint32_t row,
                  std::uint32_t threshold);
  RowStatistics<Real> (*normalize)(const Real* x, const Real* gain, const Real* bias, Real epsilon,
                                   Real* y, std::size_t n);
  void (*normalize_backward)(const Real* x, RowStatistics<Real> row, const Real* gain, Real* dy,
                             std::size_t n);
  void (*normalize_parameters)(const Real* x, RowStatistics<Real> row, const Real* dy, Real* dgain,
                               Real* dbias, std::size_t n);
  void (*adamw)(Real* p, const Real* g, Real* m, Real* v, const AdamConstants<Real>& constants,
                std::size_t n);
  void (*adamw_replay)(Real* p, Real* m, Real* v, std::span<const AdamConstants<Real>> steps,
                       std::size_t n);
  // e^x and erf x by themselves. exp serves tanh and single scales; erf is for tests to measure.
  void (*exp)(const Real* x, Real* y, std::size_t n);
  void (*erf)(const Real* x, Real* y, std::size_t n);
};

// Dropout decides from 16 random bits: an element falls if they are below `threshold`, so that the
// probability is threshold / 65536; those that stay are scaled by 65536 / (65536 - threshold).
// Element 64 c + 16 q + l of row r takes quarter q of the random bits of counter 2^32 r + 16 c + l.
inline constexpr std::size_t dropout_chunk = 64;

constexpr std::uint32_t dropout_threshold(double probability) {
  return static_cast<std::uint32_t>(probability * 65536.0 + 0.5);
}
constexpr double dropout_scale(std::uint32_t threshold) { return 65536.0 / (65536.0 - threshold); }

inline constexpr std::size_t lanes = 16;

// e^x and erf x in float, by polynomials; coefficients from tests/reference/fit_kernels.py.
//   e^x = 2^n e^r,  n = round(x / log 2),  r = x - n log 2,  |r| <= log(2) / 2
//   erf x = x + x P(x^2) for |x| <= 0.875, else sign(x) (1 - e^G(|x|)), which is 1 from 3.92 on
// Largest error: 0.9 units in the last place for e^x, which is 0 below -87.33, and 1.2 for erf x.
inline constexpr float one_over_log2 = 1.44269502f, log2_high = 0.693145752f,
                       log2_low = 1.42860677e-06f;
inline constexpr float least_exponent = -87.3365402f, largest_exponent = 88.7228317f;
inline constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: a sum with it has no fraction
inline constexpr float exp_coefficients[] = {
    0.00137894717f, 0.00836867001f, 0.0416688882f, 0.166665211f, 0.499999911f, 1.0f, 1.0f};
inline constexpr float erf_small[] = {-0.000625433109f, 0.00504296133f, -0.0267996024f,
                                      0.112827145f,     -0.376125813f,  0.128379166f};
inline constexpr float erf_large[] = {0.000199899747f, -0.00308199134f, 0.0223810375f,
                                      -0.104250237f,   -0.636820614f,   -1.12788939f,
                                      -0.000144213613f};
inline constexpr float erf_middle = 0.875f, erf_end = 3.925f;

namespace plain {

// For least_exponent <= x <= largest_exponent.
inline float exp_in_range(float x) {
  const float shifted = fused(x, one_over_log2, round_to_integer), n = shifted - round_to_integer;
  const float r = fused(n, -log2_low, fused(n, -log2_high, x));
  const auto bits = std::bit_cast<std::uint32_t>(polynomial(r, exp_coefficients));
  return std::bit_cast<float>(bits + (std::bit_cast<std::uint32_t>(shifted) << 23));  // times 2^n
}

inline float exp(float x) {
  if (x < least_exponent) return 0;
  return x <= largest_exponent ? exp_in_range(x) : x + std::numeric_limits<float>::infinity();
}
inline double exp(double x) { return std::exp(x); }

inline float erf(float x) {
  const float size = std::abs(x);
  if (!(size > erf_middle)) return fused(x, polynomial(rounded(x * x), erf_small), x);
  const float rest = exp_in_range(polynomial(std::min(size, erf_end), erf_large));
  return std::copysign(1 - rest, x);
}
inline double erf(double x) { return std::erf(x); }

// The sum over a row: add(i, sum) is `sum` with element i added.
template <class Real, class Add>
Real sum_row(std::size_t n, Add&& add) {
  Real lane[lanes] = {};
  for (std::size_t i = 0; i < n; ++i) lane[i % lanes] = add(i, lane[i % lanes]);
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lane[j] += lane[j + half];
  }
  return lane[0];
}

template <class Real>
void multiply(std::size_t m, std::size_t n, std::size_t k, const Real* a, std::size_t a_row,
              std::size_t a_col, const Real* b, std::size_t b_row, std::size_t b_col,
              const Real* start, std::size_t start_row, Real* c, std::size_t c_row, Real*) {
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      Real sum = start != nullptr ? start[i * start_row + j] : Real(0);
      for (std::size_t l = 0; l < k; ++l)
        sum = fused(a[i * a_row + l * a_col], b[l * b_row + j * b_col], sum);
      c[i * c_row + j] = sum;
    }
  }
}

// y += x
template <class Real>
void add(const Real* x, Real* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] += x[i];
}

// x *= factor
template <class Real>
void scale(Real* x, Real factor, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) x[i] *= factor;
}

// y += factor x
template <class Real>
void add_scaled(Real factor, const Real* x, Real* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = fused(factor, x[i], y[i]);
}

template <class Real>
Real dot(const Real* x, const Real* y, std::size_t n) {
  return sum_row<Real>(n, [&](std::size_t i, Real sum) { return fused(x[i], y[i], sum); });
}

template <class Real>
Real sum_of_squares(const Real* x, std::size_t n) {
  return sum_row<Real>(n, [&](std::size_t i, Real sum) { return fused(x[i], x[i], sum); });
}

// x_i = exp(scale x_i) / sum_j exp(scale x_j). The largest is subtracted first, so that nothing
// overflows: x_i = exp(scale (x_i - largest)) / sum.
template <class Real>
SoftmaxSum<Real> softmax(Real* x, Real scale, std::size_t n) {
  const Real largest = *std::max_element(x, x + n);
  for (std::size_t i = 0; i < n; ++i) x[i] = exp((x[i] - largest) * scale);
  const Real sum = sum_row<Real>(n, [&](std::size_t i, Real part) { return part + x[i]; });
  const Real inverse = 1 / sum;
  for (std::size_t i = 0; i < n; ++i) x[i] *= inverse;
  return {largest, sum};
}

// p = softmax(scale x), q = dropout(p) = mask p. With dp_i = mask_i dq_i,
//   dx_i = scale p_i (dp_i - sum_j p_j dp_j) = scale (q_i dq_i - p_i sum_j q_j dq_j),
// written over dq: the mask itself is not needed.
template <class Real>
void softmax_backward(const Real* p, const Real* q, Real* dq, Real scale, std::size_t n) {
  const Real mean =
      sum_row<Real>(n, [&](std::size_t i, Real sum) { return fused(q[i], dq[i], sum); });
  for (std::size_t i = 0; i < n; ++i) {
    dq[i] = scale * fused(p[i], -mean, rounded(q[i] * dq[i]));
  }
}

// x_i becomes 1 / (1 + exp(-x_i)); returns sum_i log(1 + exp x_i). With e_i = exp(-|x_i|),
//   log(1 + exp x_i) = max(x_i, 0) + log(1 + e_i);
// the factors 1 + e_i, at most 2 each, are multiplied before the logarithm is taken: 64 to a lane.
inline constexpr std::size_t logistic_block = 64 * lanes;

template <class Real>
double logistic(Real* x, std::size_t n) {
  double logs = 0;
  Real positive[lanes] = {};
  for (std::size_t block = 0; block < n; block += logistic_block) {
    Real product[lanes];
    std::fill_n(product, lanes, Real(1));
    for (std::size_t i = block; i < std::min(n, block + logistic_block); ++i) {
      const Real e = exp(-std::abs(x[i])), factor = 1 + e;
      if (x[i] > 0) positive[i % lanes] += x[i];
      product[i % lanes] *= factor;
      x[i] = (x[i] < 0 ? e : Real(1)) / factor;
    }
    for (const Real factor : product) logs += natural_log(static_cast<double>(factor));
  }
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) positive[j] += positive[j + half];
  }
  return static_cast<double>(positive[0]) + logs;
}

// How many of x are above `value`, and how many equal it.
template <class Real>
RankCounts count_above(const Real* x, Real value, std::size_t n) {
  RankCounts counts{0, 0};
  for (std::size_t i = 0; i < n; ++i) {
    counts.better += x[i] > value;
    counts.ties += x[i] == value;
  }
  return counts;
}

// gelu(x) = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2: the exact form, not the one with tanh.
template <class Real>
void gelu(const Real* x, Real* y, std::size_t n) {
  const Real half_root = Real(0.70710678118654752440);
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i] * Real(0.5) * (1 + erf(x[i] * half_root));
}

// dy *= gelu'(x) = Phi(x) + x phi(x), phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
template <class Real>
void gelu_backward(const Real* x, Real* dy, std::size_t n) {
  const Real half = Real(0.5), half_root = Real(0.70710678118654752440);
  const Real norm = Real(0.39894228040143267794);
  for (std::size_t i = 0; i < n; ++i) {
    const Real cumulative = fused(erf(x[i] * half_root), half, half);
    const Real density = exp(x[i] * x[i] * -half) * norm;
    dy[i] *= fused(x[i], density, cumulative);
  }
}

// Forward and backward alike: y_i = 0 or scale x_i. Nothing is stored between the two; the same key
// gives the same mask. y may be x.
template <class Real>
void dropout(const Real* x, Real* y, std::size_t n, Key key, std::uint32_t row,
             std::uint32_t threshold) {
  const Real scale = static_cast<Real>(dropout_scale(threshold));
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t quarter = i / 16 % 4, place = i / dropout_chunk * 16 + i % 16;
    const std::uint64_t bits = random_bits(key, (std::uint64_t{row} << 32) | place);
    y[i] = (bits >> (16 * quarter) & 0xffff) < threshold ? Real(0) : x[i] * scale;
  }
}

// y_i = gain_i (x_i - mean) / sqrt(variance + epsilon) + bias_i over one row
template <class Real>
RowStatistics<Real> normalize(const Real* x, const Real* gain, const Real* bias, Real epsilon,
                              Real* y, std::size_t n) {
  const auto count = static_cast<Real>(n);
  const Real mean = sum_row<Real>(n, [&](std::size_t i, Real sum) { return sum + x[i]; }) / count;
  const Real squares = sum_row<Real>(
      n, [&](std::size_t i, Real sum) { return fused(x[i] - mean, x[i] - mean, sum); });
  const Real inverse = 1 / std::sqrt(squares / count + epsilon);
  for (std::size_t i = 0; i < n; ++i) y[i] = fused(gain[i], (x[i] - mean) * inverse, bias[i]);
  return {mean, inverse};
}

// With z_i = (x_i - mean) inverse and e_i = gain_i dy_i:
//   dx_i = inverse (e_i - mean_j e_j - z_i mean_j(e_j z_j)), written over dy.
template <class Real>
void normalize_backward(const Real* x, RowStatistics<Real> row, const Real* gain, Real* dy,
                        std::size_t n) {
  const auto count = static_cast<Real>(n);
  const auto z = [&](std::size_t i) { return (x[i] - row.mean) * row.inverse_deviation; };
  for (std::size_t i = 0; i < n; ++i) dy[i] *= gain[i];  // e
  const Real mean_e =
      sum_row<Real>(n, [&](std::size_t i, Real sum) { return sum + dy[i]; }) / count;
  const Real mean_ez =
      sum_row<Real>(n, [&](std::size_t i, Real sum) { return fused(dy[i], z(i), sum); }) / count;
  for (std::size_t i = 0; i < n; ++i) {
    dy[i] = fused(z(i), -mean_ez, dy[i] - mean_e) * row.inverse_deviation;
  }
}

// dgain_i += dy_i z_i,  dbias_i += dy_i
template <class Real>
void normalize_parameters(const Real* x, RowStatistics<Real> row, const Real* dy, Real* dgain,
                          Real* dbias, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    dgain[i] = fused(dy[i], (x[i] - row.mean) * row.inverse_deviation, dgain[i]);
    dbias[i] += dy[i];
  }
}

template <class Real>
void adamw(Real* p, const Real* g, Real* m, Real* v, const AdamConstants<Real>& c, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const Real gradient = rounded(c.gradient_scale * g[i]);
    m[i] = fused(gradient - m[i], c.rate1, m[i]);
    v[i] = fused(fused(gradient, gradient, -v[i]), c.rate2, v[i]);
    const Real root = fused(std::sqrt(v[i]), c.root_correction, c.epsilon);
    p[i] = fused(p[i], c.decay_factor, -(m[i] * c.step_size / root));
  }
}

// Steps of adamw with g = 0, the same operations in the same order; but that an m too small to
// matter, |m| rest_factor <= sqrt(v), becomes 0 (chapter 15 has the bound).
template <class Real>
void adamw_replay(Real* p, Real* m, Real* v, std::span<const AdamConstants<Real>> steps,
                  std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    for (const AdamConstants<Real>& c : steps) {
      m[i] = fused(0 - m[i], c.rate1, m[i]);
      v[i] = fused(-v[i], c.rate2, v[i]);
      const Real rest = m[i] * c.rest_factor;
      if (rest * rest <= v[i]) m[i] = 0;
      const Real root = fused(std::sqrt(v[i]), c.root_correction, c.epsilon);
      p[i] = fused(p[i], c.decay_factor, -(m[i] * c.step_size / root));
    }
  }
}

template <class Real>
void exp_row(const Real* x, Real* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = exp(x[i]);
}

template <class Real>
void erf_row(const Real* x, Real* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = erf(x[i]);
}

}  // namespace plain

template <class Real>
const Kernels<Real>& plain_kernels() {
  static constexpr Kernels<Real> table{"plain",
                                       plain::multiply<Real>,
                                       0,
                                       plain::add<Real>,
                                       plain::scale<Real>,
                                       plain::add_scaled<Real>,
                                       plain::dot<Real>,
                                       plain::sum_of_squares<Real>,
                                       plain::softmax<Real>,
                                       plain::softmax_backward<Real>,
                                       plain::logistic<Real>,
                                       plain::count_above<Real>,
                                       plain::gelu<Real>,
                                       plain::gelu_backward<Real>,
                                       plain::dropout<Real>,
                                       plain::normalize<Real>,
                                       plain::normalize_backward<Real>,
                                       plain::normalize_parameters<Real>,
                                       plain::adamw<Real>,
                                       plain::adamw_replay<Real>,
                                       plain::exp_row<Real>,
                                       plain::erf_row<Real>};
  return table;
}

}  // namespace detail

}  // namespace bert4rec

// The vector kernels stand in appendix B at the end of this file, which is read here once for
// each instruction set. (It cannot be one template: GCC splits vector operations by the target of
// the function they stand in, before it inlines it elsewhere.)
#if defined(__GNUC__) && !defined(BERT4REC_PORTABLE)
#if !__has_include("bert4rec.hpp")
#error "this header includes itself: keep the name bert4rec.hpp, or define BERT4REC_PORTABLE"
#endif
// (GCC for Windows breaks down over vectors wider than 16 bytes where it does not optimize.)
#if defined(_WIN32) && !defined(__OPTIMIZE__) && !defined(__clang__)
#define BERT4REC_OPTIMIZE __attribute__((optimize("O1")))
#else
#define BERT4REC_OPTIMIZE
#endif
#if defined(__aarch64__)
#define BERT4REC_ISA neon
#else
#define BERT4REC_ISA baseline
#endif
#define BERT4REC_TARGET BERT4REC_OPTIMIZE
#define BERT4REC_WIDTH 4
#include "bert4rec.hpp"
#if defined(__x86_64__)
#define BERT4REC_ISA avx2
#define BERT4REC_TARGET BERT4REC_OPTIMIZE __attribute__((target("avx2,fma")))
#define BERT4REC_WIDTH 8
#include "bert4rec.hpp"
#define BERT4REC_ISA avx512
#define BERT4REC_TARGET \
  BERT4REC_OPTIMIZE __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#define BERT4REC_WIDTH 16
#include "bert4rec.hpp"
#endif
#undef BERT4REC_OPTIMIZE
#endif

namespace bert4rec::detail {

// The kernels this machine can run, the plain ones first and the widest last.
template <class Real>
std::vector<const Kernels<Real>*> available_kernels() {
  std::vector<const Kernels<Real>*> found{&plain_kernels<Real>()};
#if defined(__GNUC__) && !defined(BERT4REC_PORTABLE)
  if constexpr (std::is_same_v<Real, float>) {
#if defined(__aarch64__)
    found.push_back(&neon::vector_kernels());
#else
    found.push_back(&baseline::vector_kernels());
#endif
#if defined(__x86_64__)
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fma) found.push_back(&avx2::vector_kernels());
    if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(&avx512::vector_kernels());
    }
#endif
  }
#endif
  return found;
}

// The kernels of that name, which this machine and build must have. In double there are only the
// plain ones.
template <class Real>
const Kernels<Real>& find_kernels(KernelSet wanted) {
  const std::vector<const Kernels<Real>*> found = available_kernels<Real>();
  if constexpr (!std::is_same_v<Real, float>) return *found.front();
  std::string_view name = enum_name(wanted), asked_by = "kernels";
  if (wanted == KernelSet::automatic) {
    const char* variable = std::getenv("BERT4REC_KERNELS");
    if (variable == nullptr || *variable == '\0') return *found.back();
    name = variable, asked_by = "BERT4REC_KERNELS";
  }
  std::string names;
  for (const Kernels<Real>* kernels : found) {
    if (name == kernels->name) return *kernels;
    names += join(names.empty() ? "" : ", ", kernels->name);
  }
  fail(asked_by, " is \"", name, "\"; this machine and build have ", names);
}

template <class Real>
const Kernels<Real>& kernels() {
  static const Kernels<Real>& usual = find_kernels<Real>(KernelSet::automatic);
  return usual;
}

#if defined(BERT4REC_EXTERN)
extern template std::vector<const Kernels<float>*> available_kernels<float>();
extern template const Kernels<float>& find_kernels<float>(KernelSet);
extern template const Kernels<float>& kernels<float>();
#elif defined(BERT4REC_INSTANTIATE)
template std::vector<const Kernels<float>*> available_kernels<float>();
template const Kernels<float>& find_kernels<float>(KernelSet);
template const Kernels<float>& kernels<float>();
#endif

}  // namespace bert4rec::detail

namespace bert4rec {

// ================================================================================================
// 10  Layers
// ================================================================================================
// Each layer: its formula, its forward, and right under it its backward. A backward takes the
// gradient of the loss by its output (d_y or dy) and gives that by its input (d_x or dx); gradients
// of parameters are added to what is there, since a step adds up groups of rows (chapter 11).
// Each backward, those of chapters 12 and 13 too, is derived in tests/exercises/derivations.md.

// A flat array of zeros, aligned to cache lines. Pages that are never touched take no memory. A
// large one asks for pages of 2 MiB: with the usual 4 KiB, reading a row of a large table nearly
// always costs a walk through the tables of pages first.
template <class Real>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) : size_(size) {
    constexpr std::size_t line = 64, page = std::size_t{2} << 20;
    const bool large = size >= 2 * page / sizeof(Real);
    const std::size_t alignment = large ? page : line;
    const std::size_t factors[2] = {size + alignment / sizeof(Real), sizeof(Real)};
    memory_.reset(std::calloc(1, checked_product(factors, "a buffer")));
    if (memory_ == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    data_ = reinterpret_cast<Real*>((address + alignment - 1) / alignment * alignment);
#if defined(MADV_HUGEPAGE)
    if (large) static_cast<void>(::madvise(data_, size * sizeof(Real), MADV_HUGEPAGE));
#endif
  }
  Real* data() { return data_; }
  const Real* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<Real> span() { return {data_, size_}; }
  std::span<const Real> span() const { return {data_, size_}; }
  Real& operator[](std::size_t i) { return data_[i]; }
  const Real& operator[](std::size_t i) const { return data_[i]; }

 private:
  struct Release {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::size_t size_ = 0;
  std::unique_ptr<void, Release> memory_;
  Real* data_ = nullptr;
};

// Sums over tokens, such as the gradient of a bias, are made of the sums of blocks of so many
// tokens: each starts from zero and adds up in the order of the tokens, and then the blocks are
// added in their order. So no bit depends on threads, and each thread keeps to its own rows.
inline constexpr std::size_t sum_block = 64;

// A matrix in memory: element (i, j) is data[i * row + j * col].
template <class Real>
struct View {
  Real* data;
  std::size_t row, col = 1;

  View T() const { return {data, col, row}; }  // transposed
  View from(std::size_t i, std::size_t j = 0) const { return {data + i * row + j * col, row, col}; }
  operator View<const Real>() const { return {data, row, col}; }
};

// What every layer computes with: threads, kernels, and scratch memory for each thread.
template <class Real>
class Compute {
 public:
  template <class Element>
  using Array = Buffer<Element>;

  // Numbers a token that attention keeps from forward to backward.
  static std::size_t attention_numbers(const EncoderConfig& config) {
    return config.num_heads * config.max_length;
  }

  Compute(std::size_t threads, std::size_t scratch_size, std::size_t sums_size,
          const detail::Kernels<Real>& kernels_of_this_machine)
      : pool(threads), kernels(kernels_of_this_machine), block_sums_(sums_size) {
    for (std::size_t worker = 0; worker < pool.size(); ++worker) {
      multiply_scratch_.emplace_back(kernels.scratch_size);
      scratch_.emplace_back(scratch_size);
    }
  }

  Real* scratch(std::size_t worker) { return scratch_[worker].data(); }

  using In = View<const Real>;

  // C[m,n] = A[m,k] B[k,n]: the multiply of chapter 9 on one thread ...
  void multiply(std::size_t worker, std::size_t m, std::size_t n, std::size_t k, In a, In b,
                View<Real> c) {
    multiply(worker, m, n, k, a, b, {nullptr, 0}, c);
  }

  // ... C[m,n] = start + A B, where start may be C itself, a bias (row 0) or zeros (no data) ...
  void multiply(std::size_t worker, std::size_t m, std::size_t n, std::size_t k, In a, In b,
                In start, View<Real> c) {
    kernels.multiply(m, n, k, a.data, a.row, a.col, b.data, b.row, b.col, start.data, start.row,
                     c.data, c.row, multiply_scratch_[worker].data());
  }

  // ... and the same on all of them, each owning a stripe of C's rows or columns.
  void parallel_multiply(std::size_t m, std::size_t n, std::size_t k, In a, In b, In start,
                         View<Real> c) {
    const auto begin_at = [&](std::size_t i, std::size_t j) {
      return start.data == nullptr ? start : start.from(i, j);
    };
    // Each thread prepares for itself what all stripes share, so the longer side of C is cut; in
    // whole register tiles of appendix B.
    if (m >= n) {
      pool.parallel_ranges(m, 12, [&](std::size_t begin, std::size_t end, std::size_t worker) {
        multiply(worker, end - begin, n, k, a.from(begin), b, begin_at(begin, 0), c.from(begin));
      });
    } else {
      pool.parallel_ranges(n, 32, [&](std::size_t begin, std::size_t end, std::size_t worker) {
        multiply(worker, m, end - begin, k, a, b.from(0, begin), begin_at(0, begin),
                 c.from(0, begin));
      });
    }
  }

  // add(t, partial) adds what token t < N gives to partial[outputs,width]; sums[o][width] receives
  // the total of output o on top of what it holds.
  template <std::size_t outputs, class Add>
  void sum_tokens(std::size_t N, std::size_t width, const std::array<Real*, outputs>& sums,
                  Add&& add) {
    const std::size_t size = outputs * width, blocks = (N + sum_block - 1) / sum_block;
    for_rows(blocks, [&](std::size_t block) {
      Real* partial = block_sums_.data() + block * size;
      std::fill(partial, partial + size, Real(0));
      const std::size_t end = std::min(N, (block + 1) * sum_block);
      for (std::size_t t = block * sum_block; t < end; ++t) add(t, partial);
    });
    for (std::size_t block = 0; block < blocks; ++block) {
      for (std::size_t output = 0; output < outputs; ++output) {
        kernels.add(block_sums_.data() + block * size + output * width, sums[output], width);
      }
    }
  }

  // body(row) for each row, in contiguous ranges.
  template <class Body>
  void for_rows(std::size_t rows, Body&& body) {
    pool.parallel_ranges(rows, 1, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t row = begin; row < end; ++row) body(row);
    });
  }

  ThreadPool pool;
  const detail::Kernels<Real>& kernels;

 private:
  std::vector<Buffer<Real>> multiply_scratch_, scratch_;
  Buffer<Real> block_sums_;
};

// Dropout at one place of the network in one step. Row `row` of the batch has its own counters, so
// the mask does not depend on how rows are grouped or spread over threads.
struct DropoutSite {
  Key key;
  std::uint32_t threshold = 0;  // 0: off

  // y[n] = dropout(x[n]); y may be x.
  template <class Real>
  void apply(const detail::Kernels<Real>& k, const Real* x, Real* y, std::size_t n,
             std::size_t row) const {
    if (threshold != 0)
      k.dropout(x, y, n, key, static_cast<std::uint32_t>(row), threshold);
    else if (x != y)
      std::copy(x, x + n, y);
  }
};

// x[N,H] becomes dropout(x), forward and backward alike.
template <class Real>
void dropout_rows(Compute<Real>& compute, std::size_t N, std::size_t H, std::size_t first_token,
                  const DropoutSite& dropout, Real* x) {
  compute.for_rows(N, [&](std::size_t t) {
    dropout.apply(compute.kernels, x + t * H, x + t * H, H, first_token + t);
  });
}

// ---- Linear: y[N,O] = x[N,I] w[O,I]^T + b[O], from I numbers to O ------------------------------

template <class Real>
void linear_forward(Compute<Real>& compute, std::size_t N, std::size_t O, std::size_t I,
                    const Real* x, const Real* w, const Real* b, Real* y) {
  compute.parallel_multiply(N, O, I, {x, I}, View<const Real>{w, I}.T(), {b, 0}, {y, O});
}

// db[j] += sum_t dy[t,j]. Of rows longer than N (scores of items), threads own columns.
template <class Real>
void add_columns(Compute<Real>& compute, std::size_t N, std::size_t O, const Real* dy, Real* db) {
  if (O <= N) {
    return compute.template sum_tokens<1>(N, O, {db}, [&](std::size_t t, Real* partial) {
      compute.kernels.add(dy + t * O, partial, O);
    });
  }
  compute.pool.parallel_ranges(O, 16, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = 0; t < N; ++t)
      compute.kernels.add(dy + t * O + begin, db + begin, end - begin);
  });
}

// y = x w^T + b:   dw += dy^T x,   db += sum_t dy_t,   dx (+)= dy w      (dx must not be dy)
template <class Real>
void linear_backward(Compute<Real>& compute, std::size_t N, std::size_t O, std::size_t I,
                     const Real* x, const Real* w, const Real* dy, Real* dw, Real* db, Real* dx,
                     bool accumulate_dx) {
  compute.parallel_multiply(O, I, N, View<const Real>{dy, O}.T(), {x, I}, {dw, I}, {dw, I});
  add_columns(compute, N, O, dy, db);
  compute.parallel_multiply(N, I, O, {dy, O}, {w, I}, {accumulate_dx ? dx : nullptr, I}, {dx, I});
}

// ---- LayerNorm: y_t = gain (x_t - mean_t) / deviation_t + bias, over the H numbers of a token --

template <class Real>
void norm_forward(Compute<Real>& compute, std::size_t N, std::size_t H, const Real* x,
                  const Real* gain, const Real* bias, double epsilon, Real* y,
                  detail::RowStatistics<Real>* statistics) {
  compute.for_rows(N, [&](std::size_t t) {
    statistics[t] =
        compute.kernels.normalize(x + t * H, gain, bias, static_cast<Real>(epsilon), y + t * H, H);
  });
}

// Replaces dy[N,H] by dx, after the parameters have taken from dy what they need; then calls
// after(t), while the row is at hand.
template <class Real, class After>
void norm_backward(Compute<Real>& compute, std::size_t N, std::size_t H, const Real* x,
                   const detail::RowStatistics<Real>* statistics, const Real* gain, Real* dy,
                   Real* dgain, Real* dbias, After&& after) {
  compute.template sum_tokens<2>(N, H, {dgain, dbias}, [&](std::size_t t, Real* partial) {
    const Real* row = x + t * H;
    compute.kernels.normalize_parameters(row, statistics[t], dy + t * H, partial, partial + H, H);
    compute.kernels.normalize_backward(row, statistics[t], gain, dy + t * H, H);
    after(t);
  });
}
template <class Real>
void norm_backward(Compute<Real>& compute, std::size_t N, std::size_t H, const Real* x,
                   const detail::RowStatistics<Real>* statistics, const Real* gain, Real* dy,
                   Real* dgain, Real* dbias) {
  norm_backward(compute, N, H, x, statistics, gain, dy, dgain, dbias, [](std::size_t) {});
}

// ---- Residual and norm: y = LayerNorm(x + dropout(f)), the Post-LN of eq. 5 and 6 --------------
// f becomes x + dropout(f), which the backward needs.

template <class Real>
void residual_norm_forward(Compute<Real>& compute, std::size_t N, std::size_t H,
                           std::size_t first_token, const DropoutSite& dropout, const Real* x,
                           Real* f, const Real* gain, const Real* bias, double epsilon, Real* y,
                           detail::RowStatistics<Real>* statistics) {
  compute.for_rows(N, [&](std::size_t t) {
    dropout.apply(compute.kernels, f + t * H, f + t * H, H, first_token + t);
    compute.kernels.add(x + t * H, f + t * H, H);
    statistics[t] =
        compute.kernels.normalize(f + t * H, gain, bias, static_cast<Real>(epsilon), y + t * H, H);
  });
}

// y = LayerNorm(x + dropout(f)):   dx = d_sum,   df = dropout(d_sum)
// Replaces dy[N,H] by dx.
template <class Real>
void residual_norm_backward(Compute<Real>& compute, std::size_t N, std::size_t H,
                            std::size_t first_token, const DropoutSite& dropout, const Real* sum,
                            const detail::RowStatistics<Real>* statistics, const Real* gain,
                            Real* dy, Real* dgain, Real* dbias, Real* df) {
  norm_backward(compute, N, H, sum, statistics, gain, dy, dgain, dbias, [&](std::size_t t) {
    dropout.apply(compute.kernels, dy + t * H, df + t * H, H, first_token + t);
  });
}

// ---- Activation: h = dropout(gelu(u)) (inside eq. 3) -------------------------------------------

template <class Real>
void activation_forward(Compute<Real>& compute, std::size_t N, std::size_t width,
                        std::size_t first_token, const DropoutSite& dropout, const Real* u,
                        Real* h) {
  compute.for_rows(N, [&](std::size_t t) {
    Real* row = h + t * width;
    compute.kernels.gelu(u + t * width, row, width);
    dropout.apply(compute.kernels, row, row, width, first_token + t);
  });
}

// h = dropout(gelu(u)):   du = dropout(dh) gelu'(u), written over dh
template <class Real>
void activation_backward(Compute<Real>& compute, std::size_t N, std::size_t width,
                         std::size_t first_token, const DropoutSite& dropout, const Real* u,
                         Real* dh) {
  compute.for_rows(N, [&](std::size_t t) {
    Real* row = dh + t * width;
    dropout.apply(compute.kernels, row, row, width, first_token + t);
    compute.kernels.gelu_backward(u + t * width, row, width);
  });
}

// ---- Tanh: y = tanh u = (1 - e) / (1 + e) with the sign of u, e = exp(-2 |u|) -------------------

template <class Real>
void tanh_forward(Compute<Real>& compute, std::size_t N, std::size_t width, const Real* u,
                  Real* y) {
  compute.for_rows(N, [&](std::size_t t) {
    const Real* from = u + t * width;
    Real* row = y + t * width;
    for (std::size_t i = 0; i < width; ++i) row[i] = -2 * std::abs(from[i]);
    compute.kernels.exp(row, row, width);
    for (std::size_t i = 0; i < width; ++i) {
      row[i] = std::copysign((1 - row[i]) / (1 + row[i]), from[i]);
    }
  });
}

// y = tanh u:   du = dy (1 - y^2), written over dy
template <class Real>
void tanh_backward(Compute<Real>& compute, std::size_t N, std::size_t width, const Real* y,
                   Real* dy) {
  compute.for_rows(N, [&](std::size_t t) {
    for (std::size_t i = t * width; i < (t + 1) * width; ++i) {
      dy[i] *= detail::fused(-y[i], y[i], Real(1));
    }
  });
}

// ---- Rows that are computed together -----------------------------------------------------------
// Where rows begin and end in a list of the batch; row r of the group has the elements begin(r) ...
// begin(r) + length(r) - 1 of the group's part of it.
struct RowOffsets {
  std::span<const std::size_t> offsets;  // [rows + 1] places in the list of the batch

  std::size_t rows() const { return offsets.size() - 1; }
  std::size_t first() const { return offsets.front(); }
  std::size_t size() const { return offsets.back() - offsets.front(); }
  std::size_t begin(std::size_t row) const { return offsets[row] - offsets.front(); }
  std::size_t length(std::size_t row) const { return offsets[row + 1] - offsets[row]; }
};

struct RowGroup {
  std::span<const std::int32_t> tokens, positions;  // [N]
  std::span<const std::int32_t> segments;           // [N] or, if all are 0, empty
  std::span<const std::int32_t> bigrams;            // [N] or, if the model has none, empty
  std::span<const std::size_t> asked;               // [M] places in the group, ascending
  std::span<const std::int32_t> targets;            // [M] what belongs there
  std::span<const float> weights;                   // [M] of their losses or, if all are 1, empty
  std::span<const std::int32_t> negatives;          // [K] items drawn for the whole batch
  std::span<const float> log_expected;              // [K] log(K q) of an item drawn with chance q
  std::span<const std::int32_t> own_negatives;      // [M,R] items drawn for each asked place
  RowOffsets all, asked_rows;                       // the rows in tokens, and in asked
  std::span<const std::size_t> pairs;               // [rows + 1] sum of n^2 over the rows before

  std::int32_t segment(std::size_t t) const { return segments.empty() ? 0 : segments[t]; }
};

// ---- Attention: A heads of D = H / A, inside each row (eq. 1 and 2) ----------------------------
//   S = q k^T / sqrt D      [m,n] for one head of a row of n tokens, m of which are queries
//   P = softmax(S)          over the keys that a query sees
//   o = dropout(P) v        [m,D]
// A query sees all n tokens of its row or, if attention is causal, those up to its own. Then a
// block of queries at a time is computed, with the keys up to the last that any of them sees: about
// half of S is never made. In P the rest of a block is 0.
// In q[Q,H], and kv[N,2H] with keys before values, head h has the columns from h D. `weights` keeps
// P, one behind the other: A matrices [m,n] for each row, which has room for [n,n].

// The queries of a group: their rows, and which places of the group they are.
struct Queries {
  RowOffsets rows;
  std::span<const std::size_t> places;  // [Q] ascending; empty: all
};

// One head of one row, and where it lies in the arrays of the group.
class AttentionHead {
 public:
  static constexpr std::size_t causal_block = 32;  // queries computed at a time, if causal

  std::size_t m, n, D;      // queries, keys, width
  std::size_t block;        // queries computed at a time
  std::size_t dropout_row;  // of its first query, among the rows that dropout counts

  AttentionHead(const EncoderConfig& config, const RowGroup& group, const Queries& queries,
                std::size_t task)
      : D(config.head_size()), H_(config.hidden_size) {
    const std::size_t row = task / config.num_heads, head = task % config.num_heads;
    m = queries.rows.length(row), n = group.all.length(row);
    block = config.causal ? causal_block : std::max<std::size_t>(m, 1);
    first_query_ = queries.rows.begin(row), first_key_ = group.all.begin(row), column_ = head * D;
    weights_at_ = config.num_heads * group.pairs[row] + head * m * n;
    dropout_row = queries.rows.offsets[row] * config.num_heads + head * m;
    causal_ = config.causal;
    if (!queries.places.empty()) places_ = queries.places.subspan(first_query_, m);
  }

  // How many keys query i < m sees.
  std::size_t visible(std::size_t i) const {
    if (!causal_) return n;
    return places_.empty() ? i + 1 : places_[i] - first_key_ + 1;
  }

  // Its part of q[Q,H] and of what has that shape, of the keys and of the values in kv[N,2H], and
  // of the weights.
  template <class Real>
  View<Real> q(Real* all) const {
    return {all + first_query_ * H_ + column_, H_};
  }
  template <class Real>
  View<Real> k(Real* kv) const {
    return {kv + first_key_ * 2 * H_ + column_, 2 * H_};
  }
  template <class Real>
  View<Real> v(Real* kv) const {
    return k(kv + H_);
  }
  template <class Real>
  View<Real> P(Real* weights) const {
    return {weights + weights_at_, n};
  }

 private:
  std::size_t H_, weights_at_;
  std::size_t first_query_, first_key_, column_;  // rows of q and of kv, first column of both
  bool causal_;
  std::span<const std::size_t> places_;
};

template <class Real>
void attention_forward(Compute<Real>& compute, const EncoderConfig& config, const RowGroup& group,
                       const Queries& queries, const DropoutSite& dropout, const Real* q_all,
                       const Real* kv, Real* weights, Real* out) {
  const Real scale = 1 / std::sqrt(static_cast<Real>(config.head_size()));
  const std::size_t tasks = group.all.rows() * config.num_heads;
  compute.pool.parallel_for(tasks, [&](std::size_t task, std::size_t w) {
    const AttentionHead at(config, group, queries, task);
    for (std::size_t first = 0; first < at.m; first += at.block) {
      const std::size_t m = std::min(at.block, at.m - first), n = at.visible(first + m - 1);
      const View<const Real> q = at.q(q_all).from(first), k = at.k(kv), v = at.v(kv);
      const View<Real> P = at.P(weights).from(first), R{compute.scratch(w), n};
      compute.multiply(w, m, n, at.D, q, k.T(), P);
      for (std::size_t i = 0; i < m; ++i) {
        Real* row = P.from(i).data;
        const std::size_t seen = at.visible(first + i);
        compute.kernels.softmax(row, scale, seen);
        std::fill(row + seen, row + n, Real(0));
        dropout.apply(compute.kernels, row, R.from(i).data, n, at.dropout_row + first + i);
      }
      compute.multiply(w, m, at.D, n, R, v, at.q(out).from(first));
    }
  });
}

// With R = dropout(P) and T = q k^T, the scores before their scale:
// o = R v:                  dv = R^T do,            dR = do v^T
// P = softmax(T / sqrt D):  dT_ij = (R_ij dR_ij - P_ij sum_k R_ik dR_ik) / sqrt D
//                                                                         (softmax_backward)
// T = q k^T:                dq = dT k,              dk = dT^T q
// The last block comes first: no other sees more keys, so it writes dk and dv, and the others add.
template <class Real>
void attention_backward(Compute<Real>& compute, const EncoderConfig& config, const RowGroup& group,
                        const Queries& queries, const DropoutSite& dropout, const Real* q_all,
                        const Real* kv, const Real* weights, const Real* d_out, Real* d_q,
                        Real* d_kv) {
  const Real scale = 1 / std::sqrt(static_cast<Real>(config.head_size()));
  const std::size_t tasks = group.all.rows() * config.num_heads;
  compute.pool.parallel_for(tasks, [&](std::size_t task, std::size_t w) {
    const AttentionHead at(config, group, queries, task);
    const View<const Real> k = at.k(kv), v = at.v(kv);
    const View<Real> dk = at.k(d_kv), dv = at.v(d_kv);
    for (std::size_t row = at.m == 0 ? 0 : at.visible(at.m - 1); row < at.n; ++row) {
      std::fill_n(dk.from(row).data, at.D, Real(0));  // keys that nobody sees
      std::fill_n(dv.from(row).data, at.D, Real(0));
    }
    for (std::size_t end = at.m; end > 0;) {
      const std::size_t first = (end - 1) / at.block * at.block, m = end - first;
      const std::size_t n = at.visible(end - 1);
      const View<const Real> q = at.q(q_all).from(first), P = at.P(weights).from(first);
      const View<const Real> d_o = at.q(d_out).from(first);
      const View<Real> R{compute.scratch(w), n}, d_T = R.from(m), dq = at.q(d_q).from(first);
      const bool add = end < at.m;
      for (std::size_t i = 0; i < m; ++i) {
        dropout.apply(compute.kernels, P.from(i).data, R.from(i).data, n,
                      at.dropout_row + first + i);
      }
      compute.multiply(w, n, at.D, m, R.T(), d_o, {add ? dv.data : nullptr, dv.row}, dv);
      compute.multiply(w, m, n, at.D, d_o, v.T(), d_T);
      for (std::size_t i = 0; i < m; ++i) {
        compute.kernels.softmax_backward(P.from(i).data, R.from(i).data, d_T.from(i).data, scale,
                                         n);
      }
      compute.multiply(w, m, at.D, n, d_T, k, dq);
      compute.multiply(w, n, at.D, m, d_T.T(), q, {add ? dk.data : nullptr, dk.row}, dk);
      end = first;
    }
  });
}

// Scratch numbers that one thread needs for attention: two matrices [L,L]; [block,L] if causal.
inline std::size_t attention_scratch(const EncoderConfig& config) {
  const std::size_t L = config.max_length;
  return 2 * L * (config.causal ? std::min(L, AttentionHead::causal_block) : L);
}

// ---- Embedding: e_t = item[tokens_t] + position[positions_t] (section 3.4) ---------------------
// and, as in BERT, + segment[segments_t], if the model has segments, and + bigram[bigrams_t], if it
// has bigrams (chapter 14).

template <class Real>
void embedding_forward(Compute<Real>& compute, std::size_t H, const RowGroup& group,
                       const EncoderTensors<Real>& w, Real* e) {
  compute.for_rows(group.tokens.size(), [&](std::size_t t) {
    const auto add = [&](const Real* table, std::int32_t row) {
      compute.kernels.add(table + static_cast<std::size_t>(row) * H, e + t * H, H);
    };
    std::copy_n(w.item + static_cast<std::size_t>(group.tokens[t]) * H, H, e + t * H);
    add(w.position, group.positions[t]);
    if (w.segment != nullptr) add(w.segment, group.segment(t));
    if (w.bigram != nullptr) add(w.bigram, group.bigrams[t]);
  });
}

// e_t = item[tokens_t] + position[positions_t]:   d_item[tokens_t] += de_t, and so for the others.
// A token may occur often: threads own columns, so each sum keeps the order of t.
template <class Real>
void embedding_backward(Compute<Real>& compute, std::size_t H, const RowGroup& group,
                        const Real* de, const EncoderTensors<Real>& g) {
  compute.pool.parallel_ranges(H, 16, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t t = 0; t < group.tokens.size(); ++t) {
      const auto add = [&](Real* d_table, std::int32_t row) {
        Real* to = d_table + static_cast<std::size_t>(row) * H + begin;
        compute.kernels.add(de + t * H + begin, to, end - begin);
      };
      add(g.item, group.tokens[t]);
      add(g.position, group.positions[t]);
      if (g.segment != nullptr) add(g.segment, group.segment(t));
      if (g.bigram != nullptr) add(g.bigram, group.bigrams[t]);
    }
  });
}

// ================================================================================================
// 11  Encoder
// ================================================================================================
//   x    = dropout(LayerNorm(item + position))
//   a    = LayerNorm(x + dropout(attention(x)))                    for each layer
//   x    = LayerNorm(a + dropout(W2 dropout(gelu(W1 a))))
// Section 3.4 has only the sum of the two; LayerNorm and dropout on it are in the authors' code, as
// in BERT. Eq. 3 has no dropout between W1 and W2; PyTorch has (Architecture::torch).
//
// A step works through its batch in groups of whole rows of at most group_tokens tokens and adds
// their gradients up: what a group leaves between forward and backward then stays near the
// processor, and memory depends on the group, not on the batch. Groups depend on the data alone, so
// threads cannot change a result. All buffers of the encoder are made once, by the constructor.

inline constexpr std::size_t group_tokens = 2048;

// Tokens of the largest group.
inline std::size_t group_capacity(const EncoderConfig& config) {
  return std::max(group_tokens, config.max_length);
}

// Numbers in the block sums of a group: LayerNorm has 2H a block, a bias as many as tokens at most.
inline std::size_t block_sums(const EncoderConfig& config) {
  const std::size_t capacity = group_capacity(config);
  return (capacity + sum_block - 1) / sum_block * std::max(capacity, 2 * config.hidden_size);
}

// The places of dropout in one training step; by default all are off.
class DropoutPlan {
 public:
  DropoutPlan() = default;
  DropoutPlan(const EncoderConfig& config, Key step_key)
      : key_(step_key),
        threshold_(detail::dropout_threshold(config.dropout)),
        attention_threshold_(detail::dropout_threshold(config.attention_dropout)),
        inner_threshold_(detail::dropout_threshold(config.inner_dropout)) {}

  DropoutSite embedding() const { return {fold_in(key_, 0), threshold_}; }
  DropoutSite head() const { return {fold_in(key_, 1), threshold_}; }
  DropoutSite attention(std::size_t layer) const { return site(layer, 1, attention_threshold_); }
  DropoutSite attention_output(std::size_t layer) const { return site(layer, 2, threshold_); }
  DropoutSite inner(std::size_t layer) const { return site(layer, 3, inner_threshold_); }
  DropoutSite output(std::size_t layer) const { return site(layer, 4, threshold_); }

 private:
  DropoutSite site(std::size_t layer, std::size_t place, std::uint32_t threshold) const {
    return {fold_in(key_, 8 * (layer + 1) + place), threshold};
  }
  Key key_;
  std::uint32_t threshold_ = 0, attention_threshold_ = 0, inner_threshold_ = 0;
};

// to[i] = from[asked[i]] for the asked places of the group, rows of H numbers.
template <class Real>
void gather_rows(Compute<Real>&, std::size_t H, const RowGroup& group, const Real* from, Real* to) {
  for (std::size_t i = 0; i < group.asked.size(); ++i) {
    std::copy_n(from + group.asked[i] * H, H, to + i * H);
  }
}

// to[N,H] = from[N,H]
template <class Real>
void copy_rows(Compute<Real>&, std::size_t N, std::size_t H, const Real* from, Real* to) {
  std::copy_n(from, N * H, to);
}

// The backward of gather_rows, in place: row i moves to asked[i], and the other rows of x[N,H]
// become 0. From the last row to the first, so that none is overwritten before it has moved.
template <class Real>
void scatter_rows(Compute<Real>&, std::size_t H, const RowGroup& group, Real* x) {
  std::size_t left = group.asked.size();
  for (std::size_t t = group.tokens.size(); t-- > 0;) {
    if (left > 0 && group.asked[left - 1] == t) {
      std::memmove(x + t * H, x + --left * H, H * sizeof(Real));
    } else {
      std::fill(x + t * H, x + (t + 1) * H, Real(0));
    }
  }
}

// `Machine` is what computes: the processor or, in cuda/engine.cpp, a GPU, for which the functions
// called here (linear_forward and so on) exist a second time.
template <class Real, class Machine = Compute<Real>>
class Encoder {
 public:
  // `capacity`: tokens of the largest group.
  Encoder(const EncoderConfig& config, const TensorTable& table, Real* parameters, Real* gradients,
          std::size_t capacity)
      : config_(config),
        capacity_(capacity),
        w_(tensors_at<EncoderTensors<Real>>(config, table, parameters)),
        g_(tensors_at<EncoderTensors<Real>>(config, table, gradients)) {
    for (std::size_t layer = 0; layer < config.num_layers; ++layer) {
      layers_.emplace_back(config, capacity_);
    }
  }

  std::size_t capacity() const { return capacity_; }
  Real* item_weight() const { return w_.item; }
  Real* item_gradient() const { return g_.item; }

  // Vectors [M,H] of the asked places; valid until the next forward. Nobody reads anything else of
  // the last layer, so there only they are queries, and only they go on.
  const Real* forward(Machine& compute, const RowGroup& group, const DropoutPlan& dropout) {
    const std::size_t N = group.all.size(), H = config_.hidden_size, inner = config_.inner_size;
    embedding_forward(compute, H, group, w_, embedded_.data());
    norm_forward(compute, N, H, embedded_.data(), w_.gain, w_.bias, config_.norm_epsilon,
                 x0_.data(), statistics_.data());
    dropout_rows(compute, N, H, group.all.first(), dropout.embedding(), x0_.data());
    const Real* x = x0_.data();
    for (std::size_t i = 0; i < config_.num_layers; ++i) {
      const auto& w = w_.layers[i];
      Activations& s = layers_[i];
      const Queries queries = queries_of(group, i);
      const std::size_t Q = queries.rows.size(), first = queries.rows.first();
      const Real* query_x = x;  // [Q,H]
      if (is_last(i)) {
        gather_rows(compute, H, group, x, query_x_.data());
        query_x = query_x_.data();
      }
      linear_forward(compute, Q, H, H, query_x, w.in_weight, w.in_bias, s.q.data());
      linear_forward(compute, N, 2 * H, H, x, w.in_weight + H * H, w.in_bias + H, s.kv.data());
      attention_forward(compute, config_, group, queries, dropout.attention(i), s.q.data(),
                        s.kv.data(), s.weights.data(), s.context.data());
      linear_forward(compute, Q, H, H, s.context.data(), w.out_weight, w.out_bias, s.sum1.data());
      residual_norm_forward(compute, Q, H, first, dropout.attention_output(i), query_x,
                            s.sum1.data(), w.gain1, w.bias1, config_.norm_epsilon, s.a.data(),
                            s.statistics1.data());
      linear_forward(compute, Q, inner, H, s.a.data(), w.w1, w.b1, s.u.data());
      activation_forward(compute, Q, inner, first, dropout.inner(i), s.u.data(), s.h.data());
      linear_forward(compute, Q, H, inner, s.h.data(), w.w2, w.b2, s.sum2.data());
      residual_norm_forward(compute, Q, H, first, dropout.output(i), s.a.data(), s.sum2.data(),
                            w.gain2, w.bias2, config_.norm_epsilon, s.x.data(),
                            s.statistics2.data());
      x = s.x.data();
    }
    return x;
  }

  // The mirror of forward(), line by line from the bottom. d[M,H], with room for [N,H], is the
  // gradient of the loss with respect to what forward() returned; it is overwritten.
  void backward(Machine& compute, const RowGroup& group, const DropoutPlan& dropout, Real* d) {
    const std::size_t N = group.all.size(), H = config_.hidden_size, inner = config_.inner_size;
    Real *narrow = d_narrow_.data(), *wide = d_wide_.data();
    for (std::size_t i = config_.num_layers; i-- > 0;) {
      const auto &w = w_.layers[i], &g = g_.layers[i];
      const Activations& s = layers_[i];
      const Queries queries = queries_of(group, i);
      const std::size_t Q = queries.rows.size(), first = queries.rows.first();
      const Real* x = i == 0 ? x0_.data() : layers_[i - 1].x.data();
      const Real* query_x = is_last(i) ? query_x_.data() : x;
      // x' = LayerNorm(a + dropout(W2 h)): d becomes the part of da that goes around W2
      residual_norm_backward(compute, Q, H, first, dropout.output(i), s.sum2.data(),
                             s.statistics2.data(), w.gain2, d, g.gain2, g.bias2, narrow);
      linear_backward(compute, Q, H, inner, s.h.data(), w.w2, narrow, g.w2, g.b2, wide, false);
      activation_backward(compute, Q, inner, first, dropout.inner(i), s.u.data(), wide);
      linear_backward(compute, Q, inner, H, s.a.data(), w.w1, wide, g.w1, g.b1, d, true);
      // a = LayerNorm(query_x + dropout(W_out context)): d becomes the part around attention
      residual_norm_backward(compute, Q, H, first, dropout.attention_output(i), s.sum1.data(),
                             s.statistics1.data(), w.gain1, d, g.gain1, g.bias1, narrow);
      Real *d_context = wide, *d_q = wide + Q * H, *d_kv = wide + 2 * Q * H;  // [Q,H] twice, [N,2H]
      linear_backward(compute, Q, H, H, s.context.data(), w.out_weight, narrow, g.out_weight,
                      g.out_bias, d_context, false);
      attention_backward(compute, config_, group, queries, dropout.attention(i), s.q.data(),
                         s.kv.data(), s.weights.data(), d_context, d_q, d_kv);
      linear_backward(compute, Q, H, H, query_x, w.in_weight, d_q, g.in_weight, g.in_bias, d, true);
      if (is_last(i)) scatter_rows(compute, H, group, d);
      linear_backward(compute, N, 2 * H, H, x, w.in_weight + H * H, d_kv, g.in_weight + H * H,
                      g.in_bias + H, d, true);
    }
    dropout_rows(compute, N, H, group.all.first(), dropout.embedding(), d);
    norm_backward(compute, N, H, embedded_.data(), statistics_.data(), w_.gain, d, g_.gain,
                  g_.bias);
    embedding_backward(compute, H, group, d, g_);
  }

 private:
  template <class Element>
  using Array = typename Machine::template Array<Element>;

  bool is_last(std::size_t layer) const { return layer + 1 == config_.num_layers; }
  Queries queries_of(const RowGroup& group, std::size_t layer) const {
    return is_last(layer) ? Queries{group.asked_rows, group.asked} : Queries{group.all, {}};
  }

  // What forward() leaves for backward() in one layer, of so many tokens at most.
  struct Activations {
    Activations(const EncoderConfig& c, std::size_t tokens)
        : q(tokens * c.hidden_size),
          kv(tokens * 2 * c.hidden_size),
          weights(tokens * Machine::attention_numbers(c)),
          context(tokens * c.hidden_size),
          sum1(tokens * c.hidden_size),
          a(tokens * c.hidden_size),
          u(tokens * c.inner_size),
          h(tokens * c.inner_size),
          sum2(tokens * c.hidden_size),
          x(tokens * c.hidden_size),
          statistics1(tokens),
          statistics2(tokens) {}
    Array<Real> q, kv;             // [Q,H] and [N,2H], keys before values
    Array<Real> weights;           // what attention keeps: its softmax, [A,m,n] for each row
    Array<Real> context, sum1, a;  // [Q,H] output of attention; x + W_out context; its norm
    Array<Real> u, h;              // [Q,F] W1 a; its activation
    Array<Real> sum2, x;           // [Q,H] a + W2 h; its norm, the output of the layer
    Array<detail::RowStatistics<Real>> statistics1, statistics2;  // [Q] of the two norms
  };

  EncoderConfig config_;
  std::size_t capacity_;
  EncoderTensors<Real> w_, g_;
  Array<Real> embedded_{capacity_ * config_.hidden_size};  // [N,H] item + position
  Array<Real> x0_{capacity_ * config_.hidden_size};        // [N,H] its norm, the first layer's x
  Array<Real> query_x_{capacity_ * config_.hidden_size};   // [M,H] the last layer's x where asked
  Array<detail::RowStatistics<Real>> statistics_{capacity_};  // [N]
  // Gradients on their way: [N,H], and [N,max(F,4H)] of the inner layer or of q, kv and context.
  Array<Real> d_narrow_{capacity_ * config_.hidden_size};
  Array<Real> d_wide_{capacity_ * std::max(config_.inner_size, 4 * config_.hidden_size)};
  std::vector<Activations> layers_;
};

// ================================================================================================
// 12  Losses
// ================================================================================================
// At each asked place the model gives a score s to candidates, of which one is the target, with the
// score t. The loss of a batch is the mean over its asked places (eq. 8 averages inside each
// sequence first).
//   softmax          log sum_j exp s_j - t                               over all items
//   sampled-softmax  log(exp t + sum_j exp(s_j - log(K q_j))) - t        over K drawn items: item j
//                    is drawn K q_j times on average, and exp s_j is divided by that, so that the
//                    sum is right on average (Jean et al., ACL 2015)
//   gbce             (beta log(1 + exp -t') + sum_j log(1 + exp s'_j)) / (K + 1),
//                    beta = 1 - c (1 - alpha), alpha = K / (I - 1), c = TrainConfig::gbce_t
//                    (Petrov and Macdonald, RecSys 2023, whose transform of the score this is, in
//                    closed form): the nearer c is to 1 the less scores overestimate, as they do
//                    where few negatives are seen; with c = 1 and negatives drawn evenly,
//                    1 / (1 + exp -t') is the probability of the target
//   bce              gbce with c = 0: SASRec's loss, but for one set of negatives a batch
// In these two t' = t - log(K / beta), and s' likewise: a shift of the bias, which changes no
// ranking. With it scores of 0, from which training starts, balance one target and K negatives.
// Without it all scores have to fall that far first, in steps of the learning rate, and what moves
// them together drowns what tells them apart: on ml-1m the model was no better than popularity
// after 11 epochs, and with it leaves popularity behind in the third.
// A drawn item that is the target itself is no candidate: its score is set to -infinity.

inline constexpr std::array<std::size_t, 4> top_k{1, 5, 10, 20};

// Sums over asked places; add two, divide once.
struct Tally {
  double loss_sum = 0;
  std::uint64_t count = 0;
  std::array<std::uint64_t, top_k.size()> hits{};  // rank <= 1, 5, 10, 20

  double loss() const { return loss_sum / static_cast<double>(count); }
  double accuracy(std::size_t i) const {
    return static_cast<double>(hits[i]) / static_cast<double>(count);
  }
  void add_rank(std::size_t rank) {
    ++count;
    for (std::size_t i = 0; i < hits.size(); ++i) hits[i] += rank <= top_k[i];
  }
  Tally& operator+=(const Tally& other) {
    loss_sum += other.loss_sum;
    count += other.count;
    for (std::size_t i = 0; i < hits.size(); ++i) hits[i] += other.hits[i];
    return *this;
  }
};

// Rank of a target among all candidates: 1 + how many score higher + half of those that tie with
// it, rounded down. A model that scores all alike gets the middle rank.
constexpr std::size_t rank_of(std::size_t better, std::size_t ties) {
  return 1 + better + ties / 2;
}

// Whether a loss needs drawn negatives.
constexpr bool draws_negatives(Loss loss) { return loss != Loss::softmax; }

// Returns the loss at a place from its scores s[n], over which it writes the gradient:
//   ds_j = softmax(s)_j - [j = target]
template <class Real>
double softmax_loss(const detail::Kernels<Real>& kernels, Real* s, std::size_t n,
                    std::size_t target) {
  const Real target_score = s[target];
  const auto all = kernels.softmax(s, Real(1), n);
  s[target] -= 1;
  return static_cast<double>(all.largest) - static_cast<double>(target_score) +
         detail::natural_log(static_cast<double>(all.sum));
}

// Of gbce: beta, and log(K / beta).
inline double gbce_beta(double c, std::size_t K, std::size_t num_items) {
  const double alpha = static_cast<double>(K) / static_cast<double>(num_items - 1);
  return 1 - detail::rounded(c * (1 - std::min(1.0, alpha)));
}
inline double gbce_balance(double beta, std::size_t K) {
  return detail::natural_log(static_cast<double>(K) / beta);
}

// The loss of gbce from the scores s[1 + K], shifted if it balances them (see above; matching does
// not), of which the first is t, that of the target:
//   dt = -beta / (1 + exp t) / (K + 1),   ds_j = 1 / (1 + exp -s_j) / (K + 1)
template <class Real>
double logistic_loss(const detail::Kernels<Real>& kernels, Real* s, std::size_t K, double beta) {
  const Real share = Real(1) / static_cast<Real>(K + 1);
  s[0] = -s[0];
  const double target_loss = detail::rounded(beta * kernels.logistic(s, 1));
  const double loss = target_loss + kernels.logistic(s + 1, K);
  s[0] *= -static_cast<Real>(beta);
  kernels.scale(s, share, K + 1);
  return loss / static_cast<double>(K + 1);
}

// ================================================================================================
// 13  Heads
// ================================================================================================
// A head turns the vectors of the asked places into scores and a loss. It owns its tensors, its
// loss and its gradient; the engine gives it vectors and takes their gradient back:
//   static TensorTable tensors(config)           those of the encoder and its own
//   static bool draws(train)                     whether its loss sees but a few drawn items
//   Head(config, train, table, parameters, gradients, encoder)   flat arrays, and what a loss needs
//   Tally loss(compute, x, group, dropout, loss_scale, d_x)      of training
//   Tally evaluate(compute, x, group)
//   const Real* prepare(compute, M, x)               what scores are made of,
//   void score(compute, M, prepared, first, n, scores)   those [M,n] of items from `first` on
// and, if its scores are inner products, the vectors of items and of users (places that are asked)
// whose products they are, which a search index takes:
//   std::size_t vector_size()
//   void item_vectors(compute, first, n, out)
//   void user_vectors(compute, M, x, out)

template <class Head>
concept HasVectors = requires(const Head& head) {
  head.vector_size();
};

// ---- Their tensors -----------------------------------------------------------------------------

template <class Real>
struct ItemTensors {
  Real* weight;                                    // torch: output [V,H]
  Real *dense_weight, *dense_bias, *gain, *shift;  // paper: [H,H] [H] [H] [H]
  Real* bias;                                      // [V]

  template <class Visit>
  void for_each(const ModelConfig& config, Visit&& visit) {
    const std::size_t H = config.hidden_size, V = config.vocabulary();
    if (!config.ties_items()) {
      visit(weight, "output.weight", Shape{V, H}, Init::normal, Rows::tokens);
    } else if (config.architecture == Architecture::paper) {
      visit(dense_weight, "head.dense.weight", Shape{H, H}, Init::normal);
      visit(dense_bias, "head.dense.bias", Shape{H}, Init::zeros);
      visit(gain, "head.norm.weight", Shape{H}, Init::ones);
      visit(shift, "head.norm.bias", Shape{H}, Init::zeros);
    }
    visit(bias, "output.bias", Shape{V}, Init::zeros, Rows::tokens);
  }
};

template <class Real>
struct ClassificationTensors {
  Real *dense_weight, *dense_bias;  // [H,H] [H]
  Real *weight, *bias;              // [C,H] [C]

  template <class Visit>
  void for_each(const ModelConfig& config, Visit&& visit) {
    const std::size_t H = config.hidden_size, C = config.classes;
    visit(dense_weight, "pooler.dense.weight", Shape{H, H}, Init::normal);
    visit(dense_bias, "pooler.dense.bias", Shape{H}, Init::zeros);
    visit(weight, "classifier.weight", Shape{C, H}, Init::normal);
    visit(bias, "classifier.bias", Shape{C}, Init::zeros);
  }
};

// The scale of similarities: see MatchingHead.
template <class Real>
struct MatchingTensors {
  Real* log_scale = nullptr;  // [1]; none if the scale is fixed

  template <class Visit>
  void for_each(const ModelConfig& config, Visit&& visit) {
    if (config.fixed_scale == 0) visit(log_scale, "log_scale", Shape{1}, Init::log_scale);
  }
};

// All tensors of a model. 3,000 items and the default configuration: 3,171,771 numbers.
inline TensorTable bert4rec_tensors(const ModelConfig& config) {
  validate(config);
  TensorTable table;
  add_tensors<EncoderTensors<float>>(table, config.encoder());
  if (config.task == TaskKind::matching)
    add_tensors<MatchingTensors<float>>(table, config);
  else if (config.task == TaskKind::classification)
    add_tensors<ClassificationTensors<float>>(table, config);
  else
    add_tensors<ItemTensors<float>>(table, config);
  return table;
}

// ---- What they share ---------------------------------------------------------------------------

namespace detail {

// Rows of scores that are held at a time: of so many numbers, but 64 rows at least, since each slab
// reads the whole table.
constexpr std::size_t slab_rows(std::size_t columns, std::size_t most) {
  constexpr std::size_t slab_numbers = std::size_t{1} << 22, least_rows = 64;
  return std::min(std::max(slab_numbers / columns, least_rows), most);
}

// Drawn items have their rows behind those of PAD, MASK and UNK (find_touched).
inline void check_loss(const ModelConfig& config, Loss loss) {
  require(!config.reads_text() || !draws_negatives(loss), "loss is ", enum_name(loss),
          ", but texts are learned with softmax");
}

template <class Real>
void grow(Buffer<Real>& buffer, std::size_t size) {
  if (buffer.size() < size) buffer = Buffer<Real>(size);
}

// The loss of softmax at a place, and how many candidates are above the target, from the scores
// s[n], which become the gradient.
template <class Real>
void softmax_place(const Kernels<Real>& kernels, Real* s, std::size_t n, std::size_t target,
                   double& loss, RankCounts& counts) {
  counts = kernels.count_above(s, s[target], n);
  counts.ties -= 1;  // the target itself (none, and so wrapped, if it is NaN)
  loss = softmax_loss(kernels, s, n, target);
}

// The sums over places 0 ... M - 1, of which losses and counts tell.
inline Tally tally_of(std::size_t M, const Buffer<double>& losses,
                      const Buffer<RankCounts>& counts) {
  Tally tally;
  for (std::size_t i = 0; i < M; ++i) {
    tally.loss_sum += losses[i];
    tally.add_rank(rank_of(counts[i].better, counts[i].ties));
  }
  return tally;
}

}  // namespace detail

// ---- Items -------------------------------------------------------------------------------------
// ItemHead scores all items. Only items compete: PAD, MASK and UNK are never predicted.
//   torch:  s = W x + b                                        W: output.weight [V,H]
//   paper:  s = E LayerNorm(gelu(W_d x + b_d)) + b  (eq. 7)    E: item_embedding.weight [V,H]
//   tied:   s = E x + b
// (Equation 7 has no LayerNorm; the authors' code does.)

// What the items are compared with, at no more than `capacity` asked places: the encoder's x itself
// or, in the paper, LayerNorm(gelu(W_d x + b_d)).
template <class Real, class Machine = Compute<Real>>
class ItemTransform {
 public:
  ItemTransform(const ModelConfig& config, const ItemTensors<Real>& parameters,
                const ItemTensors<Real>& gradients, std::size_t capacity)
      : is_identity_(config.architecture != Architecture::paper),
        H_(config.hidden_size),
        norm_epsilon_(config.norm_epsilon),
        w_(parameters),
        g_(gradients),
        capacity_(is_identity_ ? 0 : capacity) {}

  // From x[M,H]: [M,H], valid until the next forward.
  const Real* forward(Machine& compute, std::size_t M, const Real* x) {
    if (is_identity_) return x;
    linear_forward(compute, M, H_, H_, x, w_.dense_weight, w_.dense_bias, dense_.data());
    activation_forward(compute, M, H_, 0, DropoutSite{}, dense_.data(), active_.data());
    norm_forward(compute, M, H_, active_.data(), w_.gain, w_.shift, norm_epsilon_, vectors_.data(),
                 statistics_.data());
    return vectors_.data();
  }

  // vectors = LayerNorm(gelu(W_d x + b_d)): turns d[M,H], the gradient by the vectors, into that
  // by x.
  void backward(Machine& compute, std::size_t M, const Real* x, Real* d) {
    if (is_identity_) return;
    norm_backward(compute, M, H_, active_.data(), statistics_.data(), w_.gain, d, g_.gain,
                  g_.shift);
    activation_backward(compute, M, H_, 0, DropoutSite{}, dense_.data(), d);
    copy_rows(compute, M, H_, d, active_.data());  // the product below cannot work in place
    linear_backward(compute, M, H_, H_, x, w_.dense_weight, active_.data(), g_.dense_weight,
                    g_.dense_bias, d, false);
  }

 private:
  template <class Element>
  using Array = typename Machine::template Array<Element>;

  bool is_identity_;
  std::size_t H_;
  double norm_epsilon_;
  ItemTensors<Real> w_, g_;
  std::size_t capacity_;
  Array<Real> dense_{capacity_ * H_}, active_{capacity_ * H_};  // [M,H] W_d x + b_d; its gelu
  Array<Real> vectors_{capacity_ * H_};                         // [M,H] its norm
  Array<detail::RowStatistics<Real>> statistics_{capacity_};    // [M]
};

template <class Real>
class ItemHead {
 public:
  static TensorTable tensors(const ModelConfig& config) { return bert4rec_tensors(config); }
  static bool draws(const TrainConfig& train) { return draws_negatives(train.loss); }

  ItemHead(const ModelConfig& config, const TrainConfig& train, const TensorTable& table,
           Real* parameters, Real* gradients, const Encoder<Real>& encoder)
      : config_(config),
        loss_(train.loss),
        gbce_t_(train.loss == Loss::gbce ? train.gbce_t : 0.0),
        capacity_(encoder.capacity()),
        w_(tensors_at<ItemTensors<Real>>(config, table, parameters)),
        g_(tensors_at<ItemTensors<Real>>(config, table, gradients)) {
    detail::check_loss(config, train.loss);
    if (config.ties_items()) {
      w_.weight = encoder.item_weight(), g_.weight = encoder.item_gradient();
    }
    // From here on the rows of items alone: [I,H] and [I].
    for (ItemTensors<Real>* tensors : {&w_, &g_}) {
      tensors->weight += config.first_row() * config.hidden_size;
      tensors->bias += config.first_row();
    }
  }

  // Loss at the asked places: their vectors x[M,H] from the encoder, and the group's targets[M]
  // (items). d_x[M,H] receives the gradient of loss_scale * (sum of losses), and that of the head's
  // tensors is added to theirs.
  Tally loss(Compute<Real>& compute, const Real* x, const RowGroup& group, const DropoutPlan&,
             Real loss_scale, Real* d_x) {
    const Real* vectors = transform_.forward(compute, group.targets.size(), x);
    const Tally tally = draws_negatives(loss_)
                            ? sampled_loss(compute, vectors, group, loss_scale, d_x)
                            : full_loss(compute, vectors, group, loss_scale, d_x);
    transform_.backward(compute, group.targets.size(), x, d_x);
    return tally;
  }

  // Softmax over all items and ranks among them, whatever the loss of training.
  Tally evaluate(Compute<Real>& compute, const Real* x, const RowGroup& group) {
    const Real* vectors = transform_.forward(compute, group.targets.size(), x);
    return full_loss(compute, vectors, group, Real(1), nullptr);
  }

  // Of the asked places, from their vectors x[M,H]: what items are compared with ...
  const Real* prepare(Compute<Real>& compute, std::size_t M, const Real* x) {
    return transform_.forward(compute, M, x);
  }

  // ... and the scores [M,n] of items first ... first + n - 1.
  void score(Compute<Real>& compute, std::size_t M, const Real* vectors, std::size_t first,
             std::size_t n, Real* scores) {
    const std::size_t H = config_.hidden_size;
    linear_forward(compute, M, n, H, vectors, w_.weight + first * H, w_.bias + first, scores);
  }

  // s = (w_j, b_j) (x', 1), with x' what the items are compared with
  std::size_t vector_size() const { return config_.hidden_size + 1; }

  // Of items first ... first + n - 1: [n,H+1].
  void item_vectors(Compute<Real>& compute, std::size_t first, std::size_t n, Real* out) const {
    const std::size_t H = config_.hidden_size;
    compute.for_rows(n, [&](std::size_t j) {
      Real* end = std::copy_n(w_.weight + (first + j) * H, H, out + j * (H + 1));
      *end = w_.bias[first + j];
    });
  }

  // Of the asked places, from their vectors x[M,H]: [M,H+1].
  void user_vectors(Compute<Real>& compute, std::size_t M, const Real* x, Real* out) {
    const std::size_t H = config_.hidden_size;
    const Real* vectors = transform_.forward(compute, M, x);
    compute.for_rows(M, [&](std::size_t i) {
      Real* end = std::copy_n(vectors + i * H, H, out + i * (H + 1));
      *end = Real(1);
    });
  }

 private:
  // ---- Over all items --------------------------------------------------------------------------

  Tally full_loss(Compute<Real>& compute, const Real* vectors, const RowGroup& group,
                  Real loss_scale, Real* d_vectors) {
    const std::size_t M = group.targets.size(),
                      slab = detail::slab_rows(config_.num_items, capacity_);
    detail::grow(scores_, std::min(M, slab) * config_.num_items);
    for (std::size_t begin = 0; begin < M; begin += slab) {
      full_slab(compute, begin, std::min(begin + slab, M), vectors, group, loss_scale, d_vectors);
    }
    return detail::tally_of(M, losses_, counts_);
  }

  // Asked places begin ... end - 1:  s = vectors W^T + b
  void full_slab(Compute<Real>& compute, std::size_t begin, std::size_t end, const Real* vectors,
                 const RowGroup& group, Real loss_scale, Real* d_vectors) {
    const std::size_t M = end - begin, H = config_.hidden_size, I = config_.num_items;
    vectors += begin * H;
    linear_forward(compute, M, I, H, vectors, w_.weight, w_.bias, scores_.data());
    compute.for_rows(M, [&](std::size_t i) {
      Real* s = scores_.data() + i * I;
      detail::softmax_place(compute.kernels, s, I,
                            static_cast<std::size_t>(group.targets[begin + i]), losses_[begin + i],
                            counts_[begin + i]);
      if (d_vectors != nullptr) compute.kernels.scale(s, loss_scale, I);
    });
    if (d_vectors == nullptr) return;
    linear_backward(compute, M, I, H, vectors, w_.weight, scores_.data(), g_.weight, g_.bias,
                    d_vectors + begin * H, false);
  }

  // ---- Over drawn items ------------------------------------------------------------------------
  // The rows of the K drawn items are gathered; the scores of a place are those of its target and
  // then of these. Ranks count among them.

  Tally sampled_loss(Compute<Real>& compute, const Real* vectors, const RowGroup& group,
                     Real loss_scale, Real* d_vectors) {
    const std::size_t M = group.targets.size(), K = group.negatives.size();
    const std::size_t H = config_.hidden_size, slab = detail::slab_rows(K + 1, capacity_);
    require(K > 0, "a batch without negatives, which the loss ", enum_name(loss_), " needs");
    detail::grow(drawn_, K * H), detail::grow(drawn_bias_, K);
    detail::grow(scores_, std::min(M, slab) * (K + 1));
    detail::grow(d_drawn_, K * H), detail::grow(d_drawn_bias_, K);
    std::fill_n(d_drawn_.data(), K * H, Real(0));
    std::fill_n(d_drawn_bias_.data(), K, Real(0));
    for (std::size_t j = 0; j < K; ++j) {
      const auto item = static_cast<std::size_t>(group.negatives[j]);
      std::copy_n(w_.weight + item * H, H, drawn_.data() + j * H);
      drawn_bias_[j] = w_.bias[item];
    }
    for (std::size_t begin = 0; begin < M; begin += slab) {
      sampled_slab(compute, begin, std::min(begin + slab, M), vectors, group, loss_scale,
                   d_vectors);
    }
    for (std::size_t j = 0; j < K; ++j) {
      const auto item = static_cast<std::size_t>(group.negatives[j]);
      compute.kernels.add(d_drawn_.data() + j * H, g_.weight + item * H, H);
      g_.bias[item] += d_drawn_bias_[j];
    }
    return detail::tally_of(M, losses_, counts_);
  }

  // Asked places begin ... end - 1:
  //   t_i = vectors_i w_target + b_target,   s_ij = vectors_i w_j + b_j
  void sampled_slab(Compute<Real>& compute, std::size_t begin, std::size_t end, const Real* vectors,
                    const RowGroup& group, Real loss_scale, Real* d_vectors) {
    const std::size_t M = end - begin, H = config_.hidden_size, K = group.negatives.size();
    const View<Real> s{scores_.data(), K + 1}, drawn{drawn_.data(), H};
    vectors += begin * H, d_vectors += begin * H;
    compute.parallel_multiply(M, K, H, {vectors, H}, drawn.T(), {drawn_bias_.data(), 0},
                              s.from(0, 1));
    compute.for_rows(M, [&](std::size_t i) {
      const auto target = static_cast<std::size_t>(group.targets[begin + i]);
      Real* row = s.from(i).data;
      row[0] = compute.kernels.dot(vectors + i * H, w_.weight + target * H, H) + w_.bias[target];
      losses_[begin + i] = place_loss(compute.kernels, row, group, begin + i);
      compute.kernels.scale(row, loss_scale, K + 1);
    });
    // d_vectors_i = sum_j ds_ij w_j + dt_i w_target,   dw_j = sum_i ds_ij vectors_i,
    // db_j = sum_i ds_ij,   and of the row of each target dt_i vectors_i, of its bias dt_i more
    const View<Real> d_s = s.from(0, 1), d_drawn{d_drawn_.data(), H};
    compute.parallel_multiply(M, H, K, d_s, drawn, {nullptr, 0}, {d_vectors, H});
    compute.parallel_multiply(K, H, M, d_s.T(), {vectors, H}, d_drawn, d_drawn);
    for (std::size_t i = 0; i < M; ++i) {
      const auto target = static_cast<std::size_t>(group.targets[begin + i]);
      const Real d_t = s.from(i).data[0];
      compute.kernels.add_scaled(d_t, w_.weight + target * H, d_vectors + i * H, H);
      compute.kernels.add_scaled(d_t, vectors + i * H, g_.weight + target * H, H);
      compute.kernels.add(d_s.from(i).data, d_drawn_bias_.data(), K);
      g_.bias[target] += d_t;
    }
  }

  // The loss at a place from the scores s[1 + K] of its target and the drawn items, which become
  // the gradient.
  double place_loss(const detail::Kernels<Real>& kernels, Real* s, const RowGroup& group,
                    std::size_t place) {
    const std::size_t K = group.negatives.size();
    for (std::size_t j = 0; j < K; ++j) {
      if (group.negatives[j] == group.targets[place]) {
        s[1 + j] = -std::numeric_limits<Real>::infinity();
      }
    }
    counts_[place] = kernels.count_above(s + 1, s[0], K);
    if (loss_ == Loss::sampled_softmax) {
      for (std::size_t j = 0; j < K; ++j) s[1 + j] -= static_cast<Real>(group.log_expected[j]);
      return softmax_loss(kernels, s, K + 1, 0);
    }
    const double beta = gbce_beta(gbce_t_, K, config_.num_items);
    const Real balance = static_cast<Real>(gbce_balance(beta, K));
    for (std::size_t j = 0; j <= K; ++j) s[j] -= balance;
    return logistic_loss(kernels, s, K, beta);
  }

  ModelConfig config_;
  Loss loss_;
  double gbce_t_;
  std::size_t capacity_;
  ItemTensors<Real> w_, g_;  // parameters and gradients
  ItemTransform<Real> transform_{config_, w_, g_, capacity_};
  Buffer<Real> scores_;                           // [slab,I], or [slab,1+K]
  Buffer<Real> drawn_, drawn_bias_;               // [K,H] [K] of the drawn items,
  Buffer<Real> d_drawn_, d_drawn_bias_;           // and their gradients
  Buffer<double> losses_{capacity_};              // [M]
  Buffer<detail::RankCounts> counts_{capacity_};  // [M]
};

// ---- Matching ----------------------------------------------------------------------------------
// Two vectors for a place, that of the encoder for the user there, u = x, and for each item its row
// of item_embedding, e. Their score is a scaled cosine,
//   s = exp(log_scale) c,   c = u e / (|u| |e|),
// and the loss that of telling the target from R items drawn for the place (Batch::own_negatives),
// the mean binary cross-entropy of all 1 + R:
//   L = (log(1 + exp -s+) + sum_j log(1 + exp s_j)) / (1 + R)          (in shapes here C = 1 + R)
// A cosine is at most 1, so with a scale of 1 no loss could fall below log(1 + exp -1) = 0.313; the
// scale is learned, as in CLIP (Radford et al., ICML 2021): from 1 / 0.07 on, by its logarithm so
// that it stays positive, and at most 100, where the gradient of a wrong pair is large enough.
// R = 0 leaves no reason to tell items apart: all vectors become one (collapse), c = 1.

inline constexpr double largest_log_scale = 4.605170185988092;  // log 100

template <class Real>
class MatchingHead {
 public:
  static TensorTable tensors(const ModelConfig& config) { return bert4rec_tensors(config); }
  static bool draws(const TrainConfig&) { return true; }

  MatchingHead(const ModelConfig& config, const TrainConfig&, const TensorTable& table,
               Real* parameters, Real* gradients, const Encoder<Real>& encoder)
      : config_(config),
        capacity_(encoder.capacity()),
        w_(tensors_at<MatchingTensors<Real>>(config, table, parameters)),
        g_(tensors_at<MatchingTensors<Real>>(config, table, gradients)),
        item_(encoder.item_weight() + special_rows * config.hidden_size),
        d_item_(encoder.item_gradient() + special_rows * config.hidden_size) {}

  // As ItemHead::loss(). Ranks count among the 1 + R.
  Tally loss(Compute<Real>& compute, const Real* x, const RowGroup& group, const DropoutPlan&,
             Real loss_scale, Real* d_x) {
    const std::size_t M = group.targets.size(), C = 1 + group.own_negatives.size() / M;
    detail::grow(scores_, M * C), detail::grow(cosines_, M * C), detail::grow(lengths_, M * C);
    const Real a = scale(compute.kernels);
    prepare_users(compute, M, x);
    compute.for_rows(M, [&](std::size_t i) {
      place_forward(compute.kernels, group, i, C, a);
      compute.kernels.scale(scores_.data() + i * C, loss_scale, C);
      place_backward(compute.kernels, group, i, C, a, d_x + i * config_.hidden_size);
    });
    add_gradients(compute.kernels, group, C, a);
    return detail::tally_of(M, losses_, counts_);
  }

  // Of the gradient of a whole batch: beyond the bound of log_scale a larger scale changes nothing,
  // and only the way back is open.
  void bound_gradient() {
    if (w_.log_scale == nullptr) return;
    const bool beyond = *w_.log_scale > static_cast<Real>(largest_log_scale);
    if (beyond && *g_.log_scale < 0) *g_.log_scale = 0;
  }

  // Softmax over all items and ranks among them.
  Tally evaluate(Compute<Real>& compute, const Real* x, const RowGroup& group) {
    const std::size_t M = group.targets.size(), I = config_.num_items, H = config_.hidden_size;
    const std::size_t slab = detail::slab_rows(I, capacity_);
    detail::grow(scores_, std::min(M, slab) * I);
    for (std::size_t begin = 0; begin < M; begin += slab) {
      const std::size_t rows = std::min(slab, M - begin);
      score(compute, rows, prepare(compute, rows, x + begin * H), 0, I, scores_.data());
      compute.for_rows(rows, [&](std::size_t i) {
        detail::softmax_place(compute.kernels, scores_.data() + i * I, I,
                              static_cast<std::size_t>(group.targets[begin + i]),
                              losses_[begin + i], counts_[begin + i]);
      });
    }
    return detail::tally_of(M, losses_, counts_);
  }

  // a u / |u| of the asked places, from their vectors x[M,H] ...
  const Real* prepare(Compute<Real>& compute, std::size_t M, const Real* x) {
    const Real a = scale(compute.kernels);
    prepare_users(compute, M, x);
    compute.for_rows(
        M, [&](std::size_t i) { compute.kernels.scale(unit(i), a, config_.hidden_size); });
    return units_.data();
  }

  // ... and the scores [M,n] of items from `first` on:  s_ij = (a u_i / |u_i|) e_j / |e_j|
  void score(Compute<Real>& compute, std::size_t M, const Real* users, std::size_t first,
             std::size_t n, Real* scores) {
    const std::size_t H = config_.hidden_size;
    const Real* items = item_ + first * H;
    detail::grow(lengths_, n);
    compute.for_rows(
        n, [&](std::size_t j) { lengths_[j] = Real(1) / length(compute.kernels, items + j * H); });
    compute.parallel_multiply(M, n, H, {users, H}, View<const Real>{items, H}.T(), {nullptr, 0},
                              {scores, n});
    compute.for_rows(M, [&](std::size_t i) {
      for (std::size_t j = 0; j < n; ++j) scores[i * n + j] *= lengths_[j];
    });
  }

  // s_ij is the product of a u_i / |u_i| and e_j / |e_j|
  std::size_t vector_size() const { return config_.hidden_size; }

  // Of items first ... first + n - 1: [n,H].
  void item_vectors(Compute<Real>& compute, std::size_t first, std::size_t n, Real* out) const {
    const std::size_t H = config_.hidden_size;
    compute.for_rows(n, [&](std::size_t j) {
      const Real* e = item_ + (first + j) * H;
      std::copy_n(e, H, out + j * H);
      compute.kernels.scale(out + j * H, Real(1) / length(compute.kernels, e), H);
    });
  }

  // Of the asked places, from their vectors x[M,H]: [M,H].
  void user_vectors(Compute<Real>& compute, std::size_t M, const Real* x, Real* out) {
    const std::size_t H = config_.hidden_size;
    std::copy_n(prepare(compute, M, x), M * H, out);
  }

 private:
  // a = exp(log_scale), within its bound
  Real scale(const detail::Kernels<Real>& kernels) const {
    if (w_.log_scale == nullptr) return static_cast<Real>(config_.fixed_scale);
    Real a = std::min(*w_.log_scale, static_cast<Real>(largest_log_scale));
    kernels.exp(&a, &a, 1);
    return a;
  }

  Real length(const detail::Kernels<Real>& kernels, const Real* vector) const {
    // A vector of zeros has no direction. (The gradient treats the bound as its length.)
    constexpr Real least = Real(1e-8);
    return std::max(std::sqrt(kernels.sum_of_squares(vector, config_.hidden_size)), least);
  }

  Real* unit(std::size_t i) { return units_.data() + i * config_.hidden_size; }

  // units_[M,H] = u / |u|, and |u|
  void prepare_users(Compute<Real>& compute, std::size_t M, const Real* x) {
    const std::size_t H = config_.hidden_size;
    compute.for_rows(M, [&](std::size_t i) {
      user_lengths_[i] = length(compute.kernels, x + i * H);
      std::copy_n(x + i * H, H, unit(i));
      compute.kernels.scale(unit(i), Real(1) / user_lengths_[i], H);
    });
  }

  // The row of candidate c of a place: its target, then its own negatives.
  std::size_t row_of(const RowGroup& group, std::size_t place, std::size_t c, std::size_t C) const {
    const std::int32_t item =
        c == 0 ? group.targets[place] : group.own_negatives[place * (C - 1) + c - 1];
    return static_cast<std::size_t>(item) * config_.hidden_size;
  }

  // s_j = a c_j of each candidate j, whose places receive dL/ds_j
  void place_forward(const detail::Kernels<Real>& kernels, const RowGroup& group, std::size_t i,
                     std::size_t C, Real a) {
    Real *s = scores_.data() + i * C, *cosine = cosines_.data() + i * C;
    for (std::size_t c = 0; c < C; ++c) {
      const Real* e = item_ + row_of(group, i, c, C);
      const Real e_length = length(kernels, e);
      lengths_[i * C + c] = e_length;
      cosine[c] = kernels.dot(unit(i), e, config_.hidden_size) / e_length;
      s[c] = a * cosine[c];
    }
    counts_[i] = kernels.count_above(s + 1, s[0], C - 1);
    losses_[i] = logistic_loss(kernels, s, C - 1, 1.0);
  }

  // c = u e / (|u| |e|):  du = sum_j ds_j a (e_j / |e_j| - c_j u / |u|) / |u|
  void place_backward(const detail::Kernels<Real>& kernels, const RowGroup& group, std::size_t i,
                      std::size_t C, Real a, Real* du) {
    const Real *ds = scores_.data() + i * C, *cosine = cosines_.data() + i * C;
    std::fill_n(du, config_.hidden_size, Real(0));
    Real along = 0;
    for (std::size_t c = 0; c < C; ++c) {
      const Real* e = item_ + row_of(group, i, c, C);
      kernels.add_scaled(ds[c] / lengths_[i * C + c], e, du, config_.hidden_size);
      along = detail::fused(ds[c], cosine[c], along);
    }
    kernels.add_scaled(-along, unit(i), du, config_.hidden_size);
    kernels.scale(du, a / user_lengths_[i], config_.hidden_size);
  }

  //   de = ds a (u / |u| - c e / |e|) / |e|,   d(log_scale) = sum ds s
  // One thread, in the order of the places: an item may be in many of them.
  void add_gradients(const detail::Kernels<Real>& kernels, const RowGroup& group, std::size_t C,
                     Real a) {
    const std::size_t H = config_.hidden_size;
    Real d_log_scale = 0;
    for (std::size_t i = 0; i < group.targets.size(); ++i) {
      for (std::size_t c = 0; c < C; ++c) {
        const std::size_t row = row_of(group, i, c, C), at = i * C + c;
        const Real factor = scores_[at] * a / lengths_[at];
        kernels.add_scaled(factor, unit(i), d_item_ + row, H);
        kernels.add_scaled(-factor * cosines_[at] / lengths_[at], item_ + row, d_item_ + row, H);
        d_log_scale = detail::fused(scores_[at] * a, cosines_[at], d_log_scale);
      }
    }
    if (w_.log_scale != nullptr) *g_.log_scale += d_log_scale;
  }

  ModelConfig config_;
  std::size_t capacity_;
  MatchingTensors<Real> w_, g_;
  Real *item_, *d_item_;                                 // [I,H] rows of item_embedding
  Buffer<Real> units_{capacity_ * config_.hidden_size};  // [M,H] u / |u|
  Buffer<Real> user_lengths_{capacity_};                 // [M] |u|
  Buffer<Real> scores_, cosines_;                        // [M,C] s (or ds), and c; or [slab,I] s
  Buffer<Real> lengths_;                                 // [M,C] |e|; or [I] 1 / |e|
  Buffer<double> losses_{capacity_};                     // [M]
  Buffer<detail::RankCounts> counts_{capacity_};         // [M]
};

// ---- Classification ----------------------------------------------------------------------------
// The label of a text, from the vector x of its first token, [CLS], where it is asked (Devlin et
// al., NAACL 2019):
//   p = tanh(W_p x + b_p)                  W_p: pooler.dense.weight [H,H]
//   s = W_c dropout(p) + b_c               W_c: classifier.weight [C,H]
// with the softmax loss of chapter 12 over the C labels, times the weight of the place, if it has
// one.

template <class Real>
class ClassificationHead {
 public:
  static TensorTable tensors(const ModelConfig& config) { return bert4rec_tensors(config); }
  static bool draws(const TrainConfig&) { return false; }

  ClassificationHead(const ModelConfig& config, const TrainConfig&, const TensorTable& table,
                     Real* parameters, Real* gradients, const Encoder<Real>& encoder)
      : config_(config),
        capacity_(encoder.capacity()),
        w_(tensors_at<ClassificationTensors<Real>>(config, table, parameters)),
        g_(tensors_at<ClassificationTensors<Real>>(config, table, gradients)) {}

  // As ItemHead::loss(). Ranks count among the labels.
  Tally loss(Compute<Real>& compute, const Real* x, const RowGroup& group,
             const DropoutPlan& dropout, Real loss_scale, Real* d_x) {
    const std::size_t M = group.targets.size(), C = config_.classes, H = config_.hidden_size;
    const DropoutSite site = dropout.head();
    const std::size_t first = group.asked_rows.first();
    forward(compute, M, x, site, first);
    compute.for_rows(M, [&](std::size_t i) {
      const float weight = group.weights.empty() ? 1.0f : group.weights[i];
      find_loss(compute.kernels, group, i);
      losses_[i] *= double{weight};
      compute.kernels.scale(scores_.data() + i * C, loss_scale * static_cast<Real>(weight), C);
    });
    // s = W_c dropout(p) + b_c,   p = tanh(W_p x + b_p)
    linear_backward(compute, M, C, H, kept_.data(), w_.weight, scores_.data(), g_.weight, g_.bias,
                    d_pooled_.data(), false);
    compute.for_rows(M, [&](std::size_t i) {
      Real* row = d_pooled_.data() + i * H;
      site.apply(compute.kernels, row, row, H, first + i);
    });
    tanh_backward(compute, M, H, pooled_.data(), d_pooled_.data());
    linear_backward(compute, M, H, H, x, w_.dense_weight, d_pooled_.data(), g_.dense_weight,
                    g_.dense_bias, d_x, false);
    return detail::tally_of(M, losses_, counts_);
  }

  Tally evaluate(Compute<Real>& compute, const Real* x, const RowGroup& group) {
    const std::size_t M = group.targets.size();
    forward(compute, M, x, DropoutSite(), 0);
    compute.for_rows(M, [&](std::size_t i) { find_loss(compute.kernels, group, i); });
    return detail::tally_of(M, losses_, counts_);
  }

  // The scores [M,C] of the asked places, from their vectors x[M,H] ...
  const Real* prepare(Compute<Real>& compute, std::size_t M, const Real* x) {
    forward(compute, M, x, DropoutSite(), 0);
    return scores_.data();
  }

  // ... and of them those [M,n] of labels first ... first + n - 1.
  void score(Compute<Real>&, std::size_t M, const Real* all, std::size_t first, std::size_t n,
             Real* scores) {
    for (std::size_t i = 0; i < M; ++i) {
      std::copy_n(all + i * config_.classes + first, n, scores + i * n);
    }
  }

 private:
  void forward(Compute<Real>& compute, std::size_t M, const Real* x, const DropoutSite& dropout,
               std::size_t first) {
    const std::size_t C = config_.classes, H = config_.hidden_size;
    detail::grow(scores_, M * C);
    linear_forward(compute, M, H, H, x, w_.dense_weight, w_.dense_bias, kept_.data());
    tanh_forward(compute, M, H, kept_.data(), pooled_.data());
    compute.for_rows(M, [&](std::size_t i) {
      dropout.apply(compute.kernels, pooled_.data() + i * H, kept_.data() + i * H, H, first + i);
    });
    linear_forward(compute, M, C, H, kept_.data(), w_.weight, w_.bias, scores_.data());
  }

  // Of a place; its scores become the gradient.
  void find_loss(const detail::Kernels<Real>& kernels, const RowGroup& group, std::size_t i) {
    detail::softmax_place(kernels, scores_.data() + i * config_.classes, config_.classes,
                          static_cast<std::size_t>(group.targets[i]), losses_[i], counts_[i]);
  }

  ModelConfig config_;
  std::size_t capacity_;
  ClassificationTensors<Real> w_, g_;
  Buffer<Real> pooled_{capacity_ * config_.hidden_size};    // [M,H] p
  Buffer<Real> kept_{capacity_ * config_.hidden_size};      // [M,H] dropout(p)
  Buffer<Real> d_pooled_{capacity_ * config_.hidden_size};  // [M,H]
  Buffer<Real> scores_;                                     // [M,C] s, or ds
  Buffer<double> losses_{capacity_};                        // [M]
  Buffer<detail::RankCounts> counts_{capacity_};            // [M]
};

// ================================================================================================
// 14  Data
// ================================================================================================
// data/<name>/items.jsonl: one item a line,
//   {"id": 16498, "title": {"romaji": "...", "english": "...", "native": "..."}, "genres": ["..."],
//    "format": "TV", "status": "FINISHED", "average_score": 84, "popularity": 1,
//    "start_date": "2013-04-07"}
// of which only id is required, and title may be one string.
// data/<name>/histories.jsonl: one user a line, entries from the oldest to the newest,
//   {"user": "name", "entries": [{"id": 16498, "at": 1700000000, "status": "COMPLETED", ...}, ...]}
// `at` is in Unix seconds or null. A history whose entries all have times is sorted by them; any
// other keeps the order of the file. Entries with status PLANNING were not watched and are left
// out; so are ids that are not in the catalogue (and both are counted). A user of whom nothing but
// unknown ids is left is an error; one who only plans is not.
// data/<name>/dataset.json: written with them by our tools (DatasetWriter), and compared when they
// are read, so that a damaged file, or one beside another's, is found. A folder made by hand needs
// none. The checksums are those of the lines (not of how they end):
//   {"checksum": "...", "format": 1, "items.jsonl": "<checksum>", "histories.jsonl": "<checksum>",
//    "source": {where it comes from}}

namespace detail {

inline constexpr std::string_view items_name = "items.jsonl", histories_name = "histories.jsonl",
                                  manifest_name = "dataset.json";

// Of the lines of a text; `sum` continues that of the lines before.
inline std::uint64_t checksum_of_lines(std::string_view text,
                                       std::uint64_t sum = checksum(std::string_view())) {
  for_each_line(text, [&](std::string_view line, std::size_t) {
    sum = checksum(join(line.size()), checksum(line, sum));
  });
  return sum;
}

// What dataset.json says; null where there is none.
inline Json read_manifest(const Path& folder) {
  const Path path = folder / manifest_name;
  if (!path_exists(path)) return {};
  Json manifest = read_sealed_json(path);
  in_context(path_text(path), [&] {
    for (const auto& [name, value] : manifest.object()) {
      const bool known =
          name == "format" || name == items_name || name == histories_name || name == "source";
      require(known, "unknown field \"", shown(name), "\"");
    }
    const std::int64_t format = manifest.at("format").integer();
    require(format == 1, "format ", format, " of a later version, expected 1");
  });
  return manifest;
}

// The text of a file of a data folder, compared with dataset.json where there is one.
inline std::string read_data_file(const Path& path) {
  const Path folder = path.parent_path();
  settle(folder);
  std::string text = read_file(path);
  const Json manifest = read_manifest(folder);
  const std::string name = path_text(path.filename());
  if (manifest.is_null() || (name != items_name && name != histories_name)) return text;
  const Json* const sum = manifest.find(name);
  require(sum != nullptr, path, ": does not belong to the ", items_name,
          " beside it (dataset.json does not list it): fetch or import it anew");
  require(
      sum->string() == hexadecimal(checksum_of_lines(text)), path,
      ": is not what dataset.json says: damaged, or changed by hand (remove dataset.json then)");
  return text;
}

}  // namespace detail

// The record of where a data folder comes from, if it has one.
inline std::optional<Json> dataset_source(const Path& folder) {
  settle(folder);
  const Json manifest = detail::read_manifest(folder);
  const Json* const source = manifest.is_null() ? nullptr : manifest.find("source");
  return source == nullptr ? std::nullopt : std::optional(*source);
}

// Replaces the files of a data folder, which it keeps locked, as one:
//   DatasetWriter writer(folder); writer.items(lines); writer.histories(lines); writer.commit();
// Histories belong to their items: where only items are written, older histories are read no more;
// where only histories are, they belong to the items that are there. A source alone
// changes neither.
class DatasetWriter {
 public:
  explicit DatasetWriter(const Path& folder)
      : folder_((make_folder(folder), folder)), lock_(folder), set_(lock_) {
    settle(lock_);
    remove_stale_temporaries(folder);
  }

  // Whole lines, each with its '\n'; may be called again for more.
  void items(std::string_view lines) { add(detail::items_name, lines, items_sum_); }
  void histories(std::string_view lines) { add(detail::histories_name, lines, histories_sum_); }

  // Where the data comes from, for the record. Without it the record that is there stays.
  void source(Json facts) { source_ = std::move(facts); }

  void commit() {
    const auto sum_of = [&](std::string_view name) {
      return detail::checksum_of_lines(detail::read_data_file(folder_ / name));
    };
    if (!items_sum_ && !histories_sum_ && path_exists(folder_ / detail::histories_name)) {
      const Json before = detail::read_manifest(folder_);
      const bool stale = !before.is_null() && before.find(detail::histories_name) == nullptr;
      if (!stale) histories_sum_ = sum_of(detail::histories_name);
    }
    if (!items_sum_) items_sum_ = sum_of(detail::items_name);
    if (!source_) source_ = dataset_source(folder_);
    Json manifest;
    manifest.set("format", 1);
    manifest.set(detail::items_name, detail::hexadecimal(*items_sum_));
    if (histories_sum_) manifest.set(detail::histories_name, detail::hexadecimal(*histories_sum_));
    if (source_) manifest.set("source", *source_);
    set_.write(detail::manifest_name, sealed(manifest.text(2)) + "\n");
    set_.commit();
  }

 private:
  void add(std::string_view name, std::string_view lines, std::optional<std::uint64_t>& sum) {
    set_.write(name, lines);
    sum = detail::checksum_of_lines(lines, sum.value_or(checksum(std::string_view())));
  }

  Path folder_;
  FolderLock lock_;
  FileSet set_;
  std::optional<std::uint64_t> items_sum_, histories_sum_;
  std::optional<Json> source_;
};

// An integer or a string, as it stands in the file.
using ItemId = detail::Variant<std::int64_t, std::string>;

inline std::string id_text(const ItemId& id) {
  return std::visit([](const auto& value) { return join(value); }, id);
}

struct Item {
  ItemId id;
  std::string romaji, english, native;  // titles; empty where unknown
  std::vector<std::string> genres;
  std::string format, status, start_date;
  std::optional<double> average_score;
  std::optional<std::int64_t> popularity;
};

namespace detail {

inline ItemId read_id(JsonReader& reader) {
  if (reader.peek() == '"') return std::string(reader.string());
  return reader.integer();
}

inline std::string read_text_or_null(JsonReader& reader) {
  if (!reader.is_null()) return std::string(reader.string());
  reader.null();
  return {};
}

inline void read_titles(JsonReader& reader, Item& item) {
  if (reader.peek() != '{') {
    item.english = read_text_or_null(reader);
    return;
  }
  reader.object([&](std::string_view name) {
    if (name == "romaji")
      item.romaji = read_text_or_null(reader);
    else if (name == "english")
      item.english = read_text_or_null(reader);
    else if (name == "native")
      item.native = read_text_or_null(reader);
    else
      reader.skip();
  });
}

// Calls on_other(name) for a field that is none of an item; it must read the value or skip() it.
template <class OnOther>
Item read_item(JsonReader& reader, OnOther&& on_other) {
  Item item;
  bool has_id = false;
  reader.object([&](std::string_view name) {
    if (name == "id") {
      item.id = read_id(reader);
      has_id = true;
    } else if (name == "title") {
      read_titles(reader, item);
    } else if (name == "genres") {
      reader.array([&] { item.genres.emplace_back(reader.string()); });
    } else if (name == "format") {
      item.format = read_text_or_null(reader);
    } else if (name == "status") {
      item.status = read_text_or_null(reader);
    } else if (name == "start_date") {
      item.start_date = read_text_or_null(reader);
    } else if (name == "average_score" && !reader.is_null()) {
      item.average_score = reader.number();
    } else if (name == "popularity" && !reader.is_null()) {
      item.popularity = reader.integer();
    } else {
      on_other(name);
    }
  });
  if (!has_id) reader.error("missing field \"id\"");
  return item;
}

inline Item read_item(JsonReader& reader) {
  return read_item(reader, [&](std::string_view) { reader.skip(); });
}

}  // namespace detail

inline Json to_json(const Item& item) {
  const auto text = [](const std::string& value) { return value.empty() ? Json() : Json(value); };
  Json title, json;
  title.set("romaji", text(item.romaji));
  title.set("english", text(item.english));
  title.set("native", text(item.native));
  json.set("id", std::visit([](const auto& id) { return Json(id); }, item.id));
  json.set("title", std::move(title));
  json.set("genres", item.genres);
  if (!item.format.empty()) json.set("format", item.format);
  if (!item.status.empty()) json.set("status", item.status);
  if (item.average_score) json.set("average_score", *item.average_score);
  if (item.popularity) json.set("popularity", *item.popularity);
  if (!item.start_date.empty()) json.set("start_date", item.start_date);
  return json;
}

// The items, numbered 0 ... size() - 1 in the order of the file.
class Catalogue {
 public:
  // Adds an item; its id must be new. Returns its number.
  std::int32_t add(Item item) {
    const auto number = static_cast<std::int32_t>(items_.size());
    const bool added = std::visit([&](const auto& id) { return insert(id, number); }, item.id);
    require(added, "item id ", shown(id_text(item.id)), " stands twice");
    items_.push_back(std::move(item));
    return number;
  }

  static Catalogue load(const Path& path) {
    const std::string text = detail::read_data_file(path), file = path_text(path);
    Catalogue catalogue;
    for_each_line(text, [&](std::string_view line, std::size_t number) {
      JsonReader reader(line, file, number);
      Item item = detail::read_item(reader);
      reader.end();
      in_context(join(file, ":", number), [&] { catalogue.add(std::move(item)); });
    });
    require(catalogue.size() > 0, file, ": no items");
    return catalogue;
  }

  std::size_t size() const { return items_.size(); }
  const Item& operator[](std::int32_t item) const { return items_[static_cast<std::size_t>(item)]; }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }

  // The item's number, or -1.
  std::int32_t find(std::int64_t id) const {
    if (id >= 0 && id < small_id) {
      const auto at = static_cast<std::size_t>(id);
      return at < by_small_id_.size() ? by_small_id_[at] : -1;
    }
    return find_in(by_integer_, id);
  }
  std::int32_t find(const std::string& id) const { return find_in(by_text_, id); }
  // By what a person typed: an integer id if there is one, else a string id.
  std::int32_t find_typed(const std::string& text) const {
    std::int64_t integer = 0;
    const auto end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, integer);
    const bool whole = problem == std::errc() && stop == end;
    const std::int32_t item = whole ? find(integer) : -1;
    return item >= 0 ? item : find(text);
  }

  // The first title there is in the order English, romaji, native, else the id.
  std::string title(std::int32_t number) const {
    const Item& item = (*this)[number];
    for (const std::string* title : {&item.english, &item.romaji, &item.native}) {
      if (!title->empty()) return *title;
    }
    return id_text(item.id);
  }

 private:
  bool insert(std::int64_t id, std::int32_t item) {
    if (id < 0 || id >= small_id) return by_integer_.emplace(id, item).second;
    const auto at = static_cast<std::size_t>(id);
    if (at >= by_small_id_.size()) by_small_id_.resize(at + 1, -1);
    if (by_small_id_[at] >= 0) return false;
    by_small_id_[at] = item;
    return true;
  }
  bool insert(const std::string& id, std::int32_t item) {
    return by_text_.emplace(id, item).second;
  }
  template <class Map, class Id>
  static std::int32_t find_in(const Map& map, const Id& id) {
    const auto found = map.find(id);
    return found == map.end() ? -1 : found->second;
  }

  static constexpr std::int64_t small_id = 1 << 20;  // ids below: a table, quicker than a map

  std::vector<Item> items_;
  std::vector<std::int32_t> by_small_id_;
  std::unordered_map<std::int64_t, std::int32_t> by_integer_;
  std::unordered_map<std::string, std::int32_t> by_text_;
};

using ItemSpan = std::span<const std::int32_t>;

namespace detail {

inline void require_items(ItemSpan items, std::size_t num_items) {
  for (const std::int32_t item : items) {
    require(item >= 0 && static_cast<std::size_t>(item) < num_items, "item ", item,
            " of a history is not among the ", num_items, " there are");
  }
}

}  // namespace detail

// Who watched what, from the oldest to the newest.
class Histories {
 public:
  // `items` must not be a row of this very object; row() is valid until the next add().
  void add(std::string user, ItemSpan items) {
    require(!items.empty(), "user \"", shown(user), "\" has no item");
    require(by_name_.emplace(user, size()).second, "user \"", shown(user), "\" stands twice");
    users_.push_back(std::move(user));
    items_.insert(items_.end(), items.begin(), items.end());
    offsets_.push_back(items_.size());
  }

  static Histories load(const Path& path, const Catalogue& catalogue);

  std::size_t size() const { return users_.size(); }
  std::size_t interactions() const { return items_.size(); }
  const std::string& user(std::size_t row) const { return users_[row]; }
  ItemSpan row(std::size_t row) const {
    return {items_.data() + offsets_[row], offsets_[row + 1] - offsets_[row]};
  }
  std::optional<std::size_t> find(const std::string& user) const {
    const auto found = by_name_.find(user);
    return found == by_name_.end() ? std::nullopt : std::optional(found->second);
  }

  std::size_t unknown_entries = 0;  // left out: their id is not in the catalogue
  std::size_t planned_entries = 0;  // left out: status PLANNING
  std::size_t untimed_users = 0;    // in the order of the file, for want of times
  std::size_t same_time_users = 0;  // two entries or more, all at one time

 private:
  std::vector<std::string> users_;
  std::vector<std::size_t> offsets_{0};
  std::vector<std::int32_t> items_;
  std::unordered_map<std::string, std::size_t> by_name_;
};

namespace detail {

struct Entry {
  std::int32_t item = -1;
  bool has_id = false, planned = false;
  std::optional<std::int64_t> at;
};

inline Entry read_entry(JsonReader& reader, const Catalogue& catalogue) {
  Entry entry;
  reader.object([&](std::string_view name) {
    if (name == "id") {
      entry.has_id = true;
      entry.item = reader.peek() == '"' ? catalogue.find(std::string(reader.string()))
                                        : catalogue.find(reader.integer());
    } else if (name == "at" && !reader.is_null()) {
      entry.at = reader.integer();
    } else if (name == "status" && !reader.is_null()) {
      entry.planned = reader.string() == "PLANNING";
    } else {
      reader.skip();
    }
  });
  if (!entry.has_id) reader.error("entry without the field \"id\"");
  return entry;
}

// A line of histories.jsonl.
struct HistoryLine {
  std::optional<std::string> user;
  std::vector<Entry> entries;  // watched and known; sorted by their times if all have one
  std::size_t planned = 0, unknown = 0;
  bool timed = true;

  std::vector<std::int32_t> items() const {
    std::vector<std::int32_t> items;
    for (const Entry& entry : entries) items.push_back(entry.item);
    return items;
  }
};

inline HistoryLine read_history(JsonReader& reader, const Catalogue& catalogue) {
  HistoryLine line;
  reader.object([&](std::string_view name) {
    if (name == "user") {
      line.user = reader.string();
    } else if (name == "entries") {
      reader.array([&] {
        const Entry entry = read_entry(reader, catalogue);
        line.planned += entry.planned;
        line.unknown += !entry.planned && entry.item < 0;
        if (entry.planned || entry.item < 0) return;
        line.timed = line.timed && entry.at.has_value();
        line.entries.push_back(entry);
      });
    } else {
      reader.skip();
    }
  });
  const auto earlier = [](const Entry& a, const Entry& b) { return a.at < b.at; };
  if (line.timed && !std::is_sorted(line.entries.begin(), line.entries.end(), earlier)) {
    std::stable_sort(line.entries.begin(), line.entries.end(), earlier);
  }
  return line;
}

}  // namespace detail

inline Histories Histories::load(const Path& path, const Catalogue& catalogue) {
  const std::string text = detail::read_data_file(path), file = path_text(path);
  Histories histories;
  for_each_line(text, [&](std::string_view one, std::size_t number) {
    JsonReader reader(one, file, number);
    detail::HistoryLine line = detail::read_history(reader, catalogue);
    reader.end();
    if (!line.user) reader.error("missing field \"user\"");
    const std::vector<detail::Entry>& entries = line.entries;
    histories.planned_entries += line.planned;
    histories.unknown_entries += line.unknown;
    if (entries.empty() && line.planned > 0) return;  // somebody who only plans to watch
    require(!entries.empty(), file, ":", number, ": user \"", shown(*line.user),
            "\" has no known item: do the histories belong to these items?");
    histories.untimed_users += !line.timed;
    histories.same_time_users +=
        line.timed && entries.size() > 1 && entries.front().at == entries.back().at;
    in_context(join(file, ":", number),
               [&] { histories.add(std::move(*line.user), line.items()); });
  });
  require(histories.size() > 0, file, ": no users");
  return histories;
}

struct Dataset {
  Catalogue catalogue;
  Histories histories;
  Path folder = {};  // that it was loaded from, for the record

  static Dataset load(const Path& folder) {
    Dataset data;
    data.folder = folder;
    settle(folder);
    const std::string before = detail::read_manifest(folder).text();
    data.catalogue = Catalogue::load(folder / detail::items_name);
    data.histories = Histories::load(folder / detail::histories_name, data.catalogue);
    require(detail::read_manifest(folder).text() == before, folder,
            ": was replaced while it was read; try again");
    return data;
  }

  // A number that changes with any id, user name or history: ties a checkpoint to its data.
  std::string fingerprint() const {
    std::uint64_t hash = checksum(std::string_view());
    for (const Item& item : catalogue) {
      hash = checksum(join(item.id.index() == 0 ? "i" : "s", id_text(item.id)), hash);
    }
    for (std::size_t row = 0; row < histories.size(); ++row) {
      const ItemSpan items = histories.row(row);
      hash = checksum(histories.user(row), hash);
      hash = checksum({reinterpret_cast<const char*>(items.data()), items.size_bytes()}, hash);
      hash = checksum(join(items.size()), hash);
    }
    return detail::hexadecimal(hash);
  }
};

// ---- Batches -----------------------------------------------------------------------------------

// From begin to the one before end.
struct Range {
  std::size_t begin, end;
};

// Of 0 ... count - 1 what part i of n has: one behind the other, as many in each as can be.
constexpr Range part_of(std::size_t count, std::size_t i, std::size_t n) {
  return {count * i / n, count * (i + 1) / n};
}

// Ragged rows of tokens, and the places that are asked, with the items that belong there.
struct Batch {
  std::vector<std::int32_t> tokens, positions;  // [N]
  std::vector<std::int32_t> segments;           // [N], or empty: all 0
  std::vector<std::int32_t> bigrams;            // [N], if the model has them: see add_bigrams()
  std::vector<std::size_t> offsets{0};          // [B + 1]
  std::vector<std::size_t> asked;               // [M] places in tokens, ascending
  std::vector<std::int32_t> targets;            // [M] items, or labels of a classifier
  std::vector<float> weights;                   // [M] of their losses, or empty: all 1
  std::vector<std::int32_t> negatives;          // [K] drawn items, for losses that need them
  std::vector<float> log_expected;              // [K] log(K q) of an item drawn with chance q
  std::vector<std::int32_t> own_negatives;      // [M,R] items drawn for each asked place

  std::size_t rows() const { return offsets.size() - 1; }
  void clear() {
    tokens.clear(), positions.clear(), segments.clear(), bigrams.clear();
    asked.clear(), targets.clear(), weights.clear();
    negatives.clear(), log_expected.clear(), own_negatives.clear();
    offsets.assign(1, 0);
  }
  void reserve(std::size_t rows, std::size_t max_length) {
    const std::size_t most = rows * max_length;
    tokens.reserve(most), positions.reserve(most), asked.reserve(most), targets.reserve(most);
    offsets.reserve(rows + 1);
  }
  void end_row() {
    for (std::size_t t = offsets.back(); t < tokens.size(); ++t) {
      positions.push_back(static_cast<std::int32_t>(t - offsets.back()));
    }
    offsets.push_back(tokens.size());
  }
  // What the sum of all losses is divided by.
  double total_weight() const {
    if (weights.empty()) return static_cast<double>(asked.size());
    return std::accumulate(weights.begin(), weights.end(), 0.0);
  }
  // R of own_negatives[M,R].
  std::size_t ratio() const { return asked.empty() ? 0 : own_negatives.size() / asked.size(); }
  // A place whose item is to be named; the model sees `shown` there.
  void ask(std::int32_t target, std::int32_t shown = mask_token) {
    asked.push_back(tokens.size());
    targets.push_back(target);
    tokens.push_back(shown);
  }
};

// Throws where a batch would make an engine read or write out of bounds, or leave something out.
inline void check_batch(const Batch& batch, const ModelConfig& config) {
  require(!batch.offsets.empty(), "a batch without offsets");
  const std::size_t N = batch.tokens.size(), rows = batch.rows();
  require(batch.offsets.front() == 0 && batch.offsets.back() == N && batch.positions.size() == N,
          "a batch whose offsets or positions do not fit its tokens");
  require(batch.targets.size() == batch.asked.size(), "a batch with ", batch.asked.size(),
          " asked places and ", batch.targets.size(), " targets");
  constexpr std::size_t most_counters = 0xFFFFFFFF;  // of dropout, one for a token and head
  require(N <= most_counters / config.num_heads, "a batch with ", N, " tokens, expected at most ",
          most_counters / config.num_heads);
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t length = batch.offsets[row + 1] - batch.offsets[row];
    require(batch.offsets[row + 1] <= N && length >= 1 && length <= config.max_length, "row ", row,
            " of a batch has ", length, " tokens, expected 1 ... ", config.max_length);
  }
  const auto below = [](std::int32_t value, std::size_t limit) {
    return value >= 0 && static_cast<std::size_t>(value) < limit;
  };
  for (std::size_t t = 0; t < N; ++t) {
    require(
        below(batch.tokens[t], config.vocabulary()) && below(batch.positions[t], config.max_length),
        "token ", t, " of a batch is ", batch.tokens[t], " at position ", batch.positions[t],
        ", expected less than ", config.vocabulary(), " and ", config.max_length);
  }
  for (std::size_t i = 0; i < batch.asked.size(); ++i) {
    require(batch.asked[i] < N && (i == 0 || batch.asked[i - 1] < batch.asked[i]),
            "asked places of a batch must ascend and lie below ", N);
    require(below(batch.targets[i], config.targets()), "target ", batch.targets[i],
            " of a batch, expected 0 ... ", config.targets() - 1);
  }
  require(batch.segments.empty() || batch.segments.size() == N, "a batch with ", N, " tokens and ",
          batch.segments.size(), " segments");
  for (const std::int32_t segment : batch.segments) {
    require(below(segment, config.segments), "segment ", segment, " of a batch, of ",
            config.segments, " there are");
  }
  const std::size_t bigrams = config.bigrams > 0 ? N : 0;
  require(batch.bigrams.size() == bigrams, "a batch with ", batch.bigrams.size(),
          " bigrams, expected ", bigrams, ", as add_bigrams() makes them");
  for (const std::int32_t bigram : batch.bigrams) {
    require(below(bigram, config.bigrams), "bigram ", bigram, " of a batch, of ", config.bigrams,
            " there are");
  }
  require(batch.weights.empty() || (batch.weights.size() == batch.asked.size() &&
                                    config.task == TaskKind::classification),
          "a batch with ", batch.asked.size(), " asked places and ", batch.weights.size(),
          " weights of losses, which only a classifier has");
  for (const float weight : batch.weights) {
    require(std::isfinite(weight) && weight >= 0, "a loss of a batch has the weight ", weight);
  }
  require(batch.weights.empty() || batch.total_weight() > 0, "all losses of a batch weigh 0");
  require(batch.log_expected.size() == batch.negatives.size(), "a batch with ",
          batch.negatives.size(), " negatives and ", batch.log_expected.size(), " log_expected");
  require(batch.own_negatives.size() == batch.asked.size() * batch.ratio(), "a batch with ",
          batch.asked.size(), " asked places and ", batch.own_negatives.size(), " own negatives");
  for (const std::vector<std::int32_t>* drawn : {&batch.negatives, &batch.own_negatives}) {
    for (const std::int32_t item : *drawn) {
      require(below(item, config.num_items), "negative ", item, " of a batch is no item");
    }
  }
}

// Rows of tensors that a step on a batch reads and has gradients for, ascending: of bigrams, or of
// tokens, where the loss is one over drawn items.
inline void find_touched(const Batch& batch, Rows of, std::vector<std::size_t>& touched) {
  const std::vector<std::int32_t>& read = of == Rows::bigrams ? batch.bigrams : batch.tokens;
  touched.assign(read.begin(), read.end());
  for (const std::vector<std::int32_t>* items :
       {&batch.targets, &batch.negatives, &batch.own_negatives}) {
    if (of == Rows::bigrams) break;
    for (const std::int32_t item : *items) {
      touched.push_back(static_cast<std::size_t>(token_of(item)));
    }
  }
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
}

// Cuts batches into groups of whole rows (chapter 11).
class Groups {
 public:
  explicit Groups(const EncoderConfig& config)
      : asked_(group_capacity(config)),
        rows_(group_capacity(config) + 1),
        pairs_(group_capacity(config) + 1) {}

  // body(group) for each group of some rows, but those that ask for nothing: nothing comes of them.
  // The batch must have passed check_batch(). A group is valid during its body.
  template <class Body>
  void for_each(const Batch& batch, Range rows, Body&& body) {
    const auto found =
        std::lower_bound(batch.asked.begin(), batch.asked.end(), batch.offsets[rows.begin]);
    auto first_asked = static_cast<std::size_t>(found - batch.asked.begin());
    std::size_t row = rows.begin;
    while (row < rows.end) {
      const std::size_t begin = batch.offsets[row];
      std::size_t end_row = row + 1;
      while (end_row < rows.end && batch.offsets[end_row + 1] - begin <= group_tokens) {
        ++end_row;
      }
      const std::size_t N = batch.offsets[end_row] - begin;
      std::size_t M = 0;
      rows_[0] = first_asked;
      for (std::size_t r = row; r < end_row; ++r) {
        for (; first_asked + M < batch.asked.size(); ++M) {
          if (batch.asked[first_asked + M] >= batch.offsets[r + 1]) break;
          asked_[M] = batch.asked[first_asked + M] - begin;
        }
        rows_[r + 1 - row] = first_asked + M;
        const std::size_t n = batch.offsets[r + 1] - batch.offsets[r];
        pairs_[r + 1 - row] = pairs_[r - row] + n * n;
      }
      const std::size_t offsets = end_row - row + 1, R = batch.ratio();
      const auto some_of = [](const auto& values, std::size_t first, std::size_t size) {
        return values.empty() ? std::span(values) : std::span(values).subspan(first, size);
      };
      const RowGroup group{std::span(batch.tokens).subspan(begin, N),
                           std::span(batch.positions).subspan(begin, N),
                           some_of(batch.segments, begin, N),
                           some_of(batch.bigrams, begin, N),
                           {asked_.data(), M},
                           std::span(batch.targets).subspan(first_asked, M),
                           some_of(batch.weights, first_asked, M),
                           batch.negatives,
                           batch.log_expected,
                           std::span(batch.own_negatives).subspan(first_asked * R, M * R),
                           {std::span(batch.offsets).subspan(row, offsets)},
                           {{rows_.data(), offsets}},
                           {pairs_.data(), offsets}};
      if (M > 0) body(group);
      first_asked += M;
      row = end_row;
    }
  }

 private:
  std::vector<std::size_t> asked_, rows_, pairs_;  // of the group at hand
};

// A bigram is a token with the one before it, and what a linear classifier of texts lives by. A
// model that has a table of bigrams adds a vector of it to that of each token, as Pagnoni et al.
// ("Byte Latent Transformer", arXiv 2412.09871) do with bytes. There are more bigrams than rows: a
// hash tells the row, and some share one (Joulin et al., EACL 2017). Row 0 is that of no bigram.
constexpr std::int32_t bigram_row(std::int32_t before, std::int32_t token, std::size_t rows) {
  const Key key = make_key(static_cast<std::uint64_t>(before));
  return static_cast<std::int32_t>(1 + below(key, static_cast<std::uint64_t>(token), rows - 1));
}

// Fills batch.bigrams, if the model has them, for the rows that were ended since. What begins a row
// has none. A share `dropout` of the others is left out, lest training learn its texts by heart: a
// rare bigram gives a text away.
inline void add_bigrams(Batch& batch, const ModelConfig& config, double dropout = 0, Key key = {}) {
  if (config.bigrams == 0) return;
  const std::size_t first = batch.bigrams.size();
  for (std::size_t t = first; t < batch.offsets.back(); ++t) {
    const bool begins = std::binary_search(batch.offsets.begin(), batch.offsets.end(), t);
    const bool none = begins || uniform(key, t - first) < dropout;
    batch.bigrams.push_back(
        none ? 0 : bigram_row(batch.tokens[t - 1], batch.tokens[t], config.bigrams));
  }
}

// The newest `most` items.
inline ItemSpan newest(ItemSpan items, std::size_t most) {
  return items.last(std::min(most, items.size()));
}

// The Cloze task (section 3.6) hides round(probability n) of n places, at least one. Which ones:
// every choice of that many is equally likely. Calls place(i, hidden) for each i < n.
template <class Place>
void choose_masks(std::size_t n, double probability, Key key, Place&& place) {
  const double share = detail::rounded(probability * static_cast<double>(n));
  std::size_t wanted = std::max<std::size_t>(1, static_cast<std::size_t>(share + 0.5));
  for (std::size_t i = 0; i < n; ++i) {
    // With `wanted` to choose among the n - i that are left, choose this one with wanted / (n - i).
    const bool hidden = below(key, i, n - i) < wanted;
    wanted -= hidden;
    place(i, hidden);
  }
}

// A row for the Cloze task: the newest L items of a history, some of them behind [MASK].
inline void add_cloze_row(Batch& batch, ItemSpan history, const ModelConfig& model,
                          double probability, Key key) {
  const ItemSpan items = newest(history, model.max_length);
  choose_masks(items.size(), probability, key, [&](std::size_t i, bool hidden) {
    if (hidden)
      batch.ask(items[i]);
    else
      batch.tokens.push_back(token_of(items[i]));
  });
  batch.end_row();
}

// A row that asks for the item after a history: its newest L - 1 items and a [MASK] behind them; or
// with the causal objective its newest L items, the newest of which is the place to ask at.
inline void add_next_item_row(Batch& batch, ItemSpan history, const ModelConfig& model,
                              std::int32_t target = 0) {
  const bool causal = model.objective == Objective::causal && !history.empty();
  const ItemSpan before = causal ? history.first(history.size() - 1) : history;
  for (const std::int32_t item : newest(before, model.max_length - 1)) {
    batch.tokens.push_back(token_of(item));
  }
  batch.ask(target, causal ? token_of(history.back()) : mask_token);
  batch.end_row();
}

// A row for the causal objective: of the newest L + 1 items of a history all but the last are
// shown, and at each the next is asked for. A single item is asked for at a [MASK].
inline void add_causal_row(Batch& batch, ItemSpan history, const ModelConfig& model) {
  const ItemSpan items = newest(history, model.max_length + 1);
  if (items.size() == 1) return add_next_item_row(batch, {}, model, items[0]);
  for (std::size_t i = 0; i + 1 < items.size(); ++i) {
    batch.ask(items[i + 1], token_of(items[i]));
  }
  batch.end_row();
}

// What the model sees where a token is hidden: [MASK], as in the paper; or, as in BERT (80/10/10),
// sometimes a random one of `tokens`, or the token itself, since [MASK] never occurs in a real
// history.
inline std::int32_t shown_token(std::int32_t token, std::int32_t mask, Range tokens,
                                const TrainConfig& train, Key key) {
  const double draw = uniform(key, 0);
  if (draw < train.random_share) {
    return static_cast<std::int32_t>(tokens.begin + below(key, 1, tokens.end - tokens.begin));
  }
  return draw < train.random_share + train.keep_share ? token : mask;
}

// A row of training: add_cloze_row() with the choices of `train`. A share mask_last of the rows
// hides the last item alone, which is what the model is asked later (section 3.6); of the others a
// share is reversed. `key` decides all of it.
inline void add_training_row(Batch& batch, ItemSpan window, const ModelConfig& model,
                             const TrainConfig& train, Key key) {
  require(!window.empty(), "a window of no item has nothing to learn from");
  const Key choices = fold_in(key, ~std::uint64_t{0});  // apart from the counters of the masks
  if (uniform(choices, 0) < train.mask_last) {
    const std::size_t before = window.size() - 1;
    return add_next_item_row(batch, window.first(before), model, window[before]);
  }
  const ItemSpan items = newest(window, model.max_length);
  const Range tokens{special_rows, special_rows + model.num_items};
  const bool reversed = uniform(choices, 1) < train.reversed_share;
  choose_masks(items.size(), train.mask_probability, key, [&](std::size_t i, bool hidden) {
    const std::int32_t item = items[reversed ? items.size() - 1 - i : i];
    if (hidden)
      batch.ask(item,
                shown_token(token_of(item), mask_token, tokens, train, fold_in(choices, 2 + i)));
    else
      batch.tokens.push_back(token_of(item));
  });
  batch.end_row();
}

// The windows of a history that training sees: the newest `length` items and, with a stride, also
// the `length` items that end `stride` earlier, and so on; the oldest window begins with the first
// item (the sliding window of the authors' code, which has stride L / 2 for ml-1m).
inline void add_windows(std::vector<ItemSpan>& windows, ItemSpan history, std::size_t length,
                        std::size_t stride) {
  if (history.empty()) return;
  std::size_t begin = history.size() - std::min(length, history.size());
  for (;; begin -= std::min(stride, begin)) {
    windows.push_back(history.subspan(begin, std::min(length, history.size())));
    if (begin == 0 || stride == 0) return;
  }
}

// ---- Splits ------------------------------------------------------------------------------------

// With Split::users the validation users choose the best epoch, and the test asks for their last
// item: slightly optimistic. Numbers to publish come from Split::last.

// What one history gives to each part. An empty span or a target of -1: nothing.
struct Sequence {
  ItemSpan train;                           // the Cloze task of training sees these
  std::int32_t validation = -1, test = -1;  // items held out, and what may be seen before them
  ItemSpan before_validation, before_test;
};

class DataSplit {
 public:
  // Split::users holds out round(ratio * users) users, drawn by the seed; or, with folds, one of so
  // many parts that differ by one user at most. Split::last keeps from each user with three items
  // or more the last for the test, the one before for validation.
  DataSplit(const Histories& histories, const TrainConfig& config)
      : histories_(histories), kind_(config.split), held_out_(histories.size(), false) {
    std::vector<std::size_t> users(histories.size());
    std::iota(users.begin(), users.end(), std::size_t{0});
    if (kind_ == Split::last) {
      train_users_ = users;
      for (const std::size_t user : users) {
        if (histories.row(user).size() >= 3) validation_users_.push_back(user);
      }
      require(!validation_users_.empty(), "split by last item: no user has three items or more");
      return;
    }
    const auto [begin, end] = held_out_range(users.size(), config);
    shuffle(users, stream_key(config.seed, Stream::split));
    for (std::size_t i = 0; i < users.size(); ++i) {
      (i >= begin && i < end ? validation_users_ : train_users_).push_back(users[i]);
    }
    std::sort(validation_users_.begin(), validation_users_.end());
    std::sort(train_users_.begin(), train_users_.end());
    for (const std::size_t user : validation_users_) held_out_[user] = true;
  }

  DataSplit(const Histories&&, const TrainConfig&) = delete;  // the histories would be gone

  Split kind() const { return kind_; }
  const std::vector<std::size_t>& train_users() const { return train_users_; }
  const std::vector<std::size_t>& validation_users() const { return validation_users_; }
  ItemSpan history(std::size_t user) const { return histories_.row(user); }

  Sequence sequence(std::size_t user) const {
    const ItemSpan row = histories_.row(user);
    const std::size_t n = row.size();
    Sequence s;
    if (kind_ == Split::last && n >= 3) {
      s.train = s.before_validation = row.first(n - 2);
      s.before_test = row.first(n - 1);
      s.validation = row[n - 2], s.test = row[n - 1];
    } else if (!held_out_[user]) {
      s.train = row;
    } else if (n >= 2) {
      s.before_test = row.first(n - 1);
      s.test = row[n - 1];
    }
    return s;
  }

 private:
  // Which of the shuffled users are held out.
  static Range held_out_range(std::size_t users, const TrainConfig& config) {
    if (config.folds > 0) {
      require(config.folds <= users, "folds is ", config.folds, ", but there are ", users,
              " users");
      return part_of(users, config.fold - 1, config.folds);
    }
    const double share = detail::rounded(config.validation_ratio * static_cast<double>(users));
    const auto count = static_cast<std::size_t>(share + 0.5);
    require(
        count > 0, "validation_ratio ", config.validation_ratio, " of ", users,
        " users leaves no validation user: it must be larger, or the split that of the last items");
    require(count < users, "validation_ratio ", config.validation_ratio, " of ", users,
            " users leaves no training user");
    return {0, count};
  }

  const Histories& histories_;
  Split kind_;
  std::vector<bool> held_out_;
  std::vector<std::size_t> train_users_, validation_users_;
};

// ---- Text --------------------------------------------------------------------------------------
// How BERT cuts a text into tokens: BasicTokenizer and WordPiece, as in tokenization.py of
// google-research/bert, uncased.
//   1. What is not UTF-8, U+0000, U+FFFD, and control and format characters (categories Cc, Cf)
//      vanish, and what stood on both sides joins. Tab, line feed, carriage return and category Z
//      separate words.
//   2. A CJK ideograph is a word by itself. (Kana, Hangul and full-width letters are not: their
//      words go from space to space.)
//   3. A word becomes lower case, then NFD, without its marks (category Mn): "e" for U+00C9.
//   4. A punctuation character of the word is a part by itself; the rest are parts too.
//   5. A part is cut from the left into the longest pieces that the vocabulary has, which begin
//      with "##" inside the part. One that is longer than 200 code points or has a place at which
//      no piece fits is [UNK] as a whole.

// hugging_face: as BertTokenizer of Transformers and its library `tokenizers` differ:
//   - [PAD], [UNK], [CLS], [SEP] and [MASK] in a text are these tokens (not "[", "mask", "]");
//   - parts longer than 100 code points are [UNK];
//   - private use (category Co) vanishes too;
//   - a capital sigma at the end of a word becomes the common small one, not the final one.
// Not followed: that library (0.23) knows an older Unicode, in which 440 characters of rare scripts
// are others; does not isolate U+2B820 to U+2B91F; and finds "[MASK]" even where bytes that are not
// UTF-8 were inside.
enum class WordPieceRules { google, hugging_face };

namespace detail {

template <>
struct EnumNames<WordPieceRules> {
  static constexpr std::array<std::string_view, 2> names{"google", "hugging-face"};
};

// The code point that a text begins with, taken off it; 0 for a byte that is not UTF-8, which so
// goes the way of U+0000.
inline char32_t take_code_point(std::string_view& text) {
  const auto bits = [&](std::size_t i) { return static_cast<unsigned char>(text[i]) & 0x3Fu; };
  const std::size_t length = utf8_length(text);
  char32_t code = 0;
  switch (length) {
    case 1:
      code = static_cast<unsigned char>(text[0]);
      break;
    case 2:
      code = (bits(0) & 0x1F) << 6 | bits(1);
      break;
    case 3:
      code = (bits(0) & 0x0F) << 12 | bits(1) << 6 | bits(2);
      break;
    case 4:
      code = (bits(0) & 0x07) << 18 | bits(1) << 12 | bits(2) << 6 | bits(3);
      break;
  }
  text.remove_prefix(std::max<std::size_t>(length, 1));
  return code;
}

// What the rules ask of a code point.
struct Character {
  enum Kind : std::uint8_t { letter, mark, punctuation, ideograph, space, private_use, dropped };
  enum Casing : std::uint8_t { uncased, cased, ignorable };

  char32_t folded = 0;  // step 3: what it becomes; 0: itself; beyond U+10FFFF: see folded_parts()
  Kind kind = letter;
  Casing casing = uncased;     // for the final sigma
  std::uint8_t combining = 0;  // the class by which NFD orders what follows a letter; 0: none
};

// All of them, from the tables of appendix C.
class CharacterTable {
 public:
  static const CharacterTable& instance() {
    static const CharacterTable table;
    return table;
  }

  const Character& operator[](char32_t code) const {
    return characters_[pages_[code / page_size] + code % page_size];
  }

  // What becomes two or three: these, filled up with zeros.
  const std::array<char32_t, 3>& folded_parts(char32_t folded) const {
    return parts_[folded - code_points];
  }

 private:
  static constexpr char32_t page_size = 256, code_points = 0x110000;

  CharacterTable();
  Character& at(char32_t code);
  template <class Set>
  void for_each(std::string_view ranges, Set&& set);
  void fold();
  void fold_to_parts(char32_t code, char32_t a, char32_t b, char32_t c);
  void decompose_hangul();

  std::vector<Character> characters_ = std::vector<Character>(page_size);  // page 0: plain letters
  std::array<std::uint32_t, code_points / page_size> pages_{};             // where a page begins
  std::vector<std::array<char32_t, 3>> parts_;
};

// Steps 1 to 4: calls on_part(part) for each part of a text, as code points in a
// std::u32string_view of at most limit + 1: what is longer is cut there.
template <class OnPart>
class BasicTokenizer {
 public:
  BasicTokenizer(WordPieceRules rules, std::size_t limit, OnPart on_part)
      : google_(rules == WordPieceRules::google), limit_(limit), on_part_(std::move(on_part)) {}

  void read(std::string_view text) {
    while (!text.empty()) {
      const char32_t code = take_code_point(text);
      const Character& c = table_[code];
      if (vanishes(c)) continue;
      if (c.kind == Character::space) {
        end_word();
      } else if (c.kind == Character::ideograph) {
        end_word();
        add(code, c);
        end_word();
      } else if (code == capital_sigma && google_ && after_cased_ && ends_word(text)) {
        add(final_sigma, table_[final_sigma]);
      } else {
        add(code, c);
        if (c.casing != Character::ignorable) after_cased_ = c.casing == Character::cased;
      }
    }
    end_word();
  }

 private:
  static constexpr char32_t capital_sigma = 0x3A3, final_sigma = 0x3C2;

  bool vanishes(const Character& c) const {
    return c.kind == Character::dropped || (c.kind == Character::private_use && !google_);
  }

  void add(char32_t code, const Character& c) {
    if (c.kind == Character::mark) {
      if (c.combining == 0) last_base_ = part_.size();
    } else if (c.folded > 0x10FFFF) {
      for (const char32_t part : table_.folded_parts(c.folded)) {
        if (part != 0) append(part, table_[part].combining);
      }
    } else {
      if (c.kind == Character::punctuation) end_part();
      append(c.folded == 0 ? code : c.folded, c.combining);
      if (c.kind == Character::punctuation) end_part();
    }
  }

  // NFD keeps what combines with a letter in the order of its classes.
  void append(char32_t code, std::uint8_t combining) {
    if (part_.size() > limit_) return;
    part_.push_back(code);
    if (combining == 0) {
      last_base_ = part_.size();
      return;
    }
    for (std::size_t i = part_.size() - 1; i > last_base_; --i) {
      if (table_[part_[i - 1]].combining <= combining) break;
      std::swap(part_[i - 1], part_[i]);
    }
  }

  void end_part() {
    if (!part_.empty()) on_part_(std::u32string_view(part_));
    part_.clear();
    last_base_ = 0;
  }

  void end_word() {
    end_part();
    after_cased_ = false;
  }

  // Whether no cased letter follows in the word, but for characters that do not matter here.
  bool ends_word(std::string_view rest) const {
    while (!rest.empty()) {
      const Character& c = table_[take_code_point(rest)];
      if (c.kind == Character::space || c.kind == Character::ideograph) return true;
      if (!vanishes(c) && c.casing != Character::ignorable) return c.casing != Character::cased;
    }
    return true;
  }

  const CharacterTable& table_ = CharacterTable::instance();
  const bool google_;
  const std::size_t limit_;
  OnPart on_part_;
  std::u32string part_;
  std::size_t last_base_ = 0;  // of the part: behind its last character of class 0
  bool after_cased_ = false;   // whether a capital sigma here has a cased letter before it
};

// The pieces of a vocabulary as a tree, in which an edge is a code point. All edges stand in one
// hash table with linear probing; a node is the slot of the edge that leads to it.
class PieceTree {
 public:
  // Room for so many code points of all pieces together.
  explicit PieceTree(std::size_t size)
      : slots_(std::bit_ceil(2 * size + 1)), shift_(64 - std::countr_zero(slots_.size())) {}

  std::uint64_t words() const { return slots_.size(); }  // the root of pieces that begin a part
  std::uint64_t insides() const { return slots_.size() + 1; }  // and of those that stand inside

  // The id that belongs to a piece, to be set; -1 where it is new.
  std::int32_t& add(std::uint64_t node, std::string_view piece) {
    while (!piece.empty()) {
      const std::uint64_t edge = edge_of(node, take_code_point(piece));
      node = slot_of(edge);
      slots_[node].edge = edge;
    }
    return slots_[node].id;
  }

  // The id of a piece, or -1.
  std::int32_t find(std::uint64_t node, std::string_view piece) const {
    while (!piece.empty()) {
      const std::uint64_t edge = edge_of(node, take_code_point(piece));
      node = slot_of(edge);
      if (slots_[node].edge != edge) return -1;
    }
    return node < slots_.size() ? slots_[node].id : -1;
  }

  // The longest piece that `text` begins with: its id and length; no length if there is none.
  std::pair<std::int32_t, std::size_t> longest(std::uint64_t node, std::u32string_view text) const {
    std::pair<std::int32_t, std::size_t> best{-1, 0};
    for (std::size_t i = 0; i < text.size(); ++i) {
      const std::uint64_t edge = edge_of(node, text[i]);
      node = slot_of(edge);
      if (slots_[node].edge != edge) break;
      if (slots_[node].id >= 0) best = {slots_[node].id, i + 1};
    }
    return best;
  }

 private:
  static constexpr std::uint64_t no_edge = ~std::uint64_t{0};
  struct Slot {
    std::uint64_t edge = no_edge;
    std::int32_t id = -1;
  };

  static std::uint64_t edge_of(std::uint64_t node, char32_t code) { return node << 21 | code; }

  // Where the edge is, or the free slot where it would be.
  std::uint64_t slot_of(std::uint64_t edge) const {
    std::uint64_t slot = edge * 0x9E3779B97F4A7C15 >> shift_;
    while (slots_[slot].edge != edge && slots_[slot].edge != no_edge) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  std::vector<Slot> slots_;  // at least twice as many as edges
  int shift_;
};

}  // namespace detail

// A vocabulary, and texts as its tokens:
//   const WordPiece words = WordPiece::load("vocab.txt");
//   words.tokens("playing")  ->  "play", "##ing"
// Many threads may use one.
class WordPiece {
 public:
  // vocab.txt has a token a line; the number of the line, from 0, is its id. Lines end at "\n" and
  // nowhere else: there are vocabularies in which U+2028 is a token. Spaces and "\r" behind a token
  // and a byte order mark before the first, which editors leave, are no part of it.
  static WordPiece load(const Path& path, WordPieceRules rules = WordPieceRules::google) {
    return WordPiece(read_file(path), path_text(path), rules);
  }

  explicit WordPiece(std::string_view text, std::string_view file = "vocabulary",
                     WordPieceRules rules = WordPieceRules::google)
      : rules_(rules), tree_(checked_size(text, file)) {
    if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
    while (!text.empty()) {
      const std::size_t length = std::min(text.find('\n'), text.size());
      std::string_view token = text.substr(0, length);
      text.remove_prefix(std::min(length + 1, text.size()));
      if (token.ends_with('\r')) token.remove_suffix(1);
      const std::size_t last = token.find_last_not_of(" \t");
      if (last != token.npos) token = token.substr(0, last + 1);
      in_context(join(file, ":", tokens_.size() + 1), [&] { add(token); });
    }
    require(!tokens_.empty(), file, ": empty, expected a token a line");
    for (std::size_t i = 0; i < special_names.size(); ++i) {
      special_[i] = find(special_names[i]);
      require(special_[i] >= 0, file, ": no line is ", special_names[i], ", which is needed");
    }
  }

  std::size_t size() const { return tokens_.size(); }
  std::int32_t pad() const { return special_[0]; }
  std::int32_t unknown() const { return special_[1]; }
  std::int32_t cls() const { return special_[2]; }
  std::int32_t sep() const { return special_[3]; }
  std::int32_t mask() const { return special_[4]; }

  const std::string& token(std::int32_t id) const {
    require(id >= 0 && static_cast<std::size_t>(id) < size(), "token ", id, ", expected 0 ... ",
            size() - 1);
    return tokens_[static_cast<std::size_t>(id)];
  }

  // The id of a token, or -1.
  std::int32_t find(std::string_view token) const {
    const auto [root, piece] = place_of(token);
    const std::int32_t id = tree_.find(root, piece);
    return id >= 0 && tokens_[static_cast<std::size_t>(id)] == token ? id : -1;
  }

  // A text as ids, without [CLS] and [SEP]. Any bytes are a text.
  std::vector<std::int32_t> ids(std::string_view text) const {
    std::vector<std::int32_t> ids;
    append_ids(text, ids);
    return ids;
  }

  // The same as tokens; they live as long as this.
  std::vector<std::string_view> tokens(std::string_view text) const {
    std::vector<std::string_view> tokens;
    for (const std::int32_t id : ids(text)) tokens.push_back(token(id));
    return tokens;
  }

  void append_ids(std::string_view text, std::vector<std::int32_t>& ids) const {
    const std::size_t limit = rules_ == WordPieceRules::google ? 200 : 100;
    detail::BasicTokenizer tokenizer(rules_, limit, [&](std::u32string_view part) {
      if (part.size() > limit || !append_pieces(part, ids)) ids.push_back(unknown());
    });
    for (std::size_t at = 0; at < text.size();) {
      const auto [place, special] = next_special(text, at);
      tokenizer.read(text.substr(at, place - at));
      at = place;
      if (special == special_names.size()) continue;
      ids.push_back(special_[special]);
      at += special_names[special].size();
    }
  }

 private:
  // The tree takes 64 times as much memory.
  static std::size_t checked_size(std::string_view text, std::string_view file) {
    constexpr std::size_t most = std::size_t{16} << 20;
    require(text.size() <= most, file, ": ", text.size(),
            " bytes, expected a vocabulary of at most ", most);
    return text.size();
  }

  static constexpr std::array<std::string_view, 5> special_names{"[PAD]", "[UNK]", "[CLS]", "[SEP]",
                                                                 "[MASK]"};

  void add(std::string_view token) {
    require(!token.empty(), "an empty line, expected a token");
    for (std::string_view rest = token; !rest.empty();) {
      if (detail::utf8_length(rest) == 0) fail("invalid UTF-8 in \"", shown(token), "\"");
      detail::take_code_point(rest);
    }
    const auto [root, piece] = place_of(token);
    std::int32_t& id = tree_.add(root, piece);
    if (id >= 0) fail("the token \"", shown(token), "\" again, first on line ", id + 1);
    id = static_cast<std::int32_t>(tokens_.size());
    tokens_.emplace_back(token);
  }

  // The root of a token in the tree, and its piece there.
  std::pair<std::uint64_t, std::string_view> place_of(std::string_view token) const {
    const bool inside = token.size() > 2 && token.starts_with("##");
    return inside ? std::pair{tree_.insides(), token.substr(2)} : std::pair{tree_.words(), token};
  }

  // Where the next special token of a text begins, and which it is: only Hugging Face's rules know
  // any.
  std::pair<std::size_t, std::size_t> next_special(std::string_view text, std::size_t at) const {
    if (rules_ == WordPieceRules::google) return {text.size(), special_names.size()};
    for (at = text.find('[', at); at != text.npos; at = text.find('[', at + 1)) {
      for (std::size_t i = 0; i < special_names.size(); ++i) {
        if (text.substr(at).starts_with(special_names[i])) return {at, i};
      }
    }
    return {text.size(), special_names.size()};
  }

  // Step 5; false, and nothing appended, if a place is left at which no piece fits.
  bool append_pieces(std::u32string_view part, std::vector<std::int32_t>& ids) const {
    const std::size_t before = ids.size();
    for (std::uint64_t root = tree_.words(); !part.empty(); root = tree_.insides()) {
      const auto [id, length] = tree_.longest(root, part);
      if (length == 0) {
        ids.resize(before);
        return false;
      }
      ids.push_back(id);
      part.remove_prefix(length);
    }
    return true;
  }

  WordPieceRules rules_;
  std::vector<std::string> tokens_;
  detail::PieceTree tree_;
  std::array<std::int32_t, 5> special_{};
};

// Texts as rows of tokens, [CLS] before each and [SEP] behind it, cut to a window; and the number
// of the label of each.
class Texts {
 public:
  void add(const WordPiece& words, std::string_view text, std::int32_t label,
           std::size_t max_length) {
    require(max_length >= 2, "texts: max_length is ", max_length, ", expected 2 or more");
    const std::size_t begin = tokens_.size();
    tokens_.push_back(words.cls());
    words.append_ids(text, tokens_);
    if (tokens_.size() - begin > max_length - 1) {
      tokens_.resize(begin + max_length - 1);
      ++cut;
    }
    empty += tokens_.size() - begin == 1;
    tokens_.push_back(words.sep());
    offsets_.push_back(tokens_.size());
    labels_.push_back(label);
  }

  std::size_t size() const { return labels_.size(); }
  std::size_t tokens() const { return tokens_.size(); }
  std::int32_t label(std::size_t text) const { return labels_[text]; }
  std::span<const std::int32_t> row(std::size_t text) const {
    return {tokens_.data() + offsets_[text], offsets_[text + 1] - offsets_[text]};
  }

  // A number that changes with any token or label, `hash` being that of what came before.
  std::uint64_t fingerprint(std::uint64_t hash) const {
    for (std::size_t i = 0; i < size(); ++i) {
      const auto tokens = row(i);
      hash = checksum({reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()}, hash);
      hash = checksum(join(tokens.size(), " ", label(i)), hash);
    }
    return hash;
  }

  std::size_t cut = 0;    // texts that were longer than the window
  std::size_t empty = 0;  // texts without a token

 private:
  std::vector<std::int32_t> tokens_, labels_;
  std::vector<std::size_t> offsets_{0};
};

// ================================================================================================
// 15  Optimizer
// ================================================================================================
// AdamW (Loshchilov and Hutter, ICLR 2019) at step t = 1, 2, ... with gradient g:
//   m = m + (1 - b1) (g - m)       v = v + (1 - b2) (g^2 - v)
//   w = w - lr decay w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)
// Biases and LayerNorms do not decay. With clip_norm c, g is first scaled by min(1, c / |g|).
// 1 - lr decay is rounded to float: where lr decay < 2^-25 nothing decays, as in PyTorch.
// (tests/exercises/derivations.md, sections 20 to 22, has the reasons for these and what follows.)
//
// A loss over drawn items has gradients for a few rows of the item table (and of what else has a
// row for each token), and any loss for a few rows of a table of bigrams. AdamW moves the others,
// too, by m and decay, and with a million items would spend most of a step on that. Those steps are
// put off: when a row is next needed it takes all that it missed, at once, in registers, with the
// very operations that they would have been (adamw_replay). Each depends on the numbers of the row
// alone, so it does not matter when that is, and no file, measure or interruption can tell.
// Clearing, norm and update walk the other tensors and the rows touched. The result has the bits of
// doing every step on every row, with one exception, which lets a row forget: in a step without
// gradient m becomes 0 where it would move w no further than 2^-17 lr in all the steps to come.
// Each such step multiplies m by b1 and sqrt(v) by sqrt(b2), so they sum up (but for the
// corrections of bias, near 1 after the first steps) to
//   lr (|m| / sqrt(v)) / (1 - b1 / sqrt(b2)),   and m is 0 where
//   |m| rest_factor <= sqrt(v),   rest_factor = 2^17 / (1 - b1 / sqrt(b2)):
// with the usual b1 and b2 some 140 steps after a gradient. (If b1 >= sqrt(b2), never.)

// Learning rate of step 0, 1, ... of `total`: a linear rise over warmup_steps, then constant, or
// falling to 0 at `total` as a line or as half a cosine.
inline double learning_rate_at(const TrainConfig& config, std::uint64_t step, std::uint64_t total) {
  const auto t = static_cast<double>(step), warmup = static_cast<double>(config.warmup_steps);
  if (t < warmup) return config.learning_rate * (t + 1) / warmup;
  const double rest = std::max(1.0, static_cast<double>(total) - warmup);
  const double done = std::min(1.0, (t - warmup) / rest);
  switch (config.schedule) {
    case Schedule::linear:
      return config.learning_rate * (1 - done);
    case Schedule::cosine:
      return config.learning_rate * 0.5 * (1 + detail::cosine_of_pi(done));
    case Schedule::constant:
      break;
  }
  return config.learning_rate;
}

// Of step t, for tensors that do not decay and for those that do. gradient_scale: of clipping.
template <class Real>
std::array<detail::AdamConstants<Real>, 2> adam_constants(const TrainConfig& config,
                                                          std::uint64_t t, double learning_rate,
                                                          double gradient_scale) {
  const double b1 = config.adam_beta1, b2 = config.adam_beta2;
  const double shrinks = std::max(0.0, 1 - b1 / std::sqrt(b2));  // each step without gradient
  detail::AdamConstants<Real> kept{static_cast<Real>(1 - b1),
                                   static_cast<Real>(1 - b2),
                                   static_cast<Real>(config.adam_epsilon),
                                   static_cast<Real>(learning_rate / (1 - detail::power(b1, t))),
                                   static_cast<Real>(1 / std::sqrt(1 - detail::power(b2, t))),
                                   Real(1),
                                   static_cast<Real>(gradient_scale),
                                   static_cast<Real>(0x1p17 / shrinks)};
  detail::AdamConstants<Real> decayed = kept;
  decayed.decay_factor =
      static_cast<Real>(1 - detail::rounded(learning_rate * config.weight_decay));
  return {kept, decayed};
}

// What steps update: numbers that all of them see; and of tensors with a row for each bigram or, if
// the loss is one over drawn items (`draws`), for each token those rows that the batch touches.
struct StepParts {
  struct Tensor {
    std::size_t offset, width;  // of its first row, and of each
    bool decay;
  };
  struct Table {  // tensors with a row for each of the same things
    Rows of;
    std::size_t rows;
    std::vector<Tensor> tensors;
    std::vector<std::size_t> touched;  // rows of the batch at hand
  };

  StepParts(const TensorTable& table, bool draws) {
    for (const TensorSpec& spec : table) {
      const std::size_t end = spec.offset + spec.size;
      if (spec.rows == Rows::bigrams || (draws && spec.rows == Rows::tokens)) {
        const std::size_t rows = spec.shape[0];
        table_of(spec.rows, rows).tensors.push_back({spec.offset, spec.size / rows, spec.decay});
      } else if (!whole.empty() && whole.back().second == spec.offset) {
        whole.back().second = end;
      } else {
        whole.emplace_back(spec.offset, end);
      }
    }
  }

  void find_touched(const Batch& batch) {
    for (Table& table : tables) bert4rec::find_touched(batch, table.of, table.touched);
  }

  // A gradient in one piece, with the touched rows: its size, and what lies where.
  // of_whole(first, n, at): numbers first ... first + n - 1 of all, from `at` on;
  // of_rows(i, tensor, at): those of a tensor of table i, from `at` on.
  std::size_t packed_size() const {
    return for_packed([](std::size_t, std::size_t, std::size_t) {},
                      [](std::size_t, const Tensor&, std::size_t) {});
  }
  template <class OfWhole, class OfRows>
  std::size_t for_packed(OfWhole&& of_whole, OfRows&& of_rows) const {
    std::size_t at = 0;
    for (const auto& [first, end] : whole) {
      of_whole(first, end - first, at);
      at += end - first;
    }
    for (std::size_t i = 0; i < tables.size(); ++i) {
      for (const Tensor& tensor : tables[i].tensors) {
        of_rows(i, tensor, at);
        at += tables[i].touched.size() * tensor.width;
      }
    }
    return at;
  }

  std::vector<std::pair<std::size_t, std::size_t>> whole;  // begin and end of what all steps see
  std::vector<Table> tables;                               // of the rest, by rows

 private:
  Table& table_of(Rows of, std::size_t rows) {
    for (Table& table : tables) {
      if (table.of == of) return table;
    }
    return tables.emplace_back(Table{of, rows, {}, {}});
  }
};

// The optimizer of a model, with its moments. A step: begin(), gradients, gradient_norm(), step().
template <class Real>
class AdamW {
 public:
  // `draws`: the loss is one over drawn items.
  AdamW(Compute<Real>& compute, const TensorTable& table, const TrainConfig& config, bool draws,
        Real* parameters, Real* gradients)
      : compute_(compute),
        table_(table),
        config_(config),
        parts_(table, draws),
        parameters_(parameters),
        gradients_(gradients) {
    for (const Table& of : parts_.tables) taken_.emplace_back(of.rows);
    if (parts_.tables.empty()) return;
    for (auto& steps : late_) steps.reserve(most_late);
  }

  Buffer<Real>& first_moment() { return first_; }
  Buffer<Real>& second_moment() { return second_; }

  // Before a step on a batch: brings its rows up to date, and sets all gradients to 0.
  void begin(const Batch& batch) {
    for (const auto& [first, last] : parts_.whole) fill_zeros(first, last);
    for (const Table& table : parts_.tables) {
      for_touched(table, [&](const Tensor& tensor, std::size_t row, std::size_t) {
        std::fill_n(gradients_ + row, tensor.width, Real(0));
      });
    }
    parts_.find_touched(batch);
    for (std::size_t i = 0; i < parts_.tables.size(); ++i) {
      const std::vector<std::size_t>& touched = parts_.tables[i].touched;
      squares_.reserve(touched.capacity());  // or some later step would allocate
      take_late(i, touched.size(), [&](std::size_t at) { return touched[at]; });
    }
  }

  // The gradient of this step in one piece: its size, and copy(gradient, packed, n) for each run of
  // n numbers of it and their place in packed[size].
  std::size_t packed_size() const { return parts_.packed_size(); }
  template <class Copy>
  void for_packed(float* packed, Copy&& copy) {
    parts_.for_packed([&](std::size_t first, std::size_t n,
                          std::size_t at) { copy(gradients_ + first, packed + at, n); },
                      [&](std::size_t table, const Tensor& tensor, std::size_t at) {
                        for (const std::size_t row : parts_.tables[table].touched) {
                          copy(gradients_ + tensor.offset + row * tensor.width, packed + at,
                               tensor.width);
                          at += tensor.width;
                        }
                      });
  }

  // |g|, in a fixed number of parts so that the sum has one order.
  double gradient_norm() {
    double sum = 0;
    for (const auto& [first, last] : parts_.whole) sum += sum_of_squares(first, last);
    for (const Table& table : parts_.tables) {
      squares_.assign(table.touched.size(), 0.0);
      for_touched(table, [&](const Tensor& tensor, std::size_t row, std::size_t i) {
        const Real square = compute_.kernels.sum_of_squares(gradients_ + row, tensor.width);
        squares_[i] += static_cast<double>(square);
      });
      sum = std::accumulate(squares_.begin(), squares_.end(), sum);
    }
    return std::sqrt(sum);
  }

  // One update. `t` counts from 1; gradient_scale is that of clipping.
  void step(std::uint64_t t, double learning_rate, double gradient_scale) {
    const auto constants = adam_constants<Real>(config_, t, learning_rate, gradient_scale);
    for (const auto& [first, last] : parts_.whole) update(first, last, constants);
    if (parts_.tables.empty()) return;
    for (const std::size_t decay : {0u, 1u}) late_[decay].push_back(constants[decay]);
    for (std::size_t i = 0; i < parts_.tables.size(); ++i) {
      const Table& table = parts_.tables[i];
      for_touched(table, [&](const Tensor& tensor, std::size_t row, std::size_t) {
        update_row(row, tensor.width, constants[tensor.decay]);
      });
      for (const std::size_t row : table.touched) taken_[i][row] = steps_put_off();
    }
    if (late_[0].size() == most_late) catch_up();
  }

  // Brings all rows up to date.
  void catch_up() {
    if (late_[0].empty()) return;
    for (std::size_t i = 0; i < parts_.tables.size(); ++i) {
      const std::size_t rows = parts_.tables[i].rows;
      take_late(i, rows, [](std::size_t row) { return row; });
      std::fill_n(taken_[i].data(), rows, 0u);
    }
    for (auto& steps : late_) steps.clear();
  }

 private:
  using Constants = detail::AdamConstants<Real>;
  using Table = StepParts::Table;
  using Tensor = StepParts::Tensor;
  static constexpr std::size_t most_late = 1024;  // steps put off: they stay near the processor

  std::uint32_t steps_put_off() const { return static_cast<std::uint32_t>(late_[0].size()); }

  // body(tensor, row, i): row i of those touched begins at `row` of the flat arrays.
  template <class Body>
  void for_touched(const Table& table, Body&& body) {
    compute_.for_rows(table.touched.size(), [&](std::size_t i) {
      for (const Tensor& tensor : table.tensors) {
        body(tensor, tensor.offset + table.touched[i] * tensor.width, i);
      }
    });
  }

  // Of a table the rows row_at(0) ... row_at(count - 1) take the steps that they missed. In small
  // parts, since some have missed many steps and others none.
  template <class RowAt>
  void take_late(std::size_t table, std::size_t count, RowAt&& row_at) {
    constexpr std::size_t part = 64;
    compute_.pool.parallel_for((count + part - 1) / part, [&](std::size_t index, std::size_t) {
      for (std::size_t i = index * part; i < std::min(count, (index + 1) * part); ++i) {
        std::uint32_t& taken = taken_[table][row_at(i)];
        for (const Tensor& tensor : parts_.tables[table].tensors) {
          const std::size_t at = tensor.offset + row_at(i) * tensor.width;
          const std::span<const Constants> steps = late_[tensor.decay];
          compute_.kernels.adamw_replay(parameters_ + at, first_.data() + at, second_.data() + at,
                                        steps.subspan(taken), tensor.width);
        }
        taken = steps_put_off();
      }
    });
  }

  void fill_zeros(std::size_t first, std::size_t last) {
    compute_.pool.parallel_ranges(
        last - first, 4096, [&](std::size_t begin, std::size_t end, std::size_t) {
          std::fill(gradients_ + first + begin, gradients_ + first + end, Real(0));
        });
  }

  double sum_of_squares(std::size_t first, std::size_t last) {
    std::array<double, 64> sums{};
    const std::size_t block = (last - first + sums.size() - 1) / sums.size();
    compute_.for_rows(sums.size(), [&](std::size_t i) {
      const std::size_t begin = std::min(first + i * block, last);
      const std::size_t end = std::min(begin + block, last);
      const Real sum = compute_.kernels.sum_of_squares(gradients_ + begin, end - begin);
      sums[i] = static_cast<double>(sum);
    });
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

  void update(std::size_t first, std::size_t last, const std::array<Constants, 2>& constants) {
    compute_.pool.parallel_ranges(
        last - first, 4096, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (const TensorSpec& spec : table_) {
            const std::size_t from = std::max(first + begin, spec.offset);
            const std::size_t to = std::min(first + end, spec.offset + spec.size);
            if (from < to) update_row(from, to - from, constants[spec.decay]);
          }
        });
  }

  void update_row(std::size_t at, std::size_t n, const Constants& constants) {
    compute_.kernels.adamw(parameters_ + at, gradients_ + at, first_.data() + at,
                           second_.data() + at, constants, n);
  }

  Compute<Real>& compute_;
  const TensorTable& table_;
  TrainConfig config_;
  StepParts parts_;
  Real *parameters_, *gradients_;                              // in the order of table_
  Buffer<Real> first_{table_.size()}, second_{table_.size()};  // m and v
  std::vector<double> squares_;                                // of gradients of touched rows
  // Of the steps since the last catch_up(), without decay and with it; and of each table [rows] how
  // many of them a row has taken.
  std::array<std::vector<Constants>, 2> late_;
  std::vector<Buffer<std::uint32_t>> taken_;
};

// ================================================================================================
// 16  Engine
// ================================================================================================
// What training, evaluation and recommendation talk to. A second engine (CUDA) implements the
// same functions. Trainer, load_model and Recommender take an EngineMaker that says which.

// ---- The best items ----------------------------------------------------------------------------

struct Recommendation {
  std::int32_t item;
  double score;  // probability among all items; from Recommender::similar(): the cosine
};

// The best `count` of the items that are added, in the order of their numbers.
class BestItems {
 public:
  explicit BestItems(std::size_t count) : count_(count) {}

  bool is_full() const { return best_.size() == count_; }

  // What the score of a further item must exceed if is_full(). A lower item has won a tie already.
  double least() const {
    return count_ > 0 ? best_.front().score : std::numeric_limits<double>::infinity();
  }
  bool takes(double score) const { return !is_full() || score > least(); }

  // An item that takes() has let in.
  void add(std::int32_t item, double score) {
    if (is_full()) {
      std::pop_heap(best_.begin(), best_.end(), better);
      best_.pop_back();
    }
    best_.push_back({item, score});
    std::push_heap(best_.begin(), best_.end(), better);
  }

  // The best first; the object is spent then.
  std::vector<Recommendation> sorted() {
    std::sort_heap(best_.begin(), best_.end(), better);
    return std::move(best_);
  }

 private:
  static bool better(const Recommendation& a, const Recommendation& b) {
    return a.score != b.score ? a.score > b.score : a.item < b.item;
  }

  std::size_t count_;
  std::vector<Recommendation> best_;  // a heap whose top is the worst of them
};

// The softmax over scores that come in blocks: p = exp(s - largest) / sum.
class SoftmaxParts {
 public:
  static constexpr std::size_t block = 4096;  // scores whose exp are summed at a time

  void add(const detail::SoftmaxSum<float>& part) {
    const float largest = std::max(largest_, part.largest);
    const auto share = [&](double sum, float its_largest) {
      return detail::rounded(sum * static_cast<double>(exp_of(its_largest - largest)));
    };
    sum_ = share(sum_, largest_) + share(static_cast<double>(part.sum), part.largest);
    largest_ = largest;
  }

  // Scores become probabilities.
  void to_probabilities(std::span<Recommendation> best) const {
    require(sum_ > 0, "all scores are -inf: there is nothing to choose");
    const float factor = 1.0f / static_cast<float>(sum_);
    for (Recommendation& pick : best) {
      pick.score = static_cast<double>(exp_of(static_cast<float>(pick.score) - largest_) * factor);
    }
  }

 private:
  static float exp_of(float x) {
    detail::kernels<float>().exp(&x, &x, 1);
    return x;
  }

  float largest_ = -std::numeric_limits<float>::infinity();
  double sum_ = 0;  // of exp(s - largest_)
};

// Which items may be among the best: item i where allowed[i] is not 0; all of them if it is empty.
using Allowed = std::span<const std::uint8_t>;

// Finds the best items that are allowed and not among those seen, from scores that come in any
// number of parts, and their probabilities (among all items).
class UnseenSearch {
 public:
  UnseenSearch(ItemSpan seen, std::size_t count, Allowed allowed)
      : seen_(seen.begin(), seen.end()), allowed_(allowed), best_(count) {
    std::sort(seen_.begin(), seen_.end());
  }

  // Scores of items `first` on, which follow those of the part before. All parts but the last hold
  // whole blocks, so that the parts do not matter.
  void add(std::size_t first, std::span<const float> scores) {
    constexpr std::size_t block = SoftmaxParts::block;
    for (std::size_t begin = 0; begin < scores.size(); begin += block) {
      const auto some = scores.subspan(begin, std::min(block, scores.size() - begin));
      add_sum(first + begin, some);  // which refuses NaN, that has no order
      add_best(first + begin, some);
    }
  }

  // Call it once.
  std::vector<Recommendation> result() {
    std::vector<Recommendation> best = best_.sorted();
    softmax_.to_probabilities(best);
    return best;
  }

 private:
  void add_best(std::size_t first, std::span<const float> scores) {
    constexpr std::size_t chunk = 256;  // most have no item that is better than the best so far
    for (std::size_t begin = 0; begin < scores.size(); begin += chunk) {
      const auto some = scores.subspan(begin, std::min(chunk, scores.size() - begin));
      const auto least = static_cast<float>(best_.is_full() ? best_.least() : 0.0);
      if (best_.is_full() && kernels_.count_above(some.data(), least, some.size()).better == 0) {
        continue;
      }
      for (std::size_t i = 0; i < some.size(); ++i) {
        const auto item = static_cast<std::int32_t>(first + begin + i);
        const auto score = static_cast<double>(some[i]);
        if (!best_.takes(score)) continue;
        if (!allowed_.empty() && allowed_[static_cast<std::size_t>(item)] == 0) continue;
        if (!std::binary_search(seen_.begin(), seen_.end(), item)) best_.add(item, score);
      }
    }
  }

  void add_sum(std::size_t first, std::span<const float> scores) {
    std::array<float, SoftmaxParts::block> copy;
    std::copy(scores.begin(), scores.end(), copy.begin());
    const auto part = kernels_.softmax(copy.data(), 1.0f, scores.size());
    if (!std::isnan(part.sum)) return softmax_.add(part);
    const auto bad =
        std::find_if(scores.begin(), scores.end(), [](float s) { return !(s < INFINITY); });
    if (bad == scores.end()) return;  // all are -inf
    fail("the score of item ", first + static_cast<std::size_t>(bad - scores.begin()), " is ", *bad,
         ", expected a finite number");
  }

  const detail::Kernels<float>& kernels_ = detail::kernels<float>();
  std::vector<std::int32_t> seen_;  // sorted
  Allowed allowed_;
  BestItems best_;
  SoftmaxParts softmax_;
};

inline std::vector<Recommendation> top_unseen(std::span<const float> scores, ItemSpan seen,
                                              std::size_t count, Allowed allowed = {}) {
  detail::require_items(seen, scores.size());
  if (scores.empty()) return {};
  UnseenSearch search(seen, count, allowed);
  search.add(0, scores);
  return search.result();
}

// ---- Several processes -------------------------------------------------------------------------
// A run may be spread over processes, the ranks 0 ... size - 1, on one machine or on many
// (tools/distributed). Each has the whole model and the same data, and makes the whole of every
// batch: dropout, drawn items, rows touched and the number that a mean is divided by are those of
// one process without a message. It works through the rows that rows_of() gives it. What is said:
//   each step        the sum of the gradients, and behind them of losses and hits; whether to stop
//   each evaluation  what each rank found (it takes a part of the users), and a checksum of the
//                    parameters, which must be the same
//   at the start     versions, settings and data, which must be the same, and the state of rank 0,
//                    if it resumes
// So a step is that of one process but for the order in which sums are made. With as many ranks a
// run has the same bits again. Of tables of which a step touches but some rows (chapter 15) a
// message has those rows and no others.

// How ranks speak. All make the same calls in the same order, and a call returns when all have made
// it; so if one throws the others wait, and its program must end them (as MPI_Abort does). This is
// the Collective of a process that is alone.
class Collective {
 public:
  virtual ~Collective() = default;
  virtual std::size_t rank() const { return 0; }
  virtual std::size_t size() const { return 1; }

  // Each number becomes the sum over all ranks: the same bits on each of them and each time.
  virtual void sum(std::span<float> /*numbers*/) {}

  // What each rank gave, of any length, in the order of ranks.
  virtual std::vector<std::string> gather(std::string_view own) { return {std::string(own)}; }
};

inline Collective& alone() {
  static Collective one;
  return one;
}

// The rows of a batch that are a rank's: one behind the other, with as many tokens as can be the
// same for all.
inline Range rows_of(const Batch& batch, const Collective& ranks) {
  const auto [begin, end] = part_of(batch.tokens.size(), ranks.rank(), ranks.size());
  const auto row_from = [&](std::size_t token) {
    const auto found = std::lower_bound(batch.offsets.begin(), batch.offsets.end(), token);
    return static_cast<std::size_t>(found - batch.offsets.begin());
  };
  return {row_from(begin), row_from(end)};
}

// The elements of all ranks, those of one behind those of the other.
template <class Element>
std::vector<Element> gathered(Collective& ranks, const std::vector<Element>& own) {
  const auto bytes = reinterpret_cast<const char*>(own.data());
  std::vector<Element> all;
  for (const std::string& theirs : ranks.gather({bytes, own.size() * sizeof(Element)})) {
    const std::size_t before = all.size();
    all.resize(before + theirs.size() / sizeof(Element));
    if (!theirs.empty()) std::memcpy(all.data() + before, theirs.data(), theirs.size());
  }
  return all;
}

// The sums of all ranks.
inline Tally total(Collective& ranks, const Tally& own) {
  Tally sum;
  for (const Tally& theirs : gathered(ranks, std::vector<Tally>{own})) sum += theirs;
  return sum;
}

// A tally behind a gradient in a message, and that of all ranks, of so many places, from the sum.
// The sum of losses goes as its whole part and the rest, since one float would lose digits of it;
// hits are exact up to 2^24.
using TallyNumbers = std::array<float, 2 + top_k.size()>;

inline TallyNumbers to_numbers(const Tally& tally) {
  TallyNumbers numbers;
  numbers[0] = static_cast<float>(std::floor(tally.loss_sum));
  numbers[1] = static_cast<float>(tally.loss_sum - std::floor(tally.loss_sum));
  std::transform(tally.hits.begin(), tally.hits.end(), numbers.begin() + 2,
                 [](std::uint64_t hits) { return static_cast<float>(hits); });
  return numbers;
}

inline Tally to_tally(const TallyNumbers& numbers, std::size_t count) {
  Tally tally;
  tally.loss_sum = double{numbers[0]} + double{numbers[1]};
  tally.count = count;
  std::transform(numbers.begin() + 2, numbers.end(), tally.hits.begin(),
                 [](float hits) { return static_cast<std::uint64_t>(hits); });
  return tally;
}

// Gives all ranks the numbers of rank 0: in parts, since ways to send have their limits.
inline void broadcast(Collective& ranks, std::span<float> numbers) {
  constexpr std::size_t part = std::size_t{1} << 22;
  for (std::size_t begin = 0; begin < numbers.size(); begin += part) {
    const auto some = numbers.subspan(begin, std::min(part, numbers.size() - begin));
    const std::string_view bytes(reinterpret_cast<const char*>(some.data()), some.size_bytes());
    const std::string first = ranks.gather(ranks.rank() == 0 ? bytes : "").front();
    require(first.size() == bytes.size(), "rank 0 gave ", first.size(), " bytes, expected ",
            bytes.size());
    std::memcpy(some.data(), first.data(), first.size());
  }
}

// ---- Engines -----------------------------------------------------------------------------------

// Which numbers of an engine to read or write, in the order of its tensor table.
enum class State { parameters, first_moment, second_moment };

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const TensorTable& table() const = 0;
  virtual std::string name() const = 0;  // what computes: "cpu avx512"

  // Engines with one arithmetic give the same bits. Those of this header have that of chapter 3, as
  // has a GPU in float32.
  virtual std::string arithmetic() const { return "float32"; }

  // From here on train() is a step of all ranks together, which outlive the engine: they give it
  // the same batches, and it returns the same sums to all.
  void train_with(Collective& ranks) {
    require(ranks.size() == 1 || can_train_with_others(), name(), ": trains alone, but there are ",
            ranks.size(), " ranks");
    ranks_ = &ranks;
  }
  Collective& ranks() const { return *ranks_; }

  // One AdamW step on the mean loss of a batch; step counts from 0 and, with the seed, decides
  // dropout. Throws before anything is updated if loss or gradient is not finite. `meanwhile`,
  // which must not throw, is called once, on a GPU while that computes: the time to make the next
  // batch.
  Tally train(
      const Batch& batch, std::uint64_t step, double learning_rate,
      const std::function<void()>& meanwhile = [] {}) {
    require(std::isfinite(learning_rate) && learning_rate >= 0, "step ", step,
            ": the learning rate is ", learning_rate, ", expected 0 or more");
    return train_step(batch, step, learning_rate, meanwhile);
  }

  // Softmax loss over all items (or labels), whatever the loss of training, and Top-K among them,
  // at the asked places, without dropout.
  virtual Tally evaluate(const Batch& batch) = 0;

  // Scores [M,targets()] (logits) at the asked places, without dropout.
  virtual void score(const Batch& batch, std::span<float> scores) = 0;

  // For each asked place the best `count` items (or labels) that are allowed and not in its `seen`,
  // as top_unseen() finds them; without dropout.
  std::vector<std::vector<Recommendation>> top(const Batch& batch, std::span<const ItemSpan> seen,
                                               std::size_t count, Allowed allowed = {}) {
    const std::size_t I = config().targets();
    require(seen.size() == batch.asked.size(), "top: ", seen.size(), " histories for ",
            batch.asked.size(), " asked places");
    for (const ItemSpan items : seen) detail::require_items(items, I);
    require(allowed.empty() || allowed.size() == I, "top: it is said of ", allowed.size(),
            " items whether they are allowed, expected ", I);
    return find_top(batch, seen, count, allowed);
  }

  // Vectors of items and of users (asked places) whose inner products are the scores, for search
  // indexes: how many numbers a vector has, or 0 where scores are no such products ...
  virtual std::size_t vector_size() const { return 0; }

  // ... those [n,vector_size()] of n items from `first` on ...
  virtual void item_vectors(std::size_t /*first*/, std::span<float> /*out*/) {
    fail_without_vectors();
  }

  // ... and those [M,vector_size()] of the asked places, without dropout.
  virtual void user_vectors(const Batch&, std::span<float> /*out*/) { fail_without_vectors(); }

  virtual void read(State state, std::span<float> out) = 0;
  virtual void write(State state, std::span<const float> in) = 0;

  // Another engine on the same parameters, in the same memory, with so many threads: for a second
  // caller at the same time. Both may score, not train. Null where there can be none.
  virtual std::unique_ptr<Engine> twin(std::size_t /*threads*/) { return nullptr; }

 protected:
  virtual bool can_train_with_others() const { return false; }
  virtual Tally train_step(const Batch& batch, std::uint64_t step, double learning_rate,
                           const std::function<void()>& meanwhile) = 0;

  virtual std::vector<std::vector<Recommendation>> find_top(const Batch& batch,
                                                            std::span<const ItemSpan> seen,
                                                            std::size_t count, Allowed allowed) {
    std::vector<float> scores(batch.asked.size() * config().targets());
    score(batch, scores);
    std::vector<std::vector<Recommendation>> all;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      const auto row = std::span(scores).subspan(i * config().targets(), config().targets());
      all.push_back(top_unseen(row, seen[i], count, allowed));
    }
    return all;
  }

 private:
  [[noreturn]] static void fail_without_vectors() {
    fail("this model has no vectors of items and users: its scores are no inner products");
  }

  Collective* ranks_ = &alone();
};

// What the parameters of a new engine are: random, to train, or zeros, to be written over.
enum class Start { random, zeros };

// On the processor. Real is float, or double to check gradients; Head stands on the encoder.
// Not for two threads at once: the second takes a twin (chapter 20, SharedEngine).
template <class Real = float, template <class> class Head = ItemHead>
class CpuEngine : public Engine {
 public:
  CpuEngine(const ModelConfig& model, const TrainConfig& train, Start start = Start::random)
      : CpuEngine(model, train, detail::find_kernels<Real>(train.kernels), start) {}
  CpuEngine(const ModelConfig& model, const TrainConfig& train,
            const detail::Kernels<Real>& kernels, Start start = Start::random)
      : CpuEngine(model, train, kernels,
                  std::make_shared<Buffer<Real>>(Head<Real>::tensors(model).size())) {
    if (start == Start::zeros) return;
    write(State::parameters,
          initial_parameters(table_, model.initializer_range, train.seed, compute_.pool));
  }

  const ModelConfig& config() const override { return config_; }
  const TensorTable& table() const override { return table_; }
  std::string name() const override { return join("cpu ", compute_.kernels.name); }
  std::span<Real> parameters() { return buffer(State::parameters).span(); }
  std::span<const Real> gradients() const { return gradients_.span(); }

  std::unique_ptr<Engine> twin(std::size_t threads) override {
    optimizer_.catch_up();
    TrainConfig train = train_;
    train.threads = threads;
    return std::unique_ptr<Engine>(new CpuEngine(config_, train, compute_.kernels, parameters_));
  }

  // Fills gradients() with those of the mean loss, as far as they come from this rank's rows.
  Tally loss_and_gradient(const Batch& batch, const DropoutPlan& dropout) {
    check_batch(batch, config_);
    optimizer_.begin(batch);
    const Real scale = Real(1) / static_cast<Real>(batch.total_weight());
    Tally metrics;
    groups_.for_each(batch, rows_of(batch, ranks()), [&](const RowGroup& group) {
      const Real* x = encoder_.forward(compute_, group, dropout);
      metrics += head_.loss(compute_, x, group, dropout, scale, d_x_.data());
      encoder_.backward(compute_, group, dropout, d_x_.data());
    });
    return metrics;
  }

  Tally evaluate(const Batch& batch) override {
    Tally tally;
    for_each_group(batch, [&](const RowGroup& group) {
      const Real* x = encoder_.forward(compute_, group, DropoutPlan());
      tally += head_.evaluate(compute_, x, group);
    });
    return tally;
  }

  void score(const Batch& batch, std::span<float> scores) override {
    write_places(batch, config_.targets(), scores, "score", [&](std::size_t M, auto* x, auto* out) {
      head_.score(compute_, M, head_.prepare(compute_, M, x), 0, config_.targets(), out);
    });
  }

  std::size_t vector_size() const override {
    if constexpr (HasVectors<Head<Real>>) return head_.vector_size();
    return 0;
  }

  void item_vectors(std::size_t first, std::span<float> out) override {
    if constexpr (HasVectors<Head<Real>>) {
      const std::size_t I = config_.num_items, n = out.size() / vector_size();
      require(n * vector_size() == out.size() && first <= I && n <= I - first,
              "item_vectors: ", out.size(), " numbers from item ", first,
              " on, expected vectors of ", vector_size(), " of ", I, " items");
      optimizer_.catch_up();
      write_floats(out, [&](Real* to) { head_.item_vectors(compute_, first, n, to); });
    } else {
      Engine::item_vectors(first, out);
    }
  }

  void user_vectors(const Batch& batch, std::span<float> out) override {
    if constexpr (HasVectors<Head<Real>>) {
      write_places(
          batch, vector_size(), out, "user_vectors",
          [&](std::size_t M, auto* x, auto* to) { head_.user_vectors(compute_, M, x, to); });
    } else {
      Engine::user_vectors(batch, out);
    }
  }

  void read(State state, std::span<float> out) override {
    const Buffer<Real>& from = buffer(state);
    require(out.size() == from.size(), "read: expected room for ", from.size(), " numbers");
    std::transform(from.data(), from.data() + from.size(), out.data(),
                   [](Real value) { return static_cast<float>(value); });
  }

  void write(State state, std::span<const float> in) override {
    Buffer<Real>& to = buffer(state);
    require(in.size() == to.size(), "write: expected ", to.size(), " numbers");
    std::copy(in.begin(), in.end(), to.data());
  }

 protected:
  bool can_train_with_others() const override { return true; }
  Tally train_step(const Batch& batch, std::uint64_t step, double learning_rate,
                   const std::function<void()>& meanwhile) override {
    require(!batch.asked.empty(), "step ", step, ": a batch that asks for nothing");
    const Key step_key = fold_in(stream_key(train_.seed, Stream::dropout), step);
    Tally metrics = loss_and_gradient(batch, DropoutPlan(config_.encoder(), step_key));
    if (ranks().size() > 1) add_ranks(batch, metrics);
    if constexpr (requires { head_.bound_gradient(); }) head_.bound_gradient();
    require(std::isfinite(metrics.loss_sum), "step ", step, ": the loss is ", metrics.loss(),
            "; nothing was updated. A lower learning rate or clip_norm may help");
    const double norm = optimizer_.gradient_norm();
    require(std::isfinite(norm), "step ", step, ": the norm of the gradient is ", norm,
            "; nothing was updated. A lower learning rate or clip_norm may help");
    const bool clip = train_.clip_norm > 0 && norm > train_.clip_norm;
    optimizer_.step(step + 1, learning_rate, clip ? train_.clip_norm / norm : 1.0);
    meanwhile();
    return metrics;
  }

  // Items are gone through in blocks, so that of the scores [M,targets] few are held at a time and
  // the table is read once for many places.
  std::vector<std::vector<Recommendation>> find_top(const Batch& batch,
                                                    std::span<const ItemSpan> seen,
                                                    std::size_t count, Allowed allowed) override {
    constexpr std::size_t most_places = 512, most_scores = std::size_t{1} << 21;  // at a time
    std::vector<UnseenSearch> searches;
    for (const ItemSpan items : seen) searches.emplace_back(items, count, allowed);
    for_each_group(batch, [&](const RowGroup& group) {
      const Real* x = encoder_.forward(compute_, group, DropoutPlan());
      for (std::size_t begin = 0; begin < group.asked.size(); begin += most_places) {
        const std::size_t M = std::min(most_places, group.asked.size() - begin);
        const Real* vectors = head_.prepare(compute_, M, x + begin * config_.hidden_size);
        const std::size_t blocks = std::max<std::size_t>(most_scores / M / SoftmaxParts::block, 1);
        const auto some = std::span(searches).subspan(group.asked_rows.first() + begin, M);
        search_items(vectors, blocks * SoftmaxParts::block, some);
      }
    });
    std::vector<std::vector<Recommendation>> all;
    for (UnseenSearch& search : searches) all.push_back(search.result());
    return all;
  }

 private:
  CpuEngine(const ModelConfig& model, const TrainConfig& train,
            const detail::Kernels<Real>& kernels, std::shared_ptr<Buffer<Real>> parameters)
      : config_(model),
        train_((validate(train), train)),
        compute_(train.threads, attention_scratch(model.encoder()), block_sums(model.encoder()),
                 kernels),
        parameters_(std::move(parameters)) {
    check_arithmetic();
  }

  // Gradients and tally become those of all ranks, by one message.
  void add_ranks(const Batch& batch, Tally& tally) {
    const std::size_t size = optimizer_.packed_size();
    TallyNumbers numbers = to_numbers(tally);
    message_.resize(size + numbers.size());
    optimizer_.for_packed(message_.data(), [](const Real* from, float* to, std::size_t n) {
      std::transform(from, from + n, to, [](Real value) { return static_cast<float>(value); });
    });
    std::copy(numbers.begin(), numbers.end(), message_.data() + size);
    ranks().sum(message_);
    optimizer_.for_packed(message_.data(), [](Real* to, const float* from, std::size_t n) {
      std::copy_n(from, n, to);
    });
    std::copy_n(message_.data() + size, numbers.size(), numbers.begin());
    tally = to_tally(numbers, batch.asked.size());
  }

  // Of a batch that is not trained on.
  template <class Body>
  void for_each_group(const Batch& batch, Body&& body) {
    check_batch(batch, config_);
    optimizer_.catch_up();
    groups_.for_each(batch, {0, batch.rows()}, body);
  }

  // write(M, x, out) for each group: from the vectors x[M,H] of its asked places out[M,width].
  template <class Write>
  void write_places(const Batch& batch, std::size_t width, std::span<float> out,
                    std::string_view what, Write&& write) {
    require(out.size() == batch.asked.size() * width, what, ": the output has room for ",
            out.size(), " numbers, expected ", batch.asked.size() * width);
    for_each_group(batch, [&](const RowGroup& group) {
      const Real* x = encoder_.forward(compute_, group, DropoutPlan());
      const std::size_t M = group.asked.size();
      write_floats(out.subspan(group.asked_rows.first() * width, M * width),
                   [&](Real* to) { write(M, x, to); });
    });
  }

  // Shows each search the scores of all items, `most` at a time.
  void search_items(const Real* vectors, std::size_t most, std::span<UnseenSearch> searches) {
    const std::size_t I = config_.targets(), M = searches.size();
    detail::grow(block_scores_, M * std::min(most, I));
    for (std::size_t first = 0; first < I; first += most) {
      const std::size_t n = std::min(most, I - first);
      head_.score(compute_, M, vectors, first, n, block_scores_.data());
      compute_.for_rows(M, [&](std::size_t i) {
        const Real* scores = block_scores_.data() + i * n;
        if constexpr (std::is_same_v<Real, float>)
          searches[i].add(first, {scores, n});
        else
          searches[i].add(first, std::vector<float>(scores, scores + n));
      });
    }
  }

  // write(to) fills to[out.size()], which becomes float.
  template <class Write>
  static void write_floats(std::span<float> out, Write&& write) {
    if constexpr (std::is_same_v<Real, float>) {
      write(out.data());
    } else {
      Buffer<Real> wide(out.size());
      write(wide.data());
      std::transform(wide.data(), wide.data() + out.size(), out.data(),
                     [](Real value) { return static_cast<float>(value); });
    }
  }

  Buffer<Real>& buffer(State state) {
    optimizer_.catch_up();
    if (state == State::parameters) return *parameters_;
    return state == State::first_moment ? optimizer_.first_moment() : optimizer_.second_moment();
  }

  ModelConfig config_;
  TrainConfig train_;
  TensorTable table_ = Head<Real>::tensors(config_);
  Compute<Real> compute_;
  std::shared_ptr<Buffer<Real>> parameters_;  // in the order of table_; twins have them too
  Buffer<Real> gradients_{table_.size()};
  AdamW<Real> optimizer_{
      compute_, table_, train_, Head<Real>::draws(train_), parameters_->data(), gradients_.data()};
  Encoder<Real> encoder_{config_.encoder(), table_, parameters_->data(), gradients_.data(),
                         group_capacity(config_.encoder())};
  Head<Real> head_{config_, train_, table_, parameters_->data(), gradients_.data(), encoder_};
  Buffer<Real> d_x_{encoder_.capacity() * config_.hidden_size};  // [M,H], with room for [N,H]
  Buffer<Real> block_scores_;                                    // of top()
  std::vector<float> message_;                                   // to other ranks: see add_ranks()
  Groups groups_{config_.encoder()};
};

#if defined(BERT4REC_EXTERN)
extern template class CpuEngine<float>;
extern template class CpuEngine<float, MatchingHead>;
extern template class CpuEngine<float, ClassificationHead>;
#elif defined(BERT4REC_INSTANTIATE)
template class CpuEngine<float>;
template class CpuEngine<float, MatchingHead>;
template class CpuEngine<float, ClassificationHead>;
#endif

// Makes the engine that training, evaluation and recommendation are to use.
using EngineMaker =
    std::function<std::unique_ptr<Engine>(const ModelConfig&, const TrainConfig&, Start)>;

inline std::unique_ptr<Engine> make_cpu_engine(const ModelConfig& model, const TrainConfig& train,
                                               Start start) {
  if (model.task == TaskKind::matching) {
    return std::make_unique<CpuEngine<float, MatchingHead>>(model, train, start);
  }
  if (model.task == TaskKind::classification) {
    return std::make_unique<CpuEngine<float, ClassificationHead>>(model, train, start);
  }
  return std::make_unique<CpuEngine<float>>(model, train, start);
}

// ================================================================================================
// 17  Evaluation
// ================================================================================================
// Leave one out: the model sees a history up to an item, the target, and must rank the target among
// candidates. With r its rank: HR@k = share of r <= k, NDCG@k = mean of 1 / log2(r + 1) where
// r <= k, MRR = mean of 1 / r. Published tables differ in who the candidates are, and the numbers
// with them: plain popularity has HR@10 0.036 on ml-1m among all unseen items, and 0.44 among 100
// drawn uniformly. So each table here names its Protocol, and all rows of a table (models,
// baselines) are Scorers that meet the same cases and the same drawn candidates.

// ---- Metrics -----------------------------------------------------------------------------------

struct RankMetrics {
  std::size_t users = 0;
  std::array<double, top_k.size()> hit{};   // HR@1, 5, 10, 20
  std::array<double, top_k.size()> ndcg{};  // NDCG@1, 5, 10, 20
  double mrr = 0;

  // visit(name, value): hr@1 ... hr@20, ndcg@1 ... ndcg@20, mrr.
  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    for (std::size_t i = 0; i < top_k.size(); ++i) visit(join("hr@", top_k[i]), self.hit[i]);
    for (std::size_t i = 0; i < top_k.size(); ++i) visit(join("ndcg@", top_k[i]), self.ndcg[i]);
    visit(std::string("mrr"), self.mrr);
  }
};

// The mean over ranks, added in their order.
inline RankMetrics rank_metrics(std::span<const std::size_t> ranks) {
  const double log_of_2 = detail::natural_log(2);
  RankMetrics metrics;
  metrics.users = ranks.size();
  for (const std::size_t rank : ranks) {
    metrics.mrr += 1 / static_cast<double>(rank);
    if (rank > top_k.back()) continue;
    const double gain = log_of_2 / detail::natural_log(static_cast<double>(rank + 1));
    for (std::size_t i = 0; i < top_k.size(); ++i) {
      if (rank > top_k[i]) continue;
      metrics.hit[i] += 1;
      metrics.ndcg[i] += gain;
    }
  }
  const auto count = static_cast<double>(std::max<std::size_t>(1, ranks.size()));
  for (double* sum : {metrics.hit.data(), metrics.ndcg.data()}) {
    for (std::size_t i = 0; i < top_k.size(); ++i) sum[i] /= count;
  }
  metrics.mrr /= count;
  return metrics;
}

// Area under the ROC curve: the share of pairs of a positive and a negative in which the positive
// scores higher, ties half. NaN if there is no pair.
inline double roc_auc(std::vector<float> positives, std::vector<float> negatives) {
  for (const std::vector<float>* scores : {&positives, &negatives}) {
    for (const float score : *scores) require(!std::isnan(score), "AUC: a score is NaN");
  }
  std::sort(positives.begin(), positives.end());
  std::sort(negatives.begin(), negatives.end());
  std::size_t below = 0, not_above = 0;  // of the negatives, for the positive at hand
  std::uint64_t halves = 0;
  for (const float score : positives) {
    while (below < negatives.size() && negatives[below] < score) ++below;
    while (not_above < negatives.size() && negatives[not_above] <= score) ++not_above;
    halves += below + not_above;
  }
  const auto pairs = static_cast<double>(positives.size()) * static_cast<double>(negatives.size());
  return static_cast<double>(halves) / (2 * pairs);
}

struct RankIntervals {
  RankMetrics low, high;
};

namespace detail {

// The middle 95 % of metrics(sample) over `resamples` samples of n users, drawn with replacement;
// sample i depends on the seed and i alone.
template <class Metrics>
RankIntervals bootstrap(std::size_t n, std::uint64_t seed, std::size_t resamples,
                        Metrics&& metrics_of) {
  require(n > 0 && resamples > 0, "bootstrap of ", n, " ranks and ", resamples,
          " resamples, expected at least 1 of each");
  std::vector<std::vector<double>> means;  // [metric][resample]
  std::vector<std::size_t> sample(n);
  for (std::size_t resample = 0; resample < resamples; ++resample) {
    const Key key = fold_in(stream_key(seed, Stream::bootstrap), resample);
    for (std::size_t i = 0; i < n; ++i) sample[i] = below(key, i, n);
    const RankMetrics metrics = metrics_of(sample);
    std::size_t metric = 0;
    RankMetrics::fields(metrics, [&](const std::string&, double value) {
      if (metric == means.size()) means.emplace_back();
      means[metric++].push_back(value);
    });
  }
  for (std::vector<double>& values : means) std::sort(values.begin(), values.end());
  const auto order_statistic = [&](std::size_t at) {
    RankMetrics metrics;
    metrics.users = n;
    std::size_t metric = 0;
    RankMetrics::fields(metrics,
                        [&](const std::string&, double& value) { value = means[metric++][at]; });
    return metrics;
  };
  const std::size_t tail = resamples / 40;  // 2.5 %
  return {order_statistic(tail), order_statistic(resamples - 1 - tail)};
}

inline RankMetrics metrics_of_sample(std::span<const std::size_t> ranks,
                                     std::span<const std::size_t> sample) {
  std::vector<std::size_t> drawn;
  for (const std::size_t user : sample) drawn.push_back(ranks[user]);
  return rank_metrics(drawn);
}

}  // namespace detail

// 95 % intervals of each metric by the percentile bootstrap (Efron, 1979): the users are drawn anew
// with replacement `resamples` times, and the interval holds the middle 95 % of the means. It tells
// what another sample of users would change, not what another training seed would. All rows of a
// table are drawn alike.
inline RankIntervals bootstrap_intervals(std::span<const std::size_t> ranks, std::uint64_t seed,
                                         std::size_t resamples = 1000) {
  return detail::bootstrap(ranks.size(), seed, resamples, [&](const auto& sample) {
    return detail::metrics_of_sample(ranks, sample);
  });
}

// metrics of a - metrics of b
inline RankMetrics difference(RankMetrics a, const RankMetrics& b) {
  std::vector<double> values;
  RankMetrics::fields(b, [&](const std::string&, double value) { values.push_back(value); });
  std::size_t metric = 0;
  RankMetrics::fields(a, [&](const std::string&, double& value) { value -= values[metric++]; });
  return a;
}

// The same of the differences between two models that ranked for the same users, in one order
// (paired bootstrap): most of what makes a user hard is so for both, and cancels. Where 0 lies
// outside an interval, the difference would rarely come from chance in the choice of users.
inline RankIntervals paired_intervals(std::span<const std::size_t> a,
                                      std::span<const std::size_t> b, std::uint64_t seed,
                                      std::size_t resamples = 1000) {
  require(a.size() == b.size(), "ranks of ", a.size(), " and of ", b.size(),
          " users, expected the same users");
  return detail::bootstrap(a.size(), seed, resamples, [&](const auto& sample) {
    return difference(detail::metrics_of_sample(a, sample), detail::metrics_of_sample(b, sample));
  });
}

// ---- Cases -------------------------------------------------------------------------------------

// One question: which item comes after `before`?
struct NextItemCase {
  ItemSpan before;
  std::int32_t target;
  std::size_t user = 0;  // row of the histories; decides what is drawn for this case
};

enum class HeldOut { validation, test };

namespace detail {
template <>
struct EnumNames<HeldOut> {
  static constexpr std::array<std::string_view, 2> names{"validation", "test"};
};
}  // namespace detail

// The questions that a split leaves: the validation item or the last item of each user who has one.
inline std::vector<NextItemCase> next_item_cases(const DataSplit& split, HeldOut held_out) {
  std::vector<NextItemCase> cases;
  for (const std::size_t user : split.validation_users()) {
    const Sequence s = split.sequence(user);
    const bool test = held_out == HeldOut::test;
    const std::int32_t target = test ? s.test : s.validation;
    if (target >= 0) cases.push_back({test ? s.before_test : s.before_validation, target, user});
  }
  return cases;
}

// ---- Scorers -----------------------------------------------------------------------------------

// Anything that ranks items: fills scores[C,num_items] for C cases, a row each.
using Scorer = std::function<void(std::span<const NextItemCase> cases, std::span<float> scores)>;

// The engine must outlive the scorer.
inline Scorer model_scorer(Engine& engine) {
  return [&engine](std::span<const NextItemCase> cases, std::span<float> scores) {
    Batch batch;
    for (const NextItemCase& question : cases) {
      add_next_item_row(batch, question.before, engine.config(), question.target);
    }
    engine.score(batch, scores);
  };
}

// Shows each whole history in a random order (the newest items of that order, where a window is
// shorter). What a model loses by it is what the order told it.
inline Scorer shuffled_scorer(Scorer scorer, std::uint64_t seed) {
  return [scorer = std::move(scorer), key = stream_key(seed, Stream::reordering)](
             std::span<const NextItemCase> cases, std::span<float> scores) {
    std::vector<std::vector<std::int32_t>> histories;
    std::vector<NextItemCase> shuffled(cases.begin(), cases.end());
    for (NextItemCase& question : shuffled) {
      histories.emplace_back(question.before.begin(), question.before.end());
      shuffle(histories.back(), fold_in(key, question.user));
      question.before = histories.back();
    }
    scorer(shuffled, scores);
  };
}

// What the baselines may learn from: the training parts and, for a test, the validation items.
inline std::vector<ItemSpan> known_histories(const DataSplit& split, HeldOut held_out) {
  std::vector<ItemSpan> known;
  for (const std::size_t user : split.train_users()) {
    const Sequence s = split.sequence(user);
    const bool with_validation = held_out == HeldOut::test && s.validation >= 0;
    known.push_back(with_validation ? s.before_test : s.train);
  }
  return known;
}

// Everything, test items included: for candidates and popularity as published (see RankingTask).
inline std::vector<ItemSpan> all_histories(const Histories& histories) {
  std::vector<ItemSpan> all;
  for (std::size_t user = 0; user < histories.size(); ++user) all.push_back(histories.row(user));
  return all;
}

// How often each item occurs.
inline std::vector<std::uint64_t> item_counts(std::span<const ItemSpan> histories,
                                              std::size_t num_items) {
  std::vector<std::uint64_t> counts(num_items);
  for (const ItemSpan history : histories) {
    detail::require_items(history, num_items);
    for (const std::int32_t item : history) ++counts[static_cast<std::size_t>(item)];
  }
  return counts;
}

// The baseline every recommender must beat: the more often an item occurs, the higher it ranks.
inline Scorer popularity_scorer(std::span<const std::uint64_t> counts) {
  return [row = std::vector<float>(counts.begin(), counts.end())](
             std::span<const NextItemCase> cases, std::span<float> scores) {
    require(scores.size() == cases.size() * row.size(), "score: the output has room for ",
            scores.size(), " numbers, expected ", cases.size() * row.size());
    for (std::size_t i = 0; i < cases.size(); ++i) {
      std::copy(row.begin(), row.end(), scores.data() + i * row.size());
    }
  };
}

// First-order Markov chain, what the last item alone can tell:
//   score(j) = 2^n * (how often j came right after the last item) + count(j), 2^n > any count,
// so that popularity decides among items that followed equally often. Exact in float up to 2^24;
// beyond, close counts tie.
inline Scorer markov_scorer(std::span<const ItemSpan> histories, std::size_t num_items) {
  const std::vector<std::uint64_t> counts = item_counts(histories, num_items);
  const std::uint64_t most = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  // followers[i]: every item that came right after i, as often as it did.
  std::vector<std::vector<std::int32_t>> followers(num_items);
  for (const ItemSpan history : histories) {
    for (std::size_t i = 1; i < history.size(); ++i) {
      followers[static_cast<std::size_t>(history[i - 1])].push_back(history[i]);
    }
  }
  return [popularity = popularity_scorer(counts), followers = std::move(followers),
          weight = static_cast<float>(std::bit_ceil(most + 1))](std::span<const NextItemCase> cases,
                                                                std::span<float> scores) {
    popularity(cases, scores);
    for (std::size_t i = 0; i < cases.size(); ++i) {
      if (cases[i].before.empty()) continue;
      detail::require_items(cases[i].before.last(1), followers.size());
      const auto last = static_cast<std::size_t>(cases[i].before.back());
      float* row = scores.data() + i * followers.size();
      for (const std::int32_t item : followers[last]) row[item] += weight;
    }
  };
}

// ---- Ranks -------------------------------------------------------------------------------------

// Rank of the target among all items.
inline std::size_t rank_all(std::span<const float> scores, std::int32_t target) {
  detail::require_items({&target, 1}, scores.size());
  const float target_score = scores[static_cast<std::size_t>(target)];
  require(!std::isnan(target_score), "the score of the target is NaN");
  const auto counts =
      detail::kernels<float>().count_above(scores.data(), target_score, scores.size());
  return rank_of(counts.better, counts.ties - 1);
}

// Rank of the target among the items that are not in `before`. The target stays in even if it is.
// Overwrites the scores of `before`.
inline std::size_t rank_unseen(std::span<float> scores, const NextItemCase& question) {
  detail::require_items(question.before, scores.size());
  detail::require_items({&question.target, 1}, scores.size());
  const float target_score = scores[static_cast<std::size_t>(question.target)];
  for (const std::int32_t item : question.before) {
    scores[static_cast<std::size_t>(item)] = -std::numeric_limits<float>::infinity();
  }
  scores[static_cast<std::size_t>(question.target)] = target_score;
  return rank_all(scores, question.target);
}

// Rank of the target among itself and the negatives, which do not hold it.
inline std::size_t rank_among(std::span<const float> scores, std::int32_t target,
                              ItemSpan negatives) {
  detail::require_items({&target, 1}, scores.size());
  detail::require_items(negatives, scores.size());
  std::vector<float> candidates{scores[static_cast<std::size_t>(target)]};
  for (const std::int32_t item : negatives) {
    candidates.push_back(scores[static_cast<std::size_t>(item)]);
  }
  return rank_all(candidates, 0);
}

// Calls see(number, scores[num_items]) for each case, of which some are scored at once.
template <class See>
void for_scores(const Scorer& scorer, std::span<const NextItemCase> cases, std::size_t num_items,
                See&& see) {
  // Of so many numbers; but 16 at least, since each group of rows reads the whole item table.
  const std::size_t rows = std::clamp<std::size_t>((std::size_t{1} << 22) / num_items, 16, 256);
  std::vector<float> scores;
  for (std::size_t begin = 0; begin < cases.size(); begin += rows) {
    const auto some = cases.subspan(begin, std::min(rows, cases.size() - begin));
    scores.resize(some.size() * num_items);
    scorer(some, scores);
    for (std::size_t i = 0; i < some.size(); ++i) {
      see(begin + i, std::span(scores).subspan(i * num_items, num_items));
    }
  }
}

// What knows no more than its name says, and how often it would be right: beside a model's Top-K.
struct Baseline {
  std::string name;
  std::array<double, top_k.size()> accuracies{};
};

// rank(scores, question): that of the target.
template <class Rank>
Baseline make_baseline(std::string name, const Scorer& scorer, std::span<const NextItemCase> cases,
                       std::size_t num_items, Rank&& rank) {
  std::vector<std::size_t> ranks;
  for_scores(scorer, cases, num_items, [&](std::size_t number, std::span<float> scores) {
    ranks.push_back(rank(scores, cases[number]));
  });
  return {std::move(name), rank_metrics(ranks).hit};
}

// ---- Protocols ---------------------------------------------------------------------------------

// Whom a target competes with. Unseen: not in the history before the target. Where no 100 are left
// to draw, all that are (RankingTask::fewest_negatives()).
enum class Protocol {
  all_unseen,   // every unseen item: the headline, as nobody is shown what they have seen
  all_items,    // every item
  popular_100,  // the paper's (section 4.2): 100 unseen items drawn by popularity
  uniform_100   // 100 unseen items, all equally likely
};

namespace detail {
template <>
struct EnumNames<Protocol> {
  static constexpr std::array<std::string_view, 4> names{"all-unseen", "all-items", "popular-100",
                                                         "uniform-100"};
};
}  // namespace detail

inline constexpr std::array<Protocol, 4> protocols{Protocol::all_unseen, Protocol::all_items,
                                                   Protocol::popular_100, Protocol::uniform_100};

inline constexpr std::size_t num_negatives = 100;

// Draws distinct items: each time one of those that are left, with a chance proportional to its
// weight. A binary tree of sums makes a draw, or a change of a weight, log2(items) steps.
class ItemSampler {
 public:
  explicit ItemSampler(std::vector<std::uint64_t> weights)
      : weights_(std::move(weights)), leaves_(std::bit_ceil(weights_.size())), sums_(2 * leaves_) {
    std::copy(weights_.begin(), weights_.end(), sums_.data() + leaves_);
    for (std::size_t i = leaves_ - 1; i > 0; --i) sums_[i] = sums_[2 * i] + sums_[2 * i + 1];
  }

  // `count` items, none of them in `excluded`; or all that have a weight, if those are fewer.
  std::vector<std::int32_t> draw(std::size_t count, ItemSpan excluded, Key key) {
    detail::require_items(excluded, weights_.size());
    std::vector<std::int32_t> drawn;
    for (const std::int32_t item : excluded) set(item, 0);
    while (drawn.size() < count && sums_[1] > 0) {
      drawn.push_back(find(below(key, drawn.size(), sums_[1])));
      set(drawn.back(), 0);
    }
    for (const ItemSpan taken : {excluded, ItemSpan(drawn)}) {
      for (const std::int32_t item : taken) set(item, weights_[static_cast<std::size_t>(item)]);
    }
    return drawn;
  }

 private:
  void set(std::int32_t item, std::uint64_t weight) {
    std::size_t node = leaves_ + static_cast<std::size_t>(item);
    sums_[node] = weight;
    while ((node /= 2) > 0) sums_[node] = sums_[2 * node] + sums_[2 * node + 1];
  }

  // The item in whose stretch of 0 ... (sum of all weights) - 1 a place falls.
  std::int32_t find(std::uint64_t place) const {
    std::size_t node = 1;
    while (node < leaves_) {
      node *= 2;
      if (place < sums_[node]) continue;
      place -= sums_[node++];
    }
    return static_cast<std::int32_t>(node - leaves_);
  }

  std::vector<std::uint64_t> weights_;
  std::size_t leaves_;
  std::vector<std::uint64_t> sums_;  // of node i: that of its children 2 i and 2 i + 1
};

// The cases of a table, and the negatives of each, drawn once.
class RankingTask {
 public:
  using Ranks = std::map<Protocol, std::vector<std::size_t>>;  // one rank for each case

  // `counts` [num_items]: what popular_100 draws by. The authors' code counts all interactions, the
  // test items included: item_counts(all_histories(...)). A target is never among its negatives. A
  // draw depends on seed, user, history and counts alone.
  RankingTask(std::vector<NextItemCase> cases, const std::vector<std::uint64_t>& counts,
              std::uint64_t seed)
      : cases_(std::move(cases)), num_items_(counts.size()) {
    require(!cases_.empty(), "no user has an item held out: there is no case to rank");
    draw_negatives(Protocol::popular_100, ItemSampler(counts), seed);
    draw_negatives(Protocol::uniform_100, ItemSampler(std::vector<std::uint64_t>(num_items_, 1)),
                   seed);
  }

  const std::vector<NextItemCase>& cases() const { return cases_; }
  std::size_t num_items() const { return num_items_; }
  ItemSpan negatives(Protocol protocol, std::size_t number) const {
    const auto& drawn = drawn_for(protocol);
    require(number < drawn.size(), "case ", number, " of ", drawn.size());
    return drawn[number];
  }
  // num_negatives; less if a user has seen nearly all, or popular_100 knows too few unseen items.
  std::size_t fewest_negatives(Protocol protocol) const {
    std::size_t fewest = num_negatives;
    for (const auto& drawn : drawn_for(protocol)) fewest = std::min(fewest, drawn.size());
    return fewest;
  }

  // The ranks under every protocol, from one pass of the scorer over the cases; see(question,
  // scores) is shown the scores[num_items] of each.
  using See = std::function<void(const NextItemCase&, std::span<const float>)>;
  Ranks ranks(const Scorer& scorer, const See& see = {}) const {
    Ranks ranks;
    for_scores(scorer, cases_, num_items_, [&](std::size_t number, std::span<float> row) {
      if (see) see(cases_[number], row);
      add_ranks(number, row, ranks);
    });
    return ranks;
  }

 private:
  const std::vector<std::vector<std::int32_t>>& drawn_for(Protocol protocol) const {
    const auto found = negatives_.find(protocol);
    require(found != negatives_.end(), "protocol ", enum_name(protocol), " draws no negatives");
    return found->second;
  }

  void draw_negatives(Protocol protocol, ItemSampler sampler, std::uint64_t seed) {
    const Key key =
        fold_in(stream_key(seed, Stream::negatives), static_cast<std::uint64_t>(protocol));
    std::vector<std::int32_t> excluded;
    for (const NextItemCase& question : cases_) {
      excluded.assign(question.before.begin(), question.before.end());
      excluded.push_back(question.target);
      negatives_[protocol].push_back(
          sampler.draw(num_negatives, excluded, fold_in(key, question.user)));
    }
  }

  void add_ranks(std::size_t number, std::span<float> scores, Ranks& ranks) const {
    const NextItemCase& question = cases_[number];
    // Of numbers, each is above -infinity or equals it; NaN does neither.
    const auto counts = detail::kernels<float>().count_above(
        scores.data(), -std::numeric_limits<float>::infinity(), scores.size());
    require(counts.better + counts.ties == scores.size(), "a score for user ", question.user,
            " is NaN");
    for (const auto& [protocol, negatives] : negatives_) {
      ranks[protocol].push_back(rank_among(scores, question.target, negatives[number]));
    }
    ranks[Protocol::all_items].push_back(rank_all(scores, question.target));
    ranks[Protocol::all_unseen].push_back(rank_unseen(scores, question));  // overwrites scores
  }

  std::vector<NextItemCase> cases_;
  std::size_t num_items_;
  std::map<Protocol, std::vector<std::vector<std::int32_t>>> negatives_;
};

// ---- More than accuracy ------------------------------------------------------------------------
// What the lists of the best ten unseen items are like, whoever is right. With u(i) the share of
// the known users who know item i (what nobody knows counts as known to one):
//   coverage   the share of all items that stand in somebody's list (Ge et al., RecSys 2010)
//   novelty    the mean of -log2 u(i), in bits, over all lists (mean self-information; Zhou et al.,
//              PNAS 2010): 1 more is half as well known
//   lift       g(lists) / g(histories) - 1, g being the mean over users of the mean u(i) of their
//              items (popularity lift; Abdollahpouri et al., RecSys 2020): 0 where lists are as
//              popular as what was watched, 1 where they are twice as popular

struct ListMeasures {
  double coverage = 0, novelty = 0, lift = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("coverage@10", self.coverage);
    visit("novelty@10", self.novelty);
    visit("popularity_lift@10", self.lift);
  }
};

// Collects the lists of one scorer: add() is a RankingTask::See.
class ListAudit {
 public:
  static constexpr std::size_t length = 10;

  // `known`: of whom the scorer could know.
  ListAudit(std::span<const ItemSpan> known, std::size_t num_items) : share_(num_items) {
    require(!known.empty(), "nobody's history is known: no item has a share of users");
    for (const ItemSpan history : known) {
      detail::require_items(history, num_items);
      for (const std::int32_t item : std::unordered_set(history.begin(), history.end())) {
        share_[static_cast<std::size_t>(item)] += 1;
      }
    }
    for (double& share : share_) share = std::max(share, 1.0) / static_cast<double>(known.size());
    listed_.resize(num_items);
  }

  void add(const NextItemCase& question, std::span<const float> scores) {
    require(scores.size() == share_.size(), "lists: ", scores.size(), " scores of ", share_.size(),
            " items");
    std::vector<std::int32_t> list;
    for (const Recommendation& pick : top_unseen(scores, question.before, length)) {
      const auto item = static_cast<std::size_t>(pick.item);
      list.push_back(pick.item);
      listed_[item] = true;
      novelty_ -= detail::natural_log(share_[item]);
      ++count_;
    }
    if (list.empty() || question.before.empty()) return;
    of_lists_ += mean_share(list);
    of_histories_ += mean_share(question.before);
  }

  ListMeasures measures() const {
    const auto items = static_cast<double>(std::count(listed_.begin(), listed_.end(), true));
    const auto count = static_cast<double>(std::max<std::size_t>(count_, 1));
    return {items / static_cast<double>(share_.size()), novelty_ / (detail::natural_log(2) * count),
            of_histories_ > 0 ? of_lists_ / of_histories_ - 1 : 0.0};
  }

 private:
  double mean_share(ItemSpan items) const {
    double sum = 0;
    for (const std::int32_t item : items) sum += share_[static_cast<std::size_t>(item)];
    return sum / static_cast<double>(items.size());
  }

  std::vector<double> share_;  // u [num_items]
  std::vector<bool> listed_;   // [num_items]
  double novelty_ = 0, of_lists_ = 0, of_histories_ = 0;
  std::size_t count_ = 0;  // of listed items, all lists together
};

// ---- Labels ------------------------------------------------------------------------------------

// How often texts of each label were given each label. What divides by nothing is 0.
class Confusion {
 public:
  explicit Confusion(std::size_t classes) : classes_(classes), counts_(classes * classes) {}

  void add(std::size_t label, std::size_t predicted) { ++counts_[label * classes_ + predicted]; }

  std::size_t classes() const { return classes_; }
  std::uint64_t count(std::size_t label, std::size_t predicted) const {
    return counts_[label * classes_ + predicted];
  }

  // Share of right ones. (With one label a text, micro-averaged precision, recall and F1 are this.)
  double accuracy() const {
    std::uint64_t right = 0;
    for (std::size_t c = 0; c < classes_; ++c) right += count(c, c);
    return ratio(right, std::accumulate(counts_.begin(), counts_.end(), std::uint64_t{0}));
  }
  // Of a label: the share of right ones among those predicted as it, among those that are it, and
  // the harmonic mean of the two, 2 right / (predicted + actual).
  double precision(std::size_t c) const { return ratio(count(c, c), predicted(c)); }
  double recall(std::size_t c) const { return ratio(count(c, c), actual(c)); }
  double f1(std::size_t c) const { return ratio(2 * count(c, c), predicted(c) + actual(c)); }

  std::uint64_t actual(std::size_t c) const {
    std::uint64_t sum = 0;
    for (std::size_t j = 0; j < classes_; ++j) sum += count(c, j);
    return sum;
  }
  std::uint64_t predicted(std::size_t c) const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < classes_; ++i) sum += count(i, c);
    return sum;
  }

  // Precision, recall and F1 as they are usually given: of two labels those of the second, of more
  // the means over all labels (macro).
  std::array<double, 3> summary() const {
    if (classes_ == 2) return {precision(1), recall(1), f1(1)};
    return macro();
  }
  std::array<double, 3> macro() const {
    std::array<double, 3> sums{};
    for (std::size_t c = 0; c < classes_; ++c) {
      sums[0] += precision(c), sums[1] += recall(c), sums[2] += f1(c);
    }
    for (double& sum : sums) sum /= static_cast<double>(classes_);
    return sums;
  }

 private:
  static double ratio(std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
  }

  std::size_t classes_;
  std::vector<std::uint64_t> counts_;  // [label, predicted]
};

// ================================================================================================
// 18  Tasks
// ================================================================================================
// What a model learns, apart from how: a Task turns data into batches for a Trainer and measures
// what was held out. Of everything else (steps, checkpoints, curves, files) a task knows nothing.

namespace detail {

inline constexpr std::string_view mappings_file = "models/item_mappings.json";

// Options that a task would ignore.
inline void require_unused(std::initializer_list<std::pair<std::string_view, double>> options,
                           std::string_view why) {
  for (const auto& [name, value] : options) {
    require(value == 0, name, " is ", value, ", but ", why);
  }
}

// Those of how the Cloze task shows its rows.
inline void require_no_choice_of_rows(const TrainConfig& train, std::string_view why) {
  require_unused({{"mask_last", train.mask_last},
                  {"reversed_share", train.reversed_share},
                  {"static_masks", static_cast<double>(train.static_masks)}},
                 why);
}

}  // namespace detail

// What a task found on held-out data.
struct Validation {
  Tally tally;
  std::vector<double> measures;  // of Task::measures()
};

class Task {
 public:
  virtual ~Task() = default;

  // The configuration of the model, sized for the data.
  virtual const ModelConfig& model() const = 0;

  // Examples of an epoch, each of which is shown once; adds one of them, a function of epoch and
  // example alone, to a batch.
  virtual std::size_t examples() const = 0;
  virtual void add_example(Batch& batch, std::size_t example, std::size_t epoch) const = 0;

  // What belongs to all examples of a batch together, a function of the step alone.
  virtual void finish_batch(Batch& /*batch*/, std::uint64_t /*step*/) const {}

  // Loss and measures on what is held out, the same on all ranks of the engine, which may each see
  // to a part of it; and the names of those beside loss and Top-K.
  virtual Validation validate(Engine& engine) const = 0;
  virtual std::vector<std::string> measures() const { return {}; }

  // What baselines, which learn from the same training data, are worth on the very questions of
  // validate().
  virtual std::vector<Baseline> baselines() const { return {}; }

  // What the data are called, for headings; empty where nobody said.
  virtual std::string data_name() const { return {}; }

  // A text that changes with any of the data: ties a checkpoint to it.
  virtual const std::string& fingerprint() const = 0;

  // Facts about the data for training_config.json, and the files that describe it for those who
  // use the model.
  virtual Json facts() const = 0;
  virtual void write_files(FileSet& set) const = 0;
};

// The validation users; with validation_limit so many of them, evenly spread.
inline std::vector<std::size_t> validation_sample(const DataSplit& split,
                                                  const TrainConfig& config) {
  const std::vector<std::size_t>& all = split.validation_users();
  const std::size_t limit = config.validation_limit == 0 ? all.size() : config.validation_limit;
  std::vector<std::size_t> users(std::min(limit, all.size()));
  for (std::size_t i = 0; i < users.size(); ++i) users[i] = all[i * all.size() / users.size()];
  return users;
}

// What a validation user is asked: for the validation item (Split::last), or (Split::users) for
// what follows each item or is hidden, by masks that depend on the seed alone.
inline void add_validation_row(Batch& batch, const DataSplit& split, std::size_t user,
                               const ModelConfig& model, const TrainConfig& config) {
  const Sequence s = split.sequence(user);
  if (split.kind() == Split::last) {
    add_next_item_row(batch, s.before_validation, model, s.validation);
  } else if (model.objective == Objective::causal) {
    add_causal_row(batch, split.history(user), model);
  } else {
    const Key key = stream_key(config.seed, Stream::validation_masks);
    add_cloze_row(batch, split.history(user), model, config.mask_probability, fold_in(key, user));
  }
}

// Softmax loss and Top-K among all items of what those users are asked.
inline Tally validation_tally(Engine& engine, const DataSplit& split, const TrainConfig& config) {
  const std::vector<std::size_t> users = validation_sample(split, config);
  Collective& ranks = engine.ranks();
  const auto [first, end] = part_of(users.size(), ranks.rank(), ranks.size());
  Tally metrics;
  Batch batch;
  for (std::size_t begin = first; begin < end; begin += config.batch_size) {
    batch.clear();
    for (std::size_t i = begin; i < std::min(begin + config.batch_size, end); ++i) {
      add_validation_row(batch, split, users[i], engine.config(), config);
    }
    metrics += engine.evaluate(batch);
  }
  return total(ranks, metrics);
}

// ---- Drawn negatives ---------------------------------------------------------------------------

// Draws items, each by itself, with chances proportional to count^power, in constant time (Walker's
// alias method, as Vose builds it, 1991): of n equal slots, slot i is shared by item i, which has
// the part keep_i, and one other, its alias.
class NegativeSampler {
 public:
  NegativeSampler(std::span<const std::uint64_t> counts, double power)
      : keep_(counts.size()), alias_(counts.size()), log_chance_(counts.size()) {
    const std::size_t n = counts.size();
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      keep_[i] = detail::root_power(static_cast<double>(counts[i]), power);
      sum += keep_[i];
    }
    require(sum > 0, "no item that could be drawn: none occurs in the training data");
    std::vector<std::int32_t> small, large;  // slots that are less than full, and the others
    for (std::size_t i = 0; i < n; ++i) {
      const double chance = keep_[i] / sum;
      log_chance_[i] = chance > 0 ? detail::natural_log(chance) : 0;  // never drawn: not needed
      keep_[i] = detail::rounded(chance * static_cast<double>(n));
      alias_[i] = static_cast<std::int32_t>(i);
      (keep_[i] < 1 ? small : large).push_back(alias_[i]);
    }
    while (!small.empty() && !large.empty()) {
      const auto poor = static_cast<std::size_t>(small.back());
      const std::int32_t rich = large.back();
      const auto r = static_cast<std::size_t>(rich);
      small.pop_back();
      alias_[poor] = rich;
      keep_[r] -= 1 - keep_[poor];
      if (keep_[r] < 1) large.pop_back(), small.push_back(rich);
    }
    for (const std::int32_t item : small) keep_[static_cast<std::size_t>(item)] = 1;  // rounding
    for (const std::int32_t item : large) keep_[static_cast<std::size_t>(item)] = 1;
  }

  // Fills the negatives of a batch: `count` items and their log(count * chance).
  void draw(Batch& batch, std::size_t count, Key key) const {
    const double log_count = detail::natural_log(static_cast<double>(count));
    for (std::size_t j = 0; j < count; ++j) {
      const std::size_t slot = below(key, 2 * j, keep_.size());
      const bool keeps = uniform(key, 2 * j + 1) < keep_[slot];
      const std::int32_t item = keeps ? static_cast<std::int32_t>(slot) : alias_[slot];
      batch.negatives.push_back(item);
      batch.log_expected.push_back(
          static_cast<float>(log_count + log_chance_[static_cast<std::size_t>(item)]));
    }
  }

 private:
  std::vector<double> keep_;
  std::vector<std::int32_t> alias_;
  std::vector<double> log_chance_;
};

// ---- Items -------------------------------------------------------------------------------------

// What tasks on items and histories have in common. The data must outlive the task, and
// model.num_items is taken from its catalogue.
class CatalogueTask : public Task {
 public:
  CatalogueTask(const Dataset& data, ModelConfig model, TrainConfig train)
      : data_(data),
        train_((bert4rec::validate(train), train)),
        model_(sized_for(model, data)),
        split_(data.histories, train_),
        fingerprint_(data.fingerprint()) {}

  const DataSplit& split() const { return split_; }
  const ModelConfig& model() const override { return model_; }
  const std::string& fingerprint() const override { return fingerprint_; }
  std::string data_name() const override { return last_names(data_.folder, 1); }

  Json facts() const override {
    Json facts;
    facts.set("items", data_.catalogue.size());
    facts.set("users", data_.histories.size());
    facts.set("interactions", data_.histories.interactions());
    facts.set("fingerprint", fingerprint_);
    if (!data_.folder.empty()) facts.set("folder", path_text(data_.folder));
    return facts;
  }

  void write_files(FileSet& set) const override {
    set.write(detail::mappings_file, sealed(mappings_text()));
  }

 protected:
  bool causal() const { return model_.objective == Objective::causal; }

  // Whether validation asks for what follows, not for what is hidden in between.
  bool asks_next() const { return causal() || split_.kind() == Split::last; }

  // Popularity and, where the item before is known, a Markov chain; rank() as make_baseline()'s.
  template <class Rank>
  std::vector<Baseline> baselines_on(const std::vector<NextItemCase>& cases, Rank&& rank) const {
    const std::vector<ItemSpan> known = known_histories(split_, HeldOut::validation);
    const std::size_t I = model_.num_items;
    const auto make = [&](const char* name, const Scorer& scorer) {
      return make_baseline(name, scorer, cases, I, rank);
    };
    std::vector<Baseline> made{make("popularity", popularity_scorer(item_counts(known, I)))};
    if (asks_next()) made.push_back(make("Markov", markov_scorer(known, I)));
    return made;
  }

  // Options of the Cloze task, of which another would make nothing.
  void require_no_choice_of_masks(std::string_view why) const {
    detail::require_unused(
        {{"random_share", train_.random_share}, {"keep_share", train_.keep_share}}, why);
    detail::require_no_choice_of_rows(train_, why);
  }

  const Dataset& data_;
  TrainConfig train_;
  ModelConfig model_;
  DataSplit split_;

 private:
  static ModelConfig sized_for(ModelConfig model, const Dataset& data) {
    model.num_items = data.catalogue.size();
    bert4rec::validate(model);
    return model;
  }

  // {"data": fingerprint, "items": [{"index": 0, "token": 3, "id": ..., "title": ...}, ...]}
  std::string mappings_text() const {
    std::string text = join("{\"data\": \"", fingerprint_, "\", \"items\": [");
    for (std::size_t i = 0; i < data_.catalogue.size(); ++i) {
      const auto number = static_cast<std::int32_t>(i);
      Json entry;
      entry.set("index", i);
      entry.set("token", token_of(number));
      const Json item = bert4rec::to_json(data_.catalogue[number]);
      for (const auto& [name, value] : item.object()) entry.set(name, value);
      text += (i == 0 ? "\n" : ",\n") + entry.text();
    }
    return text + "\n]}\n";
  }

  std::string fingerprint_;
};

// The Cloze task; or, with the causal objective, that of SASRec.
class ItemTask : public CatalogueTask {
 public:
  ItemTask(const Dataset& data, const ModelConfig& model, const TrainConfig& train)
      : CatalogueTask(data, model, train) {
    require(model.task == TaskKind::items, "task is ", enum_name(model.task), ", expected items");
    if (causal()) require_no_choice_of_masks("the causal objective hides nothing");
    for (const std::size_t user : split_.train_users()) {
      add_windows(windows_, split_.sequence(user).train, model_.max_length + causal(),
                  train_.window_stride);
    }
    if (draws_negatives(train_.loss)) prepare_negatives();
  }

  ItemTask(const Dataset&&, ModelConfig, TrainConfig) = delete;  // data would be gone

  std::size_t examples() const override { return windows_.size(); }  // windows of histories
  void add_example(Batch& batch, std::size_t example, std::size_t epoch) const override {
    if (causal()) return add_causal_row(batch, windows_[example], model_);
    const std::size_t masks = train_.static_masks == 0 ? epoch : epoch % train_.static_masks;
    const Key key = fold_in(stream_key(train_.seed, Stream::masks), masks);
    add_training_row(batch, windows_[example], model_, train_, fold_in(key, example));
  }
  void finish_batch(Batch& batch, std::uint64_t step) const override {
    if (!sampler_) return;
    const Key key = fold_in(stream_key(train_.seed, Stream::sampled_items), step);
    sampler_->draw(batch, train_.negatives, key);
  }
  Validation validate(Engine& engine) const override {
    return {validation_tally(engine, split_, train_), {}};
  }

  // Among all items, as validation ranks.
  std::vector<Baseline> baselines() const override {
    std::vector<NextItemCase> cases;
    Batch batch;
    for (const std::size_t user : validation_sample(split_, train_)) {
      batch.clear();
      add_validation_row(batch, split_, user, model_, train_);
      const ItemSpan before_last = split_.sequence(user).before_validation;
      const std::size_t asked = batch.targets.size(), all = split_.history(user).size();
      const std::size_t end = split_.kind() == Split::last ? before_last.size() + 1 : all;
      for (std::size_t i = 0; i < asked; ++i) {
        // Of what follows, the newest are asked for; before what is hidden, nothing is told.
        const ItemSpan before = split_.history(user).first(asks_next() ? end - asked + i : 0);
        cases.push_back({before, batch.targets[i], user});
      }
    }
    return baselines_on(cases, [](std::span<const float> scores, const NextItemCase& question) {
      return rank_all(scores, question.target);
    });
  }

 private:
  void prepare_negatives() {
    require(train_.negatives < model_.num_items, "negatives is ", train_.negatives,
            ", but beside a target there are only ", model_.num_items - 1, " items");
    const std::vector<ItemSpan> known = known_histories(split_, HeldOut::validation);
    sampler_.emplace(item_counts(known, model_.num_items), train_.negative_power);
  }

  std::vector<ItemSpan> windows_;  // an epoch shows each once
  std::optional<NegativeSampler> sampler_;
};

// ---- Matching ----------------------------------------------------------------------------------

// Every interaction is asked for once an epoch and is a positive there, with neg_ratio negatives of
// its own: items that are in no place of what is known of the user. A window is cut so that its
// places are hidden in 1 / mask_probability parts, a part in a row; with the causal objective one
// row asks for all of a window (but the first item of a history, before which there is nothing).
// Windows of a long history follow each other unless window_stride says otherwise, and a place that
// is in two is asked for in the newer.
class MatchingTask : public CatalogueTask {
 public:
  MatchingTask(const Dataset& data, const ModelConfig& model, const TrainConfig& train)
      : CatalogueTask(data, model, train) {
    require(model.task == TaskKind::matching, "task is ", enum_name(model.task),
            ", expected matching");
    require(train_.loss == Loss::softmax, "loss is ", enum_name(train_.loss),
            ", but matching has a loss of its own");
    require_no_choice_of_masks("matching hides each item of a window once");
    for (const std::size_t user : split_.train_users()) {
      add_asked_windows(train_windows_, user, split_.sequence(user).train);
    }
    for (std::size_t window = 0; window < train_windows_.size(); ++window) {
      for (std::size_t part = 0; part < train_windows_[window].parts; ++part) {
        examples_.push_back({window, part});
      }
    }
    prepare_validation();
  }

  MatchingTask(const Dataset&&, ModelConfig, TrainConfig) = delete;  // data would be gone

  std::size_t examples() const override { return examples_.size(); }
  void add_example(Batch& batch, std::size_t example, std::size_t epoch) const override {
    const auto [window, part] = examples_[example];
    const Key masks = fold_in(stream_key(train_.seed, Stream::masks), epoch);
    const Key draws = fold_in(stream_key(train_.seed, Stream::own_negatives), epoch);
    add_part(batch, train_windows_[window], part, fold_in(masks, window));
    draw_negatives(batch, train_windows_[window].user, train_.neg_ratio, fold_in(draws, example));
  }

  // Interactions that an epoch asks for. Each is one sample, and each of its negatives another.
  std::size_t positives() const {
    std::size_t count = 0;
    for (const Window& window : train_windows_) count += window.end - window.begin;
    return count;
  }

  std::vector<std::string> measures() const override {
    return {"auc",
            "ndcg@10",
            "mse",
            "rmse",
            "mae",
            "similarity_mse",
            "similarity_rmse",
            "similarity_mae",
            "scale",
            "item_cosine",
            "item_spread"};
  }

  // The loss is that of training; its masks and negatives depend on the seed alone. Top-K counts
  // ranks among the items the user does not know. Beside them:
  //   auc, ndcg@10                   of the positives among the drawn negatives; by those ranks
  //   mse, rmse, mae                 of the probability 1 / (1 + exp -s) against the label 1 or 0
  //   similarity_mse, _rmse, _mae    of the score of positives against 1
  //   scale                          of the similarity
  //   item_cosine, item_spread       mean cosine c of two items, sqrt(1 - c): 1 and 0 if collapsed
  Validation validate(Engine& engine) const override {
    Found found;
    Batch batch;
    std::vector<std::size_t> users;  // of the asked places
    const auto measure = [&] {
      if (users.empty()) return;
      add_scores(engine, batch, users, found);
      batch.clear(), users.clear();
    };
    const Key masks = stream_key(train_.seed, Stream::validation_masks);
    const Key draws = fold_in(stream_key(train_.seed, Stream::own_negatives), ~std::uint64_t{0});
    Collective& ranks = engine.ranks();
    const auto [first, end] = part_of(validation_windows_.size(), ranks.rank(), ranks.size());
    for (std::size_t window = first; window < end; ++window) {
      const Window& shown = validation_windows_[window];
      for (std::size_t part = 0; part < shown.parts; ++part) {
        add_part(batch, shown, part, fold_in(masks, window));
        draw_negatives(batch, shown.user, drawn(), fold_in(fold_in(draws, window), part));
        users.resize(batch.asked.size(), shown.user);
        if (users.size() * model_.num_items >= std::size_t{1} << 22) measure();
      }
    }
    measure();
    found = {gathered(ranks, found.positives), gathered(ranks, found.negatives),
             gathered(ranks, found.ranks)};
    const auto [loss, errors] = errors_of(found);
    return {tally_of(found, loss), measures_of(found, errors, engine)};
  }

  // Among the items the user does not know, as there.
  std::vector<Baseline> baselines() const override {
    std::vector<NextItemCase> cases;
    for (const Window& window : validation_windows_) {
      for (std::size_t i = window.begin; i < window.end; ++i) {
        cases.push_back({window.items.first(i), window.items[i], window.user});
      }
    }
    return baselines_on(cases, [this](std::span<float> scores, const NextItemCase& question) {
      return rank_unseen(scores, {known_[question.user], question.target, question.user});
    });
  }

 private:
  struct Window {
    ItemSpan items;
    std::size_t user;
    std::size_t begin, end;  // the places that are asked
    std::size_t parts;       // rows in which they are
  };
  struct Example {
    std::size_t window, part;
  };
  // Scores of held-out positives and of negatives drawn for them, and ranks.
  struct Found {
    std::vector<float> positives, negatives;
    std::vector<std::size_t> ranks;
  };

  void add_asked_windows(std::vector<Window>& windows, std::size_t user, ItemSpan history) const {
    const std::size_t L = model_.max_length;
    std::vector<ItemSpan> spans;
    add_windows(spans, history, L + causal(), train_.window_stride > 0 ? train_.window_stride : L);
    std::size_t asked_from = history.size();  // by newer windows
    for (const ItemSpan span : spans) {
      const auto first = static_cast<std::size_t>(span.data() - history.data());
      const std::size_t end = std::min(asked_from - first, span.size());
      const std::size_t begin = causal() && span.size() > 1 ? 1 : 0;
      const double wanted = std::min(1 / train_.mask_probability, static_cast<double>(end));
      const auto parts = std::max<std::size_t>(1, static_cast<std::size_t>(wanted + 0.5));
      windows.push_back({span, user, begin, end, causal() ? 1 : parts});
      asked_from = first + begin;
    }
  }

  void prepare_validation() {
    known_.resize(data_.histories.size());
    for (std::size_t user = 0; user < known_.size(); ++user) set_known(user);
    for (const std::size_t user : validation_sample(split_, train_)) {
      const Sequence s = split_.sequence(user);
      if (split_.kind() == Split::users) {
        add_asked_windows(validation_windows_, user, split_.history(user));
      } else {
        const std::size_t n = s.before_validation.size();
        validation_windows_.push_back({split_.history(user).first(n + 1), user, n, n + 1, 1});
      }
    }
  }

  // Sorted: the user's training items; all of a user who is held out whole.
  void set_known(std::size_t user) {
    const ItemSpan train = split_.sequence(user).train;
    const ItemSpan items = train.empty() ? split_.history(user) : train;
    std::vector<std::int32_t>& known = known_[user];
    known.assign(items.begin(), items.end());
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    const std::size_t target = split_.sequence(user).validation >= 0;  // may not be drawn either
    require(known.size() + target + drawn() <= model_.num_items, "neg_ratio is ", drawn(),
            ", but user \"", shown(data_.histories.user(user)), "\" knows ", known.size(),
            " of the ", model_.num_items, " items");
  }

  // Negatives a held-out positive has: one at least, so that there is something to measure.
  std::size_t drawn() const { return std::max<std::size_t>(1, train_.neg_ratio); }

  // The row that asks for a part of a window. `masks` decides what is in which part.
  void add_part(Batch& batch, const Window& window, std::size_t part, Key masks) const {
    const std::size_t n = window.items.size();
    if (window.begin + 1 == n) {
      return add_next_item_row(batch, window.items.first(n - 1), model_, window.items[n - 1]);
    }
    if (causal()) {
      for (std::size_t i = 0; i + 1 < n; ++i) {
        const std::int32_t shown = token_of(window.items[i]);
        if (i + 1 < window.end)
          batch.ask(window.items[i + 1], shown);
        else
          batch.tokens.push_back(shown);
      }
      return batch.end_row();
    }
    std::vector<std::size_t> parts(window.end);
    for (std::size_t i = 0; i < window.end; ++i) parts[i] = i % window.parts;
    shuffle(parts, masks);
    for (std::size_t i = 0; i < n; ++i) {
      if (i < window.end && parts[i] == part)
        batch.ask(window.items[i]);
      else
        batch.tokens.push_back(token_of(window.items[i]));
    }
    batch.end_row();
  }

  // `ratio` items for each place that is asked and has none yet.
  void draw_negatives(Batch& batch, std::size_t user, std::size_t ratio, Key key) const {
    const std::vector<std::int32_t>& known = known_[user];
    std::uint64_t counter = 0;
    while (batch.own_negatives.size() < batch.asked.size() * ratio) {
      const std::int32_t target = batch.targets[batch.own_negatives.size() / ratio];
      const auto item = static_cast<std::int32_t>(below(key, counter++, model_.num_items));
      if (item == target || std::binary_search(known.begin(), known.end(), item)) continue;
      batch.own_negatives.push_back(item);
    }
  }

  void add_scores(Engine& engine, const Batch& batch, std::span<const std::size_t> users,
                  Found& found) const {
    const std::size_t I = model_.num_items;
    std::vector<float> scores(users.size() * I);
    engine.score(batch, scores);
    for (std::size_t i = 0; i < users.size(); ++i) {
      const std::span<float> row(scores.data() + i * I, I);
      found.positives.push_back(row[static_cast<std::size_t>(batch.targets[i])]);
      for (std::size_t j = i * drawn(); j < (i + 1) * drawn(); ++j) {
        found.negatives.push_back(row[static_cast<std::size_t>(batch.own_negatives[j])]);
      }
      found.ranks.push_back(rank_unseen(row, {known_[users[i]], batch.targets[i], users[i]}));
    }
  }

  // The errors |p - label| of all samples, where p = 1 / (1 + exp -s), and the loss of each added.
  std::pair<double, std::vector<float>> errors_of(const Found& found) const {
    std::vector<float> errors;
    for (const float score : found.positives) errors.push_back(-score);
    if (train_.neg_ratio > 0) {
      errors.insert(errors.end(), found.negatives.begin(), found.negatives.end());
    }
    const double loss = detail::kernels<float>().logistic(errors.data(), errors.size());
    return {loss, std::move(errors)};
  }

  Tally tally_of(const Found& found, double loss) const {
    Tally tally;
    tally.loss_sum = loss / static_cast<double>(1 + train_.neg_ratio);
    for (const std::size_t rank : found.ranks) tally.add_rank(rank);
    return tally;
  }

  std::vector<double> measures_of(const Found& found, const std::vector<float>& errors,
                                  Engine& engine) const {
    std::vector<double> values{roc_auc(found.positives, found.negatives),
                               rank_metrics(found.ranks).ndcg[2]};
    const auto add_errors = [&](const std::vector<float>& some) {
      double squares = 0, sum = 0;
      for (const float error : some) {
        squares += detail::rounded(double{error} * double{error});
        sum += std::abs(double{error});
      }
      const auto n = static_cast<double>(some.size());
      values.insert(values.end(), {squares / n, std::sqrt(squares / n), sum / n});
    };
    add_errors(errors);
    std::vector<float> differences = found.positives;
    for (float& score : differences) score -= 1;
    add_errors(differences);
    add_spread(engine, values);
    return values;
  }

  // The mean unit vector of the items has the squared length c: the mean cosine of all pairs.
  void add_spread(Engine& engine, std::vector<double>& values) const {
    std::vector<float> parameters(engine.table().size());
    engine.read(State::parameters, parameters);
    float scale = static_cast<float>(model_.fixed_scale);
    if (model_.fixed_scale == 0) {
      scale = std::min(parameters[engine.table().at("log_scale").offset],
                       static_cast<float>(largest_log_scale));
      detail::kernels<float>().exp(&scale, &scale, 1);
    }
    const std::size_t H = model_.hidden_size, I = model_.num_items;
    const float* item = parameters.data() + engine.table().at("item_embedding.weight").offset;
    std::vector<double> mean(H);
    for (std::size_t i = 0; i < I; ++i) {
      const float* row = item + (special_rows + i) * H;
      const double length = std::sqrt(double{detail::kernels<float>().sum_of_squares(row, H)});
      for (std::size_t c = 0; c < H; ++c) {
        mean[c] += double{row[c]} / std::max(length, 1e-8) / static_cast<double>(I);
      }
    }
    double cosine = 0;
    for (const double value : mean) cosine += detail::rounded(value * value);
    values.insert(values.end(), {double{scale}, cosine, std::sqrt(std::max(0.0, 1 - cosine))});
  }

  std::vector<Window> train_windows_, validation_windows_;
  std::vector<Example> examples_;
  std::vector<std::vector<std::int32_t>> known_;  // of each user, sorted
};

// The task that a model is for, on a data set that must outlive it.
inline std::unique_ptr<CatalogueTask> make_task(const Dataset& data, const ModelConfig& model,
                                                const TrainConfig& train) {
  require(!model.reads_text(), "task is ", enum_name(model.task),
          ", which needs texts (train_classifier), not items and histories");
  if (model.task == TaskKind::matching) return std::make_unique<MatchingTask>(data, model, train);
  return std::make_unique<ItemTask>(data, model, train);
}

// ---- Texts -------------------------------------------------------------------------------------

namespace detail {
inline constexpr std::string_view labels_file = "models/labels.json",
                                  vocabulary_file = "models/vocab.txt";
}

// labels.json: {"data": fingerprint, "vocabulary": checksum of vocab.txt, "labels": [...]}
inline std::string labels_text(const std::string& fingerprint, std::string_view vocabulary,
                               const std::vector<std::string>& labels) {
  Json json;
  json.set("data", fingerprint);
  json.set("vocabulary", detail::hexadecimal(checksum(vocabulary)));
  json.set("labels", Json::Array(labels.begin(), labels.end()));
  return sealed(json.text(2)) + "\n";
}

// What a text model is trained on: rows of tokens of one vocabulary, which goes with the model.
struct TextData {
  std::string vocabulary;           // the text of vocab.txt
  std::vector<std::string> labels;  // their names, for classification
  Texts train, held_out;
  std::string name = {};  // for headings
};

// What tasks on texts have in common. The data must outlive the task.
class TextTask : public Task {
 public:
  TextTask(const TextData& data, const ModelConfig& model, TrainConfig train)
      : data_(data), words_(data.vocabulary), train_((bert4rec::validate(train), train)) {
    model_ = model;
    model_.num_items = words_.size();
    model_.classes = model.task == TaskKind::classification ? data.labels.size() : 0;
    bert4rec::validate(model_);
    detail::check_loss(model_, train_.loss);
    detail::require_no_choice_of_rows(train_, "texts are shown whole, as they are");
    require(train_.window_stride == 0, "window_stride is ", train_.window_stride,
            ", but texts have no windows");
    require(data.train.size() > 0 && data.held_out.size() > 0, "texts: ", data.train.size(),
            " to train on and ", data.held_out.size(), " held out, expected some of both");
    check_tokens(data.train, "to train on");
    check_tokens(data.held_out, "held out");
    std::uint64_t hash = checksum(data.vocabulary);
    for (const std::string& label : data.labels) hash = checksum(label, checksum("\n", hash));
    fingerprint_ = detail::hexadecimal(data.held_out.fingerprint(data.train.fingerprint(hash)));
  }

  const ModelConfig& model() const override { return model_; }
  std::size_t examples() const override { return data_.train.size(); }
  const std::string& fingerprint() const override { return fingerprint_; }
  std::string data_name() const override { return data_.name; }

  Json facts() const override {
    Json facts;
    facts.set("texts", data_.train.size());
    facts.set("held_out", data_.held_out.size());
    facts.set("tokens", data_.train.tokens());
    if (model_.classes > 0) facts.set("labels", data_.labels);
    facts.set("fingerprint", fingerprint_);
    return facts;
  }

  void write_files(FileSet& set) const override {
    set.write(detail::labels_file, labels_text(fingerprint_, data_.vocabulary, data_.labels));
    set.write(detail::vocabulary_file, data_.vocabulary);
  }

  void add_example(Batch& batch, std::size_t example, std::size_t epoch) const override {
    const std::size_t text = text_of(example);
    add_row(batch, text, epoch);
    const Key key = fold_in(stream_key(train_.seed, Stream::bigrams), epoch);
    add_bigrams(batch, model_, train_.bigram_dropout, fold_in(key, text));
  }

 protected:
  virtual std::size_t text_of(std::size_t example) const { return example; }

  // Adds a row of a text to train on, or what a held-out text is asked.
  virtual void add_row(Batch& batch, std::size_t text, std::size_t epoch) const = 0;
  virtual void add_held_out(Batch& batch, std::size_t text) const = 0;

  // body(batch) for what held-out texts are asked, some of them at a time.
  template <class Body>
  void for_held_out(Body&& body) const {
    Batch batch;
    const Texts& texts = data_.held_out;
    const std::size_t limit = train_.validation_limit;
    const std::size_t count = limit == 0 ? texts.size() : std::min(limit, texts.size());
    for (std::size_t begin = 0; begin < count; begin += evaluated_at_once) {
      batch.clear();
      for (std::size_t i = begin; i < std::min(begin + evaluated_at_once, count); ++i) {
        add_held_out(batch, i * texts.size() / count);
      }
      add_bigrams(batch, model_);
      body(batch);
    }
  }

  // What always ranks tokens or labels in one order, on what held-out texts are asked.
  Baseline fixed_order(std::string name, std::span<const std::uint64_t> weights) const {
    std::vector<NextItemCase> cases;
    for_held_out([&](const Batch& batch) {
      for (const std::int32_t target : batch.targets) cases.push_back({{}, target});
    });
    return make_baseline(std::move(name), popularity_scorer(weights), cases, weights.size(),
                         [](std::span<const float> scores, const NextItemCase& question) {
                           return rank_all(scores, question.target);
                         });
  }

  static constexpr std::size_t evaluated_at_once = 256;
  const TextData& data_;
  WordPiece words_;
  TrainConfig train_;
  ModelConfig model_;

 private:
  void check_tokens(const Texts& texts, std::string_view which) const {
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const auto row = texts.row(i);
      require(row.size() >= 2 && row.size() <= model_.max_length, "text ", i, " ", which, ": ",
              row.size(), " tokens, expected 2 ... ", model_.max_length);
      for (const std::int32_t token : row) {
        require(token >= 0 && static_cast<std::size_t>(token) < words_.size(), "text ", i, " ",
                which, ": token ", token, " is not one of the vocabulary's ", words_.size());
      }
    }
  }

  std::string fingerprint_;
};

// A row that asks for the label of a text, at its first token.
inline void add_text_row(Batch& batch, std::span<const std::int32_t> tokens,
                         std::int32_t label = 0) {
  batch.ask(label, tokens.front());
  batch.tokens.insert(batch.tokens.end(), tokens.begin() + 1, tokens.end());
  batch.end_row();
}

// To tell the label of a text.
class ClassificationTask : public TextTask {
 public:
  ClassificationTask(const TextData& data, const ModelConfig& model, const TrainConfig& train)
      : TextTask(data, model, train) {
    require(model.task == TaskKind::classification, "task is ", enum_name(model.task),
            ", expected classification");
    counts_.resize(model_.classes);
    check_labels(data.train, "to train on");
    check_labels(data.held_out, "held out");
    for (std::size_t i = 0; i < data.train.size(); ++i) ++counts_[at(data.train.label(i))];
    double sum = 0;
    for (std::size_t c = 0; c < model_.classes; ++c) {
      require(counts_[c] > 0, "label \"", shown(data.labels[c]), "\" has no text to train on");
      const auto count = static_cast<double>(counts_[c]);
      weights_.push_back(1 / detail::root_power(count, train_.class_balance));
      sum += detail::rounded(count * weights_.back());
    }
    // So that the mean over all texts is 1.
    for (double& weight : weights_) weight *= static_cast<double>(data.train.size()) / sum;
  }

  ClassificationTask(const TextData&&, ModelConfig, TrainConfig) = delete;  // data would be gone

  std::vector<std::string> measures() const override { return {"precision", "recall", "f1"}; }

  Validation validate(Engine& engine) const override {
    Confusion confusion(model_.classes);
    const Tally tally = evaluate(engine, confusion);
    const auto summary = confusion.summary();
    return {tally, {summary.begin(), summary.end()}};
  }

  // Always the label of most training texts; of labels with equally many texts the first.
  std::vector<Baseline> baselines() const override {
    std::vector<std::size_t> order(model_.classes);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return counts_[a] > counts_[b]; });
    std::vector<std::uint64_t> weights(order.size());  // no two alike
    for (std::size_t i = 0; i < order.size(); ++i) weights[order[i]] = order.size() - i;
    return {fixed_order("majority label", weights)};
  }

  // Of the held-out texts. Fills the table of their labels.
  Tally evaluate(Engine& engine, Confusion& confusion) const {
    Tally tally;
    std::vector<float> scores;
    for_held_out([&](const Batch& batch) {
      const std::size_t C = model_.classes;
      scores.resize(batch.rows() * C);
      engine.score(batch, scores);
      for (std::size_t i = 0; i < batch.rows(); ++i) {
        const std::span<float> row(scores.data() + i * C, C);
        const std::size_t label = at(batch.targets[i]);
        const auto best = std::max_element(row.begin(), row.end()) - row.begin();
        confusion.add(label, static_cast<std::size_t>(best));
        detail::RankCounts counts{};
        double loss = 0;
        detail::softmax_place(detail::kernels<float>(), row.data(), C, label, loss, counts);
        tally.loss_sum += loss;
        tally.add_rank(rank_of(counts.better, counts.ties));
      }
    });
    return tally;
  }

 private:
  // With `augment` a, each token but the first and the last is left out with probability a, and
  // else with probability a changes places with the one behind it.
  void add_row(Batch& batch, std::size_t text, std::size_t epoch) const override {
    const auto tokens = data_.train.row(text);
    const std::int32_t label = data_.train.label(text);
    if (train_.class_balance > 0) {
      batch.weights.push_back(static_cast<float>(weights_[at(label)]));
    }
    if (train_.augment == 0) return add_text_row(batch, tokens, label);
    const Key key = fold_in(fold_in(stream_key(train_.seed, Stream::augment), epoch), text);
    std::vector<std::int32_t> kept{tokens.front()};
    for (std::size_t i = 1; i + 1 < tokens.size(); ++i) {
      if (uniform(key, 2 * i) >= train_.augment) kept.push_back(tokens[i]);
    }
    for (std::size_t i = 1; i + 1 < kept.size(); ++i) {
      if (uniform(key, 2 * i + 1) < train_.augment) std::swap(kept[i], kept[i + 1]);
    }
    kept.push_back(tokens.back());
    add_text_row(batch, kept, label);
  }

  void add_held_out(Batch& batch, std::size_t text) const override {
    add_text_row(batch, data_.held_out.row(text), data_.held_out.label(text));
  }

  static std::size_t at(std::int32_t label) { return static_cast<std::size_t>(label); }

  void check_labels(const Texts& texts, std::string_view which) const {
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const std::int32_t label = texts.label(i);
      require(label >= 0 && at(label) < model_.classes, "text ", i, " ", which, ": label ", label,
              ", expected 0 ... ", model_.classes - 1);
    }
  }

  std::vector<std::uint64_t> counts_;  // training texts of each label
  std::vector<double> weights_;        // of the losses of each
};

// The Cloze task on texts, as BERT was trained: of what stands between [CLS] and [SEP] a share
// mask_probability is hidden, at least one, and asked for; some of it is shown as a random token
// (random_share) or as it is (keep_share). What is hidden as one: TrainConfig::masking.
class MaskedTextTask : public TextTask {
 public:
  MaskedTextTask(const TextData& data, const ModelConfig& model, const TrainConfig& train)
      : TextTask(data, model, train) {
    require(model.task == TaskKind::masked_text, "task is ", enum_name(model.task),
            ", expected masked-text");
    for (std::int32_t id = 0; id < static_cast<std::int32_t>(words_.size()); ++id) {
      inside_.push_back(words_.token(id).starts_with("##"));
    }
    for (std::size_t i = 0; i < data.train.size(); ++i) {
      if (data.train.row(i).size() > 2) asking_.push_back(i);
    }
    require(!asking_.empty(), "texts: all to train on are empty");
    bool asks = false;  // with validation_limit, of some held-out texts
    for_held_out([&](const Batch& batch) { asks |= !batch.asked.empty(); });
    require(asks, "texts: all held out are empty");
  }

  MaskedTextTask(const TextData&&, ModelConfig, TrainConfig) = delete;  // data would be gone

  std::size_t examples() const override { return asking_.size(); }

  Validation validate(Engine& engine) const override {
    Tally tally;
    for_held_out([&](const Batch& batch) { tally += engine.evaluate(batch); });
    return {tally, {}};
  }

  // How often each token stands between the first and the last of the training texts.
  std::vector<Baseline> baselines() const override {
    std::vector<std::uint64_t> counts(words_.size());
    for (std::size_t i = 0; i < data_.train.size(); ++i) {
      const auto row = data_.train.row(i);
      for (const std::int32_t token : row.subspan(1, row.size() - 2)) {
        ++counts[static_cast<std::size_t>(token)];
      }
    }
    return {fixed_order("popularity", counts)};
  }

 private:
  std::size_t text_of(std::size_t example) const override { return asking_[example]; }

  void add_row(Batch& batch, std::size_t text, std::size_t epoch) const override {
    const Key key = fold_in(stream_key(train_.seed, Stream::masks), epoch);
    add_masked(batch, data_.train.row(text), fold_in(key, text));
  }

  void add_held_out(Batch& batch, std::size_t text) const override {
    const Key key = stream_key(train_.seed, Stream::validation_masks);
    add_masked(batch, data_.held_out.row(text), fold_in(key, text));
  }

  void add_masked(Batch& batch, std::span<const std::int32_t> tokens, Key key) const {
    const auto inner = tokens.subspan(1, tokens.size() - 2);
    std::vector<std::size_t> begins;  // of what is hidden as one
    for (std::size_t i = 0; i < inner.size(); ++i) {
      const bool goes_on =
          train_.masking == Masking::words && i > 0 && inside_[static_cast<std::size_t>(inner[i])];
      if (!goes_on) begins.push_back(i);
    }
    begins.push_back(inner.size());
    const Key choices = fold_in(key, ~std::uint64_t{0});
    batch.tokens.push_back(tokens.front());
    choose_masks(begins.size() - 1, train_.mask_probability, key, [&](std::size_t u, bool hidden) {
      for (std::size_t i = begins[u]; i < begins[u + 1]; ++i) {
        if (hidden)
          batch.ask(inner[i], shown_token(inner[i], words_.mask(), {0, words_.size()}, train_,
                                          fold_in(choices, i)));
        else
          batch.tokens.push_back(inner[i]);
      }
    });
    batch.tokens.push_back(tokens.back());
    batch.end_row();
  }

  std::vector<bool> inside_;         // of each token: whether it goes on with a word
  std::vector<std::size_t> asking_;  // the texts to train on that are not empty
};

// ================================================================================================
// 19  Training
// ================================================================================================
// A run leaves in its folder:
//   models/       best_model.safetensors (by TrainConfig::best_by), final_model.safetensors,
//                 training_config.json, and item_mappings.json or, of texts, labels.json, vocab.txt
//   checkpoints/  checkpoint_epoch_<n>.safetensors, checkpoint_interrupted.safetensors:
//                 parameters, both moments, counters and curves
//   plots/        training_metrics.json, metrics.csv
//   logs/         training.log
// and continues from the checkpoint that is furthest to the same bits as if it had never stopped. A
// run is not replaced unasked, and if it is, then as a whole: a folder never holds files of two.
// Of several ranks (chapter 16) only rank 0 knows the folder.

namespace detail {

inline constexpr std::string_view best_model_file = "models/best_model.safetensors",
                                  final_model_file = "models/final_model.safetensors",
                                  configuration_file = "models/training_config.json",
                                  metrics_file = "plots/training_metrics.json",
                                  table_file = "plots/metrics.csv", log_file = "logs/training.log";
// Drawn by tools/plots, as .png or .svg.
inline constexpr std::array<std::string_view, 4> picture_files{
    "plots/loss_curve", "plots/accuracy_curve", "plots/combined_metrics", "plots/learning_curve"};
inline constexpr std::string_view confusion_file = "plots/confusion_matrix.png";

// The names of the checkpoints of a run, sorted.
inline std::vector<std::string> checkpoint_files(const Path& output) {
  std::vector<std::string> files;
  if (!path_exists(output / "checkpoints")) return files;
  for (const Path& name : names_in_folder(output / "checkpoints")) {
    const std::string text = path_text(name);
    if (text.starts_with("checkpoint_") && text.ends_with(".safetensors")) {
      files.push_back(join("checkpoints/", text));
    }
  }
  return files;
}

}  // namespace detail

// Whether a folder holds a run worth keeping: a model or a checkpoint.
inline bool holds_run(const Path& output) {
  return path_exists(output / detail::best_model_file) ||
         path_exists(output / detail::final_model_file) ||
         !detail::checkpoint_files(output).empty();
}

// Whether it holds one that a Trainer can resume, or one that was killed before there was a
// checkpoint to resume from.
inline bool can_resume(const Path& output) { return !detail::checkpoint_files(output).empty(); }
inline bool died_early(const Path& output) {
  return holds_run(output) && !can_resume(output) &&
         !path_exists(output / detail::final_model_file);
}

// An evaluation, counting from 1, as a number of epochs, to two places: "0.67", "3".
inline std::string epoch_text(std::size_t evaluation, std::size_t per_epoch) {
  const std::size_t hundredths = (100 * evaluation + per_epoch / 2) / per_epoch;
  std::string text = join(hundredths / 100);
  if (const std::size_t rest = hundredths % 100) {
    text += join(".", rest / 10);
    if (rest % 10 != 0) text += join(rest % 10);
  }
  return text;
}

// What stands beside the curves in training_metrics.json, for pictures; not in checkpoints, from
// which a run may go on in another folder. Files before version 0.10 have none of it.
struct RunFacts {
  std::string data, run;          // Task::data_name(), and the last names of the output folder
  std::optional<Metric> best_by;  // what chose best_epoch
  std::vector<Baseline> baselines;

  void add_to(Json& json) const {
    if (!data.empty()) json.set("data", data);
    if (!run.empty()) json.set("run", run);
    if (best_by) json.set("best_by", enum_name(*best_by));
    if (baselines.empty()) return;
    Json all;
    for (const Baseline& baseline : baselines) {
      Json shares;
      for (std::size_t i = 0; i < top_k.size(); ++i) {
        shares.set(join(top_k[i]), baseline.accuracies[i]);
      }
      all.set(baseline.name, std::move(shares));
    }
    json.set("baselines", std::move(all));
  }

  static RunFacts from_json(const Json& json) {
    RunFacts facts;
    if (const Json* data = json.find("data")) facts.data = data->string();
    if (const Json* run = json.find("run")) facts.run = run->string();
    if (const Json* metric = json.find("best_by")) {
      facts.best_by = enum_value<Metric>(metric->string(), "best_by");
    }
    if (const Json* all = json.find("baselines")) {
      for (const auto& [name, shares] : all->object()) {
        Baseline& baseline = facts.baselines.emplace_back(Baseline{name});
        for (std::size_t i = 0; i < top_k.size(); ++i) {
          const double share = shares.at(join(top_k[i])).number();
          require(share >= 0 && share <= 1, "baselines: \"", shown(name), "\" has ", share,
                  ", expected 0 ... 1");
          baseline.accuracies[i] = share;
        }
      }
    }
    return facts;
  }
};

// One value an evaluation, of which an epoch has one, or some (TrainConfig::eval_every); the arrays
// of training_metrics.json.
struct TrainingMetrics {
  std::vector<double> train_losses, val_losses, learning_rates, epoch_seconds;
  std::array<std::vector<double>, top_k.size()> train_accuracies, val_accuracies;
  std::vector<std::pair<std::string, std::vector<double>>> val_measures;  // of Task::measures()
  std::size_t per_epoch = 1;                                              // evaluations
  std::size_t best_epoch = 0;  // the best evaluation, counting from 1; 0: none yet
  RunFacts facts;

  std::size_t evaluations() const { return train_losses.size(); }

  std::string epoch_text(std::size_t evaluation) const {
    return bert4rec::epoch_text(evaluation, per_epoch);
  }

  // Of an evaluation, counting from 1: the value of a metric, turned so that more is better.
  double quality(Metric metric, std::size_t evaluation) const {
    if (metric == Metric::loss) return -val_losses[evaluation - 1];
    return val_accuracies[static_cast<std::size_t>(metric) - 1][evaluation - 1];
  }

  // "best epoch 42 by top10"
  std::string best_text() const {
    return join("best epoch ", epoch_text(best_epoch),
                facts.best_by ? join(" by ", enum_name(*facts.best_by)) : "");
  }

  Json to_json() const {
    Json json = curves_json();
    facts.add_to(json);
    return json;
  }

  // Without the facts.
  Json curves_json() const {
    const auto by_k = [](const auto& curves) {
      Json json;
      for (std::size_t i = 0; i < top_k.size(); ++i) json.set(join(top_k[i]), curves[i]);
      return json;
    };
    Json json;
    json.set("train_losses", train_losses);
    json.set("val_losses", val_losses);
    json.set("train_accuracies", by_k(train_accuracies));
    json.set("val_accuracies", by_k(val_accuracies));
    if (!val_measures.empty()) {
      Json measures;
      for (const auto& [name, values] : val_measures) measures.set(name, values);
      json.set("val_measures", std::move(measures));
    }
    json.set("learning_rates", learning_rates);
    json.set("epoch_seconds", epoch_seconds);
    if (per_epoch > 1) json.set("evaluations_per_epoch", per_epoch);
    json.set("best_epoch", best_epoch);
    return json;
  }

  // A line for each evaluation, for spreadsheets; best: 1 for the best one so far.
  std::string to_csv() const {
    std::vector<std::pair<std::string, const std::vector<double>*>> columns{
        {"train_loss", &train_losses}, {"val_loss", &val_losses}};
    for (const auto& [of, curves] :
         {std::pair("train", &train_accuracies), std::pair("val", &val_accuracies)}) {
      for (std::size_t i = 0; i < top_k.size(); ++i) {
        columns.emplace_back(join(of, "_top", top_k[i]), &(*curves)[i]);
      }
    }
    for (const auto& [name, values] : val_measures) columns.emplace_back("val_" + name, &values);
    columns.emplace_back("learning_rate", &learning_rates);
    columns.emplace_back("seconds", &epoch_seconds);
    std::string text = "epoch";
    for (const auto& column : columns) text += "," + column.first;
    text += ",best\n";
    for (std::size_t i = 0; i < evaluations(); ++i) {
      text += epoch_text(i + 1);
      for (const auto& column : columns) text += join(",", (*column.second)[i]);
      text += join(",", int{i + 1 == best_epoch}, "\n");
    }
    return text;
  }

  static TrainingMetrics from_json(const Json& json) {
    const auto curve = [](const Json& numbers) {
      std::vector<double> values;
      for (const Json& number : numbers.array()) values.push_back(number.number_or_nan());
      return values;
    };
    TrainingMetrics metrics;
    metrics.train_losses = curve(json.at("train_losses"));
    metrics.val_losses = curve(json.at("val_losses"));
    metrics.learning_rates = curve(json.at("learning_rates"));
    metrics.epoch_seconds = curve(json.at("epoch_seconds"));
    for (std::size_t i = 0; i < top_k.size(); ++i) {
      metrics.train_accuracies[i] = curve(json.at("train_accuracies").at(join(top_k[i])));
      metrics.val_accuracies[i] = curve(json.at("val_accuracies").at(join(top_k[i])));
    }
    if (const Json* measures = json.find("val_measures")) {
      for (const auto& [name, values] : measures->object()) {
        metrics.val_measures.emplace_back(name, curve(values));
      }
    }
    if (const Json* per_epoch = json.find("evaluations_per_epoch")) {
      require(per_epoch->integer() > 1, "evaluations_per_epoch is ", per_epoch->integer(),
              ", expected more than 1");
      metrics.per_epoch = static_cast<std::size_t>(per_epoch->integer());
    }
    metrics.best_epoch = static_cast<std::size_t>(json.at("best_epoch").integer());
    metrics.facts = RunFacts::from_json(json);
    bool same = true;
    const auto compare = [&](const std::vector<double>& values) {
      same = same && values.size() == metrics.evaluations();
    };
    compare(metrics.val_losses), compare(metrics.learning_rates), compare(metrics.epoch_seconds);
    for (const auto& accuracy : metrics.train_accuracies) compare(accuracy);
    for (const auto& accuracy : metrics.val_accuracies) compare(accuracy);
    for (const auto& [name, values] : metrics.val_measures) compare(values);
    require(same, "curves of different lengths");
    const Json known = metrics.to_json();
    for (const auto& member : json.object()) {
      require(known.find(member.first) != nullptr, "unknown field \"", shown(member.first), "\"");
    }
    require(metrics.best_epoch <= metrics.evaluations(), "best_epoch is ", metrics.best_epoch,
            " of ", metrics.evaluations());
    return metrics;
  }
};

inline constexpr std::array<std::pair<State, std::string_view>, 3> state_prefixes{
    {{State::parameters, ""}, {State::first_moment, "adam.m."}, {State::second_moment, "adam.v."}}};

namespace detail {

// Calls write(tensors, metadata) with an engine's parameters, or all its numbers.
template <class Write>
void with_tensors(Engine& engine, bool with_moments, Metadata metadata, Write&& write) {
  std::vector<std::vector<float>> values;
  std::vector<NamedTensor> tensors;
  for (const auto& [state, prefix] : state_prefixes) {
    if (state != State::parameters && !with_moments) break;
    values.emplace_back(engine.table().size());
    engine.read(state, values.back());
    for (const TensorSpec& spec : engine.table()) {
      tensors.push_back({join(prefix, spec.name), spec.shape, values.back().data() + spec.offset});
    }
  }
  metadata["format"] = "pt";  // what Python's loaders expect to find
  metadata["model_config"] = brief_json(engine.config()).text();
  write(tensors, std::move(metadata));
}

}  // namespace detail

// Writes an engine's parameters, or all its numbers, to a safetensors file ...
inline void save_engine(const Path& path, Engine& engine, bool with_moments, Metadata metadata) {
  detail::with_tensors(
      engine, with_moments, std::move(metadata),
      [&](const auto& tensors, Metadata all) { write_safetensors(path, tensors, std::move(all)); });
}

// ... and its parameters to one of a set of files.
inline void save_engine(FileSet& set, std::string_view name, Engine& engine, Metadata metadata) {
  detail::with_tensors(engine, false, std::move(metadata), [&](const auto& tensors, Metadata all) {
    write_safetensors(set, name, tensors, std::move(all));
  });
}

// Throws unless a file holds the tensors of a table, by name and shape, and nothing else. (A
// checkpoint holds the moments too, and may be loaded without them.)
inline void check_tensors(const Safetensors& file, const TensorTable& table, bool with_moments) {
  std::unordered_set<std::string> known;
  for (const auto& [state, prefix] : state_prefixes) {
    for (const TensorSpec& spec : table) {
      const std::string name = join(prefix, spec.name);
      known.insert(name);
      if (state == State::parameters || with_moments) file.check(name, spec.shape);
    }
  }
  for (const std::string& name : file.names()) {
    require(known.contains(name), file.path(), ": tensor \"", shown(name),
            "\" is not one of this model");
  }
}

inline void load_engine(const Safetensors& file, Engine& engine, bool with_moments) {
  check_tensors(file, engine.table(), with_moments);
  std::vector<float> values(engine.table().size());
  for (const auto& [state, prefix] : state_prefixes) {
    if (state != State::parameters && !with_moments) break;
    for (const TensorSpec& spec : engine.table()) {
      file.copy(join(prefix, spec.name), spec.shape, values.data() + spec.offset);
    }
    engine.write(state, values);
  }
}

// A configuration stored in a safetensors file, under "model_config" or "train_config".
template <class Config>
Config stored_config(const Safetensors& file, std::string_view name) {
  const std::string context = join(file.path(), ": ", name);
  const Json json = Json::parse(file.metadata(name), context);
  return in_context(context, [&] { return config_from_json<Config>(json); });
}

// The file of a model in the models folder of a run.
inline Safetensors open_model(const Path& models, std::string_view name = "best_model") {
  settle(detail::folder_of(models.has_filename() ? models : models.parent_path()));
  std::error_code not_seen;  // where "." and links are, which a reader may not be allowed to see
  if (std::filesystem::exists(models / ".." / detail::journal_name, not_seen))
    settle(models / "..");
  settle(models);
  const Path file = path_from(join(name, ".safetensors"));
  require(path_exists(models / file) || !path_exists(models / "models" / file), models,
          ": holds a run, expected its models folder, ", models / "models");
  return Safetensors(models / file);
}

// A trained model from its file, ready to score.
inline std::unique_ptr<Engine> load_model(const Safetensors& file, std::size_t threads = 0,
                                          const EngineMaker& make = make_cpu_engine) {
  TrainConfig train;
  train.threads = threads;
  const auto model = stored_config<ModelConfig>(file, "model_config");
  check_tensors(file, bert4rec_tensors(model), false);  // before memory is taken for them
  file.verify();
  auto engine = make(model, train, Start::zeros);
  load_engine(file, *engine, false);
  return engine;
}

namespace detail {

// An item of item_mappings.json, which must say that it is the next.
inline void read_mapping(JsonReader& reader, const std::string& file, Catalogue& catalogue) {
  const auto number = static_cast<std::int32_t>(catalogue.size());
  int places = 0;
  const auto expect = [&](std::string_view name, std::int64_t expected) {
    const std::int64_t found = reader.integer();
    if (found != expected) reader.error(name, " is ", found, ", expected ", expected);
    ++places;
  };
  Item item = read_item(reader, [&](std::string_view name) {
    if (name == "index")
      expect("index", number);
    else if (name == "token")
      expect("token", token_of(number));
    else
      reader.skip();
  });
  if (places != 2) reader.error("item ", number, " lacks its \"index\" or \"token\"");
  in_context(file, [&] { catalogue.add(std::move(item)); });
}

}  // namespace detail

// The catalogue that a model was trained on, from the item_mappings.json beside its file.
inline Catalogue catalogue_of(const Path& models, const Safetensors& model) {
  const Path path = models / "item_mappings.json";
  const std::string text = read_file(path), file = path_text(path);
  const bool is_sealed = check_seal(text, file);
  Catalogue catalogue;
  std::string data;
  JsonReader reader(text, file);
  reader.object([&](std::string_view name) {
    if (name == "data") {
      data = reader.string();
    } else if (name == "items") {
      reader.array([&] { detail::read_mapping(reader, file, catalogue); });
    } else if (name == "checksum" && is_sealed) {
      reader.skip();
    } else {
      reader.error("unknown field \"", shown(name), "\"");
    }
  });
  reader.end();
  require(data == model.metadata("data"), models,
          ": item_mappings.json and the model are of different runs");
  const std::size_t items = stored_config<ModelConfig>(model, "model_config").num_items;
  require(catalogue.size() == items, models, ": item_mappings.json has ", catalogue.size(),
          " items, the model ", items);
  return catalogue;
}

// Gives a model the sizes of the encoder of another, on whose parameters it is to begin.
inline void take_sizes(ModelConfig& model, const ModelConfig& other) {
  model.hidden_size = other.hidden_size, model.inner_size = other.inner_size;
  model.num_layers = other.num_layers, model.num_heads = other.num_heads;
  model.max_length = other.max_length, model.segments = other.segments;
  model.norm_epsilon = other.norm_epsilon;
  if (other.bigrams > 0) model.bigrams = other.bigrams;  // or they begin here
}

// Begins an engine on the parameters of another model, as far as both have tensors of one name,
// which must have one shape; returns the names of the others, whose initial values stay. The heads
// may differ, but an encoder without a part of what it learned with is another: an error.
inline std::vector<std::string> begin_with(const Safetensors& file, Engine& engine) {
  file.verify();
  const std::vector<std::string> known = file.names();
  for (const std::string& name : known) {
    const bool of_encoder =
        name.starts_with("encoder.") || name.find("embedding") != std::string::npos;
    const auto has_name = [&](const TensorSpec& spec) { return spec.name == name; };
    const bool is_ours = std::any_of(engine.table().begin(), engine.table().end(), has_name);
    require(!of_encoder || is_ours, file.path(), ": tensor \"", name,
            "\" is of an encoder that has more than this one");
  }
  std::vector<float> values(engine.table().size());
  engine.read(State::parameters, values);
  std::vector<std::string> others;
  for (const TensorSpec& spec : engine.table()) {
    const bool found = std::find(known.begin(), known.end(), spec.name) != known.end();
    if (found)
      file.copy(spec.name, spec.shape, values.data() + spec.offset);
    else
      others.push_back(spec.name);
  }
  engine.write(State::parameters, values);
  return others;
}

// How the rows of items that a model does not know begin: as a new model's, or as the mean of all
// that it knows.
enum class NewItems { random, mean };

namespace detail {
template <>
struct EnumNames<NewItems> {
  static constexpr std::array<std::string_view, 2> names{"random", "mean"};
};

// Fills the rows of new items: row i of `now` [num_items,width] is row known[i] of `before`, or new
// where that is -1.
inline void grow_rows(std::span<const float> before, std::span<const std::int32_t> known,
                      NewItems new_items, std::size_t width, std::span<float> now) {
  std::vector<double> mean(width);
  for (std::size_t i = 0; i < before.size(); ++i) mean[i % width] += double(before[i]);
  for (double& value : mean) value *= static_cast<double>(width) / double(before.size());
  for (std::size_t i = 0; i < known.size(); ++i) {
    float* const row = now.data() + i * width;
    if (known[i] >= 0)
      std::copy_n(before.data() + static_cast<std::size_t>(known[i]) * width, width, row);
    else if (new_items == NewItems::mean)
      std::transform(mean.begin(), mean.end(), row, [](double x) { return static_cast<float>(x); });
  }
}

}  // namespace detail

// Begins an engine on a model of the same kind that was trained when there were other items, those
// of `before`: what has a row for each item is matched by their ids, all else is copied. Returns
// how many of the engine's items, those of `now`, the model knows.
inline std::size_t begin_with_items(const Safetensors& file, const Catalogue& before,
                                    Engine& engine, const Catalogue& now, NewItems new_items) {
  file.verify();
  std::vector<std::int32_t> known;  // [num_items], the number that an item had; -1: none
  for (const Item& item : now) {
    known.push_back(std::visit([&](const auto& id) { return before.find(id); }, item.id));
  }
  const auto model = stored_config<ModelConfig>(file, "model_config");
  require(!model.reads_text(), file.path(), ": a model of texts has no items");
  require(before.size() == model.num_items && now.size() == engine.config().num_items, file.path(),
          ": catalogues of ", before.size(), " and ", now.size(), " items, expected ",
          model.num_items, ", as the model has, and ", engine.config().num_items);
  const TensorTable table = bert4rec_tensors(model);
  check_tensors(file, table, false);
  const auto has = std::distance(table.begin(), table.end());
  const auto expected = std::distance(engine.table().begin(), engine.table().end());
  require(has == expected, file.path(), ": a model of ", has, " tensors, expected ", expected,
          ": of the same kind");
  std::vector<float> values(engine.table().size());
  engine.read(State::parameters, values);
  for (const TensorSpec& spec : engine.table()) {
    const auto to = std::span(values).subspan(spec.offset, spec.size);
    if (spec.rows != Rows::tokens) {
      file.copy(spec.name, spec.shape, to.data());
      continue;
    }
    const TensorSpec& old = table.at(spec.name);
    std::vector<float> rows(old.size);
    file.copy(spec.name, old.shape, rows.data());
    const std::size_t width = spec.size / spec.shape[0], special = special_rows * width;
    require(width == old.size / old.shape[0], file.path(), ": rows of ", spec.name, " have ",
            old.size / old.shape[0], " numbers, expected ", width);
    std::copy_n(rows.data(), special, to.data());
    detail::grow_rows(std::span(rows).subspan(special), known, new_items, width,
                      to.subspan(special));
  }
  engine.write(State::parameters, values);
  const auto is_known = [](std::int32_t item) { return item >= 0; };
  return static_cast<std::size_t>(std::count_if(known.begin(), known.end(), is_known));
}

// Whether a run that is resumed may change an option: only where nothing done so far would have
// been another. (Where the learning rate falls towards the end, the number of epochs shapes all.)
inline bool may_change(std::string_view field, const TrainConfig& config) {
  if (field == "epochs") return config.schedule == Schedule::constant;
  return field == "patience" || field == "save_every" || field == "threads" || field == "kernels";
}

struct BatchReport {
  std::size_t epoch, epochs, batch, batches;  // counting from 1; this batch is done
  Tally so_far;                               // since the last evaluation
  double rate;                                // batches a second, since then
};

// Of an evaluation, after so many epochs.
struct EpochReport {
  std::string epoch;  // epoch_text()
  std::size_t epochs;
  Tally train;
  Validation validation;
  double learning_rate, seconds;
  bool improved;
};

// What a program may do while a Trainer runs. All may be empty.
struct TrainerCallbacks {
  std::function<void(const BatchReport&)> on_batch = {};
  std::function<void(const EpochReport&)> on_epoch = {};
  std::function<bool()> should_stop = {};  // asked after a step; true on any rank: save and return
};

class Trainer {
 public:
  // Locks the folder and finds out now whether everything can be written. Throws if not all ranks,
  // which must outlive the trainer, have the same settings and data.
  Trainer(std::unique_ptr<Task> task, TrainConfig train, Path output,
          const EngineMaker& make = make_cpu_engine, Collective& ranks = alone())
      : ranks_(ranks),
        train_((validate(train), train)),
        output_(std::move(output)),
        task_(std::move(task)) {
    require(task_->examples() > 0, "there is nothing to train on");
    if (is_first()) prepare_folder();
    for (const std::string& name : task_->measures()) metrics_.val_measures.push_back({name, {}});
    metrics_.facts = {task_->data_name(), last_names(output_, 2), train_.best_by, {}};
    const auto parts = static_cast<std::size_t>(1 / train_.eval_every + 0.5);
    metrics_.per_epoch = std::clamp<std::size_t>(parts, 1, batches_per_epoch());
    engine_ = make(task_->model(), train_, Start::random);
    engine_->train_with(ranks_);
    require_agreement();
    for (Batch* batch : {&batch_, &next_batch_}) {
      batch->reserve(std::min(train_.batch_size, task_->examples()), task_->model().max_length);
    }
  }

  // The short way in: the task on `data`, which must outlive the trainer.
  Trainer(const Dataset& data, const ModelConfig& model, const TrainConfig& train, Path output,
          const EngineMaker& make = make_cpu_engine, Collective& ranks = alone())
      : Trainer(make_task(data, model, train), train, std::move(output), make, ranks) {}
  Trainer(const Dataset&&, ModelConfig, TrainConfig, Path, const EngineMaker& = make_cpu_engine,
          Collective& = alone()) = delete;  // data would be gone

  const Task& task() const { return *task_; }
  Engine& engine() { return *engine_; }
  const TrainingMetrics& metrics() const { return metrics_; }
  std::size_t batches_per_epoch() const {
    return (task_->examples() + train_.batch_size - 1) / train_.batch_size;
  }

  // Continues from the checkpoint that has seen most steps; returns its path. Throws if there is
  // none, or if it was made with other settings or other data; the trainer is of no use then. Ranks
  // but the first get their state when they run(), and no path.
  Path resume() {
    if (!is_first()) {
      continues_ = true;
      return {};
    }
    const Safetensors file(furthest_checkpoint());
    file.verify();
    require(file.metadata("data") == task_->fingerprint(), file.path(),
            ": made from other data (other items, users or histories)");
    const auto model = stored_config<ModelConfig>(file, "model_config");
    const auto train = stored_config<TrainConfig>(file, "train_config");
    in_context(path_text(file.path()), [&] {
      require_same(to_json(task_->model()), to_json(model));
      require_same(to_json(train_), to_json(train));
      read_progress(stored_json(file, "progress"));
      const std::size_t per_epoch = metrics_.per_epoch;
      take_curves(stored_json(file, "training_metrics"));
      require(metrics_.per_epoch == per_epoch, "training_metrics: ", metrics_.per_epoch,
              " evaluations an epoch, expected ", per_epoch);
      require(batches_done_ <= part_end() - part_begin(), "progress: batch ", batches_done_, " of ",
              part_end() - part_begin());
      std::vector<std::string> measures;
      for (const auto& [name, values] : metrics_.val_measures) measures.push_back(name);
      require(measures == task_->measures(), "training_metrics: val_measures are not those of ",
              enum_name(task_->model().task));
      const std::size_t done = metrics_.evaluations(), all = train_.epochs * metrics_.per_epoch;
      require(all > done || (all == done && batches_done_ == 0), "has seen ",
              metrics_.epoch_text(done), batches_done_ > 0 ? " epochs and a part" : " epochs",
              ", more than epochs ", train_.epochs);
    });
    load_engine(file, *engine_, true);
    continues_ = true;
    unsaved_.reset();
    const auto begun = file.metadata().find("arithmetic");
    if (begun != file.metadata().end()) begun_in_ = begun->second;
    return file.path();
  }

  // What decides the bits of a run beside its settings: the arithmetic of the engine, and how many
  // ranks add up. If that of the run that was resumed is another, it goes on, but not to the bits
  // that it would have had.
  std::string arithmetic() const { return engine_->arithmetic() + on_ranks(); }
  const std::string& begun_in() const { return begun_in_; }

  // Lets run() replace the run that the folder holds.
  Trainer& overwrite() {
    overwrites_ = true;
    return *this;
  }

  // Trains to the end: true. Or until should_stop: false, after saving where it was. Throws if the
  // folder holds a run and neither resume() nor overwrite() was called.
  bool run(const TrainerCallbacks& callbacks = {}) {
    if (is_first()) {
      require(continues_ || overwrites_ || !holds_run(output_), output_,
              ": holds a run already; resume() continues it, overwrite() replaces it");
      metrics_.facts.baselines = task_->baselines();  // if it throws, nothing was replaced
      write_descriptions(!continues_);
      log_start();
    }
    if (ranks_.size() > 1) share_state();
    continues_ = true;
    if (unsaved_) save_part();
    while (!finished()) {
      if (!train_part(callbacks)) {
        save_checkpoint("interrupted");
        return false;
      }
      finish_part(callbacks);
      if (!finished() && stopping(callbacks)) {
        save_checkpoint("interrupted");
        return false;
      }
    }
    if (is_first()) {
      save_curves();  // those that are there may be of another end, or lost
      save_engine(output_ / detail::final_model_file, *engine_, false, description());
    }
    return true;
  }

 private:
  void prepare_folder() {
    make_folder(output_);
    lock_.emplace(output_);
    settle(*lock_);
    remove_stale_temporaries(output_);
    for (const char* folder : {"models", "checkpoints", "plots", "logs"}) {
      make_folder(output_ / folder);
      tidy(output_ / folder);
      AtomicFile probe(output_ / folder / "probe");  // never committed, so it leaves nothing
    }
  }

  // Another program may write a set of its own into a folder of this one, and hold its lock.
  static void tidy(const Path& folder) {
    const std::vector<Path> names = names_in_folder(folder);
    const bool unfinished = std::any_of(names.begin(), names.end(), [](const Path& name) {
      return name == detail::journal_name || detail::is_temporary_name(path_text(name));
    });
    if (!unfinished) return;
    const FolderLock lock(folder);
    settle(lock);
    remove_stale_temporaries(folder);
  }

  // ---- Among ranks -----------------------------------------------------------------------------

  bool is_first() const { return ranks_.rank() == 0; }

  // Behind the name of what computes: nothing for a process that is alone.
  std::string on_ranks() const {
    return ranks_.size() == 1 ? "" : join(", ", ranks_.size(), " ranks");
  }

  // Ranks with other settings or data would train something else, or wait for each other for ever.
  // All see what differs.
  void require_agreement() const {
    Json own;
    own.set("rank", ranks_.rank());
    own.set("ranks", ranks_.size());
    own.set("version", BERT4REC_VERSION_STRING);
    own.set("arithmetic", engine_->arithmetic());
    own.set("data", task_->fingerprint());
    for (const Json& config : {to_json(task_->model()), comparable(to_json(train_))}) {
      for (const auto& [name, value] : config.object()) own.set(name, value);
    }
    const std::vector<std::string> all = ranks_.gather(own.text());
    require(all.size() == ranks_.size(), all.size(), " ranks answer, expected ", ranks_.size());
    const Json first = Json::parse(all.front(), "rank 0");
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      const Json theirs = Json::parse(all[rank], join("rank ", rank));
      for (const auto& [name, value] : theirs.object()) {
        const std::string expected = name == "rank" ? join(rank) : first.at(name).text();
        require(value.text() == expected, "rank ", rank, ": ", name, " is ", value.text(),
                ", expected ", expected, name == "rank" ? "" : " as on rank 0");
      }
    }
  }

  // All ranks go on where rank 0 stands.
  void share_state() {
    const auto begins = ranks_.gather(continues_ ? "resumes" : "begins anew");
    for (std::size_t rank = 0; rank < begins.size(); ++rank) {
      require(begins[rank] == begins[0], "rank ", rank, " ", begins[rank], ", but rank 0 ",
              begins[0]);
    }
    if (!continues_) return;
    const std::string progress_text = ranks_.gather(progress().text()).front();
    const std::string metrics_text = ranks_.gather(metrics_.curves_json().text()).front();
    if (!is_first()) {
      read_progress(Json::parse(progress_text, "rank 0"));
      take_curves(Json::parse(metrics_text, "rank 0"));
    }
    std::vector<float> values(engine_->table().size());
    for (const auto& [state, prefix] : state_prefixes) {
      engine_->read(state, values);
      broadcast(ranks_, values);
      engine_->write(state, values);
    }
  }

  void take_curves(const Json& json) {
    RunFacts facts = std::move(metrics_.facts);
    metrics_ = TrainingMetrics::from_json(json);
    metrics_.facts = std::move(facts);
  }

  // Engines that round differently, or a sum with other bits on some rank, would drift apart.
  void require_same_parameters(const std::string& epoch) {
    std::vector<float> values(engine_->table().size());
    engine_->read(State::parameters, values);
    const std::string_view bytes(reinterpret_cast<const char*>(values.data()),
                                 values.size() * sizeof(float));
    const auto sums = ranks_.gather(detail::hexadecimal(checksum(bytes)));
    for (std::size_t rank = 0; rank < sums.size(); ++rank) {
      require(sums[rank] == sums[0], "rank ", rank,
              " has other parameters than rank 0 after epoch ", epoch);
    }
  }

  // Whether any rank is asked to stop.
  bool stopping(const TrainerCallbacks& callbacks) const {
    float asked = callbacks.should_stop && callbacks.should_stop() ? 1.0f : 0.0f;
    ranks_.sum({&asked, 1});
    return asked > 0;
  }

  // ---- The run ---------------------------------------------------------------------------------

  // All epochs done, or no evaluation better for as long as patience lasts.
  bool finished() const {
    const std::size_t done = metrics_.evaluations();
    return done >= train_.epochs * metrics_.per_epoch ||
           (train_.patience > 0 && done >= metrics_.best_epoch + train_.patience);
  }

  // The part of an epoch, up to an evaluation, that is under way: which epoch, and its first batch
  // and the one behind its last.
  std::size_t epoch() const { return metrics_.evaluations() / metrics_.per_epoch; }
  std::size_t part_begin() const { return begin_of(metrics_.evaluations() % metrics_.per_epoch); }
  std::size_t part_end() const { return begin_of(metrics_.evaluations() % metrics_.per_epoch + 1); }
  std::size_t begin_of(std::size_t part) const {
    return batches_per_epoch() * part / metrics_.per_epoch;
  }

  // The steps of the part under way, from where it stands. False: asked to stop.
  bool train_part(const TrainerCallbacks& callbacks) {
    const std::size_t epoch = this->epoch(), batches = batches_per_epoch();
    const std::size_t first = part_begin(), end = part_end();
    const auto start = std::chrono::steady_clock::now();
    const double seconds_before = part_seconds_;
    std::vector<std::size_t> order(task_->examples());
    std::iota(order.begin(), order.end(), std::size_t{0});
    shuffle(order, fold_in(stream_key(train_.seed, Stream::shuffle), epoch));
    if (first + batches_done_ < end) make_batch(first + batches_done_, order);
    while (first + batches_done_ < end) {
      const std::size_t number = first + batches_done_;
      const std::uint64_t step = epoch * batches + number;
      std::swap(batch_, next_batch_);
      std::exception_ptr without_next;  // the step counts whatever happens to the batch after it
      part_metrics_ += engine_->train(batch_, step, learning_rate(step), [&] {
        try {
          if (number + 1 < end) make_batch(number + 1, order);
        } catch (...) {
          without_next = std::current_exception();
        }
      });
      ++batches_done_;
      if (without_next) std::rethrow_exception(without_next);
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      part_seconds_ = seconds_before + passed.count();
      if (callbacks.on_batch) {
        const double rate = static_cast<double>(batches_done_) / std::max(part_seconds_, 1e-9);
        callbacks.on_batch({epoch + 1, train_.epochs, number + 1, batches, part_metrics_, rate});
      }
      if (stopping(callbacks)) return false;
    }
    return true;
  }

  // next_batch_: so many batches of the epoch came before it.
  void make_batch(std::size_t number, std::span<const std::size_t> order) {
    next_batch_.clear();
    const std::size_t begin = number * train_.batch_size;
    for (const std::size_t example :
         order.subspan(begin).first(std::min(train_.batch_size, order.size() - begin))) {
      task_->add_example(next_batch_, example, epoch());
    }
    task_->finish_batch(next_batch_, epoch() * batches_per_epoch() + number);
  }

  // What throws stands before the curves and the place in the part change, which they do together.
  void finish_part(const TrainerCallbacks& callbacks) {
    const Validation validation = task_->validate(*engine_);
    const double rate = learning_rate(epoch() * batches_per_epoch() + part_end() - 1);
    require(validation.measures.size() == metrics_.val_measures.size(), "a task of ",
            metrics_.val_measures.size(), " measures found ", validation.measures.size());
    TrainingMetrics next = metrics_;
    next.train_losses.push_back(part_metrics_.loss());
    next.val_losses.push_back(validation.tally.loss());
    next.learning_rates.push_back(rate);
    next.epoch_seconds.push_back(part_seconds_);
    for (std::size_t i = 0; i < top_k.size(); ++i) {
      next.train_accuracies[i].push_back(part_metrics_.accuracy(i));
      next.val_accuracies[i].push_back(validation.tally.accuracy(i));
    }
    for (std::size_t i = 0; i < validation.measures.size(); ++i) {
      next.val_measures[i].second.push_back(validation.measures[i]);
    }
    const std::size_t done = next.evaluations(), best = next.best_epoch;
    const double highest = best == 0 ? std::nan("") : next.quality(train_.best_by, best);
    const bool improved = std::isnan(highest) || next.quality(train_.best_by, done) > highest;
    if (improved) next.best_epoch = done;
    const EpochReport report{next.epoch_text(done), train_.epochs, part_metrics_, validation, rate,
                             part_seconds_,         improved};
    if (ranks_.size() > 1) require_same_parameters(report.epoch);
    if (is_first()) unsaved_ = report;
    metrics_ = std::move(next);
    batches_done_ = 0, part_metrics_ = {}, part_seconds_ = 0;
    if (is_first()) save_part();
    if (callbacks.on_epoch) callbacks.on_epoch(report);
  }

  // What came of an evaluation. If it throws (a disk may be full), the next run() begins with it.
  void save_part() {
    const std::size_t done = metrics_.evaluations();
    save_curves(unsaved_->improved);
    if (done % (train_.save_every * metrics_.per_epoch) == 0 || finished()) {
      save_checkpoint(join("epoch_", unsaved_->epoch));
      std::error_code ignored;  // overtaken, if there was one
      std::filesystem::remove(checkpoint_path("interrupted"), ignored);
    }
    log_epoch(*unsaved_);
    unsaved_.reset();
  }

  // The curves tell which evaluation was the best: so its model goes with them.
  void save_curves(bool with_best_model = false) {
    FileSet set(*lock_);
    if (with_best_model) save_engine(set, detail::best_model_file, *engine_, description());
    set.write(detail::metrics_file, sealed(metrics_.to_json().text(2)) + "\n");
    set.write(detail::table_file, metrics_.to_csv());
    set.commit();
  }

  double learning_rate(std::uint64_t step) const {
    return learning_rate_at(train_, step, train_.epochs * batches_per_epoch());
  }

  Path checkpoint_path(std::string_view name) const {
    return output_ / "checkpoints" / join("checkpoint_", name, ".safetensors");
  }

  Metadata description() const {
    return {{"train_config", comparable(brief_json(train_)).text()},
            {"data", task_->fingerprint()}};
  }

  void save_checkpoint(std::string_view name) {
    if (!is_first()) return;
    Metadata metadata = description();
    metadata["checkpoint_format"] = join(checkpoint_format);
    metadata["arithmetic"] = arithmetic();
    metadata["progress"] = progress().text();
    metadata["training_metrics"] = metrics_.curves_json().text();
    save_engine(checkpoint_path(name), *engine_, true, std::move(metadata));
  }

  Json progress() const {
    Json json;
    json.set("batches_done", batches_done_);
    json.set("loss_sum", part_metrics_.loss_sum);
    json.set("count", part_metrics_.count);
    json.set("hits",
             std::vector<std::uint64_t>(part_metrics_.hits.begin(), part_metrics_.hits.end()));
    json.set("seconds", part_seconds_);
    return json;
  }

  void read_progress(const Json& json) {
    const auto count = [](const Json& number) {
      constexpr std::int64_t most = 1'000'000'000'000'000;  // of anything in an epoch
      const std::int64_t value = number.integer();
      require(value >= 0 && value <= most, "progress: a count is ", value, ", expected 0 ... ",
              most);
      return static_cast<std::uint64_t>(value);
    };
    batches_done_ = count(json.at("batches_done"));
    part_metrics_.loss_sum = json.at("loss_sum").number();
    part_metrics_.count = count(json.at("count"));
    const Json::Array& hits = json.at("hits").array();
    require(hits.size() == top_k.size(), "progress: expected ", top_k.size(), " hit counts");
    std::transform(hits.begin(), hits.end(), part_metrics_.hits.begin(), count);
    for (const std::uint64_t number : part_metrics_.hits) {
      require(number <= part_metrics_.count, "progress: ", number, " hits of ",
              part_metrics_.count);
    }
    part_seconds_ = json.at("seconds").number();
  }

  // The training configuration without what must not change the bytes of a model: threads, kernels,
  // and how often to save.
  static Json comparable(const Json& config) {
    Json kept;
    for (const auto& [name, value] : config.object()) {
      if (name != "threads" && name != "kernels" && name != "save_every") kept.set(name, value);
    }
    return kept;
  }

  // Fields that `theirs` lacks, as a checkpoint of an older version does, have their defaults.
  void require_same(const Json& ours, const Json& theirs) const {
    for (const auto& [field, value] : ours.object()) {
      if (may_change(field, train_)) continue;
      const std::string stored = theirs.at(field).text();
      require(stored == value.text(), "made with ", field, " ", stored, ", now ", value.text());
    }
  }

  static Json stored_json(const Safetensors& file, std::string_view name) {
    return Json::parse(file.metadata(name), name);
  }

  // Whatever the files are called, and whenever they were written.
  Path furthest_checkpoint() const {
    using Progress = std::pair<std::size_t, std::uint64_t>;  // evaluations, batches since
    std::optional<std::pair<Progress, Path>> furthest;
    for (const std::string& name : detail::checkpoint_files(output_)) {
      const Safetensors file(output_ / path_from(name));
      const Progress progress = in_context(path_text(file.path()), [&] {
        check_format(file);
        const auto metrics = TrainingMetrics::from_json(stored_json(file, "training_metrics"));
        const std::int64_t batches = stored_json(file, "progress").at("batches_done").integer();
        return Progress(metrics.evaluations(), batches);
      });
      if (!furthest || progress > furthest->first) furthest.emplace(progress, file.path());
    }
    require(furthest.has_value(), output_ / "checkpoints",
            ": no checkpoint to resume from; overwrite() begins anew");
    return furthest->second;
  }

  // Versions 0.1 and 0.2 wrote no number.
  static void check_format(const Safetensors& file) {
    const auto found = file.metadata().find("checkpoint_format");
    if (found == file.metadata().end()) return;
    std::uint64_t number = 0;
    const char *begin = found->second.data(), *end = begin + found->second.size();
    std::from_chars(begin, end, number);
    const bool known = number <= checkpoint_format && found->second == join(number);
    require(known, "checkpoint_format is ", shown(found->second), ", made by a later version? ",
            "Expected at most ", checkpoint_format);
  }

  // The set of files that says what the run is. A new run takes those of an older one away with it.
  void write_descriptions(bool anew) const {
    FileSet set(*lock_);
    set.write(detail::configuration_file, sealed(configuration().text(2)) + "\n");
    task_->write_files(set);
    if (anew || !finished()) set.remove(detail::final_model_file);
    if (anew && overwrites_) {  // (what the set writes stays)
      set.remove(detail::mappings_file), set.remove(detail::labels_file);
      set.remove(detail::vocabulary_file);
    }
    if (anew) {
      for (const std::string& name : detail::checkpoint_files(output_)) set.remove(name);
      for (const std::string_view name : detail::picture_files) {
        for (const char* ending : {".png", ".svg"}) set.remove(join(name, ending));
      }
      for (const std::string_view name :
           {detail::best_model_file, detail::metrics_file, detail::table_file, detail::log_file,
            detail::confusion_file}) {
        set.remove(name);
      }
    }
    set.commit();
  }

  Json configuration() const {
    Json config;
    config.set("version", BERT4REC_VERSION_STRING);
    config.set("engine", engine_->name() + on_ranks());
    config.set("compiler", compiler_name());
    config.set("system", system_name());
    config.set("parameters", engine_->table().size());
    config.set("model", to_json(task_->model()));
    config.set("train", to_json(train_));
    config.set("data", task_->facts());
    return config;
  }

  // Appends a line with the time before it.
  void append_log(std::string_view text) const {
    const std::tm utc = detail::os::utc(std::time(nullptr));
    char stamp[32];
    std::strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
    const std::string line = join(stamp, " ", text, "\n");
    const Path path = output_ / detail::log_file;
    const detail::FileHandle log(path, detail::os::Use::append, "open");
    log.write(line, path);
  }

  void log_start() const {
    append_log(join("bert4rec.hpp ", BERT4REC_VERSION_STRING, " ", engine_->name(), on_ranks(),
                    ", ", compiler_name(), ", ", system_name(), ", after epoch ",
                    metrics_.epoch_text(metrics_.evaluations())));
  }

  void log_epoch(const EpochReport& report) const {
    std::string line = join("epoch ", report.epoch, "/", report.epochs, " train_loss ",
                            report.train.loss(), " val_loss ", report.validation.tally.loss());
    for (std::size_t i = 0; i < top_k.size(); ++i) {
      line += join(" val_top", top_k[i], " ", report.validation.tally.accuracy(i));
    }
    for (const auto& [name, values] : metrics_.val_measures) {
      line += join(" val_", name, " ", values.back());
    }
    append_log(join(line, " learning_rate ", report.learning_rate, " seconds ", report.seconds,
                    report.improved ? " best" : ""));
  }

  Collective& ranks_;
  TrainConfig train_;
  Path output_;
  std::optional<FolderLock> lock_;  // of rank 0
  std::unique_ptr<Task> task_;
  std::unique_ptr<Engine> engine_;
  Batch batch_, next_batch_;
  static constexpr std::uint64_t checkpoint_format = 1;
  bool continues_ = false, overwrites_ = false;  // what the folder holds
  std::string begun_in_ = "float32";             // also of checkpoints before 0.8
  // Where the run stands: what was evaluated in metrics_, and the part of an epoch under way.
  TrainingMetrics metrics_;
  std::size_t batches_done_ = 0;
  Tally part_metrics_;
  double part_seconds_ = 0;
  std::optional<EpochReport> unsaved_;  // of rank 0: an evaluation of which no file tells yet
};

// ================================================================================================
// 20  Use: titles, labels
// ================================================================================================

// ---- Engines for many threads ------------------------------------------------------------------

// Lends an engine to each of many threads: the first comer gets the one that is given, with its
// threads, and others at the same time get twins of it, on the same parameters, with one thread
// each. Where there can be no twins, on a GPU, they wait for one another.
class SharedEngine {
 public:
  explicit SharedEngine(std::unique_ptr<Engine> engine) : first_(engine.get()) {
    idle_.push_back(first_);
    engines_.push_back(std::move(engine));
  }

  const ModelConfig& config() const { return first_->config(); }
  Engine& first() { return *first_; }

  // use(engine), whose result it returns.
  template <class Use>
  auto lend(Use&& use) {
    const Loan loan{*this, take()};
    return use(*loan.engine);
  }

 private:
  struct Loan {
    SharedEngine& lender;
    Engine* engine;
    ~Loan() { lender.take_back(engine); }
  };

  Engine* take() {
    std::unique_lock lock(mutex_);
    if (idle_.empty() && has_twins_) {
      try {
        make_twin();
      } catch (const std::bad_alloc&) {
        has_twins_ = false;  // those that there are do the work
      }
    }
    returned_.wait(lock, [this] { return !idle_.empty(); });
    Engine* const engine = idle_.back();
    idle_.pop_back();
    return engine;
  }

  void make_twin() {
    engines_.reserve(engines_.size() + 1);
    idle_.reserve(engines_.size() + 1);  // so that take_back() cannot fail
    std::unique_ptr<Engine> twin = first_->twin(1);
    has_twins_ = twin != nullptr;
    if (!has_twins_) return;
    idle_.push_back(twin.get());
    engines_.push_back(std::move(twin));
  }

  void take_back(Engine* engine) {
    {
      const std::lock_guard lock(mutex_);
      // The first, which has more threads, is lent first.
      idle_.insert(engine == first_ ? idle_.end() : idle_.begin(), engine);
    }
    returned_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<Engine*> idle_;
  Engine* const first_;
  bool has_twins_ = true;  // until one was asked for in vain
};

// ---- Recommendation ----------------------------------------------------------------------------
// The history, a [MASK] behind its newest item, and the items that score highest there among those
// the history does not hold. Ties: the lower item number first.

// What to recommend. Scores are probabilities among all items, whatever is left out.
struct RecommendOptions {
  std::size_t count = 10;
  bool keep_seen = false;                         // items of the history may come again
  std::vector<std::int32_t> candidates = {};      // where there are any: of these alone
  std::function<bool(std::int32_t)> filter = {};  // where there is one: if it is true of the item
};

namespace detail {

// The items that options allow [num_items]; empty if all of them.
inline std::vector<std::uint8_t> allowed_items(const RecommendOptions& options,
                                               std::size_t num_items) {
  std::vector<std::uint8_t> allowed;
  if (options.candidates.empty() && !options.filter) return allowed;
  allowed.assign(num_items, options.candidates.empty());
  for (const std::int32_t item : options.candidates) {
    require(item >= 0 && static_cast<std::size_t>(item) < num_items, "item ", item,
            " of the candidates is not among the ", num_items, " there are");
    allowed[static_cast<std::size_t>(item)] = 1;
  }
  if (!options.filter) return allowed;
  for (std::size_t item = 0; item < num_items; ++item) {
    if (allowed[item] != 0) allowed[item] = options.filter(static_cast<std::int32_t>(item));
  }
  return allowed;
}

inline std::vector<std::vector<Recommendation>> recommend_allowed(
    Engine& engine, std::span<const ItemSpan> histories, const RecommendOptions& options,
    Allowed allowed) {
  constexpr std::size_t most = 512;  // at a time
  const std::vector<ItemSpan> nothing(options.keep_seen ? most : 0);
  std::vector<std::vector<Recommendation>> all;
  Batch batch;
  for (std::size_t begin = 0; begin < histories.size(); begin += most) {
    const auto some = histories.subspan(begin, std::min(most, histories.size() - begin));
    batch.clear();
    for (const ItemSpan history : some) {
      require_items(history, engine.config().num_items);
      add_next_item_row(batch, history, engine.config());
    }
    const auto seen = options.keep_seen ? std::span(nothing).first(some.size()) : some;
    for (auto& best : engine.top(batch, seen, options.count, allowed)) {
      all.push_back(std::move(best));
    }
  }
  return all;
}

}  // namespace detail

// For each history the best items that are not in it.
inline std::vector<std::vector<Recommendation>> recommend_all(Engine& engine,
                                                              std::span<const ItemSpan> histories,
                                                              const RecommendOptions& options) {
  const auto allowed = detail::allowed_items(options, engine.config().num_items);
  return detail::recommend_allowed(engine, histories, options, allowed);
}

// A trained model with the catalogue it was trained on: all that is needed to serve. Many threads
// may use one.
class Recommender {
 public:
  // `models`: the folder that a Trainer wrote. A server that asks from many threads needs only one
  // for each call: threads = 1.
  explicit Recommender(const Path& models, std::string_view name = "best_model",
                       std::size_t threads = 0, const EngineMaker& make = make_cpu_engine) {
    const Safetensors file = open_model(models, name);
    catalogue_ = catalogue_of(models, file);
    engine_ = std::make_unique<SharedEngine>(load_model(file, threads, make));
  }

  const Catalogue& catalogue() const { return catalogue_; }
  // For one thread, while no other is in any function here.
  Engine& engine() { return engine_->first(); }

  // The best items that are not in the history (items of catalogue()).
  std::vector<Recommendation> recommend(ItemSpan history, const RecommendOptions& options) const {
    return recommend_all(std::span(&history, 1), options).front();
  }
  std::vector<Recommendation> recommend(ItemSpan history, std::size_t count) const {
    return recommend(history, RecommendOptions{count});
  }

  // The same for many histories at once, in less time where there are many items.
  std::vector<std::vector<Recommendation>> recommend_all(std::span<const ItemSpan> histories,
                                                         const RecommendOptions& options) const {
    const auto allowed = detail::allowed_items(options, catalogue_.size());  // may call the caller
    return engine_->lend([&](Engine& engine) {
      return detail::recommend_allowed(engine, histories, options, allowed);
    });
  }

  // What each item of the history does for one that is recommended: by how much the natural
  // logarithm of its probability falls where that item is left out, each by a pass of its own.
  // Negative: it rises; 0: so old that it is in no window. (A probability below 1e-37 counts as
  // that.)
  std::vector<double> reasons(ItemSpan history, std::int32_t item) const {
    const std::size_t n = history.size(), L = engine_->config().max_length;
    const std::size_t oldest = n - std::min(n, L);   // what is older is in no window ...
    const ItemSpan recent = newest(history, L + 1);  // ... but one, if another is left out
    std::vector<std::vector<std::int32_t>> without(n - oldest);
    std::vector<ItemSpan> histories{history};
    for (std::size_t i = oldest; i < n; ++i) {
      std::vector<std::int32_t>& rest = without[i - oldest];
      rest.assign(recent.begin(), recent.end());
      rest.erase(rest.end() - static_cast<std::ptrdiff_t>(n - i));
      histories.push_back(rest);
    }
    const RecommendOptions options{.count = 1, .keep_seen = true, .candidates = {item}};
    const auto found = recommend_all(histories, options);
    const auto log_of = [](const std::vector<Recommendation>& picks) {
      return detail::natural_log(std::max(1e-37, picks.front().score));
    };
    std::vector<double> falls(n);
    for (std::size_t i = oldest; i < n; ++i) {
      falls[i] = log_of(found[0]) - log_of(found[1 + i - oldest]);
    }
    return falls;
  }

  // The vector of a history; its inner products with those of items are the scores (chapter 16).
  std::vector<float> vector(ItemSpan history) const {
    detail::require_items(history, catalogue_.size());
    Batch batch;
    add_next_item_row(batch, history, engine_->config());
    return engine_->lend([&](Engine& engine) {
      std::vector<float> vector(engine.vector_size());
      engine.user_vectors(batch, vector);
      return vector;
    });
  }

  // The `count` items whose vectors have the largest cosines with that of an item, itself left out.
  std::vector<Recommendation> similar(std::int32_t item, std::size_t count) const {
    return engine_->lend([&](Engine& engine) { return most_similar(engine, item, count); });
  }

 private:
  std::vector<Recommendation> most_similar(Engine& engine, std::int32_t item,
                                           std::size_t count) const {
    detail::require_items({&item, 1}, catalogue_.size());
    constexpr std::size_t block = 1024;  // items
    const std::size_t D = engine.vector_size();
    const auto& kernels = detail::kernels<float>();
    std::vector<float> vector(D), others;
    engine.item_vectors(static_cast<std::size_t>(item), vector);
    const auto square = [&](const float* of) { return kernels.sum_of_squares(of, D); };
    BestItems best(count);
    for (std::size_t begin = 0; begin < catalogue_.size(); begin += block) {
      others.resize(std::min(block, catalogue_.size() - begin) * D);
      engine.item_vectors(begin, others);
      for (std::size_t at = 0; at < others.size(); at += D) {
        const auto other = static_cast<std::int32_t>(begin + at / D);
        const float* const of_other = others.data() + at;
        const double squares = double(square(vector.data())) * double(square(of_other));
        const double product = double(kernels.dot(vector.data(), of_other, D));
        require(std::isfinite(squares) && std::isfinite(product), "the vectors of items ", item,
                " and ", other, " are too long for a cosine");
        const double cosine = product / std::max(std::sqrt(squares), DBL_MIN);  // of zeros: 0
        if (other != item && best.takes(cosine)) best.add(other, cosine);
      }
    }
    return best.sorted();
  }

  std::unique_ptr<SharedEngine> engine_;
  Catalogue catalogue_;
};

// ---- Classification ----------------------------------------------------------------------------

// A trained classifier with its vocabulary and its labels:
//   Classifier classifier("output/models");
//   const std::vector<float> p = classifier.probabilities("...");
//   const std::string& label = classifier.labels()[best_label(p)];
// Many threads may use one.
class Classifier {
 public:
  // `models`: the folder that a Trainer with a ClassificationTask wrote.
  explicit Classifier(const Path& models, std::string_view name = "best_model",
                      std::size_t threads = 0, const EngineMaker& make = make_cpu_engine)
      : Classifier(models, open_model(models, name), threads, make) {}

  const std::vector<std::string>& labels() const { return labels_; }
  const WordPiece& words() const { return words_; }
  // For one thread, while no other is in any function here.
  Engine& engine() { return engine_->first(); }

  // Of each label.
  std::vector<float> probabilities(std::string_view text) const {
    return std::move(probabilities({&text, 1}).front());
  }

  // [texts,C]: of many texts, in less time.
  std::vector<std::vector<float>> probabilities(std::span<const std::string_view> texts) const {
    std::vector<std::vector<float>> all;
    constexpr std::size_t block = 512;
    for (std::size_t first = 0; first < texts.size(); first += block) {
      add_probabilities(texts.subspan(first, std::min(block, texts.size() - first)), all);
    }
    return all;
  }

 private:
  void add_probabilities(std::span<const std::string_view> texts,
                         std::vector<std::vector<float>>& all) const {
    const std::size_t C = labels_.size();
    Texts rows;
    Batch batch;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      rows.add(words_, texts[i], 0, engine_->config().max_length);
      add_text_row(batch, rows.row(i));
    }
    add_bigrams(batch, engine_->config());
    std::vector<float> scores(texts.size() * C);
    engine_->lend([&](Engine& engine) { engine.score(batch, scores); });
    for (std::size_t i = 0; i < texts.size(); ++i) {
      float* row = scores.data() + i * C;
      const float sum = detail::kernels<float>().softmax(row, 1.0f, C).sum;
      require(std::isfinite(sum), "text ", all.size(), ": a score of the model is NaN or inf");
      all.emplace_back(row, row + C);
    }
  }

  Classifier(const Path& models, const Safetensors& file, std::size_t threads,
             const EngineMaker& make)
      : words_(WordPiece::load(models / "vocab.txt")),
        engine_(std::make_unique<SharedEngine>(load_model(file, threads, make))) {
    const Path path = models / "labels.json";
    const Json json = read_sealed_json(path);
    in_context(path_text(path), [&] {
      for (const Json& label : json.at("labels").array()) labels_.push_back(label.string());
      require(json.at("data").string() == file.metadata("data"),
              "and the model are of different runs");
      const std::string sum = detail::hexadecimal(checksum(read_file(models / "vocab.txt")));
      require(json.at("vocabulary").string() == sum, "and vocab.txt are of different runs");
    });
    const ModelConfig& config = engine_->config();
    require(config.task == TaskKind::classification, file.path(), ": a model for ",
            enum_name(config.task), ", expected one for classification");
    require(labels_.size() == config.classes && words_.size() == config.num_items, models, ": ",
            labels_.size(), " labels and ", words_.size(), " tokens, the model has ",
            config.classes, " and ", config.num_items);
  }

  WordPiece words_;
  std::unique_ptr<SharedEngine> engine_;
  std::vector<std::string> labels_;
};

// The label with the highest probability; of equal ones the first.
inline std::size_t best_label(std::span<const float> probabilities) {
  const auto best = std::max_element(probabilities.begin(), probabilities.end());
  return static_cast<std::size_t>(best - probabilities.begin());
}

// ================================================================================================
// 21  Hugging Face files
// ================================================================================================
// BERT as the library Transformers has it: a folder with config.json and model.safetensors.
//   const HuggingFaceFolder bert("chinese-roberta-wwm-ext");
//   ModelConfig model = bert.config();
//   model.task = TaskKind::classification, model.classes = 10, model.max_length = 128;
//   const auto engine = make_cpu_engine(model, train, Start::random);
//   for (const std::string& name : bert.load(*engine)) std::cout << name << " is new\n";
//   ...
//   save_hugging_face("mine", *engine, labels, "vocab.txt");
// Chapters 10 to 13 with Architecture::paper are BERT, so both compute the same numbers. What else
// a config.json may ask for is refused by name. Three tables say what stands where; how they are
// walked, appendix A.

namespace detail {

// Tensors of theirs and ours whose names go on with "weight" or "bias"; # is the number of a layer.
struct TensorNames {
  std::string_view theirs;
  std::string_view ours;            // empty: nothing here has a use for it
  std::size_t part = 0, parts = 1;  // theirs is one of so many equal parts of our rows
  bool is_written = !ours.empty();  // or else only read, where a file has it
};

inline constexpr TensorNames hugging_face_tensors[] = {
    {"bert.embeddings.word_embeddings.", "item_embedding."},
    {"bert.embeddings.position_embeddings.", "position_embedding."},
    {"bert.embeddings.token_type_embeddings.", "segment_embedding."},
    {"bert.embeddings.LayerNorm.", "embedding_norm."},
    {"bert.encoder.layer.#.attention.self.query.", "encoder.layers.#.self_attn.in_proj_", 0, 3},
    {"bert.encoder.layer.#.attention.self.key.", "encoder.layers.#.self_attn.in_proj_", 1, 3},
    {"bert.encoder.layer.#.attention.self.value.", "encoder.layers.#.self_attn.in_proj_", 2, 3},
    {"bert.encoder.layer.#.attention.self.in_proj_", "encoder.layers.#.self_attn.in_proj_", 0, 1,
     false},
    {"bert.encoder.layer.#.attention.self.Wqkv.", "encoder.layers.#.self_attn.in_proj_", 0, 1,
     false},
    {"bert.encoder.layer.#.attention.output.dense.", "encoder.layers.#.self_attn.out_proj."},
    {"bert.encoder.layer.#.attention.output.LayerNorm.", "encoder.layers.#.norm1."},
    {"bert.encoder.layer.#.intermediate.dense.", "encoder.layers.#.linear1."},
    {"bert.encoder.layer.#.output.dense.", "encoder.layers.#.linear2."},
    {"bert.encoder.layer.#.output.LayerNorm.", "encoder.layers.#.norm2."},
    {"bert.pooler.dense.", "pooler.dense."},
    {"classifier.", "classifier."},
    {"cls.predictions.transform.dense.", "head.dense."},
    {"cls.predictions.transform.LayerNorm.", "head.norm."},
    {"cls.predictions.", "output."},   // the bias; the weight is the table of tokens,
    {"cls.predictions.decoder.", ""},  // of which this is a second copy
    {"cls.seq_relationship.", ""},     // whether two sentences follow one another
};

// Fields of config.json, ours, and what a missing one means to Transformers.
struct ConfigNames {
  enum Ours { same, no_more, free };  // beside theirs, where a checkpoint is loaded
  std::string_view theirs, ours, usual;
  Ours may_be = same;
};

inline constexpr ConfigNames hugging_face_fields[] = {
    {"vocab_size", "num_items", "30522", ConfigNames::no_more},
    {"hidden_size", "hidden_size", "768"},
    {"num_hidden_layers", "num_layers", "12"},
    {"num_attention_heads", "num_heads", "12"},
    {"intermediate_size", "inner_size", "3072"},
    {"type_vocab_size", "segments", "2"},
    {"layer_norm_eps", "norm_epsilon", "1e-12"},
    {"max_position_embeddings", "max_length", "512", ConfigNames::no_more},
    {"hidden_dropout_prob", "dropout", "0.1", ConfigNames::free},
    {"attention_probs_dropout_prob", "attention_dropout", "0.1", ConfigNames::free},
    {"initializer_range", "initializer_range", "0.02", ConfigNames::free},
};

// Fields that have one value here, as has one that is missing, and what another would ask for.
struct FixedField {
  std::string_view name, value, otherwise;
};

inline constexpr FixedField hugging_face_fixed[] = {
    {"model_type", "\"bert\"", "another network (RoBERTa counts positions from its padding on)"},
    {"hidden_act", "\"gelu\"", "another activation than GELU by erf"},
    {"position_embedding_type", "\"absolute\"", "attention that knows of distances"},
    {"is_decoder", "false", "attention to earlier tokens alone"},
    {"add_cross_attention", "false", "attention to a second text"},
    {"tie_word_embeddings", "true", "an output with a table of its own"},
    {"problem_type", "\"single_label_classification\"", "a loss other than softmax"},
};

struct SharedTensor;

}  // namespace detail

// The model that a config.json describes: a classifier, or else one that names hidden tokens.
ModelConfig config_from_hugging_face(const Json& json);

// The labels of a classifier, in order. Without names they are LABEL_0, LABEL_1 as in Transformers.
std::vector<std::string> labels_from_hugging_face(const Json& json);

// A config.json for a model.
Json config_for_hugging_face(ModelConfig config, const std::vector<std::string>& labels);

// A folder with a checkpoint, of which only the header is held in memory.
class HuggingFaceFolder {
 public:
  explicit HuggingFaceFolder(const Path& folder) : HuggingFaceFolder(folder, read_json(folder)) {}

  // What stands there: the caller may change task, classes, dropout and initializer_range, and have
  // fewer positions (max_length) and tokens (num_items), the first ones.
  const ModelConfig& config() const { return config_; }
  const std::vector<std::string>& labels() const { return labels_; }  // none but of a classifier

  // Copies what the engine's model has: the encoder, which must be whole, and of its head what the
  // file has. Returns the names of our tensors that the file lacks: those keep their values. What
  // only BERT has is left alone; a tensor that BERT lacks is an error.
  std::vector<std::string> load(Engine& engine) const;

 private:
  using Names = std::map<std::string, std::string, std::less<>>;

  HuggingFaceFolder(const Path& folder, const Json& json);
  static Json read_json(const Path& folder);
  static const Path& checked(const Path& folder);
  void require_same(ModelConfig model) const;
  Names names_in_file() const;
  void copy(const detail::SharedTensor& tensor, const std::string& name, float* to) const;
  std::vector<std::string> names_of_heads(std::span<const detail::SharedTensor> absent,
                                          const ModelConfig& model) const;

  Safetensors file_;
  ModelConfig config_;
  std::vector<std::string> labels_;
};

// Writes such a folder: config.json, model.safetensors, and vocab.txt if one is given. Files of
// these names are replaced together, others stay. (BERT has segments: a model without gets one, of
// zeros.)
void save_hugging_face(const Path& folder, Engine& engine,
                       const std::vector<std::string>& labels = {}, const Path& vocabulary = {});

// The text of a vocab.txt, which must fit the model.
std::string vocabulary_text(const Path& path, const ModelConfig& config);

// ================================================================================================
// A  Appendix to chapters 4, 5 and 21: bodies of JSON, safetensors and Hugging Face files
// ================================================================================================
// How the classes declared there do what they offer, and the numbers in decimal that JSON needs.

// ---- Numbers in decimal ------------------------------------------------------------------------
// libc++ has std::from_chars for double since LLVM 20, and Apple's may not be called by a program
// that is to run on a system before macOS 26. So with libc++ parse_decimal() stands in. It works in
// whole numbers of any length, and so rounds correctly in any locale.

namespace detail {

// A whole number to the base 2^32: the lowest limb first, and no zeros on top.
using Limbs = std::vector<std::uint32_t>;

inline constexpr std::uint32_t powers_of_ten[10] = {
    1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000};

inline void multiply_add(Limbs& limbs, std::uint32_t factor, std::uint32_t summand) {
  std::uint64_t carry = summand;
  for (std::uint32_t& limb : limbs) {
    carry += std::uint64_t{limb} * factor;
    limb = static_cast<std::uint32_t>(carry);
    carry >>= 32;
  }
  if (carry > 0) limbs.push_back(static_cast<std::uint32_t>(carry));
}

// Rounds down; returns whether there was a remainder.
inline bool divide(Limbs& limbs, std::uint32_t divisor) {
  std::uint64_t rest = 0;
  for (std::size_t i = limbs.size(); i-- > 0;) {
    rest = rest << 32 | limbs[i];
    limbs[i] = static_cast<std::uint32_t>(rest / divisor);
    rest %= divisor;
  }
  while (!limbs.empty() && limbs.back() == 0) limbs.pop_back();
  return rest > 0;
}

// whole * 10^power and, with `more`, something less than one unit of `whole` above it.
struct Decimal {
  Limbs whole;
  std::int64_t power = 0, digits = 0;  // digits: how many `whole` has
  bool more = false;
};

// Reads digits (. digits)? ([eE] [+-]? digits)?, where the point may stand at either end. Returns
// where that ends: `first` if there is no digit. Where two doubles meet halfway is a number of at
// most 767 digits, so that of digits after the 800th only matters whether all are 0.
inline const char* read_decimal(const char* first, const char* last, Decimal& decimal) {
  const char* at = first;
  bool point = false, any = false;
  for (; at != last && ((*at >= '0' && *at <= '9') || (*at == '.' && !point)); ++at) {
    if (*at == '.') {
      point = true;
      continue;
    }
    any = true;
    const bool kept = decimal.digits < 800;
    if (kept) multiply_add(decimal.whole, 10, static_cast<std::uint32_t>(*at - '0'));
    decimal.digits += kept && !decimal.whole.empty();
    decimal.more = decimal.more || (!kept && *at != '0');
    decimal.power += int{!kept} - int{point};
  }
  if (!any) return first;
  if (at == last || (*at != 'e' && *at != 'E')) return at;
  const char* exponent = at + 1;
  const bool minus = exponent != last && *exponent == '-';
  if (minus || (exponent != last && *exponent == '+')) ++exponent;
  constexpr std::uint64_t most = 1'000'000'000'000'000'000;
  std::uint64_t power = most;  // stays if there are more digits than 64 bits hold
  const char* end = std::from_chars(exponent, last, power).ptr;
  if (end == exponent) return at;
  const auto shift = static_cast<std::int64_t>(std::min(power, most));
  decimal.power += minus ? -shift : shift;
  return end;
}

// The nearest Real, of two as near the even one: 0 or infinity beyond what Real holds.
template <class Real>
Real nearest(Decimal decimal) {
  auto& [whole, power, digits, more] = decimal;
  if (whole.empty() || digits + power < -400) return 0;
  if (digits + power > 400) return std::numeric_limits<Real>::infinity();
  for (std::int64_t step = 0; power > 0; power -= step) {
    step = std::min<std::int64_t>(power, 9);
    multiply_add(whole, powers_of_ten[step], 0);
  }
  // Multiplied by 2^scale, which leaves more than 64 bits of the quotient, since 10 < 2^4.
  const auto zeros = static_cast<std::size_t>(3 - power / 8);
  whole.insert(whole.begin(), zeros, 0);
  for (std::int64_t step = 0; power < 0; power += step) {
    step = std::min<std::int64_t>(-power, 9);
    more = divide(whole, powers_of_ten[step]) || more;
  }
  // The last bit of the result is worth 2^unit; one bit more is kept, which is worth a half of it.
  using Limits = std::numeric_limits<Real>;
  const int scale = static_cast<int>(32 * zeros);
  const int bits = static_cast<int>(32 * whole.size()) - std::countl_zero(whole.back());
  const int unit = std::max(bits - scale, Limits::min_exponent) - Limits::digits;
  for (int excess = unit + scale - 1; excess > 0; excess -= 31) {
    more = divide(whole, std::uint32_t{1} << std::min(excess, 31)) || more;
  }
  whole.resize(2);
  const std::uint64_t halves = std::uint64_t{whole[1]} << 32 | whole[0];
  const bool up = (halves & 1) != 0 && (more || (halves & 2) != 0);
  return std::ldexp(static_cast<Real>((halves >> 1) + up), unit);
}

// What std::from_chars does with a decimal number; "inf" and "nan" are none.
template <class Real>
std::from_chars_result parse_decimal(const char* first, const char* last, Real& value) {
  const bool minus = first != last && *first == '-';
  Decimal decimal;
  const char* end = read_decimal(first + minus, last, decimal);
  if (end == first + minus) return {first, std::errc::invalid_argument};
  const bool zero = decimal.whole.empty();
  const Real found = nearest<Real>(std::move(decimal));
  if (std::isinf(found) || (found == 0 && !zero)) return {end, std::errc::result_out_of_range};
  value = minus ? -found : found;
  return {end, std::errc()};
}

// std::from_chars, for integers too, with every standard library; "inf" and "nan" are refused.
template <class Number>
std::from_chars_result parse_number(const char* first, const char* last, Number& value) {
#ifdef _LIBCPP_VERSION
  constexpr bool ours = std::is_floating_point_v<Number>;
#else
  constexpr bool ours = false;
#endif
  if constexpr (ours) {
    return parse_decimal(first, last, value);
  } else {
    const char* digit = first + (first != last && *first == '-');
    if (digit != last && *digit > '9') return {first, std::errc::invalid_argument};
    return std::from_chars(first, last, value);
  }
}

}  // namespace detail

// ---- The reader --------------------------------------------------------------------------------

inline char JsonReader::peek() {
  while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  return at_ < text_.size() ? text_[at_] : '\0';
}

template <class OnMember>
void JsonReader::object(OnMember&& on_member) {
  const std::size_t outer = names_.size();
  list('{', '}', "an object", [&] {
    if (peek() != '"') unexpected("a name in quotes");
    const std::string_view name = string();
    keep_name(name);
    expect(':', "':' after a name");
    on_member(name);
  });
  forget_names(outer);
}

template <class OnElement>
void JsonReader::list(char open, char close, std::string_view what, OnElement&& on_element) {
  expect(open, what);
  if (++depth_ > max_depth) error("nested deeper than ", max_depth, " levels");
  if (!accept(close)) {
    do on_element();
    while (accept(','));
    if (!accept(close)) unexpected(join("',' or '", close, "'"));
  }
  --depth_;
}

inline bool JsonReader::accept(char c) {
  if (peek() != c || at_ >= text_.size()) return false;
  ++at_;
  return true;
}

inline void JsonReader::expect(char c, std::string_view expected) {
  if (!accept(c)) unexpected(expected);
}

inline void JsonReader::literal(std::string_view word) {
  peek();
  if (text_.substr(at_, word.size()) != word) unexpected(word);
  at_ += word.size();
}

inline void JsonReader::end() {
  if (peek() != '\0' || at_ < text_.size()) unexpected("the end of the text");
}

template <class... Parts>
void JsonReader::error(const Parts&... parts) const {
  const std::string place = line_ == 0 ? std::string(file_) : join(file_, ":", line_);
  fail(place, ": byte ", at_ + 1, ": ", parts...);
}

inline void JsonReader::unexpected(std::string_view expected) {
  if (at_ >= text_.size()) error("expected ", expected, ", found the end of the text");
  const auto c = static_cast<unsigned char>(text_[at_]);
  if (c >= 0x20 && c < 0x7f) error("expected ", expected, ", found '", text_[at_], "'");
  error("expected ", expected, ", found byte ", static_cast<int>(c));
}

inline void JsonReader::keep_name(std::string_view name) {
  if (name.data() == decoded_.data()) {
    name = *decoded_names_.emplace_back(std::make_unique<std::string>(name));
  }
  names_.push_back(name);
}

// Those of the innermost object, from `outer` on, which must differ. Few are compared each with
// each, which is quicker than sorting them.
inline void JsonReader::forget_names(std::size_t outer) {
  const auto begin = names_.begin() + static_cast<std::ptrdiff_t>(outer), end = names_.end();
  auto twice = end;
  if (end - begin > 16) {
    std::sort(begin, end);
    twice = std::adjacent_find(begin, end);
  } else {
    for (auto name = begin; name != end && twice == end; ++name) {
      if (std::find(begin, name, *name) != name) twice = name;
    }
  }
  if (twice != end) error("name \"", shown(*twice), "\" stands twice in an object");
  names_.erase(begin, end);
}

inline std::string_view JsonReader::string() {
  if (peek() != '"') unexpected("a string");
  const std::size_t start = ++at_;
  while (at_ < text_.size()) {  // the common case: plain ASCII, no escape, nothing to copy
    const auto c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') return text_.substr(start, at_++ - start);
    if (c < 0x20 || c >= 0x80 || c == '\\') break;
    ++at_;
  }
  return decode_string(start);
}

inline std::string_view JsonReader::decode_string(std::size_t start) {
  decoded_.assign(text_, start, at_ - start);
  for (;;) {
    if (at_ >= text_.size()) unexpected("'\"' at the end of a string");
    const auto c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') break;
    if (c < 0x20) error("control character ", static_cast<int>(c), " in a string; write it as \\u");
    if (c == '\\') {
      ++at_;
      decode_escape();
    } else {
      const std::size_t length = detail::utf8_length(text_.substr(at_));
      if (length == 0) error("invalid UTF-8");
      decoded_.append(text_, at_, length);
      at_ += length;
    }
  }
  ++at_;
  return decoded_;
}

inline void JsonReader::decode_escape() {
  static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
  const char c = at_ < text_.size() ? text_[at_] : '\0';
  if (const std::size_t i = letters.find(c); c != '\0' && i != letters.npos) {
    decoded_ += meanings[i];
    ++at_;
    return;
  }
  if (c != 'u') unexpected("one of \" \\ / b f n r t u after a backslash");
  ++at_;
  unsigned code = hex4();
  if (code >= 0xDC00 && code < 0xE000) error("second half of a surrogate pair without the first");
  if (code >= 0xD800 && code < 0xDC00) {
    if (text_.substr(at_, 2) != "\\u") error("first half of a surrogate pair without the second");
    at_ += 2;
    const unsigned low = hex4();
    if (low < 0xDC00 || low >= 0xE000) error("bad second half of a surrogate pair");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  append_utf8(code);
}

inline unsigned JsonReader::hex4() {
  unsigned code = 0;
  const char* begin = text_.data() + at_;
  const char* end = begin + std::min<std::size_t>(4, text_.size() - at_);
  if (std::from_chars(begin, end, code, 16).ptr != begin + 4)
    error("expected \\u and 4 hex digits");
  at_ += 4;
  return code;
}

inline void JsonReader::append_utf8(unsigned code) {
  const auto byte = [&](unsigned bits) { decoded_ += static_cast<char>(bits); };
  if (code < 0x80) return byte(code);
  if (code < 0x800) return byte(0xC0 | code >> 6), byte(0x80 | (code & 63));
  if (code < 0x10000) {
    return byte(0xE0 | code >> 12), byte(0x80 | (code >> 6 & 63)), byte(0x80 | (code & 63));
  }
  byte(0xF0 | code >> 18), byte(0x80 | (code >> 12 & 63));
  byte(0x80 | (code >> 6 & 63)), byte(0x80 | (code & 63));
}

inline void JsonReader::digits() {
  if (at_ >= text_.size() || !is_digit(text_[at_])) unexpected("a digit");
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
}

// -? (0 | [1-9] digits) (. digits)? ([eE] [+-]? digits)?
inline std::string_view JsonReader::number_text() {
  const char first = peek();
  if (first != '-' && !is_digit(first)) unexpected("a number");
  const std::size_t start = at_;
  const auto next_is = [&](char a, char b) {
    return at_ < text_.size() && (text_[at_] == a || text_[at_] == b);
  };
  if (first == '-') ++at_;
  if (next_is('0', '0')) {
    ++at_;
  } else {
    digits();
  }
  if (next_is('.', '.')) {
    ++at_;
    digits();
  }
  if (next_is('e', 'E')) {
    ++at_;
    if (next_is('+', '-')) ++at_;
    digits();
  }
  return text_.substr(start, at_ - start);
}

inline std::int64_t JsonReader::integer() {
  peek();
  const char *begin = text_.data() + at_, *end = text_.data() + text_.size();
  std::int64_t value = 0;
  const auto [stop, problem] = std::from_chars(begin, end, value);
  const char* first_digit = begin + (begin != end && *begin == '-');
  const bool leading_zero = stop - first_digit > 1 && *first_digit == '0';
  const bool goes_on = stop != end && (*stop == '.' || *stop == 'e' || *stop == 'E');
  if (problem == std::errc() && !leading_zero && !goes_on) {
    at_ += static_cast<std::size_t>(stop - begin);
    return value;
  }
  error("expected an integer of at most 64 bits, found ", number_text().substr(0, 40));
}

inline double JsonReader::number() {
  const std::string_view found = number_text();
  double value = 0;
  const auto problem = detail::parse_number(found.data(), found.data() + found.size(), value).ec;
  if (problem == std::errc::result_out_of_range) {
    if (!is_tiny(found)) error("number too large: ", found.substr(0, 40));
    return 0.0;
  }
  return value;
}

// Of a number outside the range of double: is it too small (else too large)? Decides by the power
// of ten of its first digit that is not 0.
inline bool JsonReader::is_tiny(std::string_view number) {
  const std::size_t e = std::min(number.find_first_of("eE"), number.size());
  const std::string_view mantissa = number.substr(0, e);
  const auto point = static_cast<std::int64_t>(std::min(mantissa.find('.'), e));
  const auto first = static_cast<std::int64_t>(mantissa.find_first_of("123456789"));
  std::string_view exponent = number.substr(std::min(e + 1, number.size()));
  if (exponent.starts_with('+')) exponent.remove_prefix(1);
  std::int64_t power = 0;
  const auto end = exponent.data() + exponent.size();
  if (std::from_chars(exponent.data(), end, power).ec == std::errc::result_out_of_range) {
    return exponent.starts_with('-');
  }
  constexpr std::int64_t beyond = 1'000'000'000'000'000'000;  // any text; the sum cannot overflow
  return std::clamp(power, -beyond, beyond) + point - first < 0;
}

inline bool JsonReader::boolean() {
  const char first = peek();
  if (first != 't' && first != 'f') unexpected("true or false");
  literal(first == 't' ? "true" : "false");
  return first == 't';
}

inline std::string_view JsonReader::skip() {
  const char first = peek();
  const std::size_t start = at_;
  switch (first) {
    case '{':
      object([&](std::string_view) { skip(); });
      break;
    case '[':
      array([&] { skip(); });
      break;
    case '"':
      string();
      break;
    case 't':
    case 'f':
      boolean();
      break;
    case 'n':
      null();
      break;
    default:
      if (first != '-' && !is_digit(first)) unexpected("a value");
      number();
  }
  return text_.substr(start, at_ - start);
}

// ---- The tree ----------------------------------------------------------------------------------

template <class... Types>
std::variant<Types...> detail::Variant<Types...>::copied(const Base& other) {
  return std::visit(
      []<class Type>(const Type& value) {
        Type copy = value;
        return Base(std::in_place_type<Type>, std::move(copy));
      },
      other);
}

template <class Type>
const Type& Json::get(std::string_view expected) const {
  const Type* value = std::get_if<Type>(&value_);
  if (value == nullptr) fail("expected ", expected, ", found ", shown(text(), 40));
  return *value;
}

inline double Json::number() const {
  const auto* whole = std::get_if<std::int64_t>(&value_);
  return whole ? static_cast<double>(*whole) : get<double>("a number");
}

inline const Json* Json::find(std::string_view name) const {
  for (const auto& [key, value] : object()) {
    if (key == name) return &value;
  }
  return nullptr;
}

inline const Json& Json::at(std::string_view name) const {
  const Json* member = find(name);
  require(member != nullptr, "missing field \"", name, "\"");
  return *member;
}

inline void Json::set(std::string_view name, Json value) {
  if (is_null()) value_ = Object{};
  if (find(name) != nullptr) fail("the object has a member \"", name, "\" already");
  std::get<Object>(value_).emplace_back(name, std::move(value));
}

inline Json Json::parse(std::string_view text, std::string_view file, std::size_t line) {
  JsonReader reader(text, file, line);
  reader.skip_byte_order_mark();
  Json value = read(reader);
  reader.end();
  return value;
}

inline Json Json::read(JsonReader& reader) {
  switch (reader.peek()) {
    case '{': {
      Object members;
      reader.object([&](std::string_view name) {
        members.emplace_back(name, Json());
        members.back().second = read(reader);
      });
      return members;
    }
    case '[': {
      Array elements;
      reader.array([&] { elements.push_back(read(reader)); });
      return elements;
    }
    case '"':
      return reader.string();
    case 't':
    case 'f':
      return reader.boolean();
    case 'n':
      return reader.null(), Json();
    default: {
      const std::string_view word = reader.skip();
      std::int64_t whole = 0;
      const auto end = word.data() + word.size();
      const auto [stop, problem] = std::from_chars(word.data(), end, whole);
      if (stop == end && problem == std::errc()) return whole;
      return JsonReader(word).number();
    }
  }
}

inline std::string Json::text(int indent) const {
  std::string out;
  write(out, indent, 0);
  return out;
}

inline void Json::write_string(std::string& out, std::string_view value) {
  out += '"';
  for (std::size_t at = 0, length = 1; at < value.size(); at += length) {
    const char c = value[at];
    length = std::max<std::size_t>(detail::utf8_length(value.substr(at)), 1);
    if (c == '"' || c == '\\') {
      out += '\\', out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      static constexpr char hex[] = "0123456789abcdef";
      out += "\\u00", out += hex[c >> 4], out += hex[c & 15];
    } else if (length == 1 && static_cast<unsigned char>(c) >= 0x80) {
      out += "\\ufffd";  // not UTF-8 (a name of a folder may be so), which no reader would take
    } else {
      out += value.substr(at, length);
    }
  }
  out += '"';
}

inline void Json::write(std::string& out, int indent, int depth) const {
  const auto new_line = [&](int level) {
    if (indent > 0) out += '\n', out.append(static_cast<std::size_t>(indent * level), ' ');
  };
  const auto list = [&](char open, char close, const auto& elements, const auto& write_element) {
    out += open;
    for (std::size_t i = 0; i < elements.size(); ++i) {
      if (i > 0) out += indent > 0 ? "," : ", ";
      new_line(depth + 1);
      write_element(elements[i]);
    }
    if (!elements.empty()) new_line(depth);
    out += close;
  };
  if (const auto* flag = std::get_if<bool>(&value_)) {
    out += *flag ? "true" : "false";
  } else if (const auto* whole = std::get_if<std::int64_t>(&value_)) {
    detail::append_number(out, *whole);
  } else if (const auto* real = std::get_if<double>(&value_)) {
    if (!std::isfinite(*real))
      out += "null";
    else
      detail::append_number(out, *real);
    if (*real == 0 && std::signbit(*real)) out += ".0";  // "-0" would be read as an integer
  } else if (const auto* words = std::get_if<std::string>(&value_)) {
    write_string(out, *words);
  } else if (const auto* elements = std::get_if<Array>(&value_)) {
    // A list of plain values stays on one line.
    const bool flat = std::none_of(elements->begin(), elements->end(), [](const Json& element) {
      return std::holds_alternative<Array>(element.value_) ||
             std::holds_alternative<Object>(element.value_);
    });
    if (flat) indent = 0;
    list('[', ']', *elements, [&](const Json& e) { e.write(out, indent, depth + 1); });
  } else if (const auto* members = std::get_if<Object>(&value_)) {
    list('{', '}', *members, [&](const auto& member) {
      write_string(out, member.first);
      out += ": ";
      member.second.write(out, indent, depth + 1);
    });
  } else {
    out += "null";
  }
}

// ---- Safetensors -------------------------------------------------------------------------------

inline std::uint64_t checksum(const Metadata& metadata) {
  std::uint64_t sum = checksum(std::string_view());
  for (const auto& [name, text] : metadata) {
    if (name != "checksum") sum = checksum(text, checksum(name, sum));
  }
  return sum;
}

namespace detail {

inline std::string_view bytes_of(const NamedTensor& tensor) {
  const std::size_t count = checked_product(tensor.shape, tensor.name);
  return {reinterpret_cast<const char*>(tensor.data), count * sizeof(float)};
}

}  // namespace detail

inline std::string safetensors_head(std::span<const NamedTensor> tensors,
                                    const Metadata& metadata) {
  Json::Object header{{"__metadata__", Json::Object()}};
  for (const auto& [name, text] : metadata) header[0].second.set(name, text);
  std::size_t end = 0;
  for (const NamedTensor& tensor : tensors) {
    const std::size_t begin = end;
    end += checked_product(tensor.shape, tensor.name) * sizeof(float);
    Json entry;
    entry.set("dtype", "F32");
    entry.set("shape", tensor.shape);
    entry.set("data_offsets", std::vector<std::size_t>{begin, end});
    header.emplace_back(tensor.name, std::move(entry));
  }
  std::string text = Json(std::move(header)).text();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the numbers are aligned
  const std::uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + text;
}

namespace detail {

// Calls write(bytes) for all of a file, piece by piece.
template <class Write>
void write_tensors(std::span<const NamedTensor> tensors, Metadata metadata, Write&& write) {
  std::uint64_t sum = checksum(metadata);
  for (const NamedTensor& tensor : tensors) sum = checksum(bytes_of(tensor), sum);
  metadata["checksum"] = hexadecimal(sum);
  write(safetensors_head(tensors, metadata));
  for (const NamedTensor& tensor : tensors) write(bytes_of(tensor));
}

}  // namespace detail

inline void write_safetensors(const Path& path, std::span<const NamedTensor> tensors,
                              Metadata metadata) {
  AtomicFile file(path);
  detail::write_tensors(tensors, std::move(metadata),
                        [&](std::string_view bytes) { file.write(bytes); });
  file.commit();
}

inline void write_safetensors(FileSet& set, std::string_view name,
                              std::span<const NamedTensor> tensors, Metadata metadata) {
  detail::write_tensors(tensors, std::move(metadata),
                        [&](std::string_view bytes) { set.write(name, bytes); });
}

namespace detail {

// The float that 16 bits stand for: 1 bit of sign, 5 of exponent, 10 of fraction (IEEE 754 half).
inline float widen_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half} >> 15 << 31;
  const std::uint32_t exponent = half >> 10 & 31u, fraction = half & 1023u;
  if (exponent == 0) {  // fraction 2^-24
    const float size = static_cast<float>(fraction) * 0x1p-24f;
    return sign == 0 ? size : -size;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + 127 - 15;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

// The upper half of a float (bfloat16).
inline float widen_bfloat(std::uint16_t upper) {
  return std::bit_cast<float>(std::uint32_t{upper} << 16);
}

}  // namespace detail

inline Safetensors::Safetensors(const Path& path) : file_(path) {
  std::uint64_t size = 0;
  require(file_.size() >= 8, path, ": too short for a safetensors file (", file_.size(), " bytes)");
  file_.read_at(0, reinterpret_cast<char*>(&size), 8);
  require(size <= 100'000'000 && size <= file_.size() - 8, path, ": header size ", size,
          " does not fit a file of ", file_.size(), " bytes: truncated, or not a safetensors file");
  numbers_begin_ = 8 + size;
  std::string header(static_cast<std::size_t>(size), '\0');
  file_.read_at(8, header.data(), header.size());
  const std::string name = join(path, ": safetensors header");
  JsonReader reader(header, name);
  if (!header.starts_with('{')) reader.unexpected("'{'");
  read_header(reader);
  check_layout();
}

inline void Safetensors::read_header(JsonReader& reader) {
  reader.object([&](std::string_view name) {
    if (name == "__metadata__") {
      reader.object([&](std::string_view key) {
        std::string& text = metadata_[std::string(key)];
        text = reader.string();
      });
    } else {
      const std::string key(name);
      tensors_.emplace(key, read_entry(reader, key));
    }
  });
  reader.end();
}

inline Safetensors::Entry Safetensors::read_entry(JsonReader& reader, const std::string& name) {
  const std::string tensor = join("tensor \"", shown(name), "\"");
  const auto size = [&] {
    const std::int64_t number = reader.integer();
    if (number < 0) reader.error(tensor, ": negative size");
    return static_cast<std::size_t>(number);
  };
  Entry entry;
  std::vector<std::size_t> offsets;
  bool has_shape = false;
  reader.object([&](std::string_view field) {
    if (field == "dtype") {
      entry.dtype = reader.string();
    } else if (field == "shape") {
      has_shape = true;
      reader.array([&] {
        if (entry.shape.size() == most_dimensions) {
          reader.error(tensor, ": more than ", most_dimensions, " dimensions");
        }
        entry.shape.push_back(size());
      });
    } else if (field == "data_offsets") {
      reader.array([&] {
        if (offsets.size() == 2) reader.error(tensor, ": data_offsets must be two numbers");
        offsets.push_back(size());
      });
    } else {
      reader.skip();
    }
  });
  if (entry.dtype.empty()) reader.error(tensor, ": missing field \"dtype\"");
  if (!has_shape) reader.error(tensor, ": missing field \"shape\"");
  if (offsets.size() != 2) reader.error(tensor, ": data_offsets must be two numbers");
  entry.begin = offsets[0], entry.end = offsets[1];
  const std::size_t held = entry.end - entry.begin, element = element_size(entry.dtype);
  if (entry.begin > entry.end || (element > 0 && held != byte_size(reader, entry, element))) {
    reader.error(tensor, ": data_offsets disagree with the shape");
  }
  return entry;
}

// In bytes; 0 for a type that is not known here.
inline std::size_t Safetensors::element_size(std::string_view dtype) {
  static constexpr std::pair<std::string_view, std::size_t> sizes[] = {
      {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"I64", 8}, {"I32", 4}, {"I16", 2},
      {"I8", 1},  {"U64", 8}, {"U32", 4},  {"U16", 2}, {"U8", 1},  {"BOOL", 1}};
  const auto found = std::find_if(std::begin(sizes), std::end(sizes),
                                  [&](const auto& size) { return size.first == dtype; });
  return found == std::end(sizes) ? 0 : found->second;
}

inline std::size_t Safetensors::byte_size(JsonReader& reader, const Entry& entry,
                                          std::size_t element) {
  std::vector<std::size_t> factors = entry.shape;
  factors.push_back(element);
  try {
    return checked_product(factors, "shape");
  } catch (const Error& error) {
    reader.error(error.what());
  }
}

inline void Safetensors::check_layout() {
  for (const auto& [name, entry] : tensors_) ranges_.emplace_back(entry.begin, entry.end);
  std::sort(ranges_.begin(), ranges_.end());
  std::size_t end = 0;
  for (const auto& range : ranges_) {
    require(range.first == end, path(), ": tensors overlap or leave a hole at byte ", end);
    end = range.second;
  }
  const std::uint64_t held = file_.size() - numbers_begin_;
  require(end == held, path(), ": holds ", held, " bytes of numbers where its header speaks of ",
          end, ": truncated or damaged");
}

inline const std::string& Safetensors::metadata(std::string_view name) const {
  const auto found = metadata_.find(name);
  require(found != metadata_.end(), path(), ": missing metadata \"", name, "\"");
  return found->second;
}

inline std::vector<std::string> Safetensors::names() const {
  std::vector<std::string> names;
  for (const auto& tensor : tensors_) names.push_back(tensor.first);
  return names;
}

inline const Safetensors::Entry& Safetensors::checked(std::string_view name,
                                                      std::span<const std::size_t> shape) const {
  const auto found = tensors_.find(name);
  require(found != tensors_.end(), path(), ": missing tensor \"", name, "\"");
  const Entry& entry = found->second;
  const bool readable = entry.dtype == "F32" || entry.dtype == "F16" || entry.dtype == "BF16";
  require(readable, path(), ": tensor \"", name, "\" is ", shown(entry.dtype),
          ", expected F32, F16 or BF16");
  require(std::equal(shape.begin(), shape.end(), entry.shape.begin(), entry.shape.end()), path(),
          ": tensor \"", name, "\" has shape ", Json(entry.shape).text(), ", expected ",
          Json(std::vector<std::size_t>(shape.begin(), shape.end())).text());
  return entry;
}

// on_block(bytes) for the numbers from begin to end, in blocks of whole multiples of 8 bytes but
// the last.
template <class OnBlock>
void Safetensors::for_each_block(std::size_t begin, std::size_t end, OnBlock&& on_block) const {
  std::string block(std::min(end - begin, std::size_t{1} << 20), '\0');
  for (; begin < end; begin += block.size()) {
    block.resize(std::min(end - begin, block.size()));
    file_.read_at(numbers_begin_ + begin, block.data(), block.size());
    on_block(std::string_view(block));
  }
}

inline void Safetensors::verify() const {
  const auto stored = metadata_.find("checksum");
  if (verified_ || stored == metadata_.end()) return;
  // Made tensor by tensor, in the order of the file.
  std::uint64_t sum = checksum(metadata_);
  for (const auto& [begin, end] : ranges_) {
    for_each_block(begin, end, [&](std::string_view bytes) { sum = checksum(bytes, sum); });
  }
  require(stored->second == detail::hexadecimal(sum), path(),
          ": the checksum does not match: the file is damaged");
  verified_ = true;
}

inline void Safetensors::copy(std::string_view name, std::span<const std::size_t> shape,
                              float* out) const {
  const Entry& entry = checked(name, shape);
  verify();
  float* next = out;
  for_each_block(entry.begin, entry.end, [&](std::string_view bytes) {
    if (entry.dtype == "F32") {
      std::memcpy(next, bytes.data(), bytes.size());
      next += bytes.size() / sizeof(float);
      return;
    }
    for (std::size_t at = 0; at < bytes.size(); at += 2) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + at, 2);
      *next++ = entry.dtype == "F16" ? detail::widen_half(bits) : detail::widen_bfloat(bits);
    }
  });
  for (const float* number = out; number < next; ++number) {
    require(std::isfinite(*number), path(), ": tensor \"", shown(name), "\" holds ",
            std::isnan(*number) ? "NaN" : "infinity", " at element ", number - out);
  }
}

// ---- Hugging Face files ------------------------------------------------------------------------

namespace detail {

// Of an object; nullptr for null, too.
inline const Json* field_of(const Json& json, std::string_view name) {
  const Json* found = json.find(name);
  return found == nullptr || found->is_null() ? nullptr : found;
}

inline bool is_classifier(const Json& json) {
  const Json* names = field_of(json, "architectures");
  return names != nullptr &&
         names->text().find("\"BertForSequenceClassification\"") != std::string::npos;
}

}  // namespace detail

inline std::vector<std::string> labels_from_hugging_face(const Json& json) {
  const Json* names = detail::field_of(json, "id2label");
  const Json* count = detail::field_of(json, "num_labels");
  std::vector<std::string> labels;
  if (names != nullptr) {
    labels.resize(names->object().size());
    in_context("id2label", [&] {
      for (const auto& member : names->object()) {
        const std::string& number = member.first;
        std::size_t id = 0;
        detail::parse_number(number.data(), number.data() + number.size(), id);
        require(id < labels.size() && number == join(id), "\"", shown(number),
                "\" is none of 0 ... ", labels.size() - 1);
        labels[id] = member.second.string();
      }
    });
    return labels;
  }
  const std::int64_t number = count == nullptr ? 2 : count->integer();
  require(number >= 0 && number <= 1'000'000, "num_labels is ", number);
  for (std::int64_t i = 0; i < number; ++i) labels.push_back(join("LABEL_", i));
  return labels;
}

inline ModelConfig config_from_hugging_face(const Json& json) {
  for (const auto& [name, value, otherwise] : detail::hugging_face_fixed) {
    const Json* found = detail::field_of(json, name);
    if (found != nullptr && found->text() != value) {
      fail("field \"", name, "\" is ", shown(found->text()), ", expected ", value,
           "; not computed here: ", otherwise);
    }
  }
  Json ours;
  for (const detail::ConfigNames& names : detail::hugging_face_fields) {
    const Json* found = detail::field_of(json, names.theirs);
    if (found != nullptr) in_context(std::string(names.theirs), [&] { return found->number(); });
    ours.set(names.ours, found != nullptr ? *found : Json::parse(names.usual));
  }
  ours.set("architecture", enum_name(Architecture::paper));
  const bool classifies = detail::is_classifier(json);
  ours.set("task", enum_name(classifies ? TaskKind::classification : TaskKind::masked_text));
  if (classifies) ours.set("classes", labels_from_hugging_face(json).size());
  return config_from_json<ModelConfig>(ours);
}

inline Json config_for_hugging_face(ModelConfig config, const std::vector<std::string>& labels) {
  config.inner_size = config.encoder().inner_size;
  config.segments = std::max<std::size_t>(config.segments, 1);  // of zeros then
  const bool classifies = config.task == TaskKind::classification;
  Json json;
  json.set("architectures",
           Json::Array{classifies ? "BertForSequenceClassification" : "BertForMaskedLM"});
  for (const auto& field : detail::hugging_face_fixed) {
    json.set(field.name, Json::parse(field.value));
  }
  const Json ours = to_json(config);
  for (const auto& names : detail::hugging_face_fields) json.set(names.theirs, ours.at(names.ours));
  if (!classifies) return json;
  Json by_number, by_label;
  for (std::size_t i = 0; i < config.classes; ++i) {
    const std::string label = labels.empty() ? join("LABEL_", i) : labels[i];
    by_number.set(join(i), label), by_label.set(label, i);
  }
  json.set("id2label", std::move(by_number)), json.set("label2id", std::move(by_label));
  return json;
}

namespace detail {

// One tensor of theirs, and where its numbers are among ours.
struct SharedTensor {
  std::string theirs;
  const TensorSpec* ours;  // nullptr if this model has no use for it
  std::size_t part, parts;
  bool is_written;

  std::size_t offset() const { return ours->offset + part * (ours->size / parts); }
  Shape shape() const {
    Shape shape = ours->shape;
    shape[0] /= parts;
    return shape;
  }
};

// The table for a model: all that its file may hold.
inline std::vector<SharedTensor> shared_tensors(const TensorTable& table, std::size_t layers) {
  std::unordered_map<std::string_view, const TensorSpec*> by_name;
  for (const TensorSpec& spec : table) by_name[spec.name] = &spec;
  std::vector<SharedTensor> shared;
  for (const TensorNames& names : hugging_face_tensors) {
    const auto in_layer = [](std::string_view name, std::size_t layer) {
      const std::size_t at = name.find('#');
      return at == name.npos ? std::string(name)
                             : join(name.substr(0, at), layer, name.substr(at + 1));
    };
    const bool is_of_layer = names.theirs.find('#') != names.theirs.npos;
    for (std::size_t i = 0; i < (is_of_layer ? layers : 1); ++i) {
      for (const char* end : {"weight", "bias"}) {
        const auto found = by_name.find(in_layer(names.ours, i) + end);
        shared.push_back({in_layer(names.theirs, i) + end,
                          found == by_name.end() ? nullptr : found->second, names.part, names.parts,
                          names.is_written});
      }
    }
  }
  return shared;
}

// The name of today for one in a file: with "bert." where that belongs, and a LayerNorm's gamma and
// beta as weight and bias.
inline std::string name_of_today(std::string_view name) {
  std::string_view bare = name;
  for (const std::string_view prefix : {"bert.", "roberta."}) {
    if (name.starts_with(prefix)) bare.remove_prefix(prefix.size());
  }
  bool is_inside = false;
  for (const char* part : {"embeddings.", "encoder.", "pooler."}) {
    is_inside = is_inside || bare.starts_with(part);
  }
  std::string today = is_inside ? join("bert.", bare) : std::string(name);
  for (const auto& [old, now] : {std::pair{"LayerNorm.gamma", "LayerNorm.weight"},
                                 std::pair{"LayerNorm.beta", "LayerNorm.bias"}}) {
    if (today.ends_with(old)) today.replace(today.size() - std::strlen(old), today.npos, now);
  }
  return today;
}

inline void require_bert(const ModelConfig& config) {
  require(config.reads_text() && config.architecture == Architecture::paper, "a model of task ",
          enum_name(config.task), " and architecture ", enum_name(config.architecture),
          ": BERT's are masked-text and classification, and paper");
}

}  // namespace detail

inline HuggingFaceFolder::HuggingFaceFolder(const Path& folder, const Json& json)
    : file_(checked(folder) / "model.safetensors") {
  in_context(path_text(folder / "config.json"), [&] {
    config_ = config_from_hugging_face(json);
    if (config_.task == TaskKind::classification) labels_ = labels_from_hugging_face(json);
  });
}

inline Json HuggingFaceFolder::read_json(const Path& folder) {
  settle(folder);
  const Path path = folder / "config.json";
  return Json::parse(read_file(path), path_text(path));
}

inline const Path& HuggingFaceFolder::checked(const Path& folder) {
  if (path_exists(folder / "model.safetensors")) return folder;
  for (const char* other : {"pytorch_model.bin", "model.safetensors.index.json"}) {
    require(!path_exists(folder / other), folder, ": holds ", other,
            ", but no model.safetensors: from_pretrained(...) and save_pretrained(...) of "
            "Transformers write one");
  }
  return folder;
}

inline void HuggingFaceFolder::require_same(ModelConfig model) const {
  detail::require_bert(model);
  model.inner_size = model.encoder().inner_size;
  const Json all = to_json(model), all_theirs = to_json(config_);
  for (const detail::ConfigNames& names : detail::hugging_face_fields) {
    const Json &ours = all.at(names.ours), &theirs = all_theirs.at(names.ours);
    const bool is_less = ours.number() < theirs.number();
    require(names.may_be == detail::ConfigNames::free || ours.number() == theirs.number() ||
                (names.may_be == detail::ConfigNames::no_more && is_less),
            file_.path(), ": ", names.ours, " of the model is ", ours.text(), ", ", names.theirs,
            " of config.json ", theirs.text());
  }
}

// By their names of today.
inline HuggingFaceFolder::Names HuggingFaceFolder::names_in_file() const {
  Names names;
  for (const std::string& name : file_.names()) {
    const auto [at, is_new] = names.emplace(detail::name_of_today(name), name);
    require(is_new, file_.path(), ": tensors \"", shown(at->second), "\" and \"", shown(name),
            "\" are the same");
  }
  return names;
}

// Positions and tokens may be fewer here than there.
inline void HuggingFaceFolder::copy(const detail::SharedTensor& tensor, const std::string& name,
                                    float* to) const {
  const Shape ours = tensor.shape();
  Shape theirs = ours;
  if (tensor.ours->rows == Rows::tokens) theirs[0] = config_.num_items;
  if (tensor.ours->name == "position_embedding.weight") theirs[0] = config_.max_length;
  if (theirs == ours) return file_.copy(name, ours, to);
  file_.check(name, theirs);  // before memory is taken for it
  std::vector<float> all(checked_product(theirs, name));
  file_.copy(name, theirs, all.data());
  std::copy_n(all.data(), checked_product(ours, name), to);
}

inline std::vector<std::string> HuggingFaceFolder::load(Engine& engine) const {
  require_same(engine.config());
  std::vector<float> values(engine.table().size());
  engine.read(State::parameters, values);
  Names names = names_in_file();
  std::vector<detail::SharedTensor> absent;
  std::unordered_map<const TensorSpec*, std::size_t> rows;  // that the file has
  for (auto& tensor : detail::shared_tensors(engine.table(), config_.num_layers)) {
    const auto found = names.find(tensor.theirs);
    if (found == names.end()) {
      if (tensor.ours != nullptr && tensor.is_written) absent.push_back(tensor);
      continue;
    }
    if (tensor.ours != nullptr) {
      copy(tensor, found->second, values.data() + tensor.offset());
      rows[tensor.ours] += tensor.shape()[0];
      require(rows[tensor.ours] <= tensor.ours->shape[0], file_.path(), ": tensor \"",
              tensor.theirs, "\" is there packed and in parts");
    }
    names.erase(found);
  }
  names.erase("bert.embeddings.position_ids");  // 0, 1, 2 ...
  if (!names.empty()) {
    fail(file_.path(), ": tensor \"", shown(names.begin()->second), "\" is not one of BERT");
  }
  std::erase_if(absent, [&](const auto& tensor) {  // they came packed
    return rows[tensor.ours] == tensor.ours->shape[0];
  });
  std::vector<std::string> lacking = names_of_heads(absent, engine.config());
  if (engine.config().bigrams > 0) lacking.push_back("bigram_embedding.weight");
  engine.write(State::parameters, values);
  return lacking;
}

// Of tensors that the file lacks; throws for one of the encoder.
inline std::vector<std::string> HuggingFaceFolder::names_of_heads(
    std::span<const detail::SharedTensor> absent, const ModelConfig& model) const {
  TensorTable encoder;
  add_tensors<EncoderTensors<float>>(encoder, model.encoder());
  std::vector<std::string> names;
  for (const detail::SharedTensor& tensor : absent) {
    require(tensor.ours->offset >= encoder.size(), file_.path(), ": missing tensor \"",
            tensor.theirs, "\", shape ", Json(tensor.shape()).text());
    names.push_back(tensor.ours->name);
  }
  return names;
}

inline std::string vocabulary_text(const Path& path, const ModelConfig& config) {
  const WordPiece words = WordPiece::load(path);
  require(words.size() <= config.num_items, path, ": ", words.size(), " tokens, the model has ",
          config.num_items);
  std::string text;  // without what an editor may have left, which other readers would not forgive
  for (std::size_t i = 0; i < words.size(); ++i) {
    text += words.token(static_cast<std::int32_t>(i)) + "\n";
  }
  return text;
}

inline void save_hugging_face(const Path& folder, Engine& engine,
                              const std::vector<std::string>& labels, const Path& vocabulary) {
  const ModelConfig& config = engine.config();
  detail::require_bert(config);
  require(config.bigrams == 0, "bigrams of the model is ", config.bigrams, ", and BERT has none");
  require(labels.empty() || labels.size() == config.classes, labels.size(),
          " labels, the model has ", config.classes);
  std::vector<float> values(engine.table().size());
  const std::vector<float> zeros(config.hidden_size);
  engine.read(State::parameters, values);
  std::vector<NamedTensor> tensors;
  for (const auto& tensor : detail::shared_tensors(engine.table(), config.num_layers)) {
    if (!tensor.is_written) continue;
    if (tensor.ours != nullptr) {
      tensors.push_back({tensor.theirs, tensor.shape(), values.data() + tensor.offset()});
    } else if (tensor.theirs == "bert.embeddings.token_type_embeddings.weight") {
      tensors.push_back({tensor.theirs, {1, config.hidden_size}, zeros.data()});
    }
  }
  make_folder(folder);
  const FolderLock lock(folder);
  settle(lock);
  remove_stale_temporaries(folder);
  FileSet set(lock);
  set.write("config.json", config_for_hugging_face(config, labels).text(2) + "\n");
  write_safetensors(set, "model.safetensors", tensors, {{"format", "pt"}});
  if (!vocabulary.empty()) set.write("vocab.txt", vocabulary_text(vocabulary, config));
  set.commit();
}

// ================================================================================================
// C  Appendix to chapter 14: the characters of Unicode
// ================================================================================================
// (It stands before B, which is read once for each instruction set.) The tables are made by
// tests/reference/make_unicode.py and hold what steps 1 to 4 of "Text" ask of a code point, in
// hexadecimal. Sets are ranges: 41+19 is U+0041 and the 0x19 after it.

namespace detail {

namespace unicode {

inline constexpr std::string_view version = "15.1.0";

// Categories Cc and Cf; Co; Z; P.
inline constexpr std::string_view control =
    "0+1F 7F+20 AD 600+5 61C 6DD 70F 890+1 8E2 180E 200B+4 202A+4 2060+4 2066+9 FEFF FFF9+2 110BD "
    "110CD 13430+F 1BCA0+3 1D173+7 E0001 E0020+5F";
inline constexpr std::string_view private_use = "E000+18FF F0000+FFFD 100000+FFFD";
inline constexpr std::string_view space = "20 A0 1680 2000+A 2028+1 202F 205F 3000";
inline constexpr std::string_view punctuation =
    "21+2 25+5 2C+3 3A+1 3F+1 5B+2 5F 7B 7D A1 A7 AB B6+1 BB BF 37E 387 55A+5 589+1 5BE 5C0 5C3 "
    "5C6 5F3+1 609+1 60C+1 61B 61D+2 66A+3 6D4 700+D 7F7+2 830+E 85E 964+1 970 9FD A76 AF0 C77 "
    "C84 DF4 E4F E5A+1 F04+E F14 F3A+3 F85 FD0+4 FD9+1 104A+5 10FB 1360+8 1400 166E 169B+1 16EB+2 "
    "1735+1 17D4+2 17D8+2 1800+A 1944+1 1A1E+1 1AA0+6 1AA8+5 1B5A+6 1B7D+1 1BFC+3 1C3B+4 1C7E+1 "
    "1CC0+7 1CD3 2010+17 2030+13 2045+C 2053+B 207D+1 208D+1 2308+3 2329+1 2768+D 27C5+1 27E6+9 "
    "2983+15 29D8+3 29FC+1 2CF9+3 2CFE+1 2D70 2E00+2E 2E30+1F 2E52+B 3001+2 3008+9 3014+B 3030 "
    "303D 30A0 30FB A4FE+1 A60D+2 A673 A67E A6F2+5 A874+3 A8CE+1 A8F8+2 A8FC A92E+1 A95F A9C1+C "
    "A9DE+1 AA5C+3 AADE+1 AAF0+1 ABEB FD3E+1 FE10+9 FE30+22 FE54+D FE63 FE68 FE6A+1 FF01+2 FF05+5 "
    "FF0C+3 FF1A+1 FF1F+1 FF3B+2 FF3F FF5B FF5D FF5F+6 10100+2 1039F 103D0 1056F 10857 1091F "
    "1093F 10A50+8 10A7F 10AF0+6 10B39+6 10B99+3 10EAD 10F55+4 10F86+3 11047+6 110BB+1 110BE+3 "
    "11140+3 11174+1 111C5+3 111CD 111DB 111DD+2 11238+5 112A9 1144B+4 1145A+1 1145D 114C6 "
    "115C1+16 11641+2 11660+C 116B9 1173C+2 1183B 11944+2 119E2 11A3F+7 11A9A+2 11A9E+4 11B00+9 "
    "11C41+4 11C70+1 11EF7+1 11F43+C 11FFF 12470+4 12FF1+1 16A6E+1 16AF5 16B37+4 16B44 16E97+3 "
    "16FE2 1BC9F 1DA87+4 1E95E+1";

// Category Mn, by whether NFD moves a mark (combining class above 0) or not; and of what else NFD
// moves, code points and classes.
inline constexpr std::string_view mark =
    "300+4E 350+1F 483+4 591+2C 5BF 5C1+1 5C4+1 5C7 610+A 64B+14 670 6D6+6 6DF+5 6E7+1 6EA+3 711 "
    "730+1A 7EB+8 7FD 816+3 81B+8 825+2 829+4 859+2 898+7 8CA+17 8E3+1C 93C 94D 951+3 9BC 9CD 9FE "
    "A3C A4D ABC ACD B3C B4D BCD C3C C4D C55+1 CBC CCD D3B+1 D4D DCA E38+2 E48+3 EB8+2 EC8+3 "
    "F18+1 F35 F37 F39 F71+1 F74 F7A+3 F80 F82+2 F86+1 FC6 1037 1039+1 108D 135D+2 1714 17D2 17DD "
    "18A9 1939+2 1A17+1 1A60 1A75+7 1A7F 1AB0+D 1ABF+F 1B34 1B6B+8 1BAB 1BE6 1C37 1CD0+2 1CD4+C "
    "1CE2+6 1CED 1CF4 1CF8+1 1DC0+3F 20D0+C 20E1 20E5+B 2CEF+2 2D7F 2DE0+1F 302A+3 3099+1 A66F "
    "A674+9 A69E+1 A6F0+1 A806 A82C A8C4 A8E0+11 A92B+2 A9B3 AAB0 AAB2+2 AAB7+1 AABE+1 AAC1 AAF6 "
    "ABED FB1E FE20+F 101FD 102E0 10376+4 10A0D 10A0F 10A38+2 10A3F 10AE5+1 10D24+3 10EAB+1 "
    "10EFD+2 10F46+A 10F82+3 11046 11070 1107F 110B9+1 11100+2 11133+1 11173 111CA 11236 112E9+1 "
    "1133B+1 11366+6 11370+4 11442 11446 1145E 114C2+1 115BF+1 1163F 116B7 1172B 11839+1 1193E "
    "11943 119E0 11A34 11A47 11A99 11C3F 11D42 11D44+1 11D97 11F42 16AF0+4 16B30+6 1BC9E 1D167+2 "
    "1D17B+7 1D185+6 1D1AA+3 1D242+2 1E000+6 1E008+10 1E01B+6 1E023+1 1E026+4 1E08F 1E130+6 1E2AE "
    "1E2EC+3 1E4EC+3 1E8D0+6 1E944+6";
inline constexpr std::string_view mark_of_class_0 =
    "34F 7A6+A 900+2 93A 941+7 955+2 962+1 981 9C1+3 9E2+1 A01+1 A41+1 A47+1 A4B+1 A51 A70+1 A75 "
    "A81+1 AC1+4 AC7+1 AE2+1 AFA+5 B01 B3F B41+3 B55+1 B62+1 B82 BC0 C00 C04 C3E+2 C46+2 C4A+2 "
    "C62+1 C81 CBF CC6 CCC CE2+1 D00+1 D41+3 D62+1 D81 DD2+2 DD6 E31 E34+3 E47 E4C+2 EB1 EB4+3 "
    "EBB+1 ECC+2 F73 F75+4 F7E F81 F8D+A F99+23 102D+3 1032+4 103D+1 1058+1 105E+2 1071+3 1082 "
    "1085+1 109D 1712+1 1732+1 1752+1 1772+1 17B4+1 17B7+6 17C6 17C9+8 17D3 180B+2 180F 1885+1 "
    "1920+2 1927+1 1932 1A1B 1A56 1A58+6 1A62 1A65+7 1A73+1 1B00+3 1B36+4 1B3C 1B42 1B80+1 1BA2+3 "
    "1BA8+1 1BAC+1 1BE8+1 1BED 1BEF+2 1C2C+7 1C36 A802 A80B A825+1 A8C5 A8FF A926+4 A947+A A980+2 "
    "A9B6+3 A9BC+1 A9E5 AA29+5 AA31+1 AA35+1 AA43 AA4C AA7C AAEC+1 ABE5 ABE8 FE00+F 10A01+2 "
    "10A05+1 10A0C 10A0E 11001 11038+D 11073+1 11080+1 110B3+3 110C2 11127+4 1112D+5 11180+1 "
    "111B6+8 111C9 111CB+1 111CF 1122F+2 11234 11237 1123E 11241 112DF 112E3+5 11300+1 11340 "
    "11438+7 11443+1 114B3+5 114BA 114BF+1 115B2+3 115BC+1 115DC+1 11633+7 1163D 11640 116AB "
    "116AD 116B0+5 1171D+2 11722+3 11727+3 1182F+8 1193B+1 119D4+3 119DA+1 11A01+9 11A33 11A35+3 "
    "11A3B+3 11A51+5 11A59+2 11A8A+C 11A98 11C30+6 11C38+5 11C92+15 11CAA+6 11CB2+1 11CB5+1 "
    "11D31+5 11D3A 11D3C+1 11D3F+2 11D43 11D47 11D90+1 11D95 11EF3+1 11F00+1 11F36+4 11F40 13440 "
    "13447+E 16F4F 16F8F+3 16FE4 1BC9D 1CF00+2D 1CF30+16 1DA00+36 1DA3B+31 1DA75 1DA84 1DA9B+4 "
    "1DAA1+E E0100+EF";
inline constexpr std::string_view combining =
    "1715:9 1734:9 1B44:9 1BAA:9 1BF2:9 1BF3:9 302E:E0 302F:E0 A953:9 A9C0:9 111C0:9 11235:9 "
    "1134D:9 116B6:9 1193D:9 11F41:9 16FF0:6 16FF1:6 1D165:D8 1D166:D8 1D16D:E2 1D16E:D8 1D16F:D8 "
    "1D170:D8 1D171:D8 1D172:D8";

// Properties Cased (without what is Case_Ignorable) and Case_Ignorable (without Mn, Cc and Cf).
inline constexpr std::string_view cased =
    "41+19 61+19 AA B5 BA C0+16 D8+1E F8+C2 1BC+3 1C4+CF 295+1A 370+3 376+1 37B+2 37F 386 388+2 "
    "38C 38E+13 3A3+52 3F7+8A 48A+A5 531+25 560+28 10A0+25 10C7 10CD 10D0+2A 10FD+2 13A0+55 "
    "13F8+5 1C80+8 1C90+2A 1CBD+2 1D00+2B 1D6B+C 1D79+21 1E00+115 1F18+5 1F20+25 1F48+5 1F50+7 "
    "1F59 1F5B 1F5D 1F5F+1E 1F80+34 1FB6+6 1FBE 1FC2+2 1FC6+6 1FD0+3 1FD6+5 1FE0+C 1FF2+2 1FF6+6 "
    "2102 2107 210A+9 2115 2119+4 2124 2126 2128 212A+3 212F+5 2139 213C+3 2145+4 214E 2160+1F "
    "2183+1 24B6+33 2C00+7B 2C7E+66 2CEB+3 2CF2+1 2D00+25 2D27 2D2D A640+2D A680+1B A722+4D "
    "A771+16 A78B+3 A790+3A A7D0+1 A7D3 A7D5+4 A7F5+1 A7FA AB30+2A AB60+8 AB70+4F FB00+6 FB13+4 "
    "FF21+19 FF41+19 10400+4F 104B0+23 104D8+23 10570+A 1057C+E 1058C+6 10594+1 10597+A 105A3+E "
    "105B3+6 105BB+1 10C80+32 10CC0+32 118A0+3F 16E40+3F 1D400+54 1D456+46 1D49E+1 1D4A2 1D4A5+1 "
    "1D4A9+3 1D4AE+B 1D4BB 1D4BD+6 1D4C5+40 1D507+3 1D50D+7 1D516+6 1D51E+1B 1D53B+3 1D540+4 "
    "1D546 1D54A+6 1D552+153 1D6A8+18 1D6C2+18 1D6DC+1E 1D6FC+18 1D716+1E 1D736+18 1D750+1E "
    "1D770+18 1D78A+1E 1D7AA+18 1D7C4+7 1DF00+9 1DF0B+13 1DF25+5 1E900+43 1F130+19 1F150+19 "
    "1F170+19";
inline constexpr std::string_view ignorable =
    "27 2E 3A 5E 60 A8 AF B4 B7+1 2B0+4F 374+1 37A 384+1 387 488+1 559 55F 5F4 640 6E5+1 7F4+1 "
    "7FA 81A 824 828 888 8C9 971 E46 EC6 10FC 17D7 1843 1AA7 1ABE 1C78+5 1D2C+3E 1D78 1D9B+24 "
    "1FBD 1FBF+2 1FCD+2 1FDD+2 1FED+2 1FFD+1 2018+1 2024 2027 2071 207F 2090+C 20DD+3 20E2+2 "
    "2C7C+1 2D6F 2E2F 3005 3031+4 303B 309B+3 30FC+2 A015 A4F8+5 A60C A670+2 A67F A69C+1 A700+21 "
    "A770 A788+2 A7F2+2 A7F8+1 A9CF A9E6 AA70 AADD AAF3+1 AB5B+4 AB69+2 FBB2+10 FE13 FE52 FE55 "
    "FF07 FF0E FF1A FF3E FF40 FF70 FF9E+1 FFE3 10780+5 10787+29 107B2+8 16B40+3 16F93+C 16FE0+1 "
    "16FE3 1AFF0+3 1AFF5+6 1AFFD+1 1E030+3D 1E137+6 1E4EB 1E94B 1F3FB+4";

// What a character becomes in lower case, NFD and without Mn, from "PLACE:" or "~AFTER" on:
//   6F     the next character becomes U+006F      61+1A  the next 0x1A become U+0061, 0062, ...
//   6F*4   the next four become U+006F            9C7.9BE  the next one becomes both
//   140/2  of the next two pairs the first character of each becomes U+0140, U+0142, ...
inline constexpr std::string_view fold =
    "41: 61+1A ~65 61*6 E6 63 65*4 69*4 F0 6E+2 6F*4 ~1 F8 75*4 79 FE ~1 61*6 ~1 63 65*4 69*4 ~1 "
    "6E+2 6F*4 ~2 75*4 79 ~1 79 61*6 63*8 64*2 111 ~1 65*A 67*8 68*2 127 ~1 69*9 ~1 133 ~1 6A*2 "
    "6B*2 ~1 6C*6 140/2 6E*6 ~1 14B ~1 6F*6 153 ~1 72*6 73*8 74*4 167 ~1 75*C 77*2 79*3 7A*6 ~2 "
    "253 183/2 254 188 ~1 256+2 18C ~2 1DD 259 25B 192 ~1 260 263 ~1 269 268 199 ~3 26F 272 ~1 "
    "275 6F*2 1A3/2 280 1A8 ~1 283 ~2 1AD ~1 288 75*2 28A+2 1B4/2 292 1B9 ~3 1BD ~7 1C6*2 ~1 "
    "1C9*2 ~1 1CC*2 ~1 61*2 69*2 6F*2 75*A ~1 61*4 E6*2 1E5 ~1 67*2 6B*2 6F*4 292*2 6A 1F3*2 ~1 "
    "67*2 195 1BF 6E*2 61*2 E6*2 F8*2 61*4 65*4 69*4 6F*4 72*4 75*4 73*2 74*2 21D ~1 68*2 19E ~1 "
    "223/2 61*2 65*2 6F*8 79*2 ~6 2C65 23C ~1 19A 2C66 ~2 242 ~1 180 289 28C 247/5 370: 371/2 2B9 "
    "~1 377 ~7 3B 3F3 ~5 A8 3B1 B7 3B5 3B7 3B9 ~1 3BF ~1 3C5 3C9 3B9 3B1+11 ~1 3C3+7 3B9 3C5 3B1 "
    "3B5 3B7 3B9 3C5 ~19 3B9 3C5 3BF 3C5 3C9 3D7 ~3 3D2*2 ~3 3D9/C ~4 3B8 ~2 3F8 ~1 3F2 3FB ~2 "
    "37B+3 435*2 452 433 454+3 456 458+4 43A 438 443 45F 430+9 438 43A+16 ~9 438 ~16 435*2 ~1 433 "
    "~3 456 ~4 43A 438 443 ~1 461/B 475*2 479/5 ~8 48B/1B 4CF 436*2 4C4/6 ~1 430*4 4D5 ~1 435*2 "
    "4D9 ~1 4D9*2 436*2 437*2 4E1 ~1 438*4 43E*2 4E9 ~1 4E9*2 44D*2 443*6 447*2 4F7 ~1 44B*2 "
    "4FB/1B ~1 561+26 ~CB 627*2 648 627 64A ~99 6D5 ~1 6C1 ~10 6D2 929: 928 ~7 930 ~2 933 ~23 "
    "915+3 91C 921+2 92B 92F ~6B 9C7.9BE 9C7.9D7 ~F 9A1+2 ~1 9AF ~53 A32 ~2 A38 ~22 A16+2 A1C ~2 "
    "A2B ~E9 B47 ~2 B47.B3E B47.B57 ~F B21+2 ~36 B92.BD7 ~35 BC6.BBE BC7.BBE BC6.BD7 ~F3 CD5 ~6 "
    "CD5+2 ~1 CC2 CC2.CD5 ~7E D46.D3E D47.D3E D46.D57 ~8D DD9 ~1 DD9.DCF DD9.DCF DD9.DDF F43: F42 "
    "~9 F4C ~4 F51 ~4 F56 ~4 F5B ~C F40 ~BC 1025 ~79 2D00+26 ~1 2D27 ~5 2D2D 13A0: AB70+50 13F8+6 "
    "1B06: 1B05.1B35 ~1 1B07.1B35 ~1 1B09.1B35 ~1 1B0B.1B35 ~1 1B0D.1B35 ~3 1B11.1B35 ~28 1B35 ~1 "
    "1B35 ~2 1B3E.1B35 1B3F.1B35 ~1 1B35 1C90: 10D0+2B ~2 10FD+3 1E00: 61*2 62*6 63*2 64*A 65*A "
    "66*2 67*2 68*A 69*4 6B*6 6C*8 6D*6 6E*8 6F*8 70*4 72*8 73*A 74*8 75*A 76*4 77*A 78*4 79*2 "
    "7A*6 68 74 77 79 ~1 17F ~2 DF ~1 61*18 65*10 69*4 6F*18 75*E 79*8 1EFB/3 3B1*10 3B5*6 ~2 "
    "3B5*6 ~2 3B7*10 3B9*10 3BF*6 ~2 3BF*6 ~2 3C5*8 ~1 3C5 ~1 3C5 ~1 3C5 ~1 3C5 3C9*10 3B1*2 "
    "3B5*2 3B7*2 3B9*2 3BF*2 3C5*2 3C9*2 ~2 3B1*10 3B7*10 3C9*10 3B1*5 ~1 3B1*7 ~1 3B9 ~2 A8 "
    "3B7*3 ~1 3B7*2 3B5*2 3B7*3 1FBF*3 3B9*4 ~2 3B9*6 ~1 1FFE*3 3C5*4 3C1*2 3C5*6 3C1 A8*2 60 ~2 "
    "3C9*3 ~1 3C9*2 3BF*2 3C9*3 B4 ~2 2002+2 2126: 3C9 ~3 6B 61 ~6 214E ~2D 2170+10 ~13 2184 ~16 "
    "2190 2192 ~12 2194 ~1E 21D0 21D4 21D2 ~34 2203 ~4 2208 ~2 220B ~17 2223/2 ~19 223C ~2 2243 "
    "~2 2245 ~1 2248 ~16 3D ~1 2261 ~A 224D 3C 3E 2264+2 ~2 2272+2 ~2 2276+2 ~6 227A+2 ~2 2282+2 "
    "~2 2286+2 ~22 22A2 22A8+2 22AB ~30 227C+2 2291+2 ~6 22B2+4 ~3B 3008+2 24B6: 24D0+1A 2ADC: "
    "2ADD 2C00: 2C30+30 ~30 2C61 ~1 26B 1D7D 27D ~2 2C68/3 251 271 250 252 ~1 2C73 ~2 2C76 ~8 "
    "23F+2 2C81/32 ~7 2CEC/2 ~3 2CF3 304C: 304B/C ~1 3064/3 ~5 306F*2 ~1 3072*2 ~1 3075*2 ~1 "
    "3078*2 ~1 307B*2 ~16 3046 ~9 309D ~D 30AB/C ~1 30C4/3 ~5 30CF*2 ~1 30D2*2 ~1 30D5*2 ~1 "
    "30D8*2 ~1 30DB*2 ~16 30A6 ~2 30EF+4 ~3 30FD A640: A641/17 ~12 A681/E ~86 A723/7 ~2 A733/1F "
    "~9 A77A/2 1D79 A77F/5 ~3 A78C ~1 265 ~2 A791/2 ~2 A797/A 266 25C 261 26C 26A ~1 29E 287 29D "
    "AB53 A7B5/8 A794 282 1D8E A7C8/2 ~5 A7D1 ~5 A7D7/2 ~1B A7F6 F900: 8C48 66F4 8ECA 8CC8 6ED1 "
    "4E32 53E5 9F9C*2 5951 91D1 5587 5948 61F6 7669 7F85 863F 87BA 88F8 908F 6A02 6D1B 70D9 73DE "
    "843D 916A 99F1 4E82 5375 6B04 721B 862D 9E1E 5D50 6FEB 85CD 8964 62C9 81D8 881F 5ECA 6717 "
    "6D6A 72FC 90CE 4F86 51B7 52DE 64C4 6AD3 7210 76E7 8001 8606 865C 8DEF 9732 9B6F 9DFA 788C "
    "797F 7DA0 83C9 9304 9E7F 8AD6 58DF 5F04 7C60 807E 7262 78CA 8CC2 96F7 58D8 5C62 6A13 6DDA "
    "6F0F 7D2F 7E37 964B 52D2 808B 51DC 51CC 7A1C 7DBE 83F1 9675 8B80 62CF 6A02 8AFE 4E39 5BE7 "
    "6012 7387 7570 5317 78FB 4FBF 5FA9 4E0D 6CCC 6578 7D22 53C3 585E 7701 8449 8AAA 6BBA 8FB0 "
    "6C88 62FE 82E5 63A0 7565 4EAE 5169 51C9 6881 7CE7 826F 8AD2 91CF 52F5 5442 5973 5EEC 65C5 "
    "6FFE 792A 95AD 9A6A 9E97 9ECE 529B 66C6 6B77 8F62 5E74 6190 6200 649A 6F23 7149 7489 79CA "
    "7DF4 806F 8F26 84EE 9023 934A 5217 52A3 54BD 70C8 88C2 8AAA 5EC9 5FF5 637B 6BAE 7C3E 7375 "
    "4EE4 56F9 5BE7 5DBA 601C 73B2 7469 7F9A 8046 9234 96F6 9748 9818 4F8B 79AE 91B4 96B8 60E1 "
    "4E86 50DA 5BEE 5C3F 6599 6A02 71CE 7642 84FC 907C 9F8D 6688 962E 5289 677B 67F3 6D41 6E9C "
    "7409 7559 786B 7D10 985E 516D 622E 9678 502B 5D19 6DEA 8F2A 5F8B 6144 6817 7387 9686 5229 "
    "540F 5C65 6613 674E 68A8 6CE5 7406 75E2 7F79 88CF 88E1 91CC 96E2 533F 6EBA 541D 71D0 7498 "
    "85FA 96A3 9C57 9E9F 6797 6DCB 81E8 7ACB 7B20 7C92 72C0 7099 8B58 4EC0 8336 523A 5207 5EA6 "
    "62D3 7CD6 5B85 6D1E 66B4 8F3B 884C 964D 898B 5ED3 5140 55C0 ~2 585A ~1 6674 ~2 51DE 732A "
    "76CA 793C 795E 7965 798F 9756 7CBE 7FBD ~1 8612 ~1 8AF8 ~2 9038 90FD ~3 98EF 98FC 9928 9DB4 "
    "90DE 96B7 4FAE 50E7 514D 52C9 52E4 5351 559D 5606 5668 5840 58A8 5C64 5C6E 6094 6168 618E "
    "61F2 654F 65E2 6691 6885 6D77 6E1A 6F22 716E 722B 7422 7891 793E 7949 7948 7950 7956 795D "
    "798D+2 7A40 7A81 7BC0 7DF4 7E09 7E41 7F72 8005 81ED 8279*2 8457 8910 8996 8B01 8B39 8CD3 "
    "8D08 8FB6 9038 96E3 97FF 983B 6075 242EE 8218 ~2 4E26 51B5 5168 4F80 5145 5180 52C7 52FA "
    "559D 5555 5599 55E2 585A 58B3 5944 5954 5A62 5B28 5ED2 5ED9 5F69 5FAD 60D8 614E 6108 618E "
    "6160 61F2 6234 63C4 641C 6452 6556 6674 6717 671B 6756 6B79 6BBA 6D41 6EDB 6ECB 6F22 701E "
    "716E 77A7 7235 72AF 732A 7471 7506 753B 761D 761F 76CA 76DB 76F4 774A 7740 78CC 7AB1 7BC0 "
    "7C7B 7D5B 7DF4 7F3E 8005 8352 83EF 8779 8941 8986 8996 8ABF 8AF8 8ACB 8B01 8AFE 8AED 8B39 "
    "8B8A 8D08 8F38 9072 9199 9276 967C 96E3 9756 97DB 97FF 980B 983B 9B12 9F9C 2284A 22844 233D5 "
    "3B9D 4018 4039 25249 25CD0 27ED3 9F43 9F8E ~43 5D9 ~1 5F2 ~A 5E9*4 5D0*3 5D1+6 ~1 5D8+5 ~1 "
    "5DE ~1 5E0+2 ~1 5E3+2 ~1 5E6+5 5D5 5D1 5DB 5E4 FF21: FF41+1A 10400: 10428+28 ~88 104D8+24 "
    "~9C 10597+B ~1 105A3+F ~1 105B3+7 ~1 105BB+2 10C80: 10CC0+33 1109A: 11099/2 ~D 110A5 1134B: "
    "11347.1133E 11347.11357 114BB: 114B9 114B9.114B0 ~1 114B9.114BD ~FB 115B8.115AF 115B9.115AF "
    "118A0: 118C0+20 ~78 11935.11930 16E40: 16E60+20 1D15E: 1D157.1D165 1D158.1D165 "
    "1D158.1D165.1D16E 1D158.1D165.1D16F 1D158.1D165.1D170 1D158.1D165.1D171 1D158.1D165.1D172 "
    "~56 1D1B9.1D165 1D1BA.1D165 1D1B9.1D165.1D16E 1D1BA.1D165.1D16E 1D1B9.1D165.1D16F "
    "1D1BA.1D165.1D16F 1E900: 1E922+22 2F800: 4E3D 4E38 4E41 20122 4F60 4FAE 4FBB 5002 507A 5099 "
    "50E7 50CF 349E 2063A 514D 5154 5164 5177 2051C 34B9 5167 518D 2054B 5197 51A4 4ECC 51AC 51B5 "
    "291DF 51F5 5203 34DF 523B 5246 5272 5277 3515 52C7 52C9 52E4 52FA 5305+2 5317 5349 5351 535A "
    "5373 537D 537F*3 20A2C 7070 53CA 53DF 20B63 53EB 53F1 5406 549E 5438 5448 5468 54A2 54F6 "
    "5510 5553 5563 5584*2 5599 55AB 55B3 55C2 5716 5606 5717 5651 5674 5207 58EE 57CE 57F4 580D "
    "578B 5832 5831 58AC 214E4 58F2 58F7 5906 591A 5922 5962 216A8 216EA 59EC 5A1B 5A27 59D8 5A66 "
    "36EE 36FC 5B08 5B3E*2 219C8 5BC3 5BD8 5BE7 5BF3 21B18 5BFF 5C06 5F53 5C22 3781 5C60 5C6E "
    "5CC0 5C8D 21DE4 5D43 21DE6 5D6E 5D6B 5D7C 5DE1+2 382F 5DFD 5E28 5E3D 5E69 3862 22183 387C "
    "5EB0 5EB3 5EB6 5ECA 2A392 5EFE 22331*2 8201 5F22*2 38C7 232B8 261DA 5F62 5F6B 38E3 5F9A 5FCD "
    "5FD7 5FF9 6081 393A 391C 6094 226D4 60C7 6148 614C 614E 614C 617A 618E 61B2 61A4 61AF 61DE "
    "61F2 61F6 6210 621B 625D 62B1 62D4 6350 22B0C 633D 62FC 6368 6383 63E4 22BF1 6422 63C5 63A9 "
    "3A2E 6469 647E 649D 6477 3A6C 654F 656C 2300A 65E3 66F8 6649 3B19 6691 3B08 3AE4 5192 5195 "
    "6700 669C 80AD 43D9 6717 671B 6721 675E 6753 233C3 3B49 67FA 6785 6852 6885 2346D 688E 681F "
    "6914 3B9D 6942 69A3 69EA 6AA8 236A3 6ADB 3C18 6B21 238A7 6B54 3C4E 6B72 6B9F 6BBA+2 23A8D "
    "21D0B 23AFA 6C4E 23CBC 6CBF 6CCD 6C67 6D16 6D3E 6D77 6D41 6D69 6D78 6D85 23D1E 6D34 6E2F "
    "6E6E 3D33 6ECB 6EC7 23ED1 6DF9 6F6E 23F5E 23F8E 6FC6 7039 701E 701B 3D96 704A 707D 7077 70AD "
    "20525 7145 24263 719C 243AB 7228 7235 7250 24608 7280 7295 24735 24814 737A 738B 3EAC 73A5 "
    "3EB8*2 7447 745C 7471 7485 74CA 3F1B 7524 24C36 753E 24C92 7570 2219F 7610 24FA1 24FB8 25044 "
    "3FFC 4008 76F4 250F3 250F2 25119 25133 771E+2 771F 774A 4039 778B 4046 4096 2541D 784E 788C "
    "78CC 40E3 25626 7956 2569A 256C5 798F 79EB 412F 7A40 7A4A 7A4F 2597C 25AA7*2 7AEE 4202 25BAB "
    "7BC6 7BC9 4227 25C80 7CD2 42A0 7CE8 7CE3 7D00 25F86 7D63 4301 7DC7 7E02 7E45 4334 26228 "
    "26247 4359 262D9 7F7A 2633E 7F95 7FFA 8005 264DA 26523 8060 265A8 8070 2335F 43D5 80B2 8103 "
    "440B 813E 5AB5 267A7 267B5 23393 2339C 8201 8204 8F9E 446B 8291 828B 829D 52B3 82B1 82B3 "
    "82BD 82E6 26B3C 82E5 831D 8363 83AD 8323 83BD 83E7 8457 8353 83CA 83CC 83DC 26C36 26D6B "
    "26CD5 452B 84F1 84F3 8516 273CA 8564 26F2C 455D 4561 26FB1 270D2 456B 8650 865C 8667 8669 "
    "86A9 8688 870E 86E2 8779 8728 876B 8786 45D7 87E1 8801 45F9 8860 8863 27667 88D7 88DE 4635 "
    "88FA 34BB 278AE 27966 46BE 46C7 8AA0 8AED 8B8A 8C55 27CA8 8CAB 8CC1 8D1B 8D77 27F2F 20804 "
    "8DCB 8DBC 8DF0 208DE 8ED4 8F38 285D2 285ED 9094 90F1 9111 2872E 911B 9238 92D7+2 927C 93F9 "
    "9415 28BFA 958B 4995 95B7 28D77 49E6 96C3 5DB2 9723 29145 2921A 4A6E 4A76 97E0 2940A 4AB2 "
    "29496 980B*2 9829 295B6 98E2 4B33 9929 99A7 99C2 99FE 4BCE 29B30 9B12 9C40 9CFD 4CCE 4CED "
    "9D67 2A0CE 4CF8 2A105 2A20E 2A291 9EBB 4D56 9EF9 9EFE 9F05 9F0F 9F16 9F3B 2A600";

}  // namespace unicode

// Takes a number off a text.
inline char32_t take_hexadecimal(std::string_view& text) {
  std::uint32_t number = 0;
  const char* const end = std::from_chars(text.data(), text.data() + text.size(), number, 16).ptr;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

// Takes `sign` off a text that begins with it.
inline bool take(std::string_view& text, char sign) {
  if (!text.starts_with(sign)) return false;
  text.remove_prefix(1);
  return true;
}

inline CharacterTable::CharacterTable() {
  const auto set_kind = [&](std::string_view ranges, Character::Kind kind) {
    for_each(ranges, [&](Character& c) { c.kind = kind; });
  };
  const auto set_casing = [&](std::string_view ranges, Character::Casing casing) {
    for_each(ranges, [&](Character& c) { c.casing = casing; });
  };
  set_kind(unicode::control, Character::dropped);
  set_kind("FFFD", Character::dropped);
  set_kind(unicode::private_use, Character::private_use);
  set_kind("9+1 D", Character::space);
  set_kind(unicode::space, Character::space);
  set_kind(unicode::punctuation, Character::punctuation);
  set_kind("21+E 3A+6 5B+5 7B+3", Character::punctuation);  // category S, too, where it is ASCII
  set_kind("3400+19BF 4E00+51FF F900+1FF 20000+A6DF 2A700+27AF 2F800+21F", Character::ideograph);
  for (const std::string_view marks : {unicode::mark, unicode::mark_of_class_0}) {
    set_kind(marks, Character::mark);
    set_casing(marks, Character::ignorable);
  }
  set_casing(unicode::cased, Character::cased);
  set_casing(unicode::ignorable, Character::ignorable);
  for_each(unicode::mark, [](Character& c) { c.combining = 1; });  // which does not matter: it goes
  for (std::string_view text = unicode::combining; !text.empty(); take(text, ' ')) {
    Character& c = at(take_hexadecimal(text));
    take(text, ':');
    c.combining = static_cast<std::uint8_t>(take_hexadecimal(text));
  }
  fold();
  decompose_hangul();
}

inline Character& CharacterTable::at(char32_t code) {
  std::uint32_t& page = pages_[code / page_size];
  if (page == 0) {
    page = static_cast<std::uint32_t>(characters_.size());
    characters_.resize(characters_.size() + page_size);
  }
  return characters_[page + code % page_size];
}

// Calls set(character) for all that are in the ranges.
template <class Set>
void CharacterTable::for_each(std::string_view ranges, Set&& set) {
  for (; !ranges.empty(); take(ranges, ' ')) {
    const char32_t first = take_hexadecimal(ranges);
    const char32_t last = first + (take(ranges, '+') ? take_hexadecimal(ranges) : 0);
    for (char32_t code = first; code <= last; ++code) set(at(code));
  }
}

inline void CharacterTable::fold() {
  char32_t code = 0;
  const auto next = [&](char32_t target) {
    Character& c = at(code++);
    c.folded = target;
    if ((*this)[target].kind == Character::punctuation) c.kind = Character::punctuation;
  };
  for (std::string_view text = unicode::fold; !text.empty(); take(text, ' ')) {
    if (take(text, '~')) {
      code += take_hexadecimal(text);
      continue;
    }
    const char32_t target = take_hexadecimal(text);
    if (take(text, ':')) {
      code = target;
    } else if (take(text, '.')) {
      const char32_t second = take_hexadecimal(text);
      fold_to_parts(code++, target, second, take(text, '.') ? take_hexadecimal(text) : 0);
    } else if (take(text, '*')) {
      for (char32_t count = take_hexadecimal(text); count > 0; --count) next(target);
    } else if (take(text, '+')) {
      for (char32_t i = 0, count = take_hexadecimal(text); i < count; ++i) next(target + i);
    } else if (take(text, '/')) {
      for (char32_t i = 0, count = take_hexadecimal(text); i < count; ++i, ++code) {
        next(target + 2 * i);
      }
    } else {
      next(target);
    }
  }
}

inline void CharacterTable::fold_to_parts(char32_t code, char32_t a, char32_t b, char32_t c) {
  at(code).folded = code_points + static_cast<char32_t>(parts_.size());
  parts_.push_back({a, b, c});
}

// The syllables of Hangul, by arithmetic: 19 leading consonants, 21 vowels, and 27 trailing
// consonants or none.
inline void CharacterTable::decompose_hangul() {
  for (char32_t i = 0; i < 19 * 21 * 28; ++i) {
    const char32_t trailing = i % 28;
    fold_to_parts(0xAC00 + i, 0x1100 + i / (21 * 28), 0x1161 + i / 28 % 21,
                  trailing == 0 ? 0 : 0x11A7 + trailing);
  }
}

}  // namespace detail

}  // namespace bert4rec

#elif defined(BERT4REC_ISA)

// ================================================================================================
// B  Appendix to chapter 9: the kernels on vectors
// ================================================================================================
// The same functions as in chapter 9, for float, with the vector types of GCC and Clang. Read once
// for each instruction set, with BERT4REC_WIDTH floats a register.
//
// Every result has the bits of its plain twin: each element goes through the same operations in the
// same order, and `fused` and `rounded` say here, too, how a product is rounded (chapter 3).

// BERT4REC_LOCAL: of arrays of vectors in a function. The code of Clang may expect them where whole
// vectors lie, and with AddressSanitizer (Clang 14) they only do if that is said.
#ifdef __clang__
#define BERT4REC_UNROLL _Pragma("clang loop unroll(full)")
#define BERT4REC_LOCAL alignas(4 * BERT4REC_WIDTH)
#else
#define BERT4REC_UNROLL _Pragma("GCC unroll 16")
#define BERT4REC_LOCAL
#endif
#define BERT4REC_INLINE BERT4REC_TARGET inline __attribute__((always_inline))

namespace bert4rec::detail::BERT4REC_ISA {

using std::size_t;

inline constexpr size_t W = BERT4REC_WIDTH;  // floats in a vector register
typedef float V __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef std::int32_t VI __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef std::uint32_t VU __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef float F __attribute__((vector_size(8)));           // two floats,
typedef double D __attribute__((vector_size(16)));         // in double,
typedef std::int64_t DI __attribute__((vector_size(16)));  // and the bits of those

// ---- Rounding ----------------------------------------------------------------------------------

BERT4REC_INLINE V all(float x) { return x - V{}; }

BERT4REC_INLINE V rounded(V x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+m"(x));
#endif
  return x;
}

// Elements 2 i and 2 i + 1 of a register, in double.
BERT4REC_INLINE D pair(V x, size_t i) {
  F two;
  std::memcpy(&two, reinterpret_cast<const char*>(&x) + i * sizeof two, sizeof two);
  return __builtin_convertvector(two, D);
}

// a b + c, rounded once. The last of these is chapter 3's way without an instruction for it.
BERT4REC_INLINE V fused(V a, V b, V c) {
#if defined(__has_builtin) && __has_builtin(__builtin_elementwise_fma) && \
    (BERT4REC_WIDTH > 4 || defined(__FMA__) || defined(__aarch64__))
  return __builtin_elementwise_fma(a, b, c);
#elif BERT4REC_WIDTH == 16 && defined(__clang__)
  return (V)__builtin_ia32_vfmaddps512_mask(a, b, c, 0xffff, 4);  // all lanes, rounded as usual
#elif BERT4REC_WIDTH == 16
  return (V)__builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4);
#elif BERT4REC_WIDTH == 8
  return (V)__builtin_ia32_vfmaddps256(a, b, c);
#elif defined(__aarch64__)
  return (V)vfmaq_f32(c, a, b);
#else
  BERT4REC_UNROLL
  for (size_t i = 0; i < W / 2; ++i) {
    const D product = pair(a, i) * pair(b, i), addend = pair(c, i);
    const D sum = product + addend, part = sum - product;
    const D rest = (product - (sum - part)) + (addend - part);
    const DI even = ((DI)sum & 1) - 1;                       // -1 where the last bit is 0
    const DI toward = ((DI)(rest > 0) ^ (DI)(sum > 0)) | 1;  // 1 away from 0, else -1
    const DI odd = (DI)sum + (((DI)(rest < 0) | (DI)(rest > 0)) & even & toward);
    const F two = __builtin_convertvector((D)odd, F);
    std::memcpy(reinterpret_cast<char*>(&c) + i * sizeof two, &two, sizeof two);
  }
  return c;
#endif
}

template <size_t n>
BERT4REC_INLINE V polynomial(V x, const float (&coefficients)[n]) {
  V sum = all(coefficients[0]);
  BERT4REC_UNROLL
  for (size_t i = 1; i < n; ++i) sum = fused(sum, x, all(coefficients[i]));
  return sum;
}

// The correctly rounded root of IEEE 754.
BERT4REC_INLINE V sqrt(V x) {
#if defined(__x86_64__) && (BERT4REC_WIDTH > 4 || defined(__AVX__))
  asm("vsqrtps %1, %0" : "=v"(x) : "v"(x));
#elif defined(__x86_64__)
  asm("sqrtps %1, %0" : "=x"(x) : "x"(x));
#elif defined(__aarch64__)
  asm("fsqrt %0.4s, %1.4s" : "=w"(x) : "w"(x));
#else
  for (size_t j = 0; j < W; ++j) x[j] = std::sqrt(x[j]);
#endif
  return x;
}

// ---- Transposition -----------------------------------------------------------------------------
// How a B that lies by columns is read: four floats of each of W columns at a time.

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)

typedef float Q __attribute__((vector_size(16), aligned(4), may_alias));

// Of each four floats of a and b: a0 b0 a1 b1, or a2 b2 a3 b3.
BERT4REC_INLINE V interleave_low(V a, V b) {
#if BERT4REC_WIDTH == 16
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
#elif BERT4REC_WIDTH == 8
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

BERT4REC_INLINE V interleave_high(V a, V b) {
#if BERT4REC_WIDTH == 16
  return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
#elif BERT4REC_WIDTH == 8
  return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

BERT4REC_INLINE Q load_quad(const float* b, size_t b_col, size_t j, size_t last) {
  return *reinterpret_cast<const Q*>(b + std::min(j, last) * b_col);
}

// Those of the columns j, j + 4, ... < W, side by side.
BERT4REC_INLINE V load_quads(const float* b, size_t b_col, size_t j, size_t last) {
  const Q q = load_quad(b, b_col, j, last);
#if BERT4REC_WIDTH == 4
  return q;
#else
  const auto low =
      __builtin_shufflevector(q, load_quad(b, b_col, j + 4, last), 0, 1, 2, 3, 4, 5, 6, 7);
#if BERT4REC_WIDTH == 8
  return low;
#else
  const auto high = __builtin_shufflevector(
      load_quad(b, b_col, j + 8, last), load_quad(b, b_col, j + 12, last), 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

#endif

// x[i] = B(i, 0 ... W - 1), where B(i, j) = b[i + j * b_col]. No column stands after `last`: those
// are read as copies of it.
BERT4REC_INLINE void transpose(const float* b, size_t b_col, size_t last, V (&x)[4]) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  // Register i takes the columns i, i + 4, ..., and then each 4 x 4 block is transposed.
  BERT4REC_LOCAL V y[4];
  BERT4REC_UNROLL
  for (size_t i = 0; i < 4; ++i) y[i] = load_quads(b, b_col, i, last);
  x[0] = interleave_low(y[0], y[2]), x[1] = interleave_high(y[0], y[2]);
  x[2] = interleave_low(y[1], y[3]), x[3] = interleave_high(y[1], y[3]);
  y[0] = interleave_low(x[0], x[2]), y[1] = interleave_high(x[0], x[2]);
  y[2] = interleave_low(x[1], x[3]), y[3] = interleave_high(x[1], x[3]);
  BERT4REC_UNROLL
  for (size_t i = 0; i < 4; ++i) x[i] = y[i];
#else
  for (size_t i = 0; i < 4; ++i)
    for (size_t j = 0; j < W; ++j) x[i][j] = b[i + std::min(j, last) * b_col];
#endif
}

// ---- Product -----------------------------------------------------------------------------------

// Blocks of the product. A block of B, block_k x block_n floats (256 KiB), is packed once and
// stays in the second-level cache while all rows of A pass by, at most block_m of them at a time.
inline constexpr size_t block_m = 48, block_n = 256, block_k = 256;

// Row stride of packed A. Not a power of two, so that the rows of a tile fall in different
// sets of the first-level cache: rows that are a multiple of `same_set` floats apart share them.
inline constexpr size_t a_stride = block_k + 16, same_set = 1024;

// Floats of working memory that multiply() needs (the last term is for alignment).
inline constexpr size_t multiply_scratch = block_n * block_k + block_m * a_stride + 16;

// The register tile: MR x NR elements of C are summed at a time, in MR * 2 registers; two more
// hold a row of B and one an element of A. 12 * 2 + 3 of 32 registers, or 6 * 2 + 3 of 16.
// One step along k then does 2 MR multiply-adds for MR + 2 loads.
inline constexpr size_t MR = W == 16 ? 12 : 6, NR = 2 * W;
static_assert(block_m % MR == 0 && block_n % NR == 0 && block_k % W == 0);

// C(i, j) = start(i, j) + sum_k A(i, k) B(k, j) for one tile, i < MR, j < vectors * W.
// Each element is one chain of multiply-adds in ascending k. As a deeper product goes on from
// the stored C, its value depends neither on the blocks nor on the width W.
// A is indexed i * a_row + k, or i + k * MR if `a_by_column`; packed B k * NR + j.
template <bool a_by_column, size_t vectors>
BERT4REC_TARGET inline void multiply_tile(size_t depth, const float* a, size_t a_row,
                                          const float* b, const float* start, size_t start_row,
                                          float* c, size_t c_row) {
  const size_t row = a_by_column ? 1 : a_row, column = a_by_column ? MR : 1;
  BERT4REC_LOCAL V sum[MR][vectors] = {};
  if (start != nullptr) {
    BERT4REC_UNROLL
    for (size_t i = 0; i < MR; ++i) BERT4REC_UNROLL
    for (size_t v = 0; v < vectors; ++v)
      sum[i][v] = *reinterpret_cast<const V*>(start + i * start_row + v * W);
  }
  asm("" : "+r"(c));  // no code: keeps GCC from computing all the addresses in C ahead
  for (size_t k = 0; k < depth; ++k, a += column, b += NR) {
    BERT4REC_LOCAL V b_k[vectors];
    BERT4REC_UNROLL
    for (size_t v = 0; v < vectors; ++v) b_k[v] = *reinterpret_cast<const V*>(b + v * W);
    BERT4REC_UNROLL
    for (size_t i = 0; i < MR; ++i) BERT4REC_UNROLL
    for (size_t v = 0; v < vectors; ++v) sum[i][v] = fused(all(a[i * row]), b_k[v], sum[i][v]);
  }
  BERT4REC_UNROLL
  for (size_t i = 0; i < MR; ++i, c += c_row) BERT4REC_UNROLL
  for (size_t v = 0; v < vectors; ++v) *reinterpret_cast<V*>(c + v * W) = sum[i][v];
}

// The same where C has only `rows` x `columns` elements left: in a full tile on the side.
template <bool a_by_column>
BERT4REC_TARGET inline void multiply_edge(size_t rows, size_t columns, size_t depth, const float* a,
                                          size_t a_row, const float* b, const float* start,
                                          size_t start_row, float* c, size_t c_row) {
  float tile[MR * NR] = {};
  if (start != nullptr)
    for (size_t i = 0; i < rows; ++i) std::copy_n(start + i * start_row, columns, tile + i * NR);
  if (columns <= W)
    multiply_tile<a_by_column, 1>(depth, a, a_row, b, tile, NR, tile, NR);
  else
    multiply_tile<a_by_column, 2>(depth, a, a_row, b, tile, NR, tile, NR);
  for (size_t i = 0; i < rows; ++i) std::copy_n(tile + i * NR, columns, c + i * c_row);
}

// Packs a panel of B: panel[k * NR + j] = B(k, j) for k < depth, j < columns <= NR.
BERT4REC_TARGET inline void pack_b(size_t depth, size_t columns, const float* b, size_t b_row,
                                   size_t b_col, float* panel) {
  if (b_col == 1) {
    for (size_t k = 0; k < depth; ++k)
      if (columns == NR)
        std::memcpy(panel + k * NR, b + k * b_row, NR * sizeof(float));
      else
        for (size_t j = 0; j < NR; ++j) panel[k * NR + j] = j < columns ? b[k * b_row + j] : 0.0f;
    return;
  }
  for (size_t j0 = 0; j0 < columns; j0 += W) {
    size_t width = std::min(W, columns - j0), k = 0;
    for (; k + 4 <= depth; k += 4) {
      BERT4REC_LOCAL V x[4];
      transpose(b + k + j0 * b_col, b_col, width - 1, x);
      BERT4REC_UNROLL
      for (size_t i = 0; i < 4; ++i) *reinterpret_cast<V*>(panel + (k + i) * NR + j0) = x[i];
    }
    for (; k < depth; ++k)
      for (size_t j = 0; j < W; ++j)
        panel[k * NR + j0 + j] = j < width ? b[k + (j0 + j) * b_col] : 0.0f;
  }
}

// Packs a panel of A, rows <= MR of them, in the order that A has in memory already: the
// kernel takes single elements of A, so that both orders serve it equally well.
BERT4REC_TARGET inline void pack_a(size_t rows, size_t depth, const float* a, size_t a_row,
                                   size_t a_col, float* panel) {
  if (a_col == 1) {
    for (size_t i = 0; i < rows; ++i) std::copy_n(a + i * a_row, depth, panel + i * a_stride);
    for (size_t i = rows; i < MR; ++i) std::fill_n(panel + i * a_stride, depth, 0.0f);
  } else if (rows == MR) {
    for (size_t k = 0; k < depth; ++k)
      std::memcpy(panel + k * MR, a + k * a_col, MR * sizeof(float));
  } else {
    std::fill_n(panel, depth * MR, 0.0f);
    for (size_t k = 0; k < depth; ++k)
      for (size_t i = 0; i < rows; ++i) panel[k * MR + i] = a[k * a_col + i];
  }
}

// Asks for the memory of a tile of C, so that it arrives while the tile before it is computed.
BERT4REC_TARGET inline void prefetch_tile(size_t rows, const float* c, size_t c_row) {
  for (size_t i = 0; i < rows; ++i) {
    __builtin_prefetch(c + i * c_row, 1);
    __builtin_prefetch(c + i * c_row + W, 1);
  }
}

// One packed block: C (m x n) = start + A (m x depth) B (depth x n).
template <bool a_by_column>
BERT4REC_TARGET inline void multiply_block(size_t m, size_t n, size_t depth, const float* a,
                                           size_t a_row, const float* b, const float* start,
                                           size_t start_row, float* c, size_t c_row) {
  for (size_t i = 0; i < m; i += MR) {
    for (size_t j = 0; j < n; j += NR) {
      const float *a_panel = a + i * a_stride, *b_panel = b + j * block_k;
      if (j + NR < n) prefetch_tile(std::min(MR, m - i), c + i * c_row + j + NR, c_row);
      float* c_tile = c + i * c_row + j;
      const float* begin = start == nullptr ? nullptr : start + i * start_row + j;
      if (m - i >= MR && n - j >= NR)
        multiply_tile<a_by_column, 2>(depth, a_panel, a_row, b_panel, begin, start_row, c_tile,
                                      c_row);
      else
        multiply_edge<a_by_column>(std::min(MR, m - i), std::min(NR, n - j), depth, a_panel, a_row,
                                   b_panel, begin, start_row, c_tile, c_row);
    }
  }
}

BERT4REC_TARGET inline void multiply_blocks(size_t m, size_t n, size_t k, const float* a,
                                            size_t a_row, size_t a_col, const float* b,
                                            size_t b_row, size_t b_col, const float* start,
                                            size_t start_row, float* c, size_t c_row,
                                            float* scratch) {
  const size_t misaligned = reinterpret_cast<std::uintptr_t>(scratch) / sizeof(float) % 16;
  float *packed_b = scratch + (16 - misaligned) % 16, *packed_a = packed_b + block_k * block_n;
  for (size_t j0 = 0; j0 < n; j0 += block_n) {
    const size_t width = std::min(block_n, n - j0);
    const float* from = start == nullptr ? nullptr : start + j0;
    size_t from_row = start_row, k0 = 0;
    do {  // at least once: an empty sum is `start`
      const size_t depth = std::min(block_k, k - k0);
      for (size_t j = 0; j < width; j += NR)
        pack_b(depth, std::min(NR, width - j), b + k0 * b_row + (j0 + j) * b_col, b_row, b_col,
               packed_b + j * block_k);
      // A that lies by rows is used where it is, but for the last rows and rows that would share
      // cache sets. If it lies by columns, several panels are packed together just before use, so
      // that whole cache lines are used up.
      const size_t step = a_col == 1 ? MR : block_m;
      for (size_t i0 = 0; i0 < m; i0 += step) {
        const size_t height = std::min(step, m - i0);
        const float* a_panel = a + i0 * a_row + k0 * a_col;
        size_t panel_row = a_row;
        if (a_col != 1 || height < MR || a_row % same_set == 0) {
          for (size_t i = 0; i < height; i += MR)
            pack_a(std::min(MR, height - i), depth, a_panel + i * a_row, a_row, a_col,
                   packed_a + i * a_stride);
          a_panel = packed_a, panel_row = a_stride;
        }
        const auto block = a_col == 1 ? multiply_block<false> : multiply_block<true>;
        block(height, width, depth, a_panel, panel_row, packed_b,
              from == nullptr ? nullptr : from + i0 * from_row, from_row, c + i0 * c_row + j0,
              c_row);
      }
      from = c + j0, from_row = c_row;  // a deeper product goes on from the stored C
      k0 += block_k;
    } while (k0 < k);
  }
}

// ---- Product of few rows -----------------------------------------------------------------------
// Few rows of A and a B that lies by columns, such as the scores of all items for one user: what
// takes time is to read B. So it is read once and not packed: W columns of it at a time are
// transposed in registers, and the sums stay in registers, too, until k has run through.

// At most so many rows, since for more packing pays; and at most so many in registers at a time
// (fewer of the narrow ones, where `fused` can be long code).
inline constexpr size_t few_rows = 8, rows_at_once = W == 4 ? 4 : 8;

// sum[i] += A(i, k) x for one k.
template <size_t rows>
BERT4REC_INLINE void add_products(const float* a, size_t a_row, V x, V (&sum)[rows]) {
  BERT4REC_UNROLL
  for (size_t i = 0; i < rows; ++i) sum[i] = fused(all(a[i * a_row]), x, sum[i]);
}

// C(i, j) = start(i, j) + sum_k A(i, k) B(k, j) for i < rows, j < W. At `next` are the W columns of
// B that are wanted after these: asked for in time, they arrive at the speed of the memory.
template <size_t rows>
BERT4REC_TARGET inline void multiply_columns(size_t depth, const float* a, size_t a_row,
                                             size_t a_col, const float* b, size_t b_col,
                                             const float* next, const float* start,
                                             size_t start_row, float* c, size_t c_row) {
  BERT4REC_LOCAL V sum[rows] = {};
  if (start != nullptr) {
    BERT4REC_UNROLL
    for (size_t i = 0; i < rows; ++i) sum[i] = *reinterpret_cast<const V*>(start + i * start_row);
  }
  size_t k = 0;
  for (; k + 4 <= depth; k += 4, a += 4 * a_col) {
    if (k % 16 == 0) {  // a cache line later
      BERT4REC_UNROLL
      for (size_t j = 0; j < W; ++j) __builtin_prefetch(next + k + j * b_col);
    }
    BERT4REC_LOCAL V x[4];
    transpose(b + k, b_col, W - 1, x);
    BERT4REC_UNROLL
    for (size_t i = 0; i < 4; ++i) add_products(a + i * a_col, a_row, x[i], sum);
  }
  for (; k < depth; ++k, a += a_col) {
    V x;
    for (size_t j = 0; j < W; ++j) x[j] = b[k + j * b_col];
    add_products(a, a_row, x, sum);
  }
  BERT4REC_UNROLL
  for (size_t i = 0; i < rows; ++i) *reinterpret_cast<V*>(c + i * c_row) = sum[i];
}

template <size_t... i>
constexpr auto columns_by_rows(std::index_sequence<i...>) {
  return std::array{multiply_columns<i + 1>...};
}

// For n columns, a multiple of W.
BERT4REC_TARGET inline void multiply_few(size_t m, size_t n, size_t k, const float* a, size_t a_row,
                                         size_t a_col, const float* b, size_t b_col,
                                         const float* start, size_t start_row, float* c,
                                         size_t c_row) {
  static constexpr auto by_rows = columns_by_rows(std::make_index_sequence<rows_at_once>());
  for (size_t j = 0; j < n; j += W, b += W * b_col) {
    const float* next = j + W < n ? b + W * b_col : b;
    for (size_t i = 0; i < m; i += rows_at_once)
      by_rows[std::min(rows_at_once, m - i) - 1](
          k, a + i * a_row, a_row, a_col, b, b_col, next,
          start == nullptr ? nullptr : start + i * start_row + j, start_row, c + i * c_row + j,
          c_row);
  }
}

BERT4REC_TARGET inline void multiply(size_t m, size_t n, size_t k, const float* a, size_t a_row,
                                     size_t a_col, const float* b, size_t b_row, size_t b_col,
                                     const float* start, size_t start_row, float* c, size_t c_row,
                                     float* scratch) {
  size_t few = 0;  // columns
  if (m <= few_rows && b_row == 1) {
    few = n / W * W;
    multiply_few(m, few, k, a, a_row, a_col, b, b_col, start, start_row, c, c_row);
  }
  if (few < n)
    multiply_blocks(m, n - few, k, a, a_row, a_col, b + few * b_col, b_row, b_col,
                    start == nullptr ? nullptr : start + few, start_row, c + few, c_row, scratch);
}

// ---- Functions of vectors ----------------------------------------------------------------------

// Elements i ... i + W - 1 of x[n]; `fill` where there is none.
BERT4REC_INLINE V load(const float* x, size_t i, size_t n, float fill = 0.0f) {
  if (i + W <= n) return *reinterpret_cast<const V*>(x + i);
  V v = all(fill);
  for (size_t j = 0; i + j < n; ++j) v[j] = x[i + j];
  return v;
}

BERT4REC_INLINE void store(float* x, size_t i, size_t n, V v) {
  if (i + W <= n) {
    *reinterpret_cast<V*>(x + i) = v;
  } else {
    for (size_t j = 0; i + j < n; ++j) x[i + j] = v[j];
  }
}

// The lanes of a row in `parts` registers.
inline constexpr size_t parts = lanes / W;

BERT4REC_INLINE float sum_lanes(const V (&sums)[parts]) {
  float lane[lanes];
  std::memcpy(lane, sums, sizeof lane);
  for (size_t half = lanes / 2; half > 0; half /= 2) {
    for (size_t j = 0; j < half; ++j) lane[j] += lane[j + half];
  }
  return lane[0];
}

// Whether any bit of x is set.
template <size_t vectors>
BERT4REC_INLINE bool any(const V (&x)[vectors]) {
  VU bits = (VU)x[0];
  BERT4REC_UNROLL
  for (size_t k = 1; k < vectors; ++k) bits |= (VU)x[k];
  std::uint64_t words[W / 2], all_words = 0;
  std::memcpy(words, &bits, sizeof words);
  for (const std::uint64_t word : words) all_words |= word;
  return all_words != 0;
}

BERT4REC_INLINE V exp_in_range(V x) {
  const V shifted = fused(x, all(one_over_log2), all(round_to_integer));
  const V n = shifted - round_to_integer;
  const V r = fused(n, all(-log2_low), fused(n, all(-log2_high), x));
  return (V)((VU)polynomial(r, exp_coefficients) + ((VU)shifted << 23));
}

BERT4REC_INLINE V exp(V x) {
  const V y = x < least_exponent ? V{} : exp_in_range(x);
  return x <= largest_exponent ? y : x + std::numeric_limits<float>::infinity();  // or NaN
}

BERT4REC_INLINE V erf(V x) {
  const VI sign = (VI)x & std::numeric_limits<std::int32_t>::min();
  const V size = (V)((VI)x ^ sign), end = all(erf_end);
  const V small = fused(x, polynomial(rounded(x * x), erf_small), x);
  const V rest = exp_in_range(polynomial(size < end ? size : end, erf_large));
  return size > erf_middle ? (V)((VI)(1.0f - rest) | sign) : small;
}

// ---- The kernels of chapter 9 ------------------------------------------------------------------

BERT4REC_TARGET inline void add(const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; i += W) store(y, i, n, load(y, i, n) + load(x, i, n));
}

BERT4REC_TARGET inline void scale(float* x, float factor, size_t n) {
  for (size_t i = 0; i < n; i += W) store(x, i, n, load(x, i, n) * factor);
}

BERT4REC_TARGET inline void add_scaled(float factor, const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; i += W)
    store(y, i, n, fused(all(factor), load(x, i, n), load(y, i, n)));
}

BERT4REC_TARGET inline float dot(const float* x, const float* y, size_t n) {
  BERT4REC_LOCAL V sum[parts] = {};
  for (size_t i = 0; i < n; i += lanes) {
    BERT4REC_UNROLL
    for (size_t p = 0; p < parts; ++p) {
      sum[p] = fused(load(x, i + p * W, n), load(y, i + p * W, n), sum[p]);
    }
  }
  return sum_lanes(sum);
}

BERT4REC_TARGET inline float sum_of_squares(const float* x, size_t n) {
  BERT4REC_LOCAL V sum[parts] = {};
  for (size_t i = 0; i < n; i += lanes) {
    BERT4REC_UNROLL
    for (size_t p = 0; p < parts; ++p) {
      const V v = load(x, i + p * W, n);
      sum[p] = fused(v, v, sum[p]);
    }
  }
  return sum_lanes(sum);
}

BERT4REC_TARGET inline SoftmaxSum<float> softmax(float* x, float scale, size_t n) {
  V most = all(x[0]);
  for (size_t i = 0; i < n; i += W) {
    const V v = load(x, i, n, x[0]);
    most = v > most ? v : most;
  }
  float largest = most[0];
  for (size_t j = 1; j < W; ++j) largest = std::max<float>(largest, most[j]);
  BERT4REC_LOCAL V sum[parts] = {};
  for (size_t i = 0; i < n; i += lanes) {
    BERT4REC_UNROLL
    for (size_t p = 0; p < parts; ++p) {
      const size_t at = i + p * W;
      const V e = exp((load(x, at, n, -std::numeric_limits<float>::infinity()) - largest) * scale);
      store(x, at, n, e);
      sum[p] += e;
    }
  }
  const float total = sum_lanes(sum);
  bert4rec::detail::BERT4REC_ISA::scale(x, 1.0f / total, n);
  return {largest, total};
}

BERT4REC_TARGET inline void softmax_backward(const float* p, const float* q, float* dq, float scale,
                                             size_t n) {
  BERT4REC_LOCAL V sum[parts] = {};
  for (size_t i = 0; i < n; i += lanes) {
    BERT4REC_UNROLL
    for (size_t part = 0; part < parts; ++part) {
      const size_t at = i + part * W;
      sum[part] = fused(load(q, at, n), load(dq, at, n), sum[part]);
    }
  }
  const V minus_mean = all(-sum_lanes(sum));
  for (size_t i = 0; i < n; i += W) {
    const V product = rounded(load(q, i, n) * load(dq, i, n));
    store(dq, i, n, fused(load(p, i, n), minus_mean, product) * scale);
  }
}

BERT4REC_TARGET inline double logistic(float* x, size_t n) {
  constexpr float nothing = -std::numeric_limits<float>::infinity();  // e = 0, factor 1
  double logs = 0;
  BERT4REC_LOCAL V positive[parts] = {};
  for (size_t block = 0; block < n; block += plain::logistic_block) {
    BERT4REC_LOCAL V product[parts];
    for (V& factors : product) factors = all(1.0f);
    for (size_t i = block; i < std::min(n, block + plain::logistic_block); i += lanes) {
      BERT4REC_UNROLL
      for (size_t p = 0; p < parts; ++p) {
        const size_t at = i + p * W;
        const V v = load(x, at, n, nothing), size = v < 0.0f ? -v : v;
        const V e = exp(-size), factor = e + 1.0f;
        positive[p] += v > 0.0f ? v : V{};
        product[p] *= factor;
        store(x, at, n, (v < 0.0f ? e : all(1.0f)) / factor);
      }
    }
    float factors[lanes];
    std::memcpy(factors, product, sizeof factors);
    for (const float factor : factors) logs += natural_log(static_cast<double>(factor));
  }
  return static_cast<double>(sum_lanes(positive)) + logs;
}

BERT4REC_TARGET inline RankCounts count_above(const float* x, float value, size_t n) {
  VI better = {}, ties = {};
  size_t i = 0;
  for (; i + W <= n; i += W) {
    const V v = *reinterpret_cast<const V*>(x + i);
    better -= v > all(value);  // a comparison gives -1 where it holds
    ties -= v == all(value);
  }
  RankCounts counts = plain::count_above(x + i, value, n - i);
  for (size_t j = 0; j < W; ++j) {
    counts.better += static_cast<size_t>(better[j]);
    counts.ties += static_cast<size_t>(ties[j]);
  }
  return counts;
}

BERT4REC_TARGET inline void gelu(const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; i += W) {
    const V v = load(x, i, n);
    store(y, i, n, v * 0.5f * (erf(v * 0.707106769f) + 1.0f));
  }
}

BERT4REC_TARGET inline void gelu_backward(const float* x, float* dy, size_t n) {
  for (size_t i = 0; i < n; i += W) {
    const V v = load(x, i, n);
    const V cumulative = fused(erf(v * 0.707106769f), all(0.5f), all(0.5f));
    const V density = exp(v * v * -0.5f) * 0.398942292f;
    store(dy, i, n, load(dy, i, n) * fused(v, density, cumulative));
  }
}

// Threefry of chapter 3 for W counters at once.
BERT4REC_INLINE void threefry(Key key, VU& x0, VU& x1) {
  const std::uint32_t keys[3] = {key.low, key.high, threefry_parity ^ key.low ^ key.high};
  x0 += keys[0];
  x1 += keys[1];
  BERT4REC_UNROLL
  for (std::uint32_t block = 1; block <= 5; ++block) {
    BERT4REC_UNROLL
    for (std::uint32_t round = 0; round < 4; ++round) {
      const int turn = threefry_rotations[(block - 1) % 2 * 4 + round];
      x0 += x1;
      x1 = (x1 << turn) | (x1 >> (32 - turn));
      x1 ^= x0;
    }
    x0 += keys[block % 3];
    x1 += keys[(block + 1) % 3] + block;
  }
}

BERT4REC_TARGET inline void dropout(const float* x, float* y, size_t n, Key key, std::uint32_t row,
                                    std::uint32_t threshold) {
  const float scale = static_cast<float>(dropout_scale(threshold));
  const VI limit = static_cast<std::int32_t>(threshold) - VI{};
  VU lane = {};
  for (size_t j = 0; j < W; ++j) lane[j] = static_cast<std::uint32_t>(j);
  for (size_t i = 0; i < n; i += dropout_chunk) {
    BERT4REC_UNROLL
    for (size_t p = 0; p < parts; ++p) {
      VU x0 = lane + static_cast<std::uint32_t>(i / 4 + p * W), x1 = row - VU{};
      threefry(key, x0, x1);
      const VU quarters[4] = {x0 & 0xffffu, x0 >> 16, x1 & 0xffffu, x1 >> 16};
      BERT4REC_UNROLL
      for (size_t q = 0; q < 4; ++q) {
        const size_t at = i + 16 * q + p * W;
        const V kept = load(x, at, n) * scale;
        store(y, at, n, (VI)quarters[q] < limit ? V{} : kept);
      }
    }
  }
}

BERT4REC_TARGET inline RowStatistics<float> normalize(const float* x, const float* gain,
                                                      const float* bias, float epsilon, float* y,
                                                      size_t n) {
  const float count = static_cast<float>(n);
  BERT4REC_LOCAL V sum[parts] = {}, squares[parts] = {};
  for (size_t i = 0; i < n; i += lanes) {
    BERT4REC_UNROLL
    for (size_t p = 0; p < parts; ++p) sum[p] += load(x, i + p * W, n);
  }
  const float mean = sum_lanes(sum) / count;
  for (size_t i = 0; i < n; i += lanes) {
    BERT4REC_UNROLL
    for (size_t p = 0; p < parts; ++p) {
      const V d = load(x, i + p * W, n, mean) - mean;
      squares[p] = fused(d, d, squares[p]);
    }
  }
  const float variance = sum_lanes(squares) / count;
  const float inverse = 1.0f / std::sqrt(variance + epsilon);
  for (size_t i = 0; i < n; i += W) {
    const V z = (load(x, i, n) - mean) * inverse;
    store(y, i, n, fused(load(gain, i, n), z, load(bias, i, n)));
  }
  return {mean, inverse};
}

BERT4REC_TARGET inline void normalize_backward(const float* x, RowStatistics<float> row,
                                               const float* gain, float* dy, size_t n) {
  const float count = static_cast<float>(n), inverse = row.inverse_deviation;
  BERT4REC_LOCAL V sum_e[parts] = {}, sum_ez[parts] = {};
  for (size_t i = 0; i < n; i += lanes) {
    BERT4REC_UNROLL
    for (size_t p = 0; p < parts; ++p) {
      const size_t at = i + p * W;
      const V e = rounded(load(dy, at, n) * load(gain, at, n));
      sum_e[p] += e;
      sum_ez[p] = fused(e, (load(x, at, n) - row.mean) * inverse, sum_ez[p]);
    }
  }
  const float mean_e = sum_lanes(sum_e) / count, mean_ez = sum_lanes(sum_ez) / count;
  for (size_t i = 0; i < n; i += W) {
    const V z = (load(x, i, n) - row.mean) * inverse;
    const V e = rounded(load(dy, i, n) * load(gain, i, n));
    store(dy, i, n, fused(z, all(-mean_ez), e - mean_e) * inverse);
  }
}

BERT4REC_TARGET inline void normalize_parameters(const float* x, RowStatistics<float> row,
                                                 const float* dy, float* dgain, float* dbias,
                                                 size_t n) {
  for (size_t i = 0; i < n; i += W) {
    const V z = (load(x, i, n) - row.mean) * row.inverse_deviation, d = load(dy, i, n);
    store(dgain, i, n, fused(d, z, load(dgain, i, n)));
    store(dbias, i, n, load(dbias, i, n) + d);
  }
}

BERT4REC_TARGET inline void adamw(float* p, const float* g, float* m, float* v,
                                  const AdamConstants<float>& c, size_t n) {
  for (size_t i = 0; i < n; i += W) {
    const V gradient = rounded(load(g, i, n) * c.gradient_scale);
    const V old_mean = load(m, i, n), old_square = load(v, i, n);
    const V mean = fused(gradient - old_mean, all(c.rate1), old_mean);
    const V square = fused(fused(gradient, gradient, -old_square), all(c.rate2), old_square);
    const V root = fused(sqrt(square), all(c.root_correction), all(c.epsilon));
    store(m, i, n, mean);
    store(v, i, n, square);
    store(p, i, n, fused(load(p, i, n), all(c.decay_factor), -(mean * c.step_size / root)));
  }
}

// Of `vectors` registers from element i on: side by side, since each waits for its own last step.
template <size_t vectors>
BERT4REC_INLINE void replay(float* p, float* m, float* v,
                            std::span<const AdamConstants<float>> steps, size_t i, size_t n) {
  BERT4REC_LOCAL V value[vectors], mean[vectors], square[vectors];
  BERT4REC_UNROLL
  for (size_t k = 0; k < vectors; ++k) {
    value[k] = load(p, i + k * W, n), mean[k] = load(m, i + k * W, n);
    square[k] = load(v, i + k * W, n);
  }
  size_t step = 0;
  for (; step < steps.size() && any(mean); ++step) {
    const AdamConstants<float>& c = steps[step];
    BERT4REC_UNROLL
    for (size_t k = 0; k < vectors; ++k) {
      const V moved = fused(0.0f - mean[k], all(c.rate1), mean[k]), rest = moved * c.rest_factor;
      square[k] = fused(square[k], all(-c.rate2), square[k]);
      mean[k] = rest * rest <= square[k] ? V{} : moved;
      const V root = fused(sqrt(square[k]), all(c.root_correction), all(c.epsilon));
      value[k] = fused(value[k], all(c.decay_factor), -(mean[k] * c.step_size / root));
    }
  }
  const V minus_rate = all(-steps[0].rate2);
  for (; step < steps.size(); ++step) {  // as above, with m = 0
    const V decay = all(steps[step].decay_factor);
    BERT4REC_UNROLL
    for (size_t k = 0; k < vectors; ++k) {
      square[k] = fused(square[k], minus_rate, square[k]);
      value[k] = value[k] * decay;
    }
  }
  BERT4REC_UNROLL
  for (size_t k = 0; k < vectors; ++k) {
    store(p, i + k * W, n, value[k]), store(m, i + k * W, n, mean[k]);
    store(v, i + k * W, n, square[k]);
  }
}

BERT4REC_TARGET inline void adamw_replay(float* p, float* m, float* v,
                                         std::span<const AdamConstants<float>> steps, size_t n) {
  if (steps.empty()) return;
  constexpr size_t vectors = 4;
  size_t i = 0;
  for (; i + vectors * W <= n; i += vectors * W) replay<vectors>(p, m, v, steps, i, n);
  for (; i < n; i += W) replay<1>(p, m, v, steps, i, n);
}

BERT4REC_TARGET inline void exp_row(const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; i += W) store(y, i, n, exp(load(x, i, n)));
}

BERT4REC_TARGET inline void erf_row(const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; i += W) store(y, i, n, erf(load(x, i, n)));
}

#define BERT4REC_STRING_2(text) #text
#define BERT4REC_STRING(text) BERT4REC_STRING_2(text)

inline const Kernels<float>& vector_kernels() {
  static constexpr Kernels<float> table{BERT4REC_STRING(BERT4REC_ISA),
                                        multiply,
                                        multiply_scratch,
                                        add,
                                        scale,
                                        add_scaled,
                                        dot,
                                        sum_of_squares,
                                        softmax,
                                        softmax_backward,
                                        logistic,
                                        count_above,
                                        gelu,
                                        gelu_backward,
                                        dropout,
                                        normalize,
                                        normalize_backward,
                                        normalize_parameters,
                                        adamw,
                                        adamw_replay,
                                        exp_row,
                                        erf_row};
  return table;
}

}  // namespace bert4rec::detail::BERT4REC_ISA

#undef BERT4REC_STRING
#undef BERT4REC_STRING_2
#undef BERT4REC_INLINE
#undef BERT4REC_UNROLL
#undef BERT4REC_LOCAL
#undef BERT4REC_ISA
#undef BERT4REC_TARGET
#undef BERT4REC_WIDTH

#endif  // BERT4REC_HPP

// Permission is hereby granted, free of charge, to any person obtaining a copy
// of this software and associated documentation files (the "Software"), to deal
// in the Software without restriction, including without limitation the rights
// to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
// copies of the Software, and to permit persons to whom the Software is
// furnished to do so, subject to the following conditions:
//
// The above copyright notice and this permission notice shall be included in all
// copies or substantial portions of the Software.
//
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
// IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
// FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
// AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
// LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
// OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
// SOFTWARE.
