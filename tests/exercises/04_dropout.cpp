// Exercise 4: dropout without its scale. Read before: chapter 9, dropout() and dropout_scale();
// chapter 3, random_bits().

#include "exercise.hpp"

using namespace bert4rec;

#ifdef SOLUTION
#include "solutions/04_dropout.hpp"
#else
namespace mine {

// y_i = 0 with probability p = threshold / 65536, else so that the mean of y_i is x_i; x[n], y[n]
// are row `row` of the batch. The same key gives the same zeros. When the model is used, dropout is
// not called at all.
void dropout(const float* x, float* y, std::size_t n, Key key, std::uint32_t row,
             std::uint32_t threshold) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t quarter = i / 16 % 4, place = i / detail::dropout_chunk * 16 + i % 16;
    const std::uint64_t bits = random_bits(key, (std::uint64_t{row} << 32) | place);
    const bool falls = (bits >> (16 * quarter) & 0xffff) < threshold;
    y[i] = falls ? 0.0f : x[i];
  }
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

void check_mean(double p) {
  constexpr std::size_t n = 64, rows = 1000;
  double sum = 0;
  std::size_t zeros = 0;
  for (std::uint32_t row = 0; row < rows; ++row) {
    std::vector<float> x(n, 1.0f);
    mine::dropout(x.data(), x.data(), n, make_key(1), row, detail::dropout_threshold(p));
    sum += std::accumulate(x.begin(), x.end(), 0.0);
    zeros += static_cast<std::size_t>(std::count(x.begin(), x.end(), 0.0f));
  }
  const double mean = sum / (n * rows), share = static_cast<double>(zeros) / (n * rows);
  require(close(share, p, 0.01), "with p = ", number(p), " a share of ", number(share),
          " of the numbers became 0, expected p");
  require(close(mean, 1, 0.02), "with p = ", number(p), " the mean of many ones is ", number(mean),
          " behind dropout, expected 1. In use, without dropout, the next layer ",
          "would meet numbers ", number(1 / mean), " times as large as in training.");
}

void check_header() {
  constexpr std::size_t n = 100;
  std::vector<float> x, got(n), expected(n);
  for (std::size_t i = 0; i < n; ++i) x.push_back(static_cast<float>(i) - 50.5f);
  const std::uint32_t threshold = detail::dropout_threshold(0.25);
  mine::dropout(x.data(), got.data(), n, make_key(2), 3, threshold);
  detail::plain::dropout(x.data(), expected.data(), n, make_key(2), 3, threshold);
  for (std::size_t i = 0; i < n; ++i) {
    require(close(got[i], expected[i], 1e-4), "with p = 0.25 the number ", number(x[i]),
            " becomes ", number(expected[i]), ", got ", number(got[i]));
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    for (const double p : {0.1, 0.3, 0.5}) check_mean(p);
    check_header();
    return "what stays is scaled by 1 / (1 - p): the mean is that of the model in use";
  });
}
