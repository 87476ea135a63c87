// Texts with labels: rows, tables of labels, both tasks, training that may be interrupted and is
// evaluated several times an epoch, and what uses the model.

#include <map>
#include <set>

#include "bert4rec.hpp"
#include "check.hpp"

using namespace bert4rec;

namespace {

const std::string vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\n##s\n";
constexpr std::int32_t cls = 2, sep = 3, mask = 4, a = 5, b = 6, c = 7, s = 9;

// Texts of letters, of which "a" comes before "b" in those of label 1: words alone do not tell.
TextData ordered_texts(std::size_t count, std::size_t held_out, std::size_t max_length = 8) {
  const WordPiece words(vocabulary);
  TextData data{vocabulary, {"later", "sooner"}, {}, {}};
  for (std::size_t i = 0; i < count + held_out; ++i) {
    const Key key = fold_in(make_key(3), i);
    std::vector<std::string> letters{"a", "b"};
    for (std::size_t j = 0; j < below(key, 0, 4); ++j) {
      letters.push_back(below(key, 1 + j, 2) == 0 ? "c" : "d");
    }
    shuffle(letters, key);
    std::string text;
    for (const std::string& letter : letters) text += letter + " ";
    const bool sooner = text.find('a') < text.find('b');
    (i < count ? data.train : data.held_out).add(words, text, sooner, max_length);
  }
  return data;
}

ModelConfig small_model(TaskKind task = TaskKind::classification) {
  ModelConfig model;
  model.task = task;
  model.architecture = Architecture::paper;
  model.hidden_size = 16, model.num_heads = 2, model.max_length = 8;
  return model;
}

TrainConfig small_train() {
  TrainConfig train;
  train.epochs = 3, train.batch_size = 8, train.threads = 1, train.best_by = Metric::top1;
  return train;
}

std::vector<std::int32_t> row_of(const Texts& texts, std::size_t text) {
  return {texts.row(text).begin(), texts.row(text).end()};
}

void test_texts() {
  const WordPiece words(vocabulary);
  Texts texts;
  texts.add(words, "as b", 1, 8);
  texts.add(words, "", 0, 8);
  texts.add(words, "a b c d a b c d", 2, 5);
  texts.add(words, "a b c", 3, 5);
  check(row_of(texts, 0) == std::vector<std::int32_t>{cls, a, s, b, sep}, "[CLS] a ##s b [SEP]");
  check(row_of(texts, 1) == std::vector<std::int32_t>{cls, sep}, "an empty text");
  check(row_of(texts, 2) == std::vector<std::int32_t>{cls, a, b, c, sep}, "cut to 5");
  check(row_of(texts, 3) == row_of(texts, 2), "5 as it is");
  check_equal(texts.cut, 1u);
  check_equal(texts.empty, 1u);
  check_equal(texts.tokens(), 17u);
  check_equal(texts.label(2), 2);
  Texts other = texts;
  check_equal(other.fingerprint(1), texts.fingerprint(1));
  other.add(words, "", 0, 8);
  check(other.fingerprint(1) != texts.fingerprint(1), "another text, another fingerprint");
}

// Against counts by hand: 4 of label 0 (3 right), 2 of label 1 (1 right, 1 as 2), 1 of label 2.
void test_confusion() {
  Confusion confusion(3);
  for (const auto& [label, predicted] : std::vector<std::pair<std::size_t, std::size_t>>{
           {0, 0}, {0, 0}, {0, 0}, {0, 1}, {1, 1}, {1, 2}, {2, 0}}) {
    confusion.add(label, predicted);
  }
  check_equal(confusion.accuracy(), 4.0 / 7);
  check_equal(confusion.precision(0), 0.75);
  check_equal(confusion.recall(0), 0.75);
  check_equal(confusion.precision(1), 0.5);
  check_equal(confusion.f1(1), 0.5);
  check_equal(confusion.precision(2), 0.0);
  check_equal(confusion.f1(2), 0.0);
  const auto macro = confusion.macro();
  check_equal(macro[0], (0.75 + 0.5) / 3);
  check(confusion.summary() == macro, "of three labels the means");
  Confusion two(2), none(2);
  two.add(1, 1), two.add(0, 1), two.add(1, 0), two.add(1, 1);
  check(two.summary() == std::array<double, 3>{2.0 / 3, 2.0 / 3, 2.0 / 3}, "of two the second");
  two.add(0, 0);
  check_equal(two.accuracy(), 0.6);
  check_equal(none.accuracy(), 0.0);
  check_equal(none.summary()[2], 0.0);
}

void test_balance() {
  const WordPiece words(vocabulary);
  TextData data{vocabulary, {"x", "y"}, {}, {}};
  for (std::size_t i = 0; i < 8; ++i) data.train.add(words, "a", i < 2, 8);
  data.held_out.add(words, "a", 0, 8);
  TrainConfig train = small_train();
  const auto weights = [&](double balance) {
    train.class_balance = balance;
    const ClassificationTask task(data, small_model(), train);
    Batch batch;
    for (std::size_t i = 0; i < 8; ++i) task.add_example(batch, i, 0);
    return batch.weights;
  };
  check(weights(0).empty(), "no weights");
  const std::vector<float> full = weights(1), half = weights(0.5);
  check_equal(full[0], 2.0f);  // 2 of 8: both labels weigh 4 in all
  check_equal(full[7], 8.0f / 12);
  check(std::abs(half[0] / half[7] - std::sqrt(3.0f)) < 1e-6f, "(6 / 2)^0.5");
  check(std::abs(std::accumulate(half.begin(), half.end(), 0.0f) - 8) < 1e-5f, "1 on average");
}

// "a b c d" 250 times, and another text, to train on.
TextData long_text_and(std::string_view other) {
  const WordPiece words(vocabulary);
  TextData data{vocabulary, {"x", "y"}, {}, {}};
  std::string text;
  for (std::size_t i = 0; i < 250; ++i) text += "a b c d ";
  data.train.add(words, text, 0, 1002), data.train.add(words, other, 1, 1002);
  data.held_out.add(words, "a", 0, 1002);
  return data;
}

void test_augment() {
  const TextData data = long_text_and("");
  TrainConfig train = small_train();
  train.augment = 0.1;
  ModelConfig model = small_model();
  model.max_length = 1002;
  const ClassificationTask task(data, model, train);
  Batch first, second, again;
  task.add_example(first, 0, 0), task.add_example(second, 0, 1), task.add_example(again, 0, 0);
  check(first.tokens == again.tokens && first.tokens != second.tokens, "anew every epoch");
  check(first.tokens.front() == cls && first.tokens.back() == sep, "not [CLS] and [SEP]");
  check(first.tokens.size() > 860 && first.tokens.size() < 940, "a tenth left out");
  std::size_t follows = 0;  // in the order of the alphabet, which a change of places breaks
  for (std::size_t i = 1; i + 2 < first.tokens.size(); ++i) {
    follows += (first.tokens[i] - a + 1) % 4 == first.tokens[i + 1] - a;
  }
  check(follows > 550 && follows < 700, join(follows, " pairs as they were"));
  Batch empty;
  task.add_example(empty, 1, 0);
  check(empty.tokens == std::vector<std::int32_t>{cls, sep}, "nothing to leave out");
}

// Of each token the bigram with the one before it, and some of them left out, anew every epoch.
void test_bigrams() {
  const TextData data = long_text_and("a b");
  ModelConfig model = small_model();
  model.max_length = 1002, model.bigrams = 50;
  TrainConfig train = small_train();
  const auto added = [&](double dropout, std::size_t epoch) {
    train.bigram_dropout = dropout;
    const ClassificationTask task(data, model, train);
    Batch batch;
    task.add_example(batch, 0, epoch), task.add_example(batch, 1, epoch);
    return batch;
  };
  const Batch all = added(0, 0), some = added(0.3, 0), again = added(0.3, 0), later = added(0.3, 1);
  check_equal(all.bigrams.size(), std::size_t{1006});
  for (std::size_t t = 0; t < 1006; ++t) {
    const bool begins = t == 0 || t == 1002;
    check_equal(all.bigrams[t], begins ? 0 : bigram_row(all.tokens[t - 1], all.tokens[t], 50));
    check(some.bigrams[t] == 0 || some.bigrams[t] == all.bigrams[t], "left out or as it is");
  }
  check_equal(all.bigrams[2], all.bigrams[1004]);  // "a b"
  check(all.bigrams[2] != bigram_row(all.tokens[2], all.tokens[1], 50), "not that of \"b a\"");
  const auto left_out = std::count(some.bigrams.begin(), some.bigrams.end(), 0);
  check(left_out > 250 && left_out < 350, join(left_out, " of 1,004 left out"));
  check(some.bigrams == again.bigrams && some.bigrams != later.bigrams, "anew every epoch");
  std::set<std::int32_t> rows;
  for (std::int32_t i = 0; i < 1000; ++i) rows.insert(bigram_row(7, i, 50));
  check(rows.size() == 49 && *rows.begin() == 1 && *rows.rbegin() == 49, "all but row 0");
  model.bigrams = 1;
  check_throws([&] { ClassificationTask(data, model, train); }, {"bigrams is 1", "at least 2"});
  Batch by_hand;  // what is not ended yet waits, and positions may be any
  by_hand.tokens = {7, 8}, by_hand.end_row(), by_hand.positions = {3, 0}, by_hand.ask(0, 9);
  model.bigrams = 50, add_bigrams(by_hand, model);
  check(by_hand.bigrams == std::vector<std::int32_t>{0, bigram_row(7, 8, 50)}, "rows that ended");
  model = {}, model.num_items = 5, model.bigrams = 9;
  check_throws([&] { validate(model); }, {"bigrams is 9", "task is items"});
}

// Words are hidden whole; [CLS] and [SEP] never; shares of what is shown instead.
void test_masks() {
  const WordPiece words(vocabulary);
  TextData data{vocabulary, {}, {}, {}};
  std::string text;
  for (std::size_t i = 0; i < 200; ++i) text += "as b ";
  data.train.add(words, text, 0, 602);
  data.held_out.add(words, "a", 0, 602);
  ModelConfig model = small_model(TaskKind::masked_text);
  model.max_length = 602;
  TrainConfig train = small_train();
  train.masking = Masking::words, train.mask_probability = 0.3;
  std::size_t masked = 0, kept = 0, changed = 0;
  for (const double share : {0.0, 0.1}) {
    train.random_share = train.keep_share = share;
    const MaskedTextTask task(data, model, train);
    Batch batch;
    for (std::size_t epoch = 0; epoch < 10; ++epoch) task.add_example(batch, 0, epoch);
    check_equal(batch.rows(), 10u);
    const std::set<std::size_t> asked(batch.asked.begin(), batch.asked.end());
    const auto row = data.train.row(0);
    masked = kept = changed = 0;
    for (std::size_t i = 0; i < batch.asked.size(); ++i) {
      const std::size_t at = batch.asked[i] % 602;
      check_equal(batch.targets[i], row[at]);
      check(at != 0 && at != 601, "[CLS] and [SEP] are not asked for");
      if (row[at] == s) check(asked.contains(batch.asked[i] - 1), "hidden with what it goes on");
      if (row[at] == a) check(asked.contains(batch.asked[i] + 1), "hidden with what goes on");
      const std::int32_t shown = batch.tokens[batch.asked[i]];
      ++(shown == mask ? masked : shown == row[at] ? kept : changed);
    }
    // 400 words, 120 of them hidden, each of 1 or 2 tokens.
    check(batch.asked.size() > 1700 && batch.asked.size() < 1900, join(batch.asked.size()));
    if (share == 0) check(kept == 0 && changed == 0, "always [MASK]");
  }
  check(masked > 1350 && masked < 1550, join(masked, " of about 1,460"));
  check(kept > 120 && kept < 270, join(kept, " of about 200"));
  check(changed > 90 && changed < 230, join(changed, " of about 150"));
}

// Of texts without a token nothing is asked: they are left out, so that no batch asks for nothing.
void test_empty_texts() {
  const WordPiece words(vocabulary);
  TextData data{vocabulary, {}, {}, {}};
  for (const char* text : {"", "a b", "", "", "b c", ""}) data.train.add(words, text, 0, 8);
  data.held_out.add(words, "a", 0, 8);
  TrainConfig train = small_train();
  train.batch_size = 1;
  const ModelConfig model = small_model(TaskKind::masked_text);
  const MaskedTextTask task(data, model, train);
  check_equal(task.examples(), 2u);
  Batch batch;
  for (std::size_t i = 0; i < 2; ++i) {
    batch.clear();
    task.add_example(batch, i, 0);
    check(!batch.asked.empty(), "each asks");
  }
  data.train = {};
  data.train.add(words, "", 0, 8);
  check_throws([&] { MaskedTextTask(data, model, train); }, {"all to train on are empty"});
  data.train.add(words, "a", 0, 8);
  data.held_out = {};
  data.held_out.add(words, "", 0, 8);
  check_throws([&] { MaskedTextTask(data, model, train); }, {"all held out are empty"});
}

// Always one label, the first of those with most texts to train on; and of masked text the tokens
// in the order of their counts, [CLS] and [SEP] left out.
void test_baselines() {
  const WordPiece words(vocabulary);
  TextData data{vocabulary, {"x", "y", "z"}, {}, {}};
  for (const std::int32_t label : {2, 1, 0, 1, 2}) data.train.add(words, "a b a", label, 8);
  for (const std::int32_t label : {0, 1, 2, 2}) data.held_out.add(words, "a", label, 8);
  data.held_out.add(words, "b", 1, 8);
  TrainConfig train = small_train();
  const ClassificationTask labels(data, small_model(), train);
  std::vector<Baseline> found = labels.baselines();
  check_equal(found.size(), 1u);
  check_equal(found[0].name, "majority label");
  check_equal(found[0].accuracies[0], 2.0 / 5);  // label y, before z
  check_equal(found[0].accuracies[1], 1.0);
  train.validation_limit = 2;  // the texts 0 and 2: labels x and z
  check_equal(ClassificationTask(data, small_model(), train).baselines()[0].accuracies[0], 0.0);
  train.validation_limit = 0;
  found = MaskedTextTask(data, small_model(TaskKind::masked_text), train).baselines();
  check_equal(found[0].name, "popularity");
  check_equal(found[0].accuracies[0], 4.0 / 5);  // each text hides its one letter; a leads
}

std::string trained(const TextData& data, const ModelConfig& model, const TrainConfig& train,
                    const Path& output, std::size_t steps) {
  for (bool first = true, finished = false; !finished; first = false) {
    std::unique_ptr<Task> task;
    if (model.task == TaskKind::classification)
      task = std::make_unique<ClassificationTask>(data, model, train);
    else
      task = std::make_unique<MaskedTextTask>(data, model, train);
    Trainer trainer(std::move(task), train, output);
    if (!first) trainer.resume();
    std::size_t done = 0;
    TrainerCallbacks callbacks;
    callbacks.on_batch = [&](const BatchReport&) { ++done; };
    callbacks.should_stop = [&] { return done >= steps; };
    finished = trainer.run(callbacks);
  }
  return read_file(output / "models" / "final_model.safetensors") +
         read_file(output / "models" / "best_model.safetensors");
}

void test_same_bits() {
  const TextData data = ordered_texts(60, 20);
  TrainConfig train = small_train();
  train.augment = 0.1, train.class_balance = 0.5, train.eval_every = 0.3, train.clip_norm = 1;
  for (const TaskKind task : {TaskKind::classification, TaskKind::masked_text}) {
    const TemporaryFolder folder;
    ModelConfig model = small_model(task);
    model.bigrams = 20;
    train.threads = 1;
    const std::string once = trained(data, model, train, folder / "once", 1000);
    train.threads = 3;
    for (const std::size_t steps : std::vector<std::size_t>{1, 2, 5}) {
      const Path output = folder / join(steps);
      check(trained(data, model, train, output, steps) == once,
            join("interrupted every ", steps, " steps"));
    }
  }
}

// Several evaluations an epoch move nothing but when it is looked.
void test_evaluations() {
  const TextData data = ordered_texts(60, 20);  // 8 steps an epoch
  const TemporaryFolder folder;
  std::map<double, std::string> models;
  for (const double every : {1.0, 0.3, 0.001}) {
    TrainConfig train = small_train();
    train.eval_every = every, train.save_every = 2;
    const Path output = folder / join(every);
    Trainer trainer(std::make_unique<ClassificationTask>(data, small_model(), train), train,
                    output);
    std::vector<std::string> epochs;
    std::vector<std::uint64_t> texts;
    TrainerCallbacks callbacks;
    callbacks.on_epoch = [&](const EpochReport& report) {
      epochs.push_back(report.epoch), texts.push_back(report.train.count);
    };
    trainer.run(callbacks);
    const std::size_t parts = every == 1 ? 1 : every == 0.3 ? 3 : 8;  // at most one a step
    check_equal(trainer.metrics().per_epoch, parts);
    check_equal(trainer.metrics().evaluations(), 3 * parts);
    check_equal(epochs[parts - 1], "1");
    check_equal(epochs.back(), "3");
    if (parts == 3) {
      check(epochs[0] == "0.33" && epochs[4] == "1.67", "to two places");
      check(texts[0] == 16 && texts[1] == 24 && texts[2] == 20, "2, 3 and 3 of 8 steps");
    }
    check(path_exists(output / "checkpoints" / "checkpoint_epoch_2.safetensors"), "every 2 epochs");
    check_equal(detail::checkpoint_files(output).size(), 2u);
    // The configuration is in the file, and so differs.
    const Safetensors file(output / "models" / "final_model.safetensors");
    std::string bytes;
    for (const TensorSpec& spec : trainer.engine().table()) {
      std::vector<float> values(spec.size);
      file.copy(spec.name, spec.shape, values.data());
      bytes.append(reinterpret_cast<const char*>(values.data()), 4 * values.size());
    }
    models[every] = bytes;
  }
  check(models[1.0] == models[0.3] && models[1.0] == models[0.001], "the same parameters");
}

void test_learns() {
  const TextData data = ordered_texts(600, 200);
  TrainConfig train = small_train();
  train.epochs = 20, train.learning_rate = 5e-3, train.schedule = Schedule::linear;
  train.warmup_steps = 50;
  const TemporaryFolder folder;
  Trainer(std::make_unique<ClassificationTask>(data, small_model(), train), train, folder / "run")
      .run();
  Classifier classifier(folder / "run" / "models", "best_model", 1);
  const std::vector<std::string_view> texts{"a b", "b a", "c b d a", "d a c c b", "a"};
  const auto all = classifier.probabilities(texts);
  const std::size_t expected[] = {1, 0, 0, 1};
  for (std::size_t i = 0; i < texts.size(); ++i) {
    check(classifier.probabilities(texts[i]) == all[i], "alone as among others");
    check(std::abs(all[i][0] + all[i][1] - 1) < 1e-6f, "sums to 1");
    if (i < 4) check_equal(best_label(all[i]), expected[i]);
  }
  check_equal(classifier.labels()[1], "sooner");
  check_equal(best_label(std::vector<float>{0.5f, 0.5f}), 0u);
}

// A model begins on the encoder of another.
void test_begins() {
  const TextData data = ordered_texts(60, 20);
  const TemporaryFolder folder;
  TrainConfig train = small_train();
  trained(data, small_model(TaskKind::masked_text), train, folder / "masked", 1000);
  const Safetensors file = open_model(folder / "masked" / "models");
  ModelConfig model;
  model.task = TaskKind::classification, model.classes = 2, model.num_items = 10;
  take_sizes(model, stored_config<ModelConfig>(file, "model_config"));
  check_equal(model.hidden_size, 16u);
  check_equal(model.max_length, 8u);
  model.architecture = Architecture::paper;
  CpuEngine<float, ClassificationHead> engine(model, train);
  const std::vector<std::string> others = begin_with(file, engine);
  check(others == std::vector<std::string>{"pooler.dense.weight", "pooler.dense.bias",
                                           "classifier.weight", "classifier.bias"},
        "the head begins at random");
  std::vector<float> theirs(16 * 16);
  const TensorSpec& spec = engine.table().at("encoder.layers.1.self_attn.out_proj.weight");
  file.copy(spec.name, spec.shape, theirs.data());
  check(std::equal(theirs.begin(), theirs.end(), engine.parameters().data() + spec.offset),
        "the encoder is theirs");
  model.bigrams = 30;  // which the other lacks
  CpuEngine<float, ClassificationHead> with_bigrams(model, train);
  check_equal(begin_with(file, with_bigrams).front(), "bigram_embedding.weight");
  take_sizes(model, stored_config<ModelConfig>(file, "model_config"));
  check_equal(model.bigrams, std::size_t{30});
  ModelConfig sized = model, other = sized;
  other.bigrams = 40, take_sizes(sized, other);
  check_equal(sized.bigrams, std::size_t{40});
  model.num_layers = 1;
  CpuEngine<float, ClassificationHead> shorter(model, train);
  check_throws([&] { begin_with(file, shorter); }, {"encoder.layers.1", "has more than this one"});
  model.num_items = 11, model.bigrams = 0, model.num_layers = 2;
  CpuEngine<float, ClassificationHead> larger(model, train);
  check_throws([&] { begin_with(file, larger); }, {"item_embedding.weight", "11"});
}

void test_refused() {
  const TemporaryFolder folder;
  TextData data = ordered_texts(60, 20);
  TrainConfig train = small_train();
  const auto refused = [&](const ModelConfig& model,
                           std::initializer_list<std::string_view> parts) {
    check_throws([&] { ClassificationTask(data, model, train); }, parts);
  };
  refused(small_model(TaskKind::masked_text), {"task is masked-text, expected classification"});
  train.loss = Loss::bce;
  refused(small_model(), {"loss is bce"});
  train.loss = Loss::softmax;
  ModelConfig causal = small_model();
  causal.objective = Objective::causal;
  refused(causal, {"objective is causal"});
  data.labels.push_back("never");
  refused(small_model(), {"label \"never\" has no text to train on"});
  for (const std::int32_t label : {-1, 3}) {
    data = ordered_texts(60, 20);
    data.labels.push_back("never");
    data.train.add(WordPiece(vocabulary), "a", label, 8);
    refused(small_model(), {"text 60 to train on", "expected 0 ... 2"});
    data = ordered_texts(60, 20);
    data.held_out.add(WordPiece(vocabulary), "a", label, 8);
    refused(small_model(), {"text 20 held out: label", "expected 0 ... 1"});
  }
  data = ordered_texts(60, 20);
  data.train.add(WordPiece(vocabulary + "e\n"), "e", 0, 8);
  refused(small_model(), {"text 60 to train on: token 10 is not one of the vocabulary's 10"});
  data = ordered_texts(60, 20, 9);
  data.held_out.add(WordPiece(vocabulary), "a b c a b c a b c", 0, 9);
  refused(small_model(), {"text 20 held out: 9 tokens, expected 2 ... 8"});
  check_throws([] { Texts().add(WordPiece(vocabulary), "a", 0, 1); }, {"max_length is 1"});
  train.mask_last = 0.1;
  refused(small_model(), {"mask_last is 0.1, but texts are shown whole"});
  train.mask_last = 0, train.window_stride = 4;
  refused(small_model(), {"window_stride is 4, but texts have no windows"});
  train.window_stride = 0;
  data.labels = {"one"};
  data.train = {}, data.train.add(WordPiece(vocabulary), "a", 0, 8);
  refused(small_model(), {"classes is 1, expected at least 2"});
  data = ordered_texts(60, 0);
  refused(small_model(), {"60 to train on and 0 held out"});
  check_throws([&] { make_task(Dataset(), small_model(), train); }, {"needs texts"});
  ModelConfig items;
  items.num_items = 3, items.classes = 2;
  check_throws([&] { validate(items); }, {"classes is 2, expected 0 but for a classifier"});

  data = ordered_texts(60, 20);
  trained(data, small_model(), train, folder / "run", 1000);
  trained(data, small_model(TaskKind::masked_text), train, folder / "masked", 1000);
  check_throws([&] { Classifier(folder / "masked" / "models"); }, {"a model for masked-text"});
  const Path models = folder / "run" / "models";
  const auto spoiled = [&](const char* name, const std::string& by, std::string_view what) {
    const std::string before = read_file(models / name);
    write_file(models / name, by);
    check_throws([&] { Classifier classifier(models); }, {what});
    write_file(models / name, before);
  };
  spoiled("vocab.txt", vocabulary + "e\n", "vocab.txt are of different runs");
  trained(ordered_texts(50, 20), small_model(), train, folder / "other", 1000);
  spoiled("labels.json", read_file(folder / "other" / "models" / "labels.json"), "different runs");
  spoiled("labels.json", "{}", "labels.json");
  Classifier good(models);
  check_throws([&] { Recommender recommender(models); }, {"item_mappings.json"});
  check(good.probabilities("\xFF\xFE").size() == 2, "bytes that are no text are an empty one");
}

}  // namespace

int main() {
  test("baselines", test_baselines);
  test("texts", test_texts);
  test("confusion", test_confusion);
  test("balance", test_balance);
  test("augment", test_augment);
  test("bigrams", test_bigrams);
  test("masks", test_masks);
  test("empty texts", test_empty_texts);
  test("same bits", test_same_bits);
  test("evaluations", test_evaluations);
  test("learns", test_learns);
  test("begins on another", test_begins);
  test("refused", test_refused);
  return finish();
}
