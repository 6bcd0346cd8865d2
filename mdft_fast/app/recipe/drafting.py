# SPDX-License-Identifier: Apache-2.0
"""Writes a first recipe for a folder of checkpoints, every key with a comment."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdft_fast.app.recipe.discovery import find_head, find_models, find_samples, notes_of
from mdft_fast.app.recipe.error_lines import models_in
from mdft_fast.app.recipe.presets import PRESETS
from mdft_fast.app.recipe.recipe import UNKNOWN, Recipe
from mdft_fast.app.recipe.sections import Backbone, PoolSource, Preprocess, TaskRecipe
from mdft_fast.app.recipe.value_types import Section
from mdft_fast.app.recipe.yaml_text import render
from mdft_fast.checkpoints import OTHER, open_state
from mdft_fast.errors import MdftError
from mdft_fast.model import Recognized, recognize
from mdft_fast.options import first_sentence

_HEAD = """\
# A recipe for mdft. Relative paths start at this file. Check it, then:
#
#   mdft run {file}
#
# Lines that begin with "# " and a key show what holds anyway; take the "# " off to change it."""
# What the file must hold, or what is looked for in the folder; the others follow as comments.
_WRITTEN = ("version", "preset", "pool", "backbone", "preprocess", "tasks", "output")


def draft(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """Returns the text of a recipe for what a folder holds.

    Args:
        folder: ``base*.safetensors``, ``base*.pt``, ``zeroshot.pt`` or a folder ``base*`` of
            transformers or open_clip, and the fine-tuned models, beside it or in ``models/``, as
            files, folders or LoRA adapters; if they are there, ``heads/<task>.safetensors`` or
            ``head_<Task>.pt``, ``data/<task>.npz``, images in ``data/<task>/`` or ``<task>/``, and
            ``checkpoints.json``.
        target: the file that the text is for; paths are relative to its folder.

    Raises:
        MdftError: if there is no base or no model, or one of the files is not readable.

    What cannot be found out says ``CHANGE_ME``, with a comment. No file is written, no weight read.
    """
    folder, target = Path(folder).absolute(), Path(target).absolute()
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise MdftError(f"{folder}: must be a folder of checkpoints, got {got}")
    notes = notes_of(folder)
    if (folder / "tau.safetensors").is_file():  # a packed pool
        names = [task["name"] for task in notes.get("tasks", [])]
        source = [
            _section_line(Recipe, "pool"),
            _key_line(PoolSource, "folder", _path(folder, target), "  "),
        ]
    else:
        base, inside, models = find_models(folder)
        names = _in_order(models, notes)
        source = [
            _section_line(Recipe, "pool"),
            _key_line(PoolSource, "base", _path(base, target), "  "),
            _key_line(PoolSource, "models", _path(inside, target), "  "),
            *_architecture(base, notes),
        ]
    tasks: list[str] = []
    for name in names:
        lines = _task(folder, name, target, notes)
        tasks += lines if name == names[0] else [line for line in lines if not _is_remark(line)]
    return "\n".join([
        _HEAD.format(file=target.name),
        _key_line(Recipe, "version", 1),
        _key_line(Recipe, "preset", "default"),
        *source,
        _section_line(Recipe, "tasks"),
        *tasks,
        *_unchanged(Recipe, PRESETS["default"], ""),
        _key_line(Recipe, "output", f"runs/{target.stem}"),
        "",
    ])  # fmt: skip


def _in_order(names: Sequence[str], notes: Mapping[str, Any]) -> list[str]:
    known = [task["name"] for task in notes.get("tasks", [])]
    return sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))


def _architecture(base: Path, notes: Mapping[str, Any]) -> Iterator[str]:
    """Yields backbone and preprocess, by the folder's notes or else by the base."""
    opened = open_state(base)
    built = notes.get("architecture", {})
    if built:
        model = Recognized(built.get("library", "timm"), built.get("name"), built.get("kwargs", {}))
    else:
        model = recognize(base, opened) or Recognized("timm", None)
    kwargs = {key: UNKNOWN if value is None else value for key, value in model.kwargs.items()}
    yield _section_line(Recipe, "backbone")
    yield _key_line(Backbone, "library", model.library, "  ")
    yield _key_line(Backbone, "name", model.name or UNKNOWN, "  ", "" if model.name else model.note)
    yield _key_line(Backbone, "kwargs", kwargs, "  ", model.note if model.name else "")
    yield from _preprocess(base.name, opened.facts.preprocess(), notes.get("input", {}))


def _preprocess(base: str, told: Mapping[str, Any], noted: Mapping[str, Any]) -> Iterator[str]:
    """Yields the section, as a comment where the base tells all of it by itself."""
    keys = Preprocess.model_fields
    needed = {key for key, field in keys.items() if field.is_required()}
    if told.keys() >= needed and OTHER not in told.values():
        yield _line(f"# preprocess: {_value(told)}", f"as {base} says, where a run finds it")
        return
    yield _section_line(Recipe, "preprocess")
    for key in keys:
        if told.get(key) == OTHER:
            comment = f"{_choices(Preprocess, key)}; {base} has another way"
            yield _key_line(Preprocess, key, UNKNOWN, "  ", comment)
        elif key in told:
            yield _key_line(Preprocess, key, told[key], "  ", f"as {base} says")
        elif key in needed:
            yield _key_line(Preprocess, key, noted.get(key, UNKNOWN), "  ")


def _task(folder: Path, name: str, target: Path, notes: Mapping[str, Any]) -> Iterator[str]:
    known = find_head(folder, name)
    yield _remark("name", "  ")
    yield f"  - name: {_value(name)}"
    if not (folder / "tau.safetensors").is_file():  # a packed pool holds its heads
        head: dict[str, Any] = {"file": known[0] if known else UNKNOWN}
        if known is None or known[1].normalize is None:  # task_vectors' heads know it themselves
            head["normalize"] = "normalize(" in str(notes["head"]) if "head" in notes else UNKNOWN
        yield _remark("head")
        yield f"    head: {_flow(head, target)}"
    rows = known[1].tensors.get("weight") if known else None
    classes = len(rows) if rows is not None and rows.dim() else None
    adapt, test = find_samples(folder, name, classes)
    adapt = adapt or {"npz": UNKNOWN, "x": UNKNOWN}
    yield _remark("adapt")
    yield f"    adapt: {_flow(adapt, target)}  # or {{torchvision: ...}}, {{hf: ...}}"
    yield _remark("evaluate")
    if test:
        yield f"    evaluate: {_flow(test, target)}"
    else:
        yield f"    # evaluate: {{npz: {UNKNOWN}, x: x_test, y: y_test}}"


def _remark(key: str, indent: str = "    ") -> str:
    return f"{indent}# {first_sentence(TaskRecipe.words(key))}"


def _flow(mapping: Mapping[str, Any], target: Path) -> str:
    """Returns a mapping on one line, paths relative to the recipe."""
    written = {
        key: _path(value, target)
        if isinstance(value, Path)
        else UNKNOWN
        if value is None
        else value
        for key, value in mapping.items()
    }
    return _value(written)


def _is_remark(line: str) -> bool:
    text = line.strip()
    return text.startswith("#") and not text.startswith("# evaluate: {")


def _unchanged(section: type[Section], preset: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yields the keys that a folder says nothing of, each with the value that holds anyway."""
    for key, field in section.model_fields.items():
        if section is Recipe and key in _WRITTEN:
            continue
        inner = next(models_in(field.annotation), None)
        held = preset.get(key, field.default)
        if inner is not None:
            yield _section_line(section, key, indent)
            values = held.model_dump() if isinstance(held, Section) else held
            yield from _unchanged(inner, values, f"{indent}  ")
        else:
            value = list(held) if isinstance(held, tuple) else held
            yield _key_line(section, key, value, f"{indent}# ")


def _section_line(section: type[Section], key: str, indent: str = "") -> str:
    inner = next(models_in(section.model_fields[key].annotation))
    words = section.words(key) or inspect.cleandoc(inner.__doc__ or "").partition("\n")[0]
    words = first_sentence(words).removesuffix(".")
    return _line(f"{indent}{key}:", words[0].lower() + words[1:])


def _key_line(
    section: type[Section], key: str, value: Any, indent: str = "", comment: str = ""
) -> str:
    meaning, choices = first_sentence(section.words(key)), _choices(section, key)
    if not comment:
        named = all(str(choice) in meaning for choice in section.choices(key))
        comment = meaning if named else f"{meaning}: {choices}"
    return _line(f"{indent}{key}: {_value(value)}", comment)


def _choices(section: type[Section], key: str) -> str:
    """Returns ``a, b or c`` for a key of few values."""
    *others, last = [str(value) for value in section.choices(key)] or [""]
    return f"{', '.join(others)} or {last}" if others else ""


def _line(text: str, comment: str) -> str:
    return f"{text:<25}  # {comment}"


def _path(path: Path, target: Path) -> str:
    return Path(os.path.relpath(path, target.parent)).as_posix()


def _value(value: Any) -> str:
    """Returns a value as YAML on one line, fit for a flow mapping."""
    return render([value], one_line=True).strip()[1:-1]
