# SPDX-License-Identifier: Apache-2.0
"""A merge beside the task vectors that it was made of: the vector from which λ starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from mdft_fast.arena import (
    CodecError,
    Encoder,
    add_errors,
    copy_row,
    digest,
    empty_vectors,
    rows_of,
)
from mdft_fast.errors import MdftError
from mdft_fast.pool.pool_data import P, PoolData


def add_start(pool: P, merged: PoolData) -> P:
    """Returns a pool with a merge before its task vectors; see :meth:`mdft_fast.Pool.with_start`.

    Raises:
        MdftError: if the two do not belong together, or the pool has a start already.
    """
    _check_tasks(pool)
    _check_merged(pool, merged)
    (name,) = merged.vector_names
    encoder = Encoder(pool.codec, pool.layout)
    row = encoder.encode(merged.vectors, f"merge {name!r}")
    vectors = empty_vectors(pool.K + 1, pool.N, pool.codec)
    for source, place in zip((row, *rows_of(pool.vectors)), rows_of(vectors), strict=True):
        copy_row(source, place)
    steps = _steps(pool, merged)
    return pool.with_vectors(
        vectors,
        [digest(*one.tensors) for one in rows_of(vectors)],
        vector_names=(name, *pool.vector_names),
        methods=(*pool.methods, start_entry(steps)),
        notes=(*pool.notes, *_notes(pool, merged, name, steps)),
        errors=_worst(pool.errors, add_errors(merged.errors, encoder.errors)),
    )


def start_entry(steps: Sequence[str]) -> str:
    """Returns what a pool's ``methods`` say of its start.

    Args:
        steps: the methods that made it, as ``average()``.
    """
    return f"start by {', '.join(steps)}" if steps else "start"


def _check_tasks(pool: PoolData) -> None:
    if pool.start is not None:
        raise MdftError(f"pool: must have no start yet, got {pool.start!r}")
    if pool.vector_names != pool.names:
        raise MdftError(
            f"pool: must hold its tasks' vectors to take a start, got {list(pool.vector_names)}"
        )


def _check_merged(pool: PoolData, merged: PoolData) -> None:
    names = merged.vector_names
    if merged.K != 1 or len(names) != 1:
        raise MdftError(f"start: must be one vector, a merge's, got {list(names)}")
    if names[0] in pool.names:
        raise MdftError(
            f"start: must be a merge's vector with a name of its own, got {names[0]!r}, a task's"
        )
    ours, theirs = ([(s.name, s.shape) for s in p.layout.slots] for p in (pool, merged))
    if ours != theirs:
        odd = next(b or a for a, b in itertools.zip_longest(ours, theirs) if a != b)
        raise MdftError(f"start: must have the pool's tensors, got others, first {odd}")
    same = merged.base is pool.base or digest(merged.base) == digest(pool.base)
    buffers = [[(n, digest(t)) for n, t in sorted(p.buffers.items())] for p in (pool, merged)]
    if not same or buffers[0] != buffers[1]:
        what = "buffers" if same else "base"
        raise MdftError(f"start: must be a merge over the pool's {what}, got one over another")


def _steps(pool: PoolData, merged: PoolData) -> tuple[str, ...]:
    """Returns what made a merge of the pool's vectors, as they are."""
    before = len(pool.methods)
    return merged.methods[before:] if merged.methods[:before] == pool.methods else merged.methods


def _notes(pool: PoolData, merged: PoolData, name: str, steps: Sequence[str]) -> tuple[str, ...]:
    made = f", made by {', '.join(steps)}," if steps else ""
    notes = [
        f"vector 0, {name!r}{made} is a merge of the task vectors, and λ starts from it; a task's "
        "own model is still the base plus the task's own vector"
    ]
    if merged.codec not in ("fp32", pool.codec):
        notes.append(
            f"the start was rounded to codec {merged.codec!r} before it went to {pool.codec!r}: "
            "that error stays"
        )
    return tuple(notes)


def _worst(
    tasks: Mapping[str, CodecError], start: Mapping[str, CodecError]
) -> Mapping[str, CodecError]:
    """Returns what rounding cost the worst of all vectors; nothing where one is not recorded."""
    if not tasks or not start:
        return {}
    return {
        name: CodecError(*map(max, zip(error, start[name], strict=True)))
        for name, error in tasks.items()
    }
