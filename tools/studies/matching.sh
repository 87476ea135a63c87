#!/bin/sh
# The matching task (README.md here, "Matching"): data/demo with one and with five negatives for each
# interaction until early stopping, what becomes of it without any (collapse), and five epochs on
# MovieLens-1M if its file is given (ml-1m.txt of the BERT4Rec authors: `user item` lines).
#
#   sh tools/studies/matching.sh [ml-1m.txt [OUTPUT]]     (OUTPUT: output/matching)
set -eu
case ${1:-} in
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
input=${1:-}
output=${2:-output/matching}
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${BERT4REC_BUILD:-$root/build}
if [ ! -x "$bin/train_model" ]; then
  echo "$0: $bin/train_model is missing: build first (cmake -S . -B build && cmake --build build)" >&2
  exit 1
fi

# study NAME DATA OPTION...: a run from the beginning in a folder of its own, and its epochs.
study() {
  name=$1 data=$2
  shift 2
  echo "== $name: $*"
  "$bin/train_model" --data "$data" --output "$output/$name" --overwrite --task matching \
    --hidden-size 64 --num-heads 2 "$@" | grep -E '^(epoch|stopped|best|collapsed)|samples'
}

demo=$root/data/demo
study ratio_1 "$demo" --lr 0.002 --epochs 60 --patience 5
study ratio_5 "$demo" --lr 0.002 --epochs 60 --patience 5 --neg-ratio 5
study collapse "$demo" --epochs 10 --neg-ratio 0 --allow-collapse --fixed-scale 1
[ -n "$input" ] || exit 0
[ -s "$output/ml-1m/data/histories.jsonl" ] ||
  "$bin/import_interactions" --input "$input" --output "$output/ml-1m/data" >/dev/null
study ml-1m "$output/ml-1m/data" --objective causal --epochs 5
