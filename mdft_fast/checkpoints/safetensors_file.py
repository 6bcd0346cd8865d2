# SPDX-License-Identifier: Apache-2.0
"""Reads safetensors files, one or many with an index."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mdft_fast.checkpoints.metadata import SourceFacts
from mdft_fast.checkpoints.state import LazyTensors, State
from mdft_fast.errors import MdftError

FACTS = "mdft_facts"  # keys of the metadata that `mdft convert` writes
NORMALIZE = "mdft_normalize"


def read_safetensors(path: Path) -> State:
    """Opens a safetensors file. Its tensors are mapped: a page is read when it is first touched.

    The mapping is private (copy on write), so the file never changes through it.
    """
    try:
        file: Any = safe_open(os.fspath(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        size = os.path.getsize(path)
        raise MdftError(
            f"{path}: not a readable safetensors file ({size} bytes; truncated or corrupt?): "
            f"{error}"
        ) from None

    metadata, names = file.metadata() or {}, file.keys()
    return State(
        str(path),
        LazyTensors({name: partial(_read, path, file, name) for name in names}),
        "safetensors",
        facts=SourceFacts.of_text(metadata.get(FACTS, "")),
        normalize={"true": True, "false": False}.get(metadata.get(NORMALIZE, "")),
    )


def _read(path: Path, file: Any, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, AttributeError, ValueError) as error:  # a dtype torch has not
        raise MdftError(f"{path}: tensor {name!r} is not readable: {error}") from None
    return tensor


def read_index(path: Path, content: Any, read: Callable[[Path], State]) -> State:
    """Opens the files that an index (``*.index.json``) names.

    Args:
        path: the index, for errors; its files lie beside it.
        content: its JSON.
        read: opens one of them, whatever its format.

    Raises:
        MdftError: if a file or a tensor is missing, a name leads out of the folder, or a file
            holds a tensor that the index does not know.
    """
    where = content.get("weight_map") if isinstance(content, dict) else None
    good = isinstance(where, dict) and all(isinstance(file, str) for file in where.values())
    if not isinstance(where, dict) or not good or not where:
        raise MdftError(f"{path}: must have 'weight_map', tensor -> file, got none")
    shards: dict[str, State] = {}
    for file in dict.fromkeys(where.values()):
        if Path(file).name != file or "\\" in file or file in ("", ".", ".."):
            raise MdftError(f"{path}: files must lie beside the index, got {file!r}")
        if not (path.parent / file).is_file():
            raise MdftError(f"{path}: names {file!r}, which is missing")
        shards[file] = read(path.parent / file)
    for name, file in where.items():
        if name not in shards[file].tensors:
            raise MdftError(f"{path}: says that {file!r} holds tensor {name!r}, which it does not")
    for file, shard in shards.items():
        for name in shard.tensors:
            if where.get(name) != file:
                raise MdftError(f"{path}: knows nothing of tensor {name!r} in {file!r}")
    kinds = sorted({shard.format for shard in shards.values()})
    readers = {n: partial(shards[file].tensors.__getitem__, n) for n, file in where.items()}
    words = f"{len(shards)} shards ({', '.join(kinds)})"

    def check() -> None:
        for shard in shards.values():
            shard.check()

    return State(str(path), LazyTensors(readers), words, check=check)
