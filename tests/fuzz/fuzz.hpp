// What the fuzz targets share. A target is given an input by libFuzzer, makes files of it where it
// has to, and lets our code read them:
//   - what is refused is refused with an Error whose message is one line (problem_of);
//   - what is accepted keeps the promises of its type (must).
// Another exception, a finding of a sanitizer, and memory or time beyond the limits that
// tests/run.sh gives end the program by themselves.

#ifndef BERT4REC_TESTS_FUZZ_HPP
#define BERT4REC_TESTS_FUZZ_HPP

#include <cstdio>
#include <fstream>

#include "../check.hpp"
#include "bert4rec.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed);
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace fuzz {

using namespace bert4rec;

inline void must(bool condition, std::string_view what) {
  if (condition) return;
  std::cerr << "does not hold: " << what << std::endl;
  std::abort();
}

// The message of the Error that body() throws, or "".
template <class Body>
std::string problem_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    const std::string message = error.what();
    must(!message.empty(), "an error says something");
    const auto control = [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; };
    must(std::none_of(message.begin(), message.end(), control), "an error is one line");
    return message;
  }
  return "";
}

inline std::string_view view(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// ---- Files --------------------------------------------------------------------------------------

// A folder of this process.
inline const Path& folder() {
  static const TemporaryFolder folder;
  return folder.path();
}

inline void write(const Path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << bytes << std::flush;
  must(file.good(), "the target can write its files");
}

// An input that stands for two files, with a NUL between them, which only the second may hold.
inline std::pair<std::string, std::string> two_files(std::string_view input) {
  const std::size_t end = std::min(input.find('\0'), input.size());
  return {std::string(input.substr(0, end)),
          std::string(input.substr(std::min(end + 1, input.size())))};
}

inline std::string one_input(std::string_view first, std::string_view second) {
  return join(first, '\0', second);
}

// ---- Mutations ----------------------------------------------------------------------------------

inline std::string mutated(std::string bytes, std::size_t most) {
  const std::size_t size = std::min(bytes.size(), most);
  bytes.resize(std::max<std::size_t>(most, 1));
  bytes.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(bytes.data()), size, bytes.size()));
  return bytes;
}

// Gives libFuzzer a mutated input, unless it has become too large.
inline std::size_t give(std::string_view bytes, std::uint8_t* data, std::size_t size,
                        std::size_t most) {
  if (bytes.size() > most) return size;
  std::copy(bytes.begin(), bytes.end(), data);
  return bytes.size();
}

// ---- Checksums made right -----------------------------------------------------------------------
// So that the fuzzer sees what lies behind them.

inline std::string resealed(const std::string& text) {
  const std::size_t begin = detail::seal_begin.size();
  const std::size_t end = text.find('"', begin);
  if (!text.starts_with(detail::seal_begin) || end == text.npos) return text;
  const std::string_view rest = std::string_view(text).substr(end);
  return join(detail::seal_begin, detail::seal_of(rest), rest);
}

// The header of a safetensors file and its numbers.
inline std::pair<std::string, std::string> safetensors_parts(std::string_view file) {
  std::uint64_t size = 0;
  std::memcpy(&size, file.data(), std::min<std::size_t>(8, file.size()));
  file.remove_prefix(std::min<std::size_t>(8, file.size()));
  const std::size_t length = static_cast<std::size_t>(std::min<std::uint64_t>(size, file.size()));
  return {std::string(file.substr(0, length)), std::string(file.substr(length))};
}

// The checksum that such a file should have; throws Error if it is none.
inline std::uint64_t safetensors_checksum(std::string_view header, std::string_view numbers) {
  const Json json = Json::parse(header);
  Metadata metadata;
  std::vector<std::pair<std::size_t, std::size_t>> ranges;
  for (const auto& [name, entry] : json.object()) {
    if (name == "__metadata__") {
      for (const auto& [key, text] : entry.object()) metadata[key] = text.string();
    } else {
      const Json::Array& offsets = entry.at("data_offsets").array();
      require(offsets.size() == 2, "expected two offsets");
      const auto at = [&](std::size_t i) { return static_cast<std::size_t>(offsets[i].integer()); };
      ranges.emplace_back(at(0), at(1));
    }
  }
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t sum = checksum(metadata);
  for (const auto& [begin, end] : ranges) {
    require(begin <= end && end <= numbers.size(), "expected offsets inside the file");
    sum = checksum(numbers.substr(begin, end - begin), sum);
  }
  return sum;
}

// The file with the right size of its header, and with the right checksum if it has one.
inline std::string safetensors_file(std::string header, std::string_view numbers) {
  constexpr std::string_view begin = "\"checksum\": \"";
  const std::size_t at = header.find(begin);
  const std::size_t end = at == header.npos ? at : header.find('"', at + begin.size());
  if (end != header.npos) {
    problem_of([&] {
      const std::string sum = detail::hexadecimal(safetensors_checksum(header, numbers));
      header.replace(at + begin.size(), end - at - begin.size(), sum);
    });
  }
  const std::uint64_t size = header.size();
  return join(std::string_view(reinterpret_cast<const char*>(&size), 8), header, numbers);
}

// A mutated safetensors file: every second one is no more than its header mutated, and is made
// right.
inline std::string mutated_safetensors(std::string_view file, std::size_t most, unsigned seed) {
  if (seed % 2 == 0) return mutated(std::string(file), most);
  const auto [header, numbers] = safetensors_parts(file);
  return safetensors_file(mutated(header, std::max(most, numbers.size()) - numbers.size()),
                          numbers);
}

}  // namespace fuzz

#endif  // BERT4REC_TESTS_FUZZ_HPP
