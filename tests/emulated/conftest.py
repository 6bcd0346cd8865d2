# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' bodies and launchers, run on the CPU over an emulated grid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mdft_fast
from tests.grid import Grid, unwritten_memory_is_nan  # noqa: F401 - a fixture

LIBRARY = Path(mdft_fast.__file__).parent / "lib" / "libmdft_emulated.so"
OPS = ("merge", "merge_out", "merge_dots", "debiased_entropy", "debiased_entropy_backward")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device of tests that are borrowed from tests/ops: there is one here."""
    return torch.device("cpu")


@pytest.fixture(scope="session")
def grid() -> Grid:
    """Where the kernels run."""
    if not LIBRARY.exists():
        pytest.skip(f"{LIBRARY.name} was not built (cmake -DMDFT_BUILD_EMULATED=ON)")
    torch.ops.load_library(str(LIBRARY))
    return Grid(torch.ops.mdft_fast_emulated, torch.device("cpu"))


@pytest.fixture
def emulated_operators(grid: Grid) -> Iterator[None]:
    """Puts the emulated kernels in the place of the CPU's."""
    library = torch.library.Library("mdft_fast", "IMPL")
    for op in OPS:
        emulated = getattr(grid.ops, op)
        library.impl(op, lambda *args, f=emulated: f(*args), "CPU", allow_override=True)
    yield
    library._destroy()
