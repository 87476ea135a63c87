// Chapter 5: reading, writing that survives a full disk and a kill at every byte, locks, lines, and
// safetensors files that are whole, cut, damaged or malicious.

#include "bert4rec.hpp"
#include "check.hpp"

#include <csignal>
#include <fstream>
#include <future>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <sys/resource.h>
#include <sys/wait.h>
#endif

using namespace bert4rec;
using namespace std::string_literals;

namespace {

// Writes without a flush (which ext4 also does for a file that is written over): for the files that
// tests read.
void put(const Path& path, std::string_view bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::ssize(bytes));
}

std::vector<std::string> names_in(const Path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(path_text(entry.path().filename()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void check_only(const Path& folder, const std::string& name) {
  const std::vector<std::string> names = names_in(folder);
  check(names == std::vector{name}, join(names.size(), " files in ", folder));
}

// Makes `folder` the current one for a while.
class CurrentFolder {
 public:
  explicit CurrentFolder(const Path& folder) { std::filesystem::current_path(folder); }
  ~CurrentFolder() { std::filesystem::current_path(before_); }
  CurrentFolder(const CurrentFolder&) = delete;
  CurrentFolder& operator=(const CurrentFolder&) = delete;

 private:
  const Path before_ = std::filesystem::current_path();
};

// ---- Reading ------------------------------------------------------------------------------------

void check_read_file() {
  const TemporaryFolder folder;
  const std::string bytes = "a\0b\r\n\xFF"s;
  put(folder / "some", bytes);
  put(folder / "empty", "");
  check_equal(read_file(folder / "some"), bytes);
  check_equal(read_file(folder / "empty"), "");
  const std::string large(1'000'003, 'x');
  put(folder / "large", large);
  check(read_file(folder / "large") == large, "large file");
}

void check_unreadable() {
  const TemporaryFolder folder;
  check_throws([&] { read_file(folder.path()); }, {path_text(folder.path()), "not a regular file"});
  check_throws([&] { read_file(folder / "none"); }, {path_text(folder / "none"), "cannot open"});
  put(folder / "file", "");
  check_throws([&] { read_file(folder / "file/below"); }, {"file/below", "cannot open"});
}

void check_make_folder() {
  const TemporaryFolder folder;
  make_folder(folder / "a/b/c");
  make_folder(folder / "a/b/c");
  check(std::filesystem::is_directory(folder / "a/b/c"), "folders");
  put(folder / "file", "");
  check_throws([&] { make_folder(folder / "file"); }, {path_text(folder / "file")});
  check_throws([&] { make_folder(folder / "file/x"); }, {path_text(folder / "file/x")});
}

// ---- Writing ------------------------------------------------------------------------------------

void check_write_file() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  for (const std::string& bytes : {"one"s, ""s, "a\0b\n"s, std::string(1'000'000, 'y')}) {
    write_file(path, bytes);
    check(read_file(path) == bytes, join(bytes.size(), " bytes"));
    check_only(folder.path(), "file");
  }
}

void check_commit() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  put(path, "old");
  {
    AtomicFile file(path);
    file.write("new ");
    check_equal(read_file(path), "old");
    file.write("text");
    check_equal(read_file(path), "old");
    file.commit();
    check_equal(read_file(path), "new text");
  }
  check_equal(read_file(path), "new text");
  check_only(folder.path(), "file");
}

void check_no_commit() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  { AtomicFile(path).write("unwanted"); }
  check(names_in(folder.path()).empty(), "nothing is left");
  put(path, "old");
  try {
    AtomicFile file(path);
    file.write("half");
    throw Error("stop");
  } catch (const Error&) {
  }
  check_equal(read_file(path), "old");
  check_only(folder.path(), "file");
}

// A path without a folder, and one that is relative.
void check_relative_paths() {
  const TemporaryFolder folder;
  {
    const CurrentFolder current(folder.path());
    write_file("plain", "1");
    make_folder("sub");
    write_file("sub/file", "2");
    check(read_file("plain") == "1" && read_file("sub/file") == "2", "written");
  }
  check(names_in(folder.path()) == std::vector<std::string>{"plain", "sub"}, "no temporaries");
}

// A file is bytes: no system may change the ends of lines or end it at a control character.
void check_no_text_mode() {
  const TemporaryFolder folder;
  const std::string bytes = "one\r\ntwo\nthree\r\x1A\0four\n"s;
  write_file(folder / "file", bytes);
  check_equal(std::filesystem::file_size(folder / "file"), bytes.size());
  check_equal(read_file(folder / "file"), bytes);
}

// Somebody reads the old file when the new one is to take its place.
void check_replaced_while_read() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  write_file(path, "old");
  std::atomic<bool> open{false};
  std::thread reader([&] {
    const detail::FileHandle file(path, detail::os::Use::read, "open");
    open = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  });
  while (!open) std::this_thread::yield();
  write_file(path, "new");
  reader.join();
  check_equal(read_file(path), "new");
  check_only(folder.path(), "file");
}

// Names in any language, in files, locks and messages.
void check_unicode_names() {
  const TemporaryFolder folder;
  const Path home = folder / "Żółć/数据 é 😀";
  make_folder(home);
  write_file(home / path_from("模型"), "bytes");
  write_file(home / path_from("模型"), "others");
  check_equal(read_file(folder / "Żółć/数据 é 😀/模型"), "others");
  check_only(home, "模型");
  check_equal(path_text(path_from("数据 é 😀")), "数据 é 😀");
  check_throws([] { path_from(std::string_view("a\0b", 3)); }, {"a path with a NUL: a\\x00b"});
  check_throws([&] { read_file(home / path_from("né")); }, {"数据 é 😀", "né: cannot open: "});
  const FolderLock lock(home);
  check_throws([&] { const FolderLock second(home); }, {"数据 é 😀: another process"});
}

void check_unwritable() {
  const TemporaryFolder folder;
  check_throws([&] { write_file(folder / "none/file", "x"); },
               {"none", ".file.tmp.", "cannot create"});
  make_folder(folder / "taken/inside");
  check_throws([&] { write_file(folder / "taken", "x"); },
               {path_text(folder / "taken"), "cannot replace"});
  check_only(folder.path(), "taken");
  check_only(folder / "taken", "inside");
}

void check_stale_temporaries() {
  const TemporaryFolder folder;
  put(folder / ".file.tmp.4711", "half");  // as a killed writer leaves it
  put(folder / ".file.tmp.4711.12", "half");
  for (const std::string_view mine : {"file", "file.tmp.1", ".hidden", "notes.tmp", ".lock"}) {
    put(folder / mine, "kept");
  }
  remove_stale_temporaries(folder.path());
  check_equal(names_in(folder.path()).size(), std::size_t{5});
  check_equal(read_file(folder / "file.tmp.1"), "kept");
  remove_stale_temporaries(folder / "none");  // nothing to do
}

// Only names that temporary files have: .<name>.tmp.<process>.<count>
void check_other_temporaries_stay() {
  const TemporaryFolder folder;
  put(folder / ".plan.tmp.txt", "kept");
  put(folder / ".x.tmp.12a", "kept");
  remove_stale_temporaries(folder.path());
  check_equal(names_in(folder.path()).size(), std::size_t{2});
}

void check_two_writers_of_one_path() {
  const TemporaryFolder folder;
  AtomicFile first(folder / "file"), second(folder / "file");
  first.write("first");
  second.write("the second");
  second.commit();
  check_equal(read_file(folder / "file"), "the second");
  first.commit();
  check_equal(read_file(folder / "file"), "first");
  check_only(folder.path(), "file");
}

// ---- Sets of files ------------------------------------------------------------------------------

// "a" and "b" of folder, and whether there is a "c".
std::string contents(const Path& folder) {
  return join(read_file(folder / "a"), read_file(folder / "sub" / "b"),
              path_exists(folder / "c") ? "c" : "");
}

// A folder with an old set: what commit() replaces by the new one, which is "AB".
void fill(const Path& folder) {
  make_folder(folder / "sub");
  put(folder / "a", "a");
  put(folder / "sub" / "b", "b");
  put(folder / "c", "");
}

void replace(const Path& folder) {
  const FolderLock lock(folder);
  settle(lock);
  FileSet set(lock);
  set.write("a", "A");
  set.write("sub/b", "B");
  set.remove("c");
  set.remove("never was");
  set.commit();
}

void check_set() {
  const TemporaryFolder folder;
  fill(folder.path());
  replace(folder.path());
  check_equal(contents(folder.path()), "AB");
  check_equal(names_in(folder.path()).size(), std::size_t{3});  // .lock, a, sub
  check_only(folder / "sub", "b");
  replace(folder.path());
  check_equal(contents(folder.path()), "AB");
}

void check_set_not_committed() {
  const TemporaryFolder folder;
  fill(folder.path());
  {
    const FolderLock lock(folder.path());
    FileSet set(lock);
    set.write("a", "A");
    set.remove("c");
  }
  check_equal(contents(folder.path()), "abc");
  check_equal(names_in(folder.path()).size(), std::size_t{4});
}

// The one written stays, whatever the order of the calls.
void check_set_of_both() {
  const TemporaryFolder folder;
  fill(folder.path());
  const FolderLock lock(folder.path());
  FileSet set(lock);
  set.remove("a");
  set.write("a", "A");
  set.write("sub/b", "B");
  set.remove("sub/b");
  set.commit();
  check_equal(contents(folder.path()), "ABc");
}

// A file that cannot be written stops the set before it is decided.
void check_set_refused() {
  const TemporaryFolder folder;
  fill(folder.path());
  const FolderLock lock(folder.path());
  FileSet set(lock);
  set.write("a", "A");
  check_throws([&] { set.write("none/b", "B"); }, {"none", "cannot create"});
  check_throws([&] { set.commit(); }, {"could not be written: none is replaced"});
  make_folder(folder / "sub" / "more");
  check_throws([&] { set.remove("sub/more"); }, {"is a folder, expected a file"});
  check_equal(contents(folder.path()), "abc");
}

// What another process took for left behind, and removed: nothing is replaced by what is gone.
void check_set_removed_by_others() {
  const TemporaryFolder folder;
  fill(folder.path());
  const FolderLock lock(folder.path());
  FileSet set(lock);
  set.write("a", "A");
  set.write("sub/b", "B");
  remove_stale_temporaries(folder / "sub");
  check_throws([&] { set.commit(); }, {".b.tmp.", "is gone: none is replaced"});
  check_equal(contents(folder.path()), "abc");
}

// A set that was decided, but could not be replaced, comes before the next.
void check_set_after_another() {
  const TemporaryFolder folder;
  fill(folder.path());
  put(folder / ".a.tmp.1.0", "old");
  put(folder / ".replacing", sealed(R"({"replace": [[".a.tmp.1.0", "a"]], "remove": ["c"]})"));
  const FolderLock lock(folder.path());
  FileSet set(lock);
  set.write("sub/b", "B");
  set.commit();
  check_equal(contents(folder.path()), "oldB");
}

// Names that no journal could hold are refused before there is one.
void check_set_outside() {
  const TemporaryFolder folder;
  fill(folder.path());
  const FolderLock lock(folder.path());
  FileSet set(lock);
  for (const std::string_view name : {"../a", "sub/../../a", "/a", ".", "sub/.", "", "b\xE9"}) {
    check_throws([&] { set.write(name, "B"); }, {"is no place in the folder"});
    check_throws([&] { set.remove(name); }, {"is no place in the folder"});
  }
  set.write("a", "A");
  set.commit();
  check_equal(contents(folder.path()), "Abc");
}

void check_reader_settles() {
  const TemporaryFolder folder;
  fill(folder.path());
  put(folder / ".a.tmp.1.0", "A");
  put(folder / ".replacing", sealed(R"({"replace": [[".a.tmp.1.0", "a"]], "remove": ["c"]})"));
  {
    const FolderLock lock(folder.path());  // of the writer, who lives
    check_throws([&] { settle(folder.path()); }, {"another process"});
  }
  settle(folder.path());
  check_equal(contents(folder.path()), "Ab");
  settle(folder.path());
}

// A reader waits for a writer who is replacing a set.
void check_reader_waits() {
  const TemporaryFolder folder;
  fill(folder.path());
  put(folder / ".a.tmp.1.0", "A");
  FolderLock lock(folder.path());
  put(folder / ".replacing", sealed(R"({"replace": [[".a.tmp.1.0", "a"]], "remove": ["c"]})"));
  const auto writer = std::async(std::launch::async, [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    settle(lock);  // and goes on holding the lock
  });
  settle(folder.path());
  check_equal(contents(folder.path()), "Ab");
}

void check_bad_journals() {
  const TemporaryFolder folder;
  fill(folder.path());
  const auto refused = [&](const std::string& text, std::string_view part) {
    put(folder / ".replacing", text);
    check_throws([&] { settle(folder.path()); }, {".replacing", part});
    check_equal(contents(folder.path()), "abc");
  };
  for (const std::string name : {"../c", "/etc/passwd", "sub/../../c", "sub/", ""}) {
    refused(sealed(join(R"({"replace": [], "remove": [")", name, "\"]}")), "no place");
  }
  refused(sealed(R"({"replace": [["c"]], "remove": []})"), "pairs");
  for (const std::string from : {"c", "sub/.a.tmp.1.0", ".b.tmp.1.0", ".a.tmp.x"}) {
    refused(sealed(join(R"({"replace": [[")", from, R"(", "a"]], "remove": []})")),
            "is no temporary of");
  }
  make_folder(folder / "sub" / "more");
  refused(sealed(R"({"replace": [], "remove": ["sub/more"]})"), "is a folder, expected a file");
  refused(sealed(R"({"replace": []})"), "missing field \"remove\"");
  std::string damaged = sealed(R"({"replace": [], "remove": ["d"]})");
  damaged[damaged.find("\"d\"") + 1] = 'c';
  refused(damaged, "checksum");
}

// ---- Sealed JSON --------------------------------------------------------------------------------

void check_sealed() {
  const TemporaryFolder folder;
  const Path path = folder / "x.json";
  const std::string object = "{\n  \"a\": [1, 2],\n  \"b\": \"\\\"\"\n}\n";
  const std::string text = sealed(object);
  put(path, object);
  const std::string plain = read_sealed_json(path).text();
  put(path, text);
  check_equal(read_sealed_json(path).text(), plain);
  for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {  // caught, or a member too many
    std::string damaged = text;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    put(path, damaged);
    try {
      const Json json = read_sealed_json(path);
      check(json.text() == plain || json.object().size() == 3, join("bit ", bit, " flipped"));
    } catch (const Error&) {
    }
  }
}

// ---- Two versions of a file ---------------------------------------------------------------------

void save(const Path& path, float value) {
  const std::vector<float> numbers(20, value);
  const NamedTensor tensors[] = {{"a", {2, 5}, numbers.data()}, {"b", {10}, numbers.data() + 10}};
  write_safetensors(path, tensors, {{"value", join(value)}});
}

// The number that the file was saved with, if every part of it says so.
float saved_value(const Path& path) {
  const Safetensors file(path);
  std::vector<float> numbers(20);
  file.copy("a", std::array<std::size_t, 2>{2, 5}, numbers.data());
  file.copy("b", std::array<std::size_t, 1>{10}, numbers.data() + 10);
  for (const float number : numbers) require(number == numbers[0], "a mixture");
  require(file.metadata("value") == join(numbers[0]), "a mixture with the metadata");
  return numbers[0];
}

// ---- Locks --------------------------------------------------------------------------------------

void check_lock_twice() {
  const TemporaryFolder folder;
  {
    const FolderLock lock(folder.path());
    check_throws([&] { const FolderLock second(folder.path()); },
                 {path_text(folder.path()), ": another process or Trainer is writing"});
  }
  const FolderLock again(folder.path());
  check_throws([&] { const FolderLock lock(folder / "none"); }, {"none", "create the lock file"});
}

// ---- Lines and checksums ------------------------------------------------------------------------

std::string lines_of(std::string_view text) {
  std::string out;
  for_each_line(text, [&](std::string_view line, std::size_t number) {
    out += join(number, "<", line, ">");
  });
  return out;
}

void check_lines() {
  check_equal(lines_of(""), "");
  check_equal(lines_of("\n\n"), "");
  check_equal(lines_of("a"), "1<a>");
  check_equal(lines_of("a\n"), "1<a>");
  check_equal(lines_of("a\nb"), "1<a>2<b>");
  check_equal(lines_of("a\r\nb\r\n"), "1<a>2<b>");
  check_equal(lines_of("a\r\nb\r"), "1<a>2<b>");
  check_equal(lines_of("\n\na\n \t\n\r\n  b \n"), "3<a>6<  b >");
  check_equal(lines_of("\xEF\xBB\xBF"), "");
  check_equal(lines_of("\xEF\xBB\xBF"
                       "a\nb"),
              "1<a>2<b>");
  check_equal(lines_of("\xEF\xBB\xBF\r\na"), "2<a>");
  check_equal(lines_of("a\rb\nc"), "1<a\rb>2<c>");  // a return inside a line is no end
  check_equal(lines_of("a\0b\n\0"s), "1<a\0b>2<\0>"s);
}

void check_checksum() {
  // Computed by an independent program; a change would refuse every older file.
  check_equal(checksum(""), 0xcbf29ce484222325);
  check_equal(checksum("bert4rec.hpp"), 0x9dc7dd98fe7f776b);
  std::string text = "forty bytes, which are five whole words.";
  check_equal(text.size(), std::size_t{40});
  const std::uint64_t sum = checksum(text);
  check_equal(checksum(text.substr(16), checksum(text.substr(0, 16))), sum);
  for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    if (checksum(flipped) == sum) check(false, join("bit ", bit));
  }
  std::swap_ranges(text.begin(), text.begin() + 8, text.begin() + 8);
  check(checksum(text) != sum, "words in another order");
}

// ---- safetensors --------------------------------------------------------------------------------

// The 8 bytes of a header's size, the header, the numbers.
std::string raw(std::string_view header, std::string_view numbers, std::uint64_t size) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &size, 8);
  return join(bytes, header, numbers);
}

template <class... Floats>
std::string floats(Floats... values) {
  const float numbers[] = {static_cast<float>(values)...};
  return {reinterpret_cast<const char*>(numbers), sizeof numbers};
}

// The format itself, byte for byte.
void check_written_bytes() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  const float numbers[] = {1.5f, -2.0f};
  const NamedTensor tensor{"a", {2, 1}, numbers};
  write_safetensors(path, {&tensor, 1}, {{"format", "pt"}});
  std::string header =
      "{\"__metadata__\": {\"checksum\": \"990a7599fbad81a1\", \"format\": \"pt\"}, "
      "\"a\": {\"dtype\": \"F32\", \"shape\": [2, 1], \"data_offsets\": [0, 8]}}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  check_equal(read_file(path), raw(header, floats(1.5, -2), header.size()));
  header.replace(header.find("pt"), 2, "pu");  // the checksum covers the metadata too
  write_file(path, raw(header, floats(1.5, -2), header.size()));
  check_throws([&] { Safetensors(path).verify(); }, {path_text(path), "checksum"});
}

void check_round_trip() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  std::vector<float> numbers(24);
  for (std::size_t i = 0; i < 24; ++i) {
    numbers[i] = std::ldexp(i % 2 ? 1.1f : -0.7f, static_cast<int>(i * 10) - 140);
  }
  numbers[1] = -0.0f, numbers[2] = std::numeric_limits<float>::max();
  const std::vector<NamedTensor> tensors = {{"cube", {2, 3, 4}, numbers.data()},
                                            {"scalar", {}, numbers.data() + 2},
                                            {"empty", {0}, numbers.data()},
                                            {"flat", {5, 0, 3}, numbers.data()},
                                            {"\"quoted\\\n\xC3\xA9", {3}, numbers.data()},
                                            {"", {1}, numbers.data() + 7}};
  const Metadata metadata = {{"plain", "text"},
                             {"quotes", "{\"a\": \"b\\c\"}\n\t\x01"},
                             {"\xE2\x82\xAC \xF0\x9F\x98\x80", "\xC3\xA9"},
                             {"", ""}};
  write_safetensors(path, tensors, metadata);
  const Safetensors file(path);
  for (const NamedTensor& tensor : tensors) {
    const std::size_t count = checked_product(tensor.shape, "test");
    std::vector<float> found(25, 77.0f);
    file.copy(tensor.name, tensor.shape, found.data());
    check(std::memcmp(found.data(), tensor.data, 4 * count) == 0, "numbers of " + tensor.name);
    check_equal(found[count], 77.0f);
    check(file.contains(tensor.name), tensor.name);
  }
  for (const auto& [name, text] : metadata) check_equal(file.metadata(name), text);
  check_equal(file.metadata().size(), metadata.size() + 1);  // and the checksum
  check(!file.contains("none") && !file.contains("__metadata__"), "contains");
}

void check_copy_errors() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  save(path, 1);
  const Safetensors file(path);
  std::vector<float> out(20);
  const auto copy = [&](std::string_view name, std::vector<std::size_t> shape) {
    file.copy(name, shape, out.data());
  };
  check_throws([&] { copy("c", {2}); }, {path_text(path), "missing tensor \"c\""});
  const std::vector<std::size_t> wrong[] = {{5, 2}, {10}, {2, 5, 1}, {2}, {}};
  for (const auto& shape : wrong) {
    check_throws([&] { copy("a", shape); },
                 {path_text(path), "\"a\" has shape [2, 5], expected ["});
  }
  check_throws([&] { file.metadata("none"); }, {path_text(path), "missing metadata \"none\""});
}

void check_not_finite() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  for (const float bad : {std::nanf(""), -INFINITY, INFINITY}) {
    const std::vector<float> numbers = {1, 2, bad, 4};
    const NamedTensor tensors[] = {{"good", {2}, numbers.data()}, {"w", {3}, numbers.data() + 1}};
    write_safetensors(path, tensors, {});
    const Safetensors file(path);
    std::vector<float> out(3);
    file.copy("good", std::array<std::size_t, 1>{2}, out.data());
    check_throws([&] { file.copy("w", std::array<std::size_t, 1>{3}, out.data()); },
                 {path_text(path), "tensor \"w\" holds ", std::isnan(bad) ? "NaN" : "infinity",
                  "element 1"});
  }
}

void check_prefixes() {
  const TemporaryFolder folder;
  const Path path = folder / "file", part = folder / "part";
  save(path, 1);
  const std::string bytes = read_file(path);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    put(part, bytes.substr(0, n));
    check_throws([&] { const Safetensors file(part); }, {path_text(part)});
  }
  put(part, bytes + '\0');
  check_throws([&] { const Safetensors file(part); }, {path_text(part), "81 bytes"});
}

// A flipped bit among the numbers is refused; one in the header is refused or harms no number.
void check_bit_flips() {
  const TemporaryFolder folder;
  const Path path = folder / "file";
  save(path, 1);
  const std::string bytes = read_file(path);
  const std::size_t numbers = bytes.size() - 80;
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    put(path, flipped);
    if (bit / 8 >= numbers) {
      check_throws([&] { saved_value(path); }, {path_text(path), "checksum"});
    } else {
      try {
        check_equal(saved_value(path), 1.0f);
      } catch (const Error&) {
      }
    }
  }
}

// ---- safetensors: bad headers -------------------------------------------------------------------

struct BadFile {
  std::string header, numbers;
  std::string_view part;  // of the message
};

std::string entry(std::string_view shape, std::string_view offsets, std::string_view name = "a") {
  return join("\"", name, "\":{\"dtype\":\"F32\",\"shape\":", shape, ",\"data_offsets\":", offsets,
              "}");
}

std::string one(std::string_view shape, std::string_view offsets) {
  return join("{", entry(shape, offsets), "}");
}

std::string two(std::string_view first, std::string_view second) {
  return join("{", entry("[1]", first), ",", entry("[1]", second, "b"), "}");
}

void check_refused(const std::string& bytes, std::string_view part) {
  const TemporaryFolder folder;
  const Path path = folder / "bad";
  put(path, bytes);
  check_throws([&] { Safetensors(path).verify(); }, {path_text(path), part});
}

void check_header_sizes() {
  const std::string good = one("[1]", "[0,4]");
  const TemporaryFolder folder;
  put(folder / "good", raw(good, floats(1), good.size()));
  check(Safetensors(folder / "good").contains("a"), "the header is good");
  constexpr std::uint64_t most = ~std::uint64_t{0};
  for (const std::uint64_t size :
       {most, most - 7, most - 6, most - 8, most / 2, most / 2 + 1, std::uint64_t{1} << 32,
        std::uint64_t{100'000'001}, std::uint64_t{good.size() + 5}}) {
    check_refused(raw(good, floats(1), size), join("header size ", size, " does not fit"));
  }
  check_refused(raw(good, floats(1), good.size() + 4), "byte ");
  check_refused(raw(good, floats(1), good.size() - 1), "byte ");
  check_refused(raw(good, floats(1), 0), "byte 1: ");
  put(folder / "large", raw(good, "", 100'000'001));
  std::filesystem::resize_file(folder / "large", 100'000'100);  // sparse
  check_throws([&] { const Safetensors file(folder / "large"); }, {"header size 100000001"});
}

void check_bad_layouts() {
  const std::string four = floats(1), eight = floats(1, 2);
  const BadFile files[] = {
      {one("[1]", "[0,4]"), eight, "holds 8 bytes"},      // bytes left over
      {one("[2]", "[0,8]"), four, "holds 4 bytes"},       // too few
      {one("[1]", "[4,8]"), eight, "hole"},               // at the start
      {two("[0,4]", "[8,12]"), floats(1, 2, 3), "hole"},  // in the middle
      {two("[0,4]", "[0,4]"), four, "overlap"},
      {two("[0,4]", "[0,4]"), eight, "overlap"},
      {two("[4,8]", "[0,4]"), floats(1, 2, 3), "holds 12 bytes"},
      {join("{", entry("[2]", "[0,8]"), ",", entry("[1]", "[4,8]", "b"), "}"), eight, "overlap"},
      {one("[0]", "[4,4]"), four, "hole"},  // an empty tensor at an odd place
      {"{}", four, "holds 4 bytes"},
      {"{\"__metadata__\":{}}", four, "holds 4 bytes"},
      {one("[2]", "[0,4]"), four, "disagree with the shape"},
      {one("[1]", "[0,8]"), eight, "disagree with the shape"},
      {one("[]", "[0,0]"), "", "disagree with the shape"},
      {one("[0]", "[0,4]"), four, "disagree with the shape"},
      {one("[1]", "[4,0]"), four, "disagree with the shape"},
      {one("[1]", "[0,3]"), "abc", "disagree with the shape"},
      {one("[1000000000000]", "[0,4000000000000]"), four, "holds 4 bytes"},
      {one("[1]", "[9223372036854775803,9223372036854775807]"), four, "hole"}};
  for (const auto& [header, numbers, part] : files) {
    check_refused(raw(header, numbers, header.size()), part);
  }
}

void check_overflowing_shapes() {
  for (const std::string_view shape :
       {"[4611686018427387904]", "[4611686018427387905]", "[4294967296,4294967296]",
        "[4294967296,4294967296,4]", "[9223372036854775807,9223372036854775807]",
        "[2147483648,2147483648,2147483648,0,2]"}) {
    const std::string none = one(shape, "[0,0]"), some = one(shape, "[0,4]");
    check_refused(raw(none, "", none.size()), "size overflows");
    check_refused(raw(some, floats(1), some.size()), "size overflows");
  }
  const std::string zero = one("[0,4294967296,4294967296,4294967296]", "[0,4]");
  check_refused(raw(zero, floats(1), zero.size()), "disagree with the shape");
}

void check_bad_fields() {
  const auto tensor = [](std::string_view fields) { return join("{\"a\":{", fields, "}}"); };
  const std::string dtype = "\"dtype\":\"F32\"", shape = "\"shape\":[1]",
                    offsets = "\"data_offsets\":[0,4]";
  const BadFile files[] = {
      {tensor(join("\"dtype\":\"F16\",", shape, ",", offsets)), "", "disagree with the shape"},
      {tensor(join("\"dtype\":\"F64\",", shape, ",", offsets)), "", "disagree with the shape"},
      {tensor(join("\"dtype\":32,", shape, ",", offsets)), "", "expected a string, found '3'"},
      {tensor(join("\"dtype\":\"\",", shape, ",", offsets)), "", "missing field \"dtype\""},
      {tensor(join(shape, ",", offsets)), "", "missing field \"dtype\""},
      {tensor(join(dtype, ",", offsets)), "", "missing field \"shape\""},
      {tensor(join(dtype, ",", shape)), "", "data_offsets must be two numbers"},
      {one("[-1]", "[0,4]"), "", "negative size"},
      {one("[1]", "[-4,0]"), "", "negative size"},
      {one("[1]", "[0,-4]"), "", "negative size"},
      {one("[-1,-1]", "[0,4]"), "", "negative size"},
      {one("[1]", "[0]"), "", "must be two numbers"},
      {one("[1]", "[0,4,4]"), "", "must be two numbers"},
      {one("[1]", "[]"), "", "must be two numbers"},
      {one("[1.0]", "[0,4]"), "", "expected an integer"},
      {one("[1]", "[0,4.0]"), "", "expected an integer"},
      {one("[1]", "[0,18446744073709551616]"), "", "expected an integer"},
      {one("[1]", "[0,18446744073709551612]"), "", "expected an integer"},
      {one("[\"1\"]", "[0,4]"), "", "expected a number, found '\"'"},
      {one("1", "[0,4]"), "", "expected an array"},
      {one("null", "[0,4]"), "", "expected an array"},
      {one("[1]", "{}"), "", "expected an array"},
      {"{\"a\":[]}", "", "expected an object"},
      {"{\"a\":null}", "", "expected an object"}};
  for (const auto& [header, ignored, part] : files) {
    check_refused(raw(header, floats(1), header.size()), part);
  }
}

void check_bad_headers() {
  const std::string good = entry("[1]", "[0,4]");
  const BadFile files[] = {
      {"[]", "", "byte 1: expected '{'"},
      {"null", "", "byte 1: expected '{'"},
      {"7", "", "byte 1: expected '{'"},
      {"{}x", "", "byte 3: "},
      {"{}{}", "", "byte 3: "},
      {"", "", "byte 1: "},
      {"    ", "", "byte 1: expected '{', found ' '"},
      {join(" {", good, "}"), "", "byte 1: expected '{', found ' '"},
      {"{}\0"s, "", "byte 3: "},
      {join("{", good, ",", good, "}"), "", "name \"a\" stands twice"},
      {join("{", good, ",}"), "", "byte "},
      {join("{", good, ",\"__metadata__\":{\"k\":1}}"), "", "expected a string, found '1'"},
      {join("{", good, ",\"__metadata__\":{\"k\":null}}"), "", "expected a string, found 'n'"},
      {join("{", good, ",\"__metadata__\":{\"k\":{}}}"), "", "expected a string, found '{'"},
      {join("{", good, ",\"__metadata__\":[]}"), "", "expected an object"},
      {join("{", good, ",\"__metadata__\":\"x\"}"), "", "expected an object"},
      {join("{", good, ",\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}"), "", "stands twice"},
      {join("{", good, ",\"__metadata__\":{\"checksum\":\"0\"}}"), "", "checksum does not match"},
      {"{\"\xFF\":{}}", "", "invalid UTF-8"},
      {join("{\"a\":", std::string(100'000, '[')), "", "expected an object"},
      {join("{\"a\":{\"b\":", std::string(100'000, '[')), "", "nested deeper"}};
  for (const auto& [header, ignored, part] : files) {
    check_refused(raw(header, floats(1), header.size()), part);
  }
}

// Sizes that are written down are not believed before they are compared with the file.
void check_many_dimensions() {
  std::string shape = "[1";
  for (std::size_t i = 0; i < 100'000; ++i) shape += ",1";
  const std::string header = one(shape + "]", "[0,4]");
  check_refused(raw(header, floats(1), header.size()), "\"a\": more than 8 dimensions");
}

// Halves: 1, -2, the largest, the smallest above 0, the smallest normal one; bfloats: 1, -3.
void check_narrow_types() {
  const TemporaryFolder folder;
  const std::string header =
      join(R"({"h":{"dtype":"F16","shape":[6],"data_offsets":[0,12]},)",
           R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]},)",
           R"("ids":{"dtype":"I64","shape":[1,1],"data_offsets":[16,24]},)",
           R"("odd":{"dtype":"F4_NEW","shape":[3],"data_offsets":[24,26]}})");
  std::string numbers;
  for (const int bits : {0x3C00, 0xC000, 0x7BFF, 0x0001, 0x0400, 0x8000, 0x3F80, 0xC040}) {
    numbers += static_cast<char>(bits & 255), numbers += static_cast<char>(bits >> 8);
  }
  put(folder / "file", raw(header, numbers + "12345678ab", header.size()));
  const Safetensors file(folder / "file");
  const float halves[] = {1, -2, 65504, 0x1p-24f, 0x1p-14f, -0.0f}, bfloats[] = {1, -3};
  float found[6];
  file.copy("h", std::array<std::size_t, 1>{6}, found);
  check(std::memcmp(found, halves, sizeof halves) == 0, "halves");
  file.copy("b", std::array<std::size_t, 1>{2}, found);
  check(std::memcmp(found, bfloats, sizeof bfloats) == 0, "bfloats");
  check_throws(
      [&] {
        file.copy("ids", std::array<std::size_t, 2>{1, 1}, found);
      },
      {"tensor \"ids\" is I64, expected F32, F16 or BF16"});
  check_throws([&] { file.copy("odd", std::array<std::size_t, 1>{3}, found); }, {"is F4_NEW"});
  for (const auto& [bits, name] : {std::pair(0x7C00, "infinity"), std::pair(0x7E01, "NaN")}) {
    numbers[0] = static_cast<char>(bits & 255), numbers[1] = static_cast<char>(bits >> 8);
    put(folder / "bad", raw(header, numbers + "12345678ab", header.size()));
    const Safetensors bad(folder / "bad");
    check_throws([&] { bad.copy("h", std::array<std::size_t, 1>{6}, found); }, {"holds ", name});
  }
}

// Many names for one range, as a bomb would have them.
void check_shared_range() {
  std::string header = "{";
  for (std::size_t i = 0; i < 20'000; ++i) {
    header += join(i == 0 ? "" : ",", entry("[1]", "[0,4]", join("t", i)));
  }
  header += "}";
  check_refused(raw(header, floats(1), header.size()), "overlap");
}

// A legal header of another writer: unpadded, unsorted, without metadata or checksum.
void check_foreign_file() {
  const TemporaryFolder folder;
  const std::string header =
      "{ \"b\" :\n{\"shape\":[1],\"data_offsets\":[8,12],\"dtype\":\"F32\"},"
      "\"a\":{\"data_offsets\":[0,8],\"dtype\":\"F32\",\"shape\":[2,1]}} ";
  check(header.size() % 4 != 0, "numbers at an odd place");
  put(folder / "file", raw(header, floats(1, 2, 3), header.size()));
  const Safetensors file(folder / "file");
  float found[3];
  file.copy("a", std::array<std::size_t, 2>{2, 1}, found);
  file.copy("b", std::array<std::size_t, 1>{1}, found + 2);
  check(found[0] == 1 && found[1] == 2 && found[2] == 3, "numbers");
  check(file.metadata().empty(), "no metadata");
}

// Even where the message begins like the path.
void check_path_of_one_letter() {
  const TemporaryFolder folder;
  const CurrentFolder current(folder.path());
  const std::string header = "{\"a\":{\"dtype\":\"F32\"}}";
  put("t", raw(header, "", header.size()));
  try {
    const Safetensors file("t");
    check(false, "refused");
  } catch (const Error& error) {
    check(std::string_view(error.what()).starts_with("t: "), "the message names the path");
  }
}

// ---- What differs between systems: other processes, devices -------------------------------------

#ifdef _WIN32

// This program again, with an order for main(), working in `folder`.
class Child {
 public:
  Child(const std::wstring& order, const Path& folder) {
    wchar_t program[32768];
    ::GetModuleFileNameW(nullptr, program, 32768);
    std::wstring line = L"\"" + std::wstring(program) + L"\" " + order;
    STARTUPINFOW start{};
    start.cb = sizeof start;
    const BOOL good = ::CreateProcessW(program, line.data(), nullptr, nullptr, FALSE, 0, nullptr,
                                       folder.c_str(), &start, &process_);
    require(good != 0, "cannot start a child process: ", ::GetLastError());
    std::error_code busy;  // not there yet, or still open
    for (int wait = 0; !std::filesystem::remove(folder / "ready", busy) && wait < 6000; ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  void kill() {
    if (killed_) return;
    killed_ = true;
    ::TerminateProcess(process_.hProcess, 9);
    ::WaitForSingleObject(process_.hProcess, INFINITE);
    ::CloseHandle(process_.hProcess), ::CloseHandle(process_.hThread);
  }
  ~Child() { kill(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

 private:
  PROCESS_INFORMATION process_{};
  bool killed_ = false;
};

// In the child: ready, then busy until it is killed (or a minute has passed).
int obey(std::string_view order) {
  const auto start = std::chrono::steady_clock::now();
  std::optional<FolderLock> lock;
  if (order == "lock") lock.emplace(".");
  put("ready", "");
  while (std::chrono::steady_clock::now() - start < std::chrono::minutes(1)) {
    if (order == "save")
      save("model", 1), save("model", 2);
    else
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return 1;
}

void check_killed_writers() {
  const TemporaryFolder folder;
  std::size_t left = 0;
  save(folder / "model", 1);
  for (int round = 0; round < 30; ++round) {
    Child child(L"save", folder.path());
    std::this_thread::sleep_for(std::chrono::milliseconds(7 * round % 20));
    child.kill();
    const float value = saved_value(folder / "model");
    check(value == 1 || value == 2, join("round ", round));
    left += names_in(folder.path()).size() - 1;
    remove_stale_temporaries(folder.path());
    check_only(folder.path(), "model");
  }
  check(left > 0, "some were killed between the beginning and the end of a file");
}

void check_locks_of_processes() {
  const TemporaryFolder folder;
  Child child(L"lock", folder.path());
  check_throws([&] { const FolderLock lock(folder.path()); }, {"another process"});
  child.kill();
  const FolderLock lock(folder.path());
}

void check_devices() {
  check_throws([] { read_file("NUL"); }, {"NUL: not a regular file"});
}

void test_system() {
  test("devices", check_devices);
  test("writers killed at any time", check_killed_writers);
  test("locks of other processes, also killed", check_locks_of_processes);
  skip("a named pipe does not hang", "Windows has none among its files");
  skip("disk full at every byte", "Windows limits no file's size");
  skip("killed at every byte", "as above; see \"writers killed at any time\"");
}

#else

int obey(std::string_view) { return 2; }

// Runs body() in a child process, which ends with the code it returns; returns the wait status.
template <class Body>
int in_child(Body&& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    int code = 100;
    try {
      code = body();
    } catch (...) {
    }
    ::_exit(code);
  }
  int status = -1;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

bool ended_well(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
bool killed_by(int status, int signal) { return WIFSIGNALED(status) && WTERMSIG(status) == signal; }

// In a child: files may grow to `size` bytes. `action` SIG_IGN makes a write beyond fail, as on a
// full disk; SIG_DFL kills the writer there.
void limit_file_size(std::size_t size, void (*action)(int)) {
  const rlimit files{size, size}, core{0, 0};
  ::setrlimit(RLIMIT_CORE, &core);
  ::setrlimit(RLIMIT_FSIZE, &files);
  ::signal(SIGXFSZ, action);
}

// A history that only its owner may read stays so.
void check_permissions() {
  const TemporaryFolder folder;
  const auto permissions = [&](const char* name) {
    return std::filesystem::status(folder / name).permissions();
  };
  write_file(folder / "new", "a");
  const auto usual = permissions("new");
  for (const auto kept : {std::filesystem::perms(0600), std::filesystem::perms(0444)}) {
    write_file(folder / "own", "a");
    std::filesystem::permissions(folder / "own", kept);
    write_file(folder / "own", "b");
    check_equal(read_file(folder / "own"), "b");
    check(permissions("own") == kept, "as they were");
  }
  write_file(folder / "another", "a");
  check(permissions("another") == usual, "of a new file");
}

// Links under the names of the next temporaries, as a folder from elsewhere may hold them, are
// passed by.
void check_links_of_temporaries() {
  const TemporaryFolder folder;
  put(folder / "mine", "kept");
  const Path name = detail::temporary_name("file");
  const std::string text = path_text(name);
  const std::size_t dot = text.rfind('.') + 1;
  for (int next = 1; next <= 3; ++next) {
    std::filesystem::create_symlink(
        "mine", folder / join(text.substr(0, dot), std::stoi(text.substr(dot)) + next));
  }
  write_file(folder / "file", "new");
  check_equal(read_file(folder / "file"), "new");
  check_equal(read_file(folder / "mine"), "kept");
}

// Nobody wants a file in place of /dev/null.
void check_no_file_for_a_device() {
  const TemporaryFolder folder;
  check(::mkfifo((folder / "pipe").c_str(), 0600) == 0, "a pipe");
  for (const Path& path : {folder / "pipe", Path("/dev/null")}) {
    check_throws([&] { AtomicFile file(path); }, {path_text(path), "not a regular file"});
  }
  check_only(folder.path(), "pipe");
}

void check_pipe_does_not_hang() {
  const TemporaryFolder folder;
  const Path pipe = folder / "pipe";
  check_equal(::mkfifo(pipe.c_str(), 0600), 0);
  const int status = in_child([&] {
    ::alarm(5);
    try {
      read_file(pipe);
    } catch (const Error& error) {
      return std::string_view(error.what()) == join(pipe, ": not a regular file") ? 0 : 1;
    }
    return 2;
  });
  check(ended_well(status), join("refused at once; status ", status));
}

void check_full_disk() {
  const TemporaryFolder folder;
  const Path path = folder / "model";
  save(path, 2);
  const std::size_t size = read_file(path).size();
  save(path, 1);
  const std::string old = read_file(path);
  for (std::size_t limit = 0; limit <= size; ++limit) {
    const int status = in_child([&] {
      limit_file_size(limit, SIG_IGN);
      try {
        save(path, 2);
      } catch (const Error& error) {
        return std::string_view(error.what()).starts_with(join(path, ": cannot write: ")) ? 1 : 2;
      }
      return 0;
    });
    const bool failed = WIFEXITED(status) && WEXITSTATUS(status) == 1;
    if (limit < size) check(failed && read_file(path) == old, join("limit ", limit, ": ", status));
    if (limit == size) check(ended_well(status) && saved_value(path) == 2, "enough room");
    check_only(folder.path(), "model");
  }
}

void check_kill_at_every_byte() {
  const TemporaryFolder folder;
  const Path path = folder / "model";
  save(path, 2);
  const std::size_t size = read_file(path).size();
  save(path, 1);
  for (std::size_t limit = 0; limit <= size; ++limit) {
    const int status = in_child([&] {
      limit_file_size(limit, SIG_DFL);
      save(path, 2);
      return 0;
    });
    check(limit < size ? killed_by(status, SIGXFSZ) : ended_well(status), join("at ", limit));
    check_equal(saved_value(path), limit < size ? 1.0f : 2.0f);
  }
  check(names_in(folder.path()).size() > 1, "the killed left something");
  remove_stale_temporaries(folder.path());
  check_only(folder.path(), "model");
}

void check_lock() {
  const TemporaryFolder folder;
  const auto refused_elsewhere = [&] {
    return ended_well(in_child([&] {
      try {
        const FolderLock lock(folder.path());
      } catch (const Error& error) {
        return std::string_view(error.what()) ==
                       join(folder.path(), ": another process or Trainer is writing to this folder")
                   ? 0
                   : 2;
      }
      return 1;
    }));
  };
  {
    const FolderLock lock(folder.path());
    check(refused_elsewhere(), "held");
    check(refused_elsewhere(), "still held");
  }
  check(!refused_elsewhere(), "given back");
}

void check_lock_of_the_killed() {
  const TemporaryFolder folder;
  int pipe_ends[2];
  check_equal(::pipe(pipe_ends), 0);
  const pid_t owner = ::fork();
  if (owner == 0) {
    ::alarm(60);
    const FolderLock lock(folder.path());
    if (::write(pipe_ends[1], "!", 1) == 1) ::pause();
    ::_exit(1);
  }
  char ready = 0;
  check(::read(pipe_ends[0], &ready, 1) == 1, "the owner is ready");
  check_throws([&] { const FolderLock lock(folder.path()); }, {"another process"});
  ::kill(owner, SIGKILL);
  ::waitpid(owner, nullptr, 0);
  { const FolderLock lock(folder.path()); }
  ::close(pipe_ends[0]), ::close(pipe_ends[1]);
}

void check_devices() {
  const TemporaryFolder folder;
  std::filesystem::create_symlink("loop", folder / "loop");
  check_throws([&] { read_file(folder / "loop"); }, {path_text(folder / "loop"), "cannot open"});
  check_throws([&] { read_file("/dev/zero"); }, {"/dev/zero: not a regular file"});
}

void test_system() {
  test("devices, and links that lead nowhere", check_devices);
  test("who may read a file that is replaced", check_permissions);
  test("links where temporaries go", check_links_of_temporaries);
  test("no file in place of a device", check_no_file_for_a_device);
  test("a named pipe does not hang", check_pipe_does_not_hang);
  test("disk full at every byte", check_full_disk);
  test("killed at every byte", check_kill_at_every_byte);
  test("the lock between processes", check_lock);
  test("the lock of a killed process", check_lock_of_the_killed);
}

#endif

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return obey(argv[1]);
  test("read_file", check_read_file);
  test("what read_file refuses", check_unreadable);
  test("make_folder", check_make_folder);
  test("write_file", check_write_file);
  test("old until the commit", check_commit);
  test("nothing without a commit", check_no_commit);
  test("relative paths", check_relative_paths);
  test("no text mode", check_no_text_mode);
  test("replaced while it is read", check_replaced_while_read);
  test("names in any language", check_unicode_names);
  test("unwritable places", check_unwritable);
  test("stale temporaries", check_stale_temporaries);
  test("other people's temporaries", check_other_temporaries_stay);
  test("two writers of one path", check_two_writers_of_one_path);
  test("a set of files", check_set);
  test("a set that is not committed", check_set_not_committed);
  test("a set that writes and removes", check_set_of_both);
  test("a set that cannot be written", check_set_refused);
  test("a set whose files others removed", check_set_removed_by_others);
  test("a set after one that is half replaced", check_set_after_another);
  test("a set with names outside its folder", check_set_outside);
  test("a reader does the rest", check_reader_settles);
  test("a reader waits", check_reader_waits);
  test("bad journals", check_bad_journals);
  test("sealed JSON: every flipped bit", check_sealed);
  test("a folder's lock", check_lock_twice);
  test("lines", check_lines);
  test("checksum", check_checksum);
  test("safetensors: written bytes", check_written_bytes);
  test("safetensors: round trip", check_round_trip);
  test("safetensors: copy refuses", check_copy_errors);
  test("safetensors: NaN and infinity", check_not_finite);
  test("safetensors: every prefix", check_prefixes);
  test("safetensors: every flipped bit", check_bit_flips);
  test("safetensors: header sizes", check_header_sizes);
  test("safetensors: bad layouts", check_bad_layouts);
  test("safetensors: overflowing shapes", check_overflowing_shapes);
  test("safetensors: bad fields", check_bad_fields);
  test("safetensors: bad headers", check_bad_headers);
  test("safetensors: many dimensions", check_many_dimensions);
  test("safetensors: F16, BF16 and others", check_narrow_types);
  test("safetensors: many names for one range", check_shared_range);
  test("safetensors: a foreign file", check_foreign_file);
  test("safetensors: a path of one letter", check_path_of_one_letter);
  test_system();
  return finish();
}
