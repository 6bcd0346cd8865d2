# SPDX-License-Identifier: Apache-2.0
"""A pool and methods become a pool, tensor by tensor: K tensors are in memory, not K models."""

from __future__ import annotations

from collections.abc import Sequence

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
from mdft_fast.methods.method import Method
from mdft_fast.methods.stream import Stream, check_finite
from mdft_fast.pool import Pool


def apply(pool: Pool, methods: Sequence[Method], *, codec: str | None = None) -> Pool:
    """Returns the pool that methods make of a pool, one after the other.

    Each tensor's K vectors are decoded, changed by all methods, and encoded again, which gives the
    same codes where nothing changed. Equal inputs give equal bits: the vectors come in the pool's
    order, and so do their sums.

    Args:
        pool: read, never changed; its files may be mapped.
        methods: in the order in which they act. Behind a :class:`Merge` there is one vector, named
            like the merge, and the tasks and their heads stay.
        codec: of the new vectors; None: the pool's.

    Returns:
        A pool in memory, whose ``methods`` and notes say what was done; the one given where there
        is nothing to do. Its ``errors`` are what the last encoding cost.

    Raises:
        MdftError: if a method needs what a pool has not, or makes what cannot be stored.
    """
    target = pool.codec if codec is None else check_codec(codec)
    if not methods:
        return pool.encode(target)
    stream = Stream(pool)
    for method in methods:
        stream = stream.then(method)
    vectors = empty_vectors(len(stream.names), pool.N, target)
    errors = {slot.name: _store(stream, slot, vectors) for slot in pool.layout.slots}
    digests = [digest(*row.tensors) for row in rows_of(vectors)]
    applied = [str(method) for method in methods]
    return pool.with_vectors(
        vectors,
        digests,
        vector_names=stream.names,
        methods=(*pool.methods, *applied),
        notes=(*pool.notes, *_notes(pool, applied, stream.names)),
        errors={} if target == "fp32" else errors,
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
