# SPDX-License-Identifier: Apache-2.0
"""A recipe from start to end: what is written, resume, labels, bad input."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mdft_fast import MdftError, Pool, load, run
from mdft_fast.app.opening import pack
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.report import COMPARED
from mdft_fast.app.running import check_finished
from mdft_fast.app.running.measurement import untested_classes, worse_than_base
from mdft_fast.learning import learner
from tests.app.conftest import Make, assert_same_cards, card, metrics, run_until
from tests.conftest import contents


def test_writes_everything_that_a_user_meets(make_recipe: Make) -> None:
    summary = run(make_recipe("construct.filter.enabled=true"), progress="off")
    written = contents(summary.folder).keys()
    assert {
        "recipe.yaml", "splits.json", "metrics.jsonl", "result.json", "report.md", "report.html",
        "meta/card.json", "meta/model.safetensors",
        "specialized/shapes/card.json", "specialized/letters/card.json",
    } <= written  # fmt: skip
    assert not [name for name in written if name.endswith(".part")]
    result = json.loads((summary.folder / "result.json").read_text())
    assert set(result["accuracy"]) == {
        "pretrained", "individual", "task_arithmetic", "meta", "specialized", "control",
    }  # fmt: skip
    rows = {row["name"]: row["label"] for row in result["compared"]}
    assert rows == {model.name: model.label for model in COMPARED}
    for by_task in result["accuracy"].values():
        assert all(0 <= accuracy <= 1 for accuracy in by_task.values())
    assert set(result["comparisons"]) == {"meta-task_arithmetic", "specialized-control"}
    for gap in (*result["comparisons"].values(), *result["intervals"].values()):
        assert gap["low"] <= gap["difference"] <= gap["high"]
    assert result["trainable"] == 2 * len(result["columns"])
    assert result["kernels"]["cpu"] in ("avx2", "portable")
    for task in result["pool"]["tasks"]:
        counts, learn = task["entropy"], task["learn"]
        assert sum(counts) == learn
        assert sum(counts[:38]) == task["kept"], "μ = 0.95 is the edge of the 38th of 40 bins"
        confused = result["confusion"][task["name"]]
        assert sum(confused["count"]) == task["test"]
        right = sum(
            n for a, b, n in zip(
                confused["true"], confused["predicted"], confused["count"], strict=True
            ) if a == b
        )  # fmt: skip
        assert right / task["test"] == result["accuracy"]["meta"][task["name"]]
        assert confused["classes"][0] == "c0"
    splits = json.loads((summary.folder / "splits.json").read_text())["tasks"]
    assert [t["samples"] for t in splits] == [t["samples"] for t in result["pool"]["tasks"]]
    assert result["filter"] == {"enabled": True, "mu": 0.95, "entropy_of": "teacher"}
    assert result["recipe"] == (summary.folder / "recipe.yaml").read_text()
    page = (summary.folder / "report.html").read_text(encoding="utf-8")
    assert '<section id="confusion">' in page
    assert "μ = 0.95" in page
    curve = result["specialize"]["shapes"]
    assert [point["step"] for point in curve] == [0, 1, 2, 3]
    assert curve[0]["accuracy"] == result["accuracy"]["meta"]["shapes"]
    assert curve[-1]["accuracy"] == result["accuracy"]["specialized"]["shapes"]
    away = torch.tensor(result["coefficients"]["specialize"]["shapes"])
    away[0] -= 1  # from λ = e_k
    assert curve[-1]["distance"] == pytest.approx(float(away.norm()))
    lines = metrics(summary.folder)
    assert [line["step"] for line in lines if line["stage"] == "construct"] == [1, 2, 3, 4]
    steps = Counter((line["stage"], line["task"]) for line in lines)
    assert steps == {(made["stage"], made["task"]): made["steps"] for made in result["stages"]}


def test_the_same_command_twice_gives_equal_bits(
    make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(make_recipe(f"output={tmp_path / 'a'}"), progress="off")
    monkeypatch.setenv("MDFT_CACHE", str(tmp_path / "cache"))  # which has no answer yet
    second = run(make_recipe(f"output={tmp_path / 'b'}"), progress="off")
    assert_same_cards(first.folder, second.folder)
    one, other = metrics(first.folder), metrics(second.folder)
    assert [line["sha256"] for line in one] == [line["sha256"] for line in other]
    assert [line["seconds"] for line in one] != [line["seconds"] for line in other]


@pytest.mark.parametrize("after", [3, 6])
def test_a_stopped_run_by_row_goes_on_bit_for_bit(
    make_recipe: Make, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "PATH_NUMBERS", 100)  # as λ by row of a real model
    whole = run(make_recipe("granularity=row", f"output={tmp_path / 'whole'}"), progress="off")
    recipe = make_recipe("granularity=row", f"output={tmp_path / 'stopped'}")
    run_until(after, recipe)
    resumed = run(Recipe.load(recipe.output / "recipe.yaml"), resume=True, progress="off")
    assert_same_cards(resumed.folder, whole.folder)
    assert resumed.result["accuracy"] == whole.result["accuracy"]
    assert resumed.result["specialize"] == whole.result["specialize"]
    curve = whole.result["specialize"]["shapes"]
    assert [point["step"] for point in curve] == [0, 1, 2, 3]
    assert [point["distance"] is None for point in curve] == [False, True, True, False]
    assert [point["accuracy"] is None for point in curve] == [False, True, True, False]
    assert curve[-1]["accuracy"] == whole.result["accuracy"]["specialized"]["shapes"]
    state = torch.load(recipe.output / "state" / "construct.pt", weights_only=True)
    assert len(state["path"]) == 2  # not a λ a step


@pytest.mark.parametrize(
    ("after", "missing"),
    [
        (2, "stage 1 (2 of 4 steps)"),
        (4, "stage 2 of 'shapes' (0 of 3 steps)"),
        (6, "stage 2 of 'shapes' (2 of 3 steps)"),
        (11, "the control of 'shapes' (1 of 3 steps)"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    make_recipe: Make, tmp_path: Path, after: int, missing: str
) -> None:
    whole = run(make_recipe(f"output={tmp_path / 'whole'}"), progress="off")
    recipe = make_recipe(f"output={tmp_path / 'stopped'}")
    run_until(after, recipe)
    written = recipe.output / "recipe.yaml"
    again = f"ended in {missing}; go on with: mdft run {written} --resume"
    with pytest.raises(MdftError, match=re.escape(again)):
        check_finished(recipe.output)
    resumed = run(Recipe.load(written), resume=True, progress="off")  # as those words say
    check_finished(recipe.output)
    assert_same_cards(resumed.folder, whole.folder)
    assert resumed.result["accuracy"] == whole.result["accuracy"]
    lines = metrics(resumed.folder)
    steps = [(line["stage"], line["task"], line["step"]) for line in lines]
    assert len(steps) == len(set(steps)) == 4 + 2 * 2 * 3


def test_a_line_cut_off_by_a_kill_is_made_again(make_recipe: Make) -> None:
    recipe = make_recipe()
    run_until(3, recipe)
    with open(recipe.output / "metrics.jsonl", "a") as file:
        file.write('{"stage": "construct", "task": null, "st')  # cut off by a kill
    folder = run(recipe, resume=True, progress="off").folder
    lines = metrics(folder)
    assert [line["step"] for line in lines if line["stage"] == "construct"] == [1, 2, 3, 4]


def test_poisoned_labels_change_no_bit_of_what_is_learned(
    make_recipe: Make, tasks: Any, files: Path, tmp_path: Path
) -> None:
    expected = run(make_recipe(f"output={tmp_path / 'a'}"), progress="off")
    data = shutil.copytree(files / "data", tmp_path / "data")
    for name in ("shapes", "letters"):
        arrays = dict(np.load(data / f"{name}.npz"))
        arrays["y_test"] = np.zeros_like(arrays["y_test"])
        np.savez(data / f"{name}.npz", **arrays)
    for task in tasks:
        task["evaluate"]["npz"] = task["adapt"]["npz"] = str(data / f"{task['name']}.npz")
    poisoned = run(
        make_recipe(f"output={tmp_path / 'b'}", f"tasks={json.dumps(tasks)}"), progress="off"
    )
    assert_same_cards(poisoned.folder, expected.folder)
    assert poisoned.result["holdout"] == expected.result["holdout"]
    assert poisoned.result["accuracy"] != expected.result["accuracy"]


def test_tasks_without_labels_run_too(make_recipe: Make, tasks: Any) -> None:
    for task in tasks:
        del task["evaluate"]
    summary = run(make_recipe(f"tasks={json.dumps(tasks)}"), progress="off")
    assert summary.result["accuracy"] == {}
    assert summary.report.exists()
    assert summary.result["holdout"]["meta"] > 0


def test_a_used_folder_is_refused_and_left_alone(make_recipe: Make) -> None:
    recipe = make_recipe("specialize.tasks=none")
    recipe.output.mkdir(parents=True)
    (recipe.output / "thesis.txt").write_text("ten years of work")
    with pytest.raises(MdftError, match=r"must not exist or be empty.*--resume.*--output"):
        run(recipe, progress="off")
    assert [p.name for p in recipe.output.iterdir()] == ["thesis.txt"]


def test_resume_wants_a_run_of_the_same_recipe(make_recipe: Make) -> None:
    recipe = make_recipe("specialize.tasks=none")
    with pytest.raises(MdftError, match="no run to resume"):
        run(recipe, resume=True, progress="off")
    run(recipe, progress="off")
    other = make_recipe("specialize.tasks=none", "construct.steps=9")
    with pytest.raises(MdftError, match=r"got another construct\.steps: 9 in place of \d+$"):
        run(other, resume=True, progress="off")
    written = recipe.output / "recipe.yaml"  # as a version without this key wrote it
    written.write_text(re.sub(r"^duplicates: .*\n", "", written.read_text(), flags=re.MULTILINE))
    assert "duplicates" not in written.read_text()
    run(recipe, resume=True, progress="off")


def test_a_damaged_state_is_one_clear_error(make_recipe: Make) -> None:
    recipe = make_recipe("specialize.tasks=none")
    run(recipe, progress="off")
    (recipe.output / "state" / "construct.pt").write_bytes(b"not a state")
    with pytest.raises(MdftError, match=r"construct.pt: not a readable state"):
        run(recipe, resume=True, progress="off")


def test_a_packed_pool_gives_the_same_run(make_recipe: Make, tmp_path: Path) -> None:
    first = run(make_recipe(f"output={tmp_path / 'a'}"), progress="off")
    pack(make_recipe(), tmp_path / "pool")
    packed = json.dumps({"folder": str(tmp_path / "pool")})
    second = run(make_recipe(f"pool={packed}", f"output={tmp_path / 'b'}"), progress="off")
    assert second.result["pool"]["checksum"] == first.result["pool"]["checksum"]
    assert torch.equal(card(first.folder), card(second.folder))
    wrong = make_recipe(f"pool={packed}", "preprocess.mean=0.4", f"output={tmp_path / 'c'}")
    with pytest.raises(MdftError, match="preprocess must be the pool's"):
        run(wrong, progress="off")


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "missing key": lambda state: state.pop("norm.bias"),
    "extra key": lambda state: state.update({"norm.bia": torch.zeros(3)}),
    "shape": lambda state: state.update({"norm.bias": torch.zeros(3)}),
    "nan": lambda state: state["norm.bias"].__setitem__(1, float("nan")),
}


def damage(files: Path, tmp_path: Path, what: str) -> tuple[str, str]:
    """Copies the models with one fault; returns an override and what the error must say."""
    models = shutil.copytree(files / "models", tmp_path / "models")
    path = models / "letters.safetensors"
    state = load_file(files / "base.safetensors" if what == "base again" else path)
    FAULTS.get(what, len)(state)
    save_file(state, path)
    if what == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if what == "no file":
        path.unlink()
    return f"pool.models={models}", "letters.safetensors" if what != "no file" else "letters"


@pytest.mark.parametrize("what", [*FAULTS, "base again", "truncated", "no file"])
def test_bad_checkpoints_are_one_clear_error(
    make_recipe: Make, files: Path, tmp_path: Path, what: str
) -> None:
    override, message = damage(files, tmp_path, what)
    with pytest.raises(MdftError, match=message) as caught:
        run(make_recipe(override), progress="off")
    assert not (tmp_path / "run").exists()  # nothing half-written
    text = str(caught.value)
    assert "norm.bia" in text or what in ("base again", "truncated", "no file")
    assert "Traceback" not in text


def test_bad_images_and_classes(make_recipe: Make, tasks: Any, files: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(files / "data" / "letters.npz"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"x_unlabelled": arrays["x_unlabelled"][:0]}, r"(?i)x_unlabelled.*\[0, 32"),
        ({"x_unlabelled": arrays["x_unlabelled"][:, :16]}, r"x_unlabelled.*16"),
        ({"x_unlabelled": np.full((4, 3, 32, 32), np.nan, np.float32)}, "x_unlabelled.*finite"),
        ({"y_test": arrays["y_test"] + 7}, r"y_test.*\[0, 7\)"),
        ({"class_names": np.array(["a", "b"])}, "one row for each of 2 class names"),
    ]
    for i, (change, message) in enumerate(cases):
        np.savez(tmp_path / f"{i}.npz", **{**arrays, **change})
        tasks[1]["adapt"]["npz"] = tasks[1]["evaluate"]["npz"] = str(tmp_path / f"{i}.npz")
        recipe = make_recipe(
            f"tasks={json.dumps(tasks)}", f"output={tmp_path / f'run{i}'}", "construct.steps=1",
            "specialize.tasks=none",
        )  # fmt: skip
        with pytest.raises(MdftError, match=message):
            run(recipe, progress="off")
        assert i == 3 or not (tmp_path / f"run{i}").exists()  # 3: labels are opened last


def test_resume_refuses_other_models_and_other_samples(
    make_recipe: Make, tasks: Any, files: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(files, tmp_path / "files")
    tasks = json.dumps(tasks).replace(str(files), str(copy))
    recipe = make_recipe(
        f"pool={{base: {copy / 'base.safetensors'}, models: {copy / 'models'}}}",
        f"tasks={tasks}", "specialize.tasks=none",
    )  # fmt: skip
    run(recipe, progress="off")
    arrays = dict(np.load(copy / "data" / "shapes.npz"))
    arrays["x_unlabelled"][0] ^= 1
    np.savez(copy / "data" / "shapes.npz", **arrays)
    with pytest.raises(MdftError, match="shapes: samples must be what the run was started with"):
        run(recipe, resume=True, progress="off")
    state = load_file(copy / "models" / "shapes.safetensors")
    state["norm.bias"][0] += 1
    save_file(state, copy / "models" / "shapes.safetensors")
    with pytest.raises(MdftError, match="pool must be what the run was started with"):
        run(recipe, resume=True, progress="off")


def test_coefficients_that_run_away_are_an_error_that_names_the_step(make_recipe: Make) -> None:
    recipe = make_recipe("construct.optimizer={name: sgd, lr: 1e38}", "specialize.tasks=none")
    with pytest.raises(MdftError, match=r"must stay finite.*at step \d of 4 .*lower the learning"):
        run(recipe, progress="off")
    assert "NaN" not in (recipe.output / "metrics.jsonl").read_text()


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_a_packed_pool_keeps_its_codec_and_is_left_whole(
    make_recipe: Make, tmp_path: Path, codec: str
) -> None:
    pack(make_recipe(), tmp_path / "pool", codec=codec)
    before = contents(tmp_path / "pool")
    packed = json.dumps({"folder": str(tmp_path / "pool")})
    summary = run(make_recipe(f"pool={packed}", "specialize.tasks=none"), progress="off")
    assert summary.result["pool"]["codec"] == codec
    load(summary.folder / "meta" / "card.json", pool=tmp_path / "pool")
    assert contents(tmp_path / "pool") == before
    Pool.open(tmp_path / "pool", verify=True)


def test_models_worse_than_their_base_are_named() -> None:
    own, base = {"mnist": 0.4, "dtd": 0.7, "sun": 0.5}, {"mnist": 0.975, "dtd": 0.6, "sun": 0.5}
    (said,) = worse_than_base({"individual": own, "pretrained": base})
    assert "worse than the pre-trained one on mnist (40.0 against 97.5):" in said
    assert worse_than_base({"individual": base, "pretrained": own | {"dtd": 0.1}}) == []


def test_classes_without_a_test_image_are_said() -> None:
    whole = {"classes": ["a", "b"], "true": [0, 1, 1], "predicted": [0, 1, 0], "count": [1, 1, 1]}
    lacking = {**whole, "classes": ["a", "b", "c", "d", "e", "f"]}
    (said,) = untested_classes({"one": whole, "two": lacking})
    assert said.startswith("Task 'two': 4 of 6 classes are without a test image")
    assert said.endswith("'c', 'd', 'e' and others.")
    assert worse_than_base({}) == []
