# SPDX-License-Identifier: Apache-2.0
"""Which weight of the base each module of a LoRA adapter means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdft_fast.checkpoints.state import State
from mdft_fast.errors import MdftError, nearest

_LEAVES = (".weight", ".in_proj_weight")  # the second: of nn.MultiheadAttention
# In the files of ViT and DINOv2; transformers 5 has other names in memory.
_BEFORE_5 = ".attention.attention."


def match_modules(
    folder: Path, modules: list[str], base: State, also: Mapping[str, str]
) -> dict[str, str]:
    """Returns module -> name of its weight in the base.

    Names may differ by a prefix (``vit.``) on either side, the same for all. Two prefixes of the
    base behind which all stand are an error: a whole CLIP has two towers.

    Args:
        folder: the adapter's, for errors.
        modules: the adapter's.
        base: the model that it was trained on.
        also: further names of the base's tensors -> theirs in ``base``.

    Raises:
        MdftError: if a module has no weight in the base, or more than one.
    """
    known = {name: name for name in base.tensors} | dict(also)
    first = modules[0]
    cuts = [first.split(".", i)[-1] for i in range(first.count(".") + 1)]
    for i, cut in enumerate(cuts):
        away = len(first) - len(cut)
        prefix = first[:away]
        if not all(m.startswith(prefix) for m in modules):
            continue
        fitting: dict[tuple[str, ...], dict[str, str]] = {}  # two names of one weight are one
        for leading in _leadings(known, first) if i == 0 else [""]:
            weights = {m: _found(known, leading + m[away:]) for m in modules}
            _no_attention(folder, weights)
            whole = {m: name for m, name in weights.items() if name}
            if len(whole) == len(modules):
                fitting.setdefault(tuple(whole.values()), whole)
        if len(fitting) > 1:
            raise MdftError(
                f"{folder}: the adapter's module {first!r} must be one weight of {base.label}, got "
                f"{sorted(names[0] for names in fitting)}; give the part that it was trained on"
            )
        if fitting:
            return next(iter(fitting.values()))
    missing = next((m for m in modules if not _found(known, m)), first)
    raise MdftError(
        f"{folder}: {base.label} has no weight of the adapter's module {missing!r} "
        f"({len(modules)} modules){nearest(missing + '.weight', known)}"
        f"{'' if also else _renamed(folder, base)}"
    )


def _renamed(folder: Path, base: State) -> str:
    """Returns what to do where the names on the disk are not those in the library's memory."""
    if not any(_BEFORE_5 in name for name in base.tensors):
        return ""
    return (
        f"; transformers 5 renames this base's weights as it loads them. A recipe knows both "
        f"names: write `pool: {{base: {base.label}, models: {folder.parent}}}` and `backbone: "
        f"{{library: transformers, name: ViTModel, kwargs: ...}}` (or Dinov2Model; kwargs: numbers "
        f"of the base's config.json) into one, with a task {folder.name!r}; `mdft pack` and "
        f"`mdft run` take it"
    )


def _leadings(known: Mapping[str, str], module: str) -> list[str]:
    """Returns what may stand before a module's name in the base; nothing where it is there."""
    if _found(known, module):
        return [""]
    ends = [f".{module}{leaf}" for leaf in _LEAVES]
    leadings = {n[: 1 - len(end)]: None for end in ends for n in known if n.endswith(end)}
    return list(leadings) or [""]


def _no_attention(folder: Path, weights: Mapping[str, str | None]) -> None:
    for module, name in weights.items():
        if name is not None and name.endswith(_LEAVES[1]):
            raise MdftError(
                f"{folder}: {module!r} is an nn.MultiheadAttention, to whose out_proj peft adds "
                f"B·A twice (seen in 0.21.2), in training and in merging; merge it with the peft "
                f"that trained it and save the whole model"
            )


def _found(known: Mapping[str, str], module: str) -> str | None:
    return next((known[module + leaf] for leaf in _LEAVES if module + leaf in known), None)
