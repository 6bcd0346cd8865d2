# SPDX-License-Identifier: Apache-2.0
"""Images in folders: one a class, maybe below one a split."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from mdft_fast.data.images.decoding import EXTENSIONS, readable
from mdft_fast.data.images.listing import ListedSource, Listing, Role, of_files
from mdft_fast.data.images.split_names import (
    SPLITS,
    find_split,
    is_hidden,
    read_list,
    same_form,
    splits_among,
)
from mdft_fast.errors import MdftError, need
from mdft_fast.model import split as random_split

Order = Literal["text", "number"]
# Of files that lie beside images; any other suffix may be an image's that is not read.
_TEXTS = (".csv", ".db", ".html", ".ini", ".json", ".md", ".txt", ".xml", ".yaml", ".yml")
TEST_SHARE = 0.2  # of a folder that brings no split of its own
SPLIT_SEED = 0  # one split for every run, so that runs of different seeds are comparable


@dataclasses.dataclass(frozen=True)
class FolderSource(ListedSource):
    """Image files in folders.

    * ``<path>/<class>/<image>``; deeper folders belong to their class;
    * ``<path>/<split>/<class>/<image>``;
    * ``<path>/<class>/<image>`` with ``<path>/<split>.txt``, one image's path or name a line;
    * images alone, without folders of classes, where no label is needed.

    Classes are numbered in the order of their folders' names. Names that begin with a dot are
    passed over. A split's folder may be called otherwise: ``Training``, ``TEST``, ``validation``.

    Attributes:
        path: the folder.
        split: "train", "val" or "test". Where the folder has neither such a folder nor such a
            list, "test" is a fifth of the images, drawn with a fixed seed from their sorted names
            and without a look at classes, and "train" the rest. None: what is adapted to takes
            "train" and what is evaluated "test" where the folder has both; else all. Folders of
            splits without "test", or without "train", are no classes: a split must be named.
        order: of the classes: "text", as torchvision's ``ImageFolder`` has it (0, 1, 10, 2;
            B, a); "number", as timm's data sets have it (0, 1, 2, 10; a, B). None: where both are
            the same; where they differ labels are refused.
        exif: whether images are turned as their EXIF orientation says. torchvision and timm do
            not, ``datasets`` does.
    """

    path: str | os.PathLike[str]
    split: str | None = None
    order: Order | None = None
    exif: bool = False

    def listing(self, role: Role) -> Listing:
        """See :class:`~mdft_fast.data.images.listing.ListedSource`."""
        root = Path(self.path)
        if self.split not in (None, *SPLITS):
            raise MdftError(f"{root}: split must be one of {list(SPLITS)}, got {self.split!r}")
        if not root.is_dir():
            raise MdftError(f"{root}: must be a folder of images, <class>/<image>, got no folder")
        if self.order not in (None, *get_args(Order)):
            raise MdftError(
                f"{root}: order must be one of {list(get_args(Order))}, got {self.order!r}"
            )
        chosen = self.split or (role if self.brings_splits() else None)
        place = find_split(root, chosen) if chosen else None
        top = place if place and place.is_dir() else root
        classes = _classes(top)
        if top == root:
            _check_no_splits(root, classes, chosen)
        numbered = _numbered(classes, self.order)
        found = _found(top, numbered.names)
        pairs = found.pairs
        if chosen and top == root:
            pairs = _part(root, chosen, place, pairs)
        paths, labels = tuple(path for path, _ in pairs), [label for _, label in pairs]

        def read_labels() -> Sequence[int]:
            for refusal in (found.refusal, numbered.refusal):
                if refusal:
                    raise MdftError(f"{top}: {refusal}")
            return labels

        origin = {"folder": str(root.absolute()), "split": chosen}
        return Listing(
            f"{top}" if top != root or not chosen else f"{root}, {chosen}",
            origin | ({"exif": True} if self.exif else {}),
            paths,
            numbered.names if labels[0] >= 0 and not numbered.refusal else None,
            of_files(paths, read_labels, turned=self.exif),
            labels_in_memory=True,
            notes=found.notes,
        )

    def check_labels(self, role: Role) -> None:
        """See :class:`~mdft_fast.data.images.listing.ListedSource`."""
        self.listing(role).open().labels()  # known by the folders' names, or refused

    def brings_splits(self) -> bool:
        """Tells whether the folder itself says what is for training and what for testing."""
        root = Path(self.path)
        return all(find_split(root, name) is not None for name in get_args(Role))


@dataclasses.dataclass(frozen=True)
class ImageFolderSource(ListedSource):
    """A torchvision ``ImageFolder`` object that decodes as we do: a list of files, so cached."""

    dataset: Any

    def listing(self, role: Role) -> Listing:
        """See :class:`~mdft_fast.data.images.listing.ListedSource`."""
        dataset = self.dataset
        paths = tuple(Path(path).absolute() for path, _ in dataset.samples)
        labels = of_files(paths, lambda: [int(label) for _, label in dataset.samples])
        name = str(dataset.root)
        return Listing(
            name,
            {"image_folder": name},
            paths,
            tuple(dataset.classes),
            labels,
            labels_in_memory=True,
        )


def listed(source: object) -> ListedSource | None:
    """Returns a source that lies on disk as such; None for arrays and other data sets."""
    if isinstance(source, ListedSource):
        return source
    kind = type(source)
    if f"{kind.__module__}.{kind.__name__}" != "torchvision.datasets.folder.ImageFolder":
        return None
    folder = need("torchvision.datasets.folder", "data")  # it is there: the source is its class's
    changes = (getattr(source, key) for key in ("transform", "target_transform", "transforms"))
    plain = getattr(source, "loader", None) is folder.default_loader
    return ImageFolderSource(source) if plain and all(c is None for c in changes) else None


def _classes(top: Path) -> tuple[str, ...]:
    entries = (entry.name for entry in os.scandir(top) if entry.is_dir())
    classes = tuple(sorted(name for name in entries if not is_hidden(name)))
    forms: dict[str, str] = {}
    for name in classes:
        if readable(name) != name:
            raise MdftError(
                f"{top}: a class's folder must have a name in UTF-8, got {readable(name)!r}; "
                "rename it"
            )
        if same_form(name) in forms:
            raise MdftError(
                f"{top}: classes must have different names, got {name!r} twice, in two forms of "
                "Unicode; put the images of both into one folder"
            )
        forms[same_form(name)] = name
    return classes


class _Numbered(NamedTuple):
    """Classes in the order of their labels, and why that is not known, if so."""

    names: tuple[str, ...]
    refusal: str = ""


def _numbered(classes: tuple[str, ...], order: str | None) -> _Numbered:
    natural = tuple(sorted(classes, key=lambda name: _natural(name.lower())))
    if order == "number":
        return _Numbered(natural)
    first = next((i for i, name in enumerate(classes) if name != natural[i]), None)
    if first is None or order is not None:
        return _Numbered(classes)
    return _Numbered(
        classes,
        f"the order of its classes must be said, as class {first} is {classes[first]!r} in "
        f"torchvision's order and {natural[first]!r} in timm's; write order: text or order: "
        "number, the one in which the head's rows are",
    )


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Returns what names are sorted by where each run of digits counts as one number."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


class _Found(NamedTuple):
    """Images with the number of their class, -1 without folders of classes.

    ``refusal`` says why labels cannot be read, if so; ``notes`` as in a listing.
    """

    pairs: list[tuple[Path, int]]
    refusal: str
    notes: tuple[str, ...]


def _found(top: Path, classes: Sequence[str]) -> _Found:
    others: list[Counter[str]] = [Counter() for _ in classes]
    pairs = [(p, i) for i, name in enumerate(classes) for p in _images(top / name, others[i])]
    refusal = ""
    notes: list[str] = []
    if not pairs:
        pairs = [(path, -1) for path in sorted(top.iterdir()) if _is_image(path)]
        refusal = "labels need folders of classes, <class>/<image>, got none"
    else:
        empty = sorted(set(range(len(classes))) - {i for _, i in pairs})
        if empty:
            some = f"{len(empty):,} of {len(classes):,} without: {classes[empty[0]]!r}"
            held = _counted(others[empty[0]])
            refusal = (
                f"every class must have an image, got {some}{f', which holds {held}' * bool(held)}"
                f"; images end in {', '.join(EXTENSIONS)}"
            )
            notes.append(f"{top}: classes without an image, {some}.")
        if total := sum(others, Counter()):
            notes.append(f"{top}: passed over, as torchvision does, {_counted(total)}.")
    if not pairs:
        raise MdftError(
            f"{top}: must hold images as <class>/<image>, got none; images end in "
            f"{', '.join(EXTENSIONS)}"
        )
    return _Found(pairs, refusal, tuple(notes))


def _counted(others: Counter[str]) -> str:
    """Returns how many files of which other suffixes there are, in words."""
    return ", ".join(f"{n:,} {readable(s) or 'without a suffix'}" for s, n in others.items())


def _check_no_splits(root: Path, classes: Sequence[str], chosen: str | None) -> None:
    """Refuses folders of splits as classes; one class among others may be called "train"."""
    splits = splits_among(classes)
    if splits:
        raise MdftError(
            f"{root}: holds folders of splits, {splits}, so split must name one of them, or the "
            f"path end in one, got {chosen!r}; only 'train' and 'test' together need no name"
        )


def _images(folder: Path, others: Counter[str]) -> Iterator[Path]:
    """Yields the images below a folder; counts what ends otherwise, by suffix."""
    for where, names in sorted(_walk(folder)):
        for path in (Path(where, name) for name in sorted(names)):
            suffix = path.suffix.lower()
            if _is_image(path):
                yield path
            elif not is_hidden(path.name) and suffix not in _TEXTS:
                others[suffix] += 1


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Gives every folder below, once, and its files; links are followed, but not in a circle."""
    above = {path for start in (folder.absolute(), folder.resolve()) for path in start.parents}
    seen = {_identity(path) for path in (folder, *above)}
    for where, folders, names in os.walk(folder, followlinks=True):
        shown = sorted(name for name in folders if not is_hidden(name))
        identities = {name: _identity(Path(where, name)) for name in shown}
        folders.clear()  # what stands here afterwards is walked
        for name, identity in identities.items():
            if identity not in seen:
                seen.add(identity)
                folders.append(name)
        yield where, names


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_image(path: Path) -> bool:
    """Says whether a path is an image's; one without a file is too, so that an error names it."""
    if path.suffix.lower() not in EXTENSIONS or is_hidden(path.name):
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _part(
    root: Path, chosen: str, listed: Path | None, pairs: list[tuple[Path, int]]
) -> list[tuple[Path, int]]:
    """Returns the images of a split that is no folder."""
    if listed is not None:
        return _listed(listed, root, pairs)
    if chosen == "val":
        raise MdftError(f"{root}: split 'val' must be a folder val/ or a list val.txt, got neither")
    pairs = sorted(pairs, key=lambda pair: pair[0].relative_to(root).as_posix())
    rest, test = random_split(len(pairs), TEST_SHARE, SPLIT_SEED, "folder")
    return [pairs[i] for i in (test if chosen == "test" else rest).tolist()]


def _listed(file: Path, root: Path, pairs: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    by_name = {pair[0].name: pair for pair in pairs}
    by_path = {pair[0].relative_to(root).as_posix(): pair for pair in pairs}
    if len(by_name) < len(pairs):  # names that stand in two classes say nothing alone
        by_name = {}
    chosen = []
    for line in read_list(file).splitlines():
        if line.strip():
            pair = by_path.get(line.strip()) or by_name.get(line.strip())
            if pair is None:
                raise MdftError(f"{file}: every line must name an image below {root}, got {line!r}")
            chosen.append(pair)
    if not chosen:
        raise MdftError(f"{file}: must name one image a line, got none")
    return chosen
