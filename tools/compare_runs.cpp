// Tells two models apart that ranked for the same users: is the difference more than chance?

#include "common/cli.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path a, b;
  std::string row, against;
  std::uint64_t seed = 42;
  bool json = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line(
      "compare_runs",
      "compares the ranks of two evaluations (evaluate_model --ranks), user by user",
      "evaluate_model --model a/models --ranks a.json; evaluate_model --model b/models --ranks "
      "b.json\n  compare_runs --a a.json --b b.json\n  compare_runs --a a.json --against Markov");
  line.option("a", options.a, "ranks that evaluate_model wrote");
  line.option("b", options.b, "the same of another model; empty: of the same file");
  line.option("row", options.row, "whose ranks of the first; empty: the model's");
  line.option("against", options.against,
              "whose ranks of the second: the model's if empty, or Markov, popularity, ...");
  line.option("seed", options.seed, "of the draws");
  line.flag("json", options.json, "print JSON");
  line.parse(argc, argv);
  if (options.a.empty()) throw cli::UsageError("--a names no file");
  if (options.b.empty() && options.against.empty()) {
    throw cli::UsageError("--b or --against: what is it to be compared with?");
  }
  return options;
}

// One model's ranks, of the users of a file.
struct Ranked {
  std::string name, data, held_out;
  std::vector<std::string> users;
  std::vector<std::size_t> ranks;
};

Ranked read_ranks(const Path& path, const std::string& row) {
  Ranked ranked;
  const Json json = read_sealed_json(path);
  in_context(path_text(path), [&] {
    ranked.data = json.at("data").string();
    ranked.held_out = json.at("held_out").string();
    for (const Json& user : json.at("users").array()) ranked.users.push_back(user.string());
    const bool of_model = !json.at("model").is_null();
    require(of_model || !row.empty(),
            "of baselines alone: --row or --against must say whose ranks");
    const Json::Object& rows = json.at("ranks").object();
    std::string names;
    for (const auto& member : rows) names += join(names.empty() ? "" : ", ", shown(member.first));
    const auto found = std::find_if(rows.begin(), rows.end(), [&](const auto& member) {
      return row.empty() || member.first == row;
    });
    require(found != rows.end(), "has no ranks of \"", shown(row), "\", only of ", names);
    ranked.name = found->first;
    for (const Json& rank : found->second.array()) {
      require(rank.integer() > 0, "rank ", rank.integer(), ", expected 1 or more");
      ranked.ranks.push_back(static_cast<std::size_t>(rank.integer()));
    }
    require(ranked.ranks.size() == ranked.users.size(), ranked.ranks.size(), " ranks of ",
            ranked.users.size(), " users");
  });
  return ranked;
}

// A metric of both, their difference and its interval.
struct Line {
  std::string name;
  double a, b, low, high;

  std::string words() const {
    if (low > 0) return "the first is ahead";
    if (high < 0) return "the second is ahead";
    return "may be chance";
  }
};

std::vector<Line> compare(const Ranked& a, const Ranked& b, std::uint64_t seed) {
  const auto values = [](const RankMetrics& metrics) {
    std::vector<double> all;
    RankMetrics::fields(metrics, [&](const std::string&, double value) { all.push_back(value); });
    return all;
  };
  const RankMetrics of_a = rank_metrics(a.ranks);
  const RankIntervals interval = paired_intervals(a.ranks, b.ranks, seed);
  const std::vector<double> first = values(of_a), second = values(rank_metrics(b.ranks)),
                            low = values(interval.low), high = values(interval.high);
  std::vector<Line> lines;
  RankMetrics::fields(of_a, [&](const std::string& name, double) {
    const std::size_t i = lines.size();
    lines.push_back({name, first[i], second[i], low[i], high[i]});
  });
  return lines;
}

void print_json(const Ranked& a, const Ranked& b, const std::vector<Line>& lines) {
  Json json, metrics;
  for (const Line& line : lines) {
    Json entry;
    entry.set("a", line.a);
    entry.set("b", line.b);
    entry.set("difference", line.a - line.b);
    entry.set("low", line.low);
    entry.set("high", line.high);
    entry.set("verdict", line.words());
    metrics.set(line.name, std::move(entry));
  }
  json.set("a", a.name);
  json.set("b", b.name);
  json.set("held_out", a.held_out);
  json.set("users", a.users.size());
  json.set("metrics", std::move(metrics));
  std::cout << json.text(2) << "\n";
}

void print_text(const Ranked& a, const Ranked& b, const std::vector<Line>& lines) {
  std::printf("%s (first) and %s (second), %s item of %s users, all unseen items\n",
              shown(a.name).c_str(), shown(b.name).c_str(), a.held_out.c_str(),
              cli::grouped(a.users.size()).c_str());
  std::printf("  %-8s  %8s  %8s  %10s  %-20s\n", "", "first", "second", "difference", "95% of it");
  for (const Line& line : lines) {
    if (line.name == "ndcg@1") continue;  // which is hr@1
    std::printf("  %-8s  %8.4f  %8.4f  %+10.4f  %+.4f ... %+.4f   %s\n", line.name.c_str(), line.a,
                line.b, line.a - line.b, line.low, line.high, line.words().c_str());
  }
  std::printf("(Other users might change it so much; other seeds of training are not in it.)\n");
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Path& second = options.b.empty() ? options.a : options.b;
  const Ranked a = read_ranks(options.a, options.row), b = read_ranks(second, options.against);
  require(a.data == b.data && a.held_out == b.held_out && a.users == b.users, second,
          ": ranks of other users than ", options.a, ", or of other data or other held-out items");
  const std::vector<Line> lines = compare(a, b, options.seed);
  if (options.json)
    print_json(a, b, lines);
  else
    print_text(a, b, lines);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("compare_runs", argc, argv, run); }
