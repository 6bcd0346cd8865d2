# SPDX-License-Identifier: Apache-2.0
"""``merge``, ``merge_out``, ``merge_tensors``: the seven kinds of tests."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses import FakeTensorMode

import mdft_fast
from mdft_fast import reference
from mdft_fast.arena import GROUP, TILE, Codec, Layout, TaskVectors
from mdft_fast.ops import _merge
from tests.ops.inputs import (
    BF16,
    CODE_TERMS,
    CODECS,
    F16,
    F32,
    F64,
    NARROW,
    WRONG_CODES,
    Arena,
    assert_bits_hold,
    assert_dots,
    assert_merges,
    changed,
    flat,
    layouts,
    make_arena,
    make_grads,
    name,
    outcome,
    ranges,
    raw_merge,
    split,
    wide,
)
from tests.ops.inputs import SMALL as CODED
from tests.tolerance import assert_within_rounding

# (base, deltas, out): the narrow floats mix freely, with codes too; float64 stands alone.
FLOATS: list[Any] = [*itertools.product(NARROW, repeat=3), (F64, F64, F64)]
CODES: list[Any] = [*itertools.product(NARROW, CODECS, NARROW)]
# Nothing, one, a tail, one tile, tiles + tail, many tasks, no task at all; of codes whole groups.
SIZES = [(2, 0), (1, 1), (3, 1023), (4, 1024), (8, 20_001), (20, 4096), (0, 100)]
GROUPS = [(2, 0), (1, GROUP), (3, TILE - GROUP), (4, TILE), (8, 20_096), (20, 4096), (0, 384)]
CASES = [*itertools.product(SIZES, FLOATS), *itertools.product(GROUPS, CODES)]

OPS = torch.ops.mdft_fast


# ---- 1. rounding


@pytest.mark.parametrize(("size", "dtypes"), CASES, ids=name)
def test_rounds_no_more_than_it_must(
    size: tuple[int, int], dtypes: Any, device: torch.device
) -> None:
    K, N = size
    arena = make_arena(K, flat(N), device, base=dtypes[0], deltas=dtypes[1], elements=N)
    got = mdft_fast.merge(*arena, flat(N), out_dtype=dtypes[2])
    assert got.dtype == dtypes[2]
    assert_merges(got, arena, flat(N))
    out = torch.full((N,), torch.nan, dtype=dtypes[2], device=device)
    assert mdft_fast.merge(*arena, flat(N), out=out) is out
    assert torch.equal(out, got)
    grad = torch.randn(N, device=device).to(dtypes[0])
    assert_dots(mdft_fast.merge_dots(grad, arena.deltas), [grad], arena.deltas, flat(N))


@pytest.mark.parametrize("kinds", [FLOATS, CODES], ids=["floats", "codes"])
@given(layout=layouts(), K=st.integers(0, 18), data=st.data())
def test_rounds_no_more_than_it_must_in_any_layout(
    kinds: Any, layout: Layout, K: int, data: st.DataObject, device: torch.device
) -> None:
    dtypes = data.draw(st.sampled_from(kinds))
    arena = make_arena(K, layout, device, base=dtypes[0], deltas=dtypes[1])
    whole = mdft_fast.merge(*arena, layout, out_dtype=dtypes[2])
    assert_merges(whole, arena, layout)
    for i, tensor in enumerate(mdft_fast.merge_tensors(*arena, layout, out_dtype=dtypes[2])):
        slot = layout.slots[i]
        assert tensor.shape == slot.shape
        assert torch.equal(tensor.flatten(), whole[slot.tile * TILE :][: slot.numel])
    tiles = data.draw(ranges(layout))
    part = mdft_fast.merge(*arena, layout, tiles=tiles, out_dtype=dtypes[2])
    assert torch.equal(part, whole[tiles[0] * TILE : tiles[1] * TILE])
    assert_merges(part, arena, layout, tiles)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("K", range(18))
def test_rounds_no_more_than_it_must_for_any_number_of_vectors(
    K: int, codec: Codec, device: torch.device
) -> None:
    layout = Layout.of({"a": (TILE + 1,), "b": (300,)})
    arena = make_arena(K, layout, device, deltas=codec)
    assert_merges(mdft_fast.merge(*arena, layout), arena, layout)
    grads = make_grads(layout, device)
    assert_dots(mdft_fast.merge_dots(grads, arena.deltas, layout), grads, arena.deltas, layout)


@pytest.mark.parametrize("codec", CODECS)
def test_rounds_no_more_than_it_must_where_every_code_is_met(
    codec: Codec, device: torch.device
) -> None:
    # A scale of one: out is the code, in its place, with its sign.
    bits = torch.arange(256, dtype=torch.uint8, device=device)
    codes = bits[None].view(torch.int8) if codec == "int8" else bits[None]
    elements = 256 if codec == "int8" else 512
    ones = torch.ones(1, elements // GROUP, device=device)
    packed = TaskVectors(codes, codec, ones)
    base = torch.zeros(elements, device=device)
    got = mdft_fast.merge(base, packed, torch.ones(1, device=device))
    nibbles = [n - 16 if n > 7 else n for b in range(256) for n in (b & 15, b >> 4)]
    wanted = nibbles if codec == "int4" else [b - 256 if b > 127 else b for b in range(256)]
    assert got.tolist() == wanted
    assert packed.decode()[0].tolist() == wanted
    for i in (0, 1, 7, 8, 129, elements - 1):
        one = base.index_fill(0, torch.tensor([i], device=device), 1)
        assert mdft_fast.merge_dots(one, packed).item() == wanted[i]


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


def same_but_for_nan(a: Tensor, b: Tensor) -> bool:
    """Equal bits; a NaN's payload is nobody's business."""
    return bool(((bits(a) == bits(b)) | (a.isnan() & b.isnan())).all())


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A merge of no task vectors is a conversion."""
    deltas, coefficients = x.new_empty(0, len(x), dtype=F32), x.new_empty(0, dtype=F32)
    return mdft_fast.merge(x, deltas, coefficients, out_dtype=dtype)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=name)
@pytest.mark.parametrize("tail", [0, 3])
def test_widening_is_exact(dtype: torch.dtype, tail: int, device: torch.device) -> None:
    every = torch.arange(-(2**15), 2**15 - tail, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every.to(device)
    assert same_but_for_nan(convert(every, F32), every.float())
    assert same_but_for_nan(convert(every, dtype), every)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=name)
def test_narrowing_is_to_nearest_even(dtype: torch.dtype, device: torch.device) -> None:
    # Each 16-bit number, the middle between it and the next, and the floats beside both.
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    middle = (every + every.roll(-1)) / 2
    values = torch.cat([every, middle])
    near = torch.cat([values, values.nextafter(values - 1), values.nextafter(values + 1)])
    # Floats all over the range: every exponent and sign, with low bits at and beside the ties.
    top = torch.arange(2**16, dtype=torch.int64)[:, None] << 16
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    wide = (top + low).to(torch.int32).flatten().view(F32)
    x = torch.cat([near, wide, torch.tensor([65504.0, 65519.99, 65520.0, 65536.0, 3.39e38])])
    x = torch.cat([x, -x[-5:]]).to(device)
    assert same_but_for_nan(convert(x, dtype), x.to(dtype))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=name)
def test_large_outputs_are_written_past_the_cache(dtype: torch.dtype, device: torch.device) -> None:
    N = (32 << 20) // torch.finfo(dtype).bits * 8 + 1030  # just above kStreamBytes, with a tail
    arena = make_arena(1, flat(N), device, base=dtype, deltas=dtype, elements=N)
    got = mdft_fast.merge(*arena, flat(N), out_dtype=dtype)
    aside = torch.zeros(N + 1, dtype=dtype, device=device)[1:]  # not aligned: plain stores
    assert torch.equal(got, mdft_fast.merge(*arena, flat(N), out=aside))
    tiles = (5, 5 + 1000)  # too small: plain stores
    plan = flat(N).plan(device)._replace(first=tiles[0], last=tiles[1])
    part = OPS.merge(*arena.stored(), plan.columns[:1000], *tiles, dtype)
    assert torch.equal(part, got[tiles[0] * TILE : tiles[1] * TILE])


# ---- 2. gradients

SMALL = Layout.of({"a": (3,), "none": (0,), "b": (2, 3), "c": ()})


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("tiles", [None, (1, 3)])
def test_gradients(needs: tuple[bool, bool], tiles: Any, device: torch.device) -> None:
    arena = make_arena(3, SMALL, device, base=F64, deltas=F64)
    # gradcheck moves every element of its inputs: few elements, spread over the arena, suffice.
    spread = torch.zeros(12, SMALL.elements, dtype=F64, device=device)
    spread[torch.arange(12), torch.arange(12) * 257] = 1
    few = torch.randn(12, dtype=F64, device=device).requires_grad_(needs[0])
    coefficients = arena.coefficients.requires_grad_(needs[1])

    def tensors(few: Tensor, coefficients: Tensor) -> tuple[Tensor, ...]:
        base = arena.base + few @ spread
        return tuple(
            t
            for t in mdft_fast.merge_tensors(
                base, arena.deltas, coefficients, SMALL, tiles=tiles, out_dtype=F64
            )
            if t.numel()
        )

    def whole(few: Tensor, coefficients: Tensor) -> Tensor:
        base = arena.base + few @ spread
        merged = mdft_fast.merge(
            base, arena.deltas, coefficients, SMALL, tiles=tiles, out_dtype=F64
        )
        return merged[::251]

    assert torch.autograd.gradcheck(tensors, (few, coefficients))
    assert torch.autograd.gradcheck(whole, (few, coefficients))


def test_gradients_without_a_layout(device: torch.device) -> None:
    arena = make_arena(4, flat(5), device, base=F64, deltas=F64, elements=5)
    base, coefficients = arena.base.requires_grad_(), arena.coefficients[:, 0].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda b, c: mdft_fast.merge(b, arena.deltas, c, out_dtype=F64), (base, coefficients)
    )


def test_each_gradient_is_made_only_when_asked(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for step in ("dot_gradients", "_base_gradient"):
        real = getattr(_merge, step)
        monkeypatch.setattr(
            _merge, step, lambda *a, real=real, step=step: made.append(step) or real(*a)
        )
    base, deltas, coefficients = make_arena(2, SMALL, device)
    mdft_fast.merge(base, deltas, coefficients.requires_grad_(), SMALL).sum().backward()
    assert made == ["dot_gradients"]
    made.clear()
    coefficients.requires_grad_(False)
    mdft_fast.merge(base.requires_grad_(), deltas, coefficients, SMALL).sum().backward()
    assert made == ["_base_gradient"]


@pytest.mark.parametrize("dtype", [BF16, F16], ids=name)
def test_gradients_of_a_narrow_output(dtype: torch.dtype, device: torch.device) -> None:
    arena = make_arena(3, SMALL, device, base=dtype, deltas=dtype, learns=True)
    base, deltas, coefficients = arena
    merged = mdft_fast.merge(base, deltas, coefficients, SMALL, out_dtype=dtype)
    weight = torch.randn_like(merged)
    (merged * weight).sum().backward()
    assert torch.equal(base.grad, weight)
    tiles = Layout.of(dict.fromkeys("xyz", (TILE,)))
    wanted = mdft_fast.merge_dots(weight.split(TILE), deltas, tiles)
    assert coefficients.grad.dtype == F32
    assert torch.equal(coefficients.grad[:, [0, 2, 3]], wanted)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", NARROW, ids=name)
@pytest.mark.parametrize("whole", [False, True])
def test_gradients_of_codes(
    whole: bool, dtype: torch.dtype, codec: Codec, device: torch.device
) -> None:
    layout = Layout.of({"a": (3000,), "b": (5, 7), "c": ()}).group({"a": "x", "b": "y", "c": "x"})
    arena = make_arena(9, layout, device, base=dtype, deltas=codec, learns=True)
    base, deltas, coefficients = arena
    if whole:
        parts = [mdft_fast.merge(base, deltas, coefficients, layout, out_dtype=dtype)]
    else:
        parts = [*mdft_fast.merge_tensors(base, deltas, coefficients, layout, out_dtype=dtype)]
    weights = [torch.randn_like(part) for part in parts]
    torch.autograd.backward(parts, weights)
    slope = torch.zeros(layout.elements, dtype=F64, device=device)
    for view, weight in zip([slope] if whole else layout.views(slope), weights, strict=True):
        view.copy_(weight)
    assert torch.equal(base.grad, slope.to(dtype))
    # The merge is linear in λ: the loss at two points tells its slope.
    values, plan = wide(deltas), layout.plan(device)

    def loss(lam: Tensor) -> Tensor:
        return (reference.merge(base.detach().double(), values, lam, plan, F64) * slope).sum()

    lam = coefficients.detach().double()
    steps = torch.eye(lam.numel(), dtype=F64, device=device).view(-1, *lam.shape)
    slopes = torch.stack([loss(lam + step) - loss(lam) for step in steps]).view_as(lam)
    tiles = plan._replace(tensor_tiles=torch.arange(layout.tiles + 1))
    assert_within_rounding(
        coefficients.grad,
        exact=slopes,
        magnitude=reference.merge_dots(slope.abs().split(TILE), values.abs(), tiles),
        terms=CODE_TERMS,
        reference_terms=0,
    )


def test_torch_func_grad(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device)

    def total(c: Tensor) -> Tensor:
        return sum(t.square().sum() for t in mdft_fast.merge_tensors(base, deltas, c, SMALL))

    wanted = torch.autograd.grad(total(coefficients.requires_grad_()), coefficients)[0]
    assert torch.equal(torch.func.grad(total)(coefficients.detach()), wanted)


# ---- 3. registration


@pytest.mark.parametrize("deltas", [F32, *CODECS], ids=name)
@pytest.mark.parametrize("tiles", [None, (1, 3), (0, 0)])
def test_is_registered_right(tiles: Any, deltas: Any, device: torch.device) -> None:
    args = raw_merge(make_arena(3, CODED, device, deltas=deltas), CODED, tiles)
    torch.library.opcheck(OPS.merge.default, (*args, F32))
    torch.library.opcheck(OPS.merge.default, (*args, BF16))
    out = torch.empty((args[6] - args[5]) * TILE, device=device)
    torch.library.opcheck(OPS.merge_out.default, (*args, out))


@pytest.mark.parametrize("kind", [F32, *CODECS], ids=name)
@pytest.mark.parametrize("with_out", [False, True])
def test_compiles_in_one_graph(with_out: bool, kind: Any, device: torch.device) -> None:
    layout = Layout.of({"a": (3,), "b": (2, 700)})
    base, deltas, coefficients = make_arena(3, layout, device, deltas=kind)
    coefficients.requires_grad_()
    out = torch.empty_like(base) if with_out else None

    def step(c: Tensor) -> Tensor:
        whole = mdft_fast.merge(base, deltas, c, layout, out=out)
        parts = mdft_fast.merge_tensors(base, deltas, c * 2, layout)
        return whole.square().sum() + sum(p.sum() for p in parts)

    wanted = torch.autograd.grad(step(coefficients), coefficients)[0]
    torch._dynamo.reset()  # it counts how often this text was compiled
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    value = compiled(coefficients)
    assert torch.equal(value, step(coefficients))
    assert torch.equal(torch.autograd.grad(value, coefficients)[0], wanted)


def test_runs_on_fakes_before_and_after_real_ones(device: torch.device) -> None:
    layout = Layout.of({"a": (3,), "b": (2, 700)})

    def shapes() -> list[torch.Size]:
        base = torch.zeros(layout.elements, device=device, requires_grad=True)
        coefficients = torch.zeros(3, 2, device=device, requires_grad=True)
        deltas = torch.zeros(3, layout.elements, device=device)
        parts = mdft_fast.merge_tensors(base, deltas, coefficients, layout)
        whole = mdft_fast.merge(base, deltas, coefficients[:, 0].contiguous())
        (sum(p.sum() for p in parts) + whole.sum()).backward()
        return [*(p.shape for p in parts), base.grad.shape, coefficients.grad.shape]

    for _ in range(2):
        with FakeTensorMode():
            fake = shapes()
        assert fake == shapes()


@pytest.mark.parametrize("options", [{}, {"dynamic": True}])
@pytest.mark.parametrize("layout", [None, SMALL])
def test_compiles_with_a_plan_that_is_not_made_yet(
    layout: Layout | None, options: Any, device: torch.device
) -> None:
    def step(base: Tensor, deltas: Tensor, lam: Tensor) -> Tensor:
        return mdft_fast.merge(base, deltas, lam, layout).square().sum()

    torch._dynamo.reset()
    Layout.single.cache_clear()
    if layout is not None:
        layout._plans.clear()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", **options)
    for K in (2, 3):
        arena = make_arena(K, SMALL, device)
        lam = arena.coefficients if layout is not None else arena.coefficients[:, 0].clone()
        lam.requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of caches that are traced
            (got,) = torch.autograd.grad(compiled(arena.base, arena.deltas, lam), lam)
        torch.testing.assert_close(
            got, *torch.autograd.grad(step(arena.base, arena.deltas, lam), lam)
        )


@pytest.mark.parametrize("wrong", ["short", "few", "float64"])
def test_a_wrong_call_that_compiles_is_refused_when_it_runs(
    wrong: str, device: torch.device
) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device)
    made = {"short": deltas[:, 1:].contiguous(), "few": deltas[:2], "float64": deltas.double()}

    def step(deltas: Tensor) -> Tensor:  # its fake looks at no shape but base's
        return mdft_fast.merge(base, deltas, coefficients, SMALL)

    torch._dynamo.reset()  # it counts how often this text was compiled
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"merge: (deltas|coefficients) must be"):
        compiled(made[wrong])


# ---- 4. errors

GOOD = SMALL.plan(torch.device("cpu"))
N, T = SMALL.elements, SMALL.tiles
# what is wrong -> (position of the argument in merge, its replacement, the message)
WRONG: dict[str, tuple[int, Any, str]] = {
    "base 2-d": (0, lambda x: x[None], f"base must be [N], got [1, {N}]"),
    "deltas 1-d": (1, lambda x: x[0], f"deltas must be [K, {N}], got [{N}]"),
    "deltas short": (1, lambda x: x[:, 1:], f"deltas must be [K, {N}], got [3, {N - 1}]"),
    "coefficients 1-d": (3, lambda x: x[:, 0], "coefficients must be [3, L], got [3]"),
    "coefficients few": (3, lambda x: x[1:], "coefficients must be [3, L], got [2, 4]"),
    "first": (5, lambda _: -1, f"tiles must be a range of [0, {T}], got [-1, {T})"),
    "last": (6, lambda _: T + 1, f"tiles must be a range of [0, {T}], got [0, {T + 1})"),
    "first after last": (5, lambda _: T + 1, f"tiles must be a range of [0, {T}], got [4, {T})"),
    "columns long": (4, lambda x: x.repeat(2), f"columns must be [{T}], got [{2 * T}]"),
    "columns 2-d": (4, lambda x: x[None], f"columns must be [{T}], got [1, {T}]"),
    "base dtype": (
        0, lambda x: x.int(), "base must be float32, float64, float16 or bfloat16, got int32",
    ),
    "base float8": (
        0, lambda x: x.to(torch.float8_e5m2),
        "base must be float32, float64, float16 or bfloat16, got another dtype",
    ),
    "base complex": (
        0, lambda x: x.to(torch.complex64),
        "base must be float32, float64, float16 or bfloat16, got complex64",
    ),
    "deltas float64": (
        1, lambda x: x.double(),
        "deltas must be float32, float16, bfloat16, int8 or uint8, got float64",
    ),
    "deltas int64": (
        1, lambda x: x.long(),
        "deltas must be float32, float16, bfloat16, int8 or uint8, got int64",
    ),
    "deltas int8": (
        1, lambda x: x.to(torch.int8), f"scales must be [3, {N // 128}] for int8 deltas, got None",
    ),
    "scales of floats": (2, torch.ones(3, 2), "scales must be None for float32 deltas, got [3, 2]"),
    "base float64": (0, lambda x: x.double(), "deltas must be float64 like the rest, got float32"),
    "coefficients half": (3, lambda x: x.half(), "coefficients must be float32, got float16"),
    "columns int64": (4, lambda x: x.long(), "columns must be int32, got int64"),
    "out int": (7, torch.int64, "out must be float32, float16 or bfloat16, got int64"),
    "out float64": (7, F64, "out must be float32, float16 or bfloat16, got float64"),
    "base strided": (0, lambda x: x.repeat(2)[::2], "base must be contiguous, got strides"),
    "deltas strided": (1, lambda x: x.mT.contiguous().mT, "deltas must be contiguous, got strides"),
    "coefficients strided": (
        3, lambda x: x[:, :1].expand(-1, 4), "coefficients must be contiguous, got strides",
    ),
    "columns strided": (4, lambda x: x[:1].expand(T), "columns must be contiguous, got strides"),
}  # fmt: skip


# Of codes in the layout CODED.
WRONG_CODES_OF_MERGE: dict[str, tuple[Codec, int, Any, str]] = {
    **WRONG_CODES,
    "deltas short": ("int8", 1, lambda x: x[:, 1:], "deltas must be [K, 4096], got [3, 4095]"),
    "deltas not halved": (
        "int4", 1, lambda x: x.repeat(1, 2), "deltas must be [K, 2048], got [3, 4096]",
    ),
    "base float64": (
        "int8", 0, lambda x: x.double(), "deltas must be float64 like the rest, got int8",
    ),
    "out float64": ("int4", 7, F64, "out must be float32, float16 or bfloat16, got float64"),
}  # fmt: skip


def refusals(
    layout: Layout, position: int, change: Any, device: torch.device, deltas: Any = F32
) -> set[str]:
    """What ``merge`` and ``merge_out`` say."""
    args = (*raw_merge(make_arena(3, layout, device, deltas=deltas), layout), F32)
    *args, dtype = changed(args, position, change)
    out = torch.empty(layout.elements, dtype=dtype, device=device)
    alone = outcome(OPS.merge, [*args, dtype], "merge:")
    return {alone, outcome(OPS.merge_out, [*args, out], "merge:")}


@pytest.mark.parametrize("what", WRONG)
def test_errors_say_what_was_wanted_and_what_came(what: str, device: torch.device) -> None:
    position, change, text = WRONG[what]
    assert refusals(SMALL, position, change, device) == {f"merge: {text}"}


@pytest.mark.parametrize("what", WRONG_CODES_OF_MERGE)
def test_errors_of_codes(what: str, device: torch.device) -> None:
    codec, position, change, text = WRONG_CODES_OF_MERGE[what]
    assert refusals(CODED, position, change, device, codec) == {f"merge: {text}"}


@pytest.mark.parametrize(("dtype", "length"), [(torch.int8, 1000), (torch.uint8, 500)], ids=name)
def test_errors_of_groups_that_are_not_whole(
    dtype: torch.dtype, length: int, device: torch.device
) -> None:
    codes = torch.zeros(3, length, dtype=dtype, device=device)
    plan = flat(1000).plan(device)
    scales, lam = torch.zeros(3, 7, device=device), torch.zeros(3, 1, device=device)
    text = f"{name(dtype)} deltas must have a multiple of 128 elements, got 1000"
    args = [torch.zeros(1000, device=device), codes, scales, lam, plan.columns, 0, 1, F32]
    assert outcome(OPS.merge, args, "merge:") == f"merge: {text}"
    args = [[None], codes, scales, plan.order, plan.starts, plan.tensor_tiles, 0, 1]
    assert outcome(OPS.merge_dots, args, "merge_dots:") == f"merge_dots: {text}"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda x: x[1:], f"out must be [{N}], got [{N - 1}]"),
        (lambda x: x[None], f"out must be [{N}], got [1, {N}]"),
        (lambda x: x.repeat(2)[::2], "out must be contiguous, got strides"),
    ],
)
def test_errors_of_out(change: Any, wanted: str, device: torch.device) -> None:
    out = change(torch.empty(N, device=device))
    args = [*raw_merge(make_arena(3, SMALL, device), SMALL), out]
    assert outcome(OPS.merge_out, args, "merge:") == f"merge: {wanted}"


def overlapping(what: str, device: torch.device) -> tuple[Arena, Tensor]:
    """Returns inputs, and an ``out`` that shares memory with one of them."""
    arena = make_arena(3, SMALL, device)
    if what != "coefficients":
        memory = arena.base if what == "base" else arena.deltas.view(-1)
        start = 0 if what == "base" else 2 * N if what == "deltas" else N // 2  # two rows' halves
        return arena, memory[start : start + N]
    room = torch.empty(N, device=device)
    coefficients = room[-12:].view(3, 4).copy_(arena.coefficients)
    return arena._replace(coefficients=coefficients), room


@pytest.mark.parametrize("what", ["base", "deltas", "deltas between rows", "coefficients"])
def test_an_out_that_shares_memory_is_an_error(what: str, device: torch.device) -> None:
    arena, out = overlapping(what, device)
    before = [x.clone() for x in arena]
    wanted = f"merge: out must not overlap {what.split()[0]}, got memory of it"
    args = [*raw_merge(arena, SMALL), out]
    assert outcome(OPS.merge_out, args, "merge:") == wanted
    both_refuse(RuntimeError, wanted, *arena, SMALL, out=out)
    assert all(map(torch.equal, arena, before))


@pytest.mark.parametrize("what", ["deltas", "scales"])
def test_an_out_that_shares_memory_of_codes_is_an_error(what: str, device: torch.device) -> None:
    arena = make_arena(9, CODED, device, deltas="int8")
    room = torch.empty(2 * 4096, device=device)
    scales = room[4091:][: 9 * 32].view(9, 32).copy_(arena.deltas.scales)
    arena = arena._replace(deltas=dataclasses.replace(arena.deltas, scales=scales))
    out = room[:4096] if what == "scales" else arena.deltas.codes.view(-1)[: 4 * 4096].view(F32)
    wanted = f"merge: out must not overlap {what}, got memory of it"
    assert outcome(OPS.merge_out, [*raw_merge(arena, CODED), out], "merge:") == wanted
    both_refuse(RuntimeError, wanted, *arena, CODED, out=out)


def test_an_out_beside_the_inputs_in_one_memory_is_taken(device: torch.device) -> None:
    arena = make_arena(3, SMALL, device)
    room = torch.empty(3 * N, device=device)
    beside = arena._replace(base=room[:N].copy_(arena.base))
    got = mdft_fast.merge(*beside, SMALL, out=room[N : 2 * N])
    assert torch.equal(got, mdft_fast.merge(*arena, SMALL))
    empty = room[:0]  # of no elements: overlaps nothing
    assert mdft_fast.merge(*beside, SMALL, tiles=(2, 2), out=empty) is empty


@pytest.mark.parametrize("bad", [-1, 4])
def test_a_column_outside_of_lambda_is_an_error(bad: int) -> None:
    # Read from the data, so by the CPU's kernel alone: on CUDA it would cost a synchronization.
    args = [*raw_merge(make_arena(3, SMALL, torch.device("cpu")), SMALL), F32]
    args[4] = torch.tensor([0, 1, bad, 1, 0], dtype=torch.int32)[:T]
    assert outcome(OPS.merge, args, "merge:") == f"merge: columns must lie in [0, 4), got {bad}"


@pytest.mark.parametrize("position", [0, 1, 3, 4])
def test_another_device_is_an_error(position: int, device: torch.device) -> None:
    args = [*raw_merge(make_arena(3, SMALL, device), SMALL), F32]
    args[position] = args[position].to("meta")
    what = ["base", "base", "", "coefficients", "columns"][position]  # base is held against deltas
    wanted = f"merge: {what} must be on the device of the other tensors, got another device"
    assert outcome(OPS.merge, args, "merge:") == wanted


# ---- 5. refusals


def both_refuse(error: type[Exception], text: str, *args: Any, **options: Any) -> None:
    """Sees the merge refused, whole and by tensor."""
    for function in (mdft_fast.merge, mdft_fast.merge_tensors):
        with pytest.raises(error, match=text):
            function(*args, **options)


@pytest.mark.parametrize("deltas", [F32, "int4"], ids=["deltas", "scales"])
def test_refuses_deltas_that_require_grad(deltas: Any, device: torch.device) -> None:
    arena = make_arena(3, SMALL, device, deltas=deltas)
    (arena.deltas if deltas == F32 else arena.deltas.scales).requires_grad_()
    both_refuse(ValueError, "deltas are data, not parameters", *arena, SMALL)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=name)
def test_refuses_codes_without_their_scales(dtype: torch.dtype, device: torch.device) -> None:
    base, _, coefficients = make_arena(3, SMALL, device)
    codes = torch.zeros(3, N, dtype=dtype, device=device)
    text = f"deltas of {name(dtype)} must be TaskVectors, which hold the scales, got a Tensor"
    both_refuse(RuntimeError, f"merge: {text}", base, codes, coefficients, SMALL)
    with pytest.raises(RuntimeError, match=f"merge_dots: {text}"):
        mdft_fast.merge_dots(make_grads(SMALL, device), codes, SMALL)


def test_refuses_a_second_derivative(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device)
    coefficients.requires_grad_()
    merged = mdft_fast.merge(base, deltas, coefficients, SMALL)
    (slope,) = torch.autograd.grad(merged.square().sum(), coefficients, create_graph=True)
    # The sum also has a path that is differentiable twice: a missing term would go unnoticed.
    penalty = slope.square().sum() + coefficients.sum()
    with pytest.raises(RuntimeError, match="merge: only the first derivative"):
        torch.autograd.grad(penalty, coefficients, retain_graph=True)
    with pytest.raises(RuntimeError, match="merge: only the first derivative"):
        penalty.backward()


def test_refuses_in_place_changes_of_a_merged_tensor(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device)
    part = mdft_fast.merge_tensors(base, deltas, coefficients.requires_grad_(), SMALL)[0]
    with pytest.raises(RuntimeError, match="modified inplace"):
        part.mul_(2)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_refuses_a_graph_whose_weights_were_overwritten(
    whole: bool, learns: bool, device: torch.device
) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device)
    coefficients.requires_grad_(learns)
    out = torch.empty_like(base)

    def weight() -> Tensor:
        if whole:
            return mdft_fast.merge(base, deltas, coefficients, SMALL, out=out)[TILE:][:6].view(2, 3)
        return mdft_fast.merge_tensors(base, deltas, coefficients, SMALL, out=out)[2]

    x = torch.randn(5, 3, device=device, requires_grad=True)
    old = x @ weight().T
    new = x @ weight().T  # same buffer, same shapes: only the version tells
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|modified inplace"):
        old.sum().backward()
    new.sum().backward()


def test_a_current_buffer_is_read_and_not_written(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device)
    coefficients.requires_grad_()
    out = torch.empty_like(base)
    x = torch.randn(5, 3, device=device, requires_grad=True)
    old = x @ mdft_fast.merge_tensors(base, deltas, coefficients, SMALL, out=out)[2].T
    again = mdft_fast.merge_tensors(base, deltas, coefficients, SMALL, out=out, current=True)
    new = x @ again[2].T
    first = torch.autograd.grad(old.sum(), coefficients)  # still valid: nothing was written
    second = torch.autograd.grad(new.sum(), coefficients)
    assert torch.equal(old, new)
    assert torch.equal(first[0], second[0])


def test_refuses_a_parameter_as_out(device: torch.device) -> None:
    arena = make_arena(3, SMALL, device)
    out = torch.empty_like(arena.base, requires_grad=True)
    both_refuse(RuntimeError, r"leaf .*that requires grad", *arena, SMALL, out=out)


def test_refuses_transforms_that_it_does_not_know(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device)

    def merge(c: Tensor) -> Tensor:
        return mdft_fast.merge(base, deltas, c, SMALL)

    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(merge, (coefficients,), (coefficients,))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(merge)(coefficients[None])


# ---- 6. bits


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("deltas", [F32, *CODECS], ids=name)
def test_bits_do_not_depend_on_threads_or_repeats(deltas: Any, device: torch.device) -> None:
    layout = Layout.of({f"t{i}": (1500 + i,) for i in range(40)})
    arena = make_arena(9, layout, device, deltas=deltas)
    assert_bits_hold(lambda: [mdft_fast.merge(*arena, layout)])


@pytest.mark.parametrize("codec", CODECS)
def test_bits_are_those_of_the_formula(codec: Codec, device: torch.device) -> None:
    # Exact in float64 but for fma's one rounding: the same steps, one by one.
    layout = flat(3 * TILE - GROUP)
    arena = make_arena(11, layout, device, deltas=codec, elements=3 * TILE - GROUP)
    codes = wide(dataclasses.replace(arena.deltas, scales=torch.ones_like(arena.deltas.scales)))
    wanted = arena.base
    for k, scales in enumerate(arena.deltas.scales):
        factor = (arena.coefficients[k] * scales).repeat_interleave(GROUP)
        wanted = (factor.double() * codes[k] + wanted.double()).float()
    got = mdft_fast.merge(*arena, layout)
    if mdft_fast.kernels()["cpu"] == "avx2" or device.type == "cuda":
        assert torch.equal(got, wanted)


@given(layout=layouts(), K=st.integers(1, 9), data=st.data())
def test_bits_do_not_depend_on_the_range_of_tiles(
    layout: Layout, K: int, data: st.DataObject, device: torch.device
) -> None:
    arena = make_arena(K, layout, device)
    whole = mdft_fast.merge(*arena, layout)
    tiles = data.draw(ranges(layout))
    part = mdft_fast.merge(*arena, layout, tiles=tiles)
    assert torch.equal(part, whole[tiles[0] * TILE : tiles[1] * TILE])
    for slot, tensor in zip(
        layout.slots_in(tiles), mdft_fast.merge_tensors(*arena, layout, tiles=tiles), strict=True
    ):
        assert torch.equal(tensor.flatten(), whole[slot.tile * TILE :][: slot.numel])


def test_bits_do_not_depend_on_strides_of_gradients(device: torch.device) -> None:
    layout = Layout.of({"a": (40, 30), "b": (7,)})
    base, deltas, coefficients = make_arena(3, layout, device)
    coefficients.requires_grad_()
    parts = mdft_fast.merge_tensors(base, deltas, coefficients, layout)
    weight = torch.randn(40, 30, device=device)
    (dense,) = torch.autograd.grad(parts[0], coefficients, weight, retain_graph=True)
    (strided,) = torch.autograd.grad(parts[0], coefficients, weight.mT.contiguous().mT)
    assert torch.equal(strided, dense)


# ---- 7. degenerate


@pytest.mark.parametrize("K", [0, 1, 5])
@pytest.mark.parametrize("dtype", NARROW, ids=name)
def test_degenerate_zero_coefficients_give_base(
    K: int, dtype: torch.dtype, device: torch.device
) -> None:
    base, deltas, coefficients = make_arena(K, SMALL, device, base=dtype, deltas=dtype)
    got = mdft_fast.merge(base, deltas, torch.zeros_like(coefficients), SMALL, out_dtype=dtype)
    assert torch.equal(got, base)
    assert got.data_ptr() != base.data_ptr()


@pytest.mark.parametrize("K", [1, 8])
def test_degenerate_one_hot_coefficients_give_the_model(K: int, device: torch.device) -> None:
    layout = Layout.of({"a": (50, 60), "b": (7,)})
    random = torch.Generator().manual_seed(0)
    base = (torch.randn(layout.elements, generator=random) * 0.05).half().to(device)
    moved = torch.randn(K, layout.elements, generator=random).to(device) * 0.002
    models = (base.float() + moved).half()
    deltas = models.float() - base.float()
    for k in range(K):
        one_hot = torch.zeros(K, 2, device=device)
        one_hot[k] = 1
        got = mdft_fast.merge(base, deltas, one_hot, layout, out_dtype=F16)
        assert torch.equal(bits(got), bits(models[k]))
        assert torch.equal(mdft_fast.merge(base, deltas, one_hot, layout), models[k].float())


def test_degenerate_one_hot_coefficients_give_the_real_model(
    real_pool: Path, device: torch.device
) -> None:
    base = load_file(real_pool / "base.safetensors")
    models = [load_file(real_pool / "models" / f"{m}.safetensors") for m in ("mnist", "gtsrb")]
    names = [n for n, x in base.items() if x.is_floating_point()]
    layout = Layout.of({n: base[n].shape for n in names})

    def pack(tensors: dict[str, Tensor]) -> Tensor:
        return layout.pack({n: tensors[n].to(device, F32) for n in names})

    start, ends = pack(base), torch.stack([pack(m) for m in models])
    one_hot = torch.eye(2, device=device)[1][:, None].expand(2, len(names)).contiguous()
    merged = mdft_fast.merge_tensors(start, ends - start, one_hot, layout)
    for n, tensor in zip(names, merged, strict=True):
        assert torch.equal(tensor.cpu(), models[1][n].float()), n


def test_degenerate_an_empty_range_of_tiles(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device, learns=True)
    got = mdft_fast.merge(base, deltas, coefficients, SMALL, tiles=(2, 2))
    assert got.shape == (0,)
    got.sum().backward()
    assert not coefficients.grad.any()
    assert not base.grad.any()


def test_degenerate_absent_gradients_count_as_zero(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device, learns=True)
    parts = mdft_fast.merge_tensors(base, deltas, coefficients, SMALL)
    parts[2].sum().backward()
    ones = torch.ones(6, device=device)
    wanted = torch.zeros_like(coefficients)
    wanted[:, 2:3] = mdft_fast.merge_dots(ones, deltas[:, TILE : TILE + 6].contiguous())
    assert torch.equal(coefficients.grad, wanted)
    assert base.grad.sum() == 6
    assert torch.equal(base.grad[TILE : TILE + 6], ones)


@pytest.mark.parametrize("K", [0, 1, 5])
@pytest.mark.parametrize("codec", CODECS)
def test_degenerate_zeros_give_base(K: int, codec: Codec, device: torch.device) -> None:
    base, deltas, coefficients = make_arena(K, CODED, device, deltas=codec)
    assert torch.equal(mdft_fast.merge(base, deltas, 0 * coefficients, CODED), base)
    silent = dataclasses.replace(deltas, scales=0 * deltas.scales)
    assert torch.equal(mdft_fast.merge(base, silent, coefficients, CODED), base)
    assert not mdft_fast.merge_dots(make_grads(CODED, device), silent, CODED).any()


def test_degenerate_decoded_vectors_merge_alike(device: torch.device) -> None:
    # The same numbers as floats: code times scale is rounded, λ times scale is not.
    arena = make_arena(5, CODED, device, base=F16, deltas="int8")
    floats = TaskVectors(reference.decode(*split(arena.deltas)))
    assert torch.equal(floats.codes, arena.deltas.decode())
    assert_merges(mdft_fast.merge(arena.base, floats, arena.coefficients, CODED), arena, CODED)


def test_packed_task_vectors_are_their_codes(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device, deltas=BF16)
    packed = TaskVectors(deltas, "bf16")
    assert torch.equal(
        mdft_fast.merge(base, packed, coefficients, SMALL),
        mdft_fast.merge(base, deltas, coefficients, SMALL),
    )


def named(device: torch.device) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Layout]:
    """A base and the task vectors of three models, by name, and their layout."""
    shapes = {"weight": (300, 10), "bias": (10,), "scale": ()}
    random = torch.Generator().manual_seed(3)
    base, *deltas = (
        {n: torch.randn(shape, generator=random).to(device) for n, shape in shapes.items()}
        for _ in range(4)
    )
    return base, deltas, Layout.of(shapes)


@pytest.mark.parametrize("columns", ["tensor", "group", "task"])
def test_tensors_by_name_merge_as_their_arena_does(columns: str, device: torch.device) -> None:
    base, deltas, layout = named(device)
    if columns != "tensor":
        layout = layout.group({n: "b" if n == "bias" and columns == "group" else "a" for n in base})
    lam = torch.rand(3, len(layout.columns), device=device, requires_grad=True)
    arena, vectors = layout.pack(base), torch.stack([layout.pack(d) for d in deltas])
    wanted = mdft_fast.merge_tensors(arena, vectors, lam, layout)
    if columns == "task":
        got = mdft_fast.merge_tensors(base, deltas, lam[:, 0])
    else:
        got = mdft_fast.merge_tensors(base, deltas, lam, layout if columns == "group" else None)
    assert list(got) == list(base)
    assert all(map(torch.equal, got.values(), wanted))
    slopes = [
        torch.autograd.grad(sum(x.square().sum() for x in parts), lam)[0]
        for parts in (wanted, got.values())
    ]
    assert torch.equal(*slopes)


def test_tensors_by_name_are_differentiable_in_base(device: torch.device) -> None:
    base, deltas, _ = named(device)
    base["bias"].requires_grad_()
    merged = mdft_fast.merge_tensors(base, deltas, torch.rand(3, device=device))
    (2 * merged["bias"].sum() + merged["weight"].sum()).backward()
    assert base["bias"].grad.tolist() == [2] * 10


def test_refuses_tensors_by_name_that_are_not_the_base_s(device: torch.device) -> None:
    base, deltas, layout = named(device)
    lam = torch.rand(3, device=device)
    merge = mdft_fast.merge_tensors
    error = mdft_fast.MdftError
    for change, text in {
        "missing": r"merge: deltas\[1\]: must hold the layout's 3 tensors, got 'bias' missing",
        "more": "must hold the layout's 3 tensors, got 'odd' one too many",
        "shape": r"tensor 'bias' must be floating and \[10\], got torch.float32 and \[2, 5\]",
        "dtype": r"tensor 'bias' must be floating and \[10\], got torch.int64 and \[10\]",
        "device": r"tensors must be on one device, got \[",
    }.items():
        wrong = dict(deltas[1])
        bias = wrong.pop("bias")
        new = {"shape": bias.view(2, 5), "dtype": bias.long(), "device": bias.to("meta")}
        if change != "missing":
            wrong["bias"] = new.get(change, bias)
        if change == "more":
            wrong["odd"] = bias
        with pytest.raises(error, match=text):
            merge(base, [deltas[0], wrong, deltas[2]], lam)
    deltas[0]["bias"].requires_grad_()
    with pytest.raises(ValueError, match="deltas are data, not parameters"):
        merge(base, deltas, lam)
    with pytest.raises(ValueError, match="tensors by name where base is"):
        merge(base, torch.zeros(3, layout.elements), lam)
    with pytest.raises(ValueError, match="for an arena, got tensors by name"):
        merge(base, deltas, lam, tiles=(0, 1))
    with pytest.raises(ValueError, match="an arena needs a layout"):
        merge(torch.zeros(4), torch.zeros(1, 4), torch.zeros(1, 1))
    for columns in (2, 4):  # of three tensors
        with pytest.raises(RuntimeError, match=rf"must be \[3, 3\], got \[3, {columns}\]"):
            merge(
                base,
                [{n: x.detach() for n, x in d.items()} for d in deltas],
                torch.rand(3, columns),
            )


def test_a_layout_of_another_arena_is_refused() -> None:
    layout = Layout.of({"a": (TILE,)})
    base, deltas, lam = torch.zeros(2 * TILE), torch.zeros(1, 2 * TILE), torch.zeros(1, 1)
    wanted = "layout must cover the arena's 2 tiles, got one of 1"
    both_refuse(RuntimeError, f"merge: {wanted}", base, deltas, lam, layout)
    with pytest.raises(RuntimeError, match=f"merge_dots: {wanted}"):
        mdft_fast.merge_dots([torch.zeros(TILE)], deltas, layout)
