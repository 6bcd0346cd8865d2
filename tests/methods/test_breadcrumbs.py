# SPDX-License-Identifier: Apache-2.0
"""Model breadcrumbs against its definition and numbers by hand."""

from __future__ import annotations

import pytest
import torch

from mdft_fast.methods import Breadcrumbs, apply
from tests.methods.made_pools import draw, make_pool, tensors


@pytest.mark.parametrize(("density", "outliers"), [(0.85, 0.01), (0.3, 0.2), (0.9, 0.5), (1e-9, 0)])
def test_is_the_definition(density: float, outliers: float) -> None:
    deltas = draw(3)
    made = tensors(apply(make_pool(deltas), [Breadcrumbs(density, outliers)]))
    for name, tensor in deltas.items():
        for vector, row in zip(made[name].reshape(3, -1), tensor.reshape(3, -1), strict=True):
            n = len(row)
            if n == 0:
                continue
            kept = max(1, int(density * n))
            above = min(int(outliers * n), n - kept)
            order = row.double().abs().argsort(descending=True)[above : above + kept]
            wanted = torch.zeros(n).index_copy(0, order, row[order])
            assert torch.equal(vector, wanted), name


def test_by_hand() -> None:
    rows = torch.tensor([[9.0, 1, -2, 3, -4, 5, 6, -7, 8, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    (made,) = tensors(apply(make_pool({"w": rows}), [Breadcrumbs(0.5, 0.2)])).values()
    # 9 and 8 are outliers, 5 of the others stay. Of equal elements all do.
    assert made.tolist() == [[0, 0, 0, 3, -4, 5, 6, -7, 0, 0], [1] * 10]


def test_density_comes_before_outliers() -> None:
    rows = torch.arange(1.0, 11.0)[None]
    (made,) = tensors(apply(make_pool({"w": rows}), [Breadcrumbs(0.9, 0.5)])).values()
    assert made.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]]
