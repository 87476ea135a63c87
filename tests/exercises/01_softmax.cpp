// Exercise 1: a softmax that overflows. Read before: chapter 9, softmax().

#include "exercise.hpp"

using namespace bert4rec;

#ifdef SOLUTION
#include "solutions/01_softmax.hpp"
#else
namespace mine {

// x_i = exp(scale x_i) / sum_j exp(scale x_j), over the n numbers of x; scale > 0.
// Finite scores must give finite probabilities, however large or small the scores are.
void softmax(float* x, float scale, std::size_t n) {
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = std::exp(scale * x[i]);
    sum += x[i];
  }
  for (std::size_t i = 0; i < n; ++i) x[i] /= sum;
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

void check_scores(const std::vector<float>& scores, float scale, std::string_view reason) {
  std::vector<float> got = scores, expected = scores;
  mine::softmax(got.data(), scale, got.size());
  detail::plain::softmax(expected.data(), scale, expected.size());
  bool same = true;
  for (std::size_t i = 0; i < got.size(); ++i) same = same && close(got[i], expected[i], 1e-6);
  require(same, "the softmax of the scores ", list(scores), " (scale ", number(scale), ") is ",
          list(expected), ", got ", list(got), ". ", reason);
}

// Only differences between scores matter: softmax(x + c) = softmax(x).
void check_shifts() {
  for (const float shift : {-1e4f, -100.0f, 0.0f, 100.0f, 1e4f}) {
    std::vector<float> scores;
    for (int i = 0; i < 50; ++i) scores.push_back(shift + 0.25f * static_cast<float>(i % 7));
    check_scores(scores, 1, "Adding the same number to all scores must change nothing.");
  }
}

}  // namespace

int main() {
  return run_exercise([] {
    check_scores({1, 2, 3}, 1, "That is the formula itself.");
    check_scores({1, 2, 3}, 0.5f, "The scale belongs to every score.");
    check_scores({0, 100, 200}, 1,
                 "exp(100) is more than a float can hold, 3.4e38, and inf / inf is no number.");
    check_scores({-300, -200, -150}, 1, "Each exp is 0 here, and 0 / 0 is no number.");
    check_shifts();
    return "softmax(x) = softmax(x + c), so the largest score can be made 0: nothing overflows";
  });
}
