# SPDX-License-Identifier: Apache-2.0
"""Table 3: time by stage, against full fine-tuning on the same pool; what is learned."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.markdown import table
from benchmarks.paper.form import Item, Results
from benchmarks.paper.published import TABLE3, TRAINABLE
from benchmarks.paper.study import Study, timed
from benchmarks.paper.table2 import MULTI_TASK, read_baselines
from benchmarks.pictures import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    SKY,
    VERMILION,
    heading,
    name_rows,
    new_figure,
)
from mdft_fast.app.opening import construct_config, specialize_config
from mdft_fast.learning import construct, specialize, teach

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Table 3: time and trainable numbers"
PHASES = {
    "loading": ("loading the pool", GRAY),
    "caching": ("caching the teachers' answers", SKY),
    "stage 1": ("stage 1", BLUE),
    "stage 2": ("stage 2, all tasks", VERMILION),
}
LEARNING = ("stage 1", "stage 2")
SUPERVISED = {
    "individual": ("full fine-tuning, all tasks", GREEN),
    "multi_task": ("multi-task learning", ORANGE),
}


def measure(study: Study, options: argparse.Namespace) -> Results:
    """Takes the time of everything anew: nothing kept is used."""
    recipe, meta = study.recipe, study.meta()
    runs = []
    for seed in study.seeds:
        first = dataclasses.replace(construct_config(recipe), seed=seed)
        second = dataclasses.replace(specialize_config(recipe), seed=seed)
        meta.set_coefficients(meta.as_coefficients(0.3))
        with timed() as caching:
            taught = teach(meta, study.built.unlabelled, holdout=first.holdout, seed=seed,
                           batch=first.micro_batch)  # fmt: skip
        with timed() as one:
            learned = construct(meta, taught, first).coefficients
        with timed() as two:
            for task in taught:
                if task.name in recipe.specialized:
                    meta.set_coefficients(learned)
                    specialize(meta, task, second)
        runs.append({"loading": study.loading, "caching": caching, "stage 1": one, "stage 2": two})
    K, L = meta.coefficients.shape
    images = {"stage 1": first.steps * first.batch * K,
              "stage 2": second.steps * second.batch * len(recipe.specialized)}  # fmt: skip
    return {
        "runs": runs,
        "images": images,
        "trainable": {"K": K, "L": L, "numbers": K * L, "bytes": 4 * K * L,
                      "parameters": study.built.pool.parameters},
        "finetuning": _finetuning(read_baselines(study, options.baselines)),
    }  # fmt: skip


def _finetuning(baselines: Any) -> dict[str, Any] | None:
    """Returns what full fine-tuning of all tasks took, and its number of images."""
    if baselines is None:
        return None
    models = dict(baselines["models"])
    sets = {"multi_task": [models.pop(MULTI_TASK)] if MULTI_TASK in models else []}
    sets = {"individual": list(models.values()), **sets}
    measures = ("seconds", "cpu_seconds", "images", "trainable")
    return {
        "labels": baselines["labels"],
        "threads": baselines["threads"],
        "device": baselines["device"],
        "sums": {
            name: {k: sum(m[k] for m in models) for k in measures}
            for name, models in sets.items()
            if models
        },
    }


def seconds(results: Results, phases: Any, key: str = "cpu_seconds") -> float:
    """Returns the median over runs of the sum of some phases."""
    return statistics.median(sum(run[p][key] for p in phases) for run in results["runs"])


def markdown(results: Results) -> str:
    """Shows the phases, their sums with and without what a run does once, and the ratios."""
    sums = {label: [phase] for phase, (label, _) in PHASES.items()}
    sums |= {"**learning alone**": [*LEARNING], "**all**": [*PHASES]}
    rows: list[list[object]] = []
    for label, phases in sums.items():
        images = sum(results["images"].get(p, 0) for p in phases)
        times = [f"{seconds(results, phases, key):.2f}" for key in ("cpu_seconds", "seconds")]
        rows.append([label, *times, f"{images:,}" if images else ""])
    tuned = results["finetuning"]
    if tuned:
        for name, one in tuned["sums"].items():
            rows.append([f"{SUPERVISED[name][0]}, supervised", f"{one['cpu_seconds']:.2f}",
                         f"{one['seconds']:.2f}", f"{one['images']:,}"])  # fmt: skip
        cpu = tuned["sums"]["individual"]["cpu_seconds"]
        verdict = (
            f"Full fine-tuning took {cpu / seconds(results, LEARNING):.2f} times the CPU time of "
            f"learning λ alone, {cpu / seconds(results, PHASES):.2f} times that of all."
        )
    else:
        verdict = "Full fine-tuning: not run (`--baselines`)."
    learned = results["trainable"]
    theirs = [[name, f"{a:g}", f"{b:g}", f"{c:g}"] for name, (a, b, c) in TABLE3.items()]
    return "\n\n".join([
        table(["phase", "CPU s", "wall s", "images, forward and backward"], rows),
        verdict + " Medians over seeds. CPU time is the process's own and changes little when "
        "the machine is busy with other work, as wall time does. Fine-tuning makes the very models "
        "that MDFT starts from: the ratio compares two ways to adapt once a pool is there, it does "
        "not make the pool free.",
        f"Trainable: K · L = {learned['K']} · {learned['L']} = **{learned['numbers']:,}** numbers "
        f"({learned['bytes']:,} bytes), against {learned['parameters']:,} parameters a fine-tuned "
        f"model. The paper prints {TRAINABLE}.",
        table(["the paper's", "full fine-tuning, s", "MDFT, s", "ratio"], theirs),
    ])  # fmt: skip


def draw(results: Results) -> Figure:
    """Draws CPU seconds as bars, ours stacked by phase."""
    figure = new_figure(8.6, 2.6)
    heading(figure, "CPU seconds to adapt to all tasks")
    axes = figure.subplots()
    left, names = 0.0, ["MDFT"]
    for phase, (label, color) in PHASES.items():
        width = seconds(results, [phase])
        axes.barh([0], [width], left=left, color=color, label=label)
        left += width
    tuned = results["finetuning"]
    if tuned:
        for y, (name, one) in enumerate(tuned["sums"].items(), start=1):
            names.append(SUPERVISED[name][0])
            axes.barh([y], [one["cpu_seconds"]], color=SUPERVISED[name][1])
    name_rows(axes, names)
    axes.set_xlabel("CPU seconds")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


ITEM = Item(TITLE, measure, markdown, draw)
