# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mdft_fast.model import batches_of

CPU = torch.device("cpu")


class Numbers:
    """So many samples, each its own number; one of them cannot be read."""

    def __init__(self, count: int, broken: int = -1) -> None:
        self._count, self._broken = count, broken

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        if self._broken in indices.tolist():
            raise OSError("gone")
        return indices.to(device, torch.float32)

    def digests(self) -> np.ndarray:
        return np.zeros((self._count, 16), np.uint8)


def taken(batches: Iterator[Tensor]) -> Iterator[list[float]]:
    for batch in batches:
        yield batch.tolist()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_all_samples_come_in_order(count: int, ahead: bool) -> None:
    batches = list(taken(batches_of(Numbers(count), 3, CPU, ahead=ahead)))
    assert [n for batch in batches for n in batch] == list(range(count))
    assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)


@pytest.mark.parametrize("ahead", [False, True])
def test_what_cannot_be_read_is_said_in_its_turn(ahead: bool) -> None:
    batches = taken(batches_of(Numbers(7, broken=4), 3, CPU, ahead=ahead))
    assert next(batches) == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_one_that_is_not_read_to_its_end_leaves_no_thread() -> None:
    before = threading.active_count()
    batches = batches_of(Numbers(7), 3, CPU, ahead=True)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
