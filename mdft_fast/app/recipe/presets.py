# SPDX-License-Identifier: Apache-2.0
"""The presets: what a recipe does where its keys do not say.

A preset is the defaults of the stages' configurations and of the meta-model, and what it changes.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

from mdft_fast.app.recipe.sections import Construct, Specialize
from mdft_fast.model import TASK_ARITHMETIC, MetaModel


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns ``below`` with the keys of ``above`` put over it; mappings are joined key by key.

    Keys keep the order of ``below``; neither argument is changed.
    """
    result = copy.deepcopy(below)
    for key, value in above.items():
        held = result.get(key)
        # A method's fields are its own: one that is named does not take another one's.
        if isinstance(held, dict) and isinstance(value, dict) and "method" not in value:
            result[key] = merged(held, value)
        elif value is not None or not isinstance(held, dict):  # `construct:` alone says nothing
            result[key] = copy.deepcopy(value)
    return result


_MODEL = inspect.signature(MetaModel).parameters
_PAPER: dict[str, Any] = {
    "granularity": _MODEL["granularity"].default,
    "start": TASK_ARITHMETIC,
    "construct": Construct.default().model_dump(),
    "specialize": Specialize.default().model_dump(),
}
# Chosen by benchmarks/select_defaults.py, without a label: tests/test_defaults.py holds it.
_MEASURED: dict[str, Any] = {
    "start": {"method": "calibrate", "copies": 2},
    "construct": {
        "objective": {"entropy": False, "reweight": "off"},
        "filter": {"enabled": False},
        "optimizer": {"lr": 0.03, "schedule": "cosine"},
    },
    "specialize": {"optimizer": {"lr": 0.1}},
}
_ADAMERGING: dict[str, Any] = {
    "construct": {
        "steps": 500,  # as AdaMerging's authors; it has no second stage
        "objective": {"alpha": 0.0, "reweight": "off"},
        "filter": {"enabled": False},
    },
    "specialize": {"tasks": "none"},
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": merged(_PAPER, _MEASURED),
    "paper": _PAPER,
    "adamerging": merged(_PAPER, _ADAMERGING),
    "entropy": merged(_PAPER, {**_ADAMERGING, "granularity": "task"}),
}
