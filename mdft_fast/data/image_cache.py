# SPDX-License-Identifier: Apache-2.0
"""Images decoded once and kept as mapped bytes below the user's cache folder.

An entry is a folder that appears whole or not at all:

    images/<key>/images.npy     uint8 [n, H, W, c]
    images/<key>/digests.npy    uint8 [n, 16], one an image
    images/<key>/entry.json     what it was made from
    labels/<key>.json           only where an evaluation has asked for labels

The key is a digest of the source (its place, its files' names, sizes and times) and of what the
pixels depend on. Every image's digest is compared when an entry is opened for the first time in a
process; an entry that does not agree is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mdft_fast.checkpoints import Preprocess
from mdft_fast.data.images.decoding import Array, fit
from mdft_fast.data.images.listing import Listing, Opened
from mdft_fast.errors import MdftError, need
from mdft_fast.files import TRIES, cache_folder, filled_once, remove_strays, write_json
from mdft_fast.terminal import is_terminal, printable

Watch = Callable[[str, int, int], None]  # what is done, how many of how many

_FORMAT = 1
DIGEST_BYTES = 16
_ROWS = 64  # images that a thread takes at once
_KEPT_FREE = 64 << 20  # bytes of the disk
_verified: set[tuple[str, int]] = set()  # images.npy and its time: read and compared already


def cached_images(
    listing: Listing, preprocess: Preprocess, watch: Watch | None = None
) -> tuple[Array, Array]:
    """Returns a source's images, decoding them if no whole cache entry is there.

    Args:
        listing: the source.
        preprocess: mean and std do not count, all else does.
        watch: told how far decoding is; None: a bar where standard error is a terminal.

    Returns:
        uint8 ``[n, H, W, c]``, mapped and read-only, and their digests uint8 ``[n, 16]``.
    """
    entry = cache_folder() / "images" / _key(listing, preprocess)
    cached = _read(entry, listing, preprocess)
    for _ in range(TRIES):
        if cached is not None:
            return cached
        with _writing(listing):
            _build(entry, listing, preprocess, watch)
        cached = _read(entry, listing, preprocess)
    if cached is None:
        raise MdftError(f"{entry}: what was just written there does not read back; check the disk")
    return cached


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


def digests_of(images: Array) -> Array:
    """Returns what tells images apart: uint8 ``[n, 16]``.

    Args:
        images: ``[n, ...]``; grayscale uint8 ``[n, H, W, 1]`` counts as its three equal channels.
    """

    def rows(start: int) -> list[bytes]:
        part = images[start : start + _ROWS]
        if part.dtype == np.uint8 and part.shape[-1] == 1:
            part = np.repeat(part, 3, axis=-1)
        return [
            hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=DIGEST_BYTES).digest()
            for row in part
        ]

    with ThreadPoolExecutor(decoding_threads()) as pool:
        parts = pool.map(rows, range(0, len(images), _ROWS))
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
        try:
            status = file.stat()
        except OSError as error:
            raise MdftError(f"{file}: not readable: {error.strerror}") from None
        states.append((str(file), status.st_size, status.st_mtime_ns))
    return states


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(entry: Path, listing: Listing, preprocess: Preprocess) -> tuple[Array, Array] | None:
    """Opens an entry; None where it is absent or damaged."""
    try:
        content = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
        digests = np.load(entry / "digests.npy", allow_pickle=False)
        images: Array = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        changed = (entry / "images.npy").stat().st_mtime_ns
        shape = (content["count"], *preprocess["size"], listing.channels)
        checksum = hashlib.sha256(digests.tobytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if images.shape != shape or images.dtype != np.uint8 or checksum != content.get("digests"):
        return None
    key = str(entry), changed
    if key not in _verified:
        if not np.array_equal(digests_of(images), digests):
            return None
        _verified.add(key)
    return images, digests


def _build(entry: Path, listing: Listing, preprocess: Preprocess, watch: Watch | None) -> None:
    opened = listing.open()
    if opened.count == 0:
        raise MdftError(f"{listing.name}: holds no sample; wanted one or more")

    def is_whole() -> bool:
        return _read(entry, listing, preprocess) is not None

    with filled_once(entry, is_whole, others=True) as made:
        _fill(made, opened, listing, preprocess, watch)


def _fill(
    made: Path, opened: Opened, listing: Listing, preprocess: Preprocess, watch: Watch | None
) -> None:
    """Decodes every image into the three files of an entry."""
    shape = (opened.count, *preprocess["size"], listing.channels)
    needed, free = int(np.prod(shape)), shutil.disk_usage(made).free
    if needed + _KEPT_FREE > free:
        raise MdftError(
            f"{listing.name}: the cache needs {needed / 1e9:.1f} GB for {opened.count:,} images, "
            f"and {free / 1e9:.1f} GB are free at {made.parents[1]}; MDFT_CACHE names another "
            "folder"
        )
    images = np.lib.format.open_memmap(made / "images.npy", "w+", np.uint8, shape)
    _allocate(made / "images.npy")
    with _shown(watch, f"decoding {listing.name}", opened.count) as tell:
        _decode_all(opened, images, preprocess, tell)
    images.flush()
    digests = digests_of(images)
    np.save(made / "digests.npy", digests)
    content = {
        "format": _FORMAT,
        "source": listing.origin,
        "count": opened.count,
        "pixels": _pixels(listing, preprocess),
        "digests": hashlib.sha256(digests.tobytes()).hexdigest(),
    }
    write_json(made / "entry.json", content)


def _decode_all(
    opened: Opened, images: Array, preprocess: Preprocess, tell: Callable[[int], None]
) -> None:
    """Decodes every image; PIL lets go of Python's lock, so threads do."""

    def work(start: int) -> int:
        stop = min(start + _ROWS, opened.count)
        for i in range(start, stop):
            images[i] = fit(opened.image(i), preprocess, images.shape[3])
        return stop - start

    pool = ThreadPoolExecutor(decoding_threads())
    try:
        for count in pool.map(work, range(0, opened.count, _ROWS)):
            tell(count)
    finally:
        pool.shutdown(cancel_futures=True)


def _allocate(file: Path) -> None:
    """Takes the disk's blocks now: a mapped write to a full disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        with open(file, "rb+") as handle:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)


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
