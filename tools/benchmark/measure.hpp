// How the benchmark measures: time with its spread, the machine's peak, memory in a child process.

#ifndef BERT4REC_TOOLS_MEASURE_HPP
#define BERT4REC_TOOLS_MEASURE_HPP

#ifndef _WIN32
#include <sys/resource.h>
#include <sys/wait.h>
#endif

#include "bert4rec.hpp"

namespace measure {

using bert4rec::fail;
using bert4rec::join;
using bert4rec::Json;
using bert4rec::require;

// ---- Time --------------------------------------------------------------------------------------

// Seconds that body() takes.
template <class Body>
double seconds_of(Body&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds of processor time that this thread, or all of the process, have used: what is left of
// time on a machine that others use too.
inline double processor_seconds(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Runs body() at least once and until `budget` seconds are used; the seconds of each run are
// appended to `times`.
template <class Body>
void repeat(double budget, std::vector<double>& times, Body&& body) {
  for (double used = 0; used == 0 || used < budget; used += times.back()) {
    times.push_back(seconds_of(body));
  }
}

// The value that a share p of the numbers is below, between neighbours on a line.
inline double quantile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  const double place = p * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return std::lerp(values[below], values[above], place - static_cast<double>(below));
}

inline double median(const std::vector<double>& values) { return quantile(values, 0.5); }

// Median and quartiles of times, in milliseconds.
inline Json spread(const std::vector<double>& times) {
  Json json;
  json.set("median", 1e3 * median(times));
  json.set("lower_quartile", 1e3 * quantile(times, 0.25));
  json.set("upper_quartile", 1e3 * quantile(times, 0.75));
  json.set("n", times.size());
  return json;
}

// ---- The peak ----------------------------------------------------------------------------------
// Multiply-adds on registers alone, with the instructions of the kernels of that name: what the
// matrix products could reach at best. Twelve independent chains, because one multiply-add takes 4
// clocks and two start in each (8 chains), and without a fused instruction 6 to 8 clocks. They
// start from different values, so that the compiler cannot make one of two; factor < 1 keeps them
// finite.

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

inline constexpr std::size_t chains = 12;

#define BENCHMARK_MULTIPLY_ADDS(name, Vector, target)                            \
  target inline float name(std::size_t rounds, float factor, float term) {       \
    const Vector f = factor - Vector{}, t = term - Vector{};                     \
    Vector a = f, b = a + f, c = b + f, d = c + f, e = d + f, g = e + f;         \
    Vector h = g + f, i = h + f, j = i + f, k = j + f, l = k + f, m = l + f;     \
    for (std::size_t round = 0; round < rounds; ++round) {                       \
      a = a * f + t, b = b * f + t, c = c * f + t, d = d * f + t, e = e * f + t; \
      g = g * f + t, h = h * f + t, i = i * f + t, j = j * f + t, k = k * f + t; \
      l = l * f + t, m = m * f + t;                                              \
    }                                                                            \
    const Vector sum = a + b + c + d + e + g + h + i + j + k + l + m;            \
    float first;                                                                 \
    std::memcpy(&first, &sum, sizeof first);                                     \
    return first;                                                                \
  }

BENCHMARK_MULTIPLY_ADDS(multiply_adds_plain, float, )
BENCHMARK_MULTIPLY_ADDS(multiply_adds_baseline, Float4, )
#if defined(__x86_64__)
BENCHMARK_MULTIPLY_ADDS(multiply_adds_avx2, Float8, __attribute__((target("avx2,fma"))))
BENCHMARK_MULTIPLY_ADDS(multiply_adds_avx512, Float16, __attribute__((target("avx512f"))))
#endif
#undef BENCHMARK_MULTIPLY_ADDS

struct PeakLoop {
  float (*run)(std::size_t rounds, float factor, float term);
  std::size_t width;  // floats in a register
};

inline PeakLoop peak_loop(std::string_view kernels) {
#if defined(__x86_64__)
  if (kernels == "avx512") return {multiply_adds_avx512, 16};
  if (kernels == "avx2") return {multiply_adds_avx2, 8};
#endif
  if (kernels == "baseline") return {multiply_adds_baseline, 4};
  require(kernels == "plain", "no peak is known for the kernels ", kernels);
  return {multiply_adds_plain, 1};
}

struct Peak {
  double rate;            // floating-point operations a second of all threads together
  double processor_rate;  // of one thread, in a second of processor time
};

// Measured for about `budget` seconds.
inline Peak measure_peak(std::string_view kernels, std::size_t threads, double budget) {
  constexpr std::size_t rounds = 1 << 17, tasks_per_thread = 4;  // about 1 ms in all
  const PeakLoop loop = peak_loop(kernels);
  const volatile float factor = 0.999f, term = 0.001f;  // unknown to the compiler
  const std::size_t tasks = threads * tasks_per_thread;
  std::vector<float> results(tasks);
  std::vector<double> times, processor(tasks);
  bert4rec::ThreadPool pool(threads);
  const auto run = [&] {
    pool.parallel_for(tasks, [&](std::size_t task, std::size_t) {
      processor[task] -= processor_seconds(CLOCK_THREAD_CPUTIME_ID);
      results[task] = loop.run(rounds, factor, term);
      processor[task] += processor_seconds(CLOCK_THREAD_CPUTIME_ID);
    });
  };
  repeat(0.1, times, run);  // until the system has spread the new threads over the processors
  times.clear();
  std::fill(processor.begin(), processor.end(), 0.0);
  repeat(budget, times, run);
  const volatile float kept = std::accumulate(results.begin(), results.end(), 0.0f);
  static_cast<void>(kept);
  const double flops = static_cast<double>(tasks * rounds * chains * loop.width * 2);
  const double used = std::accumulate(processor.begin(), processor.end(), 0.0);
  return {flops / median(times), flops * static_cast<double>(times.size()) / used};
}

// ---- Memory ------------------------------------------------------------------------------------

#ifdef _WIN32

// There is no fork(), so the measurements share one process, whose peak would tell of all of them:
// it is not measured. A program in its own process is not timed either.
inline Json peak_memory() { return {}; }

template <class Body>
Json in_child(Body&& body) {
  return body();
}

inline void run_program(const std::vector<std::string>& words) {
  fail(words.front(), ": is not run on Windows");
}

#else

// The largest resident memory of this process so far, in MiB. (Linux counts it in KiB.)
inline Json peak_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

inline void write_all(int file, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0) ::_exit(1);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

inline std::string read_all(int file) {
  std::string text;
  char part[4096];
  for (ssize_t got = 0; (got = ::read(file, part, sizeof part)) != 0;) {
    require(got > 0 || errno == EINTR, "cannot read from a child process");
    if (got > 0) text.append(part, static_cast<std::size_t>(got));
  }
  return text;
}

// What body() returns, run in a process of its own: its peak memory is then that of body() alone.
// To be called without threads, which a child does not inherit.
template <class Body>
Json in_child(Body&& body) {
  int ends[2];
  require(::pipe(ends) == 0, "cannot make a pipe");
  const pid_t child = ::fork();
  require(child >= 0, "cannot start a child process");
  if (child == 0) {
    ::close(ends[0]);
    Json result;
    try {
      result = body();
    } catch (const std::bad_alloc&) {
      result.set("error", "not enough memory");
    } catch (const std::exception& error) {
      result.set("error", error.what());
    }
    write_all(ends[1], result.text());
    ::_exit(0);
  }
  ::close(ends[1]);
  const std::string text = read_all(ends[0]);
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  require(!WIFSIGNALED(status), "the measurement was ended by signal ", WTERMSIG(status));
  const Json result = Json::parse(text, "measurement");
  const Json* error = result.find("error");
  if (error != nullptr) fail(error->string());
  return result;
}

// Runs a program without output; throws if it fails.
inline void run_program(const std::vector<std::string>& words) {
  const pid_t child = ::fork();
  require(child >= 0, "cannot start a child process");
  if (child == 0) {
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    const int nothing = ::open("/dev/null", O_WRONLY);
    ::dup2(nothing, STDOUT_FILENO);
    ::execv(arguments[0], arguments.data());
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  require(WIFEXITED(status) && WEXITSTATUS(status) == 0, words.front(), " failed");
}

#endif

}  // namespace measure

#endif  // BERT4REC_TOOLS_MEASURE_HPP
