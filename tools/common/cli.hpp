// What the command-line tools share: flags with --help, errors as one line, progress, signals. Text
// is UTF-8 on every system: words of the command line, what is printed, paths.

#ifndef BERT4REC_TOOLS_CLI_HPP
#define BERT4REC_TOOLS_CLI_HPP

#include <csignal>
#include <cstdio>
#include <iostream>

#include "bert4rec.hpp"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <fcntl.h>
#include <io.h>
#include <shellapi.h>
#else
#include <unistd.h>
#endif

namespace cli {

using bert4rec::Error;
using bert4rec::fail;
using bert4rec::join;
using bert4rec::require;

using bert4rec::path_text;

// ---- The operating system -----------------------------------------------------------------------

inline std::atomic<int> received_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);

namespace detail {

inline std::string replaced(std::string_view text, char old, std::string_view by) {
  std::string out;
  for (const char c : text) out += c == old ? by : std::string_view(&c, 1);
  return out;
}

}  // namespace detail

#ifdef _WIN32

// The words of the command line. (Those that main() is given are in another encoding.)
inline std::vector<std::string> words_of_program(int, char**) {
  int count = 0;
  wchar_t** const words = ::CommandLineToArgvW(::GetCommandLineW(), &count);
  require(words != nullptr, "cannot read the command line");
  std::vector<std::string> texts;
  for (int i = 0; i < count; ++i) texts.push_back(path_text(words[i]));
  ::LocalFree(words);
  return texts;
}

// The console shows UTF-8 until the program ends.
inline void print_utf8() {
  static const struct Console {
    Console() { ::SetConsoleOutputCP(CP_UTF8); }
    ~Console() { ::SetConsoleOutputCP(before); }
    const UINT before = ::GetConsoleOutputCP();
  } console;
}

// Whether stderr goes to a terminal, which understands "\033[K" then.
inline bool on_terminal() {
  const HANDLE output = ::GetStdHandle(STD_ERROR_HANDLE);
  DWORD mode = 0;
  return ::GetConsoleMode(output, &mode) != 0 &&
         ::SetConsoleMode(output, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING) != 0;
}

// The first Ctrl-C or Ctrl-Break only sets received_signal; a second one ends the process at once.
inline void catch_stop_signals() {
  for (const int number : {SIGINT, SIGBREAK}) {
    std::signal(number, [](int signal) { received_signal = signal; });
  }
}

inline constexpr std::string_view plain_in_shell = "-_=./\\,:+@";
inline std::string quoted(std::string_view word) {
  const std::string_view end = word.ends_with('\\') ? "\\\"" : "\"";
  return join('"', detail::replaced(word, '"', "\\\""), end);
}

// The standard input, with bytes as they are.
inline std::FILE* binary_input() {
  ::_setmode(::_fileno(stdin), _O_BINARY);
  return stdin;
}
inline HANDLE standard_input() { return ::GetStdHandle(STD_INPUT_HANDLE); }

#else

inline std::vector<std::string> words_of_program(int argc, char** argv) {
  return {argv, argv + argc};
}

inline void print_utf8() {}

inline std::FILE* binary_input() { return stdin; }
inline int standard_input() { return STDIN_FILENO; }

// Whether stderr goes to a terminal.
inline bool on_terminal() { return ::isatty(STDERR_FILENO) != 0; }

// The first SIGINT, SIGTERM or SIGHUP only sets received_signal; a second one ends the process at
// once. So does a closed pipe behind the standard output (`| head`), but for the second one, since
// what is saved then may be printed.
inline void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = [](int number) { received_signal = number; };
  ::sigaction(SIGPIPE, &action, nullptr);
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(number, &action, nullptr);
}

inline constexpr std::string_view plain_in_shell = "-_=./,:+@%";
inline std::string quoted(std::string_view word) {
  return join('\'', detail::replaced(word, '\'', "'\\''"), '\'');
}

#endif

// The command line, quoted for a shell.
inline std::string command_text(int argc, char** argv) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           plain_in_shell.find(c) != plain_in_shell.npos;
  };
  std::string text;
  for (int i = 0; i < argc; ++i) {
    const std::string_view word = argv[i];
    const bool as_it_is = !word.empty() && std::all_of(word.begin(), word.end(), plain);
    text += join(i > 0 ? " " : "", as_it_is ? std::string(word) : quoted(word));
  }
  return text;
}

// ---- Words that are nearly right ----------------------------------------------------------------

// [j]: how many letters must be changed, put in or left out (Levenshtein) so that `text` becomes
// the first j letters of `other`; or, if it may begin `anywhere`, the end of those.
template <class Char>
std::vector<std::size_t> edit_distances(std::basic_string_view<Char> text,
                                        std::basic_string_view<Char> other, bool anywhere) {
  std::vector<std::size_t> row(other.size() + 1, 0);  // of the text so far
  if (!anywhere) std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < other.size(); ++j) {
      const std::size_t changed = diagonal + (text[i] != other[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row;
}

// ---- Flags --------------------------------------------------------------------------------------

// Wrong usage, as opposed to a failure: exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Wrong usage where the value of an option is out of its range.
inline void check_range(std::string_view option, std::uint64_t value, std::uint64_t low,
                        std::uint64_t high) {
  if (value >= low && value <= high) return;
  throw UsageError(join("--", option, " ", value, ": expected ", low, " ... ", high));
}

namespace detail {

inline void parse_value(std::string_view text, std::string& value) { value = text; }
inline void parse_value(std::string_view text, std::vector<std::string>& values) {
  values.emplace_back(text);  // such an option may be given more than once
}
inline void parse_value(std::string_view text, bert4rec::Path& value) {
  if (text.empty()) throw UsageError("expected a file or folder");
  value = bert4rec::path_from(text);
}

template <class Number>
requires std::is_arithmetic_v<Number>
void parse_value(std::string_view text, Number& value) {
  const auto end = text.data() + text.size();
  const auto [stop, problem] = bert4rec::detail::parse_number(text.data(), end, value);
  if (stop != end || problem != std::errc()) throw UsageError("expected a number");
}

template <class Enum>
requires std::is_enum_v<Enum>
void parse_value(std::string_view text, Enum& value) {
  value = bert4rec::enum_value<Enum>(text, "value");
}

template <class Value>
std::string show_value(const Value& value) {
  if constexpr (std::is_enum_v<Value>)
    return std::string(bert4rec::enum_name(value));
  else if constexpr (std::is_same_v<Value, std::vector<std::string>>)
    return {};
  else
    return join(value);
}

template <class Value>
std::string placeholder() {
  if constexpr (std::is_enum_v<Value>)
    return bert4rec::enum_choices<Value>();
  else if constexpr (std::is_same_v<Value, bert4rec::Path>)
    return "PATH";
  else if constexpr (std::is_floating_point_v<Value>)
    return "X";
  else if constexpr (std::is_arithmetic_v<Value>)
    return "N";
  else
    return "TEXT";
}

// Appends words in lines of at most 80 letters, the further ones indented; an empty line stays one.
inline void append_wrapped(std::string& out, std::string_view text, std::size_t indent) {
  constexpr std::size_t width = 80;
  std::string gap;  // before the next word
  while (!text.empty()) {
    const std::size_t length = std::min(text.find_first_of(" \n"), text.size());
    const std::size_t at = out.size() - (out.rfind('\n') + 1);  // letters in the line so far
    if (gap == " " && at + 1 + length > width) gap = "\n" + std::string(indent, ' ');
    out += gap;
    out += text.substr(0, length);
    text.remove_prefix(length);
    gap = text.starts_with("\n\n") ? "\n\n" : " ";
    text.remove_prefix(std::min(text.find_first_not_of(" \n"), text.size()));
  }
}

}  // namespace detail

// The flags of a tool: bound to variables, whose values before parse() are the defaults.
class CommandLine {
 public:
  struct Group {
    std::string heading;
    std::vector<std::string> names;
  };

  CommandLine(std::string name, std::string summary, std::string example)
      : name_(std::move(name)), summary_(std::move(summary)), example_(std::move(example)) {}

  // --name VALUE or --name=VALUE. `alias`: a second name that is understood too.
  template <class Value>
  void option(std::string name, Value& value, std::string meaning, std::string alias = "") {
    const std::string shown = detail::show_value(value);
    options_.push_back({std::move(name), std::move(alias), detail::placeholder<Value>(),
                        std::move(meaning),
                        [&value](std::string_view text) { detail::parse_value(text, value); }});
    options_.back().otherwise = shown.empty() ? "" : join(" (", shown, ")");
  }

  // More to say about an option.
  void add_to_meaning(std::string_view name, std::string_view more) {
    options_[index_of(name)].meaning += more;
  }

  // The few values, "a|b", that this tool takes for an option, and what they mean.
  void choices(std::string_view name, std::string few, std::string meaning) {
    Option& option = options_[index_of(name)];
    option.assign = [few, assign = std::move(option.assign)](std::string_view text) {
      const bool known = join("|", few, "|").find(join("|", text, "|")) != std::string::npos;
      bert4rec::require(known, "expected ", few);
      assign(text);
    };
    option.placeholder = std::move(few);
    option.meaning = std::move(meaning);
  }

  // --name N, --name=N, or --name alone, which stands for `alone`.
  void optional(std::string name, std::optional<int>& value, int alone, std::string meaning) {
    const auto assign = [&value, alone](std::string_view text) {
      if (text.empty()) return void(value = alone);
      std::uint64_t number = 0;
      detail::parse_value(text, number);
      bert4rec::require(number <= 1000, "expected a number up to 1000");
      value = static_cast<int>(number);
    };
    options_.push_back({std::move(name), "", "[N]", std::move(meaning), assign});
    options_.back().may_stand_alone = true;
  }

  // --name: sets a bool.
  void flag(std::string name, bool& value, std::string meaning) {
    options_.push_back({std::move(name), "", "", std::move(meaning),
                        [&value](std::string_view) { value = true; }});
  }

  // All fields of a configuration but those in `hidden`, under the names given in `names` or their
  // own with dashes.
  template <class Config>
  void configuration(Config& config, const std::map<std::string, std::string>& names,
                     const std::vector<std::string_view>& hidden = {}) {
    Config::fields(config, [&](std::string_view field, auto& value, auto low, auto high,
                               auto meaning) {
      if (std::find(hidden.begin(), hidden.end(), field) != hidden.end()) return;
      std::string dashed(field);
      std::replace(dashed.begin(), dashed.end(), '_', '-');
      const auto renamed = names.find(std::string(field));
      if (renamed == names.end())
        option(dashed, value, meaning);
      else
        option(renamed->second, value, meaning, dashed);
      using Value = std::remove_reference_t<decltype(value)>;
      if constexpr (std::is_arithmetic_v<Value>) {
        auto& assign = options_.back().assign;
        assign = [&value, low, high, parse = std::move(assign)](std::string_view text) {
          parse(text);
          const bool inside = value >= static_cast<Value>(low) && value <= static_cast<Value>(high);
          bert4rec::require(inside, "expected ", low, " ... ", high);
        };
      }
    });
  }

  // Headings of the help, each with the options below it; the last takes those that none names.
  void groups(const std::vector<Group>& groups) {
    std::vector<Option> ordered;
    const auto take = [&](std::size_t index, const std::string& heading) {
      ordered.push_back(std::move(options_[index]));
      ordered.back().heading = heading;
      options_.erase(options_.begin() + static_cast<std::ptrdiff_t>(index));
    };
    for (const Group& group : groups) {
      for (const std::string& name : group.names) {
        const std::size_t index = index_of(name);
        require(index < options_.size(), "--", name, " stands in a group, but is no option");
        take(index, group.heading);
      }
    }
    while (!options_.empty()) take(0, groups.back().heading);
    options_ = std::move(ordered);
  }

  // Prints the help and exits for --help; throws UsageError.
  void parse(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string_view word = argv[i];
      if (word == "--help" || word == "-h") {
        std::cout << help();
        std::exit(0);
      }
      if (word == "--version") {
        std::cout << name_ << " (bert4rec.hpp) " << BERT4REC_VERSION_STRING << "\n";
        std::exit(0);
      }
      const std::size_t equals = word.find('=');
      Option& option = find(word.substr(0, equals));
      option.given = true;
      if (option.placeholder.empty()) {
        if (equals != word.npos) throw UsageError(join("--", option.name, " takes no value"));
        option.assign("");
        continue;
      }
      const std::string_view next = i + 1 < argc ? argv[i + 1] : "";
      const bool number = !next.empty() && next.find_first_not_of("0123456789") == next.npos;
      if (option.may_stand_alone && equals == word.npos && !number) {
        option.assign("");
        continue;
      }
      if (equals == word.npos && i + 1 == argc) {
        throw UsageError(join("--", option.name, " needs a value"));
      }
      const std::string_view value = equals == word.npos ? argv[++i] : word.substr(equals + 1);
      try {
        option.assign(value);
      } catch (const Error& error) {
        throw UsageError(join("--", option.name, " ", value, ": ", error.what()));
      }
    }
  }

  bool given(std::string_view name) const {
    const std::size_t index = index_of(name);
    return index < options_.size() && options_[index].given;
  }

  std::string help() const {
    std::string text = name_ + ": ";
    detail::append_wrapped(text, summary_, 0);
    text += "\n\nOptions (defaults in brackets):\n";
    std::string_view heading;
    for (const Option& option : options_) {
      if (option.heading != heading) text += join("\n", option.heading, ":\n");
      heading = option.heading;
      append_help(text, option);
    }
    return text + (heading.empty() ? "" : "\n") + "  --help, --version\n\nExample:\n  " + example_ +
           "\n";
  }

  const std::string& name() const { return name_; }

 private:
  struct Option {
    std::string name, alias, placeholder, meaning;
    std::function<void(std::string_view)> assign;
    bool given = false, may_stand_alone = false;
    std::string otherwise = {}, heading = {};
  };

  std::size_t index_of(std::string_view name) const {
    const auto found = std::find_if(options_.begin(), options_.end(),
                                    [&](const Option& option) { return option.name == name; });
    return static_cast<std::size_t>(found - options_.begin());
  }

  static void append_help(std::string& text, const Option& option) {
    constexpr std::size_t column = 28;  // of the meanings
    std::string left =
        join("  --", option.name, option.placeholder.empty() ? "" : " ", option.placeholder);
    if (left.size() + 2 > column)
      left += "\n" + std::string(column, ' ');
    else
      left.resize(column, ' ');
    text += left;
    detail::append_wrapped(text, option.meaning + option.otherwise, column);
    text += '\n';
  }

  Option& find(std::string_view word) {
    if (!word.starts_with("--")) {
      const std::size_t dashes = std::min(word.find_first_not_of('-'), word.size());
      throw UsageError(join("unexpected word \"", word, "\"", guess(word.substr(dashes))));
    }
    word.remove_prefix(2);
    for (Option& option : options_) {
      if (!word.empty() && (option.name == word || option.alias == word)) return option;
    }
    throw UsageError(join("unknown option --", word, guess(word)));
  }

  // " (did you mean --epochs?)", if an option is written much alike, or begins so.
  std::string guess(std::string_view word) const {
    std::size_t nearest = 2 + word.size() / 4;  // what is as far as that is not meant
    std::string_view meant;
    const auto look_at = [&](std::string_view name) {
      const bool begins_so = word.size() >= 2 && name.starts_with(word);
      const std::size_t distance = begins_so ? 0 : edit_distances(word, name, false).back();
      if (distance >= nearest) return;
      nearest = distance;
      meant = name;
    };
    for (const Option& option : options_) {
      look_at(option.name);
      if (!option.alias.empty()) look_at(option.alias);
    }
    look_at("help");
    look_at("version");
    return meant.empty() ? "" : join(" (did you mean --", meant, "?)");
  }

  std::string name_, summary_, example_;
  std::vector<Option> options_;
};

// Runs a tool, body(argc, argv) with the words in UTF-8: its exit code, or 2 for wrong usage and 1
// for a failure, each with one line on stderr.
template <class Body>
int run(const char* name, int argc, char** argv, Body&& body) {
  try {
    print_utf8();
    std::vector<std::string> texts = words_of_program(argc, argv);
    std::vector<char*> words;
    for (std::string& text : texts) words.push_back(text.data());
    words.push_back(nullptr);
    const int code = body(static_cast<int>(texts.size()), words.data());
    std::cout.flush();
    if (code > 128) return code;  // a signal; of SIGPIPE nobody hears
    require(static_cast<bool>(std::cout), "cannot write to the standard output");
    return code;
  } catch (const UsageError& error) {
    std::cerr << name << ": " << error.what() << "; see " << name << " --help\n";
    return 2;
  } catch (const std::bad_alloc&) {
    std::cerr << name << ": not enough memory\n";
  } catch (const std::exception& error) {
    std::cerr << name << ": " << error.what() << "\n";
  }
  return 1;
}

// ---- Text ---------------------------------------------------------------------------------------

inline std::string fixed(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

inline std::string percent(double share) { return fixed(100 * share, 2) + "%"; }

// ASCII letters in small, as columns, host names and AniList's users do not tell them apart.
inline std::string lower_case(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

// 75 -> "1:15", 3700 -> "1:01:40"
inline std::string duration(double seconds) {
  const auto whole = static_cast<long long>(seconds + 0.5);
  char text[64];
  if (whole < 3600)
    std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
  else
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60,
                  whole % 60);
  return text;
}

// 1234567 -> "1,234,567"
inline std::string grouped(std::uint64_t value) {
  std::string digits = join(value);
  for (std::size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, 1, ',');
  return digits;
}

// The lines of a file, or of the standard input if that is called "-": a file larger than memory
// passes through, one line must fit. Who sends a line and waits can be answered before the next.
class LineReader {
 public:
  explicit LineReader(const bert4rec::Path& path)
      : name_(path == "-" ? "standard input" : path_text(path)) {
    std::ios::sync_with_stdio(false);  // since who reads many lines prints many
    if (path == "-") {
      handle_ = standard_input();
    } else {
      file_.emplace(path, bert4rec::detail::os::Use::stream, "open");
      handle_ = file_->handle();
    }
  }

  const std::string& name() const { return name_; }

  // The next line, without the '\n' at its end, or a byte order mark before the first; false if
  // there is none.
  bool next(std::string& line) {
    while (!has_line() && fill()) {
    }
    if (at_ == buffer_.size()) return false;
    const std::size_t end = has_line() ? end_ : buffer_.size();
    line.assign(buffer_, at_, end - at_);
    at_ = end_ = std::min(end + 1, buffer_.size());
    if (std::exchange(first_, false) && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);
    return true;
  }

  // Whether next() need not wait for a line.
  bool has_line() {
    end_ = std::min(buffer_.find('\n', end_), buffer_.size());
    return end_ < buffer_.size();
  }

 private:
  static constexpr std::size_t block = std::size_t{1} << 20;

  // Reads what is there, at most a block; false at the end.
  bool fill() {
    buffer_.erase(0, at_);
    end_ -= at_, at_ = 0;
    const std::size_t before = buffer_.size();
    buffer_.resize(before + block);
    const auto count = bert4rec::detail::os::read(handle_, buffer_.data() + before, block);
    if (count < 0) bert4rec::detail::fail_system(bert4rec::path_from(name_), "read");
    buffer_.resize(before + static_cast<std::size_t>(count));
    return count > 0;
  }

  std::string name_, buffer_;
  bool first_ = true;
  std::size_t at_ = 0, end_ = 0;  // of the next line: where it begins; no '\n' stands before end_
  std::optional<bert4rec::detail::FileHandle> file_;
  bert4rec::detail::os::Handle handle_;
};

// ---- Progress -----------------------------------------------------------------------------------

// A bar on stderr that redraws itself, on a terminal; nothing elsewhere, or if it is to be quiet.
class ProgressBar {
 public:
  explicit ProgressBar(bool quiet = false) : terminal_(!quiet && on_terminal()) {}

  void show(std::size_t done, std::size_t total, const std::string& before,
            const std::string& after) {
    if (!terminal_) return;
    const auto now = std::chrono::steady_clock::now();
    if (drawn_ && done < total && now - last_ < std::chrono::milliseconds(100)) return;
    constexpr std::size_t width = 24;
    const std::size_t filled = total == 0 ? width : width * done / total;
    tell(join(before, " [", std::string(filled, '#'), std::string(width - filled, '.'), "] ", done,
              "/", total, "  ", after));
    last_ = now;
  }
  // So many things done of all, at what rate and how long it will take.
  void show_rate(std::size_t done, std::size_t total, const std::string& before,
                 std::string_view things) {
    using Seconds = std::chrono::duration<double>;
    const double rate =
        static_cast<double>(done) / Seconds(std::chrono::steady_clock::now() - start_).count();
    show(done, total, before,
         join(things, "  ", fixed(rate, rate < 10 ? 1 : 0), "/s  ",
              duration(static_cast<double>(total - done) / rate), " left"));
  }
  // A text in its place. The terminal cuts what is too wide: of a line that went on in the next the
  // first part would stay.
  void tell(const std::string& text) {
    if (!terminal_) return;
    std::cerr << join("\r\033[K\033[?7l", text, "\033[?7h") << std::flush;  // in one write
    drawn_ = true;
  }
  // A batch of training; top_1 is what its share of first ranks is called.
  void show(const bert4rec::BatchReport& report, std::string_view top_1) {
    const auto left =
        static_cast<double>((report.epochs - report.epoch + 1) * report.batches - report.batch);
    show(report.batch, report.batches, join("epoch ", report.epoch, "/", report.epochs),
         join("loss ", fixed(report.so_far.loss(), 4), "  ", top_1, " ",
              percent(report.so_far.accuracy(0)), "  ", fixed(report.rate, 1), " batches/s  ",
              duration(left / report.rate), " left"));
  }
  // Removes the bar, so that a line can be printed.
  void clear() {
    if (drawn_) std::cerr << "\r\033[K" << std::flush;
    drawn_ = false;
  }
  ~ProgressBar() { clear(); }

 private:
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), last_{};
};

}  // namespace cli

#endif  // BERT4REC_TOOLS_CLI_HPP
