# SPDX-License-Identifier: Apache-2.0
"""A package that is missing is named, with what brings it."""

from __future__ import annotations

import json

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
