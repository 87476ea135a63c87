namespace mine {

Items best_items(Items items, std::size_t count) {
  const auto better = [](const Recommendation& a, const Recommendation& b) {
    return a.score != b.score ? a.score > b.score : a.item < b.item;  // no two items are equal
  };
  std::sort(items.begin(), items.end(), better);
  items.resize(std::min(count, items.size()));
  return items;
}

}  // namespace mine
