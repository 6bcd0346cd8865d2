# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mdft_fast.errors import MdftError
from mdft_fast.heads import cached_head, file_digest
from mdft_fast.pool import Head
from tests.pool.conftest import flip

WHAT = {"kind": "test", "classes": ["Ä", "b"]}
SCALE = 100.00000762939453


class Maker:
    """Counts how often a head is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Head:
        self.made += 1
        weight = torch.arange(6.0).reshape(2, 3) / 7
        return Head(weight, torch.tensor([0.1, -0.2]), normalize=True, scale=SCALE)


def same(a: Head, b: Head) -> bool:
    assert a.bias is not None
    assert b.bias is not None
    equal = torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)
    return equal and (a.normalize, a.scale) == (b.normalize, b.scale)


def test_a_head_is_made_once(cache: Path) -> None:
    make = Maker()
    heads = [cached_head(WHAT, make) for _ in range(3)]
    assert make.made == 1
    assert all(same(head, make()) for head in heads)
    assert len(list(cache.iterdir())) == 1  # no temporary file is left


def test_other_ingredients_are_another_head(cache: Path) -> None:
    make = Maker()
    for change in ({}, {"kind": "x"}, {"classes": ["b", "Ä"]}, {"classes": ["Ä"]}, {"more": 1}):
        cached_head({**WHAT, **change}, make)
    assert make.made == 5
    assert len(list(cache.iterdir())) == 5


def _double(number: float) -> bytes:
    return struct.pack("<d", number)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-3]),
        lambda file: flip(file, -1),
        lambda file: flip(file, 20),
        lambda file: file.write_bytes(file.read_bytes().replace(_double(SCALE), _double(200))),
        lambda file: file.write_bytes(file.read_bytes().replace(b"sha256", b"sha257")),
    ],
    ids=["empty", "cut", "data", "header", "scale", "key"],
)
def test_a_damaged_file_is_made_again(cache: Path, damage: Callable[[Path], None]) -> None:
    make = Maker()
    cached_head(WHAT, make)
    (file,) = cache.iterdir()
    damage(file)
    assert same(cached_head(WHAT, make), make())
    assert make.made == 3  # once, once more, once to compare
    assert same(cached_head(WHAT, make), make())
    assert make.made == 4  # the file is whole again


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MDFT_CACHE", str(tmp_path / "file"))
    make = Maker()
    assert same(cached_head(WHAT, make), cached_head(WHAT, make))
    assert make.made == 2


def test_what_fails_leaves_nothing(cache: Path) -> None:
    def fail() -> Head:
        raise MdftError("no")

    with pytest.raises(MdftError, match="no"):
        cached_head(WHAT, fail)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_files_digest_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(file) == known
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))
    assert file_digest(file) != known
    with pytest.raises(MdftError, match="no such file"):
        file_digest(tmp_path / "b")
