// Fetches the catalogue: the first titles of AniList in some order, as items.jsonl.

#include <unordered_set>

#include "anilist/anilist.hpp"

namespace {

using namespace bert4rec;

constexpr std::size_t page_size = 50, most_titles = 5000;

struct Options {
  anilist::Options client;
  std::size_t count = 3000;
  std::string sort = "POPULARITY_DESC";
  Path output = "data/anilist";
  double max_age = 1;  // pages of different days have gaps and doubles between them
  bool adult = false, refresh = false;
};

Options parse(int argc, char** argv) {
  Options o;
  cli::CommandLine line("prepare_dataset",
                        join("fetches titles of AniList, 50 a request, into items.jsonl.\n\n"
                             "What is fetched is kept until all is there: after an interruption, "
                             "start it again.\n\n",
                             anilist::terms),
                        "prepare_dataset --count 500");
  line.option("count", o.count, "how many titles; AniList hands out 5000 at most");
  line.option("sort", o.sort, "the order, a MediaSort of AniList");
  line.option("output", o.output, "folder to write");
  line.flag("adult", o.adult, "with the titles that AniList marks as adult");
  line.flag("refresh", o.refresh, "fetch anew (after an interruption go on without it)");
  anilist::add_max_age(line, o.max_age);
  anilist::add_options(line, o.client);
  line.parse(argc, argv);
  anilist::check_max_age(o.max_age);
  if (o.count < 1 || o.count > most_titles) {
    throw cli::UsageError(join("--count ", o.count, ": expected 1 ... ", most_titles,
                               ": AniList's API refuses pages beyond its first 5,000 entries"));
  }
  if (o.sort.empty() || o.sort.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != o.sort.npos) {
    throw cli::UsageError(join("--sort ", o.sort, ": expected a name like POPULARITY_DESC"));
  }
  return o;
}

// ---- Pages ------------------------------------------------------------------------------------

// Ties in the order are settled by id, or titles would move between pages.
constexpr std::string_view page_query =
    "query ($page: Int, $perPage: Int, $sort: [MediaSort], $adult: Boolean) { "
    "Page(page: $page, perPage: $perPage) { pageInfo { hasNextPage } "
    "media(type: ANIME, sort: $sort, isAdult: $adult) { id title { romaji english native } genres "
    "format status averageScore popularity startDate { year month day } } } }";

Json page_variables(const Options& options, std::size_t number) {
  Json::Array sort{options.sort};
  if (options.sort != "ID" && options.sort != "ID_DESC") sort.emplace_back("ID");
  Json variables;
  variables.set("page", number);
  variables.set("perPage", page_size);
  variables.set("sort", std::move(sort));
  if (!options.adult) variables.set("adult", false);  // a filter that is not sent does not filter
  return variables;
}

void read_titles(JsonReader& reader, Item& item) {
  if (reader.is_null()) return reader.null();
  reader.object([&](std::string_view name) {
    std::string* title = name == "romaji"    ? &item.romaji
                         : name == "english" ? &item.english
                         : name == "native"  ? &item.native
                                             : nullptr;
    if (title == nullptr) return void(reader.skip());
    *title = anilist::read_text(reader);
  });
}

Item read_media(JsonReader& reader) {
  Item item;
  const auto up_to = [&](std::int64_t high) {
    return [&reader, high] { return anilist::read_integer(reader, 0, high); };
  };
  reader.object([&](std::string_view name) {
    if (name == "id") {
      item.id = anilist::read_id(reader);
    } else if (name == "title") {
      read_titles(reader, item);
    } else if (name == "genres") {
      anilist::read_array(reader, [&] { item.genres.emplace_back(reader.string()); });
    } else if (name == "format") {
      item.format = anilist::read_text(reader);
    } else if (name == "status") {
      item.status = anilist::read_text(reader);
    } else if (name == "averageScore") {
      item.average_score = anilist::read_nullable(reader, up_to(100));
    } else if (name == "popularity") {
      item.popularity = anilist::read_nullable(reader, up_to(1'000'000'000'000));
    } else if (name == "startDate") {
      item.start_date = anilist::read_date(reader).text();
    } else {
      reader.skip();
    }
  });
  if (item.id == ItemId()) reader.error("a title without the field \"id\"");
  return item;
}

// {"items": [{"id": ...}, ...], "more": whether another page follows}. Of what AniList says about
// pages only hasNextPage is to be trusted.
Json read_page(std::string_view data) {
  Json::Array items;
  bool more = false, has_media = false, has_info = false;
  anilist::read_root(data, "Page", [&](JsonReader& reader, std::string_view name) {
    if (name == "media") {
      has_media = true;
      anilist::read_array(reader, [&] { items.push_back(to_json(read_media(reader))); });
    } else if (name == "pageInfo") {
      reader.object([&](std::string_view field) {
        if (field != "hasNextPage") return void(reader.skip());
        has_info = true;
        more = anilist::read_nullable(reader, [&] { return reader.boolean(); }).value_or(false);
      });
    } else {
      reader.skip();
    }
  });
  require(has_media && has_info, "the answer: missing field \"",
          has_media ? "hasNextPage" : "media", "\"");
  Json page;
  page.set("items", std::move(items));
  page.set("more", more);
  return page;
}

// ---- The whole --------------------------------------------------------------------------------

// Fetches the first titles; its pages are kept until all are there.
class Fetch {
 public:
  explicit Fetch(const Options& options)
      : options_(options),
        client_(options.client, [this](const std::string& words) { show(words); }),
        cache_(options.output / ".cache"),
        store_(client_, cache_ / join("pages_", options.sort, options.adult ? "_adult" : ""),
               options.max_age) {}

  const std::string& endpoint() const { return client_.endpoint(); }
  const anilist::Store& store() const { return store_; }

  // The first `count` titles as JSONL, each once.
  std::string run() {
    store_.create();
    std::unordered_set<std::int64_t> seen;
    std::string text;
    bool more = true;
    for (; more && seen.size() < options_.count && done_ < most_titles / page_size; ++done_) {
      show_time_left();
      const Json page = get(done_ + 1);
      const std::size_t before = seen.size();
      for (const Json& item : page.at("items").array()) {
        if (seen.size() == options_.count) break;
        if (seen.insert(item.at("id").integer()).second) text += item.text() + "\n";
      }
      more = page.at("more").boolean();
      require(!more || seen.size() > before, "page ", done_ + 1,
              " brings no new title, yet the server says that there are more: something is wrong "
              "with it");
    }
    bar_.clear();
    require(!seen.empty(), endpoint(), ": has no titles");
    return text;
  }

  void forget_pages() const {
    store_.clear();
    std::error_code not_empty;
    std::filesystem::remove(cache_, not_empty);
  }

 private:
  // Kept only after it has been understood as a whole.
  Json get(std::size_t number) {
    const Json request = page_variables(options_, number);
    return store_.get(join(number, ".json"), request, [&] {
      return in_context(join("page ", number),
                        [&] { return read_page(client_.ask(page_query, request)); });
    });
  }

  void show(const std::string& words) {
    bar_.show(std::min(done_, pages_), pages_, "pages", words);
  }
  void show_time_left() {
    const double pace = options_.client.requests_per_minute;
    const auto left = static_cast<double>(pages_ - std::min(done_, pages_));
    show(pace > 0 ? cli::duration(60 / pace * left) + " left" : "");
  }

  const Options& options_;
  const std::size_t pages_ = (options_.count + page_size - 1) / page_size;
  std::size_t done_ = 0;
  cli::ProgressBar bar_;
  anilist::Client client_;
  Path cache_;
  anilist::Store store_;
};

// The part of dataset.json that says what was asked for, and of whom.
Json source_of(const Options& options, const std::string& endpoint) {
  Json source;
  source.set("endpoint", endpoint);
  source.set("sort", options.sort);
  source.set("adult", options.adult);
  source.set("count", options.count);
  return source;
}

// Whether the items that are there are the answer to what is asked for now. Throws where they are
// not ours, or no longer what was fetched: somebody's work might be lost.
bool is_complete(const Path& items, const Json& source) {
  try {
    const std::optional<Json> origin = dataset_source(items.parent_path());
    require(origin && origin->find("endpoint") != nullptr, items,
            ": was not made by prepare_dataset");
    Catalogue::load(items);
    const auto same = [&](const auto& fact) {
      const Json* value = origin->find(fact.first);
      return value != nullptr && value->text() == fact.second.text();
    };
    return std::all_of(source.object().begin(), source.object().end(), same);
  } catch (const Error& error) {
    fail(error.what(), "; --refresh replaces it");
  }
}

int prepare(const Options& options) {
  Fetch fetch(options);
  DatasetWriter writer(options.output);
  const Path items = options.output / "items.jsonl";
  Json source = source_of(options, fetch.endpoint());
  if (options.refresh) fetch.forget_pages();
  if (!options.refresh && path_exists(items) && !fetch.store().exists() &&
      is_complete(items, source)) {
    std::cout << path_text(items) << " is complete; --refresh fetches it anew\n";
    return 0;
  }
  const std::string text = fetch.run();
  source.set("tool", join("prepare_dataset ", BERT4REC_VERSION_STRING));
  writer.items(text);
  writer.source(std::move(source));
  writer.commit();
  fetch.forget_pages();
  const auto titles = static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
  std::cout << cli::grouped(titles) << " titles written to " << path_text(items) << "\n";
  if (const std::size_t damaged = fetch.store().damaged_count) {
    std::cout << damaged << " kept pages were damaged, and fetched anew\n";
  }
  if (titles < options.count) std::cout << "the server has no more in this order\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("prepare_dataset", argc, argv, [](int count, char** words) {
    const Options options = parse(count, words);
    return anilist::until_interrupted(count, words, [&] { return prepare(options); });
  });
}
