# SPDX-License-Identifier: Apache-2.0
"""λ as tables that are heat maps: tasks x layers after stage 1, models x tasks by their means."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from mdft_fast.app.report.charts import number
from mdft_fast.app.report.colors import DIVERGING, level
from mdft_fast.app.report.compared_models import label_of
from mdft_fast.app.report.schema import Result, vector_names
from mdft_fast.model import block_of

ACROSS = 880  # pixels that the columns share
NARROW, WIDE = 6, 56  # pixels of a column, least and most
NUMBERED = 44  # pixels that a column needs to show its numbers


def coefficients_section(result: Result) -> dict[str, Any]:
    """Returns what the page shows."""
    matrix, columns = result["coefficients"]["construct"], result["columns"]
    vectors = vector_names(result)
    centers, note = _centers(result)
    away = (abs(v - c) for row, c in zip(matrix, centers, strict=True) for v in row)
    reach = max(away, default=0.0) or 1.0
    cell = min(WIDE, max(NARROW, ACROSS // len(columns)))
    blocks = column_blocks(columns)
    return {
        "columns": columns,
        "blocks": blocks,
        "firsts": {first for _, first, _ in blocks[1:]},
        "row": "vector" if "start" in result["pool"] else "task",
        "lines": _lines(vectors, matrix, centers, reach, 3),
        "width": 130 + cell * len(columns),
        "numbered": cell >= NUMBERED,
        "note": note,
        "means": result["trainable"] > len(matrix) * len(columns),
        "scale": _scale(centers[0] if len(set(centers)) == 1 else 0.0, reach),
        "mixture": _mixture(result, vectors),
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


def _centers(result: Result) -> tuple[list[float], str]:
    """Returns the value that has no color in each row of λ, and what is said of it."""
    start, vectors = result["coefficients"]["start"], vector_names(result)
    rows = [[start]] * len(vectors) if isinstance(start, (int, float)) else start
    # λ is float32: 0.3, not 0.300000012
    began = [{float(f"{value:.7g}") for value in row} for row in rows]
    even = {value for row in began for value in row}
    if len(even) == 1:
        (center,) = even
        return [center] * len(vectors), f"{number(center)}, where every λ started"
    if "start" in result["pool"] and all(len(row) == 1 for row in began):
        centers = [row.pop() for row in began]
        rest = " and ".join(sorted({number(center) for center in centers[1:]}))
        where = f"{number(centers[0])} at {vectors[0]}, {rest} at the tasks"
        return centers, f"where λ started, {where}; the scale is the way from there"
    return [0.0] * len(vectors), "0, no part of that task vector"


def _lines(
    names: Sequence[str],
    matrix: Sequence[Sequence[float]],
    centers: Sequence[float],
    reach: float,
    digits: int,
) -> list[tuple[str, list[tuple[str, str]]]]:
    def cell(value: float, center: float) -> tuple[str, str]:
        share = 0.5 + 0.5 * (value - center) / reach
        text = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero
        return level(DIVERGING, share), text.replace("-", "\N{MINUS SIGN}")

    rows = zip(names, matrix, centers, strict=True)
    return [(name, [cell(v, center) for v in row]) for name, row, center in rows]


def _scale(center: float, reach: float) -> list[tuple[str, str]]:
    """Returns class and text of the legend's fields, from the lowest value to the highest."""
    fields = []
    for i in range(9):
        text = f"{center + (i / 4 - 1) * reach:.2f}" if i % 2 == 0 else ""
        fields.append((level(DIVERGING, i / 8), text.replace("-", "\N{MINUS SIGN}")))
    return fields


def _mixture(result: Result, vectors: Sequence[str]) -> dict[str, Any] | None:
    specialized = result["coefficients"]["specialize"]
    if not specialized:
        return None
    models = {label_of("meta"): result["coefficients"]["construct"], **specialized}
    means = [[fmean(row) for row in matrix] for matrix in models.values()]
    reach = max(abs(v) for row in means for v in row) or 1.0
    lines = _lines(list(models), means, [0.0] * len(models), reach, 2)
    return {"vectors": vectors, "lines": lines}
