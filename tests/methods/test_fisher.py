# SPDX-License-Identifier: Apache-2.0
"""Fisher merging against its formula in float64, input by input, and on degenerate pools."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast import MdftError
from mdft_fast.methods import Fisher, apply
from tests.methods.made_models import SHAPES, Made, encoded, make
from tests.methods.made_pools import draw, tensors
from tests.world import World


def drawn(K: int, seed: int = 0) -> dict[str, Tensor]:
    return {name: 0.3 * tensor for name, tensor in draw(K, seed, SHAPES).items()}


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, int]]:
    """What classes are drawn from, and what is drawn."""
    seen: list[tuple[Tensor, int]] = []
    multinomial = torch.multinomial

    def recorded(likely: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        classes = multinomial(likely, *args, **kwargs)
        seen.extend(zip(likely, classes[:, 0].tolist(), strict=True))
        return classes

    monkeypatch.setattr(torch, "multinomial", recorded)
    return seen


def diagonals(made: Made, draws: list[tuple[Tensor, int]]) -> list[dict[str, Tensor]]:
    """Returns each task's F_k: gradients of one input and one weight after the other."""
    turns = iter(draws)
    all_of_them = []
    for model, task in zip(made.models, made.tasks, strict=True):
        weights = {name: weight.requires_grad_() for name, weight in model.items()}
        total = {name: torch.zeros_like(weight) for name, weight in model.items()}
        head = made.pool.heads[task.name].weight.double()
        for row in task.rows.double():
            likely, label = next(turns)
            p = (encoded(weights, row[None])[0] @ head.T).softmax(0)
            assert torch.allclose(p.float(), likely, atol=1e-5)
            grads = torch.autograd.grad(p[label].log(), list(weights.values()), allow_unused=True)
            for square, grad in zip(total.values(), grads, strict=True):
                square += 0 if grad is None else grad**2 / len(task.rows)
        all_of_them.append(total)
    return all_of_them


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("K", "samples"), [(3, 12), (9, 1)])
def test_is_the_formula(
    K: int, samples: int, normalize: bool, draws: list[tuple[Tensor, int]]
) -> None:
    made = make(drawn(K, seed=K), samples)
    method = Fisher(normalize=normalize, floor=0.01)
    merged = made.merged(method)
    diagonal = diagonals(made, draws)
    size = sum(t.numel() for t in diagonal[0].values())
    if normalize:
        means = [sum(float(t.sum()) for t in one.values()) / size for one in diagonal]
        pairs = zip(diagonal, means, strict=True)
        diagonal = [{n: t / m for n, t in one.items()} for one, m in pairs]
    floor = 0.01 * sum(float(t.sum()) for one in diagonal for t in one.values()) / size
    for name, base in made.base.items():
        weights = [one[name] + floor / K for one in diagonal]
        models = [model[name].detach() for model in made.models]
        wanted = sum(w * m for w, m in zip(weights, models, strict=True)) / sum(weights) - base
        assert torch.allclose(merged[name].double(), wanted, rtol=1e-4, atol=1e-5), name


def test_squares_are_of_each_input_alone() -> None:
    made = make(drawn(3), samples=7)
    assert made.apply(Fisher(batch=1)).checksum == made.apply(Fisher(batch=5)).checksum


def test_one_model_comes_out_with_its_bits() -> None:
    made = make(drawn(1), samples=2)
    assert made.apply(Fisher()).vectors.codes.equal(made.pool.vectors.codes)


def test_what_no_prediction_depends_on_gets_the_mean() -> None:
    made = make(drawn(3), samples=2)
    exact = tensors(made.pool)["unread"].double().mean(0)
    assert torch.equal(made.merged(Fisher())["unread"], exact.float())


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_models_without_a_gradient_get_the_mean(scale: float) -> None:
    made = make(drawn(2), samples=3)
    # Heads that are sure of everything, or that look at nothing.
    heads = {n: dataclasses.replace(h, scale=scale) for n, h in made.pool.heads.items()}
    sure = Made(dataclasses.replace(made.pool, heads=heads), made.tasks)
    for name, tensor in sure.merged(Fisher()).items():
        assert torch.isfinite(tensor).all()
        if scale == 0:
            assert torch.equal(tensor, tensors(made.pool)[name].double().mean(0).float()), name


def test_stays_between_the_models() -> None:
    rows = {name: torch.cat([t, -t, 0 * t, t]) for name, t in drawn(1).items()}
    made = make(rows, samples=3)
    for name, tensor in made.merged(Fisher(floor=1e-9)).items():
        assert (tensor.abs() <= rows[name][0].abs() * (1 + 1e-5)).all(), name


def test_a_plain_cnn_and_no_head(world: World) -> None:
    merged = apply(world.pool, [Fisher()], backbone=world.backbone, tasks=world.unlabelled)
    assert merged.vector_names == ("fisher",)
    headless = dataclasses.replace(world.pool, heads={})
    with pytest.raises(MdftError, match=r"fisher: needs a head of every task, got \[\]"):
        apply(headless, [Fisher()], backbone=world.backbone, tasks=world.unlabelled)
