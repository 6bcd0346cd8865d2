# SPDX-License-Identifier: Apache-2.0
"""What a run learns: teachers, stage 1, stage 2 and its control. Every step is saved."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdft_fast.app.opening import (
    Built,
    LoadedData,
    construct_config,
    first_samples,
    images_at_once,
    load_data,
    more_samples,
    specialize_config,
)
from mdft_fast.app.running.answers import Answers
from mdft_fast.app.running.phases import Phases
from mdft_fast.app.running.progress import Progress
from mdft_fast.app.running.run_folder import RunFolder, state_name
from mdft_fast.app.running.same_inputs import check_inputs
from mdft_fast.data import Samples
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

Tell = Callable[[str, StepRecord], None]


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


def ask_teachers(
    built: Built, meta: MetaModel, data: LoadedData, progress: Progress
) -> tuple[LoadedData, list[TaughtTask]]:
    """Returns the tasks with their teachers' answers, split as the recipe says; and their samples.

    With the filter on, more samples are looked at, in rounds, until enough of them are kept.

    Args:
        built: the recipe, opened.
        meta: gives the tasks' own models.
        data: the samples of the first round.
        progress: told how far decoding is.
    """
    recipe, config = built.recipe, construct_config(built.recipe)
    counts = dict.fromkeys((task.name for task in data.tasks), first_samples(recipe))
    answers = Answers(built)
    asked: dict[str, tuple[Samples, Tensor]] = {}
    while True:
        ask = functools.partial(_features, answers, meta, asked)
        taught = teach(meta, data.tasks, holdout=config.holdout, seed=config.seed, ask=ask)
        few: dict[str, int] = {}
        for task, loaded in zip(taught, data.samples, strict=True):
            now = counts[task.name]
            if now is not None and now < loaded.of:
                wanted = more_samples(recipe, now, len(task.kept(config.mu)))
                few |= {task.name: wanted} if wanted > now else {}
        if not few:
            return data, taught
        asked = {t.name: (held, t.features) for t, held in zip(taught, data.samples, strict=True)}
        counts |= few
        only = None if len(counts) == len(built.tasks) else next(iter(counts))
        data = load_data(built, progress.count, only=only, counts=counts)


def _features(
    answers: Answers,
    meta: MetaModel,
    asked: Mapping[str, tuple[Samples, Tensor]],
    name: str,
    samples: Samples,
) -> Tensor:
    """Asks a teacher about the samples that it was not asked about in an earlier round."""
    if name not in asked:
        return answers.features(meta, name, samples)
    before, old = asked[name]
    known = torch.isin(samples.numbers, before.numbers)
    new = (~known).nonzero()[:, 0]
    features = old.new_empty(len(samples), old.shape[1])
    features[known] = old
    if len(new):
        features[new] = answers.features(meta, name, samples.take(new))
    return features


def learn(
    built: Built,
    data: LoadedData,
    taught: Sequence[TaughtTask],
    meta: MetaModel,
    folder: RunFolder,
    phases: Phases,
    tell: Tell,
) -> Learned:
    """Runs both stages, from where the folder's states end; λ ends as stage 1's.

    ``tell`` is told of each step, with the name of its stage.
    """
    recipe, batch = built.recipe, images_at_once(built.recipe)
    start = holdout_cross_entropy(meta, taught, batch=batch)
    folder.begin(inputs_of(built, data, taught))
    folder.trim_metrics()
    with phases.phase("stage 1"):
        first = construct(
            meta,
            taught,
            construct_config(recipe),
            callbacks=[_keep(folder, tell, "construct")],
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
                    callbacks=[_keep(folder, tell, stage)],
                    resume=folder.load_state(state_name(stage, task.name)),
                )
    meta.set_coefficients(first.coefficients)
    return Learned(first, results["specialize"], results["control"], holdout)


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
        data, taught = ask_teachers(built, meta, data, progress)
        for note in data.notes:
            progress.say(note)
    check_inputs(folder, inputs_of(built, data, taught))
    return taught[0]


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


def _keep(folder: RunFolder, tell: Tell, stage: str) -> Callback:
    """Returns what happens after every step: metrics, state, a word of it."""

    def callback(record: StepRecord, learner: Learner) -> None:
        state = learner.state()
        folder.append_metrics(record, stage)  # first: resume drops a line without its state
        folder.save_state(state_name(stage, record.task), state)
        tell(stage if record.task is None else f"{stage} {record.task}", record)

    return callback


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)
