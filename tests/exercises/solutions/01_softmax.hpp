namespace mine {

void softmax(float* x, float scale, std::size_t n) {
  // With the largest score subtracted, each exp is at most 1, and the sum is at least 1.
  const float largest = *std::max_element(x, x + n);
  float sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = std::exp(scale * (x[i] - largest));
    sum += x[i];
  }
  for (std::size_t i = 0; i < n; ++i) x[i] /= sum;
}

}  // namespace mine
