# SPDX-License-Identifier: Apache-2.0
"""Heads made once: a file in the user's cache folder for each set of ingredients."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdft_fast import files
from mdft_fast.checkpoints import cached_tensors
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head

_FORMAT = 2  # of the files, and of what a head's ingredients say


def cached_head(ingredients: Mapping[str, Any], make: Callable[[], Head]) -> Head:
    """Returns the head of some ingredients: out of the cache, or made and put there.

    Args:
        ingredients: all that the head depends on, as JSON would hold it; files by
            :func:`file_digest`.
        make: makes the head, float32 on the CPU.
    """

    def tensors() -> dict[str, Tensor]:
        head = make()
        stated = {
            "normalize": torch.tensor(head.normalize, device="cpu"),
            "scale": _exact(head.scale),
        }
        return {**head.tensors, **stated}

    held = cached_tensors("heads", {"format": _FORMAT, **ingredients}, tensors)
    normalize, scale = bool(held["normalize"]), float(held["scale"])
    return Head(held["weight"], held.get("bias"), normalize, scale)


def _exact(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64, device="cpu")


def file_digest(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file; of one that has not changed since it is known already."""
    facts = files.regular(path)
    try:
        return _digest(os.path.realpath(path), facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise MdftError(f"{path}: not readable: {error.strerror}") from None


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    return files.file_digest(Path(path))


def head_digest(head: Head) -> str:
    """Returns the sha256 of all that a head's logits depend on."""
    total = hashlib.sha256(f"{head.normalize} {head.scale!r}".encode())
    for name, tensor in head.tensors.items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
