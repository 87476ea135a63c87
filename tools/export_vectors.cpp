// Writes the vectors of a trained model's items and of users, for indexes that search by inner
// product.

#include "common/gpu.hpp"
#include "common/vectors.hpp"

namespace {

using namespace bert4rec;

struct Options {
  Path model = "output/models", data, output = "output/vectors";
  std::string name = "best_model";
  vectors::Format format = vectors::Format::npy;
  std::size_t threads = 0;
  gpu::Choice gpu;
};

Options parse(int argc, char** argv) {
  Options options;
  cli::CommandLine line(
      "export_vectors",
      "the vectors of a trained model's items and of users, whose inner\n"
      "products are its scores, for search indexes (recipe: tools/README.md)\n\n"
      "Writes item_vectors and item_ids.json and, with --data, user_vectors and user_names.json",
      "export_vectors --model output/models --data data/demo --output output/vectors");
  line.option("model", options.model, "models folder that train_model wrote");
  line.option("name", options.name, "which model in it: best_model or final_model");
  line.option("data", options.data, "folder with histories.jsonl, whose users get vectors too");
  line.option("output", options.output, "folder for the files");
  line.option("format", options.format, "kind of the files of numbers");
  line.option("threads", options.threads, "threads; 0: one a core");
  options.gpu.add_flags(line);
  line.parse(argc, argv);
  return options;
}

int export_vectors(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Recommender recommender(options.model, options.name, options.threads, options.gpu.maker());
  Engine& engine = recommender.engine();
  const Catalogue& catalogue = recommender.catalogue();
  require(engine.vector_size() > 0, options.model, ": a model without vectors of items and users");
  std::optional<Histories> histories;
  if (!options.data.empty()) {
    histories = Histories::load(options.data / "histories.jsonl", catalogue);
  }
  make_folder(options.output);
  const FolderLock lock(options.output);
  settle(lock);
  remove_stale_temporaries(options.output);
  FileSet set(lock);
  vectors::write_items(set, options.format, engine, catalogue);
  if (histories) {
    cli::ProgressBar bar;
    vectors::write_users(set, options.format, engine, *histories, [&](std::size_t done) {
      bar.show_rate(done, histories->size(), "export", "users");
    });
  }
  vectors::remove_others(set, options.format, histories.has_value());
  set.commit();
  std::cout << path_text(options.output) << ": " << cli::grouped(catalogue.size()) << " items";
  if (histories) std::cout << " and " << cli::grouped(histories->size()) << " users";
  std::cout << ", vectors of " << engine.vector_size() << " numbers\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return cli::run("export_vectors", argc, argv, export_vectors); }
