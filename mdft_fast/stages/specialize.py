# SPDX-License-Identifier: Apache-2.0
"""Stage 2: specialize the meta-model to one task (equation 7)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mdft_fast import reference
from mdft_fast.data import BatchOrder, Task
from mdft_fast.model import MetaModel
from mdft_fast.stages.config import SpecializeConfig
from mdft_fast.stages.learner import (
    Callback,
    Learner,
    RunResult,
    StepRecord,
    micro_batches,
    result_of,
)
from mdft_fast.stages.teachers import TaughtTask, represent, teach


def specialize(
    meta: MetaModel,
    task: Task | TaughtTask,
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
    """
    started = time.perf_counter()
    batch = config.micro_batch
    (taught,) = teach(meta, [task], holdout=config.holdout, seed=config.seed, batch=batch)
    order = BatchOrder(len(taught.learn), config.batch, config.seed, f"specialize/{taught.name}")
    learner = Learner(meta, config.optimizer, config.steps, {taught.name: order})
    learner.run(lambda: _step(learner, taught, config), callbacks, resume)
    return result_of(learner, time.perf_counter() - started)


def _step(learner: Learner, task: TaughtTask, config: SpecializeConfig) -> StepRecord:
    started = time.perf_counter()
    rows = task.learn[next(learner.orders[task.name])]
    total = torch.zeros(1, device=learner.meta.coefficients.device)

    def losses() -> Iterator[Tensor]:
        for ((_, part),) in micro_batches([len(rows)], config.micro_batch):
            some = rows[part]
            features = learner.meta.encode(task.images(some))
            target = task.features[some.to(features.device)]
            loss = reference.alignment(
                represent(features, task.head, config.representation),
                represent(target, task.head, config.representation),
            )
            loss = loss if len(some) == len(rows) else loss * (len(some) / len(rows))
            total.add_(loss.detach())
            yield loss

    lr = learner.advance(losses())
    return StepRecord(
        stage="specialize",
        task=task.name,
        step=learner.step,
        steps=learner.steps,
        losses=total,
        names=(task.name,),
        kept=torch.ones(1),
        lr=lr,
        samples=len(rows),
        seconds=time.perf_counter() - started,
    )
