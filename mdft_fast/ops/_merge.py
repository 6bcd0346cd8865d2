# SPDX-License-Identifier: Apache-2.0
"""Merging task vectors into weights (equation 1), and its gradient with respect to λ."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from mdft_fast import reference
from mdft_fast.arena import TILE, Layout, TaskVectors, TilePlan, makes_fakes, plan_of_one
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._autograd import differentiable_once
from mdft_fast.ops._library import LOADED, dtype_name, native
from mdft_fast.ops._merge_dots import dot_gradients
from mdft_fast.reference import accumulator

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # the test run executes these annotations
    from jaxtyping import Float

Tiles = tuple[int, int]


def merge(
    base: Float[Tensor, "N"],
    deltas: Float[Tensor, "K N"] | TaskVectors,
    coefficients: Float[Tensor, "K *L"],
    layout: Layout | None = None,
    *,
    tiles: Tiles | None = None,
    out: Float[Tensor, "n"] | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n"]:
    """Mixes K task vectors into pre-trained weights, for a whole model or a part in one launch.

        out[n] = base[n] + Σ_k coefficients[k, l(n)] · deltas[k, n]

    where l(n) is the column of λ that element n belongs to: its tensor's, or, in a layout by row
    (:meth:`Layout.by_row`), the one of its row, an index of its tensor's first dimension.

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
        if coefficients.dim() == 1:
            coefficients = coefficients[:, None]
    else:
        checks.check_covers("merge", layout, base.shape[-1])
    checks.check_columns("merge", 1 if layout is None else layout.L, coefficients)
    codes, scales = checks.split_data("merge", deltas)
    (merged,) = MergeFunction.apply(
        base, codes, scales, coefficients, layout, tiles, out, out_dtype, True, False
    )
    return merged


@overload
def merge_tensors(
    base: Float[Tensor, "N"],
    deltas: Float[Tensor, "K N"] | TaskVectors,
    coefficients: Float[Tensor, "K L"],
    layout: Layout,
    *,
    tiles: Tiles | None = None,
    out: Float[Tensor, "n"] | None = None,
    out_dtype: torch.dtype = torch.float32,
    current: bool = False,
) -> tuple[Tensor, ...]: ...


@overload
def merge_tensors(
    base: Mapping[str, Tensor],
    deltas: Sequence[Mapping[str, Tensor]],
    coefficients: Float[Tensor, "K *L"],
    layout: Layout | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]: ...


def merge_tensors(
    base: Float[Tensor, "N"] | Mapping[str, Tensor],
    deltas: Float[Tensor, "K N"] | TaskVectors | Sequence[Mapping[str, Tensor]],
    coefficients: Float[Tensor, "K *L"],
    layout: Layout | None = None,
    *,
    tiles: Tiles | None = None,
    out: Float[Tensor, "n"] | None = None,
    out_dtype: torch.dtype = torch.float32,
    current: bool = False,
) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Merges as :func:`merge` and returns every tensor in its own shape.

    The tensors are views of one buffer and separate outputs of one autograd node: backward sees
    all their gradients at once and makes one pass over the task vectors. (Slicing a flat result
    instead would make each slice's backward allocate a whole arena.) They refuse in-place
    changes; clone one before saving it, or the whole buffer is saved.

    Args:
        base: ``[N]`` as in :func:`merge`; or every pre-trained tensor by its name. Names are laid
            out anew at each call: for a training loop pack them once, see :meth:`Layout.pack`.
        deltas: ``[K, N]`` task vectors, as in :func:`merge`; or for each task all tensors,
            fine-tuned minus pre-trained, by the names of ``base``.
        coefficients: ``[K, L]`` λ, a column for each of the layout's; with names also ``[K]``.
        layout: the arena's map. With names None: a column a tensor, in the order of ``base``.
        tiles: a range of tiles that begins and ends between tensors; not with names.
        out: where to write; not with names.
        out_dtype: dtype of the result.
        current: whether ``out`` already holds this very merge: nothing is computed then, and
            graphs made before stay valid.

    Returns:
        The layout's tensors in its order; with names a dict of them.

    Raises:
        MdftError: if names or shapes of ``deltas`` are not those of ``base``.
        ValueError: if ``deltas`` requires grad, or goes with no such ``base``.
        RuntimeError: as :func:`merge`.
    """
    if isinstance(base, Mapping):
        if tiles is not None or out is not None or current:
            raise ValueError("merge: tiles, out and current are for an arena, got tensors by name")
        return _merge_named(base, deltas, coefficients, layout, out_dtype)
    if layout is None or not isinstance(deltas, (Tensor, TaskVectors)):
        got = f"{'no' if layout is None else 'a'} layout and {type(deltas).__name__}"
        raise ValueError(f"merge: an arena needs a layout and task vectors [K, N], got {got}")
    codes, scales = checks.split_data("merge", deltas)
    if out is not None and out.is_leaf and out.requires_grad:
        raise RuntimeError("merge: out must not be a parameter, got a leaf that requires grad")
    checks.check_covers("merge", layout, base.shape[-1])
    checks.check_columns("merge", layout.L, coefficients)
    return MergeFunction.apply(
        base, codes, scales, coefficients, layout, tiles, out, out_dtype, False, current
    )


def _merge_named(
    base: Mapping[str, Tensor],
    deltas: Any,
    coefficients: Tensor,
    layout: Layout | None,
    out_dtype: torch.dtype,
) -> dict[str, Tensor]:
    if not all(isinstance(delta, Mapping) for delta in deltas):
        raise ValueError("merge: deltas must be tensors by name where base is, got tensors")
    layout = layout or Layout.of({name: x.shape for name, x in base.items()})
    arena = layout.pack(base, who="merge: base")
    rows = [layout.pack(delta, who=f"merge: deltas[{k}]") for k, delta in enumerate(deltas)]
    vectors = torch.stack(rows) if rows else arena.new_empty(0, layout.elements)
    if coefficients.dim() == 1:
        layout = layout.group({slot.name: "all" for slot in layout.slots})
        coefficients = coefficients[:, None]
    merged = merge_tensors(arena, vectors, coefficients, layout, out_dtype=out_dtype)
    return {slot.name: x for slot, x in zip(layout.slots, merged, strict=True)}


class MergeFunction(torch.autograd.Function):
    """Autograd around ``merge``: ``apply`` takes the arguments of forward, in order.

    Returns a tuple: every tensor of the layout (or of the range of tiles) as a view of one
    buffer; the whole buffer alone where ``flat``, and where ``layout`` is None: one column.
    ``current``: ``out`` holds the result already.
    """

    @staticmethod
    def forward(
        base: Tensor,
        codes: Tensor,
        scales: Tensor | None,
        coefficients: Tensor,
        layout: Layout | None,
        tiles: Tiles | None,
        out: Tensor | None,
        out_dtype: torch.dtype,
        flat: bool,
        current: bool,
    ) -> tuple[Tensor, ...]:
        if current and out is not None:
            merged = out
        else:
            plan = _plan(layout, base.shape[0], base.device, tiles, merge_alone=True)
            merged = _merge(base, codes, scales, coefficients, plan, out, out_dtype)
        return (merged,) if flat or layout is None else tuple(layout.views(merged, tiles))

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
            plan = _plan(ctx.layout, ctx.elements, codes.device, ctx.tiles)
            contiguous = [None if g is None else g.contiguous() for g in grads]
            parts = contiguous
            if ctx.flat and plan.rows is None:
                whole = torch.tensor([0, plan.last - plan.first], device="cpu")
                plan = TilePlan(plan.columns, plan.order, plan.starts, whole, plan.first, plan.last)
            elif ctx.flat and contiguous[0] is not None:  # padding must not count as rows
                parts = list(ctx.layout.views(contiguous[0], ctx.tiles))
            dots = dot_gradients(parts, codes, scales, plan) if needs_coefficients else None
            base = _base_gradient(ctx, contiguous, codes.device) if needs_base else None
        base = differentiable_once("merge", base, *grads)
        dots = differentiable_once("merge", dots, *grads)
        return base, None, None, dots, None, None, None, None, None, None


def _plan(
    layout: Layout | None,
    elements: int,
    device: torch.device,
    tiles: Tiles | None,
    merge_alone: bool = False,
) -> TilePlan:
    if layout is not None:
        return layout.plan(device, tiles, merge_alone=merge_alone)
    return plan_of_one(elements, device, tiles, merge_alone=merge_alone)


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
        _check_for_reference(base, codes, scales, coefficients, plan, dtype)
        if out is not None:
            inputs = {"base": base, "deltas": codes, "scales": scales, "coefficients": coefficients}
            _check_out(out, _elements(first, last, base.shape[0]), inputs)
        deltas = codes if scales is None else reference.decode(codes, scales)
        merged = reference.merge(base, deltas, coefficients, plan, dtype)
        return merged if out is None else out.copy_(merged)
    if out is None:
        result: Tensor = torch.ops.mdft_fast.merge(
            base, codes, scales, coefficients, columns, first, last, out_dtype, plan.rows
        )
        return result
    torch.ops.mdft_fast.merge_out(
        base, codes, scales, coefficients, columns, first, last, out, plan.rows
    )
    # A kernel's write does not bump the version: without this a stale graph would go unnoticed.
    torch.autograd.graph.increment_version(out)
    return out


def _elements(first: int, last: int, N: int) -> int:
    return min(last * TILE, N) - min(first * TILE, N)


def _check_for_reference(
    base: Tensor,
    codes: Tensor,
    scales: Tensor | None,
    coefficients: Tensor,
    plan: TilePlan,
    out_dtype: torch.dtype,
) -> None:
    op, K = "merge", codes.shape[0]
    checks.check_devices(op, codes, base=base, scales=scales, coefficients=coefficients)
    checks.require(base.dim() == 1, op, "base", "[N]", checks.shape(base))
    floating = base.dtype in checks.FLOATING
    rule = "float32, float64, float16 or bfloat16"
    checks.require(floating, op, "base", rule, dtype_name(base.dtype))
    acc = accumulator(base.dtype)
    checks.check_sums(op, "deltas", codes.dtype, acc, codes=True)
    checks.check_vectors(op, codes, scales, base.shape[0])
    fits = coefficients.dim() == 2 and coefficients.shape[0] == K
    checks.require(fits, op, "coefficients", f"[{K}, L]", checks.shape(coefficients))
    same = coefficients.dtype == acc
    checks.require(same, op, "coefficients", dtype_name(acc), dtype_name(coefficients.dtype))
    checks.check_sums(op, "out", out_dtype, acc)


def _check_out(out: Tensor, elements: int, inputs: Mapping[str, Tensor | None]) -> None:
    fits = list(out.shape) == [elements]
    checks.require(fits, "merge", "out", [elements], checks.shape(out))
    if torch.compiler.is_compiling() or makes_fakes():  # these have no memory to see
        return

    def memory(x: Tensor) -> tuple[int, int]:
        return x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()

    begin, end = memory(out)
    for name, x in inputs.items():
        if x is None or 0 in (x.numel(), out.numel()):
            continue
        other_begin, other_end = memory(x)
        if begin < other_end and other_begin < end:
            raise RuntimeError(f"merge: out must not overlap {name}, got memory of it")


def _merge_fake(
    base: Tensor,
    deltas: Tensor,
    scales: Tensor | None,
    coefficients: Tensor,
    columns: Tensor,
    first: int,
    last: int,
    out_dtype: torch.dtype,
    rows: Tensor | None = None,
) -> Tensor:
    _merge_out_fake(base, deltas, scales, coefficients, columns, first, last, None, rows)
    return base.new_empty(_elements(first, last, base.shape[0]), dtype=out_dtype)


def _merge_out_fake(
    base: Tensor,
    deltas: Tensor,
    scales: Tensor | None,
    coefficients: Tensor,
    columns: Tensor,
    first: int,
    last: int,
    out: Tensor | None,
    rows: Tensor | None = None,
) -> None:
    others = {"base": base, "scales": scales, "coefficients": coefficients, "columns": columns}
    checks.check_devices("merge", deltas, **others, rows=rows)


if LOADED:
    torch.library.register_fake("mdft_fast::merge", _merge_fake)
    torch.library.register_fake("mdft_fast::merge_out", _merge_out_fake)
