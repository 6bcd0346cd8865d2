# SPDX-License-Identifier: Apache-2.0
"""A run goes on only with what it began with; no label, no test image comes in by a side door."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mdft_fast.app.cli import specialize_run
from mdft_fast.app.opening import build, load_data, open_pool, pack
from mdft_fast.app.running import run
from mdft_fast.cache import cache_entries
from mdft_fast.errors import MdftError
from tests.app.conftest import Make, nameless, run_until
from tests.data.on_disk import write_folders

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def stopped(make_recipe: Make, files: Path, tmp_path: Path) -> Any:
    """A run that stopped after two steps; its first task's files are copies that may change."""
    data, head = tmp_path / "data.npz", tmp_path / "head.safetensors"
    np.savez(data, **np.load(files / "data" / "shapes.npz"))
    save_file(load_file(files / "heads" / "shapes.safetensors"), head)
    recipe = make_recipe(
        "specialize.tasks=none",
        f"tasks[0].adapt.npz={data}",
        f"tasks[0].evaluate.npz={data}",
        f"tasks[0].head.file={head}",
    )
    run_until(3, recipe)
    return recipe, data, head


@pytest.mark.parametrize(
    ("array", "key"),
    [("", "head"), ("class_names", "class_names"), ("x_test", "evaluate"),
     ("x_unlabelled", "samples")],
)  # fmt: skip
def test_resume_wants_the_same_inputs(stopped: Any, array: str, key: str) -> None:
    recipe, data, head = stopped
    content = dict(np.load(data))
    if array:
        content[array] = content[array][::-1]
    else:
        save_file({"weight": load_file(head)["weight"].flip(0).contiguous()}, head)
    np.savez(data, **content)
    with pytest.raises(MdftError, match=rf"shapes: {key} must be what the run was started with"):
        run(recipe, resume=True, progress="off")


def test_resume_goes_on_with_the_same_inputs(stopped: Any) -> None:
    assert run(stopped[0], resume=True, progress="off").report.is_file()


def test_stage_2_alone_wants_the_samples_of_the_run(
    make_recipe: Make, files: Path, tmp_path: Path
) -> None:
    content = dict(np.load(files / "data" / "shapes.npz"))
    data = tmp_path / "data.npz"
    np.savez(data, **content)
    recipe = make_recipe(
        "specialize.tasks=none", f"tasks[0].adapt.npz={data}", f"tasks[0].evaluate.npz={data}"
    )
    folder = run(recipe, progress="off").folder
    card = tmp_path / "card.json"
    specialize_run(folder, "shapes", (), card)
    assert card.is_file()
    content["x_unlabelled"] = content["x_unlabelled"][::-1]
    np.savez(data, **content)
    with pytest.raises(MdftError, match="shapes: samples must be what the run was started with"):
        specialize_run(folder, "shapes", (), card)
    content["x_unlabelled"] = content["x_test"]
    np.savez(data, **content)
    with pytest.raises(MdftError, match=r"unlabelled images are among the .* test images"):
        specialize_run(folder, "shapes", (), card)


def test_labels_of_test_images_make_no_head(make_recipe: Make, files: Path, tmp_path: Path) -> None:
    content = np.load(files / "data" / "shapes.npz")
    copy = tmp_path / "copy.npz"
    np.savez(copy, x=content["x_test"], y=content["y_test"])
    recipe = make_recipe(
        "specialize.tasks=none",
        "transductive=true",
        f"tasks[0].head={{prototypes: {{npz: {copy}}}}}",
    )
    with pytest.raises(MdftError, match=r"'shapes': .*copy.npz: images whose labels make the head"):
        run(recipe, progress="off")
    assert not recipe.output.exists()


def test_no_task_adapts_to_anothers_test_images(make_recipe: Make, files: Path) -> None:
    other = f"tasks[1].adapt={{npz: {files}/data/shapes.npz, x: x_test}}"
    with pytest.raises(MdftError, match=r"'letters': .* test images of task 'shapes'"):
        run(make_recipe("specialize.tasks=none", other), progress="off")


def test_packing_a_pool_again_keeps_what_the_recipe_says(
    make_recipe: Make, files: Path, tmp_path: Path
) -> None:
    pack(make_recipe(), tmp_path / "first")
    weight = load_file(files / "heads" / "shapes.safetensors")["weight"]
    save_file({"weight": torch.ones_like(weight)}, tmp_path / "head.safetensors")
    recipe = make_recipe(
        f"pool={{folder: {tmp_path / 'first'}}}",
        "backbone=null",
        "memory.codec=int8",
        f"tasks[0].head.file={tmp_path / 'head.safetensors'}",
    )
    again = pack(recipe, tmp_path / "second")
    assert again.codec == "int8"
    assert bool((again.heads["shapes"].weight == 1).all())


@pytest.mark.parametrize("folders", [("unlabelled",), ("monday", "tuesday", "friday")])
@pytest.mark.parametrize("names", ["[circle, square, triangle]", "null"])
def test_folders_of_unlabelled_images_are_no_classes(
    make_recipe: Make, files: Path, tmp_path: Path, folders: tuple[str, ...], names: str
) -> None:
    write_folders(tmp_path / "images", folders, each=6, seed=1)
    recipe = make_recipe(
        *nameless(files, tmp_path),
        f"tasks[0].adapt={{folder: {tmp_path / 'images'}}}",
        f"tasks[0].class_names={names}",
    )
    wanted = ("0", "1", "2") if names == "null" else ("circle", "square", "triangle")
    assert build(recipe).tasks[0].class_names == wanted


def test_a_damaged_pool_is_refused_by_whatever_uses_it(make_recipe: Make, tmp_path: Path) -> None:
    pack(make_recipe(), folder := tmp_path / "packed")
    recipe = make_recipe(
        f"pool={{folder: {folder}}}", "backbone=null", "preprocess=null", "construct.steps=1",
        "specialize.tasks=none",
    )  # fmt: skip
    file = folder / "tau.safetensors"
    content = bytearray(file.read_bytes())
    content[-5000] ^= 0x04  # of a mantissa: finite all the same
    file.write_bytes(content)
    for use in (build, open_pool):
        with pytest.raises(MdftError, match=r"tau.safetensors: sha256 must be"):
            use(recipe)
        use(recipe, verify=False)


def test_a_pool_that_is_not_verified_leaves_no_answers_and_takes_none(
    make_recipe: Make, tmp_path: Path
) -> None:
    pack(make_recipe(), folder := tmp_path / "packed")
    recipe = make_recipe(
        f"pool={{folder: {folder}}}", "backbone=null", "preprocess=null", "construct.steps=1",
        "specialize.tasks=none", f"output={tmp_path / 'a'}",
    )  # fmt: skip
    file = folder / "tau.safetensors"
    sound = file.read_bytes()
    file.write_bytes(sound[:-5000] + bytes([sound[-5000] ^ 0x04]) + sound[-4999:])
    before = [entry.path for entry in cache_entries() if entry.kind == "answers"]
    run(recipe, verify=False, progress="off")
    assert [entry.path for entry in cache_entries() if entry.kind == "answers"] == before
    file.write_bytes(sound)
    run(recipe.model_copy(update={"output": tmp_path / "b"}), progress="off")
    assert len([entry for entry in cache_entries() if entry.kind == "answers"]) > len(before)


def test_numbers_of_images_are_those_of_their_source(
    make_recipe: Make, files: Path, tmp_path: Path
) -> None:
    content = dict(np.load(files / "data" / "shapes.npz"))
    content["x_unlabelled"][23] = content["x_test"][0]
    np.savez(data := tmp_path / "data.npz", **content)
    sources = [f"tasks[0].{part}.npz={data}" for part in ("adapt", "evaluate")]
    said = set()
    for samples in range(5, len(content["x_unlabelled"])):
        try:
            load_data(build(make_recipe(*sources, f"samples={samples}")), only="shapes")
        except MdftError as error:
            said.add(re.search(r"\((number \d+)\)", str(error))[1])  # type: ignore[index]
    assert said == {"number 23"}


def test_a_limit_of_test_images_is_one_of_the_comparison_too(make_recipe: Make) -> None:
    notes = load_data(build(make_recipe("evaluate.limit=2"))).notes
    said = [note for note in notes if "(evaluate.limit) were compared" in note]
    assert [note.partition(":")[0] for note in said] == ["Task 'shapes'", "Task 'letters'"]
    assert all(": the 2 of 20 test images" in note for note in said)
