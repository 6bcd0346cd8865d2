# SPDX-License-Identifier: Apache-2.0
"""Prototype heads: a class is the mean of the encoder's features of its labelled images.

Labels make the head here, and nothing else: λ is never learned from them nor chosen by them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdft_fast.data import Samples
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head

_BATCH = 128  # images a forward pass


def prototype_head(
    encoder: nn.Module,
    samples: Samples,
    labels: Tensor,
    classes: Sequence[str],
    *,
    scale: float = 20.0,
    normalize: bool = True,
) -> Head:
    """Returns the head whose rows are class means of an encoder's features.

    The encoder is the base: fine-tuned models then start from features that the head fits. With
    ``normalize`` features are taken at length 1, a row is their mean at length 1, and logits are
    ``scale`` times the cosine (the prototypical networks of Snell et al. 2017 with a cosine).
    Without, logits are ``-scale / 2`` times the squared distance to the mean, up to what is equal
    for all classes, written as a linear layer: ``scale * (f @ m - |m|² / 2)``.

    Args:
        encoder: maps ``[b, 3, H, W]`` to features ``[b, D]``; in eval mode, not changed.
        samples: n labelled images, such as :func:`~mdft_fast.data.load_labelled` gives.
        labels: int64 ``[n]``, each in [0, C).
        classes: C names, for errors; a class without an image is one.
        scale: what the products are multiplied by; 20 is a temperature of 0.05.
        normalize: whether features are divided by their length, here and by the head.

    Returns:
        A head with weight ``[C, D]``, float32 on the CPU.

    Raises:
        MdftError: if a class has no image, or features or labels have a wrong form.
    """
    C = len(classes)
    if labels.shape != (len(samples),) or labels.is_floating_point():
        raise MdftError(
            f"prototype head: labels must be whole numbers [{len(samples)}], one for each image, "
            f"got {list(labels.shape)} in {labels.dtype}"
        )
    if not scale > 0:
        raise MdftError(f"prototype head: scale must be above 0, got {scale}")
    if encoder.training:
        raise MdftError("prototype head: encoder must be in eval mode, got training; call eval()")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < C:
        got = int(labels.min()) if labels.min() < 0 else int(labels.max())
        raise MdftError(f"prototype head: labels must lie in [0, {C}), got {got}")
    counts = torch.bincount(labels.cpu(), minlength=C)
    if (counts == 0).any():
        empty = [classes[int(c)] for c in (counts == 0).nonzero()]
        raise MdftError(
            f"prototype head: each of {C} classes must have an image, got none for {empty[:3]} "
            f"({len(empty)} without)"
        )
    means = _sums(encoder, samples, labels.cpu(), C, normalize) / counts[:, None]
    if not means.isfinite().all():
        raise MdftError("prototype head: features must be finite, got NaN or inf")
    if normalize:
        return Head(F.normalize(means, dim=-1).float(), normalize=True, scale=scale)
    bias = -scale / 2 * means.square().sum(dim=-1)
    return Head(means.float(), bias.float(), normalize=False, scale=scale)


@torch.no_grad()
def _sums(encoder: nn.Module, samples: Samples, labels: Tensor, C: int, normalize: bool) -> Tensor:
    """Returns the sums of features by class, float64 ``[C, D]``."""
    place = next(encoder.parameters(), torch.empty(0, dtype=torch.float32, device="cpu")).device
    sums: Tensor | None = None
    for start in range(0, len(samples), _BATCH):
        rows = torch.arange(start, min(start + _BATCH, len(samples)), device="cpu")
        features = encoder(samples.batch(rows, place))
        if not isinstance(features, Tensor) or features.dim() != 2:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise MdftError(f"prototype head: features must be [b, D], got {got}")
        # Summed on the CPU: there the order is fixed.
        features = features.to("cpu", torch.float64)
        features = F.normalize(features, dim=-1) if normalize else features
        sums = (
            torch.zeros(C, features.shape[1], dtype=torch.float64, device="cpu")
            if sums is None
            else sums
        )
        sums.index_add_(0, labels[rows], features)
    assert sums is not None  # a class without an image is refused before
    return sums
