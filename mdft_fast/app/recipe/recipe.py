# SPDX-License-Identifier: Apache-2.0
"""The recipe as a whole: reading, checking, writing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mdft_fast.app.recipe.document import Keys, complaint
from mdft_fast.app.recipe.error_lines import RecipeError, recipe_error
from mdft_fast.app.recipe.moved_folder import where_it_lies_now
from mdft_fast.app.recipe.presets import PRESETS, merged
from mdft_fast.app.recipe.sample_sections import AdaptData
from mdft_fast.app.recipe.sections import TaskRecipe
from mdft_fast.app.recipe.value_types import quoted
from mdft_fast.app.recipe.yaml_text import leaves, parse, render
from mdft_fast.checkpoints import find_checkpoint
from mdft_fast.errors import nearest
from mdft_fast.files import read_text, write_text

UNKNOWN = "CHANGE_ME"
_THERE = {"file": Path.is_file, "folder": Path.is_dir, "file or folder": Path.exists}


class Recipe(Keys):
    """Everything that a run reads, does and writes. Read one with :meth:`load`."""

    @staticmethod
    def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
        """Reads a recipe's file.

        Args:
            path: a YAML file. Relative paths inside, overrides included, start at its folder.
            overrides: ``key=value`` each, as in ``construct.steps=50``; values are YAML.

        Raises:
            RecipeError: naming the file and every key that is wrong.
        """
        file = Path(path)
        try:
            content = parse(read_text(file))
        except OSError as error:
            raise RecipeError(str(file), [f"not readable: {error.strerror}"]) from None
        except ValueError as error:  # no YAML, or not UTF-8
            raise RecipeError(str(file), [str(error)]) from None
        if not isinstance(content, dict):
            raise RecipeError(str(file), ["must be a mapping of keys, see `mdft init`"])
        content = where_it_lies_now(content, file.absolute().parent)
        content.setdefault("output", f"runs/{file.stem}")
        try:
            _override(content, overrides)
        except ValueError as error:
            raise RecipeError("--set", [str(error)]) from None
        return Recipe.from_mapping(content, folder=file.parent, where=str(file))

    @staticmethod
    def from_mapping(
        content: Mapping[str, Any], *, folder: str | os.PathLike[str] = ".", where: str = "recipe"
    ) -> Recipe:
        """Checks a recipe's content, with the preset's values under it.

        Args:
            content: what the YAML file would hold; null is the same as absent. Not changed.
            folder: relative paths start here.
            where: words for the content, for errors.
        """
        preset = content.get("preset", "default")
        if not isinstance(preset, str) or preset not in PRESETS:
            hint = nearest(str(preset), PRESETS)
            problem = f"preset: must be one of {list(PRESETS)}, got {preset!r}{hint}"
            raise RecipeError(where, [problem])
        unknown = [f"{key}: still says {UNKNOWN}" for key in unknown_keys(content)]
        if unknown:
            raise RecipeError(where, unknown)
        written = {key: value for key, value in content.items() if value is not None}
        filled = merged(PRESETS[preset], written)
        try:
            return Recipe.model_validate(filled, context={"folder": Path(folder).resolve()})
        except ValidationError as error:
            raise recipe_error(where, error, Recipe) from None

    @property
    def specialized(self) -> tuple[str, ...]:
        """Names of the tasks that stage 2 specializes for."""
        chosen = self.specialize.tasks
        if chosen == "all":
            return tuple(task.name for task in self.tasks)
        return () if chosen == "none" else tuple(chosen)

    def dump(self) -> str:
        """Returns YAML with every key and absolute paths; loading it gives an equal recipe."""
        return render(self.model_dump(mode="json", exclude_none=True))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`dump` to a file that appears whole or not at all."""
        write_text(path, self.dump())

    def check_files(self, *, pool_alone: bool = False) -> None:
        """Raises a :class:`RecipeError` that lists every input that is not there.

        Names alone are looked at: of files, of an npz file's arrays, of a data set's images.

        Args:
            pool_alone: looks for the pool's files only, not for heads and samples.
        """
        tasks = () if pool_alone else self.tasks
        missing = [
            f"{key}: no such {kind}: {path}"
            for key, kind, path in self._inputs(tasks)
            if path and not _THERE[kind](path)
        ]
        missing += [*self._without_model(), *_incomplete(tasks)]
        if missing:
            raise RecipeError("recipe", missing)

    def _inputs(self, tasks: Sequence[TaskRecipe]) -> Iterator[tuple[str, str, Path | None]]:
        """Yields what must be there, if it is named: key, kind and path, see ``_THERE``."""
        yield "pool.base", "file or folder", self.pool.base
        yield "pool.models", "folder", self.pool.models
        yield "pool.folder", "folder", self.pool.folder
        for i, task in enumerate(tasks):
            if task.head:
                clip = task.head.zero_shot
                yield f"tasks[{i}].head.file", "file", task.head.file
                yield f"tasks[{i}].head.zero_shot.weights", "file", clip.weights if clip else None
            for part, data in _data_of(task).items():
                for key, kind, path in data.places():
                    yield f"tasks[{i}].{part}.{key}", kind, path

    def _without_model(self) -> Iterator[str]:
        """Yields the tasks of which a folder of models that is there has none."""
        folder = self.pool.models
        if folder and folder.is_dir():
            for task in self.tasks:
                yield from complaint(partial(find_checkpoint, folder, task.name), "pool.models: ")


def _data_of(task: TaskRecipe) -> dict[str, AdaptData]:
    """Returns a task's sources of samples, by key."""
    shots = task.head.prototypes if task.head else None
    parts = {"adapt": task.adapt, "evaluate": task.evaluate, "head.prototypes": shots}
    return {key: data for key, data in parts.items() if data}


def _incomplete(tasks: Sequence[TaskRecipe]) -> Iterator[str]:
    """Yields what is wrong with samples that are there."""
    for i, task in enumerate(tasks):
        for key, data in _data_of(task).items():
            if all(_THERE[kind](path) for _, kind, path in data.places()):
                yield from complaint(data.check_source, f"tasks[{i}].{key}: ")


def unknown_keys(content: Any) -> list[str]:
    """Returns the keys that hold what `mdft init` writes where it does not know."""
    return [key for key, value in leaves(content) if value == UNKNOWN]


def _override(content: dict[str, Any], assignments: Sequence[str]) -> None:
    """Sets keys of a recipe's content, in place.

    Args:
        content: the recipe as read; mappings that a path names and that are absent are made.
        assignments: ``path=value`` each: keys joined by dots, an item of a list as ``tasks[0]``;
            the value is YAML.

    Raises:
        ValueError: if an assignment is malformed or leads nowhere.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        parts = re.findall(r"[^.\[\]]+", path.strip())
        if not equals or not parts:
            raise ValueError(f"{assignment!r}: must be key=value, as in construct.steps=50")
        try:
            _set(content, parts, parse(text))
        except ValueError as error:
            raise ValueError(f"{assignment!r}: {error}") from None


def _set(holder: Any, parts: list[str], value: Any) -> None:
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(holder, list):
            if not part.isdecimal() or int(part) >= len(holder):
                known = f"a number from 0 to {len(holder) - 1}"
                raise ValueError(f"{'.'.join(parts[:depth])} is a list: {part!r} must be {known}")
            key: Any = int(part)
        elif isinstance(holder, dict):
            key = part
            if not last and holder.get(key) is None:
                holder[key] = {}
        else:
            raise ValueError(f"{'.'.join(parts[:depth])} is no mapping but {quoted(holder)}")
        if last:
            holder[key] = value
        else:
            holder = holder[key]
