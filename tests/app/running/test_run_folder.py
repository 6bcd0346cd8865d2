# SPDX-License-Identifier: Apache-2.0
"""A run folder is one run's, and what is in it is read back as it was written or not at all."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mdft_fast import CoefficientCard, load
from mdft_fast.app.cli import export_model
from mdft_fast.app.cli.arguments import readable
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.report import TIMES, read_metrics, read_result
from mdft_fast.app.running import locked, run
from mdft_fast.app.running.run_folder import RunFolder
from mdft_fast.app.running.run_state import _checksum, read_state, write_state
from mdft_fast.app.running.same_inputs import check_inputs, check_recipe, write_inputs
from mdft_fast.errors import MdftError
from mdft_fast.json_checksums import with_checksum
from tests.app.conftest import Make, card, run_until
from tests.app.report.conftest import make_metrics

SHORT = ("specialize.tasks=none", "construct.steps=3")
INPUTS: dict[str, Any] = {
    "pool": "0" * 64,
    "tasks": [{"name": "shapes", "samples": "1" * 64, "adapt": {"npz": "/a/x.npz", "count": 4}}],
}


def test_a_folder_in_use_is_refused_before_anything_is_loaded(make_recipe: Make) -> None:
    recipe = make_recipe(*SHORT, "pool.models=/nowhere")
    with locked(recipe.output):
        with pytest.raises(MdftError, match=r"is in use by process \d+ on .* since .*--output"):
            run(recipe, progress="off")
        with pytest.raises(MdftError, match=r"wait for its end$"), locked(recipe.output):
            pass  # as of commands without --output
        assert (recipe.output / ".mdft-lock").exists(), "the first one's is left alone"
    assert not recipe.output.exists()


def test_what_dead_processes_left_is_no_obstacle_and_goes(make_recipe: Make) -> None:
    recipe = make_recipe(*SHORT)
    recipe.output.mkdir()
    (recipe.output / ".recipe.yaml.0123456789abcdef.part").write_text("ver")
    (recipe.output / ".mdft-lock").write_text("process 1 on a machine that is gone")
    with pytest.raises(MdftError, match="no run to resume; start it without --resume"):
        run(recipe, resume=True, progress="off")
    folder = run(recipe, progress="off").folder
    (folder / "state" / ".construct.pt.0123456789abcdef.part").write_text("half")
    with pytest.raises(MdftError, match="got a run; --resume goes on with it, --output"):
        run(recipe, progress="off")
    with RunFolder(recipe.output, recipe, resume=True):
        pass
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("place", ["link", "file/run", "n" * 300])
def test_a_folder_that_cannot_be_made(make_recipe: Make, tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises((MdftError, OSError), match=re.escape(str(tmp_path))):
        run(make_recipe(*SHORT, f"output={tmp_path / place}"), progress="off")


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        state = torch.load(io.BytesIO(content), weights_only=True)
        change(state)
        written = io.BytesIO()
        torch.save(state, written)
        return written.getvalue()

    return damage


def _flipped(content: bytes) -> bytes:
    path = torch.load(io.BytesIO(content), weights_only=True)["path"].numpy().tobytes()
    at = content.find(path) + 2
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def _ownerless(state: dict[str, Any]) -> None:
    del state["owner"], state["sha256"]
    state["sha256"] = _checksum(state)


STATES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of λ": _flipped,
    "another step": _changed(lambda state: state.update(step=3)),
    "another run's": _changed(lambda state: state.update(owner="another")),
    "nobody's": _changed(_ownerless),
    "no checksum": _changed(lambda state: state.pop("sha256")),
    "cut": lambda content: content[:-300],
    "no state": lambda _: b"[1]",
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_is_not_as_it_was_written(tmp_path: Path, case: str) -> None:
    file, state = tmp_path / "construct.pt", {"step": 2, "path": torch.rand(3, 2, 4)}
    write_state(file, state, "this run")
    assert torch.equal(read_state(file, "this run")["path"], state["path"])
    with pytest.raises(MdftError, match="recipe and inputs, got another stage's or run's"):
        read_state(file, "another run")
    file.write_bytes(STATES[case](file.read_bytes()))
    with pytest.raises(MdftError, match=r"construct.pt: .*put a copy back, or start"):
        read_state(file, "this run")


def test_states_of_two_stages_that_were_exchanged(make_recipe: Make, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, make_recipe(*SHORT), resume=True)
    one, other = (tmp_path / "state" / f"{name}-shapes.pt" for name in ("specialize", "control"))
    for file in (one, other):
        folder.save_state(file.stem, {"step": 3})
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    for file in (one, other):
        with pytest.raises(MdftError, match=f"{file.name}: must be this stage's state"):
            folder.load_state(file.stem)


READERS: dict[str, Callable[[Path], object]] = {
    "construct.pt": lambda file: read_state(file, ""),
    "metrics.jsonl": lambda file: read_metrics(file.parent),
    "result.json": lambda file: read_result(file.parent),
    "splits.json": lambda file: check_inputs(file.parent, INPUTS),
    "recipe.yaml": Recipe.load,
    "recipe": readable,
    "card.json": CoefficientCard.load,
    "model.safetensors": load,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_a_file_s_place_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(MdftError, match=f"{name}: must be a file, got a named pipe"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "splits.json", "card.json"])
def test_json_without_end_names_its_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[" * 100_000 + "\n")
    with pytest.raises(MdftError, match=f"{name}.*: not .*recursion"):
        READERS[name](tmp_path / name)


Lines = list[str]
METRICS: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "cut": (lambda lines: [lines[0][:40], *lines[1:]], "line 1: not JSON"),
    "a number": (lambda lines: [lines[0].replace('"lr": 0', '"lr": 1'), *lines[1:]],
                 "line 1: its content's sha256 must be"),
    "a key": (lambda lines: [lines[0].replace('"step"', '"stop"'), *lines[1:]], "line 1: its"),
    "a time": (lambda lines: [lines[0].replace("0.48", "NaN"), *lines[1:]],
               "line 1: seconds: .*finite"),
    "no UTF-8": (lambda lines: [lines[0].replace("loss", "l\udcffss"), *lines[1:]], "line 1: "),
    "a line in the middle": (lambda lines: [lines[0], *lines[2:]],
                             r"line 2: step must be 2, got 3: lines are missing"),
    "a line twice": (lambda lines: [lines[0], *lines],
                     r"line 2: step must be 2, got 1: a line stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", METRICS)
def test_lines_of_metrics_that_are_not_as_they_were_written(tmp_path: Path, case: str) -> None:
    lines = [json.dumps(with_checksum(line, TIMES)) for line in make_metrics()[:4]]
    change, message = METRICS[case]
    damaged = "".join(f"{line}\n" for line in change(lines))
    (tmp_path / "metrics.jsonl").write_bytes(damaged.encode("utf-8", "surrogateescape"))
    with pytest.raises(MdftError, match=f"metrics.jsonl, {message}.*take the file away"):
        read_metrics(tmp_path)


def test_metrics_that_end_before_the_state(make_recipe: Make, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, make_recipe(*SHORT), resume=True)
    folder.save_state("construct", {"step": 3})
    lines = [json.dumps(with_checksum(line, TIMES)) + "\n" for line in make_metrics()[:4]]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(lines[:2]))
    with pytest.raises(MdftError, match="a line for each of 3 steps of construct, got 2"):
        folder.trim_metrics()
    file.write_text("".join(lines))
    folder.trim_metrics()
    assert file.read_text() == "".join(lines[:3])


def test_notes_of_a_run_that_are_not_as_they_were_written(
    make_recipe: Make, tmp_path: Path
) -> None:
    recipe = make_recipe(*SHORT)
    recipe.write(tmp_path / "recipe.yaml")
    named = write_inputs(tmp_path, recipe, INPUTS)
    moved = json.loads(json.dumps(INPUTS).replace("/a/x.npz", "/b/x.npz"))
    assert check_inputs(tmp_path, moved) == named
    check_recipe(tmp_path, make_recipe(*SHORT, f"output={tmp_path / 'elsewhere'}"))
    other = json.loads(json.dumps(INPUTS).replace("1111", "1112"))
    with pytest.raises(MdftError, match="shapes: samples must be what the run was started with"):
        check_inputs(tmp_path, other)
    written, splits = tmp_path / "recipe.yaml", tmp_path / "splits.json"
    text, notes = written.read_text(), splits.read_text()
    written.write_text(re.sub("^seed: 0", "seed: 1", text, flags=re.MULTILINE))
    with pytest.raises(MdftError, match=r"recipe.yaml: changed since .*splits.json"):
        check_recipe(tmp_path, make_recipe(*SHORT, "seed=1"))
    for damaged in (text[:300].encode(), b"\xff" + text.encode()):
        written.write_bytes(damaged)
        with pytest.raises(MdftError, match=r"recipe.yaml: "):
            check_recipe(tmp_path, recipe)
    for gone in (notes[: len(notes) // 2], notes.replace("0000", "0001"), "[]", ""):
        splits.write_text(gone)
        with pytest.raises(MdftError, match=r"splits.json: "):
            check_inputs(tmp_path, INPUTS)


def test_a_run_moved_with_its_files_goes_on(make_recipe: Make, files: Path, tmp_path: Path) -> None:
    whole = run(make_recipe(*SHORT, f"output={tmp_path / 'whole'}"), progress="off").folder
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(files, old / "files")
    text = (tmp_path / "recipe.yaml").read_text().replace(str(files), str(old / "files"))
    (old / "recipe.yaml").write_text(text)
    run_until(3, Recipe.load(old / "recipe.yaml", SHORT))
    old.rename(new)
    moved = Recipe.load(new / "run" / "recipe.yaml")
    folder = run(moved, resume=True, progress="off").folder
    assert folder == new / "run"
    assert torch.equal(card(folder), card(whole))
    export_model(folder, new / "m.safetensors", None, None)
    meta = folder / "meta" / "model.safetensors"
    assert (new / "m.safetensors").read_bytes() == meta.read_bytes()
    assert str(old) not in (folder / "recipe.yaml").read_text()
