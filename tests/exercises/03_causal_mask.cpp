// Exercise 3: a mask that leaks the target. Read before: chapter 10, attention_forward() and
// AttentionHead::visible(); chapter 14, add_causal_row().

#include "exercise.hpp"

using namespace bert4rec;
using Matrix = std::vector<double>;  // [n,D], row-major

#ifdef SOLUTION
#include "solutions/03_causal_mask.hpp"
#else
namespace mine {

// Causal attention of one head in a row of n items: item i sees the items 0 ... i alone, since it
// is asked for item i + 1. q, k, v and the result are [n,D].
//   S = q k^T / sqrt D  [n,n],   P_i = softmax(S_i) over what i sees, 0 elsewhere,   out = P v
Matrix causal_attention(std::size_t n, std::size_t D, const Matrix& q, const Matrix& k,
                        const Matrix& v) {
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  Matrix out(n * D), P(n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) P[j] = detail::plain::dot(&q[i * D], &k[j * D], D);
    detail::plain::softmax(P.data(), scale, n);
    for (std::size_t j = i + 1; j < n; ++j) P[j] = 0;
    for (std::size_t j = 0; j < n; ++j) detail::plain::add_scaled(P[j], &v[j * D], &out[i * D], D);
  }
  return out;
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

constexpr std::size_t n = 5, D = 4;

Matrix random_matrix(std::uint64_t seed) {
  Matrix matrix;
  for (std::size_t i = 0; i < n * D; ++i) {
    matrix.push_back(4 * uniform(make_key(seed), i) - 2);
  }
  return matrix;
}

Matrix header_attention(const Matrix& q, const Matrix& k, const Matrix& v) {
  ModelConfig model{.num_items = 9, .hidden_size = D, .num_heads = 1, .max_length = n};
  model.objective = Objective::causal;
  const EncoderConfig config = model.encoder();
  Compute<double> compute(1, attention_scratch(config), 1, detail::plain_kernels<double>());
  const std::size_t offsets[] = {0, n}, pairs[] = {0, n * n};
  RowGroup group;
  group.all = {offsets}, group.pairs = pairs;
  Matrix kv, weights(n * n), out(n * D);  // kv[n,2D]: keys before values
  for (std::size_t i = 0; i < n; ++i) {
    for (const Matrix* part : {&k, &v}) kv.insert(kv.end(), &(*part)[i * D], &(*part)[i * D] + D);
  }
  attention_forward(compute, config, group, Queries{group.all, {}}, DropoutSite{}, q.data(),
                    kv.data(), weights.data(), out.data());
  return out;
}

// Another item in place of each target: its key and value are multiplied by the factor.
void check_leak(const Matrix& q, const Matrix& k, const Matrix& v, double factor) {
  const Matrix out = mine::causal_attention(n, D, q, k, v);
  for (std::size_t target = 1; target < n; ++target) {
    Matrix other_k = k, other_v = v;
    detail::plain::scale(&other_k[target * D], factor, D);
    detail::plain::scale(&other_v[target * D], factor, D);
    const Matrix other = mine::causal_attention(n, D, q, other_k, other_v);
    for (std::size_t c = 0; c < target * D; ++c) {
      require(close(out[c], other[c], 1e-12), "item ", target, " was exchanged for another, and ",
              "the output at place ", c / D, ", which must not see it, went from ", number(out[c]),
              " to ", number(other[c]),
              ". What a place is asked to guess reaches it all the same.");
    }
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    const Matrix q = random_matrix(1), k = random_matrix(2), v = random_matrix(3);
    const Matrix out = mine::causal_attention(n, D, q, k, v);
    for (const double factor : {-1.0, 1000.0, -1000.0}) check_leak(q, k, v, factor);
    const Matrix expected = header_attention(q, k, v);
    for (std::size_t c = 0; c < n * D; ++c) {
      require(close(out[c], expected[c], 1e-12), "the output at place ", c / D, " is ",
              number(expected[c]), " by attention_forward, got ", number(out[c]),
              ". The weights over what a place sees must sum to 1.");
    }
    return "a mask stands before the softmax: behind it, the sum has seen the future already";
  });
}
