# SPDX-License-Identifier: Apache-2.0
"""What the filter keeps of each task: the teacher's entropy, and the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdft_fast.app.report.html.panels import BOTTOM, LEFT, RIGHT, TOP, Axis, Bar, Panel
from mdft_fast.app.report.schema import Filter, Result


def section(result: Result) -> dict[str, Any]:
    """Returns what the template shows."""
    chosen = result.get("filter")
    return {
        "filter": chosen,
        "panels": [
            _histogram(task["name"], task["entropy"], chosen, task["kept"], task["learn"])
            for task in result["pool"]["tasks"]
            if sum(task.get("entropy", []))
        ],
    }


def _histogram(
    name: str, counts: Sequence[int], chosen: Filter | None, kept: int, learn: int
) -> Panel:
    mu = chosen["mu"] if chosen and chosen["enabled"] else None
    across, up = Axis(0, 1, LEFT, RIGHT), Axis(0, 1.08 * max(counts), BOTTOM, TOP)
    width = 1 / len(counts)
    bars, tips = [], []
    for i, count in enumerate(counts):
        low, high = i * width, (i + 1) * width
        tips.append((across.at((low + high) / 2), f"{low:.3g} to {high:.3g}: {count} samples"))
        for start, end, style in _parts(low, high, mu) if count else ():
            x, y = across.at(start), up.at(count)
            bars.append(Bar(x, y, round(across.at(end) - x, 1), round(BOTTOM - y, 1), style))
    note = f"{kept:,} of {learn:,} kept"
    mark = _mark(chosen, across) if chosen and chosen["mu"] <= 1 else None
    return Panel(name, note, across.ticks(5), up.ticks(3, whole=True), bars=bars, mark=mark,
                 tips=tips)  # fmt: skip


def _mark(chosen: Filter, across: Axis) -> tuple[float, str, str]:
    """Returns the threshold's place, its text, and where the text is anchored."""
    mu, off = chosen["mu"], "" if chosen["enabled"] else ", not applied"
    return across.at(mu), f"μ = {mu:g}{off}", "end" if mu > 0.6 else "start"


def _parts(low: float, high: float, mu: float | None) -> list[tuple[float, float, str]]:
    """Cuts a bin at the threshold: what lies below is kept."""
    if mu is None or high <= mu + 1e-9:
        return [(low, high, "kept")]
    if low >= mu - 1e-9:
        return [(low, high, "removed")]
    return [(low, mu, "kept"), (mu, high, "removed")]
