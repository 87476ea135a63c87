#!/bin/sh
# From AniList to recommendations in one go: fetch titles, load users' lists, train, plot, recommend.
#
#   sh tools/run_all.sh --users datas_user.txt --name NAME [--count N] [--min-anime N] [--epochs N]
#                       [--data FOLDER] [--output FOLDER] [--endpoint URL] [--requests-per-minute N]
#                       [--overwrite]
#                       [and of train_model: --split, --val-ratio, --hidden-size, --num-layers,
#                       --num-heads, --max-seq-len, --batch-size, --lr, --dropout, --mask-prob,
#                       --seed, --threads]
#
# Of fewer than 20 users none can be spared: then the last titles of each are held out (--split last).
# Steps that are done are skipped (the tools keep what was fetched), and an interrupted training is
# resumed. Lists that came or changed since make other data: --overwrite trains anew on them, and
# replaces the models that are there. Mind AniList's terms of use: see `build/prepare_dataset --help`.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
bin=${BERT4REC_BIN:-$here/build}
users= name= count=3000 min_anime=20 epochs=200 data=data/anilist output=output/anilist
endpoint=https://graphql.anilist.co pace=25 train_flags= overwrite=
usage() {
  sed -n '2,15s/^# \{0,1\}//p' "$0"
  exit "$1"
}
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage 0 ;;
    --overwrite) overwrite=yes && shift && continue ;;
    --*=*) flag=${1%%=*} value=${1#*=} ;;
    --*) flag=$1 value=${2:-} && { [ $# -gt 1 ] || { echo "run_all: $1 needs a value" >&2; exit 2; }; } && shift ;;
    *) echo "run_all: unexpected word \"$1\"" >&2; exit 2 ;;
  esac
  shift
  case $flag in
    --users) users=$value ;;
    --name) name=$value ;;
    --count) count=$value ;;
    --min-anime) min_anime=$value ;;
    --epochs) epochs=$value ;;
    --data) data=$value ;;
    --output) output=$value ;;
    --endpoint) endpoint=$value ;;
    --requests-per-minute) pace=$value ;;
    --hidden-size | --num-layers | --num-heads | --max-seq-len | --batch-size | --lr | --dropout | \
      --val-ratio | --seed | --threads | --split | --mask-prob) train_flags="$train_flags $flag=$value" ;;
    *) echo "run_all: unknown option $flag; see sh tools/run_all.sh --help" >&2; exit 2 ;;
  esac
done
[ -n "$users" ] || { echo "run_all: --users FILE is needed: one AniList name a line" >&2; exit 2; }
case $train_flags in
  *--split=* | *--val-ratio=*) ;;
  *)
    listed=$(grep -c '[^[:space:]]' "$users" 2>/dev/null || true)
    [ "${listed:-0}" -ge 20 ] || train_flags="$train_flags --split=last"
    ;;
esac
for program in prepare_dataset train_model; do  # the first is not built where libcurl is missing
  if [ ! -x "$bin/$program" ]; then
    echo "run_all: $bin/$program is missing: build first (sh tools/install_dependencies.sh &&" \
      "cmake -S . -B build && cmake --build build)" >&2
    exit 1
  fi
done
step() { printf '\n== %s\n' "$1"; }
fetch="--endpoint $endpoint --requests-per-minute $pace"

step "titles"
"$bin/prepare_dataset" --count "$count" --output "$data" $fetch
step "users"
"$bin/load_users" --file "$users" --min-anime "$min_anime" --data "$data" $fetch
step "training"
resume=--overwrite # of what was killed before it had a checkpoint there is nothing to go on with
[ ! -e "$output/models/final_model.safetensors" ] || resume=--resume
for checkpoint in "$output"/checkpoints/*.safetensors; do
  [ ! -e "$checkpoint" ] || resume=--resume
done
[ -z "$overwrite" ] || resume=--overwrite
"$bin/train_model" --data "$data" --output "$output" --epochs "$epochs" $train_flags $resume || {
  code=$?
  [ $resume$code != --resume1 ] ||
    echo "run_all: (if lists have come or changed since, again with --overwrite)" >&2
  exit $code
}
step "pictures"
ls "$output"/plots/*.png
if [ -n "$name" ]; then
  step "ten titles for $name"
  "$bin/recommend" --model "$output/models" --anilist "$name" $fetch
fi
