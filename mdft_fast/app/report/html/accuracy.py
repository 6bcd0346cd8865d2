# SPDX-License-Identifier: Apache-2.0
"""Accuracy by task and method with intervals, and what stage 2 wins and loses."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mdft_fast.app.report.accuracy_pictures import LABELS, rows
from mdft_fast.app.report.html.panels import Axis
from mdft_fast.app.report.schema import Method, Result
from mdft_fast.app.report.verdict import Z, compare, points


class Share(NamedTuple):
    """An accuracy and its 95 % interval, from 0 to 1."""

    value: float
    low: float
    high: float


def section(result: Result) -> dict[str, Any] | None:
    """Returns what the template shows; None where nothing was measured."""
    lines = _shares(result)
    if not lines:
        return None
    used = [m for m in LABELS if any(m in shares for _, shares in lines)]
    every = [share for _, shares in lines for share in shares.values()]
    axis = Axis(min(s.low for s in every), max(s.high for s in every), 2, 98)
    return {
        "methods": [(method, LABELS[method]) for method in used],
        "lines": [(name, _placed(shares, axis)) for name, shares in lines],
        "ticks": [(axis.at(value), f"{100 * value:.0f}") for value in axis.values(5)],
        "partial": any(name != "average" and len(s) < len(used) for name, s in lines),
        "gains": _gains(result),
    }


def wilson(share: float, count: int) -> Share:
    """Returns Wilson's 95 % interval of a share of ``count`` samples (JASA 22, 1927)."""
    if count == 0:
        return Share(share, share, share)
    middle = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
    scale = 1 + Z * Z / count
    # Round-off must not put the share itself outside.
    return Share(share, min(share, (middle - half) / scale), max(share, (middle + half) / scale))


def _shares(result: Result) -> list[tuple[str, dict[Method, Share]]]:
    tests = {task["name"]: task["test"] for task in result["pool"]["tasks"]}
    found: list[tuple[str, dict[Method, Share]]] = []
    for name, values in rows(result):
        if name in tests:
            found.append((name, {m: wilson(v, tests[name]) for m, v in values.items()}))
        else:
            found.append((name, {m: _average([s[m] for _, s in found]) for m in values}))
    return found


def _average(shares: list[Share]) -> Share:
    """Returns the mean; test sets are independent, so their variances add, each side apart."""
    mean = math.fsum(s.value for s in shares) / len(shares)
    below = math.hypot(*(s.value - s.low for s in shares)) / len(shares)
    above = math.hypot(*(s.high - s.value for s in shares)) / len(shares)
    return Share(mean, mean - below, mean + above)


def _placed(shares: dict[Method, Share], axis: Axis) -> dict[Method, tuple[Share, Share]]:
    return {m: (s, Share(*(axis.at(value) for value in s))) for m, s in shares.items()}


def _gains(result: Result) -> dict[str, Any] | None:
    """Returns specialized minus individual, a row a task: places in per cent of the width."""
    found = compare(result, "specialized", "individual")
    if not found:
        return None
    body = []
    for name, difference in found.by_task.items():
        known = result["intervals"].get(name)
        body.append((name, difference, (known["low"], known["high"]) if known else None))
    if found.tasks > 1:
        body.append(("average", found.difference, (found.low, found.high)))
    reach = max(abs(v) for _, d, ends in body for v in (d, *(ends or ()))) or 0.01
    axis = Axis(-reach, reach, 2, 98)
    return {
        "zero": axis.at(0),
        "ticks": [(axis.at(value), points(value)) for value in axis.values(4)],
        "lines": [_gain(name, difference, ends, axis) for name, difference, ends in body],
    }


def _gain(
    name: str, difference: float, ends: tuple[float, float] | None, axis: Axis
) -> dict[str, Any]:
    low, high = ends or (difference, difference)
    sign = (low > 0) - (high < 0) if ends else 0
    return {
        "name": name,
        "points": points(difference),
        "ends": f"{points(low)} to {points(high)}" if ends else "",
        "words": {1: "better", 0: "neither" if ends else "no interval", -1: "worse"}[sign],
        "at": axis.at(difference),
        "from": axis.at(low),
        "to": axis.at(high),
    }
