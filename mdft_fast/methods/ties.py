# SPDX-License-Identifier: Apache-2.0
"""TIES: small changes and those against the majority are dropped."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.largest import kth_largest
from mdft_fast.methods.method import Density, Site, Transform, Vectors, per_vector, sum_of
from mdft_fast.options import check


@dataclasses.dataclass(frozen=True)
class Ties(Transform):
    """Keeps each vector's largest elements, and of these the ones whose sign the sum elects.

        t_k   the m-th largest |τ_k| of the whole model's P elements, m = ⌊density · P⌋, at least 1
        τ̂_k = τ_k where |τ_k| ≥ t_k, else 0        (elements equal to t_k all stay)
        s   = + where Σ_k τ̂_k ≥ 0, else −          (float64; tasks in the pool's order)
        τ'_k = τ̂_k where its sign is s, else 0

    One λ for all K gives λ times the sum of those that agree; the paper's mean over them is that
    sum over their number, element by element, which no λ of a tensor can say. With density 1
    nothing is trimmed, and signs are elected still.

    Attributes:
        density: share of the elements that each vector keeps.
    """

    density: Density = 0.2  # the paper's

    name = "ties"
    source = "arXiv:2306.01708"
    needs = ("survey",)

    def __post_init__(self) -> None:
        check(self, self.name)

    def survey(self, vectors: Vectors) -> Tensor:
        """Returns the K thresholds, float32 ``[K]``."""
        return kth_largest(vectors, max(1, int(self.density * vectors.parameters)))

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Trims by the thresholds, then elects."""
        thresholds = per_vector(site.survey, deltas)
        trimmed = deltas.where(deltas.abs() >= thresholds, 0.0)
        total = sum_of(trimmed)
        return trimmed.where((trimmed > 0) == (total >= 0), 0.0)
