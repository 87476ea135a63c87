#!/bin/sh
# Every call that can fail fails once, programs are killed, bits flip: nothing is lost or misread.
#   sh tests/test_faults.sh FOLDER_OF_THE_BINARIES [PART...]
#
# A run is disturbed at one call (tests/faults.cpp tells how). The rule for what follows:
#   - It exits 1 with one line on stderr; or 0, and then it has written the same files as a run that
#     was not disturbed (a failed call may be one that did not matter); or it was killed by us.
#   - A tool that reads the folder then finds the old set of files or the new one; where there was
#     none before, or it was to be removed, it may say in one line that there is none.
#   - The same command once more, or --resume, ends with the files of an undisturbed run.
# Where a run makes more than 200 calls of a kind, about 60 of those beyond are tried, evenly
# spread; and 30 in all of what was tried in another way already (stay, short, torn). All in all
# about 9,000 cases and two and a half minutes on two cores.
set -u
script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
bin=$(cd "$1" && pwd) || exit 1
shift
parts="train_anew train_resume train_overwrite import_anew import_over prepare_anew prepare_over
  load_anew load_over readers pictures flips_data flips_run flips_resume flips_caches
  flips_journal kills"
if [ $# != 1 ]; then
  [ $# = 0 ] || parts=$*
  # Two at a time, each in a process of its own.
  echo "$parts" | xargs -n 1 -P 2 sh "$script" "$bin"
  exit
fi

part=$1
shm=/dev/shm  # where flushing costs nothing
[ -d $shm ] && [ -w $shm ] || shm=${TMPDIR:-/tmp}
work=$(mktemp -d "$shm/test_faults.XXXXXX")
server=
stop_server() {
  [ -z "$server" ] || { kill "$server" && wait "$server"; } 2>/dev/null
  server=
}
trap 'stop_server; rm -rf "$work"' EXIT
cd "$work" || exit 1
export no_proxy=127.0.0.1
unset ANILIST_TOKEN
passed=0 failed=0 what=preparing

ok() { passed=$((passed + 1)); }
bad() {
  failed=$((failed + 1))
  [ $failed -gt ${MOST:-10} ] && return
  echo "FAILED: $part: $what: $1" | head -c 400 | tr '\n' ' ' && echo
  head -c 300 printed err 2>/dev/null | sed 's/^/    /'
}
one_line() { { read -r line && ! read -r line; } <err; }
must() { "$@" >printed 2>err </dev/null || bad "$*: exit $?"; }

# ---- What is disturbed --------------------------------------------------------------------------
# A part says what to do (act, with words to put before the command), how to go on after a failure
# (again), what a reader sees (look), which files need not come out the same (leave), and whether a
# reader may find nothing (refusal=yes). The folder is out/; before/ is what it holds at the start.

again() { act; }
refusal=no leave="-x .lock -x .cache" old= between=

start() {
  rm -rf out
  [ ! -e before ] || cp -R before out
}

# The files are those of an undisturbed run; nothing temporary either.
same() {
  diff -r $leave "$@" undisturbed out >difference 2>&1 || bad "other files: $(head -5 difference)"
}

seen() { look 2>&1 && echo "exit 0" || echo "exit $?"; }

# Sets what readers may see.
prepare_part() {
  start
  old=$(seen)
  must act
  new=$(seen)
  case $new in *"exit 0") ;; *) [ $refusal = yes ] || bad "the reader: $new" ;; esac
  rm -rf undisturbed
  cp -R out undisturbed
}

look_again() {
  now=$(seen)
  case $now in
    "$old" | "$new" | "$between") ok ;;
    *"exit 1")
      [ $refusal = yes ] && [ "$(echo "$now" | wc -l)" = 2 ] && ok || bad "a reader sees: $now" ;;
    *) bad "a reader sees: $now" ;;
  esac
}

# disturbed ACTION CALL NUMBER
disturbed() {
  what="FAULT_ACTION=$1 FAULT_CALL=$2 FAULT_AT=$3"
  start
  act env LD_PRELOAD="$bin/libfaults.so" FAULT_ACTION="$1" FAULT_CALL="$2" FAULT_AT="$3" \
    >printed 2>err </dev/null
  code=$?
  case $code,$1 in
    0,*) same -x '.*.tmp.*' ;; # what could not be removed goes with the next run
    1,*) one_line || bad "not one line" ;;
    137,kill | 137,torn) ;;
    *) bad "exit $code" ;;
  esac
  look_again
  [ $code = 0 ] && return
  again >printed 2>err </dev/null || bad "once more: exit $?"
  same
}

# every ACTION CALL...: a case for each of its calls
every() {
  action=$1
  shift
  for call in "$@"; do
    start
    must act env LD_PRELOAD="$bin/libfaults.so" FAULT_CALL="$call" FAULT_COUNT="$work/count"
    read -r count <count
    number=1 step=1
    case $action in stay | short | torn) step=$((count / 30 + 1)) ;; esac
    while [ $number -le "$count" ]; do
      disturbed "$action" "$call" $number
      [ $number != 200 ] || step=$(((count - 200) / 60 + 1))
      number=$((number + step))
    done
  done
}

attack() {
  prepare_part
  every fail write fsync rename open read mkdir remove stat malloc
  every stay write malloc
  every short write
  every kill any
  every torn write
  [ $passed -gt 300 ] || bad "only $passed cases"
}

# ---- Training -----------------------------------------------------------------------------------
# data FOLDER FIRST ITEMS USERS: items FIRST ..., histories of 6 of them. (Ids that are longer texts
# than a string holds without memory.)
data() {
  mkdir "$1"
  awk -v f="$1" -v first="$2" -v items="$3" -v users="$4" 'BEGIN {
    id = "{\"id\": \"the-item-of-number-%d\", "
    for (i = 0; i < items; ++i)
      printf id "\"title\": {\"english\": \"Title %d\"}}\n", first + i, i >f "/items.jsonl"
    for (u = 0; u < users; ++u) {
      line = ""
      for (i = 0; i < 6; ++i)
        line = line (i ? ", " : "") sprintf(id "\"at\": %d}", first + (u + i) % items, i)
      printf "{\"user\": \"u%d\", \"entries\": [%s]}\n", u, line >f "/histories.jsonl"
    }
  }'
}

# train PREFIX... : the words behind -- are options
train() { "$@" --hidden-size 4 --num-heads 1 --num-layers 1 --max-seq-len 8 --batch-size 8 \
  --threads 1 --save-every 1 --split last; }
train_leave="-x .lock -x training.log -x training_metrics.json -x metrics.csv -x loss_curve.png
  -x checkpoint_*.safetensors"
look_at_model() { "$bin/recommend" --model out/models --items "the-item-of-number-$1" --json; }

# go_on EPOCHS [exec]: resumes a run if it got so far, else begins anew.
go_on() {
  epochs=$1
  shift
  case $(echo out/checkpoints/checkpoint_*) in
    *'*')
      train "$@" "$bin/train_model_plain" --data good --output out --epochs "$epochs" --overwrite ;;
    *) "$@" "$bin/train_model_plain" --output out --resume ;;
  esac
}

part_train_anew() {
  data good 10 9 12
  refusal=yes leave=$train_leave
  look() { look_at_model 10; }
  act() { train "$@" "$bin/train_model_plain" --data good --output out --epochs 1; }
  start
  must act
  between=$(seen)
  act() { train "$@" "$bin/train_model_plain" --data good --output out --epochs 2; }
  again() { go_on 2; }
  attack
}

part_train_resume() {
  data good 10 9 12
  leave=$train_leave
  look() { look_at_model 10; }
  must train "$bin/train_model_plain" --data good --output before --epochs 1
  act() { "$@" "$bin/train_model_plain" --output out --epochs 2 --resume; }
  attack
}

part_train_overwrite() {
  data good 10 9 12
  data other 13 8 10
  refusal=yes leave=$train_leave
  # The files of the old run are all there or none is, once a reader has been there.
  look() {
    look_at_model 13
    result=$?
    kept=$(identical before out)
    [ "$kept" = 0 ] || [ "$kept" = "$old_files" ] || echo "$kept of $old_files old files are there"
    return $result
  }
  identical() { diff -rs -x .lock -x training.log "$1" "$2" | grep -c 'are identical$'; }
  must train "$bin/train_model_plain" --data other --output before --epochs 2
  old_files=$(identical before before)
  act() { train "$@" "$bin/train_model_plain" --data good --output out --epochs 1 --overwrite; }
  start
  must act
  between=$(seen)
  act() { train "$@" "$bin/train_model_plain" --data good --output out --epochs 2 --overwrite; }
  attack
}

# ---- Importing ----------------------------------------------------------------------------------
# table FILE USERS ITEMS FIRST
table() {
  awk -v users="$2" -v items="$3" -v first="$4" 'BEGIN {
    print "user,item,rating,timestamp"
    for (u = 0; u < users; ++u)
      for (i = 0; i < 4; ++i)
        printf "the user of number %d,the item of number %d,%d,%d\n", u, first + (u + i) % items,
          3 + i % 3, i
  }' >"$1"
}
import() { "$@" --items titles.csv --output out; }
look_at_data() { "$bin/audit_dataset" --data out --val-ratio 0.5 --json; }

import_files() {
  table new.csv 8 6 0
  table old.csv 6 5 3
  awk 'BEGIN { print "item,title,genres"
    for (i = 0; i < 9; ++i)
      printf "the item of number %d,The title of number %d,A|B\n", i, i }' >titles.csv
  look() { look_at_data; }
}

part_import_anew() {
  import_files
  refusal=yes
  act() { import "$@" "$bin/import_interactions" --input new.csv; }
  attack
}

part_import_over() {
  import_files
  must import "$bin/import_interactions" --input old.csv
  mv out before
  act() { import "$@" "$bin/import_interactions" --input new.csv; }
  attack
}

# ---- Fetching -----------------------------------------------------------------------------------
serve() {
  stop_server
  rm -f port
  "$bin/anilist_server" --lifetime 900 "$@" >port &
  server=$!
  while [ ! -s port ]; do sleep 0.01; done
  url=http://127.0.0.1:$(cat port)
}
own="--requests-per-minute 0 --retry-pause 0.001 --rate-pause 0.001 --timeout 10"
prepare() { "$@" --endpoint "$url" $own --output out; }
load() { "$@" --endpoint "$url" $own --min-anime 1 --data out; }

fetched_files() {
  serve --titles 70
  printf 'Alice\nBob\n' >old_names
  printf 'Alice\nCustom\nGhost\n' >names
}
look_at_items() {
  look_at_data
  [ ! -e out/items.jsonl ] || cksum out/items.jsonl
}

part_prepare_anew() {
  fetched_files
  look() { look_at_items; }
  act() { prepare "$@" "$bin/prepare_dataset" --count 60; }
  attack
}

part_prepare_over() {
  fetched_files
  look() { look_at_items; }
  must prepare "$bin/prepare_dataset" --count 70
  must load "$bin/load_users" --file old_names
  mv out before
  act() { prepare "$@" "$bin/prepare_dataset" --count 60 --refresh; }
  attack
}

part_load_anew() {
  fetched_files
  look() { look_at_items; }
  must prepare "$bin/prepare_dataset" --count 60
  mv out before
  act() { load "$@" "$bin/load_users" --file names; }
  attack
}

part_load_over() {
  fetched_files
  look() { look_at_data; }
  must prepare "$bin/prepare_dataset" --count 60
  must load "$bin/load_users" --file old_names
  mv out before
  act() { load "$@" "$bin/load_users" --file names --refresh; }
  attack
}

# ---- What only reads, and pictures --------------------------------------------------------------
part_readers() {
  data good 10 9 12
  must train "$bin/train_model_plain" --data good --output run --epochs 2
  mkdir before
  look() { :; }
  read_with() {
    reader="$*"
    act() { "$@" $reader >out/printed; }
    prepare_part
    every fail open read stat malloc
    every stay malloc
  }
  read_with "$bin/audit_dataset" --data good --json
  read_with "$bin/evaluate_model" --data good --model run/models --json
  read_with "$bin/recommend" --model run/models --data good --user u3 --json
}

# Pictures are replaced one by one; each is there as a whole or not at all.
part_pictures() {
  data good 10 9 12
  must train "$bin/train_model_plain" --data good --output before --epochs 2
  rm before/plots/loss_curve.png
  draw() { "$@" "$bin/visualize" --metrics out/plots/training_metrics.json; }
  start
  must draw env LD_PRELOAD="$bin/libfaults.so" FAULT_CALL=any FAULT_COUNT="$work/count"
  mv out undisturbed
  read -r count <count
  number=1
  while [ $number -le "$count" ]; do
    what="FAULT_ACTION=fail FAULT_CALL=any FAULT_AT=$number"
    start
    draw env LD_PRELOAD="$bin/libfaults.so" FAULT_ACTION=fail FAULT_CALL=any FAULT_AT=$number \
      >printed 2>err </dev/null
    [ $? = 1 ] && one_line || bad "exit $?, or not one line"
    diff -r -x .lock undisturbed out >difference
    grep -v '^Only in undisturbed' difference >err &&
      bad "a picture that is neither old nor new" || ok
    number=$((number + 1))
  done
}

# ---- Flipped bits -------------------------------------------------------------------------------
# flipped FILE READER...: READER prints what it makes of the file
flipped() {
  file=$1
  shift
  what="the intact $file"
  expected=$("$@" 2>err) || bad "exit $?"
  flip=0 found=0
  while [ $flip -lt 200 ]; do
    what="flip_bit $file $flip 200"
    must "$bin/flip_bit" "$file" $flip 200
    output=$("$@" 2>err </dev/null)
    code=$?
    if [ $code = 1 ]; then
      one_line && ok || bad "not one line"
      found=$((found + 1))
    elif [ $code != 0 ]; then
      bad "exit $code"
    else
      [ "$output" = "$expected" ] && ok || bad "passes, with another output"
    fi
    "$bin/flip_bit" "$file" $flip 200
    flip=$((flip + 1))
  done
  echo "$part: $file: $found of 200 flipped bits found, the others harmless or reported above"
}

# What a training makes of a data folder: its models, which hold the titles.
trained() {
  rm -rf out
  train "$bin/train_model_plain" --data "$1" --output out --epochs 1 >/dev/null &&
    cat out/models/best_model.safetensors out/models/item_mappings.json | cksum
}

part_flips_data() {
  import_files
  must import "$bin/import_interactions" --input new.csv
  mv out data
  for name in items.jsonl histories.jsonl dataset.json; do flipped data/$name trained data; done
}

part_flips_run() {
  data good 10 9 12
  must train "$bin/train_model_plain" --data good --output run --epochs 2
  recommended() { "$bin/recommend" --model run/models --items the-item-of-number-10 --json; }
  evaluated() { "$bin/evaluate_model" --model run/models --data good --json; }
  drawn() {
    rm -f loss_curve.png
    "$bin/visualize_plain" --metrics run/plots/training_metrics.json --output . >/dev/null &&
      cat loss_curve.png
  }
  for name in best_model.safetensors item_mappings.json; do
    flipped run/models/$name recommended
  done
  flipped run/models/best_model.safetensors evaluated
  flipped run/plots/training_metrics.json drawn
}

part_flips_resume() {
  data good 10 9 12
  must train "$bin/train_model_plain" --data good --output run --epochs 1
  resumed() {
    rm -rf out
    cp -R run out
    "$bin/train_model_plain" --output out --epochs 2 --resume >/dev/null && models
  }
  models() {
    cat out/models/best_model.safetensors out/models/final_model.safetensors \
      out/models/item_mappings.json | cksum
  }
  preset() {
    rm -rf out
    train "$bin/train_model_plain" --data good --output out --epochs 2 \
      --preset run/models/training_config.json >/dev/null && models
  }
  flipped run/checkpoints/checkpoint_epoch_1.safetensors resumed
  flipped run/models/training_config.json resumed
  flipped run/models/training_config.json preset
}

# killed_once FILES COMMAND...: killed at the first call before which those files are there
killed_once() {
  files=$1 number=0
  shift
  until ls $files >/dev/null 2>&1; do
    number=$((number + 1))
    start
    "$@" env LD_PRELOAD="$bin/libfaults.so" FAULT_CALL=any FAULT_ACTION=kill FAULT_AT=$number \
      >printed 2>err </dev/null
    [ $? = 137 ] || { bad "$files: never there"; return; }
  done
}

part_flips_caches() {
  fetched_files
  act() { prepare "$@" "$bin/prepare_dataset" --count 60; }
  killed_once 'out/.cache/*/1.json' act
  mv out killed
  with_page() {
    rm -rf out
    cp -R killed out
    prepare "$bin/prepare_dataset" --count 60 >/dev/null && cksum <out/items.jsonl
  }
  flipped killed/.cache/*/1.json with_page
  rm -rf out
  must prepare "$bin/prepare_dataset" --count 60
  must load "$bin/load_users" --file names
  mv out loaded
  with_list() {
    rm -rf out
    cp -R loaded out
    load "$bin/load_users" --file names >/dev/null && cksum <out/histories.jsonl
  }
  flipped loaded/.cache/users/alice.json with_list
}

part_flips_journal() {
  import_files
  must import "$bin/import_interactions" --input old.csv
  mv out before
  act() { import "$@" "$bin/import_interactions" --input new.csv; }
  killed_once out/.replacing act
  mv out killed
  settled() {
    rm -rf copy
    cp -R killed copy
    trained copy
  }
  flipped killed/.replacing settled
}

# ---- Kills at random times ----------------------------------------------------------------------
# killed_often MOST COMMAND...: 20 times, after at most MOST ms, in the same folder; then it may end
killed_often() {
  most=$1 kills=0 tries=0
  shift
  what="kill -9: $*"
  while [ $kills -lt 20 ] && [ $tries -lt 300 ]; do
    tries=$((tries + 1))
    "$@" >printed 2>err </dev/null &
    pid=$!
    sleep "$(awk -v n=$tries -v most="$most" \
      'BEGIN { srand(n); printf "%.3f", most * rand() / 1000 }')"
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ $? != 137 ] || kills=$((kills + 1))
  done
  ("$@") >printed 2>err </dev/null || bad "exit $?"
  [ $kills = 20 ] || bad "only $kills kills"
  same && ok
}

# (exec, so that the kill meets the tool and not a shell that waits for it.)
part_kills() {
  data good 10 9 12
  leave=$train_leave
  must go_on 200
  mv out undisturbed
  killed_often 60 go_on 200 exec
  rm -rf undisturbed out
  leave="-x .lock -x .cache"

  import_files
  table new.csv 10000 50 0
  must import "$bin/import_interactions" --input new.csv
  mv out undisturbed
  import_on() { import exec "$bin/import_interactions" --input new.csv; }
  killed_often 60 import_on
  rm -rf undisturbed out

  serve --titles 2000 --delay 5
  must prepare "$bin/prepare_dataset" --count 2000
  cp -R out before
  mv out undisturbed
  prepare_on() { prepare exec "$bin/prepare_dataset" --count 2000; }
  killed_often 60 prepare_on
  awk 'BEGIN { for (i = 0; i < 40; ++i) print "User" i }' >names
  must load "$bin/load_users" --file names
  rm -rf undisturbed
  mv out undisturbed
  start
  load_on() { load exec "$bin/load_users" --file names; }
  killed_often 60 load_on
}

# ---- Runs ---------------------------------------------------------------------------------------
"part_$part"
echo "$part: $passed passed, $failed failed"
[ $failed = 0 ]
