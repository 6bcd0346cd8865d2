# SPDX-License-Identifier: Apache-2.0
"""NegMerge by hand, and its mean against the definition."""

from __future__ import annotations

import torch

from mdft_fast.methods import Negmerge, apply
from tests.methods.made_pools import draw, make_pool, tensors

ROWS = torch.tensor([[1.0, -2, 3, 0, 0, -1], [2, -1, -3, 4, 0, -1], [3, -5, 1, 1, 0, -1]])


def test_by_hand() -> None:
    (made,) = tensors(apply(make_pool({"w": ROWS}), [Negmerge()])).values()
    assert made.tolist() == [[-1, 2, 0, 0, 0, 1], [-2, 1, 0, 0, 0, 1], [-3, 5, 0, 0, 0, 1]]
    (same,) = tensors(apply(make_pool({"w": ROWS}), [Negmerge(negate=False)])).values()
    assert torch.equal(same, -made)


def test_the_mean_is_the_papers() -> None:
    deltas = draw(3)
    made = tensors(apply(make_pool(deltas), [Negmerge()]))
    for name, tensor in deltas.items():
        exact = tensor.double()
        agree = exact.sign().sum(0).abs() == 3
        wanted = torch.where(agree, -exact.mean(0), 0.0)
        assert torch.allclose(made[name].double().mean(0), wanted, rtol=1e-12, atol=0), name
