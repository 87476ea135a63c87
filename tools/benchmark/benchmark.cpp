// Measures the speed of bert4rec.hpp on named shapes, and how near the machine's peak it comes.

#include <random>

#include "benchmark/chapters.hpp"
#include "benchmark/measure.hpp"
#include "common/gpu.hpp"

namespace {

using namespace bert4rec;
using Kernels = detail::Kernels<float>;
using Rows = std::vector<std::vector<std::int32_t>>;  // items of each user, the oldest first

struct Options {
  std::string shapes = "seed,ml-1m,inference";
  std::string kernels;
  Path data, program;
  std::size_t threads = 0;
  gpu::Choice gpu;
  double seconds = 5;
  bool json = false;
};

// ---- Counting ----------------------------------------------------------------------------------

// Floating-point operations of the matrix products that a batch needs: a product [m,k] [k,n] is
// 2mnk. A linear layer of T tokens, [T,I] -> [T,O], is 2TIO forward, and as much again backward
// for each of its inputs and its weights. Attention over a row of n tokens, m of which ask, is two
// products of 2mnH forward (all heads together) and four backward. In each layer keys and values
// (H to 2H) are made of all tokens; those that ask, all or in the last layer the M masked ones, go
// through H to H before and after attention, H to 4H and 4H to H. The head and the scores of the
// items (or labels) see the masked ones. Everything else (norms, softmax, AdamW ...) is not
// counted.
std::uint64_t product_flops(const ModelConfig& model, const Batch& batch, bool backward) {
  const std::uint64_t H = model.hidden_size, N = batch.tokens.size(), M = batch.asked.size();
  std::uint64_t linear = 2 * M * model.targets() * H, pairs = 0;
  const bool transforms =
      model.task != TaskKind::items || model.architecture == Architecture::paper;
  if (transforms) linear += 2 * M * H * H;
  for (std::size_t layer = 0; layer < model.num_layers; ++layer) {
    const std::uint64_t asking = layer + 1 == model.num_layers ? M : N;
    linear += 2 * N * 2 * H * H + 2 * asking * (1 + 1 + 4 + 4) * H * H;
  }
  std::size_t hidden = 0;
  for (std::size_t row = 0; row < batch.rows(); ++row) {
    const std::uint64_t n = batch.offsets[row + 1] - batch.offsets[row];
    const std::size_t before = hidden;
    while (hidden < M && batch.asked[hidden] < batch.offsets[row + 1]) ++hidden;
    pairs += (model.num_layers - 1) * n * n + (hidden - before) * n;
  }
  const std::uint64_t attention = 2 * 2 * pairs * H;
  return backward ? 3 * linear + 3 * attention : linear + attention;
}

// ---- Data --------------------------------------------------------------------------------------

const Key data_key = stream_key(1, Stream::demo);

// A row of random items for each length.
Rows random_rows(const std::vector<std::size_t>& lengths, std::size_t num_items) {
  Rows rows;
  for (const std::size_t length : lengths) {
    const Key key = fold_in(data_key, rows.size());
    rows.emplace_back();
    for (std::size_t i = 0; i < length; ++i) {
      rows.back().push_back(static_cast<std::int32_t>(below(key, i, num_items)));
    }
  }
  return rows;
}

// Lengths of `users` histories, spread evenly over the distribution of MovieLens-1M (5-core, 6,040
// users): its quantiles, and between them a straight line in the logarithm. The mean of
// min(length, 200) is 109.9, of its square 16,830; those of the data are 109.4 and 16,630.
std::vector<std::size_t> movielens_lengths(std::size_t users) {
  constexpr std::array<std::pair<double, double>, 8> quantiles{
      {{0, 18}, {0.1, 27}, {0.25, 44}, {0.5, 96}, {0.75, 208}, {0.9, 400}, {0.99, 908}, {1, 2277}}};
  std::vector<std::size_t> lengths;
  for (std::size_t user = 0; user < users; ++user) {
    const double p = (static_cast<double>(user) + 0.5) / static_cast<double>(users);
    std::size_t i = 0;
    while (quantiles[i + 1].first < p) ++i;
    const auto [p0, low] = quantiles[i];
    const auto [p1, high] = quantiles[i + 1];
    const double length = low * std::pow(high / low, (p - p0) / (p1 - p0));
    lengths.push_back(static_cast<std::size_t>(length));
  }
  shuffle(lengths, data_key);  // a batch holds short and long ones in any order
  return lengths;
}

// `count` histories of a data set, spread evenly over its lengths.
Rows sample_rows(const Histories& histories, std::size_t count) {
  std::vector<std::size_t> users(histories.size());
  std::iota(users.begin(), users.end(), std::size_t{0});
  std::stable_sort(users.begin(), users.end(), [&](std::size_t a, std::size_t b) {
    return histories.row(a).size() < histories.row(b).size();
  });
  Rows rows;
  for (std::size_t i = 0; i < count; ++i) {
    const ItemSpan row = histories.row(users[(2 * i + 1) * users.size() / (2 * count)]);
    rows.emplace_back(row.begin(), row.end());
  }
  shuffle(rows, data_key);
  return rows;
}

// ---- A unit of work, timed ---------------------------------------------------------------------

struct Work {
  std::size_t hidden_size, tokens;
  std::uint64_t flops;
};

// The kernels of the engines in this process. Engines refer to this table, so it can be exchanged
// under them for the one with clocks.
Kernels kernels_in_use;

const Kernels& chosen_kernels(const Options& options) {
  const auto found = detail::available_kernels<float>();
  if (options.kernels.empty()) return *found.back();
  std::string names;
  for (const Kernels* kernels : found) {
    if (kernels->name == options.kernels) return *kernels;
    names += join(names.empty() ? "" : ", ", kernels->name);
  }
  throw cli::UsageError(
      join("--kernels ", options.kernels, ": this machine and build have ", names));
}

std::size_t thread_count(const Options& options) {
  return options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
}

template <template <class> class Head = ItemHead>
CpuEngine<float, Head> make_engine(const Options& options, const ModelConfig& model) {
  kernels_in_use = chosen_kernels(options);
  TrainConfig train;
  train.threads = options.threads;
  return CpuEngine<float, Head>(model, train, kernels_in_use);
}

// The same, or an engine on a GPU.
std::unique_ptr<Engine> chosen_engine(const Options& options, const ModelConfig& model) {
  if (options.gpu.asked) return options.gpu.maker()(model, TrainConfig(), Start::random);
  return std::unique_ptr<Engine>(new CpuEngine<float>(make_engine(options, model)));
}

// Shares of the time of all threads, from runs of body() with clocks around the kernels; and what
// these runs say of the speed of the clocks and of the count of operations.
template <class Body>
void set_chapters(Json& json, const Options& options, const Work& work, Body&& body) {
  const Kernels& kernels = chosen_kernels(options);
  kernels_in_use = chapters::timed(kernels, work.hidden_size);
  chapters::clear();
  std::vector<double> times;
  const std::uint64_t start = chapters::ticks();
  measure::repeat(options.seconds / 4, times, body);
  const double whole = static_cast<double>((chapters::ticks() - start) * thread_count(options));
  kernels_in_use = kernels;
  const chapters::Account total = chapters::total();
  Json shares;
  double rest = 1;
  for (std::size_t i = 0; i < chapters::other; ++i) {
    const double share = static_cast<double>(total.ticks[i]) / whole;
    shares.set(chapters::names[i], share);
    rest -= share;
  }
  shares.set(chapters::names[chapters::other], rest);
  json.set("chapters", std::move(shares));
  json.set("milliseconds_with_clocks", 1e3 * measure::median(times));
  json.set("flops_called", total.flops / times.size());
}

// Times body(), which waits for a GPU.
template <class Body>
Json measured_on_gpu(const Options& options, const Work& work, Body&& body) {
  for (int i = 0; i < 3; ++i) body();
  std::vector<double> times;
  const double before = measure::processor_seconds(CLOCK_PROCESS_CPUTIME_ID);
  measure::repeat(options.seconds, times, body);
  const double processor = measure::processor_seconds(CLOCK_PROCESS_CPUTIME_ID) - before;
  const double seconds = measure::median(times), gflop = 1e-9 * static_cast<double>(work.flops);
  Json json;
  json.set("milliseconds", measure::spread(times));
  json.set("processor_milliseconds", 1e3 * processor / static_cast<double>(times.size()));
  json.set("tokens", work.tokens);
  json.set("tokens_per_second", static_cast<double>(work.tokens) / seconds);
  json.set("flops", work.flops);
  json.set("gflops", gflop / seconds);
  return json;
}

// Times body(): once unseen, to touch its memory, and then in four slices, between which the
// machine's peak is measured, since others may work on it too.
template <class Body>
Json measured(const Options& options, const Work& work, Body&& body) {
  if (options.gpu.asked) return measured_on_gpu(options, work, body);
  std::vector<double> times, peaks, processor_peaks;
  const auto add_peak = [&] {
    const measure::Peak peak = measure::measure_peak(chosen_kernels(options).name,
                                                     thread_count(options), options.seconds / 50);
    peaks.push_back(1e-9 * peak.rate);
    processor_peaks.push_back(1e-9 * peak.processor_rate);
  };
  body();
  add_peak();
  double used = 0, processor = 0;
  while (used == 0 || used < options.seconds) {
    processor -= measure::processor_seconds(CLOCK_PROCESS_CPUTIME_ID);
    used += measure::seconds_of([&] { measure::repeat(options.seconds / 4, times, body); });
    processor += measure::processor_seconds(CLOCK_PROCESS_CPUTIME_ID);
    add_peak();
  }
  const double seconds = measure::median(times), gflop = 1e-9 * static_cast<double>(work.flops);
  const double peak = measure::median(peaks);
  const double processor_gflops = gflop * static_cast<double>(times.size()) / processor;
  Json json;
  json.set("milliseconds", measure::spread(times));
  json.set("processor_milliseconds", 1e3 * processor / static_cast<double>(times.size()));
  json.set("processors_used", processor / used);  // less than threads: they sleep, or others run
  json.set("tokens", work.tokens);
  json.set("tokens_per_second", static_cast<double>(work.tokens) / seconds);
  json.set("flops", work.flops);
  json.set("gflops", gflop / seconds);
  json.set("peak_gflops", peak);
  json.set("peak_gflops_lowest", *std::min_element(peaks.begin(), peaks.end()));
  json.set("peak_gflops_highest", *std::max_element(peaks.begin(), peaks.end()));
  json.set("fraction_of_peak", gflop / seconds / peak);
  json.set("fraction_of_peak_in_processor_time",
           processor_gflops / measure::median(processor_peaks));
  json.set("peak_memory_mib", measure::peak_memory());
  set_chapters(json, options, work, body);
  return json;
}

// ---- Training ----------------------------------------------------------------------------------

struct TrainingShape {
  ModelConfig model;
  double mask_probability;
  Rows rows;
};

std::vector<std::size_t> row_lengths(const Batch& batch) {
  std::vector<std::size_t> lengths;
  for (std::size_t row = 0; row < batch.rows(); ++row) {
    lengths.push_back(batch.offsets[row + 1] - batch.offsets[row]);
  }
  return lengths;
}

// Steps on one batch over and over.
Json train(const Options& options, const TrainingShape& shape) {
  return measure::in_child([&] {
    const ModelConfig& model = shape.model;
    Batch batch;
    for (const auto& row : shape.rows) {
      const Key key = fold_in(stream_key(1, Stream::masks), batch.rows());
      add_cloze_row(batch, row, model, shape.mask_probability, key);
    }
    const std::unique_ptr<Engine> engine = chosen_engine(options, model);
    std::uint64_t step = 0;
    const Work work{model.hidden_size, batch.tokens.size(), product_flops(model, batch, true)};
    Json json = measured(options, work, [&] { engine->train(batch, step++, 1e-3); });
    json.set("rows", batch.rows());
    json.set("masked", batch.asked.size());
    json.set("mask_probability", shape.mask_probability);
    json.set("lengths", row_lengths(batch));
    json.set("model", to_json(model));
    return json;
  });
}

ModelConfig sized(std::size_t items, std::size_t hidden, std::size_t layers, std::size_t heads) {
  return {.num_items = items, .hidden_size = hidden, .num_layers = layers, .num_heads = heads};
}

TrainingShape uniform_shape(const ModelConfig& model, std::size_t rows) {
  const std::vector<std::size_t> lengths(rows, model.max_length);
  return {model, 0.15, random_rows(lengths, model.num_items)};
}

Json seed(const Options& options) {
  return train(options, uniform_shape(sized(3000, 256, 2, 4), 31));
}

Json large(const Options& options) {
  return train(options, uniform_shape(sized(3000, 512, 4, 8), 16));
}

Json bert_base(const Options& options) {
  ModelConfig model = sized(21128, 768, 12, 12);
  model.max_length = 512;
  return train(options, uniform_shape(model, 8));
}

Json movielens(const Options& options) {
  constexpr std::size_t rows = 128;
  ModelConfig model = sized(3416, 64, 2, 2);
  if (options.data.empty()) {
    return train(options, {model, 0.2, random_rows(movielens_lengths(rows), model.num_items)});
  }
  const Dataset data = Dataset::load(options.data);
  model.num_items = data.catalogue.size();
  return train(options, {model, 0.2, sample_rows(data.histories, rows)});
}

// ---- Inference ---------------------------------------------------------------------------------

// The ten best unseen items of each user, as Recommender finds them, but for all users in one call.
Json recommend(const Options& options, const ModelConfig& model, std::size_t users) {
  return measure::in_child([&] {
    const std::vector<std::size_t> lengths(users, model.max_length);
    const Rows rows = random_rows(lengths, model.num_items);
    Batch batch;
    for (const auto& row : rows) add_next_item_row(batch, row, model);
    const std::unique_ptr<Engine> engine = chosen_engine(options, model);
    const std::vector<ItemSpan> seen(rows.begin(), rows.end());
    const Work work{model.hidden_size, batch.tokens.size(), product_flops(model, batch, false)};
    Json json = measured(options, work, [&] { engine->top(batch, seen, 10); });
    json.set("users", users);
    json.set("model", to_json(model));
    return json;
  });
}

Json latency(const Options& options) { return recommend(options, sized(3000, 256, 2, 4), 1); }

Json throughput(const Options& options) { return recommend(options, sized(3000, 256, 2, 4), 1000); }

Json inference(const Options& options) {
  Json json;
  json.set("latency", latency(options));
  json.set("throughput", throughput(options));
  return json;
}

// What callers wait who share one set of parameters, each with a thread, as those of a Recommender.
Json serve_callers(SharedEngine& engine, const Rows& rows, std::size_t callers,
                   std::size_t requests) {
  std::vector<double> waited(requests);
  std::atomic<std::size_t> next{0};
  const auto call = [&] {
    for (std::size_t i = next++; i < requests; i = next++) {
      const ItemSpan history = rows[i % rows.size()];
      waited[i] = measure::seconds_of([&] {
        engine.lend([&](Engine& one) { recommend_all(one, {&history, 1}, RecommendOptions()); });
      });
    }
  };
  const double seconds = measure::seconds_of([&] {
    std::vector<std::thread> threads;
    for (std::size_t caller = 0; caller < callers; ++caller) threads.emplace_back(call);
    for (std::thread& thread : threads) thread.join();
  });
  std::sort(waited.begin(), waited.end());
  Json json;
  json.set("callers", callers);
  json.set("requests", requests);
  json.set("requests_per_second", static_cast<double>(requests) / seconds);
  for (const auto& [name, share] : {std::pair("milliseconds_p50", 0.5),
                                    {"milliseconds_p99", 0.99},
                                    {"milliseconds_p99_9", 0.999}}) {
    const auto at = static_cast<std::size_t>(share * static_cast<double>(requests - 1));
    json.set(name, 1000 * waited[at]);
  }
  return json;
}

// Requests for the ten best of 3,416 items after 50 items, from one, two and eight callers.
Json serve(const Options& options) {
  const std::size_t requests = options.seconds > 0 ? 100'000 : 100;
  return measure::in_child([&] {
    const ModelConfig model = sized(3416, 64, 2, 2);
    const Rows rows = random_rows(std::vector<std::size_t>(64, 50), model.num_items);
    Options single = options;
    single.threads = 1;
    SharedEngine engine(chosen_engine(single, model));
    Json::Array lines;
    for (const std::size_t callers : {1u, 2u, 8u}) {
      lines.push_back(serve_callers(engine, rows, callers, requests));
    }
    Json json;
    json.set("lines", std::move(lines));
    return json;
  });
}

// The top ten of a million items (the paper's tied table, [1e6,64]), the product of one user's
// vector and the table in it, and the least these could take: reading the table from memory once.
// And, once, the top ten of 1,000 users together.
Json million(const Options& options) {
  return measure::in_child([&] {
    ModelConfig model = sized(1'000'000, 64, 2, 2);
    model.architecture = Architecture::paper;
    const Rows rows = random_rows({model.max_length}, model.num_items);
    Batch batch;
    add_next_item_row(batch, rows[0], model);
    CpuEngine<float> engine = make_engine(options, model);
    const std::span<const float> table = engine.parameters().first(model.num_items * 64);
    std::vector<float> scores(model.num_items), sums(thread_count(options));
    Compute<float> compute(options.threads, 0, 0, kernels_in_use);
    const auto read_table = [&] {
      compute.pool.parallel_ranges(
          table.size(), 4096, [&](auto begin, auto end, std::size_t worker) {
            sums[worker] = kernels_in_use.sum_of_squares(table.data() + begin, end - begin);
          });
    };
    const auto multiply_table = [&] {  // with its first row
      compute.parallel_multiply(1, model.num_items, 64, {table.data(), 64},
                                View<const float>{table.data(), 64}.T(), {nullptr, 0},
                                {scores.data(), model.num_items});
    };
    std::vector<double> read, product, score, select, total;
    for (double used = 0; used == 0 || used < options.seconds; used += read.back() + total.back()) {
      read.push_back(measure::seconds_of(read_table));
      product.push_back(measure::seconds_of(multiply_table));
      score.push_back(measure::seconds_of([&] { engine.score(batch, scores); }));
      select.push_back(measure::seconds_of([&] { top_unseen(scores, rows[0], 10); }));
      total.push_back(score.back() + select.back());
    }
    const Rows users =
        random_rows(std::vector<std::size_t>(1000, model.max_length), model.num_items);
    const std::vector<ItemSpan> histories(users.begin(), users.end());
    const double many = measure::seconds_of([&] { recommend_all(engine, histories, {10}); });
    Json json;
    json.set("seconds_1000_users", many);
    json.set("milliseconds", measure::spread(total));
    json.set("milliseconds_scores", measure::spread(score));
    json.set("milliseconds_top_unseen", measure::spread(select));
    json.set("milliseconds_product", measure::spread(product));
    json.set("milliseconds_reading", measure::spread(read));
    json.set("times_reading_product", measure::median(product) / measure::median(read));
    json.set("times_reading", measure::median(total) / measure::median(read));
    json.set("peak_memory_mib", measure::peak_memory());
    return json;
  });
}

// ---- Texts -------------------------------------------------------------------------------------

// A classifier of ten labels, with the vocabulary of Google's Chinese model.
ModelConfig classifier(std::size_t hidden, std::size_t layers, std::size_t heads) {
  ModelConfig model = sized(21'128, hidden, layers, heads);
  model.task = TaskKind::classification, model.architecture = Architecture::paper;
  model.max_length = 512, model.classes = 10, model.segments = 2, model.norm_epsilon = 1e-12;
  return model;
}

// `rows` texts whose lengths are spread evenly from `low` to `high` tokens.
Batch text_batch(const ModelConfig& model, std::size_t rows, std::size_t low, std::size_t high) {
  std::vector<std::size_t> lengths;
  for (std::size_t i = 0; i < rows; ++i) lengths.push_back(low + i * (high - low) / (rows - 1));
  shuffle(lengths, data_key);
  Batch batch;
  for (const auto& row : random_rows(lengths, model.num_items)) {
    add_text_row(batch, row, row.front() % 10);
  }
  return batch;
}

// A step on a batch, or its scores.
Json classify(const Options& options, const ModelConfig& model, const Batch& batch, bool train) {
  return measure::in_child([&] {
    auto engine = make_engine<ClassificationHead>(options, model);
    std::vector<float> scores(batch.rows() * model.classes);
    std::uint64_t step = 0;
    const Work work{model.hidden_size, batch.tokens.size(), product_flops(model, batch, train)};
    Json json = measured(options, work, [&] {
      if (train)
        engine.train(batch, step++, 1e-4);
      else
        engine.score(batch, scores);
    });
    json.set("rows", batch.rows());
    json.set("lengths", row_lengths(batch));
    json.set("model", to_json(model));
    return json;
  });
}

// Titles of 12 to 32 tokens and a small model; reviews of 20 to 160 and one of the size of BERT.
Json text(const Options& options) {
  const ModelConfig small = classifier(128, 2, 4), base = classifier(768, 12, 12);
  Json json;
  json.set("train", classify(options, small, text_batch(small, 64, 12, 32), true));
  json.set("predict", classify(options, small, text_batch(small, 1000, 12, 32), false));
  json.set("train_base", classify(options, base, text_batch(base, 16, 20, 160), true));
  json.set("predict_base", classify(options, base, text_batch(base, 64, 12, 32), false));
  return json;
}

// ---- Growth ------------------------------------------------------------------------------------

struct Series {
  const char* name;
  std::vector<std::size_t> values;
  ModelConfig (*model)(std::size_t value);
};

ModelConfig of_length(std::size_t length) {
  ModelConfig model = sized(3000, 64, 2, 2);
  model.max_length = length;
  return model;
}

ModelConfig of_items(std::size_t items) {
  ModelConfig model = sized(items, 64, 2, 2);
  model.architecture = Architecture::paper;  // one table, not two
  return model;
}

ModelConfig of_hidden_size(std::size_t hidden) { return sized(3000, hidden, 2, hidden / 32); }

// Steps of eight rows, with one size growing. Beside each time: the exponent of its growth from
// the line before, log(t / t') / log(x / x'), and that of the counted operations.
Json growth(const Options& options) {
  const std::vector<Series> all{
      {"length", {50, 100, 200, 400, 800}, of_length},
      {"items", {1000, 10'000, 100'000, 1'000'000}, of_items},
      {"hidden_size", {32, 64, 128, 256, 512}, of_hidden_size},
  };
  Options part = options;
  part.seconds = options.seconds / 14;
  Json json;
  for (const Series& series : all) {
    Json::Array lines;
    double x0 = 0, time0 = 0, flops0 = 0;
    for (const std::size_t value : series.values) {
      Json line;
      line.set(series.name, value);
      const Json step = train(part, uniform_shape(series.model(value), 8));
      const double time = step.at("milliseconds").at("median").number();
      const double flops = step.at("flops").number(), x = static_cast<double>(value);
      for (const char* field : {"milliseconds", "flops", "fraction_of_peak", "peak_memory_mib"}) {
        line.set(field, step.at(field));
      }
      if (x0 > 0) {
        line.set("exponent_of_time", std::log(time / time0) / std::log(x / x0));
        line.set("exponent_of_flops", std::log(flops / flops0) / std::log(x / x0));
      }
      lines.push_back(std::move(line));
      x0 = x, time0 = time, flops0 = flops;
    }
    json.set(series.name, std::move(lines));
  }
  return json;
}

struct TemporaryFolder {
  TemporaryFolder() {
    std::random_device random;
    do path = std::filesystem::temp_directory_path() / join("benchmark_", random());
    while (!std::filesystem::create_directory(path));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  Path path;
};

// ---- Large catalogues --------------------------------------------------------------------------

// Users of 20 items, drawn so that the lower ones are far more popular.
Dataset made_up_data(std::size_t items, std::size_t users) {
  Dataset data;
  for (std::size_t i = 0; i < items; ++i) {
    Item item;
    item.id = static_cast<std::int64_t>(i);
    data.catalogue.add(std::move(item));
  }
  std::vector<std::int32_t> history(20);
  for (std::size_t user = 0; user < users; ++user) {
    const Key key = fold_in(data_key, user);
    for (std::size_t i = 0; i < history.size(); ++i) {
      const double x = uniform(key, i);
      history[i] = static_cast<std::int32_t>(x * x * x * static_cast<double>(items));
    }
    data.histories.add(join(user), history);
  }
  return data;
}

// Milliseconds to save a model, moments included, and to load it.
void add_files(const Options& options, Engine& engine, Json& json) {
  const TemporaryFolder folder;
  const Path path = folder.path / "model.safetensors";
  json.set("milliseconds_save",
           1e3 * measure::seconds_of([&] { save_engine(path, engine, true, {}); }));
  json.set("megabytes", static_cast<double>(std::filesystem::file_size(path)) * 1e-6);
  json.set("milliseconds_load",
           1e3 * measure::seconds_of([&] { load_model(Safetensors(path), options.threads); }));
}

// Steps of 64 users with 256 drawn items, where those users are new in each: batch and all.
Json drawn_steps(const Options& options, std::size_t items) {
  return measure::in_child([&] {
    const Dataset data = made_up_data(items, 200'000);
    ModelConfig model = of_items(items);
    model.max_length = 50;
    TrainConfig train;
    train.threads = options.threads, train.loss = Loss::sampled_softmax;
    const ItemTask task(data, model, train);
    kernels_in_use = chosen_kernels(options);
    CpuEngine<float> engine(task.model(), train, kernels_in_use);
    Batch batch;
    std::size_t step = 0;
    std::vector<double> times;
    const auto take_step = [&] {
      batch.clear();
      for (std::size_t i = 0; i < train.batch_size; ++i) {
        task.add_example(batch, (step * train.batch_size + i) % task.examples(), 0);
      }
      task.finish_batch(batch, step);
      engine.train(batch, step++, 1e-3);
    };
    measure::repeat(options.seconds / 6, times, take_step);  // until rows begin to come again
    times.clear();
    measure::repeat(options.seconds / 3, times, take_step);
    Json json;
    json.set("items", items);
    json.set("milliseconds", measure::spread(times));
    json.set("steps", step);
    // What the rows that were not touched have missed, as at the end of an epoch.
    json.set("milliseconds_catch_up", 1e3 * measure::seconds_of([&] { engine.parameters(); }));
    json.set("peak_memory_mib", measure::peak_memory());
    add_files(options, engine, json);
    return json;
  });
}

Json catalogue(const Options& options) {
  Json::Array lines;
  for (const std::size_t items : std::vector<std::size_t>{10'000, 100'000, 1'000'000}) {
    lines.push_back(drawn_steps(options, items));
  }
  const auto median = [](const Json& line) {
    return line.at("milliseconds").at("median").number();
  };
  Json json;
  json.set("times_first", median(lines.back()) / median(lines.front()));
  json.set("lines", std::move(lines));
  return json;
}

// ---- Loading -----------------------------------------------------------------------------------

// A data set of the size of MovieLens-1M as a data folder, and as the table `user::item::rating::
// time` it could have come from, where a user's lines are not in the order of time.
void write_movielens(const Path& folder, const Rows& rows, std::size_t num_items) {
  std::string items, histories, table;
  for (std::size_t i = 0; i < num_items; ++i) {
    items += join("{\"id\": ", i + 1, ", \"title\": {\"english\": \"Title ", i, "\"}}\n");
  }
  for (std::size_t user = 0; user < rows.size(); ++user) {
    histories += join("{\"user\": \"", user + 1, "\", \"entries\": [");
    for (std::size_t i = 0; i < rows[user].size(); ++i) {
      const std::size_t time = 978'300'000 + 40 * i, turned = rows[user].size() - 1 - i;
      histories += join(i > 0 ? ", " : "", "{\"id\": ", rows[user][i] + 1, ", \"at\": ", time, "}");
      table +=
          join(user + 1, "::", rows[user][turned] + 1, "::5::", 978'300'000 + 40 * turned, "\n");
    }
    histories += "]}\n";
  }
  write_file(folder / "items.jsonl", items);
  write_file(folder / "histories.jsonl", histories);
  write_file(folder / "ratings.dat", table);
}

// Milliseconds of body(), and the size of the file it reads through a second of it.
template <class Body>
Json reading(double seconds, const Path& file, Body&& body) {
  std::vector<double> times;
  measure::repeat(seconds, times, body);
  const double size = static_cast<double>(std::filesystem::file_size(file)) * 1e-6;
  Json json;
  json.set("milliseconds", measure::spread(times));
  json.set("megabytes", size);
  json.set("megabytes_per_second", size / measure::median(times));
  return json;
}

Json load(const Options& options) {
  constexpr std::size_t users = 6040, items = 3416;
  const TemporaryFolder folder;
  write_movielens(folder.path, random_rows(movielens_lengths(users), items), items);
  Json json;
  json.set("load", measure::in_child([&] {
             return reading(options.seconds / 2, folder.path / "histories.jsonl",
                            [&] { Dataset::load(folder.path); });
           }));
  const Path importer = options.program.parent_path() / "import_interactions";
  if (!std::filesystem::exists(importer)) return json;  // it is built beside this program, or not
  const Path table = folder.path / "ratings.dat", output = folder.path / "imported";
  json.set("import", reading(options.seconds / 2, table, [&] {
             measure::run_program(
                 {path_text(importer), "--input", path_text(table), "--output", path_text(output)});
           }));
  return json;
}

// ---- Printing ----------------------------------------------------------------------------------

std::string number(const Json& json, std::string_view field, int decimals) {
  return cli::fixed(json.at(field).number(), decimals);
}

std::string percent(const Json& json, std::string_view field) {
  return cli::fixed(100 * json.at(field).number(), 1) + "%";
}

std::string grouped(const Json& json, std::string_view field) {
  return cli::grouped(static_cast<std::uint64_t>(json.at(field).integer()));
}

std::string times_text(const Json& spread) {
  return join(number(spread, "median", 2), " ms (quartiles ", number(spread, "lower_quartile", 2),
              " ... ", number(spread, "upper_quartile", 2), ", n = ", grouped(spread, "n"), ")");
}

std::string memory_text(const Json& mebibytes) {
  return mebibytes.is_null() ? "not measured" : cli::fixed(mebibytes.number(), 0) + " MiB";
}

void print_line(const std::string& name, const std::string& text) {
  std::printf("  %-12s %s\n", name.c_str(), text.c_str());
}

void print_processors(const Json& json) {
  print_line("processors", join(number(json, "processors_used", 2), " used on average, ",
                                number(json, "processor_milliseconds", 2), " ms in all"));
  print_line(
      "of the peak",
      join(percent(json, "fraction_of_peak"), " of ", number(json, "peak_gflops", 1), " GFLOP/s (",
           number(json, "peak_gflops_lowest", 1), " ... ", number(json, "peak_gflops_highest", 1),
           "); ", percent(json, "fraction_of_peak_in_processor_time"), " in processor time"));
  std::string shares;
  for (const char* name : chapters::names)
    shares += join(name, " ", percent(json.at("chapters"), name), "  ");
  print_line("chapters",
             join(shares, "(with clocks: ", number(json, "milliseconds_with_clocks", 2), " ms)"));
  print_line("peak memory", memory_text(json.at("peak_memory_mib")));
}

void print_work(const Json& json) {
  const Json& model = json.at("model");
  const std::string tokens = grouped(json, "tokens") + " tokens";
  print_line("model", join(grouped(model, "num_items"), " items, hidden ",
                           grouped(model, "hidden_size"), ", ", grouped(model, "num_layers"),
                           " layers, ", grouped(model, "num_heads"), " heads"));
  if (json.find("users") != nullptr) {
    print_line("a call", join(grouped(json, "users"), " users, ", tokens));
  } else {
    const bool masks = json.find("masked") != nullptr;
    print_line("a step", join(grouped(json, "rows"), " rows, ", tokens,
                              masks ? join(", ", grouped(json, "masked"), " masked") : ""));
  }
  print_line("time", times_text(json.at("milliseconds")));
  print_line("speed", number(json, "tokens_per_second", 0) + " tokens/s");
  print_line("products", join(cli::fixed(json.at("flops").number() * 1e-9, 3), " GFLOP, ",
                              number(json, "gflops", 1), " GFLOP/s"));
  if (json.find("chapters") != nullptr) print_processors(json);
}

void print_million(const Json& json) {
  print_line("time", times_text(json.at("milliseconds")));
  print_line("scores", times_text(json.at("milliseconds_scores")));
  print_line("top_unseen", times_text(json.at("milliseconds_top_unseen")));
  print_line("product", times_text(json.at("milliseconds_product")) + ": with one user's vector");
  print_line("reading", times_text(json.at("milliseconds_reading")) + ": the table, once");
  print_line("", join(number(json, "times_reading", 2), " times the reading, the product ",
                      number(json, "times_reading_product", 2)));
  print_line("1,000 users", number(json, "seconds_1000_users", 2) + " s: the top ten of each");
  print_line("peak memory", memory_text(json.at("peak_memory_mib")));
}

void print_serve(const Json& json) {
  for (const Json& line : json.at("lines").array()) {
    print_line(
        grouped(line, "callers") + " at once",
        join(number(line, "requests_per_second", 0), " requests/s; waiting p50 ",
             number(line, "milliseconds_p50", 3), ", p99 ", number(line, "milliseconds_p99", 3),
             ", p99.9 ", number(line, "milliseconds_p99_9", 3), " ms"));
  }
}

void print_growth(const Json& json) {
  for (const auto& [name, lines] : json.object()) {
    std::printf("  %-12s %12s %10s %10s %16s %17s\n", name.c_str(), "ms", "GFLOP", "of peak",
                "exponent of time", "exponent of flops");
    for (const Json& line : lines.array()) {
      const bool first = line.find("exponent_of_time") == nullptr;
      std::printf("  %-12s %12s %10s %10s %16s %17s\n", number(line, name, 0).c_str(),
                  number(line.at("milliseconds"), "median", 2).c_str(),
                  cli::fixed(line.at("flops").number() * 1e-9, 2).c_str(),
                  percent(line, "fraction_of_peak").c_str(),
                  first ? "" : number(line, "exponent_of_time", 2).c_str(),
                  first ? "" : number(line, "exponent_of_flops", 2).c_str());
    }
  }
}

void print_catalogue(const Json& json) {
  for (const Json& line : json.at("lines").array()) {
    print_line(
        grouped(line, "items"),
        join("a step ", times_text(line.at("milliseconds")), "; after ", grouped(line, "steps"),
             " steps all rows in ", number(line, "milliseconds_catch_up", 1), " ms"));
    print_line("", join("peak memory ", memory_text(line.at("peak_memory_mib")), "; saved in ",
                        number(line, "milliseconds_save", 0), " ms (", number(line, "megabytes", 0),
                        " MB), loaded in ", number(line, "milliseconds_load", 0), " ms"));
  }
  print_line("", join("a step with the most items takes ", number(json, "times_first", 2),
                      " times that with the fewest"));
}

void print_parts(const Json& json) {
  for (const auto& [name, part] : json.object()) {
    if (part.find("model") != nullptr) {
      std::printf(" %s\n", name.c_str());
      print_work(part);
      continue;
    }
    print_line(name, join(times_text(part.at("milliseconds")), ", ", number(part, "megabytes", 1),
                          " MB, ", number(part, "megabytes_per_second", 0), " MB/s"));
  }
}

// ---- The program -------------------------------------------------------------------------------

struct Shape {
  std::string_view name;
  Json (*run)(const Options&);
  void (*print)(const Json&);
};

// Those that --gpu may time.
constexpr std::array<std::string_view, 7> gpu_shapes{
    "seed", "ml-1m", "large", "bert-base", "inference", "latency", "throughput"};

constexpr std::array<Shape, 13> all_shapes{{{"seed", seed, print_work},
                                            {"ml-1m", movielens, print_work},
                                            {"large", large, print_work},
                                            {"bert-base", bert_base, print_work},
                                            {"inference", inference, print_parts},
                                            {"latency", latency, print_work},
                                            {"throughput", throughput, print_work},
                                            {"serve", serve, print_serve},
                                            {"topk", million, print_million},
                                            {"text", text, print_parts},
                                            {"growth", growth, print_growth},
                                            {"catalogue", catalogue, print_catalogue},
                                            {"load", load, print_parts}}};

std::vector<Shape> chosen_shapes(const std::string& list, bool on_gpu) {
  std::vector<Shape> chosen;
  for (std::size_t at = 0; at <= list.size();) {
    const std::size_t end = std::min(list.find(',', at), list.size());
    const std::string name = list.substr(at, end - at);
    const auto found = std::find_if(all_shapes.begin(), all_shapes.end(),
                                    [&](const Shape& shape) { return shape.name == name; });
    if (found == all_shapes.end()) {
      std::string names;
      for (const Shape& shape : all_shapes) names += join(names.empty() ? "" : ", ", shape.name);
      throw cli::UsageError(join("unknown shape \"", name, "\", expected some of ", names));
    }
    if (on_gpu && std::find(gpu_shapes.begin(), gpu_shapes.end(), name) == gpu_shapes.end()) {
      throw cli::UsageError(join("--gpu does not go with the shape ", name));
    }
    chosen.push_back(*found);
    at = end + 1;
  }
  return chosen;
}

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line(
      "benchmark",
      "times training steps, inference and loading on fixed shapes, and compares "
      "them with the machine's peak\n\n"
      "Shapes, separated by commas: seed (31 rows of 200), ml-1m, large, bert-base, inference\n"
      "(its two parts alone: latency, throughput), serve (many callers at once), topk (of a\n"
      "million items), growth (time against size), load, catalogue (a loss over drawn items, of\n"
      "10,000 to a million), text (classifiers)\n\n"
      "On Windows without two figures: peak memory, and the import in load",
      "benchmark --shape seed,inference --threads 1 --seconds 10");
  line.option("shape", options.shapes, "what to measure");
  line.option("seconds", options.seconds, "for each measurement, about");
  line.option("threads", options.threads, "threads; 0: one a core");
  line.option("kernels", options.kernels, "plain, baseline, avx2 or avx512; else the widest");
  line.option("data", options.data, "a data folder from which ml-1m takes its rows");
  options.gpu.add_flags(line);
  line.flag("json", options.json, "print JSON");
  line.parse(argc, argv);
  options.program = path_from(argv[0]);
  if (!(options.seconds >= 0 && options.seconds <= 1e6)) {
    throw cli::UsageError(join("--seconds is ", options.seconds, ", expected 0 ... 1000000"));
  }
  if (options.threads > 1024) {
    throw cli::UsageError(join("--threads is ", options.threads, ", expected 0 ... 1024"));
  }
  return options;
}

int benchmark(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const std::vector<Shape> shapes = chosen_shapes(options.shapes, options.gpu.asked.has_value());
  Json json, results;
  json.set("kernels", chosen_kernels(options).name);
  json.set("threads", thread_count(options));
  if (!options.json) {
    std::printf("kernels: %s, threads: %zu\n", chosen_kernels(options).name, thread_count(options));
  }
  for (const Shape& shape : shapes) {
    Json result = shape.run(options);
    if (!options.json) {
      std::printf("%s\n", std::string(shape.name).c_str());
      shape.print(result);
      std::fflush(stdout);
    } else {
      results.set(shape.name, std::move(result));
    }
  }
  json.set("shapes", std::move(results));
  if (options.json) std::cout << json.text(2) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("benchmark", argc, argv, benchmark); }
