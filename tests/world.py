# SPDX-License-Identifier: Apache-2.0
"""A world small enough for tests: an encoder, three models fine-tuned from it, their images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from mdft_fast import MetaModel, Pool, Task
from mdft_fast.pool import Head

CLASSES = {"shapes": 3, "letters": 12, "signs": 5}
PREPROCESS = {"size": 8, "mean": 0.5, "std": 0.5}


class Encoder(nn.Module):
    """A plain CNN: ``[B, 3, 8, 8] -> [B, 16]``, with a buffer and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 16)
        self.register_buffer("gain", torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        out: Tensor = self.out(self.norm(x.mean((2, 3)) * self.gain))
        return out


@dataclasses.dataclass
class World:
    backbone: nn.Module
    base: dict[str, Tensor]
    models: list[dict[str, Tensor]]
    tasks: list[Task]
    pool: Pool

    def meta(self, **options: object) -> MetaModel:
        return MetaModel(self.backbone, self.pool, **options)  # type: ignore[arg-type]

    def merged(self, lam: Tensor) -> dict[str, Tensor]:
        """Equation (1) in plain torch, λ by tensor: [K, L]."""
        names = [name for name in self.base if name != "gain"]
        return {
            name: self.base[name]
            + sum(lam[k, i] * (s[name] - self.base[name]) for k, s in enumerate(self.models))
            for i, name in enumerate(names)
        }

    @property
    def unlabelled(self) -> list[Task]:
        return [Task(t.name, t.class_names, t.head, t.adapt) for t in self.tasks]


def make_world(seed: int = 0, samples: int = 40, codec: str = "fp32") -> World:
    """Builds the world; labels are what each task's own model says, with every fifth one wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Encoder().eval()
    base = {k: v.half().float() for k, v in backbone.state_dict().items()}
    models = []
    for _ in CLASSES:
        noise = {k: torch.randn(v.shape, generator=generator) for k, v in base.items()}
        models.append(
            {k: v if k == "gain" else (v + 0.2 * noise[k]).half().float() for k, v in base.items()}
        )
    tasks = []
    for (name, classes), state in zip(CLASSES.items(), models, strict=True):
        weight = torch.randn(classes, 16, generator=generator)
        head = Head(weight / weight.norm(dim=1, keepdim=True) * 12, normalize=True)
        images = np.random.default_rng(seed).integers(0, 256, (2 * samples, 8, 8, 3), np.uint8)
        labels = _labels(state, head, images[samples:])
        tasks.append(
            Task(name, [f"{name}{c}" for c in range(classes)], head, images[:samples],
                 (images[samples:], labels))
        )  # fmt: skip
    pool = Pool.from_checkpoints(
        base, models, tasks, backbone=backbone, preprocess=PREPROCESS, codec=codec
    )
    return World(backbone, base, models, tasks, pool)


def pixels(images: np.ndarray) -> Tensor:
    """Returns images as the encoder takes them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)


def _labels(state: dict[str, Tensor], head: Head, images: np.ndarray) -> Tensor:
    encoder = Encoder().eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        labels = head(encoder(pixels(images))).argmax(1)
    labels[::5] = (labels[::5] + 1) % head.classes
    return labels
