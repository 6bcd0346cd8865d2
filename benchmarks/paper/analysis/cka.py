# SPDX-License-Identifier: Apache-2.0
"""Linear CKA between layers of two models, from minibatches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mdft_fast.errors import MdftError

LEAST = 4  # samples of a batch: the estimator divides by n - 3

Batch = tuple[Sequence[Tensor], Sequence[Tensor]]


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    r"""Estimates the Hilbert-Schmidt independence criterion of two kernels without bias.

    .. math::
        \frac{1}{n (n - 3)} \Big[ \mathrm{tr}(\tilde K \tilde L)
        + \frac{1^T \tilde K 1 \; 1^T \tilde L 1}{(n - 1)(n - 2)}
        - \frac{2}{n - 2} 1^T \tilde K \tilde L 1 \Big]

    with the diagonals of K and L set to zero.

    Args:
        k: ``[n, n]`` symmetric, kernel of the first features; n is 4 or more.
        l: ``[n, n]`` symmetric, of the second.

    Returns:
        A scalar in the dtype of ``k``. 0 on average where the features are independent, so single
        values can be negative.

    Source:
        Song et al. 2012 (JMLR 13:1393), eq. 5.
    """
    n = k.shape[0]
    if k.shape != l.shape or k.dim() != 2 or k.shape[1] != n or n < LEAST:
        raise MdftError(
            f"hsic: kernels must be two [n, n] with n of {LEAST} or more, got {list(k.shape)} and "
            f"{list(l.shape)}"
        )
    k, l = (x - torch.diag(x.diagonal()) for x in (k, l))  # noqa: E741
    rows_k, rows_l = k.sum(1), l.sum(1)
    total = (k * l).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (rows_k @ rows_l)) / (n * (n - 3))


def linear_cka(batches: Iterable[Batch]) -> Tensor:
    r"""Compares every layer of one model with every layer of another.

    .. math::
        \mathrm{CKA}_{ij} = \frac{\sum_b \mathrm{HSIC}(X_i X_i^T, Y_j Y_j^T)}
        {\sqrt{\sum_b \mathrm{HSIC}(X_i X_i^T, X_i X_i^T)}
        \sqrt{\sum_b \mathrm{HSIC}(Y_j Y_j^T, Y_j Y_j^T)}}

    with :func:`unbiased_hsic`, summed over batches b. One batch of all samples gives the full
    unbiased estimate, which the minibatch one has as its mean.

    Args:
        batches: pairs of the two models' layers on the same samples: A tensors ``[n, F_i]`` and
            B tensors ``[n, F_j]``. Batches should be of one size, as each counts alike.

    Returns:
        float64 ``[A, B]`` on the CPU: 1 for features equal up to rotation and scale, near 0 for
        independent ones. NaN where a layer's features do not vary.

    Raises:
        MdftError: if there is no batch, or one is smaller than 4 samples or of other layers.

    Source:
        Nguyen, Raghu and Kornblith 2021 (arXiv:2010.15327), eq. 3; CKA: Kornblith et al. 2019
        (arXiv:1905.00414).
    """
    sums: tuple[Tensor, ...] | None = None
    for first, second in batches:
        batch = _hsics([_gram(x) for x in first], [_gram(y) for y in second])
        if sums is not None and sums[0].shape != batch[0].shape:
            raise MdftError(
                f"cka: every batch must be of {list(sums[0].shape)} layers, got "
                f"{list(batch[0].shape)}"
            )
        sums = batch if sums is None else tuple(a + b for a, b in zip(sums, batch, strict=True))
    if sums is None:
        raise MdftError("cka: wanted one batch or more, got none")
    cross, one, other = sums
    scale = one.clamp(min=0).sqrt()[:, None] * other.clamp(min=0).sqrt()
    return torch.where(scale > 0, cross / scale, torch.nan)


def _gram(features: Tensor) -> Tensor:
    """Returns ``[n, n]`` in float64. Centering changes the estimate by nothing but round-off."""
    if features.dim() != 2 or features.shape[1] == 0:
        raise MdftError(f"cka: features must be [n, F], got {list(features.shape)}")
    wide = features.detach().double()
    wide = wide - wide.mean(0)
    return (wide @ wide.T).cpu()


def _hsics(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[Tensor, ...]:
    one = torch.stack([unbiased_hsic(k, k) for k in first])
    other = torch.stack([unbiased_hsic(l, l) for l in second])  # noqa: E741
    cross = torch.stack([torch.stack([unbiased_hsic(k, l) for l in second]) for k in first])  # noqa: E741
    return cross, one, other
