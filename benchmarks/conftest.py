# SPDX-License-Identifier: Apache-2.0
"""``pytest benchmarks --benchmark-json=FILE``: races of run.py, one test each.

The clock of a race is :class:`benchmarks.harness.Machine`'s, here as in run.py: pytest-benchmark
times one function a test, so that it cannot let contestants take turns, nor wait for a GPU. Its
statistics, table, storage and comparison serve here; they are told our turns when a race is over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # an installed mdft_fast wins
os.environ["MDFT_STRICT"] = "1"  # the reference must not race in the kernels' place

from benchmarks.harness import OURS, Case, Compete, race
from benchmarks.machine import Machine


class Replay:
    """A timer whose readings lie apart by what turns took that are over."""

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def turns(self, seconds: Sequence[float]) -> None:
        """Sets the turns; two readings each, before and after it."""
        self._readings = iter([reading for turn in seconds for reading in (0.0, turn)])

    def __call__(self) -> float:
        """Reads the timer."""
        return next(self._readings)


replay = Replay()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds our options."""
    parser.addoption("--allow-busy", action="store_true", help="measure on a busy machine too")
    parser.addoption("--table", default="ViT-B/32", help="a key of benchmarks/shapes.py's TABLES")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Lets pytest-benchmark read our timer."""
    item.add_marker(pytest.mark.benchmark(timer=replay))


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> str:
    """The model whose tensors the operators get."""
    return str(request.config.getoption("--table"))


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The GPU where there is one."""
    return Machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture
def compete(benchmark: Any, machine: Machine, request: pytest.FixtureRequest) -> Compete:
    """Holds a race; pytest-benchmark keeps it."""

    def hold(case: Case, *, rounds: int) -> None:
        with torch.no_grad():
            over = race(case, machine, rounds=rounds,
                        allow_busy=request.config.getoption("--allow-busy"))  # fmt: skip
        benchmark.group = f"{case.op} {case.name}"
        benchmark.extra_info.update(over.summary())
        replay.turns(over.seconds[OURS])
        benchmark.pedantic(lambda: None, rounds=rounds)

    return hold
