#!/bin/sh
# The snippets of Python in tools/README.md, each run as it stands there on what the tools wrote,
# and compared with them. One whose packages are not there is left out, which is said.
#   sh tests/test_python.sh FOLDER_OF_THE_BINARIES       ($PYTHON: an interpreter; else python3)
set -u
. "$(dirname "$0")/check.sh"
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "skipped: no $python"; exit 77; }

# has MODULE
has() {
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1"
}
# train OPTIONS...: a run in output, on the data that the snippets name
train() {
  rm -rf output
  expect 0 "best epoch" "$bin/train_model" --data data/demo --output output --hidden-size 16 \
    --num-heads 2 --max-seq-len 12 --batch-size 16 --epochs 3 --lr 0.005 --best-by top10 "$@"
  cp out trained
}
# agrees SNIPPET WHAT: it runs, with the lines behind it that compare
agrees() {
  cat "$1" - >with_checks.py
  expect 0 "" "$python" with_checks.py
  [ -s out ] && ok || bad "$2 prints nothing"
}

check_torch() {
  ids=$(sed -n 's/.*for id in (\(.*\))\]$/\1/p' "$1")
  for options in "" "--architecture paper --max-seq-len 2" "--objective causal --max-seq-len 2" \
    "--architecture paper --objective causal --inner-size 24 --norm-epsilon 0.01" \
    "--architecture tied --objective causal"; do
    train $options
    expect 0 "" "$bin/recommend" --model output/models --items "$ids" --json
    cp out expected.json
    agrees "$1" "a model of ${options:-the default architecture}" <<'PY'

expected = json.load(open("expected.json"))["recommendations"]
found = probabilities.topk(10)
assert len(expected) == 10
assert [items[i]["id"] for i in found.indices] == [one["id"] for one in expected]
for p, one in zip(found.values.tolist(), expected):
    assert abs(p - one["score"]) < 1e-5 * one["score"], (p, one["score"])
PY
  done
}

# check_index SNIPPET: the ten best for the first user, of whom only the snippet knows the name
check_index() {
  for task in items matching; do
    train --task $task
    expect 0 "" "$bin/export_vectors" --model output/models --data data/demo \
      --output output/vectors
    name=$("$python" -c 'import json; print(json.load(open("output/vectors/user_names.json"))[0])')
    expect 0 "" "$bin/recommend" --model output/models --data data/demo --user "$name" \
      --keep-seen --json
    cp out expected.json
    agrees "$1" "an index of $task" <<'PY'

expected = json.load(open("expected.json"))["recommendations"]
assert [ids[i] for i in found[0]] == [one["id"] for one in expected]
PY
  done
}

check_pandas() {
  for every in 1 0.5; do
    train --eval-every $every --best-by loss
    best=$(sed -n 's/^best epoch \([0-9.]*\) by .*, validation loss \(.*\)$/[\1, \2]/p' trained)
    agrees "$1" "a table of curves" <<PY

epoch, loss = $best
assert len(table) == 3 / $every and table["val_loss"].idxmin() == epoch
assert abs(table["val_loss"].min() - loss) < 1e-4
assert abs(table.iloc[metrics["best_epoch"] - 1]["val_loss"] - loss) < 1e-4
PY
  done
}

ln -s "$here/data" data
awk '/^```/ { inside = $0 == "```python"; n += inside; next }
  inside { print >("snippet_" n ".py") }' "$here/tools/README.md"
for library in torch faiss hnswlib pandas; do
  snippet=$(grep -l "^import $library\$" snippet_*.py)
  if [ ! -f "$snippet" ]; then bad "tools/README.md: not one snippet of $library"; continue; fi
  missing=
  for module in $(sed -n 's/^import \([a-z_]*\).*/\1/p' "$snippet"); do
    has "$module" || missing="$missing $module"
  done
  if [ -n "$missing" ]; then
    echo "skipped: the snippet of $library, for want of:$missing"
  else
    case $library in
      torch | pandas) "check_$library" "$snippet" ;;
      *) check_index "$snippet" ;;
    esac
  fi
  mv "$snippet" "$snippet.done"
done
ls snippet_*.py >out 2>/dev/null && bad "snippets that no test runs"

echo "$passed passed, $failed failed"
[ "$passed" != 0 ] || [ "$failed" != 0 ] || exit 77
[ $failed = 0 ]
