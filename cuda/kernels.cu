// The kernels of the GPU and the functions of kernels.cuh that start them. nvcc compiles this file;
// any C++ compiler does, too, with tests/cuda/emulation.hpp in place of CUDA: then each thread of a
// kernel can be stepped through in a debugger. README.md goes through its kernels as a course.
//
// Compile without contraction (nvcc: -fmad=false): this file says itself where a product and a sum
// are one instruction, as the header does, and gives the same bits in float32.

#include "kernels.cuh"

#if defined(__CUDACC__)
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#define BERT4REC_UNROLL _Pragma("unroll")
#define BERT4REC_UNROLL_16 _Pragma("unroll 16")
#else
#include "emulation.hpp"
#define BERT4REC_UNROLL
#define BERT4REC_UNROLL_16
#endif

#include <cmath>
#include <cstring>

namespace bert4rec::cuda {

// ---- A device and its memory -------------------------------------------------------------------

#if defined(__CUDACC__)
// cuBLAS, loaded when half precision is first asked for: it is so large that a program linked with
// it starts a quarter of a second later.
struct Blas {
  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasGetVersion_v2) version;
  decltype(&cublasSetStream_v2) set_stream;
  decltype(&cublasSetPointerMode_v2) set_pointer_mode;
  cublasStatus_t (*multiply)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n,
                             int k, const void* alpha, const void* a, cudaDataType, int a_row,
                             const void* b, cudaDataType, int b_row, const void* beta, void* c,
                             cudaDataType, int c_row, cublasComputeType_t, cublasGemmAlgo_t);

  static const Blas& instance() {
    static const Blas blas;
    return blas;
  }

 private:
  Blas() {
    const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      fail_on_device("cuBLAS, which half precision needs, cannot be loaded: " +
                     std::string(dlerror()));
    }
    find(library, "cublasCreate_v2", create);
    find(library, "cublasDestroy_v2", destroy);
    find(library, "cublasGetVersion_v2", version);
    find(library, "cublasSetStream_v2", set_stream);
    find(library, "cublasSetPointerMode_v2", set_pointer_mode);
    find(library, "cublasGemmEx", multiply);
  }

  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) fail_on_device(std::string("cuBLAS has no ") + name);
  }
};
#endif

struct Stream {
  Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
#if defined(__CUDACC__)
    if (blas != nullptr) static_cast<void>(Blas::instance().destroy(blas));
#endif
    for (std::uint16_t* operand : operands) release(operand);
    release(scales);
    if (handle != nullptr) static_cast<void>(cudaStreamDestroy(handle));
  }

  cudaStream_t handle = nullptr;
#if defined(__CUDACC__)
  cublasHandle_t blas = nullptr;  // for Products::half
#endif
  // Of a product in half precision: both operands, and their scales.
  std::uint16_t* operands[2] = {nullptr, nullptr};
  std::size_t sizes[2] = {0, 0};
  float* scales = nullptr;  // [6] the largest of A and of B (bits), alpha, beta; 0 and 1
};

namespace {

// Every call of CUDA stands in check().
void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // so that the next call does not report it again
  fail_on_device(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

// Starts kernel(args...) with `shared` bytes of shared memory.
template <class... Parameters, class... Arguments>
void launch(Device& device, const char* name, void (*kernel)(Parameters...), dim3 grid,
            unsigned block, std::size_t shared, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  constexpr std::size_t usual = 48 << 10;
  if (shared > usual) {  // always the same, since another thread may start the kernel, too
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(device.shared_memory())),
          name);
  }
#if defined(__CUDACC__)
  kernel<<<grid, block, shared, device.stream().handle>>>(arguments...);
#else
  static_cast<void>(device);
  emulation::launch(name, grid, dim3(block), shared, [=] { kernel(arguments...); });
#endif
  check(cudaGetLastError(), name);
}

unsigned blocks_for(std::size_t work, std::size_t a_block) {
  return static_cast<unsigned>((work + a_block - 1) / a_block);
}

}  // namespace

bool without_bfloat = false;
std::size_t most_shared_memory = std::size_t{1} << 30;

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

Device::Device(int index, Products products)
    : index_(index), products_(products), stream_(std::make_unique<Stream>()) {
  use();
  check(cudaStreamCreate(&stream_->handle), "a stream");
  cudaDeviceProp found{};
  check(cudaGetDeviceProperties(&found, index), "properties of the device");
  name_ = found.name;
  processors_ = static_cast<unsigned>(found.multiProcessorCount);
  shared_memory_ = found.sharedMemPerBlockOptin;
  has_bfloat_ = found.major >= 8 && !without_bfloat;
  if (products == Products::exact) return;
  arithmetic_ = std::string(has_bfloat_ ? "BF16" : "FP16") + " products on " + name_;
  constexpr float scales[6] = {0, 0, 0, 0, 0, 1};
  stream_->scales = static_cast<float*>(allocate(sizeof(scales), "scales"));
  copy_in(*this, stream_->scales, scales, sizeof(scales));
#if defined(__CUDACC__)
  const Blas& blas = Blas::instance();
  int version = 0;
  if (blas.create(&stream_->blas) != CUBLAS_STATUS_SUCCESS ||
      blas.version(stream_->blas, &version) != CUBLAS_STATUS_SUCCESS ||
      blas.set_stream(stream_->blas, stream_->handle) != CUBLAS_STATUS_SUCCESS ||
      blas.set_pointer_mode(stream_->blas, CUBLAS_POINTER_MODE_DEVICE) != CUBLAS_STATUS_SUCCESS) {
    fail_on_device("cuBLAS, which half precision needs, cannot be started");
  }
  arithmetic_ += " by cuBLAS " + std::to_string(version);
#endif
}
Device::~Device() = default;
std::size_t Device::shared_memory() const {
  return shared_memory_ < most_shared_memory ? shared_memory_ : most_shared_memory;
}
std::size_t Device::all_memory() const {
  std::size_t left = 0, all = 0;
  check(cudaMemGetInfo(&left, &all), "memory");
  return all;
}
void Device::use() const { check(cudaSetDevice(index_), "the device"); }
std::size_t Device::free_memory() const {
  std::size_t left = 0, all = 0;
  check(cudaMemGetInfo(&left, &all), "free memory");
  return left;
}
void* Device::cuda_stream() const { return stream_->handle; }
void Device::wait() { check(cudaStreamSynchronize(stream_->handle), "kernels"); }

void* allocate(std::size_t bytes, const char* what) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    fail_on_device("the GPU has no " + std::to_string((bytes + (1 << 20) - 1) >> 20) +
                   " MiB left for " + what +
                   "; a smaller --batch-size, --max-length or model needs less");
  }
  check(error, what);
  return memory;
}
void release(void* memory) {
  if (memory != nullptr) static_cast<void>(cudaFree(memory));
}

void copy_in(Device& device, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, device.stream().handle),
        "a copy to the device");
}
void copy_out(Device& device, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, device.stream().handle),
        "a copy from the device");
}
void copy(Device& device, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device.stream().handle),
        "a copy on the device");
}
void fill_zeros(Device& device, void* to, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(to, 0, bytes, device.stream().handle), "zeros");
}

namespace {

// ---- What kernels stand on ---------------------------------------------------------------------

// The shared memory of the block.
template <class Element>
__device__ Element* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<Element*>(memory);
#else
  return reinterpret_cast<Element*>(emulation::shared_memory());
#endif
}

__device__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ float minus_infinity() { return __uint_as_float(0xff800000); }

// A sum over a row has 16 partial sums, lane j those of elements j, j + 16, ... (chapter 9): half a
// warp works on a row, and a block on so many rows.
constexpr int lanes_wide = 16;  // as shuffles take it
constexpr unsigned lanes = lanes_wide, row_threads = 128, rows_a_block = row_threads / lanes;

__device__ std::size_t row_at_hand() {
  return std::size_t{blockIdx.x} * rows_a_block + threadIdx.x / lanes;
}
__device__ unsigned lane_at_hand() { return threadIdx.x % lanes; }
__device__ unsigned half_warp() { return 0xffffu << (threadIdx.x % 32 / lanes * lanes); }

// The upper half of the lanes is added to the lower until one is left, which all receive.
__device__ float sum_lanes(float sum) {
  for (unsigned half = lanes / 2; half > 0; half /= 2) {
    sum += __shfl_down_sync(half_warp(), sum, half, lanes_wide);
  }
  return __shfl_sync(half_warp(), sum, 0, lanes_wide);
}
__device__ unsigned sum_lanes(unsigned sum) {
  for (int half = lanes_wide / 2; half > 0; half /= 2) {
    sum += __shfl_xor_sync(half_warp(), sum, half, lanes_wide);
  }
  return sum;
}
__device__ float largest_of_lanes(float value) {
  for (int half = lanes_wide / 2; half > 0; half /= 2) {
    const float other = __shfl_xor_sync(half_warp(), value, half, lanes_wide);
    value = value < other ? other : value;
  }
  return value;
}

// sum = add(sum, fetch(i)) for i = 0 ... count - 1, in this order. Fetched one by one, each would
// wait for memory; so 64 (at the end 16) are fetched before they are added.
template <unsigned batch, class Sum, class Fetch, class Add>
__device__ void add_batch(std::size_t first, std::size_t left, Sum& sum, Fetch& fetch, Add& add) {
  decltype(fetch(first)) values[batch] = {};
  const bool whole = left >= batch;
  BERT4REC_UNROLL
  for (unsigned i = 0; i < batch; ++i) {
    if (whole || i < left) values[i] = fetch(first + i);
  }
  BERT4REC_UNROLL
  for (unsigned i = 0; i < batch; ++i) {
    if (whole || i < left) sum = add(sum, values[i]);
  }
}
template <class Sum, class Fetch, class Add>
__device__ Sum add_in_order(std::size_t count, Sum sum, Fetch&& fetch, Add&& add) {
  constexpr unsigned many = 64, few = 16;
  std::size_t first = 0;
  for (const std::size_t end = count / many * many; first < end; first += many) {
    add_batch<many>(first, many, sum, fetch, add);
  }
  for (; first < count; first += few) add_batch<few>(first, count - first, sum, fetch, add);
  return sum;
}
template <class Sum, class Fetch>
__device__ Sum add_in_order(std::size_t count, Sum sum, Fetch&& fetch) {
  return add_in_order(count, sum, fetch, [](Sum all, Sum value) { return all + value; });
}

// Where thread t stands if the threads form rows of `across`, a multiple of 8. A warp has 8 x 4 of
// them: where each needs the numbers of its row and of its column, it reads 8 + 4 different ones.
struct Standing {
  unsigned x, y;
};
__device__ Standing standing(unsigned t, unsigned across) {
  const unsigned warp = t / 32, warps_across = across / 8;
  return {warp % warps_across * 8 + t % 8, warp / warps_across * 4 + t % 32 / 8};
}

constexpr unsigned flat_threads = 256;  // of kernels that take numbers one by one

__device__ std::size_t place_at_hand() {
  return std::size_t{blockIdx.x} * flat_threads + threadIdx.x;
}

// ---- Functions (chapters 3 and 9) --------------------------------------------------------------

template <std::size_t n>
__device__ float polynomial(float x, const float (&coefficients)[n]) {
  float sum = coefficients[0];
  for (std::size_t i = 1; i < n; ++i) sum = fused(sum, x, coefficients[i]);
  return sum;
}

// For -87.33 < x < 88.73.
__device__ float exp_in_range(float x) {
  constexpr float one_over_log2 = 1.44269502f, log2_high = 0.693145752f, log2_low = 1.42860677e-06f;
  constexpr float round_to_integer = 12582912.0f;
  constexpr float coefficients[] = {0.00137894717f, 0.00836867001f, 0.0416688882f, 0.166665211f,
                                    0.499999911f,   1.0f,           1.0f};
  const float shifted = fused(x, one_over_log2, round_to_integer), n = shifted - round_to_integer;
  const float r = fused(n, -log2_low, fused(n, -log2_high, x));
  const unsigned bits = __float_as_uint(polynomial(r, coefficients));
  return __uint_as_float(bits + (__float_as_uint(shifted) << 23));  // times 2^n
}

__device__ float exp_of(float x) {
  if (x < -87.3365402f) return 0;
  return x <= 88.7228317f ? exp_in_range(x) : x + __uint_as_float(0x7f800000);
}

__device__ float erf_of(float x) {
  constexpr float small[] = {-0.000625433109f, 0.00504296133f, -0.0267996024f,
                             0.112827145f,     -0.376125813f,  0.128379166f};
  constexpr float large[] = {0.000199899747f, -0.00308199134f, 0.0223810375f,   -0.104250237f,
                             -0.636820614f,   -1.12788939f,    -0.000144213613f};
  const float size = fabsf(x);
  if (!(size > 0.875f)) return fused(x, polynomial(x * x, small), x);
  const float rest = exp_in_range(polynomial(size < 3.925f ? size : 3.925f, large));
  return copysignf(1 - rest, x);
}

__device__ double natural_log(double x) {
  if (!(x < __longlong_as_double(0x7ff0000000000000))) return x;
  constexpr unsigned long long root_of_half = 0x3fe6a09e667f3bcd;
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(x));
  const long long n = static_cast<long long>(bits - root_of_half) >> 52;
  const double m = __longlong_as_double(
      static_cast<long long>(bits - (static_cast<unsigned long long>(n) << 52)));
  const double s = (m - 1) / (m + 1), square = s * s;
  double series = 0;  // s^2 / 3 + s^4 / 5 + ...
  for (int k = 23; k >= 3; k -= 2) series = square * (1.0 / k + series);
  constexpr double log2_high = 0x1.62e42fee00000p-1, log2_low = 0x1.a39ef35793c76p-33;
  const auto exponent = static_cast<double>(n);
  const double low = exponent * log2_low + 2 * s * series;
  return exponent * log2_high + (2 * s + low);
}

// 64 random bits of Threefry-2x32-20.
__device__ unsigned long long random_bits(unsigned key_low, unsigned key_high, unsigned x0,
                                          unsigned x1) {
  constexpr unsigned rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const unsigned keys[3] = {key_low, key_high, 0x1BD11BDAu ^ key_low ^ key_high};
  x0 += keys[0];
  x1 += keys[1];
  BERT4REC_UNROLL
  for (unsigned block = 1; block <= 5; ++block) {
    BERT4REC_UNROLL
    for (unsigned round = 0; round < 4; ++round) {
      const unsigned turn = rotations[(block - 1) % 2 * 4 + round];
      x0 += x1;
      x1 = (x1 << turn) | (x1 >> (32 - turn));
      x1 ^= x0;
    }
    x0 += keys[block % 3];
    x1 += keys[(block + 1) % 3] + block;
  }
  return (static_cast<unsigned long long>(x1) << 32) | x0;
}

__device__ float dropout_scale(const Dropout& dropout) {
  return static_cast<float>(65536.0 / (65536.0 - dropout.threshold));
}

constexpr unsigned piece_size = 64;

// body(i, kept) for the elements `first` + lane, + 16, + 32 and + 48 of a row that are below n;
// `kept` says whether dropout leaves element i of row `row`. One draw decides these four.
template <class Body>
__device__ void for_piece(const Dropout& dropout, std::size_t row, unsigned first, unsigned n,
                          Body&& body) {
  const unsigned lane = lane_at_hand();
  const unsigned long long bits =
      dropout.threshold == 0 ? 0
                             : random_bits(dropout.key_low, dropout.key_high,
                                           first / 64 * 16 + lane, static_cast<unsigned>(row));
  BERT4REC_UNROLL
  for (unsigned quarter = 0; quarter < 4; ++quarter) {
    const unsigned i = first + 16 * quarter + lane;
    if (i < n) body(i, (bits >> (16 * quarter) & 0xffff) >= dropout.threshold);
  }
}

// The same for a whole row, piece by piece.
template <class Body>
__device__ void for_dropout(const Dropout& dropout, std::size_t row, unsigned n, Body&& body) {
  for (unsigned first = 0; first < n; first += piece_size) for_piece(dropout, row, first, n, body);
}

// Where elements do not meet, half a warp has not a row but a piece of one.
struct Piece {
  std::size_t row;
  unsigned first;
};
__device__ Piece piece_at_hand(unsigned n) {
  const unsigned pieces = (n + piece_size - 1) / piece_size;
  const auto at = static_cast<unsigned>(row_at_hand());
  return {at / pieces, at % pieces * piece_size};
}

// ---- Products ----------------------------------------------------------------------------------
// C[m,n] = start + A[m,k] B[k,n], by tiles of C of [width,width]. The side x side threads of a
// block own T x T elements each, in registers, and add up in ascending k. They walk along k in
// steps of `depth`, for which they bring a part of A and of B to shared memory, each number once.

struct Matrix {  // A(i,k) = data[i row + k col]
  const float* data;
  std::size_t row, col;
};

// Part after part of an operand: A(first + i, l0 + l) for i < width, l < depth. What is beyond its
// end may be anything: no sum that is stored reads it. The numbers of the next part are fetched
// into registers while the block still multiplies this one; neighbouring threads fetch neighbours.
template <unsigned width, unsigned depth, unsigned threads>
class Parts {
 public:
  // + 4: rows begin at 16 bytes, and fewer of a warp's accesses meet in one of the 32 banks.
  static constexpr unsigned stride = width + 4, size = depth * stride;

  __device__ Parts(const Matrix& a, std::size_t first, std::size_t end)
      : along_k_(a.col == 1),
        rows_(end - first < width ? static_cast<unsigned>(end - first) : width),
        i_(along_k_ ? threadIdx.x / depth : threadIdx.x % width),
        l_(along_k_ ? threadIdx.x % depth : threadIdx.x / width),
        step_(along_k_ ? a.row : a.col),
        from_(a.data + (first + i_) * a.row + l_ * a.col) {}

  // The next part, of which `left` numbers along k are inside.
  __device__ void fetch(std::size_t left) {
    if (along_k_)
      fetch_along<true>(left);
    else
      fetch_along<false>(left);
    from_ += along_k_ ? depth : depth * step_;
  }

  // to[l][i], rows `stride` apart
  __device__ void put(float* to) const {
    if (along_k_)
      put_along<true>(to);
    else
      put_along<false>(to);
  }

 private:
  // A thread fetches `each` numbers; number e lies i_of(e) rows and l_of(e) steps along k beyond
  // its first. If k is contiguous, neighbouring threads take neighbouring k: `depth` threads a row
  // or, if the block has fewer, all of them `shares` times.
  static constexpr unsigned each = width * depth / threads;
  static constexpr unsigned shares = depth <= threads ? 1 : depth / threads;
  static constexpr unsigned rows_at_once = depth <= threads ? threads / depth : 1;
  static_assert(threads % width == 0 && rows_at_once * depth == shares * threads);
  template <bool along_k>
  static constexpr __device__ unsigned i_of(unsigned e) {
    return along_k ? e / shares * rows_at_once : 0;
  }
  template <bool along_k>
  static constexpr __device__ unsigned l_of(unsigned e) {
    return along_k ? e % shares * threads : e * (threads / width);
  }

  template <bool along_k>
  __device__ void fetch_along(std::size_t left) {
    const auto number = [&](unsigned e) {
      return from_[along_k ? i_of<true>(e) * step_ + l_of<true>(e) : l_of<false>(e) * step_];
    };
    if (rows_ == width && left >= depth) {
      BERT4REC_UNROLL
      for (unsigned e = 0; e < each; ++e) values_[e] = number(e);
    } else {
      BERT4REC_UNROLL
      for (unsigned e = 0; e < each; ++e) {
        if (i_ + i_of<along_k>(e) < rows_ && l_ + l_of<along_k>(e) < left) values_[e] = number(e);
      }
    }
  }

  template <bool along_k>
  __device__ void put_along(float* to) const {
    BERT4REC_UNROLL
    for (unsigned e = 0; e < each; ++e) {
      to[(l_ + l_of<along_k>(e)) * stride + i_ + i_of<along_k>(e)] = values_[e];
    }
  }

  bool along_k_;
  unsigned rows_, i_, l_;  // rows inside, and the place of the first number of this thread
  std::size_t step_;       // from one row (along k: column) to the next
  const float* from_;
  float values_[each];
};

template <unsigned side_, unsigned T_, unsigned depth_>
struct TileShape {
  static constexpr unsigned side = side_, T = T_, depth = depth_, width = side * T;
  using Operand = Parts<width, depth, side * side>;
  static constexpr std::size_t shared = 4 * Operand::size * sizeof(float);  // two parts of A and B

  // Where element r of the T along one edge that thread t owns stands in the tile: neighbours by
  // fours, so that they are read at once.
  static constexpr unsigned group = T < 4 ? T : 4;  // 1, 2 or 4
  static __device__ unsigned place(unsigned t, unsigned r) {
    return r / group * group * side + group * t + r % group;
  }
  static __device__ void take(const float* row, unsigned t, float (&values)[T]) {
    BERT4REC_UNROLL
    for (unsigned r = 0; r < T; r += group) {
      if constexpr (group == 4) {
        const float4 x = *reinterpret_cast<const float4*>(row + place(t, r));
        values[r] = x.x, values[r + 1] = x.y, values[r + 2] = x.z, values[r + 3] = x.w;
      } else if constexpr (group == 2) {
        const float2 x = *reinterpret_cast<const float2*>(row + place(t, r));
        values[r] = x.x, values[r + 1] = x.y;
      } else {
        values[r] = row[place(t, r)];
      }
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::side* Shape::side, Shape::T == 8 ? 2 : 1)
    multiply_kernel(std::size_t m, std::size_t n, std::size_t k, Matrix a, Matrix b_transposed,
                    const float* start, std::size_t start_row, float* c, std::size_t c_row) {
  using Operand = typename Shape::Operand;
  constexpr unsigned width = Shape::width, T = Shape::T, depth = Shape::depth;
  const std::size_t down = (m + width - 1) / width;  // tiles of C below one another
  const std::size_t first_row = blockIdx.x % down * width, first_col = blockIdx.x / down * width;
  const Standing at = standing(threadIdx.x, Shape::side);
  Operand of_a(a, first_row, m), of_b(b_transposed, first_col, n);
  of_a.fetch(k), of_b.fetch(k);

  float sum[T][T];
  BERT4REC_UNROLL
  for (unsigned r = 0; r < T; ++r) {
    BERT4REC_UNROLL
    for (unsigned s = 0; s < T; ++s) {
      const std::size_t i = first_row + Shape::place(at.y, r),
                        j = first_col + Shape::place(at.x, s);
      sum[r][s] = start != nullptr && i < m && j < n ? start[i * start_row + j] : 0.0f;
    }
  }
  unsigned turn = 0;  // two places in turn: one is filled while others still read the other
  for (std::size_t left = k; left > 0; left -= left < depth ? left : depth, turn ^= 1u) {
    float* a_part = shared_memory<float>() + turn * 2 * Operand::size;
    float* b_part = a_part + Operand::size;
    of_a.put(a_part), of_b.put(b_part);
    __syncthreads();
    if (left > depth) of_a.fetch(left - depth), of_b.fetch(left - depth);
    const auto multiply_add = [&](unsigned l) {
      float a_values[T], b_values[T];
      Shape::take(a_part + l * Operand::stride, at.y, a_values);
      Shape::take(b_part + l * Operand::stride, at.x, b_values);
      BERT4REC_UNROLL
      for (unsigned r = 0; r < T; ++r) {
        BERT4REC_UNROLL
        for (unsigned s = 0; s < T; ++s) sum[r][s] = fused(a_values[r], b_values[s], sum[r][s]);
      }
    };
    if (left >= depth) {
      BERT4REC_UNROLL
      for (unsigned l = 0; l < depth; ++l) multiply_add(l);
    } else {
      for (unsigned l = 0; l < left; ++l) multiply_add(l);
    }
  }
  BERT4REC_UNROLL
  for (unsigned r = 0; r < T; ++r) {
    BERT4REC_UNROLL
    for (unsigned s = 0; s < T; ++s) {
      const std::size_t i = first_row + Shape::place(at.y, r),
                        j = first_col + Shape::place(at.x, s);
      if (i < m && j < n) c[i * c_row + j] = sum[r][s];
    }
  }
}

// ---- Products in half precision ----------------------------------------------------------------
// Operands are rounded to 16 bits and cuBLAS multiplies them on tensor cores, with sums in float32.
// BF16 has the exponents of float32. FP16 has five bits of exponent, and gradients would vanish in
// it; so there an operand is first multiplied by the power of two that brings its largest number
// into [2^14, 2^15) (FP16 ends at 65504), and the product is divided by both powers. (Loss scaling
// does this with one power for all gradients, has to guess it, and skips steps when it was wrong.)

// x rounded to the nearest, ties to even.
__device__ std::uint16_t to_bfloat(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return static_cast<std::uint16_t>(bits >> 16 | 64u);  // NaN
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

__device__ std::uint16_t to_half(float x) {
  const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u;
  const unsigned size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);   // NaN
  if (size >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (size < 0x38800000u) {  // subnormal: a multiple of 2^-24
    const float steps = __uint_as_float(size) * 16777216.0f + 8388608.0f;  // and 2^23 rounds it
    return static_cast<std::uint16_t>(sign | (__float_as_uint(steps) & 0x7fffffu));
  }
  return static_cast<std::uint16_t>(sign |
                                    ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}

// The power of two by which an operand is multiplied, from the bits of its largest number.
__device__ float scale_for(float largest) {
  const unsigned exponent = __float_as_uint(largest) >> 23;
  if (exponent == 0 || exponent >= 255) return 1;     // zeros; or nothing can be saved
  const unsigned wanted = 127 + 127 + 14 - exponent;  // 2^(14 - (exponent - 127)), biased
  return __uint_as_float((wanted > 254 ? 254 : wanted) << 23);
}

struct Operand {
  const float* data;
  std::size_t rows, cols, stride;  // rows of cols numbers, `stride` apart
};

constexpr unsigned operand_threads = 128;

// The bits of numbers that are not negative are in the order of the numbers.
__global__ void largest_kernel(Operand from, unsigned* largest) {
  auto* found = shared_memory<unsigned>();  // [threads]
  const unsigned thread = threadIdx.x;
  unsigned mine = 0;
  for (std::size_t i = blockIdx.x; i < from.rows; i += gridDim.x) {
    for (std::size_t j = thread; j < from.cols; j += operand_threads) {
      const unsigned bits = __float_as_uint(fabsf(from.data[i * from.stride + j]));
      mine = mine < bits ? bits : mine;
    }
  }
  found[thread] = mine;
  for (unsigned half = operand_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
    if (found[thread] < found[thread + half]) found[thread] = found[thread + half];
  }
  if (thread == 0) atomicMax(largest, found[0]);
}

// Rows of `to` are `to_stride` apart, which cuBLAS likes to be a multiple of 8.
__global__ void to_half_kernel(Operand from, bool bfloat, const float* largest, std::uint16_t* to,
                               std::size_t to_stride) {
  const auto [i, first] = piece_at_hand(static_cast<unsigned>(from.cols));
  if (i >= from.rows) return;
  const float scale = bfloat ? 1.0f : scale_for(*largest);
  BERT4REC_UNROLL
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned j = first + 4 * lane_at_hand() + e;
    if (j >= from.cols) break;
    const float x = from.data[i * from.stride + j];
    to[i * to_stride + j] = bfloat ? to_bfloat(x) : to_half(x * scale);
  }
}

// alpha = 1 / (scale of A * scale of B), beta
__global__ void factors_kernel(float beta, float* scales) {
  scales[2] = 1 / scale_for(scales[0]) / scale_for(scales[1]);
  scales[3] = beta;
}

__global__ void fill_rows_kernel(std::size_t m, std::size_t n, const float* row, float* c,
                                 std::size_t c_row) {
  const std::size_t at = place_at_hand();
  if (at < m * n) c[at / n * c_row + at % n] = row[at % n];
}

// ---- Sums over tokens (down columns) -----------------------------------------------------------
// First the sums of the blocks, a thread for each column of each block; then these are added.

constexpr unsigned column_threads = 64;

__device__ std::size_t column_at_hand() {
  return std::size_t{blockIdx.y} * column_threads + threadIdx.x;
}

__global__ void column_sums_kernel(Blocks blocks, std::size_t width, const float* dy,
                                   float* partial) {
  const std::size_t j = column_at_hand();
  if (j >= width) return;
  const std::size_t first = blocks.begins[blockIdx.x];
  partial[blockIdx.x * width + j] =
      add_in_order(blocks.begins[blockIdx.x + 1] - first, 0.0f,
                   [&](std::size_t t) { return dy[(first + t) * width + j]; });
}

// partial[b] holds dgain[H] and then dbias[H].
__global__ void normalize_parameters_kernel(Blocks blocks, std::size_t H, const float* x,
                                            const Statistics* statistics, const float* dy,
                                            float* partial) {
  const std::size_t j = column_at_hand();
  if (j >= H) return;
  struct Sums {
    float gain, bias;
  };
  struct Term {
    float dy, z;
  };
  const std::size_t first = blocks.begins[blockIdx.x];
  const Sums sums = add_in_order(
      blocks.begins[blockIdx.x + 1] - first, Sums{0, 0},
      [&](std::size_t i) {
        const std::size_t t = first + i;
        return Term{dy[t * H + j],
                    (x[t * H + j] - statistics[t].mean) * statistics[t].inverse_deviation};
      },
      [](Sums all, Term term) {
        return Sums{fused(term.dy, term.z, all.gain), all.bias + term.dy};
      });
  partial[blockIdx.x * 2 * H + j] = sums.gain;
  partial[blockIdx.x * 2 * H + H + j] = sums.bias;
}

// out[j] += partial[0,j] + partial[1,j] + ..., in this order from out[j] on. There may be thousands
// of them, too many for one thread to wait for: four threads fetch for each column, a chunk of 64
// at a time, and one of them adds up a chunk while the next is on its way.
constexpr unsigned column_fetchers = 4, column_chunk = 64;

__global__ void __launch_bounds__(column_threads* column_fetchers)
    add_blocks_kernel(std::size_t blocks, std::size_t width, const float* partial,
                      std::size_t stride, float* out) {
  constexpr unsigned each = column_chunk / column_fetchers;
  const unsigned column = threadIdx.x % column_threads, fetcher = threadIdx.x / column_threads;
  const std::size_t j = std::size_t{blockIdx.x} * column_threads + column;
  const bool inside = j < width, adds = inside && fetcher == 0;
  float values[each] = {};
  const auto fetch = [&](std::size_t first) {
    const float* from = partial + (first + fetcher) * stride + j;
    const bool whole = inside && first + column_chunk <= blocks;
    BERT4REC_UNROLL
    for (unsigned e = 0; e < each; ++e) {
      if (whole || (inside && first + fetcher + e * column_fetchers < blocks)) {
        values[e] = from[e * column_fetchers * stride];
      }
    }
  };
  fetch(0);
  float sum = adds ? out[j] : 0;
  unsigned turn = 0;
  for (std::size_t first = 0; first < blocks; first += column_chunk, turn ^= 1u) {
    float* chunk = shared_memory<float>() + turn * column_chunk * column_threads + column;
    BERT4REC_UNROLL
    for (unsigned e = 0; e < each; ++e) {
      chunk[(fetcher + e * column_fetchers) * column_threads] = values[e];
    }
    __syncthreads();
    fetch(first + column_chunk);
    if (!adds) continue;
    const std::size_t left = blocks - first;
    if (left >= column_chunk) {
      BERT4REC_UNROLL
      for (unsigned i = 0; i < column_chunk; ++i) sum += chunk[i * column_threads];
    } else {
      for (unsigned i = 0; i < left; ++i) sum += chunk[i * column_threads];
    }
  }
  if (adds) out[j] = sum;
}

// ---- Norms, dropout, activations ---------------------------------------------------------------

// y = gain (x - mean) / deviation + bias, of one row
__device__ Statistics normalize_row(unsigned n, const float* x, const float* gain,
                                    const float* bias, float epsilon, float* y) {
  const auto count = static_cast<float>(n);
  float sum = 0, squares = 0;
  for (unsigned i = lane_at_hand(); i < n; i += lanes) sum += x[i];
  const float mean = sum_lanes(sum) / count;
  for (unsigned i = lane_at_hand(); i < n; i += lanes) {
    squares = fused(x[i] - mean, x[i] - mean, squares);
  }
  const float inverse = 1 / sqrtf(sum_lanes(squares) / count + epsilon);
  for (unsigned i = lane_at_hand(); i < n; i += lanes) {
    y[i] = fused(gain[i], (x[i] - mean) * inverse, bias[i]);
  }
  return {mean, inverse};
}

__global__ void normalize_kernel(std::size_t N, unsigned H, const float* x, const float* gain,
                                 const float* bias, float epsilon, float* y,
                                 Statistics* statistics) {
  const std::size_t t = row_at_hand();
  if (t >= N) return;
  const Statistics row = normalize_row(H, x + t * H, gain, bias, epsilon, y + t * H);
  if (lane_at_hand() == 0) statistics[t] = row;
}

__global__ void add_and_normalize_kernel(std::size_t N, unsigned H, std::size_t first_row,
                                         Dropout dropout, const float* x, float* f,
                                         const float* gain, const float* bias, float epsilon,
                                         float* y, Statistics* statistics) {
  const std::size_t t = row_at_hand();
  if (t >= N) return;
  const float scale = dropout_scale(dropout);
  x += t * H, f += t * H;
  for_dropout(dropout, first_row + t, H,
              [&](unsigned i, bool kept) { f[i] = (kept ? f[i] * scale : 0.0f) + x[i]; });
  const Statistics row = normalize_row(H, f, gain, bias, epsilon, y + t * H);
  if (lane_at_hand() == 0) statistics[t] = row;
}

// With z = (x - mean) / deviation and e = dy gain:
//   dx = (e - mean(e) - z mean(e z)) / deviation,   df = dropout(dx)
__global__ void normalize_backward_kernel(std::size_t N, unsigned H, std::size_t first_row,
                                          Dropout dropout, const float* x,
                                          const Statistics* statistics, const float* gain,
                                          float* dy, float* df) {
  const std::size_t t = row_at_hand();
  if (t >= N) return;
  const auto count = static_cast<float>(H);
  const Statistics row = statistics[t];
  x += t * H, dy += t * H;
  const auto z = [&](unsigned i) { return (x[i] - row.mean) * row.inverse_deviation; };
  float sum_e = 0, sum_ez = 0;
  for (unsigned i = lane_at_hand(); i < H; i += lanes) {
    const float e = dy[i] * gain[i];
    sum_e += e;
    sum_ez = fused(e, z(i), sum_ez);
    dy[i] = e;
  }
  const float mean_e = sum_lanes(sum_e) / count, mean_ez = sum_lanes(sum_ez) / count;
  const float scale = dropout_scale(dropout);
  for_dropout(dropout, first_row + t, H, [&](unsigned i, bool kept) {
    dy[i] = fused(z(i), -mean_ez, dy[i] - mean_e) * row.inverse_deviation;
    if (df != nullptr) df[t * H + i] = kept ? dy[i] * scale : 0.0f;
  });
}

__global__ void dropout_kernel(std::size_t N, unsigned H, std::size_t first_row, Dropout dropout,
                               const float* x, float* y) {
  const auto [t, first] = piece_at_hand(H);
  if (t >= N) return;
  const float scale = dropout_scale(dropout);
  x += t * H, y += t * H;
  for_piece(dropout, first_row + t, first, H,
            [&](unsigned i, bool kept) { y[i] = kept ? x[i] * scale : 0.0f; });
}

constexpr float half_root = 0.70710678118654752440f;

__global__ void gelu_kernel(std::size_t N, unsigned width, std::size_t first_row, Dropout dropout,
                            const float* u, float* h) {
  const auto [t, first] = piece_at_hand(width);
  if (t >= N) return;
  const float scale = dropout_scale(dropout);
  u += t * width, h += t * width;
  for_piece(dropout, first_row + t, first, width, [&](unsigned i, bool kept) {
    const float active = u[i] * 0.5f * (1 + erf_of(u[i] * half_root));
    h[i] = kept ? active * scale : 0.0f;
  });
}

// du = dropout(dh) (Phi(u) + u phi(u))
__global__ void gelu_backward_kernel(std::size_t N, unsigned width, std::size_t first_row,
                                     Dropout dropout, const float* u, float* dh) {
  const auto [t, first] = piece_at_hand(width);
  if (t >= N) return;
  const float scale = dropout_scale(dropout);
  u += t * width, dh += t * width;
  for_piece(dropout, first_row + t, first, width, [&](unsigned i, bool kept) {
    const float cumulative = fused(erf_of(u[i] * half_root), 0.5f, 0.5f);
    const float density = exp_of(u[i] * u[i] * -0.5f) * 0.39894228040143267794f;
    dh[i] = (kept ? dh[i] * scale : 0.0f) * fused(u[i], density, cumulative);
  });
}

__global__ void tanh_kernel(std::size_t n, const float* u, float* y) {
  const std::size_t i = place_at_hand();
  if (i >= n) return;
  const float e = exp_of(-2 * fabsf(u[i]));
  y[i] = copysignf((1 - e) / (1 + e), u[i]);
}

__global__ void tanh_backward_kernel(std::size_t n, const float* y, float* dy) {
  const std::size_t i = place_at_hand();
  if (i < n) dy[i] *= fused(-y[i], y[i], 1.0f);
}

// ---- Rows of tables ----------------------------------------------------------------------------

// The row of token t in a table, or nullptr.
__device__ const float* row_of(const Lookup& lookup, std::size_t t, unsigned H) {
  if (lookup.table == nullptr) return nullptr;
  const std::uint32_t row = lookup.rows == nullptr ? 0 : lookup.rows[t];
  return lookup.table + std::size_t{row} * H;
}

__global__ void embed_kernel(std::size_t N, unsigned H, Embedding of, float* e) {
  const std::size_t t = row_at_hand();
  if (t >= N) return;
  const float *item = row_of(of.item, t, H), *position = row_of(of.position, t, H);
  const float *segment = row_of(of.segment, t, H), *bigram = row_of(of.bigram, t, H);
  for (unsigned i = lane_at_hand(); i < H; i += lanes) {
    float sum = item[i] + position[i];
    if (segment != nullptr) sum += segment[i];
    if (bigram != nullptr) sum += bigram[i];
    e[t * H + i] = sum;
  }
}

__global__ void add_rows_kernel(Sorted sorted, std::size_t H, const float* from, float* out) {
  const std::size_t j = column_at_hand();
  if (j >= H) return;
  float* to = out + std::size_t{sorted.ids[blockIdx.x]} * H + j;
  const std::uint32_t first = sorted.begins[blockIdx.x];
  *to = add_in_order(sorted.begins[blockIdx.x + 1] - first, *to, [&](std::size_t i) {
    return from[std::size_t{sorted.places[first + i]} * H + j];
  });
}

__global__ void gather_kernel(std::size_t rows, unsigned H, const std::uint32_t* places,
                              const float* from, float* to) {
  const std::size_t t = row_at_hand();
  if (t >= rows) return;
  const float* row = from + std::size_t{places[t]} * H;
  for (unsigned i = lane_at_hand(); i < H; i += lanes) to[t * H + i] = row[i];
}

__global__ void scatter_kernel(std::size_t rows, unsigned H, const std::uint32_t* places,
                               const float* from, float* to) {
  const std::size_t t = row_at_hand();
  if (t >= rows) return;
  float* row = to + std::size_t{places[t]} * H;
  for (unsigned i = lane_at_hand(); i < H; i += lanes) row[i] = from[t * H + i];
}

// ---- Attention ---------------------------------------------------------------------------------
// A block has one head (blockIdx.y) of one row, a sequence of the batch, and of it a tile: some
// queries and all keys that they see, or some keys and all queries that see them. The scores S of a
// tile stay in shared memory, and the backward computes them again: no matrix [n,n] is ever stored.

constexpr unsigned attention_threads = 128, most_part = 64, causal_block = 32;

struct Tile {
  std::size_t first_key, first_query;  // of the row, among tokens and among queries
  unsigned n, m;                       // keys and queries of the row
  unsigned first;                      // key or query of the row that the tile begins with
};

__device__ Tile tile_at_hand(const Attention& at, const std::uint32_t* tiles, std::size_t count) {
  const std::uint32_t row = tiles[blockIdx.x];
  return {at.keys[row], at.queries[row], at.keys[row + 1] - at.keys[row],
          at.queries[row + 1] - at.queries[row], tiles[count + blockIdx.x]};
}

// How many keys query i of the row sees.
__device__ unsigned visible(const Attention& at, const Tile& tile, unsigned i) {
  if (!at.causal) return tile.n;
  if (at.places == nullptr) return i + 1;
  return at.places[tile.first_query + i] - static_cast<std::uint32_t>(tile.first_key) + 1;
}

// What dropout counts as the row of query i.
__device__ std::size_t dropout_row(const Attention& at, const Tile& tile, unsigned i) {
  return (at.first_query + tile.first_query) * at.A + std::size_t{blockIdx.y} * tile.m + i;
}

__device__ float* kept_of(const Attention& at, const Tile& tile, unsigned i, float* kept) {
  return kept + ((tile.first_query + i) * at.A + blockIdx.y) * attention_kept;
}

__device__ float score_scale(const Attention& at) { return 1 / sqrtf(static_cast<float>(at.D)); }

// Numbers from a row in shared memory to the next: so that a row begins at 16 bytes, and that rows
// read at once lie in different banks.
__host__ __device__ constexpr unsigned row_stride(std::size_t n) {
  return static_cast<unsigned>((n + 3) / 4 * 4 + 4);
}

__device__ void take_four(const float* from, float (&to)[4]) {
  const float4 x = *reinterpret_cast<const float4*>(from);
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

// Rows of D numbers, `stride` apart, to shared memory, in pieces of one number or four: four of a
// thread are on their way at a time.
template <class Some>
__device__ void bring_pieces(unsigned rows, unsigned D, const float* from, std::size_t stride,
                             float* to) {
  constexpr unsigned size = sizeof(Some) / sizeof(float), batch = 4;
  const unsigned across = D / size, to_stride = row_stride(D);
  const unsigned i_step = blockDim.x / across, d_step = blockDim.x % across;
  unsigned i = threadIdx.x / across, d = threadIdx.x % across;
  while (i < rows) {
    Some values[batch];
    unsigned places[batch], count = 0;
    BERT4REC_UNROLL
    for (unsigned e = 0; e < batch; ++e) {
      if (i < rows) {
        values[e] = *reinterpret_cast<const Some*>(from + i * stride + d * size);
        places[e] = i * to_stride + d * size, count = e + 1;
      }
      i += i_step, d += d_step;
      if (d >= across) d -= across, ++i;
    }
    BERT4REC_UNROLL
    for (unsigned e = 0; e < batch; ++e) {
      if (e < count) *reinterpret_cast<Some*>(to + places[e]) = values[e];
    }
  }
}
__device__ void bring_rows(unsigned rows, unsigned D, const float* from, std::size_t stride,
                           float* to) {
  if (D % 4 == 0)
    bring_pieces<float4>(rows, D, from, stride, to);
  else
    bring_pieces<float>(rows, D, from, stride, to);
}

// Sixteen sums of a thread: sum[r][s] = sum_d a(r)[d] b(s)[d] in ascending d, where a(r) and b(s)
// are rows in shared memory, of which four numbers are read at once.
template <class A, class B>
__device__ void dot_products(unsigned D, A&& a, B&& b, float (&sum)[4][4]) {
  unsigned d = 0;
  for (; d + 4 <= D; d += 4) {
    float x[4][4], y[4][4];
    BERT4REC_UNROLL
    for (unsigned r = 0; r < 4; ++r) take_four(a(r) + d, x[r]), take_four(b(r) + d, y[r]);
    BERT4REC_UNROLL
    for (unsigned r = 0; r < 4; ++r) {
      BERT4REC_UNROLL
      for (unsigned s = 0; s < 4; ++s) {
        BERT4REC_UNROLL
        for (unsigned e = 0; e < 4; ++e) sum[r][s] = fused(x[r][e], y[s][e], sum[r][s]);
      }
    }
  }
  for (; d < D; ++d) {
    BERT4REC_UNROLL
    for (unsigned r = 0; r < 4; ++r) {
      BERT4REC_UNROLL
      for (unsigned s = 0; s < 4; ++s) sum[r][s] = fused(a(r)[d], b(s)[d], sum[r][s]);
    }
  }
}

// sum[r][e] = fused(w[r], x[e], sum[r][e])
__device__ void add_outer_product(const float (&w)[4], const float (&x)[4], float (&sum)[4][4]) {
  BERT4REC_UNROLL
  for (unsigned r = 0; r < 4; ++r) {
    BERT4REC_UNROLL
    for (unsigned e = 0; e < 4; ++e) sum[r][e] = fused(w[r], x[e], sum[r][e]);
  }
}

__device__ unsigned smaller(unsigned a, unsigned b) { return a < b ? a : b; }

// to[i,j] = a_i b_j for the 4 x 4 pairs of a thread, i_of(r) and j_of(s), that are below m and n; a
// and b stand in shared memory. Beyond the last row it multiplies the last one again.
template <class I, class J>
__device__ void dot_tile(unsigned m, unsigned n, unsigned D, const float* a, const float* b,
                         I&& i_of, J&& j_of, float* to, unsigned to_stride) {
  const unsigned width = row_stride(D);
  float sum[4][4] = {};
  dot_products(
      D, [&](unsigned r) { return a + smaller(i_of(r), m - 1) * width; },
      [&](unsigned s) { return b + smaller(j_of(s), n - 1) * width; }, sum);
  BERT4REC_UNROLL
  for (unsigned r = 0; r < 4; ++r) {
    BERT4REC_UNROLL
    for (unsigned s = 0; s < 4; ++s) {
      if (i_of(r) < m && j_of(s) < n) to[i_of(r) * to_stride + j_of(s)] = sum[r][s];
    }
  }
}

// to[i,j] = a_i b_j for i < m, j < n. a[m,D] stands in shared memory, and of b, whose rows are
// `stride` apart in device memory, `part` takes part_rows at a time.
__device__ void dot_rows(unsigned m, unsigned n, unsigned D, const float* a, const float* b,
                         std::size_t stride, unsigned part_rows, float* part, float* to,
                         unsigned to_stride) {
  constexpr unsigned across = most_part / 4, down = attention_threads / across;
  const Standing at = standing(threadIdx.x, across);
  for (unsigned first = 0; first < n; first += part_rows) {
    const unsigned rows = smaller(n - first, part_rows);
    __syncthreads();
    bring_rows(rows, D, b + first * stride, stride, part);
    __syncthreads();
    for (unsigned top = 0; top < m; top += 4 * down) {
      dot_tile(
          m, rows, D, a, part, [&](unsigned r) { return top + at.y + r * down; },
          [&](unsigned s) { return at.x + s * across; }, to + first, to_stride);
    }
  }
}

// to[i,d] = sum_j w[i,j] b_j[d] in ascending j; w stands in shared memory, b as above. A thread has
// 4 rows and 4 neighbouring columns.
__device__ void sum_rows(unsigned m, unsigned n, unsigned D, const float* w, unsigned w_stride,
                         const float* b, std::size_t stride, unsigned part_rows, float* part,
                         float* to, std::size_t to_stride) {
  const unsigned across = (D + 3) / 4, width = row_stride(D);
  for (unsigned chunk = 0; chunk < (m + 3) / 4 * across; chunk += attention_threads) {
    const unsigned at = chunk + threadIdx.x, top = at / across * 4, column = at % across * 4;
    const auto row = [&](unsigned r) { return w + smaller(top + r, m - 1) * w_stride; };
    float sum[4][4] = {};
    for (unsigned first = 0; first < n; first += part_rows) {
      const unsigned rows = smaller(n - first, part_rows);
      __syncthreads();
      bring_rows(rows, D, b + first * stride, stride, part);
      __syncthreads();
      if (top >= m) continue;
      const auto add = [&](const float(&weights)[4], unsigned j) {
        float values[4];
        take_four(part + j * width + column, values);
        add_outer_product(weights, values, sum);
      };
      unsigned j = 0;
      for (; j + 4 <= rows; j += 4) {
        float x[4][4];
        BERT4REC_UNROLL
        for (unsigned r = 0; r < 4; ++r) take_four(row(r) + first + j, x[r]);
        BERT4REC_UNROLL
        for (unsigned e = 0; e < 4; ++e) add({x[0][e], x[1][e], x[2][e], x[3][e]}, j + e);
      }
      for (; j < rows; ++j) {
        const unsigned of = first + j;
        add({row(0)[of], row(1)[of], row(2)[of], row(3)[of]}, j);
      }
    }
    BERT4REC_UNROLL
    for (unsigned r = 0; r < 4; ++r) {
      BERT4REC_UNROLL
      for (unsigned e = 0; e < 4; ++e) {
        if (top + r < m && column + e < D) to[(top + r) * to_stride + column + e] = sum[r][e];
      }
    }
  }
}

// How many queries a tile has, and how many rows of keys or values a block has at a time.
struct QueryTile {
  unsigned queries, part_rows;
};

// Bytes of shared memory of the kernels that have a tile of queries; matrices: 1 forward (q, S),
// 2 backward (q and do, S and dR).
std::size_t query_tile_bytes(std::size_t D, std::size_t longest, const QueryTile& tile,
                             std::size_t matrices) {
  return sizeof(float) * (matrices * tile.queries * (row_stride(D) + row_stride(longest)) +
                          tile.part_rows * row_stride(D));
}

// Of how many keys the scores of m queries from tile.first on are taken: those that one of them
// sees or, as in the header, another of its 32 if attention is causal.
__device__ unsigned keys_of(const Attention& at, const Tile& tile, unsigned m) {
  if (!at.causal) return tile.n;
  const unsigned end = (tile.first + m - 1) / causal_block * causal_block + causal_block;
  return visible(at, tile, smaller(end, tile.m) - 1);
}

//   S = q k^T [m,n] (T of the header),   P = softmax(S / sqrt D),   o = dropout(P) v [m,D]
// q[Q,H] and kv[N,2H], k before v; head h has the columns from h D on.
__global__ void __launch_bounds__(attention_threads, 4)
    attention_forward_kernel(Attention at, QueryTile shape, const float* q_all, const float* kv,
                             float* kept, float* out) {
  const Tile tile = tile_at_hand(at, at.query_tiles, at.num_query_tiles);
  const auto H = at.H;
  const auto D = static_cast<unsigned>(at.D);
  const unsigned width = row_stride(at.longest);  // of S
  const unsigned m = smaller(tile.m - tile.first, shape.queries), n = keys_of(at, tile, m);
  float *q = shared_memory<float>(), *part = q + shape.queries * row_stride(D);
  float* S = part + shape.part_rows * row_stride(D);
  const std::size_t column = blockIdx.y * at.D;
  const std::size_t place = (tile.first_query + tile.first) * H + column;
  const float *k = kv + tile.first_key * 2 * H + column, *v = k + H;
  bring_rows(m, D, q_all + place, H, q);
  dot_rows(m, n, D, q, k, 2 * H, shape.part_rows, part, S, width);
  __syncthreads();
  const float scale = score_scale(at), kept_scale = dropout_scale(at.dropout);
  for (unsigned i = threadIdx.x / lanes; i < m; i += attention_threads / lanes) {
    float* s = S + i * width;
    const unsigned seen = visible(at, tile, tile.first + i);
    float largest = minus_infinity(), sum = 0;
    for (unsigned j = lane_at_hand(); j < seen; j += lanes) {
      largest = largest < s[j] ? s[j] : largest;
    }
    largest = largest_of_lanes(largest);
    for (unsigned j = lane_at_hand(); j < seen; j += lanes) {
      s[j] = exp_of((s[j] - largest) * scale);
      sum += s[j];
    }
    const float inverse = 1 / sum_lanes(sum);
    for_dropout(at.dropout, dropout_row(at, tile, tile.first + i), n, [&](unsigned j, bool stays) {
      s[j] = j < seen && stays ? s[j] * inverse * kept_scale : 0.0f;
    });
    if (lane_at_hand() == 0) {
      float* of_query = kept_of(at, tile, tile.first + i, kept);
      of_query[0] = largest, of_query[1] = inverse;
    }
  }
  sum_rows(m, n, D, S, width, v, 2 * H, shape.part_rows, part, out + place, H);
}

// With R = dropout(P), first for a tile of queries:
//   dR = do v^T,   dS_ij = (R_ij dR_ij - P_ij sum_k R_ik dR_ik) / sqrt D,   dq = dS k
__global__ void __launch_bounds__(attention_threads, 4)
    attention_backward_queries_kernel(Attention at, QueryTile shape, const float* q_all,
                                      const float* kv, float* kept, const float* d_out,
                                      float* d_q) {
  const Tile tile = tile_at_hand(at, at.query_tiles, at.num_query_tiles);
  const auto H = at.H;
  const auto D = static_cast<unsigned>(at.D);
  const unsigned width = row_stride(at.longest);  // of S and dR
  const unsigned m = smaller(tile.m - tile.first, shape.queries), n = keys_of(at, tile, m);
  float *q = shared_memory<float>(), *d_o = q + shape.queries * row_stride(D);
  float *part = d_o + shape.queries * row_stride(D), *S = part + shape.part_rows * row_stride(D);
  float* d_R = S + shape.queries * width;
  const std::size_t column = blockIdx.y * at.D;
  const std::size_t place = (tile.first_query + tile.first) * H + column;
  const float *k = kv + tile.first_key * 2 * H + column, *v = k + H;
  bring_rows(m, D, q_all + place, H, q);
  bring_rows(m, D, d_out + place, H, d_o);
  dot_rows(m, n, D, q, k, 2 * H, shape.part_rows, part, S, width);
  dot_rows(m, n, D, d_o, v, 2 * H, shape.part_rows, part, d_R, width);
  __syncthreads();
  const float scale = score_scale(at), kept_scale = dropout_scale(at.dropout);
  for (unsigned i = threadIdx.x / lanes; i < m; i += attention_threads / lanes) {
    float *s = S + i * width, *d_r = d_R + i * width;
    float* of_query = kept_of(at, tile, tile.first + i, kept);
    const float largest = of_query[0], inverse = of_query[1];
    const unsigned seen = visible(at, tile, tile.first + i);
    float sum = 0;
    for_dropout(at.dropout, dropout_row(at, tile, tile.first + i), n, [&](unsigned j, bool stays) {
      const float p = j < seen ? exp_of((s[j] - largest) * scale) * inverse : 0.0f;
      const float r = stays ? p * kept_scale : 0.0f;
      sum = fused(r, d_r[j], sum);
      s[j] = p, d_r[j] = r * d_r[j];
    });
    const float sum_r_dr = sum_lanes(sum);
    for (unsigned j = lane_at_hand(); j < n; j += lanes) {
      s[j] = scale * fused(s[j], -sum_r_dr, d_r[j]);
    }
    if (lane_at_hand() == 0) of_query[2] = sum_r_dr;
  }
  sum_rows(m, n, D, S, width, k, 2 * H, shape.part_rows, part, d_q + place, H);
}

// ... and then for a tile of keys:   dv = R^T do,   dk = dS^T q, in the order of the header: if
// attention is causal, blocks of 32 queries from the last to the first.
constexpr unsigned key_threads = 256;

// Bytes of shared memory for a tile of keys, and so many queries at a time.
std::size_t key_tile_bytes(std::size_t D, std::size_t keys, std::size_t queries) {
  return 2 * sizeof(float) * ((keys + queries) * row_stride(D) + queries * row_stride(keys));
}

// S and dR[m,keys] of the queries q[m,D] and the keys of the tile: half of the threads each.
__device__ void score_tile(unsigned m, unsigned keys, unsigned D, const float* q, const float* d_o,
                           const float* k, const float* v, float* S, float* d_R) {
  const unsigned across = (keys + 3) / 4, down = (m + 3) / 4;
  constexpr unsigned half = key_threads / 2;
  const bool first_half = threadIdx.x < half;
  const float *a = first_half ? q : d_o, *b = first_half ? k : v;
  float* to = first_half ? S : d_R;
  for (unsigned at = threadIdx.x % half; at < across * down; at += half) {
    dot_tile(
        m, keys, D, a, b, [&](unsigned r) { return at / across + r * down; },
        [&](unsigned s) { return at % across + s * across; }, to, row_stride(keys));
  }
}

// S becomes R, and dR becomes dS, of query i of the row and `keys` keys from tile.first on.
__device__ void score_gradient(const Attention& at, const Tile& tile, unsigned i, unsigned keys,
                               const float* of_query, float* s, float* d_r) {
  const float scale = score_scale(at), kept_scale = dropout_scale(at.dropout);
  const unsigned seen = visible(at, tile, i);
  const float largest = of_query[0], inverse = of_query[1], sum_r_dr = of_query[2];
  unsigned long long bits = 0;
  for (unsigned j = lane_at_hand(); j < keys; j += lanes) {
    const unsigned key = tile.first + j, quarter = key / 16 % 4;
    if (at.dropout.threshold != 0 && (j < lanes || quarter == 0)) {
      bits = random_bits(at.dropout.key_low, at.dropout.key_high, key / 64 * 16 + key % 16,
                         static_cast<unsigned>(dropout_row(at, tile, i)));
    }
    const bool stays = (bits >> (16 * quarter) & 0xffff) >= at.dropout.threshold;
    const float p = key < seen ? exp_of((s[j] - largest) * scale) * inverse : 0.0f;
    const float r = stays ? p * kept_scale : 0.0f;
    d_r[j] = key < seen ? scale * fused(p, -sum_r_dr, r * d_r[j]) : 0.0f;
    s[j] = r;
  }
}

__global__ void __launch_bounds__(key_threads, 2)
    attention_backward_keys_kernel(Attention at, unsigned keys, unsigned queries,
                                   const float* q_all, const float* kv, float* kept,
                                   const float* d_out, float* d_kv) {
  const Tile tile = tile_at_hand(at, at.key_tiles, at.num_key_tiles);
  const auto H = at.H;
  const auto D = static_cast<unsigned>(at.D);
  const unsigned n = smaller(tile.n - tile.first, keys), width = row_stride(D);
  float *k = shared_memory<float>(), *v = k + keys * width, *q = v + keys * width;
  float *d_o = q + queries * width, *S = d_o + queries * width;
  float* d_R = S + queries * row_stride(keys);
  const std::size_t column = blockIdx.y * at.D;
  const std::size_t key_place = (tile.first_key + tile.first) * 2 * H + column;
  bring_rows(n, D, kv + key_place, 2 * H, k);
  bring_rows(n, D, kv + key_place + H, 2 * H, v);
  const unsigned block = at.causal ? causal_block : tile.m, across = (D + 3) / 4;
  for (unsigned chunk = 0; chunk < (n + 3) / 4 * across; chunk += key_threads) {
    // A thread has 4 neighbouring keys, and 4 columns of their gradients.
    const unsigned own = chunk + threadIdx.x, key = own / across * 4, d = own % across * 4;
    float d_k[4][4] = {}, d_v[4][4] = {};
    for (unsigned end = tile.m; end > 0;) {
      const unsigned begin = (end - 1) / block * block;
      for (unsigned first = begin; first < end; first += queries) {
        const unsigned m = smaller(end - first, queries);
        if (visible(at, tile, first + m - 1) <= tile.first) continue;
        const std::size_t place = (tile.first_query + first) * H + column;
        __syncthreads();
        bring_rows(m, D, q_all + place, H, q);
        bring_rows(m, D, d_out + place, H, d_o);
        __syncthreads();
        score_tile(m, n, D, q, d_o, k, v, S, d_R);
        __syncthreads();
        for (unsigned i = threadIdx.x / lanes; i < m; i += key_threads / lanes) {
          score_gradient(at, tile, first + i, n, kept_of(at, tile, first + i, kept),
                         S + i * row_stride(n), d_R + i * row_stride(n));
        }
        __syncthreads();
        if (key >= n) continue;
        for (unsigned i = 0; i < m; ++i) {
          float weights[4], values[4];
          take_four(S + i * row_stride(n) + key, weights), take_four(d_o + i * width + d, values);
          add_outer_product(weights, values, d_v);
          take_four(d_R + i * row_stride(n) + key, weights), take_four(q + i * width + d, values);
          add_outer_product(weights, values, d_k);
        }
      }
      end = begin;
    }
    BERT4REC_UNROLL
    for (unsigned r = 0; r < 4; ++r) {
      BERT4REC_UNROLL
      for (unsigned e = 0; e < 4; ++e) {
        if (key + r >= n || d + e >= D) continue;
        const std::size_t to = key_place + std::size_t{key + r} * 2 * H + d + e;
        d_kv[to] = d_k[r][e], d_kv[to + H] = d_v[r][e];
      }
    }
  }
}

// ---- Losses ------------------------------------------------------------------------------------

// Of a place, by its half warp: all lanes have the loss.
__device__ void record(const PlaceResults& results, std::size_t i, double loss, Counts counts) {
  if (lane_at_hand() != 0) return;
  results.losses[i] = loss;
  results.counts[i] = counts;
  if (!(fabs(loss) <= 1.7976931348623157e308)) *results.broken = 1;
}

// How many of s[n] are above `value`, and how many equal it.
__device__ Counts count_above(const float* s, std::size_t n, float value) {
  unsigned better = 0, ties = 0;
  for (std::size_t j = lane_at_hand(); j < n; j += lanes) {
    better += s[j] > value, ties += s[j] == value;
  }
  return {sum_lanes(better), sum_lanes(ties)};
}

// Over all items: a block for each place. All threads take scores and exponentials, whose order
// does not matter; that of the sum does, and half a warp adds it up.
constexpr unsigned loss_threads = 256, loss_rows = loss_threads / lanes;

struct LossParts {  // what the half warps of a block found
  float largest[loss_rows];
  unsigned better[loss_rows], ties[loss_rows];
  float sum;
};

__global__ void softmax_loss_kernel(std::size_t n, const std::uint32_t* targets,
                                    const float* weights, float scale, float* s,
                                    PlaceResults results) {
  LossParts& parts = *shared_memory<LossParts>();
  const std::size_t i = blockIdx.x, target = targets[i];
  const unsigned thread = threadIdx.x;
  s += i * n;
  const float of_target = s[target];
  unsigned better = 0, ties = 0;
  float largest = minus_infinity();
  for (std::size_t j = thread; j < n; j += loss_threads) {
    const float score = s[j];
    better += score > of_target, ties += score == of_target;
    largest = largest < score ? score : largest;
  }
  better = sum_lanes(better), ties = sum_lanes(ties), largest = largest_of_lanes(largest);
  const unsigned own = thread / lanes;
  parts.largest[own] = largest, parts.better[own] = better, parts.ties[own] = ties;
  __syncthreads();
  better = 0, ties = 0;
  for (unsigned row = 0; row < loss_rows; ++row) {
    better += parts.better[row], ties += parts.ties[row];
    largest = largest < parts.largest[row] ? parts.largest[row] : largest;
  }
  for (std::size_t j = thread; j < n; j += loss_threads) s[j] = exp_of(s[j] - largest);
  __syncthreads();
  if (thread < lanes) {
    const std::size_t count = n > thread ? (n - thread + lanes - 1) / lanes : 0;
    const float sum =
        sum_lanes(add_in_order(count, 0.0f, [&](std::size_t j) { return s[thread + j * lanes]; }));
    if (thread == 0) {
      parts.sum = sum;
      const double loss = static_cast<double>(largest) - static_cast<double>(of_target) +
                          natural_log(static_cast<double>(sum));
      record(results, i, loss, {better, ties - 1});
    }
  }
  __syncthreads();
  if (scale == 0) return;
  const float inverse = 1 / parts.sum, factor = weights == nullptr ? scale : scale * weights[i];
  for (std::size_t j = thread; j < n; j += loss_threads) {
    float p = s[j] * inverse;
    if (j == target) p -= 1;
    s[j] = p * factor;
  }
}

// Over drawn items: half a warp for each place. s[n], of which the first is the target's, becomes
// scale (softmax(s) - [j = 0]); returns the loss.
__device__ double softmax_row(float* s, std::size_t n, float scale) {
  const float of_target = s[0];
  float largest = minus_infinity(), sum = 0;
  for (std::size_t j = lane_at_hand(); j < n; j += lanes) {
    largest = largest < s[j] ? s[j] : largest;
  }
  largest = largest_of_lanes(largest);
  __syncwarp(half_warp());  // all have read the target's score before it is written over
  for (std::size_t j = lane_at_hand(); j < n; j += lanes) {
    s[j] = exp_of(s[j] - largest);
    sum += s[j];
  }
  sum = sum_lanes(sum);
  const float inverse = 1 / sum;
  for (std::size_t j = lane_at_hand(); j < n; j += lanes) {
    const float p = s[j] * inverse;
    s[j] = (j == 0 ? p - 1 : p) * scale;
  }
  return static_cast<double>(largest) - static_cast<double>(of_target) +
         natural_log(static_cast<double>(sum));
}

// x_i of x[n] becomes 1 / (1 + exp(-x_i)); returns sum_i log(1 + exp x_i). As in the header, the
// factors 1 + exp(-|x_i|) are multiplied before the logarithm is taken, 64 to a lane.
__device__ double logistic_row(float* x, std::size_t n) {
  constexpr std::size_t block = 64 * lanes;
  double logs = 0;
  float positive = 0;
  for (std::size_t first = 0; first < n; first += block) {
    float product = 1;
    for (std::size_t i = first + lane_at_hand(); i < n && i < first + block; i += lanes) {
      const float e = exp_of(-fabsf(x[i])), factor = 1 + e;
      if (x[i] > 0) positive += x[i];
      product *= factor;
      x[i] = (x[i] < 0 ? e : 1.0f) / factor;
    }
    const double log_of_lane = natural_log(static_cast<double>(product));
    for (unsigned lane = 0; lane < lanes; ++lane) {
      logs += __shfl_sync(half_warp(), log_of_lane, static_cast<int>(lane), lanes_wide);
    }
  }
  return static_cast<double>(sum_lanes(positive)) + logs;
}

// The loss of gbce from s[1 + K], of which the first is the target's, which become the gradient:
// logistic_loss() of the header.
__device__ double logistic_loss_row(float* s, std::size_t K, double beta) {
  const unsigned lane = lane_at_hand();
  __syncwarp(half_warp());
  if (lane == 0) s[0] = -s[0];
  __syncwarp(half_warp());
  const double target_loss = beta * logistic_row(s, 1);
  const double loss = target_loss + logistic_row(s + 1, K);
  __syncwarp(half_warp());
  if (lane == 0) s[0] *= -static_cast<float>(beta);
  __syncwarp(half_warp());
  const float share = 1.0f / static_cast<float>(K + 1);
  for (std::size_t j = lane; j < K + 1; j += lanes) s[j] *= share;
  return loss / static_cast<double>(K + 1);
}

__global__ void drawn_loss_kernel(DrawnLoss loss, std::size_t M, std::size_t K, unsigned H,
                                  const float* vectors, const float* w, const float* b, float* s,
                                  float* d_target, PlaceResults results) {
  const std::size_t i = row_at_hand();
  if (i >= M) return;
  const unsigned lane = lane_at_hand();
  const std::uint32_t target = loss.targets[i];
  const float *vector = vectors + i * H, *of_target = w + std::size_t{target} * H;
  s += i * (K + 1);
  float sum = 0;
  for (unsigned d = lane; d < H; d += lanes) sum = fused(vector[d], of_target[d], sum);
  const float score = sum_lanes(sum) + b[target];
  if (lane == 0) s[0] = score;
  for (std::size_t j = lane; j < K; j += lanes) {
    if (loss.negatives[j] == target) s[1 + j] = minus_infinity();
  }
  const Counts counts = count_above(s + 1, K, score);
  if (loss.softmax) {
    for (std::size_t j = lane; j < K; j += lanes) s[1 + j] -= loss.log_expected[j];
  }
  __syncwarp(half_warp());  // the functions below share the row out anew
  double value;
  if (loss.softmax) {
    value = softmax_row(s, K + 1, loss.scale);
  } else {
    for (std::size_t j = lane; j < K + 1; j += lanes) s[j] -= loss.balance;
    value = logistic_loss_row(s, K, loss.beta);
    for (std::size_t j = lane; j < K + 1; j += lanes) s[j] *= loss.scale;
  }
  record(results, i, value, counts);
  if (lane == 0) d_target[i] = s[0];
}

__global__ void add_scaled_gathered_kernel(std::size_t rows, unsigned H,
                                           const std::uint32_t* places, const float* factors,
                                           const float* from, float* to) {
  const std::size_t t = row_at_hand();
  if (t >= rows) return;
  const float* row = from + std::size_t{places[t]} * H;
  for (unsigned i = lane_at_hand(); i < H; i += lanes) {
    to[t * H + i] = fused(factors[t], row[i], to[t * H + i]);
  }
}

struct Scaled {
  float factor, value;
};
__device__ float add_scaled(float sum, Scaled term) { return fused(term.factor, term.value, sum); }

__global__ void add_scaled_rows_kernel(Sorted sorted, std::size_t H, const float* factors,
                                       const float* from, float* out) {
  const std::size_t j = column_at_hand();
  if (j >= H) return;
  float* to = out + std::size_t{sorted.ids[blockIdx.x]} * H + j;
  const std::uint32_t first = sorted.begins[blockIdx.x];
  *to = add_in_order(
      sorted.begins[blockIdx.x + 1] - first, *to,
      [&](std::size_t i) {
        const std::size_t place = sorted.places[first + i];
        return Scaled{factors[place], from[place * H + j]};
      },
      add_scaled);
}

// ---- The best items ----------------------------------------------------------------------------

constexpr unsigned search_threads = 256;
constexpr std::size_t search_part = 4096;  // items that one block looks through

__device__ bool is_among(const std::uint32_t* items, std::uint32_t count, std::uint32_t item) {
  std::uint32_t low = 0, high = count;
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (items[middle] < item)
      low = middle + 1;
    else
      high = middle;
  }
  return low < count && items[low] == item;
}

// Whether a score comes before another: a higher one, or of the same the lower item.
__device__ bool is_better(float score, std::uint32_t item, float other, std::uint32_t other_item) {
  if (item == no_item || other_item == no_item) return other_item == no_item && item != no_item;
  return score > other || (score == other && item < other_item);
}

// Scores of a row, or of a part of it: place i has s[i], of item items[i] or, if that is null, of
// first_item + i.
struct ScoredItems {
  const float* s;
  const std::uint32_t* items;
  std::uint32_t first_item;
  std::size_t size;
};

// A block finds one item after the other: the best of those behind the one before that are allowed
// and not in known[num_known].
__device__ void find_best(const ScoredItems& among, const std::uint32_t* known,
                          std::uint32_t num_known, const std::uint32_t* allowed, std::size_t count,
                          std::uint32_t* items, float* values) {
  float* best = shared_memory<float>();  // [threads], and the items they belong to
  auto* best_item = reinterpret_cast<std::uint32_t*>(best + search_threads);
  const unsigned thread = threadIdx.x;
  float last = 0;
  std::uint32_t last_item = no_item;
  for (std::size_t k = 0; k < count; ++k) {
    float value = 0;
    std::uint32_t item = no_item;
    for (std::size_t at = thread; at < among.size; at += search_threads) {
      const std::uint32_t j = among.items == nullptr
                                  ? among.first_item + static_cast<std::uint32_t>(at)
                                  : among.items[at];
      if (k > 0 && !is_better(last, last_item, among.s[at], j)) continue;
      if (!is_better(among.s[at], j, value, item)) continue;
      if (allowed != nullptr && allowed[j] == 0) continue;
      if (!is_among(known, num_known, j)) value = among.s[at], item = j;
    }
    best[thread] = value, best_item[thread] = item;
    for (unsigned half = search_threads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (thread >= half) continue;
      if (!is_better(best[thread + half], best_item[thread + half], best[thread],
                     best_item[thread])) {
        continue;
      }
      best[thread] = best[thread + half], best_item[thread] = best_item[thread + half];
    }
    __syncthreads();
    last = best[0], last_item = best_item[0];
    if (thread == 0) items[k] = last_item, values[k] = last;
    if (last_item == no_item) {  // there are no more, for any thread
      for (k += thread; k < count; k += search_threads) items[k] = no_item, values[k] = 0;
      return;
    }
    __syncthreads();
  }
}

// First of each part of a row, then of what was found in its parts.
__global__ void best_of_parts_kernel(std::size_t I, unsigned parts, const float* s, Seen seen,
                                     std::size_t count, std::uint32_t* items, float* values) {
  const std::size_t row = blockIdx.x / parts, first = blockIdx.x % parts * search_part;
  const std::size_t at = blockIdx.x * count;
  const std::uint32_t begin = seen.begins[row];
  find_best({s + row * I + first, nullptr, static_cast<std::uint32_t>(first),
             I - first < search_part ? I - first : search_part},
            seen.items + begin, seen.begins[row + 1] - begin, seen.allowed, count, items + at,
            values + at);
}

__global__ void best_of_found_kernel(std::size_t found, const std::uint32_t* found_items,
                                     const float* found_values, std::size_t count,
                                     std::uint32_t* items, float* values) {
  const std::size_t row = blockIdx.x;
  find_best({found_values + row * found, found_items + row * found, 0, found}, nullptr, 0, nullptr,
            count, items + row * count, values + row * count);
}

__global__ void softmax_blocks_kernel(std::size_t M, std::size_t I, std::size_t block,
                                      const float* s, BlockSum* sums) {
  const std::size_t blocks = (I + block - 1) / block, at = row_at_hand();
  if (at >= M * blocks) return;
  const std::size_t first = at % blocks * block, n = I - first < block ? I - first : block;
  s += at / blocks * I + first;
  float largest = minus_infinity(), sum = 0;
  for (std::size_t j = lane_at_hand(); j < n; j += lanes) {
    largest = largest < s[j] ? s[j] : largest;
  }
  largest = largest_of_lanes(largest);
  for (std::size_t j = lane_at_hand(); j < n; j += lanes) sum += exp_of(s[j] - largest);
  sum = sum_lanes(sum);
  if (lane_at_hand() == 0) sums[at] = {largest, sum};
}

// ---- Matching ----------------------------------------------------------------------------------

constexpr float largest_log_scale = 4.605170185988092f;

__device__ float scale_of(const CosineScale& scale) {
  if (scale.log_scale == nullptr) return scale.fixed;
  return exp_of(largest_log_scale < *scale.log_scale ? largest_log_scale : *scale.log_scale);
}

__device__ float length_of(const float* x, unsigned H) {
  float sum = 0;
  for (unsigned d = lane_at_hand(); d < H; d += lanes) sum = fused(x[d], x[d], sum);
  const float length = sqrtf(sum_lanes(sum));
  return length < 1e-8f ? 1e-8f : length;
}

__global__ void unit_rows_kernel(std::size_t rows, unsigned H, const float* x, bool scaled,
                                 CosineScale scale, float* y, float* lengths) {
  const std::size_t t = row_at_hand();
  if (t >= rows) return;
  const float length = length_of(x + t * H, H), inverse = 1 / length;
  for (unsigned d = lane_at_hand(); y != nullptr && d < H; d += lanes) {
    const float unit = x[t * H + d] * inverse;
    y[t * H + d] = scaled ? unit * scale_of(scale) : unit;
  }
  if (lengths != nullptr && lane_at_hand() == 0) lengths[t] = length;
}

// s_c = a u e_c / (|u| |e_c|): half a warp for each pair of a place and a candidate
__global__ void cosine_kernel(Candidates at) {
  const std::size_t pair = row_at_hand();
  if (pair >= at.M * at.C) return;
  const auto H = static_cast<unsigned>(at.H);
  const float *e = at.item + std::size_t{at.items[pair]} * H, *u = at.units + pair / at.C * H;
  const float length = length_of(e, H);
  float sum = 0;
  for (unsigned d = lane_at_hand(); d < H; d += lanes) sum = fused(u[d], e[d], sum);
  const float cosine = sum_lanes(sum) / length;
  if (lane_at_hand() != 0) return;
  at.lengths[pair] = length, at.cosines[pair] = cosine, at.s[pair] = scale_of(at.scale) * cosine;
}

__global__ void matching_loss_kernel(Candidates at, float loss_scale, PlaceResults results) {
  const std::size_t i = row_at_hand();
  if (i >= at.M) return;
  float* s = at.s + i * at.C;
  const Counts counts = count_above(s + 1, at.C - 1, s[0]);
  record(results, i, logistic_loss_row(s, at.C - 1, 1.0), counts);
  for (std::size_t c = lane_at_hand(); c < at.C; c += lanes) s[c] *= loss_scale;
}

// du = a / |u| (sum_c ds_c e_c / |e_c| - (sum_c ds_c cos_c) u / |u|)
__global__ void matching_users_kernel(Candidates at, const float* user_lengths, float* du) {
  const std::size_t i = row_at_hand();
  if (i >= at.M) return;
  const float *ds = at.s + i * at.C, *cosines = at.cosines + i * at.C;
  const float a = scale_of(at.scale);
  for (std::size_t d = lane_at_hand(); d < at.H; d += lanes) {
    float sum = 0, along = 0;
    for (std::size_t c = 0; c < at.C; ++c) {
      const float* e = at.item + std::size_t{at.items[i * at.C + c]} * at.H;
      sum = fused(ds[c] / at.lengths[i * at.C + c], e[d], sum);
      along = fused(ds[c], cosines[c], along);
    }
    du[i * at.H + d] = fused(-along, at.units[i * at.H + d], sum) * (a / user_lengths[i]);
  }
}

// de += sum over its pairs of ds a / |e| (u / |u| - cos e / |e|)
__global__ void matching_items_kernel(Candidates at, Sorted sorted, float* d_item) {
  const std::size_t j = column_at_hand();
  if (j >= at.H) return;
  const std::size_t row = std::size_t{sorted.ids[blockIdx.x]} * at.H + j;
  const float a = scale_of(at.scale), e = at.item[row];
  struct Term {
    float factor, unit, along;
  };
  const std::uint32_t first = sorted.begins[blockIdx.x];
  d_item[row] = add_in_order(
      sorted.begins[blockIdx.x + 1] - first, d_item[row],
      [&](std::size_t i) {
        const std::size_t pair = sorted.places[first + i];
        const float factor = at.s[pair] * a / at.lengths[pair];
        return Term{factor, at.units[pair / at.C * at.H + j],
                    -factor * at.cosines[pair] / at.lengths[pair]};
      },
      [&](float sum, Term term) {
        return fused(term.along, e, fused(term.factor, term.unit, sum));
      });
}

// One thread, since it is one sum.
__global__ void matching_scale_kernel(Candidates at, std::size_t first, std::size_t end,
                                      float* d_log_scale) {
  const float a = scale_of(at.scale);
  const float sum = add_in_order(
      end - first, 0.0f,
      [&](std::size_t i) {
        return Scaled{at.s[first + i] * a, at.cosines[first + i]};
      },
      add_scaled);
  *d_log_scale += sum;
}

__global__ void bound_scale_kernel(const float* log_scale, float* d_log_scale) {
  if (*log_scale > largest_log_scale && *d_log_scale < 0) *d_log_scale = 0;
}

__global__ void divide_columns_kernel(std::size_t M, std::size_t I, const float* lengths,
                                      float* s) {
  const std::size_t j = place_at_hand();
  if (j >= I) return;
  const float inverse = 1 / lengths[j];
  for (std::size_t i = blockIdx.y; i < M; i += gridDim.y) s[i * I + j] *= inverse;
}

// ---- Optimizer ---------------------------------------------------------------------------------

// A block for each part. It brings 256 numbers of every lane at a time to shared memory, the next
// ones on their way meanwhile, and half a warp adds them up.
constexpr unsigned square_threads = 256, square_chunk = lanes * 256;

__global__ void sum_of_squares_kernel(std::size_t n, const float* g, float* squares) {
  constexpr unsigned each = square_chunk / square_threads;
  const std::size_t part = blockIdx.x, block = (n + norm_parts - 1) / norm_parts;
  const std::size_t begin = part * block < n ? part * block : n;
  const std::size_t end = begin + block < n ? begin + block : n;
  float values[each];
  const auto fetch = [&](std::size_t first) {
    const float* from = g + first + threadIdx.x;
    if (first + square_chunk <= end) {
      BERT4REC_UNROLL
      for (unsigned e = 0; e < each; ++e) values[e] = from[e * square_threads];
    } else {
      BERT4REC_UNROLL
      for (unsigned e = 0; e < each; ++e) {
        if (first + threadIdx.x + e * square_threads < end) values[e] = from[e * square_threads];
      }
    }
  };
  fetch(begin);
  float sum = 0;
  unsigned turn = 0;
  for (std::size_t first = begin; first < end; first += square_chunk, turn ^= 1u) {
    float* chunk = shared_memory<float>() + turn * square_chunk;
    BERT4REC_UNROLL
    for (unsigned e = 0; e < each; ++e) chunk[threadIdx.x + e * square_threads] = values[e];
    __syncthreads();
    fetch(first + square_chunk);
    if (threadIdx.x >= lanes) continue;
    const unsigned size =
        end - first < square_chunk ? static_cast<unsigned>(end - first) : square_chunk;
    BERT4REC_UNROLL_16
    for (unsigned i = threadIdx.x; i < size; i += lanes) sum = fused(chunk[i], chunk[i], sum);
  }
  if (threadIdx.x >= lanes) return;
  sum = sum_lanes(sum);
  if (threadIdx.x == 0) squares[part] = sum;
}

__global__ void decide_kernel(std::size_t ranges, const float* squares, std::size_t rows,
                              const double* row_squares, double clip_norm,
                              const float* loss_of_ranks, Decision* decision) {
  constexpr double largest = 1.7976931348623157e308;
  if (loss_of_ranks != nullptr) {
    const double loss = double{loss_of_ranks[0]} + double{loss_of_ranks[1]};
    if (!(fabs(loss) <= largest)) decision->broken |= 1u;
  }
  double sum = 0;
  for (std::size_t range = 0; range < ranges; ++range) {
    sum += add_in_order(norm_parts, 0.0, [&](std::size_t i) {
      return static_cast<double>(squares[range * norm_parts + i]);
    });
  }
  sum = add_in_order(rows, sum, [&](std::size_t i) { return row_squares[i]; });
  const double norm = sqrt(sum);
  decision->norm = norm;
  decision->gradient_scale =
      clip_norm > 0 && norm > clip_norm ? static_cast<float>(clip_norm / norm) : 1.0f;
  if (!(norm <= largest)) decision->broken |= 2u;
}

// m += (1 - beta1) (g - m), v += (1 - beta2) (g^2 - v),
// p = decay p - step m / (root_correction sqrt v + epsilon)
__device__ void adamw_element(float& p, float g, float& m, float& v, const AdamConstants& c,
                              float decay_factor, float gradient_scale) {
  const float gradient = gradient_scale * g;
  m = fused(gradient - m, c.rate1, m);
  v = fused(fused(gradient, gradient, -v), c.rate2, v);
  const float root = fused(sqrtf(v), c.root_correction, c.epsilon);
  p = fused(p, decay_factor, -(m * c.step_size / root));
}

__global__ void adamw_kernel(std::size_t n, float* p, const float* g, float* m, float* v,
                             const std::uint8_t* decays, AdamConstants c,
                             const Decision* decision) {
  const std::size_t i = place_at_hand();
  if (i >= n || decision->broken != 0) return;
  adamw_element(p[i], g[i], m[i], v[i], c, decays[i] != 0 ? c.decay_factor : 1.0f,
                decision->gradient_scale);
}

// Which row of the table row i of these is.
__device__ std::size_t number_of(const TableRows& rows, std::size_t i) {
  return rows.numbers == nullptr ? i : rows.numbers[i];
}

// A thread for each number of the rows: body(place in the tensor, row of the table).
template <class Body>
__device__ void at_element_of(const TableRows& rows, Body&& body) {
  const std::size_t index = place_at_hand();
  if (index >= rows.count * rows.width) return;
  const std::size_t row = number_of(rows, index / rows.width);
  body(row * rows.width + index % rows.width, row);
}

__global__ void zero_rows_kernel(TableRows rows, float* g) {
  at_element_of(rows, [&](std::size_t at, std::size_t) { g[at] = 0; });
}

__global__ void square_rows_kernel(TableRows rows, const float* g, double* squares) {
  const std::size_t i = row_at_hand();
  if (i >= rows.count) return;
  g += number_of(rows, i) * rows.width;
  float sum = 0;
  for (std::size_t j = lane_at_hand(); j < rows.width; j += lanes) sum = fused(g[j], g[j], sum);
  sum = sum_lanes(sum);
  if (lane_at_hand() == 0) squares[i] += static_cast<double>(sum);
}

__global__ void adamw_rows_kernel(TableRows rows, float* p, const float* g, float* m, float* v,
                                  AdamConstants c, const Decision* decision) {
  if (decision->broken != 0) return;
  at_element_of(rows, [&](std::size_t at, std::size_t) {
    adamw_element(p[at], g[at], m[at], v[at], c, c.decay_factor, decision->gradient_scale);
  });
}

__global__ void replay_rows_kernel(TableRows rows, float* p, float* m, float* v,
                                   const AdamConstants* steps, const std::uint32_t* taken,
                                   std::uint32_t end) {
  at_element_of(rows, [&](std::size_t at, std::size_t row) {
    float weight = p[at], first = m[at], second = v[at];
    for (std::uint32_t step = taken[row]; step < end; ++step) {
      const AdamConstants c = steps[step];
      first = fused(0 - first, c.rate1, first);
      second = fused(-second, c.rate2, second);
      const float rest = first * c.rest_factor;
      if (rest * rest <= second) first = 0;
      const float root = fused(sqrtf(second), c.root_correction, c.epsilon);
      weight = fused(weight, c.decay_factor, -(first * c.step_size / root));
    }
    p[at] = weight, m[at] = first, v[at] = second;
  });
}

__global__ void set_taken_kernel(TableRows rows, std::uint32_t end, std::uint32_t* taken) {
  const std::size_t i = place_at_hand();
  if (i < rows.count) taken[number_of(rows, i)] = end;
}

}  // namespace

// ---- What starts them --------------------------------------------------------------------------

namespace {

// Grids of kernels that give half a warp to a row or to a piece of it, a thread to a number, or a
// block to an id.
dim3 grid_of_rows(std::size_t rows) { return dim3(blocks_for(rows, rows_a_block)); }
dim3 grid_of_pieces(std::size_t rows, std::size_t n) {
  return grid_of_rows(rows * blocks_for(n, piece_size));
}
dim3 grid_of_numbers(std::size_t n) { return dim3(blocks_for(n, flat_threads)); }
dim3 grid_of_ids(std::size_t ids, std::size_t columns) {
  return dim3(static_cast<unsigned>(ids), blocks_for(columns, column_threads));
}

#if !defined(__CUDACC__)
// What cuBLAS is asked for below, in the order of k.
float value_of(std::uint16_t half, bool bfloat) {
  if (bfloat) return __uint_as_float(static_cast<unsigned>(half) << 16);
  const unsigned exponent = half >> 10 & 31u, fraction = half & 1023u;
  const float size = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                     : exponent == 31 ? (fraction == 0 ? HUGE_VALF : NAN)
                                      : std::ldexp(static_cast<float>(1024 + fraction),
                                                   static_cast<int>(exponent) - 25);
  return (half & 0x8000u) != 0 ? -size : size;
}
#endif

// Numbers between the rows of an operand with so many columns.
constexpr std::size_t half_stride(std::size_t cols) { return (cols + 7) / 8 * 8; }

// C[m,n] = alpha A B + beta C, where beta is 1 if `add` and else 0. A stands as [m,k] or, if it is
// transposed, as [k,m]; B as [k,n] or [n,k].
void multiply_halves(Device& device, std::size_t m, std::size_t n, std::size_t k, bool a_transposed,
                     bool b_transposed, bool add, float* c, std::size_t c_row) {
  const Stream& stream = device.stream();
  const std::uint16_t *a = stream.operands[0], *b = stream.operands[1];
  const bool scaled = !device.has_bfloat();
  const float *alpha = stream.scales + (scaled ? 2 : 5), *beta = stream.scales + (scaled ? 3
                                                                                  : add  ? 5
                                                                                         : 4);
  const std::size_t a_row = half_stride(a_transposed ? m : k);
  const std::size_t b_row = half_stride(b_transposed ? k : n);
#if defined(__CUDACC__)
  // cuBLAS counts along columns, so it sees A, B and C transposed: C^T = B^T A^T.
  const cudaDataType_t type = device.has_bfloat() ? CUDA_R_16BF : CUDA_R_16F;
  const auto size = [](std::size_t x) { return static_cast<int>(x); };
  const cublasStatus_t status =
      Blas::instance().multiply(stream.blas, b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                                a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, size(n), size(m), size(k),
                                alpha, b, type, size(b_row), a, type, size(a_row), beta, c,
                                CUDA_R_32F, size(c_row), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail_on_device("cuBLAS: a product failed with status " + std::to_string(status));
  }
#else
  const bool bfloat = device.has_bfloat();
  for (std::size_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      float sum = 0;
      for (std::size_t l = 0; l < k; ++l) {
        sum = __fmaf_rn(value_of(a[a_transposed ? l * a_row + i : i * a_row + l], bfloat),
                        value_of(b[b_transposed ? j * b_row + l : l * b_row + j], bfloat), sum);
      }
      float& to = c[i * c_row + j];
      to = *beta == 0 ? *alpha * sum : *alpha * sum + *beta * to;
    }
  }
#endif
}

// Operand `index` of a product, rounded; returns whether it is transposed: col != 1.
bool round_operand(Device& device, int index, std::size_t rows, std::size_t cols, const float* data,
                   std::size_t row, std::size_t col) {
  Stream& stream = device.stream();
  const bool transposed = col != 1;
  const Operand from = transposed ? Operand{data, cols, rows, col} : Operand{data, rows, cols, row};
  const std::size_t stride = half_stride(from.cols), count = from.rows * stride;
  if (stream.sizes[index] < count) {
    release(stream.operands[index]);
    stream.operands[index] = nullptr, stream.sizes[index] = 0;
    stream.operands[index] =
        static_cast<std::uint16_t*>(allocate(count * sizeof(std::uint16_t), "products"));
    stream.sizes[index] = count;
  }
  float* largest = stream.scales + index;
  if (!device.has_bfloat()) {
    const std::size_t most = 16 * std::size_t{device.processors()};
    const dim3 grid(static_cast<unsigned>(from.rows < most ? from.rows : most));
    fill_zeros(device, largest, sizeof(float));
    launch(device, "largest", largest_kernel, grid, operand_threads,
           operand_threads * sizeof(unsigned), from, reinterpret_cast<unsigned*>(largest));
  }
  launch(device, "to_half", to_half_kernel, grid_of_pieces(from.rows, from.cols), row_threads, 0,
         from, device.has_bfloat(), largest, stream.operands[index], stride);
  return transposed;
}

}  // namespace

void multiply(Device& device, std::size_t m, std::size_t n, std::size_t k, const float* a,
              std::size_t a_row, std::size_t a_col, const float* b, std::size_t b_row,
              std::size_t b_col, const float* start, std::size_t start_row, float* c,
              std::size_t c_row) {
  if (m == 0 || n == 0) return;
  if (device.products() == Products::half && k > 0) {
    const bool a_transposed = round_operand(device, 0, m, k, a, a_row, a_col);
    const bool b_transposed = round_operand(device, 1, k, n, b, b_row, b_col);
    if (start != nullptr && start != c) {
      launch(device, "fill_rows", fill_rows_kernel, dim3(blocks_for(m * n, flat_threads)),
             flat_threads, 0, m, n, start, c, c_row);
    }
    if (!device.has_bfloat()) {
      launch(device, "factors", factors_kernel, dim3(1), 1, 0, start == nullptr ? 0.0f : 1.0f,
             device.stream().scales);
    }
    return multiply_halves(device, m, n, k, a_transposed, b_transposed, start != nullptr, c, c_row);
  }
  const auto with = [&](auto shape, bool even_if_few) {
    using Shape = decltype(shape);
    const std::size_t tiles =
        std::size_t{blocks_for(m, Shape::width)} * blocks_for(n, Shape::width);
    if (tiles < device.processors() && !even_if_few) return false;
    launch(device, "multiply", multiply_kernel<Shape>, dim3(static_cast<unsigned>(tiles)),
           Shape::side * Shape::side, Shape::shared, m, n, k, Matrix{a, a_row, a_col},
           Matrix{b, b_col, b_row}, start, start_row, c, c_row);
    return true;
  };
  // A large tile reads shared memory less often; a small one leaves no multiprocessor idle.
  with(TileShape<16, 8, 8>(), false) || with(TileShape<16, 4, 16>(), false) ||
      with(TileShape<8, 4, 32>(), false) || with(TileShape<8, 2, 64>(), false) ||
      with(TileShape<8, 1, 128>(), true);
}

void add_columns(Device& device, std::size_t N, std::size_t width, const float* dy,
                 std::size_t stride, float* out) {
  launch(device, "add_blocks", add_blocks_kernel, dim3(blocks_for(width, column_threads)),
         column_threads * column_fetchers, 2 * column_chunk * column_threads * sizeof(float), N,
         width, dy, stride, out);
}

void add_columns(Device& device, const Blocks& blocks, std::size_t width, const float* dy,
                 float* partial, float* out) {
  launch(device, "column_sums", column_sums_kernel,
         dim3(static_cast<unsigned>(blocks.count), blocks_for(width, column_threads)),
         column_threads, 0, blocks, width, dy, partial);
  add_columns(device, blocks.count, width, partial, width, out);
}

void normalize(Device& device, std::size_t N, std::size_t H, const float* x, const float* gain,
               const float* bias, float epsilon, float* y, Statistics* statistics) {
  launch(device, "normalize", normalize_kernel, dim3(blocks_for(N, rows_a_block)), row_threads, 0,
         N, static_cast<unsigned>(H), x, gain, bias, epsilon, y, statistics);
}

void add_and_normalize(Device& device, std::size_t N, std::size_t H, std::size_t first_row,
                       Dropout dropout, const float* x, float* f, const float* gain,
                       const float* bias, float epsilon, float* y, Statistics* statistics) {
  launch(device, "add_and_normalize", add_and_normalize_kernel, dim3(blocks_for(N, rows_a_block)),
         row_threads, 0, N, static_cast<unsigned>(H), first_row, dropout, x, f, gain, bias, epsilon,
         y, statistics);
}

void normalize_parameters(Device& device, const Blocks& blocks, std::size_t H, const float* x,
                          const Statistics* statistics, const float* dy, float* partial,
                          float* dgain, float* dbias) {
  launch(device, "normalize_parameters", normalize_parameters_kernel,
         dim3(static_cast<unsigned>(blocks.count), blocks_for(H, column_threads)), column_threads,
         0, blocks, H, x, statistics, dy, partial);
  add_columns(device, blocks.count, H, partial, 2 * H, dgain);
  add_columns(device, blocks.count, H, partial + H, 2 * H, dbias);
}

void normalize_backward(Device& device, std::size_t N, std::size_t H, std::size_t first_row,
                        Dropout dropout, const float* x, const Statistics* statistics,
                        const float* gain, float* dy, float* df) {
  launch(device, "normalize_backward", normalize_backward_kernel, dim3(blocks_for(N, rows_a_block)),
         row_threads, 0, N, static_cast<unsigned>(H), first_row, dropout, x, statistics, gain, dy,
         df);
}

void dropout(Device& device, std::size_t N, std::size_t H, std::size_t first_row, Dropout dropout,
             const float* x, float* y) {
  launch(device, "dropout", dropout_kernel, grid_of_pieces(N, H), row_threads, 0, N,
         static_cast<unsigned>(H), first_row, dropout, x, y);
}

void gelu(Device& device, std::size_t N, std::size_t width, std::size_t first_row, Dropout dropout,
          const float* u, float* h) {
  launch(device, "gelu", gelu_kernel, grid_of_pieces(N, width), row_threads, 0, N,
         static_cast<unsigned>(width), first_row, dropout, u, h);
}

void gelu_backward(Device& device, std::size_t N, std::size_t width, std::size_t first_row,
                   Dropout dropout, const float* u, float* dh) {
  launch(device, "gelu_backward", gelu_backward_kernel, grid_of_pieces(N, width), row_threads, 0, N,
         static_cast<unsigned>(width), first_row, dropout, u, dh);
}

void tanh(Device& device, std::size_t n, const float* u, float* y) {
  launch(device, "tanh", tanh_kernel, dim3(blocks_for(n, flat_threads)), flat_threads, 0, n, u, y);
}

void tanh_backward(Device& device, std::size_t n, const float* y, float* dy) {
  launch(device, "tanh_backward", tanh_backward_kernel, dim3(blocks_for(n, flat_threads)),
         flat_threads, 0, n, y, dy);
}

void embed(Device& device, std::size_t N, std::size_t H, const Embedding& of, float* e) {
  launch(device, "embed", embed_kernel, dim3(blocks_for(N, rows_a_block)), row_threads, 0, N,
         static_cast<unsigned>(H), of, e);
}

void add_rows(Device& device, const Sorted& sorted, std::size_t H, const float* from, float* out) {
  launch(device, "add_rows", add_rows_kernel,
         dim3(static_cast<unsigned>(sorted.count), blocks_for(H, column_threads)), column_threads,
         0, sorted, H, from, out);
}

void gather(Device& device, std::size_t rows, std::size_t H, const std::uint32_t* places,
            const float* from, float* to) {
  launch(device, "gather", gather_kernel, dim3(blocks_for(rows, rows_a_block)), row_threads, 0,
         rows, static_cast<unsigned>(H), places, from, to);
}

void scatter(Device& device, std::size_t rows, std::size_t H, const std::uint32_t* places,
             const float* from, float* to) {
  launch(device, "scatter", scatter_kernel, dim3(blocks_for(rows, rows_a_block)), row_threads, 0,
         rows, static_cast<unsigned>(H), places, from, to);
}

namespace {
QueryTile query_tile_of(const Device& device, std::size_t D, std::size_t longest, bool causal) {
  QueryTile tile{D <= 32 ? 64u : D <= 64 ? 32u : 16u, most_part};  // so that all threads have sums
  if (causal && tile.queries > causal_block) tile.queries = causal_block;
  const auto bytes = [&] { return query_tile_bytes(D, longest, tile, 2); };
  // Better two blocks of 16 queries at a time than one of more.
  while (tile.queries > 16 && bytes() > device.shared_memory() / 2) tile.queries /= 2;
  while (tile.queries > 1 && bytes() > device.shared_memory()) tile.queries /= 2;
  while (tile.part_rows > 4 && bytes() > device.shared_memory()) tile.part_rows /= 2;
  return tile;
}
}  // namespace

std::size_t query_tile(const Device& device, std::size_t D, std::size_t longest, bool causal) {
  return query_tile_of(device, D, longest, causal).queries;
}

std::size_t key_tile(const Device& device, std::size_t D) {
  std::size_t keys = D <= 32 ? 128 : D <= 64 ? 64 : D <= 128 ? 32 : 16;
  while (keys > 4 && key_tile_bytes(D, keys, 16) > device.shared_memory()) keys /= 2;
  return keys;
}

void attention_forward(Device& device, const Attention& at, const float* q, const float* kv,
                       float* kept, float* out) {
  const QueryTile tile = query_tile_of(device, at.D, at.longest, at.causal);
  launch(device, "attention_forward", attention_forward_kernel,
         dim3(static_cast<unsigned>(at.num_query_tiles), static_cast<unsigned>(at.A)),
         attention_threads, query_tile_bytes(at.D, at.longest, tile, 1), at, tile, q, kv, kept,
         out);
}

void attention_backward(Device& device, const Attention& at, const float* q, const float* kv,
                        float* kept, const float* d_out, float* d_q, float* d_kv) {
  const QueryTile tile = query_tile_of(device, at.D, at.longest, at.causal);
  launch(device, "attention_backward_queries", attention_backward_queries_kernel,
         dim3(static_cast<unsigned>(at.num_query_tiles), static_cast<unsigned>(at.A)),
         attention_threads, query_tile_bytes(at.D, at.longest, tile, 2), at, tile, q, kv, kept,
         d_out, d_q);
  const std::size_t keys = key_tile(device, at.D);
  std::size_t queries = causal_block;
  while (queries > 1 && key_tile_bytes(at.D, keys, queries) > device.shared_memory()) queries /= 2;
  launch(device, "attention_backward_keys", attention_backward_keys_kernel,
         dim3(static_cast<unsigned>(at.num_key_tiles), static_cast<unsigned>(at.A)), key_threads,
         key_tile_bytes(at.D, keys, queries), at, static_cast<unsigned>(keys),
         static_cast<unsigned>(queries), q, kv, kept, d_out, d_kv);
}

void softmax_loss(Device& device, std::size_t M, std::size_t n, const std::uint32_t* targets,
                  const float* weights, float scale, float* s, const PlaceResults& results) {
  launch(device, "softmax_loss", softmax_loss_kernel, dim3(static_cast<unsigned>(M)), loss_threads,
         sizeof(LossParts), n, targets, weights, scale, s, results);
}

void drawn_loss(Device& device, const DrawnLoss& loss, std::size_t M, std::size_t K, std::size_t H,
                const float* vectors, const float* w, const float* b, float* s, float* d_target,
                const PlaceResults& results) {
  launch(device, "drawn_loss", drawn_loss_kernel, grid_of_rows(M), row_threads, 0, loss, M, K,
         static_cast<unsigned>(H), vectors, w, b, s, d_target, results);
}

void add_scaled_gathered(Device& device, std::size_t rows, std::size_t H,
                         const std::uint32_t* places, const float* factors, const float* from,
                         float* to) {
  launch(device, "add_scaled_gathered", add_scaled_gathered_kernel, grid_of_rows(rows), row_threads,
         0, rows, static_cast<unsigned>(H), places, factors, from, to);
}

void add_scaled_rows(Device& device, const Sorted& sorted, std::size_t H, const float* factors,
                     const float* from, float* out) {
  launch(device, "add_scaled_rows", add_scaled_rows_kernel, grid_of_ids(sorted.count, H),
         column_threads, 0, sorted, H, factors, from, out);
}

std::size_t search_parts(std::size_t I) { return blocks_for(I, search_part); }

void best_unseen(Device& device, std::size_t M, std::size_t I, const float* s, const Seen& seen,
                 std::size_t count, std::uint32_t* found_items, float* found_values,
                 std::uint32_t* items, float* values) {
  constexpr std::size_t shared = search_threads * (sizeof(float) + sizeof(std::uint32_t));
  const auto parts = static_cast<unsigned>(search_parts(I)), rows = static_cast<unsigned>(M);
  launch(device, "best_of_parts", best_of_parts_kernel, dim3(parts * rows), search_threads, shared,
         I, parts, s, seen, count, found_items, found_values);
  launch(device, "best_of_found", best_of_found_kernel, dim3(rows), search_threads, shared,
         parts * count, found_items, found_values, count, items, values);
}

void softmax_blocks(Device& device, std::size_t M, std::size_t I, std::size_t block, const float* s,
                    BlockSum* sums) {
  launch(device, "softmax_blocks", softmax_blocks_kernel, grid_of_rows(M * blocks_for(I, block)),
         row_threads, 0, M, I, block, s, sums);
}

void unit_rows(Device& device, std::size_t rows, std::size_t H, const float* x,
               const CosineScale* scale, float* y, float* lengths) {
  launch(device, "unit_rows", unit_rows_kernel, grid_of_rows(rows), row_threads, 0, rows,
         static_cast<unsigned>(H), x, scale != nullptr, scale == nullptr ? CosineScale{} : *scale,
         y, lengths);
}

void matching_loss(Device& device, const Candidates& at, float loss_scale,
                   const PlaceResults& results) {
  launch(device, "cosine", cosine_kernel, grid_of_rows(at.M * at.C), row_threads, 0, at);
  launch(device, "matching_loss", matching_loss_kernel, grid_of_rows(at.M), row_threads, 0, at,
         loss_scale, results);
}

void matching_users(Device& device, const Candidates& at, const float* user_lengths, float* du) {
  launch(device, "matching_users", matching_users_kernel, grid_of_rows(at.M), row_threads, 0, at,
         user_lengths, du);
}

void matching_items(Device& device, const Candidates& at, const Sorted& sorted, float* d_item) {
  launch(device, "matching_items", matching_items_kernel, grid_of_ids(sorted.count, at.H),
         column_threads, 0, at, sorted, d_item);
}

void matching_scale(Device& device, const Candidates& at, std::size_t first, std::size_t end,
                    float* d_log_scale) {
  launch(device, "matching_scale", matching_scale_kernel, dim3(1), 1, 0, at, first, end,
         d_log_scale);
}

void bound_scale(Device& device, const float* log_scale, float* d_log_scale) {
  launch(device, "bound_scale", bound_scale_kernel, dim3(1), 1, 0, log_scale, d_log_scale);
}

void divide_columns(Device& device, std::size_t M, std::size_t I, const float* lengths, float* s) {
  const dim3 grid(blocks_for(I, flat_threads), static_cast<unsigned>(M < 64 ? M : 64));
  launch(device, "divide_columns", divide_columns_kernel, grid, flat_threads, 0, M, I, lengths, s);
}

void sum_of_squares(Device& device, std::size_t n, const float* g, float* squares) {
  launch(device, "sum_of_squares", sum_of_squares_kernel, dim3(norm_parts), square_threads,
         2 * square_chunk * sizeof(float), n, g, squares);
}

void decide(Device& device, std::size_t ranges, const float* squares, std::size_t rows,
            const double* row_squares, double clip_norm, const float* loss_of_ranks,
            Decision* decision) {
  launch(device, "decide", decide_kernel, dim3(1), 1, 0, ranges, squares, rows, row_squares,
         clip_norm, loss_of_ranks, decision);
}

void adamw(Device& device, std::size_t n, float* p, const float* g, float* m, float* v,
           const std::uint8_t* decays, const AdamConstants& constants, const Decision* decision) {
  launch(device, "adamw", adamw_kernel, grid_of_numbers(n), flat_threads, 0, n, p, g, m, v, decays,
         constants, decision);
}

void zero_rows(Device& device, const TableRows& rows, float* g) {
  launch(device, "zero_rows", zero_rows_kernel, grid_of_numbers(rows.count * rows.width),
         flat_threads, 0, rows, g);
}

void square_rows(Device& device, const TableRows& rows, const float* g, double* squares) {
  launch(device, "square_rows", square_rows_kernel, grid_of_rows(rows.count), row_threads, 0, rows,
         g, squares);
}

void adamw_rows(Device& device, const TableRows& rows, float* p, const float* g, float* m, float* v,
                const AdamConstants& constants, const Decision* decision) {
  launch(device, "adamw_rows", adamw_rows_kernel, grid_of_numbers(rows.count * rows.width),
         flat_threads, 0, rows, p, g, m, v, constants, decision);
}

void replay_rows(Device& device, const TableRows& rows, float* p, float* m, float* v,
                 const AdamConstants* steps, const std::uint32_t* taken, std::uint32_t end) {
  launch(device, "replay_rows", replay_rows_kernel, grid_of_numbers(rows.count * rows.width),
         flat_threads, 0, rows, p, m, v, steps, taken, end);
}

void set_taken(Device& device, const TableRows& rows, std::uint32_t end, std::uint32_t* taken) {
  launch(device, "set_taken", set_taken_kernel, grid_of_numbers(rows.count), flat_threads, 0, rows,
         end, taken);
}

}  // namespace bert4rec::cuda
