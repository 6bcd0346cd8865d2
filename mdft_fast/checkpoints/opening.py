# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints: a path, a state dict or a module becomes names and tensors.

One module a format. What a path is, its content says. Nothing here ever unpickles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mdft_fast.checkpoints.averages import check_names
from mdft_fast.checkpoints.file_kinds import read_json, sniff, weights_of
from mdft_fast.checkpoints.library_folders import describe_open_clip, describe_transformers
from mdft_fast.checkpoints.lora import read_adapter
from mdft_fast.checkpoints.metadata import SourceFacts
from mdft_fast.checkpoints.parts import AS_IT_IS, Choice, named_part
from mdft_fast.checkpoints.safetensors_file import read_index, read_safetensors
from mdft_fast.checkpoints.state import State, StateSource
from mdft_fast.checkpoints.torch_content import read_torch
from mdft_fast.checkpoints.wrapped_names import unwrapped
from mdft_fast.errors import MdftError


def open_state(
    path: str | os.PathLike[str],
    *,
    base: State | None = None,
    also: Mapping[str, str] | None = None,
    conv1d: Set[str] | None = None,
    choice: Choice = AS_IT_IS,
) -> State:
    """Opens a checkpoint: a file, an index of shards, or a folder.

    Args:
        path: what to open; its content says what it is.
        base: the pre-trained model, which a LoRA adapter is added to.
        also: further names of the base's tensors -> their names in ``base``.
        conv1d: names in ``base`` of the weights that are stored ``[in, out]``, where the module is
            known; None: as an adapter's config says, for all.
        choice: which model is wanted of a file that holds several.

    Returns:
        Its tensors by name, read lazily, and what the source says about itself.

    Raises:
        MdftError: if it is absent, damaged, or nothing that is read here. Nothing that the file
            holds is ever executed.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "pool":
        raise MdftError(f"{path}: is a packed pool, not a checkpoint; Pool.open opens it")
    if kind == "adapter":
        if choice.part is not None:
            raise MdftError(f"{path}: is a LoRA adapter, which has no part {choice.part!r}")
        return read_adapter(path, base, open_state, also or {}, conv1d)
    if kind in ("transformers", "open_clip"):
        file, beside = weights_of(path, kind)
        state = open_state(file, choice=choice)
        words, facts = (describe_open_clip if kind == "open_clip" else describe_transformers)(path)
        words = f"{words}, {state.format}"
        return replace(
            state, label=str(path), format=words, facts=SourceFacts.of(facts),
            notes=(*state.notes, *(_two_files(file, kind, other) for other in beside)),
        )  # fmt: skip
    if kind == "index":
        index = next(path.glob("*.index.json")) if path.is_dir() else path
        return unwrapped(_part_of(read_index(index, read_json(index), _read_file), choice))
    return unwrapped(_read_file(path, choice))


def _read_file(path: Path, choice: Choice = AS_IT_IS) -> State:
    kind = sniff(path)
    if kind == "safetensors":
        return _part_of(read_safetensors(path), choice)
    if kind in ("torch zip", "torch legacy"):
        return read_torch(path, choice, legacy=kind == "torch legacy")
    raise MdftError(f"{path}: must be a file of tensors, got kind {kind!r}")


def _part_of(state: State, choice: Choice) -> State:
    if choice.part is not None:
        return named_part(unwrapped(state), choice.part)
    return check_names(unwrapped(state), choice.weights)


def _two_files(file: Path, kind: str, other: Path) -> str:
    return f"{file.parent}: {file.name} is taken, as {kind} does, not {other.name} beside it"


def as_state(
    source: StateSource,
    whose: str,
    *,
    base: State | None = None,
    also: Mapping[str, str] | None = None,
    conv1d: Set[str] | None = None,
    choice: Choice = AS_IT_IS,
) -> State:
    """Opens a path, a state dict or a module; ``whose`` names the last two in errors."""
    if isinstance(source, (str, os.PathLike)):
        return open_state(source, base=base, also=also, conv1d=conv1d, choice=choice)
    tensors = source.state_dict() if isinstance(source, nn.Module) else source
    label = f"{whose} ({'module' if isinstance(source, nn.Module) else 'state dict'})"
    if not isinstance(tensors, Mapping):
        raise MdftError(
            f"{whose}: must be a path, a state dict or a module, got {type(source).__name__}"
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise MdftError(
                f"{label}: {name!r} must be a Tensor, got {type(tensor).__name__}; a state dict "
                f"maps parameter names to tensors, nothing else"
            )
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise MdftError(
                f"{label}: {name!r} must be a dense tensor with data, got {tensor.layout} "
                f"{tensor.dtype} on {tensor.device}"
            )
    state = State(label, {name: tensor.detach() for name, tensor in tensors.items()})
    return unwrapped(_part_of(state, choice))
