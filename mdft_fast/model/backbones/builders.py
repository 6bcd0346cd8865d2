# SPDX-License-Identifier: Apache-2.0
"""Builds a backbone by library and name, with whatever weights: the pool's replace them.

A spec may come out of a file that a stranger wrote, and the libraries have arguments that read
pickles, folders and the net. So only plain arguments pass, and none that names a source of weights.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mdft_fast.errors import MdftError, nearest, need
from mdft_fast.model.backbones import transformers_encoders
from mdft_fast.pool import Pool

_PLACE = re.compile(r"[/\\:~\x00]")  # in a path, an address or a scheme such as "hf-hub:"
# Arguments that read files or the net, as a part of the name or as a word of it ("file" is a part
# of "profile" too). Numbers may stand under "path": timm has drop_path_rate.
_SOURCE_PART = re.compile(r"pretrained|checkpoint|cache|weights|hub|url|download", re.IGNORECASE)
_SOURCE_WORDS = {"dir", "dirs", "directory", "file", "filename", "files", "folder", "hf", "repo"}
_PATH_WORDS = {"path", "paths"}
# What a description may make beyond what is held: parts that are tied, replaced or dropped.
_MORE = 4
# open_clip.create_model's arguments that shape the vision tower; its others load, place or compile.
_CLIP_ARGUMENTS = (
    "embed_dim",
    "force_image_size",
    "force_patch_dropout",
    "force_quick_gelu",
    "precision",
    "quick_gelu",
    "vision_cfg",
)


class Held(NamedTuple):
    """What weights hold that are for a backbone: their number and all their elements."""

    tensors: int
    elements: int

    @staticmethod
    def by(pool: Pool) -> Held:
        """Returns what a pool's base holds."""
        return Held(len(pool.layout.slots), pool.parameters)


_FEW = Held(256, 1 << 28)  # a text tower that open_clip makes along, say


def build_backbone(spec: Mapping[str, Any], held: Held | None = None) -> nn.Module:
    """Builds the encoder that a pool's or a recipe's ``backbone`` names.

    Args:
        spec: ``library`` (``timm``, ``open_clip`` or ``transformers``), ``name`` and ``kwargs``.
            For timm the name of a model; for open_clip the name of a CLIP model, whose vision
            tower is taken, or ``VisionTransformer`` with the tower's own arguments; for
            transformers the name of a class, with its config as ``kwargs``. ``kwargs`` holds
            numbers, booleans, strings, and lists and mappings of these; the spec may be a
            stranger's.
        held: of the weights that come with a stranger's spec. A spec that makes many more is
            refused before they take memory or time.

    Returns:
        The module in eval mode, in float32, whatever PyTorch's default is. Nothing is downloaded
        and no file of the caller's is read; the global random state is left alone.

    Raises:
        MdftError: if the library is unknown or not installed, it refuses the arguments, one of
            them could name a file, weights or a download, or they make more than is held.
    """
    library, name = spec.get("library"), spec.get("name")
    if library not in _BUILDERS:
        raise MdftError(
            f"backbone: library must be one of {sorted(_BUILDERS)}, got {library!r}"
            f"{nearest(str(library), _BUILDERS)}"
        )
    if not isinstance(name, str) or not name or _PLACE.search(name):
        raise MdftError(
            f"backbone: 'name' must be a plain name of a model of {library}, without a scheme or a "
            f"path, got {name!r}"
        )
    arguments = spec.get("kwargs") or {}
    _check_plain(arguments, "kwargs")
    build = partial(_BUILDERS[library], name)
    with torch.random.fork_rng(devices=[]), in_float32():
        try:
            if held is not None and torch.get_default_device().type != "meta":
                # What a library cannot build without data, it builds with them below.
                harmless = contextlib.suppress(RuntimeError, NotImplementedError)
                with harmless, torch.device("meta"), _no_larger_than(held):
                    build(dict(arguments))
                held = None
            with contextlib.nullcontext() if held is None else _no_larger_than(held):
                module = build(dict(arguments))
        except MdftError:
            raise
        except Exception as error:  # whatever the library raises for a bad name or argument
            raise MdftError(f"backbone: {library} does not build {name!r}: {error}") from error
    return module.eval()


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Lets modules be made in float32, whatever PyTorch's default is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _no_larger_than(held: Held) -> Iterator[None]:
    """Stops a module's making where it has many more parameters than are held."""
    most = Held(_MORE * held.tensors + _FEW.tensors, _MORE * held.elements + _FEW.elements)
    made, me = Held(0, 0), threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        if parameter is None or threading.get_ident() != me:
            return
        made = Held(made.tensors + 1, made.elements + parameter.numel())
        if made.tensors > most.tensors or made.elements > most.elements:
            raise MdftError(
                f"backbone: its description must make the model that the weights are of, "
                f"{held.tensors:,} tensors of {held.elements:,} elements, got one of more than "
                f"{made.tensors:,} of {made.elements:,}"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_plain(value: Any, key: str) -> None:
    """Refuses whatever is not plain data, or could name a place to load from."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise MdftError(f"backbone: {key!r} must have strings as keys, got {name!r}")
            _check_key(name, item, f"{key}.{name}")
            _check_plain(item, f"{key}.{name}")
    elif key == "kwargs":
        raise MdftError(f"backbone: 'kwargs' must be a mapping, got {value!r}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_plain(item, f"{key}[{i}]")
    elif isinstance(value, str):
        if _PLACE.search(value):
            raise MdftError(
                f"backbone: {key!r} must be a plain string, without a scheme or a path, got "
                f"{value!r}"
            )
    elif value is not None and not _is_number(value):
        raise MdftError(
            f"backbone: {key!r} must be a finite number, a boolean, a string, or a list or mapping "
            f"of these, got {value!r}"
        )


def _check_key(name: str, value: Any, key: str) -> None:
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    a_path = words & _PATH_WORDS and not _is_number(value)
    if _SOURCE_PART.search(name) or words & _SOURCE_WORDS or a_path:
        raise MdftError(
            f"backbone: {key!r} must not be given, as it names a file, weights or a download, got "
            f"{value!r}; the pool's weights are used"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _timm(name: str, kwargs: dict[str, Any]) -> nn.Module:
    library = need("timm", "timm", who="backbone")
    module: nn.Module = library.create_model(name, pretrained=False, **kwargs)
    return module


def _open_clip(name: str, kwargs: dict[str, Any]) -> nn.Module:
    library = need("open_clip", "clip", who="backbone")
    if name == "VisionTransformer":
        if kwargs.pop("quick_gelu", False):  # as in a CLIP model's configuration
            kwargs["act_layer"] = library.transformer.QuickGELU
        alone: nn.Module = library.transformer.VisionTransformer(**kwargs)
        return alone
    for key in kwargs:
        if key not in _CLIP_ARGUMENTS:
            raise MdftError(
                f"backbone: 'kwargs.{key}' of a CLIP model must be one of {list(_CLIP_ARGUMENTS)}"
                f"{nearest(key, _CLIP_ARGUMENTS)}"
            )
    # The text tower is not used: a small one, for which no hub is asked. On the default device,
    # which open_clip would leave for the CPU: plans build models without data, on "meta".
    rest = {"text_cfg": {"layers": 1}, "device": torch.get_default_device()}
    nothing = {"pretrained": None, "pretrained_image": False, "pretrained_text": False}
    with without_alarm():
        tower: nn.Module = library.create_model(name, **nothing, **rest, **kwargs).visual
    return tower


def _transformers(name: str, kwargs: dict[str, Any]) -> nn.Module:
    library = need("transformers", "transformers", who="backbone")
    return transformers_encoders.build(library, name, kwargs)


_BUILDERS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "timm": _timm,
    "open_clip": _open_clip,
    "transformers": _transformers,
}


@contextlib.contextmanager
def without_alarm() -> Iterator[None]:
    """Keeps open_clip from warning that a model has no weights yet: they come after."""
    logger = logging.getLogger()  # open_clip's warnings are the root logger's

    def harmless(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("No pretrained weights loaded")

    logger.addFilter(harmless)
    try:
        yield
    finally:
        logger.removeFilter(harmless)
