#!/bin/sh
# From a fresh checkout to recommendations: installs what is missing, builds, trains on data/demo,
# evaluates, and recommends ten titles to one viewer. Takes a few minutes.
#
#   sh tools/quickstart.sh [OUTPUT]      (default: output/demo; a run that is there is replaced)
set -eu
cd "$(dirname "$0")/.."
output=${1:-output/demo}
step() { printf '\n== %s\n' "$1"; }

step "looking for compiler and libraries"
sh tools/install_dependencies.sh

step "building (build/)"
cmake -S . -B build >/dev/null
cmake --build build -j "$(getconf _NPROCESSORS_ONLN)"

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

step "where things are"
echo "models       $output/models (best_model.safetensors, item_mappings.json)"
echo "checkpoints  $output/checkpoints"
echo "pictures     $output/plots/*.png (and training_metrics.json)"
echo "log          $output/logs/training.log"
echo "your own data: build/import_interactions --help; your AniList: sh tools/run_all.sh --help"
