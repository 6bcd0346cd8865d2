# SPDX-License-Identifier: Apache-2.0
"""A batch is what the encoder takes: dicts of tensors learn the λ that tensors do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast import MetaModel, Task, construct, specialize
from mdft_fast.learning import holdout_cross_entropy, loop, teach
from mdft_fast.model import Batch, Samples
from tests.learning.recorded import CONFIGS
from tests.learning.test_graph import Repeat
from tests.world import Encoder, World


class DictEncoder(Encoder):
    """Takes a dict's tensors by keyword, and reads its whole numbers as such."""

    def forward(self, *, pixels: Tensor, row: Tensor) -> Tensor:  # type: ignore[override]
        assert row.dtype == torch.int64
        return super().forward(pixels + 0 * row[:, None, None, None])


@dataclasses.dataclass
class DictSamples:
    inner: Samples

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        pixels: Any = self.inner.batch(indices, device)
        return {"pixels": pixels, "row": indices.to(device)}

    def digests(self) -> Any:
        return self.inner.digests()


@dataclasses.dataclass
class DictTask:
    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    def load_samples(self, preprocess: Mapping[str, Any]) -> Samples:
        return DictSamples(self.task.load_samples(preprocess))


@pytest.mark.parametrize("micro_batch", [None, 7])
@pytest.mark.parametrize("mode", ["resident", "layerwise"])
def test_both_stages(world: World, mode: Any, micro_batch: int | None) -> None:
    tasks = [DictTask(task) for task in world.unlabelled]
    one, two = (
        dataclasses.replace(CONFIGS[name], steps=3, micro_batch=micro_batch)
        for name in ("construct", "specialize")
    )
    paths = []
    for meta, mine in (
        (world.meta(mode=mode), world.unlabelled),
        (MetaModel(DictEncoder(), world.pool, mode=mode), tasks),
    ):
        first = construct(meta, mine, one)
        held_out = holdout_cross_entropy(meta, teach(meta, mine, holdout=0.2, seed=0))
        paths.append((first.path, specialize(meta, mine[1], two).path, held_out))
    assert all(torch.equal(paths[0][stage], paths[1][stage]) for stage in (0, 1))
    assert paths[0][2] == paths[1][2]


def test_a_recorded_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CudaCapture", Repeat)
    monkeypatch.setattr(loop, "check_capturable", lambda meta: None)
    config = dataclasses.replace(CONFIGS["sgd"], steps=3, cuda_graph=True)
    tasks = [DictTask(task) for task in world.unlabelled]
    mine = construct(MetaModel(DictEncoder(), world.pool), tasks, config).path
    assert torch.equal(mine, construct(world.meta(), world.unlabelled, config).path)
