# SPDX-License-Identifier: Apache-2.0
"""Merging task vectors into weights (equation 1), and its gradient with respect to λ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mdft_fast import reference
from mdft_fast.arena import TILE, Layout, TaskVectors, TilePlan
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._autograd import differentiable_once
from mdft_fast.ops._library import native
from mdft_fast.ops._merge_fakes import (
    check_gradients,
    check_merge_args,
    check_merge_dots_args,
    check_merge_out,
)
from mdft_fast.ops._merge_inputs import check_covers, check_shapes, split, split_data

Tiles = tuple[int, int]


def merge(
    base: Tensor,
    deltas: Tensor | TaskVectors,
    coefficients: Tensor,
    layout: Layout | None = None,
    *,
    tiles: Tiles | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Mixes K task vectors into pre-trained weights, for a whole model or a part in one launch.

    .. math:: \text{out}_n = \text{base}_n + \sum_k \text{coefficients}_{k,l(n)} \text{deltas}_{kn}

    where :math:`l(n)` is the column of λ that element n belongs to.

    Args:
        base: ``[N]`` pre-trained weights. float32, float16, bfloat16 or float64. Contiguous.
        deltas: ``[K, N]`` task vectors, fine-tuned minus pre-trained, or packed
            :class:`TaskVectors` in any codec. A Tensor may have any of these dtypes, float64
            exactly where ``base`` is; int8 and int4 go with the others. Contiguous. Data, never a
            parameter.
        coefficients: ``[K, L]`` λ (no unit), or ``[K]`` where there is no layout.
            float32; float64 where ``base`` is.
        layout: the arena's map; None: all N elements share one column.
        tiles: merge only the tiles ``(first, last)`` of the arena, one block say.
        out: where to write: ``[elements of the tiles]``, apart from all inputs in
            memory. Not differentiable through what it held.
        out_dtype: dtype of the result where ``out`` is not given; float64 needs a float64 base.

    Returns:
        ``[elements of the tiles]`` merged weights (``out`` itself where given). Terms are summed
        in the dtype of ``coefficients`` in the order base, k = 0..K-1 and rounded once: equal
        inputs give equal bits, whatever the number of threads. Of int8 and int4, λ times the
        group's scale is rounded before it meets the codes.

    Raises:
        ValueError: if ``deltas`` requires grad; its gradient is not computed.
        RuntimeError: if shapes, dtypes, devices or strides break the rules above.

    Differentiable in ``base`` and ``coefficients``. Keeps a reference to ``deltas``, not a copy.

    Source:
        Task arithmetic, Ilharco et al. 2023 (arXiv:2212.04089), sec. 2, with a coefficient per
        task and layer as in AdaMerging (arXiv:2310.02575).
    """
    if layout is None:
        layout = Layout.single(base.shape[0])
        if coefficients.dim() == 1:
            coefficients = coefficients[:, None]
    check_covers("merge", layout, base.shape[-1])
    (merged,) = MergeFunction.apply(
        base, *split_data("merge", deltas), coefficients, layout, tiles, out, out_dtype, True, False
    )
    return merged


def merge_tensors(
    base: Tensor,
    deltas: Tensor | TaskVectors,
    coefficients: Tensor,
    layout: Layout,
    *,
    tiles: Tiles | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    current: bool = False,
) -> tuple[Tensor, ...]:
    """Merges as :func:`merge` and returns every tensor of the layout in its own shape.

    The tensors are views of one buffer and separate outputs of one autograd node: backward sees
    all their gradients at once and makes one pass over the task vectors. (Slicing a flat result
    instead would make each slice's backward allocate a whole arena.) They refuse in-place
    changes; clone one before saving it, or the whole buffer is saved.

    Args:
        base: as in :func:`merge`, and so are the other arguments.
        deltas: task vectors.
        coefficients: λ.
        layout: the arena's map.
        tiles: a range of tiles that begins and ends between tensors.
        out: where to write.
        out_dtype: dtype of the result.
        current: whether ``out`` already holds this very merge: nothing is computed then, and
            graphs made before stay valid.
    """
    codes, scales = split_data("merge", deltas)
    if out is not None and out.is_leaf and out.requires_grad:
        raise RuntimeError("merge: out must not be a parameter, got a leaf that requires grad")
    check_covers("merge", layout, base.shape[-1])
    return MergeFunction.apply(
        base, codes, scales, coefficients, layout, tiles, out, out_dtype, False, current
    )


def merge_dots(
    grads: Sequence[Tensor | None] | Tensor,
    deltas: Tensor | TaskVectors,
    layout: Layout | None = None,
    *,
    tiles: Tiles | None = None,
) -> Tensor:
    r"""Projects weight gradients on the task vectors: the gradient of :func:`merge` in λ.

    .. math:: \text{dots}_{kl} = \sum_{n: l(n) = l} \text{grad}_n \, \text{deltas}_{kn}

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
    codes, scales = split("merge_dots", deltas)
    elements = deltas.N if isinstance(deltas, TaskVectors) else deltas.shape[-1]
    layout = layout or Layout.single(elements)
    check_covers("merge_dots", layout, elements)
    grads = [grads] if isinstance(grads, Tensor) else grads
    check_shapes(grads, layout, tiles)
    with torch.no_grad():
        return _merge_dots(grads, codes, scales, layout.plan(codes.device, tiles))


class MergeFunction(torch.autograd.Function):
    """Autograd around ``merge``: ``apply`` takes the arguments of forward, in order.

    Returns a tuple: every tensor of the layout (or of the range of tiles) as a view of one
    buffer; the whole buffer alone where ``flat``. ``current``: ``out`` holds the result already.
    """

    @staticmethod
    def forward(
        base: Tensor,
        codes: Tensor,
        scales: Tensor | None,
        coefficients: Tensor,
        layout: Layout,
        tiles: Tiles | None,
        out: Tensor | None,
        out_dtype: torch.dtype,
        flat: bool,
        current: bool,
    ) -> tuple[Tensor, ...]:
        if current and out is not None:
            merged = out
        else:
            plan = layout.plan(base.device, tiles)
            merged = _merge(base, codes, scales, coefficients, plan, out, out_dtype)
        return (merged,) if flat else tuple(layout.views(merged, tiles))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        base, codes, scales, _, layout, tiles, out, _, flat, _ = inputs
        ctx.set_materialize_grads(False)  # a tensor without gradient stays None: no zeros are made
        ctx.save_for_backward(codes, scales)
        ctx.base_dtype, ctx.layout, ctx.tiles, ctx.flat = base.dtype, layout, tiles, flat
        ctx.elements = base.shape[0]
        if out is not None and flat:
            ctx.mark_dirty(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        codes, scales = ctx.saved_tensors
        needs_base, _, _, needs_coefficients = ctx.needs_input_grad[:4]
        with torch.no_grad():
            plan = ctx.layout.plan(codes.device, ctx.tiles)
            if ctx.flat:
                count = torch.tensor([0, plan.last - plan.first])
                plan = plan._replace(tensor_tiles=count)
            contiguous = [None if g is None else g.contiguous() for g in grads]
            dots = _merge_dots(contiguous, codes, scales, plan) if needs_coefficients else None
            base = _base_gradient(ctx, contiguous, codes.device) if needs_base else None
        base = differentiable_once("merge", base, *grads)
        dots = differentiable_once("merge", dots, *grads)
        return base, None, None, dots, None, None, None, None, None, None


def _base_gradient(ctx: Any, grads: list[Tensor | None], device: torch.device) -> Tensor:
    """Lays the gradients out as the arena; padding and absent ones are zero."""
    result = torch.zeros(ctx.elements, dtype=ctx.base_dtype, device=device)
    first = ctx.tiles[0] if ctx.tiles else 0
    tiles = [first] if ctx.flat else [slot.tile for slot in ctx.layout.slots_in(ctx.tiles)]
    for grad, tile in zip(grads, tiles, strict=True):
        if grad is not None:
            result[tile * TILE : tile * TILE + grad.numel()] = grad.reshape(-1)
    return result


def _merge(
    base: Tensor,
    codes: Tensor,
    scales: Tensor | None,
    coefficients: Tensor,
    plan: TilePlan,
    out: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    columns, first, last = plan.columns, plan.first, plan.last
    if not native("merge", base.device, base.dtype):
        dtype = out.dtype if out is not None else out_dtype
        check_merge_args(base, codes, scales, coefficients, columns, first, last, dtype)
        if out is not None:
            check_merge_out(base, out, first, last)
            inputs = {"base": base, "deltas": codes, "scales": scales, "coefficients": coefficients}
            for name, other in inputs.items():
                if other is not None:
                    checks.check_apart("merge", "out", out, name, other)
        deltas = codes if scales is None else reference.decode(codes, scales)
        merged = reference.merge(base, deltas, coefficients, plan, dtype)
        return merged if out is None else out.copy_(merged)
    if out is None:
        result: Tensor = torch.ops.mdft_fast.merge(
            base, codes, scales, coefficients, columns, first, last, out_dtype
        )
        return result
    torch.ops.mdft_fast.merge_out(base, codes, scales, coefficients, columns, first, last, out)
    # A kernel's write does not bump the version: without this a stale graph would go unnoticed.
    torch.autograd.graph.increment_version(out)
    return out


def _merge_dots(
    grads: Sequence[Tensor | None], codes: Tensor, scales: Tensor | None, plan: TilePlan
) -> Tensor:
    if not native("merge_dots", codes.device, codes.dtype):
        index = (plan.order, plan.starts, plan.tensor_tiles, plan.first, plan.last)
        check_merge_dots_args(grads, codes, scales, *index)
        check_gradients(grads, codes, plan.tensor_tiles.tolist(), plan.first)
        deltas = codes if scales is None else reference.decode(codes, scales)
        return reference.merge_dots(grads, deltas, plan)
    result: Tensor = torch.ops.mdft_fast.merge_dots(
        list(grads), codes, scales, plan.order, plan.starts, plan.tensor_tiles, plan.first,
        plan.last,
    )  # fmt: skip
    return result
