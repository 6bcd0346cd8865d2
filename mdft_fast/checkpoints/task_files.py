# SPDX-License-Identifier: Apache-2.0
"""Where a task's checkpoint lies in a folder of them, and which tasks have one there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from mdft_fast.checkpoints.file_kinds import ADAPTER, sniff
from mdft_fast.errors import MdftError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
_SHOWN = 4  # checkpoints in an error
_MOST_FOLDERS = 1000  # that are looked into for an error
_FINETUNED = "finetuned.pt"  # in task_vectors' layout
# Beginnings of files that stand beside a model: optimizers, heads, arguments.
_NO_MODELS = (
    "head_", "optimizer", "random_states", "rng_state", "scaler", "scheduler", "training_args",
    "zeroshot", ".",
)  # fmt: skip


def stem_of(file: Path) -> str | None:
    """Returns a file's name without the suffix of a checkpoint, capitals apart; None: no such."""
    name = file.name.lower()
    suffix = max((end for end in SUFFIXES if name.endswith(end)), key=len, default=None)
    return None if suffix is None else file.name[: -len(suffix)]


def find_checkpoint(folder: Path, task: str) -> Path:
    """Returns where a task's model lies.

    A file ``<task>`` with one of :data:`SUFFIXES`; ``<task>/finetuned.pt``; the folder ``<task>``
    of transformers, open_clip or a LoRA adapter; the only such folder, or file, inside ``<task>``.
    Capitals make no difference, so task ``mnist`` finds ``MNIST/finetuned.pt``; names with the
    task's own capitals go first.

    Raises:
        MdftError: if there is none, or there are two.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    alike = [entry for entry in entries if _name(entry).lower() == task.lower()]
    own = [entry for entry in alike if _name(entry) == task]
    for some in (own, alike):
        found = [path for entry in some for path in _models(entry)]
        if len(found) > 1:
            raise MdftError(
                f"{folder}: the checkpoint of task {task!r} must be one, got "
                f"{[path.relative_to(folder).as_posix() for path in found]}; leave the one that is "
                "meant"
            )
        if found:
            return found[0]
    raise MdftError(
        f"{folder}: must hold the checkpoint of task {task!r}, as a file {task!r} that ends in one "
        f"of {list(SUFFIXES)}, as {f'{task}/{_FINETUNED}'!r}, or as a folder {task!r} of "
        "transformers, open_clip or a LoRA adapter (capitals make no difference), got "
        f"{deeper_ones(alike)}"
    )


def deeper_ones(entries: Iterable[Path]) -> str:
    """Returns what an error says it got: the checkpoints deeper in some folders, or none."""
    found: list[str] = []
    for entry in entries:
        for where, folders, names in islice(os.walk(entry), _MOST_FOLDERS):
            place = Path(where)
            if place != entry and _is_checkpoint(place):
                folders.clear()
                found.append(place.relative_to(entry.parent).as_posix())
                continue
            folders.sort()
            files = (place / n for n in sorted(names) if not n.lower().startswith(_NO_MODELS))
            found += [f.relative_to(entry.parent).as_posix() for f in files if stem_of(f)]
    if not found:
        return "none"
    return f"what lies deeper, {found[:_SHOWN]}; put the one that is meant where it is looked for"


def find_tasks(folder: Path, base: Path) -> list[str]:
    """Returns the names of the tasks whose checkpoints :func:`find_checkpoint` finds, sorted.

    Args:
        folder: holds them.
        base: the pre-trained model, which may lie beside them.

    Files ``head_<Task>.pt``, capitals apart, are classifiers. A folder with ``finetuned.pt``
    gives its name in lower case, which is how recipes spell the data sets.
    """
    names: set[str] = set()
    for entry in folder.iterdir():
        if entry == base or entry.name.lower().startswith(_NO_MODELS):
            continue
        if not entry.is_dir() and (stem := stem_of(entry)):
            names.add(stem)
        elif (entry / _FINETUNED).exists():
            names.add(entry.name.lower())
        elif _is_checkpoint(entry) or any(entry.glob(f"*/{ADAPTER}")):
            names.add(entry.name)
    return sorted(names)


def _name(entry: Path) -> str:
    return entry.name if entry.is_dir() else stem_of(entry) or ""


def _models(entry: Path) -> list[Path]:
    """Returns the checkpoints that a file or folder of a task's name is, or holds."""
    if not entry.is_dir() or _is_checkpoint(entry):  # a pipe is refused where it is opened
        return [entry]
    if (entry / _FINETUNED).exists():
        return [entry / _FINETUNED]
    inside = [path for path in sorted(entry.iterdir()) if not path.name.startswith(_NO_MODELS)]
    return [
        path for path in inside if _is_checkpoint(path) or (not path.is_dir() and stem_of(path))
    ]


def _is_checkpoint(path: Path) -> bool:
    try:
        return path.is_dir() and sniff(path) != "pool"
    except MdftError:
        return False
