# SPDX-License-Identifier: Apache-2.0
"""What a config says and no shape shows is compared with the backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mdft_fast.checkpoints import open_state
from mdft_fast.errors import MdftError
from mdft_fast.model import build_backbone
from mdft_fast.pool import Head, Pool

VIT = {
    "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TIMM = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 3}
CLIP_NAME = "vit_base_patch16_clip_quickgelu_224"
PREPROCESS = {"size": 32, "mean": 0.5, "std": 0.5}


def pack(spec: dict[str, Any], config: dict[str, Any], folder: Path) -> Pool:
    """Packs one task, whose model and base have a config each: the same one."""
    backbone = build_backbone(spec)
    for name, by in (("base", 0.0), ("a", 1.0)):
        (folder / name).mkdir()
        files = getattr(backbone, "checkpoint_names", {})
        state = {files.get(n, n): t + by for n, t in backbone.state_dict().items()}
        save_file(state, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    task = type("T", (), {"name": "a", "class_names": ("x",), "head": Head(torch.ones(1, 48))})()
    return Pool.from_checkpoints(
        folder / "base", [folder / "a"], [task], backbone=backbone, preprocess=PREPROCESS
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        (
            {"num_attention_heads": 4},
            r"number of attention heads must be 4 as .*base says, got 3",
        ),
        ({"layer_norm_eps": 1e-6}, r"the epsilon of its normalization must be 1e-06 .*, got 1e-12"),
        ({"layer_norm_eps": None}, ""),
        ({"num_attention_heads": "many", "layer_norm_eps": [1]}, ""),
    ],
)
def test_a_config_of_transformers(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    kwargs = {**VIT, "add_pooling_layer": False}
    spec = {"library": "transformers", "name": "ViTModel", "kwargs": kwargs}
    config = {**VIT, "model_type": "vit", "layer_norm_eps": 1e-12, **changes}
    if not message:
        assert pack(spec, config, tmp_path).K == 1
        return
    with pytest.raises(MdftError, match=message):
        pack(spec, config, tmp_path)


def test_a_default_is_the_librarys(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    kwargs = {**VIT, "add_pooling_layer": False}
    spec = {"library": "transformers", "name": "ViTModel", "kwargs": kwargs}
    config = {key: VIT[key] for key in VIT if key != "num_attention_heads"}
    with pytest.raises(MdftError, match=r"heads must be 12 as .* says, got 3"):
        pack(spec, {**config, "model_type": "vit"}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"architecture": f"{CLIP_NAME}.openai"}, ""),
        ({"architecture": "vit_base_patch16_clip_224"}, rf"its name must be .*, got '{CLIP_NAME}'"),
        ({"model_args": {"num_heads": 4}}, r"number of attention heads must be 4 .*, got 3"),
        ({"global_pool": "avg"}, r"its global_pool must be 'avg' as .*a says, got 'token'"),
    ],
)
def test_a_config_of_timm(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    spec = {"library": "timm", "name": CLIP_NAME, "kwargs": {**TIMM, "num_classes": 0}}
    config = {"architecture": CLIP_NAME, "global_pool": "token", "model_args": TIMM, **changes}
    if not message:
        assert pack(spec, config, tmp_path).K == 1
        return
    with pytest.raises(MdftError, match=message):
        pack(spec, config, tmp_path)


def test_an_open_clip_folder_says_its_heads(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "open_clip_model.safetensors")
    vision = {"layers": 12, "width": 768, "patch_size": 32}
    config = {"model_cfg": {"embed_dim": 512, "vision_cfg": vision}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert open_state(tmp_path).facts.heads == 12
    vision["head_width"] = 32
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert open_state(tmp_path).facts.heads == 24
