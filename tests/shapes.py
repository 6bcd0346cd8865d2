# SPDX-License-Identifier: Apache-2.0
"""Executes the shapes in the annotations of public functions, in the test run alone.

A call that succeeds must have had arguments and a result of the annotated shapes and dtypes, one
size a letter. One that is refused keeps its own error.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, get_type_hints

import jaxtyping
import torch
from beartype.door import is_bearable


def execute_annotations(room: ModuleType) -> None:
    """Puts checked functions in the place of a room's public ones, before anyone imports them."""
    for name in room.__all__:
        function = getattr(room, name)
        if inspect.isfunction(function):
            setattr(room, name, checked(function))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, and after each call that succeeds a look at its shapes."""
    hints, signature = get_type_hints(function, include_extras=True), inspect.signature(function)
    lists = {p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL}

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if not torch.compiler.is_compiling():
            values = {**signature.bind(*args, **options).arguments, "return": result}
            with jaxtyping.jaxtyped("context"):
                for name, value in values.items():
                    for one in value if name in lists else [value]:
                        assert_is(one, hints.get(name, Any), f"{function.__name__}: {name}")
        return result

    return call


def assert_is(value: Any, hint: Any, what: str) -> None:
    """Refuses a value that its annotation does not describe."""
    shape = list(value.shape) if isinstance(value, torch.Tensor) else value
    assert is_bearable(value, hint), f"{what} must be {hint}, got {shape}"
