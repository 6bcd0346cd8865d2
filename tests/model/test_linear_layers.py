# SPDX-License-Identifier: Apache-2.0
"""Which tensors are matrices, in the libraries' own models: type and name tell, not the shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdft_fast.arena import Layout
from mdft_fast.model import LinearLayer, build_backbone, find_linear_layers


def layers_of(module: nn.Module, ties: dict[str, str] | None = None) -> dict[str, LinearLayer]:
    """Returns weight -> layer over all of a module's parameters, shared ones once."""
    layout = Layout.of({name: tensor.shape for name, tensor in module.named_parameters()})
    return {layer.weight: layer for layer in find_linear_layers(module, layout, ties or {})}


def outside(layers: dict[str, LinearLayer]) -> dict[str, str]:
    return {weight: layer.block for weight, layer in layers.items() if not layer.inside}


def check_round_trip(module: nn.Module, layers: dict[str, LinearLayer]) -> None:
    """A layer's outputs are those of its matrix, and the matrix becomes the weight again."""
    for weight, layer in layers.items():
        tensor = module.get_parameter(weight).detach()
        matrices = layer.matrix(tensor[None])
        assert matrices.dim() == 3
        assert torch.equal(layer.weights(matrices[0], tuple(tensor.shape)), tensor)


def test_a_timm_vit() -> None:
    pytest.importorskip("timm")
    spec = {"library": "timm", "name": "test_vit", "kwargs": {"img_size": 32, "num_classes": 7}}
    module = build_backbone(spec)
    layers = layers_of(module)
    assert outside(layers) == {"patch_embed.proj.weight": "stem", "head.weight": "tail"}
    assert layers["patch_embed.proj.weight"].kind == "convolution"
    first = [(w, layer.kind, layer.bias) for w, layer in layers.items() if "blocks.0." in w]
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert first == [
        (f"blocks.0.{name}.weight", "linear", f"blocks.0.{name}.bias") for name in names
    ]
    assert {layer.block for layer in layers.values() if layer.inside} == {
        f"blocks.{i}" for i in range(len(layers) // 4)
    }
    check_round_trip(module, layers)


def test_an_open_clip_tower() -> None:
    clip = pytest.importorskip("open_clip.transformer")
    module = clip.VisionTransformer(
        image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
    )
    layers = layers_of(module)
    assert outside(layers) == {"conv1.weight": "stem"}  # `proj` and embeddings are no layers
    prefix = "transformer.resblocks.1."
    assert {w.removeprefix(prefix): layer.kind for w, layer in layers.items() if prefix in w} == {
        "attn.in_proj_weight": "in_proj",
        "attn.out_proj.weight": "linear",
        "mlp.c_fc.weight": "linear",
        "mlp.c_proj.weight": "linear",
    }
    attention = layers[f"{prefix}attn.in_proj_weight"]
    assert (attention.name, attention.bias) == (f"{prefix}attn", f"{prefix}attn.in_proj_bias")
    check_round_trip(module, layers)


def test_gpt2s_conv1d_is_turned() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=5)
    module = transformers.GPT2LMHeadModel(config)
    # The head's weight is the embedding's: a tensor of the stem, and a layer there.
    layers = layers_of(module, {"lm_head.weight": "transformer.wte.weight"})
    assert outside(layers) == {"transformer.wte.weight": "stem"}
    assert {layer.kind for layer in layers.values() if layer.inside} == {"conv1d"}
    layer = layers["transformer.h.1.mlp.c_fc.weight"]
    part = module.get_submodule(layer.name)
    x = torch.randn(3, 8)
    matrix = layer.matrix(part.weight[None])[0]
    assert matrix.shape == (32, 8)
    assert torch.allclose(part(x), x @ matrix.mT + part.bias, atol=1e-6)
    check_round_trip(module, layers)


def test_convolutions_and_what_is_none() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv1d(4, 6, 2),
        nn.ConvTranspose2d(4, 2, 2),
        nn.Embedding(5, 4),
        nn.BatchNorm2d(4),
        nn.Bilinear(2, 3, 4),
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5),  # three weights, and a module for none
    )
    layers = layers_of(module)
    assert {weight: layer.kind for weight, layer in layers.items()} == {
        "0.weight": "convolution", "3.weight": "convolution", "8.out_proj.weight": "linear",
    }  # fmt: skip
    assert (layers["0.weight"].bias, layers["3.weight"].bias) == (None, "3.bias")
    assert layers["0.weight"].matrix(torch.zeros(5, 4, 3, 3, 3)).shape == (5, 4, 27)
    check_round_trip(module, layers)


def test_a_shared_weight_is_one_matrix_under_its_first_name() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    layers = layers_of(module, {"1.weight": "0.weight"})
    assert [(layer.name, weight, layer.bias) for weight, layer in layers.items()] == [
        ("0", "0.weight", "0.bias")
    ]


def test_what_is_not_merged_is_no_layer() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    layout = Layout.of({"1.weight": (2, 3)})  # the first is frozen, and so is the second's bias
    (layer,) = find_linear_layers(module, layout, {})
    assert (layer.weight, layer.bias, layer.block) == ("1.weight", None, "1")
