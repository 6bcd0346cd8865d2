# SPDX-License-Identifier: Apache-2.0
"""Turns what pydantic found wrong into lines that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from mdft_fast.app.recipe.value_types import Section, quoted
from mdft_fast.errors import MdftError, nearest
from mdft_fast.options import kind_of

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "none_required": "null",
}
_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
Path = tuple[int | str, ...]


class RecipeError(MdftError):
    """A recipe that cannot be followed.

    Attributes:
        problems: what is wrong, ``path: message`` each.
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        """Joins the problems, one a line where there are several."""
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(f"{where}: {self.problems[0]}")
        else:
            lines = "".join(f"\n  {line}" for line in self.problems)
            super().__init__(f"{where}: {len(self.problems)} problems{lines}")


def recipe_error(where: str, error: ValidationError, root: type[Section]) -> RecipeError:
    """Returns the error to raise for what pydantic found.

    Args:
        where: the recipe's file, or other words for it.
        error: pydantic's.
        root: the model that was validated; its fields are the known keys.
    """
    items = [dict(item) for item in error.errors(include_url=False)]
    renamed = set(_meant(items, root))
    problems: list[str] = []
    for item in items:
        if item["type"] == "missing" and item["loc"] in renamed:
            continue  # the unknown key beside it says what was meant
        problems += [line for line in _lines(item, root) if line not in problems]
    return RecipeError(where, problems)


def dotted(path: Path) -> str:
    """Returns ``tasks[0].head.file`` for ("tasks", 0, "head", "file")."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.removeprefix(".")


def _lines(item: dict[str, Any], root: type[Section]) -> list[str]:
    path, words = item["loc"], _message(item, root)
    if item["type"] == "recipe" and not path:  # what does not hold between keys, each with its path
        return words.split("\n")
    return [f"{dotted(path) or 'recipe'}: {words}"]


def _message(item: dict[str, Any], root: type[Section]) -> str:
    path, kind, got = item["loc"], item["type"], item["input"]
    if kind == "recipe":
        return str(item["ctx"]["message"])
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        known = _keys(root, path[:-1])
        return f"unknown key{nearest(str(path[-1]), known) or f'; known are {known}'}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        known = _keys(root, path)
        return f"must be a mapping{f' of {known}' if known else ''}, got {quoted(got)}"
    if kind == "literal_error":
        choices = kind_of(_annotation(root, path)).choices
        wanted = f"one of {list(choices)}" if len(choices) > 1 else str(*choices)
        return f"must be {wanted}, got {quoted(got)}{nearest(str(got), map(str, choices))}"
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"must be {words} {item['ctx'][key]:.15g}, got {quoted(got)}"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, got {quoted(got)}"
    return f"{item['msg']}, got {quoted(got)}"


def _keys(root: type[Section], path: Path) -> list[str]:
    """Returns the known keys of the mapping at a path; none where any key is allowed."""
    return [name for model in models_in(_annotation(root, path)) for name in model.model_fields]


def _annotation(root: type[Section], path: Path) -> Any:
    """Returns the annotation of the key at a path; None where there is none."""
    annotation: Any = root
    for part in path:
        if isinstance(part, str):
            fields = [m.model_fields.get(part) for m in models_in(annotation)]
            annotation = next((field.annotation for field in fields if field), None)
    return annotation


def models_in(annotation: Any) -> Iterator[type[Section]]:
    """Yields the sections that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def _meant(items: Sequence[dict[str, Any]], root: type[Section]) -> Iterator[Path]:
    """Yields, for each unknown key, the path of the known key that it resembles most."""
    for item in items:
        if item["type"] == "extra_forbidden":
            *above, key = item["loc"]
            close = difflib.get_close_matches(str(key), _keys(root, tuple(above)), n=1, cutoff=0.4)
            yield from ((*above, name) for name in close)
