# SPDX-License-Identifier: Apache-2.0
"""A package that is missing is named, with what brings it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdft_fast.errors import MdftError, need


@pytest.mark.parametrize(
    ("extra", "who", "message"),
    [
        ("data", "SVHN", r"^SVHN: needs no_such; pip install 'mdft-fast\[data\]' \(No module"),
        ("", "", r"^needs no_such; pip install 'mdft-fast' \(No module"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(extra: str, who: str, message: str) -> None:
    assert need("json") is json
    with pytest.raises(MdftError, match=message):
        need("no_such.inside", extra, who=who)


def test_a_package_that_does_not_work_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As matplotlib with a backend in the environment that it does not know."""
    (tmp_path / "broken_package.py").write_text("raise ValueError('backend: no such\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MdftError) as caught:
        need("broken_package", "demo")
    wanted = "broken_package must work here, got at its import ValueError: backend: no such"
    assert str(caught.value) == wanted
