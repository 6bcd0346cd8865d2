# SPDX-License-Identifier: Apache-2.0
"""mdft_fast: turn a pool of fine-tuned models into one better model, without labels.

Operators (usable alone): merge, merge_tensors, merge_dots, debiased_entropy_loss.
The whole way: Pool, Task -> MetaModel -> construct, specialize -> evaluate, CoefficientCard, load;
or all of it at once: run(recipe).
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdft_fast.public import *  # noqa: F403 - what its __all__ says

__version__ = "0.1.0"


class _Package(types.ModuleType):
    """Loads what is public, torch with it, when it is first asked for: `mdft --help` need not."""

    def __getattr__(self, name: str) -> Any:
        public = importlib.import_module("mdft_fast.public")
        names = getattr(public, "__all__", None)
        if names:  # none while it is being imported
            vars(self).update({known: getattr(public, known) for known in names}, __all__=names)
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        # `run` and `evaluate` are modules too: importing one must not hide the function.
        if not (name in ("run", "evaluate") and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})


sys.modules[__name__].__class__ = _Package
