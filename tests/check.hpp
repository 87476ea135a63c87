// The whole test framework: checks that print where they failed, and an exit code.
//
//   int main() {
//     test("addition", [] { check_equal(1 + 1, 2); });
//     return finish();
//   }
//
// Tests run in order; a failed check or an unexpected exception fails its test, and finish()
// returns 1 if any failed, or if none ran. skip() names a test that a system cannot have. With
// CHECK_ONLY=TEXT in the environment only tests run whose names hold that text; with CHECK_FIRST=1
// none behind the first that fails.

#ifndef BERT4REC_TESTS_CHECK_HPP
#define BERT4REC_TESTS_CHECK_HPP

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <random>
#include <span>
#include <string>
#include <string_view>

// Where a check stands. (std::source_location is missing from Clang 14.)
struct Place {
  const char* file;
  int line;
};

namespace check_detail {
inline int passed = 0, failed = 0, skipped = 0, problems = 0;
inline void problem(const Place& where, const std::string& what) {
  ++problems;
  std::cerr << where.file << ":" << where.line << ": " << what << "\n";
}
}  // namespace check_detail

inline void test(std::string_view name, const std::function<void()>& body) {
  const char* only = std::getenv("CHECK_ONLY");
  if (only != nullptr && name.find(only) == name.npos) return;
  check_detail::problems = 0;
  try {
    body();
  } catch (const std::exception& error) {
    ++check_detail::problems;
    std::cerr << "unexpected exception: " << error.what() << "\n";
  }
  const bool good = check_detail::problems == 0;
  ++(good ? check_detail::passed : check_detail::failed);
  std::cout << (good ? "ok      " : "FAILED  ") << name << std::endl;
  if (!good && std::getenv("CHECK_FIRST") != nullptr) std::exit(1);
}

inline void skip(std::string_view name, std::string_view reason) {
  ++check_detail::skipped;
  std::cout << "skipped " << name << ": " << reason << std::endl;
}

inline int finish() {
  std::cout << check_detail::passed << " passed, " << check_detail::failed << " failed";
  if (check_detail::skipped > 0) std::cout << ", " << check_detail::skipped << " skipped";
  std::cout << "\n";
  return check_detail::failed == 0 && check_detail::passed > 0 ? 0 : 1;
}

inline bool check(bool condition, std::string_view what,
                  Place where = {__builtin_FILE(), __builtin_LINE()}) {
  if (!condition) check_detail::problem(where, "does not hold: " + std::string(what));
  return condition;
}

template <class A, class B>
void check_equal(const A& found, const B& expected,
                 Place where = {__builtin_FILE(), __builtin_LINE()}) {
  if (found == expected) return;
  std::cerr << "found    " << found << "\nexpected " << expected << "\n";
  check_detail::problem(where, "not equal");
}

// |found - expected| <= tolerance * largest |expected| over a whole tensor; the worst element is
// reported. Returns the error relative to that largest value.
template <class Found, class Expected>
double check_close(std::string_view name, std::span<Found> found, std::span<Expected> expected,
                   double tolerance, Place where = {__builtin_FILE(), __builtin_LINE()}) {
  double largest = 0, worst = 0;
  std::size_t at = 0;
  if (found.size() != expected.size()) {
    check_detail::problem(where, std::string(name) + ": sizes differ");
    return INFINITY;
  }
  for (const auto value : expected) largest = std::max(largest, std::abs(double(value)));
  if (largest == 0) largest = 1;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double error = std::abs(double(found[i]) - double(expected[i])) / largest;
    if (!(error <= worst)) worst = error, at = i;  // also catches NaN
  }
  if (!(worst <= tolerance)) {
    std::cerr << name << ": element " << at << " is " << double(found[at]) << ", expected "
              << double(expected[at]) << "\n";
    check_detail::problem(where, std::string(name) + ": relative error " + std::to_string(worst) +
                                     " above " + std::to_string(tolerance));
  }
  return worst;
}

// Expects bert4rec::Error (or any std::exception) whose message contains every one of `parts`.
template <class Body>
void check_throws(Body&& body, std::initializer_list<std::string_view> parts,
                  Place where = {__builtin_FILE(), __builtin_LINE()}) {
  try {
    body();
  } catch (const std::exception& error) {
    const std::string_view message = error.what();
    for (const std::string_view part : parts) {
      if (message.find(part) == message.npos) {
        check_detail::problem(
            where, "message \"" + std::string(message) + "\" lacks \"" + std::string(part) + "\"");
      }
    }
    return;
  }
  check_detail::problem(where, "expected an error, there was none");
}

// A fresh folder that vanishes with its owner.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::random_device random;
    do path_ = std::filesystem::temp_directory_path() / ("bert4rec." + std::to_string(random()));
    while (!std::filesystem::create_directory(path_));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const {  // a name in UTF-8
    return path_ / std::u8string(name.begin(), name.end());
  }

 private:
  std::filesystem::path path_;
};

#endif  // BERT4REC_TESTS_CHECK_HPP
