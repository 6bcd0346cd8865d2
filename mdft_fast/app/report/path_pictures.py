# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run's course: losses of stage 1, the path through stage 2, time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mdft_fast.app.report.schema import Metric, Result, SpecializePoint
from mdft_fast.app.report.series import finite, smooth
from mdft_fast.app.report.style import (
    BLUE,
    FAINT,
    GRAY,
    INK,
    ORANGE,
    VERMILION,
    heading,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def losses(metrics: Sequence[Metric], result: Result) -> Figure | None:
    """Draws stage 1's loss by step: the sum, then each task's share."""
    steps = [line for line in metrics if line["stage"] == "construct"]
    if not steps:
        return None
    known = {name for line in steps for name in line["losses"]}
    names = [task["name"] for task in result["pool"]["tasks"] if task["name"] in known]
    figure, panels = _panels(len(names) + 1)
    heading(figure, "Stage 1: loss by step (faint), smoothed (line)")
    x = [line["step"] for line in steps]
    _curve(panels[0], x, [line["loss"] for line in steps], INK)
    panels[0].set_title("sum over tasks", fontweight="bold")
    for axes, name in zip(panels[1:], names, strict=True):
        _curve(axes, x, [line["losses"].get(name) for line in steps], BLUE)
        axes.set_title(name)
    return figure


def accuracy_path(result: Result) -> Figure | None:
    """Draws the accuracy over stage 2's steps: on the target, on the others, the individual's."""
    paths = {
        name: path
        for name, path in result["specialize"].items()
        if any(point["accuracy"] is not None for point in path)
    }
    if not paths:
        return None
    figure, panels = _panels(len(paths), legend=True)
    heading(figure, "Stage 2: accuracy by step, %")
    for axes, (name, path) in zip(panels, paths.items(), strict=True):
        individual = result["accuracy"].get("individual", {}).get(name)
        if individual is not None:
            axes.axhline(100 * individual, color=INK, lw=1.1, ls=(0, (4, 2)),
                         label="individual model")  # fmt: skip
        _path(axes, path, "others", ORANGE, "mean of the other tasks", 1.1)
        _path(axes, path, "accuracy", VERMILION, "target task", 1.8)
        axes.set_title(name)
        _whole_steps(axes, path[-1]["step"])
    _shared_legend(figure, panels)
    return figure


def distance_path(result: Result) -> Figure | None:
    """Draws how far λ still is from the individual model's, e_k, over stage 2's steps."""
    paths = {name: path for name, path in result["specialize"].items() if path}
    if not paths:
        return None
    figure, panels = _panels(len(paths))
    heading(figure, "Stage 2: distance of λ to the individual model's (L2 of λ − e_k)")
    top = max(point["distance"] for path in paths.values() for point in path)
    for axes, (name, path) in zip(panels, paths.items(), strict=True):
        _path(axes, path, "distance", BLUE, "", 1.8, 1.0)
        axes.set_title(name)
        axes.set_ylim(0, 1.08 * top or 1)
        _whole_steps(axes, path[-1]["step"])
    return figure


def phases(result: Result) -> Figure | None:
    """Draws time and peak memory of each phase as bars."""
    found = result["phases"]
    if not found:
        return None
    figure = new_figure(8.6, 1.3 + 0.3 * len(found))
    heading(figure, "Where the time and the memory went")
    memory = any(phase["peak_mb"] is not None for phase in found)
    panels = figure.subplots(1, 1 + memory, sharey=True, squeeze=False)[0]
    _bars(panels[0], [phase["seconds"] for phase in found], "seconds")
    if memory:
        _bars(panels[1], [phase["peak_mb"] for phase in found], "peak memory, MB")
    panels[0].set_yticks(range(len(found)), [phase["name"] for phase in found])
    panels[0].invert_yaxis()
    return figure


def _panels(count: int, *, legend: bool = False) -> tuple[Figure, list[Axes]]:
    across = min(4, count) if count != 9 else 3
    down = math.ceil(count / across)
    figure = new_figure(max(6.6, 2.35 * across), 0.6 + 1.65 * down + 0.3 * legend)
    grid = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for empty in grid[count:]:
        empty.remove()
    for axes in grid[max(0, count - across) : count]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    return figure, list(grid[:count])


def _curve(axes: Axes, x: list[int], y: Sequence[float | None], color: str) -> None:
    points = finite(x, y)
    if not points:
        axes.text(0.5, 0.5, "nothing kept", transform=axes.transAxes, ha="center", color=GRAY)
        return
    axes.plot(*zip(*points, strict=True), color=color, lw=0.8, alpha=0.3)
    axes.plot(*zip(*smooth(points), strict=True), color=color)


def _path(
    axes: Axes,
    path: Sequence[SpecializePoint],
    key: str,
    color: str,
    label: str,
    width: float,
    scale: float = 100.0,
) -> None:
    lines: list[Any] = [(p["step"], p.get(key)) for p in path if p.get(key) is not None]
    if lines:
        x, y = zip(*lines, strict=True)
        mark = "o" if len(lines) < 8 else None
        style = ":" if len(lines) == 2 and lines[1][0] > 1 else "-"  # nothing known in between
        axes.plot(
            x,
            [scale * value for value in y],
            color=color,
            lw=width,
            ls=style,
            marker=mark,
            ms=3,
            label=label,
        )


def _whole_steps(axes: Axes, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlim(0, max(last, 1))


def _shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    entries = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3)


def _bars(axes: Axes, values: Sequence[float | None], label: str) -> None:
    top = max(value or 0.0 for value in values) or 1.0
    axes.barh(range(len(values)), [value or 0.0 for value in values], color=BLUE, height=0.62)
    for y, value in enumerate(values):
        if value is None:
            text, color = "not measured", GRAY
        else:
            text, color = f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}", INK
        x = (value or 0.0) + 0.015 * top
        axes.text(x, y, text, va="center", fontsize=8, color=color)
    axes.set_xlim(0, 1.18 * top)
    axes.set_xlabel(label)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_color(FAINT)
