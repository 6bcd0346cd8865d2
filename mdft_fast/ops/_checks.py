# SPDX-License-Identifier: Apache-2.0
"""What is refused in Python: what an operator cannot see, and what the reference would let pass.

The operators' own checks are in C++, ``csrc/<op>/<op>.h``. Fakes have none but that of devices: a
call that is traced with wrong arguments is refused when the operator runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdft_fast.arena import GROUP, TILE, Layout, TaskVectors
from mdft_fast.ops._library import dtype_name
from mdft_fast.reference import accumulator

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CODES = (torch.int8, torch.uint8)  # int8, and int4 two elements a byte


def require(holds: bool, op: str, what: str, rule: object, got: object) -> None:
    """Raises RuntimeError in the words of csrc/common/checks.h where a rule does not hold."""
    if not holds:
        raise RuntimeError(f"{op}: {what} must be {rule}, got {got}")


def shape(x: Tensor) -> str:
    """Returns ``[2, 3]``."""
    return str(list(x.shape))


def check_devices(op: str, anchor: Tensor, **others: Tensor | None) -> None:
    """Refuses tensors of two devices, the meta device among them: it is never the kernels' own."""
    for name, x in others.items():
        same = x is None or x.device == anchor.device
        require(same, op, name, "on the device of the other tensors", "another device")


# ---- what an operator cannot see


def split(op: str, deltas: Tensor | TaskVectors) -> tuple[Tensor, Tensor | None]:
    """Returns codes and scales, as the operators take them."""
    if isinstance(deltas, TaskVectors):
        return deltas.codes, deltas.scales
    kind = dtype_name(deltas.dtype)
    rule = "TaskVectors, which hold the scales"
    require(deltas.dtype not in CODES, op, f"deltas of {kind}", rule, "a Tensor")
    return deltas, None


def split_data(op: str, deltas: Tensor | TaskVectors) -> tuple[Tensor, Tensor | None]:
    """As :func:`split`; refuses what a gradient would have to reach."""
    codes, scales = split(op, deltas)
    refuse_gradients(op, "deltas are data, not parameters; pass deltas.detach()", codes, scales)
    return codes, scales


def refuse_gradients(op: str, words: str, *values: object) -> None:
    """Refuses tensors that ask for a gradient which is never computed."""
    if any(isinstance(x, Tensor) and x.requires_grad for x in values):
        raise ValueError(f"{op}: {words}")


def check_covers(op: str, layout: Layout, elements: int) -> None:
    """Refuses a layout of another arena: a shorter one would merge only a beginning."""
    tiles = -(-elements // TILE)
    if layout.tiles != tiles:
        raise RuntimeError(
            f"{op}: layout must cover the arena's {tiles} tiles, got one of {layout.tiles}"
        )


def check_columns(op: str, L: int, coefficients: Tensor) -> None:
    """Refuses λ with other columns than the layout's: those too many would have no gradient."""
    if coefficients.dim() == 2 and coefficients.shape[1] != L:  # else: no text while compiling
        wanted = f"[{len(coefficients)}, {L}]"
        require(False, op, "coefficients", wanted, shape(coefficients))


# ---- what the reference would let pass


def check_sums(
    op: str, what: str, dtype: torch.dtype, acc: torch.dtype, codes: bool = False
) -> None:
    """Refuses a dtype whose sums are not kept in ``acc``."""
    narrow = (
        "float32, float16, bfloat16, int8 or uint8" if codes else "float32, float16 or bfloat16"
    )
    rule = "float64 like the rest" if acc == torch.float64 else narrow
    stored = codes and dtype in CODES and acc == torch.float32
    holds = stored or (dtype in FLOATING and accumulator(dtype) == acc)
    require(holds, op, what, rule, dtype_name(dtype))


def check_vectors(op: str, codes: Tensor, scales: Tensor | None, elements: int) -> None:
    """Refuses task vectors that are not of so many elements, scales included."""
    stored = elements // 2 if codes.dtype == torch.uint8 else elements
    fits = codes.dim() == 2 and codes.shape[1] == stored
    require(fits, op, "deltas", f"[K, {stored}]", shape(codes))
    wanted = [len(codes), elements // GROUP] if codes.dtype in CODES else None
    got = None if scales is None else list(scales.shape)
    require(got == wanted, op, "scales", f"{wanted} for {dtype_name(codes.dtype)} deltas", got)
