// The metadata of a checkpoint, as lines of `name value` that replace those of a good one. A run
// that resumes from it does one more step and leaves a checkpoint that can be resumed from.

#include "../small_data.hpp"
#include "fuzz.hpp"

namespace {

using namespace fuzz;

const Dataset& data() {
  static const Dataset data = ring_data(5, 12);
  return data;
}

ModelConfig tiny_model() {
  ModelConfig model = small_model();
  model.hidden_size = 4, model.num_layers = 1, model.max_length = 4;
  return model;
}

// A checkpoint in the middle of the third epoch.
struct Good {
  Path path;
  Metadata metadata;
  std::vector<std::vector<float>> numbers;
  std::vector<NamedTensor> tensors;

  Good() {
    const Path run = folder() / "good";
    std::size_t steps = 0;
    TrainerCallbacks callbacks;
    callbacks.on_batch = [&](const BatchReport&) { ++steps; };
    Trainer trainer(data(), tiny_model(), small_train(), run);
    callbacks.should_stop = [&] { return steps == 2 * trainer.batches_per_epoch() + 1; };
    must(!trainer.run(callbacks), "the good run stops");
    path = run / "checkpoints" / "checkpoint_interrupted.safetensors";
    const Safetensors file(path);
    metadata = file.metadata();
    for (const auto& [state, prefix] : state_prefixes) {
      for (const TensorSpec& spec : trainer.engine().table()) {
        const std::string name = join(prefix, spec.name);
        numbers.emplace_back(checked_product(spec.shape, name));
        file.copy(name, spec.shape, numbers.back().data());
        tensors.push_back({name, spec.shape, numbers.back().data()});
      }
    }
  }
};

const Good& good() {
  static const Good good;
  return good;
}

// What was accepted is a place where a run can be.
void check_progress(const Trainer& trainer, const Safetensors& file) {
  const Json progress = Json::parse(file.metadata("progress"));
  const auto batches = static_cast<std::size_t>(progress.at("batches_done").integer());
  must(batches <= trainer.batches_per_epoch(), "no epoch has more batches");
  for (const Json& hits : progress.at("hits").array()) {
    must(hits.integer() <= progress.at("count").integer(), "no more hits than tries");
  }
  must(progress.at("seconds").number() >= 0, "time passes");
  must(trainer.metrics().evaluations() <= small_train().epochs, "a run ends with its last epoch");
}

void put_checkpoint(const Path& folder, std::string_view lines) {
  Metadata metadata = good().metadata;
  for_each_line(lines, [&](std::string_view line, std::size_t) {
    const std::size_t space = std::min(line.find(' '), line.size());
    metadata[std::string(line.substr(0, space))] = line.substr(std::min(space + 1, line.size()));
  });
  remove_path(folder);
  make_folder(folder);
  write_safetensors(folder / good().path.filename(), good().tensors, metadata);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Path run = folder() / "run";
  // Used again as long as all is refused, since making one takes the most time.
  static std::optional<Trainer> resumed;
  if (!resumed) resumed.emplace(::data(), tiny_model(), small_train(), run);
  if (!problem_of([&] { put_checkpoint(run / "checkpoints", view(data, size)); }).empty()) return 0;
  if (!problem_of([&] { resumed->resume(); }).empty()) return 0;
  const TrainingMetrics before = resumed->metrics();
  check_progress(*resumed, Safetensors(run / "checkpoints" / good().path.filename()));
  TrainerCallbacks callbacks;
  callbacks.should_stop = [] { return true; };
  const bool went_on = problem_of([&] { resumed->run(callbacks); }).empty();
  const Json after = resumed->metrics().curves_json();
  resumed.reset();
  if (!went_on) return 0;
  Trainer again(::data(), tiny_model(), small_train(), run);
  must(problem_of([&] { again.resume(); }).empty(), "what went on can be resumed from");
  must(again.metrics().curves_json().text() == after.text(), "where it stopped");
  must(again.metrics().evaluations() >= before.evaluations(), "and never further back");
  return 0;
}
