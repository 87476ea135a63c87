// The kernels: every instruction set gives the bits of the plain loops, and those are right.

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

const std::vector<std::size_t> lengths{1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 200, 257};

// Runs `compare(kernels, n)` for every instruction set there is and every length.
template <class Compare>
void for_all(Compare&& compare) {
  for (const Kernels<float>* kernels : detail::available_kernels<float>()) {
    for (const std::size_t n : lengths) compare(*kernels, n);
  }
}

// Same bits, NaN included; the first that differs is reported.
bool check_same(std::string_view what, const std::vector<float>& found,
                const std::vector<float>& expected) {
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (bits(found[i]) == bits(expected[i])) continue;
    return check(false, join(what, ": number ", i, " is ", found[i], ", in plain ", expected[i]));
  }
  return check(found.size() == expected.size(), what);
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

// Floats between the rows (or columns) of a matrix; in C they must stay untouched.
constexpr std::size_t gap = 3;

// C of one product by `kernels`, A and B stored with or without transposition.
std::vector<float> product(const Kernels<float>& kernels, const Shape& shape, bool a_by_row,
                           bool b_by_row, Start start) {
  const auto [m, n, k] = shape;
  const std::size_t a_row = a_by_row ? k + gap : 1, a_col = a_by_row ? 1 : m + gap;
  const std::size_t b_row = b_by_row ? n + gap : 1, b_col = b_by_row ? 1 : k + gap;
  // An empty vector may have no address, to which no offset may be added.
  const auto matrix = [](std::size_t size, std::uint64_t seed) {
    return random_floats(std::max<std::size_t>(size, 1), seed);
  };
  const std::vector<float> a = matrix(a_by_row ? m * a_row : k * a_col, 1),
                           b = matrix(b_by_row ? k * b_row : n * b_col, 2);
  std::vector<float> c = random_floats(m * (n + gap), 4);
  const std::vector<float> bias = random_floats(n, 5);
  const float* from = start == Start::bias ? bias.data() : c.data();
  Buffer<float> scratch(kernels.scratch_size + 1);
  kernels.multiply(m, n, k, a.data(), a_row, a_col, b.data(), b_row, b_col,
                   start == Start::zeros ? nullptr : from, start == Start::bias ? 0 : n + gap,
                   c.data(), n + gap, scratch.data());
  return c;
}

// A product by every instruction set against the plain one, in all forms.
void compare_products(const Shape& shape) {
  const std::vector<const Kernels<float>*> all = detail::available_kernels<float>();
  for (int form = 0; form < 12; ++form) {
    const bool a_by_row = form & 1, b_by_row = form & 2;
    const auto run = [&](const Kernels<float>& kernels) {
      return product(kernels, shape, a_by_row, b_by_row, static_cast<Start>(form / 4));
    };
    const std::vector<float> plain = run(*all[0]);
    for (const Kernels<float>* kernels : all) {
      const auto [m, n, k] = shape;
      check_same(join(kernels->name, " ", m, " x ", n, " x ", k, ", form ", form), run(*kernels),
                 plain);
    }
  }
}

void test_products() {
  for (const Shape& shape : product_shapes()) compare_products(shape);
}

// Those that stream a B that lies by columns, and a few rows more: whole registers of columns and
// odd ones, whole steps along k and odd ones.
void test_products_of_few_rows() {
  const std::vector<std::size_t> columns{3, 4, 8, 15, 16, 33, 48, 67},
      depths{0, 1, 3, 4, 6, 16, 35, 64};
  for (std::size_t m = 1; m <= 12; ++m) {
    for (const std::size_t n : columns) {
      for (const std::size_t k : depths) compare_products({m, n, k});
    }
  }
  compare_products({1, 2000, 64});
  compare_products({8, 39, 700});
}

// Against sums in double, whatever their order.
void test_plain_product() {
  const Shape shape{13, 33, 300};
  const std::size_t a_row = shape.k + gap, b_row = shape.n + gap, c_row = shape.n + gap;
  const std::vector<float> a = random_floats(shape.m * a_row, 1),
                           b = random_floats(shape.k * b_row, 2);
  const std::vector<float> c =
      product(detail::plain_kernels<float>(), shape, true, true, Start::zeros);
  for (std::size_t i = 0; i < shape.m; ++i) {
    for (std::size_t j = 0; j < shape.n; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < shape.k; ++k) {
        sum += double(a[i * a_row + k]) * double(b[k * b_row + j]);
      }
      check(std::abs(c[i * c_row + j] - sum) < 1e-4, join("element ", i, " ", j));
    }
  }
}

// Every kernel over rows, run one after the other on the same numbers; all that it computes.
template <class Real>
std::vector<Real> everything(const Kernels<Real>& k, std::size_t n) {
  using Row = std::vector<Real>;
  Row out;
  const auto keep = [&](const Row& values) { out.insert(out.end(), values.begin(), values.end()); };
  const auto random = [&](std::uint64_t stream, double size = 1.0) {
    const std::vector<float> values = random_floats(n, stream, size);
    return Row(values.begin(), values.end());
  };
  const Row x = random(1, 3), g = random(2), b = random(3), d = random(4);
  Row y = d, z = b, p = x, v = random(5);
  for (Real& value : v) value = value * value;
  k.add(x.data(), y.data(), n), keep(y);
  k.scale(y.data(), Real(0.3f), n), keep(y);
  k.add_scaled(Real(0.7f), x.data(), y.data(), n), keep(y);
  out.push_back(k.dot(x.data(), d.data(), n));
  out.push_back(k.sum_of_squares(x.data(), n));
  p = random(6, 20), p[n / 2] = -std::numeric_limits<Real>::infinity();
  out.push_back(static_cast<Real>(k.logistic(p.data(), n))), keep(p);
  p = x;
  const auto sum = k.softmax(p.data(), Real(0.7f), n);
  keep(p), out.push_back(sum.largest), out.push_back(sum.sum);
  k.softmax_backward(p.data(), b.data(), y.data(), Real(0.7f), n), keep(y);
  k.gelu(x.data(), y.data(), n), keep(y);
  y = d, k.gelu_backward(x.data(), y.data(), n), keep(y);
  k.dropout(d.data(), y.data(), n, make_key(n), 7, detail::dropout_threshold(0.3)), keep(y);
  const auto row = k.normalize(x.data(), g.data(), b.data(), Real(1e-5f), y.data(), n);
  keep(y), out.push_back(row.mean), out.push_back(row.inverse_deviation);
  y = d, k.normalize_parameters(x.data(), row, d.data(), y.data(), z.data(), n), keep(y), keep(z);
  k.normalize_backward(x.data(), row, g.data(), y.data(), n), keep(y);
  Row w = g, m = b;
  k.adamw(w.data(), d.data(), m.data(), v.data(),
          {Real(0.1f), Real(1e-3f), Real(1e-8f), Real(1e-3f), Real(1.2f), Real(0.99f), Real(0.5f),
           Real(1e6f)},
          n);
  keep(w), keep(m), keep(v);
  const detail::AdamConstants<Real> late{Real(0.1f), Real(0.1f),  Real(1e-8f), Real(1e-3f),
                                         Real(1.2f), Real(0.99f), Real(0.5f),  Real(3)};
  const std::vector<detail::AdamConstants<Real>> steps(5, late);
  k.adamw_replay(w.data(), m.data(), v.data(), steps, n), keep(w), keep(m), keep(v);
  k.exp(x.data(), y.data(), n), keep(y);
  k.erf(x.data(), y.data(), n), keep(y);
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

// Losses of 30 steps in float and, with the C library's functions, in double.
void test_loss_curves() {
  const Dataset data = ring_data(40, 60);
  ModelConfig model = small_model();
  model.num_items = 40, model.max_length = 30, model.hidden_size = 32;
  const auto losses = [&](Engine& engine) {
    std::vector<double> curve;
    for (std::uint64_t step = 0; step < 30; ++step) {
      Batch batch;
      for (std::size_t user = 0; user < 60; ++user) {
        const Key key = fold_in(fold_in(make_key(1), step), user);
        add_cloze_row(batch, data.histories.row(user), model, 0.2, key);
      }
      curve.push_back(engine.train(batch, step, 3e-3).loss());
    }
    return curve;
  };
  CpuEngine<float> fast(model, small_train());
  CpuEngine<double> exact(model, small_train());
  const std::vector<double> curve = losses(fast), expected = losses(exact);
  check(expected.back() < 0.97 * expected.front(), join("the loss falls to ", expected.back()));
  for (std::size_t step = 0; step < curve.size(); ++step) {
    check(std::abs(curve[step] - expected[step]) <= 1e-4, join("step ", step));
  }
}

// Numbers of all sizes, among them many whose last bits decide a rounding.
std::vector<float> hard_floats(std::size_t n, std::uint64_t stream) {
  std::vector<float> values;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t draw = random_bits(fold_in(make_key(5), stream), i);
    const auto mantissa = static_cast<std::uint32_t>(draw) & (draw >> 60 & 1 ? 0x7ff001u : ~0u);
    const auto exponent = static_cast<std::uint32_t>(draw >> 32) % 60 + 97;
    const std::uint32_t bits = (mantissa & 0x807fffffu) | exponent << 23;
    values.push_back(std::bit_cast<float>(bits));
  }
  return values;
}

// The C library's multiply-add; but MinGW's rounds twice, so there fused() itself is compared with
// the instruction that the vector kernels use.
float expected_fma(float a, float b, float c) {
#ifdef _WIN32
  return detail::fused(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

void test_fused() {
  const std::size_t n = 1'000'000;
  std::vector<float> a = hard_floats(n, 1), b = hard_floats(n, 2), c = hard_floats(n, 3);
  std::size_t rounded_twice = 0;
  for (std::size_t i = 0; i < n; ++i) {
    // Every fourth sum nearly vanishes. Of every fourth the product is half a step of c, but for
    // so little that a sum in double does not see it.
    if (i % 4 == 1) c[i] = -a[i] * b[i];
    if (i % 4 == 2) {
      a[i] = 1 + 0x1p-23f;
      b[i] = std::copysign(std::ldexp(1 - 0x1p-23f, std::ilogb(c[i]) - 24), b[i]);
    }
    const float expected = expected_fma(a[i], b[i], c[i]), found = detail::fused(a[i], b[i], c[i]);
    const double sum = double(a[i]) * double(b[i]) + double(c[i]);
    rounded_twice += static_cast<float>(sum) != expected;
    if (std::bit_cast<std::uint32_t>(found) != std::bit_cast<std::uint32_t>(expected)) {
      check(false, join(a[i], " * ", b[i], " + ", c[i], " = ", found, ", expected ", expected));
      return;
    }
  }
  check(rounded_twice > n / 10, join("hard cases: ", rounded_twice));
  const float tiny = 0x1p-140f, inf = INFINITY;
  check_equal(detail::fused(tiny, 0.5f, 0x1p-149f), 0x1p-141f + 0x1p-149f);
  check_equal(detail::fused(0x1p-75f, 0x1.8p-75f, 0.0f), 0x1p-149f);
  check_equal(detail::fused(inf, 2.0f, 1.0f), inf);
  check_equal(detail::fused(0x1p127f, 2.0f, -0x1p127f), 0x1p127f);
  check(std::isnan(detail::fused(inf, 0.0f, 1.0f)), "infinity times 0");
  // The vectors' own, through a product of one term.
  for (const Kernels<float>* kernels : detail::available_kernels<float>()) {
    Buffer<float> scratch(kernels->scratch_size + 1);
    for (std::size_t i = 0; i < 20'000; ++i) {
      float found = 0;
      kernels->multiply(1, 1, 1, &a[i], 1, 1, &b[i], 1, 1, &c[i], 1, &found, 1, scratch.data());
      const float expected = expected_fma(a[i], b[i], c[i]);
      if (!check_same(kernels->name, {found}, {expected})) return;
    }
  }
}

void test_gelu() {
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
}

}  // namespace

int main() {
  test("products of all forms and many shapes", test_products);
  test("products of few rows", test_products_of_few_rows);
  test("a plain product against double", test_plain_product);
  test("every instruction set gives the bits of the plain loops", [] {
    std::vector<std::size_t> every{403, 1000};
    for (std::size_t n = 1; n <= 130; ++n) every.push_back(n);
    for (const std::size_t n : every) {
      const std::vector<float> plain = everything(detail::plain_kernels<float>(), n);
      for (const Kernels<float>* kernels : detail::available_kernels<float>()) {
        check_same(join(kernels->name, " length ", n), everything(*kernels, n), plain);
      }
    }
  });
  test("every plain loop in float agrees with its double", [] {
    for (const std::size_t n : lengths) {
      if (n < 3) continue;  // LayerNorm of two numbers amplifies rounding
      const std::vector<float> found = everything(detail::plain_kernels<float>(), n);
      const std::vector<double> expected = everything(detail::plain_kernels<double>(), n);
      check_close("plain", std::span(found), std::span(expected), 2e-5);
    }
  });
  test("a multiply-add is rounded once", test_fused);
  test("softmax: large scores do not overflow, small ones do not vanish wrongly", [] {
    for_all([](const Kernels<float>& kernels, std::size_t n) {
      std::vector<float> x(n, -1e4f);
      x[n / 2] = 1e4f;
      const auto sum = kernels.softmax(x.data(), 1.0f, n);
      check_equal(sum.largest, 1e4f);
      check_equal(sum.sum, 1.0f);
      check_equal(x[n / 2], 1.0f);
      if (n > 1) check_equal(x[n / 2 == 0 ? 1 : 0], 0.0f);
    });
  });
  test("softmax: a NaN score gives a NaN result", [] {
    for_all([](const Kernels<float>& kernels, std::size_t n) {
      std::vector<float> x = random_floats(n, 7);
      x[n - 1] = std::nanf("");
      check(std::isnan(kernels.softmax(x.data(), 1.0f, n).sum), join(kernels.name, " length ", n));
    });
  });
  test("gelu over its whole range, against double", test_gelu);
  test("exp and erf against double over their whole range", test_exp_and_erf);
  test("thirty steps in float and in double", test_loss_curves);
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
