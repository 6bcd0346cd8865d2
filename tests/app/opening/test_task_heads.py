# SPDX-License-Identifier: Apache-2.0
"""A recipe's ``head:``, from the key to the task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from mdft_fast.app.forecast import plan
from mdft_fast.app.opening import build, pack, sources_of, task_heads
from mdft_fast.app.recipe import Recipe, RecipeError
from mdft_fast.app.running import run
from mdft_fast.checkpoints import open_state
from mdft_fast.data import FolderSource, HfSource, TorchvisionSource, load_labelled
from mdft_fast.errors import MdftError
from mdft_fast.heads import class_names, templates, zero_shot_head
from mdft_fast.model import build_backbone
from tests.app.conftest import SPEC, Make, in_pool, nameless
from tests.data.on_disk import write_dtd, write_folders, write_parquet

SHOT = "tasks[0].head={{prototypes: {{npz: {}{}}}}}"


@pytest.fixture
def shots(files: Path, tmp_path: Path) -> Path:
    """Labelled images that belong to nobody else, three classes."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (30, 32, 32, 3), np.uint8)
    file = tmp_path / "shots.npz"
    np.savez(file, x=images, y=np.arange(30) % 3)
    return file


def zero_shot(weights: Path, **more: Any) -> str:
    content = {"model": "mdft-test-clip", "weights": str(weights), **more}
    text = yaml.safe_dump({"zero_shot": content}, default_flow_style=True, width=10**6).strip()
    return f"tasks[0].head={text}"


def test_prototypes_are_the_bases(make_recipe: Make, files: Path, shots: Path) -> None:
    built = build(make_recipe(SHOT.format(shots, ", scale: 15")))
    base = build_backbone(SPEC)
    stored = open_state(files / "base.safetensors").tensors
    base.load_state_dict({k: v.float() for k, v in stored.items()})
    with np.load(shots) as data:
        images = torch.from_numpy(data["x"]).permute(0, 3, 1, 2) / 255
        labels = torch.from_numpy(data["y"])
    with torch.no_grad():
        features = F.normalize(base((images - 0.5) / 0.5), dim=-1)
    means = torch.stack([features[labels == c].mean(dim=0) for c in range(3)])
    head = built.tasks[0].head
    torch.testing.assert_close(head.weight, F.normalize(means, dim=-1), rtol=1e-4, atol=1e-5)
    assert (head.scale, head.normalize) == (15.0, True)
    assert built.pool.heads["shapes"].weight.equal(head.weight)


CLASSES = ("c0", "c1", "c2")
NUMBERS = [2, 2, 1, 1, 0, 0]


KINDS: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path], Any]]] = {
    "folder": (lambda at: write_folders(at, CLASSES), "folder: {}", FolderSource),
    "folders of splits": (
        lambda at: [write_folders(at / part, CLASSES, seed=i)
                    for i, part in enumerate(("train", "test"))],
        "folder: {}", lambda at: FolderSource(at, "train"),
    ),
    "torchvision": (
        lambda at: write_dtd(at, CLASSES), "torchvision: {{name: DTD, root: {}}}",
        lambda at: TorchvisionSource("DTD", at, "train"),
    ),
    "hf": (
        lambda at: write_parquet(at, CLASSES, {"train": NUMBERS, "test": NUMBERS}),
        "hf: {{path: {}}}", lambda at: HfSource(at, "train"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_prototypes_of_every_source(
    kind: str, make_recipe: Make, tmp_path: Path, cache: Path
) -> None:
    write, text, source_of = KINDS[kind]
    place = tmp_path / "labelled"
    write(place)
    recipe = make_recipe(f"tasks[0].head={{prototypes: {{{text.format(place)}, scale: 15}}}}")
    recipe.write(tmp_path / "again.yaml")
    assert Recipe.load(tmp_path / "again.yaml") == recipe
    assert not cache.exists()
    assert plan(recipe, every=False).fits
    head = build(recipe).tasks[0].head
    preprocess = {"size": 32, "mean": 0.5, "std": 0.5}
    samples, labels = load_labelled(source_of(place), preprocess, 3)
    np.savez(tmp_path / "same.npz", x=samples.x.numpy(), y=labels.numpy())
    same = build(make_recipe(SHOT.format(tmp_path / "same.npz", ", scale: 15")))
    assert head.weight.equal(same.tasks[0].head.weight)
    assert len(list(cache.iterdir())) == 1  # the same images and labels: one head


def test_prototypes_take_the_rest_of_a_folder_that_is_split(
    make_recipe: Make, tmp_path: Path
) -> None:
    write_folders(tmp_path / "images", CLASSES, each=10)
    place = f"{{folder: {tmp_path / 'images'}}}"
    parts = [f"tasks[0].{part}={place}" for part in ("adapt", "evaluate", "head.prototypes")]
    recipe = make_recipe("tasks[0].head={}", *parts, "specialize.tasks=none", "construct.steps=1")
    shots = sources_of(recipe.tasks[0], transductive=False).shots
    assert shots == FolderSource(tmp_path / "images", "train")
    assert run(recipe, progress="off").report.is_file()
    parts[2] = f"tasks[0].head.prototypes={{folder: {tmp_path / 'images'}, split: test}}"
    parts[1] = f"tasks[0].evaluate={{folder: {tmp_path / 'images'}, split: test}}"
    with pytest.raises(RecipeError, match=r"head.prototypes: these are the test images"):
        make_recipe("tasks[0].head={}", *parts)


def test_classes_of_prototypes_are_numbered_as_the_tasks(make_recipe: Make, tmp_path: Path) -> None:
    write_folders(tmp_path / "images", ("c0", "c2", "d1"))
    recipe = make_recipe(f"tasks[0].head={{prototypes: {{folder: {tmp_path / 'images'}}}}}")
    with pytest.raises(
        MdftError, match=r"'shapes': evaluate: class 1 must be 'c2' as in .*images, got 'c1'"
    ):
        build(recipe)


def test_names_of_prototypes_are_the_tasks_where_nobody_else_says_them(
    make_recipe: Make, files: Path, tmp_path: Path
) -> None:
    bare = nameless(files, tmp_path)
    write_folders(tmp_path / "images", ("circle", "square", "star"))
    head = f"tasks[0].head={{prototypes: {{folder: {tmp_path / 'images'}}}}}"
    assert build(make_recipe(head, *bare)).tasks[0].class_names == ("circle", "square", "star")


def test_test_images_make_no_head_where_duplicates_are_dropped(
    make_recipe: Make, files: Path, shots: Path, tmp_path: Path
) -> None:
    clean = build(make_recipe(SHOT.format(shots, ""))).tasks[0].head
    with np.load(shots) as data, np.load(files / "data" / "shapes.npz") as tests:
        images = np.concatenate([tests["x_test"][:4], data["x"]])
        np.savez(tmp_path / "both.npz", x=images, y=[0, 0, 1, 1, *data["y"]])
    both = SHOT.format(tmp_path / "both.npz", "")
    short = ["construct.steps=1", "specialize.tasks=none"]
    with pytest.raises(MdftError, match=r"got 4 that are, .*or say `duplicates: drop`"):
        run(make_recipe(both, *short), progress="off")
    dropping = make_recipe(both, "duplicates=drop", *short)
    assert build(dropping).tasks[0].head.weight.equal(clean.weight)
    (note,) = run(dropping, progress="off").result["warnings"]
    assert note.endswith("4 of 34 were test images, pixel for pixel, and were dropped.")


def test_prototypes_of_a_packed_pool_are_the_same(
    make_recipe: Make, shots: Path, tmp_path: Path
) -> None:
    pack(make_recipe(), tmp_path / "packed")
    packed = in_pool(tmp_path / "packed")
    wanted = build(make_recipe(SHOT.format(shots, ""))).tasks[0].head
    built = build(make_recipe(SHOT.format(shots, ""), *packed))
    torch.testing.assert_close(built.tasks[0].head.weight, wanted.weight, rtol=1e-4, atol=1e-5)
    # The stages read the pool's heads: the recipe's must be there too.
    assert built.pool.heads["shapes"].weight.equal(built.tasks[0].head.weight)
    assert built.meta_model().heads["shapes"].weight.equal(built.tasks[0].head.weight)
    untouched = build(make_recipe(*packed, "tasks[0].head=null"))
    assert not untouched.pool.heads["shapes"].weight.equal(wanted.weight)


def test_labels_of_adapt_and_evaluate_are_never_opened(
    make_recipe: Make, shots: Path, weights: Path, files: Path, cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every other array of labels is poison, and the heads are the same."""
    clean = build(make_recipe(SHOT.format(shots, "")))
    for made in cache.iterdir():
        made.unlink()
    data = files / "data" / "shapes.npz"
    with np.load(data) as arrays:
        poisoned = {**arrays, "y": np.full(40, -9), "y_test": np.full(20, -9)}
    target = shots.parent / "poisoned.npz"
    np.savez(target, **poisoned)
    where = [f"tasks[0].adapt.npz={target}", f"tasks[0].evaluate.npz={target}"]
    real, opened = np.lib.npyio.NpzFile.__getitem__, []

    def watched(archive: Any, key: str) -> Any:
        opened.append((Path(archive.fid.name), key))
        return real(archive, key)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", watched)
    built = build(make_recipe(SHOT.format(shots, ""), *where))
    build(make_recipe(zero_shot(weights), *where))
    assert built.tasks[0].head.weight.equal(clean.tasks[0].head.weight)
    assert (shots, "y") in opened
    assert {key for file, key in opened if file != shots} == {"class_names", "x_test"}


def test_zero_shot_heads(
    make_recipe: Make, clip: tuple[Any, Any], weights: Path, cache: Path
) -> None:
    built = build(make_recipe(zero_shot(weights)))
    plain = zero_shot_head(*clip, ["c0", "c1", "c2"], ["a photo of a {}."])
    assert torch.equal(built.tasks[0].head.weight, plain.weight)
    assert built.tasks[0].head.scale == plain.scale
    assert len(list(cache.iterdir())) == 1
    names, prompts = ["ein Kreis", "ein Quadrat", "ein Stern"], ["{}.", "das ist {}"]
    own = build(make_recipe(zero_shot(weights, classes=names, templates=prompts)))
    wanted = zero_shot_head(*clip, names, prompts)
    assert torch.equal(own.tasks[0].head.weight, wanted.weight)
    assert own.tasks[0].class_names == ("c0", "c1", "c2")  # the task's, as they were


def test_a_zero_shot_head_is_made_once(
    make_recipe: Make, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(make_recipe(zero_shot(weights))).tasks[0].head

    def never(*args: Any) -> Any:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(task_heads, "load_clip", never)
    assert torch.equal(build(make_recipe(zero_shot(weights))).tasks[0].head.weight, first.weight)
    with pytest.raises(AssertionError, match="cache"):
        build(make_recipe(zero_shot(weights, templates=["{}"])))


def test_a_data_sets_vocabulary(
    make_recipe: Make, clip: tuple[Any, Any], weights: Path, files: Path, tmp_path: Path
) -> None:
    bare = nameless(files, tmp_path)
    wanted = zero_shot_head(*clip, class_names("eurosat"), templates("eurosat"))
    recipe = make_recipe(zero_shot(weights, classes="EuroSAT"), *bare)
    built = build(recipe)
    assert torch.equal(built.tasks[0].head.weight, wanted.weight)
    assert built.tasks[0].class_names == class_names("eurosat")
    mixed = make_recipe(zero_shot(weights, classes="eurosat", templates="resisc45"), *bare)
    other = zero_shot_head(*clip, class_names("eurosat"), templates("resisc45"))
    assert torch.equal(build(mixed).tasks[0].head.weight, other.weight)
    nothing = make_recipe(zero_shot(weights), *bare)
    with pytest.raises(MdftError, match=r"task 'shapes': head.zero_shot.classes must be a list"):
        build(nothing)
    # The data file's own names must agree with the vocabulary's order.
    labels = ["Forest", "AnnualCrop", *list(class_names("eurosat"))[2:]]
    turned = [f"tasks[0].class_names={json.dumps(labels)}", *bare]
    with pytest.raises(MdftError, match=r"task 'shapes': eurosat: class_to_idx must number"):
        build(make_recipe(zero_shot(weights, classes="eurosat"), *turned))


def test_the_plan_makes_no_head(make_recipe: Make, shots: Path, weights: Path, cache: Path) -> None:
    wanted = plan(make_recipe(), every=False).chosen.peak
    for head in (SHOT.format(shots, ""), zero_shot(weights)):
        assert plan(make_recipe(head), every=False).chosen.peak == wanted
    assert not cache.exists()


def test_a_report_says_which_labels_made_heads(make_recipe: Make, shots: Path) -> None:
    steps = ["construct.steps=1", "specialize.tasks=none"]
    done = run(make_recipe(SHOT.format(shots, ""), *steps))
    (note,) = [line for line in done.result["warnings"] if "Labels made" in line]
    assert note.startswith("Labels made the head of shapes: class means of labelled images")
    text = Path(done.report).read_text()
    assert note in text
    assert "the warnings name heads that labels made, if any." in text


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            "{}",
            r"tasks\[0\].head: must have exactly one of \['file', 'zero_shot', 'proto.* got none",
        ),
        ("{normalize: true}", r"tasks\[0\].head.normalize: belongs to tasks\[0\].head.file"),
        (
            "{file: a, normalize: true, prototypes: {npz: b}}",
            r"must have exactly one of .*got \['file', 'prototypes'\]",
        ),
        ("{prototypes: {}}", r"tasks\[0\].head.prototypes: must have exactly one of .* got none"),
        ("{prototypes: {npz: a, scale: 0}}", r"prototypes.scale: must be above 0, got 0"),
        ("{prototypes: {npz: a, folder: b}}", r"prototypes: must have .* got \['npz', 'folder'\]"),
        ("{prototypes: {folder: a, y: b}}", "prototypes: 'y' goes with 'npz', got it with"),
        ("{prototypes: {folder: a, splits: b}}", "prototypes.splits: unknown key; did you mean"),
        ("{prototype: {npz: a}}", r"head.prototype: unknown key; did you mean 'prototypes'\?"),
        ("{zero_shot: {model: ViT-B-32}}", "zero_shot.weights: is missing"),
        ("{zero_shot: {weights: a}}", "zero_shot.model: is missing"),
        ("{zero_shot: {model: a, weights: b, classes: []}}", "classes: must be a data set's name"),
        ("{zero_shot: {model: a, weights: b, classes: [1]}}", r"or a list of text, got \[1\]"),
        ("{zero_shot: {model: a, weights: b, templates: 3}}", "templates: must be a data set's"),
        ("{zero_shot: ViT-B-32}", r"zero_shot: must be a mapping of \['model', 'weights'"),
    ],
)
def test_mistakes_name_the_key(make_recipe: Make, head: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(f"tasks[0].head={head}")


def test_prototypes_of_the_test_images_are_refused(make_recipe: Make, files: Path) -> None:
    same = SHOT.format(files / "data" / "shapes.npz", ", x: x_test, y: y_test")
    with pytest.raises(RecipeError, match="these are the test images, and a head may not know"):
        make_recipe(same)
    with pytest.raises(RecipeError, match="these are the test images"):
        make_recipe(same, "transductive=true")


def test_files_that_are_not_there_are_listed(make_recipe: Make) -> None:
    recipe = make_recipe("tasks[0].head={prototypes: {npz: no.npz}}",
                         "tasks[1].head={zero_shot: {model: a, weights: no.pt}}")  # fmt: skip
    with pytest.raises(RecipeError) as found:
        recipe.check_files()
    assert [line.split(": ")[0] for line in found.value.problems] == [
        "tasks[0].head.prototypes.npz",
        "tasks[1].head.zero_shot.weights",
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(30) % 2, r"task 'shapes': prototype head: each of 3 .* none for \['c2'\]"),
        (np.arange(30) % 4, r"task 'shapes': .*shots.npz.*'y'.*must lie in \[0, 3\), got 3"),
        (np.arange(29) % 3, r"tasks\[0\].head.prototypes: .*must be whole numbers \[30\]"),
        (np.ones(30), r"tasks\[0\].head.prototypes: .*must be whole numbers \[30\].*float64"),
    ],
)
def test_labels_that_make_no_head(
    make_recipe: Make, shots: Path, labels: Any, message: str, cache: Path
) -> None:
    with np.load(shots) as data:
        images = data["x"]
    np.savez(shots, x=images, y=labels)
    with pytest.raises(MdftError, match=message):
        build(make_recipe(SHOT.format(shots, "")))
    assert not cache.exists()


def test_a_dump_with_made_heads_loads_to_an_equal_recipe(
    make_recipe: Make, shots: Path, weights: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        SHOT.format(shots, ", normalize: false"),
        zero_shot(weights, classes="dtd", templates=["{}"]).replace("tasks[0]", "tasks[1]"),
    )
    recipe.write(tmp_path / "again.yaml")
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_a_list_of_names_in_another_order_is_refused(make_recipe: Make, weights: Path) -> None:
    turned = zero_shot(weights, classes=["c2", "c0", "c1"])
    with pytest.raises(MdftError, match=r"zero_shot.classes: class 0 must be 'c0'"):
        build(make_recipe(turned, "tasks[0].class_names=[c0, c1, c2]"))
