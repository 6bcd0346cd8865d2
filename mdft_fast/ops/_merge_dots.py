# SPDX-License-Identifier: Apache-2.0
"""Projecting weight gradients on the task vectors: the gradient of ``merge`` with respect to λ."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mdft_fast import reference
from mdft_fast.arena import TILE, Layout, Slot, TaskVectors, TilePlan, plan_of_one
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._library import LOADED, dtype_name, native
from mdft_fast.reference import accumulator

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # the test run executes these annotations
    from jaxtyping import Float


def merge_dots(
    grads: Sequence[Float[Tensor, "..."] | None] | Float[Tensor, "..."],
    deltas: Float[Tensor, "K N"] | TaskVectors,
    layout: Layout | None = None,
    *,
    tiles: tuple[int, int] | None = None,
) -> Float[Tensor, "K L"]:
    """Projects weight gradients on the task vectors: the gradient of :func:`merge` in λ.

        dots[k, l] = Σ_{n: l(n) = l} grad[n] · deltas[k, n]

    Args:
        grads: the gradient of each tensor of the layout (of the range ``tiles``), in arena order
            and of its shape, taken where it lies; None counts as zero. One dtype. A single
            tensor stands for a list of one.
        deltas: ``[K, N]`` task vectors, as in :func:`merge`, in any codec.
        layout: the arena's map; None: one tensor ``[N]``, one column.
        tiles: the range ``(first, last)`` of tiles that the gradients cover.

    Returns:
        ``[K, L]`` float32 (float64 for float64); zero in columns that the range does not touch.
        Summed in a fixed order: equal inputs give equal bits, whatever the number of threads.

    Raises:
        RuntimeError: if shapes, dtypes, devices or strides break the rules above.

    Not differentiable.
    """
    codes, scales = checks.split("merge_dots", deltas)
    elements = deltas.N if isinstance(deltas, TaskVectors) else deltas.shape[-1]
    grads = [grads] if isinstance(grads, Tensor) else grads
    if layout is None:
        plan = plan_of_one(elements, codes.device, tiles)
        slots: tuple[Slot, ...] = (Slot("all", (elements,), 0, 0),)[plan.first :]
    else:
        checks.check_covers("merge_dots", layout, elements)
        plan, slots = layout.plan(codes.device, tiles), layout.slots_in(tiles)
    _check_shapes(grads, slots)
    with torch.no_grad():
        return dot_gradients(grads, codes, scales, plan)


def _check_shapes(grads: Sequence[Tensor | None], slots: Sequence[Slot]) -> None:
    """Refuses gradients of other tensors than the layout's: an operator sees sizes alone."""
    op = "merge_dots"
    if len(grads) != len(slots):
        raise RuntimeError(
            f"{op}: grads must hold one for each of the layout's {len(slots)} tensors, "
            f"got {len(grads)}"
        )
    for slot, grad in zip(slots, grads, strict=True):
        if grad is not None and grad.shape != slot.shape:  # else: no text while compiling
            rule, got = list(slot.shape), checks.shape(grad)
            checks.require(False, op, f"gradient of {slot.name!r}", rule, got)


def dot_gradients(
    grads: Sequence[Tensor | None], codes: Tensor, scales: Tensor | None, plan: TilePlan
) -> Tensor:
    """Runs the operator, or the reference where there is none."""
    if not native("merge_dots", codes.device, codes.dtype):
        _check_for_reference(grads, codes, scales, plan)
        deltas = codes if scales is None else reference.decode(codes, scales)
        return reference.merge_dots(grads, deltas, plan)
    result: Tensor = torch.ops.mdft_fast.merge_dots(
        list(grads), codes, scales, plan.order, plan.starts, plan.tensor_tiles, plan.first,
        plan.last, None if plan.rows is None else plan.columns, plan.rows,
    )  # fmt: skip
    return result


def _check_for_reference(
    grads: Sequence[Tensor | None], codes: Tensor, scales: Tensor | None, plan: TilePlan
) -> None:
    op, acc = "merge_dots", accumulator(codes.dtype)
    checks.check_sums(op, "deltas", codes.dtype, acc, codes=True)
    elements = codes.shape[-1] * (2 if codes.dtype == torch.uint8 else 1)
    checks.check_vectors(op, codes, scales, elements)
    present = [(i, grad) for i, grad in enumerate(grads) if grad is not None]
    for i, grad in present:
        checks.check_devices(op, codes, **{"a gradient": grad})
        most = elements - (plan.first + int(plan.tensor_tiles[i])) * TILE
        if grad.numel() > most:
            raise RuntimeError(
                f"{op}: gradient {i} must have at most {most} elements, got {checks.shape(grad)}"
            )
        checks.check_sums(op, "a gradient", grad.dtype, acc)
        dtype = present[0][1].dtype
        same = grad.dtype == dtype
        checks.require(same, op, "all gradients", dtype_name(dtype), dtype_name(grad.dtype))


def _merge_dots_fake(
    grads: Sequence[Tensor | None],
    deltas: Tensor,
    scales: Tensor | None,
    order: Tensor,
    starts: Tensor,
    tensor_tiles: Tensor,
    first: int,
    last: int,
    columns: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    index = {"deltas": deltas, "scales": scales, "starts": starts, "columns": columns, "rows": rows}
    checks.check_devices("merge_dots", order, **index)
    acc = accumulator(deltas.dtype)
    return deltas.new_empty(deltas.shape[0], starts.shape[0] - 1, dtype=acc)


if LOADED:
    torch.library.register_fake("mdft_fast::merge_dots", _merge_dots_fake)
