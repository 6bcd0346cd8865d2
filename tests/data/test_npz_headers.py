# SPDX-License-Identifier: Apache-2.0
"""npz files that declare what they do not hold, or more than anyone wants."""

from __future__ import annotations

import io
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mdft_fast.data import NpzSource
from mdft_fast.data.samples import load_samples
from mdft_fast.errors import MdftError

PREPROCESS = {"size": 8, "mean": 0.5, "std": 0.5}
GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 8, 8, 3)}"


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _zip(member: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        archive.writestr("x.npy", member)
    return made.getvalue()


def _directory(at: int, value: bytes) -> bytes:
    """Changes the directory of a good file."""
    whole = bytearray(_zip(_npy(GOOD, bytes(6 * 8 * 8 * 3))))
    start = zipfile.ZipFile(io.BytesIO(whole)).start_dir + at
    whole[start : start + len(value)] = value
    return bytes(whole)


DAMAGED = {
    "unknown compression": _directory(10, b"\x63\0"),
    "zip version": _directory(6, b"\x40"),
    "encrypted": _directory(8, b"\x01\0"),
    "cut header": _zip(_npy("{'descr': '|u1', 'shape': (6,8")),
    "no data": _zip(_npy(GOOD)),
    "10^12 images": _zip(_npy(GOOD.replace("(6,", "(1000000000000,"))),
    "2^64 images": _zip(_npy(GOOD.replace("(6,", f"({2**64},"))),
    "another version": _zip(b"\x93NUMPY\x09\x00" + bytes(80)),
    "no npy": _zip(b"text"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_one_clear_error(case: str, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(DAMAGED[case])
    with pytest.raises(MdftError, match=r"x.npz: (key 'x'|not a readable)"):
        load_samples(NpzSource(tmp_path / "x.npz", "x"), PREPROCESS)


def test_a_small_file_of_many_zeros_is_judged_by_its_header(tmp_path: Path) -> None:
    file, images = tmp_path / "x.npz", 1_000_000
    member = _npy(GOOD.replace("(6,", f"({images},"), bytes(images * 8 * 8 * 3))
    file.write_bytes(_zip(member, zipfile.ZIP_DEFLATED))
    del member
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MdftError, match=r"must be 32 x 32 pixels .*, got 8 x 8"):
        load_samples(NpzSource(file, "x"), {**PREPROCESS, "size": 32})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss == before
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mdft_fast.data.images.sources.available_memory", lambda _: 1 << 20)
        with pytest.raises(MdftError, match=r"must fit into memory, of which 1,048,576 bytes"):
            load_samples(NpzSource(file, "x"), PREPROCESS)


def test_good_files_of_every_version_are_read(tmp_path: Path) -> None:
    wanted = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3)
    for version in ((1, 0), (2, 0), (3, 0)):
        member = io.BytesIO()
        np.lib.format.write_array(member, wanted, version=version)
        (tmp_path / "x.npz").write_bytes(_zip(member.getvalue(), zipfile.ZIP_DEFLATED))
        x = load_samples(NpzSource(tmp_path / "x.npz", "x"), PREPROCESS).x
        assert (x.numpy() == wanted).all()
