# SPDX-License-Identifier: Apache-2.0
"""Reads activation and preprocessing out of a pickled module's stand-ins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdft_fast.checkpoints.metadata import OTHER, PIL_FILTERS, SourceFacts, edges_of, resizing
from mdft_fast.checkpoints.pickle_machine import StandIn

# The last part of a class's name -> activation.
ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
}
_TRANSFORMS = ("val_preprocess", "preprocess")  # attributes of task_vectors' ImageEncoder
_MOST_STEPS = 100


def facts_of(module: StandIn, kinds: Mapping[str, str]) -> SourceFacts:
    """Returns what a pickled module says.

    Args:
        module: its stand-in; a torchvision transform may be among its attributes.
        kinds: class names of the modules that compute features.
    """
    activations = {ACTIVATIONS.get(kind.rpartition(".")[2]) for kind in kinds.values()} - {None}
    activation = activations.pop() if len(activations) == 1 else None
    for key in _TRANSFORMS:
        transform = module.attributes.get(key)
        if isinstance(transform, StandIn):
            return SourceFacts.of({"activation": activation, **_transform(transform)})
    return SourceFacts(activation=activation)


def _transform(transform: StandIn) -> dict[str, Any]:
    """Reads a Compose of Resize, CenterCrop and Normalize, as CLIP's evaluation transform is."""
    steps = transform.attributes.get("transforms")
    known = {
        step.kind.rpartition(".")[2]: step.attributes
        for step in (steps[:_MOST_STEPS] if isinstance(steps, list) else [])
        if isinstance(step, StandIn)
    }
    resize, crop = known.get("Resize"), known.get("CenterCrop")
    normalize = known.get("Normalize", {})
    facts: dict[str, Any] = {key: normalize.get(key) for key in ("mean", "std")}
    if resize is not None:
        facts["interpolation"] = _interpolation(resize.get("interpolation"))
    if crop is not None:
        facts["size"] = crop.get("size")
        cut = edges_of(facts["size"])
        facts |= resizing(edges_of(resize.get("size") if resize else None), cut * (3 - len(cut)))
    elif resize is not None:
        edges = edges_of(resize.get("size"))
        facts |= {"size": edges, "resize": "squash"} if len(edges) == 2 else {"resize": OTHER}
    return facts


def _interpolation(value: Any) -> str | None:
    """Reads InterpolationMode("bicubic"), PIL's Resampling(3), or the number 3."""
    if isinstance(value, StandIn):
        value = value.args[0] if value.args else None
    if isinstance(value, str):
        return value
    return PIL_FILTERS.get(value, OTHER) if type(value) is int else None
