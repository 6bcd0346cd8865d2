# SPDX-License-Identifier: Apache-2.0
"""A recipe on files, small enough that a whole run takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from mdft_fast import CoefficientCard
from mdft_fast.app.cli import app
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import run
from mdft_fast.app.running.run_folder import RunFolder
from mdft_fast.model import build_backbone

pytest.importorskip("timm")

SPEC = {"library": "timm", "name": "test_vit", "kwargs": {"img_size": 32, "num_classes": 0}}
CLASSES = {"shapes": 3, "letters": 7}
Make = Callable[..., Recipe]  # what the fixture make_recipe gives


def call(*arguments: object, code: int = 0) -> Any:
    """Runs ``mdft`` with these arguments, which must end with this code."""
    shown = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert shown.exit_code == code, shown.output
    return shown


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def card(folder: Path, name: str = "meta") -> torch.Tensor:
    """Returns λ of a card in a run folder."""
    return CoefficientCard.load(folder / name / "card.json").coefficients


def assert_same_cards(one: Path, other: Path) -> None:
    """Compares λ of two runs, stage by stage."""
    for name in ("meta", "specialized/shapes", "specialized/letters"):
        assert torch.equal(card(one, name), card(other, name)), name


def in_pool(folder: Path) -> list[str]:
    """Returns overrides that take all of a recipe's pool from a packed one."""
    return [f"pool={{folder: {folder}}}", "backbone=null", "preprocess=null"]


def nameless(files: Path, folder: Path) -> list[str]:
    """Copies the first task's data without class names; returns overrides that take it."""
    with np.load(files / "data" / "shapes.npz") as arrays:
        content = {key: arrays[key] for key in arrays if key != "class_names"}
    np.savez(folder / "nameless.npz", **content)
    return [f"tasks[0].{part}.npz={folder / 'nameless.npz'}" for part in ("adapt", "evaluate")]


def run_until(after: int, recipe: Recipe) -> None:
    """Stops a run as Ctrl-C does, between a step's line in the metrics and its state."""
    original = RunFolder.save_state
    calls = []

    def stop(self: Any, name: str, state: Any) -> None:
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        original(self, name, state)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunFolder, "save_state", stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, progress="off")


def write_files(folder: Path) -> Path:
    """Writes checkpoints, heads and images of two tasks for timm's smallest ViT."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build_backbone(SPEC)
    base = {
        k: torch.randn(v.shape, generator=generator).mul(0.1).add(v).half()
        for k, v in backbone.state_dict().items()
    }
    save_file(base, folder / "base.safetensors")
    width = backbone.num_features
    for name in ("models", "heads", "data"):
        (folder / name).mkdir()
    for i, (name, classes) in enumerate(CLASSES.items()):
        model = {
            k: (v + 0.05 * torch.randn(v.shape, generator=generator)).half()
            for k, v in base.items()
        }
        save_file(model, folder / "models" / f"{name}.safetensors")
        head = torch.randn(classes, width, generator=generator)
        save_file({"weight": head * 3}, folder / "heads" / f"{name}.safetensors")
        images = np.random.default_rng(i).integers(0, 256, (60, 32, 32, 3), np.uint8)
        labels = np.random.default_rng(i).integers(0, classes, 20)
        np.savez(
            folder / "data" / f"{name}.npz",
            x_unlabelled=images[:40],
            x_test=images[40:],
            y_test=labels,
            class_names=np.array([f"c{c}" for c in range(classes)]),
        )
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as :func:`write_files` fills it."""
    return write_files(tmp_path_factory.mktemp("pool"))


@pytest.fixture
def tasks(make_recipe: Make) -> list[dict[str, Any]]:
    """The tasks of that recipe as its file has them, to be changed."""
    content: list[dict[str, Any]] = make_recipe().model_dump(mode="json")["tasks"]
    return content


def recipe_of(files: Path) -> dict[str, Any]:
    """Returns the content of a recipe for such a folder: a run of seconds."""
    return {
        "version": 1,
        "start": 0.3,
        "pool": {"base": str(files / "base.safetensors"), "models": str(files / "models")},
        "backbone": SPEC,
        "preprocess": {"size": 32, "mean": 0.5, "std": 0.5},
        "tasks": [
            {
                "name": name,
                "head": {"file": str(files / "heads" / f"{name}.safetensors"), "normalize": True},
                "adapt": {"npz": str(files / "data" / f"{name}.npz"), "x": "x_unlabelled"},
                "evaluate": {
                    "npz": str(files / "data" / f"{name}.npz"), "x": "x_test", "y": "y_test",
                },
            }
            for name in CLASSES
        ],
        "construct": {"steps": 4, "batch": 4, "filter": {"mu": 0.95}},
        "specialize": {"steps": 3, "batch": 8, "control": True},
        "output": "run",
    }  # fmt: skip


@pytest.fixture
def make_recipe(files: Path, tmp_path: Path, own_cache: Path) -> Make:
    """Returns a function of overrides that gives a recipe with its output in a new folder.

    No answer of another test's run is in the cache.
    """
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_of(files)))

    def make(*overrides: str) -> Recipe:
        return Recipe.load(file, overrides)

    return make
