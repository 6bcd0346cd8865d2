# SPDX-License-Identifier: Apache-2.0
"""Draws what ``run.py scaling`` measured.

python benchmarks/plot_scaling.py benchmarks/results/scaling_cpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.pictures import heading, new_figure, save

OPERATORS = {"merge": "addmv", "merge_dots": "mv"}


def draw(content: dict[str, Any], target: Path) -> None:
    """Writes a PNG: a panel an operator, a line a codec, torch's own way dashed."""
    figure = new_figure(9, 4)
    heading(figure, "Time against the number of task vectors K, one block of ViT-L/14")
    for place, (name, rival) in enumerate(OPERATORS.items()):
        axes = figure.add_subplot(1, 2, place + 1)
        codecs = dict.fromkeys(row["codec"] for row in content["results"])
        for codec in codecs:
            rows = [row for row in content["results"] if row["codec"] == codec]
            axes.plot(
                [r["K"] for r in rows], [r["ms"][name] for r in rows], "o-", ms=3, label=codec
            )
        rows = [row for row in content["results"] if rival in row["ms"]]
        axes.plot([r["K"] for r in rows], [r["ms"][rival] for r in rows], "k--", lw=1,
                  label=f"torch.{rival}, fp32")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="K", ylabel="ms", title=name)
        ticks = sorted({row["K"] for row in rows})
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.legend(fontsize=8)
    save(figure, target)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
