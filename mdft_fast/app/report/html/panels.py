# SPDX-License-Identifier: Apache-2.0
"""Small charts: numbers in, coordinates out. The template draws them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from mdft_fast.app.report.series import Point

WIDTH, HEIGHT = 280, 158
LEFT, RIGHT, TOP, BOTTOM = 40, 266, 10, 132  # edges of the plot inside the panel
DRAWN = 300  # points of a line; more would be closer than a pixel
TOLD = 120  # places of a panel that tell their values

Tick = tuple[float, str]
T = TypeVar("T")


class Series(NamedTuple):
    """A line: name (empty: not told on hover), class of its color and stroke, points."""

    name: str
    style: str
    points: Sequence[Point]


class Bar(NamedTuple):
    """A rectangle in the panel's coordinates, and the class of its color."""

    x: float
    y: float
    width: float
    height: float
    style: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart.

    Attributes:
        title: above it.
        note: below it, in words.
        x: ticks along the bottom, y: along the side; place and text.
        lines: path data and class.
        bars: of a histogram.
        mark: x of a vertical line, its text, and which side of it the text stands on.
        tips: x and what is told there.
    """

    title: str
    note: str
    x: Sequence[Tick]
    y: Sequence[Tick]
    lines: Sequence[tuple[str, str]] = ()
    bars: Sequence[Bar] = ()
    mark: tuple[float, str, str] | None = None
    tips: Sequence[Tick] = ()


class Axis:
    """Maps values to places, with round numbers for ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        self.low, self.high, self.start, self.end = low, high, start, end

    def at(self, value: float) -> float:
        """Returns the place of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def values(self, count: int, *, whole: bool = False) -> list[float]:
        """Returns at most ``count`` + 1 round values in the range."""
        from matplotlib.ticker import MaxNLocator

        values = MaxNLocator(count, integer=whole).tick_values(self.low, self.high)
        return [float(v) for v in values if self.low - 1e-9 <= v <= self.high + 1e-9]

    def ticks(self, count: int, *, whole: bool = False) -> list[Tick]:
        """Returns places and texts of :meth:`values`."""
        return [(self.at(value), number(value)) for value in self.values(count, whole=whole)]


def number(value: float) -> str:
    """Returns a tick's text."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 9):g}"
    return text.replace("-", "\N{MINUS SIGN}")


def curves(
    title: str,
    series: Sequence[Series],
    note: str = "",
    *,
    bounds: tuple[float, float] | None = None,
    level: tuple[float, str] | None = None,
) -> Panel:
    """Draws lines over steps.

    Args:
        title: of the panel.
        series: what is drawn, in this order; at least one point.
        note: the panel in words.
        bounds: of the values; None: theirs.
        level: value and class of a level line.
    """
    x = [a for line in series for a, _ in line.points]
    y = [b for line in series for _, b in line.points] + ([level[0]] if level else [])
    low, high = bounds or (min(y), max(y))
    space = 0 if bounds else 0.06 * (high - low)
    across = Axis(min(0.0, *x), max(x), LEFT, RIGHT)
    up = Axis(low - space, high + space, BOTTOM, TOP)
    lines = [(_path(line.points, across, up), line.style) for line in series]
    if level:
        lines.append((f"M{LEFT} {up.at(level[0])}H{RIGHT}", level[1]))
    ticks = across.ticks(4, whole=True)
    return Panel(title, note, ticks, up.ticks(4), lines=lines, tips=_tips(series, across))


def _path(points: Sequence[Point], across: Axis, up: Axis) -> str:
    kept = [*_thin(points, DRAWN), points[-1]]
    places = [f"{across.at(x):g} {up.at(y):g}" for x, y in kept]
    return "M" + "L".join(places)


def _tips(series: Sequence[Series], across: Axis) -> list[Tick]:
    told: dict[float, list[str]] = {}
    for line in series:
        for x, y in line.points if line.name else ():
            told.setdefault(x, []).append(f"{line.name} {number(float(f'{y:.4g}'))}")
    places = _thin(sorted(told.items()), TOLD)
    return [(across.at(x), f"step {x:g}: {', '.join(words)}") for x, words in places]


def _thin(items: Sequence[T], most: int) -> Sequence[T]:
    return items[:: -(-len(items) // most)]
