// AdamW that puts off the steps of rows without gradient, against AdamW that does every step on
// every row: kernels, optimizer and engine.

#include "bert4rec.hpp"
#include "check.hpp"

using namespace bert4rec;

namespace {

template <class Real>
using Constants = detail::AdamConstants<Real>;

// Of steps 1 ... count with the usual settings and a learning rate that falls.
template <class Real>
std::vector<Constants<Real>> some_steps(std::size_t count, double rest_factor) {
  std::vector<Constants<Real>> steps;
  for (std::size_t t = 1; t <= count; ++t) {
    const auto rate = 1e-3 - 1e-6 * static_cast<double>(t);
    steps.push_back(
        {Real(0.1), Real(0.001), Real(1e-8), static_cast<Real>(rate / (1 - detail::power(0.9, t))),
         static_cast<Real>(1 / std::sqrt(1 - detail::power(0.999, t))),
         static_cast<Real>(1 - 0.01 * rate), Real(0.5), static_cast<Real>(rest_factor)});
  }
  return steps;
}

// Weights and moments: of some elements m is 0, of some v as well; of some m is too small to count.
template <class Real>
struct Row {
  std::vector<Real> p, m, v;
  explicit Row(std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
      const auto value = [&](std::uint64_t stream) {
        return static_cast<Real>(uniform(make_key(stream), i) - 0.5);
      };
      p.push_back(value(1)), m.push_back(i % 7 == 3 ? Real(0) : value(2));
      v.push_back(i % 14 == 3 ? Real(0) : value(3) * value(3) * Real(0.1));
      if (i % 7 == 5) m.back() *= Real(1e-8);
      if (i % 7 == 6) p.back() = -Real(0);
    }
  }
  void replay(const detail::Kernels<Real>& kernels, std::span<const Constants<Real>> steps) {
    kernels.adamw_replay(p.data(), m.data(), v.data(), steps, p.size());
  }
  bool operator==(const Row&) const = default;
};

template <class Real>
void check_replay(const detail::Kernels<Real>& kernels) {
  const auto exact = some_steps<Real>(50, std::numeric_limits<double>::infinity());
  const auto usual = some_steps<Real>(300, 0x1p17 / (1 - 0.9 / std::sqrt(0.999)));
  for (const std::size_t n : std::vector<std::size_t>{1, 3, 8, 16, 33, 64, 70, 128}) {
    Row<Real> row(n), dense(n);
    row.replay(kernels, exact);
    const std::vector<Real> zeros(n);
    for (const Constants<Real>& c : exact) {
      kernels.adamw(dense.p.data(), zeros.data(), dense.m.data(), dense.v.data(), c, n);
    }
    check(row == dense, join(kernels.name, " ", n, ": the bits of steps with gradient 0"));

    Row<Real> once(n), plain(n), pieces(n);
    once.replay(kernels, usual);
    plain.replay(detail::plain_kernels<Real>(), usual);
    check(once == plain, join(kernels.name, " ", n, ": the bits of the plain kernel"));
    const std::span<const Constants<Real>> steps = usual;
    for (std::size_t at = 0, length = 0; at < steps.size(); at += length, length = length % 9 + 1) {
      pieces.replay(kernels, steps.subspan(at, std::min(length, steps.size() - at)));
    }
    check(once == pieces, join(kernels.name, " ", n, ": the same bits in pieces"));
    check(std::count(once.m.begin(), once.m.end(), Real(0)) == std::ssize(once.m), "m ends at 0");
  }
}

void test_replay() {
  for (const auto* kernels : detail::available_kernels<float>()) check_replay<float>(*kernels);
  check_replay<double>(detail::plain_kernels<double>());
}

// Two optimizers with the same gradients, of which one does every step on every row: to it no
// tensor has bigrams.
template <class Real>
struct Pair {
  static constexpr std::size_t tokens = 150, bigrams = 80, width = 9;

  Pair(const TrainConfig& config, std::size_t threads)
      : train(config), compute(threads, 1, 1, detail::kernels<Real>()) {}

  static TensorTable make_table(Rows of_bigrams) {
    TensorTable made;
    made.add("first", {3, 5}, Init::zeros);
    made.add("item", {tokens, width}, Init::zeros, Rows::tokens);
    made.add("bigram", {bigrams, 5}, Init::zeros, of_bigrams);
    made.add("second", {11, 13}, Init::zeros);
    made.add("third", {7}, Init::zeros);
    made.add("output", {tokens, width}, Init::zeros, Rows::tokens);
    made.add("bias", {tokens}, Init::zeros, Rows::tokens);
    return made;
  }

  std::vector<Real> first_weights() const {
    std::vector<Real> w;
    for (std::size_t i = 0; i < table.size(); ++i) {
      w.push_back(static_cast<Real>(0.04 * (uniform(make_key(1), i) - 0.5)));
    }
    return w;
  }

  // Touches each row with a chance, and PAD always. Returns both norms of the gradient.
  std::pair<double, double> step(std::uint64_t t, double chance, double rate) {
    const Key key = fold_in(make_key(2), t);
    Batch batch;
    for (std::size_t token = 0; token < tokens; ++token) {
      if (token == 0 || uniform(key, token) < chance) {
        batch.tokens.push_back(static_cast<std::int32_t>(token));
      }
    }
    batch.end_row();
    for (std::size_t i = 0; i < tokens; ++i) {  // some of them twice
      const auto bigram = static_cast<std::int32_t>(below(fold_in(key, 2), i, bigrams));
      if (i == 0 || uniform(fold_in(key, 3), i) < chance) batch.bigrams.push_back(bigram);
    }
    lazy.begin(batch), dense.begin(batch);
    check(std::count(lazy_g.begin(), lazy_g.end(), Real(0)) == std::ssize(lazy_g), "cleared");
    for (const TensorSpec& spec : table) {
      const auto add = [&](std::size_t i) {
        lazy_g[i] = dense_g[i] = static_cast<Real>(uniform(fold_in(key, 1), i) - 0.5);
      };
      const std::size_t row = spec.size / spec.shape[0];
      for (std::size_t i = 0; i < spec.size; ++i) {
        if (spec.rows == Rows::other) add(spec.offset + i);
      }
      const std::vector<std::int32_t> none;
      for (const std::int32_t touched : spec.rows == Rows::tokens    ? batch.tokens
                                        : spec.rows == Rows::bigrams ? batch.bigrams
                                                                     : none) {
        for (std::size_t i = 0; i < row; ++i) {
          add(spec.offset + static_cast<std::size_t>(touched) * row + i);
        }
      }
    }
    const std::pair norms(lazy.gradient_norm(), dense.gradient_norm());
    lazy.step(t, rate, 0.7), dense.step(t, rate, 0.7);
    return norms;
  }

  // The largest distance of a weight, and whether weights and moments have the same bits.
  double distance() {
    lazy.catch_up();
    double worst = 0;
    for (std::size_t i = 0; i < table.size(); ++i) {
      worst = std::max(worst, static_cast<double>(std::abs(lazy_w[i] - dense_w[i])));
    }
    return worst;
  }
  bool same() {
    lazy.catch_up();
    const auto equal = [](const Buffer<Real>& a, const Buffer<Real>& b) {
      return std::equal(a.data(), a.data() + a.size(), b.data());
    };
    return lazy_w == dense_w && equal(lazy.first_moment(), dense.first_moment()) &&
           equal(lazy.second_moment(), dense.second_moment());
  }

  TrainConfig train;
  TensorTable table = make_table(Rows::bigrams), table_of_dense = make_table(Rows::other);
  std::vector<Real> lazy_w = first_weights(), dense_w = lazy_w;
  std::vector<Real> lazy_g = std::vector<Real>(table.size()), dense_g = lazy_g;
  Compute<Real> compute;
  AdamW<Real> lazy{compute, table, train, true, lazy_w.data(), lazy_g.data()};
  AdamW<Real> dense{compute, table_of_dense, train, false, dense_w.data(), dense_g.data()};
};

template <class Real>
void test_same_bits() {
  Pair<Real> pair({.weight_decay = 0.1}, 3);
  for (std::uint64_t t = 1; t <= 60; ++t) {
    const auto [norm, expected] = pair.step(t, 0.05, 1e-3);
    check(std::abs(norm - expected) <= 1e-6 * expected, join("norm ", norm, ", ", expected));
    if (t % 20 == 0) check(pair.same(), join("step ", t));
  }
}

// A gradient in one piece has the rows that were touched, of all tables, and nothing else.
void test_packed() {
  Pair<float> pair({}, 1);
  pair.step(1, 0.1, 1e-3);
  const std::vector<float> gradient = pair.lazy_g;
  std::vector<float> message(pair.lazy.packed_size());
  pair.lazy.for_packed(message.data(), [](const float* from, float* to, std::size_t n) {
    std::copy_n(from, n, to);
  });
  std::fill(pair.lazy_g.begin(), pair.lazy_g.end(), 0.0f);
  pair.lazy.for_packed(message.data(), [](float* to, const float* from, std::size_t n) {
    std::copy_n(from, n, to);
  });
  check(pair.lazy_g == gradient, "packed and unpacked");
  const auto is_zero = [](float x) { return x == 0; };
  const auto zeros = std::count_if(gradient.begin(), gradient.end(), is_zero);
  check_equal(message.size(), gradient.size() - static_cast<std::size_t>(zeros));
  check(zeros > 1000, "most rows were left alone");
}

// 3,000 steps with a warm-up and a rate that falls, whatever share of the rows a step touches.
template <class Real>
void test_accuracy() {
  for (const double chance : {0.1, 0.01, 0.002}) {
    TrainConfig train{.weight_decay = 0.1, .schedule = Schedule::linear, .warmup_steps = 300};
    Pair<Real> pair(train, 1);
    for (std::uint64_t t = 1; t <= 3000; ++t) {
      pair.step(t, chance, learning_rate_at(train, t - 1, 3000));
    }
    const double distance = pair.distance();
    std::cout << "touched " << chance << ": largest distance " << distance << "\n";
    check(distance <= 1e-7, join(distance));
  }
}

// What m would still do must be counted even where it fades more slowly than the root of v.
void test_unusual_memories() {
  for (const auto& [beta1, beta2] : {std::pair(0.99, 0.9), std::pair(0.9, 0.0), {0.0, 0.999}}) {
    TrainConfig train{.adam_beta1 = beta1, .adam_beta2 = beta2, .adam_epsilon = 1e-3};
    Pair<double> pair(train, 1);
    for (std::uint64_t t = 1; t <= 600; ++t) pair.step(t, 0.01, 1e-3);
    check(pair.distance() <= 1e-8, join(beta1, " ", beta2, ": ", pair.distance()));
  }
}

}  // namespace

// Heads whose engine does every step on every row.
template <class Real>
struct EveryItem : ItemHead<Real> {
  using ItemHead<Real>::ItemHead;
  static bool draws(const TrainConfig&) { return false; }
};
template <class Real>
struct EveryMatch : MatchingHead<Real> {
  using MatchingHead<Real>::MatchingHead;
  static bool draws(const TrainConfig&) { return false; }
};

namespace {

ModelConfig many_items(Architecture architecture, TaskKind task = TaskKind::items) {
  return {.num_items = 300,
          .hidden_size = 12,
          .num_layers = 1,
          .num_heads = 2,
          .max_length = 6,
          .architecture = architecture,
          .task = task};
}

Batch small_batch(const ModelConfig& model, std::uint64_t step) {
  Batch batch;
  const Key key = fold_in(make_key(7), step);
  const auto draw = [&](std::uint64_t i) {
    return static_cast<std::int32_t>(below(key, i, model.num_items));
  };
  for (std::uint64_t row = 0; row < 3; ++row) {
    std::vector<std::int32_t> items;
    for (std::uint64_t i = 0; i < 5; ++i) items.push_back(draw(10 * row + i));
    add_cloze_row(batch, items, model, 0.4, fold_in(key, row));
  }
  if (model.task == TaskKind::matching) {
    for (std::uint64_t i = 0; i < 2 * batch.asked.size(); ++i) {
      batch.own_negatives.push_back(draw(100 + i));
    }
  } else {
    for (std::uint64_t i = 0; i < 4; ++i) batch.negatives.push_back(draw(100 + i));
    batch.log_expected.assign(4, -4.0f);
  }
  return batch;
}

std::vector<float> numbers_of(Engine& engine) {
  std::vector<float> numbers;
  for (const State state : {State::second_moment, State::parameters, State::first_moment}) {
    std::vector<float> values(engine.table().size());
    engine.read(state, values);
    numbers.insert(numbers.end(), values.begin(), values.end());
  }
  return numbers;
}

// Steps, each `pause` of which somebody looks at the engine in one way or another.
std::vector<float> numbers_after(Engine& engine, std::uint64_t steps, std::uint64_t pause) {
  for (std::uint64_t step = 0; step < steps; ++step) {
    const Batch batch = small_batch(engine.config(), step);
    engine.train(batch, step, 1e-2);
    if ((step + 1) % pause != 0) continue;
    std::vector<float> scores(batch.asked.size() * engine.config().num_items);
    if (step % 3 == 0) engine.score(batch, scores);
    if (step % 3 == 1) engine.evaluate(batch);
    if (step % 3 == 2) numbers_of(engine);
  }
  return numbers_of(engine);
}

// The bits of an engine that does every step, as long as no row waits until its m is forgotten; and
// whoever looks finds all rows up to date and changes nothing.
template <template <class> class Head, template <class> class Every>
void check_engine(const ModelConfig& model) {
  TrainConfig train{.weight_decay = 0.1, .threads = 2, .loss = Loss::sampled_softmax};
  if (model.task == TaskKind::matching) train.loss = Loss::softmax;
  const std::uint64_t never = 1000;
  CpuEngine<float, Head> lazy(model, train);
  CpuEngine<float, Every> dense(model, train);
  const std::string name = join(enum_name(model.architecture), ", ", enum_name(model.task));
  check(numbers_after(lazy, 60, never) == numbers_after(dense, 60, never), name + ": every step");
  CpuEngine<float, Head> one(model, train), other(model, train);
  check(numbers_after(one, 400, never) == numbers_after(other, 400, 7), name + ": looked at");
  std::vector<float> scores(small_batch(model, 5).asked.size() * model.num_items), again = scores;
  const Batch batch = small_batch(model, 5);
  one.train(batch, 400, 1e-2), other.train(batch, 400, 1e-2), numbers_of(other);
  one.score(batch, scores), other.score(batch, again);
  check(scores == again, name + ": scores of rows that are up to date");
  one.train(batch, 401, 1e-2), other.train(batch, 401, 1e-2), numbers_of(other);
  check(one.evaluate(batch).loss_sum == other.evaluate(batch).loss_sum, name + ": evaluated");
}

void test_engine() {
  check_engine<ItemHead, EveryItem>(many_items(Architecture::torch));
  check_engine<ItemHead, EveryItem>(many_items(Architecture::paper));
  check_engine<MatchingHead, EveryMatch>(many_items(Architecture::torch, TaskKind::matching));
}

}  // namespace

int main() {
  test("steps with gradient 0, replayed", test_replay);
  test("rows that wait have the same bits: float", test_same_bits<float>);
  test("rows that wait have the same bits: double", test_same_bits<double>);
  test("rows that wait long: float", test_accuracy<float>);
  test("rows that wait long: double", test_accuracy<double>);
  test("unusual memories of AdamW", test_unusual_memories);
  test("an engine whose rows wait", test_engine);
  test("a gradient in one piece", test_packed);
  return finish();
}
