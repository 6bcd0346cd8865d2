# SPDX-License-Identifier: Apache-2.0
"""The inputs of merge and merge_dots at real sizes, and what a rival's answer may err."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from benchmarks.shapes import TABLES
from mdft_fast.arena import DTYPE_OF_CODEC, GROUP, TILE, Codec, Layout, TaskVectors

K = 8
CODECS: tuple[Codec, ...] = ("int8", "int4")
STEP = 0.25  # of the task vectors' values: k * STEP, |k| <= 7, are the same in every codec
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Arena:
    """Inputs of merge and merge_dots; base, task vectors, output and gradient of one dtype.

    Attributes:
        layout: one column of λ a tensor.
        base: ``[N]``; ``deltas [K, N]``; ``out [N]``; ``grad [N]``.
        coefficients: ``[K, L]`` float32.
    """

    layout: Layout
    base: Tensor
    deltas: Tensor
    coefficients: Tensor
    out: Tensor
    grad: Tensor

    @functools.cached_property
    def slices(self) -> list[slice]:
        """Where each tensor lies."""
        starts = [slot.tile * TILE for slot in self.layout.slots]
        return [slice(a, a + s.numel) for a, s in zip(starts, self.layout.slots, strict=True)]

    def each(self, flat: Tensor) -> list[Tensor]:
        """Returns every tensor of an arena ``[N]``, or of all rows of ``[K, N]``, flat."""
        return [flat[..., where] for where in self.slices]

    def packed(self, codec: Codec) -> TaskVectors:
        """Returns the same task vectors, to the bit, as int8 or int4."""
        N, half = self.layout.elements, 2 if codec == "int4" else 1
        scales = self.base.new_full((K, N // GROUP), STEP, dtype=torch.float32)
        codes = self.base.new_empty((K, N // half), dtype=DTYPE_OF_CODEC[codec])
        for row, to in zip(self.deltas, codes, strict=True):
            for piece, place in zip(row.split(1 << 20), to.split((1 << 20) // half), strict=True):
                whole = (piece / STEP).to(torch.int8)
                place.copy_(whole if half == 1 else (whole[::2] & 15) | (whole[1::2] << 4))
        return TaskVectors(codes, codec, scales)

    @functools.cached_property
    def by_row(self) -> tuple[Layout, Tensor]:
        """The layout with one column a row, and λ ``[K, L]``: a tensor's in each of its rows."""
        layout = self.layout.by_row()
        counts = torch.tensor(layout.rows, device=self.coefficients.device)
        return layout, self.coefficients.repeat_interleave(counts, 1)

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """Returns every tensor of an arena ``[N]``, or of all of ``[K, N]``, as rows of λ have it.

        Views ``[..., rows, length]``.
        """
        parts = zip(self.each(flat), self.by_row[0].slots, strict=True)
        return [part.unflatten(-1, (slot.rows, -1)) for part, slot in parts]

    @property
    def per_task(self) -> Tensor:
        """``[K]``: one coefficient a task, where a rival knows no more."""
        return self.coefficients[:, 0].contiguous()


def make_arena(table: str, dtype: torch.dtype, device: torch.device) -> Arena:
    """Makes inputs at real sizes. One block of random numbers, shifted row by row, is enough:
    speed does not depend on values, and drawing 2.4 billion takes a minute."""  # noqa: D205, D209
    layout = Layout.of(TABLES[table])
    N = layout.elements
    random = torch.Generator().manual_seed(0)
    block = torch.randn((1 << 20) + 1024, generator=random).to(device)

    def fill(row: Tensor, shift: int, scale: float, step: float = 0) -> None:
        source = block[shift : shift + (1 << 20)] * scale
        source = ((source / step).round().clamp(-7, 7) * step if step else source).to(dtype)
        for piece in row.split(1 << 20):
            piece.copy_(source[: len(piece)])
        for slot in layout.slots:  # padding is zero
            row[slot.tile * TILE + slot.numel : (slot.tile + slot.tiles) * TILE] = 0

    base, out, grad = (torch.empty(N, dtype=dtype, device=device) for _ in range(3))
    deltas = torch.empty(K, N, dtype=dtype, device=device)
    fill(base, 0, 1.0)
    fill(grad, 17, 0.01)
    fill(out, 0, 0.0)  # its pages exist: a fresh output is another case
    for k, row in enumerate(deltas):
        fill(row, 31 * (k + 1), 0.5, STEP)
    coefficients = torch.rand(K, layout.L, generator=random).to(device)
    return Arena(layout, base, deltas, coefficients, out, grad)


def tolerance(dtype: torch.dtype) -> float:
    """K + 2 roundings in the dtype of the result: what a rival that rounds each term may err."""
    return (K + 2) * torch.finfo(dtype).eps / 2


def dots_tolerance(dtype: torch.dtype) -> float:
    """What a rival may err that sums 88 million products in one float32, or in bfloat16."""
    return 1e-3 if dtype == torch.float32 else 2.0**-6
