# SPDX-License-Identifier: Apache-2.0
"""The vocabularies against the data sets in torchvision, built small on the disk as they lie."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdft_fast.errors import MdftError
from mdft_fast.heads import DATASETS, check_order, class_labels, class_names, is_dataset, templates

datasets = pytest.importorskip("torchvision.datasets")

COUNTS = {
    "sun397": 397, "stanford_cars": 196, "resisc45": 45, "eurosat": 10,
    "svhn": 10, "gtsrb": 43, "mnist": 10, "dtd": 47,
}  # fmt: skip


def numbered(labels: tuple[str, ...] | list[str]) -> dict[str, int]:
    return {label: i for i, label in enumerate(labels)}


def save_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_vocabulary_is_whole(dataset: str) -> None:
    names, labels, prompts = class_names(dataset), class_labels(dataset), templates(dataset)
    assert len(names) == len(labels) == COUNTS[dataset]
    assert len(set(names)) == len(names)
    assert len({re.sub(r"[^a-z0-9]", "", label.lower()) for label in labels}) == len(labels)
    assert all(name == name.strip() and "_" not in name for name in names)
    assert prompts
    assert all(prompt.count("{}") == 1 for prompt in prompts)
    check_order(dataset, numbered(labels))
    check_order(dataset, numbered(names))


@pytest.mark.parametrize(
    ("dataset", "count", "first"),
    [
        ("sun397", 2, "a photo of a {}."),
        ("Cars", 8, "a photo of a {}."),
        ("RESISC45", 18, "satellite imagery of {}."),
        ("EuroSAT", 3, "a centered satellite photo of {}."),
        ("SVHN", 1, 'a photo of the number: "{}".'),
        ("GTSRB", 3, 'a zoomed in photo of a "{}" traffic sign.'),
        ("MNIST", 1, 'a photo of the number: "{}".'),
        ("DTD", 8, "a photo of a {} texture."),
    ],
)
def test_templates_are_clips(dataset: str, count: int, first: str) -> None:
    found = templates(dataset)
    assert (len(found), len(set(found)), found[0]) == (count, count, first)


@pytest.mark.parametrize(
    ("given", "dataset"),
    [("Cars", "stanford_cars"), ("Stanford-Cars", "stanford_cars"), ("Sun 397", "sun397")],
)
def test_a_data_sets_name_may_be_written_in_many_ways(given: str, dataset: str) -> None:
    assert is_dataset(given)
    assert class_names(given) == class_names(dataset)


def test_an_unknown_data_set_is_named() -> None:
    assert not is_dataset("resisc")
    with pytest.raises(MdftError, match=r"got 'resisc'; did you mean 'resisc45'\?"):
        class_names("resisc")
    with pytest.raises(MdftError, match="dataset must be one of"):
        check_order("imagenet", {})


# Against torchvision.


def test_order_of_eurosat(tmp_path: Path) -> None:
    for label in reversed(class_labels("eurosat")):
        save_image(tmp_path / "eurosat" / "2750" / label / f"{label}_1.png")
    found = datasets.EuroSAT(tmp_path)
    assert found.class_to_idx == numbered(class_labels("eurosat"))
    check_order("eurosat", found.class_to_idx)
    assert class_names("eurosat")[found.class_to_idx["SeaLake"]] == "lake or sea"
    assert class_names("eurosat")[found.class_to_idx["AnnualCrop"]] == "annual crop land"


def test_order_of_gtsrb(tmp_path: Path) -> None:
    for label in class_labels("gtsrb"):
        save_image(tmp_path / "gtsrb" / "GTSRB" / "Training" / label / "0.ppm")
    found = datasets.GTSRB(tmp_path, split="train")
    folders = {Path(file).parent.name: index for file, index in found._samples}
    assert folders == numbered(class_labels("gtsrb"))
    check_order("gtsrb", folders)
    assert class_names("gtsrb")[14] == "stop"


def test_order_of_mnist() -> None:
    assert list(class_labels("mnist")) == datasets.MNIST.classes
    check_order("mnist", numbered(datasets.MNIST.classes))


def test_order_of_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files call the digit 0 a 10; torchvision calls it 0."""
    io = pytest.importorskip("scipy.io")
    content = {
        "X": np.zeros((2, 2, 3, 10), np.uint8),
        "y": np.arange(1, 11, dtype=np.uint8)[:, None],
    }
    io.savemat(tmp_path / "test_32x32.mat", content)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    found = datasets.SVHN(tmp_path, split="test").labels.tolist()
    assert [class_names("svhn")[label] for label in found] == list("1234567890")
    check_order("svhn", {str(label): label for label in found})


def test_order_of_dtd(tmp_path: Path) -> None:
    labels = class_labels("dtd")
    folder = tmp_path / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    (folder / "images").mkdir()
    lines = "".join(f"{label}/{label}_0001.jpg\n" for label in reversed(labels))
    (folder / "labels" / "test1.txt").write_text(lines)
    found = datasets.DTD(tmp_path, split="test")
    assert found.class_to_idx == numbered(labels)
    check_order("dtd", found.class_to_idx)


def test_order_of_sun397(tmp_path: Path) -> None:
    labels = class_labels("sun397")
    assert list(labels) == sorted(labels)
    folder = tmp_path / "SUN397"
    folder.mkdir()
    (folder / "ClassName.txt").write_text("".join(f"/{label[0]}/{label}\n" for label in labels))
    for label in ("church/outdoor", "jail_cell"):
        save_image(folder / label[0] / label / "sun_a.jpg")
    found = datasets.SUN397(tmp_path)
    check_order("sun397", found.class_to_idx)
    names = class_names("sun397")
    assert {names[i] for i in found._labels} == {"church outdoor", "jail cell"}
    assert names == tuple(re.sub("[/_]", " ", label) for label in labels)


def test_order_of_stanford_cars(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    labels = class_labels("stanford_cars")
    devkit = tmp_path / "stanford_cars" / "devkit"
    devkit.mkdir(parents=True)
    (tmp_path / "stanford_cars" / "cars_train").mkdir()
    io.savemat(devkit / "cars_meta.mat", {"class_names": np.array(labels, object)})
    notes = np.array([("1.jpg", 1), ("2.jpg", 196)], [("fname", "O"), ("class", "O")])
    io.savemat(devkit / "cars_train_annos.mat", {"annotations": notes})
    found = datasets.StanfordCars(tmp_path)
    check_order("stanford_cars", found.class_to_idx)
    assert [class_names("Cars")[label] for _, label in found._samples] == [
        "AM General Hummer SUV 2000",
        "smart fortwo Convertible 2012",
    ]


def test_order_of_resisc45(tmp_path: Path) -> None:
    for label in class_labels("resisc45"):
        save_image(tmp_path / label / f"{label}_001.jpg")
    found = datasets.ImageFolder(tmp_path)
    assert found.class_to_idx == numbered(class_labels("resisc45"))
    check_order("resisc45", found.class_to_idx)


# The traps.


def test_prompts_md_has_eurosat_in_another_order() -> None:
    listed = ["forest", "permanent crop land", "residential buildings or homes or apartments",
              "river", "pasture land", "lake or sea", "brushland or shrubland",
              "annual crop land", "industrial buildings or commercial buildings",
              "highway or road"]  # fmt: skip
    assert set(listed) == set(class_names("eurosat"))
    with pytest.raises(MdftError, match=r"'forest' 1, got 0, 'permanent crop land' 6, got 1"):
        check_order("eurosat", numbered(listed))


def test_flat_folders_of_sun397_swap_two_classes() -> None:
    """As ``a_abbey``, sorted: '_' stands in for '/', and jail_cell comes before jail/indoor."""
    flat = sorted(f"{label[0]}_{label.replace('/', '_')}" for label in class_labels("sun397"))
    with pytest.raises(MdftError, match=r"\(2 of 397 differ\)"):
        check_order("sun397", numbered(flat))
    there = flat.index("j_jail_cell")
    assert flat[there + 1] == "j_jail_indoor"
    flat[there], flat[there + 1] = flat[there + 1], flat[there]
    check_order("sun397", numbered(flat))


def test_sorted_folders_of_stanford_cars_are_another_order() -> None:
    folders = sorted(label.replace("/", "-") for label in class_labels("stanford_cars"))
    with pytest.raises(MdftError, match="'Acura Integra Type R 2001' 5, got 1"):
        check_order("stanford_cars", numbered(folders))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"AnnualCrop": 0, "Desert": 1},
            r"must name the classes of the data set, got \['Desert'\]",
        ),
        ({"AnnualCrop": 0}, r"each of 10 classes once, got 1, without \['Forest', 'Herb.* 6 more"),
        ({"AnnualCrop": 0, "annual crop land": 0}, "each of 10 classes once, got 2"),
    ],
)
def test_labels_that_do_not_cover_the_classes(labels: dict[str, int], message: str) -> None:
    with pytest.raises(MdftError, match=message):
        check_order("eurosat", labels)


def test_every_file_says_where_it_comes_from() -> None:
    import json

    folder = Path(__file__).parents[2] / "mdft_fast" / "heads" / "vocabularies"
    files = sorted(folder.glob("*.json"))
    assert [file.stem for file in files] == sorted(DATASETS)
    for file in files:
        content = json.loads(file.read_text())
        assert "openai/CLIP" in content["source"]
        assert content["license"] == "MIT License, Copyright (c) 2021 OpenAI"
    assert "Copyright (c) 2021 OpenAI" in (folder / "LICENSE").read_text()
