# SPDX-License-Identifier: Apache-2.0
"""λ as tables that are heat maps: tasks x layers after stage 1, models x tasks by their means."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from mdft_fast.app.report.charts import number
from mdft_fast.app.report.colors import DIVERGING, level
from mdft_fast.app.report.compared_models import COMPARED
from mdft_fast.app.report.schema import Result
from mdft_fast.model import block_of

ACROSS = 880  # pixels that the columns share
NARROW, WIDE = 6, 56  # pixels of a column, least and most
NUMBERED = 44  # pixels that a column needs to show its numbers


def coefficients_section(result: Result) -> dict[str, Any]:
    """Returns what the page shows."""
    matrix, columns = result["coefficients"]["construct"], result["columns"]
    tasks = [task["name"] for task in result["pool"]["tasks"]]
    center, even = _center(result)
    reach = max((abs(v - center) for row in matrix for v in row), default=0.0) or 1.0
    cell = min(WIDE, max(NARROW, ACROSS // len(columns)))
    blocks = column_blocks(columns)
    return {
        "columns": columns,
        "blocks": blocks,
        "firsts": {first for _, first, _ in blocks[1:]},
        "lines": _lines(tasks, matrix, center, reach, 3),
        "width": 130 + cell * len(columns),
        "numbered": cell >= NUMBERED,
        "center": number(center),
        "even": even,
        "means": result["trainable"] > len(matrix) * len(columns),
        "scale": _scale(center, reach),
        "mixture": _mixture(result, tasks),
    }


def column_blocks(columns: list[str]) -> list[tuple[str, int, int]]:
    """Returns (label, first column, one past the last) of each block, as ``stem 0 1 2 tail``."""
    names = block_of([f"{column}." for column in columns])
    blocks: list[tuple[str, int, int]] = []
    for i, column in enumerate(columns):
        label = "all" if columns == ["all"] else names[f"{column}."].rpartition(".")[2]
        first = blocks.pop()[1] if blocks and blocks[-1][0] == label else i
        blocks.append((label, first, i + 1))
    return blocks


def _center(result: Result) -> tuple[float, bool]:
    """Returns the value that has no color, and whether it is where all of λ started."""
    start = result["coefficients"]["start"]
    values = {start} if isinstance(start, (int, float)) else {v for row in start for v in row}
    if len(values) != 1:
        return 0.0, False
    return float(f"{values.pop():.7g}"), True  # λ is float32: 0.3, not 0.300000012


def _lines(
    names: Sequence[str],
    matrix: Sequence[Sequence[float]],
    center: float,
    reach: float,
    digits: int,
) -> list[tuple[str, list[tuple[str, str]]]]:
    def cell(value: float) -> tuple[str, str]:
        share = 0.5 + 0.5 * (value - center) / reach
        text = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero
        return level(DIVERGING, share), text.replace("-", "\N{MINUS SIGN}")

    return [(name, [cell(v) for v in row]) for name, row in zip(names, matrix, strict=True)]


def _scale(center: float, reach: float) -> list[tuple[str, str]]:
    """Returns class and text of the legend's fields, from the lowest value to the highest."""
    fields = []
    for i in range(9):
        text = f"{center + (i / 4 - 1) * reach:.2f}" if i % 2 == 0 else ""
        fields.append((level(DIVERGING, i / 8), text.replace("-", "\N{MINUS SIGN}")))
    return fields


def _mixture(result: Result, tasks: Sequence[str]) -> dict[str, Any] | None:
    specialized = result["coefficients"]["specialize"]
    if not specialized:
        return None
    (meta,) = (model.label for model in COMPARED if model.name == "meta")
    models = {meta: result["coefficients"]["construct"], **specialized}
    means = [[fmean(row) for row in matrix] for matrix in models.values()]
    reach = max(abs(v) for row in means for v in row) or 1.0
    return {"tasks": tasks, "lines": _lines(list(models), means, 0.0, reach, 2)}
