# SPDX-License-Identifier: Apache-2.0
"""A run looks at what it needs: images that are decoded, samples that models see; nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mdft_fast import MetaModel, run
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import measurement
from mdft_fast.checkpoints import Batch
from mdft_fast.data.images import listing
from tests.app.conftest import CLASSES, Make, assert_same_cards, run_until

TRAIN, TEST, DRAWN = 60, 12, 25  # images a task


@pytest.fixture
def on_disk(make_recipe: Make, tmp_path: Path) -> Make:
    """Gives the recipe with its images as files: more than a run draws."""
    generator = np.random.default_rng(0)
    for task, classes in CLASSES.items():
        for split, count in (("train", TRAIN), ("test", TEST)):
            for i in range(count):
                file = tmp_path / "images" / task / split / f"c{i % classes}" / f"{i:02}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    sources = [
        f"tasks[{i}].{part}={{folder: {tmp_path / 'images' / task}, split: {split}}}"
        for i, task in enumerate(CLASSES)
        for part, split in (("adapt", "train"), ("evaluate", "test"))
    ]
    return lambda *more: make_recipe(
        *sources, "specialize.control=false", f"samples={DRAWN}", "evaluate.curve=off", *more
    )


class Counted:
    """Counts the images that are decoded, and how often a model without a gradient sees each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[str] = []
        self.seen: Counter[bytes] = Counter()
        decode, encode = listing.decode, MetaModel.encode

        def counted(path: Path, **how: Any) -> Any:
            self.decoded.append(str(path))
            return decode(path, **how)

        def seen(meta: MetaModel, batch: Batch) -> torch.Tensor:
            if not torch.is_grad_enabled():
                assert isinstance(batch, torch.Tensor)
                self.seen.update(row.numpy().tobytes() for row in batch)
            return encode(meta, batch)

        monkeypatch.setattr(listing, "decode", counted)
        monkeypatch.setattr(MetaModel, "encode", seen)


def test_only_what_is_drawn_is_decoded_and_each_model_sees_each_test_image_once(
    on_disk: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted = Counted(monkeypatch)
    first = run(on_disk(f"output={tmp_path / 'a'}"), progress="off")
    assert len(counted.decoded) == len(set(counted.decoded)) == 2 * (DRAWN + TEST)
    held_out = 2 * DRAWN // 5
    # Test images: base, arithmetic, meta, individual, specialized. Drawn ones: their teacher, and
    # those held out the meta-model before and after stage 1.
    assert Counter(counted.seen.values()) == {
        5: 2 * TEST, 1: 2 * DRAWN - held_out, 3: held_out
    }  # fmt: skip
    counts = first.result["pool"]["tasks"][0]
    assert (counts["unlabelled"], counts["of"], counts["test"]) == (DRAWN, TRAIN, TEST)

    counted.decoded.clear()
    counted.seen.clear()
    again = run(on_disk(f"output={tmp_path / 'b'}"), progress="off")
    assert counted.decoded == []
    assert Counter(counted.seen.values()) == {2: held_out}  # where learning begins and ends
    assert_same_cards(first.folder, again.folder)
    assert again.result["accuracy"] == first.result["accuracy"]
    assert again.result["confusion"] == first.result["confusion"]


def test_a_resumed_run_asks_no_teacher_again(
    on_disk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = on_disk()
    run_until(2, recipe)
    counted = Counted(monkeypatch)
    run(recipe, resume=True, progress="off")
    assert counted.decoded == []
    assert sorted(set(counted.seen.values())) == [2, 5]


def test_curves_look_at_some_samples_and_ask_no_model_again(
    on_disk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    curve = "evaluate.curve={samples: 4, steps: [1]}"
    result = run(on_disk(curve), progress="off").result
    passes = Counter(n for image, n in counted.seen.items())
    # Step 1 of the own curve, and the other task at the end, on four images each.
    assert sum(n * m for n, m in passes.items()) == sum(
        n * m for n, m in {5: 2 * TEST, 1: 40, 3: 10}.items()
    ) + 2 * (4 + 4)
    path = result["specialize"]["letters"]
    assert [point["accuracy"] is None for point in path] == [False, False, True, False]
    assert [point["others"] is None for point in path] == [False, True, True, False]


def test_the_filter_looks_at_more_until_enough_are_kept(
    on_disk: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filtered = [
        "construct.filter={enabled: true, mu: 0.6}", "construct.objective.reweight=as_written",
        "construct.steps=2", "construct.batch=9", "specialize.tasks=none", "samples=null",
    ]  # fmt: skip
    monkeypatch.setattr("mdft_fast.app.opening.sample_choice._LEAST", 10)
    counted = Counted(monkeypatch)
    result = run(on_disk(*filtered, f"output={tmp_path / 'a'}"), progress="off").result
    looked = {task["name"]: task["unlabelled"] for task in result["pool"]["tasks"]}
    kept = {task["name"]: task["kept"] for task in result["pool"]["tasks"]}
    assert any(count > 23 for count in looked.values()), "more rounds than the first"
    assert all(kept[name] >= 18 or looked[name] == TRAIN for name in looked)
    assert len(counted.decoded) == len(set(counted.decoded)) == sum(looked.values()) + 2 * TEST
    most = run(on_disk(*filtered, "samples=30", f"output={tmp_path / 'b'}"), progress="off").result
    assert all(task["unlabelled"] <= 30 for task in most["pool"]["tasks"])


def test_samples_is_a_prefix_of_all_and_follows_the_seed(on_disk: Make, tmp_path: Path) -> None:
    def files(*more: str) -> list[str]:
        folder = tmp_path / "-".join(more).replace("=", "")
        recipe = on_disk(*more, f"output={folder}", "specialize.tasks=none", "construct.steps=1")
        run(recipe, progress="off")
        adapt = json.loads((folder / "splits.json").read_text())["tasks"][0]["adapt"]
        assert adapt["count"] == len(adapt["files"])
        return list(adapt["files"])

    some, more, everything = files("samples=9"), files("samples=20"), files("samples=all")
    assert set(some) < set(more) < set(everything)
    assert len(everything) == TRAIN
    assert files("samples=9", "seed=1") != some


def test_the_limit_takes_the_same_test_samples_in_each_run(
    on_disk: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted = Counted(monkeypatch)
    result = run(on_disk("evaluate.limit=5", "seed=3"), progress="off").result
    assert [task["test"] for task in result["pool"]["tasks"]] == [5, 5]
    assert len(counted.decoded) == 2 * (DRAWN + 5)
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())["tasks"]
    assert [len(task["evaluate"]["files"]) for task in splits] == [5, 5]
    # What is right is judged by the labels of those samples: all of them agree with a full run.
    recipe = on_disk("seed=3", f"output={tmp_path / 'full'}")
    tests: dict[str, Any] = {}
    judge = measurement.Judge.all_of

    def kept(self: Any, at: Any) -> Any:
        tests.update(self.tests)
        return judge(self, at)

    monkeypatch.setattr(measurement.Judge, "all_of", kept)
    run(recipe, progress="off")
    for task in splits:
        rows = [i for i, file in enumerate(_files(recipe, task["name"]))
                if file in task["evaluate"]["files"]]  # fmt: skip
        some = [int(file.split("/")[-2][1:]) for file in task["evaluate"]["files"]]
        assert tests[task["name"]].labels[rows].tolist() == some


def _files(recipe: Recipe, task: str) -> list[str]:
    splits = json.loads((recipe.output / "splits.json").read_text())["tasks"]
    return next(list(one["evaluate"]["files"]) for one in splits if one["name"] == task)


def test_transductive_teachers_are_not_asked_again(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [f"tasks[{i}].adapt.x=x_test" for i in range(2)]
    recipe = make_recipe(*same, "transductive=true", "evaluate.curve=off", "samples=all",
                         "specialize.control=false", "construct.holdout=0")  # fmt: skip
    counted = Counted(monkeypatch)
    run(recipe, progress="off")
    assert set(counted.seen.values()) == {5}  # a teacher's answer is the individual model's
