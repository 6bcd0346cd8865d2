# SPDX-License-Identifier: Apache-2.0
"""Whatever a command raises, a user reads one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from mdft_fast.app.cli import actions
from mdft_fast.app.cli.boundary import explain
from mdft_fast.errors import MdftError
from tests.app.conftest import call

RAISED = [
    (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device"),
    (OSError(errno.EXDEV, "Cross-device link", "/a", None, "/b"), "/a -> /b: Cross-device link"),
    (MemoryError(), "out of memory; `mdft plan`"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory (CUDA out of memory."),
    (RuntimeError("[enforce fail] can't allocate memory: 3 GB\nmore"), "out of memory ([enforce"),
    (RecursionError("maximum"), "something is nested too deeply (commands.py, line"),
    (KeyError("step"), "KeyError: 'step' (commands.py, line"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecodeError: 'utf-8' codec"),
    (MdftError("a\x1b]0;title\x07 \u202e [red] \udcff"), r"a\x1b]0;title\x07 \u202e [red] \udcff"),
]


@pytest.mark.parametrize(("error", "words"), RAISED, ids=lambda value: type(value).__name__)
def test_any_exception_is_one_line(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(actions, "report_run", fail)
    shown = call("report", tmp_path, code=1)
    assert shown.stderr.startswith(f"error: {words}")
    assert shown.stderr.count("\n") == 1
    assert shown.stderr[:-1].isprintable()
    for arguments in (["--debug", "report", tmp_path], ["report", tmp_path, "--debug"]):
        assert call(*arguments, code=1).exception is error


def test_a_long_message_is_cut_in_its_middle() -> None:
    said = explain(MdftError(f"begin {'key ' * 10_000} end"))
    assert len(said) < 5000
    assert said.startswith("begin")
    assert said.endswith("end")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shown = call(
        "export", tmp_path / "file" / "card.json", "--to", tmp_path / "m.safetensors", code=1
    )
    assert shown.stderr.startswith(f"error: {tmp_path / 'file'}")


def test_no_name_brings_a_line_of_its_own() -> None:
    said = explain(MdftError("data/y\nerror: all is lost.png: not a readable image"))
    assert said == "data/y\n  error: all is lost.png: not a readable image"
    assert explain(MdftError("recipe:\n  - one")) == "recipe:\n  - one"
