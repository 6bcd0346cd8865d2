# SPDX-License-Identifier: Apache-2.0
"""The key ``start``: numbers, or the merge that λ starts from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, SkipValidation

from mdft_fast.app.recipe.value_types import Wanted, problem, quoted
from mdft_fast.errors import MdftError, nearest
from mdft_fast.methods import METHODS, Method, merge_of

_METHOD = "method"  # the key of a mapping that names the merge; the others are its fields


def _read(value: Any) -> float | tuple[float, ...] | Method | None:
    """Returns what the recipe holds; None for what is neither numbers nor a merge."""
    if isinstance(value, Method):
        return value
    if isinstance(value, (str, Mapping)):
        return _merge(value)
    items = value if isinstance(value, (list, tuple)) else [value]
    if not items or not all(type(v) in (int, float) and math.isfinite(v) for v in items):
        return None
    return float(value) if items is not value else tuple(float(v) for v in items)


def _merge(value: str | Mapping[str, Any]) -> Method:
    fields = {} if isinstance(value, str) else dict(value)
    name = value if isinstance(value, str) else fields.pop(_METHOD, None)
    if name is None:
        hint = nearest(str(next(iter(fields), "")), [_METHOD])
        raise problem(f"{_METHOD}: is missing, got {sorted(map(str, fields))}{hint}")
    if not isinstance(name, str) or name not in METHODS:
        merges = [known for known, method in METHODS.items() if method.kind == "merge"]
        hint = nearest(str(name), merges)
        raise problem(f"must be numbers or a merge's name, of {merges}, got {quoted(name)}{hint}")
    try:
        return merge_of({name: fields}, METHODS)
    except MdftError as error:
        raise problem(str(error)) from None


def start_value(start: float | tuple[float, ...] | Method) -> Any:
    """Returns plain values that read back as the same start; of a merge every field but null."""
    if isinstance(start, Method):
        fields = dataclasses.asdict(start)
        return {_METHOD: start.name, **{k: v for k, v in fields.items() if v is not None}}
    return list(start) if isinstance(start, tuple) else start


StartKey = Annotated[
    SkipValidation[float | tuple[float, ...] | Method],
    Wanted("one number, a list with one a vector, a merge's name or `{method: NAME, ...}`", _read),
    PlainSerializer(start_value),
]
