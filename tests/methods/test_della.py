# SPDX-License-Identifier: Apache-2.0
"""DELLA: probabilities by rank, row by row, and DARE where epsilon is 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdft_fast import MdftError
from mdft_fast.methods import Della, apply
from tests.methods.made_pools import draw, make_pool, tensors


def probabilities(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """By the definition, element by element: how many of its row are smaller."""
    made = torch.empty_like(rows)
    for row, out in zip(rows, made, strict=True):
        for i, element in enumerate(row):
            below = float((row.abs() < element.abs()).sum())
            share = below / (len(row) - 1) if len(row) > 1 else 0.5
            out[i] = density - epsilon + 2 * epsilon * share
    return made


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((6, 7), (6, 7)), ((30,), (1, 30)), ((), (1, 1)), ((4, 3, 2), (4, 6)), ((5, 1), (5, 1))],
)
def test_what_is_kept_is_divided_by_its_probability(
    shape: tuple[int, ...], rows: tuple[int, int]
) -> None:
    deltas = draw(3, shapes={"blocks.0.weight": shape})
    (made,) = tensors(apply(make_pool(deltas), [Della(0.6, epsilon=0.3)])).values()
    (given,) = deltas.values()
    for vector, tensor in zip(made, given, strict=True):
        exact = tensor.double() / probabilities(tensor.double().reshape(rows), 0.6, 0.3).view(shape)
        kept = vector != 0
        assert ((vector.double() - exact).abs() <= 2.0**-22 * exact.abs())[kept].all()


def test_large_elements_stay_more_often() -> None:
    rows = torch.arange(1.0, 51.0).expand(1, 4000, 50).contiguous()
    (made,) = tensors(apply(make_pool({"w": rows}), [Della(0.3, 0.2, rescale=False)])).values()
    often = (made != 0).double().mean((0, 1))
    wanted = torch.linspace(0.1, 0.5, 50, dtype=torch.float64)
    assert ((often - wanted).abs() < 5 * (wanted * (1 - wanted) / 4000).sqrt()).all()


def test_of_equal_magnitudes_the_later_ranks_higher() -> None:
    ones = torch.ones(1, 1000, 2)
    (made,) = tensors(apply(make_pool({"w": ones}), [Della(0.5, 0.4, rescale=False)])).values()
    assert made.sum(1).round(decimals=-2).tolist() == [[100, 900]]


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.15), (0.1, 0.1), (0.1, 0.2)])
def test_probabilities_must_be_such(density: float, epsilon: float) -> None:
    message = r"della.epsilon: must be below density and at most 1 - density, got .* with density"
    with pytest.raises(MdftError, match=message):
        Della(density, epsilon)


def test_bounds_of_fields() -> None:
    with pytest.raises(MdftError, match=r"della.epsilon: must be in \[0, 0.5\), got 0.5"):
        Della(0.5, 0.5)
