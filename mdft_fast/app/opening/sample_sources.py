# SPDX-License-Identifier: Apache-2.0
"""A recipe's sources of samples: where they are, and what their classes are called."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from mdft_fast.app.recipe import TaskRecipe
from mdft_fast.data import (
    FolderSource,
    ListedSource,
    NpzSource,
    Role,
    compare_class_names,
    npz_keys,
    read_class_names,
)

OnDisk = NpzSource | ListedSource


class Sources(NamedTuple):
    """Where a task's samples are.

    Attributes:
        adapt: the unlabelled ones.
        evaluate: the labelled ones, read by evaluation alone.
        shots: the labelled ones that make its head, where it is made of any.
    """

    adapt: OnDisk
    evaluate: OnDisk | None
    shots: OnDisk | None


def sources_of(task: TaskRecipe, *, transductive: bool) -> Sources:
    """Returns where a task's samples are; no image, no label is read.

    A folder that ``evaluate`` and ``adapt``, or a head's images, name without a split, and that
    brings none, is split: a fifth of it is for the evaluation, the rest for the others.
    """
    made = task.head.prototypes if task.head else None
    adapt = task.adapt.source()
    test = task.evaluate.source() if task.evaluate else None
    shots = made.source() if made else None
    if isinstance(test, FolderSource) and test in (adapt, shots) and not transductive:
        whole = test
        if whole.split is None and not whole.brings_splits():
            test = dataclasses.replace(whole, split="test")
            rest = dataclasses.replace(whole, split="train")
            adapt = rest if adapt == whole else adapt
            shots = rest if shots == whole else shots
    return Sources(adapt, test, shots)


def class_names_of(
    task: TaskRecipe, sources: Sources, packed: tuple[str, ...] | None = None
) -> tuple[str, ...] | None:
    """Returns a task's class names: the recipe's, the pool's or the data's; None: nobody says.

    Args:
        task: the task.
        sources: its samples.
        packed: the class names of a packed pool; plain numbers say nothing: nobody said them when
            it was packed.

    Raises:
        MdftError: if the data know their class names and these are others.
    """
    adapt, test, shots = sources
    if packed == tuple(str(c) for c in range(len(packed or ()))):
        packed = None
    data: tuple[str, ...] | None = None
    # Folders of unlabelled images need not be classes, unless their tests are folders there too.
    classes = not isinstance(adapt, FolderSource) or (
        isinstance(test, FolderSource) and test.path == adapt.path
    )
    for source, known in (
        (test, _known_names(test, "test")),
        (shots, _known_names(shots, "train")),
        (adapt, _known_names(adapt, "train") if classes else None),
    ):
        # Only the order of a source whose labels are read matters; else that of what there is.
        if known is None or (source is adapt and data is not None):
            continue
        for whose, names in (("recipe", task.class_names), ("pool", packed), ("evaluate", data)):
            if names is not None:
                compare_class_names(known[1], known[0], names, f"task {task.name!r}: {whose}")
        data = known[1]
    return task.class_names or packed or data


def _known_names(source: OnDisk | None, role: Role) -> tuple[str, tuple[str, ...]] | None:
    """Returns what a source is called and its class names, where it knows them."""
    if isinstance(source, ListedSource):
        listing = source.listing(role)
        return (listing.name, listing.class_names) if listing.class_names else None
    if source is None or "class_names" not in npz_keys(source.path):
        return None
    return str(source.path), read_class_names(source.path)
