# SPDX-License-Identifier: Apache-2.0
"""The arena's map: slots, columns, tile plans, views."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from mdft_fast import MdftError
from mdft_fast.arena import TILE, Layout
from tests.ops.inputs import layouts

LAYOUT = Layout.of({"a": (3,), "none": (0,), "b": (2, 700), "c": ()})


def test_tensors_start_at_whole_tiles() -> None:
    assert [tuple(s) for s in LAYOUT.slots] == [
        ("a", (3,), 0, 0),
        ("none", (0,), 1, 1),
        ("b", (2, 700), 1, 2),
        ("c", (), 3, 3),
    ]
    assert [(s.numel, s.tiles) for s in LAYOUT.slots] == [(3, 1), (0, 0), (1400, 2), (1, 1)]
    assert LAYOUT.columns == ("a", "none", "b", "c")
    assert (LAYOUT.tiles, LAYOUT.elements) == (4, 4 * TILE)


def test_no_tensor_at_all() -> None:
    empty = Layout.of({})
    assert (empty.tiles, empty.elements, empty.columns) == (0, 0, ())
    plan = empty.plan(torch.device("cpu"))
    assert [x.tolist() for x in plan[:4]] == [[], [], [0], [0]]
    assert empty.views(torch.empty(0)) == []


def test_single() -> None:
    layout = Layout.single(TILE + 1)
    assert (layout.tiles, layout.columns) == (2, ("all",))
    assert Layout.single(0).tiles == 0


def test_group_numbers_columns_as_the_arena_meets_them() -> None:
    coarse = LAYOUT.group({"a": "tail", "none": "tail", "b": "head", "c": "tail"})
    assert coarse.columns == ("tail", "head")
    assert [s.column for s in coarse.slots] == [0, 0, 1, 0]
    assert [s.tile for s in coarse.slots] == [s.tile for s in LAYOUT.slots]
    with pytest.raises(KeyError, match="none"):
        LAYOUT.group({"a": "x"})


@given(layout=layouts())
def test_a_plan_says_the_same_in_three_ways(layout: Layout) -> None:
    plan = layout.plan(torch.device("cpu"))
    owner = [s.column for s in layout.slots for _ in range(s.tiles)]
    assert plan.columns.tolist() == owner
    assert plan.order.tolist() == sorted(range(layout.tiles), key=lambda t: (owner[t], t))
    for column in range(len(layout.columns)):
        own = plan.order[plan.starts[column] : plan.starts[column + 1]].tolist()
        assert own == [t for t in range(layout.tiles) if owner[t] == column]
    assert plan.tensor_tiles.tolist() == [*(s.tile for s in layout.slots), layout.tiles]
    assert [x.dtype for x in plan[:4]] == [torch.int32] * 3 + [torch.int64]
    assert (plan.first, plan.last) == (0, layout.tiles)


@given(layout=layouts())
def test_a_plan_of_a_range_counts_from_its_start(layout: Layout) -> None:
    whole = layout.plan(torch.device("cpu"))
    for slot in layout.slots:
        tiles = (slot.tile, slot.tile + slot.tiles)
        plan = layout.plan(torch.device("cpu"), tiles)
        assert torch.equal(plan.columns, whole.columns[tiles[0] : tiles[1]])
        assert sorted(plan.order.tolist()) == list(range(slot.tiles))
        assert plan.tensor_tiles[-1] == slot.tiles
        assert (plan.first, plan.last) == tiles


def test_a_plan_is_made_once_for_each_device_and_range() -> None:
    cpu = torch.device("cpu")
    assert LAYOUT.plan(cpu) is LAYOUT.plan(cpu)
    assert LAYOUT.plan(cpu, (0, 1)) is LAYOUT.plan(cpu, (0, 1))
    assert LAYOUT.plan(torch.device("meta")).columns.is_meta
    twin = Layout.of({s.name: s.shape for s in LAYOUT.slots})
    assert twin == LAYOUT  # plans are no part of what a layout is
    assert hash(twin) == hash(LAYOUT)
    assert "plans" not in repr(LAYOUT)


@given(layout=layouts())
def test_views_cover_the_arena_but_for_padding(layout: Layout) -> None:
    arena = torch.zeros(layout.elements)
    for i, view in enumerate(layout.views(arena)):
        assert view.shape == layout.slots[i].shape
        view.fill_(i + 1)
    for i, slot in enumerate(layout.slots):
        start = slot.tile * TILE
        assert (arena[start : start + slot.numel] == i + 1).all()
        assert not arena[start + slot.numel : start + slot.tiles * TILE].any()
    assert (arena != 0).sum() == sum(math.prod(s.shape) for s in layout.slots)


def test_views_of_a_range() -> None:
    part = torch.arange(2.0 * TILE)
    views = LAYOUT.views(part, (1, 3))
    assert [tuple(v.shape) for v in views] == [(0,), (2, 700)]
    assert views[1].data_ptr() == part.data_ptr()


@pytest.mark.parametrize("tiles", [(0, 2), (2, 3), (-1, 1), (3, 5), (3, 1)])
def test_a_range_must_begin_and_end_between_tensors(tiles: tuple[int, int]) -> None:
    for method in (LAYOUT.slots_in, lambda t: LAYOUT.plan(torch.device("cpu"), t)):
        with pytest.raises(MdftError, match=r"layout: tiles must be a range of \[0, 4\]") as error:
            method(tiles)
        assert str(error.value).endswith(f"got {tiles}")
