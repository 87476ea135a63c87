// Counts what a program asks of the system while its main() runs, and lets one call fail. Linux.
//   LD_PRELOAD=libfaults.so FAULT_CALL=write FAULT_AT=3 FAULT_ACTION=fail train_model ...
//
// FAULT_CALL    which calls count: write fsync rename open read mkdir remove stat malloc, or any:
//               all but malloc, read and stat, hence those between which a folder changes
// FAULT_AT      the call to disturb, counting from 1; 0: none
// FAULT_ACTION  fail: it fails, as on a full or broken disk, or without memory
//               stay: so do all after it
//               short: a write writes half (at least a byte); other calls fail
//               kill: SIGKILL instead of the call
//               torn: the same, but after half of a write
// FAULT_COUNT   a file to be told how many calls there were, once main() has returned
//
// Writes, reads and flushes count where they concern files or folders, not sockets, pipes or the
// standard output. (What the C library calls inside itself does not come by here; so fopen, opendir
// and remove stand here beside what they call.)

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
// The C library's own, which cannot be looked up without allocating.
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
}

namespace {

enum class Fate { go_on, fail, half, kill, torn };

std::atomic<bool> in_main{false};
std::atomic<long> calls{0};
const char *chosen = "", *action = "";
long chosen_call = 0;

bool same(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

bool counts(const char* kind) {
  if (same(chosen, kind)) return true;
  return same(chosen, "any") && !same(kind, "malloc") && !same(kind, "read") && !same(kind, "stat");
}

[[noreturn]] void die() {
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

Fate next_fate(const char* kind) {
  if (!in_main || !counts(kind)) return Fate::go_on;
  const long call = ++calls;
  if (same(action, "stay"))
    return chosen_call > 0 && call >= chosen_call ? Fate::fail : Fate::go_on;
  if (call != chosen_call) return Fate::go_on;
  if (same(action, "short")) return Fate::half;
  if (same(action, "kill")) die();
  return same(action, "torn") ? Fate::torn : Fate::fail;
}

// For calls that cannot be done by halves: true if it is to fail, with that reason.
bool fails(const char* kind, int reason) {
  const Fate fate = next_fate(kind);
  if (fate == Fate::go_on) return false;
  if (fate == Fate::torn) die();
  errno = reason;
  return true;
}

bool on_disk(int file) {
  struct stat facts {};
  const int before = errno;
  const bool known = file > 2 && ::fstatat(file, "", &facts, AT_EMPTY_PATH) == 0;
  errno = before;
  return known && (S_ISREG(facts.st_mode) || S_ISDIR(facts.st_mode));
}

// The function of that name that this library stands before.
template <class Function>
Function* real(Function*, const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}
#define REAL(name) static const auto real_##name = real(::name, #name)

using Main = int(int, char**, char**);
Main* program_main = nullptr;

void report() {
  const char* const path = std::getenv("FAULT_COUNT");
  if (path == nullptr) return;
  std::FILE* const file = std::fopen(path, "w");
  if (file == nullptr) return;
  std::fprintf(file, "%ld\n", calls.load());
  std::fclose(file);
}

int counted_main(int argc, char** argv, char** environment) {
  const auto setting = [](const char* name) {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  chosen = setting("FAULT_CALL");
  action = setting("FAULT_ACTION");
  chosen_call = std::atol(setting("FAULT_AT"));
  ::alarm(30);  // a program that hangs is killed too
  in_main = true;
  const int code = program_main(argc, argv, environment);
  in_main = false;
  report();
  return code;
}

mode_t mode_of(int flags, va_list& rest) {
  return (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
}

}  // namespace

extern "C" {

int __libc_start_main(Main* main, int argc, char** argv, void (*init)(), void (*fini)(),
                      void (*loader_fini)(), void* stack_end) {
  using Start = int(Main*, int, char**, void (*)(), void (*)(), void (*)(), void*);
  const auto start = reinterpret_cast<Start*>(::dlsym(RTLD_NEXT, "__libc_start_main"));
  program_main = main;
  return start(counted_main, argc, argv, init, fini, loader_fini, stack_end);
}

// ---- Files --------------------------------------------------------------------------------------

ssize_t write(int file, const void* bytes, std::size_t size) {
  REAL(write);
  const Fate fate = on_disk(file) ? next_fate("write") : Fate::go_on;
  if (fate == Fate::go_on) return real_write(file, bytes, size);
  if (fate == Fate::fail || size < 2) return errno = ENOSPC, -1;
  const ssize_t written = real_write(file, bytes, size / 2);
  if (fate == Fate::torn) die();
  return written;
}

int fsync(int file) {
  REAL(fsync);
  return on_disk(file) && fails("fsync", EIO) ? -1 : real_fsync(file);
}

int fdatasync(int file) {
  REAL(fdatasync);
  return on_disk(file) && fails("fsync", EIO) ? -1 : real_fdatasync(file);
}

int rename(const char* from, const char* to) noexcept {
  REAL(rename);
  return fails("rename", EIO) ? -1 : real_rename(from, to);
}

int mkdir(const char* path, mode_t mode) noexcept {
  REAL(mkdir);
  return fails("mkdir", ENOSPC) ? -1 : real_mkdir(path, mode);
}

int remove(const char* path) noexcept {
  REAL(remove);
  return fails("remove", EACCES) ? -1 : real_remove(path);
}

int unlink(const char* path) noexcept {
  REAL(unlink);
  return fails("remove", EACCES) ? -1 : real_unlink(path);
}

int unlinkat(int folder, const char* path, int flags) noexcept {
  REAL(unlinkat);
  return fails("remove", EACCES) ? -1 : real_unlinkat(folder, path, flags);
}

int rmdir(const char* path) noexcept {
  REAL(rmdir);
  return fails("remove", EACCES) ? -1 : real_rmdir(path);
}

int open(const char* path, int flags, ...) {
  REAL(open);
  std::va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return fails("open", EMFILE) ? -1 : real_open(path, flags, mode);
}

int openat(int folder, const char* path, int flags, ...) {
  REAL(openat);
  std::va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return fails("open", EMFILE) ? -1 : real_openat(folder, path, flags, mode);
}

std::FILE* fopen(const char* path, const char* mode) {
  REAL(fopen);
  return fails("open", EMFILE) ? nullptr : real_fopen(path, mode);
}

DIR* opendir(const char* path) {
  REAL(opendir);
  return fails("open", EMFILE) ? nullptr : real_opendir(path);
}

ssize_t read(int file, void* bytes, std::size_t size) {
  REAL(read);
  return on_disk(file) && fails("read", EIO) ? -1 : real_read(file, bytes, size);
}

dirent* readdir(DIR* folder) {
  REAL(readdir);
  return fails("read", EIO) ? nullptr : real_readdir(folder);
}

int stat(const char* path, struct stat* facts) noexcept {
  static const auto real_stat = real<int(const char*, struct stat*) noexcept>(nullptr, "stat");
  return fails("stat", EIO) ? -1 : real_stat(path, facts);
}

int lstat(const char* path, struct stat* facts) noexcept {
  REAL(lstat);
  return fails("stat", EIO) ? -1 : real_lstat(path, facts);
}

int fstat(int file, struct stat* facts) noexcept {
  REAL(fstat);
  return fails("stat", EIO) ? -1 : real_fstat(file, facts);
}

// ---- The same under the names for large files, which here are all files -------------------------

int open64(const char* path, int flags, ...) {
  std::va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return open(path, flags, mode);
}

int openat64(int folder, const char* path, int flags, ...) {
  std::va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return openat(folder, path, flags, mode);
}

std::FILE* fopen64(const char* path, const char* mode) { return fopen(path, mode); }

int fstat64(int file, struct stat64* facts) noexcept {
  return fstat(file, reinterpret_cast<struct stat*>(facts));
}

// ---- Memory -------------------------------------------------------------------------------------

void* malloc(std::size_t size) noexcept {
  return fails("malloc", ENOMEM) ? nullptr : __libc_malloc(size);
}

void* calloc(std::size_t count, std::size_t size) noexcept {
  return fails("malloc", ENOMEM) ? nullptr : __libc_calloc(count, size);
}

void* realloc(void* old, std::size_t size) noexcept {
  return fails("malloc", ENOMEM) ? nullptr : __libc_realloc(old, size);
}

void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return fails("malloc", ENOMEM) ? nullptr : __libc_memalign(alignment, size);
}

void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return memalign(alignment, size);
}

int posix_memalign(void** place, std::size_t alignment, std::size_t size) noexcept {
  void* const found = memalign(alignment, size);
  if (found != nullptr) *place = found;
  return found != nullptr ? 0 : ENOMEM;
}

}  // extern "C"
