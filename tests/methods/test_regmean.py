# SPDX-License-Identifier: Apache-2.0
"""Regmean and Regmean++ against their formula in float64, and on degenerate pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast import MdftError
from mdft_fast.methods import Regmean, RegmeanPp, apply
from tests.methods.made_models import SHAPES, Made, behind, entered, make, reaches
from tests.methods.made_pools import draw, tensors
from tests.world import World

METHODS = [Regmean, RegmeanPp]
# Grams are sums in float32 of what a model computes in float32; the ridge bounds the condition.
CLOSE = 1e-3


def drawn(K: int, seed: int = 0) -> dict[str, Tensor]:
    return {name: 0.3 * tensor for name, tensor in draw(K, seed, SHAPES).items()}


def gram(method: Regmean, x: Tensor, delta: Tensor) -> Tensor:
    """Returns G'_k of rows and of a task vector, both with the bias's column."""
    made = torch.stack([torch.outer(row, row) for row in x]).mean(0)
    for i in range(len(made)):
        for j in range(len(made)):
            made[i, j] *= 1.0 if i == j else method.off_diagonal
    made = made / made.trace() if method.normalize else made
    free = delta.T @ delta
    return made + method.free * made.trace() * free / free.trace()


def with_bias(weights: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    return weight if bias is None else torch.cat([weight, bias[:, None]], 1)


def solved(made: Made, method: Regmean, name: str, rows: list[Tensor]) -> Tensor:
    """Returns Σ W_k G_k (Σ G_k)⁻¹, the ridge shared out among the tasks' Grams."""
    models, base = made.models, with_bias(made.base, name)
    matrices = [with_bias(weights, name) for weights in models]
    if f"{name}.bias" in SHAPES:
        rows = [torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) for x in rows]
    grams = torch.stack([gram(method, x, w - base) for x, w in zip(rows, matrices, strict=True)])
    ridge = method.ridge * grams.sum(0).trace() / len(base.T) / len(grams)
    grams = grams + ridge * torch.eye(len(base.T), dtype=grams.dtype)
    return (torch.stack(matrices) @ grams).sum(0) @ torch.linalg.inv(grams.sum(0))


def expected(made: Made, method: Regmean) -> dict[str, Tensor]:
    """Returns the merged model's weights."""
    models, behind_merged = made.models, isinstance(method, RegmeanPp)
    merged = {name: sum(m[name] for m in models) / len(models) for name in SHAPES}
    inputs = [task.rows.double() for task in made.tasks]
    streams = [
        entered(merged if behind_merged else model, x)  # type: ignore[arg-type]
        for model, x in zip(models, inputs, strict=True)
    ]
    for block in range(2):
        read = slice(0, 1) if block == 1 else slice(None)  # behind the last block, one position
        seen = [reaches(m, block, x) for m, x in zip(models, streams, strict=True)]
        for layer, name in enumerate((f"blocks.{block}.first", f"blocks.{block}.second")):
            rows = [pair[layer][:, read].flatten(0, 1) for pair in seen]
            made_matrix = solved(made, method, name, rows)
            width = SHAPES[f"{name}.weight"][1]
            merged[f"{name}.weight"] = made_matrix[:, :width]
            if f"{name}.bias" in merged:
                merged[f"{name}.bias"] = made_matrix[:, width]
        streams = [
            behind(merged if behind_merged else model, block, x)  # type: ignore[arg-type]
            for model, x in zip(models, streams, strict=True)
        ]
    return merged  # type: ignore[return-value]


CASES: list[tuple[int, int, dict[str, Any]]] = [
    (3, 20, {"batch": 7}),
    (2, 1, {"free": 0.0}),  # fewer rows than inputs
    (9, 4, {"free": 0.3, "normalize": False}),  # more tasks than a layer has outputs
    (3, 20, {"off_diagonal": 0.5, "free": 0.0}),
]


@pytest.mark.parametrize(("K", "samples", "options"), CASES, ids=str)
@pytest.mark.parametrize("kind", METHODS)
def test_is_the_formula(kind: type[Regmean], K: int, samples: int, options: dict[str, Any]) -> None:
    method = kind(ridge=1e-2, **options)
    made = make(drawn(K, seed=K), samples)
    merged = made.merged(method)
    for name, wanted in expected(made, method).items():
        error = merged[name].double() + made.base[name] - wanted
        assert error.abs().max() <= CLOSE * drawn(K, seed=K)[name].abs().max(), name


@pytest.mark.parametrize("kind", METHODS)
def test_one_model_comes_out_with_its_bits(kind: type[Regmean]) -> None:
    made = make(drawn(1), samples=2)
    assert made.apply(kind()).vectors.codes.equal(made.pool.vectors.codes)


@pytest.mark.parametrize("free", [0.0, 1.0])
@pytest.mark.parametrize("kind", METHODS)
def test_equal_models_come_out_as_they_are(kind: type[Regmean], free: float) -> None:
    one = drawn(1)
    made = make({name: t.repeat(4, *[1] * (t.dim() - 1)) for name, t in one.items()}, samples=2)
    merged = made.merged(kind(free=free))
    for name, tensor in one.items():
        assert torch.equal(merged[name], tensor[0]), name


@pytest.mark.parametrize("kind", METHODS)
def test_zero_opposite_and_rank_one_vectors(kind: type[Regmean]) -> None:
    one = drawn(1)
    zero = make({name: torch.cat([0 * t, 0 * t]) for name, t in one.items()}, 3)
    assert not zero.apply(kind()).vectors.codes.any()
    opposite = make({name: torch.cat([t, -t]) for name, t in one.items()}, 3)
    thin = {name: t[..., :1] * torch.ones_like(t) for name, t in drawn(5).items()}
    for made in (opposite, make(thin, 3), make(thin, 1)):
        for name, tensor in made.merged(kind(ridge=1e-9)).items():
            largest = max(float(row.abs().max()) for row in tensors(made.pool)[name])
            assert float(tensor.abs().max()) < 100 * largest, name


@pytest.mark.parametrize("kind", METHODS)
def test_inputs_of_zeros_and_twice_the_same_bits(kind: type[Regmean]) -> None:
    made = make(drawn(3), samples=4)
    assert made.apply(kind()).checksum == made.apply(kind()).checksum
    for task in made.tasks:
        task.rows.zero_()
    assert torch.isfinite(made.apply(kind()).vectors.codes).all()


def test_only_the_first_block_is_the_same_with_one_stem() -> None:
    deltas = drawn(3)
    for name in ("stem.weight", "stem.bias"):
        deltas[name].zero_()
    made = make(deltas, samples=9)
    own, merged = made.merged(Regmean()), made.merged(RegmeanPp())
    for name in SHAPES:
        assert torch.equal(own[name], merged[name]) == (".1." not in name), name


@pytest.mark.parametrize("kind", METHODS)
def test_convolutions_of_a_model_that_is_no_row_of_blocks(
    world: World, kind: type[Regmean]
) -> None:
    merged = apply(world.pool, [kind()], backbone=world.backbone, tasks=world.unlabelled)
    assert merged.vector_names == (kind.name,)
    mean = {name: tensor.mean(0) for name, tensor in tensors(world.pool).items()}
    for name, tensor in tensors(merged).items():
        assert torch.allclose(tensor[0], mean[name], atol=1e-6) == ("norm" in name), name


def test_every_task_needs_inputs() -> None:
    made = make(drawn(2), samples=2)
    with pytest.raises(MdftError, match=r"regmean: needs unlabelled inputs .*none of \['task1'\]"):
        made.apply(Regmean(), made.tasks[:1])
    with pytest.raises(MdftError, match=r"regmean.off_diagonal: must be in \[0, 1\], got 2"):
        Regmean(off_diagonal=2)
