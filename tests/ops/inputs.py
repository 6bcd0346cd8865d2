# SPDX-License-Identifier: Apache-2.0
"""The one builder of operator inputs, and how to make a fake of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map

from mdft_fast.arena import GROUP, LARGEST_CODE, TILE, Codec, Layout, TaskVectors
from mdft_fast.reference import accumulator, decode

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
DTYPES = (F32, BF16, F16, F64)
NARROW = (F32, BF16, F16)


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
) -> Arena:
    """Draws ``base [N]``, ``deltas [K, N]`` (packed for a codec) and ``coefficients [K, L]``.

    The numbers are of one size and of both signs, so that a sum kept in too few bits shows.
    """
    random = torch.Generator().manual_seed(seed)
    N = layout.elements if elements is None else elements

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return Arena(
        draw(N).to(device, base),
        make_packed(K, N, deltas, random).to(device)
        if isinstance(deltas, str)
        else draw(K, N).to(device, deltas),
        draw(K, len(layout.columns)).to(device, accumulator(base)),
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
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def layouts(draw: Callable[..., Any]) -> Layout:
    """Random layouts, each with a random grouping of its tensors under columns."""
    layout = Layout.of({f"t{i}": shape for i, shape in enumerate(draw(shapes))})
    group = {slot.name: f"c{draw(st.integers(0, 2))}" for slot in layout.slots}
    return layout.group(group) if draw(st.booleans()) else layout


def outcome(op: Callable[..., Any], args: Sequence[Any], word: str) -> str:
    """Returns the error that an operator raises, from ``word`` on; nothing if it raises none."""
    try:
        op(*args)
    except RuntimeError as error:
        text = str(error)
        return text[text.index(word) :].splitlines()[0]
    return ""


def fake_outcome(op: Callable[..., Any], args: Sequence[Any], word: str) -> str:
    """Returns what :func:`outcome` returns when the operator sees fakes of the same tensors."""
    with FakeTensorMode() as mode:
        fakes = tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, list(args))
        return outcome(op, fakes, word)
