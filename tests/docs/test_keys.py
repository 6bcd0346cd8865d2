# SPDX-License-Identifier: Apache-2.0
"""The tables of keys in docs/recipes.md are the recipe's models and presets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from mdft_fast.app.recipe import PRESETS, Recipe
from tests.docs.pages import DOCS, rows

PAGE = DOCS / "recipes.md"
PLAIN = "| key | type | default | meaning |"
PRESET = "| key | type | `default` | `paper` | `adamerging` | `entropy` | meaning |"


def walk(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key of a model as the page writes it, with its field."""
    for name, field in model.model_fields.items():
        inner = list(models(field.annotation))
        if inner:
            many = "tuple" in str(field.annotation)
            yield from walk(inner[0], f"{above}{name}{'[]' if many else ''}.")
        else:
            yield f"{above}{name}", field


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models(inner)


def as_text(value: Any) -> str:
    """Returns a default as the page writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return {(): "[]", (("dict",),): "{}"}.get(value, str(value))


def test_every_key_is_documented_and_no_other() -> None:
    documented = [row[0].strip("`") for row in (*rows(PAGE, PLAIN), *rows(PAGE, PRESET))]
    assert len(documented) == len(set(documented))
    assert set(documented) == {key for key, _ in walk(Recipe)}


def test_plain_defaults_are_the_models() -> None:
    fields = dict(walk(Recipe))
    for key, _, default, _ in rows(PAGE, PLAIN):
        name, field = key.strip("`"), fields[key.strip("`")]
        if name == "output":
            continue  # made of the recipe's name
        if field.default_factory is not None:
            expected = "`{}`"
        else:
            expected = "–" if field.is_required() else f"`{as_text(field.default)}`"  # noqa: RUF001
        assert default == expected, name


def test_preset_columns_are_the_presets() -> None:
    table = rows(PAGE, PRESET)
    assert [name.strip("`") for name in PRESET.split(" | ")[2:-1]] == list(PRESETS)
    for key, _, *cells, _ in table:
        for cell, preset in zip(cells, PRESETS.values(), strict=True):
            value: Any = preset
            for part in key.strip("`").split("."):
                value = value[part]
            assert cell == f"`{as_text(value)}`", f"{key}: write `{as_text(value)}` there"
    assert len(table) == sum(1 for _ in leaves(PRESETS["default"]))


def leaves(values: dict[str, Any]) -> Iterator[Any]:
    for value in values.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value
