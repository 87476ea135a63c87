#!/bin/sh
# The page of tools/explain: for four models of different kinds its file, its arithmetic against the
# library's (with Node.js) and the page in a browser (with Chromium); what is missing is said. And
# wrong input.
#   sh tests/test_explain.sh FOLDER_OF_THE_BINARIES [FOLDER for screenshots]
set -u
pictures=${2:+$(mkdir -p "$2" && cd "$2" && pwd)}
. "$(dirname "$0")/check.sh"
node=$(command -v node || command -v nodejs)
ln -s "$here/data" data

# page NAME OPTIONS...: trains a small model and writes and checks its page, NAME.html
page() {
  name=$1
  shift
  expect 0 "" "$bin/train_model" --data data/demo --output "$name" --hidden-size 32 --num-heads 2 \
    --max-seq-len 32 --epochs 3 --batch-size 16 --lr 0.003 --save-every 1 --quiet "$@"
  expect 0 "$name.html: " "$bin/explain" --model "$name/models" --user demo_0014 --output "$name.html"
  [ "$(wc -c <"$name.html")" -lt 2000000 ] && ok || bad "$name.html: 2 MB or more"
  # Nothing is fetched: no address but in the text of a quoted line.
  if grep -E '(src|href|action)="?(https?:|//)|url\(|@import|fetch\(|XMLHttp' "$name.html" >out; then
    bad "$name.html: fetches something"
  else ok; fi
  tail -1 "$name.html" | grep -q '</html>' && ok || bad "$name.html: has no end"
  grep -o ' id="[^"]*"' "$name.html" | sort | uniq -d >out
  [ ! -s out ] && ok || bad "$name.html: an id stands twice"
  grep -o 'href="#[^"]*"' "$name.html" | sort -u | sed 's/href="#/ id="/' >links
  while read -r id; do grep -q " $id" "$name.html" && ok || bad "no $id to go to"; done <links
  [ "$(wc -l <links)" -ge 9 ] && ok || bad "$name.html: fewer than nine links"
  [ -z "$node" ] || expect 0 "arithmetic" "$node" "$here/tests/explain_page.js" "$name.html" $pictures
}
page causal --objective causal
pictures= # one set is enough
page cloze
page paper --architecture paper --num-layers 3 --norm-epsilon 0.01
page one --architecture tied --objective causal --num-layers 1 --loss gbce --inner-size 48
[ -n "$node" ] || echo "no Node.js: the page's arithmetic was not compared, and it was not opened"
grep -q "no Chromium" out && cat out

# Titles that would end the script or are markup stay text.
mkdir evil
sed 's/"The [A-Z][a-z]* /"<\/script><b>\&amp; /' data/demo/items.jsonl >evil/items.jsonl
cp data/demo/histories.jsonl evil
expect 0 "" "$bin/train_model" --data evil --output ev --hidden-size 8 --num-heads 2 --epochs 1 --quiet
expect 0 "" "$bin/explain" --model ev/models --data evil --output ev.html
[ "$(grep -c '</script><b>' ev.html)" = 0 ] && ok || bad "a title ends the script"
[ -z "$node" ] || expect 0 "" "$node" "$here/tests/explain_page.js" ev.html

# A model that the page cannot carry is shown, and cannot be changed.
expect 0 "" "$bin/train_model" --data data/demo --output big --epochs 1 --hidden-size 256 --quiet
expect 0 "without the weights" "$bin/explain" --model big/models --output big.html
[ "$(wc -c <big.html)" -lt 2000000 ] && ok || bad "big.html: 2 MB or more"

# Wrong input
expect 1 'no user "nobody" in' "$bin/explain" --model causal/models --user nobody
expect 2 "--items 1: expected 2 ... 64" "$bin/explain" --model causal/models --items 1
expect 2 "--place 11: the page shows 10 items" "$bin/explain" --model causal/models \
  --user demo_0014 --place 11
expect 1 "nowhere.hpp: cannot open" "$bin/explain" --model causal/models --header nowhere.hpp
echo "int main() {}" >other.hpp
expect 1 "other.hpp: expected bert4rec.hpp" "$bin/explain" --model causal/models \
  --header other.hpp
expect 0 "" "$bin/train_model" --data data/demo --output match --task matching --hidden-size 8 \
  --num-heads 2 --epochs 1 --quiet
expect 1 "a model for matching, expected one that scores items" "$bin/explain" --model match/models
mkdir -p blocked.html
expect 1 "blocked.html" "$bin/explain" --model causal/models --output blocked.html

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
