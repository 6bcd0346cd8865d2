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
    stand for it (cross-attention, padding masks, ...), it runs, and nothing can be observed.
    """
    for part in list(module.modules()):
        if isinstance(part, nn.MultiheadAttention) and _is_plain(part):
            part.add_module(IN_PROJ, _InProjection(part))
            part.forward = _forward_of(part, part.forward)  # type: ignore[method-assign]


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return (
        attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _forward_of(attention: nn.MultiheadAttention, plain: Any) -> Any:
    def forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attn_mask")
        padding = kwargs.get("key_padding_mask")
        same = key is query and value is query
        if not same or args or padding is not None or query.dim() != 3:
            return plain(query, key, value, *args, **kwargs)
        x = query if attention.batch_first else query.transpose(0, 1)
        projected = getattr(attention, IN_PROJ)(x)
        heads = attention.num_heads
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )
        allowed = _allowed(mask, x.shape[0], heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        y = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return (y if attention.batch_first else y.transpose(0, 1)), None

    return forward


def _allowed(mask: Tensor | None, samples: int, heads: int) -> Tensor | None:
    """Returns torch's mask as attention itself takes it: there True lets through."""
    if mask is None:
        return None
    if mask.dim() == 3:  # one a sample and head
        mask = mask.view(samples, heads, *mask.shape[1:])
    return ~mask if mask.dtype == torch.bool else mask
