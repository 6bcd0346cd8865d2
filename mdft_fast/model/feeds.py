# SPDX-License-Identifier: Apache-2.0
"""Brings base and task vectors to where a piece is merged: from memory, a file or the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdft_fast.arena import TILE, Layout, TaskVectors
from mdft_fast.model.memory_advice import Advice, advise
from mdft_fast.model.partition import Piece, Range


class Operands(NamedTuple):
    """What the operators read of one range of a piece.

    Attributes:
        base: an arena that holds the range.
        vectors: task vectors over the same elements.
        layout: the arena's map.
        tiles: the range within it.
    """

    base: Tensor
    vectors: TaskVectors
    layout: Layout
    tiles: Range


class Feed(ABC):
    """Where the pieces' operands come from.

    Attributes:
        device: where they are read.
    """

    device: torch.device
    _base: Tensor
    _vectors: TaskVectors

    @property
    def versions(self) -> tuple[int, ...]:
        """Tells changes of base and task vectors in place apart."""
        return versions_of(self._base, self._vectors.codes, self._vectors.scales)

    @abstractmethod
    def take(self, piece: Piece, following: Piece | None = None) -> Sequence[Operands]:
        """Returns the operands of a piece's ranges, ready to be read on the current stream.

        They hold until two other pieces have been taken.

        Args:
            piece: what is merged now.
            following: what will most likely be merged next.
        """

    def find(self, piece: Piece, tensor: Tensor) -> int | None:
        """Returns which of a taken piece's tensors has this storage, None if the arena's."""
        return None

    def tensor(self, piece: Piece, number: int) -> Tensor:
        """Takes a piece again and returns the tensor that :meth:`find` numbered."""
        raise AssertionError("an arena is always at hand")


class ArenaFeed(Feed):
    """Reads the arenas where they are: in the device's memory, or in a mapped file.

    Args:
        base: ``[N]`` pre-trained arena.
        vectors: the task vectors.
        layout: their map.
        ahead: whether to tell the system which pages come next and which are done with: then a
            file larger than memory is read ahead of need.
    """

    def __init__(
        self, base: Tensor, vectors: TaskVectors, layout: Layout, *, ahead: bool = False
    ) -> None:
        self._base, self._vectors, self._layout = base, vectors, layout
        self._ahead, self.device = ahead, base.device
        self._last: Piece | None = None

    def take(self, piece: Piece, following: Piece | None = None) -> Sequence[Operands]:
        """See :class:`Feed`."""
        if self._ahead and piece is not self._last:
            self._advise(following, "needed")
            if self._last is not following:
                self._advise(self._last, "done")
            self._last = piece
        return [Operands(self._base, self._vectors, self._layout, r) for r in piece.ranges]

    def _advise(self, piece: Piece | None, what: Advice) -> None:
        for tiles in piece.ranges if piece is not None else ():
            for part in _parts(self._base, self._vectors, tiles):
                for row in part.unbind() if part.dim() == 2 else (part,):
                    advise(row, what)


class StagedFeed(Feed):
    """Copies each piece from the host into one of two buffers, ahead of need.

    While the device works on one piece, the next one is copied on a stream of its own.

    Args:
        base: ``[N]`` pre-trained arena on the host; :func:`pinned` for a GPU, so that copies need
            no thread.
        vectors: the task vectors on the host, likewise.
        layout: their map.
        pieces: all pieces.
        device: where the pieces go.
    """

    def __init__(
        self,
        base: Tensor,
        vectors: TaskVectors,
        layout: Layout,
        pieces: Sequence[Piece],
        device: torch.device,
    ) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._base, self._vectors = base, vectors
        self._layouts = {tiles: layout.cut(tiles) for p in pieces for tiles in p.ranges}
        self._slots: dict[str, _Slot] = {}  # at most two, the older one first
        self._copied = self.versions  # of what the slots were copied from

    def take(self, piece: Piece, following: Piece | None = None) -> Sequence[Operands]:
        """See :class:`Feed`."""
        if self._copied != self.versions:
            self._slots.clear()
            self._copied = self.versions
        if piece.name not in self._slots:
            self._fetch(piece)
        slot = self._slots.pop(piece.name)
        self._slots[piece.name] = slot
        if slot.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.ready)
        if following is not None and following.name not in self._slots:
            self._fetch(following)
        return slot.operands

    def find(self, piece: Piece, tensor: Tensor) -> int | None:
        """See :class:`Feed`."""
        tensors = enumerate(self._slots[piece.name].tensors)
        return next((i for i, staged in tensors if shares(staged, tensor)), None)

    def tensor(self, piece: Piece, number: int) -> Tensor:
        """See :class:`Feed`."""
        self.take(piece)
        return self._slots[piece.name].tensors[number]

    def _fetch(self, piece: Piece) -> None:
        while len(self._slots) > 1:
            del self._slots[next(iter(self._slots))]
        if self._stream is None:
            self._slots[piece.name] = self._copy(piece)
            return
        # What read the dropped buffer was launched before now: their memory may be used again.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            slot = self._copy(piece)
            ready = torch.cuda.Event()
            ready.record(self._stream)
        for tensor in slot.tensors:
            tensor.record_stream(torch.cuda.current_stream(self.device))
        self._slots[piece.name] = slot._replace(ready=ready)

    def _copy(self, piece: Piece) -> _Slot:
        tensors, operands = [], []
        for tiles in piece.ranges:
            parts = [self._there(part) for part in _parts(self._base, self._vectors, tiles)]
            vectors = TaskVectors(parts[1], self._vectors.codec, *parts[2:])
            layout = self._layouts[tiles]
            operands.append(Operands(parts[0], vectors, layout, (0, layout.tiles)))
            tensors += parts
        return _Slot(tuple(operands), tuple(tensors), None)

    def _there(self, part: Tensor) -> Tensor:
        there = torch.empty(part.shape, dtype=part.dtype, device=self.device)
        for to, row in zip(there, part, strict=True) if part.dim() == 2 else ((there, part),):
            to.copy_(row, non_blocking=True)  # row by row: a strided copy is not asynchronous
        return there


class _Slot(NamedTuple):
    operands: tuple[Operands, ...]
    tensors: tuple[Tensor, ...]
    ready: torch.cuda.Event | None


def shares(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors have one storage; fakes, which have no addresses, too."""
    same: bool = one.untyped_storage()._cdata == other.untyped_storage()._cdata
    return same


def versions_of(*tensors: Tensor | None) -> tuple[int, ...]:
    """Returns what changes with every change in place; of a tensor that has no version, -1."""
    return tuple(-1 if t.is_inference() else t._version for t in tensors if t is not None)


def _parts(base: Tensor, vectors: TaskVectors, tiles: Range) -> list[Tensor]:
    """Returns a range's base, codes and, where there are, scales; views."""
    first, last = tiles[0] * TILE, min(tiles[1] * TILE, base.shape[0])
    stored = [vectors.codes] if vectors.scales is None else [vectors.codes, vectors.scales]
    whole = base.shape[0]
    return [base[first:last]] + [
        s[:, first * s.shape[1] // whole : last * s.shape[1] // whole] for s in stored
    ]


def pinned(base: Tensor, vectors: TaskVectors) -> tuple[Tensor, TaskVectors]:
    """Returns arenas in memory from which a GPU copies by itself."""
    scales = None if vectors.scales is None else vectors.scales.pin_memory()
    return base.pin_memory(), TaskVectors(vectors.codes.pin_memory(), vectors.codec, scales)
