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
from mdft_fast.pool import Pool
from mdft_fast.run.heads import Base, head_of
from mdft_fast.run.verify import (
    MakeHead,
    agreed_spec,
    check_heads,
    checkpoints_of,
    packed_backbone,
    tasks_of,
)
from mdft_fast.stages import ConstructConfig, OptimizerConfig, SpecializeConfig

if TYPE_CHECKING:
    from mdft_fast.recipe import Recipe
    from mdft_fast.recipe.sections import Optimizer


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
        shapes = packed_backbone(recipe, pool)
        backbone = _without_weights(agreed_spec(recipe, pool), pool)
        tasks = tasks_of(recipe, _heads(_packed_base(recipe, pool, backbone)), pool)
        check_heads(tasks, shapes, pool.preprocess["size"])
        if recipe.memory.codec != "fp32":  # what was packed narrower gains nothing from fp32
            pool = pool.encode(recipe.memory.codec)
    else:
        sources = _sources(recipe)
        tasks = sources["tasks"]
        pool = Pool.from_checkpoints(**sources, codec=recipe.memory.codec)
        backbone = _without_weights(pool.backbone_spec, pool)
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


def _sources(recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments of ``Pool.from_checkpoints`` and ``Pool.pack``."""
    sources = checkpoints_of(recipe)
    base, spec, preprocess = (sources[key] for key in ("base", "backbone_spec", "preprocess"))
    heads = _heads(Base.of_file(base, spec, preprocess, choose_device(recipe.device)))
    return {**sources, "tasks": tasks_of(recipe, heads)}


def _heads(base: Base) -> MakeHead:
    return lambda given, packed, names: head_of(given, packed, base, names)


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

    identity = f"pool {pool.checksum} {agreed_spec(recipe, pool)}"
    return Base(functools.cache(load), lambda: identity, pool.preprocess)


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
