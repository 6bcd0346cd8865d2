# SPDX-License-Identifier: Apache-2.0
"""The errors and warnings that mdft_fast raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MdftError(Exception):
    """Root of every error that mdft_fast raises for a mistake of the caller or of a file."""


class MdftFallbackWarning(UserWarning):
    """A native operator was not available; the plain-torch reference ran instead."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` for the known name nearest to ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""
