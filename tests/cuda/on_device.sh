#!/bin/sh
# Builds the engine on a GPU for the one of this machine, and checks and times it there: every bit
# against the processor, compute-sanitizer, milliseconds a step. Needs a C++ compiler and the CUDA
# Toolkit alone; under eight minutes. What each part prints lies in files, too.
#
#   sh tests/cuda/on_device.sh [FOLDER]       (FOLDER: $OUT or build/device)
set -eu
cd "$(dirname "$0")/../.."
folder=${1:-${OUT:-build/device}}
work=build/device-objects
mkdir -p "$folder" "$work"
PATH=$PATH:/usr/local/cuda/bin
compile="${CXX:-g++} -std=c++20 -O2 -pthread -I. -Itests -DBERT4REC_EXTERN"
nvidia-smi >"$folder/nvidia-smi.txt" 2>&1 || { cat "$folder/nvidia-smi.txt"; exit 1; }

nvcc -std=c++20 -O3 -fmad=false -arch=native -lineinfo -c cuda/kernels.cu -o "$work/kernels.o" &
$compile -UBERT4REC_EXTERN -c tools/common/engine.cpp -o "$work/cpu.o" &
$compile -c cuda/engine.cpp -o "$work/gpu.o" &
$compile -c tests/cuda/test_cuda.cpp -o "$work/test.o" &
$compile -c tests/cuda/time_device.cpp -o "$work/time.o" &
wait
engine="$work/kernels.o $work/cpu.o $work/gpu.o"
nvcc $engine "$work/test.o" -o "$work/test_device" -lcublas -lpthread
nvcc $engine "$work/time.o" -o "$work/time_device" -lcublas -lpthread

# part NAME SECONDS COMMAND...: runs it, at most so long, and tells how it ended.
failed=0
part() {
  name=$1 seconds=$2
  shift 2
  if timeout "$seconds" "$@" >"$folder/$name.txt" 2>&1; then end=passed; else end=FAILED failed=1; fi
  echo "$name: $end: $(tail -1 "$folder/$name.txt")"
}

part same-bits 120 "$work/test_device"
part times 120 "$work/time_device" 3
for tool in memcheck racecheck initcheck synccheck; do
  part "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 "$work/test_device"
done
exit $failed
