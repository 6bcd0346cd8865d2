# SPDX-License-Identifier: Apache-2.0
"""What ``run.py`` measures: suites, each a stream of rows for the JSON and their text."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import (
    bench_data,
    bench_debiased_entropy,
    bench_memory,
    bench_merge,
    bench_merge_dots,
    bench_pack,
    bench_scaling,
    bench_step,
)
from benchmarks.harness import OURS, Case, race
from benchmarks.machine import Machine, load
from benchmarks.operands import DTYPES, make_arena
from benchmarks.shapes import CLASSES, TABLES, parameters
from mdft_fast.errors import MdftError

Row = dict[str, Any]
Options = argparse.Namespace  # run.py's


class Suite(NamedTuple):
    """Rows of results, and how one is shown."""

    rows: Callable[[Options, Machine], Iterator[Row]]
    table: Callable[[Row], str]


def kernels(options: Options, machine: Machine) -> Iterator[Row]:
    """Every operator, on the tables of real models."""
    for table in options.tables or (["tiny"] if options.quick else ["ViT-B/32", "ViT-L/14"]):
        for dtype in options.dtypes:
            arena = make_arena(table, DTYPES[dtype], machine.device)
            name = f"{table} {dtype}"
            yield from _races(bench_merge.forward_cases(arena, name), options, machine)
            if parameters(TABLES[table]) < 1e8:  # the nine-term sums keep several models
                yield from _races([bench_merge.gradient_case(arena, name)], options, machine)
            yield from _races(bench_merge_dots.cases(arena, name), options, machine)
            del arena
            gc.collect()
    for classes in CLASSES:
        cases = bench_debiased_entropy.cases(classes, 16, machine.device)
        yield from _races(cases, options, machine, more=5)


def step(options: Options, machine: Machine) -> Iterator[Row]:
    """A whole step of stage 1."""
    # Our modes that save memory would tell malloc to return what is freed, and slow everyone.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "malloc's own")
    for model in bench_step.MODELS[:1] if options.quick else options.models:
        for batch in [1] if options.quick else options.batches:
            try:
                case = bench_step.case(model, batch, machine.device)
            except MdftError as error:  # open_clip is optional
                print(f"skipped: step, {model}: {error}", file=sys.stderr)
                continue
            yield from _races([case], options, machine)
            del case
            gc.collect()


def _races(cases: Any, options: Options, machine: Machine, more: int = 1) -> Iterator[Row]:
    """Holds one race after another; frees each case's inputs before the next is made."""
    rounds = 3 if options.quick else more * options.rounds
    for case in cases:
        chosen = without_compile(case) if options.no_compile else case
        yield race(chosen, machine, rounds=rounds, allow_busy=options.allow_busy).summary()
        del case, chosen


def without_compile(case: Case) -> Case:
    """Returns the case without its compiled rivals."""
    rivals = {name: rival for name, rival in case.rivals.items() if "compile" not in name}
    return dataclasses.replace(case, rivals=rivals)


def memory(options: Options, machine: Machine) -> Iterator[Row]:
    """What a step takes in memory, by mode and codec."""
    models = bench_memory.MODELS[:1] if options.quick else options.memory_models
    codecs = ["int8"] if options.quick else options.codecs
    folder = Path(options.pools) if options.pools else None
    yield from bench_memory.run(models, codecs, keep=folder)


def scaling(options: Options, machine: Machine) -> Iterator[Row]:
    """What merge and merge_dots cost against K, in every codec, on one block of ViT-L/14."""
    most, rounds = (2, 1) if options.quick else (64, options.rounds)
    yield from bench_scaling.run(machine, options.codecs, most, rounds, options.allow_busy)


def data(options: Options, machine: Machine) -> Iterator[Row]:
    """What loading gives and what an encoder takes, in images a second."""
    every = [name for name in options.models if name in bench_step.MODELS[:2]]
    models, images, rounds = (every[:1], 24, 1) if options.quick else (every, 1024, options.rounds)
    for threads in sorted({1, torch.get_num_threads()}):
        for row in bench_data.run(models, machine.device, images, rounds, threads):
            yield row | {"load_average": load()[0]}


def pack(options: Options, machine: Machine) -> Iterator[Row]:
    """How fast a pool is packed, against a copy of its checkpoints."""
    unlimited = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_DATA, (unlimited, unlimited))  # mapped files would count
    models = bench_memory.MODELS[:1] if options.quick else options.memory_models
    yield from bench_pack.run(models, options.codecs, 1 if options.quick else options.rounds)


def race_table(result: Row) -> str:
    """Returns one race's contestants, one a line; ours is the yardstick of the ratios."""
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


SUITES = {
    "kernels": Suite(kernels, race_table),
    "step": Suite(step, race_table),
    "memory": Suite(memory, bench_memory.table),
    "scaling": Suite(scaling, bench_scaling.table),
    "data": Suite(data, bench_data.table),
    "pack": Suite(pack, bench_pack.table),
}
