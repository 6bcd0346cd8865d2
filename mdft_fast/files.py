# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, and where those go that can be made again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mdft_fast.errors import MdftError

_PIECE = 1 << 20  # bytes read and hashed at a time


def cache_folder() -> Path:
    """Returns the folder for what can be made again: ``$MDFT_CACHE``, else the user's cache."""
    own = os.environ.get("MDFT_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(users) / "mdft_fast"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary name to write to; at the end it is flushed to the disk and renamed.

    If the body raises, the target is as it was and the temporary file is gone.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: threads, and processes of other machines and containers, may write too.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


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
def new_folder(path: Path, *, overwrite: bool, check_old: Callable[[Path], None]) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` that becomes ``path`` when the block succeeds.

    The folder appears whole or not at all. An old one is moved aside only when the new one is
    complete, and removed last.

    Args:
        path: the folder to make.
        overwrite: whether an existing folder may be replaced.
        check_old: raises unless an existing folder is of the kind that is written here and holds
            nothing else, so that a wrong path cannot cost anyone their files.
    """
    _check_target(path, overwrite, check_old)
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.name}.new-{token}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for folder in [*(p for p in temporary.rglob("*") if p.is_dir()), temporary]:
            _flush_folder(folder)
        _check_target(path, overwrite, check_old)
        _swap(temporary, path, path.with_name(f".{path.name}.old-{token}"))
    except OSError as error:
        raise MdftError(f"{path}: could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, path: Path, aside: Path) -> None:
    old = path.exists()
    if old:
        path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        if old:
            aside.rename(path)
        raise
    _flush_folder(path.parent)
    if old:
        shutil.rmtree(aside)


def _check_target(path: Path, overwrite: bool, check_old: Callable[[Path], None]) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise MdftError(f"{path}: already exists; pass overwrite=True to replace it")
    if path.is_symlink() or not path.is_dir():
        kind = "a link" if path.is_symlink() else "a file"
        raise MdftError(f"{path}: must be a folder to be replaced, got {kind}")
    check_old(path)


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
