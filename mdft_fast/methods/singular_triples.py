# SPDX-License-Identifier: Apache-2.0
"""Singular triples and polar factors: thin where the rank is small, symmetric problems elsewhere.

An eigenproblem of the smaller side takes a fraction of an SVD's time. Squared singular values lose
half of the digits, so all of it is float64, where that leaves more than a float32 vector holds.

LoRA's vectors have a small rank. A pool stores them as dense tensors, so it is found again: some
rows and columns say how large it may be, and a randomised range finder (Halko et al. 2011,
arXiv:0909.4061, sec. 4.1), whose test matrix is always the same, is believed only where nothing
but round-off is left over.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SHARE = 4  # beyond a quarter of the smaller side a sketch saves nothing


class Triples(NamedTuple):
    """A matrix ``[out, in]`` as ``left @ diag(values) @ right.mT``.

    Attributes:
        left: float64 ``[out, r]``, orthonormal columns.
        values: float64 ``[r]``, falling, above 0.
        right: float64 ``[in, r]``, orthonormal columns.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def leading(self, count: int) -> Triples:
        """Returns those with the largest values, at most ``count``; a copy, so the rest may go."""
        return Triples(*(part[..., :count].clone() for part in self))


def round_off(matrix: Tensor) -> float:
    """Returns the share of a matrix's norm below which it is round-off.

    Rounding elements to float32 adds a matrix whose norm is about √n of their error, n the longer
    side. A task vector is a difference to the base and carries the rounding of the base's larger
    elements; but that has no direction, where the vector has few.
    """
    return float(max(matrix.shape) ** 0.5 * torch.finfo(torch.float32).eps)


def singular_triples(matrix: Tensor, level: float = 0.0) -> Triples:
    """Returns a matrix's singular triples but those that are round-off.

    Signs are the eigensolver's: what methods make of triples does not change with them.

    Args:
        matrix: ``[out, in]``, finite.
        level: values up to this are round-off too: of a matrix that this is only a part of.

    Returns:
        At most min(out, in) triples, fewer where the rank is; none of a zero matrix. Equal inputs
        give equal bits.
    """
    thin = thin_triples(matrix, level)
    return _dense_triples(matrix.double(), round_off(matrix), level) if thin is None else thin


def thin_triples(matrix: Tensor, level: float = 0.0) -> Triples | None:
    """Returns the singular triples of a matrix of small rank; None: it is of another.

    Arguments are those of :func:`singular_triples`. A sketch has at most a quarter of the smaller
    side's columns; what it leaves over is, in the Frobenius norm, :func:`round_off` of the matrix
    or ``level``. A zero matrix has no triples.
    """
    matrix = matrix.double()
    allowed = max(level, round_off(matrix) * float(matrix.norm()))
    left, rest = matrix.new_zeros(len(matrix), 0), matrix
    most = min(matrix.shape) // _SHARE
    rank = _rank_of_some(matrix, most + most // _SHARE + 1, level)
    # More columns than the rank, else noise tilts them; and once more, where some do not tell all.
    widths = [min(rank + rank // 2 + 8, most), most] if rank <= most else []
    generator = torch.Generator().manual_seed(0)
    while not float(rest.norm()) <= allowed:
        width = widths.pop(0) - left.shape[1] if widths else 0
        if width <= 0:
            return None
        test = torch.randn(
            matrix.shape[1], width, generator=generator, dtype=torch.float64, device="cpu"
        )
        sketch = rest @ test.to(matrix.device)
        # The rest is at right angles to the columns there are only within its own round-off.
        basis = torch.linalg.qr(sketch - left @ (left.mT @ sketch)).Q
        left = torch.cat([left, basis], 1)
        rest = rest - basis @ (basis.mT @ rest)
    inner = _dense_triples(left.mT @ matrix, round_off(matrix), level)
    return inner._replace(left=left @ inner.left)


def _rank_of_some(matrix: Tensor, side: int, level: float) -> int:
    """Returns the rank of every so many-th row and column, ``side`` of each."""
    rows, columns = (max(1, size // side) for size in matrix.shape)
    some = matrix[::rows, ::columns][:side, :side]
    squares = torch.linalg.eigvalsh(some @ some.mT)
    least = (round_off(matrix) ** 2 * squares[-1:]).clamp(min=level**2)
    return int((squares > least).sum())


def _dense_triples(matrix: Tensor, share: float, level: float) -> Triples:
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = _dense_triples(matrix.mT, share, level)
        return Triples(left, values, right)
    squares, left = torch.linalg.eigh(matrix @ matrix.mT)
    values, left = squares.clamp(min=0).sqrt().flip(0), left.flip(1)
    # None where the largest is 0.
    real = int((values > (share * values[:1]).clamp(min=level)).sum())
    values, left = values[:real], left[:, :real]
    return Triples(left, values, matrix.mT @ (left / values))


def polar_factor(columns: Tensor) -> Tensor:
    """Returns the matrix with orthonormal columns that is nearest to one: ``A (AᵀA)^-½``.

    Directions in which columns depend on each other, within round-off, are left out: an SVD would
    fill them with any others.

    Args:
        columns: float64 ``[d, n]``.

    Returns:
        float64 ``[d, n]``, of the same rank.
    """
    if columns.shape[1] > columns.shape[0]:
        return polar_factor(columns.mT).mT
    squares, axes = torch.linalg.eigh(columns.mT @ columns)
    real = squares > round_off(columns) ** 2 * squares[-1:]
    axes, squares = axes[:, real], squares[real]
    inverse_root: Tensor = (axes / squares.sqrt()) @ axes.mT
    return columns @ inverse_root
