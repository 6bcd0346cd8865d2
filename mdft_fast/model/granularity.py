# SPDX-License-Identifier: Apache-2.0
"""Which tensors share a column of λ."""

from __future__ import annotations

import re
from typing import Literal, get_args

from mdft_fast.arena import Layout
from mdft_fast.errors import MdftError, nearest

Granularity = Literal["task", "block", "tensor", "row"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

_NUMBERED = re.compile(r"^((?:.*?\.)?\d+)\.")  # "blocks.3.", "transformer.resblocks.3.", "0."


def group_columns(layout: Layout, granularity: Granularity) -> Layout:
    """Returns the layout with one column a tensor, a row of each, a block, or one for all.

    A block is what lies under the first number in a parameter's name, ``blocks.3`` say. The
    tensors before the first block are the column ``stem``, all others the column ``tail``. A row is
    an index of a tensor's first dimension, whatever the module makes of it: see
    :meth:`Layout.by_row`.

    Args:
        layout: a pool's layout, one column a tensor.
        granularity: "task" (L = 1), "block", "tensor" or "row".
    """
    if granularity not in GRANULARITIES:
        raise MdftError(
            f"granularity: must be one of {list(GRANULARITIES)}, got {granularity!r}"
            f"{nearest(str(granularity), GRANULARITIES)}"
        )
    if granularity == "tensor":
        return layout
    if granularity == "row":
        return layout.by_row()
    if granularity == "task":
        return layout.group({slot.name: "all" for slot in layout.slots})
    return layout.group(block_of([slot.name for slot in layout.slots]))


def block_of(names: list[str]) -> dict[str, str]:
    """Returns tensor name -> block name, for names in arena order."""
    blocks, outside = {}, "stem"
    for name in names:
        numbered = _NUMBERED.match(name)
        if numbered:
            outside = "tail"
        blocks[name] = numbered.group(1) if numbered else outside
    return blocks
