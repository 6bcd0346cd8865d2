# SPDX-License-Identifier: Apache-2.0
"""The recipe's ``transform``: methods by name, each with the fields of its dataclass as keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, SkipValidation

from mdft_fast.app.recipe.value_types import problem
from mdft_fast.errors import MdftError
from mdft_fast.methods import METHODS, Method, Transform, entry_of, method_of


def _transform(entry: Any) -> Transform:
    """Returns the method that an item of ``transform`` names."""
    try:
        method = entry if isinstance(entry, Method) else method_of(entry, METHODS)
    except MdftError as error:
        raise problem(str(error)) from None
    if not isinstance(method, Transform):
        raise problem(f"{method.name}: must be a transform, K vectors in and K out, got a merge")
    return method


_Transform = Annotated[Transform, SkipValidation, BeforeValidator(_transform)]
Transforms = Annotated[
    tuple[Annotated[_Transform, PlainSerializer(entry_of)], ...], Field(strict=False)
]
