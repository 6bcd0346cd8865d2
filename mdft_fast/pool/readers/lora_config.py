# SPDX-License-Identifier: Apache-2.0
"""What an ``adapter_config.json`` says: whether it is plain LoRA, and how B·A is scaled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
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


def scaling_of(folder: Path, config: Mapping[str, Any], module: str, a: Tensor, b: Tensor) -> float:
    """Returns α / r, or α / √r, of one module, whose A and B must have the rank that it says."""
    rank = _by_pattern(folder, config, "rank_pattern", module, config.get("r"))
    alpha = _by_pattern(folder, config, "alpha_pattern", module, config.get("lora_alpha"))
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise MdftError(f"{folder}: r and lora_alpha must be numbers, got {rank!r} and {alpha!r}")
    if a.dim() < 2 or b.dim() < 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise MdftError(
            f"{folder}: {module!r} must have rank {rank} as its config says, got lora_A "
            f"{list(a.shape)} and lora_B {list(b.shape)}"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(
    folder: Path, config: Mapping[str, Any], key: str, module: str, default: Any
) -> Any:
    """Returns the value of the first pattern that ends the module's name, as peft does."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise MdftError(f"{folder}: {key!r} must be a mapping, got {type(patterns).__name__}")
    for pattern, value in patterns.items():
        # A stranger's expression: one that could take exponential time is refused.
        if len(pattern) > 200 or re.search(r"\)[*+{?]", pattern) or _repeats(pattern) > 3:
            raise MdftError(f"{folder}: {key!r} has a pattern too involved to be read: {pattern!r}")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise MdftError(f"{folder}: {key!r} has no valid pattern: {error}") from None
    return default


def _repeats(pattern: str) -> int:
    return len(re.findall(r"[*+{]", pattern))
