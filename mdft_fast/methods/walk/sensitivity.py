# SPDX-License-Identifier: Apache-2.0
"""What an error in a layer's output costs a task, to second order: one factor of K-FAC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mdft_fast.checkpoints import arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.methods.least_squares import Moments
from mdft_fast.methods.walk.calls import Call, Point, observed
from mdft_fast.methods.walk.structure import LayerSite, Structure, hindrance, module_of
from mdft_fast.methods.walk.walking import Walk
from mdft_fast.model import Batch, each
from mdft_fast.pool import Head

# What a backward pass keeps, as bytes: as many inputs go through it at once as this allows.
_KEPT = 2**30
# Times the outputs of linear layers, as weights need no gradient: of a transformer's block
# queries, keys, values, what attention gives, the activation's input and those of two norms.
KEPT_OF_OUTPUTS = 9 / 8


class Sensitivity(NamedTuple):
    """What was measured of a layer in a task's own model.

    Attributes:
        metric: float32 ``[out, out]``, F with a mean diagonal of 1; the identity where no position
            has a gradient.
        positions: float32 ``[T]``, how much of F's trace comes from each position, of mean 1 over
            those that have any.
    """

    metric: Tensor
    positions: Tensor


class Sensitivities:
    """Each layer's Fisher matrix over its outputs, in each task's own model, block by block.

    F = mean over inputs and positions of g gᵀ, where g = Jᵀ C v: J is the Jacobian of the logits by
    the layer's output, C Cᵀ = diag p − p pᵀ the Fisher matrix of the model's own prediction p, and
    v is drawn from a normal distribution. No label is read. Varied copies of the inputs are left
    out: with them F was no better in any measurement, and took their share of the time.

    All matrices of a model at once would take more than the models do. So one pass ahead keeps the
    gradient at each block's output, in bfloat16, and a block's own gradients are made from that
    when its turn comes, from a stream of its own.

    Args:
        walk: the model; its blocks must come in their order.
        heads: task -> its classifier.
        batch: inputs a pass, at most.
        seed: of what is drawn.

    Raises:
        MdftError: if a task has no head.
    """

    def __init__(self, walk: Walk, heads: Mapping[str, Head], *, batch: int, seed: int) -> None:
        self._walk = walk
        self._behind: list[list[dict[str, Tensor]]] = []  # task -> batch -> block -> gradient
        self._calls: list[list[Call]] = []
        size = min(batch, backward_inputs(_outputs(walk)))
        for k, inputs in enumerate(walk.inputs):
            if inputs.name not in heads:
                raise MdftError(
                    f"calibrate: task {inputs.name!r} must have a head where fisher is above 0, "
                    f"got none"
                )
            generator = torch.Generator().manual_seed(seed)
            batches = list(inputs.some(len(inputs.indices)).batches(size))
            with walk.as_teacher(k, walk.names):
                self._calls.append([walk.stored(walk.enter(one)) for one in batches])
                head = heads[inputs.name].to(walk.device)
                self._behind.append([_gradients(walk, one, head, generator) for one in batches])

    def of_block(self, structure: Structure) -> dict[tuple[str, int], Sensitivity]:
        """Measures a block's layers, and brings the stream behind it.

        Returns:
            (module, task's number) -> what was measured.
        """
        walk, block = self._walk, structure.block
        measured: dict[tuple[str, int], Sensitivity] = {}
        for k, calls in enumerate(self._calls):
            sums = {site.module: _Sums(site) for site in structure.layers}
            with walk.as_teacher(k, walk.names_in(block)), torch.enable_grad():
                for number, stored in enumerate(calls):
                    call = walk.fetched(stored)
                    behind = walk.fetched(self._behind[k][number].pop(block))
                    gradients, output = _in_block(walk, structure, call, behind)
                    calls[number] = walk.stored(call.following(output))
                    for site in structure.layers:
                        sums[site.module].add(gradients[site.module])
            for site in structure.layers:
                measured[site.module, k] = sums.pop(site.module).sensitivity()
        return measured


def backward_inputs(outputs: int) -> int:
    """Returns how many inputs a backward pass takes at once.

    Args:
        outputs: elements that all linear layers give for one input.
    """
    return max(1, int(_KEPT / (4 * KEPT_OF_OUTPUTS * max(outputs, 1))))


def _outputs(walk: Walk) -> int:
    names = [module_of(layer) for layer in walk.layers if not hindrance(walk.module, layer)]
    one = each(lambda tensor: tensor[:1], walk.probe)
    return sum(out.numel() for out in walk.outputs(names, one))


def _gradients(
    walk: Walk, batch: Batch, head: Head, generator: torch.Generator
) -> dict[str, Tensor]:
    """Returns the gradient at each block's output, bfloat16, by the block's name."""
    added: dict[str, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> Tensor:
        added[point.module] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + added[point.module]

    args, kwargs = arguments_of(batch)
    points = [Point("out", block) for block in walk.blocks]
    with torch.enable_grad():
        with observed(walk.module, points, see):
            logits = head(walk.module(*args, **kwargs))
        if not logits.isfinite().all():
            raise MdftError("calibrate: a task's own logits must be finite, got NaN or infinity")
    # A factor of the softmax's Fisher matrix, diag p - p pᵀ = C Cᵀ, times a normal vector: the same
    # in the mean as a class drawn from p, with far less noise. Drawn on the host: alike everywhere.
    root = logits.detach().softmax(-1).sqrt()
    drawn = torch.randn(root.shape, generator=generator, dtype=torch.float32, device="cpu").to(root)
    pull = root * drawn - root.square() * (root * drawn).sum(-1, keepdim=True)
    # Zeros where the model's output reads no more of a block.
    gradients = torch.autograd.grad(
        logits, list(added.values()), pull, allow_unused=True, materialize_grads=True
    )
    return {
        name: walk.stored(gradient.bfloat16())
        for name, gradient in zip(added, gradients, strict=True)
    }


def _in_block(
    walk: Walk, structure: Structure, call: Call, behind: Tensor
) -> tuple[dict[str, Tensor | None], Tensor]:
    """Returns each layer's gradient in a block, by its module, and the block's output."""
    added: dict[str, Tensor] = {}
    outputs: list[Tensor] = []

    def see(point: Point, tensor: Tensor) -> Tensor:
        if point in layers:
            added[point.module] = torch.zeros_like(tensor, requires_grad=True)
            tensor = tensor + added[point.module]
        if point == end:  # the block may be a layer itself
            outputs.append(tensor)
        return tensor

    end = Point("out", structure.block)
    layers = [Point("out", site.module) for site in structure.layers]
    with observed(walk.module, dict.fromkeys([*layers, end]), see):
        walk.run(structure.block, call, [])
    made = list(added.values())
    if not made:  # a block without layers to walk
        return {}, outputs[0].detach()
    gradients = torch.autograd.grad(outputs, made, [behind.float()], allow_unused=True)
    return dict(zip(added, gradients, strict=True)), outputs[0].detach()


class _Sums:
    """Sums over a layer's gradients."""

    def __init__(self, site: LayerSite) -> None:
        self._site = site
        self._moments: Moments | None = None
        self._positions = torch.zeros(0, dtype=torch.float32, device="cpu")

    def add(self, gradient: Tensor | None) -> None:
        """Adds those of some inputs."""
        if gradient is None:
            raise MdftError(f"{self._site.module}: must be differentiable, got no gradient")
        rows = self._site.rows(gradient)
        if self._moments is None:
            self._moments = Moments(rows.shape[-1], 0, rows.device)
            self._positions = torch.zeros(rows.shape[1], device=rows.device, dtype=torch.float32)
        self._moments.add(
            rows, None, torch.ones(rows.shape[1], device=rows.device, dtype=torch.float32)
        )
        self._positions += rows.square().sum((0, 2))

    def sensitivity(self) -> Sensitivity:
        """Returns what they make."""
        assert self._moments is not None
        metric, positions = self._moments.gram, self._positions
        mean, read = metric.diagonal().mean(), positions > 0
        if not float(mean) > 0:
            eye = torch.eye(len(metric), device=metric.device, dtype=torch.float32)
            return Sensitivity(eye, torch.ones_like(positions))
        return Sensitivity(metric / mean, positions / positions[read].mean())
