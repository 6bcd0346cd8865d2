# SPDX-License-Identifier: Apache-2.0
"""The greedy soup against every choice in plain torch, on the tests' small world."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mdft_fast import MdftError, Pool
from mdft_fast.methods import GreedySoup, apply
from tests.methods.made_pools import tensors
from tests.world import World, make_world, pixels


def loss(world: World, vectors: dict[str, Tensor], soup: list[int]) -> float:
    """Mean over tasks of CE(own model, mean model) on all unlabelled samples, in plain torch."""

    def logits(k: int, models: list[int]) -> Tensor:
        state = {
            name: value + sum(vectors[name][m] for m in models) / len(models)
            if name in vectors
            else value
            for name, value in world.base.items()
        }
        features = torch.func.functional_call(
            world.backbone, state, (pixels(world.tasks[k].adapt),)
        )
        made: Tensor = world.tasks[k].head(features)
        return made

    losses = [
        -(logits(k, [k]).softmax(-1) * logits(k, soup).log_softmax(-1)).sum(-1).mean()
        for k in range(len(world.tasks))
    ]
    return float(torch.stack(losses).mean())


def with_vectors(world: World, factors: list[float]) -> tuple[Pool, dict[str, Tensor]]:
    """Returns the pool with its vectors scaled, so that some models are far from all others."""
    models = [
        {n: world.base[n] + f * (v - world.base[n]) for n, v in state.items()}
        for f, state in zip(factors, world.models, strict=True)
    ]
    pool = Pool.from_checkpoints(
        world.base, models, world.tasks, backbone=world.backbone, preprocess=world.pool.preprocess
    )
    return pool, tensors(pool)


@pytest.mark.parametrize("factors", [[1.0, 1, 1], [1, 4, 1], [0.1, 2, 5], [6, 1, 1]])
@torch.no_grad()
def test_is_the_greedy_choice(factors: list[float]) -> None:
    world = make_world(samples=12)
    pool, vectors = with_vectors(world, factors)
    alone = sorted(range(3), key=lambda k: loss(world, vectors, [k]))
    soup = alone[:1]
    for k in alone[1:]:
        if loss(world, vectors, [*soup, k]) < loss(world, vectors, soup):
            soup = [*soup, k]
    merged = apply(pool, [GreedySoup()], backbone=world.backbone, tasks=world.unlabelled)
    assert (merged.vector_names, merged.names) == (("greedy_soup",), pool.names)
    for name, tensor in tensors(merged).items():
        exact = vectors[name][sorted(soup)].double().mean(0)
        assert torch.allclose(tensor[0].double(), exact, rtol=1e-6, atol=1e-9), name


def test_one_model_is_given_back(world: World) -> None:
    one = dataclasses.replace(world.tasks[0], evaluate=None)
    pool = Pool.from_checkpoints(
        world.base, world.models[:1], [one], backbone=world.backbone,
        preprocess=world.pool.preprocess,
    )  # fmt: skip
    merged = apply(pool, [GreedySoup()], backbone=world.backbone, tasks=[one])
    assert torch.equal(merged.vectors.codes, pool.vectors.codes)


def test_it_needs_inputs_of_every_task(world: World) -> None:
    with pytest.raises(MdftError, match="greedy_soup: needs unlabelled inputs of every task"):
        apply(world.pool, [GreedySoup()], backbone=world.backbone, tasks=world.unlabelled[:2])
    with pytest.raises(MdftError, match=r"greedy_soup.samples: must be a whole number above 0"):
        GreedySoup(samples=0)
