# SPDX-License-Identifier: Apache-2.0
"""What made a result: versions, device, threads, commit, kernels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from mdft_fast.errors import MdftError, need
from mdft_fast.files import file_digest
from mdft_fast.ops import kernels
from mdft_fast.version import __version__

_PACKAGES = (
    "torch", "numpy", "safetensors", "timm", "open_clip_torch", "torchvision", "transformers",
    "peft",
)  # fmt: skip


def environment(device: torch.device) -> dict[str, Any]:
    """Returns versions, device, threads, commit and the kernels that run, as JSON values."""
    return {
        "versions": {
            "mdft_fast": __version__,
            "python": platform.python_version(),
            **{name: version for name in _PACKAGES if (version := version_of(name))},
        },
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
    }


@functools.cache
def code_digest() -> str:
    """Returns what tells this package's Python code apart, whatever its version says."""
    package = Path(__file__).parents[2]
    digests = [file_digest(file) for file in sorted(package.rglob("*.py"))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def version_of(distribution: str) -> str | None:
    """Returns the version of an installed distribution."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def _commit() -> str | None:
    try:
        commit: str | None = need("mdft_fast._native").build_info().get("commit")
    except MdftError:  # not built: the operators run in plain torch
        return None
    return commit


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        return next(r for r in rows if r.startswith("model name")).partition(": ")[2]
    return platform.processor() or platform.machine()
