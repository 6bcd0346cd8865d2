# SPDX-License-Identifier: Apache-2.0
"""Cost against K and codec, from benchmarks/run.py's scaling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.markdown import origin, table
from benchmarks.pictures import heading, new_figure, save

RIVALS = {"merge": "addmv", "merge_dots": "mv"}


def section(content: Any) -> Iterator[str]:
    """Gives what the operators cost against K."""
    yield "## Cost against K and codec"
    yield "![merge and merge_dots against K](../benchmarks/results/scaling_cpu.png)"
    rows = [
        [row["K"], row["codec"], *(f"{row['ms'][op]:.2f}" for op in RIVALS),
         *(f"{100 * row['share_of_copy'][op]:.0f} %" for op in RIVALS)]
        for row in content["results"]
    ]  # fmt: skip
    header = ["K", "codec", "merge, ms", "merge_dots, ms", "of copy", "of copy"]
    yield table(header, rows, left=2)
    elements = content["results"][0]["elements"] / 1e6
    yield f"One block of ViT-L/14, {elements:.1f} M elements. {origin(content)}"


def draw(content: Any, target: Path) -> None:
    """Writes a PNG: a panel an operator, a line a codec, torch's own way dashed."""
    figure = new_figure(9, 4)
    heading(figure, "Time against the number of task vectors K, one block of ViT-L/14")
    for panel, (op, rival) in enumerate(RIVALS.items()):
        axes = figure.add_subplot(1, 2, panel + 1)
        for codec in dict.fromkeys(row["codec"] for row in content["results"]):
            rows = [row for row in content["results"] if row["codec"] == codec]
            axes.plot([r["K"] for r in rows], [r["ms"][op] for r in rows], "o-", ms=3, label=codec)
        rows = [row for row in content["results"] if rival in row["ms"]]
        axes.plot([r["K"] for r in rows], [r["ms"][rival] for r in rows], "k--", lw=1,
                  label=f"torch.{rival}, fp32")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="K", ylabel="ms", title=op)
        ticks = sorted({row["K"] for row in rows})
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.legend(fontsize=8)
    save(figure, target)
