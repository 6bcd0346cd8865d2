# SPDX-License-Identifier: Apache-2.0
"""Accuracy on labelled samples. It reads their labels and changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdft_fast.data import Choose, Samples, Task, compare_class_names, listed, load_labelled
from mdft_fast.errors import MdftError
from mdft_fast.model import MetaModel, batches_of

_BATCH = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model got right.

    Attributes:
        correct: task -> bool ``[n]``, one a test sample in the source's order.
        predicted: task -> int64 ``[n]``, the class that the model says.
    """

    correct: Mapping[str, Tensor]
    predicted: Mapping[str, Tensor]

    @property
    def accuracy(self) -> dict[str, float]:
        """Top-1 accuracy of each task, in [0, 1]."""
        return {name: float(hits.double().mean()) for name, hits in self.correct.items()}

    @property
    def average(self) -> float:
        """Mean of the tasks' accuracies."""
        return float(np.mean(list(self.accuracy.values())))


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
    """A task's labelled samples, loaded once. Labels int64 ``[n]``."""

    __test__ = False  # no test class, whatever pytest thinks of the name
    task: Task
    samples: Samples
    labels: Tensor

    def take(self, indices: Tensor) -> TestSet:
        """Returns some of the samples, int64 ``[m]``."""
        return TestSet(self.task, self.samples.take(indices), self.labels[indices])


def load_test_sets(
    tasks: Sequence[Task],
    preprocess: Mapping[str, Any],
    choose: Callable[[str], Choose | None] = lambda name: None,
) -> list[TestSet]:
    """Loads the labelled samples of the tasks that have any.

    Args:
        tasks: any.
        preprocess: size, mean, std.
        choose: from a task's name to which of its samples are wanted, see
            :func:`~mdft_fast.data.load_samples`.
    """
    tests = []
    for task in tasks:
        if task.evaluate is not None:
            on_disk = listed(task.evaluate)
            known = on_disk.listing("test") if on_disk is not None else None
            if known is not None and known.class_names is not None:
                where = f"task {task.name!r}"
                compare_class_names(known.class_names, known.name, task.class_names, where)
            classes, wanted = len(task.class_names), choose(task.name)
            labelled = load_labelled(task.evaluate, preprocess, classes, choose=wanted)
            tests.append(TestSet(task, *labelled))
    return tests


@torch.no_grad()
def evaluate(
    model: MetaModel | nn.Module,
    tasks: Sequence[Task | TestSet],
    *,
    preprocess: Mapping[str, Any] | None = None,
    batch: int | None = None,
) -> Evaluation:
    """Measures top-1 accuracy on each task's labelled samples.

    Args:
        model: a meta-model at its present λ, or a plain encoder ``[B, 3, H, W] -> [B, D]``.
        tasks: the tasks to measure, loaded or not; each needs labelled samples.
        preprocess: size, mean, std; may be left out for a meta-model, whose pool knows.
        batch: images encoded at once; None: 128.

    Returns:
        What was right, sample by sample.

    Raises:
        MdftError: if a task has no labelled samples, ``preprocess`` is missing, or a plain module
            is in training mode, where evaluating it would change it.
    """
    if not isinstance(model, MetaModel) and model.training:
        raise MdftError("evaluate: the module must be in eval mode, got training mode")
    if preprocess is None and isinstance(model, MetaModel):
        preprocess = model.pool.preprocess
    correct, predicted = {}, {}
    for task in tasks:
        test = task if isinstance(task, TestSet) else _load(task, preprocess)
        name = test.task.name
        predicted[name] = _predict(model, test, batch or _BATCH)
        correct[name] = predicted[name] == test.labels
    return Evaluation(correct, predicted)


def _load(task: Task, preprocess: Mapping[str, Any] | None) -> TestSet:
    if task.evaluate is None:
        raise MdftError(f"evaluate: task {task.name!r} must have labelled samples, got none")
    if preprocess is None:
        raise MdftError("evaluate: preprocess must be given with a plain module, got None")
    return load_test_sets([task], preprocess)[0]


def _predict(model: MetaModel | nn.Module, test: TestSet, batch: int) -> Tensor:
    encode = model.encode if isinstance(model, MetaModel) else model
    device = next(iter(model.parameters())).device
    head = test.task.head.to(device)
    classes = [
        head(encode(images)).argmax(-1).cpu() for images in batches_of(test.samples, batch, device)
    ]
    return torch.cat(classes)


def confusion(test: TestSet, predicted: Tensor) -> dict[str, list[Any]]:
    """Counts how often each class was taken for each, the right ones included.

    Args:
        test: the labelled samples.
        predicted: int64 ``[n]``, a model's classes, see :class:`Evaluation`.

    Returns:
        ``classes``, their C names, and the pairs that occur, by true class, then predicted one:
        ``true``, ``predicted`` and ``count``, lists of equal length.
    """
    pairs = torch.stack([test.labels, predicted])
    (true, taken), counts = torch.unique(pairs, dim=1, return_counts=True)
    return {
        "classes": list(test.task.class_names),
        "true": true.tolist(),
        "predicted": taken.tolist(),
        "count": counts.tolist(),
    }


def difference_interval(
    mine: Sequence[Tensor], other: Sequence[Tensor], *, draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Bootstraps the difference of two models' average accuracy on the same samples.

    Args:
        mine: for each task bool ``[n]``, right or wrong.
        other: the other model's, on the same samples.
        draws: number of resamples; test samples are drawn with replacement within each task.
        seed: of the resampling.

    Returns:
        ``difference`` (mine less other, mean over tasks) and the 95 % percentile interval
        ``low``, ``high``, on the scale [-1, 1].
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(draws)
    point = 0.0
    for a, b in zip(mine, other, strict=True):
        paired = a.numpy().astype(float) - b.numpy().astype(float)
        rows = generator.integers(0, len(paired), size=(draws, len(paired)))
        means += paired[rows].mean(1) / len(mine)
        point += paired.mean() / len(mine)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"difference": float(point), "low": float(low), "high": float(high)}
