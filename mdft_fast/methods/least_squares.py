# SPDX-License-Identifier: Apache-2.0
"""Weighted least squares with a ridge, from sums over rows that are never in memory at once."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Sums of products over rows: XᵀX and XᵀY in float32, in the order in which they came.

    Args:
        inputs: width of X; one more where a column of ones stands for the bias.
        outputs: width of Y; 0: XᵀX alone.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.gram = torch.zeros(inputs, inputs, device=device)
        self.cross = torch.zeros(inputs, outputs, device=device)
        self.weight = 0.0

    def add(self, x: Tensor, y: Tensor | None, weights: Tensor) -> None:
        """Adds rows.

        Args:
            x: ``[B, T, in]``.
            y: ``[B, T, out]``.
            weights: float32 ``[T]``; positions of weight 0 are left out.
        """
        at = weights.nonzero()[:, 0]
        if len(at) < len(weights):
            x, weights = x[:, at], weights[at]
            y = None if y is None else y[:, at]
        root = None if bool((weights == 1).all()) else weights.sqrt()[:, None]
        x = _scaled(x, root)
        self.weight += float(weights.double().sum()) * x.shape[0]
        rows = x.reshape(-1, x.shape[-1])
        wide = self.gram.shape[0]
        if wide > rows.shape[1]:  # a column of ones
            one = x.new_ones(1, 1, 1) if root is None else root[None]
            ones = one.expand(*x.shape[:2], 1).reshape(-1, 1)
            rows = torch.cat([rows, ones], 1)
        self.gram.addmm_(rows.T, rows)
        if y is not None:
            y = _scaled(y, root)
            self.cross.addmm_(rows.T, y.reshape(-1, y.shape[-1]))


def _scaled(rows: Tensor, root: Tensor | None) -> Tensor:
    return rows if root is None else rows * root


def solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Returns X of gram · X = cross for a positive definite gram, float64, by Cholesky.

    Where round-off has left it short of that, the smallest ridge of a rising row that helps is
    added.
    """
    size = float(gram.diagonal().mean())
    for ridge in (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4):
        shifted = gram + ridge * size * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            return torch.cholesky_solve(cross, factor)
    return torch.linalg.lstsq(gram.cpu(), cross.cpu(), driver="gelsd").solution.to(gram.device)
