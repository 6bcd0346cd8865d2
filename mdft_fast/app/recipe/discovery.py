# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of checkpoints: base, models, classifiers, samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mdft_fast.checkpoints import (
    SUFFIXES,
    State,
    deeper_ones,
    find_checkpoint,
    find_tasks,
    open_state,
    read_json,
    sniff,
    stem_of,
)
from mdft_fast.data import FolderSource, Role, npz_keys
from mdft_fast.errors import MdftError
from mdft_fast.pool import TASK_NAME_FORM, is_task_name

_UNLABELLED = ("x_unlabelled", "x_unlabeled", "unlabelled", "x_train", "x", "images")
_UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
# The second: a packed pool's, or another program's notes on checkpoints under the same keys.
_NOTES = ("checkpoints.json", "pool.json")

# What a recipe's `adapt` or `evaluate` holds; nothing where none was found.
Draft = dict[str, Any]


def notes_of(folder: Path) -> dict[str, Any]:
    """Returns what ``checkpoints.json`` or ``pool.json`` says, where it is there; null: nothing."""
    path = next((folder / name for name in _NOTES if (folder / name).is_file()), None)
    if path is None:
        return {}
    notes: dict[str, Any] = _checked(path, "the file", read_json(path), dict)
    for key in ("architecture", "input"):
        _checked(path, key, notes.setdefault(key, {}), dict)
    for key, kind in (("library", str), ("name", str), ("kwargs", dict)):
        if key in notes["architecture"]:
            _checked(path, f"architecture.{key}", notes["architecture"][key], kind)
    for i, task in enumerate(_checked(path, "tasks", notes.setdefault("tasks", []), list)):
        name = _checked(path, f"tasks[{i}]", task, dict).get("name")
        _checked(path, f"tasks[{i}].name", name, str)
    return notes


def _checked(path: Path, key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        wanted = {"dict": "an object", "list": "a list", "str": "text"}[kind.__name__]
        raise MdftError(f"{path}: {key} must be {wanted}, got {value!r:.60}")
    if isinstance(value, dict):  # null: as if it were not there
        for name in [name for name, inner in value.items() if inner is None]:
            del value[name]
    return value


def find_models(folder: Path) -> tuple[Path, Path, list[str]]:
    """Returns the base, the models' folder, and the models' names, sorted."""
    bases = [path for path in sorted(folder.iterdir()) if _is_base(path)]
    if len(bases) != 1:
        got = [base.name for base in bases] or "none"
        raise MdftError(
            f"{folder}: must hold one base*.safetensors, base*.pt or zeroshot.pt (or another of "
            f"{list(SUFFIXES)}), or a folder base* of transformers or open_clip, got {got}"
        )
    inside = folder / "models" if (folder / "models").is_dir() else folder
    names = find_tasks(inside, bases[0])
    if not names:
        others = (path for path in sorted(inside.iterdir()) if path != bases[0])
        raise MdftError(
            f"{inside}: must hold the fine-tuned models as <task>/finetuned.pt, folders of "
            f"transformers, open_clip or LoRA adapters, or files that end in one of "
            f"{list(SUFFIXES)}, got {deeper_ones(others)}"
        )
    wrong = [name for name in names if not is_task_name(name) or name == "average"]
    if wrong:
        raise MdftError(
            f"{inside}: a model's name is its task's, which must be {TASK_NAME_FORM}, and not "
            f"'average', got {wrong}; rename {'it' if len(wrong) == 1 else 'them'}"
        )
    for name in names:
        find_checkpoint(inside, name)  # a name that two share
    return bases[0], inside, names


def _is_base(path: Path) -> bool:
    stem = stem_of(path) if path.is_file() else None
    if stem is not None:
        return stem.startswith("base") or stem == "zeroshot"
    return path.name.startswith("base") and _is_model(path)


def _is_model(path: Path) -> bool:
    try:
        return path.is_dir() and sniff(path) in ("transformers", "open_clip", "index")
    except MdftError:
        return False


def find_head(folder: Path, task: str) -> tuple[Path, State] | None:
    """Returns a task's classifier: ``heads/<task>.*`` or ``head_<Task>.*``, and what it says."""
    for inside, stems in (
        (folder, (f"head_{task}",)),
        (folder / "heads", (task, f"head_{task}")),
    ):
        for path in sorted(inside.glob("*")):
            if (stem_of(path) or "").lower() in [stem.lower() for stem in stems]:
                return path, open_state(path)
    return None


def find_samples(folder: Path, task: str, classes: int | None) -> tuple[Draft, Draft]:
    """Returns where a task's unlabelled and labelled samples are.

    Args:
        folder: holds ``data/<task>.npz``, or images in ``data/<task>`` or ``<task>``.
        task: its name; capitals make no difference.
        classes: rows of its classifier; folders are classes where they are as many. None: unknown.
    """
    file = _entry(folder / "data", f"{task}.npz")
    if file is not None:
        arrays = npz_keys(file)
        x = next((key for key in _UNLABELLED if key in arrays), None)
        labelled = {"x_test", "y_test"} <= set(arrays)
        adapt: Draft = {"npz": file, "x": x}
        return adapt, {"npz": file, "x": "x_test", "y": "y_test"} if labelled else {}
    for place in (folder / "data", folder):
        root = _entry(place, task)
        if root is not None and root.is_dir():
            adapt, labelled_images = _images(root, classes)
            if adapt or labelled_images:
                return adapt, labelled_images
    return {}, {}


def _images(root: Path, classes: int | None) -> tuple[Draft, Draft]:
    """Returns images to adapt to, and those in folders of classes to evaluate on."""
    apart = next((root / name for name in _UNLABELLED_FOLDERS if (root / name).is_dir()), None)
    if apart is not None:
        test = root / "test" if (root / "test").is_dir() else root
        adapt = _listed(apart, (None,), "train", None)
        return adapt, {} if test == root else _listed(test, (None,), "test", classes or 0)
    adapt = _listed(root, (None, "train"), "train", None)
    return adapt, _listed(root, (None, "test", "val"), "test", classes or 0)


def _listed(root: Path, splits: tuple[str | None, ...], role: Role, classes: int | None) -> Draft:
    """Returns the first split that holds images: in folders of so many classes, 0 for any."""
    for split in splits:
        try:
            names = FolderSource(root, split).listing(role).class_names
        except MdftError:  # it holds none, or folders of other splits
            continue
        if classes is None or (names and classes in (0, len(names))):
            return {"folder": root} if split is None else {"folder": root, "split": split}
    return {}


def _entry(folder: Path, name: str) -> Path | None:
    """Returns what has this name, capitals apart; the name's own spelling goes first."""
    alike = sorted(path for path in folder.glob("*") if path.name.lower() == name.lower())
    return folder / name if folder / name in alike else next(iter(alike), None)
