# SPDX-License-Identifier: Apache-2.0
"""Where images come from: arrays, npz files, datasets. Nothing here ever unpickles."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mdft_fast.checkpoints import Preprocess
from mdft_fast.data.images.decoding import Array, fit, is_pil
from mdft_fast.data.images.listing import ListedSource
from mdft_fast.errors import MdftError, nearest
from mdft_fast.files import regular
from mdft_fast.model import available_memory

_HEADERS = {  # version of the npy format -> what reads its header; 3 differs in a name's letters
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


@dataclasses.dataclass(frozen=True)
class NpzSource:
    """Images, and maybe labels, in an npz file.

    Attributes:
        path: the file.
        x: key of the images.
        y: key of the labels; only :func:`~mdft_fast.data.load_labelled` ever reads it.
    """

    path: str | os.PathLike[str]
    x: str
    y: str | None = None


Source = Array | Tensor | NpzSource | ListedSource | Dataset[Any] | Sequence[Any]
LabelledSource = NpzSource | ListedSource | tuple[Array | Tensor, Array | Tensor] | Dataset[Any]


def read_npz(path: str | os.PathLike[str], key: str) -> Array:
    """Reads one array of an npz file and touches no other; pickled arrays are refused."""
    shape, dtype = npz_form(path, key)
    bytes_, free = math.prod(shape) * dtype.itemsize, available_memory(torch.device("cpu"))
    if bytes_ > free:
        raise MdftError(
            f"{path}: key {key!r} must fit into memory, of which {free:,} bytes are free, got "
            f"{list(shape)} in {dtype}, {bytes_:,} bytes"
        )
    with _open_npz(path) as archive:
        try:
            array: Array = archive[key]
        except Exception as error:  # zipfile, numpy and the decoders raise a dozen kinds
            raise _unreadable(path, key, error) from None
    return array


def npz_form(path: str | os.PathLike[str], key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and dtype of an array by its header; a small file may hold gigabytes."""
    with _open_npz(path) as archive:
        _check_key(path, key, archive.files)
        names = archive.zip.namelist()
        member = archive.zip.getinfo(key if key in names else f"{key}.npy")
        try:
            with archive.zip.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = _HEADERS.get(version)
                if read is None:
                    raise ValueError(f"unknown version {version} of the npy format")
                shape, _, dtype = read(file)
                held = member.file_size - file.tell()
        except Exception as error:  # as above
            raise _unreadable(path, key, error) from None
    if dtype.hasobject:
        raise MdftError(
            f"{path}: key {key!r} is not readable: Object arrays are pickled, and may run code"
        )
    if math.prod(shape) * dtype.itemsize != held:
        raise MdftError(
            f"{path}: key {key!r} must hold {list(shape)} in {dtype} as its header says, got "
            f"{held:,} bytes"
        )
    return shape, dtype


def _unreadable(path: str | os.PathLike[str], key: str, error: Exception) -> MdftError:
    return MdftError(f"{path}: key {key!r} is not readable: {type(error).__name__}: {error}")


def check_npz(source: NpzSource) -> None:
    """Refuses an npz file that lacks an array, or has one of a wrong form, by headers alone."""
    path = source.path
    shape, dtype = npz_form(path, source.x)
    images = len(shape) in (3, 4) and (dtype == np.uint8 or dtype.kind == "f")
    if not images:
        raise MdftError(
            f"{path}: key {source.x!r}: images must be uint8 [n, H, W, 3] or [n, H, W], or float "
            f"[n, 3, H, W], got {list(shape)} in {dtype}"
        )
    if source.y is not None:
        count = shape[0]
        shape, dtype = npz_form(path, source.y)
        if shape != (count,) or dtype.kind not in "ui":
            raise MdftError(
                f"{path}: key {source.y!r}: must be whole numbers [{count}], one for each image, "
                f"got {list(shape)} in {dtype}"
            )


def _check_key(path: str | os.PathLike[str], key: str, known: Sequence[str]) -> None:
    if key not in known:
        raise MdftError(f"{path}: key {key!r} is missing, got {list(known)}{nearest(key, known)}")


def npz_keys(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of an npz file's arrays; none of them is read."""
    with _open_npz(path) as archive:
        return tuple(archive.files)


def _open_npz(path: str | os.PathLike[str]) -> Any:
    regular(path)
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # zipfile and numpy raise a dozen kinds for damage
        raise MdftError(f"{path}: not a readable npz file: {error}") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise MdftError(f"{path}: must be an npz archive of named arrays, got one array")
    return archive


def read_class_names(path: str | os.PathLike[str], key: str = "class_names") -> tuple[str, ...]:
    """Reads a list of class names, a unicode array ``[C]``, from an npz file."""
    names = read_npz(path, key)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise MdftError(
            f"{path}: key {key!r} must be a unicode array [C], got {list(names.shape)} in "
            f"{names.dtype}"
        )
    return tuple(str(name) for name in names)


def as_tensor(array: Array | Tensor, label: str) -> Tensor:
    """Returns an array as a tensor, without a copy where that is possible."""
    if isinstance(array, Tensor):
        return array.detach()
    if not isinstance(array, np.ndarray):
        raise MdftError(f"{label}: must be an array or a tensor, got {type(array).__name__}")
    if array.dtype.kind not in "uif":
        raise MdftError(f"{label}: must hold numbers, got dtype {array.dtype}")
    if not array.dtype.isnative or not array.flags.c_contiguous:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    with warnings.catch_warnings():  # read-only arrays, such as mapped ones: we never write
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def stack_images(dataset: Any, label: str, preprocess: Preprocess) -> Tensor:
    """Decodes every image of a dataset once, into one tensor.

    Of an item that is a tuple or a list only the first entry, the image, is touched.

    Args:
        dataset: has ``len`` and ``[i]``; items are images or begin with one. An image is a PIL
            image, which is resized and cropped; a uint8 array ``[H, W]``, ``[H, W, 3]`` or tensor
            ``[3, H, W]``; or a float tensor ``[3, H, W]`` that the user's transform has already
            normalised.
        label: what an error calls it.
        preprocess: how PIL images are resized.

    Returns:
        uint8 ``[n, H, W, c]`` or float32 ``[n, c, H, W]``.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise MdftError(
            f"{label}: must be an array, a tensor, an NpzSource or a dataset with a length, got "
            f"{type(dataset).__name__}"
        )
    count = len(dataset)
    stacked: Tensor | None = None
    for i in range(count):
        item = dataset[i]
        image = item[0] if isinstance(item, (tuple, list)) else item
        image = _image(fit(image, preprocess) if is_pil(image) else image, f"{label}: item {i}")
        if stacked is None:
            stacked = torch.empty((count, *image.shape), dtype=image.dtype, device="cpu")
        if image.shape != stacked.shape[1:] or image.dtype != stacked.dtype:
            raise MdftError(
                f"{label}: item {i} must be {list(stacked.shape[1:])} in {stacked.dtype} as item "
                f"0, got {list(image.shape)} in {image.dtype}"
            )
        stacked[i] = image
    if stacked is None:
        raise MdftError(f"{label}: holds no sample; wanted one or more")
    return stacked


def _image(image: Any, label: str) -> Tensor:
    if not isinstance(image, (np.ndarray, Tensor)):
        raise MdftError(f"{label} must be an image or begin with one, got {type(image).__name__}")
    is_tensor = isinstance(image, Tensor)
    tensor = as_tensor(image, label)
    if tensor.dim() not in (2, 3):
        raise MdftError(f"{label} must be an image of 2 or 3 dimensions, got {list(tensor.shape)}")
    if tensor.is_floating_point():
        return tensor.float() if tensor.dim() == 3 else tensor.float()[None]
    if tensor.dim() == 2:
        return tensor[..., None]
    channels_first = is_tensor and tensor.shape[0] in (1, 3) and tensor.shape[2] not in (1, 3)
    return tensor.permute(1, 2, 0) if channels_first else tensor
