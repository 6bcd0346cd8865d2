# SPDX-License-Identifier: Apache-2.0
"""Small charts: numbers in, coordinates out. The template draws them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, TypeVar

WIDTH, HEIGHT = 280, 158
LEFT, RIGHT, TOP, BOTTOM = 40, 266, 10, 132  # edges of the plot inside the panel
DRAWN = 300  # points of a line; more would be closer than a pixel
TOLD = 120  # places of a panel that tell their values

Point = tuple[float, float]
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
    """A chart; places are coordinates inside it."""

    title: str
    note: str  # below the title, in words
    x: Sequence[Tick]
    y: Sequence[Tick]
    lines: Sequence[tuple[str, str]] = ()  # path data and class
    bars: Sequence[Bar] = ()
    mark: tuple[float, str, str] | None = None  # vertical line: x, text, side the text is on
    tips: Sequence[Tick] = ()  # x and what is told there


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
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
        step = power * next((f for f in factors if f * power >= rough), 20)
        step = max(1.0, step) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{i * step:.12g}") for i in range(first, last + 1)]

    def ticks(self, count: int, *, whole: bool = False) -> list[Tick]:
        """Returns places and texts of :meth:`values`."""
        return [(self.at(value), number(value)) for value in self.values(count, whole=whole)]


def finite(x: Sequence[float], y: Sequence[float | None]) -> list[Point]:
    """Returns the points that can be drawn."""
    return [(a, b) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Returns running means over a tenth of the points; a short series as it is."""
    half = len(points) // 20
    windows = (points[max(0, i - half) : i + half + 1] for i in range(len(points)))
    means = (fmean(y for _, y in window) for window in windows)
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


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
