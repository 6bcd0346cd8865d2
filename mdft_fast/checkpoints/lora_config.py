# SPDX-License-Identifier: Apache-2.0
"""What an ``adapter_config.json`` says: whether it is plain LoRA, and how B·A is scaled."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from mdft_fast.errors import MdftError

_REFUSED = {  # a key of the config -> why an adapter that sets it is not base + scaling · B·A
    "use_dora": "DoRA rescales each weight by its norm, so the model is not base + B·A",
    "lora_bias": "its B adds a bias too",
    "use_qalora": "QA-LoRA groups the inputs",
    "use_bdlora": "its factors are block diagonal",
    "alora_invocation_tokens": "aLoRA applies to some tokens alone",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it targets parameters that are not modules' weights",
    "trainable_token_indices": "it replaces rows of an embedding",
    "kasa_config": "KaSA changes the base",
    "arrow_config": "Arrow mixes adapters by input",
    "monteclora_config": "it samples its weights",
}
LONGEST = 500  # characters of a name in an adapter
_LONGEST_PATTERN = 200
_MOST_STEPS = 5 * 10**8  # an upper bound of what all patterns take; a few seconds
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # values of init_lora_weights


def check_kind(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses an adapter that is not base + scaling · B·A, with the reason."""
    if config.get("peft_type") != "LORA":
        raise MdftError(
            f"{path}: peft_type must be 'LORA', got {config.get('peft_type')!r}; other adapters "
            f"are no sums, merge it with peft and save the whole model"
        )
    for key, why in _REFUSED.items():
        if config.get(key):
            raise MdftError(
                f"{path}: {key!r} must not be set, got {config[key]!r}: {why}; merge it with peft "
                f"and save the whole model"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise MdftError(
            f"{path}: init_lora_weights must leave the base as it is, got {start!r}, which changes "
            f"it before training; convert the adapter with peft (path_initial_model_for_weight_"
            f"conversion)"
        )


def scalings_of(
    folder: Path, config: Mapping[str, Any], factors: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Returns α / r, or α / √r, of each module.

    Args:
        folder: the adapter's, for errors.
        config: what its ``adapter_config.json`` holds.
        factors: module, a name of at most ``LONGEST`` characters -> its A and B.

    Raises:
        MdftError: if a pattern of the config is invalid, or may take long to be matched; if A and
            B have not the rank that the config says.
    """
    ranks = _patterns(folder, config, "rank_pattern", factors)
    alphas = _patterns(folder, config, "alpha_pattern", factors)
    scalings = {}
    for module, (a, b) in factors.items():
        rank = _by_pattern(ranks, module, config.get("r"))
        alpha = _by_pattern(alphas, module, config.get("lora_alpha"))
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
            raise MdftError(
                f"{folder}: r and lora_alpha must be numbers, got {rank!r} and {alpha!r}"
            )
        groups = rank // b.shape[1] if b.dim() == 4 and 0 < b.shape[1] < rank else 1
        if groups > 1 and a.dim() == 4 and a.shape[0] == rank == groups * b.shape[1]:
            raise MdftError(
                f"{folder}: {module!r} is a grouped convolution ({groups} groups), whose change is "
                "no product B·A and which peft itself does not merge (seen in 0.21.2); train it "
                "whole, as one of modules_to_save"
            )
        if a.dim() < 2 or b.dim() < 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise MdftError(
                f"{folder}: {module!r} must have rank {rank} as its config says, got lora_A "
                f"{list(a.shape)} and lora_B {list(b.shape)}"
            )
        scalings[module] = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return scalings


def transposed(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Iterable[tuple[str, bool | None]],
    names: Mapping[str, str],
    conv1d: Set[str] | None,
) -> dict[str, bool]:
    """Returns for each module whether its weight is stored ``[in, out]``, so B·A transposed.

    peft decides it layer by layer, by the layer's class; the ``fan_in_fan_out`` that it writes is
    that of the last one.

    Args:
        folder: the adapter's, for errors.
        config: what its ``adapter_config.json`` holds.
        shapes: each module and what the shapes say, None: either.
        names: module -> its weight in the base.
        conv1d: the base's weights that are stored so; None: nobody says.

    Raises:
        MdftError: if neither the shapes nor the config tell it of a square weight.
    """
    told = dict(shapes)
    swapped = bool(config.get("fan_in_fan_out"))
    known = {turned for turned in told.values() if turned is not None}
    square = next((module for module, turned in told.items() if turned is None), None)
    # Layers of both kinds, or none that confirms the unusual one.
    unclear = swapped not in known and bool(swapped or known)
    if conv1d is None and square is not None and (unclear or len(known) > 1):
        raise MdftError(
            f"{folder}: whether {square!r} is stored [in, out] must be known, as its weight is "
            f"square and fan_in_fan_out need not hold for every layer, got {swapped}; pack it with "
            "its backbone, whose layers say it"
        )
    return {
        module: turned if turned is not None
        else swapped if conv1d is None
        else names[module] in conv1d
        for module, turned in told.items()
    }  # fmt: skip


def trained_on(config: Mapping[str, Any]) -> str | None:
    """Returns what an adapter calls its base; None: it does not say."""
    name = config.get("base_model_name_or_path")
    return name if isinstance(name, str) and 0 < len(name) <= LONGEST else None


def _patterns(
    folder: Path, config: Mapping[str, Any], key: str, modules: Collection[str]
) -> list[tuple[re.Pattern[str], Any]]:
    """Returns a mapping's patterns, each of which ends a module's name, as peft reads them.

    They are a stranger's expressions. What backtracking may cost is bounded: a suffix of a name
    begins at each dot, a repetition ends at each character, and a choice has two outcomes.
    """
    mapping = config.get(key) or {}
    if not isinstance(mapping, dict):
        raise MdftError(f"{folder}: {key!r} must be a mapping, got {type(mapping).__name__}")
    made: list[tuple[re.Pattern[str], Any]] = []
    cost = 0
    for pattern, value in mapping.items():
        repeats, choices = (len(re.findall(signs, pattern)) for signs in ("[*+{]", "[?|]"))
        if len(pattern) > _LONGEST_PATTERN or re.search(r"\)[*+{?]", pattern) or repeats > 3:
            raise MdftError(f"{folder}: {key!r} has a pattern too involved to be read: {pattern!r}")
        cost += 2**choices * sum((m.count(".") + 1) * len(m) ** repeats for m in modules)
        if cost > _MOST_STEPS:
            raise MdftError(
                f"{folder}: {key!r} has patterns that may take too long to be matched with "
                f"{len(modules)} modules, as {pattern!r}"
            )
        try:
            made.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except (re.error, OverflowError, RecursionError) as error:
            raise MdftError(f"{folder}: {key!r} has no valid pattern: {error}") from None
    return made


def _by_pattern(patterns: list[tuple[re.Pattern[str], Any]], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if pattern.match(module)), default)
