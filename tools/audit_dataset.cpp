// Looks for what makes figures meaningless: no order of time, a split that leaks, too few users.

#include "common/audit.hpp"
#include "common/cli.hpp"

#include <iomanip>

namespace {

using namespace audits;

struct Options {
  Path data = "data/demo";
  TrainConfig train;
  bool json = false, strict = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("audit_dataset",
                        "tells whether figures measured on a data set and its split can be "
                        "trusted:\ncounts, order of time or of a catalogue, leaks from training "
                        "into validation, number of\nvalidation users. Exits 0 whatever it finds, "
                        "unless --strict is given.",
                        "audit_dataset --data data/demo --split users --val-ratio 0.1");
  line.option("data", options.data, "folder with items.jsonl and histories.jsonl");
  line.option("split", options.train.split, "the split to look at, as for train_model");
  line.option("val-ratio", options.train.validation_ratio, "share of users held out");
  line.option("folds", options.train.folds, "hold out one of so many parts of the users; 0: none");
  line.option("fold", options.train.fold, "which of them, from 1");
  line.option("seed", options.train.seed, "seed of the split");
  line.flag("strict", options.strict, "exit 1 if there is a warning");
  line.flag("json", options.json, "print JSON");
  line.parse(argc, argv);
  return options;
}

Json json_of(const CountAudit& audit) {
  Json json;
  json.set("users", audit.users);
  json.set("items", audit.items);
  json.set("interactions", audit.interactions);
  json.set("unseen_items", audit.unseen_items);
  json.set("once_items", audit.once_items);
  json.set("single_users", audit.single_users);
  json.set("short_users", audit.short_users);
  json.set("copied_users", audit.copied_users);
  json.set("repeated_entries", audit.repeated_entries);
  json.set("untimed_users", audit.untimed_users);
  json.set("same_time_users", audit.same_time_users);
  return json;
}

Json json_of(const OrderAudit& audit) {
  Json json;
  json.set("steps", audit.steps);
  json.set("backward", audit.backward);
  json.set("backward_share", audit.share());
  json.set("backward_share_shuffled", audit.shuffled_share);
  return json;
}

Json json_of(const SplitAudit& audit, Split kind) {
  Json json;
  json.set("split", enum_name(kind));
  json.set("validation_users", audit.validation_users);
  json.set("users_looked_at", audit.users);
  json.set("users_wholly_known", audit.known_users);
  json.set("held_out_items", audit.items);
  json.set("known_items", audit.known_items);
  return json;
}

Json json_of(const std::vector<Finding>& findings) {
  Json::Array array;
  for (const Finding& finding : findings) {
    Json json;
    json.set("audit", finding.audit);
    json.set("severity", enum_name(finding.severity));
    json.set("text", finding.text);
    array.push_back(std::move(json));
  }
  return array;
}

Json report(const DataAudit& audit, Split kind, const std::vector<Finding>& findings) {
  const Interval interval = wilson_interval(0.5, audit.split.validation_users);
  Json size, json;
  size.set("share", 0.5);
  size.set("low", interval.low);
  size.set("high", interval.high);
  json.set("counts", json_of(audit.counts));
  json.set("order", json_of(audit.order));
  json.set("split", json_of(audit.split, kind));
  json.set("size", std::move(size));
  json.set("findings", json_of(findings));
  return json;
}

int audit(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Dataset data = Dataset::load(options.data);
  const DataAudit audit = audit_data(data, options.train);
  const std::vector<Finding> findings = describe(audit);
  if (options.json) {
    std::cout << report(audit, options.train.split, findings).text(2) << "\n";
  } else {
    std::cout << path_text(options.data) << ": " << cli::grouped(audit.counts.items) << " items, "
              << cli::grouped(audit.counts.users) << " users, "
              << cli::grouped(audit.counts.interactions) << " interactions; split by "
              << (options.train.split == Split::users ? "users" : "last item") << "\n";
    for (const Finding& finding : findings) {
      std::cout << std::left << std::setw(9) << enum_name(finding.severity) << std::setw(8)
                << finding.audit << finding.text << "\n";
    }
  }
  const auto warnings = std::count_if(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.severity == Severity::warning;
  });
  require(!options.strict || warnings == 0, options.data, ": warnings: ", warnings);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("audit_dataset", argc, argv, audit); }
