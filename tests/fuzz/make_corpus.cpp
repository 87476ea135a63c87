// make_corpus FOLDER: writes inputs for the fuzz targets as our writers make them today, in one
// folder a target. What stands in tests/fuzz/corpus was written by hand, or was once a finding.

#include "../small_data.hpp"
#include "fuzz.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t*, std::size_t size, std::size_t) {
  return size;
}

namespace {

using namespace fuzz;

void put(const Path& folder, std::string_view name, std::string_view bytes) {
  make_folder(folder);
  write(folder / path_from(name), bytes);
}

// Of one run that trains a tiny model.
void put_run(const Path& corpus, const Dataset& data, Architecture architecture) {
  ModelConfig model = small_model();
  model.hidden_size = 4, model.num_layers = 1, model.max_length = 4;
  model.architecture = architecture;
  const std::string name(enum_name(architecture));
  const Path run = folder() / name;
  Trainer(data, model, small_train(), run).run();
  const Path models = run / "models", checkpoints = run / "checkpoints";
  const std::string best = read_file(models / "best_model.safetensors");
  put(corpus / "safetensors", name, best);
  put(corpus / "model", name, one_input(read_file(models / "item_mappings.json"), best));
  const Safetensors checkpoint(checkpoints / "checkpoint_epoch_2.safetensors");
  std::string lines;
  for (const auto& [field, text] : checkpoint.metadata()) lines += join(field, " ", text, "\n");
  put(corpus / "checkpoint", name, lines);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const Path corpus = argv[1];
  const Dataset data = ring_data(5, 12);
  for (const Architecture architecture : {Architecture::torch, Architecture::paper}) {
    put_run(corpus, data, architecture);
  }
  return 0;
}
