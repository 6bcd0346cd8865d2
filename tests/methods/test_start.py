# SPDX-License-Identifier: Apache-2.0
"""λ from a merge: what MetaModel makes of a start, in every mode, and what a merge may see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mdft_fast import (
    CoefficientCard,
    ConstructConfig,
    MdftError,
    MetaModel,
    Pool,
    SpecializeConfig,
    Start,
    construct,
    specialize,
)
from mdft_fast.learning import teach
from mdft_fast.methods import METHODS, InputMerge, TaskInputs, Ties, Watch, apply
from mdft_fast.model import MODES, TASK_ARITHMETIC, Mode, split
from tests.methods.made_pools import Mean
from tests.world import World, make_world


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loudest(InputMerge):
    """The vector of the task whose inputs are brightest; keeps what it has seen."""

    name = "loudest"
    source = "a test"
    seen = {}  # noqa: RUF012 - what a test asks for

    def merge_model(
        self, pool: Pool, backbone: nn.Module, inputs: Sequence[TaskInputs], watch: Watch
    ) -> Mapping[str, Tensor]:
        means = []
        for one in inputs:
            batches = [batch for batch in one.batches(self.batch) if isinstance(batch, Tensor)]
            self.seen[one.name] = torch.cat(batches)
            means.append(float(self.seen[one.name].mean()))
        row = pool.vectors.decode()[max(range(len(means)), key=means.__getitem__)]
        names = pool.layout.columns
        return dict(zip(names, pool.layout.views(row), strict=True))


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mean", Mean)
    monkeypatch.setitem(METHODS, "loudest", Loudest)
    Loudest.seen.clear()


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def started(world: World) -> Pool:
    return Start("mean", scale=0.5).pool_of(world.pool, world.backbone)


def _images(world: World) -> Tensor:
    samples = world.tasks[0].load_samples(world.pool.preprocess)
    return samples.batch(torch.arange(5), torch.device("cpu"))


@pytest.mark.parametrize("mode", MODES)
def test_lambda_starts_at_the_merge_and_teachers_are_the_plain_models(
    mode: Mode, world: World
) -> None:
    meta = world.meta(start=Start("mean", scale=0.5), mode=mode)
    plain = world.meta(start=0.0)
    assert meta.pool.vector_names == ("mean", *world.pool.names)
    assert world.pool.start is None, "the caller's pool is as it was"
    start = torch.zeros_like(meta.coefficients)
    start[0] = 1.0
    assert torch.equal(meta.coefficients, start)
    exact = {k: torch.stack([s[k].double() for s in world.models]).mean(0) for k in world.base}
    for name, weight in meta.materialize().named_parameters():
        wanted = world.base[name] + 0.5 * (exact[name] - world.base[name])
        assert torch.allclose(weight.double(), wanted, atol=1e-6), name
    images = _images(world)
    for task in world.pool.names:
        with meta.using(meta.individual(task)), plain.using(plain.individual(task)):
            assert torch.equal(meta.encode(images), plain.encode(images))
    with meta.using(meta.on_tasks(TASK_ARITHMETIC)), plain.using(TASK_ARITHMETIC):
        assert torch.equal(meta.encode(images), plain.encode(images))
    gradient = torch.autograd.grad(meta.encode(images).square().sum(), meta.coefficients)[0]
    assert gradient.shape == (4, len(meta.layout.columns))
    assert all(row.any() for row in gradient)


def test_a_saved_pool_streams_and_gives_the_same_bits(world: World, tmp_path: Path) -> None:
    pool = started(world)
    pool.save(tmp_path / "pool")
    opened = Pool.open(tmp_path / "pool")
    streamed = MetaModel(world.backbone, opened, mode="streamed")
    assert streamed.vectors.codes.data_ptr() == opened.vectors.codes.data_ptr(), "mapped, no copy"
    images = _images(world)
    assert torch.equal(streamed.encode(images), MetaModel(world.backbone, pool).encode(images))


def test_the_default_is_the_pools_own_start(world: World) -> None:
    assert (world.meta().coefficients == TASK_ARITHMETIC).all()
    merged = MetaModel(world.backbone, apply(world.pool, [Mean()]))
    assert (merged.coefficients == 1.0).all()
    meta = MetaModel(world.backbone, started(world), granularity="task")
    assert meta.coefficients.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
    numbers = MetaModel(world.backbone, started(world), start=[0.5, 0.1, 0.2, 0.3])
    assert numbers.coefficients[:, 0].tolist() == pytest.approx([0.5, 0.1, 0.2, 0.3])
    with pytest.raises(MdftError, match=r"one number, 4 numbers or \[4, \d+\], got \[3\]"):
        MetaModel(world.backbone, started(world), start=[0.5, 0.1, 0.2])


def test_both_stages_go_by_vectors(world: World) -> None:
    meta = world.meta(start=Start("mean"))
    config = ConstructConfig(steps=2, filter=False)
    result = construct(meta, world.unlabelled, config)
    assert result.tasks == ("mean", *world.pool.names)
    assert result.path.shape == (3, 4, len(meta.layout.columns))
    taught = teach(meta, world.unlabelled, holdout=0.2, seed=0)
    plain = teach(world.meta(), world.unlabelled, holdout=0.2, seed=0)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(taught, plain, strict=True))
    meta.set_coefficients(meta.individual("signs"))
    end = specialize(meta, taught[2], SpecializeConfig(steps=1)).path
    assert torch.equal(end[0], meta.individual("signs"))
    assert end[0][3].eq(1).all(), "row 3 is the third task's, behind the start"
    assert float(end[1].sub(end[0]).abs().max()) < 0.06, "at the optimum there is no way to go"


def test_a_card_is_of_the_pool_with_its_start(world: World, tmp_path: Path) -> None:
    meta = MetaModel(world.backbone, started(world))
    meta.set_coefficients(torch.randn(meta.coefficients.shape, generator=torch.Generator()))
    CoefficientCard.of(meta).save(tmp_path / "card.json")
    card = CoefficientCard.load(tmp_path / "card.json")
    again = card.meta_model(started(world), world.backbone)
    assert torch.equal(again.coefficients, meta.coefficients)
    with pytest.raises(MdftError, match="pool_checksum must be the given pool's"):
        card.meta_model(world.pool, world.backbone)


def test_a_merge_never_sees_what_is_held_out(world: World) -> None:
    start = Start("loudest", tasks=world.unlabelled, samples=10_000)
    assert (start.holdout, start.seed) == (ConstructConfig.holdout, ConstructConfig.seed)
    pool = start.pool_of(world.pool, world.backbone)
    assert pool.methods == (
        "start by loudest(samples=10000, copies=0, seed=0, batch=128) without the held-out samples "
        "(holdout=0.2, seed=0)",
    )
    for task in world.tasks:
        samples = task.load_samples(world.pool.preprocess)
        learn, _ = split(len(samples), 0.2, 0, task.name)
        assert torch.equal(Loudest.seen[task.name], samples.batch(learn))
    other = Start("loudest", tasks=world.unlabelled, samples=10_000, seed=1)
    assert start.made(pool)
    assert not other.made(pool)
    assert not start.made(world.pool)


def test_mistakes_are_named(world: World) -> None:
    with pytest.raises(MdftError, match=r"mean.scael: unknown key; did you mean 'scale'"):
        Start("mean", scael=2)
    with pytest.raises(MdftError, match="ties: must be a merge, K vectors in and 1 out"):
        Start("ties")
    with pytest.raises(MdftError, match=r"got 'maen'; did you mean 'mean'"):
        Start("maen")
    with pytest.raises(MdftError, match=r"fields are for a method by name, got \['scale'\]"):
        Start(Mean(), scale=2)
    with pytest.raises(MdftError, match=r"loudest: needs unlabelled inputs of every task"):
        world.meta(start=Start("loudest"))
    with pytest.raises(MdftError, match="start: the pool must have none yet, got 'mean'"):
        MetaModel(world.backbone, started(world), start=Start("mean"))


def test_the_merge_sees_transformed_vectors(world: World) -> None:
    plain = apply(world.pool, [Ties(density=0.4)])
    pool = Start("mean").pool_of(plain, world.backbone)
    wanted = apply(world.pool, [Ties(density=0.4), Mean()])
    assert torch.equal(pool.vectors.codes[0], wanted.vectors.codes[0])


@pytest.mark.skipif("average" not in METHODS, reason="there is no method average here")
def test_the_average_is_a_start(world: World) -> None:
    meta = world.meta(start=Start("average"))
    plain = world.meta(start=1 / 3)
    images = _images(world)
    assert torch.allclose(meta.encode(images), plain.encode(images), atol=1e-5)
