#!/bin/sh
# Classifiers of Chinese texts from scratch, on three public corpora, with masked text first and
# without, with bigrams and without, the mean of the two with bigrams, and what they must beat
# (floors.py, if there is python3). Prints a table in Markdown: accuracy on the test texts that do
# not stand in the training texts. An hour on two cores; run again, it goes on where it was.
#
#   sh tools/studies/classify_texts.sh FOLDER [OUTPUT [CORPUS...]]     (OUTPUT: output/texts)
#
# FOLDER holds vocab.txt of Chinese BERT, and of the CORPUSes (all three if none is named):
#   thucnews    thucnews_titles/train*.txt, dev.txt, test.txt: text, label
#   chnsenti    chnsenticorp/train.tsv, dev.tsv, test.tsv: label, text_a
#   waimai      waimai_10k/waimai_10k.csv: label, review; every tenth text is to test
set -eu
case ${1:---help} in
  -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
folder=$1 output=${2:-output/texts}
if [ $# -gt 2 ]; then shift 2; else set -- thucnews chnsenti waimai; fi
here=$(cd "$(dirname "$0")" && pwd)
bin=${BERT4REC_BUILD:-$here/../../build}
for program in train_classifier predict_text; do
  if [ -x "$bin/$program" ]; then continue; fi
  echo "$0: $bin/$program is missing: build first" \
    "(cmake -S . -B build && cmake --build build)" >&2
  exit 1
done
mkdir -p "$output"

# train RUN OPTION...: a classifier in a folder of its own, and what it says in RUN.log.
train() {
  run=$output/$1
  shift
  if grep -q '^models, checkpoints' "$run.log" 2>/dev/null; then return; fi
  resume=--overwrite # of what was killed before it had a checkpoint there is nothing to go on with
  [ -z "$(find "$run" -name 'checkpoint_*' 2>/dev/null)" ] || resume=--resume
  echo "== $run" >&2
  "$bin/train_classifier" "$@" --vocab "$folder/vocab.txt" --output "$run" $resume \
    --hidden-size 128 --num-layers 2 --initializer-range 0.06 --warmup-steps 300 --eval-every 0.5 \
    --pretrain-lr 0.002 >"$run.log.tmp"
  mv "$run.log.tmp" "$run.log"
}

# mean RUN RUN: accuracy of two classifiers together, on the texts of $unseen.
mean() {
  "$bin/predict_text" --models "$output/$1/models,$output/$2/models" --evaluate "$unseen" \
    $columns >"$unseen.log"
  sed -n '1s/.*accuracy \([0-9.]*%\).*/\1/p' "$unseen.log"
}

# accuracy RUN: on the test texts that training has not seen.
accuracy() {
  sed -n '/^test: /,$p' "$output/$1.log" | sed -n \
    's/^test: accuracy \([0-9.]*%\).*/\1/p; s/^ *accuracy \([0-9.]*%\) on the .* training texts$/\1/p' |
    tail -1
}

# floors TRAIN TEST: two accuracies, with a bar between.
floors() {
  if ! command -v python3 >/dev/null; then echo "- | -"; return; fi
  python3 "$here/floors.py" "$1" "$2" | sed -n 's/.*: \([0-9.]*%\).*/\1/p' | paste -sd '|' |
    sed 's/|/ | /'
}

# study NAME TRAIN TEST COLUMN EPOCHS OPTION...: a row of the table, masked text first for so many
# epochs. The texts are in that COLUMN (1, 2 ...), as $columns tells programs; a file may have a
# line of names.
study() {
  name=$1 train=$2 test=$3 column=$4 epochs=$5
  shift 5
  unseen=$output/$name-unseen.txt
  awk -F '\t' -v c="$column" 'NR == FNR { seen[$c]; next }
    !($c in seen) || (FNR == 1 && $c !~ /[^a-z_]/)' "$train" "$test" >"$unseen"
  for kind in "" "-bigrams"; do
    train "$name$kind-labels" --texts "$train" --test "$test" $columns "$@" ${kind:+--bigrams 65536}
    train "$name$kind-masked" --texts "$train" --test "$test" $columns "$@" \
      ${kind:+--bigrams 65536} --pretrain "$epochs"
  done
  both=$(mean "$name-bigrams-labels" "$name-bigrams-masked")
  echo "| $name | $(floors "$train" "$test") | $(accuracy "$name-labels") |" \
    "$(accuracy "$name-masked") | $(accuracy "$name-bigrams-labels") |" \
    "$(accuracy "$name-bigrams-masked") | $both |"
}

echo "| | naive Bayes | linear | labels alone | masked text first |" \
  "bigrams, labels alone | bigrams, masked text first | mean of these two |"
echo "|---|---|---|---|---|---|---|---|"
for corpus in "$@"; do
  case $corpus in
    thucnews)
      cat "$folder"/thucnews_titles/train*.txt >"$output/thucnews.txt"
      columns=--no-header
      study thucnews "$output/thucnews.txt" "$folder/thucnews_titles/test.txt" 1 16 \
        --dev "$folder/thucnews_titles/dev.txt" --validation-limit 2000 --max-length 48 \
        --batch-size 64 --epochs 4 --lr 0.0007
      ;;
    chnsenti)
      columns=
      study chnsenti "$folder/chnsenticorp/train.tsv" "$folder/chnsenticorp/test.tsv" 2 20 \
        --dev "$folder/chnsenticorp/dev.tsv" --max-length 160 --batch-size 32 --epochs 6 --lr 0.0005
      ;;
    waimai)
      sed 's/,/\t/' "$folder/waimai_10k/waimai_10k.csv" | tr -d '"' >"$output/waimai.tsv"
      awk 'NR == 1 || NR % 10 != 0' "$output/waimai.tsv" >"$output/waimai_train.tsv"
      awk 'NR == 1 || NR % 10 == 0' "$output/waimai.tsv" >"$output/waimai_test.tsv"
      columns="--text-column review"
      study waimai "$output/waimai_train.tsv" "$output/waimai_test.tsv" 2 40 \
        --max-length 100 --batch-size 32 --epochs 6 --lr 0.0005
      ;;
    *) echo "$0: $corpus: expected thucnews, chnsenti or waimai" >&2; exit 2 ;;
  esac
done
