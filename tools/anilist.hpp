// A polite client for AniList's GraphQL API (https://docs.anilist.co) on libcurl. Unofficial: made
// for AniList, not by AniList.
//
// One request is in flight at a time. Starts of requests are spaced, the server's headers can only
// slow that down, and a refusal is waited out. What can be transient (5xx, broken transfers,
// answers that are no JSON) is tried again a few times; everything else is an Error at once.

#ifndef BERT4REC_TOOLS_ANILIST_HPP
#define BERT4REC_TOOLS_ANILIST_HPP

#include <curl/curl.h>

#include "cli.hpp"

namespace anilist {

using bert4rec::Error;
using bert4rec::fail;
using bert4rec::in_context;
using bert4rec::join;
using bert4rec::Json;
using bert4rec::JsonReader;
using bert4rec::require;

inline constexpr const char* terms =
    "Unofficial: made for AniList, not by AniList. Its terms of use forbid hoarding and mass\n"
    "collection of its data and use of it as a data store: fetch what you need, and only lists of\n"
    "people who agree. Keep fetched lists out of commits and do not pass them on: they are "
    "personal\n"
    "data. https://docs.anilist.co/guide/terms-of-use\n\n"
    "Environment: ANILIST_TOKEN, if set, is sent as bearer token.";

struct Options {
  std::string endpoint = "https://graphql.anilist.co", referer, project_url;
  double requests_per_minute = 25, rate_pause = 60, retry_pause = 5, timeout = 60;
};

inline void add_options(cli::CommandLine& line, Options& options) {
  line.option("endpoint", options.endpoint, "where the API is");
  line.option("requests-per-minute", options.requests_per_minute,
              "0: as fast as the headers allow, for a server of your own");
  line.option("rate-pause", options.rate_pause, "seconds after a 429 that names no time");
  line.option("retry-pause", options.retry_pause, "seconds before the second try; then doubled");
  line.option("timeout", options.timeout, "seconds an answer may take");
  line.option("referer", options.referer, "sent as Referer: the URL of your project, say");
  line.option("project-url", options.project_url, "where to find you; sent in the User-Agent");
}

// The server says that there is no such thing, or not for us (404).
class NotFound : public Error {
 public:
  using Error::Error;
};

// The server failed again and again: perhaps only for this request.
class ServerFailure : public Error {
 public:
  using Error::Error;
};

// SIGINT or SIGTERM came. Not an Error, so that nothing takes it for a failure.
struct Interrupted {};

// Runs the body of a tool; where a signal ends it, says how to go on.
template <class Body>
int until_interrupted(int argc, char** argv, Body&& body) {
  cli::catch_stop_signals();
  try {
    return body();
  } catch (const Interrupted&) {
    std::vector<char*> words;  // a second --refresh would throw away what the first has fetched
    std::copy_if(argv, argv + argc, std::back_inserter(words),
                 [](std::string_view word) { return word != "--refresh"; });
    std::cout << "stopped; what was fetched is kept. Continue with:\n  "
              << cli::command_text(static_cast<int>(words.size()), words.data()) << std::endl;
    return 128 + cli::received_signal;
  }
}

namespace detail {

// Foreign text for one line on a terminal: at most 300 plain characters.
inline std::string printable(std::string_view text) {
  std::string out(text.substr(0, 300));
  for (char& c : out) c = c >= ' ' && c < 0x7f ? c : (c & 0x80) != 0 ? '?' : ' ';
  return text.size() > 300 ? out + "..." : out;
}

// What came back for one request.
struct Answer {
  CURLcode code = CURLE_OK;
  long status = 0;  // of HTTP; 0: none
  std::string body, problem;
  std::map<std::string, std::string, std::less<>> headers;  // by name in small letters
  bool too_large = false;

  // A header that is a whole number. Anything else ("-5", a date) counts as absent.
  std::optional<double> number(std::string_view name) const {
    const auto found = headers.find(name);
    if (found == headers.end() || found->second.empty()) return {};
    const std::string& text = found->second;
    if (text.find_first_not_of("0123456789") != text.npos || text.size() > 300) return {};
    double value = 0;
    bert4rec::detail::parse_number(text.data(), text.data() + text.size(), value);
    return value;
  }
};

// The answer as GraphQL has it: {"data": ..., "errors": [{"message", "status"}]}.
struct Envelope {
  std::string data, message;
  std::int64_t status = 200;  // of the first error
  bool failed = false;
};

inline void read_error(JsonReader& reader, Envelope& envelope) {
  std::int64_t status = 500;
  reader.object([&](std::string_view name) {
    if (name == "message" && !reader.is_null()) {
      envelope.message += join(envelope.message.empty() ? "" : "; ", reader.string());
    } else if (name == "status" && !reader.is_null()) {
      status = reader.integer();
    } else {
      reader.skip();
    }
  });
  if (!std::exchange(envelope.failed, true)) envelope.status = status;
}

inline Envelope read_envelope(std::string_view body) {
  JsonReader reader(body, "the answer");
  Envelope envelope;
  reader.object([&](std::string_view name) {
    if (name == "data") {
      envelope.data = reader.skip();
    } else if (name == "errors" && !reader.is_null()) {
      reader.array([&] { read_error(reader, envelope); });
    } else {
      reader.skip();
    }
  });
  reader.end();
  require(envelope.failed || !envelope.data.empty(), "the answer has neither data nor errors");
  return envelope;
}

}  // namespace detail

class Client {
 public:
  using Show = std::function<void(const std::string&)>;

  // `show` is called with words like "waiting 12 s: rate limit".
  explicit Client(Options options, Show show = {})
      : options_(std::move(options)), show_(std::move(show)) {
    if (const char* token = std::getenv("ANILIST_TOKEN")) token_ = token;
    check_options();
    require(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK, "cannot start libcurl");
    curl_.reset(curl_easy_init());
    require(curl_ != nullptr, "cannot start libcurl");
    add_header("Content-Type: application/json");
    add_header("Accept: application/json");
    if (!token_.empty()) add_header("Authorization: Bearer " + token_);
    set_up();
  }

  // Sends a query and returns the text of `data`.
  std::string ask(std::string_view query, const Json& variables) {
    Json request;
    request.set("query", query);
    request.set("variables", variables);
    const std::string text = request.text();
    for (int failures = 0, refusals = 0;;) {
      wait(next_start_, "rate limit");
      const detail::Answer answer = post(text);
      keep_pace(answer);
      std::string data;
      const std::string problem = judge(answer, data);
      if (problem.empty()) return data;
      if (problem == too_many) {
        if (++refusals > 5) fail(options_.endpoint, ": ", problem, ", 6 times; try again later");
        pause(refusal_pause(answer), "rate limit");
      } else {
        if (++failures > 4) {
          throw ServerFailure(join(options_.endpoint, ": ", problem, "; tried 5 times"));
        }
        pause(std::ldexp(options_.retry_pause, failures - 1), problem);
      }
    }
  }

 private:
  using Answer = detail::Answer;
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t max_bytes = 8'000'000;  // decoded; a full page is about 30 kB
  static constexpr std::string_view too_many = "HTTP 429: too many requests";

  void check_options() const {
    const Options& o = options_;
    const bool secure = o.endpoint.starts_with("https://");
    require(secure || o.endpoint.starts_with("http://"), "--endpoint ", o.endpoint,
            ": expected http:// or https://");
    require(token_.empty() || secure || o.endpoint.starts_with("http://127.0.0.1:"),
            "ANILIST_TOKEN would travel in the open; --endpoint must be https://");
    for (const char c : o.endpoint + o.referer + o.project_url + token_) {
      require(c > ' ' && c < 0x7f,
              "--endpoint, --referer, --project-url and ANILIST_TOKEN must be ",
              "plain ASCII without spaces");
    }
    for (const double length : {o.rate_pause, o.retry_pause, o.timeout}) {
      require(length > 0 && length <= 3600,
              "--rate-pause, --retry-pause and --timeout must lie above 0, up to 3600 seconds");
    }
    const double rate = o.requests_per_minute;
    require(rate >= 0 && rate <= 6000, "--requests-per-minute ", rate, ": expected 0 ... 6000");
    require(o.endpoint.find("anilist.co") == o.endpoint.npos || (rate > 0 && rate <= 90),
            "--requests-per-minute ", rate, ": AniList allows 90 at most, at times 30");
  }

  void add_header(const std::string& line) {
    curl_slist* longer = curl_slist_append(headers_.get(), line.c_str());
    require(longer != nullptr, "cannot start libcurl");
    static_cast<void>(headers_.release());
    headers_.reset(longer);
  }

  template <class Value>
  void set(CURLoption option, Value value) {
    const CURLcode code = curl_easy_setopt(curl_.get(), option, value);
    require(code == CURLE_OK, "libcurl: ", curl_easy_strerror(code));
  }

  void set_up() {
    std::string agent = join("bert4rec.hpp/", BERT4REC_VERSION_STRING);
    if (!options_.project_url.empty()) agent += join(" (+", options_.project_url, ")");
    set(CURLOPT_URL, options_.endpoint.c_str());
    set(CURLOPT_USERAGENT, agent.c_str());
    if (!options_.referer.empty()) set(CURLOPT_REFERER, options_.referer.c_str());
    set(CURLOPT_HTTPHEADER, headers_.get());
    set(CURLOPT_ACCEPT_ENCODING, "gzip");
    set(CURLOPT_FOLLOWLOCATION, 0L);
#if LIBCURL_VERSION_NUM >= 0x075500
    set(CURLOPT_PROTOCOLS_STR, "http,https");
#else
    set(CURLOPT_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_TIMEOUT_MS, static_cast<long>(1000 * options_.timeout));
    set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(1000 * std::min(20.0, options_.timeout)));
    set(CURLOPT_LOW_SPEED_LIMIT, 10L);  // bytes a second, for
    set(CURLOPT_LOW_SPEED_TIME, 30L);   // so many seconds: stalled
    set(CURLOPT_WRITEFUNCTION, &Client::on_body);
    set(CURLOPT_HEADERFUNCTION, &Client::on_header);
    set(CURLOPT_XFERINFOFUNCTION, &Client::on_progress);
    set(CURLOPT_NOPROGRESS, 0L);
  }

  // Counts decoded bytes: libcurl's own limits see neither what gzip unfolds to nor chunks.
  static std::size_t on_body(char* bytes, std::size_t, std::size_t count, void* user) {
    auto& answer = *static_cast<Answer*>(user);
    answer.too_large = answer.body.size() + count > max_bytes;
    if (answer.too_large) return 0;
    answer.body.append(bytes, count);
    return count;
  }

  static std::size_t on_header(char* bytes, std::size_t, std::size_t count, void* user) {
    auto& headers = static_cast<Answer*>(user)->headers;
    const std::string_view line(bytes, count);
    if (line.starts_with("HTTP/")) headers.clear();  // after "100 Continue", say
    const std::size_t colon = line.find(':');
    if (colon == line.npos || headers.size() >= 100) return count;
    std::string name(line.substr(0, colon));
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    const std::size_t begin = std::min(line.find_first_not_of(" \t", colon + 1), line.size());
    const std::size_t end = line.find_last_not_of(" \t\r\n") + 1;
    headers[name] = line.substr(begin, std::max(begin, end) - begin);
    return count;
  }

  static int on_progress(void*, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    return cli::received_signal != 0;
  }

  Answer post(const std::string& request) {
    Answer answer;
    char problem[CURL_ERROR_SIZE] = "";
    set(CURLOPT_ERRORBUFFER, problem);
    set(CURLOPT_WRITEDATA, &answer);
    set(CURLOPT_HEADERDATA, &answer);
    set(CURLOPT_POSTFIELDSIZE, static_cast<long>(request.size()));
    set(CURLOPT_POSTFIELDS, request.c_str());
    started_ = Clock::now();
    answer.code = curl_easy_perform(curl_.get());
    set(CURLOPT_ERRORBUFFER, static_cast<char*>(nullptr));
    if (answer.code == CURLE_ABORTED_BY_CALLBACK) throw Interrupted();
    curl_easy_getinfo(curl_.get(), CURLINFO_RESPONSE_CODE, &answer.status);
    answer.problem = *problem != '\0' ? problem : curl_easy_strerror(answer.code);
    return answer;
  }

  // Why to ask again, or nothing, with the text of `data`. Throws where asking again is no use.
  std::string judge(const Answer& answer, std::string& data) const {
    if (answer.status == 429) return std::string(too_many);
    refuse_monsters(answer);
    const bool final_status = answer.status >= 400 && answer.status < 500;
    if (answer.code != CURLE_OK && !final_status) return transfer_problem(answer);
    detail::Envelope envelope;
    try {
      envelope = detail::read_envelope(answer.body);
    } catch (const Error& error) {
      if (answer.status == 200) return error.what();
      envelope = {"", answer.body, answer.status, false};
    }
    const std::int64_t status = answer.status == 200 ? envelope.status : answer.status;
    if (status == 200 && !envelope.failed) {
      data = std::move(envelope.data);
      return {};
    }
    if (status == 429) return std::string(too_many);
    const std::string words = detail::printable(envelope.message);
    if (status == 404 && envelope.failed) throw NotFound(words.empty() ? "not found" : words);
    std::string problem = join("HTTP ", status, words.empty() ? "" : ": ", words);
    if (status >= 500) return problem;
    if (status == 403) problem += " (see --help for --referer and ANILIST_TOKEN)";
    fail(options_.endpoint, ": ", problem);
  }

  // What no AniList sends.
  void refuse_monsters(const Answer& answer) const {
    const std::string& server = options_.endpoint;
    if (answer.too_large) fail(server, ": the answer is larger than ", max_bytes, " bytes");
    if (answer.status < 300 || answer.status >= 400) return;
    const auto place = answer.headers.find("location");
    fail(server, ": HTTP ", answer.status, " to ",
         place == answer.headers.end() ? "nowhere" : detail::printable(place->second),
         ": redirects are not followed");
  }

  // Some problems of libcurl will not pass.
  std::string transfer_problem(const Answer& answer) const {
    for (const CURLcode lasting : {CURLE_UNSUPPORTED_PROTOCOL, CURLE_URL_MALFORMAT,
                                   CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CACERT_BADFILE}) {
      if (answer.code == lasting) fail(options_.endpoint, ": ", answer.problem);
    }
    return detail::printable(answer.problem);
  }

  // ---- Pace ----

  // When the next request may start. At 0 requests a minute only `Remaining: 0` holds it back.
  void keep_pace(const Answer& answer) {
    const double rate = options_.requests_per_minute;
    double interval = rate > 0 ? 60 / rate : 0;
    const auto limit = answer.number("x-ratelimit-limit");
    if (rate > 0 && limit && *limit >= 1) interval = std::max(interval, 60 / *limit);
    next_start_ = started_ + seconds(interval);
    const auto remaining = answer.number("x-ratelimit-remaining");
    if (remaining && *remaining == 0) {
      next_start_ = std::max(next_start_, Clock::now() + seconds(until_reset(answer)));
    }
  }

  // Times beyond an hour are taken for nonsense, here and below.
  double until_reset(const Answer& answer) const {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const double left =
        answer.number("x-ratelimit-reset").value_or(0) - std::chrono::duration<double>(now).count();
    return left > 0 && left <= 3600 ? left + 1 : options_.rate_pause;
  }

  double refusal_pause(const Answer& answer) const {
    const auto after = answer.number("retry-after");
    return after && *after <= 3600 ? *after + 1 : until_reset(answer);
  }

  static Clock::duration seconds(double count) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(count));
  }

  void pause(double length, std::string_view why) { wait(Clock::now() + seconds(length), why); }

  // In short naps, so that a signal ends it.
  void wait(Clock::time_point until, std::string_view why) {
    const bool worth_telling = show_ && until - Clock::now() > std::chrono::seconds(3);
    for (;;) {
      if (cli::received_signal != 0) throw Interrupted();
      const auto left = until - Clock::now();
      if (left <= Clock::duration::zero()) return;
      const double count = std::ceil(std::chrono::duration<double>(left).count());
      if (worth_telling) show_(join("waiting ", count, " s: ", why));
      std::this_thread::sleep_for(std::min<Clock::duration>(left, std::chrono::milliseconds(100)));
    }
  }

  Options options_;
  Show show_;
  std::string token_;
  std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers_{nullptr,
                                                                       curl_slist_free_all};
  std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl_{nullptr, curl_easy_cleanup};
  Clock::time_point started_{}, next_start_{};
};

// ---- Reading data ------------------------------------------------------------------------------

// Calls on_member(reader, name) for each member of `root` in {"<root>": {...}}.
template <class OnMember>
void read_root(std::string_view data, std::string_view root, OnMember&& on_member) {
  JsonReader reader(data, "the answer");
  bool found = false;
  reader.object([&](std::string_view name) {
    if (name != root) return void(reader.skip());
    found = true;
    reader.object([&](std::string_view member) { on_member(reader, member); });
  });
  reader.end();
  if (!found) reader.error("missing field \"", root, "\"");
}

inline std::int64_t read_integer(JsonReader& reader, std::int64_t low, std::int64_t high) {
  const std::int64_t value = reader.integer();
  if (value < low || value > high) reader.error(value, " is not in ", low, " ... ", high);
  return value;
}

inline std::int64_t read_id(JsonReader& reader) { return read_integer(reader, 1, 2147483647); }

// The value, or nothing for null.
template <class Read>
auto read_nullable(JsonReader& reader, Read&& read) -> std::optional<decltype(read())> {
  if (!reader.is_null()) return read();
  reader.null();
  return {};
}

inline std::string read_text(JsonReader& reader) {
  return read_nullable(reader, [&] { return std::string(reader.string()); }).value_or("");
}

// An array, or null for an empty one; elements that are null are left out.
template <class OnElement>
void read_array(JsonReader& reader, OnElement&& on_element) {
  if (reader.is_null()) return reader.null();
  reader.array([&] { reader.is_null() ? reader.null() : on_element(); });
}

// A day of which only the year, or the year and month, may be known; 0: unknown.
struct FuzzyDate {
  std::int64_t year = 0, month = 0, day = 0;

  // "2013-04-07", "2013-04", "2013" or nothing.
  std::string text() const {
    if (year < 1 || year > 9999) return {};
    std::string out = join(year);
    out.insert(0, 4 - out.size(), '0');
    const auto two_digits = [](std::int64_t value) { return join(value < 10 ? "-0" : "-", value); };
    if (month < 1 || month > 12) return out;
    out += two_digits(month);
    return day < 1 || day > 31 ? out : out + two_digits(day);
  }

  // Midnight UTC in Unix seconds, if it is a day of the calendar.
  std::optional<std::int64_t> at() const {
    if (text().size() != 10) return {};
    const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(year)),
                                           std::chrono::month(static_cast<unsigned>(month)),
                                           std::chrono::day(static_cast<unsigned>(day))};
    if (!date.ok()) return {};
    return std::int64_t{86400} * std::chrono::sys_days(date).time_since_epoch().count();
  }
};

inline FuzzyDate read_date(JsonReader& reader) {
  FuzzyDate date;
  if (reader.is_null()) return reader.null(), date;
  reader.object([&](std::string_view name) {
    std::int64_t* part = name == "year"    ? &date.year
                         : name == "month" ? &date.month
                         : name == "day"   ? &date.day
                                           : nullptr;
    if (part == nullptr || reader.is_null()) return void(reader.skip());
    *part = reader.integer();
  });
  return date;
}

// ---- Lists of users ----------------------------------------------------------------------------

// One title on somebody's list.
struct Entry {
  std::int64_t id = 0;  // of the title
  std::optional<std::int64_t>
      at;              // when it was watched: the day it was completed, or the last change
  std::string status;  // COMPLETED, CURRENT, PLANNING, ...
  double score = 0;    // 1 ... 100; 0: none
  std::optional<std::int64_t> progress, updated;
  std::string started, completed;
};

inline Json to_json(const Entry& entry) {
  const auto text = [](const std::string& value) { return value.empty() ? Json() : Json(value); };
  const auto number = [](const auto& value) { return value ? Json(*value) : Json(); };
  Json json;
  json.set("id", entry.id);
  json.set("at", number(entry.at));
  json.set("status", text(entry.status));
  json.set("score", entry.score);
  json.set("progress", number(entry.progress));
  json.set("started", text(entry.started));
  json.set("completed", text(entry.completed));
  json.set("updated", number(entry.updated));
  return json;
}

namespace detail {

inline Entry read_entry(JsonReader& reader) {
  Entry entry;
  FuzzyDate completed;
  constexpr std::int64_t most = 1'000'000'000'000;
  const auto integer = [&] { return read_integer(reader, 0, most); };
  reader.object([&](std::string_view name) {
    if (name == "mediaId") {
      entry.id = read_id(reader);
    } else if (name == "status") {
      entry.status = read_text(reader);
    } else if (name == "score") {
      entry.score = read_nullable(reader, [&] { return reader.number(); }).value_or(0);
      if (!(entry.score >= 0 && entry.score <= 100)) reader.error("a score not in 0 ... 100");
    } else if (name == "progress") {
      entry.progress = read_nullable(reader, integer);
    } else if (name == "updatedAt") {
      entry.updated = read_nullable(reader, integer);
    } else if (name == "startedAt") {
      entry.started = read_date(reader).text();
    } else if (name == "completedAt") {
      completed = read_date(reader);
    } else {
      reader.skip();
    }
  });
  if (entry.id == 0) reader.error("entry without the field \"mediaId\"");
  if (entry.updated == 0) entry.updated.reset();  // imported lists have 0 for "unknown"
  entry.completed = completed.text();
  entry.at = completed.at() ? completed.at() : entry.updated;
  return entry;
}

// Adds the entries of a chunk by id, the first of each; true if the server has another chunk.
inline bool read_chunk(std::string_view data, std::map<std::int64_t, Entry>& entries) {
  bool more = false, has_lists = false;
  read_root(data, "MediaListCollection", [&](JsonReader& reader, std::string_view name) {
    if (name == "hasNextChunk") {
      more = read_nullable(reader, [&] { return reader.boolean(); }).value_or(false);
    } else if (name == "lists") {
      has_lists = true;
      read_array(reader, [&] {
        reader.object([&](std::string_view field) {
          if (field != "entries") return void(reader.skip());
          read_array(reader, [&] {
            Entry entry = read_entry(reader);
            entries.try_emplace(entry.id, std::move(entry));
          });
        });
      });
    } else {
      reader.skip();
    }
  });
  require(has_lists, "the answer: missing field \"lists\"");
  return more;
}

}  // namespace detail

inline constexpr std::string_view list_query =
    "query ($name: String!, $chunk: Int, $perChunk: Int) { MediaListCollection(userName: $name, "
    "type: ANIME, chunk: $chunk, perChunk: $perChunk, forceSingleCompletedList: true) { "
    "hasNextChunk lists { entries { mediaId status score(format: POINT_100) progress updatedAt "
    "startedAt { year month day } completedAt { year month day } } } } }";

// The anime list of a user, PLANNING included, from the oldest to the newest; titles without a time
// stand last. Throws NotFound for a user who is unknown or private. The same entry stands in its
// status list and in every custom list, so titles are counted once.
inline std::vector<Entry> fetch_list(Client& client, const std::string& name) {
  constexpr int most_chunks = 22;  // AniList keeps 11,000 entries within reach
  std::map<std::int64_t, Entry> by_id;
  bool more = true;
  for (int chunk = 1; more && chunk <= most_chunks; ++chunk) {
    Json variables;
    variables.set("name", name);
    variables.set("chunk", chunk);
    variables.set("perChunk", 500);
    const std::string data = client.ask(list_query, variables);
    const std::size_t before = by_id.size();
    in_context(join("list of ", name), [&] { more = detail::read_chunk(data, by_id); });
    more = more && by_id.size() > before;
  }
  std::vector<Entry> entries;
  for (auto& [id, entry] : by_id) entries.push_back(std::move(entry));
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(!a.at, a.at) < std::pair(!b.at, b.at);  // by_id has sorted them by id
  });
  return entries;
}

}  // namespace anilist

#endif  // BERT4REC_TOOLS_ANILIST_HPP
