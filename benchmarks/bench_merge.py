# SPDX-License-Identifier: Apache-2.0
"""merge against what a user can write in plain torch: forward, and forward with backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mdft_fast
from benchmarks.harness import Case, Compete, agree
from benchmarks.machine import Machine
from benchmarks.operands import CODECS, DTYPES, Arena, K, dots_tolerance, make_arena, tolerance
from mdft_fast.arena import TILE, TaskVectors


def eager_loop(a: Arena) -> Callable[[], Tensor]:
    """K scaled adds a tensor, in place."""
    bases, outs, rows = a.each(a.base), a.each(a.out), [a.each(row) for row in a.deltas]

    def call() -> Tensor:
        scales = a.coefficients.tolist()
        for i, (base, out) in enumerate(zip(bases, outs, strict=True)):
            torch.add(base, rows[0][i], alpha=scales[0][i], out=out)
            for k in range(1, K):
                out.add_(rows[k][i], alpha=scales[k][i])
        return a.out

    return call


def foreach(a: Arena) -> Callable[[], Tensor]:
    """torch._foreach: all tensors of a task vector in one call."""
    bases, outs, rows = a.each(a.base), a.each(a.out), [a.each(row) for row in a.deltas]

    def call() -> Tensor:
        torch._foreach_copy_(outs, bases)
        for row, scales in zip(rows, a.coefficients.tolist(), strict=True):
            torch._foreach_add_(outs, torch._foreach_mul(row, scales))
        return a.out

    return call


def addmv_by_tensor(a: Arena) -> Callable[[], Tensor]:
    """One addmv for each tensor."""
    bases, outs, blocks = a.each(a.base), a.each(a.out), a.each(a.deltas)

    def call() -> Tensor:
        columns = a.coefficients.to(a.base.dtype).T.contiguous()
        for base, out, block, scale in zip(bases, outs, blocks, columns, strict=True):
            torch.addmv(base, block.T, scale, out=out)
        return a.out

    return call


def addmv_of_arena(a: Arena) -> Callable[[], Tensor]:
    """One addmv for the whole arena: one coefficient a task. The least traffic of all rivals."""
    scale = a.per_task.to(a.base.dtype)
    return lambda: torch.addmv(a.base, a.deltas.T, scale, out=a.out)


def compiled(a: Arena) -> Callable[[], Tensor]:
    """The sum over tiles, each with its own λ, fused by inductor."""
    columns = a.layout.plan(a.base.device).columns.long()

    @torch.compile
    def merge(base: Tensor, deltas: Tensor, coefficients: Tensor, out: Tensor) -> None:
        total = base.view(-1, TILE).float()
        for k in range(K):
            total = total + coefficients[k][columns][:, None] * deltas[k].view(-1, TILE)
        out.copy_(total.view(-1))

    def call() -> Tensor:
        merge(a.base, a.deltas, a.coefficients, a.out)
        return a.out

    return call


def addcmul_by_row(a: Arena) -> Callable[[], Tensor]:
    """K addcmul a tensor, λ broadcast along the rows."""
    bases, outs = a.matrices(a.base), a.matrices(a.out)
    vectors = [a.matrices(row) for row in a.deltas]
    layout, coefficients = a.by_row

    def call() -> Tensor:
        columns = coefficients.to(a.base.dtype)[..., None].split(list(layout.rows), 1)
        for i, (base, out) in enumerate(zip(bases, outs, strict=True)):
            torch.addcmul(base, vectors[0][i], columns[i][0], out=out)
            for k in range(1, K):
                out.addcmul_(vectors[k][i], columns[i][k])
        return a.out

    return call


def baddbmm_by_row(a: Arena) -> Callable[[], Tensor]:
    """One baddbmm a tensor, a product ``[1, K] x [K, length]`` for each of its rows."""
    bases, outs = a.matrices(a.base), a.matrices(a.out)
    blocks = [block.transpose(0, 1) for block in a.matrices(a.deltas)]
    layout, coefficients = a.by_row

    def call() -> Tensor:
        columns = coefficients.to(a.base.dtype).T.split(list(layout.rows))
        for base, out, block, of_rows in zip(bases, outs, blocks, columns, strict=True):
            torch.baddbmm(base[:, None], of_rows[:, None], block, out=out[:, None])
        return a.out

    return call


def compiled_by_row(a: Arena) -> Callable[[], Tensor]:
    """The sum with λ broadcast along rows, tensor by tensor, fused by inductor."""
    bases, outs, blocks = (a.matrices(x) for x in (a.base, a.out, a.deltas))
    layout, coefficients = a.by_row

    @torch.compile(dynamic=True)
    def merge(base: Tensor, deltas: Tensor, columns: Tensor, out: Tensor) -> None:
        total = base.float()
        for k in range(K):
            total = total + columns[k][:, None] * deltas[k]
        out.copy_(total)

    def call() -> Tensor:
        columns = coefficients.split(list(layout.rows), 1)
        for base, block, of_rows, out in zip(bases, blocks, columns, outs, strict=True):
            merge(base, block, of_rows, out)
        return a.out

    return call


def same(dtype: torch.dtype) -> Callable[[Any, Any], None]:
    """Returns a check of two arenas."""
    return lambda ours, theirs: agree(ours, theirs, tolerance(dtype))


def forward_cases(a: Arena, name: str) -> Iterator[Case]:
    """Merges into a kept output, with λ per tensor and per task, and into a fresh one."""
    dtype, check = a.base.dtype, same(a.base.dtype)
    moved = (K + 2) * a.layout.elements * a.base.element_size()
    by_tensor = {
        "loop of adds": eager_loop(a),
        "_foreach": foreach(a),
        "addmv by tensor": addmv_by_tensor(a),
        "torch.compile": compiled(a),
    }
    mine = functools.partial(mdft_fast.merge, a.base, a.deltas)
    yield Case(
        "merge", f"{name}, λ per tensor",
        lambda: mine(a.coefficients, a.layout, out=a.out), by_tensor, check, moved,
    )  # fmt: skip
    yield Case(
        "merge", f"{name}, λ per task",
        lambda: mine(a.per_task, out=a.out), {"addmv of the arena": addmv_of_arena(a)},
        check, moved,
    )  # fmt: skip
    yield Case(
        "merge", f"{name}, λ per task, fresh output",
        lambda: mine(a.per_task, out_dtype=dtype),
        {"addmv of the arena": lambda: torch.addmv(a.base, a.deltas.T, a.per_task.to(dtype))},
        check, moved,
    )  # fmt: skip
    yield from row_cases(a, name)
    yield from codec_cases(a, name)


def row_cases(a: Arena, name: str) -> Iterator[Case]:
    """λ per row, equal in all rows of a tensor, so that λ per tensor may run beside."""
    check, (layout, coefficients) = same(a.base.dtype), a.by_row
    moved = (K + 2) * a.layout.elements * a.base.element_size() + coefficients.nbytes
    mine = functools.partial(mdft_fast.merge, a.base, a.deltas, out=a.out)
    rivals = {
        "λ per tensor, ours": functools.partial(mine, a.coefficients, a.layout),
        "addcmul by tensor": addcmul_by_row(a),
        "baddbmm by tensor": baddbmm_by_row(a),
        "torch.compile by tensor": compiled_by_row(a),
    }
    ours = functools.partial(mine, coefficients, layout)
    yield Case("merge", f"{name}, λ per row", ours, rivals, check, moved)


def codec_cases(a: Arena, name: str) -> Iterator[Case]:
    """Merges int8 and int4 task vectors; the rivals have them as floats of the base's dtype."""
    check, N = same(a.base.dtype), a.layout.elements
    for codec in CODECS:
        packed = a.packed(codec)
        moved = 2 * N * a.base.element_size() + packed.bytes
        mine = functools.partial(mdft_fast.merge, a.base, packed, out=a.out)
        yield Case(
            "merge", f"{name}, {codec} τ, λ per tensor",
            functools.partial(mine, a.coefficients, a.layout),
            {"addmv by tensor": addmv_by_tensor(a)}, check, moved,
        )  # fmt: skip
        yield Case(
            "merge", f"{name}, {codec} τ, λ per task", functools.partial(mine, a.per_task),
            {"addmv of the arena": addmv_of_arena(a)}, check, moved,
        )  # fmt: skip
        yield Case(
            "merge", f"{name}, {codec} τ, forward and backward", forward_and_backward(a, packed),
            {"addmv by tensor": addmv_and_back(a)},
            functools.partial(agree, tolerance=dots_tolerance(a.base.dtype)),
            3 * N * a.base.element_size() + 2 * packed.bytes,
        )  # fmt: skip


def forward_and_backward(a: Arena, deltas: Tensor | TaskVectors) -> Callable[[], Tensor]:
    """Our merge and λ's gradient, through autograd."""
    grads = [g.view(s.shape) for g, s in zip(a.each(a.grad), a.layout.slots, strict=True)]
    leaf = a.coefficients.clone().requires_grad_()

    @torch.enable_grad()
    def call() -> Tensor:
        tensors = mdft_fast.merge_tensors(
            a.base, deltas, leaf, a.layout, out=a.out, out_dtype=a.base.dtype
        )
        return torch.autograd.grad(tensors, leaf, grads)[0]

    return call


def addmv_and_back(a: Arena) -> Callable[[], Tensor]:
    """One addmv for each tensor, and autograd's way back."""
    leaf = a.coefficients.clone().requires_grad_()
    bases, blocks, flat = a.each(a.base), a.each(a.deltas), a.each(a.grad)

    @torch.enable_grad()
    def call() -> Tensor:
        columns = leaf.to(a.base.dtype).unbind(1)
        parts = zip(bases, blocks, columns, strict=True)
        merged = [torch.addmv(base, block.T, column) for base, block, column in parts]
        return torch.autograd.grad(merged, leaf, flat)[0]

    return call


def gradient_case(a: Arena, name: str) -> Case:
    """Forward and backward through autograd, down to λ's gradient."""
    leaf = a.coefficients.clone().requires_grad_()
    bases, flat = a.each(a.base), a.each(a.grad)
    rows = [a.each(row) for row in a.deltas]

    @torch.enable_grad()
    def nine_terms() -> Tensor:
        merged = []
        for i, base in enumerate(bases):
            total = base
            for k in range(K):
                total = total + leaf[k, i] * rows[k][i]
            merged.append(total)
        return torch.autograd.grad(merged, leaf, flat)[0]

    moved = (2 * K + 3) * a.layout.elements * a.base.element_size()
    rivals = {"sum of nine terms": nine_terms, "addmv by tensor": addmv_and_back(a)}
    check = functools.partial(agree, tolerance=dots_tolerance(a.base.dtype))
    ours = forward_and_backward(a, a.deltas)
    return Case("merge", f"{name}, forward and backward", ours, rivals, check, moved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge(dtype: str, table: str, machine: Machine, compete: Compete) -> None:
    """Into a kept output, λ per tensor."""
    a = make_arena(table, DTYPES[dtype], machine.device)
    compete(next(forward_cases(a, f"{table} {dtype}")), rounds=5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_forward_and_backward(
    dtype: str, table: str, machine: Machine, compete: Compete
) -> None:
    """Through autograd."""
    a = make_arena(table, DTYPES[dtype], machine.device)
    compete(gradient_case(a, f"{table} {dtype}"), rounds=5)
