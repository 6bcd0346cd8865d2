# SPDX-License-Identifier: Apache-2.0
"""Steps recorded as CUDA graphs: the same λ as without, for both stages.

What the CPU can show of it is in tests/learning/test_graph.py. See docs/kernels.md, "What has run
where".
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mdft_fast import ConstructConfig, SpecializeConfig
from mdft_fast.learning import Learner, StepRecord
from tests.grid import Grid
from tests.learning.recorded import (
    CONFIGS,
    assert_same_path,
    assert_same_records,
    learn,
    paths_and_states,
)
from tests.world import World

pytestmark = pytest.mark.cuda

# Adam carries a gradient's relative round-off to λ, step by step; an L1 loss has a gradient that
# jumps where round-off decides a sign.
SHARE = {ConstructConfig: 1e-3, SpecializeConfig: 1e-2}


@pytest.mark.parametrize("mode", ["resident", "layerwise"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "adamw"])
def test_same_coefficients_as_without(world: World, grid: Grid, name: str, mode: str) -> None:
    config = CONFIGS[name]
    wanted, plain = learn(world, config, False, meta=world.meta(mode=mode, device=grid.device))
    got, replayed = learn(world, config, True, meta=world.meta(mode=mode, device=grid.device))
    assert_same_path(got, wanted, config, SHARE[type(config)])
    assert_same_records(replayed, plain, rel=1e-2)


@pytest.mark.parametrize("name", ["construct", "specialize"])
def test_resumes_bit_for_bit_and_from_a_plain_run(world: World, grid: Grid, name: str) -> None:
    config = CONFIGS[name]

    def meta() -> Any:
        return world.meta(device=grid.device)

    paths, states = paths_and_states(world, config, meta)
    resumed, _ = learn(world, config, True, meta=meta(), resume=states[True])
    assert torch.equal(resumed, paths[True])
    for before, after in ((False, True), (True, False)):
        resumed, _ = learn(world, config, after, meta=meta(), resume=states[before])
        assert_same_path(resumed, paths[False], config, SHARE[type(config)])


def test_what_callbacks_compute_does_not_reach_the_graph(world: World, grid: Grid) -> None:
    """They use λ and the allocator between two replays."""

    def use(record: StepRecord, learner: Learner) -> None:
        with learner.meta.using(0.1), torch.no_grad():
            learner.meta.encode(torch.randn(100, 3, 8, 8, device=grid.device))

    config = CONFIGS["construct"]
    alone, _ = learn(world, config, True, meta=world.meta(device=grid.device))
    used, _ = learn(world, config, True, meta=world.meta(device=grid.device), callbacks=[use])
    assert torch.equal(alone, used)
