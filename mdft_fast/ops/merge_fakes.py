# SPDX-License-Identifier: Apache-2.0
"""Shapes, dtypes and errors of merge and merge_dots, for torch.compile and fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdft_fast.layout import TILE
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._library import LOADED
from mdft_fast.reference import accumulator


def _check_range(op: str, first: int, last: int, n: int) -> None:
    tiles = -(-n // TILE)
    torch._check(
        0 <= first <= last <= tiles,
        lambda: f"{op}: tiles must be a range of [0, {tiles}], got [{first}, {last})",
    )


def _merge_fake(
    base: Tensor,
    deltas: Tensor,
    coefficients: Tensor,
    columns: Tensor,
    first: int,
    last: int,
    out_dtype: torch.dtype,
) -> Tensor:
    shape = checks.shape
    torch._check(base.dim() == 1, lambda: f"merge: base must be [N], got {shape(base)}")
    n = base.shape[0]
    torch._check(
        deltas.dim() == 2 and deltas.shape[1] == n,
        lambda: f"merge: deltas must be [K, {n}], got {shape(deltas)}",
    )
    torch._check(
        coefficients.dim() == 2 and coefficients.shape[0] == deltas.shape[0],
        lambda: f"merge: coefficients must be [{deltas.shape[0]}, L], got {shape(coefficients)}",
    )
    _check_range("merge", first, last, n)
    torch._check(
        columns.dim() == 1 and columns.shape[0] == last - first,
        lambda: f"merge: columns must be [{last - first}], got {shape(columns)}",
    )
    checks.check_floating("merge", "base", base)
    acc = accumulator(base.dtype)
    checks.check_accumulates("merge", "deltas", deltas.dtype, acc)
    checks.check_dtype("merge", "coefficients", coefficients, acc)
    checks.check_dtype("merge", "columns", columns, torch.int32)
    checks.check_accumulates("merge", "out", out_dtype, acc)
    checks.check_beside("merge", "base", base, deltas)
    checks.check_beside("merge", "deltas", deltas, base)
    checks.check_beside("merge", "coefficients", coefficients, base)
    checks.check_beside("merge", "columns", columns, base)
    return base.new_empty(min(last * TILE, n) - min(first * TILE, n), dtype=out_dtype)


def _merge_out_fake(
    base: Tensor,
    deltas: Tensor,
    coefficients: Tensor,
    columns: Tensor,
    first: int,
    last: int,
    out: Tensor,
) -> None:
    wanted = _merge_fake(base, deltas, coefficients, columns, first, last, out.dtype).shape[0]
    torch._check(
        out.dim() == 1 and out.shape[0] == wanted,
        lambda: f"merge: out must be [{wanted}], got {checks.shape(out)}",
    )
    checks.check_beside("merge", "out", out, base)


def _merge_dots_fake(
    grads: Sequence[Tensor | None],
    deltas: Tensor,
    order: Tensor,
    starts: Tensor,
    tensor_tiles: Tensor,
    first: int,
    last: int,
) -> Tensor:
    op, shape, n = "merge_dots", checks.shape, len(grads)
    torch._check(deltas.dim() == 2, lambda: f"{op}: deltas must be [K, N], got {shape(deltas)}")
    _check_range(op, first, last, deltas.shape[1])
    torch._check(
        order.dim() == 1 and order.shape[0] == last - first,
        lambda: f"{op}: order must be [{last - first}], got {shape(order)}",
    )
    torch._check(
        starts.dim() == 1 and starts.shape[0] >= 1,
        lambda: f"{op}: starts must be [L + 1], got {shape(starts)}",
    )
    torch._check(
        tensor_tiles.dim() == 1 and tensor_tiles.shape[0] == n + 1,
        lambda: f"{op}: tensor_tiles must be [{n + 1}], got {shape(tensor_tiles)}",
    )
    checks.check_floating(op, "deltas", deltas)
    checks.check_dtype(op, "order", order, torch.int32)
    checks.check_dtype(op, "starts", starts, torch.int32)
    checks.check_dtype(op, "tensor_tiles", tensor_tiles, torch.int64)
    torch._check(
        tensor_tiles.device.type != "cuda",
        lambda: f"{op}: tensor_tiles must be on the CPU, got CUDA",
    )
    torch._check(
        tensor_tiles.is_contiguous(),
        lambda: f"{op}: tensor_tiles must be contiguous, got strides",
    )
    checks.check_beside(op, "deltas", deltas, order)
    checks.check_beside(op, "order", order, deltas)
    checks.check_beside(op, "starts", starts, deltas)
    acc = accumulator(deltas.dtype)
    dtype: torch.dtype | None = None
    for grad in grads:
        if grad is None:
            continue
        checks.check_accumulates(op, "a gradient", grad.dtype, acc)
        dtype = dtype or grad.dtype
        wanted, got = checks.name(dtype), checks.name(grad.dtype)
        torch._check(
            grad.dtype == dtype,
            lambda: f"{op}: all gradients must be {wanted}, got {got}",  # noqa: B023
        )
        checks.check_beside(op, "a gradient", grad, deltas)
    return deltas.new_empty(deltas.shape[0], starts.shape[0] - 1, dtype=acc)


if LOADED:
    torch.library.register_fake("mdft_fast::merge", _merge_fake)
    torch.library.register_fake("mdft_fast::merge_out", _merge_out_fake)
    torch.library.register_fake("mdft_fast::merge_dots", _merge_dots_fake)
