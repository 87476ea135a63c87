// Times training steps on the GPU and, for comparison, on the processor: milliseconds, medians.
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
      const double cpu = time_steps(shape, make_cpu_engine, 0, 4, loss_here);
      time_steps(shape, make_cuda_engine, 0, 4, loss);  // the same four steps
      std::cout << shape.name << ": a step on the GPU " << gpu << " ms, on the processor " << cpu
                << " ms; loss after four steps " << loss << ", there " << loss_here
                << (loss == loss_here ? ": the same" : ": NOT THE SAME") << std::endl;
    }
  } catch (const std::exception& error) {
    std::cerr << "time_device: " << error.what() << "\n";
    return 1;
  }
}
