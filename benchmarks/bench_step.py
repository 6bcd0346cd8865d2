# SPDX-License-Identifier: Apache-2.0
"""One step of stage 1, images to λ's update, against the structures in use and the floor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.bench_debiased_entropy import by_task, ours, padded
from benchmarks.harness import Case, Compete, agree
from benchmarks.machine import KEPT_FREE_BYTES, Machine, memory_available
from benchmarks.shapes import CLASSES, ENCODERS
from mdft_fast import MetaModel, Pool, Task
from mdft_fast.model import build_backbone
from mdft_fast.pool import Head

K = 8
SCALE = 0.02  # of the random task vectors' elements: fine-tuning moves weights by about as much

MODELS = ("ViT-Tiny 64x64", "CLIP ViT-B/32", "one block of ViT-L/14")  # of ENCODERS
WAYS: dict[str, dict[str, Any]] = {
    "mdft_fast layerwise": {"mode": "layerwise"},
    "mdft_fast streamed": {"mode": "streamed"},
    "mdft_fast resident, again": {"checkpointing": True},
    "mdft_fast layerwise, again": {"mode": "layerwise", "checkpointing": True},
    "mdft_fast resident, bf16": {"codec": "bf16"},
    "mdft_fast resident, int8": {"codec": "int8"},
    "mdft_fast layerwise, int8": {"mode": "layerwise", "codec": "int8"},
}
FEW = ("mdft_fast layerwise", "mdft_fast layerwise, int8")  # where a turn takes half a minute
SLOW_IMAGES = 32  # in a step, from which on the ways that run K times are left out


@dataclasses.dataclass
class World:
    """What every contestant reads; nobody's copy.

    Attributes:
        meta: ours; its pool's arenas are everyone's base and task vectors.
        plain: the same architecture with its own weights, for the rivals.
        images: one batch a task.
        teacher: the teachers' logits, one tensor a task.
        heads: classifiers, one a task.
        classes: their numbers of classes.
    """

    meta: MetaModel
    plain: nn.Module
    images: list[Tensor]
    teacher: list[Tensor]
    heads: list[Head]
    classes: tuple[int, ...]

    @functools.cached_property
    def names(self) -> list[str]:
        """The merged tensors', in arena order."""
        return [slot.name for slot in self.meta.layout.slots]

    @functools.cached_property
    def base(self) -> list[Tensor]:
        """Views of the base, tensor by tensor."""
        return self.meta.layout.views(self.meta.base)

    @functools.cached_property
    def rows(self) -> list[list[Tensor]]:
        """Views of each task vector, tensor by tensor."""
        return [self.meta.layout.views(row) for row in self.meta.vectors.codes]


def make_world(model: str, batch: int, device: torch.device) -> World:
    """Builds a pool of K random models around a backbone with random weights."""
    spec, size, classes = ENCODERS[model]
    counts = CLASSES[classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = build_backbone(spec)
        base = {name: p.detach().clone() for name, p in plain.state_dict().items()}
        models = [
            {n: p + SCALE * p.std(correction=0) * torch.randn_like(p) for n, p in base.items()}
            for _ in range(K)
        ]
        images = [torch.randn(batch, 3, size, size) for _ in range(K)]
        with torch.no_grad():
            width = plain(images[0][:1]).shape[-1]
        heads = [Head(torch.nn.functional.normalize(torch.randn(c, width)) * 20, None, True)
                 for c in counts]  # fmt: skip
    nothing = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    tasks = [
        Task(f"task{k}", [str(c) for c in range(head.classes)], head, nothing)
        for k, head in enumerate(heads)
    ]
    preprocess = {"size": size, "mean": 0.5, "std": 0.5}
    pool = Pool.from_checkpoints(base, models, tasks, backbone=plain, preprocess=preprocess)
    meta = MetaModel(plain, pool, device=device)
    images = [x.to(device) for x in images]
    heads = [head.to(device) for head in heads]
    teacher = []
    for task, x, head in zip(pool.names, images, heads, strict=True):
        with torch.no_grad(), meta.using(meta.individual(task)):
            teacher.append(head(meta.encode(x)))
    return World(meta, plain.to(device), images, teacher, heads, counts)


def _logits(world: World, features: Tensor) -> list[Tensor]:
    parts = features.split([len(x) for x in world.images])
    return [head(f) for head, f in zip(world.heads, parts, strict=True)]


def _merged(world: World, coefficients: Tensor) -> dict[str, Tensor]:
    """The nine-term sum under autograd, tensor by tensor."""
    merged = {}
    for i, (name, base) in enumerate(zip(world.names, world.base, strict=True)):
        total = base
        for k in range(K):
            total = total + coefficients[k, i] * world.rows[k][i]
        merged[name] = total
    return merged


def _update(optimizer: torch.optim.Optimizer, coefficients: Tensor) -> Tensor:
    """Returns the gradient that the update used."""
    assert coefficients.grad is not None
    gradient = coefficients.grad.clone()
    optimizer.step()
    return gradient


Step = Callable[[], tuple[Tensor, Tensor | None]]  # loss, λ's gradient


def _learned(coefficients: Tensor, start: Tensor, backward: Callable[[], Tensor]) -> Step:
    """Wraps a backward pass into a step that begins at the same λ each time, so that each round
    answers alike."""  # noqa: D205, D209
    optimizer = torch.optim.Adam([coefficients], lr=1e-3)

    @torch.enable_grad()
    def step() -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            coefficients.copy_(start)
        optimizer.zero_grad(set_to_none=True)
        loss = backward()
        return loss, _update(optimizer, coefficients)

    return step


def our_step(world: World, meta: MetaModel) -> Step:
    """One merge, one forward, one loss, one backward, one pass of dots."""

    def backward() -> Tensor:
        features = meta.encode(torch.cat(world.images))
        loss = ours(_logits(world, features), world.teacher).sum()
        loss.backward()
        return loss.detach()

    return _learned(meta.coefficients, meta.coefficients.detach().clone(), backward)


def floor(world: World) -> Step:
    """Forward and backward of one plain model that holds the merged weights; no λ, no update."""
    with torch.no_grad():
        world.meta.set_coefficients(0.3)
        plain = world.meta.materialize()
    parameters = list(plain.requires_grad_().parameters())

    @torch.enable_grad()
    def step() -> tuple[Tensor, Tensor | None]:
        loss = ours(_logits(world, plain(torch.cat(world.images))), world.teacher).sum()
        torch.autograd.grad(loss, parameters)
        return loss.detach(), None

    return step


def merge_once(world: World, leaf: Tensor) -> Step:
    """One merge through autograd, one forward over all tasks, the padded loss."""
    loss_of = padded(world.classes, len(world.images[0]), leaf.device)

    def backward() -> Tensor:
        images = torch.cat(world.images)
        features = functional_call(world.plain, _merged(world, leaf), (images,))
        loss = loss_of(_logits(world, features), world.teacher).sum()
        loss.backward()
        return loss.detach()

    return _learned(leaf, leaf.detach().clone(), backward)


def _task_loss(world: World, k: int, weights: Mapping[str, Tensor]) -> Tensor:
    features = functional_call(world.plain, dict(weights), (world.images[k],))
    return by_task([world.heads[k](features)], [world.teacher[k]]).sum()


def merge_per_task(world: World, leaf: Tensor) -> Step:
    """AdaMerging's structure: weights are merged again for each task, one backward at the end."""

    def backward() -> Tensor:
        loss = sum(_task_loss(world, k, _merged(world, leaf)) for k in range(K))
        loss.backward()
        return loss.detach()

    return _learned(leaf, leaf.detach().clone(), backward)


def dots_per_task(world: World, leaf: Tensor) -> Step:
    """fusion_bench's structure: one merge, a backward a task through all of it: K^2 dots."""

    def backward() -> Tensor:
        weights, total = _merged(world, leaf), torch.zeros((), device=leaf.device)
        for k in range(K):
            loss = _task_loss(world, k, weights)
            loss.backward(retain_graph=True)
            total += loss.detach()
        return total

    return _learned(leaf, leaf.detach().clone(), backward)


def teachers(world: World) -> Step:
    """What a run does once: each task's own model says what it sees in the task's images."""
    meta = world.meta

    def step() -> tuple[Tensor, Tensor | None]:
        for task, images in zip(meta.pool.names, world.images, strict=True):
            with meta.using(meta.individual(task)):
                meta.encode(images)
        return torch.zeros(()), None

    return step


def our_ways(world: World, names: Sequence[str]) -> dict[str, Step]:
    """Our other modes and codecs on the same pool."""
    ways = {}
    for name in names:
        options = dict(WAYS[name])
        pool = world.meta.pool.encode(options.pop("codec", "fp32"))
        device = world.meta.coefficients.device
        ways[name] = our_step(world, MetaModel(world.plain, pool, device=device, **options))
    return ways


def _check(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor | None]) -> None:
    if not theirs[0].any():  # the teachers', who have no loss
        return
    agree(mine[0], theirs[0], 1e-2)  # int8 moves a loss by less; all else by float32's round-off
    if theirs[1] is not None:
        agree(mine[1], theirs[1], 0.1)


def case(model: str, batch: int, device: torch.device) -> Case:
    """One step of a model with K batches of ``batch`` images."""
    world = make_world(model, batch, device)

    def leaf() -> Tensor:
        return world.meta.coefficients.detach().clone().requires_grad_()

    slow = K * batch > SLOW_IMAGES and device.type == "cpu" and "Tiny" not in model
    rivals = {
        "floor: one plain model": floor(world),
        **our_ways(world, FEW if slow else tuple(WAYS)),
        "merge once, autograd": merge_once(world, leaf()),
    }
    if not slow:
        rivals["teachers, once a run"] = teachers(world)
    left_out, name = {}, "K^2 dots (fusion_bench)"
    if slow:
        left_out[name] = "takes minutes a turn"
    else:
        rivals[name] = dots_per_task(world, leaf())
    name = "merge per task (AdaMerging)"
    # Its K graphs hold K merged models; with what malloc cannot use again it was more than 6 times
    # that on ViT-B/32, where 17 GB did not do.
    needed = 8 * K * world.meta.base.nbytes
    if slow:
        left_out[name] = "takes minutes a turn"
    elif device.type == "cpu" and needed > memory_available() - KEPT_FREE_BYTES:
        left_out[name] = f"needs some {needed / 1e9:.0f} GB"
    else:
        rivals[name] = merge_per_task(world, leaf())
    title = f"{model}, {K} x {batch} images"
    return Case("step", title, our_step(world, world.meta), rivals, _check, left_out=left_out)


@pytest.mark.parametrize("batch", [1, 4])
def test_step(batch: int, machine: Machine, compete: Compete) -> None:
    """A step of a small model."""
    compete(case(MODELS[0], batch, machine.device), rounds=5)
