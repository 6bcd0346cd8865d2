# SPDX-License-Identifier: Apache-2.0
"""A run on image folders: splits, shared images, class names, and what stands in the run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdft_fast.app.cli import specialize_run
from mdft_fast.app.opening import LoadedData, build, load_data
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import Progress, run
from mdft_fast.data import FolderSource, load_samples
from mdft_fast.errors import MdftError
from tests.app.conftest import Make
from tests.data.on_disk import write_folders

CLASSES = ("circle", "square", "triangle")  # of the task "shapes"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_folders(tmp_path / "images", CLASSES, each=10)
    return tmp_path / "images"


@pytest.fixture
def on_folder(make_recipe: Make) -> Make:
    """Returns a function of two folders that gives a recipe whose first task is on them."""

    def make(adapt: Path, test: Path, *overrides: str) -> Recipe:
        return make_recipe(
            f"tasks[0].adapt={{folder: {adapt}}}",
            f"tasks[0].evaluate={{folder: {test}}}",
            "construct.steps=1",
            "specialize.tasks=none",
            *overrides,
        )

    return make


def loaded(recipe: Recipe) -> LoadedData:
    return load_data(build(recipe))


def test_one_folder_is_split_and_the_run_folder_says_how(images: Path, on_folder: Make) -> None:
    summary = run(on_folder(images, images), progress="off")
    shapes, letters = json.loads((summary.folder / "splits.json").read_text())["tasks"]
    assert shapes["adapt"]["split"] == "train"
    assert shapes["evaluate"]["split"] == "test"
    assert (shapes["adapt"]["count"], shapes["evaluate"]["count"]) == (24, 6)
    files = [set(shapes[part]["files"]) for part in ("adapt", "evaluate")]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == 30
    assert all((images / name).is_file() for name in files[0])
    assert sorted(shapes["learn"] + shapes["holdout"]) == list(range(24))
    assert letters["adapt"]["x"] == "x_unlabelled"
    assert not summary.result["transductive"]
    assert summary.result["pool"]["tasks"][0]["test"] == 6
    assert [phase["name"] for phase in summary.result["phases"]][2] == "samples"


def test_test_images_among_the_unlabelled_are_counted_and_refused(
    images: Path, tmp_path: Path, on_folder: Make
) -> None:
    write_folders(tmp_path / "test", CLASSES, each=2, seed=3)
    for i in (1, 2, 3):  # under another name and in another class
        source = images / "circle" / f"circle_00{i}.jpg"
        shutil.copy(source, tmp_path / "test" / "square" / f"copy{i}.jpg")
    recipe = on_folder(images, tmp_path / "test")
    wanted = (
        r"task 'shapes': 3 of 30 unlabelled images are among the 9 test images, pixel for pixel "
        r"\(circle/circle_001.jpg, circle/circle_002.jpg, circle/circle_003.jpg\); take them out, "
        r"say `duplicates: drop` to leave them out, or `transductive: true` to learn from them"
    )
    with pytest.raises(MdftError, match=wanted):
        run(recipe, progress="off")
    assert not recipe.output.exists()
    found = loaded(on_folder(images, tmp_path / "test", "transductive=true"))
    assert found.splits[0]["shared"] == {"adapt": 3, "evaluate": 3}
    assert found.notes == [
        "Transductive: task 'shapes': 3 of 30 unlabelled images are among the 9 test images."
    ]


def test_test_images_are_dropped_where_the_recipe_says_so(
    images: Path, tmp_path: Path, files: Path, on_folder: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_folders(tmp_path / "test", CLASSES, each=2, seed=3)
    for i in (1, 3):
        source = images / "circle" / f"circle_00{i}.jpg"
        shutil.copy(source, tmp_path / "test" / "square" / f"copy{i}.jpg")
    with np.load(files / "data" / "letters.npz") as arrays:  # another task's test image
        content = dict(arrays)
    preprocess = {"size": 32, "mean": 0.5, "std": 0.5}
    mine = load_samples(FolderSource(images), preprocess).x.numpy()
    content["x_test"][:1] = mine[29:]
    np.savez(tmp_path / "other.npz", **content)
    other = [f"tasks[1].evaluate.npz={tmp_path / 'other.npz'}"]
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    recipe = on_folder(images, tmp_path / "test", "duplicates=drop", *other)
    summary = run(recipe, progress="off")
    words = "Task 'shapes': 3 of 30 unlabelled images are test images, pixel for pixel, and were "
    assert f"{words}dropped." in summary.result["warnings"]
    assert f"{words}dropped." in said
    assert words in summary.report.read_text()
    shapes, letters = json.loads((summary.folder / "splits.json").read_text())["tasks"]
    names = ["circle/circle_001.jpg", "circle/circle_003.jpg", "triangle/triangle_010.jpg"]
    assert shapes["dropped"] == {"count": 3, "images": names}
    assert letters["dropped"] == {"count": 0, "images": []}
    assert shapes["shared"] == {"adapt": 0, "evaluate": 0}
    assert shapes["adapt"]["count"] == len(shapes["adapt"]["files"]) == 27
    assert not set(names) & set(shapes["adapt"]["files"])
    assert sorted(shapes["learn"] + shapes["holdout"]) == list(range(27))
    assert summary.result["pool"]["tasks"][0]["unlabelled"] == 27
    # Stage 2 alone leaves out the same ones, another task's test image among them.
    specialize_run(summary.folder, "shapes", (), tmp_path / "card.json")
    assert (tmp_path / "card.json").is_file()


def test_dropping_needs_something_to_be_left(images: Path, tmp_path: Path, on_folder: Make) -> None:
    shutil.copytree(images, tmp_path / "copy")
    message = r"'shapes': 30 of 30 unlabelled images are .*; `duplicates: drop` leaves none"
    with pytest.raises(MdftError, match=message):
        run(on_folder(images, tmp_path / "copy", "duplicates=drop"), progress="off")
    with pytest.raises(MdftError, match=r"duplicates: must be 'refuse' with transductive: true"):
        on_folder(images, images, "duplicates=drop", "transductive=true")


def test_a_transductive_run_says_so_at_every_table(images: Path, on_folder: Make) -> None:
    summary = run(on_folder(images, images, "transductive=true"), progress="off")
    assert summary.result["transductive"]
    assert summary.result["warnings"][0].startswith("Transductive: task 'shapes': 30 of 30")
    text = summary.report.read_text()
    for part in text.split("\n## ")[1:]:
        if part.startswith(("Accuracy", "Stage 2", "Samples")) and "| task |" in part:
            assert "ransductive" in part, part.splitlines()[0]


def test_class_names_in_another_order_are_refused_before_anything_is_packed(
    images: Path, on_folder: Make
) -> None:
    wrong = on_folder(images, images, "tasks[0].class_names=[circle, triangle, square]")
    wanted = r"task 'shapes': recipe: class 1 must be 'square' as in .*images.*, got 'triangle'"
    with pytest.raises(MdftError, match=wanted):
        build(wrong)
    assert build(on_folder(images, images)).tasks[0].class_names == CLASSES
    npz = "tasks[1].class_names=[c0, c2, c1, c3, c4, c5, c6]"
    with pytest.raises(
        MdftError, match=r"task 'letters': recipe: class 1 must be 'c1' as in .*npz"
    ):
        build(on_folder(images, images, npz))
    shutil.rmtree(images / "square")
    with pytest.raises(MdftError, match=r"task 'shapes': head must have one row for each of 2"):
        build(on_folder(images, images))


def test_a_recipes_preprocess_leaves_the_rest_to_the_pool(
    make_recipe: Make, tmp_path: Path
) -> None:
    from mdft_fast.app.opening import pack

    squash = "preprocess={size: 32, mean: 0.5, std: 0.5, resize: squash}"
    pack(make_recipe(squash), tmp_path / "packed")
    packed: tuple[Any, ...] = (f"pool={{folder: {tmp_path / 'packed'}}}", "backbone=null")
    assert build(make_recipe(*packed)).pool.preprocess["resize"] == "squash"
    build(make_recipe(*packed, squash))
    shortest = squash.replace("squash", "shortest")
    with pytest.raises(MdftError, match=r"preprocess must be the pool's .*'squash'.*got"):
        build(make_recipe(*packed, shortest))
