# SPDX-License-Identifier: Apache-2.0
"""Adds PEFT's LoRA adapters to a base: θ = base + scaling · B·A.

The product and the sum are formed in float64 and rounded once, to float32 (float64 where the base
is). A task vector of a pool is a difference to the base, so a base in half precision does not
round it away. A and B are never averaged apart.

Source: Hu et al. 2022 (arXiv:2106.09685), sec. 4.1; rank-stabilised scaling: Kalajdzievski 2023
(arXiv:2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdft_fast.checkpoints.file_kinds import ADAPTER, read_config, weights_of
from mdft_fast.checkpoints.lora_config import (
    LONGEST,
    check_kind,
    scalings_of,
    trained_on,
    transposed,
)
from mdft_fast.checkpoints.lora_names import match_modules
from mdft_fast.checkpoints.state import LazyTensors, State
from mdft_fast.errors import MdftError

_ROOT = "base_model.model."
_PAIR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(\.default)?(?P<weight>\.weight)?"
)


class Pair(NamedTuple):
    """One weight's A and B, with the number that multiplies their product."""

    a: Tensor
    b: Tensor
    scaling: float
    embedding: bool


def read_adapter(
    folder: Path,
    base: State | None,
    read: Callable[[Path], State],
    also: Mapping[str, str],
    conv1d: Set[str] | None = None,
) -> State:
    """Opens an adapter's folder as the base's tensors with B·A added where it has one.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``.
        base: the model that it was trained on.
        read: opens a file.
        also: further names of the base's tensors -> theirs in ``base``.
        conv1d: names in ``base`` of weights that are stored ``[in, out]``; None: nobody says.

    Raises:
        MdftError: if the adapter is of another kind, is not base + scaling · B·A, or does not fit
            the base.
    """
    config = read_config(folder / ADAPTER)
    check_kind(folder / ADAPTER, config)
    file, beside = weights_of(folder, "adapter")
    adapter = read(file)
    if base is None:
        raise MdftError(
            f"{folder}: is a LoRA adapter, a difference to its base; the base must be given too"
        )
    pairs, whole = _sort(folder, config, adapter)
    names = match_modules(folder, [*pairs], base, also)
    turned = transposed(folder, config, _shapes(base, names, pairs), names, conv1d)
    made = {names[n]: _sum(folder, base, names[n], pair, turned[n]) for n, pair in pairs.items()}
    kept, left_out = _replaced(whole, names, base, adapter, also)
    both = sorted(kept.keys() & made.keys())
    if both or len(made) < len(names):
        what = f"{both[0]!r} whole and as B·A" if both else "two B·A for one weight"
        raise MdftError(f"{folder}: must hold one change of each weight, got {what}")
    makers = {name: partial(base.tensors.__getitem__, name) for name in base.tensors}
    return State(
        str(folder),
        LazyTensors(makers | made | kept),
        f"PEFT LoRA adapter of {len(pairs)} weights, {adapter.format}",
        {**base.left_out, **left_out},
        replace(base.facts, name=None, trained_on=trained_on(config)),
        base.formed | made.keys(),
        check=adapter.check,
        unreadable=base.unreadable,
        notes=tuple(f"{folder}: {file.name} is taken, as peft does, not {o.name}" for o in beside),
    )


def to_base_dtype(state: State, base: State | None) -> State:
    """Rounds what was formed here to the dtype of the base's tensor, to nearest."""
    if base is None or not state.formed:
        return state

    def read(name: str) -> Tensor:
        tensor = state.tensors[name]
        return tensor.to(base.tensors[name].dtype) if name in state.formed else tensor

    return replace(state, tensors=LazyTensors({n: partial(read, n) for n in state.tensors}))


def describe_adapter(folder: Path, read: Callable[[Path], State]) -> str:
    """Returns what an adapter is, as text; its base is not needed."""
    config = read_config(folder / ADAPTER)
    adapter = read(weights_of(folder, "adapter")[0])
    lines = [f"format    PEFT adapter, {config.get('peft_type')!r}, {adapter.format}"]
    keys = ("base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules")
    lines += [f"says      {key}: {config[key]!r}" for key in keys if config.get(key)]
    try:
        check_kind(folder / ADAPTER, config)
        pairs, whole = _sort(folder, config, adapter)
    except MdftError as error:
        return "\n".join([*lines, f"refused   {error}"])
    scalings = sorted({pair.scaling for pair in pairs.values()})
    lines.append(f"tensors   B·A for {len(pairs)} weights, times {scalings}; {len(whole)} whole")
    return "\n".join([*lines, "needs     the base that it was trained on"])


def _sort(
    folder: Path, config: Mapping[str, Any], adapter: State
) -> tuple[dict[str, Pair], dict[str, str]]:
    """Returns target weight -> its pair, and name -> the adapter's key for tensors saved whole."""
    halves: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    whole: dict[str, str] = {}
    for key in adapter.tensors:
        name = key.removeprefix(_ROOT)
        if len(name) > LONGEST:
            raise MdftError(
                f"{folder}: names must be at most {LONGEST} characters, got {len(name)}: "
                f"{name[:40]!r}..."
            )
        match = _PAIR.fullmatch(name)
        if match and bool(match["weight"]) != bool(match["embedding"]):
            module = match["module"].replace(".base_layer", "")
            _add(folder, halves.setdefault(module, {}), match["which"], key)
            embeddings |= {module} if match["embedding"] else set()
        elif ".lora_" in name:
            raise MdftError(f"{folder}: {key!r} is no part of plain LoRA; only A and B are read")
        else:
            short = name.replace(".base_layer", "").replace(".modules_to_save", "")
            _add(folder, whole, short, key)
    if not halves:
        raise MdftError(f"{folder}: must hold lora_A and lora_B, got {len(whole)} other tensors")
    factors = {}
    for module, keys in halves.items():
        if keys.keys() != {"A", "B"}:
            raise MdftError(f"{folder}: {module!r} must have lora_A and lora_B, got one of them")
        factors[module] = (adapter.tensors[keys["A"]], adapter.tensors[keys["B"]])
    scalings = scalings_of(folder, config, factors)
    pairs = {
        module: Pair(*both, scalings[module], module in embeddings)
        for module, both in factors.items()
    }
    return pairs, whole


def _add(folder: Path, keys: dict[str, str], name: str, key: str) -> None:
    if name in keys:
        raise MdftError(
            f"{folder}: must hold one adapter, got two tensors for one: {keys[name]!r} and {key!r}"
        )
    keys[name] = key


def _shapes(
    base: State, names: Mapping[str, str], pairs: Mapping[str, Pair]
) -> Iterator[tuple[str, bool | None]]:
    """Yields each module and whether its B·A must be transposed, as the shapes say; None: either.

    A weight that neither fits is an error of :func:`_sum`.
    """
    for module, pair in pairs.items():
        shape, product = base.tensors[names[module]].shape, _product(pair)
        straight, turned = _flat(shape) == product, _flat(shape[::-1]) == product
        either = straight and turned and not pair.embedding
        yield module, None if either else turned


def _product(pair: Pair) -> tuple[int, int]:
    return pair.b.shape[0], pair.a.flatten(1).shape[1]


def _flat(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)


def _sum(
    folder: Path, base: State, name: str, pair: Pair, transposed: bool
) -> Callable[[], Tensor]:
    weight = base.tensors[name]
    swapped = weight.shape[::-1] if transposed else weight.shape
    if _flat(swapped) != _product(pair):
        raise MdftError(
            f"{folder}: B·A must have the shape of {name!r}, {list(weight.shape)}, got "
            f"{list(_product(pair))}{' transposed' if transposed else ''}"
        )

    def make() -> Tensor:
        weight = base.tensors[name]
        product = pair.b.flatten(1).double() @ pair.a.flatten(1).double()
        delta = (product.T if transposed else product).reshape(weight.shape)
        total = delta.mul_(pair.scaling).add_(weight)
        return total if weight.dtype == torch.float64 else total.float()

    return make


def _replaced(
    whole: Mapping[str, str],
    names: Mapping[str, str],
    base: State,
    adapter: State,
    also: Mapping[str, str],
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Sorts what the adapter saved whole (biases, ``modules_to_save``): of the base, or not."""
    module, weight = next(iter(names.items()))
    known = {name: name for name in base.tensors} | dict(also)
    known_name = next(
        (n for n in known if known[n] == weight and n.rsplit(".", 1)[0] in module), module
    )
    prefix = module[: len(module) - len(known_name.rsplit(".", 1)[0])]
    kept: dict[str, Callable[[], Tensor]] = {}
    left_out: dict[str, str] = {}
    for name, key in whole.items():
        target = known.get(name) or known.get(name.removeprefix(prefix))
        if target is None:
            left_out[name] = "saved whole by the adapter; its base has no such tensor"
        else:
            kept[target] = partial(adapter.tensors.__getitem__, key)
    return kept, left_out
