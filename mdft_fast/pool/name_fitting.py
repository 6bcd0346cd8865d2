# SPDX-License-Identifier: Apache-2.0
"""Finds a backbone's tensors in a checkpoint that holds more, or names them otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from mdft_fast.checkpoints import State, renamed, text_tower
from mdft_fast.errors import MdftError
from mdft_fast.pool.inventory import Inventory

# Of a whole CLIP model in transformers' names, where the image tower has no prefix of its own.
_WHOLE_CLIP = ("text_model.", "text_projection.", "logit_scale")


def fit(state: State, inventory: Inventory) -> State:
    """Returns the checkpoint under the backbone's names, the rest of it left out by name.

    The backbone's tensors may stand behind one prefix (``visual.`` in a whole CLIP model, ``vit.``
    in a classifier), and under the names that its library writes to files, where these differ from
    the module's. It is the prefix behind which most of them stand; what is missing, packing says.
    What is not behind the prefix is listed in ``left_out``, with why.

    Raises:
        MdftError: if as many stand behind another prefix.
    """
    found = _most(state, inventory)
    if not found.prefixes:
        return state
    if len(found.prefixes) > 1 and "" not in found.prefixes:
        raise MdftError(
            f"{state.label}: the backbone's tensors must stand behind one prefix, got "
            f"{found.prefixes}; say which as part, such as {found.prefixes[0][:-1]!r} (a recipe's "
            "pool.part, of `mdft convert` --part)"
        )
    prefix = "" if "" in found.prefixes else found.prefixes[0]
    return _behind(state, inventory, prefix, found.spelling)


def other_names(raw: State, inventory: Inventory) -> dict[str, str]:
    """Returns the backbone's name of each tensor -> its name in the checkpoint as it was opened."""
    found = _most(raw, inventory)
    for prefix in found.prefixes[:1]:
        pairs = ((name, prefix + found.spelling.get(name, name)) for name in inventory.names)
        return {name: key for name, key in pairs if key in raw.tensors}
    return {}


class _Found(NamedTuple):
    """Prefixes behind which most of the backbone's tensors stand, in which spelling."""

    prefixes: list[str]
    spelling: Mapping[str, str]


def _most(state: State, inventory: Inventory) -> _Found:
    best, most = _Found([], {}), 0
    for spelling in _spellings(inventory):
        first = {spelling.get(n, n): inventory.aliases.get(n, n) for n in inventory.must_have}
        longest = max(map(len, first))
        behind: dict[str, set[str]] = {}
        for key in (*state.tensors, *state.unreadable):
            before = len(key) - longest - 1  # a stranger's name may be of millions of parts
            cut = 0 if before < 0 else key.find(".", before) + 1 or -1
            while cut >= 0:
                if (name := first.get(key[cut:])) is not None:
                    behind.setdefault(key[:cut], set()).add(name)
                cut = key.find(".", cut) + 1 or -1
        largest = max(map(len, behind.values()), default=0)
        if largest > most:
            prefixes = [prefix for prefix, names in behind.items() if len(names) == largest]
            best, most = _Found(prefixes, spelling), largest
    return best


def check_fits(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    of: str = "the backbone",
) -> None:
    """Refuses a file whose names or shapes are not those that are wanted; names the first one.

    Args:
        path: the file, for errors.
        state: its tensors.
        wanted: a module's.
        of: words for that module.
    """
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        one = f"lacks {missing[0]!r}" if missing else f"holds {extra[0]!r}"
        raise MdftError(
            f"{path}: must hold the {len(wanted)} tensors of {of}, got a file that {one} "
            f"({len(missing)} missing, {len(extra)} extra)"
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise MdftError(
                f"{path}: tensor {name!r} must be {list(tensor.shape)} as in {of}, got "
                f"{list(state[name].shape)}"
            )


def _spellings(inventory: Inventory) -> Iterator[Mapping[str, str]]:
    yield {}
    if inventory.file_names:
        yield inventory.file_names


def _behind(state: State, inventory: Inventory, prefix: str, spelling: Mapping[str, str]) -> State:
    name_of_key = {prefix + spelling.get(name, name): name for name in inventory.names}
    names: dict[str, str] = {}
    left_out = dict(state.left_out)
    for key in state.tensors:
        if key in name_of_key:
            names[name_of_key[key]] = key
        elif why := _why_not(key, prefix, inventory):
            left_out[key] = why
        else:
            names[key.removeprefix(prefix)] = key  # extra: an error, unless it is to be ignored
    if all(new == old for new, old in names.items()) and len(names) == len(state.tensors):
        return replace(state, prefix=prefix)
    back = {old: new for new, old in names.items()}
    formed = frozenset(back[name] for name in state.formed if name in back)
    unreadable = {name_of_key.get(key, key): what for key, what in state.unreadable.items()}
    return replace(
        state, tensors=renamed(state.tensors, names), left_out=left_out, formed=formed,
        unreadable=unreadable, prefix=prefix,
    )  # fmt: skip


def _why_not(key: str, prefix: str, inventory: Inventory) -> str | None:
    if key.rpartition(".")[2] == "position_ids":
        return "a buffer of numbers 0, 1, 2, ... that the backbone makes itself"
    if prefix and not key.startswith(prefix):
        parent = prefix[:-1].rpartition(".")[0]
        inner = key.removeprefix(f"{parent}." if parent else "")
        why = f"not part of the image encoder, whose names begin with {prefix!r}"
        return f"CLIP's text tower or logits: {why}" if text_tower(inner) else why
    if not prefix and key.startswith(_WHOLE_CLIP) and _is_clip(inventory):
        return "CLIP's text tower or logits, not part of the image encoder"
    return None


def _is_clip(inventory: Inventory) -> bool:
    return any(name.startswith(("vision_model.", "visual_projection.")) for name in inventory.names)
