# SPDX-License-Identifier: Apache-2.0
"""Options as the fields of a frozen dataclass: types, choices, bounds, defaults and words, once.

A choice is a ``Literal``, bounds are an ``Interval`` in ``Annotated``, and the words are the
field's entry in the class docstring's ``Attributes:``. Its first sentence is the one line for a
reader in a hurry. The recipe's sections, `mdft init` and the tables of docs are made of these.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import operator
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

from mdft_fast.errors import MdftError, nearest

try:
    from annotated_types import Interval as Interval  # comes with pydantic, which reads it too
except ImportError:  # the library alone, without its program

    @dataclasses.dataclass(frozen=True)
    class Interval:  # type: ignore[no-redef]
        """Bounds of a number; None: none."""

        gt: float | None = None
        ge: float | None = None
        lt: float | None = None
        le: float | None = None


Positive = Annotated[int, Interval(ge=1)]
Weight = Annotated[float, Interval(ge=0)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]  # what torch's generators take


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a dataclass of options.

    Attributes:
        name: the field's.
        type: its annotation, ``Annotated`` included.
        default: its default; ``dataclasses.MISSING`` where it must be given.
        words: what the class docstring says of it, without the last full stop.
    """

    name: str
    type: Any
    default: Any
    words: str

    @property
    def meaning(self) -> str:
        """The first sentence of ``words``."""
        return first_sentence(self.words)


@functools.cache
def options(config: type) -> tuple[Option, ...]:
    """Returns the options of a dataclass, in the order of its fields."""
    hints = typing.get_type_hints(config, include_extras=True)
    return tuple(
        Option(field.name, hints[field.name], field.default, words_of(config, field.name))
        for field in dataclasses.fields(config)
    )


def words_of(cls: type, name: str) -> str:
    """Returns what a class docstring, or else a base's, says of an attribute; "" for nothing."""
    for owner in cls.__mro__:
        entry = _entries(owner).get(name)
        if entry:
            return entry
    return ""


def first_sentence(words: str) -> str:
    """Returns what stands before the first full stop that something follows."""
    return words.partition(". ")[0]


@functools.cache
def _entries(owner: type) -> dict[str, str]:
    _, _, section = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(entry.split()).removesuffix(".") for name, entry in entries}


class Kind(typing.NamedTuple):
    """An annotation, taken apart.

    Attributes:
        type: bool, int, float, str or another class.
        choices: a ``Literal``'s; empty for others.
        interval: bounds of a number.
        nullable: whether None is one of the values.
    """

    type: Any
    choices: tuple[Any, ...] = ()
    interval: Interval = Interval()
    nullable: bool = False

    def wanted(self) -> str:
        """Returns what a value must be, in words."""
        if self.choices:
            return f"one of {list(self.choices)}" if len(self.choices) > 1 else str(*self.choices)
        if self.type is bool:
            return "true or false"
        bounds: Any = self.interval
        if self.type is int:
            least = "" if bounds.ge is None else f" >= {bounds.ge}"
            if bounds.le is not None:
                least = f" in [{bounds.ge}, {bounds.le}]"
            return f"a whole number{least.replace(' >= 1', ' above 0')}"
        if (bounds.ge, bounds.gt) != (None, None) and (bounds.le, bounds.lt) != (None, None):
            start = f"({bounds.gt}" if bounds.ge is None else f"[{bounds.ge}"
            return f"in {start}, " + (f"{bounds.lt})" if bounds.le is None else f"{bounds.le}]")
        if bounds.gt is not None:
            return f"above {bounds.gt}"
        return "a finite number" if bounds.ge is None else f"a finite number >= {bounds.ge}"

    def holds(self, value: Any) -> bool:
        """Tells whether a value is of this kind; of classes that are no numbers, any is."""
        if value is None:
            return self.nullable
        if self.choices:
            return value in self.choices
        if self.type in (int, float):
            numeric = numbers.Integral if self.type is int else numbers.Real
            is_number = isinstance(value, numeric) and not isinstance(value, bool)
            return is_number and _inside(value, self.interval)
        return isinstance(value, bool) or self.type is not bool


def kind_of(annotation: Any) -> Kind:
    """Takes an annotation apart."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return Kind(str, inner)
    if origin is Annotated:
        bounds = [extra for extra in inner[1:] if isinstance(extra, Interval)]
        kind = kind_of(inner[0])
        return kind._replace(interval=bounds[0]) if bounds else kind
    if origin in (typing.Union, types.UnionType) and type(None) in inner and len(inner) == 2:
        (rest,) = (part for part in inner if part is not type(None))
        return kind_of(rest)._replace(nullable=True)
    return Kind(annotation)


def _inside(value: float, interval: Interval) -> bool:
    limits: list[tuple[Callable[[Any, Any], bool], Any]] = [
        (operator.gt, interval.gt),
        (operator.ge, interval.ge),
        (operator.lt, interval.lt),
        (operator.le, interval.le),
    ]
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond floats
        return False
    return finite and all(holds(value, limit) for holds, limit in limits if limit is not None)


def check(config: Any, section: str) -> None:
    """Refuses a dataclass of options that holds a value of another kind than its field's.

    Raises:
        MdftError: ``section.field: must be …, got …``.
    """
    cls: Any = type(config)
    for option in options(cls):
        value, kind = getattr(config, option.name), kind_of(option.type)
        if not kind.holds(value):
            hint = nearest(str(value), map(str, kind.choices))
            raise MdftError(
                f"{section}.{option.name}: must be {kind.wanted()}, got {value!r}{hint}"
            )
