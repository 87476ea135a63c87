// The audits: planted leaks and orders are found, honest data are not accused.

#include "check.hpp"
#include "common/audit.hpp"

using namespace audits;

namespace {

using List = std::vector<std::int32_t>;

Dataset data_of(std::size_t items, const std::vector<List>& lists) {
  Dataset data;
  for (std::size_t i = 0; i < items; ++i) {
    Item item;
    item.id = static_cast<std::int64_t>(i);
    data.catalogue.add(item);
  }
  for (std::size_t user = 0; user < lists.size(); ++user) {
    data.histories.add(join("user ", user), lists[user]);
  }
  return data;
}

List permutation(std::size_t items, std::uint64_t seed) {
  List all(items);
  std::iota(all.begin(), all.end(), 0);
  shuffle(all, make_key(seed));
  return all;
}

// About a third of 300 items each, all in one order that is not that of their numbers.
std::vector<List> ordered_lists(std::size_t users) {
  const List order = permutation(300, 1);
  std::vector<List> lists(users);
  for (std::size_t user = 0; user < users; ++user) {
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (below(fold_in(make_key(2), user), i, 3) == 0) lists[user].push_back(order[i]);
    }
  }
  return lists;
}

OrderAudit order_of(const std::vector<List>& lists) {
  return audit_order(data_of(300, lists).histories, 300);
}

void check_severity(const Finding& finding, Severity expected,
                    Place where = {__builtin_FILE(), __builtin_LINE()}) {
  check_equal(enum_name(finding.severity), enum_name(expected), where);
}

void test_backward_steps() {
  using Steps = std::vector<Step>;
  check_equal(backward_steps(Steps{}, 3), 0u);
  check_equal(backward_steps(Steps{{2, 0}, {0, 1}, {2, 1}}, 3), 0u);  // 2 0 1
  check_equal(backward_steps(Steps{{0, 1}, {1, 2}, {2, 0}}, 3), 1u);  // a ring
  check_equal(backward_steps(Steps{{0, 1}, {0, 1}, {0, 1}, {1, 0}}, 2), 1u);
  const OrderAudit audit = order_of({{5, 5, 6, 6}, {6, 5}});
  check_equal(audit.steps, 2u);  // an item beside itself is no step
  check_equal(audit.backward, 1u);
}

void test_order() {
  const auto lists = ordered_lists(100);
  const OrderAudit ordered = order_of(lists);
  check_equal(ordered.backward, 0u);
  check_severity(describe(ordered), Severity::warning);

  const auto swapped = [&](std::size_t of_1000) {  // so many neighbours change places
    auto some = lists;
    for (std::size_t user = 0; user < some.size(); ++user) {
      for (std::size_t i = 1; i < some[user].size(); ++i) {
        if (below(fold_in(make_key(3), user), i, 1000) < of_1000) {
          std::swap(some[user][i - 1], some[user][i]);
        }
      }
    }
    return describe(order_of(some));
  };
  check_severity(swapped(10), Severity::warning);
  check_severity(swapped(100), Severity::note);

  auto shuffled = lists;
  for (std::size_t user = 0; user < shuffled.size(); ++user) {
    shuffle(shuffled[user], fold_in(make_key(4), user));
    if (user == 29) {  // three in ten
      auto mixed = lists;
      std::copy_n(shuffled.begin(), 30, mixed.begin());
      check_severity(describe(order_of(mixed)), Severity::note);
    }
  }
  const OrderAudit random = order_of(shuffled);
  check(random.share() > 0.3, "no order in shuffled lists");
  check_severity(describe(random), Severity::ok);
  check_severity(describe(order_of({})), Severity::note);
}

// Three users without a contradiction: an order, or chance.
void test_little_data() {
  const OrderAudit audit = order_of({{0, 1, 2, 3, 4, 5}, {6, 2, 7, 8}, {9, 10, 4, 11}});
  check_equal(audit.backward, 0u);
  const Finding finding = describe(audit);
  check_severity(finding, Severity::note);
  check(finding.text.starts_with("too little data to tell"), finding.text);
}

constexpr std::size_t num_users = 40;

// Users of 24 items drawn from 500.
std::vector<List> random_lists() {
  std::vector<List> lists;
  for (std::size_t user = 0; user < num_users; ++user) {
    lists.push_back(permutation(500, 100 + user));
    lists.back().resize(24);
  }
  return lists;
}

List part(const List& list, std::size_t begin, std::size_t end) {
  return {list.begin() + static_cast<std::ptrdiff_t>(begin),
          list.begin() + static_cast<std::ptrdiff_t>(end)};
}

List joined(List first, const List& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

SplitAudit split_audit(const std::vector<List>& lists, Split kind) {
  const Dataset data = data_of(500, lists);
  TrainConfig config;
  config.split = kind;
  return audit_split(DataSplit(data.histories, config));
}

void test_split_by_users() {
  // Which users are held out depends on their number alone.
  const Dataset data = data_of(500, random_lists());
  const DataSplit split(data.histories, TrainConfig());
  const std::vector<std::size_t>& held_out = split.validation_users();
  const std::size_t trained = split.train_users()[7];
  check_equal(held_out.size(), 4u);
  const auto audited = [&](auto&& plant) {
    auto lists = random_lists();
    plant(lists[held_out[1]], lists[trained]);
    return split_audit(lists, Split::users);
  };

  const SplitAudit none = audited([](List&, List&) {});
  check_equal(none.validation_users, 4u);
  check_equal(none.users, 4u);
  check_equal(none.items, 96u);
  check_equal(none.known_items, 0u);
  check_severity(describe(none), Severity::ok);

  const SplitAudit copy = audited([](List& held, const List& train) { held = train; });
  check_equal(copy.known_items, 24u);
  check_equal(copy.known_users, 1u);
  check_severity(describe(copy), Severity::warning);

  // Windows of one long history that overlap by half.
  const SplitAudit half = audited(
      [](List& held, const List& train) { held = joined(part(train, 12, 24), part(held, 0, 12)); });
  check_equal(half.known_items, 12u);
  check_equal(half.known_users, 0u);
  check_severity(describe(half), Severity::warning);

  const SplitAudit inside =
      audited([](List& held, const List& train) { held = part(train, 3, 11); });
  check_equal(inside.known_items, 8u);
  check_equal(inside.known_users, 1u);
  const auto cut = [&](std::size_t begin, std::size_t end) {
    return audited([&](List& held, const List& train) {
      held = joined(part(train, begin, end), part(held, 0, 10));
    });
  };
  check_equal(cut(0, 8).known_items, 8u);
  check_equal(cut(0, 7).known_items, 0u);  // a run of seven may be chance
  const SplitAudit turned = audited([](List& held, const List& train) {
    held = train;
    std::reverse(held.begin(), held.end());
  });
  check_equal(turned.known_items, 0u);  // the same items in another order

  // Shorter than eight: the whole history. Shorter than five: not looked at.
  const auto shortened = [&](std::size_t length, std::size_t from) {
    return audited([&](List& held, const List& train) { held = part(train, from, from + length); });
  };
  check_equal(shortened(5, 2).known_items, 5u);
  check_equal(shortened(7, 17).known_users, 1u);
  check_equal(shortened(4, 2).users, 3u);
  check_equal(shortened(4, 2).known_items, 0u);
}

void test_split_by_last() {
  auto lists = random_lists();
  lists[5] = lists[9];  // twins: the held-out items of one are held out of the other too
  check_equal(split_audit(lists, Split::last).known_items, 0u);
  check_equal(split_audit(lists, Split::last).items, 2 * num_users);
  lists[5] = joined(part(lists[9], 12, 24), part(random_lists()[5], 0, 12));  // half of 9, newer
  const SplitAudit half = split_audit(lists, Split::last);
  check_equal(half.known_items, 2u);  // the last two of user 9 are trained on with user 5
  check_equal(half.known_users, 1u);
}

void test_interval() {
  // Newcombe, Statistics in Medicine 1998, table I, method 3.
  const auto expect = [](double share, std::size_t users, double low, double high) {
    const Interval interval = wilson_interval(share, users);
    check(std::abs(interval.low - low) < 5e-5 && std::abs(interval.high - high) < 5e-5,
          join("interval of ", share, " on ", users, " is ", interval.low, " to ", interval.high));
  };
  expect(81.0 / 263, 263, 0.2553, 0.3662);
  expect(15.0 / 148, 148, 0.0624, 0.1605);
  expect(0.0, 20, 0.0, 0.1611);
  expect(1.0 / 29, 29, 0.0061, 0.1718);
  check_severity(describe_size(3), Severity::warning);
  check(describe_size(3).text.find("3 validation users: a Top-1 of 50 % means anything from 12.5 % "
                                   "to 87.5 %") == 0,
        describe_size(3).text);
  check_severity(describe_size(500), Severity::note);
  check_severity(describe_size(5000), Severity::ok);
  check_throws([] { wilson_interval(1.5, 3); }, {"share is 1.5"});
  check_throws([] { wilson_interval(0.5, 0); }, {"at least one user"});
}

void test_counts() {
  const TemporaryFolder folder;
  std::string items;
  for (int id = 0; id < 9; ++id) items += join("{\"id\": ", id, "}\n");
  write_file(folder / "items.jsonl", items);
  std::string histories;
  int user = 0;
  const auto add = [&](const List& ids, int time, int pace) {  // time < 0: none
    histories += join("{\"user\": \"", user++, "\", \"entries\": [");
    for (std::size_t i = 0; i < ids.size(); ++i, time += pace) {
      const std::string at = time < 0 ? "null" : join(time);
      histories += join(i == 0 ? "" : ", ", "{\"id\": ", ids[i], ", \"at\": ", at, "}");
    }
    histories += "]}\n";
  };
  add({0, 1, 2, 3, 4}, 10, 1);
  add({0, 1, 2, 3, 4}, 70, 0);  // a copy, all at one time
  add({0, 1, 0, 0}, -1, 0);     // no times, two repeats
  add({5, 6}, 10, 5);
  add({6}, 10, 5);  // one entry is not "all at one time"
  add({6}, 10, 5);  // no copy: too short to mean anything
  write_file(folder / "histories.jsonl", histories);
  const Dataset data = Dataset::load(folder.path());
  const CountAudit audit = audit_counts(data);
  check_equal(audit.users, 6u);
  check_equal(audit.items, 9u);
  check_equal(audit.interactions, 18u);
  check_equal(audit.unseen_items, 2u);  // 7, 8
  check_equal(audit.once_items, 1u);    // 5
  check_equal(audit.single_users, 2u);
  check_equal(audit.short_users, 3u);
  check_equal(audit.copied_users, 1u);
  check_equal(audit.repeated_entries, 2u);
  check_equal(audit.untimed_users, 1u);
  check_equal(audit.same_time_users, 1u);
  const auto findings = describe(audit);
  check_equal(findings.size(), 7u);
  check(findings[0].text.starts_with("1 user of 6 with exactly the history"), findings[0].text);
  check_severity(findings[0], Severity::warning);

  const auto clean = describe(audit_counts(data_of(3, {{0, 1, 2}, {2, 1, 0}})));
  check_equal(clean.size(), 1u);
  check_severity(clean[0], Severity::ok);
}

// Everything together: one finding each for order, split and size, after the counts.
void test_whole() {
  const Dataset data = data_of(300, ordered_lists(40));
  const auto findings = describe(audit_data(data, TrainConfig()));
  const std::size_t n = findings.size();
  check_equal(n, 4u);
  check_equal(findings[n - 3].audit, "order");
  check_equal(findings[n - 2].audit, "split");
  check_equal(findings[n - 1].audit, "size");
  TrainConfig config;
  config.validation_ratio = 0;
  check_throws([&] { audit_data(data, config); }, {"leaves no validation user"});
  const Dataset wrong = data_of(3, {{0, 7}, {1, 2}});
  check_throws([&] { audit_counts(wrong); }, {"item 7"});
  check_throws([&] { audit_order(wrong.histories, 3); }, {"item 7"});
}

}  // namespace

int main() {
  test("backward steps", test_backward_steps);
  test("one order of all histories", test_order);
  test("too little data to tell", test_little_data);
  test("leaks of a split by users", test_split_by_users);
  test("leaks of a split by last item", test_split_by_last);
  test("Wilson's interval", test_interval);
  test("counts", test_counts);
  test("the whole audit", test_whole);
  return finish();
}
