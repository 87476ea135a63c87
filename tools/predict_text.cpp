// Tells the labels of texts by one classifier, or by several whose probabilities are averaged.

#include "common/gpu.hpp"
#include "common/texts.hpp"

namespace {

using namespace bert4rec;

struct Options {
  std::string models = "output/models", name = "best_model", text;
  Path input, evaluate;
  texts::Columns columns;
  std::size_t threads = 0;
  gpu::Choice gpu;
  bool json = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("predict_text", "tells the label of a text, or of each line of a file",
                        "predict_text --models output/models --text \"味道很好\"\n"
                        "  predict_text --input texts.txt --json > labels.jsonl\n"
                        "  predict_text --models a/models,b/models --evaluate test.tsv");
  line.option("models", options.models,
              "folders that train_classifier wrote, with commas between: their mean");
  line.option("name", options.name, "best_model or final_model");
  line.option("text", options.text, "the text");
  line.option("input", options.input, "file with a text a line; -: standard input");
  line.option("evaluate", options.evaluate,
              "TSV, CSV or JSON lines of texts and labels: how many are right");
  options.columns.add_flags(line);
  line.option("threads", options.threads, "threads; 0: one a core");
  options.gpu.add_flags(line);
  line.flag("json", options.json, "a line of JSON for each text, or for the evaluation");
  line.parse(argc, argv);
  if (line.given("text") + line.given("input") + line.given("evaluate") != 1) {
    throw cli::UsageError("expected one of --text, --input and --evaluate");
  }
  return options;
}

// Several models of the same labels, whose probabilities are averaged.
class Ensemble {
 public:
  explicit Ensemble(const Options& options) {
    for (std::string_view rest = options.models; !rest.empty();) {
      const std::size_t length = std::min(rest.find(','), rest.size());
      const Path folder = path_from(std::string(rest.substr(0, length)));
      rest.remove_prefix(std::min(length + 1, rest.size()));
      members_.push_back(
          std::make_unique<Classifier>(folder, options.name, options.threads, options.gpu.maker()));
      require(members_.back()->labels() == labels(), folder, ": has other labels than the first");
    }
    require(!members_.empty(), "--models names no folder");
  }

  const std::vector<std::string>& labels() const { return members_.front()->labels(); }

  std::vector<std::vector<float>> probabilities(std::span<const std::string_view> some) {
    auto sums = members_.front()->probabilities(some);
    for (std::size_t m = 1; m < members_.size(); ++m) {
      const auto more = members_[m]->probabilities(some);
      for (std::size_t i = 0; i < some.size(); ++i) {
        std::transform(sums[i].begin(), sums[i].end(), more[i].begin(), sums[i].begin(),
                       std::plus<>());
      }
    }
    for (std::vector<float>& row : sums) {
      for (float& value : row) value /= static_cast<float>(members_.size());
    }
    return sums;
  }

 private:
  std::vector<std::unique_ptr<Classifier>> members_;
};

void print_json(std::string_view text, std::span<const float> probabilities,
                const std::vector<std::string>& labels) {
  Json json, each;
  for (std::size_t c = 0; c < labels.size(); ++c) each.set(labels[c], probabilities[c]);
  json.set("text", text);
  json.set("label", labels[best_label(probabilities)]);
  json.set("probabilities", std::move(each));
  std::cout << json.text() << "\n";
}

// A label as it may stand in a line.
std::string line_of(const std::string& label) { return shown(label, label.size()); }

// All labels, the most likely first.
void print_all(std::span<const float> probabilities, const std::vector<std::string>& labels) {
  std::vector<std::size_t> order(labels.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return probabilities[a] > probabilities[b];
  });
  for (const std::size_t c : order) {
    std::cout << cli::fixed(double{probabilities[c]}, 4) << "  " << line_of(labels[c]) << "\n";
  }
}

void predict_one(Ensemble& ensemble, const Options& options) {
  const std::string_view text = options.text;
  const auto probabilities = ensemble.probabilities({&text, 1}).front();
  if (options.json)
    print_json(text, probabilities, ensemble.labels());
  else
    print_all(probabilities, ensemble.labels());
}

// Lines of a file that may be larger than memory: label, probability and text for each.
void predict_lines(Ensemble& ensemble, const Options& options) {
  constexpr std::size_t at_once = 256;
  std::vector<std::string> lines;
  const auto flush = [&] {
    const std::vector<std::string_view> some(lines.begin(), lines.end());
    const auto probabilities = ensemble.probabilities(some);
    for (std::size_t i = 0; i < some.size(); ++i) {
      if (options.json) {
        print_json(some[i], probabilities[i], ensemble.labels());
        continue;
      }
      const std::size_t best = best_label(probabilities[i]);
      std::cout << line_of(ensemble.labels()[best]) << "\t"
                << cli::fixed(double{probabilities[i][best]}, 4) << "\t" << some[i] << "\n";
    }
    std::cout.flush();
    lines.clear();
  };
  cli::LineReader reader(options.input);
  for (std::string line; reader.next(line);) {
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(std::move(line));
    if (lines.size() == at_once || !reader.has_line()) flush();
  }
}

void evaluate(Ensemble& ensemble, const Options& options) {
  const auto all = texts::read(options.evaluate, options.columns, true);
  texts::check_labels(ensemble.labels(), all, tables::source_name(options.evaluate));
  const Confusion confusion = texts::evaluate(ensemble, all);
  if (options.json)
    std::cout << texts::to_json(confusion, ensemble.labels()).text(2) << "\n";
  else
    texts::print(std::cout, tables::source_name(options.evaluate), confusion, ensemble.labels());
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Ensemble ensemble(options);
  if (!options.evaluate.empty())
    evaluate(ensemble, options);
  else if (!options.input.empty())
    predict_lines(ensemble, options);
  else
    predict_one(ensemble, options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("predict_text", argc, argv, run); }
