# SPDX-License-Identifier: Apache-2.0
"""merge_dots (the gradient of merge in λ) against what a user can write in plain torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import mdft_fast
from benchmarks.harness import Case, Compete, agree
from benchmarks.machine import Machine
from benchmarks.operands import CODECS, DTYPES, Arena, K, dots_tolerance, make_arena
from mdft_fast.arena import TILE


def dots(a: Arena) -> Callable[[], Tensor]:
    """One dot product a task and tensor: K times the gradient is read."""
    grads, rows = a.each(a.grad), [a.each(row) for row in a.deltas]
    return lambda: torch.stack(
        [
            torch.stack([torch.dot(g, d) for g, d in zip(grads, row, strict=True)]).float()
            for row in rows
        ]
    )


def foreach(a: Arena) -> Callable[[], Tensor]:
    """What autograd does to a sum of scaled terms: products kept, then summed."""
    grads, rows = a.each(a.grad), [a.each(row) for row in a.deltas]
    return lambda: torch.stack(
        [torch.stack([p.sum() for p in torch._foreach_mul(grads, row)]).float() for row in rows]
    )


def mv_by_tensor(a: Arena) -> Callable[[], Tensor]:
    """One mv for each tensor."""
    grads, blocks = a.each(a.grad), a.each(a.deltas)
    return lambda: torch.stack(
        [block @ g for g, block in zip(grads, blocks, strict=True)], dim=1
    ).float()


def compiled(a: Arena) -> Callable[[], Tensor]:
    """Products summed tile by tile, fused by inductor; the gradients are flat already."""
    columns = a.layout.plan(a.base.device).columns.long()

    @torch.compile
    def merge_dots(grad: Tensor, deltas: Tensor) -> Tensor:
        tiles = (deltas.view(K, -1, TILE) * grad.view(-1, TILE).float()).sum(-1)
        return tiles.new_zeros(K, len(a.layout.columns)).index_add(1, columns, tiles)

    return lambda: merge_dots(a.grad, a.deltas)


def products_by_row(a: Arena) -> Callable[[], Tensor]:
    """Products of gradient and task vectors, summed along rows, tensor by tensor."""
    grads, blocks = a.matrices(a.grad), a.matrices(a.deltas)
    pairs = list(zip(grads, blocks, strict=True))
    return lambda: torch.cat([(block * grad).sum(-1).float() for grad, block in pairs], 1)


def bmm_by_row(a: Arena) -> Callable[[], Tensor]:
    """One bmm a tensor, a product ``[K, length] x [length, 1]`` for each of its rows."""
    blocks = [block.transpose(0, 1) for block in a.matrices(a.deltas)]
    pairs = list(zip(a.matrices(a.grad), blocks, strict=True))
    return lambda: torch.cat([(block @ g[..., None])[..., 0].float() for g, block in pairs]).T


def compiled_by_row(a: Arena) -> Callable[[], Tensor]:
    """Products summed along rows, tensor by tensor, fused by inductor."""
    pairs = list(zip(a.matrices(a.grad), a.matrices(a.deltas), strict=True))

    @torch.compile(dynamic=True)
    def merge_dots(grad: Tensor, deltas: Tensor) -> Tensor:
        return (deltas * grad.float()).sum(-1)

    return lambda: torch.cat([merge_dots(*pair) for pair in pairs], 1)


def row_case(a: Arena, name: str) -> Case:
    """λ's gradient per row; that per tensor is its sum over the rows."""
    grads = [g.view(s.shape) for g, s in zip(a.each(a.grad), a.layout.slots, strict=True)]
    layout, coefficients = a.by_row
    tolerance = dots_tolerance(a.base.dtype)

    def check(ours: Tensor, theirs: Tensor) -> None:
        if theirs.shape != ours.shape:
            ours = torch.stack([x.double().sum(1) for x in ours.split(list(layout.rows), 1)], 1)
        agree(ours, theirs, tolerance)

    rivals = {
        "λ per tensor, ours": lambda: mdft_fast.merge_dots(grads, a.deltas, a.layout),
        "products by tensor": products_by_row(a),
        "bmm by tensor": bmm_by_row(a),
        "torch.compile by tensor": compiled_by_row(a),
    }
    moved = (K + 1) * a.layout.elements * a.base.element_size() + coefficients.nbytes
    ours = functools.partial(mdft_fast.merge_dots, grads, a.deltas, layout)
    return Case("merge_dots", f"{name}, λ per row", ours, rivals, check, moved)


def cases(a: Arena, name: str) -> Iterator[Case]:
    """λ's gradient per tensor, and per task where the gradients are flat already."""
    grads = [g.view(s.shape) for g, s in zip(a.each(a.grad), a.layout.slots, strict=True)]
    moved = (K + 1) * a.layout.elements * a.base.element_size()
    check = functools.partial(agree, tolerance=dots_tolerance(a.base.dtype))
    yield Case(
        "merge_dots", f"{name}, λ per tensor",
        lambda: mdft_fast.merge_dots(grads, a.deltas, a.layout),
        {
            "dot by dot": dots(a),
            "_foreach": foreach(a),
            "mv by tensor": mv_by_tensor(a),
            "torch.compile (flat gradients)": compiled(a),
        },
        check, moved,
    )  # fmt: skip
    yield Case(
        "merge_dots", f"{name}, λ per task",
        lambda: mdft_fast.merge_dots(a.grad, a.deltas)[:, 0],
        {"mv of the arena": lambda: (a.deltas @ a.grad).float()},
        check, moved,
    )  # fmt: skip
    yield row_case(a, name)
    for codec in CODECS:
        packed = a.packed(codec)
        moved = a.grad.nbytes + packed.bytes
        yield Case(
            "merge_dots", f"{name}, {codec} τ, λ per tensor",
            functools.partial(mdft_fast.merge_dots, grads, packed, a.layout),
            {"mv by tensor": mv_by_tensor(a)}, check, moved,
        )  # fmt: skip
        yield Case(
            "merge_dots", f"{name}, {codec} τ, λ per task",
            lambda packed=packed: mdft_fast.merge_dots(a.grad, packed)[:, 0],
            {"mv of the arena": lambda: (a.deltas @ a.grad).float()}, check, moved,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_dots(dtype: str, table: str, machine: Machine, compete: Compete) -> None:
    """Gradient of λ per tensor."""
    a = make_arena(table, DTYPES[dtype], machine.device)
    compete(next(cases(a, f"{table} {dtype}")), rounds=5)
