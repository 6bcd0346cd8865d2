# SPDX-License-Identifier: Apache-2.0
"""Sorts a backbone's tensors into those that are merged and those that are not, with why."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence, Set

import torch
from torch import Tensor, nn

from mdft_fast.checkpoints import State
from mdft_fast.errors import MdftError, nearest

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTER = "num_batches_tracked"  # BatchNorm's step counter: eval mode never reads it


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What a backbone holds, by name as in its state dict.

    Attributes:
        merged: name -> shape of each parameter that is merged, in the arena's order.
        kept: name -> shape of each tensor whose value is the base's: buffers, frozen parameters.
        optional: those of ``kept`` that a checkpoint may lack.
        aliases: second name of a tied parameter -> its first name.
        left_out: name -> why, for everything that is not merged.
        file_names: name -> the name that the backbone's library writes to files, where it differs;
            from the module's ``checkpoint_names``, which its builder leaves there.
    """

    merged: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, tuple[int, ...]]
    optional: frozenset[str]
    aliases: Mapping[str, str]
    left_out: Mapping[str, str]
    file_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def spoken(self, name: str) -> tuple[str, ...]:
        """Returns a tensor's name and those that are tied to it."""
        return (name, *(a for a, original in self.aliases.items() if original == name))

    @property
    def must_have(self) -> set[str]:
        """Every name under which there is a tensor that a checkpoint must have."""
        first = {n for n in (*self.merged, *self.kept) if n not in self.optional}
        return first | {alias for alias, name in self.aliases.items() if name in first}

    @property
    def names(self) -> set[str]:
        """Every name that a checkpoint may hold."""
        return {*self.merged, *self.kept, *self.aliases}


def take_inventory(backbone: nn.Module) -> Inventory:
    """Sorts the tensors of a module's state dict. The module is only looked at."""
    state = {
        name: value
        for name, value in backbone.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    merged: dict[str, tuple[int, ...]] = {}
    left_out: dict[str, str] = {}
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        if name not in state:
            raise MdftError(f"backbone: parameter {name!r} is missing from its state dict")
        original = first.setdefault(id(parameter), name)
        if original != name:
            aliases[name] = original
            left_out[name] = tied_to(original)
        elif not parameter.is_floating_point():
            left_out[name] = f"not a floating-point tensor ({parameter.dtype})"
        elif not parameter.requires_grad:
            left_out[name] = "frozen by the user (requires_grad=False)"
        else:
            merged[name] = tuple(parameter.shape)
    for name, value in state.items():
        if name not in merged and name not in left_out:
            left_out[name] = "buffer" if value.is_floating_point() else f"buffer ({value.dtype})"
    if not merged:
        raise MdftError("backbone: no floating-point parameter requires grad, nothing to merge")
    kept = {n: tuple(state[n].shape) for n in left_out if n not in aliases}
    optional = frozenset(n for n in kept if not state[n].is_floating_point())
    file_names = dict(getattr(backbone, "checkpoint_names", {}))
    return Inventory(merged, kept, optional, aliases, left_out, file_names)


def tied_to(original: str) -> str:
    """Returns why a parameter is left out that is another one's second name."""
    return f"tied to {original!r}"


def lent_by_base(base: State, models: Sequence[State], inventory: Inventory) -> set[str]:
    """Returns the backbone's tensors that the base has and no model: not trained, so the base's.

    Few may be: what lacks half of the tensors is no model of this backbone.
    """
    must = [name for name in inventory.merged if not _holds(base, inventory, name)]
    if must:
        return set()  # an error of the base
    lent = {
        name
        for name in (*inventory.merged, *inventory.kept)
        if name not in inventory.optional
        and not any(_holds(model, inventory, name) for model in models)
    }
    return lent if 2 * len(lent) < len(inventory.merged) else set()


def match_keys(
    state: State,
    inventory: Inventory,
    ignore: Sequence[str],
    lent: Set[str] = frozenset(),
    alone: Set[str] = frozenset(),
) -> dict[str, str]:
    """Checks a checkpoint's keys against the backbone's.

    Args:
        state: the checkpoint, under the backbone's names.
        inventory: the backbone's.
        ignore: patterns of keys that may be there.
        lent: names that it need not have.
        alone: extra keys that it alone has, and may.

    Returns:
        Extra key -> why it is left out.

    Raises:
        MdftError: if a key is missing, or there is an extra one that no pattern matches.
    """
    keys, known = set(state.tensors), inventory.names
    ignored = {}
    extra = []
    for name in state.tensors:
        pattern = next((p for p in ignore if fnmatch.fnmatchcase(name, p)), None)
        if name not in known and pattern is not None:
            ignored[name] = f"not in the backbone; ignored by pattern {pattern!r}"
        elif name in alone:
            ignored[name] = "not in the backbone nor in any model; the base alone has it"
        elif name not in known:
            extra.append(name)
    must = [n for n in (*inventory.merged, *inventory.kept) if n not in inventory.optional]
    missing = [n for n in must if n not in lent and not _holds(state, inventory, n)]
    if missing:
        raise MdftError(_missing(state, missing, must, keys - known))
    if extra:
        raise MdftError(
            f"{state.label}: extra key {extra[0]!r} is not in the backbone{_more(extra)}"
            f"{nearest(extra[0], known - keys)}; ignore=[...] leaves keys out by pattern, in a "
            "recipe pool.ignore"
        )
    return ignored


def _missing(state: State, missing: list[str], must: list[str], others: Set[str]) -> str:
    count = f" ({len(missing)} of {len(must)} are)" if len(missing) > 1 else ""
    behind = f" behind {state.prefix!r}" if state.prefix else ""
    what = state.unreadable.get(missing[0])
    if what is not None:
        return (
            f"{state.label}: tensor {missing[0]!r} of the backbone must be a dense one with data, "
            f"got {what}"
        )
    return (
        f"{state.label}: tensor {missing[0]!r} of the backbone is missing{behind}{count}"
        f"{nearest(missing[0], sorted(others))}"
    )


def _holds(state: State, inventory: Inventory, name: str) -> bool:
    return any(key in state.tensors for key in inventory.spoken(name))


def fetch(state: State, inventory: Inventory, name: str) -> Tensor | None:
    """Returns a tensor under its first name, or under a tied one; None if the file has none."""
    for key in inventory.spoken(name):
        if key in state.tensors:
            return state.tensors[key]
    return None


def check_forms(state: State, inventory: Inventory, base: State | None) -> None:
    """Checks shapes against the backbone, dtypes against the base, and tied copies."""
    for name, shape in (*inventory.merged.items(), *inventory.kept.items()):
        if name in state.formed:
            continue  # base + B·A: of the base's shape, in a dtype of ours
        tensor = fetch(state, inventory, name)
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise MdftError(
                f"{state.label}: tensor {name!r} must be {list(shape)} as in the backbone, got "
                f"{list(tensor.shape)}"
            )
        if name in inventory.merged and tensor.dtype not in FLOATS:
            raise MdftError(
                f"{state.label}: tensor {name!r} must be in one of "
                f"{[str(d) for d in FLOATS]}, got {tensor.dtype}"
            )
        base_tensor = None if base is None else fetch(base, inventory, name)
        if base is not None and base_tensor is not None and not _widens(base_tensor, tensor):
            raise MdftError(
                f"{state.label}: mixed dtypes: tensor {name!r} must be in {base_tensor.dtype} as "
                f"in {base.label}, or wider, got {tensor.dtype}; `mdft convert --dtype` changes it"
            )
    _check_aliases(state, inventory.aliases.items())


def _widens(base: Tensor, mine: Tensor) -> bool:
    """Says whether the base's numbers are all among those of a model's dtype."""
    both_float = base.is_floating_point() and mine.is_floating_point()
    wider = torch.promote_types(base.dtype, mine.dtype) == mine.dtype
    return base.dtype == mine.dtype or (both_float and wider)


def differs(name: str, mine: Tensor | None, base: Tensor | None) -> bool:
    """Says whether a tensor that is not merged differs from the base's where it matters."""
    if mine is None or base is None or name.rpartition(".")[2] == _COUNTER:
        return False
    return not torch.equal(mine.to(base.device), base.to(mine.dtype))


def _check_aliases(state: State, aliases: Iterable[tuple[str, str]]) -> None:
    for alias, original in aliases:
        if alias not in state.tensors or original not in state.tensors:
            continue
        one, other = state.tensors[original], state.tensors[alias]
        # NaN equals NaN here; that it is no value for a parameter is said later, in those words.
        if one.shape != other.shape or not torch.allclose(one, other, 0, 0, equal_nan=True):
            raise MdftError(
                f"{state.label}: {alias!r} must equal {original!r}, to which the backbone ties "
                f"it, got different values"
            )


def _more(names: Sequence[str]) -> str:
    return f" ({len(names)} such keys)" if len(names) > 1 else ""
