// Texts with labels, from tables (TSV, CSV) or JSON lines; what to say about them; and how well a
// classifier does on them.

#ifndef BERT4REC_TOOLS_TEXTS_HPP
#define BERT4REC_TOOLS_TEXTS_HPP

#include "common/tables.hpp"

namespace texts {

using bert4rec::Json;
using bert4rec::Path;
using bert4rec::require;
using bert4rec::shown;

struct LabelledText {
  std::string text, label;
};

// Where they stand in a file.
struct Columns {
  std::string text, label;  // names, or numbers where there is no header; empty: the usual ones
  std::string delimiter;    // empty: guessed
  bool no_header = false;

  void add_flags(cli::CommandLine& line) {
    line.option("text-column", text, "its name, or number without a header; empty: text, ...");
    line.option("label-column", label, "its name, or number without a header; empty: label, ...");
    line.option("delimiter", delimiter, "between columns: tab, comma, ...; empty: guessed");
    line.flag("no-header", no_header, "the first line is data: text, then label");
  }
};

namespace detail {

inline const std::vector<std::string_view> text_names{"text",   "text_a",  "sentence",
                                                      "review", "content", "title"};
inline const std::vector<std::string_view> label_names{"label", "class", "category", "target"};

inline std::string json_text(bert4rec::JsonReader& reader) {
  if (reader.peek() == '"') return std::string(reader.string());
  return bert4rec::join(reader.integer());
}

inline std::vector<LabelledText> read_json_lines(const std::string& bytes, const std::string& name,
                                                 const Columns& columns, bool labelled) {
  const std::string text_name = columns.text.empty() ? "text" : columns.text;
  const std::string label_name = columns.label.empty() ? "label" : columns.label;
  std::vector<LabelledText> all;
  bert4rec::for_each_line(bytes, [&](std::string_view line, std::size_t number) {
    bert4rec::JsonReader reader(line, name, number);
    LabelledText one;
    bool has_text = false, has_label = false;
    reader.object([&](std::string_view field) {
      if (field == text_name)
        one.text = json_text(reader), has_text = true;
      else if (field == label_name && labelled)
        one.label = json_text(reader), has_label = true;
      else
        reader.skip();
    });
    reader.end();
    if (!has_text) reader.error("missing field \"", shown(text_name), "\"");
    if (labelled && !has_label) reader.error("missing field \"", shown(label_name), "\"");
    all.push_back(std::move(one));
  });
  return all;
}

inline bool is_json_lines(const Path& path) {
  const std::string name = bert4rec::path_text(path);
  return name.ends_with(".jsonl") || name.ends_with(".json");
}

}  // namespace detail

// `labelled`: each must have a label.
inline std::vector<LabelledText> read(const Path& path, const Columns& columns, bool labelled) {
  std::vector<LabelledText> all;
  if (detail::is_json_lines(path)) {
    all = detail::read_json_lines(bert4rec::read_file(path), bert4rec::path_text(path), columns,
                                  labelled);
  } else {
    tables::Table table(path, columns.delimiter);
    const std::vector<tables::Role> roles{
        {"texts", "--text-column", columns.text, detail::text_names, true},
        {"labels", "--label-column", columns.label, detail::label_names, labelled}};
    const std::vector<std::size_t> found = table.find_columns(roles, columns.no_header);
    table.for_each_row([&](const std::vector<std::string_view>& fields) {
      LabelledText one{std::string(fields[found[0]]), ""};
      if (labelled) {
        one.label = fields[found[1]];
        require(!one.label.empty(), "a text without a label");
      }
      all.push_back(std::move(one));
    });
  }
  require(!all.empty(), tables::source_name(path), ": no texts");
  return all;
}

// The labels that occur, sorted.
inline std::vector<std::string> labels_of(const std::vector<LabelledText>& all) {
  std::vector<std::string> labels;
  for (const LabelledText& one : all) labels.push_back(one.label);
  std::sort(labels.begin(), labels.end());
  labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
  return labels;
}

inline std::size_t label_number(const std::vector<std::string>& labels, const std::string& label) {
  const auto found = std::lower_bound(labels.begin(), labels.end(), label);
  require(found != labels.end() && *found == label, "label \"", shown(label),
          "\" does not occur in the training texts");
  return static_cast<std::size_t>(found - labels.begin());
}

// Throws if one is none of the training texts'. `name`: of the file.
inline void check_labels(const std::vector<std::string>& labels,
                         const std::vector<LabelledText>& all, const std::string& name) {
  bert4rec::in_context(name, [&] {
    for (const LabelledText& one : all) label_number(labels, one.label);
  });
}

// ---- What makes figures doubtful ----------------------------------------------------------------

struct Overlap {
  std::size_t repeated = 0;           // texts of the other file that stand in the training file
  std::size_t contradicted = 0;       // of these, with another label there
  std::vector<std::string> examples;  // the first of them, those with another label before others
};

using FirstLabels = std::unordered_map<std::string_view, std::string_view>;

// Of each training text the label it has first.
inline FirstLabels first_labels(const std::vector<LabelledText>& train) {
  FirstLabels labels;
  for (const LabelledText& one : train) labels.emplace(one.text, one.label);
  return labels;
}

inline Overlap overlap(const FirstLabels& train, const std::vector<LabelledText>& other) {
  constexpr std::size_t most_examples = 3, longest = 60;
  Overlap found;
  std::vector<std::string> agree;
  for (const LabelledText& one : other) {
    const auto same = train.find(one.text);
    if (same == train.end()) continue;
    const bool contradicts = same->second != one.label;
    ++found.repeated, found.contradicted += contradicts;
    std::vector<std::string>& examples = contradicts ? found.examples : agree;
    if (examples.size() == most_examples) continue;
    examples.push_back(bert4rec::join("\"", shown(one.text, longest), "\" is ", shown(one.label),
                                      contradicts ? " and " : "",
                                      contradicts ? shown(same->second) : std::string()));
  }
  for (std::string& text : agree) {
    if (found.examples.size() < most_examples) found.examples.push_back(std::move(text));
  }
  return found;
}

// Those of the other file that do not stand in the training file.
inline std::vector<LabelledText> unseen(const FirstLabels& train,
                                        const std::vector<LabelledText>& other) {
  std::vector<LabelledText> found;
  std::copy_if(other.begin(), other.end(), std::back_inserter(found),
               [&](const LabelledText& one) { return !train.contains(one.text); });
  return found;
}

// ---- How well a classifier does -----------------------------------------------------------------

// `classifier` has labels() and probabilities(texts).
template <class Classifier>
bert4rec::Confusion evaluate(Classifier& classifier, const std::vector<LabelledText>& all) {
  constexpr std::size_t at_once = 256;
  bert4rec::Confusion confusion(classifier.labels().size());
  for (std::size_t begin = 0; begin < all.size(); begin += at_once) {
    std::vector<std::string_view> some;
    for (std::size_t i = begin; i < std::min(begin + at_once, all.size()); ++i) {
      some.push_back(all[i].text);
    }
    const auto probabilities = classifier.probabilities(some);
    for (std::size_t i = 0; i < some.size(); ++i) {
      confusion.add(label_number(classifier.labels(), all[begin + i].label),
                    bert4rec::best_label(probabilities[i]));
    }
  }
  return confusion;
}

inline Json to_json(const bert4rec::Confusion& confusion, const std::vector<std::string>& labels) {
  const auto [precision, recall, f1] = confusion.macro();
  Json json, macro, each;
  json.set("accuracy", confusion.accuracy());
  macro.set("precision", precision);
  macro.set("recall", recall);
  macro.set("f1", f1);
  json.set("macro", std::move(macro));
  Json::Array rows;
  for (std::size_t c = 0; c < labels.size(); ++c) {
    Json one;
    one.set("precision", confusion.precision(c));
    one.set("recall", confusion.recall(c));
    one.set("f1", confusion.f1(c));
    one.set("texts", confusion.actual(c));
    each.set(labels[c], std::move(one));
    Json::Array row;
    for (std::size_t j = 0; j < labels.size(); ++j) row.emplace_back(confusion.count(c, j));
    rows.emplace_back(std::move(row));
  }
  json.set("labels", std::move(each));
  json.set("confusion", std::move(rows));
  return json;
}

// A line for all of it, then one for each label.
inline void print(std::ostream& out, std::string_view what, const bert4rec::Confusion& confusion,
                  const std::vector<std::string>& labels) {
  const auto line = [&](std::string_view name, double precision, double recall, double f1,
                        std::string_view rest) {
    out << "  " << cli::percent(precision) << "  " << cli::percent(recall) << "  "
        << cli::percent(f1) << "  " << name << rest << "\n";
  };
  out << what << ": accuracy " << cli::percent(confusion.accuracy())
      << "\n  precision, recall, F1:\n";
  for (std::size_t c = 0; c < labels.size(); ++c) {
    line(bert4rec::join("#", c + 1, " ", labels[c]), confusion.precision(c), confusion.recall(c),
         confusion.f1(c), bert4rec::join(" (", cli::grouped(confusion.actual(c)), " texts)"));
  }
  const auto [precision, recall, f1] = confusion.macro();
  line("mean of the labels", precision, recall, f1, "");
}

}  // namespace texts

#endif  // BERT4REC_TOOLS_TEXTS_HPP
