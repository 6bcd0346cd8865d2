# SPDX-License-Identifier: Apache-2.0
"""The report of a run that started from a merge: whose rows λ has, and how much each vector is."""

from __future__ import annotations

import dataclasses
import re

import pytest

from mdft_fast.app.report import page, read_result, rows_of_table, write_report
from mdft_fast.app.report.coefficient_maps import coefficients_section
from mdft_fast.app.report.report_sections import legend
from mdft_fast.app.report.share_charts import shares_section
from mdft_fast.app.report.verdicts import verdict
from tests.app.report.conftest import COLUMNS, TASKS, Result, Write

BLOCKS = ["stem", *(f"blocks.{i}" for i in range(12)), "tail"]


@pytest.fixture
def started(result: Result) -> Result:
    """That result, as if λ had started from a merge: 60 % of each model, the rest even."""
    names = list(TASKS)
    rest = [0.4 / len(names)] * len(names)
    mixture = {"whole": [0.6, *rest], "blocks": [[0.6, *rest] for _ in BLOCKS]}
    result["pool"] |= {"start": "average", "vectors": ["average", *names]}
    lam = result["coefficients"]
    lam["start"] = [[float(not k)] * len(COLUMNS) for k in range(len(names) + 1)]
    lam["construct"] = [[1.25 - 0.05 * k] * len(COLUMNS) for k in range(len(names) + 1)]
    lam["specialize"] = {n: [[1.0] * len(COLUMNS), *m] for n, m in lam["specialize"].items()}
    result["shares"] = {
        "blocks": BLOCKS, "construct": mixture, "specialize": dict.fromkeys(names, mixture),
    }  # fmt: skip
    result["trainable"] = (len(names) + 1) * len(COLUMNS)
    result["accuracy"]["start"] = {name: v - 0.02 for name, v in result["accuracy"]["meta"].items()}
    result["comparisons"]["meta-start"] = {"difference": 0.02, "low": 0.01, "high": 0.03}
    result["compared"] = [dataclasses.asdict(row) for row in rows_of_table(True)]
    return result


def test_shares_are_a_table_a_map_and_bars(started: Result, folder: Write) -> None:
    path = folder(started)
    text = write_report(path).read_text(encoding="utf-8")
    started = read_result(path)  # type: ignore[assignment]
    assert "## What the models are made of" in text
    assert "| meta (stage 1) | 60.0 | 5.0 |" in text
    assert "| mnist | 60.0 | 5.0 |" in text
    section = shares_section(started)  # type: ignore[arg-type]
    assert section is not None
    meta, *rest = section["panels"]
    assert {bar.style for bar in meta.bars} == {"share-start", "share-others"}
    assert [len(panel.bars) for panel in rest] == [3 * len(BLOCKS)] * len(TASKS)
    for panel in section["panels"]:
        heights = sum(bar.height for bar in panel.bars)
        assert heights == pytest.approx(122 * len(BLOCKS), abs=1), "each block is filled to 100 %"
    assert rest[3].tips[1][1] == "block 0: start 60.0 %, the task's own vector 5.0 %, others 35.0 %"
    html = (path / "report.html").read_text(encoding="utf-8")
    assert html.count('<rect class="share-start"') == 1 + 9 * len(BLOCKS)
    assert ".share-start{" in html


def test_rows_of_lambda_are_vectors(started: Result) -> None:
    section = coefficients_section(started)  # type: ignore[arg-type]
    assert [name for name, _ in section["lines"]] == ["average", *TASKS]
    assert section["note"].startswith("where λ started, 1 at average, 0 at the tasks")
    (style, told), *_ = section["lines"][0][1]
    assert told == "1.250"
    assert section["lines"][5][1][0] == ("d37", "1.000"), "1 of 1.2 on the way up"
    assert style == "d24", "0.25 of 1.2"
    assert section["mixture"]["vectors"] == ["average", *TASKS]
    assert "(8 task vectors + 1 start) × 152 columns" in page(started, [])  # type: ignore[arg-type]


def test_the_start_is_compared(started: Result) -> None:
    words = {word: meaning for _, word, meaning in legend(started)}  # type: ignore[arg-type]
    assert words["start (the merge)"].endswith("λ = 1 at it, 0 at the tasks.")
    assert "0 at the start" in words["task arithmetic"]
    text = "\n".join(verdict(started))  # type: ignore[arg-type]
    assert "the meta-model is better than the start (68.1 % against 66.1 %)" in text
    assert re.search(r"The merge that λ started from has 66.1 %: learning changed .* \+2.0", text)


def test_without_a_start_there_is_nothing_of_it(result: Result) -> None:
    html = page(result, [])  # type: ignore[arg-type]
    assert "share-" not in html
    assert 'id="shares"' not in html
    assert "where every λ started" in html
    names = [row.name for row in rows_of_table(False)]
    assert names == [row.name for row in rows_of_table(True) if row.name != "start"]
