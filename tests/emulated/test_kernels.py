# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels have and the CPU's have not: packs, warps, tables, unchecked indices.

``grid`` says where they run: here over the emulated grid, in tests/cuda on a GPU.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast import reference
from mdft_fast.arena import GROUP, TILE, Layout, TaskVectors, TilePlan
from tests.grid import Grid
from tests.ops.inputs import (
    F32,
    F64,
    NARROW,
    assert_dots_by,
    assert_merges_by,
    make_arena,
    make_grads,
    name,
    split,
)

K_VALUES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17]  # full chunks of 8, and every kind of rest
PAIRS = [*itertools.product(NARROW, (*NARROW, "int8", "int4")), (F64, F64)]  # base, deltas
LAYOUT = Layout.of({"a": (3000,), "b": (), "c": (64, 64), "d": (1, 2049)})


def displaced(x: Any, by: int = 1) -> Any:
    """Returns the same numbers, not aligned to 16 bytes."""
    if isinstance(x, TaskVectors):
        return dataclasses.replace(x, codes=displaced(x.codes, by))
    room = x.new_empty(x.numel() + by)
    room[by:] = x.flatten()
    return room[by:].view(x.shape)


def plan_of(columns: list[int], L: int, N: int, device: torch.device) -> TilePlan:
    """Returns a plan in which tile t reads columns[t]."""
    tiles = torch.tensor(columns, dtype=torch.int64)
    starts = torch.cat([torch.zeros(1).long(), tiles.bincount(minlength=L).cumsum(0)])
    return TilePlan(
        tiles.int().to(device), tiles.argsort(stable=True).int().to(device),
        starts.int().to(device), torch.tensor([0, len(columns)]), 0, -(-N // TILE),
    )  # fmt: skip


def merge(grid: Grid, arena: Any, plan: TilePlan, out: torch.dtype = F32) -> Tensor:
    result: Tensor = grid.ops.merge(*arena.stored(), plan.columns, plan.first, plan.last, out)
    return result


def dots(grid: Grid, grads: Any, deltas: Any, plan: TilePlan) -> Tensor:
    result: Tensor = grid.ops.merge_dots(
        grads, *split(deltas), plan.order, plan.starts, plan.tensor_tiles, plan.first, plan.last
    )
    return result


def assert_merges(got: Tensor, arena: Any, plan: TilePlan) -> None:
    # Sums, a product in the reference, lambda by scale.
    assert_merges_by(got, arena, plan, len(arena.coefficients) + 2)


def assert_dots(got: Tensor, grads: list[Any], deltas: Any, plan: TilePlan) -> None:
    # Then 1 or 2 levels, and 5 of the warp. Of int8 it is 4, 2 levels and 2 scales; of int4 8, 2
    # levels and 1 scale.
    elements_of_a_lane = 16 if got.dtype == F64 else 9 if isinstance(deltas, TaskVectors) else 8
    assert_dots_by(got, grads, deltas, plan, elements_of_a_lane + 7, len(plan.order))


# ---- merge


@pytest.mark.parametrize("dtypes", PAIRS, ids=name)
@pytest.mark.parametrize("K", K_VALUES)
def test_merge_any_number_of_vectors(K: int, dtypes: Any, grid: Grid) -> None:
    N = 5 * TILE + (GROUP if isinstance(dtypes[1], str) else 40)  # a partial tile of whole packs
    arena = make_arena(K, Layout.of({"a": (TILE,), "b": (N - TILE,), "unused": (0,)}),
                       grid.device, base=dtypes[0], deltas=dtypes[1], elements=N)  # fmt: skip
    plan = plan_of([0, 2, 1, 1, 0, 2], 3, N, grid.device)
    got = merge(grid, arena, plan, dtypes[0])
    assert_merges(got, arena, plan)


@pytest.mark.parametrize("dtypes", PAIRS, ids=name)
@pytest.mark.parametrize("what", ["base", "deltas", "out", "rows"])
def test_merge_bits_do_not_depend_on_alignment(what: str, dtypes: Any, grid: Grid) -> None:
    packed = isinstance(dtypes[1], str)
    out_dtype = dtypes[0] if packed else dtypes[1]
    N = 2 * TILE + (GROUP if packed else 24)
    arena = make_arena(9, LAYOUT, grid.device, base=dtypes[0], deltas=dtypes[1], elements=N)
    plan = plan_of([1, 0, 2], 4, N, grid.device)
    wanted = merge(grid, arena, plan, out_dtype)
    if what == "rows" and packed:
        pytest.skip("rows of codes are whole groups")
    if what == "rows":  # N odd: every second row begins between packs
        arena = type(arena)(arena[0][:-1], arena[1][:, :-1].contiguous(), arena[2])
        assert torch.equal(merge(grid, arena, plan, out_dtype), wanted[:-1])
        return
    if what != "out":
        arena = arena._replace(**{what: displaced(getattr(arena, what))})
    out = torch.full_like(wanted, torch.nan)
    out = displaced(out) if what == "out" else out
    grid.ops.merge_out(*arena.stored(), plan.columns, plan.first, plan.last, out)
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("bad", [-1, 4, -(2**31), 2**31 - 1])
def test_merge_makes_a_tile_of_a_wrong_column_nan(bad: int, grid: Grid) -> None:
    arena = make_arena(9, LAYOUT, grid.device)
    plan = LAYOUT.plan(grid.device)
    wanted = merge(grid, arena, plan)
    columns = plan.columns.clone()
    columns[4] = bad
    got = merge(grid, arena, plan._replace(columns=columns))
    assert got[4 * TILE : 5 * TILE].isnan().all()
    wanted[4 * TILE : 5 * TILE] = got[4 * TILE : 5 * TILE] = 0
    assert torch.equal(got, wanted)


def test_merge_writes_a_range_of_tiles_and_no_more(grid: Grid) -> None:
    arena = make_arena(8, LAYOUT, grid.device)
    whole = merge(grid, arena, LAYOUT.plan(grid.device))
    tiles = (3, 8)
    plan = LAYOUT.plan(grid.device, tiles)
    room = torch.full((5 * TILE + 32,), -1.0, device=grid.device)
    grid.ops.merge_out(*arena.stored(), plan.columns, *tiles, room[16:-16])
    assert torch.equal(room[16:-16], whole[3 * TILE : 8 * TILE])
    assert (room[:16] == -1).all()
    assert (room[-16:] == -1).all()


# ---- merge_dots


@pytest.mark.parametrize("dtypes", PAIRS, ids=name)
@pytest.mark.parametrize("K", K_VALUES)
def test_dots_any_number_of_vectors(K: int, dtypes: Any, grid: Grid) -> None:
    plan = LAYOUT.plan(grid.device)
    deltas = make_arena(K, LAYOUT, grid.device, deltas=dtypes[1]).deltas
    grads = make_grads(LAYOUT, grid.device, dtypes[0])
    assert_dots(dots(grid, grads, deltas, plan), grads, deltas, plan)


@pytest.mark.parametrize("count", [255, 256, 257, 600])
def test_dots_of_more_tensors_than_a_table_holds(count: int, grid: Grid) -> None:
    layout = Layout.of({f"t{i}": (i * 37 % 1100,) for i in range(count)})
    layout = layout.group({f"t{i}": f"c{i % 5}" for i in range(count)})
    plan = layout.plan(grid.device)
    deltas = make_arena(3, layout, grid.device).deltas
    grads = [None if i % 7 == 3 else g for i, g in enumerate(make_grads(layout, grid.device))]
    assert_dots(dots(grid, grads, deltas, plan), grads, deltas, plan)
    absent = [None if i < 256 else g for i, g in enumerate(grads)]  # the whole first table
    assert_dots(dots(grid, absent, deltas, plan), absent, deltas, plan)


@pytest.mark.parametrize("dtypes", PAIRS, ids=name)
def test_dots_bits_do_not_depend_on_alignment(dtypes: Any, grid: Grid) -> None:
    N = 3 * TILE
    layout = Layout.of({"a": (N,)})
    plan = layout.plan(grid.device)
    deltas = make_arena(3, layout, grid.device, deltas=dtypes[1]).deltas
    (grad,) = make_grads(layout, grid.device, dtypes[0])
    wanted = dots(grid, [grad], deltas, plan)
    assert torch.equal(dots(grid, [displaced(grad)], deltas, plan), wanted)
    assert torch.equal(dots(grid, [grad], displaced(deltas), plan), wanted)
    if isinstance(deltas, TaskVectors):
        return
    # A tail of zeros adds nothing, and is read one element at a time.
    grad[-1] = 0
    deltas_odd = deltas[:, :-1].contiguous()
    wanted = dots(grid, [grad], deltas, plan)
    assert torch.equal(dots(grid, [grad[:-1]], deltas_odd, plan), wanted)


def test_dots_of_a_column_that_owns_every_tile(grid: Grid) -> None:
    layout = Layout.of({"a": (4999 * TILE + 1,)})  # more than two rounds of 8 x 256 tiles
    plan = layout.plan(grid.device)
    deltas = make_arena(1, layout, grid.device).deltas
    grads = make_grads(layout, grid.device)
    assert_dots(dots(grid, grads, deltas, plan), grads, deltas, plan)


def test_dots_of_a_wrong_index_are_nan(grid: Grid) -> None:
    plan = LAYOUT.plan(grid.device)
    deltas = make_arena(2, LAYOUT, grid.device).deltas
    grads = make_grads(LAYOUT, grid.device)
    wanted = dots(grid, grads, deltas, plan)
    order = plan.order.clone()
    order[3] = len(order)  # the tile of column 1
    got = dots(grid, grads, deltas, plan._replace(order=order))
    assert got[:, 1].isnan().all()
    assert torch.equal(got[:, [0, 2, 3]], wanted[:, [0, 2, 3]])
    starts = plan.starts.clone()
    starts[-1] = len(order) + 1
    got = dots(grid, grads, deltas, plan._replace(starts=starts))
    assert got[:, 3].isnan().all()
    assert torch.equal(got[:, :3], wanted[:, :3])


# ---- by row

# Rows that end between packs and within, in every step of a warp, and many in a pack.
BY_ROW = Layout.of(
    {"a": (30, 192), "b": (3, 2500), "c": (29, 147), "d": (1500, 2), "e": (5,), "f": (70, 33)}
).by_row()


def merge_by_row(grid: Grid, arena: Any, plan: TilePlan, out: torch.dtype = F32) -> Tensor:
    args = (*arena.stored(), plan.columns, plan.first, plan.last, out, plan.rows)
    result: Tensor = grid.ops.merge(*args)
    return result


def dots_by_row(grid: Grid, grads: Any, deltas: Any, plan: TilePlan) -> Tensor:
    index = plan.order, plan.starts, plan.tensor_tiles, plan.first, plan.last
    args = (grads, *split(deltas), *index, plan.columns, plan.rows)
    result: Tensor = grid.ops.merge_dots(*args)
    return result


@pytest.mark.parametrize("dtypes", PAIRS, ids=name)
@pytest.mark.parametrize("K", K_VALUES)
def test_rows_of_any_number_of_vectors(K: int, dtypes: Any, grid: Grid) -> None:
    plan = BY_ROW.plan(grid.device)
    arena = make_arena(K, BY_ROW, grid.device, base=dtypes[0], deltas=dtypes[1])
    assert_merges(merge_by_row(grid, arena, plan, dtypes[0]), arena, plan)
    grads = make_grads(BY_ROW, grid.device, dtypes[0])
    got = dots_by_row(grid, grads, arena.deltas, plan)
    # Of an element at most a pack's sum, 1 or 2 ends, 5 levels a step, and the steps' carries.
    assert_dots_by(got, grads, arena.deltas, plan, 32 + 3 + 8 * 7, BY_ROW.tiles)


@pytest.mark.parametrize("dtypes", PAIRS, ids=name)
def test_bits_by_row_do_not_depend_on_alignment(dtypes: Any, grid: Grid) -> None:
    plan = BY_ROW.plan(grid.device)
    arena = make_arena(9, BY_ROW, grid.device, base=dtypes[0], deltas=dtypes[1])
    grads = make_grads(BY_ROW, grid.device, dtypes[0])
    out = F64 if dtypes[0] == F64 else F32
    wanted = merge_by_row(grid, arena, plan, out), dots_by_row(grid, grads, arena.deltas, plan)
    for what in ("base", "deltas"):
        moved = arena._replace(**{what: displaced(getattr(arena, what))})
        assert torch.equal(merge_by_row(grid, moved, plan, out), wanted[0])
    shifted = [displaced(g) for g in grads]
    assert torch.equal(dots_by_row(grid, shifted, displaced(arena.deltas), plan), wanted[1])


def test_wrong_rows_are_nan_and_write_nowhere_else(grid: Grid) -> None:
    plan = BY_ROW.plan(grid.device)
    arena = make_arena(3, BY_ROW, grid.device)
    grads = make_grads(BY_ROW, grid.device)
    merged, dots = merge_by_row(grid, arena, plan), dots_by_row(grid, grads, arena.deltas, plan)
    for length, phase in ((0, 0), (-3, 0), (TILE + 1, 0), (5, 5), (5, -1)):
        rows = plan.rows.clone()
        rows[2] = rows.new_tensor([length, phase])
        wrong = plan._replace(rows=rows)
        got = merge_by_row(grid, arena, wrong)
        assert got[2 * TILE : 3 * TILE].isnan().all()
        assert torch.equal(got[3 * TILE :], merged[3 * TILE :])
        got = dots_by_row(grid, grads, arena.deltas, wrong)
        assert got[:, plan.columns[2]].isnan().all()
        assert torch.equal(got[:, 30:], dots[:, 30:])
    beyond = plan._replace(columns=plan.columns + 1)  # the last tile's rows reach beyond lambda
    dots_by_row(grid, grads, arena.deltas, beyond)
    assert merge_by_row(grid, arena, beyond).isfinite().all()


# ---- debiased_entropy

SWITCHES = {
    "paper": (1.0, 0.4, True, True, 1, False),
    "meta": (2.5, 0.4, True, True, 2, True),
    "unfiltered": (0.5, 0.4, False, False, 0, False),
}


def ragged(device: torch.device, counts: list[int], classes: list[int], dtype: Any) -> list[Any]:
    """Returns the operator's tensors for tasks of `counts` rows, whose sizes run over classes."""
    random = torch.Generator().manual_seed(3)
    sizes = [classes[r % len(classes)] for r in range(sum(counts))]
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    tasks = torch.tensor([0, *itertools.accumulate(counts)])
    sure = (torch.rand(len(sizes), generator=random) * 6).repeat_interleave(torch.tensor(sizes))
    z = torch.randn(sum(sizes), generator=random) * 3
    t = torch.randn(sum(sizes), generator=random) * sure
    return [z.to(device, dtype), t.to(device, dtype), None, offsets.to(device), tasks.to(device)]


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize(
    ("counts", "classes"),
    [
        ([5, 0, 3], [1, 2, 31, 32, 33]),
        ([16, 17, 1], [10]),  # as many rows as warps, and one more
        ([70], [3, 64]),  # more rows than a warp has lanes
        ([3], [1000, 5000]),
        ([1] * 40, [7]),
    ],
)
def test_entropy_of_ragged_rows(
    counts: list[int], classes: list[int], switches: str, grid: Grid
) -> None:
    args = ragged(grid.device, counts, classes, F64)
    got = grid.ops.debiased_entropy(*args, *SWITCHES[switches])
    on_cpu = [None if x is None else x.cpu() for x in args]
    wanted = torch.ops.mdft_fast.debiased_entropy(*on_cpu, *SWITCHES[switches])
    assert torch.equal(got[3].cpu(), wanted[3])
    for mine, other in zip(got, wanted, strict=True):  # float64: some hundred roundings
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-12, atol=1e-13)


def test_entropy_of_wrong_offsets_is_nan(grid: Grid) -> None:
    args = ragged(grid.device, [2, 3, 1], [4, 5], F32)
    wanted = grid.ops.debiased_entropy(*args, *SWITCHES["paper"])
    offsets, tasks = args[3], args[4]
    changed = offsets.clone()
    changed[-1] = 10**9
    for i, wrong in {
        2: [*args[:3], changed, tasks],
        1: [*args[:3], offsets, tasks.new_tensor([0, 2, 1, 6])],
        0: [*args[:3], offsets, tasks.new_tensor([-5, 2, 5, 6])],
    }.items():
        loss = grid.ops.debiased_entropy(*wrong, *SWITCHES["paper"])[0]
        assert loss[i].isnan()
        if i != 1:
            others = [k for k in range(3) if k != i]
            assert torch.equal(loss[others], wanted[0][others])
        grid.ops.debiased_entropy_backward(args[0], wrong[3], wrong[4], torch.ones_like(loss))


@pytest.mark.parametrize(
    ("task_rows", "row_offsets", "touched"),
    [
        ([0, 4, 2, 6], None, [0, 1, 2]),  # 0 and 2 share rows, 1 runs backwards
        ([0, 2, 1, 6], None, [0, 1, 2]),
        ([0, 2, 4, 7], None, [2]),  # a row that is not there
        ([0, 2, 4, 6], [0, 4, 13, 12, 16, 20, 24], [0, 1]),  # 0's last row ends in 1's first
        ([0, 2, 4, 6], [0, 4, 8, 12, 18, 17, 24], [1, 2]),
        ([0, 2, 4, 6], [0, 4, 8, 14, 13, 20, 24], [1, 2]),
        ([0, 2, 4, 6], [-3, 4, 8, 12, 16, 20, 24], [0]),
        ([0, 2, 4, 6], [0, 4, 8, 12, 16, 20, 2**40], [2]),
    ],
)
def test_tasks_that_share_rows_or_elements_are_nan(
    task_rows: list[int], row_offsets: list[int] | None, touched: list[int], grid: Grid
) -> None:
    args = ragged(grid.device, [2, 2, 2], [4], F32)
    switches = (1.0, 0.4, True, False, 1, False)  # without the filter every row has a gradient
    wanted = grid.ops.debiased_entropy(*args, *switches)
    args[4] = args[4].new_tensor(task_rows)
    args[3] = args[3] if row_offsets is None else args[3].new_tensor(row_offsets)
    loss, *_, grad = grid.ops.debiased_entropy(*args, *switches)
    assert loss.isnan().nonzero().flatten().tolist() == touched
    others = [k for k in range(3) if k not in touched]
    assert torch.equal(loss[others], wanted[0][others])
    scaled = grid.ops.debiased_entropy_backward(
        torch.ones_like(grad), args[3], args[4], torch.ones_like(loss)
    )
    for result in (grad, scaled):
        sound = ~result.view(3, 8).isnan()
        assert sound[others].all()
        assert not sound[touched].any(1).all()  # also where elements were left as allocated


@pytest.mark.parametrize("dtype", [*NARROW, F64], ids=name)
@pytest.mark.parametrize(
    ("counts", "classes"), [([3, 0, 2], [5, 1]), ([40, 1], [5000]), ([1] * 300, [3])]
)
def test_entropy_backward_scales_each_task(
    counts: list[int], classes: list[int], dtype: torch.dtype, grid: Grid
) -> None:
    grad, _, _, offsets, tasks = ragged(grid.device, counts, classes, dtype)
    by = torch.linspace(-2, 3, len(counts), device=grid.device, dtype=reference.accumulator(dtype))
    got = grid.ops.debiased_entropy_backward(grad, offsets, tasks, by)
    sizes = offsets[tasks].diff()
    assert torch.equal(got, (grad.to(by.dtype) * by.repeat_interleave(sizes)).to(dtype))
