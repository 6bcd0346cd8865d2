# SPDX-License-Identifier: Apache-2.0
"""The one place where an exception of any kind becomes the line that a user reads."""

from __future__ import annotations

import errno
import re
import traceback
from pathlib import Path

from mdft_fast.errors import MdftError

_LONGEST = 4000  # characters: a list of every key of a large file helps nobody
_ADVICE = {
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.EFBIG: "the limit on a file's size (ulimit -f) is lower than what is written",
    errno.EROFS: "name a place that can be written to",
    errno.EACCES: "name a place that you may read and write",
    errno.EPERM: "name a place that you may read and write",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file, and must be a folder",
    errno.EEXIST: "something is there already, maybe a link that leads nowhere",
    errno.ENOENT: "is a link dangling, or did another program remove it?",
    errno.EMFILE: "too many files are open; raise `ulimit -n`",
}
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory", re.I)
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def explain(error: BaseException) -> str:
    """Returns what a user should read of an exception: what was wrong, where, what to do."""
    # Set in, so that no line that a name brings along passes for one of ours.
    return re.sub(r"\n(?=\S)", "\n  ", _short(_visible(_words(error))))


def is_usage(error: BaseException) -> bool:
    """Says whether an exception is the command line parser's own, which it words itself."""
    if isinstance(error, OSError):
        return error.errno == errno.EPIPE  # whoever read our output has gone
    return type(error).__module__.partition(".")[0] in ("typer", "click")


def _words(error: BaseException) -> str:
    if isinstance(error, MdftError):
        return str(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        first = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return f"out of memory{first}; `mdft plan` shows what a recipe takes"
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        where = f"{' -> '.join(names)}: " if names else ""
        advice = _ADVICE.get(error.errno or 0)
        return f"{where}{error.strerror}{f'; {advice}' if advice else ''}"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply{_place(error)}; is a file damaged?"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{what}{_place(error)}; this should have been said in better words: --debug before the "
        "command shows the traceback, which belongs into a report"
    )


def _place(error: BaseException) -> str:
    """Returns where in this package, or else at all, an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "mdft_fast" in Path(frame.filename).parts]
    last = (ours or frames)[-1:]
    return "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in last)


def _visible(text: str) -> str:
    """Spells what a terminal would obey, reorder or refuse: a name may come out of any file."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
