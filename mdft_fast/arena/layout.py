# SPDX-License-Identifier: Apache-2.0
"""The arena's map: where each tensor lies, and which column of λ each tile reads.

An arena is one flat tensor. Each parameter starts at a multiple of ``TILE`` elements and is
padded with zeros up to the next one, so a tile belongs to exactly one tensor, and through it to
one column of the coefficients; with λ per output row, to the columns of the rows it holds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mdft_fast.errors import MdftError
from mdft_fast.late_imports import constant_to_compile

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # the test run executes these annotations
    from jaxtyping import Shaped

TILE = 1024  # elements; 4 KiB of float32: one memory page, and all running sums stay in L1


def makes_fakes() -> bool:
    """Returns whether tensors made now are fakes (of FakeTensorMode), which nobody may keep."""
    return type(torch.empty(0, dtype=torch.float32, device="cpu")) is not Tensor


class Slot(NamedTuple):
    """One tensor's place in the arena."""

    name: str
    shape: tuple[int, ...]
    tile: int  # its first tile
    column: int  # the first column of λ that scales it
    rows: int = 1  # how many do, one for each of its first dimension's rows where it is not 1

    @property
    def numel(self) -> int:
        """Number of elements, padding not counted."""
        return math.prod(self.shape)

    @property
    def tiles(self) -> int:
        """Number of tiles, the padded last one included."""
        return -(-self.numel // TILE)


class TilePlan(NamedTuple):
    """What the operators read of a layout, for one range of tiles.

    Attributes:
        columns: int32 ``[T]`` on the arena's device: tile -> column of λ.
        order: int32 ``[T]`` on the arena's device: the tiles, sorted by column.
        starts: int32 ``[L + 1]`` on the arena's device: column ``l`` owns
            ``order[starts[l]:starts[l + 1]]``.
        tensor_tiles: int64 ``[n + 1]`` on the CPU: first tile of each tensor of the range,
            counted from the range's start; the last entry is ``T``.
        first: the range's first tile, and ``last``: one past its last tile.
        rows: int32 ``[T, 2]`` on the arena's device, with λ per output row: length and phase of
            each tile's rows. Element e of tile t reads column ``columns[t] + (phase + e) //
            length``; a row longer than a tile counts as ``TILE`` long, which tells where it ends
            within a tile as well. None: one column a tile.
    """

    columns: Tensor
    order: Tensor
    starts: Tensor
    tensor_tiles: Tensor
    first: int
    last: int
    rows: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tensors in an arena and their columns of λ. Build with :meth:`of` or :meth:`single`.

    Attributes:
        slots: the tensors in arena order.
        columns: names of λ's columns.
        rows: how many columns each name stands for, one a row (:meth:`by_row`); None: one each.
    """

    slots: tuple[Slot, ...]
    columns: tuple[str, ...]
    rows: tuple[int, ...] | None = None
    _plans: dict[tuple[torch.device, tuple[int, int] | None, bool], TilePlan] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @staticmethod
    def of(shapes: Mapping[str, Iterable[int]]) -> Layout:
        """Lays tensors out in the given order, one column of λ per tensor."""
        slots, tile = [], 0
        for column, (name, shape) in enumerate(shapes.items()):
            slot = Slot(name, tuple(shape), tile, column)
            slots.append(slot)
            tile += slot.tiles
        return Layout(tuple(slots), tuple(shapes))

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def single(elements: int) -> Layout:
        """Returns the layout of one tensor of ``elements`` elements under one column."""
        return Layout.of({"all": (elements,)})

    @property
    def L(self) -> int:
        """``L``: number of λ's columns."""
        return len(self.columns) if self.rows is None else sum(self.rows)

    @property
    def tiles(self) -> int:
        """Number of tiles of the whole arena."""
        return self.slots[-1].tile + self.slots[-1].tiles if self.slots else 0

    @property
    def elements(self) -> int:
        """``N``: number of elements of an arena, padding included."""
        return self.tiles * TILE

    def group(self, column_of: Mapping[str, str]) -> Layout:
        """Returns the same arena with its tensors under coarser columns.

        Args:
            column_of: tensor name -> column name, for every tensor. Columns are numbered in the
                order in which the arena first meets them.
        """
        columns = tuple(dict.fromkeys(column_of[slot.name] for slot in self.slots))
        number = {name: i for i, name in enumerate(columns)}
        return Layout(
            tuple(
                slot._replace(column=number[column_of[slot.name]], rows=1) for slot in self.slots
            ),
            columns,
        )

    def by_row(self) -> Layout:
        """Returns the same arena with one column for each row of each tensor.

        A row is what lies under one index of a tensor's first dimension: the weights of one
        output. A tensor of one dimension or none has one column, as have those that are empty.
        """
        slots, column = [], 0
        for slot in self.slots:
            rows = slot.shape[0] if len(slot.shape) > 1 and slot.numel else 1
            slots.append(slot._replace(column=column, rows=rows))
            column += rows
        names = tuple(slot.name for slot in slots)
        return Layout(tuple(slots), names, tuple(slot.rows for slot in slots))

    def cut(self, tiles: tuple[int, int]) -> Layout:
        """Returns the layout of a range of tiles as an arena of its own; λ's columns stay."""
        first = tiles[0]
        slots = tuple(s._replace(tile=s.tile - first) for s in self.slots_in(tiles))
        return Layout(slots, self.columns, self.rows)

    def slots_in(self, tiles: tuple[int, int] | None) -> tuple[Slot, ...]:
        """Returns the tensors of a range of tiles, which must begin and end between tensors."""
        if tiles is None:
            return self.slots
        first, last = tiles
        inside = tuple(s for s in self.slots if first <= s.tile and s.tile + s.tiles <= last)
        if not 0 <= first <= last <= self.tiles or sum(s.tiles for s in inside) != last - first:
            raise MdftError(
                f"layout: tiles must be a range of [0, {self.tiles}] that begins and ends between "
                f"tensors, got {tiles}"
            )
        return inside

    def plan(
        self,
        device: torch.device,
        tiles: tuple[int, int] | None = None,
        *,
        merge_alone: bool = False,
    ) -> TilePlan:
        """Returns the index tensors that the operators read, made once per device and range.

        To ``torch.compile`` they are constants of the graph.

        Args:
            device: where the arena lies.
            tiles: a range that begins and ends between tensors; None: all.
            merge_alone: leaves ``order`` and ``starts`` empty, which ``merge_dots`` reads: with λ
                per row they are long, and each tensor of an export has a range of its own.
        """
        if tiles is not None:  # while compiling: numbers, no symbols
            tiles = operator.index(tiles[0]), operator.index(tiles[1])
        return self._kept_plan(device, tiles, merge_alone)

    @constant_to_compile
    def _kept_plan(
        self, device: torch.device, tiles: tuple[int, int] | None, merge_alone: bool
    ) -> TilePlan:
        if makes_fakes():
            return self._make_plan(device, tiles, merge_alone)
        key = (device, tiles, merge_alone)
        if key not in self._plans:
            self._plans[key] = self._make_plan(device, tiles, merge_alone)
        return self._plans[key]

    def _make_plan(
        self, device: torch.device, tiles: tuple[int, int] | None, merge_alone: bool
    ) -> TilePlan:
        slots = self.slots_in(tiles)
        first, last = tiles or (0, self.tiles)
        counts = torch.tensor([slot.tiles for slot in slots], dtype=torch.int64, device="cpu")
        # Output sizes that follow from shapes, not from data: fakes can make a plan too.
        slot_of = torch.arange(len(slots), device="cpu").repeat_interleave(
            counts, output_size=last - first
        )
        columns = torch.tensor([slot.column for slot in slots], dtype=torch.int64, device="cpu")[
            slot_of
        ]
        tensor_tiles = torch.cat(
            [torch.zeros(1, dtype=torch.int64, device="cpu"), counts.cumsum(0)]
        )
        rows = None
        if self.rows is not None:
            begins = (torch.arange(last - first, device="cpu") - tensor_tiles[:-1][slot_of]) * TILE
            lengths = [max(slot.numel // slot.rows, 1) for slot in slots]
            length = torch.tensor(lengths, dtype=torch.int64, device="cpu")[slot_of]
            columns = columns + begins // length
            capped = length.clamp(max=TILE)
            phase = capped - (length - begins % length).clamp(max=TILE)
            rows = torch.stack([capped, phase], -1).int().to(device)
        order = starts = torch.zeros(0, dtype=torch.int64, device="cpu")
        if not merge_alone:
            order = columns.argsort(stable=True)
            owned = torch.zeros(self.L, dtype=torch.int64, device="cpu")
            owned = owned.index_add(0, columns, torch.ones_like(columns))
            starts = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), owned.cumsum(0)])
        columns, order, starts = (x.int().to(device) for x in (columns, order, starts))
        return TilePlan(columns, order, starts, tensor_tiles, first, last, rows)

    def pack(self, tensors: Mapping[str, Tensor], *, who: str = "layout") -> Shaped[Tensor, "N"]:
        """Lays tensors out as an arena; :meth:`views` gives them back.

        Args:
            tensors: every tensor of the layout by its name and in its shape, floating, on one
                device.
            who: what errors call them.

        Returns:
            ``[N]`` in the dtype to which theirs promote, zero where no tensor lies.

        Raises:
            MdftError: if names, shapes, dtypes or devices break the rules above.

        Differentiable in ``tensors``.
        """
        self._check_tensors(tensors, who)
        parts = [torch.zeros(0, dtype=torch.float32, device="cpu")] if not self.slots else []
        for slot in self.slots:
            x = tensors[slot.name]
            parts += [x.reshape(-1), x.new_zeros(slot.tiles * TILE - slot.numel)]
        return torch.cat(parts)

    def _check_tensors(self, tensors: Mapping[str, Tensor], who: str) -> None:
        names = [slot.name for slot in self.slots]
        odd = sorted(set(names) ^ set(tensors))
        if odd:
            where = "missing" if odd[0] in names else "one too many"
            wanted = f"the layout's {len(names)} tensors"
            raise MdftError(f"{who}: must hold {wanted}, got {odd[0]!r} {where}")
        for slot in self.slots:
            x = tensors[slot.name]
            if x.shape != slot.shape or not x.is_floating_point():
                raise MdftError(
                    f"{who}: tensor {slot.name!r} must be floating and {list(slot.shape)}, got "
                    f"{x.dtype} and {list(x.shape)}"
                )
        devices = sorted({str(x.device) for x in tensors.values()})
        if len(devices) > 1:
            raise MdftError(f"{who}: tensors must be on one device, got {devices}")

    def views(
        self, arena: Shaped[Tensor, "N"], tiles: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Returns each tensor of an arena (or of a range of its tiles) as a view.

        Args:
            arena: ``[N]``, or ``[(last - first) * TILE]`` where ``tiles`` is given.
            tiles: a range ``(first, last)`` of tiles.
        """
        first = tiles[0] if tiles else 0
        views = []
        for slot in self.slots_in(tiles):
            start = (slot.tile - first) * TILE
            views.append(arena[start : start + slot.numel].view(slot.shape))
        return views


def plan_of_one(
    elements: int,
    device: torch.device,
    tiles: tuple[int, int] | None = None,
    *,
    merge_alone: bool = False,
) -> TilePlan:
    """Returns the plan of :meth:`Layout.single`; see :meth:`Layout.plan`."""
    return _plan_of_one(operator.index(elements), device, tiles, merge_alone)


@constant_to_compile
def _plan_of_one(
    elements: int, device: torch.device, tiles: tuple[int, int] | None, merge_alone: bool
) -> TilePlan:
    return Layout.single(elements).plan(device, tiles, merge_alone=merge_alone)


def name_means(coefficients: Tensor, rows: tuple[int, ...] | None) -> Tensor:
    """Returns λ ``[..., L]`` with one column a name of the layout: of a tensor's rows their mean.

    Args:
        coefficients: λ.
        rows: the layout's; None: a column a name already.
    """
    if rows is None:
        return coefficients
    parts = coefficients.double().split(list(rows), -1)
    return torch.stack([part.mean(-1) for part in parts], -1).to(coefficients.dtype)
