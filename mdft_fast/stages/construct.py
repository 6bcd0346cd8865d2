# SPDX-License-Identifier: Apache-2.0
"""Stage 1: construct the meta-model (equations 1 to 6)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from mdft_fast.data import BatchOrder, Task
from mdft_fast.errors import MdftError
from mdft_fast.model import MetaModel
from mdft_fast.ops import debiased_entropy_loss
from mdft_fast.stages.config import ConstructConfig
from mdft_fast.stages.learner import Callback, Learner, RunResult, StepRecord, result_of
from mdft_fast.stages.teachers import TaughtTask, teach


def construct(
    meta: MetaModel,
    tasks: Sequence[Task | TaughtTask],
    config: ConstructConfig,
    *,
    callbacks: Iterable[Callback] = (),
    resume: Mapping[str, Any] | None = None,
) -> RunResult:
    """Learns one λ for all tasks without labels, from where ``meta.coefficients`` stand.

    A step is one merge, one forward of the encoder over all tasks' samples, K small heads, one
    launch of the loss, one backward, one dot, one update of K x L numbers.

    Args:
        meta: the meta-model; its λ is learned in place.
        tasks: tasks of the pool; their labels, if any, are never read.
        config: see :class:`ConstructConfig`.
        callbacks: called after every step as ``callback(record, learner)``; ``learner.state()``
            is what ``resume`` takes.
        resume: a state of an earlier call with the same arguments: goes on bit for bit.

    Returns:
        The learned λ and its path. A task none of whose samples pass the filter adds nothing to
        the objective, and a warning says so.

    Raises:
        MdftError: if a task is not of the pool or named twice, no sample of any task passes the
            filter, or λ does not stay finite.
    """
    started = time.perf_counter()
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise MdftError(f"construct: tasks must be one or more, each named once, got {names}")
    taught = teach(meta, tasks, holdout=config.holdout, seed=config.seed)
    drawn, warnings = _drawn(taught, config)
    orders = {
        task.name: BatchOrder(len(rows), config.batch, config.seed, f"construct/{task.name}")
        for task, rows in drawn
    }
    learner = Learner(meta, config.optimizer, config.steps, orders)
    learner.run(lambda: _step(learner, drawn, config), callbacks, resume)
    return result_of(learner, time.perf_counter() - started, tuple(warnings))


Drawn = list[tuple[TaughtTask, torch.Tensor]]  # a task and the samples it may draw from


def _drawn(taught: Sequence[TaughtTask], config: ConstructConfig) -> tuple[Drawn, list[str]]:
    """Returns the tasks that have samples to draw from, and warnings about the others."""
    drawn: Drawn = []
    warnings = []
    for task in taught:
        only_kept = config.filter and config.draw == "kept"
        rows = task.kept(config.mu) if only_kept else task.learn
        if len(rows) > 0:
            drawn.append((task, rows))
            continue
        warnings.append(
            f"task {task.name}: none of {len(task.learn)} samples passes the filter "
            f"(H < {config.mu} log {task.classes}); it adds nothing to stage 1"
        )
    if not drawn:
        raise MdftError(
            f"construct: some sample must pass the filter (H < {config.mu} log C), got none of "
            f"{sum(len(task.learn) for task in taught)}; raise filter.mu or turn the filter off"
        )
    return drawn, warnings


def _step(learner: Learner, drawn: Drawn, config: ConstructConfig) -> StepRecord:
    started = time.perf_counter()
    device = learner.meta.coefficients.device
    tasks = [task for task, _ in drawn]
    rows = [allowed[next(learner.orders[task.name])] for task, allowed in drawn]
    images = torch.cat([task.images(row) for task, row in zip(tasks, rows, strict=True)])
    features = learner.meta.encode(images).split([len(row) for row in rows])
    loss = debiased_entropy_loss(
        [task.head(f) for task, f in zip(tasks, features, strict=True)],
        [task.logits[row.to(device)] for task, row in zip(tasks, rows, strict=True)],
        alpha=config.alpha,
        mu=config.mu,
        entropy_of=config.entropy_of,
        use_entropy=config.use_entropy,
        filter=config.filter and config.draw == "batch",  # what was drawn as kept is kept
        reweight=config.reweight,
    )
    lr = learner.advance(loss.loss.sum())
    return StepRecord(
        stage="construct",
        task=None,
        step=learner.step,
        steps=learner.steps,
        losses=loss.loss.detach(),
        names=tuple(task.name for task in tasks),
        kept=loss.kept.view(len(tasks), -1).float().mean(1),
        lr=lr,
        samples=len(images),
        seconds=time.perf_counter() - started,
    )
