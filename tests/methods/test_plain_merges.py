# SPDX-License-Identifier: Apache-2.0
"""Average, task arithmetic and Model Stock: their formulas, others' code, degenerate pools."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mdft_fast import MdftError
from mdft_fast.arena import CODECS, Codec
from mdft_fast.methods import Average, Merge, ModelStock, TaskArithmetic, apply
from mdft_fast.model import TASK_ARITHMETIC
from tests.methods.made_pools import draw, make_pool, tensors

ONE_ROUNDING = 2.0**-24


def merged(deltas: dict[str, Tensor], method: Merge) -> dict[str, Tensor]:
    made = tensors(apply(make_pool(deltas), [method]))
    return {name: tensor[0] for name, tensor in made.items()}


def stock_share(rows: Tensor) -> float:
    """Model Stock's t by its definition, pair by pair; rows are float64 ``[K, n]``."""
    pairs = list(itertools.combinations(rows, 2))
    cosine = sum(float(a @ b / (a.norm() * b.norm())) for a, b in pairs) / len(pairs)
    K = len(rows)
    return K * cosine / (1 + (K - 1) * cosine)


def agreeing(K: int) -> dict[str, Tensor]:
    """Returns task vectors whose angles are below 90 degrees."""
    return {name: t.abs() + 0.1 for name, t in draw(K, seed=K).items()}


@pytest.mark.parametrize("K", [1, 2, 9])
def test_average_and_task_arithmetic_are_their_formulas(K: int) -> None:
    deltas = draw(K, seed=K)
    average, scaled = merged(deltas, Average()), merged(deltas, TaskArithmetic(scale=0.7))
    by_custom = merged(deltas, TaskArithmetic())
    for name, tensor in deltas.items():
        total = tensor.double().sum(0)
        for made, factor in ((average, 1 / K), (scaled, 0.7), (by_custom, TASK_ARITHMETIC)):
            exact = factor * total
            slack = 2.0**-50 * tensor.double().abs().sum(0)  # the float64 sums' own
            error = (made[name].double() - exact).abs()
            assert (error <= ONE_ROUNDING * exact.abs() + slack).all(), name


@pytest.mark.parametrize("K", [2, 3, 9])
def test_model_stock_is_its_formula(K: int) -> None:
    deltas = agreeing(K)
    for name, made in merged(deltas, ModelStock()).items():
        rows = deltas[name].double().reshape(K, -1)
        if rows.numel():
            exact = (stock_share(rows) * rows.mean(0)).reshape(made.shape)
            error = (made.double() - exact).abs()
            assert (error <= 3 * ONE_ROUNDING * exact.abs() + 1e-12).all(), name


def test_model_stock_by_hand() -> None:
    rows = torch.tensor([[1.0, 0], [1, 1], [0, 1]])  # cosines √½, 0, √½
    share = 3 * (cosine := 2**0.5 / 3) / (1 + 2 * cosine)
    (made,) = merged({"blocks.0.weight": rows}, ModelStock()).values()
    assert torch.allclose(made, share * torch.tensor([2.0, 2]) / 3, rtol=1e-6, atol=0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("method", [Average(), TaskArithmetic(scale=1.0), ModelStock()])
def test_one_model_is_given_back_bit_for_bit(method: Merge, codec: Codec) -> None:
    pool = make_pool(draw(1), codec)
    assert torch.equal(apply(pool, [method]).vectors.codes, pool.vectors.codes)


@pytest.mark.parametrize("method", [Average(), TaskArithmetic(), ModelStock()])
def test_zero_and_opposite_vectors_cancel(method: Merge) -> None:
    one = draw(1)
    for deltas in (
        {name: torch.zeros(3, *t.shape[1:]) for name, t in one.items()},
        {name: torch.cat([t, -t]) for name, t in one.items()},
    ):
        assert not any(t.any() for t in merged(deltas, method).values())


@pytest.mark.parametrize("method", [Average(), TaskArithmetic(scale=0.25), ModelStock()])
def test_equal_models_are_given_back(method: Merge) -> None:
    one = draw(1)
    made = merged({name: t.repeat(4, *[1] * (t.dim() - 1)) for name, t in one.items()}, method)
    assert all(torch.allclose(made[n], t[0], rtol=1e-6, atol=0) for n, t in one.items())


def test_model_stock_never_leaves_the_way_from_base_to_mean() -> None:
    # Near the pole of its formula: cosines whose mean is about -1 / (K - 1).
    rows = torch.tensor([[1.0, 0], [-0.5, 0.87], [-0.5, -0.86]])
    (made,) = merged({"blocks.0.weight": rows}, ModelStock()).values()
    assert not made.any()
    rows = torch.tensor([[1.0, 0], [0, 0], [1, 0]])  # a zero vector is at right angles to all
    (made,) = merged({"blocks.0.weight": rows}, ModelStock()).values()
    assert torch.allclose(made, torch.tensor([0.6 * 2 / 3, 0]))  # c = 1/3, t = 1 / (5/3)


@pytest.mark.parametrize("value", [float("nan"), "1", None])
def test_scale_is_a_number(value: float) -> None:
    with pytest.raises(MdftError, match=r"task_arithmetic.scale: must be a finite number, got"):
        TaskArithmetic(scale=value)


def test_task_arithmetic_is_pefts() -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    deltas = draw(4, shapes={"blocks.0.weight": (30, 50)})
    (made,) = merged(deltas, TaskArithmetic(scale=0.4)).values()
    (rows,) = deltas.values()
    theirs = peft.task_arithmetic(list(rows), torch.full((4,), 0.4))
    assert torch.allclose(made, theirs, rtol=1e-5, atol=1e-6)


def test_model_stock_is_mergekits() -> None:
    base_module = pytest.importorskip("mergekit.merge_methods.base")
    module = pytest.importorskip("mergekit.merge_methods.model_stock")
    rows = agreeing(3)["blocks.1.weight"]
    base = torch.randn(rows.shape[1:], generator=torch.Generator().manual_seed(0))
    group = base_module.TensorGroup.from_tensors([base, *(base + rows)], base_index=0)
    (theirs,) = module.model_stock_merge_method([group])
    (made,) = merged({"blocks.0.weight": rows}, ModelStock()).values()
    # Their differences carry the rounding of the models' weights.
    assert torch.allclose(made, theirs - base, rtol=1e-5, atol=1e-6)
