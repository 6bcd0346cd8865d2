# SPDX-License-Identifier: Apache-2.0
"""The two rules by which a result may differ from the exact one. Both count NaN as wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from mdft_fast.reference import accumulator


def unit(dtype: torch.dtype) -> float:
    """Returns the largest relative error of one rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def smallest_step(dtype: torch.dtype) -> float:
    """Returns the distance of two neighbors below the smallest normal number."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps


def assert_within_rounding(
    got: Tensor, exact: Tensor, magnitude: Tensor, *, terms: int, reference_terms: int
) -> None:
    """Rule 1: ``|error| <= unit_out * |exact| + terms * unit_acc * magnitude + tiny``.

    Args:
        got: what the kernel gave, rounded once to its dtype.
        exact: the float64 reference on the same (widened) inputs.
        magnitude: the reference on the inputs' absolute values: what the sum could have been.
        terms: roundings on the way of one term through the kernel's fixed summation tree.
        reference_terms: the same for the reference. It counts only for float64, where the
            reference is no better than the kernel.
    """
    acc = accumulator(got.dtype)
    assert exact.dtype == torch.float64
    assert got.shape == exact.shape
    if acc == torch.float64:
        terms += reference_terms
    tree = terms * unit(acc) / (1 - terms * unit(acc))  # (1 + u)^terms - 1 is at most this
    summed = tree * magnitude + terms * smallest_step(acc)
    bound = summed + unit(got.dtype) * (exact.abs() + summed) + smallest_step(got.dtype) / 2
    _assert_below((got.double() - exact).abs(), bound, got, exact)


def assert_no_worse_than_eager(got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Rule 2: the largest error is at most twice eager torch's, plus one rounding.

    Largest over the whole tensor: at one element eager torch may be exact by luck. So a tensor
    must hold numbers of one kind; tests keep extreme and ordinary rows in separate calls.

    Args:
        got: what the kernel gave.
        eager: what plain torch gives in the same dtype.
        exact: plain torch in float64 on the same (widened) inputs.
    """
    assert got.dtype == eager.dtype
    assert got.shape == eager.shape == exact.shape
    if got.numel() == 0:
        return
    allowed = (eager.double() - exact).abs().max()
    # Below the smallest normal number the kernel's exp is 0 (vec8.h), where torch's is subnormal;
    # the factor beside it (a logit's difference, a weight) is below 2^16 in every test.
    flushed = 2.0**16 * torch.finfo(accumulator(got.dtype)).tiny
    bound = 2 * allowed + unit(got.dtype) * exact.abs().max()
    bound = bound + flushed + smallest_step(got.dtype) / 2
    _assert_below((got.double() - exact).abs(), bound.expand_as(exact), got, exact)


def _assert_below(error: Tensor, bound: Tensor, got: Tensor, exact: Tensor) -> None:
    wrong = ~(error <= bound)  # also where the error is NaN
    if not wrong.any():
        return
    worst = (error / bound).nan_to_num(torch.inf).argmax().item()
    raise AssertionError(
        f"{int(wrong.sum())} of {wrong.numel()} elements err too much; worst at {worst}: got "
        f"{got.flatten()[worst].item():.9g}, exact {exact.flatten()[worst].item():.9g}, "
        f"{(error / bound).flatten()[worst].item():.3g} times the bound"
    )
