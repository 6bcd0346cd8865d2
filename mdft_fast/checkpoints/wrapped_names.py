# SPDX-License-Identifier: Apache-2.0
"""Names of tensors without what wrapping modules put into them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mdft_fast.checkpoints.state import State, renamed

# Components of a name, wherever they stand: torch.compile's, activation checkpointing's, FSDP's of
# torch and fairscale, Lightning's.
_ANYWHERE = {
    "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module",
    "_forward_module",
}  # fmt: skip
# Before every name: DistributedDataParallel's, DeepSpeed's and AveragedModel's; Opacus'. Elsewhere
# they may be a model's own.
_BEFORE = ("module.", "_module.")
_COUNTERS = ("n_averaged",)  # AveragedModel's, beside the module
_COUNTED = "counts the models of an average"
_MOST_WRAPPED = 4


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Returns new name -> name; all as they are where two would become one."""
    names = list(names)
    new = {_cleaned(name): name for name in names}
    for prefix in _BEFORE * _MOST_WRAPPED:
        wrapped = [name for name in new if name not in _COUNTERS]
        if wrapped and all(name.startswith(prefix) for name in wrapped):
            new = {name.removeprefix(prefix): old for name, old in new.items()}
    return new if len(new) == len(names) else {name: name for name in names}


def unwrapped(state: State) -> State:
    """Returns a checkpoint under the names that its module has without wrappers."""
    names = without_wrappers(state.tensors)
    counters = [name for name in _COUNTERS if name in names and len(names) > 1]
    if not counters and all(new == old for new, old in names.items()):
        return state
    kept = {new: old for new, old in names.items() if new not in counters}
    left_out = dict.fromkeys(counters, _COUNTED)
    return replace(
        state, tensors=renamed(state.tensors, kept), left_out={**state.left_out, **left_out}
    )


def is_counted(state: State) -> bool:
    """Says whether an unwrapped checkpoint is torch's ``AveragedModel``."""
    return any(state.left_out.get(name) == _COUNTED for name in _COUNTERS)


def _cleaned(name: str) -> str:
    if "_" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in _ANYWHERE)
