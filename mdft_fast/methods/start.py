# SPDX-License-Identifier: Apache-2.0
"""A merge as the place from which λ starts: made of a pool, and put before its task vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from mdft_fast.errors import MdftError
from mdft_fast.methods.applying import apply
from mdft_fast.methods.inputs import SamplesToLearn
from mdft_fast.methods.method import Method, Watch
from mdft_fast.methods.table import method_of
from mdft_fast.model import HOLDOUT, UnlabelledTask
from mdft_fast.pool import Pool, start_entry


class Start:
    """A merge that enters a pool as vector 0, with λ = 1, and the tasks' vectors at 0.

    What a merge learns from inputs, it learns from those that no stage holds out, so that these can
    judge it beside others.

    Args:
        method: the merge, or its name.
        tasks: hold unlabelled samples, for merges that look at inputs.
        holdout: share of the samples that the merge never sees: the stages' own
            (:class:`~mdft_fast.ConstructConfig`).
        seed: of that split, likewise. A merge's own ``seed`` is a field of the merge.
        device: where a merge that looks at inputs computes; None: where the pool is.
        **fields: of the method that is named, as ``samples=384``.

    Raises:
        MdftError: if the method is no merge, or has no such field.
    """

    table: ClassVar[Mapping[str, type[Method]]] = {}  # the door's: it stands above this file

    def __init__(
        self,
        method: str | Method,
        *,
        tasks: Sequence[UnlabelledTask] = (),
        holdout: float = HOLDOUT,
        seed: int = 0,
        device: torch.device | str | None = None,
        **fields: Any,
    ) -> None:
        if isinstance(method, str):
            self.method = merge_of({method: fields}, self.table)
        elif fields:
            raise MdftError(f"start: fields are for a method by name, got {sorted(fields)}")
        else:
            self.method = method
        self.tasks, self.holdout, self.seed, self.device = tuple(tasks), holdout, seed, device

    def __str__(self) -> str:
        """Returns the merge, and what it was kept from seeing: equal words, equal starts."""
        if "inputs" not in self.method.needs:
            return str(self.method)
        split = f"holdout={self.holdout}, seed={self.seed}"
        return f"{self.method} without the held-out samples ({split})"

    def made(self, pool: Pool) -> bool:
        """Tells whether a pool has this start already."""
        return pool.start == self.method.name and pool.methods[-1:] == (start_entry([str(self)]),)

    def pool_of(self, pool: Pool, backbone: nn.Module) -> Pool:
        """Returns the pool with the merge as vector 0; see :meth:`mdft_fast.Pool.with_start`.

        Args:
            pool: holds the tasks' vectors, and no start.
            backbone: the module that the pool's tensors belong to.
        """
        return pool.with_start(self.merged(pool, backbone))

    def merged(self, pool: Pool, backbone: nn.Module, watch: Watch | None = None) -> Pool:
        """Returns the merge alone: a pool of one vector, in the pool's codec.

        Args:
            pool: see :meth:`pool_of`.
            backbone: likewise.
            watch: told how many of how many parts are done.
        """
        if pool.start is not None:
            raise MdftError(f"start: the pool must have none yet, got {pool.start!r}")
        some = [SamplesToLearn(task, self.holdout, self.seed) for task in self.tasks]
        merged = apply(
            pool, [self.method], backbone=backbone, tasks=some, device=self.device, watch=watch
        )
        return dataclasses.replace(merged, methods=(*pool.methods, str(self)))


def merge_of(entry: Any, methods: Mapping[str, type[Method]]) -> Method:
    """Returns the merge that an entry names, see :func:`~mdft_fast.methods.method_of`.

    Raises:
        MdftError: also if it names a transform.
    """
    for name in [entry] if isinstance(entry, str) else list(entry):
        if name in methods and methods[name].kind != "merge":
            raise MdftError(f"{name}: must be a merge, K vectors in and 1 out, got a transform")
    return method_of(entry, {n: one for n, one in methods.items() if one.kind == "merge"})
