# SPDX-License-Identifier: Apache-2.0
"""Numbers by step, as pictures and page draw them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from mdft_fast.app.report.schema import Metric

Point = tuple[float, float]
PEAK = (
    "Peak: what was resident in the phase, with PyTorch and with the pages of mapped files, which "
    "the system takes back at need; on a GPU, what was allocated there."
)


def finite(x: Sequence[float], y: Sequence[float | None]) -> list[Point]:
    """Returns the points that can be drawn."""
    return [(a, b) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Returns running means over a tenth of the points; a short series as it is."""
    half = len(points) // 20
    windows = (points[max(0, i - half) : i + half + 1] for i in range(len(points)))
    means = (math.fsum(y for _, y in window) / len(window) for window in windows)
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def step_times(metrics: Sequence[Metric]) -> list[str]:
    """Returns a sentence a stage: what a step takes."""
    said = []
    for stage, words in (("construct", "stage 1"), ("specialize", "stage 2")):
        lines = [line for line in metrics if line["stage"] == stage]
        if lines:
            step = 1000 * statistics.median(line["seconds"] for line in lines)
            rate = statistics.median(line["samples_per_s"] or 0.0 for line in lines)
            said.append(
                f"A step of {words}: {step:,.1f} ms in the median, {rate:,.0f} samples a second."
            )
    return said
