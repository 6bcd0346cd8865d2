# SPDX-License-Identifier: Apache-2.0
"""What λ goes down: stage 1's loss over all tasks (equations 2 to 6), stage 2's over one (7)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mdft_fast import reference
from mdft_fast.learning.config import ConstructConfig, Representation
from mdft_fast.learning.teachers import TaughtTask
from mdft_fast.model import Batch, joined, tensors_of
from mdft_fast.ops import debiased_entropy_loss
from mdft_fast.pool import Head


class Inputs(NamedTuple):
    """What a step computes with, on the meta-model's device.

    Attributes:
        batch: what the encoder takes, the tasks' samples one after another.
        rows: for each task int64 ``[B_k]``: which of its samples they are.
    """

    batch: Batch
    rows: tuple[Tensor, ...]


def gather(tasks: Sequence[TaughtTask], rows: Sequence[Tensor]) -> Inputs:
    """Returns the inputs of a step that drew these samples of these tasks."""
    batch = joined([task.batch(row) for task, row in zip(tasks, rows, strict=True)])
    device = next(tensors_of(batch)).device
    return Inputs(batch, tuple(row.to(device) for row in rows))


class Losses(NamedTuple):
    """What a step's forward pass gives.

    Attributes:
        loss: ``[K]``, each task's part of the objective; λ goes down their sum.
        kept: ``[K]``, how many of each task's samples count.
    """

    loss: Tensor
    kept: Tensor

    @staticmethod
    def zeros(tasks: int, device: torch.device) -> Losses:
        """Returns float32 zeros for K tasks: to add to, or to write to."""
        return Losses(
            torch.zeros(tasks, device=device, dtype=torch.float32),
            torch.zeros(tasks, device=device, dtype=torch.float32),
        )


class Encoded(NamedTuple):
    """A step's samples, or a part of them, encoded by the meta-model.

    Attributes:
        tasks: k of them.
        features: for each ``[B_k, D]``.
        rows: for each int64 ``[B_k]``: which of its samples they are.
        divide_by: float32 ``[k]``, the whole step's divisors, where this is a part: the parts'
            losses add up to the step's. None: it is all of it.
    """

    tasks: Sequence[TaughtTask]
    features: Sequence[Tensor]
    rows: Sequence[Tensor]
    divide_by: Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(abc.ABC):
    """Which samples a step draws, and the losses of what it drew.

    Attributes:
        tasks: the K tasks.
        samples: for each task int64 ``[n_k]``: the samples that a step may draw.
    """

    tasks: Sequence[TaughtTask]
    samples: Sequence[Tensor]

    @abc.abstractmethod
    def divisors(self, rows: Sequence[Tensor]) -> Tensor:
        """Returns what each task's loss over a step's rows is divided by, float32 ``[K]``."""

    @abc.abstractmethod
    def losses(self, encoded: Encoded) -> Losses:
        """Computes the losses of some tasks, one each.

        Nothing here waits for the device or depends on what tensors hold: a graph can record it.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class DebiasedEntropyObjective(Objective):
    """Equations 2 to 6, all tasks in one launch, as stage 1's configuration says."""

    config: ConstructConfig

    def divisors(self, rows: Sequence[Tensor]) -> Tensor:
        """See :class:`Objective`: the number of kept rows, or the sum of their weights."""
        divisors = []
        for task, some in zip(self.tasks, rows, strict=True):
            entropy = task.entropy[some.to(task.entropy.device)]
            options = self._filter_and_weight()
            divisors.append(reference.loss_divisor(entropy, task.classes, **options))
        return torch.stack(divisors)

    def losses(self, encoded: Encoded) -> Losses:
        """See :class:`Objective`."""
        config, (tasks, features, rows, divide_by) = self.config, encoded
        result = debiased_entropy_loss(
            [task.head(f) for task, f in zip(tasks, features, strict=True)],
            [task.logits[some] for task, some in zip(tasks, rows, strict=True)],
            alpha=config.alpha,
            entropy_of=config.entropy_of,
            use_entropy=config.use_entropy,
            divide_by=divide_by,
            **self._filter_and_weight(),
        )
        masks = result.kept.split([len(some) for some in rows])
        return Losses(result.loss, torch.stack([mask.sum() for mask in masks]))

    def _filter_and_weight(self) -> dict[str, Any]:
        config = self.config  # what was drawn as kept is kept
        filters = config.filter and config.draw == "batch"
        return {"mu": config.mu, "filter": filters, "reweight": config.reweight}


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentObjective(Objective):
    """Equation 7, for one task; ``representation`` says what is aligned."""

    representation: Representation

    def divisors(self, rows: Sequence[Tensor]) -> Tensor:
        """See :class:`Objective`: the number of rows."""
        sizes = [len(some) for some in rows]
        return torch.tensor(sizes, dtype=torch.float32, device=self.tasks[0].logits.device)

    def losses(self, encoded: Encoded) -> Losses:
        """See :class:`Objective`."""
        (task,), (features,), (rows,), divide_by = encoded
        loss = reference.alignment(
            self._represent(features, task.head), self._represent(task.features[rows], task.head)
        ).reshape(1)
        if divide_by is not None:
            loss = loss * (len(rows) / divide_by)
        return Losses(loss, loss.new_full((1,), len(rows)))

    def _represent(self, features: Tensor, head: Head) -> Tensor:
        if self.representation == "normalized":
            return F.normalize(features, dim=-1)
        return head(features) if self.representation == "logits" else features
