# SPDX-License-Identifier: Apache-2.0
"""What the JSON files in folders of transformers, timm and open_clip say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdft_fast.checkpoints.file_kinds import CLIP_CONFIG, CONFIG, read_config, read_json
from mdft_fast.checkpoints.metadata import OTHER, PIL_FILTERS, edges_of, resizing

_PREPROCESSOR = "preprocessor_config.json"
_ACTIVATIONS = {  # transformers' names that mean the same function
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_DEFAULT_ACTIVATION = {  # of transformers, where a config does not say
    "clip": "quick_gelu",
    "clip_vision_model": "quick_gelu",
    "vit": "gelu",
    "dinov2": "gelu",
}
# Of transformers' configs, where they do not say it: heads and epsilon.
_DEFAULTS = {
    "clip": (12, 1e-5),
    "clip_vision_model": (12, 1e-5),
    "vit": (12, 1e-12),
    "dinov2": (12, 1e-6),
}
# Processors of transformers that, where their file does not say it, cut out the center and take an
# integer size for the shortest edge; that cut nothing and take it for both. Others differ.
_SHORTEST, _SQUASH = ("CLIP", "ChineseCLIP", "Bit"), ("ViT",)
# Of timm's pretrained_cfg; where they say how images are made, a crop_pct that is absent is 0.875.
_TIMM_KEYS = {"mean", "std", "interpolation", "crop_mode", "input_size"}
_TIMM_CROP = 0.875
_HEAD_WIDTH = 64  # open_clip's default
_PROCESSOR = re.compile("(FeatureExtractor|ImageProcessor)(Fast|Pil)?$")  # after a kind's name


def describe_transformers(folder: Path) -> tuple[str, dict[str, Any]]:
    """Returns what a folder of ``save_pretrained`` or timm is, in words, and what it says."""
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if isinstance(config.get("architecture"), str):
        return f"timm folder ({config['architecture']})", timm_facts(config)
    facts = config_facts(config)
    if (folder / _PREPROCESSOR).is_file():
        processor = read_json(folder / _PREPROCESSOR)
        facts |= processor_facts(processor) if isinstance(processor, dict) else {}
    which = config.get("architectures")
    kind = which[0] if isinstance(which, list) and which else config.get("model_type", "?")
    return f"transformers folder ({kind})", facts


def config_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a transformers config says of its image encoder."""
    vision = config.get("vision_config")
    part = vision if isinstance(vision, dict) else config
    kind = config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    activation = part.get("hidden_act", _DEFAULT_ACTIVATION.get(kind))
    if isinstance(activation, str):
        activation = _ACTIVATIONS.get(activation, activation)
    # DINOv2 resizes its positions to the images; the others take one size.
    size = None if kind.startswith("dinov2") else part.get("image_size")
    heads, epsilon = _DEFAULTS.get(kind, (None, None))
    return {
        "activation": activation,
        "size": size,
        "heads": part.get("num_attention_heads", heads),
        "norm_eps": part.get("layer_norm_eps", epsilon),
        "name": config.get("_name_or_path"),
    }


def timm_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a config of timm says of its model and images.

    The size is said where the model was built for one; others take any.
    """
    parts = (config.get(key) for key in ("pretrained_cfg", "model_args"))
    trained, built = (part if isinstance(part, dict) else {} for part in parts)
    size, shape = built.get("img_size"), trained.get("input_size")
    if size is None and trained.get("fixed_input_size") and isinstance(shape, list):
        size = shape[1:]
    mode, share = trained.get("crop_mode"), trained.get("crop_pct")
    if share is None and trained.keys() & _TIMM_KEYS:
        share = _TIMM_CROP
    return {
        **{key: trained.get(key) for key in ("mean", "std", "interpolation")},
        "crop_pct": share,
        "size": size,
        "resize": "shortest" if mode == "center" else mode,
        "architecture": str(config["architecture"]).partition(".")[0],
        "heads": built.get("num_heads"),
        "pooling": built.get("global_pool", config.get("global_pool")),
    }


def processor_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a ``preprocessor_config.json`` says.

    Where images are resized in a way that is not done here, ``resize`` is "other".
    """
    facts: dict[str, Any] = _scale(config)
    if type(config.get("resample")) is int:
        facts["interpolation"] = PIL_FILTERS.get(config["resample"], OTHER)
    if not {"size", "crop_size", "do_resize", "do_center_crop"} & config.keys():
        return facts
    kind = config.get("image_processor_type", config.get("feature_extractor_type"))
    kind = _PROCESSOR.sub("", kind) if isinstance(kind, str) else ""
    way: dict[str, Any] = {"resize": OTHER}
    if kind not in (*_SHORTEST, *_SQUASH) and "do_center_crop" not in config:
        return facts | way
    edges, crop = config.get("size"), _edges(config.get("crop_size"))
    both, shortest = _edges(edges), kind in _SHORTEST
    if isinstance(edges, dict):
        resized = _edges(edges.get("shortest_edge"))[:1] or both
    else:
        resized = both[:1] if shortest else both if kind in _SQUASH else []
    cut = config.get("do_center_crop", shortest)
    size = crop if cut else both
    if size:
        facts["size"] = size
        way = resizing(resized, size) if cut or resized == both else way
    return facts | (way if config.get("do_resize", True) else {"resize": OTHER})


def _scale(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns mean and std on the scale [0, 1]; neither where pixels have another scale."""
    factor = config.get("rescale_factor", 1 / 255)
    usual = type(factor) in (int, float) and abs(255 * factor - 1) < 1e-3
    if not usual or not config.get("do_rescale", True):
        return {}
    if not config.get("do_normalize", True):
        return {"mean": [0.0] * 3, "std": [1.0] * 3}
    return {"mean": config.get("image_mean"), "std": config.get("image_std")}


def describe_open_clip(folder: Path) -> tuple[str, dict[str, Any]]:
    """Returns what a folder of open_clip's for the hub is, in words, and what it says."""
    config = read_config(folder / CLIP_CONFIG)
    parts = (config.get(key) for key in ("model_cfg", "preprocess_cfg"))
    model, preprocess = (part if isinstance(part, dict) else {} for part in parts)
    vision = model.get("vision_cfg")
    vision = vision if isinstance(vision, dict) else {}
    facts = {
        "size": preprocess.get("size", vision.get("image_size")),
        "mean": preprocess.get("mean"),
        "std": preprocess.get("std"),
        "resize": preprocess.get("resize_mode"),
        "interpolation": preprocess.get("interpolation"),
    }
    if model and "timm_model_name" not in vision:
        facts["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
        width, of_head = vision.get("width"), vision.get("head_width", _HEAD_WIDTH)
        if type(vision.get("layers")) is int and type(width) is int and type(of_head) is int:
            facts["heads"] = width // max(of_head, 1)
    return "open_clip folder", facts


def _edges(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    return edges_of(value if isinstance(value, list) else [value] * 2)
