#!/bin/sh
# Builds the exercises and runs them: which are mended, and what is wrong with the others.
#   sh tests/exercises/check.sh             all ten
#   sh tests/exercises/check.sh 3 7         these
# Ends with 0 if all that were asked for are mended. From the environment: CXX, the compiler (c++),
# and CXXFLAGS, its options (-O1 -Wall -Wextra); -DSOLUTION takes the solutions instead of yours.
# tests/test_exercises.sh also gives ENGINE, a compiled tools/common/engine.cpp, and BUILD, where
# the programs go (build/exercises).
set -eu
cd "$(dirname "$0")/../.."
build=${BUILD:-build/exercises}
engine=${ENGINE:-$build/engine.o}
compile="${CXX:-c++} -std=c++20 -pthread -I . ${CXXFLAGS:--O1 -Wall -Wextra}"

# is_newer FILE OTHER...: whether FILE is there, and no other has been changed since.
is_newer() {
  file=$1
  shift
  [ -e "$file" ] && [ -z "$(find "$@" -newer "$file")" ]
}

# build_one NAME: by xargs, side by side. What the compiler says goes to NAME.log.
build_one() {
  source=tests/exercises/$1.cpp
  shared="tests/exercises/exercise.hpp tests/exercises/solutions tests/check.hpp"
  is_newer "$build/$1" "$source" "$engine" bert4rec.hpp $shared && return
  rm -f "$build/$1"
  $compile -DBERT4REC_EXTERN "$source" "$engine" -o "$build/$1" >"$build/$1.log" 2>&1 || true
}

if [ "${1:-}" = build ]; then
  build_one "$2"
  exit
fi

names=
[ $# -gt 0 ] || set -- 1 2 3 4 5 6 7 8 9 10
for number in "$@"; do
  for source in "tests/exercises/$number"_*.cpp "tests/exercises/0$number"_*.cpp; do
    [ -e "$source" ] && names="$names $(basename "$source" .cpp)" && continue 2
  done
  echo "usage: sh tests/exercises/check.sh [NUMBER...], of 1 to 10; got $number" >&2
  exit 2
done

mkdir -p "$build"
echo "$compile" | cmp -s - "$build/command" || rm -f "$build"/[0-9]*  # made with other options
echo "$compile" >"$build/command"
if [ -z "${ENGINE:-}" ] && ! is_newer "$engine" bert4rec.hpp; then
  echo "building the engine, once: half a minute"
  $compile -O2 -c tools/common/engine.cpp -o "$engine"
fi
printf '%s\n' $names |
  xargs -P "$(getconf _NPROCESSORS_ONLN)" -n 1 sh tests/exercises/check.sh build

mended=
for name in $names; do
  if [ ! -x "$build/$name" ]; then
    echo "$name: does not compile"
    head -20 "$build/$name.log"
  elif "$build/$name" >"$build/$name.out" 2>&1; then
    echo "$name: $(cat "$build/$name.out")"
    mended="$mended $name"
  else
    code=$?
    echo "$name: $(cat "$build/$name.out")"
    [ $code = 1 ] || echo "$name: crashed (exit code $code)"
  fi
done
echo "$(echo $mended | wc -w) of $(echo $names | wc -w) mended"
[ "$(echo $mended)" = "$(echo $names)" ]
