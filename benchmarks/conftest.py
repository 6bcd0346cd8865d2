# SPDX-License-Identifier: Apache-2.0
"""``pytest benchmarks --benchmark-json=FILE``: the races of run.py, one test each."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # an installed mdft_fast wins
os.environ["MDFT_STRICT"] = "1"  # the reference must not race in the kernels' place

from benchmarks.harness import Machine


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds our options."""
    parser.addoption("--allow-busy", action="store_true", help="measure on a busy machine too")
    parser.addoption("--table", default="ViT-B/32", help="a key of benchmarks/shapes.py's TABLES")


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest) -> SimpleNamespace:
    """What the command line says."""
    config = request.config
    return SimpleNamespace(
        allow_busy=config.getoption("--allow-busy"), table=config.getoption("--table")
    )


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The GPU where there is one."""
    return Machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
