# SPDX-License-Identifier: Apache-2.0
"""Images in folders: one a class, maybe below one a split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from mdft_fast.data.images.decoding import EXTENSIONS
from mdft_fast.data.images.listing import ListedSource, Listing, Role, of_files
from mdft_fast.errors import MdftError, need
from mdft_fast.model import split as random_split

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_SPLIT_NAMES = (*SPLITS, "valid", "validation")  # no class folders, where they stand together
TEST_SHARE = 0.2  # of a folder that brings no split of its own
SPLIT_SEED = 0  # one split for every run, so that runs of different seeds are comparable


@dataclasses.dataclass(frozen=True)
class FolderSource(ListedSource):
    """Image files in folders.

    * ``<path>/<class>/<image>``; deeper folders belong to their class;
    * ``<path>/<split>/<class>/<image>``;
    * ``<path>/<class>/<image>`` with ``<path>/<split>.txt``, one image's path or name a line;
    * images alone, without folders of classes, where no label is needed.

    Classes are numbered in the order of their folders' names, as torchvision's ``ImageFolder``
    does; names that begin with a dot are passed over.

    Attributes:
        path: the folder.
        split: "train", "val" or "test". Where the folder has neither such a folder nor such a
            list, "test" is a fifth of the images, drawn with a fixed seed from their sorted names
            and without a look at classes, and "train" the rest. None: what is adapted to takes
            "train" and what is evaluated "test" where the folder has both; else all. Folders of
            splits without "test", or without "train", are no classes: a split must be named.
    """

    path: str | os.PathLike[str]
    split: str | None = None

    def listing(self, role: Role) -> Listing:
        """See :class:`~mdft_fast.data.images.listing.ListedSource`."""
        root = Path(self.path)
        if self.split not in (None, *SPLITS):
            raise MdftError(f"{root}: split must be one of {list(SPLITS)}, got {self.split!r}")
        if not root.is_dir():
            raise MdftError(f"{root}: must be a folder of images, <class>/<image>, got no folder")
        chosen = self.split or (role if self.brings_splits() else None)
        top = root / chosen if chosen and (root / chosen).is_dir() else root
        classes = _classes(top)
        if top == root:
            _check_no_splits(root, classes, chosen)
        pairs = [(path, i) for i, name in enumerate(classes) for path in _images(top / name)] or [
            (path, -1) for path in sorted(top.iterdir()) if _is_image(path)
        ]
        if not pairs:
            raise MdftError(
                f"{top}: must hold images as <class>/<image>, got none; images end in "
                f"{', '.join(EXTENSIONS)}"
            )
        if chosen and top == root:
            pairs = _part(root, chosen, pairs)
        paths, labels = [path for path, _ in pairs], [label for _, label in pairs]
        name = f"{top}" if top != root or not chosen else f"{root}, {chosen}"

        def read_labels() -> Sequence[int]:
            if labels[0] < 0:
                raise MdftError(f"{top}: labels need folders of classes, <class>/<image>, got none")
            return labels

        origin = {"folder": str(root.absolute()), "split": chosen}
        return Listing(
            name,
            origin,
            tuple(paths),
            classes if labels[0] >= 0 else None,
            of_files(paths, read_labels),
            labels_in_memory=True,
        )

    def brings_splits(self) -> bool:
        """Tells whether the folder itself says what is for training and what for testing."""
        root = Path(self.path)
        return all(
            (root / name).is_dir() or (root / f"{name}.txt").is_file() for name in get_args(Role)
        )


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
    entries = sorted(entry.name for entry in os.scandir(top) if entry.is_dir())
    return tuple(name for name in entries if not name.startswith("."))


def _check_no_splits(root: Path, classes: Sequence[str], chosen: str | None) -> None:
    """Refuses folders of splits as classes; one class among others may be called "train"."""
    splits = [name for name in _SPLIT_NAMES if name in classes]
    if len(splits) > 1 or (splits and len(splits) == len(classes)):
        raise MdftError(
            f"{root}: holds folders of splits, {splits}, so split must name one of them, or the "
            f"path end in one, got {chosen!r}; only 'train' and 'test' together need no name"
        )


def _images(folder: Path) -> Iterator[Path]:
    for where, names in sorted(_walk(folder)):
        yield from (Path(where, name) for name in sorted(names) if _is_image(Path(name)))


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Gives every folder below, once, and its files; links are followed, but not in a circle."""
    above = {path for start in (folder.absolute(), folder.resolve()) for path in start.parents}
    seen = {_identity(path) for path in (folder, *above)}
    for where, folders, names in os.walk(folder, followlinks=True):
        identities = {name: _identity(Path(where, name)) for name in sorted(folders)}
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
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _part(root: Path, chosen: str, pairs: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """Returns the images of a split that is no folder."""
    listed = root / f"{chosen}.txt"
    if listed.is_file():
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
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            pair = by_path.get(line.strip()) or by_name.get(line.strip())
            if pair is None:
                raise MdftError(f"{file}: every line must name an image below {root}, got {line!r}")
            chosen.append(pair)
    if not chosen:
        raise MdftError(f"{file}: must name one image a line, got none")
    return chosen
