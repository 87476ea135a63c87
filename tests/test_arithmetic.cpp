// Chapter 3's functions against the C library's, and what an engine refuses to compute with.

#include <cfenv>

#include "bert4rec.hpp"
#include "check.hpp"
#include "small_data.hpp"

using namespace bert4rec;

namespace {

// |found - expected| in units of the last place of `expected`.
double units(double found, double expected) {
  const double step = std::ldexp(1, std::max(std::ilogb(expected), -1022) - 52);
  return std::abs(found - expected) / step;
}

// Numbers of every order of magnitude in 2^low ... 2^high.
std::vector<double> numbers(int low, int high, std::size_t count) {
  std::vector<double> values;
  for (std::size_t i = 0; i < count; ++i) {
    const double place = uniform(make_key(1), 2 * i);
    const int exponent = low + static_cast<int>(place * (high - low));
    values.push_back(std::ldexp(1 + uniform(make_key(1), 2 * i + 1), exponent));
  }
  return values;
}

void test_log() {
  double worst = 0;
  for (const auto& [low, high] : {std::pair{-1, 1}, {-20, 20}, {-1022, 1023}}) {
    for (const double x : numbers(low, high, 200'000)) {
      worst = std::max(worst, units(detail::natural_log(x), std::log(x)));
    }
  }
  std::cout << "log within " << worst << " units in the last place of the C library's\n";
  check(worst <= 2, join("log: ", worst));
  check_equal(detail::natural_log(1), 0.0);
  check_equal(detail::natural_log(INFINITY), INFINITY);
  check(std::isnan(detail::natural_log(std::nan(""))), "log NaN");
}

void test_cosine_and_power() {
  for (int i = 0; i <= 10'000; ++i) {
    const double x = i / 10'000.0, expected = std::cos(3.14159265358979323846 * x);
    check(std::abs(detail::cosine_of_pi(x) - expected) < 6e-16, join("cos(pi ", x, ")"));
  }
  check_equal(detail::cosine_of_pi(0.5), 0.0);
  for (const double base : {0.0, 0.5, 0.9, 0.999, 0.999999}) {
    for (const std::uint64_t t : {0u, 1u, 2u, 3u, 10u, 777u, 100'000u}) {
      const double expected = std::pow(base, static_cast<double>(t));
      check(std::abs(detail::power(base, t) - expected) <= 1e-11 * expected, join(base, "^", t));
    }
  }
}

// The quantile undone by the distribution function.
void test_truncated_normal() {
  double worst = 0, before = -INFINITY;
  for (int i = -100'000; i <= 100'000; ++i) {
    const double q = i / 100'000.0, z = detail::truncated_normal_quantile(q);
    check(z > before, join("rises at ", q));
    before = z;
    // dq/dz = 2 phi(z) / erf(sqrt 2), so an error of q is so much of z
    const double slope = 2 * 0.3989422804014327 * std::exp(-z * z / 2) / std::erf(std::sqrt(2.0));
    const double error = std::erf(z / std::sqrt(2.0)) / std::erf(std::sqrt(2.0)) - q;
    if (q != 0) worst = std::max(worst, std::abs(error / slope / z));
  }
  std::cout << "truncated normal within " << worst << " (relative)\n";
  check(worst < 1e-8, join("relative error ", worst));
  check_equal(detail::truncated_normal_quantile(0), 0.0);
}

void check_refused(std::string_view part) {
  ModelConfig model = small_model();
  model.num_items = 5;
  check_throws([&] { CpuEngine<float> engine(model, small_train()); },
               {"the arithmetic of this program", part});
}

void test_refusals() {
  check_arithmetic();
  for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(mode);
    check_refused("ties to even");
    std::fesetround(FE_TONEAREST);
  }
#if defined(__x86_64__)
  const unsigned usual = __builtin_ia32_stmxcsr();
  for (const unsigned flag : {0x8000u, 0x0040u}) {  // flush to zero, denormals are zero
    __builtin_ia32_ldmxcsr(usual | flag);
    check_refused("subnormal numbers become 0");
    __builtin_ia32_ldmxcsr(usual);
  }
#endif
  check_arithmetic();
}

}  // namespace

int main() {
  test("log", test_log);
  test("cosine and power", test_cosine_and_power);
  test("truncated normal", test_truncated_normal);
  test("modes of the processor that break the arithmetic are refused", test_refusals);
  return finish();
}
