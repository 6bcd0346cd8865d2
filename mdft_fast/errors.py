# SPDX-License-Identifier: Apache-2.0
"""The errors and warnings that mdft_fast raises."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class MdftError(Exception):
    """Root of every error that mdft_fast raises for a mistake of the caller or of a file."""


class MdftFallbackWarning(UserWarning):
    """A native operator was not available; the plain-torch reference ran instead."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` for the known name nearest to ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def need(module: str, extra: str = "", *, who: str = "") -> ModuleType:
    """Imports a package that not everyone has.

    Args:
        module: its dotted name, such as ``torchvision.datasets``.
        extra: of this package, the one that brings it; "": it comes with this package itself.
        who: what cannot do without it, for the error.

    Raises:
        MdftError: if it cannot be imported; it says what to install, or what went wrong.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        needs = f"{who}: needs" if who else "needs"
        package = f"mdft-fast[{extra}]" if extra else "mdft-fast"
        raise MdftError(
            f"{needs} {module.partition('.')[0]}; pip install '{package}' ({error})"
        ) from error
    except Exception as error:  # it is there and does not work: built for others, or misconfigured
        what = f"{who}: {module}" if who else module
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise MdftError(f"{what} must work here, got at its import {why}") from error
