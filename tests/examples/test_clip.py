# SPDX-License-Identifier: Apache-2.0
"""The CLIP examples from start to end, on files laid out as the real ones: only weights and images
are made up. Small towers by default;

    MDFT_FULL_SIZE=ViT-L-14 pytest -s tests/examples/test_clip.py

takes the full-size tower of the example, some 11 GB of disk, and minutes.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import run
from tests.checkpoints.corpus import TEXT, VISION, save_encoder, save_head
from tests.data.on_disk import WRITERS, write_folders

pytest.importorskip("open_clip")
pytest.importorskip("torchvision")
pytest.importorskip("scipy")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = {"clip_vit_b32": "ViT-B-32", "clip_vit_l14": "ViT-L-14"}
DIMENSION = 12  # of the small towers' features
CLASSES = {"SUN397": 3, "Cars": 2, "RESISC45": 3, "EuroSAT": 10, "SVHN": 10, "GTSRB": 43,
           "MNIST": 10, "DTD": 3}  # fmt: skip
FULL_SIZE = os.environ.get("MDFT_FULL_SIZE", "")


def tower(model: str, seed: int) -> nn.Module:
    """A CLIP model of open_clip with random weights; its text tower is a small one."""
    from open_clip import get_model_config
    from open_clip.model import CLIP

    vision, dimension = dict(VISION), DIMENSION
    if model == FULL_SIZE:
        config = get_model_config(f"{model}-quickgelu")
        vision, dimension = config["vision_cfg"], config["embed_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(dimension, vision, dict(TEXT), quick_gelu=True).eval()


def write_world(folder: Path, model: str) -> None:
    """Writes checkpoints as task_vectors publishes them, and the eight data sets."""
    base, place = tower(model, 0), folder / "checkpoints" / model
    dimension, size = base.visual.output_dim, base.visual.image_size[0]
    save_encoder(place / "zeroshot.pt", base, size=size)
    for seed, (task, classes) in enumerate(CLASSES.items(), 1):
        with torch.no_grad():
            tuned = tower(model, seed)
            for mine, first in zip(tuned.parameters(), base.parameters(), strict=True):
                mine.mul_(0.05).add_(first)
        save_encoder(place / task / "finetuned.pt", tuned, size=size)
        del tuned
        weight = torch.randn(classes, dimension, generator=torch.Generator().manual_seed(seed))
        save_head(place / f"head_{task}.pt", 100 * nn.functional.normalize(weight))
    for seed, (name, write) in enumerate(WRITERS.items(), 1):  # no image in two data sets
        few: dict[str, Any] = {"each": 2 if name == "EuroSAT" else 1} if FULL_SIZE else {}
        if FULL_SIZE and name in ("SVHN", "GTSRB", "MNIST"):  # who know their classes by themselves
            few["classes"] = inspect.signature(write).parameters["classes"].default[:3]
        write(folder / "data" / ("svhn" if name == "SVHN" else ""), seed=seed, **few)
    write_folders(folder / "data" / "resisc45", each=2 if FULL_SIZE else 5)


@pytest.mark.parametrize("example", MODELS)
def test_an_example_from_start_to_end(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[example]
    if FULL_SIZE not in ("", model):
        pytest.skip(f"MDFT_FULL_SIZE={FULL_SIZE} asks for another example")
    monkeypatch.setenv("MDFT_CACHE", str(tmp_path / "cache"))
    write_world(tmp_path, model)
    shutil.copy(EXAMPLES / f"{example}.yaml", tmp_path)
    changed = ["construct.steps=2", "construct.batch=1", "specialize.steps=1", "specialize.batch=2",
               "specialize.tasks=[MNIST]", "specialize.control=false"]  # fmt: skip
    if not FULL_SIZE:
        small = {"vision_cfg": VISION, "embed_dim": DIMENSION}
        changed.append(f"backbone.kwargs={json.dumps(small)}")
    progress = None if FULL_SIZE else "off"
    summary = run(Recipe.load(tmp_path / f"{example}.yaml", changed), progress=progress)
    result: dict[str, Any] = summary.result
    facts = {task["name"]: task for task in result["pool"]["tasks"]}
    assert {name: task["classes"] for name, task in facts.items()} == CLASSES
    assert all(task["unlabelled"] and task["test"] for task in facts.values())
    for method in ("pretrained", "task_arithmetic", "meta", "individual"):
        assert set(result["accuracy"][method]) == set(CLASSES)
    assert result["trainable"] == (8 + 1) * len(result["columns"])
    assert not result["transductive"]
    assert any("text tower" in why for why in result["pool"]["left_out"].values())
    assert (summary.folder / "meta" / "model.safetensors").is_file()
    assert (summary.folder / "report.html").is_file()
    if FULL_SIZE:
        phases = {p["name"]: p for p in result["phases"]}
        print(json.dumps({"parameters": result["pool"]["parameters"], "phases": phases}, indent=1),
              file=sys.stderr)  # fmt: skip
