# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as the pages show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], lines: Iterable[Sequence[object]], left: int = 1) -> str:
    """Returns a Markdown table; the first ``left`` columns are aligned left, the others right."""
    rule = [":--" if i < left else "--:" for i in range(len(header))]
    rows = [header, rule, *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def mean(values: Mapping[str, float] | Iterable[float]) -> float:
    """Returns the mean of at least one number."""
    numbers = list(values.values() if isinstance(values, Mapping) else values)
    return sum(numbers) / len(numbers)


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number, its minus as wide as a plus, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")  # noqa: RUF001


def percent(share: float | None) -> str:
    """Returns 0.123 as ``12.3``; nothing measured as a dash."""
    return number(None if share is None else 100 * share, 1)


def signed(share: float) -> str:
    """Returns 0.006 as ``+0.6``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def spread(shares: Sequence[float]) -> str:
    """Returns the mean in per cent, and the range where there are several numbers."""
    low, high = percent(min(shares)), percent(max(shares))
    return percent(mean(shares)) + (f" ({low} to {high})" if len(shares) > 1 else "")


def origin(result: Mapping[str, Any]) -> str:
    """Returns where a result comes from: date, commit, device, threads, command."""
    date = str(result.get("created") or result.get("date") or "unknown date")[:10]
    commit = str(result.get("commit") or "unknown")[:10]
    parts = [date, f"commit `{commit}`", str(result.get("device", "unknown device"))]
    if "threads" in result:
        parts.append(f"{result['threads']} thread{'s' * (result['threads'] != 1)}")
    if "versions" in result:
        parts.append(f"torch {result['versions'].get('torch', '?')}")
    if result.get("busy"):
        parts.append("**measured while the machine was busy with other work**")
    if result.get("command"):
        parts.append(f"`{result['command']}`")
    return f"From {', '.join(parts)}."
