# SPDX-License-Identifier: Apache-2.0
"""Reads a pickle as data. It can execute nothing, since it looks up nothing.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever the
program names. This one has the same stack and no imports: a global is a :class:`Name`, a call of it
is a :class:`StandIn` that records name and arguments. The exceptions are the functions that the
caller passes in. No Python object but plain data ever lies on the stack.

The stream is cut into opcodes by ``pickletools.genops`` of the standard library.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

Functions = Mapping[str, Callable[..., Any]]


class PickleRefused(Exception):
    """The stream is damaged, or does what no checkpoint does. The reader adds the file's name."""


@dataclasses.dataclass(eq=False)
class Name:
    """A global that the pickle names, such as ``torch.float16``; never looked up.

    Attributes:
        name: module and name, joined by a dot.
    """

    name: str


@dataclasses.dataclass(eq=False)
class StandIn:
    """What the pickle wanted built; only a record.

    Attributes:
        kind: dotted name of what it wanted to call.
        args: with which arguments.
        state: what it wanted the object to be given (``__setstate__`` or attributes).
        elements: what it wanted appended or added.
        entries: what it wanted set by key.
    """

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None
    elements: list[Any] = dataclasses.field(default_factory=list)
    entries: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def attributes(self) -> dict[Any, Any]:
        """The object's attributes, as far as the pickle gives them."""
        if isinstance(self.state, dict):
            return self.state
        parts = self.state[:2] if isinstance(self.state, tuple) else ()  # __dict__, __slots__
        return {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}


def kind_of(value: Any) -> str:
    """Returns what a value is, in one word for an error; never its content."""
    if isinstance(value, StandIn):
        return value.kind
    return value.name if isinstance(value, Name) else type(value).__name__


def named(key: Any) -> str:
    """Returns a key as text; its kind alone where that may hold more than a few characters."""
    return str(key) if isinstance(key, (str, int)) else kind_of(key)


class Machine:
    """Runs pickles, in time and memory that grow with their length alone.

    Args:
        functions: dotted name of a global -> what stands for it when it is called; they get what
            the pickle passes and must check it.
        persistent: called with each persistent id.
    """

    def __init__(self, functions: Functions, persistent: Callable[[Any], Any]) -> None:
        self._functions = {**functions, **dict.fromkeys(_RECONSTRUCTORS, _reconstruct)}
        self._persistent: Callable[[Any], Any] = persistent

    def run(self, stream: BytesIO) -> Any:
        """Reads one pickle and leaves the stream behind it.

        Raises:
            PickleRefused: if the stream is damaged or has an opcode that no checkpoint needs.
        """
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._passed = 0  # items of containers that known functions got; each may copy them
        self._tuple_keys = 0
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except PickleRefused:
            raise
        except Exception as error:  # a damaged stream may do anything, in genops or to the stack
            raise PickleRefused(f"damaged pickle ({type(error).__name__}: {error})") from None
        raise PickleRefused("damaged pickle (no end)")

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name]())
        elif name in _GET:
            self._push(self._memo[int(argument)])
        elif name in _PUT:
            self._memo[len(self._memo) if name == "MEMOIZE" else int(argument)] = self._stack[-1]
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _NOTHING:
            raise PickleRefused(f"opcode {name} has no place in a checkpoint")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _drop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _dict(self, _: Any) -> None:
        made: dict[Any, Any] = {}
        self._set_items(made, self._pop_mark())
        self._push(made)

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, (list, StandIn)):
            (target if isinstance(target, list) else target.elements).extend(items)
        elif isinstance(target, set):
            target.update(self._key(item) for item in items)
        else:
            raise PickleRefused(f"appends to {kind_of(target)}")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, (dict, StandIn)):
            raise PickleRefused(f"sets items of {kind_of(target)}")
        self._set_items(target if isinstance(target, dict) else target.entries, items)

    def _name(self, argument: str) -> None:
        self._push(Name(argument.replace(" ", ".", 1)))

    def _stack_name(self, _: Any) -> None:
        module, name = self._pop(2)
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleRefused("names a global that is no text")
        if len(name) + len(module) > _LONGEST_NAME:
            raise PickleRefused(f"names a global of more than {_LONGEST_NAME} characters")
        self._push(Name(f"{module}.{name}"))

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):  # of a list each call would make a copy
            raise PickleRefused(f"passes {kind_of(arguments)} as arguments, not a tuple")
        name = kind_of(function)
        known = self._functions.get(name) if isinstance(function, Name) else None
        if known is None:
            self._push(StandIn(name, arguments))
            return
        self._passed += sum(len(a) for a in (arguments, *arguments[:9]) if isinstance(a, _SIZED))
        if len(arguments) > 9 or self._passed > _MOST_PASSED:
            raise PickleRefused(f"passes too many arguments to {name}")
        self._push(known(*arguments))

    def _new_with_keywords(self, _: Any) -> None:
        kind, arguments, keywords = self._pop(3)
        self._push(StandIn(kind_of(kind), (arguments, keywords)))

    def _old_instance(self, argument: str) -> None:
        arguments = tuple(self._pop_mark())
        self._call(Name(argument.replace(" ", ".", 1)), arguments)

    def _old_object(self, _: Any) -> None:
        function, *arguments = self._pop_mark()
        self._call(function, tuple(arguments))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, StandIn):
            target.state = state  # of a plain dict or tensor: attributes such as _metadata, unused

    def _set_items(self, target: dict[Any, Any], items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._key(key)] = value

    def _key(self, value: Any) -> Any:
        """Refuses keys that are slow to hash, or that can be made to share one hash.

        A tuple of tuples of ... takes exponential time; ints are hashed modulo 2**61 - 1, so a
        dict of its multiples takes quadratic time; a tuple's hash is no secret either.
        """
        flat = value if isinstance(value, tuple) else (value,)
        if flat is value:
            self._tuple_keys += 1
        if len(flat) > 8 or self._tuple_keys > _MOST_TUPLE_KEYS:
            raise PickleRefused("uses too many or too long tuples as keys")
        for item in flat:
            by_place: object = object.__hash__
            hashed = isinstance(item, _HASHED) or type(item).__hash__ is by_place
            if item is not None and not hashed:  # objects are hashed by where they are
                raise PickleRefused(f"uses {kind_of(value)} as a key")
            if isinstance(item, int) and not -(2**63) <= item < 2**64:
                raise PickleRefused("uses a number of more than 64 bits as a key")
        return value


def _reconstruct(kind: Any, *_: Any) -> StandIn:
    return StandIn(kind_of(kind))


_LONGEST_NAME = 1000
_MOST_PASSED = 2_000_000
_MOST_TUPLE_KEYS = 5000
_SIZED = (tuple, list, dict, set, str, bytes, bytearray)
_HASHED = (str, bytes, int, float)
_RECONSTRUCTORS = ("copyreg._reconstructor", "copy_reg._reconstructor")
_NOTHING = {"PROTO", "FRAME"}
_PUSH = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_STEPS: dict[str, Callable[[Machine, Any], object]] = {
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": lambda machine, _: machine._pop_mark(),
    "DUP": lambda machine, _: machine._push(machine._stack[-1]),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, _: machine._push(tuple(machine._pop(1))),
    "TUPLE2": lambda machine, _: machine._push(tuple(machine._pop(2))),
    "TUPLE3": lambda machine, _: machine._push(tuple(machine._pop(3))),
    "LIST": lambda machine, _: machine._push(machine._pop_mark()),
    "DICT": Machine._dict,
    "FROZENSET": lambda machine, _: machine._push(set(map(machine._key, machine._pop_mark()))),
    "APPEND": lambda machine, _: machine._append(machine._pop(1)),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "ADDITEMS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine._set(machine._pop(2)),
    "SETITEMS": lambda machine, _: machine._set(machine._pop_mark()),
    "GLOBAL": Machine._name,
    "STACK_GLOBAL": Machine._stack_name,
    "REDUCE": lambda machine, _: machine._call(*machine._pop(2)),
    "NEWOBJ": lambda machine, _: machine._call(*machine._pop(2)),
    "NEWOBJ_EX": Machine._new_with_keywords,
    "INST": Machine._old_instance,
    "OBJ": Machine._old_object,
    "BUILD": Machine._build,
    "PERSID": lambda machine, argument: machine._push(machine._persistent(argument)),
    "BINPERSID": lambda machine, _: machine._push(machine._persistent(machine._stack.pop())),
}
