# SPDX-License-Identifier: Apache-2.0
"""Finds a backbone's tensors in a checkpoint that holds more, or names them otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

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
    the module's. What is not behind the prefix is listed in ``left_out``, with why. A checkpoint in
    which no prefix finds every tensor comes back as it is; what is missing, packing says.

    Raises:
        MdftError: if two prefixes find every tensor.
    """
    for spelling in _spellings(inventory):
        prefixes = list(_prefixes(state, inventory, spelling))
        if len(prefixes) > 1 and "" not in prefixes:
            raise MdftError(
                f"{state.label}: the backbone's tensors must stand behind one prefix, got "
                f"{prefixes}; convert the wanted part to a file of its own"
            )
        if prefixes:
            return _behind(state, inventory, "" if "" in prefixes else prefixes[0], spelling)
    return state


def other_names(raw: State, inventory: Inventory) -> dict[str, str]:
    """Returns the backbone's name of each tensor -> its name in the checkpoint as it was opened."""
    for spelling in _spellings(inventory):
        for prefix in _prefixes(raw, inventory, spelling):
            pairs = ((name, prefix + spelling.get(name, name)) for name in inventory.names)
            return {name: key for name, key in pairs if key in raw.tensors}
    return {}


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


def _prefixes(state: State, inventory: Inventory, spelling: Mapping[str, str]) -> Iterator[str]:
    """Yields the prefixes behind which every tensor stands that the backbone must have."""
    must = [n for n in (*inventory.merged, *inventory.kept) if n not in inventory.optional]
    longest = spelling.get(must[0], must[0])
    for name in must:
        longest = max(longest, spelling.get(name, name), key=len)
    for key in state.tensors:
        prefix = key.removesuffix(longest)
        whole = key.endswith(longest) and (not prefix or prefix.endswith("."))
        if whole and all(
            any(prefix + spelling.get(n, n) in state.tensors for n in inventory.spoken(name))
            for name in must
        ):
            yield prefix


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
        return state
    back = {old: new for new, old in names.items()}
    formed = frozenset(back[name] for name in state.formed if name in back)
    return replace(state, tensors=renamed(state.tensors, names), left_out=left_out, formed=formed)


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
