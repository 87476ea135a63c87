// Ranks that are threads of one program.

#ifndef BERT4REC_TESTS_RANKS_HPP
#define BERT4REC_TESTS_RANKS_HPP

#include <condition_variable>
#include <mutex>
#include <thread>

#include "bert4rec.hpp"
#include "check.hpp"

// Where the ranks meet: each brings something, and when all have, each sees it all.
class Meeting {
 public:
  explicit Meeting(std::size_t size) : brought_(size) {}

  std::size_t size() const { return brought_.size(); }

  std::vector<std::string> exchange(std::size_t rank, std::string_view own) {
    std::unique_lock lock(mutex_);
    const std::size_t round = round_;
    brought_[rank] = own;
    if (++arrived_ == brought_.size()) {
      all_ = brought_;
      arrived_ = 0, ++round_;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return round_ != round || !failure_.empty(); });
    bert4rec::require(round_ != round, failure_);
    return all_;
  }

  // Each number becomes the sum of those of all ranks, rank 0 first.
  void sum(std::size_t rank, std::span<float> numbers) {
    const std::string_view own(reinterpret_cast<const char*>(numbers.data()), numbers.size_bytes());
    const std::vector<std::string> all = exchange(rank, own);
    std::vector<float> theirs(numbers.size());
    std::fill(numbers.begin(), numbers.end(), 0.0f);
    for (const std::string& bytes : all) {
      bert4rec::require(bytes.size() == own.size(), "sums of different lengths");
      std::memcpy(theirs.data(), bytes.data(), bytes.size());
      for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] += theirs[i];
    }
  }

  // Ends all that wait or will.
  void leave(std::size_t rank, std::string_view why) {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = bert4rec::join("rank ", rank, " failed: ", why);
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> brought_, all_;
  std::size_t arrived_ = 0, round_ = 0;
  std::string failure_;
};

class ThreadRank : public bert4rec::Collective {
 public:
  ThreadRank(Meeting& meeting, std::size_t rank)
      : claimed_size(meeting.size()), meeting_(meeting), rank_(rank) {}

  std::size_t rank() const override { return rank_; }
  std::size_t size() const override { return claimed_size; }
  void sum(std::span<float> numbers) override {
    largest_sum = std::max(largest_sum, numbers.size());
    meeting_.sum(rank_, numbers);
    if (numbers.size() > 1) numbers[0] += added_to_gradient;
  }
  std::vector<std::string> gather(std::string_view own) override {
    return meeting_.exchange(rank_, own);
  }

  std::size_t claimed_size, largest_sum = 0;
  float added_to_gradient = 0;  // a fault

 private:
  Meeting& meeting_;
  std::size_t rank_;
};

// body(rank) on each of n ranks: of each why it failed, or "".
inline std::vector<std::string> on_ranks(std::size_t n,
                                         const std::function<void(ThreadRank&)>& body) {
  Meeting meeting(n);
  std::vector<std::string> errors(n);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < n; ++i) {
    threads.emplace_back([&, i] {
      try {
        ThreadRank rank(meeting, i);
        body(rank);
        meeting.leave(i, "it was done");  // which a rank that still waits is not
      } catch (const std::exception& error) {
        errors[i] = error.what();
        meeting.leave(i, error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

inline void check_fine(const std::vector<std::string>& errors,
                       Place where = {__builtin_FILE(), __builtin_LINE()}) {
  for (const std::string& error : errors) check(error.empty(), error, where);
}

// That all ranks failed, each with this in its message.
inline void check_failed(const std::vector<std::string>& errors, std::string_view part,
                         Place where = {__builtin_FILE(), __builtin_LINE()}) {
  for (const std::string& error : errors) {
    check(error.find(part) != error.npos, bert4rec::join("\"", error, "\" has \"", part, "\""),
          where);
  }
}

#endif  // BERT4REC_TESTS_RANKS_HPP
