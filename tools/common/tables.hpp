// Reads tables as people have them: CSV (RFC 4180), TSV, `::`, blanks between columns; with or
// without a header; from a file, a pipe or the standard input. What would be misread is refused,
// with its line and the reason.

#ifndef BERT4REC_TOOLS_TABLES_HPP
#define BERT4REC_TOOLS_TABLES_HPP

#include <cerrno>
#include <cstdio>
#include <deque>

#include "common/cli.hpp"

namespace tables {

using bert4rec::Error;
using bert4rec::fail;
using bert4rec::join;
using bert4rec::Path;
using bert4rec::require;
using bert4rec::shown;

// ---- The text -----------------------------------------------------------------------------------

inline bool is_standard_input(const Path& path) { return path == "-"; }

inline std::string source_name(const Path& path) {
  return is_standard_input(path) ? "standard input" : bert4rec::path_text(path);
}

inline std::string read_stream(std::FILE* file, const std::string& name) {
  std::string bytes;
  std::array<char, 65536> block;
  while (const std::size_t count = std::fread(block.data(), 1, block.size(), file)) {
    bytes.append(block.data(), count);
  }
  const int problem = errno;
  require(std::ferror(file) == 0, name,
          ": cannot read: ", std::generic_category().message(problem));
  return bytes;
}

// The bytes of a file, of a pipe or other stream, or of the standard input.
inline std::string read_bytes(const Path& path) {
  const std::string name = source_name(path);
  if (is_standard_input(path)) return read_stream(cli::binary_input(), name);
  using enum std::filesystem::file_type;
  std::error_code ignored;
  const auto type = std::filesystem::status(path, ignored).type();
  if (type != fifo && type != character && type != socket) return bert4rec::read_file(path);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(name.c_str(), "rb"),
                                                             std::fclose);
  const int problem = errno;
  require(file != nullptr, name, ": cannot open: ", std::generic_category().message(problem));
  return read_stream(file.get(), name);
}

// Refuses what is compressed.
inline void check_unpacked(std::string_view text, const std::string& name) {
  struct Packed {
    std::string_view begins, what, unpack;
  };
  for (const auto& [begins, what, unpack] : {
           Packed{"\x1F\x8B", "a gzip file", "gzip -dc"},
           Packed{"PK\x03\x04", "a zip archive", "unzip -p"},
           Packed{"\xFD"
                  "7zXZ",
                  "an xz file", "xz -dc"},
           Packed{"\x28\xB5\x2F\xFD", "a zstd file", "zstd -dc"},
           Packed{"BZh", "a bzip2 file", "bzip2 -dc"},
       }) {
    const bool letters = begins == "BZh";  // with which a text may begin too
    const std::string_view behind = text.substr(std::min<std::size_t>(4, text.size()), 6);
    require(!text.starts_with(begins) || (letters && behind != "1AY&SY"), name, ": this is ", what,
            ", not a table: unpack it first (", unpack, ")");
  }
}

// Refuses UTF-16 and UTF-32, told by their marks or by the zeros beside a first ASCII character,
// and zero bytes anywhere.
inline void check_text(std::string_view text, const std::string& name) {
  struct Encoding {
    std::string_view mark, zeros, what;
  };
  using namespace std::string_view_literals;
  std::string zeros;  // 'x' for a byte that is not zero
  for (const char c : text.substr(0, 4)) zeros += c == '\0' ? '0' : 'x';
  for (const auto& [mark, pattern, what] : {
           Encoding{"\xFF\xFE\0\0"sv, "x000", "UTF-32LE"},
           Encoding{"\0\0\xFE\xFF"sv, "000x", "UTF-32BE"},
           Encoding{"\xFF\xFE"sv, "x0x0", "UTF-16LE"},
           Encoding{"\xFE\xFF"sv, "0x0x", "UTF-16BE"},
       }) {
    require(!text.starts_with(mark) && zeros != pattern, name, ": this is ", what,
            ", expected UTF-8: convert it first (iconv -f ", what, " -t UTF-8)");
  }
  const std::size_t zero = text.find('\0');
  if (zero == text.npos) return;
  const auto lines =
      std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(zero), '\n');
  fail(name, ":", lines + 1, ": a zero byte: this is not text");
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = bert4rec::detail::utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

// The text of a table. One that is not UTF-8 is taken for Latin-1, whose bytes are code points.
inline std::string read_text(const Path& path) {
  const std::string name = source_name(path);
  std::string text = read_bytes(path);
  check_unpacked(text, name);
  check_text(text, name);
  if (is_utf8(text)) return text;
  std::cerr << shown(name) << " is not UTF-8: read as Latin-1\n";
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

// ---- Records and fields -------------------------------------------------------------------------

inline std::string guess_delimiter(std::string_view line) {
  for (const char* delimiter : {"::", "\t", ",", ";"}) {
    if (line.find(delimiter) != line.npos) return delimiter;
  }
  return " ";
}

inline std::string named_delimiter(const std::string& name) {
  if (name == "tab") return "\t";
  if (name == "comma") return ",";
  if (name == "space") return " ";
  return name;
}

inline constexpr std::string_view blanks = " \t";

inline std::string_view trimmed(std::string_view text) {
  const std::size_t begin = std::min(text.find_first_not_of(blanks), text.size());
  text.remove_prefix(begin);
  return text.substr(0, text.find_last_not_of(blanks) + 1);
}

// Cuts a text into records, and these into fields without the blanks around them. A delimiter " "
// stands for any run of blanks. With a comma or semicolon, a field may be quoted (RFC 4180): in it,
// "" is a quote, and line breaks belong to the field.
class Records {
 public:
  // An empty delimiter is guessed from the first line.
  Records(std::string_view text, std::string delimiter)
      : rest_(text), delimiter_(std::move(delimiter)) {
    if (rest_.starts_with("\xEF\xBB\xBF")) rest_.remove_prefix(3);
  }

  // Moves to the next record that is not blank; returns whether there is one.
  bool next() {
    fields_.clear();
    unquoted_.clear();
    while (!rest_.empty()) {
      line_ = next_line_;
      const std::string_view text = rest_.substr(0, rest_.find('\n'));
      const bool blank = text.find_first_not_of(" \t\r") == text.npos;
      if (delimiter_.empty() && !blank) delimiter_ = guess_delimiter(text);
      if (blank)
        end_line(text.size());
      else if (delimiter_ == " ")
        split_blanks(text);
      else
        split();
      if (!blank) return true;
    }
    return false;
  }

  const std::vector<std::string_view>& fields() const { return fields_; }
  const std::string& delimiter() const { return delimiter_; }
  std::size_t line() const { return line_; }  // on which the record begins; from 1

 private:
  void end_line(std::size_t length) {
    rest_.remove_prefix(std::min(length + 1, rest_.size()));
    ++next_line_;
  }

  void split_blanks(std::string_view text) {
    end_line(text.size());
    if (text.ends_with('\r')) text.remove_suffix(1);
    for (text = trimmed(text); !text.empty(); text = trimmed(text)) {
      add_plain(text.substr(0, text.find_first_of(blanks)));
      text.remove_prefix(fields_.back().size());
    }
  }

  void split() {
    const bool quotes = delimiter_ == "," || delimiter_ == ";";
    for (;;) {
      if (quotes && rest_.starts_with('"')) {
        take_quoted();
      } else {
        take_plain();
        require(!quotes || !fields_.back().starts_with('"'), "a blank before an opening quote");
      }
      const std::size_t line_break = rest_.starts_with('\r') ? 1 : 0;
      if (line_break == rest_.size() || rest_[line_break] == '\n') return end_line(line_break);
      require(rest_.starts_with(delimiter_), "text after a closing quote");
      rest_.remove_prefix(delimiter_.size());
    }
  }

  void take_plain() {
    std::size_t end = 0;
    const auto delimited = [&] {
      return rest_[end] == delimiter_[0] && rest_.substr(end).starts_with(delimiter_);
    };
    while (end < rest_.size() && rest_[end] != '\n' && !delimited()) ++end;
    const bool ends_line = end == rest_.size() || rest_[end] == '\n';
    if (ends_line && end > 0 && rest_[end - 1] == '\r') --end;
    add_plain(trimmed(rest_.substr(0, end)));
    rest_.remove_prefix(end);
  }

  void add_plain(std::string_view field) {
    require(field.find('\r') == field.npos, "a carriage return that does not end the line");
    fields_.push_back(field);
  }

  void take_quoted() {
    std::string* joined = nullptr;  // the parts between doubled quotes, if there are any
    for (;;) {
      rest_.remove_prefix(1);
      const std::size_t length = rest_.find('"');
      require(length != rest_.npos, "a quote is opened and never closed");
      const std::string_view part = rest_.substr(0, length);
      next_line_ += static_cast<std::size_t>(std::count(part.begin(), part.end(), '\n'));
      rest_.remove_prefix(length + 1);
      const bool doubled = rest_.starts_with('"');
      if (joined != nullptr || doubled) {
        if (joined == nullptr) joined = &unquoted_.emplace_back();
        joined->append(part).append(doubled ? "\"" : "");
      }
      if (doubled) continue;
      fields_.push_back(joined != nullptr ? *joined : part);
      return;
    }
  }

  std::string_view rest_;
  std::string delimiter_;
  std::vector<std::string_view> fields_;
  std::deque<std::string> unquoted_;
  std::size_t line_ = 1, next_line_ = 1;
};

// ---- Values -------------------------------------------------------------------------------------

inline double number_of(std::string_view text, std::string_view what) {
  double value = 0;
  const auto end = text.data() + text.size();
  const auto [stop, problem] = bert4rec::detail::parse_number(text.data(), end, value);
  if (stop == end && problem == std::errc()) return value;
  fail(what, " is \"", shown(text), "\", expected a number");
}

// The integer that `text` spells in its usual form ("7", not "07"), if it does.
inline std::optional<std::int64_t> plain_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto end = text.data() + text.size();
  if (std::from_chars(text.data(), end, value).ptr != end || join(value) != text) return {};
  return value;
}

// A time, in whatever unit: whole + fraction / 10^18.
struct Moment {
  std::int64_t whole = 0;
  std::uint64_t fraction = 0;
  auto operator<=>(const Moment&) const = default;
};

inline constexpr std::uint64_t one = 1'000'000'000'000'000'000;  // in units of a fraction

// "0.25" as digits behind the point: takes them from `text`, beyond the 18th without effect.
inline std::uint64_t take_fraction(std::string_view& text) {
  std::uint64_t fraction = 0;
  for (std::uint64_t place = one / 10; !text.empty() && text[0] >= '0' && text[0] <= '9';
       place /= 10) {
    fraction += static_cast<std::uint64_t>(text[0] - '0') * place;
    text.remove_prefix(1);
  }
  return fraction;
}

// A decimal number: all digits of it count, unless it has an exponent.
inline std::optional<Moment> read_decimal(std::string_view text) {
  constexpr double most = 9e18;
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, problem] = bert4rec::detail::parse_number(text.data(), end, value);
  if (stop != end || problem != std::errc() || std::abs(value) >= most) return {};
  if (text.find_first_of("eE") != text.npos) {
    const double whole = std::floor(value);
    return Moment{static_cast<std::int64_t>(whole),
                  static_cast<std::uint64_t>((value - whole) * static_cast<double>(one))};
  }
  Moment moment;
  const char* const point = std::from_chars(text.data(), end, moment.whole).ptr;
  std::string_view digits = text.substr(std::min(text.find('.'), text.size() - 1) + 1);
  if (point != end) moment.fraction = take_fraction(digits);
  if (text.starts_with('-') && moment.fraction > 0) {
    --moment.whole;
    moment.fraction = one - moment.fraction;
  }
  return moment;
}

// Takes exactly `count` digits; no number where there are fewer, or one beyond `most`.
inline std::optional<int> take_digits(std::string_view& text, std::size_t count, int most) {
  int value = 0;
  if (text.size() < count) return {};
  for (const char c : text.substr(0, count)) {
    if (c < '0' || c > '9') return {};
    value = 10 * value + (c - '0');
  }
  text.remove_prefix(count);
  if (value > most) return {};
  return value;
}

inline bool take(std::string_view& text, std::string_view any_of) {
  if (text.empty() || any_of.find(text[0]) == any_of.npos) return false;
  text.remove_prefix(1);
  return true;
}

// "+hh:mm", "+hhmm" or "+hh": how many seconds it is ahead of UTC. "Z", "UTC" or nothing: 0.
inline std::optional<int> read_zone(std::string_view text) {
  if (text.empty() || text == "Z" || text == "z" || text == "UTC") return 0;
  const int sign = text[0] == '-' ? -1 : 1;
  if (!take(text, "+-")) return {};
  const auto hours = take_digits(text, 2, 23);
  take(text, ":");
  const auto minutes = text.empty() ? 0 : take_digits(text, 2, 59);
  if (!hours || !minutes || !text.empty()) return {};
  return sign * 60 * (60 * *hours + *minutes);
}

// "2024-05-31": takes the day, as Unix seconds of its beginning.
inline std::optional<std::int64_t> take_day(std::string_view& text) {
  using namespace std::chrono;
  const auto year_number = take_digits(text, 4, 9999);
  if (!year_number || !take(text, "-")) return {};
  const auto month_number = take_digits(text, 2, 12);
  if (!month_number || !take(text, "-")) return {};
  const auto day_number = take_digits(text, 2, 31);
  if (!day_number) return {};
  const year_month_day date(year(*year_number), month(static_cast<unsigned>(*month_number)),
                            day(static_cast<unsigned>(*day_number)));
  if (!date.ok()) return {};
  return std::int64_t{86400} * sys_days(date).time_since_epoch().count();
}

// ISO 8601: "2024-05-31", "2024-05-31T12:30", "2024-05-31 12:30:15.25+02:00", in Unix seconds.
inline std::optional<Moment> read_date(std::string_view text) {
  const auto day = take_day(text);
  if (!day) return {};
  if (text.empty()) return Moment{*day, 0};
  if (!take(text, "Tt ")) return {};
  const auto hour = take_digits(text, 2, 23);
  if (!hour || !take(text, ":")) return {};
  const auto minute = take_digits(text, 2, 59);
  const bool has_seconds = take(text, ":");
  const auto second = has_seconds ? take_digits(text, 2, 60) : 0;  // 60: a leap second
  if (!minute || !second) return {};
  const std::uint64_t fraction = has_seconds && take(text, ".,") ? take_fraction(text) : 0;
  take(text, " ");
  const auto zone = read_zone(text);
  if (!zone) return {};
  return Moment{*day + 3600 * *hour + 60 * *minute + *second - *zone, fraction};
}

// "2024-05-31"
inline std::string date_text(std::int64_t seconds) {
  const std::chrono::sys_seconds time{std::chrono::seconds(seconds)};
  const std::chrono::year_month_day date(std::chrono::floor<std::chrono::days>(time));
  char text[64];
  std::snprintf(text, sizeof text, "%04d-%02u-%02u", static_cast<int>(date.year()),
                static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()));
  return text;
}

// Reads a column of times. All of it is in one unit, that of its size: below 10^11 seconds (until
// the year 5138), below 10^14 milliseconds (from 1973 on), below 10^17 microseconds, then
// nanoseconds; or dates. 0 fits all.
class TimeColumn {
 public:
  Moment read(std::string_view text, std::size_t line) {
    const auto date = read_date(text), time = date ? date : read_decimal(text);
    if (!time) {
      fail("the time is \"", shown(text),
           "\", expected Unix time or ISO 8601, as 2024-05-31T12:30:00Z");
    }
    if (*time == Moment()) return *time;
    const Unit* const unit = date ? &units[0] : unit_of(time->whole);
    if (unit_ == nullptr) unit_ = unit, line_ = line;
    if (unit != unit_) {
      fail("the time is \"", shown(text), "\", as ", unit->name, ", but line ", line_, " has ",
           unit_->name);
    }
    return *time;
  }

  // Whole seconds, rounded down.
  std::int64_t seconds(const Moment& moment) const {
    const std::int64_t parts = unit_ == nullptr ? 1 : unit_->parts;
    return moment.whole / parts - (moment.whole % parts < 0);
  }

  std::string_view unit() const { return unit_ == nullptr ? units[1].name : unit_->name; }

 private:
  struct Unit {
    std::string_view name;
    std::int64_t parts, below;  // how many are a second; all times are smaller
  };
  static constexpr Unit units[] = {
      {"dates", 1, 0},
      {"Unix seconds", 1, 100'000'000'000},
      {"Unix milliseconds", 1000, 100'000'000'000'000},
      {"Unix microseconds", 1'000'000, 100'000'000'000'000'000},
      {"Unix nanoseconds", 1'000'000'000, std::numeric_limits<std::int64_t>::max()}};

  static const Unit* unit_of(std::int64_t whole) {
    const Unit* unit = &units[1];
    while (std::abs(whole) >= unit->below) ++unit;
    return unit;
  }

  const Unit* unit_ = nullptr;
  std::size_t line_ = 0;
};

// ---- Columns ------------------------------------------------------------------------------------

// "User ID", "User-ID" and "user_id:token" are all "user_id".
inline std::string column_key(std::string_view header) {
  std::string key = cli::lower_case(header.substr(0, header.find(':')));
  std::replace_if(
      key.begin(), key.end(), [](char c) { return c == ' ' || c == '-'; }, '_');
  return key;
}

inline constexpr std::size_t absent = static_cast<std::size_t>(-1);

// What a column is for: found by the name that the flag gives (or its number, from 1, where there
// is no header), or else by its usual names.
struct Role {
  std::string_view what, flag;
  std::string name;
  const std::vector<std::string_view>& usual;
  bool needed;
};

// A table that has been read, at its first record.
class Table {
 public:
  Table(const Path& path, const std::string& delimiter)
      : name_(source_name(path)),
        text_(read_text(path)),
        records_(text_, named_delimiter(delimiter)) {
    in_line([&] { require(records_.next(), "empty"); });
    for (const std::string_view field : records_.fields()) header_.emplace_back(field);
    first_line_ = records_.line();
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  // The column of each role, or absent. The first line is a header if it names all columns that are
  // needed; a line of commas, tabs or semicolons is expected to, unless no_header. Without a header
  // the columns are the roles in their order, as far as flags do not number them.
  std::vector<std::size_t> find_columns(const std::vector<Role>& roles, bool no_header) {
    std::vector<std::size_t> columns;
    in_line([&] {
      headed_ = is_headed(roles, no_header);
      if (headed_) check_repeated();
      for (const Role& role : roles) columns.push_back(headed_ ? named(role) : numbered(role));
      if (!headed_) number_others(columns);
      for (std::size_t i = 0; i < roles.size(); ++i) {
        require(columns[i] != absent || (roles[i].name.empty() && !roles[i].needed),
                missing(roles[i]));
        for (std::size_t j = 0; j < i; ++j) {
          require(columns[i] == absent || columns[i] != columns[j], "column ", columns[i] + 1,
                  " cannot be for both ", roles[j].what, " and ", roles[i].what);
        }
      }
    });
    return columns;
  }

  // Calls on_row(fields) for each row of data.
  template <class OnRow>
  void for_each_row(OnRow&& on_row) {
    in_line([&] {
      for (bool more = !headed_ || records_.next(); more; more = records_.next()) {
        const auto& fields = records_.fields();
        require(fields.size() == header_.size(), "expected ", header_.size(), " fields as in the ",
                headed_ ? "header" : "first line", ", found ", fields.size());
        on_row(fields);
      }
    });
  }

  // `user_id`, or 1 where there is no header.
  std::string column_name(std::size_t column) const {
    return headed_ ? shown(header_[column]) : join(column + 1);
  }

  const std::string& name() const { return name_; }
  const std::vector<std::string>& header() const { return header_; }
  bool headed() const { return headed_; }
  std::size_t line() const { return records_.line(); }
  std::string first_line() const { return join(name_, ":", first_line_); }

 private:
  template <class Body>
  void in_line(Body&& body) {
    try {
      body();
    } catch (const Error& error) {
      fail(name_, ":", records_.line(), ": ", error.what());
    }
  }

  bool is_headed(const std::vector<Role>& roles, bool no_header) const {
    std::size_t needed = 0, found = 0;
    for (const Role& role : roles) {
      needed += role.needed;
      found += role.needed && named(role) != absent;
    }
    if (found == needed) return true;
    if (no_header) return false;
    const bool data = std::any_of(header_.begin(), header_.end(), [](const std::string& field) {
      return read_decimal(field).has_value() || read_date(field).has_value();
    });
    const bool usual = records_.delimiter() != "::" && records_.delimiter() != " ";
    require(found > 0 || !usual || !data,
            "the first line is no header, it looks like data: give --no-header");
    return found > 0 || usual;
  }

  void check_repeated() const {
    std::map<std::string, std::size_t> places;
    for (std::size_t i = 0; i < header_.size(); ++i) {
      const auto [place, is_new] = places.emplace(cli::lower_case(header_[i]), i);
      require(is_new || header_[i].empty(), "columns ", place->second + 1, " and ", i + 1,
              " are both called \"", shown(header_[i]), "\"");
    }
  }

  std::size_t find(std::string_view key) const {
    std::size_t found = absent;
    for (std::size_t i = 0; i < header_.size(); ++i) {
      if (column_key(header_[i]) != key) continue;
      require(found == absent, "columns ", found + 1, " and ", i + 1, " are both called \"",
              shown(key), "\"");
      found = i;
    }
    return found;
  }

  std::size_t named(const Role& role) const {
    if (!role.name.empty()) return find(column_key(role.name));
    for (const std::string_view name : role.usual) {
      if (const std::size_t column = find(name); column != absent) return column;
    }
    return absent;
  }

  std::size_t numbered(const Role& role) const {
    if (role.name.empty()) return absent;
    const auto number = plain_integer(role.name);
    const auto width = static_cast<std::int64_t>(header_.size());
    require(number && *number >= 1 && *number <= width, role.flag, " is \"", shown(role.name),
            "\", expected the number of a column, 1 ... ", width, ": there is no header");
    return static_cast<std::size_t>(*number - 1);
  }

  void number_others(std::vector<std::size_t>& columns) const {
    const std::vector<std::size_t> given = columns;
    for (std::size_t i = 0; i < std::min(columns.size(), header_.size()); ++i) {
      const bool taken = std::find(given.begin(), given.end(), i) != given.end();
      if (columns[i] == absent && !taken) columns[i] = i;
    }
  }

  std::string missing(const Role& role) const {
    if (!role.name.empty()) return join("no column is called \"", shown(role.name), "\"");
    return join("no column of ", role.what, " found; name it with ", role.flag,
                headed_ ? ", or give --no-header if this line is data" : "");
  }

  std::string name_, text_;
  Records records_;
  std::vector<std::string> header_;  // the first record, whether it is a header or not
  std::size_t first_line_ = 1;
  bool headed_ = false;
};

}  // namespace tables

#endif  // BERT4REC_TOOLS_TABLES_HPP
