// Good figures can come from bad data. These functions look for the usual causes and return numbers;
// describe() turns them into sentences that say what they mean for the figures. They need data and
// no engine.

#ifndef BERT4REC_TOOLS_AUDIT_HPP
#define BERT4REC_TOOLS_AUDIT_HPP

#include <queue>

#include "bert4rec.hpp"

namespace audits {

using namespace bert4rec;

// What stands out when the histories are counted.
struct CountAudit {
  std::size_t users = 0, items = 0, interactions = 0;
  std::size_t unseen_items = 0, once_items = 0;   // of the catalogue: in no history, in one place
  std::size_t single_users = 0, short_users = 0;  // one item; fewer than three, those included
  std::size_t copied_users = 0;      // whose history, of five items or more, an earlier user has
  std::size_t repeated_entries = 0;  // items that stood in the same history before
  std::size_t untimed_users = 0, same_time_users = 0;  // no complete times; all times equal
};

// Whether all histories follow one order of the items. A step is two different items that stand
// side by side in a history; it is backward if it goes against the best single order found.
struct OrderAudit {
  std::size_t steps = 0, backward = 0;
  double shuffled_share = 0;  // share of backward steps when every history is shuffled

  double share() const {
    return static_cast<double>(backward) / static_cast<double>(std::max<std::size_t>(1, steps));
  }
  double expected() const { return shuffled_share * static_cast<double>(steps); }
};

// Whether training sees what validation asks for. An n-gram is n items in a row; here n is 8, or
// the length of a history of 5 to 7. A held-out item is known if an n-gram it lies in also stands,
// in the same order, in a training sequence. In ml-1m, beauty and others at most 1 item in 500 is.
struct SplitAudit {
  std::size_t validation_users = 0;
  std::size_t users = 0, known_users = 0;  // of five items or more; all held-out items known
  std::size_t items = 0, known_items = 0;  // held out from those users
};

inline constexpr std::size_t shortest_ngram = 5, longest_ngram = 8;

struct Step {
  std::uint32_t from, to;
};

inline void add_steps(std::vector<Step>& steps, ItemSpan items) {
  for (std::size_t i = 1; i < items.size(); ++i) {
    if (items[i - 1] == items[i]) continue;
    steps.push_back(
        {static_cast<std::uint32_t>(items[i - 1]), static_cast<std::uint32_t>(items[i])});
  }
}

// Builds one order of the items and counts the steps that go backward in it. Next comes the item
// with the smallest share of its steps still open: those from items not yet placed. So the count
// is 0 if the steps have no cycle, and stays small if a few go astray. O((S + I) log S).
inline std::size_t backward_steps(std::span<const Step> steps, std::size_t num_items) {
  std::vector<std::size_t> begin(num_items + 1), open(num_items), total(num_items);
  for (const Step& step : steps) {
    ++begin[step.from + 1], ++open[step.to];
    ++total[step.from], ++total[step.to];
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<std::uint32_t> successors(steps.size());  // of item i: from begin[i] on
  std::vector<std::size_t> end = begin;
  for (const Step& step : steps) successors[end[step.from]++] = step.to;

  // Shares are in 1/128, rounded up, so that an item is queued at most 129 times.
  const auto open_share = [&](std::uint32_t item) -> std::size_t {
    return total[item] == 0 ? 0 : (128 * open[item] + total[item] - 1) / total[item];
  };
  using Candidate = std::pair<std::size_t, std::uint32_t>;  // open share, item
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  for (std::uint32_t item = 0; item < num_items; ++item) queue.emplace(open_share(item), item);
  std::vector<bool> placed(num_items);
  std::size_t backward = 0;
  while (!queue.empty()) {
    const std::uint32_t item = queue.top().second;
    queue.pop();
    if (placed[item]) continue;  // by a later entry with a smaller share
    placed[item] = true;
    for (std::size_t i = begin[item]; i < end[item]; ++i) {
      const std::uint32_t next = successors[i];
      if (placed[next]) {
        ++backward;
      } else {
        const std::size_t share_before = open_share(next);
        --open[next];
        if (open_share(next) < share_before) queue.emplace(open_share(next), next);
      }
    }
  }
  return backward;
}

inline std::string_view bytes_of(ItemSpan items) {
  return {reinterpret_cast<const char*>(items.data()), items.size_bytes()};
}

// Users whose history, of five items or more, an earlier user has.
inline std::size_t copied_users(const Histories& histories) {
  std::unordered_set<std::string_view> seen;
  std::size_t copies = 0;
  for (std::size_t user = 0; user < histories.size(); ++user) {
    const ItemSpan items = histories.row(user);
    copies += items.size() >= shortest_ngram && !seen.insert(bytes_of(items)).second;
  }
  return copies;
}

// Marks the items of validation users, known[user][item], whose n-grams stand in training too. Does
// so for the users whose n-grams are of this length.
inline void mark_known(const DataSplit& split, std::size_t n,
                       std::vector<std::vector<bool>>& known) {
  using Place = std::pair<std::size_t, std::size_t>;  // validation user, first item
  std::unordered_map<std::string_view, std::vector<Place>> places;
  for (std::size_t u = 0; u < known.size(); ++u) {
    const std::size_t user = split.validation_users()[u];
    const ItemSpan items = split.history(user);
    if (std::min(items.size(), longest_ngram) != n) continue;
    // The first n-gram that reaches a held-out item.
    const std::size_t held_out = split.sequence(user).train.size();
    for (std::size_t i = held_out < n ? 0 : held_out - n + 1; i + n <= items.size(); ++i) {
      places[bytes_of(items.subspan(i, n))].emplace_back(u, i);
    }
  }
  if (places.empty()) return;
  for (const std::size_t user : split.train_users()) {
    const ItemSpan items = split.sequence(user).train;
    for (std::size_t i = 0; i + n <= items.size(); ++i) {
      const auto found = places.find(bytes_of(items.subspan(i, n)));
      if (found == places.end()) continue;
      for (const auto& [u, first] : found->second) {
        std::fill_n(known[u].begin() + static_cast<std::ptrdiff_t>(first), n, true);
      }
      places.erase(found);
    }
  }
}

inline CountAudit audit_counts(const Dataset& data) {
  const Histories& histories = data.histories;
  CountAudit audit;
  audit.users = histories.size();
  audit.items = data.catalogue.size();
  audit.interactions = histories.interactions();
  audit.untimed_users = histories.untimed_users;
  audit.same_time_users = histories.same_time_users;
  audit.copied_users = copied_users(histories);
  std::vector<std::size_t> counts(audit.items), last_user(audit.items, histories.size());
  for (std::size_t user = 0; user < histories.size(); ++user) {
    const ItemSpan items = histories.row(user);
    bert4rec::detail::require_items(items, audit.items);
    audit.single_users += items.size() == 1;
    audit.short_users += items.size() < 3;
    for (const std::int32_t item : items) {
      const auto i = static_cast<std::size_t>(item);
      ++counts[i];
      audit.repeated_entries += last_user[i] == user;
      last_user[i] = user;
    }
  }
  const auto items_seen = [&](std::size_t times) {
    return static_cast<std::size_t>(std::count(counts.begin(), counts.end(), times));
  };
  audit.unseen_items = items_seen(0);
  audit.once_items = items_seen(1);
  return audit;
}

// Of histories with more than two million interactions only every k-th is looked at.
inline OrderAudit audit_order(const Histories& histories, std::size_t num_items) {
  const std::size_t k = 1 + histories.interactions() / 2'000'000;
  const Key key = stream_key(0, Stream::audit);
  std::vector<Step> steps, shuffled;
  std::vector<std::int32_t> items;
  for (std::size_t user = 0; user < histories.size(); user += k) {
    const ItemSpan row = histories.row(user);
    bert4rec::detail::require_items(row, num_items);
    add_steps(steps, row);
    items.assign(row.begin(), row.end());
    shuffle(items, fold_in(key, user));
    add_steps(shuffled, items);
  }
  const OrderAudit chance{shuffled.size(), backward_steps(shuffled, num_items), 0};
  return {steps.size(), backward_steps(steps, num_items), chance.share()};
}

inline SplitAudit audit_split(const DataSplit& split) {
  const std::vector<std::size_t>& users = split.validation_users();
  std::vector<std::vector<bool>> known;
  for (const std::size_t user : users) known.emplace_back(split.history(user).size());
  for (std::size_t n = shortest_ngram; n <= longest_ngram; ++n) {
    mark_known(split, n, known);
  }
  SplitAudit audit;
  audit.validation_users = users.size();
  for (std::size_t u = 0; u < users.size(); ++u) {
    if (known[u].size() < shortest_ngram) continue;
    const std::size_t first = split.sequence(users[u]).train.size();
    const auto begin = known[u].begin() + static_cast<std::ptrdiff_t>(first);
    const auto found = static_cast<std::size_t>(std::count(begin, known[u].end(), true));
    const std::size_t held_out = known[u].size() - first;
    ++audit.users;
    audit.known_users += found == held_out;
    audit.items += held_out;
    audit.known_items += found;
  }
  return audit;
}

struct Interval {
  double low, high;
};

// The 95 % interval of a share measured on n users (Wilson, JASA 1927), z = 1.96:
//   (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
// n counts users although a Top-1 is a share of tokens: the tokens of one user are not independent.
// That is the cautious end, unless a few long histories give most of the tokens.
inline Interval wilson_interval(double share, std::size_t users) {
  require(share >= 0 && share <= 1, "share is ", share, ", expected 0 ... 1");
  require(users > 0, "an interval needs at least one user");
  const double n = static_cast<double>(users), z = 1.959964, zz = z * z / n;
  const double center = share + zz / 2;
  const double half = z * std::sqrt(share * (1 - share) / n + zz / (4 * n));
  return {(center - half) / (1 + zz), (center + half) / (1 + zz)};
}

struct DataAudit {
  CountAudit counts;
  OrderAudit order;
  SplitAudit split;
};

// Everything, for the split that training with `config` makes. Throws where it makes none.
inline DataAudit audit_data(const Dataset& data, const TrainConfig& config) {
  validate(config);
  const DataSplit split(data.histories, config);
  return {audit_counts(data), audit_order(data.histories, data.catalogue.size()),
          audit_split(split)};
}

enum class Severity {
  ok,
  note,    // worth knowing
  warning  // do not trust the figures before you have looked into it
};

}  // namespace audits

template <>
struct bert4rec::detail::EnumNames<audits::Severity> {
  static constexpr std::array<std::string_view, 3> names{"ok", "note", "warning"};
};

namespace audits {

// 0.1234 -> "12.3 %"
inline std::string percent_text(double share) { return join(std::round(1000 * share) / 10, " %"); }

inline std::string count_text(std::size_t count, std::string_view noun) {
  return join(count, " ", noun, count == 1 ? "" : "s");
}

struct Finding {
  std::string audit;  // counts, order, split or size
  Severity severity;
  std::string text;  // a sentence or two
};

inline std::vector<Finding> describe(const CountAudit& audit) {
  std::vector<Finding> findings;
  const auto add = [&](std::size_t count, Severity severity, const auto&... parts) {
    if (count > 0) findings.push_back({"counts", severity, join(parts...)});
  };
  const bool many = 100 * audit.copied_users >= audit.users;
  add(audit.copied_users, many ? Severity::warning : Severity::note,
      count_text(audit.copied_users, "user"), " of ", audit.users,
      " with exactly the history of another user. Where such twins fall on both sides of a split, "
      "validation asks for what was trained on.");
  add(audit.repeated_entries, Severity::note, count_text(audit.repeated_entries, "interaction"),
      " repeating an item that the user had before. Recommendations leave seen items out, so they "
      "never name these.");
  add(audit.unseen_items, Severity::note, count_text(audit.unseen_items, "item"), " of ",
      audit.items, " in no history. Nothing can be learned of them.");
  add(audit.once_items, Severity::note, count_text(audit.once_items, "item"), " of ", audit.items,
      " in histories once only. Where that one place is held out, the item was never trained on.");
  add(audit.short_users, Severity::note, count_text(audit.short_users, "user"),
      " with fewer than three items, ", audit.single_users,
      " of them with one. The split by last item cannot hold these out, and one item alone has no "
      "context to learn from.");
  add(audit.untimed_users, Severity::note, count_text(audit.untimed_users, "user"), " of ",
      audit.users,
      " without complete times. Their items keep the order of the file; if that is not the order "
      "of time, the next item means nothing.");
  add(audit.same_time_users, Severity::note, count_text(audit.same_time_users, "user"), " of ",
      audit.users,
      " with one and the same time for all entries, as after an import. The order of their items "
      "is that of the file.");
  if (findings.empty()) add(1, Severity::ok, "nothing stands out in the counts.");
  return findings;
}

// One order is found where there is less than a tenth of the backward steps of shuffled histories.
// Those must have a hundred, or chance could look like an order.
inline Finding describe(const OrderAudit& audit) {
  const auto in_words = [&](Severity severity, std::string_view claim, std::string_view meaning) {
    return Finding{
        "order", severity,
        join(claim, ": ", audit.backward, " of ", audit.steps, " steps (",
             percent_text(audit.share()), ") go against it, ", percent_text(audit.shuffled_share),
             " if the histories are shuffled. ", meaning)};
  };
  const double backward = static_cast<double>(audit.backward), expected = audit.expected();
  if (expected < 100) {
    return in_words(Severity::note, "too little data to tell whether the items have one order",
                    "Chance alone could look like an order.");
  }
  if (backward < 0.1 * expected) {
    return in_words(
        Severity::warning,
        join(audit.backward > 0 ? "nearly " : "", "all histories follow one order of the items"),
        "That is the order of a catalogue, not of time: figures for the next or last item say how "
        "well it was learned, not what people choose next.");
  }
  if (backward < 0.5 * expected) {
    return in_words(Severity::note, "the histories largely follow one order of the items",
                    "Either there is a natural order, as in a course, or many histories stand in "
                    "the order of a catalogue.");
  }
  return in_words(Severity::ok, "the histories follow no single order of the items",
                  "They are not sorted by a catalogue.");
}

// A leak is named from 1 % of the held-out items on, and is a warning from 5 %.
inline Finding describe(const SplitAudit& audit) {
  if (audit.users == 0) {
    return {"split", Severity::note,
            "no validation user has five items: whether training knows them cannot be told."};
  }
  const double share = static_cast<double>(audit.known_items) / static_cast<double>(audit.items);
  const std::string fact =
      join(percent_text(share), " of the held-out items (", audit.known_items, " of ", audit.items,
           "; all of them for ", audit.known_users, " of ", count_text(audit.users, "user"),
           ") lie in runs of ", longest_ngram, " items that stand in training too.");
  if (share < 0.01) return {"split", Severity::ok, join("no leak: ", fact)};
  if (share < 0.05) {
    return {"split", Severity::note,
            join(fact, " Validation figures may be too high by about that much.")};
  }
  return {"split", Severity::warning,
          join("the split leaks: ", fact,
               " These can be known by heart: validation figures are too high.")};
}

// How much of a validation figure is chance: most near 50 %.
inline Finding describe_size(std::size_t validation_users) {
  const Interval interval = wilson_interval(0.5, validation_users);
  const double half = interval.high - 0.5;
  return {"size",
          half > 0.1    ? Severity::warning
          : half > 0.03 ? Severity::note
                        : Severity::ok,
          join(count_text(validation_users, "validation user"),
               ": a Top-1 of 50 % means anything from ", percent_text(interval.low), " to ",
               percent_text(interval.high),
               " (95 % interval over users, not tokens). A smaller difference between two models "
               "may be chance.")};
}

inline std::vector<Finding> describe(const DataAudit& audit) {
  std::vector<Finding> findings = describe(audit.counts);
  findings.push_back(describe(audit.order));
  findings.push_back(describe(audit.split));
  findings.push_back(describe_size(audit.split.validation_users));
  return findings;
}

}  // namespace audits

#endif  // BERT4REC_TOOLS_AUDIT_HPP
