# SPDX-License-Identifier: Apache-2.0
"""Runs the races and writes what they measured; makes the paper's tables and figures; compares.

python benchmarks/run.py kernels step --json benchmarks/results/FILE.json
python benchmarks/run.py table2 fig3 --recipe RECIPE --out FOLDER
python benchmarks/run.py methods RECIPE --json benchmarks/results/methods.json
python benchmarks/run.py unseen RECIPE --json benchmarks/results/unseen.json
python benchmarks/run.py calibrate --json benchmarks/results/calibrate_cpu.json
python benchmarks/run.py end_to_end RECIPE --clip8 --json benchmarks/results/end_to_end.json
python benchmarks/run.py compare OLD.json NEW.json
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # an installed mdft_fast wins
os.environ["MDFT_STRICT"] = "1"  # the reference must not race in the kernels' place

from benchmarks import (  # noqa: E402
    bench_calibrate,
    bench_end_to_end,
    bench_memory,
    bench_methods,
    bench_step,
    bench_unseen,
    compare,
)
from benchmarks.harness import Busy, origin  # noqa: E402
from benchmarks.machine import Machine, limit_memory, load  # noqa: E402
from benchmarks.operands import DTYPES  # noqa: E402
from benchmarks.paper import ITEMS, command  # noqa: E402
from benchmarks.shapes import TABLES  # noqa: E402
from benchmarks.suites import SUITES  # noqa: E402
from mdft_fast.arena import CODECS  # noqa: E402
from mdft_fast.files import write_json  # noqa: E402

COMMANDS = {
    "calibrate": bench_calibrate.main,
    "compare": compare.main,
    "end_to_end": bench_end_to_end.main,
    "methods": bench_methods.main,
    "unseen": bench_unseen.main,
} | dict.fromkeys([*ITEMS, "paper"], command.main)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"The paper's: {', '.join(ITEMS)}, or all of them: paper. See `run.py paper -h`. "
        "Methods on a recipe's pool: `run.py methods -h`. "
        "Two results: `run.py compare OLD.json NEW.json`.",
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=f"some of {list(SUITES)}; none: all")
    add("--json", metavar="FILE", type=Path, help="writes the results there")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--codecs", nargs="*", choices=CODECS, default=list(CODECS),
        help="of memory, scaling and pack")  # fmt: skip
    add("--pools", metavar="FOLDER", help="keeps memory's pools there, or finds them")
    add("--quick", action="store_true", help="three rounds of tiny cases: does it run?")
    add("--allow-busy", action="store_true", help="measures on a busy machine; the result says so")
    add("--no-compile", action="store_true", help="leaves torch.compile out: it takes its time")
    add("--rounds", type=int, default=9, help="turns of each contestant (default: %(default)s)")
    add("--tables", nargs="*", choices=list(TABLES), help="of the kernels (default: B/32, L/14)")
    add("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES))
    add("--models", nargs="*", choices=bench_step.MODELS, default=list(bench_step.MODELS))
    add("--memory-models", nargs="*", choices=bench_memory.MODELS, default=["CLIP ViT-L/14"])
    add("--batches", nargs="*", type=int, default=[1, 4], help="images a task in a step")
    add("--threads", type=int, help="of torch (default: torch's own choice)")
    options = parser.parse_args(argv)
    options.suites = options.suites or list(SUITES)
    if unknown := [name for name in options.suites if name not in SUITES]:
        parser.error(f"SUITE must be some of {list(SUITES)}, got {unknown}")
    return options


def main(argv: list[str]) -> int:
    """Runs the suites, or another command; returns the exit status."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv)
    options = arguments(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cpu":
        limit_memory()
    machine = Machine(device)
    results: list[dict[str, Any]] = []
    try:
        with torch.no_grad():
            for name in options.suites:
                suite = SUITES[name]
                for row in suite.rows(options, machine):
                    print(suite.table(row), flush=True)
                    results.append({"suite": name, "busy": load()[1]} | row)
                    if options.json:
                        write(options.json, argv, device, results)
    except Busy as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 2
    return 0


def write(path: Path, argv: list[str], device: torch.device, results: list[Any]) -> None:
    """Writes all results so far: an interrupted run keeps what it has."""
    words = shlex.join(["python", "benchmarks/run.py", *_without(argv, "--json")])
    write_json(path, {
        **origin(words, device),
        "load_average": load()[0],
        "busy": any(row["busy"] for row in results),
        "results": results,
    })  # fmt: skip


def _without(argv: list[str], option: str) -> list[str]:
    """Leaves an option and its value out: where the results lie is nobody's business."""
    at = argv.index(option) if option in argv else len(argv)
    return argv[:at] + argv[at + 2 :]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
