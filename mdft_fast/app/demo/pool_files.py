# SPDX-License-Identifier: Apache-2.0
"""Writes the demo's checkpoints as files, and recognizes a finished folder of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from mdft_fast.app.demo.demo_tasks import DemoTask
from mdft_fast.app.demo.glyphs import SIZE
from mdft_fast.errors import MdftError
from mdft_fast.files import write_json, write_text

STAMP = "demo.json"  # builder, sizes, measured accuracies, and the length of every other file
NOTES = "checkpoints.json"  # what `mdft init` reads of a folder of checkpoints

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
    """Writes ``checkpoints.json`` and ``recipe.yaml``: notes for a program, and the demo's run."""
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
    write_json(folder / NOTES, manifest)
    recipe = _RECIPE_HEAD.format(kwargs=json.dumps(dict(tower)), size=SIZE)
    recipe += "".join(_RECIPE_TASK.format(name=part.task.name) for part in parts)
    write_text(folder / "recipe.yaml", recipe + "seed: 0\n")


def finish(folder: Path, stamp: Mapping[str, Any], accuracy: Mapping[str, float]) -> None:
    """Writes the stamp, last of all files."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"builder": stamp, "accuracy": accuracy, "bytes": sizes}
    write_json(folder / STAMP, content)


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
