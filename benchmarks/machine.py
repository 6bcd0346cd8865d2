# SPDX-License-Identifier: Apache-2.0
"""The machine that races run on: its clock, the rate of a copy, its memory, its load.

On CUDA turns are timed with events and synchronised; see docs/kernels.md, "What has run where".
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

COPY_BYTES = 256 << 20  # of the copied buffer: many times a CPU's last-level cache, or a GPU's L2
FLUSH_BYTES = 64 << 20  # twice the last-level cache of the CPU at hand; a GPU's L2 is 50 MiB
KEPT_FREE_BYTES = 4 << 30  # for whatever else the machine does


def status_bytes(key: str, file: str = "/proc/self/status") -> int | None:
    """Returns what a file of Linux's /proc says of memory; None where it does not."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        rows = Path(file).read_text().splitlines()
        return 1024 * int(next(row for row in rows if row.startswith(key)).split()[1])
    return None


def memory_available() -> int:
    """Returns the bytes that the system could give us now."""
    return status_bytes("MemAvailable", "/proc/meminfo") or 0


def limit_memory() -> None:
    """Lets an allocation fail where the system would end the process, or a neighbor's."""
    limit = max(memory_available() - KEPT_FREE_BYTES, KEPT_FREE_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def load() -> tuple[float, bool]:
    """Returns the load average of the last minute, and whether it is more than our own."""
    average = os.getloadavg()[0]
    return average, average > torch.get_num_threads() + 0.5


class Machine:
    """Times calls on one device, with cold caches."""

    def __init__(self, device: torch.device, copy_bytes: int = COPY_BYTES) -> None:
        self.device = device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self._from = torch.zeros(copy_bytes // 4, device=device)
        self._to = torch.zeros_like(self._from)

    def copy(self) -> None:
        """Reads a large buffer and writes another."""
        self._to.copy_(self._from)

    def copy_rate(self) -> float:
        """Returns the bytes per second, read and written, of one copy."""
        return 2 * self._from.nbytes / self.seconds(self.copy)

    def seconds(self, call: Callable[[], Any], calls: int = 1) -> float:
        """Returns the mean time of some calls, the first with caches that hold something else."""
        self._flush.add_(1)
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / calls
        started = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - started) / calls

    def peak(self, call: Callable[[], Any]) -> tuple[Any, float | None]:
        """Calls once; returns the answer, and the MB that the call needed beyond what was there."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before, answer = torch.cuda.memory_allocated(), call()
            return answer, (torch.cuda.max_memory_allocated() - before) / 1e6
        give_back()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of resident memory
        before = status_bytes("VmRSS")
        answer = call()
        after = status_bytes("VmHWM")
        return answer, (after - before) / 1e6 if before and after else None


def give_back() -> None:
    """Returns what earlier calls left behind, and glibc kept, to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
