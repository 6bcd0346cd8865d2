# SPDX-License-Identifier: Apache-2.0
"""Where kernels run: an emulated grid (tests/emulated) or a GPU (tests/cuda)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch


class Grid(NamedTuple):
    """Operators with the schemas of csrc/schemas.h, and the device of their tensors."""

    ops: Any
    device: torch.device


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """Makes outputs and workspaces begin as NaN (integers: as their largest value).

    What is not written shows. MDFT_TEST_FILL=0 turns it off, for tools that look for unwritten
    memory themselves.
    """
    if os.environ.get("MDFT_TEST_FILL") == "0":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
