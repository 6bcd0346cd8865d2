# SPDX-License-Identifier: Apache-2.0
"""Which backbone a checkpoint is of, as far as its config and its tensors' shapes say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mdft_fast.checkpoints import CLIP_CONFIG, CONFIG, State, read_json
from mdft_fast.errors import MdftError, need

# Keys of a transformers config that decide what an encoder computes in eval mode.
_CONFIG_KEYS = (
    "hidden_size", "intermediate_size", "mlp_ratio", "projection_dim", "num_hidden_layers",
    "num_attention_heads", "image_size", "patch_size", "num_channels", "hidden_act",
    "layer_norm_eps", "qkv_bias", "layerscale_value", "use_swiglu_ffn", "use_mask_token",
    "pooler_output_size", "pooler_act",
)  # fmt: skip
# Of an open_clip vision tower that is a plain ViT.
_PLAIN = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_HEAD_WIDTH = 64  # open_clip's default


@dataclass(frozen=True)
class Recognized:
    """A backbone, as :func:`~mdft_fast.model.build_backbone` takes it.

    Attributes:
        library: who builds it.
        name: the library's name; None: one of those in ``note``.
        kwargs: of the builder; None as a value: the checkpoint does not say it.
        note: what to put where something is None.
    """

    library: str
    name: str | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def recognize(path: Path, state: State) -> Recognized | None:
    """Returns the backbone that a checkpoint is of; None: it is none that is known here.

    Args:
        path: where it lies: a folder of timm, transformers or open_clip has a config.
        state: it, opened. Shapes alone are looked at.
    """
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    known = _of_config(config, state) if isinstance(config, dict) else None
    return known or _of_open_clip(path, state)


def _of_config(config: Mapping[str, Any], state: State) -> Recognized | None:
    """Reads a config of timm or transformers."""
    if isinstance(config.get("architecture"), str):
        built = config.get("model_args")
        kwargs = {**(built if isinstance(built, dict) else {}), "num_classes": 0}
        return Recognized("timm", config["architecture"], kwargs)
    kind = config.get("model_type")
    vision = config.get("vision_config")
    settings = dict(config)
    if kind == "clip" and isinstance(vision, dict):
        settings, name = {**vision, **config}, "CLIPVisionModelWithProjection"
    elif kind == "clip_vision_model":
        projected = any(name.endswith("visual_projection.weight") for name in state.tensors)
        name = f"CLIPVisionModel{'WithProjection' if projected else ''}"
    elif kind in ("vit", "dinov2"):
        name = "ViTModel" if kind == "vit" else "Dinov2Model"
    else:
        return None
    kwargs = {key: settings[key] for key in _CONFIG_KEYS if settings.get(key) is not None}
    if kind == "vit" and not any(n.endswith("pooler.dense.weight") for n in state.tensors):
        kwargs = {key: kwargs[key] for key in kwargs if not key.startswith("pooler_")}
        kwargs["add_pooling_layer"] = False
    return Recognized("transformers", name, kwargs)


def _of_open_clip(path: Path, state: State) -> Recognized | None:
    """Looks at the shapes of a ViT in open_clip's names, and for a model that has them."""
    tower = _tower(state.tensors)
    if tower is None:
        return None
    activation = state.facts.activation
    names = dict(_named(tower))
    fitting = [name for name in names if activation in (None, names[name])]
    if len({names[name] for name in fitting}) == 1:
        return Recognized("open_clip", min(fitting, key=len))
    if fitting:
        gelu, quick = (
            min((n for n in fitting if names[n] == kind), key=len)
            for kind in ("gelu", "quick_gelu")
        )
        return Recognized("open_clip", None, {}, f"{gelu}, or {quick} for OpenAI's weights")
    quick_gelu = None if activation is None else activation == "quick_gelu"
    kwargs = {**tower, "heads": _heads(path, tower["width"]), "quick_gelu": quick_gelu}
    note = "heads: often width / 64; quick_gelu: true for OpenAI's weights"
    return Recognized(
        "open_clip", "VisionTransformer", kwargs, note if None in kwargs.values() else ""
    )


def _tower(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Returns the arguments of open_clip's VisionTransformer that shapes show."""
    for key in tensors:
        prefix = key.removesuffix("conv1.weight")
        block = f"{prefix}transformer.resblocks.{{}}.mlp.c_fc.weight"
        rest = (block.format(0), f"{prefix}positional_embedding", f"{prefix}proj")
        if prefix == key or not all(name in tensors for name in rest):
            continue
        if [tensors[n].dim() for n in (key, *rest)] != [4, 2, 2, 2] or 0 in tensors[key].shape:
            continue
        width, _, patch, _ = tensors[key].shape
        hidden, positions, projection = (tensors[name].shape for name in rest)
        side = math.isqrt(max(positions[0] - 1, 0))
        layers = 0
        while block.format(layers) in tensors:
            layers += 1
        if side**2 + 1 == positions[0]:
            return {
                "image_size": side * patch, "patch_size": patch, "width": width,
                "layers": layers, "mlp_ratio": hidden[0] / width, "output_dim": projection[1],
            }  # fmt: skip
    return None


def _named(tower: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields open_clip's models whose vision tower has these shapes, and their activation."""
    try:
        library = need("open_clip", "clip")
    except MdftError:  # a run needs it, a draft does not
        return
    for name in library.list_models():
        config = library.get_model_config(name)
        vision = {"mlp_ratio": 4.0, **config["vision_cfg"], "output_dim": config["embed_dim"]}
        same = all(vision.get(key) == tower[key] for key in tower if key != "mlp_ratio")
        plain = config["vision_cfg"].keys() <= _PLAIN and "hf_model_name" not in config["text_cfg"]
        if not same or not plain:
            continue
        if int(vision["width"] * vision["mlp_ratio"]) == round(tower["width"] * tower["mlp_ratio"]):
            yield name, "quick_gelu" if config.get("quick_gelu") else "gelu"


def _heads(path: Path, width: int) -> int | None:
    """Returns the number of heads that an open_clip folder's config says."""
    if not (path / CLIP_CONFIG).is_file():
        return None
    try:
        vision = read_json(path / CLIP_CONFIG)["model_cfg"]["vision_cfg"]
        return int(width // vision.get("head_width", _HEAD_WIDTH))
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError):
        return None
