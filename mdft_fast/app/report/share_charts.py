# SPDX-License-Identifier: Apache-2.0
"""How much of each model each vector is: shares as a map, and block by block as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mdft_fast.app.report.accuracies import Table
from mdft_fast.app.report.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Bar, Panel
from mdft_fast.app.report.colors import RIGHT as SHADES
from mdft_fast.app.report.colors import level
from mdft_fast.app.report.compared_models import label_of
from mdft_fast.app.report.schema import Mixture, Result, vector_names

LABELS = 7  # blocks that are named below a panel, at most
_LEAD = (
    "Share of a vector v: ‖λ_v τ_v‖ over the sum of all vectors' such lengths, in per cent. It is "
    "how far each one moves the weights, not how much it does for accuracy. {start} is a merge of "
    "the same task vectors, so it holds parts of each of them too."
)


def shares_section(result: Result) -> dict[str, Any] | None:
    """Returns what the templates show; None where λ started from no merge."""
    shares, start = result.get("shares"), result["pool"].get("start")
    if not shares or start is None:
        return None
    vectors = vector_names(result)
    models = {label_of("meta"): shares["construct"], **shares["specialize"]}
    rows = [(name, *map(_percent, one["whole"])) for name, one in models.items()]
    blocks = [name.rpartition(".")[2] for name in shares["blocks"]]
    return {
        "title": "What the models are made of",
        "lead": _LEAD.format(start=f"The start, {start!r},"),
        "table": Table(["share, %", *vectors], rows),
        "notes": ["Shares by block are drawn in [report.html](report.html)."],
        "vectors": vectors,
        "lines": [
            (name, [(level(SHADES, share), _percent(share)) for share in one["whole"]])
            for name, one in models.items()
        ],
        "panels": [
            _panel(name, _parts(vectors, name if name in shares["specialize"] else ""), one, blocks)
            for name, one in models.items()
        ],
        "start": start,
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _parts(vectors: Sequence[str], task: str) -> dict[str, list[int]]:
    """Returns style -> numbers of the vectors that are drawn as one: the start comes first."""
    own = [i for i, name in enumerate(vectors) if i and name == task]
    rest = [i for i in range(1, len(vectors)) if i not in own]
    return {"share-start": [0], "share-own": own, "share-others": rest}


def _panel(
    title: str, parts: Mapping[str, Sequence[int]], mixture: Mixture, blocks: Sequence[str]
) -> Panel:
    across, up = Axis(0, len(blocks), LEFT, RIGHT), Axis(0, 100, BOTTOM, TOP)
    gap = 0.08 if len(blocks) <= 40 else 0.0
    bars, tips = [], []
    for i, shares in enumerate(mixture["blocks"]):
        left, right, height, told = across.at(i + gap), across.at(i + 1 - gap), 0.0, []
        for style, numbers in parts.items():
            share = 100 * sum(shares[number] for number in numbers)
            if share > 0:
                top, bottom = up.at(height + share), up.at(height)
                bars.append(Bar(left, top, round(right - left, 1), round(bottom - top, 1), style))
            if numbers:
                told.append(f"{_WORDS[style]} {share:.1f} %")
            height += share
        tips.append((across.at(i + 0.5), f"block {blocks[i]}: {', '.join(told)}"))
    every = -(-len(blocks) // LABELS)
    ticks = [(across.at(i + 0.5), blocks[i]) for i in range(0, len(blocks), every)]
    whole = 100 * mixture["whole"][0]
    return Panel(
        title, f"start {whole:.1f} % of the whole", ticks, up.ticks(4), bars=bars, tips=tips
    )


_WORDS = {"share-start": "start", "share-own": "the task's own vector", "share-others": "others"}
