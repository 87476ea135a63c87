// What a run keeps on the disk: which files belong together, what is refused, what of an older
// version still serves.

#include "bert4rec.hpp"
#include "check.hpp"
#include "small_data.hpp"

#include <fstream>

using namespace bert4rec;

namespace {

ModelConfig tiny_model() {
  ModelConfig model = small_model();
  model.hidden_size = 8, model.num_layers = 1;
  return model;
}

TrainConfig tiny_train(std::size_t epochs = 2) {
  TrainConfig train = small_train();
  train.epochs = epochs, train.save_every = 1;
  return train;
}

void train_in(const Path& folder, const Dataset& data, std::size_t epochs = 2) {
  Trainer(data, tiny_model(), tiny_train(epochs), folder).run();
}

Path checkpoint(const Path& folder, std::string_view name) {
  return folder / "checkpoints" / join("checkpoint_", name, ".safetensors");
}

void replace_in(const Path& path, std::string_view old, std::string_view by) {
  std::string text = read_file(path);
  const std::size_t at = text.find(old);
  require(at != text.npos, path, " lacks ", old);
  write_file(path, text.replace(at, old.size(), by));
}

// Without the checksum, which a careful liar would make anew.
void unseal(const Path& path) { write_file(path, read_sealed_json(path).text(2)); }

// ---- Resuming -----------------------------------------------------------------------------------

void test_furthest() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  train_in(folder.path(), data, 3);
  const auto resumed = [&] {
    return Trainer(data, tiny_model(), tiny_train(3), folder.path()).resume();
  };
  check(resumed() == checkpoint(folder.path(), "epoch_3"), "the last epoch");
  const auto now = std::filesystem::file_time_type::clock::now();
  std::filesystem::last_write_time(checkpoint(folder.path(), "epoch_1"), now);
  check(resumed() == checkpoint(folder.path(), "epoch_3"), "whenever it was written");
  std::filesystem::rename(checkpoint(folder.path(), "epoch_3"), checkpoint(folder.path(), "a"));
  check(resumed() == checkpoint(folder.path(), "a"), "whatever it is called");
  write_file(checkpoint(folder.path(), "torn"),
             read_file(checkpoint(folder.path(), "a")).substr(9));
  check_throws(resumed, {"checkpoint_torn"});
}

// Stopped inside an epoch, it is further than the end of the epoch before.
void test_furthest_inside_an_epoch() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  std::size_t steps = 0;
  TrainerCallbacks callbacks;
  callbacks.on_batch = [&](const BatchReport&) { ++steps; };
  callbacks.should_stop = [&] { return steps >= 5; };
  {
    Trainer trainer(data, tiny_model(), tiny_train(3), folder.path());
    check(!trainer.run(callbacks), "stopped");
    check_equal(trainer.batches_per_epoch(), 4u);
  }
  const auto now = std::filesystem::file_time_type::clock::now();
  std::filesystem::last_write_time(checkpoint(folder.path(), "epoch_1"), now);
  Trainer trainer(data, tiny_model(), tiny_train(3), folder.path());
  check(trainer.resume() == checkpoint(folder.path(), "interrupted"), "the second epoch");
}

void test_fewer_epochs() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  train_in(folder.path(), data, 3);
  check_throws([&] { Trainer(data, tiny_model(), tiny_train(2), folder.path()).resume(); },
               {"checkpoint_epoch_3", "has seen 3 epochs, more than epochs 2"});
  check(Trainer(data, tiny_model(), tiny_train(3), folder.path()).resume() != Path(), "as many");
}

void test_what_may_change() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  train_in(folder.path(), data);
  TrainConfig train = tiny_train(5);
  train.patience = 4, train.save_every = 3, train.threads = 2, train.kernels = KernelSet::plain;
  Trainer(data, tiny_model(), train, folder.path()).resume();
  train.learning_rate = 0.5;
  check_throws([&] { Trainer(data, tiny_model(), train, folder.path()).resume(); },
               {"learning_rate 0.001, now 0.5"});
  train = tiny_train(5);
  train.schedule = Schedule::linear;
  check_throws([&] { Trainer(data, tiny_model(), train, folder.path()).resume(); },
               {"made with epochs 2, now 5"});
}

// ---- One run in a folder ------------------------------------------------------------------------

void test_no_replacement_unasked() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  train_in(folder.path(), data);
  const std::string before = read_file(folder / "models/final_model.safetensors");
  TrainConfig other = tiny_train(1);
  other.seed = 7;
  {
    Trainer trainer(data, tiny_model(), other, folder.path());
    check_throws([&] { trainer.run(); }, {path_text(folder.path()), "holds a run", "overwrite()"});
  }
  check(read_file(folder / "models/final_model.safetensors") == before, "nothing was touched");
  check(read_sealed_json(folder / "models/training_config.json").at("train").at("seed").integer() ==
            42,
        "not the configuration either");
  std::size_t steps = 0;
  TrainerCallbacks callbacks;
  callbacks.on_batch = [&](const BatchReport&) { ++steps; };
  callbacks.should_stop = [&] { return steps >= 1; };
  write_file(folder / "plots/loss_curve.png", "old");
  write_file(folder / "plots/confusion_matrix.png", "old");
  write_file(folder / "plots/mine.png", "kept");
  write_file(folder / "models/labels.json", "of a classifier");
  Trainer trainer(data, tiny_model(), other, folder.path());
  check(!trainer.overwrite().run(callbacks), "stopped at its first step");
  for (const char* name :
       {"models/final_model.safetensors", "models/best_model.safetensors",
        "checkpoints/checkpoint_epoch_1.safetensors", "checkpoints/checkpoint_epoch_2.safetensors",
        "plots/training_metrics.json", "plots/metrics.csv", "plots/loss_curve.png",
        "plots/confusion_matrix.png", "models/labels.json"}) {
    check(!path_exists(folder / name), join(name, " of the old run is gone"));
  }
  check(path_exists(folder / "plots/mine.png"), "what is not of a run stays");
  check(path_exists(folder / "models/item_mappings.json"), "what the new run wrote, too");
  check(trainer.run(), "the same Trainer goes on");
}

// Other programs write sets into folders of a run: what they had begun is done, and who is at it is
// not disturbed.
void test_sets_of_others() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  const Path models = folder / "models";
  make_folder(models);
  write_file(models / ".vectors.npy.tmp.1.0", "new");
  {
    const FolderLock lock(models);
    check_throws([&] { Trainer(data, tiny_model(), tiny_train(1), folder.path()); },
                 {path_text(models), "another process"});
  }
  check(path_exists(models / ".vectors.npy.tmp.1.0"), "not removed while somebody writes");
  write_file(models / ".replacing",
             sealed(R"({"replace": [[".vectors.npy.tmp.1.0", "vectors.npy"]], "remove": []})"));
  Trainer(data, tiny_model(), tiny_train(1), folder.path());
  check_equal(read_file(models / "vectors.npy"), "new");
  check(!path_exists(models / ".replacing"), "settled");
}

// ---- Models -------------------------------------------------------------------------------------

void test_mappings() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  train_in(folder.path(), data);
  const Path models = folder / "models", path = models / "item_mappings.json";
  const std::string good = read_file(path);
  Recommender recommender(models);
  check_equal(recommender.catalogue().title(3), "Title 3");
  const auto refused = [&](std::string_view old, std::string_view by, std::string_view part) {
    write_file(path, good);
    if (part != "checksum") unseal(path);
    replace_in(path, old, by);
    check_throws([&] { const Recommender bad(models); }, {"item_mappings.json", part});
  };
  refused("Title 3", "Title 4", "checksum");
  refused("\"index\": 3,", "\"index\": 4,", "index is 4, expected 3");
  refused("\"token\": 6,", "\"token\": 7,", "token is 7, expected 6");
  refused("\"index\": 3,", "\"indes\": 3,", "item 3 lacks its \"index\"");
  refused("\"items\"", "\"data\": \"\", \"items\"", "stands twice");
  refused("\"items\"", "\"items\": [], \"items\"", "stands twice");
  refused("\"items\"", "\"itens\"", "unknown field \"itens\"");
  write_file(path, good);
  unseal(path);
  check_equal(Recommender(models).catalogue().title(3), "Title 3");  // as version 0.1 wrote it
  write_file(path, good);
  write_file(models / "m.safetensors", read_file(models / "final_model.safetensors"));
  check_equal(Recommender(models, "m").catalogue().size(), 15u);
}

// Every flipped bit of the mappings is found, or changes nothing.
void test_flipped_mappings() {
  const Dataset data = ring_data(4, 12);
  const TemporaryFolder folder;
  train_in(folder.path(), data, 1);
  const Path models = folder / "models", path = models / "item_mappings.json";
  const std::string good = read_file(path);
  const auto words = [&] {
    const Recommender recommender(models);
    std::string all;
    for (const Item& item : recommender.catalogue()) all += to_json(item).text();
    return all;
  };
  const std::string expected = words();
  std::size_t found = 0;
  for (std::size_t bit = 0; bit < 8 * good.size(); bit += 5) {
    std::string damaged = good;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    std::filesystem::remove(path);
    std::ofstream(path, std::ios::binary) << damaged;
    try {
      check_equal(words(), expected);
    } catch (const Error&) {
      ++found;
    }
  }
  check(found > good.size(), join(found, " of ", 8 * good.size() / 5, " found"));
}

// A file like a model, with that configuration and that tensor besides.
void write_model(const Path& path, const ModelConfig& config,
                 const std::vector<NamedTensor>& more) {
  CpuEngine<float> engine(config, tiny_train());
  std::vector<float> values(engine.table().size());
  engine.read(State::parameters, values);
  std::vector<NamedTensor> tensors = more;
  for (const TensorSpec& spec : engine.table()) {
    tensors.push_back({spec.name, spec.shape, values.data() + spec.offset});
  }
  write_safetensors(path, tensors, {{"model_config", to_json(config).text()}});
}

// The sizes that a file speaks of are compared with those it has before anything is made of them.
void test_sizes_of_models() {
  const TemporaryFolder folder;
  const Path path = folder / "model.safetensors";
  ModelConfig config = tiny_model();
  config.num_items = 5;
  write_model(path, config, {});
  check_equal(load_model(Safetensors(path))->table().size(), bert4rec_tensors(config).size());
  const auto loading = [&] { load_model(Safetensors(path)); };
  const float number = 1;
  write_model(path, config, {{"extra\x1b", {1}, &number}});
  check_throws(loading, {path_text(path), "\"extra\\x1b\" is not one of this model"});
  const NamedTensor tensor{"item_embedding.weight", {1}, &number};
  config.num_items = 100'000'000, config.hidden_size = 65536, config.max_length = 65536;
  write_safetensors(path, {&tensor, 1}, {{"model_config", to_json(config).text()}});
  check_throws(loading, {path_text(path), "\"item_embedding.weight\" has shape [1]"});
  write_safetensors(path, {&tensor, 1}, {});
  check_throws(loading, {path_text(path), "missing metadata \"model_config\""});
}

// ---- Data ---------------------------------------------------------------------------------------

constexpr std::string_view two_items = "{\"id\": 1}\n{\"id\": 2}\n", one_item = "{\"id\": 1}\n",
                           one_user = "{\"user\": \"u\", \"entries\": [{\"id\": 1}]}\n";

void write_data(const Path& folder) {
  DatasetWriter writer(folder);
  writer.items(one_item);
  writer.items("{\"id\": 2}\n");
  writer.histories(one_user);
  Json source;
  source.set("tool", "test");
  writer.source(source);
  writer.commit();
}

void test_data_folder() {
  const TemporaryFolder folder;
  const Path data = folder / "new/data";
  write_data(data);
  check_equal(Dataset::load(data).catalogue.size(), 2u);
  check(Dataset::load(data).folder == data, "it knows where it was");
  check_equal(dataset_source(data)->text(), "{\"tool\": \"test\"}");
  write_file(data / "items.jsonl", "{\"id\": 1}\r\n\r\n{\"id\": 2}\r\n");  // git on Windows
  check_equal(Dataset::load(data).catalogue.size(), 2u);
  write_file(data / "items.jsonl", one_item);
  check_throws([&] { Dataset::load(data); }, {"items.jsonl", "not what dataset.json says"});
  std::filesystem::remove(data / "dataset.json");
  check_equal(Dataset::load(data).catalogue.size(), 1u);  // made by hand
  check(!dataset_source(data), "no source");
}

// Histories belong to items.
void test_parts_of_a_data_folder() {
  const TemporaryFolder folder;
  write_data(folder.path());
  {
    DatasetWriter writer(folder.path());
    check_throws([&] { const DatasetWriter second(folder.path()); }, {"another process"});
    writer.histories(one_user);
    writer.histories("{\"user\": \"v\", \"entries\": [{\"id\": 2}]}\n");
    writer.commit();
  }
  check_equal(Dataset::load(folder.path()).histories.size(), 2u);
  check(dataset_source(folder.path()).has_value(), "the source stays");
  for (const bool is_new : {false, true}) {  // another source alone
    if (is_new) std::filesystem::remove(folder / "dataset.json");
    Json source;
    source.set("tool", "another");
    DatasetWriter writer(folder.path());
    writer.source(source);
    writer.commit();
    check_equal(Dataset::load(folder.path()).histories.size(), 2u);
    check_equal(dataset_source(folder.path())->text(), "{\"tool\": \"another\"}");
  }
  {
    DatasetWriter writer(folder.path());
    writer.items(two_items);
  }
  check_equal(Dataset::load(folder.path()).histories.size(), 2u);  // no commit, no change
  {
    DatasetWriter writer(folder.path());
    writer.items(two_items);
    writer.commit();
  }
  check_throws([&] { Dataset::load(folder.path()); }, {"histories.jsonl", "does not belong"});
  {
    DatasetWriter writer(folder.path());
    writer.source(Json());
    writer.commit();
  }
  check_throws([&] { Dataset::load(folder.path()); }, {"histories.jsonl", "does not belong"});
  DatasetWriter writer(folder.path());
  write_file(folder / "items.jsonl", one_item);
  writer.histories(one_user);
  check_throws([&] { writer.commit(); }, {"items.jsonl", "not what dataset.json says"});
}

void test_bad_manifests() {
  const TemporaryFolder folder;
  write_data(folder.path());
  const Path path = folder / "dataset.json";
  const std::string good = read_file(path);
  const auto refused = [&](std::string_view old, std::string_view by, std::string_view part) {
    write_file(path, good);
    if (part != "checksum") unseal(path);
    replace_in(path, old, by);
    check_throws([&] { Dataset::load(folder.path()); }, {"dataset.json", part});
  };
  refused("\"format\": 1", "\"format\": 3", "checksum");
  refused("\"format\": 1", "\"format\": 2", "format 2 of a later version");
  refused("\"format\"", "\"fornat\"", "unknown field \"fornat\"");
  refused("\"histories.jsonl\"", "\"items.jsonl\"", "stands twice");
}

// ---- What version 0.1 wrote ---------------------------------------------------------------------

void test_version_0_1() {
  const Path source = Path(BERT4REC_SOURCE_FOLDER) / "tests/reference/version_0.1";
  const TemporaryFolder folder;
  std::filesystem::copy(source, folder.path(), std::filesystem::copy_options::recursive);
  const Dataset data = ring_data(15, 30);
  check_equal(Recommender(folder / "models", "final_model").recommend({}, 3).size(), 3u);
  {
    TrainConfig train = tiny_train(4);
    train.save_every = 2;
    Trainer trainer(data, tiny_model(), train, folder.path());
    check(trainer.resume() == checkpoint(folder.path(), "epoch_2"), "resumed");
    check_equal(trainer.metrics().evaluations(), 2u);
    check(trainer.run(), "and goes on");
  }
  const Safetensors file(checkpoint(folder.path(), "epoch_4"));
  check_equal(file.metadata("checkpoint_format"), "1");
}

// Items in another order, and three that are new.
void test_grown_data() {
  const TemporaryFolder folder;
  const Dataset data = ring_data(15, 30), more = ring_data(18, 30);
  train_in(folder.path(), data, 1);
  const Safetensors file = open_model(folder / "models");
  Catalogue known;  // in another order than in the grown data
  for (std::int32_t item = 15; item-- > 0;) known.add(data.catalogue[item]);
  ModelConfig model = tiny_model();
  model.num_items = more.catalogue.size();
  ModelConfig deeper = model;
  deeper.num_layers = 2;
  const auto other = make_cpu_engine(deeper, tiny_train(1), Start::random);
  check_throws([&] { begin_with_items(file, known, *other, more.catalogue, NewItems::mean); },
               {"a model of", "tensors, expected", "of the same kind"});
  for (const NewItems choice : {NewItems::random, NewItems::mean}) {
    const auto engine = make_cpu_engine(model, tiny_train(1), Start::random);
    const auto fresh = make_cpu_engine(model, tiny_train(1), Start::random);
    check_throws([&] { begin_with_items(file, known, *engine, known, choice); }, {"expected"});
    check_equal(begin_with_items(file, known, *engine, more.catalogue, choice), 15u);
    std::vector<float> now(engine->table().size()), initial(now.size());
    engine->read(State::parameters, now);
    fresh->read(State::parameters, initial);
    const TensorSpec& spec = engine->table().at("item_embedding.weight");
    const std::size_t H = spec.shape[1];
    std::vector<float> old(18 * H);  // as many rows as there are tokens of 15 items
    file.copy("item_embedding.weight", std::vector<std::size_t>{18, H}, old.data());
    for (std::size_t row = 0; row < 21; ++row) {
      const std::size_t item = row - 3, from = row < 3 ? row : 3 + 14 - item;
      for (std::size_t d = 0; d < H; ++d) {
        double expected = row < 18 ? old[from * H + d] : initial[spec.offset + row * H + d];
        if (row >= 18 && choice == NewItems::mean) {
          expected = 0;
          for (std::size_t i = 3; i < 18; ++i) expected += double(old[i * H + d]) / 15;
        }
        const float found = now[spec.offset + row * H + d];
        check(std::abs(found - expected) < 1e-7, join("row ", row, ": ", found, ", ", expected));
      }
    }
    const TensorSpec& position = engine->table().at("position_embedding.weight");
    std::vector<float> positions(position.size);
    file.copy(position.name, position.shape, positions.data());
    check(std::equal(positions.begin(), positions.end(), now.data() + position.offset),
          "what has no row an item is copied");
  }
}

void test_later_versions() {
  const Dataset data = ring_data(15, 30);
  const TemporaryFolder folder;
  train_in(folder.path(), data, 1);
  const Path path = checkpoint(folder.path(), "epoch_1");
  const auto resume = [&] { Trainer(data, tiny_model(), tiny_train(1), folder.path()).resume(); };
  const std::string good = read_file(path);
  replace_in(path, "\"checkpoint_format\": \"1\"", "\"checkpoint_format\": \"2\"");
  check_throws(resume, {"checkpoint_epoch_1", "checkpoint_format is 2", "at most 1"});
  write_file(path, good);
  replace_in(path, "\\\"best_epoch\\\"", "\\\"bets_epoch\\\"");
  check_throws(resume, {"checkpoint_epoch_1"});
}

}  // namespace

int main() {
  test("the checkpoint that is furthest", test_furthest);
  test("further inside an epoch", test_furthest_inside_an_epoch);
  test("fewer epochs than are done", test_fewer_epochs);
  test("what a resumed run may change", test_what_may_change);
  test("no run is replaced unasked", test_no_replacement_unasked);
  test("sets of other programs", test_sets_of_others);
  test("item mappings", test_mappings);
  test("item mappings: flipped bits", test_flipped_mappings);
  test("sizes of models", test_sizes_of_models);
  test("a data folder", test_data_folder);
  test("parts of a data folder", test_parts_of_a_data_folder);
  test("bad manifests", test_bad_manifests);
  test("a run of version 0.1", test_version_0_1);
  test("runs of later versions", test_later_versions);
  test("a model on data that have grown", test_grown_data);
  return finish();
}
