# SPDX-License-Identifier: Apache-2.0
"""What a run tells while it works, and what it leaves for other programs."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import pytest

from mdft_fast import MdftError, run
from mdft_fast.app.running import progress
from tests.app.conftest import Make, call, metrics

SHORT = ("specialize.tasks=[shapes]", "specialize.control=false", "evaluate.curve=off")


def test_without_a_terminal_there_is_a_line_a_phase_and_one_at_the_end(
    make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(make_recipe(*SHORT))
    out, err = capsys.readouterr()
    assert out == ""
    lines = [re.fullmatch(r"\d\d:\d\d:\d\d  (.*)", line) for line in err.splitlines()]
    words = [line[1] for line in lines if line]
    assert len(words) == len(lines)
    phases = [phase["name"] for phase in summary.result["phases"]]
    assert [w.partition(":")[0] for w in words if w.partition(":")[0] in phases] == phases
    assert words[-1].startswith("done in ")
    assert words[-1].endswith(str(summary.report))


def test_ten_seconds_later_a_step_is_a_line_with_what_matters(
    make_recipe: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(step=3.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))
    run(make_recipe(*SHORT))
    steps = [line for line in capsys.readouterr().err.splitlines() if "construct:" in line]
    assert steps
    assert re.search(
        r"construct: \d of 4  loss -?\d+\.\d{4}  kept \d+% \d+%  \d+ images/s", steps[-1]
    )
    assert any(re.search(r"  \d+\.\d s left$", line) for line in steps)


def test_json_lines_and_silence(make_recipe: Make, tmp_path: Path) -> None:
    make_recipe(*SHORT)  # writes the file
    told = call("run", tmp_path / "recipe.yaml", "--json-log", "-o", tmp_path / "a", *_set(SHORT))
    events = [json.loads(line) for line in told.stderr.splitlines() if line.startswith("{")]
    assert {"plan", "stage 1", "stage 2", "evaluate"} <= {
        event["name"] for event in events if event["event"] == "phase"
    }
    assert all(event["time"][10] == "T" for event in events)
    quiet = call("run", tmp_path / "recipe.yaml", "--quiet", "-o", tmp_path / "b", *_set(SHORT))
    assert quiet.stderr == ""


def _set(overrides: tuple[str, ...]) -> list[str]:
    return [word for one in overrides for word in ("--set", one)]


def test_an_unknown_style_is_refused(make_recipe: Make) -> None:
    with pytest.raises(MdftError, match=r"progress: must be one of \['bars', .*, got 'loud'"):
        run(make_recipe(), progress="loud")  # type: ignore[arg-type]


def test_each_step_is_a_line_of_csv(make_recipe: Make) -> None:
    folder = run(make_recipe(*SHORT), progress="off").folder
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = metrics(folder)
    assert [(row["stage"], int(row["step"])) for row in rows] == [
        (line["stage"], line["step"]) for line in lines
    ]
    assert float(rows[0]["losses/letters"]) == lines[0]["losses"]["letters"]
    assert rows[-1]["task"] == "shapes"


def test_events_for_tensorboard(make_recipe: Make) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(make_recipe(*SHORT, "log=tensorboard"), progress="off").folder
    held = EventAccumulator(str(folder / "tensorboard"))
    held.Reload()
    assert {"construct/loss", "construct/kept/letters", "specialize shapes/loss"} <= set(
        held.Tags()["scalars"]
    )
    losses = [line["loss"] for line in metrics(folder) if line["stage"] == "construct"]
    assert [one.value for one in held.Scalars("construct/loss")] == pytest.approx(losses)
