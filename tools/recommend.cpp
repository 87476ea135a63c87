// Recommends unseen items for a user of the data, or for a list of ids.

#include "cli.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path model = "output/models", data = "data/demo";
  std::string name = "best_model", user, items;
  std::size_t count = 10, threads = 0;
  bool json = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("recommend", "the items a trained model expects next, without those seen",
                        "recommend --user demo_0001 --count 5\n"
                        "  recommend --items 101,205,33 --json");
  line.option("model", options.model, "models folder that train_model wrote");
  line.option("name", options.name, "which model in it: best_model or final_model");
  line.option("user", options.user, "a user of the data");
  line.option("data", options.data, "folder with histories.jsonl, for --user");
  line.option("items", options.items, "ids watched, oldest first, separated by commas");
  line.option("count", options.count, "how many to recommend");
  line.option("threads", options.threads, "threads; 0: one a core");
  line.flag("json", options.json, "print JSON");
  line.parse(argc, argv);
  if (options.user.empty() == options.items.empty()) {
    throw cli::UsageError("give either --user or --items");
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

Json item_json(const Catalogue& catalogue, std::int32_t item) {
  Json json;
  json.set("id", to_json(catalogue[item]).at("id"));
  json.set("title", catalogue.title(item));
  return json;
}

void print_json(const Catalogue& catalogue, ItemSpan history,
                const std::vector<Recommendation>& picks) {
  Json::Array seen, list;
  for (const std::int32_t item : history) seen.push_back(item_json(catalogue, item));
  for (const Recommendation& pick : picks) {
    Json entry = item_json(catalogue, pick.item);
    entry.set("score", pick.score);
    entry.set("genres", catalogue[pick.item].genres);
    list.push_back(std::move(entry));
  }
  Json json;
  json.set("history", std::move(seen));
  json.set("recommendations", std::move(list));
  std::cout << json.text(2) << "\n";
}

void print_text(const Catalogue& catalogue, ItemSpan history,
                const std::vector<Recommendation>& picks) {
  std::cout << "after " << history.size() << " items, the newest:\n";
  for (const std::int32_t item : newest(history, 5)) {
    std::cout << "          " << catalogue.title(item) << "\n";
  }
  std::cout << "expected next, with probability:\n";
  for (const Recommendation& pick : picks) {
    std::string share = cli::percent(pick.score);
    share.insert(0, 8 - std::min<std::size_t>(8, share.size()), ' ');
    std::cout << share << "  " << catalogue.title(pick.item);
    const std::vector<std::string>& genres = catalogue[pick.item].genres;
    for (std::size_t i = 0; i < genres.size(); ++i)
      std::cout << (i == 0 ? "  (" : ", ") << genres[i];
    std::cout << (genres.empty() ? "\n" : ")\n");
  }
}

int recommend(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Recommender recommender(options.model, options.name, options.threads);
  const Catalogue& catalogue = recommender.catalogue();
  const std::vector<std::int32_t> history =
      options.user.empty() ? typed_items(options, catalogue) : items_of_user(options, catalogue);
  const auto picks = recommender.recommend(history, options.count);
  if (options.json)
    print_json(catalogue, history, picks);
  else
    print_text(catalogue, history, picks);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("recommend", [&] { return recommend(argc, argv); });
}
