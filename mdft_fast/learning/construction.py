# SPDX-License-Identifier: Apache-2.0
"""Stage 1: construct the meta-model (equations 1 to 6)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.learning.config import ConstructConfig
from mdft_fast.learning.cuda_graph import check_capturable, replayed
from mdft_fast.learning.learner import (
    Callback,
    Learner,
    Losses,
    RunResult,
    StepRecord,
    micro_batches,
    result_of,
)
from mdft_fast.learning.order import BatchOrder
from mdft_fast.learning.teachers import Inputs, TaughtTask, UnlabelledTask, gather, teach
from mdft_fast.model import MetaModel
from mdft_fast.ops import debiased_entropy_loss


def construct(
    meta: MetaModel,
    tasks: Sequence[UnlabelledTask | TaughtTask],
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
            filter, λ does not stay finite, or the step cannot be recorded as the configuration
            wants.
    """
    started = time.perf_counter()
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise MdftError(f"construct: tasks must be one or more, each named once, got {names}")
    if config.cuda_graph:
        check_capturable(meta)
    batch = config.micro_batch
    taught = teach(meta, tasks, holdout=config.holdout, seed=config.seed, batch=batch)
    drawn, warnings = _drawn(taught, config)
    orders = {
        task.name: BatchOrder(len(rows), config.batch, config.seed, f"construct/{task.name}")
        for task, rows in drawn
    }
    learner = Learner(meta, config.optimizer, config.steps, orders, capturable=config.cuda_graph)
    update = _updater(learner, [task for task, _ in drawn], config)
    learner.run(lambda: _step(learner, drawn, update), callbacks, resume)
    return result_of(learner, time.perf_counter() - started, tuple(warnings))


Drawn = list[tuple[TaughtTask, Tensor]]  # a task and the samples it may draw from
Update = Callable[[Sequence[Tensor]], Losses]  # updates λ once from each task's rows


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


def _step(learner: Learner, drawn: Drawn, update: Update) -> StepRecord:
    started = time.perf_counter()
    rows = [allowed[next(learner.orders[task.name])] for task, allowed in drawn]
    losses, lr = learner.advance(lambda: update(rows))
    return StepRecord(
        stage="construct",
        task=None,
        step=learner.step,
        steps=learner.steps,
        losses=losses.loss,
        names=tuple(task.name for task, _ in drawn),
        kept=losses.kept / torch.tensor([len(row) for row in rows], device=losses.kept.device),
        lr=lr,
        samples=sum(len(row) for row in rows),
        seconds=time.perf_counter() - started,
    )


def _updater(learner: Learner, tasks: Sequence[TaughtTask], config: ConstructConfig) -> Update:
    if config.cuda_graph:
        return replayed(learner, tasks, lambda inputs: _losses(learner.meta, tasks, inputs, config))

    def update(rows: Sequence[Tensor]) -> Losses:
        sums = Losses.zeros(len(tasks), learner.meta.coefficients.device)
        learner.update(_micro_losses(learner.meta, tasks, rows, config, sums))
        return sums

    return update


def _micro_losses(
    meta: MetaModel,
    tasks: Sequence[TaughtTask],
    rows: Sequence[Tensor],
    config: ConstructConfig,
    sums: Losses,
) -> Iterator[Tensor]:
    """Yields each micro-batch's part of the objective; adds to each task's loss and kept rows."""
    device = sums.loss.device
    cut = config.micro_batch is not None
    whole = [_weight(t, row, config) for t, row in zip(tasks, rows, strict=True) if cut]
    for parts in micro_batches([len(row) for row in rows], config.micro_batch):
        numbers = [number for number, _ in parts]
        some = [rows[number][part] for number, part in parts]
        chosen = [tasks[number] for number in numbers]
        loss, kept = _losses(meta, chosen, gather(chosen, some), config)
        if cut:
            # A task's loss is a mean: over what of it lies here, as much as that weighs.
            own = [_weight(task, row, config) for task, row in zip(chosen, some, strict=True)]
            shares = [a / whole[i] if whole[i] else 0.0 for a, i in zip(own, numbers, strict=True)]
            loss = loss * torch.tensor(shares, device=device)
        at = torch.tensor(numbers, device=device)
        sums.loss.index_add_(0, at, loss.detach().float())
        sums.kept.index_add_(0, at, kept.to(sums.kept))
        yield loss.sum()


def _losses(
    meta: MetaModel, tasks: Sequence[TaughtTask], inputs: Inputs, config: ConstructConfig
) -> Losses:
    """Computes equations 2 to 6 for the inputs of these tasks: one merge, one forward, one launch.

    Nothing here waits for the device or depends on what the inputs hold: a graph can record it.
    """
    sizes = [len(rows) for rows in inputs.rows]
    features = meta.encode(inputs.images).split(sizes)
    result = debiased_entropy_loss(
        [task.head(f) for task, f in zip(tasks, features, strict=True)],
        [task.logits[rows] for task, rows in zip(tasks, inputs.rows, strict=True)],
        alpha=config.alpha,
        mu=config.mu,
        entropy_of=config.entropy_of,
        use_entropy=config.use_entropy,
        filter=_filters(config),
        reweight=config.reweight,
    )
    return Losses(result.loss, torch.stack([mask.sum() for mask in result.kept.split(sizes)]))


def _filters(config: ConstructConfig) -> bool:
    """Returns whether the loss filters: what was drawn as kept is kept."""
    return config.filter and config.draw == "batch"


def _weight(task: TaughtTask, rows: Tensor, config: ConstructConfig) -> float:
    """Returns what a task's loss over some rows was divided by: their number, or their weights."""
    entropy, threshold = task.entropy.cpu()[rows], config.mu * math.log(task.classes)
    if _filters(config):
        entropy = entropy[entropy < threshold]
    if config.reweight != "normalized":
        return float(len(entropy))
    return float((threshold - entropy).double().exp().sum())
