# SPDX-License-Identifier: Apache-2.0
"""Small files that would take exponential, quadratic or huge amounts to read are refused."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mdft_fast.checkpoints import open_state
from tests.checkpoints.corpus import torch_zip

DAG = b")" + b"2\x86" * 40  # () doubled 40 times: 2**40 items to whoever walks it
LIST = b"(" + b"N" * 20_000 + b"lq\x00"
SECONDS, MIB = 4, 300  # of processor time and memory; before, they took minutes, days, or 1 GiB


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def legacy(path: Path) -> None:
    """A list of storages that holds a doubled tuple."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})
    start = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    path.write_bytes(start + b"\x80\x02(" + DAG + b"l.")


def instance(kind: str, state: bytes) -> bytes:
    return b"cm\n" + kind.encode() + b"\n)R" + state + b"b"


def long(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def key() -> bytes:
    return b"}(" + text("state_dict") + b"}cx\ny\n" + DAG + b"\x85RK\x01u."


def member() -> bytes:
    child = b"}cx\ny\n" + DAG + b"\x85R" + instance("L", b"}") + b"s"
    return instance("M", b"}" + text("_modules") + child + b"s") + b"."


def compared() -> bytes:
    crop = instance("CenterCrop", b"}" + text("size") + b"(" + DAG + DAG + b"ls")
    steps = instance("Compose", b"}" + text("transforms") + b"(" + crop + b"ls")
    state = b"}(" + text("_modules") + b"}" + text("val_preprocess") + steps + b"u"
    return instance("Model", state) + b"."


def copied(call: bytes) -> bytes:
    return LIST + call + b"q\x01(" + b"h\x01h\x00\x85R" * 20_000 + b"l."


def shared_modules(levels: int, members: int) -> bytes:
    """A module of 2**levels paths, each with so many parameters that are no tensors."""
    parameters = b"".join(text(str(i)) + b"N" for i in range(members))
    state = b"}(" + text("_modules") + b"}" + text("_parameters") + b"}(" + parameters + b"uu"
    data = instance("L", state) + b"q\x00"
    twice = b"}(" + text("a") + b"h\x00" + text("b") + b"h\x00u"
    for _ in range(levels):
        data += instance("M", b"}" + text("_modules") + twice + b"s") + b"q\x00"
    return data + b"."


CASES: dict[str, Callable[[], bytes]] = {
    "a key that is a call of a doubled tuple": key,
    "a module named by a doubled tuple": member,
    "sizes of doubled tuples": compared,
    "a list as arguments": lambda: LIST + b"cx\ny\nq\x01(" + b"h\x01h\x00R" * 20_000 + b"l.",
    "sizes made of one list": lambda: copied(b"ctorch\nSize\n"),
    "shared modules": lambda: shared_modules(15, 5000),
    "numbers of one hash": lambda: (
        b"}(" + b"".join(long(k * (2**61 - 1)) + b"N" for k in range(1, 35_000)) + b"u."
    ),
    "a long tuple as a key": lambda: (
        b"(" + b"K\x01" * 20_000 + b"tq\x00}(" + b"h\x00N" * 20_000 + b"u."
    ),
    "one dict under many keys": lambda: (
        b"}q\x00("
        + b"".join(text(f"n{i}") + b"N" for i in range(15_000))
        + b"u0}("
        + b"".join(text(f"ema{i}") + b"h\x00" for i in range(15_000))
        + b"u."
    ),
    "names that are joined": lambda: (
        text("x" * 50_000) + b"q\x00(" + b"h\x00h\x00\x93" * 20_000 + b"l."
    ),
}


# Each file is read in a child of its own, which ends when it takes too long: a loop in C cannot
# be interrupted otherwise.
READ = """
import os, resource, sys
from mdft_fast.errors import MdftError
from mdft_fast.checkpoints import open_state
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
for path in sys.argv[3:]:
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]),) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = used()
        try:
            open_state(path)
        except MdftError as error:
            short = len(str(error)) < 1000 and used() - before < int(sys.argv[2])
            os._exit(0 if short else 1)
        os._exit(2)
    print(os.path.basename(path), os.wait()[1], flush=True)
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How reading each file ended; 0: with a short error, soon and in little memory."""
    folder = tmp_path_factory.mktemp("growth")
    legacy(folder / "legacy storages")
    for name, made in CASES.items():
        torch_zip(folder / name, b"\x80\x02" + made())
    paths = sorted(folder.iterdir())
    assert all(path.stat().st_size < 500_000 for path in paths)
    command = [sys.executable, "-c", READ, str(SECONDS), str(MIB), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    pairs = (line.rsplit(" ", 1) for line in done.stdout.splitlines())
    return {name: int(end) for name, end in pairs}


@pytest.mark.parametrize("case", [*CASES, "legacy storages"])
def test_small_files_are_refused_soon(case: str, ends: dict[str, int]) -> None:
    assert ends[case] == 0


def test_a_dict_is_read_whose_keys_are_numbers_and_tuples(tmp_path: Path) -> None:
    value = {"w": torch.ones(2), 2**63: 1, ("a", 1): 2}
    torch.save(value, tmp_path / "a.pt")
    state = open_state(tmp_path / "a.pt")
    assert list(state.tensors) == ["w"]
    assert set(state.left_out) == {str(2**63), "tuple"}
