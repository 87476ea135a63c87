#!/bin/sh
# A model kept fresh: trained until nine tenths of the days, then at each of nine later dates brought
# up to date by a few epochs on what there is now (train_model --init-from), beside training anew
# and leaving it as it was. Each is asked for the first item that users got in the slice to come.
# Prints a table in Markdown: HR@10 and NDCG@10 over all slices, and seconds of training.
#
#   sh tools/studies/fresh_models.sh RATINGS [OUTPUT]     (OUTPUT: output/fresh)
#
# RATINGS: lines of user::item::rating::time, such as ratings.dat of MovieTweetings. Of it count the
# items that have five ratings or more in the end, and the users who have five of those.
set -eu
case ${1:---help} in
  -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
ratings=$1 output=${2:-output/fresh}
bin=${BERT4REC_BUILD:-$(cd "$(dirname "$0")" && pwd)/../../build}
slices=10
mkdir -p "$output"

# Times of the cuts: 0 ... slices.
awk -F:: 'FNR == NR { ++n[$2]; next } n[$2] >= 5' "$ratings" "$ratings" >"$output/some"
awk -F:: 'FNR == NR { ++n[$1]; next } n[$1] >= 5' "$output/some" "$output/some" |
  sort -t: -k7,7n >"$output/sorted"
first=$(head -n 1 "$output/sorted" | sed 's/.*:://')
last=$(tail -n 1 "$output/sorted" | sed 's/.*:://')
cut_at() { awk -v a="$first" -v b="$last" -v k="$1" -v n=$slices \
  'BEGIN { printf "%.0f", a + (b - a) * (0.9 + 0.1 * k / n) }'; }

# train NAME DATA EPOCHS OPTION...: a model, unless it is there.
train() {
  name=$1 data=$2 epochs=$3
  shift 3
  [ -s "$output/$name/models/final_model.safetensors" ] ||
    "$bin/train_model" --data "$data" --output "$output/$name" --overwrite --objective causal \
      --hidden-size 64 --num-heads 2 --max-seq-len 50 --batch-size 64 --dropout 0.3 \
      --epochs "$epochs" --split last --best-by top10 --schedule linear --warmup-steps 50 "$@" >&2
}

# ask NAME K KIND: its figures for the items that users got first behind cut K.
ask() {
  mkdir -p "$output/ranks"
  "$bin/evaluate_model" --model "$output/$1/models" \
    --data "$output/data_$(($2 + 1))" --grown-from "$output/data_$2" --json 2>/dev/null |
    tr -d '\n' >"$output/ranks/$3_$2.json"
}

k=0
while [ $k -le $slices ]; do
  awk -F:: -v until="$(cut_at $k)" '$4 <= until' "$output/sorted" >"$output/cut"
  [ -s "$output/data_$k/histories.jsonl" ] ||
    "$bin/import_interactions" --input "$output/cut" --output "$output/data_$k" >&2
  k=$((k + 1))
done

train anew_0 "$output/data_0" 20 --lr 0.001
k=0 before_mean=anew_0 before_random=anew_0
while [ $k -lt $slices ]; do
  if [ $k -gt 0 ]; then
    train "anew_$k" "$output/data_$k" 20 --lr 0.001
    for new in mean random; do
      eval "before=\$before_$new"
      train "${new}_$k" "$output/data_$k" 3 --lr 0.0005 --init-from "$output/$before/models" \
        --new-items $new
      eval "before_$new=${new}_$k"
    done
  fi
  ask "anew_$k" $k anew
  ask "$before_mean" $k mean
  ask "$before_random" $k random
  ask anew_0 $k frozen
  k=$((k + 1))
done

# Of all slices together, weighed by their users; and the seconds of the last nine trainings.
echo "| | users asked | HR@10 | NDCG@10 | seconds of training |"
echo "|---|---|---|---|---|"
for kind in frozen mean random anew popularity; do
  case $kind in
    frozen) name="as it was" ;;
    mean) name="three epochs more, new items as the mean" ;;
    random) name="three epochs more, new items at random" ;;
    anew) name="trained anew, 20 epochs" ;;
    popularity) name="popularity" ;;
  esac
  seconds=$(cat "$output/${kind}"_[1-9]/logs/training.log 2>/dev/null |
    sed -n 's/.* seconds \([0-9.e-]*\).*/\1/p' | awk '{ s += $1 } END { printf "%.0f", s }')
  field=next_item of=$kind
  [ $kind != popularity ] || field=next_item_popularity of=anew
  for file in "$output/ranks/${of}"_*.json; do
    sed "s/.*\"$field\": {\\([^}]*\\)}.*/\\1/; s/[\",:]/ /g" "$file"
    echo
  done | awk -v name="$name" -v seconds="$seconds" '
    { for (i = 1; i < NF; ++i) v[$i] = $(i + 1) }
    NF { users += v["users"]; hits += v["users"] * v["hr@10"]; gain += v["users"] * v["ndcg@10"] }
    END { printf "| %s | %d | %.4f | %.4f | %s |\n", name, users, hits / users, gain / users, seconds }'
done
