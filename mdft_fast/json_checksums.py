# SPDX-License-Identifier: Apache-2.0
"""JSON objects that carry the checksum of their own content, so that damage is told from data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from mdft_fast.errors import MdftError

CHECKSUM = "sha256"  # the key; over all others, in any order and layout


def content_checksum(content: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """Returns the sha256 of an object's content; the order of its keys does not matter.

    Args:
        content: the object.
        without: keys that are not covered: what differs between equal runs, such as times.
    """
    own = {key: value for key, value in content.items() if key not in (CHECKSUM, *without)}
    text = json.dumps(own, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_checksum(content: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Returns an object with its checksum; numbers must be finite.

    It is the first key: a gap torn into the text that takes it along takes the next one too, which
    readers want. ``without`` names keys that it does not cover.
    """
    own = {key: value for key, value in content.items() if key != CHECKSUM}
    return {CHECKSUM: content_checksum(own, without), **own}


def check_content(
    where: object, content: Any, known: Collection[str], without: Collection[str] = ()
) -> None:
    """Refuses a JSON object that is not as it was written.

    Args:
        where: what an error calls it: its file, or a line of it.
        content: the object as read.
        known: its keys. Without a checksum, as older versions wrote it, it may have no other: one
            of them could be the checksum's, misspelt by damage.
        without: keys that the checksum does not cover.

    Raises:
        MdftError: if it is no object, or its checksum is not that of its content.
    """
    if not isinstance(content, dict):
        raise MdftError(f"{where}: must be a JSON object, got {type(content).__name__}")
    if CHECKSUM not in content:
        unknown = sorted(content.keys() - set(known))
        if unknown:
            raise MdftError(f"{where}: unknown keys and no {CHECKSUM!r}, got {unknown[:5]}")
        return
    try:
        wanted, got = content_checksum(content, without), content[CHECKSUM]
    except ValueError:  # Python reads NaN and Infinity, which are no JSON
        raise MdftError(f"{where}: numbers must be finite, got NaN or infinity") from None
    except RecursionError:
        raise MdftError(f"{where}: is nested too deeply") from None
    if got != wanted:
        raise MdftError(
            f"{where}: its content's sha256 must be {got!r}, got {wanted!r}: it changed since it "
            "was written"
        )
