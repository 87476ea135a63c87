// Makes the demonstration data: a small synthetic anime catalogue and who watched what in it.
//
// No title and no user is real. What is in the data for a sequence model to find:
//   franchises   a title begun is mostly followed by its next instalment, soon, if it is out by then
//   taste        a viewer draws from an urn of ten genre clusters that changes slowly with time
//   popularity   titles are drawn by their popularity, which falls off as 1 / rank (Zipf)
// The files are the same byte for byte on every machine: all chance comes from the counter-based
// random numbers of bert4rec.hpp, everything else is integer arithmetic, and no expression holds
// two draws, since the order in which C++ evaluates them is open.

#include <iostream>

#include "bert4rec.hpp"

namespace {

using namespace bert4rec;

constexpr std::int64_t minute = 60, day = 24 * 60 * minute;

constexpr std::int64_t unix_seconds(int year, unsigned month, unsigned day_of_month) {
  const std::chrono::sys_days date =
      std::chrono::year(year) / std::chrono::month(month) / std::chrono::day(day_of_month);
  return date.time_since_epoch().count() * day;
}

constexpr std::int64_t histories_begin = unix_seconds(2015, 1, 1);
constexpr std::int64_t last_newcomer = unix_seconds(2023, 1, 1);
constexpr std::int64_t today = unix_seconds(2025, 1, 1);  // the data are as of this day

// The draws of one stream, one after the other.
class Dice {
 public:
  explicit Dice(Key key) : key_(key) {}

  std::size_t below(std::size_t n) { return bert4rec::below(key_, count_++, n); }
  bool chance(std::size_t percent) { return below(100) < percent; }

  // In 0 ... n - 1 with a long tail: density -log(x), mean n / 4.
  std::size_t skewed(std::size_t n) {
    const std::size_t bound = below(n) + 1;
    return below(bound);
  }
  std::int64_t seconds(std::int64_t n) {
    return static_cast<std::int64_t>(below(static_cast<std::size_t>(n)));
  }

  // An index in proportion to its weight; none where all weights are zero.
  std::optional<std::size_t> weighted(std::span<const std::size_t> weights) {
    const std::size_t sum = std::accumulate(weights.begin(), weights.end(), std::size_t{0});
    if (sum == 0) return std::nullopt;
    std::size_t rest = below(sum), i = 0;
    while (rest >= weights[i]) rest -= weights[i++];
    return i;
  }

 private:
  Key key_;
  std::uint64_t count_ = 0;
};

// ---- Words --------------------------------------------------------------------------------------

struct Words {
  std::string romaji, english, native;
};

// A name is a material and a thing: "Kohaku no Panya", "The Amber Bakery", "琥珀のパン屋".
const std::vector<Words> materials = {
    {"Kohaku", "Amber", "琥珀"},       {"Garasu", "Glass", "硝子"},
    {"Asagiri", "Morning Mist", "朝霧"}, {"Yuugure", "Dusk", "夕暮れ"},
    {"Shio", "Salt", "塩"},            {"Fuyu", "Winter", "冬"},
    {"Hai", "Ash", "灰"},              {"Suna", "Sand", "砂"},
    {"Shinju", "Pearl", "真珠"},       {"Tetsu", "Iron", "鉄"},
    {"Keito", "Yarn", "毛糸"},         {"Raimei", "Thunder", "雷鳴"},
    {"Gekkou", "Moonlight", "月光"},   {"Ryuuboku", "Driftwood", "流木"},
    {"Jiki", "Porcelain", "磁器"},     {"Biroudo", "Velvet", "天鵞絨"},
    {"Akagane", "Copper", "銅"},       {"Shimo", "Frost", "霜"},
    {"Sumi", "Ink", "墨"},             {"Kinu", "Silk", "絹"},
    {"Asatsuyu", "Morning Dew", "朝露"}, {"Aki", "Autumn", "秋"},
    {"Kami", "Paper", "紙"},           {"Hachimitsu", "Honey", "蜂蜜"},
};

// Things that one taste is about, and its genres, the first of which every title has.
struct Cluster {
  std::array<const char*, 4> genres;
  std::array<Words, 5> things;
};

const std::vector<Cluster> clusters = {
    {{"Fantasy", "Adventure", "Action", "Comedy"},
     {{{"Madoushi", "Sorcerer", "魔導師"},
       {"Kishidan", "Order of Knights", "騎士団"},
       {"Chizu", "Map", "地図"},
       {"Ryuu", "Dragon", "竜"},
       {"Tobira", "Door", "扉"}}}},
    {{"Romance", "Comedy", "Drama", "Slice of Life"},
     {{{"Koibumi", "Love Letter", "恋文"},
       {"Shoutaijou", "Invitation", "招待状"},
       {"Yakusoku", "Promise", "約束"},
       {"Butoukai", "Ball", "舞踏会"},
       {"Hatsukoi", "First Love", "初恋"}}}},
    {{"Sci-Fi", "Action", "Drama", "Mystery"},
     {{{"Uchuusen", "Starship", "宇宙船"},
       {"Kidou", "Orbit", "軌道"},
       {"Jidou Ningyou", "Automaton", "自動人形"},
       {"Kansokujo", "Observatory", "観測所"},
       {"Eisei", "Satellite", "衛星"}}}},
    {{"Mystery", "Horror", "Drama", "Sci-Fi"},
     {{{"Tantei", "Detective", "探偵"},
       {"Chikashitsu", "Cellar", "地下室"},
       {"Angou", "Cipher", "暗号"},
       {"Kage", "Shadow", "影"},
       {"Shougen", "Testimony", "証言"}}}},
    {{"Sports", "Drama", "Comedy", "Slice of Life"},
     {{{"Marason", "Marathon", "マラソン"},
       {"Senshuken", "Championship", "選手権"},
       {"Kyuudoubu", "Archery Club", "弓道部"},
       {"Takkyuubu", "Table Tennis Club", "卓球部"},
       {"Kantoku", "Coach", "監督"}}}},
    {{"Slice of Life", "Comedy", "Music", "Fantasy"},
     {{{"Kissaten", "Tea Room", "喫茶店"},
       {"Panya", "Bakery", "パン屋"},
       {"Gasshoudan", "Choir", "合唱団"},
       {"Shashinkan", "Photo Studio", "写真館"},
       {"Geshuku", "Boarding House", "下宿"}}}},
};
constexpr std::size_t things = 5;

Words compose(const Words& material, const Words& thing, bool and_not_of) {
  if (and_not_of) {
    return {join(material.romaji, " to ", thing.romaji), join(material.english, " and ",
            thing.english), join(material.native, "と", thing.native)};
  }
  return {join(material.romaji, " no ", thing.romaji), join("The ", material.english, " ",
          thing.english), join(material.native, "の", thing.native)};
}
