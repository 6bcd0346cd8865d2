# SPDX-License-Identifier: Apache-2.0
"""What a backbone computes that no tensor's shape shows, compared with what its sources say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from mdft_fast.checkpoints.metadata import SourceFacts, agree
from mdft_fast.checkpoints.state import State
from mdft_fast.errors import MdftError

_HINTS = {
    "architecture": "its name",
    "heads": "its number of attention heads",
    "norm_eps": "the epsilon of its normalization",
    "pooling": "its global_pool",
}
# A name on the hub, organization/model; the first part of others says that it is a path.
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_PATHS = {
    "base", "bases", "checkpoint", "checkpoints", "data", "model", "models", "out", "output",
    "outputs", "pretrained", "runs", "tmp", "weights",
}  # fmt: skip


def architecture_of(backbone: nn.Module) -> dict[str, Any]:
    """Returns what a module shows of itself, by the names of facts; what it does not is absent."""
    modules = list(backbone.modules())
    config = getattr(backbone, "pretrained_cfg", None)
    found = {
        "architecture": config.get("architecture") if isinstance(config, Mapping) else None,
        "heads": _one(_numbers(modules, ("num_heads", "num_attention_heads"), int)),
        "norm_eps": _one(m.eps for m in modules if isinstance(m, nn.LayerNorm)),
        "pooling": getattr(backbone, "global_pool", None),
    }
    return {key: value for key, value in found.items() if isinstance(value, (str, int, float))}


def check_architecture(backbone: nn.Module, facts: SourceFacts, who: Mapping[str, str]) -> None:
    """Refuses a backbone that contradicts what its sources say; what one does not show passes.

    Raises:
        MdftError: names both.
    """
    shown, said = architecture_of(backbone), facts.known()
    for key, words in _HINTS.items():
        if key in shown and key in said and not agree(said[key], shown[key]):
            raise MdftError(
                f"backbone: {words} must be {said[key]!r} as {who[key]} says, got {shown[key]!r}"
            )


def compare_bases(base: State, models: Iterable[State]) -> Iterator[str]:
    """Yields what cannot be compared of the base that adapters name.

    Raises:
        MdftError: if an adapter names another base than another adapter or the base itself does.
    """
    known = [(base.label, base.facts.name)] if base.facts.name else []
    unsure: list[str] = []
    for state in models:
        name = state.facts.trained_on
        if name is None:
            continue
        for label, other in known:
            if _is_hub(name) and _is_hub(other) and _last(name) != _last(other):
                raise MdftError(
                    f"{state.label}: says that its base is {name!r}, but {label} says {other!r}; "
                    "adapters of one pool must have one base (where both mean the same, write it "
                    "into base_model_name_or_path)"
                )
        known.append((state.label, name))
        certain = base.facts.name and _last(base.facts.name) == _last(name)
        if not certain and name not in unsure:
            unsure.append(name)
    if unsure:
        yield (
            f"adapters say that their base is {', '.join(map(repr, unsure))}; that this is "
            f"{base.label} could not be compared"
        )


def _numbers(modules: Iterable[nn.Module], names: Iterable[str], kind: type) -> Iterator[Any]:
    for module in modules:
        values = (getattr(module, name, None) for name in names)
        yield from (value for value in values if type(value) is kind)


def _one(values: Iterable[Any]) -> Any:
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _is_hub(name: str) -> bool:
    return bool(_HUB.fullmatch(name)) and name.partition("/")[0].lower() not in _PATHS


def _last(name: str) -> str:
    return re.split(r"[/\\\\]", name.rstrip("/\\"))[-1].lower()
