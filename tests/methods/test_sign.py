# SPDX-License-Identifier: Apache-2.0
"""Signs at the mean magnitude of a tensor or row; zeros stay and do not count."""

from __future__ import annotations

import pytest
import torch

from mdft_fast import MdftError
from mdft_fast.methods import Sign, Ties, apply
from tests.methods.made_pools import draw, make_pool, tensors


@pytest.mark.parametrize("over", ["tensor", "row"])
def test_is_the_definition(over: str) -> None:
    deltas = draw(3)
    made = tensors(apply(make_pool(deltas), [Sign(over)]))  # type: ignore[arg-type]
    for name, tensor in deltas.items():
        for vector, row in zip(made[name], tensor.double(), strict=True):
            rows = row.flatten(1) if over == "row" and row.dim() > 1 else row.reshape(1, -1)
            mean = (
                torch.stack([r.abs().sum() / max(len(r), 1) for r in rows]) if len(rows) else rows
            )
            wanted = (rows.sign() * mean.view(-1, 1)).view(row.shape) if len(rows) else row
            assert torch.allclose(vector.double(), wanted, rtol=2.0**-23, atol=0), name


def test_zeros_stay_and_do_not_count() -> None:
    rows = torch.tensor([[[1.0, -3, 0, 0], [0, 0, 0, 8]]])
    (made,) = tensors(apply(make_pool({"w": rows}), [Sign()])).values()
    assert made.tolist() == [[[4, -4, 0, 0], [0, 0, 0, 4]]]
    (made,) = tensors(apply(make_pool({"w": rows}), [Sign(over="row")])).values()
    assert made.tolist() == [[[2, -2, 0, 0], [0, 0, 0, 8]]]


def test_twice_is_once() -> None:
    once = apply(make_pool(draw(3)), [Ties(0.3), Sign()])
    assert apply(once, [Sign()]).checksum == once.checksum


def test_a_choice_is_one_of_two() -> None:
    with pytest.raises(MdftError, match=r"sign.over: must be one of .*got 'rows'; did you mean"):
        Sign(over="rows")  # type: ignore[arg-type]
