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
        MdftError: if a task is not of the pool or no sample of any task passes the filter.
    """
    started = time.perf_counter()
    taught = teach(meta, tasks, holdout=config.holdout, seed=config.seed)
    orders, warnings = _orders(taught, config)
    learner = Learner(meta, config.optimizer, config.steps, orders)
    if resume is not None:
        learner.restore(resume)
    drawn = [task for task in taught if task.name in orders]
    callbacks = tuple(callbacks)
    while not learner.done:
        record = _step(learner, drawn, config)
        for callback in callbacks:
            callback(record, learner)
    return result_of(learner, time.perf_counter() - started, tuple(warnings))


def _orders(
    taught: Sequence[TaughtTask], config: ConstructConfig
) -> tuple[dict[str, BatchOrder], list[str]]:
    """Returns each task's order of samples (positions in what it may draw from), and warnings."""
    orders, warnings = {}, []
    for task in taught:
        pool = _drawn_from(task, config)
        if len(pool) == 0:
            warnings.append(
                f"task {task.name}: none of {len(task.learn)} samples passes the filter "
                f"(H < {config.mu} log {task.classes}); it adds nothing to stage 1"
            )
            continue
        orders[task.name] = BatchOrder(
            len(pool), config.batch, config.seed, f"construct/{task.name}"
        )
    if not orders:
        raise MdftError(
            f"construct: no sample of any task passes the filter (H < {config.mu} log C); "
            "raise filter.mu or turn the filter off"
        )
    return orders, warnings


def _drawn_from(task: TaughtTask, config: ConstructConfig) -> torch.Tensor:
    if config.filter and config.draw == "kept":
        return task.kept(config.mu)
    return task.learn


def _step(learner: Learner, tasks: Sequence[TaughtTask], config: ConstructConfig) -> StepRecord:
    started = time.perf_counter()
    device = learner.meta.coefficients.device
    rows = [_drawn_from(task, config)[next(learner.orders[task.name])] for task in tasks]
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
