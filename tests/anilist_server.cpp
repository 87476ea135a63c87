// A stand-in for AniList on 127.0.0.1: a made-up catalogue, made-up users, and every fault we know.
//   anilist_server --titles 230 --log requests.log --lifetime 60    prints its port, then serves
//   anilist_server --titles 230 --print-items 100                   the items.jsonl to expect
//   anilist_server --titles 230 --print-histories 100,20 Alice Bob  the histories.jsonl to expect
// (of a catalogue of 100 titles and at least 20 of them). One connection at a time; no libraries,
// and nothing of bert4rec.hpp, so that a mistake there is not made here too.
//
//   anilist_server --flip FILE 17                                   flips bit 17 of a file
//
// Log: "<ms> <what> <answer>" for each request, <ms> being the time at which it had arrived, with
// OVERLAP if a second connection was waiting while one was answered and EARLY if the request came
// before a Retry-After had run out.

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using std::string;
using std::string_view;

struct Plan {
  long titles = 230, delay_ms = 0, lifetime = 60, limit = 0, seed = 1, from = 1, times = 1000000;
  long port = 0;  // 0: any that is free
  double window = 1, random_faults = 0;
  bool adult = false, shift = false, gzip = false, retry_after = true, reset = true;
  string fault, log = "/dev/null", user_fault;
};

// ---- Catalogue --------------------------------------------------------------------------------

struct Title {
  long id = 0, popularity = 0, score = -1;  // -1: null
  std::optional<string> romaji, english, native;
  bool no_titles = false, adult = false;
  std::vector<string> genres;
  string format, status;
  std::array<long, 3> start{};  // 0: null
};

long first_id = 500000;  // --first-id: another server has other titles

// Number `rank` by popularity. Three share a popularity and are told apart by id.
Title title(long rank) {
  Title t;
  const string number = std::to_string(rank);
  t.id = first_id - 10 * (rank / 3) + rank % 3;
  t.popularity = 900000 - 10 * (rank / 3);
  t.adult = rank % 17 == 5;
  t.no_titles = rank % 50 == 49;
  if (rank % 7 != 3) t.romaji = "Shin \"Sekai\" \\ " + number + " / \xC3\xA9t\xC3\xA9";
  if (rank % 2 == 0) t.english = rank % 10 == 4 ? "Line\nbreak\ttab " + number : "Title " + number;
  if (rank % 3 != 1)
    t.native = "\xE9\x9B\xB7\xE9\xB3\xB4 \xF0\x9F\x90\x89\xF0\x9F\x8E\x8C " + number;
  if (rank % 4 != 0) t.genres = {"Action", "Slice of Life"};
  t.format = rank % 11 == 6 ? "" : rank % 2 ? "MOVIE" : "TV";
  t.status = rank % 13 == 8 ? "" : "FINISHED";
  t.score = rank % 5 == 2 ? -1 : 40 + rank % 60;
  t.start = {1990 + rank % 30, rank % 6 == 1 ? 0 : 1 + rank % 12,
             rank % 4 == 1 ? 0 : 1 + rank % 28};
  if (rank % 20 == 10) t.start = {};
  return t;
}

// As PHP writes it: escaped slashes and \uXXXX; or plain UTF-8 as the tools write it.
string quoted(const string& text, bool php) {
  string out = "\"";
  char buffer[16];
  for (std::size_t i = 0; i < text.size(); ++i) {
    const unsigned c = static_cast<unsigned char>(text[i]);
    if (c == '"' || c == '\\' || (php && c == '/')) {
      out += '\\', out += text[i];
    } else if (c < 0x20) {
      std::snprintf(buffer, sizeof buffer, "\\u%04x", c), out += buffer;
    } else if (c < 0x80 || !php) {
      out += text[i];
    } else {
      const int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
      unsigned code = c & (0x3Fu >> more);
      for (int k = 0; k < more; ++k) code = code << 6 | (static_cast<unsigned>(text[++i]) & 0x3F);
      if (code >= 0x10000) {
        std::snprintf(buffer, sizeof buffer, "\\u%04x", 0xD800 + ((code - 0x10000) >> 10));
        out += buffer;
        code = 0xDC00 + ((code - 0x10000) & 0x3FF);
      }
      std::snprintf(buffer, sizeof buffer, "\\u%04x", code), out += buffer;
    }
  }
  return out + "\"";
}

string or_null(const std::optional<string>& text, bool php) {
  return text ? quoted(*text, php) : "null";
}

string text_or_null(const string& text) { return text.empty() ? "null" : quoted(text, false); }

string number_or_null(long value) { return value == 0 ? "null" : std::to_string(value); }

string date_json(const std::array<long, 3>& date) {
  return "{\"year\":" + number_or_null(date[0]) + ",\"month\":" + number_or_null(date[1]) +
         ",\"day\":" + number_or_null(date[2]) + "}";
}

string date_text(const std::array<long, 3>& date) {
  char buffer[80] = "";
  if (date[0] && date[1] && date[2]) {
    std::snprintf(buffer, sizeof buffer, "%04ld-%02ld-%02ld", date[0], date[1], date[2]);
  } else if (date[0] && date[1]) {
    std::snprintf(buffer, sizeof buffer, "%04ld-%02ld", date[0], date[1]);
  } else if (date[0]) {
    std::snprintf(buffer, sizeof buffer, "%04ld", date[0]);
  }
  return buffer;
}

string title_answer(const Title& t, bool php) {
  string genres;
  for (const string& genre : t.genres) genres += (genres.empty() ? "" : ",") + quoted(genre, php);
  const string titles = "{\"romaji\":" + or_null(t.romaji, php) +
                        ",\"english\":" + or_null(t.english, php) +
                        ",\"native\":" + or_null(t.native, php) + "}";
  return "{\"id\":" + std::to_string(t.id) + ",\"title\":" + (t.no_titles ? "null" : titles) +
         ",\"genres\":[" + genres + "],\"format\":" + text_or_null(t.format) +
         ",\"status\":" + text_or_null(t.status) +
         ",\"averageScore\":" + (t.score < 0 ? "null" : std::to_string(t.score)) +
         ",\"popularity\":" + std::to_string(t.popularity) +
         ",\"startDate\":" + (t.start[0] ? date_json(t.start) : "null") + "}";
}

string title_line(const Title& t) {
  string genres;
  for (const string& genre : t.genres)
    genres += (genres.empty() ? "" : ", ") + quoted(genre, false);
  const bool none = t.no_titles;
  string out = "{\"id\": " + std::to_string(t.id) +
               ", \"title\": {\"romaji\": " + (none ? "null" : or_null(t.romaji, false)) +
               ", \"english\": " + (none ? "null" : or_null(t.english, false)) +
               ", \"native\": " + (none ? "null" : or_null(t.native, false)) + "}, \"genres\": [" +
               genres + "]";
  if (!t.format.empty()) out += ", \"format\": " + quoted(t.format, false);
  if (!t.status.empty()) out += ", \"status\": " + quoted(t.status, false);
  if (t.score >= 0) out += ", \"average_score\": " + std::to_string(t.score);
  out += ", \"popularity\": " + std::to_string(t.popularity);
  if (t.start[0]) out += ", \"start_date\": \"" + date_text(t.start) + "\"";
  return out + "}";
}

std::vector<Title> catalogue(const Plan& plan, bool adult) {
  std::vector<Title> titles;
  for (long rank = 0; rank < plan.titles; ++rank) {
    const Title t = title(rank);
    if (adult || !t.adult) titles.push_back(t);
  }
  return titles;
}

// ---- Users ------------------------------------------------------------------------------------

struct Entry {
  long id, score, progress, updated;
  string status;
  std::array<long, 3> started, completed;
};

// The lists of somebody: those of a status, and custom ones that repeat entries.
struct List {
  bool custom;
  std::vector<Entry> entries;
};

Entry entry(const Plan& plan, long place, long i) {
  static const char* statuses[] = {"COMPLETED", "COMPLETED", "CURRENT",  "DROPPED",
                                   "COMPLETED", "PLANNING",  "REPEATING"};
  Entry e{};
  e.id = place < plan.titles ? title(place).id : 900000 + place;
  e.status = statuses[i % 7];
  e.score = i % 3 == 0 ? 0 : 30 + i * 7 % 71;
  e.progress = i % 25;
  e.updated = i % 9 == 5 ? 0 : 1400000000 + i * 7919 % 1009 * 86000;
  if (i % 4 == 0) e.completed = {2008 + i % 15, 1 + i % 12, 1 + i % 28};
  if (i % 4 == 1) e.completed = {2016, 0, 0};
  if (i % 24 == 8) e.completed = {2015, 2, 31};  // no such day
  if (i % 2 == 0) e.started = {2007, 1 + i % 12, 0};
  return e;
}

std::vector<Entry> entries(const Plan& plan, long first, long count) {
  std::vector<Entry> out;
  for (long i = 0; i < count; ++i) out.push_back(entry(plan, first + i, i));
  return out;
}

std::vector<List> by_status(const std::vector<Entry>& all) {
  std::map<string, List> lists;
  for (const Entry& e : all) lists[e.status].entries.push_back(e);
  std::vector<List> out;
  for (auto& [status, list] : lists) out.push_back(list);
  return out;
}

// Nothing for a user who cannot be read.
std::optional<std::vector<List>> lists_of(const Plan& plan, const string& name) {
  if (name == "Alice" || name == "Endless") return by_status(entries(plan, 3, 60));
  if (name == "Bob") return by_status(entries(plan, plan.titles - 40, 60));
  if (name == "Big") return by_status(entries(plan, 0, 1200));
  if (name == "Few") return by_status(entries(plan, 9, 5));
  if (name == "Nobody0") return std::vector<List>{};
  if (name.starts_with("User")) return by_status(entries(plan, std::atol(&name[4]) % 100, 45));
  if (name == "Custom") {
    std::vector<List> lists = by_status(entries(plan, 20, 40));
    const auto repeated = entries(plan, 20, 40);
    lists.insert(lists.begin(), {true, {repeated.begin() + 5, repeated.begin() + 30}});
    lists.push_back({true, {repeated.begin() + 10, repeated.end()}});
    lists.back().entries.push_back(entry(plan, 100, 2));  // hidden from the status lists
    return lists;
  }
  std::vector<Entry> all = entries(plan, 40, 30);
  if (name == "Zero") {
    for (Entry& e : all) e.updated = 0, e.completed = {};
    return by_status(all);
  }
  if (name == "Planner") {
    for (Entry& e : all) e.status = "PLANNING";
    return by_status(all);
  }
  return {};
}

string entry_answer(const Entry& e) {
  return "{\"id\":" + std::to_string(e.id + 7) + ",\"mediaId\":" + std::to_string(e.id) +
         ",\"status\":\"" + e.status + "\",\"score\":" + std::to_string(e.score) +
         ",\"progress\":" + std::to_string(e.progress) +
         ",\"updatedAt\":" + std::to_string(e.updated) + ",\"startedAt\":" + date_json(e.started) +
         ",\"completedAt\":" + date_json(e.completed) + "}";
}

// A chunk is a window over all entries, one list behind the other.
string list_answer(const std::vector<List>& lists, std::size_t chunk, std::size_t size,
                   bool endless) {
  const std::size_t begin = endless ? 0 : (chunk - 1) * size, end = begin + size;
  std::size_t at = 0;
  string out;
  for (const List& list : lists) {
    string inside;
    for (const Entry& e : list.entries) {
      if (at >= begin && at < end) inside += (inside.empty() ? "" : ",") + entry_answer(e);
      ++at;
    }
    if (inside.empty()) continue;
    out += string(out.empty() ? "" : ",") +
           "{\"isCustomList\":" + (list.custom ? "true" : "false") +
           ",\"status\":" + (list.custom ? "null" : "\"" + list.entries[0].status + "\"") +
           ",\"entries\":[" + inside + "]}";
  }
  const string more = endless || at > end ? "true" : chunk == 1 ? "null" : "false";
  return "{\"data\":{\"MediaListCollection\":{\"hasNextChunk\":" + more + ",\"lists\":[" + out +
         "]}}}";
}

// Days since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
long days(long y, long m, long d) {
  y -= m <= 2;
  const long era = y / 400, of_era = y - era * 400;
  const long of_year = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
  return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

std::optional<long> time_of(const Entry& e) {
  const auto [y, m, d] = e.completed;
  if (y && m && d && !(m == 2 && d == 31)) return 86400 * days(y, m, d);
  if (e.updated > 0) return e.updated;
  return {};
}

string history_line(const Plan& plan, const string& name, long count, long minimum) {
  const auto lists = lists_of(plan, name);
  if (!lists) return "";
  std::map<long, Entry> unique;
  for (const List& list : *lists)
    for (const Entry& e : list.entries) unique.emplace(e.id, e);
  std::set<long> known;
  const std::vector<Title> titles = catalogue(plan, plan.adult);
  for (long i = 0; i < count; ++i) known.insert(titles.at(static_cast<std::size_t>(i)).id);
  std::vector<std::pair<std::pair<long, long>, string>> rows;
  long watched = 0;
  for (const auto& [id, e] : unique) {
    watched += e.status != "PLANNING" && known.count(id) > 0;
    const auto at = time_of(e);
    const string updated = number_or_null(e.updated);
    rows.push_back(
        {{at.value_or(1L << 60), id},
         "{\"id\": " + std::to_string(id) + ", \"at\": " + (at ? std::to_string(*at) : "null") +
             ", \"status\": \"" + e.status + "\", \"score\": " + std::to_string(e.score) +
             ", \"progress\": " + std::to_string(e.progress) +
             ", \"started\": " + text_or_null(date_text(e.started)) + ", \"completed\": " +
             text_or_null(date_text(e.completed)) + ", \"updated\": " + updated + "}"});
  }
  if (watched < minimum) return "";
  std::sort(rows.begin(), rows.end());
  string out;
  for (const auto& [key, row] : rows) out += (out.empty() ? "" : ", ") + row;
  return "{\"user\": \"" + name + "\", \"entries\": [" + out + "]}\n";
}

// ---- HTTP -------------------------------------------------------------------------------------

using Clock = std::chrono::steady_clock;

double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

void nap(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

bool send_all(int socket, string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

// Has the other side gone away?
bool is_gone(int socket) {
  char byte;
  return ::recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

std::uint32_t crc32(string_view bytes) {
  std::uint32_t crc = 0xffffffff;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

// Stored blocks only: enough to see that answers are unpacked.
string gzip(string_view bytes) {
  string out("\x1f\x8b\x08\0\0\0\0\0\0\x03", 10);
  const auto little = [&](std::uint32_t value, int count) {
    for (int k = 0; k < count; ++k) out += static_cast<char>(value >> 8 * k);
  };
  const std::uint32_t crc = crc32(bytes), size = static_cast<std::uint32_t>(bytes.size());
  do {
    const auto length = static_cast<std::uint32_t>(std::min<std::size_t>(bytes.size(), 65535));
    out += static_cast<char>(length == bytes.size());
    little(length, 2), little(~length, 2);
    out += bytes.substr(0, length);
    bytes.remove_prefix(length);
  } while (!bytes.empty());
  little(crc, 4), little(size, 4);
  return out;
}

// "aaaa...": one literal, then runs of 258 in 13 bits each (fixed Huffman codes), 160 to one.
string gzip_bomb(std::size_t size) {
  string out("\x1f\x8b\x08\0\0\0\0\0\0\x03", 10);
  unsigned bits = 0, count = 0;
  const auto put = [&](unsigned value, unsigned length) {  // most significant bit first
    while (length-- > 0) {
      bits |= (value >> length & 1) << count;
      if (++count == 8) out += static_cast<char>(bits), bits = count = 0;
    }
  };
  put(1, 1), put(2, 2);  // last block, fixed codes (01, least significant bit first)
  put(0x30 + 'a', 8);
  for (std::size_t i = 0; i < size / 258; ++i) put(0xC5, 8), put(0, 5);  // length 258, distance 1
  put(0, 7), put(0, 7);
  return out + string(8, '\0');
}

struct Request {
  string head, body;
};

std::optional<Request> read_request(int socket, string& buffer) {
  for (;;) {
    const std::size_t end = buffer.find("\r\n\r\n");
    if (end != buffer.npos) {
      const std::size_t field = buffer.find("Content-Length: ");
      const std::size_t length = field < end ? std::strtoul(&buffer[field + 16], nullptr, 10) : 0;
      if (buffer.size() >= end + 4 + length) {
        Request request{buffer.substr(0, end), buffer.substr(end + 4, length)};
        buffer.erase(0, end + 4 + length);
        return request;
      }
    }
    char bytes[4096];
    const ssize_t count = ::recv(socket, bytes, sizeof bytes, 0);
    if (count <= 0) return {};
    buffer.append(bytes, static_cast<std::size_t>(count));
  }
}

// The value of a variable in the JSON of a request, as text without quotes; "" if it is not there.
string variable(const string& body, const string& name) {
  const std::size_t from = body.find("\"variables\"");
  const string key = "\"" + name + "\":";
  std::size_t at = from == body.npos ? body.npos : body.find(key, from);
  if (at == body.npos) return "";
  at = body.find_first_not_of(' ', at + key.size());
  if (body[at] == '[') return body.substr(at, body.find(']', at) + 1 - at);
  const bool text = body[at] == '"';
  if (text) ++at;
  return body.substr(at, body.find_first_of(text ? "\"" : ",}", at) - at);
}

struct Answer {
  int status = 200;
  string body, headers;  // more headers, each with \r\n
};

string error_json(int status, const string& message, const string& data) {
  return "{\"errors\":[{\"message\":" + quoted(message, true) +
         ",\"status\":" + std::to_string(status) +
         ",\"locations\":[{\"line\":1,\"column\":1}]}],\"data\":" + data + "}";
}

class Server {
 public:
  Server(const Plan& plan) : plan_(plan), draws_(static_cast<unsigned>(plan.seed)) {
    log_ = std::fopen(plan.log.c_str(), "a");
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(plan.port));
    const int yes = 1;  // after an earlier server on that port
    ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (log_ == nullptr || ::bind(listener_, generic, size) != 0 || ::listen(listener_, 8) != 0 ||
        ::getsockname(listener_, generic, &size) != 0) {
      std::perror("anilist_server");
      std::exit(1);
    }
    std::printf("%d\n", ntohs(address.sin_port));
    std::fflush(stdout);
  }

  [[noreturn]] void run() {
    for (;;) {
      const int socket = ::accept(listener_, nullptr, nullptr);
      if (socket < 0) continue;
      string buffer;
      while (const auto request = read_request(socket, buffer)) {
        if (!serve(socket, *request)) break;
      }
      ::close(socket);
    }
  }

 private:
  // False if the connection is to be closed.
  bool serve(int socket, const Request& request) {
    ++count_;
    const double arrival = now();
    const string page = variable(request.body, "page"), name = variable(request.body, "name");
    string what =
        page.empty() ? "user=" + name + "/" + variable(request.body, "chunk") : "page=" + page;
    if (arrival < blocked_until_) what += " EARLY";
    if (request.head.find("Content-Type: application/json") == string::npos ||
        request.head.find("User-Agent: bert4rec.hpp/") == string::npos) {
      what += " BADHEAD";
    }
    if (request.head.find("Referer: ") != string::npos) what += " REFERER";
    if (request.head.find("Authorization: Bearer ") != string::npos) what += " TOKEN";
    for (long left = plan_.delay_ms; left > 0; left -= 5) {
      nap(0.005);
      note_overlap(socket, what);
    }
    note_overlap(socket, what);
    Answer answer;
    const bool keep = answer_to(socket, request, page, name, answer);
    std::fprintf(log_, "%.1f %s %d\n", 1000 * arrival, what.c_str(), answer.status);
    std::fflush(log_);
    if (!keep) return false;
    const bool pack = plan_.gzip && request.head.find("gzip") != string::npos;
    if (pack) answer.body = gzip(answer.body), answer.headers += "Content-Encoding: gzip\r\n";
    return send_answer(socket, answer, answer.body.size());
  }

  void note_overlap(int socket, string& what) const {
    pollfd waiting{listener_, POLLIN, 0};
    if (::poll(&waiting, 1, 0) > 0 && !is_gone(socket) && what.find("OVERLAP") == what.npos) {
      what += " OVERLAP";
    }
  }

  // False if it was answered already, or never will be.
  bool answer_to(int socket, const Request& request, const string& page, const string& name,
                 Answer& answer) {
    if (refuse(answer)) return true;
    const bool faulty = !plan_.fault.empty() && count_ >= plan_.from &&
                        count_ < plan_.from + plan_.times &&
                        (plan_.user_fault.empty() || plan_.user_fault == name);
    if (faulty) return fault(plan_.fault, socket, request, answer);
    if (plan_.random_faults > 0 &&
        std::uniform_real_distribution<>()(draws_) < plan_.random_faults) {
      static const char* kinds[] = {"500",   "502",       "503",  "reset",    "cut",
                                    "short", "truncated", "html", "errors500"};
      return fault(kinds[draws_() % 9], socket, request, answer);
    }
    good(page, name, request, answer);
    return true;
  }

  // The rate limit; fills the answer if the request is refused.
  bool refuse(Answer& answer) {
    if (plan_.limit == 0) return false;
    while (!times_.empty() && times_.front() < now() - plan_.window) times_.pop_front();
    const bool refused = now() < blocked_until_ || std::ssize(times_) >= plan_.limit;
    if (!refused) times_.push_back(now());
    const long left = plan_.limit - std::ssize(times_);
    // Honest headers of the last request before the limit would avoid every refusal; without them
    // (--no-reset) the client runs into it.
    answer.headers = "X-RateLimit-Limit: " + std::to_string(plan_.limit) + "\r\n";
    if (plan_.reset) {
      answer.headers += "X-RateLimit-Remaining: " + std::to_string(left) + "\r\n";
      if (left == 0) answer.headers += "X-RateLimit-Reset: " + std::to_string(unix_in(1)) + "\r\n";
    }
    if (!refused) return false;
    answer.status = 429;
    answer.body = error_json(429, "Too Many Requests.", "null");
    const long wait = std::max(1L, static_cast<long>(plan_.window));
    if (now() >= blocked_until_) blocked_until_ = now() + static_cast<double>(wait);
    if (plan_.retry_after) answer.headers += "Retry-After: " + std::to_string(wait) + "\r\n";
    return true;
  }

  static long unix_in(long seconds) { return std::time(nullptr) + seconds; }

  static string http_date(std::time_t time) {
    char text[80];
    std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", std::gmtime(&time));
    return text;
  }

  void good(const string& page, const string& name, const Request& request, Answer& answer) {
    answer.body =
        page.empty() ? list_body(name, request, answer) : page_body(page, request, answer);
  }

  string page_body(const string& page, const Request& request, Answer& answer) {
    const long number = std::atol(page.c_str()),
               size = std::atol(variable(request.body, "perPage").c_str());
    if (number * size > 5000 || size > 50) {
      answer.status = 400;
      return error_json(400, "Page depth exceeds maximum allowed for API requests (5000 entries)",
                        "{\"Page\":null}");
    }
    std::vector<Title> titles = catalogue(plan_, variable(request.body, "adult") != "false");
    const string sort = variable(request.body, "sort");
    if (sort.find("POPULARITY_DESC") == sort.npos) {
      answer.status = 400;
      return error_json(400, "Variable \"$sort\" got invalid value", "null");
    }
    if (sort.find("\"ID\"") == sort.npos) std::reverse(titles.begin(), titles.end());
    // --shift: the order moves between two requests, so that each page repeats a title.
    const long first = (number - 1) * (size - plan_.shift);
    string media;
    const long total = std::ssize(titles);
    for (long i = first; i < std::min(first + size, total); ++i) {
      media += (media.empty() ? "" : ",") +
               title_answer(titles[static_cast<std::size_t>(i)], i % 2 == 0);
    }
    const string more = first + size < total ? "true" : "false";
    return "{\"data\":{\"Page\":{\"pageInfo\":{\"total\":5000,\"currentPage\":" + page +
           ",\"hasNextPage\":" + more + "},\"media\":[" + media + "]}}}";
  }

  string list_body(const string& name, const Request& request, Answer& answer) {
    const string none = "{\"MediaListCollection\":null}";
    const auto refusal = [&](int status, const string& words) {
      answer.status = status == 200 ? 200 : 404;
      return error_json(404, words, none);
    };
    if (name == "Hidden") return refusal(404, "Private User");
    if (name == "Hidden200") return refusal(200, "Private User");
    if (name == "Broken")
      return answer.status = 500, error_json(500, "Internal Server Error", none);
    if (name == "Null")
      return "{\"data\":{\"MediaListCollection\":{\"hasNextChunk\":null,\"lists\":null}}}";
    const bool endless = name == "Endless";
    const auto lists = lists_of(plan_, name);
    if (!lists) return refusal(404, "User not found");
    const auto chunk = std::strtoul(variable(request.body, "chunk").c_str(), nullptr, 10);
    const auto size = std::strtoul(variable(request.body, "perChunk").c_str(), nullptr, 10);
    return list_answer(*lists, std::max(1ul, chunk), std::clamp(size, 1ul, 500ul), endless);
  }

  bool send_answer(int socket, const Answer& answer, std::size_t length) const {
    return send_all(socket, "HTTP/1.1 " + std::to_string(answer.status) + " X\r\n" +
                                answer.headers + "Content-Type: application/json\r\n" +
                                "Content-Length: " + std::to_string(length) + "\r\n\r\n" +
                                answer.body);
  }

  // ---- Faults ----

  // True if the answer is to be sent; false if the connection is over.
  bool fault(const string& kind, int socket, const Request& request, Answer& answer) {
    good(variable(request.body, "page"), variable(request.body, "name"), request, answer);
    return status_fault(kind, answer) || body_fault(kind, answer) || refusal_fault(kind, answer) ||
           transfer_fault(kind, socket, answer);
  }

  static bool set(Answer& answer, int status, string body) {
    answer.status = status;
    answer.body = std::move(body);
    return true;
  }

  static bool status_fault(const string& kind, Answer& answer) {
    const string nothing = "{\"Page\":null}";
    if (kind == "500") return set(answer, 500, error_json(500, "Internal Server Error", nothing));
    if (kind == "502") return set(answer, 502, "<html><h1>502 Bad Gateway</h1></html>");
    if (kind == "503") return set(answer, 503, "");
    if (kind == "errors500") return set(answer, 200, error_json(500, "Internal", nothing));
    if (kind == "400")
      return set(answer, 400, error_json(400, "Cannot query field \"x\".", "null"));
    if (kind == "403") {
      return set(answer, 403,
                 error_json(403, "The AniList API has been temporarily disabled.\x1b[31m", "null"));
    }
    if (kind == "403html") return set(answer, 403, "<html><title>Just a moment...</title></html>");
    if (kind == "404html") return set(answer, 404, "<html>nothing here</html>");
    if (kind == "file" || kind == "elsewhere") {
      answer.headers += kind == "file" ? "Location: file:///etc/passwd\r\n"
                                       : "Location: http://127.0.0.1:1/elsewhere\r\n";
      return set(answer, 302, "");
    }
    return false;
  }

  // Answers that arrive whole with status 200 and are wrong.
  static bool body_fault(const string& kind, Answer& answer) {
    const auto page = [](const string& media) {
      return "{\"data\":{\"Page\":{\"pageInfo\":{\"hasNextPage\":false},\"media\":[" + media +
             "]}}}";
    };
    const std::map<string, string> bodies{
        {"html", "<!DOCTYPE html><html>maintenance</html>"},
        {"empty", ""},
        {"null", "{\"data\":{\"Page\":null}}"},
        {"nodata", "{}"},
        {"utf8", page("{\"id\":1,\"title\":{\"romaji\":\"\xff\xfe\"}}")},
        {"surrogate", page("{\"id\":1,\"title\":{\"romaji\":\"\\ud83d\"}}")},
        {"types", page("{\"id\":1},{\"id\":2,\"title\":{\"romaji\":5}}")},
        {"textid", page("{\"id\":\"1\"}")},
        {"noid", page("{\"title\":null}")},
        {"inf", page("{\"id\":1},{\"id\":2,\"averageScore\":1e400}")},
        {"negative", page("{\"id\":1},{\"id\":-5}")},
        {"hugeid", page("{\"id\":99999999999999999999}")},
        {"fraction", page("{\"id\":1.5}")},
        {"nomedia", "{\"data\":{\"Page\":{\"pageInfo\":{\"hasNextPage\":false}}}}"},
        {"badentry",
         "{\"data\":{\"MediaListCollection\":{\"lists\":[{\"entries\":[{\"mediaId\":-1}]}]}}}"},
        {"badscore",
         "{\"data\":{\"MediaListCollection\":{\"lists\":[{\"entries\":[{\"mediaId\":1,"
         "\"score\":\"9\"}]}]}}}"},
        {"baddate",
         "{\"data\":{\"MediaListCollection\":{\"lists\":[{\"entries\":[{\"mediaId\":1,"
         "\"completedAt\":\"2020\"}]}]}}}"},
        {"endless",
         "{\"data\":{\"Page\":{\"pageInfo\":{\"hasNextPage\":true},\"media\":[{\"id\":1}]}}}"},
        {"deep", "{\"data\":" + string(10000, '[') + string(10000, ']') + "}"}};
    if (kind == "truncated") return answer.body.resize(answer.body.size() / 2), true;
    const auto found = bodies.find(kind);
    return found != bodies.end() && set(answer, 200, found->second);
  }

  // Refusals, and what else tells the client to wait.
  bool refusal_fault(const string& kind, Answer& answer) {
    const auto after = [&](const string& value) {
      answer.headers += "Retry-After: " + value + "\r\n";
    };
    const auto reset = [&](long time) {
      answer.headers += "X-RateLimit-Reset: " + std::to_string(time) + "\r\n";
    };
    if (kind == "spent") {  // a good answer, but the last one for two hours
      answer.headers += "X-RateLimit-Remaining: 0\r\n";
      return reset(unix_in(7200)), true;
    }
    if (kind == "503after") {
      after("1"), blocked_until_ = now() + 1;
      return set(answer, 503, "");
    }
    if (!kind.starts_with("429")) return false;
    if (kind == "429after") after("1"), blocked_until_ = now() + 1;
    if (kind == "429reset") reset(unix_in(1));
    if (kind == "429date") {
      const auto unix_now = std::chrono::system_clock::now().time_since_epoch();
      const std::time_t until = unix_in(2);
      after(http_date(until));
      blocked_until_ =
          now() + static_cast<double>(until) - std::chrono::duration<double>(unix_now).count();
    }
    if (kind == "429past") after("Sun, 06 Nov 1994 08:49:37 GMT");
    if (kind == "429words") after("soon"), reset(unix_in(-5));
    if (kind == "429negative") after("-5"), reset(-1);
    if (kind == "429minutes") after("600");
    if (kind == "429hours") after("7200");
    if (kind == "429far") after("Wed, 21 Oct 2099 07:28:00 GMT");
    if (kind == "429huge") after("100000000000000000000");
    if (kind == "429endless") after(string(400, '9'));
    if (kind == "429resetfar") reset(unix_in(7200));
    return set(answer, 429, error_json(429, "Too Many Requests.", "null"));
  }

  bool transfer_fault(const string& kind, int socket, Answer& answer) {
    const string head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    if (kind == "reset") {
      const linger at_once{1, 0};
      ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    } else if (kind == "cut") {
      const std::size_t length = answer.body.size();
      answer.body.resize(length / 2);
      send_answer(socket, answer, length);
    } else if (kind == "short") {  // Content-Length too small
      send_answer(socket, answer, answer.body.size() - 30);
    } else if (kind == "drop") {  // the request is read, and that is all
    } else if (kind == "slow") {
      for (int i = 0; i < 200 && !is_gone(socket); ++i) nap(0.05);
    } else if (kind == "drip") {
      send_all(socket, head + "Content-Length: 1000000\r\n\r\n");
      for (int i = 0; i < 400 && !is_gone(socket) && send_all(socket, " "); ++i) nap(0.05);
    } else if (kind == "bomb") {
      const string bomb = gzip_bomb(std::size_t{1} << 28);
      send_all(socket, head + "Content-Encoding: gzip\r\nContent-Length: " +
                           std::to_string(bomb.size()) + "\r\n\r\n" + bomb);
    } else if (kind == "huge") {
      const string block = "100000\r\n" + string(1 << 20, ' ') + "\r\n";
      bool open = send_all(socket, head + "Transfer-Encoding: chunked\r\n\r\n");
      for (int i = 0; i < 200 && open; ++i) open = send_all(socket, block);
    } else if (kind == "headers") {
      bool open = send_all(socket, head);
      const string line = "X-Filler: " + string(1000, 'x') + "\r\n";
      for (int i = 0; i < 100000 && open; ++i) open = send_all(socket, line);
    } else {
      return lying_fault(kind, socket, answer);
    }
    answer.status = 0;
    return false;
  }

  // Heads that do not fit what follows.
  bool lying_fault(const string& kind, int socket, Answer& answer) {
    if (kind == "late") {  // what is beyond the Content-Length comes when nobody expects it
      const string rest = answer.body.substr(answer.body.size() - 30);
      answer.body.resize(answer.body.size() - 30);
      send_answer(socket, answer, answer.body.size());
      nap(0.05);
      send_all(socket, rest);
      answer.status = 0;
      return false;
    }
    if (kind == "nohead") {
      send_all(socket, answer.body);
    } else if (kind == "badlength") {
      send_all(socket, "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + answer.body);
    } else if (kind == "cut404" || kind == "short404") {
      answer.status = 404;
      answer.body = error_json(404, "User not found", "null");
      const std::size_t length = answer.body.size();
      if (kind == "cut404") answer.body.resize(length / 2);
      send_answer(socket, answer, kind == "cut404" ? length : length / 2);
    } else {
      std::fprintf(stderr, "anilist_server: unknown fault %s\n", kind.c_str());
      std::exit(2);
    }
    answer.status = 0;
    return false;
  }

  const Plan& plan_;
  std::mt19937 draws_;
  std::FILE* log_ = nullptr;
  int listener_ = -1;
  long count_ = 0;
  double blocked_until_ = 0;
  std::deque<double> times_;
};

int flip(const char* path, long bit) {
  std::FILE* file = std::fopen(path, "r+b");
  if (file == nullptr || std::fseek(file, bit / 8, SEEK_SET) != 0) return 1;
  const int byte = std::fgetc(file);
  if (byte == EOF || std::fseek(file, bit / 8, SEEK_SET) != 0) return 1;
  return std::fputc(byte ^ 1 << bit % 8, file) == EOF || std::fclose(file) != 0;
}

int print_items(const Plan& plan, long count) {
  const std::vector<Title> titles = catalogue(plan, plan.adult);
  for (long i = 0; i < std::min<long>(count, std::ssize(titles)); ++i) {
    std::puts(title_line(titles[static_cast<std::size_t>(i)]).c_str());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Plan plan;
  const std::map<string, long*> numbers{
      {"--titles", &plan.titles}, {"--delay", &plan.delay_ms}, {"--lifetime", &plan.lifetime},
      {"--limit", &plan.limit},   {"--seed", &plan.seed},      {"--from", &plan.from},
      {"--times", &plan.times},   {"--port", &plan.port},      {"--first-id", &first_id}};
  const std::map<string, double*> reals{{"--window", &plan.window},
                                        {"--random", &plan.random_faults}};
  const std::map<string, string*> texts{
      {"--fault", &plan.fault}, {"--log", &plan.log}, {"--user", &plan.user_fault}};
  for (int i = 1; i < argc; ++i) {
    const string word = argv[i], next = i + 1 < argc ? argv[i + 1] : "";
    if (word == "--adult")
      plan.adult = true;
    else if (word == "--shift")
      plan.shift = true;
    else if (word == "--gzip")
      plan.gzip = true;
    else if (word == "--no-retry-after")
      plan.retry_after = false;
    else if (word == "--no-reset")
      plan.reset = false;
    else if (word == "--flip" && i + 2 < argc)
      return flip(argv[i + 1], std::atol(argv[i + 2]));
    else if (word == "--print-items")
      return print_items(plan, std::atol(next.c_str()));
    else if (word == "--print-histories") {
      const long minimum = std::atol(&next[next.find(',') + 1]);
      for (i += 2; i < argc; ++i)
        std::fputs(history_line(plan, argv[i], std::atol(next.c_str()), minimum).c_str(), stdout);
      return 0;
    } else if (numbers.count(word))
      *numbers.at(word) = std::atol(argv[++i]);
    else if (reals.count(word))
      *reals.at(word) = std::atof(argv[++i]);
    else if (texts.count(word))
      *texts.at(word) = argv[++i];
    else
      return std::fprintf(stderr, "anilist_server: unknown %s\n", argv[i]), 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  ::alarm(static_cast<unsigned>(plan.lifetime));  // ends the process
  Server(plan).run();
}
