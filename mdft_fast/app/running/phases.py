# SPDX-License-Identifier: Apache-2.0
"""What is measured and set around a run's phases: time, memory, torch's deterministic mode."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


class Phases:
    """Wall time and peak memory by phase.

    Args:
        device: whose memory counts: the GPU's allocated bytes, or the process's resident ones.
        tell: called with name and seconds of each phase that has ended.
    """

    def __init__(self, device: torch.device, tell: Callable[[str, float], None]) -> None:
        self._device, self._tell = device, tell
        self.list: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the body of a ``with``."""
        started = time.perf_counter()
        self._reset()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.list.append({"name": name, "seconds": seconds, "peak_mb": self._memory()})
            self._tell(name, seconds)

    def _reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):  # 5: forget the peak of resident memory
            Path("/proc/self/clear_refs").write_text("5")

    def _memory(self) -> float | None:
        """Returns the phase's peak in MB: allocated on the GPU, or resident on the CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e6
        with contextlib.suppress(OSError, ValueError, StopIteration):
            status = Path("/proc/self/status").read_text().splitlines()
            line = next(row for row in status if row.startswith("VmHWM"))
            return int(line.split()[1]) * 1024 / 1e6
        return None


@contextlib.contextmanager
def deterministic(asked: bool, device: torch.device) -> Iterator[None]:
    """Turns torch's deterministic algorithms on for a run on CUDA, and back as they were."""
    if not asked or device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or ":4096:8"  # cuBLAS's own condition
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]
