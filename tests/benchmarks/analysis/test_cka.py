# SPDX-License-Identifier: Apache-2.0
"""CKA: the estimator against its definition, its invariances, and features that share nothing."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor

from benchmarks.paper.analysis import linear_cka, unbiased_hsic
from mdft_fast import MdftError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(x: Tensor, y: Tensor) -> float:
    return float(linear_cka([([x], [y])]))


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(draw(n, n, seed=9)).Q


def test_hsic_is_the_u_statistic_over_all_quadruples() -> None:
    """Song et al., eq. 4: the mean over ordered distinct i, j, q, r."""
    x, y = draw(6, 3), draw(6, 2, seed=1)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    terms = [
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    torch.testing.assert_close(unbiased_hsic(k, l), torch.stack(terms).mean())


def test_same_features_are_one() -> None:
    x = draw(20, 7)
    assert cka(x, x) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda x: x @ rotation(7), id="orthogonal map"),
        pytest.param(lambda x: 3.7 * x, id="isotropic scale"),
        pytest.param(lambda x: -x, id="sign"),
        pytest.param(lambda x: x + 100, id="shift"),
        pytest.param(lambda x: torch.cat([x, torch.zeros(20, 3)], 1), id="idle features"),
    ],
)
def test_is_invariant_to(changed: object) -> None:
    x = draw(20, 7)
    y = x @ draw(7, 5, seed=2) + draw(20, 5, seed=3)
    assert callable(changed)
    assert cka(changed(x), y) == pytest.approx(cka(x, y), abs=1e-9)


def test_is_not_invariant_to_every_linear_map() -> None:
    x = draw(200, 7)
    stretched = x * torch.tensor([10.0, 1, 1, 1, 1, 1, 1])
    assert cka(stretched, x) < 0.9


def test_independent_features_give_zero_on_average() -> None:
    """Also where features outnumber samples: the biased estimate would be near 1 there."""
    values = [cka(draw(16, 200, seed=2 * i), draw(16, 200, seed=2 * i + 1)) for i in range(200)]
    mean = sum(values) / len(values)
    spread = torch.tensor(values).std() / len(values) ** 0.5
    assert abs(mean) < 3 * spread
    assert spread < 0.02
    assert min(values) < 0 < max(values)


def test_minibatches_estimate_the_full_batch() -> None:
    x = draw(1600, 6)
    y = x @ draw(6, 6, seed=2) + 2 * draw(1600, 6, seed=3)
    full = cka(x, y)
    batched = linear_cka(([a], [b]) for a, b in zip(x.split(40), y.split(40), strict=True))
    assert 0.2 < full < 0.95
    assert float(batched) == pytest.approx(full, abs=0.02)


def test_all_pairs_are_the_single_ones() -> None:
    first, second = [draw(12, f, seed=f) for f in (3, 4)], [draw(12, f, seed=f) for f in (4, 5, 6)]
    table = linear_cka([(first, second)])
    assert table.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        assert float(table[i, j]) == pytest.approx(cka(first[i], second[j]), abs=1e-12)
    assert float(table[1, 0]) == pytest.approx(1, abs=1e-12)


def test_features_that_do_not_vary_are_nan() -> None:
    assert linear_cka([([torch.ones(8, 3)], [draw(8, 3)])]).isnan().all()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "one batch or more, got none"),
        ([([torch.ones(3, 2)], [torch.ones(3, 2)])], "n of 4 or more, got [3, 3]"),
        ([([torch.ones(5, 2)], [torch.ones(6, 2)])], "got [5, 5] and [6, 6]"),
        ([([torch.ones(5, 2, 2)], [torch.ones(5, 2)])], "must be [n, F], got [5, 2, 2]"),
        ([([draw(5, 2)], [draw(5, 2)]), ([draw(5, 2)] * 2, [draw(5, 2)])], "of [1, 1] layers"),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(batches: list[object], message: str) -> None:
    with pytest.raises(MdftError, match=re.escape(message)):
        linear_cka(batches)  # type: ignore[arg-type]
