# SPDX-License-Identifier: Apache-2.0
"""Loads the native operators, and says which kernel runs where."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

from mdft_fast.errors import MdftError, MdftFallbackWarning, need
from mdft_fast.late_imports import constant_to_compile
from mdft_fast.ops._gpu_code import built_for, why_no_code, why_unusable

_FOLDER = Path(__file__).parent.parent / "lib"
_warned: set[tuple[str, str, str]] = set()
_NAMED = {
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.complex128,
}  # fmt: skip


def _load(name: str) -> str:
    """Loads a library; returns nothing where that worked, else why not."""
    path = _FOLDER / name
    if not path.exists():
        return f"{path.name} was not built"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return ""


def _load_cuda(cpu: str) -> str:
    if not torch.version.cuda:
        return "this torch has no CUDA"
    # The CPU's library holds the schemas.
    return cpu or why_unusable(built_for()[0], torch.version.cuda) or _load("libmdft_ops_cuda.so")


_missing = {"cpu": _load("libmdft_ops.so")}
_missing["cuda"] = _load_cuda(_missing["cpu"])

LOADED = not _missing["cpu"]  # the schemas exist; fakes can be registered


@constant_to_compile
def native(op: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether a native kernel runs ``op`` here; if not, warns once or raises.

    Raises:
        MdftError: if there is none and the environment says ``MDFT_STRICT=1``.
    """
    why = _missing.get(device.type, f"no kernel for {device.type}") if LOADED else _missing["cpu"]
    if not why and device.type == "cuda":
        why = why_no_code(device.index)
    if not why or (LOADED and device.type == "meta"):
        return True
    message = f"{op}: no native kernel for {device.type} {dtype_name(dtype)} ({why})"
    if os.environ.get("MDFT_STRICT") == "1":
        raise MdftError(f"{message}, and MDFT_STRICT=1 forbids the plain-torch reference")
    key = (op, device.type, dtype_name(dtype))
    if key not in _warned:
        _warned.add(key)
        warnings.warn(f"{message}; running the plain-torch reference", MdftFallbackWarning, 3)
    return False


def kernels() -> dict[str, str]:
    """Returns what computes the operators, device by device.

    Returns:
        ``cpu``: "avx2" or "portable"; ``cuda``: "cuda", or "cuda (no GPU here)"; either may be
        "reference" and why, for some GPUs too. ``fell_back``: where the plain-torch reference ran
        so far.
    """
    report = {device: why and f"reference ({why})" for device, why in _missing.items()}
    report["cpu"] = report["cpu"] or _cpu_loops()
    if not report["cuda"]:
        report["cuda"] = _gpu_kernels()
    if _warned:
        report["fell_back"] = ", ".join(" ".join(key) for key in sorted(_warned))
    return report


def _gpu_kernels() -> str:
    if not torch.cuda.is_available():
        return "cuda (no GPU here)"
    whys = [why_no_code(index) for index in range(torch.cuda.device_count())]
    without = [f"cuda:{index}: {why}" for index, why in enumerate(whys) if why]
    if not without:
        return "cuda"
    words = f"reference ({'; '.join(without)})"
    return words if all(whys) else f"cuda, {words}"


def _cpu_loops() -> str:
    """Returns the loops that csrc/common/isa/features.h chooses."""
    features = need("mdft_fast._native").cpu_features()
    avx2 = all(features.get(name) for name in ("avx2", "fma", "f16c"))
    return "avx2" if avx2 and os.environ.get("MDFT_CPU") != "portable" else "portable"


def dtype_name(dtype: torch.dtype) -> str:
    """Returns ``float32`` for ``torch.float32``: the word that csrc/common/checks.h prints."""
    return str(dtype).removeprefix("torch.") if dtype in _NAMED else "another dtype"
