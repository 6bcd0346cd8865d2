# SPDX-License-Identifier: Apache-2.0
"""Folders change places in one step; what dead processes left goes, what living ones have stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdft_fast import files
from mdft_fast.files import new_folder, replacing

PART = ".out.txt.0123456789abcdef.part"


def test_a_dead_writers_file_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    (tmp_path / PART).write_text("half")
    with replacing(tmp_path / "out.txt") as first, replacing(tmp_path / "out.txt") as second:
        assert not (tmp_path / PART).exists()
        first.write_text("1")
        second.write_text("2")
        assert first.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "1", "the outer one ends last"


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_there_all_the_time(
    tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = tmp_path / "pool", []
    rename = Path.rename

    def watched(path: Path, to: Path) -> Path:
        seen.append(target.exists())
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", watched)
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for kind in ("new", "plain"):
        (tmp_path / f".pool.{kind}-0123456789abcdef").mkdir()
    for content in "12":
        with new_folder(target, overwrite=True, check_old=lambda _: None) as made:
            (made / "file").write_text(content)
    assert (target / "file").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    assert seen == ([False] if exchanges else [False, True, False])
