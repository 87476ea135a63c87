#!/bin/sh
# The library in other hands: add_subdirectory, install and find_package, and the README's example,
# compiled as it stands and run.
#   sh tests/test_consumer.sh COMPILER [FLAGS]
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
export CXX="$1" CXXFLAGS="${2:-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

echo "add_subdirectory"
cmake -S "$here/tests/consumer" -B sub -DBERT4REC_SOURCE="$here" >log
cmake --build sub >>log || { cat log; exit 1; }
sub/consumer

echo "install and find_package"
cmake -S "$here" -B build -DCMAKE_INSTALL_PREFIX="$work/prefix" >log
cmake --install build >>log
cmake -S "$here/tests/consumer" -B found -DCMAKE_PREFIX_PATH="$work/prefix" >>log
cmake --build found >>log || { cat log; exit 1; }
found/consumer

echo "the examples of the README, and the first of them in the header"
awk '/^```/ { n += inside = $0 == "```cpp"; next } inside { print >("example" n ".cpp") }' \
  "$here/README.md"
mv example1.cpp example.cpp
sed -n 's/^\/\/     //p' "$here/bert4rec.hpp" | sed -n '/^#include "bert4rec/,/^}/p' >header.cpp
diff example.cpp header.cpp
"$CXX" $CXXFLAGS -std=c++20 -O2 -pthread -I "$here" example.cpp -o example
"$CXX" $CXXFLAGS -std=c++20 -fsyntax-only -I "$here" example2.cpp

echo "in standard C++ where it is asked for, or where the compiler is neither GCC nor Clang"
strict="$CXX $CXXFLAGS -std=c++20 -pedantic-errors -fsyntax-only"
$strict -DBERT4REC_PORTABLE -I "$here" example.cpp
{ # The includes first, since the system's own headers need what is taken away after them; but not
  # arm_neon.h, which is an extension.
  sed -n '/arm_neon/!s/^#include \(<.*>\)$/#if __has_include(\1)\n#include \1\n#endif/p' \
    "$here/bert4rec.hpp" example.cpp
  echo "#undef __GNUC__"
  echo "#pragma GCC poison __attribute__ asm __asm__ __extension__ __builtin_ia32_pause"
  cat example.cpp
} >other.cpp
$strict -I "$here" other.cpp

cd "$here"
"$work/example" >"$work/picks" 2>&1 || { cat "$work/picks"; exit 1; }
[ "$(wc -l <"$work/picks")" = 10 ]
echo "all passed"
