# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind needs its pool, and neither heads nor images any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mdft_fast.app.cli import export_model
from mdft_fast.app.opening import open_pool, pack
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.report import write_report
from mdft_fast.app.running import run
from mdft_fast.errors import MdftError
from tests.app.conftest import Make, call


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_run_is_exported_and_reported_without_its_data(
    packed: bool, codec: str, make_recipe: Make, files: Path, tmp_path: Path
) -> None:
    for name in ("heads", "data"):
        shutil.copytree(files / name, tmp_path / name)
    moved = [f"memory.codec={codec}", "specialize.tasks=[shapes]", "specialize.control=false"]
    for i, name in enumerate(("shapes", "letters")):
        moved.append(f"tasks[{i}].head.file={tmp_path / 'heads' / name}.safetensors")
        for part in ("adapt", "evaluate"):
            moved.append(f"tasks[{i}].{part}.npz={tmp_path / 'data' / name}.npz")
    if packed:
        pack(make_recipe(), tmp_path / "packed")
        moved += [f"pool={{folder: {tmp_path / 'packed'}}}", "backbone=null"]
    folder = run(make_recipe(*moved), progress="off").folder
    before = load_file(folder / "meta" / "model.safetensors")
    for name in ("heads", "data"):
        shutil.rmtree(tmp_path / name)
    export_model(folder, tmp_path / "meta.safetensors", None, None)
    export_model(folder, tmp_path / "shapes.safetensors", "shapes", None)
    meta, shapes = (load_file(tmp_path / f"{name}.safetensors") for name in ("meta", "shapes"))
    assert meta.keys() == shapes.keys() == before.keys()
    assert all(torch.equal(meta[name], before[name]) for name in before)
    assert not all(torch.equal(shapes[name], before[name]) for name in before)
    write_report(folder)
    with pytest.raises(MdftError, match=r"tasks\[0\].head.file: no such file"):
        run(Recipe.load(folder / "recipe.yaml", [f"output={tmp_path / 'again'}"]))


def test_a_card_is_of_its_place_and_says_if_it_carries_no_checksum(
    make_recipe: Make, tmp_path: Path
) -> None:
    short = ("construct.steps=1", "specialize.steps=1", "specialize.control=false")
    recipe, to = make_recipe(*short), tmp_path / "m.safetensors"
    folder = run(recipe, progress="off").folder
    meta, shapes, letters = (
        folder / name / "card.json"
        for name in ("meta", "specialized/shapes", "specialized/letters")
    )
    content = json.loads(letters.read_text())
    shutil.copy(letters, shapes)
    wanted = "must be the card of stage 'specialize', task 'shapes', got that of stage"
    for command in ("export", folder, "--task", "shapes"), ("export", shapes):
        assert f"{shapes}: {wanted} 'spec" in call(*command, "--to", to, code=1).stderr
    shutil.copy(meta, shapes)
    eval_shapes = call("eval", shapes, folder / "recipe.yaml", code=1)
    assert f"{shapes}: {wanted} 'construct'\n" in eval_shapes.stderr
    shutil.copy(letters, meta)
    specialize = call("specialize", folder, "--task", "shapes", "--overwrite", code=1)
    assert f"{meta}: must be the card of stage 'construct', got that of" in specialize.stderr
    assert not to.exists()
    assert "sha256" not in call("export", letters, "--to", to).stderr
    del content["sha256"]
    letters.write_text(json.dumps(content))
    noted = call("export", letters, "--to", to, "--overwrite").stderr
    assert f"note: {letters}: carries no sha256" in noted


def test_an_export_names_what_the_pool_lacks(make_recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"^recipe: pool.models: no such folder: .*none$"):
        open_pool(make_recipe(f"pool.models={tmp_path / 'none'}"))


def test_a_pool_without_heads_is_not_saved(make_recipe: Make, tmp_path: Path) -> None:
    _, pool = open_pool(make_recipe())
    wanted = r"tasks must have heads to be saved, got none for \['shapes', 'letters'\]"
    with pytest.raises(MdftError, match=wanted):
        pool.save(tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
