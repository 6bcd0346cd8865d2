# SPDX-License-Identifier: Apache-2.0
"""A pool and methods become a pool, tensor by tensor: K tensors are in memory, not K models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from mdft_fast.arena import (
    TILE,
    CodecError,
    Encoder,
    Layout,
    Slot,
    TaskVectors,
    check_codec,
    copy_row,
    digest,
    empty_vectors,
    rows_of,
)
from mdft_fast.errors import MdftError
from mdft_fast.methods.inputs import inputs_of
from mdft_fast.methods.method import NEEDS, InputMerge, Method, Watch
from mdft_fast.methods.stream import Stream, check_finite
from mdft_fast.model import Held, UnlabelledTask, build_backbone, find_linear_layers
from mdft_fast.pool import Pool


def apply(
    pool: Pool,
    methods: Sequence[Method],
    *,
    codec: str | None = None,
    backbone: nn.Module | None = None,
    tasks: Sequence[UnlabelledTask] = (),
    device: torch.device | str | None = None,
    watch: Watch | None = None,
) -> Pool:
    """Returns the pool that methods make of a pool, one after the other.

    Each tensor's K vectors are decoded, changed by all methods, and encoded again, which gives the
    same codes where nothing changed. Equal inputs give equal bits: the vectors come in the pool's
    order, and so do their sums. A method that looks at inputs goes through the whole model.

    Args:
        pool: read, never changed; its files may be mapped.
        methods: in the order in which they act. Behind a merge there is one vector, named
            like the merge, and the tasks and their heads stay.
        codec: of the new vectors; None: the pool's.
        backbone: the module that the pool's tensors belong to, for methods that need its layers;
            None: built as the pool says.
        tasks: hold unlabelled samples, for methods that need inputs. Those are all that may be
            seen: leave out what is held out (:class:`SamplesToLearn`).
        device: where methods that need inputs compute; None: where the pool is.
        watch: told how many of how many parts such a method has done.

    Returns:
        A pool in memory, whose ``methods`` and notes say what was done; the one given where there
        is nothing to do. Its ``errors`` are what the last encoding cost.

    Raises:
        MdftError: if a method needs what there is not, or makes what cannot be stored.
    """
    target = pool.codec if codec is None else check_codec(codec)
    if not methods:
        return pool.encode(target)
    if pool.start is not None:
        raise MdftError(
            f"{methods[0].name}: must act before a start is made of the vectors, got a pool with "
            f"one, {pool.start!r}"
        )
    device = pool.base.device if device is None else torch.device(device)
    module = _backbone(pool, methods, backbone)
    stream = _begin(pool, module)
    for method in methods:
        if isinstance(method, InputMerge):
            assert module is not None
            # As it is stored where nothing changed: K vectors in float32 may not fit.
            plain = _stored(stream, "fp32") if stream.changes else stream.pool
            stream = _begin(_merged(plain, method, module, tasks, device, watch), module)
        else:
            stream = stream.then(method)
    applied = [str(method) for method in methods]
    stored = _stored(stream, target)
    return dataclasses.replace(
        stored,
        methods=(*pool.methods, *applied),
        notes=(*pool.notes, *_notes(pool, applied, stream.names)),
        errors={} if target == "fp32" else stored.errors,
    )


def _backbone(
    pool: Pool, methods: Sequence[Method], backbone: nn.Module | None
) -> nn.Module | None:
    """Returns the module whose layers methods need; None: they need none."""
    who = [method.name for method in methods if "layers" in method.needs]
    if backbone is not None or not who:
        return backbone
    if not pool.backbone_spec:
        raise MdftError(
            f"{who[0]}: needs {NEEDS['layers']}, and the pool does not say which backbone it has; "
            f"pass backbone=..."
        )
    with torch.device("meta"):
        return build_backbone(pool.backbone_spec, Held.by(pool))


def _begin(pool: Pool, backbone: nn.Module | None) -> Stream:
    layers = () if backbone is None else find_linear_layers(backbone, pool.layout, pool.ties)
    return Stream(pool, {layer.weight: layer for layer in layers if layer.inside})


def _stored(stream: Stream, codec: str) -> Pool:
    """Returns the pool that a stream's vectors make, in a codec."""
    pool = stream.pool
    if not stream.changes and pool.codec == codec:
        return pool
    vectors = empty_vectors(len(stream.names), pool.N, check_codec(codec))
    errors = {slot.name: _store(stream, slot, vectors) for slot in pool.layout.slots}
    digests = [digest(*row.tensors) for row in rows_of(vectors)]
    return pool.with_vectors(vectors, digests, vector_names=stream.names, errors=errors)


@torch.no_grad()
def _merged(
    pool: Pool,
    method: InputMerge,
    backbone: nn.Module,
    tasks: Sequence[UnlabelledTask],
    device: torch.device,
    watch: Watch | None,
) -> Pool:
    """Returns the pool of the one vector that a method makes while it looks at inputs."""
    inputs = inputs_of(
        tasks,
        pool.vector_names,
        pool.preprocess,
        samples=method.samples,
        copies=method.copies,
        seed=method.seed,
        device=device,
        who=method.name,
    )
    merged = method.merge_model(pool, backbone, inputs, watch or (lambda done, total: None))
    arena = pool.layout.pack({name: t.float() for name, t in merged.items()}, who=method.name)
    vectors = TaskVectors(arena.to(pool.base.device)[None])
    return pool.with_vectors(
        vectors, [digest(row.codes) for row in rows_of(vectors)], vector_names=(method.name,)
    )


def _notes(pool: Pool, applied: Sequence[str], names: Sequence[str]) -> list[str]:
    left = "a task's own model, the teacher too, is the base plus its vector after that"
    if tuple(names) != pool.vector_names:
        left = f"one vector is left, {names[0]!r}, and no task's own model"
    notes = [f"the task vectors went through {', '.join(applied)}: {left}"]
    if pool.codec != "fp32":
        notes.append(
            f"the task vectors were rounded to codec {pool.codec!r} before {applied[0]}: that "
            f"error stays"
        )
    return notes


def _store(stream: Stream, slot: Slot, vectors: TaskVectors) -> CodecError:
    """Encodes one tensor's vectors into their place; returns what the codec cost the worst."""
    made = stream.tensor(slot).reshape(len(stream.names), slot.numel)
    made = F.pad(made, (0, slot.tiles * TILE - slot.numel))
    check_finite(made, slot, stream.owners)
    encoder = Encoder(vectors.codec, Layout.of({slot.name: slot.shape}))
    rows = zip(stream.owners, made, rows_of(vectors.of_slot(slot)), strict=True)
    for owner, row, place in rows:
        copy_row(encoder.encode(TaskVectors(row[None]), owner), place)
    return encoder.errors.get(slot.name, CodecError(0.0, 0.0))
