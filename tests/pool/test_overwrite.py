# SPDX-License-Identifier: Apache-2.0
"""``overwrite=True`` replaces a packed pool, and never anything else that lies there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mdft_fast.checkpoints import safetensors_writer as container
from mdft_fast.errors import MdftError
from mdft_fast.pool import Pool
from tests.conftest import contents

WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "save": lambda parts, path: parts.build().save(path, overwrite=True),
    "pack": lambda parts, path: parts.pack(path, overwrite=True),
}


def test_an_existing_folder_is_kept_unless_told(parts: Any, tmp_path: Path) -> None:
    target = tmp_path / "pool"
    pool = parts.build()
    pool.save(target)
    before = (target / "pool.json").read_bytes()
    with pytest.raises(MdftError, match=r"pool: already exists; pass overwrite=True"):
        pool.save(target, codec="bf16")
    assert (target / "pool.json").read_bytes() == before
    opened = Pool.open(target)
    opened.save(target, codec="bf16", overwrite=True)  # out of the very files it replaces
    assert Pool.open(target, verify=True).codec == "bf16"
    assert torch.equal(opened.base, pool.base)
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


REPLACED_NOT = {
    "folder": r"mine: is not replaced, .*got no tau.safetensors",
    "file": r"mine: must be a folder to be replaced, got a file",
    "link": r"mine: must be a folder to be replaced, got a link",
}


@pytest.mark.parametrize("kind", REPLACED_NOT)
def test_what_is_no_pool_is_never_replaced(kind: str, parts: Any, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("words")
    elif kind == "file":
        target.write_text("words")
    else:
        parts.build().save(tmp_path / "real")
        target.symlink_to(tmp_path / "real")
    listing = sorted(tmp_path.rglob("*"))
    with pytest.raises(MdftError, match=REPLACED_NOT[kind]):
        parts.build().save(target, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == listing


def _stray(name: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("words")

    return put


def _stray_link(folder: Path) -> None:
    (folder / "tau.safetensors").rename(folder.parent / "tau.safetensors")
    (folder / "tau.safetensors").symlink_to(folder.parent / "tau.safetensors")


STRAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "thesis.txt": (_stray("thesis.txt"), r"got 'thesis.txt'"),
    "a folder": (_stray("models/a.safetensors"), r"got 'models'"),
    "an empty folder": (lambda f: (f / "later").mkdir(), r"got 'later'"),
    "among the heads": (_stray("heads/notes.txt"), r"got 'heads/notes.txt'"),
    "a head of no task": (_stray("heads/other.safetensors"), r"got 'heads/other.safetensors'"),
    "a link": (_stray_link, r"got 'tau.safetensors'"),
    "another version": (
        lambda f: (f / "pool.json").write_text('{"schema": 2}'),
        r"got an error: .*schema version must be 1, got 2",
    ),
    "no manifest": (lambda f: (f / "pool.json").unlink(), r"pool.json is missing"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("case", STRAYS)
def test_a_pool_that_holds_more_is_never_replaced(
    case: str, writer: str, parts: Any, tmp_path: Path
) -> None:
    put, message = STRAYS[case]
    target = tmp_path / "mine"
    parts.build().save(target)
    put(target)
    before = contents(tmp_path)
    with pytest.raises(MdftError, match=rf"mine: is not replaced, .*{message}"):
        WRITERS[writer](parts, target)
    assert contents(tmp_path) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_of_checkpoints_is_never_replaced(writer: str, files: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"  # as ../shared/pool and older demos: with a pool.json of other keys
    (folder / "pool.json").write_text('{"architecture": {}, "tasks": []}')
    before = contents(tmp_path)
    with pytest.raises(MdftError, match=r"in: is not replaced, .*got no tau.safetensors"):
        WRITERS[writer](files, folder)
    assert contents(tmp_path) == before
    with pytest.raises(
        MdftError, match=r"in/pool.json: another program's notes, not a packed pool"
    ):
        Pool.open(folder)


def test_something_that_comes_while_writing_is_kept(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "pool"
    pool = parts.build()
    pool.save(target)
    real = container.write_tensors

    def slow(path: Path, entries: Any) -> Any:
        _stray("thesis.txt")(target)
        return real(path, entries)

    monkeypatch.setattr("mdft_fast.pool.storage.write_tensors", slow)
    with pytest.raises(MdftError, match=r"got 'thesis.txt'"):
        pool.save(target, overwrite=True)
    assert (target / "thesis.txt").read_text() == "words"
    Pool.open(target, verify=True)


def test_a_damaged_pool_is_replaced(parts: Any, tmp_path: Path) -> None:
    pool = parts.build()
    pool.save(tmp_path / "pool")
    (tmp_path / "pool/heads/task1.safetensors").unlink()
    pool.save(tmp_path / "pool", overwrite=True)
    Pool.open(tmp_path / "pool", verify=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fails", ["write_text", "os.fsync", "rename"])
def test_a_failed_write_leaves_nothing_and_keeps_the_old(
    fails: str, overwrite: bool, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, target = parts.build(), tmp_path / "pool"
    if overwrite:
        pool.save(target)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    real_rename = Path.rename

    def fail_new(path: Path, to: Path) -> Path:
        return fail() if ".new-" in path.name else real_rename(path, to)  # type: ignore[func-returns-value, return-value]

    if fails == "write_text":
        monkeypatch.setattr("mdft_fast.pool.storage.write_text", fail)
    elif fails == "os.fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr("mdft_fast.files._exchange", lambda *_: False)  # as on a share
        monkeypatch.setattr(Path, "rename", fail_new)
    with pytest.raises(MdftError, match=r"pool: could not be written: .*No space left"):
        pool.encode("fp16").save(target, overwrite=overwrite)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["pool"] if overwrite else [])
    if overwrite:
        assert Pool.open(target, verify=True).codec == "fp32"
