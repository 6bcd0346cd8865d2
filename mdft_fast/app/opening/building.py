# SPDX-License-Identifier: Apache-2.0
"""From a recipe to what the stages take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mdft_fast.app.opening.pool_sources import (
    agreed_backbone,
    choose_device,
    from_checkpoints,
    open_packed,
    prepared,
    preprocess_of,
    spec_of,
)
from mdft_fast.app.opening.sample_choice import of_test
from mdft_fast.app.opening.sample_sources import Sources, class_names_of, sources_of
from mdft_fast.app.opening.task_heads import Base, head_of, prompts_of
from mdft_fast.app.recipe import Recipe, TaskRecipe
from mdft_fast.checkpoints import Choice, Preprocess, example_input
from mdft_fast.data import Samples, Task, load_test_images
from mdft_fast.errors import MdftError
from mdft_fast.methods import Method
from mdft_fast.model import MetaModel, Mode
from mdft_fast.pool import Head, Pool, check_features, check_tasks

# Task, its head in a packed pool, its class names, its samples -> its head.
MakeHead = Callable[[TaskRecipe, Head | None, tuple[str, ...] | None, Sources], Head]


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """What a recipe names, opened and verified.

    Attributes:
        recipe: the recipe.
        backbone: the module whose parameters are merged.
        pool: base, task vectors, heads.
        tasks: the recipe's tasks with their labelled samples: for evaluation alone.
        device: where the run computes.
        verified: whether the pool holds what its checksum says: the checksum stands for it then.
    """

    recipe: Recipe
    backbone: nn.Module
    pool: Pool
    tasks: tuple[Task, ...]
    device: torch.device
    verified: bool = True

    @property
    def unlabelled(self) -> list[Task]:
        """The tasks without their labelled samples: all that the stages ever see."""
        return [Task(t.name, t.class_names, t.head, t.adapt) for t in self.tasks]

    def meta_model(self, mode: Mode | None = None, *, teachers: bool = False) -> MetaModel:
        """Returns a meta-model at the recipe's start.

        Args:
            mode: None: the recipe's, "resident" where that is "auto".
            teachers: whether only the tasks' own models are asked of it: the start need not be
                made then.

        Raises:
            MdftError: if that is a merge, and none has been made (:func:`started`).
        """
        start, memory = self.recipe.start, self.recipe.memory
        if teachers:
            start = 0.0
        if isinstance(start, Method) and self.pool.start is None:
            raise MdftError(f"recipe: start must be made before the meta-model, got none: {start}")
        mode = mode or ("resident" if memory.mode == "auto" else memory.mode)
        return MetaModel(
            self.backbone,
            self.pool,
            granularity=self.recipe.granularity,
            start=None if isinstance(start, Method) else start,
            mode=mode,
            precision=self.recipe.precision,
            checkpointing=memory.checkpointing,
            blocks=memory.blocks,
            device=self.device,
        )


def build(recipe: Recipe, *, verify: bool = True) -> Built:
    """Opens everything a recipe names.

    Args:
        recipe: what is opened.
        verify: of a packed pool, compares its content with its checksums.

    Raises:
        MdftError: if a file is missing or does not fit; it names file and key.
    """
    recipe.check_files()
    if recipe.pool.folder is not None:
        backbone, pool = open_packed(recipe, verify=verify)
        base = _packed_base(recipe, pool, backbone)
        tasks = tasks_of(recipe, _heads(recipe, base), pool)
        check_heads(tasks, backbone, pool.preprocess)
        pool = prepared(recipe, pool).with_heads(tasks)
    else:
        tasks = tasks_of_checkpoints(recipe)
        backbone, pool = from_checkpoints(recipe, tasks)
    verified = verify or recipe.pool.folder is None
    return Built(recipe, backbone, pool, tasks, choose_device(recipe.device), verified)


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


def tasks_of_checkpoints(recipe: Recipe) -> tuple[Task, ...]:
    """Returns the tasks of a recipe whose pool is checkpoints."""
    assert recipe.pool.base is not None
    preprocess, device = preprocess_of(recipe), choose_device(recipe.device)
    choice = Choice(recipe.pool.weights)
    base = Base.of_file(recipe.pool.base, spec_of(recipe) or {}, preprocess, device, choice)
    return tasks_of(recipe, _heads(recipe, base))


def _heads(recipe: Recipe, base: Base) -> MakeHead:
    drop = recipe.duplicates == "drop"

    @functools.cache
    def tests() -> dict[str, Samples]:
        samples = {}
        for task in recipe.tasks:
            source = sources_of(task, transductive=recipe.transductive).evaluate
            if source is not None:
                choose = of_test(recipe, task.name)
                samples[task.name] = load_test_images(source, base.preprocess, choose=choose)
        return samples

    def make(
        task: TaskRecipe, packed: Head | None, names: tuple[str, ...] | None, sources: Sources
    ) -> Head:
        return head_of(task, packed, base, names, sources, tests=tests, drop=drop)

    return make


def _packed_base(recipe: Recipe, pool: Pool, backbone: nn.Module) -> Base:
    device = choose_device(recipe.device)

    def load() -> nn.Module:
        return MetaModel(backbone, pool, granularity="task", start=0.0).materialize().to(device)

    identity = f"pool {pool.checksum} {agreed_backbone(recipe, pool)}"
    return Base(functools.cache(load), lambda: identity, pool.preprocess)


def images_at_once(recipe: Recipe) -> int:
    """Returns how many samples a run's largest forward pass takes."""
    samples = recipe.construct.batch * len(recipe.tasks)
    if recipe.specialized:
        samples = max(samples, recipe.specialize.batch)
    return min(samples, recipe.memory.micro_batch or samples)
