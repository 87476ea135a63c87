#!/bin/sh
# The command-line tools as a person uses and misuses them: exit codes, one clear line, nothing lost.
#   sh tests/test_tools.sh FOLDER_OF_THE_BINARIES
set -u
. "$(dirname "$0")/check.sh"

train() {
  data=$1 output=$2
  shift 2
  "$bin/train_model" --data "$data" --output "$output" --hidden-size 8 --num-heads 2 \
    --max-seq-len 16 --epochs 2 --batch-size 4 --threads 1 "$@"
}

# ---- a small data set: 12 users, 9 items ------------------------------------------------------
mkdir good
i=0
while [ $i -lt 9 ]; do
  case $((i % 3)) in 0) genre=Drama ;; 1) genre=Comedy ;; *) genre=Café ;; esac
  echo "{\"id\": $((10 + i)), \"title\": {\"english\": \"Title $i\"}, \"genres\": [\"$genre\"]}"
  i=$((i + 1))
done >good/items.jsonl
u=0
while [ $u -lt 12 ]; do
  printf '{"user": "u%s", "entries": [' $u
  i=0
  while [ $i -lt 6 ]; do
    [ $i = 0 ] || printf ', '
    printf '{"id": %s, "at": %s}' $((10 + (u + i) % 9)) $((1000 + i))
    i=$((i + 1))
  done
  echo ']}'
  u=$((u + 1))
done >good/histories.jsonl

# broken NAME FILE LINE TEXT: a copy of the data with one line replaced (or added)
broken() {
  rm -rf "$1" && cp -r good "$1"
  sed "$3c\\
$4" good/"$2" >"$1/$2"
}

# see TOOL: remembers the names at the top of the JSON that it left in out. (The end of this script
# compares them with tools/README.md.)
see() {
  awk '{
    for (i = 1; i <= length($0); i++) {
      c = substr($0, i, 1)
      if (inside && c == "\\") i++
      else if (c == "\"") { inside = !inside; if (inside) begin = i + 1; else end = i }
      else if (inside) continue
      else if (c ~ /[[{]/) depth++
      else if (c ~ /[]}]/) depth--
      else if (c == ":" && depth == 1) print substr($0, begin, end - begin)
    }
  }' out >>"seen_$1"
}

# ---- usage --------------------------------------------------------------------------------------
for tool in train_model recommend evaluate_model import_interactions make_demo_data \
  make_demo_text audit_dataset export_vectors benchmark tokenize_text train_classifier \
  predict_text convert_bert make_report_lists reproduce_report compare_runs; do
  expect 0 "Example" "$bin/$tool" --help
  sed -i '/^Example/,$d' out
  awk 'length > 80' out >err
  grep -o '^  --[^ ]*' out | sort | uniq -d >>err
  [ ! -s err ] && ok || bad "$tool --help: a line of more than 80 letters, or an option twice"
  expect 2 "unknown option --nonsense" "$bin/$tool" --nonsense
  expect 2 "unexpected word" "$bin/$tool" nonsense
done
expect 0 "Model:" "$bin/train_model" --help
[ "$(sed -n '/^Loss:/,/^$/p' out | grep -c '^  --')" = 4 ] && ok || bad "four options of the loss"
expect 2 "unknown option --epoch (did you mean --epochs?)" "$bin/train_model" --epoch 3
expect 2 "unknown option --lerning-rate (did you mean --learning-rate?)" \
  "$bin/train_model" --lerning-rate=1
expect 2 "unknown option --keep (did you mean --keep-seen?)" "$bin/recommend" --keep
expect 2 'unexpected word "-user" (did you mean --user?)' "$bin/recommend" -user u1
expect 2 "unknown option --frobnicate; see" "$bin/train_model" --frobnicate
expect 2 "--epochs needs a value" "$bin/train_model" --epochs
expect 2 "expected a number" "$bin/train_model" --epochs=ten
expect 2 "constant|linear|cosine" "$bin/train_model" --schedule step
expect 2 "--resume takes no value" "$bin/train_model" --resume=yes
expect 2 "--epochs 0: expected 1 ... 10000000" "$bin/train_model" --data good --output o --epochs 0
expect 1 "num_heads is 3" "$bin/train_model" --data good --output o --hidden-size 8 --num-heads 3
expect 1 "GPU" "$bin/train_model" --data good --output o --gpu 999 # without CUDA, a device, or so many
expect 1 "GPU" "$bin/train_model" --gpu --data good --output o --gpu=999
expect 2 "expected a number" "$bin/train_model" --gpu=first
expect 2 "needs --gpu" "$bin/train_model" --data good --output o --fp16
expect 1 "missing/items.jsonl" "$bin/train_model" --data missing --output o

# ---- the way it should be -----------------------------------------------------------------------
expect 0 "2,092 parameters" train good run --split=last
expect 0 "2,092 parameters" train good quiet --split=last --quiet
[ "$(sed -n '$p' out)" = "models, checkpoints, plots and logs are in quiet" ] &&
  ! grep -q "^epoch" out && ok || bad "--quiet prints no epochs"
expect 0 "popularity" "$bin/evaluate_model" --data good --model run/models
expect 0 '"next_item_popularity"' "$bin/evaluate_model" --data good --model run/models --json
see evaluate_model
[ "$(grep -c '"low"' out)" = 3 ] && ok || bad "an interval for each of three rows"
evaluate() { "$bin/evaluate_model" --data good "$@"; }
expect 0 "Markov" evaluate --baselines-only
grep -q "BERT4Rec" out && bad "baselines only" || ok
expect 0 "100 unseen items drawn evenly" evaluate --model run/models --protocol every
[ "$(grep -c "12 users, ranked among" out)" = 4 ] && ok || bad "four tables"
expect 0 "drawn by popularity" evaluate --baselines-only --protocol popular-100
[ "$(grep -c "ranked among" out)" = 2 ] && ok || bad "the headline and one more"
expect 0 "BERT4Rec, shuffled" evaluate --model run/models --shuffle-histories
expect 0 "| popularity | 0." evaluate --baselines-only --markdown
expect 0 "validation item of 12 users" evaluate --baselines-only --held-out validation
expect 2 "all-unseen|all-items|popular-100|uniform-100|every" evaluate --protocol half
expect 0 "100 unseen items drawn evenly (3 where no more are left)" \
  evaluate --baselines-only --protocol uniform-100
expect 2 "--seed 9223372036854775808: expected 0" evaluate --seed 9223372036854775808
expect 2 "not both" evaluate --json --markdown
expect 2 "needs a model" evaluate --baselines-only --shuffle-histories

# ---- published rows -----------------------------------------------------------------------------
for name in ml1m beauty; do
  preset=$here/tools/studies/presets/published-$name.json
  expect 1 "about other data" evaluate --baselines-only --published "$preset"
  sed 's/^  "users".*/  "users": 12,/; s/^  "items".*/  "items": 9,/
    s/^  "interactions".*/  "interactions": 72,/' "$preset" >published.json
  expect 0 "Sun et al." evaluate --baselines-only --published published.json --protocol every
done
expect 0 "" train good by_users --split users
expect 1 "published rows are about split last" evaluate --model by_users/models \
  --published published.json
expect 1 "ranks.json" evaluate --model by_users/models --published published.json \
  --ranks missing/ranks.json # told before anything else
expect 2 "not --held-out validation" evaluate --published published.json --held-out validation
# published ROW: a file with that row
published() {
  echo '{"users": 12, "items": 9, "interactions": 72, "sources": {"p": "A paper"}, "rows": ['"$1"']}' \
    >published.json
}
row='"protocol": "all-unseen", "model": "M", "source": "p"'
published "{$row, \"hr@10\": 0.25, \"mrr\": 0.125}"
expect 0 "  M [1]              -       -  0.2500       -         -       -       -    0.1250" \
  evaluate --baselines-only --published published.json
published "{$row, \"hr@10\": 25}"
expect 1 'published.json: row 1: field "hr@10" is 25, expected 0 ... 1' \
  evaluate --baselines-only --published published.json
published "{$row, \"hr@10\": 0.25}, {$row, \"hr@7\": 0.1}"
expect 1 "row 2: no metric" evaluate --baselines-only --published published.json
published "{$row, \"hr@10\": 0.25, \"hr@7\": 0.1}"
expect 1 "row 1: a field other than" evaluate --baselines-only --published published.json
published "{$row}" && sed -i 's/all-unseen/all/' published.json
expect 1 '"all" is none of all-unseen' evaluate --baselines-only --published published.json
published "{$row, \"mrr\": 0.1}" && sed -i 's/"source": "p"/"source": "q"/' published.json
expect 1 'missing field "q"' evaluate --baselines-only --published published.json
published "{$row,"
expect 1 "published.json: byte" evaluate --baselines-only --published published.json
expect 1 "absent.json: cannot open" evaluate --baselines-only --published absent.json

# ---- several seeds ------------------------------------------------------------------------------
expect 0 "over 2 seeds: loss" train good seeds --seeds 2 --seed 7
[ -s seeds/seed_7/models/best_model.safetensors ] && [ -s seeds/seed_8/plots/metrics.csv ] && ok ||
  bad "a folder for each seed"
grep -q "^best epoch [12] by loss, validation loss" out && ok || bad "what chose the best epoch"
cp seeds/seeds.json all_seeds
expect 1 "holds runs of several seeds already" train good seeds --seeds 2 --seed 7
rm -r seeds/seed_8 # as if it had been stopped before
expect 0 "over 2 seeds: loss" "$bin/train_model" --output seeds --resume
cmp -s seeds/seeds.json all_seeds && ok || bad "resumed seeds end as uninterrupted ones"
expect 2 "the runs were begun with 2" "$bin/train_model" --output seeds --resume --seeds 3
expect 0 " by top10 100.00%, validation loss" train good by_top10 --best-by top10
expect 0 "best epoch" train good one_seed --seed 8
cmp -s one_seed/models/final_model.safetensors seeds/seed_8/models/final_model.safetensors && ok ||
  bad "a seed among several is that seed alone"
expect 2 "--seeds 1: expected 2 ... 1000" train good o --seeds 1
expect 2 "--seeds or --folds, not both" train good o --seeds 2 --folds 3
expect 0 "over 2 seeds" train good seeds_of_fold --seeds 2 --folds 3 --fold 2
expect 0 "over 2 seeds" "$bin/train_model" --output seeds_of_fold --resume
expect 1 "holds a single run" train good by_top10 --seeds 2 --overwrite
expect 2 "--init-from begins one run" train good o --seeds 2 --init-from run/models
expect 1 "--overwrite would remove it" \
  train good seeds --overwrite --init-from seeds/../seeds/seed_7/models
expect 2 "--fp16 needs --gpu" train good seeds --overwrite --fp16
expect 1 "BERT4REC_KERNELS is \"none\"" env BERT4REC_KERNELS=none "$bin/train_model" --data good --output seeds --overwrite
expect 1 "num_heads is 3" train good seeds --overwrite --num-heads 3
[ -s seeds/seeds.json ] && [ -s seeds/seed_7/models/final_model.safetensors ] && ok ||
  bad "what cannot be trained removes nothing"
expect 1 "num_heads is 3" train good new_seeds --seeds 2 --num-heads 3
[ ! -e new_seeds ] && ok || bad "what cannot be trained writes nothing"
expect 0 "" train good seeds --overwrite
[ ! -e seeds/seeds.json ] && [ ! -e seeds/seed_7 ] && ok || bad "--overwrite removes older seeds"

# ---- comparing ----------------------------------------------------------------------------------
expect 0 "popularity lift" evaluate --model run/models --ranks best.json
expect 0 "popularity lift |" evaluate --model run/models --name final_model --ranks final.json --markdown
expect 0 '"popularity_lift@10"' evaluate --baselines-only --json --ranks chain.json
compare() { "$bin/compare_runs" "$@"; }
expect 0 "BERT4Rec (first) and BERT4Rec (second), test item of" compare --a best.json --b final.json
expect 0 "may be chance" compare --a best.json --b best.json
expect 0 '"verdict"' compare --a best.json --b chain.json --against Markov --json
see compare_runs
expect 1 "of baselines alone" compare --a chain.json --b best.json
expect 0 "Markov (first) and popularity (second)" \
  compare --a chain.json --row Markov --against popularity
expect 1 'no ranks of "nobody", only of BERT4Rec, Markov, popularity' \
  compare --a best.json --against nobody
expect 0 "" evaluate --model run/models --held-out validation --ranks other.json
expect 1 "ranks of other users" compare --a best.json --b other.json
expect 1 "absent.json: cannot open" compare --a absent.json --b best.json
expect 2 "--a names no file" compare --b best.json
expect 2 "what is it to be compared with" compare --a best.json
sed 's/"ranks": {"BERT4Rec": \[./&0/' best.json >broken.json
expect 1 "broken.json: the checksum does not match" compare --a broken.json --b best.json

# ---- data that grow ------------------------------------------------------------------------------
mkdir more
cp good/items.jsonl more
echo '{"id": 5, "title": "New"}' | cat - good/items.jsonl >more/items.jsonl # all numbers are others
sed '1,3s/]}$/, {"id": 5, "at": 2000}, {"id": 18, "at": 2001}]}/' good/histories.jsonl >more/histories.jsonl
echo '{"user": "late", "entries": [{"id": 5, "at": 1}]}' >>more/histories.jsonl
expect 0 "first new item of 3 users" evaluate --data more --grown-from good --model run/models
expect 0 '"held_out": "new"' evaluate --data more --grown-from good --model run/models --json
expect 0 "first new item of 3 users" evaluate --data more --grown-from good --baselines-only
expect 1 "no user has an item that is new" evaluate --grown-from good --model run/models
expect 1 "no user has an item that is new" evaluate --data more --grown-from more --baselines-only
sed '1,3s/, {"id": 18, "at": 2001}//' more/histories.jsonl >one && cp -r more step && mv one step/histories.jsonl
"$bin/evaluate_model" --data more --grown-from step --model run/models >out 2>err &&
  grep -q "note: run/models/best_model.safetensors was trained on other data than step" err &&
  grep -q "first new item of 3 users" out && ok || bad "a model that is older than the questions"
expect 1 'the history of "u0" does not go on' evaluate --grown-from more --baselines-only
expect 2 "not with --held-out" evaluate --grown-from good --held-out validation
expect 0 "which knows 9 of the items" train more grown --init-from run/models --lr 1e-9
expect 0 "" "$bin/recommend" --model run/models --items 10,11,12 --json --count 7
grep '"id"' out >ids_before
expect 0 "" "$bin/recommend" --model grown/models --items 10,11,12 --json --count 8 --exclude 5
grep '"id"' out >ids_after
cmp -s ids_before ids_after && ok || bad "what was learned is not where it was"
expect 0 "which knows 9 of the items" train more other --init-from run/models --new-items random
expect 2 "--init-from begins a run" "$bin/train_model" --output grown --resume --init-from run/models
expect 1 "absent" train more other --init-from absent
expect 2 "--new-items needs --init-from" train more other --new-items random
expect 1 "rows of item_embedding.weight have 8 numbers, expected 4" \
  train more other --init-from run/models --hidden-size 4 --overwrite

# ---- recommending -------------------------------------------------------------------------------
expect 0 "Title" "$bin/recommend" --model run/models --data good --user u3 --count 2
expect 0 '"recommendations"' "$bin/recommend" --model run/models --items 10,11 --json
[ "$(grep -c '"score"' out)" = 7 ] && ok || bad "7 items are unseen"
see recommend
expect 1 "no user \"nobody\"" "$bin/recommend" --model run/models --data good --user nobody
expect 1 'no item has the id or title "99"' "$bin/recommend" --model run/models --items 10,99
expect 2 "one of --user, --items, --title" "$bin/recommend" --model run/models
pick() { "$bin/recommend" --model run/models --data good "$@"; }
expect 0 "--items: left out 1 of 2" pick --items 10,99 --skip-unknown
expect 1 "--items: no item that the model knows" pick --items 99 --skip-unknown
expect 1 'no item has the id or title "3"' pick --items 3 # a number is no part of a title
expect 0 "after 1 items" pick --items 10,3 --skip-unknown
expect 0 "after 1 items" pick --items 10 --exclude 99 --skip-unknown
expect 2 "nothing is named that could be unknown" pick --user u3 --skip-unknown
expect 2 "--genre names none" pick --items 10 --genre ,
expect 0 "after 2 items" pick --title "title 3" --title 14
expect 0 "after 2 items" pick --items "Title 3, 14"
expect 1 'no item has the id or title "Totle"; the nearest: Title 0 (10), Title 1 (11), Title 2 (12)' \
  pick --title Totle
expect 0 "      13  Title 3  (Drama)" pick --search "3 TITLE"
[ "$(wc -l <out)" = 1 ] && ok || bad "one title has a 3"
expect 0 '"title": {' pick --search title --count 2 --json
[ "$(grep -c '"id"' out)" = 2 ] && ok || bad "two of the titles found"
expect 1 'no title has "Totle"; the nearest: Title 0' pick --search Totle
expect 1 "run: holds a run, expected its models folder, run/models" \
  "$bin/recommend" --model run --data good --user u3
mkdir others
sed 's/"id": /"id": 9/g' good/histories.jsonl >others/histories.jsonl
expect 1 "has no known item: do the histories belong to these items?" \
  pick --data others --user u3
expect 0 "" pick --items 10 --genre "cafe, Drama" --exclude "Title 8,12"
[ "$(grep -c '%.*Title [356]  (' out)" = 3 ] && [ "$(grep -c % out)" = 3 ] && ok ||
  bad "of two genres, without two titles and the one seen"
expect 1 'no item is of "Horror"; there are Café, Comedy, Drama' pick --items 10 --genre Horror
expect 1 "nothing is left to recommend" pick --items 10,13,16 --genre Drama
expect 0 "" pick --items 10,13,16 --genre Drama --keep-seen
[ "$(grep -c '%.*(Drama)' out)" = 3 ] && ok || bad "seen ones of a genre"
printf '\357\273\277 11\r\n\tTitle 0 \n\n' >candidates
expect 0 "" pick --items 10 --candidates candidates
[ "$(grep -c '%.*Title [01]  (' out)" = 2 ] && [ "$(grep -c % out)" = 2 ] && ok ||
  bad "the scores of two candidates, one of them seen"
: >candidates
expect 1 "candidates: no candidates" pick --items 10 --candidates candidates
expect 1 "absent: cannot open" pick --items 10 --candidates absent
expect 0 "the first leans on" pick --user u3 --explain
[ "$(sed '1,/leans on/d' out | grep -c '[-+][0-9]*\.[0-9][0-9]  Title')" = 5 ] && ok ||
  bad "the five heaviest of six"
expect 0 '"log_probability"' pick --user u3 --explain --json
see recommend
expect 2 "--explain goes with one history" pick --all-users --explain
expect 2 "not with --similar-to" pick --similar-to 13 --genre Drama
expect 0 "" pick --all-users --count 1
[ "$(grep -c '^{"user": "u[0-9]*", "recommendations": \[{"id": 1[0-9], .*}\]}$' out)" = 12 ] &&
  ok || bad "a line for each user"
cp out all
"$bin/recommend" --model run/models --input good/histories.jsonl --count 1 >out 2>err
cmp -s out all && ok || bad "the users of a file are those of the data"
printf '\357\273\277[10, 11]\n[10,\n[10, 99]\n\n{"user": "x", "entries": [{"id": 12}]}\n[12]' |
  pick --input - --count 1 >out 2>err
[ $? = 1 ] && grep -q "standard input: 2 of 6 lines were answered by an error" err &&
  [ "$(grep -c '^{.*}$' out)" = 5 ] && [ "$(grep -c '"recommendations"' out)" = 3 ] &&
  sed -n 3p out | grep -q '{"line": 3, "error": "standard input:3: byte .*no item has the id 99"}' &&
  ok || bad "a line that cannot be read is answered by an error, and the rest goes on"
see recommend
echo '[10, 99, 98]' | pick --input - --skip-unknown >out 2>err && grep -q '^{"unknown": 2, ' out &&
  ok || bad "unknown ids of a line are counted"
see recommend
mkfifo ask.fifo
: >out
pick --input ask.fifo --count 1 >out 2>err &
{
  echo '[10]'
  i=0
  while [ ! -s out ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
  [ -s out ] && echo '[11]'
} >ask.fifo
wait $! && [ "$(wc -l <out)" = 2 ] && ok || bad "a line is answered before the next is written"
printf '[10]\n\n' | pick --input - --count 1 >out 2>err && [ "$(wc -l <out)" = 1 ] && ok ||
  bad "a blank line at the end keeps no answer back"
similar() { "$bin/recommend" --model run/models --similar-to "$@"; }
expect 0 "most like it, by cosine" similar "title 3"
[ "$(grep -c "Title 3" out)" = 1 ] && [ "$(grep -c "  Title" out)" = 9 ] && ok ||
  bad "the eight other items are compared with Title 3"
cp out by_title
expect 0 "" similar 13
cmp -s out by_title && ok || bad "an id and its title mean the same item"
expect 0 "Title 8" similar "E 8"
expect 0 '"similar_to": {' similar 13 --json --count 3
[ "$(grep -c '"score"' out)" = 3 ] && ok || bad "three similar items"
see recommend
expect 1 'no item has the id or title "Title 9"' similar "Title 9"
expect 1 'may be 9 items: Title 0 (10), Title 1 (11), Title 2 (12), Title 3 (13), Title 4 (14), ...; give' \
  similar title
expect 2 "one of --user" similar 13 --user u3

# ---- matching -----------------------------------------------------------------------------------
expect 0 "48 interactions, with negatives 96 samples an epoch" \
  train good match --split=last --task matching
grep -q "auc 0\..*  scale 1[0-9]\..*  item_cosine" out && ok || bad "measures of matching"
expect 0 "continuing after epoch 2" "$bin/train_model" --output match --resume --epochs 3
grep -q '"val_measures"' match/plots/training_metrics.json && ok || bad "measures in the file"
cp match/plots/training_metrics.json out
see training_metrics.json
grep -q '"run": "match"' out && grep -q '"data": "good"' out && grep -q '"Markov"' out && ok ||
  bad "names and baselines in the file"
cp match/plots/combined_metrics.png drawn.png
touch match/plots/loss_curve.svg # as visualize --format svg leaves it
expect 0 "combined_metrics.png, combined_metrics.svg" \
  "$bin/visualize" --metrics match/plots/training_metrics.json --output pictures --format both
cmp -s pictures/combined_metrics.png drawn.png && ok || bad "visualize draws what training drew"
expect 0 "best epoch" train good match --split=last --task matching --overwrite
[ ! -e match/plots/loss_curve.svg ] && ok || bad "a picture of the run that was replaced"
expect 0 "Matching" evaluate --model match/models
expect 0 "Title" "$bin/recommend" --model match/models --data good --user u3 --count 2
expect 2 "--allow-collapse" train good o --task matching --neg-ratio 0
expect 0 "they will collapse" train good o --task matching --neg-ratio 0 --allow-collapse
expect 1 "neg_ratio is 4, but user \"u0\" knows 6 of the 9 items" \
  train good o --task matching --neg-ratio 4 --overwrite
expect 2 "--fixed-scale 1000: expected 0 ... 100" \
  train good o --task matching --fixed-scale 1000 --overwrite
expect 1 "loss is bce, but matching has a loss of its own" \
  train good o --task matching --loss bce --overwrite
rm -rf o

# ---- vectors ------------------------------------------------------------------------------------
expect 0 "exported: 9 items and 12 users, vectors of 9 numbers" \
  "$bin/export_vectors" --model run/models --data good --output exported
ls exported >out
[ "$(tr '\n' ' ' <out)" = "item_ids.json item_vectors.npy user_names.json user_vectors.npy " ] && ok ||
  bad "the files of an export"
[ "$(wc -c <exported/user_vectors.npy)" = $((128 + 12 * 9 * 4)) ] && ok || bad "the size of a .npy file"
expect 0 "exported: 9 items, vectors" \
  "$bin/export_vectors" --model run/models --output exported --format safetensors
ls exported >out
[ "$(tr '\n' ' ' <out)" = "item_ids.json item_vectors.safetensors " ] && ok ||
  bad "vectors of users of another export stayed"
expect 2 "npy|safetensors" "$bin/export_vectors" --model run/models --format txt
cp -r exported kept_vectors
expect 1 "nowhere/histories.jsonl" \
  "$bin/export_vectors" --model run/models --data nowhere --output exported
diff -r exported kept_vectors >out && ok || bad "a refused export changed the files"

# ---- bad data: nothing of the run before is touched --------------------------------------------
cp -r run before
broken d1 histories.jsonl 3 '{"user": "x", "entries": [}'
expect 1 "d1/histories.jsonl:3: byte 27" train d1 run --split=last --overwrite
broken d2 histories.jsonl 2 '{"user": "x", "entries": [{"id": 1.5, "at": 1}]}'
expect 1 "d2/histories.jsonl:2: byte" train d2 run --split=last --overwrite
broken d3 items.jsonl 4 '{"id": 10}'
expect 1 "d3/items.jsonl:4: item id 10 stands twice" train d3 run --split=last --overwrite
broken d4 items.jsonl 1 '{"title": "no id"}'
expect 1 'd4/items.jsonl:1: byte 19: missing field "id"' train d4 run --split=last --overwrite
broken d5 histories.jsonl 5 '{"user": "x", "entries": [{"id": 777, "at": 1}]}'
expect 1 'd5/histories.jsonl:5: user "x" has no known item' train d5 run --split=last --overwrite
broken d6 histories.jsonl 5 '{"user": "u1", "entries": [{"id": 10, "at": 1}]}'
expect 1 'd6/histories.jsonl:5: user "u1" stands twice' train d6 run --split=last --overwrite
cp -r good d7 && : >d7/items.jsonl
expect 1 "d7/items.jsonl: no items" train d7 run --split=last --overwrite
cp -r good d8 && : >d8/histories.jsonl
expect 1 "d8/histories.jsonl: no users" train d8 run --split=last --overwrite
expect 1 "leaves no validation user" train good run --val-ratio=0.01 --overwrite
expect 1 "leaves no training user" train good run --val-ratio=0.99 --overwrite
expect 1 "run: holds a run already: --resume continues it, --overwrite replaces it" \
  train good run --split=last
diff -r before run >out && ok || bad "a refused run changed the output"

# ---- checkpoints of another configuration, other data, none, damaged ---------------------------
expect 1 "--seed 7: the run was made with 42" train good run --split=last --seed=7 --resume
expect 1 "--num-heads 4: the run was made with 2" train good run --num-heads=4 --resume
expect 1 "--lr 0.1: the run was made with 0.001" train good run --lr=0.1 --resume
expect 1 "--max-seq-len 7: the run was made with 16" "$bin/train_model" --output run --resume \
  --max-seq-len 7
expect 1 "has seen 2 epochs, more than epochs 1" train good run --epochs=1 --resume
expect 2 "not both" train good run --resume --overwrite
broken d9 histories.jsonl 5 '{"user": "x", "entries": [{"id": 10, "at": 1}]}'
expect 1 "made from other data" train d9 run --split=last --resume
expect 1 "trained on other data" "$bin/evaluate_model" --data d9 --model run/models
expect 1 "empty: no run to resume from" train good empty --split=last --resume
checkpoint=run/checkpoints/checkpoint_epoch_2.safetensors
cp $checkpoint whole
head -c 2000 whole >$checkpoint
expect 1 "$checkpoint" train good run --split=last --resume
{ head -c -80 whole; printf 'damage!!'; tail -c 72 whole; } >$checkpoint
expect 1 "checksum" train good run --split=last --resume
cp whole $checkpoint
expect 0 "continuing after epoch 2" train good run --split=last --resume
expect 0 "continuing after epoch 2" "$bin/train_model" --output run --resume
expect 0 "epoch 3/3" "$bin/train_model" --output run --resume --epochs 3 --save-every 1
touch run/checkpoints/checkpoint_epoch_2.safetensors # newest is not furthest
expect 0 "continuing after epoch 3" "$bin/train_model" --output=run --resume
sed 's/"batch_size": 4/"batch_size": 5/' run/models/training_config.json >config
cp run/models/training_config.json kept && cp config run/models/training_config.json
expect 1 "training_config.json: the checksum does not match" "$bin/train_model" --output run --resume
cp kept run/models/training_config.json

# ---- presets, folds, early stopping -------------------------------------------------------------
echo '{"model": {"hidden_size": 8, "num_heads": 2}, "train": {"epochs": 3, "split": "last"}}' >p.json
expect 0 "epoch 3/3" "$bin/train_model" --data good --output preset --preset p.json --threads 1
expect 0 "epoch 1/1" "$bin/train_model" --data good --output preset --preset p.json --epochs 1 --overwrite
ls preset/checkpoints >out
[ "$(cat out)" = checkpoint_epoch_1.safetensors ] && ok || bad "the old run is gone as a whole"
expect 0 "epoch 3/3" "$bin/train_model" --data good --output preset_again \
  --preset preset/models/training_config.json --epochs 3
echo '{"train": {"epoch": 3}}' >p.json
expect 1 'p.json: unknown field "epoch"' "$bin/train_model" --data good --output p --preset p.json
echo '{"train": {"epochs": 3}, "modell": {}}' >p.json
expect 1 'p.json: unknown field "modell"' "$bin/train_model" --data good --output p --preset p.json
expect 0 "over 3 folds: loss" train good folds --folds 3
expect 1 "folds/fold_1: holds a run already" train good folds --folds 3
expect 0 "over 3 folds: loss" "$bin/train_model" --output folds --resume
expect 0 "over 2 folds: loss" train good folds --folds 2 --overwrite
[ ! -e folds/fold_3 ] && ok || bad "the third of three folds is gone"
expect 0 "over 3 folds: loss" train good folds --folds 3 --overwrite
[ -s folds/fold_3/models/best_model.safetensors ] && grep -q '"standard_deviation"' \
  folds/cross_validation.json && ok || bad "the folders of the folds"
expect 0 "8 users to train on, 4 to validate" train good fold --folds 3 --fold 2
expect 1 "folds is 13" train good thirteen --folds 13
expect 0 "stopped early" train good early --split last --epochs 500 --lr 0.1 --patience 3

# ---- models that are not models ----------------------------------------------------------------
model=run/models/best_model.safetensors
cp $model whole
head -c 100 whole >$model
expect 1 "$model" "$bin/recommend" --model run/models --items 10
printf 'not a model' >$model
expect 1 "$model: header size" "$bin/recommend" --model run/models --items 10
cp whole $model
mv run/models/item_mappings.json kept
expect 1 "item_mappings.json" "$bin/recommend" --model run/models --items 10
head -c 200 kept >run/models/item_mappings.json
expect 1 "item_mappings.json: the checksum does not match" "$bin/recommend" --model run/models --items 10
mv kept run/models/item_mappings.json

# ---- two trainers, a folder that cannot be written ---------------------------------------------
"$bin/train_model" --data good --output busy --hidden-size 8 --num-heads 2 --epochs 100000 \
  --split last >/dev/null 2>&1 &
first=$!
tries=0
while [ ! -s busy/logs/training.log ] && [ $tries -lt 600 ]; do
  tries=$((tries + 1))
  sleep 0.05
done
expect 1 "another process or Trainer is writing to this folder" train good busy --overwrite
# So is a folder of several seeds, all the while.
"$bin/train_model" --data good --output busy_seeds --hidden-size 8 --num-heads 2 --epochs 100000 \
  --split last --seeds 2 >/dev/null 2>&1 &
second=$!
tries=0
while [ ! -s busy_seeds/seed_42/logs/training.log ] && [ $tries -lt 600 ]; do
  tries=$((tries + 1))
  sleep 0.05
done
expect 1 "another process or Trainer is writing to this folder" train good busy_seeds --overwrite
[ -s busy_seeds/seed_42/logs/training.log ] && ok || bad "a run of several seeds was removed"
kill -TERM $second
wait $second
# A signal finishes the step, saves, and prints the command that continues.
kill -TERM $first
wait $first
[ $? = 143 ] && ok || bad "SIGTERM gives 143"
[ -s busy/checkpoints/checkpoint_interrupted.safetensors ] && ok || bad "no checkpoint after SIGTERM"
# So does a terminal that is closed, and a reader that goes away.
"$bin/train_model" --output busy --resume --kernels plain >out 2>err &
first=$!
tries=0
until grep -q "^continuing" out || [ $tries -ge 600 ]; do
  tries=$((tries + 1))
  sleep 0.05
done
rm -f busy/checkpoints/checkpoint_interrupted.safetensors
kill -HUP $first
wait $first
[ $? = 129 ] && ok || bad "SIGHUP gives 129"
[ -s busy/checkpoints/checkpoint_interrupted.safetensors ] && ok || bad "no checkpoint after SIGHUP"
{ "$bin/train_model" --output busy --resume 2>err; echo $? >code; } | head -1 >out
[ "$(cat code)" = 141 ] && [ ! -s err ] && ok || bad "a closed pipe gives 141, and no word"
: >file
expect 1 "file" train good file/below --split=last
if [ "$(id -u)" != 0 ]; then
  mkdir sealed && chmod 555 sealed
  expect 1 "sealed" train good sealed --split=last
elif command -v unshare >/dev/null && unshare -m true 2>/dev/null; then
  mkdir sealed
  expect 1 "Read-only file system" unshare -m sh -c "mount -t tmpfs -o ro none sealed &&
    exec \"$bin/train_model\" --data good --output sealed"
fi

# ---- interrupted anywhere and resumed: the same bytes -------------------------------------------
long() { exec "$bin/train_model" --data good --output "$1" --hidden-size 8 --num-heads 2 --batch-size 2 \
  --max-seq-len 16 --epochs 500 --split last --threads "$2" $3; }
(long straight 1 "") >/dev/null
stops=0
long pieces 2 "" >/dev/null & pid=$!
for pause in 0.15 0.1 0.05 0.2; do
  sleep $pause
  kill -INT $pid 2>/dev/null
  wait $pid
  [ $? = 130 ] || break
  stops=$((stops + 1))
  long pieces 1 --resume >/dev/null & pid=$!
done
wait $pid
[ $stops -ge 1 ] && ok || bad "the run ended before it could be interrupted"
for name in best_model final_model; do
  cmp straight/models/$name.safetensors pieces/models/$name.safetensors >out 2>&1 && ok ||
    bad "$name differs after SIGINT and --resume"
done

# ---- auditing ---------------------------------------------------------------------------------
# windows STEP: 12 users, windows of 20 items of one long list, each STEP items after the one before
windows() {
  mkdir "windows_$1"
  seq 0 259 | sed 's/.*/{"id": &}/' >"windows_$1/items.jsonl"
  u=0
  while [ $u -lt 12 ]; do
    entries=$(seq $((u * $1)) $((u * $1 + 19)) | sed 's/.*/{"id": &}/' | tr '\n' ',')
    echo "{\"user\": \"u$u\", \"entries\": [${entries%,}]}"
    u=$((u + 1))
  done >"windows_$1/histories.jsonl"
}
windows 10
windows 20
expect 0 "the split leaks: 100 % of the held-out items (20 of 20; all of them for 1 of 1 user)" \
  "$bin/audit_dataset" --data windows_10
expect 0 "the split leaks: 91.7 % of the held-out items (22 of 24;" \
  "$bin/audit_dataset" --data windows_10 --split last
expect 0 "no leak: 0 %" "$bin/audit_dataset" --data windows_20
expect 0 "too little data to tell" "$bin/audit_dataset" --data windows_20
expect 0 '"known_items": 20' "$bin/audit_dataset" --data windows_10 --json
see audit_dataset
expect 1 "windows_10: warnings: 2" "$bin/audit_dataset" --data windows_10 --strict
expect 0 "" "$bin/audit_dataset" --data "$here/data/demo" --split last --strict
expect 1 "leaves no validation user" "$bin/audit_dataset" --data good --val-ratio 0.01
expect 1 "validation_ratio is 7" "$bin/audit_dataset" --data good --val-ratio 7
expect 1 "missing/items.jsonl" "$bin/audit_dataset" --data missing
expect 0 "warning: the split leaks" train windows_10 leaking --epochs=1 --quiet
train windows_20 honest --epochs=1 | grep -q "leaks" && bad "windows_20 accused" || ok

# ---- the benchmark ------------------------------------------------------------------------------
expect 2 'unknown shape "seeds"' "$bin/benchmark" --shape ml-1m,seeds
expect 2 'unknown shape ""' "$bin/benchmark" --shape ""
expect 2 "--kernels mmx: this machine" "$bin/benchmark" --kernels mmx
expect 2 "--seconds is -1" "$bin/benchmark" --seconds -1
expect 1 "missing/items.jsonl" "$bin/benchmark" --shape ml-1m --data missing
expect 0 '"peak_gflops"' "$bin/benchmark" --shape seed --seconds 0.1 --json
cp out seed.json
see benchmark
field() { sed -n "s/^ *\"$1\": \([-0-9.e+]*\),\{0,1\}$/\1/p" seed.json; }
# 6,200 tokens in 31 rows of 200, 930 of them masked, H = 256, 3,000 items; 3 x for the backward:
#   linear     3 * 2 (6200 (3 + 9 + 3) + 930 * 9) 256^2 + 3 * 2 * 930 * 3000 * 256
#   attention  3 * 2 layers * 2 * 2 * 31 * 200^2 * 256
[ "$(field flops)" = 46454169600 ] && ok || bad "seed: operations a step"
[ "$(field flops_called)" = 46454169600 ] && ok || bad "seed: operations that the kernels did"
[ "$(field masked)" = 930 ] && ok || bad "seed: masked tokens"
within() {  # FIELD LOW HIGH, both excluded
  awk -v value="$(field "$1")" -v low="$2" -v high="$3" \
    'BEGIN { exit !(value != "" && value + 0 > low + 0 && value + 0 < high + 0) }' </dev/null &&
    ok || bad "seed: $1 is \"$(field "$1")\""
}
within fraction_of_peak_in_processor_time 0 1.5
within median 1 1000000
within tokens_per_second 1 1e8
within peak_memory_mib 60 1e5 # four arrays of 3,171,771 floats are 48
for chapter in products attention loss elementwise optimizer other; do within $chapter 0 1; done
total=$(sed -n '/"chapters"/,/}/s/.*: \([0-9.e-]*\),\{0,1\}$/\1/p' seed.json |
  awk '{ sum += $1 } END { printf "%.6f", sum }')
[ "$total" = 1.000000 ] && ok || bad "seed: the chapters add up to $total"

# ---- the demonstration data come out byte for byte ---------------------------------------------
expect 0 "" "$bin/make_demo_data" --output demo
for name in items.jsonl histories.jsonl dataset.json; do
  cmp demo/$name "$here/data/demo/$name" >out 2>&1 && ok || bad "demo/$name differs"
done
texts=$here/data/demo_text
expect 0 "579" "$bin/make_demo_text" --output demo_text
for name in vocab.txt train.tsv dev.tsv test.tsv; do
  cmp demo_text/$name "$texts/$name" >out 2>&1 && ok || bad "demo_text/$name differs"
done
expect 0 "" "$bin/make_demo_text" --output other_text --seed 43
cmp -s demo_text/test.tsv other_text/test.tsv && bad "another seed gave the same texts" || ok
expect 2 "--test 0: expected 1 ... 20000" "$bin/make_demo_text" --output t --test 0
cat "$texts"/*.tsv | cut -f2 | sort | uniq -d >out
[ "$(cat out)" = text ] && ok || bad "a text stands twice in data/demo_text"
cat "$texts"/*.tsv | cut -f2 | "$bin/tokenize_text" --vocab "$texts/vocab.txt" >out 2>err
awk '{ tokens += NF; unknown += gsub(/\[UNK\]/, ""); if (NF == 0) exit 1 }
  END { exit !(NR == 5003 && unknown > 0 && unknown < 0.01 * tokens) }' out && ok ||
  bad "of the tokens of data/demo_text some, but less than 1 %, are unknown, and no line is empty"

# ---- the seed's report: lists as promised, and the mistake that makes them look learnt ----------
expect 0 "" "$bin/make_report_lists" --output lists
expect 0 "" "$bin/make_report_lists" --output again
diff -r lists again >out && ok || bad "the same seed gave other lists"
expect 0 "" "$bin/make_report_lists" --output again --seed 43
cmp -s lists/histories.jsonl again/histories.jsonl && bad "another seed gave the same lists" || ok
expect 2 "--titles 19: expected 20 ... 100000" "$bin/make_report_lists" --output t --titles 19
awk '{ n = gsub(/"id"/, ""); if (n < 20 || n > 1500) exit 1; short += n < 100; long += n > 300 }
  END { exit !(NR == 34 && short > 17 && long > 0) }' lists/histories.jsonl && ok ||
  bad "34 lists of 20 to 1500 titles, most of them short"
awk '{ split("", seen); for (i = 1; i < NF; i++) if ($i == "{\"id\":" && seen[$(i + 1)]++) exit 1 }' \
  lists/histories.jsonl && ok || bad "a title stands twice in a list"

# report OUTPUT OPTIONS...: at lists cut to 20 titles, of which 3 are hidden
report() {
  folder=$1
  shift
  BERT4REC_BIN="$bin" sh "$here/tools/studies/reproduce_report.sh" --output "$folder" --hidden-size 32 \
    --num-heads 2 --max-seq-len 20 --threads 1 "$@"
}
expect 0 "Closest to the report: " report tiny --epochs 1 --hidden-size=8
grep -q "at least 2572 tokens in training" out && grep -q "^268 in validation" out && ok ||
  bad "the counts behind the reported percentages"
for line in "31 rows to train on, 3 to validate; scored 93 and 9 " \
  "34 rows to train on, 3 to validate; scored 102 and 9 " \
  "31 rows to train on, 3 to validate; scored 620 and 60 "; do
  grep -qF "$line" out && ok || bad "reproduce_report lacks: $line"
done
for stride in 10 2; do  # windows that share half and nine tenths
  rows=$(awk -v s=$stride '{ n = gsub(/"id"/, "") - 20; rows += 1 + int((n + s - 1) / s) }
    END { v = int(rows / 10 + 0.5); print rows - v " rows to train on, " v " to" }' \
    tiny/lists/histories.jsonl)
  grep -qF "$rows" out && ok || bad "windows $stride apart: $rows"
done
cp out first_out
ls -i tiny/*.json >inodes
report tiny --epochs 1 --hidden-size=8 >out 2>err
cmp -s out first_out && [ "$(ls -i tiny/*.json)" = "$(cat inodes)" ] && ok ||
  bad "finished runs were repeated"
expect 2 "expected one of honest, seen" report tiny --only nothing
expect 2 "--data needs a value" report tiny --data
# Of 40 titles each is seen often: what stands in the input is copied, what is hidden is not known.
"$bin/make_report_lists" --titles 40 --output few
top_1() { awk "/$1/"'{ for (i = 1; i < NF; i++) if ($i == "top-1") print int($(i + 1)) }' out; }
for only in every complete; do
  report few_$only --data few --epochs 60 --lr 0.005 --only $only >out 2>err
  [ "$(top_1 'title in some')" -gt 90 ] && ok || bad "$only: visible titles are copied"
  hidden=$(top_1 '[0-9] hidden ')
  if [ $only = every ]; then [ "$hidden" -lt 50 ]; else [ -z "$hidden" ]; fi && ok ||
    bad "$only: hidden titles"
done

# ---- tokens ------------------------------------------------------------------------------------
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' play '##ing' . mask '[' ']' >vocab.txt
# tokens INPUT OPTIONS LINE...: what is printed for an input.
tokens() {
  printf "$1" | "$bin/tokenize_text" --vocab vocab.txt $2 >out 2>err || bad "tokenize_text $2"
  shift 2
  [ $# = 0 ] && : >expected || printf '%s\n' "$@" >expected
  cmp -s out expected && ok || bad "tokenize_text prints something else than $*"
}
tokens '' ''
tokens '\n' '' ''
tokens 'Playing.\r\n\n x [MASK]\nplay' '' 'play ##ing .' '' '[UNK] [ mask ]' play
tokens 'Playing.\n\nx' --ids '5 6 7' '' 1
tokens 'Playing\n\n' '--ids --special' '2 5 6 3' '2 3'
tokens 'play' --special '[CLS] play [SEP]'
tokens 'x [MASK]' '--rules hugging-face' '[UNK] [MASK]'
tokens 'pl\377ay\000ing' '' 'play ##ing'
printf 'playing\nplay' >texts.txt
expect 0 "play ##ing" "$bin/tokenize_text" --vocab vocab.txt --input texts.txt
[ "$(wc -l <out)" = 2 ] && ok || bad "a line for each line"
expect 2 "--vocab must be given" "$bin/tokenize_text"
expect 2 "google|hugging-face" "$bin/tokenize_text" --vocab vocab.txt --rules other
expect 1 "none.txt: cannot open: No such file" "$bin/tokenize_text" --vocab none.txt
expect 1 "none.txt: cannot open: No such file" "$bin/tokenize_text" --vocab vocab.txt --input none.txt
expect 1 "good: cannot read: Is a directory" "$bin/tokenize_text" --vocab vocab.txt --input good
expect 1 "texts.txt: no line is [PAD]" "$bin/tokenize_text" --vocab texts.txt
if [ -w /dev/full ]; then
  "$bin/tokenize_text" --vocab vocab.txt --input texts.txt >/dev/full 2>err
  [ $? = 1 ] && grep -q "cannot write" err && ok || bad "tokenize_text on a full disk"
fi
# A line of 4 MB without a space, and an answer to each line before the next one is asked.
head -c 4000000 /dev/zero | tr '\0' a >long.txt
expect 0 "[UNK]" "$bin/tokenize_text" --vocab vocab.txt --input long.txt
mkfifo questions answers
timeout 20 "$bin/tokenize_text" --vocab vocab.txt <questions >answers &
exec 3>questions 4<answers
echo playing >&3
read -r answer <&4
[ "$answer" = "play ##ing" ] && ok || bad "an answer to each line"
exec 3>&- 4<&-
wait

# ---- classifying texts --------------------------------------------------------------------------
# Texts of two letters and a few more, of which "a" comes before "b" in those of label 1.
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' a b c d >letters.txt
awk 'BEGIN {
  print "text\tlabel"
  for (i = 0; i < 240; i++) {
    c = ""; d = ""
    if (i % 3) c = "c "
    if (i % 5) d = " d"
    text = i % 2 ? "b " c "a" d : c "a" d " b"
    print text (i % 7 ? " c" : "") "\t" (1 - i % 2)
  }
}' >letters.tsv
classify() {
  output=$1
  shift
  "$bin/train_classifier" --texts letters.tsv --vocab letters.txt --output "$output" \
    --hidden-size 16 --num-heads 2 --max-length 12 --threads 1 "$@"
}
learn="--epochs 12 --lr 0.005 --warmup-steps 20 --eval-every 0.5 --best-by loss"
expect 0 "validation: accuracy" classify letters $learn
[ "$(grep -c "^epoch" out)" = 24 ] && grep -q "^epoch 0.5/12 " out && ok || bad "two evaluations an epoch"
grep -q "warning: .* training texts repeat another (0 with another label)" out && ok ||
  bad "no word about repeated texts"
grep -q '"accuracy": 1,' letters/evaluation.json && ok || bad "evaluation.json"
for name in models/labels.json models/vocab.txt models/best_model.safetensors \
  plots/loss_curve.png logs/training.log; do
  [ -s letters/$name ] && ok || bad "letters/$name is missing"
done
cp letters/plots/training_metrics.json out
see training_metrics.json
grep -q '"majority label"' out && ok || bad "the majority label"
predict() { "$bin/predict_text" --models letters/models "$@"; }
expect 0 "  1" predict --text "a c b"
[ "$(awk "NR == 1 { print \$2 }" out)" = 1 ] && ok || bad "a before b has label 1"
expect 0 '"label": "0"' predict --text "b a" --json
see predict_text
printf 'a b\r\nb a\n\nb c a d' | "$bin/predict_text" --models letters/models,letters/models \
  --input - >lines 2>err
[ "$(cut -f 1 lines | tr '\n' ' ')" = "1 0 $(sed -n 3p lines | cut -f 1) 0 " ] && ok ||
  { cp lines out; bad "a label for each line"; }
expect 0 "accuracy 100.00%" predict --evaluate letters.tsv
expect 0 '"f1": 1' predict --evaluate letters.tsv --json
see predict_text
expect 0 "validation: accuracy" classify quiet_letters --epochs 1 --eval-every 0.5 --quiet
grep -q "^best epoch" out && ! grep -q "^epoch" out && ok || bad "--quiet prints no evaluations"
expect 0 "all of them warm-up (--warmup-steps 5000)" \
  classify quiet_letters --epochs 1 --warmup-steps 5000 --overwrite
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' a >one_letter.txt
expect 0 "of the training tokens are [UNK]" \
  classify quiet_letters --epochs 1 --vocab one_letter.txt --overwrite
# Interrupted in the middle, and from masked text first: the same bits.
classify part $learn --pretrain 2 >out 2>err
expect 1 "holds a run already" classify part $learn
expect 0 "" classify part $learn --overwrite
cmp -s part/models/best_model.safetensors letters/models/best_model.safetensors && ok ||
  bad "the same seed gave another model"
# Stopped while it learns masked text for a run that replaces another: of that nothing is left, and
# the command that is printed goes on.
(exec "$bin/train_classifier" --texts letters.tsv --vocab letters.txt --output part --threads 1 \
  --hidden-size 16 --num-heads 2 --max-length 12 --pretrain 100000 --overwrite) >out 2>err &
pid=$!
for look in $(seq 300); do
  grep -q "^epoch 2" out && break
  sleep 0.1
done
kill -INT $pid
wait $pid
[ $? = 130 ] && tail -1 out | grep -q -- "--pretrain 100000 --resume$" && ok ||
  bad "the command that goes on"
[ ! -e part/models/best_model.safetensors ] && [ -e part/pretrained/checkpoints ] && ok ||
  bad "the run before is gone"
expect 0 "== masked text: 216 texts" classify masked --epochs 2 --pretrain 2
grep -q "begins anew: pooler.dense.weight" out && ok || bad "which tensors begin anew"
grep -q "begins anew: encoder" out && bad "the encoder is that of the masked text" || ok
expect 0 "continuing after epoch 2" classify masked --epochs 2 --pretrain 2 --resume
expect 0 "validation: accuracy" classify from --epochs 1 --from masked/models --vocab letters.txt
expect 1 "is not the vocabulary of" classify from --from masked/models --vocab vocab.txt --overwrite
# Bigrams: from masked text on, from a model with them and onto one without, and what has none.
expect 0 "validation: accuracy" classify bigrams --epochs 2 --pretrain 1 --bigrams 64
grep -q "begins anew: bigram" out && bad "the bigrams are those of the masked text" || ok
expect 0 "" "$bin/predict_text" --models bigrams/models,letters/models --text "a c b"
[ "$(awk "NR == 1 { print \$2 }" out)" = 1 ] && ok || bad "bigrams beside a model without"
expect 0 "validation: accuracy" classify from --epochs 1 --from bigrams/models --overwrite
grep -q "begins anew" out && bad "all tensors are those of the model begun with" || ok
cp -r masked lost && rm -r lost/models lost/checkpoints lost/plots
expect 1 "of an encoder that has more than this one" classify lost --epochs 2 --pretrain 2 \
  --num-layers 1 --resume
expect 0 "begins anew: bigram_embedding.weight" classify from --epochs 1 --from masked/models \
  --vocab letters.txt --bigrams 64 --overwrite
expect 1 "bigrams is 1, expected 0 or at least 2" classify o --bigrams 1
expect 1 "bigrams of the model is 64, and BERT has none" "$bin/convert_bert" --from from/models --to o
# Other forms of the same: CSV, JSON lines, no header; and wrong ones.
sed 's/\t/,/' letters.tsv >letters.csv
sed 1d letters.tsv >bare.tsv
awk -F '\t' 'NR > 1 { print "{\"text\": \"" $1 "\", \"label\": " $2 "}" }' letters.tsv >letters.jsonl
for texts in letters.csv letters.jsonl "bare.tsv --no-header"; do
  expect 0 "validation: accuracy" classify other --texts $texts $learn --overwrite
  cmp -s other/models/best_model.safetensors letters/models/best_model.safetensors && ok ||
    bad "$texts gave another model"
done
expect 0 "test: accuracy 100.00%" classify other $learn --overwrite --test letters.csv
grep -q "test texts stand in the training texts too" out && ok || bad "no word about the test texts"
sed 's/\t1$/\t2/; s/\t0$/\t1/; s/\t2$/\t0/' letters.tsv | head -5 >turned.tsv
expect 0 "warning: 4 of 4 test texts stand in the training texts too (4 with another label)" \
  classify other --epochs 1 --overwrite --test turned.tsv
grep -q '^  ".*" is [01] and [01]$' out && ok || bad "no text with two labels is named"
printf 'text\tlabel\na b\t1\nc a c c b\t1\n' >half.tsv
expect 0 "on the 1 that do not stand in the training texts" classify other $learn --overwrite \
  --test half.tsv
grep -q '"test_unseen": {' other/evaluation.json && ok || bad "evaluation.json lacks test_unseen"
expect 2 "--texts is missing" "$bin/train_classifier"
expect 2 "--vocab is missing" "$bin/train_classifier" --texts letters.tsv
expect 2 "expected between 0 and 1" classify o --dev-share 1
expect 2 "--from or --pretrain, not both" classify o --from letters/models --pretrain 1
expect 2 "--fixed-scale needs --task matching" train good o --fixed-scale 20
expect 2 "--unlabelled needs --pretrain" classify o --unlabelled letters.csv
expect 2 "--masking needs --pretrain" classify o --masking words
expect 1 "num_heads is 3" classify other --overwrite --pretrain 1 --num-heads 3
expect 1 "missing.tsv" classify other --overwrite --pretrain 1 --unlabelled missing.tsv
expect 2 "--pretrain-lr -1: expected 0" classify other --overwrite --pretrain 1 --pretrain-lr -1
[ -s other/models/best_model.safetensors ] && [ -s other/evaluation.json ] && ok ||
  bad "what cannot be trained removes nothing"
expect 1 'no column is called "words"' classify o --text-column words
expect 1 "give --no-header" classify o --texts bare.tsv
printf 'text\tlabel\na\tx\nb\tx\n' >one.tsv
expect 1 'all texts have the label "x"' classify o --texts one.tsv
printf 'text\tlabel\na\t1\nb\t\n' >unlabelled.tsv
expect 1 "unlabelled.tsv:3: a text without a label" classify o --texts unlabelled.tsv
printf 'text\tlabel\na b\t2\n' >strange.tsv
for use in "predict --evaluate" "classify o --dev" "classify o --test"; do
  expect 1 'strange.tsv: label "2" does not occur in the training texts' $use strange.tsv
done
[ ! -e o ] && ok || bad "a label that is unknown is told before the training"
expect 1 "texts.txt: no line is [PAD]" classify o --vocab texts.txt
expect 1 "none/best_model.safetensors" predict --models none --text a
expect 1 "item_mappings" "$bin/recommend" --data good --model letters/models --user u1
expect 1 "run/models/vocab.txt" "$bin/predict_text" --models run/models --text a
expect 2 "expected one of --text, --input and --evaluate" predict
expect 2 "--input : expected a file or folder" predict --input ""
expect 2 "--task classification: expected items|matching" train good o --task classification
echo '{"model": {"task": "classification", "classes": 2}}' >text_task.json
expect 1 "needs texts (train_classifier)" train good o --preset text_task.json

# ---- BERT of Hugging Face ----------------------------------------------------------------------
convert() {
  from=$1 to=$2
  shift 2
  "$bin/convert_bert" --from "$from" --to "$to" "$@"
}
expect 0 "theirs: written, classification into 2 labels" convert letters/models theirs
for name in config.json model.safetensors vocab.txt; do
  [ -s theirs/$name ] && ok || bad "theirs/$name is missing"
done
expect 0 "ours: written, classification into 2 labels" convert theirs ours
grep -q "begins anew" out && bad "all tensors are there" || ok
predict --input letters.tsv >lines 2>err
expect 0 "" "$bin/predict_text" --models ours --input letters.tsv
cmp -s out lines && ok || bad "there and back: other labels or probabilities"
expect 1 "theirs: holds config.json already; --overwrite replaces it" convert letters/models theirs
expect 1 "ours: holds best_model.safetensors already" convert theirs ours
expect 0 "written" convert letters/models theirs --overwrite --name final_model
expect 0 "written, masked-text, 2 layers" convert masked/pretrained/models unnamed
expect 0 "begins anew: classifier.weight" classify hf --epochs 1 --from unnamed --max-length 8
expect 0 "begins anew, since the file lacks it: classifier.weight" \
  convert unnamed five --classes 5 --max-length 8
expect 0 "into 5 labels" convert five theirs5
grep -q '"LABEL_4": 4' theirs5/config.json && ok || bad "names of five labels"
grep -q '"max_position_embeddings": 8' theirs5/config.json && ok || bad "eight positions"
expect 1 "max_length of the model is 100, max_position_embeddings of config.json 8" \
  convert theirs5 o8 --max-length 100
[ -e o8 ] && bad "a folder of nothing" || ok
expect 1 "holds neither config.json (of Hugging Face) nor best_model.safetensors (ours)" convert good o
cp letters/models/best_model.safetensors theirs5
expect 1 "holds both config.json" convert theirs5 o
expect 1 "a model of task items and architecture torch" convert run/models o
expect 2 "--from and --to must be given" "$bin/convert_bert" --from theirs
expect 2 "are for models of Hugging Face" convert letters/models o --classes 3
cp vocab.txt theirs && expect 1 "vocab.txt has 11 tokens, the model 9" convert theirs o
head -c 3000 unnamed/model.safetensors >cut && mv cut unnamed/model.safetensors
expect 1 "truncated" convert unnamed o
sed 's/"gelu"/"relu"/' theirs/config.json >config && mv config theirs/config.json
expect 1 'theirs/config.json: field "hidden_act" is "relu", expected "gelu"' convert theirs o
rm theirs/model.safetensors && : >theirs/pytorch_model.bin
expect 1 "holds pytorch_model.bin, but no model.safetensors" convert theirs o

# ---- both quickstarts run the same commands ---------------------------------------------------
expect 0 "sh tools/quickstart.sh [text] [OUTPUT]" sh "$here/tools/quickstart.sh" --help
expect 2 "unknown option --output" sh "$here/tools/quickstart.sh" --output
programs='train_model\|evaluate_model\|recommend\|explain\|train_classifier\|predict_text'
# commands FILE: its calls of the programs, one a line, without what the shells write
# differently: ends of lines, quotes, the folder of the programs, the names of variables.
commands() {
  tr -d '\r"$%' <"$1" | sed -e ':join' -e '/[\\^]$/{N;s/[\\^]\n */ /;b join' -e '}' |
    sed -n "s/^.*[\\\\/]\\(\\($programs\\) --\\)/\\1/p" | grep -v help | sort | tr -s ' '
}
commands "$here/tools/quickstart.sh" >sh_commands
commands "$here/tools/quickstart.bat" >bat_commands
expect 0 "" grep -q '^train_model .*--hidden-size 64 .*--best-by top10$' sh_commands
expect 0 "" test "$(wc -l <sh_commands)" = 6
expect 0 "" diff sh_commands bat_commands

# ---- the fields of --json are those that tools/README.md has ------------------------------------
for tool in recommend evaluate_model compare_runs audit_dataset predict_text benchmark \
  training_metrics.json; do
  sort -u seen_$tool >out
  sed -n "/^### \`$tool\( --json\)*\`/,/^##/{s/^| \(\`[^|]*\`\) |.*/\1/p;}" "$here/tools/README.md" |
    tr -d '\` ' | tr , '\n' | sort >documented
  diff documented out >err && ok || bad "tools/README.md has other fields than $tool"
done

echo "$passed passed, $failed failed"
[ $failed = 0 ]
