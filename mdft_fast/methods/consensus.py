# SPDX-License-Identifier: Apache-2.0
"""Consensus task arithmetic: weights that at most one task has a use for are left alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mdft_fast.methods.method import Site, Transform, sum_of
from mdft_fast.options import Positive, Weight, check


@dataclasses.dataclass(frozen=True)
class Consensus(Transform):
    """Keeps the elements that several tasks find important, for all of them.

        task k finds an element important where |τ_k| ≥ t · |Σ_{j≠k} τ_j|    (its TALL mask)

    Attributes:
        k: how many tasks must find it important, all where there are fewer.
        t: how large a task's own element must be beside the sum of the others'.
    """

    k: Positive = 2
    t: Weight = 0.4

    name = "consensus"
    source = "arXiv:2405.07813"

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Counts the tasks, element by element."""
        total = sum_of(deltas)
        votes = torch.zeros(total.shape, dtype=torch.int64, device=deltas.device)
        for row in deltas:
            votes += row.abs() >= self.t * (total - row).abs()
        return deltas.where(votes >= min(self.k, len(deltas)), 0.0)
