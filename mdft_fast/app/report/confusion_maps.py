# SPDX-License-Identifier: Apache-2.0
"""What the meta-model takes for what: a matrix of few classes, pairs and a map of many."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mdft_fast.app.report.colors import RIGHT, WRONG, level
from mdft_fast.app.report.schema import Confusion, Result
from mdft_fast.errors import MdftError

MATRIX = 24  # classes that a matrix with numbers can hold
MAP = 50  # rows of the map of more classes; neighbours share one
PAIRS = 10  # of each list
Key = tuple[int, int]


def confusion_section(result: Result) -> list[dict[str, Any]]:
    """Returns what the page shows, a task an item.

    Raises:
        MdftError: if the counts do not fit the classes.
    """
    confusion = result.get("confusion", {})
    names = [task["name"] for task in result["pool"]["tasks"]]
    return [_task(name, confusion[name]) for name in names if name in confusion]


def _task(name: str, confusion: Confusion) -> dict[str, Any]:
    counts, classes = _counts(name, confusion), confusion["classes"]
    totals: Counter[int] = Counter()
    for (true, _), count in counts.items():
        totals[true] += count
    wrong = {key: count for key, count in counts.items() if key[0] != key[1]}
    pairs = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    # class -> right ones, all
    hits = [(name, counts.get((i, i), 0), totals[i]) for i, name in enumerate(classes) if totals[i]]
    small = len(classes) <= MATRIX
    return {
        "name": name,
        "classes": classes,
        "samples": sum(totals.values()),
        "right": sum(right for _, right, _ in hits),
        "pairs": [
            (classes[true], classes[predicted], count, totals[true])
            for (true, predicted), count in pairs[:PAIRS]
        ],
        "more": max(0, len(pairs) - PAIRS),
        "worst": sorted(hits, key=lambda hit: (hit[1] / hit[2], -hit[2]))[:PAIRS],
        "never": sum(right == 0 for _, right, _ in hits),
        "median": statistics.median(right / total for _, right, total in hits) if hits else 0.0,
        "tested": len(hits),
        "matrix": _matrix(classes, counts, totals) if small else None,
        "map": None if small else _map(classes, counts),
    }


def _counts(name: str, confusion: Confusion) -> dict[Key, int]:
    true, predicted, counts = confusion["true"], confusion["predicted"], confusion["count"]
    size, where = len(confusion["classes"]), f"result.json: confusion.{name}"
    if not len(true) == len(predicted) == len(counts):
        raise MdftError(
            f"{where}: true, predicted and count must be equally long, got {len(true)}, "
            f"{len(predicted)} and {len(counts)}"
        )
    outside = [index for index in (*true, *predicted) if not 0 <= index < size]
    if outside:
        raise MdftError(f"{where}: classes must lie in [0, {size}), got {outside[0]}")
    if any(count < 1 for count in counts):
        raise MdftError(f"{where}: counts must be at least 1")
    return dict(zip(zip(true, predicted, strict=True), counts, strict=True))


def _matrix(
    classes: Sequence[str], counts: dict[Key, int], totals: Counter[int]
) -> list[tuple[str, list[tuple[str, int]]]]:
    def cell(true: int, predicted: int) -> tuple[str, int]:
        count = counts.get((true, predicted), 0)
        scale = RIGHT if true == predicted else WRONG
        return level(scale, count / totals[true] if count else 0.0), count

    size = range(len(classes))
    return [(classes[true], [cell(true, predicted) for predicted in size]) for true in size]


def _map(classes: Sequence[str], counts: dict[Key, int]) -> dict[str, Any]:
    """Returns fields of the map: x, y, class of the color, words. Empty fields are left out."""
    wide = -(-len(classes) // MAP)
    size = -(-len(classes) // wide)
    fields: Counter[Key] = Counter()
    rows: Counter[int] = Counter()
    for (true, predicted), count in counts.items():
        fields[true // wide, predicted // wide] += count
        rows[true // wide] += count

    def name(field: int) -> str:
        first, last = field * wide, min((field + 1) * wide, len(classes)) - 1
        return classes[first] if first == last else f"{classes[first]} … {classes[last]}"

    cells = [
        (x, y, level(RIGHT if x == y else WRONG, 0.15 + 0.85 * count / rows[y]),
         f"{name(y)} → {name(x)}: {count} of {rows[y]}")
        for (y, x), count in sorted(fields.items())
    ]  # fmt: skip
    return {"size": size, "wide": wide, "cells": cells}
