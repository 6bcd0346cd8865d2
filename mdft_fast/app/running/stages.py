# SPDX-License-Identifier: Apache-2.0
"""What a run learns: teachers, stage 1, stage 2 and its control. Every step is saved."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mdft_fast.app.opening import (
    Built,
    LoadedData,
    construct_config,
    images_at_once,
    load_data,
    specialize_config,
)
from mdft_fast.app.running.phases import Phases
from mdft_fast.app.running.progress import Progress
from mdft_fast.app.running.run_folder import RunFolder, check_inputs, state_name
from mdft_fast.learning import (
    Callback,
    Learner,
    RunResult,
    StepRecord,
    TaughtTask,
    construct,
    doubts_of_holdout,
    holdout_cross_entropy,
    specialize,
    teach,
)
from mdft_fast.model import TASK_ARITHMETIC, MetaModel


@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
    """What the stages made.

    Attributes:
        construct: stage 1's result.
        specialize: task -> stage 2's result, from stage 1's λ.
        control: task -> stage 2's result from task arithmetic, without stage 1.
        holdout: "start", "meta" -> teacher cross-entropy on held-out samples, mean over tasks.
    """

    construct: RunResult
    specialize: dict[str, RunResult]
    control: dict[str, RunResult]
    holdout: dict[str, float]


def learn(
    built: Built,
    data: LoadedData,
    meta: MetaModel,
    folder: RunFolder,
    phases: Phases,
    progress: Progress,
) -> tuple[Learned, list[TaughtTask]]:
    """Runs both stages, from where the folder's states end; λ ends as stage 1's."""
    recipe, batch = built.recipe, images_at_once(built.recipe)
    with phases.phase("teachers"):
        taught = taught_tasks(built, meta, data)
        start = holdout_cross_entropy(meta, taught, batch=batch)
    folder.begin(inputs_of(built, data, taught))
    folder.trim_metrics()
    with phases.phase("stage 1"):
        first = construct(
            meta,
            taught,
            construct_config(recipe),
            callbacks=[_keep(folder, progress, "construct")],
            resume=folder.load_state("construct"),
        )
        end = holdout_cross_entropy(meta, taught, batch=batch)
        farther = tuple(doubts_of_holdout(start, end))
        first = dataclasses.replace(first, warnings=(*first.warnings, *farther))
    holdout = {"start": _mean(start), "meta": _mean(end)} if start else {}

    origins: dict[str, Tensor] = {"specialize": first.coefficients}
    if recipe.specialize.control and recipe.specialized:
        origins["control"] = meta.on_tasks(TASK_ARITHMETIC)
    results: dict[str, dict[str, RunResult]] = {"specialize": {}, "control": {}}
    for stage, origin in origins.items():
        with phases.phase("stage 2" if stage == "specialize" else stage):
            for task in (task for task in taught if task.name in recipe.specialized):
                meta.set_coefficients(origin)
                results[stage][task.name] = specialize(
                    meta,
                    task,
                    specialize_config(recipe),
                    callbacks=[_keep(folder, progress, stage)],
                    resume=folder.load_state(state_name(stage, task.name)),
                )
    meta.set_coefficients(first.coefficients)
    return Learned(first, results["specialize"], results["control"], holdout), taught


def same_task(folder: Path, built: Built, meta: MetaModel, name: str) -> TaughtTask:
    """Returns a task of a finished run, taught; refuses one that has changed since.

    Args:
        folder: the run's.
        built: its recipe, opened.
        meta: the meta-model.
        name: the task's.
    """
    with Progress(None) as progress:
        data = load_data(built, progress.count, only=name)
        for note in data.notes:
            progress.say(note)
    taught = taught_tasks(built, meta, data)
    check_inputs(folder, inputs_of(built, data, taught))
    return taught[0]


def taught_tasks(built: Built, meta: MetaModel, data: LoadedData) -> list[TaughtTask]:
    """Returns the tasks with their teachers' answers, split as the recipe says."""
    config, batch = construct_config(built.recipe), images_at_once(built.recipe)
    return teach(meta, data.tasks, holdout=config.holdout, seed=config.seed, batch=batch)


def inputs_of(built: Built, data: LoadedData, taught: Sequence[TaughtTask]) -> dict[str, Any]:
    """Returns digests of the pool, and of each task's samples with their source and split."""
    tasks = [
        {
            **about,
            "samples": hashlib.sha256(task.samples.digests().tobytes()).hexdigest(),
            "learn": task.learn.tolist(),
            "holdout": task.holdout.tolist(),
        }
        for task, about in zip(taught, data.splits, strict=True)
    ]
    return {"pool": built.pool.checksum, "tasks": tasks}


def _keep(folder: RunFolder, progress: Progress, stage: str) -> Callback:
    """Returns what happens after every step: state, metrics, progress."""

    def callback(record: StepRecord, learner: Learner) -> None:
        state = learner.state()
        folder.append_metrics(record, stage)  # first: resume drops a line without its state
        folder.save_state(state_name(stage, record.task), state)
        progress.step(stage if record.task is None else f"{stage} {record.task}", record)

    return callback


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)
