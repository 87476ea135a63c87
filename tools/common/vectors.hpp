// Vectors of items and of users as files that other programs read: NumPy's .npy, or .safetensors. A
// block of them is held at a time.

#ifndef BERT4REC_TOOLS_VECTORS_HPP
#define BERT4REC_TOOLS_VECTORS_HPP

#include "bert4rec.hpp"

namespace vectors {

using namespace bert4rec;

enum class Format { npy, safetensors };

}  // namespace vectors

template <>
struct bert4rec::detail::EnumNames<vectors::Format> {
  static constexpr std::array<std::string_view, 2> names{"npy", "safetensors"};
};

namespace vectors {

// What stands before the numbers of a .npy file, version 1.0: the magic word, the version, the size
// of what follows in two bytes, and a dict of Python, with space up to a multiple of 64 bytes.
inline std::string npy_head(std::size_t rows, std::size_t columns) {
  std::string dict =
      join("{'descr': '<f4', 'fortran_order': False, 'shape': (", rows, ", ", columns, "), }");
  constexpr std::size_t before = 10;
  dict.resize((before + dict.size() + 1 + 63) / 64 * 64 - before - 1, ' ');
  dict += '\n';
  const auto size = static_cast<std::uint16_t>(dict.size());
  std::string head("\x93NUMPY\x01\x00", 8);
  head.append(reinterpret_cast<const char*>(&size), sizeof size);
  return head + dict;
}

inline std::string file_name(std::string_view name, Format format) {
  return join(name, ".", enum_name(format));
}

// Writes an array [rows,columns] of that name; fill(first, block) fills block[n,columns] with the
// rows from `first` on.
template <class Fill>
void write_array(FileSet& set, Format format, const std::string& name, std::size_t rows,
                 std::size_t columns, Fill&& fill) {
  constexpr std::size_t block_rows = 256;
  const std::string file = file_name(name, format);
  const NamedTensor tensor{name, {rows, columns}, nullptr};
  set.write(file, format == Format::npy ? npy_head(rows, columns)
                                        : safetensors_head({&tensor, 1}, {{"format", "pt"}}));
  std::vector<float> block;
  for (std::size_t first = 0; first < rows; first += block_rows) {
    block.resize(std::min(block_rows, rows - first) * columns);
    fill(first, std::span(block));
    set.write(file, {reinterpret_cast<const char*>(block.data()), block.size() * sizeof(float)});
  }
}

// Writes a list in JSON, one text of JSON a line: text(i) for i < count.
template <class Text>
void write_list(FileSet& set, const std::string& file, std::size_t count, Text&& text) {
  for (std::size_t i = 0; i < count; ++i) set.write(file, join(i == 0 ? "[" : ",\n", text(i)));
  set.write(file, "]\n");
}

// item_vectors [num_items,D], and item_ids.json: of each row, its id.
inline void write_items(FileSet& set, Format format, Engine& engine, const Catalogue& catalogue) {
  write_array(set, format, "item_vectors", catalogue.size(), engine.vector_size(),
              [&](std::size_t first, std::span<float> out) { engine.item_vectors(first, out); });
  write_list(set, "item_ids.json", catalogue.size(), [&](std::size_t i) {
    return to_json(catalogue[static_cast<std::int32_t>(i)]).at("id").text();
  });
}

// user_vectors [users,D], each from the whole history of a user, and user_names.json: of each row,
// the name. on_block(done) is called now and then.
template <class OnBlock>
void write_users(FileSet& set, Format format, Engine& engine, const Histories& histories,
                 OnBlock&& on_block) {
  const std::size_t D = engine.vector_size();
  Batch batch;
  write_array(set, format, "user_vectors", histories.size(), D,
              [&](std::size_t first, std::span<float> out) {
                batch.clear();
                const std::size_t end = first + out.size() / D;
                for (std::size_t user = first; user < end; ++user) {
                  add_next_item_row(batch, histories.row(user), engine.config());
                }
                engine.user_vectors(batch, out);
                on_block(end);
              });
  write_list(set, "user_names.json", histories.size(),
             [&](std::size_t user) { return Json(histories.user(user)).text(); });
}

// Lets the set remove what a former export left and this one does not replace.
inline void remove_others(FileSet& set, Format format, bool with_users) {
  for (const Format other : {Format::npy, Format::safetensors}) {
    if (other != format) set.remove(file_name("item_vectors", other));
    if (other != format || !with_users) set.remove(file_name("user_vectors", other));
  }
  if (!with_users) set.remove("user_names.json");
}

}  // namespace vectors

#endif  // BERT4REC_TOOLS_VECTORS_HPP
