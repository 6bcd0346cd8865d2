# SPDX-License-Identifier: Apache-2.0
"""What an error in a layer's output costs a task, to second order: one factor of K-FAC."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

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


class Sensitivities:
    """Each layer's Fisher matrix over its outputs, in each task's own model, block by block.

    F = mean over inputs and positions of g gᵀ, where g is the gradient of −log p(c) by the
    layer's output, and the class c is drawn from the model's own prediction p. No label is read.

    All matrices of a model at once would take more than the models do. So one pass ahead keeps the
    gradient at each block's output, in bfloat16, and a block's own gradients are made from that
    when its turn comes, from a stream of its own.

    Args:
        walk: the model; its blocks must come in their order.
        heads: task -> its classifier.
        samples: inputs a task that are looked at; all where there are fewer.
        batch: inputs a pass, at most.
        seed: of the classes drawn.

    Raises:
        MdftError: if a task has no head.
    """

    def __init__(
        self, walk: Walk, heads: Mapping[str, Head], *, samples: int, batch: int, seed: int
    ) -> None:
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
            batches = list(inputs.some(samples).batches(size))
            with walk.as_teacher(k, walk.names):
                self._calls.append([walk.stored(walk.enter(one)) for one in batches])
                head = heads[inputs.name].to(walk.device)
                self._behind.append([_gradients(walk, one, head, generator) for one in batches])

    def of_block(self, structure: Structure) -> dict[tuple[str, int], Tensor]:
        """Measures a block's layers, and brings the stream behind it.

        Returns:
            (module, task's number) -> float32 ``[out, out]``, of mean diagonal 1; where no
            position has a gradient, the identity.
        """
        walk, block = self._walk, structure.block
        matrices: dict[tuple[str, int], Tensor] = {}
        for k, calls in enumerate(self._calls):
            moments: dict[str, Moments] = {}
            with walk.as_teacher(k, walk.names_in(block)), torch.enable_grad():
                for number, stored in enumerate(calls):
                    call = walk.fetched(stored)
                    behind = self._behind[k][number].pop(block)
                    gradients, output = _in_block(walk, structure, call, behind)
                    calls[number] = walk.stored(call.following(output))
                    for site in structure.layers:
                        _add(moments, site, gradients[site.module])
            for site in structure.layers:
                matrices[site.module, k] = _normalized(moments.pop(site.module).gram)
        return matrices


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
        # On the host: the same classes on every device.
        likely = logits.detach().softmax(-1).cpu()
        drawn = torch.multinomial(likely, 1, generator=generator)[:, 0].to(logits.device)
        loss = F.cross_entropy(logits, drawn, reduction="sum")
    gradients = torch.autograd.grad(loss, list(added.values()))
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
    gradients = torch.autograd.grad(outputs, made, [behind.float()], allow_unused=True)
    return dict(zip(added, gradients, strict=True)), outputs[0].detach()


def _add(moments: dict[str, Moments], site: LayerSite, gradient: Tensor | None) -> None:
    if gradient is None:
        raise MdftError(f"{site.module}: must be differentiable, got no gradient")
    rows = site.rows(gradient)
    if site.module not in moments:
        moments[site.module] = Moments(rows.shape[-1], 0, rows.device)
    moments[site.module].add(rows, None, torch.ones(rows.shape[1], device=rows.device))


def _normalized(matrix: Tensor) -> Tensor:
    mean = matrix.diagonal().mean()
    return matrix / mean if float(mean) > 0 else torch.eye(len(matrix), device=matrix.device)
