# SPDX-License-Identifier: Apache-2.0
"""From a recipe's ``head:`` to the head of a task.

No label of ``evaluate`` or ``adapt`` is opened. Test images are, where a head is made of labelled
images: none may be among these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.app.opening.labelled_shots import load_shots
from mdft_fast.app.opening.sample_sources import OnDisk, Sources
from mdft_fast.app.recipe import HeadSource, TaskRecipe
from mdft_fast.checkpoints import Choice, State, open_state
from mdft_fast.data import Samples, compare_class_names, plain_name, read_labels
from mdft_fast.errors import MdftError
from mdft_fast.heads import (
    cached_head,
    check_order,
    class_names,
    clip_config,
    file_digest,
    is_dataset,
    load_clip,
    prototype_head,
    templates,
    zero_shot_head,
)
from mdft_fast.model import build_backbone
from mdft_fast.pool import Head, check_fits, fit, take_inventory

_PLAIN_TEMPLATES = ("a photo of a {}.",)


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """The pre-trained encoder that prototypes are features of.

    Attributes:
        load: returns a plain module in eval mode, on the device where it is to run. Called where
            prototypes are asked for and are not in the cache.
        identity: returns what tells its weights and its module from others.
        preprocess: size, mean and standard deviation of its inputs.
    """

    load: Callable[[], nn.Module]
    identity: Callable[[], str]
    preprocess: Mapping[str, Any]

    @staticmethod
    def of_file(
        file: str | os.PathLike[str],
        spec: Mapping[str, Any],
        preprocess: Mapping[str, Any],
        device: torch.device,
        choice: Choice,
    ) -> Base:
        """Returns the backbone with a checkpoint's weights."""

        def opened() -> State:
            return open_state(file, choice=choice)

        load = functools.cache(lambda: _load(file, opened(), spec).to(device))
        return Base(load, lambda: f"{opened().sha256()} {dict(spec)}", preprocess)


def _load(file: str | os.PathLike[str], opened: State, spec: Mapping[str, Any]) -> nn.Module:
    """Builds a backbone with a checkpoint's weights.

    More than it needs may be in the file; what may lack there stays as the module has it.
    """
    module = build_backbone(spec)
    module_state, inventory = module.state_dict(), take_inventory(module)
    tensors = {name: t for name, t in module_state.items() if name in inventory.optional}
    opened.check()
    tensors |= fit(opened, inventory).tensors
    state = {name: tensors[name] for name in module_state if name in tensors}
    check_fits(file, state, module_state)
    module.load_state_dict(state)
    return module


def head_of(
    task: TaskRecipe,
    packed: Head | None,
    base: Base,
    names: tuple[str, ...] | None,
    sources: Sources,
    *,
    tests: Callable[[], Mapping[str, Samples]],
    drop: bool,
) -> Head:
    """Returns the head that a recipe's task names, or else the pool's.

    Args:
        task: the task.
        packed: its head in a packed pool, if there is one.
        base: the pre-trained encoder.
        names: its class names, if anybody says them.
        sources: its samples; those that make heads are read.
        tests: returns the test images of every task; called where labels make the head.
        drop: whether test images among those that make heads are left out, not refused.

    Raises:
        MdftError: if the head cannot be made, or a test image is among those that make it.
    """
    head = task.head
    if head is None or head.file is not None:
        return _ready(task, packed)
    with _of_task(task):
        if head.zero_shot:
            return _zero_shot(task, head, names)
        assert sources.shots is not None
        classes = _prototype_classes(sources.shots, names)
        samples, labels, note = load_shots(
            task.name, sources.shots, base.preprocess, len(classes), tests(), drop=drop
        )
        made = _prototypes(head, base, classes, samples, labels)
    return dataclasses.replace(made, note=note)


def shape_of_head(
    task: TaskRecipe,
    packed: Head | None,
    features: Callable[[], int],
    names: tuple[str, ...] | None,
    sources: Sources,
) -> Head:
    """Returns what :func:`head_of` does, but zeros where a head is to be made by a model.

    ``features`` returns how many the backbone gives; of labels that make heads only the largest is
    looked at.
    """
    head = task.head
    if head is None or head.file is not None:
        return _ready(task, packed)
    with _of_task(task):
        if head.zero_shot:
            classes, _ = prompts_of(task, names)
            width = clip_config(head.zero_shot.model)["embed_dim"]
        else:
            assert sources.shots is not None
            classes, width = _prototype_classes(sources.shots, names), features()
    return Head(torch.zeros((), dtype=torch.float32, device="cpu").expand(len(classes), width))


def _ready(task: TaskRecipe, packed: Head | None) -> Head:
    """Returns a head that lies in a file, or in a packed pool."""
    head = task.head
    if head is not None:
        assert head.file is not None
        if head.normalize is None and open_state(head.file).normalize is None:
            raise MdftError(
                f"task {task.name!r}: head.normalize must be given, true for features divided by "
                f"their norm or false, as {head.file} does not say it"
            )
        return Head.from_file(head.file, normalize=head.normalize)
    if packed is None:
        raise MdftError(f"task {task.name!r}: head must be given, got none in recipe or pool")
    return packed


@contextlib.contextmanager
def _of_task(task: TaskRecipe) -> Iterator[None]:
    """Puts the task's name before errors."""
    try:
        yield
    except MdftError as error:
        raise MdftError(f"task {task.name!r}: {error}") from error


def prompts_of(
    task: TaskRecipe, own: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns class names and templates of a zero-shot head.

    Args:
        task: the task.
        own: its class names, if anybody says them.

    Raises:
        MdftError: if there are no names, or a data set's are in another order than the task's.
    """
    assert task.head is not None
    assert task.head.zero_shot is not None
    zero_shot = task.head.zero_shot
    chosen = zero_shot.classes or (task.name if is_dataset(task.name) else own)
    if chosen is None:
        raise MdftError(
            "head.zero_shot.classes must be a list of names or a data set's name, got none, and "
            "the task has no class names"
        )
    prompts: str | tuple[str, ...] = _PLAIN_TEMPLATES
    if isinstance(chosen, str):
        if own is not None:
            check_order(chosen, {name: i for i, name in enumerate(own)})
        chosen, prompts = class_names(chosen), chosen
    elif own is not None and sorted(map(plain_name, own)) == sorted(map(plain_name, chosen)):
        compare_class_names(own, f"task {task.name!r}", chosen, "head.zero_shot.classes")
    prompts = zero_shot.templates or prompts
    return chosen, templates(prompts) if isinstance(prompts, str) else prompts


def _zero_shot(task: TaskRecipe, head: HeadSource, known_names: tuple[str, ...] | None) -> Head:
    zero_shot = head.zero_shot
    assert zero_shot is not None
    names, prompts = prompts_of(task, known_names)
    ingredients = {
        "kind": "zero_shot",
        "model": zero_shot.model,
        "config": clip_config(zero_shot.model),
        "open_clip": importlib.metadata.version("open_clip_torch"),
        "weights": file_digest(zero_shot.weights),
        "classes": names,
        "templates": prompts,
    }

    def make() -> Head:
        model, tokenizer = load_clip(zero_shot.model, zero_shot.weights)
        return zero_shot_head(model, tokenizer, names, prompts)

    return cached_head(ingredients, make)


def _prototypes(
    head: HeadSource, base: Base, names: tuple[str, ...], samples: Samples, labels: Tensor
) -> Head:
    shots = head.prototypes
    assert shots is not None
    images = hashlib.sha256(samples.digests().tobytes() + labels.numpy().tobytes())
    ingredients = {
        "kind": "prototypes",
        "base": base.identity(),
        "preprocess": dict(base.preprocess),
        "images": images.hexdigest(),
        "classes": len(names),
        "scale": shots.scale,
        "normalize": shots.normalize,
    }

    def make() -> Head:
        encoder, scale, normalize = base.load(), shots.scale, shots.normalize
        return prototype_head(encoder, samples, labels, names, scale=scale, normalize=normalize)

    return cached_head(ingredients, make)


def _prototype_classes(shots: OnDisk, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the task's class names, or numbers up to the largest label."""
    if names is not None:
        return names
    labels = read_labels(shots, "train")
    whole = labels.numel() and not labels.is_floating_point()
    return tuple(str(c) for c in range(int(labels.max()) + 1 if whole else 0))
