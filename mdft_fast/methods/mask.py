# SPDX-License-Identifier: Apache-2.0
"""A mask that someone else found: which elements of a task vector matter."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mdft_fast.checkpoints import open_state
from mdft_fast.errors import MdftError
from mdft_fast.methods.method import Site, Transform, Vectors


@dataclasses.dataclass(frozen=True)
class Mask(Transform):
    """Keeps the elements that a file's masks name.

    The file holds a boolean tensor for each of the model's, under the same name: ``[*shape]`` for
    all K vectors, or ``[K, *shape]``, one for each in the pool's order. It is read as checkpoints
    are: nothing in it is executed, and a tensor's masks are in memory only while that is changed.

    Attributes:
        file: of boolean tensors, named as the model's; safetensors, say.
    """

    file: Path

    name = "mask"
    source = "arXiv:2405.07813"
    needs = ("survey",)

    def __post_init__(self) -> None:
        if not isinstance(self.file, (str, os.PathLike)) or not str(self.file):
            raise MdftError(f"mask.file: must be a path, got {self.file!r}")
        object.__setattr__(self, "file", Path(self.file))

    def __str__(self) -> str:
        """Returns ``mask(file='masks.safetensors')``: where a file lies is of one machine."""
        return f"mask(file={self.file.name!r})"

    def survey(self, vectors: Vectors) -> Mapping[str, Tensor]:
        """Opens the file, whose tensors are read when they are asked for, and checks its names."""
        opened = open_state(self.file)
        opened.check()
        masks = opened.tensors
        missing = [name for name in vectors.tensors if name not in masks]
        if missing:
            raise MdftError(
                f"mask: {self.file}: must hold a mask for each of the model's tensors, got none "
                f"for {len(missing)} of {len(vectors.tensors)}, such as {missing[0]!r}"
            )
        strange = sorted(set(masks) - set(vectors.tensors))
        if strange:
            raise MdftError(
                f"mask: {self.file}: must hold masks for the model's tensors alone, got "
                f"{strange[0]!r}, one of {len(strange)} others"
            )
        return masks

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        """Sets to zero what is not named; the rest keeps its bits."""
        mask: Tensor = site.survey[site.slot.name]
        fits = tuple(mask.shape) in (tuple(deltas.shape), tuple(deltas.shape[1:]))
        if mask.dtype != torch.bool or not fits:
            raise MdftError(
                f"mask: {self.file}: {site.slot.name!r} must be bool {list(deltas.shape[1:])} or "
                f"{list(deltas.shape)}, got {mask.dtype} {list(mask.shape)}"
            )
        return deltas.where(mask.to(deltas.device), 0.0)
