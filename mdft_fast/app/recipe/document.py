# SPDX-License-Identifier: Apache-2.0
"""The keys of a recipe, and what must hold between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mdft_fast.app.recipe.presets import PRESETS
from mdft_fast.app.recipe.sample_sections import AdaptData, EvaluateData
from mdft_fast.app.recipe.sections import (
    Backbone,
    Construct,
    Evaluation,
    Granularity,
    Memory,
    PoolSource,
    Preprocess,
    SampleCount,
    Specialize,
    TaskRecipe,
    Transforms,
)
from mdft_fast.app.recipe.start_key import StartKey
from mdft_fast.app.recipe.value_types import Device, FilePath, Section, choice
from mdft_fast.errors import MdftError, nearest
from mdft_fast.learning import ConstructConfig, SpecializeConfig, StageConfig, check_capturable_mode
from mdft_fast.methods import Method
from mdft_fast.model import Precision
from mdft_fast.options import words_of

with warnings.catch_warnings():
    # pydantic keeps a deprecated method BaseModel.construct; here it is a stage's name.
    warnings.filterwarnings("ignore", 'Field name "construct"', UserWarning)

    class Keys(Section):
        """The keys in the order of the file.

        Attributes:
            version: of this format.
            preset: what holds where this file is silent. paper is the method to the letter;
                adamerging and entropy are what it builds on.
            pool: the models.
            backbone: builds the module whose parameters are merged.
            preprocess: from uint8 images to inputs.
            tasks: each: model, classifier, unlabelled samples.
            transform: methods that the task vectors go through first, as [{ties: {density: 0.2}}].
            granularity: what shares a coefficient.
            start: λ before the first step: one number or one a vector; or a merge, by name or as
                {method: NAME, field: value}. The merge enters as one more vector, of which λ is 1,
                and 0 of the tasks' own.
            device: where the run computes; auto: CUDA where torch sees a GPU.
            precision: of the merged weights and the forward pass.
            samples: unlabelled samples a task that are looked at, chosen by seed; no other is
                decoded or shown to a teacher. null: what the stages and the start draw and hold
                out, at least 500; with the filter on, which removes some, more in rounds until
                enough are kept. all: every one, a word.
            evaluate: what is measured on the labelled samples.
            log: what each step's numbers are written to beside metrics.jsonl and metrics.csv;
                tensorboard: events in the run folder's `tensorboard/`.
            output: the run folder; an older run is never overwritten.
            transductive: whether the unlabelled samples may be the test images.
            duplicates: what is done with test images among the unlabelled ones. Those of a
                prototype head count too. They are found by content; drop leaves them out.
            deterministic: equal inputs give equal bits. On CUDA: torch's deterministic
                algorithms, for the length of the run.
        """

        version: Literal[1]
        preset: Annotated[str, choice(*PRESETS)] = "default"
        pool: PoolSource
        backbone: Backbone | None = None
        preprocess: Preprocess | None = None
        tasks: Annotated[tuple[TaskRecipe, ...], Field(strict=False)]
        transform: Transforms = ()
        granularity: Granularity
        start: StartKey
        device: Device = "auto"
        precision: Precision = "fp32"
        memory: Memory = Memory.default()
        samples: SampleCount | None = None
        construct: Construct  # type: ignore[assignment]
        specialize: Specialize
        evaluate: Evaluation = Evaluation()
        seed: Annotated[int, Interval(ge=0), Field(description=words_of(StageConfig, "seed"))] = (
            StageConfig.seed
        )
        log: Literal["none", "tensorboard"] = "none"
        output: FilePath
        transductive: bool = False
        duplicates: Literal["refuse", "drop"] = "refuse"
        deterministic: bool = True

        @model_validator(mode="after")
        def _keys_fit_together(self) -> Keys:
            problems = [*_pool_problems(self), *_task_problems(self), *_method_problems(self)]
            if problems:
                message = "\n".join(problems)
                raise PydanticCustomError("recipe", "{message}", {"message": message})
            return self


def _pool_problems(recipe: Keys) -> Iterator[str]:
    pool = recipe.pool
    if pool.folder:
        for key in ("base", "models", "weights", "part", "ignore", "buffers"):
            if getattr(pool, key) != type(pool).model_fields[key].default:
                yield f"pool.{key}: must be absent, since pool.folder is a packed pool"
        return
    if not pool.base and not pool.models:
        yield "pool: must have base and models, or folder for a packed pool"
        return
    needs = "with pool.base and pool.models"
    for key in ("base", "models"):
        if not getattr(pool, key):
            yield f"pool.{key}: is missing"
    if not recipe.backbone:
        yield f"backbone: is missing; needed {needs}"
    for i, task in enumerate(recipe.tasks):
        if not task.head:
            yield f"tasks[{i}].head: is missing; needed {needs}"


def _task_problems(recipe: Keys) -> Iterator[str]:
    first: dict[str, int] = {}
    if not recipe.tasks:
        yield "tasks: must be a list of at least one"
    for i, task in enumerate(recipe.tasks):
        if task.name in first:
            yield f"tasks[{i}].name: {task.name!r} is tasks[{first[task.name]}]'s; must be unique"
        first.setdefault(task.name, i)
        yield from _head_problems(f"tasks[{i}].head", task)
        if task.evaluate and _same_images(task.adapt, task.evaluate) and not recipe.transductive:
            yield f"tasks[{i}].adapt: these are the test images; say `transductive: true` to do so"
    chosen = recipe.specialize.tasks
    for i, name in enumerate(() if isinstance(chosen, str) else chosen):
        if name not in first:
            wanted = f"must be a task's name, got {name!r}{nearest(name, first)}"
            yield f"specialize.tasks[{i}]: {wanted}"


def _head_problems(key: str, task: TaskRecipe) -> Iterator[str]:
    head, test = task.head, task.evaluate
    if head is None:
        return
    kinds = ("file", "zero_shot", "prototypes")
    present = [kind for kind in kinds if getattr(head, kind)]
    if len(present) != 1:
        yield f"{key}: must have exactly one of {list(kinds)}, got {present or 'none'}"
    if not head.file and head.normalize is not None:
        yield f"{key}.normalize: belongs to {key}.file, and there is none"
    shots = head.prototypes
    if shots and test and _same_images(shots, test):
        yield f"{key}.prototypes: these are the test images, and a head may not know their labels"


def _same_images(adapt: AdaptData, test: EvaluateData) -> bool:
    """Tells whether two sources are the same images, as far as their keys say."""
    if adapt.place() != test.place():
        return False
    if adapt.folder:  # without splits, each takes its own part
        return adapt.split is not None
    parts = [(adapt.torchvision or adapt.hf, "train"), (test.torchvision or test.hf, "test")]
    chosen = [part.split or usual for part, usual in parts if part]
    return len(set(chosen)) < 2


def _method_problems(recipe: Keys) -> Iterator[str]:
    if recipe.transductive and recipe.duplicates == "drop":
        yield "duplicates: must be 'refuse' with transductive: true, which lets test images in"
    # A packed pool may hold a start of its own, one vector more.
    counts = [len(recipe.tasks) + more for more in ((0, 1) if recipe.pool.folder else (0,))]
    if isinstance(recipe.start, tuple) and len(recipe.start) not in counts:
        wanted = f"must be one number or {' or '.join(map(str, counts))}, one a vector"
        yield f"start: {wanted}, got {len(recipe.start)}"
    for i, task in enumerate(recipe.tasks):
        if isinstance(recipe.start, Method) and task.name == recipe.start.name:
            wanted = f"must be another name, {task.name!r} is the vector's that the start makes"
            yield f"tasks[{i}].name: {wanted}"
    checks: list[Callable[[], object]] = [
        partial(construct_config, recipe),
        partial(specialize_config, recipe),
    ]
    if recipe.memory.cuda_graph:
        checks.append(partial(check_capturable_mode, recipe.memory.mode))
    yield from dict.fromkeys(line for check in checks for line in complaint(check))


def complaint(check: Callable[[], object], at: str = "") -> Iterator[str]:
    """Yields the message of a check that fails, after ``at``."""
    try:
        check()
    except MdftError as error:
        yield f"{at}{error}"


def construct_config(recipe: Keys) -> ConstructConfig:
    """Returns stage 1's configuration."""
    stage = recipe.construct
    config: ConstructConfig = stage.build(
        **stage.objective.arguments(), **stage.filter.arguments(), **_shared(recipe)
    )
    return config


def specialize_config(recipe: Keys) -> SpecializeConfig:
    """Returns stage 2's configuration."""
    config: SpecializeConfig = recipe.specialize.build(
        holdout=recipe.construct.holdout, **_shared(recipe)
    )
    return config


def _shared(recipe: Keys) -> dict[str, object]:
    return {"seed": recipe.seed, **recipe.memory.arguments()}
