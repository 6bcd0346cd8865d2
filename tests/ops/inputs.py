# SPDX-License-Identifier: Apache-2.0
"""The one builder of operator inputs, and what their results are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from mdft_fast import reference
from mdft_fast.arena import GROUP, LARGEST_CODE, TILE, Codec, Layout, TaskVectors, TilePlan
from mdft_fast.reference import accumulator, decode
from tests.tolerance import assert_within_rounding

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
DTYPES = (F32, BF16, F16, F64)
NARROW = (F32, BF16, F16)
CODECS: tuple[Codec, ...] = ("int8", "int4")


def name(value: Any) -> str | None:
    """Returns a test id: ``bfloat16`` for a dtype, ``a-b`` for a tuple."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return "-".join(str(name(v) or v) for v in value) or "none"
    return None


def split(deltas: Tensor | TaskVectors) -> tuple[Tensor, Tensor | None]:
    """Returns codes and scales, as the operators take them."""
    return (deltas.codes, deltas.scales) if isinstance(deltas, TaskVectors) else (deltas, None)


def wide(deltas: Tensor | TaskVectors) -> Tensor:
    """Returns the same numbers in float64, where code times scale is exact."""
    return decode(*split(deltas), F64)


class Arena(NamedTuple):
    """Inputs of ``merge``."""

    base: Tensor
    deltas: Any  # Tensor | TaskVectors
    coefficients: Tensor

    def stored(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Returns the first arguments of the operators."""
        return (self.base, *split(self.deltas), self.coefficients)

    def double(self) -> Arena:
        """Returns the same numbers in float64."""
        return Arena(self.base.double(), wide(self.deltas), self.coefficients.double())

    def abs(self) -> Arena:
        """Returns the absolute values."""
        return Arena(*(x.abs() for x in self))


def make_arena(
    K: int,
    layout: Layout,
    device: torch.device,
    *,
    base: torch.dtype = F32,
    deltas: torch.dtype | Codec = F32,
    elements: int | None = None,
    seed: int = 0,
    learns: bool = False,
) -> Arena:
    """Draws ``base [N]``, ``deltas [K, N]`` (packed for a codec) and ``coefficients [K, L]``.

    The numbers are of one size and of both signs, so that a sum kept in too few bits shows. Where
    it ``learns``, base and coefficients require grad.
    """
    random = torch.Generator().manual_seed(seed)
    N = layout.elements if elements is None else elements

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return Arena(
        draw(N).to(device, base).requires_grad_(learns),
        make_packed(K, N, deltas, random).to(device)
        if isinstance(deltas, str)
        else draw(K, N).to(device, deltas),
        draw(K, layout.L).to(device, accumulator(base)).requires_grad_(learns),
    )


def make_packed(K: int, N: int, codec: Codec, random: torch.Generator) -> TaskVectors:
    """Draws codes of every value, -8 and -128 too, and scales that make elements of size 1."""
    scales = (torch.rand(K, N // GROUP, generator=random) + 0.5) / LARGEST_CODE[codec]
    if codec == "int4":
        codes = torch.randint(0, 256, (K, N // 2), generator=random, dtype=torch.uint8)
    else:
        codes = torch.randint(-128, 128, (K, N), generator=random, dtype=torch.int8)
    return TaskVectors(codes, codec, scales)


def flat(N: int) -> Layout:
    """Returns the layout of one tensor of N elements, which need not be whole tiles."""
    return Layout.single(N)


def make_grads(
    layout: Layout, device: torch.device, dtype: torch.dtype = F32, seed: int = 1
) -> list[Tensor]:
    """Draws a gradient for every tensor of a layout."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s.shape, generator=random).to(device, dtype) for s in layout.slots]


class Rows(NamedTuple):
    """Inputs of ``debiased_entropy_loss``: one ``[B, C]`` a task."""

    logits: list[Tensor]
    teacher: list[Tensor]

    def to(self, *target: Any) -> Rows:
        """Returns the same numbers in a dtype, or on a device."""
        return Rows([z.to(*target) for z in self.logits], [t.to(*target) for t in self.teacher])


def make_rows(
    shapes: Sequence[tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype = F32,
    *,
    scale: float = 3.0,
    seed: int = 0,
) -> Rows:
    """Draws logits and teacher logits of tasks ``(B, C)``; of teachers both sure and unsure."""
    random = torch.Generator().manual_seed(seed)
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for shape in shapes:
        sureness = torch.rand(shape[0], 1, generator=random) * 2
        rows[0].append(torch.randn(shape, generator=random) * scale)
        rows[1].append(torch.randn(shape, generator=random) * scale * sureness)
    return Rows(*rows).to(device, dtype)


# Tensors from nothing to several tiles, 0-d ones included.
shapes = st.lists(
    st.one_of(
        st.just(()),
        st.just((0,)),
        st.tuples(st.integers(1, 3 * TILE)),
        st.tuples(st.integers(1, 40), st.integers(1, 60)),
        st.tuples(st.integers(1, 4), st.integers(300, 1500)),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def layouts(draw: Callable[..., Any], by_row: bool | None = None) -> Layout:
    """Random layouts, each with a random grouping of its tensors under columns, or one a row."""
    layout = Layout.of({f"t{i}": shape for i, shape in enumerate(draw(shapes))})
    if by_row or (by_row is None and draw(st.booleans())):
        return layout.by_row()
    group = {slot.name: f"c{draw(st.integers(0, 2))}" for slot in layout.slots}
    return layout.group(group) if draw(st.booleans()) else layout


def raw_merge(arena: Arena, layout: Layout, tiles: Any = None) -> tuple[Any, ...]:
    """Returns the arguments of the operators ``merge`` and ``merge_out`` up to the tiles."""
    plan = layout.plan(arena.base.device, tiles)
    return (*arena.stored(), plan.columns, plan.first, plan.last)


def raw_dots(
    grads: Sequence[Tensor | None], deltas: Tensor | TaskVectors, layout: Layout
) -> tuple[Any, ...]:
    """Returns the arguments of the operator ``merge_dots``."""
    codes, scales = split(deltas)
    plan = layout.plan(codes.device)
    index = (plan.order, plan.starts, plan.tensor_tiles, plan.first, plan.last)
    by_row = () if plan.rows is None else (plan.columns, plan.rows)
    return (list(grads), codes, scales, *index, *by_row)


def poison_padding(deltas: Any, layout: Layout) -> Any:
    """Puts NaN where no tensor lies (of codes into such groups' scales): nobody may read it."""
    codes, scales = split(deltas)
    inside = torch.zeros(layout.elements, dtype=torch.bool, device=codes.device)
    for view in layout.views(inside):
        view.fill_(True)
    if scales is None:
        return codes.where(inside, torch.nan)
    return dataclasses.replace(
        deltas, scales=scales.where(inside.view(-1, GROUP).any(1), torch.nan)
    )


def assert_merges(got: Tensor, arena: Arena, layout: Layout, tiles: Any = None) -> None:
    """Holds a merge against the float64 reference."""
    # K sums, and where multiply and add are two roundings, one product; of codes λ times the scale.
    terms = len(arena.coefficients) + (2 if isinstance(arena.deltas, TaskVectors) else 1)
    assert_merges_by(got, arena, layout.plan(got.device, tiles), terms)


def assert_merges_by(got: Tensor, arena: Arena, plan: TilePlan, terms: int) -> None:
    """The same by a plan, of so many roundings a term."""
    assert_within_rounding(
        got,
        exact=reference.merge(*arena.double(), plan, F64),
        magnitude=reference.merge(*arena.double().abs(), plan, F64),
        terms=terms,
        reference_terms=terms,
    )


# Of floats 37 sums in a tile and where multiply and add are two roundings, one product. Of codes
# 8 sums in a group, and two running ones meet, then 8 groups, 3 levels; where fma is two
# roundings, the products with a code and with a scale. CUDA's kernels need 13 (int8), 16 (int4).
FLOAT_TERMS, CODE_TERMS = 37 + 1, 8 + 1 + 8 + 3 + 2


def assert_dots(
    got: Tensor, grads: Sequence[Tensor | None], deltas: Any, layout: Layout, tiles: Any = None
) -> None:
    """Holds dot products against the float64 reference."""
    terms = CODE_TERMS if isinstance(deltas, TaskVectors) else FLOAT_TERMS
    assert_dots_by(got, grads, deltas, layout.plan(got.device, tiles), terms, layout.tiles)


def assert_dots_by(
    got: Tensor, grads: Any, deltas: Any, plan: TilePlan, terms: int, tiles: int
) -> None:
    """The same by a plan, of so many roundings in a tile and so many tiles."""
    values = wide(deltas)
    exact = [None if g is None else g.double() for g in grads]
    size = [None if g is None else g.abs() for g in exact]
    assert_within_rounding(
        got,
        exact=reference.merge_dots(exact, values, plan),
        magnitude=reference.merge_dots(size, values.abs(), plan),
        # The tiles of a column are added in float64, whose roundings count only there.
        terms=terms + (tiles if got.dtype == F64 else 0),
        reference_terms=TILE + tiles,
    )


@st.composite
def ranges(draw: Callable[..., Any], layout: Layout) -> tuple[int, int]:
    """Ranges of tiles that begin and end between tensors."""
    ends = st.sampled_from([*(s.tile for s in layout.slots), layout.tiles])
    first, last = sorted((draw(ends), draw(ends)))
    return first, last


def some_grads(
    data: st.DataObject, layout: Layout, tiles: Any, dtype: torch.dtype, device: torch.device
) -> list[Tensor | None]:
    """Draws gradients of a range of tiles, one in four absent."""
    inside = layout.slots_in(tiles)
    return [
        g if data.draw(st.integers(0, 3)) else None
        for g, slot in zip(make_grads(layout, device, dtype), layout.slots, strict=True)
        if slot in inside
    ]


SMALL = Layout.of({"a": (3,), "none": (0,), "b": (2, 600), "c": ()})
G = SMALL.elements // GROUP
# Codes of SMALL, what is wrong -> (codec, position of the argument in merge and merge_dots alike,
# its replacement, the message).
WRONG_CODES: dict[str, tuple[Codec, int, Any, str]] = {
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
}  # fmt: skip


def assert_bits_hold(call: Callable[[], Sequence[Tensor]]) -> None:
    """Sees equal bits on one thread and, over and over, on two."""
    torch.set_num_threads(1)
    alone = call()
    torch.set_num_threads(2)
    for _ in range(3):
        assert all(map(torch.equal, call(), alone))


def changed(args: Sequence[Any], position: int, change: Any) -> list[Any]:
    """Returns arguments with one replaced, or made by a function of the old one."""
    new = change(args[position]) if callable(change) else change
    if isinstance(new, Tensor) and isinstance(args[0], Tensor) and not callable(change):
        new = new.to(args[0].device)
    return [new if i == position else old for i, old in enumerate(args)]


def outcome(op: Callable[..., Any], args: Sequence[Any], word: str) -> str:
    """Returns the error that an operator raises, from ``word`` on; nothing if it raises none."""
    try:
        op(*args)
    except RuntimeError as error:
        text = str(error)
        return text[text.index(word) :].splitlines()[0]
    return ""
