# SPDX-License-Identifier: Apache-2.0
"""Weighted least squares with a ridge, from sums over rows that are never in memory at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdft_fast.errors import MdftError

_BLOCK = 128  # columns of a Gram matrix that are computed at once: its lower half is a copy


class Moments:
    """Sums over rows, XᵀX and XᵀY, in float32 and in the order in which the rows came.

    Args:
        inputs: width of X; one more than the rows' where a 1 behind them stands for the bias.
        outputs: width of Y, likewise; 0: XᵀX alone.
        device: where.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.cross = torch.zeros(inputs, outputs, device=device, dtype=torch.float32)
        self._gram = torch.zeros(inputs, inputs, device=device, dtype=torch.float32)

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
        root = weights.sqrt()
        weighted = not bool((weights == 1).all())
        rows = _rows(x, root if weighted else None)
        # The column of ones is summed apart: with it rows would have to be copied once more.
        ones = root.expand(len(x), -1).reshape(-1)
        inputs = rows.shape[1]
        for first in range(0, inputs, _BLOCK):
            last = min(first + _BLOCK, inputs)
            self._gram[first:last, first:inputs].addmm_(rows[:, first:last].T, rows[:, first:])
        if len(self._gram) > inputs:
            self._gram[:inputs, inputs].addmv_(rows.T, ones)
            self._gram[inputs, inputs] += ones @ ones
        if y is not None:
            self._add_cross(rows, _rows(y, root if weighted else None), ones)

    def _add_cross(self, rows: Tensor, targets: Tensor, ones: Tensor) -> None:
        (inputs, outputs), cross = (rows.shape[1], targets.shape[1]), self.cross
        cross[:inputs, :outputs].addmm_(rows.T, targets)
        if len(cross) > inputs:
            cross[inputs, :outputs].addmv_(targets.T, ones)
        if cross.shape[1] > outputs:
            cross[:inputs, outputs].addmv_(rows.T, ones)
            if len(cross) > inputs:
                cross[inputs, outputs] += ones @ ones

    @property
    def gram(self) -> Tensor:
        """XᵀX, float32 ``[in, in]``."""
        upper = self._gram.triu()
        return upper + upper.triu(1).T


def _rows(x: Tensor, root: Tensor | None) -> Tensor:
    return (x if root is None else x * root[:, None]).reshape(-1, x.shape[-1])


def solve(gram: Tensor, cross: Tensor) -> Tensor:
    """Returns X of gram · X = cross, float64, by Cholesky.

    Args:
        gram: positive semidefinite, float64 ``[in, in]``. Where round-off has left it short of
            definite, the smallest ridge of a rising row that helps is added.
        cross: float64 ``[in, out]``.

    Raises:
        MdftError: if there is none: a number is not finite, or gram is far from semidefinite.
    """
    return torch.cholesky_solve(cross, _factor(gram))


def _factor(gram: Tensor) -> Tensor:
    """Returns the lower Cholesky factor of a matrix, or of one next to it that has a factor."""
    # Where nothing was ever seen, all is 0, and so is the solution for any ridge.
    size = gram.diagonal().mean()
    size = torch.where(size > 0, size, 1.0)
    factor: Tensor
    for ridge in (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4):
        shifted = gram.clone()
        shifted.diagonal().add_(ridge * size)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            return factor
    raise MdftError(
        "least squares: the Gram matrix must be finite and positive semidefinite, got another"
    )


def solve_weighted(
    grams: Sequence[Tensor],
    metrics: Sequence[Tensor],
    ridge: float,
    cross: Tensor,
    start: Tensor,
    *,
    steps: int,
    tolerance: float = 1e-3,
) -> Tensor:
    """Returns X of Σ_k grams_k · X · metrics_k + ridge · X = cross, by conjugate gradients.

    The unknowns are too many for a factorisation, in · out. The preconditioner is the same with
    the sum of the Grams and the mean of the metrics, whose two factors are small; these are made
    in float64, all else is float32: 2 K + 2 matrix products a step.

    Args:
        grams: float32 ``[in, in]`` each, positive semidefinite.
        metrics: float32 ``[out, out]`` each, positive definite.
        ridge: a number above 0.
        cross: float32 ``[in, out]``.
        start: likewise; a guess.
        steps: at most.
        tolerance: of the residual's norm in the preconditioner's metric, as a share of the
            start's.

    Returns:
        float32 ``[in, out]``.
    """

    def product(x: Tensor) -> Tensor:
        total = ridge * x
        for gram, metric in zip(grams, metrics, strict=True):
            total.addmm_(gram @ x, metric)
        return total

    left = sum((gram.double() for gram in grams[1:]), grams[0].double())
    left.diagonal().add_(ridge)
    right = sum((metric.double() for metric in metrics[1:]), metrics[0].double())
    left_factor, right_factor = _factor(left).float(), _factor(right / len(metrics)).float()

    def preconditioned(rest: Tensor) -> Tensor:
        half = torch.cholesky_solve(rest, left_factor)
        return torch.cholesky_solve(half.T, right_factor).T

    x, rest = start, cross - product(start)
    better = preconditioned(rest)
    direction, size = better, _dot(rest, better)
    least = tolerance**2 * size
    for _ in range(steps):
        if not size > least:
            break
        mapped = product(direction)
        length = size / _dot(direction, mapped)
        x, rest = x + length * direction, rest - length * mapped
        better = preconditioned(rest)
        before, size = size, _dot(rest, better)
        direction = better + size / before * direction
    return x


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))
