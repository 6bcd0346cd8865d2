# SPDX-License-Identifier: Apache-2.0
"""A recipe on the published layout of task_vectors: nothing is converted, nothing executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mdft_fast.app.forecast import plan
from mdft_fast.app.opening import build, pack
from mdft_fast.app.recipe import Recipe
from mdft_fast.errors import MdftError
from mdft_fast.pool import Pool
from tests.checkpoints.corpus import MEAN, SIZE, VISION, save_encoder, save_head, tiny_clip

pytest.importorskip("open_clip")
TASKS = {"mnist": "MNIST", "cars": "Cars"}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    save_encoder(tmp_path / "ViT-B-32/zeroshot.pt", tiny_clip())
    tasks = []
    for seed, (name, folder) in enumerate(TASKS.items(), 1):
        save_encoder(tmp_path / f"ViT-B-32/{folder}/finetuned.pt", tiny_clip(seed=seed))
        save_head(tmp_path / f"ViT-B-32/head_{folder}.pt", torch.randn(3, 12) * 100)
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((4, SIZE, SIZE, 3), np.uint8))
        head = {"file": f"ViT-B-32/head_{folder}.pt"}
        tasks.append({"name": name, "head": head, "adapt": {"npz": f"{name}.npz"}})
    kwargs = {"vision_cfg": VISION, "embed_dim": 12}
    return {
        "version": 1,
        "start": 0.3,
        "pool": {"base": "ViT-B-32/zeroshot.pt", "models": "ViT-B-32"},
        "backbone": {"library": "open_clip", "name": "ViT-B-32-quickgelu", "kwargs": kwargs},
        "tasks": tasks,
        "output": "run",
    }


def load(content: dict[str, Any], folder: Path) -> Recipe:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return Recipe.load(folder / "recipe.yaml")


def test_is_packed_as_it_lies(content: dict[str, Any], tmp_path: Path) -> None:
    recipe = load(content, tmp_path)
    assert plan(recipe, every=False).rows
    pool = pack(recipe, tmp_path / "packed")
    assert pool.names == ("mnist", "cars")
    assert pool.preprocess["size"] == [SIZE, SIZE]
    assert pool.preprocess["mean"] == pytest.approx(MEAN)
    assert pool.activation == "quick_gelu"
    assert all(head.normalize for head in pool.heads.values())
    built = build(load({**content, "pool": {"folder": "packed"}}, tmp_path))
    assert built.meta_model().encode(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 12)
    assert Pool.open(tmp_path / "packed", verify=True).checksum == pool.checksum


def test_contradictions_are_errors(content: dict[str, Any], tmp_path: Path) -> None:
    gelu = {**content["backbone"], "name": "ViT-B-32"}
    with pytest.raises(MdftError, match=r"must be 'quick_gelu' as .*zeroshot.pt says, got 'gelu'"):
        build(load({**content, "backbone": gelu}, tmp_path))
    forced = {**gelu, "kwargs": {**gelu["kwargs"], "force_quick_gelu": True}}
    assert build(load({**content, "backbone": forced}, tmp_path)).pool.activation == "quick_gelu"
    wrong = {"size": SIZE, "mean": 0.5, "std": 0.5}
    with pytest.raises(MdftError, match=r"preprocess: 'mean' must be .*zeroshot.pt says, got 0.5"):
        build(load({**content, "preprocess": wrong}, tmp_path))


def test_a_base_that_does_not_say_needs_a_preprocess(
    content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "ViT-B-32/zeroshot.pt")
    with pytest.raises(MdftError, match=r"preprocess must be given, as .*zeroshot.pt does not say"):
        build(load(content, tmp_path))


def test_a_missing_checkpoint_says_what_was_looked_for(
    content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "ViT-B-32/Cars/finetuned.pt").unlink()
    wanted = r"task 'cars', as a file 'cars' that ends in one of \['.safetensors', '.pt',"
    with pytest.raises(MdftError, match=wanted):
        build(load(content, tmp_path))
