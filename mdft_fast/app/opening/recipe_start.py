# SPDX-License-Identifier: Apache-2.0
"""The merge that a recipe starts λ from, and whether a packed pool has it already."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mdft_fast.app.recipe import Recipe
from mdft_fast.data import Task
from mdft_fast.errors import MdftError
from mdft_fast.methods import Method, Start
from mdft_fast.pool import Pool


def start_of(
    recipe: Recipe, tasks: Sequence[Task] = (), device: torch.device | None = None
) -> Start | None:
    """Returns the merge that a recipe starts from; None where it starts from numbers.

    Args:
        recipe: whose; its split tells which samples the merge never sees.
        tasks: with all their unlabelled samples, to make it.
        device: where it is made, where it looks at inputs.
    """
    if not isinstance(recipe.start, Method):
        return None
    holdout, seed = recipe.construct.holdout, recipe.seed
    return Start(recipe.start, tasks=tasks, holdout=holdout, seed=seed, device=device)


def check_start(recipe: Recipe, pool: Pool) -> None:
    """Refuses a packed pool with a start where the recipe asks for something else."""
    if pool.start is None:
        return
    if recipe.transform:
        raise MdftError(
            f"recipe: transform must be absent, as the packed pool has a start, {pool.start!r}, "
            "which was made of its vectors as they are"
        )
    start = start_of(recipe)
    if isinstance(recipe.start, tuple) or (start is not None and start.made(pool)):
        return
    got = recipe.start if start is None else start
    raise MdftError(
        f"recipe: start must be the packed pool's, which says {pool.methods[-1:]}, or a number for "
        f"each of its {pool.K} vectors, got {got}; pack the models without a start for another one"
    )
