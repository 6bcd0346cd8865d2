# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from mdft_fast.data import (
    NpzSource,
    Samples,
    check_npz,
    load_labelled,
    load_samples,
    npz_keys,
    read_class_names,
    unshared,
)
from mdft_fast.errors import MdftError
from tests.data.conftest import PREPROCESS

INDICES = torch.tensor([5, 0, 5])


def _wanted(images: Any, indices: torch.Tensor) -> torch.Tensor:
    """Returns (x / 255 - mean) / std in float64."""
    mean = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1)
    picked = torch.from_numpy(images.astype(np.float64))[indices].permute(0, 3, 1, 2)
    return (picked / 255 - mean) / std


def _check(samples: Samples, images: Any) -> None:
    batch = samples.batch(INDICES)
    assert len(samples) == len(images)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    # Four roundings of float32, the last of values up to 7; the mean's own is magnified by 1/std.
    torch.testing.assert_close(batch.double(), _wanted(images, INDICES), rtol=0, atol=2e-6)


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Poisoned(tuple[Any, ...]):
    """A pair whose label may not be read."""

    def __getitem__(self, index: Any) -> Any:
        assert index == 0, "a label was touched"
        return super().__getitem__(index)

    def __iter__(self) -> Any:
        raise AssertionError("a label was touched")


def test_arrays_tensors_npz_and_datasets_agree(images: Any, npz: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    sources = [
        images,
        torch.from_numpy(images),
        NpzSource(npz, "x"),
        Items([(image, 1) for image in images]),
        Items(list(images)),
        Items([torch.from_numpy(image).permute(2, 0, 1) for image in images]),
        Items([(pil.fromarray(image), 3) for image in images]),
        np.asfortranarray(images),
    ]
    for source in sources:
        samples = load_samples(source, PREPROCESS)
        assert samples.x.dtype == torch.uint8  # kept as small as it came
        _check(samples, images)


def test_grayscale_is_repeated(images: Any) -> None:
    gray = images[..., 0]
    three = np.repeat(gray[..., None], 3, axis=-1)
    _check(load_samples(gray, PREPROCESS), three)
    _check(load_samples(gray[..., None], PREPROCESS), three)
    _check(load_samples(Items(list(gray)), PREPROCESS), three)
    assert load_samples(gray, PREPROCESS).x.shape[3] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_taken_as_normalised(dtype: Any, images: Any) -> None:
    floats = (images.transpose(0, 3, 1, 2) / 255).astype(dtype)
    batch = load_samples(floats, PREPROCESS).batch(INDICES)
    assert torch.equal(batch, torch.from_numpy(floats.astype(np.float32))[INDICES])
    pairs = TensorDataset(torch.from_numpy(floats.astype(np.float32)), torch.zeros(7))
    assert torch.equal(load_samples(pairs, PREPROCESS).batch(INDICES), batch)
    gray = load_samples(floats[:, :1], PREPROCESS).batch(INDICES)
    assert torch.equal(gray, batch[:, :1].expand(-1, 3, -1, -1))


def test_floats_on_the_scale_of_bytes_are_refused(images: Any) -> None:
    with pytest.raises(MdftError, match=r"float images are taken as normalised, .* got 2\d\d"):
        load_samples(images.transpose(0, 3, 1, 2).astype(np.float32), PREPROCESS)


def test_wrong_forms_show_in_the_header(images: Any, tmp_path: Path) -> None:
    labels = {
        "y": np.arange(7), "one_hot": np.eye(7), "float": np.arange(7.0), "short": np.arange(6),
        "x16": images.astype(np.uint16),
    }  # fmt: skip
    np.savez(tmp_path / "a.npz", x=images, **labels)
    file = tmp_path / "a.npz"
    check_npz(NpzSource(file, "x", "y"))
    for key, got in (("one_hot", r"\[7, 7\]"), ("float", r"\[7\] in float64"), ("short", r"\[6\]")):
        with pytest.raises(MdftError, match=rf"{key}': must be whole numbers \[7\], .*got {got}"):
            check_npz(NpzSource(file, "x", key))
    with pytest.raises(MdftError, match=r"'x16': images must be uint8 .*in uint16"):
        check_npz(NpzSource(file, "x16"))


def test_arrays_are_kept_mapped_and_never_written(
    images: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    samples = load_samples(mapped, PREPROCESS)
    assert samples.x.data_ptr() == mapped.ctypes.data
    _check(samples, images)
    assert np.array_equal(mapped, images)
    assert not recwarn.list


def test_some_of_the_samples(images: Any) -> None:
    samples = load_samples(images, PREPROCESS)
    some = samples.take(torch.tensor([1, 3, 4, 6])).take(torch.tensor([3, 0]))
    assert len(some) == 2
    everything = torch.arange(2)
    assert torch.equal(some.batch(everything), samples.batch(torch.tensor([6, 1])))
    assert np.array_equal(some.digests(), samples.digests()[[6, 1]])
    assert some.x.data_ptr() == samples.x.data_ptr()
    assert len(unshared(samples, some)) == len(samples) - 2


def test_a_batch_lands_on_the_device_asked_for(images: Any) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    samples = load_samples(images, PREPROCESS)
    held = samples.to(device)
    assert held.batch(INDICES, device).device.type == device
    assert torch.equal(held.batch(INDICES, device), samples.batch(INDICES, device))
    assert samples.batch(INDICES, "meta").shape == (3, 3, 4, 6)


def test_labels_are_never_touched(images: Any, npz: Path) -> None:
    _check(load_samples(NpzSource(npz, "x", "y_pickled"), PREPROCESS), images)
    with pytest.raises(MdftError, match=r"data.npz: key 'y_pickled' is not readable"):
        load_labelled(NpzSource(npz, "x", "y_pickled"), PREPROCESS, 3)
    _check(load_samples(Items([Poisoned((i, 0)) for i in images]), PREPROCESS), images)


def test_labelled_sources_agree(images: Any, npz: Path) -> None:
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    sources = [
        NpzSource(npz, "x", "y"),
        (images, labels),
        (torch.from_numpy(images), torch.from_numpy(labels.astype(np.int16))),
        Items(list(zip(images, labels, strict=True))),
    ]
    for source in sources:
        samples, read = load_labelled(source, PREPROCESS, 3)  # type: ignore[arg-type]
        _check(samples, images)
        assert read.dtype == torch.int64
        assert torch.equal(read, torch.from_numpy(labels))


KEYS = {
    "z": r"data.npz: key 'z' is missing, got \['x', ",
    "smal": r"data.npz: key 'smal' is missing.*did you mean 'small'\?",
    "x_pickled": r"data.npz: key 'x_pickled' is not readable: Object arrays",
    "empty": r"data.npz: key 'empty': holds no sample, got \[0, 4, 6, 3\] in uint8",
    "small": r"key 'small': images must be 4 x 6 pixels as the pool's preprocess says, got 3 x 6",
    "int64": r"key 'int64': images must be uint8 \[n, H, W, 3\].*got \[7, 4, 6, 3\] in int64",
    "flat": r"key 'flat': images must be uint8 .*got \[7, 72\] in uint8",
    "channels": r"key 'channels': images must be uint8 .*got \[7, 4, 6, 2\] in uint8",
    "nan": r"key 'nan': images must be finite, got 2 NaN",
    "words": r"key 'words': must hold numbers, got dtype <U1",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_key_or_array_is_named(key: str, npz: Path) -> None:
    with pytest.raises(MdftError, match=KEYS[key]) as caught:
        load_samples(NpzSource(npz, key), PREPROCESS)
    assert "\n" not in str(caught.value)


LABELS = {
    "y_high": r"data.npz: key 'y_high': must lie in \[0, 3\), got 3 \(2 of 7 labels lie outside",
    "y_low": r"key 'y_low': must lie in \[0, 3\), got -1 \(1 of 7",
    "y_short": r"key 'y_short': must be whole numbers \[7\], one for each image, got \[2\]",
    "y_float": r"key 'y_float': must be whole numbers \[7\].*got \[7\] in torch.float64",
    None: r"data.npz: no key of labels is given",
}


@pytest.mark.parametrize("key", LABELS)
def test_wrong_labels_are_named(key: str | None, npz: Path) -> None:
    with pytest.raises(MdftError, match=LABELS[key]):
        load_labelled(NpzSource(npz, "x", key), PREPROCESS, 3)


@pytest.mark.parametrize("keep", [0, 10, 400, -30, -2000])
def test_a_truncated_file_is_named(keep: int, npz: Path) -> None:
    npz.write_bytes(npz.read_bytes()[:keep])
    with pytest.raises(MdftError, match=r"data.npz: not a readable npz file"):
        load_samples(NpzSource(npz, "x"), PREPROCESS)


def test_damaged_bytes_are_named(npz: Path) -> None:
    content = bytearray(npz.read_bytes())
    content[100:140] = b"\x55" * 40
    npz.write_bytes(content)
    with pytest.raises(MdftError, match=r"data.npz: key 'x' is not readable"):
        load_samples(NpzSource(npz, "x"), PREPROCESS)


def _poisoned_pickle(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps({"x": 1}))


def test_other_files_are_refused_unread(images: Any, tmp_path: Path) -> None:
    _poisoned_pickle(tmp_path / "a.npz")
    with pytest.raises(MdftError, match=r"a.npz: not a readable npz file"):
        load_samples(NpzSource(tmp_path / "a.npz", "x"), PREPROCESS)
    np.save(tmp_path / "b.npy", images)
    with pytest.raises(MdftError, match=r"b.npy: must be an npz archive of named arrays"):
        load_samples(NpzSource(tmp_path / "b.npy", "x"), PREPROCESS)
    with pytest.raises(MdftError, match=r"none.npz: no such file"):
        load_samples(NpzSource(tmp_path / "none.npz", "x"), PREPROCESS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data.npz", r"data.npz: a path alone names no array; use NpzSource"),
        ((np.zeros(3), np.zeros(3)), r"must be images alone, got a tuple"),
        (7, r"samples \(int\): must be an array, a tensor, an NpzSource or a dataset"),
        (Items([]), r"samples \(Items\): holds no sample"),
        (Items([{"image": 1}]), r"item 0 must be an image or begin with one, got dict"),
        (
            Items([np.zeros(3, np.uint8)]),
            r"item 0 must be an image of 2 or 3 dimensions, got \[3\]",
        ),
        (
            Items([np.zeros((4, 6, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)]),
            r"item 1 must be \[4, 6, 3\] in torch.uint8 as item 0, got \[4, 5, 3\]",
        ),
    ],
)
def test_a_wrong_source_is_named(source: Any, message: str) -> None:
    with pytest.raises(MdftError, match=message):
        load_samples(source, PREPROCESS)


def test_wrong_labelled_sources_are_named(images: Any) -> None:
    with pytest.raises(MdftError, match=r"must be a tuple \(x, y\), got 1 entries"):
        load_labelled((images,), PREPROCESS, 3)  # type: ignore[arg-type]
    with pytest.raises(MdftError, match=r"labels: must be an array or a tensor, got list"):
        load_labelled((images, [0] * 7), PREPROCESS, 3)  # type: ignore[arg-type]
    with pytest.raises(MdftError, match=r"item 0 must be \(image, label\), got ndarray"):
        load_labelled(Items(list(images)), PREPROCESS, 3)


def test_keys(npz: Path, tmp_path: Path) -> None:
    assert npz_keys(npz)[:2] == ("x", "y")
    with pytest.raises(MdftError, match=r"none.npz: no such file"):
        npz_keys(tmp_path / "none.npz")


def test_class_names(npz: Path) -> None:
    assert read_class_names(npz) == ("cat", "dog", "emu")
    with pytest.raises(MdftError, match=r"key 'y' must be a unicode array \[C\], got \[7\]"):
        read_class_names(npz, "y")
