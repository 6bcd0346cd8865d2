# SPDX-License-Identifier: Apache-2.0
"""From a recipe to what the stages take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mdft_fast.data import Task
from mdft_fast.errors import MdftError
from mdft_fast.model import MetaModel, Mode, build_backbone
from mdft_fast.model.pieces import names_of
from mdft_fast.pool import Head, Pool, SourceFacts, as_preprocess, open_state
from mdft_fast.pool.places import find_checkpoint
from mdft_fast.pool.readers.facts import check_preprocess
from mdft_fast.run.heads import Base, head_of, prompts_of
from mdft_fast.run.sources import class_names_of, sources_of
from mdft_fast.stages import ConstructConfig, OptimizerConfig, SpecializeConfig

if TYPE_CHECKING:
    from mdft_fast.recipe import Recipe
    from mdft_fast.recipe.sections import Optimizer, TaskRecipe


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
            start=start if isinstance(start, float) else list(start),
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
    if recipe.pool.folder is not None:
        pool = Pool.open(recipe.pool.folder)
        pool.check_finite(recipe.pool.folder)
        backbone = _without_weights(_agreed_backbone(recipe, pool), pool)
        _check_agrees(recipe, pool)
        base = _packed_base(recipe, pool, backbone)
        named = {task.name: task.class_names for task in pool.tasks}
        tasks = tuple(
            _task(recipe, t, base, pool.heads.get(t.name), named.get(t.name)) for t in recipe.tasks
        )
        if recipe.memory.codec != "fp32":  # what was packed narrower gains nothing from fp32
            pool = pool.encode(recipe.memory.codec)
    else:
        backbone, tasks, pool = _from_checkpoints(recipe)
    for task in tasks:
        if task.name not in pool.names:
            raise MdftError(f"recipe: task must be one of {list(pool.names)}, got {task.name!r}")
    # The stages read the pool's heads: a recipe's own go over them.
    heads = {**pool.heads, **{task.name: task.head for task in tasks}}
    pool = dataclasses.replace(pool, heads=heads)
    return Built(recipe, backbone, pool, tasks, choose_device(recipe.device))


def pack(recipe: Recipe, path: Path, *, codec: str | None = None, overwrite: bool = False) -> Pool:
    """Packs a recipe's checkpoints into a pool's folder, one task vector at a time in memory."""
    recipe.check_files()
    if recipe.pool.folder is not None:
        made = any(task.head is not None for task in recipe.tasks)  # heads that go over the pool's
        pool = build(recipe).pool if made else Pool.open(recipe.pool.folder)
        own = recipe.memory.codec if recipe.memory.codec != "fp32" else None
        pool.save(path, codec or own, overwrite=overwrite)
        return Pool.open(path)
    return Pool.pack(
        path, **_sources(recipe), codec=codec or recipe.memory.codec, overwrite=overwrite
    )


def _from_checkpoints(recipe: Recipe) -> tuple[nn.Module, tuple[Task, ...], Pool]:
    sources = _sources(recipe)
    pool = Pool.from_checkpoints(**sources, codec=recipe.memory.codec)
    return _without_weights(pool.backbone_spec, pool), tuple(sources["tasks"]), pool


def _sources(recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments of ``Pool.from_checkpoints`` and ``Pool.pack``."""
    models, spec = recipe.pool.models, spec_of(recipe)
    if spec is None or models is None:
        raise MdftError("recipe: backbone and pool.models must be given, got none")
    file = recipe.pool.base
    assert file is not None
    preprocess = preprocess_of(recipe)
    base = Base.of_file(file, spec, preprocess, choose_device(recipe.device))
    tasks = [_task(recipe, task, base) for task in recipe.tasks]
    with torch.device("meta"):  # shapes and names are all that is read of it
        backbone = build_backbone(spec)
    return {
        "base": file,
        "checkpoints": {task.name: find_checkpoint(models, task.name) for task in tasks},
        "tasks": tasks,
        "backbone": backbone,
        "preprocess": preprocess,
        "backbone_spec": spec,
    }


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


def _without_weights(spec: Mapping[str, Any], pool: Pool) -> nn.Module:
    """Returns a backbone in which merged weights take no memory, and all else is in place."""
    with torch.device("meta"):
        module = build_backbone(spec)
    merged = {name for names in names_of(pool.layout, pool.left_out) for name in names}
    own = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    if any(name not in merged and name not in pool.buffers for name, _ in own):
        module = build_backbone(spec)  # a buffer that no checkpoint holds: its value is needed
        empty: dict[int, nn.Parameter] = {}  # a tie stays one
    for name, tensor in own:
        path, _, leaf = name.rpartition(".")
        holder = module.get_submodule(path)
        if name in merged:
            old = holder._parameters[leaf]
            assert old is not None
            if old.device.type != "meta":
                holder._parameters[leaf] = empty.setdefault(id(old), nn.Parameter(old.to("meta")))
        elif name in pool.buffers and isinstance(tensor, nn.Parameter):
            holder._parameters[leaf] = nn.Parameter(pool.buffers[name].clone(), requires_grad=False)
        elif name in pool.buffers:
            holder._buffers[leaf] = pool.buffers[name].clone()
    return module


def _packed_base(recipe: Recipe, pool: Pool, backbone: nn.Module) -> Base:
    device = choose_device(recipe.device)

    def load() -> nn.Module:
        return MetaModel(backbone, pool, granularity="task", start=0.0).materialize().to(device)

    identity = f"pool {pool.checksum} {_agreed_backbone(recipe, pool)}"
    return Base(functools.cache(load), lambda: identity, pool.preprocess)


def _task(
    recipe: Recipe,
    given: TaskRecipe,
    base: Base,
    packed: Head | None = None,
    known: tuple[str, ...] | None = None,
) -> Task:
    sources = sources_of(given, transductive=recipe.transductive)
    names = class_names_of(given, sources, known)
    head = head_of(given, packed, base, names, sources, drop=recipe.duplicates == "drop")
    if names is None and given.head is not None and given.head.zero_shot is not None:
        names = prompts_of(given, names)[0]
    names = names or tuple(str(c) for c in range(head.classes))
    return Task(given.name, names, head, sources.adapt, sources.evaluate)


def spec_of(recipe: Recipe) -> dict[str, Any] | None:
    """Returns the backbone that a recipe names, as ``build_backbone`` takes it."""
    return recipe.backbone.model_dump() if recipe.backbone is not None else None


def _agreed_backbone(recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """Returns the backbone that recipe and pool name; a contradiction is an error."""
    said, packed = spec_of(recipe), dict(pool.backbone_spec)
    if said is not None and packed and said != packed:
        raise MdftError(f"recipe: backbone must be the pool's {packed}, got {said}")
    spec = said or packed
    if not spec:
        raise MdftError("recipe: backbone must be given, got none in recipe or pool")
    return spec


def _check_agrees(recipe: Recipe, pool: Pool) -> None:
    if recipe.preprocess is None:
        return
    said = as_preprocess({**pool.preprocess, **recipe.preprocess.said()})
    if said != pool.preprocess:
        raise MdftError(f"recipe: preprocess must be the pool's {pool.preprocess}, got {said}")


def choose_device(name: str) -> torch.device:
    """Returns the device that a recipe names; "auto": CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MdftError(f"recipe: device must be there, got {name!r} and torch sees no GPU")
    return device


def images_at_once(recipe: Recipe) -> int:
    """Returns how many images a run's largest forward pass takes."""
    images = recipe.construct.batch * len(recipe.tasks)
    if recipe.specialized:
        images = max(images, recipe.specialize.batch)
    return min(images, recipe.memory.micro_batch or images)


def construct_config(recipe: Recipe) -> ConstructConfig:
    """Returns stage 1's configuration."""
    c = recipe.construct
    return ConstructConfig(
        steps=c.steps,
        batch=c.batch,
        draw=c.draw,
        alpha=c.objective.alpha,
        use_entropy=c.objective.entropy,
        reweight=c.objective.reweight,
        filter=c.filter.enabled,
        mu=c.filter.mu,
        entropy_of=c.filter.entropy_of,
        optimizer=_optimizer(c.optimizer),
        holdout=c.holdout,
        seed=recipe.seed,
        micro_batch=recipe.memory.micro_batch,
        cuda_graph=recipe.memory.cuda_graph,
    )


def specialize_config(recipe: Recipe) -> SpecializeConfig:
    """Returns stage 2's configuration."""
    s = recipe.specialize
    return SpecializeConfig(
        steps=s.steps,
        batch=s.batch,
        representation=s.representation,
        optimizer=_optimizer(s.optimizer),
        holdout=recipe.construct.holdout,
        seed=recipe.seed,
        micro_batch=recipe.memory.micro_batch,
        cuda_graph=recipe.memory.cuda_graph,
    )


def _optimizer(given: Optimizer) -> OptimizerConfig:
    return OptimizerConfig(given.name, given.lr, given.schedule)
