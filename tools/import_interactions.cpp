// Turns tables of interactions into a folder of items.jsonl and histories.jsonl.

#include "common/tables.hpp"

namespace {

using namespace bert4rec;
using tables::absent;
using tables::Table;

struct Options {
  Path input, items, item_map, output;
  std::string delimiter, user_column, item_column, time_column, rating_column, id_column,
      title_column, genres_column;
  double min_rating = -std::numeric_limits<double>::infinity();
  std::size_t min_user = 1, min_item = 1;
  bool no_header = false, no_time = false, by_rating = false;
};

constexpr const char* summary =
    R"(reads who consumed what from a table, and writes items.jsonl and histories.jsonl.

Understood: lines of `user item`; `user::item::rating::time`; TSV and CSV (RFC 4180) with a header,
whose columns are found by common names (user_id, item_id, timestamp, date, rating, title, genres)
or named by flags; without a header, see --no-header. UTF-8, else Latin-1. A row longer or shorter
than the header, a name or id that stands twice, or a value that is no number is an error, with its
line; then nothing is written.

With times, each history is sorted by them; without, it keeps the order of the lines. Times are
ISO 8601 (2024-05-31, 2024-05-31T12:30:15.5+02:00; UTC if there is no zone) or Unix times, with or
without a fraction: below 10^11 seconds, below 10^14 milliseconds, below 10^17 microseconds, then
nanoseconds; all of a table must be in one unit. They are sorted by the full value and stored in
whole seconds, rounded down.

A PATH of a table may be a pipe, or - for the standard input: gzip -dc x.gz | ... --input -)";

Options parse(int argc, char** argv) {
  Options o;
  cli::CommandLine line(
      "import_interactions", summary,
      "import_interactions --input ratings.dat --items movies.dat --min-user 5 --min-item 5 \\\n"
      "      --output data/movies");
  line.option("input", o.input, "table of interactions");
  line.option("items", o.items, "table of items: id, title, genres");
  line.option("item-map", o.item_map,
              "lines of `id id2`: an item id of --input, and the id --items has for it");
  line.option("output", o.output, "folder to write");
  line.option("min-user", o.min_user, "fewest interactions a user must have; until stable");
  line.option("min-item", o.min_item, "fewest interactions an item must have; until stable");
  line.option("min-rating", o.min_rating, "leave out lower ratings; then every row must have one");
  line.option("delimiter", o.delimiter,
              "between columns: tab, comma, space, :: or any text; guessed");
  line.flag("no-header", o.no_header,
            "the first line is data: columns are user, item, rating, time");
  line.option("user-column", o.user_column,
              "header of the user id, or with --no-header its number from 1");
  line.option("item-column", o.item_column, "header of the item id, or its number");
  line.option("time-column", o.time_column, "header of the time, or its number");
  line.option("rating-column", o.rating_column, "header of the rating, or its number");
  line.flag("no-time", o.no_time, "read no times: keep the order of the lines");
  line.option("id-column", o.id_column, "in --items: header of the id, or its number");
  line.option("title-column", o.title_column, "in --items: header of the title, or its number");
  line.option("genres-column", o.genres_column, "in --items: header of the genres, or its number");
  line.groups({
      {"Tables and output", {"input", "items", "item-map", "output"}},
      {"What is left out", {"min-user", "min-item", "min-rating"}},
      {"How the tables are written", {"delimiter", "no-header", "no-time"}},
      {"Columns, where their names do not tell", {}},
  });
  line.parse(argc, argv);
  o.by_rating = line.given("min-rating");
  if (o.input.empty() || o.output.empty()) throw cli::UsageError("--input and --output are needed");
  if (!o.item_map.empty() && o.items.empty()) throw cli::UsageError("--item-map needs --items");
  if (o.no_time && !o.time_column.empty()) {
    throw cli::UsageError("--no-time and --time-column exclude each other");
  }
  int streams = 0;
  for (const Path* path : {&o.input, &o.items, &o.item_map}) {
    streams += tables::is_standard_input(*path);
  }
  if (streams > 1) throw cli::UsageError("only one table can come from the standard input");
  return o;
}

using Names = std::vector<std::string_view>;
const Names user_names{"user_id", "user_ids", "userid", "user", "uid", "username", "reviewerid"};
const Names item_names{"item_id",  "item_ids",  "itemid",      "item",        "iid",
                       "movie_id", "movieid",   "anime_id",    "anime_ids",   "book_id",
                       "bookid",   "isbn",      "app_id",      "appid",       "game_id",
                       "track_id", "song_id",   "artist_id",   "artistid",    "product_id",
                       "asin",     "productid", "parent_asin", "business_id", "id"};
const Names time_names{"timestamp", "time",       "at",        "unixreviewtime", "unix_time",
                       "ts",        "datetime",   "date",      "created_at",     "updated_at",
                       "rated_at",  "watched_at", "played_at", "date_added"};
const Names rating_names{"rating", "score", "overall", "feedback", "book_rating"};
const Names title_names{"title", "movie_title", "name", "item_title", "book_title"};
const Names genres_names{"genres", "genre", "class", "categories"};

// ---- Interactions -----------------------------------------------------------------------------

// Numbers names in the order of their appearance.
class Numbering {
 public:
  std::uint32_t number(std::string_view name) {
    const auto found = numbers_.find(name);
    if (found != numbers_.end()) return found->second;
    const auto next = static_cast<std::uint32_t>(names_.size());
    names_.push_back(std::make_unique<std::string>(name));
    numbers_.emplace(*names_.back(), next);
    return next;
  }
  const std::string& name(std::uint32_t number) const { return *names_[number]; }
  std::size_t size() const { return names_.size(); }

 private:
  std::vector<std::unique_ptr<std::string>> names_;
  std::unordered_map<std::string_view, std::uint32_t> numbers_;
};

struct Interaction {
  std::uint32_t user, item;
  tables::Moment at;
};

struct Interactions {
  Numbering users, items;
  std::vector<Interaction> rows;
  tables::TimeColumn times;
  bool timed = false;
  std::size_t below_rating = 0;
  std::string columns;  // which were read
};

struct Columns {
  std::size_t user, item, rating, time;
};

Columns find_columns(Table& table, const Options& options) {
  const std::vector<std::size_t> found = table.find_columns(
      {{"user ids", "--user-column", options.user_column, user_names, true},
       {"item ids", "--item-column", options.item_column, item_names, true},
       {"ratings", "--rating-column", options.rating_column, rating_names, options.by_rating},
       {"times", "--time-column", options.time_column, time_names, false}},
      options.no_header);
  require(!table.headed() || !options.no_header, table.first_line(),
          ": --no-header is given, but this line names the columns");
  return {found[0], found[1], found[2], options.no_time ? absent : found[3]};
}

std::string describe(const Columns& columns, const Table& table, bool by_rating) {
  std::string text =
      join("user ", table.column_name(columns.user), ", item ", table.column_name(columns.item));
  if (by_rating) text += join(", rating ", table.column_name(columns.rating));
  if (columns.time != absent) text += join(", time ", table.column_name(columns.time));
  if (!by_rating && columns.rating != absent) text += "; ratings are not read (--min-rating)";
  return text;
}

// A column that was taken for ids unasked, and may number the rows instead: one called `id` as the
// item, and the first one, as the user, where there is no header.
class RowNumberCheck {
 public:
  RowNumberCheck(const Table& table, const Columns& columns, const Options& options)
      : table_(table) {
    if (!table.headed()) {
      if (options.user_column.empty()) column_ = columns.user, flag_ = "--user-column";
    } else if (options.item_column.empty() &&
               tables::column_key(table.header()[columns.item]) == "id") {
      column_ = columns.item, flag_ = "--item-column";
      for (std::size_t i = 0; i < table.header().size(); ++i) check_other(i, columns);
    }
  }

  void see(const std::vector<std::string_view>& fields) {
    if (column_ == absent || !counts_) return;
    const auto number = tables::plain_integer(fields[column_]);
    const auto value = static_cast<std::uint64_t>(number.value_or(0));
    counts_ = number.has_value() && (rows_ == 0 || value == last_ + 1);
    last_ = value;
    ++rows_;
  }

  void finish() const {
    if (column_ == absent || !counts_ || rows_ < 3) return;
    fail(table_.first_line(), ": column ", name(), " counts the rows: name the column of ids with ",
         flag_);
  }

 private:
  std::string name() const { return table_.column_name(column_); }

  // Beside `id`, only columns of known use (and those without a name that pandas writes).
  void check_other(std::size_t i, const Columns& columns) const {
    const std::string key = tables::column_key(table_.header()[i]);
    const bool known = i == columns.user || i == columns.item || i == columns.rating ||
                       i == columns.time || key.empty() || key == "index" || key == "unnamed";
    require(known, table_.first_line(), ": is ", name(), " the item, or a number of the row and ",
            table_.column_name(i), " the item? Name it with --item-column");
  }

  const Table& table_;
  std::size_t column_ = absent;
  std::string_view flag_;
  bool counts_ = true;
  std::uint64_t last_ = 0;
  std::size_t rows_ = 0;
};

Interactions read_interactions(const Options& options) {
  Table table(options.input, options.delimiter);
  const Columns columns = find_columns(table, options);
  RowNumberCheck row_numbers(table, columns, options);
  Interactions result;
  result.timed = columns.time != absent;
  result.columns = describe(columns, table, options.by_rating);
  table.for_each_row([&](const std::vector<std::string_view>& fields) {
    const std::string_view user = fields[columns.user], item = fields[columns.item];
    require(!user.empty(), "the user id is empty");
    require(!item.empty(), "the item id is empty");
    row_numbers.see(fields);
    if (options.by_rating &&
        tables::number_of(fields[columns.rating], "the rating") < options.min_rating) {
      ++result.below_rating;
      return;
    }
    tables::Moment at;
    if (result.timed) at = result.times.read(fields[columns.time], table.line());
    result.rows.push_back({result.users.number(user), result.items.number(item), at});
  });
  row_numbers.finish();
  return result;
}

// ---- Minimum counts -----------------------------------------------------------------------------

// Drops users and items with too few interactions until all have enough: in linear time, since each
// user and each item is dropped at most once, and then its rows are visited once.
class CountFilter {
 public:
  CountFilter(Interactions& table, std::size_t min_user, std::size_t min_item)
      : table_(table), users_(table.users.size()), min_user_(min_user), min_item_(min_item) {
    list_rows();
  }

  void run() {
    std::vector<bool> dropped(table_.rows.size());
    std::vector<std::size_t> rare;  // nodes whose rows are to be dropped
    for (std::size_t node = 0; node < counts_.size(); ++node) {
      if (counts_[node] < needed(node)) rare.push_back(node);
    }
    while (!rare.empty()) {
      const std::size_t node = rare.back();
      rare.pop_back();
      for (std::size_t i = first_[node]; i < first_[node + 1]; ++i) {
        const std::size_t row = rows_[i];
        if (dropped[row]) continue;
        dropped[row] = true;
        const std::size_t other = node < users_ ? item_node(row) : user_node(row);
        if (counts_[other]-- == needed(other)) rare.push_back(other);
      }
    }
    std::size_t row = 0;
    std::erase_if(table_.rows, [&](const Interaction&) { return dropped[row++]; });
  }

 private:
  // Users and then items are nodes.
  std::size_t user_node(std::size_t row) const { return table_.rows[row].user; }
  std::size_t item_node(std::size_t row) const { return users_ + table_.rows[row].item; }
  std::size_t needed(std::size_t node) const { return node < users_ ? min_user_ : min_item_; }

  void list_rows() {
    counts_.resize(users_ + table_.items.size());
    for (std::size_t row = 0; row < table_.rows.size(); ++row) {
      ++counts_[user_node(row)];
      ++counts_[item_node(row)];
    }
    first_.resize(counts_.size() + 1);
    std::partial_sum(counts_.begin(), counts_.end(), first_.begin() + 1);
    rows_.resize(first_.back());
    std::vector<std::size_t> next(first_.begin(), first_.end() - 1);
    for (std::size_t row = 0; row < table_.rows.size(); ++row) {
      rows_[next[user_node(row)]++] = row;
      rows_[next[item_node(row)]++] = row;
    }
  }

  Interactions& table_;
  std::size_t users_, min_user_, min_item_;
  std::vector<std::size_t> counts_;        // rows left of each node
  std::vector<std::size_t> first_, rows_;  // rows_[first_[n]] ... are those of node n
};

// ---- Items ------------------------------------------------------------------------------------

struct ItemFacts {
  std::string title;
  std::vector<std::string> genres;
  std::size_t line = 0;
};

// "A|B", "A, B", or "A B" where the header says that spaces separate (RecBole's token_seq).
std::vector<std::string> split_genres(std::string_view text, bool by_spaces) {
  const char delimiter = by_spaces ? ' ' : text.find('|') != text.npos ? '|' : ',';
  std::vector<std::string> genres;
  while (!text.empty()) {
    const std::size_t length = std::min(text.find(delimiter), text.size());
    const std::string_view genre = tables::trimmed(text.substr(0, length));
    if (!genre.empty()) genres.emplace_back(genre);
    text.remove_prefix(std::min(length + 1, text.size()));
  }
  return genres;
}

std::unordered_map<std::string, ItemFacts> read_items(const Options& options) {
  std::unordered_map<std::string, ItemFacts> facts;
  if (options.items.empty()) return facts;
  Table table(options.items, "");  // --delimiter is that of --input
  const std::vector<std::size_t> columns = table.find_columns(
      {{"item ids", "--id-column", options.id_column, item_names, true},
       {"titles", "--title-column", options.title_column, title_names, false},
       {"genres", "--genres-column", options.genres_column, genres_names, false}},
      options.no_header);
  const std::size_t id = columns[0], title = columns[1], genres = columns[2];
  const bool by_spaces =
      genres != absent && table.headed() && table.header()[genres].ends_with(":token_seq");
  table.for_each_row([&](const std::vector<std::string_view>& fields) {
    require(!fields[id].empty(), "the item id is empty");
    const auto [place, is_new] = facts.try_emplace(std::string(fields[id]));
    ItemFacts& item = place->second;
    require(is_new, "item \"", shown(fields[id]), "\" stands on line ", item.line, " too");
    item.line = table.line();
    if (title != absent) item.title = fields[title];
    if (genres != absent) item.genres = split_genres(fields[genres], by_spaces);
  });
  return facts;
}

std::unordered_map<std::string, std::string> read_item_map(const Options& options) {
  std::unordered_map<std::string, std::string> map;
  if (options.item_map.empty()) return map;
  Table table(options.item_map, "");
  table.for_each_row([&](const std::vector<std::string_view>& fields) {
    require(fields.size() == 2, "expected two ids, found ", fields.size());
    const auto [place, is_new] = map.emplace(fields[0], fields[1]);
    require(is_new, "item \"", shown(fields[0]), "\" stands twice, first as \"",
            shown(place->second), "\"");
  });
  return map;
}

// The facts about each item of the interactions, by its number.
std::vector<ItemFacts> facts_of_items(const Interactions& table, const Options& options) {
  const auto facts = read_items(options);
  const auto map = read_item_map(options);
  std::vector<ItemFacts> found(table.items.size());
  for (std::uint32_t item = 0; item < found.size(); ++item) {
    const std::string& id = table.items.name(item);
    const auto mapped = map.find(id);
    const auto place = facts.find(mapped == map.end() ? id : mapped->second);
    if (place != facts.end()) found[item] = place->second;
  }
  return found;
}

// ---- Output -----------------------------------------------------------------------------------

// The items that occur, in the order of their ids. They are integers if all of them look so.
std::vector<std::uint32_t> ordered_items(const Interactions& table, bool& integers) {
  std::vector<bool> used(table.items.size());
  for (const Interaction& row : table.rows) used[row.item] = true;
  std::vector<std::uint32_t> items;
  std::vector<std::int64_t> values(table.items.size());
  integers = true;
  for (std::uint32_t item = 0; item < used.size(); ++item) {
    if (!used[item]) continue;
    items.push_back(item);
    const auto value = tables::plain_integer(table.items.name(item));
    integers = integers && value.has_value();
    values[item] = value.value_or(0);
  }
  std::sort(items.begin(), items.end(), [&](std::uint32_t a, std::uint32_t b) {
    return integers ? values[a] < values[b] : table.items.name(a) < table.items.name(b);
  });
  return items;
}

// One line for each of `items`. The title is one text: nobody knows of which language.
std::string item_lines(const Interactions& table, const std::vector<std::uint32_t>& items,
                       const std::vector<Json>& ids, const std::vector<ItemFacts>& facts) {
  std::vector<std::int64_t> popularity(table.items.size());
  for (const Interaction& row : table.rows) ++popularity[row.item];
  std::string text;
  for (const std::uint32_t item : items) {
    Json line;
    line.set("id", ids[item]);
    if (!facts[item].title.empty()) line.set("title", facts[item].title);
    if (!facts[item].genres.empty()) line.set("genres", facts[item].genres);
    line.set("popularity", popularity[item]);
    text += line.text() + "\n";
  }
  return text;
}

// Users in the order of their first line; returns how many there are.
std::size_t write_histories(Interactions& table, const std::vector<Json>& ids,
                            DatasetWriter& writer) {
  std::vector<std::string> id_texts;
  for (const Json& id : ids) id_texts.push_back(id.text());
  std::stable_sort(table.rows.begin(), table.rows.end(), [](const auto& a, const auto& b) {
    return std::tie(a.user, a.at) < std::tie(b.user, b.at);
  });
  std::size_t users = 0;
  for (std::size_t i = 0; i < table.rows.size(); ++users) {
    const std::uint32_t user = table.rows[i].user;
    std::string line = join("{\"user\": ", Json(table.users.name(user)).text(), ", \"entries\": [");
    for (bool first = true; i < table.rows.size() && table.rows[i].user == user; ++i) {
      line += join(first ? "" : ", ", "{\"id\": ", id_texts[table.rows[i].item], ", \"at\": ");
      line += table.timed ? join(table.times.seconds(table.rows[i].at)) : "null";
      line += '}';
      first = false;
    }
    writer.histories(line + "]}\n");
  }
  return users;
}

Json source_of(const Options& options) {
  Json source;
  source.set("tool", join("import_interactions ", BERT4REC_VERSION_STRING));
  source.set("input", shown(tables::source_name(options.input), 1000));
  if (!options.items.empty()) source.set("items", shown(tables::source_name(options.items), 1000));
  return source;
}

// Replaces the data in the folder as one; returns how many users there are.
std::size_t write(Interactions& table, const std::vector<std::uint32_t>& items, bool integers,
                  const std::vector<ItemFacts>& facts, const Options& options) {
  std::vector<Json> ids(table.items.size());
  for (const std::uint32_t item : items) {
    const std::string& id = table.items.name(item);
    ids[item] = integers ? Json(*tables::plain_integer(id)) : Json(id);
  }
  DatasetWriter writer(options.output);
  writer.items(item_lines(table, items, ids, facts));
  const std::size_t users = write_histories(table, ids, writer);
  writer.source(source_of(options));
  writer.commit();
  return users;
}

std::string describe_times(const Interactions& table) {
  if (!table.timed) return "no times: histories keep the order of the lines";
  const auto [first, last] =
      std::minmax_element(table.rows.begin(), table.rows.end(),
                          [](const Interaction& a, const Interaction& b) { return a.at < b.at; });
  return join("histories are sorted by time: ", table.times.unit(), ", ",
              tables::date_text(table.times.seconds(first->at)), " to ",
              tables::date_text(table.times.seconds(last->at)));
}

int import(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Interactions table = read_interactions(options);
  const std::vector<ItemFacts> facts = facts_of_items(table, options);
  const std::size_t lines = table.rows.size() + table.below_rating;
  CountFilter(table, options.min_user, options.min_item).run();
  require(!table.rows.empty(), tables::source_name(options.input), ": no interaction is left of ",
          lines, " after the filters");
  bool integers = false;
  const std::vector<std::uint32_t> items = ordered_items(table, integers);
  const auto titled = std::count_if(items.begin(), items.end(),
                                    [&](std::uint32_t item) { return !facts[item].title.empty(); });
  const bool replaces = path_exists(options.output / "items.jsonl");
  const std::size_t users = write(table, items, integers, facts, options);
  std::cout << "columns: " << table.columns << "\n"
            << cli::grouped(lines) << " lines: " << cli::grouped(users) << " users, "
            << cli::grouped(items.size()) << " items ("
            << cli::grouped(static_cast<std::size_t>(titled)) << " with a title), "
            << cli::grouped(table.rows.size()) << " interactions\n";
  if (table.below_rating > 0) {
    std::cout << cli::grouped(table.below_rating) << " lines left out: rating too low\n";
  }
  std::cout << describe_times(table) << "\nwritten to " << path_text(options.output)
            << (replaces ? ", in place of what stood there" : "") << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("import_interactions", argc, argv, import); }
