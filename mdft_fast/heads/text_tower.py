# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower from a local checkpoint; nothing is downloaded, nothing is unpickled."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mdft_fast.checkpoints import open_state
from mdft_fast.errors import MdftError, nearest, need
from mdft_fast.model import without_alarm
from mdft_fast.pool import check_fits

# In place of the image tower, which a zero-shot head does not use.
_SMALL_VISION = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32}
# Beside the weights in OpenAI's own archives.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def open_clip() -> ModuleType:
    """Returns the library, or says how to get it."""
    return need("open_clip", "clip", who="zero-shot head")


def clip_config(name: str) -> dict[str, Any]:
    """Returns open_clip's configuration of a model whose tokenizer comes with the library.

    Args:
        name: one of ``open_clip.list_models()``, such as ``ViT-B-32-quickgelu``.

    Raises:
        MdftError: if the name is unknown, or the text tower or tokenizer would be downloaded.
    """
    library = open_clip()
    known = library.list_models()
    if name not in known:  # so no scheme such as "hf-hub:" either
        raise MdftError(
            f"zero-shot head: model must be one of open_clip.list_models(), got {name!r}"
            f"{nearest(name, known)}"
        )
    config: dict[str, Any] = library.get_model_config(name)
    text = config.get("text_cfg", {})
    if text.get("hf_model_name") or text.get("hf_tokenizer_name") or "siglip" in name.lower():
        raise MdftError(
            f"zero-shot head: model must have a text tower and a tokenizer that come with "
            f"open_clip, got {name!r}, whose own would be downloaded"
        )
    return config


def load_clip(name: str, weights: str | os.PathLike[str]) -> tuple[nn.Module, Any]:
    """Builds a CLIP model for its text tower and reads a checkpoint's weights into it.

    Args:
        name: as in :func:`clip_config`. Weights trained by OpenAI need a ``-quickgelu`` name: the
            plain one has another activation, which no tensor shows.
        weights: a checkpoint with open_clip's names, in any format that a pool reads; nothing in
            it is executed. Its image tower is ignored.

    Returns:
        The model, float32 in eval mode on the CPU, with a small image tower of random weights, and
        its tokenizer.

    Raises:
        MdftError: if the name is unknown, or the file is absent, damaged, or not this model's.
    """
    quick = bool(clip_config(name).get("quick_gelu"))
    library, opened = open_clip(), open_state(weights)
    activation = opened.facts.activation
    if activation is not None and quick != (activation == "quick_gelu"):
        raise MdftError(f"{weights}: its activation is {activation!r}, and {name} has another")
    state = {key: opened.tensors[key] for key in opened.tensors if key not in _NO_WEIGHTS}
    with torch.random.fork_rng(devices=[]), without_alarm():
        model: nn.Module = library.create_model(
            name, pretrained_image=False, pretrained_text=False, vision_cfg=_SMALL_VISION
        )
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = library.model.convert_to_custom_text_state_dict(state)
    expected = {key: t for key, t in model.state_dict().items() if not key.startswith("visual.")}
    stored = {key: t for key, t in state.items() if not key.startswith("visual.")}
    for key in expected.keys() & stored.keys():
        if expected[key].numel() == stored[key].numel() == 1:  # logit_scale: [] or [1]
            stored[key] = stored[key].reshape(expected[key].shape)
    check_fits(weights, stored, expected, f"open_clip's {name} but for its image tower")
    model.load_state_dict(stored, strict=False)
    return model.eval(), library.get_tokenizer(name)
