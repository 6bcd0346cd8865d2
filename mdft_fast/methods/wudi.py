# SPDX-License-Identifier: Apache-2.0
"""WUDI in closed form: the matrix that disturbs the tasks least along their own rows."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from torch import Tensor

from mdft_fast.methods.interference import ThinEquations, equations_of
from mdft_fast.methods.method import MatrixMerge, Scale, Site
from mdft_fast.options import Interval, check


@dataclasses.dataclass(frozen=True)
class Wudi(MatrixMerge):
    """Solves for the matrix that disturbs the tasks least, near their sum.

        C = Σ w_k τ_kᵀ τ_k,  D = Σ w_k τ_k τ_kᵀ τ_k,  w_k = 1 / ‖τ_k‖²,  S = Σ τ_k
        θ = (D + e · anchor · S) (C + e I)^-1,   e = ridge · mean of C's diagonal

    The published method takes 300 steps of Adam from S on the same least-squares problem, which
    end somewhere on the way; the ridge says how near to S this stays. Where the tasks' rows are
    weak, θ is the anchor times S: more than S was nearer to the teachers on two pools, and √K
    gives one model back.

    Attributes:
        ridge: pull toward the sum, as a share of C's mean diagonal.
        anchor: what multiplies the sum there; null: √K, vectors of zeros not counted.
    """

    ridge: Annotated[float, Interval(gt=0)] = 0.1  # ours
    anchor: Scale | None = None

    name = "wudi"
    source = "arXiv:2503.08099"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge_matrices(self, deltas: Tensor, site: Site) -> Tensor:
        """See the class; of thin rows X, (C + e I)^-1 behind X is (X Xᵀ + e I)^-1 before it."""
        changed = float(deltas.flatten(1).any(1).sum())  # a vector of zeros counts for nothing
        anchor = changed**0.5 if self.anchor is None else self.anchor
        equations = equations_of(deltas)
        if isinstance(equations, ThinEquations):
            rows, target, total = equations
            ridge = self.ridge * rows.square().sum() / rows.shape[1]
            inner = _solve(rows @ rows.mT, ridge, rows)
            return ((target + ridge * anchor * total) @ inner).float()
        ridge = self.ridge * equations.gram.diagonal().mean()
        right = (equations.target + ridge * anchor * equations.total).mT
        return _solve(equations.gram, ridge, right).mT.float()


def _solve(gram: Tensor, ridge: Tensor, right: Tensor) -> Tensor:
    """Returns ``(gram + ridge I)^-1 right``; every sum of squares makes the matrix definite."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram + ridge * identity))
