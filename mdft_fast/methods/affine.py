# SPDX-License-Identifier: Apache-2.0
"""A linear layer's weight and bias as one matrix, and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mdft_fast.methods.walk import Walk
from mdft_fast.model import LinearLayer


def augmented(layer: LinearLayer, read: Callable[[str], Tensor]) -> Tensor:
    """Returns K matrices with the bias as one more column, float64 ``[K, out, in (+ 1)]``."""
    matrices = layer.matrix(read(layer.weight)).double()
    if layer.bias is None:
        return matrices
    return torch.cat([matrices, read(layer.bias).double()[:, :, None]], 2)


def parts(layer: LinearLayer, matrix: Tensor, walk: Walk) -> dict[str, Tensor]:
    """Returns weight and bias, float32, from the matrix that holds both."""
    shape = tuple(walk.base(layer.weight).shape)
    if layer.bias is None:
        return {layer.weight: layer.weights(matrix.float(), shape).contiguous()}
    weight, bias = matrix[:, :-1].float(), matrix[:, -1].float()
    return {layer.weight: layer.weights(weight, shape).contiguous(), layer.bias: bias.contiguous()}


def normalized(gram: Tensor) -> Tensor:
    """Returns a matrix of trace 1; zeros stay zeros."""
    trace = gram.diagonal().sum()
    return gram / trace if float(trace) > 0 else gram
