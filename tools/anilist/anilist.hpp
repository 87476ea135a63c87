// A polite client for AniList's GraphQL API (https://docs.anilist.co) on libcurl. Unofficial: made
// for AniList, not by AniList.
//
// One request is in flight at a time. A pause lies between the end of one and the start of the
// next; the server's headers can only make it longer, and a refusal is waited out. What can be
// transient (5xx, broken transfers, answers that are no JSON) is tried again a few times;
// everything else is an Error at once.

#ifndef BERT4REC_TOOLS_ANILIST_HPP
#define BERT4REC_TOOLS_ANILIST_HPP

#include <curl/curl.h>

#include <ctime>

#include "common/cli.hpp"

namespace anilist {

using bert4rec::Error;
using bert4rec::fail;
using bert4rec::in_context;
using bert4rec::join;
using bert4rec::Json;
using bert4rec::JsonReader;
using bert4rec::Path;
using bert4rec::path_exists;
using bert4rec::remove_path;
using bert4rec::require;
using bert4rec::shown;

inline constexpr const char* terms =
    "Unofficial: made for AniList, not by AniList. Its terms of use forbid hoarding and mass\n"
    "collection of its data and use of it as a data store: fetch what you need, and only lists of\n"
    "people who agree. Keep fetched lists out of commits and do not pass them on: they are "
    "personal\n"
    "data. https://docs.anilist.co/guide/terms-of-use\n\n"
    "Environment: ANILIST_TOKEN, if set, is sent as bearer token to https://graphql.anilist.co,\n"
    "or a server on this machine (for tests); with any other --endpoint the tools refuse to run.";

struct Options {
  std::string endpoint = "https://graphql.anilist.co", referer, project_url;
  double requests_per_minute = 25, rate_pause = 60, retry_pause = 5, patience = 900, timeout = 60;
};

inline void add_options(cli::CommandLine& line, Options& options) {
  line.option("endpoint", options.endpoint, "where the API is");
  line.option("requests-per-minute", options.requests_per_minute,
              "0: as fast as the headers allow, for a server of your own");
  line.option("rate-pause", options.rate_pause, "seconds after a 429 that names no time");
  line.option("retry-pause", options.retry_pause, "seconds before the second try; then doubled");
  line.option("patience", options.patience,
              "most seconds to wait because the server asks to; it ends with an error beyond");
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

// Words of an option that this client refuses.
template <class... Parts>
void check_usage(bool condition, const Parts&... parts) {
  if (!condition) throw cli::UsageError(join(parts...));
}

// What may stand in the head of a request.
inline bool is_plain(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

// ---- Where the API is --------------------------------------------------------------------------

// An endpoint as libcurl reads it. The transfer is given the same handle, so that the place that is
// judged here is the place that is asked, however odd the text.
class Endpoint {
 public:
  explicit Endpoint(std::string_view text) : url_(curl_url(), curl_url_cleanup) {
    if (url_ == nullptr) throw std::bad_alloc();
    check_usage(is_plain(text), "--endpoint ", shown(text), ": expected ASCII without spaces");
    const std::string url(text);
    const CURLUcode code = curl_url_set(url_.get(), CURLUPART_URL, url.c_str(), 0);
    if (code == CURLUE_OUT_OF_MEMORY) throw std::bad_alloc();
    const bool valid = code == CURLUE_OK;
    const std::string scheme = cli::lower_case(part(CURLUPART_SCHEME).value_or(""));
    check_usage(valid && (scheme == "https" || scheme == "http"), "--endpoint ", shown(text),
                ": expected http:// or https:// and a host");
    for (const CURLUPart other :
         {CURLUPART_USER, CURLUPART_PASSWORD, CURLUPART_OPTIONS, CURLUPART_FRAGMENT}) {
      check_usage(!part(other), "--endpoint ", shown(text),
                  ": expected neither a user name (before \"@\") nor a fragment (behind \"#\")");
    }
    std::string_view host = host_ = cli::lower_case(part(CURLUPART_HOST).value_or(""));
    if (host.ends_with('.')) host.remove_suffix(1);  // the same host, as DNS has it
    is_anilist_ = host == "anilist.co" || host.ends_with(".anilist.co");
    is_local_ = host == "127.0.0.1" || host == "[::1]" || host == "localhost";
    is_secure_ = scheme == "https";
    write_text(scheme);
  }

  CURLU* handle() const { return url_.get(); }
  // In one spelling for all that mean the same: scheme and host in small letters, no usual port.
  const std::string& text() const { return text_; }

  bool is_anilist() const { return is_anilist_; }
  bool is_local() const { return is_local_; }  // this machine
  bool may_have_token() const { return is_local_ || (is_anilist_ && is_secure_); }

 private:
  std::optional<std::string> part(CURLUPart which, unsigned flags = 0) const {
    char* text = nullptr;
    const CURLUcode code = curl_url_get(url_.get(), which, &text, flags);
    const std::unique_ptr<char, decltype(&curl_free)> owner(text, curl_free);
    if (code == CURLUE_OUT_OF_MEMORY) throw std::bad_alloc();
    return code == CURLUE_OK ? std::optional<std::string>(text) : std::nullopt;
  }

  void write_text(const std::string& scheme) {
    const auto port = part(CURLUPART_PORT, CURLU_NO_DEFAULT_PORT);
    const auto path = part(CURLUPART_PATH), query = part(CURLUPART_QUERY);
    text_ = join(scheme, "://", host_, port ? ":" + *port : "");
    if (path && *path != "/") text_ += *path;
    if (query) text_ += "?" + *query;
  }

  std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> url_;
  std::string host_, text_;
  bool is_anilist_ = false, is_local_ = false, is_secure_ = false;
};

namespace detail {

// What came back for one request.
struct Answer {
  CURLcode code = CURLE_OK;
  long status = 0;  // of HTTP; 0: none
  std::string body, problem;
  std::map<std::string, std::string, std::less<>> headers;  // by name in small letters
  bool too_large = false;

  // The text of a header; "" if there is none.
  std::string header(std::string_view name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }

  // A header that is a whole number, of any size. Anything else ("-5", "soon") counts as absent.
  std::optional<double> number(std::string_view name) const {
    const std::string text = header(name);
    if (text.empty() || text.find_first_not_of("0123456789") != text.npos) return {};
    if (text.size() > 300) return std::numeric_limits<double>::infinity();
    double value = 0;
    bert4rec::detail::parse_number(text.data(), text.data() + text.size(), value);
    return value;
  }

  // Seconds until the server may be asked again, if it says so: Retry-After in seconds or as a
  // date, whatever the answer; else, for one who has used up the limit, the time of
  // X-RateLimit-Reset. What is negative, neither number nor date, or a time that is over says
  // nothing.
  std::optional<double> wait(bool limit_is_used_up) const {
    if (const auto after = number("retry-after")) return after;
    const auto now = static_cast<double>(std::time(nullptr));
    const std::string text = cli::lower_case(header("retry-after"));
    const bool is_date = text >= "a" && text < "{";  // "Wed, 21 Oct 2099 07:28:00 GMT"
    const auto date = static_cast<double>(is_date ? curl_getdate(text.c_str(), nullptr) : -1);
    if (date > now) return date - now;
    const double reset = limit_is_used_up ? number("x-ratelimit-reset").value_or(0) : 0;
    return reset > now ? std::optional(reset - now) : std::nullopt;
  }
};

// "2099-10-21 07:28:00 UTC", so many seconds from now.
inline std::string utc_in(double seconds) {
  const double at = static_cast<double>(std::time(nullptr)) + seconds;
  if (!(at < 253402300800)) return "the year 10000";
  const std::tm parts = bert4rec::detail::os::utc(static_cast<std::time_t>(at));
  char text[80];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

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
      : options_(std::move(options)), show_(std::move(show)), endpoint_(options_.endpoint) {
    if (const char* token = std::getenv("ANILIST_TOKEN")) token_ = token;
    check_options();
    require(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK, "cannot start libcurl");
    curl_.reset(curl_easy_init());
    require(curl_ != nullptr, "cannot start libcurl");
    add_header("Content-Type: application/json");
    add_header("Accept: application/json");
    add_header("Expect:");  // no "100-continue", after which libcurl may send a second time
    if (!token_.empty()) add_header("Authorization: Bearer " + token_);
    set_up();
    // The last request of a program that has just ended counts too.
    if (options_.requests_per_minute > 0) hold(60 / options_.requests_per_minute, rate_limit);
  }

  const std::string& endpoint() const { return endpoint_.text(); }

  // Sends a query and returns the text of `data`.
  std::string ask(std::string_view query, const Json& variables) {
    Json request;
    request.set("query", query);
    request.set("variables", variables);
    const std::string text = request.text();
    for (int failures = 0, refusals = 0;;) {
      wait();
      const detail::Answer answer = post(text);
      keep_pace(answer);
      std::string data;
      const std::string problem = judge(answer, data);
      if (problem.empty()) return data;
      if (problem == too_many) {
        if (++refusals > 5) fail(endpoint(), ": ", problem, ", 6 times; try again later");
        hold_for_limit(answer);
      } else {
        if (++failures > 4) {
          throw ServerFailure(join(endpoint(), ": ", problem, "; tried 5 times"));
        }
        hold(std::ldexp(options_.retry_pause, failures - 1), problem);
      }
    }
  }

 private:
  using Answer = detail::Answer;
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t max_bytes = 8'000'000;  // decoded; a full page is about 30 kB
  static constexpr std::string_view too_many = "HTTP 429: too many requests",
                                    rate_limit = "rate limit";

  void check_options() const {
    const Options& o = options_;
    check_usage(is_plain(o.referer + o.project_url + token_), "--referer, --project-url and ",
                "ANILIST_TOKEN must be plain ASCII without spaces");
    check_usage(token_.empty() || endpoint_.may_have_token(), "ANILIST_TOKEN is set, but is only ",
                "for https://graphql.anilist.co and servers on this machine: unset it to ask ",
                endpoint());
    for (const double length : {o.rate_pause, o.retry_pause, o.timeout}) {
      check_usage(length > 0 && length <= 3600,
                  "--rate-pause, --retry-pause and --timeout must lie above 0, up to 3600 seconds");
    }
    check_usage(o.patience >= 0 && o.patience <= 1e6, "--patience ", o.patience,
                ": expected 0 ... 1000000 seconds");
    const double rate = o.requests_per_minute;
    check_usage(rate == 0 || (rate >= 0.01 && rate <= 6000), "--requests-per-minute ", rate,
                ": expected 0, or 0.01 ... 6000");
    check_usage(!endpoint_.is_anilist() || (rate > 0 && rate <= 90), "--requests-per-minute ", rate,
                ": AniList allows 90 at most, at times 30");
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
    set(CURLOPT_CURLU, endpoint_.handle());
    if (endpoint_.is_local()) set(CURLOPT_PROXY, "");  // which would see the token
    set(CURLOPT_USERAGENT, agent.c_str());
    if (!options_.referer.empty()) set(CURLOPT_REFERER, options_.referer.c_str());
    set(CURLOPT_HTTPHEADER, headers_.get());
    set(CURLOPT_ACCEPT_ENCODING, "gzip");
    set(CURLOPT_FOLLOWLOCATION, 0L);
    // A connection is used once. On one that it had kept, libcurl sends a request a second time, by
    // itself and at once, where the server closes it without an answer; and what a server sent
    // beyond its Content-Length would be read as the beginning of the next answer. HTTP/2 has
    // a second sending of its own (for REFUSED_STREAM).
    set(CURLOPT_FORBID_REUSE, 1L);
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
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
    const std::string name = cli::lower_case(line.substr(0, colon));
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
    answer.code = curl_easy_perform(curl_.get());
    set(CURLOPT_ERRORBUFFER, static_cast<char*>(nullptr));
    if (answer.code == CURLE_ABORTED_BY_CALLBACK) throw Interrupted();
    curl_easy_getinfo(curl_.get(), CURLINFO_RESPONSE_CODE, &answer.status);
    answer.problem = *problem != '\0' ? problem : curl_easy_strerror(answer.code);
    return answer;
  }

  // Why to ask again, or nothing, with the text of `data`. Throws where asking again is no use. A
  // 403 ends it however it arrives.
  std::string judge(const Answer& answer, std::string& data) const {
    if (answer.status == 429) return std::string(too_many);
    refuse_monsters(answer);
    if (answer.code != CURLE_OK && answer.status != 403) return transfer_problem(answer);
    detail::Envelope envelope;
    try {
      envelope = detail::read_envelope(answer.body);
    } catch (const Error& error) {
      // JSON that does not parse was cut, by a Content-Length that is too small, say.
      const bool is_cut = answer.body.starts_with('{') && answer.status != 403;
      if (answer.status == 200 || is_cut) return error.what();
      envelope = {"", answer.body, answer.status, false};
    }
    const std::int64_t status = answer.status == 200 ? envelope.status : answer.status;
    if (status == 200 && !envelope.failed) {
      data = std::move(envelope.data);
      return {};
    }
    if (status == 429) return std::string(too_many);
    const std::string words = shown(envelope.message, 300);
    if (status == 404 && envelope.failed) throw NotFound(words.empty() ? "not found" : words);
    std::string problem = join("HTTP ", status, words.empty() ? "" : ": ", words);
    if (status >= 500) return problem;
    if (status == 403) problem += " (see --help for --referer and ANILIST_TOKEN)";
    fail(endpoint(), ": ", problem);
  }

  // What no AniList sends.
  void refuse_monsters(const Answer& answer) const {
    if (answer.too_large) fail(endpoint(), ": the answer is larger than ", max_bytes, " bytes");
    if (answer.status < 300 || answer.status >= 400) return;
    const std::string place = answer.header("location");
    fail(endpoint(), ": HTTP ", answer.status, " to ", place.empty() ? "nowhere" : shown(place),
         ": redirects are not followed");
  }

  // Some problems of libcurl will not pass. (One that sounds so and may pass is "unsupported
  // protocol": an answer that does not begin like HTTP.)
  std::string transfer_problem(const Answer& answer) const {
    for (const CURLcode lasting : {CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CACERT_BADFILE}) {
      if (answer.code == lasting) fail(endpoint(), ": ", answer.problem);
    }
    return shown(answer.problem, 300);
  }

  // ---- Pace ----

  // After a request. The pause counts from its end, however it ended: only then is it certain that
  // the server has had it. At 0 requests a minute only what the server asks for holds the next one
  // back.
  void keep_pace(const Answer& answer) {
    const double rate = options_.requests_per_minute;
    const auto limit = answer.number("x-ratelimit-limit");
    if (rate > 0) hold(60 / (limit && *limit >= 1 ? std::min(rate, *limit) : rate), rate_limit);
    if (const auto length = answer.wait(false)) hold_as_asked(*length);
    if (answer.number("x-ratelimit-remaining") == 0.0) hold_for_limit(answer);
  }

  // After a refusal, or once nothing of the limit remains.
  void hold_for_limit(const Answer& answer) {
    const auto length = answer.wait(true);
    if (length)
      hold_as_asked(*length);
    else
      hold(options_.rate_pause, rate_limit);
  }

  // A second longer than the server asks, as it counts in whole ones. Beyond the patience no
  // further request is sent at all.
  void hold_as_asked(double length) {
    if (length <= options_.patience)
      hold(length + 1, rate_limit);
    else
      closed_until_ = detail::utc_in(length);
  }

  void hold(double length, std::string_view why) {
    const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                          std::chrono::duration<double>(length));
    if (until > next_start_) next_start_ = until, why_ = why;
  }

  // Until the next request may start; in short naps, so that a signal ends it.
  void wait() {
    require(closed_until_.empty(), endpoint(), ": asks for no request before ", closed_until_,
            ", more than --patience ", options_.patience, " seconds away");
    using Seconds = std::chrono::duration<double>;
    const auto left = [&] { return Seconds(next_start_ - Clock::now()).count(); };
    const auto text = [&] { return join("waiting ", std::ceil(left()), " s: ", why_); };
    const bool worth_telling = left() > 3;
    if (worth_telling && !cli::on_terminal()) std::cerr << text() << std::endl;
    for (;;) {
      if (cli::received_signal != 0) throw Interrupted();
      if (left() <= 0) return;
      if (worth_telling && show_) show_(text());
      std::this_thread::sleep_for(Seconds(std::clamp(left(), 0.0, 0.1)));
    }
  }

  Options options_;
  Show show_;
  Endpoint endpoint_;
  std::string token_, why_, closed_until_;
  std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers_{nullptr,
                                                                       curl_slist_free_all};
  std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl_{nullptr, curl_easy_cleanup};
  Clock::time_point next_start_{};
};

// ---- What was fetched before -------------------------------------------------------------------

// Answers kept in a folder, so that nothing is fetched twice: a file of sealed JSON for each,
//   {"checksum": ..., "endpoint": ..., "request": ..., "fetched": <Unix time>, "answer": ...}
// A file counts only if this server gave that answer to this request within the last --max-age
// days. Any other is as good as none: too old, from the future (some clock was wrong), from another
// server, of an earlier version, or damaged. Asking again costs one request then; an error would
// cost all of them, by --refresh. The caller holds the lock of the folder above.
class Store {
 public:
  Store(const Client& client, Path folder, double max_age)
      : folder_(std::move(folder)), endpoint_(client.endpoint()), max_age_(86400 * max_age) {}

  bool exists() const { return path_exists(folder_); }

  void create() const {
    bert4rec::make_folder(folder_);
    bert4rec::remove_stale_temporaries(folder_);
  }

  // Renamed first, so that it is there as a whole or not at all.
  void clear() const {
    remove_path(discarded());  // by one who was killed
    if (!exists()) return;
    std::error_code problem;
    std::filesystem::rename(folder_, discarded(), problem);
    require(!problem, folder_, ": cannot rename: ", problem.message());
    remove_path(discarded());
  }

  // The answer that is kept under that name, or else what fetch() returns.
  template <class Fetch>
  Json get(const std::string& name, const Json& request, Fetch&& fetch) {
    const Path file = folder_ / bert4rec::path_from(name);
    if (std::optional<Json> kept = find(file, request)) {
      ++kept_count;
      return *std::move(kept);
    }
    Json answer = fetch();
    Json record;
    record.set("endpoint", endpoint_);
    record.set("request", request);
    record.set("fetched", std::time(nullptr));
    record.set("answer", answer);
    bert4rec::write_file(file, bert4rec::sealed(record.text()) + "\n");
    ++fetched_count;
    return answer;
  }

  void forget(const std::string& name) const { remove_path(folder_ / bert4rec::path_from(name)); }

  // How many answers came from the folder and from the server, and how many files were damaged.
  std::size_t kept_count = 0, fetched_count = 0, damaged_count = 0;

 private:
  Path discarded() const { return folder_.parent_path() / "discarded"; }

  std::optional<Json> find(const Path& file, const Json& request) {
    if (!path_exists(file)) return {};
    const std::string text = bert4rec::read_file(file);
    try {
      require(bert4rec::check_seal(text, "it"), "it has no checksum");
      const Json record = Json::parse(text);
      const auto age = static_cast<double>(std::time(nullptr) - record.at("fetched").integer());
      const bool fits = record.at("endpoint").string() == endpoint_ &&
                        record.at("request").text() == request.text();
      return fits && age >= 0 && age < max_age_ ? std::optional(record.at("answer")) : std::nullopt;
    } catch (const Error&) {
      ++damaged_count;
      return {};
    }
  }

  Path folder_;
  std::string endpoint_;
  double max_age_;
};

inline void add_max_age(cli::CommandLine& line, double& days) {
  line.option("max-age", days, "days that what was fetched may be used again");
}

inline void check_max_age(double days) {
  check_usage(days >= 0 && days <= 36500, "--max-age ", days, ": expected 0 ... 36500 days");
}

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
