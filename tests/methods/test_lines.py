# SPDX-License-Identifier: Apache-2.0
"""LiNeS against its formula, on models of some blocks, one block and none."""

from __future__ import annotations

import pytest
import torch

from mdft_fast import MdftError
from mdft_fast.arena import CODECS, Codec
from mdft_fast.methods import Lines, apply
from tests.methods.made_pools import draw, make_pool, tensors

NAMES = ("embed", "blocks.0.w", "blocks.0.b", "blocks.1.w", "blocks.2.w", "blocks.3.w", "norm")
DEPTHS = (0, 0, 0, 1 / 3, 2 / 3, 1, 1)


@pytest.mark.parametrize("K", [1, 3])
def test_is_the_formula(K: int) -> None:
    deltas = draw(K, shapes=dict.fromkeys(NAMES, (5, 4)))
    made = tensors(apply(make_pool(deltas), [Lines(alpha=0.2, beta=0.9)]))
    for name, depth in zip(NAMES, DEPTHS, strict=True):
        exact = (0.2 + 0.9 * depth) * deltas[name].double()
        # One rounding of the factor and one of the product.
        assert ((made[name] - exact).abs() <= 2.0**-23 * exact.abs()).all(), name


@pytest.mark.parametrize("codec", CODECS)
def test_alpha_1_and_beta_0_change_no_bit(codec: Codec) -> None:
    pool = make_pool(draw(3), codec)
    assert apply(pool, [Lines(alpha=1, beta=0)]).checksum == pool.checksum


def test_one_block_alone_is_the_first() -> None:
    deltas = draw(2, shapes={"stem": (2,), "blocks.0.w": (3,), "out": (4,)})
    made = tensors(apply(make_pool(deltas), [Lines(alpha=2, beta=2)]))
    factors = {"stem": 2, "blocks.0.w": 2, "out": 4}
    assert all(torch.equal(made[name], factor * deltas[name]) for name, factor in factors.items())


@pytest.mark.parametrize("field", ["alpha", "beta"])
@pytest.mark.parametrize("value", [float("inf"), "1", None])
def test_factors_are_numbers(field: str, value: float) -> None:
    with pytest.raises(MdftError, match=f"lines.{field}: must be a finite number, got"):
        Lines(**{field: value})
