# SPDX-License-Identifier: Apache-2.0
"""Images held once, as small as they came, and turned into the backbone's input batch by batch."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mdft_fast.checkpoints import Preprocess, as_preprocess
from mdft_fast.data.image_cache import (
    Choose,
    Watch,
    cached_images,
    cached_labels,
    digests_of,
)
from mdft_fast.data.images.class_folders import listed
from mdft_fast.data.images.decoding import Array
from mdft_fast.data.images.listing import ListedSource, Listing, Role
from mdft_fast.data.images.sources import (
    LabelledSource,
    NpzSource,
    Source,
    as_tensor,
    npz_form,
    read_npz,
    stack_images,
)
from mdft_fast.errors import MdftError

# How far a varied image may be from the one that it is made of: enough to be another sample, too
# little to be of another class. In radians, as a share, and as a share of half an edge.
_TURN, _SCALE, _SHIFT = 0.2, 0.15, 0.1
# Times what a pixel of 0 or 255 becomes: a user's own transform may be wider, unscaled pixels are
# 255 times too large but for a division by std.
_BEYOND = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Images of one task, without labels. Build with :func:`load_samples`.

    Attributes:
        x: uint8 ``[n, H, W, c]``, normalised in :meth:`batch`, or float32 ``[n, c, H, W]``, taken
            as already normalised; c is 1 or 3.
        preprocess: size, mean and standard deviation.
        known_digests: uint8 ``[n, 16]`` where a cache has them; see :meth:`digests`.
        rows: int64 ``[n]``: which images of ``x`` they are, as :meth:`take` chose them; None: all.
    """

    x: Tensor
    preprocess: Preprocess
    known_digests: Array | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0] if self.rows is None else len(self.rows)

    @property
    def numbers(self) -> Tensor:
        """Which images of their source they are, int64 ``[n]``; ``of`` so many."""
        return torch.arange(len(self.x), device="cpu") if self.rows is None else self.rows

    @property
    def of(self) -> int:
        """How many images their source has."""
        return self.x.shape[0]

    def take(self, indices: Tensor) -> Samples:
        """Returns some of the samples, int64 ``[m]``; the images are not copied."""
        rows = indices if self.rows is None else self.rows[indices]
        known = self.__dict__.get("_digests", self.known_digests)
        known = None if known is None else known[indices.numpy()]
        return dataclasses.replace(self, rows=rows, known_digests=known)

    def batch(self, indices: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Returns some samples as the backbone wants them.

        Args:
            indices: int64 ``[b]``, each in [0, n).
            device: where the batch goes; bytes travel, and become floats there.

        Returns:
            float32 ``[b, 3, H, W]``, contiguous: ``(x / 255 - mean) / std`` of uint8 images,
            float images as they are. Grayscale is repeated over the three channels.
        """
        indices = indices if self.rows is None else self.rows[indices.to(self.rows.device)]
        images = self.x.index_select(0, indices.to(self.x.device)).to(device, non_blocking=True)
        if images.dtype == torch.float32:
            return images.expand(-1, 3, -1, -1).contiguous()
        images = images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        images = images.to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = self._constants(images.device)
        return images.div_(255).sub_(mean).div_(std)

    def varied(self, indices: Tensor, device: torch.device | str, *, seed: int) -> Tensor:
        """Returns some samples as :meth:`batch` does, each slightly turned, scaled and shifted.

        What an image shows stays: it is turned by at most ``_TURN``, scaled by ``_SCALE`` and
        shifted by ``_SHIFT`` of half its edge; what comes in at an edge is its mirror image.

        Args:
            indices: int64 ``[b]``, each in [0, n).
            device: where the batch goes.
            seed: of the changes; with it, an image's own is always the same.
        """
        batch = self.batch(indices, device)
        drawn = (
            torch.rand(
                len(self),
                4,
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float32,
                device="cpu",
            )
            * 2
            - 1
        )
        turn, scale, *shift = drawn[indices.cpu()].to(batch.device).unbind(1)
        turn, scale = turn * _TURN, 1 + scale * _SCALE
        rows = [
            torch.stack([scale * turn.cos(), -scale * turn.sin(), shift[0] * _SHIFT], 1),
            torch.stack([scale * turn.sin(), scale * turn.cos(), shift[1] * _SHIFT], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
        return F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)

    def to(self, device: torch.device | str) -> Samples:
        """Returns the same samples held on a device, so that batches need no transfer."""
        x = self.x if self.rows is None else self.x.index_select(0, self.rows.to(self.x.device))
        return dataclasses.replace(self, x=x.to(device), rows=None)

    def digests(self) -> Array:
        """Returns what tells the images apart, uint8 ``[n, 16]``; equal images, equal rows."""
        return self._digests if self.known_digests is None else self.known_digests

    @functools.cached_property
    def _digests(self) -> Array:  # each set is compared with every other
        return digests_of(self.x.cpu().numpy(), None if self.rows is None else self.rows.numpy())

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._made:
            self._made[device] = (
                torch.tensor(self.preprocess["mean"], device=device).view(3, 1, 1),
                torch.tensor(self.preprocess["std"], device=device).view(3, 1, 1),
            )
        return self._made[device]

    @functools.cached_property
    def _made(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}


def load_samples(
    source: Source | Samples,
    preprocess: Mapping[str, Any],
    *,
    watch: Watch | None = None,
    choose: Choose | None = None,
) -> Samples:
    """Reads a task's unlabelled images. A label, where the source has one, is never touched.

    Args:
        source: uint8 ``[n, H, W, 3]`` or ``[n, H, W]``; float ``[n, 3, H, W]``, taken as already
            normalised; an :class:`NpzSource` of either; a source on disk, decoded once into the
            cache: a ``FolderSource``, ``TorchvisionSource``, ``HfSource`` or a plain
            ``ImageFolder``; any other data set with a length, see
            :func:`~mdft_fast.data.images.sources.stack_images`; or samples loaded before. Arrays
            are kept, not copied.
        preprocess: see :class:`~mdft_fast.checkpoints.Preprocess`. Arrays of another size are
            refused, never resized.
        watch: told how far decoding is; None: a bar where standard error is a terminal.
        choose: given the number of images, returns which are wanted, int64 ``[m]``, rising; of a
            source on disk no other is decoded. None: all.

    Raises:
        MdftError: if there is no image, or one of the wrong form; it names file and key.
    """
    on_disk = listed(source)
    if on_disk is not None:
        return _from_cache(on_disk.listing("train"), preprocess, watch, choose)
    samples = _in_memory(source, preprocess)
    return samples if choose is None else samples.take(torch.from_numpy(choose(len(samples))))


def _in_memory(source: Source | Samples, preprocess: Mapping[str, Any]) -> Samples:
    """Returns all images of a source that is no :class:`ListedSource`."""
    if isinstance(source, Samples):
        if source.preprocess != as_preprocess(preprocess):
            raise MdftError(
                f"samples: their preprocess must be the pool's {as_preprocess(preprocess)}, got "
                f"{source.preprocess}"
            )
        return source
    if isinstance(source, NpzSource):
        label = _label(source, source.x)
        shape, dtype = npz_form(source.path, source.x)
        kind = as_tensor(np.empty(0, dtype), label).dtype
        _samples(torch.empty(shape, dtype=kind, device="meta"), label, preprocess)  # form first
        return _samples(read_npz(source.path, source.x), label, preprocess)
    label = _label(source, "")
    if isinstance(source, (np.ndarray, Tensor)):
        return _samples(source, label, preprocess)
    if isinstance(source, (str, os.PathLike)):
        raise MdftError(f"{source}: a path alone names no array; use NpzSource(path, x=key)")
    if isinstance(source, tuple):
        raise MdftError(
            "samples: must be images alone, got a tuple; a labelled source is evaluate's"
        )
    return _samples(stack_images(source, label, as_preprocess(preprocess)), label, preprocess)


def load_test_images(
    source: LabelledSource,
    preprocess: Mapping[str, Any],
    *,
    watch: Watch | None = None,
    choose: Choose | None = None,
) -> Samples:
    """Reads the images of a labelled source, and no label; arguments as in :func:`load_samples`."""
    on_disk = listed(source)
    if on_disk is not None:
        return _from_cache(on_disk.listing("test"), preprocess, watch, choose)
    images = source[0] if isinstance(source, tuple) else source
    return load_samples(images, preprocess, choose=choose)


def _from_cache(
    listing: Listing,
    preprocess: Mapping[str, Any],
    watch: Watch | None = None,
    choose: Choose | None = None,
) -> Samples:
    checked = as_preprocess(preprocess)
    images, digests, rows = cached_images(listing, checked, watch, choose)
    chosen = None if rows is None else torch.from_numpy(rows)
    return Samples(as_tensor(images, listing.name), checked, digests, chosen)


def load_labelled(
    source: LabelledSource,
    preprocess: Mapping[str, Any],
    classes: int,
    *,
    role: Role = "test",
    choose: Choose | None = None,
) -> tuple[Samples, Tensor]:
    """Reads labelled images, for an evaluation, or for a head that labels make.

    Args:
        source: an :class:`NpzSource` with ``y``; a tuple ``(x, y)`` of arrays; a source on disk;
            or a dataset of items ``(image, label)``.
        preprocess: as in :func:`load_samples`.
        classes: ``C``; labels must lie in [0, C).
        role: the split of a source on disk that names none: "test", or "train" for a head.
        choose: as in :func:`load_samples`.

    Returns:
        The images, and their labels int64 ``[n]``.
    """
    on_disk = listed(source)
    if on_disk is not None:
        listing = on_disk.listing(role)
        samples = _from_cache(listing, preprocess, choose=choose)
        label, labels = (
            f"{listing.name}: labels",
            torch.tensor(cached_labels(listing), device="cpu"),
        )
        labels = _checked_labels(labels, len(samples.x), classes, label)
        return samples, labels if samples.rows is None else labels[samples.rows]
    if isinstance(source, NpzSource):
        labels = read_labels(source)
        samples = load_samples(source, preprocess)
        label = _label(source, str(source.y))
    elif isinstance(source, tuple):
        if len(source) != 2:
            raise MdftError(f"labelled samples: must be a tuple (x, y), got {len(source)} entries")
        samples = load_samples(source[0], preprocess)
        label = "labels"
        labels = as_tensor(source[1], label)
    else:
        samples = load_samples(source, preprocess)
        label = f"{_label(source, '')}: labels"
        labels = torch.tensor(
            [_item_label(source, i, label) for i in range(len(samples))], device="cpu"
        )
    labels = _checked_labels(labels, len(samples), classes, label)
    if choose is None:
        return samples, labels
    rows = torch.from_numpy(choose(len(samples)))
    return samples.take(rows), labels[rows]


def read_labels(source: NpzSource | ListedSource, role: Role = "test") -> Tensor:
    """Reads the labels of a source on disk, and no image; ``role`` as in :func:`load_labelled`."""
    if isinstance(source, ListedSource):
        return torch.tensor(cached_labels(source.listing(role)), device="cpu")
    if source.y is None:
        raise MdftError(f"{source.path}: no key of labels is given; use NpzSource(path, x, y)")
    return as_tensor(read_npz(source.path, source.y), _label(source, source.y))


def _item_label(dataset: Any, index: int, label: str) -> int:
    item = dataset[index]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise MdftError(f"{label}: item {index} must be (image, label), got {type(item).__name__}")
    return int(item[1])


def _checked_labels(labels: Tensor, count: int, classes: int, label: str) -> Tensor:
    if labels.shape != (count,) or labels.is_floating_point():
        raise MdftError(
            f"{label}: must be whole numbers [{count}], one for each image, got "
            f"{list(labels.shape)} in {labels.dtype}"
        )
    labels = labels.to("cpu", torch.int64)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise MdftError(
            f"{label}: must lie in [0, {classes}), got {int(labels[wrong][0])} "
            f"({int(wrong.sum())} of {count} labels lie outside)"
        )
    return labels


def _samples(images: Array | Tensor, label: str, preprocess: Mapping[str, Any]) -> Samples:
    checked = as_preprocess(preprocess)
    x = as_tensor(images, label)
    form = f"{list(x.shape)} in {str(x.dtype).removeprefix('torch.')}"
    wanted = "uint8 [n, H, W, 3] or [n, H, W], or float [n, 3, H, W]"
    if x.dim() == 3:
        x = x[..., None] if x.dtype == torch.uint8 else x[:, None]
    channels = x.shape[3 if x.dtype == torch.uint8 else 1] if x.dim() == 4 else 0
    if channels not in (1, 3) or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise MdftError(f"{label}: images must be {wanted}, got {form}")
    if not len(x):
        raise MdftError(f"{label}: holds no sample, got {form}; wanted one or more")
    size = list(x.shape[1:3] if x.dtype == torch.uint8 else x.shape[2:])
    if size != checked["size"]:
        raise MdftError(
            f"{label}: images must be {checked['size'][0]} x {checked['size'][1]} pixels as the "
            f"pool's preprocess says, got {size[0]} x {size[1]}; resize them before"
        )
    if x.is_floating_point() and not x.is_meta:
        x = x.float()
        bad = int((~x.isfinite()).sum())
        if bad:
            raise MdftError(f"{label}: images must be finite, got {bad} NaN or infinite values")
        _check_normalised(x, checked, label)
    return Samples(x, checked)


def _check_normalised(x: Tensor, preprocess: Preprocess, label: str) -> None:
    """Refuses floats that are pixels on the scale 0 to 255: far beyond what a pixel becomes."""
    pairs = zip(preprocess["mean"], preprocess["std"], strict=True)
    most = max(max(mean, 1 - mean) / std for mean, std in pairs)
    largest = float(x.abs().max())
    if largest > _BEYOND * most:
        raise MdftError(
            f"{label}: float images are taken as normalised, so within {most:.3g} of 0 as the "
            f"pool's mean and std make pixels, got {largest:.3g}; give pixels as uint8"
        )


def _label(source: object, key: str) -> str:
    if isinstance(source, NpzSource):
        return f"{source.path}: key {key!r}"
    return f"samples ({type(source).__name__})"
