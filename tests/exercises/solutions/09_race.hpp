namespace mine {

float sum_blocks(ThreadPool& pool, std::size_t blocks, const SumOf& sum_of) {
  std::vector<float> sums(blocks);  // nobody else writes sums[block]
  pool.parallel_for(blocks, [&](std::size_t block, std::size_t) { sums[block] = sum_of(block); });
  return std::accumulate(sums.begin(), sums.end(), 0.0f);  // in the order of the blocks
}

}  // namespace mine
