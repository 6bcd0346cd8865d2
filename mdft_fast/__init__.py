# SPDX-License-Identifier: Apache-2.0
"""mdft_fast: turn a pool of fine-tuned models into one better model, without labels.

Operators (usable alone): merge, merge_tensors, merge_dots, debiased_entropy_loss.
The whole way: Pool, Task -> MetaModel -> construct, specialize -> evaluate, CoefficientCard, load;
or all of it at once: run(recipe).

A name is loaded, and torch with it, when it is first asked for; ``__init__.pyi`` says the same to
type checkers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "app.forecast": ("MemoryPlan", "plan"),
    "app.running": ("run",),
    "arena": ("Layout", "TaskVectors"),
    "cards": ("CoefficientCard", "load", "save_model"),
    "data": ("NpzSource", "Task"),
    "errors": ("MdftError", "MdftFallbackWarning"),
    "evaluation": ("Evaluation", "evaluate"),
    "learning": ("ConstructConfig", "OptimizerConfig", "RunResult", "SpecializeConfig",
                 "construct", "specialize"),
    "model": ("MetaModel",),
    "ops": ("DebiasedEntropyFunction", "MergeFunction", "debiased_entropy_loss", "kernels",
            "merge", "merge_dots", "merge_tensors"),
    "pool": ("Head", "Pool"),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
