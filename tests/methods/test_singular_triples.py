# SPDX-License-Identifier: Apache-2.0
"""Singular triples and polar factors against torch's SVD; thin ones only where they are exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdft_fast.methods.singular_triples import (
    Triples,
    polar_factor,
    round_off,
    singular_triples,
    thin_triples,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(triples: Triples) -> Tensor:
    return triples.left * triples.values @ triples.right.mT


def check(triples: Triples, matrix: Tensor, rank: int) -> None:
    """They are the matrix, within a float32's rounding of it, and what their class says."""
    matrix, level = matrix.double(), round_off(matrix) * float(matrix.double().norm())
    assert len(triples.values) == rank
    assert float((product(triples) - matrix).norm()) <= level
    exact = torch.linalg.svdvals(matrix)[:rank]
    assert torch.allclose(triples.values, exact, rtol=0, atol=level)
    for axes in (triples.left, triples.right):
        identity = torch.eye(rank, dtype=torch.float64)
        assert torch.allclose(axes.mT @ axes, identity, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (20, 20), (40, 90)])
def test_full_rank(shape: tuple[int, int]) -> None:
    matrix = normal(*shape).float()
    assert thin_triples(matrix) is None
    check(singular_triples(matrix), matrix, min(shape))


@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64)])
def test_small_rank_beside_the_rounding_of_a_base(shape: tuple[int, int], rank: int) -> None:
    base = 30 * normal(*shape, seed=1).float()
    delta = (normal(shape[0], rank) @ normal(rank, shape[1], seed=2)).float()
    matrix = (base + delta) - base
    thin = thin_triples(matrix)
    assert thin is not None
    check(thin, matrix, rank)
    assert all(torch.equal(a, b) for a, b in zip(thin, singular_triples(matrix), strict=True))


def test_what_is_more_than_round_off_is_no_small_rank() -> None:
    matrix = normal(48, 2) @ normal(2, 48, seed=1)
    noise = normal(48, 48, seed=2)
    noise *= float(matrix.norm() / noise.norm())
    assert thin_triples((matrix + 1e-4 * noise).float()) is None
    assert thin_triples((matrix + 1e-8 * noise).float()) is not None
    part = thin_triples((matrix + 1e-4 * noise).float(), level=2e-4 * float(matrix.norm()))
    assert part is not None
    assert len(part.values) == 2


def test_rows_and_columns_that_are_not_looked_at_are_not_forgotten() -> None:
    # Every fourth row and column, those that tell the rank ahead, are 0.
    matrix = torch.zeros(64, 64)
    matrix[1::2, 1::2] = (normal(32, 3) @ normal(3, 32, seed=1)).float()
    thin = thin_triples(matrix)
    assert thin is not None
    check(thin, matrix, 3)
    matrix[1::2, 1::2] = normal(32, 32).float()
    assert thin_triples(matrix) is None
    check(singular_triples(matrix), matrix, 32)


@pytest.mark.parametrize("shape", [(5, 9), (40, 40)])
def test_a_zero_matrix_has_none(shape: tuple[int, int]) -> None:
    triples = singular_triples(torch.zeros(shape))
    assert [tuple(part.shape) for part in triples] == [(shape[0], 0), (0,), (shape[1], 0)]
    assert torch.equal(product(triples), torch.zeros(shape, dtype=torch.float64))


def test_the_leading_ones_are_the_largest() -> None:
    matrix = torch.diag(torch.tensor([2.0, 5, 1, 4]))
    assert singular_triples(matrix).leading(2).values.tolist() == pytest.approx([5, 4])
    assert singular_triples(matrix).leading(9).values.tolist() == pytest.approx([5, 4, 2, 1])


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6), (5, 0)])
def test_the_polar_factor_is_the_nearest_with_orthonormal_columns(shape: tuple[int, int]) -> None:
    columns = normal(*shape)
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    assert torch.allclose(polar_factor(columns), left @ right, atol=1e-9)


def test_the_polar_factor_of_dependent_columns_keeps_their_rank() -> None:
    column = normal(7, 1)
    factor = polar_factor(column.expand(7, 4))  # four times the same: a quarter of it each
    assert torch.allclose(factor, (column / column.norm() / 2).expand(7, 4))
    assert not polar_factor(torch.zeros(7, 2, dtype=torch.float64)).any()
