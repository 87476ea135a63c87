// Training on several ranks: the losses and parameters of one process, the same bits again, and
// errors in place of ranks that train apart. The ranks are threads here; test_mpi.sh has processes.

#include "bert4rec.hpp"
#include "check.hpp"
#include "ranks.hpp"
#include "small_data.hpp"

using namespace bert4rec;

namespace {

// The folder of a rank: only that of rank 0 may come to be.
Path folder_of(const Path& run, const Collective& rank) {
  return rank.rank() == 0 ? run : Path(run.string() + join("_of_rank_", rank.rank()));
}

std::vector<float> parameters_of(Engine& engine) {
  std::vector<float> values(engine.table().size());
  engine.read(State::parameters, values);
  return values;
}

struct Outcome {
  std::vector<float> parameters;
  TrainingMetrics metrics;
  std::string files;  // the bytes of the final and the best model
  std::size_t largest_sum = 0;
};

// A run on n ranks; one is a Trainer as everybody has it.
Outcome trained(std::size_t n, const Dataset& data, const ModelConfig& model,
                const TrainConfig& train, const Path& run) {
  Outcome outcome;
  const auto keep = [&](Trainer& trainer) {
    outcome.parameters = parameters_of(trainer.engine());
    outcome.metrics = trainer.metrics();
    for (const char* name : {"final_model.safetensors", "best_model.safetensors"}) {
      outcome.files += read_file(run / "models" / name);
    }
  };
  if (n == 1) {
    Trainer trainer(data, model, train, run);
    trainer.run();
    keep(trainer);
    return outcome;
  }
  check_fine(on_ranks(n, [&](ThreadRank& rank) {
    Trainer trainer(data, model, train, folder_of(run, rank), make_cpu_engine, rank);
    check(trainer.run(), "to the end");
    if (rank.rank() > 0) return check(!path_exists(folder_of(run, rank)), "no files"), void();
    keep(trainer);
    outcome.largest_sum = rank.largest_sum;
  }));
  return outcome;
}

template <class Number>
double largest_difference(const std::vector<Number>& a, const std::vector<Number>& b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return largest;
}

struct Kind {
  std::string name;
  ModelConfig model = small_model();
  TrainConfig train = small_train();
};

// AdamW divides by the root of the second moment, and so a gradient that is 0 but for rounding
// (that of a bias of keys is) would move a parameter nearly as fast as any other. A larger
// adam_epsilon keeps what is smaller than rounding small.
std::vector<Kind> kinds() {
  std::vector<Kind> all(4);
  all[0].name = "softmax";
  all[1].name = "paper, causal, softmax";
  all[1].model.architecture = Architecture::paper;
  all[1].model.objective = Objective::causal;
  all[2].name = "sampled-softmax";
  all[2].train.loss = Loss::sampled_softmax, all[2].train.negatives = 10;
  all[3].name = "matching";
  all[3].model.task = TaskKind::matching;
  for (Kind& kind : all) {
    kind.train.epochs = 12, kind.train.save_every = 12;
    kind.train.adam_epsilon = 1e-4;
    kind.train.clip_norm = 1;
  }
  return all;
}

void test_like_one_process() {
  const Dataset data = ring_data(30, 80);
  for (const Kind& kind : kinds()) {
    const TemporaryFolder folder;
    const Outcome one = trained(1, data, kind.model, kind.train, folder / "one");
    check(one.metrics.train_losses.front() - one.metrics.train_losses.back() > 0.005,
          kind.name + ": learns, so that there is something to compare");
    for (const std::size_t n : {std::size_t{2}, std::size_t{3}}) {
      const Outcome some = trained(n, data, kind.model, kind.train, folder / join(n));
      if (check_detail::problems > 0) return;
      const double apart = largest_difference(one.parameters, some.parameters);
      check(apart <= 1e-6, join(kind.name, ", ", n, " ranks: parameters ", apart, " apart"));
      for (const auto curve : {&TrainingMetrics::train_losses, &TrainingMetrics::val_losses}) {
        const double losses = largest_difference(one.metrics.*curve, some.metrics.*curve);
        check(losses <= 1e-6, join(kind.name, ", ", n, " ranks: losses ", losses, " apart"));
      }
      for (std::size_t k = 0; k < top_k.size(); ++k) {
        const double hits =
            largest_difference(one.metrics.train_accuracies[k], some.metrics.train_accuracies[k]);
        check(hits <= 1e-3, join(kind.name, ", ", n, " ranks: hits ", hits, " apart"));
      }
      for (std::size_t i = 0; i < one.metrics.val_measures.size(); ++i) {
        const auto& [name, values] = one.metrics.val_measures[i];
        const double measures = largest_difference(values, some.metrics.val_measures[i].second);
        check(measures <= 1e-4, join(kind.name, ": ", name, " ", measures, " apart"));
      }
    }
  }
}

// The state of a collective of one is that of none.
void test_one_rank() {
  const Dataset data = ring_data(20, 40);
  const TemporaryFolder folder;
  const Outcome alone_run = trained(1, data, small_model(), small_train(), folder / "alone");
  std::string files;
  check_fine(on_ranks(1, [&](ThreadRank& rank) {
    Trainer(data, small_model(), small_train(), folder / "one", make_cpu_engine, rank).run();
    files = read_file(folder / "one" / "models" / "final_model.safetensors") +
            read_file(folder / "one" / "models" / "best_model.safetensors");
    check_equal(rank.largest_sum, 1u);  // whether to stop
  }));
  check(files == alone_run.files, "the bytes of one process");
}

// Trained in pieces of so many steps, of which the last rank alone asks for the end.
std::string trained_in_pieces(std::size_t n, const Dataset& data, const Kind& kind, const Path& run,
                              std::size_t steps) {
  bool finished = false;
  for (bool first = true; !finished; first = false) {
    check_fine(on_ranks(n, [&](ThreadRank& rank) {
      Trainer trainer(data, kind.model, kind.train, folder_of(run, rank), make_cpu_engine, rank);
      if (!first) check(trainer.resume().empty() == (rank.rank() > 0), "the path of rank 0");
      std::size_t done = 0;
      TrainerCallbacks callbacks;
      callbacks.on_batch = [&](const BatchReport&) { ++done; };
      callbacks.should_stop = [&] { return rank.rank() + 1 == n && done >= steps; };
      const bool whole = trainer.run(callbacks);
      if (rank.rank() == 0) finished = whole;
    }));
    if (check_detail::problems > 0) return "";
  }
  return read_file(run / "models" / "final_model.safetensors") +
         read_file(run / "models" / "best_model.safetensors");
}

void test_same_bits() {
  const Dataset data = ring_data(20, 40);
  for (Kind kind : kinds()) {
    kind.train.epochs = 4, kind.train.save_every = 2;
    for (const std::size_t n : {std::size_t{2}, std::size_t{3}}) {
      const TemporaryFolder folder;
      const std::string once = trained(n, data, kind.model, kind.train, folder / "once").files;
      kind.train.threads = 2;
      check(trained(n, data, kind.model, kind.train, folder / "again").files == once,
            join(kind.name, ": ", n, " ranks again, of two threads"));
      kind.train.threads = 1;
      check(trained_in_pieces(n, data, kind, folder / "pieces", 7) == once,
            join(kind.name, ": ", n, " ranks, interrupted"));
      const Safetensors checkpoint(folder / "once/checkpoints/checkpoint_epoch_4.safetensors");
      check_equal(checkpoint.metadata("arithmetic"), join("float32, ", n, " ranks"));
    }
  }
}

// Of a table of many items a message has the rows of the batch.
void test_messages() {
  const Dataset data = ring_data(2000, 30);
  TrainConfig train = small_train();
  train.epochs = 1, train.batch_size = 2;
  train.loss = Loss::sampled_softmax, train.negatives = 10;
  const TemporaryFolder folder;
  const Outcome sampled = trained(2, data, small_model(), train, folder / "sampled");
  // Besides other tensors: 2 windows of 12, 10 negatives and [MASK], each a row of both tables and
  // its bias; two parts of the loss and the hits.
  const TensorTable table = bert4rec_tensors([] {
    ModelConfig model = small_model();
    model.num_items = 2000;
    return model;
  }());
  std::size_t others = 0;
  for (const TensorSpec& spec : table) others += spec.rows == Rows::tokens ? 0 : spec.size;
  check(sampled.largest_sum <= others + (24 + 10 + 1) * (16 + 16 + 1) + 2 + top_k.size(),
        join(sampled.largest_sum, " numbers in a message"));
  check(sampled.largest_sum > others + 10 * 33, "and the rows are there");
  train.loss = Loss::softmax;
  const Outcome full = trained(2, data, small_model(), train, folder / "softmax");
  check_equal(full.largest_sum, table.size() + 2 + top_k.size());
}

struct Claim : Collective {  // to be one rank of some
  Claim(std::size_t rank, std::size_t size) : rank_(rank), size_(size) {}
  std::size_t rank() const override { return rank_; }
  std::size_t size() const override { return size_; }
  std::size_t rank_, size_;
};

void test_rows_of() {
  Batch batch;
  for (const std::size_t length : {5u, 1u, 9u, 2u, 2u, 1u, 7u}) {
    batch.tokens.resize(batch.tokens.size() + length, token_of(0));
    batch.end_row();
  }
  for (std::size_t n = 1; n <= 10; ++n) {
    std::size_t row = 0;
    for (std::size_t rank = 0; rank < n; ++rank) {
      const auto [begin, end] = rows_of(batch, Claim(rank, n));
      check(begin == row && end >= begin, join("rank ", rank, " of ", n, " begins at ", begin));
      const std::size_t tokens = batch.offsets[end] - batch.offsets[begin];
      check(tokens <= 27 / n + 9, join("rank ", rank, " of ", n, " has ", tokens, " tokens"));
      row = end;
    }
    check_equal(row, batch.rows());
  }
}

// A weighted mean over labels is that of all ranks, too; and a rank without rows takes part.
void test_weights() {
  ModelConfig model = small_model();
  model.task = TaskKind::classification, model.classes = 3, model.num_items = 10;
  Batch batch;
  for (std::int32_t row = 0; row < 2; ++row) {
    batch.ask(row, token_of(row));
    batch.tokens.insert(batch.tokens.end(), {token_of(4), token_of(5 + row)});
    batch.end_row();
    batch.weights.push_back(row == 0 ? 0.25f : 1.75f);
  }
  const TrainConfig train = small_train();
  const auto one = make_cpu_engine(model, train, Start::random);
  const Tally tally = one->train(batch, 0, 0.01);
  check_fine(on_ranks(3, [&](ThreadRank& rank) {
    const auto engine = make_cpu_engine(model, train, Start::random);
    engine->train_with(rank);
    const Tally all = engine->train(batch, 0, 0.01);
    check(
        std::abs(all.loss_sum - tally.loss_sum) < 1e-6 && all.count == 2 && all.hits == tally.hits,
        "the tally of one process");
    const std::vector<float> expected = parameters_of(*one), found = parameters_of(*engine);
    std::size_t apart = 0;  // where a gradient is 0 but for rounding
    for (std::size_t i = 0; i < found.size(); ++i) apart += std::abs(found[i] - expected[i]) > 1e-6;
    check(apart <= 2 * model.num_layers * model.hidden_size, join(apart, " parameters apart"));
  }));
}

// ---- What is refused ----------------------------------------------------------------------------

void test_disagreement() {
  const Dataset data = ring_data(20, 40), other_data = ring_data(20, 41);
  const TemporaryFolder folder;
  const auto errors_where = [&](const std::function<void(ThreadRank&, Kind&, bool&)>& differ) {
    return on_ranks(3, [&](ThreadRank& rank) {
      Kind kind;
      bool others = false;
      if (rank.rank() == 1) differ(rank, kind, others);
      Trainer(others ? other_data : data, kind.model, kind.train, folder_of(folder / "run", rank),
              make_cpu_engine, rank)
          .overwrite()
          .run();
    });
  };
  check_failed(errors_where([](auto&, Kind& kind, bool&) { kind.train.learning_rate = 0.5; }),
               "rank 1: learning_rate is 0.5, expected 0.001 as on rank 0");
  check_failed(errors_where([](auto&, Kind& kind, bool&) { kind.model.hidden_size = 8; }),
               "rank 1: hidden_size is 8, expected 16 as on rank 0");
  check_failed(errors_where([](auto&, Kind&, bool& others) { others = true; }), "rank 1: data is ");
  check_failed(errors_where([](ThreadRank& rank, Kind&, bool&) { rank.claimed_size = 4; }), "rank");
  check_fine(errors_where([](auto&, Kind& kind, bool&) { kind.train.threads = 2; }));
  const auto alone_in_world = on_ranks(2, [&](ThreadRank& rank) {
    rank.claimed_size = 3;
    Trainer(data, small_model(), small_train(), folder_of(folder / "run", rank), make_cpu_engine,
            rank);
  });
  check_failed(alone_in_world, "2 ranks answer, expected 3");
}

void test_resume_together() {
  const Dataset data = ring_data(20, 40);
  const TemporaryFolder folder;
  trained(2, data, small_model(), small_train(), folder / "run");
  TrainConfig longer = small_train();
  longer.epochs = 6;
  check_failed(on_ranks(2,
                        [&](ThreadRank& rank) {
                          Trainer trainer(data, small_model(), longer,
                                          folder_of(folder / "run", rank), make_cpu_engine, rank);
                          if (rank.rank() == 0) trainer.resume();
                          trainer.run();
                        }),
               "rank 1 begins anew, but rank 0 resumes");
  // On more ranks, or alone, it goes on, and says in what it was begun.
  check_fine(on_ranks(3, [&](ThreadRank& rank) {
    Trainer trainer(data, small_model(), longer, folder_of(folder / "run", rank), make_cpu_engine,
                    rank);
    trainer.resume();
    if (rank.rank() == 0) check_equal(trainer.begun_in(), "float32, 2 ranks");
    check_equal(trainer.arithmetic(), "float32, 3 ranks");
    check(trainer.run(), "to the end");
    check_equal(trainer.metrics().evaluations(), 6u);
  }));
}

class FailsAt : public ItemTask {
 public:
  FailsAt(const Dataset& data, const TrainConfig& train, std::uint64_t step)
      : ItemTask(data, small_model(), train), step_(step) {}
  void finish_batch(Batch& batch, std::uint64_t step) const override {
    require(step != step_, "no memory for step ", step);
    ItemTask::finish_batch(batch, step);
  }

 private:
  std::uint64_t step_;
};

void test_failure() {
  const Dataset data = ring_data(20, 40);
  TrainConfig train = small_train();
  train.save_every = 1;
  const TemporaryFolder folder;
  const std::string once = trained(2, data, small_model(), train, folder / "once").files;
  for (const std::size_t failing : {0u, 1u}) {
    const Path run = folder / join("failing_", failing);
    const auto errors = on_ranks(2, [&](ThreadRank& rank) {
      const std::uint64_t never = ~std::uint64_t{0};
      auto task = std::make_unique<FailsAt>(data, train, rank.rank() == failing ? 12 : never);
      Trainer(std::move(task), train, folder_of(run, rank), make_cpu_engine, rank).run();
    });
    check_equal(errors[failing], "no memory for step 12");
    check_equal(errors[1 - failing], join("rank ", failing, " failed: no memory for step 12"));
    check_fine(on_ranks(2, [&](ThreadRank& rank) {
      Trainer trainer(data, small_model(), train, folder_of(run, rank), make_cpu_engine, rank);
      trainer.resume();
      trainer.run();
    }));
    check(read_file(run / "models" / "final_model.safetensors") +
                  read_file(run / "models" / "best_model.safetensors") ==
              once,
          "resumed to the same bits");
  }
}

class Solitary : public CpuEngine<float> {
 public:
  using CpuEngine<float>::CpuEngine;

 protected:
  bool can_train_with_others() const override { return false; }
};

void test_engines() {
  const Dataset data = ring_data(20, 40);
  const TemporaryFolder folder;
  // A sum that differs from rank to rank is noticed at the next evaluation.
  check_failed(on_ranks(2,
                        [&](ThreadRank& rank) {
                          if (rank.rank() == 1) rank.added_to_gradient = 1e-3f;
                          Trainer(data, small_model(), small_train(),
                                  folder_of(folder / "drift", rank), make_cpu_engine, rank)
                              .run();
                        }),
               "rank 1 has other parameters than rank 0 after epoch 1");
  // A loss that is not finite anywhere is so everywhere.
  TrainConfig wild = small_train();
  wild.learning_rate = 1000, wild.weight_decay = 1000;
  wild.epochs = 50;
  check_failed(on_ranks(2,
                        [&](ThreadRank& rank) {
                          Trainer(data, small_model(), wild, folder_of(folder / "wild", rank),
                                  make_cpu_engine, rank)
                              .run();
                        }),
               "nothing was updated");
  const auto solitary = [](const ModelConfig& model, const TrainConfig& train, Start start) {
    return std::make_unique<Solitary>(model, train, start);
  };
  check_failed(on_ranks(2,
                        [&](ThreadRank& rank) {
                          Trainer(data, small_model(), small_train(),
                                  folder_of(folder / "solitary", rank), solitary, rank);
                        }),
               "trains alone, but there are 2 ranks");
}

}  // namespace

int main() {
  test("a batch by rows", test_rows_of);
  test("one rank is one process", test_one_rank);
  test("two and three ranks are like one process", test_like_one_process);
  test("as many ranks, the same bits", test_same_bits);
  test("messages have the rows touched", test_messages);
  test("weights, and a rank without rows", test_weights);
  test("ranks that disagree", test_disagreement);
  test("ranks that resume", test_resume_together);
  test("a rank that fails", test_failure);
  test("engines that drift, break or train alone", test_engines);
  return finish();
}
