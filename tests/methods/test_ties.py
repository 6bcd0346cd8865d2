# SPDX-License-Identifier: Apache-2.0
"""TIES against its definition, PEFT's code, numbers by hand, and degenerate pools."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mdft_fast import MdftError
from mdft_fast.arena import CODECS, Codec
from mdft_fast.methods import Lines, Ties, apply, kth_largest
from tests.methods.made_pools import draw, make_pool, tensors, ties


@pytest.mark.parametrize("density", [1e-9, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("K", [1, 2, 3, 9])
def test_is_the_definition(K: int, density: float) -> None:
    deltas = draw(K, seed=K)
    made = tensors(apply(make_pool(deltas), [Ties(density)]))
    for name, wanted in ties(deltas, density).items():
        assert torch.equal(made[name].double(), wanted), name


@pytest.mark.parametrize("codec", CODECS)
def test_in_a_codec_thresholds_are_those_of_what_is_stored(codec: Codec) -> None:
    pool = make_pool(draw(3), codec)
    wanted = ties(tensors(pool), 0.3)
    coded = make_pool({name: t.float() for name, t in wanted.items()}, codec)
    got = apply(pool, [Ties(0.3)]).vectors.decode()
    assert torch.allclose(got, coded.vectors.decode(), rtol=2.0**-20, atol=0)


def test_is_pefts() -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    deltas = draw(4, shapes={"blocks.0.weight": (30, 50)})
    (made,) = tensors(apply(make_pool(deltas), [Ties(0.25)])).values()
    (given,) = deltas.values()
    theirs = peft.ties(list(given), torch.ones(4), 0.25)
    number = (made != 0).sum(0).clamp(min=1)  # the mean over those that agree
    assert torch.allclose(made.sum(0) / number, theirs, rtol=1e-6, atol=0)


def test_by_hand() -> None:
    # Each keeps 2 of 4: 3 and -2; 4 and, as both are as large, -1 and -1; -2 and 5.
    rows = [[3.0, -2, 1, 0], [-1, -1, 4, 0], [-2, 5, 1, 1]]
    pool = make_pool({"blocks.0.weight": torch.tensor(rows)})
    (made,) = tensors(apply(pool, [Ties(0.5)])).values()
    # Sums of what is kept: 3 - 1 - 2 = 0, which elects +; -2 - 1 + 5 = 2; 4; 0.
    assert made.tolist() == [[3, 0, 0, 0], [0, 0, 4, 0], [0, 5, 0, 0]]


def test_elements_equal_to_the_threshold_stay() -> None:
    pool = make_pool({"blocks.0.weight": torch.tensor([[1.0, -1, 1, 0.5]])})
    (made,) = tensors(apply(pool, [Ties(0.25)])).values()
    assert made.tolist() == [[1, -1, 1, 0]]


def same(pool_deltas: dict[str, Tensor], density: float) -> bool:
    pool = make_pool(pool_deltas)
    return apply(pool, [Ties(density)]).checksum == pool.checksum


@pytest.mark.parametrize("copies", [1, 4])
def test_where_all_agree_density_1_changes_no_bit(copies: int) -> None:
    deltas = {name: t.repeat(copies, *[1] * (t.dim() - 1)) for name, t in draw(1).items()}
    assert same(deltas, 1.0)
    assert not same(deltas, 0.5)


def test_zero_vectors_stay_zero() -> None:
    assert same({name: torch.zeros_like(t) for name, t in draw(3).items()}, 0.2)


def test_opposite_vectors_keep_what_is_positive() -> None:
    one = draw(1)
    made = tensors(apply(make_pool({n: torch.cat([t, -t]) for n, t in one.items()}), [Ties(1.0)]))
    for name, tensor in one.items():
        assert torch.equal(made[name], torch.cat([tensor, -tensor]).clamp(min=0))


def test_the_threshold_is_of_what_came_before() -> None:
    deltas = draw(2)
    before = tensors(apply(make_pool(deltas), [Lines(0.1, 2.0)]))
    made = tensors(apply(make_pool(deltas), [Lines(0.1, 2.0), Ties(0.3)]))
    assert all(torch.equal(made[n].double(), t) for n, t in ties(before, 0.3).items())


def test_the_order_of_tasks_is_all_that_changes_with_it() -> None:
    deltas = draw(5)
    order = torch.tensor([3, 0, 4, 2, 1])
    made = tensors(apply(make_pool(deltas), [Ties()]))
    turned = tensors(apply(make_pool({n: t[order] for n, t in deltas.items()}), [Ties()]))
    assert all(torch.equal(turned[name], made[name][order]) for name in made)


@pytest.mark.parametrize("density", [0, -1, 1.5, float("nan"), "0.2", True])
def test_density_is_a_share(density: float) -> None:
    with pytest.raises(MdftError, match=r"ties.density: must be in \(0, 1\], got"):
        Ties(density)


MAGNITUDES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(MAGNITUDES, min_size=2, max_size=2), min_size=1, max_size=40), st.data())
def test_the_kth_largest_is_exact(columns: list[list[float]], data: st.DataObject) -> None:
    rows = torch.tensor(columns).T.contiguous()  # [2, n]; subnormal numbers and -0 too
    cut = data.draw(st.integers(0, rows.shape[1]))
    rank = data.draw(st.integers(1, rows.shape[1]))
    wanted = rows.abs().sort(1, descending=True).values[:, rank - 1]
    assert torch.equal(kth_largest([rows[:, :cut], rows[:, cut:]], rank), wanted)
