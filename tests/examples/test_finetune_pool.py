# SPDX-License-Identifier: Apache-2.0
"""The supervised baselines: they learn, say that they read labels, and resume bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.paper import command
from benchmarks.paper.analysis import entropy_and_loss
from mdft_fast import MetaModel, NpzSource, evaluate
from mdft_fast.app.opening import build
from mdft_fast.app.recipe import Recipe
from mdft_fast.data import load_labelled
from mdft_fast.evaluation import load_test_sets
from mdft_fast.model import build_backbone
from tests.scripts import script
from tests.toy import CLASSES, SPEC, write_toy

pytest.importorskip("timm")

OPTIONS = ["--steps", "24", "--batch", "16", "--lr", "2e-3", "--save-every", "3"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return script("examples/finetune_pool.py")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


Run = Callable[..., int]


@pytest.fixture(scope="module")
def train(example: ModuleType, recipe: Path) -> Run:
    def run(out: Path, *options: str, file: Path = recipe) -> int:
        given = [str(file), "--train", str(recipe.parent / "train"), "--out", str(out)]
        heads = [f"tasks[{i}].head.file={out}/heads/{n}.safetensors" for i, n in enumerate(CLASSES)]
        status: int = example.main([*given, *(options or OPTIONS), "--set", *heads])
        return status

    return run


@pytest.fixture(scope="module")
def made(train: Run, recipe: Path) -> Path:
    out = recipe.parent / "out"
    assert train(out) == 0
    return out


def test_the_tables_take_what_is_made(made: Path, recipe: Path, tmp_path: Path) -> None:
    options = ["--recipe", str(recipe), "--baselines", str(made), "--out", str(tmp_path / "out")]
    quick = ["--set", "construct.batch=4", "specialize.steps=1", "specialize.batch=4"]
    given = [*options, "--work", str(tmp_path / "work"), "--steps", "1", *quick]
    assert command.main(["table2", *given]) == 0
    results = json.loads((tmp_path / "out" / "table2.json").read_text())["results"]
    assert {"multi_task", "finetuned"} < set(results["accuracy"])


def report(out: Path) -> Any:
    return json.loads((out / "baselines.json").read_text())


def test_what_is_made_says_that_labels_were_read(made: Path) -> None:
    content = report(made)
    assert "supervised: training labels were read" in content["labels"]
    assert content["heads_made"] == ["shades", "sides"]
    assert set(content["models"]) == {
        "models/shades.safetensors", "models/sides.safetensors", "multi_task.safetensors",
    }  # fmt: skip
    own, shared = content["models"]["models/shades.safetensors"], content["models"][
        "multi_task.safetensors"]  # fmt: skip
    assert own["trainable"] == sum(p.numel() for p in build_backbone(SPEC).parameters())
    assert own["images"] == 24 * 16
    assert shared["images"] == 2 * own["images"]
    assert own["seconds"] > 0
    assert own["cpu_seconds"] > 0
    assert not list((made / "state").rglob("*.pt"))


def test_models_learn_and_are_measured_as_they_are_stored(made: Path, recipe: Path) -> None:
    """Read back as a pool: this is also how a pool is made where there is none."""
    built = build(Recipe.load(recipe))
    meta: MetaModel = built.meta_model()
    for test in load_test_sets(built.tasks, built.pool.preprocess):
        name = test.task.name
        source = NpzSource(recipe.parent / "train" / f"{name}.npz", "x", "y")
        given = meta, name, *load_labelled(source, built.pool.preprocess, len(CLASSES[name]))
        with meta.using(0.0):
            before = entropy_and_loss(*given)[1].mean()
        with meta.using(meta.individual(name)):
            after = entropy_and_loss(*given)[1].mean()
            accuracy = evaluate(meta, [test]).average
        assert after < before
        said = report(made)["models"][f"models/{name}.safetensors"]["accuracy"][name]
        assert accuracy == pytest.approx(said)
    shared = build_backbone(SPEC)
    stored = load_file(made / "multi_task.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    shared.load_state_dict({k: v.float() for k, v in stored.items()})
    found = evaluate(shared, built.tasks, preprocess=built.pool.preprocess).accuracy
    assert found == pytest.approx(report(made)["models"]["multi_task.safetensors"]["accuracy"])


@pytest.mark.parametrize("stop", [2, 4, 19, 32])  # in the first model, after a state, in each other
def test_a_stopped_training_goes_on_bit_for_bit(
    example: ModuleType, train: Run, made: Path, tmp_path: Path, stop: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plain, updates = example.Training.update, []

    def interrupted(self: Any) -> None:
        if len(updates) == stop:
            raise KeyboardInterrupt
        updates.append(1)
        plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(example.Training, "update", interrupted)
        assert train(tmp_path / "out") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert train(tmp_path / "out") == 0
    for name in ("models/shades", "models/sides", "multi_task"):
        again = load_file(tmp_path / "out" / f"{name}.safetensors")
        for key, value in load_file(made / f"{name}.safetensors").items():
            assert torch.equal(again[key], value), (name, key)
    assert (
        report(tmp_path / "out")["models"]["multi_task.safetensors"]["accuracy"]
        == report(made)["models"]["multi_task.safetensors"]["accuracy"]
    )


def test_a_finished_training_does_nothing(
    example: ModuleType, train: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (made / "baselines.json").read_text()
    monkeypatch.setattr(example.Training, "update", lambda self: pytest.fail("trained again"))
    assert train(made) == 0
    after = report(made)
    assert after["models"] == json.loads(before)["models"]


def test_another_configuration_is_refused(
    train: Run, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (made / "baselines.json").read_bytes()
    assert train(made, "--steps", "9") == 1
    assert "must be new or of the same recipe, data and options" in capsys.readouterr().err
    assert (made / "baselines.json").read_bytes() == before


@pytest.mark.usefixtures("made")
def test_folders_of_images_are_read_by_class_name(
    example: ModuleType, recipe: Path, tmp_path: Path
) -> None:
    """The recipe's order of classes counts, not the folders': dark, light, mid is sorted, but
    not every recipe is."""
    pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    for number, name in enumerate(("dark", "light", "mid")):
        (tmp_path / "shades" / name).mkdir(parents=True)
        pixels = np.full((32, 32, 3), 50 * number, np.uint8)
        image.fromarray(pixels).save(tmp_path / "shades" / name / "one.png")
    (tmp_path / "sides.npz").write_bytes((recipe.parent / "train" / "sides.npz").read_bytes())
    changed = Recipe.load(recipe, ["tasks[0].class_names=[mid, dark, light]"])
    pool = example.Pool(changed, tmp_path, recipe.parent / "out")
    shades = pool.tasks[0]
    levels = {int(y): int(x[0, 0, 0]) for x, y in zip(shades.samples.x, shades.labels, strict=True)}
    assert levels == {0: 100, 1: 0, 2: 50}


def test_errors_say_what_was_wanted_and_what_came(
    train: Run, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["tasks"][0]["name"] = "absent"
    for task in content["tasks"]:
        for source in ("adapt", "evaluate"):
            task[source]["npz"] = str(recipe.parent / task[source]["npz"])
    content["pool"]["base"] = str(recipe.parent / "base.safetensors")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    assert train(tmp_path / "out", file=file) == 1
    assert "task 'absent': no labelled images" in capsys.readouterr().err
    content["tasks"][0]["name"] = "shades"
    content["tasks"][0]["head"]["normalize"] = False  # no head of that kind is made
    file.write_text(yaml.safe_dump(content))
    assert train(tmp_path / "out", file=file) == 1
    assert "shades.safetensors: no such file" in capsys.readouterr().err
    content["backbone"]["kwargs"]["img_size"] = 64
    file.write_text(yaml.safe_dump(content))
    assert train(tmp_path / "out", file=file) == 1
    assert "base.safetensors: must fit the backbone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
