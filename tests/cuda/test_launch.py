# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: streams, graphs, devices, no waiting, the same bits every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast.arena import TILE, Layout
from tests.emulated.test_kernels import SWITCHES, ragged
from tests.grid import Grid
from tests.ops.inputs import BF16, F32, make_arena, make_grads, split

pytestmark = pytest.mark.cuda

LAYOUT = Layout.of({f"t{i}": (i * 997 % 5000,) for i in range(300)})
Step = Callable[[], list[Tensor]]


def make_step(grid: Grid, device: torch.device) -> tuple[Step, list[Tensor]]:
    """Returns one call of every operator, and the tensors that it reads."""
    arenas = [make_arena(9, LAYOUT, device, deltas=codec) for codec in (BF16, "int8", "int4")]
    plan = LAYOUT.plan(device)
    grads = make_grads(LAYOUT, device)
    rows = ragged(device, [16, 16, 3], [10, 43, 397], F32)
    by = torch.linspace(1, 2, 3, device=device)
    tiles = (plan.first, plan.last)
    out = torch.empty(LAYOUT.elements, device=device)

    def step() -> list[Tensor]:
        merged = [grid.ops.merge(*a.stored(), plan.columns, *tiles, BF16) for a in arenas]
        grid.ops.merge_out(*arenas[0].stored(), plan.columns, *tiles, out)
        index = (plan.order, plan.starts, plan.tensor_tiles, *tiles)
        dots = [grid.ops.merge_dots(grads, *split(a.deltas), *index) for a in arenas]
        results = grid.ops.debiased_entropy(*rows, *SWITCHES["paper"])
        scaled = grid.ops.debiased_entropy_backward(results[4], rows[3], rows[4], by)
        return [*merged, out.clone(), *dots, *results, scaled]

    floats = [x for a in arenas for x in a.stored() if x is not None and x.is_floating_point()]
    return step, [*floats, *grads, rows[0], rows[1], by]


def assert_equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    for mine, other in zip(got, wanted, strict=True):
        assert torch.equal(mine, other.to(mine.device))


def test_bits_do_not_depend_on_repeats(grid: Grid) -> None:
    step, _ = make_step(grid, grid.device)
    wanted = step()
    for _ in range(20):
        assert_equal(step(), wanted)


def test_runs_on_the_callers_stream(grid: Grid) -> None:
    step, inputs = make_step(grid, grid.device)
    wanted = step()
    kept = [x.clone() for x in inputs]
    for x in inputs:
        x.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # tens of milliseconds, in which another stream reads zeros
        for x, value in zip(inputs, kept, strict=True):
            x.copy_(value, non_blocking=True)
        got = step()
    stream.synchronize()
    assert_equal(got, wanted)


def test_waits_for_nothing(grid: Grid) -> None:
    step, _ = make_step(grid, grid.device)
    step()
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)  # about half a second
    step()
    assert not torch.cuda.current_stream().query(), "the host waited until the GPU was done"
    torch.cuda.synchronize()


def test_can_be_captured_in_a_graph(grid: Grid) -> None:
    step, inputs = make_step(grid, grid.device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # graphs want a warm-up beside the default stream
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for factor in (1.0, -0.5):
        for x in inputs:
            x.mul_(factor)
        wanted = step()
        graph.replay()
        assert_equal(captured, wanted)


def test_leaves_the_current_device_alone(grid: Grid) -> None:
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    before = torch.cuda.current_device()
    step, _ = make_step(grid, last)
    results = step()
    assert torch.cuda.current_device() == before
    assert all(x.device == last for x in results)
    if last.index != before:
        step, _ = make_step(grid, grid.device)
        assert_equal(results, step())


def test_refuses_tensors_of_two_devices(grid: Grid) -> None:
    arena = make_arena(2, LAYOUT, grid.device)
    plan = LAYOUT.plan(grid.device)
    mixed: list[Any] = [arena.base.cpu(), arena.deltas, None, arena.coefficients]
    with pytest.raises(RuntimeError, match="merge: base must be on the device of the other"):
        grid.ops.merge(*mixed, plan.columns, plan.first, plan.last, F32)


@pytest.mark.slow
def test_arenas_beyond_2_31_elements(grid: Grid) -> None:
    N = 2**31 + 3 * TILE
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    base = torch.zeros(N, dtype=BF16, device=grid.device)
    deltas = torch.zeros(2, N, dtype=BF16, device=grid.device)
    deltas[1, -1] = 3
    base[-2] = 5
    layout = Layout.of({"a": (N,)})
    plan = layout.plan(grid.device)
    lam = torch.tensor([[1.0], [2.0]], device=grid.device)
    out = grid.ops.merge(base, deltas, None, lam, plan.columns, plan.first, plan.last, BF16)
    assert out[-2:].tolist() == [5, 6]
    assert int(out.count_nonzero()) == 2
    dots = grid.ops.merge_dots(
        [out], deltas, None, plan.order, plan.starts, plan.tensor_tiles, plan.first, plan.last
    )
    assert dots.tolist() == [[0], [18]]
