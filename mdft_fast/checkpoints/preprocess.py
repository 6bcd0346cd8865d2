# SPDX-License-Identifier: Apache-2.0
"""How an image becomes the backbone's input: size, resizing, crop, mean, standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor

from mdft_fast.errors import MdftError, nearest

Resize = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
Batch = Tensor | dict[str, Tensor]  # what an encoder takes: a tensor, or keyword arguments

LEAST_CROP = 0.1  # a smaller share is a mistake, and the image before the crop takes all memory
_NEEDED = ("size", "mean", "std")
# The first is the default: CLIP's own evaluation, which pools from before these keys mean too.
CHOICES: dict[str, tuple[str, ...]] = {
    "resize": get_args(Resize),
    "interpolation": get_args(Interpolation),
}
_KEYS = (*_NEEDED, *CHOICES, "crop_pct")


class Preprocess(TypedDict):
    """A plain dict, so that it goes into ``pool.json`` as it is.

    Attributes:
        size: ``[H, W]`` in pixels.
        mean: one number a channel, on the scale [0, 1].
        std: one number a channel, on the scale [0, 1]; above 0.
        resize: how an image of another size comes to this one. "shortest" (the default): its
            shortest edge does, and the center is cut out. "squash": both edges do.
        interpolation: of the resizing, antialiased: "bicubic" (the default) or "bilinear".
        crop_pct: the share of the resized edges that is cut out, as timm says it, in [0.1, 1]; 1 is
            the default. The image is resized to :func:`edges_before_crop`, not to ``size``.
    """

    size: list[int]
    mean: list[float]
    std: list[float]
    resize: Resize
    interpolation: Interpolation
    crop_pct: float


def as_preprocess(values: Mapping[str, Any]) -> Preprocess:
    """Returns every key of a preprocess in full, or says what is wrong with one.

    Args:
        values: ``size``: one number or [H, W]; ``mean`` and ``std``: one number or three;
            ``resize``, ``interpolation`` and ``crop_pct``: see :class:`Preprocess`; may be left
            out.
    """
    if not isinstance(values, Mapping):
        raise MdftError(f"preprocess: must be a mapping with keys {list(_KEYS)}, got {values!r}")
    for key in values:
        if key not in _KEYS:
            raise MdftError(
                f"preprocess: keys must be {list(_KEYS)}, got {key!r}{nearest(str(key), _KEYS)}"
            )
    for key in _NEEDED:
        if key not in values:
            raise MdftError(f"preprocess: {key!r} is missing, got {sorted(values)}")
    size = _numbers(values["size"], 2, "size")
    if any(value < 1 or value != int(value) for value in size):
        raise MdftError(f"preprocess: 'size' must be whole pixels above 0, got {values['size']!r}")
    std = _numbers(values["std"], 3, "std")
    if any(value <= 0 for value in std):
        raise MdftError(f"preprocess: 'std' must be above 0, got {values['std']!r}")
    mean = _numbers(values["mean"], 3, "mean")
    for key, numbers in (("mean", mean), ("std", std)):
        if not all(0 <= value <= 1 for value in numbers):
            raise MdftError(
                f"preprocess: {key!r} must be on the scale 0 to 1, got {values[key]!r}; of numbers "
                "on the scale 0 to 255 give a 255th"
            )
    resize: Any = _choice(values, "resize")
    interpolation: Any = _choice(values, "interpolation")
    (crop_pct,) = _numbers(values.get("crop_pct", 1.0), 1, "crop_pct")
    if not LEAST_CROP <= crop_pct <= 1:
        raise MdftError(
            f"preprocess: 'crop_pct' must be in [{LEAST_CROP}, 1], got {values['crop_pct']!r}"
        )
    return {
        "size": [int(value) for value in size],
        "mean": mean,
        "std": std,
        "resize": resize,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
    }


def edges_before_crop(size: Sequence[int], crop_pct: float) -> list[int]:
    """Returns the edges that an image is resized to before ``size`` is cut out: timm's rounding."""
    return [math.floor(edge / crop_pct) for edge in size]


def arguments_of(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Returns a batch as an encoder's arguments, positional and by keyword."""
    return ((batch,), {}) if isinstance(batch, Tensor) else ((), batch)


def example_input(preprocess: Preprocess) -> Batch:
    """Returns what an encoder takes for one sample, on the meta device: a shape without numbers."""
    return torch.empty(1, 3, *preprocess["size"], device="meta", dtype=torch.float32)


def describe_preprocess(preprocess: Preprocess) -> str:
    """Returns what a sample is, in a few words."""
    height, width = preprocess["size"]
    return f"images {height} x {width}"


def _choice(values: Mapping[str, Any], key: str) -> str:
    known = CHOICES[key]
    value = values.get(key, known[0])
    if value not in known:
        hint = nearest(str(value), known)
        raise MdftError(f"preprocess: {key!r} must be one of {list(known)}, got {value!r}{hint}")
    return str(value)


def _numbers(value: Any, count: int, key: str) -> list[float]:
    items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(items) == 1:
        items = items * count
    good = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in items)
    if not good or len(items) != count or not all(math.isfinite(v) for v in items):
        wanted = "one number" if count == 1 else f"one number or {count}"
        raise MdftError(f"preprocess: {key!r} must be {wanted}, got {value!r}")
    return [float(v) for v in items]
