# SPDX-License-Identifier: Apache-2.0
"""A torch file's directory, what stands around its data, and its CRC-32 must agree."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mdft_fast.checkpoints import convert, describe
from mdft_fast.errors import MdftError


def _entries(whole: bytes) -> dict[str, tuple[int, int]]:
    """Returns name -> where its record of the directory and its local header begin."""
    found, at = {}, whole.find(b"PK\1\2")
    while whole[at : at + 4] == b"PK\1\2":
        sizes = struct.unpack("<HHH", whole[at + 28 : at + 34])
        (local,) = struct.unpack("<I", whole[at + 42 : at + 46])
        found[whole[at + 46 : at + 46 + sizes[0]].decode().partition("/")[2]] = (at, local)
        at += 46 + sum(sizes)
    return found


def _redirected(whole: bytes) -> bytes:
    (at, _), (_, other) = (_entries(whole)[name] for name in ("data/0", "data/1"))
    return whole[: at + 42] + struct.pack("<I", other) + whole[at + 46 :]


def _flipped(whole: bytes) -> bytes:
    at = whole.find(struct.pack("<8f", *range(8))) + 6
    return whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]


def _shifted(whole: bytes) -> bytes:
    at = _entries(whole)["data/0"][1] + 28
    return whole[:at] + bytes([whole[at] + 8]) + whole[at + 1 :]


@pytest.mark.parametrize("damage", [_redirected, _flipped, _shifted])
def test_damage_is_found(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    torch.save({"a": torch.arange(8.0), "b": -torch.arange(8.0)}, file)
    convert(file, tmp_path / "good.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(MdftError, match=r"m.pt: .*(CRC-32|is not where|another one)"):
        convert(file, tmp_path / "bad.safetensors")
    assert not (tmp_path / "bad.safetensors").exists()


def test_files_without_crc_and_zipped_again_are_read(tmp_path: Path) -> None:
    file, again = tmp_path / "m.pt", tmp_path / "again.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(8.0)}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    convert(file, tmp_path / "1.safetensors")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(again, "w") as new:
        for entry in old.infolist():
            with old.open(entry) as data:
                data._expected_crc = None  # type: ignore[attr-defined]
                new.writestr(entry.filename, data.read())
    convert(again, tmp_path / "2.safetensors")
    one, two = ((tmp_path / f"{i}.safetensors").read_bytes() for i in (1, 2))
    assert one == two


def test_a_storage_is_not_written_out_a_thousand_times(tmp_path: Path) -> None:
    file, shared = tmp_path / "m.pt", torch.zeros(1 << 18)
    torch.save({f"t{i}": shared for i in range(300)}, file)
    assert "300, 78,643,200 elements" in describe(file)
    with pytest.raises(MdftError, match=r"its 300 tensors are 314,572,800 bytes written out"):
        convert(file, tmp_path / "m.safetensors")
