#!/bin/sh
# Installs what is missing of: a C++ compiler, CMake, and the development packages of libcurl and stb
# (for the tools that fetch and draw). Without the right to install, prints the command to type.
# With `--tests`, also what tests/run.sh uses: Ninja, MPI, and clang with its library, libFuzzer and
# the sanitizers; with `--everywhere` besides these the cross compilers, emulators and the browser of
# tests/run.sh everywhere.
set -eu

packages=
need() { packages="$packages $1"; }
command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 || need g++
command -v cmake >/dev/null 2>&1 || need cmake
command -v make >/dev/null 2>&1 || command -v ninja >/dev/null 2>&1 || need make
[ -f /usr/include/stb/stb_image_write.h ] || need libstb-dev
[ -n "$(ls /usr/include/curl/curl.h /usr/include/*/curl/curl.h 2>/dev/null)" ] ||
  need libcurl4-openssl-dev
if [ "${1:-}" = --tests ] || [ "${1:-}" = --everywhere ]; then
  command -v g++ >/dev/null 2>&1 || need g++
  command -v clang++ >/dev/null 2>&1 || need clang
  command -v ninja >/dev/null 2>&1 || need ninja-build
  command -v mpicxx >/dev/null 2>&1 && command -v mpirun >/dev/null 2>&1 ||
    need "libopenmpi-dev openmpi-bin"
  echo '#include <vector>' | clang++ -stdlib=libc++ -fsyntax-only -x c++ - 2>/dev/null ||
    need "libc++-dev libc++abi-dev"
  echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
    clang++ -fsanitize=fuzzer -x c++ - -o /dev/null 2>/dev/null || need libclang-rt-dev
fi
if [ "${1:-}" = --everywhere ]; then
  command -v aarch64-linux-gnu-g++ >/dev/null 2>&1 || need g++-aarch64-linux-gnu
  command -v qemu-aarch64 >/dev/null 2>&1 || need qemu-user
  command -v x86_64-w64-mingw32-g++-posix >/dev/null 2>&1 || need g++-mingw-w64-x86-64-posix
  command -v node >/dev/null 2>&1 || need nodejs
  command -v chromium >/dev/null 2>&1 || [ ! -f /etc/debian_version ] ||
    grep -q ubuntu /etc/os-release || need chromium # Ubuntu has it as a snap alone
  command -v wine64 >/dev/null 2>&1 || [ -x /usr/lib/wine/wine64 ] || need "wine wine64"
fi
[ -n "$packages" ] || exit 0

install="apt-get update && apt-get install -y --no-install-recommends$packages"
if ! command -v apt-get >/dev/null 2>&1; then
  echo "please install:$packages (or what your system calls them), and run this again" >&2
  exit 1
elif [ "$(id -u)" = 0 ]; then
  echo "installing:$packages"
  DEBIAN_FRONTEND=noninteractive sh -c "$install" >/tmp/bert4rec-install.log 2>&1 || {
    tail -5 /tmp/bert4rec-install.log >&2
    echo "could not install; the command was: $install" >&2
    exit 1
  }
elif sudo -n true 2>/dev/null; then
  echo "installing:$packages"
  sudo DEBIAN_FRONTEND=noninteractive sh -c "$install" >/dev/null
else
  echo "please type, and run this again:  sudo sh -c '$install'" >&2
  exit 1
fi
