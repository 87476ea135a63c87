#!/bin/sh
# Builds the engine on a GPU for the one of this machine, and checks and times it there: every bit
# against the processor, half precision, milliseconds a step, PyTorch beside it, compute-sanitizer,
# and ranks: threads, with MPI also processes, and with two GPUs and NCCL between those.
# Needs a C++ compiler and the CUDA Toolkit with cuBLAS (or Python's package nvidia-cublas), and to
# compare with it PyTorch; some ten minutes on 16 cores. What each part prints lies in files, too.
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

# find_file PATH: the first whose path ends so, where cuBLAS and NCCL may lie.
find_file() { find -L /usr/local/cuda* /opt /usr -path "*/$1" 2>/dev/null | head -1; }
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
nccl_header=$(find_file include/nccl.h) nccl=$(find_file 'lib*/libnccl.so.2')
if [ -n "$nccl_header" ] && [ -n "$nccl" ]; then
  cuda_header=$(find_file include/cuda_runtime.h)
  compile="$compile -DBERT4REC_WITH_NCCL"
  nccl_objects="$work/nccl.o -Xlinker $nccl"
  link="$link -Xlinker -rpath,$(dirname "$nccl")"
  start $compile -I"$(dirname "$nccl_header")" -I"$(dirname "$cuda_header")" -c cuda/nccl.cpp \
    -o "$work/nccl.o"
else
  echo "NCCL was not found: nothing is tried between GPUs"
  nccl_objects=
fi
mpi=
if command -v mpirun >/dev/null && command -v mpicxx >/dev/null; then
  mpi="mpirun -n 2"
  if mpirun --version | grep -q "Open MPI"; then
    mpi="$mpi -q --oversubscribe --bind-to none"
    [ "$(id -u)" != 0 ] || mpi="$mpi --allow-run-as-root"
  fi
  start mpicxx ${compile#* } -Itools -DBERT4REC_WITH_CUDA \
    -c tools/distributed/train_model_mpi.cpp -o "$work/mpi.o"
  start $compile -Itools -c tests/plain_plots.cpp -o "$work/plots.o"
else
  echo "MPI was not found: ranks are threads only"
fi
start $compile -c tests/cuda/test_cuda.cpp -o "$work/test.o"
start $compile -c tests/cuda/time_device.cpp -o "$work/time.o"
start $compile -Itools -DBERT4REC_WITH_CUDA -c tools/benchmark/benchmark.cpp -o "$work/benchmark.o"
wait_for_all
engine="$work/kernels.o $work/cpu.o $work/gpu.o"
start nvcc $engine "$work/test.o" $nccl_objects -o "$work/test_device" $link
start nvcc $engine "$work/time.o" -o "$work/time_device" $link
start nvcc $engine "$work/benchmark.o" -o "$work/benchmark" $link
if [ -n "$mpi" ]; then
  start nvcc -ccbin mpicxx $engine "$work/mpi.o" "$work/plots.o" $nccl_objects \
    -o "$work/train_model_mpi" $link
fi
wait_for_all

# part NAME SECONDS COMMAND...: runs it, at most so long, and tells how it ended.
part() {
  name=$1 seconds=$2
  shift 2
  code=0
  timeout -k 5 "$seconds" "$@" >"$folder/$name.txt" 2>&1 || code=$?
  case $code in
    0) end=passed ;;
    124 | 137) end="not finished in $seconds s" ;;
    *) end=FAILED ;;
  esac
  [ "$code" = 0 ] || touch "$work/failed"
  echo "$name: $end: $(tail -1 "$folder/$name.txt")"
}

# compare NAME SECONDS OPTION...: with PyTorch on the same GPU, if it is there.
compare() {
  name=$1 seconds=$2
  shift 2
  part "$name" "$seconds" python3 tools/benchmark/torch_bench.py --benchmark "$work/benchmark" \
    --device cuda --rounds 2 --seconds 0.5 "$@"
  cat "$folder/$name.txt"
}

part same-bits 60 "$work/test_device"
part times 60 "$work/time_device" 1
cat "$folder/times.txt"
# Two processes, on processors and on one GPU, through the host; and, each with its own, by NCCL: of
# two numbers a sum has one order. All leave the same model.
if [ -n "$mpi" ]; then
  ranks="$mpi $work/train_model_mpi --data data/demo --epochs 2 --threads 2"
  model=models/final_model.safetensors
  part ranks-processors 40 $ranks --output "$work/ranks"
  part ranks-one-gpu 40 $ranks --output "$work/ranks-one" --gpu 0
  part ranks-one-gpu-bits 5 cmp "$work/ranks/$model" "$work/ranks-one/$model"
  if [ "$(nvidia-smi -L | wc -l)" -gt 1 ] && [ -n "$nccl_objects" ]; then
    part ranks-nccl 40 env NCCL_ALGO=Ring $ranks --output "$work/ranks-nccl" --gpu
    part ranks-nccl-bits 5 cmp "$work/ranks/$model" "$work/ranks-nccl/$model"
  fi
fi
if python3 -c 'import torch' 2>/dev/null; then
  compare torch 75 --no-compile --shapes seed,ml-1m,large,bert-base
  compare torch-half 75 --no-compile --half --shapes seed,ml-1m,large,bert-base
  compare torch-compiled 120 --shapes seed,ml-1m
else
  echo "torch: python3 has no PyTorch to compare with"
fi
# Without half precision, whose kernels are cuBLAS's own.
for tool in memcheck racecheck initcheck synccheck; do
  for cases in items gbce matching classification; do
    part "$tool-$cases" 150 env CHECK_ONLY=$cases compute-sanitizer --tool "$tool" \
      --error-exitcode 1 "$work/test_device" &
  done
  wait
done
[ ! -e "$work/failed" ]
