# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mdft_fast.errors import MdftError
from mdft_fast.pool import Head, Pool, container
from mdft_fast.task_vectors import CODECS


def _same(one: Pool, other: Pool) -> None:
    assert one.layout == other.layout
    assert torch.equal(one.base, other.base)
    assert torch.equal(one.vectors.codes, other.vectors.codes)
    for name in ("codec", "tasks", "left_out", "dtypes", "backbone_spec", "preprocess"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.checksum == other.checksum
    assert one.notes == other.notes
    assert one.describe() == other.describe()
    assert set(one.buffers) == set(other.buffers)
    for name, tensor in one.buffers.items():
        assert tensor.dtype == other.buffers[name].dtype
        assert torch.equal(tensor, other.buffers[name])
    assert list(one.heads) == list(other.heads)
    for name, head in one.heads.items():
        mine = other.heads[name]
        assert (head.normalize, head.scale) == (mine.normalize, mine.scale)
        assert head.weight.dtype == mine.weight.dtype
        assert torch.equal(head.weight, mine.weight)
        assert (head.bias is None) == (mine.bias is None)
        assert head.bias is None or torch.equal(head.bias, mine.bias)


@pytest.mark.parametrize("codec", CODECS)
def test_comes_back_bit_for_bit(codec: str, parts: Any, tmp_path: Path) -> None:
    parts.options |= {"codec": codec, "backbone_spec": {"name": "tiny", "kwargs": {"a": [1]}}}
    parts.tasks[1].head = Head(torch.ones(3, 4).half(), torch.ones(3).bfloat16(), True, 2.5)
    pool = parts.build()
    pool.save(tmp_path / "pool")
    _same(Pool.open(tmp_path / "pool", verify=True), pool)
    _same(parts.pack(tmp_path / "streamed"), pool)
    for name in ("base.safetensors", "tau.safetensors", "pool.json"):
        one, other = tmp_path / "pool" / name, tmp_path / "streamed" / name
        assert one.read_bytes() == other.read_bytes()


def test_files_are_plain_safetensors_on_page_boundaries(parts: Any, tmp_path: Path) -> None:
    pool = parts.build()
    pool.save(tmp_path / "pool")
    facts = json.loads((tmp_path / "pool" / "pool.json").read_text())
    on_disk = {str(p.relative_to(tmp_path / "pool")) for p in tmp_path.rglob("*") if p.is_file()}
    assert on_disk == {*facts["files"], "pool.json"}
    for name, written in facts["files"].items():
        content = (tmp_path / "pool" / name).read_bytes()
        assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with safe_open(tmp_path / "pool" / "tau.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("codes"), pool.vectors.codes)
    opened = Pool.open(tmp_path / "pool")
    assert opened.base.data_ptr() % container.PAGE == 0
    assert all(row.data_ptr() % container.PAGE == 0 for row in opened.vectors.codes)


def test_checksum_follows_content_alone(parts: Any, make_parts: Any) -> None:
    pool = parts.build()
    assert make_parts().build().checksum == pool.checksum
    assert pool.encode("bf16").checksum != pool.checksum
    other = make_parts()
    other.models[2]["gain"] += 1
    assert other.build().checksum != pool.checksum
    other = make_parts()
    for state in (other.base, *other.models):
        state["shift"] = torch.ones(4)
    assert other.build().checksum != pool.checksum


def test_writing_to_an_opened_pool_never_reaches_the_file(parts: Any, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool")
    opened = Pool.open(tmp_path / "pool")
    opened.base.fill_(1)
    opened.vectors.codes.fill_(1)
    Pool.open(tmp_path / "pool", verify=True)


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


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
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
    with pytest.raises(MdftError, match=r"mine: is no folder with a pool.json"):
        parts.build().save(target, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == listing


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
        monkeypatch.setattr("mdft_fast.pool.folder.write_text", fail)
    elif fails == "os.fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail_new)
    with pytest.raises(MdftError, match=r"pool: could not be written: .*No space left"):
        pool.encode("fp16").save(target, overwrite=overwrite)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["pool"] if overwrite else [])
    if overwrite:
        assert Pool.open(target, verify=True).codec == "fp32"


def _json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "pool.json").read_text())
        change(content)
        (folder / "pool.json").write_text(json.dumps(content))

    return damage


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def _swap_heads(folder: Path) -> None:
    one, other = folder / "heads/task0.safetensors", folder / "heads/task1.safetensors"
    other.write_bytes(one.read_bytes())
    _json(
        lambda c: c["files"].update(
            {"heads/task1.safetensors": c["files"]["heads/task0.safetensors"]}
        )
    )(folder)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut tau": (
        _cut("tau.safetensors"),
        r"tau.safetensors: must be \d+ bytes .*got \d+ \(cut short",
    ),
    "cut base": (_cut("base.safetensors"), r"base.safetensors: must be \d+ bytes"),
    "cut head": (_cut("heads/task1.safetensors"), r"heads/task1.safetensors: must be \d+ bytes"),
    "longer": (
        lambda f: (f / "tau.safetensors").open("ab").write(b"x"),
        r"tau.safetensors: must be .*too long",
    ),
    "no tau": (lambda f: (f / "tau.safetensors").unlink(), r"tau.safetensors: missing, although"),
    "no manifest": (lambda f: (f / "pool.json").unlink(), r"not a pool, pool.json is missing"),
    "half a manifest": (
        lambda f: (f / "pool.json").write_text('{"schema": 1,'),
        r"pool.json: not readable as JSON",
    ),
    "a list": (lambda f: (f / "pool.json").write_text("[]"), r"must be a JSON object, got list"),
    "version": (
        _json(lambda c: c.update(schema=99)),
        r"pool.json: schema version must be 1, got 99",
    ),
    "missing key": (_json(lambda c: c.pop("tasks")), r"pool.json: key 'tasks' is missing"),
    "wrong type": (
        _json(lambda c: c["tasks"][1].update(name=7)),
        r"pool.json: 'tasks'\[1\]: key 'name' must be str, got 7",
    ),
    "bool for a number": (
        _json(lambda c: c["tensors"][0].update(tile=False)),
        r"'tensors'\[0\]: key 'tile' must be int, got False",
    ),
    "codec": (_json(lambda c: c.update(codec="int3")), r"key 'codec' must be one of .*got 'int3'"),
    "other codec": (
        _json(lambda c: c.update(codec="bf16")),
        r"tau.safetensors: tensor 'codes' must be .*torch.bfloat16.*got .*torch.float32",
    ),
    "shape": (
        _json(lambda c: c["tensors"][0].update(shape=[5, 1200])),
        r"'tensors'\[1\]: key 'tile' must be 6, got 1",
    ),
    "negative shape": (
        _json(lambda c: c["tensors"][0].update(shape=[-1])),
        r"'tensors'\[0\]: key 'shape' must be a list of sizes, got \[-1\]",
    ),
    "tensor gone": (
        _json(lambda c: c["tensors"].pop()),
        r"tau.safetensors: tensor 'codes' must be \[3, \d+\]",
    ),
    "tensor twice": (
        _json(lambda c: c["tensors"].append(c["tensors"][0])),
        r"key 'tensors' must be one or more tensors of different names",
    ),
    "tile size": (_json(lambda c: c.update(tile_elements=512)), r"'tile_elements' must be 1024"),
    "preprocess": (
        _json(lambda c: c["preprocess"].pop("std")),
        r"pool.json: preprocess: 'std' is missing",
    ),
    "class names": (
        _json(lambda c: c["tasks"][0].update(class_names=["a", 1])),
        r"key 'class_names' must be a list of strings",
    ),
    "class count": (
        _json(lambda c: c["tasks"][0].update(class_names=["a"])),
        r"heads/task0.safetensors: head must have 1 rows",
    ),
    "head of another": (_swap_heads, r"heads/task1.safetensors: head must have 3 rows"),
    "files": (
        _json(lambda c: c["files"].pop("heads/task2.safetensors")),
        r"'files': key 'heads/task2.safetensors' is missing",
    ),
    "escaping name": (
        _json(lambda c: c["tasks"][0].update(name="../../x")),
        r"'files': key 'heads/../../x.safetensors' is missing",
    ),
    "unknown buffer": (
        _json(lambda c: c["buffers"].pop("shift")),
        r"base.safetensors: tensor 'buffer.shift' is not in pool.json",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_pool_is_refused_in_one_sentence(case: str, parts: Any, tmp_path: Path) -> None:
    damage, message = DAMAGE[case]
    parts.build().save(tmp_path / "pool")
    damage(tmp_path / "pool")
    with pytest.raises(MdftError, match=message) as caught:
        Pool.open(tmp_path / "pool")
    assert "\n" not in str(caught.value)


def test_changed_bytes_are_found_when_asked(parts: Any, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool")
    path = tmp_path / "pool" / "tau.safetensors"
    content = bytearray(path.read_bytes())
    content[container.PAGE + 9] ^= 1
    path.write_bytes(content)
    Pool.open(tmp_path / "pool")
    with pytest.raises(MdftError, match=r"tau.safetensors: sha256 must be \w{64} .*got \w{64}"):
        Pool.open(tmp_path / "pool", verify=True)


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"none: no such pool folder"):
        Pool.open(tmp_path / "none")
