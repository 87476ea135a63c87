// Recommends unseen items for a user of the data, a list of ids, or somebody's list on AniList; or
// finds the items that are most like one.

#include "common/gpu.hpp"

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
  Client(const Options&, void (*)(const std::string&)) {
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
  Path model = "output/models", data = "data/demo";
  std::string name = "best_model", user, items, similar_to, anilist_name, language = "english";
  anilist::Options anilist;
  std::size_t count = 10, threads = 0;
  gpu::Choice gpu;
  bool json = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("recommend", "the items a trained model expects next, without those seen",
                        "recommend --user demo_0001 --count 5\n"
                        "  recommend --items 101,205,33 --json\n"
                        "  recommend --anilist NAME --titles romaji\n"
                        "  recommend --similar-to \"The Thunder Dragon\"");
  line.option("model", options.model, "models folder that train_model wrote");
  line.option("name", options.name, "which model in it: best_model or final_model");
  line.option("user", options.user, "a user of the data");
  line.option("data", options.data, "folder with histories.jsonl, for --user");
  line.option("items", options.items, "ids watched, oldest first, separated by commas");
  line.option("anilist", options.anilist_name, "a user of AniList, whose list is fetched");
  line.option("similar-to", options.similar_to,
              "an id, a title or a part of one: the items most like it instead, by cosine");
  line.option("titles", options.language, "english, romaji or native, where there is one");
  line.option("count", options.count, "how many to recommend");
  line.option("threads", options.threads, "threads; 0: one a core");
  options.gpu.add_flags(line);
  line.flag("json", options.json, "print JSON");
  anilist::add_options(line, options.anilist);
  line.parse(argc, argv);
  const int sources = !options.user.empty() + !options.items.empty() + !options.similar_to.empty() +
                      !options.anilist_name.empty();
  if (sources != 1) {
    throw cli::UsageError("give one of --user, --items, --similar-to and --anilist");
  }
  if (options.language != "english" && options.language != "romaji" &&
      options.language != "native") {
    throw cli::UsageError(join("--titles ", options.language, ": english, romaji or native"));
  }
  return options;
}

std::vector<std::int32_t> items_of_user(const Options& options, const Catalogue& catalogue) {
  const Histories histories = Histories::load(options.data / "histories.jsonl", catalogue);
  const auto row = histories.find(options.user);
  require(row.has_value(), "no user \"", options.user, "\" in ", options.data / "histories.jsonl");
  const ItemSpan items = histories.row(*row);
  return {items.begin(), items.end()};
}

std::vector<std::int32_t> typed_items(const Options& options, const Catalogue& catalogue) {
  std::vector<std::int32_t> items;
  std::string_view rest = options.items;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string id(rest.substr(0, comma));
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    if (id.empty()) continue;
    const std::int32_t item = catalogue.find_typed(id);
    require(item >= 0, "--items: no item has the id ", id);
    items.push_back(item);
  }
  require(!items.empty(), "--items: no ids");
  return items;
}

// What somebody watched, of the titles the model knows; the others are counted on stderr.
std::vector<std::int32_t> items_on_anilist(const Options& options, const Catalogue& catalogue) {
  anilist::Client client(options.anilist, [](const std::string& what) {
    if (cli::on_terminal()) std::cerr << what << "\n";
  });
  std::vector<std::int32_t> items;
  std::size_t unknown = 0;
  const std::vector<anilist::Entry> entries =
      in_context(join("the list of ", options.anilist_name),
                 [&] { return anilist::fetch_list(client, options.anilist_name); });
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

std::string title_of(const Options& options, const Catalogue& catalogue, std::int32_t item) {
  const std::string& wanted = options.language == "romaji"   ? catalogue[item].romaji
                              : options.language == "native" ? catalogue[item].native
                                                             : catalogue[item].english;
  return wanted.empty() ? catalogue.title(item) : wanted;
}

// For comparing: without capital letters, as far as ASCII has them.
std::string folded(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

// The item that a person means by --similar-to: the one of this id; or of this title, in any
// language; or the only one with this in a title.
std::int32_t named_item(const Options& options, const Catalogue& catalogue) {
  std::int32_t item = catalogue.find_typed(options.similar_to);
  if (item >= 0) return item;
  const std::string wanted = folded(options.similar_to);
  std::vector<std::int32_t> whole, part;
  for (const Item& candidate : catalogue) {
    ++item;
    bool is_whole = false, is_part = false;
    for (const std::string* title : {&candidate.english, &candidate.romaji, &candidate.native}) {
      is_whole = is_whole || folded(*title) == wanted;
      is_part = is_part || folded(*title).find(wanted) != std::string::npos;
    }
    if (is_whole) whole.push_back(item);
    if (is_part) part.push_back(item);
  }
  const std::vector<std::int32_t>& found = whole.empty() ? part : whole;
  const std::string name = shown(options.similar_to);
  require(!found.empty(), "--similar-to: no item has the id or title \"", name, "\"");
  std::string choices;
  for (const std::int32_t one : ItemSpan(found).first(std::min<std::size_t>(5, found.size()))) {
    choices += join(choices.empty() ? "" : ", ", shown(title_of(options, catalogue, one)), " (",
                    shown(id_text(catalogue[one].id)), ")");
  }
  require(found.size() == 1, "--similar-to: \"", name, "\" may be ", found.size(),
          " items: ", choices, found.size() > 5 ? ", ..." : "", "; give the id in brackets");
  return found[0];
}

Json item_json(const Options& options, const Catalogue& catalogue, std::int32_t item) {
  Json json;
  json.set("id", to_json(catalogue[item]).at("id"));
  json.set("title", title_of(options, catalogue, item));
  return json;
}

// `about`: the items that were asked with.
void print_json(const Options& options, const Catalogue& catalogue, ItemSpan about,
                const std::vector<Recommendation>& picks) {
  Json::Array asked, list;
  for (const std::int32_t item : about) asked.push_back(item_json(options, catalogue, item));
  for (const Recommendation& pick : picks) {
    Json entry = item_json(options, catalogue, pick.item);
    entry.set("score", pick.score);
    entry.set("genres", catalogue[pick.item].genres);
    const std::optional<double> opinion = catalogue[pick.item].average_score;
    entry.set("average_score", opinion ? Json(*opinion) : Json());
    list.push_back(std::move(entry));
  }
  Json json;
  if (options.similar_to.empty())
    json.set("history", std::move(asked));
  else
    json.set("similar_to", std::move(asked.front()));
  json.set("recommendations", std::move(list));
  std::cout << json.text(2) << "\n";
}

void print_text(const Options& options, const Catalogue& catalogue, ItemSpan about,
                const std::vector<Recommendation>& picks) {
  const bool is_history = options.similar_to.empty();
  if (is_history) std::cout << "after " << about.size() << " items, the newest:\n";
  for (const std::int32_t item : newest(about, 5)) {
    std::cout << "          " << shown(title_of(options, catalogue, item)) << "\n";
  }
  std::cout << (is_history ? "expected next, with probability:\n" : "most like it, by cosine:\n");
  for (const Recommendation& pick : picks) {
    std::string score = is_history ? cli::percent(pick.score) : cli::fixed(pick.score, 4);
    score.insert(0, 8 - std::min<std::size_t>(8, score.size()), ' ');
    std::cout << score << "  " << shown(title_of(options, catalogue, pick.item));
    const std::vector<std::string>& genres = catalogue[pick.item].genres;
    for (std::size_t i = 0; i < genres.size(); ++i)
      std::cout << (i == 0 ? "  (" : ", ") << shown(genres[i]);
    std::cout << (genres.empty() ? "\n" : ")\n");
  }
}

int recommend(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Recommender recommender(options.model, options.name, options.threads, options.gpu.maker());
  const Catalogue& catalogue = recommender.catalogue();
  const bool is_similar = !options.similar_to.empty();
  const std::vector<std::int32_t> about =
      is_similar               ? std::vector{named_item(options, catalogue)}
      : !options.user.empty()  ? items_of_user(options, catalogue)
      : !options.items.empty() ? typed_items(options, catalogue)
                               : items_on_anilist(options, catalogue);
  const auto picks = is_similar ? recommender.similar(about[0], options.count)
                                : recommender.recommend(about, options.count);
  if (options.json)
    print_json(options, catalogue, about, picks);
  else
    print_text(options, catalogue, about, picks);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // A signal ends it at once, wherever it is: there is nothing to save.
  return cli::run("recommend", argc, argv, recommend);
}
