# SPDX-License-Identifier: Apache-2.0
"""Which of a file's state dicts is the model: raw weights, their average, or a part by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, get_args

from mdft_fast.checkpoints.averages import (
    average_beside,
    is_average,
    not_understood,
    refuse_raw,
    words_of,
)
from mdft_fast.checkpoints.pickle_machine import StandIn, named
from mdft_fast.checkpoints.state import State, renamed
from mdft_fast.checkpoints.torch_values import TensorRef
from mdft_fast.checkpoints.wrapped_names import without_wrappers
from mdft_fast.errors import MdftError, nearest

Weights = Literal["ema", "raw"]

# Keys of wrappers. "module" is DeepSpeed's, "student" DINO's.
_RAW = ("state_dict", "model_state_dict", "model", "net", "params", "module", "network", "student")
# Averages that their own library takes where a file has both: timm twice, BasicSR, DINO.
_TAKEN = {"state_dict_ema": "timm", "model_ema": "timm", "params_ema": "BasicSR", "teacher": "DINO"}
_CURRENT = "current_model_state"  # Lightning's raw weights, beside a "state_dict" that is averaged
# Words of a key that holds another version of the same model, if no average of it.
_VERSIONS = {"best", "last", "final", "init", "initial"}
_SHOWN = 60  # characters of a name, and names, in an error
_DEEPEST = 4  # {"state_dict": {"model": ...}}
_MOST_VERSIONS = 50  # that are looked at; two are too many already
_ALIKE = 0.5  # share of names that two versions of one model have in common, at least


@dataclass(frozen=True)
class Choice:
    """What is wanted of a file that holds several models.

    Attributes:
        weights: of :data:`Weights`, where a file has both; None: what its own library takes, where
            that is known. A file that has no word of an average has one model, which either takes.
        part: a key of the file, or what names begin with before a dot, or both, as ``teacher``,
            ``ema.module`` and ``state_dict.model``; None: the file's model.
    """

    weights: str | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.weights not in (None, *get_args(Weights)):
            raise MdftError(f"weights: must be 'ema' or 'raw', got {self.weights!r}")


AS_IT_IS = Choice()


@dataclass
class Picked:
    """What a file's content was narrowed down to.

    Attributes:
        value: a state dict or a module, as far as that was found.
        beside: key -> why it is not in it.
        rest: of ``part`` what was no key: names begin with it.
        notes: what was chosen without being asked for.
        choice: what is still to be looked for; of no weights and settled, where that was found.
        settled: whether it is known which of raw weights and average the value is.
    """

    value: Any
    beside: dict[str, str]
    rest: str
    notes: list[str]
    choice: Choice
    settled: bool

    def settle(self) -> None:
        """Says that the value is what was wanted."""
        self.choice, self.settled = AS_IT_IS, True


def pick(path: object, root: Any, choice: Choice) -> Picked:
    """Narrows a torch file's content down to one state dict or module.

    Raises:
        MdftError: if several would do, and neither the choice nor a library's rule says which, or
            if the weights that are wanted are not there.
    """
    picked = Picked(root, {}, "", [], choice, settled=choice.part is not None)
    if choice.part is not None:
        picked.rest = choice.part
        while isinstance(picked.value, dict) and (key := _key_of(picked)) is not None:
            _enter(picked, key)
            picked.rest = picked.rest[len(key) + 1 :]
    if picked.value is not root:
        picked.settle()
    for _ in range(_DEEPEST):
        chosen = _inner(path, picked)
        if chosen is None:
            break
        _enter(picked, chosen)
    return picked


def named_part(state: State, prefix: str) -> State:
    """Returns the tensors whose names begin with a prefix and a dot, without both.

    Raises:
        MdftError: if there are none; it says what there is.
    """
    if not prefix:
        return state
    begins = f"{prefix}."
    names = {name.removeprefix(begins): name for name in state.tensors if name.startswith(begins)}
    if not names:
        known = sorted({name[:_SHOWN].split(".", 1)[0] for name in state.tensors})
        some = f"{known[:8]}{' and more' if known[8:] else ''}"
        raise MdftError(
            f"{state.label}: part must be a key of the file or what its names begin with, as one "
            f"of {some}, got {prefix!r}{nearest(prefix, known[:_SHOWN])}"
        )
    others = [name for name in state.tensors if not name.startswith(begins)]
    left_out = {**state.left_out, **dict.fromkeys(others, f"stands beside part {prefix!r}")}
    back = {old: new for new, old in names.items()}
    formed = frozenset(back[name] for name in state.formed if name in back)
    unreadable = {
        n.removeprefix(begins): why for n, why in state.unreadable.items() if n.startswith(begins)
    }
    return replace(
        state, tensors=renamed(state.tensors, names), left_out=left_out, formed=formed,
        unreadable=unreadable,
    )  # fmt: skip


def is_module(value: Any) -> bool:
    """Says whether a stand-in is a module's."""
    return isinstance(value, StandIn) and (
        "_modules" in value.attributes or value.kind.startswith("__torch__.")
    )


def _key_of(picked: Picked) -> str | None:
    """Returns the longest key that the wanted part begins with."""
    rest = picked.rest
    keys = [k for k in picked.value if isinstance(k, str) and k and f"{rest}.".startswith(f"{k}.")]
    known: dict[int, bool] = {}
    keys = [key for key in keys if _holds_tensors(picked.value[key], known)]
    return max(keys, key=len, default=None)


def _enter(picked: Picked, key: str) -> None:
    others = (named(other) for other in picked.value if other != key)
    picked.beside |= dict.fromkeys(others, f"stands beside {key!r}")
    picked.value = picked.value[key]


def _inner(path: object, picked: Picked) -> str | None:
    """Returns the key to go on with; None: the value is what is looked for."""
    root = picked.value
    if not isinstance(root, dict):
        return None
    known: dict[int, bool] = {}
    holding = [k for k in root if isinstance(k, str) and _holds_tensors(root[k], known)]
    averages = {key for key in holding if is_average(key) or key in _TAKEN}
    if _CURRENT in holding:
        averages |= {"state_dict"} & set(holding)
    raw = [key for key in (*_RAW, _CURRENT) if key in holding and key not in averages]
    if raw or averages:
        first = next(key for key in (*raw, *holding) if key in raw or key in averages)
        chosen = _among(path, [first, *_rivals(root, holding, first)], averages, picked)
    elif any(isinstance(value, TensorRef) for value in root.values()):
        return None
    elif len(holding) > 1:
        raise MdftError(
            f"{path}: must hold one model, got {_shown(holding)}; name one as part (a recipe's "
            "pool.part, of `mdft convert` --part)"
        )
    elif not holding:
        return _empty_wrapper(root)
    else:
        chosen = holding[0]
    if not picked.settled and picked.choice.weights != "raw":
        where = average_beside(root, chosen)
        if where is not None:
            picked.notes.append(not_understood(path, where, picked.choice.weights))
    return chosen


def _among(path: object, found: list[str], averages: set[str], picked: Picked) -> str:
    """Returns the key of the version that is wanted; a rule of its library's is noted."""
    averaged = [key for key in found if key in averages]
    plain = [key for key in found if key not in averages]
    wanted = picked.choice.weights
    if wanted == "raw" and not plain:
        refuse_raw(path, _shown(averaged))
    some = {"ema": averaged, "raw": plain}.get(wanted or "", []) if averaged else []
    if len(some) == 1:
        picked.settle()
        return some[0]
    if len(found) == 1:
        return found[0]
    if wanted is None and len(plain) == len(averaged) == 1:
        library = "Lightning" if plain[0] == _CURRENT else _TAKEN.get(averaged[0])
        if library is not None:
            picked.settle()
            picked.notes.append(
                f"{path}: {averaged[0]!r} is taken, as {library} does, not {plain[0]!r} beside it; "
                "weights: raw takes that"
            )
            return averaged[0]
    said = f", as weights or part: {found[0]!r}" if averaged else ", as part"
    raise MdftError(
        f"{path}: holds several versions of one model, "
        f"{_shown([*plain[:1], *averaged, *plain[1:]])}; say which is wanted{said} (a recipe's "
        "pool.weights, ema or raw, or pool.part; of `mdft convert` --weights or --part)"
    )


def _shown(keys: list[str]) -> list[str]:
    return [key[:_SHOWN] for key in keys[:8]]


def _rivals(root: Mapping[Any, Any], holding: list[str], first: str) -> Iterator[str]:
    """Yields other keys that hold the same model: of the same names, under a key that says so."""
    mine, stored = _names(root[first]), _storages(root[first])
    others = (k for k in holding if _is_version(k))
    for key in islice(others, _MOST_VERSIONS):
        if key == first:
            continue
        theirs = _names(root[key])
        alike = mine is None or theirs is None or len(mine & theirs) >= _ALIKE * len(mine)
        if alike and not _storages(root[key]) & stored:  # else a module and its own state dict
            yield key


def _names(value: Any) -> set[str] | None:
    """Returns the names of a state dict, maybe wrapped again; None for a module."""
    for _ in range(_DEEPEST):
        if not isinstance(value, dict):
            return None
        names = [k for k, v in value.items() if isinstance(k, str) and isinstance(v, TensorRef)]
        inner = next((key for key in _RAW if _holds_tensors(value.get(key), {})), None)
        if inner is None:
            return set(without_wrappers(names))
        value = value[inner]
    return None


def _storages(value: Any) -> set[str]:
    """Returns the keys of the storages below a value: one weight under two names has one."""
    found: set[str] = set()
    waiting: list[Any] = [value]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, TensorRef):
            found.add(item.storage.key)
        elif isinstance(item, (dict, StandIn)):
            waiting += (item if isinstance(item, dict) else item.attributes).values()
    return found


def _empty_wrapper(root: Mapping[Any, Any]) -> str | None:
    return next((key for key in _RAW if isinstance(root.get(key), dict)), None)


def _holds_tensors(value: Any, known: dict[int, bool]) -> bool:
    """Says whether a value is a module, or a dict of tensors, maybe wrapped again.

    ``known`` keeps the answers by id: a file may hold one dict under many keys, or in itself.
    """
    if not isinstance(value, dict):
        return is_module(value)
    if id(value) not in known:
        known[id(value)] = False
        known[id(value)] = any(
            isinstance(v, TensorRef) and isinstance(k, str) for k, v in value.items()
        ) or any(_holds_tensors(value.get(key), known) for key in _RAW)
    return known[id(value)]


def _is_version(key: str) -> bool:
    known = key in _RAW or key in _TAKEN or key == _CURRENT
    return known or is_average(key) or bool(words_of(key) & _VERSIONS)
