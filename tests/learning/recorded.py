# SPDX-License-Identifier: Apache-2.0
"""Stages with a step recorded or not, on any device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import Tensor

from mdft_fast import ConstructConfig, OptimizerConfig, SpecializeConfig, construct, specialize
from mdft_fast.learning import Learner, StepRecord
from tests.world import World


def stage_1(name: str = "adam", **options: Any) -> ConstructConfig:
    optimizer = OptimizerConfig(name, 0.01, "cosine")  # type: ignore[arg-type]
    return ConstructConfig(steps=10, batch=8, mu=0.8, optimizer=optimizer, **options)


CONFIGS = {
    "construct": stage_1(),
    "drawn by batch": stage_1(draw="batch"),
    "adamw": stage_1("adamw"),
    "sgd": stage_1("sgd"),
    "specialize": SpecializeConfig(
        steps=10, batch=16, optimizer=OptimizerConfig(lr=0.05, schedule="cosine")
    ),
}


def learn(
    world: World, config: Any, graph: bool, *, meta: Any = None, **options: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """λ's path and the records, read after the last step."""
    config = dataclasses.replace(config, cuda_graph=graph)
    records: list[StepRecord] = []
    keep = [lambda record, _: records.append(record), *options.pop("callbacks", ())]
    meta = meta or world.meta()
    if isinstance(config, ConstructConfig):
        result = construct(meta, world.unlabelled, config, callbacks=keep, **options)
    else:
        result = specialize(meta, world.unlabelled[1], config, callbacks=keep, **options)
    return result.path, [record.as_dict() for record in records]


def assert_same_path(got: Tensor, wanted: Tensor, config: Any, share: float) -> None:
    """Differs by less than a share of the learning rates' sum."""
    assert float((wanted[-1] - wanted[0]).abs().max()) > 1e-3
    assert float((got - wanted).abs().max()) < config.steps * config.optimizer.lr * share


def assert_same_records(mine: list[Any], others: list[Any], rel: float) -> None:
    """Each step's own, not the last one's."""
    for one, other in zip(mine, others, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=rel)
        assert [one[key] for key in ("kept", "lr", "step")] == [
            other[key] for key in ("kept", "lr", "step")
        ]


def paths_and_states(
    world: World, config: Any, make_meta: Any
) -> tuple[dict[bool, Tensor], dict[bool, Any]]:
    """λ's path without and with a graph, and the learner's states after step 4."""
    paths: dict[bool, Tensor] = {}
    states: dict[bool, Any] = {}
    for graph in (False, True):

        def keep(record: StepRecord, learner: Learner, graph: bool = graph) -> None:
            if record.step == 4:
                states[graph] = learner.state()

        paths[graph], _ = learn(world, config, graph, meta=make_meta(), callbacks=[keep])
    return paths, states
