# SPDX-License-Identifier: Apache-2.0
"""The tables of keys in docs/recipes.md, made of the sections: types, defaults and meanings.

``python scripts/keys_page.py`` writes them; tests/app/recipe/test_keys_page.py compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from annotated_types import Interval

from mdft_fast.app.recipe.error_lines import models_in
from mdft_fast.app.recipe.presets import PRESETS
from mdft_fast.app.recipe.recipe import Recipe
from mdft_fast.app.recipe.value_types import Section
from mdft_fast.errors import MdftError
from mdft_fast.files import write_text
from mdft_fast.options import kind_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
# Where a page says more of a key, or of a section's first key.
_MORE = {
    "pool.base": "[checkpoints](checkpoints.md)",
    "pool.models": "[checkpoints](checkpoints.md#what-is-read)",
    "backbone.name": "[backbones of transformers](checkpoints.md#backbones-of-transformers)",
    "preprocess.size": "[what checkpoints say](checkpoints.md#right-not-only-loaded)",
    "tasks[].head.zero_shot.model": "[heads](heads.md)",
    "tasks[].head.prototypes.npz": "[heads](heads.md)",
    "tasks[].adapt.npz": "[data](data.md)",
    "transform": "[methods](methods.md)",
    "start": "[a merge as a start](methods.md#a-merge-as-a-start)",
    "memory.mode": "[memory](memory.md)",
    "duplicates": "[splits](data.md#splits)",
    "specialize.representation": "equation (7) in [method](method.md)",
    "specialize.control": "[the control](method.md#the-control)",
}
_BLOCK = re.compile(r"(?<=<!-- keys:begin -->\n\n).*?(?=\n<!-- keys:end -->)", re.DOTALL)
_NAMES = {Path: "path", str: "text", bool: "`true`, `false`", int: "whole number", float: "number"}


def keys_of(section: type[Section], above: str = "") -> Iterator[tuple[str, type[Section], str]]:
    """Yields every key as the page writes it, and its section and name there."""
    for key, field in section.model_fields.items():
        inner = next(models_in(field.annotation), None)
        if inner is not None:
            many = "[]" if "tuple" in str(field.annotation) else ""
            yield from keys_of(inner, f"{above}{key}{many}.")
        else:
            yield f"{above}{key}", section, key


def tables() -> str:
    """Returns both tables: keys with one default, and keys that the presets hold."""
    rows = {key: (section, name) for key, section, name in keys_of(Recipe)}
    held = {key for key in rows if key.split(".")[0] in PRESETS["default"]}
    presets = " | ".join(f"`{name}`" for name in PRESETS)
    return "\n".join([
        "| key | type | default | meaning |",
        "| :-- | :-- | :-- | :-- |",
        *(_row(key, *at, [_default(key, *at)]) for key, at in rows.items() if key not in held),
        "",
        "The presets hold these keys; the recipe's own values go over them one by one.",
        "",
        f"| key | type | {presets} | meaning |",
        "| :-- | :-- |" + " :-- |" * (len(PRESETS) + 1),
        *(_row(key, *at, _of_presets(key)) for key, at in rows.items() if key in held),
        "",
    ])  # fmt: skip


def page(content: str) -> str:
    """Returns docs/recipes.md with its tables made anew."""
    if not _BLOCK.search(content):
        raise MdftError("keys page: must hold keys:begin and keys:end")
    return _BLOCK.sub(lambda _: tables(), content)


def _row(key: str, section: type[Section], name: str, defaults: Iterable[str]) -> str:
    meaning = section.words(name)
    if key in _MORE:
        meaning = f"{meaning}; see {_MORE[key]}"
    cells = [f"`{key}`", _type(section, name), *defaults, meaning]
    return f"| {' | '.join(cells)} |"


def _default(key: str, section: type[Section], name: str) -> str:
    field = section.model_fields[name]
    if key == "output":
        return "`runs/<name of the recipe's file>`"
    if field.is_required():
        return "–"  # noqa: RUF001
    return f"`{_shown(field.get_default(call_default_factory=True))}`"


def _of_presets(key: str) -> Iterator[str]:
    for preset in PRESETS.values():
        value: Any = preset
        for part in key.split("."):
            value = value[part]
        yield f"`{_shown(value)}`"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(held)}' for key, held in value.items())}}}"
    return "[]" if value == () else str(value)


def _type(section: type[Section], name: str) -> str:
    """Returns words for what a key may hold; null apart, which its default says."""
    if choices := section.choices(name):
        return ", ".join(f"`{value}`" for value in choices)
    if wanted := section.wanted(name):
        words = wanted.words.replace(" (quote a bare number)", "").removeprefix("one ")
        return f"`{words}`" if "<" in words else words
    kind = kind_of(section.annotation(name))
    if kind.type in (int, float) and kind.interval != Interval():
        words = kind.wanted().removeprefix("a ").removeprefix("finite ")
        return words if "number" in words else f"number {words}"
    if get_origin(kind.type) is tuple:
        item = kind_of(get_args(kind.type)[0]).type
        return {str: "list of text", int: "list of whole numbers"}.get(item, "list of methods")
    return _NAMES.get(kind.type, "mapping")


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
