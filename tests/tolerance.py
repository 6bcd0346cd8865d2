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


def assert_no_worse_than_eager(
    got: Tensor, eager: Tensor, exact: Tensor, scale: Tensor | None = None
) -> None:
    """Rule 2: the largest error is at most twice eager torch's, plus one rounding.

    The largest error of the whole tensor decides, relative to ``scale``, since eager torch may be
    exact at one element by luck; so a tensor must hold numbers of one kind.

    Args:
        got: what the kernel gave.
        eager: what plain torch gives in the same dtype; in float32 where ``got`` is float64.
        exact: plain torch in float64 on the same (widened) inputs.
        scale: the largest term of the sum behind each element; None: the largest of ``exact``.
    """
    assert got.shape == eager.shape == exact.shape
    if got.numel() == 0:
        return
    # Below the smallest normal number the kernel's exp is 0 (vec8.h), where torch's is subnormal;
    # the factor beside it (a logit's difference, a weight) is below 2^16 in every test.
    tiny = 2.0**16 * torch.finfo(eager.dtype).tiny + smallest_step(got.dtype) / 2
    scale = exact.abs().max() if scale is None else scale
    allowed = 2 * ((eager.double() - exact).abs() / (scale + tiny)).max()
    if got.dtype == torch.float64:
        # Eager float64 is `exact` itself. It errs as eager float32 does, in its own units; the
        # third share is its own.
        allowed = 1.5 * allowed * unit(torch.float64) / unit(torch.float32)
    else:
        assert got.dtype == eager.dtype
    bound = (allowed + unit(got.dtype)) * scale + tiny
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
