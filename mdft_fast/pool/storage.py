# SPDX-License-Identifier: Apache-2.0
"""A pool as a folder: written whole or not at all, opened by mapping."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdft_fast.arena import Codec, Encoder, TaskVectors, forms_of, rows_of
from mdft_fast.checkpoints import Entry, Written, entry, open_state, write_tensors
from mdft_fast.errors import MdftError
from mdft_fast.files import new_folder, write_text
from mdft_fast.pool.derived_checksum import check_checksums
from mdft_fast.pool.head import Head
from mdft_fast.pool.manifest import BASE, MANIFEST, TAU, Manifest, head_file, read_manifest, to_json
from mdft_fast.pool.packing import Packing, check_spec
from mdft_fast.pool.pool_data import PoolData
from mdft_fast.pool.task_checks import TaskInfo, TaskLike, check_classes

_BUFFER = "buffer."
_HEADS = "heads"


def save_pool(pool: PoolData, path: str | os.PathLike[str], codec: Codec, overwrite: bool) -> None:
    """Writes a pool; in another codec, it holds one task vector at a time."""
    _check_heads(pool.tasks, pool.heads)
    with new_folder(path, overwrite=overwrite, check_old=_check_packed) as folder:
        files = {BASE: _write_base(folder, pool.base, pool.buffers)}
        if codec == pool.codec:
            entries = map(entry, ("codes", "scales"), pool.vectors.tensors)
            files[TAU] = write_tensors(folder / TAU, entries)
        else:
            encoder = Encoder(codec, pool.layout)
            rows = map(encoder.encode, rows_of(pool.vectors), pool.owners)
            vectors, files[TAU] = _write_rows(folder, (pool.K, pool.N), encoder, rows)
            pool = pool.recoded(vectors, encoder)
        _finish(folder, pool, files)


def stream_pool(
    path: str | os.PathLike[str],
    packing: Packing,
    codec: Codec,
    spec: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Packs and writes a pool, holding one task vector at a time; the base is mapped."""
    check_spec(spec)
    _check_heads(packing.tasks, packing.heads)
    with new_folder(path, overwrite=overwrite, check_old=_check_packed) as folder:
        encoder, size = Encoder(codec, packing.layout), (packing.K, packing.layout.elements)
        files = {BASE: _write_base(folder, packing.base, packing.buffers)}
        packing.base = _take(folder / BASE, "base", torch.float32, size[1:])
        vectors, files[TAU] = _write_rows(folder, size, encoder, packing.rows(encoder))
        _finish(folder, packing.finish(vectors, encoder, spec), files)


def open_pool(path: str | os.PathLike[str], *, verify: bool) -> PoolData:
    """Opens a pool by mapping its files."""
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, written in manifest.files.items():
        _check_size(folder / name, written)
    base = open_state(folder / BASE).tensors
    known = {"base", *(_BUFFER + name for name in manifest.dtypes)}
    for key in base:
        if key not in known:
            raise MdftError(f"{folder / BASE}: tensor {key!r} is not in {MANIFEST}")
    elements = manifest.layout.elements
    rows = len(manifest.others["vector_names"])
    vectors = _read_vectors(folder, (rows, elements), manifest.codec)
    pool = PoolData(
        layout=manifest.layout,
        base=_take(folder / BASE, "base", torch.float32, (elements,)),
        vectors=vectors,
        tasks=manifest.tasks,
        heads=dict(_read_heads(folder, manifest)),
        buffers={n: base[_BUFFER + n] for n in manifest.dtypes if _BUFFER + n in base},
        dtypes=manifest.dtypes,
        **manifest.others,
    )
    if verify:
        check_checksums(pool, folder, manifest.files)
    return pool


def _write_rows(
    folder: Path, size: tuple[int, int], encoder: Encoder, rows: Iterable[TaskVectors]
) -> tuple[TaskVectors, Written]:
    """Writes K task vectors one by one as an encoder makes them; returns them mapped.

    Scales, K * N / GROUP floats, are in memory until the codes are written: they come behind them.
    There they are aligned, as the codes of an arena are a multiple of TILE / 2 bytes.
    """
    pieces = {"codes": (row.codes for row in rows), "scales": encoder.scales}
    forms = forms_of(*size, encoder.codec)
    entries = [Entry(name, *form, pieces[name]) for name, form in forms.items()]
    written = write_tensors(folder / TAU, entries)
    return _read_vectors(folder, size, encoder.codec), written


def _read_vectors(folder: Path, size: tuple[int, int], codec: Codec) -> TaskVectors:
    """Maps the task vectors of a folder."""
    forms = forms_of(*size, codec)
    taken = {name: _take(folder / TAU, name, *form) for name, form in forms.items()}
    return TaskVectors(taken["codes"], codec, taken.get("scales"))


def _write_base(folder: Path, base: Tensor, buffers: Mapping[str, Tensor]) -> Written:
    kept = _aligned({_BUFFER + name: tensor for name, tensor in buffers.items()})
    return write_tensors(folder / BASE, [entry("base", base), *kept])


def _aligned(tensors: Mapping[str, Tensor]) -> list[Entry]:
    """Returns entries, wider elements first: all stay aligned."""
    entries = [entry(name, tensor) for name, tensor in tensors.items()]
    return sorted(entries, key=lambda item: -item.dtype.itemsize)


def _check_heads(tasks: Sequence[TaskLike | TaskInfo], heads: Mapping[str, Head]) -> None:
    """Refuses tasks that a pool's folder could not be opened with, before anything is written."""
    headless = [task.name for task in tasks if task.name not in heads]
    if headless:
        raise MdftError(f"pool: tasks must have heads to be saved, got none for {headless}")
    for task in tasks:
        check_classes(task, heads[task.name])


def _finish(folder: Path, pool: PoolData, files: dict[str, Written]) -> None:
    (folder / _HEADS).mkdir()
    for name, head in pool.heads.items():
        files[head_file(name)] = write_tensors(folder / head_file(name), _aligned(head.tensors))
    write_text(folder / MANIFEST, to_json(pool, files))


def _check_packed(folder: Path) -> None:
    """Refuses a folder that is no packed pool, or that holds anything else besides."""
    refusal = f"{folder}: is not replaced, as it must be a packed pool and hold nothing else"
    if not (folder / TAU).is_file():
        raise MdftError(f"{refusal}, got no {TAU}")
    try:
        known = {MANIFEST, *read_manifest(folder).files}
    except MdftError as error:
        raise MdftError(f"{refusal}, got an error: {error}") from None
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            inside = path.relative_to(folder).as_posix()
            ours = inside == _HEADS if name in folders else inside in known
            if path.is_symlink() or not ours:
                raise MdftError(f"{refusal}, got {inside!r}")


def _check_size(path: Path, written: Written) -> None:
    if not path.is_file():
        raise MdftError(f"{path}: missing, although the pool's {MANIFEST} names it")
    size = path.stat().st_size
    if size != written.bytes:
        raise MdftError(
            f"{path}: must be {written.bytes} bytes as in {MANIFEST}, got {size} "
            f"({'cut short' if size < written.bytes else 'too long'})"
        )


def _take(path: Path, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    state = open_state(path).tensors
    if key not in state:
        raise MdftError(f"{path}: tensor {key!r} is missing, got {sorted(state)}")
    tensor = state[key]
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise MdftError(
            f"{path}: tensor {key!r} must be {list(shape)} in {dtype} as in {MANIFEST}, got "
            f"{list(tensor.shape)} in {tensor.dtype}"
        )
    return tensor


def _read_heads(folder: Path, manifest: Manifest) -> Iterable[tuple[str, Head]]:
    for task in manifest.tasks:
        path = folder / head_file(task.name)
        normalize, scale, note = manifest.heads[task.name]
        head = Head.from_file(path, normalize=normalize, scale=scale)
        if head.classes != task.classes:
            raise MdftError(
                f"{path}: head must have {task.classes} rows as {MANIFEST} has class names, got "
                f"weight {list(head.weight.shape)}"
            )
        yield task.name, dataclasses.replace(head, note=note)
