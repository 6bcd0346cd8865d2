# SPDX-License-Identifier: Apache-2.0
"""A run's course in small charts: losses and kept shares of stage 1, the path through stage 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdft_fast.app.report.html.panels import Panel, Series, curves, number
from mdft_fast.app.report.schema import Metric, Result
from mdft_fast.app.report.series import Point, finite, smooth


def section(result: Result, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Returns what the template shows; lists are empty where there is nothing to draw."""
    first = [line for line in metrics if line["stage"] == "construct"]
    names = [task["name"] for task in result["pool"]["tasks"]]
    kept = {name: _column(first, [line["kept"].get(name) for line in first]) for name in names}
    return {
        "steps": len(first),
        "losses": _losses(first, names),
        "all_kept": bool(first) and all(y == 1 for line in kept.values() for _, y in line),
        "kept": [_kept(name, line) for name, line in kept.items() if line],
        "second": [_second(result, name) for name, path in result["specialize"].items() if path],
        "second_losses": _second_losses(metrics, names),
    }


def _column(lines: Sequence[Metric], values: Sequence[float | None]) -> list[Point]:
    return finite([line["step"] for line in lines], values)


def _losses(lines: Sequence[Metric], names: Sequence[str]) -> list[Panel]:
    total = _column(lines, [line["loss"] for line in lines])
    found = [("sum over tasks", total)] if len(names) > 1 else []
    found += [
        (name, _column(lines, [line["losses"].get(name) for line in lines])) for name in names
    ]
    return [_loss(name, points) for name, points in found if points]


def _loss(title: str, points: Sequence[Point]) -> Panel:
    line = smooth(points)
    noisy = line != list(points)
    series = [Series("loss", "raw" if noisy else "blue", points)]
    series += [Series("smoothed", "blue", line)] if noisy else []
    return curves(title, series, _ends(line))


def _ends(points: Sequence[Point], scale: float = 1.0, unit: str = "") -> str:
    first, last = (number(float(f"{scale * y:.3g}")) for _, y in (points[0], points[-1]))
    return f"{first}{unit} → {last}{unit}" if len(points) > 1 else f"{first}{unit}"


def _kept(name: str, points: Sequence[Point]) -> Panel:
    shares = [(x, 100 * y) for x, y in points]
    mean = sum(y for _, y in shares) / len(shares)
    return curves(
        name, [Series("kept, %", "blue", shares)], f"{mean:.0f} % on average", bounds=(0, 100)
    )


def _second(result: Result, name: str) -> Panel:
    """Draws a specialized model's accuracy where it was measured, else λ's distance to e_k."""
    path = result["specialize"][name]
    steps = [point["step"] for point in path]
    target = [(x, 100 * y) for x, y in finite(steps, [p["accuracy"] for p in path])]
    if not target:
        distance = finite(steps, [p["distance"] for p in path])
        return curves(name, [Series("distance to e_k", "blue", distance)], _ends(distance))
    others = [(x, 100 * y) for x, y in finite(steps, [p["others"] for p in path])]
    series = [Series("other tasks, %", "others", others)] if others else []
    series.append(Series("target task, %", "target", target))
    individual = result["accuracy"].get("individual", {}).get(name)
    level = (100 * individual, "level") if individual is not None else None
    return curves(name, series, _ends(target, unit=" %"), level=level)


def _second_losses(metrics: Sequence[Metric], names: Sequence[str]) -> list[Panel]:
    found = []
    for name in names:
        lines = [x for x in metrics if x["stage"] == "specialize" and x["task"] == name]
        points = _column(lines, [line["loss"] for line in lines])
        if points:
            found.append(_loss(name, points))
    return found
