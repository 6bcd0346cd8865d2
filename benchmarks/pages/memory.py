# SPDX-License-Identifier: Apache-2.0
"""Memory of a step, from benchmarks/run.py's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import origin, table

WAYS = {
    "plain": "plain forward and backward of one model",
    "peers": "as other libraries merge: every task vector in fp32, autograd through the sum",
    "resident": "resident",
    "layerwise": "layerwise",
    "streamed": "streamed",
}


def section(content: Any) -> Iterator[str]:
    """Gives what a step takes by mode and codec."""
    yield "## Memory of a step on the CPU"
    header = ["model", "way", "codec", "MB", "mapped, MB", "plan said", "s"]
    yield table(header, map(_line, content["results"]), left=3)
    yield (
        f"{content['results'][0]['samples']} images, K = 8, fp32, activations of every block "
        "computed again, for all alike. MB: the peak of anonymous memory above the bare process, "
        "watched from another; mapped: pages of files that the system can take back. Seconds: one "
        "step, not a race. The last rows ran under a hard limit (RLIMIT_DATA) beyond the open pool."
    )
    yield origin(content)


def _line(row: Mapping[str, Any]) -> list[object]:
    plan = f"{row['predicted_mb']:,.0f}" if "predicted_mb" in row else ""
    if "limit_mb" in row:
        plan = f"limit {row['limit_mb']:,.0f}"
    took = f"{row['seconds']:.1f}" if "seconds" in row else "out of memory"
    megabytes = (f"{row[name]:,.0f}" for name in ("anonymous_mb", "mapped_mb"))
    return [row["model"], WAYS[row["way"]], row["codec"], *megabytes, plan, took]


def _peaks(content: Any) -> tuple[Mapping[str, Any], dict[tuple[str, str], float]]:
    """Returns the largest model's first row, and (way, codec) -> peak in GB."""
    rows = [r for r in content["results"] if r["model"] == content["results"][-1]["model"]]
    rows = [r for r in rows if "limit_mb" not in r]
    return rows[0], {(r["way"], r["codec"]): r["anonymous_mb"] / 1e3 for r in rows}


def summary(content: Any) -> str:
    """Returns one sentence on the largest model."""
    first, peaks = _peaks(content)
    least = min((p for p in peaks if p[0] in ("layerwise", "streamed")), key=lambda p: peaks[p])
    return (
        f"**Memory of a step on the CPU**, {first['model']}, K = 8, {first['samples']} images, "
        f"checkpointing everywhere: {least[0]} {peaks[least]:.2f} GB, resident "
        f"{peaks['resident', 'fp32']:.2f} GB, one plain model's forward and backward "
        f"{peaks['plain', 'fp32']:.2f} GB, "
        f"as other libraries merge {peaks['peers', 'fp32']:.2f} GB."
    )


def peak_table(content: Any) -> str:
    """Returns a line a way, a column a codec: the largest model's peak in GB."""
    first, peaks = _peaks(content)
    codecs = dict.fromkeys(codec for _, codec in peaks)
    lines = [
        [words, *(f"{peaks[way, c]:.2f} GB" if (way, c) in peaks else "" for c in codecs)]
        for way, words in WAYS.items()
    ]
    return table([f"{first['model']}, {first['samples']} images", *codecs], lines)
