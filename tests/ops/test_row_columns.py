# SPDX-License-Identifier: Apache-2.0
"""``merge`` and ``merge_dots`` with λ per output row: the seven kinds of tests.

Random layouts by row, dtypes and codecs also go through the property tests of test_merge.py and
test_merge_dots.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import mdft_fast
from mdft_fast.arena import TILE, Layout, TaskVectors
from tests.ops.inputs import (
    BF16,
    CODECS,
    F16,
    F32,
    F64,
    Arena,
    assert_bits_hold,
    assert_dots,
    assert_merges,
    changed,
    make_arena,
    make_grads,
    name,
    outcome,
    poison_padding,
    raw_dots,
    raw_merge,
    wide,
)

OPS = torch.ops.mdft_fast
# Rows of whole vectors and not, of one element, one tile, more and less; of a lane's pack and not;
# and tensors with one column: of one dimension, none, and of one row.
SHAPES = {
    "attention": (12, 192), "bias": (7,), "long": (3, 3000), "conv": (40, 3, 3), "ones": (1100, 1),
    "tile": (2, TILE), "one row": (1, 2500), "odd": (17, 33), "half packs": (30, 84),
    "many in a pack": (700, 3), "empty": (0, 5), "scalar": (), "tiles": (3, 2 * TILE),
}  # fmt: skip
ROWS = Layout.of(SHAPES).by_row()
SMALL = Layout.of({"a": (3,), "b": (2, 700), "c": ()}).by_row()  # 4 columns, 4 tiles
KINDS: list[Any] = [
    (F32, F32, F32), (BF16, BF16, BF16), (F16, F32, BF16), (F32, BF16, F16), (F64, F64, F64),
    (F32, "int8", F32), (F32, "int4", BF16),
]  # fmt: skip


def by_hand(arena: Arena) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields base ``[rows, length]``, deltas ``[K, rows, length]``, λ ``[K, rows]`` in float64."""
    column = 0
    views = zip(ROWS.slots, ROWS.views(arena.base.double()), strict=True)
    for slot, base in views:
        rows = slot.shape[0] if len(slot.shape) > 1 and slot.numel else 1
        deltas = [ROWS.views(d)[ROWS.slots.index(slot)] for d in wide(arena.deltas)]
        stacked = torch.stack(deltas).reshape(len(deltas), rows, -1)
        yield (
            base.reshape(rows, -1),
            stacked,
            arena.coefficients[:, column : column + rows].double(),
        )
        column += rows


# ---- 1. rounding


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("K", [1, 3, 8, 9, 17])
def test_rounds_no_more_than_it_must(K: int, kind: Any, device: torch.device) -> None:
    base, deltas, out = kind
    arena = make_arena(K, ROWS, device, base=base, deltas=deltas)
    got = mdft_fast.merge(*arena, ROWS, out_dtype=out)
    assert got.dtype == out
    assert_merges(got, arena, ROWS)
    poisoned = poison_padding(arena.deltas, ROWS)
    grads = make_grads(ROWS, device, base)
    assert_dots(mdft_fast.merge_dots(grads, poisoned, ROWS), grads, poisoned, ROWS)


@pytest.mark.parametrize("deltas", [F64, "int4"])
def test_is_the_formula_row_by_row(deltas: Any, device: torch.device) -> None:
    base = F64 if deltas == F64 else F32
    arena = make_arena(3, ROWS, device, base=base, deltas=deltas)
    grads = make_grads(ROWS, device, base)
    merged = mdft_fast.merge_tensors(*arena, ROWS, out_dtype=base)
    dots = mdft_fast.merge_dots(grads, arena.deltas, ROWS).double()
    found = zip(by_hand(arena), merged, grads, ROWS.slots, strict=True)
    # float64's round-off; of int4 float32's, over rows of 3000 products at the most.
    close = {"rtol": 1e-12, "atol": 1e-12} if base == F64 else {"rtol": 1e-5, "atol": 1e-4}
    for (weight, vectors, lam), tensor, grad, slot in found:
        wanted = weight + torch.einsum("kr,krn->rn", lam, vectors)
        torch.testing.assert_close(tensor.double().reshape(wanted.shape), wanted, **close)
        of_rows = torch.einsum("rn,krn->kr", grad.double().reshape(weight.shape), vectors)
        some = dots[:, slot.column : slot.column + slot.rows]
        torch.testing.assert_close(some, of_rows, **close)


# ---- 2. gradients


def test_gradients(device: torch.device) -> None:
    arena = make_arena(2, SMALL, device, base=F64, deltas=F64)
    coefficients = arena.coefficients.requires_grad_()

    def merged(lam: Tensor) -> tuple[Tensor, ...]:
        tensors = mdft_fast.merge_tensors(arena.base, arena.deltas, lam, SMALL, out_dtype=F64)
        return tuple(t.sin() for t in tensors)

    assert torch.autograd.gradcheck(merged, (coefficients,))


@pytest.mark.parametrize("tiles", [None, (4, 18)])
def test_gradients_are_the_dots(tiles: Any, device: torch.device) -> None:
    arena = make_arena(9, ROWS, device, deltas=BF16)
    lam = arena.coefficients.requires_grad_()
    tensors = mdft_fast.merge_tensors(arena.base, arena.deltas, lam, ROWS, tiles=tiles)
    slots = ROWS.slots_in(tiles)
    grads = [make_grads(ROWS, device)[ROWS.slots.index(slot)] for slot in slots]
    (got,) = torch.autograd.grad(tensors, lam, grads)
    assert torch.equal(got, mdft_fast.merge_dots(grads, arena.deltas, ROWS, tiles=tiles))
    # A flat gradient has numbers for padding, where rows seem to go on into other tensors'.
    flat = mdft_fast.merge(arena.base, arena.deltas, lam, ROWS, tiles=tiles)
    grad = torch.ones_like(flat)
    for view, g in zip(ROWS.views(grad, tiles), grads, strict=True):
        view.copy_(g)
    (alone,) = torch.autograd.grad(flat, lam, grad)
    assert torch.equal(alone, got)


# ---- 3. registration


@pytest.mark.parametrize("deltas", [F32, *CODECS], ids=name)
def test_is_registered_right(deltas: Any, device: torch.device) -> None:
    arena, rows = make_arena(3, SMALL, device, deltas=deltas), SMALL.plan(device).rows
    torch.library.opcheck(OPS.merge.default, (*raw_merge(arena, SMALL), F32, rows))
    torch.library.opcheck(
        OPS.merge_dots.default, raw_dots(make_grads(SMALL, device), arena.deltas, SMALL)
    )


def test_compiles_in_one_graph_and_runs_on_fakes(device: torch.device) -> None:
    arena = make_arena(3, SMALL, device)
    grads = make_grads(SMALL, device)

    def step(lam: Tensor) -> tuple[Tensor, Tensor]:
        merged = mdft_fast.merge(arena.base, arena.deltas, lam, SMALL)
        return merged * 2, mdft_fast.merge_dots(grads, arena.deltas, SMALL) + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(arena.coefficients), step(arena.coefficients)))
    with FakeTensorMode():
        fake = make_arena(3, SMALL, device)
        assert mdft_fast.merge(*fake, SMALL).shape == (SMALL.elements,)
        assert mdft_fast.merge_dots(make_grads(SMALL, device), fake.deltas, SMALL).shape == (3, 4)


# ---- 4. errors

ON = "must be on the device of the other tensors, got another device"
# what is wrong -> (position in merge, its replacement, the message)
WRONG: dict[str, tuple[int, Any, str]] = {
    "rows few": (8, lambda x: x[1:], "rows must be [4, 2], got [3, 2]"),
    "rows 1-d": (8, lambda x: x[:, 0], "rows must be [4, 2], got [4]"),
    "rows wide": (8, lambda x: x.repeat(1, 2), "rows must be [4, 2], got [4, 4]"),
    "rows dtype": (8, lambda x: x.long(), "rows must be int32, got int64"),
    "rows strided": (8, lambda x: x.mT.contiguous().mT, "rows must be contiguous, got strides"),
    "rows elsewhere": (8, lambda x: x.to("meta"), f"rows {ON}"),
}
WRONG_DATA: dict[str, tuple[Any, str]] = {
    "length 0": (lambda x: x * 0, "got 0 and 0"),
    "length": (lambda x: x + TILE, "got 1027 and 1024"),
    "phase": (lambda x: x * torch.tensor([0, 1], dtype=torch.int32) + 1, "got 1 and 1"),
    "phase below": (lambda x: x - torch.tensor([0, 1], dtype=torch.int32), "got 3 and -1"),
}
LENGTHS = f"rows must hold lengths in [1, {TILE}] and phases below them"


def arguments(device: torch.device) -> tuple[list[Any], list[Any]]:
    arena, rows = make_arena(3, SMALL, device), SMALL.plan(device).rows
    dots = raw_dots(make_grads(SMALL, device), arena.deltas, SMALL)
    return [*raw_merge(arena, SMALL), F32, rows], list(dots)


@pytest.mark.parametrize("what", WRONG)
def test_errors_say_what_was_wanted_and_what_came(what: str, device: torch.device) -> None:
    position, change, text = WRONG[what]
    merge, dots = arguments(device)
    assert outcome(OPS.merge, changed(merge, position, change), "merge:") == f"merge: {text}"
    out = [*merge[:7], torch.empty(SMALL.elements, device=device), merge[8]]
    assert outcome(OPS.merge_out, changed(out, position, change), "merge:") == f"merge: {text}"
    wrong = [*dots[:-1], change(dots[-1])]
    assert outcome(OPS.merge_dots, wrong, "merge_dots:") == f"merge_dots: {text}"


def test_errors_of_columns_of_dots(device: torch.device) -> None:
    _, dots = arguments(device)
    for change, text in {
        lambda x: x[1:]: "columns must be [4], got [3]",
        lambda x: x.long(): "columns must be int32, got int64",
        lambda x: None: "columns and rows must go together, got one of them",
    }.items():
        wrong = changed(dots, 8, change)
        assert outcome(OPS.merge_dots, wrong, "merge_dots:") == f"merge_dots: {text}"


@pytest.mark.parametrize("what", WRONG_DATA)
def test_errors_of_data(what: str) -> None:
    # Read from the data, so by the CPU's kernels alone.
    change, got = WRONG_DATA[what]
    merge, dots = arguments(torch.device("cpu"))
    wanted = f"{LENGTHS}, {got}"
    assert outcome(OPS.merge, changed(merge, 8, change), "merge:") == f"merge: {wanted}"
    wrong = changed(dots, 9, change)
    assert outcome(OPS.merge_dots, wrong, "merge_dots:") == f"merge_dots: {wanted}"
    wrong = changed(dots, 8, lambda x: x + 2)
    wanted = "merge_dots: rows must lie in columns [0, 4), got [3, 4]"
    assert outcome(OPS.merge_dots, wrong, "merge_dots:") == wanted


# ---- 5. refusals


def test_refuses_lambda_of_another_granularity(device: torch.device) -> None:
    arena = make_arena(3, SMALL, device)
    for lam, got in ((arena.coefficients[:, :3], "[3, 3]"), (arena.coefficients[:2], "[2, 4]")):
        wanted = rf"coefficients must be \[\d, (4|L)\], got \{got}"
        with pytest.raises(RuntimeError, match=wanted):
            mdft_fast.merge(arena.base, arena.deltas, lam.contiguous(), SMALL)


# ---- 6. bits


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("deltas", [F32, BF16, *CODECS], ids=name)
def test_bits_do_not_depend_on_threads_or_repeats(deltas: Any, device: torch.device) -> None:
    arena = make_arena(9, ROWS, device, deltas=deltas)
    grads = make_grads(ROWS, device)
    assert_bits_hold(
        lambda: [mdft_fast.merge(*arena, ROWS), mdft_fast.merge_dots(grads, arena.deltas, ROWS)]
    )


@pytest.mark.parametrize("deltas", [F32, *CODECS], ids=name)
def test_bits_do_not_depend_on_the_range_of_tiles(deltas: Any, device: torch.device) -> None:
    arena = make_arena(3, ROWS, device, deltas=deltas)
    grads = make_grads(ROWS, device)
    whole = mdft_fast.merge(*arena, ROWS)
    dots = mdft_fast.merge_dots(grads, arena.deltas, ROWS)
    for slot, grad in zip(ROWS.slots, grads, strict=True):
        tiles = (slot.tile, slot.tile + slot.tiles)
        part = mdft_fast.merge(*arena, ROWS, tiles=tiles)
        assert torch.equal(part, whole[tiles[0] * TILE : tiles[1] * TILE])
        own_grad = [grad if s is slot else None for s in ROWS.slots_in(tiles)]
        part = mdft_fast.merge_dots(own_grad, arena.deltas, ROWS, tiles=tiles)
        own = slice(slot.column, slot.column + slot.rows)
        assert torch.equal(part[:, own], dots[:, own])
        part[:, own] = 0
        assert not part.any()


@pytest.mark.parametrize("deltas", [F32, BF16, *CODECS], ids=name)
@pytest.mark.parametrize("K", [1, 8, 9])
def test_bits_of_equal_rows_are_those_of_a_column_a_tensor(
    K: int, deltas: Any, device: torch.device
) -> None:
    by_tensor = Layout.of(SHAPES)
    arena = make_arena(K, by_tensor, device, deltas=deltas)
    rows = torch.tensor(ROWS.rows, device=device)
    repeated = arena._replace(coefficients=arena.coefficients.repeat_interleave(rows, 1))
    for out in (F32, BF16):
        one = mdft_fast.merge_tensors(*arena, by_tensor, out_dtype=out)
        each = mdft_fast.merge_tensors(*repeated, ROWS, out_dtype=out)
        assert all(map(torch.equal, each, one))


def test_large_outputs_are_written_past_the_cache(device: torch.device) -> None:
    layout = Layout.of({"a": (8193, 1027)}).by_row()  # above kStreamBytes
    arena = make_arena(1, layout, device)
    out = torch.empty(layout.elements, device=device)
    mdft_fast.merge(*arena, layout, out=out)
    assert torch.equal(out, mdft_fast.merge(*arena, layout))


# ---- 7. degenerate


@pytest.mark.parametrize("K", [0, 1, 5])
def test_degenerate_zero_coefficients_give_base(K: int, device: torch.device) -> None:
    arena = make_arena(K, ROWS, device)
    zero = arena._replace(coefficients=torch.zeros_like(arena.coefficients))
    assert torch.equal(mdft_fast.merge(*zero, ROWS), arena.base)
    assert mdft_fast.merge_dots(make_grads(ROWS, device), arena.deltas, ROWS).shape == (K, ROWS.L)


@pytest.mark.parametrize("deltas", [F32, *CODECS], ids=name)
def test_degenerate_a_row_that_is_not_finite_stays_alone(deltas: Any, device: torch.device) -> None:
    layout = Layout.of({"a": (40, 33)}).by_row()
    arena = make_arena(2, layout, device, deltas=deltas)
    lam = arena.coefficients.clone()
    lam[0, 17] = torch.inf
    (merged,) = mdft_fast.merge_tensors(arena.base, arena.deltas, lam, layout)
    assert (~merged.isfinite()).any(1).nonzero().flatten().tolist() == [17]
    (grad,) = make_grads(layout, device)
    grad[17, 32] = torch.nan
    dots = mdft_fast.merge_dots([grad], arena.deltas, layout)
    assert dots.isnan().any(0).nonzero().flatten().tolist() == [17]
    if not isinstance(arena.deltas, TaskVectors):  # codes are finite
        arena.deltas[1, 17 * 33] = torch.inf
        (grad,) = make_grads(layout, device)
        dots = mdft_fast.merge_dots([grad], arena.deltas, layout)
        assert (~dots.isfinite()).any(0).nonzero().flatten().tolist() == [17]


def test_degenerate_absent_gradients_and_empty_ranges_are_zero(device: torch.device) -> None:
    deltas = make_arena(3, ROWS, device).deltas.fill_(torch.nan)  # unread where absent
    assert not mdft_fast.merge_dots([None] * len(SHAPES), deltas, ROWS).any()
    assert not mdft_fast.merge_dots([], deltas, ROWS, tiles=(2, 2)).any()
    assert mdft_fast.merge(*make_arena(3, ROWS, device), ROWS, tiles=(0, 0)).numel() == 0


def test_degenerate_one_hot_gradients_read_one_element(device: torch.device) -> None:
    deltas = make_arena(3, ROWS, device).deltas
    slots = [slot for slot in ROWS.slots if slot.numel]
    for slot, last in itertools.product(slots, (False, True)):
        grad = torch.zeros(slot.numel, device=device)
        grad[-1 if last else slot.numel // 2] = 1
        at = slot.numel - 1 if last else slot.numel // 2
        tiles = (slot.tile, slot.tile + slot.tiles)
        grads = [grad.view(slot.shape) if s is slot else None for s in ROWS.slots_in(tiles)]
        got = mdft_fast.merge_dots(grads, deltas, ROWS, tiles=tiles)
        wanted = torch.zeros_like(got)
        wanted[:, slot.column + at * slot.rows // slot.numel] = deltas[:, slot.tile * TILE + at]
        assert torch.equal(got, wanted)
