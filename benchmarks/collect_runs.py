# SPDX-License-Identifier: Apache-2.0
"""Keeps what several runs measured in one committed file, without their λ.

python benchmarks/collect_runs.py runs/real-0 runs/real-1 --json benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mdft_fast.files import write_json


def main() -> None:
    """Reads each run's ``result.json`` and writes them together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    runs = []
    for folder in options.runs:
        result = json.loads((folder / "result.json").read_text())
        runs.append({k: v for k, v in result.items() if k not in ("coefficients", "columns")})
    write_json(options.json, {"runs": runs})


if __name__ == "__main__":
    main()
