// The whole model against PyTorch: logits, loss, every gradient, and all parameters after ten steps
// of AdamW, for both architectures, in double and in float with all kernels of this machine. What
// PyTorch computed stands in tests/reference (make_reference.py); no Python is needed to run this.

#include "bert4rec.hpp"
#include "check.hpp"

using namespace bert4rec;

namespace {

const Path folder = Path(BERT4REC_SOURCE_FOLDER) / "tests" / "reference";

template <class Number>
std::vector<Number> numbers(const Json& json) {
  std::vector<Number> values;
  for (const Json& number : json.array()) values.push_back(static_cast<Number>(number.number()));
  return values;
}

ModelConfig read_model(const Json& json, Architecture architecture) {
  const auto size = [&](const char* name) {
    return static_cast<std::size_t>(json.at(name).integer());
  };
  ModelConfig model;
  model.num_items = size("num_items");
  model.hidden_size = size("hidden_size");
  model.num_layers = size("num_layers");
  model.num_heads = size("num_heads");
  model.max_length = size("max_length");
  model.dropout = model.attention_dropout = 0;
  model.architecture = architecture;
  return model;
}

// The tokens of the file are pushed row by row, so that positions and offsets are our own.
Batch read_batch(const Json& json) {
  const auto tokens = numbers<std::int32_t>(json.at("tokens"));
  const auto offsets = numbers<std::size_t>(json.at("offsets"));
  const auto targets = numbers<std::int32_t>(json.at("targets"));
  Batch batch;
  for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
    for (std::size_t t = offsets[row]; t < offsets[row + 1]; ++t) {
      if (tokens[t] == mask_token)
        batch.ask(targets[batch.targets.size()]);
      else
        batch.tokens.push_back(tokens[t]);
    }
    batch.end_row();
  }
  check(batch.offsets == offsets, "offsets of the reference");
  check(batch.asked == numbers<std::size_t>(json.at("masked")), "places of the reference");
  return batch;
}

// What PyTorch was given, and what it found.
struct Reference {
  explicit Reference(Architecture architecture)
      : json(Json::parse(read_file(folder / "reference.json"))),
        file(folder / join(enum_name(architecture), ".safetensors")),
        model(read_model(json.at("model"), architecture)),
        table(bert4rec_tensors(model)),
        losses(numbers<double>(json.at("losses").at(enum_name(architecture)))) {
    for (const Json& batch : json.at("batches").array()) batches.push_back(read_batch(batch));
    train.learning_rate = json.at("learning_rate").number();
    train.weight_decay = json.at("weight_decay").number();
    train.threads = 2;
  }

  // All tensors called <prefix><name>, as one flat array.
  std::vector<float> flat(std::string_view prefix) const {
    std::vector<float> values(table.size());
    for (const TensorSpec& spec : table) {
      file.copy(join(prefix, spec.name), spec.shape, values.data() + spec.offset);
    }
    return values;
  }
  std::vector<float> logits() const {
    const std::size_t M = batches[0].asked.size(), I = model.num_items;
    std::vector<float> values(M * I);
    file.copy("logits", std::array{M, I}, values.data());
    return values;
  }

  Json json;
  Safetensors file;
  ModelConfig model;
  TensorTable table;
  std::vector<double> losses;
  std::vector<Batch> batches;
  TrainConfig train;
};

// Errors relative to the largest element of a tensor: the worst of all tensors.
struct Errors {
  double logits = 0, loss = 0, gradients = 0, parameters = 0;
  double worst() const { return std::max({logits, loss, gradients, parameters}); }
};

template <class Real>
double compare(std::string_view name, std::span<const Real> found, std::span<const float> expected,
               double tolerance) {
  return check_close(name, found, expected, tolerance);
}

// Every tensor of two flat arrays.
template <class Real>
double compare_tensors(const TensorTable& table, std::string_view prefix,
                       std::span<const Real> found, const std::vector<float>& expected,
                       double tolerance) {
  double worst = 0;
  for (const TensorSpec& spec : table) {
    const auto part = std::span(expected).subspan(spec.offset, spec.size);
    worst = std::max(worst, compare(join(prefix, spec.name), found.subspan(spec.offset, spec.size),
                                    part, tolerance));
  }
  return worst;
}

// The bias of the keys adds q.b to all scores of a query alike, which softmax takes out again: its
// gradient is 0. In float it is a rounding error, and AdamW, which divides a gradient by its own
// size, turns that into steps of up to the learning rate in no particular direction. They change
// nothing that the model computes. So those parameters are put aside, where Real is float.
template <class Real>
void forgive_key_bias(const Reference& reference, std::span<Real> found,
                      const std::vector<float>& expected) {
  if (std::is_same_v<Real, double>) return;
  const std::size_t H = reference.model.hidden_size;
  const double steps = static_cast<double>(reference.losses.size());
  const double furthest = 2 * steps * reference.train.learning_rate;
  for (std::size_t layer = 0; layer < reference.model.num_layers; ++layer) {
    const std::size_t at =
        reference.table.at(layer_prefix(layer) + "self_attn.in_proj_bias").offset + H;
    for (std::size_t i = at; i < at + H; ++i) {
      check(std::abs(double(found[i]) - double(expected[i])) < furthest, "key bias within reach");
      found[i] = static_cast<Real>(expected[i]);
    }
  }
}

template <class Real>
Errors compare_all(Architecture architecture, const detail::Kernels<Real>& kernels,
                   double tolerance) {
  const Reference reference(architecture);
  CpuEngine<Real> engine(reference.model, reference.train, kernels);
  engine.write(State::parameters, reference.flat("initial."));
  Errors errors;

  const Batch& batch = reference.batches[0];
  const std::vector<float> logits = reference.logits();
  std::vector<float> scores(logits.size());
  engine.score(batch, scores);
  errors.logits = compare<float>("logits", scores, logits, tolerance);

  engine.loss_and_gradient(batch, DropoutPlan());
  errors.gradients = compare_tensors<Real>(reference.table, "gradient of ", engine.gradients(),
                                           reference.flat("gradient."), tolerance);

  // The losses are stored in double.
  for (std::size_t step = 0; step < reference.losses.size(); ++step) {
    const Batch& next = reference.batches[step % reference.batches.size()];
    const double loss = engine.train(next, step, reference.train.learning_rate).loss();
    const double expected = reference.losses[step], error = std::abs(loss / expected - 1);
    if (std::isfinite(tolerance)) check(error <= tolerance, join("loss of step ", step));
    errors.loss = std::max(errors.loss, error);
  }
  const std::vector<float> trained = reference.flat("final.");
  forgive_key_bias(reference, engine.parameters(), trained);
  errors.parameters =
      compare_tensors<Real>(reference.table, "trained ", engine.parameters(), trained, tolerance);
  return errors;
}

template <class Real>
void test_kernels(double tolerance) {
  for (const detail::Kernels<Real>* kernels : detail::available_kernels<Real>()) {
    for (const Architecture architecture : {Architecture::torch, Architecture::paper}) {
      const char* real = std::is_same_v<Real, float> ? "float" : "double";
      test(join("reference, ", enum_name(architecture), ", ", real, ", ", kernels->name), [&] {
        const Errors errors = compare_all<Real>(architecture, *kernels, tolerance);
        std::cout << "relative errors: logits " << errors.logits << ", loss " << errors.loss
                  << ", gradients " << errors.gradients << ", parameters after ten steps "
                  << errors.parameters << "\n";
      });
    }
  }
}

// The approximation of gelu by tanh, which some frameworks call GELU.
void tanh_gelu(const double* x, double* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    y[i] = 0.5 * x[i] * (1 + std::tanh(0.7978845608 * (x[i] + 0.044715 * x[i] * x[i] * x[i])));
  }
}

}  // namespace

int main() {
  // Half a unit in the last place of F32 is 6e-8: the reference knows no better.
  test_kernels<double>(1e-7);
  test_kernels<float>(1e-5);
  test("another gelu is caught", [] {
    detail::Kernels<double> other = detail::plain_kernels<double>();
    other.gelu = tanh_gelu;
    const Errors errors = compare_all(Architecture::torch, other, INFINITY);
    check(errors.logits > 1e-5 && errors.gradients > 1e-5, "errors above the tolerance");
  });
  return finish();
}
