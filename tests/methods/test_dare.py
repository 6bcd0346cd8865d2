# SPDX-License-Identifier: Apache-2.0
"""DARE: how many stay, that their mean over draws is τ, and what a draw depends on."""

from __future__ import annotations

import pytest
import torch

from mdft_fast import MdftError
from mdft_fast.methods import Consensus, Dare, Della, Ties, apply
from tests.methods.made_pools import draw, make_pool, tensors

WIDE = {"blocks.0.weight": (200, 300), "blocks.1.weight": (200, 300)}


@pytest.mark.parametrize("rescale", [True, False])
def test_each_element_is_dropped_or_scaled(rescale: bool) -> None:
    deltas = draw(3, shapes=WIDE)
    made = tensors(apply(make_pool(deltas), [Dare(density=0.2, rescale=rescale)]))
    for name, tensor in deltas.items():
        kept = made[name] != 0
        # 60,000 draws of probability 0.2: 5 standard deviations are 490.
        assert (kept.flatten(1).sum(1) - 12_000).abs().max() < 490
        exact = tensor.double() / (0.2 if rescale else 1.0)
        error = (made[name].double() - exact).abs()[kept]
        assert (error <= 2.0**-23 * exact.abs()[kept]).all()


def test_the_mean_over_seeds_is_the_vector() -> None:
    deltas = draw(2, shapes={"blocks.0.weight": (4, 5)})
    made = [tensors(apply(make_pool(deltas), [Dare(density=0.4, seed=s)])) for s in range(300)]
    mean = torch.stack([tensors["blocks.0.weight"] for tensors in made]).mean(0)
    # The standard deviation of an element is |τ| √(1/0.4 − 1) = 1.22 |τ|; over 300, 0.07 |τ|.
    (tensor,) = deltas.values()
    assert ((mean - tensor).abs() <= 0.35 * tensor.abs()).all()


def test_draws_of_tensors_vectors_seeds_and_methods_are_independent() -> None:
    ones = {name: torch.ones(2, *shape) for name, shape in WIDE.items()}
    pool = make_pool(ones)
    draws = [
        vector
        for method in (Dare(0.5), Dare(0.5, seed=1), Della(0.5, epsilon=0))
        for tensor in tensors(apply(pool, [method])).values()
        for vector in tensor.ravel().view(2, -1) - 1  # 1 or -1
    ]
    cosines = torch.corrcoef(torch.stack(draws))
    assert (cosines - torch.eye(12)).abs().max() < 5 / 60_000**0.5


def test_a_pass_behind_sees_the_same_draws() -> None:
    deltas = draw(3)
    twice = apply(apply(make_pool(deltas), [Dare(0.5)]), [Ties(0.4)])
    assert apply(make_pool(deltas), [Dare(0.5), Ties(0.4)]).checksum == twice.checksum
    assert apply(make_pool(deltas), [Dare(0.5), Consensus()]).K == 3


def test_the_draws_do_not_change_between_versions() -> None:
    made = tensors(apply(make_pool({"w": torch.ones(1, 12)}), [Dare(0.5)]))["w"]
    assert made.tolist() == [[0, 0, 2, 2, 2, 2, 2, 2, 0, 2, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0}, r"dare.density: must be in \(0, 1\], got 0"),
        ({"rescale": 1}, "dare.rescale: must be true or false, got 1"),
        ({"seed": 0.5}, r"dare.seed: must be a whole number in \[0, \d+\], got 0.5"),
    ],
)
def test_wrong_fields(fields: dict[str, float], message: str) -> None:
    with pytest.raises(MdftError, match=message):
        Dare(**fields)  # type: ignore[arg-type]
