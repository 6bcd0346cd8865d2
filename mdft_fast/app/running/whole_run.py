# SPDX-License-Identifier: Apache-2.0
"""A recipe from start to end: stages, evaluation, files, report."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mdft_fast.app.forecast import MemoryPlan, explained, plan, size
from mdft_fast.app.opening import (
    Built,
    LoadedData,
    build,
    choose_device,
    construct_config,
    images_at_once,
    load_data,
    specialize_config,
)
from mdft_fast.app.report import write_report
from mdft_fast.app.running.environment import Phases, deterministic, environment
from mdft_fast.app.running.fingerprints import inputs_of
from mdft_fast.app.running.learned import Learned
from mdft_fast.app.running.measurement import Measured, measure, worse_than_base
from mdft_fast.app.running.progress import Progress
from mdft_fast.app.running.run_folder import RunFolder
from mdft_fast.app.running.sample_counts import filter_facts, task_facts
from mdft_fast.cards import CoefficientCard, save_model
from mdft_fast.errors import MdftError
from mdft_fast.files import write_json
from mdft_fast.learning import (
    Callback,
    Learner,
    RunResult,
    StepRecord,
    TaughtTask,
    construct,
    holdout_cross_entropy,
    specialize,
    teach,
)
from mdft_fast.model import TASK_ARITHMETIC, MetaModel

if TYPE_CHECKING:
    from mdft_fast.app.recipe import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class RunSummary:
    """What :func:`run` gives.

    Attributes:
        folder: where everything was written.
        result: the content of ``result.json``.
        report: the report's file.
    """

    folder: Path
    result: dict[str, Any]
    report: Path


def run(recipe: Recipe, *, resume: bool = False, progress: bool | None = None) -> RunSummary:
    """Runs a recipe and writes its run folder.

    λ is learned first, from tasks that hold no labels; only then are labelled samples opened.

    Args:
        recipe: what to do, see ``docs/recipes.md``.
        resume: goes on with a stopped run of the same recipe, bit for bit.
        progress: shows bars on standard error; None: where that is a terminal.

    Raises:
        MdftError: if anything in the recipe does not fit, or the folder is in use.
    """
    folder = RunFolder(recipe.output, recipe, resume=resume)
    with Progress(progress) as shown:
        shown.say(f"writing to {folder.path}")
        phases = Phases(choose_device(recipe.device))
        with phases.phase("plan"):
            planned = plan(recipe, every=False)
            _check_fits(recipe, planned, shown)
        with phases.phase("load and pack"):
            built = build(recipe)
            for note in built.pool.notes:
                shown.say(note)
        with phases.phase("samples"):
            data = load_data(
                built.tasks,
                built.pool.preprocess,
                transductive=recipe.transductive,
                shown=shown,
                drop=recipe.duplicates == "drop",
            )
        with deterministic(recipe.deterministic, built.device), explained(recipe):
            meta = built.meta_model(planned.chosen.mode)
            learned, taught = _learn(built, data, meta, folder, phases, shown)
            _save(built, meta, folder, learned)
            with phases.phase("evaluate"):
                measured = measure(built, meta, learned)
        result = _result(built, data, learned, taught, measured, phases, folder)
        write_json(folder.path / "result.json", result)
        report = write_report(folder.path)
    return RunSummary(folder.path, result, report)


def _check_fits(recipe: Recipe, planned: MemoryPlan, shown: Progress) -> None:
    """Says what will be taken; refuses what cannot fit, unless the recipe names the mode itself."""
    row = planned.chosen
    shown.say(f"memory: {row.mode}, about {size(row.peak)} at the peak of a step")
    if planned.fits:
        return
    advice = plan(recipe).advice()
    if planned.given or recipe.memory.mode == "auto":
        raise MdftError(f"memory: {advice}")
    shown.say(f"memory: {advice}")


def _learn(
    built: Built,
    data: LoadedData,
    meta: MetaModel,
    folder: RunFolder,
    phases: Phases,
    shown: Progress,
) -> tuple[Learned, list[TaughtTask]]:
    recipe = built.recipe
    config, special = construct_config(recipe), specialize_config(recipe)
    batch = images_at_once(recipe)
    with phases.phase("teachers"):
        taught = teach(meta, data.tasks, holdout=config.holdout, seed=config.seed, batch=batch)
        start = holdout_cross_entropy(meta, taught, batch=batch)
    inputs = [inputs_of(task, about) for task, about in zip(taught, data.splits, strict=True)]
    folder.begin({"pool": built.pool.checksum, "tasks": inputs})
    chosen = [task for task in taught if task.name in recipe.specialized]
    _trim(folder, [task.name for task in chosen])
    with phases.phase("stage 1"):
        first = construct(
            meta,
            taught,
            config,
            callbacks=[_keep(folder, shown, "construct", "construct")],
            resume=folder.load_state("construct"),
        )
        end = holdout_cross_entropy(meta, taught, batch=batch)
    holdout = {"start": _mean(start), "meta": _mean(end)} if start else {}

    def second(name: str, origin: Tensor | float) -> dict[str, RunResult]:
        results = {}
        for task in chosen:
            meta.set_coefficients(origin)
            state = f"{name}-{task.name}"
            keep = _keep(folder, shown, name, state)
            results[task.name] = specialize(
                meta, task, special, callbacks=[keep], resume=folder.load_state(state)
            )
        return results

    with phases.phase("stage 2"):
        specialized = second("specialize", first.coefficients)
    control: dict[str, RunResult] = {}
    if recipe.specialize.control and chosen:
        with phases.phase("control"):
            control = second("control", TASK_ARITHMETIC)
    meta.set_coefficients(first.coefficients)
    return Learned(first, specialized, control, holdout), taught


def _keep(folder: RunFolder, shown: Progress, stage: str, state: str) -> Callback:
    """Returns what happens after every step: state, metrics, progress."""

    def callback(record: StepRecord, learner: Learner) -> None:
        reached = learner.state()
        folder.append_metrics(record, stage)  # first: resume drops a line without its state
        folder.save_state(state, reached)
        shown.step(stage if record.task is None else f"{stage} {record.task}", record)

    return callback


def _trim(folder: RunFolder, chosen: Sequence[str]) -> None:
    stages: list[tuple[str, str | None]] = [("construct", None)]
    stages += [(stage, task) for stage in ("specialize", "control") for task in chosen]
    done = {}
    for stage, task in stages:
        state = folder.load_state(stage if task is None else f"{stage}-{task}")
        done[stage, task] = state["step"] if state else 0
    folder.trim_metrics(done)


def _save(built: Built, meta: MetaModel, folder: RunFolder, learned: Learned) -> None:
    """Writes the cards, and the meta-model's weights. A specialized one is `mdft export`'s."""
    about = {"stage": "construct", "preset": built.recipe.preset, "seed": built.recipe.seed}
    CoefficientCard.of(meta, about).save(folder.path / "meta" / "card.json")
    save_model(meta, folder.path / "meta" / "model.safetensors")
    for name, result in learned.specialize.items():
        with meta.using(result.coefficients):
            card = CoefficientCard.of(meta, {**about, "stage": "specialize", "task": name})
        card.save(folder.path / "specialized" / name / "card.json")


def _result(
    built: Built,
    data: LoadedData,
    learned: Learned,
    taught: Sequence[TaughtTask],
    measured: Measured,
    phases: Phases,
    folder: RunFolder,
) -> dict[str, Any]:
    """Returns the content of ``result.json``; ``report/schema.py`` describes it."""
    recipe, pool = built.recipe, built.pool
    first = learned.construct
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
            "tasks": [
                task_facts(task, recipe, measured.tests.get(task.name, 0), folder)
                for task in taught
            ],
        },
        "trainable": first.coefficients.numel(),
        "columns": list(first.columns),
        "coefficients": {
            "start": first.path[0].tolist(),
            "construct": first.coefficients.tolist(),
            "specialize": {
                name: result.coefficients.tolist() for name, result in learned.specialize.items()
            },
        },
        "accuracy": measured.accuracy,
        "intervals": measured.intervals,
        "comparisons": measured.comparisons,
        "specialize": _curves(built, learned, measured, folder),
        "holdout": learned.holdout,
        "phases": phases.list,
        "warnings": [
            *worse_than_base(measured.accuracy),
            *data.notes,
            *first.warnings,
            *pool.notes,
            *_resumed(folder),
        ],
        "filter": filter_facts(recipe),
        "confusion": measured.confusion,
        "recipe": recipe.dump(),
    }


def _resumed(folder: RunFolder) -> list[str]:
    if not folder.resume:
        return []
    return ["This run was stopped and resumed: the phases' times are those since then."]


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
        target = built.pool.names.index(name)
        individual = 0 * result.path[0]
        individual[target] = 1
        curves[name] = [
            {
                "step": step,
                "loss": losses.get((name, step)),
                "accuracy": measured.curve.get(name, {}).get(step),
                "distance": math.sqrt(float((at - individual).square().sum())),
                "others": measured.others.get(name, {}).get(step),
            }
            for step, at in enumerate(result.path)
        ]
    return curves


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)
