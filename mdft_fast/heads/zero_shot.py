# SPDX-License-Identifier: Apache-2.0
"""Zero-shot heads: a class is the mean direction of its prompts in CLIP's text tower.

The tower is read from a local checkpoint; nothing is downloaded, nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mdft_fast.checkpoints import open_state
from mdft_fast.errors import MdftError, nearest, need
from mdft_fast.model import without_alarm
from mdft_fast.pool import Head, check_fits

_CLASSES_AT_ONCE = 10  # open_clip's own default
# In place of the image tower, which a zero-shot head does not use.
_SMALL_VISION = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32}
# Beside the weights in OpenAI's own archives.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def _open_clip() -> ModuleType:
    """Returns the library, or says how to get it."""
    return need("open_clip", "clip", who="zero-shot head")


def clip_config(name: str) -> dict[str, Any]:
    """Returns open_clip's configuration of a model whose tokenizer comes with the library.

    Args:
        name: one of ``open_clip.list_models()``, such as ``ViT-B-32-quickgelu``.

    Raises:
        MdftError: if the name is unknown, or the text tower or tokenizer would be downloaded.
    """
    library = _open_clip()
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
    library, opened = _open_clip(), open_state(weights)
    opened.check()
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


def zero_shot_head(
    model: nn.Module,
    tokenizer: Callable[[Sequence[str]], Tensor],
    class_names: Iterable[str],
    templates: Iterable[str],
    *,
    classes_at_once: int = _CLASSES_AT_ONCE,
) -> Head:
    """Returns the head that CLIP's text tower makes of class names; no image and no label is used.

    A row is ``open_clip.build_zero_shot_classifier``'s: each prompt's embedding at length 1, their
    mean over the templates, at length 1 again (Radford et al. 2021, section 3.1.4). The head reads
    normalised features, and its scale is ``exp(logit_scale)``.

    Args:
        model: an open_clip model in eval mode; it is not changed.
        tokenizer: the model's, ``open_clip.get_tokenizer(name)``.
        class_names: C names, in the order of the labels.
        templates: one or more; each holds ``{}`` once, which stands for the name.
        classes_at_once: classes in a forward pass of the text tower.

    Returns:
        A head with weight ``[C, D]``, float32 on the CPU (float64 for a float64 model).

    Raises:
        MdftError: if there is no name or template, one is wrong, a prompt is longer than the
            model reads, or the model is no CLIP in eval mode or gives embeddings that are not
            finite.
    """
    names, prompts = _check_names(class_names), check_templates(templates)
    if classes_at_once < 1:
        raise MdftError(f"zero-shot head: classes_at_once must be 1 or more, got {classes_at_once}")
    scale = getattr(model, "logit_scale", None)
    if not hasattr(model, "encode_text") or not isinstance(scale, Tensor):
        raise MdftError(
            f"zero-shot head: model must be an open_clip model with a text tower and a "
            f"logit_scale, got {type(model).__name__}"
        )
    if model.training:
        raise MdftError("zero-shot head: model must be in eval mode, got training; call eval()")
    _check_lengths(tokenizer, names, prompts)
    rows: Any = _open_clip().build_zero_shot_classifier(
        model, tokenizer, names, prompts, classes_at_once, device=scale.device
    )
    weight = rows.T.to("cpu", torch.promote_types(rows.dtype, torch.float32)).contiguous()
    if not weight.isfinite().all():
        bad = names[int((~weight.isfinite()).any(dim=1).nonzero()[0])]
        raise MdftError(f"zero-shot head: embeddings must be finite, got NaN or inf for {bad!r}")
    return Head(weight, normalize=True, scale=float(scale.detach().double().exp()))


def check_templates(templates: Iterable[str]) -> tuple[str, ...]:
    """Returns templates as a tuple, or says what is wrong: each must hold ``{}`` once."""
    prompts = _texts(templates, "templates")
    for prompt in prompts:
        # Nothing else in braces: str.format would follow names and attributes.
        before, _, after = prompt.partition("{}")
        if before + after == prompt or set("{}") & set(before + after):
            raise MdftError(
                f"zero-shot head: a template must hold {{}} once, for the class name, and no other "
                f"braces, got {prompt!r}"
            )
    return prompts


def _check_names(class_names: Iterable[str]) -> tuple[str, ...]:
    names = _texts(class_names, "class_names")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise MdftError(
            f"zero-shot head: class_names must differ, as equal names give equal rows, got "
            f"{twice!r} twice"
        )
    return names


def _check_lengths(tokenizer: Any, names: Sequence[str], prompts: Sequence[str]) -> None:
    """Refuses a prompt that the tokenizer would cut without a word, where it can be asked."""
    encode, limit = getattr(tokenizer, "encode", None), getattr(tokenizer, "context_length", None)
    if encode is None or limit is None:
        return
    for prompt in (prompt.replace("{}", name) for name in names for prompt in prompts):
        count = len(encode(prompt)) + 2  # with the tokens of start and end
        if count > limit:
            raise MdftError(
                f"zero-shot head: a prompt must have {limit} tokens or fewer, got {count}: "
                f"{prompt[:60]!r}..."
            )


def _texts(texts: Iterable[str], what: str) -> tuple[str, ...]:
    items = () if isinstance(texts, str) else tuple(texts)
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise MdftError(
            f"zero-shot head: {what} must be a list of one or more texts, got {texts!r}"
        )
    return items
