# SPDX-License-Identifier: Apache-2.0
"""From a recipe to what the stages take."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mdft_fast.app.opening.labelled_shots import without_notes_of
from mdft_fast.app.opening.pool_sources import (
    agreed_backbone,
    choose_device,
    from_checkpoints,
    narrower,
    open_packed,
    pool_arguments,
    prepared,
    preprocess_of,
    spec_of,
)
from mdft_fast.app.opening.sample_sources import Sources, sources_of
from mdft_fast.app.opening.task_heads import Base, head_of
from mdft_fast.app.opening.tasks import MakeHead, check_heads, tasks_of
from mdft_fast.data import Samples, Task, load_test_images
from mdft_fast.methods import apply
from mdft_fast.model import MetaModel, Mode
from mdft_fast.pool import Head, Pool

if TYPE_CHECKING:
    from mdft_fast.app.recipe import Recipe, TaskRecipe


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """What a recipe names, opened and verified.

    Attributes:
        recipe: the recipe.
        backbone: the module whose parameters are merged.
        pool: base, task vectors, heads.
        tasks: the recipe's tasks with their labelled samples: for evaluation alone.
        device: where the run computes.
    """

    recipe: Recipe
    backbone: nn.Module
    pool: Pool
    tasks: tuple[Task, ...]
    device: torch.device

    @property
    def unlabelled(self) -> list[Task]:
        """The tasks without their labelled samples: all that the stages ever see."""
        return [Task(t.name, t.class_names, t.head, t.adapt) for t in self.tasks]

    def meta_model(self, mode: Mode | None = None) -> MetaModel:
        """Returns a meta-model at the recipe's start.

        Args:
            mode: None: the recipe's, "resident" where that is "auto".
        """
        start, memory = self.recipe.start, self.recipe.memory
        mode = mode or ("resident" if memory.mode == "auto" else memory.mode)
        return MetaModel(
            self.backbone,
            self.pool,
            granularity=self.recipe.granularity,
            start=list(start) if isinstance(start, tuple) else start,
            mode=mode,
            precision=self.recipe.precision,
            checkpointing=memory.checkpointing,
            blocks=memory.blocks,
            device=self.device,
        )


def build(recipe: Recipe) -> Built:
    """Opens everything a recipe names.

    Raises:
        MdftError: if a file is missing or does not fit; it names file and key.
    """
    recipe.check_files()
    notes: list[str] = []
    if recipe.pool.folder is not None:
        backbone, pool = open_packed(recipe)
        base = _packed_base(recipe, pool, backbone)
        tasks = tasks_of(recipe, _heads(recipe, base, notes), pool)
        check_heads(tasks, backbone, pool.preprocess["size"])
        pool = prepared(recipe, pool)
    else:
        tasks = _tasks(recipe, notes)
        backbone, pool = from_checkpoints(recipe, tasks)
    # The stages read the pool's heads: a recipe's own go over them, and their class names.
    heads = {**pool.heads, **{task.name: task.head for task in tasks}}
    names = {task.name: task.class_names for task in tasks}
    known = tuple(
        dataclasses.replace(task, class_names=names.get(task.name, task.class_names))
        for task in pool.tasks
    )
    over = without_notes_of((task.name for task in recipe.tasks if task.head), pool.notes)
    pool = dataclasses.replace(pool, heads=heads, tasks=known, notes=(*notes, *over))
    return Built(recipe, backbone, pool, tasks, choose_device(recipe.device))


def pack(recipe: Recipe, path: Path, *, codec: str | None = None, overwrite: bool = False) -> Pool:
    """Packs a recipe's checkpoints into a pool's folder, one task vector at a time in memory.

    With transforms the new vectors are in memory, all K in the codec; the plain ones go to a folder
    beside ``path`` for the while, unrounded.
    """
    recipe.check_files()
    if recipe.pool.folder is not None:
        # Heads that go over the pool's, and vectors that change.
        made = any(task.head is not None for task in recipe.tasks) or recipe.transform
        pool = build(recipe).pool if made else Pool.open(recipe.pool.folder)
        pool.save(path, codec or narrower(recipe), overwrite=overwrite)
        return Pool.open(path)
    notes: list[str] = []
    arguments = pool_arguments(recipe, _tasks(recipe, notes))
    codec = codec or recipe.memory.codec
    if not recipe.transform:
        return Pool.pack(path, **arguments, codec=codec, overwrite=overwrite, notes=notes)
    beside = path.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{path.name}.plain-") as folder:
        plain = Pool.pack(Path(folder) / "pool", **arguments, notes=notes)
        apply(plain, recipe.transform, codec=codec).save(path, overwrite=overwrite)
    return Pool.open(path)


def _tasks(recipe: Recipe, notes: list[str]) -> tuple[Task, ...]:
    """Returns the tasks of a recipe whose pool is checkpoints; what to know of heads, to notes."""
    assert recipe.pool.base is not None
    preprocess, device = preprocess_of(recipe), choose_device(recipe.device)
    base = Base.of_file(recipe.pool.base, spec_of(recipe) or {}, preprocess, device)
    return tasks_of(recipe, _heads(recipe, base, notes))


def _heads(recipe: Recipe, base: Base, notes: list[str]) -> MakeHead:
    drop = recipe.duplicates == "drop"

    @functools.cache
    def tests() -> dict[str, Samples]:
        sources = {
            task.name: sources_of(task, transductive=recipe.transductive).evaluate
            for task in recipe.tasks
        }
        return {
            name: load_test_images(source, base.preprocess)
            for name, source in sources.items()
            if source is not None
        }

    def make(
        given: TaskRecipe, packed: Head | None, names: tuple[str, ...] | None, sources: Sources
    ) -> Head:
        return head_of(
            given, packed, base, names, sources, tests=tests, drop=drop, say=notes.append
        )

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
