# SPDX-License-Identifier: Apache-2.0
"""Tensors made once: a file in the user's cache for each set of ingredients."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mdft_fast.arena import digest
from mdft_fast.cache import bound_cache, cache_folder, used
from mdft_fast.errors import MdftError
from mdft_fast.files import remove_strays, replacing

Tensors = dict[str, Tensor]


def cached_tensors(
    kind: str, ingredients: Mapping[str, Any], make: Callable[[], Tensors]
) -> Tensors:
    """Returns the tensors of some ingredients: out of the cache, or made and put there.

    A file that is damaged is made again. A cache that cannot be written, or that no folder is named
    for, costs time alone.

    Args:
        kind: of the cache's entries, one of ``cache.KINDS``.
        ingredients: all that the tensors depend on, as JSON would hold it.
        make: makes the tensors, by name; on the CPU.
    """
    text = json.dumps(ingredients, sort_keys=True)
    try:
        folder = cache_folder() / kind
    except MdftError:  # a process without a home
        return make()
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    tensors = _read(file)
    if tensors is None:
        tensors = make()
        with contextlib.suppress(OSError, SafetensorError):  # as safetensors calls a full disk
            _write(file, tensors)
            bound_cache()
    else:
        used(file)
    return tensors


def _write(file: Path, tensors: Tensors) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    remove_strays(file.parent)
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"sha256": _checksum(tensors)})


def _read(file: Path) -> Tensors | None:
    """Returns the tensors in a file; None where there is none, or not what was written."""
    try:
        with safe_open(os.fspath(file), framework="pt") as opened:
            checksum = (opened.metadata() or {}).get("sha256")
            tensors = {name: opened.get_tensor(name).clone() for name in sorted(opened.keys())}
    except (OSError, SafetensorError):
        return None
    return tensors if checksum == _checksum(tensors) else None


def _checksum(tensors: Tensors) -> str:
    names = sorted(tensors)
    forms = [f"{name} {tensors[name].dtype} {list(tensors[name].shape)}" for name in names]
    total = hashlib.sha256("\n".join(forms).encode())
    total.update(digest(*(tensors[name] for name in names)).encode())
    return total.hexdigest()
