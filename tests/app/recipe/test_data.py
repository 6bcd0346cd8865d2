# SPDX-License-Identifier: Apache-2.0
"""Where a recipe's samples are: one source each, and never the test images unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mdft_fast.app.recipe import Recipe, RecipeError

DTD = {"name": "DTD", "root": "data"}
KINDS = "must have exactly one of ['npz', 'folder', 'torchvision', 'hf']"


def load(tmp_path: Path, adapt: Any, evaluate: Any = None, **keys: Any) -> Recipe:
    task = {"name": "a", "adapt": adapt} | ({"evaluate": evaluate} if evaluate else {})
    content = {
        "version": 1, "pool": {"folder": "packed"}, "tasks": [task], "output": "run", **keys,
    }  # fmt: skip
    return Recipe.from_mapping(content, folder=tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        {"npz": "a.npz"},
        {"npz": "a.npz", "x": "images"},
        {"folder": "data"},
        {"folder": "data", "split": "val"},
        {"torchvision": DTD},
        {"torchvision": {**DTD, "split": "val"}},
        {"hf": {"path": "data", "image": "img"}},
    ],
    ids=str,
)
def test_every_source_survives_a_dump(source: Any, tmp_path: Path) -> None:
    recipe = load(tmp_path, source, {"npz": "t.npz", "y": "labels"})
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    (place,) = recipe.tasks[0].adapt.places()
    assert place[2] == tmp_path / ("a.npz" if "npz" in source else "data")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, f": {KINDS}, got none"),
        ({"npz": "a.npz", "folder": "b"}, f": {KINDS}, got ['npz', 'folder']"),
        ({"folder": "b", "x": "x"}, ": 'x' goes with 'npz', got it with 'folder'"),
        ({"npz": "b", "split": "test"}, ": 'split' goes with 'folder', got it with 'npz'"),
        ({"folder": "b", "split": "tests"}, ".split: must be one of ['train', 'val', 'test'], "
             "got 'tests'; did you mean 'test'?"),
        ({"torchvision": {**DTD, "name": "DTT"}}, ".torchvision.name: must be one of ['SUN397', "
             "'StanfordCars', 'EuroSAT', 'SVHN', 'GTSRB', 'MNIST', 'DTD'], got 'DTT'; "
             "did you mean 'DTD'?"),
        ({"torchvision": {"name": "DTD"}}, ".torchvision.root: is missing"),
        ({"npz": "a.npz", "y": "y"}, ".y: unknown key; did you mean 'x'?"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_are_one_error(source: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, source)
    if source.get("y"):
        assert caught.value.problems[0].startswith("tasks[0].adapt.y: unknown key")
    else:
        assert caught.value.problems == (f"tasks[0].adapt{message}",)


SAME = [
    ({"torchvision": {**DTD, "split": "test"}}, {"torchvision": DTD}),
    ({"torchvision": DTD}, {"torchvision": {**DTD, "split": "train"}}),
    ({"hf": {"path": "d", "split": "test"}}, {"hf": {"path": "d"}}),
    ({"folder": "d", "split": "test"}, {"folder": "d", "split": "test"}),
    ({"npz": "a.npz"}, {"npz": "a.npz"}),
]
APART = [
    ({"torchvision": DTD}, {"torchvision": DTD}),
    ({"torchvision": {**DTD, "split": "val"}}, {"torchvision": DTD}),
    ({"hf": {"path": "d"}}, {"hf": {"path": "d"}}),
    ({"folder": "d"}, {"folder": "d"}),
    ({"folder": "d", "split": "train"}, {"folder": "d", "split": "test"}),
    ({"folder": "d"}, {"torchvision": DTD}),
    ({"npz": "a.npz"}, {"npz": "a.npz", "x": "x_test"}),
]


@pytest.mark.parametrize(("adapt", "test"), SAME, ids=str)
def test_the_same_split_twice_is_refused(adapt: Any, test: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tasks\[0\].adapt: these are the test images; say"):
        load(tmp_path, adapt, test)
    load(tmp_path, adapt, test, transductive=True)


@pytest.mark.parametrize(("adapt", "test"), APART, ids=str)
def test_two_splits_are_two_things(adapt: Any, test: Any, tmp_path: Path) -> None:
    load(tmp_path, adapt, test)


def test_every_place_that_is_missing_is_listed(tmp_path: Path) -> None:
    recipe = load(tmp_path, {"folder": "d"}, {"torchvision": DTD})
    with pytest.raises(RecipeError) as caught:
        recipe.check_files()
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "pool.folder", "tasks[0].adapt.folder", "tasks[0].evaluate.torchvision.root",
    ]  # fmt: skip


def test_preprocess_says_how_to_resize(tmp_path: Path) -> None:
    given = {"size": 8, "mean": 0.5, "std": 0.5}
    recipe = load(tmp_path, {"npz": "a"}, preprocess={**given, "resize": "squash"})
    assert recipe.preprocess is not None
    assert recipe.preprocess.said() == {**given, "resize": "squash"}
    recipe = load(tmp_path, {"npz": "a"}, preprocess={**given, "crop_pct": 0.875})
    assert recipe.preprocess is not None
    assert recipe.preprocess.said() == {**given, "crop_pct": 0.875}
    with pytest.raises(RecipeError, match=r"preprocess.crop_pct: must be at most 1, got 1.1"):
        load(tmp_path, {"npz": "a"}, preprocess={**given, "crop_pct": 1.1})
    with pytest.raises(RecipeError, match=r"preprocess.crop_pct: must be at least 0.1, got 0.09"):
        load(tmp_path, {"npz": "a"}, preprocess={**given, "crop_pct": 0.09})
    with pytest.raises(RecipeError, match=r"preprocess.interpolation: must be one of .*'bicubi"):
        load(tmp_path, {"npz": "a"}, preprocess={**given, "interpolation": "bicubik"})
