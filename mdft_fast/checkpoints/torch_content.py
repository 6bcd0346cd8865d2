# SPDX-License-Identifier: Apache-2.0
"""Finds the tensors in what a torch file holds: state dicts, wrappers, whole modules."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mdft_fast.checkpoints.averages import check_names
from mdft_fast.checkpoints.metadata import SourceFacts
from mdft_fast.checkpoints.parts import AS_IT_IS, Choice, is_module, named_part, pick
from mdft_fast.checkpoints.pickle_machine import StandIn, kind_of, named
from mdft_fast.checkpoints.pickled_metadata import facts_of
from mdft_fast.checkpoints.state import LazyTensors, State
from mdft_fast.checkpoints.torch_file import open_torch
from mdft_fast.checkpoints.torch_values import TensorRef, Unreadable
from mdft_fast.checkpoints.wrapped_names import unwrapped
from mdft_fast.errors import MdftError

_MOST_MODULES = 100_000
_MOST_MEMBERS = 1_000_000  # of all modules; a module that is shared counts at each place
_MOST_CHARACTERS = 1 << 26  # of the members' names
_DEEPEST = 100
_TOWER = "model.visual."  # in task_vectors' ImageEncoder
_TEXT = (
    "transformer.*", "token_embedding.*", "positional_embedding", "text_projection*", "ln_final.*",
    "logit_scale", "logit_bias", "attn_mask", "text.*", "text_model.*",
)  # fmt: skip


class Found(NamedTuple):
    """What a torch file holds.

    Attributes:
        tensors: name -> where it lies.
        left_out: name -> why it is not among them.
        kinds: dotted names of the classes of the modules, where they were pickled whole.
        module: the pickled module, where there is one.
        unreadable: name -> what kind of tensor it is.
    """

    tensors: dict[str, TensorRef]
    left_out: dict[str, str]
    kinds: dict[str, str]
    module: StandIn | None
    unreadable: dict[str, str]


def read_torch(path: Path, choice: Choice = AS_IT_IS, *, legacy: bool) -> State:
    """Opens a file of ``torch.save``: a state dict, a wrapped one, or a whole module.

    Raises:
        MdftError: if the file is damaged, holds no tensors by name, or several models of which the
            choice names none.
    """
    root, elements, check = open_torch(path, legacy=legacy)
    picked = pick(path, root, choice)
    content = _find(path, picked.value, picked.beside)
    kind = "torch, legacy" if legacy else "torch"
    facts, normalize = SourceFacts(), None
    module = content.module
    if module is not None:
        kind += f", pickled {module.kind}"
        content = _tower_alone(content, module)
        facts = facts_of(module, content.kinds)
        attribute = module.attributes.get("normalize")
        normalize = attribute if isinstance(attribute, bool) else None
    if not content.tensors:
        got = f"a {kind_of(root)} without any"
        for name, what in content.unreadable.items():
            got = f"{name!r}, which must be a dense tensor with data and is {what}"
            break
        raise MdftError(f"{path}: must hold tensors by name, got {got}")
    readers = {name: partial(ref.read, elements) for name, ref in content.tensors.items()}
    state = State(
        str(path), LazyTensors(readers), kind, content.left_out, facts, normalize=normalize,
        unreadable=content.unreadable, notes=tuple(picked.notes), check=check,
    )  # fmt: skip
    state = named_part(unwrapped(state), picked.rest)
    return state if picked.settled else check_names(state, picked.choice.weights)


def text_tower(name: str) -> bool:
    """Says whether a name, relative to a CLIP model, belongs to its text tower or its logits."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _TEXT)


def _find(path: Path, root: Any, left_out: dict[str, str]) -> Found:
    if isinstance(root, StandIn):
        return _module(path, root, left_out)
    if not isinstance(root, dict):
        raise MdftError(f"{path}: must hold a state dict or a module, got a {kind_of(root)}")
    found = Found({}, left_out, {}, None, {})
    for key, value in root.items():
        if isinstance(value, TensorRef) and isinstance(key, str):
            found.tensors[key] = value
        elif isinstance(value, Unreadable):
            found.unreadable[named(key)] = value.what
        else:
            left_out[named(key)] = f"not a tensor ({kind_of(value)})"
    return found


def _module(path: Path, root: StandIn, left_out: dict[str, str]) -> Found:
    if not is_module(root):
        raise MdftError(f"{path}: must hold a state dict or a module, got a pickled {root.kind}")
    tensors: dict[str, TensorRef] = {}
    unreadable: dict[str, str] = {}
    kinds: dict[str, str] = {}
    waiting: list[tuple[str, StandIn, frozenset[int]]] = [("", root, frozenset())]
    members = characters = 0
    while waiting:
        prefix, module, above = waiting.pop()
        kinds[prefix] = module.kind
        if len(above) > _DEEPEST or len(kinds) > _MOST_MODULES or id(module) in above:
            raise MdftError(f"{path}: its modules are nested without end")
        state = module.attributes
        unsaved = _unsaved(state)
        members += len(state) + len(unsaved)
        for name, value, must_be_tensor in _members(state):
            members, characters = members + 1, characters + len(prefix) + len(name)
            if members > _MOST_MEMBERS or characters > _MOST_CHARACTERS:
                raise MdftError(
                    f"{path}: its modules must have at most {_MOST_MEMBERS} members with names of "
                    f"{_MOST_CHARACTERS} characters in all, got more"
                )
            if isinstance(value, StandIn) and not must_be_tensor:
                waiting.append((f"{prefix}{name}.", value, above | {id(module)}))
            elif isinstance(value, TensorRef) and name in unsaved:
                left_out[prefix + name] = "buffer that its module does not save"
            elif isinstance(value, TensorRef):
                tensors[prefix + name] = value
            elif isinstance(value, Unreadable):
                unreadable[prefix + name] = value.what
            elif must_be_tensor and value is not None:
                raise MdftError(
                    f"{path}: {prefix + name!r} must be a dense tensor with data, got "
                    f"{kind_of(value)}"
                )
    return Found(dict(sorted(tensors.items())), left_out, kinds, root, unreadable)


def _members(state: Mapping[Any, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yields name, value, and whether it must be a tensor, for all that a module registers."""
    if "_modules" not in state:  # TorchScript: attributes of their own
        yield from ((named(name), value, False) for name, value in state.items())
        return
    for key in ("_parameters", "_buffers", "_modules"):
        items = state.get(key)
        if isinstance(items, dict):
            yield from ((named(name), value, key != "_modules") for name, value in items.items())


def _unsaved(state: Mapping[Any, Any]) -> set[Any]:
    names = state.get("_non_persistent_buffers_set", ())
    if isinstance(names, StandIn):  # set(["name", ...])
        names = names.args[0] if names.args else ()
    return {n for n in names if isinstance(n, str)} if isinstance(names, (list, set)) else set()


def _tower_alone(content: Found, module: StandIn) -> Found:
    """Of task_vectors' ImageEncoder, keeps what its forward uses: CLIP's image tower."""
    tower = {n.removeprefix(_TOWER): t for n, t in content.tensors.items() if n.startswith(_TOWER)}
    if module.kind.rpartition(".")[2] != "ImageEncoder" or not tower:
        return content
    why = "an image encoder's forward does not use it"
    dead = {
        name: f"CLIP's text tower: {why}" if text_tower(name.removeprefix("model.")) else why
        for name in content.tensors
        if not name.startswith(_TOWER)
    }
    kinds = {n.removeprefix(_TOWER): k for n, k in content.kinds.items() if n.startswith(_TOWER)}
    unreadable = {
        n.removeprefix(_TOWER): w for n, w in content.unreadable.items() if n.startswith(_TOWER)
    }
    return Found(tower, {**content.left_out, **dead}, kinds, module, unreadable)
