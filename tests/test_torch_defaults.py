# SPDX-License-Identifier: Apache-2.0
"""torch's default device and dtype are the caller's: the library names its own, everywhere.

The meta device stands in for a GPU: a tensor that lands there by default has no numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mdft_fast
from mdft_fast import ConstructConfig, Layout, MetaModel, Pool, SpecializeConfig
from mdft_fast.evaluation import evaluate
from mdft_fast.methods import METHODS, apply
from tests.world import PREPROCESS, World, make_world


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[on_meta, in_float64])
def changed(request: pytest.FixtureRequest) -> Any:
    """Gives a context manager that changes a default."""
    return request.param()


def everything(world: World, mode: str) -> list[Tensor]:
    """From checkpoints to accuracy; returns numbers of each step."""
    pool = Pool.from_checkpoints(
        world.base, world.models, world.tasks, backbone=world.backbone, preprocess=PREPROCESS,
        codec="int8",
    )  # fmt: skip
    meta = MetaModel(world.backbone, pool, mode=mode, granularity="row")  # type: ignore[arg-type]
    config = {"steps": 2, "batch": 4, "holdout": 0.2}
    constructed = mdft_fast.construct(meta, world.unlabelled, ConstructConfig(**config))
    accuracy = evaluate(meta, world.tasks).accuracy
    one = world.unlabelled[0]
    specialized = mdft_fast.specialize(meta, one, SpecializeConfig(**config))
    with meta.using(meta.individual(one.name)):
        weights = [weight.detach().clone() for weight in meta.weights()]
    exported = list(meta.materialize().state_dict().values())
    return [
        pool.vectors.codes, constructed.path, specialized.path, *weights, *exported,
        torch.tensor(list(accuracy.values()), dtype=torch.float64, device="cpu"),
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["resident", "layerwise", "streamed"])
def test_the_same_bits_whatever_the_defaults(mode: str, changed: Any) -> None:
    world = make_world()
    wanted = everything(world, mode)
    with changed:
        got = everything(world, mode)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_operators(changed: Any) -> None:
    base, deltas, coefficients = torch.randn(3000), torch.randn(2, 3000), torch.randn(2)
    logits, teacher = [torch.randn(4, 3)], [torch.randn(4, 3)]

    def run() -> list[Tensor]:
        lam, z = coefficients.clone().requires_grad_(), logits[0].clone().requires_grad_()
        mdft_fast.merge(base, deltas, lam).square().sum().backward()
        mdft_fast.debiased_entropy_loss([z], teacher).loss.sum().backward()
        return [lam.grad, z.grad, mdft_fast.merge_dots(base, deltas)]  # type: ignore[list-item]

    wanted = run()
    Layout.single.cache_clear()
    with changed:
        got = run()
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


def test_every_method(changed: Any) -> None:
    world = make_world()
    methods = [method() for name, method in METHODS.items() if name != "mask"]  # it needs a file

    def run() -> list[Tensor]:
        return [
            apply(
                world.pool, [method], backbone=world.backbone, tasks=world.unlabelled
            ).vectors.codes.float()
            for method in methods
        ]

    wanted = run()
    with changed:
        got = run()
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))
