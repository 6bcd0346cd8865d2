# SPDX-License-Identifier: Apache-2.0
"""Two streams a task: through its own model, and through the model as merged so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdft_fast.errors import MdftError
from mdft_fast.methods.least_squares import Moments
from mdft_fast.methods.walk.block_pass import BlockPass
from mdft_fast.methods.walk.calls import Call
from mdft_fast.methods.walk.sensitivity import Sensitivities, Sensitivity
from mdft_fast.methods.walk.structure import LayerSite
from mdft_fast.methods.walk.walking import Walk
from mdft_fast.model import available_memory, tensors_of, trim_heaps

_UNFOLDED = 2**24  # elements of a convolution's inputs that are laid out as rows at once


@dataclasses.dataclass(frozen=True, eq=False)
class LayerPass:
    """A layer's turn: what reaches it, and what it should give.

    Attributes:
        site: the layer.
        module: what runs it, a part of the walk's module.
        block: its block.
        sensitivities: task's number -> what an error of the layer's output costs it; empty: not
            measured.
        tell: called when a task's sums are made.
    """

    site: LayerSite
    module: nn.Module
    block: BlockPass
    sensitivities: dict[int, Sensitivity]
    tell: Callable[[], None]

    def pairs(self, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields a task's inputs in the merged stream and what the layer should make of them.

        For a layer that writes to the residual stream that is what brings the merged stream to
        where the task's own stream is behind the layer; for others, what the task's own layer
        gives. A bias that is not merged is taken off.

        Args:
            k: the task's number.

        Yields:
            ``[B, T, in]`` and ``[B, T, out]`` for some samples, in order.
        """
        bias, by_input = self.block.fixed_bias(self.site), self.block.shows_input(self.site)
        own = self._own(k)
        for x, shown, before in self._looks(k):
            if by_input:
                yield x, F.linear(shown, *own)
            else:
                y = self.site.correction(shown, before)
                yield x, (y if bias is None else y - bias)

    def moments(self, k: int, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a task's sums over positions and samples: w x xᵀ and w x yᵀ, as pairs has them.

        x has a 1 behind it where the bias is merged.

        Args:
            k: the task's number.
            weights: float32 ``[T]``, w.

        Returns:
            float32 ``[in (+ 1), in (+ 1)]`` and ``[in (+ 1), out]``.

        Raises:
            MdftError: if an activation is not finite, or the number of positions varies.
        """
        weight, bias = self._own(k)
        by_input = self.block.shows_input(self.site)
        extra = int(self.site.layer.bias is not None)
        inputs = weight.shape[1] + extra
        moments = Moments(inputs, inputs if by_input else len(weight), weight.device)
        # Where the target is the task's own layer's output, Σ x yᵀ is (Σ x x_tᵀ) W_tᵀ: a matrix
        # product less wherever there are more outputs than inputs.
        pairs = ((x, shown) for x, shown, _ in self._looks(k)) if by_input else self.pairs(k)
        for x, y in pairs:
            if x.shape[1] != len(weights):
                raise MdftError(
                    f"{self.site.module}: must see {len(weights)} positions in every input, got "
                    f"{x.shape[1]}; pad the inputs to one length"
                )
            moments.add(x, y, weights)
        gram, cross = moments.gram, moments.cross
        if by_input:
            own = weight if not extra else torch.cat([weight, _column(bias, weight)], 1)
            cross = (cross.double() @ own.double().T).float()
        if not (gram.diagonal().isfinite().all() and cross.isfinite().all()):
            name = self.block.walk.inputs[k].name
            raise MdftError(
                f"task {name!r}: activations at {self.site.module} must be finite, got NaN or "
                f"infinity"
            )
        self.tell()
        return gram, cross

    def _looks(self, k: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yields input, what the task's own stream shows, and the merged stream before it."""
        for number in range(len(self.block.merged[k])):
            x, before = self.block.reach(k, number, self.site)
            shown = self.block.shown(k, number, self.site)
            if self.site.layer.kind != "convolution":
                yield self.site.inputs(x, self.module), shown, before
                continue
            row = shown[0, :, 0].numel() * self.block.walk.columns(self.site.layer)
            for part in torch.arange(len(x), device=x.device).split(max(1, _UNFOLDED // row)):
                some = slice(int(part[0]), int(part[-1]) + 1)
                rest = None if before is None else before[some]
                yield self.site.inputs(x[some], self.module), shown[some], rest

    def _own(self, k: int) -> tuple[Tensor, Tensor | None]:
        """Returns weight ``[out, in]`` and bias of the task's own layer; None: not merged."""
        return self.block.walk.own_layer(k, self.site.layer)


# Where outputs are kept, for one element of a stream: those of a transformer's block, 9, and 2
# streams and what they are fitted to, 4 at first and less when outputs have come.
_KEPT_STREAMS = 6


def _column(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight), 1) if bias is None else bias[:, None]


def walk_layers(
    walk: Walk,
    *,
    batch: int,
    keep: bool,
    repair: bool,
    watch: Callable[[int, int], None],
    sensitivities: Sensitivities | None = None,
) -> Iterator[LayerPass]:
    """Goes through a model's linear layers in the order of execution.

    Install a layer's new weights before the next one is asked for: that is merged behind it.

    Args:
        walk: at the weights from which merging begins.
        batch: inputs a forward pass.
        keep: keeps the outputs of a block's layers, of all tasks and both streams, so that no
            matrix product is computed twice; else blocks run again for each of their layers.
        repair: whether layers that write to the residual stream are to make up for what earlier
            ones left.
        watch: told how many sums of a layer and a task are done, of how many.
        sensitivities: measured block by block, where the layers' turns need them.
    """
    K, total, done = walk.pool.K, walk.pool.K * len(walk.layers), 0

    def tell() -> None:
        nonlocal done
        done += 1
        watch(done, total)

    watch(0, total)
    streams = _enter(walk, batch)
    behind = 0
    for structure in walk.structures():
        trim_heaps()  # a layer's many sizes leave gaps, of two models' worth in CLIP's towers
        measured = sensitivities.of_block(structure) if sensitivities else {}
        block = BlockPass(walk, structure, *streams, keep=keep, repair=repair)
        for site in structure.layers:
            own = {k: measured.pop((site.module, k)) for k in range(K) if measured}
            module = walk.module.get_submodule(site.module)
            yield LayerPass(site, module, block, own, tell)
            block.forget(site)
            trim_heaps()
        block.move_on()
        behind += len(structure.layers) + len(structure.left_out)
        done = K * behind  # those left out too
        watch(done, total)


def crowded(walk: Walk, *, keep: bool, measured: bool) -> bool:
    """Returns whether streams would take more than half of what is free on the GPU.

    Args:
        walk: its ``on_host`` is to be what this returns, before any stream is entered.
        keep: as for :func:`walk_layers`.
        measured: whether sensitivities are: a stream of their own, and a gradient behind each block
            at half its size.
    """
    if walk.device.type != "cuda":
        return False
    stream, samples = walk.enter(walk.probe).stream, len(next(tensors_of(walk.probe)))
    size = stream.numel() * stream.element_size() * sum(map(len, walk.inputs)) // samples
    streams = 2 * (_KEPT_STREAMS if keep else 1) + (1 + len(walk.blocks) / 2 if measured else 0)
    return size * streams > available_memory(walk.device) / 2


Streams = tuple[list[list[Call]], list[list[Call]]]


def _enter(walk: Walk, batch: int) -> Streams:
    """Returns the first block's calls in both streams: task -> batch -> call."""
    taught, merged = [], []
    for k, inputs in enumerate(walk.inputs):
        with walk.as_teacher(k, walk.names_outside):
            taught.append([walk.stored(walk.enter(b)) for b in inputs.batches(batch)])
        merged.append([walk.stored(walk.enter(b)) for b in inputs.batches(batch)])
    return taught, merged
