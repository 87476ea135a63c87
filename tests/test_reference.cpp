// The whole model against PyTorch: logits, loss, every gradient, and all parameters after ten steps
// of AdamW, for both architectures, in double and in float with all kernels of this machine. Then
// the same for the objectives, losses and the matching head. What PyTorch computed stands in
// tests/reference (make_reference.py, make_objectives.py); no Python is needed to run this.

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

// ---- Objectives and losses ---------------------------------------------------------------------
// On a smaller model, and with projections in place of tensors: tests/reference/README.md.

struct Case {
  Objective objective;
  Architecture architecture = Architecture::torch;
  Loss loss = Loss::softmax;
  TaskKind task = TaskKind::items;

  std::string_view head() const {  // what PyTorch's module stands on
    return task == TaskKind::matching ? enum_name(task) : enum_name(architecture);
  }
  std::string model() const { return join(enum_name(objective), ".", head()); }
  std::string name() const {
    return task == TaskKind::matching ? model() : join(model(), ".", enum_name(loss));
  }
};

// A batch of objectives.json.
Batch read_batch_of_loss(const Json& json) {
  const auto tokens = numbers<std::int32_t>(json.at("tokens"));
  Batch batch;
  for (const std::size_t end : numbers<std::size_t>(json.at("offsets"))) {
    while (batch.tokens.size() < end) batch.tokens.push_back(tokens[batch.tokens.size()]);
    if (end > 0) batch.end_row();
  }
  batch.asked = numbers<std::size_t>(json.at("asked"));
  batch.targets = numbers<std::int32_t>(json.at("targets"));
  batch.negatives = numbers<std::int32_t>(json.at("negatives"));
  batch.log_expected = numbers<float>(json.at("log_expected"));
  for (const Json& own : json.at("own_negatives").array()) {
    for (const auto item : numbers<std::int32_t>(own)) batch.own_negatives.push_back(item);
  }
  return batch;
}

// What PyTorch was given, and what it found, for the cases of objectives.json.
struct Objectives {
  Json json = Json::parse(read_file(folder / "objectives.json"));
  Safetensors file{folder / "objectives.safetensors"};
  std::vector<double> rates = numbers<double>(json.at("rates"));
  std::vector<std::size_t> order = numbers<std::size_t>(json.at("order"));
  std::vector<double> projection = numbers<double>(json.at("projection"));

  bool contains(const Case& one) const { return json.at("losses").find(one.name()) != nullptr; }

  ModelConfig model(const Case& one) const {
    ModelConfig model = read_model(json.at("model"), one.architecture);
    model.objective = one.objective;
    model.task = one.task;
    return model;
  }
  TrainConfig train(const Case& one) const {
    TrainConfig train;
    train.learning_rate = *std::max_element(rates.begin(), rates.end());
    train.schedule = Schedule::linear;
    train.warmup_steps = 4;
    train.weight_decay = json.at("weight_decay").number();
    train.loss = one.loss;
    train.gbce_t = json.at("gbce_t").number();
    train.threads = 2;
    return train;
  }
  std::vector<Batch> batches(const Case& one) const {
    std::vector<Batch> batches;
    for (const Json& batch : json.at("batches").at(enum_name(one.objective)).array()) {
      batches.push_back(read_batch_of_loss(batch));
    }
    return batches;
  }
  std::vector<float> initial(const TensorTable& table) const {
    std::vector<float> values(table.size());
    for (const TensorSpec& spec : table) {
      file.copy(join("initial.", spec.name), spec.shape, values.data() + spec.offset);
    }
    return values;
  }
  // In the order of the projections.
  std::vector<std::string> tensors(const Case& one) const {
    std::vector<std::string> names;
    for (const std::string_view part : {std::string_view("encoder"), one.head()}) {
      for (const Json& name : json.at("tensors").at(part).array()) names.push_back(name.string());
    }
    return names;
  }
  std::size_t pieces(std::size_t size) const {
    return (size + projection.size() - 1) / projection.size();
  }
};

// Sums of x p over the pieces of a tensor, and the largest sum of |x p|: where the terms of a sum
// cancel, their rounding errors do not, so errors are relative to this.
struct Projection {
  std::vector<double> sums;
  double size;
};

template <class Real>
Projection projected(std::span<const Real> tensor, const std::vector<double>& projection) {
  const std::size_t H = projection.size(), count = (tensor.size() + H - 1) / H;
  std::vector<double> sums(count), sizes(count);
  for (std::size_t i = 0; i < tensor.size(); ++i) {
    const double term = static_cast<double>(tensor[i]) * projection[i % H];
    sums[i / H] += term, sizes[i / H] += std::abs(term);
  }
  return {sums, *std::max_element(sizes.begin(), sizes.end())};
}

double compare_projection(std::string_view name, const Projection& found,
                          std::span<const float> expected, double tolerance) {
  const double size = found.size == 0 ? 1 : found.size;
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(found.sums[i] - double(expected[i])) / size;
    if (!check(error <= tolerance, join(name, ", piece ", i, ": relative error ", error))) {
      std::cerr << "found " << found.sums[i] << ", expected " << expected[i] << "\n";
    }
    worst = std::max(worst, error);
  }
  return worst;
}

// All tensors against the array of this name. In float the keys' bias is left out: see
// forgive_key_bias().
template <class Real>
double compare_projections(const Objectives& objectives, const Case& one, const TensorTable& table,
                           std::string_view array, std::span<const Real> values, double tolerance) {
  const std::vector<std::string> names = objectives.tensors(one);
  check_equal(names.size(), static_cast<std::size_t>(std::distance(table.begin(), table.end())));
  std::size_t count = 0, at = 0;
  for (const std::string& name : names) count += objectives.pieces(table.at(name).size);
  std::vector<float> stored(count);
  objectives.file.copy(array, std::array{count}, stored.data());
  double worst = 0;
  for (const std::string& name : names) {
    const TensorSpec& spec = table.at(name);
    Projection found = projected(values.subspan(spec.offset, spec.size), objectives.projection);
    const auto expected = std::span<const float>(stored).subspan(at, found.sums.size());
    if (std::is_same_v<Real, float> && name.ends_with("in_proj_bias")) {
      found.sums[1] = double(expected[1]);
    }
    worst =
        std::max(worst, compare_projection(join(array, " of ", name), found, expected, tolerance));
    at += found.sums.size();
  }
  return worst;
}

template <class Real, template <class> class Head>
Errors compare_case(const Objectives& objectives, const Case& one,
                    const detail::Kernels<Real>& kernels, double tolerance) {
  const TrainConfig train = objectives.train(one);
  const std::vector<Batch> batches = objectives.batches(one);
  CpuEngine<Real, Head> engine(objectives.model(one), train, kernels);
  engine.write(State::parameters, objectives.initial(engine.table()));
  Errors errors;

  const std::size_t M = batches[0].asked.size(), I = engine.config().num_items;
  std::vector<float> scores(M * I), expected_scores(M * I);
  objectives.file.copy(join(one.model(), ".scores"), std::array{M, I}, expected_scores.data());
  engine.score(batches[0], scores);
  errors.logits = compare<float>("scores", scores, expected_scores, tolerance);

  engine.loss_and_gradient(batches[0], DropoutPlan());
  errors.gradients = compare_projections<Real>(
      objectives, one, engine.table(), one.name() + ".gradient", engine.gradients(), tolerance);

  const auto losses = numbers<double>(objectives.json.at("losses").at(one.name()));
  for (std::size_t step = 0; step < losses.size(); ++step) {
    const double rate = objectives.rates[step];
    check(std::abs(learning_rate_at(train, step, losses.size()) - rate) < 1e-17, "rate of a step");
    const double loss = engine.train(batches[objectives.order[step]], step, rate).loss();
    const double error = std::abs(loss / losses[step] - 1);
    if (std::isfinite(tolerance)) check(error <= tolerance, join("loss of step ", step));
    errors.loss = std::max(errors.loss, error);
  }
  errors.parameters = compare_projections<Real>(
      objectives, one, engine.table(), one.name() + ".final", engine.parameters(), tolerance);
  return errors;
}

std::vector<Case> cases(const Objectives& objectives) {
  std::vector<Case> found;
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    for (const Architecture architecture : {Architecture::torch, Architecture::paper}) {
      for (const Loss loss : {Loss::softmax, Loss::sampled_softmax, Loss::bce, Loss::gbce}) {
        const Case one{objective, architecture, loss};
        if (objectives.contains(one)) found.push_back(one);
      }
    }
    found.push_back({.objective = objective, .task = TaskKind::matching});
  }
  return found;
}

// A scale beyond its bound counts as 100. PyTorch's clamp has no gradient there; ours has where it
// leads back, so that of the scale is not compared.
void test_beyond() {
  const Objectives objectives;
  const Case one{.objective = Objective::causal, .task = TaskKind::matching};
  CpuEngine<double, MatchingHead> engine(objectives.model(one), objectives.train(one));
  engine.write(State::parameters, objectives.initial(engine.table()));
  const Json& beyond = objectives.json.at("beyond");
  const std::size_t scale = engine.table().at("log_scale").offset;
  engine.parameters()[scale] = beyond.at("log_scale").number();
  const Tally tally = engine.loss_and_gradient(objectives.batches(one)[0], DropoutPlan());
  check(std::abs(tally.loss() / beyond.at("loss").number() - 1) < 1e-9, join(tally.loss()));
  std::vector<double> gradients(engine.gradients().begin(), engine.gradients().end());
  check(std::exchange(gradients[scale], 0) > 0, "the scale falls");
  compare_projections<double>(objectives, one, engine.table(), "beyond.gradient", gradients, 1e-7);
}

template <class Real>
void test_objectives(double tolerance) {
  const Objectives objectives;
  for (const detail::Kernels<Real>* kernels : detail::available_kernels<Real>()) {
    const char* real = std::is_same_v<Real, float> ? "float" : "double";
    test(join("objectives and losses, ", real, ", ", kernels->name), [&] {
      const std::vector<Case> all = cases(objectives);
      check_equal(all.size(), std::size_t{14});
      for (const Case& one : all) {
        const auto compare = one.task == TaskKind::matching ? compare_case<Real, MatchingHead>
                                                            : compare_case<Real, ItemHead>;
        const double worst = compare(objectives, one, *kernels, tolerance).worst();
        std::cout << one.name() << ": relative error " << worst << "\n";
      }
    });
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
  test_objectives<double>(1e-7);
  test_objectives<float>(1e-5);
  test("a scale beyond its bound", test_beyond);
  test("another gelu is caught", [] {
    detail::Kernels<double> other = detail::plain_kernels<double>();
    other.gelu = tanh_gelu;
    const Errors errors = compare_all(Architecture::torch, other, INFINITY);
    check(errors.logits > 1e-5 && errors.gradients > 1e-5, "errors above the tolerance");
  });
  return finish();
}
