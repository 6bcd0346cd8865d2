#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs a GPU, in one command and under ten minutes; needs no package index:
#
#   benchmarks/gpu.sh                       # results in benchmarks/results
#   OUT=/somewhere PYTHON=python3.12 benchmarks/gpu.sh
#
# Builds with this Python's torch and the nvcc at hand, then: gates on the machine code, tests,
# compute-sanitizer's four tools on a few of them, benchmarks as JSON. Every step runs whatever
# became of the others (but the build's failure ends it); the exit status is 1 if one failed. Each
# has its own limit and none outlasts TOTAL_SECONDS: what is left out then counts as failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OUT="${OUT:-benchmarks/results}"
PYTHON="${PYTHON:-python3}"
TOTAL_SECONDS="${TOTAL_SECONDS:-570}"
TEST_SECONDS="${TEST_SECONDS:-150}"
GRAPH_SECONDS="${GRAPH_SECONDS:-60}"
SANITIZER_SECONDS="${SANITIZER_SECONDS:-40}"  # for each of four tools
BENCH_SECONDS="${BENCH_SECONDS:-90}"  # for each suite
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MDFT_STRICT=1
failed=0

# step NAME SECONDS COMMAND...: keeps what it prints in $OUT/gpu_NAME.log
step() {
  local name=$1 seconds=$2 status=0 left=$((TOTAL_SECONDS - SECONDS))
  shift 2
  if [ "$left" -lt 5 ]; then
    echo "== $name: FAILED, none of the $TOTAL_SECONDS s is left"
    failed=1
    return 1
  fi
  [ "$seconds" -le "$left" ] || seconds=$left
  echo "== $name"
  local start=$SECONDS
  timeout -k 5 "$seconds" bash -c '"$@"' _ "$@" > "$OUT/gpu_$name.log" 2>&1 || status=$?
  tail -n 4 "$OUT/gpu_$name.log"
  echo "== $name: $([ $status -eq 0 ] && echo ok || echo "FAILED ($status)"), $((SECONDS - start)) s"
  [ $status -eq 0 ] || failed=1
  return $status
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem --format=csv &&
    nvcc --version | tail -n 2 &&
    "$PYTHON" -c 'import sys, torch; print(sys.version); print(torch.__version__, torch.version.cuda)
assert torch.cuda.is_available(), "torch sees no GPU"'
}

build() {
  cmake -S . -B build/gpu -G Ninja "-DPython_EXECUTABLE=$(command -v "$PYTHON")" \
    -DMDFT_WITH_CUDA=1 && cmake --build build/gpu
}

# A few tests that reach every kernel, its wide and its narrow path. Each allocation on its own, so
# that an access beyond one is seen; memory is not filled beforehand, so that initcheck sees too.
sanitize() {
  command -v compute-sanitizer || { echo "compute-sanitizer is not installed"; return 1; }
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 MDFT_TEST_FILL=0 \
    compute-sanitizer --tool "$1" --error-exitcode 9 \
    "$PYTHON" -m pytest -m cuda -q -p no:cacheprovider tests/cuda/test_kernels.py \
    -k "any_number_of_vectors and 9-bfloat16-float32 or any_number_of_vectors and 9-float64 \
or alignment and float32-bfloat16 or ragged_rows and paper and counts0 or backward and float16 \
or wrong or range_of_tiles or holds and 257"
}
export -f machine build sanitize
export PYTHON

step machine 60 machine || exit 1
step build 150 build || exit 1
step gates 60 "$PYTHON" scripts/check_sass.py mdft_fast/lib/libmdft_ops_cuda.so
step tests "$TEST_SECONDS" "$PYTHON" -m pytest -m cuda -q -p no:cacheprovider tests/cuda tests/ops \
  --ignore=tests/cuda/test_graph.py
# In a process of its own: a capture that goes wrong can leave the device unusable to what follows.
step graph "$GRAPH_SECONDS" "$PYTHON" -m pytest -m cuda -q -p no:cacheprovider \
  tests/cuda/test_graph.py
for tool in memcheck racecheck initcheck synccheck; do
  step "$tool" "$SANITIZER_SECONDS" sanitize "$tool"
done
step bench_kernels "$BENCH_SECONDS" "$PYTHON" benchmarks/run.py kernels --device cuda \
  --json "$OUT/gpu_kernels.json"
# Whole steps by memory mode: ViT-B/32 and ViT-L/14, 8 x 16 images, bf16. A suite or an option that
# is not there fails its own step alone.
for suite in step memory; do
  step "bench_$suite" "$BENCH_SECONDS" "$PYTHON" benchmarks/run.py "$suite" --device cuda \
    --batches 16 --dtypes bf16 --json "$OUT/gpu_$suite.json"
done
echo "== all: $([ $failed -eq 0 ] && echo ok || echo FAILED), $SECONDS s, results in $OUT"
exit $failed
