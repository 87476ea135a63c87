// WordPiece as its rules are told: one pass over the whole text for each step, and every substring
// looked up. A slow twin of the header's, for tests; of the header it uses the properties of
// characters only.

#ifndef BERT4REC_TESTS_PLAIN_WORD_PIECE_HPP
#define BERT4REC_TESTS_PLAIN_WORD_PIECE_HPP

#include "bert4rec.hpp"

namespace plain {

using bert4rec::detail::Character;
using bert4rec::detail::CharacterTable;
using Text = std::u32string;

inline const Character& properties(char32_t c) { return CharacterTable::instance()[c]; }

inline Text decoded(std::string_view bytes) {
  Text text;
  while (!bytes.empty()) {
    const std::size_t length = bert4rec::detail::utf8_length(bytes);
    static constexpr std::uint32_t masks[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    char32_t code = static_cast<unsigned char>(bytes[0]) & masks[length];
    for (std::size_t i = 1; i < length; ++i) {
      code = code << 6 | (static_cast<unsigned char>(bytes[i]) & 0x3F);
    }
    if (length > 0) text += code;
    bytes.remove_prefix(std::max<std::size_t>(1, length));
  }
  return text;
}

// The words of a text, cleaned (steps 1 and 2).
inline std::vector<Text> words_of(const Text& text, bool google) {
  std::vector<Text> words(1);
  for (const char32_t c : text) {
    const Character::Kind kind = properties(c).kind;
    if (kind == Character::dropped || (kind == Character::private_use && !google)) continue;
    if (kind == Character::space) {
      words.emplace_back();
    } else if (kind == Character::ideograph) {
      words.insert(words.end(), {Text(1, c), Text()});
    } else {
      words.back() += c;
    }
  }
  return words;
}

// Whether a cased letter is next to place i of a word, in steps of -1 or 1.
inline bool cased_beside(const Text& word, std::size_t i, int step) {
  auto at = static_cast<std::ptrdiff_t>(i) + step;
  const auto size = static_cast<std::ptrdiff_t>(word.size());
  const auto casing = [&] { return properties(word[static_cast<std::size_t>(at)]).casing; };
  while (at >= 0 && at < size && casing() == Character::ignorable) at += step;
  return at >= 0 && at < size && casing() == Character::cased;
}

// Lower case and NFD, with marks in their order, and then without them (step 3).
inline Text folded(const Text& word, bool google) {
  Text text;
  for (std::size_t i = 0; i < word.size(); ++i) {
    const char32_t folded = properties(word[i]).folded;
    if (word[i] == 0x3A3 && google && cased_beside(word, i, -1) && !cased_beside(word, i, 1)) {
      text += char32_t{0x3C2};
    } else if (folded > 0x10FFFF) {
      for (const char32_t c : CharacterTable::instance().folded_parts(folded)) {
        if (c != 0) text += c;
      }
    } else {
      text += folded == 0 ? word[i] : folded;
    }
  }
  for (auto at = text.begin(); at != text.end();) {
    const auto base = [](char32_t c) { return properties(c).combining == 0; };
    const auto begin = std::find_if_not(at, text.end(), base);
    at = std::find_if(begin, text.end(), base);
    std::stable_sort(begin, at, [](char32_t a, char32_t b) {
      return properties(a).combining < properties(b).combining;
    });
  }
  std::erase_if(text, [](char32_t c) { return properties(c).kind == Character::mark; });
  return text;
}

// Step 4.
inline std::vector<Text> parts_of(const Text& word) {
  std::vector<Text> parts(1);
  for (const char32_t c : word) {
    if (properties(c).kind == Character::punctuation) {
      parts.insert(parts.end(), {Text(1, c), Text()});
    } else {
      parts.back() += c;
    }
  }
  std::erase(parts, Text());
  return parts;
}

class WordPiece {
 public:
  WordPiece(const bert4rec::WordPiece& vocabulary, bool google)
      : google_(google), unknown_(vocabulary.unknown()) {
    for (std::size_t i = 0; i < vocabulary.size(); ++i) {
      const auto id = static_cast<std::int32_t>(i);
      const Text token = decoded(vocabulary.token(id));
      ids_[token] = id;
      longest_ = std::max(longest_, token.size());
    }
  }

  // Of a text that holds no special token.
  std::vector<std::int32_t> ids(std::string_view text) const {
    std::vector<std::int32_t> all;
    for (const Text& word : words_of(decoded(text), google_)) {
      for (const Text& part : parts_of(folded(word, google_))) {
        const std::vector<std::int32_t> ids = pieces(part);
        all.insert(all.end(), ids.begin(), ids.end());
      }
    }
    return all;
  }

 private:
  // Step 5.
  std::vector<std::int32_t> pieces(const Text& part) const {
    std::vector<std::int32_t> ids;
    if (part.size() > (google_ ? 200 : 100)) return {unknown_};
    for (std::size_t begin = 0, end = part.size(); begin < part.size(); end = part.size()) {
      const auto piece = [&] {
        return (begin > 0 ? U"##" : U"") + part.substr(begin, end - begin);
      };
      end = std::min(end, begin + longest_);
      while (end > begin && !ids_.contains(piece())) --end;
      if (end == begin) return {unknown_};
      ids.push_back(ids_.at(piece()));
      begin = end;
    }
    return ids;
  }

  bool google_;
  std::int32_t unknown_;
  std::size_t longest_ = 0;
  std::map<Text, std::int32_t> ids_;
};

}  // namespace plain

#endif  // BERT4REC_TESTS_PLAIN_WORD_PIECE_HPP
