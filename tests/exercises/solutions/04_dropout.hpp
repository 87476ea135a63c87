namespace mine {

void dropout(const float* x, float* y, std::size_t n, Key key, std::uint32_t row,
             std::uint32_t threshold) {
  const auto scale = static_cast<float>(detail::dropout_scale(threshold));  // 1 / (1 - p)
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t quarter = i / 16 % 4, place = i / detail::dropout_chunk * 16 + i % 16;
    const std::uint64_t bits = random_bits(key, (std::uint64_t{row} << 32) | place);
    const bool falls = (bits >> (16 * quarter) & 0xffff) < threshold;
    y[i] = falls ? 0.0f : x[i] * scale;
  }
}

}  // namespace mine
