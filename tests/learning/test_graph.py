# SPDX-License-Identifier: Apache-2.0
"""A step recorded and replayed, as far as the CPU can show it.

In its place stands a capture that keeps the function and calls it again. So these tests hold the
factoring, what is copied to where, the warm-up, the optimizers, resume and the refusals;
tests/cuda/test_graph.py is for the capture itself.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast import ConstructConfig, MdftError, OptimizerConfig, SpecializeConfig
from mdft_fast.learning import BatchOrder, Learner, loop
from mdft_fast.learning.cuda_graph import Run, StepGraph, check_capturable
from mdft_fast.learning.objectives import Inputs, Losses
from tests.learning.recorded import (
    CONFIGS,
    assert_same_path,
    assert_same_records,
    learn,
    paths_and_states,
)
from tests.world import World

ROUND_OFF = 1e-4  # fused optimizers round elsewhere; Adam carries a gradient's round-off to λ


class Repeat:
    """A capture that computes: what is recorded is called again."""

    made: list[Repeat] = []  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        self.warm_ups = 0
        Repeat.made.append(self)

    def warm_up(self, run: Run) -> None:
        for _ in range(3):
            run()
            self.warm_ups += 1

    def record(self, run: Run) -> None:
        self.replay = run


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Repeat.made.clear()
    monkeypatch.setattr(loop, "CudaCapture", Repeat)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a stage that is told to record do so on the CPU."""
    monkeypatch.setattr(loop, "check_capturable", lambda meta: None)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_replayed_stage_is_the_plain_one(world: World, name: str) -> None:
    config = CONFIGS[name]
    wanted, plain = learn(world, config, graph=False)
    got, replayed = learn(world, config, graph=True)
    assert [c.warm_ups for c in Repeat.made] == [3]  # recorded once
    assert_same_path(got, wanted, config, ROUND_OFF)
    assert_same_records(replayed, plain, rel=1e-3)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", ["construct", "specialize"])
def test_the_graph_reads_what_the_plain_step_reads_at_one_address(world: World, name: str) -> None:
    seen: dict[bool, list[Tensor]] = {}
    addresses = set()
    for graph in (False, True):
        meta = world.meta()
        calls = seen[graph] = []
        encode = meta.encode

        def spy(x: Tensor, calls: Any = calls, graph: bool = graph, encode: Any = encode) -> Tensor:
            if torch.is_grad_enabled():  # not the teachers' calls
                calls.append(x.clone())
                if graph:
                    addresses.add(x.data_ptr())
            features: Tensor = encode(x)
            return features

        meta.encode = spy  # type: ignore[method-assign]
        learn(world, CONFIGS[name], graph=graph, meta=meta)
    plain, replayed = seen[False], seen[True][3:]  # after the warm-up
    assert len(plain) == len(replayed) == 10
    assert all(torch.equal(mine, other) for mine, other in zip(replayed, plain, strict=True))
    assert len(addresses) == 1


def learner_of(world: World, name: str = "adam", capturable: bool = True) -> Learner:
    orders = {"letters": BatchOrder(32, 4, 0)}
    return Learner(world.meta(), OptimizerConfig(name), 10, orders, capturable=capturable)


def square(learner: Learner) -> Any:
    """A loss that moves every coefficient, by what the rows say."""

    def compute(inputs: Inputs) -> Losses:
        loss = (learner.meta.coefficients * inputs.rows[0].float().mean()).square().sum()
        return Losses(loss.reshape(1), torch.ones(1))

    return compute


def inputs_of(*rows: int) -> Inputs:
    return Inputs(torch.ones(len(rows), 3, 8, 8), (torch.tensor(rows),))


def everything(learner: Learner) -> dict[str, Tensor]:
    """λ and the optimizer's state; addresses do not count."""
    state = learner._optimizer.state.get(learner.meta.coefficients, {})
    return {
        "coefficients": learner.meta.coefficients.detach().clone(),
        **{name: value.clone() for name, value in state.items()},
    }


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("steps", [0, 3], ids=["fresh", "after three steps"])
def test_warm_up_leaves_everything_as_it_was(world: World, name: str, steps: int) -> None:
    learner = learner_of(world, name)
    compute = square(learner)
    for _ in range(steps):
        learner.update([compute(inputs_of(1, 2)).loss.sum()])
    before = everything(learner)
    moved, recorded = [], []

    class Watch(Repeat):
        def warm_up(self, run: Run) -> None:
            super().warm_up(run)
            moved.append(everything(learner))

        def record(self, run: Run) -> None:
            recorded.append(everything(learner))
            self.addresses = {k: v.data_ptr() for k, v in states().items()}
            super().record(run)

    def states() -> dict[str, Tensor]:
        return dict(learner._optimizer.state.get(learner.meta.coefficients, {}))

    capture = Watch(torch.device("cpu"))
    StepGraph(learner, compute, capture).update(inputs_of(5, 6))
    assert not torch.equal(moved[0]["coefficients"], before["coefficients"])
    for key, value in recorded[0].items():
        assert torch.equal(value, before.get(key, torch.zeros_like(value))), key
    assert {k: v.data_ptr() for k, v in states().items()} == capture.addresses
    if name != "sgd":
        assert float(states()["step"]) == steps + 1


def test_results_outlive_the_next_replay(world: World) -> None:
    learner = learner_of(world)
    graph = StepGraph(learner, square(learner), Repeat(torch.device("cpu")))
    first = graph.update(inputs_of(1, 1))
    value = float(first.loss)
    graph.update(inputs_of(100, 100))
    assert float(first.loss) == value


def test_inputs_of_another_shape_are_refused(world: World) -> None:
    learner = learner_of(world)
    graph = StepGraph(learner, square(learner), Repeat(torch.device("cpu")))
    graph.update(inputs_of(1, 2))
    with pytest.raises(MdftError, match=r"must be \[2, 3, 8, 8\] as in the first step, got \[1, 3"):
        graph.update(inputs_of(1))


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", ["construct", "sgd", "specialize"])
def test_resumes_bit_for_bit_and_from_a_plain_run(world: World, name: str) -> None:
    config = CONFIGS[name]
    paths, states = paths_and_states(world, config, world.meta)
    for graph in (True, True, False):  # a state can be used again: nobody writes into it
        resumed, _ = learn(world, config, graph=graph, resume=states[graph])
        assert torch.equal(resumed, paths[graph])
    for before, after in ((False, True), (True, False)):
        resumed, _ = learn(world, config, graph=after, resume=states[before])
        assert_same_path(resumed, paths[False], config, ROUND_OFF)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_plain_state_leaves_the_optimizer_capturable(world: World, name: str) -> None:
    plain, learner = learner_of(world, name, capturable=False), learner_of(world, name)
    plain.update([square(plain)(inputs_of(1)).loss.sum()])
    plain.step += 1
    plain.path.append(plain.meta.coefficients.detach().clone())
    learner.restore(plain.state())
    (group,) = learner._optimizer.param_groups
    assert isinstance(group["lr"], Tensor)
    assert group["fused"]
    assert group.get("capturable", True)
    for key, value in everything(plain).items():
        assert torch.equal(everything(learner)[key], value)
    assert {value.device for value in everything(learner).values()} == {torch.device("cpu")}


def test_what_cannot_be_recorded_is_refused(world: World) -> None:
    for name in ("construct", "specialize"):
        with pytest.raises(MdftError, match=r"cuda_graph: .* must be on a CUDA device, got cpu"):
            learn(world, CONFIGS[name], graph=True)
    there = SimpleNamespace(device=torch.device("cuda"))
    streamed: Any = SimpleNamespace(coefficients=there, mode="streamed")
    with pytest.raises(MdftError, match="must be 'resident' or 'layerwise', got 'streamed'"):
        check_capturable(streamed)
    for mode in ("resident", "layerwise"):
        fits: Any = SimpleNamespace(coefficients=there, mode=mode)
        check_capturable(fits)


@pytest.mark.parametrize("make", [ConstructConfig, SpecializeConfig])
def test_configurations_that_make_no_sense(make: Any) -> None:
    with pytest.raises(MdftError, match=r"cuda_graph: .* micro_batch must be unset, got 4"):
        make(cuda_graph=True, micro_batch=4)
    with pytest.raises(MdftError, match="cuda_graph: must be true or false, got 'yes'"):
        make(cuda_graph="yes")
