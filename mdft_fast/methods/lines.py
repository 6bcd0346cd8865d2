# SPDX-License-Identifier: Apache-2.0
"""LiNeS: shallow layers stay nearer to the base than deep ones."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import Site, Transform
from mdft_fast.options import check


@dataclasses.dataclass(frozen=True)
class Lines(Transform):
    """Scales each block's vectors by a factor that rises evenly with depth.

        τ'_k = (alpha + beta · l / (L − 1)) τ_k    for the tensors of block l of L, l from 0

    What lies before the first block is scaled by alpha, what lies behind the last one by
    alpha + beta; with one block alone, that one by alpha.

    Attributes:
        alpha: the first block's factor.
        beta: what the last block's factor is more.
    """

    # The last block keeps its length and the first loses half: ours. The paper takes alpha from the
    # vectors' norms and beta by labelled validation.
    alpha: float = 0.5
    beta: float = 0.5

    name = "lines"
    source = "arXiv:2410.17146"
    needs = ("depth",)

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Scales; a factor of 1 changes no bit."""
        return deltas * (self.alpha + self.beta * site.depth)
