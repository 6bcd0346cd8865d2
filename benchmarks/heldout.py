# SPDX-License-Identifier: Apache-2.0
"""How near a model is to the teachers, on samples that nothing learned from; no labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.markdown import mean
from mdft_fast import MetaModel, reference
from mdft_fast.app.opening import Built
from mdft_fast.learning import TaughtTask
from mdft_fast.methods import Method, SamplesToLearn, apply
from mdft_fast.pool import Pool

_BATCH = 128


class Nearness(NamedTuple):
    """Means over the tasks, each over its held-out samples.

    Attributes:
        loss: cross-entropy of the teacher's softmax to the model's, in nats, as
            :func:`~mdft_fast.learning.holdout_cross_entropy` has it.
        agreement: share of samples for which model and teacher name the same class.
    """

    loss: float
    agreement: float


@torch.no_grad()
def nearness(meta: MetaModel, tasks: Sequence[TaughtTask], own: bool = False) -> Nearness:
    """Measures a meta-model at its present λ, or each task's own model on its task."""
    losses, agreements = [], []
    for task in tasks:
        if own:
            q = task.logits[task.holdout]
        else:
            q = torch.cat(
                [task.head(meta.encode(task.batch(i))) for i in task.holdout.split(_BATCH)]
            )
        p = task.logits[task.holdout]
        losses.append(float(reference.cross_entropy(p.softmax(-1), q).mean()))
        agreements.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    return Nearness(mean(losses), mean(agreements))


def merged_pool(
    built: Built, methods: Sequence[Method], tasks: Sequence[Any], holdout: float, seed: int
) -> Pool:
    """Returns the pool that methods make of a recipe's, without a look at held-out samples.

    Args:
        built: the recipe, opened.
        methods: in their order.
        tasks: with all their unlabelled samples.
        holdout: share of them that methods do not see.
        seed: of that split.
    """
    some = [SamplesToLearn(task, holdout, seed) for task in tasks]
    return apply(built.pool, methods, backbone=built.backbone, tasks=some, device=built.device)


def of_pool(tasks: Sequence[TaughtTask], pool: Pool) -> list[TaughtTask]:
    """Returns taught tasks for a pool with a start: its tasks' own models are the same."""
    return [dataclasses.replace(task, pool=pool.checksum) for task in tasks]
