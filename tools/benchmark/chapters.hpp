// Where the time of a step goes: a table of kernels with a clock around each function.
//
// The engine computes through a table of function pointers. Its functions here stop the time, call
// the true ones and add what has passed to a chapter of this thread. Step times are measured
// without them: they cost about 20 ns a call.

#ifndef BERT4REC_TOOLS_CHAPTERS_HPP
#define BERT4REC_TOOLS_CHAPTERS_HPP

#include <deque>

#include "bert4rec.hpp"

namespace chapters {

using bert4rec::Key;
using Kernels = bert4rec::detail::Kernels<float>;
using Statistics = bert4rec::detail::RowStatistics<float>;

enum Chapter : std::size_t {
  products,     // of linear layers and scores
  attention,    // its products, softmax and dropout
  loss,         // softmax, gradient and ranks over items
  elementwise,  // norms, GELU, dropout, sums of residuals, embeddings and bias gradients
  optimizer,    // norm of the gradient, AdamW
  other,        // copies, zeros, waiting for other threads, what runs outside the engine
  count
};

inline constexpr std::array<const char*, count> names{"products",    "attention", "loss",
                                                      "elementwise", "optimizer", "other"};

// The time-stamp counter where there is one (8 ns): kernels of one row take as little as 5 ns.
inline std::uint64_t ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

// What one thread has done.
struct alignas(64) Account {
  std::array<std::uint64_t, count> ticks{};
  std::uint64_t flops = 0;  // of all products
};

inline std::mutex accounts_mutex;
inline std::deque<Account> accounts;  // of all threads there ever were

inline Account& account() {
  thread_local Account& mine = [&]() -> Account& {
    const std::lock_guard lock(accounts_mutex);
    return accounts.emplace_back();
  }();
  return mine;
}

// The true kernels, and the hidden size of the model, which tells layers from attention.
inline const Kernels* true_kernels = nullptr;
inline std::size_t hidden_size = 0;

class Clock {
 public:
  explicit Clock(Chapter chapter) : chapter_(chapter), start_(ticks()) {}
  ~Clock() { account().ticks[chapter_] += ticks() - start_; }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

 private:
  Chapter chapter_;
  std::uint64_t start_;
};

// The function `member` of the table, in one chapter whatever its arguments are.
template <auto member, Chapter chapter>
struct Timed;
template <class Result, class... Arguments, Result (*Kernels::*member)(Arguments...),
          Chapter chapter>
struct Timed<member, chapter> {
  static Result call(Arguments... arguments) {
    const Clock clock(chapter);
    return (true_kernels->*member)(arguments...);
  }
};

// Attention reads k and v and writes their gradients where they stand, 2H numbers a token. B has
// that stride in four of its six products and C in the other two. Of the linear layers only k and v
// themselves have it, in C, and they start from their bias.
inline void multiply(std::size_t m, std::size_t n, std::size_t k, const float* a, std::size_t a_row,
                     std::size_t a_col, const float* b, std::size_t b_row, std::size_t b_col,
                     const float* start, std::size_t start_row, float* c, std::size_t c_row,
                     float* scratch) {
  const std::size_t stride = 2 * hidden_size;
  const bool inside = b_row == stride || b_col == stride || (c_row == stride && start == nullptr);
  account().flops += 2 * m * n * k;
  const Clock clock(inside ? attention : products);
  true_kernels->multiply(m, n, k, a, a_row, a_col, b, b_row, b_col, start, start_row, c, c_row,
                         scratch);
}

// Attention divides its scores by sqrt D > 1; those of the items stay as they are.
inline bert4rec::detail::SoftmaxSum<float> softmax(float* x, float scale, std::size_t n) {
  const Clock clock(scale == 1.0f ? loss : attention);
  return true_kernels->softmax(x, scale, n);
}

// Layers drop rows of H or 4H numbers, attention rows as long as a history. (Those of exactly H
// items are taken for a layer's.)
inline void dropout(const float* x, float* y, std::size_t n, Key key, std::uint32_t row,
                    std::uint32_t threshold) {
  const Clock clock(n == hidden_size || n == 4 * hidden_size ? elementwise : attention);
  true_kernels->dropout(x, y, n, key, row, threshold);
}

// The table with clocks, around `kernels` (which must outlive its use), for a model of that width.
inline Kernels timed(const Kernels& kernels, std::size_t width) {
  true_kernels = &kernels;
  hidden_size = width;
  return {kernels.name,
          multiply,
          kernels.scratch_size,
          Timed<&Kernels::add, elementwise>::call,
          Timed<&Kernels::scale, loss>::call,
          Timed<&Kernels::add_scaled, loss>::call,
          Timed<&Kernels::dot, loss>::call,
          Timed<&Kernels::sum_of_squares, optimizer>::call,
          softmax,
          Timed<&Kernels::softmax_backward, attention>::call,
          Timed<&Kernels::logistic, loss>::call,
          Timed<&Kernels::count_above, loss>::call,
          Timed<&Kernels::gelu, elementwise>::call,
          Timed<&Kernels::gelu_backward, elementwise>::call,
          dropout,
          Timed<&Kernels::normalize, elementwise>::call,
          Timed<&Kernels::normalize_backward, elementwise>::call,
          Timed<&Kernels::normalize_parameters, elementwise>::call,
          Timed<&Kernels::adamw, optimizer>::call,
          Timed<&Kernels::adamw_replay, optimizer>::call,
          kernels.exp,
          kernels.erf};
}

// All threads together, since the last clear().
inline Account total() {
  Account sum;
  for (const Account& account : accounts) {
    for (std::size_t i = 0; i < count; ++i) sum.ticks[i] += account.ticks[i];
    sum.flops += account.flops;
  }
  return sum;
}

inline void clear() {
  for (Account& account : accounts) account = Account{};
}

}  // namespace chapters

#endif  // BERT4REC_TOOLS_CHAPTERS_HPP
