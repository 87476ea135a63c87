// A safetensors file. What is accepted accounts for every byte, and every tensor whose numbers are
// finite reads back equal after it was written by us.

#include "fuzz.hpp"

namespace {

using namespace fuzz;

struct Held {
  std::string name;
  std::vector<std::size_t> shape;
  std::vector<float> numbers;
};

// The tensors that can be read, with their shapes, which only the header tells.
std::vector<Held> tensors_of(const Safetensors& file, const Json& header, std::size_t bytes) {
  std::vector<Held> tensors;
  std::size_t sum = 0;
  for (const auto& [name, entry] : header.object()) {
    if (name == "__metadata__") continue;
    must(file.contains(name), "every tensor is there");
    Held tensor{name, {}, {}};
    for (const Json& extent : entry.at("shape").array()) {
      tensor.shape.push_back(static_cast<std::size_t>(extent.integer()));
    }
    const Json::Array& offsets = entry.at("data_offsets").array();
    const auto held = static_cast<std::size_t>(offsets[1].integer() - offsets[0].integer());
    must((sum += held) <= bytes, "tensors do not overlap");
    if (!problem_of([&] { file.check(tensor.name, tensor.shape); }).empty()) continue;
    tensor.numbers.resize(checked_product(tensor.shape, name));
    must(tensor.numbers.size() * 2 <= held, "a tensor is as large as its shape says");
    const auto copy = [&] { file.copy(tensor.name, tensor.shape, tensor.numbers.data()); };
    if (problem_of(copy).empty()) tensors.push_back(std::move(tensor));
  }
  must(sum == bytes, "no byte is left over");
  must(file.names().size() + (header.find("__metadata__") != nullptr) == header.object().size(),
       "and no tensor");
  return tensors;
}

void check_read_back(const std::vector<Held>& tensors, Metadata metadata) {
  std::vector<NamedTensor> named;
  for (const Held& held : tensors) named.push_back({held.name, held.shape, held.numbers.data()});
  metadata.erase("checksum");
  const Path path = folder() / "written.safetensors";
  write_safetensors(path, named, metadata);
  const Safetensors file(path);
  Metadata found = file.metadata();
  must(found.erase("checksum") == 1 && found == metadata, "the same metadata");
  for (const Held& held : tensors) {
    std::vector<float> numbers(held.numbers.size());
    file.copy(held.name, held.shape, numbers.data());
    const std::size_t bytes = numbers.size() * sizeof(float);
    must(bytes == 0 || std::memcmp(numbers.data(), held.numbers.data(), bytes) == 0,
         "the same numbers");
  }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  return give(mutated_safetensors(view(data, size), most, seed), data, size, most);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Path path = folder() / "input.safetensors";
  write(path, view(data, size));
  std::optional<Safetensors> file;
  if (!problem_of([&] { file.emplace(path); }).empty()) return 0;
  const auto [header, numbers] = safetensors_parts(view(data, size));
  const std::vector<Held> tensors = tensors_of(*file, Json::parse(header), numbers.size());
  if (!problem_of([&] { file->verify(); }).empty()) {
    must(tensors.empty(), "nothing is read from a damaged file");
    return 0;
  }
  check_read_back(tensors, file->metadata());
  return 0;
}
