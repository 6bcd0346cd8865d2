# SPDX-License-Identifier: Apache-2.0
"""The user's cache: what it holds, its bound, and `mdft cache`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mdft_fast import MdftError
from mdft_fast.cache import bound_cache, cache_entries, cache_limit, remove
from mdft_fast.checkpoints import cached_tensors, tensor_cache
from tests.app.conftest import call


def keep(number: int, kind: str = "answers") -> None:
    """Puts an entry of some 4 kB into the cache, used when the number says."""
    before = {entry.path for entry in cache_entries()}
    cached_tensors(kind, {"number": number}, lambda: {"x": torch.full((1000,), float(number))})
    for entry in cache_entries():
        if entry.path not in before:
            os.utime(entry.path, (number, number))


def test_what_was_used_longest_ago_goes(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (3, 1, 2):
        keep(number)
    (own_cache / "demo-v1").mkdir()
    (own_cache / "demo-v1" / "base").write_bytes(bytes(10_000))
    order = [entry.used for entry in cache_entries()]
    assert order == [1, 2, 3]
    each = cache_entries()[0].bytes
    monkeypatch.setenv("MDFT_CACHE_GB", str(2 * each / 1e9))
    bound_cache()
    assert [entry.used for entry in cache_entries()] == [2, 3]
    cached_tensors("answers", {"number": 2}, lambda: pytest.fail("it is there"))
    monkeypatch.setenv("MDFT_CACHE_GB", "0")
    bound_cache()
    (left,) = cache_entries()  # what was used last stays, whatever the bound
    assert left.used > 3
    assert (own_cache / "demo-v1" / "base").exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_bound_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDFT_CACHE_GB", text)
    with pytest.raises(
        MdftError, match=f"MDFT_CACHE_GB: must be gigabytes, 0 or more, got '{text}'"
    ):
        cache_limit()


def test_a_cache_that_cannot_be_written_costs_time_alone(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: File too large (os error 27)")

    monkeypatch.setattr(tensor_cache, "save_file", full)
    made = cached_tensors("answers", {}, lambda: {"x": torch.ones(2)})
    assert made["x"].tolist() == [1, 1]
    assert [path.name for path in (own_cache / "answers").iterdir()] == []
    monkeypatch.delenv("MDFT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: exec("raise RuntimeError('no home')"))
    assert cached_tensors("answers", {}, lambda: {"x": torch.ones(2)}).keys() == {"x"}


def test_what_cannot_be_removed_is_not_counted_as_gone(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(1)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    (entry,) = cache_entries()
    assert not remove(entry)
    assert "removed 0 entries" in call("cache", "--empty", "all").output


def test_the_command_lists_and_empties(own_cache: Path) -> None:
    assert "0 MB of at most 50 GB" in call("cache").output.replace("0.0", "0")
    keep(1)
    keep(2, "heads")
    lines = {
        words[0]: words for words in map(str.split, call("cache").output.splitlines()) if words
    }
    assert lines["answers"][-4] == lines["heads"][-4] == "1"
    assert "removed 1 entries" in call("cache", "--empty", "heads").output
    assert [entry.kind for entry in cache_entries()] == ["answers"]
    assert "did you mean 'answers'" in call("cache", "--empty", "answer", code=1).output
    call("cache", "--empty", "all")
    assert cache_entries() == []
