// The emulation of CUDA in emulation.hpp: what correct kernels compute in any order of threads, and
// that each planted fault is seen.

#include "emulation.hpp"

#include <sys/wait.h>

#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include "check.hpp"

namespace {

using emulation::launch;

constexpr std::uint64_t seeds = 12;

// Runs `body` with each seed.
template <class Body>
void for_seeds(Body&& body) {
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    emulation::seed = seed;
    body();
  }
  emulation::seed = 0;
}

// What `kernel` writes, seen with each seed; all bits count, NaN included.
template <class T, class Kernel>
std::set<std::vector<unsigned>> results(std::size_t size, dim3 grid, dim3 block,
                                        std::size_t shared_bytes, const Kernel& kernel) {
  std::set<std::vector<unsigned>> found;
  for_seeds([&] {
    std::vector<T> out(size);
    launch("kernel", grid, block, shared_bytes, [&] { kernel(out.data()); });
    std::vector<unsigned> bits(size * sizeof(T) / 4);
    std::memcpy(bits.data(), out.data(), size * sizeof(T));
    found.insert(bits);
  });
  return found;
}

// ---- Kernels -----------------------------------------------------------------------------------

__global__ void write_indexes(int* counts) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++counts[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

// Sums of halves, of quarters, ...; blockDim.x must be a power of two.
__global__ void __launch_bounds__(1024) sum_in_shared_memory(const float* in, float* out) {
  auto* shared = reinterpret_cast<float*>(emulation::shared_memory());
  const unsigned i = threadIdx.x;
  shared[i] = in[blockIdx.x * blockDim.x + i];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (i < half) shared[i] = __fadd_rn(shared[i], shared[i + half]);
  }
  if (i == 0) out[blockIdx.x] = shared[0];
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(~0u, x, lanes));
  }
  return x;
}

__global__ void sum_by_shuffles(const float* in, float* out) {
  auto* of_warps = reinterpret_cast<float*>(emulation::shared_memory());
  const unsigned i = threadIdx.x, lane = i % 32, warps = blockDim.x / 32;
  const float sum = warp_sum(in[blockIdx.x * blockDim.x + i]);
  if (lane == 0) of_warps[i / 32] = sum;
  __syncthreads();
  if (i >= 32) return;
  const float total = warp_sum(lane < warps ? of_warps[lane] : 0);
  if (lane == 0) out[blockIdx.x] = total;
}

// Threads beyond the end return at once. The others turn their numbers around.
__global__ void reverse(int* out, unsigned size) {
  auto* shared = reinterpret_cast<int*>(emulation::shared_memory());
  const unsigned i = threadIdx.x;
  if (i >= size) return;
  shared[i] = static_cast<int>(i);
  __syncthreads();
  out[i] = shared[size - 1 - i];
}

__global__ void reverse_without_barrier(int* out, unsigned size) {
  auto* shared = reinterpret_cast<int*>(emulation::shared_memory());
  const unsigned i = threadIdx.x;
  shared[i] = static_cast<int>(i);
  out[i] = shared[size - 1 - i];
}

__global__ void sum_by_atomics(const float* in, float* out) { atomicAdd(out, in[threadIdx.x]); }

// ---- What works --------------------------------------------------------------------------------

void check_language() {
  check(alignof(float2) == 8 && alignof(int2) == 8 && alignof(uint2) == 8, "8 bytes");
  check(alignof(float4) == 16 && alignof(int4) == 16 && alignof(uint4) == 16, "16 bytes");
  check(alignof(double2) == 16 && sizeof(float4) == 16 && sizeof(uint3) == 12, "sizes");
  check_equal(make_float4(1, 2, 3, 4).w + make_float2(5, 6).y, 10.0f);
  check_equal(dim3(7).x + dim3(7).y + dim3(7).z, 9u);
}

void check_each_thread_once() {
  const dim3 grid(3, 2, 5), block(7, 3, 4);
  for_seeds([&] {
    std::vector<int> counts(3 * 2 * 5 * 7 * 3 * 4);
    launch("write_indexes", grid, block, 0, [&] { write_indexes(counts.data()); });
    check_equal(std::count(counts.begin(), counts.end(), 1), std::ptrdiff_t(counts.size()));
  });
}

std::vector<float> numbers(std::size_t size) {
  std::vector<float> in(size);
  for (std::size_t i = 0; i < size; ++i) in[i] = static_cast<float>((i * 37) % 101);
  return in;
}

void check_reductions() {
  for (const unsigned size : {32u, 64u, 256u, 1024u}) {
    const std::vector<float> in = numbers(3 * size);
    for_seeds([&] {
      std::vector<float> a(3, NAN), b(3, NAN);
      launch("a", 3, size, size * 4, [&] { sum_in_shared_memory(in.data(), a.data()); });
      launch("b", 3, size, size / 8, [&] { sum_by_shuffles(in.data(), b.data()); });
      for (unsigned block = 0; block < 3; ++block) {
        const float* first = in.data() + block * size;
        const float sum = std::accumulate(first, first + size, 0.0f);  // small integers: exact
        check_equal(a[block], sum);
        check_equal(b[block], sum);
      }
    });
  }
}

void check_early_return() {
  for (const unsigned size : {1u, 5u, 32u, 33u, 64u}) {
    for_seeds([&] {
      std::vector<int> out(size);
      launch("reverse", 1, 64, size * 4, [&] { reverse(out.data(), size); });
      for (unsigned i = 0; i < size; ++i) check_equal(out[i], static_cast<int>(size - 1 - i));
    });
  }
}

// The numbers of blocks and threads in the order in which they pass `before` and `after` a barrier.
std::vector<unsigned> order(unsigned blocks, unsigned threads) {
  std::vector<unsigned> passed;
  launch("order", blocks, threads, 0, [&] {
    passed.push_back(blockIdx.x * 1000 + threadIdx.x);
    __syncthreads();
    passed.push_back(blockIdx.x * 1000 + threadIdx.x);
  });
  return passed;
}

void check_orders() {
  std::vector<unsigned> ascending;
  for (unsigned i = 0; i < 6; ++i) {
    for (unsigned j = 0; j < 40; ++j) ascending.push_back(i / 2 * 1000 + j);
  }
  emulation::seed = 0;
  check(order(3, 40) == ascending, "ascending");
  std::set<std::vector<unsigned>> orders;
  std::set<unsigned> first_blocks, first_threads;
  for_seeds([&] {
    const std::vector<unsigned> found = order(3, 40);
    check(found == order(3, 40), "the same seed, the same order");
    orders.insert(found);
    first_blocks.insert(found[0] / 1000);
    first_threads.insert(found[0] % 1000);
  });
  check_equal(orders.size(), seeds);
  check_equal(first_blocks.size(), 3u);
  check(first_threads.size() > 8, "many threads come first");
}

// Lanes 0 to 4 stay outside, lane 9 ends before.
template <class T>
void check_shuffles_of() {
  const unsigned mask = ~0x1fu;
  const auto source_of = [&](unsigned lane, int kind, unsigned by, unsigned width) {
    const unsigned first = lane / width * width, end = first + width;
    if (kind == 0) return first + by % width;
    if (kind == 1) return lane < first + by ? lane : lane - by;
    if (kind == 2) return lane + by >= end ? lane : lane + by;
    return (lane ^ by) >= end ? lane : lane ^ by;
  };
  launch("shuffles", 1, 32, 0, [&] {
    const unsigned lane = threadIdx.x;
    if (lane < 5 || lane == 9) return;
    for (const int width : {32, 16, 8, 4, 1}) {
      for (unsigned by = 0; by < 32; ++by) {
        const T mine = static_cast<T>(lane * 1000 + by);
        const T found[] = {__shfl_sync(mask, mine, static_cast<int>(by), width),
                           __shfl_up_sync(mask, mine, by, width),
                           __shfl_down_sync(mask, mine, by, width),
                           __shfl_xor_sync(mask, mine, static_cast<int>(by), width)};
        for (int kind = 0; kind < 4; ++kind) {
          const unsigned source = source_of(lane, kind, by, static_cast<unsigned>(width));
          T expected = static_cast<T>(source * 1000 + by);
          if (source < 5 || source == 9) std::memset(&expected, 0xff, sizeof expected);
          check(std::memcmp(&found[kind], &expected, sizeof(T)) == 0, "shuffle");
        }
      }
    }
  });
}

void check_shuffles() {
  for_seeds([] {
    check_shuffles_of<int>();
    check_shuffles_of<float>();
    check_shuffles_of<double>();
  });
}

// Halves of a warp go their own ways, and the second warp is not full.
void check_votes() {
  for_seeds([] {
    launch("votes", 1, 40, 0, [] {
      const unsigned i = threadIdx.x;
      if (i < 32) {
        const unsigned half = i < 16 ? 0xffff : 0xffff0000;
        for (unsigned turn = 0; turn < (i < 16 ? 3 : 5); ++turn) {
          check_equal(__ballot_sync(half, i % 3 == turn % 3), half & (0x49249249u << turn % 3));
        }
        __syncwarp();
      }
      check_equal(__any_sync(~0u, i == 3), i < 32);
      check_equal(__all_sync(~0u, i != 3), i >= 32);
      check_equal(__syncthreads_count(i >= 20), 20);
      check_equal(__syncthreads_or(i == 39), 1);
      check_equal(__syncthreads_or(0), 0);
      check_equal(__syncthreads_and(i != 39), 0);
      check_equal(__syncthreads_and(1), 1);
    });
  });
}

void check_atomics() {
  for_seeds([] {
    unsigned count = 0, highest = 0, lowest = ~0u, exchanged = 100;
    unsigned long long wide = 1ull << 40;
    int sum = 2147483647, top = -5, bottom = 5;
    float real = 0;
    std::set<unsigned> before;
    launch("atomics", 2, 50, 0, [&] {
      const unsigned i = blockIdx.x * 50 + threadIdx.x;
      check(before.insert(atomicAdd(&count, 1)).second, "each gets a number of its own");
      check(before.insert(100 + atomicExch(&exchanged, i)).second, "each number once");
      atomicAdd(&wide, 2), atomicAdd(&sum, 1), atomicAdd(&real, 0.5f);
      atomicMax(&highest, i), atomicMin(&lowest, i + 7);
      atomicMax(&top, static_cast<int>(i) - 90), atomicMin(&bottom, -static_cast<int>(i));
      __threadfence();
    });
    check(count == 100 && wide == (1ull << 40) + 200 && real == 50, "sums");
    check_equal(sum, -2147483647 - 1 + 99);
    check(highest == 99 && lowest == 7 && top == 9 && bottom == -99, "extremes");
  });
}

void check_arithmetic() {
  // With a fused instruction (-march=native, AArch64) a compiler would like to use it.
  const volatile float a = 1 + 0x1p-12f, c = -1 - 0x1p-11f;  // a a = 1 + 2^-11 + 2^-24
  check_equal(__fmaf_rn(a, a, c), 0x1p-24f);
  check_equal(__fmul_rn(a, a) + c, 0.0f);
  check_equal(__fadd_rn(a * a, c), 0.0f);
  check_equal(__fsub_rn(a * a, -c), 0.0f);
  const volatile double b = 1 + 0x1p-27, d = -1 - 0x1p-26;
  check_equal(__fma_rn(b, b, d), 0x1p-54);
  check_equal(__dmul_rn(b, b) + d, 0.0);
  check_equal(__dadd_rn(b * b, d), 0.0);
  check_equal(__dsub_rn(b * b, -d), 0.0);
  check_equal(__fdiv_rn(1, 3), 1.0f / 3);
  check_equal(__frcp_rn(3) + __fsqrt_rn(4), 1.0f / 3 + 2);
  check_equal(__ddiv_rn(1, 3) + __dsqrt_rn(4), 1.0 / 3 + 2);
  check_equal(__float_as_uint(1) + 1, __float_as_uint(1 + 0x1p-23f));
  check_equal(__uint_as_float(0x3f800000) + __int_as_float(__float_as_int(2)), 3.0f);
  check_equal(__longlong_as_double(__double_as_longlong(-0.5)), -0.5);
  check_equal(__popc(0xf0f1), 9);
  check(__clz(1) == 31 && __clz(0) == 32 && __clz(-1) == 0, "leading zeros");
  check(__ffs(0) == 0 && __ffs(8) == 4 && __ffs(-1) == 1, "first one");
  check_equal(__umulhi(0x80000000u, 6), 3u);
  const float number = 7;
  check_equal(__ldg(&number), 7.0f);
}

// ---- What is seen ------------------------------------------------------------------------------

void check_missing_barrier() {
  const unsigned size = 64;
  const auto right = results<int>(size, 1, size, size * 4, [](int* out) { reverse(out, size); });
  const auto wrong =
      results<int>(size, 1, size, size * 4, [](int* out) { reverse_without_barrier(out, size); });
  check_equal(right.size(), 1u);
  check_equal(wrong.size(), seeds);
  for (const auto& bits : wrong) {
    check(std::count(bits.begin(), bits.end(), ~0u) > 0, "poison shows");
  }
}

void check_order_of_sum() {
  std::vector<float> in(100);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = 1 / static_cast<float>(i + 1);
  const auto sums =
      results<float>(1, 1, 100, 0, [&](float* out) { sum_by_atomics(in.data(), out); });
  check(sums.size() > 1, "the sum moves");
}

// What a thread owns.
struct Counted {
  explicit Counted(int* counter) : count(counter) { ++*count; }
  ~Counted() { --*count; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  int* count;
};

// Half of the warp waits for all of it, the other half for the block.
constexpr int planted_line = __LINE__ + 3;
__global__ void planted_divergence() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

void check_deadlock() {
  for_seeds([] {
    check_throws([] { launch("planted", dim3(1, 2), 32, 0, [] { planted_divergence(); }); },
                 {"kernel planted, block (0, ", ", 0), waits for ever: ",
                  "16 from thread (0, 0, 0) on in __syncwarp(0xffffffff) at ",
                  "test_emulation.cpp:" + std::to_string(planted_line) + "; ",
                  "16 from thread (1, 0, 0) on in __syncthreads() at ",
                  "test_emulation.cpp:" + std::to_string(planted_line + 2)});
    check_early_return();  // all stacks are in order
  });
  check_throws(
      [] {
        launch("functions", 1, 2, 0,
               [] { threadIdx.x == 0 ? __any_sync(3, 0) : __all_sync(3, 0); });
      },
      {"1 from thread (0, 0, 0) on in __any_sync(0x3) at ", "(1, 0, 0) on in __all_sync(0x3) at "});
}

// Nobody gets past a barrier that does not open, and all give back what they own.
void check_mismatched_masks() {
  int owned = 0, passed = 0;
  const auto launch_masks = [&] {
    launch("masks", 1, 3, 0, [&] {
      const Counted counted(&owned);
      __syncwarp(threadIdx.x == 0 ? 3 : 7);
      ++passed;
    });
  };
  check_throws(launch_masks, {"waits for ever: 1 from thread (0, 0, 0) on in __syncwarp(0x3) at ",
                              "; 2 from thread (1, 0, 0) on in __syncwarp(0x7) at "});
  check(owned == 0 && passed == 0, "all left, none passed");
}

void check_wrong_calls() {
  check_throws([] { launch("mask", 1, 8, 0, [] { __syncwarp(0x7f); }); },
               {"kernel mask, block (0, 0, 0), thread (7, 0, 0): is not in the mask of its own "
                "__syncwarp(0x7f) at ",
                "test_emulation.cpp:"});
  check_throws(
      [] {
        launch("branches", 1, 2, 0, [] {
          if (threadIdx.x == 0) {
            __syncthreads();
          } else {
            __syncthreads();
          }
        });
      },
      {"thread (1, 0, 0): waits in __syncthreads() at ", ", but thread (0, 0, 0) in "});
  check_throws([] { launch("width", 1, 1, 0, [] { __shfl_sync(1, 0, 0, 5); }); }, {"width of 5"});
  check_throws([] { launch("outer", 1, 1, 0, [] { launch("inner", 1, 1, 0, [] {}); }); },
               {"kernel outer", "launches another kernel"});
}

// What threads own is given back when one of them fails, wherever the others are.
void check_exceptions() {
  for_seeds([] {
    int count = 0, ended = 0;
    check_throws(
        [&] {
          launch("throws", 3, 70, 0, [&] {
            const Counted counted(&count);
            if (threadIdx.x % 7 == 0) __syncwarp(0x11111111u << threadIdx.x % 4);
            if (threadIdx.x == 69) throw std::out_of_range("an error of its own");
            __syncthreads();
            ++ended;
          });
        },
        {"an error of its own"});
    check_equal(count, 0);
    check_equal(ended, 0);
  });
}

void check_launch_limits() {
  const auto nothing = [] {};
  const auto fails = [&](dim3 grid, dim3 block, std::size_t shared, std::string_view what) {
    check_throws([&] { launch("big", grid, block, shared, nothing); }, {"kernel big: ", what});
  };
  fails(1, 0, 0, "a block of (0, 1, 1) threads");
  fails(1, 1025, 0, "a block of (1025, 1, 1) threads");
  fails(1, dim3(32, 33), 0, "a block of (32, 33, 1) threads");
  fails(1, dim3(1, 1, 65), 0, "a block of (1, 1, 65) threads");
  fails(0, 1, 0, "a grid of (0, 1, 1) blocks");
  fails(1u << 31, 1, 0, "a grid of (2147483648, 1, 1) blocks");
  fails(dim3(1, 65536), 1, 0, "a grid of (1, 65536, 1) blocks");
  fails(dim3(1, 1, 65536), 1, 0, "a grid of (1, 1, 65536) blocks");
  const std::size_t without_asking = emulation::shared_limit;
  fails(1, 1, 227 * 1024 + 1, "beyond the limits");
  fails(1, 1, 48 * 1024 + 1, "without cudaFuncSetAttribute");
  const auto ask = [](int bytes) {
    return cudaFuncSetAttribute(write_indexes, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  check_equal(ask(227 * 1024 + 1), cudaErrorInvalidValue);
  check_equal(ask(100 * 1024), cudaSuccess);
  fails(1, 1, 100 * 1024 + 1, "without cudaFuncSetAttribute");
  launch("big", dim3(2, 65535), 1, 0, nothing);
  launch("big", 1, dim3(4, 4, 64), 100 * 1024, nothing);
  launch("big", 1, 1, 48 * 1024, nothing);
  emulation::shared_limit = without_asking;
}

void check_device_memory() {
  float *a = nullptr, *b = nullptr;
  emulation::memory_limit = 1000;
  check_equal(cudaMalloc(&a, 600), cudaSuccess);
  check_equal(cudaMalloc(&b, 401), cudaErrorMemoryAllocation);
  check(b == nullptr, "none");
  check_equal(cudaGetErrorString(cudaGetLastError()), std::string("out of memory"));
  check_equal(cudaGetLastError(), cudaSuccess);
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total) == cudaSuccess && free == 400 && total == 1000, "free");
  check_equal(cudaFree(a), cudaSuccess);
  check_equal(cudaFree(a), cudaErrorInvalidValue);
  check_equal(cudaFree(nullptr), cudaSuccess);
  check_equal(cudaMalloc(&b, 1000), cudaSuccess);
  check_equal(cudaFree(b), cudaSuccess);
  emulation::memory_limit = std::size_t{1} << 40;
  check_equal(cudaGetLastError(), cudaErrorInvalidValue);
}

void check_copies() {
  float *device = nullptr, *host = nullptr;
  cudaMalloc(&device, 40);
  cudaMallocHost(&host, 40);
  check(std::isnan(host[9]), "what is not written is NaN");
  host[9] = 0;
  const auto copy = [&](void* to, const void* from, cudaMemcpyKind kind, std::size_t bytes = 40) {
    return cudaMemcpyAsync(to, from, bytes, kind) == cudaSuccess;
  };
  check(copy(host, device, cudaMemcpyDeviceToHost), "back");
  check(std::isnan(host[0]) && std::isnan(host[9]), "what is not written is NaN");
  host[3] = 5;
  check(copy(device, host, cudaMemcpyHostToDevice), "there");
  check_equal(device[3], 5.0f);
  check(!copy(host, device, cudaMemcpyHostToDevice), "the wrong way");
  check(!copy(device, host, cudaMemcpyDeviceToHost), "the wrong way");
  check(!copy(device, host, cudaMemcpyHostToHost), "not on the host");
  check(!copy(device + 1, host, cudaMemcpyHostToDevice), "too much");
  check(!copy(device, host, cudaMemcpyHostToDevice, 41), "too much");
  check(copy(host, host + 3, cudaMemcpyDefault, 4) && host[0] == 5, "as told by the addresses");
  check(cudaMemset(device, 0, 40) == cudaSuccess && device[9] == 0, "set");
  check_equal(cudaMemsetAsync(device, 0, 41), cudaErrorInvalidValue);
  check_equal(cudaFreeHost(device), cudaErrorInvalidValue);
  cudaFree(device), cudaFreeHost(host), cudaGetLastError();
  check_equal(emulation::device_memory.used() + emulation::pinned_memory.used(), 0u);
}

// Of each block, though the one before has written.
void check_shared_memory_is_poisoned() {
  launch("poison", 5, 1, 16, [] {
    unsigned char* memory = emulation::shared_memory();
    check(std::isnan(*reinterpret_cast<float*>(memory)), "NaN");
    check(std::isnan(*reinterpret_cast<double*>(memory + 8)), "NaN");
    check_equal(*reinterpret_cast<int*>(memory + 4), -1);
    std::memset(memory, 0, 16);
  });
}

void check_runtime() {
  int count = 0, device = 5;
  check(cudaGetDeviceCount(&count) == cudaSuccess && count == 1, "one");
  check(cudaGetDevice(&device) == cudaSuccess && device == 0, "the first");
  check_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
  check_equal(cudaGetLastError(), cudaErrorInvalidDevice);
  cudaDeviceProp properties;
  check_equal(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  check_equal(properties.name, std::string("emulation"));
  check_equal(properties.sharedMemPerBlockOptin, std::size_t{227 * 1024});
  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr, stop = nullptr;
  float milliseconds = 1;
  cudaStreamCreate(&stream), cudaEventCreate(&start), cudaEventCreate(&stop);
  cudaEventRecord(start, stream), cudaEventRecord(stop, stream), cudaEventSynchronize(stop);
  check_equal(cudaEventElapsedTime(&milliseconds, start, stop), cudaSuccess);
  check_equal(milliseconds, 0.0f);
  check_equal(cudaStreamSynchronize(stream), cudaSuccess);
  check_equal(cudaDeviceSynchronize(), cudaSuccess);
  cudaStreamDestroy(stream), cudaEventDestroy(start), cudaEventDestroy(stop);
}

#ifdef EMULATION_ASAN

// What a child says before AddressSanitizer ends it.
template <class Body>
std::string last_words(const Body& body) {
  const TemporaryFolder folder;
  const std::string file = (folder / "stderr").string();
  const pid_t child = ::fork();
  if (child == 0) {
    if (std::freopen(file.c_str(), "w", stderr) != nullptr) body();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  check(!(WIFEXITED(status) && WEXITSTATUS(status) == 0), "found");
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

void check_overruns() {
  const auto says = [](std::string_view what, const auto& body) {
    check(last_words(body).find(what) != std::string::npos, what);
  };
  says("heap-buffer-overflow", [] {  // one int short, and only after a barrier
    launch("overrun", 1, 32, 31 * 4, [] {
      __syncthreads();
      reinterpret_cast<int*>(emulation::shared_memory())[threadIdx.x] = 1;
    });
  });
  says("heap-buffer-overflow", [] {
    char* device = nullptr;
    cudaMalloc(&device, 31);
    launch("overrun", 1, 32, 0, [=] { device[threadIdx.x] = 1; });
  });
#ifndef EMULATION_UCONTEXT  // AddressSanitizer forgets a stack that swapcontext() leaves
  says("stack-buffer-overflow", [] {
    launch("overrun", 1, 32, 0, [] {
      int local[4];
      int* volatile at = local;
      __syncthreads();
      at[threadIdx.x] = 1;
    });
  });
#endif
}

void test_overruns() { test("overruns", check_overruns); }
#else
void test_overruns() { skip("overruns", "needs -fsanitize=address"); }
#endif

}  // namespace

int main() {
  test("language", check_language);
  test("each thread once", check_each_thread_once);
  test("reductions", check_reductions);
  test("early return", check_early_return);
  test("orders", check_orders);
  test("shuffles", check_shuffles);
  test("votes", check_votes);
  test("atomics", check_atomics);
  test("arithmetic", check_arithmetic);
  test("a missing barrier", check_missing_barrier);
  test("the order of a sum", check_order_of_sum);
  test("a deadlock", check_deadlock);
  test("mismatched masks", check_mismatched_masks);
  test("wrong calls", check_wrong_calls);
  test("exceptions", check_exceptions);
  test("limits of a launch", check_launch_limits);
  test("device memory", check_device_memory);
  test("copies", check_copies);
  test("shared memory is poisoned", check_shared_memory_is_poisoned);
  test("the runtime", check_runtime);
  test_overruns();
  return finish();
}
