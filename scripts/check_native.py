# SPDX-License-Identifier: Apache-2.0
"""Gates on the built libraries: only torch's stable C symbols, no register spills.

    python scripts/check_native.py mdft_fast/lib/*.so [build/*/**/*.cu.o.log ...]

A library is read with ``nm``: one undefined ``at::``, ``c10::`` or ``torch::`` symbol ties it to
one version of torch. A log is what ptxas said (kept by ``keep_log.py``).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

UNSTABLE = re.compile(r"_Z(?:N|NK|TVN|TIN|TSN)(?:2at|3c10|5torch)\w*")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")


def unstable_symbols(library: Path) -> list[str]:
    """Lists the C++ symbols of torch that a library needs."""
    command = ["nm", "-D", "--undefined-only", str(library)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return UNSTABLE.findall(listing)


def spills(log: str) -> list[str]:
    """Lists the kernels that ptxas could not keep in registers."""
    found = []
    kernel = "unknown kernel"
    for line in log.splitlines():
        if start := KERNEL.search(line):
            kernel = f"{start[1]} ({start[2]})"
        elif (spill := SPILL.search(line)) and (spill[1] != "0" or spill[2] != "0"):
            found.append(f"{kernel}: {spill[0]}")
    return found


def check(path: Path) -> list[str]:
    """Returns what is wrong with one library or log; nothing is good."""
    if path.suffix != ".log":
        return unstable_symbols(path)
    log = path.read_text(encoding="utf-8")
    return spills(log) if SPILL.search(log) else ["no report of ptxas: was -Xptxas -v dropped?"]


def main(arguments: list[str]) -> int:
    """Checks every file; prints one line each."""
    if not arguments:
        print("check_native: nothing to check")
        return 1
    wrong = {path: check(Path(path)) for path in arguments}
    for path, problems in wrong.items():
        print(f"{path}: {'ok' if not problems else ', '.join(problems)}")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
