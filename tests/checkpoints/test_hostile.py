# SPDX-License-Identifier: Apache-2.0
"""A pickle is a program. Nothing of it runs here, whatever it asks for; a canary proves it."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdft_fast.checkpoints import open_state
from mdft_fast.errors import MdftError
from tests.checkpoints.corpus import WRAPPINGS, Call, save_encoder, tiny_clip, torch_zip

WRAPPED = pytest.mark.parametrize("wrapping", WRAPPINGS)
CANARY = "canary"  # a file in the working folder: whatever makes it has run


def touch() -> str:
    return f"touch {CANARY}"


def python() -> str:
    return f"open({CANARY!r}, 'w').close()"


def _loader() -> Any:
    torch.save(Call(os.system, touch()), "inner.pt")
    return Call(functools.partial(torch.load, weights_only=False), "inner.pt")


def _from_bytes() -> Any:
    inner = io.BytesIO()
    torch.save(Call(os.system, touch()), inner, _use_new_zipfile_serialization=False)
    return Call(torch.storage._load_from_bytes, inner.getvalue())


ATTACKS: dict[str, Callable[[], Any]] = {
    "os.system": lambda: Call(os.system, touch()),
    "subprocess": lambda: Call(subprocess.check_output, ["touch", CANARY]),
    "builtins.eval": lambda: Call(builtins.eval, python()),
    "builtins.exec": lambda: Call(builtins.exec, python()),
    "builtins.open": lambda: Call(builtins.open, CANARY, "w"),
    "a method": lambda: Call(Path.touch, Path(CANARY)),
    "getattr": lambda: Call(getattr, Path, "touch"),
    "a chain of getattr": lambda: Call(Call(getattr, Path(CANARY), "touch")),
    "import": lambda: Call(Call(getattr, Call(__import__, "os"), "system"), touch()),
    "a state that is set": lambda: Call(Call, None, state={"x": Call(os.system, touch())}),
    "torch.load": _loader,
    "bytes of torch.save": _from_bytes,
    "pickle.loads": lambda: Call(pickle.loads, pickle.dumps(Call(os.system, touch()))),
    "torch.hub": lambda: Call(torch.hub.load, ".", "x"),
    "map": lambda: Call(list, Call(map, os.system, [touch()])),
    "functools": lambda: Call(functools.reduce, os.system, [touch()]),
}


class CallableFirst(pickle._Pickler):
    """Python's own pickler checks that a reduced callable is callable; an attacker's does not."""

    def save_reduce(self, func: Any, args: Any, state: Any = None, *_: Any, **__: Any) -> None:
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def dumped(value: Any, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    CallableFirst(out, protocol).dump(value)
    return out.getvalue()


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder is empty but for inputs; nothing may make the canary, nor import."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / CANARY
    assert not (tmp_path / CANARY).exists()


def test_the_canary_sings(canary: Path) -> None:
    pickle.loads(dumped({"a": ATTACKS["os.system"]()}))
    assert canary.exists()
    canary.unlink()


@WRAPPED
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_called(attack: str, protocol: int, wrapping: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    for value in (ATTACKS[attack](), {"weight": ATTACKS[attack]()}, [ATTACKS[attack]()]):
        WRAPPINGS[wrapping](path, dumped(value, protocol))
        with pytest.raises(MdftError, match=r"evil.pt: ") as caught:
            open_state(path)
        assert "\n" not in str(caught.value)


RAW = {
    # (module, name) by hand: what no pickler writes.
    "INST": b"(S'touch canary'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch canary'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nU\x0ctouch canary\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85}\x92.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "dotted name": b"\x80\x04\x8c\x07pathlib\x8c\nPath.touch\x93\x8c\x06canary\x85R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "setstate": b"\x80\x02cbuiltins\nobject\n)\x81cos\nsystem\nb.",
    "attribute of a builtin": b"\x80\x02cbuiltins\nprint\n}U\x04nameU\x01xsb.",
    "persistent text": b"Pos.system\n.",
    "persistent call": b"\x80\x02cos\nsystem\nU\x0ctouch canary\x85RQ.",
    "rebuild with a call": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n"
        b"U\x0ctouch canary\x85NtR."
    ),
    "a parameter of a call": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n"
        b"(cos\nsystem\nU\x0ctouch canary\x85R\x88NtR."
    ),
    "an ordered dict of calls": (
        b"\x80\x02ccollections\nOrderedDict\ncos\nsystem\nU\x0ctouch canary\x85R\x85R."
    ),
    "torch.Size of a call": b"\x80\x02ctorch\nSize\ncos\nsystem\nU\x0ctouch canary\x85R\x85R.",
    "empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02t.",
    "no end": b"\x80\x02}",
    "unknown memo": b"\x80\x02h\x07.",
    "huge memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "huge bytes": b"\x80\x04B\xff\xff\xff\xffabc.",
    "huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.",
    "huge number": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "many digits": b"L" + b"9" * 100_000 + b"L\n.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dict that holds itself": b"\x80\x02}q\x00U\x05modelh\x00s.",
    "deeply nested": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a slow key": b"\x80\x02}" + b")" + b"\x85" * 5000 + b"Ns.",
    "doubling tuples": b"\x80\x02)" + b"2\x86" * 5000 + b".",
    "a key that doubles": b"\x80\x02})" + b"2\x86" * 200 + b"Ns.",
    "not a module": b"\x80\x02csrc\nX\n)\x81}U\x08_modulesNsb.",
}  # fmt: skip


@WRAPPED
@pytest.mark.parametrize("case", RAW)
def test_hand_made_streams_are_refused(case: str, wrapping: str, tmp_path: Path) -> None:
    WRAPPINGS[wrapping](tmp_path / "evil.pt", RAW[case])
    with pytest.raises(MdftError, match=r"evil.pt: ") as caught:
        open_state(tmp_path / "evil.pt")
    assert len(str(caught.value)) < 1000


def module_pickle(loops: int) -> bytes:
    """A module that holds itself, ``loops`` times: walking it would never end."""
    head = b"\x80\x02csrc\nX\n)\x81q\x00}(U\x0b_parameters}U\x08_buffers}U\x08_modules}"
    children = b"".join(b"U\x01" + bytes([97 + i]) + b"h\x00s" for i in range(loops))
    return head + children + b"ub."


@WRAPPED
@pytest.mark.parametrize("loops", [1, 2])
def test_modules_that_hold_themselves(loops: int, wrapping: str, tmp_path: Path) -> None:
    WRAPPINGS[wrapping](tmp_path / "evil.pt", module_pickle(loops))
    with pytest.raises(MdftError, match=r"nested without end"):
        open_state(tmp_path / "evil.pt")


def test_no_module_is_imported(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text(python())
    torch_zip(tmp_path / "evil.pt", b"\x80\x02ctrap\nX\n)R.")
    with pytest.raises(MdftError, match=r"got a pickled trap.X"):
        open_state(tmp_path / "evil.pt")
    assert "trap" not in sys.modules


def tensor_pickle(
    size: int = 4, stride: int = 1, offset: int = 0, declared: int = 4, kind: str = "FloatStorage"
) -> bytes:
    number = [b"J" + n.to_bytes(4, "little") for n in (declared, offset, size, stride)]
    storage = b"(U\x07storagectorch\n" + kind.encode() + b"\nU\x010U\x03cpu" + number[0] + b"tQ"
    return (
        b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n(" + storage + number[1]
        + number[2] + b"\x85" + number[3] + b"\x85\x89}tRs."
    )  # fmt: skip


def test_the_tensor_by_hand_is_one(tmp_path: Path) -> None:
    for wrap in WRAPPINGS.values():
        wrap(tmp_path / "a.pt", tensor_pickle(), {"0": torch.arange(4.0).numpy().tobytes()})
        assert open_state(tmp_path / "a.pt").tensors["w"].tolist() == [0, 1, 2, 3]


@WRAPPED
@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"declared": 2**30}, "must be|storage"),
        ({"size": 5}, "does not lie in its storage of 4 elements"),
        ({"offset": 1}, "does not lie in its storage"),
        ({"offset": 2**31 - 1, "size": 1}, "does not lie in its storage"),
        ({"stride": 2**30}, "does not lie in its storage"),
        ({"size": 2**31 - 1, "stride": 0}, "does not lie in its storage"),
        ({"kind": "system"}, "a storage must be one of .*got torch.system"),
        ({"kind": "ComplexDoubleStorage"}, "must be 64 bytes|damaged|storage"),
        ({"kind": "DoubleStorage"}, "must be|damaged"),
    ],
)
def test_storages_hold_what_they_declare(
    declared: dict[str, Any], message: str, wrapping: str, tmp_path: Path
) -> None:
    WRAPPINGS[wrapping](tmp_path / "evil.pt", tensor_pickle(**declared), {"0": bytes(16)})
    with pytest.raises(MdftError, match=rf"evil.pt: .*({message})"):
        open_state(tmp_path / "evil.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z.writestr("archive/data/../../canary", b"x"), None),
        (lambda z: z.writestr("/canary", b"x"), None),
        (lambda z: z.writestr("archive/data/0", bytes(16)), "twice"),
        (lambda z: z.writestr("other/data.pkl", b"."), "a zip file without 'data.pkl'"),
        (lambda z: z.writestr("archive/byteorder", b"big"), "big-endian"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_files_with_tricks(change: Any, message: str | None, tmp_path: Path) -> None:
    """Names lead nowhere: nothing is unpacked. What is ambiguous is refused."""
    path = torch_zip(tmp_path / "evil.pt", tensor_pickle(), {"0": bytes(16)})
    with zipfile.ZipFile(path, "a") as archive:
        change(archive)
    if message is None:
        assert open_state(path).tensors["w"].tolist() == [0] * 4
        assert sorted(os.listdir(tmp_path)) == ["evil.pt"]
        return
    with pytest.raises(MdftError, match=rf"evil.pt: .*{message}"):
        open_state(path)


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_compressed_parts_are_refused(part: str, tmp_path: Path) -> None:
    parts = {"data.pkl": tensor_pickle(), "data/0": bytes(16)}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        for name, content in parts.items():
            packed = zipfile.ZIP_DEFLATED if name == part else zipfile.ZIP_STORED
            archive.writestr(f"archive/{name}", content, compress_type=packed)
    with pytest.raises(MdftError, match=r"bomb.pt: .*(without 'data.pkl'|missing or compressed)"):
        open_state(tmp_path / "bomb.pt")


# Any bytes: an MdftError or a checkpoint, nothing else.


def _corpus() -> list[bytes]:
    made = []
    for legacy in (False, True):
        for value in ({"a": torch.ones(3), "b": torch.ones(2).half()}, torch.nn.Linear(2, 2)):
            out = io.BytesIO()
            torch.save(value, out, _use_new_zipfile_serialization=not legacy)
            made.append(out.getvalue())
    return [*made, dumped({"w": Call(os.system, touch())})]


SEEDS = _corpus()


@settings(max_examples=200)
@given(data=st.data())
def test_mutated_files_raise_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 4))
        content[place : place + length] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "mutant.pt"
    path.write_bytes(content)
    try:
        state = open_state(path)
        for name in state.tensors:
            state.tensors[name].sum()
    except MdftError as error:
        assert str(path) in str(error)  # noqa: PT017


@settings(max_examples=200)
@given(content=st.binary(max_size=60), protocol=st.sampled_from([b"", b"\x80\x02", b"\x80\x04"]))
def test_any_stream_raises_nothing_else(
    content: bytes, protocol: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    for wrap in WRAPPINGS.values():
        wrap(path, protocol + content + b".")
        with pytest.raises(MdftError):
            open_state(path)


def test_a_poisoned_encoder_is_read_without_the_poison(tmp_path: Path) -> None:
    """Beside the tensors a module may hold anything: it is not run, and not missed."""
    pytest.importorskip("open_clip")
    model = tiny_clip()
    save_encoder(tmp_path / "finetuned.pt", model, poison=Call(os.system, touch()))
    tower = model.visual.state_dict()
    state = open_state(tmp_path / "finetuned.pt")
    assert all(torch.equal(state.tensors[name], value) for name, value in tower.items())
