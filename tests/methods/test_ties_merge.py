# SPDX-License-Identifier: Apache-2.0
"""TIES to its end against PEFT's code, its definition and numbers by hand."""

from __future__ import annotations

import pytest
import torch

from mdft_fast.methods import Dare, TiesMerge, apply
from tests.methods.made_pools import draw, make_pool, tensors, ties


@pytest.mark.parametrize("density", [0.2, 1.0])
@pytest.mark.parametrize("K", [1, 2, 5])
def test_is_the_definition(K: int, density: float) -> None:
    deltas = draw(K, seed=K)
    made = tensors(apply(make_pool(deltas), [TiesMerge(density, scale=0.7)]))
    for name, elected in ties(deltas, density).items():
        wanted = 0.7 * elected.sum(0) / (elected != 0).sum(0).clamp(min=1)
        assert torch.allclose(made[name][0].double(), wanted, rtol=2.0**-23, atol=1e-30), name


@pytest.mark.parametrize("density", [0.1, 0.25, 0.99])
def test_is_pefts(density: float) -> None:
    peft = pytest.importorskip("peft.utils.merge_utils", reason="compared with PEFT's ties")
    deltas = draw(4, shapes={"blocks.0.weight": (30, 50)})
    (made,) = tensors(apply(make_pool(deltas), [TiesMerge(density)])).values()
    theirs = peft.ties(list(*deltas.values()), torch.ones(4), density)
    assert torch.allclose(made[0], theirs, rtol=1e-6, atol=1e-7)


def test_is_pefts_behind_dare_too() -> None:
    peft = pytest.importorskip("peft.utils.merge_utils", reason="compared with PEFT's dare_ties")
    pool = make_pool(draw(4, shapes={"blocks.0.weight": (30, 50)}))
    (dropped,) = tensors(apply(pool, [Dare(0.4)])).values()
    mask = peft.calculate_majority_sign_mask(dropped)
    (made,) = tensors(apply(pool, [Dare(0.4), TiesMerge(density=1.0)])).values()
    assert torch.allclose(made[0], peft.disjoint_merge(dropped, mask), rtol=1e-6, atol=1e-7)


def test_by_hand() -> None:
    rows = torch.tensor([[3.0, -2, 1, 0], [-1, -1, 4, 0], [-2, 5, 1, 1]])
    (made,) = tensors(apply(make_pool({"w": rows}), [TiesMerge(1.0)])).values()
    # Sums: 0, which elects +; 2; 6; 1.
    assert made.tolist() == [[3, 5, 2, 1]]


def test_one_model_is_given_back_where_nothing_is_trimmed() -> None:
    pool = make_pool(draw(1))
    assert apply(pool, [TiesMerge(density=1.0)]).checksum == pool.checksum
