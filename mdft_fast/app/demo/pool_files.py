# SPDX-License-Identifier: Apache-2.0
"""Writes the demo's pool as files, recognizes a finished one, and moves it into place."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from mdft_fast.app.demo.demo_tasks import DemoTask
from mdft_fast.app.demo.glyphs import SIZE
from mdft_fast.errors import MdftError

STAMP = "demo.json"  # builder, sizes, measured accuracies, and the length of every other file
_STRAY_AGE_S = 24 * 3600  # a build takes minutes: older unfinished folders belong to nobody

_RECIPE_HEAD = """\
# The embedded demo, ready for `mdft run`. Everything it needs lies beside this file.
version: 1
preset: default
pool: {{base: base.safetensors, models: models}}
backbone: {{library: open_clip, name: VisionTransformer, kwargs: {kwargs}}}
preprocess: {{size: {size}, mean: 0.5, std: 0.5}}
tasks:
"""
_RECIPE_TASK = """\
  - name: {name}
    head: {{file: heads/{name}.safetensors, normalize: true}}
    adapt: {{npz: data/{name}.npz, x: x_unlabelled}}
    evaluate: {{npz: data/{name}.npz, x: x_test, y: y_test}}
"""


@dataclass(frozen=True)
class TaskFiles:
    """What is stored of one task."""

    task: DemoTask
    model: Mapping[str, Tensor]  # float16, the base's names
    head: Tensor  # [C, D] float16
    unlabelled: Tensor  # [n, S, S, 3] uint8
    test: Tensor  # [m, S, S, 3] uint8
    answers: Tensor  # [m] int64
    accuracy: dict[str, float]  # of the base ("pretrained") and of the model ("finetuned")


def write_task(folder: Path, part: TaskFiles) -> None:
    """Writes one task's model, head and images below ``folder``."""
    name = part.task.name
    for kind in ("models", "heads", "data"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    save_file(dict(part.model), folder / "models" / f"{name}.safetensors")
    save_file({"weight": part.head}, folder / "heads" / f"{name}.safetensors")
    np.savez_compressed(
        folder / "data" / f"{name}.npz",
        x_unlabelled=part.unlabelled.numpy(),
        x_test=part.test.numpy(),
        y_test=part.answers.numpy(),
        class_names=np.array(part.task.class_names),
    )


def _task_entry(part: TaskFiles) -> dict[str, Any]:
    return {
        "name": part.task.name,
        "classes": len(part.task.class_names),
        "unlabelled": len(part.unlabelled),
        "test": len(part.test),
        "accuracy_full_test": {key: round(value, 4) for key, value in part.accuracy.items()},
        "source": part.task.source,
        "info": part.task.info,
    }


def write_manifest(folder: Path, tower: Mapping[str, Any], parts: Sequence[TaskFiles]) -> None:
    """Writes ``pool.json`` and ``recipe.yaml``: the pool for a program, and the demo's run."""
    manifest = {
        "architecture": {"library": "open_clip", "name": "VisionTransformer", "kwargs": tower},
        "input": {
            "size": [SIZE, SIZE],
            "layout": "NHWC uint8",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "head": "logits = normalize(features) @ weight.T (scale 20 folded into weight), frozen",
        "base": "vision transformer trained on a plain mixture of the procedural tasks",
        "tasks": [_task_entry(part) for part in parts],
    }
    (folder / "pool.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    recipe = _RECIPE_HEAD.format(kwargs=json.dumps(dict(tower)), size=SIZE)
    recipe += "".join(_RECIPE_TASK.format(name=part.task.name) for part in parts)
    (folder / "recipe.yaml").write_text(recipe + "seed: 0\n", encoding="utf-8")


def finish(folder: Path, stamp: Mapping[str, Any], accuracy: Mapping[str, float]) -> None:
    """Writes the stamp, last of all files, and forces everything to the disk."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"builder": stamp, "accuracy": accuracy, "bytes": sizes}
    (folder / STAMP).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in sorted(folder.rglob("*")):
        _force(path)
    _force(folder)


def _force(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def holds(folder: Path, stamp: Mapping[str, Any]) -> bool:
    """Tells whether ``folder`` is a finished pool with this stamp and all of its files."""
    try:
        content = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        sizes = content["bytes"].items()
        return bool(content["builder"] == stamp) and all(
            (folder / name).stat().st_size == size for name, size in sizes
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def refuse_foreign(folder: Path) -> None:
    """Raises unless ``folder`` is absent, empty or an earlier demo, which may be replaced."""
    if folder.is_dir() and not ((folder / STAMP).is_file() or not any(folder.iterdir())):
        raise MdftError(f"demo: the folder must be new or hold an earlier demo, got {folder}")
    if folder.exists() and not folder.is_dir():
        raise MdftError(f"demo: the place of the demo must be a folder, got the file {folder}")


def remove_strays(folder: Path) -> None:
    """Removes what killed builds left beside ``folder`` more than a day ago."""
    for path in folder.parent.glob(f".{folder.name}.building-*"):
        if time.time() - path.stat().st_mtime > _STRAY_AGE_S:
            shutil.rmtree(path, ignore_errors=True)


def move_into_place(new: Path, folder: Path, aside: Path, done: Callable[[], bool]) -> None:
    """Renames ``new`` to ``folder``; an earlier demo there goes to ``aside`` first.

    When another process has put a finished pool there meanwhile, that one stays.
    """
    try:
        new.rename(folder)
    except OSError:
        if done():
            return
        folder.rename(aside)
        new.rename(folder)
    _force(folder.parent)
