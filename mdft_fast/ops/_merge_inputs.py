# SPDX-License-Identifier: Apache-2.0
"""What the functions of merge.py refuse before an operator sees it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mdft_fast.arena import TILE, Layout, TaskVectors
from mdft_fast.ops import _checks as checks
from mdft_fast.ops._merge_fakes import CODES


def split(op: str, deltas: Tensor | TaskVectors) -> tuple[Tensor, Tensor | None]:
    """Returns codes and scales, as the operators take them."""
    if isinstance(deltas, TaskVectors):
        return deltas.codes, deltas.scales
    if deltas.dtype in CODES:
        raise RuntimeError(
            f"{op}: deltas of {checks.name(deltas.dtype)} must be TaskVectors, which hold the "
            "scales, got a Tensor"
        )
    return deltas, None


def split_data(op: str, deltas: Tensor | TaskVectors) -> tuple[Tensor, Tensor | None]:
    """As :func:`split`; refuses what a gradient would have to reach."""
    codes, scales = split(op, deltas)
    if codes.requires_grad or (scales is not None and scales.requires_grad):
        raise ValueError(f"{op}: deltas are data, not parameters; pass deltas.detach()")
    return codes, scales


def check_covers(op: str, layout: Layout, elements: int) -> None:
    """Refuses a layout of another arena: a shorter one would merge only a beginning."""
    tiles = -(-elements // TILE)
    if layout.tiles != tiles:
        raise RuntimeError(
            f"{op}: layout must cover the arena's {tiles} tiles, got one of {layout.tiles}"
        )


def check_shapes(
    grads: Sequence[Tensor | None], layout: Layout, tiles: tuple[int, int] | None
) -> None:
    """Refuses gradients of other tensors than the layout's."""
    slots = layout.slots_in(tiles)
    if len(grads) != len(slots):
        raise RuntimeError(
            f"merge_dots: grads must hold one for each of the layout's {len(slots)} tensors, "
            f"got {len(grads)}"
        )
    for slot, grad in zip(slots, grads, strict=True):
        if grad is not None and grad.shape != slot.shape:
            raise RuntimeError(
                f"merge_dots: gradient of {slot.name!r} must be {list(slot.shape)}, "
                f"got {checks.shape(grad)}"
            )
