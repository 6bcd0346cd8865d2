# SPDX-License-Identifier: Apache-2.0
"""Consensus task arithmetic against its definition and numbers by hand."""

from __future__ import annotations

import pytest
import torch

from mdft_fast import MdftError
from mdft_fast.methods import Consensus, apply
from tests.methods.made_pools import draw, make_pool, tensors


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("t", [0, 0.4, 2])
def test_is_the_definition(k: int, t: float) -> None:
    deltas = draw(4, seed=k)
    made = tensors(apply(make_pool(deltas), [Consensus(k, t)]))
    for name, tensor in deltas.items():
        votes = torch.zeros(tensor.shape[1:])
        for i in range(4):
            others = sum(tensor[j].double() for j in range(4) if j != i)
            votes += tensor[i].double().abs() >= t * abs(others)
        assert torch.equal(made[name], torch.where(votes >= min(k, 4), tensor, 0.0)), name


def test_by_hand() -> None:
    #                     both  only one  neither  one, of the two that there are
    rows = torch.tensor([[1.0, 4.0, 1.0, -2.0], [1.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.5, 0.0]])
    (made,) = tensors(apply(make_pool({"w": rows}), [Consensus(2, 0.9)])).values()
    # Against sums of the others: 2, 2, 2; 1, 4, 5; 1.5, 1.5, 2; 2, -2, 0.
    assert made.tolist() == [[0, 0, 0, -2], [0, 0, 0, 2], [0, 0, 0, 0]]


def test_opposite_vectors_find_each_element_important() -> None:
    one = draw(1)
    pool = make_pool({name: torch.cat([tensor, -tensor]) for name, tensor in one.items()})
    assert apply(pool, [Consensus()]).checksum == pool.checksum


def test_a_vector_alone_stays() -> None:
    pool = make_pool(draw(1))
    assert apply(pool, [Consensus(k=2)]).checksum == pool.checksum


def test_wrong_fields() -> None:
    with pytest.raises(MdftError, match=r"consensus.k: must be a whole number above 0, got 0"):
        Consensus(k=0)
    with pytest.raises(MdftError, match=r"consensus.t: must be a finite number >= 0, got -1"):
        Consensus(t=-1)
