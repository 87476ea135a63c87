// Appendix A: numbers in decimal. detail::parse_decimal(), which stands in for std::from_chars with
// libc++, is compared here with what is known of each text, and with std::from_chars where the
// library has it.

#include "bert4rec.hpp"
#include "check.hpp"

#include <clocale>
#include <cstdio>

using namespace bert4rec;

namespace {

template <class Real>
using Bits = std::conditional_t<sizeof(Real) == 4, std::uint32_t, std::uint64_t>;

template <class Real>
struct Parsed {
  Real value;
  std::errc problem;
  std::ptrdiff_t length;
};

template <class Real>
Parsed<Real> parsed(std::string_view text) {
  const std::vector<char> exact(text.begin(), text.end());  // a sanitizer sees a read beyond it
  const char *first = exact.data(), *last = first + exact.size();
  Real value = 7;
  const auto [stop, problem] = detail::parse_decimal(first, last, value);
#ifndef _LIBCPP_VERSION
  Real theirs = 7;
  const auto expected = std::from_chars(first, last, theirs);
  if (stop != expected.ptr || problem != expected.ec ||
      std::bit_cast<Bits<Real>>(value) != std::bit_cast<Bits<Real>>(theirs)) {
    check(false, join("as std::from_chars: ", text));
  }
#endif
  return {value, problem, stop - first};
}

// The whole text is this number, to the bit.
template <class Real>
void check_value(std::string_view text, Real expected,
                 Place where = {__builtin_FILE(), __builtin_LINE()}) {
  const Parsed<Real> found = parsed<Real>(text);
  if (found.problem == std::errc() && found.length == static_cast<std::ptrdiff_t>(text.size()) &&
      std::bit_cast<Bits<Real>>(found.value) == std::bit_cast<Bits<Real>>(expected)) {
    return;
  }
  check(false, join(text, " is ", expected, ", not ", found.value), where);
}

template <class Real>
void check_outside(std::string_view text, Place where = {__builtin_FILE(), __builtin_LINE()}) {
  const Parsed<Real> found = parsed<Real>(text);
  check(found.problem == std::errc::result_out_of_range, join("out of range: ", text), where);
  check(found.length == static_cast<std::ptrdiff_t>(text.size()), "read to the end", where);
  check(found.value == 7, "the value is left alone", where);
}

// ---- Random numbers of every magnitude ----------------------------------------------------------

template <class Real>
void check_random() {
  constexpr int enough = std::numeric_limits<Real>::max_digits10 - 1;  // after the first
  const Key key = make_key(6);
  std::size_t finite = 0;
  char text[64];
  for (std::uint64_t i = 0; i < 500'000; ++i) {
    const auto value = std::bit_cast<Real>(static_cast<Bits<Real>>(random_bits(key, i)));
    if (!std::isfinite(value)) continue;
    ++finite;
    check_value(join(value), value);
    const int digits = enough + static_cast<int>(i % 12);
    std::snprintf(text, sizeof text, "%.*e", digits, static_cast<double>(value));
    check_value(text, value);
  }
  check(finite > 450'000, "most patterns are numbers");
}

template <class Real>
void check_subnormal() {
  const Key key = make_key(7);
  constexpr int fraction_bits = std::numeric_limits<Real>::digits - 1;
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    const int kept = static_cast<int>(1 + i % fraction_bits);
    const auto bits = static_cast<Bits<Real>>(random_bits(key, i) >> (64 - kept));
    check_value(join(std::bit_cast<Real>(bits)), std::bit_cast<Real>(bits));
  }
}

// ---- Halfway ------------------------------------------------------------------------------------

// The number in the middle of two, exactly: both in full, added and halved as one does by hand.
std::string middle(double low, double high) {
  static char a[1500], b[1500];
  std::snprintf(a, sizeof a, "%0*.*f", 1400, 1080, low);
  std::snprintf(b, sizeof b, "%0*.*f", 1400, 1080, high);
  std::string text = a;
  int carry = 0;
  for (std::size_t i = text.size(); i-- > 0;) {
    if (text[i] == '.') continue;
    const int sum = (a[i] - '0') + (b[i] - '0') + carry;
    text[i] = static_cast<char>('0' + sum % 10);
    carry = sum / 10;
  }
  int rest = 0;
  for (char& c : text) {
    if (c == '.') continue;
    const int digit = 10 * rest + (c - '0');
    c = static_cast<char>('0' + digit / 2);
    rest = digit % 2;
  }
  return text;
}

// A text of many digits is the middle of two neighbours: it goes to the even one, and a little less
// or more to the nearer one, however late the difference comes.
template <class Real>
void check_between(Real low, Real high) {
  std::string text = middle(static_cast<double>(low), static_cast<double>(high));
  const bool low_is_even = (std::bit_cast<Bits<Real>>(low) & 1) == 0;
  check_value(text, low_is_even ? low : high);
  check_value(text + std::string(3000, '0') + "1", high);
  const std::size_t last = text.find_last_not_of(".0");
  --text[last];
  std::replace(text.begin() + static_cast<std::ptrdiff_t>(last) + 1, text.end(), '0', '9');
  check_value(text, low);
  check_value(text + std::string(3000, '9'), low);
}

template <class Real>
void check_halfway() {
  const Key key = make_key(8);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    // Every third is subnormal or nearly so; the sign goes.
    const std::uint64_t draw = random_bits(key, i);
    const auto bits = static_cast<Bits<Real>>(i % 3 == 0 ? draw >> (11 + i % 50) : draw);
    const auto low = std::bit_cast<Real>(static_cast<Bits<Real>>(bits << 1 >> 1));
    const Real high = std::nextafter(low, std::numeric_limits<Real>::infinity());
    if (std::isfinite(high)) check_between(low, high);
  }
}

// ---- Ends of the range --------------------------------------------------------------------------

// 2^1024 - 2^970, in the middle of the largest double and what would come next.
const std::string beyond_all =
    "1797693134862315807937289714053034150799341327100378269361737789804449682927647509466490179775"
    "8720709633028641669288791094655554785194040263065748867150582068190890200070838367627385484581"
    "7711531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699"
    "508093042880177904174497792";

void check_ends() {
  check_value("1.7976931348623157e308", std::numeric_limits<double>::max());
  check_value(beyond_all.substr(0, beyond_all.size() - 1) + "1.999",
              std::numeric_limits<double>::max());
  check_outside<double>(beyond_all);
  check_outside<double>("-1.8e308");
  check_value("2.2250738585072014e-308", std::numeric_limits<double>::min());
  check_value("2.2250738585072011e-308", std::bit_cast<double>(0x000fffffffffffff));
  check_value("-5e-324", -std::numeric_limits<double>::denorm_min());
  check_value("2.4703282292062328e-324", std::numeric_limits<double>::denorm_min());
  check_outside<double>("2.4703282292062327e-324");
  check_outside<double>(middle(0, std::numeric_limits<double>::denorm_min()));
  check_value("3.4028235e38", std::numeric_limits<float>::max());
  check_value("3.4028235677973362e38", std::numeric_limits<float>::max());
  check_outside<float>("3.4028235677973367e38");
  check_value("1e-45", std::numeric_limits<float>::denorm_min());
  check_outside<float>("7e-46");
  check_outside<float>("1e39");
  const std::string zeros(1000, '0');
  for (const std::string& text :
       {std::string("1e309"), std::string("-1e99999999999999999999"), "1" + zeros,
        std::string("1e-400"), "0." + zeros + "1", std::string("-1e-99999999999999999999")}) {
    check_outside<double>(text);
    check_outside<float>(text);
  }
  check_value("1" + zeros + "e-1000", 1.0);
  check_value("-0." + zeros + "25e1001", -2.5);
  check_value(zeros + "3." + zeros, 3.0);
}

void check_zeros() {
  for (const std::string_view text :
       {"0", "0.000", "0e5", "0e-5", "0e99999999999999999999", ".0", "0.", "000"}) {
    check_value(text, 0.0);
    check_value(join("-", text), -0.0);
    check_value(join("-", text), -0.0f);
  }
}

// ---- Where a number ends ------------------------------------------------------------------------

void check_garbage() {
  for (const auto& [number, rest] :
       std::vector<std::pair<std::string_view, std::string_view>>{{"1", "e"},
                                                                  {"1", "e+"},
                                                                  {"1", "e-x"},
                                                                  {"1", "e+-5"},
                                                                  {"1", "e-+5"},
                                                                  {"1.5", ".5"},
                                                                  {"1.", ".5"},
                                                                  {"1e5", "e5"},
                                                                  {"1e5", ".5"},
                                                                  {"0", "x10"},
                                                                  {"1", ",5"},
                                                                  {"1.5", " "},
                                                                  {"1", "-1"},
                                                                  {"1", "_000"},
                                                                  {"1E5", "f"},
                                                                  {".5", "-"},
                                                                  {"-.5", "e-"},
                                                                  {"1e-3", "inf"},
                                                                  {"12", "\xFF"}}) {
    for (const char* end : {"", ";"}) {
      const Parsed<double> found = parsed<double>(join(number, rest, end));
      check(found.problem == std::errc(), join(number, rest));
      check_equal(found.length, static_cast<std::ptrdiff_t>(number.size()));
      check_equal(found.value, parsed<double>(number).value);
    }
  }
  for (const std::string_view text :
       {"", "-", ".", "-.", "--1", "+1", " 1", "-e5", ".e5", "e5", "x", "-+1", ",5", "\xFF"}) {
    const Parsed<double> found = parsed<double>(text);
    check(found.problem == std::errc::invalid_argument, join("no number: ", text));
    check_equal(found.length, 0);
    check_equal(found.value, 7.0);
  }
  check_outside<double>("1e400");
  check_equal(parsed<double>("1e400x").length, 5);
}

// parse_number(), whichever of the two is behind it.
void check_refused() {
  for (const std::string_view text : {"inf", "-inf", "nan", "-NaN", "Infinity", "nan(1)", ""}) {
    double value = 7;
    const auto found = detail::parse_number(text.data(), text.data() + text.size(), value);
    check(found.ec == std::errc::invalid_argument && found.ptr == text.data(), text);
    check_equal(value, 7.0);
  }
  std::int64_t whole = 0;
  const std::string_view text = "-123.5";
  check(*detail::parse_number(text.data(), text.data() + text.size(), whole).ptr == '.', "integer");
  check_equal(whole, -123);
}

void check_written() {
  const double nan = std::nan("");
  check_equal(join(nan, " ", std::copysign(nan, -1.0), " ", -std::nanf("")), "nan nan nan");
  check_equal(join(0.1f, " ", 0.1, " ", 1e23, " ", -1e-7), "0.1 0.1 1e+23 -1e-07");
}

// ---- Locales ------------------------------------------------------------------------------------

void check_locale() {
  check_value("2.5", 2.5);
  check_equal(parsed<double>("2,5").length, 1);
  check_equal(Json::parse("[2.5, -1e-3]").text(), "[2.5, -0.001]");
  check_equal(join(0.5f, " ", 1e300), "0.5 1e+300");
}

bool set_decimal_comma() {
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8", "German"}) {
    if (std::setlocale(LC_ALL, name) && *std::localeconv()->decimal_point == ',') return true;
  }
  return false;
}

}  // namespace

int main() {
  test("random doubles", check_random<double>);
  test("random floats", check_random<float>);
  test("subnormal doubles", check_subnormal<double>);
  test("subnormal floats", check_subnormal<float>);
  test("halfway between doubles", check_halfway<double>);
  test("halfway between floats", check_halfway<float>);
  test("ends of the range", check_ends);
  test("zeros", check_zeros);
  test("where a number ends", check_garbage);
  test("what is no number", check_refused);
  test("numbers written", check_written);
  if (set_decimal_comma())
    test("a decimal comma", check_locale);
  else
    std::cout << "skipped a decimal comma: no such locale is installed\n";
  return finish();
}
