# SPDX-License-Identifier: Apache-2.0
"""A recipe's samples: where they are, what they are called, and that no test image is learned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mdft_fast.data import (
    FolderSource,
    LabelledSource,
    ListedSource,
    NpzSource,
    Samples,
    Source,
    Task,
    compare_class_names,
    load_samples,
    load_test_images,
    npz_keys,
    read_class_names,
    shared_images,
)
from mdft_fast.errors import MdftError
from mdft_fast.heads import head_digest

if TYPE_CHECKING:
    from mdft_fast.data.listing import Role
    from mdft_fast.pool import Preprocess
    from mdft_fast.recipe.sections import TaskRecipe
    from mdft_fast.run.progress import Progress


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedData:
    """What a run learns from.

    Attributes:
        tasks: without labelled samples; their unlabelled ones are loaded.
        splits: for each task what it adapts to and is evaluated on, as JSON values.
        notes: what a reader of results should know, a sentence each.
    """

    tasks: list[Task]
    splits: list[dict[str, Any]]
    notes: list[str]


def sources_of(
    given: TaskRecipe, *, transductive: bool
) -> tuple[NpzSource | ListedSource, NpzSource | ListedSource | None]:
    """Returns where a task's unlabelled and labelled samples are; no image, no label is read.

    A folder that both name without a split, and that brings none, is split: a fifth of it is for
    the evaluation.
    """
    adapt, test = given.adapt, given.evaluate
    first = adapt.source()
    if test is None:
        return first, None
    second = test.source()
    if isinstance(first, FolderSource) and isinstance(second, FolderSource) and not transductive:
        same = adapt.place() == test.place() and adapt.split is None
        if same and not first.brings_splits():
            first = dataclasses.replace(first, split="train")
            second = dataclasses.replace(second, split="test")
    return first, second


def class_names_of(
    given: TaskRecipe,
    adapt: NpzSource | ListedSource,
    test: NpzSource | ListedSource | None,
    packed: tuple[str, ...] | None = None,
) -> tuple[str, ...] | None:
    """Returns a task's class names: the recipe's, the pool's or the data's; None: nobody says.

    Args:
        given: the task.
        adapt: its unlabelled samples.
        test: its labelled samples.
        packed: the class names of a packed pool; plain numbers say nothing.

    Raises:
        MdftError: if the data know their class names and these are others.
    """
    data: tuple[str, ...] | None = None
    # Folders of unlabelled images need not be classes, unless their tests are folders there too.
    classes = not isinstance(adapt, FolderSource) or (
        isinstance(test, FolderSource) and test.path == adapt.path
    )
    for source, known in (
        (test, _known_names(test, "test")),
        (adapt, _known_names(adapt, "train") if classes else None),
    ):
        # Only the order of a source whose labels are read matters; else that of what there is.
        if known is None or (source is adapt and test is not None and data is not None):
            continue
        name, data = known
        for whose, names in (("recipe", given.class_names), ("pool", packed)):
            if names is not None:
                compare_class_names(data, name, names, f"task {given.name!r}: {whose}")
    if packed == tuple(str(c) for c in range(len(packed or ()))):  # nobody said when it was packed
        packed = None
    return given.class_names or packed or data


def _known_names(
    source: NpzSource | ListedSource | None, role: Role
) -> tuple[str, tuple[str, ...]] | None:
    """Returns what a source is called and its class names, where it knows them."""
    if isinstance(source, ListedSource):
        listing = source.listing(role)
        return (listing.name, listing.class_names) if listing.class_names else None
    if source is None or "class_names" not in npz_keys(source.path):
        return None
    return str(source.path), read_class_names(source.path)


def load_data(
    tasks: Sequence[Task],
    preprocess: Preprocess,
    *,
    transductive: bool,
    shown: Progress,
    shots: Mapping[str, NpzSource] | None = None,
) -> LoadedData:
    """Decodes what is not in the cache yet, and refuses tasks that adapt to test images.

    λ is shared, so no task may adapt to the test images of any. Images are compared by their
    content; a label is read nowhere.

    Args:
        tasks: the recipe's.
        preprocess: the pool's.
        transductive: whether tasks may adapt to test images.
        shown: told how far decoding is.
        shots: task -> the labelled images that made its head.

    Raises:
        MdftError: if a test image is among the unlabelled samples and ``transductive`` is false, or
            among those whose labels made a head.
    """
    loaded: list[Task] = []
    splits: list[dict[str, Any]] = []
    notes: list[str] = []
    tests = {
        task.name: load_test_images(task.evaluate, preprocess, watch=shown.count)
        for task in tasks
        if task.evaluate is not None
    }
    for task in tasks:
        samples = load_samples(task.adapt, preprocess, watch=shown.count)
        about: dict[str, Any] = {
            "name": task.name,
            "head": head_digest(task.head),
            "class_names": hashlib.sha256(json.dumps(task.class_names).encode()).hexdigest(),
            "adapt": _origin(task.adapt, len(samples)),
        }
        if task.evaluate is not None:
            own = tests[task.name]
            about["evaluate"] = _origin(task.evaluate, len(own), "test")
            about["evaluate"]["images"] = hashlib.sha256(own.digests().tobytes()).hexdigest()
            about["shared"] = dict.fromkeys(("adapt", "evaluate"), 0)
            if shots and task.name in shots:
                _check_shots(task.name, shots[task.name], own)
        for other, images in tests.items():
            found = shared_images(samples, images)
            if other == task.name and found is not None:
                about["shared"] = {"adapt": len(found[0]), "evaluate": len(found[1])}
            notes += _overlap(about, other, found, (len(samples), len(images)), transductive)
        splits.append(about)
        loaded.append(Task(task.name, task.class_names, task.head, samples))
    return LoadedData(loaded, splits, notes)


def _check_shots(task: str, shot: NpzSource, tests: Samples) -> None:
    found = shared_images(load_samples(shot, tests.preprocess), tests)
    if found and found[0]:
        raise MdftError(
            f"task {task!r}: {shot.path}: images whose labels make the head must not be test "
            f"images, got {len(found[0]):,} that are, pixel for pixel"
        )


def _overlap(
    about: dict[str, Any],
    other: str,
    found: tuple[list[int], list[int]] | None,
    counts: tuple[int, int],
    transductive: bool,
) -> list[str]:
    """Returns what a reader should know of test images among a task's samples; or refuses them."""
    name, whose = about["name"], "" if other == about["name"] else f" of task {other!r}"
    if found is None:  # bytes and floats
        if whose:
            return []
        return [f"Task {name!r}: whether test images were adapted to could not be told, as one of "
                f"the two sets holds floats."]  # fmt: skip
    mine = found[0]
    if not mine:
        return []
    words = (
        f"task {name!r}: {len(mine):,} of {counts[0]:,} unlabelled images are among the "
        f"{counts[1]:,} test images{whose}"
    )
    if transductive:
        return [f"Transductive: {words}."]
    first = _named(about["adapt"], mine[:3])
    raise MdftError(
        f"{words}, pixel for pixel ({first}{', ...' if len(mine) > 3 else ''}); take them out, or "
        "say `transductive: true`"
    )


def _named(about: dict[str, Any], indices: Sequence[int]) -> str:
    """Returns images as an error names them: by file, or by number."""
    files = about.get("files")
    return ", ".join(files[i] if files else f"number {i}" for i in indices)


def _origin(
    source: Source | Samples | LabelledSource, count: int, role: str = "train"
) -> dict[str, Any]:
    """Returns what a source is, and its files by name where a split of ours chose them."""
    if isinstance(source, NpzSource):
        return {"npz": str(source.path), "x": source.x, "count": count}
    if not isinstance(source, ListedSource):
        return {"kind": type(source).__name__, "count": count}
    listing = source.listing("test" if role == "test" else "train")
    about = {**listing.origin, "count": count}
    if len(listing.files) == count:
        about["files"] = [_below(file, listing.origin) for file in listing.files]
    return about


def _below(file: Any, origin: dict[str, Any]) -> str:
    root = origin.get("folder") or origin.get("root") or ""
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
