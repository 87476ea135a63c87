// What the GPU computes: functions on device memory, each of which starts kernels of kernels.cu on
// the stream of a device and returns at once. Plain C++, so that engine.cpp (which includes the
// header) and kernels.cu (which cannot) both read it.
//
// Every function has the name, the formula and, in float32, the bits of its twin in bert4rec.hpp:
// sums run in the same order, fused where they are fused there. Shapes and letters are the
// header's; arrays of places and ids are std::uint32_t.
#ifndef BERT4REC_CUDA_KERNELS_CUH
#define BERT4REC_CUDA_KERNELS_CUH

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace bert4rec::cuda {

// ---- A device and its memory -------------------------------------------------------------------

// Called with one line where a call of CUDA fails; engine.cpp has it throw bert4rec::Error.
[[noreturn]] void fail_on_device(const std::string& message);

struct Stream;  // of kernels.cu

// How products are computed: in float32, in the order of the header and so with its bits; or by
// cuBLAS from operands rounded to half precision, with sums in float32. All else is float32 anyway.
enum class Products { exact, half };

class Device {
 public:
  Device(int index, Products products);  // the index-th GPU of this machine
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void use() const;                                  // makes it the device of this thread
  const std::string& name() const { return name_; }  // "NVIDIA H100 80GB HBM3"
  Products products() const { return products_; }
  bool has_bfloat() const { return has_bfloat_; }  // BF16, which has the exponents of float32
  // Of Products::half: what its bits depend on, "BF16 products on NVIDIA H100 by cuBLAS 130100".
  const std::string& arithmetic() const { return arithmetic_; }
  std::size_t free_memory() const;                     // bytes
  std::size_t all_memory() const;                      // bytes, those in use included
  unsigned processors() const { return processors_; }  // streaming multiprocessors
  std::size_t shared_memory() const;                   // bytes a block can have at most
  void wait();                                         // until all that was started is done
  Stream& stream() { return *stream_; }
  void* cuda_stream() const;  // the same as CUDA has it, a cudaStream_t

 private:
  int index_;
  Products products_;
  std::unique_ptr<Stream> stream_;
  std::string name_, arithmetic_;
  bool has_bfloat_;
  unsigned processors_;
  std::size_t shared_memory_;
};

int device_count();                     // 0 if there is no driver
extern bool without_bfloat;             // for tests: devices are as before sm_80,
extern std::size_t most_shared_memory;  // and attention is given so much shared memory

// Device memory of the device in use; `what` for the message where there is too little.
void* allocate(std::size_t bytes, const char* what);
void release(void* memory);

// Copies on the device's stream. copy_in() has read `from` when it returns; what copy_out() writes
// is there after Device::wait().
void copy_in(Device&, void* to, const void* from, std::size_t bytes);
void copy_out(Device&, void* to, const void* from, std::size_t bytes);
void copy(Device&, void* to, const void* from, std::size_t bytes);
void fill_zeros(Device&, void* to, std::size_t bytes);

// ---- What kernels take -------------------------------------------------------------------------

struct Statistics {
  float mean, inverse_deviation;  // detail::RowStatistics<float>
};

struct Dropout {
  std::uint32_t key_low = 0, key_high = 0, threshold = 0;  // 0: off
};

// Sums over rows are made of the sums of blocks: block b has rows begins[b] ... begins[b + 1] - 1.
struct Blocks {
  const std::uint32_t* begins;  // [count + 1]
  std::size_t count;
};

// Places sorted by id, those of one id in ascending order: id i of `count` is ids[i], and its
// places are places[begins[i]] ... places[begins[i + 1] - 1].
struct Sorted {
  const std::uint32_t *ids, *begins, *places;
  std::size_t count;
};

// ---- Layers (chapter 10) -----------------------------------------------------------------------

// C[m,n] = start + A[m,k] B[k,n], in ascending k for each element: Kernels::multiply. With
// Products::half, start must be C itself, nullptr, or a bias (start_row 0).
void multiply(Device&, std::size_t m, std::size_t n, std::size_t k, const float* a,
              std::size_t a_row, std::size_t a_col, const float* b, std::size_t b_row,
              std::size_t b_col, const float* start, std::size_t start_row, float* c,
              std::size_t c_row);

// out[j] += sum_t dy[t,j], t < N; by blocks, for which `partial` has room for [blocks,width] ...
void add_columns(Device&, const Blocks&, std::size_t width, const float* dy, float* partial,
                 float* out);
// ... or without, row after row; rows are `stride` apart.
void add_columns(Device&, std::size_t N, std::size_t width, const float* dy, std::size_t stride,
                 float* out);

void normalize(Device&, std::size_t N, std::size_t H, const float* x, const float* gain,
               const float* bias, float epsilon, float* y, Statistics* statistics);
// f = x + dropout(f), y = LayerNorm(f)
void add_and_normalize(Device&, std::size_t N, std::size_t H, std::size_t first_row, Dropout,
                       const float* x, float* f, const float* gain, const float* bias,
                       float epsilon, float* y, Statistics* statistics);
// dgain += sum_t dy_t z_t, dbias += sum_t dy_t; partial has room for [blocks,2,H].
void normalize_parameters(Device&, const Blocks&, std::size_t H, const float* x,
                          const Statistics* statistics, const float* dy, float* partial,
                          float* dgain, float* dbias);
// dy becomes dx, and df, if it is asked for, dropout(dx).
void normalize_backward(Device&, std::size_t N, std::size_t H, std::size_t first_row, Dropout,
                        const float* x, const Statistics* statistics, const float* gain, float* dy,
                        float* df);
void dropout(Device&, std::size_t N, std::size_t H, std::size_t first_row, Dropout, const float* x,
             float* y);
void gelu(Device&, std::size_t N, std::size_t width, std::size_t first_row, Dropout, const float* u,
          float* h);  // h = dropout(gelu(u))
void gelu_backward(Device&, std::size_t N, std::size_t width, std::size_t first_row, Dropout,
                   const float* u, float* dh);
void tanh(Device&, std::size_t n, const float* u, float* y);
void tanh_backward(Device&, std::size_t n, const float* y, float* dy);

// Of each of N tokens a row of a table; rows == nullptr: the first, table == nullptr: none.
struct Lookup {
  const float* table;
  const std::uint32_t* rows;  // [N]
};
struct Embedding {
  Lookup item, position, segment, bigram;
};
void embed(Device&, std::size_t N, std::size_t H, const Embedding&, float* e);
// out[id] += sum of from[place] over its places, in their order.
void add_rows(Device&, const Sorted&, std::size_t H, const float* from, float* out);
void gather(Device&, std::size_t rows, std::size_t H, const std::uint32_t* places,
            const float* from, float* to);
void scatter(Device&, std::size_t rows, std::size_t H, const std::uint32_t* places,
             const float* from, float* to);

// ---- Attention ---------------------------------------------------------------------------------
// Of rows that stand one behind the other, as AttentionHead of the header has them. What a query
// leaves from forward to backward are three numbers for each head: kept[Q,A,3], the largest score,
// 1 / the sum of softmax and, written by the backward, sum_k R_ik dR_ik with R = dropout(P).

struct Attention {
  std::size_t H, A, D;
  bool causal;
  Dropout dropout;
  const std::uint32_t* keys;         // [B + 1] begins of the rows among the tokens
  const std::uint32_t* queries;      // [B + 1] the same among the queries
  const std::uint32_t* places;       // [Q] which tokens ask; nullptr: all
  std::size_t first_query;           // of the batch: where dropout counts from
  const std::uint32_t* query_tiles;  // [2,tiles] row, first query in the row
  std::size_t num_query_tiles;       // of query_tile() queries
  const std::uint32_t* key_tiles;    // [2,tiles] row, first key in the row
  std::size_t num_key_tiles;         // of key_tile() keys
  std::size_t longest;               // tokens of the longest row
};

inline constexpr std::size_t attention_kept = 3;

// Queries, and keys, of one tile: so many that what a block holds of a row fits.
std::size_t query_tile(const Device&, std::size_t D, std::size_t longest, bool causal);
std::size_t key_tile(const Device&, std::size_t D);

void attention_forward(Device&, const Attention&, const float* q, const float* kv, float* kept,
                       float* out);
void attention_backward(Device&, const Attention&, const float* q, const float* kv, float* kept,
                        const float* d_out, float* d_q, float* d_kv);

// ---- Losses (chapter 12) -----------------------------------------------------------------------

struct Counts {
  std::uint32_t better, ties;  // among the candidates of a place; the target itself is none
};

// What a loss leaves of each place: the loss, without its weight, and counts. `broken` becomes 1
// if a loss is not finite.
struct PlaceResults {
  double* losses;
  Counts* counts;
  std::uint32_t* broken;
};

// Of places i < M from their scores s[M,n], which become
// scale weights_i (softmax(s_i) - [j = target_i]), or are lost if scale is 0.
void softmax_loss(Device&, std::size_t M, std::size_t n, const std::uint32_t* targets,
                  const float* weights, float scale, float* s, const PlaceResults&);

// The losses over drawn items (ItemHead::place_loss). s[M,1+K] holds the scores of the K drawn
// items from column 1 on; column 0 receives vector_i w_target + b_target; then all become the
// gradient, and d_target[M] that of the target once more.
struct DrawnLoss {
  bool softmax;  // sampled softmax; else gbce, with its beta and log(K / beta)
  double beta;
  float balance;
  const std::uint32_t *targets, *negatives;
  const float* log_expected;
  float scale;
};
void drawn_loss(Device&, const DrawnLoss&, std::size_t M, std::size_t K, std::size_t H,
                const float* vectors, const float* w, const float* b, float* s, float* d_target,
                const PlaceResults&);
// to_i = fused(factors_i, from[places_i], to_i)
void add_scaled_gathered(Device&, std::size_t rows, std::size_t H, const std::uint32_t* places,
                         const float* factors, const float* from, float* to);
// out[id] = fused(factors_i, from_i, out[id]) for its places i, in their order
void add_scaled_rows(Device&, const Sorted&, std::size_t H, const float* factors, const float* from,
                     float* out);

// ---- The best items (chapter 16) ---------------------------------------------------------------

// What rows have seen: items[begins[i]] ... items[begins[i + 1] - 1], ascending; and allowed[I],
// not 0 for what may be among the best of any row, or null: all items.
struct Seen {
  const std::uint32_t *begins, *items, *allowed;
};
inline constexpr std::uint32_t no_item = 0xffffffff;

// For each row of s[M,I] its `count` best items that are allowed and not seen, the best first, with
// their scores: items[M,count], values[M,count]; no_item where there are no more. found_items and
// found_values have room for those of search_parts(I) parts of each row, [M,parts,count].
std::size_t search_parts(std::size_t I);
void best_unseen(Device&, std::size_t M, std::size_t I, const float* s, const Seen&,
                 std::size_t count, std::uint32_t* found_items, float* found_values,
                 std::uint32_t* items, float* values);
// sums[M,blocks]: of each `block` scores the largest, and the sum of exp(s - largest).
struct BlockSum {
  float largest, sum;
};
void softmax_blocks(Device&, std::size_t M, std::size_t I, std::size_t block, const float* s,
                    BlockSum* sums);

// ---- Matching (chapter 13) ---------------------------------------------------------------------

// The scale of cosines: exp(log_scale), within its bound, or `fixed` if log_scale is nullptr.
struct CosineScale {
  const float* log_scale;
  float fixed;
};

// y_i = x_i / |x_i|, times the scale if there is one, and lengths[rows] |x_i|; either if asked for.
void unit_rows(Device&, std::size_t rows, std::size_t H, const float* x, const CosineScale* scale,
               float* y, float* lengths);
// Of M places with C candidates each, items[M,C]: cosines and |e| [M,C], and s[M,C], first the
// scores and then their gradient.
struct Candidates {
  std::size_t M, C, H;
  const std::uint32_t* items;
  const float *units, *item;  // [M,H] u / |u|; [I,H] e
  CosineScale scale;
  float *s, *cosines, *lengths;
};
void matching_loss(Device&, const Candidates&, float loss_scale, const PlaceResults&);
// du[M,H], from |u| [M]
void matching_users(Device&, const Candidates&, const float* user_lengths, float* du);
// d_item of the pairs place * C + candidate of `sorted`; d_log_scale of pairs first ... end - 1.
void matching_items(Device&, const Candidates&, const Sorted&, float* d_item);
void matching_scale(Device&, const Candidates&, std::size_t first, std::size_t end,
                    float* d_log_scale);
// d_log_scale of the whole batch becomes 0 where it would raise a log_scale beyond its bound.
void bound_scale(Device&, const float* log_scale, float* d_log_scale);
// s[M,I] *= 1 / |e_j|
void divide_columns(Device&, std::size_t M, std::size_t I, const float* lengths, float* s);

// ---- Optimizer (chapter 15) --------------------------------------------------------------------

struct AdamConstants {  // detail::AdamConstants<float>
  float rate1, rate2, epsilon, step_size, root_correction, decay_factor, gradient_scale,
      rest_factor;
};

// What the device decides about a step: written by decide(), read by the updates and the host.
struct Decision {
  double norm;           // of the gradient
  float gradient_scale;  // of clipping
  std::uint32_t broken;  // 1: a loss is not finite, 2: the norm; then nothing is updated
};

inline constexpr std::size_t norm_parts = 64;

// squares[norm_parts] of g[n], as AdamW::sum_of_squares() cuts them
void sum_of_squares(Device&, std::size_t n, const float* g, float* squares);

// norm = sqrt(sum over ranges of (sum of squares[ranges,norm_parts]) + sum of row_squares[rows]).
// loss_of_ranks[2]: the sum of losses of all ranks in two parts; nullptr: there are no others.
void decide(Device&, std::size_t ranges, const float* squares, std::size_t rows,
            const double* row_squares, double clip_norm, const float* loss_of_ranks, Decision*);

// Where decays[i] is 0 the decay factor is 1.
void adamw(Device&, std::size_t n, float* p, const float* g, float* m, float* v,
           const std::uint8_t* decays, const AdamConstants&, const Decision*);

// Some rows of a table with `width` numbers a row; numbers == nullptr: the first ones.
struct TableRows {
  const std::uint32_t* numbers;
  std::size_t count, width;
};
void zero_rows(Device&, const TableRows&, float* g);
void square_rows(Device&, const TableRows&, const float* g,
                 double* squares);  // squares_i += |g_i|^2
void adamw_rows(Device&, const TableRows&, float* p, const float* g, float* m, float* v,
                const AdamConstants&, const Decision*);
// The rows take steps taken[row] ... end - 1 without gradient (adamw_replay) ...
void replay_rows(Device&, const TableRows&, float* p, float* m, float* v,
                 const AdamConstants* steps, const std::uint32_t* taken, std::uint32_t end);
// ... and have them.
void set_taken(Device&, const TableRows&, std::uint32_t end, std::uint32_t* taken);

}  // namespace bert4rec::cuda

#endif
