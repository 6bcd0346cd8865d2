# SPDX-License-Identifier: Apache-2.0
"""Shapes, dtypes and errors of debiased_entropy, for torch.compile and fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from mdft_fast.ops import _checks as checks
from mdft_fast.ops._library import LOADED
from mdft_fast.reference import accumulator


def _check_rows(op: str, logits: Tensor, row_offsets: Tensor, task_rows: Tensor) -> None:
    checks.check_vector(op, "logits", logits, "[M]")
    checks.check_vector(op, "row_offsets", row_offsets, "[R + 1]", least=1)
    checks.check_vector(op, "task_rows", task_rows, "[K + 1]", least=1)
    checks.check_floating(op, "logits", logits)
    checks.check_dtype(op, "row_offsets", row_offsets, torch.int64)
    checks.check_dtype(op, "task_rows", task_rows, torch.int64)
    checks.check_beside(op, "logits", logits, row_offsets)
    checks.check_beside(op, "row_offsets", row_offsets, logits)
    checks.check_beside(op, "task_rows", task_rows, logits)


def check_debiased_entropy_args(
    logits: Tensor,
    teacher: Tensor,
    teacher_entropy: Tensor | None,
    row_offsets: Tensor,
    task_rows: Tensor,
    alpha: float,
    mu: float,
    reweight: int,
) -> None:
    """Refuses what csrc/debiased_entropy/debiased_entropy.h refuses."""
    op = "debiased_entropy"
    _check_rows(op, logits, row_offsets, task_rows)
    m, r = logits.shape[0], row_offsets.shape[0] - 1
    checks.check_length(op, "teacher", teacher, m)
    acc = accumulator(logits.dtype)
    torch._check(
        teacher.dtype in (acc, logits.dtype),
        lambda: (
            f"{op}: teacher must be {checks.name(acc)} or the dtype of logits, got "
            f"{checks.name(teacher.dtype)}"
        ),
    )
    checks.check_beside(op, "teacher", teacher, logits)
    if teacher_entropy is not None:
        checks.check_length(op, "teacher_entropy", teacher_entropy, r)
        checks.check_dtype(op, "teacher_entropy", teacher_entropy, acc)
        checks.check_beside(op, "teacher_entropy", teacher_entropy, logits)
    torch._check(alpha >= 0, lambda: f"{op}: alpha must be >= 0, got {alpha:g}")
    torch._check(mu >= 0, lambda: f"{op}: mu must be >= 0, got {mu:g}")
    torch._check(0 <= reweight <= 2, lambda: f"{op}: reweight must be 0, 1 or 2, got {reweight}")


def _debiased_entropy_fake(
    logits: Tensor,
    teacher: Tensor,
    teacher_entropy: Tensor | None,
    row_offsets: Tensor,
    task_rows: Tensor,
    alpha: float,
    mu: float,
    use_entropy: bool,
    filter: bool,
    reweight: int,
    entropy_of_meta: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_debiased_entropy_args(
        logits, teacher, teacher_entropy, row_offsets, task_rows, alpha, mu, reweight
    )
    acc, k, r = accumulator(logits.dtype), task_rows.shape[0] - 1, row_offsets.shape[0] - 1
    return (
        logits.new_empty(k, dtype=acc),
        logits.new_empty(r, dtype=acc),
        logits.new_empty(r, dtype=acc),
        logits.new_empty(r, dtype=torch.bool),
        torch.empty_like(logits),
    )


def _debiased_entropy_backward_fake(
    grad: Tensor, row_offsets: Tensor, task_rows: Tensor, grad_loss: Tensor
) -> Tensor:
    op = "debiased_entropy_backward"
    _check_rows(op, grad, row_offsets, task_rows)
    checks.check_length(op, "grad_loss", grad_loss, task_rows.shape[0] - 1)
    checks.check_dtype(op, "grad_loss", grad_loss, accumulator(grad.dtype))
    checks.check_beside(op, "grad_loss", grad_loss, grad)
    return torch.empty_like(grad)


if LOADED:
    torch.library.register_fake("mdft_fast::debiased_entropy", _debiased_entropy_fake)
    torch.library.register_fake(
        "mdft_fast::debiased_entropy_backward", _debiased_entropy_backward_fake
    )
