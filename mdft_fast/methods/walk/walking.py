# SPDX-License-Identifier: Apache-2.0
"""The walk: each task's inputs go through its own model and the merged one, block after block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from mdft_fast.arena import Slot, TaskVectors, rows_of
from mdft_fast.checkpoints import arguments_of
from mdft_fast.errors import MdftError
from mdft_fast.methods.inputs import TaskInputs
from mdft_fast.methods.walk.attention import make_observable
from mdft_fast.methods.walk.calls import Call, Point, Stopped, both_sides, observed
from mdft_fast.methods.walk.structure import Structure, explore, hindrance, module_of
from mdft_fast.model import (
    Batch,
    LinearLayer,
    MetaModel,
    block_of,
    each,
    find_blocks,
    find_linear_layers,
    find_owners,
    joined,
    tensors_of,
)
from mdft_fast.pool import Pool

_PROBE = 4  # inputs of the measurements


def _probe(inputs: Sequence[TaskInputs]) -> Batch:
    """Returns a few inputs of all tasks, at least two."""
    share = max(1, -(-_PROBE // len(inputs)))
    batches = [next(one.some(share).batches(share)) for one in inputs[:_PROBE] if len(one)]
    probe = joined(batches)
    return probe if len(next(tensors_of(probe))) > 1 else joined([probe, probe])


def _decoded(vectors: TaskVectors, slot: Slot) -> Tensor:
    flat = vectors.decode()[:, : slot.numel]
    return flat.view(len(flat), *slot.shape)


class Walk:
    """A model whose weights are changed block by block, and the streams that go through it.

    Attributes:
        pool: K vectors.
        inputs: each task's, in the order of the vectors.
        module: the model as merged so far: a private copy.
        blocks: names, in the order of execution; [""]: the whole model is one.
        why_whole: why the whole model is one block, in words; "": it is not.
        layers: the linear layers in blocks.
        device: where the model computes.
        probe: a few inputs.
        on_host: whether streams are kept on the host between their uses; set it ahead of them.
    """

    def __init__(self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs]) -> None:
        """Builds the module; its weights are the base's until :meth:`install`."""
        self.pool, self.inputs = pool, inputs
        self.device = inputs[0].device
        meta = MetaModel(backbone, pool, granularity="task", start=0.0)
        self.module = meta.materialize().to(self.device)
        layout = pool.layout
        owners = find_owners(self.module, layout, pool.ties)
        self._slots = {slot.name: slot for slot in layout.slots}
        self._owners = dict(zip(self._slots, owners, strict=True))
        self._base = dict(zip(self._slots, layout.views(pool.base), strict=True))
        make_observable(self.module)
        probe = _probe(inputs)
        self.probe, self.on_host = probe, False
        self._probes = [probe, each(lambda tensor: tensor[:-1], probe)]
        self._overwritten: frozenset[Point] = frozenset()  # in the block that was explored last
        self._rows = list(rows_of(pool.vectors))
        self.blocks, self.why_whole = self._find_blocks()
        whole = self.blocks == [""]
        home = block_of(list(self._slots))
        self._home = {name: "" if whole else block for name, block in home.items()}
        layers = find_linear_layers(self.module, layout, pool.ties)
        self.layers = [one for one in layers if self._home[one.weight] in self.blocks]

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
        return self._base[name].to(self.device)

    def deltas(self, name: str) -> Tensor:
        """Returns a tensor's task vectors, float32 ``[K, *shape]``."""
        slot = self._slots[name]
        return _decoded(self.pool.vectors.of_slot(slot), slot).to(self.device)

    def teacher(self, k: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Returns weights of a task's own model; one task's are in memory at a time."""
        row = self._rows[k]
        return {name: self.base(name) + self._delta(row, name) for name in names}

    def _delta(self, row: TaskVectors, name: str) -> Tensor:
        slot = self._slots[name]
        return _decoded(row.of_slot(slot), slot)[0].to(self.device)

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
    def using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Puts weights into the module for the length of a ``with``."""
        before = self.weights(list(weights))
        self.install(weights)
        try:
            yield
        finally:
            self.install(before)

    @contextlib.contextmanager
    def as_teacher(self, k: int, names: Sequence[str]) -> Iterator[None]:
        """Puts a task's own weights into the module for the length of a ``with``."""
        with self.using(self.teacher(k, names)):
            yield

    def own_layer(self, k: int, layer: LinearLayer) -> tuple[Tensor, Tensor | None]:
        """Returns weight ``[out, in]`` and bias of a task's own layer; None: none is merged."""
        names = [layer.weight, *([layer.bias] if layer.bias else [])]
        own = self.teacher(k, names)
        matrix = layer.matrix(own[layer.weight][None])[0]
        return matrix, own[layer.bias] if layer.bias else None

    def columns(self, layer: LinearLayer) -> int:
        """Returns the number of a layer's inputs."""
        return layer.matrix(self._base[layer.weight][None]).shape[2]

    @overload
    def stored(self, held: Tensor) -> Tensor: ...
    @overload
    def stored(self, held: Call) -> Call: ...
    def stored(self, held: Tensor | Call) -> Tensor | Call:
        """Returns what is kept of a stream until it is used again: on the host where it must."""
        return held.to(torch.device("cpu")) if self.on_host else held

    @overload
    def fetched(self, held: Tensor) -> Tensor: ...
    @overload
    def fetched(self, held: Call) -> Call: ...
    def fetched(self, held: Tensor | Call) -> Tensor | Call:
        """Returns what was stored, where the model computes."""
        return held.to(self.device) if self.on_host else held

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
            if point == stop:
                seen[point] = tensor
                raise Stopped
            seen[point] = tensor.clone() if point in self._overwritten else tensor

        wanted = dict.fromkeys([*points, *([stop] if stop else [])])
        if Point("in", block) in self._overwritten:
            call = call.of(call.stream.clone())
        with observed(self.module, wanted, see):
            try:
                return seen, self.module.get_submodule(block)(*call.args, **call.kwargs)
            except Stopped:
                return seen, None

    @torch.no_grad()
    def outputs(self, modules: Sequence[str], batch: Batch) -> list[Tensor]:
        """Returns what some modules give for a batch, in the order of execution."""
        made: list[Tensor] = []
        args, kwargs = arguments_of(batch)
        points = [Point("out", name) for name in modules]
        with observed(self.module, points, lambda _, tensor: made.append(tensor)):
            self.module(*args, **kwargs)
        return made

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
            structure = explore(self.module, block, layers, calls, reads, class_token)
            self._overwritten = structure.overwritten
            yield structure
            calls = [call.following(self.run(block, call, [])[1]) for call in calls]

    def _reads(self) -> dict[str, Tensor]:
        """Returns the gradient of the model's output by each layer's output, by its module."""
        added: dict[str, Tensor] = {}

        def see(point: Point, tensor: Tensor) -> Tensor:
            if point.module not in added:
                added[point.module] = torch.zeros_like(tensor, requires_grad=True)
            return tensor + added[point.module]

        layers = [layer for layer in self.layers if not hindrance(self.module, layer)]
        names = [module_of(layer) for layer in layers]
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
        gradient = reads.get(self.blocks[-1])
        if self.blocks == [""] or gradient is None or gradient.dim() != 3:
            return False
        axis = 0 if gradient.shape[0] == len(next(tensors_of(self._probes[0]))) else 1
        read = gradient.movedim(axis, 0).abs().sum((0, 2)) > 0
        return bool(read[0]) and int(read.sum()) == 1 and len(read) > 1

    @torch.no_grad()
    def _find_blocks(self) -> tuple[list[str], str]:
        """Returns the blocks that run one after another, or the whole model as one, and why."""
        try:
            blocks = list(find_blocks(self.module, self.pool.layout, None))
        except MdftError as error:
            numbered = any(part.isdigit() for name in self._slots for part in name.split("."))
            return [""], str(error) if numbered else "it has no numbered blocks"
        order: list[tuple[Point, Tensor]] = []
        args, kwargs = arguments_of(self._probes[0])
        with observed(
            self.module, both_sides(blocks), lambda point, seen: order.append((point, seen))
        ):
            self.module(*args, **kwargs)
        blocks = list(dict.fromkeys(point.module for point, _ in order))
        if not blocks or [point for point, _ in order] != both_sides(blocks):
            return [""], "its blocks do not run once each"
        for (_, out), (_, into) in zip(order[1::2], order[2::2], strict=False):
            if out.shape != into.shape or not torch.equal(out, into):
                return [""], "a block does not take what the one before it gives"
        return blocks, ""
