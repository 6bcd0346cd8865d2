# SPDX-License-Identifier: Apache-2.0
"""``mdft pack``: a recipe or a packed pool in, a pool and what its codec cost out."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mdft_fast.app.cli import actions
from mdft_fast.arena import CODECS
from mdft_fast.pool import Head, Pool
from tests.app.conftest import call
from tests.conftest import contents

RECIPE = """
version: 1
pool: {folder: packed}
tasks: [{name: one, adapt: {npz: one.npz}}]
"""


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed pool of 12 tensors in fp32, beside where a recipe would look for it."""
    generator = torch.Generator().manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), *(nn.Linear(12, 12) for _ in range(6)))
    states = [
        {n: torch.randn(t.shape, generator=generator) for n, t in backbone.state_dict().items()}
        for _ in range(3)
    ]
    tasks = [
        types.SimpleNamespace(name=name, class_names=("a", "b"), head=Head(torch.ones(2, 12)))
        for name in ("one", "two")
    ]
    preprocess = {"size": 2, "mean": 0.5, "std": 0.5}
    pool = Pool.from_checkpoints(
        states[0], states[1:], tasks, backbone=backbone, preprocess=preprocess
    )
    pool.save(tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize("codec", CODECS[1:])
def test_a_packed_pool_goes_to_another_codec(codec: str, packed: Path, tmp_path: Path) -> None:
    shown = call("pack", packed, tmp_path / "small", "--codec", codec)
    assert shown.stderr == ""
    small, old = Pool.open(tmp_path / "small", verify=True), Pool.open(packed)
    assert small.checksum == old.encode(codec).checksum
    assert small.describe() in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    ranked = sorted(small.errors.items(), key=lambda item: -item[1].relative)
    table = [[n, f"{e.absolute:.3g}", f"{100 * e.relative:.3g}"] for n, e in ranked]
    assert [line for line in lines if line in table] == table[:10]
    absolute = max(error.absolute for error in small.errors.values())
    assert f"worst of 12 tensors: {absolute:.3g} absolute, {table[0][2]} % of the" in shown.stdout
    assert "2 tensors more: --all shows them, pool.json has them" in shown.stdout
    assert lines[-1] == ["wrote", str(tmp_path / "small")]

    shown = call("pack", packed, tmp_path / "small", "--codec", codec, "--all", "--overwrite")
    assert [line.split() for line in shown.stdout.splitlines() if line.split() in table] == table
    assert "tensors more" not in shown.stdout


def test_nothing_rounded_shows_no_errors(packed: Path, tmp_path: Path) -> None:
    shown = call("pack", packed, tmp_path / "copy")
    assert "worst of" not in shown.stdout
    assert Pool.open(tmp_path / "copy", verify=True).checksum == Pool.open(packed).checksum


def test_out_of_a_rounded_codec_there_is_a_warning(packed: Path, tmp_path: Path) -> None:
    call("pack", packed, tmp_path / "int8", "--codec", "int8")
    shown = call("pack", tmp_path / "int8", tmp_path / "int4", "--codec", "int4")
    assert shown.stderr.startswith("warning: the pool's task vectors are rounded to codec 'int8'")
    assert "that error stays" in shown.stderr
    assert "note: the task vectors were rounded to codec 'int8' before" in shown.stdout
    assert call("pack", tmp_path / "int8", tmp_path / "same").stderr == ""


def test_a_recipe_of_a_packed_pool(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 2, 2, 3), np.uint8))
    shown = call("pack", tmp_path / "recipe.yaml", tmp_path / "int8", "--codec", "int8")
    assert shown.stderr == ""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("packed", "int8"))
    shown = call("pack", tmp_path / "recipe.yaml", tmp_path / "int4", "--codec", "int4")
    assert shown.stderr.startswith("warning: the pool's task vectors are rounded to codec 'int8'")
    assert Pool.open(tmp_path / "int4").codec == "int4"


def test_a_recipe_gets_the_codec(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.replace("folder: packed", "base: base.safetensors, models: models")
    recipe = recipe.replace("adapt:", "head: {file: head.safetensors, normalize: true}, adapt:")
    recipe += "backbone: {library: timm, name: x}\npreprocess: {size: 2, mean: 0, std: 1}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    asked = []

    def pack(loaded: Any, path: Path, **options: Any) -> Pool:
        asked.append((loaded.seed, path, options))
        return Pool.open(packed)

    monkeypatch.setattr(actions, "pack", pack)
    call("pack", tmp_path / "recipe.yaml", tmp_path / "new", "--codec", "int4", "--set", "seed=5")
    assert asked == [(5, tmp_path / "new", {"codec": "int4", "overwrite": False, "start": False})]


def _damage(packed: Path) -> None:
    with open(packed / "tau.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


def test_a_damaged_pool_is_not_packed_again(packed: Path, tmp_path: Path) -> None:
    _damage(packed)
    shown = call("pack", packed, tmp_path / "small", "--codec", "int8", code=1)
    assert "tau.safetensors: sha256 must be" in shown.stderr
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{pool}", "{pool}", "--codec", "int8"], "already exists; --overwrite replaces it"),
        (["{pool}", "new", "--codec", "int3"], "codec: must be one of ['fp32', 'bf16', 'fp16'"),
        (["{pool}", "new", "--codec", "itn8"], "got 'itn8'; did you mean 'int8'?"),
        (["{pool}", "new", "--set", "seed=1"], "--set: is for a recipe, got "),
        (["{pool}/heads", "new"], "heads: not a pool, pool.json is missing"),
        (["{pool}/none", "new"], "none: not readable: No such file"),
    ],
)
def test_errors_write_nothing(
    arguments: list[str], message: str, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packed.parent)
    before = contents(packed.parent)
    shown = call("pack", *(word.replace("{pool}", str(packed)) for word in arguments), code=1)
    assert message in shown.stderr
    assert contents(packed.parent) == before
