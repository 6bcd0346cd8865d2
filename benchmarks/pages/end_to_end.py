# SPDX-License-Identifier: Apache-2.0
"""Where whole runs' time goes, and a calibration's at CLIP's sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import origin, percent, table
from benchmarks.pictures import (
    BLUE,
    FAINT,
    GRAY,
    GREEN,
    ORANGE,
    SKY,
    VERMILION,
    heading,
    name_rows,
    new_figure,
    save,
)

PICTURE = "end_to_end.png"
_CASES = {"demo-v1": "demo pool", "real_pool": "real pool",
          "clip8": "counts of CLIP's eight data sets"}  # fmt: skip
# What a run does -> its phases, and a color.
_PARTS = {
    "start": (("start",), GREEN),
    "stage 1": (("stage 1",), BLUE),
    "stage 2": (("stage 2",), SKY),
    "control": (("control",), GRAY),
    "evaluation": (("evaluate",), ORANGE),
    "teachers": (("teachers",), VERMILION),
    "all else": (("plan", "load and pack", "samples", "between"), FAINT),
}


def section(content: Any) -> Iterator[str]:
    """Yields the section of docs/results.md."""
    yield "## Whole runs"
    yield f"![CPU seconds of whole runs by phase](../benchmarks/results/{PICTURE})"
    header = [
        "run", "cache", "wall s", "CPU s", "start and stages, %", "stages alone, %",
        "start, CPU s", "stages, CPU s", "evaluation, CPU s", "images learned", "teachers'",
        "tested", "a test image",
    ]  # fmt: skip
    yield table(header, map(_line, content["results"]), left=2)
    yield (
        "Images that passed a model: with a gradient (learned), the teachers', and in the "
        "evaluation; a test image: how often one did on average, curves included. No run can do "
        "with fewer learned; a default run tests five models, and the start where there is one. "
        "Counts of CLIP's eight data sets: 232,151 training and 87,433 test images of noise and a "
        "toy encoder, whose seconds say nothing. Before: what this did until samples were chosen "
        f"and each model saw each test image once. {origin(content)}"
    )


def _name(row: Mapping[str, Any]) -> str:
    before = ", before" if row["label"] == "before" else ""
    return f"{_CASES.get(row['case'], row['case'])}{before}"


def _sum(row: Mapping[str, Any], key: str, *phases: str) -> float:
    return float(sum(row["phases"].get(name, {}).get(key, 0) for name in phases))


def _line(row: Mapping[str, Any]) -> list[str]:
    seconds = [_sum(row, "cpu_s", *names) for names in (
        ("start",), ("stage 1", "stage 2"), ("evaluate",))]  # fmt: skip
    tested = _sum(row, "seen", "evaluate")
    return [
        _name(row), row["cache"], f"{row['seconds']:.0f}", f"{row['cpu_s']:.0f}",
        percent(row["learning_share"]), percent(seconds[1] / row["cpu_s"]),
        *(f"{one:.0f}" for one in seconds),
        f"{_sum(row, 'learned', *row['phases']):,.0f}", f"{_sum(row, 'seen', 'teachers'):,.0f}",
        f"{tested:,.0f}", f"{tested / row['tests']:.1f}",
    ]  # fmt: skip


def draw(content: Any, path: Path) -> None:
    """Draws a bar a run, in parts by what its CPU time went into."""
    rows = [row for row in content["results"] if row["case"] != "clip8"]
    figure = new_figure(8.2, 0.9 + 0.42 * len(rows))
    axes = figure.subplots()
    for i, row in enumerate(rows):
        left = 0.0
        for part, (phases, color) in _PARTS.items():
            width = _sum(row, "cpu_s", *phases)
            axes.barh(i, width, left=left, color=color, height=0.62, label=part if not i else None)
            left += width
        axes.text(left, i, f"  {left:.0f} s", va="center", fontsize=8)
    name_rows(axes, [f"{_name(row)}, cache {row['cache']}" for row in rows])
    axes.set_xlabel("CPU seconds, one thread")
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=len(_PARTS), fontsize=8)
    heading(figure, "What a run's time goes into")
    save(figure, path)


def calibrations(content: Any) -> str:
    """Returns the block of docs/methods.md on a calibration's cost at CLIP's sizes."""
    phases = list(content["rows"][0]["phases"])
    header = ["model", "tasks", "inputs a task", "CPU s", "products, %", "solves, %", *phases,
              "peak, GB", "plan, GB", "models at peak"]  # fmt: skip
    lines = [
        [
            row["model"], row["tasks"], row["method"]["samples"], f"{row['cpu_seconds']:,.0f}",
            percent(row["products_share"]), percent(row["solves_share"]),
            *(f"{row['phases'].get(name, 0):,.0f}" for name in phases),
            f"{row['peak_bytes'] / 1e9:.2f}", f"{row['forecast_bytes'] / 1e9:.2f}",
            f"{row['peak_bytes'] / row['model_bytes']:.1f}",
        ]
        for row in content["rows"]
    ]  # fmt: skip
    return "\n\n".join([
        table(header, lines),
        "Random weights and inputs; phases in wall seconds; products and solves: share of the time "
        "in matrix products and in factorisations; peak: resident memory beyond the pool; plan: "
        f"what `mdft plan` forecasts. {origin(content)}",
    ])  # fmt: skip
