# SPDX-License-Identifier: Apache-2.0
"""Every operator in plain torch, right by inspection. Kernels are judged against this in float64.

Equation numbers are the paper's (docs/method.md). Everything here is differentiable by torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mdft_fast.arena import GROUP, TILE, TilePlan

Reweight = Literal["off", "as_written", "normalized"]
EntropyOf = Literal["teacher", "meta"]


class DebiasedEntropy(NamedTuple):
    """What the loss gives: see :func:`mdft_fast.debiased_entropy_loss`."""

    loss: Tensor
    entropy: Tensor
    weight: Tensor
    kept: Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which sums over ``dtype`` are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def decode(codes: Tensor, scales: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns task vectors ``[K, N]`` as ``dtype``: each code times its group's scale.

    Args:
        codes: ``[K, N]`` int8, or ``[K, N / 2]`` uint8: element 2i in the low half of a byte,
            2i + 1 in the high one. Values of any dtype where there are no scales.
        scales: ``[K, N / GROUP]`` float32, or None.
        dtype: of the product, whose factors are widened first; exact in float64.
    """
    if scales is None:
        return codes.to(dtype)
    if codes.dtype == torch.uint8:
        halves = torch.stack([codes & 15, codes >> 4], -1).flatten(1).to(torch.int8)
        codes = torch.where(halves > 7, halves - 16, halves)
    groups = codes.view(*scales.shape, GROUP).to(dtype) * scales[..., None].to(dtype)
    return groups.view(codes.shape)


def columns_of_elements(plan: TilePlan, L: int) -> Tensor:
    """Returns the column of λ that each element of the plan's tiles reads, padding included."""
    columns = plan.columns.long()
    if plan.rows is None:
        return columns.repeat_interleave(TILE)
    length, phase = plan.rows.long().unbind(-1)
    row = (phase[:, None] + torch.arange(TILE, device=length.device)) // length[:, None]
    return (columns[:, None] + row).flatten().clamp(max=L - 1)  # padding may lie beyond


def merge(
    base: Tensor,
    deltas: Tensor,
    coefficients: Tensor,
    plan: TilePlan,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Equation (1): ``out[n] = base[n] + sum_k coefficients[k, column of n] * deltas[k, n]``.

    Args:
        base: ``[N]``.
        deltas: ``[K, N]``.
        coefficients: ``[K, L]``.
        plan: which column each tile, or each row in it, reads; also which tiles to merge.
        out_dtype: dtype of the result; the sum is kept in float32 (float64).
    """
    dtype = accumulator(base.dtype)
    some = slice(plan.first * TILE, plan.last * TILE)
    merged = base[some].to(dtype)
    columns = columns_of_elements(plan, coefficients.shape[1])[: len(merged)]
    for delta, scale in zip(deltas, coefficients, strict=True):
        merged = merged + scale[columns] * delta[some].to(dtype)
    return merged.to(out_dtype)


def merge_dots(grads: Sequence[Tensor | None], deltas: Tensor, plan: TilePlan) -> Tensor:
    """The gradient of equation (1): ``dots[k, l] = sum over column l of <grad, deltas[k]>``.

    Args:
        grads: gradient of each tensor in the plan's range, or None.
        deltas: ``[K, N]``.
        plan: the range, and which column each tile, or each row in it, belongs to.
    """
    dtype = accumulator(deltas.dtype)
    dots = deltas.new_zeros(len(deltas), len(plan.starts) - 1, dtype=dtype)
    columns = columns_of_elements(plan, dots.shape[1]) if plan.rows is not None else None
    for grad, tile in zip(grads, plan.tensor_tiles[:-1].tolist(), strict=True):
        if grad is None:
            continue
        for start in range(0, grad.numel(), TILE):
            piece = grad.reshape(-1)[start : start + TILE].to(dtype)
            at = (plan.first + tile) * TILE + start
            delta = deltas[:, at : at + len(piece)].to(dtype)
            if columns is None:
                dots[:, plan.columns[tile + start // TILE]] += delta @ piece
            else:
                of_piece = columns[tile * TILE + start :][: len(piece)]
                dots.index_add_(1, of_piece, delta * piece)
    return dots


def entropy(logits: Tensor) -> Tensor:
    """Equation (3)'s second term: ``H(softmax(logits))`` of each row, in nats."""
    log_q = logits.log_softmax(-1)
    finite = torch.where(log_q == -math.inf, 0.0, log_q)  # before the product: else dH/dz is NaN
    return -(log_q.exp() * finite).sum(-1)


def cross_entropy(p: Tensor, logits: Tensor) -> Tensor:
    """Equation (3)'s first term: ``-sum_c p_c log softmax(logits)_c`` of each row."""
    return -torch.where(p == 0, 0.0, p * logits.log_softmax(-1)).sum(-1)


def filter_and_weigh(
    entropy: Tensor, classes: int, *, mu: float, filter: bool, reweight: Reweight
) -> tuple[Tensor, Tensor]:
    """Equations (4) and (5): which rows of a task are kept, and what each of them weighs.

    Args:
        entropy: ``[R]`` H of the task's rows, in nats.
        classes: C.
        mu: threshold H0 = mu log C, >= 0.
        filter: whether rows with H >= H0 are removed.
        reweight: the weight of a kept row: 1, exp(H0 - H), or the latter with mean 1 over them.

    Returns:
        ``kept`` ``[R]`` bool, and ``weight`` ``[R]`` in the dtype of ``entropy``: 0 where removed.
        Where filter or weight reads an H that is NaN, the row is kept with weight NaN: a broken
        teacher must not pass for one that is unsure.
    """
    h0 = mu * math.log(classes)
    kept = ~(entropy >= h0) if filter else torch.ones_like(entropy, dtype=torch.bool)  # (4)
    one = torch.where(entropy.isnan() & filter, entropy, 1.0)
    weight = torch.where(kept, one if reweight == "off" else (h0 - entropy).exp(), 0.0)  # (5)
    if reweight == "normalized":
        mean = weight.sum() / kept.sum().clamp(min=1)
        weight = torch.where(kept, weight / mean, 0.0)
    return kept, weight


def loss_divisor(
    entropy: Tensor, classes: int, *, mu: float, filter: bool, reweight: Reweight
) -> Tensor:
    """What the loss of these rows is divided by: how many are kept, or what they weigh together.

    Parts of a task that are all divided by the divisor of the whole add up to the loss of the
    whole: ``divide_by`` of :func:`debiased_entropy`. Arguments as in :func:`filter_and_weigh`.

    Returns:
        ``[]`` in the dtype of ``entropy``: of "normalized" the sum of exp(H0 - H) over the kept
        rows, else their number.
    """
    unscaled: Reweight = "as_written" if reweight == "normalized" else reweight
    kept, weight = filter_and_weigh(entropy, classes, mu=mu, filter=filter, reweight=unscaled)
    counted = weight.double() if reweight == "normalized" else kept
    return counted.sum().to(entropy.dtype)


def debiased_entropy(
    logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    *,
    alpha: float = 1.0,
    mu: float = 0.4,
    entropy_of: EntropyOf = "teacher",
    use_entropy: bool = True,
    filter: bool = True,
    reweight: Reweight = "as_written",
    teacher_entropy: Sequence[Tensor] | None = None,
    divide_by: Tensor | None = None,
) -> DebiasedEntropy:
    """Equations (2) to (6), one task after another.

    Arguments and what is returned: see :func:`mdft_fast.debiased_entropy_loss`.
    """
    if divide_by is not None and reweight == "normalized":
        reweight = "as_written"  # the divisor normalizes
    losses, entropies, weights, masks = [], [], [], []
    cached: Sequence[Tensor | None] = teacher_entropy or [None] * len(logits)
    for k, (z, t, known) in enumerate(zip(logits, teacher_logits, cached, strict=True)):
        z = z.to(accumulator(z.dtype))
        t = t.to(z.dtype).detach()
        p, h = (t.softmax(-1), entropy(t)) if known is None else (t, known.to(z.dtype).detach())
        if entropy_of == "meta":
            h = entropy(z).detach()
        kept, weight = filter_and_weigh(h, z.shape[1], mu=mu, filter=filter, reweight=reweight)
        z = torch.where(kept[:, None], z, 0.0)  # a removed row may hold anything
        rows = alpha * cross_entropy(p, z)  # (2, 3)
        if use_entropy:
            rows = rows + entropy(z)
        rows = torch.where(kept, rows, 0.0)
        # B / (B - N) / B = 1 / kept rows; none kept adds exactly 0. (5, 6)
        divisor = kept.sum() if divide_by is None else divide_by[k].detach()
        losses.append((weight * rows).sum() / torch.where(kept.any(), divisor, 1))
        entropies.append(h)
        weights.append(weight)
        masks.append(kept)
    return DebiasedEntropy(
        torch.stack(losses), torch.cat(entropies), torch.cat(weights), torch.cat(masks)
    )


def alignment(features: Tensor, target: Tensor) -> Tensor:
    """Equation (7): the mean absolute difference of two representations ``[B, D]``."""
    return (features - target).abs().mean()
