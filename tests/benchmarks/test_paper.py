# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures as commands: what they write is measured, and right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.pages.blocks import paper
from benchmarks.pages.results import RESULTS
from benchmarks.paper import ITEMS, command, fig2, fig3, study, table2, variants
from benchmarks.paper.study import Study
from mdft_fast.arena import digest
from mdft_fast.evaluation import evaluate
from tests.conftest import ROOT
from tests.toy import CLASSES, write_models, write_toy

pytest.importorskip("timm")
pytest.importorskip("scipy")

QUICK = ["--set", "construct.batch=4", "specialize.steps=2", "specialize.batch=4", "--steps", "2"]
OVERRIDES = [*QUICK[1:4], "construct.steps=2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_toy(tmp_path_factory.mktemp("toy"))
    write_models(file)
    return file


@pytest.fixture(scope="module")
def baselines(recipe: Path) -> Path:
    """What finetune_pool.py would write, with made-up numbers."""
    one = {"seconds": 4.0, "cpu_seconds": 3.0, "steps": 5, "images": 80, "trainable": 1000}
    models = {f"models/{name}.safetensors": {**one, "accuracy": {name: 0.75}} for name in CLASSES}
    models["multi_task.safetensors"] = {**one, "accuracy": dict.fromkeys(CLASSES, 0.625)}
    state = load_file(recipe.parent / "base.safetensors")
    content = {"labels": "supervised", "models": models,
               "config": {"base_sha256": digest(*(state[name] for name in sorted(state)))},
               "threads": 1, "device": "a CPU"}  # fmt: skip
    (recipe.parent / "baselines.json").write_text(json.dumps(content))
    return recipe.parent


def measure(items: list[str], recipe: Path, out: Path, *arguments: str) -> int:
    """Runs the command, a few steps each; λ that is kept serves all."""
    work = str(recipe.parent / "work")
    options = ["--recipe", str(recipe), "--out", str(out), "--work", work, *QUICK]
    return command.main([*items, *options, *arguments])


@pytest.fixture(scope="module")
def made(recipe: Path, baselines: Path) -> Path:
    """All items of the toy, two steps each."""
    arguments = ["--baselines", str(baselines), "--points", "2", "--all-pairs", "--seeds", "0", "1"]
    assert measure(["paper"], recipe, recipe.parent / "paper", *arguments) == 0
    return recipe.parent / "paper"


@pytest.fixture(scope="module")
def opened(recipe: Path, made: Path) -> Study:
    return Study(recipe, OVERRIDES, [0, 1], recipe.parent / "work")


def results(made: Path, item: str) -> Any:
    return json.loads((made / f"{item}.json").read_text())["results"]


def right_at(study: Study, at: Any, tests: Any = None) -> Any:
    with study.meta().using(at):
        return evaluate(study.meta(), tests or study.tests)


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_is_json_markdown_and_a_picture(made: Path, item: str) -> None:
    content = json.loads((made / f"{item}.json").read_text())
    assert {"date", "command", "commit", "device", "threads", "versions", "seeds"} <= set(content)
    markdown = (made / f"{item}.md").read_text()
    assert markdown == command.page(content)
    assert f"]({item}.png)" in markdown
    assert "The paper's numbers are of CLIP" in markdown
    assert "labels serve evaluation alone" in markdown
    assert (made / f"{item}.png").read_bytes().startswith(b"\x89PNG")
    assert str(ROOT) not in markdown + json.dumps(content)
    assert str(made.parent) not in markdown + json.dumps(content)


def test_table1_is_what_it_says(made: Path, opened: Study) -> None:
    for test in opened.tests:
        name = test.task.name
        one = results(made, "table1")["tasks"][name]
        right = right_at(opened, opened.meta().individual(name), [test]).average
        assert one["individual"] == pytest.approx(right)
        ends = [opened.first(seed, "preset=adamerging")[-1] for seed in (0, 1)]
        after = sum(float(opened.correct(end)[name].double().mean()) for end in ends) / 2
        drop = one["drop"]["layer-wise"]
        assert drop["points"] == pytest.approx(right - after)
        assert drop["relative"] == pytest.approx((right - after) / right)
        assert -1 <= one["spearman"]["start"] <= 1


def test_table2_has_every_method_and_the_supervised_ones_marked(made: Path, opened: Study) -> None:
    accuracies = results(made, "table2")["accuracy"]
    assert set(accuracies) == set(table2.METHODS)
    assert accuracies["multi_task"] == [dict.fromkeys(CLASSES, 0.625)]
    assert accuracies["finetuned"] == [dict.fromkeys(CLASSES, 0.75)]
    assert [len(accuracies[m]) for m in ("pretrained", "meta", "specialized")] == [1, 2, 2]
    assert accuracies["meta"][1] == pytest.approx(right_at(opened, opened.first(1)[-1]).accuracy)
    markdown = (made / "table2.md").read_text()
    assert "multi-task, supervised" in markdown
    assert "not run" not in markdown


def test_without_baselines_the_supervised_columns_are_not_run(made: Path) -> None:
    content = results(made, "table2")
    for method in table2.SUPERVISED:
        del content["accuracy"][method]
    assert ITEMS["table2"].markdown(content).count("not run") == 2 * (len(CLASSES) + 1)
    content = results(made, "table3") | {"finetuning": None}
    assert "Full fine-tuning: not run" in ITEMS["table3"].markdown(content)
    ITEMS["table3"].draw(content)


def test_baselines_of_another_base_are_refused(
    recipe: Path, baselines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((baselines / "baselines.json").read_text())
    content["config"]["base_sha256"] = "0" * 64
    (tmp_path / "baselines.json").write_text(json.dumps(content))
    for folder, message in ((tmp_path, "of the recipe's own base"), (recipe, "no such file")):
        assert measure(["table3"], recipe, tmp_path / "out", "--baselines", str(folder)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_table3_counts_what_is_learned_and_divides_the_times(made: Path, opened: Study) -> None:
    content = results(made, "table3")
    K, L = opened.meta().coefficients.shape
    assert content["trainable"]["numbers"] == K * L
    assert content["images"] == {"stage 1": 2 * 4 * K, "stage 2": 2 * 4 * K}
    content["runs"] = [{phase: {"cpu_seconds": 0.5, "seconds": 9.0} for phase in run}
                       for run in content["runs"]]  # fmt: skip
    markdown = ITEMS["table3"].markdown(content)
    assert f"**{K * L:,}** numbers" in markdown
    assert "took 6.00 times the CPU time of learning λ alone, 3.00 times that of all" in markdown


def test_fig2_of_a_model_with_itself_is_one(made: Path, opened: Study) -> None:
    task = opened.taught(0)[0]
    meta = opened.meta()
    table = fig2.compare(meta, meta.individual(task.name), task.name, task.samples, ["blocks.0"])
    torch.testing.assert_close(table.diagonal(), torch.ones(len(table), dtype=torch.float64))
    content = results(made, "fig2")
    assert content["layers"][-1] == "output"
    for one in content["tasks"].values():
        assert [row[i] for i, row in enumerate(one["pairs"])] == one["diagonal"]["meta"]
        one["pairs"] = None
    ITEMS["fig2"].draw(content)  # lines in place of heat maps


def test_fig3_follows_the_path(made: Path, opened: Study) -> None:
    content = results(made, "fig3")
    curve = content["stage 1"]["recipe"]
    assert curve["steps"] == [0, 1, 2]
    for seed, run in enumerate(curve["accuracy"]):
        path = opened.first(seed)
        right = [right_at(opened, path[step]).average for step in curve["steps"]]
        assert run == pytest.approx(right)
    assert curve["accuracy"][0][0] == content["task_arithmetic"]
    assert fig3.steps_of(100, 4) == [0, 25, 50, 75, 100]
    assert fig3.steps_of(3, 20) == [0, 1, 2, 3]


def test_variants_change_what_their_names_say(opened: Study) -> None:
    objectives = {}
    for name, changes in {**variants.FILTER_VARIANTS, **variants.LOSS_VARIANTS}.items():
        c = opened.load(*changes).construct
        objectives[name] = (c.objective.alpha, c.objective.entropy, c.filter.enabled,
                      c.objective.reweight)  # fmt: skip
    assert objectives == {
        "filter and weights (the paper's)": (1, True, True, "as_written"),
        "filter alone": (1, True, True, "off"),
        "weights alone": (1, True, False, "as_written"),
        "neither": (1, True, False, "off"),
        "joint, filter and weights": (1, True, True, "as_written"),
        "CE alone, filter and weights": (1, False, True, "as_written"),
        "H alone, filter and weights": (0, True, True, "as_written"),
        "joint, all samples": (1, True, False, "off"),
        "CE alone, all samples": (1, False, False, "off"),
        "H alone, all samples": (0, True, False, "off"),
    }


def test_what_items_share_is_learned_once(
    recipe: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("construct", "specialize"):
        monkeypatch.setattr(study, stage, lambda *_: pytest.fail("learned again"))
    arguments = ["--points", "2", "--seeds", "0", "1"]
    assert measure(["fig6", "fig3"], recipe, tmp_path, *arguments) == 0
    assert (results(tmp_path, "fig6")) == results(made, "fig6")
    with pytest.raises(pytest.fail.Exception, match="learned again"):
        measure(["fig6"], recipe, tmp_path, *arguments, "--set", "construct.batch=5")


def test_labels_change_no_coefficient(recipe: Path, opened: Study, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(recipe.parent, folder, ignore=shutil.ignore_patterns("work", "paper"))
    for name in CLASSES:
        arrays = dict(np.load(folder / f"{name}.npz"))
        arrays["y_test"] = 1 - np.minimum(arrays["y_test"], 1)
        np.savez(folder / f"{name}.npz", **arrays)
    other = Study(folder / "recipe.yaml", OVERRIDES, [0], tmp_path / "work")
    assert torch.equal(other.first(0), opened.first(0))
    assert torch.equal(other.second(0)["sides"], opened.second(0)["sides"])
    assert not torch.equal(other.individual()["sides"], opened.individual()["sides"])


@pytest.mark.parametrize(("name", "pool"), [("paper", "demo"), ("paper_real", "real_pool")])
def test_tables_are_the_committed_results(name: str, pool: str) -> None:
    for file in (RESULTS / name).glob("*.json"):
        content = json.loads(file.read_text())
        assert file.with_suffix(".md").read_text() == command.page(content), file.name
        assert file.with_suffix(".png").is_file()
        assert content["pool"]["name"] == pool


def test_the_page_says_what_is_not_there(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "fig5.json", tmp_path)
    block = paper(tmp_path)
    assert block.count("No result is committed yet.") == len(ITEMS) - 1
    assert f"](../benchmarks/results/{tmp_path.name}/fig5.png)" in block


def test_run_py_hands_over(tmp_path: Path) -> None:
    words = ["benchmarks/run.py", "fig4", "--recipe", "none.yaml", "--out", str(tmp_path / "out")]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
                         timeout=120, check=False)  # fmt: skip
    assert ran.returncode == 1
    assert "none.yaml: not readable" in ran.stderr
    assert not (tmp_path / "out").exists()
