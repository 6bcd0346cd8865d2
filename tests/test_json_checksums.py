# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from mdft_fast.errors import MdftError
from mdft_fast.json_checksums import check_content, with_checksum

CONTENT: dict[str, Any] = {"a": 1, "b": [0.1, "ü", None]}
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


def test_comes_back_in_any_order_and_layout() -> None:
    written = json.dumps(with_checksum(CONTENT), indent=2)
    check_content("file", json.loads(written), CONTENT)
    check_content("file", dict(sorted(json.loads(written).items(), reverse=True)), CONTENT)
    check_content("file", CONTENT, CONTENT)  # as an older version wrote it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**with_checksum(CONTENT), "a": 2}, "file: its content's sha256 must be"),
        ({**with_checksum(CONTENT), "c": 2}, "file: its content's sha256 must be"),
        ({"sha257": "0", **CONTENT}, r"unknown keys and no 'sha256', got \['sha257'\]"),
        ({**with_checksum(CONTENT), "a": float("nan")}, "numbers must be finite"),
        ({"sha256": "", "a": DEEP}, "file: is nested too deeply"),
        ([1], "must be a JSON object, got list"),
    ],
)
def test_damage_is_an_error(content: Any, message: str) -> None:
    with pytest.raises(MdftError, match=message):
        check_content("file", content, CONTENT)


def test_a_gap_cannot_take_the_checksum_along() -> None:
    text = json.dumps(with_checksum(CONTENT))
    for start in range(len(text)):
        for end in range(start + 1, len(text)):
            try:
                torn = json.loads(text[:start] + text[end:])
                check_content("file", torn, CONTENT)
                assert isinstance(torn["a"], int)  # readers want the first key
            except (ValueError, KeyError, MdftError):
                continue
            assert torn in (CONTENT, with_checksum(CONTENT))
