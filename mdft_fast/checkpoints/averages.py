# SPDX-License-Identifier: Apache-2.0
"""What in a checkpoint is named like an average of weights: EMA, SWA, a teacher."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NoReturn

from mdft_fast.checkpoints.pickle_machine import StandIn, named
from mdft_fast.checkpoints.state import State
from mdft_fast.checkpoints.torch_values import TensorRef
from mdft_fast.checkpoints.wrapped_names import is_counted
from mdft_fast.errors import MdftError

_CLEAR = {"averaged", "ema", "shadow", "swa", "teacher"}
# Optimizers' and norms' tensors have the others too: exp_avg, running_mean.
_WORDS = _CLEAR | {"average", "avg", "mean"}
_SHARE = 0.25  # of a model's tensors that its average has, at least: buffers may not be averaged
_LONGEST = 200  # characters of a key that are looked at
_DEEPEST = 4  # {"callbacks": {"EMA": {"ema_state_dict": ...}}}
_SHOWN = 60  # characters of a place in an error
_MOST = 50  # values that are counted


def words_of(key: str) -> set[str]:
    """Returns the words of a key, in lower case."""
    return set(re.findall(r"[a-z]+", key[:_LONGEST].lower()))


def is_average(key: str) -> bool:
    """Says whether a key beside a model's is named like an average."""
    return bool(words_of(key) & _WORDS)


def average_beside(root: dict[Any, Any], model: str) -> str | None:
    """Returns the first place of a file's dict, as keys, that is named like a model's average.

    It holds tensors enough to be one, in whatever form. None: there is no such place.
    """
    needed = max(1, int(_SHARE * _count(root[model])))
    waiting = [(key, key, value) for key, value in _inside(root) if value is not root[model]]
    seen = {id(root), id(root[model])}
    counted = 0
    for clear in (_WORDS, *[_CLEAR] * (_DEEPEST - 1)):
        deeper: list[tuple[str, str, Any]] = []
        for path, key, value in waiting:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if words_of(key) & clear:
                counted += 1
                if counted > _MOST or _count(value) >= needed:
                    return path[:_SHOWN]
            deeper += [(f"{path}.{k}"[:_LONGEST], k, inner) for k, inner in _inside(value)]
        waiting = deeper
    return None


def check_names(state: State, weights: str | None) -> State:
    """Compares the names of a state dict's tensors with the weights that are wanted.

    Returns:
        The state, with a note where some names are an average's and nothing is wanted.

    Raises:
        MdftError: if raw weights are wanted and all names are an average's, or an average is and
            some are.
    """
    heads, others = _heads(state.tensors)
    if is_counted(state) or not others:
        if weights == "raw":
            refuse_raw(state.label, heads or ["n_averaged"])
        return state
    if not heads or weights == "raw":
        return state
    return replace(state, notes=(*state.notes, not_understood(state.label, heads[0], weights)))


def refuse_raw(path: object, keys: list[str]) -> NoReturn:
    """Refuses what holds an average alone."""
    raise MdftError(
        f"{path}: must hold raw weights, as weights: raw wants them, got an average alone, "
        f"{keys}; weights: ema takes it"
    )


def not_understood(path: object, where: str, weights: str | None) -> str:
    """Returns a note of what is named like an average; refuses it where an average is wanted."""
    if weights is not None:
        raise MdftError(
            f"{path}: must hold an average that is read here, as weights: {weights} wants it, got "
            f"{where!r}, which is named like one and not understood; name a part, or make a file "
            "of it alone; weights: raw takes what is beside it"
        )
    return f"{path}: {where!r} is named like an average of the model, and is left out"


def _heads(names: Iterable[str]) -> tuple[list[str], int]:
    """Returns what names of an average begin with, and how many names are no average's.

    Few names are no average: a codebook's ``ema_count``.
    """
    heads: Counter[str] = Counter()
    others = 0
    for name in names:
        parts = name[:_LONGEST].split(".")
        last = next((i for i, part in enumerate(parts[:-1], 1) if words_of(part) & _CLEAR), 0)
        if last:
            heads[".".join(parts[:last])[:_SHOWN]] += 1
        else:
            others += 1
    return [*islice(heads, 8)] if heads.total() >= max(1, _SHARE * others) else [], others


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the containers in a container, each with its key or place as text."""
    if isinstance(value, StandIn):
        value = value.attributes
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, (dict, list, tuple, StandIn)):
            yield named(key)[:_LONGEST], inner


def _count(value: Any) -> int:
    """Returns how many tensors lie below a container."""
    count, waiting, seen = 0, [value], set()
    while waiting:
        item = waiting.pop()
        if id(item) not in seen:
            seen.add(id(item))
            item = item.attributes if isinstance(item, StandIn) else item
            values = item.values() if isinstance(item, dict) else item
            count += sum(isinstance(value, TensorRef) for value in values)
            waiting += (inner for _, inner in _inside(item))
    return count
