# SPDX-License-Identifier: Apache-2.0
"""The checks of csrc/common/checks.h, word for word, for the fakes and the plain-torch reference.

A test compares the texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdft_fast.arena import makes_fakes
from mdft_fast.ops._library import dtype_name
from mdft_fast.reference import accumulator

name = dtype_name
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def shape(x: Tensor) -> str:
    """Returns ``[2, 3]``."""
    return str(list(x.shape))


def check_vector(op: str, what: str, x: Tensor, wanted: str, least: int = 0) -> None:
    """Refuses what is no vector of at least so many elements; ``wanted`` has its letters."""
    torch._check(
        x.dim() == 1 and x.shape[0] >= least,
        lambda: f"{op}: {what} must be {wanted}, got {shape(x)}",
    )


def check_length(op: str, what: str, x: Tensor, length: int) -> None:
    """Refuses what is no vector of one length."""
    torch._check(
        x.dim() == 1 and x.shape[0] == length,
        lambda: f"{op}: {what} must be [{length}], got {shape(x)}",
    )


def check_floating(op: str, what: str, x: Tensor) -> None:
    """Refuses what is not a floating dtype."""
    torch._check(
        x.dtype in FLOATING,
        lambda: f"{op}: {what} must be float32, float64, float16 or bfloat16, got {name(x.dtype)}",
    )


def check_dtype(op: str, what: str, x: Tensor, wanted: torch.dtype) -> None:
    """Refuses every dtype but one."""
    torch._check(
        x.dtype == wanted, lambda: f"{op}: {what} must be {name(wanted)}, got {name(x.dtype)}"
    )


def check_accumulates(op: str, what: str, dtype: torch.dtype, acc: torch.dtype) -> None:
    """Refuses a dtype whose sums are not kept in ``acc``."""
    rule = "float64 like the rest" if acc == torch.float64 else "float32, float16 or bfloat16"
    torch._check(
        dtype in FLOATING and accumulator(dtype) == acc,
        lambda: f"{op}: {what} must be {rule}, got {name(dtype)}",
    )


def check_beside(op: str, what: str, x: Tensor, other: Tensor) -> None:
    """Refuses another device, and strides."""
    torch._check(
        x.device == other.device,
        lambda: f"{op}: {what} must be on the device of the other tensors, got another device",
    )
    torch._check(x.is_contiguous(), lambda: f"{op}: {what} must be contiguous, got strides")


def check_apart(op: str, what: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses memory that both tensors hold; fakes and what is being compiled have none to see."""
    if torch.compiler.is_compiling() or makes_fakes():
        return
    ranges = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in (x, other)]
    (begin, end), (other_begin, other_end) = ranges
    shared = x.numel() > 0 and other.numel() > 0 and begin < other_end and other_begin < end
    torch._check(
        not shared, lambda: f"{op}: {what} must not overlap {other_name}, got memory of it"
    )
