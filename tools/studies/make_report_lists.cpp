// Makes lists for reproduce_report.sh: made-up users whose lists are as long as AniList's.
//
//   length      20 ... 1,500 titles, n with a chance of about n^-1.5: mostly short, a few very long
//   popularity  the title of rank r is drawn about as often as 1 / (r + 20)^2, once a list. So of a
//               short list about one title in ten stands in none of 31 others.
//   order       shuffled, without times: it says nothing
// There is nothing to learn about an unseen user but which titles are popular.

#include "common/cli.hpp"
#include "common/dice.hpp"

namespace {

using namespace bert4rec;
using tools::Dice;

struct Options {
  Path output = "output/report/lists";
  std::uint64_t seed = 42, users = 34, titles = 3000;
};

// 20 * (866 / k)^2 for k = 100 ... 866, all equally likely.
std::size_t draw_length(Dice& dice) {
  const std::size_t k = 100 + dice.below(std::size_t{767});
  return 20 * 866 * 866 / (k * k);
}

Json make_entries(std::vector<std::int64_t> weights, Key key) {
  Dice dice(fold_in(key, 0));
  std::vector<std::size_t> ranks(std::min(draw_length(dice), weights.size()));
  for (std::size_t& rank : ranks) {
    const std::size_t drawn = *dice.weighted(weights);
    weights[drawn] = 0;
    rank = drawn + 1;
  }
  shuffle(ranks, fold_in(key, 1));
  Json::Array entries;
  for (const std::size_t rank : ranks) {
    Json entry;
    entry.set("id", rank);
    entry.set("at", Json());
    entries.push_back(std::move(entry));
  }
  return entries;
}

void make_report_lists(const Options& options) {
  std::string items, histories;
  std::vector<std::int64_t> weights;
  for (std::uint64_t rank = 1; rank <= options.titles; ++rank) {
    weights.push_back(static_cast<std::int64_t>(1'000'000'000'000 / ((rank + 20) * (rank + 20))));
    Item item;
    item.id = static_cast<std::int64_t>(rank);
    item.english = join("Title ", rank);
    items += to_json(item).text() + "\n";
  }
  const Key key = fold_in(stream_key(options.seed, Stream::demo), 2);
  for (std::uint64_t user = 1; user <= options.users; ++user) {
    Json history;
    history.set("user", join("user_", user));
    history.set("entries", make_entries(weights, fold_in(key, user)));
    histories += history.text() + "\n";
  }
  DatasetWriter writer(options.output);
  writer.items(items);
  writer.histories(histories);
  writer.commit();
}

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("make_report_lists", "makes lists of 20 to 1,500 titles, mostly short",
                        "make_report_lists --output /tmp/lists --seed 7");
  line.option("output", options.output, "folder for items.jsonl and histories.jsonl");
  line.option("seed", options.seed, "the same seed gives the same bytes on every machine");
  line.option("users", options.users, "number of lists, 1 ... 100000");
  line.option("titles", options.titles, "number of titles, 20 ... 100000; no list is longer");
  line.parse(argc, argv);
  cli::check_range("users", options.users, 1, 100'000);
  cli::check_range("titles", options.titles, 20, 100'000);
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("make_report_lists", argc, argv, [](int count, char** words) {
    make_report_lists(parse(count, words));
    return 0;
  });
}
