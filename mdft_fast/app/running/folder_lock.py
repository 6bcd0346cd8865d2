# SPDX-License-Identifier: Apache-2.0
"""A folder that one process has at a time, by a lock of the system's: a dead process holds none."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mdft_fast.errors import MdftError
from mdft_fast.file_locks import is_still, try_lock
from mdft_fast.files import TRIES, naming

LOCK = ".mdft-lock"


@contextlib.contextmanager
def locked(folder: Path, or_else: str = "") -> Iterator[None]:
    """Holds a folder for the body of a ``with``; it is made, and gone again if it stays empty.

    Where the file system knows no locks, nothing is locked.

    Args:
        folder: which.
        or_else: what a user can do besides waiting for another process's end, for the error.

    Raises:
        MdftError: if another process, or thread, holds the folder, or it cannot be made.
    """
    with _made(folder):
        handle = _lock(folder, or_else)
        try:
            yield
        finally:
            # While the lock is held: a file that went later might be another process's already.
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
            os.close(handle)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and what is above it; what stayed empty goes again."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it is in use, or was never made
                path.rmdir()


def _lock(folder: Path, or_else: str) -> int:
    """Returns the handle of a folder's lock file, locked, with our name in it."""
    path = folder / LOCK
    for _ in range(TRIES):
        folder.mkdir(parents=True, exist_ok=True)  # whoever had it may just have removed it
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            with naming(path):
                _claim(handle, path, or_else)
            if is_still(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise MdftError(f"{path}: other processes exchange this file all the time; try again")


def _claim(handle: int, path: Path, or_else: str) -> None:
    if try_lock(handle) is False:
        holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
        raise MdftError(
            f"{path.parent}: is in use by {holder or 'another process'}; wait for its end{or_else}"
        )
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())
