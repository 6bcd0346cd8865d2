# SPDX-License-Identifier: Apache-2.0
"""Iso-C: the sum of task vectors with all singular values alike."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import MatrixMerge, Scale, Site, sum_of
from mdft_fast.methods.singular_triples import singular_triples
from mdft_fast.options import check


@dataclasses.dataclass(frozen=True)
class IsoC(MatrixMerge):
    """Sets all singular values of the tasks' sum to their mean.

        Σ_k τ_k = U S Vᵀ;   θ = scale · mean(S) · U Vᵀ

    The mean is over the singular values that are not 0, so that a sum of small rank keeps its rank
    and the sum of its values. By its rule one model does not give back itself: its own
    singular values become alike too.

    Attributes:
        scale: of the result.
    """

    scale: Scale = 1.0

    name = "iso_c"
    source = "arXiv:2502.04959"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_matrices(self, deltas: Tensor, site: Site) -> Tensor:
        """See the class."""
        left, values, right = singular_triples(sum_of(deltas))
        level = self.scale * values.sum() / max(len(values), 1)
        return (level * left @ right.mT).float()
