# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mdft_fast import __version__
from mdft_fast.app.cli import actions, doctor
from mdft_fast.app.recipe import Recipe, RecipeError
from mdft_fast.errors import MdftError
from tests.app.conftest import call
from tests.app.report.conftest import make_metrics, make_result

COMMANDS = [
    *("init", "pack", "inspect", "convert", "run", "eval", "specialize", "export", "report"),
    *("doctor", "demo"),
]
RECIPE = """
version: 1
pool: {folder: packed}
tasks: [{name: mnist, adapt: {npz: mnist.npz}}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Recipe, bool, Any]]:
    """Replaces the run by one that notes what it was asked to do."""
    calls: list[tuple[Recipe, bool, Any]] = []

    def run(recipe: Recipe, *, resume: bool, progress: bool | None, verify: bool) -> Any:
        calls.append((recipe, resume, progress))
        result = {
            "pool": {"tasks": [{"name": "mnist"}, {"name": "gtsrb"}]},
            "accuracy": {"meta": {"mnist": 0.5, "gtsrb": 0.25}, "control": {"mnist": 0.75}},
        }
        return types.SimpleNamespace(folder=tmp_path, result=result, report=tmp_path / "report.md")

    monkeypatch.setattr(actions, "run", run)
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_worth_reading(command: str) -> None:
    shown = call(command, "--help")
    assert "Example: mdft" in shown.output or command == "doctor"
    first = shown.output.split("\n\n")[1].strip()
    assert len(first) < 62, "fits into the list of commands"
    assert first in " ".join(call("--help").output.split("\n"))


def test_an_error_is_one_line_and_code_1(tmp_path: Path) -> None:
    shown = call("run", tmp_path / "none.yaml", code=1)
    path = tmp_path / "none.yaml"
    assert shown.stderr == f"error: {path}: not readable: No such file or directory\n"
    assert shown.stdout == ""


def test_debug_lets_the_error_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDFT_DEBUG", "1")
    shown = call("run", tmp_path / "none.yaml", code=1)
    assert isinstance(shown.exception, MdftError)


@pytest.mark.parametrize("arguments", [["runn"], ["run"], ["run", "a", "--sett", "b"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    assert "Usage:" in call(*arguments, code=2).stderr


def test_version() -> None:
    assert call("--version").output == f"mdft_fast {__version__}\n"


def test_run_passes_on_what_was_said(
    recipe: Path, ran: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = "--set", "construct.steps=7", "--set", "seed=3"
    shown = call("run", recipe, *changes, "-o", "it's/here", "--resume")
    ((asked, resume, progress),) = ran
    assert (asked.construct.steps, asked.seed, resume, progress) == (7, 3, True, None)
    assert asked.output == tmp_path / "it's" / "here"
    lines = [line.split() for line in shown.output.splitlines() if line.strip()]
    assert lines[0] == ["top-1,", "%", "meta", "control"]
    assert ["mnist", "50.0", "75.0"] in lines
    assert ["gtsrb", "25.0", "-"] in lines
    assert ["average", "37.5", "-"] in lines
    assert lines[-1] == ["report:", str(tmp_path / "report.md")]


def test_quiet_prints_the_report_alone(recipe: Path, ran: list[Any], tmp_path: Path) -> None:
    shown = call("run", recipe, "-q")
    assert shown.output == f"report: {tmp_path / 'report.md'}\n"
    assert ran[0][2] == "off"
    assert ran[0][0].output == tmp_path / "runs" / "recipe"


def test_a_stopped_run_says_how_to_go_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = False

    def stop(wanted: Recipe, **_: object) -> None:
        if begun:
            wanted.output.mkdir()
            (wanted.output / "recipe.yaml").touch()  # the first file that a run writes
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "run", stop)
    again = f"mdft run {recipe} --set 'start=[0.2]' --output {tmp_path / 'out'}"
    arguments = "run", recipe, "--set", "start=[0.2]", "-o", tmp_path / "out"
    shown = call(*arguments, code=130)
    assert shown.stderr == f"stopped before the first step. Begin again with: {again}\n"
    begun = True
    shown = call(*arguments, code=130)
    assert f"Go on with: {again} --resume" in shown.stderr


def test_ctrl_c_elsewhere(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "measure_model", stop)
    assert call("eval", "card.json", recipe, code=130).stderr == "stopped\n"


def test_a_wrong_key_names_the_nearest(recipe: Path) -> None:
    shown = call("run", recipe, "--set", "construct.stpes=7", code=1)
    assert shown.stderr == (
        f"error: {recipe}: construct.stpes: unknown key; did you mean 'steps'?\n"
    )


def test_init_writes_a_recipe_once(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "base.safetensors")
    (tmp_path / "mnist.safetensors").touch()
    np.savez(tmp_path / "x.npz", x=np.zeros(1))
    shown = call("init", tmp_path)
    assert f"wrote {tmp_path / 'recipe.yaml'}" in shown.output
    assert "look for CHANGE_ME in it" in shown.output
    text = (tmp_path / "recipe.yaml").read_text()
    again = call("init", tmp_path, code=1)
    assert "must not exist, got a file; --overwrite replaces it" in again.stderr
    (tmp_path / "images").mkdir()
    onto_a_folder = call("init", tmp_path, "-o", tmp_path / "images", "--overwrite", code=1)
    assert "images: must be a file to write, got a folder" in onto_a_folder.stderr
    of_a_file = call("init", tmp_path / "x.npz", code=1)
    assert "x.npz: must be a folder of checkpoints, got a file" in of_a_file.stderr
    (tmp_path / "images").rmdir()
    call("init", tmp_path, "--overwrite")
    assert (tmp_path / "recipe.yaml").read_text() == text


def test_init_counts_what_a_name_with_a_hash_hides(tmp_path: Path) -> None:
    folder = tmp_path / "a #1"
    (folder / "heads").mkdir(parents=True)
    for name in ("base", "a", "heads/a"):  # of its head, normalize is CHANGE_ME
        save_file({"weight": torch.ones(2, 3)}, folder / f"{name}.safetensors")
    text = call("init", folder, "-o", tmp_path / "recipe.yaml").output
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    assert f"CHANGE_ME in it, {len(caught.value.problems)} times" in text


def test_init_of_no_pool(tmp_path: Path) -> None:
    shown = call("init", tmp_path, code=1)
    assert "must hold one base*.safetensors" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_report_writes_the_report_again(tmp_path: Path) -> None:
    shown = call("report", tmp_path, code=1)
    assert "result.json: not readable" in shown.output
    assert list(tmp_path.iterdir()) == [], "nothing is half-written"
    result = make_result()
    result.update(specialize={}, phases=[], accuracy={}, intervals={}, comparisons={})
    (tmp_path / "result.json").write_text(json.dumps(result))
    shown = call("report", tmp_path)
    assert f"page:   {tmp_path / 'report.html'}" in shown.output
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (tmp_path / "report.md").exists()


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_run_that_was_stopped_says_what_is_missing(recipe: Path, command: str) -> None:
    folder = recipe.parent
    metrics = "".join(json.dumps(line) + "\n" for line in make_metrics())
    (folder / "metrics.jsonl").write_text(metrics)
    (folder / "splits.json").write_text("{}")
    arguments = ["--to", "a.safetensors"] if command == "export" else []
    shown = call(command, folder, *arguments, code=1)
    wanted = "must hold a finished run, got one that ended in stage 2 of 'mnist' (0 of 20 steps)"
    assert shown.stderr == (f"error: {folder}: {wanted}; go on with: mdft run {recipe} --resume\n")


def test_doctor() -> None:
    shown = call("doctor")
    found = {line.split()[0] for line in shown.output.splitlines()}
    assert {"mdft_fast", "torch", "kernels", "threads", "gpu", "extras", "cache"} <= found
    assert "is right" in shown.output


@pytest.mark.parametrize("op", ["merge_dots", "debiased_entropy_loss"])
def test_doctor_tests_every_operator(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(doctor, op)

    def wrong(*args: Any) -> Any:
        result = right(*args)
        return result * 1.001 if op == "merge_dots" else result._replace(loss=result.loss * 1.001)

    monkeypatch.setattr(doctor, op, wrong)
    name = op.removesuffix("_loss")
    assert f"cpu: {name} gives WRONG numbers" in call("doctor", code=1).output


def test_doctor_survives_an_operator_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(doctor, "merge", fails)
    shown = call("doctor", code=1).output
    assert "self-test    cpu: FAILS: no kernel image is available\n" in shown


def test_doctor_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MDFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", _no_home)
    assert "MDFT_CACHE names a folder for it" in call("doctor").output


def _no_home(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_doctor_notices_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.merge
    monkeypatch.setattr(doctor, "merge", lambda *a: right(*a) * (1 + 1e-5))
    assert "merge gives WRONG numbers" in call("doctor", code=1).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{run}", "--to", "a.bin"], "--to: must be a .safetensors file, got a.bin"),
        (["export", "{run}", "--to", "{run}/there.safetensors"], "must not exist, got a file"),
        (["export", "{run}", "--to", "a.safetensors"], "must hold meta/card.json, got none"),
        (["export", "a.json", "--task", "b", "--to", "a.safetensors"], "--task: is for a run"),
        (["specialize", "{run}", "--task", "mnits"], "got 'mnits'; did you mean 'mnist'?"),
        (
            ["specialize", "{run}", "--task", "mnist", "--set", "construct.steps=5"],
            "--set: must be a key of ['specialize', 'memory', 'precision', 'device', "
            "'deterministic', 'seed'], got 'construct.steps'",
        ),
        (["specialize", "{run}/none", "--task", "mnist"], "must hold recipe.yaml, got none"),
    ],
)
def test_errors_of_the_commands_on_runs(recipe: Path, arguments: list[str], message: str) -> None:
    (recipe.parent / "there.safetensors").touch()
    shown = call(*(word.replace("{run}", str(recipe.parent)) for word in arguments), code=1)
    assert message in shown.stderr


def test_specialize_names_the_command_that_measures(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = recipe.parent / "specialized" / "mnist" / "card.json"
    monkeypatch.setattr(actions, "specialize_run", lambda *_: card)
    shown = call("specialize", recipe.parent, "--task", "mnist")
    assert shown.stdout.endswith(f"measures the new card: mdft eval {card} {recipe}\n")


def test_a_free_name(tmp_path: Path) -> None:
    assert actions.free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert actions.free_name(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo" / "recipe.yaml").touch()
    (tmp_path / "demo-2").touch()
    assert actions.free_name(tmp_path / "demo") == tmp_path / "demo-3"


def test_demo_runs_the_pool_that_was_built(
    recipe: Path, ran: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(actions, "ensure_pool", lambda progress: recipe.parent)
    monkeypatch.chdir(tmp_path)
    call("demo", "--set", "construct.steps=2")
    assert ran[0][0].output == tmp_path / "mdft-demo"
    assert ran[0][0].construct.steps == 2


def test_schema_of_what_a_command_reads(recipe: Path) -> None:
    (recipe.parent / "meta").mkdir()
    (recipe.parent / "meta" / "card.json").write_text(json.dumps({"format": "other"}))
    shown = call("export", recipe.parent, "--to", recipe.parent / "a.safetensors", code=1)
    assert "card.json" in shown.stderr
