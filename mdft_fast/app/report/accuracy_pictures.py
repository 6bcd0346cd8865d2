# SPDX-License-Identifier: Apache-2.0
"""Pictures of accuracies: all methods by task, and what stage 2 wins and loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdft_fast.app.report.schema import Method, Result
from mdft_fast.app.report.style import (
    BLUE,
    FAINT,
    GRAY,
    GREEN,
    INK,
    ORANGE,
    VERMILION,
    WINE,
    heading,
    name_rows,
    new_figure,
)
from mdft_fast.app.report.verdict import average, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS: dict[Method, str] = {
    "pretrained": "pre-trained",
    "task_arithmetic": "task arithmetic",
    "meta": "meta (stage 1)",
    "individual": "individual",
    "control": "control (no stage 1)",
    "specialized": "specialized (stage 2)",
}
_MARKS: dict[Method, tuple[str, str, float]] = {  # marker, color, size in points
    "pretrained": ("o", GRAY, 5),
    "task_arithmetic": ("s", ORANGE, 5),
    "meta": ("D", BLUE, 5.5),
    "individual": ("|", INK, 15),
    "control": ("x", WINE, 6),
    "specialized": ("o", VERMILION, 7),
}
Row = tuple[str, dict[Method, float]]


def rows(result: Result) -> list[Row]:
    """Returns each measured task's accuracies, and their averages where a method has them all."""
    accuracy = result["accuracy"]
    found: list[Row] = []
    for task in result["pool"]["tasks"]:
        name = task["name"]
        values = {m: accuracy[m][name] for m in LABELS if name in accuracy.get(m, {})}
        if values:
            found.append((name, values))
    complete = [m for m in LABELS if found and all(m in values for _, values in found)]
    if len(found) > 1:
        found.append(("average", {m: average(v[m] for _, v in found) for m in complete}))
    return found


def accuracy(result: Result) -> Figure | None:
    """Draws every method's accuracy, a row a task."""
    table = rows(result)
    if not table:
        return None
    figure = new_figure(8.6, 1.5 + 0.36 * len(table))
    heading(figure, "Accuracy on each task's own test set")
    axes = figure.subplots()
    for y, (_, values) in enumerate(table):
        axes.plot(
            [100 * min(values.values()), 100 * max(values.values())], [y, y], color=FAINT, lw=4,
            solid_capstyle="round", zorder=1,
        )  # fmt: skip
    used = [m for m in LABELS if any(m in values for _, values in table)]
    for method in used:
        marker, color, size = _MARKS[method]
        where = [(100 * v[method], y) for y, (_, v) in enumerate(table) if method in v]
        x, y_of = zip(*where, strict=True)
        face = "none" if method == "specialized" else color
        axes.plot(x, y_of, marker, color=color, ms=size, mew=1.8, mfc=face, label=LABELS[method],
                  zorder=3)  # fmt: skip
    name_rows(axes, [name for name, _ in table])
    axes.set_xlabel("top-1 accuracy, %")
    figure.legend(loc="outside lower center", ncols=6, columnspacing=1.2, handletextpad=0.3)
    return figure


def gains(result: Result) -> Figure | None:
    """Draws specialized minus individual with its 95 % interval, a row a task."""
    found = compare(result, "specialized", "individual")
    if not found:
        return None
    names = [*found.by_task, "average"] if found.tasks > 1 else list(found.by_task)
    figure = new_figure(8.6, 1.3 + 0.34 * len(names))
    heading(figure, "What stage 2 wins and loses against the individual models")
    axes = figure.subplots()
    axes.axvline(0, color=GRAY, lw=1)
    for y, name in enumerate(names):
        known = result["intervals"].get(name)
        if name == "average" and found.tasks > 1:
            middle, low, high = found.difference, found.low, found.high
        elif known:
            middle, low, high = known["difference"], known["low"], known["high"]
        else:
            middle = low = high = found.by_task[name]
        color = GREEN if low > 0 else VERMILION if high < 0 else GRAY
        axes.plot([100 * low, 100 * high], [y, y], color=color, lw=2.2, solid_capstyle="butt")
        axes.plot(100 * middle, y, "o", color=color, ms=6)
    name_rows(axes, names)
    axes.set_xlabel(
        "points with 95 % interval; green: measurably better, red: measurably worse, gray: neither"
    )
    return figure
