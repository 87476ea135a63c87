namespace mine {

void norm_backward(const double* x, detail::RowStatistics<double> row, const double* gain,
                   double* dy, double* dgain, double* dbias, std::size_t n) {
  const auto z = [&](std::size_t i) { return (x[i] - row.mean) * row.inverse_deviation; };
  double mean_e = 0, mean_ez = 0;
  for (std::size_t i = 0; i < n; ++i) {
    dgain[i] += dy[i] * z(i);
    dbias[i] += dy[i];
    dy[i] *= gain[i];
    mean_e += dy[i] / static_cast<double>(n);
    mean_ez += dy[i] * z(i) / static_cast<double>(n);
  }
  // The deviation depends on every x_i too: that is the term with mean_ez.
  for (std::size_t i = 0; i < n; ++i) {
    dy[i] = (dy[i] - mean_e - z(i) * mean_ez) * row.inverse_deviation;
  }
}

}  // namespace mine
