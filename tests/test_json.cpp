// Chapter 4: what RFC 8259 accepts and what it refuses, the limits, numbers and text in every form,
// the public test suite, errors that say where, and damaged documents.

#include "bert4rec.hpp"
#include "check.hpp"

#include <cstdio>

using namespace bert4rec;
using namespace std::string_literals;
using namespace std::string_view_literals;

// A pointer is no truth value.
static_assert(!std::is_constructible_v<Json, const int*> && !std::is_constructible_v<Json, void*>);
static_assert(std::is_constructible_v<Json, char*> && std::is_constructible_v<Json, bool>);

namespace {

std::size_t allocations = 0;

// Parses a copy that ends where its memory ends, so that a sanitizer sees a read beyond it.
Json parse(std::string_view text, std::string_view file = "JSON", std::size_t line = 0) {
  const std::vector<char> exact(text.begin(), text.end());
  return Json::parse({exact.data(), exact.size()}, file, line);
}

// The message of the error, or "" where there was none.
std::string problem(std::string_view text) {
  try {
    parse(text);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string printable(std::string_view text) { return Json(text.substr(0, 60)).text(); }

void accepted(std::string_view text, std::string_view canonical,
              Place where = {__builtin_FILE(), __builtin_LINE()}) {
  try {
    check_equal(parse(text).text(), canonical, where);
  } catch (const Error& error) {
    check(false, join(printable(text), ": ", error.what()), where);
  }
}

void refused(std::string_view text, Place where = {__builtin_FILE(), __builtin_LINE()}) {
  const std::string message = problem(text);
  check(!message.empty(), "refused: " + printable(text), where);
  check(message.empty() || message.starts_with("JSON: byte "), "says where: " + message, where);
}

std::string in_quotes(std::string_view text) { return join("\"", text, "\""); }

std::string repeated(std::size_t count, std::string_view text) {
  std::string out;
  while (count-- > 0) out += text;
  return out;
}

// ---- Structure ----------------------------------------------------------------------------------

void check_valid() {
  accepted("null", "null");
  accepted("true", "true");
  accepted(" \t\r\n false \t\r\n ", "false");
  accepted("[]", "[]");
  accepted("{}", "{}");
  accepted("[ ]", "[]");
  accepted("{ }", "{}");
  accepted("\"\"", "\"\"");
  accepted("[1,2 , 3]", "[1, 2, 3]");
  accepted("[[],{},[[]]]", "[[], {}, [[]]]");
  accepted("{\"a\":1,\"b\":[true,null]}", "{\"a\": 1, \"b\": [true, null]}");
  accepted("{\"\":0}", "{\"\": 0}");
  accepted("{\"a\":{\"a\":{\"a\":1}}}", "{\"a\": {\"a\": {\"a\": 1}}}");
  accepted("{\"b\":1,\"a\":2}", "{\"b\": 1, \"a\": 2}");  // members keep their order
}

void check_invalid() {
  for (const std::string_view text : {"",
                                      " ",
                                      "[",
                                      "]",
                                      "{",
                                      "}",
                                      "[1",
                                      "[1,",
                                      "[1,]",
                                      "[,1]",
                                      "[,]",
                                      "[1,,2]",
                                      "[1 2]",
                                      "[1;2]",
                                      "[1}",
                                      "{]",
                                      "{\"a\"}",
                                      "{\"a\":}",
                                      "{\"a\" 1}",
                                      "{\"a\":1,}",
                                      "{,\"a\":1}",
                                      "{\"a\":1",
                                      "{\"a\":1 \"b\":2}",
                                      "{a:1}",
                                      "{'a':1}",
                                      "{1:1}",
                                      "{null:1}",
                                      "{\"a\":1:2}",
                                      "{\"a\":1]",
                                      "[\"a\":1]",
                                      "{\"a\"=1}",
                                      "{\"a\",\"b\"}",
                                      "{:1}",
                                      "nul",
                                      "nulll",
                                      "Null",
                                      "NULL",
                                      "tru",
                                      "True",
                                      "fals",
                                      "falsee",
                                      "truefalse",
                                      "t",
                                      "f",
                                      "n",
                                      "undefined",
                                      "'a'",
                                      "a",
                                      "*",
                                      "\\",
                                      "[a",
                                      "[\"a",
                                      "\"a",
                                      "\"",
                                      "#",
                                      "// c\n1",
                                      "/* c */ 1",
                                      "1 // c",
                                      "1 /* c */",
                                      "[1]#",
                                      "\v1",
                                      "\f1",
                                      "[1,\f2]",
                                      "\xC2\xA0"
                                      "1",
                                      "\xE2\x80\xA8[]",
                                      "@",
                                      "<null>",
                                      "[true,nul]"}) {
    refused(text);
  }
}

void check_trailing() {
  for (const std::string_view text :
       {"1 1", "[] x", "{}}", "[]]", "null,", "true false", "\"a\"b", "\"a\" \"b\"", "{} {}",
        "[][]", "1,", "{}#", "1 ,2", "[1],"}) {
    refused(text);
  }
}

void check_nul_bytes() {
  for (const std::string& text : {"\0"s, "1\0"s, "[1]\0"s, "{\0}"s, "[\0]"s, "tru\0"s, "\"a\0b\""s,
                                  "\"a\"\0"s, "\0 1"s, "[1,\0 2]"s, "12\0 3"s, "1\0 00"s}) {
    refused(text);
  }
}

void check_duplicates() {
  check_throws([] { parse("{\"a\": 1, \"b\": 2, \"a\": 1}"); }, {"name \"a\" stands twice"});
  refused("{\"a\":1,\"\\u0061\":2}");
  refused("{\"\":1,\"\":2}");
  refused("[{\"x\":{\"y\":0,\"y\":0}}]");
  accepted("[{\"a\":1},{\"a\":1}]", "[{\"a\": 1}, {\"a\": 1}]");
  accepted("{\"a\":1,\"A\":2}", "{\"a\": 1, \"A\": 2}");
}

// So many levels around a number.
std::string nested(std::size_t depth, std::string_view open, std::string_view close) {
  const std::size_t levels = open.size() == 6 ? 2 : 1;  // [{"a": opens two
  const std::string inside = depth % levels ? "[1]" : "1";
  return repeated(depth / levels, open) + inside + repeated(depth / levels, close);
}

void check_too_deep(const std::string& text) {
  check_throws([&] { parse(text); }, {"nested deeper than 512 levels"});
  check_throws([&] { JsonReader(text).skip(); }, {"nested deeper than 512 levels"});
}

void check_depth() {
  const std::pair<std::string_view, std::string_view> pairs[] = {
      {"[", "]"}, {"{\"a\":", "}"}, {"[{\"a\":", "}]"}};
  for (const auto& [open, close] : pairs) {
    check_equal(problem(nested(512, open, close)), "");
    for (const std::size_t depth : {std::size_t{513}, std::size_t{100'000}}) {
      check_too_deep(nested(depth, open, close));
      check_too_deep(nested(depth, open, ""));
    }
  }
  // Lists one after the other are not nested.
  check_equal(problem("[" + repeated(2000, "[[]],") + "[]]"), "");
}

void check_byte_order_mark() {
  accepted("\xEF\xBB\xBF{}", "{}");
  accepted("\xEF\xBB\xBF 1", "1");
  refused("\xEF\xBB\xBF");
  refused("\xEF\xBB");
  refused("\xEF");
  refused("\xEF\xBB\xBF\xEF\xBB\xBF{}");
  refused("[\xEF\xBB\xBF]");
  refused("{}\xEF\xBB\xBF");
  refused("\xFE\xFF\0["s);
  refused("\xFF\xFE[\0]\0"s);
  refused("[\0]\0"s);
}

// ---- Numbers ------------------------------------------------------------------------------------

void check_valid_numbers() {
  const std::pair<std::string_view, double> numbers[] = {
      {"0", 0},
      {"-0", 0},
      {"7", 7},
      {"-7", -7},
      {"10", 10},
      {"0.5", 0.5},
      {"-0.5", -0.5},
      {"1.0", 1},
      {"0.10", 0.1},
      {"1e5", 1e5},
      {"1E5", 1e5},
      {"1e+5", 1e5},
      {"1E-5", 1e-5},
      {"1e05", 1e5},
      {"1.5e3", 1500},
      {"-1.5E+3", -1500},
      {"0e0", 0},
      {"0E+9", 0},
      {"0.0e-10", 0},
      {"-0.0", 0},
      {"-0e1", 0},
      {"12345678.25", 12345678.25},
      {"0.000000000000000000000000000000000000001", 1e-39},
      {"100e-2", 1},
      {"1e-0", 1}};
  for (const auto& [text, value] : numbers) {
    check_equal(parse(text).number(), value);
    const Json list = parse(join("[", text, "]"));
    check_equal(list.array().at(0).number(), value);
    check_equal(JsonReader(text).number(), value);
    check_equal(JsonReader(text).skip(), text);
  }
}

void check_invalid_numbers() {
  for (const std::string_view text : {"-",         "+1",           "+",
                                      "00",        "01",           "-01",
                                      "012",       "1.",           "-1.",
                                      ".5",        "-.5",          ".",
                                      "1e",        "1E",           "1e+",
                                      "1e-",       "1.e5",         "1.5e",
                                      "e5",        "0x10",         "0X1",
                                      "1_000",     "1,000",        "NaN",
                                      "nan",       "-NaN",         "Infinity",
                                      "-Infinity", "inf",          "-inf",
                                      "--1",       "-+1",          "1-",
                                      "1+1",       "1..2",         "1.2.3",
                                      "1e5.5",     "1ee5",         "1e+-5",
                                      "0b1",       "1a",           "1.5a",
                                      "1f",        "1L",           "- 1",
                                      "1 .5",      "1. 5",         "1e 5",
                                      "1 e5",      "\xEF\xBC\x91", "-a",
                                      "0e",        "0e+",          "0.e1",
                                      "0.",        "-0.",          "1\xEF\xBC\x90",
                                      "1/2",       "-1x"}) {
    refused(text);
    refused(join("[", text, "]"));
  }
}

void check_integers() {
  constexpr auto low = std::numeric_limits<std::int64_t>::min();
  constexpr auto high = std::numeric_limits<std::int64_t>::max();
  check_equal(parse("9223372036854775807").integer(), high);
  check_equal(parse("-9223372036854775808").integer(), low);
  check_equal(JsonReader("9223372036854775807").integer(), high);
  check_equal(JsonReader("-9223372036854775808").integer(), low);
  check_equal(parse("9007199254740993").integer(), (std::int64_t{1} << 53) + 1);
  for (const std::string_view text : {"9223372036854775808", "-9223372036854775809", "1.0", "1e2",
                                      "18446744073709551616", "0.5", "1e-1"}) {
    check_throws([&] { parse(text).integer(); }, {"expected an integer, found "});
    check_throws([&] { JsonReader(text).integer(); }, {"expected an integer", text});
    check_equal(parse(text).number(), std::strtod(std::string(text).c_str(), nullptr));
  }
}

void check_huge_and_tiny() {
  check_equal(parse("1.7976931348623157e308").number(), std::numeric_limits<double>::max());
  check_equal(parse("1" + repeated(400, "0") + "e-400").number(), 1.0);
  check_equal(parse("0." + repeated(400, "0") + "1e401").number(), 1.0);
  check_equal(parse("5e-324").number(), std::numeric_limits<double>::denorm_min());
  for (const std::string& text :
       {"1e309"s, "-1e309"s, "1.7976931348623159e308"s, "1e99999"s, "1e99999999999999999999"s,
        "1" + repeated(400, "0"), "0.001e400"s, "1" + repeated(400, "0") + "e-10"}) {
    check_throws([&] { parse(text); }, {"JSON: byte ", "number too large"});
    check_throws([&] { JsonReader("[" + text + "]").skip(); }, {"number too large"});
  }
  for (const std::string& text :
       {"1e-400"s, "-1e-400"s, "2e-324"s, "1e-99999999999999999999"s, "0e99999999999999999999"s,
        "1000e-400"s, "0." + repeated(400, "0") + "1", "0." + repeated(400, "0") + "1e10"}) {
    check_equal(parse(text).number(), 0.0);
  }
}

// Where adding the exponent and the place of the point would overflow.
void check_exponents_near_the_limit() {
  for (const std::string_view text : {"1e9223372036854775807", "12e9223372036854775806",
                                      "-123.5e9223372036854775807", "1e9223372036854775808"}) {
    check_throws([&] { parse(text); }, {"number too large"});
  }
  for (const std::string_view text : {"0.0001e-9223372036854775808", "0.1e-9223372036854775807",
                                      "1e-9223372036854775808", "1e-9223372036854775809"}) {
    check_equal(problem(text), "");
  }
}

void check_double_round_trip() {
  const Key key = make_key(1);
  std::size_t wrong = 0, finite = 0;
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    const double value = std::bit_cast<double>(random_bits(key, i));
    const Json back = parse(Json(value).text());
    if (!std::isfinite(value)) {
      check(back.is_null() && std::isnan(back.number_or_nan()), "written as null");
      continue;
    }
    ++finite;
    wrong += std::bit_cast<std::uint64_t>(back.number()) != std::bit_cast<std::uint64_t>(value);
    // Whole numbers, which are read back as integers.
    const double whole = std::ldexp(uniform(key, i), static_cast<int>(i % 80));
    wrong += parse(Json(std::floor(whole)).text()).number() != std::floor(whole);
  }
  check_equal(wrong, std::size_t{0});
  check(finite > 90'000, "most patterns are numbers");
}

void check_negative_zero() {
  check(std::signbit(parse(Json(-0.0).text()).number()), "-0.0 keeps its sign");
}

void check_correct_rounding() {
  const Key key = make_key(2);
  char text[64];
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    const double value = std::bit_cast<double>(random_bits(key, i));
    if (!std::isfinite(value)) continue;
    const int digits = static_cast<int>(1 + i % 30);
    std::snprintf(text, sizeof text, "%.*e", digits, value);
    if (!std::isfinite(std::strtod(text, nullptr))) continue;
    if (parse(text).number() != std::strtod(text, nullptr)) check(false, text);
  }
}

void check_integer_round_trip() {
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    const auto value = static_cast<std::int64_t>(random_bits(make_key(3), i)) >> (i % 64);
    if (parse(Json(value).text()).integer() != value) check(false, join(value));
  }
}

// ---- Text ---------------------------------------------------------------------------------------

std::string utf8(std::uint32_t code) {
  const auto byte = [](std::uint32_t bits) { return static_cast<char>(bits); };
  const auto low = [&](int shift) { return byte(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) return {byte(code)};
  if (code < 0x800) return {byte(0xC0 | code >> 6), low(0)};
  if (code < 0x10000) return {byte(0xE0 | code >> 12), low(6), low(0)};
  return {byte(0xF0 | code >> 18), low(12), low(6), low(0)};
}

std::string escape(std::uint32_t code) {
  const auto unit = [](std::uint32_t value) {
    char text[8];
    std::snprintf(text, sizeof text, "\\u%04x", value);
    return std::string(text);
  };
  if (code < 0x10000) return unit(code);
  return unit(0xD800 + ((code - 0x10000) >> 10)) + unit(0xDC00 + (code & 0x3FF));
}

bool is_surrogate(std::uint32_t code) { return code >= 0xD800 && code < 0xE000; }

void check_escapes() {
  check_equal(parse(R"("\"\\\/\b\f\n\r\t")").string(), "\"\\/\b\f\n\r\t");
  check_equal(parse(R"("a\u0000b")").string(), "a\0b"s);
  check_equal(parse(R"("\u00e9\u00E9\uABCD\uabcd")").string(),
              "\xC3\xA9\xC3\xA9\xEA\xAF\x8D\xEA\xAF\x8D");
  check_equal(parse(R"("\ud83d\ude00 \uD834\uDD1E")").string(),
              "\xF0\x9F\x98\x80 \xF0\x9D\x84\x9E");
  check_equal(parse(R"("\\u0041")").string(), "\\u0041");
  check_equal(parse(R"({"a\tb": 1})").at("a\tb").integer(), 1);
  for (const std::string_view text : {"\\x41",
                                      "\\a",
                                      "\\v",
                                      "\\'",
                                      "\\0",
                                      "\\1",
                                      "\\U0041",
                                      "\\u",
                                      "\\u1",
                                      "\\u12",
                                      "\\u123",
                                      "\\u12G4",
                                      "\\u 123",
                                      "\\u+123",
                                      "\\u-123",
                                      "\\u0x12",
                                      "\\u12 4",
                                      "\\",
                                      "\\\\\\",
                                      "\\\n",
                                      "\\ ",
                                      "\\\xC3\xA9",
                                      "\\uFF1\xC3\xA9",
                                      "\\N",
                                      "\\B"}) {
    refused(in_quotes(text));
    refused(join("\"", text));  // ends inside the escape
  }
  refused(in_quotes("\\\0"s));
}

void check_surrogates() {
  for (const std::string_view text :
       {"\\uD800", "\\uDBFF", "\\uDC00", "\\uDFFF", "\\uD800x", "x\\uDC00x", "\\uD800\\n",
        "\\uD800\\uD800", "\\uD800\\u0041", "\\uDBFF\\uE000", "\\uDBFF\\uDBFF\\uDFFF",
        "\\uDC00\\uD800", "\\uD800\\", "\\uD800\\u", "\\uD800\\uDC0", "\\uD800\\uDC0G",
        "\\uD800\\\\uDC00", "\\uD800 \\uDC00", "\\uD800uDC00"}) {
    refused(in_quotes(text));
    refused(join("\"", text));
  }
}

void check_control_characters() {
  for (int c = 0; c < 0x20; ++c) {
    refused(in_quotes(std::string(1, static_cast<char>(c))));
    refused(in_quotes("\xC3\xA9" + std::string(1, static_cast<char>(c))));  // after the fast path
    check_equal(parse(Json(std::string(1, static_cast<char>(c))).text()).string(),
                std::string(1, static_cast<char>(c)));
  }
  accepted("\"\x7F\"", "\"\x7F\"");
}

void check_every_code_point() {
  std::size_t wrong = 0;
  for (std::uint32_t code = 0; code < 0x110000; ++code) {
    if (is_surrogate(code)) continue;
    const std::string text = utf8(code);
    const std::string escaped = in_quotes(escape(code));
    wrong += JsonReader(escaped).string() != text;
    if (code < 0x20 || code == '"' || code == '\\') continue;
    const std::string plain = in_quotes(text);
    wrong += JsonReader(plain).string() != text;
    wrong += code % 64 == 0 && parse(Json(text).text()).string() != text;
  }
  check_equal(wrong, std::size_t{0});
}

// Is it one whole sequence, as utf8() would write it?
bool is_sequence(std::string_view bytes) {
  const auto bits = [&](std::size_t i) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i]));
  };
  std::uint32_t code = bits(0) & (0xFFu >> (bytes.size() + 1));
  for (std::size_t i = 1; i < bytes.size(); ++i) code = code << 6 | (bits(i) & 0x3F);
  return code < 0x110000 && !is_surrogate(code) && utf8(code) == bytes;
}

void check_sequence(std::string_view bytes) {
  const std::string message = problem(in_quotes(bytes));
  if (message.empty() != is_sequence(bytes)) check(false, join("UTF-8: ", message));
}

void check_every_sequence() {
  const std::string_view edges = "\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0";
  const auto byte = [](int value) { return static_cast<char>(value); };
  for (int first = 0x80; first < 0x100; ++first) {
    for (int second = 0x5D; second < 0x100; ++second) {
      check_sequence(std::string{byte(first), byte(second)});
      if (first < 0xE0 || second < 0x7F) continue;
      for (const char third : edges) {
        if (first < 0xF0) check_sequence(std::string{byte(first), byte(second), third});
        if (first >= 0xF0) check_sequence(std::string{byte(first), byte(second), third, '\x80'});
      }
    }
  }
  for (const char last : edges) check_sequence(std::string{'\xF1', '\x80', '\x80', last});
}

void check_bad_utf8() {
  for (const std::string_view text : {"\x80",
                                      "\xBF",
                                      "\xC0\x80",
                                      "\xC0\xAF",
                                      "\xC1\xBF",
                                      "\xE0\x80\xAF",
                                      "\xE0\x9F\xBF",
                                      "\xF0\x80\x80\xAF",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xED\xA0\x80",
                                      "\xED\xBF\xBF",
                                      "\xED\xA0\xBD\xED\xB8\x80",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xF8\x88\x80\x80\x80",
                                      "\xFC\x84\x80\x80\x80\x80",
                                      "\xFE",
                                      "\xFF",
                                      "\xC3",
                                      "\xE2\x82",
                                      "\xF0\x9F\x98",
                                      "\xC3(",
                                      "\xE2(\x82",
                                      "\xE2\x82(",
                                      "\xF0\x9F\x98(",
                                      "a\xE9z",
                                      "ok \xC3\xA9 then \xA9"}) {
    refused(in_quotes(text));
    refused(join("\"", text));  // cut off inside the sequence
    refused(join("{", in_quotes(text), ":1}"));
    refused(text);
  }
}

// ---- The public test suite ----------------------------------------------------------------------

// What the cases of JSONTestSuite (github.com/nst/JSONTestSuite, folder test_parsing) ask for and
// the tests above do not, in texts of our own under the names of the cases. All of its n_ cases are
// refused. So are two of its y_ cases, on purpose: y_object_duplicated_key and
// y_object_duplicated_key_and_value. Its i_ cases, which a parser may take or refuse, are all here.
struct SuiteCase {
  std::string_view name, text, canonical;  // canonical: what it is read as; "": refused
};

constexpr std::string_view off = "";

constexpr SuiteCase suite_arrays[] = {
    {"n_array_a_invalid_utf8", "[b\xE6]", off},
    {"n_array_double_extra_comma", "[\"y\",,]", off},
    {"n_array_inner_array_no_comma", "[5[6]]", off},
    {"n_array_invalid_utf8", "[\xFE]", off},
    {"n_array_items_separated_by_semicolon", "[3:4]", off},
    {"n_array_missing_value", "[ \t , 7]", off},
    {"n_array_newlines_unclosed", "[\"b\",\n5\n,6,", off},
    {"n_array_number_and_several_commas", "[8,,]", off},
    {"n_array_spaces_vertical_tab_formfeed", "[\"\vb\"\\f]", off},
    {"n_array_unclosed_with_new_lines", "[2,\n2\n,2", off},
    {"n_array_unclosed_with_object_inside", "[{\"\":[]}", off},
    {"y_array_arraysWithSpaces", "[{}  \n ]", "[{}]"},
    {"y_array_heterogeneous", "[null, 2, \"2\", {}, []]", "[null, 2, \"2\", {}, []]"},
    {"y_array_with_1_and_newline", "[3\n]", "[3]"},
    {"y_array_with_several_null", "[7,null,null,8]", "[7, null, null, 8]"},
};

constexpr SuiteCase suite_numbers[] = {
    {"n_number_++", "[++56]", off},
    {"n_number_+Inf", "[+Inf]", off},
    {"n_number_-1.0.", "[-3.5.]", off},
    {"n_number_.-1", "[.-4]", off},
    {"n_number_.2e-3", "[.5e-6]", off},
    {"n_number_0.3e+", "[0.7e+]", off},
    {"n_number_0.3e", "[0.7e]", off},
    {"n_number_0_capital_E+", "[0E+]", off},
    {"n_number_0_capital_E", "[0E]", off},
    {"n_number_1.0e+", "[4.0e+]", off},
    {"n_number_1.0e-", "[4.0e-]", off},
    {"n_number_1_000", "[7 000.5]", off},
    {"n_number_1eE2", "[3eE4]", off},
    {"n_number_2.e+3", "[5.e+6]", off},
    {"n_number_2.e-3", "[5.e-6]", off},
    {"n_number_9.e+", "[7.e+]", off},
    {"n_number_Inf", "[Inf]", off},
    {"n_number_hex_2_digits", "[0x7F]", off},
    {"n_number_invalid+-", "[0e+-2]", off},
    {"n_number_invalid-negative-real", "[-45.75bar]", off},
    {"n_number_invalid-utf-8-in-bigger-int", "[45\xE6]", off},
    {"n_number_invalid-utf-8-in-exponent", "[2e3\xE6]", off},
    {"n_number_invalid-utf-8-in-int", "[0\xE6]\n", off},
    {"n_number_minus_sign_with_trailing_garbage", "[-bar]", off},
    {"n_number_real_garbage_after_e", "[2eb]", off},
    {"n_number_real_with_invalid_utf8_after_e", "[2e\xE6]", off},
    {"n_number_with_alpha", "[3.4b-5]", off},
    {"n_number_with_alpha_char", "[2.5G-30]", off},
    {"n_multidigit_number_then_00", "45\0"sv, off},
    {"y_number_double_close_to_zero", "-0.0000000000000000000000000000000000000007", "-7e-40"},
    {"y_number_int_with_exp", "[30e2]", "[3000]"},
    {"y_number_real_capital_e", "[2E20]", "[2e+20]"},
    {"y_number_real_fraction_exponent", "[-45.625e-7]", "[-4.5625e-06]"},
    {"y_object_extreme_numbers", "{ \"low\": -2.0e+29 }", "{\"low\": -2e+29}"},
    {"i_number_double_huge_neg_exp", "[45.75e-678]", "[0]"},
    {"i_number_huge_exp", "[0.7e007777777777777777777777777777777777]", off},
    {"i_number_neg_int_huge_exp", "[-2e+7777]", off},
    {"i_number_pos_double_huge_exp", "[2.5e+7777]", off},
    {"i_number_real_neg_overflow", "[-45645e20000]", off},
    {"i_number_real_pos_overflow", "[45645e20000]", off},
    {"i_number_real_underflow", "[45e-2000000]", "[0]"},
    {"i_number_too_big_neg_int", "[-300000000000000000000]", "[-3e+20]"},
    {"i_number_too_big_pos_int", "[300000000000000000000]", "[3e+20]"},
    {"i_number_very_big_negative_int", "[-40000000000000000000000000000000000]", "[-4e+34]"},
};

constexpr SuiteCase suite_objects[] = {
    {"n_object_bad_value", "[\"y\", truly]", off},
    {"n_object_bracket_key", "{[: \"y\"}\n", off},
    {"n_object_double_colon", "{\"y\"::\"z\"}", off},
    {"n_object_emoji", "{\xF0\x9F\x98\x80}", off},
    {"n_object_garbage_at_end", "{\"b\":\"b\" 45}", off},
    {"n_object_key_with_single_quotes", "{name: 'text'}", off},
    {"n_object_lone_continuation_byte_in_key_and_trailing_comma", "{\"\xB8\":\"1\",}", off},
    {"n_object_missing_colon", "{\"b\" c}", off},
    {"n_object_missing_semicolon", "{\"b\" \"c\"}", off},
    {"n_object_missing_value", "{\"b\":", off},
    {"n_object_no-colon", "{\"b\"", off},
    {"n_object_non_string_key_but_huge_number_instead", "{7777E7777:2}", off},
    {"n_object_repeated_null_null", "{null:1,null:1}", off},
    {"n_object_several_trailing_commas", "{\"n\":1,,,,}", off},
    {"n_object_trailing_comment", "{\"b\":\"c\"}/* */", off},
    {"n_object_trailing_comment_open", "{\"b\":\"c\"}/* */ /", off},
    {"n_object_trailing_comment_slash_open", "{\"b\":\"c\"}//", off},
    {"n_object_trailing_comment_slash_open_incomplete", "{\"b\":\"c\"}/", off},
    {"n_object_two_commas_in_a_row", "{\"b\":1,,\"c\":2}", off},
    {"n_object_unterminated-value", "{\"b\":\"b", off},
    {"n_object_with_single_string", "{ \"b\" : \"c\", \"d\" }", off},
    {"y_object_escaped_null_in_key", "{\"a\\u0000b\": 7}", "{\"a\\u0000b\": 7}"},
    {"y_object_with_newlines", "{\n\"b\": \"c\"\n}", "{\"b\": \"c\"}"},
    {"i_object_key_lone_2nd_surrogate", "{\"\\uDEEE\":1}", off},
};

constexpr SuiteCase suite_strings[] = {
    {"n_string_1_surrogate_then_escape_u1x", "[\"\\uD801\\u2y\"]", off},
    {"n_string_accentuated_char_no_quotes", "[\xC3\xA8]", off},
    {"n_string_escaped_emoji", "[\"\\\xF0\x9F\x98\x80\"]", off},
    {"n_string_incomplete_surrogate_escape_invalid", "[\"\\uD801\\uD801\\y\"]", off},
    {"n_string_invalid-utf-8-in-escape", "[\"\\u\xE6\"]", off},
    {"n_string_invalid_unicode_escape", "[\"\\uwxyz\"]", off},
    {"n_string_invalid_utf8_after_escape", "[\"\\\xE6\"]", off},
    {"n_string_leading_uescaped_thinspace", "[\\u2009\"b\"]", off},
    {"n_string_no_quotes_with_bad_escape", "[\\t]", off},
    {"n_string_single_quote", "['one quote']", off},
    {"n_string_unescaped_ctrl_char", "[\"b\0b\"]"sv, off},
    {"n_string_unescaped_newline", "[\"two\nlines\"]", off},
    {"n_string_with_trailing_garbage", "\"\"y", off},
    {"y_string_backslash_doublequotes", "[\"\\\"\"]", "[\"\\\"\"]"},
    {"y_string_comments", "[\"b/*c*/d//e\"]", "[\"b/*c*/d//e\"]"},
    {"y_string_double_escape_n", "[\"\\\\n\\\\u0000\"]", "[\"\\\\n\\\\u0000\"]"},
    {"y_string_unescaped_char_delete", "[\"b\x7F\"]", "[\"b\x7F\"]"},
    {"i_string_1st_surrogate_but_2nd_missing", "[\"\\uDABC\"]", off},
    {"i_string_1st_valid_surrogate_2nd_invalid", "[\"\\uD899\\u2345\"]", off},
    {"i_string_UTF-16LE_with_BOM", "\xFF\xFE[\0\"\0\xE8\0\"\0]\0"sv, off},
    {"i_string_UTF-8_invalid_sequence", "[\"\xE6\x97\xA5\xFB\"]", off},
    {"i_string_UTF8_surrogate_U+D800", "[\"\xED\xA1\x81\"]", off},
    {"i_string_incomplete_surrogate_and_escape_valid", "[\"\\uD801\\t\"]", off},
    {"i_string_incomplete_surrogate_pair", "[\"\\uDe2fb\"]", off},
    {"i_string_incomplete_surrogates_escape_valid", "[\"\\uD801\\uD801\\t\"]", off},
    {"i_string_invalid_lonely_surrogate", "[\"\\ud801\"]", off},
    {"i_string_invalid_surrogate", "[\"\\ud801bcd\"]", off},
    {"i_string_invalid_utf-8", "[\"\xFE\"]", off},
    {"i_string_inverted_surrogates_U+1D11E", "[\"\\uDe00\\uD83d\"]", off},
    {"i_string_iso_latin_1", "[\"\xE8\"]", off},
    {"i_string_lone_second_surrogate", "[\"\\uDEEE\"]", off},
    {"i_string_lone_utf8_continuation_byte", "[\"\x82\"]", off},
    {"i_string_not_in_unicode_range", "[\"\xF4\xBF\xBF\x80\"]", off},
    {"i_string_overlong_sequence_2_bytes", "[\"\xC0\xAE\"]", off},
    {"i_string_overlong_sequence_6_bytes", "[\"\xFC\x82\xBF\xBF\xBF\xBF\"]", off},
    {"i_string_overlong_sequence_6_bytes_null", "[\"\xFC\x80\x80\x80\x80\x81\"]", off},
    {"i_string_truncated-utf-8", "[\"\xE1\xFE\"]", off},
    {"i_string_utf16BE_no_BOM", "\0[\0\"\0\xE8\0\"\0]"sv, off},
    {"i_string_utf16LE_no_BOM", "[\0\"\0\xE8\0\"\0]\0"sv, off},
};

constexpr SuiteCase suite_structures[] = {
    {"n_structure_U+2060_word_joined", "[\xE2\x81\xA0]", off},
    {"n_structure_angle_bracket_.", "<,>", off},
    {"n_structure_array_with_unclosed_string", "[\"bcd]", off},
    {"n_structure_ascii-unicode-identifier", "b\xC3\xA4", off},
    {"n_structure_close_unopened_array", "2]", off},
    {"n_structure_comma_instead_of_closing_brace", "{\"y\": false,", off},
    {"n_structure_incomplete_UTF8_BOM", "\xEF\xBB[]", off},
    {"n_structure_lone-invalid-utf-8", "\xE6", off},
    {"n_structure_number_with_trailing_garbage", "3@", off},
    {"n_structure_object_unclosed_no_value", "{\"\":", off},
    {"n_structure_object_with_comment", "{\"b\":/*c*/\"d\"}", off},
    {"n_structure_object_with_trailing_garbage", "{\"b\": false} \"y\"", off},
    {"n_structure_open_array_apostrophe", "['", off},
    {"n_structure_open_array_comma", "[,", off},
    {"n_structure_open_array_open_object", "[{", off},
    {"n_structure_open_array_string", "[\"b\"", off},
    {"n_structure_open_object_comma", "{,", off},
    {"n_structure_open_object_open_array", "{[", off},
    {"n_structure_open_object_open_string", "{\"b", off},
    {"n_structure_open_object_string_with_apostrophes", "{'b'", off},
    {"n_structure_open_open", "[\"\\}[\"\\}[\"\\}", off},
    {"n_structure_trailing_#", "{\"b\":\"c\"}#[]", off},
    {"n_structure_uescaped_LF_before_string", "[\\u000D\"\"]", off},
    {"n_structure_unclosed_array_partial_null", "[ true, nul", off},
    {"n_structure_unclosed_array_unfinished_false", "[ null, fals", off},
    {"n_structure_unclosed_array_unfinished_true", "[ null, tru", off},
    {"n_structure_unclosed_object", "{\"bcd\":\"bcd\"", off},
    {"n_structure_unicode-identifier", "\xC3\xA4", off},
    {"n_structure_whitespace_formfeed", "[\f]", off},
    {"y_structure_lonely_negative_real", "-0.5", "-0.5"},
    {"y_structure_trailing_newline", "[\"b\"]\n", "[\"b\"]"},
    {"i_structure_UTF-8_BOM_empty_object", "\xEF\xBB\xBF{ }", "{}"},
};

void check_suite(std::span<const SuiteCase> cases) {
  for (const auto& [name, text, canonical] : cases) {
    const std::string message = problem(text);
    const std::string found = message.empty() ? parse(text).text() : "";
    check(found == canonical, join(name, ": ", message.empty() ? found : message));
  }
}

void check_test_suite() {
  check_suite(suite_arrays);
  check_suite(suite_numbers);
  check_suite(suite_objects);
  check_suite(suite_strings);
  check_suite(suite_structures);
  check_equal(problem(nested(500, "[", "]")), "");  // i_structure_500_nested_arrays
}

// ---- Errors -------------------------------------------------------------------------------------

void check_messages() {
  check_throws([] { parse("[1,\n x]", "data.json"); },
               {"data.json: byte 6: expected a value, found 'x'"});
  check_throws([] { parse("[1, x]", "items.jsonl", 17); }, {"items.jsonl:17: byte 5: "});
  check_throws([] { parse("x", "f"); }, {"f: byte 1: expected a value, found 'x'"});
  check_throws([] { parse("[1", "f"); }, {"f: byte 3: ", "found the end of the text"});
  check_throws([] { parse("[1}", "f"); }, {"f: byte 3: expected ',' or ']', found '}'"});
  check_throws([] { parse("{1}", "f"); }, {"f: byte 2: expected a name in quotes, found '1'"});
  check_throws([] { parse("{\"a\" 1}", "f"); }, {"f: byte 6: expected ':'"});
  check_throws([] { parse("[]\x01", "f"); }, {"f: byte 3: expected the end of the text", "byte 1"});
  check_throws([] { parse("\"\xC3\xA9\xFF\"", "f"); }, {"f: byte 4: invalid UTF-8"});
  check_throws([] { parse("\"a\nb\"", "f"); }, {"f: byte 3: control character 10"});
  check_throws([] { parse("\"abc", "f"); }, {"f: byte 5: ", "end of a string"});
  check_throws([] { parse("[nil]", "f"); }, {"f: byte 2: expected null"});
}

void check_place_after_byte_order_mark() {
  check_throws([] { parse("\xEF\xBB\xBF[x]", "f"); }, {"f: byte 5: "});
}

// ---- JsonReader ---------------------------------------------------------------------------------

void check_pull() {
  const std::string_view text =
      R"( {"id": 7, "name": "\u0061b", "x": [1.5, -2, 3e0], "skipped": {"y": [1, {"z": null}]},
          "yes": true, "no": false, "none": null, "empty": [], "last": "plain"} )";
  JsonReader reader(text, "f", 3);
  std::string seen;
  const auto read = [&](std::string_view name) {
    seen += join(name, "=");
    if (name == "id")
      seen += join(reader.integer());
    else if (name == "name" || name == "last")
      seen += reader.string();
    else if (name == "x" || name == "empty")
      reader.array([&] { seen += join(reader.number(), ";"); });
    else if (name == "yes" || name == "no")
      seen += join(reader.boolean());
    else if (name == "none")
      check(reader.is_null(), "is null"), reader.null();
    else
      seen += reader.skip();
    seen += " ";
  };
  check_equal(reader.peek(), '{');
  reader.object(read);
  reader.end();
  check_equal(reader.peek(), '\0');
  check_equal(seen,
              "id=7 name=ab x=1.5;-2;3; skipped={\"y\": [1, {\"z\": null}]} yes=true no=false "
              "none= empty= last=plain ");
}

void check_pull_errors() {
  const auto fails = [](std::string_view text, auto&& read, std::string_view message) {
    JsonReader reader(text, "f", 9);
    check_throws([&] { read(reader); }, {"f:9: byte ", message});
  };
  fails(
      "1", [](auto& r) { r.string(); }, "expected a string, found '1'");
  fails(
      "\"1\"", [](auto& r) { r.number(); }, "expected a number, found '\"'");
  fails(
      "\"1\"", [](auto& r) { r.integer(); }, "expected a number, found '\"'");
  fails(
      "[]", [](auto& r) { r.object([](std::string_view) {}); }, "expected an object, found '['");
  fails(
      "{}", [](auto& r) { r.array([] {}); }, "expected an array, found '{'");
  fails(
      "1", [](auto& r) { r.null(); }, "expected null, found '1'");
  fails(
      "1", [](auto& r) { r.boolean(); }, "found '1'");
  fails(
      "1 2", [](auto& r) { r.integer(), r.end(); }, "expected the end of the text, found '2'");
  fails(
      "1", [](auto& r) { r.integer(), r.integer(); }, "found the end of the text");
  fails(
      "[1]", [](auto& r) { r.array([] {}); }, "found '1'");  // an element that nobody read
  fails(
      "{\"a\":1}", [](auto& r) { r.object([](std::string_view) {}); }, "found '1'");
  fails(
      "[\"\xFF\"]", [](auto& r) { r.skip(); }, "invalid UTF-8");
  fails(
      "{\"\\x\":1}", [](auto& r) { r.skip(); }, "after a backslash");
  fails(
      "[01]", [](auto& r) { r.skip(); }, "expected ',' or ']', found '1'");
  fails(
      "", [](auto& r) { r.skip(); }, "expected a value, found the end of the text");
  fails(
      "[1]", [](auto& r) { r.error("odd value ", 5); }, "byte 1: odd value 5");
}

// ---- Json ---------------------------------------------------------------------------------------

void check_tree() {
  Json json;
  json.set("whole", 3);
  json.set("real", 0.25);
  json.set("words", "a\"b\\c\n\x01");
  json.set("list", std::vector<int>{1, 2});
  json.set("nested", Json::Array{Json::Array{}, Json()});
  json.set("flag", false);
  check_equal(json.text(), R"({"whole": 3, "real": 0.25, "words": "a\"b\\c\u000a\u0001", )"
                           R"("list": [1, 2], "nested": [[], null], "flag": false})");
  const std::string pretty = json.text(2);
  check(pretty.starts_with("{\n  \"whole\": 3,\n  \"real\": 0.25,\n"), pretty);
  check(pretty.find("\n  \"list\": [1, 2],\n") != pretty.npos, "plain lists stay on one line");
  check(pretty.ends_with("  \"flag\": false\n}"), pretty);
  check_equal(parse(pretty).text(), json.text());
  check_equal(json.at("words").string(), "a\"b\\c\n\x01");
  check_equal(json.at("whole").number(), 3.0);
  check(!json.at("flag").boolean() && json.find("none") == nullptr, "find");
  check_equal(Json(INFINITY).text(), "null");
}

void check_tree_errors() {
  const Json json = parse("{\"a\": \"text\", \"b\": 1.5, \"c\": [1]}");
  check_throws([&] { json.at("d"); }, {"missing field \"d\""});
  check_throws([&] { json.at("a").integer(); }, {"expected an integer, found \"text\""});
  check_throws([&] { json.at("b").integer(); }, {"expected an integer, found 1.5"});
  check_throws([&] { json.at("a").number(); }, {"expected a number, found \"text\""});
  check_throws([&] { json.at("b").string(); }, {"expected a string, found 1.5"});
  check_throws([&] { json.at("b").boolean(); }, {"expected true or false, found 1.5"});
  check_throws([&] { json.at("c").object(); }, {"expected an object, found [1]"});
  check_throws([&] { json.array(); }, {"expected an array, found {\"a\""});
  check_throws([&] { json.at("c").find("x"); }, {"expected an object"});
}

// Reading must not write out the tree (as the text of an error that does not happen would).
void check_reading_is_free() {
  const Json json = parse("{\"numbers\": [1, 2, 3], \"a name longer than any small buffer\": 1}");
  const std::size_t before = allocations;
  check_equal(json.at("numbers").array().size(), std::size_t{3});
  check_equal(allocations, before);
}

// ---- Damage -------------------------------------------------------------------------------------

const std::string document =
    "{\"name\": \"caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 \\u00e9\\n\\ud83d\\ude00\", "
    "\"n\": -12.5e+3, \"list\": [0, true, false, null, {\"x\": []}], \"big\": 9223372036854775807, "
    "\"t\": 1e-7}";

void check_prefixes() {
  check_equal(problem(document), "");
  for (std::size_t n = 0; n < document.size(); ++n) refused(document.substr(0, n));
}

// A damaged document is refused with an Error, or is another document, which is stable.
void check_damaged(const std::string& text) {
  try {
    const std::string first = parse(text).text();
    check_equal(parse(first).text(), first);
  } catch (const Error&) {
  }
}

void check_byte_flips() {
  for (std::size_t at = 0; at < document.size(); ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      std::string text = document;
      text[at] = static_cast<char>(static_cast<unsigned char>(text[at]) ^ (1u << bit));
      check_damaged(text);
    }
  }
  const Key key = make_key(4);
  for (std::uint64_t i = 0; i < 20'000; ++i) {
    std::string text = document;
    const Key draws = fold_in(key, i);
    for (std::uint64_t k = 0; k <= below(draws, 100, 4); ++k) {
      const std::size_t at = below(draws, 2 * k, text.size());
      const auto byte = static_cast<char>(below(draws, 2 * k + 1, 256));
      if (i % 3 == 0)
        text.erase(at, 1);
      else if (i % 3 == 1)
        text.insert(at, 1, byte);
      else
        text[at] = byte;
    }
    check_damaged(text);
  }
}

// A name of a folder may be anything; what is written can be read.
void check_tree_not_utf8() {
  Json json;
  json.set("folder",
           "donn\xE9"
           "es \xE4\xB8\x96 \xC0\xAF \"\xF0\x9F");
  const std::string text = json.text();
  check(detail::is_utf8(text), text);
  const std::string bad = "\xEF\xBF\xBD";  // U+FFFD for each byte
  check_equal(Json::parse(text).at("folder").string(),
              "donn" + bad + "es \xE4\xB8\x96 " + bad + bad + " \"" + bad + bad);
}

}  // namespace

// Not inlined: GCC would take the calls of malloc and free for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main() {
  test("valid documents", check_valid);
  test("invalid documents", check_invalid);
  test("trailing garbage", check_trailing);
  test("NUL bytes", check_nul_bytes);
  test("duplicate names", check_duplicates);
  test("depth", check_depth);
  test("byte order marks", check_byte_order_mark);
  test("valid numbers", check_valid_numbers);
  test("invalid numbers", check_invalid_numbers);
  test("integers of 64 bits", check_integers);
  test("huge and tiny numbers", check_huge_and_tiny);
  test("exponents near the limit of 64 bits", check_exponents_near_the_limit);
  test("doubles survive", check_double_round_trip);
  test("negative zero survives", check_negative_zero);
  test("numbers are rounded correctly", check_correct_rounding);
  test("integers survive", check_integer_round_trip);
  test("escapes", check_escapes);
  test("surrogates", check_surrogates);
  test("control characters", check_control_characters);
  test("every code point", check_every_code_point);
  test("every UTF-8 sequence", check_every_sequence);
  test("bad UTF-8", check_bad_utf8);
  test("the public test suite", check_test_suite);
  test("messages say where", check_messages);
  test("place of an error after a byte order mark", check_place_after_byte_order_mark);
  test("JsonReader", check_pull);
  test("JsonReader: errors", check_pull_errors);
  test("Json", check_tree);
  test("Json: text that is not UTF-8", check_tree_not_utf8);
  test("Json: errors", check_tree_errors);
  test("reading a tree writes nothing", check_reading_is_free);
  test("every prefix is refused", check_prefixes);
  test("damaged documents", check_byte_flips);
  return finish();
}
