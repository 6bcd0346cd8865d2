# SPDX-License-Identifier: Apache-2.0
"""The emulated operators take what the real ones take."""

from __future__ import annotations

import pytest
import torch

from tests.emulated.conftest import OPS
from tests.grid import Grid


@pytest.mark.parametrize("op", OPS)
def test_schemas_are_the_real_ones(op: str, grid: Grid) -> None:
    mine = str(getattr(grid.ops, op).default._schema)
    real = str(getattr(torch.ops.mdft_fast, op).default._schema)
    assert mine.removeprefix("mdft_fast_emulated::") == real.removeprefix("mdft_fast::")
