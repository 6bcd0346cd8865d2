# SPDX-License-Identifier: Apache-2.0
"""Model Stock: the less the task vectors agree, the nearer to the base."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mdft_fast.methods.method import Merge, Site, mean_of


@dataclasses.dataclass(frozen=True)
class ModelStock(Merge):
    """Goes from the base toward the mean as far as the angle between task vectors allows.

        t = K c / (1 + (K − 1) c),   c = the mean of cos(τ_j, τ_k) over pairs j < k, of one tensor
        θ = t · mean of the τ_k

    Where c ≤ 0, t is 0: the formula would leave the way between base and mean, and has a pole at
    −1/(K − 1). A zero vector is at right angles to all. Of one model, c is 1.
    """

    name = "model_stock"
    source = "arXiv:2403.19522"

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        """Returns the mean, scaled by t."""
        K, cosine = len(deltas), mean_cosine(deltas)
        t = K * cosine / (1 + (K - 1) * cosine) if cosine > 0 else 0.0
        return t * mean_of(deltas)


def mean_cosine(deltas: Tensor) -> float:
    """Returns the mean of cos(τ_j, τ_k) over the pairs of ``[K, *shape]``; 1 where K is 1."""
    rows = deltas.flatten(1).double() if deltas.dim() > 1 else deltas.double()[:, None]
    if len(rows) == 1:
        return 1.0
    norms = rows.norm(dim=1, keepdim=True)
    units = torch.where(norms > 0, rows / norms, 0.0)
    return float((units @ units.mT).triu(1).sum()) / (len(rows) * (len(rows) - 1) / 2)
