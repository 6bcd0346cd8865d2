# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdft_fast.errors import MdftError
from mdft_fast.learning import BatchOrder
from mdft_fast.model import split

SIZES = {"n": st.integers(1, 30), "batch": st.integers(1, 40), "seed": st.integers(-5, 5)}
ORDER = [9, 6, 1, 0, 3, 2, 7, 4, 8, 5]
SPLIT = [[2, 3, 4, 5, 6, 8, 9], [0, 1, 7]]


@settings(max_examples=60, deadline=None)
@given(**SIZES, steps=st.integers(1, 12))
def test_every_epoch_holds_every_sample_once(n: int, batch: int, seed: int, steps: int) -> None:
    order = BatchOrder(n, batch, seed)
    batches = [next(order) for _ in range(steps)]
    assert all(b.shape == (batch,) and b.dtype == torch.int64 for b in batches)
    drawn = torch.cat(batches)
    for epoch in drawn.split(n):
        assert len(epoch.unique()) == len(epoch)
        assert epoch.min() >= 0
        assert epoch.max() < n


@settings(max_examples=60, deadline=None)
@given(**SIZES, before=st.integers(0, 9), after=st.integers(1, 9))
def test_a_restored_order_continues_bit_for_bit(
    n: int, batch: int, seed: int, before: int, after: int
) -> None:
    order = BatchOrder(n, batch, seed, "mnist")
    for _ in range(before):
        next(order)
    state = json.loads(json.dumps(order.state()))
    wanted = [next(order) for _ in range(after)]
    resumed = BatchOrder(n, batch, seed, "mnist")
    resumed.restore(state)
    assert all(torch.equal(next(resumed), batch_) for batch_ in wanted)


def test_orders_depend_on_seed_stream_and_epoch_alone() -> None:
    state = torch.get_rng_state()
    one = next(BatchOrder(100, 100, 0))
    torch.manual_seed(123)
    assert torch.equal(next(BatchOrder(100, 100, 0)), one)
    assert not torch.equal(next(BatchOrder(100, 100, 1)), one)
    assert not torch.equal(next(BatchOrder(100, 100, 0, "mnist")), one)
    order = BatchOrder(100, 100, 0)
    assert not torch.equal(next(order), next(order))
    torch.set_rng_state(state)
    next(order)
    split(10, 0.5, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_known_orders_stay() -> None:
    """A run's state refers to these: were they to change, no old run could be resumed."""
    assert next(BatchOrder(10, 10, 0)).tolist() == ORDER
    assert [part.tolist() for part in split(10, 0.3, 0)] == SPLIT


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), holdout=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_a_split_is_a_partition(n: int, holdout: float, seed: int) -> None:
    learn, held = split(n, holdout, seed)
    assert torch.equal(torch.cat([learn, held]).sort().values, torch.arange(n))
    assert torch.equal(learn, learn.sort().values)
    assert torch.equal(held, held.sort().values)
    assert len(learn) >= 1
    assert len(held) == min(max(round(n * holdout), int(holdout > 0)), n - 1)
    again = split(n, holdout, seed)
    assert torch.equal(again[0], learn)


def _state(**changes: Any) -> dict[str, Any]:
    return BatchOrder(10, 3, 0).state() | changes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_state(n=11), r"n of the state must be 10, got 11"),
        (_state(seed=1), r"seed of the state must be 0, got 1"),
        (_state(stream="x"), r"stream of the state must be '', got 'x'"),
        (_state(position=11), r"position in \[0, 10\], got 0 and 11"),
        (_state(epoch=-1), r"epoch >= 0"),
        (_state(epoch=1.5), r"epoch and position must be int"),
        ({}, r"state lacks 'n', got \[\]"),
    ],
)
def test_a_wrong_state_is_refused(state: dict[str, Any], message: str) -> None:
    order = BatchOrder(10, 3, 0)
    with pytest.raises(MdftError, match=message):
        order.restore(state)
    assert torch.equal(next(order), next(BatchOrder(10, 3, 0)))


def test_sizes_are_checked() -> None:
    with pytest.raises(MdftError, match=r"n and batch must be 1 or more, got 0 and 3"):
        BatchOrder(0, 3, 0)
    with pytest.raises(MdftError, match=r"n and batch must be 1 or more, got 3 and 0"):
        BatchOrder(3, 0, 0)
    with pytest.raises(MdftError, match=r"n must be 1 or more, got 0"):
        split(0, 0.1, 0)
    for holdout in (1.0, -0.1, float("nan")):
        with pytest.raises(MdftError, match=r"holdout must be in \[0, 1\), got"):
            split(3, holdout, 0)
