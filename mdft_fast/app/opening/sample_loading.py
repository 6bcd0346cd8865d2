# SPDX-License-Identifier: Apache-2.0
"""A recipe's samples, loaded; and that no test image is learned."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from mdft_fast.app.opening.building import Built
from mdft_fast.app.opening.sample_choice import first_samples, of_adapt, of_test
from mdft_fast.data import (
    ListedSource,
    NpzSource,
    Role,
    Samples,
    Task,
    load_samples,
    load_test_images,
    readable,
    shared_images,
    unshared,
)
from mdft_fast.errors import MdftError
from mdft_fast.heads import head_digest


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

    @property
    def samples(self) -> list[Samples]:
        """The tasks' unlabelled samples."""
        return [task.adapt for task in self.tasks if isinstance(task.adapt, Samples)]  # all


def load_data(
    built: Built,
    watch: Callable[[str, int, int], None] | None = None,
    *,
    only: str | None = None,
    counts: Mapping[str, int | None] = MappingProxyType({}),
) -> LoadedData:
    """Decodes what is wanted and not in the cache, and refuses tasks that adapt to test images.

    λ is shared, so no task may adapt to the test images of any. Images are compared by their
    content; a label is read nowhere. The recipe's ``transductive`` lets test images be adapted to,
    and its ``duplicates: drop`` leaves them out.

    Args:
        built: the recipe, opened.
        watch: told how far decoding is: words, how many are done, of how many.
        only: the task whose samples are wanted; None: all.
        counts: task -> how many of its samples are wanted, None: all; where the recipe's
            ``samples`` does not say it.

    Raises:
        MdftError: if a test image is among the unlabelled samples, and the recipe says neither.
    """
    recipe, tasks, preprocess = built.recipe, built.tasks, built.pool.preprocess
    drop, transductive = recipe.duplicates == "drop", recipe.transductive
    loaded: list[Task] = []
    splits: list[dict[str, Any]] = []
    notes: list[str] = []
    chosen = [task for task in tasks if only in (None, task.name)]
    tests = {
        task.name: load_test_images(
            task.evaluate, preprocess, watch=watch, choose=of_test(recipe, task.name)
        )
        for task in (tasks if drop else chosen)
        if task.evaluate is not None
    }
    for task in chosen:
        choose = of_adapt(recipe, task.name, counts.get(task.name, first_samples(recipe)))
        samples = load_samples(task.adapt, preprocess, watch=watch, choose=choose)
        notes += _not_read(task)
        about: dict[str, Any] = {
            "name": task.name,
            "head": head_digest(task.head),
            "class_names": hashlib.sha256(json.dumps(task.class_names).encode()).hexdigest(),
            "adapt": _origin(task.adapt, samples),
        }
        if drop:
            samples, dropped = _without_tests(about, samples, tests)
            notes += dropped
        if task.evaluate is not None:
            test = tests[task.name]
            about["evaluate"] = _origin(task.evaluate, test, "test")
            about["evaluate"]["images"] = hashlib.sha256(test.digests().tobytes()).hexdigest()
            about["shared"] = dict.fromkeys(("adapt", "evaluate"), 0)
        for other, images in tests.items():
            common = shared_images(samples, images)
            if other == task.name and common is not None:
                about["shared"] = {"adapt": len(common[0]), "evaluate": len(common[1])}
            notes += _overlap(about, samples, other, common, len(images), transductive)
        if task.evaluate is not None and len(test := tests[task.name]) < test.of:
            notes.append(
                f"Task {task.name!r}: the {len(test):,} of {test.of:,} test images that are asked "
                "for (evaluate.limit) were compared with what is learned from, the others were not."
            )
        splits.append(about)
        loaded.append(Task(task.name, task.class_names, task.head, samples))
    return LoadedData(loaded, splits, notes)


def _not_read(task: Task) -> Iterator[str]:
    """Yields what lies beside a task's images and is not read."""
    roles: list[tuple[object, Role]] = [(task.adapt, "train"), (task.evaluate, "test")]
    for source, role in roles:
        if isinstance(source, ListedSource):
            yield from (f"Task {task.name!r}: {note}" for note in source.listing(role).notes)


def _without_tests(
    about: dict[str, Any], samples: Samples, tests: Mapping[str, Samples]
) -> tuple[Samples, list[str]]:
    """Leaves test images out of a task's samples; says which, in ``about`` and for a reader."""
    adapt, count = about["adapt"], len(samples)
    kept = unshared(samples, *tests.values()).tolist()
    gone = sorted(set(range(count)) - set(kept))
    about["dropped"] = {"count": len(gone), "images": _named(adapt, samples, gone)}
    if not gone:
        return samples, []
    words = f"{len(gone):,} of {count:,} unlabelled images are test images, pixel for pixel"
    if not kept:
        raise MdftError(f"task {about['name']!r}: {words}; `duplicates: drop` leaves none")
    adapt["count"] = len(kept)
    if "files" in adapt:
        adapt["files"] = [adapt["files"][i] for i in kept]
    return samples.take(torch.tensor(kept, device="cpu")), [
        f"Task {about['name']!r}: {words}, and were dropped."
    ]


def _overlap(
    about: dict[str, Any],
    samples: Samples,
    other: str,
    common: tuple[list[int], list[int]] | None,
    tests: int,
    transductive: bool,
) -> list[str]:
    """Returns what a reader should know of test images among a task's samples; or refuses them."""
    name, whose = about["name"], "" if other == about["name"] else f" of task {other!r}"
    if common is None:  # bytes and floats
        if whose:
            return []
        return [f"Task {name!r}: whether test images were adapted to could not be told, as one of "
                f"the two sets holds floats."]  # fmt: skip
    mine = common[0]
    if not mine:
        return []
    words = (
        f"task {name!r}: {len(mine):,} of {len(samples):,} unlabelled images are among the "
        f"{tests:,} test images{whose}"
    )
    if transductive:
        return [f"Transductive: {words}."]
    first = ", ".join(_named(about["adapt"], samples, mine[:3]))
    raise MdftError(
        f"{words}, pixel for pixel ({first}{', ...' if len(mine) > 3 else ''}); take them out, say "
        "`duplicates: drop` to leave them out, or `transductive: true` to learn from them"
    )


def _named(about: dict[str, Any], samples: Samples, indices: Sequence[int]) -> list[str]:
    """Returns images as an error names them: by file, or by their number in the source."""
    if files := about.get("files"):
        return [files[i] for i in indices]
    numbers = samples.numbers.tolist()
    return [f"number {numbers[i]}" for i in indices]


def _origin(source: object, samples: Samples, role: Role = "train") -> dict[str, Any]:
    """Returns what a recipe's source is, and its files by name where a split of ours chose them."""
    count, held = len(samples), samples.x.shape[0]
    counts = {"count": count, **({"of": held} if count < held else {})}
    if isinstance(source, NpzSource):
        return {"npz": str(source.path), "x": source.x, **counts}
    assert isinstance(source, ListedSource)
    listing = source.listing(role)
    about = {**listing.origin, **counts}
    if len(listing.files) == held:
        rows = range(held) if samples.rows is None else samples.rows.tolist()
        about["files"] = [_below(listing.files[i], listing.origin) for i in rows]
    return about


def _below(file: Any, origin: dict[str, Any]) -> str:
    root = origin.get("folder") or origin.get("root") or ""
    return readable(file.relative_to(root) if file.is_relative_to(root) else file)
