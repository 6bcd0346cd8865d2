# SPDX-License-Identifier: Apache-2.0
"""CLIP as people have it: task_vectors pickles, whole state dicts, folders of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mdft_fast import MetaModel, Pool
from mdft_fast.checkpoints import activation_of, open_state
from mdft_fast.errors import MdftError
from mdft_fast.pool import Head
from tests.checkpoints.corpus import MEAN, SIZE, STD, VISION, save_encoder, save_head, tiny_clip

pytest.importorskip("open_clip")
PREPROCESS = {"size": SIZE, "mean": list(MEAN), "std": list(STD)}
TASKS = ("mnist", "dtd")


def backbone(quick_gelu: bool = True) -> nn.Module:
    return tiny_clip(quick_gelu, seed=9).visual


def tasks() -> list[Any]:
    head = Head(torch.ones(2, 12), normalize=True)
    return [SimpleNamespace(name=name, class_names=("a", "b"), head=head) for name in TASKS]


def build(base: Path, models: Any, tower: nn.Module | None = None, **preprocess: Any) -> Pool:
    return Pool.from_checkpoints(
        base, models, tasks(), backbone=tower or backbone(), preprocess=PREPROCESS | preprocess
    )


@pytest.fixture(scope="module")
def clips() -> list[nn.Module]:
    return [tiny_clip(seed=seed) for seed in range(3)]


def check_forward(pool: Pool, models: list[nn.Module], tower: nn.Module) -> None:
    """λ = e_k gives the library's own features."""
    meta = MetaModel(tower, pool)
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for name, model in zip(pool.names, models, strict=True):
        with torch.no_grad(), meta.using(meta.individual(name)):
            torch.testing.assert_close(meta.encode(x), model.encode_image(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_task_vectors_checkpoints(quick_gelu: bool, legacy: bool, tmp_path: Path) -> None:
    clips = [tiny_clip(quick_gelu, seed=seed) for seed in range(3)]
    paths = [tmp_path / "zeroshot.pt", tmp_path / "MNIST/finetuned.pt", tmp_path / "DTD/model.pt"]
    for path, model in zip(paths, clips, strict=True):
        save_encoder(path, model, legacy=legacy)
    state = open_state(paths[0])
    assert "pickled src.modeling.ImageEncoder" in state.format
    assert state.facts.activation == ("quick_gelu" if quick_gelu else "gelu")
    assert state.facts.preprocess() == {
        "size": [SIZE, SIZE], "mean": list(MEAN), "std": list(STD),
        "resize": "shortest", "interpolation": "bicubic", "crop_pct": 1.0,
    }  # fmt: skip
    assert {"model.token_embedding.weight", "model.positional_embedding", "model.logit_scale",
            "model.text_projection", "model.ln_final.weight"} <= set(state.left_out)  # fmt: skip
    pool = build(paths[0], paths[1:], backbone(quick_gelu))
    assert pool.activation == ("quick_gelu" if quick_gelu else "gelu")
    assert "CLIP's text tower" in pool.left_out["model.token_embedding.weight"]
    check_forward(pool, clips[1:], backbone(quick_gelu))
    pool.save(tmp_path / "packed")
    assert Pool.open(tmp_path / "packed").activation == pool.activation


def test_contradictions_name_both_sides(clips: list[nn.Module], tmp_path: Path) -> None:
    paths = [tmp_path / "base.pt", tmp_path / "a.pt", tmp_path / "b.pt"]
    for path, model in zip(paths, clips, strict=True):
        save_encoder(path, model)
    with pytest.raises(
        MdftError, match=r"activation must be 'quick_gelu' as .*base.pt says, got 'gelu'; .*quickg"
    ):
        build(paths[0], paths[1:], backbone(False))
    for key, value in {"size": 8, "mean": 0.5, "std": [0.1, 0.2, 0.3]}.items():
        with pytest.raises(MdftError, match=rf"preprocess: '{key}' must be .*base.pt says, got"):
            build(paths[0], paths[1:], **{key: value})
    assert build(paths[0], paths[1:], mean=[0.4815, 0.4578, 0.4082]).K == 2  # rounded: the same
    save_encoder(paths[2], tiny_clip(False, seed=2))
    with pytest.raises(MdftError, match=r"b.pt: activation is 'gelu', but .*base.pt says 'quick_g"):
        build(paths[0], paths[1:])


def test_a_pool_refuses_a_backbone_of_another_activation(clips: list[nn.Module]) -> None:
    pool = build(clips[0].visual, [clip.visual for clip in clips[1:]])
    assert pool.activation == "quick_gelu"
    with pytest.raises(MdftError, match=r"must be 'quick_gelu' as the pool says, got 'gelu'"):
        MetaModel(backbone(False), pool)


@pytest.mark.parametrize("prefix", ["", "model.", "module.clip."])
def test_a_whole_clip_gives_its_image_tower(
    prefix: str, clips: list[nn.Module], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path, model in zip(paths, clips, strict=True):
        save_file({prefix + k: v.clone() for k, v in model.state_dict().items()}, path)
    pool = build(paths[0], paths[1:])
    prefix = prefix.removeprefix("module.")  # a wrapper's
    why = pool.left_out[f"{prefix}token_embedding.weight"]
    assert why.startswith("CLIP's text tower or logits: ")
    assert f"'{prefix}visual.'" in why
    check_forward(pool, clips[1:], backbone())


def test_two_towers_are_ambiguous(clips: list[nn.Module]) -> None:
    twice = {f"{p}.{k}": v.clone() for p in "ab" for k, v in clips[0].visual.state_dict().items()}
    with pytest.raises(MdftError, match=r"must stand behind one prefix, got \['a.', 'b.'\]"):
        build(twice, [twice, twice])


def test_an_open_clip_folder(clips: list[nn.Module], tmp_path: Path) -> None:
    save_file(dict(clips[0].state_dict()), tmp_path / "open_clip_model.safetensors")
    config: dict[str, Any] = {
        "model_cfg": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": {}},
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bilinear",
                           "resize_mode": "squash"},
    }  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    facts = open_state(tmp_path).facts
    assert facts.activation == "quick_gelu"
    assert (facts.size, facts.resize, facts.interpolation) == ((SIZE, SIZE), "squash", "bilinear")
    assert facts.mean == pytest.approx(MEAN)
    config["preprocess_cfg"] |= {"resize_mode": "longest", "interpolation": "random"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    facts = open_state(tmp_path).facts
    assert (facts.resize, facts.interpolation) == ("other", "other")
    for content, kind in {"[1]": "list", '"x"': "str", "null": "NoneType"}.items():
        (tmp_path / "open_clip_config.json").write_text(content)
        with pytest.raises(
            MdftError, match=rf"open_clip_config.json: must be a JSON object, got {kind}"
        ):
            open_state(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_pickled_head(normalize: bool, legacy: bool, tmp_path: Path) -> None:
    weight = torch.randn(3, 12) * 100
    path = tmp_path / "head_MNIST.pt"
    save_head(path, weight, normalize, legacy)
    head = Head.from_file(path)
    assert (head.normalize, head.scale) == (normalize, 1.0)
    x = torch.randn(4, 12)
    wanted = (x / x.norm(dim=-1, keepdim=True) if normalize else x) @ weight.T
    torch.testing.assert_close(head(x), wanted)
    with pytest.raises(MdftError, match=rf"normalize must be {normalize} as the file says"):
        Head.from_file(path, normalize=not normalize)
    save_file({"weight": weight}, tmp_path / "plain.safetensors")
    with pytest.raises(MdftError, match=r"does not say `normalize`, so it must be given"):
        Head.from_file(tmp_path / "plain.safetensors")


def test_activations_of_modules() -> None:
    assert activation_of(backbone()) == "quick_gelu"
    assert activation_of(backbone(False)) == "gelu"
    assert activation_of(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert activation_of(nn.Sequential(nn.GELU(), nn.GELU(approximate="tanh"))) is None
    assert activation_of(nn.ReLU()) is None
