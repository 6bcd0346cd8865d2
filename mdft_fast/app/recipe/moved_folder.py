# SPDX-License-Identifier: Apache-2.0
"""A run folder's own recipe has whole paths; here they follow the folder to where it was moved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OF_A_RUN = ("splits.json", "start.safetensors", "state")


def where_it_lies_now(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a recipe's content with its paths as they are now.

    Args:
        content: as read from ``folder``.
        folder: holds the recipe's file. If it is a run folder that has another name now than the
            recipe's ``output`` says, a path at which nothing lies becomes the one that lies as it
            did to the folder, where something lies there.
    """
    before = content.get("output")
    whole = isinstance(before, str) and os.path.isabs(before)
    if not whole or not any((folder / name).exists() for name in _OF_A_RUN):
        return dict(content)
    moved = {key: _moved(value, str(before), folder) for key, value in content.items()}
    return {**moved, "output": str(folder)}


def _moved(value: Any, before: str, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _moved(item, before, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, before, folder) for item in value]
    if not isinstance(value, str) or not os.path.isabs(value) or os.path.lexists(value):
        return value
    now = os.path.normpath(folder / os.path.relpath(value, before))
    return now if os.path.lexists(now) else value
