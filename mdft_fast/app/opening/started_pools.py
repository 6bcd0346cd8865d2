# SPDX-License-Identifier: Apache-2.0
"""Pools with the recipe's start, and pools packed as a recipe says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mdft_fast.app.opening.building import Built, build, tasks_of_checkpoints
from mdft_fast.app.opening.pool_sources import (
    choose_device,
    narrower,
    pool_arguments,
    without_weights,
)
from mdft_fast.app.opening.recipe_start import start_of
from mdft_fast.app.opening.sample_loading import LoadedData, load_data
from mdft_fast.app.recipe import Recipe
from mdft_fast.files import scratch_folder
from mdft_fast.methods import Watch, apply
from mdft_fast.pool import Pool


def started(built: Built, data: LoadedData | None = None) -> Built:
    """Returns a recipe's models with the start that it asks for; as they are where there is one.

    Args:
        built: the recipe, opened.
        data: its samples; None: loaded where the start looks at inputs.
    """
    start = start_of(built.recipe)
    if start is None or built.pool.start is not None:
        return built
    if data is None and "inputs" in start.method.needs:
        data = load_data(built)
    return dataclasses.replace(built, pool=built.pool.with_start(merged(built, data)))


def merged(built: Built, data: LoadedData | None, watch: Watch | None = None) -> Pool:
    """Returns the start of a recipe that has one, alone: a pool of one vector."""
    start = start_of(built.recipe, data.tasks if data else (), built.device)
    assert start is not None
    return start.merged(built.pool, built.backbone, watch)


def pack(
    recipe: Recipe,
    path: Path,
    *,
    codec: str | None = None,
    overwrite: bool = False,
    start: bool = False,
) -> Pool:
    """Packs a recipe's checkpoints into a pool's folder, one task vector at a time in memory.

    The recipe's start, where it is a merge, is packed where ``start`` asks for it: it may take
    samples and time, and a run makes its own. With transforms or a start the new vectors are in
    memory, all of them, in the codec where nothing but transforms are asked for and else unrounded;
    the plain ones go to a folder beside ``path`` for the while, unrounded.
    """
    recipe.check_files()
    start = start and start_of(recipe) is not None
    if recipe.pool.folder is not None:
        # Heads that go over the pool's, vectors that change, and one that is made.
        changed = recipe.transform or start
        if changed or any(task.head is not None for task in recipe.tasks):
            built = build(recipe)
            pool = (started(built) if start else built).pool
        else:
            pool = Pool.open(recipe.pool.folder, verify=True)
        pool.save(path, codec or narrower(recipe), overwrite=overwrite)
        return Pool.open(path)
    tasks = tasks_of_checkpoints(recipe)
    arguments = pool_arguments(recipe, tasks)
    codec = codec or recipe.memory.codec
    if not recipe.transform and not start:
        return Pool.pack(path, **arguments, codec=codec, overwrite=overwrite)
    beside = path.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.absolute(), "plain") as folder:
        plain = Pool.pack(folder / "pool", **arguments)
        if not start:
            pool = apply(plain, recipe.transform, codec=codec)
        else:
            pool, device = apply(plain, recipe.transform), choose_device(recipe.device)
            backbone = without_weights(pool.backbone_spec, pool)
            pool = started(Built(recipe, backbone, pool, tasks, device)).pool
        pool.save(path, codec, overwrite=overwrite)
    return Pool.open(path)
