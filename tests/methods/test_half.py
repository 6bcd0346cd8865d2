# SPDX-License-Identifier: Apache-2.0
"""Half: each vector keeps some tensors whole, by chance."""

from __future__ import annotations

import pytest

from mdft_fast import MdftError
from mdft_fast.methods import Half, apply
from tests.methods.made_pools import draw, make_pool, tensors

MANY = {f"blocks.{i}.weight": (2, 3) for i in range(100)}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_tensor_stays_or_goes_whole(share: float) -> None:
    deltas = draw(3, shapes=MANY)
    made = tensors(apply(make_pool(deltas), [Half(share)]))
    kept = 0
    for name, tensor in deltas.items():
        for vector, row in zip(made[name], tensor, strict=True):
            assert vector.equal(row) or not vector.any()
            kept += vector.equal(row)
    assert abs(kept - 300 * share) <= 5 * (300 * share * (1 - share)) ** 0.5


def test_a_draw_is_of_the_seed_the_tensor_and_the_vector() -> None:
    deltas = draw(2, shapes=MANY)
    first, other = (tensors(apply(make_pool(deltas), [Half(seed=seed)])) for seed in (0, 1))
    names = [
        [name for name in MANY if made[name][k].any()] for made in (first, other) for k in (0, 1)
    ]
    assert all(names[i] != names[j] for i in range(4) for j in range(i))
    some = {name: deltas[name] for name in list(MANY)[:7]}
    again = tensors(apply(make_pool(some), [Half()]))
    assert all(again[name].equal(first[name]) for name in some)


def test_share_is_a_share() -> None:
    with pytest.raises(MdftError, match=r"half.share: must be in \[0, 1\], got 2"):
        Half(2)
