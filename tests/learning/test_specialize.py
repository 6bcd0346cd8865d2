# SPDX-License-Identifier: Apache-2.0
"""Stage 2: equation 7 by hand, its known optimum (oracles 1 and 7), resume."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from mdft_fast import MdftError, OptimizerConfig, SpecializeConfig, specialize
from mdft_fast.learning import BatchOrder, teach
from mdft_fast.model import split
from tests.learning.recorded import learn
from tests.world import Encoder, World, pixels

CONFIG = SpecializeConfig(steps=20, batch=16)


def distance(world: World, coefficients: Tensor, task: str) -> float:
    return float((coefficients - world.meta().individual(task)).norm())


def test_path_equals_plain_torch(world: World) -> None:
    task, k = world.unlabelled[1], 1
    encoder = Encoder().eval()
    x = pixels(task.adapt)
    with torch.no_grad():
        target = functional_call(encoder, world.models[k], x)
    learned, _ = split(len(x), CONFIG.holdout, CONFIG.seed, task.name)
    order = BatchOrder(len(learned), CONFIG.batch, CONFIG.seed, f"specialize/{task.name}")
    lam = torch.full((3, len(world.base) - 1), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam([lam], lr=0.05)
    for _ in range(CONFIG.steps):
        weights = world.merged(lam)
        at = learned[next(order)]
        loss = (functional_call(encoder, weights, x[at]) - target[at]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mine = specialize(world.meta(), task, CONFIG).coefficients
    assert float((lam.detach() - 0.3).abs().max()) > 0.3
    # An L1 loss has a gradient that jumps where a difference changes sign; on such a sample
    # round-off alone decides, and 1 of 16 x 16 terms of a step turns over.
    assert float((mine - lam.detach()).abs().max()) < 20 * 0.05 * 1e-2


def test_oracle_1_the_loss_is_zero_at_the_optimum_and_stays_there(world: World) -> None:
    meta = world.meta()
    meta.set_coefficients(meta.individual("signs"))
    losses: list[float] = []
    config = dataclasses.replace(CONFIG, steps=1)
    specialize(
        meta, world.unlabelled[2], config,
        callbacks=[lambda r, _: losses.append(r.as_dict()["loss"])],
    )  # fmt: skip
    assert losses[0] < 1e-6


def test_starts_where_the_coefficients_stand_and_nears_the_optimum(world: World) -> None:
    meta = world.meta()
    start = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.2
    meta.set_coefficients(start)
    result = specialize(meta, world.unlabelled[0], CONFIG)
    assert torch.equal(result.path[0], start)  # not at e_k: that would be cheating
    assert distance(world, result.path[0], "shapes") > 1
    assert distance(world, result.coefficients, "shapes") < distance(world, start, "shapes")
    assert torch.equal(meta.coefficients.detach(), result.coefficients)


@pytest.mark.parametrize("representation", ["encoder", "normalized", "logits"])
def test_every_representation_lowers_its_loss(world: World, representation: Any) -> None:
    config = dataclasses.replace(CONFIG, representation=representation)
    _, records = learn(world, config, graph=False)
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]


def test_resumes_bit_for_bit(world: World) -> None:
    states: dict[int, Any] = {}
    task = world.unlabelled[0]
    expected = specialize(
        world.meta(), task, CONFIG,
        callbacks=[lambda r, learner: states.setdefault(r.step, learner.state())],
    ).coefficients  # fmt: skip
    resumed = specialize(world.meta(), task, CONFIG, resume=states[9]).coefficients
    assert torch.equal(resumed, expected)
    with pytest.raises(MdftError, match=r"tasks must be \['letters'\], got \['shapes'\]"):
        specialize(world.meta(), world.unlabelled[1], CONFIG, resume=states[9])


def test_what_is_taught_already_is_not_asked_again(world: World) -> None:
    meta = world.meta()
    taught = teach(meta, world.unlabelled, holdout=CONFIG.holdout, seed=CONFIG.seed)
    assert teach(meta, taught, holdout=0.5, seed=9) == taught
    fresh = specialize(world.meta(), world.unlabelled[0], CONFIG).coefficients
    assert torch.equal(specialize(meta, taught[0], CONFIG).coefficients, fresh)


def test_configurations_that_make_no_sense() -> None:
    with pytest.raises(MdftError, match=r"batch: must be a whole number in \[1, 1000000\], got 0"):
        SpecializeConfig(batch=0)
    with pytest.raises(MdftError, match="did you mean 'encoder'"):
        SpecializeConfig(representation="encode")  # type: ignore[arg-type]
    with pytest.raises(MdftError, match="holdout"):
        SpecializeConfig(holdout=-0.1)
    assert SpecializeConfig().optimizer == OptimizerConfig(lr=0.05)
