# SPDX-License-Identifier: Apache-2.0
"""Sources on disk: every data set in its own format, splits, class names, labels left alone."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mdft_fast.checkpoints import as_preprocess
from mdft_fast.data import (
    TORCHVISION_SETS,
    FolderSource,
    ListedSource,
    Task,
    TorchvisionSource,
    compare_class_names,
    load_labelled,
    load_samples,
    shared_images,
)
from mdft_fast.data.image_cache import cached_images
from mdft_fast.errors import MdftError
from mdft_fast.evaluation import load_test_sets
from mdft_fast.pool import Head
from tests.data.on_disk import EUROSAT, WRITERS, write_folders, write_mnist, write_svhn

pytest.importorskip("torchvision")
pytest.importorskip("scipy")
pytestmark = pytest.mark.usefixtures("own_cache")
PREPROCESS = {"size": 12, "mean": 0.5, "std": 0.5}


def reference(name: str, root: Path, split: str) -> Any:
    """Returns torchvision's own data set where it has this split."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    if name == "MNIST":
        return kind(str(root), train=split == "train")
    return None if name in ("SUN397", "EuroSAT", "SVHN") else kind(str(root), split=split)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_every_data_set_reads_as_it_lies_on_disk(name: str, tmp_path: Path) -> None:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    labels = WRITERS[name](tmp_path / "data")
    resize = transforms.Resize(12, interpolation=InterpolationMode.BICUBIC)
    for split in ("train", "test"):
        source = TorchvisionSource(name, tmp_path / "data", split)
        samples, read = load_labelled(source, PREPROCESS, 10)
        if name != "EuroSAT":  # it comes without splits
            assert read.tolist() == labels[split]
        theirs = reference(name, tmp_path / "data", split)
        for i in range(0 if theirs is None else len(theirs)):
            image, label = theirs[i]
            wanted = np.asarray(transforms.CenterCrop(12)(resize(image.convert("RGB"))))
            assert np.array_equal(samples.x[i].expand(-1, -1, 3), wanted)
            assert int(read[i]) == label
    adapt = load_samples(TorchvisionSource(name, tmp_path / "data"), PREPROCESS)
    test, _ = load_labelled(TorchvisionSource(name, tmp_path / "data"), PREPROCESS, 10)
    assert shared_images(adapt, test) == ([], [])  # train for the one, test for the other


def test_svhn_holds_its_pixels_and_its_tens_are_zeros(tmp_path: Path) -> None:
    from scipy.io import loadmat

    write_svhn(tmp_path)
    given = {**PREPROCESS, "size": 32}
    samples, labels = load_labelled(TorchvisionSource("SVHN", tmp_path, "test"), given, 10)
    stored = loadmat(tmp_path / "test_32x32.mat")
    assert np.array_equal(samples.x.numpy(), stored["X"].transpose(3, 0, 1, 2))
    assert labels.tolist() == (stored["y"].ravel() % 10).tolist()


def test_sun397_follows_the_first_partition(tmp_path: Path) -> None:
    from torchvision.datasets import SUN397

    WRITERS["SUN397"](tmp_path)
    listing = TorchvisionSource("SUN397", tmp_path).listing("test")
    assert listing.class_names == tuple(SUN397(str(tmp_path)).classes)
    lines = (tmp_path / "SUN397" / "Testing_01.txt").read_text().split()
    assert [f"/{path.relative_to(tmp_path / 'SUN397')}" for path in listing.files] == lines


def test_sun397s_labels_follow_a_corrected_list_of_classes(tmp_path: Path) -> None:
    wanted = WRITERS["SUN397"](tmp_path)["test"]
    file, source = tmp_path / "SUN397" / "ClassName.txt", TorchvisionSource("SUN397", tmp_path)
    right = file.read_text()
    file.write_text("\n".join(right.split()[::-1]))
    wrong = load_labelled(source, PREPROCESS, 3)[1]
    assert wrong.tolist() == [2 - label for label in wanted]
    file.write_text(right)
    assert load_labelled(source, PREPROCESS, 3)[1].tolist() == wanted
    assert file in source.listing("test").label_files


def test_eurosat_is_split_for_good(tmp_path: Path) -> None:
    from torchvision.datasets import EuroSAT

    WRITERS["EuroSAT"](tmp_path, each=4)
    parts = {}
    for split in ("train", "val", "test"):
        listing = TorchvisionSource("EuroSAT", tmp_path, split).listing("train")
        assert listing.class_names == tuple(EuroSAT(str(tmp_path)).classes) == EUROSAT
        named = [EUROSAT.index(path.parent.name) for path in listing.files]
        assert listing.open().labels() == named
        parts[split] = set(listing.files)
    assert {name: len(part) for name, part in parts.items()} == {"train": 32, "val": 4, "test": 4}
    assert len(set.union(*parts.values())) == 40
    again = TorchvisionSource("EuroSAT", tmp_path, "test").listing("train")
    assert set(again.files) == parts["test"]


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_what_is_missing_is_said_with_its_place(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(MdftError) as caught:
        TorchvisionSource(name, tmp_path / "data").listing("test")
    text = str(caught.value)
    assert text.startswith(f"{name}, split test: {tmp_path / 'data'} must hold ")
    assert "missing: " in text
    assert "Nothing is downloaded" in text
    assert "\n" not in text
    assert list((tmp_path / "data").iterdir()) == []
    with pytest.raises(MdftError, match=rf"{name}: split must be one of .*got 'tset'"):
        TorchvisionSource(name, tmp_path / "data", "tset").listing("test")


def test_a_data_set_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"got 'MNST'; did you mean 'MNIST'\?"):
        TorchvisionSource("MNST", tmp_path).listing("train")


@pytest.mark.parametrize("name", ["SVHN", "MNIST", "StanfordCars", "SUN397"])
def test_damaged_files_are_one_clear_error(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    files = {
        "SVHN": "test_32x32.mat", "MNIST": "MNIST/raw/t10k-images-idx3-ubyte",
        "StanfordCars": "stanford_cars/cars_test_annos_withlabels.mat",
        "SUN397": "SUN397/Testing_01.txt",
    }  # fmt: skip
    (tmp_path / files[name]).write_bytes(b"/x/none.jpg damaged")
    with pytest.raises(MdftError, match=r"not readable|no such file"):
        load_labelled(TorchvisionSource(name, tmp_path), PREPROCESS, 10)


def test_labels_of_what_is_adapted_to_may_be_anything(tmp_path: Path) -> None:
    write_mnist(tmp_path / "good")
    write_mnist(tmp_path / "bad")
    file = tmp_path / "bad" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:8] + bytes([255] * (len(content) - 8)))
    good, bad = (TorchvisionSource("MNIST", tmp_path / name, "train") for name in ("good", "bad"))
    assert torch.equal(load_samples(good, PREPROCESS).x, load_samples(bad, PREPROCESS).x)
    with pytest.raises(MdftError, match=r"labels: must lie in \[0, 10\), got 255"):
        load_labelled(bad, PREPROCESS, 10)


class Poisoned(ListedSource):
    """A source whose labels raise."""

    def __init__(self, source: ListedSource) -> None:
        self.source = source

    def listing(self, role: Any) -> Any:
        import dataclasses

        def poison() -> Any:
            raise AssertionError("a label was read")

        listing = self.source.listing(role)
        opened = listing.open()
        return dataclasses.replace(listing, open=lambda: dataclasses.replace(opened, labels=poison))


def test_loading_reads_no_label(tmp_path: Path, own_cache: Path) -> None:
    write_folders(tmp_path / "data")
    source = Poisoned(FolderSource(tmp_path / "data"))
    assert len(load_samples(source, PREPROCESS)) == 15
    assert not (own_cache / "labels").exists()
    with pytest.raises(AssertionError, match="a label was read"):
        load_labelled(source, PREPROCESS, 3)


# Folders.


def test_a_folder_is_torchvisions_image_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    labels = write_folders(tmp_path)["all"]
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "airplane" / "notes.txt").write_text("no image")
    samples, read = load_labelled(FolderSource(tmp_path), PREPROCESS, 3)
    (tmp_path / ".hidden").rmdir()
    plain = ImageFolder(str(tmp_path))
    theirs, their_labels = load_labelled(plain, PREPROCESS, 3)
    assert read.tolist() == labels == their_labels.tolist() == plain.targets
    assert torch.equal(samples.x, theirs.x)
    plain.samples = [(path, 2 - label) for path, label in plain.samples]
    plain.classes = plain.classes[::-1]
    assert load_labelled(plain, PREPROCESS, 3)[1].tolist() == [2 - label for label in labels]
    turned = ImageFolder(str(tmp_path), transform=lambda image: image.rotate(180))
    assert not torch.equal(load_samples(turned, PREPROCESS).x, samples.x)  # not our files' cache


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    write_folders(tmp_path / "data")
    write_folders(tmp_path / "more", ("deep",), each=2)
    folder = tmp_path / "data" / "airplane"
    for name, target in (("a", "."), ("b", "."), ("up", ".."), ("top", "../.."), ("c", "/")):
        (folder / name).symlink_to(target)
    (folder / "else").symlink_to(tmp_path / "more")
    (folder / "again").symlink_to(tmp_path / "more" / "deep")
    files = FolderSource(tmp_path / "data").listing("test").files
    names = [str(path.relative_to(folder)) for path in files if folder in path.parents]
    alone = [f"airplane_{i:03}.jpg" for i in range(1, 6)]
    assert names == [*alone, "again/deep_001.jpg", "again/deep_002.jpg"]
    assert len(files) == 17


def test_folders_of_splits(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", seed=1)
    write_folders(tmp_path / "test", each=2, seed=2)
    assert len(load_samples(FolderSource(tmp_path), PREPROCESS)) == 15
    assert len(load_labelled(FolderSource(tmp_path), PREPROCESS, 3)[0]) == 6
    assert len(load_labelled(FolderSource(tmp_path, "train"), PREPROCESS, 3)[0]) == 15
    with pytest.raises(MdftError, match=r"\['train', 'test'\], so split must name one .*got 'val'"):
        FolderSource(tmp_path, "val").listing("test")
    with pytest.raises(MdftError, match=r"split 'val' must be a folder val/ or a list val.txt"):
        FolderSource(tmp_path / "train", "val").listing("test")


def test_splits_are_no_classes(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", seed=1)
    wanted = r"holds folders of splits, \['train'.*, so split must name one of them, .*got "
    for role in ("train", "test"):
        with pytest.raises(MdftError, match=wanted + "None"):
            FolderSource(tmp_path).listing(role)
    write_folders(tmp_path / "val", each=2, seed=2)
    (tmp_path / "notes").mkdir()
    for split in (None, "test"):
        with pytest.raises(MdftError, match=wanted + repr(split)):
            FolderSource(tmp_path, split).listing("test")
    assert len(load_labelled(FolderSource(tmp_path, "val"), PREPROCESS, 3)[0]) == 6


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("TRAIN", "TEST"), ("train_set", "testset"), ("Train Data", "Test")],
)
def test_splits_may_be_called_otherwise(train: str, test: str, tmp_path: Path) -> None:
    write_folders(tmp_path / train, seed=1)
    write_folders(tmp_path / test, each=2, seed=2)
    assert len(load_samples(FolderSource(tmp_path), PREPROCESS)) == 15
    assert len(load_labelled(FolderSource(tmp_path), PREPROCESS, 3)[0]) == 6


@pytest.mark.parametrize(
    "names",
    [
        ("seg_train", "seg_test"),
        ("Training", "Evaluation"),
        ("train", "unlabeled"),
        ("labeled", "unlabeled"),
        ("seg_train", "unlabelled"),
    ],
)
def test_what_can_only_be_splits_must_be_named(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        write_folders(tmp_path / name)
    with pytest.raises(MdftError, match=r"holds folders of splits, .* so split must name one"):
        FolderSource(tmp_path).listing("test")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("test", "train", "Training"):
        write_folders(tmp_path / name)
    with pytest.raises(MdftError, match=r"one 'train' split, got \['Training', 'train'\]"):
        FolderSource(tmp_path).listing("train")


def test_what_programs_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    write_folders(tmp_path, ("bus", "car"), each=2)
    for place in ("__MACOSX/bus", "bus/.ipynb_checkpoints", "@eaDir"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(tmp_path / "bus" / "bus_001.jpg", tmp_path / place / "copy.jpg")
    listing = FolderSource(tmp_path).listing("test")
    assert listing.class_names == ("bus", "car")
    assert len(listing.files) == 4


def test_what_is_not_read_is_counted_and_said(tmp_path: Path) -> None:
    write_folders(tmp_path, ("bus", "car"), each=2)
    (tmp_path / "bus" / "labels.csv").write_text("no image")
    (tmp_path / "bus" / "bus_001.jpg").rename(tmp_path / "bus" / "bus_001.jfif")
    (note,) = FolderSource(tmp_path).listing("test").notes
    assert note.endswith(": passed over, as torchvision does, 1 .jfif.")
    (tmp_path / "bus" / "bus_002.jpg").rename(tmp_path / "bus" / "bus_002.jfif")
    source = FolderSource(tmp_path)
    assert len(load_samples(source, PREPROCESS)) == 2  # no label is needed
    assert "classes without an image, 1 of 2 without: 'bus'" in source.listing("train").notes[0]
    for refused in (source.check_labels, lambda _: load_labelled(source, PREPROCESS, 2)):
        with pytest.raises(MdftError, match=r"every class .* 'bus', which holds 2 \.jfif"):
            refused("test")


def test_names_in_other_bytes_than_utf_8(tmp_path: Path) -> None:
    write_folders(tmp_path, ("bus", "car"), each=2)
    image = os.fsencode(tmp_path / "bus" / "bus_001.jpg")
    try:
        os.rename(image, image.replace(b"_001", b"\xe9"))
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    assert len(load_samples(FolderSource(tmp_path), PREPROCESS)) == 4
    folder = os.fsencode(tmp_path / "bus")
    os.rename(folder, folder + b"\xe9")
    with pytest.raises(MdftError, match=r"must have a name in UTF-8, got 'bus\\\\xe9'"):
        FolderSource(tmp_path).listing("train")


def test_one_class_in_two_forms_of_unicode_is_refused(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write_folders(tmp_path, names)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes the two for one")
    with pytest.raises(MdftError, match=r"in two forms of Unicode"):
        FolderSource(tmp_path).listing("test")


def test_the_order_of_numbered_classes_must_be_said(tmp_path: Path) -> None:
    names = [str(i) for i in range(11)]
    write_folders(tmp_path, names, each=1)
    assert len(load_samples(FolderSource(tmp_path), PREPROCESS)) == 11
    with pytest.raises(MdftError, match=r"class 2 is '10' in torchvision's .* and '2' in timm's"):
        FolderSource(tmp_path).check_labels("test")
    for order, wanted in (("number", names), ("text", sorted(names))):
        source = FolderSource(tmp_path, order=order)  # type: ignore[arg-type]
        listing = source.listing("test")
        assert listing.class_names == tuple(wanted)
        _, labels = load_labelled(source, PREPROCESS, 11)
        assert [wanted[label] for label in labels] == [path.parent.name for path in listing.files]
    listing = FolderSource(tmp_path, order="text").listing("test")
    with pytest.raises(MdftError, match=r"class 2 must be '10' as in .*, got '2'"):
        check_order(listing, names, "recipe")
    check_order(listing, sorted(names), "recipe")


def test_the_order_of_capitals_must_be_said(tmp_path: Path) -> None:
    write_folders(tmp_path, ("Zebra", "apple", "Bee"), each=1)
    with pytest.raises(MdftError, match=r"class 0 is 'Bee' in torchvision's .* 'apple' in timm's"):
        FolderSource(tmp_path).check_labels("test")
    for order, wanted in (("number", "apple Bee Zebra"), ("text", "Bee Zebra apple")):
        source = FolderSource(tmp_path, order=order)  # type: ignore[arg-type]
        assert source.listing("test").class_names == tuple(wanted.split())


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    write_folders(tmp_path, ("bus", "car"), each=2)
    os.mkfifo(tmp_path / "bus" / "pipe.png")
    os.symlink(tmp_path / "bus" / "bus_001.jpg", tmp_path / "car" / "link.jpg")
    listing = FolderSource(tmp_path).listing("test")
    assert len(listing.files) == 5
    assert listing.notes[0].endswith(": passed over, as torchvision does, 1 .png.")
    (tmp_path / "car" / "link.jpg").unlink()
    os.mkfifo(tmp_path / "car" / "link.jpg")  # after it was listed
    with pytest.raises(MdftError, match=r"link.jpg: must be a regular file, got a named pipe"):
        cached_images(listing, as_preprocess(PREPROCESS))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folders(tmp_path, ("bus", "train"))
    assert FolderSource(tmp_path).listing("test").class_names == ("bus", "train")


@pytest.mark.parametrize("form", ["name", "path"])
def test_lists_of_splits(form: str, tmp_path: Path) -> None:
    write_folders(tmp_path)
    wanted = ["wetland/wetland_002.jpg", "airplane/airplane_001.jpg"]
    lines = [line.split("/")[1] if form == "name" else line for line in wanted]
    (tmp_path / "test.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "train.txt").write_text("baseball_diamond_001.jpg\n")
    test = FolderSource(tmp_path).listing("test")
    assert [str(path.relative_to(tmp_path)) for path in test.files] == wanted
    assert test.open().labels() == [2, 0]
    assert len(FolderSource(tmp_path).listing("train").files) == 1
    (tmp_path / "test.txt").write_text("nobody_001.jpg\n")
    with pytest.raises(MdftError, match=r"test.txt: every line must name an image .*nobody_001"):
        FolderSource(tmp_path).listing("test")


def test_lists_of_splits_are_utf8(tmp_path: Path) -> None:
    write_folders(tmp_path)
    text = "airplane_001.jpg\r\nwetland_002.jpg\n"
    (tmp_path / "test.txt").write_bytes(text.encode("utf-8-sig"))
    source = FolderSource(tmp_path, split="test")
    assert source.listing("test").open().labels() == [0, 2]
    for wrong, line in ((text.encode("utf-16"), 1), (f"{text}été.jpg".encode("latin-1"), 3)):
        (tmp_path / "test.txt").write_bytes(wrong)
        with pytest.raises(MdftError, match=rf"test.txt: must be text in UTF-8, .* line {line};"):
            source.listing("test")


def test_a_folder_without_splits_is_split_by_a_fixed_seed(tmp_path: Path) -> None:
    write_folders(tmp_path)
    train, test = (FolderSource(tmp_path, split).listing("train") for split in ("train", "test"))
    assert (len(train.files), len(test.files)) == (12, 3)
    assert not set(train.files) & set(test.files)
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))  # the same names, another place
    other = FolderSource(tmp_path.with_name("copy"), "test").listing("train")
    assert [path.name for path in other.files] == [path.name for path in test.files]


def test_images_without_classes_can_be_adapted_to(tmp_path: Path) -> None:
    write_folders(tmp_path)
    flat = FolderSource(tmp_path / "airplane")
    assert len(load_samples(flat, PREPROCESS)) == 5
    with pytest.raises(MdftError, match=r"airplane: labels need folders of classes"):
        load_labelled(flat, PREPROCESS, 3)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"none: must be a folder of images, <class>/<image>"):
        FolderSource(tmp_path / "none").listing("train")
    with pytest.raises(MdftError, match=r"must hold images as <class>/<image>, got none"):
        FolderSource(tmp_path).listing("train")
    with pytest.raises(MdftError, match=r"split must be one of .*got 'tests'"):
        FolderSource(tmp_path, "tests").listing("train")


# Class names.


def check_order(listing: Any, names: Sequence[str], where: str) -> None:
    compare_class_names(listing.class_names, listing.name, names, where)


@pytest.mark.parametrize(
    "names",
    [
        ("airplane", "baseball_diamond", "wetland"),
        ("Airplane", "baseball diamond", "wetland"),
        ("0", "1", "2"),
    ],
)
def test_class_names_may_be_written_otherwise(names: tuple[str, ...], tmp_path: Path) -> None:
    write_folders(tmp_path)
    check_order(FolderSource(tmp_path).listing("test"), names, "task 'a'")


def test_the_first_class_in_another_order_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    names = ("airplane", "wetland", "baseball diamond")
    with pytest.raises(MdftError, match=r"class 1 must be 'baseball_diamond' as in .*got 'wetland"):
        check_order(FolderSource(tmp_path).listing("test"), names, "task 'a'")
    with pytest.raises(MdftError, match=r"class names must be the 3 of .*, got 2"):
        check_order(FolderSource(tmp_path).listing("test"), names[:2], "task 'a'")
    task = Task("a", names, Head(torch.ones(3, 4)), FolderSource(tmp_path), FolderSource(tmp_path))
    with pytest.raises(MdftError, match=r"task 'a': class 1 must be 'baseball_diamond'"):
        load_test_sets([task], PREPROCESS)


def test_names_that_only_signs_or_case_tell_apart() -> None:
    known = ("+", "-", "A", "a", "C", "C++")
    compare_class_names(known, "the data", known, "recipe")
    for wrong in (("-", "+", *known[2:]), ("+", "-", "a", "A", *known[4:])):
        with pytest.raises(MdftError, match=r"class \d must be "):
            compare_class_names(known, "the data", wrong, "recipe")
    decomposed = unicodedata.normalize("NFD", "café")
    compare_class_names(("café", "bar"), "the data", (decomposed, "bar"), "recipe")
    compare_class_names(("00000", "00001"), "the data", ("0", "1"), "recipe")


def test_prompts_names_of_eurosat_and_mnist_fit(tmp_path: Path) -> None:
    WRITERS["EuroSAT"](tmp_path)
    write_mnist(tmp_path)
    prompts = [
        *("annual crop land", "forest", "brushland or shrubland", "highway or road"),
        *("industrial buildings or commercial buildings", "pasture land", "permanent crop land"),
        *("residential buildings or homes or apartments", "river", "lake or sea"),
    ]
    check_order(TorchvisionSource("EuroSAT", tmp_path).listing("test"), prompts, "recipe")
    mnist = TorchvisionSource("MNIST", tmp_path).listing("test")
    check_order(mnist, ["zero", "1", *[f"{i}" for i in range(2, 10)]], "recipe")
    with pytest.raises(MdftError, match=r"class 0 must be '0 - zero'"):
        check_order(mnist, ["9", *[f"{i}" for i in range(1, 9)], "0"], "recipe")
