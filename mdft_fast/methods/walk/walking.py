# SPDX-License-Identifier: Apache-2.0
"""The walk: each task's inputs go through its own model and the merged one, block after block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.checkpoints import arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.walk.attention import make_observable
from mdft_fast.methods.walk.calls import Call, Point, Stopped, observed
from mdft_fast.methods.walk.structure import Structure, explore, module_of, walkable
from mdft_fast.model import (
    Batch,
    MetaModel,
    block_of,
    each,
    find_blocks,
    find_linear_layers,
    find_owners,
    tensors_of,
)
from mdft_fast.pool import Pool

_PROBE = 4  # inputs of the measurements


class Walk:
    """A model whose weights are changed block by block, and the streams that go through it.

    Attributes:
        pool: K vectors.
        inputs: each task's, in the order of the vectors.
        module: the model as merged so far: a private copy.
        blocks: names, in the order of execution; [""]: the whole model is one.
        why_whole: why the whole model is one block, in words; "": it is not.
        layers: the linear layers in blocks.
    """

    def __init__(self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs]) -> None:
        """Builds the module; its weights are the base's until :meth:`install`."""
        self.pool, self.inputs = pool, inputs
        self._device = inputs[0].device
        meta = MetaModel(backbone, pool, granularity="task", start=0.0)
        self.module = meta.materialize().to(self._device)
        layout = pool.layout
        owners = find_owners(self.module, layout, pool.ties)
        self._slots = {slot.name: slot for slot in layout.slots}
        self._owners = dict(zip(self._slots, owners, strict=True))
        self._base = dict(zip(self._slots, layout.views(pool.base), strict=True))
        make_observable(self.module)
        probe = next(inputs[0].batches(_PROBE))
        self._probes = [probe, each(lambda tensor: tensor[:-1], probe)]
        self.blocks, self.why_whole = self._find_blocks()
        whole = self.blocks == [""]
        home = block_of(list(self._slots))
        self._home = {name: "" if whole else block for name, block in home.items()}
        layers = find_linear_layers(self.module, layout, pool.ties)
        self.layers = [one for one in layers if self._home[one.weight] in self.blocks]

    # ---- weights -------------------------------------------------------------------------------

    def names_in(self, block: str) -> list[str]:
        """Returns the tensors of a block."""
        return [name for name, home in self._home.items() if home == block]

    @property
    def names(self) -> list[str]:
        """All tensors, in arena order."""
        return list(self._slots)

    @property
    def names_outside(self) -> list[str]:
        """The tensors that lie in no block."""
        return [name for name, home in self._home.items() if home not in self.blocks]

    def base(self, name: str) -> Tensor:
        """Returns a tensor of the base, float32 ``[*shape]``."""
        return self._base[name].to(self._device)

    def deltas(self, name: str) -> Tensor:
        """Returns a tensor's task vectors, float32 ``[K, *shape]``."""
        slot = self._slots[name]
        flat = self.pool.vectors.of_slot(slot).decode()[:, : slot.numel]
        return flat.view(len(flat), *slot.shape).to(self._device)

    def teacher(self, k: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns weights of a task's own model."""
        return {name: self.base(name) + self.deltas(name)[k] for name in names}

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns weights of the module as they are."""
        return {
            name: held[leaf].detach() for name in names for held, leaf in self._owners[name][:1]
        }

    def parameters(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """Returns the module's parameters as they are, to differentiate by."""
        held = ((name, *self._owners[name][0]) for name in names)
        return {name: parameters[leaf] for name, parameters, leaf in held}

    def install(self, weights: Mapping[str, Tensor]) -> None:
        """Puts weights into the module."""
        for name, weight in weights.items():
            parameter = nn.Parameter(weight, requires_grad=False)
            for parameters, leaf in self._owners[name]:
                parameters[leaf] = parameter

    @contextlib.contextmanager
    def as_teacher(self, k: int, names: Sequence[str]) -> Iterator[None]:
        """Puts a task's own weights into the module for the length of a ``with``."""
        before = self.weights(names)
        self.install(self.teacher(k, names))
        try:
            yield
        finally:
            self.install(before)

    # ---- streams -------------------------------------------------------------------------------

    def enter(self, batch: Batch) -> Call:
        """Returns the first block's call for a batch."""
        args, kwargs = arguments_of(batch)
        if self.blocks == [""]:
            return Call(args, dict(kwargs))
        calls: list[Call] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call(args, kwargs))
            raise Stopped

        first = self.module.get_submodule(self.blocks[0])
        handle = first.register_forward_pre_hook(catch, with_kwargs=True)
        with contextlib.suppress(Stopped):
            self.module(*args, **kwargs)
        handle.remove()
        return calls[0]

    def run(
        self, block: str, call: Call, points: Iterable[Point], *, stop: Point | None = None
    ) -> tuple[dict[Point, Tensor], Any]:
        """Runs a block; returns what was seen at points, and its output unless it was stopped."""
        seen: dict[Point, Tensor] = {}

        def see(point: Point, tensor: Tensor) -> None:
            seen[point] = tensor
            if point == stop:
                raise Stopped

        wanted = dict.fromkeys([*points, *([stop] if stop else [])])
        with observed(self.module, wanted, see):
            try:
                return seen, self.module.get_submodule(block)(*call.args, **call.kwargs)
            except Stopped:
                return seen, None

    # ---- structure -----------------------------------------------------------------------------

    def structures(self) -> Iterator[Structure]:
        """Yields what is found in each block, in the order of execution.

        Measured on a few inputs in the module as it is then: change a block before the next one
        is asked for, and it is measured behind the change.
        """
        reads = self._reads()
        class_token = self._reads_one(reads)
        calls = [self.enter(probe) for probe in self._probes]
        for block in self.blocks:
            layers = [layer for layer in self.layers if self._home[layer.weight] == block]
            yield explore(self.module, block, layers, calls, reads, class_token)
            calls = [call.following(self.run(block, call, [])[1]) for call in calls]

    def _reads(self) -> dict[str, Tensor]:
        """Returns the gradient of the model's output by each layer's output, by its module."""
        added: dict[str, Tensor] = {}

        def see(point: Point, tensor: Tensor) -> Tensor:
            if point.module not in added:
                added[point.module] = torch.zeros_like(tensor, requires_grad=True)
            return tensor + added[point.module]

        names = [module_of(layer) for layer in self.layers if walkable(self.module, layer)]
        names += self.blocks[-1:]
        args, kwargs = arguments_of(self._probes[0])
        with torch.enable_grad(), observed(self.module, [Point("out", n) for n in names], see):
            features = self.module(*args, **kwargs)
            # Squares, so that a norm's output, whose sum is constant, has a gradient too.
            grads = torch.autograd.grad(
                features.square().sum() + features.sum(), list(added.values()), allow_unused=True
            )
        return {
            name: torch.zeros_like(zero) if grad is None else grad
            for (name, zero), grad in zip(added.items(), grads, strict=True)
        }

    def _reads_one(self, reads: dict[str, Tensor]) -> bool:
        """Returns whether the output reads the first position of the last block alone."""
        gradient = reads[self.blocks[-1]]
        if self.blocks == [""] or gradient.dim() != 3:
            return False
        axis = 0 if gradient.shape[0] == len(next(tensors_of(self._probes[0]))) else 1
        read = gradient.movedim(axis, 0).abs().sum((0, 2)) > 0
        return bool(read[0]) and int(read.sum()) == 1 and len(read) > 1

    @torch.no_grad()
    def _find_blocks(self) -> tuple[list[str], str]:
        """Returns the blocks that run one after another, or the whole model as one, and why."""
        try:
            blocks = list(find_blocks(self.module, self.pool.layout, None))
        except MdftError:
            return [""], "it has no numbered blocks"
        order: list[tuple[Point, Tensor]] = []
        args, kwargs = arguments_of(self._probes[0])
        points = [Point(side, block) for block in blocks for side in ("in", "out")]
        with observed(self.module, points, lambda point, seen: order.append((point, seen))):
            self.module(*args, **kwargs)
        blocks = list(dict.fromkeys(point.module for point, _ in order))
        wanted = [Point(side, block) for block in blocks for side in ("in", "out")]
        if not blocks or [point for point, _ in order] != wanted:
            return [""], "its blocks do not run once each, one after another"
        for (_, out), (_, into) in zip(order[1::2], order[2::2], strict=False):
            if out.shape != into.shape or not torch.equal(out, into):
                return [""], "something lies between its blocks"
        return blocks, ""
