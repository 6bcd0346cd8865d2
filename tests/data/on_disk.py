# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets in the on-disk formats of the real ones: who has the files changes paths only.

Every writer takes the folder that a recipe names as ``root`` (or ``folder``) and returns, split by
split, the labels in the order in which the data set lists its images. Images are noise, all
different, larger or smaller than any model's input, and no two sizes are alike.
"""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

Labels = dict[str, list[int]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

Names = Sequence[str]
CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
DIGITS = tuple("0123456789")
PLACES = ("airplane", "baseball_diamond", "wetland")  # some of RESISC45's
SIGNS = ("0", "1", "2")
SUN397 = ("abbey", "airplane_cabin", "apartment_building/outdoor")
TEXTURES = ("banded", "blotchy", "zigzagged")
EUROSAT = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture"),
    *("PermanentCrop", "Residential", "River", "SeaLake"),
)


class Writer(Protocol):
    """Writes a data set of so many classes and images a class (of each split)."""

    def __call__(
        self, root: Path, classes: Names = ..., *, each: int = ..., seed: int = ...
    ) -> Labels: ...


def noise(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> Pixels:
    """Returns coarse noise, which JPEG keeps: uint8 [height, width, channels]."""
    coarse = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    images = [Image.fromarray(coarse[..., c]).resize((width, height)) for c in range(channels)]
    return np.stack([np.asarray(image) for image in images], -1)


def _save(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = (int(edge) for edge in rng.integers(20, 60, 2))
    Image.fromarray(noise(rng, height, width)).save(path)


def _cells(classes: Sequence[str], each: int) -> Iterator[tuple[int, str, int]]:
    yield from ((c, name, i) for c, name in enumerate(classes) for i in range(each))


def write_sun397(root: Path, classes: Names = SUN397, *, each: int = 3, seed: int = 0) -> Labels:
    """SUN397/{ClassName.txt, Training_01.txt, Testing_01.txt, a/abbey/sun_*.jpg}."""
    rng, folder, labels = np.random.default_rng(seed), root / "SUN397", Labels()
    places = [f"/{name[0]}/{name}" for name in classes]
    for split, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        lines = []
        for c, _, i in _cells(classes, each):
            lines.append(f"{places[c]}/sun_{split}{seed}{c:03}{i:04}.jpg")
            _save(folder / lines[-1].strip("/"), rng)
        (folder / file).write_text("\n".join(lines) + "\n")
        labels[split] = [c for c, _, _ in _cells(classes, each)]
    (folder / "ClassName.txt").write_text("\n".join(places) + "\n")
    return labels


def write_cars(root: Path, classes: Names = CARS, *, each: int = 3, seed: int = 0) -> Labels:
    """stanford_cars/{devkit/*.mat, cars_train/*.jpg, cars_test/*.jpg}; classes count from 1."""
    from scipy.io import savemat

    rng, folder, labels = np.random.default_rng(seed), root / "stanford_cars", Labels()
    (folder / "devkit").mkdir(parents=True)
    names = np.array([*classes, ""], dtype=object)[:-1].reshape(1, -1)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, file in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        labels[split] = [c for c, _, _ in _cells(classes, each)][::-1]
        fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        rows = np.zeros((1, len(labels[split])), dtype=[(field, object) for field in fields])
        for i, label in enumerate(labels[split]):
            name = f"{i + 1:05}.jpg"
            _save(folder / f"cars_{split}" / name, rng)
            rows[0, i] = (1, 1, 9, 9, label + 1, name)
        savemat(folder / file, {"annotations": rows})
    return labels


def write_eurosat(root: Path, classes: Names = EUROSAT, *, each: int = 3, seed: int = 0) -> Labels:
    """eurosat/2750/<Class>/<Class>_<number>.jpg; no split: the labels are of all, by file name."""
    rng = np.random.default_rng(seed)
    for _, name, i in _cells(classes, each):
        _save(root / "eurosat" / "2750" / name / f"{name}_{i + 1}.jpg", rng)
    return {"all": [c for c, _, _ in _cells(classes, each)]}


def write_svhn(root: Path, classes: Names = DIGITS, *, each: int = 2, seed: int = 0) -> Labels:
    """{train,test}_32x32.mat: X uint8 [32, 32, 3, n], y uint8 [n, 1], where 10 means 0."""
    from scipy.io import savemat

    rng, labels = np.random.default_rng(seed), Labels()
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        labels[split] = [c for c, _, _ in _cells(classes, each)]
        images = np.stack([noise(rng, 32, 32) for _ in labels[split]], -1)
        y = np.array([[label or 10] for label in labels[split]], np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": images, "y": y})
    return labels


def write_gtsrb(root: Path, classes: Names = SIGNS, *, each: int = 3, seed: int = 0) -> Labels:
    """gtsrb/GTSRB/Training/<00000>/*.ppm; Final_Test/Images/*.ppm with GT-final_test.csv."""
    rng, folder, labels = np.random.default_rng(seed), root / "gtsrb", Labels()
    header = ["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"]
    for c, _, i in _cells(classes, each):
        _save(folder / "GTSRB" / "Training" / f"{c:05}" / f"{i:05}_00000.ppm", rng)
    labels["train"] = [c for c, _, _ in _cells(classes, each)]
    labels["test"] = labels["train"][::-1]
    with open(folder / "GT-final_test.csv", "w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(header)
        for i, label in enumerate(labels["test"]):
            _save(folder / "GTSRB" / "Final_Test" / "Images" / f"{i:05}.ppm", rng)
            rows.writerow([f"{i:05}.ppm", 9, 9, 0, 0, 9, 9, label])
    return labels


def write_mnist(root: Path, classes: Names = DIGITS, *, each: int = 2, seed: int = 0) -> Labels:
    """MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte."""
    rng, folder, labels = np.random.default_rng(seed), root / "MNIST" / "raw", Labels()
    folder.mkdir(parents=True)
    for split, part in (("train", "train"), ("test", "t10k")):
        labels[split] = [c for c, _, _ in _cells(classes, each)]
        images = np.stack([noise(rng, 28, 28, 1)[..., 0] for _ in labels[split]])
        head = struct.pack(">4i", 0x0803, len(images), 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">2i", 0x0801, len(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(labels[split]))
    return labels


def write_dtd(root: Path, classes: Names = TEXTURES, *, each: int = 2, seed: int = 0) -> Labels:
    """dtd/dtd/{images/<class>/<class>_<number>.jpg, labels/{train,val,test}1.txt}."""
    rng, folder, labels = np.random.default_rng(seed), root / "dtd" / "dtd", Labels()
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        lines = [f"{name}/{name}_{split}{i:04}.jpg" for _, name, i in _cells(classes, each)]
        for line in lines:
            _save(folder / "images" / line, rng)
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
        labels[split] = [c for c, _, _ in _cells(classes, each)]
    return labels


def write_folders(root: Path, classes: Names = PLACES, *, each: int = 5, seed: int = 0) -> Labels:
    """<class>/<class>_<number>.jpg, as RESISC45 comes; no split: the labels are of all."""
    rng = np.random.default_rng(seed)
    for _, name, i in _cells(classes, each):
        _save(root / name / f"{name}_{i + 1:03}.jpg", rng)
    return {"all": [c for c, _, _ in _cells(classes, each)]}


def write_parquet(root: Path, classes: Names, labels: Mapping[str, Sequence[int]]) -> Any:
    """<split>-00000-of-00001.parquet, as Hugging Face has them; returns the splits by name."""
    datasets: Any = pytest.importorskip("datasets", reason="needs the extra 'hf'")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    rng, parts = np.random.default_rng(0), datasets.DatasetDict()
    root.mkdir(exist_ok=True)
    for split, numbers in labels.items():
        images = [Image.fromarray(noise(rng, 30, 20 + i)) for i in range(len(numbers))]
        rows = {"image": images, "label": numbers}
        parts[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        parts[split].to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return parts


# torchvision's name of the data set -> its writer.
WRITERS: dict[str, Writer] = {
    "SUN397": write_sun397,
    "StanfordCars": write_cars,
    "EuroSAT": write_eurosat,
    "SVHN": write_svhn,
    "GTSRB": write_gtsrb,
    "MNIST": write_mnist,
    "DTD": write_dtd,
}
