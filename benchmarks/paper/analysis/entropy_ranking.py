# SPDX-License-Identifier: Apache-2.0
"""How well a model's entropy, which needs no label, stands for its true loss, which does."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mdft_fast import reference
from mdft_fast.data import Samples
from mdft_fast.errors import MdftError, need
from mdft_fast.model import MetaModel

_BATCH = 128


@torch.no_grad()
def entropy_and_loss(
    meta: MetaModel, task: str, samples: Samples, labels: Tensor, *, batch: int = _BATCH
) -> tuple[Tensor, Tensor]:
    """Measures both on each labelled sample, with the meta-model at its present λ.

    Args:
        meta: the meta-model.
        task: whose head answers.
        samples: n images.
        labels: int64 ``[n]``, read for this measurement alone.
        batch: images encoded at once.

    Returns:
        Entropy of the softmax and cross-entropy to the label, float32 ``[n]`` each, in nats.
    """
    if labels.shape != (len(samples),):
        raise MdftError(
            f"entropy_and_loss: labels must be [{len(samples)}], got {list(labels.shape)}"
        )
    device = meta.coefficients.device
    parts = []
    for rows in torch.arange(len(samples)).split(batch):
        logits = meta(samples.batch(rows, device), task)
        loss = F.cross_entropy(logits, labels[rows].to(device), reduction="none")
        parts.append(torch.stack([reference.entropy(logits), loss]).cpu())
    entropy, loss = torch.cat(parts, 1)
    return entropy, loss


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Returns Spearman's rank correlation of two ``[n]``, ties at their mean rank.

    None where one of them does not vary, or n is below 2. Needs scipy.
    """
    spearmanr = need("scipy.stats", "analysis", who="spearman").spearmanr
    if a.dim() != 1 or a.shape != b.shape:
        raise MdftError(f"spearman: must be two [n], got {list(a.shape)} and {list(b.shape)}")
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    rho = float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)
    return None if math.isnan(rho) else rho
