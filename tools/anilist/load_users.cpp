// Fetches the anime lists of the users named in a file, as histories.jsonl.

#include <iomanip>
#include <unordered_set>

#include "anilist/anilist.hpp"

namespace {

using namespace bert4rec;

struct Options {
  anilist::Options client;
  Path file = "datas_user.txt", data = "data/anilist";
  std::size_t min_anime = 20;
  double max_age = 30;
  bool refresh = false;
};

Options parse(int argc, char** argv) {
  Options o;
  cli::CommandLine line(
      "load_users",
      join("fetches the anime lists of AniList users into histories.jsonl.\n\n"
           "The file has one name a line; blank lines and what follows # are left out. Lists are "
           "kept in\nDATA/.cache, so that none is fetched twice in --max-age days. Users who are "
           "unknown,\nprivate, or have too few titles are left out, and reported. Planned titles "
           "are stored but\ndo not count.\n\n",
           anilist::terms),
      "load_users --file datas_user.txt --min-anime 20");
  line.option("file", o.file, "the names");
  line.option("min-anime", o.min_anime, "fewest titles of the catalogue a user must have watched");
  line.option("data", o.data, "folder with items.jsonl; histories.jsonl is written there");
  line.flag("refresh", o.refresh, "fetch all lists anew (after an interruption go on without it)");
  anilist::add_max_age(line, o.max_age);
  anilist::add_options(line, o.client);
  line.parse(argc, argv);
  anilist::check_max_age(o.max_age);
  // A history without a single item of the catalogue is no history.
  if (o.min_anime < 1) throw cli::UsageError("--min-anime 0: expected at least 1");
  return o;
}

// ---- Names ------------------------------------------------------------------------------------

std::vector<std::string> read_names(const Path& path) {
  const std::string text = read_file(path);
  std::vector<std::string> names;
  std::unordered_set<std::string> seen;
  for_each_line(text, [&](std::string_view line, std::size_t number) {
    line = line.substr(0, line.find('#'));
    const std::size_t begin = line.find_first_not_of(" \t");
    if (begin == line.npos) return;
    const std::string name(line.substr(begin, line.find_last_not_of(" \t") + 1 - begin));
    require(bert4rec::detail::is_utf8(name), path, ":", number,
            ": invalid UTF-8: ", shown(name, 60));
    require(name.size() <= 60 && name.find('\0') == name.npos, path, ":", number,
            ": not a user name: ", shown(name, 60));
    // AniList does not tell Alice from alice.
    if (seen.insert(cli::lower_case(name)).second) names.push_back(name);
  });
  require(!names.empty(), path, ": no user names");
  return names;
}

// A name as a file name: letters and digits as they are, anything else as %2F.
std::string file_name(std::string_view name) {
  static constexpr char hex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : cli::lower_case(name)) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    out += plain ? std::string(1, c) : std::string{'%', hex[byte >> 4], hex[byte & 15]};
  }
  return out + ".json";
}

// ---- Lists ------------------------------------------------------------------------------------

// {"entries": [...]}, or {"problem": "..."} for a user who cannot be read.
Json fetch_record(anilist::Client& client, const std::string& name) {
  Json record;
  try {
    Json::Array entries;
    for (const anilist::Entry& entry : anilist::fetch_list(client, name)) {
      entries.push_back(to_json(entry));
    }
    record.set("entries", std::move(entries));
  } catch (const anilist::NotFound& error) {
    record.set("problem", error.what());
  }
  return record;
}

struct Counts {
  std::size_t watched = 0, known = 0, planned = 0;  // known: watched and in the catalogue
};

Counts count_entries(const Json& entries, const Catalogue& catalogue) {
  Counts counts;
  for (const Json& entry : entries.array()) {
    const Json& status = entry.at("status");
    const bool planned = status.is_string() && status.string() == "PLANNING";
    counts.planned += planned;
    counts.watched += !planned;
    counts.known += !planned && catalogue.find(entry.at("id").integer()) >= 0;
  }
  return counts;
}

// ---- The run ----------------------------------------------------------------------------------

// Goes through the names; a line of the table for each.
class Loader {
 public:
  Loader(const Options& options, const Catalogue& catalogue, std::vector<std::string> names)
      : options_(options),
        catalogue_(catalogue),
        names_(std::move(names)),
        client_(options.client, [this](const std::string& words) { show(words); }),
        store_(client_, options.data / ".cache" / "users", options.max_age) {
    for (const std::string& name : names_) width_ = std::max(width_, shown(name).size());
  }

  // The lines of histories.jsonl.
  std::string run() {
    if (options_.refresh) store_.clear();
    store_.create();
    row("user", {"watched", "in catalogue", "planned"}, "");
    std::string text;
    for (const std::string& name : names_) {
      show(shown(name));
      text += load(name);
      ++done_;
    }
    bar_.clear();
    return text;
  }

  // Of users who cannot be read: the next run asks again.
  void forget_problems() const {
    for (const std::string& name : problems_) store_.forget(file_name(name));
  }

  const std::string& endpoint() const { return client_.endpoint(); }
  const anilist::Store& store() const { return store_; }
  std::size_t kept = 0, failed = 0;

 private:
  void show(const std::string& words) { bar_.show(done_, names_.size(), "users", words); }

  // The user's line, or nothing. One list that the server cannot give does not hold up the others;
  // two in a row mean that the server is down.
  std::string load(const std::string& name) {
    try {
      const Json record = store_.get(file_name(name), cli::lower_case(name),
                                     [&] { return fetch_record(client_, name); });
      failed_before_ = false;
      return judge(name, record);
    } catch (const anilist::ServerFailure& error) {
      if (std::exchange(failed_before_, true)) throw;
      ++failed;
      row(name, {}, join("failed: ", error.what()));
      return {};
    }
  }

  std::string judge(const std::string& name, const Json& record) {
    if (const Json* problem = record.find("problem")) {
      problems_.push_back(name);
      row(name, {}, join("left out: ", shown(problem->string())));
      return {};
    }
    const Json& entries = record.at("entries");
    const Counts counts = count_entries(entries, catalogue_);
    const bool good = counts.known >= options_.min_anime;
    const bool empty = entries.array().empty();
    row(name, {join(counts.watched), join(counts.known), join(counts.planned)},
        good    ? "kept"
        : empty ? "left out: empty list"
                : "left out: too few");
    if (!good) return {};
    ++kept;
    Json line;
    line.set("user", name);
    line.set("entries", entries);
    return line.text() + "\n";
  }

  void row(const std::string& name, const std::array<std::string, 3>& numbers,
           const std::string& outcome) {
    bar_.clear();
    std::cout << std::left << std::setw(static_cast<int>(width_)) << shown(name) << std::right;
    for (const std::string& number : numbers) std::cout << std::setw(14) << number;
    std::cout << (outcome.empty() ? "" : "  ") << outcome << std::endl;
  }

  const Options& options_;
  const Catalogue& catalogue_;
  std::vector<std::string> names_, problems_;
  std::size_t width_ = 4, done_ = 0;
  bool failed_before_ = false;
  cli::ProgressBar bar_;
  anilist::Client client_;
  anilist::Store store_;
};

// Ids mean the same only on one server.
void check_server(const Options& options, const std::string& endpoint) {
  const std::optional<Json> source = dataset_source(options.data);
  const Json* const other = source ? source->find("endpoint") : nullptr;
  require(other == nullptr || other->string() == endpoint, options.data / "items.jsonl",
          ": comes from another server, ", other == nullptr ? "" : other->string(), ", than ",
          endpoint);
}

int load_users(const Options& options) {
  const std::vector<std::string> names = read_names(options.file);
  const Path items = options.data / "items.jsonl";
  require(path_exists(items), items, ": is not there; prepare_dataset fetches it");
  DatasetWriter writer(options.data);
  const Catalogue catalogue = Catalogue::load(items);
  Loader loader(options, catalogue, names);
  check_server(options, loader.endpoint());
  const std::string text = loader.run();
  const Path output = options.data / "histories.jsonl";
  if (!text.empty()) {
    writer.histories(text);
    writer.commit();
  }
  loader.forget_problems();
  const anilist::Store& store = loader.store();
  std::cout << loader.kept << " of " << names.size() << " users kept; " << store.fetched_count
            << " lists fetched, " << store.kept_count
            << " from the cache (--refresh fetches anew)\n";
  if (store.damaged_count > 0) {
    std::cout << store.damaged_count << " kept lists were damaged, and fetched anew\n";
  }
  if (loader.failed > 0) std::cout << loader.failed << " failed; run it again to try once more\n";
  require(!text.empty(), "no user is left with ", options.min_anime, " titles of the catalogue; ",
          output, " was not written");
  std::cout << "written to " << path_text(output) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("load_users", argc, argv, [](int count, char** words) {
    const Options options = parse(count, words);
    return anilist::until_interrupted(count, words, [&] { return load_users(options); });
  });
}
