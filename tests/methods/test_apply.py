# SPDX-License-Identifier: Apache-2.0
"""A pool through methods: tensor by tensor, in every codec, to a pool that all else works on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mdft_fast import CoefficientCard, MdftError, MetaModel, Pool, TaskVectors, evaluate
from mdft_fast.arena import CODECS, Codec
from mdft_fast.methods import Lines, Merge, Site, Ties, Transform, apply
from tests.methods.made_pools import SHAPES, draw, make_pool, tensors
from tests.world import World


@dataclasses.dataclass(frozen=True)
class Mean(Merge):
    """Takes the mean of the vectors."""

    name = "mean"
    source = "a test"

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        return deltas.mean(0)


@dataclasses.dataclass(frozen=True)
class Bent(Transform):
    """Does what a test says."""

    make: Any = None
    name = "bent"
    source = "a test"

    def transform(self, deltas: Tensor, site: Site) -> Tensor:
        made: Tensor = self.make(deltas)
        return made


@pytest.mark.parametrize("codec", CODECS)
def test_the_result_is_what_encoding_all_at_once_gives(codec: Codec) -> None:
    pool = make_pool(draw(3), codec)
    wanted = make_pool({name: t * 0.7 for name, t in tensors(pool).items()}, codec)
    made = apply(pool, [Lines(alpha=0.7, beta=0.0)])
    assert torch.equal(made.vectors.codes, wanted.vectors.codes)
    if made.vectors.scales is not None and wanted.vectors.scales is not None:
        assert torch.equal(made.vectors.scales, wanted.vectors.scales)
    assert (made.checksum, made.errors) == (wanted.checksum, wanted.errors)
    assert made.codec == codec


@pytest.mark.parametrize("codec", CODECS)
def test_another_codec_is_encoded_once(codec: Codec) -> None:
    pool = make_pool(draw(2))
    methods = [Ties(density=0.4), Lines()]
    assert apply(pool, methods, codec=codec).checksum == apply(pool, methods).encode(codec).checksum
    assert apply(pool, [], codec=codec).checksum == pool.encode(codec).checksum


@pytest.mark.parametrize("codec", CODECS)
def test_what_methods_leave_as_it_is_keeps_its_bits(codec: Codec) -> None:
    deltas = draw(3)
    # Groups of many scales: each must come out of its decoded elements as it went in.
    sizes = torch.randn(3, 2000, 1, generator=torch.Generator().manual_seed(1)).mul(2).exp()
    wide = draw(3, shapes={"w": (2000, 128)})["w"] * sizes
    pool = make_pool({**deltas, "blocks.3.wide": wide}, codec)
    same = apply(pool, [Lines(alpha=1.0, beta=0.0)])
    assert same.checksum == pool.checksum
    one = apply(pool, [Bent(lambda deltas: torch.stack([deltas[0], 2 * deltas[1], deltas[2]]))])
    assert torch.equal(one.vectors.codes[::2], pool.vectors.codes[::2])
    assert not torch.equal(one.vectors.decode()[1], pool.vectors.decode()[1])


def test_no_methods_are_no_change() -> None:
    pool = make_pool(draw(2))
    assert apply(pool, []) is pool


@pytest.mark.parametrize("codec", CODECS)
def test_mapped_and_in_memory_twice_and_the_given_pool(
    codec: Codec, world: World, tmp_path: Path
) -> None:
    pool = world.pool.encode(codec)
    pool.save(tmp_path / "pool")
    mapped = Pool.open(tmp_path / "pool")
    methods = [Lines(), Ties()]
    first, again, of_mapped = apply(pool, methods), apply(pool, methods), apply(mapped, methods)
    assert first.checksum == again.checksum == of_mapped.checksum
    assert first.checksum != pool.checksum
    Pool.open(tmp_path / "pool", verify=True)  # nothing was written to the files
    assert apply(pool, [Lines()]).notes[: len(pool.notes)] == pool.notes


def test_a_tensor_is_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, decode = make_pool(draw(3)), TaskVectors.decode
    sizes = []

    def watched(self: TaskVectors, first: int = 0, last: int | None = None) -> Tensor:
        made = decode(self, first, last)
        sizes.append(made.shape[1])
        return made

    monkeypatch.setattr(TaskVectors, "decode", watched)
    apply(pool, [Ties(), Lines(), Mean()])
    assert max(sizes) == max(slot.tiles for slot in pool.layout.slots) * 1024 < pool.N


def test_methods_act_in_their_order() -> None:
    pool = make_pool(draw(3))
    one, other = apply(pool, [Ties(), Lines(0.25)]), apply(pool, [Lines(0.25), Ties()])
    assert one.checksum != other.checksum  # the thresholds are those of what came before
    assert other.checksum == apply(apply(pool, [Lines(0.25)]), [Ties()]).checksum
    assert other.methods == ("lines(alpha=0.25, beta=0.5)", "ties(density=0.2)")
    assert "went through lines(alpha=0.25, beta=0.5), ties(density=0.2)" in other.notes[-1]
    assert "before lines" not in " ".join(other.notes)
    rounded = apply(pool.encode("int8"), [Ties()])
    assert "rounded to codec 'int8' before ties(density=0.2)" in rounded.notes[-1]


# A merge: K vectors in, one out.


@pytest.mark.parametrize("codec", CODECS)
def test_a_merge_makes_one_vector(codec: Codec) -> None:
    pool = make_pool(draw(3), codec)
    merged = apply(pool, [Mean()])
    wanted = make_pool({name: t.mean(0)[None] for name, t in tensors(pool).items()}, codec)
    assert torch.equal(merged.vectors.codes, wanted.vectors.codes)
    assert (merged.K, merged.vector_names, merged.names) == (1, ("mean",), pool.names)
    scaled = apply(pool, [Lines(), Mean(), Lines(2.0, 0.0)])
    assert (scaled.K, scaled.vector_names) == (1, ("mean",))
    assert "one vector is left, 'mean', and no task's own model" in merged.notes[0]


@pytest.mark.parametrize("codec", CODECS)
def test_a_merge_of_one_model_is_that_model(codec: Codec) -> None:
    pool = make_pool(draw(1), codec)
    assert apply(pool, [Mean()]).checksum == pool.checksum


def test_a_merged_pool_is_a_model(world: World, tmp_path: Path) -> None:
    merged = apply(world.pool, [Mean()])
    meta = MetaModel(world.backbone, merged, start=1.0)
    assert meta.coefficients.shape == (1, len(merged.column_names))
    for name, weight in zip(merged.column_names, meta.weights(), strict=True):
        wanted = sum(model[name].double() for model in world.models) / 3
        assert torch.allclose(weight.detach().double(), wanted, rtol=0, atol=1e-6)
    assert set(evaluate(meta, world.tasks).accuracy) == set(world.pool.names)
    message = r"task 'letters': must have a vector of its own, got \['mean'\]"
    with pytest.raises(MdftError, match=message):
        meta.individual("letters")
    with pytest.raises(MdftError, match=r"task: must be one of .*got 'mean'"):
        meta(torch.zeros(1, 3, 8, 8), "mean")
    card = CoefficientCard.of(meta)
    card.save(tmp_path / "card.json")
    again = CoefficientCard.load(tmp_path / "card.json").meta_model(merged, world.backbone)
    assert torch.equal(again.coefficients, meta.coefficients)


def test_a_merged_pool_is_saved_and_opened(world: World, tmp_path: Path) -> None:
    merged = apply(world.pool, [Lines(), Mean()])
    merged.save(tmp_path / "pool")
    again = Pool.open(tmp_path / "pool", verify=True)
    assert torch.equal(again.vectors.codes, merged.vectors.codes)
    assert (again.vector_names, again.methods) == (("mean",), merged.methods)
    assert again.describe() == merged.describe()
    assert "pool of 3 tasks, merged by mean" in again.describe()
    assert "tasks, before lines(alpha=0.5, beta=0.5), mean()\n" in again.describe()


def test_a_plain_pools_file_names_no_methods(world: World, tmp_path: Path) -> None:
    world.pool.save(tmp_path / "pool")
    assert not {"methods", "vectors"} & json.loads((tmp_path / "pool/pool.json").read_text()).keys()


def test_a_card_is_of_one_pool(world: World) -> None:
    changed = apply(world.pool, [Ties()])
    card = CoefficientCard.of(MetaModel(world.backbone, changed))
    with pytest.raises(MdftError, match="pool_checksum must be the given pool's"):
        card.meta_model(world.pool, world.backbone)


# What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t[:1], r"bent: must make \[3, 3, 5\] of tensor 'stem.weight', got \[1, 3, 5\]"),
        (lambda t: t * torch.inf, "task 'task0': tensor 'stem.weight' .* must be finite, got inf"),
    ],
)
def test_what_a_method_makes_must_be_a_tensor_like_the_given(make: Any, message: str) -> None:
    with pytest.raises(MdftError, match=message):
        apply(make_pool(draw(3)), [Bent(make)])


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    deltas = draw(3)
    deltas["blocks.1.weight"][1, 2, 3] = bad
    message = f"task 'task1': tensor 'blocks.1.weight' .* must be finite, got {abs(bad):g}"
    with pytest.raises(MdftError, match=message):
        apply(make_pool(deltas), [Ties()])


def test_what_a_codec_cannot_hold_is_refused_in_its_words() -> None:
    message = r"merge 'mean': tensor 'gain' .* beyond 65504, the largest of codec 'fp16'"
    with pytest.raises(MdftError, match=message):
        apply(make_pool({"gain": torch.tensor([1e5, 1e5])}), [Mean()], codec="fp16")


def test_what_a_pool_cannot_bring_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Curious(Mean):
        needs = ("inputs",)

    with pytest.raises(MdftError, match="mean: needs unlabelled inputs, and a pool has none"):
        apply(make_pool(draw(2)), [Curious()])


def test_depth_needs_blocks() -> None:
    flat = {name: shape for name, shape in SHAPES.items() if "blocks" not in name}
    with pytest.raises(MdftError, match="lines: needs a model with numbered blocks, got none"):
        apply(make_pool(draw(2, shapes=flat)), [Lines()])
