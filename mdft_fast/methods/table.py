# SPDX-License-Identifier: Apache-2.0
"""What a table of methods says: to recipes, to `mdft methods` and to docs/methods.md."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from mdft_fast.errors import MdftError, nearest
from mdft_fast.methods.method import NEEDS, Method
from mdft_fast.options import Option, options

_BLOCK = re.compile(r"(?<=<!-- methods:begin -->\n\n).*?(?=\n<!-- methods:end -->)", re.DOTALL)
Table = Mapping[str, type[Method]]
_HEADER = ("method", "kind", "what it does", "fields", "needs", "source")


def method_of(entry: Any, methods: Table) -> Method:
    """Returns the method that a recipe's entry names.

    Args:
        entry: a name, which means its defaults, or ``{name: {field: value}}``.
        methods: the table.

    Raises:
        MdftError: if a name, a field or a value is none; it says the nearest.
    """
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise MdftError(f"must be a method's name or {{name: {{field: value}}}}, got {entry!r}")
    ((name, values),) = entry.items()
    if name not in methods:
        known = f"must be one of {list(methods)}, got {name!r}"
        raise MdftError(f"{known}{nearest(str(name), methods)}")
    values = {} if values is None else values
    fields = {option.name: option for option in options(methods[name])}
    if not isinstance(values, Mapping):
        raise MdftError(f"{name}: must be a mapping of {list(fields)}, got {values!r}")
    for key in values:
        if key not in fields:
            known = nearest(str(key), fields) or f"; known are {list(fields)}"
            raise MdftError(f"{name}.{key}: unknown key{known}")
    for option in fields.values():
        if option.default is dataclasses.MISSING and option.name not in values:
            raise MdftError(f"{name}.{option.name}: is missing")
    return methods[name](**values)


def entry_of(method: Method) -> dict[str, dict[str, Any]]:
    """Returns the recipe's entry for a method, with every field."""
    return {method.name: dataclasses.asdict(method)}


def summary(method: type[Method]) -> str:
    """Returns what a method does, the first line of its docstring, without the full stop."""
    return inspect.cleandoc(method.__doc__ or "").split("\n")[0].removesuffix(".")


def needs(method: type[Method]) -> str:
    """Returns what a method needs beside the vectors of one tensor, in words."""
    return ", ".join(NEEDS[need] for need in method.needs)


def describe_field(option: Option) -> str:
    """Returns ``density: 0.2, share of the elements that each vector keeps``."""
    default = "must be given" if option.default is dataclasses.MISSING else f"{option.default}"
    return f"{option.name}: {default}, {option.meaning}"


def table_of(methods: Table) -> str:
    """Returns the table of docs/methods.md."""
    body = [
        (
            f"`{name}`",
            method.kind,
            summary(method),
            "<br>".join(describe_field(option) for option in options(method)),
            needs(method),
            method.source,
        )
        for name, method in methods.items()
    ]
    lines = [_HEADER, ("---",) * len(_HEADER), *body]
    return "".join(f"| {' | '.join(cell or '–' for cell in line)} |\n" for line in lines)  # noqa: RUF001


def page(content: str, methods: Table) -> str:
    """Returns docs/methods.md with its table made anew."""
    if not _BLOCK.search(content):
        raise MdftError("methods page: must hold methods:begin and methods:end, got neither")
    return _BLOCK.sub(lambda _: table_of(methods), content)
