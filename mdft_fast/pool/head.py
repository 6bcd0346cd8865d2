# SPDX-License-Identifier: Apache-2.0
"""The classifier of one task: frozen, small, and never merged."""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from mdft_fast.checkpoints import open_state
from mdft_fast.errors import MdftError, nearest


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """Turns features into logits: ``scale * (f @ weight.T) + bias``.

    Attributes:
        weight: ``[C, D]``, one row a class.
        bias: ``[C]`` or None.
        normalize: whether ``f`` is the features divided by their Euclidean norm (CLIP's zero-shot
            heads) or the features as they come (a linear layer).
        scale: number that multiplies the products; 1 where it is folded into ``weight``.
        note: of a head that labels made: the sentence that a reader of results must know.
    """

    weight: Tensor
    bias: Tensor | None = None
    normalize: bool = False
    scale: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if self.weight.dim() != 2 or not self.weight.is_floating_point():
            raise MdftError(f"head: weight must be floating [C, D], got {_form(self.weight)}")
        bias = self.bias
        if bias is not None and (bias.shape != (self.classes,) or not bias.is_floating_point()):
            raise MdftError(f"head: bias must be floating [{self.classes}], got {_form(bias)}")

    @property
    def classes(self) -> int:
        """``C``: number of classes."""
        return self.weight.shape[0]

    @property
    def features(self) -> int:
        """``D``: number of features that the head reads."""
        return self.weight.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """``weight`` and, where there is one, ``bias``, by name."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def __call__(self, features: Tensor) -> Tensor:
        """Returns the logits ``[..., C]`` of features ``[..., D]``, in the dtype of ``features``.

        Differentiable in ``features``. The weights are cast where their dtype differs;
        :meth:`to` does it once.
        """
        if features.shape[-1] != self.features:
            raise MdftError(
                f"head: features must be [..., {self.features}], got {list(features.shape)}"
            )
        if self.normalize:
            features = F.normalize(features, dim=-1)
        logits = features @ self.weight.to(features.dtype).T
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.bias is None else logits + self.bias.to(features.dtype)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Head:
        """Returns the same head on a device, in a dtype."""
        bias = None if self.bias is None else self.bias.to(device=device, dtype=dtype)
        return dataclasses.replace(
            self, weight=self.weight.to(device=device, dtype=dtype), bias=bias
        )

    @staticmethod
    def from_file(
        path: str | os.PathLike[str], *, normalize: bool | None = None, scale: float = 1.0
    ) -> Head:
        """Reads ``weight`` [C, D] and, if it is there, ``bias`` [C] from a file.

        Args:
            path: safetensors, a torch state dict, or a pickled head of task_vectors
                (``head_<Task>.pt``), whose logit scale is folded into ``weight``.
            normalize: None: as the file says, which ``head_<Task>.pt`` does.
            scale: as in the class.

        Raises:
            MdftError: if the file is no head, or says another ``normalize``, or none is known.
        """
        opened = open_state(path)
        opened.check()
        state, stored = opened.tensors, opened.normalize
        normalize = stored if normalize is None else normalize
        if normalize is None:
            raise MdftError(f"{path}: the file does not say `normalize`, so it must be given")
        if stored not in (None, normalize):
            raise MdftError(f"{path}: normalize must be {stored} as the file says, got {normalize}")
        for name in state:
            if name not in ("weight", "bias"):
                raise MdftError(
                    f"{path}: a head holds 'weight' and maybe 'bias', got {name!r}"
                    f"{nearest(name, ('weight', 'bias'))}"
                )
        if "weight" not in state:
            raise MdftError(f"{path}: tensor 'weight' [C, D] is missing, got {sorted(state)}")
        bias = state["bias"].clone() if "bias" in state else None
        try:
            return Head(state["weight"].clone(), bias, normalize, scale)
        except MdftError as error:
            raise MdftError(f"{path}: {error}") from None


def label_note(task: str, words: str) -> str:
    """Returns the note of a head that labels made, see :class:`Head`."""
    return f"Labels made the head of {task}: {words}"


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} in {tensor.dtype}"
