# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed, replaced or narrow, and names that a terminal would obey."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mdft_fast.app.cli import console
from mdft_fast.app.running import progress
from mdft_fast.terminal import is_terminal, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("λ ≥ 0.3\n\tπ", "λ ≥ 0.3\n\tπ"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # written from the right
        ("caf\udce9", r"caf\udce9"),  # a byte that is no UTF-8
        ("a\rb\x9b", r"a\rb\x9b"),
    ],
)
def test_names_are_no_escape_sequences(text: str, shown: str) -> None:
    assert printable(text) == shown


class Log:
    """What a program may put in standard error's place."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


def test_only_a_terminal_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, Log(), closed, io.StringIO()):
        assert not is_terminal(stream)
        monkeypatch.setattr(sys, "stderr", stream)
        assert progress.Progress().style == "lines"


def run(code: str, *redirections: str) -> subprocess.CompletedProcess[str]:
    line = " ".join(['exec "$0" -c "$1"', *redirections])
    command = ["sh", "-c", line, sys.executable, code]
    return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")


def test_a_closed_stream_takes_no_files_number(tmp_path: Path) -> None:
    file = tmp_path / "file"
    code = f"""
import os, sys
from mdft_fast.terminal import open_standard_streams
open_standard_streams()
with open({str(file)!r}, "w") as file:
    os.write(2, b"what a library prints")
    print("said", file=sys.stderr)
    file.write("content")
"""
    done = run(code, "2>&-")
    assert (done.returncode, file.read_text()) == (0, "content")
    assert run("import os; open('/dev/null'); os.write(2, b'.')", "2>&-").returncode  # the danger


def test_an_alphabet_without_the_signs_ends_nothing() -> None:
    code = (
        "from mdft_fast.terminal import open_standard_streams; open_standard_streams(); "
        "print('λ', '\\udce9')"
    )
    done = run(f"import sys; sys.stdout.reconfigure(encoding='ascii'); {code}")
    assert (done.returncode, done.stdout) == (0, "\\u03bb \\udce9\n")


@pytest.mark.parametrize("name", ["[red]", "[/b]x", ":smile:", "[link=file:///]a"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_name_in_a_table_is_as_it_is(
    name: str, wide: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    rows = [[name, "long-" * 20, "12.5"], ["average", "", "99.9"]]
    if wide:
        console.show_wide_table(["what", "a", "b"], rows, words=2)
    else:
        console.show_table(["what", "a", "b"], rows)
    line = next(line for line in capsys.readouterr().out.splitlines() if "12.5" in line)
    assert line.split() == [name, "long-" * 20, "12.5"]  # whole, in one line


def test_what_progress_shows_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=40, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    folder = "/data/[old] runs/[/b]/:smile:/" + "long/" * 20
    with progress.Progress("bars") as bars:
        bars.say(f"writing to {folder}\x1b[2J")
        bars.count("[/b]stage", 1, 2)
    assert f"writing to {folder}\\x1b[2J" in shown.getvalue()
    assert "[/b]stage" in shown.getvalue()
