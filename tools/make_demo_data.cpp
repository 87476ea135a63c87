// Makes the demonstration data: a small synthetic anime catalogue and who watched what of it.
//
// No title and no user is real. What a sequence model can find in the data:
//   franchises   who begins one mostly goes on with its next instalment, soon, once that is out
//   taste        viewers draw their genres from an urn of ten tickets that changes slowly
//   popularity   a franchise is begun about as often as 1 / its rank (Zipf)
// The files are the same byte for byte on every machine: all chance comes from the counter-based
// random numbers of bert4rec.hpp, all else is integer arithmetic, and no two draws are
// arguments of one call, since C++ leaves open which of them would come first.

#include "common/cli.hpp"
#include "common/dice.hpp"

namespace {

using namespace bert4rec;
using tools::Dice;

constexpr std::int64_t minute = 60, day = 24 * 60 * minute;

constexpr std::int64_t unix_seconds(int year, unsigned month, unsigned day_of_month) {
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month),
                                         std::chrono::day(day_of_month)};
  return std::chrono::sys_days(date).time_since_epoch().count() * day;
}

constexpr std::int64_t first_newcomer = unix_seconds(2015, 1, 1);
constexpr std::int64_t last_newcomer = unix_seconds(2024, 1, 1);
constexpr std::int64_t today = unix_seconds(2025, 1, 1);  // nothing is watched after this

// ---- Words --------------------------------------------------------------------------------------
// A name is a material and a thing: "Kohaku no Panya", "The Amber Bakery", "琥珀のパン屋".

struct Words {
  std::string romaji, english, native;
};

const std::vector<Words> materials = {
    {"Kohaku", "Amber", "琥珀"},
    {"Garasu", "Glass", "硝子"},
    {"Asagiri", "Morning Mist", "朝霧"},
    {"Yuugure", "Dusk", "夕暮れ"},
    {"Shio", "Salt", "塩"},
    {"Fuyu", "Winter", "冬"},
    {"Hai", "Ash", "灰"},
    {"Suna", "Sand", "砂"},
    {"Shinju", "Pearl", "真珠"},
    {"Tetsu", "Iron", "鉄"},
    {"Keito", "Yarn", "毛糸"},
    {"Raimei", "Thunder", "雷鳴"},
    {"Gekkou", "Moonlight", "月光"},
    {"Ryuuboku", "Driftwood", "流木"},
    {"Jiki", "Porcelain", "磁器"},
    {"Biroudo", "Velvet", "天鵞絨"},
    {"Akagane", "Copper", "銅"},
    {"Shimo", "Frost", "霜"},
    {"Sumi", "Ink", "墨"},
    {"Kinu", "Silk", "絹"},
    {"Asatsuyu", "Morning Dew", "朝露"},
    {"Aki", "Autumn", "秋"},
    {"Kami", "Paper", "紙"},
    {"Hachimitsu", "Honey", "蜂蜜"},
};

// What one taste is about: things, and genres of which every title has the first.
struct Cluster {
  std::vector<std::string> genres;
  std::vector<Words> things;
};

const std::vector<Cluster> clusters = {
    {{"Fantasy", "Adventure", "Action", "Comedy"},
     {{"Madoushi", "Sorcerer", "魔導師"},
      {"Kishidan", "Knights", "騎士団"},
      {"Chizu", "Map", "地図"},
      {"Ryuu", "Dragon", "竜"},
      {"Tobira", "Door", "扉"}}},
    {{"Romance", "Comedy", "Drama", "Slice of Life"},
     {{"Koibumi", "Love Letter", "恋文"},
      {"Shoutaijou", "Invitation", "招待状"},
      {"Yakusoku", "Promise", "約束"},
      {"Butoukai", "Ball", "舞踏会"},
      {"Hatsukoi", "First Love", "初恋"}}},
    {{"Sci-Fi", "Action", "Drama", "Mystery"},
     {{"Uchuusen", "Starship", "宇宙船"},
      {"Kidou", "Orbit", "軌道"},
      {"Jidou Ningyou", "Automaton", "自動人形"},
      {"Kansokujo", "Observatory", "観測所"},
      {"Eisei", "Satellite", "衛星"}}},
    {{"Mystery", "Horror", "Drama", "Sci-Fi"},
     {{"Tantei", "Detective", "探偵"},
      {"Chikashitsu", "Cellar", "地下室"},
      {"Angou", "Cipher", "暗号"},
      {"Kage", "Shadow", "影"},
      {"Shougen", "Testimony", "証言"}}},
    {{"Sports", "Drama", "Comedy", "Slice of Life"},
     {{"Marason", "Marathon", "マラソン"},
      {"Senshuken", "Championship", "選手権"},
      {"Kyuudoubu", "Archery Club", "弓道部"},
      {"Takkyuubu", "Table Tennis Club", "卓球部"},
      {"Kantoku", "Coach", "監督"}}},
    {{"Slice of Life", "Comedy", "Music", "Fantasy"},
     {{"Kissaten", "Tea Room", "喫茶店"},
      {"Panya", "Bakery", "パン屋"},
      {"Gasshoudan", "Choir", "合唱団"},
      {"Shashinkan", "Photo Studio", "写真館"},
      {"Geshuku", "Boarding House", "下宿"}}},
};
constexpr std::size_t things_per_cluster = 5;

// How often sequels have a format, and how they are called: {} stands for the franchise, # for the
// number in that format, #th for 2nd, 3rd, 4th ... Where no # stands, numbers from 2 on are added.
struct Format {
  std::string name;
  std::int64_t percent;
  int episodes;
  Words sequel;
};

const std::vector<Format> formats = {
    {"TV", 60, 12, {"{} Dai # Ki", "{} #th Season", "{} 第#期"}},
    {"MOVIE", 16, 1, {"Gekijouban {}", "{}: The Movie", "劇場版 {}"}},
    {"OVA", 10, 2, {"{} OVA", "{} OVA", "{} OVA"}},
    {"SPECIAL", 8, 1, {"{} Tokubetsu-hen", "{} Special", "{} 特別編"}},
    {"ONA", 6, 6, {"{} Gaiden", "{} Side Story", "{} 外伝"}},
};
constexpr std::size_t tv = 0, movie = 1;

std::string sequel_name(std::string pattern, std::string_view franchise, std::size_t number) {
  const auto put = [&](std::string_view token, std::string_view value) {
    if (const auto at = pattern.find(token); at != pattern.npos)
      pattern.replace(at, token.size(), value);
  };
  if (number > 1 && pattern.find('#') == pattern.npos) pattern += " #";
  put("#th", join(number, number == 2 ? "nd" : number == 3 ? "rd" : "th"));
  put("#", join(number));
  put("{}", franchise);
  return pattern;
}

// ---- The catalogue ------------------------------------------------------------------------------

struct Title {
  Item item;
  std::size_t franchise = 0, cluster = 0;
  std::int64_t out = 0;  // first shown
  int episodes = 1;
};

struct Franchise {
  std::size_t rank, cluster;  // the rank is by popularity, from 0
  Words name;
  std::vector<std::string> genres;
  std::size_t size;
  std::int64_t popularity;
  int score, month;  // of the next instalment; months since January 1996
};

Franchise make_franchise(std::size_t rank, std::size_t combination, Dice& dice) {
  const Words& material = materials[combination % materials.size()];
  const std::size_t thing_number = combination / materials.size();
  Franchise f{};
  f.rank = rank;
  f.cluster = thing_number / things_per_cluster;
  const Cluster& cluster = clusters[f.cluster];
  const Words& thing = cluster.things[thing_number % things_per_cluster];
  const bool pair = dice.chance(25);
  f.name = {join(material.romaji, pair ? " to " : " no ", thing.romaji),
            pair ? join(material.english, " and the ", thing.english)
                 : join("The ", material.english, " ", thing.english),
            join(material.native, pair ? "と" : "の", thing.native)};
  f.genres = {cluster.genres[0]};
  for (std::size_t i = 1; i < cluster.genres.size(); ++i) {
    if (dice.chance(50)) f.genres.push_back(cluster.genres[i]);
  }
  static constexpr std::int64_t sizes[] = {0, 22, 20, 16, 12, 10, 8, 6, 6};  // percent of 0 ... 8
  f.size = *dice.weighted(sizes);
  f.popularity = 1'500'000 / (static_cast<std::int64_t>(rank) + 5);
  f.score = 58 + dice.below(28);
  f.month = dice.below(12 * 27);
  return f;
}

std::string two_digits(int number) { return join(number < 10 ? "0" : "", number); }

void set_date(Title& title, int month, Dice& dice) {
  const int year = 1996 + month / 12, month_of_year = 1 + month % 12, date = 1 + dice.below(28);
  title.out = unix_seconds(year, static_cast<unsigned>(month_of_year), static_cast<unsigned>(date));
  title.item.start_date = join(year, "-", two_digits(month_of_year), "-", two_digits(date));
  const bool running = title.episodes > 6 && title.out + 90 * day > today;
  title.item.status = title.out >= today ? "NOT_YET_RELEASED" : running ? "RELEASING" : "FINISHED";
}

// The next instalment, the `number`-th in that format, for which the franchise moves on.
Title make_title(Franchise& f, const Format& format, std::size_t number, bool begins, Dice& dice) {
  Title title;
  title.franchise = f.rank;
  title.cluster = f.cluster;
  title.episodes = format.episodes == 12 && dice.chance(30) ? 24 : format.episodes;
  const auto name = [&](std::string Words::*script) {
    return begins ? f.name.*script : sequel_name(format.sequel.*script, f.name.*script, number);
  };
  Item& item = title.item;
  item.romaji = name(&Words::romaji);
  if (!dice.chance(12)) item.english = name(&Words::english);
  if (!dice.chance(4)) item.native = name(&Words::native);
  item.genres = f.genres;
  item.format = format.name;
  set_date(title, f.month, dice);
  item.popularity = f.popularity + dice.below(f.popularity / 8 + 1);
  if (title.out < today) item.average_score = f.score + dice.below(5);
  f.popularity = f.popularity * (75 + dice.below(20)) / 100;
  f.score = std::clamp(f.score - 3 + dice.below(6), 50, 88);
  f.month += 3 + dice.below(13);
  return title;
}

void add_franchise(std::vector<Title>& titles, Franchise f, Dice& dice) {
  std::vector<std::int64_t> percents;
  for (const Format& format : formats) percents.push_back(format.percent);
  std::vector<std::size_t> counts(formats.size());
  const std::size_t opening = f.size == 1 && dice.chance(40) ? movie : tv;
  for (std::size_t i = 0; i < f.size && f.month < 12 * 30; ++i) {
    const std::size_t format = i == 0 ? opening : *dice.weighted(percents);
    titles.push_back(make_title(f, formats[format], ++counts[format], i == 0, dice));
  }
}

// The instalments of a franchise stand side by side, in order; ids go by date over all of them.
std::vector<Title> make_titles(std::uint64_t seed, std::size_t count) {
  const Key key = fold_in(stream_key(seed, Stream::demo), 0);
  std::vector<std::size_t> combinations(materials.size() * clusters.size() * things_per_cluster);
  std::iota(combinations.begin(), combinations.end(), std::size_t{0});
  shuffle(combinations, fold_in(key, 0));
  std::vector<Title> titles;
  for (std::size_t rank = 0; titles.size() < count; ++rank) {
    Dice dice(fold_in(key, rank + 1));
    add_franchise(titles, make_franchise(rank, combinations.at(rank), dice), dice);
  }
  titles.resize(count);
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return titles[a].out < titles[b].out; });
  for (std::size_t i = 0; i < count; ++i) {
    titles[order[i]].item.id = static_cast<std::int64_t>(1001 + i);
  }
  return titles;
}

// ---- The viewers --------------------------------------------------------------------------------

class Viewer {
 public:
  Viewer(const std::vector<Title>& titles, Dice& dice) : titles_(titles), seen_(titles.size()) {
    const std::size_t first = dice.below(clusters.size()), second = dice.below(clusters.size());
    const std::size_t third = dice.below(clusters.size());
    urn_ = {first, first, first, first, first, first, second, second, second, third};
  }

  // What is watched next at that time, if anything is left.
  std::optional<std::size_t> next(std::int64_t now, Dice& dice) const {
    if (const auto sequel = next_instalment(now, dice)) return sequel;
    const std::size_t cluster = urn_[dice.below(urn_.size())];
    const bool by_taste = dice.chance(70);
    const auto title = draw_popular(now, dice, by_taste ? std::optional(cluster) : std::nullopt);
    return title ? title : draw_popular(now, dice, std::nullopt);
  }

  // `liked`: well enough to go on with the franchise.
  void watch(std::size_t title, bool liked, Dice& dice) {
    seen_[title] = true;
    if (liked) followed_.push_back(title);
    // The taste drifts: a ticket is copied over another, and now and then a new one comes in.
    const std::size_t from = dice.below(urn_.size()), to = dice.below(urn_.size());
    urn_[to] = dice.chance(10) ? dice.below(clusters.size()) : urn_[from];
  }

  bool seen(std::size_t title) const { return seen_[title]; }

 private:
  bool is_sequel(std::size_t title) const {
    return title > 0 && titles_[title - 1].franchise == titles_[title].franchise;
  }

  // The next instalment of one of the franchises followed lately, the latest first.
  std::optional<std::size_t> next_instalment(std::int64_t now, Dice& dice) const {
    const std::size_t lately = std::min<std::size_t>(followed_.size(), 6);
    for (std::size_t back = 1; back <= lately; ++back) {
      const std::size_t title = followed_[followed_.size() - back] + 1;
      const bool waits = title < titles_.size() && is_sequel(title) && !seen_[title];
      if (waits && titles_[title].out < now && dice.chance(50)) return title;
    }
    return std::nullopt;
  }

  // By popularity, of one cluster or of all; instalments out of order are rare.
  std::optional<std::size_t> draw_popular(std::int64_t now, Dice& dice,
                                          std::optional<std::size_t> cluster) const {
    std::vector<std::int64_t> weights(titles_.size());
    for (std::size_t i = 0; i < titles_.size(); ++i) {
      const Title& title = titles_[i];
      if (seen_[i] || title.out >= now || (cluster && title.cluster != *cluster)) continue;
      weights[i] = *title.item.popularity / (is_sequel(i) && !seen_[i - 1] ? 10 : 1);
    }
    return dice.weighted(weights);
  }

  const std::vector<Title>& titles_;
  std::vector<bool> seen_;
  std::vector<std::size_t> followed_;
  std::array<std::size_t, 10> urn_{};
};

std::string_view draw_status(bool newest, Dice& dice) {
  const int roll = dice.below(100);
  if (newest && roll < 40) return "CURRENT";
  return roll < 88 ? "COMPLETED" : roll < 95 ? "DROPPED" : "PAUSED";
}

// Out of 100 in steps of 5, around what others think of the title.
int draw_score(const Title& title, bool liked, Dice& dice) {
  const int opinion = static_cast<int>(title.item.average_score.value_or(70)) - 15;
  return std::clamp(opinion + dice.below(31) - (liked ? 0 : 25), 10, 100) / 5 * 5;
}

Json make_entry(const Title& title, Json at, std::string_view status, int score, int progress) {
  Json entry;
  entry.set("id", std::get<std::int64_t>(title.item.id));
  entry.set("at", std::move(at));
  entry.set("status", status);
  entry.set("score", score);
  entry.set("progress", progress);
  return entry;
}

// What a viewer means to watch: up to three titles at the end of the list, mostly without a time.
void add_plans(Json::Array& entries, const std::vector<Title>& titles, const Viewer& viewer,
               std::int64_t now, Dice& dice) {
  const std::size_t begin = dice.below(titles.size()), plans = dice.skewed(std::size_t{4});
  for (std::size_t i = begin; i < std::min(begin + plans, titles.size()); ++i) {
    if (viewer.seen(i)) continue;
    const Json at = dice.chance(70) ? Json() : Json(now);
    entries.push_back(make_entry(titles[i], at, "PLANNING", 0, 0));
  }
}

Json make_history(const std::vector<Title>& titles, Dice dice) {
  Viewer viewer(titles, dice);
  const int length = 10 + dice.skewed(108);
  const int scoring_percent = dice.chance(20) ? 0 : 85;  // some never give scores
  std::int64_t now = first_newcomer + dice.below(last_newcomer - first_newcomer);
  const std::int64_t longest_gap = std::min((today - now) / length, 60 * day);
  Json::Array entries;
  for (int i = 0; i < length; ++i) {
    now += 20 * minute + dice.skewed(longest_gap - 20 * minute);
    const auto next = viewer.next(now, dice);
    if (!next) break;
    const Title& title = titles[*next];
    const std::string_view status = draw_status(i + 2 >= length, dice);
    const bool liked = status == "COMPLETED" || status == "CURRENT";
    const bool scored = dice.chance(scoring_percent);
    const int score = scored ? draw_score(title, liked, dice) : 0;
    const int part = dice.below(title.episodes);
    const int progress = status == "COMPLETED" ? title.episodes : part;
    entries.push_back(make_entry(title, now, status, score, progress));
    viewer.watch(*next, liked, dice);
  }
  add_plans(entries, titles, viewer, now, dice);
  return entries;
}

// ---- The files and the command line -------------------------------------------------------------

struct Options {
  Path output = "data/demo";
  std::uint64_t seed = 42, users = 700, titles = 400;
};

void make_demo_data(const Options& options) {
  std::vector<Title> titles = make_titles(options.seed, options.titles);
  const Key key = fold_in(stream_key(options.seed, Stream::demo), 1);
  std::string histories, items;
  for (std::uint64_t user = 1; user <= options.users; ++user) {
    Json history;
    history.set("user", "demo_" + join(10000 + user).substr(1));  // four digits
    history.set("entries", make_history(titles, Dice(fold_in(key, user))));
    histories += history.text() + "\n";
  }
  std::sort(titles.begin(), titles.end(),
            [](const Title& a, const Title& b) { return a.item.id < b.item.id; });
  for (const Title& title : titles) items += to_json(title.item).text() + "\n";
  DatasetWriter writer(options.output);
  writer.items(items);
  writer.histories(histories);
  writer.commit();
}

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("make_demo_data", "makes a synthetic anime catalogue and viewing histories",
                        "make_demo_data --output /tmp/demo --users 100");
  line.option("output", options.output, "folder for items.jsonl and histories.jsonl");
  line.option("seed", options.seed, "the same seed gives the same bytes on every machine");
  line.option("users", options.users, "number of viewers, 1 ... 9999");
  line.option("titles", options.titles, "number of titles, 100 ... 1500");
  line.parse(argc, argv);
  cli::check_range("users", options.users, 1, 9999);
  cli::check_range("titles", options.titles, 100, 1500);
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("make_demo_data", argc, argv, [](int count, char** words) {
    make_demo_data(parse(count, words));
    return 0;
  });
}
