# SPDX-License-Identifier: Apache-2.0
"""The cache of decoded images: made once, whole, and made again where it is damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mdft_fast.cache import cache_entries, remove
from mdft_fast.data import (
    FolderSource,
    Samples,
    TorchvisionSource,
    load_labelled,
    load_samples,
    shared_images,
)
from mdft_fast.data import image_cache as cache
from mdft_fast.data.images.listing import Opened
from mdft_fast.errors import MdftError
from tests.data.on_disk import noise, write_folders, write_mnist

PREPROCESS = {"size": 12, "mean": 0.5, "std": 0.5}


@pytest.fixture
def folder(tmp_path: Path, own_cache: Path) -> Path:
    write_folders(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images decoded, one a time; what was verified before is forgotten."""
    made: list[int] = []
    decode = cache._decode

    def counted(*given: Any) -> Any:
        made.append(len(given[-1]))
        return decode(*given)

    monkeypatch.setattr(cache, "_decode", counted)
    cache.forget_verified()
    return made


def load(folder: Path, **changes: Any) -> Samples:
    return load_samples(FolderSource(folder), {**PREPROCESS, **changes})


def entries() -> list[Path]:
    return sorted((Path(os.environ["MDFT_CACHE"]) / "images").iterdir())


def test_images_are_decoded_once_and_mapped(folder: Path, builds: list[int]) -> None:
    first, second = load(folder), load(folder)
    assert len(builds) == 1
    assert torch.equal(first.x, second.x)
    assert first.x.shape == (15, 12, 12, 3)
    (entry,) = entries()
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(entry / "images.npy") in mapped.read_text()
    assert sorted(file.name for file in entry.iterdir()) == [
        *("digests.npy", "entry.json", "images.npy")
    ]


def test_mean_and_std_share_an_entry_and_sizes_do_not(folder: Path, builds: list[int]) -> None:
    load(folder, mean=0.1, std=0.2)
    load(folder)
    assert len(builds) == 1
    shapes = {load(folder, size=size).x.shape for size in (12, 14, [12, 14])}
    load(folder, resize="squash")
    load(folder, interpolation="bilinear")
    load(folder, crop_pct=0.8)
    assert len(builds) == 6
    assert len(shapes) == 3


def test_a_changed_file_is_decoded_again(folder: Path, builds: list[int]) -> None:
    before = load(folder).x.clone()
    file = folder / "airplane" / "airplane_002.jpg"
    Image.fromarray(noise(np.random.default_rng(9), 40, 40)).save(file)
    after = load(folder).x
    assert len(builds) == 2
    assert [i for i in range(15) if not torch.equal(before[i], after[i])] == [1]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("name", ["images.npy", "digests.npy", "entry.json"])
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_a_damaged_entry_is_made_again(
    name: str, damage: Callable[[Path], None], folder: Path, builds: list[int]
) -> None:
    wanted = load(folder).x.clone()
    (entry,) = entries()
    damage(entry / name)
    cache.forget_verified()
    assert torch.equal(load(folder).x, wanted)
    harmless = name == "entry.json" and damage is flip  # a byte that nobody reads
    assert len(builds) == 2 or harmless
    assert entries() == [entry]


def test_only_what_is_wanted_is_decoded_and_more_is_added(
    folder: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = load(folder).x.clone()
    (entry,) = entries()
    shutil.rmtree(entry)

    def some(*rows: int) -> Samples:
        wanted = np.array(rows)
        return load_samples(FolderSource(folder), PREPROCESS, choose=lambda n: wanted[wanted < n])

    for rows in ((1, 2, 7), (7, 9, 14), (1, 9)):
        samples = some(*rows)
        assert len(samples) == len(rows)
        assert torch.equal(samples.to("cpu").x, everything[list(rows)])
        assert np.array_equal(samples.digests(), load_samples(everything[list(rows)].numpy(),
                                                              PREPROCESS).digests())  # fmt: skip
    assert builds == [15, 3, 2]
    before = np.load(entry / "digests.npy")
    assert before.any(1).nonzero()[0].tolist() == [1, 2, 7, 9, 14]
    images = np.load(entry / "images.npy", mmap_mode="r+")
    images[9] += 1  # damaged: made again, and no other
    del images
    cache.forget_verified()
    assert torch.equal(some(7, 9).to("cpu").x, everything[[7, 9]])
    assert builds == [15, 3, 2, 1]
    replace = Path.replace  # killed between the images and what makes them count
    monkeypatch.setattr(Path, "replace", lambda path, to: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        some(0, 1)
    monkeypatch.setattr(Path, "replace", replace)
    assert np.array_equal(np.load(entry / "digests.npy"), before)
    assert torch.equal(load(folder).x, everything)
    assert builds == [15, 3, 2, 1, 1, 10]


def test_an_entry_appears_whole_or_not_at_all(folder: Path) -> None:
    shutil.copy(folder / "wetland" / "wetland_001.jpg", folder / "wetland" / "z.jpg")
    (folder / "wetland" / "z.jpg").write_bytes(b"damaged")
    with pytest.raises(MdftError, match=r"z.jpg: not a readable image"):
        load(folder)
    assert entries() == []


def test_old_unfinished_work_is_removed_and_young_is_left(folder: Path) -> None:
    parent = Path(os.environ["MDFT_CACHE"]) / "images"
    now = time.time()
    names = (".abc.999999999.part", ".abc.999999999.old", ".abc.k3_x.part")
    for name in names:
        (parent / name / "entry").mkdir(parents=True)
        os.utime(parent / name, (now, now - 25 * 3600))
    foreign = parent / ".abc.999999998.part"  # of a process of another machine or container
    foreign.mkdir()
    load(folder)
    assert [path.name for path in entries() if path.name.startswith(".")] == [foreign.name]


def test_several_builders_of_one_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, decode_all = threading.Barrier(3, timeout=30), cache._decode_all

    def together(*given: Any) -> None:
        barrier.wait()  # each has its own folder and has found no entry
        decode_all(*given)

    monkeypatch.setattr(cache, "_decode_all", together)
    with ThreadPoolExecutor(3) as pool:
        made = [future.result() for future in [pool.submit(load, folder) for _ in range(3)]]
    assert all(torch.equal(made[0].x, other.x) for other in made)
    assert len(entries()) == 1
    assert entries()[0].stat().st_mode & 0o777 == folder.stat().st_mode & 0o777


def test_what_several_add_to_one_entry_all_counts_and_nobody_removes_it_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, decode_all = load(folder).x.clone(), cache._decode_all
    shutil.rmtree(entries()[0])
    decoded: list[int] = []

    def slow(*given: Any) -> None:
        time.sleep(0.1)
        decode_all(*given)
        (made,) = [entry for entry in cache_entries() if entry.kind == "images"] or [None]
        assert made is None or not remove(made), "an entry that is added to was removed"
        decoded.extend(given[3])

    def some(*rows: int) -> Samples:
        return load_samples(FolderSource(folder), PREPROCESS, choose=lambda n: np.array(rows))

    some(0)
    monkeypatch.setattr(cache, "_decode_all", slow)
    with ThreadPoolExecutor(3) as pool:
        chosen = [(1, 2), (5, 9), (2, 9)]
        made = [future.result() for future in [pool.submit(some, *rows) for rows in chosen]]
    for rows, samples in zip(chosen, made, strict=True):
        assert torch.equal(samples.to("cpu").x, everything[list(rows)])
    assert sorted(decoded) == [1, 2, 5, 9]
    assert np.load(entries()[0] / "digests.npy").any(1).nonzero()[0].tolist() == [0, 1, 2, 5, 9]


def test_several_writers_of_the_same_labels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = dataclasses.replace(FolderSource(folder).listing("test"), labels_in_memory=False)
    barrier, write = threading.Barrier(3, timeout=30), cache.write_json

    def together(path: Path, content: Any) -> None:
        barrier.wait()  # each has found no labels
        write(path, content)

    monkeypatch.setattr(cache, "write_json", together)
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(cache.cached_labels, [listing] * 3))
    assert made == [[label for label in range(3) for _ in range(5)]] * 3
    assert len(list((Path(os.environ["MDFT_CACHE"]) / "labels").iterdir())) == 1


def test_a_damaged_entry_may_be_exchanged_by_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = load(folder).x.clone()
    (entry,) = entries()
    shutil.copytree(entry, tmp_path / "good")
    rename = Path.rename
    for turns in (["aside"], ["aside", "in"]):
        cut(entry / "digests.npy")
        cache.forget_verified()
        left = list(turns)

        def faster(path: Path, target: Path, left: list[str] = left) -> Path:
            if path == entry and left and left.pop(0):
                shutil.rmtree(entry)  # the other has moved it aside
            elif target == entry and left and left.pop(0):
                shutil.copytree(tmp_path / "good", entry)  # and was here first
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", faster)
        assert torch.equal(load(folder).x, wanted)
        assert left == []
        monkeypatch.setattr(Path, "rename", rename)
        assert entries() == [entry]


def test_a_full_disk_is_said_before_anything_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MdftError, match=r"0.0 GB for 15 images.*MDFT_CACHE names another folder"):
        load(folder)
    assert entries() == []


def test_a_cache_that_cannot_be_written_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MDFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(MdftError, match=r"cannot be written.*MDFT_CACHE names another folder"):
        load(folder)


def test_labels_lie_apart_and_come_only_with_an_evaluation(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    write_mnist(tmp_path)
    source = TorchvisionSource("MNIST", tmp_path, "test")
    load_samples(source, PREPROCESS)
    labels = Path(os.environ["MDFT_CACHE"]) / "labels"
    assert not labels.exists()
    _, wanted = load_labelled(source, PREPROCESS, 10)
    (file,) = labels.iterdir()
    file.write_text(file.read_text().replace("0", "1"))
    assert torch.equal(load_labelled(source, PREPROCESS, 10)[1], wanted)
    content = json.loads(file.read_text())
    assert content["labels"] == wanted.tolist()  # made again


def test_labels_follow_the_folders_names(folder: Path) -> None:
    labels = [label for label in range(3) for _ in range(5)]
    assert load_labelled(FolderSource(folder), PREPROCESS, 4)[1].tolist() == labels
    (folder / "abbey").mkdir()
    with pytest.raises(MdftError, match=r"every class must have an image, .* 1 of 4 .*'abbey'"):
        load_labelled(FolderSource(folder), PREPROCESS, 4)
    first = min((folder / "airplane").iterdir())
    shutil.copy(first, folder / "abbey")  # the first class
    moved = load_labelled(FolderSource(folder), PREPROCESS, 4)[1]
    assert moved.tolist() == [0, *(label + 1 for label in labels)]
    assert not (Path(os.environ["MDFT_CACHE"]) / "labels").exists()


def test_cached_labels_belong_to_the_class_names(folder: Path) -> None:
    listing = FolderSource(folder).listing("test")
    for names, labels in ((("a", "b"), [0, 1]), (("b", "a"), [1, 0])):
        opened = Opened(2, listing.open().image, lambda labels=labels: labels)
        given = {"class_names": names, "open": lambda opened=opened: opened}
        other = dataclasses.replace(listing, labels_in_memory=False, **given)
        for _ in range(2):
            assert cache.cached_labels(other) == labels


def test_progress_is_told_and_quiet_without_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int]] = []
    watch = lambda *now: told.append(now)  # noqa: E731
    load_samples(FolderSource(folder), PREPROCESS, watch=watch)
    assert told[-1] == (f"decoding {folder}", 15, 15)
    load(folder, size=9)
    assert capsys.readouterr().err == ""


def test_shared_images_are_found_by_content(folder: Path, tmp_path: Path) -> None:
    write_folders(tmp_path / "other", seed=5)
    other = load(tmp_path / "other")
    assert shared_images(load(folder), other) == ([], [])
    shutil.copy(folder / "airplane" / "airplane_001.jpg", tmp_path / "other" / "wetland" / "x.jpg")
    shutil.copy(folder / "airplane" / "airplane_001.jpg", tmp_path / "other" / "wetland" / "y.jpg")
    assert shared_images(load(folder), load(tmp_path / "other")) == ([0], [15, 16])


def test_bytes_and_floats_are_not_compared(folder: Path) -> None:
    samples = load(folder)
    floats = load_samples(samples.batch(torch.arange(15)), PREPROCESS)
    assert shared_images(samples, floats) is None
    assert shared_images(floats, samples) is None
    assert shared_images(floats, floats) == (list(range(15)), list(range(15)))


def test_digests_do_not_depend_on_where_images_came_from(folder: Path) -> None:
    samples = load(folder)
    array = load_samples(samples.x.numpy(), PREPROCESS)
    assert array.known_digests is None
    assert np.array_equal(array.digests(), samples.digests())
    gray = samples.x[..., :1]
    color = gray.expand(-1, -1, -1, 3)
    digests = [load_samples(x.numpy(), PREPROCESS).digests() for x in (gray, color)]
    assert np.array_equal(*digests)
    floats = samples.batch(torch.arange(15))
    assert len({row.tobytes() for row in load_samples(floats, PREPROCESS).digests()}) == 15


def test_samples_may_be_given_again(folder: Path) -> None:
    samples = load(folder)
    assert load_samples(samples, PREPROCESS) is samples
    with pytest.raises(MdftError, match=r"samples: their preprocess must be the pool's"):
        load_samples(samples, {**PREPROCESS, "mean": 0.4})


def test_a_data_set_of_pil_images_is_resized_in_memory(folder: Path) -> None:
    class Pictures(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.files = FolderSource(folder).listing("train").files

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            return Image.open(self.files[index]), 0

    assert torch.equal(load_samples(Pictures(), PREPROCESS).x, load(folder).x)
    wrong = np.zeros((2, 9, 9, 3), np.uint8)
    with pytest.raises(MdftError, match=r"12 x 12 pixels as the pool's .*got 9 x 9; resize them"):
        load_samples(wrong, PREPROCESS)
