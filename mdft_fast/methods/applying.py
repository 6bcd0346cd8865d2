# SPDX-License-Identifier: Apache-2.0
"""A pool and methods become a pool, tensor by tensor: K tensors are in memory, not K models."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import functional as F

from mdft_fast.arena import (
    GROUP,
    TILE,
    CodecError,
    Encoder,
    Layout,
    Slot,
    TaskVectors,
    check_codec,
    codes_of,
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

    Each tensor's K vectors are decoded, changed by all methods, and encoded again; a vector that
    they leave as it is keeps its codes, bit for bit. Equal inputs give equal bits: the vectors
    come in the pool's order, and so do their sums.

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
    digests = [
        digest(row.codes, *(() if row.scales is None else (row.scales,)))
        for row in rows_of(vectors)
    ]
    applied = [str(method) for method in methods]
    return pool.with_vectors(
        vectors,
        digests,
        vector_names=stream.names,
        methods=(*pool.methods, *applied),
        notes=(*pool.notes, *_notes(pool, applied)),
        errors={} if target == "fp32" else errors,
    )


def _notes(pool: Pool, applied: Sequence[str]) -> list[str]:
    notes = [
        f"the task vectors went through {', '.join(applied)}: a task's own model, the teacher too, "
        f"is the base plus its vector after that"
    ]
    if pool.codec != "fp32":
        notes.append(
            f"the task vectors were rounded to codec {pool.codec!r} before {applied[0]}: that "
            f"error stays"
        )
    return notes


def _store(stream: Stream, slot: Slot, vectors: TaskVectors) -> CodecError:
    """Encodes one tensor's vectors into their place; returns what the codec cost the worst."""
    first, last = slot.tile * TILE, (slot.tile + slot.tiles) * TILE
    made = stream.tensor(slot).reshape(len(stream.names), slot.numel)
    made = F.pad(made, (0, last - first - slot.numel))
    check_finite(made, slot, stream.owners)
    encoder = Encoder(vectors.codec, Layout.of({slot.name: slot.shape}))
    old, new = (_cut(whole, first, last) for whole in (stream.pool.vectors, vectors))
    same_form = (old.codec, old.K) == (new.codec, new.K)
    kept = (made == old.decode()).all(1).tolist() if same_form else [False] * new.K
    sources, targets = list(rows_of(old)), list(rows_of(new))
    for k, owner in enumerate(stream.owners):
        if not kept[k]:
            row = encoder.encode(TaskVectors(made[k : k + 1]), owner)
        copy_row(sources[k] if kept[k] else row, targets[k])
    return encoder.errors.get(slot.name, CodecError(0.0, 0.0))


def _cut(vectors: TaskVectors, first: int, last: int) -> TaskVectors:
    """Returns elements ``[first, last)`` as a view; a range of whole tiles."""
    scales = vectors.scales
    return TaskVectors(
        vectors.codes[:, codes_of(first, vectors.codec) : codes_of(last, vectors.codec)],
        vectors.codec,
        None if scales is None else scales[:, first // GROUP : last // GROUP],
    )
