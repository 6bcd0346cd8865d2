# SPDX-License-Identifier: Apache-2.0
"""Data sets of Hugging Face's ``datasets``, from the disk alone; an optional package."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdft_fast.data.images.decoding import decode, is_pil
from mdft_fast.data.images.listing import ListedSource, Listing, Opened, Role
from mdft_fast.errors import MdftError, nearest, need

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclasses.dataclass(frozen=True)
class HfSource(ListedSource):
    """A data set that ``save_to_disk`` wrote, or parquet files. Nothing is downloaded or run.

    Attributes:
        path: the folder of ``save_to_disk``; a parquet file; or a folder of parquet files, whose
            names begin with their split, as in ``test-00000-of-00001.parquet``.
        split: None: "train" for what is adapted to and "test" for what is evaluated, where the
            data set has splits.
        image: column of the images.
        label: column of the labels; only an evaluation reads it.
        exif: whether images are turned as their EXIF orientation says, as ``datasets`` does.
    """

    path: str | os.PathLike[str]
    split: str | None = None
    image: str = "image"
    label: str = "label"
    exif: bool = True

    def listing(self, role: Role) -> Listing:
        """See :class:`~mdft_fast.data.images.listing.ListedSource`."""
        path = Path(self.path).absolute()
        if not path.exists():
            raise MdftError(
                f"{path}: must be a folder of datasets' save_to_disk or parquet files, got nothing "
                "there; nothing is downloaded"
            )
        dataset, chosen, files = self._load(path, role)
        self._check_column(dataset, self.image, path)
        names = getattr(dataset.features.get(self.label), "names", None)
        return Listing(
            name=f"{path}, split {chosen}" if chosen else f"{path}",
            origin={"hf": str(path), "split": chosen, **self._columns(), "exif": self.exif},
            files=files,
            class_names=tuple(names) if names else None,
            open=lambda: self._opened(dataset, path),
        )

    def _columns(self) -> dict[str, str]:
        return {"image": self.image, "label": self.label}

    def check_labels(self, role: Role) -> None:
        """See :class:`~mdft_fast.data.images.listing.ListedSource`."""
        path = Path(self.path).absolute()
        dataset, _, _ = self._load(path, role)
        for column in (self.image, self.label):
            self._check_column(dataset, column, path)
        kind = dataset.features[self.label]
        dtype = str(getattr(kind, "dtype", type(kind).__name__))
        if "int" not in dtype:
            raise MdftError(
                f"{path}: column {self.label!r} must hold whole numbers, one an image, got {dtype}"
            )

    def _load(self, path: Path, role: Role) -> tuple[Any, str | None, tuple[Path, ...]]:
        datasets = need("datasets", "hf", who=str(path))
        try:
            if path.is_file() or not _is_saved(path):
                files, chosen = self._parquet(path, role)
                return datasets.Dataset.from_parquet([str(file) for file in files]), chosen, files
            loaded = datasets.load_from_disk(str(path))
        except MdftError:
            raise
        except Exception as error:
            raise MdftError(f"{path}: not a readable data set: {error}") from None
        if isinstance(loaded, datasets.DatasetDict):
            chosen = self.split or role
            if chosen not in loaded:
                raise MdftError(
                    f"{path}: split must be one of {sorted(loaded)}, got {chosen!r}"
                    f"{nearest(chosen, loaded)}"
                )
            return loaded[chosen], chosen, tuple(sorted((path / chosen).glob("*.arrow")))
        if self.split is not None:
            raise MdftError(f"{path}: has no splits, so split must be left out, got {self.split!r}")
        return loaded, None, tuple(sorted(path.glob("*.arrow")))

    def _parquet(self, path: Path, role: Role) -> tuple[tuple[Path, ...], str | None]:
        if path.is_file():
            if self.split is not None:
                raise MdftError(f"{path}: is one file, so split must be left out")
            return (path,), None
        chosen, everything = self.split or role, sorted(path.glob("*.parquet"))
        begins = f"{chosen}-", f"{chosen}."
        files = tuple(file for file in everything if file.name.startswith(begins))
        if not files:
            got = [file.name for file in everything][:5] or "none"
            raise MdftError(f"{path}: must hold {chosen}-*.parquet, got {got}")
        return files, chosen

    def _check_column(self, dataset: Any, column: str, path: Path) -> None:
        if column not in dataset.features:
            known = list(dataset.features)
            raise MdftError(
                f"{path}: column {column!r} is missing, got {known}{nearest(column, known)}"
            )

    def _opened(self, dataset: Any, path: Path) -> Opened:
        datasets = need("datasets", "hf", who=str(path))
        images = dataset.select_columns([self.image])  # no other column is ever read
        if isinstance(dataset.features[self.image], datasets.Image):
            # Undecoded, so that `exif` decides, and that nothing but images is started.
            images = images.cast_column(self.image, datasets.Image(decode=False))

        def image(index: int) -> Image:
            name = f"{path}: column {self.image!r}, row {index}"
            return _image(images[index][self.image], name, self.exif)

        def labels() -> Sequence[int]:
            self._check_column(dataset, self.label, path)
            values = list(dataset.select_columns([self.label])[:][self.label])
            if any(type(value) is not int for value in values):
                raise MdftError(f"{path}: column {self.label!r} must hold whole numbers")
            return values

        return Opened(len(dataset), image, labels)


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _image(value: Any, name: str, turned: bool) -> Image:
    """Decodes what a row holds: bytes, a file's path, or both in a mapping."""
    content: Any = value
    if isinstance(value, dict):
        content = value.get("bytes") or value.get("path")
    if isinstance(content, bytes):
        return decode(io.BytesIO(content), name, turned=turned)
    if isinstance(content, str):
        return decode(content, turned=turned)
    if is_pil(content):
        image: Image = content
        return image
    raise MdftError(f"{name}: must be an image, got {type(value).__name__}")
