# What test_tools.sh and test_import.sh share, to be read by them: the programs in $bin, a folder of
# their own that goes with them, and checks that count.
here=$(cd "$(dirname "$0")/.." && pwd)
bin=$(cd "$1" && pwd) || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
passed=0 failed=0

ok() { passed=$((passed + 1)); }
bad() {
  failed=$((failed + 1))
  echo "FAILED: $1"
  sed 's/^/    /' out err 2>/dev/null | head -20
}

# expect CODE TEXT COMMAND...: the exit code, and TEXT in what was printed; on failure (code 1 or 2)
# also that stderr is one line.
expect() {
  code=$1 text=$2
  shift 2
  "$@" >out 2>err </dev/null
  found=$?
  if [ "$found" != "$code" ]; then bad "$* : exit $found, expected $code"; return; fi
  if [ -n "$text" ] && ! cat out err | grep -qF -- "$text"; then bad "$* : lacks \"$text\""; return; fi
  case $code in 1 | 2) [ "$(wc -l <err)" = 1 ] || { bad "$* : not one line"; return; } ;; esac
  ok
}
