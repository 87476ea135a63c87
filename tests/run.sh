#!/bin/sh
# All tests, from a fresh checkout: plain with g++ and clang++, some with clang++ and its own
# library (as on macOS), under AddressSanitizer with UndefinedBehaviorSanitizer, and the threaded
# ones under ThreadSanitizer.
#
#   sh tests/run.sh           everything (about a quarter of an hour on two cores)
#   sh tests/run.sh quick     only the plain build with the default compiler
set -eu
cd "$(dirname "$0")/.."
sh tools/install_dependencies.sh --tests
jobs=$(getconf _NPROCESSORS_ONLN)

# suite NAME COMPILER SANITIZERS SELECTION TARGETS: builds in build/NAME (all, or the targets given)
# and runs the tests that the selection, arguments of ctest, leaves.
suite() {
  echo "== $1"
  cmake -S . -B "build/$1" -DBERT4REC_TESTS=ON -DCMAKE_CXX_COMPILER="$2" \
    -DBERT4REC_SANITIZE="$3" >/dev/null
  cmake --build "build/$1" -j "$jobs" $5 >"build/$1/build.log" 2>&1 || {
    tail -40 "build/$1/build.log"
    exit 1
  }
  (cd "build/$1" && ctest --output-on-failure -j "$jobs" $4)
}

if [ "${1:-}" = quick ]; then
  suite quick "${CXX:-c++}" "" "" ""
  exit
fi
# The slow ones less often: AniList (a minute of waiting) where memory is watched, consumers with
# g++, the tools not with clang++ too.
suite g++ g++ "" "-E anilist" ""
suite clang++ clang++ "" "-E anilist|consumer|tools" ""
export CXXFLAGS=-stdlib=libc++
suite libc++ clang++ "" "-R test_(numbers|json|evaluation|trainer|golden)" \
  "--target test_numbers test_json test_evaluation test_trainer test_golden"
unset CXXFLAGS
suite address g++ address,undefined "-E consumer" ""
suite thread g++ thread "-R test_(threads|trainer|gradients)" \
  "--target test_threads test_trainer test_gradients"
