# SPDX-License-Identifier: Apache-2.0
"""A stage's state as a file that says which run and stage it is of, and notices damage."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdft_fast.arena import raw
from mdft_fast.errors import MdftError
from mdft_fast.files import check_regular, replacing

_OWNER, _CHECKSUM = "owner", "sha256"


def write_state(path: Path, state: Mapping[str, Any], owner: str) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: the file.
        state: dicts, lists, tensors, numbers, text.
        owner: what names the run's recipe and inputs, and the stage.
    """
    whole = {**state, _OWNER: owner}
    written = io.BytesIO()  # torch's own writing to a full disk ends in a RuntimeError
    torch.save({**whole, _CHECKSUM: _checksum(whole)}, written)
    with replacing(path) as temporary:
        temporary.write_bytes(written.getbuffer())


def read_state(path: Path, owner: str) -> dict[str, Any]:
    """Reads a state back.

    Raises:
        MdftError: if the file is damaged, or of another recipe, other inputs or another stage
            than ``owner`` names.
    """
    again = "put a copy back, or start the run again in another folder"
    check_regular(path)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch and zipfile raise a dozen kinds for damage
        words = " ".join(str(error).split())[:200]
        raise MdftError(f"{path}: not a readable state: {words}; {again}") from None
    if not isinstance(state, dict):
        raise MdftError(f"{path}: must be a state, got a {type(state).__name__}; {again}")
    written = state.pop(_CHECKSUM, None)
    if written != _checksum(state):
        raise MdftError(f"{path}: not what was written, its sha256 is another; {again}")
    if state.pop(_OWNER, None) != owner:
        raise MdftError(
            f"{path}: must be this stage's state, of this folder's recipe and inputs, got another "
            f"stage's or run's; {again}"
        )
    return state


def _checksum(state: Mapping[str, Any]) -> str:
    total = hashlib.sha256()
    for piece in _pieces(state):
        total.update(piece)
    return total.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Yields a value's content as bytes that no other value has."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {list(value.shape)}:".encode()
        yield raw(value)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}:".encode()
        for key, item in value.items():
            yield from _pieces(key)
            yield from _pieces(item)
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}:".encode()
        for item in value:
            yield from _pieces(item)
    else:
        text = repr(value).encode()
        yield f"{type(value).__name__} {len(text)}:".encode()
        yield text
