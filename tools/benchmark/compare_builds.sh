#!/bin/sh
# Does the speed depend on compiler flags or threads, and what does the header cost to compile?
#
#   sh tools/benchmark/compare_builds.sh [ROUNDS] [SHAPES]      (5, seed,ml-1m)
#
# Prints the processor seconds to compile the header (target: below 4); ratios of the times of -O2
# and -O3 -march=native, and of one thread and two, measured in turns; and the times to import
# (target: 1.5 s) and to load (0.2 s) a data set of the size of MovieLens-1M. CXX chooses the
# compiler, SECONDS_EACH (3) the length of a measurement.
set -eu
cd "$(dirname "$0")/../.."
rounds=${1:-5} shapes=${2:-seed,ml-1m} seconds=${SECONDS_EACH:-3}
cxx=${CXX:-c++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# seconds_of COMMAND...: processor time, which others on the machine do not change
seconds_of() {
  sh -c '"$@" && times' sh "$@" | awk 'END { split($1, user, /[ms]/); split($2, sys, /[ms]/)
    printf "%.2f\n", 60 * user[1] + user[2] + 60 * sys[1] + sys[2] }'
}
compile() { "$cxx" -std=c++20 $1 -pthread -I . -I tools "tools/$2.cpp" -o "$3"; }
# medians PROGRAM THREADS: lines `shape milliseconds`
medians() {
  "$1" --json --shape "$shapes" --seconds "$seconds" --threads "$2" |
    sed -n 's/^    "\([^"]*\)": {$/\1/p; s/^ *"median": \([0-9.]*\),$/\1/p' | paste -d ' ' - -
}
# ratio LEFT RIGHT: from lines `shape milliseconds` of two files in the same order, the median and
# the range of LEFT / RIGHT for each shape
ratio() {
  paste -d ' ' "$1" "$2" | awk '{ printf "%s %.4f\n", $1, $2 / $4 }' | sort -k1,1 -k2,2n |
    awk '
      function show() {
        if (n) printf "  %-12s %.2f  (%.2f ... %.2f, %d rounds)\n", shape, middle(), r[1], r[n], n
      }
      function middle() { return (r[int((n + 1) / 2)] + r[int(n / 2) + 1]) / 2 }
      $1 != shape { show(); shape = $1; n = 0 }
      { r[++n] = $2 }
      END { show() }'
}

echo '#include "bert4rec.hpp"' >"$work/include.cpp"
printf 'compiling #include "bert4rec.hpp" at -O2: '
seconds_of "$cxx" -std=c++20 -O2 -I . -c "$work/include.cpp" -o "$work/include.o"
compile -O2 benchmark/benchmark "$work/benchmark"
compile -O2 import_interactions "$work/import_interactions"
compile "-O3 -march=native" benchmark/benchmark "$work/native"

round=0
while [ $round -lt "$rounds" ]; do
  medians "$work/benchmark" 2 >>"$work/two"
  medians "$work/native" 2 >>"$work/native_two"
  medians "$work/benchmark" 1 >>"$work/one"
  round=$((round + 1))
done
echo "time at -O2 / time at -O3 -march=native:"
ratio "$work/two" "$work/native_two"
echo "time on one thread / time on two:"
ratio "$work/one" "$work/two"
"$work/benchmark" --shape load --seconds "$seconds"
