#!/bin/sh
# The library in other hands: add_subdirectory, FetchContent, install and find_package; the tools
# installed; and the README's example, compiled as it stands and run.
#   sh tests/test_consumer.sh FOLDER_OF_THE_BINARIES COMPILER [FLAGS]
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
built=$(cd "$1" && pwd)
export CXX="$2" CXXFLAGS="${3:-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# consumer NAME OPTIONS...: builds and runs the project that uses the library.
consumer() {
  name=$1
  shift
  cmake -S "$here/tests/consumer" -B "$name" "$@" >log && cmake --build "$name" >>log ||
    { cat log; exit 1; }
  "$name/consumer"
}

echo "add_subdirectory"
consumer sub -DBERT4REC_SOURCE="$here"

echo "FetchContent"
if command -v git >/dev/null; then
  mkdir repository
  cp "$here/CMakeLists.txt" "$here/bert4rec.hpp" repository
  tag=$(sed -n 's/.* GIT_TAG \(.*\))$/\1/p' "$here/tests/consumer/CMakeLists.txt")
  (cd repository && git init -q && git add . && git -c user.name=t -c user.email=t commit -qm t &&
    git tag "$tag")
  consumer fetched -DBERT4REC_REPOSITORY="file://$work/repository"
else
  consumer fetched -DBERT4REC_REPOSITORY=nowhere -DFETCHCONTENT_SOURCE_DIR_BERT4REC="$here"
fi

echo "install and find_package, where there is neither stb nor libcurl"
stb=$(sed -n 's/^STB_FOLDER:PATH=//p' "$built/CMakeCache.txt")
without="-DCMAKE_DISABLE_FIND_PACKAGE_CURL=ON -DCMAKE_IGNORE_PATH=$stb"
cmake -S "$here" -B with_tools $without >log 2>&1 && { echo "stb is not hidden"; exit 1; }
grep -q "stb_image_write.h is missing" log
cmake -S "$here" -B build -DBERT4REC_TOOLS=OFF -DCMAKE_INSTALL_PREFIX="$work/prefix" $without \
  >log 2>&1 || { cat log; exit 1; }
grep -E '^(STB_FOLDER|CURL|NVCC)' build/CMakeCache.txt && { echo "more was looked for"; exit 1; }
cmake --install build >>log
[ ! -e prefix/bin ]
consumer found -DCMAKE_PREFIX_PATH="$work/prefix"

echo "tools without libcurl: all but those of AniList"
cmake -S "$here" -B no_curl -DBERT4REC_CUDA=OFF -DCMAKE_DISABLE_FIND_PACKAGE_CURL=ON >log
grep -q "no libcurl: without prepare_dataset, load_users and recommend --anilist" log
cmake --build no_curl --target help >log
grep -q recommend log
! grep -q prepare_dataset log || { echo "prepare_dataset without libcurl"; exit 1; }

echo "installed tools"
cmake --install "$built" --prefix "$work/tools" >log
for source in "$here"/tools/*.cpp "$here"/tools/benchmark/*.cpp "$here"/tools/studies/*.cpp; do
  name=$(basename "$source" .cpp)
  "tools/bin/$name" --version | grep -q "^$name (bert4rec.hpp) [0-9]"
done
tools/bin/audit_dataset --data "$here/data/demo" >log
cmake -S "$here/tests/consumer" -B beside_tools -DCMAKE_PREFIX_PATH="$work/tools" >log

echo "the examples of the READMEs, and the first of them in the header"
awk '/^```/ { n += inside = $0 == "```cpp"; next } inside { print >("example" n ".cpp") }' \
  "$here/README.md" "$here/tools/README.md"
mv example1.cpp example.cpp
sed -n 's/^\/\/     //p' "$here/bert4rec.hpp" | sed -n '/^#include "bert4rec/,/^}/p' >header.cpp
diff example.cpp header.cpp
"$CXX" $CXXFLAGS -std=c++20 -O2 -pthread -I "$here" example.cpp -o example
for example in example[2-9].cpp; do
  "$CXX" $CXXFLAGS -std=c++20 -fsyntax-only -I "$here" $example
done

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
cp -r data/demo "$work/elsewhere"
cd "$work" # from any folder with any data; what is wrong is said in a line
./example elsewhere >picks 2>progress || { cat progress; exit 1; }
[ "$(wc -l <picks)" = 10 ] && [ "$(wc -l <progress)" = 8 ]
if ./example nowhere >picks 2>progress; then exit 1; fi
[ "$(cat progress)" = "nowhere/items.jsonl: cannot open: No such file or directory" ] ||
  { cat progress; exit 1; }
echo "all passed"
