# SPDX-License-Identifier: Apache-2.0
"""What every table and figure is made of: a measurement, Markdown, a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.paper.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Any]


class Item(NamedTuple):
    """A table or figure of the paper.

    Attributes:
        title: what it shows.
        measure: makes the results, plain JSON values.
        markdown: shows them, the paper's numbers beside them; from the JSON alone.
        draw: draws them; from the JSON alone.
    """

    title: str
    measure: Callable[[Study, argparse.Namespace], Results]
    markdown: Callable[[Results], str]
    draw: Callable[[Results], Figure]


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table; the first column is aligned left, the others right."""
    rule = [":--"] + ["--:"] * (len(header) - 1)
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |" for row in ([*header], rule, *map(list, lines))
    )


def percent(share: float | None) -> str:
    """Returns 0.123 as ``12.3``; nothing measured as a dash."""
    return "–" if share is None else f"{100 * share:.1f}".replace("-", "−")  # noqa: RUF001


def spread(shares: Sequence[float]) -> str:
    """Returns the mean in per cent, with the lowest and highest where they differ."""
    text = percent(sum(shares) / len(shares))
    if len(shares) > 1:
        text += f" ({percent(min(shares))} to {percent(max(shares))})"
    return text


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")  # noqa: RUF001
