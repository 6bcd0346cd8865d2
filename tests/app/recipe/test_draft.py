# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mdft_fast.app.recipe import PRESETS, UNKNOWN, Construct, Recipe, RecipeError, Specialize, draft
from mdft_fast.app.recipe.discovery import find_samples
from mdft_fast.errors import MdftError
from tests.data.on_disk import write_folders

FACTS = {
    "architecture": {
        "library": "timm",
        "name": "vit",
        "kwargs": {"img_size": 64, "more": {"a": [1, 2]}},
    },
    "input": {"size": [64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "head": "logits = normalize(features) @ weight.T",
    "tasks": [{"name": "mnist"}, {"name": "007"}],
}


def a_file(path: Path) -> None:
    save_file({"weight": torch.ones(2, 3)}, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for inside in ("models", "heads", "data"):
        (tmp_path / inside).mkdir()
    a_file(tmp_path / "base.safetensors")
    for name in ("007", "mnist", "zoo"):
        (tmp_path / "models" / f"{name}.safetensors").touch()
        a_file(tmp_path / "heads" / f"{name}.safetensors")
        x, y = np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, int)
        np.savez(tmp_path / "data" / f"{name}.npz", x_unlabelled=x, x_test=x, y_test=y)
    (tmp_path / "pool.json").write_text(json.dumps(FACTS))
    return tmp_path


def loaded(text: str, target: Path) -> Recipe:
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)
    return Recipe.load(target)


def test_a_draft_is_a_recipe_of_what_is_there(folder: Path) -> None:
    target = folder / "elsewhere" / "my.yaml"
    recipe = loaded(draft(folder, target), target)
    recipe.check_files()
    assert [task.name for task in recipe.tasks] == ["mnist", "007", "zoo"], "the manifest's order"
    assert recipe.pool.models == folder / "models"
    assert recipe.output == folder / "elsewhere" / "runs" / "my"
    assert recipe.backbone is not None
    assert recipe.backbone.kwargs == {"img_size": 64, "more": {"a": [1, 2]}}
    assert recipe.tasks[0].head is not None
    assert recipe.tasks[0].head.normalize is True
    assert recipe.construct.model_dump() == PRESETS["default"]["construct"]


def test_the_values_shown_are_the_presets(folder: Path) -> None:
    target = folder / "my.yaml"
    text = draft(folder, target)
    shown = re.sub(r"^(\s*)# (\w+: \S.*  # )", r"\1\2", text, flags=re.M)
    assert shown.count("\n  steps: ") == 2
    assert loaded(shown, target) == loaded(text, target)


def test_every_key_has_a_comment(folder: Path) -> None:
    text = draft(folder, folder / "my.yaml")
    keys = set(re.findall(r"^[ #]*(\w+):.*  # \S", text, re.M))
    for section in (Recipe, Construct, Specialize):
        missing = set(section.model_fields) - keys
        assert missing <= {"objective", "filter", "optimizer"}, "mappings alone"


def test_what_cannot_be_found_out_is_marked(folder: Path) -> None:
    (folder / "pool.json").unlink()
    (folder / "heads" / "zoo.safetensors").unlink()
    (folder / "data" / "zoo.npz").unlink()
    target = folder / "my.yaml"
    text = draft(folder, target)
    assert f"name: {UNKNOWN}" in text
    assert f"# evaluate: {{npz: {UNKNOWN}" in text
    recipe = Path(target)
    recipe.write_text(
        text.replace(f"size: {UNKNOWN}", "size: 64")
        .replace(f"mean: {UNKNOWN}", "mean: 0.5")
        .replace(f"std: {UNKNOWN}", "std: 0.5")
    )
    with pytest.raises(RecipeError) as caught:  # every one that is left, and no comment
        Recipe.load(recipe)
    assert caught.value.problems == (
        f"backbone.name: still says {UNKNOWN}",
        *(
            f"tasks[{i}].{key}: still says {UNKNOWN}"
            for i, keys in enumerate(
                (["head.normalize"],) * 2
                + (["head.file", "head.normalize", "adapt.npz", "adapt.x"],)
            )
            for key in keys
        ),
    )
    text = recipe.read_text().replace(f"normalize: {UNKNOWN}", "normalize: true")
    recipe.write_text(text.replace(UNKNOWN, "x"))
    assert [task.evaluate is None for task in Recipe.load(recipe).tasks] == [False, False, True]


def test_models_beside_the_base(tmp_path: Path) -> None:
    for name in ("base_vit", "a", "b"):
        a_file(tmp_path / f"{name}.safetensors")
    text = draft(tmp_path, tmp_path / "r.yaml")
    assert "base: base_vit.safetensors" in text
    assert "models: ." in text
    assert re.findall(r"- name: (\w+)", text) == ["a", "b"]


def test_a_packed_pool(folder: Path) -> None:
    (folder / "tau.safetensors").touch()
    recipe = loaded(draft(folder, folder / "r.yaml"), folder / "r.yaml")
    assert recipe.pool.folder == folder
    assert recipe.backbone is None
    assert [task.name for task in recipe.tasks] == ["mnist", "007"]


def test_folders_without_a_pool(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match="must be a folder of checkpoints"):
        draft(tmp_path / "none", tmp_path / "r.yaml")
    with pytest.raises(
        MdftError,
        match=r"must hold one base\*\.safetensors, .* or zeroshot\.pt .*, or a folder .*, got none",
    ):
        draft(tmp_path, tmp_path / "r.yaml")
    (tmp_path / "base.safetensors").touch()
    with pytest.raises(MdftError, match=r"must hold the fine-tuned models as .*\.ckpt"):
        draft(tmp_path, tmp_path / "r.yaml")
    a_file(tmp_path / "mnist.safetensors")
    with pytest.raises(MdftError, match=r"base.safetensors: not a readable safetensors file"):
        draft(tmp_path, tmp_path / "r.yaml")


def test_other_suffixes_and_deeper_folders_are_found(tmp_path: Path) -> None:
    a_file(tmp_path / "base.PTH")
    (tmp_path / "models").mkdir()
    for name in ("a.ckpt", "b.pth.tar", "c.PT"):
        a_file(tmp_path / "models" / name)
    (tmp_path / "models" / "d" / "default").mkdir(parents=True)
    (tmp_path / "models" / "d" / "default" / "adapter_config.json").touch()
    names = [f"- name: {name}" for name in "abcd"]
    text = draft(tmp_path, tmp_path / "r.yaml")
    assert [line.strip() for line in text.splitlines() if "- name:" in line] == names
    assert "base: base.PTH" in text


@pytest.mark.parametrize("name", ["ViT-B (mnist) v2", "average"])
def test_names_that_no_recipe_takes_are_refused(name: str, tmp_path: Path) -> None:
    a_file(tmp_path / "base.safetensors")
    (tmp_path / "models").mkdir()
    a_file(tmp_path / "models" / f"{name}.safetensors")
    with pytest.raises(MdftError, match=r"a model's name is its task's, .*; rename it"):
        draft(tmp_path, tmp_path / "r.yaml")


@pytest.mark.parametrize("second", ["base.pt", "base_old.bin", "zeroshot.pt", "base.safetensors"])
def test_a_second_base_is_no_task(second: str, tmp_path: Path) -> None:
    for name in ("base_a.safetensors", "mnist.safetensors", second):
        a_file(tmp_path / name)
    with pytest.raises(MdftError, match=r"must hold one base.*, got \[.*, ") as caught:
        draft(tmp_path, tmp_path / "r.yaml")
    assert repr(second) in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], r"the file must be an object, got \[\]"),
        ({"architecture": "vit"}, r"architecture must be an object, got 'vit'"),
        ({"architecture": {"name": 7}}, r"architecture\.name must be text, got 7"),
        ({"architecture": {"name": "v", "kwargs": [1]}}, r"\.kwargs must be an object, got \[1\]"),
        ({"input": [64]}, r"input must be an object, got \[64\]"),
        ({"tasks": {}}, r"tasks must be a list, got {}"),
        ({"tasks": ["a"]}, r"tasks\[0\] must be an object, got 'a'"),
        ({"tasks": [{"name": "a"}, {}]}, r"tasks\[1\]\.name must be text, got None"),
    ],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_strangers_pool_json(facts: Any, message: str, packed: bool, folder: Path) -> None:
    (folder / "pool.json").write_text(json.dumps(facts))
    if packed:
        (folder / "tau.safetensors").touch()
    with pytest.raises(MdftError, match=rf"pool\.json: .*{message}"):
        draft(folder, folder / "r.yaml")


def test_null_in_pool_json_says_nothing(folder: Path) -> None:
    target = folder / "r.yaml"
    (folder / "pool.json").unlink()
    silent = draft(folder, target)
    for facts in (dict.fromkeys(FACTS), {"architecture": {"name": None, "kwargs": None}}):
        (folder / "pool.json").write_text(json.dumps(facts))
        assert draft(folder, target) == silent


def test_a_head_of_one_number(folder: Path) -> None:
    save_file({"weight": torch.ones(())}, folder / "heads" / "zoo.safetensors")
    assert "heads/zoo.safetensors" in draft(folder, folder / "r.yaml")


def test_task_vectors_layout(tmp_path: Path) -> None:
    for name in ("MNIST", "DTD"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "finetuned.pt").touch()
        torch.save({"weight": torch.ones(2, 3)}, tmp_path / f"head_{name}.pt")
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "zeroshot.pt")
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "Head_dtd2.pt")
    text = draft(tmp_path, tmp_path / "my.yaml")
    for line in ("  base: zeroshot.pt", "  models: .", "  - name: dtd", "  - name: mnist",
                 f"    head: {{file: head_MNIST.pt, normalize: {UNKNOWN}}}"):  # fmt: skip
        assert any(found.startswith(line) for found in text.splitlines()), line
    assert text.count("  - name: ") == 2, "Head_ is a classifier's too"


CLASSES = ("airplane", "baseball_diamond", "wetland")
IMAGES: dict[str, tuple[dict[str, Any], Any, Any]] = {  # folder -> classes; adapt; evaluate
    "classes": ({"": CLASSES}, {"folder": ""}, {"folder": ""}),
    "splits": ({"train": CLASSES, "test": CLASSES}, {"folder": ""}, {"folder": ""}),
    "no test split": (
        {"train": CLASSES, "val": CLASSES},
        {"folder": "", "split": "train"},
        {"folder": "", "split": "val"},
    ),
    "training images alone": ({"train": CLASSES}, {"folder": "", "split": "train"}, {}),
    "test images alone": ({"test": CLASSES}, {}, {"folder": "", "split": "test"}),
    "no classes": ({"": ("monday", "tuesday")}, {"folder": ""}, {}),
    "images alone": ({"..": ("mnist",)}, {"folder": ""}, {}),
    "unlabelled apart": (
        {"": ("unlabelled",), "test": CLASSES}, {"folder": "unlabelled"}, {"folder": "test"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", ["data/MNIST", "mnist"])
@pytest.mark.parametrize("case", IMAGES)
def test_images_in_folders(case: str, place: str, tmp_path: Path) -> None:
    written, *wanted = IMAGES[case]
    if case == "images alone" and place != "mnist":
        pytest.skip("the folder is written under its class's name")
    root = tmp_path / place
    for i, (below, classes) in enumerate(written.items()):
        write_folders(root / below, classes, seed=i)
    found = find_samples(tmp_path, "mnist", 3)
    for source, keys in zip(found, wanted, strict=True):
        assert source == {**keys, **({"folder": root / keys["folder"]} if keys else {})}


def test_folders_are_classes_where_the_head_has_as_many(tmp_path: Path) -> None:
    write_folders(tmp_path / "data" / "mnist")
    assert find_samples(tmp_path, "mnist", 3)[1]
    assert find_samples(tmp_path, "mnist", None)[1], "nobody says otherwise"
    assert find_samples(tmp_path, "mnist", 10) == ({"folder": tmp_path / "data" / "mnist"}, {})
    assert find_samples(tmp_path, "dtd", 3) == ({}, {})
