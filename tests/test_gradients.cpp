// Every tensor's gradient against central differences in double, for both architectures, with
// dropout on, rows of every length from 1 to the longest, and rows without a mask.

#include "bert4rec.hpp"
#include "check.hpp"

using namespace bert4rec;

namespace {

ModelConfig small_model(Architecture architecture) {
  ModelConfig model;
  model.num_items = 9;
  model.hidden_size = 6;
  model.num_layers = 2;
  model.num_heads = 3;
  model.max_length = 6;
  model.dropout = 0.2;
  model.attention_dropout = 0.3;
  model.architecture = architecture;
  return model;
}

// Rows of 1 ... 6 tokens, then one of 6 without a mask.
Batch ragged_batch(const ModelConfig& model) {
  Batch batch;
  const Key key = make_key(5);
  for (std::size_t length = 1; length <= model.max_length; ++length) {
    std::vector<std::int32_t> items;
    for (std::size_t i = 0; i < length; ++i) {
      items.push_back(static_cast<std::int32_t>(below(fold_in(key, length), i, model.num_items)));
    }
    add_cloze_row(batch, items, model, 0.3, fold_in(key, 100 + length));
  }
  for (std::int32_t i = 0; i < 6; ++i) batch.tokens.push_back(token_of(i));
  batch.end_row();
  return batch;
}

// Parameters of a size at which no gradient is lost: larger than initial ones.
template <class Engine>
void spread_parameters(Engine& engine) {
  const std::span<double> w = engine.parameters();
  const Key key = make_key(9);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] += 0.3 * truncated_normal(key, i);
}

// The largest relative error over all tensors; each is checked unless `tolerance` is infinite.
double worst_error(Architecture architecture, const detail::Kernels<double>& kernels,
                   double tolerance) {
  const ModelConfig model = small_model(architecture);
  TrainConfig train;
  train.threads = 1;
  CpuEngine<double> engine(model, train, kernels);
  spread_parameters(engine);
  const Batch batch = ragged_batch(model);
  const DropoutPlan dropout(model.encoder(), make_key(77));
  engine.loss_and_gradient(batch, dropout);
  const std::vector<double> gradients(engine.gradients().begin(), engine.gradients().end());
  const std::span<double> w = engine.parameters();
  const auto loss_with = [&](std::size_t i, double value) {
    const double old = std::exchange(w[i], value);
    const Tally metrics = engine.loss(batch, dropout);
    w[i] = old;
    return metrics.loss();
  };
  double worst = 0;
  for (const TensorSpec& spec : engine.table()) {
    std::vector<double> expected;
    for (std::size_t i = spec.offset; i < spec.offset + spec.size; ++i) {
      const double h = 1e-5, at = w[i];  // error: h^2, and rounding 1e-16 / h
      expected.push_back((loss_with(i, at + h) - loss_with(i, at - h)) / (2 * h));
    }
    const std::span<const double> found{gradients.data() + spec.offset, spec.size};
    double error = 0, largest = 0;
    for (std::size_t i = 0; i < spec.size; ++i) {
      error = std::max(error, std::abs(found[i] - expected[i]));
      largest = std::max(largest, std::abs(expected[i]));
    }
    if (std::isfinite(tolerance)) {
      check_close(spec.name, found, std::span<const double>(expected), tolerance);
      check(largest > 1e-6 || spec.name.ends_with("in_proj_bias"), spec.name + " has a gradient");
    }
    worst = std::max(worst, error / std::max(largest, 1e-12));
  }
  return worst;
}

void broken_softmax_backward(const double*, const double* q, double* dq, double scale,
                             std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) dq[i] *= scale * q[i];  // forgets the mean
}

}  // namespace

int main() {
  const detail::Kernels<double>& plain = detail::plain_kernels<double>();
  test("gradients, architecture torch", [&] {
    std::cout << "largest relative error " << worst_error(Architecture::torch, plain, 1e-6) << "\n";
  });
  test("gradients, architecture paper", [&] {
    std::cout << "largest relative error " << worst_error(Architecture::paper, plain, 1e-6) << "\n";
  });
  test("a broken backward is caught", [&] {
    detail::Kernels<double> broken = plain;
    broken.softmax_backward = broken_softmax_backward;
    check(worst_error(Architecture::torch, broken, INFINITY) > 1e-3, "error above 1e-3");
  });
  return finish();
}
