# SPDX-License-Identifier: Apache-2.0
"""A share of ``make test-heavy`` that takes seconds; and that both halves of it see what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert sum(row["times"] for row in rows if "command" in row) == 6
    assert sum(row["times"] for row in rows if "format" in row) >= 200
