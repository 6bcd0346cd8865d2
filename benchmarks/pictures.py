# SPDX-License-Identifier: Apache-2.0
"""One style for all pictures of benchmarks, drawn without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdft_fast.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart by all common kinds of color vision; Wong, Nature Methods 2011.
INK, GRAY, FAINT = "#222222", "#767676", "#d9d9d9"
BLUE, SKY, GREEN = "#0072b2", "#56b4e9", "#009e73"
ORANGE, VERMILION, WINE = "#e69f00", "#d55e00", "#882255"  # WINE: Tol's, darker than theirs

DPI = 130
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, in inches; nothing of it is registered anywhere."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def bare(axes: Axes) -> None:
    """Takes grid and frame off, for heat maps."""
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names a row each, from the top; a last one named "average" is set apart."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if names[-1] == "average":
        axes.axhline(len(names) - 1.5, color=FAINT, lw=1)
        axes.get_yticklabels()[-1].set_fontweight("bold")


def heading(figure: Figure, text: str) -> None:
    """Writes what a picture shows above it."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold")


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG that appears whole or not at all; equal figures give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
