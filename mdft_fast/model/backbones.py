# SPDX-License-Identifier: Apache-2.0
"""Builds a backbone by library and name, with whatever weights: the pool's replace them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mdft_fast.errors import MdftError, nearest


def build_backbone(spec: Mapping[str, Any]) -> nn.Module:
    """Builds the image encoder that a pool's or a recipe's ``backbone`` names.

    Args:
        spec: ``library`` (``timm`` or ``open_clip``), ``name`` and ``kwargs``. For timm the name
            of a model; for open_clip the name of a CLIP model, whose vision tower is taken, or
            ``VisionTransformer`` with the tower's own arguments.

    Returns:
        The module in eval mode. No weights are downloaded; the global random state is left alone.

    Raises:
        MdftError: if the library is unknown or not installed, or it refuses the arguments.
    """
    library, name = spec.get("library"), spec.get("name")
    if library not in _BUILDERS:
        raise MdftError(
            f"backbone: library must be one of {sorted(_BUILDERS)}, got {library!r}"
            f"{nearest(str(library), _BUILDERS)}"
        )
    kwargs = dict(spec.get("kwargs") or {})
    with torch.random.fork_rng(devices=[]):
        try:
            module = _BUILDERS[library](str(name), kwargs)
        except MdftError:
            raise
        except Exception as error:  # whatever the library raises for a bad name or argument
            raise MdftError(f"backbone: {library} does not build {name!r}: {error}") from error
    return module.eval()


def _timm(name: str, kwargs: dict[str, Any]) -> nn.Module:
    module: nn.Module = _library("timm", "timm").create_model(name, pretrained=False, **kwargs)
    return module


def _open_clip(name: str, kwargs: dict[str, Any]) -> nn.Module:
    library = _library("open_clip", "clip")
    if name == "VisionTransformer":
        tower: nn.Module = library.transformer.VisionTransformer(**kwargs)
    else:
        tower = library.create_model(name, pretrained=None, **kwargs).visual
    return tower


_BUILDERS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": _timm,
    "open_clip": _open_clip,
}


def _library(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MdftError(
            f"backbone: {module} is not installed; pip install 'mdft_fast[{extra}]' ({error})"
        ) from error
