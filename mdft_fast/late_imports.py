# SPDX-License-Identifier: Apache-2.0
"""Modules and names that are imported when they are first used; nothing else imports late."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


class LateModule(ModuleType):
    """Stands for the module of its name, which is imported with the first attribute asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def late_names(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes a package's public names, and the modules in it, load when first asked for.

    Args:
        package: its dotted name.
        names: module -> what it gives.

    Returns:
        The package's ``__getattr__``, ``__dir__`` and ``__all__``.
    """
    origin = {name: LateModule(module) for module, gives in names.items() for name in gives}

    def load(name: str) -> Any:
        content = vars(sys.modules[package])
        if name in origin:
            content[name] = getattr(origin[name], name)  # this function is asked once
        elif name in _modules_of(package):
            content[name] = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return content[name]

    def names_there() -> list[str]:
        return sorted({*vars(sys.modules[package]), *origin, *_modules_of(package)})

    return load, names_there, sorted(origin)


def _modules_of(package: str) -> list[str]:
    modules = pkgutil.iter_modules(sys.modules[package].__path__)
    return [module.name for module in modules if not module.name.startswith("_")]


def constant_to_compile(function: _F) -> _F:
    """Lets ``torch.compile`` take what a function returns as a constant of the graph.

    It is all that ``torch.compiler.assume_constant_result`` does, which imports the compiler for
    it: half of what importing this library takes.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
