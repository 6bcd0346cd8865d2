# SPDX-License-Identifier: Apache-2.0
"""Class names and prompt templates of the eight data sets of the CLIP merging literature.

The lists lie beside this file, one JSON file a data set, and stem from openai/CLIP (MIT License;
``vocabularies/LICENSE``). Their order is that of torchvision's ``class_to_idx``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from mdft_fast.data import plain_name
from mdft_fast.errors import MdftError, nearest

DATASETS = ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
_OTHER_NAMES = {"cars": "stanford_cars"}
_SHOWN = 3  # examples in an error


def class_names(dataset: str) -> tuple[str, ...]:
    """Returns the class names as prompts write them, ``C`` of them in the order of the labels.

    Args:
        dataset: one of :data:`DATASETS`; capitals, '-', '_' and spaces don't matter.

    Raises:
        MdftError: if the data set is not one of them.
    """
    return tuple(_vocabulary(dataset)["classes"].values())


def class_labels(dataset: str) -> tuple[str, ...]:
    """Returns the data set's own names of its classes: folders, or torchvision's ``classes``."""
    return tuple(_vocabulary(dataset)["classes"])


def templates(dataset: str) -> tuple[str, ...]:
    """Returns the prompt templates; ``{}`` stands for the class name."""
    return tuple(_vocabulary(dataset)["templates"])


def is_dataset(name: str) -> bool:
    """Returns whether a name is a data set's whose vocabulary is here."""
    return plain_name(name) in _datasets()


def check_order(dataset: str, class_to_idx: Mapping[str, int]) -> None:
    """Refuses labels that are numbered otherwise than the rows of the data set's zero-shot head.

    Args:
        dataset: one of :data:`DATASETS`.
        class_to_idx: class -> label, as torchvision's data sets and ``ImageFolder`` have it. A
            class may be called as the data set or as the prompts call it (``AnnualCrop``, ``annual
            crop land``); capitals and punctuation don't matter.

    Raises:
        MdftError: if a class is unknown or missing, or has another number; it names the first ones.
    """
    known = _numbers(dataset)
    unknown = [label for label in class_to_idx if _class(label) not in known]
    if unknown:
        raise MdftError(
            f"{dataset}: class_to_idx must name the classes of the data set, got "
            f"{_some(unknown)}; give the class names as a list, in the order of your labels"
        )
    want = {label: known[_class(label)] for label in class_to_idx}
    absent = set(range(len(class_names(dataset)))) - set(want.values())
    if absent or len(want) != len(set(want.values())):
        missing = [class_labels(dataset)[i] for i in sorted(absent)]
        raise MdftError(
            f"{dataset}: class_to_idx must name each of {len(class_names(dataset))} classes once, "
            f"got {len(class_to_idx)}, without {_some(missing)}"
        )
    wrong = [label for label, index in class_to_idx.items() if want[label] != index]
    if wrong:
        examples = ", ".join(
            f"{label!r} {want[label]}, got {class_to_idx[label]}" for label in wrong[:_SHOWN]
        )
        raise MdftError(
            f"{dataset}: class_to_idx must number the classes as the head's rows: {examples} "
            f"({len(wrong)} of {len(want)} differ); give the class names as a list, in the order "
            f"of your labels"
        )


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{items[:_SHOWN]}{more}"


def _class(label: str) -> str:
    # Folders of SUN397 begin with the name's first letter: /a/abbey, a_abbey.
    return plain_name(re.sub(r"^/?([a-z])[/_](?=\1)", "", label))


@functools.cache
def _datasets() -> dict[str, str]:
    known = {name: name for name in DATASETS} | _OTHER_NAMES
    return {plain_name(name): dataset for name, dataset in known.items()}


@functools.cache
def _numbers(dataset: str) -> dict[str, int]:
    """Returns class -> number, for the data set's own names and for those of the prompts."""
    numbers: dict[str, int] = {}
    for i, pair in enumerate(zip(class_labels(dataset), class_names(dataset), strict=True)):
        numbers.update(dict.fromkeys(map(_class, pair), i))
    return numbers


def _vocabulary(dataset: str) -> dict[str, Any]:
    if not is_dataset(dataset):
        raise MdftError(
            f"heads: dataset must be one of {list(DATASETS)}, got {dataset!r}"
            f"{nearest(dataset.lower(), DATASETS)}"
        )
    return _read(_datasets()[plain_name(dataset)])


@functools.cache
def _read(dataset: str) -> dict[str, Any]:
    file = resources.files("mdft_fast.heads") / "vocabularies" / f"{dataset}.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
