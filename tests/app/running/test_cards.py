# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind, read again: coefficient cards and saved models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mdft_fast import CoefficientCard, MdftError, load, run
from mdft_fast.app.cli import export_model
from mdft_fast.app.opening import build
from mdft_fast.app.report import read_result
from mdft_fast.arena import name_means
from mdft_fast.json_checksums import with_checksum
from tests.app.conftest import Make, card


def test_the_saved_model_and_the_card_load_bit_for_bit(make_recipe: Make) -> None:
    recipe = make_recipe()
    folder = run(recipe, progress="off").folder
    built = build(recipe)
    meta = built.meta_model()
    for name in ("meta", "specialized/letters"):
        meta.set_coefficients(card(folder, name))
        expected = meta.materialize().state_dict()
        from_card = load(folder / name / "card.json", pool=built.pool).state_dict()
        assert all(torch.equal(from_card[key], value) for key, value in expected.items())
        assert (folder / name / "card.json").stat().st_size < 10_000
    file = folder / "meta" / "model.safetensors"
    saved = load(file)
    assert not saved.training
    torch.set_default_device("meta")
    try:
        assert {tensor.device.type for tensor in load(file).state_dict().values()} == {"cpu"}
    finally:
        torch.set_default_device(None)
    meta.set_coefficients(card(folder))
    for key, value in meta.materialize().state_dict().items():
        assert torch.equal(saved.state_dict()[key], value)


def test_a_file_that_describes_another_model_is_refused_before_it_is_built(
    tmp_path: Path,
) -> None:
    spec = {"library": "timm", "name": "test_vit", "kwargs": {"depth": 1_000_000}}
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"backbone": json.dumps(spec)})
    with pytest.raises(MdftError, match="must make the model that the weights are of, 1 tensors"):
        load(tmp_path / "a.safetensors")


def test_a_card_of_another_pool_is_refused(make_recipe: Make, files: Path, tmp_path: Path) -> None:
    recipe = make_recipe("specialize.tasks=none")
    folder = run(recipe, progress="off").folder
    models = tmp_path / "models"
    shutil.copytree(files / "models", models)
    state = load_file(models / "shapes.safetensors")
    state["norm.bias"][0] += 1
    save_file(state, models / "shapes.safetensors")
    other = build(make_recipe(f"pool.models={models}")).pool
    with pytest.raises(MdftError, match=r"card\.json: pool_checksum must be the given pool's, "):
        load(folder / "meta" / "card.json", pool=other)
    with pytest.raises(MdftError, match="needs its pool"):
        load(folder / "meta" / "card.json")


def test_a_run_by_row_is_small_and_read_again(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(
        "granularity=row", "specialize.tasks=[letters]", "specialize.control=false"
    )
    folder = run(recipe, progress="off").folder
    built = build(recipe)
    meta = built.meta_model()
    written = CoefficientCard.load(folder / "specialized" / "letters" / "card.json")
    assert (written.columns, written.rows) == (meta.layout.columns, meta.layout.rows)
    assert json.loads((folder / "meta" / "card.json").read_text())["version"] == 2
    assert written.coefficients.shape == (2, meta.layout.L)
    assert len(written.columns) < meta.layout.L / 10
    assert written.coefficients.unique().numel() > len(written.columns) * 2
    meta.set_coefficients(written.coefficients)
    read = load(folder / "specialized" / "letters" / "card.json", pool=built.pool).state_dict()
    for key, value in meta.materialize().state_dict().items():
        assert torch.equal(read[key], value)
    export_model(folder, tmp_path / "letters.safetensors", "letters", None)
    exported = load_file(tmp_path / "letters.safetensors")
    assert all(torch.equal(read[key], exported[key]) for key in exported)
    result = read_result(folder)
    assert result["trainable"] == 2 * meta.layout.L
    means = torch.tensor(result["coefficients"]["specialize"]["letters"])
    torch.testing.assert_close(means, name_means(written.coefficients, written.rows))
    words, page = ((folder / name).read_text("utf-8") for name in ("report.md", "report.html"))
    assert f"2 task vectors × {meta.layout.L:,} columns of λ" in words
    assert "mean over its rows" in page
    card = json.loads((folder / "meta" / "card.json").read_text())
    for key, value in {"rows": [1], "coefficients": {"shapes": "!", "letters": "!"}}.items():
        (tmp_path / "card.json").write_text(json.dumps(with_checksum({**card, key: value})))
        with pytest.raises(MdftError, match=r"card.json: damaged"):
            CoefficientCard.load(tmp_path / "card.json")
    finer = {**card, "granularity": "tensor"}
    (tmp_path / "card.json").write_text(json.dumps(with_checksum(finer)))
    with pytest.raises(MdftError, match="tasks and columns must be the pool's"):
        load(tmp_path / "card.json", pool=built.pool)


def test_damaged_cards_and_models(tmp_path: Path) -> None:
    for content in ("", "[]", '{"format": "mdft_fast coefficient card", "version": 9}',
                    '{"format": "mdft_fast coefficient card", "version": 1}'):  # fmt: skip
        (tmp_path / "card.json").write_text(content)
        with pytest.raises(MdftError, match=r"card.json: "):
            CoefficientCard.load(tmp_path / "card.json")
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(MdftError, match=r"model.safetensors: not a readable safetensors"):
        load(tmp_path / "model.safetensors")


def test_weights_of_another_model_are_one_clear_error(tmp_path: Path) -> None:
    path, layer = tmp_path / "model.safetensors", torch.nn.Linear(3, 2)
    save_file({"weight": torch.zeros(2, 3), "bais": torch.zeros(2)}, path)
    with pytest.raises(MdftError, match=r"2 tensors of the backbone, got .* lacks 'bias' \(1"):
        load(path, backbone=layer)
    save_file({**layer.state_dict(), "scale": torch.zeros(1)}, path)
    with pytest.raises(MdftError, match=r"got a file that holds 'scale' \(0 missing, 1 extra\)"):
        load(path, backbone=layer)
    save_file({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, path)
    with pytest.raises(MdftError, match=r"tensor 'weight' must be \[2, 3\].*got \[2, 4\]"):
        load(path, backbone=layer)


def test_a_sorted_card_is_the_same_model(make_recipe: Make) -> None:
    recipe = make_recipe("specialize.tasks=none")
    folder = run(recipe, progress="off").folder
    built = build(recipe)
    path = folder / "meta" / "card.json"
    expected = load(path, pool=built.pool).state_dict()
    card = json.loads(path.read_text())
    card["coefficients"] = dict(sorted(card["coefficients"].items()))
    assert list(card["coefficients"]) != list(built.pool.names)
    path.write_text(json.dumps(card))
    for key, value in load(path, pool=built.pool).state_dict().items():
        assert torch.equal(value, expected[key])
    card["columns"][0] = "another"
    path.write_text(json.dumps(card))
    with pytest.raises(MdftError, match=r"meta/card\.json: its content's sha256 must be"):
        load(path, pool=built.pool)
    path.write_text(json.dumps(with_checksum(card)))
    with pytest.raises(MdftError, match=r"meta/card\.json: tasks and columns must be the pool's"):
        load(path, pool=built.pool)
