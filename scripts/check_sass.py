# SPDX-License-Identifier: Apache-2.0
"""Gates on the GPU's machine code, read with cuobjdump; needs no GPU.

    python scripts/check_sass.py mdft_fast/lib/libmdft_ops_cuda.so

1. No kernel reads or writes local memory: nothing was spilled, no array is indexed at run time.
2. merge keeps all its loads in flight: in a chunk of eight task vectors, every load of these (16
   bytes; 8 of int8 and int4) comes before the first sum, and before the wait for lambda's column.
   merge_dots likewise reads a tile with at least eight 16-byte loads in a row. The compiler is free
   to mix them, and did.

Exits with 0 and says why where there is nothing to read or nothing to read it with.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

CHUNK = 8  # MergeKernel::kChunk
FUNCTION = re.compile(r"Function : (\S+)")
ARCHITECTURE = re.compile(r"arch = (sm_\w+)")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
LOCAL = re.compile(r"(?:LDL|STL)\b")
# MergeKernel<float, float, 4> and MergeKernel<BFloat16Bits, float, 8>: packs of 16 bytes;
# MergeKernel<int8_t, float, 8> and MergeKernel<Int4Pair, float, 16>: of 8. Not those that read one
# stored value at a time, of which int4 holds two.
MERGE = re.compile(r"MergeKernelI(?:(?!NS_8Int4PairE).*Li[248]E|NS_8Int4PairE.*Li16E)")
CODES = re.compile(r"MergeKernelI(?:a|NS_8Int4PairE)")
DOTS = re.compile(r"DotsKernelI")
SUMS = ("FFMA", "DFMA")
MAY_STAND_AMONG = 2  # the column's own load, and a 16-bit base beside float32 task vectors


def cuobjdump() -> str | None:
    """Finds the disassembler: on the PATH, in NVIDIA's package, or in triton's (torch has it)."""
    if found := shutil.which("cuobjdump"):
        return found
    places = {"nvidia": "cu13/bin/cuobjdump", "triton": "backends/nvidia/bin/cuobjdump"}
    for package, place in places.items():
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (Path(folder) / place).exists():
                return str(Path(folder) / place)
    return None


def kernels(listing: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yields each kernel's architecture, name and operations."""
    architecture = of = name = ""
    operations: list[str] = []
    for line in [*listing.splitlines(), "Function : end"]:
        if found := ARCHITECTURE.search(line):
            architecture = found[1]
        elif found := FUNCTION.search(line):
            if operations:
                yield of, name, operations
            of, name, operations = architecture, found[1], []
        elif found := INSTRUCTION.search(line):
            operations.append(found[1])


def bits_loaded(operation: str) -> int:
    """Returns how much an operation reads of global memory."""
    if not operation.startswith("LDG"):
        return 0
    return next((bits for bits in (128, 64) if f".{bits}" in operation), 32)


def loads_between_sums(operations: list[str], width: int = 128) -> list[tuple[int, int]]:
    """Returns, for each stretch without a sum, its loads of ``width`` bits and those that wait.

    Loads that wait are lambda's, whose address comes from memory: narrower ones before the last
    of that width. Two narrow loads need not wait and may stand there, see MAY_STAND_AMONG.
    """
    stretches, wide, narrow, narrow_before = [], 0, 0, 0
    for operation in [*operations, SUMS[0]]:
        if operation.startswith(SUMS):
            if wide or narrow:
                stretches.append((wide, narrow_before))
            wide = narrow = narrow_before = 0
        elif bits_loaded(operation) == width:
            wide, narrow_before = wide + 1, narrow
        elif 0 < bits_loaded(operation) < width:
            narrow += 1
        elif operation.startswith(("BRA", "EXIT")):
            if wide >= CHUNK:
                stretches.append((wide, narrow_before))
            wide = narrow = narrow_before = 0
    return stretches


def problems(name: str, operations: list[str]) -> list[str]:
    """Lists what is wrong with a kernel."""
    found = []
    if count := sum(bool(LOCAL.match(operation)) for operation in operations):
        found.append(f"{count} accesses to local memory")
    stretches = loads_between_sums(operations, 64 if CODES.search(name) else 128)
    together = [narrow for wide, narrow in stretches if wide >= CHUNK]
    if MERGE.search(name):
        if len(together) < 2:  # the first chunk, and the ones that follow
            most = max((wide for wide, _ in stretches), default=0)
            found.append(f"a chunk's {CHUNK} loads are spread: {most} before the first sum")
        elif max(together) > MAY_STAND_AMONG:
            found.append("a chunk's loads wait for the column of lambda")
    elif DOTS.search(name) and not together:
        found.append("a tile's loads are spread")
    return found


def check(library: Path, disassembler: str) -> int:
    """Reads one library; prints what is wrong and returns how much."""
    command = [disassembler, "-sass", str(library)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seen, wrong, merges = 0, 0, 0
    for architecture, name, operations in kernels(listing):
        seen += 1
        merges += bool(MERGE.search(name))
        for problem in problems(name, operations):
            wrong += 1
            print(f"{library.name}: {name} ({architecture}): {problem}")
    if not merges:
        wrong += 1
        print(f"{library.name}: no merge kernel found among {seen}: was it renamed?")
    print(f"{library.name}: {seen} kernels, {merges} of merge: {'ok' if not wrong else 'wrong'}")
    return wrong


def main(arguments: list[str]) -> int:
    """Checks every library that is there."""
    libraries = [Path(argument) for argument in arguments if Path(argument).exists()]
    if not libraries:
        print("check_sass: skipped, no CUDA library was built (nvcc absent)")
        return 0
    disassembler = cuobjdump()
    if disassembler is None:
        print("check_sass: skipped, no cuobjdump (pip install nvidia-cuda-cuobjdump)")
        return 0
    return int(sum(check(library, disassembler) for library in libraries) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
