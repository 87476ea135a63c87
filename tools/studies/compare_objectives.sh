#!/bin/sh
# One table, one code: objectives and losses compared on MovieLens-1M or Amazon Beauty (ml-1m.txt
# and beauty.txt of the BERT4Rec authors). Trains the presets of that data, ranks the last item of
# every user among all items that the user has not seen, and prints our rows beside the published
# ones, in Markdown. The presets were chosen on validation (README.md beside this); not tuned are
# beauty and beauty-gbce; beauty-causal and -gbce have what was chosen for beauty-causal-sampled.
#
# Run again, it goes on where it was, and what is done is not done again.
#
#   sh tools/studies/compare_objectives.sh FILE [OUTPUT [PRESET...]]   (OUTPUT: output/objectives)
#
# PRESETs are names in presets/, such as beauty-causal; all of that data if none is given.
# SEEDS="42 7" in the environment trains each once a seed (42 alone); OPTIONS=--gpu does it on a
# GPU, with the same digits.
set -eu
case ${1:---help} in
  -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
input=$1
data=$(basename "$input" .txt)
output=${2:-output/objectives}/$data
if [ $# -lt 2 ]; then shift 1; else shift 2; fi
presets=$(cd "$(dirname "$0")/presets" && pwd)
bin=${BERT4REC_BUILD:-$presets/../../../build}
if [ ! -x "$bin/train_model" ]; then
  echo "$0: $bin/train_model is missing: build first (cmake -S . -B build && cmake --build build)" >&2
  exit 1
fi
published=$presets/published-$(echo "$data" | tr -d -).json
if [ ! -s "$published" ]; then
  echo "$0: $input: no published rows about $data, expected ml-1m.txt or beauty.txt" >&2
  exit 1
fi
if [ $# -eq 0 ]; then
  for preset in "$presets/$data.json" "$presets/$data"-*.json; do
    set -- "$@" "$(basename "$preset" .json)"
  done
fi

# evaluate RUN HELD_OUT OPTION...: the table of a trained model, made once.
evaluate() {
  run=$1 held_out=$2
  shift 2
  [ -s "$run/$held_out.md" ] && return
  "$bin/evaluate_model" --data "$output/data" --model "$run/models" --name final_model \
    --held-out "$held_out" --markdown ${OPTIONS:-} "$@" >"$run/$held_out.tmp"
  mv "$run/$held_out.tmp" "$run/$held_out.md"
}

# train PRESET SEED: that model and its two tables, in a folder of its own.
train() {
  run=$output/$1-seed-$2
  [ -s "$run/test.md" ] && return
  resume=--overwrite # of what was killed before it had a checkpoint there is nothing to go on with
  [ -z "$(ls "$run/checkpoints" 2>/dev/null)" ] || resume=--resume
  echo "== $1, seed $2" >&2
  "$bin/train_model" --data "$output/data" --output "$run" --preset "$presets/$1.json" \
    --seed "$2" $resume ${OPTIONS:-} >&2
  evaluate "$run" validation
  evaluate "$run" test --published "$published"
}

# row PRESET SEED: a line of the table. In a table of evaluate_model the fields between the bars
# are: name, HR@1, 5, 10, 20, NDCG@5, 10, 20, MRR.
row() {
  run=$output/$1-seed-$2
  awk -F ' *[|] *' -v name="$1, seed $2" '
    FILENAME ~ /training.log$/ && match($0, / seconds [0-9.]+/) {
      minutes += substr($0, RSTART + 9, RLENGTH - 9) / 60
    }
    FILENAME ~ /[.]md$/ && $2 ~ /^(BERT4Rec|SASRec)$/ && !seen[FILENAME]++ {
      hit[++n] = $5; ndcg[n] = $8
    }
    END {
      printf "| %s | %s | %s | %s | %s | %.0f |\n", name, hit[1], ndcg[1], hit[2], ndcg[2], minutes
    }
  ' "$run/logs/training.log" "$run/validation.md" "$run/test.md"
}

[ -s "$output/data/histories.jsonl" ] ||
  "$bin/import_interactions" --input "$input" --output "$output/data" >&2
for preset in "$@"; do
  for seed in ${SEEDS:-42}; do train "$preset" "$seed"; done
done
echo "| | validation HR@10 | validation NDCG@10 | test HR@10 | test NDCG@10 | minutes |"
echo "|---|---|---|---|---|---|"
for preset in "$@"; do
  for seed in ${SEEDS:-42}; do row "$preset" "$seed"; done
done
# The rows that stand beside ours in each table: baselines and published ones, then their sources.
awk -F ' *[|] *' '
  $2 ~ /^(Markov|popularity)$/ || $2 ~ /\[[0-9]+\]$/ {
    printf "| %s | | | %s | %s | |\n", $2, $5, $8
  }
  /^- \[/ { print sources++ ? $0 : "\n" $0 }
' "$run/test.md"
