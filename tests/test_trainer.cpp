// Training: same bits on any number of threads and after any interruption; what a run leaves; what
// it refuses; no memory allocated by a step after the first.

#ifndef _WIN32
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#endif

#include <map>
#include <set>

#include "bert4rec.hpp"
#include "check.hpp"
#include "small_data.hpp"

using namespace bert4rec;

namespace {

std::atomic<std::size_t> allocations{0};

std::string file_bytes(const Path& path) { return read_file(path); }

// Trains and returns the bytes of the final and the best model.
std::string trained(const Dataset& data, const ModelConfig& model, const TrainConfig& train,
                    const Path& output) {
  Trainer(data, model, train, output).run();
  return file_bytes(output / "models" / "final_model.safetensors") +
         file_bytes(output / "models" / "best_model.safetensors");
}

// The same in pieces: each run is stopped after `steps` steps and resumed by a new Trainer.
std::string trained_in_pieces(const Dataset& data, const ModelConfig& model,
                              const TrainConfig& train, const Path& output, std::size_t steps) {
  for (bool first = true, finished = false; !finished; first = false) {
    Trainer trainer(data, model, train, output);
    if (!first) trainer.resume();
    std::size_t done = 0;
    TrainerCallbacks callbacks;
    callbacks.on_batch = [&](const BatchReport&) { ++done; };
    callbacks.should_stop = [&] { return done >= steps; };
    finished = trainer.run(callbacks);
  }
  return file_bytes(output / "models" / "final_model.safetensors") +
         file_bytes(output / "models" / "best_model.safetensors");
}

void test_same_bits() {
  const Dataset data = ring_data(20, 40);
  for (const Architecture architecture : {Architecture::torch, Architecture::paper}) {
    ModelConfig model = small_model();
    model.architecture = architecture;
    TrainConfig train = small_train();
    train.schedule = Schedule::cosine;
    train.warmup_steps = 3;
    train.clip_norm = 1.0;
    const TemporaryFolder folder;
    const std::string once = trained(data, model, train, folder / "once");
    for (const std::size_t threads : std::vector<std::size_t>{2, 3}) {
      train.threads = threads;
      check(trained(data, model, train, folder / join("t", threads)) == once,
            join(threads, " threads"));
    }
    for (const std::size_t steps : std::vector<std::size_t>{1, 3, 5, 7}) {
      train.threads = steps % 3 + 1;
      check(trained_in_pieces(data, model, train, folder / join("p", steps), steps) == once,
            join("interrupted every ", steps, " steps"));
    }
    train.seed = 43;
    check(trained(data, model, train, folder / "seed") != once, "another seed, another model");
  }
}

void test_learns_the_ring(Objective objective, Loss loss) {
  const Dataset data = ring_data(20, 60);
  ModelConfig network = small_model();
  network.objective = objective;
  TrainConfig train = small_train();
  train.epochs = objective == Objective::causal ? 100 : 400;
  train.loss = loss, train.negatives = 10;
  train.mask_probability = 0.3;
  train.learning_rate = 3e-3;
  train.split = Split::last;
  const TemporaryFolder folder;
  Trainer trainer(data, network, train, folder.path());
  trainer.run();
  const DataSplit split(data.histories, train);
  const auto counts = item_counts(known_histories(split, HeldOut::test), 20);
  const RankingTask task(next_item_cases(split, HeldOut::test), counts, 1);
  const auto metrics = [&](const Scorer& scorer) {
    return rank_metrics(task.ranks(scorer).at(Protocol::all_unseen));
  };
  const RankMetrics model = metrics(model_scorer(trainer.engine()));
  const RankMetrics popularity = metrics(popularity_scorer(counts));
  check(model.hit[1] > 0.8, join("HR@5 ", model.hit[1]));
  check(popularity.hit[1] < 0.6, join("popularity HR@5 ", popularity.hit[1]));
  const double first = trainer.metrics().train_losses.front();
  if (loss != Loss::gbce) {
    check(std::abs(first - std::log(20.0)) < 0.3, join("loss of epoch 1: ", first));
  }

  Recommender recommender(folder / "models");
  const std::vector<std::int32_t> history{3, 4, 5, 6};
  const auto picks = recommender.recommend(history, 100);
  check_equal(picks.size(), 16u);  // 20 less the 4 seen
  check_equal(picks[0].item, 7);
  check(picks[0].score > picks[1].score && picks[0].score <= 1, "scores fall");
  check_throws([&] { recommender.recommend(std::vector<std::int32_t>{20}, 1); }, {"item 20"});
}

// Each choice must reach the training: another model, still the same bits when interrupted.
void test_choices() {
  const Dataset data = ring_data(30, 40);
  const TemporaryFolder folder;
  const std::string plain = trained(data, small_model(), small_train(), folder / "plain");
  std::set<std::string> models{plain};
  ModelConfig network = small_model();
  const auto differs = [&](const std::string& name, auto&& choose) {
    TrainConfig train = small_train();
    choose(train);
    const std::string model = trained(data, network, train, folder / name);
    check(models.insert(model).second, join(name, " changes nothing"));
    check(trained_in_pieces(data, network, train, folder / join(name, "_pieces"), 3) == model,
          join(name, ": interrupted every 3 steps"));
  };
  differs("mask_last", [](TrainConfig& train) { train.mask_last = 0.5; });
  differs("random_share", [](TrainConfig& train) { train.random_share = 0.5; });
  differs("keep_share", [](TrainConfig& train) { train.keep_share = 0.5; });
  differs("static_masks", [](TrainConfig& train) { train.static_masks = 3; });
  differs("window_stride", [](TrainConfig& train) { train.window_stride = 4; });
  differs("reversed_share", [](TrainConfig& train) { train.reversed_share = 0.5; });
  differs("folds", [](TrainConfig& train) { train.folds = 3, train.fold = 2; });
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    network.objective = objective;
    const std::string of = join(enum_name(objective), "_");
    if (objective == Objective::causal) differs(of + "softmax", [](TrainConfig&) {});
    for (const Loss loss : {Loss::sampled_softmax, Loss::bce, Loss::gbce}) {
      differs(join(of, enum_name(loss)), [&](TrainConfig& t) { t.loss = loss, t.negatives = 8; });
    }
    differs(of + "negatives",
            [](TrainConfig& train) { train.loss = Loss::gbce, train.negatives = 9; });
    differs(of + "power", [](TrainConfig& train) {
      train.loss = Loss::sampled_softmax, train.negatives = 8, train.negative_power = 0.7;
    });
    differs(of + "gbce_t", [](TrainConfig& train) {
      train.loss = Loss::gbce, train.negatives = 8, train.gbce_t = 0.3;
    });
  }
}

ModelConfig matching_model(Objective objective) {
  ModelConfig model = small_model();
  model.task = TaskKind::matching, model.objective = objective;
  return model;
}

// Histories that leave a third of the items unknown.
Dataset part_of_ring(std::size_t items, std::size_t users) {
  Dataset data = ring_data(items, users);
  const Histories whole = std::exchange(data.histories, Histories());
  for (std::size_t user = 0; user < users; ++user) {
    const ItemSpan row = whole.row(user);
    data.histories.add(whole.user(user), row.first(std::min(row.size(), 2 * items / 3)));
  }
  return data;
}

// Every choice of matching reaches the training, which gives the same bits when interrupted.
void test_matching_choices() {
  const Dataset data = part_of_ring(30, 40);
  const TemporaryFolder folder;
  std::set<std::string> models;
  const auto differs = [&](const std::string& name, const ModelConfig& model, auto&& choose) {
    TrainConfig train = small_train();
    choose(train);
    const std::string once = trained(data, model, train, folder / name);
    check(models.insert(once).second, join(name, " changes nothing"));
    train.threads = 3;
    check(trained_in_pieces(data, model, train, folder / join(name, "_pieces"), 3) == once,
          join(name, ": interrupted every 3 steps"));
  };
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    ModelConfig model = matching_model(objective);
    const std::string of = join(enum_name(objective), "_");
    differs(of + "usual", model, [](TrainConfig&) {});
    differs(of + "ratio", model, [](TrainConfig& train) { train.neg_ratio = 3; });
    differs(of + "none", model, [](TrainConfig& train) { train.neg_ratio = 0; });
    differs(of + "last", model, [](TrainConfig& train) { train.split = Split::last; });
    differs(of + "stride", model, [](TrainConfig& train) { train.window_stride = 4; });
    model.fixed_scale = 7;
    differs(of + "fixed", model, [](TrainConfig&) {});
  }
  differs("masks", matching_model(Objective::cloze),
          [](TrainConfig& t) { t.mask_probability = 1; });
}

// Rows that wait for many steps until an epoch ends: an interruption brings them up to date before,
// which no bit may tell.
void test_rows_that_wait() {
  const Dataset data = ring_data(1500, 3);
  TrainConfig train = small_train();
  train.epochs = 2, train.batch_size = 1, train.window_stride = 12, train.negatives = 4;
  train.validation_ratio = 0.34, train.mask_probability = 0.5, train.clip_norm = 1;
  train.schedule = Schedule::linear;
  const TemporaryFolder folder;
  for (const auto& [architecture, task, loss] :
       {std::tuple(Architecture::torch, TaskKind::items, Loss::gbce),
        std::tuple(Architecture::paper, TaskKind::items, Loss::sampled_softmax),
        std::tuple(Architecture::torch, TaskKind::matching, Loss::softmax)}) {
    ModelConfig model = small_model();
    model.architecture = architecture, model.task = task, train.loss = loss, train.threads = 1;
    const std::string name = join(enum_name(task), "_", enum_name(loss));
    const std::string once = trained(data, model, train, folder / name);
    train.threads = 2;
    for (const std::size_t steps : std::vector<std::size_t>{7, 60}) {
      check(trained_in_pieces(data, model, train, folder / join(name, steps), steps) == once,
            join(name, ": interrupted every ", steps, " steps"));
    }
  }
}

// An epoch asks for every interaction once (with the causal objective, all but the first of each
// history), and no negative is in the history.
void test_matching_examples() {
  Dataset data = part_of_ring(60, 40);
  data.histories.add("one item", std::vector<std::int32_t>{7});
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    for (const std::size_t stride : std::vector<std::size_t>{0, 5, 12}) {
      TrainConfig train = small_train();
      train.neg_ratio = 3, train.window_stride = stride, train.mask_probability = 0.3;
      const MatchingTask task(data, matching_model(objective), train);
      std::size_t expected = 0;
      for (const std::size_t user : task.split().train_users()) {
        const std::size_t n = data.histories.row(user).size();
        expected += objective == Objective::causal && n > 1 ? n - 1 : n;
      }
      check_equal(task.positives(), expected);
      std::map<std::int32_t, std::size_t> asked[2], known;
      for (const std::size_t user : task.split().train_users()) {
        const ItemSpan row = data.histories.row(user);
        const std::size_t skipped = objective == Objective::causal && row.size() > 1;
        for (const std::int32_t item : row.subspan(skipped)) ++known[item];
      }
      std::vector<std::int32_t> tokens[2];
      for (const std::size_t epoch : std::vector<std::size_t>{0, 1}) {
        Batch batch;
        for (std::size_t i = 0; i < task.examples(); ++i) task.add_example(batch, i, epoch);
        check_batch(batch, task.model());
        for (const std::int32_t target : batch.targets) ++asked[epoch][target];
        check(asked[epoch] == known, "each interaction is asked for once");
        check_equal(batch.own_negatives.size(), 3 * expected);
        tokens[epoch] = batch.tokens;
      }
      check((tokens[0] == tokens[1]) == (objective == Objective::causal), "new masks every epoch");
    }
  }
  // Of a user who knows all but 4 items, the negatives are those 4.
  data = part_of_ring(20, 10);
  std::vector<std::int32_t> most(16);
  std::iota(most.begin(), most.end(), 0);
  data.histories.add("knows most", most);
  TrainConfig train = small_train();
  train.neg_ratio = 3;
  const MatchingTask task(data, matching_model(Objective::causal), train);
  std::set<std::int32_t> drawn;
  for (std::size_t i = 0; i < task.examples(); ++i) {
    Batch batch;
    task.add_example(batch, i, 0);
    if (batch.targets.back() != 15 || batch.tokens.size() < 12) continue;
    drawn.insert(batch.own_negatives.begin(), batch.own_negatives.end());
  }
  check(drawn == std::set<std::int32_t>{16, 17, 18, 19}, "negatives are unknown items");
  train.neg_ratio = 5;
  check_throws([&] { MatchingTask(data, matching_model(Objective::cloze), train); },
               {"neg_ratio is 5", "user \"knows most\" knows 16 of the 20"});
  train.neg_ratio = 1, train.mask_last = 0.5;
  check_throws([&] { MatchingTask(data, matching_model(Objective::cloze), train); },
               {"mask_last is 0.5", "matching hides each"});
  train.mask_last = 0, train.loss = Loss::gbce;
  check_throws([&] { MatchingTask(data, matching_model(Objective::cloze), train); },
               {"loss is gbce", "matching has a loss of its own"});
  check_throws([&] { ItemTask(data, matching_model(Objective::cloze), small_train()); },
               {"task is matching", "expected items"});
}

double measure(const TrainingMetrics& metrics, std::string_view name) {
  for (const auto& [measure, values] : metrics.val_measures) {
    if (measure == name) return values.back();
  }
  fail("no measure is called ", name);
}

// Positives and negatives come apart, and the next item of a ring ranks high.
void test_matching_learns(Objective objective) {
  const Dataset data = part_of_ring(20, 60);
  TrainConfig train = small_train();
  train.epochs = 100, train.learning_rate = 3e-3, train.neg_ratio = 3;
  train.mask_probability = 0.3;
  const TemporaryFolder folder;
  Trainer trainer(data, matching_model(objective), train, folder.path());
  trainer.run();
  const TrainingMetrics& metrics = trainer.metrics();
  check(metrics.train_losses.back() < 0.6 * metrics.train_losses.front(), "the loss falls");
  check(measure(metrics, "auc") > 0.9, join("auc ", measure(metrics, "auc")));
  check(metrics.val_accuracies[2].back() > 0.9, "HR@10");
  const double root = measure(metrics, "rmse"), square = measure(metrics, "mse");
  check(std::abs(root * root - square) < 1e-12 && measure(metrics, "mae") <= root, "errors");
  const auto read = TrainingMetrics::from_json(read_sealed_json(folder / detail::metrics_file));
  check(read.val_measures == metrics.val_measures, "measures survive their file");
  const auto picks =
      Recommender(folder / "models").recommend(std::vector<std::int32_t>{3, 4, 5, 6}, 3);
  check(picks[0].item == 7 || picks[1].item == 7 || picks[2].item == 7, "7 comes after 6");
}

// Without negatives and with a scale of 1, all vectors become one, and the loss log(1 + exp -1).
void test_collapse() {
  const Dataset data = part_of_ring(20, 60);
  ModelConfig model = matching_model(Objective::cloze);
  model.fixed_scale = 1;
  TrainConfig train = small_train();
  train.epochs = 60, train.learning_rate = 3e-3, train.neg_ratio = 0;
  const TemporaryFolder folder;
  Trainer trainer(data, model, train, folder.path());
  trainer.run();
  const TrainingMetrics& metrics = trainer.metrics();
  check(std::abs(metrics.val_losses.back() - std::log1p(std::exp(-1.0))) < 1e-3,
        join("loss ", metrics.val_losses.back()));
  check(measure(metrics, "item_cosine") > 0.9, join("cosine ", measure(metrics, "item_cosine")));
  check(measure(metrics, "item_spread") < 0.3, "spread");
  check(measure(metrics, "similarity_mae") < 0.05, "every similarity is 1");
}

// Items are drawn as often as their counts, to the power, say; log_expected is what was expected.
void test_drawn_negatives() {
  const std::vector<std::uint64_t> counts{0, 1, 16, 81, 256};
  for (const double power : {0.0, 0.25, 0.75, 1.0}) {
    const NegativeSampler sampler(counts, power);
    Batch batch;
    constexpr std::size_t draws = 100'000;
    sampler.draw(batch, draws, make_key(4));
    std::vector<double> drawn(counts.size());
    for (const std::int32_t item : batch.negatives) drawn[static_cast<std::size_t>(item)] += 1;
    double sum = 0;
    for (const auto count : counts) sum += std::pow(static_cast<double>(count), power);
    for (std::size_t item = 0; item < counts.size(); ++item) {
      const double expected = draws * std::pow(static_cast<double>(counts[item]), power) / sum;
      check(std::abs(drawn[item] - expected) <= 4 * std::sqrt(expected),
            join("power ", power, ", item ", item, ": ", drawn[item], " of ", expected));
      const auto place = static_cast<std::int32_t>(item);
      const auto at = std::find(batch.negatives.begin(), batch.negatives.end(), place);
      if (at == batch.negatives.end()) continue;
      const float log_expected =
          batch.log_expected[static_cast<std::size_t>(at - batch.negatives.begin())];
      check(std::abs(static_cast<double>(log_expected) - std::log(expected)) < 1e-6, "log K q");
    }
  }
  check_throws([] { NegativeSampler(std::vector<std::uint64_t>(3), 1.0); }, {"no item"});
}

void test_refused_choices() {
  const Dataset data = ring_data(20, 30);
  const TemporaryFolder folder;
  TrainConfig train = small_train();
  train.loss = Loss::gbce, train.negatives = 20;
  check_throws([&] { Trainer(data, small_model(), train, folder / "a"); },
               {"negatives is 20", "only 19 items"});
  ModelConfig causal = small_model();
  causal.objective = Objective::causal;
  train = small_train(), train.mask_last = 0.1;
  check_throws([&] { Trainer(data, causal, train, folder / "b"); }, {"mask_last is 0.1", "hides"});
  train = small_train();
  trained(data, causal, train, folder / "c");
  check_throws([&] { Trainer(data, small_model(), train, folder / "c").resume(); },
               {"made with objective \"causal\"", "now \"cloze\""});
  CpuEngine<float> engine({.num_items = 5, .hidden_size = 8, .num_heads = 2},
                          {.threads = 1, .loss = Loss::bce});
  Batch batch;
  batch.ask(1), batch.end_row();
  check_throws([&] { engine.train(batch, 0, 0.1); }, {"without negatives", "bce"});
  batch.negatives = {5}, batch.log_expected = {0.0f};
  check_throws([&] { engine.train(batch, 0, 0.1); }, {"negative 5", "no item"});
  batch.negatives = {4, 4};
  check_throws([&] { engine.train(batch, 0, 0.1); }, {"2 negatives and 1 log_expected"});
}

// With one fixed mask a window, training on few users learns its own masks by heart, which with
// new masks every epoch is not possible: the loss of training falls much lower.
void test_static_masks() {
  const Dataset data = ring_data(30, 12);
  TrainConfig train = small_train();
  train.epochs = 80, train.learning_rate = 0.02, train.split = Split::last;
  train.mask_probability = 0.5;
  ModelConfig model = small_model();
  model.dropout = model.attention_dropout = 0;
  const TemporaryFolder folder;
  double last[2];
  for (const std::size_t copies : std::vector<std::size_t>{0, 1}) {
    train.static_masks = copies;
    Trainer trainer(data, model, train, folder / join("copies_", copies));
    trainer.run();
    last[copies] = trainer.metrics().train_losses.back();
  }
  check(last[1] < 0.5 * last[0], join("loss ", last[1], " static, ", last[0], " dynamic"));
}

void test_early_stopping() {
  const Dataset data = ring_data(30, 12);
  TrainConfig train = small_train();
  train.epochs = 400, train.learning_rate = 0.03, train.patience = 5;
  for (const Metric metric : {Metric::loss, Metric::top10}) {
    train.best_by = metric;
    const TemporaryFolder folder;
    const std::string once = trained(data, small_model(), train, folder / "once");
    const auto metrics =
        TrainingMetrics::from_json(read_sealed_json(folder / "once/plots/training_metrics.json"));
    check(metrics.evaluations() < 400, "it stopped");
    check_equal(metrics.evaluations(), metrics.best_epoch + 5);
    for (std::size_t epoch = 1; epoch <= metrics.evaluations(); ++epoch) {
      const double best = metrics.quality(metric, metrics.best_epoch);
      check(epoch < metrics.best_epoch ? metrics.quality(metric, epoch) < best
                                       : metrics.quality(metric, epoch) <= best,
            join("epoch ", metrics.best_epoch, " is the first best, not ", epoch));
    }
    check(trained_in_pieces(data, small_model(), train, folder / "pieces", 3) == once,
          "interrupted, it stops at the same epoch");
  }
}

void test_validation_limit() {
  const Dataset data = ring_data(20, 40);
  TrainConfig train = small_train();
  train.split = Split::last;
  ModelConfig model = small_model();
  model.num_items = 20;
  CpuEngine<float> engine(model, train);
  const DataSplit split(data.histories, train);
  check_equal(validation_tally(engine, split, train).count, 40u);
  train.validation_limit = 7;
  check_equal(validation_tally(engine, split, train).count, 7u);
  train.validation_limit = 1000;
  check_equal(validation_tally(engine, split, train).count, 40u);
}

// ---- Baselines ----------------------------------------------------------------------------------

using Accuracies = std::array<double, top_k.size()>;

// The Top-K of `questions`, each the candidates' scores, that of the target first.
Accuracies accuracies_of(const std::vector<std::vector<double>>& questions) {
  Accuracies shares{};
  for (const std::vector<double>& scores : questions) {
    std::size_t above = 0, ties = 0;
    for (std::size_t i = 1; i < scores.size(); ++i) {
      above += scores[i] > scores[0], ties += scores[i] == scores[0];
    }
    for (std::size_t k = 0; k < top_k.size(); ++k) {
      const double hit = 1 + above + ties / 2 <= top_k[k];
      shares[k] += hit / static_cast<double>(questions.size());
    }
  }
  return shares;
}

void check_accuracies(const Accuracies& found, const Accuracies& expected) {
  for (std::size_t k = 0; k < top_k.size(); ++k) {
    check(std::abs(found[k] - expected[k]) < 1e-12,
          join("Top-", top_k[k], ": ", found[k], ", expected ", expected[k]));
  }
}

// Counts of the training part and of pairs in it, by plain loops.
struct Counted {
  explicit Counted(const DataSplit& split) {
    for (const std::size_t user : split.train_users()) {
      const ItemSpan items = split.sequence(user).train;
      for (std::size_t i = 0; i < items.size(); ++i) {
        ++count[items[i]];
        if (i > 0) ++pairs[{items[i - 1], items[i]}];
      }
    }
  }
  // With `last`, how often an item came after it goes before how often it came at all.
  std::vector<double> question(std::int32_t target, std::size_t items, std::int32_t last = -1,
                               ItemSpan left_out = {}) {
    std::vector<double> scores{score(target, last)};
    for (std::int32_t item = 0; item < static_cast<std::int32_t>(items); ++item) {
      const bool out = std::find(left_out.begin(), left_out.end(), item) != left_out.end();
      if (item != target && !out) scores.push_back(score(item, last));
    }
    return scores;
  }
  double score(std::int32_t item, std::int32_t last) {
    return 1e6 * pairs[{last, item}] + count[item];
  }

  std::map<std::int32_t, double> count;
  std::map<std::pair<std::int32_t, std::int32_t>, double> pairs;
};

// Walks along the ring that now and then jump, so that items differ in how often they occur.
Dataset uneven_data() {
  Dataset data = ring_data(30, 0);
  for (std::size_t user = 0; user < 50; ++user) {
    const Key key = fold_in(make_key(5), user);
    std::vector<std::int32_t> history;
    for (std::size_t i = 0; i < 3 + user % 17; ++i) {
      const bool jumps = i == 0 || below(key, 2 * i, 3) == 0;
      const std::size_t drawn = below(key, 2 * i + 1, 30) * below(key, 2 * i + 1, 30) / 30;
      history.push_back(jumps ? static_cast<std::int32_t>(drawn) : (history.back() + 1) % 30);
    }
    data.histories.add(join("user ", user), history);
  }
  return data;
}

void test_baselines_of_items() {
  const Dataset data = uneven_data();
  ModelConfig model = small_model();  // windows of 12
  for (const Split kind : {Split::last, Split::users}) {
    for (const Objective objective : {Objective::cloze, Objective::causal}) {
      for (const std::size_t limit : std::vector<std::size_t>{0, 4}) {
        TrainConfig train = small_train();
        train.split = kind, train.validation_limit = limit, train.validation_ratio = 0.4;
        model.objective = objective, model.num_items = 30;
        const ItemTask task(data, model, train);
        Counted counted(task.split());
        const std::vector<std::size_t>& users = task.split().validation_users();
        std::vector<std::vector<double>> popularity, markov;
        const auto ask = [&](ItemSpan history, std::size_t at) {
          const std::int32_t last = at > 0 ? history[at - 1] : -1;
          popularity.push_back(counted.question(history[at], 30));
          markov.push_back(counted.question(history[at], 30, last));
        };
        const std::size_t count = limit == 0 ? users.size() : limit;
        for (std::size_t i = 0; i < count; ++i) {
          const std::size_t user = users[i * users.size() / count];
          const ItemSpan history = task.split().history(user);
          const std::size_t n = history.size();
          if (kind == Split::last) {
            ask(history, n - 2);
          } else if (objective == Objective::causal) {
            for (std::size_t at = n > 13 ? n - 12 : 1; at < n; ++at) ask(history, at);
          } else {
            Batch batch;  // the masks of validation
            add_cloze_row(batch, history, model, train.mask_probability,
                          fold_in(stream_key(train.seed, Stream::validation_masks), user));
            for (const std::size_t place : batch.asked) {
              ask(history, (n > 12 ? n - 12 : 0) + place);
            }
          }
        }
        const bool next = kind == Split::last || objective == Objective::causal;
        const std::vector<Baseline> found = task.baselines();
        check_equal(found.size(), next ? 2u : 1u);
        check_equal(found[0].name, "popularity");
        check_accuracies(found[0].accuracies, accuracies_of(popularity));
        if (next) check_equal(found[1].name, "Markov");
        if (next) check_accuracies(found[1].accuracies, accuracies_of(markov));
        CpuEngine<float> engine(model, train);
        check_equal(task.validate(engine).tally.count, popularity.size());
      }
    }
  }
}

// Each item of a history is asked for once, among those that the user does not know.
void test_baselines_of_matching() {
  const Dataset data = uneven_data();
  TrainConfig train = small_train();
  train.validation_ratio = 0.4;
  for (const Split kind : {Split::last, Split::users}) {
    train.split = kind;
    const MatchingTask task(data, matching_model(Objective::cloze), train);
    Counted counted(task.split());
    std::vector<std::vector<double>> questions;
    for (const std::size_t user : task.split().validation_users()) {
      const ItemSpan history = task.split().history(user),
                     known = task.split().sequence(user).train;
      for (std::size_t at = 0; at < history.size(); ++at) {
        if (kind == Split::last && at + 2 != history.size()) continue;
        questions.push_back(
            counted.question(history[at], 30, -1, kind == Split::last ? known : history));
      }
    }
    const std::vector<Baseline> found = task.baselines();
    check_equal(found.size(), kind == Split::last ? 2u : 1u);
    check_accuracies(found[0].accuracies, accuracies_of(questions));
  }
}

// Facts stand in the file of a run and not in its checkpoints; a resumed run has them too.
void test_facts_of_a_run() {
  Dataset data = uneven_data();
  data.folder = "some/where/ring/";
  const TemporaryFolder folder;
  TrainConfig train = small_train();
  train.best_by = Metric::top5;
  Trainer(data, small_model(), train, folder / "my" / "run").run();
  std::filesystem::rename(folder / "my", folder / "your");
  train.epochs = 6;
  Trainer trainer(data, small_model(), train, folder / "your" / "run");
  const Safetensors checkpoint(trainer.resume());
  check(checkpoint.metadata("training_metrics").find("popularity") == std::string::npos &&
            checkpoint.metadata("training_metrics").find("run") == std::string::npos,
        "curves alone");
  trainer.run();
  const RunFacts facts =
      TrainingMetrics::from_json(read_sealed_json(folder / "your/run" / detail::metrics_file))
          .facts;
  check_equal(facts.data, "ring");
  check_equal(facts.run, "your/run");
  check(facts.best_by == Metric::top5, "best_by");
  check(facts.baselines.size() == 1 && facts.baselines[0].accuracies[3] > 0, "popularity");
}

void test_last_names() {
  check_equal(last_names("data/demo", 1), "demo");
  check_equal(last_names("data/demo/", 2), "data/demo");
  check_equal(last_names("a/b/../c/./d//", 2), "c/d");
  check_equal(last_names("a", 2), "a");
  check_equal(last_names("", 2), "");
  check_equal(last_names(".", 1), path_text(std::filesystem::current_path().filename()));
  check_equal(last_names("..", 1),
              path_text(std::filesystem::current_path().parent_path().filename()));
  check_equal(last_names("x/a\tb", 1), "a\\x09b");
}

void test_files_of_a_run() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  Trainer(data, small_model(), small_train(), folder.path()).run();
  for (const char* name :
       {"models/best_model.safetensors", "models/final_model.safetensors",
        "models/item_mappings.json", "models/training_config.json",
        "checkpoints/checkpoint_epoch_2.safetensors", "checkpoints/checkpoint_epoch_4.safetensors",
        "plots/training_metrics.json", "plots/metrics.csv", "logs/training.log"}) {
    check(std::filesystem::exists(folder / name), name);
  }
  const auto metrics =
      TrainingMetrics::from_json(read_sealed_json(folder / "plots/training_metrics.json"));
  check_equal(metrics.evaluations(), 4u);
  check_equal(metrics.val_accuracies[3].size(), 4u);
  const std::string table = read_file(folder / "plots/metrics.csv");
  check(table == metrics.to_csv() && std::count(table.begin(), table.end(), '\n') == 5,
        "metrics.csv has a line for each epoch");
  check(table.starts_with("epoch,train_loss,val_loss,train_top1,train_top5,") &&
            table.find(join("\n3,", metrics.train_losses[2], ",", metrics.val_losses[2], ",",
                            metrics.train_accuracies[0][2], ",")) != table.npos,
        table);
  const Json config = read_sealed_json(folder / "models/training_config.json");
  check_equal(config.at("model").at("num_items").integer(), 15);
  const Json mappings = read_sealed_json(folder / "models/item_mappings.json");
  check_equal(mappings.at("items").array()[3].at("token").integer(), 6);
  check_equal(mappings.at("items").array()[3].at("id").integer(), 103);
}

// Trains one run in `folder`, then expects resume() of another to be refused with `parts`.
void check_refused(const Dataset& data, const ModelConfig& model, const TrainConfig& train,
                   const Path& folder, std::initializer_list<std::string_view> parts) {
  check_throws([&] { Trainer(data, model, train, folder).resume(); }, parts);
}

void test_refusals() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  check_refused(data, small_model(), small_train(), folder.path(), {"no checkpoint"});
  Trainer(data, small_model(), small_train(), folder.path()).run();
  ModelConfig other_model = small_model();
  other_model.num_heads = 4;
  check_refused(data, other_model, small_train(), folder.path(),
                {"checkpoint_epoch_4", "num_heads 2, now 4"});
  other_model = small_model();
  other_model.hidden_size = 32;
  check_refused(data, other_model, small_train(), folder.path(), {"hidden_size 16, now 32"});
  TrainConfig other_train = small_train();
  other_train.seed = 1;
  check_refused(data, small_model(), other_train, folder.path(), {"seed 42, now 1"});
  check_refused(ring_data(15, 31), small_model(), small_train(), folder.path(), {"other data"});

  const Path checkpoint = folder / "checkpoints/checkpoint_epoch_4.safetensors";
  const std::string bytes = file_bytes(checkpoint);
  write_file(checkpoint, bytes.substr(0, bytes.size() / 2));
  check_refused(data, small_model(), small_train(), folder.path(),
                {"checkpoint_epoch_4", "truncated"});
  std::string damaged = bytes;
  damaged[damaged.size() - 100] ^= 4;
  write_file(checkpoint, damaged);
  check_refused(data, small_model(), small_train(), folder.path(), {"checksum"});

  TrainConfig none = small_train();
  none.validation_ratio = 0.01;
  check_throws([&] { Trainer(data, small_model(), none, folder.path()); },
               {"validation_ratio 0.01", "no validation user"});
  Trainer holder(data, small_model(), small_train(), folder.path());
  check_throws([&] { Trainer(data, small_model(), small_train(), folder.path()); },
               {"another process"});
}

void test_more_epochs() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  TrainConfig train = small_train();
  train.epochs = 6;
  trained(data, small_model(), train, folder / "six");
  train.epochs = 4;
  trained(data, small_model(), train, folder / "four");
  train.epochs = 6;
  const Path final_model = folder / "four/models/final_model.safetensors";
  {
    Trainer trainer(data, small_model(), train, folder / "four");
    trainer.resume();
    trainer.run({.should_stop = [] { return true; }});
    check(!path_exists(final_model), "of 4 epochs, but the run now has 6");
  }
  Trainer trainer(data, small_model(), train, folder / "four");
  trainer.resume();
  trainer.run();
  // (Not best_model: its description tells the number of epochs that the run then had.)
  check(file_bytes(folder / "four/models/final_model.safetensors") ==
            file_bytes(folder / "six/models/final_model.safetensors"),
        "4 epochs, then 2 more, are 6");
}

void test_diverging_loss() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  TrainConfig train = small_train();
  Trainer(data, small_model(), train, folder.path()).run();
  const std::string before = file_bytes(folder / "checkpoints/checkpoint_epoch_4.safetensors");
  train.epochs = 5;
  Trainer trainer(data, small_model(), train, folder.path());
  trainer.resume();
  std::vector<float> w(trainer.engine().table().size());
  trainer.engine().read(State::parameters, w);
  w[trainer.engine().table().at("encoder.layers.1.norm2.bias").offset] = std::nanf("");
  trainer.engine().write(State::parameters, w);
  check_throws([&] { trainer.run(); }, {"step 16", "nan", "nothing was updated"});
  check(file_bytes(folder / "checkpoints/checkpoint_epoch_4.safetensors") == before,
        "the good checkpoint is untouched");
  std::vector<float> after(w.size());
  trainer.engine().read(State::parameters, after);
  check(std::memcmp(after.data(), w.data(), w.size() * sizeof(float)) == 0, "no update");
}

// Of the second epoch, one batch cannot be made when it is first wanted.
class FailsOnce : public ItemTask {
 public:
  using ItemTask::ItemTask;
  void finish_batch(Batch& batch, std::uint64_t step) const override {
    if (step == 6 && !std::exchange(failed_, true)) fail("no batch ", step);
    ItemTask::finish_batch(batch, step);
  }

 private:
  mutable bool failed_ = false;
};

// The steps before it count, and the run goes on from there.
void test_failing_batch() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  const TrainConfig train = small_train();
  const std::string once = trained(data, small_model(), train, folder / "once");
  const Path output = folder / "again";
  Trainer trainer(std::make_unique<FailsOnce>(data, small_model(), train), train, output);
  std::size_t done = 0;
  TrainerCallbacks callbacks;
  callbacks.on_batch = [&](const BatchReport&) { ++done; };
  check_throws([&] { trainer.run(callbacks); }, {"no batch 6"});
  check_equal(done, 5u);  // the sixth was made, and not reported
  trainer.run(callbacks);
  check(file_bytes(output / "models" / "final_model.safetensors") +
                file_bytes(output / "models" / "best_model.safetensors") ==
            once,
        "as if nothing had been");
}

// An evaluation whose files could not be written is not forgotten: the next run() begins with them.
void test_failing_save() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  const TrainConfig train = small_train();
  const std::string once = trained(data, small_model(), train, folder / "once");
  const Path output = folder / "again", in_the_way = output / "models" / "best_model.safetensors";
  auto trainer = std::make_unique<Trainer>(data, small_model(), train, output);
  std::size_t epochs = 0;
  TrainerCallbacks callbacks;
  callbacks.on_epoch = [&](const EpochReport&) { ++epochs; };
  callbacks.on_batch = [&](const BatchReport&) { make_folder(in_the_way / "full"); };
  check_throws([&] { trainer->run(callbacks); }, {"best_model.safetensors"});
  check_equal(trainer->metrics().evaluations(), 1u);
  std::filesystem::remove_all(in_the_way);
  callbacks.on_batch = {};
  trainer->run(callbacks);
  check_equal(epochs, 3u);  // the first was not told
  check(file_bytes(output / "models" / "final_model.safetensors") + file_bytes(in_the_way) == once,
        "as if nothing had been");
  const std::string curves = file_bytes(output / "plots" / "training_metrics.json");
  std::filesystem::remove(output / "plots" / "training_metrics.json");
  trainer.reset();  // and its lock
  Trainer finished(data, small_model(), train, output);
  finished.resume(), finished.run();
  check(file_bytes(output / "plots" / "training_metrics.json") == curves, "written where missing");
}

#ifdef _WIN32

void full_disk() { skip("a full disk loses nothing", "Windows limits no file's size"); }

#else

void test_full_disk() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  TrainConfig train = small_train();
  Trainer(data, small_model(), train, folder.path()).run();
  const Path checkpoint = folder / "checkpoints/checkpoint_epoch_4.safetensors";
  const std::string before = file_bytes(checkpoint);
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{before.size() / 2, before.size() / 2};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, SIG_IGN);
    train.epochs = 6;
    try {
      Trainer trainer(data, small_model(), train, folder.path());
      trainer.resume();
      trainer.run();
    } catch (const Error& error) {
      ::_exit(std::string_view(error.what()).find("cannot write") != std::string::npos ? 7 : 8);
    }
    ::_exit(9);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  check_equal(WEXITSTATUS(status), 7);
  check(file_bytes(checkpoint) == before, "the old checkpoint is untouched");
  check(Trainer(data, small_model(), train, folder.path()).resume() == checkpoint, "and serves");
}

void full_disk() { test("a full disk loses nothing", test_full_disk); }

#endif

// Folders named in French and Chinese: the data, what training writes, and the words of an error.
void test_names_in_any_language() {
  const TemporaryFolder folder;
  const Path home = folder / "déjà vu 数据", source = home / path_from("资料"),
             output = home / "out";
  const Dataset ring = ring_data(15, 30);
  std::string items, histories;
  for (const Item& item : ring.catalogue) items += to_json(item).text() + "\n";
  for (std::size_t user = 0; user < ring.histories.size(); ++user) {
    Json::Array entries;
    for (const std::int32_t item : ring.histories.row(user)) {
      entries.emplace_back().set("id", 100 + item);
    }
    histories += join("{\"user\": \"", user, "\", \"entries\": ", Json(entries).text(), "}\n");
  }
  make_folder(source);
  write_file(source / "items.jsonl", items);
  write_file(source / "histories.jsonl", histories);
  const Dataset data = Dataset::load(source);
  check_equal(data.histories.size(), ring.histories.size());
  Trainer(data, small_model(), small_train(), output).run();
  {
    Trainer trainer(data, small_model(), small_train(), output);
    check(trainer.resume() == output / "checkpoints" / "checkpoint_epoch_4.safetensors", "resumed");
    check_throws([&] { Trainer(data, small_model(), small_train(), output); },
                 {"déjà vu 数据", "another process"});
  }
  check_equal(Recommender(output / "models").recommend(data.histories.row(0), 3).size(), 3u);
  write_file(source / "items.jsonl", "{\"id\": 1}\n{\"id\": 1}\n");
  check_throws([&] { Dataset::load(source); }, {"资料", "items.jsonl", "item id 1 stands twice"});
  check_throws([&] { Recommender(output / "models", "没有"); },
               {"没有.safetensors: cannot open: "});
}

void test_allocations() {
  const Dataset data = ring_data(30, 64);
  ModelConfig model = small_model();
  model.num_items = 30;
  TrainConfig train = small_train();
  train.threads = 2;
  const NegativeSampler sampler(std::vector<std::uint64_t>(30, 1), 0);
  for (const auto& [architecture, loss] : {std::pair(Architecture::torch, Loss::softmax),
                                           std::pair(Architecture::paper, Loss::softmax),
                                           std::pair(Architecture::paper, Loss::sampled_softmax),
                                           std::pair(Architecture::torch, Loss::gbce)}) {
    model.architecture = architecture, train.loss = loss;
    CpuEngine<float> engine(model, train);
    Batch batch;
    batch.reserve(64, model.max_length);
    const auto step = [&](std::uint64_t number) {
      batch.clear();
      sampler.draw(batch, 9, make_key(number));
      for (std::size_t user = 0; user < 64; ++user) {
        add_cloze_row(batch, data.histories.row(user), model, 0.15, fold_in(make_key(1), number));
      }
      engine.train(batch, number, 1e-3);
    };
    step(0);
    const std::size_t before = allocations;
    for (std::uint64_t i = 1; i < 5; ++i) step(i);
    check_equal(allocations - before, 0u);
  }
}

}  // namespace

// Counts every allocation of this program. (noinline: GCC 12 would warn of malloc and delete.)
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main() {
  test("same bits on 1, 2, 3 threads, and interrupted anywhere", test_same_bits);
  test("learns a ring, beats popularity, recommends the next",
       [] { test_learns_the_ring(Objective::cloze, Loss::softmax); });
  test("learns a ring: causal, sampled softmax",
       [] { test_learns_the_ring(Objective::causal, Loss::sampled_softmax); });
  test("learns a ring: causal, gbce", [] { test_learns_the_ring(Objective::causal, Loss::gbce); });
  test("drawn negatives", test_drawn_negatives);
  test("choices that are refused", test_refused_choices);
  test("each choice of training matters, and resumes", test_choices);
  test("each choice of matching matters, and resumes", test_matching_choices);
  test("rows that wait, and interruptions", test_rows_that_wait);
  test("matching asks for every interaction once", test_matching_examples);
  for (const Objective objective : {Objective::cloze, Objective::causal}) {
    test(join("matching learns a ring: ", enum_name(objective)),
         [&] { test_matching_learns(objective); });
  }
  test("without negatives matching collapses", test_collapse);
  test("static masks are learnt by heart", test_static_masks);
  test("early stopping, by the metric that was chosen", test_early_stopping);
  test("validation on a part of the users", test_validation_limit);
  test("baselines on the questions of validation", test_baselines_of_items);
  test("baselines of matching", test_baselines_of_matching);
  test("facts of a run", test_facts_of_a_run);
  test("the last names of a path", test_last_names);
  test("a run leaves its files", test_files_of_a_run);
  test("what resuming refuses", test_refusals);
  test("a longer run continues a shorter one", test_more_epochs);
  test("a loss that is not finite stops before the update", test_diverging_loss);
  test("a batch that cannot be made stops behind the step before it", test_failing_batch);
  test("an evaluation that cannot be saved is saved by the next run", test_failing_save);
  full_disk();
  test("folders named in any language", test_names_in_any_language);
  test("a training step allocates no memory after the first", test_allocations);
  return finish();
}
