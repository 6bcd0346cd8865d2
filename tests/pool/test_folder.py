# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mdft_fast.arena import CODECS
from mdft_fast.checkpoints import safetensors_writer as container
from mdft_fast.errors import MdftError
from mdft_fast.json_checksums import with_checksum
from mdft_fast.pool import Head, Pool, label_note
from tests.conftest import contents
from tests.pool.conftest import cut, edited, flip, refuses, tiny_parts


def _same(one: Pool, other: Pool) -> None:
    assert one.layout == other.layout
    assert torch.equal(one.base, other.base)
    assert torch.equal(one.vectors.codes, other.vectors.codes)
    assert (one.vectors.scales is None) == (other.vectors.scales is None)
    if one.vectors.scales is not None and other.vectors.scales is not None:
        assert torch.equal(one.vectors.scales, other.vectors.scales)
    named = "codec tasks left_out ties dtypes backbone_spec preprocess errors"
    for name in named.split():
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
        assert (head.normalize, head.scale, head.note) == (mine.normalize, mine.scale, mine.note)
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


def test_ties_and_notes_of_heads_are_data_and_older_files_word_them(
    parts: Any, tmp_path: Path
) -> None:
    name = parts.tasks[1].name
    note = label_note(name, "two images a class")
    parts.tasks[1].head = Head(torch.ones(3, 4), note=note)
    pool = parts.build()
    assert pool.ties
    assert note in pool.notes
    pool.save(tmp_path / "pool")
    file = tmp_path / "pool" / "pool.json"
    content = json.loads(file.read_text())
    assert content.pop("ties") == dict(pool.ties)
    assert content.pop("sha256")
    assert [task["head"].pop("note", "") for task in content["tasks"]][1] == note
    _same(Pool.open(tmp_path / "pool"), pool)
    file.write_text(json.dumps(content))  # as an older version wrote it
    _same(Pool.open(tmp_path / "pool"), pool)


def test_files_are_plain_safetensors_on_page_boundaries(parts: Any, tmp_path: Path) -> None:
    pool = parts.build()
    pool.save(tmp_path / "pool")
    facts = json.loads((tmp_path / "pool" / "pool.json").read_text())
    assert contents(tmp_path / "pool").keys() == {*facts["files"], "pool.json"}
    for name, written in facts["files"].items():
        content = (tmp_path / "pool" / name).read_bytes()
        assert written == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    with safe_open(tmp_path / "pool" / "tau.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("codes"), pool.vectors.codes)
    opened = Pool.open(tmp_path / "pool")
    assert opened.base.data_ptr() % container.PAGE == 0
    assert all(row.data_ptr() % container.PAGE == 0 for row in opened.vectors.codes)


def test_checksum_follows_content_alone(parts: Any) -> None:
    pool = parts.build()
    assert tiny_parts().build().checksum == pool.checksum
    assert pool.encode("bf16").checksum != pool.checksum
    other = tiny_parts()
    other.models[2]["gain"] += 1
    assert other.build().checksum != pool.checksum
    other = tiny_parts()
    for state in (other.base, *other.models):
        state["shift"] = torch.ones(4)
    assert other.build().checksum != pool.checksum


def test_writing_to_an_opened_pool_never_reaches_the_file(parts: Any, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool")
    opened = Pool.open(tmp_path / "pool")
    opened.base.fill_(1)
    opened.vectors.codes.fill_(1)
    Pool.open(tmp_path / "pool", verify=True)


def _swap_heads(folder: Path) -> None:
    one, other = folder / "heads/task0.safetensors", folder / "heads/task1.safetensors"
    other.write_bytes(one.read_bytes())
    edited(
        lambda c: c["files"].update(
            {"heads/task1.safetensors": c["files"]["heads/task0.safetensors"]}
        )
    )(folder)


def _escape(folder: Path) -> None:
    """A head outside the folder, as well described as one inside."""
    (folder / "heads/task0.safetensors").rename(folder.parent / "escaped.safetensors")
    edited(lambda c: c["tasks"][0].update(name="../../escaped"))(folder)
    edited(
        lambda c: c["files"].update(
            {"heads/../../escaped.safetensors": c["files"]["heads/task0.safetensors"]}
        )
    )(folder)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut tau": (cut("tau.safetensors"),
        r"tau.safetensors: must be \d+ bytes .*got \d+ \(cut short"),
    "cut base": (cut("base.safetensors"), r"base.safetensors: must be \d+ bytes"),
    "cut head": (cut("heads/task1.safetensors"), r"heads/task1.safetensors: must be \d+ bytes"),
    "longer": (lambda f: (f / "tau.safetensors").open("ab").write(b"x"),
        r"tau.safetensors: must be .*too long"),
    "no tau": (lambda f: (f / "tau.safetensors").unlink(), r"tau.safetensors: missing, although"),
    "no manifest": (lambda f: (f / "pool.json").unlink(), r"not a pool, pool.json is missing"),
    "half a manifest": (lambda f: (f / "pool.json").write_text('{"schema": 1,'),
        r"pool.json: not readable as JSON"),
    "a list": (lambda f: (f / "pool.json").write_text("[]"), r"must be a JSON object, got list"),
    "version": (edited(lambda c: c.update(schema=99)),
        r"pool.json: schema version must be 1, got 99"),
    "missing key": (edited(lambda c: c.pop("tasks")), r"pool.json: key 'tasks' is missing"),
    "wrong type": (edited(lambda c: c["tasks"][1].update(name=7)),
        r"pool.json: 'tasks'\[1\]: key 'name' must be str, got 7"),
    "NaN for a number": (edited(lambda c: c["tasks"][0]["head"].update(scale=float("nan"))),
        r"pool.json: not readable as JSON: numbers must be finite, got NaN"),
    "bool for a number": (edited(lambda c: c["tensors"][0].update(tile=False)),
        r"'tensors'\[0\]: key 'tile' must be int, got False"),
    "codec": (edited(lambda c: c.update(codec="int3")), r"key 'codec' must be one of .*got 'int3'"),
    "other codec": (edited(lambda c: c.update(codec="bf16")),
        r"tau.safetensors: tensor 'codes' must be .*torch.bfloat16.*got .*torch.float32"),
    "shape": (edited(lambda c: c["tensors"][0].update(shape=[5, 1200])),
        r"'tensors'\[1\]: key 'tile' must be 6, got 1"),
    "negative shape": (edited(lambda c: c["tensors"][0].update(shape=[-1])),
        r"'tensors'\[0\]: key 'shape' must be a list of sizes, got \[-1\]"),
    "tensor gone": (edited(lambda c: c["tensors"].pop()),
        r"tau.safetensors: tensor 'codes' must be \[3, \d+\]"),
    "tensor twice": (edited(lambda c: c["tensors"].append(c["tensors"][0])),
        r"key 'tensors' must be one or more tensors of different names"),
    "tile size": (edited(lambda c: c.update(tile_elements=512)), r"'tile_elements' must be 1024"),
    "preprocess": (edited(lambda c: c["preprocess"].pop("std")),
        r"pool.json: preprocess: 'std' is missing"),
    "class names": (edited(lambda c: c["tasks"][0].update(class_names=["a", 1])),
        r"key 'class_names' must be a list of strings"),
    "class count": (edited(lambda c: c["tasks"][0].update(class_names=["a"])),
        r"heads/task0.safetensors: head must have 1 rows"),
    "head of another": (_swap_heads, r"heads/task1.safetensors: head must have 3 rows"),
    "files": (edited(lambda c: c["files"].pop("heads/task2.safetensors")),
        r"'files': key 'heads/task2.safetensors' is missing"),
    "escaping name": (_escape, r"pool.json: task '../../escaped': a name must be letters"),
    "name twice": (edited(lambda c: c["tasks"][1].update(name="Task0")),
        r"pool.json: pool: task names must differ, got 'Task0' twice in \['task0', 'Task0'"),
    "no tasks": (edited(lambda c: c["tasks"].clear()),
        r"pool.json: pool: tasks must name at least one task, got none"),
    "unknown buffer": (edited(lambda c: c["buffers"].pop("shift")),
        r"base.safetensors: tensor 'buffer.shift' is not in pool.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_pool_is_refused_in_one_sentence(case: str, parts: Any, tmp_path: Path) -> None:
    damage, message = DAMAGE[case]
    parts.build().save(tmp_path / "pool")
    damage(tmp_path / "pool")
    refuses(tmp_path / "pool", message)


def test_a_pool_from_before_crop_pct_means_what_it_meant(parts: Any, tmp_path: Path) -> None:
    parts.options["preprocess"]["crop_pct"] = 0.9
    pool = parts.build()
    pool.save(tmp_path / "pool")
    assert Pool.open(tmp_path / "pool").preprocess == pool.preprocess
    assert pool.preprocess["crop_pct"] == 0.9
    edited(lambda c: c["preprocess"].pop("crop_pct"))(tmp_path / "pool")
    assert Pool.open(tmp_path / "pool").preprocess["crop_pct"] == 1.0


def test_changed_bytes_are_found_when_asked(parts: Any, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool")
    path = tmp_path / "pool" / "tau.safetensors"
    flip(path, container.PAGE + 9)
    Pool.open(tmp_path / "pool")
    refuses(tmp_path / "pool", r"tau.safetensors: sha256 must be \w{64} .*got \w{64}", verify=True)


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MdftError, match=r"none: no such pool folder"):
        Pool.open(tmp_path / "none")


def test_names_exchanged_in_the_manifest_are_found(parts: Any, tmp_path: Path) -> None:
    parts.build().save(tmp_path / "pool")
    file = tmp_path / "pool" / "pool.json"
    content = json.loads(file.read_text())
    one, two = (t for t in content["tensors"] if t["name"] in ("norm.weight", "norm.bias"))
    one["name"], two["name"] = two["name"], one["name"]
    file.write_text(json.dumps(content))
    with pytest.raises(MdftError, match=r"pool.json: its content's sha256 must be"):
        Pool.open(tmp_path / "pool")
    file.write_text(json.dumps(with_checksum(content)))  # by whoever knows how
    Pool.open(tmp_path / "pool")
    with pytest.raises(MdftError, match=r"pool.json: checksum must be .* by the content, got"):
        Pool.open(tmp_path / "pool", verify=True)
