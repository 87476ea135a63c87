#!/bin/sh
# Every option that breaks IEEE arithmetic is refused: by the compiler, or when an engine is made.
# What refuses stands in chapters 1 to 3, which are compiled alone, fourteen times.
#   sh tests/test_guards.sh COMPILER
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/main.cpp" <<'CPP'
#include "bert4rec.hpp"
#include <iostream>
int main() {
  try {
    bert4rec::check_arithmetic();
    return 0;
  } catch (const bert4rec::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
CPP
{
  sed '/^\/\/ 4  JSON$/,$d' "$here/bert4rec.hpp"
  echo "} // namespace bert4rec"
  echo "#endif"
} >"$work/bert4rec.hpp"
failed=0
build() { "$1" -std=c++20 -O2 $2 -I "$work" "$work/main.cpp" -o "$work/main" 2>"$work/log"; }

build "$1" "" && "$work/main" || { cat "$work/log"; echo "refused without an option"; exit 1; }
while read -r options; do
  if ! build "$1" "$options"; then
    if grep -qE 'bert4rec.hpp needs' "$work/log"; then
      echo "ok      $options: does not compile"
    else
      head -3 "$work/log"
      echo "FAILED  $options: fails for another reason" && failed=1
    fi
  elif grep -q 'is not supported' "$work/log"; then
    echo "skipped $options: $1 ignores it"
  elif "$work/main" 2>"$work/log"; then
    echo "FAILED  $options: computes without a word" && failed=1
  else
    echo "ok      $options: $(cut -d: -f2 "$work/log")"
  fi
done <<EOF
-ffast-math
-Ofast
-ffinite-math-only
-funsafe-math-optimizations
-fassociative-math -fno-signed-zeros -fno-trapping-math
-freciprocal-math
-fno-signed-zeros
-fsingle-precision-constant
EOF
for options in "-O0" "-O3 -march=native" "-ffp-contract=fast" "-ffp-contract=off" "-fno-math-errno"; do
  build "$1" "$options" && "$work/main" && echo "ok      $options: allowed" ||
    { echo "FAILED  $options: refused" && failed=1; }
done
exit $failed
