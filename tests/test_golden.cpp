// The same seed gives the same bits: checksums of initial weights, of training steps and of the
// files of a whole run, stored once. Every compiler, option, instruction set, number of threads and
// system must give them (tests/run.sh everywhere). A change that moves them moves every published
// figure, and says so in CHANGELOG.md.

#include "bert4rec.hpp"
#include "check.hpp"
#include "small_data.hpp"

using namespace bert4rec;
using detail::Kernels;

namespace {

void check_golden(std::string_view what, std::uint64_t found, std::uint64_t expected,
                  Place where = {__builtin_FILE(), __builtin_LINE()}) {
  check(found == expected,
        join(what, ": checksum 0x", detail::hexadecimal(found), ", expected 0x",
             detail::hexadecimal(expected)),
        where);
}

std::uint64_t checksum_of(std::span<const float> numbers, std::uint64_t sum) {
  return checksum({reinterpret_cast<const char*>(numbers.data()), numbers.size_bytes()}, sum);
}

// ---- Initial weights ---------------------------------------------------------------------------

std::uint64_t initial_weights() {
  ModelConfig model = small_model();
  model.num_items = 7000, model.hidden_size = 64;
  ThreadPool pool(3);
  const TensorTable table = bert4rec_tensors(model);
  check(table.size() > 1'000'000, join(table.size(), " numbers"));
  return checksum_of(initial_parameters(table, 0.02, 42, pool), 0);
}

// ---- Steps -------------------------------------------------------------------------------------

constexpr std::size_t num_items = 97, longest = 23;

struct Steps {
  Architecture architecture;
  std::size_t hidden_size;
  std::uint64_t expected;
  Loss loss = Loss::softmax;
  TaskKind task = TaskKind::items;
  std::uint64_t steps = 20;
};

constexpr Steps all_steps[] = {
    {Architecture::torch, 36, 0x0636e43df6b36ca7},
    {Architecture::torch, 50, 0x17f6a6260cb63f5c},
    {Architecture::torch, 64, 0xf1d649350241f202},
    {Architecture::paper, 36, 0xeb9a038621f0b057},
    {Architecture::paper, 50, 0x4316a1edeb6cb9f0},
    {Architecture::paper, 64, 0x1b59eed1a92e04da},
    {Architecture::tied, 36, 0xffe55b4d5a1ed456},
    {Architecture::tied, 50, 0x05373bb5ff0e4dcb, Loss::sampled_softmax, TaskKind::items, 6},
    {Architecture::paper, 36, 0x24456567d5f4e075, Loss::gbce, TaskKind::items, 6},
    {Architecture::torch, 50, 0xde82186fdef8487d, Loss::softmax, TaskKind::matching, 6}};

// Rows of 1 ... 9 items and one of the longest: 68 tokens, in two blocks of a sum over tokens; and
// 13 items drawn for all places, or 2 for each.
Batch ragged_batch(const ModelConfig& model, Loss loss, std::uint64_t step) {
  Batch batch;
  for (std::size_t row = 0; row < 10; ++row) {
    const Key key = fold_in(fold_in(make_key(17), step), row);
    std::vector<std::int32_t> items;
    for (std::size_t i = 0; i < (row < 9 ? row + 1 : longest); ++i) {
      items.push_back(static_cast<std::int32_t>(below(fold_in(key, 1), i, num_items)));
    }
    add_cloze_row(batch, items, model, 0.3, key);
  }
  const Key drawn = fold_in(make_key(18), step);
  const auto draw = [&](std::size_t i) {
    return static_cast<std::int32_t>(below(drawn, i, num_items));
  };
  for (std::size_t i = 0; draws_negatives(loss) && i < 13; ++i) {
    batch.negatives.push_back(draw(i));
    batch.log_expected.push_back(static_cast<float>(uniform(drawn, 100 + i)) - 2);
  }
  if (model.task != TaskKind::matching) return batch;
  for (std::size_t i = 0; i < 2 * batch.asked.size(); ++i) batch.own_negatives.push_back(draw(i));
  return batch;
}

// Losses, parameters and both moments after all steps.
template <template <class> class Head>
std::uint64_t checksum_of_steps(const Steps& steps, const Kernels<float>& kernels,
                                std::size_t threads) {
  ModelConfig model;
  model.num_items = num_items, model.max_length = longest, model.task = steps.task;
  model.hidden_size = steps.hidden_size, model.num_heads = steps.hidden_size % 3 == 0 ? 3 : 2;
  model.dropout = 0.1, model.attention_dropout = 0.2, model.architecture = steps.architecture;
  TrainConfig train;
  train.threads = threads, train.clip_norm = 1, train.loss = steps.loss;
  CpuEngine<float, Head> engine(model, train, kernels);
  std::uint64_t sum = 0;
  for (std::uint64_t step = 0; step < steps.steps; ++step) {
    const double loss = engine.train(ragged_batch(model, train.loss, step), step, 1e-3).loss_sum;
    sum = checksum({reinterpret_cast<const char*>(&loss), sizeof loss}, sum);
  }
  std::vector<float> numbers(engine.table().size());
  for (const State state : {State::parameters, State::first_moment, State::second_moment}) {
    engine.read(state, numbers);
    sum = checksum_of(numbers, sum);
  }
  return sum;
}

void check_steps(const Kernels<float>& kernels, std::size_t threads) {
  for (const Steps& steps : all_steps) {
    const auto sum = steps.task == TaskKind::matching ? checksum_of_steps<MatchingHead>
                                                      : checksum_of_steps<ItemHead>;
    check_golden(join(kernels.name, ", ", threads, " threads, ", enum_name(steps.architecture),
                      ", hidden size ", steps.hidden_size, ", ", enum_name(steps.task), ", ",
                      enum_name(steps.loss)),
                 sum(steps, kernels, threads), steps.expected);
  }
}

// ---- A whole run -------------------------------------------------------------------------------

// Everything that decides the bytes of a model: schedule, clipping, choices of rows, split,
// validation and, by it, the best epoch.
void check_run(KernelSet kernels, std::size_t threads) {
  const Dataset data = ring_data(40, 30);
  ModelConfig model = small_model();
  model.hidden_size = 20, model.architecture = Architecture::paper;
  TrainConfig train = small_train();
  train.epochs = 6, train.batch_size = 7, train.learning_rate = 0.01, train.clip_norm = 0.5;
  train.schedule = Schedule::cosine, train.warmup_steps = 3, train.weight_decay = 0.07;
  train.mask_last = 0.2, train.random_share = 0.1, train.keep_share = 0.1;
  train.window_stride = 5, train.reversed_share = 0.2, train.split = Split::last;
  train.best_by = Metric::top20, train.kernels = kernels, train.threads = threads;
  const TemporaryFolder folder;
  Trainer trainer(data, model, train, folder.path());
  trainer.run();
  const auto file = [&](const char* name) {
    return checksum(read_file(folder.path() / "models" / name));
  };
  const std::string setup = join(enum_name(kernels), ", ", threads, " threads: ");
  check_golden(setup + "final_model", file("final_model.safetensors"), 0x072c2a21a65b9511);
  check_golden(setup + "best_model", file("best_model.safetensors"), 0xd2feb707ccd8d313);
  std::string curves;
  for (const double loss : trainer.metrics().train_losses) curves += join(loss, " ");
  for (const double loss : trainer.metrics().val_losses) curves += join(loss, " ");
  check_golden(setup + "losses", checksum(curves), 0x3a65c186422cd3a5);
}

KernelSet named(const Kernels<float>& kernels) {
  return enum_value<KernelSet>(kernels.name, "kernels");
}

// ---- A planted change --------------------------------------------------------------------------

// softmax_backward with one rounding more: p mean is rounded before it is subtracted.
void softmax_backward_rounded_twice(const float* p, const float* q, float* dq, float scale,
                                    std::size_t n) {
  float mean = 0;
  for (std::size_t i = 0; i < n; ++i) mean = detail::fused(q[i], dq[i], mean);
  for (std::size_t i = 0; i < n; ++i) {
    dq[i] = scale * (detail::rounded(q[i] * dq[i]) - detail::rounded(p[i] * mean));
  }
}

}  // namespace

int main() {
  const std::vector<const Kernels<float>*> all = detail::available_kernels<float>();
  const Kernels<float>& widest = *all.back();
  test("a million initial weights",
       [] { check_golden("initial weights", initial_weights(), 0x6be2d086a646face); });
  for (const Kernels<float>* kernels : all) {
    test(join("steps: ", kernels->name), [&] { check_steps(*kernels, 1); });
  }
  for (std::size_t threads = 2; threads <= 5; ++threads) {
    test(join("steps: ", threads, " threads"), [&] { check_steps(widest, threads); });
  }
  for (const Kernels<float>* kernels : all) {
    test(join("a whole run: ", kernels->name), [&] { check_run(named(*kernels), 1); });
  }
  test("a whole run: 3 threads", [&] { check_run(named(widest), 3); });
  test("one rounding too many is caught", [&] {
    Kernels<float> changed = widest;
    changed.softmax_backward = softmax_backward_rounded_twice;
    const Steps& steps = all_steps[1];
    check(checksum_of_steps<ItemHead>(steps, changed, 1) != steps.expected,
          "the checksum is another");
  });
  return finish();
}
