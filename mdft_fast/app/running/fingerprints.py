# SPDX-License-Identifier: Apache-2.0
"""What a run was started with, and whether it is still the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mdft_fast.app.opening import Built, construct_config, images_at_once, load_data
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
    recipe, pool = built.recipe, built.pool
    with Progress(None) as shown:
        data = load_data(
            built.tasks,
            pool.preprocess,
            transductive=recipe.transductive,
            shown=shown,
            drop=recipe.duplicates == "drop",
            only=name,
        )
    config, batch = construct_config(recipe), images_at_once(recipe)
    (taught,) = teach(meta, data.tasks, holdout=config.holdout, seed=config.seed, batch=batch)
    check_inputs(folder, {"pool": pool.checksum, "tasks": [inputs_of(taught, data.splits[0])]})
    return taught


def inputs_of(task: TaughtTask, about: dict[str, Any]) -> dict[str, Any]:
    """Returns which samples a task learns from: their source, their digest and their split."""
    return {
        **about,
        "samples": hashlib.sha256(task.samples.digests().tobytes()).hexdigest(),
        "learn": task.learn.tolist(),
        "holdout": task.holdout.tolist(),
    }
