// Finds the item that a person means by what they typed.

#ifndef BERT4REC_TOOLS_TITLES_HPP
#define BERT4REC_TOOLS_TITLES_HPP

#include "common/cli.hpp"

namespace titles {

using bert4rec::Catalogue;
using bert4rec::join;
using bert4rec::require;

// A text for comparing: lower case, without accents and punctuation, its words (a CJK ideograph is
// one) separated by a space.
inline std::u32string folded(std::string_view text) {
  constexpr std::size_t longest_word = 1000;
  std::u32string words;
  bert4rec::detail::BasicTokenizer tokenizer(
      bert4rec::WordPieceRules::google, longest_word, [&](std::u32string_view word) {
        using bert4rec::detail::Character, bert4rec::detail::CharacterTable;
        if (CharacterTable::instance()[word[0]].kind == Character::punctuation) return;
        if (!words.empty()) words += U' ';
        words += word;
      });
  tokenizer.read(text);
  return words;
}

// How many letters must be changed, put in or left out so that `text` stands somewhere in `title`.
inline std::size_t distance_inside(std::u32string_view text, std::u32string_view title) {
  const std::vector<std::size_t> distances = cli::edit_distances(text, title, true);
  return *std::min_element(distances.begin(), distances.end());
}

class Finder {
 public:
  // `show(item)`: an item's title in a message. Both must outlive this.
  Finder(const Catalogue& catalogue, std::function<std::string(std::int32_t)> show)
      : catalogue_(catalogue), show_(std::move(show)) {}

  // The items of this title; if none, those with this in a title; if none, those whose titles have
  // all its words. A year in brackets behind a title need not be typed. `whole`: only the first.
  std::vector<std::int32_t> find(std::string_view text, bool whole = false) {
    fold();
    const std::u32string wanted = folded(text);
    if (wanted.empty()) return {};
    std::array<std::vector<std::int32_t>, 3> found;
    const std::size_t kinds = whole ? 1 : found.size();
    for (std::size_t item = 0; item < folded_.size(); ++item) {
      std::size_t best = found.size();
      for (const Title& title : folded_[item]) best = std::min(best, fit(wanted, title));
      if (best < kinds) found[best].push_back(static_cast<std::int32_t>(item));
    }
    for (std::vector<std::int32_t>& items : found) {
      if (!items.empty()) return std::move(items);
    }
    return {};
  }

  // The items whose titles are most like a text.
  std::vector<std::int32_t> nearest(std::string_view text, std::size_t count) {
    fold();
    const std::u32string wanted = folded(text);
    std::vector<std::tuple<std::size_t, std::size_t, std::int32_t>> order;  // distance, rest, item
    for (std::size_t item = 0; item < folded_.size(); ++item) {
      for (const Title& title : folded_[item]) {
        const std::size_t distance = distance_inside(wanted, title.whole);
        const std::size_t a = title.whole.size(), b = wanted.size();
        order.emplace_back(distance, a > b ? a - b : b - a, static_cast<std::int32_t>(item));
      }
    }
    std::sort(order.begin(), order.end());
    std::vector<std::int32_t> items;
    for (const auto& [distance, rest, item] : order) {
      if (items.size() == count) break;
      if (std::find(items.begin(), items.end(), item) == items.end()) items.push_back(item);
    }
    return items;
  }

  // The end of a message that no title is this text.
  std::string nearest_text(std::string_view text) {
    const std::vector<std::int32_t> items = nearest(text, 3);
    return items.empty() ? "; no item has a title at all (import_interactions --items FILE)"
                         : "; the nearest: " + list(items);
  }

  // Whether neither an id nor a title is anything like it.
  bool is_unknown(const std::string& text) {
    return catalogue_.find_typed(text) < 0 && find(text, is_number(text)).empty();
  }

  // The one item of this id or title; or an error that names `what` asked, and the choices.
  std::int32_t one(std::string_view what, const std::string& text) {
    const std::int32_t item = catalogue_.find_typed(text);
    if (item >= 0) return item;
    const std::vector<std::int32_t> found = find(text, is_number(text));
    require(!found.empty(), what, ": no item has the id or title \"", bert4rec::shown(text), "\"",
            is_number(text) ? "" : nearest_text(text));
    require(found.size() == 1, what, ": \"", bert4rec::shown(text), "\" may be ", found.size(),
            " items: ", list(found), "; give the id in brackets");
    return found[0];
  }

  // "Title (id), Title (id), ..."
  std::string list(const std::vector<std::int32_t>& items) const {
    constexpr std::size_t most = 5;
    std::string text;
    for (std::size_t i = 0; i < std::min(most, items.size()); ++i) {
      text += join(i == 0 ? "" : ", ", bert4rec::shown(show_(items[i])), " (",
                   bert4rec::shown(bert4rec::id_text(catalogue_[items[i]].id)), ")");
    }
    return items.size() > most ? text + ", ..." : text;
  }

 private:
  struct Title {
    std::u32string whole, without_year;
  };

  // A number was meant for an id, not for a part of a title, such as a year.
  static bool is_number(std::string_view text) {
    return text.find_first_not_of("0123456789") == text.npos;
  }

  // 0: a text is the title; 1: stands in it; 2: its words do; 3: they do not.
  static std::size_t fit(const std::u32string& text, const Title& title) {
    if (text == title.whole || text == title.without_year) return 0;
    if (title.whole.find(text) != text.npos) return 1;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find(U' ', begin), text.size());
      if (title.whole.find(text.substr(begin, end - begin)) == text.npos) return 3;
      begin = end + 1;
    }
    return 2;
  }

  // When it is first needed, since there may be many titles.
  void fold() {
    if (!folded_.empty()) return;
    for (const bert4rec::Item& item : catalogue_) {
      std::vector<Title>& all = folded_.emplace_back();
      for (const std::string* title : {&item.english, &item.romaji, &item.native}) {
        if (title->empty()) continue;
        const std::size_t n = title->size(), year = n - std::min<std::size_t>(n, 6);
        const bool has_year = n > 6 && (*title)[year] == '(' && title->back() == ')' &&
                              title->find_first_not_of("0123456789", year + 1) == n - 1;
        all.push_back({folded(*title), has_year ? folded(title->substr(0, year)) : U""});
      }
    }
  }

  const Catalogue& catalogue_;
  std::function<std::string(std::int32_t)> show_;
  std::vector<std::vector<Title>> folded_;  // of each item
};

}  // namespace titles

#endif  // BERT4REC_TOOLS_TITLES_HPP
