# SPDX-License-Identifier: Apache-2.0
"""Figure 3: accuracy against steps, from the λ that every step left behind."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from benchmarks.markdown import mean, percent, spread, table
from benchmarks.paper.form import Item, Results
from benchmarks.paper.published import CONVERGED
from benchmarks.paper.study import TASK_ARITHMETIC, Study, accuracy
from benchmarks.pictures import BLUE, GRAY, INK, ORANGE, VERMILION, WINE, heading, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Figure 3: accuracy against steps"
CURVES = {  # changes of the recipe: words, color
    "recipe": ((), "as the recipe says", BLUE),
    "paper": (("preset=paper",), "preset paper", VERMILION),
    "adamerging": (("preset=adamerging",), "preset adamerging", GRAY),
}


def steps_of(last: int, points: int) -> list[int]:
    """Returns at most ``points`` + 1 steps from 0 to the last, evenly."""
    return sorted({round(i * last / points) for i in range(points + 1)})


def measure(study: Study, options: argparse.Namespace) -> Results:
    """Evaluates λ along its path. Labels serve the plot alone: no step has seen one."""
    stage1: dict[str, Any] = {}
    for name, (changes, _, _) in CURVES.items():
        recipe = study.load(*changes)
        paths = [study.first(seed, *changes) for seed in study.seeds]
        at = steps_of(len(paths[0]) - 1, options.points)
        stage1[name] = {
            "steps": at,
            "accuracy": [
                [mean(accuracy(study.correct(path[step], recipe))) for step in at] for path in paths
            ],
        }
    return {
        "stage 1": stage1,
        "stage 2": {
            name: _second(study, control, options.points)
            for name, control in (("specialized", False), ("control", True))
        },
        "individual": mean(accuracy(study.individual())),
        "task_arithmetic": mean(accuracy(study.correct(TASK_ARITHMETIC))),
    }


def _second(study: Study, control: bool, points: int) -> dict[str, Any] | None:
    """Returns the mean over tasks of each one's own accuracy along stage 2."""
    runs = [study.second(seed, control=control) for seed in study.seeds]
    if not runs[0]:
        return None
    at = steps_of(len(next(iter(runs[0].values()))) - 1, points)

    def along(run: Mapping[str, Tensor]) -> list[float]:
        return [mean(accuracy(study.each({n: p[step] for n, p in run.items()}))) for step in at]

    return {"steps": at, "accuracy": [along(run) for run in runs]}


def markdown(results: Results) -> str:
    """Shows where each curve starts, is at best and ends."""
    curves = [(words, results["stage 1"][name]) for name, (_, words, _) in CURVES.items()]
    curves += [
        (words, results["stage 2"][name])
        for name, words in (("specialized", "stage 2"), ("control", "stage 2 without stage 1"))
        if results["stage 2"][name]
    ]
    rows = []
    for words, curve in curves:
        runs = curve["accuracy"]
        average = [mean([run[i] for run in runs]) for i in range(len(curve["steps"]))]
        best = max(range(len(average)), key=average.__getitem__)
        rows.append(
            [
                words,
                percent(average[0]),
                f"{percent(average[best])}",
                curve["steps"][best],
                curve["steps"][-1],
                spread([run[-1] for run in runs]),
            ]
        )
    header = ["curve", "start", "highest", "at step", "steps", "end"]
    return "\n\n".join([
        table(header, rows),
        f"Average top-1 in per cent over seeds. Individual models "
        f"{percent(results['individual'])}, task arithmetic {percent(results['task_arithmetic'])}. "
        "The highest point is chosen with labels: it says what could be had, nobody could stop "
        "there without them.",
        f"The paper: stage 1 converges within {CONVERGED} steps.",
    ])  # fmt: skip


def draw(results: Results) -> Figure:
    """Draws stage 1 at the left, stage 2 at the right."""
    figure = new_figure(9, 3.8)
    heading(figure, "Average accuracy against steps")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, (_, words, color) in CURVES.items():
        _lines(left, results["stage 1"][name], color, words)
    for name, words, color in (("specialized", "stage 2", VERMILION),
                               ("control", "stage 2 without stage 1", WINE)):  # fmt: skip
        if results["stage 2"][name]:
            _lines(right, results["stage 2"][name], color, words)
    for axes, title in ((left, "Stage 1: one model"), (right, "Stage 2: a model a task")):
        axes.axhline(100 * results["individual"], color=INK, ls=(0, (4, 2)), lw=1.2)
        axes.axhline(100 * results["task_arithmetic"], color=ORANGE, ls=":", lw=1.2)
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize=8, loc="best")
    left.annotate("individual models", (0, 100 * results["individual"]), fontsize=8, va="bottom")
    left.annotate("task arithmetic", (0, 100 * results["task_arithmetic"]), fontsize=8, va="top")
    left.set_ylabel("top-1, average over tasks, %")
    return figure


def _lines(axes: Any, curve: Any, color: str, label: str) -> None:
    """Draws each seed faintly and their mean."""
    runs = curve["accuracy"]
    for run in runs:
        axes.plot(curve["steps"], [100 * v for v in run], color=color, lw=0.7, alpha=0.35)
    average = [100 * mean([run[i] for run in runs]) for i in range(len(curve["steps"]))]
    axes.plot(curve["steps"], average, color=color, label=label)


ITEM = Item(TITLE, measure, markdown, draw)
