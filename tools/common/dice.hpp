// Draws for the tools that make data up: the same on every machine.

#ifndef BERT4REC_TOOLS_DICE_HPP
#define BERT4REC_TOOLS_DICE_HPP

#include "bert4rec.hpp"

namespace tools {

using bert4rec::Key;

// The draws of one stream, one after the other.
class Dice {
 public:
  explicit Dice(Key key) : key_(key) {}

  template <class Integer>
  Integer below(Integer n) {
    return static_cast<Integer>(bert4rec::below(key_, count_++, static_cast<std::size_t>(n)));
  }
  // 0 ... n - 1 with a long tail: the mean is n / 4, the density falls as -log(x / n).
  template <class Integer>
  Integer skewed(Integer n) {
    const Integer bound = below(n) + 1;
    return below(bound);
  }
  bool chance(int percent) { return below(100) < percent; }

  // An index in proportion to its weight, or none where all weights are zero.
  std::optional<std::size_t> weighted(std::span<const std::int64_t> weights) {
    const std::int64_t sum = std::accumulate(weights.begin(), weights.end(), std::int64_t{0});
    if (sum == 0) return std::nullopt;
    std::int64_t rest = below(sum);
    std::size_t i = 0;
    while (rest >= weights[i]) rest -= weights[i++];
    return i;
  }

 private:
  Key key_;
  std::uint64_t count_ = 0;
};

}  // namespace tools

#endif  // BERT4REC_TOOLS_DICE_HPP
