# SPDX-License-Identifier: Apache-2.0
"""Heads made once: a file in the user's cache folder for each set of ingredients."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mdft_fast import files
from mdft_fast.errors import MdftError
from mdft_fast.files import cache_folder, replacing
from mdft_fast.pool import Head

_FORMAT = 1  # of the files, and of what a head's ingredients say


def cached_head(ingredients: Mapping[str, Any], make: Callable[[], Head]) -> Head:
    """Returns the head of some ingredients: out of the cache, or made and put there.

    A file that is damaged is made again. A cache folder that cannot be written costs time alone.

    Args:
        ingredients: all that the head depends on, as JSON would hold it; files by
            :func:`file_digest`.
        make: makes the head, float32 on the CPU.
    """
    text = json.dumps({"format": _FORMAT, **ingredients}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    file = cache_folder() / "heads" / f"{key}.safetensors"
    head = _read(file)
    if head is None:
        head = make()
        with contextlib.suppress(OSError):
            _write(file, head)
    return head


def file_digest(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a file; of one that has not changed since it is known already."""
    try:
        facts = os.stat(path)
        return _digest(os.path.realpath(path), facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise MdftError(f"{path}: not readable: {error.strerror}") from None


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    return files.file_digest(Path(path))


def _write(file: Path, head: Head) -> None:
    metadata = {"normalize": head.normalize, "scale": head.scale, "sha256": head_digest(head)}
    tensors = {name: tensor.contiguous() for name, tensor in head.tensors.items()}
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={k: json.dumps(v) for k, v in metadata.items()})


def _read(file: Path) -> Head | None:
    """Returns the head in a file; None where there is none, or not what was written."""
    try:
        with safe_open(os.fspath(file), framework="pt") as opened:
            metadata = {key: json.loads(text) for key, text in (opened.metadata() or {}).items()}
            names = tuple(opened.keys())
            tensors = {name: opened.get_tensor(name).clone() for name in names}
        head = Head(
            tensors["weight"], tensors.get("bias"), metadata["normalize"], metadata["scale"]
        )
        return head if metadata["sha256"] == head_digest(head) else None
    except (OSError, SafetensorError, KeyError, ValueError, MdftError):
        return None


def head_digest(head: Head) -> str:
    """Returns the sha256 of all that a head's logits depend on."""
    total = hashlib.sha256(f"{head.normalize} {head.scale!r}".encode())
    for name, tensor in head.tensors.items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
