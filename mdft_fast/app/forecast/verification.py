# SPDX-License-Identifier: Apache-2.0
"""What a recipe names, verified by names, shapes and headers: no weight is read."""

from __future__ import annotations

import functools

from torch import nn

from mdft_fast.app.forecast.step_forecast import Subject
from mdft_fast.app.opening import (
    MakeHead,
    agreed_backbone,
    check_agrees,
    check_heads,
    check_start,
    pool_arguments,
    preprocess_of,
    shape_of_head,
    shapes_alone,
    spec_of,
    start_of,
    tasks_of,
)
from mdft_fast.app.recipe import Recipe
from mdft_fast.checkpoints import Preprocess, as_preprocess, check_activation, example_input
from mdft_fast.model import check_shapes
from mdft_fast.pool import Packing, Pool, features_of


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
        backbone, preprocess = shapes_alone(agreed_backbone(recipe, pool)), pool.preprocess
        check_agrees(recipe, pool)
        check_start(recipe, pool)
        check_activation(backbone, pool.activation, "the pool")
        check_shapes(backbone, pool)
        tasks = tasks_of(recipe, _shapes_of_heads(backbone, preprocess), pool)
        check_heads(tasks, backbone, preprocess)
        classes = [task.classes for task in pool.tasks]
        vectors, made = pool.K, pool.start is None
    else:
        backbone = shapes_alone(spec_of(recipe) or {})
        preprocess = as_preprocess(preprocess_of(recipe))
        tasks = tasks_of(recipe, _shapes_of_heads(backbone, preprocess))
        arguments = pool_arguments(recipe, tasks)
        del arguments["backbone_spec"]
        Packing(**arguments)
        classes = [task.head.classes for task in tasks]
        vectors, made = len(tasks), True
    if made and start_of(recipe) is not None:
        vectors += 1
    height, width = preprocess["size"]
    return Subject(backbone, classes, (height, width), recipe.memory.blocks, vectors)


def _shapes_of_heads(backbone: nn.Module, preprocess: Preprocess) -> MakeHead:
    features = functools.cache(lambda: features_of(backbone, example_input(preprocess)) or 1)
    return lambda task, packed, names, sources: shape_of_head(
        task, packed, features, names, sources
    )
