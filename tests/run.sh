#!/bin/sh
# All tests, from a fresh checkout: with g++; with clang++ and its library; under AddressSanitizer
# and UndefinedBehaviorSanitizer; the threaded ones under ThreadSanitizer; and the fuzz targets.
#
#   sh tests/run.sh              all that needs nothing unusual (30 minutes on two cores)
#   sh tests/run.sh quick        only the plain build with the default compiler
#   sh tests/run.sh fuzz [SECONDS]  the fuzz targets of tests/fuzz with clang++, each for so long (10)
#   sh tests/run.sh everywhere   the same bits with other compilers and options, on AArch64 (qemu) and
#                                on Windows (Wine), and faults planted in the kernels of the GPU:
#                                installs what that takes (20 minutes)
set -eu
cd "$(dirname "$0")/.."
jobs=$(getconf _NPROCESSORS_ONLN)

# suite NAME COMPILER SANITIZERS SELECTION TARGETS [OPTIONS]: builds in build/NAME (all, or the
# targets given) and runs the tests that the selection, arguments of ctest, leaves. Most are compiled
# as one program, in a third of the time.
suite() {
  echo "== $1"
  if [ ! -f "build/$1/build.ninja" ]; then rm -rf "build/$1"; fi  # of another generator
  cmake -G Ninja -S . -B "build/$1" -DBERT4REC_TESTS=ON -DCMAKE_CXX_COMPILER="$2" \
    -DBERT4REC_SANITIZE="$3" -DBERT4REC_JOIN_TESTS=ON ${6:-} >/dev/null
  began=$(date +%s)
  cmake --build "build/$1" -j "$jobs" $5 >"build/$1/build.log" 2>&1 || {
    tail -40 "build/$1/build.log"
    exit 1
  }
  echo "built in $(($(date +%s) - began)) s"
  (cd "build/$1" && ctest --output-on-failure -j "$jobs" $4)
}

# warnings FOLDER: only the warnings of its compiler about the tools, by its compile_commands.json.
warnings() {
  sed -n 's/^ *"command": "\(.*\)",$/\1 -fsyntax-only/p' "$1/compile_commands.json" |
    sed -n 's/\\"/"/g; /_plain\.dir/!{ /\/tools\/[^ ]*\.cpp -fsyntax-only$/p; }' |
    tr '\n' '\0' | xargs -0 -P "$jobs" -n 1 sh -c
}

# same_bits COMPILER OPTION...: the golden checksums, compiled by themselves; for another processor
# more tests, which share an engine.
same_bits() {
  label=$* name=$(echo "$*" | tr -c 'a-zA-Z0-9+\n' _)
  tests=golden runner= engine=
  case $1 in
    aarch64-*)
      tests="golden kernels random numbers threads" runner=qemu-aarch64
      engine=build/everywhere/$name-engine.o
      "$@" -std=c++20 -pthread -I . -c tools/common/engine.cpp -o "$engine"
      set -- "$@" -DBERT4REC_EXTERN
      ;;
  esac
  for test in $tests; do
    program=build/everywhere/$name-$test
    "$@" -std=c++20 -pthread -I . -I tests "tests/test_$test.cpp" $engine -o "$program"
    $runner "$program" >"$program.log" 2>&1 || { cat "$program.log"; exit 255; }
    echo "$label: $test: $(tail -1 "$program.log")"
  done
}

everywhere() {
  sh tools/install_dependencies.sh --everywhere
  mkdir -p build/everywhere
  xargs -P "$jobs" -L 1 sh tests/run.sh same-bits <<EOF
aarch64-linux-gnu-g++ -O2 -static
clang++ -O1 -DBERT4REC_PORTABLE
clang++ -O0
g++ -O0
g++ -O3
g++ -O3 -march=native
g++ -O2 -march=native -ffp-contract=off
clang++ -O3 -march=native -ffp-contract=fast
EOF
  sh tests/cuda/planted.sh
  if [ -x build/g++/explain ]; then  # once more, with a browser
    echo "== a page in Chromium"
    sh tests/test_explain.sh build/g++ build/everywhere/pages
  fi
  echo "== Windows"
  cmake -S . -B build/windows -DCMAKE_TOOLCHAIN_FILE=tests/toolchains/mingw.cmake \
    -DBERT4REC_TESTS=ON -DBERT4REC_JOIN_TESTS=ON >/dev/null
  cmake --build build/windows -j "$jobs" >build/windows/build.log 2>&1 || {
    tail -40 build/windows/build.log
    exit 1
  }
  (cd build/windows && ctest --output-on-failure -j "$jobs")
}

# fuzz_target NAME SECONDS: builds a fuzz target and runs it from its kept corpus and from what our
# writers write today; of a finding, the last lines and where its input lies.
fuzz_target() {
  program=build/fuzz/$1
  $fuzz_compiler,fuzzer "tests/fuzz/fuzz_$1.cpp" build/fuzz/engine.o -o "$program"
  rm -rf "$program.corpus"
  mkdir -p "$program.corpus"
  for corpus in "tests/fuzz/corpus/$1" "build/fuzz/written/$1"; do
    if [ -d "$corpus" ]; then cp "$corpus"/* "$program.corpus"; fi
  done
  TMPDIR=$scratch "$program" "$program.corpus" -max_total_time="$2" -timeout=10 \
    -malloc_limit_mb=100 -rss_limit_mb=1000 -dict=tests/fuzz/words.dict -print_final_stats=1 \
    -artifact_prefix="$program-" >"$program.log" 2>&1 || {
    tail -60 "$program.log"
    echo "fuzz $1: FINDING: $(sed -n 's/.*Test unit written to //p' "$program.log")"
    exit 255
  }
  count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$program.log")
  echo "fuzz $1: $count executions, no finding"
}

fuzz() {
  echo "== fuzz"
  mkdir -p build/fuzz
  echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
    clang++ -fsanitize=fuzzer -x c++ - -o build/fuzz/probe 2>/dev/null || {
    echo "this clang++ has no libFuzzer (on Debian: the package libclang-rt-14-dev)" >&2
    exit 1
  }
  fuzz_compiler="clang++ -std=c++20 -O1 -g1 -pthread -I . -I tools -DBERT4REC_EXTERN
    -fno-sanitize-recover=all -fsanitize=address,undefined"
  # In memory where that can be: the targets write a file for each input.
  scratch=$(TMPDIR=/dev/shm mktemp -d 2>/dev/null || mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  export fuzz_compiler scratch
  $fuzz_compiler,fuzzer-no-link -UBERT4REC_EXTERN -c tools/common/engine.cpp -o build/fuzz/engine.o
  $fuzz_compiler,fuzzer-no-link tests/fuzz/make_corpus.cpp build/fuzz/engine.o \
    -o build/fuzz/make_corpus
  rm -rf build/fuzz/written
  TMPDIR=$scratch build/fuzz/make_corpus build/fuzz/written
  ls tests/fuzz/fuzz_*.cpp | sed "s/.*fuzz_\\(.*\\)\\.cpp/fuzz-target \\1 $1/" |
    xargs -P "$jobs" -L 1 sh tests/run.sh
}

case ${1:-} in
  fuzz-target)
    fuzz_target "$2" "$3"
    exit
    ;;
  same-bits)
    shift
    same_bits "$@"
    exit
    ;;
  everywhere)
    everywhere
    exit
    ;;
esac
sh tools/install_dependencies.sh --tests
if [ "${1:-}" = fuzz ]; then
  fuzz "${2:-10}"
  exit
fi
if [ "${1:-}" = quick ]; then
  suite quick "${CXX:-c++}" "" "" ""
  exit
fi
# The slow ones, which are scripts, with g++ alone; clang++ only looks for warnings in the tools. The
# emulated GPU not with clang++ too, gradients (in double, on one thread) under no sanitizer.
suite g++ g++ "" "" ""
some="--target import_interactions audit_dataset all_tests"
export CXXFLAGS=-stdlib=libc++
suite clang++ clang++ "" "-E anilist|consumer|cuda|exercises|explain|tools|faults" \
  "$some" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
unset CXXFLAGS
warnings build/clang++
suite address clang++ address,undefined \
  "-E anilist|consumer|exercises|explain|gradients|tools|guards" "$some test_cuda"
suite thread g++ thread "-R test_threads" "--target test_threads test_trainer test_vectors" \
  -DBERT4REC_JOIN_TESTS=OFF
CHECK_ONLY="on 1, 2, 3 threads" build/thread/test_trainer # all of it takes seven minutes there
CHECK_ONLY="many threads at once" build/thread/test_vectors # who all ask one Recommender
fuzz 10
