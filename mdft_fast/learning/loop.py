# SPDX-License-Identifier: Apache-2.0
"""The loop of both stages: draw, encode and weigh a step's samples, update λ once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast.learning.config import ConstructConfig, SpecializeConfig
from mdft_fast.learning.cuda_graph import CudaCapture, StepGraph, check_capturable
from mdft_fast.learning.learner import Callback, Learner, StepRecord
from mdft_fast.learning.objectives import Encoded, Inputs, Losses, Objective, gather
from mdft_fast.learning.order import BatchOrder
from mdft_fast.learning.teachers import TaughtTask, UnlabelledTask, teach
from mdft_fast.model import MetaModel

Config = ConstructConfig | SpecializeConfig
Update = Callable[[Sequence[Tensor]], Losses]  # updates λ once from each task's rows


def prepare(
    meta: MetaModel, tasks: Sequence[UnlabelledTask | TaughtTask], config: Config
) -> list[TaughtTask]:
    """Returns the tasks, taught, once it is clear that the stage's steps can be made."""
    if config.cuda_graph:
        check_capturable(meta)
    return teach(meta, tasks, holdout=config.holdout, seed=config.seed, batch=config.micro_batch)


def learn(
    meta: MetaModel,
    objective: Objective,
    config: Config,
    stage: str,
    callbacks: Iterable[Callback],
    resume: Mapping[str, Any] | None,
    task: str | None = None,
) -> Learner:
    """Makes a stage's steps, from a saved state on where there is one.

    Args:
        meta: the meta-model; its λ is learned in place.
        objective: what λ goes down.
        config: the stage's.
        stage: its name, in records and in the order of samples.
        callbacks: called after every step.
        resume: a state of an earlier call with the same arguments.
        task: stage 2's, for the records.

    Returns:
        The learner, at its end.
    """
    orders = {
        task.name: BatchOrder(len(samples), config.batch, config.seed, f"{stage}/{task.name}")
        for task, samples in zip(objective.tasks, objective.samples, strict=True)
    }
    learner = Learner(meta, config.optimizer, config.steps, orders, capturable=config.cuda_graph)
    update = _updater(learner, objective, config)

    def step() -> StepRecord:
        started = time.perf_counter()
        rows = [
            samples[next(orders[task.name])]
            for task, samples in zip(objective.tasks, objective.samples, strict=True)
        ]
        losses, lr = learner.advance(lambda: update(rows))
        return StepRecord(
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

    learner.run(step, callbacks, resume)
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
