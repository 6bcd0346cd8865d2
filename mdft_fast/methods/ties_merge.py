# SPDX-License-Identifier: Apache-2.0
"""TIES to its end: the mean over the tasks that agree."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import Density, Merge, Site, Vectors, sum_of
from mdft_fast.methods.ties import Ties
from mdft_fast.options import Weight, check


@dataclasses.dataclass(frozen=True)
class TiesMerge(Merge):
    """Takes the mean, element by element, over the vectors that TIES leaves there.

        τ = scale · Σ_k τ'_k / |{k : τ'_k ≠ 0}|    (τ' as in the transform ``ties``; 0 of none)

    Attributes:
        density: share of the elements that each vector keeps.
        scale: the merged vector's factor, the paper's λ.
    """

    density: Density = Ties.density
    scale: Weight = 1.0

    name = "ties_merge"
    source = Ties.source
    needs = Ties.needs

    def __post_init__(self) -> None:
        check(self, self.name)

    def survey(self, vectors: Vectors) -> Tensor:
        """Returns the K thresholds, float32 ``[K]``."""
        return Ties(self.density).survey(vectors)

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        """Trims, elects and divides by the number of those that agree."""
        elected = Ties(self.density).transform(deltas, site)
        agreeing = (elected != 0).sum(0).clamp(min=1)
        return (self.scale * sum_of(elected) / agreeing).float()
