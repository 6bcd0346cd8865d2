# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mdft_fast.errors import MdftError
from mdft_fast.files import check_regular, filled_once, read_text, replacing, write_text


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with replacing(target) as first, replacing(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first", "the last one that ends wins, and wins whole"
    assert list(tmp_path.iterdir()) == [target]


def test_what_never_ends_is_not_read_but_a_pipe_we_were_given_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        check_regular(path)  # opening says what is wrong
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path, kind in ((tmp_path / "link", "a named pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(MdftError, match=f"{path}: must be a file, got {kind}"):
            read_text(path)
    reading, writing = os.pipe()
    os.write(writing, b"seed: 1")
    os.close(writing)
    assert read_text(f"/dev/fd/{reading}") == "seed: 1"
    os.close(reading)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "half, and then what is no text \ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_has_the_permissions_of_any_new_one(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").touch()
    write_text(tmp_path / "ours.txt", "")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("others", [False, True])
def test_what_was_left_unfinished_goes_where_it_is_ours(others: bool, tmp_path: Path) -> None:
    for name in (".entry.abc.part", ".other.abc.part", ".entry.young.part"):
        (tmp_path / name).mkdir()
    for name in (".entry.abc.part", ".other.abc.part"):
        os.utime(tmp_path / name, (0, 0))
    with filled_once(tmp_path / "entry", lambda: False, others=others) as made:
        write_text(made / "a.txt", "")
    stays = {"entry", ".entry.young.part"} | (set() if others else {".other.abc.part"})
    assert {path.name for path in tmp_path.iterdir()} == stays
