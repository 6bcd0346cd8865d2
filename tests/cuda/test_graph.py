# SPDX-License-Identifier: Apache-2.0
"""Steps recorded as CUDA graphs: the same λ as without, for both stages.

Nothing here has ever run: there was no GPU where it was written. What the CPU can show of it is in
tests/stages/test_graph.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast import ConstructConfig, OptimizerConfig, SpecializeConfig, construct, specialize
from mdft_fast.learning import Learner, StepRecord
from tests.grid import Grid
from tests.world import World, make_world

pytestmark = pytest.mark.cuda

ADAM, SGD = OptimizerConfig(lr=0.01, schedule="cosine"), OptimizerConfig("sgd", 0.01, "cosine")
CONFIGS = {
    "construct": ConstructConfig(steps=10, batch=8, mu=0.8, optimizer=ADAM),
    "drawn by batch": ConstructConfig(steps=10, batch=8, mu=0.8, draw="batch", optimizer=ADAM),
    "sgd": ConstructConfig(steps=10, batch=8, mu=0.8, optimizer=SGD),
    "specialize": SpecializeConfig(
        steps=10, batch=16, optimizer=OptimizerConfig(lr=0.05, schedule="cosine")
    ),
}
# Of the learning rates' sum. Adam carries a gradient's relative round-off to λ, step by step; an L1
# loss has a gradient that jumps where round-off decides a sign.
SHARE = {ConstructConfig: 1e-3, SpecializeConfig: 1e-2}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def learn(
    world: World, grid: Grid, config: Any, graph: bool, mode: str = "resident", **options: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """λ's path and the records, read after the last step."""
    meta = world.meta(mode=mode, device=grid.device)
    config = dataclasses.replace(config, cuda_graph=graph)
    records: list[StepRecord] = []
    keep = [lambda record, _: records.append(record), *options.pop("callbacks", ())]
    if isinstance(config, ConstructConfig):
        result = construct(meta, world.unlabelled, config, callbacks=keep, **options)
    else:
        result = specialize(meta, world.unlabelled[1], config, callbacks=keep, **options)
    return result.path, [record.as_dict() for record in records]


def assert_same_path(got: Tensor, wanted: Tensor, config: Any) -> None:
    bound = config.steps * config.optimizer.lr * SHARE[type(config)]
    assert float((wanted[-1] - wanted[0]).abs().max()) > 1e-3
    assert float((got - wanted).abs().max()) < bound


@pytest.mark.parametrize("mode", ["resident", "layerwise"])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_coefficients_as_without(world: World, grid: Grid, name: str, mode: str) -> None:
    config = CONFIGS[name]
    wanted, plain = learn(world, grid, config, graph=False, mode=mode)
    got, replayed = learn(world, grid, config, graph=True, mode=mode)
    assert_same_path(got, wanted, config)
    for mine, other in zip(replayed, plain, strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], rel=1e-2)
        assert mine["kept"] == other["kept"]
        assert mine["lr"] == other["lr"]


@pytest.mark.parametrize("name", ["construct", "specialize"])
def test_resumes_bit_for_bit_and_from_a_plain_run(world: World, grid: Grid, name: str) -> None:
    config = CONFIGS[name]
    states: dict[bool, Any] = {}
    paths = {}
    for graph in (False, True):

        def keep(record: StepRecord, learner: Learner, graph: bool = graph) -> None:
            if record.step == 4:
                states[graph] = learner.state()

        paths[graph], _ = learn(world, grid, config, graph=graph, callbacks=[keep])
    resumed, _ = learn(world, grid, config, graph=True, resume=states[True])
    assert torch.equal(resumed, paths[True])
    for before, after in ((False, True), (True, False)):
        resumed, _ = learn(world, grid, config, graph=after, resume=states[before])
        assert_same_path(resumed, paths[False], config)


def test_what_callbacks_compute_does_not_reach_the_graph(world: World, grid: Grid) -> None:
    """They use λ and the allocator between two replays."""

    def use(record: StepRecord, learner: Learner) -> None:
        with learner.meta.using(0.1), torch.no_grad():
            learner.meta.encode(torch.randn(100, 3, 8, 8, device=grid.device))

    config = CONFIGS["construct"]
    alone, _ = learn(world, grid, config, graph=True)
    used, _ = learn(world, grid, config, graph=True, callbacks=[use])
    assert torch.equal(alone, used)
