namespace mine {

void adam(std::span<double> w, std::span<const double> g, Moments& moments,
          const TrainConfig& config) {
  ++moments.t;
  const auto t = static_cast<double>(moments.t);
  for (std::size_t i = 0; i < w.size(); ++i) {
    double &m = moments.m[i], &v = moments.v[i];
    m += (1 - config.adam_beta1) * (g[i] - m);
    v += (1 - config.adam_beta2) * (g[i] * g[i] - v);
    // The weights of all gradients so far sum to 1 - beta^t: the rest still lies on the 0 at first.
    const double mean = m / (1 - std::pow(config.adam_beta1, t));
    const double mean_of_squares = v / (1 - std::pow(config.adam_beta2, t));
    w[i] -= config.learning_rate * mean / (std::sqrt(mean_of_squares) + config.adam_epsilon);
  }
}

}  // namespace mine
