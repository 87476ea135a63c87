#!/bin/sh
# tests/exercises/derivations.md against what it derives: each line of code that it quotes stands in
# a function that its section names, in one piece ("..." leaves some out); each function stands in
# the chapter that it says; each name and each test is there; and no backward of chapters 9 to 13 is
# missing. A function holds a backward if its name says so, if it takes a gradient (`Real* d...`),
# or if the comment above it speaks of one (dx = ...).
#   sh tests/test_derivations.sh
set -eu
cd "$(dirname "$0")/.."
page=tests/exercises/derivations.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

awk -v names="$work/names" '
function bad(what) { print "FAILED: " what; failed = 1 }
function stripped(line) { sub(/^ +/, "", line); return line }

# ---- The header: functions, their chapters, what each line belongs to ----
FNR == NR {
  text[FNR] = stripped($0)
  lines = FNR
  if ($0 ~ /^\/\/ [0-9A]+  [A-Z]/) chapter = $2
  if ($0 ~ /^(class|struct) [A-Za-z]+/ && $0 !~ /;$/) class_name = $2
  if ($0 ~ /^};/) class_name = ""
  if ($0 ~ /^ *\/\//) {
    comment = comment " " $0
  } else if ($0 ~ /^ *template / && $0 ~ />$/) {
    # stands between a comment and its function
  } else {
    indent = class_name == "" ? "" : "  "
    at = match($0, "^" indent "[A-Za-z].*[A-Za-z_0-9]\\(")
    if (at && $0 !~ /^ *(return|using|static_assert|extern|friend|if|for) ?/) {
      head = substr($0, 1, index($0, "(") - 1)
      sub(/.*[^A-Za-z_0-9]/, "", head)
      name = (class_name == "" ? "" : class_name "::") head
      exists[name, chapter] = 1
      known[name] = 1
      signature = $0
      open = 1
      said = comment
    } else if (open) {
      signature = signature " " $0
    }
    if (open && $0 ~ /[{;]$|}$/) {
      open = 0
      if (chapter >= 9 && chapter <= 13 &&
          (name ~ /backward|_gradients$/ || signature ~ /[(,] *Real\* d[a-z_]*[,)]/ ||
           said ~ /gradient|backward (of|alike)|[ ,]d[a-z]*(_[a-z]+)? \+?= /)) {
        if (!(name in needed)) needed_count++
        needed[name] = FNR
      }
    }
    comment = ""
  }
  owner[FNR] = name
  next
}

# ---- The page ----
/^## / {
  section = $0
  delete named
}
/^```cpp/ { quoting = 1; count = 0; next }
/^```/ {
  quoting = 0
  check_quote()
  next
}
quoting && $0 == "..." { check_quote(); next }
quoting { quote[++count] = stripped($0); quoted++; next }
/^    / { next }  # formulas
{ prose = prose " " $0 }
/^\*\*Header:\*\*/ { heading = 1; heads = "" }
/^(- )?\*\*(Header:|On paper.|Wrong.|Test.)\*\*/ { parts[section]++ }
heading {
  heads = heads " " $0
  if (heads ~ /\(chapter [0-9A]+\)\./) { heading = 0; check_heads() }
}

# The functions of a section: `name`, `name` (chapter 9), `name` (chapter 10).
function check_heads(    rest, token, waiting, i) {
  rest = heads
  sub(/\)\..*/, ")", rest)
  while (match(rest, /`[^`]*`|\(chapter [0-9A]+\)/)) {
    token = substr(rest, RSTART, RLENGTH)
    rest = substr(rest, RSTART + RLENGTH)
    if (token ~ /^`/) {
      waiting_name[++waiting] = substr(token, 2, length(token) - 2)
      continue
    }
    gsub(/[^0-9A]/, "", token)
    for (i = 1; i <= waiting; ++i) {
      if (!((waiting_name[i], token) in exists)) {
        bad(section ": chapter " token " has no function " waiting_name[i])
      }
      named[waiting_name[i]] = 1
      derived[waiting_name[i]] = 1
    }
    waiting = 0
  }
}

function check_quote(    i, j, there) {
  for (i = 1; i + count <= lines + 1 && count > 0; ++i) {
    for (j = 0; j < count && text[i + j] == quote[j + 1]; ++j) continue
    if (j == count) there = there " " owner[i]
    if (j == count && owner[i] in named) { count = 0; return }
  }
  if (count > 0 && there == "") bad(section ": the header has no such code: " quote[1])
  if (count > 0 && there != "") bad(section ": not of its functions, but of" there ": " quote[1])
  count = 0
}

END {
  for (section in parts) {
    if (parts[section] != 4) bad(section ": without header, check on paper, wrong version or test")
  }
  for (name in needed) {
    if (!(name in derived)) bad("bert4rec.hpp:" needed[name] ": " name " has no derivation")
  }
  # Lest a rule that finds nothing be content.
  if (needed_count < 30) bad("only " needed_count " functions with a backward were found")
  if (quoted < 40) bad("only " quoted " lines of code were found in the page")
  while (match(prose, /`[^`]*`/)) {
    token = substr(prose, RSTART + 1, RLENGTH - 2)
    prose = substr(prose, RSTART + RLENGTH)
    if (token ~ /::/ && !(token in known)) bad("the header has no " token)
    if (token ~ /^CHECK_ONLY=|^[A-Za-z_0-9.]+$/) print token >names
  }
  print needed_count " functions with a backward, " quoted " lines of code"
  exit failed
}
' bert4rec.hpp "$page" || failed=1

# What else the page names: tests, by TEXT of CHECK_ONLY, program and name; functions, tensors, ...
while IFS= read -r name; do
  case $name in
    CHECK_ONLY=*)
      text=$(echo "$name" | sed "s/^CHECK_ONLY=//; s/ build.*//; s/'//g")
      file=tests/${name##*[ /]}.cpp
      grep -qF -- "$text" "$file" || { echo "FAILED: $file has no test of $name" && failed=1; }
      ;;
    *)
      [ -f "tests/$name.cpp" ] || grep -qF -- "$name" bert4rec.hpp tests/*.cpp ||
        { echo "FAILED: nothing is called $name" && failed=1; }
      ;;
  esac
done <"$work/names"
echo "$(wc -l <"$work/names") names"
exit $failed
