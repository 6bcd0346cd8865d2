# SPDX-License-Identifier: Apache-2.0
"""Runs the races and writes what they measured; makes the paper's tables and figures.

python benchmarks/run.py kernels step --json benchmarks/results/FILE.json
python benchmarks/run.py table2 fig3 --recipe RECIPE --out FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import resource
import shlex
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # an installed mdft_fast wins
os.environ["MDFT_STRICT"] = "1"  # the reference must not race in the kernels' place

from benchmarks import (  # noqa: E402
    bench_data,
    bench_debiased_entropy,
    bench_memory,
    bench_merge,
    bench_merge_dots,
    bench_pack,
    bench_scaling,
    bench_step,
)
from benchmarks.harness import (  # noqa: E402
    OURS,
    Busy,
    Case,
    Machine,
    environment,
    limit_memory,
    load,
    race,
)
from benchmarks.paper import ITEMS, command  # noqa: E402
from benchmarks.shapes import CLASSES, TABLES, parameters  # noqa: E402
from mdft_fast.arena import CODECS  # noqa: E402
from mdft_fast.errors import MdftError  # noqa: E402

Cases = Iterator[tuple[Case, int]]  # with its number of rounds


def kernels(args: argparse.Namespace, device: torch.device) -> Cases:
    """Every operator, on the tables of real models."""
    for table in args.tables or (["tiny"] if args.quick else ["ViT-B/32", "ViT-L/14"]):
        for dtype in args.dtypes:
            arena = bench_merge.make_arena(table, bench_merge.DTYPES[dtype], device)
            name, rounds = f"{table} {dtype}", 3 if args.quick else args.rounds
            for case in bench_merge.forward_cases(arena, name):
                yield case, rounds
            if parameters(TABLES[table]) < 1e8:  # the nine-term sums keep several models
                yield bench_merge.gradient_case(arena, name), rounds
            for case in bench_merge_dots.cases(arena, name):
                yield case, rounds
            del arena, case
            gc.collect()
    for classes in CLASSES:
        for case in bench_debiased_entropy.cases(classes, 16, device):
            yield case, 3 if args.quick else 5 * args.rounds


def step(args: argparse.Namespace, device: torch.device) -> Cases:
    """A whole step of stage 1."""
    # Our modes that save memory would tell malloc to return what is freed, and slow everyone.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "malloc's own")
    for model in list(bench_step.MODELS)[:1] if args.quick else args.models:
        for batch in [1] if args.quick else args.batches:
            try:
                case = bench_step.case(model, batch, device)
            except MdftError as error:  # open_clip is optional
                print(f"skipped: step, {model}: {error}")
                continue
            yield case, 3 if args.quick else args.rounds
            del case
            gc.collect()


SUITES: dict[str, Callable[[argparse.Namespace, torch.device], Cases]] = {
    "kernels": kernels,
    "step": step,
}


def memory(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """What a step takes in memory, by mode and codec."""
    models = list(bench_memory.MODELS)[:1] if args.quick else args.memory_models
    codecs = ["int8"] if args.quick else args.codecs
    folder = Path(args.pools) if args.pools else None
    for row in bench_memory.run(models, codecs, keep=folder):
        print(bench_memory.table(row), flush=True)
        yield row | {"busy": load()[1]}


def scaling(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """What merge and merge_dots cost against K, in every codec, on one block of ViT-L/14."""
    most, rounds = (2, 1) if args.quick else (64, args.rounds)
    for row in bench_scaling.run(Machine(device), args.codecs, most, rounds):
        print(bench_scaling.table(row), flush=True)
        yield row | {"busy": load()[1]}


def data(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """What loading gives and what an encoder takes, in images a second."""
    every = [name for name in args.models if name in list(bench_step.MODELS)[:2]]
    models, images, rounds = (every[:1], 24, 1) if args.quick else (every, 1024, args.rounds)
    for threads in sorted({1, torch.get_num_threads()}):
        for row in bench_data.run(models, device, images, rounds, threads):
            print(bench_data.table(row), flush=True)
            yield row | {"load_average": load()[0], "busy": load()[1]}


def pack(args: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """How fast a pool is packed, against a copy of its checkpoints."""
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_DATA, (unlimited, unlimited))  # mapped files would count
    models = list(bench_memory.MODELS)[:1] if args.quick else args.memory_models
    for row in bench_pack.run(models, args.codecs, 1 if args.quick else args.rounds):
        print(bench_pack.table(row), flush=True)
        yield row | {"busy": load()[1]}


WATCHES: dict[str, Callable[[argparse.Namespace, torch.device], Iterator[dict[str, Any]]]] = {
    "memory": memory,
    "scaling": scaling,
    "data": data,
    "pack": pack,
}


ALL = [*SUITES, *WATCHES]


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"The paper's: {', '.join(ITEMS)}, or all of them: paper. See `run.py paper -h`.",
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=f"some of {ALL}; none: all")
    add("--json", metavar="FILE", help="writes the results there")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--codecs", nargs="*", choices=CODECS, default=list(CODECS),
        help="of memory, scaling and pack")  # fmt: skip
    add("--pools", metavar="FOLDER", help="keeps memory's pools there, or finds them")
    add("--quick", action="store_true", help="three rounds of tiny cases: does it run?")
    add("--allow-busy", action="store_true", help="measures on a busy machine; the result says so")
    add("--no-compile", action="store_true", help="leaves torch.compile out: it takes its time")
    add("--rounds", type=int, default=9, help="turns of each contestant (default: %(default)s)")
    add("--tables", nargs="*", choices=list(TABLES), help="of the kernels (default: B/32, L/14)")
    add("--dtypes", nargs="*", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    add("--models", nargs="*", choices=list(bench_step.MODELS), default=list(bench_step.MODELS))
    add("--memory-models", nargs="*", choices=list(bench_memory.MODELS),
        default=["CLIP ViT-L/14"])  # fmt: skip
    add("--batches", nargs="*", type=int, default=[1, 4], help="images a task in a step")
    add("--threads", type=int, help="of torch (default: torch's own choice)")
    args = parser.parse_args(argv)
    args.suites = args.suites or ALL
    if unknown := [name for name in args.suites if name not in ALL]:
        parser.error(f"SUITE must be some of {ALL}, got {unknown}")
    return args


def main(argv: list[str]) -> int:
    """Runs the suites; returns the exit status."""
    if argv and argv[0] in (*ITEMS, "paper"):
        return command.main(argv)
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cpu":
        limit_memory()
    machine, results = Machine(device), []
    for suite in args.suites:
        with torch.no_grad():
            if suite in WATCHES:
                for row in WATCHES[suite](args, device):
                    results.append({"suite": suite} | row)
                    if args.json:
                        write(Path(args.json), argv, device, results)
                continue
            for case, rounds in SUITES[suite](args, device):
                if args.no_compile:
                    case = without_compile(case)
                try:
                    result = race(case, machine, rounds=rounds, allow_busy=args.allow_busy)
                except Busy as error:
                    print(f"not measured: {error}", file=sys.stderr)
                    return 2
                print(table(result), flush=True)
                results.append({"suite": suite} | result)
                if args.json:
                    write(Path(args.json), argv, device, results)
    return 0


def without_compile(case: Case) -> Case:
    """Returns the case without its compiled rivals."""
    rivals = {name: rival for name, rival in case.rivals.items() if "compile" not in name}
    return dataclasses.replace(case, rivals=rivals)


def write(path: Path, argv: list[str], device: torch.device, results: list[Any]) -> None:
    """Writes all results so far: an interrupted run keeps what it has."""
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/run.py", *_without(argv, "--json")]),
        **environment(device),
        "load_average": load()[0],
        "busy": any(r["busy"] for r in results),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _without(argv: list[str], option: str) -> list[str]:
    """Leaves an option and its value out: where the results lie is nobody's business."""
    at = argv.index(option) if option in argv else len(argv)
    return argv[:at] + argv[at + 2 :]


def table(result: dict[str, Any]) -> str:
    """Returns one case's contestants, one a line; ours is the yardstick of the ratios."""
    busy = "  BUSY" if result["busy"] else ""
    copy = f", copy {result['copy_gb_per_s']} GB/s" if result["copy_gb_per_s"] else ""
    lines = [
        f"{result['op']}: {result['case']}  ({result['rounds']} rounds{copy}, "
        f"load {result['load_average']}{busy})"
    ]
    for name, one in result["contestants"].items():
        low, high = one["iqr_ms"]
        ratio = "" if name == OURS else f"{one['over_ours']:.2f} x ours"
        rate = (
            f"{one['gb_per_s']:6.1f} GB/s {one['share_of_copy']:7.1%} of copy"
            if "gb_per_s" in one
            else ""
        )
        peak = "" if one["peak_mb"] is None else f"+{one['peak_mb']:,.0f} MB"
        lines.append(
            f"  {name:32} {one['median_ms']:10.4g} ms [{low:.4g}, {high:.4g}]"
            f" {ratio:>14} {rate:32} {peak:>10}"
        )
    lines += [
        f"  {name:32} does not work here: {why}"
        for name, why in result["does_not_work_here"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
