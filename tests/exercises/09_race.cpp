// Exercise 9: a race. Read before: chapter 6, its first lines and ThreadPool::parallel_for();
// chapter 10, sum_block and Compute::sum_tokens().

#include "exercise.hpp"

using namespace bert4rec;

using SumOf = std::function<float(std::size_t block)>;

#ifdef SOLUTION
#include "solutions/09_race.hpp"
#else
namespace mine {

// sum_of(0) + sum_of(1) + ... + sum_of(blocks - 1), such as the gradient of a bias from those of
// blocks of tokens, each computed by some thread of the pool. The result must have the same bits on
// any number of threads, whoever is first.
float sum_blocks(ThreadPool& pool, std::size_t blocks, const SumOf& sum_of) {
  std::atomic<float> total = 0;
  pool.parallel_for(blocks, [&](std::size_t block, std::size_t) {
    const float so_far = total;
    total = so_far + sum_of(block);
  });
  return total;
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

constexpr std::size_t blocks = 4;

std::atomic<bool> in_vain = false;  // a wait was: other threads were kept from coming

template <class Condition>
void wait_until(Condition&& condition) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(10);
  while (!condition() && !in_vain) {
    if (Clock::now() > end) in_vain = true;
    std::this_thread::yield();
  }
}

// Four threads, each in the midst of its block before any has finished it. No luck is needed: this
// is one of the orders that a computer may choose at any time.
void check_meeting(ThreadPool& pool) {
  std::atomic<std::size_t> arrived = 0;
  const float sum = mine::sum_blocks(pool, blocks, [&](std::size_t) {
    ++arrived;
    wait_until([&] { return arrived == blocks; });
    return 1.0f;
  });
  require(sum == 4, "four threads each add 1 to 0, all at the same time: expected 4, got ",
          number(sum), ". Who wrote last did not know of the others, whose additions are lost.");
  require(!in_vain, "one thread works at a time, because of a lock or because the pool is not ",
          "used: expected four to compute their blocks at the same time");
}

constexpr float sums[blocks] = {1e8f, 1.0f, -1e8f, 0.5f};

// Blocks that are ready one after the other, in this order.
float sum_in_order(ThreadPool& pool, const std::array<std::size_t, blocks>& order) {
  std::atomic<std::size_t> ready = 0;
  return mine::sum_blocks(pool, blocks, [&](std::size_t block) {
    wait_until([&] { return order[ready] == block; });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // who was before is done
    if (ready + 1 < blocks) ++ready;
    return sums[block];
  });
}

}  // namespace

int main() {
  return run_exercise([] {
    ThreadPool pool(blocks), one(1);
    check_meeting(pool);
    const float expected = mine::sum_blocks(one, blocks, [](std::size_t b) { return sums[b]; });
    for (const auto& order : {std::array<std::size_t, 4>{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 3, 0, 2}}) {
      const float sum = sum_in_order(pool, order);
      require(sum == expected, "blocks of 1e8, 1, -1e8 and 0.5 give ", number(expected),
              " on one thread, and ", number(sum), " where the blocks are ready in the order ",
              list(order), ". Sums of floats depend on their order, so it must be a fixed one.");
    }
    return "each task writes a place of its own, and one thread adds them in order: same bits";
  });
}
