# SPDX-License-Identifier: Apache-2.0
"""Pools made of numbers, and the formulas of methods in plain float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mdft_fast import Pool, TaskVectors
from mdft_fast.arena import TILE, Layout, digest, rows_of
from mdft_fast.methods import Merge, Site
from mdft_fast.options import Weight, check
from mdft_fast.pool import TaskInfo

SHAPES = {  # an odd size, a scalar, no element at all, more than a tile
    "stem.weight": (3, 5),
    "gain": (),
    "blocks.0.weight": (7, 200),
    "blocks.0.empty": (0, 4),
    "blocks.1.weight": (40, 30),
    "blocks.2.bias": (9,),
    "out.weight": (2, 3, 4),
}


def backbone() -> nn.Module:
    """Returns a module without values whose linear layers hold two weights of ``SHAPES``."""
    with torch.device("meta"):
        blocks = nn.ModuleList([nn.Linear(200, 7), nn.Linear(30, 40)])
    return nn.ModuleDict({"blocks": blocks})


MATRICES = ("blocks.0.weight", "blocks.1.weight")  # its linear layers'


def whole(deltas: Mapping[str, Tensor]) -> Tensor:
    """Returns all tensors' elements as one vector a task, float64 ``[K, P]``."""
    K = len(next(iter(deltas.values())))
    return torch.cat([t.reshape(K, -1) for t in deltas.values() if t.numel()], 1).double()


def parts(flat: Tensor, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what :func:`whole` joined, by tensor name: ``flat`` is ``[K, P]``."""
    split = flat.split([tensor[0].numel() for tensor in deltas.values()], 1)
    return {
        name: part.reshape(len(flat), *tensor.shape[1:])
        for (name, tensor), part in zip(deltas.items(), split, strict=True)
    }


@dataclasses.dataclass(frozen=True)
class Mean(Merge):
    """The mean.

    Attributes:
        scale: what it is multiplied by.
    """

    scale: Weight = 1.0

    name = "mean"
    source = "a test"

    def __post_init__(self) -> None:
        check(self, self.name)

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        return self.scale * deltas.mean(0)


def make_pool(deltas: Mapping[str, Tensor], codec: str = "fp32") -> Pool:
    """Returns a pool of task vectors ``[K, *shape]`` by tensor name, over a random base."""
    layout = Layout.of({name: tensor.shape[1:] for name, tensor in deltas.items()})
    K = len(next(iter(deltas.values())))
    vectors = TaskVectors(torch.zeros(K, layout.elements))
    for k in range(K):
        for view, tensor in zip(layout.views(vectors.codes[k]), deltas.values(), strict=True):
            view.copy_(tensor[k])
    base = torch.randn(layout.elements, generator=torch.Generator().manual_seed(9))
    pool = Pool(
        layout=layout,
        base=base,
        vectors=vectors,
        tasks=tuple(TaskInfo(f"task{k}", ("a", "b"), 0.0) for k in range(K)),
        heads={},
        buffers={},
        left_out={},
        dtypes=dict.fromkeys(layout.columns, "float32"),
        backbone_spec={},
        preprocess={"size": (2, 2), "mean": (0.5,) * 3, "std": (0.5,) * 3},
        checksum="",
    )
    digests = [digest(row.codes) for row in rows_of(vectors)]
    return pool.with_vectors(vectors, digests).encode(codec)


def draw(
    K: int, seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, Tensor]:
    """Returns random task vectors by tensor name, float32 ``[K, *shape]``."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(K, *shape, generator=generator) for name, shape in shapes.items()}


def tensors(pool: Pool) -> dict[str, Tensor]:
    """Returns a pool's vectors by tensor name, float32 ``[K, *shape]``."""
    flat = pool.vectors.decode()
    return {
        slot.name: flat[:, slot.tile * TILE :][:, : slot.numel].reshape(pool.K, *slot.shape)
        for slot in pool.layout.slots
    }


def ties(deltas: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """TIES by its definition: everything at once, sorted, in float64."""
    flat = whole(deltas)
    kept = max(1, int(density * flat.shape[1]))
    out = torch.zeros_like(flat)
    for k in range(len(flat)):
        threshold = flat[k].abs().sort(descending=True).values[kept - 1]
        out[k] = torch.where(flat[k].abs() >= threshold, flat[k], 0.0)
    sign = torch.where(out.sum(0) >= 0, 1.0, -1.0)
    out = torch.where(out.sign() == sign, out, 0.0)
    return parts(out, deltas)
