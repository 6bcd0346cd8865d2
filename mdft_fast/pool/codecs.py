# SPDX-License-Identifier: Apache-2.0
"""Stores task vectors in fewer bits, and says what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdft_fast.errors import MdftError, nearest
from mdft_fast.layout import Layout
from mdft_fast.task_vectors import CODECS, DTYPE_OF_CODEC, Codec, TaskVectors


class CodecError(NamedTuple):
    """What a codec costs one tensor, the worst of its K task vectors.

    Attributes:
        absolute: largest |stored − exact| of an element.
        relative: that, over the largest |exact| of the same task vector's tensor; 0 where the
            tensor is all zero.
    """

    absolute: float
    relative: float


def check_codec(codec: str) -> Codec:
    """Returns the codec if there is one of that name."""
    for known in CODECS:
        if codec == known:
            return known
    raise MdftError(f"codec: must be one of {list(CODECS)}, got {codec!r}{nearest(codec, CODECS)}")


def encode_row(row: Tensor, codec: Codec, layout: Layout, owner: str) -> Tensor:
    """Rounds one task vector to the codec.

    Args:
        row: ``[N]`` float32 arena.
        codec: how to store an element.
        layout: names the tensor in the error.
        owner: whose vector it is, for the error.

    Raises:
        MdftError: if an element is too large for the codec.
    """
    codes = row.to(DTYPE_OF_CODEC[codec])
    if codes.dtype != row.dtype and not codes.isfinite().all():
        for slot, tensor in zip(layout.slots, layout.views(row), strict=True):
            largest = float(tensor.abs().max()) if slot.numel else 0.0
            limit = torch.finfo(codes.dtype).max
            if not torch.tensor(largest).to(codes.dtype).isfinite():
                raise MdftError(
                    f"{owner}: tensor {slot.name!r} has a task-vector element of {largest:g}, "
                    f"beyond {limit:g}, the largest of codec {codec!r}; use codec 'fp32' or 'bf16'"
                )
    return codes


def encode(vectors: TaskVectors, codec: Codec, layout: Layout, owners: Sequence[str]) -> Tensor:
    """Returns the codes ``[K, N]`` of the same task vectors in another codec."""
    codes = torch.empty(vectors.codes.shape, dtype=DTYPE_OF_CODEC[codec])
    for row, owner, out in zip(vectors.codes, owners, codes, strict=True):
        out.copy_(encode_row(row.float(), codec, layout, owner))
    return codes


def codec_errors(vectors: TaskVectors, codec: Codec, layout: Layout) -> dict[str, CodecError]:
    """Measures what re-encoding costs each tensor, one tensor at a time.

    Args:
        vectors: the vectors as they are stored now; the error is against these.
        codec: the codec they would go to.
        layout: where each tensor lies.
    """
    errors = {slot.name: CodecError(0.0, 0.0) for slot in layout.slots}
    dtype = DTYPE_OF_CODEC[codec]
    for row in vectors.codes:
        for slot, view in zip(layout.slots, layout.views(row), strict=True):
            if not slot.numel:
                continue
            exact = view.float()
            absolute = float((exact.to(dtype).float() - exact).abs().max())
            largest = float(exact.abs().max())
            worst = errors[slot.name]
            errors[slot.name] = CodecError(
                max(worst.absolute, absolute),
                max(worst.relative, absolute / largest if largest else 0.0),
            )
    return errors
