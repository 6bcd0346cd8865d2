# SPDX-License-Identifier: Apache-2.0
"""Iso-CTS: Iso-C, with some of the sum's directions given to single tasks."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from torch import Tensor

from mdft_fast.methods.method import MatrixMerge, Scale, Site, sum_of
from mdft_fast.methods.singular_triples import polar_factor, round_off, singular_triples
from mdft_fast.options import Interval, check


@dataclasses.dataclass(frozen=True)
class IsoCts(MatrixMerge):
    """Joins the sum's leading directions and each task's own, with all singular values alike.

        Σ_k τ_k = U S Vᵀ of rank r;   s = round((r − ⌊common · r⌋) / K),  c = r − K s
        U_0 = the first c columns of U;   (1 − U_0 U_0ᵀ) τ_k = U_k S_k V_kᵀ, the first s of each
        U = [U_0 U_1 … U_K] made orthogonal as in tsv_m, V alike, S joined
        θ = scale · mean(S) · U⊥ V⊥ᵀ

    Where s is 0, more tasks than directions to give away, it is iso_c. One model does not give
    back itself, as there.

    Attributes:
        common: share of the sum's directions that stay.
        scale: of the result.
    """

    common: Annotated[float, Interval(ge=0, le=1)] = 0.8  # the paper's
    scale: Scale = 1.0

    name = "iso_cts"
    source = "arXiv:2502.04959"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_matrices(self, deltas: Tensor, site: Site) -> Tensor:
        """See the class."""
        K, triples = len(deltas), singular_triples(sum_of(deltas))
        rank = len(triples.values)
        each = min(rank // K, round((rank - int(self.common * rank)) / K))
        shared = triples.leading(rank - K * each)
        joined = [shared]
        for delta in deltas if each else ():
            apart = delta.double()
            apart = apart - shared.left @ (shared.left.mT @ apart)
            left_over = round_off(delta) * float(delta.norm())
            joined.append(singular_triples(apart, left_over).leading(each))
        left, values, right = (torch.cat(part, -1) for part in zip(*joined, strict=True))
        level = self.scale * values.sum() / max(len(values), 1)
        return (level * polar_factor(left) @ polar_factor(right).mT).float()
