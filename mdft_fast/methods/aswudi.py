# SPDX-License-Identifier: Apache-2.0
"""Wudi where the tasks' rows are strong, their sum elsewhere."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from mdft_fast.methods.interference import ThinEquations, equations_of
from mdft_fast.methods.method import MatrixMerge, Site
from mdft_fast.methods.singular_triples import round_off


@dataclasses.dataclass(frozen=True)
class Aswudi(MatrixMerge):
    """Solves wudi's problem on the strongest directions of the tasks' rows, and sums elsewhere.

        C = V Λ Vᵀ, falling;   k = ⌈(Σ√λ)² / Σλ⌉, the number of directions that count
        θ = D V_k Λ_k^-1 V_kᵀ + S (I − V_k V_kᵀ)        (C, D, S as in wudi)

    Nothing is to be tuned.
    """

    name = "aswudi"
    source = "arXiv:2503.08099, with a rank instead of a ridge"

    def merge_matrices(self, deltas: Tensor, site: Site) -> Tensor:
        """See the class; thin rows X have C's directions V = Xᵀ Z Λ^-½ with X Xᵀ = Z Λ Zᵀ."""
        equations, share = equations_of(deltas), round_off(deltas[0])
        if isinstance(equations, ThinEquations):
            rows, target, total = equations
            values, axes = _strongest(rows @ rows.mT, share)
            change = (target @ (axes / values) - total @ axes) @ axes.mT
            return ((total + change) @ rows).float()
        gram, target, total = equations
        values, axes = _strongest(gram, share)
        return (total + (target @ (axes / values) - total @ axes) @ axes.mT).float()


def _strongest(gram: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Returns the k largest eigenvalues, float64 ``[k]``, and their vectors ``[n, k]``.

    Args:
        gram: float64 ``[n, n]``.
        share: roots of eigenvalues below this share of the largest root are round-off.
    """
    values, axes = torch.linalg.eigh(gram)
    real = values > share**2 * values[-1:]
    values, axes = values[real].flip(0), axes[:, real].flip(1)
    if not len(values):
        return values, axes
    count = math.ceil(float(values.sqrt().sum() ** 2 / values.sum()))  # at most all but rounding
    return values[:count], axes[:, :count]
