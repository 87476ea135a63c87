// Chapter 6: each index exactly once, exceptions, many jobs, ranges. Meant for ThreadSanitizer too,
// so plain numbers are written wherever the pool promises that one task owns them.

#include "bert4rec.hpp"
#include "check.hpp"

#ifndef _WIN32
#include <sys/resource.h>
#include <sys/wait.h>
#endif

using namespace bert4rec;

namespace {

constexpr std::size_t pool_sizes[] = {1, 2, 3, 8};

void check_sizes() {
  for (const std::size_t threads : pool_sizes) check_equal(ThreadPool(threads).size(), threads);
  check(ThreadPool().size() >= 1, "one thread a core");
}

// Nothing but the end of the job orders these plain additions before they are read.
void check_each_index_once() {
  for (const std::size_t threads : pool_sizes) {
    ThreadPool pool(threads);
    for (const std::size_t tasks : {0u, 1u, 2u, 3u, 7u, 8u, 9u, 1000u}) {
      std::vector<int> runs(tasks);
      std::vector<std::size_t> by_worker(threads);
      pool.parallel_for(tasks, [&](std::size_t index, std::size_t worker) {
        ++runs.at(index);
        ++by_worker.at(worker);  // a worker is never in two tasks at once
      });
      check_equal(std::count(runs.begin(), runs.end(), 1), static_cast<std::ptrdiff_t>(tasks));
      check_equal(std::accumulate(by_worker.begin(), by_worker.end(), std::size_t{0}), tasks);
    }
  }
}

// Two tasks that wait for each other end only if two threads run them.
void check_tasks_run_side_by_side() {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  pool.parallel_for(2, [&](std::size_t, std::size_t) {
    ++arrived;
    while (arrived < 2 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  check(std::chrono::steady_clock::now() < deadline, "both ran at the same time");
}

// Each job reads what the one before wrote.
void check_many_small_jobs() {
  for (const std::size_t threads : pool_sizes) {
    ThreadPool pool(threads);
    std::vector<std::size_t> old(5), now(5);
    constexpr std::size_t jobs = 2000;
    for (std::size_t job = 0; job < jobs; ++job) {
      pool.parallel_for(5, [&](std::size_t i, std::size_t) { now[i] = old[(i + 1) % 5] + 1; });
      std::swap(old, now);
    }
    for (const std::size_t value : old) check_equal(value, jobs);
  }
}

// Long enough for the workers to fall asleep between two jobs.
void check_jobs_after_a_pause() {
  ThreadPool pool(3);
  std::vector<int> runs(12);
  for (int job = 0; job < 4; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    pool.parallel_for(12, [&](std::size_t i, std::size_t) { ++runs[i]; });
  }
  for (const int count : runs) check_equal(count, 4);
}

void check_exceptions() {
  for (const std::size_t threads : pool_sizes) {
    ThreadPool pool(threads);
    for (const std::size_t bad : {0u, 1u, 13u, 19u}) {
      const auto job = [&](std::size_t i, std::size_t) {
        require(i != bad, "task ", i, " failed");
      };
      check_throws([&] { pool.parallel_for(20, job); }, {join("task ", bad, " failed")});
    }
    check_throws([&] { pool.parallel_for(1, [](std::size_t, std::size_t) { fail("alone"); }); },
                 {"alone"});
    check_throws([&] { pool.parallel_for(20, [](std::size_t, std::size_t) { fail("each"); }); },
                 {"each"});
    std::vector<int> runs(20);  // the pool still works, and the old error is forgotten
    pool.parallel_for(20, [&](std::size_t i, std::size_t) { ++runs[i]; });
    check_equal(std::count(runs.begin(), runs.end(), 1), 20);
  }
}

// The error arrives only when no task runs any more: tasks use what lives on the caller's stack.
void check_exception_waits() {
  ThreadPool pool(3);
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::atomic<int> running{0};
    bool thrown = false;
    try {
      pool.parallel_for(6, [&](std::size_t i, std::size_t) {
        ++running;
        if (i > 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
        --running;
        require(i != 0, "early");
      });
    } catch (const Error&) {
      thrown = true;
      check_equal(running.load(), 0);
    }
    check(thrown, "thrown");
  }
}

// A task that wants the pool that runs it would wait for itself; another pool is free.
void check_nested_jobs() {
  for (const std::size_t threads : pool_sizes) {
    ThreadPool pool(threads), other(2);
    const auto nothing = [](std::size_t, std::size_t) {};
    for (const std::size_t tasks : {1u, 4u}) {
      const auto nested = [&](std::size_t, std::size_t) { pool.parallel_for(3, nothing); };
      check_throws([&] { pool.parallel_for(tasks, nested); }, {"parallel_for inside a task"});
    }
    std::atomic<int> runs{0};
    pool.parallel_for(1, [&](std::size_t, std::size_t) {
      other.parallel_for(4, [&](std::size_t, std::size_t) { ++runs; });
    });
    pool.parallel_for(4, [&](std::size_t, std::size_t) { ++runs; });
    check_equal(runs.load(), 8);
  }
}

void check_ranges(ThreadPool& pool, std::size_t count, std::size_t grain) {
  std::vector<int> runs(count);
  std::atomic<std::size_t> odd{0}, empty{0}, calls{0};
  pool.parallel_ranges(count, grain, [&](std::size_t begin, std::size_t end, std::size_t worker) {
    ++calls;
    odd += begin % grain != 0 || (end % grain != 0 && end != count) || worker >= pool.size();
    empty += begin >= end;
    for (std::size_t i = begin; i < end; ++i) ++runs.at(i);
  });
  const std::string what = join(count, " by ", grain, " on ", pool.size());
  check(std::count(runs.begin(), runs.end(), 1) == std::ssize(runs), "once each: " + what);
  check(odd == 0 && empty == 0, "whole grains: " + what);
  check_equal(calls.load(), std::min(pool.size(), (count + grain - 1) / grain));
}

void check_all_ranges() {
  for (const std::size_t threads : pool_sizes) {
    ThreadPool pool(threads);
    for (const std::size_t count : {0u, 1u, 2u, 15u, 16u, 17u, 31u, 32u, 33u, 100u, 1000u}) {
      for (const std::size_t grain : {1u, 2u, 7u, 16u, 64u, 2000u})
        check_ranges(pool, count, grain);
    }
  }
}

void check_short_lives() {
  for (int repeat = 0; repeat < 100; ++repeat) {
    for (const std::size_t threads : pool_sizes) ThreadPool{threads};
  }
  for (int repeat = 0; repeat < 100; ++repeat) {
    int runs[2] = {0, 0};
    ThreadPool(8).parallel_for(2, [&](std::size_t i, std::size_t) { ++runs[i]; });
    check(runs[0] == 1 && runs[1] == 1, "one job, then the end");
  }
}

#ifdef _WIN32

void test_no_threads_left() { skip("no threads left", "Windows limits no threads"); }

#else

// In a child: room for a few threads, not for 64. Root knows no limit, so it becomes nobody.
int start_too_many() {
  const rlimit no_core{0, 0}, few{3, 3};
  ::setrlimit(RLIMIT_CORE, &no_core);
  if (::getuid() == 0 && ::setuid(65534) != 0) return 2;
  ::setrlimit(RLIMIT_NPROC, &few);
  try {
    const ThreadPool pool(64);
  } catch (const Error& error) {
    return std::string_view(error.what()).find("64 threads") == std::string_view::npos ? 3 : 0;
  } catch (...) {
    return 4;
  }
  return 5;
}

// Must come first: a child of a process that has had threads may not start any under
// ThreadSanitizer.
void check_no_threads_left() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(start_too_many());
  int status = -1;
  ::waitpid(child, &status, 0);
  check(WIFEXITED(status), "an Error, not the end of the program");
  check_equal(WEXITSTATUS(status), 0);
}

void test_no_threads_left() { test("no threads left", check_no_threads_left); }

#endif

}  // namespace

int main() {
  test_no_threads_left();
  test("sizes", check_sizes);
  test("too many",
       [] { check_throws([] { ThreadPool(1025); }, {"threads is 1025, expected 0 ... 1024"}); });
  test("each index once", check_each_index_once);
  test("tasks run side by side", check_tasks_run_side_by_side);
  test("many small jobs", check_many_small_jobs);
  test("jobs after a pause", check_jobs_after_a_pause);
  test("exceptions", check_exceptions);
  test("an exception waits for the others", check_exception_waits);
  test("a job inside a job", check_nested_jobs);
  test("ranges", check_all_ranges);
  test("short lives", check_short_lives);
  return finish();
}
