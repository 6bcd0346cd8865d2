# SPDX-License-Identifier: Apache-2.0
"""Opens what ``torch.save`` writes, zip and legacy, without ``torch.load``.

The pickle inside goes through :class:`Machine`, which executes nothing. Elements stay in the file:
it is mapped, copy on write, and a page is read when it is first touched.
"""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from mdft_fast.checkpoints.pickle_machine import Machine, Name, PickleRefused, kind_of
from mdft_fast.checkpoints.torch_values import FUNCTIONS, Storage, persistent
from mdft_fast.errors import MdftError

LEGACY = 0x1950A86A20F9469CFC6C  # the number that a legacy file begins with, as a pickle
_PICKLE_BYTES = 64 << 20  # longest pickle that is read; a whole CLIP module's takes a few 100 KB
_LOCAL_HEADER = 30  # bytes of a zip entry's header before its name
_SAID_BEHIND = 1 << 3  # flag of a zip entry: its CRC-32 stands behind its data
_PIECE = 1 << 20  # bytes read and compared at a time
_JOBLIB_WITHIN = 4096  # bytes: its own class is named before the first array
_NOT_TORCHS = (
    "a pickle that torch.save did not write but {}; load it where it was made and torch.save a "
    "dict of its tensors"
)

Elements = Callable[[Storage, torch.dtype], Tensor]
Opened = tuple[Any, Elements, Callable[[], None]]


class _Entry(NamedTuple):
    """An entry of a zip file that lies in it as it is: first byte, length and CRC-32."""

    start: int
    length: int
    crc: int


def open_torch(path: Path, *, legacy: bool) -> Opened:
    """Returns the pickled object, stand-ins inside, what reads its storages, and what checks them.

    The check reads every storage once and compares its CRC-32; legacy files have none.

    Raises:
        MdftError: if the file is damaged, packed, not torch's, or declares what it does not hold.
    """
    try:
        return _open_legacy(path) if legacy else _open_zip(path)
    except (PickleRefused, OSError) as error:
        size = path.stat().st_size
        raise MdftError(f"{path}: not a readable torch file ({size} bytes): {error}") from None


def _open_zip(path: Path) -> Opened:
    entries = _zip_entries(path)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise PickleRefused("a zip file without 'data.pkl' as it is, so not torch's")
    folder = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order is not None and _slice(path, order, 16) == b"big":
        raise PickleRefused("written on a big-endian machine")
    pickled = _slice(path, entries[pickles[0]], _PICKLE_BYTES)
    _check_crc(path, pickles[0], entries[pickles[0]], zlib.crc32(pickled))
    places: dict[str, tuple[int, int]] = {}
    used: dict[str, _Entry] = {}

    def find(identity: Any) -> Storage | Name:
        referent = persistent(identity)
        if isinstance(referent, Storage):
            name = f"{folder}data/{referent.key}"
            place = entries.get(name)
            places[referent.key] = _checked_place(referent, place and place[:2])
            used[name] = entries[name]
        return referent

    root = Machine(FUNCTIONS, find).run(BytesIO(pickled))
    return root, _reader(path, places), functools.cache(functools.partial(_check, path, used))


def _open_legacy(path: Path) -> Opened:
    """Does the same as :func:`_open_zip` for files of torch before 1.6.

    The file: three pickles (a magic number, a version, the system), the object's, one with the
    storages' keys; then each storage, as its number of elements in 8 bytes and the elements.
    """
    seen: dict[str, Storage] = {}

    def find(identity: Any) -> Storage | Name:
        referent = persistent(identity)
        if isinstance(referent, Storage):
            first = seen.setdefault(referent.key, referent)
            if (first.dtype, first.elements) != (referent.dtype, referent.elements):
                raise PickleRefused(f"storage {referent.key!r} is declared in two ways")
        return referent

    size = path.stat().st_size
    with open(path, "rb") as file:
        stream = BytesIO(file.read(min(size, _PICKLE_BYTES)))
    if b"joblib" in stream.getvalue()[:_JOBLIB_WITHIN]:
        raise PickleRefused(_NOT_TORCHS.format("joblib.dump"))
    machine = Machine(FUNCTIONS, find)
    magic = machine.run(stream)
    if magic != LEGACY:
        kind = kind_of(magic)
        if kind == "torch.distributed.checkpoint.metadata.Metadata":
            raise PickleRefused("the list of a distributed checkpoint; give its folder")
        raise PickleRefused(f"{_NOT_TORCHS.format('pickle.dump')}, of a {kind}")
    _, system = machine.run(stream), machine.run(stream)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise PickleRefused("written on a big-endian machine")
    root, keys = machine.run(stream), machine.run(stream)
    places = _legacy_places(path, stream.tell(), size, keys, seen)
    return root, _reader(path, places), lambda: None


def _legacy_places(
    path: Path, start: int, size: int, keys: Any, seen: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    # Numbers in files before torch 0.4. str of anything else may take exponential time.
    plain = isinstance(keys, list) and all(
        type(key) is str or (type(key) is int and abs(key) < 2**64) for key in keys
    )
    if not plain or len(keys) != len(seen) or set(map(str, keys)) != set(seen):
        raise PickleRefused("its list of storages does not name those that are used")
    places: dict[str, tuple[int, int]] = {}
    with open(path, "rb") as file:
        for key in map(str, keys):
            file.seek(start)
            elements = int.from_bytes(file.read(8), "little")
            if elements != seen[key].elements:
                raise PickleRefused(
                    f"storage {key!r} must be {seen[key].elements} elements, got {elements}"
                )
            bytes_ = elements * seen[key].dtype.itemsize
            places[key] = _checked_place(seen[key], (start + 8, min(bytes_, size - start - 8)))
            start += 8 + bytes_
    return places


def _checked_place(storage: Storage, place: tuple[int, int] | None) -> tuple[int, int]:
    if place is None:
        raise PickleRefused(f"storage {storage.key!r} is missing or compressed")
    length = storage.elements * storage.dtype.itemsize
    if place[1] < length:
        raise PickleRefused(
            f"storage {storage.key!r} must be {length} bytes, got {place[1]}: cut short?"
        )
    return place[0], length


def _zip_entries(path: Path) -> dict[str, _Entry]:
    """Returns the entries that lie in the file as they are, by name."""
    places: dict[str, _Entry] = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            end = archive.start_dir
            for entry in sorted(archive.infolist(), key=lambda e: e.header_offset, reverse=True):
                if entry.filename in places:
                    raise PickleRefused(f"the zip file holds {entry.filename!r} twice")
                start, crc = _local(file, entry)
                if start + entry.compress_size > end:
                    raise PickleRefused(f"{entry.filename!r} is cut short, or lies in another one")
                end = entry.header_offset
                # TorchScript's code is compressed, and not read; tensors never are.
                if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
                    places[entry.filename] = _Entry(start, entry.file_size, crc)
    except PickleRefused:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for damaged directories
        raise PickleRefused(f"damaged zip file ({type(error).__name__}: {error})") from None
    return places


def _local(file: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Returns where an entry's data begins, and its CRC-32.

    The directory at the file's end and what stands around the data itself must say the same.
    """
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise PickleRefused(f"{entry.filename!r} does not begin where it should")
    named, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    name, start = file.read(named), entry.header_offset + _LOCAL_HEADER + named + extra
    crc = header[14:18]
    if entry.flag_bits & _SAID_BEHIND:
        file.seek(start + entry.compress_size)
        crc = file.read(8).removeprefix(b"PK\x07\x08")[:4]
    codec = "utf-8" if entry.flag_bits & 0x800 else "cp437"
    if name.decode(codec) != entry.orig_filename or crc != entry.CRC.to_bytes(4, "little"):
        raise PickleRefused(f"{entry.filename!r} is not where the zip file's directory says")
    return start, entry.CRC


def _check(path: Path, entries: Mapping[str, _Entry]) -> None:
    """Compares the CRC-32 of entries; they are read, a piece at a time."""
    with open(path, "rb") as file:
        for name, entry in entries.items():
            file.seek(entry.start)
            crc, missing = 0, entry.length
            while missing and (piece := file.read(min(missing, _PIECE))):
                crc, missing = zlib.crc32(piece, crc), missing - len(piece)
            _check_crc(path, name, entry, crc)


def _check_crc(path: Path, name: str, entry: _Entry, crc: int) -> None:
    if entry.crc not in (crc, 0):  # 0: torch was told to compute none
        raise MdftError(
            f"{path}: {name!r} must have CRC-32 {entry.crc:08x}, got {crc:08x}: it is damaged"
        )


def _slice(path: Path, entry: _Entry, most: int) -> bytes:
    start, length, _ = entry
    if length > most:
        raise PickleRefused(f"a pickle must be at most {most} bytes, got {length}")
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def _reader(path: Path, places: dict[str, tuple[int, int]]) -> Elements:
    mapped: list[Tensor] = []

    def elements(storage: Storage, dtype: torch.dtype) -> Tensor:
        if not mapped:
            size = path.stat().st_size
            mapped.append(torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8))
        start, _ = places[storage.key]
        start += storage.start * storage.dtype.itemsize
        length = storage.length * storage.dtype.itemsize // dtype.itemsize * dtype.itemsize
        part = mapped[0][start : start + length]
        return (part.clone() if start % dtype.itemsize else part).view(dtype)

    return elements
