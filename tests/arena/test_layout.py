# SPDX-License-Identifier: Apache-2.0
"""The arena's map: slots, columns, tile plans, views."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdft_fast import MdftError
from mdft_fast.arena import TILE, Layout, name_means
from tests.ops.inputs import layouts, ranges

LAYOUT = Layout.of({"a": (3,), "none": (0,), "b": (2, 700), "c": ()})


def test_tensors_start_at_whole_tiles() -> None:
    assert [tuple(s) for s in LAYOUT.slots] == [
        ("a", (3,), 0, 0, 1),
        ("none", (0,), 1, 1, 1),
        ("b", (2, 700), 1, 2, 1),
        ("c", (), 3, 3, 1),
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


def test_by_row_numbers_the_rows_of_each_tensor() -> None:
    rows = Layout.of({"a": (3,), "b": (2, 700), "none": (4, 0), "c": (3, 2, 5), "d": ()}).by_row()
    assert rows.columns == ("a", "b", "none", "c", "d")
    assert rows.rows == (1, 2, 1, 3, 1)
    assert rows.L == 8
    assert [(s.column, s.rows) for s in rows.slots] == [(0, 1), (1, 2), (3, 1), (4, 3), (7, 1)]
    assert rows.cut((1, 3)).L == 8  # λ's columns stay
    assert rows.group({s.name: "all" for s in rows.slots}).L == 1
    assert name_means(torch.arange(8.0)[None], rows.rows).tolist() == [[0, 1.5, 3, 5, 7]]
    assert name_means(torch.arange(4.0), LAYOUT.rows).tolist() == [0, 1, 2, 3]


@given(layout=layouts(by_row=True), data=st.data())
def test_a_plan_by_row_finds_every_element_s_column(layout: Layout, data: st.DataObject) -> None:
    tiles = data.draw(ranges(layout))
    plan = layout.plan(torch.device("cpu"), tiles)
    length, phase = (x.tolist() for x in plan.rows.unbind(-1))
    for slot in layout.slots_in(tiles):
        for i in {0, slot.numel // 3, slot.numel // 2, slot.numel - 1} if slot.numel else ():
            tile, e = slot.tile - tiles[0] + i // TILE, i % TILE
            row = i // (slot.numel // slot.rows)
            assert plan.columns[tile] + (phase[tile] + e) // length[tile] == slot.column + row
    assert all(1 <= n <= TILE and 0 <= p < n for n, p in zip(length, phase, strict=True))
    merge = layout.plan(torch.device("cpu"), tiles, merge_alone=True)
    assert torch.equal(merge.columns, plan.columns)
    assert torch.equal(merge.rows, plan.rows)
    assert (merge.order.numel(), merge.starts.numel()) == (0, 0)
    own = [plan.order[a:b].tolist() for a, b in itertools.pairwise(plan.starts.tolist())]
    assert len(own) == layout.L
    columns = plan.columns.tolist()
    assert own == [[t for t, c in enumerate(columns) if c == column] for column in range(layout.L)]


@given(layout=layouts(by_row=False))
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
