// One step of a model on one question, recorded, and its backward passes held against central
// differences of the forward passes, all in double.

#ifndef BERT4REC_TOOLS_CHECKS_HPP
#define BERT4REC_TOOLS_CHECKS_HPP

#include "explain/recording.hpp"

namespace explain {

using bert4rec::Json;
using Numbers = std::vector<double>;

// Dropout is off: what the page shows can be computed again.
class Step {
 public:
  // `batch`: one row that asks at one place.
  Step(const bert4rec::ModelConfig& model, const bert4rec::TensorTable& table,
       const std::vector<float>& parameters, const bert4rec::Batch& batch)
      : model_(model),
        table_(table),
        batch_(batch),
        parameters_(parameters.begin(), parameters.end()),
        gradients_(parameters.size()) {
    bert4rec::check_batch(batch_, model_);
    run([&](const RowGroup& group) { record(group); });
  }

  const bert4rec::ModelConfig& model() const { return model_; }
  const bert4rec::TensorTable& table() const { return table_; }
  const Recording& recording() const { return recording_; }
  Recording& recording() { return recording_; }
  double loss() const { return loss_; }
  Numbers& parameters() { return parameters_; }
  const Numbers& gradients() const { return gradients_; }
  const double* parameter(const std::string& name) const {
    return parameters_.data() + table_.at(name).offset;
  }

  // body(group) with the one group of the batch.
  template <class Body>
  void run(Body&& body) {
    bert4rec::Groups(config_).for_each(batch_, {0, 1}, body);
  }

  // Of the parameters as they are now.
  double loss_now() {
    double loss = 0;
    run([&](const RowGroup& group) {
      const double* x = plain_.forward(recording_.base(), group, {});
      loss = head_.evaluate(recording_.base(), x, group).loss_sum;
    });
    return loss;
  }

 private:
  void record(const RowGroup& group) {
    const std::size_t H = config_.hidden_size, I = model_.num_items;
    Recording::Base& compute = recording_.base();
    const double* x = encoder_.forward(recording_, group, {});
    Numbers scores(I), d_x(group.tokens.size() * H);
    head_.score(compute, 1, head_.prepare(compute, 1, x), 0, I, scores.data());
    recording_.keep("scores", 1, I, scores.data());
    loss_ = bert4rec::softmax_loss(compute.kernels, scores.data(), I,
                                   static_cast<std::size_t>(group.targets[0]));
    recording_.keep_gradient("scores", scores.data());
    head_.loss(compute, x, group, {}, 1.0, d_x.data());
    recording_.start_at(config_.num_layers - 1);
    encoder_.backward(recording_, group, {}, d_x.data());
  }

  const bert4rec::ModelConfig model_;
  const EncoderConfig config_ = model_.encoder();
  const bert4rec::TensorTable& table_;
  const bert4rec::Batch batch_;
  Numbers parameters_, gradients_;
  const std::size_t capacity_ = bert4rec::group_capacity(config_);
  Recording recording_{1, bert4rec::attention_scratch(config_), bert4rec::block_sums(config_),
                       bert4rec::detail::kernels<double>()};
  bert4rec::Encoder<double, Recording> encoder_{config_, table_, parameters_.data(),
                                                gradients_.data(), capacity_};
  bert4rec::Encoder<double> plain_{config_, table_, parameters_.data(), gradients_.data(),
                                   capacity_};
  bert4rec::ItemHead<double> head_{model_, {}, table_, parameters_.data(), gradients_.data(),
                                   plain_};
  double loss_ = 0;
};

// ---- Central differences -----------------------------------------------------------------------

// (loss(x + e) - loss(x - e)) / 2e by x[i], which is as it was afterwards.
template <class Loss>
double central_difference(double& x, Loss&& loss) {
  const double kept = x, e = 1e-5 * std::max(1.0, std::abs(x));
  x = kept + e;
  const double above = loss();
  x = kept - e;
  const double below = loss();
  x = kept;
  return (above - below) / (2 * e);
}

// The largest difference of a gradient from central differences, as a share of its largest number;
// of 400 to 800 numbers, evenly spread, or all if there are fewer.
template <class Loss>
double worst_error(std::span<double> x, std::span<const double> gradient, Loss&& loss) {
  const std::size_t step = std::max<std::size_t>(1, x.size() / 400);
  double largest = 0, worst = 0;
  for (const double number : gradient) largest = std::max(largest, std::abs(number));
  for (std::size_t i = 0; i < x.size(); i += step) {
    worst = std::max(worst, std::abs(central_difference(x[i], loss) - gradient[i]));
  }
  return largest == 0 ? worst : worst / largest;
}

inline double dot(const Numbers& a, const Numbers& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

inline Json check_json(double worst, const std::vector<std::string>& columns, Json::Array rows) {
  Json json;
  Json::Array names(columns.begin(), columns.end());
  json.set("worst", worst);
  json.set("columns", std::move(names));
  json.set("rows", std::move(rows));
  return json;
}

// The root of the sum of squares.
inline double length(std::span<const double> x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

// What is shown of a row of numbers.
inline constexpr std::size_t numbers_shown = 6;

// ---- The backwards that the page takes apart ---------------------------------------------------

// The first product of the first layer's feed-forward: u = a W^T + b, loss = du u
inline Json check_linear(Step& step) {
  auto& matrices = step.recording().matrices;
  const Matrix &of_a = matrices.at("layers.0.a"), &of_u = matrices.at("layers.0.u");
  const std::size_t N = of_a.rows, I = of_a.cols, O = of_u.cols;
  const std::string prefix = bert4rec::layer_prefix(0) + "linear1.";
  Numbers a = of_a.value, u(N * O),
          w(step.parameter(prefix + "weight"), step.parameter(prefix + "weight") + O * I);
  Numbers b(step.parameter(prefix + "bias"), step.parameter(prefix + "bias") + O);
  Numbers da(N * I), dw(O * I), db(O);
  Recording::Base& compute = step.recording().base();
  bert4rec::linear_backward(compute, N, O, I, a.data(), w.data(), of_u.gradient.data(), dw.data(),
                            db.data(), da.data(), false);
  const auto loss = [&] {
    bert4rec::linear_forward(compute, N, O, I, a.data(), w.data(), b.data(), u.data());
    return dot(of_u.gradient, u);
  };
  Json::Array rows;
  const auto show = [&](const std::string& name, double& number, double gradient) {
    rows.push_back(Json::Array{Json(name), Json(number), Json(gradient),
                               Json(central_difference(number, loss))});
  };
  for (std::size_t i = 0; i < 2; ++i) {
    show(bert4rec::join("W[0,", i, "]"), w[i], dw[i]);
    show(bert4rec::join("b[", i, "]"), b[i], db[i]);
    show(bert4rec::join("a of the newest token [", i, "]"), a[(N - 1) * I + i],
         da[(N - 1) * I + i]);
  }
  const double worst =
      std::max({worst_error(a, da, loss), worst_error(w, dw, loss), worst_error(b, db, loss)});
  return check_json(worst, {"", "value", "gradient", "by differences"}, std::move(rows));
}

// loss(s) = log sum_j exp s_j - s_target
inline Json check_softmax_loss(Step& step) {
  const auto& kernels = step.recording().kernels;
  const Matrix& scores = step.recording().matrices.at("scores");
  const Numbers& gradient = scores.gradient;
  const auto target = static_cast<std::size_t>(std::min_element(gradient.begin(), gradient.end()) -
                                               gradient.begin());  // the negative one
  Numbers s = scores.value;
  const auto loss = [&] {
    Numbers copy = s;
    return bert4rec::softmax_loss(kernels, copy.data(), copy.size(), target);
  };
  std::vector<std::size_t> order(s.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return s[a] > s[b]; });
  order.resize(std::min(order.size(), numbers_shown - 1));
  if (std::find(order.begin(), order.end(), target) == order.end()) order.push_back(target);
  Json::Array rows;
  for (const std::size_t j : order) {
    const double p = gradient[j] + (j == target ? 1 : 0);
    rows.push_back(
        Numbers{static_cast<double>(j), s[j], p, gradient[j], central_difference(s[j], loss)});
  }
  return check_json(worst_error(s, gradient, loss), {"item", "s", "p", "ds", "by differences"},
                    std::move(rows));
}

// The last norm of the last layer, at the asked place: y = gain z + bias, loss = dy y
inline Json check_norm(Step& step) {
  const std::size_t H = step.model().hidden_size, last = step.model().num_layers - 1;
  const std::string prefix = bert4rec::layer_prefix(last), layer = bert4rec::join("layers.", last);
  auto& matrices = step.recording().matrices;
  const Numbers &dx = matrices.at(layer + ".sum2").gradient,
                &dy = matrices.at(layer + ".x").gradient;
  const double *gain = step.parameter(prefix + "norm2.weight"),
               *bias = step.parameter(prefix + "norm2.bias");
  Numbers x = matrices.at(layer + ".sum2").value, y(H);
  Statistics row{};
  const auto loss = [&] {
    row = step.recording().kernels.normalize(x.data(), gain, bias, step.model().norm_epsilon,
                                             y.data(), H);
    return dot(dy, y);
  };
  Json::Array rows;
  for (std::size_t i = 0; i < std::min(H, numbers_shown); ++i) {
    const double numeric = central_difference(x[i], loss);
    loss();
    const double z = (x[i] - row.mean) * row.inverse_deviation;
    rows.push_back(Numbers{static_cast<double>(i), x[i], z, gain[i], dy[i], dx[i], numeric});
  }
  return check_json(worst_error(x, dx, loss), {"i", "x", "z", "gain", "dy", "dx", "by differences"},
                    std::move(rows));
}

// Of the last token in the first layer: h = gelu(u), loss = dh h
inline Json check_gelu(Step& step) {
  auto& matrices = step.recording().matrices;
  const Matrix &of_u = matrices.at("layers.0.u"), &of_h = matrices.at("layers.0.h");
  const std::size_t width = of_u.cols, first = (of_u.rows - 1) * width;
  const auto row = [&](const Numbers& all) {
    return Numbers(all.begin() + static_cast<std::ptrdiff_t>(first), all.end());
  };
  Numbers u = row(of_u.value), h(width);
  const Numbers du = row(of_u.gradient), dh = row(of_h.gradient);
  const auto loss = [&] {
    step.recording().kernels.gelu(u.data(), h.data(), width);
    return dot(dh, h);
  };
  loss();
  const Numbers as_it_is = h;
  Json::Array rows;
  for (std::size_t i = 0; i < std::min(width, numbers_shown); ++i) {
    rows.push_back(Numbers{static_cast<double>(i), u[i], as_it_is[i], dh[i], du[i],
                           central_difference(u[i], loss)});
  }
  return check_json(worst_error(u, du, loss), {"i", "u", "h", "dh", "du", "by differences"},
                    std::move(rows));
}

// The first layer's attention as a whole: loss = d_context context(q, kv)
inline Json check_attention(Step& step) {
  auto& matrices = step.recording().matrices;
  Numbers q = matrices.at("layers.0.q").value, kv = matrices.at("layers.0.kv").value;
  const Numbers &dq = matrices.at("layers.0.q").gradient,
                &dkv = matrices.at("layers.0.kv").gradient;
  const Numbers& d_context = matrices.at("layers.0.context").gradient;
  const EncoderConfig config = step.model().encoder();
  Numbers weights(matrices.at("layers.0.weights").value.size()), context(q.size());
  const auto loss = [&] {
    step.run([&](const RowGroup& group) {
      const bool is_last = config.num_layers == 1;
      const Queries queries =
          is_last ? Queries{group.asked_rows, group.asked} : Queries{group.all, {}};
      bert4rec::attention_forward(step.recording().base(), config, group, queries, {}, q.data(),
                                  kv.data(), weights.data(), context.data());
    });
    return dot(d_context, context);
  };
  const std::size_t H = config.hidden_size, last = kv.size() - 2 * H;  // the newest token's
  Json::Array rows;
  for (std::size_t i = 0; i < 2; ++i) {
    const std::size_t at_q = q.size() - H + i;
    rows.push_back(Json::Array{Json(bert4rec::join("q", i)), Json(q[at_q]), Json(dq[at_q]),
                               Json(central_difference(q[at_q], loss))});
  }
  for (const auto& [name, begin] : {std::pair{"k", last}, std::pair{"v", last + H}}) {
    for (std::size_t i = 0; i < 2; ++i) {
      rows.push_back(Json::Array{Json(bert4rec::join(name, i)), Json(kv[begin + i]),
                                 Json(dkv[begin + i]),
                                 Json(central_difference(kv[begin + i], loss))});
    }
  }
  const double worst = std::max(worst_error(q, dq, loss), worst_error(kv, dkv, loss));
  return check_json(worst, {"of the newest token", "value", "gradient", "by differences"},
                    std::move(rows));
}

// ---- The whole ---------------------------------------------------------------------------------

// Of each tensor: the length of its gradient, and its largest number against a central difference
// of the whole loss.
inline Json check_tensors(Step& step) {
  Json::Array rows;
  double worst = 0;
  for (const bert4rec::TensorSpec& spec : step.table()) {
    const auto gradient = std::span(step.gradients()).subspan(spec.offset, spec.size);
    const auto largest = static_cast<std::size_t>(
        std::max_element(gradient.begin(), gradient.end(),
                         [](double a, double b) { return std::abs(a) < std::abs(b); }) -
        gradient.begin());
    const double numeric = central_difference(step.parameters()[spec.offset + largest],
                                              [&] { return step.loss_now(); });
    const double size = std::abs(gradient[largest]);
    if (size > 0) worst = std::max(worst, std::abs(numeric - gradient[largest]) / size);
    rows.push_back(Json::Array{Json(spec.name), Json(spec.shape), Json(length(gradient)),
                               Json(largest), Json(gradient[largest]), Json(numeric)});
  }
  return check_json(
      worst, {"tensor", "shape", "length of its gradient", "element", "gradient", "by differences"},
      std::move(rows));
}

inline Json checks_of(Step& step) {
  Json json;
  json.set("softmax_loss", check_softmax_loss(step));
  json.set("linear", check_linear(step));
  json.set("normalize", check_norm(step));
  json.set("gelu", check_gelu(step));
  json.set("attention", check_attention(step));
  json.set("tensors", check_tensors(step));
  return json;
}

}  // namespace explain

#endif
