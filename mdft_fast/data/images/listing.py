# SPDX-License-Identifier: Apache-2.0
"""What a source on disk holds, before anything is decoded."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mdft_fast.data.images.decoding import decode
from mdft_fast.errors import MdftError

if TYPE_CHECKING:
    from PIL.Image import Image

Role = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Opened:
    """Images that can be decoded one by one, from several threads at once.

    Attributes:
        count: number of images.
        image: index -> PIL image.
        labels: reads the labels; nothing but an evaluation calls it.
    """

    count: int
    image: Callable[[int], Image]
    labels: Callable[[], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        name: what errors and progress call it.
        origin: what the source is, as plain JSON values.
        files: all that its images are read from; their sizes and times tell one content from
            another.
        class_names: in the order of its labels; None where it does not know them.
        open: opens it; a cache that is filled spares that.
        channels: 3, or 1 where every image is grayscale.
        label_files: what the labels are read from, beside ``files``.
        labels_in_memory: whether the labels are known once it is listed; they are not cached then.
        notes: what a reader of results should know of what is not read, a sentence each.
    """

    name: str
    origin: dict[str, Any]
    files: tuple[Path, ...]
    class_names: tuple[str, ...] | None
    open: Callable[[], Opened]
    channels: int = 3
    label_files: tuple[Path, ...] = ()
    labels_in_memory: bool = False
    notes: tuple[str, ...] = ()


class ListedSource(ABC):
    """A source on disk, whose images are decoded once and cached."""

    @abstractmethod
    def listing(self, role: Role) -> Listing:
        """Returns what it holds.

        Args:
            role: the split that is meant where the source names none.

        Raises:
            MdftError: if it is not there; the message says what to put where.
        """

    def check_labels(self, role: Role) -> None:
        """Refuses a source as :meth:`listing` does, and labels that an evaluation would refuse.

        That is their form, where it shows beforehand; no label is looked at.
        """
        self.listing(role)


def of_files(
    paths: Sequence[Path], labels: Callable[[], Sequence[int]], *, turned: bool = False
) -> Callable[[], Opened]:
    """Returns how to open image files; ``labels`` gives one label a file, ``turned``: by EXIF."""
    return lambda: Opened(len(paths), lambda i: decode(paths[i], turned=turned), labels)


def compare_class_names(
    known: Sequence[str], source: str, names: Sequence[str], where: str
) -> None:
    """Refuses class names whose order is not the source's; a wrong order is silent otherwise.

    Names are compared without case, spaces and signs, where they still differ without. Plain
    numbers, 0 to C - 1, say nothing and always fit, unless the source's names are these numbers.

    Args:
        known: the source's own names.
        source: what it is called, for the error.
        names: one name a class.
        where: whose names these are, for the error.
    """
    plain = list(names) == [str(i) for i in range(len(names))]
    if plain and {_number(name) for name in known} != set(names):
        return
    if len(known) != len(names):
        raise MdftError(
            f"{where}: class names must be the {len(known)} of {source}, got {len(names)}"
        )
    loose = all(len(set(map(plain_name, some))) == len(some) for some in (known, names))
    form = plain_name if loose else _spelled
    for i, (theirs, mine) in enumerate(zip(known, names, strict=True)):
        if not _forms(theirs, form) & _forms(mine, form):
            raise MdftError(
                f"{where}: class {i} must be {theirs!r} as in {source}, got {mine!r}; "
                "the order of class names is the order of the labels"
            )


# Names that prompts for CLIP use in the place of a data set's own (OpenAI's for EuroSAT).
_ALIASES = {
    "AnnualCrop": ("annual crop land",),
    "HerbaceousVegetation": ("brushland or shrubland",),
    "Highway": ("highway or road",),
    "Industrial": ("industrial buildings or commercial buildings", "industrial area"),
    "Pasture": ("pasture land",),
    "PermanentCrop": ("permanent crop land",),
    "Residential": ("residential buildings or homes or apartments", "residential area"),
    "SeaLake": ("lake or sea",),
}


def _forms(name: str, form: Callable[[str], str]) -> set[str]:
    """Returns the ways to write a name that count as the same, in the form to compare."""
    forms = {name, *_ALIASES.get(name, ())}
    digit = re.fullmatch(r"(\d) - (\w+)", name)  # torchvision's MNIST
    if digit:
        forms |= {digit[1], digit[2]}
    return {_number(form(name)) for name in forms}


def _number(name: str) -> str:
    """Returns a whole number without zeros before it; any other name as it is."""
    return name.lstrip("0") or "0" if name.isdecimal() else name


def _spelled(name: str) -> str:
    """Returns a name in one form of Unicode: signs and case are all that tells some apart."""
    return unicodedata.normalize("NFC", name).strip()


def plain_name(name: str) -> str:
    """Returns a name without case, spaces and signs, to compare it with others."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFC", name).lower())
