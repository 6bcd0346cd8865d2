# SPDX-License-Identifier: Apache-2.0
"""The table of what is compared: a row more costs a line, and a result tells its own rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mdft_fast.app.cli import show_accuracy
from mdft_fast.app.report import COMPARED, ComparedModel, page, write_report
from mdft_fast.app.report.compared_models import compared_models
from mdft_fast.app.report.verdicts import verdict
from tests.app.report.conftest import Result, Write

CALIBRATED = ComparedModel(
    "calibrated", "calibrated (stage 3)", "the meta-model with norms refitted.", "one model",
    against=("meta",),
)  # fmt: skip


def test_a_seventh_row_costs_one_line(
    result: Result, folder: Write, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rows = [*COMPARED[:3], CALIBRATED, *COMPARED[3:]]
    result["compared"] = [dataclasses.asdict(row) for row in rows]
    meta = result["accuracy"]["meta"]
    result["accuracy"]["calibrated"] = {name: value + 0.1 for name, value in meta.items()}
    result["comparisons"]["calibrated-meta"] = {"difference": 0.1, "low": 0.09, "high": 0.11}
    text = write_report(folder(result)).read_text(encoding="utf-8")
    (average,) = [line for line in text.splitlines() if line.startswith("| **average**")]
    assert average.split(" | ")[3:5] == ["**68.1**", "**78.1**"], "in the table's order"
    assert "* **calibrated (stage 3)**: the meta-model with norms refitted." in text
    short = "calibrated (stage 3) is better than the meta-model (78.1 % against 68.1 %)"
    assert short in verdict(result)[0]
    html = page(result, [])
    assert '<a class="word" href="#word-calibrated">calibrated (stage 3)</a></th>' in html
    assert html.count('<path class="dot triangle green"') == 1 + 9
    show_accuracy(result)
    head = capsys.readouterr().out.split("\n")[1].split()
    assert head[2:7] == ["base", "arithmetic", "meta", "calibrated", "individual"]


def test_labels_come_from_the_result_and_else_from_the_table(result: Result) -> None:
    assert compared_models(result) == list(COMPARED)
    named = dataclasses.asdict(dataclasses.replace(COMPARED[2], label="merged", phrase="it"))
    result["accuracy"] = {"meta": result["accuracy"]["meta"]}
    result["compared"] = [named]
    assert [model.label for model in compared_models(result)] == ["merged"]
    assert 'href="#word-meta">merged</a></th>' in page(result, [])


def test_names_of_the_table_are_told_apart() -> None:
    for field in ("name", "label", "short", "long", "phrase", "color", "mark"):
        assert len({getattr(model, field) for model in COMPARED}) == len(COMPARED)
    names = {model.name for model in COMPARED}
    assert all(names.issuperset(model.against) for model in COMPARED)
