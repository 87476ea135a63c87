#!/bin/sh
# Plants faults in a copy of the kernels and looks whether test_cuda finds each: barriers left out,
# wrong indices, a sum in no fixed order, a rounding too many.
#
#   sh tests/cuda/planted.sh        (in build/planted)
set -eu
cd "$(dirname "$0")/../.."
folder=build/planted
mkdir -p "$folder"
compile="${CXX:-c++} -std=c++20 -O2 -ffp-contract=off -pthread -I. -Itests -Itests/cuda -Icuda"
compile="$compile -DBERT4REC_EXTERN -DBERT4REC_EMULATION"
$compile -UBERT4REC_EXTERN -c tools/common/engine.cpp -o "$folder/cpu.o"
$compile -c cuda/engine.cpp -o "$folder/gpu.o"
$compile -c tests/cuda/test_cuda.cpp -o "$folder/test.o"

# try_fault NAME SED...: the kernels with a fault fail the test; without one they pass the case that
# finds most faults (and all others in the suites of tests/run.sh).
try_fault() {
  name=$1 here=$folder/$number
  shift
  mkdir -p "$here"
  sed "$@" cuda/kernels.cu >"$here/kernels.cpp"
  if [ "$name" != nothing ] && cmp -s cuda/kernels.cu "$here/kernels.cpp"; then
    echo "planted $name: the text to change was not found" >&2
    return 1
  fi
  $compile "$here/kernels.cpp" "$folder"/*.o -o "$here/test_cuda" || return 1
  only=
  [ "$name" != nothing ] || only="items, paper"
  found=nothing
  CHECK_ONLY=$only CHECK_FIRST=1 "$here/test_cuda" >"$here/log" 2>&1 || found=a-fault
  case $name.$found in
    nothing.nothing) echo "planted nothing: passes" ;;
    nothing.* | *.nothing)
      echo "planted $name: the test finds $found" >&2
      return 1
      ;;
    *) echo "planted $name: found by \"$(sed -n 's/^FAILED  //p' "$here/log")\"" ;;
  esac
}

# plant NAME SED...: the same in a folder of the next number, one after the other.
number=0
plant() {
  number=$((number + 1))
  try_fault "$@" || touch "$folder/failed"
}
rm -f "$folder/failed" "$folder/kernels.o"

# Only the last case finds this one: it runs beside all the others, as number 1.
plant "a loss of another rank that is no number goes unheard" \
  's/if (!(fabs(loss) <= largest)) decision->broken/if (false) decision->broken/' &
number=1
plant nothing ''
plant "no barrier before a product reads its parts" '/of_a.put(a_part), of_b.put(b_part);/{n;d;}'
plant "one place where two take turns" '/unsigned turn = 0;  \/\/ two places/,/{$/s/turn ^= 1u/turn ^= 0u/'
plant "the same for the norm" '/float\* chunk = .* turn \* square_chunk/s/turn/0/'
plant "no barrier after the scores of a tile" '/dot_rows(m, n, D, q, k,/{n;/__syncthreads/d;}'
plant "the neighbour's column" 's/return dy\[(first + t) \* width + j\];/return dy[((first + t) * width + j) ^ 1];/'
plant "blocks added as they come" \
  's/^  if (threadIdx.x == 0) squares\[part\] = sum;/  if (threadIdx.x == 0) atomicAdd(squares + part % 2, sum - squares[part] * 0);/'
plant "two roundings for one" 's/sum_ez = fused(e, z(i), sum_ez);/sum_ez += e * z(i);/'
plant "no barrier before the best of two is taken" '/for (unsigned half = search_threads/{n;d;}'
plant "places of an id in falling order" \
  's/return from\[std::size_t{sorted.places\[first + i\]} \* H + j\];/return from[std::size_t{sorted.places[sorted.begins[blockIdx.x + 1] - 1 - i]} * H + j];/'
wait
[ ! -e "$folder/failed" ]
