#!/bin/sh
# The published table on MovieLens-1M, on your own machine: imports ml-1m.txt (the file of the
# BERT4Rec authors: `user item` lines, 6,040 users, 3,416 items), trains presets/ml-1m.json, and
# prints our rows beside the published ones. Run again, it goes on where it was.
#
#   sh tools/studies/reproduce_ml1m.sh ml-1m.txt [OUTPUT [OPTION...]]     (OUTPUT: output/ml-1m)
#
# OPTIONs go to train_model: --seed 7, or --epochs 10 for a first look.
set -eu
case ${1:---help} in
  -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
input=$1
output=${2:-output/ml-1m}
[ $# -lt 2 ] && shift 1 || shift 2
here=$(cd "$(dirname "$0")" && pwd)
bin=${BERT4REC_BUILD:-$here/../../build}
if [ ! -x "$bin/train_model" ]; then
  echo "$0: $bin/train_model is missing: build first (cmake -S . -B build && cmake --build build)" >&2
  exit 1
fi

[ -s "$output/data/histories.jsonl" ] ||
  "$bin/import_interactions" --input "$input" --output "$output/data"
resume=--overwrite # of what was killed before it had a checkpoint there is nothing to go on with
[ -z "$(ls "$output/checkpoints" 2>/dev/null)" ] || resume=--resume
"$bin/train_model" --data "$output/data" --output "$output" --preset "$here/presets/ml-1m.json" \
  $resume "$@"
"$bin/evaluate_model" --data "$output/data" --model "$output/models" --name final_model \
  --protocol every --shuffle-histories --published "$here/presets/published-ml1m.json"
