# SPDX-License-Identifier: Apache-2.0
"""What an error in a layer's output costs a task, to second order: one factor of K-FAC."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mdft_fast.checkpoints import arguments_of
from mdft_fast.methods.walk.calls import Point, observed
from mdft_fast.methods.walk.structure import module_of, walkable
from mdft_fast.methods.walk.walking import Walk
from mdft_fast.pool import Head


def sensitivities(
    walk: Walk, heads: Mapping[str, Head], *, samples: int, batch: int, seed: int
) -> dict[tuple[str, int], Tensor]:
    """Measures each layer's Fisher matrix over its outputs, in each task's own model.

    F = mean over inputs and positions of g gᵀ, where g = Jᵀ C v: J is the Jacobian of the logits by
    the layer's output, C Cᵀ = diag p − p pᵀ the Fisher matrix of the model's own prediction p, and
    v is drawn from a normal distribution. No label is read.

    Args:
        walk: the model.
        heads: task -> its classifier.
        samples: inputs a task that are looked at; all where there are fewer.
        batch: inputs a pass.
        seed: of what is drawn.

    Returns:
        (module, task's number) -> float32 ``[out, out]``, of mean diagonal 1; where no position
        has a gradient, the identity.
    """
    layers = {module_of(layer): layer for layer in walk.layers if walkable(walk.module, layer)}
    matrices: dict[tuple[str, int], Tensor] = {}
    for k, inputs in enumerate(walk.inputs):
        generator = torch.Generator().manual_seed(seed)
        with walk.as_teacher(k, walk.names), torch.enable_grad():
            for some in inputs.some(samples).batches(batch):
                gradients = _gradients(walk, list(layers), some, heads[inputs.name], generator)
                for name, gradient in gradients:
                    if layers[name].kind == "convolution":
                        gradient = gradient.flatten(2).mT
                    rows = gradient.reshape(-1, gradient.shape[-1])
                    matrices[name, k] = matrices.get((name, k), 0) + rows.T @ rows
    return {at: _normalized(matrix) for at, matrix in matrices.items()}


def _gradients(
    walk: Walk, names: list[str], batch: object, head: Head, generator: torch.Generator
) -> list[tuple[str, Tensor]]:
    """Returns each layer's gradient, by its module's name."""
    added: dict[str, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> Tensor:
        added[point.module] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + added[point.module]

    args, kwargs = arguments_of(batch)  # type: ignore[arg-type]
    with observed(walk.module, [Point("out", name) for name in names], see):
        logits = head(walk.module(*args, **kwargs))
    # A factor of the softmax's Fisher matrix, diag p - p pᵀ = C Cᵀ, times a normal vector: the same
    # in the mean as a class drawn from p, with far less noise. Drawn on the host: alike everywhere.
    root = logits.detach().softmax(-1).sqrt()
    drawn = torch.randn(root.shape, generator=generator).to(root)
    pull = root * drawn - root.square() * (root * drawn).sum(-1, keepdim=True)
    gradients = torch.autograd.grad(logits, list(added.values()), pull, allow_unused=True)
    return [(name, g) for name, g in zip(added, gradients, strict=True) if g is not None]


def _normalized(matrix: Tensor) -> Tensor:
    mean = matrix.diagonal().mean()
    eye = torch.eye(len(matrix), device=matrix.device)
    return matrix / mean if float(mean) > 0 else eye
