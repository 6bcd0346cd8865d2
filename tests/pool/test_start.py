# SPDX-License-Identifier: Apache-2.0
"""A pool with a start: a merge as vector 0, before the tasks' own vectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mdft_fast import MdftError, Pool, TaskVectors
from mdft_fast.arena import CODECS, digest, encode, rows_of
from mdft_fast.methods import Merge, Site, Ties, apply
from tests.pool.conftest import Parts, edited, tiny_parts


@dataclasses.dataclass(frozen=True)
class Mean(Merge):
    """The mean."""

    name = "mean"
    source = "a test"

    def merge(self, deltas: Tensor, site: Site) -> Tensor:
        return deltas.mean(0)


@pytest.fixture
def parts() -> Parts:
    return tiny_parts()


def started(pool: Pool) -> Pool:
    return pool.with_start(apply(pool, [Mean()]))


@pytest.mark.parametrize("codec", CODECS)
def test_the_merge_is_vector_0_and_the_others_keep_their_codes(codec: str, parts: Parts) -> None:
    plain = parts.build().encode(codec)
    before, pool = plain.checksum, started(plain)
    assert pool.vector_names == ("mean", *plain.names)
    assert (pool.start, plain.start, pool.K, pool.codec) == ("mean", None, 4, codec)
    for ours, theirs in zip(pool.vectors.tensors, plain.vectors.tensors, strict=True):
        assert torch.equal(ours[1:], theirs)
    merged = TaskVectors(plain.vectors.decode().mean(0, keepdim=True))
    wanted, _ = encode(merged, plain.codec, pool.layout, ["the mean"])
    assert all(map(torch.equal, next(rows_of(pool.vectors)).tensors, wanted.tensors))
    assert pool.checksum != before == plain.checksum
    assert pool.methods == ("start by mean()",)
    assert "'mean', made by mean(), is a merge of the task vectors" in pool.notes[-1]
    assert set(pool.errors) == (set() if codec == "fp32" else set(pool.layout.columns))


@pytest.mark.parametrize("codec", ["fp32", "int4"])
def test_is_saved_opened_and_described(codec: str, parts: Parts, tmp_path: Path) -> None:
    pool = started(parts.build().encode(codec))
    pool.save(tmp_path / "pool")
    opened = Pool.open(tmp_path / "pool", verify=True)
    assert (opened.start, opened.checksum, opened.notes) == ("mean", pool.checksum, pool.notes)
    assert opened.errors == pool.errors
    described = opened.describe()
    assert "pool of 3 tasks with a start" in described
    assert "start     vector 0, 'mean': start by mean()" in described
    assert "before start" not in described, "the tasks' vectors are as packed"
    opened.save(tmp_path / "small", "int4")
    small = Pool.open(tmp_path / "small", verify=True)
    assert (small.start, small.checksum) == ("mean", opened.encode("int4").checksum)


def test_what_a_transform_did_is_told_apart_from_the_start(parts: Parts) -> None:
    plain = apply(parts.build(), [Ties(density=0.5)])
    pool = started(plain)
    assert pool.methods == ("ties(density=0.5)", "start by mean()")
    assert "tasks, before ties(density=0.5)\n" in pool.describe()


def _other_base(pool: Pool) -> Pool:
    return dataclasses.replace(apply(pool, [Mean()]), base=pool.base + 1)


def _other_buffers(pool: Pool) -> Pool:
    merged = apply(pool, [Mean()])
    return dataclasses.replace(merged, buffers={**merged.buffers, "shift": torch.ones(4)})


def _named_like_a_task(pool: Pool) -> Pool:
    return dataclasses.replace(apply(pool, [Mean()]), vector_names=("task1",))


def _other_tensors(pool: Pool) -> Pool:
    merged = apply(pool, [Mean()])
    slots = (merged.layout.slots[0]._replace(name="strange"), *merged.layout.slots[1:])
    return dataclasses.replace(merged, layout=dataclasses.replace(merged.layout, slots=slots))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda pool: pool, r"start: must be one vector, a merge's, got \['task0', 'task1'"),
        (_named_like_a_task, "start: must be a merge's vector with a name of its own, got 'task1'"),
        (_other_tensors, r"start: must have the pool's tensors, got others, first \('strange'"),
        (_other_base, "start: must be a merge over the pool's base, got one over another"),
        (_other_buffers, "start: must be a merge over the pool's buffers, got one over another"),
    ],
)
def test_what_is_no_start_is_refused(
    make: Callable[[Pool], Pool], words: str, parts: Parts
) -> None:
    pool = parts.build()
    with pytest.raises(MdftError, match=words):
        pool.with_start(make(pool))


def test_a_pool_takes_one_start_and_no_method_after_it(parts: Parts) -> None:
    plain = parts.build()
    merged, pool = apply(plain, [Mean()]), started(plain)
    with pytest.raises(MdftError, match="pool: must have no start yet, got 'mean'"):
        pool.with_start(merged)
    with pytest.raises(MdftError, match=r"must hold its tasks' vectors .*, got \['mean'\]"):
        merged.with_start(merged)
    with pytest.raises(MdftError, match="ties: must act before a start is made of the vectors"):
        apply(pool, [Ties()])


def test_a_pool_of_one_task_takes_one_too(parts: Parts) -> None:
    plain = tiny_parts(K=1).build()
    pool = started(plain)
    assert (pool.start, apply(plain, [Mean()]).start) == ("mean", None)
    assert torch.equal(pool.vectors.codes[0], plain.vectors.codes[0])


def test_vectors_of_nobody_are_refused(parts: Parts, tmp_path: Path) -> None:
    started(parts.build()).save(tmp_path / "pool")
    edited(lambda content: content["vectors"].reverse())(tmp_path / "pool")
    with pytest.raises(MdftError, match=r"key 'vectors' must be a merge's name, \['task0', 'tas"):
        Pool.open(tmp_path / "pool")


def test_a_pool_without_a_start_is_written_as_before(parts: Parts, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool")
    content = json.loads((tmp_path / "pool" / "pool.json").read_text())
    assert not {"vectors", "methods"} & content.keys()
    assert digest(Pool.open(tmp_path / "pool").vectors.codes) == digest(parts.build().vectors.codes)


def test_what_rounding_cost_the_start_counts(parts: Parts) -> None:
    class Loud(Mean):
        def merge(self, deltas: Tensor, site: Site) -> Tensor:
            return 8 * deltas.mean(0)

    plain = parts.build().encode("int8")
    pool = plain.with_start(apply(plain, [Loud()]))
    name = "wide.weight"
    assert pool.errors[name].absolute > plain.errors[name].absolute
