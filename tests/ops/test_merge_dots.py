# SPDX-License-Identifier: Apache-2.0
"""``merge_dots``: the seven kinds of tests."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mdft_fast
from mdft_fast import reference
from mdft_fast.arena import TILE, Codec, Layout, TaskVectors
from tests.ops.inputs import (
    BF16,
    CODECS,
    F16,
    F32,
    F64,
    NARROW,
    SMALL,
    WRONG_CODES,
    assert_bits_hold,
    assert_dots,
    changed,
    flat,
    layouts,
    make_arena,
    make_grads,
    name,
    outcome,
    poison_padding,
    ranges,
    raw_dots,
    some_grads,
)

# (gradients, deltas): the narrow floats mix freely; float64 stands alone.
FLOATS: list[Any] = [*itertools.product(NARROW, repeat=2), (F64, F64)]
CODES: list[Any] = [*itertools.product(NARROW, CODECS)]
# Nothing, one, a tail, one tile, tiles + tail, many tasks, no task; and tensors of all kinds.
CASES: dict[str, tuple[int, list[tuple[int, ...]]]] = {
    "empty": (2, [(0,)]),
    "no tensor": (2, []),
    "one": (1, [()]),
    "tail": (3, [(1023,)]),
    "tile": (4, [(TILE,)]),
    "tiles and tail": (8, [(20_001,)]),
    "many tasks": (20, [(64, 64)]),
    "no task": (0, [(100,)]),
    "tensors": (7, [(3000,), (), (0,), (5, 7), (64, 64), (1, 2049)]),
}
OPS = torch.ops.mdft_fast


def layout_of(case: str) -> tuple[int, Layout]:
    K, shapes = CASES[case]
    return K, Layout.of({f"t{i}": shape for i, shape in enumerate(shapes)})


# ---- 1. rounding


@pytest.mark.parametrize("dtypes", FLOATS + CODES, ids=name)
@pytest.mark.parametrize("case", CASES)
def test_rounds_no_more_than_it_must(case: str, dtypes: Any, device: torch.device) -> None:
    K, layout = layout_of(case)
    base = F64 if dtypes[1] == F64 else F32
    deltas = make_arena(K, layout, device, base=base, deltas=dtypes[1]).deltas
    deltas = poison_padding(deltas, layout)
    grads = make_grads(layout, device, dtypes[0])
    got = mdft_fast.merge_dots(grads, deltas, layout)
    assert got.dtype == base
    assert_dots(got, grads, deltas, layout)


@pytest.mark.parametrize("kinds", [FLOATS, CODES], ids=["floats", "codes"])
@given(layout=layouts(), K=st.integers(0, 18), data=st.data())
def test_rounds_no_more_than_it_must_in_any_layout(
    kinds: Any, layout: Layout, K: int, data: st.DataObject, device: torch.device
) -> None:
    dtypes = data.draw(st.sampled_from(kinds))
    base = F64 if dtypes[1] == F64 else F32
    deltas = make_arena(K, layout, device, base=base, deltas=dtypes[1]).deltas
    deltas = poison_padding(deltas, layout)
    tiles = data.draw(ranges(layout))
    grads = some_grads(data, layout, tiles, dtypes[0], device)
    got = mdft_fast.merge_dots(grads, deltas, layout, tiles=tiles)
    assert_dots(got, grads, deltas, layout, tiles)


def test_a_column_of_many_tiles_is_added_in_float64(device: torch.device) -> None:
    # 3000 tiles of equal dot products: a running sum in float32 would err by hundreds of units.
    layout = Layout.of({"a": (3000 * TILE,)})
    grad = torch.full((layout.elements,), 1 / 3, device=device)
    deltas = torch.full((1, layout.elements), 0.7, device=device)
    got = mdft_fast.merge_dots([grad], deltas, layout)
    assert_dots(got, [grad], deltas, layout)


# ---- 2. gradients


def test_is_the_gradient_of_merge(device: torch.device) -> None:
    layout = Layout.of({"a": (3000,), "b": (5, 7), "c": ()}).group({"a": "x", "b": "y", "c": "x"})
    base, deltas, coefficients = make_arena(4, layout, device, base=F64, deltas=F64)
    coefficients.requires_grad_()
    grads = make_grads(layout, device, F64)
    merged = reference.merge(base, deltas, coefficients, layout.plan(device), F64)
    total = sum((v * g).sum() for v, g in zip(layout.views(merged), grads, strict=True))
    total.backward()
    torch.testing.assert_close(
        mdft_fast.merge_dots(grads, deltas, layout), coefficients.grad, rtol=1e-12, atol=1e-12
    )


# ---- 3. registration

LONE = Layout.of({"a": (TILE,)})


@pytest.mark.parametrize("deltas", [F32, *CODECS], ids=name)
@pytest.mark.parametrize("absent", [(), (0,), (0, 2), (0, 1, 2, 3)], ids=name)
def test_is_registered_right(absent: tuple[int, ...], deltas: Any, device: torch.device) -> None:
    vectors = make_arena(3, SMALL, device, deltas=deltas).deltas
    grads = [None if i in absent else g for i, g in enumerate(make_grads(SMALL, device))]
    torch.library.opcheck(OPS.merge_dots.default, raw_dots(grads, vectors, SMALL))


def test_compiles_in_one_graph(device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device).deltas
    grads = make_grads(SMALL, device)

    def step(grads: list[Tensor]) -> Tensor:
        one = mdft_fast.merge_dots(grads[2].flatten(), deltas[:, :1200].contiguous())
        return mdft_fast.merge_dots(grads, deltas, SMALL) * 2 + one

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(grads), step(grads))


# ---- 4. errors

T, N = SMALL.tiles, SMALL.elements
# what is wrong -> (position of the argument in merge_dots, its replacement, the message)
WRONG: dict[str, tuple[int, Any, str]] = {
    "deltas 1-d": (1, lambda x: x[0], f"deltas must be [K, N], got [{N}]"),
    "first": (6, lambda _: -1, f"tiles must be a range of [0, {T}], got [-1, {T})"),
    "last": (7, lambda _: T + 1, f"tiles must be a range of [0, {T}], got [0, {T + 1})"),
    "order long": (3, lambda x: x.repeat(2), f"order must be [{T}], got [{2 * T}]"),
    "order 2-d": (3, lambda x: x[None], f"order must be [{T}], got [1, {T}]"),
    "starts empty": (4, lambda x: x[:0], "starts must be [L + 1], got [0]"),
    "starts 2-d": (4, lambda x: x[None], "starts must be [L + 1], got [1, 5]"),
    "tensor_tiles": (5, lambda x: x[1:], "tensor_tiles must be [5], got [4]"),
    "deltas dtype": (
        1, lambda x: x.int(),
        "deltas must be float32, float64, float16, bfloat16, int8 or uint8, got int32",
    ),
    "deltas int8": (
        1, lambda x: x.to(torch.int8), f"scales must be [3, {N // 128}] for int8 deltas, got None",
    ),
    "scales of floats": (
        2, lambda _: torch.ones(3, 2), "scales must be None for float32 deltas, got [3, 2]",
    ),
    "order dtype": (3, lambda x: x.long(), "order must be int32, got int64"),
    "starts dtype": (4, lambda x: x.long(), "starts must be int32, got int64"),
    "tensor_tiles dtype": (5, lambda x: x.int(), "tensor_tiles must be int64, got int32"),
    "deltas strided": (1, lambda x: x.mT.contiguous().mT, "deltas must be contiguous, got strides"),
    "order strided": (3, lambda x: x[:1].expand(T), "order must be contiguous, got strides"),
    "starts strided": (
        4, lambda x: x.repeat_interleave(2)[::2], "starts must be contiguous, got strides",
    ),
    "tensor_tiles strided": (
        5, lambda x: x.repeat_interleave(2)[::2], "tensor_tiles must be contiguous, got strides",
    ),
    "gradient dtype": (
        0, lambda g: [g[0].int(), *g[1:]],
        "a gradient must be float32, float16 or bfloat16, got int32",
    ),
    "gradient float64": (
        0, lambda g: [None, *(x.double() for x in g[1:])],
        "a gradient must be float32, float16 or bfloat16, got float64",
    ),
    "gradient float32 beside float64": (
        1, lambda x: x.double(), "a gradient must be float64 like the rest, got float32",
    ),
    "mixed gradients": (
        0, lambda g: [g[0], None, g[2].half(), g[3]],
        "all gradients must be float32, got float16",
    ),
    "gradient strided": (
        0, lambda g: [g[0], g[1], g[2].mT.contiguous().mT, g[3]],
        "a gradient must be contiguous, got strides",
    ),
}  # fmt: skip
# These read data, so the fake cannot make them.
WRONG_DATA: dict[str, tuple[int, Any, str]] = {
    "tensor_tiles start": (
        5, lambda x: x + 1, f"tensor_tiles must run from 0 to {T}, got 1 to {T + 1}",
    ),
    "tensor_tiles fall": (
        5, lambda x: torch.tensor([0, 1, 0, 3, T]),
        "tensor_tiles must not decrease, got 1 before 0",
    ),
    "gradient short": (
        0, lambda g: [g[0], g[1], g[2][0], g[3]],
        "gradient 2 must fill 2 tiles of 1024 elements, got [600]",
    ),
    "gradient long": (
        0, lambda g: [*g[:3], torch.zeros(1025)],
        "gradient 3 must fill 1 tiles of 1024 elements, got [1025]",
    ),
    "order": (3, lambda x: x + 1, f"order must lie in [0, {T}), got {T}"),
    "order below": (3, lambda x: x - 1, f"order must lie in [0, {T}), got -1"),
    "starts fall": (
        4, lambda x: torch.tensor([0, 2, 1, 3, 3], dtype=torch.int32),
        f"starts must rise within [0, {T}], got 2 before 1",
    ),
    "starts beyond": (4, lambda x: x * 2, f"starts must rise within [0, {T}], got 2 before 6"),
}  # fmt: skip


def refusal(position: int, change: Any, device: torch.device, deltas: Any = F32) -> str:
    args = raw_dots(make_grads(SMALL, device), make_arena(3, SMALL, device, deltas=deltas).deltas,
                    SMALL)  # fmt: skip
    return outcome(OPS.merge_dots, changed(args, position, change), "merge_dots:")


@pytest.mark.parametrize("what", WRONG)
def test_errors_say_what_was_wanted_and_what_came(what: str, device: torch.device) -> None:
    position, change, text = WRONG[what]
    assert refusal(position, change, device) == f"merge_dots: {text}"


@pytest.mark.parametrize("what", WRONG_CODES)
def test_errors_of_codes(what: str, device: torch.device) -> None:
    codec, position, change, text = WRONG_CODES[what]
    assert refusal(position, change, device, codec) == f"merge_dots: {text}"


def test_errors_of_gradients_in_float64_beside_codes(device: torch.device) -> None:
    text = "a gradient must be float32, float16 or bfloat16, got float64"
    wide = [g.double() for g in make_grads(SMALL, device)]
    assert refusal(0, lambda _: wide, device, "int8") == f"merge_dots: {text}"


@pytest.mark.parametrize("what", WRONG_DATA)
def test_errors_of_data(what: str) -> None:
    position, change, text = WRONG_DATA[what]
    assert refusal(position, change, torch.device("cpu")) == f"merge_dots: {text}"


def test_errors_of_another_device(device: torch.device) -> None:
    text = "must be on the device of the other tensors, got another device"
    for position, what in {1: "deltas", 4: "starts"}.items():
        got = refusal(position, lambda x: x.to("meta"), device)
        assert got == f"merge_dots: {what} {text}"


# ---- 5. refusals


@pytest.mark.parametrize("N", [1, 1000, 1023])
def test_refuses_a_gradient_that_ends_beyond_the_arena(N: int, device: torch.device) -> None:
    # It would meet the next row of deltas, and after the last one memory of nobody's.
    grad, deltas = torch.ones(TILE, device=device), torch.ones(2, N, device=device)
    wanted = f"merge_dots: gradient 0 must have at most {N} elements, got [1024]"
    args = raw_dots([grad], deltas, LONE)
    assert outcome(OPS.merge_dots, args, "merge_dots:") == wanted
    with pytest.raises(RuntimeError, match=f"at most {N} elements"):
        mdft_fast.merge_dots([grad], deltas, LONE)
    with pytest.raises(RuntimeError, match=rf"gradient of 'all' must be \[{N}\], got \[1024\]"):
        mdft_fast.merge_dots(grad, deltas)
    got = mdft_fast.merge_dots(grad[:N], deltas)
    assert got.tolist() == [[N], [N]]


def test_refuses_a_gradient_that_ends_beyond_the_codes(device: torch.device) -> None:
    packed = make_arena(2, flat(896), device, deltas="int4", elements=896).deltas
    wanted = "merge_dots: gradient 0 must have at most 896 elements, got [897]"
    args = raw_dots([torch.ones(897, device=device)], packed, flat(896))
    assert outcome(OPS.merge_dots, args, "merge_dots:") == wanted


@pytest.mark.parametrize("tiles", [None, (2, 3)])
def test_refuses_the_last_of_several_gradients_beyond_the_arena(
    tiles: Any, device: torch.device
) -> None:
    layout = Layout.of({"a": (2000,), "b": (TILE,)})
    grads = make_grads(layout, device)[1 if tiles else 0 :]
    deltas = torch.ones(2, 2 * TILE + 7, device=device)
    with pytest.raises(RuntimeError, match=rf"gradient {len(grads) - 1} must have at most 7 elem"):
        mdft_fast.merge_dots(grads, deltas, layout, tiles=tiles)


def test_refuses_gradients_of_other_tensors(device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device).deltas
    grads = make_grads(SMALL, device)
    for wrong, text in {
        (600, 2): r"gradient of 'b' must be \[2, 600\], got \[600, 2\]",
        (1200,): r"gradient of 'b' must be \[2, 600\], got \[1200\]",
        (2, 599): r"gradient of 'b' must be \[2, 600\], got \[2, 599\]",
    }.items():
        others = [grads[0], None, torch.ones(wrong, device=device), grads[3]]
        with pytest.raises(RuntimeError, match=f"merge_dots: {text}"):
            mdft_fast.merge_dots(others, deltas, SMALL)
    text = "merge_dots: grads must hold one for each of the layout's 4 tensors, got 3"
    with pytest.raises(RuntimeError, match=text):
        mdft_fast.merge_dots(grads[1:], deltas, SMALL)
    with pytest.raises(RuntimeError, match="the layout's 2 tensors, got 4"):
        mdft_fast.merge_dots(grads, deltas, SMALL, tiles=(0, 1))


def test_refuses_a_range_that_cuts_a_tensor(device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device).deltas
    with pytest.raises(mdft_fast.MdftError, match=r"begins and ends between tensors, got \(0, 2\)"):
        mdft_fast.merge_dots([None], deltas, SMALL, tiles=(0, 2))


def test_is_not_differentiable(device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device).deltas
    grads = [g.requires_grad_() for g in make_grads(SMALL, device)]
    assert not mdft_fast.merge_dots(grads, deltas, SMALL).requires_grad


# ---- 6. bits


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("deltas", [F32, *CODECS], ids=name)
@pytest.mark.parametrize("grouped", [False, True])
def test_bits_do_not_depend_on_threads_or_repeats(
    grouped: bool, deltas: Any, device: torch.device
) -> None:
    layout = Layout.of({f"t{i}": (1500 + i,) for i in range(40)})
    if grouped:
        layout = layout.group({f"t{i}": f"c{i % 3}" for i in range(40)})
    vectors = make_arena(9, layout, device, deltas=deltas).deltas
    grads = make_grads(layout, device)
    assert_bits_hold(lambda: [mdft_fast.merge_dots(grads, vectors, layout)])


def test_bits_do_not_depend_on_the_range_of_tiles(device: torch.device) -> None:
    layout = Layout.of({"a": (3000,), "b": (5, 7), "c": (2049,)})
    deltas = make_arena(3, layout, device).deltas
    grads = make_grads(layout, device)
    whole = mdft_fast.merge_dots(grads, deltas, layout)
    for slot, grad in zip(layout.slots, grads, strict=True):
        tiles = (slot.tile, slot.tile + slot.tiles)
        part = mdft_fast.merge_dots([grad], deltas, layout, tiles=tiles)
        assert torch.equal(part[:, slot.column], whole[:, slot.column])
        part[:, slot.column] = 0
        assert not part.any()


# ---- 7. degenerate


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=name)
def test_degenerate_absent_gradients_count_as_zero(
    dtype: torch.dtype, device: torch.device
) -> None:
    deltas = make_arena(3, SMALL, device).deltas.fill_(torch.nan)  # unread where absent
    assert not mdft_fast.merge_dots([None] * 4, deltas, SMALL).any()
    deltas[:, SMALL.slots[2].tile * TILE :] = 1
    grads: list[Tensor | None] = [None, None, torch.ones(2, 600, dtype=dtype, device=device), None]
    wanted = torch.zeros(3, 4, device=device)
    wanted[:, 2] = 1200
    assert torch.equal(mdft_fast.merge_dots(grads, deltas, SMALL), wanted)


@pytest.mark.parametrize("codec", CODECS)
def test_degenerate_absent_gradients_read_no_scale(codec: Codec, device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device, deltas=codec).deltas
    unread = dataclasses.replace(deltas, scales=torch.full_like(deltas.scales, torch.nan))
    assert not mdft_fast.merge_dots([None] * 4, unread, SMALL).any()
    assert not mdft_fast.merge_dots([], unread, SMALL, tiles=(0, 0)).any()
    grads = [None, None, torch.ones(2, 600, device=device), None]
    got = mdft_fast.merge_dots(grads, deltas, SMALL)
    assert not got[:, [0, 1, 3]].any()
    assert_dots(got, grads, deltas, SMALL)


def test_degenerate_columns_without_tiles_are_zero(device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device).deltas
    assert not mdft_fast.merge_dots(make_grads(SMALL, device), deltas, SMALL)[:, 1].any()


def test_degenerate_an_empty_range_of_tiles(device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device).deltas
    got = mdft_fast.merge_dots([], deltas, SMALL, tiles=(0, 0))
    assert torch.equal(got, torch.zeros(3, len(SMALL.columns), device=device))


def test_degenerate_one_hot_gradients_read_one_element(device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device).deltas
    grad = torch.zeros(2, 600, device=device)
    grad[1, 599] = 1
    got = mdft_fast.merge_dots([None, None, grad, None], deltas, SMALL)
    assert torch.equal(got[:, 2], deltas[:, TILE + 1199])


def test_a_single_tensor_and_packed_vectors(device: torch.device) -> None:
    deltas = torch.randn(3, 1500, device=device).to(BF16)
    grad = torch.randn(1500, device=device)
    got = mdft_fast.merge_dots(grad, TaskVectors(deltas, "bf16"))
    assert torch.equal(got, mdft_fast.merge_dots([grad], deltas, Layout.single(1500)))
