# SPDX-License-Identifier: Apache-2.0
"""What a pool holds: one base, K task vectors, K heads, and what is known about them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from mdft_fast.arena import (
    Codec,
    CodecError,
    Encoder,
    Layout,
    TaskVectors,
    add_errors,
    check_codec,
    codec_errors,
    digest,
    encode,
)
from mdft_fast.checkpoints import Preprocess
from mdft_fast.pool.head import Head
from mdft_fast.pool.task_checks import TaskInfo, TaskLike

P = TypeVar("P", bound="PoolData")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PoolData:
    """A pool without its doors to the disk; attributes as in :class:`~mdft_fast.pool.Pool`."""

    layout: Layout
    base: Tensor
    vectors: TaskVectors
    tasks: tuple[TaskInfo, ...]
    heads: Mapping[str, Head]
    buffers: Mapping[str, Tensor]
    left_out: Mapping[str, str]
    dtypes: Mapping[str, str]
    backbone_spec: Mapping[str, Any]
    preprocess: Preprocess
    checksum: str
    notes: tuple[str, ...] = ()
    errors: Mapping[str, CodecError] = dataclasses.field(default_factory=dict)
    activation: str | None = None
    ties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    vector_names: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector_names", self.vector_names or self.names)

    def __repr__(self) -> str:
        return (
            f"Pool(K={self.K}, tensors={len(self.layout.slots)}, N={self.N}, "
            f"codec={self.codec!r}, checksum={self.checksum[:12]!r})"
        )

    @property
    def K(self) -> int:
        """``K``: number of task vectors."""
        return self.vectors.K

    @property
    def N(self) -> int:
        """``N``: number of elements of an arena, padding included."""
        return self.layout.elements

    @property
    def codec(self) -> Codec:
        """How an element of a task vector is stored."""
        return self.vectors.codec

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def start(self) -> str | None:
        """Name of vector 0 where it is a merge before the tasks' own vectors; None: it is not.

        λ starts from it: 1 at this vector, 0 at the tasks'.
        """
        if not self.names or self.vector_names[1:] != self.names:
            return None
        return self.vector_names[0]

    @property
    def owners(self) -> list[str]:
        """For errors: whose each task vector is."""
        tasks = set(self.names)
        return [f"{'task' if name in tasks else 'merge'} {name!r}" for name in self.vector_names]

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of λ's columns: the merged tensors, in arena order."""
        return self.layout.columns

    @property
    def parameters(self) -> int:
        """Number of merged parameters, padding not counted."""
        return sum(slot.numel for slot in self.layout.slots)

    def codec_error(self, codec: str) -> dict[str, CodecError]:
        """Measures, for each tensor, what storing the task vectors in a codec would cost."""
        return codec_errors(self.vectors, check_codec(codec), self.layout, self.owners)

    def encode(self: P, codec: str) -> P:
        """Returns the pool with its task vectors in a codec; itself where they are already.

        Out of a codec that rounds, the error that it made stays; a note says so.

        Raises:
            MdftError: if the codec is unknown, or an element is too large for it.
        """
        known = check_codec(codec)
        if known == self.codec:
            return self
        return self.recoded(*encode(self.vectors, known, self.layout, self.owners))

    def recoded(self: P, vectors: TaskVectors, encoder: Encoder) -> P:
        """Returns the pool with its task vectors as an encoder has made them of its own."""
        notes = self.notes
        if self.codec != "fp32":
            notes += (
                f"the task vectors were rounded to codec {self.codec!r} before they went to "
                f"{vectors.codec!r}: that error stays",
            )
        errors = add_errors(self.errors, encoder.errors)
        return self.with_vectors(vectors, encoder.digests, notes=notes, errors=errors)

    def with_vectors(self: P, vectors: TaskVectors, digests: Sequence[str], **changes: Any) -> P:
        """Returns the pool with other vectors, and the checksum that is theirs.

        Args:
            vectors: over the same base.
            digests: sha256 of each one's codes and scales.
            changes: other attributes that change.
        """
        base = digest(self.base)
        checksum = pool_checksum(self.layout, vectors.codec, base, digests, self.buffers)
        return dataclasses.replace(self, vectors=vectors, checksum=checksum, **changes)

    def with_heads(self: P, tasks: Sequence[TaskLike]) -> P:
        """Returns the pool with the heads and class names of some tasks in place of its own.

        What there is to know of the heads that go, goes from the notes too.
        """
        ours = {task.name: task for task in tasks}
        heads = {n: task.head for n, task in ours.items() if task.head is not None}
        new = [name for name, head in heads.items() if head is not self.heads.get(name)]
        gone = {self.heads[name].note for name in new if name in self.heads}
        return dataclasses.replace(
            self,
            heads={**self.heads, **heads},
            tasks=tuple(
                dataclasses.replace(task, class_names=ours.get(task.name, task).class_names)
                for task in self.tasks
            ),
            notes=(
                *(heads[name].note for name in new if heads[name].note),
                *(note for note in self.notes if note not in gone),
            ),
        )


def pool_checksum(
    layout: Layout, codec: Codec, base: str, rows: Sequence[str], buffers: Mapping[str, Tensor]
) -> str:
    """Returns the sha256 that names a pool's content, from the digests of its parts."""
    parts = {
        "tensors": [[slot.name, list(slot.shape)] for slot in layout.slots],
        "codec": codec,
        "base": base,
        "rows": list(rows),
        "buffers": [[name, digest(tensor)] for name, tensor in sorted(buffers.items())],
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
