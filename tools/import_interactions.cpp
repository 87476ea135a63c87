// Turns tables of interactions into a folder of items.jsonl and histories.jsonl.

#include <unordered_set>

#include "cli.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path input, items, item_map, output;
  std::string delimiter, user_column, item_column, time_column, rating_column, id_column,
      title_column, genres_column;
  double min_rating = -std::numeric_limits<double>::infinity();
  std::size_t min_user = 1, min_item = 1;
  bool no_header = false;
};

Options parse(int argc, char** argv) {
  Options o;
  cli::CommandLine line(
      "import_interactions",
      "reads who consumed what from a table, and writes items.jsonl and histories.jsonl.\n\n"
      "Understood: lines of `user item`; `user::item::rating::time`; TSV and CSV with a header, "
      "whose\n"
      "columns are found by common names (user_id, item_id, timestamp, rating, title, genres ...) "
      "or\n"
      "named by flags. With times, each history is sorted by them; without, it keeps the order of\n"
      "the lines.",
      "import_interactions --input ratings.dat --items movies.dat --min-user 5 --min-item 5 \\\n"
      "      --output data/movies");
  line.option("input", o.input, "table of interactions");
  line.option("items", o.items, "table of items: id, title, genres");
  line.option("item-map", o.item_map,
              "lines of `id id2`: an item id of --input, and the id --items has for it");
  line.option("output", o.output, "folder to write");
  line.option("min-user", o.min_user, "fewest interactions a user must have; until stable");
  line.option("min-item", o.min_item, "fewest interactions an item must have; until stable");
  line.option("min-rating", o.min_rating, "leave out lower ratings");
  line.option("delimiter", o.delimiter,
              "between columns: tab, comma, space, :: or any text; guessed");
  line.flag("no-header", o.no_header,
            "the first line is data: columns are user, item, rating, time");
  line.option("user-column", o.user_column, "header of the user id");
  line.option("item-column", o.item_column, "header of the item id");
  line.option("time-column", o.time_column, "header of the time (Unix seconds)");
  line.option("rating-column", o.rating_column, "header of the rating");
  line.option("id-column", o.id_column, "in --items: header of the id");
  line.option("title-column", o.title_column, "in --items: header of the title");
  line.option("genres-column", o.genres_column, "in --items: header of the genres");
  line.parse(argc, argv);
  if (o.input.empty() || o.output.empty()) throw cli::UsageError("--input and --output are needed");
  return o;
}

// ---- Tables -----------------------------------------------------------------------------------

std::string guess_delimiter(std::string_view line) {
  for (const char* delimiter : {"::", "\t", ",", ";"}) {
    if (line.find(delimiter) != line.npos) return delimiter;
  }
  return " ";
}

std::string named_delimiter(const std::string& name) {
  if (name == "tab") return "\t";
  if (name == "comma") return ",";
  if (name == "space") return " ";
  return name;
}

// Fields of a line. A space stands for any run of blanks; with a comma or semicolon, a field may be
// quoted and "" in it is a quote.
class Splitter {
 public:
  explicit Splitter(std::string delimiter) : delimiter_(std::move(delimiter)) {}

  const std::vector<std::string_view>& split(std::string_view line) {
    fields_.clear();
    unquoted_.clear();
    if (delimiter_ == " ") return split_blanks(line);
    const bool quotes = delimiter_ == "," || delimiter_ == ";";
    for (;;) {
      if (quotes && line.starts_with('"')) {
        line.remove_prefix(take_quoted(line));
      } else {
        const std::size_t length = std::min(line.find(delimiter_), line.size());
        fields_.push_back(line.substr(0, length));
        line.remove_prefix(length);
      }
      if (line.empty()) return fields_;
      require(line.starts_with(delimiter_), "text after a closing quote");
      line.remove_prefix(delimiter_.size());
    }
  }

 private:
  const std::vector<std::string_view>& split_blanks(std::string_view line) {
    constexpr std::string_view blanks = " \t";
    for (;;) {
      const std::size_t begin = line.find_first_not_of(blanks);
      if (begin == line.npos) return fields_;
      line.remove_prefix(begin);
      const std::size_t length = std::min(line.find_first_of(blanks), line.size());
      fields_.push_back(line.substr(0, length));
      line.remove_prefix(length);
    }
  }

  // Adds the quoted field at the start of `rest`; returns its length with the quotes.
  std::size_t take_quoted(std::string_view rest) {
    auto& text = unquoted_.emplace_back(std::make_unique<std::string>());
    std::size_t at = 1;
    for (; at < rest.size(); ++at) {
      if (rest[at] == '"' && (++at >= rest.size() || rest[at] != '"')) break;
      *text += rest[at];
    }
    require(at < rest.size() || rest.ends_with('"'), "a quoted field does not end on its line");
    fields_.push_back(*text);
    return std::min(at, rest.size());
  }

  std::string delimiter_;
  std::vector<std::string_view> fields_;
  std::vector<std::unique_ptr<std::string>> unquoted_;
};

// "User_ID" and "user_id:token" are both "user_id".
std::string column_key(std::string_view header) {
  std::string key(header.substr(0, header.find(':')));
  for (char& c : key) {
    c = c == ' ' ? '_' : c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return key;
}

using Names = std::vector<std::string_view>;
const Names user_names{"user_id", "user_ids", "userid", "user", "uid", "username", "reviewerid"};
const Names item_names{"item_id", "item_ids", "itemid",    "item", "iid",        "movie_id",
                       "movieid", "anime_id", "anime_ids", "asin", "product_id", "id"};
const Names time_names{"timestamp", "time", "at", "unixreviewtime", "date_added"};
const Names rating_names{"rating", "score", "overall", "feedback"};
const Names title_names{"title", "movie_title", "name", "item_title"};
const Names genres_names{"genres", "genre", "class", "categories"};

constexpr std::size_t absent = static_cast<std::size_t>(-1);

// The column of that name (an error if there is none), or the first with a usual one, or absent.
std::size_t find_column(const std::vector<std::string>& header, const std::string& wanted,
                        const Names& usual) {
  const auto search = [&](std::string_view key) {
    const auto found = std::find_if(header.begin(), header.end(), [&](const std::string& name) {
      return column_key(name) == key;
    });
    return found == header.end() ? absent : static_cast<std::size_t>(found - header.begin());
  };
  if (!wanted.empty()) {
    const std::size_t column = search(column_key(wanted));
    require(column != absent, "no column is called ", wanted);
    return column;
  }
  for (const std::string_view name : usual) {
    if (const std::size_t column = search(name); column != absent) return column;
  }
  return absent;
}

bool is_utf8(std::string_view text) {
  const std::string quoted = Json(text).text();
  try {
    JsonReader(quoted).skip();
    return true;
  } catch (const Error&) {
    return false;
  }
}

// The text of a table. One that is not UTF-8 is taken for Latin-1, whose bytes are code points.
std::string read_table(const Path& path) {
  std::string text = read_file(path);
  if (is_utf8(text)) return text;
  std::cout << path_text(path) << " is not UTF-8: read as Latin-1\n";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xC0 | byte >> 6);
      out += static_cast<char>(0x80 | (byte & 63));
    }
  }
  return out;
}

// Calls on_row(fields) for each data row, and before that on_header(header) with the names of the
// columns, or `implied` if the table has none. Errors get the file and the line.
template <class OnHeader, class OnRow>
void read_rows(const Path& path, std::string_view text, const Options& options,
               const std::vector<std::string>& implied, OnHeader&& on_header, OnRow&& on_row) {
  std::optional<Splitter> splitter;
  for_each_line(text, [&](std::string_view line, std::size_t number) {
    try {
      bool is_header = false;
      if (!splitter) {
        const std::string delimiter =
            options.delimiter.empty() ? guess_delimiter(line) : named_delimiter(options.delimiter);
        splitter.emplace(delimiter);
        is_header = !options.no_header && delimiter != "::" && delimiter != " ";
        std::vector<std::string> header = implied;
        if (is_header) {
          header.clear();
          for (const std::string_view field : splitter->split(line)) header.emplace_back(field);
        }
        on_header(header);
      }
      if (!is_header) on_row(splitter->split(line));
    } catch (const Error& error) {
      fail(path, ":", number, ": ", error.what());
    }
  });
  require(splitter.has_value(), path, ": empty");
}

std::string_view field_at(const std::vector<std::string_view>& fields, std::size_t column,
                          std::string_view what) {
  require(column < fields.size(), "no field for the ", what, ": the line has ", fields.size());
  return fields[column];
}

double number_of(std::string_view text, std::string_view what) {
  double value = 0;
  const auto end = text.data() + text.size();
  const auto [stop, problem] = bert4rec::detail::parse_number(text.data(), end, value);
  require(stop == end && problem == std::errc(), what, " is \"", text, "\", expected a number");
  return value;
}

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
  std::int64_t at;
};

struct Interactions {
  Numbering users, items;
  std::vector<Interaction> rows;
  bool timed = false;
  std::size_t below_rating = 0;
};

Interactions read_interactions(const Options& options) {
  const std::string text = read_table(options.input);
  Interactions table;
  std::size_t user = absent, item = absent, time = absent, rating = absent;
  const auto on_header = [&](const std::vector<std::string>& header) {
    user = find_column(header, options.user_column, user_names);
    item = find_column(header, options.item_column, item_names);
    time = find_column(header, options.time_column, time_names);
    rating = find_column(header, options.rating_column, rating_names);
    require(user != absent, "no column of user ids found; name it with --user-column");
    require(item != absent, "no column of item ids found; name it with --item-column");
    table.timed = time != absent;
  };
  const auto on_row = [&](const std::vector<std::string_view>& fields) {
    if (table.rows.empty() && time >= fields.size()) time = absent, table.timed = false;
    const std::string_view user_id = field_at(fields, user, "user");
    const std::string_view item_id = field_at(fields, item, "item");
    require(!user_id.empty() && !item_id.empty(), "empty id");
    if (rating < fields.size() && std::isfinite(options.min_rating) &&
        number_of(fields[rating], "the rating") < options.min_rating) {
      ++table.below_rating;
      return;
    }
    const double at = table.timed ? number_of(field_at(fields, time, "time"), "the time") : 0;
    require(std::abs(at) < 1e15, "the time is ", at, ", expected Unix seconds");
    table.rows.push_back(
        {table.users.number(user_id), table.items.number(item_id), static_cast<std::int64_t>(at)});
  };
  read_rows(options.input, text, options, {"user_id", "item_id", "rating", "timestamp"}, on_header,
            on_row);
  return table;
}

// Drops users and items with too few interactions, again and again until all have enough.
void filter(Interactions& table, std::size_t min_user, std::size_t min_item) {
  for (;;) {
    std::vector<std::size_t> by_user(table.users.size()), by_item(table.items.size());
    for (const Interaction& row : table.rows) ++by_user[row.user], ++by_item[row.item];
    const auto rare = [&](const Interaction& row) {
      return by_user[row.user] < min_user || by_item[row.item] < min_item;
    };
    if (std::erase_if(table.rows, rare) == 0) return;
  }
}

// ---- Items ------------------------------------------------------------------------------------

struct ItemFacts {
  std::string title;
  std::vector<std::string> genres;
};

// "A|B", "A, B", or "A B" where the header says that spaces separate (RecBole's token_seq).
std::vector<std::string> split_genres(std::string_view text, bool by_spaces) {
  std::vector<std::string> genres;
  Splitter splitter(by_spaces ? " " : text.find('|') != text.npos ? "|" : ",");
  for (std::string_view genre : splitter.split(text)) {
    while (genre.starts_with(' ')) genre.remove_prefix(1);
    while (genre.ends_with(' ')) genre.remove_suffix(1);
    if (!genre.empty()) genres.emplace_back(genre);
  }
  return genres;
}

std::unordered_map<std::string, ItemFacts> read_items(const Options& options) {
  std::unordered_map<std::string, ItemFacts> facts;
  if (options.items.empty()) return facts;
  const std::string text = read_table(options.items);
  std::size_t id = absent, title = absent, genres = absent;
  bool by_spaces = false;
  const auto on_header = [&](const std::vector<std::string>& header) {
    id = find_column(header, options.id_column, item_names);
    title = find_column(header, options.title_column, title_names);
    genres = find_column(header, options.genres_column, genres_names);
    require(id != absent, "no column of item ids found; name it with --id-column");
    by_spaces = genres != absent && header[genres].ends_with(":token_seq");
  };
  const auto on_row = [&](const std::vector<std::string_view>& fields) {
    ItemFacts item;
    if (title < fields.size()) item.title = fields[title];
    if (genres < fields.size()) item.genres = split_genres(fields[genres], by_spaces);
    facts[std::string(field_at(fields, id, "item"))] = std::move(item);
  };
  Options plain = options;
  plain.delimiter.clear();  // that of --input does not hold here
  read_rows(options.items, text, plain, {"item_id", "title", "genres"}, on_header, on_row);
  return facts;
}

std::unordered_map<std::string, std::string> read_item_map(const Options& options) {
  std::unordered_map<std::string, std::string> map;
  if (options.item_map.empty()) return map;
  const std::string text = read_file(options.item_map);
  Options plain;
  plain.no_header = true;
  read_rows(
      options.item_map, text, plain, {}, [](const auto&) {},
      [&](const std::vector<std::string_view>& fields) {
        require(fields.size() == 2, "expected two ids");
        map.emplace(fields[0], fields[1]);
      });
  return map;
}

// The integer that `text` spells in its usual form ("7", not "07"), if it does.
std::optional<std::int64_t> plain_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto end = text.data() + text.size();
  if (std::from_chars(text.data(), end, value).ptr != end || join(value) != text) return {};
  return value;
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
    const auto value = plain_integer(table.items.name(item));
    integers = integers && value.has_value();
    values[item] = value.value_or(0);
  }
  std::sort(items.begin(), items.end(), [&](std::uint32_t a, std::uint32_t b) {
    return integers ? values[a] < values[b] : table.items.name(a) < table.items.name(b);
  });
  return items;
}

Json id_json(const std::string& id, bool integers) {
  return integers ? Json(*plain_integer(id)) : Json(id);
}

// Items in items.jsonl; returns how many have a title.
std::size_t write_items(const Interactions& table, const Options& options,
                        const std::vector<std::uint32_t>& items, bool integers) {
  const auto facts = read_items(options);
  const auto map = read_item_map(options);
  std::vector<std::size_t> popularity(table.items.size());
  for (const Interaction& row : table.rows) ++popularity[row.item];
  std::size_t titled = 0;
  std::string text;
  for (const std::uint32_t number : items) {
    const std::string& id = table.items.name(number);
    const auto mapped = map.find(id);
    const auto found = facts.find(mapped == map.end() ? id : mapped->second);
    Item item;
    if (integers)
      item.id = *plain_integer(id);
    else
      item.id = id;
    if (found != facts.end()) {
      item.english = found->second.title;
      item.genres = found->second.genres;
      titled += !item.english.empty();
    }
    item.popularity = static_cast<std::int64_t>(popularity[number]);
    text += to_json(item).text() + "\n";
  }
  write_file(options.output / "items.jsonl", text);
  return titled;
}

// Users in the order of their first line; returns how many there are.
std::size_t write_histories(Interactions& table, const Options& options, bool integers) {
  std::vector<std::string> ids(table.items.size());
  for (std::uint32_t item = 0; item < ids.size(); ++item) {
    if (!integers || plain_integer(table.items.name(item))) {
      ids[item] = id_json(table.items.name(item), integers).text();
    }
  }
  std::stable_sort(table.rows.begin(), table.rows.end(), [&](const auto& a, const auto& b) {
    return std::pair(a.user, a.at) < std::pair(b.user, b.at);
  });
  AtomicFile file(options.output / "histories.jsonl");
  std::size_t users = 0;
  for (std::size_t i = 0; i < table.rows.size(); ++users) {
    const std::uint32_t user = table.rows[i].user;
    std::string line = join("{\"user\": ", Json(table.users.name(user)).text(), ", \"entries\": [");
    for (bool first = true; i < table.rows.size() && table.rows[i].user == user; ++i) {
      line += join(first ? "" : ", ", "{\"id\": ", ids[table.rows[i].item], ", \"at\": ");
      line += table.timed ? join(table.rows[i].at) : "null";
      line += '}';
      first = false;
    }
    file.write(line + "]}\n");
  }
  file.commit();
  return users;
}

int import(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Interactions table = read_interactions(options);
  const std::size_t lines = table.rows.size() + table.below_rating;
  filter(table, options.min_user, options.min_item);
  require(!table.rows.empty(), options.input, ": no interaction is left of ", lines,
          " after the filters");
  bool integers = false;
  const std::vector<std::uint32_t> items = ordered_items(table, integers);
  make_folder(options.output);
  const std::size_t titled = write_items(table, options, items, integers);
  const std::size_t users = write_histories(table, options, integers);
  std::cout << cli::grouped(lines) << " lines: " << cli::grouped(users) << " users, "
            << cli::grouped(items.size()) << " items (" << cli::grouped(titled)
            << " with a title), " << cli::grouped(table.rows.size()) << " interactions\n";
  if (table.below_rating > 0) {
    std::cout << cli::grouped(table.below_rating) << " lines left out: rating too low\n";
  }
  std::cout << (table.timed ? "histories are sorted by time\n"
                            : "no times: histories keep the order of the lines\n")
            << "written to " << path_text(options.output) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("import_interactions", argc, argv, import); }
