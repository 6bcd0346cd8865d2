# SPDX-License-Identifier: Apache-2.0
"""Weighted least squares with a ridge, from sums over rows that are never in memory at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 256  # columns of a Gram matrix that are computed at once: its lower half is a copy


class Moments:
    """Sums over rows, XᵀX and XᵀY, in float32 and in the order in which the rows came.

    Args:
        inputs: width of X; one more than the rows' where a column of ones stands for the bias.
        outputs: width of Y, likewise; 0: XᵀX alone.
        device: where.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.cross = torch.zeros(inputs, outputs, device=device)
        self._gram = torch.zeros(inputs, inputs, device=device)

    def add(self, x: Tensor, y: Tensor | None, weights: Tensor) -> None:
        """Adds rows.

        Args:
            x: ``[B, T, in]``.
            y: ``[B, T, out]``; None: XᵀX alone.
            weights: float32 ``[T]``; positions of weight 0 are left out.
        """
        at = weights.nonzero()[:, 0]
        if len(at) < len(weights):
            x, weights = x[:, at], weights[at]
            y = None if y is None else y[:, at]
        root = None if bool((weights == 1).all()) else weights.sqrt()[:, None]
        rows = _rows(x, root, len(self._gram))
        for first in range(0, len(self._gram), _BLOCK):
            last = first + _BLOCK
            self._gram[first:last, first:].addmm_(rows[:, first:last].T, rows[:, first:])
        if y is not None:
            self.cross.addmm_(rows.T, _rows(y, root, self.cross.shape[1]))

    @property
    def gram(self) -> Tensor:
        """XᵀX, float32 ``[in, in]``."""
        upper = self._gram.triu()
        return upper + upper.triu(1).T


def _rows(x: Tensor, root: Tensor | None, width: int) -> Tensor:
    """Returns rows times the roots of their weights, with a 1 behind where they are too narrow."""
    narrow = x.shape[-1]
    if width == narrow:
        return (x if root is None else x * root).reshape(-1, width)
    rows = x.new_empty(*x.shape[:-1], width)
    rows[..., :narrow] = x if root is None else x * root
    rows[..., narrow:] = 1.0 if root is None else root
    return rows.view(-1, width)


def solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Returns X of gram · X = cross, float64, by Cholesky.

    Args:
        gram: positive semidefinite, float64 ``[in, in]``. Where round-off has left it short of
            definite, the smallest ridge of a rising row that helps is added.
        cross: float64 ``[in, out]``.
    """
    size = gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    for ridge in (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4):
        shifted = gram.clone()
        shifted.diagonal().add_(ridge * size)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            return torch.cholesky_solve(cross, factor)
    raise ValueError("gram must be positive semidefinite")


def solve_weighted(
    grams: Sequence[Tensor],
    metrics: Sequence[Tensor],
    ridge: Tensor,
    cross: Tensor,
    start: Tensor,
    *,
    steps: int,
    tolerance: float = 1e-6,
) -> Tensor:
    """Returns X of Σ_k grams_k · X · metrics_k + ridge · X = cross, by conjugate gradients.

    The unknowns are too many for a factorisation, in · out. The preconditioner is the same with
    the sum of the Grams and the mean of the metrics, whose two factors are small.

    Args:
        grams: float64 ``[in, in]`` each, positive semidefinite.
        metrics: float64 ``[out, out]`` each, positive definite.
        ridge: a number above 0.
        cross: float64 ``[in, out]``.
        start: likewise; a guess.
        steps: at most.
        tolerance: of the residual's norm in the preconditioner's metric, as a share of the
            start's.
    """

    def product(x: Tensor) -> Tensor:
        total = ridge * x
        for gram, metric in zip(grams, metrics, strict=True):
            total = total + gram @ x @ metric
        return total

    left = sum(grams[1:], grams[0]).clone()
    left.diagonal().add_(ridge)
    left_factor = torch.linalg.cholesky(left)
    right_factor = torch.linalg.cholesky(sum(metrics[1:], metrics[0]) / len(metrics))

    def preconditioned(rest: Tensor) -> Tensor:
        half = torch.cholesky_solve(rest, left_factor)
        return torch.cholesky_solve(half.T, right_factor).T

    x, rest = start, cross - product(start)
    better = preconditioned(rest)
    direction, size = better, (rest * better).sum()
    least = tolerance**2 * size
    for _ in range(steps):
        if not size > least:
            break
        mapped = product(direction)
        length = size / (direction * mapped).sum()
        x, rest = x + length * direction, rest - length * mapped
        better = preconditioned(rest)
        before, size = size, (rest * better).sum()
        direction = better + size / before * direction
    return x
