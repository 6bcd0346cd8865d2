# SPDX-License-Identifier: Apache-2.0
"""Stores task vectors in fewer bits, and says what that costs.

int8 and int4 give each group of ``GROUP`` neighbours one scale s = max|τ| / q, where q is the
largest code (127, 7), and each element the code c = round(τ / s), half to even. Then, with
ε = 2⁻²⁴ for float32's roundings,

    |c · s − τ| ≤ s / 2 + ε |τ| + ε |c · s| ≤ s / 2 + 2⁻²³ (1 + ε) max|τ|:

half a step for the code, one rounding for the quotient, one for the product. A code never exceeds
q, since τ / s exceeds it by less than 2⁻²² of itself. No scale but that of an all-zero group, 0, is
below float32's smallest normal number, 2⁻¹²⁶, so nothing depends on how a device treats subnormal
numbers; with that scale the bound is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdft_fast.arena.checksums import digest
from mdft_fast.arena.layout import TILE, Layout
from mdft_fast.arena.task_vectors import (
    CODECS,
    DTYPE_OF_CODEC,
    GROUP,
    LARGEST_CODE,
    Codec,
    TaskVectors,
)
from mdft_fast.errors import MdftError, nearest

PIECE = 1 << 19  # elements encoded at a time: 2 MiB of float32 stay in the cache; whole groups


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


def codes_of(elements: int, codec: Codec) -> int:
    """Returns how many codes hold that many elements, a multiple of 2."""
    return elements // 2 if codec == "int4" else elements


def forms_of(K: int, N: int, codec: Codec) -> dict[str, tuple[torch.dtype, tuple[int, int]]]:
    """Returns dtype and shape of K task vectors' ``codes`` and, where there are any, ``scales``."""
    forms = {"codes": (DTYPE_OF_CODEC[codec], (K, codes_of(N, codec)))}
    return forms | ({"scales": (torch.float32, (K, N // GROUP))} if codec in LARGEST_CODE else {})


def empty_vectors(K: int, N: int, codec: Codec, codes: Tensor | None = None) -> TaskVectors:
    """Returns room for K task vectors of N elements, a multiple of ``GROUP``.

    ``codes`` is the room for the codes, from an earlier call; None: it is made.
    """
    forms = forms_of(K, N, codec)
    made = {
        name: torch.empty(shape, dtype=dtype, device="cpu")
        for name, (dtype, shape) in forms.items()
    }
    return TaskVectors(made["codes"] if codes is None else codes, codec, made.get("scales"))


def rows_of(vectors: TaskVectors) -> Iterator[TaskVectors]:
    """Yields each of the K task vectors alone, as views."""
    for k in range(vectors.K):
        scales = None if vectors.scales is None else vectors.scales[k : k + 1]
        yield TaskVectors(vectors.codes[k : k + 1], vectors.codec, scales)


def copy_row(row: TaskVectors, out: TaskVectors) -> None:
    """Copies one task vector into another's place, in the same codec."""
    for source, place in zip(row.tensors, out.tensors, strict=True):
        place.copy_(source)


class Encoder:
    """Encodes task vectors one by one, and keeps what is asked about them later.

    Attributes:
        codec: what it encodes to.
        digests: for each vector so far, the sha256 of its codes and scales.
        scales: for each vector so far ``[1, N / GROUP]``, int8 and int4 alone.
        errors: tensor -> what the codec cost it; empty where nothing was rounded.
    """

    def __init__(self, codec: Codec, layout: Layout) -> None:
        """Begins with no vector; ``layout`` says where each tensor lies."""
        self.codec = codec
        self.digests: list[str] = []
        self.scales: list[Tensor] = []
        self.errors: dict[str, CodecError] = {}
        self._layout = layout
        self._codes: Tensor | None = None

    def encode(self, row: TaskVectors, owner: str) -> TaskVectors:
        """Returns a single task vector in the codec; itself where it is already.

        The next call overwrites its codes.

        Args:
            row: K = 1, in any codec, of the layout's N elements.
            owner: whose vector it is, for the error.

        Raises:
            MdftError: if an element is too large for the codec, or not finite.

        Works in pieces: beside the result it takes a few MiB.
        """
        if row.codec != self.codec:
            row = self._encode(row, owner)
        self.digests.append(digest(*row.tensors))
        if row.scales is not None:
            self.scales.append(row.scales)
        return row

    def _encode(self, row: TaskVectors, owner: str) -> TaskVectors:
        out = empty_vectors(1, row.N, self.codec, self._codes)
        self._codes = out.codes
        worst, largest = (
            torch.empty(row.N // GROUP, dtype=torch.float32, device="cpu"),
            torch.empty(row.N // GROUP, dtype=torch.float32, device="cpu"),
        )
        for first in range(0, row.N, PIECE):
            last = min(first + PIECE, row.N)
            exact = row.decode(first, last)
            piece = encode_piece(exact, self.codec)
            copy_row(piece, out.cut(first, last))
            groups = slice(first // GROUP, last // GROUP)
            largest[groups] = _largest_of_groups(exact)
            worst[groups] = _largest_of_groups(piece.decode() - exact)
        # An element that is not finite, or no longer is, makes its error NaN or infinite.
        if not worst.isfinite().all():
            raise self._too_large(row, int((~worst.isfinite()).nonzero()[0]), owner)
        self._note(worst, largest)
        return out

    def _note(self, worst: Tensor, largest: Tensor) -> None:
        """Takes one vector's errors and magnitudes, ``[N / GROUP]`` each, into ``errors``."""
        groups = torch.tensor(
            [slot.tiles * (TILE // GROUP) for slot in self._layout.slots], device="cpu"
        )
        slot_of = torch.arange(len(groups), device="cpu").repeat_interleave(groups)
        none = torch.zeros(len(groups), dtype=torch.float64, device="cpu")
        absolute = none.scatter_reduce(0, slot_of, worst.double(), "amax")
        magnitude = none.scatter_reduce(0, slot_of, largest.double(), "amax")
        relative = torch.where(magnitude > 0, absolute / magnitude, 0.0)
        for slot, a, r in zip(self._layout.slots, absolute, relative, strict=True):
            old = self.errors.get(slot.name, CodecError(0.0, 0.0))
            new = CodecError(max(old.absolute, float(a)), max(old.relative, float(r)))
            self.errors[slot.name] = new

    def _too_large(self, row: TaskVectors, group: int, owner: str) -> MdftError:
        slot = next(s for s in reversed(self._layout.slots) if s.tile * TILE <= group * GROUP)
        value = float(row.decode(group * GROUP, (group + 1) * GROUP).abs().max())
        whose = f"{owner}: tensor {slot.name!r} has a task-vector element"
        if not value < float("inf"):
            return MdftError(f"{whose} that must be finite, got {value:g}")
        dtype = DTYPE_OF_CODEC[self.codec]
        limit = torch.finfo(dtype if dtype.is_floating_point else torch.float32).max
        return MdftError(
            f"{whose} of {value:g}, beyond {limit:g}, the largest of codec {self.codec!r}; use "
            f"codec 'fp32' or 'bf16'"
        )


def encode_piece(exact: Tensor, codec: Codec) -> TaskVectors:
    """Rounds elements to the codec, all at once.

    Args:
        exact: ``[K, n]`` float32, n a multiple of ``GROUP``.
        codec: how to store an element.
    """
    if codec not in LARGEST_CODE:
        return TaskVectors(exact.to(DTYPE_OF_CODEC[codec]), codec)
    largest = _largest_of_groups(exact)
    scales = (largest / LARGEST_CODE[codec]).clamp_(min=torch.finfo(torch.float32).tiny)
    groups = exact.view(len(exact), -1, GROUP)
    codes = (groups / scales[..., None]).round_().to(torch.int8).flatten(1)
    if codec == "int4":
        codes = _two_a_byte(codes)
    return TaskVectors(codes, codec, scales.where(largest > 0, 0.0))


def encode(
    vectors: TaskVectors, codec: Codec, layout: Layout, owners: Sequence[str]
) -> tuple[TaskVectors, Encoder]:
    """Returns the same task vectors in another codec, in memory, and what that cost.

    ``owners``: whose vectors they are, for errors.
    """
    encoder = Encoder(codec, layout)
    out = empty_vectors(vectors.K, vectors.N, codec)
    for row, place, owner in zip(rows_of(vectors), rows_of(out), owners, strict=True):
        copy_row(encoder.encode(row, owner), place)
    return out, encoder


def codec_errors(
    vectors: TaskVectors, codec: Codec, layout: Layout, owners: Sequence[str]
) -> dict[str, CodecError]:
    """Measures what :func:`encode` would cost each tensor, against the vectors as they are now.

    Takes one row in the codec and a few MiB.
    """
    encoder = Encoder(codec, layout)
    for row, owner in zip(rows_of(vectors), owners, strict=True):
        encoder.encode(row, owner)
    return encoder.errors or {slot.name: CodecError(0.0, 0.0) for slot in layout.slots}


def add_errors(
    old: Mapping[str, CodecError], new: Mapping[str, CodecError]
) -> Mapping[str, CodecError]:
    """Returns upper bounds of the errors of two roundings, one after the other.

    The second's relative error is over the first's result, which is at most 1 + r of the exact
    tensor's largest element.
    """
    if not old or not new:
        return old or new
    return {
        name: CodecError(a.absolute + b.absolute, a.relative + b.relative * (1 + a.relative))
        for (name, a), b in zip(old.items(), new.values(), strict=True)
    }


def _largest_of_groups(elements: Tensor) -> Tensor:
    """Returns the largest magnitude of each group, ``[K, n]`` -> ``[K, n / GROUP]``."""
    return elements.view(len(elements), -1, GROUP).abs().amax(-1)


def _two_a_byte(codes: Tensor) -> Tensor:
    """Packs int8 codes ``[K, n]`` of 4 bits into ``[K, n / 2]`` bytes, the first one low."""
    pairs = codes.view(torch.int16)  # little-endian, as safetensors is
    return ((pairs & 0x0F) | (pairs >> 4 & 0xF0)).to(torch.uint8)
