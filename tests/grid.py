# SPDX-License-Identifier: Apache-2.0
"""Where kernels run: an emulated grid (tests/emulated) or a GPU (tests/cuda)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Grid(NamedTuple):
    """Operators with the schemas of csrc/schemas.h, and the device of their tensors."""

    ops: Any
    device: torch.device


@contextmanager
def fill_with_nan() -> Iterator[None]:
    """Makes every new tensor begin as NaN (integers: as their largest value).

    MDFT_TEST_FILL=0 turns it off, for tools that look for unwritten memory themselves.
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
