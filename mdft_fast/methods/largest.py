# SPDX-License-Identifier: Apache-2.0
"""The k-th largest magnitude over all tensors of a model, exactly, without holding them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

_HIGH, _LOW = 16, 15  # bits of a float32 without its sign


def kth_largest(vectors: Iterable[Tensor], rank: int) -> Tensor:
    """Returns each vector's magnitude of a rank, float32 ``[K]``.

    Read as whole numbers, the bits of magnitudes rise with them. One pass counts the upper 16
    bits, which finds those of the answer; a second counts the lower 15 among the elements that
    share them. It takes K × 2¹⁶ counts beside one tensor.

    Args:
        vectors: finite float32 ``[K, *shape]`` for each tensor; gone through twice.
        rank: 1 for the largest, at most the number of elements of a vector.
    """
    high, rank_inside = _find(
        _count((_bits(tensor) >> _LOW for tensor in vectors), 1 << _HIGH),
        torch.tensor(rank, device="cpu"),
    )
    outside = 1 << _LOW  # a bin for what does not share the upper bits
    lows = (
        torch.where(bits >> _LOW == high[:, None], bits & (outside - 1), outside)
        for bits in map(_bits, vectors)
    )
    low, _ = _find(_count(lows, outside + 1)[:, :outside], rank_inside)
    return (high << _LOW | low).int().view(torch.float32)


def _bits(tensor: Tensor) -> Tensor:
    """Returns the magnitudes' bits, int32 ``[K, n]``."""
    return tensor.reshape(len(tensor), tensor[0].numel()).view(torch.int32) & 0x7FFFFFFF


def _count(numbers: Iterable[Tensor], bins: int) -> Tensor:
    """Returns how often each row holds each number, int64 ``[K, bins]``."""
    total = torch.zeros((), dtype=torch.int64, device="cpu")
    for rows in numbers:
        # Each row has bins of its own.
        first = bins * torch.arange(len(rows), dtype=rows.dtype, device=rows.device)[:, None]
        counts = torch.bincount((rows + first).flatten(), minlength=bins * len(rows))
        total = total + counts.view(len(rows), bins)
    return total


def _find(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the bin that holds each row's element of a rank from above, and its rank there."""
    from_above = F.pad(counts.flip(1).cumsum(1), (1, 0))  # how many lie in the uppermost bins
    passed = (from_above[:, 1:] < rank.reshape(-1, 1)).sum(1)  # bins wholly above the element
    above = from_above.gather(1, passed[:, None])[:, 0]
    return counts.shape[1] - 1 - passed, rank - above
