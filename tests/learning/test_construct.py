# SPDX-License-Identifier: Apache-2.0
"""Stage 1: oracles 3 and 6, the trajectory against plain torch, labels, resume."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from mdft_fast import ConstructConfig, MdftError, OptimizerConfig, Task, construct
from mdft_fast.learning import BatchOrder, holdout_cross_entropy, teach
from mdft_fast.model import split
from tests.world import CLASSES, Encoder, World, make_world, pixels

CONFIG = ConstructConfig(
    steps=20, batch=8, mu=0.8, optimizer=OptimizerConfig(lr=0.01, schedule="cosine")
)


def learn(world: World, config: ConstructConfig, **options: Any) -> Tensor:
    return construct(world.meta(), world.unlabelled, config, **options).coefficients


def plain_torch(world: World, config: ConstructConfig) -> Tensor:
    """Stage 1 as a user would write it today: autograd through the sum, nothing of the package
    but the order of samples. Filter, weight and loss from the equations, on every drawn batch."""
    encoder = Encoder().eval()
    images, p, entropies, rows, orders = [], [], [], [], []
    for k, task in enumerate(world.tasks):
        x = pixels(task.adapt)
        with torch.no_grad():
            teacher = task.head(functional_call(encoder, world.models[k], x)).log_softmax(1)
        h = -(teacher.exp() * teacher).sum(1)
        learned, _ = split(len(x), config.holdout, config.seed, task.name)
        if config.filter and config.draw == "kept":
            learned = learned[h[learned] < config.mu * math.log(teacher.shape[1])]
        images.append(x)
        p.append(teacher.exp())
        entropies.append(h)
        rows.append(learned)
        orders.append(BatchOrder(len(learned), config.batch, config.seed, f"construct/{task.name}"))
    lam = torch.full((len(world.models), len(world.base) - 1), 0.3, requires_grad=True)
    optimizer = torch.optim.Adam([lam], lr=config.optimizer.lr)
    for step in range(config.steps):
        if config.optimizer.schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = (
                    config.optimizer.lr * (1 + math.cos(math.pi * step / config.steps)) / 2
                )
        weights = world.merged(lam)
        total = torch.zeros(())
        for k, task in enumerate(world.tasks):
            at = rows[k][next(orders[k])]
            log_q = task.head(functional_call(encoder, weights, images[k][at])).log_softmax(1)
            loss = config.alpha * -(p[k][at] * log_q).sum(1)
            if config.use_entropy:
                loss = loss - (log_q.exp() * log_q).sum(1)
            h0 = config.mu * math.log(log_q.shape[1])
            h = entropies[k][at]
            kept = (h < h0) if config.filter else torch.ones_like(h, dtype=torch.bool)
            if kept.any():
                gamma = (h0 - h).exp() if config.reweight != "off" else torch.ones_like(h)
                total = total + (gamma * loss)[kept].mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return lam.detach()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"draw": "batch"},
        {"use_entropy": False, "optimizer": OptimizerConfig(lr=0.005)},
        # Oracle 3: AdaMerging's objective.
        {"alpha": 0.0, "filter": False, "reweight": "off"},
    ],
    ids=["full", "draw batch", "cross-entropy", "adamerging"],
)
def test_path_equals_plain_torch(world: World, changes: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    mine, plain = learn(world, config), plain_torch(world, config)
    moved = float((plain - 0.3).abs().max())
    assert moved > 0.03
    # Adam divides by the gradient's own size, so a gradient's relative round-off (1e-5 or so
    # where terms cancel) reaches λ times the learning rate, step by step.
    bound = config.steps * config.optimizer.lr * 1e-4
    assert float((mine - plain).abs().max()) < bound


def test_oracle_6_filter_before_the_forward_equals_masking_after_it(world: World) -> None:
    """Over all samples of each task, one step: the same gradient either way."""
    size = {name: len(split(40, CONFIG.holdout, 0, name)[0]) for name in CLASSES}
    assert len(set(size.values())) == 1
    steps = []
    for draw in ("kept", "batch"):
        config = dataclasses.replace(
            CONFIG, steps=1, draw=draw, batch=size["shapes"],
            optimizer=OptimizerConfig("sgd", lr=1.0), reweight="as_written",
        )  # fmt: skip
        meta = world.meta()
        taught = teach(meta, world.unlabelled, holdout=config.holdout, seed=0)
        if draw == "kept":  # each kept sample once: as many as there are, task by task
            total = torch.zeros_like(meta.coefficients)
            for task in taught:
                alone = dataclasses.replace(config, batch=len(task.kept(config.mu)))
                total += construct(world.meta(), [task], alone).coefficients - 0.3
            steps.append(total)
        else:
            steps.append(construct(meta, taught, config).coefficients - 0.3)
    assert float(steps[0].abs().max()) > 1e-3
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-5)


def test_labels_are_never_read(world: World) -> None:
    """Poisoned labels, raising labels and no labels: the same bits."""

    class Raising:
        def __array__(self, *_: Any) -> np.ndarray:
            raise AssertionError("a label was read")

    expected = learn(world, CONFIG)
    for poison in (torch.full((40,), -1), Raising()):
        tasks = [
            Task(t.name, t.class_names, t.head, t.adapt, (t.evaluate[0], poison))
            for t in world.tasks
        ]
        assert torch.equal(construct(world.meta(), tasks, CONFIG).coefficients, expected)


def test_equal_calls_give_equal_bits(world: World) -> None:
    torch.manual_seed(1)
    first = learn(world, CONFIG)
    torch.manual_seed(2)
    assert torch.equal(learn(world, CONFIG), first)
    assert not torch.equal(learn(world, dataclasses.replace(CONFIG, seed=1)), first)


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_resumes_bit_for_bit(world: World, stop: int) -> None:
    states: dict[int, Any] = {}
    expected = learn(
        world, CONFIG, callbacks=[lambda r, learner: states.setdefault(r.step, learner.state())]
    )
    meta = world.meta(start=0.9)  # the state says where to go on, not the model
    result = construct(meta, world.unlabelled, CONFIG, resume=states[stop])
    assert torch.equal(result.coefficients, expected)
    assert torch.equal(meta.coefficients.detach(), expected)
    assert result.path.shape == (21, 3, 10)


def test_refuses_to_resume_another_run(world: World) -> None:
    states: list[Any] = []
    learn(world, CONFIG, callbacks=[lambda r, learner: states.append(learner.state())])
    other = dataclasses.replace(CONFIG, steps=30)
    with pytest.raises(MdftError, match="resume: steps must be 30, got 20"):
        learn(world, other, resume=states[3])


def test_a_task_that_nothing_passes_adds_nothing_and_says_so(world: World) -> None:
    meta = world.meta()
    taught = teach(meta, world.unlabelled, holdout=0.2, seed=0)
    lowest = {t.name: float((t.entropy[t.learn] / math.log(t.classes)).min()) for t in taught}
    ordered = sorted(lowest.values())
    config = dataclasses.replace(CONFIG, mu=(ordered[0] + ordered[1]) / 2, steps=2)
    result = construct(meta, taught, config)
    assert len(result.warnings) == 2
    assert "none of 32 samples passes the filter" in result.warnings[0]
    assert result.coefficients.isfinite().all()


def test_nothing_passes_at_all(world: World) -> None:
    with pytest.raises(MdftError, match="some sample must pass the filter"):
        learn(world, dataclasses.replace(CONFIG, mu=0.0))


def test_nothing_kept_in_a_drawn_batch_is_a_gradient_of_zero(world: World) -> None:
    """From the start λ stays; an optimizer with momentum would glide on, as after any zero."""
    config = dataclasses.replace(CONFIG, mu=0.0, draw="batch", steps=2)
    assert torch.equal(learn(world, config), torch.full((3, 10), 0.3))


def test_a_task_named_twice_and_no_task(world: World) -> None:
    for tasks in ([], world.unlabelled[:1] * 2):
        with pytest.raises(MdftError, match="one or more, each named once, got"):
            construct(world.meta(), tasks, CONFIG)


def test_a_teacher_of_another_pool(world: World) -> None:
    other = make_world(seed=5)
    taught = teach(other.meta(), other.unlabelled, holdout=0.2, seed=0)
    with pytest.raises(MdftError, match=r"its teacher must be of the pool .*got one of"):
        construct(world.meta(), taught, CONFIG)


def test_learns_inside_no_grad_and_refuses_frozen_coefficients(world: World) -> None:
    with torch.no_grad():
        assert torch.equal(learn(world, CONFIG), learn(world, CONFIG))
        assert not torch.equal(learn(world, CONFIG), torch.full((3, 10), 0.3))
    meta = world.meta().requires_grad_(False)
    with pytest.raises(MdftError, match="must require grad to be learned"):
        construct(meta, world.unlabelled, CONFIG)


def test_coefficients_that_run_away_are_refused(world: World) -> None:
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig("sgd", lr=1e38))
    with pytest.raises(MdftError, match=r"must stay finite, got NaN or infinity at step \d+ of 20"):
        learn(world, config)


def test_kept_draw_encodes_no_removed_sample(world: World) -> None:
    meta = world.meta()
    taught = teach(meta, world.unlabelled, holdout=0.2, seed=0)
    seen: list[Tensor] = []
    encode = meta.encode
    meta.encode = lambda x: seen.append(x) or encode(x)  # type: ignore[method-assign]
    construct(meta, taught, dataclasses.replace(CONFIG, steps=3))
    allowed = torch.cat([t.batch(t.kept(CONFIG.mu)) for t in taught]).flatten(1)
    for batch in seen:
        for image in batch.flatten(1):
            assert (allowed == image).all(1).any()


def test_holdout_is_never_drawn_and_measures_the_learning(world: World) -> None:
    meta = world.meta()
    taught = teach(meta, world.unlabelled, holdout=0.25, seed=3)
    assert all(len(t.holdout) == 10 and not set(t.holdout.tolist()) & set(t.learn.tolist())
               for t in taught)  # fmt: skip
    before = holdout_cross_entropy(meta, taught)
    construct(meta, taught, dataclasses.replace(CONFIG, steps=40, holdout=0.25, seed=3))
    after = holdout_cross_entropy(meta, taught)
    assert sum(after.values()) < sum(before.values())


def test_records_say_what_happened(world: World) -> None:
    records: list[dict[str, Any]] = []
    config = dataclasses.replace(CONFIG, draw="batch", mu=0.5)
    learn(world, config, callbacks=[lambda r, _: records.append(r.as_dict())])
    assert [r["step"] for r in records] == list(range(1, 21))
    assert set(records[0]["kept"]) == set(CLASSES)
    assert all(0 <= share <= 1 for r in records for share in r["kept"].values())
    assert records[0]["loss"] == pytest.approx(sum(records[0]["losses"].values()))
    assert records[0]["lr"] == 0.01
    assert records[-1]["lr"] < 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "construct.steps: must be a whole number above 0, got 0"),
        ({"draw": "keep"}, "construct.draw: must be one of .*got 'keep'; did you mean 'kept'"),
        ({"alpha": -1.0}, "construct.alpha: must be a finite number >= 0, got -1"),
        ({"mu": float("nan")}, "construct.mu: must be a finite number >= 0, got nan"),
        ({"holdout": 1.0}, r"construct.holdout: must be in \[0, 1\), got 1.0"),
        ({"alpha": 0.0, "use_entropy": False}, "leaves no objective"),
        ({"entropy_of": "meta"}, "draw: must be 'batch' where .*'meta'.*, got 'kept'"),
    ],
)
def test_configurations_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MdftError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_optimizers_that_do_not_exist() -> None:
    with pytest.raises(MdftError, match="did you mean 'adam"):
        OptimizerConfig("adamm")  # type: ignore[arg-type]
    with pytest.raises(MdftError, match="lr: must be above 0, got 0"):
        OptimizerConfig(lr=0.0)


def test_a_task_of_another_pool(world: World) -> None:
    stranger = Task("mnist", ["a", "b"], world.tasks[0].head.weight[:2], world.tasks[0].adapt)
    with pytest.raises(MdftError, match=r"must be one of .*got 'mnist'"):
        construct(world.meta(), [stranger], CONFIG)
