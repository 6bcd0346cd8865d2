# SPDX-License-Identifier: Apache-2.0
"""Stage 2: specialize the meta-model to one task (equation 7)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast import reference
from mdft_fast.learning.config import SpecializeConfig
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
from mdft_fast.learning.teachers import Inputs, TaughtTask, UnlabelledTask, gather, represent, teach
from mdft_fast.model import MetaModel


def specialize(
    meta: MetaModel,
    task: UnlabelledTask | TaughtTask,
    config: SpecializeConfig,
    *,
    callbacks: Iterable[Callback] = (),
    resume: Mapping[str, Any] | None = None,
) -> RunResult:
    """Moves λ until the encoder's output on a task's images is near the task's own model's.

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
    if config.cuda_graph:
        check_capturable(meta)
    batch = config.micro_batch
    (taught,) = teach(meta, [task], holdout=config.holdout, seed=config.seed, batch=batch)
    order = BatchOrder(len(taught.learn), config.batch, config.seed, f"specialize/{taught.name}")
    orders = {taught.name: order}
    learner = Learner(meta, config.optimizer, config.steps, orders, capturable=config.cuda_graph)
    update = _updater(learner, taught, config)
    learner.run(lambda: _step(learner, taught, update), callbacks, resume)
    return result_of(learner, time.perf_counter() - started)


Update = Callable[[Sequence[Tensor]], Losses]  # updates λ once from the task's rows


def _step(learner: Learner, task: TaughtTask, update: Update) -> StepRecord:
    started = time.perf_counter()
    rows = task.learn[next(learner.orders[task.name])]
    losses, lr = learner.advance(lambda: update([rows]))
    return StepRecord(
        stage="specialize",
        task=task.name,
        step=learner.step,
        steps=learner.steps,
        losses=losses.loss,
        names=(task.name,),
        kept=torch.ones(1),
        lr=lr,
        samples=len(rows),
        seconds=time.perf_counter() - started,
    )


def _updater(learner: Learner, task: TaughtTask, config: SpecializeConfig) -> Update:
    if config.cuda_graph:
        return replayed(learner, [task], lambda inputs: _losses(learner.meta, task, inputs, config))

    def update(rows: Sequence[Tensor]) -> Losses:
        sums = Losses.zeros(1, learner.meta.coefficients.device)
        learner.update(_micro_losses(learner.meta, task, rows[0], config, sums))
        return sums

    return update


def _micro_losses(
    meta: MetaModel, task: TaughtTask, rows: Tensor, config: SpecializeConfig, sums: Losses
) -> Iterator[Tensor]:
    """Yields each micro-batch's part of the loss; adds to the sums."""
    for ((_, part),) in micro_batches([len(rows)], config.micro_batch):
        some = rows[part]
        loss, kept = _losses(meta, task, gather([task], [some]), config)
        loss = loss if len(some) == len(rows) else loss * (len(some) / len(rows))
        sums.loss.add_(loss.detach())
        sums.kept.add_(kept)
        yield loss.sum()


def _losses(meta: MetaModel, task: TaughtTask, inputs: Inputs, config: SpecializeConfig) -> Losses:
    """Computes equation 7. Like stage 1's, a graph can record it."""
    (rows,) = inputs.rows
    loss = reference.alignment(
        represent(meta.encode(inputs.images), task.head, config.representation),
        represent(task.features[rows], task.head, config.representation),
    )
    return Losses(loss.reshape(1), loss.new_full((1,), len(rows)))
