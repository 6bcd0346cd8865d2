# SPDX-License-Identifier: Apache-2.0
"""Which activation a backbone computes: a wrong one gives no error, only worse accuracy."""

from __future__ import annotations

from torch import nn

from mdft_fast.checkpoints.pickled_metadata import ACTIVATIONS
from mdft_fast.errors import MdftError


def activation_of(backbone: nn.Module) -> str | None:
    """Returns "quick_gelu", "gelu" or "gelu_tanh"; None where there is none of these or several.

    OpenAI's CLIP weights were trained with QuickGELU, x · sigmoid(1.702 x); most others with GELU.
    """
    activations = {_one(module) for module in backbone.modules()} - {None}
    return activations.pop() if len(activations) == 1 else None


def check_activation(backbone: nn.Module, wanted: str | None, who: str) -> None:
    """Compares a backbone's activation with what a source says; unknown ones pass.

    Raises:
        MdftError: names both.
    """
    got = activation_of(backbone)
    if wanted in ACTIVATIONS.values() and got is not None and got != wanted:
        hint = (
            "; for open_clip name the model with '-quickgelu' or pass force_quick_gelu: true"
            if wanted == "quick_gelu"
            else ""
        )
        raise MdftError(
            f"backbone: its activation must be {wanted!r} as {who} says, got {got!r}{hint}"
        )


def _one(module: nn.Module) -> str | None:
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return "gelu_tanh"
    return ACTIVATIONS.get(type(module).__name__)
