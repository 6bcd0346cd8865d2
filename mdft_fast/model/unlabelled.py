# SPDX-License-Identifier: Apache-2.0
"""What may be known of a task before learning: its unlabelled samples, and a split of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt
import torch
from torch import Tensor

from mdft_fast.checkpoints import Batch
from mdft_fast.errors import MdftError

HOLDOUT = 0.2  # share of the unlabelled samples that are for choices and measurements alone


class Samples(Protocol):
    """Unlabelled samples, and what the encoder takes of some of them."""

    def __len__(self) -> int:
        """Returns their number."""
        ...

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        """Returns some samples, int64 ``[b]`` indices, as one batch of b rows on a device."""
        ...

    def digests(self) -> npt.NDArray[Any]:
        """Returns what tells samples apart, uint8 ``[n, 16]``; equal samples, equal rows."""
        ...


@runtime_checkable
class VariedSamples(Protocol):
    """Samples that can be changed a little and stay what they are."""

    def varied(self, indices: Tensor, device: torch.device, *, seed: int) -> Batch:
        """Returns some samples as a batch, each changed as the seed says."""
        ...


class UnlabelledTask(Protocol):
    """What stages and methods may know of a task; :class:`mdft_fast.Task` is one."""

    @property
    def name(self) -> str:
        """One of the pool's tasks."""
        ...

    def load_samples(self, preprocess: Mapping[str, Any]) -> Samples:
        """Returns its unlabelled samples for a pool's preprocess."""
        ...


def batches_of(
    samples: Samples, size: int, device: torch.device, *, ahead: bool | None = None
) -> Iterator[Batch]:
    """Yields all samples in order, ``size`` at once but for the last batch.

    Args:
        samples: any.
        size: samples a batch.
        device: where the batches go.
        ahead: whether a thread prepares the next batch while one is used; None: where the device
            is not the CPU, which has nothing to spare for it.
    """
    parts = torch.arange(len(samples), device="cpu").split(size)
    if not (device.type != "cpu" if ahead is None else ahead):
        yield from (samples.batch(indices, device) for indices in parts)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="mdft-batches") as worker:
        following = worker.submit(samples.batch, parts[0], device)
        for indices in parts[1:]:
            current, following = following, worker.submit(samples.batch, indices, device)
            yield current.result()
        yield following.result()


def split(n: int, holdout: float, seed: int, stream: str = "") -> tuple[Tensor, Tensor]:
    """Splits n samples at random into those to learn from and those held out.

    Args:
        n: number of samples; 1 or more.
        holdout: share to hold out, in [0, 1). At least one sample is left to learn from; where
            the share is above 0 and n above 1, at least one is held out.
        seed: equal seeds, equal splits; no global generator is read or moved.
        stream: splits of different names are independent: the task's name.

    Returns:
        The learning and the held-out indices, int64, each in rising order; together they are
        0..n-1.
    """
    if n < 1:
        raise MdftError(f"split: n must be 1 or more, got {n}")
    if not 0 <= holdout < 1:
        raise MdftError(f"split: holdout must be in [0, 1), got {holdout}")
    count = min(max(round(n * holdout), 1 if holdout > 0 else 0), n - 1)
    order = permutation(n, f"split/{seed}/{stream}")
    return order[count:].sort().values, order[:count].sort().values


def permutation(n: int, key: str) -> Tensor:
    """Returns a permutation of 0..n-1 that depends on n and the key alone, int64."""
    return torch.randperm(n, generator=generator_of(key), device="cpu")


def generator_of(key: str) -> torch.Generator:
    """Returns a generator for the host whose draws depend on the key alone."""
    # Hashed, so that near seeds and epochs share nothing; 63 bits, since manual_seed is signed.
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)
