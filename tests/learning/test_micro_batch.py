# SPDX-License-Identifier: Apache-2.0
"""Micro-batches change what a step takes in memory, and nothing else but round-off."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mdft_fast import ConstructConfig, MdftError, OptimizerConfig, SpecializeConfig, construct
from mdft_fast.learning.loop import micro_batches
from tests.learning.recorded import learn
from tests.world import World

CONFIG = ConstructConfig(steps=8, batch=8, mu=0.8, optimizer=OptimizerConfig("sgd", lr=0.02))


def learn_in_parts(world: World, config: Any, micro_batch: int) -> Any:
    """Records of the steps in parts and whole, after a look at the paths: they are the same."""
    wanted, whole = learn(world, config, graph=False)
    got, parts = learn(world, dataclasses.replace(config, micro_batch=micro_batch), graph=False)
    # SGD: λ moves by lr times a gradient whose sums are ordered otherwise, step by step.
    moved = float((wanted[-1] - wanted[0]).abs().max())
    assert moved > 1e-2
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * moved)
    return zip(parts, whole, strict=True)


@pytest.mark.parametrize("micro_batch", [1, 5, 8, 11, 24, 100])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draw": "batch"},
        {"draw": "batch", "reweight": "normalized"},
        {"reweight": "normalized"},
        {"filter": False, "reweight": "off", "alpha": 0.0},
        {"draw": "batch", "mu": 0.55},  # some parts of a task keep no row at all
    ],
)
def test_the_path_of_stage_1_is_the_same(
    world: World, micro_batch: int, options: dict[str, Any]
) -> None:
    config = dataclasses.replace(CONFIG, **options)
    for one, other in learn_in_parts(world, config, micro_batch):
        assert one["kept"] == pytest.approx(other["kept"])
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 7, 16, 40])
def test_the_path_of_stage_2_is_the_same(world: World, micro_batch: int) -> None:
    config = SpecializeConfig(steps=5, batch=16, optimizer=OptimizerConfig("sgd", lr=0.5))
    for one, other in learn_in_parts(world, config, micro_batch):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)


@pytest.mark.parametrize("mode", ["layerwise", "streamed"])
def test_modes_and_micro_batches_together(world: World, mode: str) -> None:
    wanted = construct(world.meta(), world.unlabelled, CONFIG).coefficients
    config = dataclasses.replace(CONFIG, micro_batch=10)
    meta = world.meta(mode=mode, checkpointing=True)
    got = construct(meta, world.unlabelled, config).coefficients
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["layerwise", "streamed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_mode_walks_the_same_path_bit_for_bit(
    world: World, mode: str, checkpointing: bool
) -> None:
    wanted = construct(world.meta(), world.unlabelled, CONFIG).path
    meta = world.meta(mode=mode, checkpointing=checkpointing)
    assert torch.equal(construct(meta, world.unlabelled, CONFIG).path, wanted)


def test_rows_are_cut_in_order_and_none_is_lost() -> None:
    cut = list(micro_batches([3, 0, 5, 1], 4))
    assert cut == [[(0, slice(0, 3)), (2, slice(0, 1))], [(2, slice(1, 5))], [(3, slice(0, 1))]]
    assert list(micro_batches([2, 1], None)) == [[(0, slice(0, 2)), (1, slice(0, 1))]]
    assert list(micro_batches([], 4)) == []


def test_what_needs_all_rows_at_once_is_refused() -> None:
    with pytest.raises(MdftError, match=r"'meta' needs a step's rows at once.*, got 4"):
        ConstructConfig(entropy_of="meta", draw="batch", micro_batch=4)
    for config in (ConstructConfig, SpecializeConfig):
        with pytest.raises(MdftError, match="micro_batch: must be a whole number above 0, got 0"):
            config(micro_batch=0)
