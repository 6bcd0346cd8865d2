# SPDX-License-Identifier: Apache-2.0
"""Reading images and writing pools, from benchmarks/run.py's data and pack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.markdown import origin, table


def loading(content: Any) -> Iterator[str]:
    """Gives what loading gives beside what an encoder takes."""
    yield "## Loading of images on the CPU"
    first = content["results"][0]
    rates = list(first["images_per_s"])
    lines = [
        [r["case"], r["threads"], *(f"{r['images_per_s'][n]:,.0f}" for n in rates),
         f"{r['batches_over_forward']:.0f}", f"{r['load_average']:.1f}"]
        for r in content["results"]
    ]  # fmt: skip
    yield table(["encoder", "threads", *rates, "batches / forward", "load"], lines)
    yield (
        f"Images a second; {first['images']:,} files just written, batches of {first['batch']}. "
        "Decoding fills the cache, once for all runs; opening compares every cached image with its "
        "digest, once a process; cached batches are what every step reads: gathered, made floats, "
        "normalized. The encoder alone, nothing merged, is the least that a step takes. Load: of "
        "the machine, other work included, over the last minute."
    )
    yield origin(content)


def packing(content: Any) -> Iterator[str]:
    """Gives how fast a pool is packed, and in what memory."""
    yield "## Packing on the CPU"
    lines = [
        [r["case"], name, f"{way['s']:.1f}", f"{way['over_copy']:.2f}", f"{way['written_mb']:,.0f}",
         f"{way['anonymous_mb'] / r['model_mb']:.2f}"]
        for r in content["results"]
        for name, way in r["ways"].items()
    ]  # fmt: skip
    yield table(["case", "way", "s", "/ copy", "MB written", "memory, models"], lines, left=2)
    yield (
        "Against copying the same files, turn by turn, all of it on the disk at the end (fsync); "
        "medians, and of ratios within a round. Every byte is read, compared with the base, "
        "encoded, hashed twice and written. Memory: the peak of anonymous memory in sizes of one "
        "model in float32."
    )
    yield origin(content)
