// Chapter 3: published vectors, values pinned so that old runs resume, and statistics whose bounds
// (about five deviations) are wide for a good generator and narrow for a broken one.

#include "bert4rec.hpp"
#include "check.hpp"

#include <set>

using namespace bert4rec;

namespace {

constexpr std::uint64_t words(std::uint64_t low, std::uint64_t high) { return high << 32 | low; }

void check_vector(Key key, std::uint64_t counter, std::uint64_t expected) {
  check_equal(random_bits(key, counter), expected);
}

// Sum of (found - expected)^2 / expected over equally likely cells.
double chi_squared(std::span<const std::size_t> counts) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  const double expected = total / static_cast<double>(counts.size());
  double sum = 0;
  for (const std::size_t count : counts) {
    const double difference = static_cast<double>(count) - expected;
    sum += difference * difference / expected;
  }
  return sum;
}

// A chi-squared variable of f degrees has mean f and variance 2 f.
void check_equally_likely(std::span<const std::size_t> counts, std::size_t degrees) {
  const auto f = static_cast<double>(degrees);
  const double found = chi_squared(counts), spread = 5 * std::sqrt(2 * f);
  check(std::abs(found - f) < spread, join("chi squared ", found, " of ", f, " degrees"));
}

std::vector<int> shuffled(std::size_t size, Key key) {
  std::vector<int> elements(size);
  std::iota(elements.begin(), elements.end(), 0);
  shuffle(elements, key);
  return elements;
}

void near(std::string_view name, double found, double expected, double tolerance) {
  check(std::abs(found - expected) < tolerance, join(name, " is ", found, ", not ", expected));
}

void check_published_vectors() {
  static_assert(random_bits(Key{}, 0) == words(0x6b200159, 0x99ba4efe));
  check_vector({0, 0}, 0, words(0x6b200159, 0x99ba4efe));
  check_vector({0xffffffff, 0xffffffff}, ~std::uint64_t{0}, words(0x1cb996fc, 0xbb002be7));
  check_vector({0x13198a2e, 0x03707344}, words(0x243f6a88, 0x85a308d3),
               words(0xc4923a9c, 0x483df7a0));
}

// Computed by an independent program: a change here would change every run and break resuming.
void check_pinned_values() {
  check_vector(make_key(42), 0, 0x4f6cc618de79f4b9);
  check_vector(stream_key(42, Stream::masks), 7, 0x383eff195cfa3bf3);
  std::vector<std::size_t> digits;
  for (std::uint64_t i = 0; i < 12; ++i) digits.push_back(below(make_key(42), i, 10));
  check(digits == std::vector<std::size_t>{3, 9, 1, 8, 0, 1, 5, 8, 4, 2, 9, 7}, "digits");
  check(shuffled(10, make_key(42)) == std::vector<int>{1, 6, 8, 4, 0, 7, 5, 3, 2, 9}, "shuffled");
}

void check_uniform() {
  const Key key = make_key(1);
  constexpr std::size_t draws = 200'000;
  double sum = 0, squares = 0;
  bool inside = true, whole = true, odd = false;
  for (std::uint64_t i = 0; i < draws; ++i) {
    const double u = uniform(key, i), steps = u * 0x1p53;
    inside = inside && u >= 0 && u < 1;
    whole = whole && steps == std::floor(steps);
    odd = odd || std::fmod(steps, 2) == 1;
    sum += u, squares += u * u;
  }
  check(inside, "0 <= u < 1");
  check(whole && odd, "multiples of 2^-53, odd ones too");
  near("mean", sum / draws, 0.5, 5 * 0.289 / std::sqrt(draws));
  near("mean square", squares / draws, 1.0 / 3, 5 * 0.298 / std::sqrt(draws));
}

void check_below() {
  const Key key = make_key(2);
  for (const std::size_t n : {std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{1000},
                              (std::size_t{1} << 32) + 1, std::size_t{1} << 53}) {
    std::size_t largest = 0;
    for (std::uint64_t i = 0; i < 10'000; ++i) largest = std::max(largest, below(key, i, n));
    check(largest < n, join("largest below ", n));
    check(static_cast<double>(largest) >= 0.99 * static_cast<double>(n - 1), "reaches the end");
  }
  for (const std::size_t n : {2u, 7u, 100u}) {
    std::vector<std::size_t> counts(n);
    for (std::uint64_t i = 0; i < 100'000; ++i) ++counts[below(fold_in(key, n), i, n)];
    check_equally_likely(counts, n - 1);
  }
}

void check_permutations() {
  for (const std::size_t size : {0u, 1u, 2u, 10u, 1000u}) {
    std::vector<int> elements = shuffled(size, make_key(3));
    if (size >= 10) check(!std::is_sorted(elements.begin(), elements.end()), "moved");
    std::sort(elements.begin(), elements.end());
    for (std::size_t i = 0; i < size; ++i) check_equal(elements[i], static_cast<int>(i));
  }
  check(shuffled(100, make_key(3)) == shuffled(100, make_key(3)), "same key, same order");
  check(shuffled(100, make_key(3)) != shuffled(100, make_key(4)), "other key, other order");
}

// Each of the 24 orders of 4 elements, and each of 8 elements in each of 8 places.
void check_fair_shuffle() {
  constexpr std::size_t trials = 48'000;
  std::map<std::vector<int>, std::size_t> orders;
  std::vector<std::size_t> places(64);
  for (std::size_t trial = 0; trial < trials; ++trial) {
    ++orders[shuffled(4, fold_in(make_key(5), trial))];
    const std::vector<int> order = shuffled(8, fold_in(make_key(6), trial));
    for (std::size_t i = 0; i < 8; ++i) ++places[i * 8 + static_cast<std::size_t>(order[i])];
  }
  std::vector<std::size_t> counts;
  for (const auto& [order, count] : orders) counts.push_back(count);
  check_equal(counts.size(), std::size_t{24});
  check_equally_likely(counts, 23);
  check_equally_likely(places, 49);  // rows and columns have fixed sums: 7 x 7 are free
}

// Moments of the normal distribution cut at a = 2, with f its density at a and P the mass inside:
// E z^2 = 1 - 2 a f / P,  E z^4 = 3 E z^2 - 2 a^3 f / P.
void check_truncated_normal() {
  constexpr std::size_t draws = 200'000;
  double sum = 0, squares = 0, fourths = 0, extreme = 0, within_one = 0;
  for (std::uint64_t i = 0; i < draws; ++i) {
    const double z = truncated_normal(make_key(7), i);
    sum += z, squares += z * z, fourths += z * z * z * z;
    extreme = std::max(extreme, std::abs(z));
    within_one += std::abs(z) < 1;
  }
  check(extreme <= 2 && extreme > 1.999, join("cut at 2; the largest is ", extreme));
  near("mean", sum / draws, 0, 0.01);
  near("second moment", squares / draws, 0.773741, 0.01);
  near("fourth moment", fourths / draws, 1.416191, 0.03);
  near("share within 1", within_one / draws, 0.715233, 0.006);
}

void check_streams_differ() {
  std::set<std::uint64_t> values;
  std::size_t drawn = 0;
  const auto draw = [&](Key key) {
    for (std::uint64_t i = 0; i < 100; ++i, ++drawn) values.insert(random_bits(key, i));
  };
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32}) {
    for (std::uint64_t stream = 0; stream <= static_cast<std::uint64_t>(Stream::demo); ++stream) {
      const Key key = stream_key(seed, static_cast<Stream>(stream));
      draw(key);
      for (const std::uint64_t step : {0u, 1u, 1000u}) draw(fold_in(key, step));
    }
  }
  check_equal(values.size(), drawn);
  check(random_bits(make_key(8), 0) != random_bits(make_key(8), std::uint64_t{1} << 32),
        "all 64 bits of the counter count");
}

// Neighbouring streams are as unrelated as draws of one: 64 bits, half of them differ.
void check_streams_are_independent() {
  std::size_t different = 0;
  constexpr std::size_t pairs = 10'000;
  for (std::uint64_t i = 0; i < pairs; ++i) {
    const std::uint64_t a = random_bits(fold_in(make_key(9), i), 0);
    const std::uint64_t b = random_bits(fold_in(make_key(9), i + 1), 0);
    different += static_cast<std::size_t>(std::popcount(a ^ b));
  }
  near("differing bits", static_cast<double>(different) / pairs, 32, 5 * 4 / std::sqrt(pairs));
}

void check_call_order() {
  const Key key = make_key(10), other = make_key(11);
  std::vector<double> forward, backward;
  for (std::uint64_t i = 0; i < 1000; ++i) forward.push_back(truncated_normal(key, i));
  for (std::uint64_t i = 1000; i-- > 0;) {
    truncated_normal(other, i);
    uniform(key, i);
    backward.push_back(truncated_normal(key, i));
  }
  std::reverse(backward.begin(), backward.end());
  check(forward == backward, "values depend on key and counter alone");
}

}  // namespace

int main() {
  test("published vectors", check_published_vectors);
  test("pinned values", check_pinned_values);
  test("uniform", check_uniform);
  test("below", check_below);
  test("shuffle gives permutations", check_permutations);
  test("shuffle is fair", check_fair_shuffle);
  test("truncated normal", check_truncated_normal);
  test("streams differ", check_streams_differ);
  test("streams are independent", check_streams_are_independent);
  test("no dependence on call order", check_call_order);
  return finish();
}
