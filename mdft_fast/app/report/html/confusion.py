# SPDX-License-Identifier: Apache-2.0
"""What the meta-model takes for what: a matrix of few classes, pairs and a map of many."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from mdft_fast.app.report.html.colors import RIGHT, WRONG, level
from mdft_fast.app.report.schema import Confusion, Result
from mdft_fast.errors import MdftError

MATRIX = 24  # classes that a matrix with numbers can hold
MAP = 50  # rows of the map of more classes; neighbours share one
PAIRS = 10  # of each list
Key = tuple[int, int]


class Pair(NamedTuple):
    """A class taken for another: names, how often, out of how many."""

    true: str
    predicted: str
    samples: int
    total: int


class Hit(NamedTuple):
    """A class: name, how many of its samples are right, out of how many."""

    name: str
    right: int
    total: int


def section(result: Result) -> list[dict[str, Any]]:
    """Returns what the template shows, a task an item.

    Raises:
        MdftError: if the counts do not fit the classes.
    """
    found = result.get("confusion", {})
    names = [task["name"] for task in result["pool"]["tasks"] if task["name"] in found]
    return [_task(name, found[name]) for name in names]


def _task(name: str, given: Confusion) -> dict[str, Any]:
    counts, classes = _counts(name, given), given["classes"]
    totals: Counter[int] = Counter()
    for (true, _), count in counts.items():
        totals[true] += count
    wrong = {key: count for key, count in counts.items() if key[0] != key[1]}
    pairs = [
        Pair(classes[true], classes[said], count, totals[true])
        for (true, said), count in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    ]
    hits = [Hit(classes[i], counts.get((i, i), 0), totals[i]) for i in sorted(totals)]
    small = len(classes) <= MATRIX
    return {
        "name": name,
        "classes": classes,
        "samples": sum(totals.values()),
        "right": sum(hit.right for hit in hits),
        "pairs": pairs[:PAIRS],
        "more": max(0, len(pairs) - PAIRS),
        "worst": sorted(hits, key=lambda hit: (hit.right / hit.total, -hit.total))[:PAIRS],
        "never": sum(hit.right == 0 for hit in hits),
        "median": statistics.median(hit.right / hit.total for hit in hits) if hits else 0.0,
        "tested": len(hits),
        "matrix": _matrix(classes, counts, totals) if small else None,
        "map": None if small else _map(classes, counts),
    }


def _counts(name: str, given: Confusion) -> dict[Key, int]:
    true, said, counts = given["true"], given["predicted"], given["count"]
    size = len(given["classes"])
    if not len(true) == len(said) == len(counts):
        raise MdftError(
            f"result.json: confusion.{name}: true, predicted and count must be equally long, got "
            f"{len(true)}, {len(said)} and {len(counts)}"
        )
    for index in (*true, *said):
        if not 0 <= index < size:
            raise MdftError(
                f"result.json: confusion.{name}: classes must lie in [0, {size}), got {index}"
            )
    if any(count < 1 for count in counts):
        raise MdftError(f"result.json: confusion.{name}: counts must be at least 1")
    return dict(zip(zip(true, said, strict=True), counts, strict=True))


def _matrix(
    classes: Sequence[str], counts: dict[Key, int], totals: Counter[int]
) -> list[tuple[str, list[tuple[str, int]]]]:
    def cell(true: int, said: int) -> tuple[str, int]:
        count = counts.get((true, said), 0)
        scale = RIGHT if true == said else WRONG
        return level(scale, count / totals[true] if count else 0.0), count

    size = range(len(classes))
    return [(classes[true], [cell(true, said) for said in size]) for true in size]


def _map(classes: Sequence[str], counts: dict[Key, int]) -> dict[str, Any]:
    """Returns fields of the map: x, y, class of the color, words. Empty fields are left out."""
    wide = -(-len(classes) // MAP)
    size = -(-len(classes) // wide)
    fields: Counter[Key] = Counter()
    rows: Counter[int] = Counter()
    for (true, said), count in counts.items():
        fields[true // wide, said // wide] += count
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
