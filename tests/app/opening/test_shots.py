# SPDX-License-Identifier: Apache-2.0
"""No test image makes a head, whoever asks for it; and where labels made one, results say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mdft_fast.app.cli import measure_model
from mdft_fast.app.opening import build, pack, sources_of
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running import Progress, run
from mdft_fast.data import FolderSource
from mdft_fast.errors import MdftError
from mdft_fast.pool import Pool
from tests.app.conftest import Make, in_pool
from tests.data.on_disk import write_folders

Write = Callable[..., str]  # what the fixture write gives
SHORT = ("construct.steps=1", "specialize.tasks=none")
MADE = "Labels made the head of shapes: class means of labelled images"


@pytest.fixture
def write(files: Path, tmp_path: Path) -> Write:
    """Returns a function that writes shots, test images among them, and gives their override."""

    def make(*tests: str, dtype: str = "uint8") -> str:
        images = np.random.default_rng(7).integers(0, 256, (30, 32, 32, 3), np.uint8)
        for i, name in enumerate(tests):
            with np.load(files / "data" / f"{name}.npz") as arrays:
                images[i] = arrays["x_test"][i]
        if dtype == "float32":
            images = images.transpose(0, 3, 1, 2).astype(dtype) / 255
        file = tmp_path / f"shots_{'_'.join(tests)}_{dtype}.npz"
        np.savez(file, x=images, y=np.arange(30) % 3)
        return f"tasks[0].head={{prototypes: {{npz: {file}}}}}"

    return make


@pytest.mark.parametrize("asked", ["run", "pack", "pack a pool again", "eval"])
def test_test_images_make_no_head_whoever_asks(
    asked: str, make_recipe: Make, write: Write, tmp_path: Path
) -> None:
    recipe = make_recipe(write("shapes"), *SHORT)
    recipe.write(tmp_path / "leak.yaml")
    wanted = (
        r"^task 'shapes': .*shots_shapes_uint8.npz: images whose labels make the head must not be "
        r"test images, got 1 that are, pixel for pixel \(of shapes\); take them out, or say "
        r"`duplicates: drop`$"
    )
    if asked == "pack a pool again":
        pack(make_recipe(), tmp_path / "packed")
        recipe = make_recipe(write("shapes"), *in_pool(tmp_path / "packed"))
    ask: dict[str, Callable[[], object]] = {
        "run": lambda: run(recipe, progress="off"),
        "eval": lambda: measure_model(tmp_path / "card.json", tmp_path / "leak.yaml", ()),
    }
    with pytest.raises(MdftError, match=wanted):
        ask.get(asked, lambda: pack(recipe, tmp_path / "out"))()
    assert not (tmp_path / "out").exists()


def test_test_images_of_other_tasks_make_no_head_either(make_recipe: Make, write: Write) -> None:
    with pytest.raises(MdftError, match=r"got 2 that are, pixel for pixel \(of shapes, letters\)"):
        build(make_recipe(write("shapes", "letters")))
    built = build(make_recipe(write("shapes", "letters"), "duplicates=drop"))
    (note,) = built.pool.notes
    assert note.endswith(" 2 of 30 were test images, pixel for pixel, and were dropped.")


def test_a_folder_that_head_and_tests_share_is_split(make_recipe: Make, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_folders(images, ("c0", "c1", "c2"), each=10)
    place = f"{{folder: {images}}}"
    parts = (f"tasks[0].head={{prototypes: {place}}}", f"tasks[0].evaluate={place}")
    recipe = make_recipe(*parts)
    adapt, test, shots = sources_of(recipe.tasks[0], transductive=False)
    assert (test, shots) == (FolderSource(images, "test"), FolderSource(images, "train"))
    assert adapt == recipe.tasks[0].adapt.source()
    (task, _) = build(recipe).tasks
    assert task.evaluate == test
    with pytest.raises(MdftError, match=r"got 30 that are, pixel for pixel \(of shapes\)"):
        build(make_recipe(*parts, "transductive=true"))


def test_floats_are_not_compared_and_the_note_says_so(make_recipe: Make, write: Write) -> None:
    for more in ((), ("duplicates=drop",)):
        (note,) = build(make_recipe(write("shapes", dtype="float32"), *more)).pool.notes
        assert note.startswith(MADE)
        assert note.endswith(
            " Whether test images of shapes, letters are among them could not be told, as one of "
            "the two sets holds floats."
        )
        assert "dropped" not in note


def test_a_packed_pool_keeps_the_note(
    make_recipe: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))

    def notes(recipe: Recipe) -> list[str]:
        return [note for note in build(recipe).pool.notes if note.startswith(MADE)]

    pack(make_recipe(write()), tmp_path / "packed")
    packed = in_pool(tmp_path / "packed")
    pools = make_recipe(*packed, "tasks[0].head=null", *SHORT)
    assert len([n for n in run(pools, progress="off").result["warnings"] if MADE in n]) == 1
    assert len([text for text in said if text.startswith(MADE)]) == 1
    assert MADE in Pool.open(tmp_path / "packed").describe()
    pack(make_recipe(write(), *packed), tmp_path / "again")  # a note once, not twice
    assert len(notes(make_recipe(*in_pool(tmp_path / "again"), "tasks[0].head=null"))) == 1
    assert notes(make_recipe(*packed)) == []  # the recipe's own head, of a file
