# SPDX-License-Identifier: Apache-2.0
"""Signs alone: how much of a task vector is direction?"""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor

from mdft_fast.methods.method import Site, Transform, flat, in_rows
from mdft_fast.options import check


@dataclasses.dataclass(frozen=True)
class Sign(Transform):
    """Keeps each element's sign, at the mean magnitude of its tensor or row.

        τ'_k = sgn τ_k · mean |τ_k|    (over the elements that are not 0, which stay 0)

    Attributes:
        over: what shares a magnitude.
    """

    over: Literal["tensor", "row"] = "tensor"

    name = "sign"
    source = "arXiv:2502.10743"

    def __post_init__(self) -> None:
        check(self, self.name)

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Takes tensors of every kind, norms and biases too."""
        rows = flat(deltas) if self.over == "tensor" else in_rows(deltas)
        return signs_at_mean(rows).view(deltas.shape)


def signs_at_mean(rows: Tensor) -> Tensor:
    """Returns the signs of rows ``[..., n]`` at each row's mean magnitude where it is not 0.

    No other vector of one magnitude with these zeros is nearer in least squares. Done twice it
    changes no bit: float64 holds the sum of equal float32 numbers.
    """
    count = (rows != 0).sum(-1, keepdim=True).clamp(min=1)
    return rows.sign() * (rows.abs().double().sum(-1, keepdim=True) / count).float()
