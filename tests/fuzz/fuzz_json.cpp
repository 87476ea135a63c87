// A text as JSON. Three readers must agree: Json::parse, JsonReader::skip, and one that pulls every
// value out by its type; what was read is written and read back equal; a number is what
// std::from_chars says it is, by our own parse_decimal() too; a sealed text shows any damage.

#include "fuzz.hpp"

namespace {

using namespace fuzz;

template <class Real>
void compare_decimal(std::string_view word) {
  const auto end = word.data() + word.size();
  Real ours = 0, theirs = 0;
  const auto [our_end, our_problem] = detail::parse_decimal(word.data(), end, ours);
  const auto [their_end, their_problem] = std::from_chars(word.data(), end, theirs);
  must(our_end == end && their_end == end && our_problem == their_problem, "a number is a number");
  must(std::memcmp(&ours, &theirs, sizeof ours) == 0, "numbers are rounded correctly");
}

void compare_number(std::string_view word, const Json& value) {
  compare_decimal<double>(word);
  compare_decimal<float>(word);
  must(JsonReader(word).number() == value.number(), "a number has one value");
  std::int64_t whole = 0;
  const bool is_whole = problem_of([&] { whole = JsonReader(word).integer(); }).empty();
  must(is_whole == problem_of([&] { value.integer(); }).empty(), "an integer is one everywhere");
  must(!is_whole || whole == value.integer(), "an integer has one value");
}

// Pulls out of a text what its tree holds.
void compare(JsonReader& reader, const Json& value) {
  std::size_t i = 0;
  switch (reader.peek()) {
    case '{':
      reader.object([&](std::string_view name) {
        must(i < value.object().size() && value.object()[i].first == name, "the same members");
        compare(reader, value.object()[i++].second);
      });
      return must(i == value.object().size(), "as many members");
    case '[':
      reader.array([&] {
        must(i < value.array().size(), "the same elements");
        compare(reader, value.array()[i++]);
      });
      return must(i == value.array().size(), "as many elements");
    case '"':
      return must(reader.string() == value.string(), "the same string");
    case 't':
    case 'f':
      return must(reader.boolean() == value.boolean(), "the same truth");
    case 'n':
      return reader.null(), must(value.is_null(), "null");
    default:
      compare_number(reader.skip(), value);
  }
}

void check_seal_of(const std::string& object, std::size_t place) {
  std::string text = sealed(object);
  must(check_seal(text, "sealed") && Json::parse(text).text() == text, "what is sealed is JSON");
  const std::size_t begin = detail::seal_begin.size();
  char& damaged = text[begin + place % (text.size() - begin)];
  damaged = static_cast<char>(damaged ^ (1 << place % 8));
  must(!problem_of([&] { check_seal(text, "sealed"); }).empty(), "a seal shows damage");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = view(data, size);
  Json value;
  const std::string problem = problem_of([&] { value = Json::parse(text); });
  const std::string skipped = problem_of([&] {
    JsonReader reader(text);
    reader.skip_byte_order_mark();
    reader.skip();
    reader.end();
  });
  must(problem == skipped, "both readers say the same");
  if (!problem.empty()) return 0;

  JsonReader reader(text);
  reader.skip_byte_order_mark();
  must(problem_of([&] { compare(reader, value); }).empty(), "a third reader finds no fault");
  const std::string written = value.text();
  must(Json::parse(written).text() == written, "what is written reads back equal");
  must(Json::parse(value.text(2)).text() == written, "with line breaks too");
  const bool object = written.starts_with("{\"");
  if (object && value.find("checksum") == nullptr) check_seal_of(written, size);
  return 0;
}
