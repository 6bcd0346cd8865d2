# SPDX-License-Identifier: Apache-2.0
"""Checkpoints become task vectors, once everything about them has been verified."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mdft_fast.arena import (
    Codec,
    Encoder,
    Layout,
    TaskVectors,
    copy_row,
    digest,
    empty_vectors,
    rows_of,
)
from mdft_fast.checkpoints import (
    Choice,
    Preprocess,
    State,
    StateSource,
    activation_of,
    as_preprocess,
    as_state,
    check_activation,
    check_architecture,
    check_preprocess,
    compare_bases,
    example_input,
    gather,
)
from mdft_fast.errors import MdftError
from mdft_fast.pool.finite import PIECE, describe_not_finite, largest
from mdft_fast.pool.inventory import (
    check_forms,
    differs,
    fetch,
    lent_by_base,
    match_keys,
    take_inventory,
)
from mdft_fast.pool.name_fitting import fit, other_names
from mdft_fast.pool.pool_data import PoolData, pool_checksum
from mdft_fast.pool.task_checks import TaskInfo, TaskLike, align, check_features, check_tasks

Buffers = Literal["same", "base"]


class Packing:
    """A pool in the making. Building one verifies all names, shapes and dtypes.

    No weight is read for that: headers, heads, and what is not merged.

    Attributes:
        layout: the arena's layout.
        base: ``[N]`` float32 arena of the base.
        buffers: the base's tensors that are not merged.
        tasks: whose models are packed.
        heads: their classifiers, by name, where they have one.
        K: number of tasks.
        preprocess: what the caller and the sources say of the inputs.
    """

    def __init__(
        self,
        base: StateSource,
        checkpoints: Mapping[str, StateSource] | Sequence[StateSource],
        tasks: Sequence[TaskLike],
        backbone: nn.Module,
        preprocess: Mapping[str, Any],
        buffers: Buffers = "same",
        ignore: Sequence[str] = (),
        notes: Sequence[str] = (),
        weights: str | None = None,
        part: str | None = None,
    ) -> None:
        """Opens and verifies everything; arguments as in :meth:`mdft_fast.Pool.pack`."""
        if buffers not in get_args(Buffers):
            raise MdftError(f"pool: buffers must be 'same' or 'base', got {buffers!r}")
        self.tasks = tuple(tasks)
        check_tasks(self.tasks)
        self.heads = {task.name: task.head for task in self.tasks if task.head is not None}
        self.K = len(self.tasks)
        self._inventory = take_inventory(backbone)
        self.layout = Layout.of(self._inventory.merged)
        sources = align(checkpoints, self.tasks)
        self._base, *self._models = self._open(base, sources, backbone, Choice(weights, part))
        self._agree(backbone, preprocess)
        check_features(backbone, example_input(self.preprocess), self.heads)
        self._lent = lent_by_base(self._base, self._models, self._inventory)
        self._left_out = {**self._inventory.left_out, **self._match(ignore)}
        self.buffers = self._take_buffers()
        made = (head.note for head in self.heads.values() if head.note)
        said = dict.fromkeys(note for s in (self._base, *self._models) for note in s.notes)
        self._notes = (
            *made, *notes, *said, *compare_bases(self._base, self._models), *self._say_lent(),
            *self._check_kept(buffers), *self._check_widths(),
        )  # fmt: skip
        self._base_arena: Tensor | None = None
        self._round_off: list[float] = []

    def _open(
        self,
        base: StateSource,
        models: Sequence[StateSource],
        backbone: nn.Module,
        choice: Choice,
    ) -> list[State]:
        """Opens all; an adapter is added to the base under any name that the base goes by."""
        raw = as_state(base, "base", choice=dataclasses.replace(choice, part=None))
        also = other_names(raw, self._inventory)
        turned = {also.get(name, name) for name in _conv1d_weights(backbone)}
        labels = (f"checkpoint of task {task.name!r}" for task in self.tasks)
        opened = [
            as_state(source, label, base=raw, also=also, conv1d=turned, choice=choice)
            for source, label in zip(models, labels, strict=True)
        ]
        return [fit(state, self._inventory) for state in (raw, *opened)]

    def _agree(self, backbone: nn.Module, preprocess: Mapping[str, Any]) -> None:
        """Compares what the sources say with each other, the backbone and the preprocess."""
        # How the base itself made features of its tokens matters to no head.
        base = dataclasses.replace(self._base.facts, pooling=None)
        sources = [(self._base.label, base), *((s.label, s.facts) for s in self._models)]
        facts, who = gather(sources)
        check_architecture(backbone, facts, who)
        check_activation(backbone, facts.activation, who.get("activation", ""))
        self._activation = activation_of(backbone) or facts.activation
        if isinstance(preprocess, Mapping):
            check_preprocess(facts, who, preprocess)
            keys = Preprocess.__annotations__.keys()
            stated = {key: value for key, value in facts.preprocess().items() if key in keys}
            preprocess = stated | dict(preprocess)
        self.preprocess = as_preprocess(preprocess)

    def _match(self, ignore: Sequence[str]) -> dict[str, str]:
        """Checks every source's names and forms; returns what is left out, with why."""
        base, inventory = self._base, self._inventory
        extra = base.tensors.keys() - inventory.names
        alone = extra - {name for model in self._models for name in model.tensors}
        left_out = dict(base.left_out) | match_keys(base, inventory, ignore, alone=alone)
        check_forms(base, inventory, None)
        for model in self._models:
            left_out |= model.left_out
            left_out |= match_keys(model, inventory, ignore, self._lent)
            check_forms(model, inventory, base)
        unread = {n: w for s in (base, *self._models) for n, w in s.unreadable.items()}
        return left_out | {name: f"not read: {what}" for name, what in unread.items()}

    def _say_lent(self) -> Iterator[str]:
        if self._lent:
            first = min(self._lent)
            yield (
                f"no model has tensor {first!r}, nor {len(self._lent) - 1} others that the base "
                "has: they were not trained, and are the base's"
            )

    @property
    def base(self) -> Tensor:
        """``[N]`` float32 arena of the base, read when first asked for."""
        if self._base_arena is None:
            arena = torch.zeros(self.layout.elements, dtype=torch.float32, device="cpu")
            self._read(self._base, arena)
            if not math.isfinite(largest(arena)):
                raise self._not_finite(self._base, arena)
            self._base_arena = arena
        return self._base_arena

    @base.setter
    def base(self, arena: Tensor) -> None:
        """Takes the same numbers from elsewhere, such as a mapped file, and lets its own go."""
        self._base_arena = arena

    def rows(self, encoder: Encoder) -> Iterator[TaskVectors]:
        """Yields the K task vectors, encoded, one at a time.

        The next one may overwrite the last. A model that equals the base or another model is an
        error.
        """
        row = torch.zeros(self.layout.elements, dtype=torch.float32, device="cpu")
        seen: dict[str, State] = {}
        for task, state in zip(self.tasks, self._models, strict=True):
            self._round_off.append(self._subtract(state, row))
            if not any(piece.any() for piece in row.split(PIECE)):
                raise MdftError(
                    f"{state.label}: is equal to {self._base.label}, so its task vector is "
                    f"all zero; wanted a model fine-tuned on task {task.name!r}"
                )
            encoded = encoder.encode(TaskVectors(row[None]), state.label)
            key = encoder.digests[-1]
            if key in seen:
                rounded = "" if encoder.codec == "fp32" else f" in codec {encoder.codec!r}"
                raise MdftError(
                    f"{state.label}: the model of task {task.name!r} is identical to "
                    f"{seen[key].label}{rounded}; wanted a model of its own for every task"
                )
            seen[key] = state
            yield encoded

    def in_memory(self, codec: Codec, spec: Mapping[str, Any]) -> PoolData:
        """Packs into memory."""
        check_spec(spec)
        encoder = Encoder(codec, self.layout)
        vectors = empty_vectors(self.K, self.layout.elements, codec)
        for place, row in zip(rows_of(vectors), self.rows(encoder), strict=True):
            copy_row(row, place)
        return self.finish(vectors, encoder, spec)

    def finish(self, vectors: TaskVectors, encoder: Encoder, spec: Mapping[str, Any]) -> PoolData:
        """Returns the pool, after :meth:`rows` has run to its end into ``vectors``."""
        tasks = tuple(
            TaskInfo(task.name, tuple(task.class_names), round_off)
            for task, round_off in zip(self.tasks, self._round_off, strict=True)
        )
        dtypes = {n: self._widest(n) for n in self.layout.columns}
        dtypes |= {name: tensor.dtype for name, tensor in self.buffers.items()}
        return PoolData(
            layout=self.layout,
            base=self.base,
            vectors=vectors,
            tasks=tasks,
            heads=self.heads,
            buffers=self.buffers,
            left_out=self._left_out,
            dtypes={name: str(d).removeprefix("torch.") for name, d in dtypes.items()},
            backbone_spec=dict(spec),
            preprocess=self.preprocess,
            checksum=pool_checksum(
                self.layout, vectors.codec, digest(self.base), encoder.digests, self.buffers
            ),
            notes=self._notes,
            errors=encoder.errors,
            activation=self._activation,
            ties=self._inventory.aliases,
        )

    def _tensor(self, state: State, name: str) -> Tensor:
        tensor = fetch(self._base if name in self._lent else state, self._inventory, name)
        assert tensor is not None  # match_keys has found it
        return tensor

    def _widest(self, name: str) -> torch.dtype:
        """Returns the dtype that holds the base's and every model's numbers; of sums of ours: its.

        What is formed here is in float32 at least, whatever the base's dtype.
        """
        stated = [s for s in (self._base, *self._models) if name not in s.formed]
        return functools.reduce(
            torch.promote_types, (self._tensor(state, name).dtype for state in stated)
        )

    def _read(self, state: State, arena: Tensor) -> None:
        state.check()
        for slot, out in zip(self.layout.slots, self.layout.views(arena), strict=True):
            out.copy_(self._tensor(state, slot.name))

    def _subtract(self, state: State, row: Tensor) -> float:
        """Reads θ into a row and subtracts the base; returns the largest |base + τ − θ|.

        Whole pieces of an arena at a time: an operation a tensor would be 150 thread barriers,
        each of them milliseconds long on a machine with other work.
        """
        self._read(state, row)
        worst = 0.0
        for start in range(0, len(row), PIECE):
            base, tau = self.base[start : start + PIECE], row[start : start + PIECE]
            theta = tau.clone()
            tau.sub_(base)
            round_off = largest((base + tau).sub_(theta))
            if not math.isfinite(round_off):  # NaN and infinity in θ end up here
                self._read(state, row)
                raise self._not_finite(state, row)
            worst = max(worst, round_off)
        return worst

    def _not_finite(self, state: State, arena: Tensor) -> MdftError:
        for slot, tensor in zip(self.layout.slots, self.layout.views(arena), strict=True):
            if problem := describe_not_finite(tensor, slot.name):
                return MdftError(f"{state.label}: {problem} in float32")
        return MdftError(f"{state.label}: a tensor minus the base's is beyond float32's range")

    def _check_kept(self, buffers: Buffers) -> Iterator[str]:
        for name in self._inventory.kept:
            inventory = self._inventory
            base = fetch(self._base, inventory, name)
            states = [s for s in self._models if differs(name, fetch(s, inventory, name), base)]
            if states and buffers == "same":
                raise MdftError(
                    f"{states[0].label}: tensor {name!r} ({self._left_out[name]}) must equal "
                    f"{self._base.label}'s, as it is not merged, got other values; "
                    f"buffers='base' uses the base's for all"
                )
            if states:
                yield (
                    f"tensor {name!r} ({self._left_out[name]}) is the base's, although it "
                    f"differs in {len(states)} of {self.K} models (buffers='base')"
                )

    def _check_widths(self) -> Iterator[str]:
        for name in self._inventory.merged:
            if self._tensor(self._base, name).dtype == torch.float64:
                yield f"float64 tensors, such as {name!r}, are rounded to float32"
                return

    def _take_buffers(self) -> dict[str, Tensor]:
        taken = {}
        for name in self._inventory.kept:
            tensor = fetch(self._base, self._inventory, name)
            if tensor is not None:
                if problem := describe_not_finite(tensor, name):
                    raise MdftError(f"{self._base.label}: {problem}")
                taken[name] = tensor.detach().cpu().clone()
        return taken


def _conv1d_weights(backbone: nn.Module) -> set[str]:
    """Returns the weights that a module holds as ``[in, out]``: those of transformers' Conv1D."""
    return {
        f"{name}.weight" if name else "weight"
        for name, module in backbone.named_modules()
        if any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    }


def check_spec(spec: Mapping[str, Any]) -> None:
    """Refuses a backbone spec that JSON would not give back as it was."""
    try:
        again = json.loads(json.dumps(dict(spec), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise MdftError(f"backbone_spec: must be plain JSON, got {spec!r}: {error}") from None
    if again != dict(spec):
        raise MdftError(f"backbone_spec: must survive JSON unchanged, got {spec!r}")
