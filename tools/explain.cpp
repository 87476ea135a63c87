// Writes one HTML page that follows a user of the data through a trained model, forward to the loss
// and backward to the gradients, with the numbers of this library; open it in a browser.

#include "common/cli.hpp"
#include "common/dice.hpp"
#include "explain/checks.hpp"
#include "explain_page.hpp"  // from explain/page/, by CMakeLists.txt

namespace {

using namespace bert4rec;

struct Options {
  Path model = "output/models", data = "data/demo", output = "output/explain.html";
  Path header = explain::header;
  std::string name = "best_model", user;
  std::size_t items = 24, place = 0, edits = 100, threads = 0;
  std::string command;
};

// The header that this program was made of: where both were installed, or in its source folder.
Path find_header(const char* program) {
  std::error_code problem;
  Path self = std::filesystem::read_symlink("/proc/self/exe", problem);  // on Linux
  if (problem) self = path_from(program);
  const Path installed = self.parent_path().parent_path() / "include" / "bert4rec.hpp";
  return path_exists(installed) ? installed : Path(explain::header);
}

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line(
      "explain", "one HTML page about one user and one model: every number of a step, both ways",
      "explain --model output/demo/models --user demo_0007 --output explain.html");
  line.option("model", options.model, "models folder that train_model wrote");
  line.option("name", options.name, "which model in it: best_model or final_model");
  line.option("data", options.data, "folder with histories.jsonl");
  line.option("user", options.user, "a user of the data; if not given, the first");
  line.option("items", options.items, "how many of the user's newest items the page shows");
  line.option("place", options.place,
              "which of them is hidden at first, from 1; 0: the last, or with the Cloze objective "
              "the middle one");
  line.option("edits", options.edits,
              "questions answered by the library too, for the page to compare itself with");
  line.option("output", options.output, "the page");
  line.option("header", options.header, "bert4rec.hpp, of which the page quotes lines");
  line.option("threads", options.threads, "threads; 0: one a core");
  line.parse(argc, argv);
  if (!line.given("header")) options.header = find_header(argv[0]);
  options.command = cli::command_text(argc, argv);
  if (options.items < 2 || options.items > 64) {
    throw cli::UsageError(join("--items ", options.items, ": expected 2 ... 64"));
  }
  return options;
}

// ---- Questions ---------------------------------------------------------------------------------

// Which item of the user's is hidden, and what else is different from the page's first question.
struct Question {
  std::size_t place = 0;                                      // the hidden item
  std::vector<std::size_t> dropped = {};                      // items left out
  std::vector<std::pair<std::size_t, std::size_t>> off = {};  // heads without a say: layer, head
  double temperature = 1;                                     // scores are divided by it
};

// What the model is shown: with the Cloze objective all other items and a [MASK] at the place, with
// the causal one the items before it. `shown` receives them.
Batch batch_of(const Question& question, ItemSpan history, const ModelConfig& config,
               std::vector<std::int32_t>& shown) {
  const bool causal = config.objective == Objective::causal;
  Batch batch;
  shown.clear();
  for (std::size_t i = 0; i < (causal ? question.place : history.size()); ++i) {
    const auto& dropped = question.dropped;
    if (std::find(dropped.begin(), dropped.end(), i) != dropped.end()) continue;
    if (i != question.place) shown.push_back(history[i]);
    if (causal) continue;
    if (i == question.place)
      batch.ask(history[i]);
    else
      batch.tokens.push_back(token_of(history[i]));
  }
  if (causal)
    add_next_item_row(batch, shown, config, history[question.place]);
  else
    batch.end_row();
  return batch;
}

// ---- Answers -----------------------------------------------------------------------------------

struct Answer {
  std::vector<Recommendation> top;  // ten, none of them shown
  double loss;                      // -log of the probability of the hidden item
  std::size_t rank;                 // of the hidden item among those not shown
};

Answer answer_of(Engine& engine, const Question& question, ItemSpan history) {
  std::vector<std::int32_t> shown;
  const Batch batch = batch_of(question, history, engine.config(), shown);
  std::vector<float> scores(engine.config().num_items);
  engine.score(batch, scores);
  for (float& score : scores) score /= static_cast<float>(question.temperature);
  const auto target = static_cast<std::size_t>(history[question.place]);
  Answer answer;
  answer.top = top_unseen(scores, shown, 10);
  const auto& kernels = detail::kernels<float>();
  std::vector<float> unseen = scores;
  for (const std::int32_t item : shown) {
    unseen[static_cast<std::size_t>(item)] = -std::numeric_limits<float>::infinity();
  }
  const auto counts = kernels.count_above(unseen.data(), scores[target], unseen.size());
  answer.rank = rank_of(counts.better, counts.ties - 1);
  answer.loss = softmax_loss(kernels, scores.data(), scores.size(), target);
  return answer;
}

Json json_of(const Answer& answer) {
  Json::Array top;
  for (const Recommendation& pick : answer.top) {
    top.push_back(Json::Array{Json(pick.item), Json(pick.score)});
  }
  Json json;
  json.set("loss", answer.loss);
  json.set("rank", answer.rank);
  json.set("top", std::move(top));
  return json;
}

Json json_of(const Question& question) {
  Json::Array off;
  for (const auto& [layer, head] : question.off)
    off.push_back(Json::Array{Json(layer), Json(head)});
  Json json;
  json.set("place", question.place);
  json.set("dropped", question.dropped);
  json.set("off", std::move(off));
  json.set("temperature", question.temperature);
  return json;
}

// A head that is off gives zeros: those columns of out_proj that read it become zeros.
void turn_off(Engine& engine, const Question& question, std::vector<float> parameters) {
  const ModelConfig& config = engine.config();
  const std::size_t H = config.hidden_size, D = H / config.num_heads;
  for (const auto& [layer, head] : question.off) {
    const TensorSpec& weight =
        engine.table().at(join(layer_prefix(layer), "self_attn.out_proj.weight"));
    for (std::size_t row = 0; row < H; ++row) {
      std::fill_n(parameters.data() + weight.offset + row * H + head * D, D, 0.0f);
    }
  }
  engine.write(State::parameters, parameters);
}

// The length of each tensor's gradient for a question without heads off, at temperature 1.
Json gradient_lengths(const Engine& engine, const std::vector<float>& parameters,
                      const Question& question, ItemSpan history) {
  std::vector<std::int32_t> shown;
  const explain::Step step(engine.config(), engine.table(), parameters,
                           batch_of(question, history, engine.config(), shown));
  Json lengths;
  for (const TensorSpec& spec : engine.table()) {
    lengths.set(spec.name,
                explain::length(std::span(step.gradients()).subspan(spec.offset, spec.size)));
  }
  return lengths;
}

// Questions drawn at random with the library's answers, and for the first few its gradients: what
// the page's own arithmetic is held against.
Json random_edits(Engine& engine, const Options& options, ItemSpan history) {
  const ModelConfig& config = engine.config();
  tools::Dice dice(stream_key(42, Stream::weights));
  std::vector<float> parameters(engine.table().size());
  engine.read(State::parameters, parameters);
  constexpr std::size_t with_gradients = 5;
  Json::Array edits;
  for (std::size_t i = 0; i < options.edits; ++i) {
    Question question{.place = dice.below(history.size())};
    for (std::size_t item = 0; item < history.size(); ++item) {
      if (item != question.place && dice.below(5) == 0) question.dropped.push_back(item);
    }
    for (std::size_t layer = 0; layer < config.num_layers && i >= with_gradients; ++layer) {
      for (std::size_t head = 0; head < config.num_heads; ++head) {
        if (dice.below(6) == 0) question.off.emplace_back(layer, head);
      }
    }
    const double temperature = 0.5 + 0.25 * static_cast<double>(dice.below(7));
    if (i >= with_gradients) question.temperature = temperature;
    turn_off(engine, question, parameters);
    Json edit = json_of(question);
    if (i < with_gradients)
      edit.set("lengths", gradient_lengths(engine, parameters, question, history));
    edit.set("answer", json_of(answer_of(engine, question, history)));
    engine.write(State::parameters, parameters);
    edits.push_back(std::move(edit));
  }
  return edits;
}

// ---- What training did -------------------------------------------------------------------------

// Answers of the untrained model, of up to three checkpoints, and of the model.
Json stages(Engine& engine, const Options& options, const Question& question, ItemSpan history) {
  const Path run = options.model.has_filename() ? options.model.parent_path()
                                                : options.model.parent_path().parent_path();
  Json::Array stages;
  const auto add = [&](const std::string& name, const Answer& answer) {
    Json stage = json_of(answer);
    stage.set("name", name);
    stages.push_back(std::move(stage));
  };
  std::vector<float> trained(engine.table().size());
  engine.read(State::parameters, trained);
  std::vector<std::pair<std::uint64_t, Path>> checkpoints;
  for (const std::string& name : detail::checkpoint_files(run)) {
    unsigned long long epoch = 0;
    if (std::sscanf(name.c_str(), "checkpoints/checkpoint_epoch_%llu", &epoch) != 1) continue;
    checkpoints.emplace_back(epoch, run / path_from(name));
  }
  std::sort(checkpoints.begin(), checkpoints.end());
  std::uint64_t seed = TrainConfig().seed;
  if (!checkpoints.empty()) {
    seed = stored_config<TrainConfig>(Safetensors(checkpoints[0].second), "train_config").seed;
  }
  ThreadPool pool(1);
  engine.write(State::parameters,
               initial_parameters(engine.table(), engine.config().initializer_range, seed, pool));
  add(join("untrained (seed ", seed, ")"), answer_of(engine, question, history));
  std::vector<std::size_t> chosen;  // the first, one in the middle, the last
  if (!checkpoints.empty()) chosen = {0, checkpoints.size() / 2, checkpoints.size() - 1};
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  for (const std::size_t i : chosen) {
    load_engine(Safetensors(checkpoints[i].second), engine, false);
    add(join("epoch ", checkpoints[i].first), answer_of(engine, question, history));
  }
  engine.write(State::parameters, trained);
  add(options.name, answer_of(engine, question, history));
  return stages;
}

// ---- One step, recorded ------------------------------------------------------------------------

std::string base64(std::span<const float> numbers) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto* bytes = reinterpret_cast<const unsigned char*>(numbers.data());
  const std::size_t size = numbers.size_bytes();
  std::string text;
  for (std::size_t i = 0; i < size; i += 3) {
    std::uint32_t bits = 0;
    for (std::size_t j = 0; j < 3; ++j) bits = bits << 8 | (i + j < size ? bytes[i + j] : 0u);
    for (std::size_t j = 0; j < 4; ++j) {
      text += i + j > size ? '=' : digits[bits >> (18 - 6 * j) & 63];
    }
  }
  return text;
}

std::string base64(const std::vector<double>& numbers) {
  return base64(std::vector<float>(numbers.begin(), numbers.end()));
}

Json record_json(const explain::Step& step) {
  Json record;
  for (const auto& [name, matrix] : step.recording().matrices) {
    Json entry;
    entry.set("shape", std::vector<std::size_t>{matrix.rows, matrix.cols});
    entry.set("value", base64(matrix.value));
    entry.set("gradient", matrix.gradient.empty() ? Json() : Json(base64(matrix.gradient)));
    record.set(name, std::move(entry));
  }
  return record;
}

// ---- Lines of the header -----------------------------------------------------------------------

// The text of a function at the margin, with the comment above it, and the number of its line.
Json quoted_code(const Path& path, std::string_view header, std::string_view function) {
  std::vector<std::string_view> lines;
  for (std::size_t begin = 0; begin < header.size();) {
    const std::size_t end = std::min(header.find('\n', begin), header.size());
    lines.push_back(header.substr(begin, end - begin));
    begin = end + 1;
  }
  const std::string call = join(" ", function, "(");
  const auto is_above = [](std::string_view line) {
    return line.starts_with("template") || (line.starts_with("//") && !line.starts_with("// ==="));
  };
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string_view line = lines[i];
    if (line.empty() || line[0] == ' ' || line[0] == '/' || line[0] == '#') continue;
    if (line.find(call) == line.npos) continue;
    std::size_t first = i, last = i;
    while (first > 0 && is_above(lines[first - 1])) --first;
    while (last + 1 < lines.size() && lines[last] != "}") ++last;
    std::string text;
    for (std::size_t at = first; at <= last; ++at) text += join(lines[at], "\n");
    Json code;
    code.set("line", i + 1);
    code.set("text", text);
    return code;
  }
  fail("no function ", function, " in ", path, ": expected bert4rec.hpp ", BERT4REC_VERSION_STRING);
}

Json code_json(const Path& path) {
  const std::string header = read_file(path);
  const bool same = header.find("_STRING \"" BERT4REC_VERSION_STRING "\"") != header.npos;
  require(same, path, ": expected bert4rec.hpp ", BERT4REC_VERSION_STRING,
          ", of which this program was made");
  Json code;
  for (const std::string_view function :
       {"embedding_forward", "norm_forward", "norm_backward", "normalize", "normalize_backward",
        "linear_forward", "linear_backward", "attention_forward", "attention_backward",
        "softmax_backward", "residual_norm_forward", "residual_norm_backward", "activation_forward",
        "activation_backward", "gelu_backward", "softmax_loss"}) {
    code.set(function, quoted_code(path, header, function));
  }
  return code;
}

// ---- The page ----------------------------------------------------------------------------------

Json model_json(const Options& options, const ModelConfig& config, const Path& file) {
  Json json;
  json.set("config", to_json(config));
  json.set("name", path_text(file));
  json.set("checksum", detail::hexadecimal(checksum(read_file(file))));
  json.set("command", options.command);
  json.set("version", BERT4REC_VERSION_STRING);
  json.set("first_row", config.first_row());
  json.set("data", path_text(options.data));
  return json;
}

Json weights_json(Engine& engine) {
  std::vector<float> values(engine.table().size());
  engine.read(State::parameters, values);
  Json tensors;
  for (const TensorSpec& spec : engine.table()) {
    Json tensor;
    tensor.set("shape", spec.shape);
    tensor.set("offset", spec.offset);
    tensors.set(spec.name, std::move(tensor));
  }
  Json json;
  json.set("tensors", std::move(tensors));
  json.set("values", base64(values));
  return json;
}

Json items_json(const Catalogue& catalogue) {
  Json::Array titles;
  for (std::size_t i = 0; i < catalogue.size(); ++i) {
    titles.push_back(catalogue.title(static_cast<std::int32_t>(i)));
  }
  return titles;
}

// The page with its data in place. In JSON "<" stands only in texts, and could end the script.
std::string page_of(const Json& data) {
  std::string text;
  for (const std::string_view part : explain::page) {
    if (part != "{{data}}") {
      text += part;
      continue;
    }
    for (const char c : data.text()) text += c == '<' ? "\\u003c" : std::string(1, c);
  }
  return text;
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Path path = options.model / path_from(join(options.name, ".safetensors"));
  const Safetensors file = open_model(options.model, options.name);
  const Catalogue catalogue = catalogue_of(options.model, file);
  const auto engine = load_model(file, options.threads);
  const ModelConfig& config = engine->config();
  require(config.task == TaskKind::items, path, ": a model for ", enum_name(config.task),
          ", expected one that scores items");
  const Histories histories = Histories::load(options.data / "histories.jsonl", catalogue);
  std::size_t row = 0;
  if (!options.user.empty()) {
    const auto found = histories.find(options.user);
    require(found.has_value(), "no user \"", shown(options.user), "\" in ",
            options.data / "histories.jsonl");
    row = *found;
  }
  const ItemSpan all = histories.row(row);
  const ItemSpan history = newest(all, std::min(options.items, config.max_length));
  const std::size_t n = history.size();
  require(n >= 2, "the user ", shown(histories.user(row)), " has ", n,
          " items that the model knows, expected 2 or more");
  if (options.place > n) {
    throw cli::UsageError(join("--place ", options.place, ": the page shows ", n, " items"));
  }
  const bool causal = config.objective == Objective::causal;
  const Question question{.place = options.place > 0 ? options.place - 1 : causal ? n - 1 : n / 2};

  std::vector<std::int32_t> shown_items;
  const Batch batch = batch_of(question, history, config, shown_items);
  std::vector<float> parameters(engine->table().size());
  engine->read(State::parameters, parameters);
  explain::Step step(config, engine->table(), parameters, batch);

  Json data;
  data.set("model", model_json(options, config, path));
  data.set("user", histories.user(row));
  data.set("items_of_user", all.size());
  data.set("history", std::vector<std::int32_t>(history.begin(), history.end()));
  data.set("items", items_json(catalogue));
  data.set("question", json_of(question));
  data.set("loss", step.loss());
  data.set("stages", stages(*engine, options, question, history));
  data.set("record", record_json(step));
  data.set("checks", explain::checks_of(step));
  data.set("code", code_json(options.header));
  // The page recomputes if it can carry the weights: 2 MB in all.
  constexpr std::size_t most = 2'000'000;
  const std::size_t weights = engine->table().size() * sizeof(float) * 4 / 3;
  std::string page = page_of(data);
  const bool carries = page.size() + weights < most - 200'000;
  if (carries) {
    data.set("edits", random_edits(*engine, options, history));
    data.set("weights", weights_json(*engine));
    page = page_of(data);
  }
  if (!options.output.parent_path().empty()) {
    std::filesystem::create_directories(options.output.parent_path());
  }
  write_file(options.output, page);
  std::cout << path_text(options.output) << ": " << (page.size() + 999) / 1000 << " kB"
            << (carries
                    ? ""
                    : ", without the weights (over 2 MB): nothing is recomputed there; a model of "
                      "train_model --hidden-size 64 would fit")
            << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("explain", argc, argv, run); }
