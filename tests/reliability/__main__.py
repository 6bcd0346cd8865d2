# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.reliability``: kills and mutations; ends with 1 if anything went wrong."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm  # noqa: F401 - loaded here, once, and not in every child
import torch

import mdft_fast.app.cli.actions  # noqa: F401 - likewise
from benchmarks.harness import origin
from mdft_fast.files import write_json
from tests.reliability.kills import cache_in, kill_at_random, scenarios
from tests.reliability.mutations import formats, mutate

KILLS = {"run": 16, "resume": 12, "pack": 60, "export": 52, "convert": 70}
QUICK = {"run": 1, "pack": 1, "convert": 2}
MUTATIONS, FEW = 620, 12  # of each format
GOOD = {"same bits", "right content", "refused", "other content"}


def main(arguments: list[str]) -> int:
    """Runs what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a share that takes seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="writes what came out there")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    started = time.perf_counter()
    results = {"kills": list(_kills(asked)), "mutations": list(_mutations(asked))}
    if asked.json:
        about = origin("make test-heavy", torch.device("cpu"))
        write_json(asked.json, {**about, "seconds": time.perf_counter() - started, **results})
    rows = [row for part in results.values() for row in part]
    return int(any(row["outcomes"].keys() - GOOD for row in rows))


def _kills(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    times = QUICK if asked.quick else KILLS
    with tempfile.TemporaryDirectory() as folder, cache_in(Path(folder) / "cache"):
        work = Path(folder) / "work"
        for one in scenarios(work, times):
            outcomes = kill_at_random(one, work, times[one.name], asked.seed)
            yield _said({"command": one.name}, outcomes)


def _mutations(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, cache_in(Path(folder) / "cache"):
        place = Path(folder) / "files"
        place.mkdir()
        for one in formats(place):
            outcomes = mutate(one, FEW if asked.quick else MUTATIONS, asked.seed)
            yield _said({"format": one.name, "checksum": one.checksum}, outcomes)


def _said(row: dict[str, Any], outcomes: Counter[str]) -> dict[str, Any]:
    row |= {"times": outcomes.total(), "outcomes": dict(sorted(outcomes.items()))}
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
    return row


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
