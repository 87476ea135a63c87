// Recommends unseen items for a user of the data, for titles, or for somebody's list on AniList;
// for many histories, a line each; or finds the items that are most like one, or of a title.

#include "common/gpu.hpp"
#include "common/titles.hpp"

#ifndef BERT4REC_WITHOUT_CURL
#include "anilist/anilist.hpp"
#else

// Stands for anilist.hpp where there is no libcurl: everything but --anilist works.
namespace anilist {

struct Options {};
struct Entry {
  std::int64_t id;
  std::string status;
};
struct Client {
  Client(const Options&, const std::function<void(const std::string&)>&) {
    bert4rec::fail("--anilist: this program was built without libcurl");
  }
};
inline void add_options(cli::CommandLine&, Options&) {}
inline std::vector<Entry> fetch_list(Client&, const std::string&) { return {}; }

}  // namespace anilist
#endif

namespace {

using namespace bert4rec;

struct Options {
  Path model = "output/models", data = "data/demo", candidates, input;
  std::string name = "best_model", user, items, similar_to, search, anilist_name;
  std::string exclude, genre, language = "english";
  std::vector<std::string> titles;
  anilist::Options anilist;
  std::size_t count = 10, threads = 0;
  gpu::Choice gpu;
  bool all_users = false, skip_unknown = false, keep_seen = false, explain = false, json = false;
  bool counted = false;  // --count was given

  bool for_many() const { return all_users || !input.empty(); }
};

void check(const Options& options) {
  const int sources = !options.user.empty() + !options.items.empty() + !options.titles.empty() +
                      !options.anilist_name.empty() + !options.similar_to.empty() +
                      !options.search.empty() + options.for_many();
  if (sources != 1 || (options.all_users && !options.input.empty())) {
    throw cli::UsageError(
        "give one of --user, --items, --title, --anilist, --all-users, --input, --similar-to and "
        "--search");
  }
  if (options.language != "english" && options.language != "romaji" &&
      options.language != "native") {
    throw cli::UsageError(join("--titles ", options.language, ": english, romaji or native"));
  }
  if (options.explain && options.for_many()) {
    throw cli::UsageError("--explain goes with one history, not with many");
  }
  const bool chooses = !options.candidates.empty() || !options.exclude.empty() ||
                       !options.genre.empty() || options.keep_seen || options.explain;
  if (chooses && (!options.similar_to.empty() || !options.search.empty())) {
    throw cli::UsageError(
        "--candidates, --exclude, --genre, --keep-seen and --explain are about recommending: not "
        "with --similar-to or --search");
  }
  const bool has_names = !options.items.empty() || !options.titles.empty() ||
                         !options.input.empty() || !options.candidates.empty() ||
                         !options.exclude.empty();
  if (options.skip_unknown && !has_names) {
    throw cli::UsageError("--skip-unknown: nothing is named that could be unknown");
  }
  if (options.candidates == "-" && options.input == "-") {
    throw cli::UsageError("--candidates - and --input -: there is one standard input");
  }
}

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("recommend", "the items a trained model expects next, without those seen",
                        "recommend --model output/demo/models --user demo_0001 --count 5\n"
                        "  recommend --title \"The Thunder Dragon\" --genre Drama --explain\n"
                        "  recommend --items 101,205,33 --json\n"
                        "  recommend --anilist NAME --titles romaji\n"
                        "  recommend --all-users > answers.jsonl\n"
                        "  echo '[101, 205, 33]' | recommend --input -\n"
                        "  recommend --similar-to \"The Thunder Dragon\"");
  line.option("model", options.model, "models folder that train_model wrote");
  line.option("name", options.name, "which model in it: best_model or final_model");
  line.option("user", options.user, "a user of the data");
  line.option("data", options.data, "folder with histories.jsonl, for --user and --all-users");
  line.option("items", options.items, "ids or titles watched, oldest first, separated by commas");
  line.option("title", options.titles, "a title watched; again for further ones, oldest first");
  line.option("anilist", options.anilist_name, "a user of AniList, whose list is fetched");
  line.flag("all-users", options.all_users, "all users of the data: a line of JSON for each");
  line.option("input", options.input,
              "file, or - for the standard input: a history a line, as [id, id, ...] or as in "
              "histories.jsonl; each is answered by a line of JSON");
  line.flag("skip-unknown", options.skip_unknown,
            "leave out ids and titles that the model does not know");
  line.option("candidates", options.candidates,
              "file of ids or titles, one a line: the scores of these, seen or not");
  line.option("exclude", options.exclude, "ids or titles not to recommend, separated by commas");
  line.option("genre", options.genre, "only items of one of these genres, separated by commas");
  line.flag("keep-seen", options.keep_seen, "items of the history may come again");
  line.flag("explain", options.explain, "which items of the history the first answer leans on");
  line.option("similar-to", options.similar_to,
              "an id, a title or a part of one: the items most like it instead, by cosine");
  line.option("search", options.search, "lists the items with this in a title instead");
  line.option("titles", options.language, "english, romaji or native, where there is one");
  line.option("count", options.count, "how many to recommend; of candidates all, if not given");
  line.option("threads", options.threads, "threads; 0: one a core");
  options.gpu.add_flags(line);
  line.flag("json", options.json, "print JSON");
  anilist::add_options(line, options.anilist);
  line.groups({
      {"The model and its data", {"model", "name", "data"}},
      {"Whom or what it is about (one of these)",
       {"user", "items", "title", "anilist", "all-users", "input", "similar-to", "search"}},
      {"What may be recommended",
       {"count", "candidates", "exclude", "genre", "keep-seen", "skip-unknown"}},
      {"What is printed", {"titles", "explain", "json"}},
      {"Computing", {"threads", "gpu", "fp16"}},
      {"AniList", {}},
  });
  line.parse(argc, argv);
  options.counted = line.given("count");
  check(options);
  return options;
}

// ---- What is asked -----------------------------------------------------------------------------

std::string title_of(const Options& options, const Catalogue& catalogue, std::int32_t item) {
  const std::string& wanted = options.language == "romaji"   ? catalogue[item].romaji
                              : options.language == "native" ? catalogue[item].native
                                                             : catalogue[item].english;
  return wanted.empty() ? catalogue.title(item) : wanted;
}

// A list that a person typed, in parts without the commas.
std::vector<std::string> parts_of(std::string_view list) {
  std::vector<std::string> parts;
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    std::string_view part = list.substr(0, comma);
    list.remove_prefix(std::min(comma + 1, list.size()));
    while (part.starts_with(' ')) part.remove_prefix(1);
    while (part.ends_with(' ') || part.ends_with('\r')) part.remove_suffix(1);
    if (!part.empty()) parts.emplace_back(part);
  }
  return parts;
}

// The items of ids or titles; what nobody knows is an error, or with --skip-unknown counted.
std::vector<std::int32_t> items_of(const Options& options, titles::Finder& finder,
                                   std::string_view what, const std::vector<std::string>& texts) {
  std::vector<std::int32_t> items;
  std::size_t unknown = 0;
  for (const std::string& text : texts) {
    if (options.skip_unknown && finder.is_unknown(text))
      ++unknown;
    else
      items.push_back(finder.one(what, text));
  }
  require(!items.empty() || what == "--exclude", what, ": no item that the model knows");
  if (unknown > 0) {
    std::cerr << what << ": left out " << unknown << " of " << texts.size() << ", not known here\n";
  }
  return items;
}

Histories load_histories(const Options& options, const Catalogue& catalogue) {
  return Histories::load(options.data / "histories.jsonl", catalogue);
}

std::vector<std::int32_t> items_of_user(const Options& options, const Catalogue& catalogue) {
  const Histories histories = load_histories(options, catalogue);
  const auto row = histories.find(options.user);
  require(row.has_value(), "no user \"", options.user, "\" in ", options.data / "histories.jsonl");
  const ItemSpan items = histories.row(*row);
  return {items.begin(), items.end()};
}

// What somebody watched, of the titles the model knows; the others are counted on stderr.
std::vector<std::int32_t> items_on_anilist(const Options& options, const Catalogue& catalogue) {
  cli::ProgressBar bar;
  anilist::Client client(options.anilist, [&bar](const std::string& what) { bar.tell(what); });
  std::vector<std::int32_t> items;
  std::size_t unknown = 0;
  const std::vector<anilist::Entry> entries =
      in_context(join("the list of ", options.anilist_name),
                 [&] { return anilist::fetch_list(client, options.anilist_name); });
  bar.clear();
  for (const anilist::Entry& entry : entries) {
    if (entry.status == "PLANNING") continue;
    const std::int32_t item = catalogue.find(entry.id);
    if (item >= 0)
      items.push_back(item);
    else
      ++unknown;
  }
  if (unknown > 0) std::cerr << unknown << " titles of the list are not in the catalogue\n";
  require(!items.empty(), "the list of ", options.anilist_name, " has no title of the catalogue");
  return items;
}

std::vector<std::int32_t> history_of(const Options& options, const Catalogue& catalogue,
                                     titles::Finder& finder) {
  if (!options.user.empty()) return items_of_user(options, catalogue);
  if (!options.items.empty()) return items_of(options, finder, "--items", parts_of(options.items));
  if (!options.titles.empty()) return items_of(options, finder, "--title", options.titles);
  return items_on_anilist(options, catalogue);
}

// ---- What may be recommended -------------------------------------------------------------------

std::vector<std::string> lines_of(const Path& path) {
  cli::LineReader reader(path);
  std::vector<std::string> lines;
  for (std::string line; reader.next(line);) {
    const std::size_t begin = std::min(line.find_first_not_of(" \t\r"), line.size());
    const std::size_t end = line.find_last_not_of(" \t\r") + 1;
    if (begin < end) lines.push_back(line.substr(begin, end - begin));
  }
  require(!lines.empty(), reader.name(), ": no candidates: expected an id or a title a line");
  return lines;
}

// Of each item, whether it has one of the genres.
std::vector<bool> of_genres(const std::string& list, const Catalogue& catalogue) {
  if (parts_of(list).empty()) throw cli::UsageError("--genre names none");
  std::vector<bool> chosen(catalogue.size());
  for (const std::string& genre : parts_of(list)) {
    std::map<std::u32string, std::string> genres;  // all there are
    bool any = false;
    for (std::size_t item = 0; item < catalogue.size(); ++item) {
      for (const std::string& name : catalogue[static_cast<std::int32_t>(item)].genres) {
        const std::u32string folded = titles::folded(name);
        genres[folded] = name;
        if (folded != titles::folded(genre)) continue;
        any = chosen[item] = true;
      }
    }
    std::string names;
    for (const auto& [folded, name] : genres) names += join(names.empty() ? "" : ", ", shown(name));
    require(any, "--genre: no item is of \"", shown(genre), "\"; there are ",
            names.empty() ? "no genres" : names);
  }
  return chosen;
}

RecommendOptions choices(const Options& options, const Catalogue& catalogue,
                         titles::Finder& finder) {
  RecommendOptions choices{.count = options.count, .keep_seen = options.keep_seen};
  if (!options.candidates.empty()) {
    choices.candidates = items_of(options, finder, "--candidates", lines_of(options.candidates));
    choices.keep_seen = true;
    if (!options.counted) choices.count = choices.candidates.size();
  }
  if (options.genre.empty() && options.exclude.empty()) return choices;
  std::vector<bool> allowed(catalogue.size(), true);
  if (!options.genre.empty()) allowed = of_genres(options.genre, catalogue);
  if (!options.exclude.empty()) {
    const std::vector<std::string> parts = parts_of(options.exclude);
    for (const std::int32_t item : items_of(options, finder, "--exclude", parts)) {
      allowed[static_cast<std::size_t>(item)] = false;
    }
  }
  choices.filter = [allowed = std::move(allowed)](std::int32_t item) {
    return allowed[static_cast<std::size_t>(item)];
  };
  return choices;
}

// ---- Output ------------------------------------------------------------------------------------

Json item_json(const Options& options, const Catalogue& catalogue, std::int32_t item) {
  Json json;
  json.set("id", to_json(catalogue[item]).at("id"));
  json.set("title", title_of(options, catalogue, item));
  return json;
}

Json::Array picks_json(const Options& options, const Catalogue& catalogue,
                       const std::vector<Recommendation>& picks) {
  Json::Array list;
  for (const Recommendation& pick : picks) {
    Json entry = item_json(options, catalogue, pick.item);
    entry.set("score", pick.score);
    entry.set("genres", catalogue[pick.item].genres);
    const std::optional<double> opinion = catalogue[pick.item].average_score;
    entry.set("average_score", opinion ? Json(*opinion) : Json());
    list.push_back(std::move(entry));
  }
  return list;
}

// What one history, or one item, was answered.
struct Answer {
  std::vector<std::int32_t> about;  // the items that were asked with
  std::vector<Recommendation> picks;
  std::vector<double> reasons = {};  // of each item of `about`, with --explain
};

// Of the reasons, the items that weigh most, the heaviest first.
std::vector<std::size_t> heaviest(const std::vector<double>& reasons) {
  std::vector<std::size_t> order(reasons.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::abs(reasons[a]) > std::abs(reasons[b]);
  });
  order.resize(std::min<std::size_t>(5, order.size()));
  return order;
}

void print_json(const Options& options, const Catalogue& catalogue, const Answer& answer) {
  Json::Array asked, reasons;
  for (const std::int32_t item : answer.about) asked.push_back(item_json(options, catalogue, item));
  Json json;
  if (options.similar_to.empty())
    json.set("history", std::move(asked));
  else
    json.set("similar_to", std::move(asked.front()));
  json.set("recommendations", picks_json(options, catalogue, answer.picks));
  for (const std::size_t i : heaviest(answer.reasons)) {
    Json reason = item_json(options, catalogue, answer.about[i]);
    reason.set("log_probability", answer.reasons[i]);
    reasons.push_back(std::move(reason));
  }
  if (options.explain) json.set("reasons", std::move(reasons));
  std::cout << json.text(2) << "\n";
}

std::string with_genres(const Options& options, const Catalogue& catalogue, std::int32_t item) {
  std::string text = shown(title_of(options, catalogue, item));
  const std::vector<std::string>& genres = catalogue[item].genres;
  for (std::size_t i = 0; i < genres.size(); ++i) {
    text += join(i == 0 ? "  (" : ", ", shown(genres[i]));
  }
  return genres.empty() ? text : text + ")";
}

std::string right_aligned(std::string text, std::size_t width) {
  text.insert(0, width - std::min(width, text.size()), ' ');
  return text;
}

void print_reasons(const Options& options, const Catalogue& catalogue, const Answer& answer) {
  std::cout << "the first leans on, by what leaving it out does to the logarithm of its "
               "probability:\n";
  for (const std::size_t i : heaviest(answer.reasons)) {
    const double change = -answer.reasons[i];
    std::cout << right_aligned((change > 0 ? "+" : "") + cli::fixed(change, 2), 8) << "  "
              << shown(title_of(options, catalogue, answer.about[i])) << "\n";
  }
}

void print_text(const Options& options, const Catalogue& catalogue, const Answer& answer) {
  const bool is_history = options.similar_to.empty();
  if (is_history) std::cout << "after " << answer.about.size() << " items, the newest:\n";
  for (const std::int32_t item : newest(answer.about, 5)) {
    std::cout << "          " << shown(title_of(options, catalogue, item)) << "\n";
  }
  std::cout << (is_history ? "expected next, with probability:\n" : "most like it, by cosine:\n");
  for (const Recommendation& pick : answer.picks) {
    const std::string score = is_history ? cli::percent(pick.score) : cli::fixed(pick.score, 4);
    std::cout << right_aligned(score, 8) << "  " << with_genres(options, catalogue, pick.item)
              << "\n";
  }
  if (options.explain) print_reasons(options, catalogue, answer);
}

int search(const Options& options, const Catalogue& catalogue, titles::Finder& finder) {
  std::vector<std::int32_t> found = finder.find(options.search);
  require(!found.empty(), "--search: no title has \"", shown(options.search), "\"",
          finder.nearest_text(options.search));
  if (options.counted) found.resize(std::min(found.size(), options.count));
  Json::Array list;
  for (const std::int32_t item : found) {
    if (options.json)
      list.push_back(to_json(catalogue[item]));
    else
      std::cout << right_aligned(shown(id_text(catalogue[item].id)), 8) << "  "
                << with_genres(options, catalogue, item) << "\n";
  }
  if (options.json) std::cout << Json(std::move(list)).text(2) << "\n";
  return 0;
}

// ---- Many histories ----------------------------------------------------------------------------

// Prints a line for each history: {"user": ..., "recommendations": [...]}.
class Answers {
 public:
  Answers(const Options& options, const Recommender& recommender, const RecommendOptions& choices)
      : options_(options), recommender_(recommender), choices_(choices) {}

  // `line`: the fields that the answer begins with.
  void ask(Json line, std::vector<std::int32_t> history) {
    lines_.push_back(std::move(line));
    histories_.push_back(std::move(history));
  }
  // An answer that is known already.
  void tell(Json line) {
    lines_.push_back(std::move(line));
    histories_.emplace_back();
  }

  std::size_t size() const { return lines_.size(); }

  void print() {
    if (lines_.empty()) return;
    std::vector<ItemSpan> asked;
    for (const std::vector<std::int32_t>& history : histories_) {
      if (!history.empty()) asked.push_back(history);
    }
    const auto found = recommender_.recommend_all(asked, choices_);
    auto next = found.begin();
    for (std::size_t i = 0; i < lines_.size(); ++i) {
      if (!histories_[i].empty()) {
        lines_[i].set("recommendations", picks_json(options_, recommender_.catalogue(), *next++));
      }
      std::cout << lines_[i].text() << "\n";
    }
    std::cout.flush();
    require(static_cast<bool>(std::cout), "cannot write to the standard output");
    lines_.clear();
    histories_.clear();
  }

 private:
  const Options& options_;
  const Recommender& recommender_;
  const RecommendOptions& choices_;
  std::vector<Json> lines_;
  std::vector<std::vector<std::int32_t>> histories_;  // empty: nothing is asked
};

constexpr std::size_t at_once = 256;

int answer_all_users(const Options& options, const Catalogue& catalogue, Answers answers) {
  const Histories histories = load_histories(options, catalogue);
  if (histories.unknown_entries > 0) {
    std::cerr << cli::grouped(histories.unknown_entries)
              << " entries of histories left out: the model does not know their items\n";
  }
  cli::ProgressBar bar;
  for (std::size_t row = 0; row < histories.size(); ++row) {
    Json line;
    line.set("user", histories.user(row));
    const ItemSpan items = histories.row(row);
    answers.ask(std::move(line), {items.begin(), items.end()});
    if (answers.size() < at_once && row + 1 < histories.size()) continue;
    bar.clear();
    answers.print();
    bar.show_rate(row + 1, histories.size(), "recommend", "users");
  }
  return 0;
}

// A history of the input: [id, id, ...], or a line of histories.jsonl.
std::vector<std::int32_t> read_line(JsonReader& reader, const Options& options,
                                    const Catalogue& catalogue, Json& line) {
  std::vector<std::int32_t> items;
  std::size_t unknown = 0;
  if (reader.peek() == '[') {
    reader.array([&] {
      const ItemId id = bert4rec::detail::read_id(reader);
      const std::int32_t item =
          std::visit([&](const auto& key) { return catalogue.find(key); }, id);
      if (item >= 0)
        items.push_back(item);
      else if (options.skip_unknown)
        ++unknown;
      else
        reader.error("no item has the id ", shown(id_text(id)));
    });
  } else {
    const bert4rec::detail::HistoryLine history = bert4rec::detail::read_history(reader, catalogue);
    if (history.user) line.set("user", *history.user);
    items = history.items();
    unknown = history.unknown;
    if (unknown > 0 && !options.skip_unknown) {
      reader.error(unknown, " entries are not in the catalogue");
    }
  }
  reader.end();
  if (unknown > 0) line.set("unknown", unknown);
  if (items.empty()) reader.error("no item that the model knows");
  return items;
}

// Every line is answered, one that cannot be read by {"line": 3, "error": "..."}; but blank ones.
int answer_lines(const Options& options, const Catalogue& catalogue, Answers answers) {
  cli::LineReader reader(options.input);
  std::size_t number = 0, problems = 0;
  const auto ask = [&](const std::string& text) {
    Json line;
    try {
      JsonReader json(text, reader.name(), number);
      std::vector<std::int32_t> history = read_line(json, options, catalogue, line);
      answers.ask(std::move(line), std::move(history));
    } catch (const Error& error) {
      ++problems;
      Json problem;
      problem.set("line", number);
      problem.set("error", error.what());
      answers.tell(std::move(problem));
    }
  };
  for (std::string text; reader.next(text);) {
    ++number;
    if (text.find_first_not_of(" \t\r") != text.npos) ask(text);  // as in histories.jsonl
    if (answers.size() == at_once || !reader.has_line()) answers.print();
  }
  require(problems == 0, reader.name(), ": ", problems, " of ", number,
          " lines were answered by an error");
  return 0;
}

// ---- The tool ----------------------------------------------------------------------------------

Answer answer(const Options& options, const Recommender& recommender, titles::Finder& finder,
              const RecommendOptions& choices) {
  if (!options.similar_to.empty()) {
    const std::int32_t item = finder.one("--similar-to", options.similar_to);
    return {{item}, recommender.similar(item, options.count)};
  }
  Answer answer{history_of(options, recommender.catalogue(), finder), {}};
  answer.picks = recommender.recommend(answer.about, choices);
  require(!answer.picks.empty() || options.count == 0, "nothing is left to recommend",
          choices.keep_seen ? "" : ": all that may be is in the history (--keep-seen)");
  if (options.explain && !answer.picks.empty()) {
    answer.reasons = recommender.reasons(answer.about, answer.picks[0].item);
  }
  return answer;
}

int recommend(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Recommender recommender(options.model, options.name, options.threads, options.gpu.maker());
  const Catalogue& catalogue = recommender.catalogue();
  titles::Finder finder(catalogue,
                        [&](std::int32_t item) { return title_of(options, catalogue, item); });
  if (!options.search.empty()) return search(options, catalogue, finder);
  const RecommendOptions chosen = choices(options, catalogue, finder);
  const Answers answers(options, recommender, chosen);
  if (options.all_users) return answer_all_users(options, catalogue, answers);
  if (!options.input.empty()) return answer_lines(options, catalogue, answers);
  const Answer found = answer(options, recommender, finder, chosen);
  (options.json ? print_json : print_text)(options, catalogue, found);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // A signal ends it at once, wherever it is: there is nothing to save.
  return cli::run("recommend", argc, argv, recommend);
}
