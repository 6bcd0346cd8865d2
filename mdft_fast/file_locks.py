# SPDX-License-Identifier: Apache-2.0
"""The system's locks on files and folders: a process that is dead holds none."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

_PAUSE_S = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of some network file systems


def try_lock(handle: int) -> bool | None:
    """Locks an open file or folder until its handle is closed.

    Returns:
        Whether it is ours now; None: the system, or the file system, knows no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def is_still(handle: int, path: Path) -> bool:
    """Says whether an open file is the one of that name, not one removed since."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def lock_on(path: Path) -> Iterator[None]:
    """Holds the lock of a file or folder, as soon as whoever holds it lets go.

    Raises:
        FileNotFoundError: if it is not there, or not any more once it is ours.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        while try_lock(handle) is False:
            time.sleep(_PAUSE_S)
        if not is_still(handle, path):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Says whether somebody holds the lock of a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return try_lock(handle) is False
    finally:
        os.close(handle)


def is_left_behind(path: Path) -> bool:
    """Says whether a file or folder that its maker keeps locked has none any more."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return try_lock(handle) is True
    finally:
        os.close(handle)
