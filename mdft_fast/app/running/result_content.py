# SPDX-License-Identifier: Apache-2.0
"""The content of ``result.json``; ``report/schema.py`` describes it. No labels are read here."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mdft_fast.app.opening import Built, LoadedData
from mdft_fast.app.recipe import Recipe
from mdft_fast.app.running.measurement import Measured, untested_classes, worse_than_base
from mdft_fast.app.running.phases import Phases
from mdft_fast.app.running.provenance import environment
from mdft_fast.app.running.run_folder import RunFolder
from mdft_fast.app.running.stages import Learned
from mdft_fast.arena import name_means
from mdft_fast.data import Samples
from mdft_fast.learning import RunResult, TaughtTask

BINS = 40  # of the histogram: a bin is 0.025 of log C wide, so that common μ lie on an edge


def result_of(
    built: Built,
    data: LoadedData,
    learned: Learned,
    taught: Sequence[TaughtTask],
    measured: Measured,
    phases: Phases,
    folder: RunFolder,
    shares: dict[str, Any] | None,
) -> dict[str, Any]:
    """Returns all that a run found out, as JSON values."""
    recipe, pool, first = built.recipe, built.pool, learned.construct
    chosen, vectors = recipe.construct.filter, list(pool.vector_names)
    resumed = "This run was stopped and resumed: the phases' times are those since then."
    return {
        "schema": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **environment(built.device),
        "seed": recipe.seed,
        "transductive": recipe.transductive,
        "preset": recipe.preset,
        "pool": {
            "checksum": pool.checksum,
            "codec": pool.codec,
            "parameters": pool.parameters,
            "tensors": len(pool.layout.slots),
            "left_out": dict(pool.left_out),
            **({"methods": list(pool.methods)} if pool.methods else {}),
            **({"start": pool.start} if pool.start is not None else {}),
            **({"vectors": vectors} if vectors != [task.name for task in taught] else {}),
            "tasks": [
                _sample_counts(task, held, recipe, measured.tests.get(task.name, 0), folder)
                for task, held in zip(taught, data.samples, strict=True)
            ],
        },
        "trainable": first.coefficients.numel(),
        "columns": list(first.columns),
        "coefficients": {
            "start": _means(first, first.path[0]),
            "construct": _means(first, first.coefficients),
            "specialize": {
                name: _means(result, result.coefficients)
                for name, result in learned.specialize.items()
            },
        },
        "compared": measured.compared,
        "accuracy": measured.accuracy,
        "intervals": measured.intervals,
        "comparisons": measured.comparisons,
        "specialize": _curves(built, learned, measured, folder),
        "curve_samples": recipe.evaluate.curve.samples,
        **({"shares": shares} if shares else {}),
        "holdout": learned.holdout,
        "stages": _stages(learned),
        "phases": phases.list,
        "warnings": [
            *worse_than_base(measured.accuracy),
            *untested_classes(measured.confusion),
            *data.notes,
            *first.warnings,
            *(words for one in learned.specialize.values() for words in one.warnings),
            *pool.notes,
            *([resumed] if folder.resume else []),
        ],
        "filter": {"enabled": chosen.enabled, "mu": chosen.mu, "entropy_of": chosen.entropy_of},
        "confusion": measured.confusion,
        "recipe": recipe.dump(),
    }


def _stages(learned: Learned) -> list[dict[str, Any]]:
    """Returns how many steps each stage made, in the order in which they were run."""
    results: list[tuple[str, str | None, RunResult]] = [("construct", None, learned.construct)]
    results += [("specialize", name, result) for name, result in learned.specialize.items()]
    results += [("control", name, result) for name, result in learned.control.items()]
    return [{"stage": s, "task": task, "steps": one.steps[-1]} for s, task, one in results]


def _means(result: RunResult, coefficients: Tensor) -> list[list[float]]:
    """Returns λ with a column a name: of a tensor's rows the mean, all is in the card."""
    means: list[list[float]] = name_means(coefficients, result.rows).tolist()
    return means


def _sample_counts(
    task: TaughtTask, samples: Samples, recipe: Recipe, test: int, folder: RunFolder
) -> dict[str, Any]:
    """Returns a task's counts, see :class:`~mdft_fast.app.report.schema.TaskCounts`.

    Args:
        task: whose.
        samples: its unlabelled ones.
        recipe: whose filter decided what was kept.
        test: number of its labelled samples.
        folder: knows the samples' digests; its metrics say what was kept where the filter looked
            at the meta-model.
    """
    chosen = recipe.construct.filter
    kept = len(task.kept(chosen.mu)) if chosen.enabled else len(task.learn)
    if chosen.enabled and chosen.entropy_of == "meta":  # another set each step: their mean
        shares = [
            line["kept"][task.name] for line in folder.lines() if line["stage"] == "construct"
        ]
        kept = round(len(task.learn) * sum(shares) / max(1, len(shares)))
    return {
        "name": task.name,
        "classes": task.classes,
        "unlabelled": len(task.samples),
        "of": samples.of,
        "learn": len(task.learn),
        "holdout": len(task.holdout),
        "kept": kept,
        "kept_share": kept / len(task.learn),
        "test": test,
        "samples": folder.digests[task.name],
        "entropy": _entropy_histogram(task),
    }


def _entropy_histogram(task: TaughtTask) -> list[int]:
    """Counts the samples to learn from by the teacher's entropy as a share of log C.

    Returns:
        ``BINS`` counts over [0, 1]; round-off beyond an end goes to the outer bin. A task of one
        class has no entropy: all its samples are in the first.
    """
    entropy = task.entropy.cpu()[task.learn].double()
    share = entropy / math.log(task.classes) if task.classes > 1 else 0 * entropy
    bins = (share * BINS).floor().long().clamp(0, BINS - 1)
    counts: list[int] = bins.bincount(minlength=BINS).tolist()
    return counts


def _curves(
    built: Built, learned: Learned, measured: Measured, folder: RunFolder
) -> dict[str, list[dict[str, Any]]]:
    """Returns, for each specialized task and step, loss, accuracy, distance and the others."""
    losses = {
        (line["task"], line["step"]): line["loss"]
        for line in folder.lines()
        if line["stage"] == "specialize"
    }
    curves = {}
    for name, result in learned.specialize.items():
        individual = 0 * result.path[0]
        individual[built.pool.vector_names.index(name)] = 1
        path = dict(zip(result.steps, result.path, strict=True))
        curves[name] = [
            {
                "step": step,
                "loss": losses.get((name, step)),
                "accuracy": measured.curve.get(name, {}).get(step),
                "distance": math.sqrt(float((path[step] - individual).square().sum()))
                if step in path
                else None,
                "others": measured.others.get(name, {}).get(step),
            }
            for step in range(result.steps[-1] + 1)
        ]
    return curves
