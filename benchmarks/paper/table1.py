# SPDX-License-Identifier: Apache-2.0
"""Table 1: how well entropy stands for the true loss, and what minimizing it alone costs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from benchmarks.markdown import mean, number, percent, table
from benchmarks.paper.analysis import accuracy_drop, entropy_and_loss, spearman
from benchmarks.paper.form import Item, Results
from benchmarks.paper.published import TABLE1
from benchmarks.paper.study import TASK_ARITHMETIC, Study, accuracy
from benchmarks.pictures import BLUE, GRAY, ORANGE, VERMILION, heading, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Table 1: entropy and true loss; plain entropy minimization"
PRESETS = {"layer-wise": "adamerging", "task-wise": "entropy"}


def measure(study: Study, options: argparse.Namespace) -> Results:
    """Measures both. Spearman's ρ is over a task's test samples, so labels are read."""
    meta = study.meta()
    individual = accuracy(study.individual())
    minimized = {}
    for name, preset in PRESETS.items():
        recipe = study.load(f"preset={preset}")
        ends = [study.first(seed, f"preset={preset}")[-1] for seed in study.seeds]
        minimized[name] = [accuracy(study.correct(end, recipe)) for end in ends]
    tasks = {}
    for test in study.tests:
        name = test.task.name
        rho = {}
        for model, at in (("start", TASK_ARITHMETIC), ("individual", meta.individual(name))):
            with meta.using(at):
                rho[model] = spearman(*entropy_and_loss(meta, name, test.samples, test.labels))
        drops = {}
        for way, runs in minimized.items():
            after = mean([run[name] for run in runs])
            drops[way] = {"after": after, **accuracy_drop(individual[name], after)._asdict()}
        tasks[name] = {"classes": test.task.head.classes, "test": len(test.samples),
                       "spearman": rho, "individual": individual[name], "drop": drops}  # fmt: skip
    return {"tasks": tasks}


def markdown(results: Results) -> str:
    """Shows a row a task, and the paper's rows."""
    header = ["task", "classes", "ρ, λ = 0.3", "ρ, individual", "individual, %"]
    for way in PRESETS:
        header += [f"{way}, %", "points", "relative, %"]
    rows: list[list[object]] = []
    for name, one in results["tasks"].items():
        cells: list[object] = [name, one["classes"]]
        cells += [number(one["spearman"][model]) for model in ("start", "individual")]
        cells.append(percent(one["individual"]))
        for drop in one["drop"].values():
            cells += [percent(drop[key]) for key in ("after", "points", "relative")]
        rows.append(cells)
    theirs = table(
        ["the paper's task", "ρ", "drop"],
        [[name, f"{rho:.2f}", f"{drop:.1f}"] for name, (rho, drop) in TABLE1.items()],
    )
    return "\n\n".join([
        table(header, rows),
        "ρ: Spearman's rank correlation of entropy and cross-entropy to the label over the test "
        "samples, of the meta-model at its start (λ = 0.3 everywhere) and of the individual model. "
        "Drop: from the individual model to the meta-model that minimized entropy alone, as the "
        "presets `adamerging` (layer-wise λ) and `entropy` (task-wise) do, mean over seeds; "
        "negative where it gained.",
        theirs,
        "The paper does not say which model's entropy it means, nor whether its drop is in points "
        "or relative: so both stand here.",
    ])  # fmt: skip


def draw(results: Results) -> Figure:
    """Draws ρ and the drop, a row a task."""
    names = list(results["tasks"])
    figure = new_figure(9, 1.4 + 0.36 * len(names))
    heading(figure, "Entropy as a stand-in for the loss")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(names))
    tasks = [results["tasks"][name] for name in names]
    for model, color, label in (("start", ORANGE, "λ = 0.3"), ("individual", BLUE, "individual")):
        rhos = ((t["spearman"][model], y) for y, t in enumerate(tasks))
        points = [(rho, y) for rho, y in rhos if rho is not None]
        left.plot(*zip(*points, strict=True), "o", color=color, label=label)
    left.set_xlabel("Spearman's ρ of entropy and true loss")
    for way, color, shift in (("layer-wise", VERMILION, -0.18), ("task-wise", GRAY, 0.18)):
        widths = [100 * t["drop"][way]["points"] for t in tasks]
        right.barh([y + shift for y in rows], widths, 0.34, color=color, label=way)
    right.set_xlabel("drop in accuracy of plain entropy minimization, points")
    left.set_yticks(rows, names)
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


ITEM = Item(TITLE, measure, markdown, draw)
