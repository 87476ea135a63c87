// CUDA on a CPU, thread by thread: with this header the text of a .cu file is ordinary C++20, which
// g++ and clang++ compile, and every step of a kernel can be tested and watched without a GPU.
//
//   #if defined(__CUDACC__)
//   #include <cuda_runtime.h>
//   #else
//   #include "emulation.hpp"
//   #endif
//   ...
//   emulation::launch("kernel", grid, block, shared_bytes, [=] { kernel(arguments...); });
//
// How it works. The blocks of a launch run one after another. Each thread of a block is a fibre, a
// function with a stack of its own, and runs until it ends or waits at a barrier; then another one
// runs. All of this is one thread of the operating system, so a run can be repeated exactly. With
// emulation::seed = 0 the lowest thread that can run does; with every other seed it is drawn, and
// so is the order of the blocks. What a correct kernel writes does not depend on the seed by a bit.
//
// What it shows:
//   - A missing barrier: with some seed a thread reads what is not yet written, and all memory is
//     poisoned with bytes 0xff (NaN as float and double, -1 as int) before a kernel can see it.
//   - A sum or a choice that depends on the order of threads or blocks (atomicAdd of floats).
//   - Barriers that threads of a block or warp do not reach together, a mask that lacks its caller,
//     a launch beyond the limits of a GPU: a Failure that names kernel, block, thread and line.
//   - Accesses beyond device or shared memory, with -fsanitize=address; misaligned ones (a float4
//     at 4 bytes), with -fsanitize=undefined.
// What it cannot show: limits of registers, the reordering of memory accesses that a GPU may do,
// timing; nor a missing atomic or __threadfence, for threads change only at barriers. For the same
// reason a thread that waits for another in a loop waits for ever. Plain a * b + c may be fused by
// one compiler and not by another: the bits are fixed only by __fmaf_rn, __fmul_rn and their like.
//
// In gdb (compile with -g -O0 and leave the seed 0), `next` and `finish` stay with their thread
// over a barrier, though others run meanwhile:
//   break kernels.cu:120 if threadIdx.x == 5 && blockIdx.x == 2
//   print ((float*)emulation::shared_memory())[0]@32
//
// There is no __shared__: a kernel lays out its dynamic shared memory, emulation::shared_memory(),
// itself. Streams do at once what they are asked to. Where several threads of a program launch
// kernels, each launch is over before the next begins.

#ifndef BERT4REC_TESTS_CUDA_EMULATION_HPP
#define BERT4REC_TESTS_CUDA_EMULATION_HPP

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATION_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATION_ASAN
#endif
#endif
#ifdef EMULATION_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#if !(defined(__ELF__) && defined(__x86_64__) && defined(__LP64__))
#define EMULATION_UCONTEXT
#endif
#ifdef EMULATION_UCONTEXT
#include <ucontext.h>
#endif

// ---- The language ------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __forceinline__ inline

// clang-format off
struct uint3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct dim3 {
  constexpr dim3(unsigned size_x = 1, unsigned size_y = 1, unsigned size_z = 1)
      : x(size_x), y(size_y), z(size_z) {}
  unsigned x, y, z;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
// clang-format on

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace emulation {

inline std::uint64_t seed = 0;  // of the order of threads and blocks; 0: ascending

constexpr std::size_t shared_at_most = 227 << 10;
inline std::size_t shared_limit = 48 << 10;  // cudaFuncSetAttribute raises it, for all kernels

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- Fibres ------------------------------------------------------------------------------------
// A switch saves the registers that a function must keep, by the rules of x86-64, and moves the
// stack pointer: some ten nanoseconds. swapcontext() asks the system for its signal mask besides,
// and takes some hundreds; it serves on other processors. (_longjmp between stacks is refused under
// _FORTIFY_SOURCE, and makes AddressSanitizer forget what it knows of a stack.)

#ifndef EMULATION_UCONTEXT
extern "C" void emulation_switch_stack(void** old_stack, void* new_stack);
asm(R"(.pushsection .text
       .weak emulation_switch_stack
       .type emulation_switch_stack, @function
emulation_switch_stack:
       push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
       mov %rsp, (%rdi)
       mov %rsi, %rsp
       pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
       ret
       .size emulation_switch_stack, . - emulation_switch_stack
       .popsection)");
#endif

class Fibre {
 public:
  Fibre() = default;  // what runs already, on the stack that it has

  explicit Fibre(void (*function)()) {  // which the first switch enters, and which never returns
    pages_ = ::mmap(nullptr, guard_bytes() + stack_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages_ == MAP_FAILED || ::mprotect(pages_, guard_bytes(), PROT_NONE) != 0) {
      throw std::bad_alloc();
    }
    unsigned char* stack = static_cast<unsigned char*>(pages_) + guard_bytes();
    // Not all tops may fall together in one set of the cache.
    stack_ = stack, stack_size_ = stack_bytes - count_++ % 16 * 256;
#ifdef EMULATION_UCONTEXT
    ::getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = stack_size_;
    ::makecontext(&context_, function, 0);
#else  // six registers, where to go, and the end of the stack for a debugger
    void** top = reinterpret_cast<void**>(stack + stack_size_) - 8;
    top[6] = reinterpret_cast<void*>(function);
    stack_pointer_ = top;
#endif
  }

  ~Fibre() {
    if (pages_ != nullptr) ::munmap(pages_, guard_bytes() + stack_bytes);
  }
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  void switch_to(Fibre& next) {
    previous_ = this;
#ifdef EMULATION_ASAN
    __sanitizer_start_switch_fiber(&hidden_, next.stack_, next.stack_size_);
#endif
#ifdef EMULATION_UCONTEXT
    ::swapcontext(&context_, &next.context_);
#else
    emulation_switch_stack(&stack_pointer_, next.stack_pointer_);
#endif
    entered();
  }

  void entered() {     // is what the function calls first
#ifdef EMULATION_ASAN  // tells, too, where the stack of launch()'s caller lies
    __sanitizer_finish_switch_fiber(hidden_, &previous_->stack_, &previous_->stack_size_);
#endif
  }

 private:
#ifdef EMULATION_ASAN
  static constexpr std::size_t stack_bytes = 512 << 10;  // it puts a margin around each variable
#else
  static constexpr std::size_t stack_bytes = 64 << 10;
#endif
  // Below the stack, one page that nobody may touch: a stack that overflows ends the program.
  static std::size_t guard_bytes() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

  static inline Fibre* previous_ = nullptr;  // which switched last
  static inline unsigned count_ = 0;
  void* pages_ = nullptr;
#ifdef EMULATION_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  const void* stack_ = nullptr;  // these three for AddressSanitizer
  std::size_t stack_size_ = 0;
  [[maybe_unused]] void* hidden_ = nullptr;
};

// ---- Threads, warps and their barriers ---------------------------------------------------------

struct Place {  // in the kernel's text (std::source_location is missing from Clang 14)
  const char* file;
  int line;
};
#define EMULATION_CALLER emulation::Place caller = {__builtin_FILE(), __builtin_LINE()}

struct Barrier {
  std::string_view name;
  unsigned mask;  // the lanes that must arrive; 0: the whole block
  Place place;
  bool same_call(const Barrier& other) const { return name == other.name && mask == other.mask; }
  bool operator==(const Barrier& other) const {
    return same_call(other) && place.line == other.place.line &&
           std::string_view(place.file) == other.place.file;
  }
};

struct Thread {
  uint3 index;
  unsigned number = 0;      // among those of the block
  Fibre* fibre = nullptr;   // none until it starts
  Barrier barrier = {};     // where it waits, or waited last
  std::uint64_t value = 0;  // what it brought there
  unsigned group = 0;       // the lanes with which it passed a barrier of the warp
};

// Sets of lanes. One that is alive is ready, waits at one of the barriers, or runs.
struct Warp {
  unsigned alive = 0, ready = 0, at_warp_barrier = 0, at_block_barrier = 0;
  std::array<std::uint64_t, 32> values = {};  // brought to the last barrier that opened
};

struct Votes {  // threads of a block, counted, or the set of those of a warp
  unsigned yes = 0, voters = 0;
};

inline std::string describe(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

inline std::string describe(const Barrier& barrier) {
  char mask[16] = "";
  if (barrier.mask != 0) std::snprintf(mask, sizeof mask, "0x%x", barrier.mask);
  return std::string(barrier.name) + "(" + mask + ") at " + barrier.place.file + ":" +
         std::to_string(barrier.place.line);
}

// Runs one block at a time, and one of its threads at a time.
class Gpu {
 public:
  void launch(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
              const std::function<void()>& body) {
    if (body_ != nullptr) fail("launches another kernel");
    kernel_ = kernel;
    check_limits(grid, block, shared_bytes);
    gridDim = grid, blockDim = block;
    threads_.clear();
    for (unsigned z = 0; z < block.z; ++z) {
      for (unsigned y = 0; y < block.y; ++y) {
        for (unsigned x = 0; x < block.x; ++x) {
          threads_.push_back({{x, y, z}, static_cast<unsigned>(threads_.size())});
        }
      }
    }
    const auto order = order_of_blocks(std::uint64_t{grid.x} * grid.y * grid.z);
    shared_.reset(new unsigned char[shared_bytes]);
    body_ = &body;
    for (const std::uint64_t number : order) {
      const std::uint64_t row = number / grid.x;
      blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(row % grid.y),
                  static_cast<unsigned>(row / grid.y)};
      std::memset(shared_.get(), 0xff, shared_bytes);
      run_block();
      if (error_) break;
    }
    body_ = nullptr;
    shared_.reset();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Waits for the lanes in the mask that are alive; returns which came.
  unsigned wait_for_warp(const Barrier& barrier, std::uint64_t value) {
    Thread& self = *running_;
    const unsigned warp = running_->number / 32, bit = 1u << lane();
    self.barrier = barrier, self.value = value;
    if ((barrier.mask & bit) == 0) fail("is not in the mask of its own " + describe(barrier));
    warps_[warp].at_warp_barrier |= bit;
    open_warp_barrier(warp, barrier);
    run_next(false);
    if (error_) throw Stopped();
    return self.group;
  }

  // Waits for all threads of the block that are alive.
  Votes wait_for_block(const Barrier& barrier, bool vote) {
    running_->barrier = barrier;
    if (arriving_.voters == 0) first_arrival_ = running_;
    if (!(barrier == first_arrival_->barrier)) {
      fail("waits in " + describe(barrier) + ", but thread " + describe(first_arrival_->index) +
           " in " + describe(first_arrival_->barrier));
    }
    warps_[running_->number / 32].at_block_barrier |= 1u << lane();
    ++arriving_.voters;
    arriving_.yes += vote;
    open_block_barrier();
    run_next(false);
    if (error_) throw Stopped();
    return arrived_;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Failure(block_name() + ", thread " + describe(running_->index) + ": " + what);
  }

  unsigned char* shared_memory() const { return shared_.get(); }
  unsigned lane() const { return running_->number % 32; }
  std::uint64_t value_of(unsigned lane) const { return warps_[running_->number / 32].values[lane]; }

 private:
  struct Stopped {};  // thrown through the threads that wait when another one fails

  std::string block_name() const {
    return "kernel " + std::string(kernel_) + ", block " + describe(blockIdx);
  }

  void check_limits(dim3 grid, dim3 block, std::size_t shared_bytes) const {
    const auto require = [&](bool condition, const std::string& what) {
      if (!condition) throw Failure("kernel " + std::string(kernel_) + ": " + what);
    };
    const auto size = [](dim3 d) { return describe(uint3{d.x, d.y, d.z}); };
    require(grid.x - 1 < (1u << 31) - 1 && grid.y - 1 < 65535 && grid.z - 1 < 65535,
            "a grid of " + size(grid) + " blocks is beyond the limits");
    require(block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
                block.x * block.y * block.z - 1 < 1024,
            "a block of " + size(block) + " threads is beyond the limits");
    require(shared_bytes <= shared_at_most,
            std::to_string(shared_bytes) + " bytes of shared memory are beyond the limits");
    require(shared_bytes <= shared_limit,
            "more than 48 KiB of shared memory without cudaFuncSetAttribute for " +
                std::to_string(shared_bytes) + " bytes");
  }

  std::vector<std::uint64_t> order_of_blocks(std::uint64_t count) {
    random_ = seed;
    std::vector<std::uint64_t> order(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      order[i] = i;
      if (seed != 0) std::swap(order[i], order[random(i + 1)]);
    }
    return order;
  }

  void run_block() {
    alive_ = static_cast<unsigned>(threads_.size());
    for (unsigned warp = 0; warp * 32 < alive_; ++warp) {
      const unsigned lanes = alive_ - warp * 32;
      warps_[warp] = {};
      warps_[warp].alive = lanes < 32 ? (1u << lanes) - 1 : ~0u;
      make_ready(warp, warps_[warp].alive);
    }
    for (Thread& thread : threads_) thread.fibre = nullptr;
    run_next(false);
  }

  // What each fibre does. Threads that do not wait run on one, one after another.
  static void run_threads();
  void run_thread() {
    try {
      if (!error_) (*body_)();
    } catch (...) {
      stop(std::current_exception());
    }
    const unsigned warp = running_->number / 32;
    warps_[warp].alive &= ~(1u << lane());
    --alive_;
    for (unsigned lanes = warps_[warp].at_warp_barrier; lanes != 0; lanes &= lanes - 1) {
      const unsigned waiting = static_cast<unsigned>(std::countr_zero(lanes));
      open_warp_barrier(warp, threads_[warp * 32 + waiting].barrier);
    }
    open_block_barrier();
  }

  // Goes from a thread that has ended, or waits, to one that is ready; comes back when this one is.
  // From the last thread of a block it goes to launch().
  void run_next(bool ended) {
    Thread* next = pick();
    if (next == nullptr && alive_ > 0 && !error_) {
      stop(std::make_exception_ptr(Failure(deadlock())));
      next = pick();
    }
    Fibre *here = fibre_, *there = &caller_;
    if (next != nullptr) {
      if (next->fibre == nullptr) next->fibre = ended ? here : idle_fibre();
      there = next->fibre;
      running_ = next;
      threadIdx = next->index;
    }
    if (there == here) return;
    if (ended) idle_.push_back(here);
    fibre_ = there;
    here->switch_to(*there);
  }

  Fibre* idle_fibre() noexcept {  // a thread half started could not be taken back
    if (idle_.empty()) idle_.push_back(fibres_.emplace_back(new Fibre(run_threads)).get());
    Fibre* fibre = idle_.back();
    idle_.pop_back();
    return fibre;
  }

  Thread* pick() {
    if (ready_warps_ == 0) return nullptr;
    const unsigned at = choose(ready_warps_);
    Warp& warp = warps_[at];
    const unsigned lane = choose(warp.ready);
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) ready_warps_ &= ~(1u << at);
    return &threads_[at * 32 + lane];
  }

  // The lowest element, or any.
  unsigned choose(unsigned set) {
    if (seed != 0) {
      const auto size = static_cast<unsigned>(std::popcount(set));
      for (std::uint64_t skipped = random(size); skipped > 0; --skipped) set &= set - 1;
    }
    return static_cast<unsigned>(std::countr_zero(set));
  }

  // SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), brought below a limit that is below 2^32.
  std::uint64_t random(std::uint64_t limit) {
    std::uint64_t x = random_ += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return ((x ^ (x >> 31)) >> 32) * limit >> 32;
  }

  void make_ready(unsigned warp, unsigned lanes) {
    warps_[warp].ready |= lanes;
    if (lanes != 0) ready_warps_ |= 1u << warp;
  }

  // Opens it if all lanes alive that it names wait in the same function with the same mask. (Those
  // that wait elsewhere may come later.)
  void open_warp_barrier(unsigned at, const Barrier& barrier) {
    Warp& warp = warps_[at];
    const unsigned group = barrier.mask & warp.alive;
    if ((warp.at_warp_barrier & group) != group) return;
    const auto for_group = [&](auto&& body) {
      for (unsigned rest = group; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<unsigned>(std::countr_zero(rest));
        body(threads_[at * 32 + lane], warp.values[lane]);
      }
    };
    bool same = true;
    for_group([&](const Thread& thread, auto&) { same &= thread.barrier.same_call(barrier); });
    if (!same) return;
    for_group([&](Thread& thread, std::uint64_t& value) {
      thread.group = group;
      value = thread.value;
    });
    warp.at_warp_barrier &= ~group;
    make_ready(at, group);
  }

  void open_block_barrier() {
    if (arriving_.voters == 0 || arriving_.voters < alive_) return;
    arrived_ = std::exchange(arriving_, {});
    for (unsigned warp = 0; warp * 32 < threads_.size(); ++warp) {
      make_ready(warp, std::exchange(warps_[warp].at_block_barrier, 0));
    }
  }

  // Remembers the first failure. What waits then leaves its stack in order: those at a barrier of
  // their warp are woken, and that of the block opens when all others have ended.
  void stop(std::exception_ptr reason) {
    if (error_) return;
    error_ = reason;
    for (unsigned i = 0; i * 32 < threads_.size(); ++i) {
      make_ready(i, std::exchange(warps_[i].at_warp_barrier, 0));
    }
  }

  // Who waits where, when nobody is ready.
  std::string deadlock() const {
    std::vector<std::pair<const Thread*, int>> groups;
    for (unsigned i = 0; i < threads_.size(); ++i) {
      if ((warps_[i / 32].alive >> i % 32 & 1) == 0) continue;
      std::size_t at = 0;
      while (at < groups.size() && !(groups[at].first->barrier == threads_[i].barrier)) ++at;
      if (at == groups.size()) groups.emplace_back(&threads_[i], 0);
      ++groups[at].second;
    }
    std::string text = block_name() + ", waits for ever";
    const char* separator = ": ";
    for (const auto& [first, count] : groups) {
      text += std::exchange(separator, "; ") + std::to_string(count) + " from thread " +
              describe(first->index) + " on in " + describe(first->barrier);
    }
    return text;
  }

  const char* kernel_ = "";
  const std::function<void()>* body_ = nullptr;  // the kernel; null between launches
  std::unique_ptr<unsigned char[]> shared_;
  std::vector<Thread> threads_;
  std::array<Warp, 32> warps_;
  unsigned ready_warps_ = 0;  // those with a lane that is ready
  unsigned alive_ = 0;        // threads
  Votes arriving_, arrived_;  // at the barrier of the block that is closed, and at the last one
  const Thread* first_arrival_ = nullptr;
  Thread* running_ = nullptr;
  std::exception_ptr error_;
  std::uint64_t random_ = 0;

  Fibre caller_;  // of launch()
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<Fibre*> idle_;
  Fibre* fibre_ = &caller_;  // which runs
};

inline Gpu gpu;
inline std::recursive_mutex launching;  // so that a kernel that launches one is told so

inline void Gpu::run_threads() {
  for (gpu.fibre_->entered();; gpu.run_next(true)) gpu.run_thread();
}

// Runs `body` once for each thread of each block.
inline void launch(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                   const std::function<void()>& body) {
  const std::lock_guard lock(launching);
  gpu.launch(kernel, grid, block, shared_bytes, body);
}

// The block's dynamic shared memory, aligned to 16 bytes.
inline unsigned char* shared_memory() { return gpu.shared_memory(); }
static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 16);

// The first lane of the caller's segment of `width` lanes.
inline unsigned segment(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    gpu.fail("shuffles over a width of " + std::to_string(width));
  }
  return gpu.lane() & ~(static_cast<unsigned>(width) - 1);
}

// What the lane `source` brought to the barrier, or poison if it did not come.
template <class T>
T shuffle(const Barrier& barrier, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const unsigned group = gpu.wait_for_warp(barrier, bits);
  bits = (group >> source & 1) != 0 ? gpu.value_of(source) : ~std::uint64_t{0};
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Votes ballot(const Barrier& barrier, bool vote) {
  Votes votes = {0, gpu.wait_for_warp(barrier, vote)};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((votes.voters >> lane & 1) != 0 && gpu.value_of(lane) != 0) votes.yes |= 1u << lane;
  }
  return votes;
}

}  // namespace emulation

inline void __syncthreads(EMULATION_CALLER) {
  emulation::gpu.wait_for_block({"__syncthreads", 0, caller}, false);
}

inline int __syncthreads_count(int vote, EMULATION_CALLER) {
  const auto votes = emulation::gpu.wait_for_block({"__syncthreads_count", 0, caller}, vote != 0);
  return static_cast<int>(votes.yes);
}

inline int __syncthreads_or(int vote, EMULATION_CALLER) {
  return emulation::gpu.wait_for_block({"__syncthreads_or", 0, caller}, vote != 0).yes != 0;
}

inline int __syncthreads_and(int vote, EMULATION_CALLER) {
  const auto votes = emulation::gpu.wait_for_block({"__syncthreads_and", 0, caller}, vote != 0);
  return votes.yes == votes.voters;
}

inline void __syncwarp(unsigned mask = ~0u, EMULATION_CALLER) {
  emulation::gpu.wait_for_warp({"__syncwarp", mask, caller}, 0);
}

inline unsigned __ballot_sync(unsigned mask, int vote, EMULATION_CALLER) {
  return emulation::ballot({"__ballot_sync", mask, caller}, vote != 0).yes;
}

inline int __any_sync(unsigned mask, int vote, EMULATION_CALLER) {
  return emulation::ballot({"__any_sync", mask, caller}, vote != 0).yes != 0;
}

inline int __all_sync(unsigned mask, int vote, EMULATION_CALLER) {
  const auto votes = emulation::ballot({"__all_sync", mask, caller}, vote != 0);
  return votes.yes == votes.voters;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_CALLER) {
  const unsigned first = emulation::segment(width);
  return emulation::shuffle({"__shfl_sync", mask, caller}, value,
                            first + static_cast<unsigned>(source & (width - 1)));
}

// In the other three, a lane whose source lies outside its segment gets its own value back.
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_CALLER) {
  const unsigned lane = emulation::gpu.lane(), first = emulation::segment(width);
  return emulation::shuffle({"__shfl_up_sync", mask, caller}, value,
                            lane - first < delta ? lane : lane - delta);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_CALLER) {
  const unsigned lane = emulation::gpu.lane(), first = emulation::segment(width);
  return emulation::shuffle(
      {"__shfl_down_sync", mask, caller}, value,
      delta < first + static_cast<unsigned>(width) - lane ? lane + delta : lane);
}

template <class T>  // here the segments before count as inside
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_CALLER) {
  const unsigned lane = emulation::gpu.lane(), first = emulation::segment(width);
  const unsigned source = lane ^ static_cast<unsigned>(lanes);
  return emulation::shuffle({"__shfl_xor_sync", mask, caller}, value,
                            source < first + static_cast<unsigned>(width) ? source : lane);
}

// ---- Arithmetic --------------------------------------------------------------------------------
// The host's compiler may fuse a product with the sum that it goes into, also when these functions
// are inlined. So products, and what is added, are hidden from it (compare chapter 3 of
// bert4rec.hpp).

namespace emulation {

template <class Real>
Real hidden(Real x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  asm("" : "+m"(x));
#endif
  return x;
}

}  // namespace emulation

// clang-format off
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return emulation::hidden(a) + emulation::hidden(b); }
inline float __fsub_rn(float a, float b) { return emulation::hidden(a) - emulation::hidden(b); }
inline float __fmul_rn(float a, float b) { return emulation::hidden(a * b); }
inline float __fdiv_rn(float a, float b) { return emulation::hidden(a / b); }
inline float __fsqrt_rn(float a) { return emulation::hidden(std::sqrt(a)); }
inline float __frcp_rn(float a) { return emulation::hidden(1 / a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return emulation::hidden(a) + emulation::hidden(b); }
inline double __dsub_rn(double a, double b) { return emulation::hidden(a) - emulation::hidden(b); }
inline double __dmul_rn(double a, double b) { return emulation::hidden(a * b); }
inline double __ddiv_rn(double a, double b) { return emulation::hidden(a / b); }
inline double __dsqrt_rn(double a) { return emulation::hidden(std::sqrt(a)); }

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(std::uint64_t{a} * b >> 32);
}

// ---- Memory ------------------------------------------------------------------------------------

inline void __threadfence() {}
template <class T> T __ldg(const T* address) { return *address; }

// Threads change only at barriers, so that nothing comes between the two halves of these.
inline int atomicExch(int* p, int x) { return std::exchange(*p, x); }
inline unsigned atomicExch(unsigned* p, unsigned x) { return std::exchange(*p, x); }
inline float atomicExch(float* p, float x) { return std::exchange(*p, x); }
inline unsigned atomicAdd(unsigned* p, unsigned x) { return std::exchange(*p, *p + x); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) {
  return std::exchange(*p, *p + x);
}
inline float atomicAdd(float* p, float x) { return std::exchange(*p, __fadd_rn(*p, x)); }
inline int atomicAdd(int* p, int x) {  // wraps around
  return std::exchange(*p, static_cast<int>(static_cast<unsigned>(*p) + static_cast<unsigned>(x)));
}
inline int atomicMax(int* p, int x) { return std::exchange(*p, std::max(*p, x)); }
inline int atomicMin(int* p, int x) { return std::exchange(*p, std::min(*p, x)); }
inline unsigned atomicMax(unsigned* p, unsigned x) { return std::exchange(*p, std::max(*p, x)); }
inline unsigned atomicMin(unsigned* p, unsigned x) { return std::exchange(*p, std::min(*p, x)); }

// ---- The runtime -------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  std::size_t totalGlobalMem, sharedMemPerBlockOptin;
};
using cudaStream_t = struct CUstream_st { }*;
using cudaEvent_t = struct CUevent_st { }*;
// clang-format on

namespace emulation {

inline std::size_t memory_limit = std::size_t{1} << 40;  // of the device, in bytes: none
inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t result(bool good, cudaError_t error = cudaErrorInvalidValue) {
  if (!good) last_error = error;
  return good ? cudaSuccess : error;
}

// Memory from the heap, exactly of the size asked for, and poisoned.
class Memory {
 public:
  template <class T>
  bool take(T** start, std::size_t size, std::size_t limit) {
    *start = nullptr;
    if (size == 0) return true;
    const std::lock_guard lock(mutex_);
    if (size > limit || used_ > limit - size) return false;
    void* memory = ::operator new(size, alignment, std::nothrow);
    if (memory == nullptr) return false;
    *start = static_cast<T*>(std::memset(memory, 0xff, size));
    sizes_[address(memory)] = size;
    used_ += size;
    return true;
  }
  bool give_back(void* start) {
    if (start == nullptr) return true;
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(address(start));
    if (found == sizes_.end()) return false;
    used_ -= found->second;
    sizes_.erase(found);
    ::operator delete(start, alignment);
    return true;
  }
  std::size_t used() const {
    const std::lock_guard lock(mutex_);
    return used_;
  }
  std::size_t room(const void* at) const {  // bytes to the end of what was taken; 0: elsewhere
    const std::lock_guard lock(mutex_);
    const auto next = sizes_.upper_bound(address(at));
    if (next == sizes_.begin()) return 0;
    const auto& [start, size] = *std::prev(next);
    return start + size > address(at) ? start + size - address(at) : 0;
  }

 private:
  static constexpr std::align_val_t alignment{256};
  static std::uintptr_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }
  mutable std::mutex mutex_;
  std::map<std::uintptr_t, std::size_t> sizes_;
  std::size_t used_ = 0;
};

inline Memory device_memory, pinned_memory;

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
  }
  return "unrecognized error code";
}

template <class T>
cudaError_t cudaMalloc(T** start, std::size_t size) {
  return emulation::result(emulation::device_memory.take(start, size, emulation::memory_limit),
                           cudaErrorMemoryAllocation);
}

template <class T>
cudaError_t cudaMallocHost(T** start, std::size_t size) {
  return emulation::result(emulation::pinned_memory.take(start, size, ~std::size_t{0}),
                           cudaErrorMemoryAllocation);
}

inline cudaError_t cudaFree(void* start) {
  return emulation::result(emulation::device_memory.give_back(start));
}

inline cudaError_t cudaFreeHost(void* start) {
  return emulation::result(emulation::pinned_memory.give_back(start));
}

inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = emulation::memory_limit;
  *free = *total - std::min(*total, emulation::device_memory.used());
  return cudaSuccess;
}

// Both sides must lie where `kind` says, wholly.
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const auto wrong = [&](const void* at, bool on_device) {
    const std::size_t room = emulation::device_memory.room(at);
    return kind != cudaMemcpyDefault && (on_device ? room < bytes : room > 0);
  };
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (bytes == 0) return cudaSuccess;
  if (wrong(to, to_device) || wrong(from, from_device)) return emulation::result(false);
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes,
                                   cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return cudaMemcpy(to, from, bytes, kind);
}

inline cudaError_t cudaMemset(void* start, int value, std::size_t bytes) {
  if (emulation::device_memory.room(start) < bytes) return emulation::result(false);
  if (bytes > 0) std::memset(start, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* start, int value, std::size_t bytes,
                                   cudaStream_t = nullptr) {
  return cudaMemset(start, value, bytes);
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int value) {
  const auto bytes = static_cast<std::size_t>(value);
  if (value < 0 || bytes > emulation::shared_at_most) return emulation::result(false);
  const std::lock_guard lock(emulation::launching);
  emulation::shared_limit = std::max(emulation::shared_limit, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return emulation::result(device == 0, cudaErrorInvalidDevice);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {"emulation", 8, 0, 4, emulation::memory_limit, emulation::shared_at_most};
  return cudaSetDevice(device);
}

inline cudaError_t cudaStreamCreate(cudaStream_t* s) { return *s = new CUstream_st, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = new CUevent_st, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 0, cudaSuccess;
}

#endif  // BERT4REC_TESTS_CUDA_EMULATION_HPP
