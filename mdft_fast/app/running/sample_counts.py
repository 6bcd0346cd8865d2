# SPDX-License-Identifier: Apache-2.0
"""What a result says of the samples that a run learned from. No labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mdft_fast.app.running.run_folder import RunFolder
from mdft_fast.learning import TaughtTask

if TYPE_CHECKING:
    from mdft_fast.app.recipe import Recipe

BINS = 40  # of the histogram: a bin is 0.025 of log C wide, so that common μ lie on an edge


def task_facts(task: TaughtTask, recipe: Recipe, test: int, folder: RunFolder) -> dict[str, Any]:
    """Returns a task's counts, see :class:`~mdft_fast.app.report.schema.TaskCounts`.

    Args:
        task: whose.
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
        kept = round(len(task.learn) * sum(shares) / len(shares))
    return {
        "name": task.name,
        "classes": task.classes,
        "unlabelled": len(task.samples),
        "learn": len(task.learn),
        "holdout": len(task.holdout),
        "kept": kept,
        "kept_share": kept / len(task.learn),
        "test": test,
        "samples": folder.digests[task.name],
        "entropy": entropy_histogram(task),
    }


def entropy_histogram(task: TaughtTask) -> list[int]:
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


def filter_facts(recipe: Recipe) -> dict[str, Any]:
    """Returns what the filter of stage 1 was told."""
    chosen = recipe.construct.filter
    return {"enabled": chosen.enabled, "mu": chosen.mu, "entropy_of": chosen.entropy_of}
