# SPDX-License-Identifier: Apache-2.0
"""Which samples a step sees: an order of batches that a resumed run continues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.model import permutation


class BatchOrder(Iterator[Tensor]):
    """Draws batches of indices for ever, without replacement within an epoch.

    Every epoch has an order of its own, made from seed, stream and the epoch's number alone, so
    the whole state is two numbers. A batch that reaches an epoch's end goes on into the next one,
    so each has exactly ``batch`` items, also where there are fewer samples than that.

    Args:
        n: number of samples; 1 or more.
        batch: items a batch; 1 or more.
        seed: equal seeds, equal orders; no global generator is read or moved.
        stream: orders of different names are independent: the task's name.
    """

    def __init__(self, n: int, batch: int, seed: int, stream: str = "") -> None:
        """See the class."""
        if n < 1 or batch < 1:
            raise MdftError(f"batch order: n and batch must be 1 or more, got {n} and {batch}")
        self.n = n
        self.batch = batch
        self.seed = seed
        self.stream = stream
        self._epoch = 0
        self._position = 0
        self._order = self._order_of(0)

    def __next__(self) -> Tensor:
        """Returns the next batch: int64 ``[batch]`` on the CPU."""
        parts, missing = [], self.batch
        while missing:
            if self._position == self.n:
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
            part = self._order[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def state(self) -> dict[str, Any]:
        """Returns where the order stands, as plain JSON values."""
        return {
            "n": self.n,
            "batch": self.batch,
            "seed": self.seed,
            "stream": self.stream,
            "epoch": self._epoch,
            "position": self._position,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to where :meth:`state` was taken; the next batches are the same bit for bit."""
        for key, mine in self.state().items():
            if key not in state:
                raise MdftError(f"batch order: state lacks {key!r}, got {sorted(state)}")
            if key not in ("epoch", "position") and state[key] != mine:
                raise MdftError(
                    f"batch order: {key} of the state must be {mine!r}, got {state[key]!r}"
                )
        epoch, position = state["epoch"], state["position"]
        if type(epoch) is not int or type(position) is not int:
            raise MdftError(f"batch order: epoch and position must be int, got {dict(state)}")
        if epoch < 0 or not 0 <= position <= self.n:
            raise MdftError(
                f"batch order: state must have epoch >= 0 and position in [0, {self.n}], got "
                f"{epoch} and {position}"
            )
        self._epoch, self._position = epoch, position
        self._order = self._order_of(epoch)

    def _order_of(self, epoch: int) -> Tensor:
        return permutation(self.n, f"order/{self.seed}/{self.stream}/{epoch}")
