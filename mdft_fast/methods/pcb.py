# SPDX-License-Identifier: Apache-2.0
"""PCB-merging: tasks compete for each element, with how much they changed it and who agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mdft_fast.methods.largest import kth_largest
from mdft_fast.methods.method import Density, Site, Transform, Vectors, per_vector, sum_of
from mdft_fast.options import check

_OUTERMOST = 1e-4  # share of elements at either end that count as the next one: the authors' code


class Bounds(NamedTuple):
    """What a pass ahead finds out about each vector, float32 ``[K]`` each.

    Attributes:
        least: magnitudes below count as this.
        largest: magnitudes above count as this.
        threshold: the balance that an element must exceed.
        top: the highest balance.
    """

    least: Tensor
    largest: Tensor
    threshold: Tensor
    top: Tensor


@dataclasses.dataclass(frozen=True)
class Pcb(Transform):
    """Weighs each element of K vectors by its size in its own and its agreement with the others.

        a_k  = |τ_k|, cut off at the outermost 0.01 % of the whole model's P elements
        n_k  = (a_k − min a_k) / (max a_k − min a_k)                        (over the P elements)
        b_k  = exp(K · n_k²) · tanh(τ_k · Σ_j τ_j), at least 0              (the balance)
        t_k  the m-th largest b_k of the P elements, m = ⌊density · P⌋, at least 1
        w_k  = (b_k − t_k) / (max b_k − t_k), at least 0
        τ'_k = sgn τ_k · a_k · w_k / Σ_j w_j                                (0 where all w_j are)

    The K vectors' sum, λ = 1 for each, is the paper's merge. It allows balances below 0 too, which
    matters where density is more than the share of elements that agree with the sum.

    Attributes:
        density: share of the elements that each vector keeps.
    """

    density: Density = 0.1  # the authors' code

    name = "pcb"
    source = "arXiv:2410.02396"
    needs = ("survey",)

    def __post_init__(self) -> None:
        check(self, self.name)

    def survey(self, vectors: Vectors) -> Bounds:
        """Returns what :meth:`transform` must know of the whole model."""
        outermost = int(_OUTERMOST * vectors.parameters)
        least = kth_largest(vectors, vectors.parameters - outermost)
        largest = kth_largest(vectors, outermost + 1)
        balances = _Balances(vectors, least, largest)
        threshold = kth_largest(balances, max(1, int(self.density * vectors.parameters)))
        return Bounds(least, largest, threshold, kth_largest(balances, 1))

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Shares each element out among the K vectors."""
        bounds: Bounds = site.survey
        balances = _balances(deltas, bounds.least, bounds.largest)
        least, largest, threshold, top = (per_vector(numbers, deltas) for numbers in bounds)
        # Where many share the highest balance there is nothing between it and the threshold.
        only_top = ((balances == top) & (top > 0)).float()
        weights = ((balances - threshold) / (top - threshold)).clamp(min=0)
        weights = weights.where(top > threshold, only_top)
        cut = deltas.sign() * deltas.abs().clamp(least, largest)
        total = sum_of(weights).float()
        return (cut * weights / total).where(total > 0, 0.0)


class _Balances:
    """The balances of K vectors, streamed."""

    def __init__(self, vectors: Vectors, least: Tensor, largest: Tensor) -> None:
        self._vectors, self._least, self._largest = vectors, least, largest

    def __iter__(self) -> Iterator[Tensor]:
        for deltas in self._vectors:
            yield _balances(deltas, self._least, self._largest)


def _balances(deltas: Tensor, least: Tensor, largest: Tensor) -> Tensor:
    """Returns each element's balance, float32 ``[K, *shape]``, over e^K, which w does not see."""
    total, K = sum_of(deltas), len(deltas)
    made = []
    for row, low, high in zip(deltas.double(), least.double(), largest.double(), strict=True):
        size = (row.abs().clamp(low, high) - low) / (high - low) if high > low else 1.0
        inside = torch.as_tensor(K * (size**2 - 1), device=row.device).exp()
        made.append((inside * (row * total).tanh()).clamp(min=0).float())
    return torch.stack(made)
