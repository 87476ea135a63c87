// Exercise 2: a wrong gradient of LayerNorm. Read before: chapter 9, normalize(); chapter 10,
// norm_backward().

#include "exercise.hpp"

using namespace bert4rec;
using Row = std::vector<double>;

#ifdef SOLUTION
#include "solutions/02_layer_norm.hpp"
#else
namespace mine {

// Backwards through one row of n numbers: y_i = gain_i z_i + bias_i with z_i = (x_i - mean) inverse
// and inverse = 1 / sqrt(variance + epsilon). dy holds dL/dy and becomes dL/dx; dL/dgain and
// dL/dbias are added to dgain and dbias. All arrays are [n].
void norm_backward(const double* x, detail::RowStatistics<double> row, const double* gain,
                   double* dy, double* dgain, double* dbias, std::size_t n) {
  double mean_e = 0;  // of e_i = dL/dz_i = gain_i dy_i
  for (std::size_t i = 0; i < n; ++i) {
    dgain[i] += dy[i] * (x[i] - row.mean) * row.inverse_deviation;
    dbias[i] += dy[i];
    dy[i] *= gain[i];
    mean_e += dy[i] / static_cast<double>(n);
  }
  for (std::size_t i = 0; i < n; ++i) dy[i] = (dy[i] - mean_e) * row.inverse_deviation;
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

constexpr std::size_t n = 6;
constexpr double epsilon = 1e-5;

struct Example {
  Row x{0.5, -1.2, 2.0, 0.3, -0.7, 1.1}, gain{1.0, 0.8, 1.3, -0.6, 1.1, 0.9};
  Row bias{0.1, 0, -0.2, 0.3, 0, 0.2}, c{1, -2, 0.5, 3, -1, 2};  // c: dL/dy

  detail::RowStatistics<double> forward(Row& y) const {
    return detail::plain::normalize(x.data(), gain.data(), bias.data(), epsilon, y.data(), n);
  }
  double loss() const {  // L = sum_i c_i y_i
    Row y(n);
    forward(y);
    return std::inner_product(y.begin(), y.end(), c.begin(), 0.0);
  }
};

// Central differences: dL/dw_i = (L(w_i + h) - L(w_i - h)) / (2 h), with an error of order h^2.
void compare(std::string_view name, Row Example::*member, const Row& got) {
  for (std::size_t i = 0; i < n; ++i) {
    constexpr double h = 1e-5;
    Example above, below;
    (above.*member)[i] += h, (below.*member)[i] -= h;
    const double expected = (above.loss() - below.loss()) / (2 * h);
    require(close(got[i], expected, 1e-7), "dL/d", name, "[", i, "] is ", number(expected),
            " by finite differences, got ", number(got[i]),
            ". Through what does L depend on it? Each path adds a term.");
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    const Example at;
    Row y(n), dx = at.c, dgain(n), dbias(n), header = at.c;
    const auto row = at.forward(y);
    mine::norm_backward(at.x.data(), row, at.gain.data(), dx.data(), dgain.data(), dbias.data(), n);
    compare("gain", &Example::gain, dgain);
    compare("bias", &Example::bias, dbias);
    compare("x", &Example::x, dx);
    detail::plain::normalize_backward(at.x.data(), row, at.gain.data(), header.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      require(close(dx[i], header[i], 1e-12), "dL/dx[", i, "] is ", number(header[i]),
              " by the header, got ", number(dx[i]));
    }
    return "dL/dx has three terms: x acts on y directly, by the mean and by the deviation";
  });
}
