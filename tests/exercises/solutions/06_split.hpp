namespace mine {

std::vector<ItemSpan> training_windows(const DataSplit& split, std::size_t length,
                                       std::size_t stride) {
  std::vector<ItemSpan> windows;
  for (const std::size_t user : split.train_users()) {
    add_windows(windows, split.sequence(user).train, length, stride);  // not the whole history
  }
  return windows;
}

}  // namespace mine
