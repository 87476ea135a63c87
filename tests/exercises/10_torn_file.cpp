// Exercise 10: a torn file. Read before: chapter 5, TemporaryFile and AtomicFile. (For POSIX.)

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "../check.hpp"
#include "exercise.hpp"

using namespace bert4rec;

using NextPiece = std::function<std::string_view()>;  // an empty one: that was all

#ifdef SOLUTION
#include "solutions/10_torn_file.hpp"
#else
namespace mine {

// Replaces the file at `path` by one made of the pieces, such as a checkpoint by a newer one.
// Whoever is killed at any moment leaves the old file or the new one, whole. Throws, and leaves the
// old one, where the new one cannot be written.
void save(const Path& path, const NextPiece& next_piece) {
  std::ofstream file(path, std::ios::binary);
  for (std::string_view piece = next_piece(); !piece.empty(); piece = next_piece()) file << piece;
  file.close();
  require(!file.fail(), path, ": cannot write");
}

}  // namespace mine
#endif

// ---- The checks --------------------------------------------------------------------------------

namespace {

constexpr std::size_t pieces = 3, piece_size = 100'000;
const std::string old_bytes(250'000, 'o'), new_piece(piece_size, 'n');
const std::string new_bytes(pieces* piece_size, 'n');

// The new pieces, before number `end` of which something happens.
NextPiece pieces_until(std::size_t end, std::function<void()> happens) {
  return [=, number = std::size_t{0}]() mutable {
    if (number == end) happens();
    return number++ < pieces ? std::string_view(new_piece) : std::string_view();
  };
}

// In a process of its own, which begins with `before`; returns how it ended, as waitpid() says.
int save_in_child(const Path& path, const NextPiece& next_piece, void (*before)()) {
  const pid_t child = ::fork();
  if (child == 0) {
    before();
    try {
      mine::save(path, next_piece);
      ::_exit(0);
    } catch (...) {
      ::_exit(1);
    }
  }
  int status = 0;
  require(child > 0 && ::waitpid(child, &status, 0) == child, "cannot start a process");
  return status;
}

void check_killed(const Path& path, std::size_t end) {
  write_file(path, old_bytes);
  const auto die = [] { ::raise(SIGKILL); };
  const int status = save_in_child(path, pieces_until(end, die), [] {});
  require(WIFSIGNALED(status), "the save ended before it had asked for all pieces");
  require(path_exists(path), "a save was killed when ", end, " of ", pieces,
          " pieces were written, and left no file at all: expected the old one or the new one");
  const std::string found = read_file(path);
  require(found == old_bytes, "a save was killed when ", end, " of ", pieces,
          " pieces were written, and left a file of ", found.size(),
          " bytes where the old one had ", old_bytes.size(), " and the new one was to have ",
          new_bytes.size(), ": expected one of the two, and have neither.");
}

// A disk with room for half of the file.
void check_full_disk(const Path& path) {
  write_file(path, old_bytes);
  const int status = save_in_child(path, pieces_until(pieces + 1, [] {}), [] {
    const rlimit room{new_bytes.size() / 2, new_bytes.size() / 2};
    static_cast<void>(::setrlimit(RLIMIT_FSIZE, &room));
    static_cast<void>(::signal(SIGXFSZ, SIG_IGN));
  });
  require(read_file(path) == old_bytes,
          "the disk was full, and the old file is gone: look whether ",
          "all was written before the new file takes its name");
  require(WIFEXITED(status) && WEXITSTATUS(status) == 1,
          "the disk was full, and save() did not throw: nobody learns that there is no new file");
}

}  // namespace

int main() {
  return run_exercise([] {
    const TemporaryFolder folder;
    const Path path = folder / "model";
    for (const std::size_t end : {2u, 0u, 1u, 3u}) check_killed(path, end);
    check_full_disk(path);
    mine::save(path, pieces_until(pieces + 1, [] {}));
    require(read_file(path) == new_bytes, "a save that nobody disturbed left ", file_size(path),
            " bytes, expected the ", new_bytes.size(), " of the new file");
    return "the new file takes the name when it is whole: whoever is killed leaves one of the two";
  });
}
