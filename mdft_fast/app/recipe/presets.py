# SPDX-License-Identifier: Apache-2.0
"""The presets: what a recipe does where its keys do not say.

A preset holds every key of ``granularity``, ``start``, ``construct`` and ``specialize``; keys of
the recipe override it one by one. This dict is the only place where these numbers stand.
"""

from __future__ import annotations

import copy
from typing import Any

# The paper's values where it gives them; docs/method.md says which of them it leaves open.
_PAPER: dict[str, Any] = {
    "granularity": "tensor",
    "start": 0.3,
    "construct": {
        "steps": 100,
        "batch": 16,
        "draw": "kept",
        "objective": {"alpha": 1.0, "entropy": True, "reweight": "as_written"},
        "filter": {"enabled": True, "mu": 0.4, "entropy_of": "teacher"},
        "optimizer": {"name": "adam", "lr": 1e-3, "schedule": "constant"},
        "holdout": 0.2,
    },
    "specialize": {
        "tasks": "all",
        "steps": 20,
        "batch": 64,
        "representation": "encoder",
        "optimizer": {"name": "adam", "lr": 0.05, "schedule": "constant"},
        "control": True,
    },
}


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns ``below`` with the keys of ``above`` put over it; mappings are joined key by key.

    Keys keep the order of ``below``; neither argument is changed.
    """
    result = copy.deepcopy(below)
    for key, value in above.items():
        held = result.get(key)
        if isinstance(held, dict) and isinstance(value, dict):
            result[key] = merged(held, value)
        elif value is not None or not isinstance(held, dict):  # `construct:` alone says nothing
            result[key] = copy.deepcopy(value)
    return result


_ADAMERGING = merged(
    _PAPER,
    {
        "construct": {
            "steps": 500,  # as AdaMerging's authors; it has no second stage
            "objective": {"alpha": 0.0, "reweight": "off"},
            "filter": {"enabled": False},
        },
        "specialize": {"tasks": "none"},
    },
)

PRESETS: dict[str, dict[str, Any]] = {
    # Chosen by benchmarks/select_defaults.py, without a label: tests/test_defaults.py holds it.
    "default": merged(
        _PAPER,
        {
            "construct": {
                "objective": {"entropy": False, "reweight": "off"},
                "filter": {"enabled": False},
                "optimizer": {"lr": 0.2, "schedule": "cosine"},
            },
            "specialize": {"optimizer": {"lr": 0.2}},
        },
    ),
    "paper": _PAPER,
    "adamerging": _ADAMERGING,
    "entropy": merged(_ADAMERGING, {"granularity": "task"}),
}
