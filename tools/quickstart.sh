#!/bin/sh
# From a fresh checkout to recommendations: installs what is missing, builds, trains on data/demo,
# evaluates, recommends ten titles to one viewer, and writes a page that shows how the model comes to
# its answers. Takes a few minutes. With "text": to a classifier of texts, trained on data/demo_text.
#
#   sh tools/quickstart.sh [text] [OUTPUT]   (default: output/demo, or output/demo_text; a run that
#                                             is there is replaced)
set -eu
here=$PWD
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' tools/quickstart.sh && exit ;;
  -*) echo "quickstart: unknown option $1; see sh tools/quickstart.sh --help" >&2 && exit 2 ;;
esac
what=items
[ "${1:-}" != text ] || { what=text && shift; }
case ${1:-} in
  '' | /*) ;;
  *) [ "$here" = "$PWD" ] || set -- "$here/$1" ;; # below the folder that it was called in
esac
step() { printf '\n== %s\n' "$1"; }

step "looking for compiler and libraries"
sh tools/install_dependencies.sh

step "building (build/)"
cmake -S . -B build >/dev/null
cmake --build build -j "$(getconf _NPROCESSORS_ONLN)"

if [ $what = text ]; then
  output=${1:-output/demo_text}
  step "training on data/demo_text: masked text first, then labels"
  build/train_classifier --texts data/demo_text/train.tsv --dev data/demo_text/dev.tsv \
    --test data/demo_text/test.tsv --vocab data/demo_text/vocab.txt --output "$output" --overwrite \
    --hidden-size 64 --num-heads 2 --max-length 48 --initializer-range 0.08 \
    --pretrain 8 --pretrain-lr 0.003 --epochs 12 --batch-size 32 --lr 0.002 --warmup-steps 150

  step "ten texts that it has not seen"
  build/predict_text --models "$output/models" --input data/demo_text/examples.txt

  step "where things are"
  echo "models       $output/models (best_model.safetensors, labels.json, vocab.txt)"
  echo "pictures     $output/plots/*.png (and training_metrics.json)"
  echo "figures      $output/evaluation.json"
  echo "your own texts: build/train_classifier --help"
  exit 0
fi

output=${1:-output/demo}
step "training on data/demo"
build/train_model --data data/demo --output "$output" --overwrite \
  --objective causal --hidden-size 64 --num-heads 2 --max-seq-len 64 --dropout 0.2 \
  --epochs 60 --batch-size 16 --lr 0.002 --schedule linear --warmup-steps 100 \
  --split last --best-by top10

step "evaluating on the last title of each viewer, which training never saw"
build/evaluate_model --data data/demo --model "$output/models"

viewer=demo_0007
step "ten titles for the viewer $viewer"
build/recommend --data data/demo --model "$output/models" --user "$viewer" --count 10

step "one page that follows a viewer through that model, forward and backward"
build/explain --data data/demo --model "$output/models" --user demo_0014 \
  --output "$output/explain.html"

step "where things are"
echo "explained    $output/explain.html: open it in a browser first"
echo "models       $output/models (best_model.safetensors, item_mappings.json)"
echo "checkpoints  $output/checkpoints"
echo "pictures     $output/plots/*.png (and training_metrics.json)"
echo "log          $output/logs/training.log"
echo "your own data: build/import_interactions --help; your AniList: sh tools/run_all.sh --help"
