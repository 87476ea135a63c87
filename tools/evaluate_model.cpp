// Evaluates a trained model on what its training held out, with popularity beside it.

#include "cli.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path model = "output/models", data = "data/demo";
  std::string name = "best_model";
  std::size_t threads = 0;
  bool json = false;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line("evaluate_model",
                        "masked Top-K, and the last item of each held-out history ranked among "
                        "all unseen items",
                        "evaluate_model --model output/models --data data/demo");
  line.option("model", options.model, "models folder that train_model wrote");
  line.option("name", options.name, "which model in it: best_model or final_model");
  line.option("data", options.data, "the folder it was trained on");
  line.option("threads", options.threads, "threads; 0: one a core");
  line.flag("json", options.json, "print JSON");
  line.parse(argc, argv);
  return options;
}

Json json_of(const RankMetrics& metrics) {
  Json json;
  json.set("users", metrics.users);
  for (std::size_t i = 0; i < top_k.size(); ++i) json.set(join("hr@", top_k[i]), metrics.hit[i]);
  for (std::size_t i = 0; i < top_k.size(); ++i) json.set(join("ndcg@", top_k[i]), metrics.ndcg[i]);
  json.set("mrr", metrics.mrr);
  return json;
}

Json json_of(const MaskedMetrics& metrics) {
  Json json;
  json.set("masked", metrics.count);
  json.set("loss", metrics.loss());
  for (std::size_t i = 0; i < top_k.size(); ++i) {
    json.set(join("top", top_k[i]), metrics.accuracy(i));
  }
  return json;
}

void print_row(const std::string& name, const RankMetrics& m) {
  std::printf("  %-12s %7.4f %7.4f %7.4f %7.4f   %7.4f %7.4f %7.4f   %7.4f\n", name.c_str(),
              m.hit[0], m.hit[1], m.hit[2], m.hit[3], m.ndcg[1], m.ndcg[2], m.ndcg[3], m.mrr);
}

int evaluate(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Path path = options.model / join(options.name, ".safetensors");
  const Safetensors file(path);
  const TrainConfig train = stored_config<TrainConfig>(file, "train_config");
  const Dataset data = Dataset::load(options.data);
  require(file.metadata("data") == data.fingerprint(), path, ": trained on other data than ",
          options.data);
  const std::unique_ptr<Engine> engine = load_model(file, options.threads);
  const DataSplit split(data.histories, train);
  const MaskedMetrics masked = evaluate_masked(*engine, split, train);
  const auto cases = next_item_cases(split, HeldOut::test);
  require(!cases.empty(), options.data, ": no held-out user has two items");
  const RankMetrics model = rank_metrics(model_ranks(*engine, cases));
  const RankMetrics popularity =
      rank_metrics(popularity_ranks(split, data.catalogue.size(), cases, HeldOut::test));
  if (options.json) {
    Json json;
    json.set("model", path.string());
    json.set("split", enum_name(train.split));
    json.set("validation", json_of(masked));
    json.set("next_item", json_of(model));
    json.set("next_item_popularity", json_of(popularity));
    std::cout << json.text(2) << "\n";
    return 0;
  }
  std::printf("%s (split by %s)\n", path.c_str(),
              train.split == Split::users ? "users" : "last item");
  std::printf("validation, %s masked tokens: loss %.4f, top-1/5/10/20 %.2f/%.2f/%.2f/%.2f%%\n",
              cli::grouped(masked.count).c_str(), masked.loss(), 100 * masked.accuracy(0),
              100 * masked.accuracy(1), 100 * masked.accuracy(2), 100 * masked.accuracy(3));
  std::printf("last item of %s users, ranked among all items they had not seen:\n",
              cli::grouped(model.users).c_str());
  std::printf("  %-12s %7s %7s %7s %7s   %7s %7s %7s   %7s\n", "", "HR@1", "HR@5", "HR@10", "HR@20",
              "NDCG@5", "NDCG@10", "NDCG@20", "MRR");
  print_row("BERT4Rec", model);
  print_row("popularity", popularity);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return cli::run("evaluate_model", [&] { return evaluate(argc, argv); });
}
