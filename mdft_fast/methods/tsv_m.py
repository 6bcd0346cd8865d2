# SPDX-License-Identifier: Apache-2.0
"""TSV-M: the tasks' leading singular directions, made orthogonal to each other."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mdft_fast.methods.method import MatrixMerge, Scale, Site
from mdft_fast.methods.singular_triples import polar_factor, singular_triples
from mdft_fast.options import check


@dataclasses.dataclass(frozen=True)
class TsvM(MatrixMerge):
    """Keeps each task's leading singular directions and makes them orthogonal across tasks.

        τ_k = U_k S_k V_kᵀ, of which the first r = ⌊min(out, in) / K⌋ are kept, at least 1
        U = [U_1 … U_K], V and S alike;   U⊥ = U (UᵀU)^-½, V⊥ alike
        θ = scale · U⊥ S V⊥ᵀ

    Directions that several tasks share exactly are one direction of U⊥, so K equal models give
    back the model where r holds its rank.

    Attributes:
        scale: of the result.
    """

    scale: Scale = 1.0

    name = "tsv_m"
    source = "arXiv:2412.00081"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_matrices(self, deltas: Tensor, site: Site) -> Tensor:
        """See the class."""
        rank = max(1, min(deltas.shape[1:]) // len(deltas))
        triples = [singular_triples(delta).leading(rank) for delta in deltas]
        left, values, right = (torch.cat(part, -1) for part in zip(*triples, strict=True))
        return (polar_factor(left) * (self.scale * values) @ polar_factor(right).mT).float()
