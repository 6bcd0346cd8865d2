# SPDX-License-Identifier: Apache-2.0
"""Time and memory by phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdft_fast.app.report.schema import Metric, Result
from mdft_fast.app.report.series import PEAK, step_times


def section(result: Result, metrics: Sequence[Metric]) -> dict[str, Any] | None:
    """Returns what the template shows; None where no phase was measured."""
    phases = result["phases"]
    if not phases:
        return None
    longest = max(phase["seconds"] for phase in phases) or 1.0
    most = max((phase["peak_mb"] or 0.0 for phase in phases), default=0.0) or 1.0
    memory = any(phase["peak_mb"] is not None for phase in phases)
    return {
        "memory": memory,
        "lines": [
            {
                **phase,
                "time_share": round(100 * phase["seconds"] / longest, 1),
                "memory_share": round(100 * (phase["peak_mb"] or 0.0) / most, 1),
            }
            for phase in phases
        ],
        "total": sum(phase["seconds"] for phase in phases),
        "notes": [*([PEAK] if memory else []), *step_times(metrics)],
    }
