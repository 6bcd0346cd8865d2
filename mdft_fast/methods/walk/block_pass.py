# SPDX-License-Identifier: Apache-2.0
"""One block with both streams of all tasks before it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from mdft_fast.methods.walk.calls import Call, Point
from mdft_fast.methods.walk.structure import LayerSite, Structure
from mdft_fast.methods.walk.walking import Walk
from mdft_fast.model import replaced_forward

Chunk = tuple[int, int]  # task's number, batch's number


class BlockPass:
    """A block's turn.

    Args:
        walk: whose block it is.
        structure: what was found in it.
        taught: task -> batch -> call, in the task's own stream; moved on with the block.
        merged: likewise in the merged stream.
        keep: see :func:`~mdft_fast.methods.walk.walk_layers`.
        repair: likewise.
    """

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
        self._overwritten = structure.overwritten
        self._keep, self._repair = keep, repair
        self._shown: dict[str, dict[Chunk, Tensor]] = {site.module: {} for site in self.sites}
        self._outputs: dict[Chunk, dict[str, Tensor]] = {}
        self._next: dict[Chunk, Call] = {}
        self._own: tuple[int, dict[str, Tensor]] | None = None  # of the task that was asked last
        if keep:
            for k in range(walk.pool.K):
                with self._as_teacher(k):
                    for number in range(len(taught[k])):
                        self._teach(k, number)

    def shows_input(self, site: LayerSite) -> bool:
        """Returns whether a task's own stream shows a layer's input: where that is narrower."""
        if self._repairs(site) or site.layer.kind == "convolution":
            return False
        weight = self.walk.base(site.layer.weight)
        out, inputs = site.layer.matrix(weight[None]).shape[1:]
        return inputs < out

    def fixed_bias(self, site: LayerSite) -> Tensor | None:
        """Returns a layer's bias where it is not merged; None: there is none, or it is."""
        part: Any = self.walk.module.get_submodule(site.layer.name)
        bias = part.in_proj_bias if site.layer.kind == "in_proj" else getattr(part, "bias", None)
        return None if site.layer.bias is not None or bias is None else bias

    def shown(self, k: int, number: int, site: LayerSite) -> Tensor:
        """Returns what a task's own stream shows of a layer, ``[B, T, channels]``.

        That is the stream behind it, its output, or its input: see :meth:`shows_input`.
        """
        if self._keep:
            return self.walk.fetched(self._shown[site.module][k, number])
        point = self._point(site)
        with self._as_teacher(k):
            call = self.walk.fetched(self.taught[k][number])
            # Not stopped there: what is at a module's input may be overwritten before its output.
            seen, _ = self.walk.run(self.block, call, [], stop=point)
        return site.rows(seen[point])

    def reach(self, k: int, number: int, site: LayerSite) -> tuple[Tensor, Tensor | None]:
        """Returns a layer's input in the merged stream, and that stream before the layer writes."""
        before = site.writer.before if self._repairs(site) and site.writer else None
        stop = Point("in", site.module)
        points = [before] if before else []
        call = self.walk.fetched(self.merged[k][number])
        with self._remembering(k, number):
            seen, _ = self.walk.run(self.block, call, points, stop=stop)
        return seen[stop], None if before is None else site.rows(seen[before])

    def forget(self, site: LayerSite) -> None:
        """Drops what the tasks' own streams show of a layer that is done."""
        self._shown[site.module].clear()

    def move_on(self) -> None:
        """Brings both streams behind the block."""
        for k in range(self.walk.pool.K):
            for number, stored in enumerate(self.merged[k]):
                call = self.walk.fetched(stored)
                with self._remembering(k, number):
                    _, output = self.walk.run(self.block, call, [])
                self.merged[k][number] = self.walk.stored(call.following(output))
                self._outputs.pop((k, number), None)
            with self._as_teacher(k):
                for number in range(len(self.taught[k])):
                    self.taught[k][number] = self._behind(k, number)
        self._own = None

    def _repairs(self, site: LayerSite) -> bool:
        return self._repair and site.writer is not None

    def _point(self, site: LayerSite) -> Point:
        if self._repair and site.writer is not None:
            return site.writer.after
        return Point("in" if self.shows_input(site) else "out", site.module)

    @contextlib.contextmanager
    def _as_teacher(self, k: int) -> Iterator[None]:
        """Puts a task's own weights into the block; they are decoded once for many batches."""
        if self._own is None or self._own[0] != k:
            self._own = None  # before the next ones are made
            self._own = k, self.walk.teacher(k, self._names)
        with self.walk.using(self._own[1]):
            yield

    def _teach(self, k: int, number: int) -> None:
        call = self.walk.fetched(self.taught[k][number])
        points = {site.module: self._point(site) for site in self.sites}
        seen, output = self.walk.run(self.block, call, points.values())
        for site in self.sites:
            rows = site.rows(seen[points[site.module]])
            self._shown[site.module][k, number] = self.walk.stored(rows)
        self._next[k, number] = self.walk.stored(call.following(output))

    def _behind(self, k: int, number: int) -> Call:
        if self._keep:
            return self._next[k, number]
        call = self.walk.fetched(self.taught[k][number])
        return self.walk.stored(call.following(self.walk.run(self.block, call, [])[1]))

    @contextlib.contextmanager
    def _remembering(self, k: int, number: int) -> Iterator[None]:
        """Lets layers give the outputs of an earlier pass, made with their final weights."""
        if not self._keep:
            yield
            return
        outputs = self._outputs.setdefault((k, number), {})
        with contextlib.ExitStack() as stack:
            for site in self.sites:
                module = self.walk.module.get_submodule(site.module)
                once = self._once(module, site.module, outputs)
                stack.enter_context(replaced_forward(module, once))
            yield

    def _once(
        self, module: nn.Module, name: str, outputs: dict[str, Tensor]
    ) -> Callable[..., Tensor]:
        """Returns a forward that computes the first time, and remembers."""
        plain, copied = module.forward, Point("out", name) in self._overwritten

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            if name not in outputs:
                outputs[name] = self.walk.stored(plain(*args, **kwargs))
            output = self.walk.fetched(outputs[name])
            return output.clone() if copied else output

        return forward
