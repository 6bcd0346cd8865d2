# SPDX-License-Identifier: Apache-2.0
"""Gradients that refuse to be differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def differentiable_once(op: str, grad: Tensor | None, *sources: Tensor | None) -> Tensor | None:
    """Returns ``grad``; a second derivative that leads through it to ``sources`` raises.

    Not torch's ``once_differentiable``: that cuts the gradient off from what it depends on, so
    ``torch.autograd.grad`` of a sum with another path leaves our term out in silence.
    """
    if grad is None or not torch.is_grad_enabled():  # no create_graph: nobody can ask
        return grad
    result: Tensor = _Once.apply(op, grad, *sources)
    return result


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(op: str, grad: Tensor, *sources: Tensor | None) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            f"{ctx.op}: only the first derivative is computed, got a second derivative"
        )
