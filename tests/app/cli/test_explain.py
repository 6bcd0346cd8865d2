# SPDX-License-Identifier: Apache-2.0
"""``mdft methods --explain``: a recipe in, what a walk finds in its backbone out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.conftest import call
from tests.toy import write_models, write_toy

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = write_toy(tmp_path_factory.mktemp("toy"))
    write_models(recipe)
    return recipe


def test_checkpoints_and_a_packed_pool_are_explained_alike(file: Path, tmp_path: Path) -> None:
    samples, gone = file.parent / "sides.npz", file.parent / "gone"
    samples.rename(gone)
    shown = call("methods", "--explain", file).stdout
    gone.rename(samples)
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "attn.qkv linear 64 -> 192 all 5 positions" in lines
    assert "attn.proj linear 64 -> 64 all 5 positions writes to the residual stream" in lines
    assert (
        lines.count("mlp.fc2 linear 192 -> 64 position 1 of 5 writes to the residual stream") == 1
    )
    assert sum(line.startswith("attn.proj") for line in lines) == 2, "equal blocks are said once"
    call("pack", file, tmp_path / "packed")
    packed = ["--set", f"pool={{folder: {tmp_path / 'packed'}}}", "--set", "transform=[ties]"]
    assert call("methods", "--explain", file, *packed).stdout == shown


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    assert "not readable" in call("methods", "--explain", tmp_path / "none.yaml", code=1).stderr
    shown = call("methods", "--set", "seed=1", code=1)
    assert "--set: is for --explain RECIPE, got no recipe" in shown.stderr
