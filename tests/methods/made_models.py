# SPDX-License-Identifier: Apache-2.0
"""A model small enough to write down, with inputs, for methods that look at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdft_fast import Pool
from mdft_fast.methods import InputMerge, apply
from mdft_fast.pool import Head
from tests.methods.made_pools import make_pool, tensors

WIDTH, HIDDEN, POSITIONS, CLASSES = 5, 7, 3, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x + x.mean(1, keepdim=True)
        written: Tensor = self.second(torch.tanh(self.first(mixed)))
        return x + written


class Stack(nn.Module):
    """``[B, POSITIONS, WIDTH] -> [B, WIDTH]``: two blocks; what is read is the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.unread = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


SHAPES = {name: tuple(parameter.shape) for name, parameter in Stack().named_parameters()}


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A task whose samples are the rows of a tensor."""

    name: str
    rows: Tensor

    def load_samples(self, preprocess: Mapping[str, Any]) -> Rows:
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        return self.rows[indices].to(device)

    def digests(self) -> Any:
        return np.zeros((len(self.rows), 16), np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A pool of Stacks, and each task's inputs."""

    pool: Pool
    tasks: list[Rows]

    def apply(self, method: InputMerge, tasks: list[Rows] | None = None) -> Pool:
        return apply(self.pool, [method], backbone=Stack(), tasks=tasks or self.tasks)

    def merged(self, method: InputMerge) -> dict[str, Tensor]:
        return {name: tensor[0] for name, tensor in tensors(self.apply(method)).items()}

    @property
    def base(self) -> dict[str, Tensor]:
        """In float64."""
        views = self.pool.layout.views(self.pool.base.double())
        return dict(zip(SHAPES, views, strict=True))

    @property
    def models(self) -> list[dict[str, Tensor]]:
        """Each task's own weights, float64."""
        deltas = tensors(self.pool)
        return [
            {name: base + deltas[name][k].double() for name, base in self.base.items()}
            for k in range(self.pool.K)
        ]


def make(deltas: dict[str, Tensor], samples: int, seed: int = 0) -> Made:
    """Returns a pool of task vectors by name, with a head and some inputs for each."""
    generator = torch.Generator().manual_seed(seed)
    plain = make_pool(deltas)
    names = plain.vector_names
    heads = {name: Head(torch.randn(CLASSES, WIDTH, generator=generator)) for name in names}
    shape = samples, POSITIONS, WIDTH
    rows = [Rows(name, torch.randn(shape, generator=generator)) for name in names]
    return Made(dataclasses.replace(plain, heads=heads), rows)


# The model in plain numbers, for formulas.


def entered(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x @ weights["stem.weight"].T + weights["stem.bias"]


def reaches(weights: Mapping[str, Tensor], block: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what reaches a block's two layers."""
    mixed = x + x.mean(1, keepdim=True)
    first = weights[f"blocks.{block}.first.weight"], weights[f"blocks.{block}.first.bias"]
    return mixed, torch.tanh(mixed @ first[0].T + first[1])


def behind(weights: Mapping[str, Tensor], block: int, x: Tensor) -> Tensor:
    return x + reaches(weights, block, x)[1] @ weights[f"blocks.{block}.second.weight"].T


def encoded(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    x = entered(weights, x)
    for block in range(2):
        x = behind(weights, block, x)
    return x[:, 0]
