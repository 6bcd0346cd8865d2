# SPDX-License-Identifier: Apache-2.0
"""A learning that failed says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdft_fast import ConstructConfig, MdftError, OptimizerConfig, SpecializeConfig, construct
from mdft_fast import specialize as specialize_
from mdft_fast.learning import doubts_of_holdout
from tests.world import Encoder, World


def config(lr: float) -> ConstructConfig:
    return ConstructConfig(steps=4, batch=4, optimizer=OptimizerConfig(lr=lr))


def test_a_sound_learning_has_no_doubts(world: World) -> None:
    assert construct(world.meta(), world.tasks, config(0.01)).warnings == ()


def test_coefficients_that_diverge_are_named(world: World) -> None:
    (words,) = construct(world.meta(), world.tasks, config(20.0)).warnings
    assert words.startswith("construct: λ diverged, up to ")
    assert words.endswith("from at most 0.3 at the start; lower the learning rate")


def test_coefficients_that_never_move_are_named(world: World) -> None:
    meta, task = world.meta(), world.tasks[0]
    meta.set_coefficients(meta.individual(task.name))  # the optimum: no gradient
    (words,) = specialize_(meta, task, SpecializeConfig(steps=2, batch=4)).warnings
    assert words.startswith(f"specialize {task.name}: λ did not move in 2 steps: every gradient")


class Frozen(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_an_encoder_without_gradients_is_refused(world: World) -> None:
    frozen = Frozen()
    frozen.load_state_dict(world.base)
    meta = type(world)(frozen, world.base, world.models, world.tasks, world.pool).meta()
    with pytest.raises(MdftError, match="the encoder's output must depend on them, got one with"):
        construct(meta, world.tasks, config(0.01))


def test_a_model_farther_from_the_teachers_is_named() -> None:
    start = {"a": 1.0, "b": 2.0}
    assert doubts_of_holdout(start, {"a": 1.1, "b": 1.5}) == []
    assert doubts_of_holdout({}, {}) == []
    (words,) = doubts_of_holdout(start, {"a": 1.1, "b": 3.0})
    assert "start: 1.500 to 2.050 nats, most of all b (2.000 to 3.000); lower" in words
