# SPDX-License-Identifier: Apache-2.0
"""The report: reads a run folder, changes no result, adds ``report.md`` and ``report.html``."""

from mdft_fast.app.report.accuracies import accuracy_table
from mdft_fast.app.report.compared_models import COMPARED, ComparedModel, rows_of_table
from mdft_fast.app.report.rendering import page, write_report
from mdft_fast.app.report.schema import (
    METRICS,
    TIMES,
    WITHOUT_METRICS,
    Metric,
    Result,
    read_metrics,
    read_result,
)

__all__ = [
    "COMPARED",
    "METRICS",
    "TIMES",
    "WITHOUT_METRICS",
    "ComparedModel",
    "Metric",
    "Result",
    "accuracy_table",
    "page",
    "read_metrics",
    "read_result",
    "rows_of_table",
    "write_report",
]
