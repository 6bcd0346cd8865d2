# SPDX-License-Identifier: Apache-2.0
"""A recipe's transforms, from the plan to the report."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from mdft_fast import CoefficientCard, MdftError, Pool, plan, run
from mdft_fast.app.opening import build, open_pool, pack
from mdft_fast.app.recipe import PRESETS, Recipe
from mdft_fast.arena import Slot
from mdft_fast.methods import METHODS, Merge, Ties, apply
from tests.methods.made_pools import Mean
from tests.toy import write_models, write_toy

pytest.importorskip("timm")

TRANSFORM = "transform=[{ties: {density: 0.3}}, lines]"
APPLIED = ["ties(density=0.3)", "lines(alpha=0.5, beta=0.5)"]
SHORT = ["construct.steps=2", "specialize.steps=1", "specialize.control=false"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = write_toy(tmp_path_factory.mktemp("toy"))
    write_models(recipe)
    return recipe


def test_the_default_is_none_and_stands_in_no_way(file: Path) -> None:
    plain = Recipe.load(file)
    assert plain.transform == ()
    assert "\ntransform: []\n" in plain.dump()
    assert not build(plain).pool.methods


def test_every_field_is_written_down(file: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(file, ["transform=[ties]"])
    assert "\ntransform:\n- ties: {density: 0.2}\n" in recipe.dump()
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("value", ["ties", "[3]", "[tise]", "[{ties: {density: 2}}]"])
def test_a_mistake_is_named_by_its_key(file: Path, value: str) -> None:
    with pytest.raises(MdftError, match=r"recipe.yaml: transform(\[0\])?: .*must be "):
        Recipe.load(file, [f"transform={value}"])


@pytest.fixture
def mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mean", Mean)


@pytest.mark.usefixtures("mean")
def test_a_merge_is_a_start(file: Path, tmp_path: Path) -> None:
    plain = Recipe.load(file, ["start=mean"])
    recipe = Recipe.load(file, ["start={method: mean, scale: 0.5}"])
    assert (plain.start, recipe.start) == (Mean(), Mean(0.5))
    assert "\nstart: {method: mean, scale: 0.5}\n" in recipe.dump()
    recipe.write(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    for value, words in (
        ("{method: mean, scael: 2}", "mean.scael: unknown key; did you mean 'scale'?"),
        ("{method: mean, scale: -1}", "mean.scale: must be a finite number >= 0"),
        ("maen", "did you mean 'mean'?"),
    ):
        with pytest.raises(MdftError, match=rf"recipe.yaml: start: .*{re.escape(words)}"):
            Recipe.load(file, [f"start={value}"])


@pytest.mark.usefixtures("mean")
def test_a_start_goes_over_a_presets_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "other", dataclasses.make_dataclass(
        "Other", [("depth", int, 2)], bases=(Merge,), frozen=True,
        namespace={"name": "other", "source": "a test", "merge": Mean.merge},
    ))  # fmt: skip
    monkeypatch.setitem(PRESETS["default"], "start", {"method": "other", "depth": 3})
    assert str(Recipe.load(file, ["start=null"]).start) == "other(depth=3)"
    assert str(Recipe.load(file, ["start={depth: 4}"]).start) == "other(depth=4)"
    assert Recipe.load(file, ["start={method: mean}"]).start == Mean()
    assert Recipe.load(file, ["start=0.5"]).start == 0.5


@pytest.mark.parametrize(("value", "line"), [("1", "1.0"), ("[0, 0.5]", "[0.0, 0.5]")])
def test_numbers_are_starts_as_ever(value: str, line: str, file: Path) -> None:
    assert f"\nstart: {line}\n" in Recipe.load(file, [f"start={value}"]).dump()


@pytest.mark.usefixtures("mean")
def test_a_merge_is_no_transform(file: Path) -> None:
    with pytest.raises(MdftError, match=r"transform\[0\]: mean: must be a transform"):
        Recipe.load(file, ["transform=[mean]"])


def test_a_run_says_what_it_did_and_resumes(file: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'run'}"
    recipe = Recipe.load(file, [TRANSFORM, output, *SHORT])
    result = run(recipe, progress="off").result
    assert result["pool"]["methods"] == APPLIED
    assert any(", ".join(APPLIED) in line for line in result["warnings"])
    assert ", ".join(APPLIED) in (tmp_path / "run/report.md").read_text()
    again = run(Recipe.load(tmp_path / "run/recipe.yaml"), resume=True, progress="off").result
    assert again["coefficients"] == result["coefficients"]
    other = Recipe.load(file, [TRANSFORM.replace("0.3", "0.4"), output, *SHORT])
    with pytest.raises(MdftError, match=r"transform.*0.4"):
        run(other, resume=True, progress="off")
    card = CoefficientCard.load(tmp_path / "run/meta/card.json")
    backbone, pool = open_pool(recipe)
    assert card.meta_model(pool, backbone).coefficients.shape[0] == 2
    with pytest.raises(MdftError, match="pool_checksum must be the given pool's"):
        card.meta_model(open_pool(Recipe.load(file))[1], backbone)


@pytest.mark.parametrize("codec", ["fp32", "int4"])
def test_packing_transforms_what_is_exact_and_rounds_once(
    codec: str, file: Path, tmp_path: Path
) -> None:
    pack(Recipe.load(file), tmp_path / "plain")
    wanted = apply(Pool.open(tmp_path / "plain"), Recipe.load(file, [TRANSFORM]).transform)
    pool = pack(Recipe.load(file, [TRANSFORM]), tmp_path / "packed", codec=codec)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "plain"]
    assert pool.checksum == wanted.encode(codec).checksum
    assert list(pool.methods) == APPLIED
    assert f"before {', '.join(APPLIED)}" in pool.describe()
    again = Recipe.load(file, [f"pool={{folder: {tmp_path / 'packed'}}}"])
    assert build(again).pool.checksum == pool.checksum
    from_packed = Recipe.load(file, [f"pool={{folder: {tmp_path / 'plain'}}}", TRANSFORM])
    assert pack(from_packed, tmp_path / "third", codec=codec).checksum == pool.checksum


def test_a_packed_pool_is_transformed_on_opening(file: Path, tmp_path: Path) -> None:
    plain = pack(Recipe.load(file), tmp_path / "plain")
    keys = [f"pool={{folder: {tmp_path / 'plain'}}}", "transform=[ties]", "memory.codec=int8"]
    pool = build(Recipe.load(file, keys)).pool
    assert pool.checksum == apply(plain, [Ties()], codec="int8").checksum
    assert pool.codec == "int8"


def test_the_plan_counts_new_vectors_as_memory(file: Path, tmp_path: Path) -> None:
    pack(Recipe.load(file), tmp_path / "plain")
    keys = [f"pool={{folder: {tmp_path / 'plain'}}}"]
    mapped = {row.away for row in plan(Recipe.load(file, keys)).rows if row.codec == "fp32"}
    made = [row.away for row in plan(Recipe.load(file, [*keys, "transform=[ties]"])).rows]
    assert mapped == {True}
    assert not any(made)


def test_a_method_that_needs_layers_finds_the_backbones(file: Path, tmp_path: Path) -> None:
    plain = pack(Recipe.load(file), tmp_path / "plain")
    keys = [f"pool={{folder: {tmp_path / 'plain'}}}", "transform=[{lowrank: {rank: 1}}]"]
    recipe = Recipe.load(file, keys)
    made = build(recipe).pool
    assert made.methods == ("lowrank(energy=0.9, rank=1)",)
    changed = [slot.name for slot in plain.layout.slots if not _equal(plain, made, slot)]
    assert changed
    assert all(name.startswith("blocks.") and name.endswith("weight") for name in changed)
    assert plan(recipe).rows


def _equal(pool: Pool, other: Pool, slot: Slot) -> bool:
    one, two = (vectors.of_slot(slot).decode() for vectors in (pool.vectors, other.vectors))
    return one.equal(two)
