# SPDX-License-Identifier: Apache-2.0
"""NegMerge: what all variants of a task agree on is unlearned."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from mdft_fast.methods.method import Site, Transform
from mdft_fast.options import check


@dataclasses.dataclass(frozen=True)
class Negmerge(Transform):
    """Keeps the elements whose sign all vectors share, and turns them against the task.

        τ'_k = −τ_k where sgn τ_1 = … = sgn τ_K ≠ 0, else 0

    The vectors are of one task, trained in K ways; their mean, λ = 1/K for each, is the paper's.

    Attributes:
        negate: whether the vectors point away from the task, to unlearn it.
    """

    negate: bool = True

    name = "negmerge"
    source = "arXiv:2410.05583"

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Keeps what is positive in all vectors, or negative in all."""
        shared = (deltas > 0).all(0) | (deltas < 0).all(0)
        return (-deltas if self.negate else deltas).where(shared, 0.0)
