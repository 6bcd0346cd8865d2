# SPDX-License-Identifier: Apache-2.0
"""The pool as its users know it: its data, and what the room does with them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mdft_fast.arena import ERROR_OF_CODEC, GROUP, LARGEST_CODE, check_codec
from mdft_fast.checkpoints import StateSource, describe_preprocess
from mdft_fast.pool.consensus_start import add_start
from mdft_fast.pool.finite import check_finite
from mdft_fast.pool.packing import Buffers, Packing
from mdft_fast.pool.pool_data import PoolData
from mdft_fast.pool.storage import open_pool, save_pool, stream_pool
from mdft_fast.pool.task_checks import TaskLike


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pool(PoolData):
    """A base and the models fine-tuned from it, packed. Data: nothing here is ever trained.

    Attributes:
        layout: where each merged tensor lies; one column of λ a tensor.
        base: ``[N]`` float32 arena of the pre-trained model; padding is 0.
        vectors: the K task vectors ``[K, N]``; padding is 0.
        tasks: one a task vector, in the same order, where no merge has made one vector of them;
            a start (:meth:`with_start`) stands before them.
        heads: task -> its classifier.
        buffers: the base's tensors that are not merged, as they were: buffers, frozen parameters.
        left_out: tensor -> why it is not merged, in words.
        dtypes: tensor -> its dtype in the checkpoints (``"float16"``), for exports.
        backbone_spec: library, name and arguments that build the backbone, as given.
        preprocess: what makes a sample the backbone's input.
        checksum: sha256 of names, shapes, codec, base, task vectors and buffers.
        notes: what a reader of results should know, one sentence each.
        errors: tensor -> what the codec cost its task vectors, as packing measured it; an upper
            bound where that was done more than once. Empty: nothing rounded, or not recorded.
        activation: the backbone's, "quick_gelu", "gelu" or "gelu_tanh"; None: unknown.
        ties: second name of a tied parameter -> its first name.
        vector_names: whose the K vectors are: the tasks', or a merge's name, or both, the merge
            first. Empty: the tasks'.
        methods: what the task vectors went through after packing, as ``ties(density=0.2)``; of a
            pool with a start the last one says what made it.
    """

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
        weights: str | None = None,
        part: str | None = None,
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
            preprocess: see :func:`~mdft_fast.checkpoints.as_preprocess`; what
                the checkpoints say may be left out.
            buffers: "same": tensors that are not merged must be equal over the pool.
                "base": where they differ the base's are used, and a note says so.
            ignore: glob patterns of keys that the checkpoints hold and the backbone does not.
            weights: "ema" or "raw" where a file has both; None: what its own library takes, with a
                note, where that is known.
            part: of the models' files: the key of the state dict, or what its names begin with,
                see :class:`~mdft_fast.checkpoints.Choice`; None: the only one that there is.
            backbone_spec: what builds the backbone; kept as given.
            codec: how to store the task vectors.

        Returns:
            The pool. Peak memory: base, task vectors and one tensor, beside what is given.

        Raises:
            MdftError: if anything does not fit together; it names the file and the key.

        Nothing of the caller's is changed or kept, the heads apart.
        """
        packing = Packing(
            base, checkpoints, tasks, backbone, preprocess, buffers, ignore, (), weights, part
        )
        return Pool(**vars(packing.in_memory(check_codec(codec), backbone_spec or {})))

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
        weights: str | None = None,
        part: str | None = None,
        backbone_spec: Mapping[str, Any] | None = None,
        codec: str = "fp32",
        overwrite: bool = False,
        notes: Sequence[str] = (),
    ) -> Pool:
        """Does :meth:`from_checkpoints` and :meth:`save` in one, task vector by task vector.

        Peak memory is one task vector, in float32 and in the codec, whatever K: the base is mapped
        as soon as it is written. Returns the pool, mapped; ``notes`` stand before its own.
        """
        packing = Packing(
            base, checkpoints, tasks, backbone, preprocess, buffers, ignore, notes, weights, part
        )
        stream_pool(path, packing, check_codec(codec), backbone_spec or {}, overwrite)
        return Pool.open(path)

    def with_start(self, merged: Pool) -> Pool:
        """Returns the pool with a merge as vector 0, before the K task vectors: K + 1 in all.

        λ then starts at 1 for it and at 0 for the tasks', which is the merge itself, and a task's
        own model is still the base plus its own vector.

        Args:
            merged: one vector over the same base: what :func:`mdft_fast.methods.apply` makes with
                any merge. In another codec, it is encoded into this pool's.

        Returns:
            A pool in memory with a checksum of its own, whose ``methods`` and notes say what was
            done. ``vector_names`` begins with the merge's name.

        Raises:
            MdftError: if the merge has another base or other tensors, more than one vector or a
                task's name; or the pool has a start already, or no task's vectors any more.
        """
        return add_start(self, merged)

    def save(
        self, path: str | os.PathLike[str], codec: str | None = None, *, overwrite: bool = False
    ) -> None:
        """Writes the pool as a folder, which appears whole or not at all.

        Args:
            path: the folder; it must not exist, unless ``overwrite``.
            codec: stores the task vectors in another codec, one at a time; None: as they are.
            overwrite: replaces an older pool, which goes when the new one is complete.
        """
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
        return Pool(**vars(open_pool(path, verify=verify)))

    def check_finite(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Reads every element once, a piece at a time, and refuses NaN and infinity.

        Packing refuses them too; a file may have been written by another program.

        Args:
            folder: where the pool was opened from, so that the error names the file.

        Raises:
            MdftError: names the tensor, its task, and how many of its elements are not finite.
        """
        check_finite(self, None if folder is None else Path(folder))

    def describe(self) -> str:
        """Returns what is inside, as text."""
        spec = self.backbone_spec
        rounded = () if self.codec == "fp32" else ("their vectors were rounded",)
        merged = "" if self.vector_names == self.names else f", merged by {self.vector_names[0]}"
        if self.start is not None:
            merged = " with a start"
        # What made the start, the last entry, has left the tasks' vectors as they were.
        made = self.methods[-1:] if self.start is not None else ()
        later = (*self.methods[: len(self.methods) - len(made)], *rounded)
        lines = [
            f"pool of {len(self.tasks)} tasks{merged}, {len(self.layout.slots)} tensors, "
            f"{self.parameters:,} parameters ({self.N:,} with padding)",
            f"backbone  {spec.get('library', '?')} {spec.get('name', '?')}, "
            f"{describe_preprocess(self.preprocess)}, activation {self.activation or 'unknown'}",
            *(f"start     vector 0, {self.start!r}: {entry}" for entry in made),
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
