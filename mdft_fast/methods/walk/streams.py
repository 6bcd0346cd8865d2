# SPDX-License-Identifier: Apache-2.0
"""Two streams a task: through its own model, and through the model as merged so far."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from mdft_fast.methods.walk.calls import Call, Point
from mdft_fast.methods.walk.structure import LayerSite, Structure
from mdft_fast.methods.walk.walking import Walk
from mdft_fast.model import replaced_forward

Chunk = tuple[int, int]  # task's number, batch's number


@dataclasses.dataclass(frozen=True, eq=False)
class LayerPass:
    """A layer's turn: what reaches it, and what it should give.

    Attributes:
        site: the layer.
        module: what runs it, a part of the walk's module.
        block: its block.
    """

    site: LayerSite
    module: nn.Module
    block: _BlockPass

    def pairs(self, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields a task's inputs in the merged stream and what the layer should make of them.

        For a layer that writes to the residual stream that is what brings the merged stream to
        where the task's own stream is behind the layer; for others, what the task's own layer
        gives.

        Args:
            k: the task's number.

        Yields:
            ``[B, T, in]`` and ``[B, T, out]`` for each batch, in order.
        """
        for number in range(len(self.block.merged[k])):
            x, before = self.block.reach(k, number, self.site)
            target = self.block.target(k, number, self.site)
            yield self.site.inputs(x, self.module), self.site.correction(target, before)


def walk_layers(
    walk: Walk, *, batch: int, keep: bool, repair: bool, watch: Callable[[int, int], None]
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
        watch: told how many blocks are done, of how many.
    """
    streams = _enter(walk, batch)
    for done, structure in enumerate(walk.structures()):
        watch(done, len(walk.blocks))
        block = _BlockPass(walk, structure, *streams, keep=keep, repair=repair)
        for site in structure.layers:
            yield LayerPass(site, walk.module.get_submodule(site.module), block)
        block.move_on()
    watch(len(walk.blocks), len(walk.blocks))


Streams = tuple[list[list[Call]], list[list[Call]]]


def _enter(walk: Walk, batch: int) -> Streams:
    """Returns the first block's calls in both streams: task -> batch -> call."""
    taught, merged = [], []
    for k, inputs in enumerate(walk.inputs):
        with walk.as_teacher(k, walk.names_outside):
            taught.append([walk.enter(b) for b in inputs.batches(batch)])
        merged.append([walk.enter(b) for b in inputs.batches(batch)])
    return taught, merged


class _BlockPass:
    """A block with both streams before it."""

    def __init__(
        self,
        walk: Walk,
        structure: Structure,
        taught: list[list[Call]],
        merged: list[list[Call]],
        *,
        keep: bool,
        repair: bool,
    ) -> None:
        self.walk, self.block, self.sites = walk, structure.block, structure.layers
        self.taught, self.merged = taught, merged
        self._names = walk.names_in(self.block)
        self._keep, self._repair = keep, repair
        self._targets: dict[Chunk, dict[str, Tensor]] = {}
        self._outputs: dict[Chunk, dict[str, Tensor]] = {}
        self._next: dict[Chunk, Call] = {}
        if keep:
            for k in range(walk.pool.K):
                with walk.as_teacher(k, self._names):
                    for number in range(len(taught[k])):
                        self._teach(k, number)

    def target(self, k: int, number: int, site: LayerSite) -> Tensor:
        """Returns what a task's own stream shows of a layer, ``[B, T, out]``."""
        if self._keep:
            return self._targets[k, number][site.module]
        point = self._shows(site)
        with self.walk.as_teacher(k, self._names):
            seen, _ = self.walk.run(self.block, self.taught[k][number], [], stop=point)
        return site.rows(seen[point])

    def reach(self, k: int, number: int, site: LayerSite) -> tuple[Tensor, Tensor | None]:
        """Returns a layer's input in the merged stream, and that stream before the layer writes."""
        before = site.writer.before if self._repair and site.writer else None
        stop = Point("in", site.module)
        points = [before] if before else []
        with self._kept(k, number):
            seen, _ = self.walk.run(self.block, self.merged[k][number], points, stop=stop)
        return seen[stop], None if before is None else site.rows(seen[before])

    def move_on(self) -> None:
        """Brings both streams behind the block."""
        for k in range(self.walk.pool.K):
            for number, call in enumerate(self.merged[k]):
                with self._kept(k, number):
                    _, output = self.walk.run(self.block, call, [])
                self.merged[k][number] = call.following(output)
                self._outputs.pop((k, number), None)
            with self.walk.as_teacher(k, self._names):
                for number in range(len(self.taught[k])):
                    self.taught[k][number] = self._behind(k, number)

    def _shows(self, site: LayerSite) -> Point:
        repairs = self._repair and site.writer is not None
        return site.writer.after if repairs and site.writer else Point("out", site.module)

    def _teach(self, k: int, number: int) -> None:
        call = self.taught[k][number]
        points = {site.module: self._shows(site) for site in self.sites}
        seen, output = self.walk.run(self.block, call, points.values())
        rows = {site.module: site.rows(seen[points[site.module]]) for site in self.sites}
        self._targets[k, number] = rows
        self._next[k, number] = call.following(output)

    def _behind(self, k: int, number: int) -> Call:
        if self._keep:
            return self._next[k, number]
        call = self.taught[k][number]
        return call.following(self.walk.run(self.block, call, [])[1])

    @contextlib.contextmanager
    def _kept(self, k: int, number: int) -> Iterator[None]:
        """Lets layers give the outputs of an earlier pass, made with their final weights."""
        if not self._keep:
            yield
            return
        outputs = self._outputs.setdefault((k, number), {})
        with contextlib.ExitStack() as stack:
            for site in self.sites:
                module = self.walk.module.get_submodule(site.module)
                stack.enter_context(replaced_forward(module, _once(module, site.module, outputs)))
            yield


def _once(module: nn.Module, name: str, outputs: dict[str, Tensor]) -> Callable[..., Any]:
    """Returns a forward that computes the first time, and remembers."""
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if name not in outputs:
            outputs[name] = plain(*args, **kwargs)
        return outputs[name]

    return forward
