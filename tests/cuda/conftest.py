# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU."""

from __future__ import annotations

import pytest
import torch

import mdft_fast
from tests.grid import Grid, unwritten_memory_is_nan  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def grid() -> Grid:
    """Where the kernels run."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch.cuda.is_available() is False")
    # With a GPU at hand, kernels that are not there are a failure, not a reason to skip.
    assert mdft_fast.kernels()["cuda"] == "cuda"
    return Grid(torch.ops.mdft_fast, torch.device("cuda", torch.cuda.current_device()))
