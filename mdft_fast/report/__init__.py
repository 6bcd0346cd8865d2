# SPDX-License-Identifier: Apache-2.0
"""The report: reads a run folder, changes no result, adds ``report.md`` and ``report.html``."""

from mdft_fast.report.html import page
from mdft_fast.report.schema import Metric, Result, read_metrics, read_result
from mdft_fast.report.verdict import verdict
from mdft_fast.report.write import write_report

__all__ = ["Metric", "Result", "page", "read_metrics", "read_result", "verdict", "write_report"]
