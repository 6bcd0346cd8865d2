# SPDX-License-Identifier: Apache-2.0
"""Task vectors as the operators read them."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from mdft_fast.errors import MdftError

Codec = Literal["fp32", "bf16", "fp16"]
CODECS: tuple[Codec, ...] = get_args(Codec)
DTYPE_OF_CODEC = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Largest relative error of one stored element that is normal in the codec: half a unit in the
# last place. Elements below the codec's smallest normal number err by at most half its step.
ERROR_OF_CODEC = {"fp32": 0.0, "bf16": 2.0**-8, "fp16": 2.0**-11}


@dataclasses.dataclass(frozen=True)
class TaskVectors:
    """K packed task vectors, fine-tuned minus pre-trained, in one codec.

    Attributes:
        codes: ``[K, N]`` contiguous, in the codec's dtype.
        codec: how an element is stored.
    """

    codes: Tensor
    codec: Codec = "fp32"

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise MdftError(
                f"task vectors: codec must be one of {list(CODECS)}, got {self.codec!r}"
            )
        wanted = DTYPE_OF_CODEC[self.codec]
        if self.codes.dim() != 2 or self.codes.dtype != wanted:
            raise MdftError(
                f"task vectors: codes must be [K, N] in {wanted} for codec {self.codec!r}, got "
                f"{list(self.codes.shape)} in {self.codes.dtype}"
            )

    def to(self, device: torch.device) -> TaskVectors:
        """Returns the same vectors on a device."""
        return TaskVectors(self.codes.to(device), self.codec)
