// Times training steps on the GPU, in float32 and half precision, and, for comparison, on the
// processor: milliseconds, medians. Then the ten best of a million items for a thousand users.
//
//   time_device [SECONDS]       for each measurement (5)

#include "bert4rec.hpp"
#include "cuda/engine.hpp"

#include <iostream>

using namespace bert4rec;

namespace {

struct TimedShape {
  const char* name;
  std::size_t hidden_size, num_layers, num_heads, max_length, num_items, rows;
  bool ragged;  // rows of a tenth of max_length to all of it
};

Batch batch_of(const TimedShape& shape, const ModelConfig& model, std::uint64_t step) {
  Batch batch;
  for (std::size_t row = 0; row < shape.rows; ++row) {
    const Key key = fold_in(fold_in(make_key(7), step), row);
    const std::size_t L = shape.max_length, least = shape.ragged ? L / 10 : L;
    std::vector<std::int32_t> items(least + below(key, 0, L - least + 1));
    for (std::size_t i = 0; i < items.size(); ++i) {
      items[i] = static_cast<std::int32_t>(below(fold_in(key, 1), i, shape.num_items));
    }
    add_cloze_row(batch, items, model, 0.15, key);
  }
  return batch;
}

// Milliseconds of a step, the median; `loss` receives that of the last.
double time_steps(const TimedShape& shape, const EngineMaker& make, double seconds,
                  std::uint64_t most, double& loss) {
  ModelConfig model;
  model.num_items = shape.num_items, model.hidden_size = shape.hidden_size;
  model.num_layers = shape.num_layers, model.num_heads = shape.num_heads;
  model.max_length = shape.max_length;
  TrainConfig train;
  train.batch_size = shape.rows;
  const auto engine = make(model, train, Start::random);
  std::vector<Batch> batches;
  for (std::uint64_t i = 0; i < 4; ++i) batches.push_back(batch_of(shape, model, i));
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  const Clock::time_point begin = Clock::now();
  for (std::uint64_t step = 0; step < most; ++step) {
    const Clock::time_point start = Clock::now();
    loss = engine->train(batches[step % batches.size()], step, 1e-3).loss();
    const Clock::time_point end = Clock::now();
    times.push_back(std::chrono::duration<double, std::milli>(end - start).count());
    if (step > 2 && std::chrono::duration<double>(end - begin).count() > seconds) break;
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// The ten best of a million items for each of `users`: milliseconds.
double time_best(const EngineMaker& make, std::size_t users, std::vector<Recommendation>& first) {
  ModelConfig model;
  model.num_items = 1'000'000, model.hidden_size = 64, model.num_heads = 2;
  const auto engine = make(model, TrainConfig(), Start::random);
  std::vector<std::vector<std::int32_t>> histories(users, std::vector<std::int32_t>(50));
  for (std::size_t i = 0; i < users * 50; ++i) {
    histories[i / 50][i % 50] = static_cast<std::int32_t>(below(make_key(9), i, model.num_items));
  }
  const std::vector<ItemSpan> spans(histories.begin(), histories.end());
  recommend_all(*engine, std::span(spans).first(1), {10});  // memory is taken
  const auto begin = std::chrono::steady_clock::now();
  first = recommend_all(*engine, spans, {10}).front();
  const auto end = std::chrono::steady_clock::now();
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

}  // namespace

int main(int count, char** words) {
  try {
    const double seconds = count > 1 ? std::stod(words[1]) : 5;
    for (const TimedShape& shape : {TimedShape{"seed", 256, 2, 4, 200, 3000, 31, false},
                                    TimedShape{"ml-1m", 64, 2, 2, 200, 3416, 128, true},
                                    TimedShape{"large", 512, 4, 8, 200, 3000, 32, false},
                                    TimedShape{"bert-base", 768, 12, 12, 512, 21128, 8, true}}) {
      double loss = 0, loss_here = 0;
      const double gpu = time_steps(shape, make_cuda_engine, seconds, 1000, loss);
      const double half = time_steps(shape, cuda_engine_maker(0, true), seconds, 1000, loss);
      const double cpu = time_steps(shape, make_cpu_engine, 0, 4, loss_here);
      time_steps(shape, make_cuda_engine, 0, 4, loss);  // the same four steps
      std::cout << shape.name << ": a step on the GPU " << gpu << " ms, in half precision " << half
                << " ms, on the processor " << cpu << " ms; loss after four steps " << loss
                << ", there " << loss_here << (loss == loss_here ? ": the same" : ": NOT THE SAME")
                << std::endl;
    }
    std::vector<Recommendation> best, best_here;
    const double gpu = time_best(make_cuda_engine, 1000, best);
    const double cpu = time_best(make_cpu_engine, 1000, best_here);
    const bool same = std::equal(
        best.begin(), best.end(), best_here.begin(), best_here.end(),
        [](const auto& a, const auto& b) { return a.item == b.item && a.score == b.score; });
    std::cout << "ten of a million items for 1,000 users: on the GPU " << gpu
              << " ms, on the processor " << cpu << " ms: " << (same ? "the same" : "NOT THE SAME")
              << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "time_device: " << error.what() << "\n";
    return 1;
  }
}
