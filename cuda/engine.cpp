// The engine on a GPU: what the header does in chapters 10 to 16, with kernels.cuh for its inner
// loops. The encoder is the header's own, so forward and backward are written once; here stand, in
// its order, the functions that it calls, the heads, the optimizer and the engine.

#include "engine.hpp"

#include "kernels.cuh"

namespace bert4rec {

void cuda::fail_on_device(const std::string& message) { fail(message); }

namespace {

// ---- Memory ------------------------------------------------------------------------------------

// An array on the device, uninitialized.
template <class Element>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t size, const char* what = "activations") : size_(size) {
    const std::size_t factors[2] = {size, sizeof(Element)};
    memory_.reset(cuda::allocate(checked_product(factors, what), what));
  }
  Element* data() const { return static_cast<Element*>(memory_.get()); }
  std::size_t size() const { return size_; }

  // Room for `size`, if there is less; what it held is lost.
  void grow(std::size_t size, const char* what) {
    if (size_ >= size) return;
    *this = DeviceArray();  // before the new one is made
    *this = DeviceArray(size, what);
  }

 private:
  struct Release {
    void operator()(void* memory) const { cuda::release(memory); }
  };
  std::size_t size_ = 0;
  std::unique_ptr<void, Release> memory_;
};

cuda::Dropout on_device(const DropoutSite& site) {
  return {site.key.low, site.key.high, site.threshold};
}

using RowStatistics = detail::RowStatistics<float>;
static_assert(sizeof(RowStatistics) == sizeof(cuda::Statistics));
cuda::Statistics* on_device(RowStatistics* statistics) {
  return reinterpret_cast<cuda::Statistics*>(statistics);
}
const cuda::Statistics* on_device(const RowStatistics* statistics) {
  return reinterpret_cast<const cuda::Statistics*>(statistics);
}

// ---- Runs --------------------------------------------------------------------------------------
// A GPU wants more tokens at a time than a group of the header has (2,048), so it computes a run of
// groups. What depends on groups is the order of sums: those over tokens go block by block inside
// each group, and the table of items first gets what a group's loss has for it, then what its
// tokens have. So a run remembers its groups.

struct Part {
  std::size_t first_row, end_row;      // rows of the batch
  std::size_t first_token, end_token;  // of the batch or, in a run, of the run
  std::size_t first_asked, end_asked;
};

struct Run {
  RowGroup group;           // all its groups as one
  std::vector<Part> parts;  // the groups, counted from the run's first token
};

class Runs {
 public:
  explicit Runs(const EncoderConfig& config) : groups_(config) {}

  // The groups of the rows that for_each() went through.
  std::span<const Part> parts() const { return parts_; }

  // body(run) for runs of neighbouring groups of some rows, with at most so many tokens and asked
  // places if there are more groups than one.
  template <class Body>
  void for_each(const Batch& batch, Range rows, std::size_t most_tokens, std::size_t most_asked,
                Body&& body) {
    find_parts(batch, rows);
    for (std::size_t begin = 0, end; begin < parts_.size(); begin = end) {
      end = begin + 1;
      while (end < parts_.size() && parts_[end].first_row == parts_[end - 1].end_row &&
             parts_[end].end_token - parts_[begin].first_token <= most_tokens &&
             parts_[end].end_asked - parts_[begin].first_asked <= most_asked) {
        ++end;
      }
      body(run(batch, std::span(parts_).subspan(begin, end - begin)));
    }
  }

 private:
  // The groups that ask for something.
  void find_parts(const Batch& batch, Range rows) {
    parts_.clear();
    groups_.for_each(batch, rows, [&](const RowGroup& group) {
      const auto row = static_cast<std::size_t>(group.all.offsets.data() - batch.offsets.data());
      parts_.push_back({row, row + group.all.rows(), group.all.first(), group.all.offsets.back(),
                        group.asked_rows.first(), group.asked_rows.offsets.back()});
    });
  }

  Run run(const Batch& batch, std::span<const Part> parts) {
    Run run;
    const Part &front = parts.front(), &back = parts.back();
    const std::size_t token = front.first_token, N = back.end_token - token;
    const std::size_t place = front.first_asked, M = back.end_asked - place;
    for (const Part& part : parts) {
      run.parts.push_back({part.first_row, part.end_row, part.first_token - token,
                           part.end_token - token, part.first_asked - place,
                           part.end_asked - place});
    }
    asked_.clear(), asked_rows_.assign(1, place);
    for (std::size_t row = front.first_row, i = place; row < back.end_row; ++row) {
      for (; i < back.end_asked && batch.asked[i] < batch.offsets[row + 1]; ++i) {
        asked_.push_back(batch.asked[i] - token);
      }
      asked_rows_.push_back(i);
    }
    const auto part_of = [](const auto& values, std::size_t first, std::size_t size) {
      return values.empty() ? std::span(values) : std::span(values).subspan(first, size);
    };
    const std::size_t R = batch.ratio(), rows = back.end_row - front.first_row;
    RowGroup& group = run.group;
    group.tokens = part_of(batch.tokens, token, N);
    group.positions = part_of(batch.positions, token, N);
    group.segments = part_of(batch.segments, token, N);
    group.bigrams = part_of(batch.bigrams, token, N);
    group.asked = asked_;
    group.targets = part_of(batch.targets, place, M);
    group.weights = part_of(batch.weights, place, M);
    group.negatives = batch.negatives;
    group.log_expected = batch.log_expected;
    group.own_negatives = part_of(batch.own_negatives, place * R, M * R);
    group.all = {std::span(batch.offsets).subspan(front.first_row, rows + 1)};
    group.asked_rows = {asked_rows_};
    return run;
  }

  Groups groups_;
  std::vector<Part> parts_;
  std::vector<std::size_t> asked_, asked_rows_;  // of the run at hand
};

// ---- Numbers on their way to the device --------------------------------------------------------

// Collects arrays of whole numbers (and of float, by their bits) and sends them in one copy.
class Parcel {
 public:
  // Where an array will lie; a place rather than an address, since that is known after send().
  struct Place {
    std::size_t at = 0;
  };

  void clear() { numbers_.clear(); }

  template <class Range>
  Place add(const Range& range) {
    const Place place{numbers_.size()};
    for (const auto value : range) {
      if constexpr (std::is_same_v<std::remove_cv_t<decltype(value)>, float>)
        numbers_.push_back(std::bit_cast<std::uint32_t>(value));
      else
        numbers_.push_back(static_cast<std::uint32_t>(value));
    }
    return place;
  }

  void send(cuda::Device& device) {
    on_device_.grow(numbers_.size(), "a batch");
    cuda::copy_in(device, on_device_.data(), numbers_.data(),
                  numbers_.size() * sizeof(numbers_[0]));
  }

  const std::uint32_t* at(Place place) const { return on_device_.data() + place.at; }
  const float* floats_at(Place place) const { return reinterpret_cast<const float*>(at(place)); }

 private:
  std::vector<std::uint32_t> numbers_;
  DeviceArray<std::uint32_t> on_device_;
};

// Places sorted by their ids, as cuda::Sorted has them, in a Parcel.
class SortedPlaces {
 public:
  // Place i of `ids` is first + i.
  void add_to(Parcel& parcel, std::span<const std::int32_t> ids, std::size_t first) {
    sort(ids);
    distinct_.clear(), begins_.clear();
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const auto id = static_cast<std::uint32_t>(ids[order_[i]]);
      if (distinct_.empty() || distinct_.back() != id) {
        distinct_.push_back(id);
        begins_.push_back(static_cast<std::uint32_t>(i));
      }
    }
    begins_.push_back(static_cast<std::uint32_t>(order_.size()));
    for (std::uint32_t& place : order_) place += static_cast<std::uint32_t>(first);
    count_ = distinct_.size();
    ids_ = parcel.add(distinct_), at_ = parcel.add(begins_), places_ = parcel.add(order_);
  }

  cuda::Sorted in(const Parcel& parcel) const {
    return {parcel.at(ids_), parcel.at(at_), parcel.at(places_), count_};
  }

 private:
  // order_: 0 ... n - 1 by their ids, digit by digit from the last (radix sort, which is stable).
  void sort(std::span<const std::int32_t> ids) {
    constexpr unsigned bits = 11;
    constexpr std::size_t digits = std::size_t{1} << bits;
    order_.resize(ids.size()), next_.resize(ids.size());
    std::iota(order_.begin(), order_.end(), std::uint32_t{0});
    std::uint32_t all = 0;
    for (const std::int32_t id : ids) all |= static_cast<std::uint32_t>(id);
    for (unsigned shift = 0; shift < 32 && all >> shift != 0; shift += bits) {
      std::array<std::uint32_t, digits + 1> begin{};
      const auto digit = [&](std::uint32_t i) {
        return (static_cast<std::uint32_t>(ids[i]) >> shift) % digits;
      };
      for (const std::uint32_t i : order_) ++begin[digit(i) + 1];
      for (std::size_t d = 0; d < digits; ++d) begin[d + 1] += begin[d];
      for (const std::uint32_t i : order_) next_[begin[digit(i)]++] = i;
      order_.swap(next_);
    }
  }

  std::vector<std::uint32_t> order_, next_, distinct_, begins_;
  std::size_t count_ = 0;
  Parcel::Place ids_, at_, places_;
};

// ---- What layers compute with ------------------------------------------------------------------

class CudaCompute {
 public:
  template <class Element>
  using Array = DeviceArray<Element>;
  static std::size_t attention_numbers(const EncoderConfig& config) {
    return cuda::attention_kept * config.num_heads;
  }

  CudaCompute(int device, cuda::Products products, const ModelConfig& model,
              const TrainConfig& train)
      : device_(device, products),
        config_(model.encoder()),
        matching_(model.task == TaskKind::matching),
        by_groups_(matching_ || model.ties_items() || draws_negatives(train.loss)) {}

  cuda::Device& device() { return device_; }
  const cuda::Device& device() const { return device_; }

  // Before a run is computed: its numbers go to the device. `widths`: of the sums over its rows.
  void begin(const Run& run, std::span<const std::size_t> widths) {
    run_ = &run;
    const RowGroup& group = run.group;
    parcel_.clear();
    tokens_ = parcel_.add(group.tokens), positions_ = parcel_.add(group.positions);
    segments_ = parcel_.add(group.segments), bigrams_ = parcel_.add(group.bigrams);
    asked_ = parcel_.add(group.asked), targets_ = parcel_.add(group.targets);
    weights_ = parcel_.add(group.weights);
    negatives_ = parcel_.add(group.negatives), log_expected_ = parcel_.add(group.log_expected);
    by_negative_.add_to(parcel_, group.negatives, 0);
    if (matching_) add_candidates(group);
    by_position_.add_to(parcel_, group.positions, 0);
    by_segment_.add_to(parcel_, group.segments, 0);
    by_bigram_.add_to(parcel_, group.bigrams, 0);
    if (!by_groups_) by_token_.add_to(parcel_, group.tokens, 0);
    of_parts_.resize(std::max(of_parts_.size(), run.parts.size()));
    for (std::size_t i = 0; i < run.parts.size(); ++i) add_part(group, run.parts[i], of_parts_[i]);
    longest_ = 1;
    for (std::size_t row = 0; row < group.all.rows(); ++row) {
      longest_ = std::max(longest_, group.all.length(row));
    }
    all_.begin(*this, group.all, &Part::first_token, &Part::end_token, widths);
    places_.begin(*this, group.asked_rows, &Part::first_asked, &Part::end_asked, widths);
    key_tiles_ = tiles(group.all, cuda::key_tile(device_, config_.head_size()), num_key_tiles_);
    parcel_.send(device_);
    item_gradients = nullptr;
  }

  const Run& run() const { return *run_; }
  const std::uint32_t* tokens() const { return parcel_.at(tokens_); }
  const std::uint32_t* positions() const { return parcel_.at(positions_); }
  const std::uint32_t* segments() const {
    return run_->group.segments.empty() ? nullptr : parcel_.at(segments_);
  }
  const std::uint32_t* bigrams() const { return parcel_.at(bigrams_); }
  const std::uint32_t* asked() const { return parcel_.at(asked_); }
  const std::uint32_t* targets() const { return parcel_.at(targets_); }
  const float* weights() const {
    return run_->group.weights.empty() ? nullptr : parcel_.floats_at(weights_);
  }
  cuda::Sorted by_position() const { return by_position_.in(parcel_); }
  cuda::Sorted by_segment() const { return by_segment_.in(parcel_); }
  cuda::Sorted by_bigram() const { return by_bigram_.in(parcel_); }
  const std::uint32_t* negatives() const { return parcel_.at(negatives_); }
  const float* log_expected() const { return parcel_.floats_at(log_expected_); }
  cuda::Sorted by_negative() const { return by_negative_.in(parcel_); }
  // Whether the table of items gets its gradients group by group: if the loss has some for it, too.
  bool by_groups() const { return by_groups_; }
  cuda::Sorted by_token() const { return by_token_.in(parcel_); }  // if not
  // Of a group of the run.
  cuda::Sorted by_token(std::size_t part) const { return of_parts_[part].tokens.in(parcel_); }
  cuda::Sorted by_target(std::size_t part) const { return of_parts_[part].targets.in(parcel_); }
  // Of matching: items[M,C], the target and then the negatives of each place, and its pairs.
  const std::uint32_t* candidates() const { return parcel_.at(candidates_at_); }
  cuda::Sorted by_candidate(std::size_t part) const {
    return of_parts_[part].candidates.in(parcel_);
  }

  // The blocks of sums over N rows, which are the tokens of the run or its asked places (if both
  // are as many they are the same); `width` numbers are added up in each.
  cuda::Blocks blocks(std::size_t N, std::size_t width) const {
    const Rows& rows = N == run_->group.tokens.size() ? all_ : places_;
    for (const auto& [of_width, begins, count] : rows.blocks) {
      if (of_width == width) return {parcel_.at(begins), count};
    }
    fail("no blocks of ", N, " rows for sums of ", width, " numbers were prepared");
  }
  // ... and of those of LayerNorm.
  cuda::Blocks norm_blocks(std::size_t N) const { return blocks(N, 0); }

  // Room for so many numbers, until the next call.
  float* scratch(std::size_t size) {
    scratch_.grow(size, "sums");
    return scratch_.data();
  }

  cuda::Attention attention(const Queries& queries, const DropoutSite& dropout) const {
    const bool all = queries.places.empty();
    const Rows& rows = all ? all_ : places_;
    return {config_.hidden_size,      config_.num_heads,
            config_.head_size(),      config_.causal,
            on_device(dropout),       parcel_.at(all_.offsets),
            parcel_.at(rows.offsets), all ? nullptr : asked(),
            queries.rows.first(),     parcel_.at(rows.tiles),
            rows.num_tiles,           parcel_.at(key_tiles_),
            num_key_tiles_,           longest_};
  }

  // What a group's loss has for the table of items: the head sets it, and the backward of the
  // embedding calls it for each group before that group's tokens.
  std::function<void(std::size_t part)> item_gradients;

 private:
  // The tokens of a run, or its asked places.
  struct Rows {
    struct OfWidth {
      std::size_t width;
      Parcel::Place begins;
      std::size_t count;
    };
    Parcel::Place offsets, tiles;
    std::size_t num_tiles = 0;
    std::vector<OfWidth> blocks;

    void begin(CudaCompute& compute, const RowOffsets& rows, std::size_t Part::*first,
               std::size_t Part::*end, std::span<const std::size_t> widths) {
      std::vector<std::size_t>& numbers = compute.numbers_;
      numbers.clear();
      for (std::size_t row = 0; row <= rows.rows(); ++row) numbers.push_back(rows.begin(row));
      offsets = compute.parcel_.add(numbers);
      const std::size_t D = compute.config_.head_size();
      tiles = compute.tiles(
          rows, cuda::query_tile(compute.device_, D, compute.longest_, compute.config_.causal),
          num_tiles);
      blocks.clear();
      for (const std::size_t width : widths) {
        numbers.clear();
        for (const Part& part : compute.run_->parts) {
          // As add_columns() of the header: where a row is wider than the group has rows, each row
          // is added by itself.
          const std::size_t block = width <= part.*end - part.*first ? sum_block : 1;
          for (std::size_t t = part.*first; t < part.*end; t += block) numbers.push_back(t);
        }
        numbers.push_back(compute.run_->parts.back().*end);
        blocks.push_back({width, compute.parcel_.add(numbers), numbers.size() - 1});
      }
    }
  };

  struct SortedPart {
    SortedPlaces tokens, targets, candidates;
  };

  void add_part(const RowGroup& group, const Part& part, SortedPart& sorted) {
    if (!by_groups_) return;
    const std::size_t n = part.end_token - part.first_token;
    sorted.tokens.add_to(parcel_, group.tokens.subspan(part.first_token, n), part.first_token);
    const std::size_t first = part.first_asked, M = part.end_asked - first;
    if (!group.negatives.empty()) {
      sorted.targets.add_to(parcel_, group.targets.subspan(first, M), first);
    }
    if (!matching_) return;
    const std::size_t C = candidates_.size() / group.targets.size();
    sorted.candidates.add_to(parcel_, std::span(candidates_).subspan(first * C, M * C), first * C);
  }

  void add_candidates(const RowGroup& group) {
    const std::size_t M = group.targets.size(), R = group.own_negatives.size() / M;
    candidates_.clear();
    for (std::size_t i = 0; i < M; ++i) {
      candidates_.push_back(group.targets[i]);
      const auto negatives = group.own_negatives.subspan(i * R, R);
      candidates_.insert(candidates_.end(), negatives.begin(), negatives.end());
    }
    candidates_at_ = parcel_.add(candidates_);
  }

  // Rows cut into tiles: [2,count] row, and place in the row where a tile begins.
  Parcel::Place tiles(const RowOffsets& rows, std::size_t size, std::size_t& count) {
    numbers_.clear();
    std::vector<std::size_t> firsts;
    for (std::size_t row = 0; row < rows.rows(); ++row) {
      for (std::size_t first = 0; first < rows.length(row); first += size) {
        numbers_.push_back(row), firsts.push_back(first);
      }
    }
    count = firsts.size();
    numbers_.insert(numbers_.end(), firsts.begin(), firsts.end());
    return parcel_.add(numbers_);
  }

  cuda::Device device_;
  EncoderConfig config_;
  bool matching_, by_groups_;
  const Run* run_ = nullptr;
  Parcel parcel_;
  Parcel::Place tokens_, positions_, segments_, bigrams_, asked_, targets_, weights_, key_tiles_;
  Parcel::Place negatives_, log_expected_, candidates_at_;
  std::size_t num_key_tiles_ = 0, longest_ = 1;
  SortedPlaces by_token_, by_position_, by_segment_, by_bigram_, by_negative_;
  std::vector<SortedPart> of_parts_;
  std::vector<std::int32_t> candidates_;
  Rows all_, places_;
  std::vector<std::size_t> numbers_;
  DeviceArray<float> scratch_;
};

// ---- Layers (chapter 10 of the header) ---------------------------------------------------------

void dropout_rows(CudaCompute& compute, std::size_t N, std::size_t H, std::size_t first_token,
                  const DropoutSite& dropout, float* x) {
  if (dropout.threshold == 0) return;
  cuda::dropout(compute.device(), N, H, first_token, on_device(dropout), x, x);
}

// y[N,O] = x[N,I] w[O,I]^T + b[O]
void linear_forward(CudaCompute& compute, std::size_t N, std::size_t O, std::size_t I,
                    const float* x, const float* w, const float* b, float* y) {
  cuda::multiply(compute.device(), N, O, I, x, I, 1, w, 1, I, b, 0, y, O);
}

// dw += dy^T x,   db += sum_t dy_t,   dx (+)= dy w
void linear_backward(CudaCompute& compute, std::size_t N, std::size_t O, std::size_t I,
                     const float* x, const float* w, const float* dy, float* dw, float* db,
                     float* dx, bool accumulate_dx) {
  cuda::Device& device = compute.device();
  cuda::multiply(device, O, I, N, dy, 1, O, x, I, 1, dw, I, dw, I);
  const cuda::Blocks blocks = compute.blocks(N, O);
  if (blocks.count == N)  // each row is a block
    cuda::add_columns(device, N, O, dy, O, db);
  else
    cuda::add_columns(device, blocks, O, dy, compute.scratch(blocks.count * O), db);
  cuda::multiply(device, N, I, O, dy, O, 1, w, I, 1, accumulate_dx ? dx : nullptr, I, dx, I);
}

void norm_forward(CudaCompute& compute, std::size_t N, std::size_t H, const float* x,
                  const float* gain, const float* bias, double epsilon, float* y,
                  RowStatistics* statistics) {
  cuda::normalize(compute.device(), N, H, x, gain, bias, static_cast<float>(epsilon), y,
                  on_device(statistics));
}

void norm_parameters(CudaCompute& compute, std::size_t N, std::size_t H, const float* x,
                     const RowStatistics* statistics, const float* dy, float* dgain, float* dbias) {
  const cuda::Blocks blocks = compute.norm_blocks(N);
  cuda::normalize_parameters(compute.device(), blocks, H, x, on_device(statistics), dy,
                             compute.scratch(blocks.count * 2 * H), dgain, dbias);
}

void norm_backward(CudaCompute& compute, std::size_t N, std::size_t H, const float* x,
                   const RowStatistics* statistics, const float* gain, float* dy, float* dgain,
                   float* dbias) {
  norm_parameters(compute, N, H, x, statistics, dy, dgain, dbias);
  cuda::normalize_backward(compute.device(), N, H, 0, {}, x, on_device(statistics), gain, dy,
                           nullptr);
}

void residual_norm_forward(CudaCompute& compute, std::size_t N, std::size_t H,
                           std::size_t first_token, const DropoutSite& dropout, const float* x,
                           float* f, const float* gain, const float* bias, double epsilon, float* y,
                           RowStatistics* statistics) {
  cuda::add_and_normalize(compute.device(), N, H, first_token, on_device(dropout), x, f, gain, bias,
                          static_cast<float>(epsilon), y, on_device(statistics));
}

void residual_norm_backward(CudaCompute& compute, std::size_t N, std::size_t H,
                            std::size_t first_token, const DropoutSite& dropout, const float* sum,
                            const RowStatistics* statistics, const float* gain, float* dy,
                            float* dgain, float* dbias, float* df) {
  norm_parameters(compute, N, H, sum, statistics, dy, dgain, dbias);
  cuda::normalize_backward(compute.device(), N, H, first_token, on_device(dropout), sum,
                           on_device(statistics), gain, dy, df);
}

void activation_forward(CudaCompute& compute, std::size_t N, std::size_t width,
                        std::size_t first_token, const DropoutSite& dropout, const float* u,
                        float* h) {
  cuda::gelu(compute.device(), N, width, first_token, on_device(dropout), u, h);
}

void activation_backward(CudaCompute& compute, std::size_t N, std::size_t width,
                         std::size_t first_token, const DropoutSite& dropout, const float* u,
                         float* dh) {
  cuda::gelu_backward(compute.device(), N, width, first_token, on_device(dropout), u, dh);
}

void attention_forward(CudaCompute& compute, const EncoderConfig&, const RowGroup&,
                       const Queries& queries, const DropoutSite& dropout, const float* q,
                       const float* kv, float* kept, float* out) {
  cuda::attention_forward(compute.device(), compute.attention(queries, dropout), q, kv, kept, out);
}

void attention_backward(CudaCompute& compute, const EncoderConfig&, const RowGroup&,
                        const Queries& queries, const DropoutSite& dropout, const float* q,
                        const float* kv, float* kept, const float* d_out, float* d_q, float* d_kv) {
  cuda::attention_backward(compute.device(), compute.attention(queries, dropout), q, kv, kept,
                           d_out, d_q, d_kv);
}

void embedding_forward(CudaCompute& compute, std::size_t H, const RowGroup& group,
                       const EncoderTensors<float>& w, float* e) {
  cuda::embed(compute.device(), group.tokens.size(), H,
              {{w.item, compute.tokens()},
               {w.position, compute.positions()},
               {w.segment, compute.segments()},
               {w.bigram, compute.bigrams()}},
              e);
}

void embedding_backward(CudaCompute& compute, std::size_t H, const RowGroup& group, const float* de,
                        const EncoderTensors<float>& g) {
  cuda::Device& device = compute.device();
  cuda::add_rows(device, compute.by_position(), H, de, g.position);
  if (g.segment != nullptr && !group.segments.empty()) {
    cuda::add_rows(device, compute.by_segment(), H, de, g.segment);
  }
  if (g.bigram != nullptr) cuda::add_rows(device, compute.by_bigram(), H, de, g.bigram);
  if (!compute.by_groups()) return cuda::add_rows(device, compute.by_token(), H, de, g.item);
  for (std::size_t part = 0; part < compute.run().parts.size(); ++part) {
    if (compute.item_gradients) compute.item_gradients(part);
    cuda::add_rows(device, compute.by_token(part), H, de, g.item);
  }
}

void gather_rows(CudaCompute& compute, std::size_t H, const RowGroup& group, const float* from,
                 float* to) {
  cuda::gather(compute.device(), group.asked.size(), H, compute.asked(), from, to);
}

void copy_rows(CudaCompute& compute, std::size_t N, std::size_t H, const float* from, float* to) {
  cuda::copy(compute.device(), to, from, N * H * sizeof(float));
}

void scatter_rows(CudaCompute& compute, std::size_t H, const RowGroup& group, float* x) {
  const std::size_t M = group.asked.size(), bytes = sizeof(float) * H;
  float* rows = compute.scratch(M * H);
  copy_rows(compute, M, H, x, rows);
  cuda::fill_zeros(compute.device(), x, group.tokens.size() * bytes);
  cuda::scatter(compute.device(), M, H, compute.asked(), rows, x);
}

using CudaEncoder = Encoder<float, CudaCompute>;

// ---- Results of places -------------------------------------------------------------------------

// What the losses of a batch leave on the device, and what becomes of it here.
class Results {
 public:
  // Before a batch with M asked places.
  void begin(cuda::Device& device, std::size_t M) {
    losses_.grow(M, "losses"), counts_.grow(M, "losses");
    if (decision_.size() == 0) decision_ = DeviceArray<cuda::Decision>(1);
    cuda::fill_zeros(device, decision_.data(), sizeof(cuda::Decision));
  }

  // Where the places from `first` of the batch on leave theirs.
  cuda::PlaceResults at(std::size_t first) const {
    return {losses_.data() + first, counts_.data() + first, &decision_.data()->broken};
  }

  cuda::Decision* decision() const { return decision_.data(); }

  // Waits for the device.
  cuda::Decision decided(cuda::Device& device) const {
    cuda::Decision decision;
    cuda::copy_out(device, &decision, decision_.data(), sizeof(decision));
    device.wait();
    return decision;
  }

  // Waits for the device, and adds up as the header does: group by group. `weights` of the losses,
  // or empty: all 1.
  Tally tally(cuda::Device& device, std::span<const Part> parts, std::span<const float> weights,
              cuda::Decision& decision) {
    const std::size_t first = parts.empty() ? 0 : parts.front().first_asked;
    const std::size_t end = parts.empty() ? 0 : parts.back().end_asked;
    host_losses_.resize(end), host_counts_.resize(end);
    cuda::copy_out(device, host_losses_.data() + first, losses_.data() + first,
                   (end - first) * sizeof(double));
    cuda::copy_out(device, host_counts_.data() + first, counts_.data() + first,
                   (end - first) * sizeof(cuda::Counts));
    decision = decided(device);
    Tally all;
    for (const Part& part : parts) {
      Tally tally;
      for (std::size_t i = part.first_asked; i < part.end_asked; ++i) {
        tally.loss_sum += weights.empty() ? host_losses_[i] : host_losses_[i] * double{weights[i]};
        tally.add_rank(rank_of(host_counts_[i].better, host_counts_[i].ties));
      }
      all += tally;
    }
    return all;
  }

 private:
  DeviceArray<double> losses_;
  DeviceArray<cuda::Counts> counts_;
  DeviceArray<cuda::Decision> decision_;
  std::vector<double> host_losses_;
  std::vector<cuda::Counts> host_counts_;
};

// ---- Heads (chapter 13) ------------------------------------------------------------------------
// As the header's, but that the results of places go to a Results, and that what the table of items
// gets is left for the backward of the embedding (CudaCompute::item_gradients).

// Scores that are held at a time, if one group does not need more.
constexpr std::size_t most_scores = std::size_t{1} << 26;

// How many asked places a run may have.
std::size_t most_asked(std::size_t columns) {
  return most_scores / std::max<std::size_t>(columns, 1);
}

struct HeadInputs {
  const ModelConfig& config;
  const TrainConfig& train;
  const TensorTable& table;
  float *parameters, *gradients;
  const CudaEncoder& encoder;
};

class CudaItemHead {
 public:
  static bool draws(const TrainConfig& train) { return draws_negatives(train.loss); }

  explicit CudaItemHead(const HeadInputs& in)
      : config_(in.config),
        train_(in.train),
        w_(tensors_at<ItemTensors<float>>(in.config, in.table, in.parameters)),
        g_(tensors_at<ItemTensors<float>>(in.config, in.table, in.gradients)),
        transform_(config_, w_, g_, in.encoder.capacity()) {
    detail::check_loss(config_, train_.loss);
    if (config_.ties_items()) {
      w_.weight = in.encoder.item_weight(), g_.weight = in.encoder.item_gradient();
    }
    for (ItemTensors<float>* tensors : {&w_, &g_}) {
      tensors->weight += config_.first_row() * config_.hidden_size;
      tensors->bias += config_.first_row();
    }
  }

  // Scores of a place in training, and otherwise.
  std::size_t training_columns(const Batch& batch) const {
    return draws(train_) ? batch.negatives.size() + 1 : config_.num_items;
  }
  std::size_t columns() const { return config_.num_items; }

  // d_x[M,H] receives the gradient of loss_scale * (sum of losses).
  void loss(CudaCompute& compute, const float* x, const DropoutPlan&, float loss_scale, float* d_x,
            const cuda::PlaceResults& results) {
    const RowGroup& group = compute.run().group;
    const float* vectors = transform_.forward(compute, group.targets.size(), x);
    if (draws(train_))
      drawn_loss(compute, vectors, loss_scale, d_x, results);
    else
      full_loss(compute, vectors, loss_scale, d_x, results);
    transform_.backward(compute, group.targets.size(), x, d_x);
  }

  void evaluate(CudaCompute& compute, const float* x, const cuda::PlaceResults& results) {
    const std::size_t M = compute.run().group.targets.size();
    full_loss(compute, transform_.forward(compute, M, x), 0, nullptr, results);
  }

  // Scores [M,num_items] of asked places, from their vectors x[M,H].
  void score(CudaCompute& compute, std::size_t M, const float* x, float* scores) {
    const float* vectors = transform_.forward(compute, M, x);
    linear_forward(compute, M, config_.num_items, config_.hidden_size, vectors, w_.weight, w_.bias,
                   scores);
  }

  std::size_t vector_size() const { return config_.hidden_size + 1; }

  void item_vectors(CudaCompute& compute, std::size_t first, std::size_t n, float* out) {
    const std::size_t H = config_.hidden_size;
    write_with(compute, n, w_.weight + first * H, w_.bias + first, out);
  }

  void user_vectors(CudaCompute& compute, std::size_t M, const float* x, float* out) {
    write_with(compute, M, transform_.forward(compute, M, x), nullptr, out);
  }

 private:
  // out[n,H+1] on the host: rows[n,H] and last[n] (nullptr: ones) of the device, side by side.
  void write_with(CudaCompute& compute, std::size_t n, const float* rows, const float* last,
                  float* out) {
    const std::size_t H = config_.hidden_size;
    std::vector<float> left(n * H), right(n, 1.0f);
    cuda::copy_out(compute.device(), left.data(), rows, n * H * sizeof(float));
    if (last != nullptr) {
      cuda::copy_out(compute.device(), right.data(), last, n * sizeof(float));
    }
    compute.device().wait();
    for (std::size_t i = 0; i < n; ++i) {
      *std::copy_n(left.data() + i * H, H, out + i * (H + 1)) = right[i];
    }
  }

  // ---- Over all items --------------------------------------------------------------------------

  // With d_vectors == nullptr only the results.
  void full_loss(CudaCompute& compute, const float* vectors, float loss_scale, float* d_vectors,
                 const cuda::PlaceResults& results) {
    const std::size_t M = compute.run().group.targets.size(), H = config_.hidden_size;
    const std::size_t I = config_.num_items;
    const std::size_t slab = std::max<std::size_t>(most_asked(I), 64);
    scores_.grow(std::min(M, slab) * I, "scores");
    for (std::size_t begin = 0; begin < M; begin += slab) {
      const std::size_t rows = std::min(slab, M - begin);
      linear_forward(compute, rows, I, H, vectors + begin * H, w_.weight, w_.bias, scores_.data());
      cuda::softmax_loss(compute.device(), rows, I, compute.targets() + begin, nullptr,
                         d_vectors == nullptr ? 0 : loss_scale, scores_.data(),
                         {results.losses + begin, results.counts + begin, results.broken});
      if (d_vectors == nullptr) continue;
      cuda::multiply(compute.device(), rows, H, I, scores_.data(), I, 1, w_.weight, H, 1, nullptr,
                     0, d_vectors + begin * H, H);
      add_bias_gradients(compute, rows, scores_.data(), begin);
      // If the table of items is the output's, too, each group's places come before its tokens. (A
      // run that does not fit is one group.)
      if (slab < M || !config_.ties_items())
        add_weight_gradients(compute, rows, vectors + begin * H, scores_.data());
    }
    if (d_vectors == nullptr || slab < M || !config_.ties_items()) return;
    compute.item_gradients = [this, &compute, vectors](std::size_t index) {
      const Part& part = compute.run().parts[index];
      add_weight_gradients(compute, part.end_asked - part.first_asked,
                           vectors + part.first_asked * config_.hidden_size,
                           scores_.data() + part.first_asked * config_.num_items);
    };
  }

  // dw += ds^T vectors, for M places
  void add_weight_gradients(CudaCompute& compute, std::size_t M, const float* vectors,
                            const float* ds) {
    const std::size_t H = config_.hidden_size, I = config_.num_items;
    cuda::multiply(compute.device(), I, H, M, ds, 1, I, vectors, H, 1, g_.weight, H, g_.weight, H);
  }

  // db += sum of ds, for M places of the run from `first` on. The header adds them group by group,
  // inside each slab: in blocks if there are more places than items, and else one by one, which
  // neighbours may do together.
  void add_bias_gradients(CudaCompute& compute, std::size_t M, const float* ds, std::size_t first) {
    const std::size_t I = config_.num_items;
    const std::size_t slab = detail::slab_rows(I, group_capacity(config_.encoder()));
    begins_.clear();
    const auto begin_block = [&](std::size_t at) {
      begins_.push_back(static_cast<std::uint32_t>(at - first));
    };
    bool one_by_one = true;
    for (const Part& part : compute.run().parts) {
      for (std::size_t at = part.first_asked, end; at < part.end_asked; at = end) {
        end = std::min(part.end_asked, at + slab);
        const std::size_t block = end - at < I ? 1 : sum_block;
        one_by_one = one_by_one && block == 1;
        for (std::size_t t = std::max(at, first); t < std::min(end, first + M); t += block) {
          begin_block(t);
        }
      }
    }
    begin_block(first + M);
    if (one_by_one) return cuda::add_columns(compute.device(), M, I, ds, I, g_.bias);
    bias_blocks_.grow(begins_.size(), "sums");
    cuda::copy_in(compute.device(), bias_blocks_.data(), begins_.data(),
                  begins_.size() * sizeof(begins_[0]));
    const cuda::Blocks blocks{bias_blocks_.data(), begins_.size() - 1};
    cuda::add_columns(compute.device(), blocks, I, ds, compute.scratch(blocks.count * I), g_.bias);
  }

  // ---- Over drawn items ------------------------------------------------------------------------

  void drawn_loss(CudaCompute& compute, const float* vectors, float loss_scale, float* d_vectors,
                  const cuda::PlaceResults& results) {
    cuda::Device& device = compute.device();
    const RowGroup& group = compute.run().group;
    const std::size_t M = group.targets.size(), K = group.negatives.size(), H = config_.hidden_size;
    require(K > 0, "a batch without negatives, which the loss ", enum_name(train_.loss), " needs");
    drawn_.grow(K * H, "drawn items"), drawn_bias_.grow(K, "drawn items");
    d_drawn_.grow(K * H, "drawn items"), d_drawn_bias_.grow(K, "drawn items");
    scores_.grow(M * (K + 1), "scores"), d_target_.grow(M, "scores");
    cuda::gather(device, K, H, compute.negatives(), w_.weight, drawn_.data());
    cuda::gather(device, K, 1, compute.negatives(), w_.bias, drawn_bias_.data());
    float* d_s = scores_.data() + 1;
    cuda::multiply(device, M, K, H, vectors, H, 1, drawn_.data(), 1, H, drawn_bias_.data(), 0, d_s,
                   K + 1);
    const double t = train_.loss == Loss::gbce ? train_.gbce_t : 0.0;
    const double beta = gbce_beta(t, K, config_.num_items);
    cuda::drawn_loss(
        device,
        {train_.loss == Loss::sampled_softmax, beta, static_cast<float>(gbce_balance(beta, K)),
         compute.targets(), compute.negatives(), compute.log_expected(), loss_scale},
        M, K, H, vectors, w_.weight, w_.bias, scores_.data(), d_target_.data(), results);
    cuda::multiply(device, M, H, K, d_s, K + 1, 1, drawn_.data(), H, 1, nullptr, 0, d_vectors, H);
    cuda::add_scaled_gathered(device, M, H, compute.targets(), d_target_.data(), w_.weight,
                              d_vectors);
    compute.item_gradients = [this, &compute, vectors](std::size_t part) {
      add_drawn_gradients(compute, vectors, part);
    };
  }

  // Of a group: first the targets, then the drawn items.
  void add_drawn_gradients(CudaCompute& compute, const float* vectors, std::size_t index) {
    cuda::Device& device = compute.device();
    const Part& part = compute.run().parts[index];
    const std::size_t K = compute.run().group.negatives.size(), H = config_.hidden_size;
    const std::size_t first = part.first_asked, M = part.end_asked - first;
    const float* d_s = scores_.data() + first * (K + 1) + 1;
    const cuda::Sorted targets = compute.by_target(index), negatives = compute.by_negative();
    cuda::add_scaled_rows(device, targets, H, d_target_.data(), vectors, g_.weight);
    cuda::add_rows(device, targets, 1, d_target_.data(), g_.bias);
    cuda::multiply(device, K, H, M, d_s, 1, K + 1, vectors + first * H, H, 1, nullptr, 0,
                   d_drawn_.data(), H);
    cuda::fill_zeros(device, d_drawn_bias_.data(), K * sizeof(float));
    cuda::add_columns(device, M, K, d_s, K + 1, d_drawn_bias_.data());
    cuda::add_rows(device, negatives, H, d_drawn_.data(), g_.weight);
    cuda::add_rows(device, negatives, 1, d_drawn_bias_.data(), g_.bias);
  }

  ModelConfig config_;
  TrainConfig train_;
  ItemTensors<float> w_, g_;  // of items alone: [I,H] and [I]
  ItemTransform<float, CudaCompute> transform_;
  DeviceArray<float> scores_, d_target_;       // [M,I], or [M,1+K]; [M]
  DeviceArray<float> drawn_, drawn_bias_;      // [K,H] [K] of the drawn items,
  DeviceArray<float> d_drawn_, d_drawn_bias_;  // and their gradients, of a group
  DeviceArray<std::uint32_t> bias_blocks_;
  std::vector<std::uint32_t> begins_;
};

class CudaMatchingHead {
 public:
  static bool draws(const TrainConfig&) { return true; }

  explicit CudaMatchingHead(const HeadInputs& in)
      : config_(in.config),
        capacity_(in.encoder.capacity()),
        w_(tensors_at<MatchingTensors<float>>(in.config, in.table, in.parameters)),
        g_(tensors_at<MatchingTensors<float>>(in.config, in.table, in.gradients)),
        item_(in.encoder.item_weight() + special_rows * in.config.hidden_size),
        d_item_(in.encoder.item_gradient() + special_rows * in.config.hidden_size),
        units_(capacity_ * config_.hidden_size),
        user_lengths_(capacity_) {}

  std::size_t training_columns(const Batch& batch) const { return 1 + batch.ratio(); }
  std::size_t columns() const { return config_.num_items; }

  void loss(CudaCompute& compute, const float* x, const DropoutPlan&, float loss_scale, float* d_x,
            const cuda::PlaceResults& results) {
    const std::size_t M = compute.run().group.targets.size(), H = config_.hidden_size;
    const std::size_t C = 1 + compute.run().group.own_negatives.size() / M;
    for (DeviceArray<float>* array : {&scores_, &cosines_, &lengths_}) array->grow(M * C, "scores");
    cuda::unit_rows(compute.device(), M, H, x, nullptr, units_.data(), user_lengths_.data());
    at_ = {M,
           C,
           H,
           compute.candidates(),
           units_.data(),
           item_,
           scale(),
           scores_.data(),
           cosines_.data(),
           lengths_.data()};
    cuda::matching_loss(compute.device(), at_, loss_scale, results);
    cuda::matching_users(compute.device(), at_, user_lengths_.data(), d_x);
    compute.item_gradients = [this, &compute](std::size_t index) {
      const Part& part = compute.run().parts[index];
      cuda::matching_items(compute.device(), at_, compute.by_candidate(index), d_item_);
      if (w_.log_scale == nullptr) return;
      cuda::matching_scale(compute.device(), at_, part.first_asked * at_.C, part.end_asked * at_.C,
                           g_.log_scale);
    };
  }

  void bound_gradient(CudaCompute& compute) {
    if (w_.log_scale == nullptr) return;
    cuda::bound_scale(compute.device(), w_.log_scale, g_.log_scale);
  }

  void evaluate(CudaCompute& compute, const float* x, const cuda::PlaceResults& results) {
    const std::size_t M = compute.run().group.targets.size(), I = config_.num_items;
    const std::size_t slab = std::max<std::size_t>(most_asked(I), 64);
    scores_.grow(std::min(M, slab) * I, "scores");
    for (std::size_t begin = 0; begin < M; begin += slab) {
      const std::size_t rows = std::min(slab, M - begin);
      score(compute, rows, x + begin * config_.hidden_size, scores_.data());
      cuda::softmax_loss(compute.device(), rows, I, compute.targets() + begin, nullptr, 0,
                         scores_.data(),
                         {results.losses + begin, results.counts + begin, results.broken});
    }
  }

  // s_ij = (a u_i / |u_i|) e_j / |e_j|
  void score(CudaCompute& compute, std::size_t M, const float* x, float* scores) {
    cuda::Device& device = compute.device();
    const std::size_t I = config_.num_items, H = config_.hidden_size;
    const cuda::CosineScale a = scale();
    cuda::unit_rows(device, M, H, x, &a, units_.data(), nullptr);
    lengths_.grow(I, "scores");
    cuda::unit_rows(device, I, H, item_, nullptr, nullptr, lengths_.data());
    cuda::multiply(device, M, I, H, units_.data(), H, 1, item_, 1, H, nullptr, 0, scores, I);
    cuda::divide_columns(device, M, I, lengths_.data(), scores);
  }

  std::size_t vector_size() const { return config_.hidden_size; }

  void item_vectors(CudaCompute& compute, std::size_t first, std::size_t n, float* out) {
    const std::size_t H = config_.hidden_size;
    float* rows = compute.scratch(n * H);
    cuda::unit_rows(compute.device(), n, H, item_ + first * H, nullptr, rows, nullptr);
    cuda::copy_out(compute.device(), out, rows, n * H * sizeof(float));
    compute.device().wait();
  }

  void user_vectors(CudaCompute& compute, std::size_t M, const float* x, float* out) {
    const std::size_t H = config_.hidden_size;
    const cuda::CosineScale a = scale();
    cuda::unit_rows(compute.device(), M, H, x, &a, units_.data(), nullptr);
    cuda::copy_out(compute.device(), out, units_.data(), M * H * sizeof(float));
    compute.device().wait();
  }

 private:
  cuda::CosineScale scale() const {
    return {w_.log_scale, static_cast<float>(config_.fixed_scale)};
  }

  ModelConfig config_;
  std::size_t capacity_;
  MatchingTensors<float> w_, g_;
  float *item_, *d_item_;                          // [I,H] rows of item_embedding
  DeviceArray<float> units_, user_lengths_;        // [M,H] [M]
  DeviceArray<float> scores_, cosines_, lengths_;  // [M,C]; or [slab,I], and [I]
  cuda::Candidates at_{};
};

class CudaClassificationHead {
 public:
  static bool draws(const TrainConfig&) { return false; }

  explicit CudaClassificationHead(const HeadInputs& in)
      : config_(in.config),
        w_(tensors_at<ClassificationTensors<float>>(in.config, in.table, in.parameters)),
        g_(tensors_at<ClassificationTensors<float>>(in.config, in.table, in.gradients)),
        pooled_(in.encoder.capacity() * in.config.hidden_size),
        kept_(in.encoder.capacity() * in.config.hidden_size),
        d_pooled_(in.encoder.capacity() * in.config.hidden_size) {}

  std::size_t training_columns(const Batch&) const { return config_.classes; }
  std::size_t columns() const { return config_.classes; }

  void loss(CudaCompute& compute, const float* x, const DropoutPlan& dropout, float loss_scale,
            float* d_x, const cuda::PlaceResults& results) {
    const RowGroup& group = compute.run().group;
    const std::size_t M = group.targets.size(), C = config_.classes, H = config_.hidden_size;
    const std::size_t first = group.asked_rows.first();
    forward(compute, M, x, dropout.head(), first);
    cuda::softmax_loss(compute.device(), M, C, compute.targets(), compute.weights(), loss_scale,
                       scores_.data(), results);
    linear_backward(compute, M, C, H, kept_.data(), w_.weight, scores_.data(), g_.weight, g_.bias,
                    d_pooled_.data(), false);
    dropout_rows(compute, M, H, first, dropout.head(), d_pooled_.data());
    cuda::tanh_backward(compute.device(), M * H, pooled_.data(), d_pooled_.data());
    linear_backward(compute, M, H, H, x, w_.dense_weight, d_pooled_.data(), g_.dense_weight,
                    g_.dense_bias, d_x, false);
  }

  void evaluate(CudaCompute& compute, const float* x, const cuda::PlaceResults& results) {
    const std::size_t M = compute.run().group.targets.size();
    forward(compute, M, x, DropoutSite(), 0);
    cuda::softmax_loss(compute.device(), M, config_.classes, compute.targets(), nullptr, 0,
                       scores_.data(), results);
  }

  void score(CudaCompute& compute, std::size_t M, const float* x, float* scores) {
    forward(compute, M, x, DropoutSite(), 0);
    cuda::copy(compute.device(), scores, scores_.data(), M * config_.classes * sizeof(float));
  }

 private:
  void forward(CudaCompute& compute, std::size_t M, const float* x, const DropoutSite& dropout,
               std::size_t first) {
    const std::size_t C = config_.classes, H = config_.hidden_size;
    scores_.grow(M * C, "scores");
    linear_forward(compute, M, H, H, x, w_.dense_weight, w_.dense_bias, kept_.data());
    cuda::tanh(compute.device(), M * H, kept_.data(), pooled_.data());
    cuda::dropout(compute.device(), M, H, first, on_device(dropout), pooled_.data(), kept_.data());
    linear_forward(compute, M, C, H, kept_.data(), w_.weight, w_.bias, scores_.data());
  }

  ModelConfig config_;
  ClassificationTensors<float> w_, g_;
  DeviceArray<float> pooled_, kept_, d_pooled_;  // [M,H] p, dropout(p), its gradient
  DeviceArray<float> scores_;                    // [M,C] s, or ds
};

// ---- Optimizer (chapter 15) --------------------------------------------------------------------

class CudaAdamW {
 public:
  CudaAdamW(cuda::Device& device, const TensorTable& table, const TrainConfig& config, bool draws,
            float* parameters, float* gradients)
      : device_(device),
        config_(config),
        parts_(table, draws),
        parameters_(parameters),
        gradients_(gradients),
        first_(table.size(), "AdamW"),
        second_(table.size(), "AdamW"),
        decays_(table.size(), "AdamW") {
    std::vector<std::uint8_t> decays(table.size());
    for (const TensorSpec& spec : table) {
      const std::size_t end = spec.offset + spec.size;
      std::fill(decays.data() + spec.offset, decays.data() + end, std::uint8_t{spec.decay});
    }
    for (DeviceArray<float>* moment : {&first_, &second_}) {
      cuda::fill_zeros(device_, moment->data(), moment->size() * sizeof(float));
    }
    cuda::copy_in(device_, decays_.data(), decays.data(), decays.size());
    squares_ = DeviceArray<float>(parts_.whole.size() * cuda::norm_parts);
    for (const StepParts::Table& of : parts_.tables) {
      taken_.emplace_back(of.rows, "AdamW");
      cuda::fill_zeros(device_, taken_.back().data(), of.rows * sizeof(std::uint32_t));
    }
    if (parts_.tables.empty()) return;
    for (DeviceArray<cuda::AdamConstants>& late : late_) {
      late = DeviceArray<cuda::AdamConstants>(most_late);
    }
  }

  float* first_moment() { return first_.data(); }
  float* second_moment() { return second_.data(); }

  // Before a step on a batch: brings its rows up to date, and sets all gradients to 0.
  void begin(const Batch& batch) {
    for (const auto& [first, end] : parts_.whole) {
      cuda::fill_zeros(device_, gradients_ + first, (end - first) * sizeof(float));
    }
    if (parts_.tables.empty()) return;
    parts_.find_touched(batch);
    parcel_.clear();
    places_.clear();
    for (const auto& table : parts_.tables) places_.push_back(parcel_.add(table.touched));
    parcel_.send(device_);
    for (std::size_t i = 0; i < taken_.size(); ++i) {
      for (const Tensor& tensor : parts_.tables[i].tensors) {
        cuda::zero_rows(device_, touched(i, tensor.width), gradients_ + tensor.offset);
      }
      take_late(i, touched(i));
    }
  }

  // The gradient of this step in one piece: packed[packed_size()] on the device, and back.
  std::size_t packed_size() const { return parts_.packed_size(); }
  void pack(float* packed) const {
    parts_.for_packed(
        [&](std::size_t first, std::size_t n, std::size_t at) {
          cuda::copy(device_, packed + at, gradients_ + first, n * sizeof(float));
        },
        [&](std::size_t table, const Tensor& tensor, std::size_t at) {
          const cuda::TableRows rows = touched(table, tensor.width);
          cuda::gather(device_, rows.count, tensor.width, rows.numbers, gradients_ + tensor.offset,
                       packed + at);
        });
  }
  void unpack(const float* packed) {
    parts_.for_packed(
        [&](std::size_t first, std::size_t n, std::size_t at) {
          cuda::copy(device_, gradients_ + first, packed + at, n * sizeof(float));
        },
        [&](std::size_t table, const Tensor& tensor, std::size_t at) {
          const cuda::TableRows rows = touched(table, tensor.width);
          cuda::scatter(device_, rows.count, tensor.width, rows.numbers, packed + at,
                        gradients_ + tensor.offset);
        });
  }

  // One update with the gradients of the batch, if the device finds them and the loss finite (of
  // ranks: loss_of_ranks, as decide() takes it).
  void step(std::uint64_t t, double learning_rate, const float* loss_of_ranks,
            cuda::Decision* decision) {
    for (std::size_t i = 0; i < parts_.whole.size(); ++i) {
      const auto [first, end] = parts_.whole[i];
      cuda::sum_of_squares(device_, end - first, gradients_ + first,
                           squares_.data() + i * cuda::norm_parts);
    }
    std::size_t rows = 0;  // of all tables
    for (const auto& table : parts_.tables) rows += table.touched.size();
    row_squares_.grow(rows, "AdamW");
    cuda::fill_zeros(device_, row_squares_.data(), rows * sizeof(double));
    double* row_squares = row_squares_.data();
    for_touched([&](const Tensor& tensor, const cuda::TableRows& of, std::size_t first) {
      cuda::square_rows(device_, of, gradients_ + tensor.offset, row_squares + first);
    });
    cuda::decide(device_, parts_.whole.size(), squares_.data(), rows, row_squares,
                 config_.clip_norm, loss_of_ranks, decision);
    std::array<cuda::AdamConstants, 2> constants;
    const auto of_header = adam_constants<float>(config_, t, learning_rate, 1.0);
    static_assert(sizeof(of_header) == sizeof(constants));
    std::memcpy(constants.data(), of_header.data(), sizeof(constants));
    for (const auto& [first, end] : parts_.whole) {
      cuda::adamw(device_, end - first, parameters_ + first, gradients_ + first,
                  first_.data() + first, second_.data() + first, decays_.data() + first,
                  constants[1], decision);
    }
    if (parts_.tables.empty()) return;
    for_touched([&](const Tensor& tensor, const cuda::TableRows& of, std::size_t) {
      cuda::adamw_rows(device_, of, parameters_ + tensor.offset, gradients_ + tensor.offset,
                       first_.data() + tensor.offset, second_.data() + tensor.offset,
                       constants[tensor.decay], decision);
    });
    for (const std::size_t decay : {0u, 1u}) {
      cuda::copy_in(device_, late_[decay].data() + late_steps_, &constants[decay],
                    sizeof(constants[decay]));
    }
    ++late_steps_;
    set_taken();
  }

  // After a step: whether it was one. Then what was put off may be due.
  void end_step(bool updated) {
    if (parts_.tables.empty()) return;
    if (!updated) --late_steps_, set_taken();
    if (late_steps_ == most_late) catch_up();
  }

  // Brings all rows up to date.
  void catch_up() {
    if (late_steps_ == 0) return;
    for (std::size_t i = 0; i < taken_.size(); ++i) {
      const std::size_t rows = parts_.tables[i].rows;
      take_late(i, {nullptr, rows, 0});
      cuda::fill_zeros(device_, taken_[i].data(), rows * sizeof(std::uint32_t));
    }
    late_steps_ = 0;
  }

 private:
  using Tensor = StepParts::Tensor;
  static constexpr std::uint32_t most_late = 1024;  // steps put off, as in the header

  // The touched rows of a table, of a tensor with `width` numbers a row.
  cuda::TableRows touched(std::size_t table, std::size_t width = 0) const {
    return {parcel_.at(places_[table]), parts_.tables[table].touched.size(), width};
  }

  // body(tensor, rows, first): rows of a tensor, the first of them being number `first` of all.
  template <class Body>
  void for_touched(Body&& body) const {
    std::size_t first = 0;
    for (std::size_t i = 0; i < taken_.size(); ++i) {
      for (const Tensor& tensor : parts_.tables[i].tensors) {
        body(tensor, touched(i, tensor.width), first);
      }
      first += parts_.tables[i].touched.size();
    }
  }

  void set_taken() {
    for (std::size_t i = 0; i < taken_.size(); ++i) {
      cuda::set_taken(device_, touched(i), late_steps_, taken_[i].data());
    }
  }

  void take_late(std::size_t table, const cuda::TableRows& rows) {
    for (const Tensor& tensor : parts_.tables[table].tensors) {
      cuda::replay_rows(device_, {rows.numbers, rows.count, tensor.width},
                        parameters_ + tensor.offset, first_.data() + tensor.offset,
                        second_.data() + tensor.offset, late_[tensor.decay].data(),
                        taken_[table].data(), late_steps_);
    }
    cuda::set_taken(device_, rows, late_steps_, taken_[table].data());
  }

  cuda::Device& device_;
  TrainConfig config_;
  StepParts parts_;
  float *parameters_, *gradients_;     // in the order of the table
  DeviceArray<float> first_, second_;  // m and v
  DeviceArray<std::uint8_t> decays_;   // whether a number decays
  Parcel parcel_;                      // of each table, at places_, the rows of this step
  std::vector<Parcel::Place> places_;
  DeviceArray<float> squares_;                            // [ranges,norm_parts]
  DeviceArray<double> row_squares_;                       // of the rows
  std::array<DeviceArray<cuda::AdamConstants>, 2> late_;  // steps since catch_up()
  std::uint32_t late_steps_ = 0;
  std::vector<DeviceArray<std::uint32_t>> taken_;  // how many of those a row took
};

// ---- Engine (chapter 16) -----------------------------------------------------------------------

// Tokens that are computed at a time: all of a batch, if their activations (in each layer 12
// vectors of H numbers and two of the inner size) fit into a fourth of the device's memory. In half
// precision bits depend on it, so it must not depend on what else is in memory.
std::size_t run_capacity(const cuda::Device& device, const EncoderConfig& config,
                         std::size_t batch_size) {
  const std::size_t layer = 12 * config.hidden_size + 2 * config.inner_size;
  const std::size_t bytes = sizeof(float) * (config.num_layers + 1) * layer;
  const bool exact = device.products() == cuda::Products::exact;
  const std::size_t fits = (exact ? device.free_memory() : device.all_memory()) / 4 / bytes;
  return std::max(group_capacity(config), std::min(fits, batch_size * config.max_length));
}

template <class Head>
class CudaEngine : public Engine {
 public:
  CudaEngine(const ModelConfig& model, const TrainConfig& train, Start start, int device,
             cuda::Products products)
      : config_(model), train_((validate(train), train)), compute_(device, products, model, train) {
    if (start == Start::zeros) return;
    ThreadPool pool(train.threads);
    write(State::parameters, initial_parameters(table_, model.initializer_range, train.seed, pool));
  }

  const ModelConfig& config() const override { return config_; }
  const TensorTable& table() const override { return table_; }
  std::string name() const override { return join("cuda ", compute_.device().name()); }
  std::string arithmetic() const override {
    if (compute_.device().products() == cuda::Products::exact) return Engine::arithmetic();
    return compute_.device().arithmetic();
  }

  Tally evaluate(const Batch& batch) override {
    begin_reading(batch);
    results_.begin(device(), batch.asked.size());
    for_each_run(batch, all_rows(batch), head_.columns(), [&](const Run& run) {
      const float* x = encoder_.forward(compute_, run.group, DropoutPlan());
      head_.evaluate(compute_, x, results_.at(run.group.asked_rows.first()));
    });
    cuda::Decision decision;
    return results_.tally(device(), runs_.parts(), {}, decision);
  }

  void score(const Batch& batch, std::span<float> scores) override {
    const std::size_t width = config_.targets();
    check_room(batch, width, scores, "score");
    for_each_slab(batch, [&](std::size_t first, std::size_t rows) {
      cuda::copy_out(device(), scores.data() + first * width, scores_.data(),
                     rows * width * sizeof(float));
      device().wait();
    });
  }

  std::size_t vector_size() const override {
    if constexpr (HasVectors<Head>) return head_.vector_size();
    return 0;
  }

  void item_vectors(std::size_t first, std::span<float> out) override {
    if constexpr (HasVectors<Head>) {
      const std::size_t I = config_.num_items, n = out.size() / vector_size();
      require(n * vector_size() == out.size() && first <= I && n <= I - first,
              "item_vectors: ", out.size(), " numbers from item ", first,
              " on, expected vectors of ", vector_size(), " of ", I, " items");
      device().use();
      optimizer_.catch_up();
      head_.item_vectors(compute_, first, n, out.data());
    } else {
      Engine::item_vectors(first, out);
    }
  }

  void user_vectors(const Batch& batch, std::span<float> out) override {
    if constexpr (HasVectors<Head>) {
      check_room(batch, vector_size(), out, "user_vectors");
      begin_reading(batch);
      for_each_run(batch, all_rows(batch), vector_size(), [&](const Run& run) {
        const float* x = encoder_.forward(compute_, run.group, DropoutPlan());
        head_.user_vectors(compute_, run.group.asked.size(), x,
                           out.data() + run.group.asked_rows.first() * vector_size());
      });
    } else {
      Engine::user_vectors(batch, out);
    }
  }

  void read(State state, std::span<float> out) override {
    require(out.size() == table_.size(), "read: expected room for ", table_.size(), " numbers");
    cuda::copy_out(device(), out.data(), numbers(state), out.size_bytes());
    device().wait();
  }

  void write(State state, std::span<const float> in) override {
    require(in.size() == table_.size(), "write: expected ", table_.size(), " numbers");
    cuda::copy_in(device(), numbers(state), in.data(), in.size_bytes());
    device().wait();
  }

 protected:
  bool can_train_with_others() const override { return true; }

  Tally train_step(const Batch& batch, std::uint64_t step, double learning_rate,
                   const std::function<void()>& meanwhile) override {
    require(!batch.asked.empty(), "step ", step, ": a batch that asks for nothing");
    device().use();
    check_batch(batch, config_);
    const DropoutPlan dropout(config_.encoder(),
                              fold_in(stream_key(train_.seed, Stream::dropout), step));
    const float scale = 1.0f / static_cast<float>(batch.total_weight());
    optimizer_.begin(batch);
    results_.begin(device(), batch.asked.size());
    for_each_run(batch, rows_of(batch, ranks()), head_.training_columns(batch),
                 [&](const Run& run) {
                   const float* x = encoder_.forward(compute_, run.group, dropout);
                   head_.loss(compute_, x, dropout, scale, d_x_.data(),
                              results_.at(run.group.asked_rows.first()));
                   encoder_.backward(compute_, run.group, dropout, d_x_.data());
                 });
    cuda::Decision decision;
    const Tally tally = ranks().size() > 1
                            ? step_together(batch, step, learning_rate, meanwhile, decision)
                            : step_alone(batch, step, learning_rate, meanwhile, decision);
    optimizer_.end_step(decision.broken == 0);
    require((decision.broken & 1u) == 0 && std::isfinite(tally.loss_sum), "step ", step,
            ": the loss is ", tally.loss(),
            "; nothing was updated. A lower learning rate or clip_norm may help");
    require(decision.broken == 0, "step ", step, ": the norm of the gradient is ", decision.norm,
            "; nothing was updated. A lower learning rate or clip_norm may help");
    return tally;
  }

  // The scores stay on the device: a row comes back only if something is wrong with it.
  std::vector<std::vector<Recommendation>> find_top(const Batch& batch,
                                                    std::span<const ItemSpan> seen,
                                                    std::size_t count, Allowed allowed) override {
    std::vector<std::vector<Recommendation>> all;
    for_each_slab(batch, [&](std::size_t first, std::size_t rows) {
      search(seen.subspan(first, rows), count, allowed, all);
    });
    return all;
  }

 private:
  cuda::Device& device() { return compute_.device(); }

  void bound_gradient() {
    if constexpr (requires { head_.bound_gradient(compute_); }) head_.bound_gradient(compute_);
  }

  // Both are what follows when the device has been told to compute the gradient, up to the tally
  // and what was decided, for which they wait.
  Tally step_alone(const Batch& batch, std::uint64_t step, double learning_rate,
                   const std::function<void()>& meanwhile, cuda::Decision& decision) {
    bound_gradient();
    optimizer_.step(step + 1, learning_rate, nullptr, results_.decision());
    meanwhile();  // until here the device was only told what to do
    return results_.tally(device(), runs_.parts(), batch.weights, decision);
  }
  Tally step_together(const Batch& batch, std::uint64_t step, double learning_rate,
                      const std::function<void()>& meanwhile, cuda::Decision& decision) {
    meanwhile();
    TallyNumbers numbers =
        to_numbers(results_.tally(device(), runs_.parts(), batch.weights, decision));
    const std::size_t size = optimizer_.packed_size();
    message_.grow(size + numbers.size(), "a message");
    float* const tally = message_.data() + size;
    optimizer_.pack(message_.data());
    cuda::copy_in(device(), tally, numbers.data(), sizeof(numbers));
    add_ranks(size + numbers.size());
    optimizer_.unpack(message_.data());
    bound_gradient();
    optimizer_.step(step + 1, learning_rate, tally, results_.decision());
    cuda::copy_out(device(), numbers.data(), tally, sizeof(numbers));
    decision = results_.decided(device());
    return to_tally(numbers, batch.asked.size());
  }

  // The first n numbers of message_ become the sum over all ranks.
  void add_ranks(std::size_t n) {
    if (const auto devices = dynamic_cast<DeviceCollective*>(&ranks())) {
      return devices->sum_on_device(message_.data(), n, device().cuda_stream());
    }
    host_message_.resize(n);
    cuda::copy_out(device(), host_message_.data(), message_.data(), n * sizeof(float));
    device().wait();
    ranks().sum(host_message_);
    cuda::copy_in(device(), message_.data(), host_message_.data(), n * sizeof(float));
  }

  // Before numbers of the model are read.
  void begin_reading(const Batch& batch) {
    device().use();
    check_batch(batch, config_);
    optimizer_.catch_up();
  }

  void check_room(const Batch& batch, std::size_t width, std::span<float> out,
                  std::string_view what) const {
    require(out.size() == batch.asked.size() * width, what, ": the output has room for ",
            out.size(), " numbers, expected ", batch.asked.size() * width);
  }

  static Range all_rows(const Batch& batch) { return {0, batch.rows()}; }

  // body(run) for runs of some rows, whose asked places have `columns` scores each.
  template <class Body>
  void for_each_run(const Batch& batch, Range rows, std::size_t columns, Body&& body) {
    const std::size_t H = config_.hidden_size;
    const std::array<std::size_t, 5> widths{0, H, 2 * H, config_.encoder().inner_size,
                                            config_.classes};
    runs_.for_each(batch, rows, encoder_.capacity(), most_asked(columns), [&](const Run& run) {
      compute_.begin(run, widths);
      body(run);
    });
  }

  // body(first, rows) for slabs of the asked places of a batch, first ... first + rows - 1, when
  // scores_ holds their scores [rows,targets()].
  template <class Body>
  void for_each_slab(const Batch& batch, Body&& body) {
    const std::size_t width = config_.targets();
    const std::size_t slab = std::max<std::size_t>(most_asked(width), 1);
    begin_reading(batch);
    for_each_run(batch, all_rows(batch), width, [&](const Run& run) {
      const float* x = encoder_.forward(compute_, run.group, DropoutPlan());
      for (std::size_t begin = 0; begin < run.group.asked.size(); begin += slab) {
        const std::size_t rows = std::min(slab, run.group.asked.size() - begin);
        scores_.grow(rows * width, "scores");
        head_.score(compute_, rows, x + begin * config_.hidden_size, scores_.data());
        body(run.group.asked_rows.first() + begin, rows);
      }
    });
  }

  // Of the rows of scores_, which have seen `seen`: their best items, behind those in `all`.
  void search(std::span<const ItemSpan> seen, std::size_t count, Allowed allowed,
              std::vector<std::vector<Recommendation>>& all) {
    constexpr std::size_t most_best = 256;  // since each costs a walk over the scores
    const std::size_t M = seen.size(), I = config_.targets(), width = std::min(count, I);
    if (width > most_best) {
      for (std::size_t i = 0; i < M; ++i) all.push_back(search_here(i, seen[i], count, allowed));
      return;
    }
    const std::size_t blocks = (I + SoftmaxParts::block - 1) / SoftmaxParts::block;
    Parcel parcel;
    std::vector<std::size_t> begins{0};
    std::vector<std::int32_t> items;
    for (const ItemSpan row : seen) {
      items.insert(items.end(), row.begin(), row.end());
      std::sort(items.begin() + static_cast<std::ptrdiff_t>(begins.back()), items.end());
      begins.push_back(items.size());
    }
    const Parcel::Place begins_at = parcel.add(begins), items_at = parcel.add(items);
    const Parcel::Place allowed_at = parcel.add(allowed);
    parcel.send(device());
    const cuda::Seen known{parcel.at(begins_at), parcel.at(items_at),
                           allowed.empty() ? nullptr : parcel.at(allowed_at)};
    const std::size_t found = M * cuda::search_parts(I) * width;
    DeviceArray<std::uint32_t> found_items(found), best(M * width);
    DeviceArray<float> found_values(found), values(M * width);
    DeviceArray<cuda::BlockSum> sums(M * blocks);
    cuda::best_unseen(device(), M, I, scores_.data(), known, width, found_items.data(),
                      found_values.data(), best.data(), values.data());
    cuda::softmax_blocks(device(), M, I, SoftmaxParts::block, scores_.data(), sums.data());
    const auto best_here = copied(best);
    const auto values_here = copied(values);
    const auto sums_here = copied(sums);
    for (std::size_t i = 0; i < M; ++i) {
      SoftmaxParts softmax;
      bool finite = true;
      for (std::size_t block = i * blocks; block < (i + 1) * blocks; ++block) {
        finite = finite && std::isfinite(sums_here[block].sum);
        if (finite) softmax.add({sums_here[block].largest, sums_here[block].sum});
      }
      if (!finite) {
        all.push_back(search_here(i, seen[i], count, allowed));
        continue;
      }
      all.emplace_back();
      for (std::size_t at = i * width; at < (i + 1) * width; ++at) {
        if (best_here[at] == cuda::no_item) break;
        all.back().push_back({static_cast<std::int32_t>(best_here[at]), double{values_here[at]}});
      }
      softmax.to_probabilities(all.back());
    }
  }

  // Where many are asked for, or a score is infinite or NaN: top_unseen() knows what to do or say.
  std::vector<Recommendation> search_here(std::size_t row, ItemSpan seen, std::size_t count,
                                          Allowed allowed) {
    std::vector<float> scores(config_.targets());
    cuda::copy_out(device(), scores.data(), scores_.data() + row * scores.size(),
                   scores.size() * sizeof(float));
    device().wait();
    return top_unseen(scores, seen, count, allowed);
  }

  template <class Element>
  std::vector<Element> copied(const DeviceArray<Element>& from) {
    std::vector<Element> to(from.size());
    cuda::copy_out(device(), to.data(), from.data(), to.size() * sizeof(Element));
    device().wait();
    return to;
  }

  float* numbers(State state) {
    device().use();
    optimizer_.catch_up();
    if (state == State::parameters) return parameters_.data();
    return state == State::first_moment ? optimizer_.first_moment() : optimizer_.second_moment();
  }

  ModelConfig config_;
  TrainConfig train_;
  TensorTable table_ = bert4rec_tensors(config_);
  CudaCompute compute_;
  DeviceArray<float> parameters_{table_.size(), "the parameters"};
  DeviceArray<float> gradients_{table_.size(), "the gradients"};
  CudaAdamW optimizer_{compute_.device(),  table_,           train_, Head::draws(train_),
                       parameters_.data(), gradients_.data()};
  CudaEncoder encoder_{config_.encoder(), table_, parameters_.data(), gradients_.data(),
                       run_capacity(compute_.device(), config_.encoder(), train_.batch_size)};
  Head head_{HeadInputs{config_, train_, table_, parameters_.data(), gradients_.data(), encoder_}};
  DeviceArray<float> d_x_{encoder_.capacity() * config_.hidden_size};  // [M,H], with room for [N,H]
  DeviceArray<float> scores_;
  DeviceArray<float> message_;       // to other ranks: the gradient and behind it the tally
  std::vector<float> host_message_;  // the same, where ranks add up on the host
  Runs runs_{config_.encoder()};
  Results results_;
};

}  // namespace

EngineMaker cuda_engine_maker(int device, bool half_precision) {
  const auto products = half_precision ? cuda::Products::half : cuda::Products::exact;
  const int count = cuda::device_count();
  require(count > 0, "no GPU was found: CUDA has no device or no driver");
  require(device >= 0 && device < count, "GPU ", device, " was asked for; there are ", count,
          ", counted from 0");
  return [device, products](const ModelConfig& model, const TrainConfig& train,
                            Start start) -> std::unique_ptr<Engine> {
    if (model.task == TaskKind::matching) {
      return std::make_unique<CudaEngine<CudaMatchingHead>>(model, train, start, device, products);
    }
    if (model.task == TaskKind::classification) {
      return std::make_unique<CudaEngine<CudaClassificationHead>>(model, train, start, device,
                                                                  products);
    }
    return std::make_unique<CudaEngine<CudaItemHead>>(model, train, start, device, products);
  };
}

std::unique_ptr<Engine> make_cuda_engine(const ModelConfig& model, const TrainConfig& train,
                                         Start start) {
  return cuda_engine_maker(0)(model, train, start);
}

}  // namespace bert4rec
