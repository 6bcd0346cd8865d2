# SPDX-License-Identifier: Apache-2.0
"""The report: reads a run folder, changes no result, adds ``report.md`` and ``report.html``."""

from mdft_fast.app.report.accuracy_pictures import rows
from mdft_fast.app.report.html.render import page
from mdft_fast.app.report.schema import Method, Metric, Result, read_metrics, read_result
from mdft_fast.app.report.style import (
    BLUE,
    FAINT,
    GRAY,
    GREEN,
    INK,
    ORANGE,
    RC,
    SKY,
    VERMILION,
    WINE,
    bare,
    heading,
    name_rows,
    new_figure,
    save,
)
from mdft_fast.app.report.verdict import verdict
from mdft_fast.app.report.write import write_report

__all__ = [
    "BLUE",
    "FAINT",
    "GRAY",
    "GREEN",
    "INK",
    "ORANGE",
    "RC",
    "SKY",
    "VERMILION",
    "WINE",
    "Method",
    "Metric",
    "Result",
    "bare",
    "heading",
    "name_rows",
    "new_figure",
    "page",
    "read_metrics",
    "read_result",
    "rows",
    "save",
    "verdict",
    "write_report",
]
