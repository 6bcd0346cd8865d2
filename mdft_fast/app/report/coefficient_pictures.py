# SPDX-License-Identifier: Apache-2.0
"""Pictures of λ: every coefficient of stage 1, and what each specialized model is mixed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mdft_fast.app.report.schema import Result
from mdft_fast.app.report.style import DIVERGING, GRAY, INK, bare, heading, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def coefficients(result: Result) -> Figure:
    """Draws λ after stage 1, tasks x columns; white is where it started."""
    values = np.array(result["coefficients"]["construct"])
    start = np.unique(np.array(result["coefficients"]["start"]))
    even = start.size == 1
    center = float(f"{start[0]:.7g}") if even else 0.0  # λ is float32: 0.3, not 0.300000012
    (tasks, columns), blocks = values.shape, groups(result["columns"])
    figure = new_figure(
        min(12.0, max(6.6, 4.0 + 0.06 * columns, 2.8 + 0.36 * len(blocks))), 1.9 + 0.3 * tasks
    )
    heading(figure, "λ after stage 1")
    axes = figure.subplots()
    reach = float(np.abs(values - center).max()) or 1.0
    image = axes.imshow(
        values, cmap=DIVERGING, vmin=center - reach, vmax=center + reach, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    bare(axes)
    names = [task["name"] for task in result["pool"]["tasks"]]
    axes.set_yticks(range(len(names)), names)
    _mark_groups(axes, blocks, tasks)
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=14)
    bar.outline.set_visible(False)
    bar.set_label(f"λ, white = {center:g}" + " (the start)" * even)
    return figure


def mixture(result: Result) -> Figure | None:
    """Draws the mean of λ over the columns: a row a specialized model, a column a task vector."""
    found = result["coefficients"]["specialize"]
    if not found:
        return None
    names = [task["name"] for task in result["pool"]["tasks"]]
    rows = {"meta (stage 1)": result["coefficients"]["construct"], **found}
    values = np.array([np.mean(np.array(lambdas), axis=1) for lambdas in rows.values()])
    figure = new_figure(max(6.6, 2.6 + 0.72 * len(names)), 1.9 + 0.36 * len(rows))
    heading(figure, "What each model is mixed from: mean λ of each task vector")
    axes = figure.subplots()
    reach = float(np.abs(values).max()) or 1.0
    axes.imshow(values, cmap=DIVERGING, vmin=-reach, vmax=reach, aspect="auto")
    bare(axes)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xlabel("task vector")
    axes.set_ylabel("model")
    axes.axhline(0.5, color="white", lw=4)
    for (y, x), value in np.ndenumerate(values):
        color = "white" if abs(value) > 0.6 * reach else INK
        axes.text(x, y, f"{value:.2f}".replace("-", "−"), ha="center", va="center", color=color,
                  fontsize=8)  # fmt: skip
    return figure


def groups(columns: list[str]) -> list[tuple[str, int, int]]:
    """Returns (label, first column, one past the last) of each block, as ``stem 0 1 2 tail``."""
    from mdft_fast.model import block_of

    blocks = block_of([f"{name}." for name in columns])
    found: list[tuple[str, int, int]] = []
    for i, name in enumerate(columns):
        block = blocks[f"{name}."]
        label = "all" if columns == ["all"] else block.rpartition(".")[2]
        if found and found[-1][0] == label:
            found[-1] = (label, found[-1][1], i + 1)
        else:
            found.append((label, i, i + 1))
    return found


def _mark_groups(axes: Axes, found: list[tuple[str, int, int]], height: int) -> None:
    middles = [(first + last - 1) / 2 for _, first, last in found]
    labels = [label for label, _, _ in found]
    axes.set_xticks(middles, labels)
    for _, first, _ in found[1:]:
        axes.plot([first - 0.5] * 2, [-0.5, height - 0.5], color=GRAY, lw=0.6)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_xlabel("block")
