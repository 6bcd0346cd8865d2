# SPDX-License-Identifier: Apache-2.0
"""What reaches the layers of the tasks' own versions of a block, from either stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from torch import Tensor

from mdft_fast.methods.walk.calls import Call, Point
from mdft_fast.methods.walk.structure import LayerSite, Structure
from mdft_fast.methods.walk.walking import Walk


@dataclasses.dataclass(frozen=True, eq=False)
class BlockInputs:
    """A block's turn: each task's own version of it runs on a stream.

    Attributes:
        layers: those that can be walked, in the order of execution.
    """

    layers: tuple[LayerSite, ...]
    _walk: Walk
    _structure: Structure
    _merged: bool
    _calls: list[list[Call]]  # task -> batch

    def look(self, k: int, see: Callable[[LayerSite, Tensor], None]) -> None:
        """Shows the inputs of each layer in a task's own version of the block.

        Args:
            k: the task's number; each task is looked at once.
            see: gets a layer and ``[B, T, in]``, batch after batch in order.
        """
        walk, block, calls = self._walk, self._structure.block, self._calls[k]
        points = {site.module: Point("in", site.module) for site in self.layers}
        # What lies behind the last input matters to the task's own stream alone.
        stop = points[self.layers[-1].module] if self._merged and self.layers else None
        with walk.as_teacher(k, walk.names_in(block)):
            for number, stored in enumerate(calls):
                call = walk.fetched(stored)
                seen, output = walk.run(block, call, points.values(), stop=stop)
                for site in self.layers:
                    module = walk.module.get_submodule(site.module)
                    see(site, site.inputs(seen[points[site.module]], module))
                if not self._merged:
                    calls[number] = walk.stored(call.following(output))

    def move_on(self) -> None:
        """Brings the merged stream behind the block, as it is in the module then."""
        walk = self._walk
        if self._merged:
            for calls in self._calls:
                for number, stored in enumerate(calls):
                    call = walk.fetched(stored)
                    _, output = walk.run(self._structure.block, call, [])
                    calls[number] = walk.stored(call.following(output))


def walk_blocks(
    walk: Walk, *, batch: int, merged: bool, watch: Callable[[int, int], None]
) -> Iterator[BlockInputs]:
    """Goes through a model's blocks in the order of execution.

    Look at every task and install a block's new weights before the next one is asked for.

    Args:
        walk: at the weights from which merging begins.
        batch: inputs a forward pass.
        merged: what goes into a block: what the model merged so far makes of a task's inputs;
            else what the task's own model makes of them.
        watch: told how many blocks are done, of how many.
    """
    calls = []
    for k, inputs in enumerate(walk.inputs):
        with walk.as_teacher(k, [] if merged else walk.names_outside):
            calls.append([walk.stored(walk.enter(some)) for some in inputs.batches(batch)])
    for done, structure in enumerate(walk.structures()):
        watch(done, len(walk.blocks))
        block = BlockInputs(structure.layers, walk, structure, merged, calls)
        yield block
        block.move_on()
    watch(len(walk.blocks), len(walk.blocks))
