# SPDX-License-Identifier: Apache-2.0
"""From a recipe to its backbone and its pool; no head and no sample is looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mdft_fast.app.opening.recipe_start import check_start
from mdft_fast.app.recipe import Recipe
from mdft_fast.checkpoints import (
    Choice,
    SourceFacts,
    as_preprocess,
    check_preprocess,
    find_checkpoint,
    open_state,
)
from mdft_fast.errors import MdftError
from mdft_fast.methods import apply
from mdft_fast.model import Held, build_backbone, names_of
from mdft_fast.pool import Pool, TaskLike


class _Headless(NamedTuple):
    """A task of which only its model is wanted."""

    name: str
    class_names: tuple[str, ...] = ()
    head: None = None


def open_pool(recipe: Recipe, *, verify: bool = True) -> tuple[nn.Module, Pool]:
    """Opens what weights are merged of: a recipe's backbone and pool, without heads of its own.

    Args:
        recipe: whose.
        verify: of a packed pool, compares its content with its checksums.

    Raises:
        MdftError: if a file of the pool is missing or does not fit; it names file and key.
    """
    recipe.check_files(pool_alone=True)
    if recipe.pool.folder is not None:
        backbone, pool = open_packed(recipe, verify=verify)
        return backbone, prepared(recipe, pool)
    return from_checkpoints(recipe, [_Headless(task.name) for task in recipe.tasks])


def open_packed(recipe: Recipe, *, verify: bool = True) -> tuple[nn.Module, Pool]:
    """Opens a packed pool as it is, and its backbone without weights; see :func:`open_pool`."""
    assert recipe.pool.folder is not None
    pool = Pool.open(recipe.pool.folder, verify=verify)
    if not verify:
        pool.check_finite(recipe.pool.folder)
    backbone = without_weights(agreed_backbone(recipe, pool), pool)
    check_agrees(recipe, pool)
    check_start(recipe, pool)
    return backbone, pool


def prepared(recipe: Recipe, pool: Pool) -> Pool:
    """Returns a packed pool after the recipe's transforms, and in its codec."""
    return apply(pool, recipe.transform, codec=narrower(recipe))


def narrower(recipe: Recipe) -> str | None:
    """Returns the codec that a recipe wants of a packed pool; None for "fp32": the pool's own."""
    # What was packed narrower gains nothing from fp32.
    return None if recipe.memory.codec == "fp32" else recipe.memory.codec


def from_checkpoints(recipe: Recipe, tasks: Sequence[TaskLike]) -> tuple[nn.Module, Pool]:
    """Makes the pool of a recipe's checkpoints, and its backbone without weights."""
    pool = Pool.from_checkpoints(**pool_arguments(recipe, tasks), codec=recipe.memory.codec)
    return without_weights(pool.backbone_spec, pool), apply(pool, recipe.transform)


def pool_arguments(recipe: Recipe, tasks: Sequence[TaskLike]) -> dict[str, Any]:
    """Returns the arguments of ``Pool.from_checkpoints`` and ``Pool.pack``."""
    base, models, spec = recipe.pool.base, recipe.pool.models, spec_of(recipe)
    if spec is None or base is None or models is None:
        raise MdftError("recipe: backbone, pool.base and pool.models must be given, got none")
    return {
        "base": base,
        "checkpoints": {task.name: find_checkpoint(models, task.name) for task in tasks},
        "tasks": tasks,
        "backbone": shapes_alone(spec),
        "preprocess": preprocess_of(recipe),
        "backbone_spec": spec,
        "weights": recipe.pool.weights,
        "part": recipe.pool.part,
        "ignore": recipe.pool.ignore,
        "buffers": recipe.pool.buffers,
    }


def preprocess_of(recipe: Recipe) -> dict[str, Any]:
    """Returns what a recipe's preprocess says, and where it is silent what its base says."""
    base = recipe.pool.base
    choice = Choice(recipe.pool.weights)
    facts = SourceFacts() if base is None else open_state(base, choice=choice).facts
    stated = facts.preprocess()
    if recipe.preprocess is not None:
        stated |= recipe.preprocess.said()
    missing = [key for key in ("size", "mean", "std") if key not in stated]
    if missing:
        raise MdftError(f"recipe: preprocess must be given, as {base} does not say {missing}")
    check_preprocess(facts, dict.fromkeys(stated, str(base)), stated)
    return stated


def shapes_alone(spec: Mapping[str, Any], held: Held | None = None) -> nn.Module:
    """Returns a backbone of names and shapes; ``held``: see ``build_backbone``."""
    with torch.device("meta"):
        return build_backbone(spec, held)


def without_weights(spec: Mapping[str, Any], pool: Pool) -> nn.Module:
    """Returns a backbone in which merged weights take no memory, and all else is in place."""
    module = shapes_alone(spec, Held.by(pool))
    merged = {name for names in names_of(pool.layout, pool.ties) for name in names}
    named_tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    if any(name not in merged and name not in pool.buffers for name, _ in named_tensors):
        module = build_backbone(spec)  # a buffer that no checkpoint holds: its value is needed
        empty: dict[int, nn.Parameter] = {}  # a tie stays one
    for name, tensor in named_tensors:
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


def spec_of(recipe: Recipe) -> dict[str, Any] | None:
    """Returns the backbone that a recipe names, as ``build_backbone`` takes it."""
    return recipe.backbone.model_dump() if recipe.backbone is not None else None


def agreed_backbone(recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """Returns the backbone that recipe and pool name; a contradiction is an error."""
    stated, packed = spec_of(recipe), dict(pool.backbone_spec)
    if stated is not None and packed and stated != packed:
        raise MdftError(f"recipe: backbone must be the pool's {packed}, got {stated}")
    spec = stated or packed
    if not spec:
        raise MdftError("recipe: backbone must be given, got none in recipe or pool")
    return spec


def check_agrees(recipe: Recipe, pool: Pool) -> None:
    """Refuses a recipe's preprocess that is not the packed pool's."""
    if recipe.preprocess is None:
        return
    stated = as_preprocess({**pool.preprocess, **recipe.preprocess.said()})
    if stated != pool.preprocess:
        raise MdftError(f"recipe: preprocess must be the pool's {pool.preprocess}, got {stated}")


def choose_device(name: str) -> torch.device:
    """Returns the device that a recipe names; "auto": CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MdftError(f"recipe: device must be there, got {name!r} and torch sees no GPU")
    return device
