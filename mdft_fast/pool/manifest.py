# SPDX-License-Identifier: Apache-2.0
"""``pool.json``: what a saved pool says about itself, and the checks that it must pass."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mdft_fast.arena import CODECS, ERROR_OF_CODEC, TILE, Codec, CodecError, Layout
from mdft_fast.checkpoints import Written, as_preprocess
from mdft_fast.errors import MdftError
from mdft_fast.files import old_folder
from mdft_fast.json_checksums import check_content, with_checksum
from mdft_fast.pool.head import label_note
from mdft_fast.pool.inventory import tied_to
from mdft_fast.pool.pool_data import PoolData
from mdft_fast.pool.task_checks import TaskInfo, check_names

SCHEMA = 1
MANIFEST = "pool.json"
BASE = "base.safetensors"
TAU = "tau.safetensors"
_ERROR_KEYS = CodecError._fields
_KEYS = (
    *("schema", "checksum", "codec", "codec_relative_error", "tile_elements", "tasks", "backbone"),
    *("activation", "preprocess", "notes", "left_out", "buffers", "tensors", "files", "methods"),
    *("vectors", "ties"),
)


def head_file(task: str) -> str:
    """Returns the name of a task's head file, relative to the pool."""
    return f"heads/{task}.safetensors"


class Manifest(NamedTuple):
    """``pool.json``, read and checked.

    Attributes are the pool's, but for these.

    Attributes:
        heads: task -> (normalize, scale, note), as in its head.
        files: relative path -> size and sha256, for every other file of the folder.
        others: the pool's other attributes that are no tensors, by name.
    """

    layout: Layout
    codec: Codec
    tasks: tuple[TaskInfo, ...]
    dtypes: Mapping[str, str]
    heads: Mapping[str, tuple[bool, float, str]]
    files: Mapping[str, Written]
    others: Mapping[str, Any]


def to_json(pool: PoolData, files: Mapping[str, Written]) -> str:
    """Returns the text of ``pool.json``."""
    tasks = [
        {
            "name": task.name,
            "class_names": list(task.class_names),
            "head": {
                "normalize": pool.heads[task.name].normalize,
                "scale": pool.heads[task.name].scale,
            }
            | ({"note": note} if (note := pool.heads[task.name].note) else {}),
            "round_off": task.round_off,
        }
        for task in pool.tasks
    ]
    tensors = [
        {"name": s.name, "shape": list(s.shape), "tile": s.tile, "dtype": pool.dtypes[s.name]}
        | ({"codec_error": pool.errors[s.name]._asdict()} if pool.errors else {})
        for s in pool.layout.slots
    ]
    content = {
        "schema": SCHEMA,
        "checksum": pool.checksum,
        "codec": pool.codec,
        "codec_relative_error": ERROR_OF_CODEC[pool.codec],
        "tile_elements": TILE,
        "tasks": tasks,
        "backbone": dict(pool.backbone_spec),
        "activation": pool.activation,
        "preprocess": dict(pool.preprocess),
        "notes": list(pool.notes),
        "left_out": dict(pool.left_out),
        "buffers": {name: pool.dtypes[name] for name in pool.buffers},
        "tensors": tensors,
        "files": {name: written._asdict() for name, written in files.items()},
    }
    if pool.methods or pool.vector_names != pool.names:  # a plain pool's file stays as it was
        content |= {"methods": list(pool.methods), "vectors": list(pool.vector_names)}
    if pool.ties:
        content["ties"] = dict(pool.ties)
    return json.dumps(with_checksum(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks ``pool.json``; every message begins with its path."""
    path = folder / MANIFEST
    if not folder.is_dir():
        old = old_folder(folder)
        left = f"; a stopped exchange left the old one at {old}" if old.is_dir() else ""
        raise MdftError(f"{folder}: no such pool folder{left}")
    if not path.is_file():
        raise MdftError(f"{folder}: not a pool, {MANIFEST} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8
        raise MdftError(f"{path}: not readable as JSON: {error}") from None
    top = _Node(content, str(path))
    if "schema" not in top:
        raise MdftError(
            f"{path}: another program's notes, not a packed pool's {MANIFEST}: key 'schema' is "
            f"missing, got {sorted(content)}; `mdft pack` makes a pool of checkpoints"
        )
    schema = top.get("schema", int)
    if schema != SCHEMA:
        raise MdftError(f"{path}: schema version must be {SCHEMA}, got {schema}")
    check_content(path, content, _KEYS)
    try:
        return _manifest(top)
    except MdftError as error:
        text = str(error)
        raise MdftError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"numbers must be finite, got {name}")


def _manifest(top: _Node) -> Manifest:
    codec = next((c for c in CODECS if c == top.get("codec", str)), None)
    if codec is None:
        raise top.wrong("codec", f"one of {list(CODECS)}", top.get("codec", str))
    tasks = top.items("tasks")
    names = [task.get("name", str) for task in tasks]
    check_names(names)
    layout, notes = _layout(top), top.strings("notes")
    left_out = top.child("left_out").all_strings()
    return Manifest(
        layout=layout,
        codec=codec,
        tasks=tuple(
            TaskInfo(name, task.strings("class_names"), float(task.get("round_off", (int, float))))
            for name, task in zip(names, tasks, strict=True)
        ),
        dtypes={t.get("name", str): t.get("dtype", str) for t in top.items("tensors")}
        | top.child("buffers").all_strings(),
        heads={
            name: _head(task.child("head"), label_note(name, ""), notes)
            for name, task in zip(names, tasks, strict=True)
        },
        files=_files(top.child("files"), [BASE, TAU, *(head_file(name) for name in names)]),
        others={
            "left_out": left_out,
            "ties": top.child("ties").all_strings() if "ties" in top else _ties(left_out, layout),
            "backbone_spec": dict(top.get("backbone", dict)),
            "preprocess": as_preprocess(top.get("preprocess", dict)),
            "checksum": top.get("checksum", str),
            "notes": notes,
            "errors": _errors(top.items("tensors")),
            # What pools of older versions, or without methods, do not say.
            "activation": top.get("activation", (str, type(None))) if "activation" in top else None,
            "vector_names": _vector_names(top, tuple(names)),
            "methods": top.strings("methods") if "methods" in top else (),
        },
    )


def _vector_names(top: _Node, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Returns whose the vectors are: the tasks', one merge's, or a start's and the tasks'."""
    names = top.strings("vectors") if "vectors" in top else tasks
    if names != tasks and (len(names) == 0 or names[1:] not in ((), tasks)):
        raise top.wrong("vectors", f"a merge's name, {list(tasks)}, or both", list(names))
    return names


def _head(head: _Node, begins: str, notes: Sequence[str]) -> tuple[bool, float, str]:
    # Files of older versions say it in the pool's notes alone.
    older = next((note for note in notes if note.startswith(begins)), "")
    note = head.get("note", str) if "note" in head else older
    return head.get("normalize", bool), float(head.get("scale", (int, float))), note


def _ties(left_out: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """Returns second name -> first name of a file of an older version, which words it alone."""
    firsts = {tied_to(name): name for name in (*layout.columns, *left_out)}
    return {name: firsts[why] for name, why in left_out.items() if why in firsts}


def _layout(top: _Node) -> Layout:
    if top.get("tile_elements", int) != TILE:
        raise top.wrong("tile_elements", str(TILE), top.get("tile_elements", int))
    tensors = top.items("tensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        shape = tensor.get("shape", list)
        if not all(type(size) is int and size >= 0 for size in shape):
            raise tensor.wrong("shape", "a list of sizes", shape)
        shapes[tensor.get("name", str)] = tuple(shape)
    layout = Layout.of(shapes)
    if len(shapes) != len(tensors) or not shapes:
        raise top.wrong("tensors", "one or more tensors of different names", f"{len(tensors)}")
    for slot, tensor in zip(layout.slots, tensors, strict=True):
        if tensor.get("tile", int) != slot.tile:
            raise tensor.wrong("tile", str(slot.tile), tensor.get("tile", int))
    return layout


def _errors(tensors: list[_Node]) -> dict[str, CodecError]:
    """Reads what packing measured; pools of older versions, and exact ones, have none."""
    if not any("codec_error" in tensor for tensor in tensors):
        return {}
    return {
        tensor.get("name", str): CodecError(
            *(float(tensor.child("codec_error").get(key, (int, float))) for key in _ERROR_KEYS)
        )
        for tensor in tensors
    }


def _files(files: _Node, names: list[str]) -> dict[str, Written]:
    entries = {name: files.child(name) for name in names}
    return {n: Written(e.get("bytes", int), e.get("sha256", str)) for n, e in entries.items()}


class _Node:
    """A JSON object and where it stands, so that errors can say so."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise MdftError(f"{where}: must be a JSON object, got {type(value).__name__}")
        self._value = value
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self._value:
            raise MdftError(f"{self._where}: key {key!r} is missing, got {sorted(self._value)}")
        value = self._value[key]
        # In Python a bool is an int; in JSON it is not.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            raise self.wrong(key, " or ".join(k.__name__ for k in kinds), value)
        return value

    def child(self, key: str) -> _Node:
        return _Node(self.get(key, dict), f"{self._where}: {key!r}")

    def items(self, key: str) -> list[_Node]:
        values = self.get(key, list)
        return [_Node(value, f"{self._where}: {key!r}[{i}]") for i, value in enumerate(values)]

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(key, "a list of strings", values)
        return tuple(values)

    def all_strings(self) -> dict[str, str]:
        return {key: self.get(key, str) for key in self._value}

    def wrong(self, key: str, wanted: str, got: object) -> MdftError:
        return MdftError(f"{self._where}: key {key!r} must be {wanted}, got {got!r}")
