# SPDX-License-Identifier: Apache-2.0
"""Finds NaN and infinity, a piece at a time, and says where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.layout import Layout
from mdft_fast.pool.manifest import BASE, TAU, head_file
from mdft_fast.pool.pool import Pool

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


def check_finite(pool: Pool, folder: Path | None) -> None:
    """Raises for the first tensor of a pool that is not finite; see :meth:`Pool.check_finite`."""
    for file, owner, problem in _problems(pool):
        raise MdftError(f"{'pool' if folder is None else folder / file}: {owner}{problem}")


def _problems(pool: Pool) -> Iterator[tuple[str, str, str]]:
    """Yields file, whose tensor it is, and what is wrong with it."""
    for problem in _in_arena(pool.base, pool.layout):
        yield BASE, "base: ", problem
    for name, tensor in pool.buffers.items():
        if problem := describe_not_finite(tensor, name):
            yield BASE, "base: ", problem
    for task, row in zip(pool.names, pool.vectors.codes, strict=True):
        for problem in _in_arena(row, pool.layout):
            yield TAU, f"task vector of {task!r}: ", problem
    for task, head in pool.heads.items():
        for name, part in (("weight", head.weight), ("bias", head.bias)):
            if part is not None and (problem := describe_not_finite(part, name)):
                yield head_file(task), f"head of {task!r}: ", problem


def _in_arena(arena: Tensor, layout: Layout) -> Iterator[str]:
    if not count_not_finite(arena):
        return
    for slot, view in zip(layout.slots, layout.views(arena), strict=True):
        if problem := describe_not_finite(view, slot.name):
            yield problem
    yield f"padding must be 0, got NaN or infinity among the {layout.elements} elements"
