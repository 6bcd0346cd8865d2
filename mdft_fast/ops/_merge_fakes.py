# SPDX-License-Identifier: Apache-2.0
"""Shapes, dtypes and errors of merge and merge_dots, for torch.compile and fake tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdft_fast.arena import GROUP, TILE
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._library import LOADED
from mdft_fast.reference import accumulator


def _check_range(op: str, first: int, last: int, n: int) -> None:
    tiles = -(-n // TILE)
    torch._check(
        0 <= first <= last <= tiles,
        lambda: f"{op}: tiles must be a range of [0, {tiles}], got [{first}, {last})",
    )


CODES = (torch.int8, torch.uint8)  # int8, and int4 two elements a byte


def elements_of_row(deltas: Tensor) -> int:
    """Returns ``N``."""
    return deltas.shape[1] * (2 if deltas.dtype == torch.uint8 else 1)


def _check_scales(op: str, deltas: Tensor, scales: Tensor | None, n: int) -> None:
    dtype = checks.name(deltas.dtype)
    got = "None" if scales is None else checks.shape(scales)
    if deltas.dtype not in CODES:
        torch._check(
            scales is None, lambda: f"{op}: scales must be None for {dtype} deltas, got {got}"
        )
        return
    torch._check(
        n % GROUP == 0,
        lambda: f"{op}: {dtype} deltas must have a multiple of {GROUP} elements, got {n}",
    )
    wanted = [deltas.shape[0], n // GROUP]
    torch._check(
        scales is not None and list(scales.shape) == wanted,
        lambda: f"{op}: scales must be {wanted} for {dtype} deltas, got {got}",
    )
    if scales is not None:
        checks.check_dtype(op, "scales", scales, torch.float32)


def _check_deltas(op: str, dtype: torch.dtype, acc: torch.dtype) -> None:
    rule = "float32, float16, bfloat16, int8 or uint8"
    rule = "float64 like the rest" if acc == torch.float64 else rule
    floating = dtype in checks.FLOATING and accumulator(dtype) == acc
    torch._check(
        floating or (dtype in CODES and acc == torch.float32),
        lambda: f"{op}: deltas must be {rule}, got {checks.name(dtype)}",
    )


def check_merge_args(
    base: Tensor,
    deltas: Tensor,
    scales: Tensor | None,
    coefficients: Tensor,
    columns: Tensor,
    first: int,
    last: int,
    out_dtype: torch.dtype,
) -> None:
    """Refuses what check_merge_args of csrc/merge/merge.h refuses."""
    op, shape = "merge", checks.shape
    checks.check_vector(op, "base", base, "[N]")
    n = base.shape[0]
    stored = n // 2 if deltas.dtype == torch.uint8 else n
    torch._check(
        deltas.dim() == 2 and deltas.shape[1] == stored,
        lambda: f"{op}: deltas must be [K, {stored}], got {shape(deltas)}",
    )
    _check_scales(op, deltas, scales, n)
    k = deltas.shape[0]
    torch._check(
        coefficients.dim() == 2 and coefficients.shape[0] == k,
        lambda: f"{op}: coefficients must be [{k}, L], got {shape(coefficients)}",
    )
    _check_range(op, first, last, n)
    checks.check_length(op, "columns", columns, last - first)
    checks.check_floating(op, "base", base)
    acc = accumulator(base.dtype)
    _check_deltas(op, deltas.dtype, acc)
    checks.check_dtype(op, "coefficients", coefficients, acc)
    checks.check_dtype(op, "columns", columns, torch.int32)
    checks.check_accumulates(op, "out", out_dtype, acc)
    checks.check_beside(op, "base", base, deltas)
    checks.check_beside(op, "deltas", deltas, base)
    if scales is not None:
        checks.check_beside(op, "scales", scales, base)
    checks.check_beside(op, "coefficients", coefficients, base)
    checks.check_beside(op, "columns", columns, base)


def check_merge_out(base: Tensor, out: Tensor, first: int, last: int) -> None:
    """Refuses what check_merge_out of csrc/merge/merge.h refuses, but for shared memory."""
    checks.check_length("merge", "out", out, _elements(first, last, base.shape[0]))
    checks.check_beside("merge", "out", out, base)


def _elements(first: int, last: int, n: int) -> int:
    return min(last * TILE, n) - min(first * TILE, n)


def _merge_fake(
    base: Tensor,
    deltas: Tensor,
    scales: Tensor | None,
    coefficients: Tensor,
    columns: Tensor,
    first: int,
    last: int,
    out_dtype: torch.dtype,
) -> Tensor:
    check_merge_args(base, deltas, scales, coefficients, columns, first, last, out_dtype)
    return base.new_empty(_elements(first, last, base.shape[0]), dtype=out_dtype)


def _merge_out_fake(
    base: Tensor,
    deltas: Tensor,
    scales: Tensor | None,
    coefficients: Tensor,
    columns: Tensor,
    first: int,
    last: int,
    out: Tensor,
) -> None:
    check_merge_args(base, deltas, scales, coefficients, columns, first, last, out.dtype)
    check_merge_out(base, out, first, last)


def check_merge_dots_args(
    grads: Sequence[Tensor | None],
    deltas: Tensor,
    scales: Tensor | None,
    order: Tensor,
    starts: Tensor,
    tensor_tiles: Tensor,
    first: int,
    last: int,
) -> None:
    """Refuses what check_merge_dots_args of csrc/merge/merge.h refuses before it reads data."""
    op = "merge_dots"
    torch._check(
        deltas.dim() == 2, lambda: f"{op}: deltas must be [K, N], got {checks.shape(deltas)}"
    )
    _check_scales(op, deltas, scales, elements_of_row(deltas))
    _check_range(op, first, last, elements_of_row(deltas))
    checks.check_length(op, "order", order, last - first)
    checks.check_vector(op, "starts", starts, "[L + 1]", least=1)
    checks.check_length(op, "tensor_tiles", tensor_tiles, len(grads) + 1)
    rule = "float32, float64, float16, bfloat16, int8 or uint8"
    torch._check(
        deltas.dtype in (*checks.FLOATING, *CODES),
        lambda: f"{op}: deltas must be {rule}, got {checks.name(deltas.dtype)}",
    )
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
    if scales is not None:
        checks.check_beside(op, "scales", scales, deltas)
    checks.check_beside(op, "order", order, deltas)
    checks.check_beside(op, "starts", starts, deltas)


def check_gradients(
    grads: Sequence[Tensor | None], deltas: Tensor, tiles: Sequence[int] | None, first: int
) -> None:
    """Refuses gradients as csrc/merge/merge.h does; their sizes where ``tensor_tiles`` is known."""
    op = "merge_dots"
    acc = accumulator(deltas.dtype)
    dtype: torch.dtype | None = None
    for i, grad in enumerate(grads):
        if grad is None:
            continue
        if tiles is not None:
            most = elements_of_row(deltas) - (first + tiles[i]) * TILE
            _check_size(i, grad, tiles[i + 1] - tiles[i], most)
        checks.check_accumulates(op, "a gradient", grad.dtype, acc)
        dtype = dtype or grad.dtype
        wanted, got = checks.name(dtype), checks.name(grad.dtype)
        torch._check(
            grad.dtype == dtype,
            lambda: f"{op}: all gradients must be {wanted}, got {got}",  # noqa: B023
        )
        checks.check_beside(op, "a gradient", grad, deltas)


def _check_size(i: int, grad: Tensor, room: int, most: int) -> None:
    shape = checks.shape(grad)
    torch._check(
        -(-grad.numel() // TILE) == room,
        lambda: f"merge_dots: gradient {i} must fill {room} tiles of {TILE} elements, got {shape}",
    )
    torch._check(
        grad.numel() <= most,
        lambda: f"merge_dots: gradient {i} must have at most {most} elements, got {shape}",
    )


def _merge_dots_fake(
    grads: Sequence[Tensor | None],
    deltas: Tensor,
    scales: Tensor | None,
    order: Tensor,
    starts: Tensor,
    tensor_tiles: Tensor,
    first: int,
    last: int,
) -> Tensor:
    check_merge_dots_args(grads, deltas, scales, order, starts, tensor_tiles, first, last)
    # What tensor_tiles holds a fake cannot know, but of one tensor alone.
    check_gradients(grads, deltas, [0, last - first] if len(grads) == 1 else None, first)
    acc = accumulator(deltas.dtype)
    return deltas.new_empty(deltas.shape[0], starts.shape[0] - 1, dtype=acc)


if LOADED:
    torch.library.register_fake("mdft_fast::merge", _merge_fake)
    torch.library.register_fake("mdft_fast::merge_out", _merge_out_fake)
    torch.library.register_fake("mdft_fast::merge_dots", _merge_dots_fake)
