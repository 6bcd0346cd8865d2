# SPDX-License-Identifier: Apache-2.0
"""Which of a task's samples a run looks at, by number and seed, before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mdft_fast.app.recipe import Recipe
from mdft_fast.methods import InputMerge
from mdft_fast.model import permutation

Choose = Callable[[int], NDArray[np.int64]]
_LEAST = 500  # samples of a task that are worth their time, however few are drawn


def first_samples(recipe: Recipe) -> int | None:
    """Returns how many samples a task a run begins with; None: all.

    That is the recipe's ``samples``; with the filter on, when more are looked at until enough are
    kept, and where it is null, what the stages and the start draw and hold out.
    """
    wanted = recipe.samples
    if isinstance(wanted, str):
        return None
    if wanted is not None and not _grows(recipe):
        return wanted
    enough = max(_LEAST, math.ceil(_drawn(recipe) / (1 - recipe.construct.holdout)))
    return enough if wanted is None else min(enough, wanted)


def more_samples(recipe: Recipe, now: int, kept: int) -> int:
    """Returns how many samples of a task are wanted, where so many were and so many are kept.

    That is ``now`` where they are enough, or no more may be looked at.
    """
    if not _grows(recipe) or kept >= recipe.construct.steps * recipe.construct.batch:
        return now
    most = recipe.samples if isinstance(recipe.samples, int) else 2 * now
    return max(now, min(2 * now, most))


def _chosen(count: int | None, key: str) -> Choose | None:
    """Returns what chooses so many of n at random, rising; None: all.

    A larger number chooses the same ones and more.

    Args:
        count: how many; all where there are fewer.
        key: equal keys, equal choices.
    """
    if count is None:
        return None

    def choose(n: int) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = permutation(n, key)[:count].sort().values.numpy()
        return rows

    return choose


def of_adapt(recipe: Recipe, task: str, count: int | None) -> Choose | None:
    """Returns what chooses a task's unlabelled samples."""
    return _chosen(count, f"samples/{recipe.seed}/{task}")


def of_test(recipe: Recipe, task: str) -> Choose | None:
    """Returns what chooses a task's test samples: the same ones whatever the seed."""
    return _chosen(recipe.evaluate.limit, f"limit/{task}")


def _grows(recipe: Recipe) -> bool:
    """Tells whether the filter decides how many samples are looked at."""
    stage = recipe.construct
    return recipe.samples != "all" and stage.filter.enabled and stage.draw == "kept"


def _drawn(recipe: Recipe) -> int:
    """Returns how many samples of a task the stages draw, and a start looks at, at most."""
    drawn = [recipe.construct.steps * recipe.construct.batch]
    if recipe.specialized:
        drawn.append(recipe.specialize.steps * recipe.specialize.batch)
    if isinstance(recipe.start, InputMerge):
        drawn.append(recipe.start.samples)
    return max(drawn)
