# SPDX-License-Identifier: Apache-2.0
"""Facts about the machine and the process that a result must carry."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import mdft_fast
from mdft_fast.ops import kernels

_PACKAGES = (
    "torch", "numpy", "safetensors", "timm", "open_clip_torch", "torchvision", "transformers",
    "peft",
)  # fmt: skip


def environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, device, threads, commit and the kernels that run, as JSON values."""
    return {
        "versions": {
            "mdft_fast": mdft_fast.__version__,
            "python": platform.python_version(),
            **{name: version for name in _PACKAGES if (version := _version(name))},
        },
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
    }


class Phases:
    """Wall time and peak memory by phase.

    Args:
        device: whose memory counts: the GPU's allocated bytes, or the process's resident ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
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
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """Turns torch's deterministic algorithms on for a run on CUDA, and back as they were."""
    if not wanted or device.type != "cuda":
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        from mdft_fast import _native
    except ImportError:
        return None
    commit: str | None = _native.build_info().get("commit")
    return commit


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        return next(r for r in rows if r.startswith("model name")).partition(": ")[2]
    return platform.processor() or platform.machine()
