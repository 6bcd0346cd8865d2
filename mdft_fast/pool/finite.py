# SPDX-License-Identifier: Apache-2.0
"""Finds NaN and infinity, a piece at a time, and says where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mdft_fast.arena import LARGEST_CODE, Layout, TaskVectors, rows_of
from mdft_fast.errors import MdftError
from mdft_fast.pool.manifest import BASE, TAU, head_file
from mdft_fast.pool.pool_data import PoolData

PIECE = 1 << 20  # elements looked at at a time; 4 MiB of float32


def largest(tensor: Tensor) -> float:
    """Returns the largest magnitude; NaN or infinity where there is one; 0 for no elements."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return float(torch.maximum(-low, high))


def count_not_finite(tensor: Tensor) -> int:
    """Returns the number of elements that are NaN or infinite; 0 for integers."""
    if not tensor.is_floating_point():
        return 0
    count = 0
    for piece in tensor.detach().reshape(-1).split(PIECE):
        if not math.isfinite(largest(piece)):
            count += piece.numel() - int(piece.isfinite().sum())
    return count


def describe_not_finite(tensor: Tensor, name: str) -> str:
    """Returns what is wrong with a tensor that is not finite; nothing where it is."""
    count = count_not_finite(tensor)
    if not count:
        return ""
    return (
        f"tensor {name!r} must be finite, got {count} of {tensor.numel()} elements NaN or infinite"
    )


def check_finite(pool: PoolData, folder: Path | None) -> None:
    """Raises for the first tensor of a pool that is not finite, in a folder or in memory."""
    for file, owner, problem in _problems(pool):
        raise MdftError(f"{'pool' if folder is None else folder / file}: {owner}{problem}")


def _problems(pool: PoolData) -> Iterator[tuple[str, str, str]]:
    """Yields file, whose tensor it is, and what is wrong with it."""
    for problem in _in_arena(pool.base, pool.layout):
        yield BASE, "base: ", problem
    for name, tensor in pool.buffers.items():
        if problem := describe_not_finite(tensor, name):
            yield BASE, "base: ", problem
    for name, row in zip(pool.vector_names, rows_of(pool.vectors), strict=True):
        for problem in _in_vector(row, pool.layout):
            yield TAU, f"task vector of {name!r}: ", problem
    for task, head in pool.heads.items():
        for name, part in head.tensors.items():
            if problem := describe_not_finite(part, name):
                yield head_file(task), f"head of {task!r}: ", problem


def _in_vector(row: TaskVectors, layout: Layout) -> Iterator[str]:
    """Yields what is wrong with a single task vector: an element, a scale or a code."""
    if row.scales is None:
        yield from _in_arena(row.codes[0], layout)
        return
    if not (count_bad_scales(row.scales[0]) or count_bad_codes(row.codes[0])):
        return
    limit = LARGEST_CODE[row.codec]
    for slot in layout.slots:
        part = row.of_slot(slot)
        codes, scales = (tensor[0] for tensor in part.tensors)
        if count := count_bad_scales(scales):
            yield (
                f"scales of tensor {slot.name!r} must be finite and not below 0, got {count} of "
                f"{len(scales)} that are not"
            )
        if count := count_bad_codes(codes):
            yield (
                f"codes of tensor {slot.name!r} must lie in [{-limit}, {limit}], got {count} of "
                f"{part.N} equal to {-limit - 1}"
            )


def count_bad_scales(scales: Tensor) -> int:
    """Returns how many are NaN, infinite or below 0."""
    return sum(int((~((s >= 0) & s.isfinite())).sum()) for s in scales.split(PIECE))


def count_bad_codes(codes: Tensor) -> int:
    """Returns how many codes of int8, or of int4 in bytes, are the one that no encoder makes."""
    count = 0
    for piece in codes.split(PIECE):
        if codes.dtype == torch.int8:
            count += int((piece == -128).sum())
        else:
            count += int(((piece & 0x0F) == 0x08).sum() + ((piece & 0xF0) == 0x80).sum())
    return count


def _in_arena(arena: Tensor, layout: Layout) -> Iterator[str]:
    if not count_not_finite(arena):
        return
    for slot, view in zip(layout.slots, layout.views(arena), strict=True):
        if problem := describe_not_finite(view, slot.name):
            yield problem
    yield f"padding must be 0, got NaN or infinity among the {layout.elements} elements"
