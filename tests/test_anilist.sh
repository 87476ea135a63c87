#!/bin/sh
# prepare_dataset and load_users against a server of our own on 127.0.0.1 that knows every fault.
#   sh tests/test_anilist.sh FOLDER_OF_THE_BINARIES
set -u
script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
bin=$(cd "$1" && pwd)
work=$(mktemp -d)
server=
stop_server() {
  [ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null
  server=
}
trap 'stop_server; rm -rf "$work"' EXIT
cd "$work" || exit 1
unset ANILIST_TOKEN no_proxy NO_PROXY
# A proxy that is not there: this machine is asked without, and nobody else is reached.
export http_proxy=http://127.0.0.1:1 https_proxy=http://127.0.0.1:1
passed=0 failed=0

ok() { passed=$((passed + 1)); }
bad() {
  failed=$((failed + 1))
  echo "FAILED: $1"
  sed 's/^/    /' out err 2>/dev/null | head -20
}
check() { if "$@" >out 2>err; then ok; else bad "$*"; fi; }

# expect CODE TEXT COMMAND...: the exit code, TEXT in what was printed, and for a failure one line
# on stderr without control characters.
expect() {
  code=$1 text=$2
  shift 2
  "$@" >out 2>err </dev/null
  found=$?
  if [ "$found" != "$code" ]; then bad "$* : exit $found, expected $code"; return; fi
  if [ -n "$text" ] && ! cat out err | grep -qF -- "$text"; then
    bad "$* : lacks \"$text\""
    return
  fi
  case $code in
    1 | 2) [ "$(wc -l <err)" = 1 ] && ! LC_ALL=C grep -q "$(printf '[\001-\010\013-\037]')" err ||
      { bad "$* : not one plain line"; return; } ;;
  esac
  ok
}

# serve OPTIONS...: a fresh server with a fresh log, always on the same port: what was fetched is
# kept for one server only
port=0
serve() {
  stop_server
  rm -f port log
  "$bin/anilist_server" --lifetime 100 --log log --port $port "$@" >port &
  server=$!
  while [ ! -s port ]; do kill -0 $server || exit 1; sleep 0.01; done
  port=$(cat port)
  url=http://127.0.0.1:$port
}
own="--requests-per-minute 0 --retry-pause 0.02 --timeout 10"
slow="slow drip"  # faults that only a time-out ends
timeout_for() { case " $slow " in *" $1 "*) echo "--timeout 0.5" ;; esac; }
prepare() { "$bin/prepare_dataset" --endpoint "$url" $own --count 230 --output "$@"; }
load() { "$bin/load_users" --endpoint "$url" $own --data "$@"; }
same() { cmp "$1" "$2" >out 2>&1 && ok || bad "$3"; }
requests() { wc -l <log; }
# requests_are N WHAT: the server may still be writing its log
requests_are() {
  tries=0
  while [ "$(requests)" -lt "$1" ] && [ $tries -lt 20 ]; do
    tries=$((tries + 1))
    sleep 0.05
  done
  [ "$(requests)" = "$1" ] && ok || bad "$2: $(requests) requests, expected $1"
}
# paced MS WHAT: so much lies between any two requests (but for the clocks' rounding)
paced() {
  awk -v least=$(($1 - 2)) 'NR > 1 && $1 - last < least { print last, $0; bad = 1 } { last = $1 }
    END { exit bad || NR < 2 }' log >out && ok || bad "$2: less than $1 ms between requests"
}
# Every log must say so: never two connections, nothing before a Retry-After has run out.
polite() {
  grep -E 'OVERLAP|EARLY|BADHEAD' log >out 2>&1 && bad "$1: impolite" || ok
}

"$bin/anilist_server" --titles 260 --print-items 230 >items
"$bin/anilist_server" --titles 260 --adult --print-items 230 >items_adult

# ---- help, usage --------------------------------------------------------------------------------
for tool in prepare_dataset load_users; do
  expect 0 "made for AniList, not by AniList" "$bin/$tool" --help
  tr -s '\n ' ' ' <out >err
  grep -q "forbid hoarding and mass collection" err &&
    grep -q "Keep fetched lists out of commits" err && ok || bad "$tool --help lacks the terms"
  expect 2 "unknown option" "$bin/$tool" --nonsense
done
expect 2 "refuses pages beyond its first 5,000" "$bin/prepare_dataset" --count 5001
expect 2 "expected a name like" "$bin/prepare_dataset" --sort 'ID"}'
expect 2 "at least 1" "$bin/load_users" --min-anime 0
expect 2 "plain ASCII" "$bin/prepare_dataset" --referer "$(printf 'a\nX-More: b')" --output a
for option in '--patience -1' '--patience nan' '--max-age -1' '--max-age nan' \
  '--requests-per-minute 1e-300'; do
  expect 2 "$option: expected" "$bin/prepare_dataset" --output a --endpoint http://127.0.0.1:1 \
    $option
done
expect 2 "must lie above 0" "$bin/prepare_dataset" --output a --timeout 0

# ---- the endpoint is parsed, not matched as text -------------------------------------------------
at() {
  "$bin/prepare_dataset" --output elsewhere --requests-per-minute 90 --retry-pause 0.02 \
    --endpoint "$@"
}
for text in file:///etc/passwd graphql.anilist.co "http://a b" https:// ftp://anilist.co; do
  expect 2 "--endpoint $text: expected " at "$text"
done
for text in https://graphql.anilist.co HTTPS://GraphQL.AniList.co https://anilist.co:443 \
  http://graphql.anilist.co. "https://graphql.anilist.co?a=b"; do
  expect 2 "AniList allows 90 at most" at "$text" --requests-per-minute 0
done
for text in https://anilist.co.evil.example https://evil.example/anilist.co \
  https://notanilist.co; do
  expect 1 "tried 5 times" at "$text" --requests-per-minute 0
done
export ANILIST_TOKEN=secret
for text in http://10.0.0.1 https://10.0.0.1 https://anilist.co.evil.example http://anilist.co \
  https://evil.example/graphql.anilist.co http://127.0.0.1.evil.example https://notanilist.co; do
  expect 2 "ANILIST_TOKEN is set, but is only" at "$text"
done
for text in http://127.0.0.1:8080@evil.example https://graphql.anilist.co@evil.example \
  http://127.0.0.1:80:x@evil.example https://me:word@graphql.anilist.co https://anilist.co#@evil; do
  expect 2 "expected neither a user name" at "$text" --timeout 1
done
serve --titles 260
expect 2 "expected neither a user name" at "http://127.0.0.1:80@localhost:$port" \
  --requests-per-minute 0
[ ! -s log ] && ok || bad "a token went to another host: $(cat log)"
for text in "http://127.0.0.1:$port" "HTTP://LocalHost:$port/graphql"; do
  expect 0 "20 titles" at "$text" --requests-per-minute 0 --count 20 --output "token$port"
done
[ "$(grep -c TOKEN log)" = 2 ] && ok || bad "the token for servers on this machine: $(cat log)"
unset ANILIST_TOKEN

# ---- the catalogue ------------------------------------------------------------------------------
serve --titles 260 --gzip
expect 0 "230 titles written" prepare a
same items a/items.jsonl "items.jsonl is what the server holds, in order"
requests_are 5 "5 pages"
expect 0 "is complete" prepare a
requests_are 5 "a complete catalogue"
expect 0 "230 titles" prepare a --refresh
requests_are 10 "--refresh"
expect 0 "230 titles" prepare b --adult
same items_adult b/items.jsonl "--adult"
expect 0 "the server has no more" prepare c --count 1000
only_items() {
  [ "$(ls -A "$1" | tr '\n' ' ')" = ".lock dataset.json items.jsonl " ] && ok ||
    bad "left: $(ls -A "$1")"
}
only_items c
expect 0 "230 titles" prepare c
same items c/items.jsonl "another count is fetched"
mkdir foreign && echo '{"id": 1}' >foreign/items.jsonl
expect 1 "was not made by prepare_dataset; --refresh replaces it" prepare foreign
printf '{"format": 1, "items.jsonl": "0", "source": {"tool": "another"}}' >foreign/dataset.json
expect 1 "was not made by prepare_dataset; --refresh replaces it" prepare foreign
[ "$(cat foreign/items.jsonl)" = '{"id": 1}' ] && ok || bad "another's items were touched"
expect 0 "230 titles" prepare foreign --refresh
echo '{"id": 1}' >>foreign/items.jsonl
expect 1 "is not what dataset.json says" prepare foreign
expect 0 "230 titles" prepare foreign --refresh
same items foreign/items.jsonl "--refresh over a damaged catalogue"
expect 1 "HTTP 400: Variable" prepare d --sort NONSENSE
env ANILIST_TOKEN=t "$bin/prepare_dataset" --endpoint "$url" $own --count 1 --output e \
  --referer https://example.org/ >out && grep -q 'REFERER TOKEN' log && ok || bad "Referer and token"
polite "catalogue"
serve --titles 260 --shift
expect 0 "230 titles" prepare f
same items f/items.jsonl "titles that move between pages stand once"
serve --titles 5400
expect 0 "5,000 titles" prepare g --count 5000
requests_are 100 "5,000 titles"

# ---- users --------------------------------------------------------------------------------------
serve --titles 260
printf '\357\273\277Alice\r\n\r\n# a comment\r\n  Bob  # a friend\nalice\nALICE\n' >names
printf 'Big\nFew\nHidden\nHidden200\nGhost\nNobody0\nCustom\nZero\nPlanner\nEndless\nNull\nBroken\nUser5' >>names
histories() { "$bin/anilist_server" --titles 260 --print-histories "$@"; }
histories 230,20 Alice Bob Big Custom Zero Endless User5 >expected
expect 0 "7 of 15 users kept; 14 lists fetched, 0 from the cache" load a --file names
same expected a/histories.jsonl "histories.jsonl is what the server holds, in order"
load a --file names >table
for line in 'Alice .* kept$' 'Bob .* 20 .* kept$' 'Few .* 5 .* left out: too few$' \
  'Hidden .*left out: Private User$' 'Hidden200 .*left out: Private User$' 'Ghost .*left out: User not found$' \
  'Nobody0 .*left out: empty list$' 'Planner .* 0 .* 0 .* 30 .*too few$' 'Broken .*failed: .*HTTP 500'; do
  grep -qE "^$line" table && ok || bad "the table lacks $line: $(cat table)"
done
[ "$(grep -c 'user=Big' log)" = 3 ] && ok || bad "1,200 entries come in three chunks, once"
[ "$(grep -c 'user=Endless' log)" = 2 ] && ok || bad "endless chunks end"
[ "$(grep -c 'user=Ghost' log)" = 2 ] && ok || bad "who is unknown is asked for again in the next run"
[ "$(grep -c 'user=Alice' log)" = 1 ] && ok || bad "known lists are not fetched again"
histories 230,21 Alice Bob Big Custom Zero Endless User5 >expected
expect 0 "6 of 15" load a --file names --min-anime 21
same expected a/histories.jsonl "--min-anime 21"
echo Few >few
cp a/histories.jsonl before
expect 1 "no user is left with 20 titles" load a --file few
same before a/histories.jsonl "a run without users leaves the file of the run before"
printf 'Al\351ce\n' >latin
expect 1 'latin:1: invalid UTF-8: Al\xe9ce' load a --file latin
printf '# nobody\n' >none
expect 1 "none: no user names" load a --file none
expect 1 "absent: cannot open" load a --file absent
expect 1 "missing/items.jsonl" load missing --file names
printf '../../x y"\\\n' >odd
expect 1 "no user is left" load a --file odd
grep -q 'left out: User not found' out && ok || bad "an odd name is only unknown"
printf 'E\033[2Jsc\n' >odd
expect 1 "no user is left" load a --file odd
grep -qF 'E\x1b[2Jsc' out && ! grep -q "$(printf '\033')" out && ok || bad "ESC in a name"
histories 230,20 Alice Bob Big Custom Zero Endless User5 >expected
expect 0 "7 of 15" load a --file names
same expected a/histories.jsonl "back to --min-anime 20"
polite "users"
if [ -x "$bin/train_model" ]; then
  expect 0 "230 items, 7 users" "$bin/train_model" --data a --output run --hidden-size 8 \
    --num-heads 2 --epochs 1 --threads 1 --split last
fi
serve --titles 260 --fault 500
expect 1 "tried 5 times" load a --file names --refresh
requests_are 10 "two users that fail in a row end the run"
for kind in badentry badscore baddate; do
  serve --titles 260 --fault $kind
  expect 1 "list of Alice: the answer: byte" load a --file names --refresh
  [ -z "$(ls a/.cache/users)" ] && ok || bad "$kind was stored"
done

# ---- what is kept: for one server, for a time, and whole -----------------------------------------
# Two pages of this server, then the rest, and all, of another.
serve --titles 260 --fault 403 --from 3
expect 1 "HTTP 403" prepare two
[ "$(ls two/.cache/*)" = "$(printf '1.json\n2.json')" ] && ok || bad "kept: $(ls two/.cache/*)"
fetched=$(grep -o '"fetched": [0-9]*' two/.cache/*/1.json | tr -dc 0-9)
age=$(($(date +%s) - ${fetched:-0}))
[ $age -ge 0 ] && [ $age -lt 600 ] && ok || bad "the time of fetching is $age s ago"
cp -r two aged
first_port=$port port=0
serve --titles 260 --first-id 700000
expect 0 "230 titles" prepare two
"$bin/anilist_server" --titles 260 --first-id 700000 --print-items 230 >items_elsewhere
same items_elsewhere two/items.jsonl "a catalogue of two servers"
printf 'Alice\nCustom\n' >names
expect 1 "comes from another server, http://127.0.0.1:$first_port, than $url" load a --file names
expect 0 "2 lists fetched, 0 from the cache" load two --file names
cp -r two/.cache/users a/.cache/
stop_server
port=$first_port
serve --titles 260
histories 230,20 Alice Custom >expected
expect 0 "2 lists fetched, 0 from the cache" load a --file names
same expected a/histories.jsonl "lists of another server"
expect 0 "0 lists fetched, 2 from the cache" load a --file names \
  --endpoint "HTTP://127.0.0.1:$port/"
sleep 1.1
expect 0 "0 lists fetched, 2 from the cache" load a --file names --max-age 0.01
expect 0 "2 lists fetched, 0 from the cache" load a --file names --max-age 0.00001
expect 0 "2 lists fetched, 0 from the cache" load a --file names --max-age 0
cp -r aged fresh
serve --titles 260
expect 0 "230 titles" prepare aged --max-age 0.00001
requests_are 5 "pages that are too old"
expect 0 "230 titles" prepare fresh
requests_are 8 "pages that are not"
same items aged/items.jsonl "pages that are too old"
same items fresh/items.jsonl "pages that are not"
# A flipped bit in what is kept: fetched anew, or it was where it changes nothing.
# flipped FILE WHAT RESULT EXPECTED COMMAND...
flipped() {
  file=$1 what=$2 result=$3 expected=$4
  shift 4
  cp "$file" whole
  bits=$(($(wc -c <"$file") * 8)) wrong=0 missed=0
  for bit in 10 100 $(awk -v bits=$bits 'BEGIN { srand(1); for (i = 0; i < 38; ++i)
      print int(bits * rand()) }'); do
    cp whole "$file"
    "$bin/anilist_server" --flip "$file" $bit
    "$@" >out 2>&1 && cmp -s "$expected" "$result" || wrong=$((wrong + 1))
    grep -q "1 kept $what were damaged" out || missed=$((missed + 1))
  done
  [ $wrong = 0 ] && [ $missed = 0 ] && ok || bad "flipped bits: $wrong wrong, $missed not found"
}
flipped a/.cache/users/alice.json lists a/histories.jsonl expected load a --file names
kept_page() {
  rm -rf kept && cp -r fault3 kept && cp page kept/.cache/pages_POPULARITY_DESC/1.json
  prepare kept
}
serve --titles 260 --fault 403 --from 3 --times 1
expect 1 "HTTP 403" prepare fault3
cp fault3/.cache/*/1.json page
flipped page pages kept/items.jsonl items kept_page

# ---- pace ---------------------------------------------------------------------------------------
for kind in "" drop reset cut late 500; do
  serve --titles 260 ${kind:+--fault $kind --from 2 --times 2}
  expect 0 "" prepare pace$kind --requests-per-minute 600
  paced 100 "600 a minute, $kind"
done
expect 0 "" prepare pace --requests-per-minute 600 --refresh
paced 100 "600 a minute, over two programs"
serve --titles 260 --limit 150 --window 60
expect 0 "" prepare p2 --requests-per-minute 600
paced 400 "X-RateLimit-Limit 150"
serve --titles 260 --limit 3 --window 1
expect 0 "" prepare p3
grep -q 429 log && bad "Remaining: 0 is waited for" || ok
polite "limit"
serve --titles 260 --limit 3 --window 1 --no-reset
expect 0 "" prepare p4
grep -q 429 log && ok || bad "no refusal"
polite "Retry-After"
serve --titles 260 --limit 3 --window 1 --no-reset --no-retry-after
expect 0 "" prepare p5 --rate-pause 1.2
polite "429 that names no time"
for kind in 429after 429reset 429date 429past 429words 429negative 503after; do
  serve --titles 260 --fault $kind --from 2 --times 1
  expect 0 "" prepare p_$kind --rate-pause 0.3
  same items p_$kind/items.jsonl "$kind"
  polite $kind
done
serve --titles 260 --fault 429past
expect 1 "6 times; try again later" prepare p6 --rate-pause 0.05
requests_are 6 "refused for ever"
# impatient KIND UNTIL OPTION...: ends at once and says until when
impatient() {
  kind=$1 until=$2
  shift 2
  serve --titles 260 --fault $kind --from 2 --times 1
  expect 1 "asks for no request before $until" prepare i_$kind --rate-pause 0.05 "$@"
  requests_are 2 "$kind is asked again"
}
utc_day() { date -u -d "@$(($(date +%s) + $1))" +%Y-%m-%d 2>/dev/null || date -u +%Y; }
impatient 429far "2099-10-21 07:28:0"
impatient 429huge "the year 10000, more than --patience 900 seconds away"
impatient 429endless "the year 10000"
impatient 429hours "$(utc_day 7200)"
impatient 429resetfar "$(utc_day 7200)"
impatient spent "$(utc_day 7200)"
impatient 429minutes "$(utc_day 600)" --patience 599
serve --titles 260 --fault spent
expect 0 "20 titles" prepare i_last --count 20

# ---- faults: they pass, or end in one line, and memory stays small -------------------------------
measured() {
  if [ -x /usr/bin/time ]; then /usr/bin/time -q -o rss -f %M "$@"; else "$@"; fi
}
measured_prepare() { measured "$bin/prepare_dataset" --endpoint "$url" $own --count 230 --output "$@"; }
largest=0
small() {
  [ -s rss ] || return 0
  [ "$(cat rss)" -le "$largest" ] || largest=$(cat rss)
  [ "$(cat rss)" -lt "${MEMORY_LIMIT:-60000}" ] && ok || bad "$1 needs $(cat rss) kB"
}
for kind in 500 502 503 errors500 reset drop cut short late badlength nohead cut404 short404 slow \
  truncated html empty nodata utf8 surrogate deep inf; do
  serve --titles 260 --fault $kind --from 2 --times 2
  expect 0 "" measured_prepare r_$kind $(timeout_for $kind)
  same items r_$kind/items.jsonl "$kind passes"
  small $kind
  polite $kind
  serve --titles 260 --fault $kind --from 2
  expect 1 "tried 5 times" prepare r_$kind --refresh $(timeout_for $kind)
  requests_are 6 "$kind for ever"
  same items r_$kind/items.jsonl "$kind: the old catalogue stays"
done

# last KIND WORDS: ends at once, keeps the page before, stores nothing of its own
last() {
  kind=$1
  serve --titles 260 --fault $kind --from 2
  expect 1 "$2" measured_prepare l_$kind $(timeout_for $kind)
  small $kind
  case $kind in drip | headers) requests_are 6 $kind ;; *) requests_are 2 $kind ;; esac
  [ "$(ls l_$kind/.cache/*)" = 1.json ] && ok || bad "$kind: stored $(ls l_$kind/.cache/*)"
  [ ! -e l_$kind/items.jsonl ] && ok || bad "$kind: items.jsonl was written"
}
last 400 'HTTP 400: Cannot query field "x".'
last 403 "HTTP 403: The AniList API has been temporarily disabled."
last 403html "HTTP 403: <html><title>Just a moment..."
last 404html "HTTP 404: <html>nothing here"
last file "HTTP 302 to file:///etc/passwd: redirects are not followed"
last elsewhere "HTTP 302 to http://127.0.0.1:1/elsewhere: redirects are not followed"
last null "page 2: the answer: byte 9: expected an object"
last types "page 2: the answer: byte"
last textid "expected a number"
last noid 'a title without the field "id"'
last negative "-5 is not in 1 ..."
last hugeid "at most 64 bits"
last fraction "expected an integer"
last nomedia 'missing field "media"'
last bomb "the answer is larger than 8000000 bytes"
last huge "the answer is larger than 8000000 bytes"
last headers "tried 5 times"
last drip "tried 5 times"
serve --titles 260
expect 0 "" prepare l_types
same items l_types/items.jsonl "after the fault"
requests_are 4 "the page before the fault was kept"
serve --titles 260 --fault endless
expect 1 "page 2 brings no new title" prepare endless
stop_server
expect 1 "tried 5 times" prepare nobody_there
for seed in 1 2 3; do
  serve --titles 260 --random 0.3 --seed $seed
  expect 0 "" prepare random_$seed
  same items random_$seed/items.jsonl "random faults, seed $seed"
  polite random_$seed
done

# ---- signals ------------------------------------------------------------------------------------
# interrupted SIGNAL CODE FAULT: soon, while waiting or while an answer is due
interrupted() {
  serve --titles 260 --fault $3 --from 2
  rm -rf s
  "$bin/prepare_dataset" --endpoint "$url" --requests-per-minute 0 --count 230 --output s --refresh \
    >out 2>err &
  pid=$!
  while [ ! -s log ] || [ "$(ls s/.cache/*/ 2>/dev/null)" != 1.json ]; do sleep 0.02; done
  sleep 0.2
  before=$(date +%s%N)
  kill -$1 $pid
  wait $pid
  code=$?
  took=$((($(date +%s%N) - before) / 1000000))
  [ $code = $2 ] && [ $took -lt 1500 ] && ok || bad "$1: exit $code after $took ms"
  grep -q "Continue with" out && ! grep -q refresh out && ok || bad "$1: how to go on"
  serve --titles 260
  expect 0 "" prepare s
  same items s/items.jsonl "continued after $1"
}
interrupted TERM 143 429minutes
interrupted INT 130 500
interrupted INT 130 slow
serve --titles 260 --delay 500
"$bin/prepare_dataset" --endpoint "$url" --output lock --count 230 >out 2>err &
pid=$!
while [ ! -s log ]; do sleep 0.02; done
expect 1 "is writing to this folder" prepare lock
kill -KILL $pid
wait $pid 2>/dev/null

# ---- kill -9 at 20 random moments: the same files, nothing fetched twice but what was in flight --
# killed LOW HIGH COMMAND...: kills it 20 times after LOW ... HIGH ms, and lets it end then
killed() {
  low=$1 high=$2
  shift 2
  kills=0
  for pause in $(awk -v a="$low" -v b="$high" 'BEGIN { srand(); for (i = 0; i < 20; ++i)
      printf "%.3f ", (a + (b - a) * rand()) / 1000 }'); do
    "$@" >/dev/null 2>&1 &
    pid=$!
    sleep "$pause"
    kill -KILL $pid 2>/dev/null && kills=$((kills + 1))
    wait $pid 2>/dev/null
  done
  expect 0 "" "$@"
}
serve --titles 5400 --delay 30
killed 20 160 "$bin/prepare_dataset" --endpoint "$url" $own --count 5000 --output k
same g/items.jsonl k/items.jsonl "killed $kills times"
[ $kills -ge 15 ] && ok || bad "only $kills kills"
awk '{ n = substr($2, 6) + 0; if (n != last && n != last + 1) exit 1; last = n }' log && ok ||
  bad "a page was fetched again: $(cut -d' ' -f2 log | uniq -c | head -40)"
[ "$(requests)" -le $((100 + kills)) ] && ok || bad "$(requests) requests for 100 pages"
only_items k
first_requests=$(requests) first_kills=$kills
i=0
while [ $i -lt 60 ]; do
  echo User$i
  i=$((i + 1))
done >names
serve --titles 5400 --delay 30
killed 20 90 "$bin/load_users" --endpoint "$url" $own --data k --file names
"$bin/anilist_server" --titles 5400 --print-histories 5000,20 $(cat names) >expected
same expected k/histories.jsonl "users, killed $kills times"
cut -d' ' -f2 log | uniq | sort | uniq -d >again
[ ! -s again ] && ok || bad "lists fetched again: $(cat again)"
[ "$(requests)" -le $((60 + kills)) ] && ok || bad "$(requests) requests for 60 users"
[ -z "$(find k -name '*.tmp.*')" ] && ok || bad "temporary files are left: $(find k -name '*.tmp.*')"

echo "killed $first_kills times: $first_requests requests for 100 pages; killed $kills times:" \
  "$(requests) requests for 60 users; most memory $largest kB"
# ---- run_all: from nothing to recommendations ---------------------------------------------------
here=$(cd "$(dirname "$script")/.." && pwd)
serve --titles 260
all() {
  BERT4REC_BIN=$bin sh "$here/tools/run_all.sh" --users names --name Alice --count 230 \
    --min-anime 20 --epochs 2 --data all/data --output all/run --endpoint "$url" \
    --requests-per-minute 0 --hidden-size=16 --num-heads 2 --split last "$@"
}
printf 'Alice\nBob\nnobody\n' >names
expect 0 "expected next, with probability" all
for name in loss_curve accuracy_curve combined_metrics learning_curve; do
  check test -s all/run/plots/$name.png
done
before=$(requests)
expect 0 "continuing after epoch 2" all --epochs 3
requests_are $((before + 2)) "run_all again: only the unknown user and the list of Alice"
expect 2 "unknown option --wrong" all --wrong 1
expect 0 '"average_score"' "$bin/recommend" --model all/run/models --anilist Alice \
  --endpoint "$url" --requests-per-minute 0 --titles native --json
expect 1 "nobody" "$bin/recommend" --model all/run/models --anilist nobody --endpoint "$url" \
  --requests-per-minute 0
"$bin/recommend" --model all/run/models --anilist Alice --endpoint "$url" --requests-per-minute 0 \
  --count 200 >out 2>err
grep -qF 'Line\x0abreak\x09tab' out && ! grep -q "$(printf '\t')" out && ok ||
  bad "titles stay on their lines"
# There is nothing to save: a signal ends it at once, whatever it is doing.
serve --titles 260 --fault slow
"$bin/recommend" --model all/run/models --anilist Alice --endpoint "$url" >out 2>err &
pid=$!
sleep 0.3
kill -TERM $pid
wait $pid 2>/dev/null
[ $? = 143 ] && [ ! -s out ] && [ ! -s err ] && ok || bad "recommend catches SIGTERM"
stop_server

echo "$passed passed, $failed failed"
[ $failed = 0 ]
