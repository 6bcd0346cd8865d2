# SPDX-License-Identifier: Apache-2.0
"""A block's call, and what can be observed while a module runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Side = Literal["in", "out"]


class Point(NamedTuple):
    """The first tensor that goes into a module, or comes out of it."""

    side: Side
    module: str


def both_sides(modules: Iterable[str]) -> list[Point]:
    """Returns what goes in and what comes out of modules, one after the other."""
    return [Point(side, module) for module in modules for side in get_args(Side)]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a block; the first tensor among them is the stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def stream(self) -> Tensor:
        """The hidden states that go in."""
        stream = first_tensor((*self.args, *self.kwargs.values()))
        assert stream is not None
        return stream

    def following(self, output: Any) -> Call:
        """Returns the next block's call: this one's with the output in the stream's place."""
        return self.of(first_tensor(output))

    def of(self, hidden: Tensor | None) -> Call:
        """Returns this call with another tensor in the stream's place."""
        old = self.stream
        return self._each(lambda value: hidden if value is old else value)

    def to(self, device: torch.device) -> Call:
        """Returns this call with its tensors on a device."""
        return self._each(lambda value: value.to(device) if isinstance(value, Tensor) else value)

    def _each(self, function: Callable[[Any], Any]) -> Call:
        args = tuple(map(function, self.args))
        return Call(args, {name: function(value) for name, value in self.kwargs.items()})


def first_tensor(values: Any) -> Tensor | None:
    """Returns a tensor, or the first one of a sequence or of a mapping."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, Sequence) and not isinstance(values, str):
        return next((value for value in values if isinstance(value, Tensor)), None)
    return None


def with_first_tensor(values: Any, tensor: Tensor) -> Any:
    """Returns a module's output with another tensor in the place of its first one."""
    old = first_tensor(values)
    if values is old:
        return tensor
    if isinstance(values, dict):
        changed = {name: tensor if value is old else value for name, value in values.items()}
        return type(values)(changed)
    entries = [tensor if value is old else value for value in values]
    return type(values)(*entries) if hasattr(values, "_fields") else type(values)(entries)


class Stopped(Exception):
    """Ends a forward pass that has gone far enough."""


@contextlib.contextmanager
def observed(
    module: nn.Module, points: Iterable[Point], see: Callable[[Point, Tensor], Tensor | None]
) -> Iterator[None]:
    """Lets ``see`` look at points of a module for the length of a ``with``.

    Args:
        module: whose submodules the points name.
        points: where to look.
        see: gets point and tensor in the order of execution. What it returns for an "out" point
            goes on in the tensor's place; :class:`Stopped` ends the pass.
    """
    handles = []
    for point in points:
        part = module.get_submodule(point.module)
        if point.side == "in":
            handles.append(part.register_forward_pre_hook(_before(point, see), with_kwargs=True))
        else:
            handles.append(part.register_forward_hook(_after(point, see)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(point: Point, see: Callable[[Point, Tensor], Tensor | None]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = first_tensor((*args, *kwargs.values()))
        if tensor is not None:
            see(point, tensor)

    return hook


def _after(point: Point, see: Callable[[Point, Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        tensor = first_tensor(output)
        changed = None if tensor is None else see(point, tensor)
        return None if changed is None else with_first_tensor(output, changed)

    return hook
