# SPDX-License-Identifier: Apache-2.0
"""A backbone cut into pieces whose weights can be merged, used and dropped one after another.

The pieces are the blocks, ``blocks.3`` say, and what lies outside of them. A model uses the outside
before its first block and after its last one (stem and tail), so that piece is merged twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mdft_fast.arena import TILE, Layout, Slot
from mdft_fast.errors import MdftError, nearest
from mdft_fast.model.granularity import block_of

Owner = tuple[dict[str, Any], str]  # a module's parameters and the name among them
Range = tuple[int, int]  # tiles of the arena, the first and one past the last

OUTSIDE = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Tensors whose merged weights live and die together.

    Attributes:
        name: the block's module, or ``OUTSIDE``.
        ranges: its tiles of the arena, rising and apart.
        numbers: its tensors' numbers in the layout, rising.
        owners: for each of them, the places that hold it (ties: several).
    """

    name: str
    ranges: tuple[Range, ...]
    numbers: tuple[int, ...]
    owners: tuple[tuple[Owner, ...], ...]

    @property
    def elements(self) -> int:
        """Number of elements, padding included."""
        return sum(last - first for first, last in self.ranges) * TILE


def find_owners(
    module: nn.Module, layout: Layout, ties: Mapping[str, str]
) -> list[tuple[Owner, ...]]:
    """Returns, for each tensor of a layout, the places in a module that hold it (ties: several)."""
    owners = []
    for names in names_of(layout, ties):
        parts = (name.rpartition(".") for name in names)
        owners.append(
            tuple((module.get_submodule(path)._parameters, leaf) for path, _, leaf in parts)
        )
    return owners


def names_of(layout: Layout, ties: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Returns each tensor's name and those of the tensors that are tied to it."""
    aliases: dict[str, list[str]] = {}
    for name, first in ties.items():
        aliases.setdefault(first, []).append(name)
    return [(slot.name, *aliases.get(slot.name, ())) for slot in layout.slots]


def find_blocks(module: nn.Module, layout: Layout, named: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of the modules that are blocks.

    Args:
        module: the backbone.
        layout: its tensors.
        named: names of modules; a ModuleList or Sequential stands for its members. None: what
            lies under the first number in a parameter's name, as for granularity "block".

    Raises:
        MdftError: if there is no such module, none at all, or one lies inside another.
    """
    if named is None:
        block_names = block_of([slot.name for slot in layout.slots])
        blocks = [
            name for name in dict.fromkeys(block_names.values()) if name not in ("stem", "tail")
        ]
    else:
        blocks = [block for name in named for block in _members(module, name)]
    first: dict[int, str] = {}  # one module under several names is one block
    for name in blocks:
        first.setdefault(id(module.get_submodule(name)), name)
    blocks = list(first.values())
    if not blocks:
        raise MdftError(
            "meta-model: mode 'layerwise' needs blocks, got a backbone without numbered modules; "
            "name them (blocks=[...]) or use mode 'resident'"
        )
    for one in blocks:
        for other in blocks:
            if other.startswith(one + "."):
                raise MdftError(f"blocks: must not hold each other, got {other!r} in {one!r}")
    return tuple(blocks)


def _members(module: nn.Module, name: str) -> Iterator[str]:
    known = [path for path, _ in module.named_modules() if path]
    if name not in known:
        raise MdftError(
            f"blocks: must name modules of the backbone, got {name!r}{nearest(name, known)}"
        )
    inside = module.get_submodule(name)
    if isinstance(inside, (nn.ModuleList, nn.Sequential)):
        yield from (f"{name}.{i}" for i in range(len(inside)))
    else:
        yield name


def cut(
    module: nn.Module, layout: Layout, ties: Mapping[str, str], blocks: Sequence[str]
) -> tuple[Piece, tuple[Piece, ...]]:
    """Returns what lies outside of the blocks, and the blocks.

    A tensor that is tied across pieces belongs to each of them.
    """
    members: dict[str, dict[int, tuple[Owner, ...]]] = {name: {} for name in (OUTSIDE, *blocks)}
    owners = find_owners(module, layout, ties)
    for number, names in enumerate(names_of(layout, ties)):
        homes = [_home(name, blocks) for name in names]
        for home in homes:
            places = zip(owners[number], homes, strict=True)
            members[home][number] = tuple(place for place, at in places if at == home)
    pieces = [
        Piece(
            name,
            _ranges([layout.slots[number] for number in piece_owners]),
            tuple(piece_owners),
            tuple(piece_owners.values()),
        )
        for name, piece_owners in members.items()
    ]
    return pieces[0], tuple(pieces[1:])


class Absent:
    """Stands where a weight is not merged now, and refuses every use in words.

    None would not do: to many a module it means that it has no such weight.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuses to be an argument of any of torch's functions."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Absent):
                leaf._refuse()

    def __getattr__(self, attribute: str) -> Any:
        """Refuses to be looked at: ``weight.dtype``, say."""
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        self._refuse()

    def __bool__(self) -> bool:
        """Refuses to be tested."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise MdftError(
            f"meta-model: {self._name} is used outside of the block that holds it, or between two "
            f"blocks; name the modules that run one after another (blocks=[...]), or use mode "
            f"'resident'"
        )


@contextlib.contextmanager
def installed(
    owners: Iterable[tuple[Owner, ...]], weights: Iterable[Tensor | Absent]
) -> Iterator[None]:
    """Puts weights into the places that hold them, for the length of a ``with``.

    What was there comes back: a weight that stayed would keep its graph alive.
    """
    before = []
    for places, weight in zip(owners, weights, strict=True):
        for parameters, name in places:
            before.append((parameters, name, parameters[name]))
            parameters[name] = weight
    try:
        yield
    finally:
        for parameters, name, value in before:
            parameters[name] = value


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls another function in place of a module's ``forward``, for the length of a ``with``."""
    patch = module.__dict__.get("forward")  # of the instance: a patched block's
    module.forward = forward
    try:
        yield
    finally:
        if patch is None:
            del module.forward
        else:
            module.forward = patch


def _home(name: str, blocks: Sequence[str]) -> str:
    return next((block for block in blocks if name.startswith(block + ".")), OUTSIDE)


def _ranges(slots: Sequence[Slot]) -> tuple[Range, ...]:
    ranges: list[Range] = []
    for slot in slots:
        first, last = slot.tile, slot.tile + slot.tiles
        if ranges and ranges[-1][1] == first:
            ranges[-1] = ranges[-1][0], last
        else:
            ranges.append((first, last))
    return tuple(ranges)
