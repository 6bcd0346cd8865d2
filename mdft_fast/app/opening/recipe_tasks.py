# SPDX-License-Identifier: Apache-2.0
"""A recipe's tasks: names, classes and heads, checked against each other. No image is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from mdft_fast.app.opening.sample_sources import Sources, class_names_of, sources_of
from mdft_fast.app.opening.task_heads import prompts_of
from mdft_fast.app.recipe import Recipe, TaskRecipe
from mdft_fast.checkpoints import Preprocess, example_input
from mdft_fast.data import Task
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head, Pool, check_features, check_tasks

# Task, its head in a packed pool, its class names, its samples -> its head.
MakeHead = Callable[[TaskRecipe, Head | None, tuple[str, ...] | None, Sources], Head]


def check_heads(tasks: Sequence[Task], backbone: nn.Module, preprocess: Preprocess) -> None:
    """Refuses heads that do not fit each other, their class names or the backbone."""
    check_tasks(tasks)
    check_features(backbone, example_input(preprocess), {task.name: task.head for task in tasks})


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
    tasks = []
    for task in recipe.tasks:
        sources = sources_of(task, transductive=recipe.transductive)
        names = class_names_of(task, sources, named.get(task.name))
        head = make(task, heads.get(task.name), names, sources)
        if names is None and task.head is not None and task.head.zero_shot is not None:
            names = prompts_of(task, names)[0]
        names = names or tuple(str(c) for c in range(head.classes))
        tasks.append(Task(task.name, names, head, sources.adapt, sources.evaluate))
    return tuple(tasks)
