namespace mine {

std::size_t rank_unseen(std::span<const float> scores, const NextItemCase& question) {
  const float target_score = scores[static_cast<std::size_t>(question.target)];
  std::size_t better = 0, ties = 0;
  const std::unordered_set<std::int32_t> seen(question.before.begin(), question.before.end());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const auto item = static_cast<std::int32_t>(i);
    if (item == question.target || seen.contains(item)) continue;  // seen items do not compete
    better += scores[i] > target_score;
    ties += scores[i] == target_score;
  }
  return rank_of(better, ties);
}

}  // namespace mine
