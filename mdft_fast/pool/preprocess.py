# SPDX-License-Identifier: Apache-2.0
"""How an image becomes the backbone's input: size, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from mdft_fast.errors import MdftError, nearest

_KEYS = ("size", "mean", "std")


class Preprocess(TypedDict):
    """A plain dict, so that it goes into ``pool.json`` as it is.

    Attributes:
        size: ``[H, W]`` in pixels.
        mean: one number a channel, on the scale [0, 1].
        std: one number a channel, on the scale [0, 1]; above 0.
    """

    size: list[int]
    mean: list[float]
    std: list[float]


def as_preprocess(given: Mapping[str, Any]) -> Preprocess:
    """Returns ``size``, ``mean`` and ``std`` in full, or says what is wrong with them.

    Args:
        given: ``size``: one number or [H, W]; ``mean`` and ``std``: one number or three.
    """
    if not isinstance(given, Mapping):
        raise MdftError(f"preprocess: must be a mapping with keys {list(_KEYS)}, got {given!r}")
    for key in given:
        if key not in _KEYS:
            raise MdftError(
                f"preprocess: keys must be {list(_KEYS)}, got {key!r}{nearest(str(key), _KEYS)}"
            )
    for key in _KEYS:
        if key not in given:
            raise MdftError(f"preprocess: {key!r} is missing, got {sorted(given)}")
    size = _numbers(given["size"], 2, "size")
    if any(value < 1 or value != int(value) for value in size):
        raise MdftError(f"preprocess: 'size' must be whole pixels above 0, got {given['size']!r}")
    std = _numbers(given["std"], 3, "std")
    if any(value <= 0 for value in std):
        raise MdftError(f"preprocess: 'std' must be above 0, got {given['std']!r}")
    mean = _numbers(given["mean"], 3, "mean")
    return {"size": [int(value) for value in size], "mean": mean, "std": std}


def _numbers(value: Any, count: int, key: str) -> list[float]:
    items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(items) == 1:
        items = items * count
    good = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in items)
    if not good or len(items) != count or not all(math.isfinite(v) for v in items):
        raise MdftError(f"preprocess: {key!r} must be one number or {count}, got {value!r}")
    return [float(v) for v in items]
