#!/bin/sh
# Builds the engine on a GPU for the one of this machine, and checks and times it there: every bit
# against the processor, half precision, milliseconds a step, compute-sanitizer. Needs a C++ compiler
# and the CUDA Toolkit with cuBLAS (or Python's package nvidia-cublas); eight minutes at most. What
# each part prints lies in files, too.
#
#   sh tests/cuda/on_device.sh [FOLDER]       (FOLDER: $OUT or build/device)
set -eu
cd "$(dirname "$0")/../.."
folder=${1:-${OUT:-build/device}}
work=build/device-objects
rm -rf "$work"
mkdir -p "$folder" "$work"
PATH=$PATH:/usr/local/cuda/bin
nvidia-smi >"$folder/nvidia-smi.txt" 2>&1 || { cat "$folder/nvidia-smi.txt"; exit 1; }

# find_file NAME: the first of that name where cuBLAS may lie.
find_file() { find -L /usr/local/cuda* /opt /usr -name "$1" 2>/dev/null | head -1; }
blas_header=$(find_file cublas_v2.h) blas=$(find_file 'libcublas.so.*')
if [ -z "$blas_header" ] || [ -z "$blas" ]; then
  echo "$0: cublas_v2.h or libcublas.so was not found" >&2
  exit 1
fi
blas_folder=$(dirname "$blas")
link="-Xlinker -rpath,$blas_folder -lpthread -ldl"

# start COMMAND...: beside the others; wait_for_all fails if one of them did.
started=
start() {
  "$@" &
  started="$started $!"
}
wait_for_all() {
  for process in $started; do wait "$process"; done
  started=
}
compile="${CXX:-g++} -std=c++20 -O2 -pthread -I. -Itests -DBERT4REC_EXTERN"
start nvcc -std=c++20 -O3 -fmad=false -arch=native -lineinfo -I"$(dirname "$blas_header")" \
  -c cuda/kernels.cu -o "$work/kernels.o"
start $compile -UBERT4REC_EXTERN -c tools/common/engine.cpp -o "$work/cpu.o"
start $compile -c cuda/engine.cpp -o "$work/gpu.o"
start $compile -c tests/cuda/test_cuda.cpp -o "$work/test.o"
start $compile -c tests/cuda/time_device.cpp -o "$work/time.o"
wait_for_all
engine="$work/kernels.o $work/cpu.o $work/gpu.o"
start nvcc $engine "$work/test.o" -o "$work/test_device" $link
start nvcc $engine "$work/time.o" -o "$work/time_device" $link
wait_for_all

# part NAME SECONDS COMMAND...: runs it, at most so long, and tells how it ended.
failed=0
part() {
  name=$1 seconds=$2
  shift 2
  code=0
  timeout -k 5 "$seconds" "$@" >"$folder/$name.txt" 2>&1 || code=$?
  case $code in
    0) end=passed ;;
    124 | 137) end="not finished in $seconds s" failed=1 ;;
    *) end=FAILED failed=1 ;;
  esac
  echo "$name: $end: $(tail -1 "$folder/$name.txt")"
}

part same-bits 90 "$work/test_device"
part times 100 "$work/time_device" 2
# Without half precision, whose kernels are cuBLAS's own.
for tool in memcheck racecheck initcheck synccheck; do
  for cases in items gbce matching classification; do
    part "$tool-$cases" 12 env CHECK_ONLY=$cases compute-sanitizer --tool "$tool" \
      --error-exitcode 1 "$work/test_device"
  done
done
exit $failed
