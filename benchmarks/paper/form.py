# SPDX-License-Identifier: Apache-2.0
"""What every table and figure is made of: a measurement, Markdown, a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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
