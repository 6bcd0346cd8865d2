#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the operators' tests on host code built under AddressSanitizer and UBSan (make sanitize):
#
#   scripts/sanitize.sh [pytest arguments]     PYTHON= another interpreter
#
# The libraries go to a package of their own in build/sanitize, whose Python files are links to
# ours: the package looks for its libraries beside itself, so nothing has to be told where they
# are, and the libraries in use stay as they are. The emulated grid puts the CUDA kernels' bodies
# under the sanitizers too. Any report ends the process, and so the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="$(realpath -s "$(command -v "${PYTHON:-.venv/bin/python}")")"
BUILD="$PWD/build/sanitize"
PACKAGE="$BUILD/package/mdft_fast"
PATH="$(dirname "$PYTHON"):$PATH"

cmake -S . -B "$BUILD" -G Ninja -Wno-dev --log-level=WARNING "-DPython_EXECUTABLE=$PYTHON" \
  -DMDFT_SANITIZE=ON -DMDFT_WITH_CUDA=0 "-DMDFT_PACKAGE_DIR=$PACKAGE"
cmake --build "$BUILD"

find "$PACKAGE" -maxdepth 1 -type l -delete # of files that may be gone
for file in mdft_fast/*; do
  case "$file" in mdft_fast/lib | *.so | */__pycache__) ;; *) ln -s "$PWD/$file" "$PACKAGE" ;; esac
done

# The sanitizer comes first in the process, and libstdc++ with it: it looks for __cxa_throw at once.
# Leaks are Python's at exit, not ours. One thread: the loops' shares are tested elsewhere.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=64:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$BUILD/package" PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 MDFT_STRICT=1

"$PYTHON" -c 'import sys, mdft_fast.ops as ops
assert ops.__file__.startswith(sys.argv[1]), f"tests would run on another package, {ops.__file__}"
assert ops.kernels()["cpu"] in ("avx2", "portable"), ops.kernels()' "$PACKAGE"
[ $# -gt 0 ] || set -- tests/ops tests/emulated
# --capture=sys: a report is written past Python, by a process that has no time to pass it on.
exec "$PYTHON" -m pytest -q -p no:cacheprovider --capture=sys "$@"
