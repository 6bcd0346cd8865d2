# SPDX-License-Identifier: Apache-2.0
"""A greedy soup: the mean of those models that lower the distance to all teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from mdft_fast import reference
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.method import InputMerge, Watch, mean_of
from mdft_fast.model import MetaModel
from mdft_fast.options import Positive, check
from mdft_fast.pool import Pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreedySoup(InputMerge):
    """Takes the mean of the models that lower the cross-entropy to all teachers, greedily.

        loss(A) = mean over tasks k of CE(model k, mean of the models in A) on inputs of task k
        A = {the model of least loss}; the others join in the order of their losses, each only
        where that lowers loss(A)

    The paper has models of one task and labels; here each task's own model says what is right.

    Attributes:
        samples: unlabelled inputs a task that losses are of.
    """

    samples: Positive = 96

    name = "greedy_soup"
    source = "arXiv:2203.05482, with teachers instead of labels"

    def __post_init__(self) -> None:
        check(self, self.name)

    @torch.no_grad()
    def merge_model(
        self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs], watch: Watch
    ) -> Mapping[str, Tensor]:
        """See the class; ties are decided by the pool's order."""
        device = inputs[0].device
        meta = MetaModel(backbone, pool, granularity="task", device=device)
        soup = _chosen(len(inputs), _Losses(meta, inputs, self.batch))
        merged = {}
        for slot in pool.layout.slots:
            deltas = pool.vectors.of_slot(slot).decode()[soup, : slot.numel]
            merged[slot.name] = mean_of(deltas).view(slot.shape)
        return merged


def _chosen(models: int, loss: Callable[[Collection[int]], float]) -> list[int]:
    """Returns which models make the soup, rising."""
    alone = [loss([k]) for k in range(models)]
    first, *others = sorted(range(models), key=alone.__getitem__)
    soup, least = [first], alone[first]
    for k in others:
        if (joined := loss([*soup, k])) < least:
            soup, least = [*soup, k], joined
    return sorted(soup)


class _Losses:
    """The mean distance of a soup to the teachers."""

    def __init__(self, meta: MetaModel, inputs: Sequence[TaskInputs], batch: int) -> None:
        self._meta, self._inputs, self._batch = meta, inputs, batch
        self._answers = []
        for k, task in enumerate(inputs):
            meta.set_coefficients(self._mean([k]))
            self._answers.append(self._logits(task).softmax(-1))

    def __call__(self, soup: Collection[int]) -> float:
        """Returns the mean over tasks, in nats."""
        self._meta.set_coefficients(self._mean(soup))
        losses = [
            reference.cross_entropy(answers, self._logits(task)).double().mean()
            for task, answers in zip(self._inputs, self._answers, strict=True)
        ]
        return float(sum(losses)) / len(losses)

    def _mean(self, soup: Collection[int]) -> list[float]:
        return [1 / len(soup) if k in soup else 0.0 for k in range(len(self._inputs))]

    def _logits(self, task: TaskInputs) -> Tensor:
        batches = task.batches(self._batch)
        return torch.cat([self._meta(batch, task.name) for batch in batches])
