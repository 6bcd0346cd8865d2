# SPDX-License-Identifier: Apache-2.0
"""``merge`` and ``merge_dots`` of int8 and int4 task vectors: the seven kinds of tests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mdft_fast
from mdft_fast import reference
from mdft_fast.arena import GROUP, TILE, Codec, Layout, TaskVectors
from tests.ops.inputs import (
    BF16,
    F16,
    F32,
    F64,
    NARROW,
    Arena,
    fake_outcome,
    flat,
    layouts,
    make_arena,
    make_grads,
    name,
    outcome,
    split,
    wide,
)
from tests.tolerance import assert_within_rounding

CODECS: tuple[Codec, ...] = ("int8", "int4")
# Nothing, one group, a tail, one tile, tiles + tail, many tasks, no task at all.
SIZES = [(2, 0), (1, GROUP), (3, TILE - GROUP), (4, TILE), (8, 20_096), (20, 4096), (0, 384)]
OPS = torch.ops.mdft_fast
# A group: 8 sums, and two running ones meet. Then 8 groups, 3 levels; where fma is two roundings,
# the products with a code and with a scale. CUDA's kernels need 13 (int8) and 16 (int4).
DOTS_TERMS = 8 + 1 + 8 + 3 + 2
SMALL = Layout.of({"a": (3,), "none": (0,), "b": (2, 600), "c": ()})
N, T = SMALL.elements, SMALL.tiles


def assert_merges(got: Tensor, arena: Arena, layout: Layout, tiles: Any = None) -> None:
    plan = layout.plan(got.device, tiles)
    K = len(arena.coefficients)
    assert_within_rounding(
        got,
        exact=reference.merge(*arena.double(), plan, F64),
        magnitude=reference.merge(*arena.double().abs(), plan, F64),
        terms=K + 2,  # K sums, λ times the scale, and where fma is two roundings, one product
        reference_terms=K + 2,
    )


def assert_dots(
    got: Tensor, grads: Sequence[Tensor | None], deltas: Any, layout: Layout, tiles: Any = None
) -> None:
    plan = layout.plan(got.device, tiles)
    exact = [None if g is None else g.double() for g in grads]
    size = [None if g is None else g.abs() for g in exact]
    values = wide(deltas)
    assert_within_rounding(
        got,
        exact=reference.merge_dots(exact, values, plan),
        magnitude=reference.merge_dots(size, values.abs(), plan),
        terms=DOTS_TERMS,
        reference_terms=TILE + layout.tiles,
    )


# ---- 1. rounding


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtypes", [*itertools.product(NARROW, repeat=2)], ids=name)
@pytest.mark.parametrize(("K", "N"), SIZES)
def test_rounds_no_more_than_it_must(
    K: int, N: int, dtypes: tuple[torch.dtype, ...], codec: Codec, device: torch.device
) -> None:
    arena = make_arena(K, flat(N), device, base=dtypes[0], deltas=codec, elements=N)
    got = mdft_fast.merge(*arena, flat(N), out_dtype=dtypes[1])
    assert got.dtype == dtypes[1]
    assert_merges(got, arena, flat(N))
    out = torch.full((N,), torch.nan, dtype=dtypes[1], device=device)
    assert mdft_fast.merge(*arena, flat(N), out=out) is out
    assert torch.equal(out, got)
    grad = torch.randn(N, device=device).to(dtypes[0])
    assert_dots(mdft_fast.merge_dots(grad, arena.deltas), [grad], arena.deltas, flat(N))


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


def poison_padding(deltas: TaskVectors, layout: Layout) -> TaskVectors:
    """Puts NaN into the scales of groups in which no tensor lies: nobody may read those."""
    inside = torch.zeros(layout.elements, dtype=torch.bool, device=deltas.codes.device)
    for view in layout.views(inside):
        view.fill_(True)
    assert deltas.scales is not None
    scales = deltas.scales.where(inside.view(-1, GROUP).any(1), torch.nan)
    return dataclasses.replace(deltas, scales=scales)


@given(
    layout=layouts(),
    K=st.integers(0, 18),
    codec=st.sampled_from(CODECS),
    dtypes=st.tuples(*[st.sampled_from(NARROW)] * 3),
    data=st.data(),
)
def test_rounds_no_more_than_it_must_in_any_layout(
    layout: Layout,
    K: int,
    codec: Codec,
    dtypes: tuple[torch.dtype, ...],
    data: st.DataObject,
    device: torch.device,
) -> None:
    arena = make_arena(K, layout, device, base=dtypes[0], deltas=codec)
    cuts = sorted(
        data.draw(st.sampled_from([*(s.tile for s in layout.slots), layout.tiles])) for _ in "ab"
    )
    tiles = (cuts[0], cuts[1])
    got = mdft_fast.merge(*arena, layout, tiles=tiles, out_dtype=dtypes[1])
    assert_merges(got, arena, layout, tiles)
    whole = mdft_fast.merge(*arena, layout, out_dtype=dtypes[1])
    assert torch.equal(got, whole[tiles[0] * TILE : tiles[1] * TILE])
    inside = layout.slots_in(tiles)
    grads: list[Tensor | None] = [
        g if data.draw(st.integers(0, 3)) else None
        for g, slot in zip(make_grads(layout, device, dtypes[2]), layout.slots, strict=True)
        if slot in inside
    ]
    deltas = poison_padding(arena.deltas, layout)
    dots = mdft_fast.merge_dots(grads, deltas, layout, tiles=tiles)
    assert_dots(dots, grads, deltas, layout, tiles)


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


# ---- 2. gradients


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", NARROW, ids=name)
@pytest.mark.parametrize("whole", [False, True])
def test_gradients(whole: bool, dtype: torch.dtype, codec: Codec, device: torch.device) -> None:
    layout = Layout.of({"a": (3000,), "b": (5, 7), "c": ()}).group({"a": "x", "b": "y", "c": "x"})
    base, deltas, coefficients = make_arena(9, layout, device, base=dtype, deltas=codec)
    base.requires_grad_()
    coefficients.requires_grad_()
    if whole:
        parts = [mdft_fast.merge(base, deltas, coefficients, layout, out_dtype=dtype)]
    else:
        parts = [*mdft_fast.merge_tensors(base, deltas, coefficients, layout, out_dtype=dtype)]
    weights = [torch.randn_like(part) for part in parts]
    torch.autograd.backward(parts, weights)
    arena = torch.zeros(layout.elements, dtype=F64, device=device)
    for view, weight in zip([arena] if whole else layout.views(arena), weights, strict=True):
        view.copy_(weight)
    assert torch.equal(base.grad, arena.to(dtype))
    # The merge is linear in λ: the loss at two points tells its slope.
    values, plan = wide(deltas), layout.plan(device)

    def loss(lam: Tensor) -> Tensor:
        return (reference.merge(base.detach().double(), values, lam, plan, F64) * arena).sum()

    lam = coefficients.detach().double()
    steps = torch.eye(lam.numel(), dtype=F64, device=device).view(-1, *lam.shape)
    slopes = torch.stack([loss(lam + step) - loss(lam) for step in steps]).view_as(lam)
    tiles = plan._replace(tensor_tiles=torch.arange(layout.tiles + 1))
    assert_within_rounding(
        coefficients.grad,
        exact=slopes,
        magnitude=reference.merge_dots(arena.abs().split(TILE), values.abs(), tiles),
        terms=DOTS_TERMS,
        reference_terms=0,
    )


# ---- 3. registration


def raw(arena: Arena, layout: Layout, tiles: Any = None) -> tuple[Any, ...]:
    plan = layout.plan(arena.base.device, tiles)
    return (*arena.stored(), plan.columns, plan.first, plan.last)


def raw_dots(grads: Sequence[Tensor | None], deltas: Any, layout: Layout) -> tuple[Any, ...]:
    plan = layout.plan(deltas.codes.device)
    index = (plan.order, plan.starts, plan.tensor_tiles, plan.first, plan.last)
    return (list(grads), *split(deltas), *index)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tiles", [None, (1, 3), (0, 0)])
def test_is_registered_right(tiles: Any, codec: Codec, device: torch.device) -> None:
    arena = make_arena(3, SMALL, device, deltas=codec)
    args = raw(arena, SMALL, tiles)
    torch.library.opcheck(OPS.merge.default, (*args, BF16))
    out = torch.empty((args[6] - args[5]) * TILE, device=device)
    torch.library.opcheck(OPS.merge_out.default, (*args, out))
    grads = [None, *make_grads(SMALL, device)[1:]]
    torch.library.opcheck(OPS.merge_dots.default, raw_dots(grads, arena.deltas, SMALL))


@pytest.mark.parametrize("codec", CODECS)
def test_compiles_in_one_graph(codec: Codec, device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device, deltas=codec)
    coefficients.requires_grad_()

    def step(c: Tensor) -> Tensor:
        parts = mdft_fast.merge_tensors(base, deltas, c, SMALL)
        return sum(p.square().sum() for p in parts)

    wanted = torch.autograd.grad(step(coefficients), coefficients)[0]
    value = torch.compile(step, fullgraph=True, backend="aot_eager")(coefficients)
    assert torch.equal(value, step(coefficients))
    assert torch.equal(torch.autograd.grad(value, coefficients)[0], wanted)


# ---- 4. errors

G = N // GROUP
# what is wrong -> (codec, position of the argument in merge, its replacement, the message)
WRONG: dict[str, tuple[Codec, int, Any, str]] = {
    "deltas short": ("int8", 1, lambda x: x[:, 1:], f"deltas must be [K, {N}], got [3, {N - 1}]"),
    "deltas not halved": (
        "int4", 1, lambda x: x.repeat(1, 2), f"deltas must be [K, {N // 2}], got [3, {N}]",
    ),
    "no scales": ("int8", 2, None, f"scales must be [3, {G}] for int8 deltas, got None"),
    "no scales of int4": ("int4", 2, None, f"scales must be [3, {G}] for uint8 deltas, got None"),
    "scales few": (
        "int8", 2, lambda x: x[1:], f"scales must be [3, {G}] for int8 deltas, got [2, {G}]",
    ),
    "scales short": (
        "int4", 2, lambda x: x[:, 1:],
        f"scales must be [3, {G}] for uint8 deltas, got [3, {G - 1}]",
    ),
    "scales 1-d": (
        "int8", 2, lambda x: x[0], f"scales must be [3, {G}] for int8 deltas, got [{G}]",
    ),
    "scales half": ("int8", 2, lambda x: x.half(), "scales must be float32, got float16"),
    "scales strided": (
        "int8", 2, lambda x: x.mT.contiguous().mT, "scales must be contiguous, got strides",
    ),
    "codes strided": (
        "int4", 1, lambda x: x.mT.contiguous().mT, "deltas must be contiguous, got strides",
    ),
    "float codes": (
        "int8", 1, lambda x: x.float(), f"scales must be None for float32 deltas, got [3, {G}]",
    ),
    "base float64": (
        "int8", 0, lambda x: x.double(), "deltas must be float64 like the rest, got int8",
    ),
    "out float64": (
        "int4", 7, F64, "out must be float32, float16 or bfloat16, got float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_errors_say_what_was_wanted_and_what_came(what: str, device: torch.device) -> None:
    codec, position, change, text = WRONG[what]
    args = [*raw(make_arena(3, SMALL, device, deltas=codec), SMALL), F32]
    args[position] = change(args[position]) if callable(change) else change
    wanted = f"merge: {text}"
    assert outcome(OPS.merge, args, "merge:") == wanted
    assert fake_outcome(OPS.merge, args, "merge:") == wanted
    args[7] = torch.empty(N, dtype=args[7], device=device)
    assert outcome(OPS.merge_out, args, "merge:") == wanted
    assert fake_outcome(OPS.merge_out, args, "merge:") == wanted
    if position not in (1, 2) or what.startswith("deltas"):
        return
    args = [*raw_dots(make_grads(SMALL, device), make_arena(3, SMALL, device, deltas=codec).deltas,
                      SMALL)]  # fmt: skip
    args[position] = change(args[position]) if callable(change) else change
    wanted = f"merge_dots: {text}"
    assert outcome(OPS.merge_dots, args, "merge_dots:") == wanted
    assert fake_outcome(OPS.merge_dots, args, "merge_dots:") == wanted


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
    assert fake_outcome(OPS.merge, args, "merge:") == f"merge: {text}"
    args = [[None], codes, scales, plan.order, plan.starts, plan.tensor_tiles, 0, 1]
    assert outcome(OPS.merge_dots, args, "merge_dots:") == f"merge_dots: {text}"
    assert fake_outcome(OPS.merge_dots, args, "merge_dots:") == f"merge_dots: {text}"


def test_errors_of_a_gradient_beyond_the_arena(device: torch.device) -> None:
    packed = make_arena(2, flat(896), device, deltas="int4", elements=896).deltas
    args = raw_dots([torch.ones(897, device=device)], packed, flat(896))
    wanted = "merge_dots: gradient 0 must have at most 896 elements, got [897]"
    assert outcome(OPS.merge_dots, args, "merge_dots:") == wanted
    assert fake_outcome(OPS.merge_dots, args, "merge_dots:") == wanted


def test_errors_of_gradients_in_float64(device: torch.device) -> None:
    packed = make_arena(2, SMALL, device, deltas="int8").deltas
    args = raw_dots(make_grads(SMALL, device, F64), packed, SMALL)
    wanted = "merge_dots: a gradient must be float32, float16 or bfloat16, got float64"
    assert outcome(OPS.merge_dots, args, "merge_dots:") == wanted
    assert fake_outcome(OPS.merge_dots, args, "merge_dots:") == wanted


@pytest.mark.parametrize("what", ["deltas", "scales"])
def test_an_out_that_shares_memory_is_an_error(what: str, device: torch.device) -> None:
    arena = make_arena(9, SMALL, device, deltas="int8")
    room = torch.empty(2 * N, device=device)
    scales = room[N - 5 :][: 9 * G].view(9, G).copy_(arena.deltas.scales)
    arena = arena._replace(deltas=dataclasses.replace(arena.deltas, scales=scales))
    out = room[:N] if what == "scales" else arena.deltas.codes.view(-1)[: 4 * N].view(F32)
    wanted = f"merge: out must not overlap {what}, got memory of it"
    assert outcome(OPS.merge_out, [*raw(arena, SMALL), out], "merge:") == wanted
    for function in (mdft_fast.merge, mdft_fast.merge_tensors):
        with pytest.raises(RuntimeError, match=wanted):
            function(*arena, SMALL, out=out)


# ---- 5. refusals


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=name)
def test_refuses_codes_without_their_scales(dtype: torch.dtype, device: torch.device) -> None:
    base, _, coefficients = make_arena(3, SMALL, device)
    codes = torch.zeros(3, N, dtype=dtype, device=device)
    text = f"deltas of {name(dtype)} must be TaskVectors, which hold the scales, got a Tensor"
    for function in (mdft_fast.merge, mdft_fast.merge_tensors):
        with pytest.raises(RuntimeError, match=f"merge: {text}"):
            function(base, codes, coefficients, SMALL)
    with pytest.raises(RuntimeError, match=f"merge_dots: {text}"):
        mdft_fast.merge_dots(make_grads(SMALL, device), codes, SMALL)


def test_refuses_scales_that_require_grad(device: torch.device) -> None:
    base, deltas, coefficients = make_arena(3, SMALL, device, deltas="int4")
    deltas.scales.requires_grad_()
    for function in (mdft_fast.merge, mdft_fast.merge_tensors):
        with pytest.raises(ValueError, match="deltas are data, not parameters"):
            function(base, deltas, coefficients, SMALL)


# ---- 6. bits


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("codec", CODECS)
def test_bits_do_not_depend_on_threads_or_repeats(codec: Codec, device: torch.device) -> None:
    layout = Layout.of({f"t{i}": (1500 + i,) for i in range(40)})
    arena = make_arena(9, layout, device, deltas=codec)
    grads = make_grads(layout, device)
    torch.set_num_threads(1)
    alone = mdft_fast.merge(*arena, layout)
    alone_dots = mdft_fast.merge_dots(grads, arena.deltas, layout)
    torch.set_num_threads(2)
    for _ in range(3):
        assert torch.equal(mdft_fast.merge(*arena, layout), alone)
        assert torch.equal(mdft_fast.merge_dots(grads, arena.deltas, layout), alone_dots)


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


# ---- 7. degenerate


@pytest.mark.parametrize("K", [0, 1, 5])
@pytest.mark.parametrize("codec", CODECS)
def test_degenerate_zeros_give_base(K: int, codec: Codec, device: torch.device) -> None:
    base, deltas, coefficients = make_arena(K, SMALL, device, deltas=codec)
    assert torch.equal(mdft_fast.merge(base, deltas, 0 * coefficients, SMALL), base)
    silent = dataclasses.replace(deltas, scales=0 * deltas.scales)
    assert torch.equal(mdft_fast.merge(base, silent, coefficients, SMALL), base)
    assert not mdft_fast.merge_dots(make_grads(SMALL, device), silent, SMALL).any()


@pytest.mark.parametrize("codec", CODECS)
def test_degenerate_absent_gradients_count_as_zero(codec: Codec, device: torch.device) -> None:
    deltas = make_arena(3, SMALL, device, deltas=codec).deltas
    unread = dataclasses.replace(deltas, scales=torch.full_like(deltas.scales, torch.nan))
    assert not mdft_fast.merge_dots([None] * 4, unread, SMALL).any()
    assert not mdft_fast.merge_dots([], unread, SMALL, tiles=(0, 0)).any()
    grads = [None, None, torch.ones(2, 600, device=device), None]
    got = mdft_fast.merge_dots(grads, deltas, SMALL)
    assert not got[:, [0, 1, 3]].any()
    assert_dots(got, grads, deltas, SMALL)


def test_degenerate_decoded_vectors_merge_alike(device: torch.device) -> None:
    # The same numbers as floats: code times scale is rounded, λ times scale is not.
    arena = make_arena(5, SMALL, device, base=F16, deltas="int8")
    floats = TaskVectors(reference.decode(*split(arena.deltas)))
    assert torch.equal(floats.codes, arena.deltas.decode())
    assert_merges(mdft_fast.merge(arena.base, floats, arena.coefficients, SMALL), arena, SMALL)
