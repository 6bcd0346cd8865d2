# SPDX-License-Identifier: Apache-2.0
"""The pool: one base, K task vectors, K heads, and what is known about them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mdft_fast.arena import (
    ERROR_OF_CODEC,
    GROUP,
    LARGEST_CODE,
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
from mdft_fast.checkpoints import Preprocess, StateSource
from mdft_fast.pool.head import Head
from mdft_fast.pool.tasks import TaskInfo, TaskLike

Buffers = Literal["same", "base"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pool:
    """A base and the models fine-tuned from it, packed. Data: nothing here is ever trained.

    Attributes:
        layout: where each merged tensor lies; one column of λ a tensor.
        base: ``[N]`` float32 arena of the pre-trained model; padding is 0.
        vectors: the K task vectors ``[K, N]``; padding is 0.
        tasks: one a task vector, in the same order, where no merge has made one vector of them.
        heads: task -> its classifier.
        buffers: the base's tensors that are not merged, as they were: buffers, frozen parameters.
        left_out: tensor -> why it is not merged.
        dtypes: tensor -> its dtype in the checkpoints (``"float16"``), for exports.
        backbone_spec: library, name and arguments that build the backbone, as given.
        preprocess: image size, mean and standard deviation.
        checksum: sha256 of names, shapes, codec, base, task vectors and buffers.
        notes: what a reader of results should know, one sentence each.
        errors: tensor -> what the codec cost its task vectors, as packing measured it; an upper
            bound where that was done more than once. Empty: nothing rounded, or not recorded.
        activation: the backbone's, "quick_gelu", "gelu" or "gelu_tanh"; None: unknown.
        vector_names: whose the K vectors are: the tasks', or a merge's name. Empty: the tasks'.
        methods: what the task vectors went through after packing, as ``ties(density=0.2)``.
    """

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
    vector_names: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector_names", self.vector_names or self.names)

    def __repr__(self) -> str:
        """Returns one line."""
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

    def encode(self, codec: str) -> Pool:
        """Returns the pool with its task vectors in a codec; itself where they are already.

        Out of a codec that rounds, the error that it made stays; a note says so.

        Raises:
            MdftError: if the codec is unknown, or an element is too large for it.
        """
        known = check_codec(codec)
        if known == self.codec:
            return self
        return self.recoded(*encode(self.vectors, known, self.layout, self.owners))

    def recoded(self, vectors: TaskVectors, encoder: Encoder) -> Pool:
        """Returns the pool with its task vectors as an encoder has made them of its own."""
        notes = self.notes
        if self.codec != "fp32":
            notes += (
                f"the task vectors were rounded to codec {self.codec!r} before they went to "
                f"{vectors.codec!r}: that error stays",
            )
        errors = add_errors(self.errors, encoder.errors)
        return self.with_vectors(vectors, encoder.digests, notes=notes, errors=errors)

    def with_vectors(self, vectors: TaskVectors, digests: Sequence[str], **changes: Any) -> Pool:
        """Returns the pool with other vectors, and the checksum that is theirs.

        Args:
            vectors: over the same base.
            digests: sha256 of each one's codes and scales.
            changes: other attributes that change.
        """
        base = digest(self.base)
        checksum = pool_checksum(self.layout, vectors.codec, base, digests, self.buffers)
        return dataclasses.replace(self, vectors=vectors, checksum=checksum, **changes)

    @staticmethod
    def from_checkpoints(
        base: StateSource,
        checkpoints: Mapping[str, StateSource] | Sequence[StateSource],
        tasks: Sequence[TaskLike],
        *,
        backbone: nn.Module,
        preprocess: Mapping[str, Any],
        buffers: Buffers = "same",
        ignore: Sequence[str] = (),
        backbone_spec: Mapping[str, Any] | None = None,
        codec: str = "fp32",
    ) -> Pool:
        """Verifies a base and K models, and packs them in memory.

        Args:
            base: the pre-trained model: a path, a state dict or a module.
            checkpoints: the K fine-tuned models, in the order of ``tasks`` or by task name.
            tasks: K tasks; their names, class names and heads are read, never their data.
            backbone: the module whose parameters these are. It gives names, shapes, ties,
                buffers and what is frozen (``requires_grad=False``); its values are not used.
            preprocess: see :func:`as_preprocess`; what the checkpoints say may be left out.
            buffers: "same": tensors that are not merged must be equal over the pool.
                "base": where they differ the base's are used, and a note says so.
            ignore: glob patterns of keys that the checkpoints hold and the backbone does not.
            backbone_spec: what builds the backbone; kept as given.
            codec: how to store the task vectors.

        Returns:
            The pool. Peak memory: base, task vectors and one tensor, beside what is given.

        Raises:
            MdftError: if anything does not fit together; it names the file and the key.

        Nothing of the caller's is changed or kept, the heads apart.
        """
        from mdft_fast.pool.packing import Packing

        packing = Packing(base, checkpoints, tasks, backbone, preprocess, buffers, ignore)
        return packing.in_memory(check_codec(codec), backbone_spec or {})

    @staticmethod
    def pack(
        path: str | os.PathLike[str],
        base: StateSource,
        checkpoints: Mapping[str, StateSource] | Sequence[StateSource],
        tasks: Sequence[TaskLike],
        *,
        backbone: nn.Module,
        preprocess: Mapping[str, Any],
        buffers: Buffers = "same",
        ignore: Sequence[str] = (),
        backbone_spec: Mapping[str, Any] | None = None,
        codec: str = "fp32",
        overwrite: bool = False,
        notes: Sequence[str] = (),
    ) -> Pool:
        """Does :meth:`from_checkpoints` and :meth:`save` in one, task vector by task vector.

        Peak memory is one task vector, in float32 and in the codec, whatever K: the base is mapped
        as soon as it is written. Returns the pool, mapped; ``notes`` stand before its own.
        """
        from mdft_fast.pool.packing import Packing
        from mdft_fast.pool.storage import open_pool, stream_pool

        packing = Packing(base, checkpoints, tasks, backbone, preprocess, buffers, ignore, notes)
        stream_pool(path, packing, check_codec(codec), backbone_spec or {}, overwrite)
        return open_pool(path, verify=False)

    def save(
        self, path: str | os.PathLike[str], codec: str | None = None, *, overwrite: bool = False
    ) -> None:
        """Writes the pool as a folder, which appears whole or not at all.

        Args:
            path: the folder; it must not exist, unless ``overwrite``.
            codec: stores the task vectors in another codec, one at a time; None: as they are.
            overwrite: replaces an older pool, which goes when the new one is complete.
        """
        from mdft_fast.pool.storage import save_pool

        save_pool(self, path, self.codec if codec is None else check_codec(codec), overwrite)

    @staticmethod
    def open(path: str | os.PathLike[str], *, verify: bool = False) -> Pool:
        """Opens a saved pool. Its arenas are mapped: a page is read when first touched.

        Args:
            path: the folder that :meth:`save` wrote.
            verify: reads everything, compares sha256, and does :meth:`check_finite`. Sizes,
                names and shapes are always compared.

        Raises:
            MdftError: if the folder is incomplete, damaged, or of an unknown version.
        """
        from mdft_fast.pool.storage import open_pool

        return open_pool(path, verify=verify)

    def check_finite(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Reads every element once, a piece at a time, and refuses NaN and infinity.

        Packing refuses them too; a file may have been written by another program.

        Args:
            folder: where the pool was opened from, so that the error names the file.

        Raises:
            MdftError: names the tensor, its task, and how many of its elements are not finite.
        """
        from mdft_fast.pool.finite import check_finite

        check_finite(self, None if folder is None else Path(folder))

    def describe(self) -> str:
        """Returns what is inside, as text."""
        spec, size = self.backbone_spec, self.preprocess["size"]
        rounded = () if self.codec == "fp32" else ("their vectors were rounded",)
        merged = "" if self.vector_names == self.names else f", merged by {self.vector_names[0]}"
        later = (*self.methods, *rounded)
        lines = [
            f"pool of {len(self.tasks)} tasks{merged}, {len(self.layout.slots)} tensors, "
            f"{self.parameters:,} parameters ({self.N:,} with padding)",
            f"backbone  {spec.get('library', '?')} {spec.get('name', '?')}, "
            f"images {size[0]} x {size[1]}, activation {self.activation or 'unknown'}",
            f"codec     {self.codec}, {self.vectors.bytes / 1e6:,.1f} MB of task vectors, "
            f"{self._describe_error()}",
            f"checksum  {self.checksum}",
            f"left out  {len(self.left_out)} tensors",
            *(f"  {name}: {why}" for name, why in self.left_out.items()),
            f"tasks, before {', '.join(later)}" if later else "tasks",
        ]
        lines += [
            f"  {task.name}: {task.classes} classes, base + task vector "
            + ("equals the checkpoint" if not task.round_off else f"within {task.round_off:.2g}")
            for task in self.tasks
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _describe_error(self) -> str:
        bound = f"{ERROR_OF_CODEC[self.codec]:.2g}"
        if self.codec in LARGEST_CODE:
            return f"error <= {bound} of the largest element of each group of {GROUP}"
        return f"relative error <= {bound}"


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
