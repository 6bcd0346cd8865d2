# SPDX-License-Identifier: Apache-2.0
"""The two stages, and their one loop: draw and encode samples, weigh them, update λ once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.learning.config import ConstructConfig, SpecializeConfig
from mdft_fast.learning.cuda_graph import CudaCapture, StepGraph, check_capturable
from mdft_fast.learning.learner import Callback, Learner, RunResult, StepRecord, result_of
from mdft_fast.learning.objectives import (
    AlignmentObjective,
    DebiasedEntropyObjective,
    Encoded,
    Inputs,
    Losses,
    Objective,
    gather,
)
from mdft_fast.learning.order import BatchOrder
from mdft_fast.learning.teachers import TaughtTask, teach
from mdft_fast.model import MetaModel, UnlabelledTask

Config = ConstructConfig | SpecializeConfig
Update = Callable[[Sequence[Tensor]], Losses]  # updates λ once from each task's rows


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
        the objective, and a warning says so; so it does where λ diverged or never moved.

    Raises:
        MdftError: if a task is not of the pool or named twice, no sample of any task passes the
            filter, λ does not stay finite, or the step cannot be recorded as the configuration
            wants.
    """
    started = time.perf_counter()
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise MdftError(f"construct: tasks must be one or more, each named once, got {names}")
    drawn, warnings = _drawn(_taught(meta, tasks, config), config)
    objective = DebiasedEntropyObjective(tuple(drawn), tuple(drawn.values()), config)
    learner = _learn(meta, objective, config, "construct", callbacks, resume)
    return result_of(learner, "construct", time.perf_counter() - started, tuple(warnings))


def specialize(
    meta: MetaModel,
    task: UnlabelledTask | TaughtTask,
    config: SpecializeConfig,
    *,
    callbacks: Iterable[Callback] = (),
    resume: Mapping[str, Any] | None = None,
) -> RunResult:
    """Moves λ until the encoder's output on a task's samples is near the task's own model's.

    Starts from where ``meta.coefficients`` stand (stage 1's λ, say) and changes them in place.
    The optimum is known (λ = 1 at the task, else 0, where the loss is 0): 20 steps stop early.

    Args:
        meta: the meta-model.
        task: a task of the pool; its labels, if any, are never read.
        config: see :class:`SpecializeConfig`.
        callbacks: called after every step as ``callback(record, learner)``.
        resume: a state of an earlier call with the same arguments: goes on bit for bit.

    Returns:
        The learned λ and its path.

    Raises:
        MdftError: if the task is not of the pool, λ does not stay finite, or the step cannot be
            recorded as the configuration wants.
    """
    started = time.perf_counter()
    (taught,) = _taught(meta, [task], config)
    objective = AlignmentObjective([taught], [taught.learn], config.representation)
    learner = _learn(meta, objective, config, "specialize", callbacks, resume, task=task.name)
    return result_of(learner, f"specialize {task.name}", time.perf_counter() - started)


def _taught(
    meta: MetaModel, tasks: Sequence[UnlabelledTask | TaughtTask], config: Config
) -> list[TaughtTask]:
    """Returns the tasks, taught, once it is clear that the stage's steps can be made."""
    if config.cuda_graph:
        check_capturable(meta)
    return teach(meta, tasks, holdout=config.holdout, seed=config.seed, batch=config.micro_batch)


def _drawn(
    taught: Sequence[TaughtTask], config: ConstructConfig
) -> tuple[dict[TaughtTask, Tensor], list[str]]:
    """Returns what tasks have samples to draw from, and which; and warnings about the others."""
    drawn = {}
    warnings = []
    for task in taught:
        only_kept = config.filter and config.draw == "kept"
        rows = task.kept(config.mu) if only_kept else task.learn
        if len(rows) > 0:
            drawn[task] = rows
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


def _learn(
    meta: MetaModel,
    objective: Objective,
    config: Config,
    stage: str,
    callbacks: Iterable[Callback],
    resume: Mapping[str, Any] | None,
    task: str | None = None,
) -> Learner:
    """Makes a stage's steps, from a saved state on where there is one."""
    drawn_from = list(zip(objective.tasks, objective.samples, strict=True))
    orders = {
        task.name: BatchOrder(len(samples), config.batch, config.seed, f"{stage}/{task.name}")
        for task, samples in drawn_from
    }
    learner = Learner(meta, config.optimizer, config.steps, orders, capturable=config.cuda_graph)
    update = _updater(learner, objective, config)
    if resume is not None:
        learner.restore(resume)
    callbacks = tuple(callbacks)
    while learner.step < learner.steps:
        started = time.perf_counter()
        rows = [samples[next(orders[task.name])] for task, samples in drawn_from]
        with torch.enable_grad():
            losses, lr = learner.advance(functools.partial(update, rows))
        record = StepRecord(
            stage=stage,
            task=task,
            step=learner.step,
            steps=learner.steps,
            losses=losses.loss,
            names=tuple(orders),
            kept=losses.kept / losses.kept.new_tensor([len(some) for some in rows]),
            lr=lr,
            samples=sum(len(some) for some in rows),
            seconds=time.perf_counter() - started,
        )
        for callback in callbacks:
            callback(record, learner)
    return learner


def _updater(learner: Learner, objective: Objective, config: Config) -> Update:
    """Returns what makes an update: by a graph, or micro-batch by micro-batch."""
    meta, most = learner.meta, config.micro_batch

    def compute(
        inputs: Inputs,
        tasks: Sequence[TaughtTask] = objective.tasks,
        divide_by: Tensor | None = None,
    ) -> Losses:
        features = meta.encode(inputs.batch).split([len(rows) for rows in inputs.rows])
        return objective.losses(Encoded(tasks, features, inputs.rows, divide_by))

    def parts(rows: Sequence[Tensor], sums: Losses) -> Iterator[Tensor]:
        """Yields each micro-batch's part of the objective; adds to each task's sums."""
        whole = None if most is None else objective.divisors(rows)
        for cut in micro_batches([len(some) for some in rows], most):
            tasks = [objective.tasks[number] for number, _ in cut]
            inputs = gather(tasks, [rows[number][part] for number, part in cut])
            at = torch.tensor([number for number, _ in cut], device=sums.loss.device)
            loss, kept = compute(inputs, tasks, None if whole is None else whole[at])
            sums.loss.index_add_(0, at, loss.detach().float())
            sums.kept.index_add_(0, at, kept.to(sums.kept))
            yield loss.sum()

    if config.cuda_graph:
        graph = StepGraph(learner, compute, CudaCapture(meta.coefficients.device))
        return lambda rows: graph.update(gather(objective.tasks, rows))

    def update(rows: Sequence[Tensor]) -> Losses:
        sums = Losses.zeros(len(rows), meta.coefficients.device)
        learner.update(parts(rows, sums))
        return sums

    return update


def micro_batches(sizes: Sequence[int], most: int | None) -> Iterator[list[tuple[int, slice]]]:
    """Cuts the rows of several tasks, one after another, into micro-batches.

    Args:
        sizes: number of rows of each task.
        most: rows of a micro-batch; None: all.

    Yields:
        (task's number, its rows) of each micro-batch, in order; tasks without rows are left out.
    """
    parts: list[tuple[int, slice]] = []
    room = most = most or max(1, sum(sizes))
    for number, rows in enumerate(sizes):
        start = 0
        while start < rows:
            end = min(rows, start + room)
            parts.append((number, slice(start, end)))
            room -= end - start
            start = end
            if room == 0:
                yield parts
                parts, room = [], most
    if parts:
        yield parts
