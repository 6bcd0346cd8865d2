# SPDX-License-Identifier: Apache-2.0
"""Reads safetensors files, one or many with an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mdft_fast.checkpoints.metadata import SourceFacts
from mdft_fast.checkpoints.state import State
from mdft_fast.errors import MdftError

FACTS = "mdft_facts"  # keys of the metadata that `mdft convert` writes
NORMALIZE = "mdft_normalize"


class SafetensorsState(Mapping[str, Tensor]):
    """The tensors of a safetensors file, mapped: a page is read when it is first touched.

    The mapping is private (copy on write), so the file never changes through it.

    Attributes:
        metadata: what else the file says of itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file and reads its header."""
        try:
            opened: Any = safe_open(os.fspath(path), framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            size = os.path.getsize(path)
            raise MdftError(
                f"{path}: not a readable safetensors file ({size} bytes; truncated or corrupt?): "
                f"{error}"
            ) from None
        self._file = opened
        self._path = path
        self._names = dict.fromkeys(opened.keys())
        self.metadata: dict[str, str] = opened.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        """Returns one tensor, mapped."""
        if name not in self._names:
            raise KeyError(name)
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, AttributeError, ValueError) as error:  # a dtype torch has not
            raise MdftError(f"{self._path}: tensor {name!r} is not readable: {error}") from None
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self._names)


def read_safetensors(path: Path) -> State:
    """Opens a safetensors file."""
    tensors = SafetensorsState(path)
    said = {"true": True, "false": False}.get(tensors.metadata.get(NORMALIZE, ""))
    facts = SourceFacts.of_text(tensors.metadata.get(FACTS, ""))
    return State(str(path), tensors, "safetensors", facts=facts, normalize=said)


class Shards(Mapping[str, Tensor]):
    """The tensors of several files, each where the index says."""

    def __init__(self, owners: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keeps name -> the tensors of the file that holds it."""
        self._owners = dict(owners)

    def __getitem__(self, name: str) -> Tensor:
        """Returns one tensor, as its file gives it."""
        return self._owners[name][name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self._owners)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self._owners)


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
    tensors = Shards({name: shards[file].tensors for name, file in where.items()})
    return State(str(path), tensors, f"{len(shards)} shards ({', '.join(kinds)})")
