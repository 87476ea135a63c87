// Chapters 7 and 8: configurations that survive JSON, fields refused by name and value, and the
// table of tensors.

#include "bert4rec.hpp"
#include "check.hpp"

using namespace bert4rec;

namespace {

ModelConfig default_model() {
  ModelConfig model;
  model.num_items = 3000;
  return model;
}

template <class Config>
Config valid_config() {
  if constexpr (std::is_same_v<Config, ModelConfig>)
    return default_model();
  else
    return Config();
}

// The same object with one member given another value, or without it where there is none.
Json with(const Json& json, std::string_view name, std::optional<Json> value) {
  Json out = Json::Object{};
  for (const auto& [key, old] : json.object()) {
    if (key != name)
      out.set(key, old);
    else if (value)
      out.set(key, *value);
  }
  return out;
}

template <class Config>
void check_round_trip(const Config& config) {
  const std::string text = to_json(config).text(2);
  const Config back = config_from_json<Config>(Json::parse(text));
  check_equal(to_json(back).text(2), text);
}

void check_model_round_trip() {
  ModelConfig model;
  model.num_items = 11, model.hidden_size = 12, model.num_layers = 3, model.num_heads = 6;
  model.max_length = 7, model.dropout = 0.25, model.attention_dropout = 1.0 / 3;
  model.architecture = Architecture::paper;
  check_equal(brief_json(model).text(),
              "{\"num_items\": 11, \"hidden_size\": 12, \"num_layers\": 3, \"num_heads\": 6, "
              "\"max_length\": 7, \"dropout\": 0.25, \"attention_dropout\": 0.3333333333333333, "
              "\"architecture\": \"paper\"}");
  check_round_trip(model);
  const auto back = config_from_json<ModelConfig>(to_json(model));
  check_equal(back.num_heads, std::size_t{6});
  check_equal(back.attention_dropout, 1.0 / 3);
  check(back.architecture == Architecture::paper, "architecture");
}

void check_train_round_trip() {
  TrainConfig train;
  train.epochs = 1, train.batch_size = 2, train.learning_rate = 0.1, train.weight_decay = 0;
  train.adam_beta1 = 0.8, train.adam_beta2 = 0.7, train.adam_epsilon = 1e-6, train.clip_norm = 5;
  train.schedule = Schedule::cosine, train.warmup_steps = 3, train.mask_probability = 0.2;
  train.mask_last = 0.3, train.random_share = 0.1, train.keep_share = 0.4, train.static_masks = 6;
  train.window_stride = 8, train.reversed_share = 0.6, train.validation_limit = 7;
  train.best_by = Metric::top10, train.patience = 12;
  train.split = Split::last, train.validation_ratio = 0.05, train.save_every = 4;
  train.seed = std::numeric_limits<std::int64_t>::max(), train.threads = 9;
  check_equal(brief_json(train).text(),
              "{\"epochs\": 1, \"batch_size\": 2, \"learning_rate\": 0.1, \"weight_decay\": 0, "
              "\"adam_beta1\": 0.8, \"adam_beta2\": 0.7, \"adam_epsilon\": 1e-06, "
              "\"clip_norm\": 5, \"schedule\": \"cosine\", \"warmup_steps\": 3, "
              "\"mask_probability\": 0.2, \"mask_last\": 0.3, \"random_share\": 0.1, "
              "\"keep_share\": 0.4, \"static_masks\": 6, \"window_stride\": 8, "
              "\"reversed_share\": 0.6, \"split\": \"last\", \"validation_ratio\": 0.05, "
              "\"folds\": 0, \"fold\": 1, \"validation_limit\": 7, \"best_by\": \"top10\", "
              "\"patience\": 12, "
              "\"seed\": 9223372036854775807, \"save_every\": 4, \"threads\": 9, \"kernels\": "
              "\"automatic\"}");
  check_round_trip(train);
  check_round_trip(TrainConfig());
  // Of later options model files name those that are not at their default.
  const std::string before = brief_json(train).text();
  train.loss = Loss::gbce, train.gbce_t = 0.5;
  check_equal(brief_json(train).text(),
              before.substr(0, before.size() - 1) + ", \"loss\": \"gbce\", \"gbce_t\": 0.5}");
  check_round_trip(train);
  check_equal(config_from_json<TrainConfig>(to_json(train)).seed, train.seed);
  train.schedule = Schedule::linear;
  check_round_trip(train);
}

// The defaults are part of the interface: other programs compute the same with them.
void check_defaults() {
  check_equal(brief_json(ModelConfig()).text(),
              "{\"num_items\": 0, \"hidden_size\": 256, \"num_layers\": 2, \"num_heads\": 4, "
              "\"max_length\": 200, \"dropout\": 0.1, \"attention_dropout\": 0.1, "
              "\"architecture\": \"torch\"}");
  check_equal(brief_json(TrainConfig()).text(),
              "{\"epochs\": 200, \"batch_size\": 64, \"learning_rate\": 0.001, "
              "\"weight_decay\": 0.01, \"adam_beta1\": 0.9, \"adam_beta2\": 0.999, "
              "\"adam_epsilon\": 1e-08, \"clip_norm\": 0, \"schedule\": \"constant\", "
              "\"warmup_steps\": 0, \"mask_probability\": 0.15, \"mask_last\": 0, "
              "\"random_share\": 0, \"keep_share\": 0, \"static_masks\": 0, "
              "\"window_stride\": 0, \"reversed_share\": 0, \"split\": \"users\", "
              "\"validation_ratio\": 0.1, \"folds\": 0, \"fold\": 1, \"validation_limit\": 0, "
              "\"best_by\": \"loss\", \"patience\": 0, "
              "\"seed\": 42, \"save_every\": 10, \"threads\": 0, \"kernels\": \"automatic\"}");
}

// ---- Ranges -------------------------------------------------------------------------------------

// Values that each lie just outside what a field allows.
template <class Value>
std::vector<Value> just_outside(Value least, Value most) {
  if constexpr (std::is_floating_point_v<Value>) {
    return {std::nextafter(least, -INFINITY), std::nextafter(most, INFINITY), -INFINITY, INFINITY,
            std::nan("")};
  } else if (least == 0) {
    return {most + 1, std::numeric_limits<Value>::max()};
  } else {
    return {least - 1, most + 1, std::numeric_limits<Value>::max()};
  }
}

template <class Config>
void check_every_range() {
  Config config = valid_config<Config>();
  validate(config);
  std::size_t numbers = 0;
  Config::fields(config, [&](std::string_view name, auto& field, auto low, auto high, auto) {
    using Value = std::remove_reference_t<decltype(field)>;
    if constexpr (std::is_arithmetic_v<Value>) {
      ++numbers;
      const Value good = field;
      const auto least = static_cast<Value>(low), most = static_cast<Value>(high);
      for (const Value value : just_outside(least, most)) {
        field = value;
        check_throws([&] { validate(config); }, {join(name, " is ", value, ", expected ", low)});
      }
      for (const Value limit : {least, most}) {
        field = limit;
        validate_ranges(config);
      }
      field = good;
    }
  });
  check(numbers > 0, "fields were tried");
  validate(config);
}

// The ranges themselves, from outside: a file with this value is refused by name and value.
template <class Config>
void check_refused(std::string_view name, std::string_view value) {
  const Json json = with(to_json(valid_config<Config>()), name, Json::parse(value));
  check_throws([&] { config_from_json<Config>(json); }, {name, value});
}

template <class Config>
void check_accepted(std::string_view name, std::string_view value) {
  const Json json = with(to_json(valid_config<Config>()), name, Json::parse(value));
  check_equal(to_json(config_from_json<Config>(json)).at(name).text(), value);
}

void check_model_values() {
  for (const std::string_view size : {"num_items", "hidden_size", "num_layers", "num_heads"}) {
    check_refused<ModelConfig>(size, "0");
    check_refused<ModelConfig>(size, "100000001");
  }
  check_refused<ModelConfig>("max_length", "1");
  check_refused<ModelConfig>("max_length", "65537");
  for (const std::string_view share : {"dropout", "attention_dropout"}) {
    check_refused<ModelConfig>(share, "1");
    check_refused<ModelConfig>(share, "-0.1");
    check_accepted<ModelConfig>(share, "0");
    check_accepted<ModelConfig>(share, "0.5");
  }
  check_accepted<ModelConfig>("num_items", "1");
  check_accepted<ModelConfig>("max_length", "2");
}

void check_train_values() {
  for (const std::string_view count : {"epochs", "batch_size", "save_every"}) {
    check_refused<TrainConfig>(count, "0");
    check_accepted<TrainConfig>(count, "1");
  }
  for (const std::string_view rate : {"learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
                                      "clip_norm", "mask_probability", "validation_ratio"}) {
    check_refused<TrainConfig>(rate, "-0.5");
    check_refused<TrainConfig>(rate, "2e+09");
  }
  for (const std::string_view share : {"adam_beta1", "adam_beta2", "validation_ratio"}) {
    check_refused<TrainConfig>(share, "1");
  }
  check_refused<TrainConfig>("mask_probability", "1.5");
  check_refused<TrainConfig>("adam_epsilon", "0");
  check_refused<TrainConfig>("threads", "1025");
  check_accepted<TrainConfig>("mask_probability", "1");
  check_accepted<TrainConfig>("seed", "0");
  check_accepted<TrainConfig>("seed", "9223372036854775807");
}

// Values that no name has.
void check_no_choice() {
  ModelConfig model = default_model();
  model.architecture = static_cast<Architecture>(3);
  check_throws([&] { validate(model); }, {"architecture is number 3, expected torch|paper|tied"});
  TrainConfig train;
  train.loss = static_cast<Loss>(-1);
  check_throws([&] { validate(train); }, {"loss is number -1"});
}

// Fields that are good by themselves, but not together.
void check_train_pairs() {
  TrainConfig train;
  train.random_share = 0.6, train.keep_share = 0.5;
  check_throws([&] { validate(train); }, {"random_share 0.6", "keep_share 0.5", "more than 1"});
  train = TrainConfig();
  train.folds = 1;
  check_throws([&] { validate(train); }, {"folds is 1"});
  train.folds = 4, train.fold = 5;
  check_throws([&] { validate(train); }, {"fold is 5 of 4"});
  train.fold = 4, validate(train);
  train.split = Split::last;
  check_throws([&] { validate(train); }, {"folds", "split users"});
}

void check_negative_counts() {
  for (const std::string_view count : {"epochs", "batch_size", "warmup_steps", "seed", "threads"}) {
    check_refused<TrainConfig>(count, "-1");
    check_refused<TrainConfig>(count, "-9223372036854775808");
  }
}

void check_heads() {
  ModelConfig model = default_model();
  for (const std::size_t heads : {1u, 2u, 4u, 8u, 64u, 256u}) {
    model.num_heads = heads;
    validate(model);
    check_equal(model.encoder().head_size() * heads, model.hidden_size);
  }
  for (const std::size_t heads : {3u, 5u, 255u, 257u, 512u}) {
    model.num_heads = heads;
    check_throws([&] { validate(model); },
                 {join("num_heads is ", heads, ", which does not divide hidden_size 256")});
    check_throws([&] { config_from_json<ModelConfig>(to_json(model)); }, {"num_heads is "});
    check_throws([&] { bert4rec_tensors(model); }, {"num_heads is "});
  }
}

// ---- Fields that are missing, unknown or of another type ----------------------------------------

template <class Config>
void check_missing_fields() {
  const Json json = to_json(valid_config<Config>());
  for (const auto& member : json.object()) {  // has its default; num_items has none that is valid
    const Json without = with(json, member.first, std::nullopt);
    if (member.first == "num_items") {
      check_throws([&] { config_from_json<Config>(without); }, {"num_items is 0"});
    } else {
      const Json expected = with(json, member.first, to_json(Config()).at(member.first));
      check_equal(to_json(config_from_json<Config>(without)).text(), expected.text());
    }
  }
  for (const std::string_view text : {"[]", "null", "3", "\"x\""}) {
    check_throws([&] { config_from_json<Config>(Json::parse(text)); }, {"expected an object"});
  }
}

template <class Config>
void check_wrong_types() {
  const Json json = to_json(valid_config<Config>());
  Config config = valid_config<Config>();
  Config::fields(config, [&](std::string_view name, auto& field, auto, auto, auto) {
    using Value = std::remove_reference_t<decltype(field)>;
    std::vector<std::string_view> wrong = {"null", "true", "[]", "{}", "[1]"};
    if (std::is_enum_v<Value>)
      wrong.insert(wrong.end(), {"0", "\"\"", "\"x\"", "\"TORCH\""});
    else
      wrong.insert(wrong.end(), {"\"1\"", "\"\""});
    if (std::is_integral_v<Value>) wrong.insert(wrong.end(), {"1.5", "9223372036854775808"});
    for (const std::string_view text : wrong) {
      check_throws([&] { config_from_json<Config>(with(json, name, Json::parse(text))); },
                   {join("field \"", name, "\": "), "\""});
    }
  });
}

void check_enum_choices() {
  const Json json = with(to_json(default_model()), "architecture", "keras");
  check_throws([&] { config_from_json<ModelConfig>(json); },
               {"architecture", "\"keras\" is none of torch|paper"});
  check(enum_value<Schedule>("linear", "schedule") == Schedule::linear, "linear");
  check_equal(enum_name(Split::last), "last");
  check_equal(enum_choices<Schedule>(), "constant|linear|cosine");
}

template <class Config>
void check_unknown_fields() {
  Json json = to_json(valid_config<Config>());
  json.set("learning_rat", 1);
  check_throws([&] { config_from_json<Config>(json); }, {"unknown field"});
  check_throws([&] { config_from_json<Config>(json); }, {"\"learning_rat\""});
}

// ---- Tensors ------------------------------------------------------------------------------------

void check_parameter_counts() {
  ModelConfig model = default_model();
  check_equal(bert4rec_tensors(model).size(), std::size_t{3'171'771});
  model.architecture = Architecture::paper;
  check_equal(bert4rec_tensors(model).size(), std::size_t{2'469'307});
  check_throws([] { bert4rec_tensors(ModelConfig()); }, {"num_items is 0"});
}

std::string described(const TensorTable& table) {
  std::string out;
  for (const TensorSpec& spec : table) {
    const char init = spec.init == Init::normal ? 'n' : spec.init == Init::ones ? '1' : '0';
    out += join(spec.name, Json(spec.shape).text(), init, spec.decay ? " decays\n" : "\n");
  }
  return out;
}

constexpr std::string_view encoder_tensors =
    "item_embedding.weight[8, 4]n decays\n"
    "position_embedding.weight[7, 4]n decays\n"
    "embedding_norm.weight[4]1\n"
    "embedding_norm.bias[4]0\n"
    "encoder.layers.0.self_attn.in_proj_weight[12, 4]n decays\n"
    "encoder.layers.0.self_attn.in_proj_bias[12]0\n"
    "encoder.layers.0.self_attn.out_proj.weight[4, 4]n decays\n"
    "encoder.layers.0.self_attn.out_proj.bias[4]0\n"
    "encoder.layers.0.linear1.weight[16, 4]n decays\n"
    "encoder.layers.0.linear1.bias[16]0\n"
    "encoder.layers.0.linear2.weight[4, 16]n decays\n"
    "encoder.layers.0.linear2.bias[4]0\n"
    "encoder.layers.0.norm1.weight[4]1\n"
    "encoder.layers.0.norm1.bias[4]0\n"
    "encoder.layers.0.norm2.weight[4]1\n"
    "encoder.layers.0.norm2.bias[4]0\n";

ModelConfig tiny_model(Architecture architecture) {
  ModelConfig model;
  model.num_items = 5, model.hidden_size = 4, model.num_layers = 1, model.num_heads = 2;
  model.max_length = 7, model.architecture = architecture;
  return model;
}

void check_names() {
  check_equal(described(bert4rec_tensors(tiny_model(Architecture::torch))),
              join(encoder_tensors, "output.weight[8, 4]n decays\noutput.bias[8]0\n"));
  check_equal(described(bert4rec_tensors(tiny_model(Architecture::paper))),
              join(encoder_tensors,
                   "head.dense.weight[4, 4]n decays\nhead.dense.bias[4]0\n"
                   "head.norm.weight[4]1\nhead.norm.bias[4]0\noutput.bias[8]0\n"));
  check_equal(described(bert4rec_tensors(tiny_model(Architecture::tied))),
              join(encoder_tensors, "output.bias[8]0\n"));
}

void check_places() {
  ModelConfig model = default_model();
  model.num_layers = 12;
  for (const auto architecture : {Architecture::torch, Architecture::paper, Architecture::tied}) {
    model.architecture = architecture;
    const TensorTable table = bert4rec_tensors(model);
    std::size_t next = 0;
    for (const TensorSpec& spec : table) {
      check_equal(spec.offset, next);
      check_equal(spec.size, checked_product(spec.shape, spec.name));
      check(&table.at(spec.name) == &spec, spec.name + " has a name of its own");
      const bool plain = spec.name.ends_with("bias") || spec.name.find("norm") != spec.name.npos;
      check_equal(spec.decay, !plain);
      next += spec.size;
    }
    check_equal(table.size(), next);
    check(table.at("encoder.layers.11.linear2.weight").size == 4 * 256 * 256, "layer 11");
    check_throws([&] { table.at("encoder.layers.12.linear2.weight"); }, {"encoder.layers.12"});
  }
}

void check_overflow() {
  const std::vector<std::size_t> wraps = {std::size_t{1} << 32, std::size_t{1} << 32};
  check_throws([&] { TensorTable().add("huge", wraps, Init::zeros); }, {"huge", "overflows"});
  check_throws([&] { checked_product(wraps, "what"); }, {"what", "overflows"});
  const std::vector<std::size_t> fits = {std::size_t{1} << 32, (std::size_t{1} << 32) - 1};
  check_equal(checked_product(fits, ""), std::size_t{0xFFFFFFFF00000000});
  check_equal(checked_product({}, ""), std::size_t{1});
}

void check_initial_tensor(const TensorSpec& spec, std::span<const float> values) {
  if (spec.init != Init::normal) {
    const float expected = spec.init == Init::ones ? 1 : 0;
    check_equal(std::count(values.begin(), values.end(), expected), std::ssize(values));
    return;
  }
  double squares = 0, largest = 0;
  for (const double value : values) {
    squares += value * value;
    largest = std::max(largest, std::abs(value));
  }
  const double deviation = std::sqrt(squares / static_cast<double>(values.size()));
  check(largest <= 0.04 + 1e-9 && largest > 0.039, spec.name + " is cut at two deviations");
  check(std::abs(deviation / (0.02 * std::sqrt(0.773741)) - 1) < 0.02, spec.name + ": deviation");
}

void check_initial_parameters() {
  ThreadPool pool(2);
  const TensorTable table = bert4rec_tensors(default_model());
  const std::vector<float> values = initial_parameters(table, 0.02, 42, pool);
  check_equal(values.size(), table.size());
  for (const TensorSpec& spec : table) {
    check_initial_tensor(spec, std::span(values).subspan(spec.offset, spec.size));
  }
  const TensorTable tiny = bert4rec_tensors(tiny_model(Architecture::torch));
  const std::vector<float> few = initial_parameters(tiny, 0.02, 42, pool);
  check(few == initial_parameters(tiny, 0.02, 42, pool), "same seed, same numbers");
  check(few != initial_parameters(tiny, 0.02, 43, pool), "other seed, other numbers");
  check(std::equal(few.begin(), few.begin() + 32, values.begin()), "a function of the place");
  const std::span<const float> first(few.data(), 28), second(few.data() + 32, 28);
  check(!std::equal(first.begin(), first.end(), second.begin()), "tensors differ");
}

}  // namespace

int main() {
  test("ModelConfig survives JSON", check_model_round_trip);
  test("TrainConfig survives JSON", check_train_round_trip);
  test("defaults", check_defaults);
  test("every range of ModelConfig", check_every_range<ModelConfig>);
  test("every range of TrainConfig", check_every_range<TrainConfig>);
  test("values of ModelConfig", check_model_values);
  test("values of TrainConfig", check_train_values);
  test("values of TrainConfig that go together", check_train_pairs);
  test("values that are no choice", check_no_choice);
  test("negative counts", check_negative_counts);
  test("heads", check_heads);
  test("missing fields of ModelConfig", check_missing_fields<ModelConfig>);
  test("missing fields of TrainConfig", check_missing_fields<TrainConfig>);
  test("wrong types in ModelConfig", check_wrong_types<ModelConfig>);
  test("wrong types in TrainConfig", check_wrong_types<TrainConfig>);
  test("choices", check_enum_choices);
  test("unknown fields of ModelConfig", check_unknown_fields<ModelConfig>);
  test("unknown fields of TrainConfig", check_unknown_fields<TrainConfig>);
  test("parameter counts", check_parameter_counts);
  test("names, shapes, decay", check_names);
  test("places", check_places);
  test("sizes that overflow", check_overflow);
  test("initial parameters", check_initial_parameters);
  return finish();
}
