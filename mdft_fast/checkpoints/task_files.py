# SPDX-License-Identifier: Apache-2.0
"""Where a task's checkpoint lies in a folder of them, and which tasks have one there."""

from __future__ import annotations

from pathlib import Path

from mdft_fast.checkpoints.file_kinds import sniff
from mdft_fast.errors import MdftError

# In this order: what `mdft convert` writes, torch files, task_vectors' layout, a folder.
_PLACES = ("{}.safetensors", "{}.pt", "{}.pth", "{}.bin", "{}/finetuned.pt", "{}")


def find_checkpoint(folder: Path, task: str) -> Path:
    """Returns the first of the places where a task's model may lie.

    ``<task>.safetensors``, ``<task>.pt``, ``.pth``, ``.bin``, ``<task>/finetuned.pt``, and the
    folder ``<task>`` of transformers, open_clip or a LoRA adapter. Capitals make no difference, so
    task ``mnist`` finds ``MNIST/finetuned.pt``; a name with the task's own capitals goes first.

    Raises:
        MdftError: if there is none; it says what was looked for. Or if two names differ from the
            task's in nothing but capitals.
    """
    looked = [place.format(task) for place in _PLACES]
    for place in _PLACES:
        path = _spelled(folder, place.format(task), task)
        if path is not None and (path.is_file() or _is_checkpoint(path)):
            return path
    raise MdftError(
        f"{folder}: must hold the checkpoint of task {task!r}, as one of {looked} (capitals make "
        f"no difference; a folder of transformers, open_clip or a LoRA adapter), got none"
    )


def find_tasks(folder: Path, base: Path) -> list[str]:
    """Returns the names of the tasks whose checkpoints :func:`find_checkpoint` finds, sorted.

    Args:
        folder: holds them.
        base: the pre-trained model, which may lie beside them.

    Files ``head_<Task>.pt``, capitals apart, are classifiers. A folder with ``finetuned.pt``
    gives its name in lower case, which is how recipes spell the data sets.
    """
    suffixes = {Path(place).suffix for place in _PLACES if "/" not in place} - {""}
    names: set[str] = set()
    for entry in folder.iterdir():
        if entry == base or entry.name.lower().startswith(("head_", ".")):
            continue
        if entry.is_file() and entry.suffix in suffixes:
            names.add(entry.stem)
        elif (entry / "finetuned.pt").is_file():
            names.add(entry.name.lower())
        elif _is_checkpoint(entry):
            names.add(entry.name)
    return sorted(names)


def _spelled(folder: Path, place: str, task: str) -> Path | None:
    first, _, rest = place.partition("/")
    if (folder / place).exists():
        return folder / place
    entries = list(folder.iterdir()) if folder.is_dir() else []
    same = sorted(entry for entry in entries if entry.name.lower() == first.lower())
    same = [entry for entry in same if not rest or (entry / rest).is_file()]
    if len(same) > 1:
        raise MdftError(
            f"{folder}: the checkpoint of task {task!r} must be one, got "
            f"{[entry.name for entry in same]}"
        )
    return same[0] / rest if same else None


def _is_checkpoint(path: Path) -> bool:
    try:
        return path.is_dir() and sniff(path) != "pool"
    except MdftError:
        return False
