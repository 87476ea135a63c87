// The engine on a GPU gives the bits of the engine on the processor: every step of every head, on
// ragged rows, and what is read from it. Compiled with emulation.hpp it runs everywhere; nvcc makes
// of the same text the test of a device (tests/cuda/on_device.sh).

#include "bert4rec.hpp"
#include "check.hpp"
#include "cuda/engine.hpp"
#include "cuda/kernels.cuh"
#include "ranks.hpp"
#include "small_data.hpp"

#if defined(BERT4REC_WITH_NCCL)
#include "cuda/nccl.hpp"
#endif

#if defined(BERT4REC_EMULATION)
#include "emulation.hpp"
#include "nccl.h"
#endif

using namespace bert4rec;

namespace {

// ---- Cases -------------------------------------------------------------------------------------

struct Case {
  std::string name;
  ModelConfig model;
  TrainConfig train;
  std::size_t rows = 9, shortest = 1, steps = 3;
  std::size_t shared_memory = std::size_t{1} << 30;  // that attention is given at most
};

// Rows of `shortest` ... L items, of which some are asked for.
Batch ragged_batch(const Case& at, std::uint64_t step) {
  Batch batch;
  const std::size_t L = at.model.max_length, I = at.model.num_items;
  for (std::size_t row = 0; row < at.rows; ++row) {
    const Key key = fold_in(fold_in(make_key(17), step), row);
    const std::size_t n = row == 0 ? L : at.shortest + below(key, 0, L - at.shortest + 1);
    std::vector<std::int32_t> items;
    for (std::size_t i = 0; i < n; ++i) {
      items.push_back(static_cast<std::int32_t>(below(fold_in(key, 1), i, I)));
    }
    if (at.model.task == TaskKind::classification) {
      batch.ask(static_cast<std::int32_t>(row % at.model.classes), items[0]);
      for (std::size_t i = 1; i < n; ++i) {
        batch.tokens.push_back(items[i]);
        batch.segments.resize(batch.tokens.size());
        batch.segments.back() = i > n / 2 && at.model.segments > 1;
      }
      batch.segments.resize(batch.tokens.size());
      batch.weights.push_back(row % 2 == 0 ? 1.0f : 0.3f);
      batch.end_row();
      if (at.model.segments == 0) batch.segments.clear();
    } else if (at.model.objective == Objective::causal) {
      add_causal_row(batch, items, at.model);
    } else {
      add_cloze_row(batch, items, at.model, 0.3, key);
    }
  }
  add_bigrams(batch, at.model, 0.2, fold_in(make_key(29), step));
  const auto draw = [&](std::size_t i) {
    return static_cast<std::int32_t>(below(fold_in(make_key(23), step), i, I));
  };
  if (at.model.task == TaskKind::matching) {
    for (std::size_t i = 0; i < 3 * batch.asked.size(); ++i) batch.own_negatives.push_back(draw(i));
  } else if (draws_negatives(at.train.loss)) {
    for (std::size_t i = 0; i < at.train.negatives; ++i) {
      batch.negatives.push_back(draw(i));
      batch.log_expected.push_back(-0.5f - 0.1f * static_cast<float>(i % 3));
    }
  }
  return batch;
}

std::vector<Case> cases() {
  Case base;
  base.model.num_items = 97, base.model.max_length = 23, base.model.hidden_size = 40;
  base.model.num_heads = 2, base.model.dropout = 0.1, base.model.attention_dropout = 0.2;
  base.train.threads = 1, base.train.clip_norm = 1, base.train.batch_size = 9;
  std::vector<Case> all;
  const auto add = [&](std::string name, auto&& change) {
    Case made = base;
    made.name = std::move(name);
    change(made);
    all.push_back(made);
  };
  add("items, paper", [](Case&) {});
  add("items, torch", [](Case& c) { c.model.architecture = Architecture::torch; });
  add("items, tied", [](Case& c) { c.model.architecture = Architecture::tied, c.steps = 2; });
  add("no dropout, three heads of 5, one layer", [](Case& c) {
    c.model.hidden_size = 15, c.model.num_heads = 3, c.model.num_layers = 1;
    c.model.dropout = c.model.attention_dropout = 0;
  });
  add("causal",
      [](Case& c) { c.model.objective = Objective::causal, c.model.max_length = 70, c.rows = 4; });
  add("causal, heads of 40", [](Case& c) {
    c.model.objective = Objective::causal, c.model.hidden_size = 80, c.rows = 3, c.steps = 2;
  });
  add("wide heads, of 72",
      [](Case& c) { c.model.hidden_size = 72, c.model.num_heads = 1, c.rows = 3, c.steps = 2; });
  add("a head of 200 and 48 KiB of shared memory", [](Case& c) {
    c.model.hidden_size = 200, c.model.num_heads = 1, c.model.num_layers = 1, c.rows = 3;
    c.steps = 1, c.shared_memory = 48 << 10;
  });
  add("causal and 8 KiB of shared memory", [](Case& c) {
    c.model.objective = Objective::causal, c.model.max_length = 70, c.rows = 3, c.steps = 1;
    c.shared_memory = 8 << 10;
  });
  add("two groups, of 2,048 tokens and less", [](Case& c) {
    c.model.max_length = 200, c.model.hidden_size = 8, c.rows = 19, c.shortest = 90, c.steps = 1;
    c.model.num_items = 40;
    c.model.num_layers = c.model.num_heads = 1;  // emulated, a layer takes seconds
  });
  add("more items than a block of their softmax",
      [](Case& c) { c.model.num_items = 4200, c.model.hidden_size = 8, c.rows = 2, c.steps = 1; });
  add("more places than items", [](Case& c) { c.model.num_items = 7, c.rows = 30; });
  for (const Loss loss : {Loss::sampled_softmax, Loss::gbce, Loss::bce}) {
    for (const Objective objective : {Objective::cloze, Objective::causal}) {
      add(join(enum_name(loss), ", ", enum_name(objective)), [&](Case& c) {
        c.train.loss = loss, c.train.negatives = 33, c.model.objective = objective, c.steps = 5;
        c.train.gbce_t = 0.75;
      });
    }
  }
  add("two groups of drawn items", [](Case& c) {
    c.train.loss = Loss::sampled_softmax, c.train.negatives = 20, c.model.max_length = 200;
    c.model.hidden_size = 8, c.rows = 19, c.shortest = 90, c.steps = 1;
    c.model.num_layers = c.model.num_heads = 1;
  });
  add("matching", [](Case& c) { c.model.task = TaskKind::matching, c.steps = 5; });
  add("matching with a fixed scale",
      [](Case& c) { c.model.task = TaskKind::matching, c.model.fixed_scale = 20; });
  add("classification", [](Case& c) {
    c.model.task = TaskKind::classification, c.model.classes = 3, c.model.segments = 2;
    c.model.norm_epsilon = 1e-12, c.model.inner_size = 40;
  });
  add("classification with bigrams", [](Case& c) {
    c.model.task = TaskKind::classification, c.model.classes = 3, c.model.bigrams = 500;
    c.rows = 5, c.steps = 5;
  });
#if defined(EMULATION_ASAN)
  // Slow there; further steps touch no other memory, but where rows are left behind.
  for (Case& one : all) {
    const bool leaves = draws_negatives(one.train.loss) || one.model.bigrams > 0;
    one.steps = std::min<std::size_t>(one.steps, leaves ? 2 : 1);
  }
#endif
  return all;
}

// ---- Comparisons -------------------------------------------------------------------------------

// Every bit of two arrays, NaN included.
void check_bits(std::string_view what, std::span<const float> found,
                std::span<const float> expected,
                Place where = {__builtin_FILE(), __builtin_LINE()}) {
  if (!check(found.size() == expected.size(), join(what, " has another size"), where)) return;
  std::size_t different = 0, first = 0;
  for (std::size_t i = found.size(); i-- > 0;) {
    if (std::bit_cast<std::uint32_t>(found[i]) == std::bit_cast<std::uint32_t>(expected[i]))
      continue;
    ++different, first = i;
  }
  if (different == 0) return;
  check(false,
        join(what, ": ", different, " of ", found.size(), " numbers differ, the first is ", first,
             ": ", found[first], ", expected ", expected[first]),
        where);
}

// ... of all tensors of an engine, by name.
void check_state(std::string_view what, Engine& found, Engine& expected, State state) {
  std::vector<float> a(found.table().size()), b(a.size());
  found.read(state, a), expected.read(state, b);
  for (const TensorSpec& spec : found.table()) {
    check_bits(join(what, " ", spec.name), std::span(a).subspan(spec.offset, spec.size),
               std::span(b).subspan(spec.offset, spec.size));
  }
}

void check_tallies(std::string_view what, const Tally& found, const Tally& expected) {
  check(std::bit_cast<std::uint64_t>(found.loss_sum) ==
            std::bit_cast<std::uint64_t>(expected.loss_sum),
        join(what, ": loss ", found.loss_sum, ", expected ", expected.loss_sum));
  check(found.count == expected.count && found.hits == expected.hits, join(what, ": other counts"));
}

// The best of each place, some of which are seen; where items are few, more than there are.
void check_best(Engine& found, Engine& expected, const Batch& batch) {
  const std::size_t targets = found.config().targets();
  std::vector<std::vector<std::int32_t>> rows(batch.asked.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = 0; j < i % 5; ++j) {
      rows[i].push_back(static_cast<std::int32_t>((7 * i + 3 * j) % targets));
    }
  }
  const std::vector<ItemSpan> seen(rows.begin(), rows.end());
  std::vector<std::uint8_t> some(targets);
  for (std::size_t i = 0; i < targets; ++i) some[i] = i % 3 != 1;
  for (const std::size_t count : {std::size_t{3}, std::min<std::size_t>(targets + 1, 12)}) {
    for (const Allowed allowed : {Allowed(), Allowed(some)}) {
      const auto a = found.top(batch, seen, count, allowed);
      const auto b = expected.top(batch, seen, count, allowed);
      check_equal(a.size(), b.size());
      for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        const bool same = std::equal(
            a[i].begin(), a[i].end(), b[i].begin(), b[i].end(),
            [](const auto& x, const auto& y) { return x.item == y.item && x.score == y.score; });
        check(same, join("the best ", count, " of place ", i));
      }
    }
  }
}

void check_case(const Case& at) {
  cuda::most_shared_memory = at.shared_memory;
  const auto cpu = make_cpu_engine(at.model, at.train, Start::random);
  const auto gpu = make_cuda_engine(at.model, at.train, Start::random);
  for (std::uint64_t step = 0; step < at.steps; ++step) {
    const Batch batch = ragged_batch(at, step);
    const Tally expected = cpu->train(batch, step, 1e-3), found = gpu->train(batch, step, 1e-3);
    check_tallies(join("step ", step), found, expected);
  }
  check_state("parameters", *gpu, *cpu, State::parameters);
  check_state("first moments", *gpu, *cpu, State::first_moment);
  check_state("second moments", *gpu, *cpu, State::second_moment);

  const Batch batch = ragged_batch(at, 100);
  check_tallies("evaluation", gpu->evaluate(batch), cpu->evaluate(batch));
  std::vector<float> a(batch.asked.size() * at.model.targets()), b(a.size());
  gpu->score(batch, a), cpu->score(batch, b);
  check_bits("scores", a, b);
  check_best(*gpu, *cpu, batch);
  const std::size_t width = cpu->vector_size();
  check_equal(gpu->vector_size(), width);
  if (width == 0) return;
  a.resize(batch.asked.size() * width), b.resize(a.size());
  gpu->user_vectors(batch, a), cpu->user_vectors(batch, b);
  check_bits("user vectors", a, b);
  a.resize((at.model.num_items - 2) * width), b.resize(a.size());
  gpu->item_vectors(2, a), cpu->item_vectors(2, b);
  check_bits("item vectors", a, b);
}

// ---- Runs --------------------------------------------------------------------------------------

// Parameters and moments after four epochs, of which the first `steps` steps are made by one engine
// and the rest, if there is any, by the other.
std::vector<float> train_run(const Path& folder, std::size_t steps, const EngineMaker& first,
                             const EngineMaker& rest) {
  const Dataset data = ring_data(12, 20);
  std::size_t done = 0;
  TrainerCallbacks callbacks;
  callbacks.on_batch = [&](const BatchReport&) { ++done; };
  callbacks.should_stop = [&] { return done >= steps; };
  auto trainer = std::make_unique<Trainer>(data, small_model(), small_train(), folder, first);
  if (!trainer->run(callbacks)) {
    trainer.reset();
    trainer = std::make_unique<Trainer>(data, small_model(), small_train(), folder, rest);
    trainer->resume();
    check(trainer->run(), "the run is finished");
  }
  const std::size_t n = trainer->engine().table().size();
  std::vector<float> numbers(3 * n);
  std::span<float> left = numbers;
  for (const State state : {State::parameters, State::first_moment, State::second_moment}) {
    trainer->engine().read(state, left.first(n));
    left = left.subspan(n);
  }
  return numbers;
}

void check_runs() {
  const TemporaryFolder folder;
  const auto expected = train_run(folder / "cpu", 1000, make_cpu_engine, {});
  check_bits("gpu", train_run(folder / "gpu", 1000, make_cuda_engine, {}), expected);
  check_bits("both", train_run(folder / "both", 5, make_cpu_engine, make_cuda_engine), expected);
  check_bits("back", train_run(folder / "back", 7, make_cuda_engine, make_cpu_engine), expected);
  for (const char* run : {"gpu", "both", "back"}) {
    for (const char* name : {"best_model", "final_model"}) {
      const std::string file = join("/models/", name, ".safetensors");
      check(read_file(folder / join(run, file)) == read_file(folder / join("cpu", file)),
            run + file);
    }
  }
}

// ---- Ranks -------------------------------------------------------------------------------------

// What a rank has after some steps, and the tally of each.
struct RankOutcome {
  std::vector<float> parameters, first_moment;
  std::vector<Tally> tallies;
};

RankOutcome trained_steps(const Case& at, Collective& ranks, const EngineMaker& make) {
  const auto engine = make(at.model, at.train, Start::random);
  engine->train_with(ranks);
  RankOutcome outcome;
  for (std::uint64_t step = 0; step < at.steps; ++step) {
    outcome.tallies.push_back(engine->train(ragged_batch(at, step), step, 1e-3));
  }
  for (const auto& [state, values] : {std::pair(State::parameters, &outcome.parameters),
                                      std::pair(State::first_moment, &outcome.first_moment)}) {
    values->resize(engine->table().size());
    engine->read(state, *values);
  }
  return outcome;
}

// `make(rank)` and `among(rank)` on each of n ranks, in the order of ranks.
std::vector<RankOutcome> trained_on_ranks(
    const Case& at, std::size_t n, const std::function<EngineMaker(std::size_t)>& make,
    const std::function<std::unique_ptr<Collective>(Collective&)>& among = {}) {
  std::vector<RankOutcome> all(n);
  check_fine(on_ranks(n, [&](ThreadRank& rank) {
    const auto other = among ? among(rank) : nullptr;
    all[rank.rank()] = trained_steps(at, other ? *other : rank, make(rank.rank()));
  }));
  return all;
}

void check_ranks(std::string_view what, const std::vector<RankOutcome>& found,
                 const std::vector<RankOutcome>& expected) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    const std::string rank = join(what, ", rank ", i, " of ", found.size(), ": ");
    check_bits(rank + "parameters", found[i].parameters, expected[i].parameters);
    check_bits(rank + "first moments", found[i].first_moment, expected[i].first_moment);
    check_equal(found[i].tallies.size(), expected[i].tallies.size());
    for (std::size_t step = 0; step < found[i].tallies.size(); ++step) {
      check_tallies(join(rank, "step ", step), found[i].tallies[step], expected[i].tallies[step]);
    }
  }
}

EngineMaker cpu_maker(std::size_t) { return make_cpu_engine; }
EngineMaker gpu_maker(std::size_t) { return make_cuda_engine; }

std::vector<Case> cases_of_ranks() {
  std::vector<std::string_view> names{
      "items, torch", "sampled-softmax, cloze",      "gbce, causal",  "two groups of drawn items",
      "matching",     "classification with bigrams", "classification"};
  std::vector<Case> all;
  for (const Case& at : cases()) {
    if (std::erase(names, at.name) > 0) all.push_back(at);
  }
  check(names.empty(), "all cases are there");
  all.back().rows = 2;  // so that of three ranks one has none
  return all;
}

// Ranks on GPUs have the bits of as many on processors, also if some are and some are not.
void check_many_ranks() {
  for (const Case& at : cases_of_ranks()) {
    for (const std::size_t n : {1u, 2u, 3u}) {
      const auto expected = trained_on_ranks(at, n, cpu_maker);
      check_ranks(at.name, trained_on_ranks(at, n, gpu_maker), expected);
      if (n != 2) continue;
      const auto mixed = [](std::size_t rank) { return rank == 0 ? gpu_maker(0) : cpu_maker(1); };
      check_ranks(at.name + ", mixed", trained_on_ranks(at, n, mixed), expected);
    }
  }
}

// A run on two ranks, of which each trainer makes at most `steps` steps.
std::string run_of_ranks(const Path& folder, const EngineMaker& make, std::size_t steps) {
  const Dataset data = ring_data(12, 20);
  TrainConfig train = small_train();
  train.loss = Loss::sampled_softmax, train.negatives = 5;
  bool finished = false;
  for (bool first = true; !finished && check_detail::problems == 0; first = false) {
    check_fine(on_ranks(2, [&](ThreadRank& rank) {
      const Path own = rank.rank() == 0 ? folder : Path(folder.string() + "_of_rank_1");
      Trainer trainer(data, small_model(), train, own, make, rank);
      if (!first) trainer.resume();
      std::size_t done = 0;
      TrainerCallbacks callbacks;
      callbacks.on_batch = [&](const BatchReport&) { ++done; };
      callbacks.should_stop = [&] { return done >= steps; };
      const bool whole = trainer.run(callbacks);
      if (rank.rank() == 0) finished = whole;
    }));
  }
  return read_file(folder / "models" / "final_model.safetensors");
}

void check_runs_of_ranks() {
  const TemporaryFolder folder;
  const std::string expected = run_of_ranks(folder / "cpu", make_cpu_engine, 1000);
  check(run_of_ranks(folder / "gpu", make_cuda_engine, 1000) == expected, "the same file");
  check(run_of_ranks(folder / "pieces", make_cuda_engine, 4) == expected, "in pieces");
  // A sum that differs from rank to rank is noticed.
  const auto errors = on_ranks(2, [&](ThreadRank& rank) {
    rank.added_to_gradient = rank.rank() == 1 ? 1e-3f : 0.0f;
    const Path own = folder / join("drift_", rank.rank());
    const Dataset data = ring_data(12, 20);
    Trainer(data, small_model(), small_train(), own, make_cuda_engine, rank).run();
  });
  check_failed(errors, "rank 1 has other parameters than rank 0 after");
}

// An item of rank 0 alone has a score of -inf: its loss is none, but all gradients are finite. The
// other rank, which hears of it in the message only, must not update either.
void check_broken_ranks() {
  const Case at = cases()[0];
  Batch batch;
  for (const std::int32_t length : {20, 4, 4, 4, 4, 4}) {
    std::vector<std::int32_t> items(static_cast<std::size_t>(length));
    std::iota(items.begin(), items.end(), 0);
    add_cloze_row(batch, items, at.model, 0.3, make_key(3));
  }
  const auto item = *std::max_element(batch.targets.begin(), batch.targets.end());
  check(item >= 4, "an item of the long row");
  check_fine(on_ranks(2, [&](ThreadRank& rank) {
    check_equal(rows_of(batch, rank).begin, rank.rank());
    const auto engine = make_cuda_engine(at.model, at.train, Start::random);
    engine->train_with(rank);
    std::vector<float> before(engine->table().size()), after(before.size());
    engine->read(State::parameters, before);
    const TensorSpec& bias = engine->table().at("output.bias");
    const auto biases = std::span(before).subspan(bias.offset, bias.size).last(at.model.num_items);
    biases[static_cast<std::size_t>(item)] = -INFINITY;
    engine->write(State::parameters, before);
    check_throws([&] { engine->train(batch, 0, 1e-3); },
                 {"step 0", "the loss is ", "nothing was updated"});
    engine->read(State::parameters, after);
    check_bits("parameters", after, before);
  }));
}

#if defined(BERT4REC_WITH_NCCL)
#if defined(BERT4REC_EMULATION)
constexpr int gpus_for_two = 1;
#else
constexpr int gpus_for_two = 2;
#endif

// Gradients that stay on the devices: of two ranks a sum has one order, and so these bits.
void check_nccl() {
  const auto direct = [](Collective& ranks) { return std::make_unique<NcclRanks>(ranks); };
  const auto own_gpu = [](std::size_t rank) {
    return cuda_engine_maker(static_cast<int>(rank) % gpus_for_two);
  };
  std::size_t steps = 0;
  for (const Case& at : cases_of_ranks()) {
    const auto expected = trained_on_ranks(at, 2, cpu_maker);
    check_ranks(at.name, trained_on_ranks(at, 2, own_gpu, direct), expected);
    steps += at.steps;
  }
#if defined(BERT4REC_EMULATION)
  check_equal(emulation::nccl.sums.load(), 2 * steps);
  check_equal(emulation::nccl.destroyed.load(), 2 * cases_of_ranks().size());
  emulation::nccl.sums_fail = true;
  const auto errors = on_ranks(2, [&](ThreadRank& rank) {
    NcclRanks ranks(rank);
    trained_steps(cases_of_ranks()[0], ranks, make_cuda_engine);
  });
  emulation::nccl.sums_fail = false;
  check_failed(errors, "NCCL: a sum of rank ");
  check_failed(errors, "invalid usage");
  check_equal(emulation::nccl.aborted.load(), 2u);
#endif
}
#endif

// A step that fails moves nothing, and of rows that wait nothing is put off: the steps behind it
// have the bits of the processor.
void check_broken_step(const Case& at) {
  const auto cpu = make_cpu_engine(at.model, at.train, Start::random);
  const auto gpu = make_cuda_engine(at.model, at.train, Start::random);
  std::vector<float> fine(gpu->table().size()), after(fine.size());
  const auto train = [&](std::uint64_t step) {
    for (Engine* engine : {cpu.get(), gpu.get()}) {
      engine->train(ragged_batch(at, step), step, 1e-3);
    }
    cpu->read(State::parameters, fine), gpu->read(State::parameters, after);
    check_bits("parameters", after, fine);
  };
  train(0);
  std::vector<float> broken = fine;
  broken[gpu->table().at("position_embedding.weight").offset] = NAN;
  gpu->write(State::parameters, broken);
  check_throws([&] { gpu->train(ragged_batch(at, 1), 1, 1e-3); },
               {"step 1", "the loss is nan", "nothing was updated"});
  gpu->read(State::parameters, after);
  check_bits("parameters", after, broken);
  gpu->write(State::parameters, fine);
  train(1), train(2);
}

void check_broken_steps() {
  for (const Case& at : cases()) {
    if (at.name == "items, paper" || at.name == "classification with bigrams")
      check_broken_step(at);
  }
}

// A scale of matching beyond its bound may only fall. With these parameters all users are (1, ...,
// 1), item 0 is a little with them and item 1 a little against them.
void check_bound() {
  Case at;
  at.model.task = TaskKind::matching, at.model.num_items = 5, at.model.hidden_size = 8;
  at.model.num_layers = at.model.num_heads = 1, at.train.threads = 1;
  const auto cpu = make_cpu_engine(at.model, at.train, Start::random);
  const auto gpu = make_cuda_engine(at.model, at.train, Start::random);
  std::vector<float> numbers(cpu->table().size()), found(numbers.size());
  cpu->read(State::parameters, numbers);
  const auto tensor = [&](std::string_view name) { return &numbers[cpu->table().at(name).offset]; };
  float* const item = tensor("item_embedding.weight") + special_rows * 8;
  for (std::size_t c = 0; c < 8; ++c) {
    tensor("encoder.layers.0.norm2.weight")[c] = 0, tensor("encoder.layers.0.norm2.bias")[c] = 1;
    item[c] = (c % 2 == 0 ? 1.0f : -1.0f) + 0.01f, item[8 + c] = -item[c];
  }
  *tensor("log_scale") = 5;
  for (Engine* engine : {cpu.get(), gpu.get()}) engine->write(State::parameters, numbers);
  for (const std::int32_t target : {0, 1}) {
    Batch batch;
    batch.ask(target), batch.end_row();
    batch.own_negatives = {1 - target};
    const auto step = static_cast<std::uint64_t>(target);
    cpu->train(batch, step, 1e-3), gpu->train(batch, step, 1e-3);
    check_state(join("target ", target), *gpu, *cpu, State::parameters);
    cpu->read(State::parameters, numbers);
    check(target == 0 ? *tensor("log_scale") == 5 : *tensor("log_scale") < 5, "it may only fall");
  }
}

// Biases of items that are infinite or NaN: what is best, or the message, is that of the processor.
void check_strange_scores() {
  Case at = cases()[0];
  at.model.num_items = 300;
  const auto cpu = make_cpu_engine(at.model, at.train, Start::random);
  const auto gpu = make_cuda_engine(at.model, at.train, Start::zeros);
  const Batch batch = ragged_batch(at, 0);
  const std::vector<std::int32_t> known{7, 7, 250};
  const std::vector<ItemSpan> seen(batch.asked.size(), known);
  std::vector<float> numbers(cpu->table().size());
  cpu->read(State::parameters, numbers);
  const TensorSpec& bias = cpu->table().at("output.bias");
  const auto items = std::span(numbers).subspan(bias.offset, bias.size).last(300);
  const auto best = [&](Engine& engine, std::size_t count) {
    std::string text;
    try {
      for (const auto& row : engine.top(batch, seen, count)) {
        for (const Recommendation& pick : row) text += join(pick.item, " ", pick.score, ", ");
      }
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return text;
  };
  const auto compare = [&](std::string_view name) {
    cpu->write(State::parameters, numbers), gpu->write(State::parameters, numbers);
    for (const std::size_t count : {0u, 4u, 290u, 400u}) {
      check_equal(best(*gpu, count), best(*cpu, count));
      check(count == 0 || !best(*cpu, count).empty(), join(name, ": nothing"));
    }
  };
  compare("finite");
  items[3] = items[9] = -INFINITY;
  compare("some are -inf");
  std::fill(items.begin(), items.end(), -INFINITY);
  compare("all are -inf");
  items[5] = INFINITY;
  compare("one is inf");
  items[5] = NAN;
  compare("one is NaN");
}

// Products of operands with 8 or 11 bits: near the processor, and the same bits each time.
void check_half_precision() {
  std::vector<std::string_view> names{"items, torch", "no dropout, three heads of 5, one layer",
                                      "gbce, causal", "matching", "classification"};
  for (const Case& at : cases()) {
    if (std::erase(names, at.name) == 0) continue;
    std::vector<float> exact, first, second;
    double exact_loss = 0, loss = 0;
    const auto train = [&](const EngineMaker& make, std::vector<float>& numbers) {
      const auto engine = make(at.model, at.train, Start::random);
      double sum = 0;
      for (std::uint64_t step = 0; step < 2; ++step) {
        sum += engine->train(ragged_batch(at, step), step, 1e-3).loss();
      }
      numbers.resize(engine->table().size());
      engine->read(State::first_moment, numbers);
      return sum;
    };
    exact_loss = train(make_cpu_engine, exact);
    loss = train(cuda_engine_maker(0, true), first);
    if (at.name == "items, torch") {
      train(cuda_engine_maker(0, true), second);
      check_bits("once more", second, first);
    }
    check(std::abs(loss - exact_loss) < 0.01 * exact_loss,
          join(at.name, ": loss ", loss, ", expected about ", exact_loss));
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      difference += std::pow(double{first[i]} - double{exact[i]}, 2);
      size += std::pow(double{exact[i]}, 2);
    }
    const double error = std::sqrt(difference / size);
    check(error > 0 && error < 0.05,
          join(at.name, ": gradients differ by ", error, " of their size"));
  }
  check(names.empty(), "a case is missing");
}

#if defined(BERT4REC_EMULATION)
void check_memory() {
  const std::size_t limit = emulation::memory_limit;
  emulation::memory_limit = 100'000;
  const Case at = cases()[0];
  for (const bool half_precision : {false, true}) {
    check_throws([&] { cuda_engine_maker(0, half_precision)(at.model, at.train, Start::zeros); },
                 {"the GPU has no", "MiB left for", "--batch-size"});
  }
  emulation::memory_limit = limit;
  check_equal(emulation::device_memory.used(), std::size_t{0});
}
#endif

void check_device(const char* name, const std::function<void()>& body) {
  if (cuda::device_count() == 0) return skip(name, "no GPU");
#if defined(BERT4REC_EMULATION)
  ++emulation::seed;  // threads and blocks in another order each time
#endif
  test(name, body);
}

}  // namespace

int main() {
  for (const Case& at : cases()) check_device(at.name.c_str(), [&] { check_case(at); });
  check_device("runs of both engines, and of one after the other, leave the same files",
               check_runs);
  check_device("a step with a loss that is no number changes nothing", check_broken_steps);
  check_device("ranks on GPUs are like ranks on processors", check_many_ranks);
  check_device("runs of ranks leave the same files", check_runs_of_ranks);
  check_device("a rank whose loss is no number stops all", check_broken_ranks);
#if defined(BERT4REC_WITH_NCCL)
  const char* const direct = "ranks whose gradients stay on their GPUs";
  if (cuda::device_count() < gpus_for_two)
    skip(direct, "needs two GPUs");
  else
    check_device(direct, check_nccl);
#endif
  check_device("half precision is near", check_half_precision);
  cuda::without_bfloat = true;
  check_device("half precision is near on older devices, too", check_half_precision);
  cuda::without_bfloat = false;
  check_device("a scale beyond its bound", check_bound);
  check_device("the best among scores that are infinite or none", check_strange_scores);
#if defined(BERT4REC_EMULATION)
  check_device("memory that runs out is named, and given back", check_memory);
#endif
  test("a GPU that is not there is named",
       [] { check_throws([] { cuda_engine_maker(999); }, {"GPU"}); });
  return finish();
}
