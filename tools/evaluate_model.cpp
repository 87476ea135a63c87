// Evaluates a trained model on what its training held out, with baselines and published rows beside
// it: a table for each protocol.

#include "common/gpu.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path model = "output/models", data = "data/demo", grown_from, published, ranks;
  std::string name = "best_model", protocol{enum_name(Protocol::all_unseen)};
  HeldOut held_out = HeldOut::test;
  std::uint64_t seed = 42;
  std::size_t threads = 0;
  gpu::Choice gpu;
  bool baselines_only = false, shuffle_histories = false, json = false, markdown = false;
};

std::string protocol_choices() { return join(enum_choices<Protocol>(), "|every"); }

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("evaluate_model",
                        "validation Top-K, and the last item of each held-out history ranked among "
                        "all unseen items",
                        "evaluate_model --model output/models --data data/demo --protocol every");
  line.option("model", options.model, "models folder that train_model wrote");
  line.option("name", options.name, "which model in it: best_model or final_model");
  line.option("data", options.data, "the folder it was trained on, or a later state of it");
  line.option("grown-from", options.grown_from,
              "an earlier state of --data: ranks the first item that each user has got since");
  line.option("protocol", options.protocol,
              join("a table besides that of all-unseen: ", protocol_choices()));
  line.option("held-out", options.held_out, "the items to rank: validation or test");
  line.flag("baselines-only", options.baselines_only, "no model; split by last item");
  line.flag("shuffle-histories", options.shuffle_histories,
            "a further row: the model, shown each history in a random order");
  line.option("published", options.published,
              "a file of published rows, such as tools/studies/presets/published-ml1m.json");
  line.option("ranks", options.ranks,
              "file to write each user's rank among all unseen items to, for compare_runs");
  line.option("seed", options.seed, "of drawn candidates, intervals and shuffled histories");
  line.option("threads", options.threads, "threads; 0: one a core");
  options.gpu.add_flags(line);
  line.flag("json", options.json, "print JSON, with the intervals of all rows");
  line.flag("markdown", options.markdown, "print Markdown");
  line.groups({
      {"What is evaluated", {"model", "name", "data", "grown-from", "held-out", "protocol"}},
      {"What stands beside it", {"baselines-only", "shuffle-histories", "published"}},
      {"What is printed and written", {"json", "markdown", "ranks"}},
      {"Computing", {}},
  });
  line.parse(argc, argv);
  cli::check_range("seed", options.seed, 0, std::numeric_limits<std::int64_t>::max());
  if (options.json && options.markdown) throw cli::UsageError("--json or --markdown, not both");
  if (options.baselines_only && options.shuffle_histories) {
    throw cli::UsageError("--shuffle-histories needs a model");
  }
  const bool has_grown = !options.grown_from.empty();
  if (!options.published.empty() && (options.held_out != HeldOut::test || has_grown)) {
    throw cli::UsageError(
        "--published rows are about the test items, not --held-out validation or --grown-from");
  }
  if (has_grown && options.held_out != HeldOut::test) {
    throw cli::UsageError("--grown-from asks for new items: not with --held-out");
  }
  return options;
}

// Which items are asked for, in files and in words.
std::string_view asked_of(const Options& options) {
  return options.grown_from.empty() ? enum_name(options.held_out) : "new";
}
std::string asked_item(const Options& options) {
  if (!options.grown_from.empty()) return "first new item";
  return options.held_out == HeldOut::test ? "last item" : "validation item";
}

// The headline and what --protocol asks for.
std::vector<Protocol> chosen_protocols(const std::string& name) {
  if (name == "every") return {protocols.begin(), protocols.end()};
  std::vector<Protocol> chosen;
  for (const Protocol protocol : protocols) {
    if (protocol == Protocol::all_unseen || enum_name(protocol) == name) chosen.push_back(protocol);
  }
  if (chosen.size() == 1 && name != enum_name(Protocol::all_unseen)) {
    throw cli::UsageError(join("--protocol ", name, ": expected ", protocol_choices()));
  }
  return chosen;
}

// ---- Published rows ----------------------------------------------------------------------------
//   {"users": 6040, "items": 3416, "interactions": 999611,       the data they are about
//    "sources": {"paper": "who, where"},
//    "rows": [{"protocol": "popular-100", "model": "BERT4Rec", "source": "paper", "hr@10": 0.697}]}
// with any of hr@1, hr@5, hr@10, hr@20, ndcg@... and mrr in a row.

struct PublishedRow {
  Protocol protocol;
  std::string model, source;
  RankMetrics metrics;  // NaN: not published
};

PublishedRow read_row(const Json& json, const Json& sources) {
  PublishedRow row{enum_value<Protocol>(json.at("protocol").string(), "protocol"),
                   shown(json.at("model").string()),
                   shown(sources.at(json.at("source").string()).string(), 300),
                   {}};
  std::size_t known = 3;
  RankMetrics::fields(row.metrics, [&](const std::string& name, double& value) {
    const Json* found = json.find(name);
    value = found == nullptr ? std::nan("") : found->number();
    require(!(value < 0 || value > 1), "field \"", name, "\" is ", value, ", expected 0 ... 1");
    known += found != nullptr;
  });
  require(known > 3, "no metric, such as hr@10");
  require(known == json.object().size(),
          "a field other than protocol, model, source, hr@K, "
          "ndcg@K (K: 1, 5, 10, 20) and mrr");
  return row;
}

std::vector<PublishedRow> read_published(const Path& path, const Dataset& data) {
  std::vector<PublishedRow> rows;
  if (path.empty()) return rows;
  const Json json = Json::parse(read_file(path), path_text(path));
  const std::pair<const char*, std::size_t> facts[] = {
      {"users", data.histories.size()},
      {"items", data.catalogue.size()},
      {"interactions", data.histories.interactions()}};
  in_context(path_text(path), [&] {
    for (const auto& [name, count] : facts) {
      const std::int64_t published = json.at(name).integer();
      require(published == static_cast<std::int64_t>(count),
              "its rows are about other data: ", published, " ", name, ", here ", count);
    }
    for (const Json& row : json.at("rows").array()) {
      in_context(join("row ", rows.size() + 1),
                 [&] { rows.push_back(read_row(row, json.at("sources"))); });
    }
  });
  return rows;
}

// ---- Tables ------------------------------------------------------------------------------------

struct Row {
  std::string name;
  RankMetrics metrics;
  std::optional<RankIntervals> interval;  // shown for models
  std::string source;                     // of a published row
  std::optional<ListMeasures> lists;      // in the table of all unseen items
};

struct Table {
  Protocol protocol;
  std::string asked;             // "last item"
  std::size_t fewest_negatives;  // of a protocol that draws them
  std::vector<Row> rows;
};

struct Competitor {
  std::string name;
  RankingTask::Ranks ranks;
  ListMeasures lists;
  bool is_model, only_sampled;  // only_sampled: stands in the tables of drawn candidates
};

Scorer with_progress(const std::string& name, std::size_t total, Scorer scorer) {
  return [name, total, scorer = std::move(scorer), done = std::size_t{0},
          bar = std::make_shared<cli::ProgressBar>()](std::span<const NextItemCase> cases,
                                                      std::span<float> scores) mutable {
    scorer(cases, scores);
    bar->show_rate(done += cases.size(), total, name, "users");
  };
}

// What the literature calls a model of that kind.
std::string name_of(const Engine& engine) {
  if (engine.config().task == TaskKind::matching) return "Matching";
  return engine.config().objective == Objective::causal ? "SASRec" : "BERT4Rec";
}

// `engine`: the model, or null. `known`: the histories that the baselines learn from.
std::vector<Competitor> rank_all_competitors(const Options& options, const Dataset& data,
                                             const std::vector<ItemSpan>& known,
                                             const RankingTask& task, Engine* engine,
                                             const Scorer& model) {
  std::vector<Competitor> competitors;
  const auto add = [&](const std::string& name, Scorer scorer, bool is_model, bool only_sampled) {
    scorer = with_progress(name, task.cases().size(), std::move(scorer));
    ListAudit audit(known, task.num_items());
    auto ranks = task.ranks(scorer, [&](const NextItemCase& question, std::span<const float> all) {
      audit.add(question, all);
    });
    competitors.push_back({name, std::move(ranks), audit.measures(), is_model, only_sampled});
  };
  if (engine != nullptr) add(name_of(*engine), model, true, false);
  if (options.shuffle_histories) {
    add(join(name_of(*engine), ", shuffled"), shuffled_scorer(model, options.seed), true, false);
  }
  add("Markov", markov_scorer(known, task.num_items()), false, false);
  add("popularity", popularity_scorer(item_counts(known, task.num_items())), false, false);
  // Published popularity rows of drawn candidates count everything, the test items included.
  const auto all = item_counts(all_histories(data.histories), task.num_items());
  add("popularity, all counts", popularity_scorer(all), false, true);
  return competitors;
}

Table make_table(Protocol protocol, const RankingTask& task,
                 const std::vector<Competitor>& competitors,
                 const std::vector<PublishedRow>& published, const Options& options) {
  const bool full = protocol == Protocol::all_unseen || protocol == Protocol::all_items;
  Table table{
      protocol, asked_item(options), full ? num_negatives : task.fewest_negatives(protocol), {}};
  for (const Competitor& competitor : competitors) {
    if (competitor.only_sampled && full) continue;
    const std::vector<std::size_t>& ranks = competitor.ranks.at(protocol);
    table.rows.push_back({competitor.name, rank_metrics(ranks), {}, "", {}});
    if (protocol == Protocol::all_unseen) table.rows.back().lists = competitor.lists;
    if (competitor.is_model || options.json) {
      table.rows.back().interval = bootstrap_intervals(ranks, options.seed);
    }
  }
  for (const PublishedRow& row : published) {
    if (row.protocol == protocol)
      table.rows.push_back({row.model, row.metrics, {}, row.source, {}});
  }
  return table;
}

// ---- Output ------------------------------------------------------------------------------------

std::string title(const Table& table) {
  static constexpr std::array<const char*, 4> candidates{
      "all items they had not seen", "all items, seen ones too",
      "100 unseen items drawn by popularity", "100 unseen items drawn evenly"};
  const std::string fewer = join(" (", table.fewest_negatives, " where no more are left)");
  return join(table.asked, " of ", cli::grouped(table.rows.front().metrics.users),
              " users, ranked among ", candidates[static_cast<std::size_t>(table.protocol)],
              table.fewest_negatives < num_negatives ? fewer : "");
}

// The metrics that are printed: all but NDCG@1, which is HR@1.
std::vector<double> cells(const RankMetrics& m) {
  return {m.hit[0], m.hit[1], m.hit[2], m.hit[3], m.ndcg[1], m.ndcg[2], m.ndcg[3], m.mrr};
}
constexpr std::array<const char*, 8> columns{"HR@1",   "HR@5",    "HR@10",   "HR@20",
                                             "NDCG@5", "NDCG@10", "NDCG@20", "MRR"};

std::vector<double> half_widths(const RankIntervals& interval) {
  std::vector<double> widths = cells(interval.high), low = cells(interval.low);
  for (std::size_t i = 0; i < widths.size(); ++i) widths[i] = (widths[i] - low[i]) / 2;
  return widths;
}

std::string number(double value) { return std::isnan(value) ? "-" : cli::fixed(value, 4); }

// The names of the rows, published ones with the number of their source, and the list of sources.
std::pair<std::vector<std::string>, std::vector<std::string>> labels(const Table& table) {
  std::vector<std::string> names, sources;
  for (const Row& row : table.rows) {
    names.push_back(row.name);
    if (row.source.empty()) continue;
    auto found = std::find(sources.begin(), sources.end(), row.source);
    if (found == sources.end()) found = sources.insert(found, row.source);
    names.back() += join(" [", found - sources.begin() + 1, "]");
  }
  return {names, sources};
}

constexpr std::string_view lists_title =
    "their lists of ten: how much of the catalogue, how new, how much more popular than what was "
    "watched";

void print_lists(const Table& table) {
  std::printf("\n%s:\n", std::string(lists_title).c_str());
  for (const Row& row : table.rows) {
    if (!row.lists) continue;
    std::printf("  %-12s  coverage %6.2f%%   novelty %5.2f bits   popularity lift %+.2f\n",
                row.name.c_str(), 100 * row.lists->coverage, row.lists->novelty, row.lists->lift);
  }
}

void print_text(const Table& table) {
  const auto [names, sources] = labels(table);
  int width = 12;
  for (const std::string& name : names) width = std::max(width, static_cast<int>(name.size()));
  const auto print_row = [width](const std::string& name, const auto& values) {
    std::printf("  %-*s", width, name.c_str());
    for (std::size_t i = 0; i < columns.size(); ++i) {
      std::printf(i == 4 || i == 7 ? "   %7s" : " %7s", std::string(values[i]).c_str());
    }
    std::printf("\n");
  };
  const auto print_numbers = [&](const std::string& name, std::vector<double> values) {
    std::vector<std::string> texts;
    for (const double value : values) texts.push_back(number(value));
    print_row(name, texts);
  };
  std::printf("%s:\n", title(table).c_str());
  print_row("", columns);
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Row& row = table.rows[i];
    print_numbers(names[i], cells(row.metrics));
    if (row.interval) print_numbers("  95% +-", half_widths(*row.interval));
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    std::printf("  [%zu] %s\n", i + 1, sources[i].c_str());
  }
  if (table.rows[0].lists) print_lists(table);
}

// A bar within a cell of Markdown.
std::string cell(std::string text) {
  for (std::size_t at = 0; (at = text.find('|', at)) != text.npos; at += 2)
    text.insert(at, 1, '\\');
  return text;
}

void print_markdown(const Table& table) {
  const auto [names, sources] = labels(table);
  std::printf("%s:\n\n| |", title(table).c_str());
  for (const char* column : columns) std::printf(" %s |", column);
  std::printf("\n|---|");
  for (std::size_t i = 0; i < columns.size(); ++i) std::printf("---|");
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Row& row = table.rows[i];
    const std::vector<double> values = cells(row.metrics);
    std::printf("\n| %s |", cell(names[i]).c_str());
    for (std::size_t column = 0; column < values.size(); ++column) {
      std::printf(" %s", number(values[column]).c_str());
      if (row.interval) std::printf(" ± %s", number(half_widths(*row.interval)[column]).c_str());
      std::printf(" |");
    }
  }
  std::printf("\n\n");
  for (std::size_t i = 0; i < sources.size(); ++i) {
    std::printf("- [%zu] %s\n", i + 1, sources[i].c_str());
  }
  if (!table.rows[0].lists) return;
  std::printf("\n| %s | coverage | novelty, bits | popularity lift |\n|---|---|---|---|\n",
              std::string(lists_title).c_str());
  for (const Row& row : table.rows) {
    if (!row.lists) continue;
    std::printf("| %s | %.2f%% | %.2f | %+.2f |\n", row.name.c_str(), 100 * row.lists->coverage,
                row.lists->novelty, row.lists->lift);
  }
}

void add_metrics(Json& json, const RankMetrics& metrics) {
  RankMetrics::fields(metrics, [&](const std::string& name, double value) {
    if (!std::isnan(value)) json.set(name, value);
  });
}

Json json_of(const RankMetrics& metrics) {
  Json json;
  json.set("users", metrics.users);
  add_metrics(json, metrics);
  return json;
}

Json json_of(const Tally& metrics) {
  Json json;
  json.set("masked", metrics.count);  // asked places; a name that scripts know
  json.set("loss", metrics.loss());
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    json.set(join("top", top_k[i]), metrics.accuracy(i));
  }
  return json;
}

Json json_of(const Table& table) {
  Json json;
  Json::Array rows;
  for (const Row& row : table.rows) {
    Json& out = rows.emplace_back();
    out.set("name", row.name);
    add_metrics(out, row.metrics);
    if (row.interval) {
      for (const auto& [name, end] :
           {std::pair("low", &row.interval->low), std::pair("high", &row.interval->high)}) {
        Json bounds;
        add_metrics(bounds, *end);
        out.set(name, std::move(bounds));
      }
    }
    if (!row.source.empty()) out.set("source", row.source);
    if (row.lists) {
      ListMeasures::fields(*row.lists,
                           [&](const char* name, double value) { out.set(name, value); });
    }
  }
  json.set("protocol", enum_name(table.protocol));
  json.set("users", table.rows.front().metrics.users);
  json.set("rows", std::move(rows));
  return json;
}

// A trained model, and how it was trained.
struct Model {
  Path path;
  TrainConfig train;
  std::unique_ptr<Engine> engine;
  Catalogue catalogue;  // with --grown-from: the items it knows
};

// `data`: what it was trained on, or where the histories stood when it is asked.
Model load(const Options& options, const Dataset& data) {
  Model model;
  model.train.split = Split::last;
  if (options.baselines_only) return model;
  const Safetensors file = open_model(options.model, options.name);
  model.path = file.path();
  model.train = stored_config<TrainConfig>(file, "train_config");
  const bool same = file.metadata("data") == data.fingerprint();
  if (options.grown_from.empty()) {
    require(same, model.path, ": trained on other data than ", options.data);
  } else {
    model.catalogue = catalogue_of(options.model, file);
    if (!same) {
      std::cerr << "note: " << path_text(model.path) << " was trained on other data than "
                << path_text(options.grown_from) << "; what it saw must be older\n";
    }
  }
  model.engine = load_model(file, options.threads, options.gpu.maker());
  return model;
}

// What the training reported of this model, found again: the task's own loss and measures.
struct Validated {
  Validation found;
  std::vector<std::string> measures;
};

Validated validate(const Dataset& data, Engine& engine, const TrainConfig& train) {
  const auto task = make_task(data, engine.config(), train);
  return {task->validate(engine), task->measures()};
}

Json json_of(const Validated& validated) {
  Json json = json_of(validated.found.tally);
  for (std::size_t i = 0; i < validated.measures.size(); ++i) {
    json.set(validated.measures[i], validated.found.measures[i]);
  }
  return json;
}

void print_json(const Options& options, const Model& model,
                const std::optional<Validated>& validation, const std::vector<Table>& tables) {
  Json json;
  json.set("model", model.engine ? Json(path_text(model.path)) : Json());
  json.set("split", enum_name(model.train.split));
  json.set("held_out", asked_of(options));
  json.set("seed", options.seed);
  if (validation) json.set("validation", json_of(*validation));
  // The headline table again, by name.
  for (const Row& row : tables.front().rows) {
    if (!row.source.empty()) continue;
    if (model.engine && row.name == name_of(*model.engine))
      json.set("next_item", json_of(row.metrics));
    if (row.name == "popularity") json.set("next_item_popularity", json_of(row.metrics));
  }
  Json::Array list;
  for (const Table& table : tables) list.push_back(json_of(table));
  json.set("tables", std::move(list));
  std::cout << json.text(2) << "\n";
}

// {"data": ..., "held_out": "test", "users": [names], "ranks": {"BERT4Rec": [of each user], ...}}
void write_ranks(const Options& options, const Model& model, const Dataset& data,
                 const std::string& fingerprint, const RankingTask& task,
                 const std::vector<Competitor>& competitors) {
  Json::Array users;
  for (const NextItemCase& question : task.cases()) {
    users.push_back(data.histories.user(question.user));
  }
  Json ranks, json;
  for (const Competitor& competitor : competitors) {
    if (competitor.only_sampled) continue;
    const std::vector<std::size_t>& all = competitor.ranks.at(Protocol::all_unseen);
    ranks.set(competitor.name, Json::Array(all.begin(), all.end()));
  }
  json.set("model", model.engine ? Json(path_text(model.path)) : Json());
  json.set("data", fingerprint);
  json.set("held_out", asked_of(options));
  json.set("users", std::move(users));
  json.set("ranks", std::move(ranks));
  write_file(options.ranks, sealed(json.text()) + "\n");
}

void print_heading(const Options& options, const Model& model,
                   const std::optional<Validated>& validation) {
  std::printf("%s (split by %s)\n", path_text(model.engine ? model.path : options.data).c_str(),
              model.train.split == Split::users ? "users" : "last item");
  if (!validation) return;
  const Tally& tally = validation->found.tally;
  std::printf("validation, %s places asked: loss %.4f, top-1/5/10/20 %.2f/%.2f/%.2f/%.2f%%",
              cli::grouped(tally.count).c_str(), tally.loss(), 100 * tally.accuracy(0),
              100 * tally.accuracy(1), 100 * tally.accuracy(2), 100 * tally.accuracy(3));
  for (std::size_t i = 0; i < validation->measures.size(); ++i) {
    std::printf(", %s %.4f", validation->measures[i].c_str(), validation->found.measures[i]);
  }
  std::printf("\n");
}

// What is asked of whom, and what the baselines may learn from.
struct Questions {
  std::vector<NextItemCase> cases;
  std::vector<ItemSpan> known;
};

// Of data that have grown: the first new item of each user who was there, after all that the user
// had then.
Questions questions_of_grown(const Dataset& before, const Dataset& now) {
  Questions questions;
  for (std::size_t row = 0; row < before.histories.size(); ++row) {
    const std::string& user = before.histories.user(row);
    const auto found = now.histories.find(user);
    require(found.has_value(), "the grown data have no user \"", shown(user), "\"");
    const ItemSpan old = before.histories.row(row), all = now.histories.row(*found);
    const bool goes_on = old.size() <= all.size() &&
                         std::equal(old.begin(), old.end(), all.begin(), [&](auto a, auto b) {
                           return before.catalogue[a].id == now.catalogue[b].id;
                         });
    require(goes_on, "the history of \"", shown(user), "\" does not go on from what it was");
    questions.known.push_back(all.first(old.size()));
    if (old.size() == all.size()) continue;
    questions.cases.push_back({all.first(old.size()), all[old.size()], *found});
  }
  require(!questions.cases.empty(), "no user has an item that is new");
  return questions;
}

// A model that knows the items `known`, for questions about those of `now`; what it does not know
// is in no history, and ranks behind all that it knows.
Scorer grown_scorer(Scorer scorer, const Catalogue& known, const Catalogue& now) {
  std::vector<std::int32_t> number;  // [items of now]: that of an item in the model; -1: none
  for (const Item& item : now) {
    number.push_back(std::visit([&](const auto& id) { return known.find(id); }, item.id));
  }
  return [scorer = std::move(scorer), number = std::move(number), items = known.size()](
             std::span<const NextItemCase> cases, std::span<float> scores) {
    std::vector<std::vector<std::int32_t>> histories;
    std::vector<NextItemCase> asked(cases.begin(), cases.end());
    for (NextItemCase& question : asked) {
      std::vector<std::int32_t>& history = histories.emplace_back();
      for (const std::int32_t item : question.before) {
        const std::int32_t one = number[static_cast<std::size_t>(item)];
        if (one >= 0) history.push_back(one);
      }
      question.before = history, question.target = 0;
    }
    std::vector<float> of_model(cases.size() * items);
    scorer(asked, of_model);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const std::int32_t item = number[i % number.size()];
      const std::size_t row = i / number.size() * items;
      scores[i] = item < 0 ? std::numeric_limits<float>::lowest()
                           : of_model[row + static_cast<std::size_t>(item)];
    }
  };
}

int evaluate(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const std::vector<Protocol> chosen = chosen_protocols(options.protocol);
  const bool has_grown = !options.grown_from.empty();
  const Dataset data = Dataset::load(options.data);
  const Dataset before = has_grown ? Dataset::load(options.grown_from) : Dataset();
  const std::vector<PublishedRow> published = read_published(options.published, data);
  const Model model = load(options, has_grown ? before : data);
  if (!options.ranks.empty()) const AtomicFile can_be_written(options.ranks);
  require(published.empty() || model.train.split == Split::last, model.path,
          ": trained with split users; published rows are about split last");
  const DataSplit split((has_grown ? before : data).histories, model.train);
  Questions questions;
  if (has_grown)
    questions = questions_of_grown(before, data);
  else
    questions = {next_item_cases(split, options.held_out),
                 known_histories(split, options.held_out)};
  const RankingTask task(std::move(questions.cases),
                         item_counts(all_histories(data.histories), data.catalogue.size()),
                         options.seed);
  std::optional<Validated> validation;
  if (model.engine && !has_grown) validation = validate(data, *model.engine, model.train);
  Scorer scorer = model.engine ? model_scorer(*model.engine) : Scorer();
  if (has_grown) scorer = grown_scorer(std::move(scorer), model.catalogue, data.catalogue);
  const auto competitors =
      rank_all_competitors(options, data, questions.known, task, model.engine.get(), scorer);
  if (!options.ranks.empty()) {
    const std::string from = has_grown ? before.fingerprint() + " to " : "";
    write_ranks(options, model, data, from + data.fingerprint(), task, competitors);
  }
  std::vector<Table> tables;
  for (const Protocol protocol : chosen) {
    tables.push_back(make_table(protocol, task, competitors, published, options));
  }
  if (options.json) {
    print_json(options, model, validation, tables);
    return 0;
  }
  print_heading(options, model, validation);
  for (const Table& table : tables) {
    std::printf("\n");
    (options.markdown ? print_markdown : print_text)(table);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("evaluate_model", argc, argv, evaluate); }
