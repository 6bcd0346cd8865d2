# SPDX-License-Identifier: Apache-2.0
"""What a recipe names, verified by names, shapes and headers: no weight is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from mdft_fast.data import Task
from mdft_fast.errors import MdftError
from mdft_fast.model.empty import check_shapes
from mdft_fast.pool import Head, Pool, as_preprocess
from mdft_fast.pool.activation import check_activation
from mdft_fast.pool.pack import Packing
from mdft_fast.pool.tasks import check_features, check_tasks, features_of
from mdft_fast.run.forecast import Subject
from mdft_fast.run.heads import prompts_of, shape_of_head
from mdft_fast.run.pool import (
    agreed_backbone,
    check_agrees,
    pool_arguments,
    preprocess_of,
    shapes_alone,
    spec_of,
)
from mdft_fast.run.sources import Sources, class_names_of, sources_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdft_fast.recipe import Recipe
    from mdft_fast.recipe.sections import TaskRecipe

# Task, its head in a packed pool, its class names, its samples -> its head.
MakeHead = Callable[["TaskRecipe", Head | None, tuple[str, ...] | None, Sources], Head]


def verify(recipe: Recipe) -> Subject:
    """Refuses what a run would refuse of backbone, models, heads and class names.

    Headers, heads and buffers are read, and a packed pool is mapped. Heads that are made of class
    names or images are not made: their shape is.

    Returns:
        What a forecast is about.

    Raises:
        MdftError: in the words of the run.
    """
    if recipe.pool.folder is not None:
        pool = Pool.open(recipe.pool.folder)
        backbone, size = shapes_alone(agreed_backbone(recipe, pool)), pool.preprocess["size"]
        check_agrees(recipe, pool)
        check_activation(backbone, pool.activation, "the pool")
        check_shapes(backbone, pool)
        tasks = tasks_of(recipe, _shapes_of_heads(backbone, size), pool)
        check_heads(tasks, backbone, size)
        classes = [task.classes for task in pool.tasks]
    else:
        backbone = shapes_alone(spec_of(recipe) or {})
        size = as_preprocess(preprocess_of(recipe))["size"]
        tasks = tasks_of(recipe, _shapes_of_heads(backbone, size))
        given = pool_arguments(recipe, tasks)
        del given["backbone_spec"]
        Packing(**given)
        classes = [task.head.classes for task in tasks]
    return Subject(backbone, classes, (size[0], size[1]), recipe.memory.blocks)


def _shapes_of_heads(backbone: nn.Module, size: Sequence[int]) -> MakeHead:
    known = functools.cache(lambda: features_of(backbone, size) or 1)
    return lambda given, packed, names, sources: shape_of_head(given, packed, known, names, sources)


def check_heads(tasks: Sequence[Task], backbone: nn.Module, size: Sequence[int]) -> None:
    """Refuses heads that do not fit each other, their class names or the backbone."""
    check_tasks(tasks)
    check_features(backbone, size, {task.name: task.head for task in tasks})


def tasks_of(recipe: Recipe, make: MakeHead, pool: Pool | None = None) -> tuple[Task, ...]:
    """Returns a recipe's tasks with their labelled samples; no image, no label is read.

    Args:
        recipe: whose.
        make: returns a task's head.
        pool: the packed pool, where there is one.
    """
    heads = {} if pool is None else pool.heads
    named = {} if pool is None else {task.name: task.class_names for task in pool.tasks}
    for task in recipe.tasks:
        if pool is not None and task.name not in named:
            raise MdftError(f"recipe: task must be one of {list(named)}, got {task.name!r}")
    return tuple(
        _task(task, make, recipe.transductive, heads.get(task.name), named.get(task.name))
        for task in recipe.tasks
    )


def _task(
    given: TaskRecipe,
    make: MakeHead,
    transductive: bool,
    packed: Head | None,
    known: tuple[str, ...] | None,
) -> Task:
    sources = sources_of(given, transductive=transductive)
    names = class_names_of(given, sources, known)
    head = make(given, packed, names, sources)
    if names is None and given.head is not None and given.head.zero_shot is not None:
        names = prompts_of(given, names)[0]
    names = names or tuple(str(c) for c in range(head.classes))
    return Task(given.name, names, head, sources.adapt, sources.evaluate)
