# SPDX-License-Identifier: Apache-2.0
"""A share of ``make test-heavy`` that takes seconds, and what it is to see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.children import child
from tests.reliability.mutations import Format, mutate

pytest.importorskip("timm")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
def test_kills_and_mutations() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.reliability", "--quick"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert sum(row["times"] for row in rows if "command" in row) == 4
    assert sum(row["times"] for row in rows if "format" in row) >= 200


def test_readers_that_fail_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "file"
    whole = b"a file of some length"
    file.write_bytes(whole)

    def read() -> object:
        content = file.read_bytes()
        if content == whole:
            return content
        if len(content) == len(whole):
            raise KeyError(content)
        if len(content) < len(whole):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(content)

    outcomes = mutate(Format("planted", file, read, True), 40, 0)
    assert {"traceback: KeyError", "signal 9", "other content, with a checksum"} <= outcomes.keys()
    assert outcomes.total() == 40
    assert file.read_bytes() == whole


def test_a_child_that_hangs_or_takes_memory_is_ended() -> None:
    assert child(lambda say: time.sleep(60), patience=1.0).hung

    def greedy(say: Callable[[object], None]) -> None:
        try:
            bytes(4 << 30)
        except MemoryError:
            say("refused")

    assert child(greedy).said == ["refused"]
