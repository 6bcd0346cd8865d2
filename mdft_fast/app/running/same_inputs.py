# SPDX-License-Identifier: Apache-2.0
"""Whether a run goes on with what it began with: its recipe by keys, its inputs by digests.

Paths decide nothing: a folder may have been moved. What lies at them is compared by content.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdft_fast.app.recipe import Recipe, leaves
from mdft_fast.errors import MdftError
from mdft_fast.files import read_text, write_json
from mdft_fast.json_checksums import CHECKSUM, check_content, content_checksum, with_checksum

RECIPE = "recipe.yaml"
SPLITS = "splits.json"
_OLDER = ("pool", "tasks")  # keys of versions that wrote no checksum


def write_inputs(folder: Path, recipe: Recipe, inputs: Mapping[str, Any]) -> str:
    """Writes what a run starts from; returns what names it: a digest of recipe and inputs."""
    content = with_checksum({**inputs, "recipe": _digest(recipe)})
    write_json(folder / SPLITS, content)
    return str(content[CHECKSUM])


def check_inputs(folder: Path, inputs: Mapping[str, Any]) -> str:
    """Refuses inputs that are not those which the run in a folder was started with.

    Args:
        folder: the run's.
        inputs: as :func:`write_inputs` takes them; tasks may be some of the run's.

    Returns:
        What names the run's recipe and inputs.
    """
    before = _read(folder / SPLITS)
    tasks = {task["name"]: task for task in before.get("tasks", [])}
    pairs = [("pool", before.get("pool"), inputs["pool"])]
    for task in inputs["tasks"]:
        first = tasks.get(task["name"], {})
        for key in sorted(task.keys() | first.keys()):
            pairs.append((f"{task['name']}: {key}", first.get(key), task.get(key)))
    for key, was, now in pairs:
        if _without_paths(was) != _without_paths(now):
            raise MdftError(
                f"{folder}: {key} must be what the run was started with ({SPLITS}), got a "
                f"changed one"
            )
    return content_checksum(before)


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuses a recipe that is not the one which the run in a folder was started with.

    ``recipe.yaml`` itself must be as it was written, where ``splits.json`` says how.
    """
    written = folder / RECIPE
    before = Recipe.load(written)
    old, new = settings(before), settings(recipe)
    if old != new:
        key = min(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        raise MdftError(
            f"{folder}: the recipe must be the one that the run was started with "
            f"({written.name}), got another {key}: {new.get(key)!r} in place of {old.get(key)!r}"
        )
    if (folder / SPLITS).exists():
        digest = _read(folder / SPLITS).get("recipe")
        if digest not in (None, _digest(before)):  # None: of an older version
            raise MdftError(f"{written}: changed since the run was started ({SPLITS} says so)")


def settings(recipe: Recipe, *, defaults: bool = True) -> dict[str, Any]:
    """Returns a recipe's values that are no paths, by key.

    Args:
        recipe: whose.
        defaults: also those that a recipe holds where it is silent, which a later version may add.
    """
    paths = {key for key, value in leaves(recipe.model_dump()) if isinstance(value, Path)}
    plain = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=not defaults)
    return {key: value for key, value in leaves(plain) if key not in paths}


def _digest(recipe: Recipe) -> str:
    # Without defaults: a later version's new keys make no other recipe.
    text = json.dumps(settings(recipe, defaults=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise MdftError(f"{path}: not readable: {error}") from None
    check_content(path, content, _OLDER)
    return dict(content)


def _without_paths(value: Any) -> Any:
    """Returns what is said of a source without where it lies: its images are compared too."""
    if not isinstance(value, Mapping):
        return value
    return {k: v for k, v in value.items() if not (isinstance(v, str) and os.path.isabs(v))}
