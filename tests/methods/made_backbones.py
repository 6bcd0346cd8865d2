# SPDX-License-Identifier: Apache-2.0
"""Tiny backbones of many kinds, pools of models of them, and unlabelled inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdft_fast import Pool
from mdft_fast.checkpoints import Batch
from mdft_fast.methods import InputMerge, TaskInputs, apply
from mdft_fast.model import MetaModel, build_backbone, tensors_of
from mdft_fast.pool import Head
from tests.methods.made_pools import tensors

IMAGE = 16
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, eq=False)
class Tensors:
    """Samples that are tensors: one, or several by name."""

    tensors: Batch

    def __len__(self) -> int:
        return len(next(tensors_of(self.tensors)))

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        if isinstance(self.tensors, Tensor):
            return self.tensors[indices].to(device)
        return {name: tensor[indices].to(device) for name, tensor in self.tensors.items()}

    def digests(self) -> Any:
        return np.arange(16 * len(self), dtype=np.uint8).reshape(-1, 16)


@dataclasses.dataclass(frozen=True, eq=False)
class InputTask:
    """A task of which there is nothing but inputs and a head."""

    name: str
    samples: Tensors
    head: Head | None
    class_names: tuple[str, ...] = ("a", "b", "c")

    def load_samples(self, preprocess: Mapping[str, Any]) -> Tensors:
        return self.samples


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A backbone, a pool of K models of it, and each task's inputs."""

    backbone: nn.Module
    pool: Pool
    tasks: tuple[InputTask, ...]

    @property
    def inputs(self) -> list[TaskInputs]:
        return [
            TaskInputs(task.name, task.samples, torch.arange(len(task.samples)), CPU)
            for task in self.tasks
        ]

    def model(self, k: int) -> nn.Module:
        """Returns task k's own model."""
        ones = [float(i == k) for i in range(self.pool.K)]
        return MetaModel(self.backbone, self.pool, granularity="task", start=ones).materialize()

    def merged(self, method: InputMerge, **options: Any) -> dict[str, Tensor]:
        """Returns the vector that a method makes, by tensor name."""
        made = apply(self.pool, [method], backbone=self.backbone, tasks=self.tasks, **options)
        return tensors(made)

    def made(self, vector: Mapping[str, Tensor]) -> nn.Module:
        """Returns the model that base and one vector make."""
        module = self.model(0)
        parameters = dict(module.named_parameters())
        base = dict(zip(self.names, self.pool.layout.views(self.pool.base), strict=True))
        with torch.no_grad():
            for name, delta in vector.items():
                parameters[name].copy_(base[name] + delta[0])
        return module

    @property
    def names(self) -> list[str]:
        return list(self.pool.layout.columns)


def images(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(seed))


def tokens(n: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "ids": torch.randint(0, 11, (n, 7), generator=generator),
        "gain": 1 + 0.1 * torch.randn(n, 1, 1, generator=generator),
    }


def make_case(
    backbone: nn.Module,
    *,
    K: int = 2,
    n: int = 6,
    size: float = 0.2,
    draw: Callable[[int, int], Batch] = images,
    codec: str = "fp32",
    heads: bool = True,
) -> Case:
    """Returns K models that differ from a base by noise, ``size`` times each tensor's spread."""
    backbone.eval()
    base = {name: tensor.detach().clone() for name, tensor in backbone.state_dict().items()}
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in parameters.items():  # no norm of fresh weights, which would do nothing
        base[name] += 0.1 * torch.randn(tensor.shape, generator=generator)
    models: list[dict[str, Tensor]] = []
    for _ in range(K):
        model = dict(base)
        for name, tensor in parameters.items():
            noise = torch.randn(tensor.shape, generator=generator)
            model[name] = base[name] + size * (base[name].abs().mean() + 0.02) * noise
        models.append(model)
    with torch.no_grad():
        example = draw(2, 0)
        features = backbone(example) if isinstance(example, Tensor) else backbone(**example)
    tasks = []
    for k in range(K):
        weight = torch.randn(3, features.shape[1], generator=generator)
        head = Head(weight, normalize=True, scale=3.0) if heads else None
        tasks.append(InputTask(f"task{k}", Tensors(draw(n, 10 + k)), head))
    pool = Pool.from_checkpoints(
        base, models, tasks, backbone=backbone,
        preprocess={"size": IMAGE, "mean": 0.5, "std": 0.5}, codec=codec,
    )  # fmt: skip
    return Case(backbone, pool, tuple(tasks))


# ---- backbones -----------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is [in, out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(0.3 * torch.randn(nx, nf))
        self.bias = nn.Parameter(0.1 * torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GptBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.c_proj2 = Conv1D(2 * width, width), Conv1D(width, 2 * width)

    def forward(self, hidden: Tensor, gain: Tensor | None = None) -> tuple[Tensor, None]:
        q, k, v = self.c_attn(self.ln_1(hidden)).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.c_proj(mixed if gain is None else mixed * gain)
        return hidden + self.c_proj2(F.gelu(self.c_fc(self.ln_2(hidden)))), None


class Gpt(nn.Module):
    """Takes a dict of tensors; its blocks take one by keyword and return tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 12)
        self.h = nn.ModuleList(GptBlock(12) for _ in range(2))
        self.ln_f = nn.LayerNorm(12)

    def forward(self, ids: Tensor, gain: Tensor) -> Tensor:
        hidden = self.wte(ids)
        for block in self.h:
            hidden = block(hidden, gain=gain)[0]
        return self.ln_f(hidden)[:, -1]


class Torch(nn.Module):
    """torch.nn.TransformerEncoderLayer, which has a path of its own for inference."""

    def __init__(self, norm_first: bool, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * IMAGE, 16)
        layer = nn.TransformerEncoderLayer(
            16, 2, 24, norm_first=norm_first, batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first
        for parameter in self.encoder.parameters():  # copies of one layer otherwise
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.permute(0, 2, 1, 3).flatten(2))
        x = x if self.batch_first else x.transpose(0, 1)
        return self.encoder(x).mean(1 if self.batch_first else 0)


class Residual(nn.Module):
    """A block of a ResNet: in-place activations, norms of fixed statistics, maybe a shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or width != out:
            conv = nn.Conv2d(width, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.act2(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.layers = nn.Sequential(Residual(6, 6, 1), Residual(6, 8, 2))
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.2)
                nn.init.normal_(part.bias, 0.0, 0.2)
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.stem(x)).mean((2, 3))


class OddBlock(nn.Module):
    """Grouped convolutions, circular and named paddings, dilation, one row only, a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.circular = nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(6, 6, 3, padding="same")
        self.dilated = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.line = nn.Conv1d(6, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 1)
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.relu(self.dilated(self.same(self.circular(self.grouped(x)))))
        x = x + self.line(x.flatten(2)).view_as(x)
        return self.twice(F.relu(self.twice(x)))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.blocks = nn.ModuleList([OddBlock(), OddBlock()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


class Branches(nn.Module):
    """Numbered blocks that do not run in a line."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(3 * IMAGE * IMAGE, 5) for _ in range(2))
        self.out = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(torch.tanh(self.branches[0](x)) * self.branches[1](x))


def plain_cnn() -> nn.Module:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, 3, 2, 1)
            self.second = nn.Conv2d(6, 8, 3, 2, 1)
            self.out = nn.Linear(8, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.second(F.relu_(self.first(x)))).mean((2, 3)))

    return Plain()


def numbered_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7),
    )  # fmt: skip


def timm_vit(**kwargs: Any) -> nn.Module:
    pytest.importorskip("timm")
    sizes = {"img_size": IMAGE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    spec = {"library": "timm", "name": "test_vit", "kwargs": {**sizes, "num_classes": 0, **kwargs}}
    return build_backbone(spec)


def open_clip_tower(**kwargs: Any) -> nn.Module:
    pytest.importorskip("open_clip")
    sizes = {"image_size": IMAGE, "patch_size": 8, "width": 16, "layers": 2, "heads": 2,
             "mlp_ratio": 2.0, "output_dim": 12}  # fmt: skip
    name = {"library": "open_clip", "name": "VisionTransformer"}
    return build_backbone({**name, "kwargs": {**sizes, **kwargs}})


def transformers_encoder(name: str, **kwargs: Any) -> nn.Module:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "image_size": IMAGE, "patch_size": 8}  # fmt: skip
    spec = {"library": "transformers", "name": name, "kwargs": {**sizes, **kwargs}}
    return build_backbone(spec)


class OldBlock(nn.Module):
    """An early ResidualAttentionBlock of CLIP: positions first, attention's weights not refused."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 2)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        mask = 0.3 * torch.arange(float(len(x)))
        mask = mask[:, None] - mask
        x = x + self.attn(normed, normed, normed, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OldTower(nn.Module):
    """CLIP's vision tower as its first repositories had it: LND, ``proj`` a raw parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(16))
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(5, 16))
        self.resblocks = nn.Sequential(OldBlock(16), OldBlock(16))
        self.ln_post = nn.LayerNorm(16)
        self.proj = nn.Parameter(0.25 * torch.randn(16, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = (x + self.positional_embedding).transpose(0, 1)
        return self.ln_post(self.resblocks(x).transpose(0, 1)[:, 0]) @ self.proj


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "timm class token": timm_vit,
    "timm average": lambda: timm_vit(global_pool="avg"),
    "timm registers, layer scale": lambda: timm_vit(reg_tokens=2, init_values=0.3),
    "open_clip": open_clip_tower,
    "open_clip layer scale": lambda: open_clip_tower(ls_init_value=0.3),
    "old CLIP": OldTower,
    "transformers CLIP": lambda: transformers_encoder(
        "CLIPVisionModelWithProjection", intermediate_size=24, projection_dim=12
    ),
    "transformers ViT": lambda: transformers_encoder("ViTModel", intermediate_size=24),
    "transformers DINOv2": lambda: transformers_encoder(
        "Dinov2Model", mlp_ratio=2, layerscale_value=0.4
    ),
    "GPT-2's Conv1D": Gpt,
    "torch, norm first": lambda: Torch(norm_first=True, batch_first=True),
    "torch, norm behind": lambda: Torch(norm_first=False, batch_first=False),
    "plain CNN": plain_cnn,
    "numbered CNN": numbered_cnn,
    "ResNet": ResNet,
    "odd": Odd,
    "branches": Branches,
}


def make_backbone_case(name: str, **options: Any) -> Case:
    """Returns a case of a named backbone."""
    options.setdefault("draw", tokens if name == "GPT-2's Conv1D" else images)
    return make_case(seeded(BACKBONES[name]), **options)
