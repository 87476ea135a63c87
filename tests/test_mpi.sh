#!/bin/sh
# train_model_mpi as processes of mpirun: the same bits again, a rank that fails or is killed ends
# all with one line, and the run resumes as if nothing had been. Exit 77 where there is no MPI.
#   sh tests/test_mpi.sh FOLDER_OF_THE_BINARIES
set -u
. "$(dirname "$0")/check.sh"

if [ ! -x "$bin/train_model_mpi" ] || ! command -v mpirun >/dev/null; then
  echo "skipped: built without MPI (Debian: libopenmpi-dev)"
  exit 77
fi
if mpirun --version | grep -q "Open MPI"; then
  quiet="-q" # without what mpirun itself says of a rank that ended
  start="--oversubscribe --bind-to none"
  [ "$(id -u)" != 0 ] || start="$start --allow-run-as-root"
else
  quiet= start=
fi
ranks() {
  n=$1
  shift
  mpirun $quiet $start -n "$n" "$bin/train_model_mpi" "$@"
}
loud() (
  quiet=
  "$@"
)
options="--data $here/data/demo --hidden-size 16 --num-heads 2 --threads 1 --save-every 2"
train() {
  n=$1 output=$2
  shift 2
  ranks "$n" $options --output "$output" "$@"
}
same() { cmp -s "$1/models/final_model.safetensors" "$2/models/final_model.safetensors"; }
is_same() { same "$1" "$2" && ok || bad "$1 and $2 have the same bits"; }

# ---- usage: one line, of whichever rank ---------------------------------------------------------
expect 0 "Example" ranks 2 --help
[ "$(grep -c Example out)" = 1 ] && ok || bad "the help once"
expect 2 "unknown option --nonsense" ranks 2 --nonsense
expect 1 "missing/items.jsonl" ranks 2 --data missing --output o
expect 1 "a single rank" train 1 o
expect 1 "no run to resume from" ranks 2 --resume --output o
expect 1 "GPU" train 2 o --gpu 999 # without CUDA, a device, or so many
[ -z "$(ls o/models 2>/dev/null)" ] && ok || bad "no model was written"

# ---- the way it should be: what one process finds, by two ---------------------------------------
expect 0 "2 ranks" train 2 two --epochs 4
expect 0 "best epoch" train 2 again --epochs 4
is_same two again
expect 0 "best epoch" "$bin/train_model" $options --output one --epochs 4
for run in one two; do
  grep -o '"val_losses": \[[^]]*' $run/plots/training_metrics.json | tr -d ' \n' |
    sed 's/\(\.[0-9]\{5\}\)[0-9]*/\1/g' >$run.losses
done
cmp -s one.losses two.losses && ok || bad "losses of one process"
expect 1 "holds a run already" train 2 two --epochs 4

# ---- ranks that disagree ------------------------------------------------------------------------
# apart OPTIONS_OF_RANK_0 OPTIONS_OF_RANK_1
apart() {
  mpirun $quiet $start -n 1 "$bin/train_model_mpi" $options --output apart $1 \
    : -n 1 "$bin/train_model_mpi" $options --output apart $2
}
expect 1 "rank 1: batch_size is 64, expected 32 as on rank 0" \
  apart "--batch-size 32" "--batch-size 64"
cp -r "$here/data/demo" data
rm data/dataset.json
sed -i '$d' data/histories.jsonl
expect 1 "rank 1: data is" apart "--epochs 1" "--epochs 1 --data data"

# ---- a rank is killed, or asked to stop ---------------------------------------------------------
expect 0 "best epoch" train 2 whole --epochs 30
# disturbed OUTPUT SIGNAL: to one of two ranks once there is a checkpoint; the exit code is $found
disturbed() {
  output=$1
  loud train 2 "$output" --epochs 30 >out 2>err </dev/null &
  waits=$!
  tries=0
  until ls "$output"/checkpoints/*.safetensors >/dev/null 2>&1 || [ $tries = 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  # The newest process with this output folder: a rank, since they begin behind mpirun.
  kill -"$2" "$(pgrep -n -f "train_model_mpi .*--output $output ")"
  wait $waits
  found=$?
}
disturbed killed KILL
[ $found != 0 ] && ok || bad "a killed rank ends all"
! pgrep -f "train_model_mpi .*--output killed " >/dev/null && ok || bad "nobody is left"
if [ -n "$quiet" ]; then # Open MPI, whose line it is
  [ "$(grep -c "rank . .*signal 9" err)" = 1 ] && ok || bad "one line that says which"
fi
! grep -q train_model_mpi: err && ok || bad "and no other"
same whole killed && bad "there is something left to do" || ok
expect 0 "continuing after epoch" ranks 2 --resume --output killed
is_same whole killed
disturbed asked TERM
[ $found = 143 ] && ok || bad "asked to stop: exit $found"
grep -q "mpirun -n 2 .*--resume" out && ok || bad "says how to continue"
expect 0 "continuing after epoch" ranks 2 --resume --output asked
is_same whole asked
expect 1 "holds a run already" train 3 whole --epochs 30
expect 0 "note: begun in float32, 2 ranks, goes on in float32, 3 ranks" \
  ranks 3 --resume --output whole --epochs 31

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
