#!/bin/sh
# Each exercise fails as it stands, with the sentence that its README shows, and is mended by its
# solution; and the README names each.
#   sh tests/test_exercises.sh FOLDER_OF_THE_BINARIES COMPILER [FLAGS]
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
built=$(cd "$1" && pwd)
export CXX="$2" ENGINE="$built/libengine.a"
flags="${3:-} -O1 -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here/tests/exercises"
failed=0
bad() { echo "FAILED  $1" && failed=1; }

# The README in one line, without the marks of quotations.
sed 's/^> *//' README.md | tr '\n' ' ' >"$work/readme"

echo "as they stand"
BUILD="$work/open" CXXFLAGS="$flags" sh check.sh >"$work/log" && bad "mended as they stand"
cat "$work/log"
[ "$(tail -1 "$work/log")" = "0 of 10 mended" ] || bad "expected 0 of 10"
for source in [0-9]*.cpp; do
  name=${source%.cpp}
  says=$(sed -n "s/^$name: \(not yet: .*\)/\1/p" "$work/log")
  [ -n "$says" ] || { bad "$name does not say what is wrong"; continue; }
  grep -qF -- "$says" "$work/readme" || bad "$name: README.md does not show what it says"
  grep -qF "\`$source\`" README.md && grep -qF "(solutions/$name.hpp)" README.md ||
    bad "$name: README.md does not name it and its solution"
done

echo "with the solutions"
BUILD="$work/solved" CXXFLAGS="$flags -DSOLUTION" sh check.sh >"$work/log" || bad "not all mended"
cat "$work/log"
[ "$(grep -c '^[0-9a-z_]*: mended: ' "$work/log")" = 10 ] || bad "expected ten lines"
[ "$failed" = 0 ] && echo "all passed"
exit $failed
