// The vector kernels against the plain ones, and the instruction sets against each other.

#include "bert4rec.hpp"
#include "check.hpp"
#include "small_data.hpp"

using namespace bert4rec;
using detail::Kernels;

namespace {

std::vector<float> random_floats(std::size_t n, std::uint64_t stream, double size = 1.0) {
  std::vector<float> values(n);
  const Key key = fold_in(make_key(3), stream);
  for (std::size_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>(size * (2 * uniform(key, i) - 1));
  }
  return values;
}

std::vector<double> widened(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

const std::vector<std::size_t> lengths{1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 200, 257};

// Runs `compare(kernels, n)` for every instruction set there is and every length.
template <class Compare>
void for_all(Compare&& compare) {
  for (const Kernels<float>* kernels : detail::available_kernels<float>()) {
    for (const std::size_t n : lengths) compare(*kernels, n);
  }
}

void check_near(const char* what, const std::vector<float>& found,
                const std::vector<double>& expected, double tolerance) {
  check_close(what, std::span(found), std::span(expected), tolerance);
}

struct Shape {
  std::size_t m, n, k;
};

std::vector<Shape> product_shapes() {
  std::vector<Shape> shapes{{1, 1, 1},   {1, 300, 64},   {300, 1, 64},   {13, 33, 1},
                            {12, 32, 8}, {47, 129, 257}, {200, 200, 32}, {64, 48, 700},
                            {5, 7, 0},   {100, 260, 17}, {257, 513, 300}};
  const Key key = make_key(8);
  for (std::uint64_t i = 0; i < 60; ++i) {
    shapes.push_back(
        {1 + below(key, 3 * i, 70), 1 + below(key, 3 * i + 1, 70), below(key, 3 * i + 2, 70)});
  }
  return shapes;
}

enum class Start { zeros, c, bias };

// C of one product by `kernels`, A and B stored with or without transposition, C with a gap
// between its rows that must stay untouched.
std::vector<float> product(const Kernels<float>& kernels, const Shape& shape, bool a_by_row,
                           bool b_by_row, Start start) {
  const auto [m, n, k] = shape;
  const std::vector<float> a = random_floats(m * k, 1), b = random_floats(k * n, 2);
  std::vector<float> c = random_floats(m * (n + 3), 4);
  const std::vector<float> bias = random_floats(n, 5);
  const float* from = start == Start::bias ? bias.data() : c.data();
  Buffer<float> scratch(kernels.scratch_size + 1);
  kernels.multiply(m, n, k, a.data(), a_by_row ? k : 1, a_by_row ? 1 : m, b.data(),
                   b_by_row ? n : 1, b_by_row ? 1 : k, start == Start::zeros ? nullptr : from,
                   start == Start::bias ? 0 : n + 3, c.data(), n + 3, scratch.data());
  return c;
}

void test_products() {
  const std::vector<const Kernels<float>*> all = detail::available_kernels<float>();
  for (const Shape& shape : product_shapes()) {
    for (int form = 0; form < 12; ++form) {
      const bool a_by_row = form & 1, b_by_row = form & 2;
      const auto run = [&](const Kernels<float>& kernels) {
        return product(kernels, shape, a_by_row, b_by_row, static_cast<Start>(form / 4));
      };
      const std::vector<float> plain = run(*all[0]);
      for (std::size_t i = 1; i < all.size(); ++i) {
        check_near(all[i]->name, run(*all[i]), widened(plain), 3e-6);
      }
      if (all.size() == 4) check(run(*all[2]) == run(*all[3]), "avx2 and avx512: same bits");
    }
  }
}

// Every kernel over rows, run one after the other on the same numbers; all that it computes.
std::vector<float> everything(const Kernels<float>& k, std::size_t n) {
  std::vector<float> out;
  const auto keep = [&](const std::vector<float>& values) {
    out.insert(out.end(), values.begin(), values.end());
  };
  const std::vector<float> x = random_floats(n, 1, 3), g = random_floats(n, 2),
                           b = random_floats(n, 3), d = random_floats(n, 4);
  std::vector<float> y = d, z = b, p = x, v = random_floats(n, 5);
  for (float& value : v) value = value * value;
  k.add(x.data(), y.data(), n), keep(y);
  k.scale(y.data(), 0.3f, n), keep(y);
  out.push_back(k.sum_of_squares(x.data(), n));
  out.push_back(k.softmax(p.data(), 0.7f, n)), keep(p);
  k.softmax_backward(p.data(), b.data(), y.data(), 0.7f, n), keep(y);
  k.gelu(x.data(), y.data(), n), keep(y);
  y = d, k.gelu_backward(x.data(), y.data(), n), keep(y);
  k.dropout(d.data(), y.data(), n, make_key(n), 7, detail::dropout_threshold(0.3)), keep(y);
  const auto row = k.normalize(x.data(), g.data(), b.data(), y.data(), n);
  keep(y), out.push_back(row.mean), out.push_back(row.inverse_deviation);
  y = d, k.normalize_parameters(x.data(), row, d.data(), y.data(), z.data(), n), keep(y), keep(z);
  k.normalize_backward(x.data(), row, g.data(), y.data(), n), keep(y);
  std::vector<float> w = g, m = b;
  k.adamw(w.data(), d.data(), m.data(), v.data(), {0.1f, 1e-3f, 1e-8f, 1e-3f, 1.2f, 0.99f, 0.5f},
          n);
  keep(w), keep(m), keep(v);
  return out;
}

// The largest distance of f(x) from the true value over all x, in units of the last place of the
// latter (of 2^-149 below the normal numbers).
template <class True>
double worst_ulp(void (*f)(const float*, float*, std::size_t), const std::vector<float>& x,
                 True&& truth) {
  std::vector<float> y(x.size());
  f(x.data(), y.data(), x.size());
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = truth(static_cast<double>(x[i]));
    const int exponent = std::max(std::ilogb(expected), -126);
    const double error =
        std::abs(static_cast<double>(y[i]) - expected) / std::ldexp(1, exponent - 23);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

// Floats from low to high, evenly in their bits, so that every order of magnitude occurs.
std::vector<float> floats_between(float low, float high, std::size_t count) {
  const auto first = std::bit_cast<std::uint32_t>(low), last = std::bit_cast<std::uint32_t>(high);
  std::vector<float> values;
  for (std::size_t i = 0; i <= count; ++i) {
    const std::uint64_t bits = first + std::uint64_t{last - first} * i / count;
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  }
  return values;
}

void test_exp_and_erf() {
  const std::vector<float> up = floats_between(1e-30f, 88.72f, 400'000),
                           down = floats_between(-1e-30f, -87.33f, 400'000),
                           wide = floats_between(1e-30f, 1e30f, 400'000);
  std::vector<float> minus = wide;
  for (float& value : minus) value = -value;
  const auto exp = [](double x) { return std::exp(x); };
  const auto erf = [](double x) { return std::erf(x); };
  for (const Kernels<float>* kernels : detail::available_kernels<float>()) {
    const double worst_exp =
        std::max(worst_ulp(kernels->exp, up, exp), worst_ulp(kernels->exp, down, exp));
    const double worst_erf =
        std::max(worst_ulp(kernels->erf, wide, erf), worst_ulp(kernels->erf, minus, erf));
    std::cout << kernels->name << ": exp within " << worst_exp << ", erf within " << worst_erf
              << " units in the last place\n";
    check(worst_exp <= 2 && worst_erf <= 2, join(kernels->name, ": 2 units in the last place"));
    const std::vector<float> x{0.0f,  -0.0f,  -87.34f,  -200.0f,      -INFINITY,
                               88.8f, 200.0f, INFINITY, std::nanf("")};
    std::vector<float> y(x.size()), z(x.size());
    kernels->exp(x.data(), y.data(), x.size());
    kernels->erf(x.data(), z.data(), x.size());
    check(y[0] == 1 && y[1] == 1, "exp(0)");
    check(y[2] >= 0 && y[2] < 1.2e-38f && y[3] == 0 && y[4] == 0, "exp of very small numbers");
    check(y[5] == INFINITY && y[6] == INFINITY && y[7] == INFINITY, "exp of large numbers");
    check(z[0] == 0 && z[3] == -1 && z[4] == -1 && z[7] == 1, "erf at the ends");
    check(std::isnan(y[8]) && std::isnan(z[8]), "NaN stays NaN");
  }
}

// Losses of 100 steps with the plain kernels and with each instruction set.
void test_loss_curves() {
  const Dataset data = ring_data(40, 60);
  ModelConfig model = small_model();
  model.num_items = 40, model.max_length = 30, model.hidden_size = 32;
  const auto losses = [&](const Kernels<float>& kernels) {
    CpuEngine<float> engine(model, small_train(), kernels);
    std::vector<double> curve;
    for (std::uint64_t step = 0; step < 100; ++step) {
      Batch batch;
      for (std::size_t user = 0; user < 60; ++user) {
        const Key key = fold_in(fold_in(make_key(1), step), user);
        add_cloze_row(batch, data.histories.row(user), model, 0.2, key);
      }
      curve.push_back(engine.train(batch, step, 1e-3).loss());
    }
    return curve;
  };
  const auto all = detail::available_kernels<float>();
  const std::vector<double> plain = losses(*all[0]);
  check(plain.back() < 0.9 * plain.front(), "the loss falls");
  for (std::size_t i = 1; i < all.size(); ++i) {
    const std::vector<double> curve = losses(*all[i]);
    check(curve != plain, "it is another path");
    for (std::size_t step = 0; step < 100; ++step) {
      check(std::abs(curve[step] - plain[step]) <= 1e-4, join(all[i]->name, " at step ", step));
    }
  }
}

}  // namespace

int main() {
  test("products of all forms and many shapes", test_products);
  test("every row kernel agrees with the plain one", [] {
    for_all([](const Kernels<float>& kernels, std::size_t n) {
      if (n < 3) return;  // LayerNorm of two numbers amplifies rounding
      const std::vector<float> plain = everything(detail::plain_kernels<float>(), n);
      check_near(kernels.name, everything(kernels, n), widened(plain), 2e-5);
    });
  });
  test("avx2 and avx512 give the same bits on whole registers", [] {
    const auto all = detail::available_kernels<float>();
    if (all.size() < 4) return;
    for (const std::size_t n : std::vector<std::size_t>{16, 64, 192, 1024}) {
      check(everything(*all[2], n) == everything(*all[3], n), join("length ", n));
    }
  });
  test("softmax: large scores do not overflow, small ones do not vanish wrongly", [] {
    for_all([](const Kernels<float>& kernels, std::size_t n) {
      std::vector<float> x(n, -1e4f);
      x[n / 2] = 1e4f;
      const float log_sum = kernels.softmax(x.data(), 1.0f, n);
      check_equal(log_sum, 1e4f);
      check_equal(x[n / 2], 1.0f);
      if (n > 1) check_equal(x[n / 2 == 0 ? 1 : 0], 0.0f);
    });
  });
  test("softmax: a NaN score gives a NaN result", [] {
    for_all([](const Kernels<float>& kernels, std::size_t n) {
      std::vector<float> x = random_floats(n, 7);
      x[n - 1] = std::nanf("");
      check(std::isnan(kernels.softmax(x.data(), 1.0f, n)), join(kernels.name, " length ", n));
    });
  });
  test("gelu over its whole range, against double", [] {
    for (const Kernels<float>* kernels : detail::available_kernels<float>()) {
      std::vector<float> x, y;
      std::vector<double> expected;
      for (int i = -12000; i <= 12000; ++i) x.push_back(static_cast<float>(i) * 1e-3f);
      y.resize(x.size());
      for (const float value : x) {
        expected.push_back(0.5 * value * (1 + std::erf(value / std::sqrt(2.0))));
      }
      kernels->gelu(x.data(), y.data(), x.size());
      for (std::size_t i = 0; i < x.size(); ++i) {
        check(std::abs(y[i] - expected[i]) <= 3e-7 * std::max(1.0f, std::abs(x[i])),
              join(kernels->name, " gelu(", x[i], ") = ", y[i]));
      }
    }
  });
  test("exp and erf against double over their whole range", test_exp_and_erf);
  test("a hundred steps on the fast and on the plain path", test_loss_curves);
  test("ranks: how many are above, how many tie", [] {
    for_all([](const Kernels<float>& kernels, std::size_t n) {
      std::vector<float> x(n);
      for (std::size_t i = 0; i < n; ++i) x[i] = static_cast<float>(i % 5);
      const auto counts = kernels.count_above(x.data(), 2.0f, n);
      const auto expected = detail::plain::count_above(x.data(), 2.0f, n);
      check_equal(counts.better, expected.better);
      check_equal(counts.ties, expected.ties);
    });
  });
  test("dropout: the same mask everywhere, its share and its mean", [] {
    const std::size_t n = 100'000;
    const std::uint32_t threshold = detail::dropout_threshold(0.1);
    for (const Kernels<float>* kernels : detail::available_kernels<float>()) {
      std::vector<float> x(n, 1.0f), plain(n, 1.0f);
      kernels->dropout(x.data(), x.data(), n, make_key(4), 9, threshold);
      detail::plain::dropout(plain.data(), plain.data(), n, make_key(4), 9, threshold);
      check(x == plain, "same as plain");
      const auto dropped = static_cast<double>(std::count(x.begin(), x.end(), 0.0f));
      check(std::abs(dropped / double(n) - 0.1) < 0.004, join("dropped ", dropped));
      const double mean = std::accumulate(x.begin(), x.end(), 0.0) / double(n);
      check(std::abs(mean - 1) < 0.005, join("mean ", mean));
    }
  });
  return finish();
}
