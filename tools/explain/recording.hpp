// Runs the encoder of bert4rec.hpp and keeps what it makes: Encoder is a template over what
// computes (chapter 11), so a Compute whose layers copy their results shows every number of a step
// without a line of the encoder being changed or written twice.

#ifndef BERT4REC_TOOLS_RECORDING_HPP
#define BERT4REC_TOOLS_RECORDING_HPP

#include <map>

#include "bert4rec.hpp"

namespace explain {

using bert4rec::DropoutSite, bert4rec::EncoderConfig, bert4rec::Queries, bert4rec::RowGroup;
using Statistics = bert4rec::detail::RowStatistics<double>;

// A matrix on its way through the network, and the gradient of the loss by it (empty: not kept).
struct Matrix {
  std::size_t rows = 0, cols = 0;
  std::vector<double> value, gradient;
};

class Recording : public bert4rec::Compute<double> {
 public:
  using Base = bert4rec::Compute<double>;
  using Base::Base;

  std::map<std::string, Matrix> matrices;  // by the names of Encoder::Activations

  Base& base() { return *this; }
  void keep(const std::string& name, std::size_t rows, std::size_t cols, const double* from) {
    Matrix& matrix = matrices[name];
    matrix.rows = rows, matrix.cols = cols;
    matrix.value.assign(from, from + rows * cols);
  }
  void keep_gradient(const std::string& name, const double* from) {
    Matrix& matrix = matrices.at(name);
    matrix.gradient.assign(from, from + matrix.value.size());
  }

  // The calls of a layer come in one order, in forward and, from the last layer, in backward: five
  // products, and a norm behind the third and the fifth.
  void start_at(std::size_t layer) { layer_ = layer, products_ = norms_ = 0; }
  std::size_t next_product() { return products_++ % 5; }
  bool next_norm_is_first() { return norms_++ % 2 == 0; }
  std::string in_layer(std::string_view name) const {
    return bert4rec::join("layers.", layer_, ".", name);
  }
  void go_to(std::size_t layer) { layer_ = layer; }
  std::size_t layer() const { return layer_; }

 private:
  std::size_t layer_ = 0, products_ = 0, norms_ = 0;
};

// ---- Forward -----------------------------------------------------------------------------------

inline void embedding_forward(Recording& r, std::size_t H, const RowGroup& group,
                              const bert4rec::EncoderTensors<double>& w, double* e) {
  bert4rec::embedding_forward(r.base(), H, group, w, e);
  r.start_at(0);
  r.keep("embedded", group.tokens.size(), H, e);
}

inline void norm_forward(Recording& r, std::size_t N, std::size_t H, const double* x,
                         const double* gain, const double* bias, double epsilon, double* y,
                         Statistics* statistics) {
  bert4rec::norm_forward(r.base(), N, H, x, gain, bias, epsilon, y, statistics);
  r.keep("x0", N, H, y);
}

inline void linear_forward(Recording& r, std::size_t N, std::size_t O, std::size_t I,
                           const double* x, const double* w, const double* b, double* y) {
  bert4rec::linear_forward(r.base(), N, O, I, x, w, b, y);
  constexpr std::string_view names[] = {"q", "kv", "", "u", ""};  // "": a part of a sum
  const std::string_view name = names[r.next_product()];
  if (!name.empty()) r.keep(r.in_layer(name), N, O, y);
}

inline void attention_forward(Recording& r, const EncoderConfig& config, const RowGroup& group,
                              const Queries& queries, const DropoutSite& dropout, const double* q,
                              const double* kv, double* weights, double* out) {
  bert4rec::attention_forward(r.base(), config, group, queries, dropout, q, kv, weights, out);
  const std::size_t Q = queries.rows.size(), N = group.all.size();  // of one row
  r.keep(r.in_layer("weights"), config.num_heads * Q, N, weights);
  r.keep(r.in_layer("context"), Q, config.hidden_size, out);
}

inline void residual_norm_forward(Recording& r, std::size_t N, std::size_t H, std::size_t first,
                                  const DropoutSite& dropout, const double* x, double* f,
                                  const double* gain, const double* bias, double epsilon, double* y,
                                  Statistics* statistics) {
  bert4rec::residual_norm_forward(r.base(), N, H, first, dropout, x, f, gain, bias, epsilon, y,
                                  statistics);
  const bool is_first = r.next_norm_is_first();
  r.keep(r.in_layer(is_first ? "sum1" : "sum2"), N, H, f);
  r.keep(r.in_layer(is_first ? "a" : "x"), N, H, y);
  if (!is_first) r.go_to(r.layer() + 1);
}

inline void activation_forward(Recording& r, std::size_t N, std::size_t width, std::size_t first,
                               const DropoutSite& dropout, const double* u, double* h) {
  bert4rec::activation_forward(r.base(), N, width, first, dropout, u, h);
  r.keep(r.in_layer("h"), N, width, h);
}

// ---- Backward ----------------------------------------------------------------------------------

inline void residual_norm_backward(Recording& r, std::size_t N, std::size_t H, std::size_t first,
                                   const DropoutSite& dropout, const double* sum,
                                   const Statistics* statistics, const double* gain, double* dy,
                                   double* dgain, double* dbias, double* df) {
  const bool is_first = r.next_norm_is_first();  // from the bottom: the second norm of the layer
  r.keep_gradient(r.in_layer(is_first ? "x" : "a"), dy);
  bert4rec::residual_norm_backward(r.base(), N, H, first, dropout, sum, statistics, gain, dy, dgain,
                                   dbias, df);
  r.keep_gradient(r.in_layer(is_first ? "sum2" : "sum1"), dy);
}

inline void linear_backward(Recording& r, std::size_t N, std::size_t O, std::size_t I,
                            const double* x, const double* w, const double* dy, double* dw,
                            double* db, double* dx, bool accumulate_dx) {
  bert4rec::linear_backward(r.base(), N, O, I, x, w, dy, dw, db, dx, accumulate_dx);
  constexpr std::string_view names[] = {"h", "", "context", "", ""};  // "": not yet the whole sum
  const std::size_t product = r.next_product();
  if (!names[product].empty()) r.keep_gradient(r.in_layer(names[product]), dx);
  if (product == 4 && r.layer() > 0) r.go_to(r.layer() - 1);
}

inline void activation_backward(Recording& r, std::size_t N, std::size_t width, std::size_t first,
                                const DropoutSite& dropout, const double* u, double* dh) {
  bert4rec::activation_backward(r.base(), N, width, first, dropout, u, dh);
  r.keep_gradient(r.in_layer("u"), dh);
}

inline void attention_backward(Recording& r, const EncoderConfig& config, const RowGroup& group,
                               const Queries& queries, const DropoutSite& dropout, const double* q,
                               const double* kv, const double* weights, const double* d_out,
                               double* d_q, double* d_kv) {
  bert4rec::attention_backward(r.base(), config, group, queries, dropout, q, kv, weights, d_out,
                               d_q, d_kv);
  r.keep_gradient(r.in_layer("q"), d_q);
  r.keep_gradient(r.in_layer("kv"), d_kv);
}

inline void norm_backward(Recording& r, std::size_t N, std::size_t H, const double* x,
                          const Statistics* statistics, const double* gain, double* dy,
                          double* dgain, double* dbias) {
  r.keep_gradient("x0", dy);
  bert4rec::norm_backward(r.base(), N, H, x, statistics, gain, dy, dgain, dbias);
  r.keep_gradient("embedded", dy);
}

}  // namespace explain

#endif
