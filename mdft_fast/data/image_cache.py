# SPDX-License-Identifier: Apache-2.0
"""Images decoded once and kept as mapped bytes below the user's cache folder.

An entry is a folder that appears whole or not at all:

    images/<key>/images.npy     uint8 [n, H, W, c]; a hole where an image was never wanted
    images/<key>/digests.npy    uint8 [n, 16], one an image; zeros where there is none yet
    images/<key>/entry.json     what it was made from
    labels/<key>.json           only where an evaluation has asked for labels

The key is a digest of the source (its place, its files' names, sizes and times) and of what the
pixels depend on. Only images that are wanted are decoded; more of them are added in place, and
count once their digests are written. An image's digest is compared when it is wanted for the first
time in a process; one that does not agree is decoded again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdft_fast.cache import bound_cache, cache_folder, used
from mdft_fast.checkpoints import Preprocess
from mdft_fast.data.images.decoding import Array, fit
from mdft_fast.data.images.listing import Listing, Opened
from mdft_fast.errors import MdftError, need
from mdft_fast.file_locks import lock_on
from mdft_fast.files import TRIES, filled_once, regular, remove_strays, replacing, write_json
from mdft_fast.terminal import is_terminal, printable

Watch = Callable[[str, int, int], None]  # what is done, how many of how many

_FORMAT = 1
DIGEST_BYTES = 16
_ROWS = 64  # images that a thread takes at once
_KEPT_FREE = 64 << 20  # bytes of the disk
_IMAGES, _DIGESTS, _ABOUT = "images.npy", "digests.npy", "entry.json"
Rows = NDArray[np.int64]
# An entry and its images' time -> which of them were read and compared already.
_verified: dict[tuple[str, int], NDArray[np.bool_]] = {}


Choose = Callable[[int], Rows]  # number of images -> those that are wanted, rising


class CachedImages(NamedTuple):
    """A source's images.

    Attributes:
        images: uint8 ``[n, H, W, c]``, mapped and read-only; only ``rows`` of it are decoded.
        digests: uint8 ``[m, 16]``, of those.
        rows: int64 ``[m]``; None: all n.
    """

    images: Array
    digests: Array
    rows: Rows | None


def cached_images(
    listing: Listing,
    preprocess: Preprocess,
    watch: Watch | None = None,
    choose: Choose | None = None,
) -> CachedImages:
    """Returns a source's images; decodes those that are wanted and not in the cache yet.

    Args:
        listing: the source.
        preprocess: mean and std do not count, all else does.
        watch: told how far decoding is; None: a bar where standard error is a terminal.
        choose: which images are wanted, int64 ``[m]``, rising; None: all.
    """
    folder = cache_folder() / "images" / _key(listing, preprocess)
    for _ in range(TRIES):
        entry = _read(folder, listing, preprocess)
        with _writing(listing):
            if entry is None:
                _build(folder, listing, preprocess, watch, choose)
                continue
            used(folder)
            count = len(entry.images)
            rows = np.arange(count) if choose is None else choose(count)
            if len(entry.missing(rows)) == 0:
                return CachedImages(entry.images, entry.digests[rows], rows if choose else None)
            # Gone meanwhile: once more. While it is locked, nobody else adds to it or removes it.
            with contextlib.suppress(FileNotFoundError), lock_on(folder):
                entry = _read(folder, listing, preprocess)
                if entry is not None and len(missing := entry.missing(rows)):
                    _add(entry, listing, preprocess, watch, missing)
    raise MdftError(f"{folder}: what was just written there does not read back; check the disk")


def cached_labels(listing: Listing) -> list[int]:
    """Returns a source's labels, for an evaluation."""
    if listing.labels_in_memory:
        return _labels(listing)
    file = cache_folder() / "labels" / f"{_key(listing)}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        labels = content["labels"]
        if content["sha256"] == _checksum(labels):
            return [int(label) for label in labels]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged
    labels = _labels(listing)
    with _writing(listing):
        remove_strays(file.parent)
        write_json(file, {"sha256": _checksum(labels), "labels": labels})
    return labels


def _labels(listing: Listing) -> list[int]:
    return [int(label) for label in listing.open().labels()]


def digests_of(images: Array, rows: Rows | None = None) -> Array:
    """Returns what tells images apart: uint8 ``[m, 16]``.

    Args:
        images: ``[n, ...]``; grayscale uint8 ``[n, H, W, 1]`` counts as its three equal channels.
        rows: int64 ``[m]``: of which of them; None: all.
    """
    count = len(images) if rows is None else len(rows)

    def some(start: int) -> list[bytes]:
        at = slice(start, start + _ROWS)
        part = images[at if rows is None else rows[at]]
        if part.dtype == np.uint8 and part.shape[-1] == 1:
            part = np.repeat(part, 3, axis=-1)
        return [
            hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=DIGEST_BYTES).digest()
            for row in part
        ]

    with ThreadPoolExecutor(decoding_threads()) as pool:
        parts = pool.map(some, range(0, count, _ROWS))
        digests = b"".join(digest for part in parts for digest in part)
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)


def _key(listing: Listing, preprocess: Preprocess | None = None) -> str:
    made: dict[str, Any] = {"format": _FORMAT, "origin": listing.origin}
    made["files"] = _state(listing.files)
    if preprocess is None:
        made["labels"] = _state(listing.label_files)
        made["classes"] = listing.class_names  # a label is a number in their order
    else:
        made["pixels"] = _pixels(listing, preprocess)
    return _checksum(made)[:32]


def _pixels(listing: Listing, preprocess: Preprocess) -> dict[str, Any]:
    """Returns all that the pixels depend on, but the files."""
    return {
        "size": preprocess["size"],
        "resize": preprocess["resize"],
        "interpolation": preprocess["interpolation"],
        "crop_pct": preprocess["crop_pct"],
        "channels": listing.channels,
    }


def _state(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    states = []
    for file in files:
        status = regular(file)
        states.append((str(file), status.st_size, status.st_mtime_ns))
    return states


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An entry as it lies on the disk.

    Attributes:
        folder: of it.
        images: uint8 ``[n, H, W, c]``, mapped.
        digests: uint8 ``[n, 16]``; zeros where an image was not decoded yet.
        changed: when ``images`` was written last, in ns.
    """

    folder: Path
    images: Array
    digests: Array
    changed: int

    def missing(self, rows: Rows) -> Rows:
        """Returns those of some images that are not there, or not what was written."""
        key = str(self.folder), self.changed
        known = _verified.setdefault(key, np.zeros(len(self.images), bool))
        there = self.digests[rows].any(1)
        unknown = rows[there & ~known[rows]]
        agree = (digests_of(self.images, unknown) == self.digests[unknown]).all(1)
        known[unknown] = agree
        return rows[~there | ~known[rows]]


def _read(folder: Path, listing: Listing, preprocess: Preprocess) -> _Entry | None:
    """Opens an entry; None where there is none, or none of the right form."""
    try:
        content = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        digests = np.load(folder / _DIGESTS, allow_pickle=False)
        images: Array = np.load(folder / _IMAGES, mmap_mode="r", allow_pickle=False)
        changed = (folder / _IMAGES).stat().st_mtime_ns
        count = content["count"]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    shape = (count, *preprocess["size"], listing.channels)
    fits = images.shape == shape and digests.shape == (count, DIGEST_BYTES)
    if not fits or images.dtype != np.uint8 or digests.dtype != np.uint8:
        return None
    return _Entry(folder, images, digests, changed)


def _build(
    folder: Path,
    listing: Listing,
    preprocess: Preprocess,
    watch: Watch | None,
    choose: Choose | None,
) -> None:
    """Makes an entry, with the images that are wanted in it."""
    opened = _opened(listing)
    rows = np.arange(opened.count) if choose is None else choose(opened.count)

    def is_whole() -> bool:
        return _read(folder, listing, preprocess) is not None

    with filled_once(folder, is_whole, others=True) as made:
        shape = (opened.count, *preprocess["size"], listing.channels)
        np.lib.format.open_memmap(made / _IMAGES, "w+", np.uint8, shape)  # a hole, so far
        digests = np.zeros((opened.count, DIGEST_BYTES), np.uint8)
        digests[rows] = _decode(opened, made / _IMAGES, listing, preprocess, watch, rows)
        np.save(made / _DIGESTS, digests)
        content = {
            "format": _FORMAT,
            "source": listing.origin,
            "count": opened.count,
            "pixels": _pixels(listing, preprocess),
        }
        write_json(made / _ABOUT, content)
    bound_cache()


def _add(
    entry: _Entry, listing: Listing, preprocess: Preprocess, watch: Watch | None, rows: Rows
) -> None:
    """Decodes more images into an entry that is locked."""
    remove_strays(entry.folder)
    known = _verified.pop((str(entry.folder), entry.changed), np.zeros(len(entry.images), bool))
    images, digests = entry.folder / _IMAGES, entry.digests.copy()
    digests[rows] = _decode(_opened(listing), images, listing, preprocess, watch, rows)
    # Last: until then the images are not there.
    with replacing(entry.folder / _DIGESTS) as temporary, open(temporary, "wb") as file:
        np.save(file, digests)
    _verified[str(entry.folder), images.stat().st_mtime_ns] = known
    bound_cache()


def _opened(listing: Listing) -> Opened:
    opened = listing.open()
    if opened.count == 0:
        raise MdftError(f"{listing.name}: holds no sample; wanted one or more")
    return opened


def _decode(
    opened: Opened,
    file: Path,
    listing: Listing,
    preprocess: Preprocess,
    watch: Watch | None,
    rows: Rows,
) -> Array:
    """Decodes some images into their places of a file; returns their digests ``[m, 16]``."""
    images = np.load(file, mmap_mode="r+", allow_pickle=False)
    needed, free = len(rows) * images[0].nbytes, shutil.disk_usage(file).free
    if needed + _KEPT_FREE > free:
        raise MdftError(
            f"{listing.name}: the cache needs {needed / 1e9:.1f} GB for {len(rows):,} images, "
            f"and {free / 1e9:.1f} GB are free at {cache_folder()}; MDFT_CACHE names another "
            "folder"
        )
    _allocate(file, images, rows)
    with _shown(watch, f"decoding {listing.name}", len(rows)) as tell:
        _decode_all(opened, images, preprocess, rows, tell)
    images.flush()
    return digests_of(images, rows)


def _decode_all(
    opened: Opened,
    images: Array,
    preprocess: Preprocess,
    rows: Rows,
    tell: Callable[[int], None],
) -> None:
    """Decodes images; PIL lets go of Python's lock, so threads do."""

    def work(start: int) -> int:
        some = rows[start : start + _ROWS].tolist()
        for i in some:
            images[i] = fit(opened.image(i), preprocess, images.shape[3])
        return len(some)

    pool = ThreadPoolExecutor(decoding_threads())
    try:
        for count in pool.map(work, range(0, len(rows), _ROWS)):
            tell(count)
    finally:
        pool.shutdown(cancel_futures=True)


def _allocate(file: Path, images: Array, rows: Rows) -> None:
    """Takes the disk's blocks now: a mapped write to a full disk would end the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    size = images[0].nbytes
    header = file.stat().st_size - len(images) * size
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    with open(file, "rb+") as handle:
        for run in np.split(rows, breaks):
            offset = header + int(run[0]) * size
            os.posix_fallocate(handle.fileno(), offset, len(run) * size)


@contextmanager
def _writing(listing: Listing) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MdftError(
            f"{listing.name}: the cache at {cache_folder()} cannot be written: {error}; MDFT_CACHE "
            "names another folder"
        ) from None


@contextmanager
def _shown(watch: Watch | None, words: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives what to call with each number of images that are done."""
    done = 0
    if watch is not None or not is_terminal(sys.stderr):

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if watch is not None:
                watch(words, done, total)

        yield tell
        return
    console = need("rich.console").Console(stderr=True)
    with need("rich.progress").Progress(console=console, transient=True) as bars:
        bar = bars.add_task(need("rich.markup").escape(printable(words)), total=total)
        yield lambda count: bars.advance(bar, count)


def forget_verified() -> None:
    """Forgets what was verified, so that every entry is read again as in a new process."""
    _verified.clear()


def decoding_threads() -> int:
    """Returns how many threads decode and compare: one a core that this process may use."""
    counted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(counted or 1, 32)
