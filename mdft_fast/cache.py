# SPDX-License-Identifier: Apache-2.0
"""The user's cache: what can be made again, in entries of several kinds, bounded in size.

An entry is a file or folder ``<kind>/<key>`` below :func:`cache_folder`; what lies in the cache
folder otherwise, as the demo's pool does, is not counted and never removed for want of room.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mdft_fast.errors import MdftError
from mdft_fast.file_locks import is_held
from mdft_fast.files import expanded

KINDS = {
    "images": "decoded images",
    "labels": "labels of test sets",
    "heads": "heads made of class names or images",
    "answers": "what models say of samples",
}
_LIMIT_GB = 50.0


@dataclasses.dataclass(frozen=True)
class CacheEntry:
    """Something that can be made again.

    Attributes:
        kind: one of ``KINDS``.
        path: file or folder.
        bytes: what it takes of the disk.
        used: when it was used last, in seconds since the epoch.
    """

    kind: str
    path: Path
    bytes: int
    used: float


def cache_folder() -> Path:
    """Returns the folder for what can be made again: ``$MDFT_CACHE``, else the user's cache.

    Raises:
        MdftError: if nothing names one: a process may have no home.
    """
    ours, users = os.environ.get("MDFT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return expanded(ours) if ours else expanded(users or "~/.cache") / "mdft_fast"
    except MdftError as error:
        raise MdftError(f"cache: {error}; MDFT_CACHE names a folder for it") from None


def cache_limit() -> int:
    """Returns how many bytes the entries may take: ``$MDFT_CACHE_GB`` gigabytes, else 50.

    Raises:
        MdftError: if the variable is no number of 0 or more.
    """
    text = os.environ.get("MDFT_CACHE_GB") or str(_LIMIT_GB)
    try:
        limit = float(text)
        if not 0 <= limit < float("inf"):
            raise ValueError
    except ValueError:
        raise MdftError(f"MDFT_CACHE_GB: must be gigabytes, 0 or more, got {text!r}") from None
    return int(limit * 1e9)


def cache_entries() -> list[CacheEntry]:
    """Returns all entries, the one used last at the end."""
    found = [entry for kind in KINDS for entry in _of_kind(kind)]
    return sorted(found, key=lambda entry: entry.used)


def used(entry: Path) -> None:
    """Notes that an entry was used now; where that cannot be noted, it counts as older."""
    with contextlib.suppress(OSError):
        os.utime(entry)


def bound_cache() -> None:
    """Removes the entries that were used longest ago until the rest takes what it may."""
    entries, limit = cache_entries(), cache_limit()
    total = sum(entry.bytes for entry in entries)
    for entry in entries[:-1]:  # never the one that was just made
        if total <= limit:
            return
        total -= entry.bytes if remove(entry) else 0


def remove(entry: CacheEntry) -> bool:
    """Removes an entry; says whether it is gone.

    A process that has it mapped keeps its bytes until it ends. One that another process adds to
    stays, and so does another user's.
    """
    with contextlib.suppress(OSError):
        if not entry.path.is_dir():
            entry.path.unlink(missing_ok=True)
        elif not is_held(entry.path):
            shutil.rmtree(entry.path, ignore_errors=True)
    return not entry.path.exists()


def _of_kind(kind: str) -> Iterator[CacheEntry]:
    with contextlib.suppress(OSError):
        for path in (cache_folder() / kind).iterdir():
            with contextlib.suppress(OSError):  # another process removes it just now
                taken = sum(_blocks(file) for file in (path, *path.glob("*")))
                if not path.name.startswith("."):  # nothing that is being made
                    yield CacheEntry(kind, path, taken, path.stat().st_mtime)


def _blocks(file: Path) -> int:
    """Returns the bytes that a file takes: holes take none."""
    return file.stat().st_blocks * 512
