# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints: a path, a state dict or a module becomes names and tensors.

One function a file format, chosen by the suffix. Nothing here ever unpickles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mdft_fast.errors import MdftError

StateSource = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module


class State(NamedTuple):
    """A checkpoint, opened.

    Attributes:
        label: what an error calls it: its path, or whose it is.
        tensors: name -> tensor; of a file, read only when asked for.
    """

    label: str
    tensors: Mapping[str, Tensor]


class SafetensorsState(Mapping[str, Tensor]):
    """The tensors of a safetensors file, mapped: a page is read when it is first touched.

    The mapping is private (copy on write), so the file never changes through it.
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
        self._names = dict.fromkeys(opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        """Returns one tensor, mapped."""
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self._names)


READERS: dict[str, Callable[[str | os.PathLike[str]], Mapping[str, Tensor]]] = {
    ".safetensors": SafetensorsState,
}


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Opens a checkpoint file and returns its tensors by name, read lazily.

    Raises:
        MdftError: if the file is absent, cut short or damaged, or in a format not read yet.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise MdftError(
            f"{path}: checkpoints are read from {sorted(READERS)} files, got {suffix or 'no'!r} "
            f"suffix; convert it with safetensors.torch.save_file (pickles are never loaded)"
        )
    if not Path(path).is_file():
        raise MdftError(f"{path}: no such file")
    return READERS[suffix](path)


def as_state(source: StateSource, whose: str) -> State:
    """Opens a path, a state dict or a module; ``whose`` names the last two in errors."""
    if isinstance(source, (str, os.PathLike)):
        return State(os.fspath(source), read_state(source))
    tensors = source.state_dict() if isinstance(source, nn.Module) else source
    label = f"{whose} ({'module' if isinstance(source, nn.Module) else 'state dict'})"
    if not isinstance(tensors, Mapping):
        raise MdftError(
            f"{whose}: must be a path, a state dict or a module, got {type(source).__name__}"
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise MdftError(
                f"{label}: {name!r} must be a Tensor, got {type(tensor).__name__}; a state dict "
                f"maps parameter names to tensors, nothing else"
            )
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise MdftError(
                f"{label}: {name!r} must be a dense tensor with data, got {tensor.layout} "
                f"{tensor.dtype} on {tensor.device}"
            )
    return State(label, {name: tensor.detach() for name, tensor in tensors.items()})
