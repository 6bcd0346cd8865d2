# SPDX-License-Identifier: Apache-2.0
"""ComPEFT against its definition: thresholds and deviations are the whole model's."""

from __future__ import annotations

import pytest
import torch

from mdft_fast import MdftError
from mdft_fast.methods import Compeft, Lines, apply
from tests.methods.made_pools import draw, make_pool, parts, tensors, whole


@pytest.mark.parametrize(("density", "alpha"), [(0.2, 1.0), (0.05, 3.0), (1.0, 0.5), (1e-9, 1.0)])
def test_is_the_definition(density: float, alpha: float) -> None:
    deltas = {name: 1e-3 * tensor + 5e-4 for name, tensor in draw(3).items()}  # a mean, too
    made = tensors(apply(make_pool(deltas), [Compeft(density, alpha)]))
    flat = whole(deltas)
    kept = max(1, int(density * flat.shape[1]))
    wanted = torch.zeros_like(flat)
    for row, out in zip(flat, wanted, strict=True):
        largest = row.abs().argsort(descending=True)[:kept]
        out[largest] = alpha * row.std(correction=0) * row[largest].sign()
    for name, tensor in parts(wanted, deltas).items():
        assert torch.allclose(made[name].double(), tensor, rtol=2.0**-23, atol=0), name


def test_a_vector_has_three_values() -> None:
    made = apply(make_pool(draw(2)), [Lines(), Compeft(0.3)]).vectors.decode()
    assert [len(row.unique()) for row in made] == [3, 3]


def test_alpha_is_above_0() -> None:
    with pytest.raises(MdftError, match=r"compeft.alpha: must be above 0, got 0"):
        Compeft(alpha=0)
