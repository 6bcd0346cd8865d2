# SPDX-License-Identifier: Apache-2.0
"""Task vectors as the operators read them."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from mdft_fast.arena.layout import TILE, Slot
from mdft_fast.errors import MdftError

Codec = Literal["fp32", "bf16", "fp16", "int8", "int4"]
CODECS: tuple[Codec, ...] = get_args(Codec)
DTYPE_OF_CODEC = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "int4": torch.uint8,  # two elements a byte
}

GROUP = 128  # neighbouring elements that share a scale in int8 and int4
LARGEST_CODE = {"int8": 127, "int4": 7}  # codes lie in [-largest, largest]

# Largest error of one stored element. Floats: relative to the element, half a unit in the last
# place; elements below the codec's smallest normal number err by at most half its step. Integers:
# relative to the largest element of its group, half a step.
ERROR_OF_CODEC = {
    "fp32": 0.0,
    "bf16": 2.0**-8,
    "fp16": 2.0**-11,
    **{codec: 0.5 / largest for codec, largest in LARGEST_CODE.items()},
}


@dataclasses.dataclass(frozen=True)
class TaskVectors:
    """K packed task vectors, fine-tuned minus pre-trained, in one codec.

    An element of int8 and int4 is its code times its group's scale, in float32.

    Attributes:
        codes: contiguous, in the codec's dtype: ``[K, N]``; ``[K, N / 2]`` bytes for int4, with
            element 2i in the low and 2i + 1 in the high half, in two's complement.
        codec: how an element is stored.
        scales: float32 ``[K, N / GROUP]`` for int8 and int4, else None.
    """

    codes: Tensor
    codec: Codec = "fp32"
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise MdftError(
                f"task vectors: codec must be one of {list(CODECS)}, got {self.codec!r}"
            )
        wanted = DTYPE_OF_CODEC[self.codec]
        if self.codes.dim() != 2 or self.codes.dtype != wanted:
            raise MdftError(
                f"task vectors: codes must be a matrix in {wanted} for codec {self.codec!r}, got "
                f"{list(self.codes.shape)} in {self.codes.dtype}"
            )
        self._check_scales()

    def _check_scales(self) -> None:
        if self.codec not in LARGEST_CODE:
            if self.scales is not None:
                raise MdftError(f"task vectors: codec {self.codec!r} has no scales, got some")
            return
        if self.N % GROUP:
            raise MdftError(
                f"task vectors: codec {self.codec!r} must have a multiple of {GROUP} elements, "
                f"got {self.N}"
            )
        wanted = [self.K, self.N // GROUP]
        got = self.scales
        if got is None or list(got.shape) != wanted or got.dtype != torch.float32:
            described = "none" if got is None else f"{list(got.shape)} in {got.dtype}"
            raise MdftError(
                f"task vectors: scales must be {wanted} in {torch.float32}, got {described}"
            )

    @property
    def K(self) -> int:
        """``K``: number of task vectors."""
        return self.codes.shape[0]

    @property
    def N(self) -> int:
        """``N``: number of elements of each, padding included."""
        return self.codes.shape[1] * (2 if self.codec == "int4" else 1)

    @property
    def bytes(self) -> int:
        """Bytes that the K vectors take, scales included."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The codes, and behind them the scales where there are any."""
        return (self.codes,) if self.scales is None else (self.codes, self.scales)

    def cut(self, first: int, last: int) -> TaskVectors:
        """Returns elements ``[first, last)`` of all K as views; of int8 and int4 whole groups."""
        step = 2 if self.codec == "int4" else 1
        scales = None if self.scales is None else self.scales[:, first // GROUP : last // GROUP]
        return TaskVectors(self.codes[:, first // step : last // step], self.codec, scales)

    def of_slot(self, slot: Slot) -> TaskVectors:
        """Returns one tensor of all K, its padding included, as views."""
        return self.cut(slot.tile * TILE, (slot.tile + slot.tiles) * TILE)

    def decode(self, first: int = 0, last: int | None = None) -> Tensor:
        """Returns elements ``[first, last)`` of all K as ``[K, last - first]`` float32.

        Args:
            first: the first element; a multiple of ``GROUP`` for int8 and int4.
            last: one past the last one, likewise; None: ``N``.
        """
        part = self.cut(first, self.N if last is None else last)
        codes, scales = part.codes, part.scales
        if scales is None:
            return codes.float()
        if self.codec == "int4":
            low, high = (codes << 4).view(torch.int8) >> 4, codes.view(torch.int8) >> 4
            codes = torch.stack([low, high], -1).flatten(1)
        groups = codes.reshape(*scales.shape, GROUP)
        return (groups * scales[..., None]).view(codes.shape)

    def to(self, device: torch.device) -> TaskVectors:
        """Returns the same vectors on a device."""
        scales = None if self.scales is None else self.scales.to(device)
        return TaskVectors(self.codes.to(device), self.codec, scales)
