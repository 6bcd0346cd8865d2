# SPDX-License-Identifier: Apache-2.0
"""Figures 4, 5 and 6: stage 1 (and 2) with something changed, on equal samples and seeds."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.markdown import mean, percent, spread, table
from benchmarks.paper.form import Item, Results
from benchmarks.paper.study import TASK_ARITHMETIC, Changes, Study, accuracy
from benchmarks.pictures import BLUE, FAINT, INK, ORANGE, VERMILION, heading, new_figure
from mdft_fast.app.recipe import PRESETS
from mdft_fast.evaluation import difference_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA, FILTER = "construct.objective.alpha", "construct.filter.enabled"
ENTROPY, REWEIGHT = "construct.objective.entropy", "construct.objective.reweight"


def objective(alpha: float, entropy: bool, keeps: bool, weighs: bool) -> Changes:
    """Returns a recipe's changes: weight of CE, whether H counts, filter and weights."""
    how = "as_written" if weighs else "off"
    return (f"{ALPHA}={alpha}", f"{ENTROPY}={entropy}".lower(), f"{FILTER}={keeps}".lower(),
            f"{REWEIGHT}={how}", "construct.filter.entropy_of=teacher")  # fmt: skip


PRESET_VARIANTS: dict[str, Changes] = {name: (f"preset={name}",) for name in PRESETS}
FILTER_VARIANTS: dict[str, Changes] = {
    "filter and weights (the paper's)": objective(1, True, True, True),
    "filter alone": objective(1, True, True, False),
    "weights alone": objective(1, True, False, True),
    "neither": objective(1, True, False, False),
}
LOSS_VARIANTS: dict[str, Changes] = {
    f"{loss}, {samples}": objective(alpha, entropy, kept, kept)
    for samples, kept in (("filter and weights", True), ("all samples", False))
    for loss, alpha, entropy in (("joint", 1, True), ("CE alone", 1, False), ("H alone", 0, True))
}


def measure(
    study: Study, options: argparse.Namespace, *, variants: Mapping[str, Changes], second: bool
) -> Results:
    """Learns every variant and evaluates it; differences are to the first one, first seed."""
    rows, first = {}, None
    for name, changes in variants.items():
        recipe = study.load(*changes)
        runs = [study.correct(study.first(seed, *changes)[-1], recipe) for seed in study.seeds]
        tasks = list(runs[0])
        first = first or runs[0]
        rows[name] = {
            "changes": list(changes),
            "steps": recipe.construct.steps,
            "lr": recipe.construct.optimizer.lr,
            "stage 1": [accuracy(run) for run in runs],
            "difference": difference_interval(
                [runs[0][t] for t in tasks], [first[t] for t in tasks]
            ),
        }
        if second and recipe.specialized:
            ends = [study.second(seed, *changes) for seed in study.seeds]
            rows[name]["stage 2"] = [
                accuracy(study.each({n: p[-1] for n, p in end.items()}, recipe)) for end in ends
            ]
    taught = study.taught(study.seeds[0])
    mu = study.recipe.construct.filter.mu
    return {
        "variants": rows,
        "individual": accuracy(study.individual()),
        "task_arithmetic": accuracy(study.correct(TASK_ARITHMETIC)),
        "mu": mu,
        "kept": {task.name: len(task.kept(mu)) / len(task.learn) for task in taught},
    }


def markdown(results: Results, *, words: str) -> str:
    """Shows a row a variant, and by task."""
    variants = results["variants"]
    header = ["variant", "steps", "lr", "stage 1, %", "less the first, points"]
    two = any("stage 2" in one for one in variants.values())
    rows = []
    for name, one in variants.items():
        gap = one["difference"]
        cells = [
            name,
            one["steps"],
            f"{one['lr']:g}",
            spread([mean(r) for r in one["stage 1"]]),
            f"{percent(gap['difference'])} [{percent(gap['low'])}, {percent(gap['high'])}]",
        ]
        if two:
            runs = one.get("stage 2")
            cells.append(spread([mean(run) for run in runs]) if runs else "none")
        rows.append(cells)
    by_task = [
        [name, *(percent(mean([run[t] for run in one["stage 1"]])) for t in results["individual"])]
        for name, one in variants.items()
    ]
    by_task.append(["individual", *(percent(v) for v in results["individual"].values())])
    by_task.append(["share of samples kept", *(percent(v) for v in results["kept"].values())])
    return "\n\n".join([
        table([*header, "stage 2, %"] if two else header, rows),
        f"Average top-1, with the lowest and highest over seeds; 95 % bootstrap interval over test "
        f"samples, first seed. Individual {percent(mean(results['individual']))}, task arithmetic "
        f"{percent(mean(results['task_arithmetic']))}. The filter keeps H < {results['mu']:g} log "
        "C. " + words,
        table(["stage 1, by task", *results["individual"]], by_task),
    ])  # fmt: skip


def draw(results: Results, *, title: str) -> Figure:
    """Draws the averages as points with their range, the two lines to compare with."""
    variants = results["variants"]
    figure = new_figure(8.6, 1.6 + 0.42 * len(variants))
    heading(figure, title)
    axes = figure.subplots()
    axes.axvline(100 * mean(results["individual"]), color=INK, ls=(0, (4, 2)), lw=1.2,
                 label="individual models")  # fmt: skip
    axes.axvline(100 * mean(results["task_arithmetic"]), color=ORANGE, ls=":", lw=1.4,
                 label="task arithmetic")  # fmt: skip
    for stage, marker, color in (("stage 1", "D", BLUE), ("stage 2", "o", VERMILION)):
        label: str | None = stage
        for y, one in enumerate(variants.values()):
            if stage in one:
                values = [100 * mean(run) for run in one[stage]]
                axes.plot([min(values), max(values)], [y, y], color=FAINT, lw=6, zorder=1)
                axes.plot(mean(values), y, marker, color=color, ms=6, label=label)
                axes.annotate(f"{mean(values):.1f}", (mean(values), y), xytext=(0, 7),
                              textcoords="offset points", fontsize=8, ha="center",
                              bbox={"fc": "white", "ec": "none", "pad": 0.4})  # fmt: skip
                label = None
    axes.set_yticks(range(len(variants)), list(variants))
    axes.set_ylim(len(variants) - 0.4, -0.7)
    axes.grid(False, axis="y")
    axes.set_xlabel("top-1 accuracy, average over tasks, %; bar: lowest to highest over seeds")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _item(title: str, variants: Mapping[str, Changes], words: str, *, second: bool = False) -> Item:
    return Item(
        title,
        functools.partial(measure, variants=variants, second=second),
        functools.partial(markdown, words=words),
        functools.partial(draw, title=title),
    )


SAME = (
    "Every variant has the recipe's optimizer and steps, so that only the objective differs; its "
    "rate was chosen, without labels, for cross-entropy on all samples, and may suit others less. "
    "The rate of preset `paper` is in figure 4. The paper shows the figure without its "
    "numbers, so none stand here."
)
FIG4 = _item(
    "Figure 4: the presets", PRESET_VARIANTS,
    "Each preset has its own steps, rates and granularity, unless the recipe or the command line "
    "sets them. The paper's figure 4 compares with methods that are not presets here; of what "
    "this package can run, these are all.", second=True,
)  # fmt: skip
FIG5 = _item("Figure 5: filter and weights, on and off", FILTER_VARIANTS, SAME)
FIG6 = _item("Figure 6: joint loss, cross-entropy alone, entropy alone", LOSS_VARIANTS, SAME)
