# SPDX-License-Identifier: Apache-2.0
"""Any checkpoint into one safetensors file, and what a checkpoint is, in words."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from mdft_fast.checkpoints.file_kinds import sniff
from mdft_fast.checkpoints.lora import describe_adapter, to_base_dtype
from mdft_fast.checkpoints.opening import open_state
from mdft_fast.checkpoints.parts import AS_IT_IS, Choice
from mdft_fast.checkpoints.safetensors_file import FACTS, NORMALIZE
from mdft_fast.checkpoints.safetensors_writer import Entry, entry, write_tensors
from mdft_fast.checkpoints.state import LazyTensors, State, renamed
from mdft_fast.errors import MdftError
from mdft_fast.files import replacing

_MOST_GROWTH = 4  # ties, and adapters whose two factors become a whole matrix each, with room
_SMALL = 1 << 26  # bytes that nobody minds
Dtype = Literal["float32", "float16", "bfloat16", "float64"]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    choice: Choice = AS_IT_IS,
    dtype: str | None = None,
    ignore: Sequence[str] = (),
) -> State:
    """Writes a checkpoint, or a head, as one safetensors file.

    Args:
        source: whatever :func:`open_state` opens.
        target: the new file, ``.safetensors``; it appears whole or not at all.
        base: the pre-trained model, where the source is a LoRA adapter. The sum is rounded to the
            dtype of the base's tensor, to nearest.
        overwrite: replaces an older file.
        choice: which model is wanted of a source that holds several.
        dtype: of :data:`Dtype`; rounds floating tensors to it, to nearest. None: as they are.
        ignore: leaves tensors out whose names match a pattern, with * and ?.

    Returns:
        What was written. Names are the source's; what it says of activation, preprocessing and
        ``normalize`` stands in the new file's metadata, where :func:`open_state` finds it.
    """
    path = Path(target)
    if path.suffix != ".safetensors":
        raise MdftError(f"{path}: the new file must end in .safetensors")
    if path.exists() and not overwrite:
        raise MdftError(f"{path}: already exists; pass overwrite=True to replace it")
    opened = None if base is None else open_state(base)
    state = to_base_dtype(open_state(source, base=opened, choice=choice), opened)
    state = _in_dtype(_without(state, ignore), dtype)
    for name, what in state.unreadable.items():
        raise MdftError(
            f"{source}: tensor {name!r} must be a dense one with data, got {what}; ignore leaves "
            "it out"
        )
    metadata = {"format": "pt", FACTS: state.facts.to_text()}
    if state.normalize is not None:
        metadata[NORMALIZE] = "true" if state.normalize else "false"
    with _told_of(source):
        entries = [  # each tensor is read again, when it is written
            entry(name, state.tensors[name])._replace(
                pieces=map(state.tensors.__getitem__, (name,))
            )
            for name in state.tensors
        ]
    _check_growth(Path(source), base, entries)
    entries.sort(key=lambda item: -item.dtype.itemsize)  # wider ones first: all stay aligned
    for opened_state in (opened, state):
        if opened_state is not None:
            opened_state.check()
    with _told_of(source), replacing(path) as temporary:
        write_tensors(temporary, entries, metadata=metadata)
    return state


@contextlib.contextmanager
def _told_of(source: str | os.PathLike[str]) -> Iterator[None]:
    """Names the source where a tensor of it cannot be written, and what to do."""
    try:
        yield
    except MdftError as error:
        text = str(error).removeprefix(f"{source}: ")
        raise MdftError(f"{source}: {text}; ignore leaves it out") from None


def _check_growth(
    source: Path, base: str | os.PathLike[str] | None, entries: Sequence[Entry]
) -> None:
    """Refuses a small file whose tensors are one storage, each written out: none trains so."""
    places = [source, *([Path(base)] if base is not None else [])]
    held = sum(map(_bytes_on_disk, places))
    wanted = sum(item.dtype.itemsize * math.prod(item.shape) for item in entries)
    if wanted > _MOST_GROWTH * held + _SMALL:
        raise MdftError(
            f"{source}: its {len(entries)} tensors are {wanted:,} bytes written out, and it holds "
            f"{held:,}: they share elements; save clones of those that are wanted"
        )


def _bytes_on_disk(path: Path) -> int:
    """Returns the size of a file, of all in a folder, or of what lies beside an index."""
    folder = path.parent if path.suffix == ".json" else path
    files = [path] if folder.is_file() else folder.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _without(state: State, ignore: Sequence[str]) -> State:
    gone = {
        name: f"ignored by pattern {pattern!r}"
        for name in (*state.tensors, *state.unreadable)
        for pattern in ignore
        if fnmatchcase(name, pattern)
    }
    kept = {name: name for name in state.tensors if name not in gone}
    unreadable = {name: what for name, what in state.unreadable.items() if name not in gone}
    return replace(
        state, tensors=renamed(state.tensors, kept), left_out={**state.left_out, **gone},
        unreadable=unreadable,
    )  # fmt: skip


def _in_dtype(state: State, dtype: str | None) -> State:
    if dtype is None:
        return state
    if dtype not in get_args(Dtype):
        raise MdftError(f"dtype: must be one of {list(get_args(Dtype))}, got {dtype!r}")
    wanted: torch.dtype = getattr(torch, dtype)

    def read(name: str) -> Tensor:
        tensor = state.tensors[name]
        if not tensor.is_floating_point():
            return tensor
        rounded = tensor.to(wanted)
        if not torch.equal(rounded.isfinite(), tensor.isfinite()):
            raise MdftError(f"tensor {name!r} has elements beyond {dtype}'s range")
        return rounded

    return replace(state, tensors=LazyTensors({n: partial(read, n) for n in state.tensors}))


def describe(
    path: str | os.PathLike[str], *, every: bool = False, choice: Choice = AS_IT_IS
) -> str:
    """Returns what a file or folder is, as text.

    Args:
        path: a checkpoint, a head or a LoRA adapter.
        every: lists every tensor.
        choice: which model is wanted of a file that holds several.
    """
    kind = sniff(Path(path))
    if kind == "adapter":
        return describe_adapter(Path(path), open_state)
    return "\n".join(_lines(open_state(path, choice=choice), every))


def _lines(state: State, every: bool) -> Iterator[str]:
    tensors = {name: state.tensors[name] for name in state.tensors}
    bytes_ = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    elements = sum(tensor.numel() for tensor in tensors.values())
    dtypes = Counter(_dtype(tensor) for tensor in tensors.values())
    yield f"format    {state.format}"
    yield f"tensors   {len(tensors)}, {elements:,} elements, {bytes_ / 1e6:,.1f} MB"
    yield f"dtypes    {', '.join(f'{name} ({count})' for name, count in sorted(dtypes.items()))}"
    yield f"names     {_prefix(list(tensors)) or 'no common prefix'}"
    for key, value in state.facts.known().items():
        yield f"says      {key}: {value}"
    if state.normalize is not None:
        yield f"says      normalize: {str(state.normalize).lower()}"
    yield f"left out  {len(state.left_out)}"
    yield from (f"  {name}: {why}" for name, why in state.left_out.items())
    yield from (f"not read  {name}: {what}" for name, what in state.unreadable.items())
    yield from (f"note      {note}" for note in state.notes)
    if every:
        yield "all tensors"
        yield from (f"  {name}  {list(t.shape)}  {_dtype(t)}" for name, t in tensors.items())


def _prefix(names: list[str]) -> str:
    """Returns words for what all names begin with, up to a dot; nothing where that is nothing."""
    first, last = min(names).split("."), max(names).split(".")
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last, strict=False)))
    prefix = "".join(f"{part}." for part, _ in same)
    return f"all begin with {prefix!r}" if prefix else ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
