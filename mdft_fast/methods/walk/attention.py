# SPDX-License-Identifier: Apache-2.0
"""``nn.MultiheadAttention`` whose two projections can be observed like any linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IN_PROJ = "in_proj_observed"  # the submodule that stands for the fused projection


class _InProjection(nn.Module):
    """Query, key and value of an attention in one; the weights are the attention's own."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.__dict__["_attention"] = attention  # no submodule: it would hold itself

    def forward(self, x: Tensor) -> Tensor:
        attention: Any = self.__dict__["_attention"]
        return F.linear(x, attention.in_proj_weight, attention.in_proj_bias)


def make_observable(module: nn.Module) -> None:
    """Lets every self-attention of a module run as two linear layers and what is between them.

    Torch's own forward reads the weights of both without calling a module. Where this form cannot
    stand for it (cross-attention, padding masks, ...), it runs, and nothing can be observed. Both
    layers see positions and samples in the order in which the attention gets them.
    """
    for part in list(module.modules()):
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part):
            part.add_module(IN_PROJ, _InProjection(part))
            part.forward = _forward_of(part, part.forward)  # type: ignore[method-assign]
        if isinstance(part, nn.TransformerEncoderLayer):
            # 0 means "another activation": what keeps it from one kernel for the whole layer,
            # which it would take wherever no hook happens to be in it.
            part.activation_relu_or_gelu = 0


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return (
        attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _forward_of(attention: nn.MultiheadAttention, plain: Any) -> Any:
    def forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        same = key is query and value is query
        if not same or args or kwargs.get("key_padding_mask") is not None or query.dim() != 3:
            return plain(query, key, value, *args, **kwargs)
        heads = attention.num_heads
        order = (0, 2, 1, 3) if attention.batch_first else (1, 2, 0, 3)
        projected = getattr(attention, IN_PROJ)(query).unflatten(-1, (3, heads, -1))
        q, k, v = (projected.select(2, i).permute(order) for i in range(3))  # [B, heads, T, d]
        allowed = _allowed(kwargs.get("attn_mask"), len(q), heads)
        weights = None
        if kwargs.get("need_weights", True):
            weights = _weights(q, k, allowed)
            mixed = weights @ v
            weights = weights.mean(1) if kwargs.get("average_attn_weights", True) else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        back = (0, 2, 1, 3) if attention.batch_first else (2, 0, 1, 3)
        return attention.out_proj(mixed.permute(back).flatten(2)), weights

    return forward


def _allowed(mask: Tensor | None, samples: int, heads: int) -> Tensor | None:
    """Returns torch's mask as attention itself takes it: there True lets through."""
    if mask is None:
        return None
    if mask.dim() == 3:  # one a sample and head
        mask = mask.view(samples, heads, *mask.shape[1:])
    return ~mask if mask.dtype == torch.bool else mask


def _weights(q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
    """Returns what each position takes of each other, ``[B, heads, T, T]``."""
    scores: Tensor = q @ k.mT / q.shape[-1] ** 0.5
    if allowed is not None and allowed.dtype == torch.bool:
        scores = scores.masked_fill(~allowed, float("-inf"))
    elif allowed is not None:
        scores = scores + allowed
    weights: Tensor = scores.softmax(-1)
    return weights
