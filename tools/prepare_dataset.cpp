// Fetches the catalogue: the first titles of AniList in some order, as items.jsonl.

#include <unordered_set>

#include "anilist.hpp"

namespace {

using namespace bert4rec;

constexpr std::size_t page_size = 50, most_titles = 5000;

struct Options {
  anilist::Options client;
  std::size_t count = 3000;
  std::string sort = "POPULARITY_DESC";
  Path output = "data/anilist";
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
  anilist::add_options(line, o.client);
  line.parse(argc, argv);
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

struct Page {
  std::vector<Item> items;
  bool has_next = false;
};

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

// Of what AniList says about pages only hasNextPage is to be trusted.
Page parse_page(std::string_view data) {
  Page page;
  bool has_media = false, has_info = false;
  anilist::read_root(data, "Page", [&](JsonReader& reader, std::string_view name) {
    if (name == "media") {
      has_media = true;
      anilist::read_array(reader, [&] { page.items.push_back(read_media(reader)); });
    } else if (name == "pageInfo") {
      reader.object([&](std::string_view field) {
        if (field != "hasNextPage") return void(reader.skip());
        has_info = true;
        page.has_next =
            anilist::read_nullable(reader, [&] { return reader.boolean(); }).value_or(false);
      });
    } else {
      reader.skip();
    }
  });
  require(has_media && has_info, "the answer: missing field \"",
          has_media ? "hasNextPage" : "media", "\"");
  return page;
}

// Pages that were fetched, kept until all are there. The folder is taken away by renaming it, so
// that it is there as a whole or not at all.
class PageStore {
 public:
  explicit PageStore(const Options& options)
      : cache_(options.output / ".cache"),
        folder_(cache_ / join("pages_", options.sort, options.adult ? "_adult" : "")) {
    std::filesystem::remove_all(cache_ / "done");
    if (options.refresh && exists()) clear();
  }

  bool exists() const { return std::filesystem::exists(folder_); }
  void create() const {
    make_folder(folder_);
    remove_stale_temporaries(folder_);
  }
  void clear() const {
    std::filesystem::rename(folder_, cache_ / "done");
    std::filesystem::remove_all(cache_ / "done");
    std::error_code not_empty;
    std::filesystem::remove(cache_, not_empty);
  }

  // A page is stored only after it has been understood as a whole.
  Page get(anilist::Client& client, const Options& options, std::size_t number) const {
    const Path file = folder_ / join(number, ".json");
    if (std::filesystem::exists(file)) {
      return in_context(join(file, " (--refresh starts anew)"),
                        [&] { return parse_page(read_file(file)); });
    }
    std::string data;
    Page page = in_context(join("page ", number), [&] {
      data = client.ask(page_query, page_variables(options, number));
      return parse_page(data);
    });
    write_file(file, data);
    return page;
  }

 private:
  Path cache_, folder_;
};

// ---- The whole --------------------------------------------------------------------------------

// The first `count` titles as JSONL, each once.
std::string fetch_items(const Options& options, const PageStore& store) {
  const std::size_t pages = (options.count + page_size - 1) / page_size;
  std::size_t number = 1;
  cli::ProgressBar bar;
  const auto show = [&](const std::string& words) {
    bar.show(std::min(number - 1, pages), pages, "pages", words);
  };
  const double pace = options.client.requests_per_minute;
  anilist::Client client(options.client, show);
  std::unordered_set<std::int64_t> seen;
  std::string text;
  for (bool more = true; more && seen.size() < options.count; ++number) {
    if (number > most_titles / page_size) break;
    const auto left = static_cast<double>(pages - std::min(number - 1, pages));
    show(pace > 0 ? cli::duration(60 / pace * left) + " left" : "");
    const Page page = store.get(client, options, number);
    const std::size_t before = seen.size();
    for (const Item& item : page.items) {
      if (seen.size() == options.count) break;
      if (seen.insert(std::get<std::int64_t>(item.id)).second) text += to_json(item).text() + "\n";
    }
    more = page.has_next;
    require(!more || seen.size() > before, "page ", number,
            " brings no new title, yet the server says that there are more: something is wrong "
            "with it");
  }
  require(!seen.empty(), options.client.endpoint, ": has no titles");
  return text;
}

// What was asked for, and a checksum of what came: says whether items.jsonl is the answer to it.
std::string source_text(const Options& options, const std::string& items) {
  Json source;
  source.set("source", options.client.endpoint);
  source.set("count", options.count);
  source.set("sort", options.sort);
  source.set("adult", options.adult);
  source.set("titles", std::count(items.begin(), items.end(), '\n'));
  source.set("checksum", join(checksum(items)));
  return source.text(2) + "\n";
}

int prepare(const Options& options) {
  make_folder(options.output);
  const FolderLock lock(options.output);
  remove_stale_temporaries(options.output);
  const Path items = options.output / "items.jsonl", source = options.output / "items_source.json";
  const PageStore store(options);
  const bool has_items = std::filesystem::exists(items);
  const bool has_source = std::filesystem::exists(source);
  if (!options.refresh && has_items && !store.exists()) {
    require(has_source, items, ": was not made by prepare_dataset; --refresh replaces it");
    if (read_file(source) == source_text(options, read_file(items))) {
      std::cout << path_text(items) << " is complete; --refresh fetches it anew\n";
      return 0;
    }
  }
  store.create();
  const std::string text = fetch_items(options, store);
  // The source first: killed in between, it does not fit the items, and all is put together again.
  const std::string origin = source_text(options, text);
  write_file(source, origin);
  write_file(items, text);
  store.clear();
  const auto titles = static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
  std::cout << cli::grouped(titles) << " titles written to " << path_text(items) << "\n";
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
