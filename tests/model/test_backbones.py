# SPDX-License-Identifier: Apache-2.0
"""A backbone's spec may be a stranger's: nothing in it reads a file, runs code or asks the net."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from mdft_fast.errors import MdftError
from mdft_fast.model import Held, build_backbone
from tests.checkpoints.corpus import Call

pytestmark = pytest.mark.usefixtures("no_net")
TOWER = {
    "image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2,
    "mlp_ratio": 2.0, "output_dim": 12,
}  # fmt: skip
# A name's own tower but for its size, so that a test takes no half a gigabyte.
SMALL = {"image_size": 64, "patch_size": 32, "width": 64, "layers": 1}
TIMM = {"library": "timm", "name": "test_vit"}
CLIP = {"library": "open_clip", "name": "ViT-B-32"}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that must never appear; ``evil.pt`` in the working folder would make it."""
    path = tmp_path / "canary"
    torch.save(Call(Path.touch, path), tmp_path / "evil.pt")
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def no_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the net was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_canary_sings(canary: Path) -> None:
    torch.load("evil.pt", weights_only=False)
    assert canary.exists()


EVIL: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "clip image": (
        CLIP,
        {"pretrained_image_path": "evil.pt", "weights_only": False},
        "pretrained_image_path",
    ),
    "clip text": (CLIP, {"weights_only": False, "pretrained_text_path": "evil.pt"}, "weights_only"),
    "clip whole": (CLIP, {"pretrained": "evil.pt"}, "pretrained"),
    "clip load": (CLIP, {"load_weights": True}, "load_weights"),
    "clip require": (CLIP, {"require_pretrained": True}, "require_pretrained"),
    "clip cache": (CLIP, {"cache_dir": "here"}, "cache_dir"),
    "clip old name": (CLIP, {"pretrained_hf": True}, "pretrained_hf"),
    "clip hub text": (CLIP, {"text_cfg": {"hf_model_name": "gpt2"}}, "text_cfg.hf_model_name"),
    "clip timm tower": (
        CLIP,
        {"vision_cfg": {"timm_model_name": "hf-hub:a/b"}},
        "vision_cfg.timm_model_name",
    ),
    "clip timm weights": (
        CLIP,
        {"vision_cfg": {"timm_model_name": "test_vit", "timm_model_pretrained": True}},
        "vision_cfg.timm_model_pretrained",
    ),
    "clip argument of another day": (CLIP, {"resume": "evil.pt"}, "resume"),
    "timm checkpoint": (TIMM, {"checkpoint_path": "evil.pt"}, "checkpoint_path"),
    "timm pretrained": (TIMM, {"pretrained": True}, "pretrained"),
    "timm config": (TIMM, {"pretrained_cfg": {"file": "evil.pt"}}, "pretrained_cfg"),
    "timm overlay": (
        TIMM,
        {"pretrained_cfg_overlay": {"url": "evil.pt"}},
        "pretrained_cfg_overlay",
    ),
    "timm cache": (TIMM, {"cache_dir": "here"}, "cache_dir"),
    "capitals": (TIMM, {"CheckPoint": "evil.pt"}, "CheckPoint"),
    "a path": (TIMM, {"img_size": "../evil.pt"}, "img_size"),
    "a path in a list": (TIMM, {"sizes": [1, ["a", "C:\\evil.pt"]]}, "sizes[1][1]"),
    "a text under path": (TIMM, {"drop_path_rate": "evil"}, "drop_path_rate"),
    "an object": (TIMM, {"act_layer": Call}, "act_layer"),
    "not finite": (TIMM, {"drop_rate": float("nan")}, "drop_rate"),
}


@pytest.mark.parametrize("case", EVIL)
def test_no_argument_reads_a_file_or_the_net(case: str, canary: Path) -> None:
    spec, kwargs, key = EVIL[case]
    pytest.importorskip(spec["library"])
    with pytest.raises(MdftError, match="backbone: ") as caught:
        build_backbone({**spec, "kwargs": kwargs})
    assert repr(f"kwargs.{key}") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize("library", ["timm", "open_clip"])
@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:a/b", "hf_hub:a", "local-dir:.", "local-dir:evil", "https://a.b/c", "a/b",
        "../evil", "C:\\evil", "~", "", None, 7, ["test_vit"],
    ],
)  # fmt: skip
def test_no_name_is_a_place(library: str, name: Any) -> None:
    with pytest.raises(MdftError, match=r"'name' must be a plain name .*got"):
        build_backbone({"library": library, "name": name})


@pytest.mark.parametrize("kwargs", ["evil.pt", [["checkpoint_path", "evil.pt"]], {1: 2}])
def test_kwargs_are_a_mapping_of_strings(kwargs: Any) -> None:
    with pytest.raises(MdftError, match=r"must be a mapping|must have strings as keys"):
        build_backbone({**TIMM, "kwargs": kwargs})


def test_the_usual_arguments_pass() -> None:
    pytest.importorskip("timm")
    kwargs = {
        "img_size": [32, 32], "num_classes": 0, "global_pool": "avg", "drop_path_rate": 0.1,
        "weight_init": "skip", "dynamic_img_size": True, "act_layer": "quick_gelu",
        "init_values": None,
    }  # fmt: skip
    module = build_backbone({**TIMM, "kwargs": kwargs})
    assert module(torch.zeros(1, 3, 32, 32)).dim() == 2


def test_the_demos_tower_passes() -> None:
    pytest.importorskip("open_clip")
    spec = {"library": "open_clip", "name": "VisionTransformer", "kwargs": TOWER}
    assert build_backbone(spec)(torch.zeros(1, 3, 16, 16)).shape == (1, 12)


def test_the_real_pools_backbone_passes(real_pool: Path) -> None:
    pytest.importorskip("timm")
    spec = json.loads((real_pool / "pool.json").read_text(encoding="utf-8"))["architecture"]
    assert build_backbone(spec)(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


@pytest.mark.parametrize(
    ("name", "activation"), [("ViT-B-32", "GELU"), ("ViT-B-32-quickgelu", "QuickGELU")]
)
def test_clips_names_pass(name: str, activation: str) -> None:
    pytest.importorskip("open_clip")
    kwargs = {"vision_cfg": SMALL, "force_patch_dropout": 0.0, "precision": "fp32"}
    tower = build_backbone({"library": "open_clip", "name": name, "kwargs": kwargs})
    assert tower(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
    assert activation in {type(module).__name__ for module in tower.modules()}


def test_a_text_tower_of_the_hub_is_never_asked_for() -> None:
    pytest.importorskip("open_clip")
    spec = {"library": "open_clip", "name": "roberta-ViT-B-32", "kwargs": {"vision_cfg": SMALL}}
    assert build_backbone(spec)(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


@pytest.mark.parametrize(
    "kwargs",
    [{"layers": 100_000}, {"width": 1_000_000}, {"width": 4096, "mlp_ratio": 1e5}],
    ids=["many", "large", "wide"],
)
def test_a_description_of_more_than_the_weights_is_refused_before_it_is_built(
    kwargs: dict[str, Any],
) -> None:
    spec = {"library": "open_clip", "name": "VisionTransformer", "kwargs": {**TOWER, **kwargs}}
    with pytest.raises(MdftError, match=r"must make the model that the weights are of, 20 tensors"):
        build_backbone(spec, Held(20, 10_000))


def test_what_a_description_makes_and_drops_is_no_reason_to_refuse_it() -> None:
    whole = build_backbone(TIMM)
    sizes = [parameter.numel() for parameter in whole.parameters()]
    assert build_backbone(TIMM, Held(len(sizes), sum(sizes))).state_dict().keys() == (
        whole.state_dict().keys()
    )


def test_a_backbone_is_in_float32_whatever_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        dtypes = {parameter.dtype for parameter in build_backbone(TIMM).parameters()}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert dtypes == {torch.float32}
