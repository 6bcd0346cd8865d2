# SPDX-License-Identifier: Apache-2.0
"""What a run would refuse after loading, a plan refuses before, in the same words."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mdft_fast.app.forecast import plan
from mdft_fast.app.opening import build, open_pool, pack
from mdft_fast.app.recipe import Recipe, RecipeError
from mdft_fast.errors import MdftError
from mdft_fast.json_checksums import with_checksum
from mdft_fast.pool import Packing, Pool
from tests.app.conftest import Make, in_pool, nameless
from tests.data.on_disk import write_folders

pytestmark = pytest.mark.usefixtures("own_cache")


@contextlib.contextmanager
def loading_nothing() -> Iterator[None]:
    """Fails where a weight is read."""

    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight was read")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Packing, "rows", no)
        patch.setattr(Packing, "base", property(no))
        yield


def refused_alike(recipe: Recipe, message: str) -> None:
    with loading_nothing(), pytest.raises(MdftError, match=message) as planned:
        plan(recipe)
    with pytest.raises(MdftError) as built:
        build(recipe)
    assert str(planned.value) == str(built.value)


def packed(make_recipe: Make, folder: Path, *overrides: str) -> list[str]:
    """Packs a recipe's pool; returns overrides that take it from there."""
    pack(make_recipe(*overrides), folder / "packed")
    return in_pool(folder / "packed")


def a_head(folder: Path, *shape: int) -> str:
    save_file({"weight": torch.ones(shape)}, folder / "head.safetensors")
    return f"head={{file: {folder / 'head.safetensors'}, normalize: true}}"


def a_model(files: Path, folder: Path, **changes: Any) -> str:
    """Copies the models, one with a fault: tensors that replace its own, or None."""
    (folder / "models").mkdir()
    for name in ("shapes", "letters"):
        state = load_file(files / "models" / f"{name}.safetensors")
        if name == "letters":
            state |= changes
            state = {key: tensor for key, tensor in state.items() if tensor is not None}
        save_file(state, folder / "models" / f"{name}.safetensors")
    return f"pool.models={folder / 'models'}"


@pytest.mark.parametrize("from_packed", [False, True], ids=["checkpoints", "packed"])
@pytest.mark.parametrize(
    ("task", "shape", "message"),
    [
        (1, (7, 20), r"task 'letters': head must read 64 features .*'shapes', got .* \[7, 20\]"),
        (1, (5, 64), r"task 'letters': head must have one row for each of 7 class names, got wei"),
        (0, (3, 64, 1), r"head.safetensors: head: weight must be floating \[C, D\], got"),
    ],
)
def test_a_head_that_does_not_fit(
    make_recipe: Make, tmp_path: Path, from_packed: bool, task: int, shape: Any, message: str
) -> None:  # fmt: skip
    source = packed(make_recipe, tmp_path) if from_packed else ["memory.mode=resident"]
    recipe = make_recipe(*source, f"tasks[{task}].{a_head(tmp_path, *shape)}")
    refused_alike(recipe, message)


@pytest.mark.parametrize("from_packed", [False, True], ids=["checkpoints", "packed"])
def test_heads_of_another_backbone(make_recipe: Make, tmp_path: Path, from_packed: bool) -> None:
    source = packed(make_recipe, tmp_path) if from_packed else []
    heads = []
    for i, classes in enumerate((3, 7)):
        (tmp_path / str(i)).mkdir()
        heads.append(f"tasks[{i}].{a_head(tmp_path / str(i), classes, 20)}")
    recipe = make_recipe(*source, *heads)
    message = r"task 'shapes': head must read the backbone's 64 features, got weight \[3, 20\]"
    refused_alike(recipe, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.bias": torch.zeros(3)}, r"letters.*'norm.bias' must be \[64\] .*, got \[3\]"),
        ({"norm.bias": None}, r"letters.*'norm.bias' of the backbone is missing"),
        ({"norm.bia": torch.zeros(3)}, r"letters.*extra key 'norm.bia' is not in the backbone"),
        (
            {"norm.bias": torch.zeros(64).bfloat16()},
            r"letters.*mixed dtypes: tensor 'norm.bias' must be in",
        ),
    ],
)
def test_a_model_that_does_not_fit(
    make_recipe: Make, files: Path, tmp_path: Path, changes: Any, message: str
) -> None:  # fmt: skip
    refused_alike(make_recipe(a_model(files, tmp_path, **changes)), message)


def test_no_weight_is_read(make_recipe: Make, files: Path, tmp_path: Path) -> None:
    bad = torch.full((64,), torch.nan).half()
    recipe = make_recipe(a_model(files, tmp_path, **{"norm.bias": bad}))
    plan(recipe)
    with pytest.raises(MdftError, match=r"letters.*norm.bias"):
        build(recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone={library: timm, name: test_vit2, kwargs: {img_size: 32, num_classes: 0}}",
         r"backbone must be the pool's"),
        ("preprocess.size=16", r"preprocess must be the pool's"),
        ("tasks[1].name=digits", r"task must be one of \['shapes', 'letters'\], got 'digits'"),
        ("tasks[0].class_names=[a, b, c]", r"task 'shapes': recipe: class 0 must be 'c0' as in"),
    ],
)  # fmt: skip
def test_a_recipe_that_does_not_fit_its_packed_pool(
    make_recipe: Make, tmp_path: Path, change: str, message: str
) -> None:  # fmt: skip
    pack(make_recipe(), tmp_path / "packed")
    recipe = make_recipe(f"pool={{folder: {tmp_path / 'packed'}}}", change)
    refused_alike(recipe, message)


def test_a_packed_pool_of_another_backbone(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(*packed(make_recipe, tmp_path))
    file = tmp_path / "packed" / "pool.json"
    content = json.loads(file.read_text().replace('"img_size": 32', '"img_size": 48'))
    file.write_text(json.dumps(with_checksum(content)))
    message = r"backbone: pos_embed must be .* as in the pool, got"
    with pytest.raises(MdftError, match=message) as it:
        plan(recipe)
    with pytest.raises(MdftError) as learned:
        build(recipe).meta_model()
    assert str(it.value) == str(learned.value)


def test_a_head_that_is_yet_to_be_made_is_not_made(
    make_recipe: Make, tmp_path: Path, own_cache: Path
) -> None:
    images = np.random.default_rng(7).integers(0, 256, (6, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "shots.npz", x=images, y=np.arange(6) % 3)
    shots = f"{{prototypes: {{npz: {tmp_path / 'shots.npz'}}}}}"
    assert plan(make_recipe(f"tasks[0].head={shots}")).fits
    weights = tmp_path / "clip.safetensors"
    save_file({"none": torch.ones(1)}, weights)
    words = "classes: [a, b, c]"
    clip = f"tasks[0].head={{zero_shot: {{model: ViT-B-32, weights: {weights}, {words}}}}}"
    pytest.importorskip("open_clip")
    with pytest.raises(MdftError, match=r"'letters': head must read 512 features as .*'shapes'"):
        plan(make_recipe(clip))
    assert not own_cache.exists()


def test_all_that_is_missing_is_listed_at_once(make_recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_folders(tmp_path / "images")
    (tmp_path / "empty").mkdir()
    recipe = make_recipe(
        "pool.base=none.safetensors",
        f"pool.models={tmp_path / 'models'}",
        "tasks[0].head.file=no_head",
        f"tasks[0].adapt={{folder: {tmp_path / 'images'}, split: val}}",
        f"tasks[0].evaluate={{torchvision: {{name: DTD, root: {tmp_path / 'empty'}}}}}",
        "tasks[1].adapt.x=unlabelled",
        f"tasks[1].evaluate={{folder: {tmp_path / 'empty'}}}",
    )
    wanted = [
        r"pool.base: no such file or folder: .*none.safetensors",
        r"tasks\[0\].head.file: no such file: .*no_head",
        r"pool.models: .*models: must hold the checkpoint of task 'shapes'",
        r"pool.models: .*models: must hold the checkpoint of task 'letters'",
        r"tasks\[0\].adapt: .*images: split 'val' must be a folder val/ or a list val.txt",
        r"tasks\[0\].evaluate: DTD, split test: .*empty must hold .*; missing: dtd/",
        r"tasks\[1\].adapt: .*letters.npz: key 'unlabelled' is missing, got .*did you mean 'x_un",
        r"tasks\[1\].evaluate: .*empty: must hold images as <class>/<image>, got none",
    ]
    for follow in (plan, build):
        with pytest.raises(RecipeError) as caught:
            follow(recipe)
        assert len(caught.value.problems) == len(wanted), caught.value
        for text, pattern in zip(caught.value.problems, wanted, strict=True):
            assert re.match(pattern, text), text


def test_packing_over_itself_with_a_head_of_more_classes(
    make_recipe: Make, files: Path, tmp_path: Path
) -> None:
    """Nobody named the classes when the pool was packed, so a head may bring its own."""
    bare = nameless(files, tmp_path)
    source = packed(make_recipe, tmp_path, *bare)
    recipe = make_recipe(*bare, *source, f"tasks[0].{a_head(tmp_path, 5, 64)}")
    pack(recipe, tmp_path / "packed", overwrite=True)
    assert [task.classes for task in Pool.open(tmp_path / "packed").tasks] == [5, 7]


def test_a_pool_without_heads_is_refused_before_it_is_written(
    make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pool = open_pool(make_recipe())
    written = "mdft_fast.pool.storage.write_tensors"
    monkeypatch.setattr(written, lambda *_: pytest.fail("something was written"))
    with pytest.raises(MdftError, match="must have heads to be saved, got none"):
        pool.save(tmp_path / "packed", "int8")
