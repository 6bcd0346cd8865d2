# SPDX-License-Identifier: Apache-2.0
"""What a run was started with, and whether it is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdft_fast.app.opening import Built, LoadedData, construct_config, images_at_once
from mdft_fast.app.running.progress import Progress
from mdft_fast.app.running.run_folder import check_inputs
from mdft_fast.learning import TaughtTask, teach
from mdft_fast.model import MetaModel


def same_task(folder: Path, built: Built, meta: MetaModel, name: str) -> TaughtTask:
    """Returns a task of a finished run, taught; refuses one that has changed since.

    Args:
        folder: the run's.
        built: its recipe, opened.
        meta: the meta-model.
        name: the task's.
    """
    with Progress(None) as progress:
        data = built.load_data(progress, only=name)
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
