# SPDX-License-Identifier: Apache-2.0
"""How fast checkpoints become a packed pool, against copying the same files, and in what memory."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_memory import K, write_models
from benchmarks.harness import orders
from benchmarks.machine import status_bytes
from mdft_fast import Pool

COPY = "copy of the files"


def run(models: Sequence[str], codecs: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Yields a row a model: float32 safetensors of a base and K models, packed in each codec.

    Every file is in the page cache beforehand, and on the disk (fsync) when a turn ends.
    """
    for model in models:
        with tempfile.TemporaryDirectory(prefix="mdft-pack-") as folder:
            arguments = write_models(model, Path(folder), torch.float32)
            files = [arguments["base"], *arguments["checkpoints"]]
            target = Path(folder, "target")
            ways: dict[str, Callable[[], Any]] = {COPY: functools.partial(_copy, files, target)}
            for codec in codecs:
                pack = functools.partial(Pool.pack, target, **arguments, codec=codec)
                ways[f"pack, {codec}"] = pack
            turns: dict[str, list[tuple[float, int, int]]] = {name: [] for name in ways}
            for order in orders(list(ways), rounds):
                for name in order:
                    seconds, memory = watched(ways[name])
                    written = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
                    turns[name].append((seconds, memory, written))
                    shutil.rmtree(target)
            yield _row(model, files, turns)


def _copy(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
        with open(folder / file.name, "rb") as copied:
            os.fsync(copied.fileno())


def watched(work: Callable[[], Any]) -> tuple[float, int]:
    """Returns a call's seconds, and by how many bytes anonymous memory grew meanwhile."""
    stop, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, status_bytes("RssAnon") or 0)

    gc.collect()
    before = status_bytes("RssAnon") or 0
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        work()
        seconds = time.perf_counter() - started
    finally:
        stop.set()
        watcher.join()
    return seconds, max(peak - before, 0)


def _row(
    model: str, files: Sequence[Path], turns: dict[str, list[tuple[float, int, int]]]
) -> dict[str, Any]:
    read, copies = sum(file.stat().st_size for file in files), turns[COPY]
    return {
        "op": "pack",
        "case": f"{model}, base and {K} models in float32",
        "rounds": len(copies),
        "read_mb": round(read / 1e6, 1),
        "model_mb": round(files[0].stat().st_size / 1e6, 1),
        "ways": {
            name: {
                "s": round(statistics.median(turn[0] for turn in some), 2),
                "read_gb_per_s": round(read / 1e9 / statistics.median(t[0] for t in some), 2),
                "over_copy": round(
                    statistics.median(a[0] / b[0] for a, b in zip(some, copies, strict=True)), 2
                ),
                "written_mb": round(some[0][2] / 1e6, 1),
                "anonymous_mb": round(max(turn[1] for turn in some) / 1e6, 1),
            }
            for name, some in turns.items()
        },
    }


def table(row: dict[str, Any]) -> str:
    """Returns a row as lines of text."""
    lines = [f"{row['op']}: {row['case']}, {row['read_mb']:,.0f} MB  ({row['rounds']} rounds)"]
    for name, way in row["ways"].items():
        lines.append(
            f"  {name:20} {way['s']:8.2f} s {way['read_gb_per_s']:6.2f} GB/s read "
            f"{way['over_copy']:6.2f} x the copy's time {way['written_mb']:9,.0f} MB written "
            f"{way['anonymous_mb']:8,.0f} MB anonymous (a model: {row['model_mb']:,.0f})"
        )
    return "\n".join(lines)
