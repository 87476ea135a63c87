// Every tensor's gradient against central differences in double, for both architectures, both
// objectives, all losses and the heads for matching and classification, with dropout on, rows of
// every length from 1 to the longest, and rows that ask for nothing; a batch of two groups against
// both; and losses over drawn items against that over all.

#include "bert4rec.hpp"
#include "check.hpp"

using namespace bert4rec;

namespace {

ModelConfig small_model(Architecture architecture, Objective objective = Objective::cloze) {
  ModelConfig model;
  model.num_items = 9;
  model.hidden_size = 6;
  model.num_layers = 2;
  model.num_heads = 3;
  model.max_length = 6;
  model.dropout = 0.2;
  model.attention_dropout = 0.3;
  model.architecture = architecture;
  model.objective = objective;
  return model;
}

// A row longer than two blocks of causal attention, asked here and there but not at its end.
Batch long_batch(const ModelConfig& model) {
  Batch batch;
  for (std::size_t i = 0; i < model.max_length; ++i) {
    const auto item = static_cast<std::int32_t>(below(make_key(3), i, model.num_items));
    if (i % 9 == 4)
      batch.ask((item + 1) % 9, token_of(item));
    else
      batch.tokens.push_back(token_of(item));
  }
  batch.end_row();
  return batch;
}

// Rows of 1 ... 6 tokens of two segments, asked at the first token, or at every second one.
Batch text_batch(const ModelConfig& model) {
  Batch batch;
  const Key key = make_key(6);
  const bool classifies = model.task == TaskKind::classification;
  for (std::size_t t = 0, length = 1; length <= model.max_length; ++length) {
    for (std::size_t i = 0; i < length; ++i, ++t) {
      const auto token = static_cast<std::int32_t>(below(key, 2 * t, model.num_items));
      const auto target = static_cast<std::int32_t>(below(key, 2 * t + 1, model.targets()));
      batch.segments.push_back(2 * i > length);
      if (classifies ? i == 0 : i % 2 == 0)
        batch.ask(target, token);
      else
        batch.tokens.push_back(token);
    }
    batch.end_row();
  }
  add_bigrams(batch, model, 0.2, key);
  if (classifies) batch.weights = {0.5f, 1, 2, 0.25f, 3, 1};
  return batch;
}

// Rows of 1 ... 6 tokens, then one of 6 without a mask; or one long row.
Batch ragged_batch(const ModelConfig& model) {
  if (model.reads_text()) return text_batch(model);
  if (model.max_length > 6) return long_batch(model);
  Batch batch;
  const Key key = make_key(5);
  for (std::size_t length = 1; length <= model.max_length; ++length) {
    std::vector<std::int32_t> items;
    for (std::size_t i = 0; i < length; ++i) {
      items.push_back(static_cast<std::int32_t>(below(fold_in(key, length), i, model.num_items)));
    }
    if (model.objective == Objective::causal)
      add_causal_row(batch, items, model);
    else
      add_cloze_row(batch, items, model, 0.3, fold_in(key, 100 + length));
  }
  for (std::int32_t i = 0; i < 6; ++i) batch.tokens.push_back(token_of(i));
  batch.end_row();
  // Drawn twice, and targets of some rows among them, or they would not test that.
  batch.negatives = {3, 8, 3, batch.targets[0], batch.targets[4]};
  batch.log_expected = {0.1f, -1.2f, 0.1f, 0.5f, -0.7f};
  for (std::size_t i = 0; i < 2 * batch.asked.size(); ++i) {
    batch.own_negatives.push_back(static_cast<std::int32_t>(below(key, i, model.num_items)));
  }
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
template <template <class> class Head = ItemHead>
double worst_error(const ModelConfig& model, Loss loss, const detail::Kernels<double>& kernels,
                   double tolerance) {
  TrainConfig train;
  train.threads = 1, train.loss = loss;
  CpuEngine<double, Head> engine(model, train, kernels);
  spread_parameters(engine);
  const Batch batch = ragged_batch(model);
  const DropoutPlan dropout(model.encoder(), make_key(77));
  engine.loss_and_gradient(batch, dropout);  // leaves its numbers in all buffers
  engine.loss_and_gradient(batch, dropout);
  const std::vector<double> gradients(engine.gradients().begin(), engine.gradients().end());
  const std::span<double> w = engine.parameters();
  const auto loss_with = [&](std::size_t i, double value) {
    const double old = std::exchange(w[i], value);
    const Tally metrics = engine.loss_and_gradient(batch, dropout);
    w[i] = old;
    return metrics.loss_sum / batch.total_weight();
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

double broken_logistic(double* x, std::size_t n) {
  const double loss = detail::plain::logistic(x, n);
  for (std::size_t i = 0; i < n; ++i) x[i] *= 1.001;
  return loss;
}

double dot_of_one_less(const double* x, const double* y, std::size_t n) {
  return detail::plain::dot(x, y, n - 1);
}

void add_scaled_twice(double factor, const double* x, double* y, std::size_t n) {
  detail::plain::add_scaled(2 * factor, x, y, n);
}

ModelConfig matching_model(Objective objective, double fixed_scale) {
  ModelConfig model = small_model(Architecture::torch, objective);
  model.task = TaskKind::matching, model.fixed_scale = fixed_scale;
  return model;
}

ModelConfig text_model(TaskKind task) {
  ModelConfig model = small_model(Architecture::paper);
  model.task = task, model.classes = task == TaskKind::classification ? 4 : 0;
  model.segments = 2, model.inner_size = 10, model.norm_epsilon = 1e-2;
  model.bigrams = 7;  // fewer than there are
  return model;
}

// A row without segments is one of segment 0, and a weight of 3 counts as three rows.
void check_text() {
  const ModelConfig model = text_model(TaskKind::classification);
  CpuEngine<double, ClassificationHead> engine(model, TrainConfig{.threads = 1});
  spread_parameters(engine);
  const auto add_row = [&](Batch& batch) {
    batch.ask(2, 7), batch.tokens.insert(batch.tokens.end(), {3, 1});
    batch.end_row();
    add_bigrams(batch, model);
  };
  Batch one, weighted, thrice;
  add_row(one), add_row(weighted), add_row(thrice);
  const double alone = engine.loss_and_gradient(one, DropoutPlan()).loss();
  one.segments = {0, 0, 0};
  check_equal(engine.loss_and_gradient(one, DropoutPlan()).loss(), alone);
  one.segments = {0, 0, 1};
  check(engine.loss_and_gradient(one, DropoutPlan()).loss() != alone, "another segment");
  for (Batch* batch : {&weighted, &thrice, &thrice, &thrice}) {
    batch->ask(1, 5), batch->end_row();
    add_bigrams(*batch, model);
  }
  weighted.weights = {1, 3};
  engine.loss_and_gradient(weighted, DropoutPlan());
  const std::vector<double> found(engine.gradients().begin(), engine.gradients().end());
  engine.loss_and_gradient(thrice, DropoutPlan());
  check_close("gradients", std::span<const double>(found), engine.gradients(), 1e-12);
  const auto refused = [&](const Batch& batch, std::string_view what) {
    check_throws([&] { engine.loss_and_gradient(batch, DropoutPlan()); }, {what});
  };
  one.segments = {0, 0, 2}, refused(one, "segment 2 of a batch, of 2 there are");
  one.segments = {0}, refused(one, "a batch with 3 tokens and 1 segments");
  one.bigrams[2] = 7, one.segments.clear(), refused(one, "bigram 7 of a batch, of 7 there are");
  one.bigrams.pop_back(),
      refused(one, "a batch with 2 bigrams, expected 3, as add_bigrams() makes them");
  one.bigrams.push_back(0);
  one.weights = {1, 1};
  refused(one, "a batch with 1 asked places and 2 weights");
  one.weights.clear(), one.targets = {4}, refused(one, "target 4 of a batch, expected 0 ... 3");
}

// A batch that an engine cuts into two groups has the mean of the gradients of both.
void check_groups() {
  const ModelConfig model = small_model(Architecture::paper);
  CpuEngine<double> engine(model, TrainConfig{.threads = 1});
  spread_parameters(engine);
  const std::size_t rows = group_tokens / model.max_length;  // of one group
  std::vector<double> sum(engine.gradients().size());
  const auto add_rows = [&](Batch& batch, std::size_t first, std::size_t count) {
    for (std::size_t row = first; row < first + count; ++row) {
      std::vector<std::int32_t> items;
      for (std::size_t i = 0; i < model.max_length; ++i) {
        items.push_back(static_cast<std::int32_t>(below(fold_in(make_key(8), row), i, 9)));
      }
      add_cloze_row(batch, items, model, 0.3, fold_in(make_key(9), row));
    }
    engine.loss_and_gradient(batch, DropoutPlan());
    return static_cast<double>(batch.asked.size());
  };
  for (const std::size_t first : {std::size_t{0}, rows}) {
    Batch part;
    const double asked = add_rows(part, first, rows);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += asked * engine.gradients()[i];
  }
  Batch whole;
  const double asked = add_rows(whole, 0, 2 * rows);
  for (double& value : sum) value /= asked;
  for (const TensorSpec& spec : engine.table()) {
    check_close(spec.name, engine.gradients().subspan(spec.offset, spec.size),
                std::span<const double>(sum).subspan(spec.offset, spec.size), 1e-11);
  }
}

// All users become (1, ..., 1), by the norm of the last layer; item 0 has the numbers item(c), and
// item 1 their opposites.
template <class Item>
void make_alike(CpuEngine<double, MatchingHead>& engine, Item&& item) {
  const ModelConfig& model = engine.config();
  const std::size_t H = model.hidden_size;
  const auto tensor = [&](const std::string& name) {
    return engine.parameters().data() + engine.table().at(name).offset;
  };
  const std::string norm = join(layer_prefix(model.num_layers - 1), "norm2.");
  double* const rows = tensor("item_embedding.weight") + special_rows * H;
  for (std::size_t c = 0; c < H; ++c) {
    tensor(norm + "weight")[c] = 0, tensor(norm + "bias")[c] = 1;
    rows[c] = item(c), rows[H + c] = -item(c);
  }
}

// The scores against their formula; and the scale beyond its bound, from where it may only fall.
void check_matching() {
  const ModelConfig model = matching_model(Objective::cloze, 0);
  CpuEngine<double, MatchingHead> engine(model, TrainConfig{.threads = 1});
  spread_parameters(engine);
  const Batch batch = ragged_batch(model);
  const std::size_t M = batch.asked.size(), R = 2;
  std::vector<float> scores(M * model.num_items);
  double& log_scale = engine.parameters()[engine.table().at("log_scale").offset];
  const double& d_log_scale = engine.gradients()[engine.table().at("log_scale").offset];
  check(std::abs(log_scale - std::log(1 / 0.07)) < 0.7, "the scale starts at 1 / 0.07");
  const auto expected_loss = [&] {
    engine.score(batch, scores);
    double sum = 0;
    for (std::size_t i = 0; i < M; ++i) {
      const auto loss = [&](std::int32_t item, double sign) {
        const float s = scores[i * model.num_items + static_cast<std::size_t>(item)];
        return std::log1p(std::exp(sign * static_cast<double>(s)));
      };
      sum += loss(batch.targets[i], -1);
      for (std::size_t j = 0; j < R; ++j) sum += loss(batch.own_negatives[i * R + j], 1);
    }
    return sum / static_cast<double>(M * (1 + R));
  };
  for (const double value : {std::log(1 / 0.07), std::log(99.0), std::log(1000.0), std::log(2e4)}) {
    log_scale = value;
    const Tally tally = engine.loss_and_gradient(batch, DropoutPlan());
    check(std::abs(tally.loss() / expected_loss() - 1) < 1e-5, join("loss ", tally.loss()));
    check(*std::max_element(scores.begin(), scores.end()) <= 100, "within the bound");
    check(d_log_scale > 0, "a scale that is too large may fall");
  }
  // Where every target is right and every negative wrong a larger scale would be better.
  Batch right;
  right.ask(0), right.end_row();
  right.own_negatives = {1};
  CpuEngine<double, MatchingHead> sure(model, TrainConfig{.threads = 1});
  make_alike(sure, [](std::size_t) { return 1.0; });
  const std::size_t at = sure.table().at("log_scale").offset;
  for (const double value : {std::log(1000.0), 0.0}) {
    sure.parameters()[at] = value;
    const Tally tally = sure.train(right, 0, 1e-3);
    check(tally.hits[0] == 1, "the target ranks first");
    check(value > 0 ? sure.parameters()[at] <= value : sure.parameters()[at] > value,
          "the scale may grow to its bound");
  }
}

// Whether a scale beyond its bound may fall is asked of a whole batch: the first group of rows here
// would raise it by more than the second would lower it.
void check_bound_of_batch() {
  const ModelConfig model = matching_model(Objective::cloze, 0);
  CpuEngine<double, MatchingHead> engine(model, TrainConfig{.threads = 1});
  make_alike(engine, [](std::size_t c) { return (c % 2 == 0 ? 1 : -1) + 0.01; });  // hardly with it
  double& log_scale = engine.parameters()[engine.table().at("log_scale").offset];
  const std::size_t rows = group_capacity(model.encoder());
  for (const std::size_t one_in : {3u, 1u}) {  // of the second group is wrong
    Batch batch;
    for (std::size_t row = 0; row < 2 * rows; ++row) {
      const bool right = row < rows || row % one_in != 0;
      batch.ask(right ? 0 : 1), batch.end_row();
      batch.own_negatives.push_back(right ? 1 : 0);
    }
    log_scale = 5;
    engine.train(batch, 0, 1e-3);
    check(one_in == 1 ? log_scale < 5 : log_scale == 5, join("one in ", one_in, ": ", log_scale));
  }
}

// What comes later in a row changes nothing of what causal attention says earlier, bit by bit.
void check_causal() {
  ModelConfig model = small_model(Architecture::torch, Objective::causal);
  model.max_length = 70;
  CpuEngine<float> engine(model, TrainConfig{.threads = 1});
  const auto score = [&](std::size_t length, std::int32_t last) {
    Batch batch;
    for (std::size_t i = 0; i < length; ++i) {
      batch.ask(0, token_of(i + 1 == length ? last : static_cast<std::int32_t>(i % 9)));
    }
    batch.end_row();
    std::vector<float> scores(length * 9);
    engine.score(batch, scores);
    return scores;
  };
  const std::vector<float> whole = score(70, 3), other = score(70, 5), part = score(40, 3);
  const std::span<const float> first(whole.data(), 39 * 9), same(part.data(), 39 * 9);
  check(std::equal(whole.begin(), whole.end() - 9, other.begin()), "places before the last");
  check(!std::equal(whole.end() - 9, whole.end(), other.end() - 9), "the last place");
  check(std::equal(first.begin(), first.end(), same.begin()), "a row that stops earlier");
}

// With all items drawn once each and chances of 1, the sampled softmax is the full one: the target
// is excluded among the drawn.
void check_all_drawn(Objective objective) {
  const ModelConfig model = small_model(Architecture::paper, objective);
  Batch batch = ragged_batch(model);
  batch.negatives.clear();
  for (std::int32_t item = 0; item < 9; ++item) batch.negatives.push_back(item);
  batch.log_expected.assign(9, 0.0f);
  TrainConfig train;
  train.threads = 1;
  CpuEngine<double> full(model, train);
  train.loss = Loss::sampled_softmax;
  CpuEngine<double> sampled(model, train);
  spread_parameters(full), spread_parameters(sampled);
  const Tally a = full.loss_and_gradient(batch, DropoutPlan());
  const Tally b = sampled.loss_and_gradient(batch, DropoutPlan());
  check(std::abs(b.loss() - a.loss()) < 1e-12, join("losses ", b.loss(), " and ", a.loss()));
  check(a.hits == b.hits, "the same ranks");
  check_close("gradients", sampled.gradients(), full.gradients(), 1e-12);
}

// The closed form of gbce is the transform of its paper: with p = sigmoid(s),
//   -log(sigmoid(s+)^beta) - sum_j log(1 - sigmoid(s_j))
void check_gbce() {
  const detail::Kernels<double>& plain = detail::plain_kernels<double>();
  const std::vector<double> s{0.7, -1.5, 2.5, 0.1};
  const double beta = 0.4;
  double expected = -beta * std::log(1 / (1 + std::exp(-s[0])));
  for (std::size_t j = 1; j < s.size(); ++j) expected -= std::log(1 - 1 / (1 + std::exp(-s[j])));
  std::vector<double> d = s;
  const double found = logistic_loss(plain, d.data(), 3, beta);
  check(std::abs(found - expected / 4) < 1e-14, join(found, ", expected ", expected / 4));
}

}  // namespace

int main() {
  const detail::Kernels<double>& plain = detail::plain_kernels<double>();
  for (const Architecture architecture : {Architecture::torch, Architecture::paper}) {
    for (const Objective objective : {Objective::cloze, Objective::causal}) {
      for (const Loss loss : {Loss::softmax, Loss::sampled_softmax, Loss::bce, Loss::gbce}) {
        test(join("gradients: ", enum_name(architecture), ", ", enum_name(objective), ", ",
                  enum_name(loss)),
             [&] {
               const ModelConfig model = small_model(architecture, objective);
               std::cout << "largest relative error " << worst_error(model, loss, plain, 1e-6)
                         << "\n";
             });
      }
    }
  }
  for (const Loss loss : {Loss::softmax, Loss::sampled_softmax}) {
    test(join("gradients: tied, causal, ", enum_name(loss)), [&] {
      worst_error(small_model(Architecture::tied, Objective::causal), loss, plain, 1e-6);
    });
  }
  test("gradients: causal, a row of three blocks", [&] {
    ModelConfig model = small_model(Architecture::torch, Objective::causal);
    model.max_length = 70, model.hidden_size = 4, model.num_heads = 2;
    worst_error(model, Loss::softmax, plain, 1e-6);
  });
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    for (const double fixed_scale : {0.0, 5.0}) {
      test(join("gradients: matching, ", enum_name(objective), ", scale ", fixed_scale), [&] {
        const ModelConfig model = matching_model(objective, fixed_scale);
        std::cout << "largest relative error "
                  << worst_error<MatchingHead>(model, Loss::softmax, plain, 1e-6) << "\n";
      });
    }
  }
  for (const TaskKind task : {TaskKind::masked_text, TaskKind::classification}) {
    test(join("gradients: ", enum_name(task)), [&] {
      const ModelConfig model = text_model(task);
      std::cout << "largest relative error "
                << (task == TaskKind::classification
                        ? worst_error<ClassificationHead>(model, Loss::softmax, plain, 1e-6)
                        : worst_error(model, Loss::softmax, plain, 1e-6))
                << "\n";
    });
  }
  test("a batch of two groups", check_groups);
  test("text", check_text);
  test("matching", check_matching);
  test("matching, the bound of a batch", check_bound_of_batch);
  test("causal", check_causal);
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    test(join("all items drawn: ", enum_name(objective)), [&] { check_all_drawn(objective); });
  }
  test("gbce in closed form", check_gbce);
  test("a broken backward is caught", [&] {
    const ModelConfig model = small_model(Architecture::torch);
    const auto caught = [&](Loss loss, auto&& break_it) {
      detail::Kernels<double> broken = plain;
      break_it(broken);
      check(worst_error(model, loss, broken, INFINITY) > 1e-4, "error above 1e-4");
    };
    caught(Loss::softmax, [](auto& k) { k.softmax_backward = broken_softmax_backward; });
    caught(Loss::gbce, [](auto& k) { k.logistic = broken_logistic; });
    caught(Loss::sampled_softmax, [](auto& k) { k.dot = dot_of_one_less; });
    caught(Loss::sampled_softmax, [](auto& k) { k.add_scaled = add_scaled_twice; });
    const ModelConfig matching = matching_model(Objective::cloze, 0);
    const auto caught_matching = [&](auto&& break_it) {
      detail::Kernels<double> broken = plain;
      break_it(broken);
      check(worst_error<MatchingHead>(matching, Loss::softmax, broken, INFINITY) > 1e-4,
            "error above 1e-4");
    };
    caught_matching([](auto& k) { k.logistic = broken_logistic; });
    caught_matching([](auto& k) { k.dot = dot_of_one_less; });
    caught_matching([](auto& k) { k.add_scaled = add_scaled_twice; });
  });
  return finish();
}
