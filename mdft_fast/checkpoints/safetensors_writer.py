# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files piece by piece.

safetensors' own writer wants every tensor in memory at once and aligns the data to 8 bytes only.
This one takes an iterator of pieces, so K task vectors never need to be in memory together, and
pads the header to a page, so rows of a mapped arena start on page boundaries. The files are plain
safetensors files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mdft_fast.arena import raw
from mdft_fast.errors import MdftError

PAGE = 4096  # bytes; the header is padded with spaces to a whole number of pages
_PIECE = 1 << 20  # bytes written and hashed at the same time, while they are still in the cache
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class Entry(NamedTuple):
    """One tensor to write: its name, form, and pieces that together are its elements."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[Tensor]


class Written(NamedTuple):
    """What was written: size and sha256 of the whole file."""

    bytes: int
    sha256: str


def entry(name: str, tensor: Tensor) -> Entry:
    """Returns the entry of a tensor that is at hand."""
    return Entry(name, tensor.dtype, tuple(tensor.shape), (tensor,))


def write_tensors(
    path: Path, entries: Iterable[Entry], *, metadata: Mapping[str, str] | None = None
) -> Written:
    """Writes a safetensors file, flushed to the disk.

    Args:
        path: the new file.
        entries: each of a size that keeps the next one aligned; wider elements before narrower
            ones do. Their pieces are asked for in order, once those before are written.
        metadata: what else the file says of itself.
    """
    entries = list(entries)
    header = _header(entries, metadata)
    total = hashlib.sha256()
    size = 0
    with open(path, "wb") as file, ThreadPoolExecutor(1) as beside:
        for piece in _all_pieces(header, entries):
            for start in range(0, len(piece), _PIECE):
                part = piece[start : start + _PIECE]
                hashed = beside.submit(total.update, part)
                file.write(part)
                hashed.result()
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, total.hexdigest())


def _header(entries: list[Entry], metadata: Mapping[str, str] | None) -> bytes:
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for item in entries:
        if item.dtype not in _NAMES:
            raise MdftError(
                f"tensor {item.name!r} must be in one of {sorted(_NAMES.values())}, got "
                f"{item.dtype}"
            )
        start, end = end, end + item.dtype.itemsize * torch.Size(item.shape).numel()
        described[item.name] = {
            "dtype": _NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(described).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    return len(text).to_bytes(8, "little") + text


def _all_pieces(header: bytes, entries: list[Entry]) -> Iterator[memoryview]:
    yield memoryview(header)
    for item in entries:
        missing = item.dtype.itemsize * torch.Size(item.shape).numel()
        for tensor in item.pieces:
            piece = raw(tensor)
            missing -= len(piece)
            yield piece
        if missing:
            raise MdftError(f"tensor {item.name!r}: the pieces lack {missing} bytes of its shape")
