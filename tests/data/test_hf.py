# SPDX-License-Identifier: Apache-2.0
"""Data sets of Hugging Face's ``datasets``, from the disk."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdft_fast.checkpoints import as_preprocess
from mdft_fast.data import HfSource, load_labelled, load_samples
from mdft_fast.data.images.decoding import fit
from mdft_fast.errors import MdftError
from tests.data.on_disk import noise, write_parquet

pytestmark = pytest.mark.usefixtures("own_cache")
PREPROCESS = {"size": 12, "mean": 0.5, "std": 0.5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """saved/: a data set with two splits; parquet/: the same as files; one.parquet."""
    folder = tmp_path_factory.mktemp("hf")
    labels = {"train": [0, 1, 0, 1, 0], "test": [0, 1, 0, 1]}
    parts = write_parquet(folder / "parquet", ("cat", "dog"), labels)
    parts.save_to_disk(str(folder / "saved"))
    parts["test"].save_to_disk(str(folder / "alone"))
    return folder


def test_saved_and_parquet_agree(saved: Path) -> None:
    one = load_samples(HfSource(saved / "saved"), PREPROCESS)
    other = load_samples(HfSource(saved / "parquet"), PREPROCESS)
    assert one.x.shape == (5, 12, 12, 3)
    assert torch.equal(one.x, other.x)
    for source in (
        HfSource(saved / "saved"),
        HfSource(saved / "alone"),
        HfSource(saved / "parquet"),
        HfSource(saved / "parquet" / "test-00000-of-00001.parquet"),
    ):
        samples, labels = load_labelled(source, PREPROCESS, 2)
        assert labels.tolist() == [0, 1, 0, 1]
        assert source.listing("test").class_names == ("cat", "dog")
        assert len(samples) == 4


def test_mistakes_are_named(saved: Path) -> None:
    with pytest.raises(MdftError, match=r"split must be one of \['test', 'train'\], got 'tst'"):
        HfSource(saved / "saved", "tst").listing("test")
    with pytest.raises(MdftError, match=r"column 'img' is missing, got \['image', 'label'\]"):
        HfSource(saved / "saved", image="img").listing("test")
    with pytest.raises(MdftError, match=r"column 'y' is missing"):
        load_labelled(HfSource(saved / "saved", label="y"), PREPROCESS, 2)
    assert len(load_samples(HfSource(saved / "saved", label="y"), PREPROCESS)) == 5
    with pytest.raises(MdftError, match=r"must hold val-\*.parquet, got \['test-00000"):
        HfSource(saved / "parquet", "val").listing("test")


def test_labels_of_a_wrong_form_show_before_they_are_read(saved: Path) -> None:
    HfSource(saved / "saved").check_labels("test")
    with pytest.raises(MdftError, match=r"column 'y' is missing"):
        HfSource(saved / "saved", label="y").check_labels("test")
    with pytest.raises(MdftError, match=r"column 'image' must hold whole numbers, .* got PIL"):
        HfSource(saved / "saved", label="image").check_labels("test")


def test_images_are_turned_as_datasets_does(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra 'hf'")
    image, file = Image.fromarray(noise(np.random.default_rng(1), 12, 20)), io.BytesIO()
    exif = image.getexif()
    exif[0x112] = 6
    image.save(file, "PNG", exif=exif)
    rows = {"image": [{"bytes": file.getvalue(), "path": None}]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path))
    theirs = datasets.load_from_disk(str(tmp_path))[0]["image"]
    wanted = fit(theirs, as_preprocess(PREPROCESS))
    assert np.array_equal(load_samples(HfSource(tmp_path), PREPROCESS).x[0], wanted)
    plain = load_samples(HfSource(tmp_path, exif=False), PREPROCESS).x[0]
    assert np.array_equal(plain, fit(image, as_preprocess(PREPROCESS)))


def test_a_path_with_nothing_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"none: must be a folder of datasets' save_to_disk or"):
        HfSource(tmp_path / "none").listing("test")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is there")
def test_the_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"needs datasets; pip install 'mdft-fast\[hf\]'"):
        HfSource(tmp_path).listing("test")
