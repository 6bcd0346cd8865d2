# SPDX-License-Identifier: Apache-2.0
"""A CLIP of a few thousand weights under a name of its own, and its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
NAME = "mdft-test-clip"


@pytest.fixture(scope="session")
def clip_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("configs")
    custom = {**CONFIG, "custom_text": True}
    for name, config in ((NAME, CONFIG), (f"{NAME}-custom", custom)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    (folder / f"{NAME}-remote.json").write_text(
        json.dumps({**CONFIG, "text_cfg": {"hf_model_name": "somebody/text"}})
    )
    open_clip.add_model_config(folder)
    return NAME


@pytest.fixture(scope="session")
def clip(clip_name: str) -> tuple[Any, Any]:
    """The model, with weights that are not its first ones, and its tokenizer."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.create_model(clip_name, pretrained_text=False).eval()
        with torch.no_grad():
            model.logit_scale.copy_(torch.tensor(3.7))
    return model, open_clip.get_tokenizer(clip_name)


@pytest.fixture(scope="session")
def weights(clip: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in clip[0].state_dict().items()}, file)
    return file


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    """Heads in the test's own cache."""
    return own_cache / "heads"
