// Chapter 21: two small BERTs against what Transformers computed (tests/reference/make_bert.py; no
// Python is needed to run this), the way there and back, every spelling of names, and what is
// refused.

#include "bert4rec.hpp"
#include "check.hpp"

using namespace bert4rec;

namespace {

const Path reference = Path(BERT4REC_SOURCE_FOLDER) / "tests" / "reference";

// ---- Checkpoints, tensor by tensor --------------------------------------------------------------

struct RawTensor {
  std::string dtype;
  Shape shape;
  std::string bytes;
};
using Checkpoint = std::map<std::string, RawTensor>;

Checkpoint read_checkpoint(const Path& path) {
  const std::string file = read_file(path);
  std::uint64_t size = 0;
  std::memcpy(&size, file.data(), 8);
  const Json header = Json::parse(file.substr(8, size));
  Checkpoint checkpoint;
  for (const auto& [name, entry] : header.object()) {
    if (name == "__metadata__") continue;
    RawTensor& tensor = checkpoint[name];
    tensor.dtype = entry.at("dtype").string();
    for (const Json& number : entry.at("shape").array()) {
      tensor.shape.push_back(static_cast<std::size_t>(number.integer()));
    }
    const auto begin = static_cast<std::size_t>(entry.at("data_offsets").array()[0].integer());
    const auto end = static_cast<std::size_t>(entry.at("data_offsets").array()[1].integer());
    tensor.bytes = file.substr(8 + size + begin, end - begin);
  }
  return checkpoint;
}

void write_checkpoint(const Path& path, const Checkpoint& checkpoint) {
  Json header;
  std::string numbers;
  for (const auto& [name, tensor] : checkpoint) {
    Json entry;
    entry.set("dtype", tensor.dtype);
    entry.set("shape", tensor.shape);
    const std::size_t begin = numbers.size();
    numbers += tensor.bytes;
    entry.set("data_offsets", std::vector<std::size_t>{begin, numbers.size()});
    header.set(name, std::move(entry));
  }
  const std::string text = header.text();
  const std::uint64_t size = text.size();
  write_file(path, std::string(reinterpret_cast<const char*>(&size), 8) + text + numbers);
}

void rename(Checkpoint& checkpoint, const std::function<std::string(const std::string&)>& name_of) {
  Checkpoint renamed;
  for (auto& [name, tensor] : checkpoint) renamed[name_of(name)] = std::move(tensor);
  checkpoint = std::move(renamed);
}

std::string replaced(std::string text, std::string_view old, std::string_view by) {
  const std::size_t at = text.find(old);
  return at == text.npos ? text : text.replace(at, old.size(), by);
}

// ---- Models -------------------------------------------------------------------------------------

ModelConfig bert_model(TaskKind task) {
  ModelConfig model;
  model.task = task;
  model.architecture = Architecture::paper;
  model.num_items = 13, model.hidden_size = 8, model.num_layers = 2, model.num_heads = 2;
  model.inner_size = 12, model.max_length = 6, model.segments = 2, model.norm_epsilon = 1e-12;
  model.classes = task == TaskKind::classification ? 3 : 0;
  return model;
}

std::unique_ptr<Engine> new_engine(const ModelConfig& model, std::uint64_t seed = 1) {
  TrainConfig train;
  train.threads = 1, train.seed = seed;
  return make_cpu_engine(model, train, Start::random);
}

std::vector<float> values_of(Engine& engine) {
  std::vector<float> values(engine.table().size());
  engine.read(State::parameters, values);
  return values;
}

// No two numbers of it are the same, so that none can stand for another.
std::unique_ptr<Engine> distinct_engine(const ModelConfig& model) {
  auto engine = new_engine(model);
  std::vector<float> values(engine->table().size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i + 1) * 0x1p-12f;
  engine->write(State::parameters, values);
  return engine;
}

// A folder that holds such a model, and its tensors, to be changed.
struct Saved {
  explicit Saved(const ModelConfig& model)
      : engine(distinct_engine(model)),
        values((save_hugging_face(folder.path(), *engine), values_of(*engine))),
        checkpoint(read_checkpoint(folder / "model.safetensors")) {}

  void write() const { write_checkpoint(folder / "model.safetensors", checkpoint); }

  // Into an engine of other numbers.
  std::vector<std::string> load(Engine& into) const {
    return HuggingFaceFolder(folder.path()).load(into);
  }
  void loads_the_same(Place where = {__builtin_FILE(), __builtin_LINE()}) const {
    write();
    const auto other = new_engine(engine->config(), 2);
    check_equal(load(*other).size(), std::size_t{0}, where);
    check(values_of(*other) == values, "the same numbers", where);
  }
  // ... and leaves an engine as it was.
  void refuses(std::initializer_list<std::string_view> parts,
               Place where = {__builtin_FILE(), __builtin_LINE()}) const {
    write();
    const auto other = new_engine(engine->config(), 2);
    const std::vector<float> before = values_of(*other);
    check_throws([&] { load(*other); }, parts, where);
    check(values_of(*other) == before, "an engine as it was", where);
  }

  TemporaryFolder folder;
  std::unique_ptr<Engine> engine;
  std::vector<float> values;
  Checkpoint checkpoint;
};

// ---- Against Transformers -----------------------------------------------------------------------

template <class Number>
std::vector<Number> numbers(const Json& json) {
  std::vector<Number> found;
  for (const Json& number : json.array()) found.push_back(static_cast<Number>(number.number()));
  return found;
}

Batch read_batch(const Json& json, TaskKind task) {
  const auto tokens = numbers<std::int32_t>(json.at("tokens"));
  const auto offsets = numbers<std::size_t>(json.at("offsets"));
  const bool classifies = task == TaskKind::classification;
  Batch batch;
  for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
    for (std::size_t t = offsets[row]; t < offsets[row + 1]; ++t) batch.tokens.push_back(tokens[t]);
    batch.end_row();
  }
  batch.segments = numbers<std::int32_t>(json.at("segments"));
  batch.asked = classifies ? std::vector(offsets.begin(), offsets.end() - 1)
                           : numbers<std::size_t>(json.at("masked"));
  batch.targets = numbers<std::int32_t>(json.at(classifies ? "labels" : "targets"));
  return batch;
}

// What Transformers was given, and what it found, for a task.
struct Reference {
  explicit Reference(TaskKind kind) : task(kind) {
    for (const Json& batch : json.at("batches").array()) batches.push_back(read_batch(batch, task));
    train.learning_rate = json.at("learning_rate").number();
    train.weight_decay = json.at("weight_decay").number();
    train.threads = 2;
    for (const char* part : {"initial.", "final."}) write_folder(part);
  }

  // The tensors <part><name>, or <task>.<part><name>, as a folder that Transformers wrote.
  void write_folder(const std::string& part) const {
    make_folder(folder / part);
    const Json& config = json.at("configs").at(enum_name(task));
    write_file(folder / part / "config.json", config.text());
    const std::string prefix = part == "initial." ? part : join(enum_name(task), ".", part);
    Checkpoint chosen;
    for (const auto& [name, tensor] : stored) {
      if (name.starts_with(prefix)) chosen[name.substr(prefix.size())] = tensor;
    }
    write_checkpoint(folder / part / "model.safetensors", chosen);
  }
  std::vector<float> scores(std::size_t count) const {
    const RawTensor& tensor = stored.at(join(enum_name(task), ".scores"));
    std::vector<float> scores(count);
    check_equal(tensor.bytes.size(), count * sizeof(float));
    std::memcpy(scores.data(), tensor.bytes.data(), tensor.bytes.size());
    return scores;
  }

  TaskKind task;
  Json json = Json::parse(read_file(reference / "bert.json"));
  Checkpoint stored = read_checkpoint(reference / "bert.safetensors");
  std::vector<Batch> batches;
  TrainConfig train;
  TemporaryFolder folder;
};

// The bias of the keys changes nothing, and has no gradient but rounding errors, which AdamW turns
// into steps in no particular direction: see tests/test_reference.cpp.
void forgive_key_bias(const ModelConfig& model, const TensorTable& table, std::vector<float>& found,
                      const std::vector<float>& expected) {
  const std::size_t H = model.hidden_size;
  for (std::size_t layer = 0; layer < model.num_layers; ++layer) {
    const std::size_t at = table.at(layer_prefix(layer) + "self_attn.in_proj_bias").offset + H;
    for (std::size_t i = at; i < at + H; ++i) found[i] = expected[i];
  }
}

template <class Real, template <class> class Head>
void test_against_transformers(TaskKind task, double tolerance) {
  const Reference expected(task);
  const HuggingFaceFolder folder(expected.folder / "initial.");
  CpuEngine<Real, Head> engine(folder.config(), expected.train);
  check_equal(folder.load(engine).size(), std::size_t{0});
  check_equal(folder.labels().size(), engine.config().classes);

  const Batch& batch = expected.batches[0];
  std::vector<float> scores(batch.asked.size() * engine.config().targets());
  engine.score(batch, scores);
  const std::vector<float> stored = expected.scores(scores.size());
  const double of_scores = check_close<float, const float>("scores", scores, stored, tolerance);

  const auto losses = numbers<double>(expected.json.at("losses").at(enum_name(task)));
  double of_losses = 0;
  std::uint64_t step = 0;
  for (const auto number : numbers<std::size_t>(expected.json.at("order"))) {
    const double rate = expected.train.learning_rate;
    const double loss = engine.train(expected.batches[number], step, rate).loss();
    of_losses = std::max(of_losses, std::abs(loss / losses[step++] - 1));
  }
  check_equal(step, losses.size());
  check(of_losses <= tolerance, join("losses within ", tolerance, ": ", of_losses));

  const auto end = new_engine(folder.config());
  HuggingFaceFolder(expected.folder / "final.").load(*end);
  std::vector<float> found = values_of(engine), last = values_of(*end);
  if (std::is_same_v<Real, float>) forgive_key_bias(engine.config(), engine.table(), found, last);
  double of_parameters = 0;
  for (const TensorSpec& spec : engine.table()) {
    const auto part = [&](auto& values) {
      return std::span<const float>(values).subspan(spec.offset, spec.size);
    };
    of_parameters =
        std::max(of_parameters, check_close(spec.name, part(found), part(last), tolerance));
  }
  std::cout << "relative errors: scores " << of_scores << ", losses " << of_losses
            << ", parameters after " << step << " steps " << of_parameters << "\n";
}

// ---- There and back -----------------------------------------------------------------------------

void test_round_trip() {
  for (const TaskKind task : {TaskKind::masked_text, TaskKind::classification}) {
    ModelConfig model = bert_model(task);
    model.dropout = 0.25, model.attention_dropout = 0, model.initializer_range = 0.05;
    const Saved saved(model);
    saved.loads_the_same();
    const HuggingFaceFolder folder(saved.folder.path());
    check_equal(to_json(folder.config()).text(), to_json(model).text());
  }
}

// The names and shapes that Transformers has, and where their numbers come from.
void test_names() {
  const Saved saved(bert_model(TaskKind::classification));
  const auto holds = [&](const char* theirs, const char* ours, std::size_t skipped, Shape shape) {
    const RawTensor& tensor = saved.checkpoint.at(theirs);
    check(tensor.shape == shape && tensor.dtype == "F32", theirs);
    const float* first = saved.values.data() + saved.engine->table().at(ours).offset + skipped;
    check(std::memcmp(first, tensor.bytes.data(), tensor.bytes.size()) == 0, theirs);
  };
  holds("bert.embeddings.token_type_embeddings.weight", "segment_embedding.weight", 0, {2, 8});
  holds("bert.encoder.layer.1.attention.self.query.weight",
        "encoder.layers.1.self_attn.in_proj_weight", 0, {8, 8});
  holds("bert.encoder.layer.1.attention.self.key.weight",
        "encoder.layers.1.self_attn.in_proj_weight", 64, {8, 8});
  holds("bert.encoder.layer.1.attention.self.value.bias", "encoder.layers.1.self_attn.in_proj_bias",
        16, {8});
  holds("bert.encoder.layer.0.attention.output.LayerNorm.weight", "encoder.layers.0.norm1.weight",
        0, {8});
  holds("bert.encoder.layer.0.output.dense.weight", "encoder.layers.0.linear2.weight", 0, {8, 12});
  holds("bert.pooler.dense.bias", "pooler.dense.bias", 0, {8});
  holds("classifier.weight", "classifier.weight", 0, {3, 8});
  check_equal(saved.checkpoint.size(), std::size_t{5 + 2 * 16 + 4});
  check_equal(Saved(bert_model(TaskKind::masked_text)).checkpoint.size(),
              std::size_t{5 + 2 * 16 + 5});
}

void test_spellings() {
  Saved bare(bert_model(TaskKind::classification));
  rename(bare.checkpoint, [](const std::string& name) { return replaced(name, "bert.", ""); });
  bare.loads_the_same();
  rename(bare.checkpoint, [](const std::string& name) {
    return name.starts_with("classifier.") ? name : "roberta." + name;
  });
  bare.loads_the_same();

  Saved old(bert_model(TaskKind::masked_text));
  rename(old.checkpoint, [](const std::string& name) {
    return replaced(replaced(name, "Norm.weight", "Norm.gamma"), "Norm.bias", "Norm.beta");
  });
  check(old.checkpoint.contains("cls.predictions.transform.LayerNorm.gamma"), "old names");
  old.loads_the_same();

  for (const std::string packed : {"in_proj_", "Wqkv."}) {
    Saved saved(bert_model(TaskKind::masked_text));
    for (const std::string layer : {"0", "1"}) {
      const std::string self = "bert.encoder.layer." + layer + ".attention.self.";
      for (const std::string end : {"weight", "bias"}) {
        RawTensor& all = saved.checkpoint[self + packed + end];
        for (const std::string part : {"query.", "key.", "value."}) {
          const RawTensor& one = saved.checkpoint.at(self + part + end);
          all.dtype = "F32", all.shape = one.shape, all.bytes += one.bytes;
          saved.checkpoint.erase(self + part + end);
        }
        all.shape[0] *= 3;
      }
    }
    saved.loads_the_same();
  }
}

// Numbers of 16 bits become floats exactly. Of the floats here, 1 ... 2^12 times 2^-12, the upper
// 16 bits are a bfloat16; a half is made from numbers that it can hold.
void test_short_numbers() {
  Saved saved(bert_model(TaskKind::classification));
  std::vector<float> expected = saved.values;
  for (float& value : expected) {
    value = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & 0xFFFF0000u);
  }
  const Checkpoint whole = saved.checkpoint;
  for (const std::string dtype : {"BF16", "F16"}) {
    for (auto& [name, tensor] : saved.checkpoint) {
      tensor.dtype = dtype, tensor.bytes.clear();
      const std::string& bytes = whole.at(name).bytes;
      for (std::size_t at = 0; at < bytes.size(); at += 4) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, bytes.data() + at, 4);
        bits >>= 16;  // 8 bits of exponent and 7 of fraction; a half has 5 and 10
        if (dtype == "F16") bits = ((bits >> 7) - 127 + 15) << 10 | (bits & 127) << 3;
        tensor.bytes += {static_cast<char>(bits & 255), static_cast<char>(bits >> 8)};
      }
    }
    saved.write();
    const auto other = new_engine(saved.engine->config(), 2);
    saved.load(*other);
    check(values_of(*other) == expected, dtype);
  }
}

void test_without_segments() {
  ModelConfig model = bert_model(TaskKind::masked_text);
  model.segments = 0, model.inner_size = 0;
  TemporaryFolder folder;
  const auto engine = new_engine(model);
  save_hugging_face(folder.path(), *engine);
  const HuggingFaceFolder saved(folder.path());
  check_equal(saved.config().segments, std::size_t{1});
  check_equal(saved.config().inner_size, std::size_t{32});
  const auto other = new_engine(saved.config(), 2);
  check_equal(saved.load(*other).size(), std::size_t{0});
  Batch batch;
  batch.tokens = {5, 6, 7};
  batch.ask(8, 4), batch.end_row();
  std::vector<float> scores(13), others(13);
  engine->score(batch, scores), other->score(batch, others);
  check(scores == others, "the same scores");
}

// ---- Parts of a checkpoint ----------------------------------------------------------------------

void test_other_heads() {
  Saved saved(bert_model(TaskKind::masked_text));
  saved.checkpoint["bert.embeddings.position_ids"] = {"I64", {1, 1}, std::string(8, '\0')};
  saved.checkpoint["cls.seq_relationship.weight"] = {"F32", {2, 8}, std::string(64, '\0')};
  saved.checkpoint["cls.seq_relationship.bias"] = {"F32", {2}, std::string(8, '\0')};
  saved.checkpoint["cls.predictions.decoder.weight"] =
      saved.checkpoint.at("bert.embeddings.word_embeddings.weight");
  saved.checkpoint["cls.predictions.decoder.bias"] = saved.checkpoint.at("cls.predictions.bias");
  saved.checkpoint["bert.pooler.dense.bias"] = {"F32", {8}, std::string(32, '\0')};
  saved.loads_the_same();

  ModelConfig model = HuggingFaceFolder(saved.folder.path()).config();
  model.task = TaskKind::classification, model.classes = 4;
  const auto engine = new_engine(model, 3);
  const std::vector<float> before = values_of(*engine);
  const std::vector<std::string> lacking = saved.load(*engine);
  check(lacking ==
            std::vector<std::string>{"pooler.dense.weight", "classifier.weight", "classifier.bias"},
        "what the file lacks");
  const std::vector<float> after = values_of(*engine);
  for (const TensorSpec& spec : engine->table()) {
    const bool is_kept = std::find(lacking.begin(), lacking.end(), spec.name) != lacking.end();
    const auto at = static_cast<std::ptrdiff_t>(spec.offset);
    const auto size = static_cast<std::ptrdiff_t>(spec.size);
    const bool is_same =
        std::equal(before.begin() + at, before.begin() + at + size, after.begin() + at);
    check(spec.init == Init::normal ? is_same == is_kept : true, spec.name);
  }
}

void test_fewer_rows() {
  const Saved saved(bert_model(TaskKind::masked_text));
  ModelConfig model = saved.engine->config();
  model.max_length = 4, model.num_items = 9;
  const auto engine = new_engine(model, 2);
  check_equal(saved.load(*engine).size(), std::size_t{0});
  const std::vector<float> values = values_of(*engine);
  for (const TensorSpec& ours : engine->table()) {
    const TensorSpec& theirs = saved.engine->table().at(ours.name);
    check(std::memcmp(values.data() + ours.offset, saved.values.data() + theirs.offset,
                      ours.size * sizeof(float)) == 0,
          ours.name);
  }
  check_equal(engine->table().at("position_embedding.weight").size, std::size_t{32});
  check_equal(engine->table().at("output.bias").size, std::size_t{9});
}

void test_other_models() {
  const Saved saved(bert_model(TaskKind::classification));
  const auto refuses = [&](auto change, std::initializer_list<std::string_view> parts,
                           Place where = {__builtin_FILE(), __builtin_LINE()}) {
    ModelConfig model = saved.engine->config();
    change(model);
    check_throws([&] { saved.load(*new_engine(model)); }, parts, where);
  };
  refuses([](auto& m) { m.num_heads = 4; },
          {"num_heads of the model is 4, num_attention_heads of config.json 2"});
  refuses([](auto& m) { m.norm_epsilon = 1e-5; }, {"norm_epsilon", "1e-05", "1e-12"});
  refuses([](auto& m) { m.segments = 0; }, {"segments of the model is 0"});
  refuses([](auto& m) { m.num_layers = 1; }, {"num_layers of the model is 1"});
  refuses([](auto& m) { m.num_items = 14; },
          {"num_items of the model is 14, vocab_size of config.json 13"});
  refuses([](auto& m) { m.max_length = 7; },
          {"max_length of the model is 7, max_position_embeddings of config.json 6"});
  refuses([](auto& m) { m.hidden_size = 10; }, {"hidden_size of the model is 10"});
  refuses([](auto& m) { m.inner_size = 0; }, {"inner_size of the model is 32"});
  refuses([](auto& m) { m.classes = 4; },
          {"model.safetensors", "\"classifier.weight\" has shape [3, 8], expected [4, 8]"});
  refuses([](auto& m) { m.architecture = Architecture::torch; }, {"architecture torch"});
  refuses([](auto& m) { m.task = TaskKind::items, m.classes = 0; }, {"task items"});
  ModelConfig items = bert_model(TaskKind::masked_text);
  items.task = TaskKind::items;
  const TemporaryFolder folder;
  check_throws([&] { save_hugging_face(folder.path(), *new_engine(items)); }, {"task items"});
  ModelConfig bigrams = saved.engine->config();
  bigrams.bigrams = 9;
  const auto engine = new_engine(bigrams);
  check(saved.load(*engine) == std::vector<std::string>{"bigram_embedding.weight"},
        "BERT has none");
  check_throws([&] { save_hugging_face(folder.path(), *engine); }, {"bigrams of the model is 9"});
}

void test_wrong_tensors() {
  const std::string self = "bert.encoder.layer.1.attention.self.";
  const auto refuses = [&](auto change, std::initializer_list<std::string_view> parts,
                           Place where = {__builtin_FILE(), __builtin_LINE()}) {
    Saved saved(bert_model(TaskKind::classification));
    change(saved.checkpoint);
    saved.refuses(parts, where);
  };
  refuses([&](auto& c) { c.erase("bert.encoder.layer.1.intermediate.dense.bias"); },
          {"model.safetensors: missing tensor \"bert.encoder.layer.1.intermediate.dense.bias\"",
           "shape [12]"});
  refuses([&](auto& c) { c.erase(self + "key.weight"); },
          {"missing tensor \"" + self + "key.weight\"", "[8, 8]"});
  refuses([&](auto& c) { c.erase("bert.embeddings.LayerNorm.weight"); },
          {"missing tensor \"bert.embeddings.LayerNorm.weight\""});
  refuses(
      [&](auto& c) {
        c.at(self + "value.weight").shape = {4, 16};
      },
      {"\"" + self + "value.weight\" has shape [4, 16], expected [8, 8]"});
  refuses(
      [&](auto& c) {
        c.at("bert.embeddings.position_embeddings.weight").shape = {8, 6};
      },
      {"position_embeddings.weight\" has shape [8, 6], expected [6, 8]"});
  refuses([&](auto& c) { c.at(self + "key.bias").dtype = "I32"; }, {"key.bias\" is I32"});
  refuses([&](auto& c) { c["bert.encoder.layer.2.output.dense.bias"] = c.at("classifier.bias"); },
          {"tensor \"bert.encoder.layer.2.output.dense.bias\" is not one of BERT"});
  refuses([&](auto& c) { c["qa_outputs.bias"] = c.at("classifier.bias"); },
          {"\"qa_outputs.bias\""});
  refuses([&](auto& c) { c["embeddings.LayerNorm.beta"] = c.at("bert.embeddings.LayerNorm.bias"); },
          {"\"bert.embeddings.LayerNorm.bias\" and \"embeddings.LayerNorm.beta\" are the same"});
  refuses(
      [&](auto& c) {
        RawTensor all = c.at(self + "key.bias");
        all.shape = {24}, all.bytes += all.bytes + all.bytes;
        c[self + "in_proj_bias"] = all;
      },
      {"is there packed and in parts"});
}

// ---- config.json --------------------------------------------------------------------------------

ModelConfig read_config(std::string_view text) {
  return config_from_hugging_face(Json::parse(text));
}

void test_configs() {
  const ModelConfig base = read_config("{}");
  check_equal(brief_json(base).text(),
              "{\"num_items\": 30522, \"hidden_size\": 768, \"num_layers\": 12, \"num_heads\": 12, "
              "\"max_length\": 512, \"dropout\": 0.1, \"attention_dropout\": 0.1, "
              "\"architecture\": \"paper\", \"task\": \"masked-text\", \"inner_size\": 3072, "
              "\"norm_epsilon\": 1e-12, \"segments\": 2}");
  const ModelConfig tiny = read_config(
      R"({"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 21128,
          "hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 6,
          "intermediate_size": 1200, "max_position_embeddings": 256, "type_vocab_size": 1,
          "layer_norm_eps": 1e-5, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0.3,
          "classifier_dropout": null, "directionality": "bidi", "position_embedding_type": null})");
  check_equal(brief_json(tiny).text(),
              "{\"num_items\": 21128, \"hidden_size\": 312, \"num_layers\": 4, \"num_heads\": 6, "
              "\"max_length\": 256, \"dropout\": 0, \"attention_dropout\": 0.3, "
              "\"architecture\": \"paper\", \"task\": \"masked-text\", \"inner_size\": 1200, "
              "\"segments\": 1}");
  const std::string classifier = R"({"architectures": ["BertForSequenceClassification"])";
  check_equal(read_config(classifier + "}").classes, std::size_t{2});
  check_equal(read_config(classifier + R"(, "num_labels": 5})").classes, std::size_t{5});
  const std::string labels = R"(, "id2label": {"2": "c", "0": "a", "1": "b"}})";
  const ModelConfig three = read_config(classifier + labels);
  check(three.task == TaskKind::classification && three.classes == 3, "three labels");
  check(labels_from_hugging_face(Json::parse(classifier + labels)) ==
            std::vector<std::string>{"a", "b", "c"},
        "in the order of their numbers");
}

void test_refused_configs() {
  const auto refuses = [](std::string_view text, std::initializer_list<std::string_view> parts,
                          Place where = {__builtin_FILE(), __builtin_LINE()}) {
    check_throws([&] { read_config(text); }, parts, where);
  };
  for (const char* activation : {"gelu_new", "relu", "silu", "gelu_pytorch_tanh"}) {
    refuses(join("{\"hidden_act\": \"", activation, "\"}"),
            {"\"hidden_act\"", activation, "expected \"gelu\"", "erf"});
  }
  refuses(R"({"position_embedding_type": "relative_key"})",
          {"\"position_embedding_type\" is \"relative_key\", expected \"absolute\""});
  refuses(R"({"model_type": "roberta"})",
          {"\"model_type\" is \"roberta\", expected \"bert\"", "RoBERTa", "positions"});
  refuses(R"({"model_type": "albert"})", {"\"albert\", expected \"bert\""});
  refuses(R"({"is_decoder": true})", {"\"is_decoder\" is true, expected false"});
  refuses(R"({"add_cross_attention": true})", {"\"add_cross_attention\""});
  refuses(R"({"tie_word_embeddings": false})", {"\"tie_word_embeddings\" is false"});
  refuses(R"({"problem_type": "regression"})", {"\"problem_type\" is \"regression\""});
  refuses(R"({"hidden_size": "768"})", {"hidden_size: expected a number, found \"768\""});
  refuses(R"({"hidden_size": 100})", {"num_heads is 12, which does not divide hidden_size 100"});
  refuses(R"({"num_hidden_layers": -1})", {"num_layers"});
  refuses(R"({"vocab_size": 0})", {"num_items is 0"});
  const std::string classifier = R"({"architectures": ["BertForSequenceClassification"], )";
  refuses(classifier + R"("id2label": {"0": "a"}})", {"classes is 1, expected at least 2"});
  refuses(classifier + R"("id2label": {"0": "a", "2": "b"}})",
          {"id2label", "\"2\" is none of 0 ... 1"});
  refuses(classifier + R"("id2label": {"0": "a", "00": "b"}})", {"id2label", "\"00\""});
  refuses(classifier + R"("id2label": {"0": "a", "b": "b"}})", {"id2label", "\"b\""});
  refuses(classifier + R"("num_labels": 1000000000000})", {"num_labels is 1000000000000"});
  refuses("[]", {"expected an object"});
}

// ---- Folders ------------------------------------------------------------------------------------

void test_folders() {
  const TemporaryFolder folder;
  const auto opens = [&] { HuggingFaceFolder opened(folder.path()); };
  check_throws(opens, {"config.json", "cannot open"});
  write_file(folder / "config.json", R"({"hidden_act": "relu"})");
  check_throws(opens, {"model.safetensors", "cannot open"});
  write_file(folder / "pytorch_model.bin", "");
  check_throws(opens, {"holds pytorch_model.bin, but no model.safetensors", "save_pretrained"});
  remove_path(folder / "pytorch_model.bin");
  write_file(folder / "model.safetensors.index.json", "{}");
  check_throws(opens, {"holds model.safetensors.index.json"});
  write_checkpoint(folder / "model.safetensors", {{"x", {"F32", {1}, std::string(4, '\0')}}});
  check_throws(opens, {"config.json: field \"hidden_act\" is \"relu\""});
}

const std::string vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n";

void test_saving() {
  const TemporaryFolder folder;
  const Path vocab = folder / "words.txt", to = folder / "new" / "model";
  write_file(vocab, vocabulary);
  const auto engine = distinct_engine(bert_model(TaskKind::classification));
  save_hugging_face(to, *engine, {"世界", "b", "c\""}, vocab);
  check_equal(read_file(to / "vocab.txt"), vocabulary);
  const Json json = Json::parse(read_file(to / "config.json"));
  check_equal(json.at("architectures").text(), "[\"BertForSequenceClassification\"]");
  check_equal(json.at("id2label").text(), "{\"0\": \"世界\", \"1\": \"b\", \"2\": \"c\\\"\"}");
  check_equal(json.at("label2id").text(), "{\"世界\": 0, \"b\": 1, \"c\\\"\": 2}");
  check_equal(json.at("model_type").text(), "\"bert\"");
  check_equal(json.at("intermediate_size").integer(), 12);
  check(HuggingFaceFolder(to).labels() == std::vector<std::string>{"世界", "b", "c\""}, "labels");

  // Whatever fails leaves all that was there.
  const auto other = new_engine(bert_model(TaskKind::classification), 2);
  const std::string config = read_file(to / "config.json");
  const std::string numbers = read_file(to / "model.safetensors");
  const auto refuses = [&](std::vector<std::string> labels,
                           std::initializer_list<std::string_view> parts,
                           Place where = {__builtin_FILE(), __builtin_LINE()}) {
    check_throws([&] { save_hugging_face(to, *other, labels, vocab); }, parts, where);
    check_equal(read_file(to / "config.json"), config, where);
    check(read_file(to / "model.safetensors") == numbers, "the old numbers", where);
    check_equal(names_in_folder(to).size(), std::size_t{4}, where);  // with .lock
  };
  refuses({"a", "b"}, {"2 labels, the model has 3"});
  refuses({"a", "b", "a"}, {"\"a\""});
  write_file(vocab, vocabulary + "d\ne\nf\ng\nh\ni\n");
  refuses({"a", "b", "c"}, {"words.txt: 14 tokens, the model has 13"});
  write_file(vocab, "a\n");
  refuses({"a", "b", "c"}, {"words.txt", "[PAD]"});
  remove_path(vocab);
  refuses({"a", "b", "c"}, {"words.txt", "cannot open"});
  std::string edited = "\xEF\xBB\xBF" + vocabulary;  // as some editors save it: others get it clean
  edited.replace(edited.find('\n'), 1, " \r\n");
  write_file(vocab, edited);
  save_hugging_face(to, *other, {"a", "b", "c"}, vocab);
  check_equal(read_file(to / "vocab.txt"), vocabulary);

  // A writer that was killed in the middle: whoever reads finishes its work.
  write_file(to / ".config.json.tmp.1.0", replaced(config, "\"b\"", "\"B\""));
  write_file(to / ".replacing",
             R"({"replace": [[".config.json.tmp.1.0", "config.json"]], "remove": []})");
  check_equal(HuggingFaceFolder(to).labels()[1], "B");

  save_hugging_face(to, *other);
  check(read_file(to / "model.safetensors") != numbers, "new numbers");
  check_equal(read_file(to / "vocab.txt"), vocabulary);
}

template <template <class> class Head>
void test_task(TaskKind task) {
  const auto name = [&](const char* real) {
    return join("as Transformers computes: ", enum_name(task), ", ", real);
  };
  test(name("double"), [&] { test_against_transformers<double, Head>(task, 1e-7); });
  test(name("float"), [&] { test_against_transformers<float, Head>(task, 1e-5); });
}

}  // namespace

int main() {
  test_task<ClassificationHead>(TaskKind::classification);
  test_task<ItemHead>(TaskKind::masked_text);
  test("there and back", test_round_trip);
  test("names", test_names);
  test("spellings of names", test_spellings);
  test("numbers of 16 bits", test_short_numbers);
  test("no segments", test_without_segments);
  test("heads of other tasks", test_other_heads);
  test("fewer positions and tokens", test_fewer_rows);
  test("models that do not fit", test_other_models);
  test("wrong tensors", test_wrong_tensors);
  test("configurations", test_configs);
  test("configurations that are refused", test_refused_configs);
  test("folders", test_folders);
  test("saving", test_saving);
  return finish();
}
