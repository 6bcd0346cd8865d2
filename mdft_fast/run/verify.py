# SPDX-License-Identifier: Apache-2.0
"""What a recipe names, verified by names, shapes and headers: no weight is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mdft_fast.data import Task
from mdft_fast.errors import MdftError
from mdft_fast.model import build_backbone
from mdft_fast.model.empty import check_shapes
from mdft_fast.pool import Head, Pool, SourceFacts, as_preprocess, open_state
from mdft_fast.pool.activation import check_activation
from mdft_fast.pool.pack import Packing
from mdft_fast.pool.places import find_checkpoint
from mdft_fast.pool.readers.facts import check_preprocess
from mdft_fast.pool.tasks import check_features, check_tasks, features_of
from mdft_fast.run.data import class_names_of, sources_of
from mdft_fast.run.forecast import Subject
from mdft_fast.run.heads import prompts_of, shape_of_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdft_fast.recipe import Recipe
    from mdft_fast.recipe.sections import TaskRecipe

# Task, its head in a packed pool, its class names -> its head.
MakeHead = Callable[["TaskRecipe", Head | None, tuple[str, ...] | None], Head]


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
        backbone, size = packed_backbone(recipe, pool), pool.preprocess["size"]
        check_activation(backbone, pool.activation, "the pool")
        check_shapes(backbone, pool)
        tasks = tasks_of(recipe, _shapes_of_heads(backbone, size), pool)
        check_heads(tasks, backbone, size)
        classes = [task.classes for task in pool.tasks]
    else:
        sources = checkpoints_of(recipe)
        backbone, size = sources["backbone"], as_preprocess(sources["preprocess"])["size"]
        tasks = tasks_of(recipe, _shapes_of_heads(backbone, size))
        del sources["backbone_spec"]
        Packing(**sources, tasks=tasks)
        classes = [task.head.classes for task in tasks]
    return Subject(backbone, classes, (size[0], size[1]), recipe.memory.blocks)


def _shapes_of_heads(backbone: nn.Module, size: Sequence[int]) -> MakeHead:
    known = functools.cache(lambda: features_of(backbone, size) or 1)
    return lambda given, packed, names: shape_of_head(given, packed, known, names)


def check_heads(tasks: Sequence[Task], backbone: nn.Module, size: Sequence[int]) -> None:
    """Refuses heads that do not fit each other, their class names or the backbone."""
    check_tasks(tasks)
    check_features(backbone, size, tasks)


def checkpoints_of(recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments of ``Pool.from_checkpoints`` and ``Pool.pack``, but for the tasks."""
    base, models, spec = recipe.pool.base, recipe.pool.models, spec_of(recipe)
    if spec is None or base is None or models is None:
        raise MdftError("recipe: backbone, pool.base and pool.models must be given, got none")
    return {
        "base": base,
        "checkpoints": {task.name: find_checkpoint(models, task.name) for task in recipe.tasks},
        "backbone": _shapes_alone(spec),
        "preprocess": preprocess_of(recipe),
        "backbone_spec": spec,
    }


def packed_backbone(recipe: Recipe, pool: Pool) -> nn.Module:
    """Returns the backbone that recipe and pool name, shapes alone."""
    if recipe.preprocess is not None:
        said = as_preprocess({**pool.preprocess, **recipe.preprocess.said()})
        if said != pool.preprocess:
            raise MdftError(f"recipe: preprocess must be the pool's {pool.preprocess}, got {said}")
    return _shapes_alone(agreed_spec(recipe, pool))


def _shapes_alone(spec: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(spec)


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
    adapt, labelled = sources_of(given, transductive=transductive)
    names = class_names_of(given, adapt, labelled, known)
    head = make(given, packed, names)
    if names is None and given.head is not None and given.head.zero_shot is not None:
        names = prompts_of(given, names)[0]
    names = names or tuple(str(c) for c in range(head.classes))
    return Task(given.name, names, head, adapt, labelled)


def preprocess_of(recipe: Recipe) -> dict[str, Any]:
    """Returns what a recipe's preprocess says, and where it is silent what its base says."""
    base = recipe.pool.base
    facts = SourceFacts() if base is None else open_state(base).facts
    said = facts.preprocess()
    if recipe.preprocess is not None:
        said |= recipe.preprocess.said()
    missing = [key for key in ("size", "mean", "std") if key not in said]
    if missing:
        raise MdftError(f"recipe: preprocess must be given, as {base} does not say {missing}")
    check_preprocess(facts, dict.fromkeys(said, str(base)), said)
    return said


def spec_of(recipe: Recipe) -> dict[str, Any] | None:
    """Returns the backbone that a recipe names, as ``build_backbone`` takes it."""
    return recipe.backbone.model_dump() if recipe.backbone is not None else None


def agreed_spec(recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """Returns the backbone that recipe and pool name; a contradiction is an error."""
    said, packed = spec_of(recipe), dict(pool.backbone_spec)
    if said is not None and packed and said != packed:
        raise MdftError(f"recipe: backbone must be the pool's {packed}, got {said}")
    spec = said or packed
    if not spec:
        raise MdftError("recipe: backbone must be given, got none in recipe or pool")
    return spec
