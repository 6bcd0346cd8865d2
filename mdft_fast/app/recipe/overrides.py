# SPDX-License-Identifier: Apache-2.0
"""``--set construct.steps=50``: one key of a recipe, changed from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mdft_fast.app.recipe.value_types import quoted
from mdft_fast.app.recipe.yaml_text import parse


def override(content: dict[str, Any], assignments: Sequence[str]) -> None:
    """Sets keys of a recipe's content, in place.

    Args:
        content: the recipe as read; mappings that a path names and that are absent are made.
        assignments: ``path=value`` each: keys joined by dots, an item of a list as ``tasks[0]``;
            the value is YAML.

    Raises:
        ValueError: if an assignment is malformed or leads nowhere.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        parts = re.findall(r"[^.\[\]]+", path.strip())
        if not equals or not parts:
            raise ValueError(f"{assignment!r}: must be key=value, as in construct.steps=50")
        try:
            _set(content, parts, parse(text))
        except ValueError as error:
            raise ValueError(f"{assignment!r}: {error}") from None


def _set(holder: Any, parts: list[str], value: Any) -> None:
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(holder, list):
            if not part.isdecimal() or int(part) >= len(holder):
                known = f"a number from 0 to {len(holder) - 1}"
                raise ValueError(f"{'.'.join(parts[:depth])} is a list: {part!r} must be {known}")
            key: Any = int(part)
        elif isinstance(holder, dict):
            key = part
            if not last and holder.get(key) is None:
                holder[key] = {}
        else:
            raise ValueError(f"{'.'.join(parts[:depth])} is no mapping but {quoted(holder)}")
        if last:
            holder[key] = value
        else:
            holder = holder[key]
