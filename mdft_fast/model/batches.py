# SPDX-License-Identifier: Apache-2.0
"""A batch is what the encoder takes: a tensor, or a dict of tensors with one row a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast.checkpoints import Batch
from mdft_fast.errors import MdftError


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    """Yields a batch's tensors, ``[B, ...]`` each."""
    yield from [batch] if isinstance(batch, Tensor) else batch.values()


def each(function: Callable[..., Tensor], *batches: Batch) -> Batch:
    """Returns a batch of what a function makes of the tensors of one name, one of each batch."""
    first, *others = batches
    if isinstance(first, Tensor):
        return function(*batches)
    rest: list[Any] = others
    return {name: function(held, *(b[name] for b in rest)) for name, held in first.items()}


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns the rows of several batches, one batch after another."""
    return each(lambda *parts: torch.cat(parts), *batches)


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """Returns a batch for an encoder that computes in ``dtype``; a dict's whole numbers stay.

    Raises:
        MdftError: if a tensor, not in a dict, holds whole numbers.
    """
    if isinstance(batch, Tensor):
        if not batch.is_floating_point():
            raise MdftError(
                f"encode: a batch must be floating, normalised as the pool's preprocess says, got "
                f"{list(batch.shape)} in {batch.dtype}; Samples.batch makes one"
            )
        return batch.to(dtype)
    return each(lambda held: held.to(dtype) if held.is_floating_point() else held, batch)
