# SPDX-License-Identifier: Apache-2.0
"""Where cache entries are made, by threads, processes and machines that know nothing of another."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mdft_fast.errors import MdftError

TRIES = 3  # another process may be exchanging the same entry just now
_STRAY_S = 24 * 3600  # what is unfinished and older has no process any more, on any machine


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Gives a folder of one's own beside a target; it is gone at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_strays(target.parent)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.stem}.", suffix=".part", dir=target.parent, ignore_cleanup_errors=True
    ) as work:
        yield Path(work)


def _remove_strays(parent: Path) -> None:
    """Removes what was left unfinished. Age alone tells: processes of other machines count."""
    oldest = time.time() - _STRAY_S
    for path in (*parent.glob(".*.part"), *parent.glob(".*.old")):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)


def put_in_place(made: Path, entry: Path, is_whole: Callable[[], bool]) -> None:
    """Renames; what another process has put there is as good, and what is damaged goes."""
    for turn in range(TRIES):
        if is_whole():
            return
        with suppress(FileNotFoundError):  # there is none, or another process was faster
            entry.rename(made.with_name(f"old{turn}"))
        try:
            made.rename(entry)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    if not is_whole():
        raise MdftError(f"{entry}: other processes exchange this entry all the time; try again")
