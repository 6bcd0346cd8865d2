# SPDX-License-Identifier: Apache-2.0
"""Standard streams as they may be: closed, replaced, narrow in their alphabet; names in them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

STOPPED = 130  # as a shell reports a program that Ctrl-C ended


def printable(text: str) -> str:
    r"""Returns a text in which nothing but signs, spaces, tabs and line ends is left as it is.

    Names come from strangers' files. A terminal would obey their escape sequences; ``\x1b`` and the
    like are shown as they are written in Python, bytes that are no UTF-8 too.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def is_terminal(stream: Any) -> bool:
    """Returns whether a stream is a terminal; one that is closed, absent or no file is none."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def open_standard_streams() -> None:
    """Makes the three standard streams usable, whatever this process was started with.

    A closed one leads nowhere from now on: the next file to be opened would get its number, and
    with it what libraries print. Signs that an output's encoding lacks are written as escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        stream = getattr(sys, name)
        if stream is None:
            nowhere = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
