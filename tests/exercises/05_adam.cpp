// Exercise 5: Adam without bias correction. Read before: chapter 15, the formulas at its top and
// adam_constants(); chapter 9, adamw().

#include "exercise.hpp"

using namespace bert4rec;

// What Adam remembers of n weights; all 0 at the beginning.
struct Moments {
  explicit Moments(std::size_t n) : m(n), v(n) {}
  std::vector<double> m, v;  // means of g and of g^2 [n]
  std::uint64_t t = 0;       // steps so far
};

#ifdef SOLUTION
#include "solutions/05_adam.hpp"
#else
namespace mine {

// One step, without weight decay, on the weights w[n] with the gradient g[n]:
//   m and v move towards g and g^2,   w = w - lr mean / (sqrt(mean of squares) + epsilon),
// where the means are estimates that are right on average from the very first step.
void adam(std::span<double> w, std::span<const double> g, Moments& moments,
          const TrainConfig& config) {
  ++moments.t;
  for (std::size_t i = 0; i < w.size(); ++i) {
    double &m = moments.m[i], &v = moments.v[i];
    m += (1 - config.adam_beta1) * (g[i] - m);
    v += (1 - config.adam_beta2) * (g[i] * g[i] - v);
    w[i] -= config.learning_rate * m / (std::sqrt(v) + config.adam_epsilon);
  }
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

const TrainConfig config{.learning_rate = 0.001};

// mean = g and mean of squares = g^2 after one step, whatever g is.
void check_first_step() {
  for (const double g : {0.01, 1.0, -1000.0}) {
    std::vector<double> w{0};
    Moments moments(1);
    mine::adam(w, std::array{g}, moments, config);
    const double expected = g > 0 ? -config.learning_rate : config.learning_rate;
    require(close(w[0], expected, 1e-8), "the first step with the gradient ", number(g),
            " moved a weight by ", number(w[0]), ", expected ", number(expected),
            ", the learning rate. m and v begin at 0 and have not forgotten it yet.");
  }
}

// The same gradients for the header, whose learning rate holds one correction, and
// root_correction the other.
void check_many_steps() {
  constexpr std::size_t n = 3;
  std::vector<double> w(n), same(n), m(n), v(n), g(n);
  Moments moments(n);
  for (std::uint64_t t = 1; t <= 300; ++t) {
    for (std::size_t i = 0; i < n; ++i) {
      g[i] = uniform(make_key(t), i) - 0.3 * static_cast<double>(i);
    }
    mine::adam(w, g, moments, config);
    const auto constants = adam_constants<double>(config, t, config.learning_rate, 1);
    detail::plain::adamw(same.data(), g.data(), m.data(), v.data(), constants[0], n);
    for (std::size_t i = 0; i < n; ++i) {
      require(close(w[i], same[i], 1e-10), "after ", t, " steps weight ", i, " is ",
              number(same[i]), " by the header, got ", number(w[i]));
    }
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    check_first_step();
    check_many_steps();
    return "divided by 1 - beta^t, m and v are means from the first step on, which so moves by lr";
  });
}
