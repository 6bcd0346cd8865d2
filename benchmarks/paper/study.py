# SPDX-License-Identifier: Apache-2.0
"""One pool, opened once; whatever a table or figure needs of it is learned once and kept."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdft_fast import MdftError, MetaModel
from mdft_fast.app.opening import build, construct_config, images_at_once, specialize_config
from mdft_fast.app.recipe import Recipe
from mdft_fast.evaluation import TestSet, evaluate, load_test_sets
from mdft_fast.files import replacing
from mdft_fast.learning import TaughtTask, construct, specialize, teach
from mdft_fast.methods import Method
from mdft_fast.model import TASK_ARITHMETIC

Correct = Mapping[str, Tensor]  # task -> bool [n]
Changes = tuple[str, ...]  # of the recipe, KEY=VALUE each


class Study:
    """A recipe's pool with its test sets, and the λ learned on it so far.

    λ is learned from tasks without labels. Labels are opened by what evaluates it, and nothing
    that they say goes back.

    Args:
        recipe: its file.
        overrides: of its keys.
        seeds: of splits and draws.
        work: folder where learned λ are kept; what depends on anything else is learned anew.
    """

    def __init__(
        self, recipe: Path, overrides: Sequence[str], seeds: Sequence[int], work: Path
    ) -> None:
        self.file, self.overrides, self.seeds, self.work = recipe, overrides, seeds, work
        self.recipe = self.load()
        with timed() as self.loading:
            self.built = build(self.recipe)
        self.names = tuple(task.name for task in self.built.tasks)
        self._metas: dict[str, MetaModel] = {}
        self._taught: dict[int, list[TaughtTask]] = {}
        self._hits: dict[str, Correct] = {}

    def load(self, *changes: str) -> Recipe:
        """Returns the recipe with changes, over what was given on the command line."""
        return Recipe.load(self.file, [*self.overrides, *changes])

    @functools.cached_property
    def tests(self) -> list[TestSet]:
        """The labelled test sets, of every task."""
        tests = load_test_sets(self.built.tasks, self.built.pool.preprocess)
        if len(tests) < len(self.names):
            raise MdftError(
                f"recipe: tasks must all have evaluate, got it for {[t.task.name for t in tests]}"
            )
        return tests

    def meta(self, recipe: Recipe | None = None) -> MetaModel:
        """Returns a meta-model for a recipe on this pool; one a granularity and start."""
        recipe = recipe or self.recipe
        key = f"{recipe.granularity} {recipe.start}"
        if key not in self._metas:
            self._metas[key] = dataclasses.replace(self.built, recipe=recipe).meta_model()
        return self._metas[key]

    def taught(self, seed: int) -> list[TaughtTask]:
        """Returns the tasks with their teachers' answers."""
        if seed not in self._taught:
            holdout, batch = self.recipe.construct.holdout, self.recipe.memory.micro_batch
            self._taught[seed] = teach(
                self.meta(), self.built.unlabelled, holdout=holdout, seed=seed, batch=batch
            )
        return self._taught[seed]

    def first(self, seed: int, *changes: str) -> Tensor:
        """Returns stage 1's path of λ, ``[steps + 1, K, L]``."""
        recipe = self.load(*changes)
        file = self._file("first", recipe, seed)
        if not file.exists():
            meta, config = self.meta(recipe), construct_config(recipe)
            meta.set_coefficients(meta.as_coefficients(_start(recipe)))
            config = dataclasses.replace(config, seed=seed)
            _keep(file, {"path": construct(meta, self.taught(seed), config).path})
        return _kept(file)["path"]

    def second(self, seed: int, *changes: str, control: bool = False) -> dict[str, Tensor]:
        """Returns stage 2's path of λ for each task, from stage 1's or, as control, without it."""
        recipe = self.load(*changes)
        file = self._file("control" if control else "second", recipe, seed)
        if not file.exists():
            start = TASK_ARITHMETIC if control else self.first(seed, *changes)[-1]
            meta = self.meta(recipe)
            config = dataclasses.replace(specialize_config(recipe), seed=seed)
            paths = {}
            for task in self.taught(seed):
                if task.name in recipe.specialized:
                    meta.set_coefficients(start)
                    paths[task.name] = specialize(meta, task, config).path
            _keep(file, paths)
        return _kept(file)

    def correct(self, at: float | Tensor, recipe: Recipe | None = None) -> Correct:
        """Returns what one λ gets right on every task's test set."""
        return {name: hits for test in self.tests for name, hits in self._one(test, at, recipe)}

    def each(self, at: Mapping[str, Tensor], recipe: Recipe | None = None) -> Correct:
        """Returns what each task's own λ gets right on that task."""
        chosen = [test for test in self.tests if test.task.name in at]
        return {
            name: hits
            for test in chosen
            for name, hits in self._one(test, at[test.task.name], recipe)
        }

    def individual(self) -> Correct:
        """Returns what the pool's own models get right."""
        return self.each({name: self.meta().individual(name) for name in self.names})

    def _one(
        self, test: TestSet, at: float | Tensor, recipe: Recipe | None
    ) -> Iterator[tuple[str, Tensor]]:
        meta = self.meta(recipe)
        matrix = meta.as_coefficients(at)
        key = f"{test.task.name} {hashlib.sha256(matrix.numpy().tobytes()).hexdigest()}"
        if key not in self._hits:
            with meta.using(matrix):
                batch = max(64, images_at_once(self.recipe))
                self._hits[key] = evaluate(meta, [test], batch=batch).correct
        yield from self._hits[key].items()

    def _file(self, stage: str, recipe: Recipe, seed: int) -> Path:
        """Returns where λ is kept: a name made of all that it depends on."""
        learned = {"construct", "granularity", "start", "precision", "memory"}
        learned |= {"specialize"} if stage != "first" else set()
        depends_on = {
            "recipe": recipe.model_dump(mode="json", include=learned),
            "pool": self.built.pool.checksum,
            "tasks": [[t.name, *_stamp(t.adapt.npz)] for t in recipe.tasks],
            "stage": stage,
            "seed": seed,
        }
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:20]
        return self.work / f"{stage}-{digest}.pt"


def _start(recipe: Recipe) -> float | list[float]:
    if isinstance(recipe.start, Method):
        raise MdftError(f"study: start must be numbers, as the paper's, got {recipe.start}")
    return recipe.start if isinstance(recipe.start, float) else list(recipe.start)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _keep(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with replacing(file) as temporary:
        torch.save(dict(tensors), temporary)


def _kept(file: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Gives a dict that holds, at the end, the wall and the process's own CPU seconds.

    The latter is what a busy machine changes little.
    """
    taken: dict[str, Any] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield taken
    taken["seconds"] = time.perf_counter() - wall
    taken["cpu_seconds"] = time.process_time() - cpu


def accuracy(correct: Correct) -> dict[str, float]:
    """Returns task -> top-1 accuracy."""
    return {name: float(hits.double().mean()) for name, hits in correct.items()}
