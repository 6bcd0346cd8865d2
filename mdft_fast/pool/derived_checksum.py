# SPDX-License-Identifier: Apache-2.0
"""Whether a saved pool's content is what its checksums say. Every byte is read once.

Base and task vectors are hashed as they are mapped, in a thread beside the search for NaN, which
goes through the same pages; and the checksum that names the pool is derived from these digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mdft_fast.arena import digest, rows_of
from mdft_fast.checkpoints import Written
from mdft_fast.errors import MdftError
from mdft_fast.files import file_digest
from mdft_fast.pool.finite import check_finite
from mdft_fast.pool.manifest import BASE, MANIFEST, TAU
from mdft_fast.pool.pool_data import PoolData, pool_checksum


def check_checksums(pool: PoolData, folder: Path, files: Mapping[str, Written]) -> None:
    """Refuses a pool that is not what was written, or holds a number that is not finite.

    Args:
        pool: as opened.
        folder: where.
        files: what ``pool.json`` says of the folder's files.

    Raises:
        MdftError: naming the file that changed.
    """
    others = {name: written for name, written in files.items() if name not in (BASE, TAU)}
    with ThreadPoolExecutor(1) as beside:
        derived = beside.submit(_derived, pool)
        try:
            check_finite(pool, folder)
        except MdftError:  # damage is the better reason
            _check_digests(folder, files)
            raise
        if derived.result() == pool.checksum:
            _check_digests(folder, others)
            return
    _check_digests(folder, files)
    raise MdftError(
        f"{folder / MANIFEST}: checksum must be {derived.result()} by the content, got "
        f"{pool.checksum}: {MANIFEST} changed since it was written"
    )


def _check_digests(folder: Path, files: Mapping[str, Written]) -> None:
    """Refuses files whose sha256 is not the one that was written down."""
    for name, written in files.items():
        sha256 = file_digest(folder / name)
        if sha256 != written.sha256:
            raise MdftError(
                f"{folder / name}: sha256 must be {written.sha256} as in {MANIFEST}, got {sha256}: "
                "the file changed since it was written"
            )


def _derived(pool: PoolData) -> str:
    base = digest(pool.base)
    rows = [digest(*row.tensors) for row in rows_of(pool.vectors)]
    return pool_checksum(pool.layout, pool.codec, base, rows, pool.buffers)
