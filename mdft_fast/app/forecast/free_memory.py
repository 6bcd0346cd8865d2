# SPDX-License-Identifier: Apache-2.0
"""How much memory is free: on the GPU, on the machine, in the process's group."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int:
    """Returns the bytes that are free: on the GPU, or for the process without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = []
    with contextlib.suppress(OSError, StopIteration):
        rows = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(r for r in rows if r.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError, KeyError):  # a container's: "max", or bytes
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free.append(limit - used + int(kept["inactive_file"]))  # files' pages: given back at need
    return min(free) if free else sys.maxsize
