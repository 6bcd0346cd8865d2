# SPDX-License-Identifier: Apache-2.0
"""Unlabelled inputs for methods that look at them: some of each task's samples, by seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.model import (
    Batch,
    Samples,
    UnlabelledTask,
    VariedSamples,
    generator_of,
    permutation,
    split,
)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskInputs:
    """What a method sees of a task.

    Attributes:
        name: the task's.
        samples: its unlabelled samples.
        indices: int64 ``[n]``, rising: which of them the method looks at.
        device: where batches go.
        copies: varied copies of each input that come after all of them.
        seed: of the copies.
    """

    name: str
    samples: Samples
    indices: Tensor
    device: torch.device
    copies: int = 0
    seed: int = 0

    def __len__(self) -> int:
        return len(self.indices) * (1 + self.copies)

    def some(self, count: int) -> TaskInputs:
        """Returns some of these inputs, spread evenly over them; all where there are fewer."""
        n = len(self.indices)
        at = torch.arange(min(count, n), device="cpu") * n // max(min(count, n), 1)
        return dataclasses.replace(self, indices=self.indices[at], copies=0)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields what the encoder takes, ``size`` samples at a time, in a fixed order."""
        for indices in self.indices.split(size):
            yield self.samples.batch(indices, self.device)
        if self.copies and isinstance(self.samples, VariedSamples):
            for copy in range(self.copies):
                seed = generator_of(f"{self.seed}/{self.name}/{copy}").initial_seed()
                for indices in self.indices.split(size):
                    yield self.samples.varied(indices, self.device, seed=seed)


@dataclasses.dataclass(frozen=True, eq=False)
class SamplesToLearn:
    """A task without the samples that the stages hold out, so that these can judge a method.

    Attributes:
        task: with all of its unlabelled samples.
        holdout: share that is held out, as :class:`~mdft_fast.ConstructConfig` has it.
        seed: of the split, likewise.
    """

    task: UnlabelledTask
    holdout: float
    seed: int

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def load_samples(self, preprocess: Mapping[str, Any]) -> Samples:
        """Returns the samples that are not held out."""
        samples = self.task.load_samples(preprocess)
        learn, _ = split(len(samples), self.holdout, self.seed, self.name)
        return (_SomeVaried if isinstance(samples, VariedSamples) else _Some)(samples, learn)


@dataclasses.dataclass(frozen=True, eq=False)
class _Some:
    """Some of a task's samples."""

    samples: Samples
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        return self.samples.batch(self.indices[indices], device)

    def digests(self) -> Any:
        return self.samples.digests()[self.indices.numpy()]


class _SomeVaried(_Some):
    """Some of a task's samples that can be varied."""

    def varied(self, indices: Tensor, device: torch.device, *, seed: int) -> Batch:
        assert isinstance(self.samples, VariedSamples)
        return self.samples.varied(self.indices[indices], device, seed=seed)


def inputs_of(
    tasks: Sequence[UnlabelledTask],
    names: Sequence[str],
    preprocess: Mapping[str, Any],
    *,
    samples: int,
    copies: int,
    seed: int,
    device: torch.device,
    who: str,
) -> list[TaskInputs]:
    """Returns each named task's inputs, in the order of ``names``.

    Args:
        tasks: hold the samples; in any order.
        names: of the pool's vectors.
        preprocess: the pool's.
        samples: how many of each task; all where there are fewer.
        copies: varied copies of each that are added.
        seed: which; equal seeds, equal samples.
        device: where batches go.
        who: the method, for errors.

    Raises:
        MdftError: if a task's samples are missing.
    """
    by_name = {task.name: task for task in tasks}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise MdftError(
            f"{who}: needs unlabelled inputs of every task, tasks=..., got none of {missing}"
        )
    inputs = []
    for name in names:
        held = by_name[name].load_samples(preprocess)
        if copies and not isinstance(held, VariedSamples):
            raise MdftError(
                f"{who}.copies: must be 0, as the samples of task {name!r} cannot be varied, got "
                f"{copies}"
            )
        order = permutation(len(held), f"{who}/{seed}/{name}")
        inputs.append(TaskInputs(name, held, order[:samples].sort().values, device, copies, seed))
    return inputs
