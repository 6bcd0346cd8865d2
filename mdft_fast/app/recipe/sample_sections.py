# SPDX-License-Identifier: Apache-2.0
"""The sections of a recipe that say where samples are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from mdft_fast.app.recipe.value_types import FilePath, Section, Text, choice, problem
from mdft_fast.data import (
    TORCHVISION_SETS,
    FolderSource,
    HfSource,
    ListedSource,
    NpzSource,
    Order,
    Role,
    Split,
    TorchvisionSource,
    check_npz,
)

# Keys that only mean something beside their source.
_BESIDE = {"x": "npz", "y": "npz", "split": "folder", "order": "folder", "exif": "folder"}
_SOURCES = ("npz", "folder", "torchvision", "hf")


class TorchvisionData(Section):
    """A data set on disk in torchvision's layout.

    Attributes:
        name: which data set, in torchvision's layout.
        root: the folder that the set's own folder lies in.
        split: which part; null: test for evaluate, else train.
    """

    name: Annotated[str, choice(*TORCHVISION_SETS)]
    root: FilePath
    split: Text | None = None


class HfData(Section):
    """A data set of Hugging Face's ``datasets`` on disk.

    Attributes:
        path: what `save_to_disk` of `datasets` wrote, a parquet file, or a folder of them.
        split: which part; null: test for evaluate, else train, where there are splits.
        image: column of the images.
        label: column of the labels, read by the evaluation alone.
        exif: whether images are turned as their EXIF orientation says, as `datasets` does.
    """

    path: FilePath
    split: Text | None = None
    image: Text = "image"
    label: Text = "label"
    exif: bool = True


class AdaptData(Section):
    """Unlabelled samples: one of npz, folder, torchvision and hf.

    Attributes:
        npz: file of the samples: exactly one of npz, folder, torchvision, hf.
        x: its array of images, uint8 [n, H, W, 3].
        folder: image files as `<class>/<image>`, or in folders or lists of splits above that.
        split: of the folder; null: test for evaluate, else train, where it has splits.
        order: of the folder's classes: text as torchvision has it (0, 1, 10, 2) or number as timm
            does (0, 1, 2, 10); null: where both are the same.
        exif: whether the folder's images are turned as their EXIF orientation says; torchvision and
            timm do not, `datasets` does.
    """

    npz: FilePath | None = None
    x: Text = "x"
    folder: FilePath | None = None
    split: Split | None = None
    order: Order | None = None
    exif: bool = False
    torchvision: TorchvisionData | None = None
    hf: HfData | None = None
    _role: ClassVar[Role] = "train"

    @model_validator(mode="after")
    def _one_source(self) -> AdaptData:
        sources = [key for key in _SOURCES if getattr(self, key) is not None]
        if len(sources) != 1:
            raise problem(f"must have exactly one of {list(_SOURCES)}, got {sources or 'none'}")
        for key, source in _BESIDE.items():
            if key in self.model_fields_set and getattr(self, key) and sources != [source]:
                raise problem(f"{key!r} goes with {source!r}, got it with {sources[0]!r}")
        return self

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = plain(self)
        return {k: v for k, v in written.items() if written.get(_BESIDE.get(k, k)) is not None}

    def places(self) -> Iterator[tuple[str, str, Path]]:
        """Gives what must be there: key, "file", "folder" or "file or folder", and path."""
        if self.npz:
            yield "npz", "file", self.npz
        if self.folder:
            yield "folder", "folder", self.folder
        if self.torchvision:
            yield "torchvision.root", "folder", self.torchvision.root
        if self.hf:
            yield "hf.path", "file or folder", self.hf.path

    def source(self) -> NpzSource | ListedSource:
        """Returns where the images are; nothing is read."""
        if self.folder:
            return FolderSource(self.folder, self.split, self.order, self.exif)
        if self.torchvision:
            return TorchvisionSource(**dict(self.torchvision))
        if self.hf:
            return HfSource(**dict(self.hf))
        assert self.npz is not None
        return NpzSource(self.npz, self.x)

    def check_source(self) -> None:
        """Refuses a source that lacks what is read of it; no image, no label is opened."""
        source = self.source()
        if isinstance(source, ListedSource):
            source.listing(self._role)
        else:
            check_npz(source)

    def place(self) -> tuple[Any, ...]:
        """Returns what two sources have in common if their images are the same ones."""
        if self.npz:
            return self.npz, self.x
        if self.folder:
            return self.folder, self.split
        if self.torchvision:
            return self.torchvision.name, self.torchvision.root
        return (self.hf.path,) if self.hf else ()


class EvaluateData(AdaptData):
    """Labelled test samples, read by the evaluation alone.

    Attributes:
        y: the npz file's array of labels, read by the evaluation alone.
    """

    y: Text = "y"
    _role: ClassVar[Role] = "test"

    def source(self) -> NpzSource | ListedSource:
        """Returns where images and labels are; nothing is read."""
        source = super().source()
        return dataclasses.replace(source, y=self.y) if isinstance(source, NpzSource) else source

    def check_source(self) -> None:
        """Refuses as well labels of a form that an evaluation would refuse at the end."""
        source = self.source()
        if isinstance(source, ListedSource):
            source.check_labels(self._role)
        else:
            super().check_source()
