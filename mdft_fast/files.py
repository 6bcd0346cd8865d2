# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all.

:func:`replacing` makes a file, :func:`new_folder` a folder that is its user's, and
:func:`filled_once` a folder that anyone would fill alike: an entry of a cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mdft_fast.errors import MdftError
from mdft_fast.file_locks import is_left_behind, is_still, try_lock

TRIES = 3  # another process may be exchanging the same entry just now
_PIECE = 1 << 20  # bytes read and hashed at a time
_TOKEN = 8  # bytes of a name that no other process chooses
_UNFINISHED = re.compile(rf"\..+\.[0-9a-f]{{{2 * _TOKEN}}}\.part")
_GIVEN = re.compile(r"/dev/stdin|/(dev|proc/self)/fd/\d+")  # open before we were called
_STRAY_S = 24 * 3600  # what is unfinished and older has no process any more, on any machine


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path with ``~`` and ``~user`` as the folders they stand for.

    Raises:
        MdftError: if there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise MdftError(f"{path}: must begin with a home folder that there is, got none") from None


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary name to write to; at the end it is flushed to the disk and renamed.

    If the body raises, the target is as it was and the temporary file is gone.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming(target):
        temporary, handle = _reserve(target)
    try:
        with naming(target):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _reserve(target: Path) -> tuple[Path, int]:
    """Returns an empty file beside a target, locked while it is written; removes dead ones."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        if is_unfinished(path) and is_left_behind(path):
            path.unlink(missing_ok=True)
    while True:
        # A name of its own: threads, and processes of other machines, may write too.
        path = target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN)}.part")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try_lock(handle)
        if is_still(handle, path):  # else another took it for a dead one before it was locked
            return path, handle
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an error of writing say which file: of a full disk it does not say so itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_unfinished(path: Path) -> bool:
    """Says whether a file is what :func:`replacing` writes to, and was not renamed yet."""
    return _UNFINISHED.fullmatch(path.name) is not None


def remove_unfinished(folder: Path, below: Iterable[str] = ()) -> None:
    """Removes what killed processes left in a folder that no other process writes to now.

    Args:
        folder: which.
        below: patterns of folders inside that are looked at too.
    """
    for place in (folder, *(inside for pattern in below for inside in folder.glob(pattern))):
        for path in place.glob(".*.part"):
            if is_unfinished(path):
                path.unlink(missing_ok=True)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuses a named pipe, a socket or a device, whose reading may never end.

    Passed are folders and what is not there, which opening names, and what the process was given
    open: a shell's ``<(command)`` is a pipe in ``/dev/fd``.

    Raises:
        MdftError: naming what is there.
    """
    if _GIVEN.fullmatch(os.path.abspath(path)):
        return
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
            raise MdftError(
                f"{path}: must be a file, got {kinds.get(stat.S_IFMT(mode), 'a device')}"
            )


def read_text(path: str | os.PathLike[str], errors: str = "strict") -> str:
    """Reads a text file in UTF-8; ``errors`` as Python's own takes it.

    Raises:
        MdftError: if it is no file but a pipe, a socket or a device.
    """
    check_regular(path)
    return Path(path).read_text(encoding="utf-8", errors=errors)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Writes a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON; numbers must be finite."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_PIECE):
            total.update(part)
    return total.hexdigest()


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str], *, overwrite: bool, check_old: Callable[[Path], None]
) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` that becomes ``path`` when the block succeeds.

    The folder appears whole or not at all. An old one is moved aside only when the new one is
    complete, and removed last.

    Args:
        path: the folder to make.
        overwrite: whether an existing folder may be replaced.
        check_old: raises unless an existing folder is of the kind that is written here and holds
            nothing else, so that a wrong path cannot cost anyone their files.
    """
    path = Path(os.path.abspath(path))
    _check_target(path, overwrite, check_old)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path, "new") as temporary:
            yield temporary
            _flush_all(temporary)
            _check_target(path, overwrite, check_old)
            _swap(temporary, path)
    except OSError as error:
        raise MdftError(f"{path}: could not be written: {error}") from error


@contextlib.contextmanager
def scratch_folder(path: Path, kind: str) -> Iterator[Path]:
    """Yields a new folder beside a path, gone afterwards; those of dead processes go before.

    Args:
        path: what is made with it; its parent must exist.
        kind: a word for its name.
    """
    for old in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
        if re.fullmatch(r"(new|plain)-[0-9a-f]{16}", old.name[len(path.name) + 2 :]) and (
            is_left_behind(old)
        ):
            shutil.rmtree(old, ignore_errors=True)
    folder = path.with_name(f".{path.name}.{kind}-{secrets.token_hex(_TOKEN)}")
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY) if os.name != "nt" else None
    try:
        if handle is not None:
            try_lock(handle)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _swap(temporary: Path, path: Path) -> None:
    """Puts a folder in the place of another, which has the temporary name then, or is gone."""
    aside = old_folder(path)
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        try:
            temporary.rename(path)
        except OSError:
            aside.rename(path)
            raise
    _flush(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def old_folder(path: Path) -> Path:
    """Returns where a folder is for the moment in which another takes its place.

    Where the system cannot exchange two names at once, a kill in that moment leaves it there.
    """
    return path.with_name(f".{path.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system cannot."""
    library = ctypes.CDLL(None, use_errno=True) if os.name != "nt" else None
    rename = getattr(library, "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = rename(here, os.fsencode(one), here, os.fsencode(other), exchange)
    if done != 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return done == 0


def _check_target(path: Path, overwrite: bool, check_old: Callable[[Path], None]) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise MdftError(f"{path}: already exists; pass overwrite=True to replace it")
    if path.is_symlink() or not path.is_dir():
        kind = "a link" if path.is_symlink() else "a file"
        raise MdftError(f"{path}: must be a folder to be replaced, got {kind}")
    check_old(path)


@contextlib.contextmanager
def filled_once(
    entry: Path, is_whole: Callable[[], bool], *, others: bool = False
) -> Iterator[Path]:
    """Yields a folder to fill that becomes ``entry`` when the block succeeds.

    Threads, processes and machines may do so at once and know nothing of one another: what another
    has put there meanwhile is as good, and what is damaged goes.

    Args:
        entry: the folder to make.
        is_whole: whether ``entry`` is what it should be.
        others: whether its parent holds nothing but entries: what was left unfinished of any of
            them is removed then, else of this one alone.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    remove_strays(entry.parent, "." if others else f".{entry.name}.")
    with tempfile.TemporaryDirectory(
        prefix=f".{entry.name}.", suffix=".part", dir=entry.parent, ignore_cleanup_errors=True
    ) as work:
        made = Path(work, "entry")
        made.mkdir()  # with the permissions of any new folder
        yield made
        _flush_all(made)
        _put_in_place(made, entry, is_whole)


def remove_strays(parent: Path, prefix: str = ".") -> None:
    """Removes what was left unfinished. Age alone tells: processes of other machines count."""
    oldest = time.time() - _STRAY_S
    for path in (*parent.glob(f"{prefix}*.part"), *parent.glob(f"{prefix}*.old")):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _put_in_place(made: Path, entry: Path, is_whole: Callable[[], bool]) -> None:
    for turn in range(TRIES):
        if is_whole():
            return
        with contextlib.suppress(FileNotFoundError):  # there is none, or another was faster
            entry.rename(made.with_name(f"old{turn}"))
        try:
            made.rename(entry)
            _flush(entry.parent)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    if not is_whole():
        raise MdftError(f"{entry}: other processes exchange this entry all the time; try again")


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _flush(path: Path) -> None:
    """Forces a file, or a folder's list of names, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
