# SPDX-License-Identifier: Apache-2.0
"""Writes the report into a run folder, as Markdown with pictures and as a page."""

from __future__ import annotations

import os
from pathlib import Path

from mdft_fast.app.report.html.render import page
from mdft_fast.app.report.markdown import markdown
from mdft_fast.app.report.pictures import write_pictures
from mdft_fast.app.report.schema import read_metrics, read_result
from mdft_fast.files import write_text

REPORT = "report.md"
PAGE = "report.html"


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Writes ``report.md``, ``pictures/`` and ``report.html`` from a run folder's results.

    Args:
        folder: holds ``result.json`` and, if they were written, ``metrics.jsonl`` and
            ``recipe.yaml``.

    Returns:
        The path of ``report.md``. An older report is replaced, each file whole or not at all.

    Raises:
        MdftError: if the results are not there or not as :mod:`mdft_fast.app.report.schema` says.
    """
    folder = Path(folder)
    result, metrics = read_result(folder), read_metrics(folder)
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    pictures = write_pictures(folder, result, metrics)
    html = page(result, metrics, text)
    path = folder / REPORT
    write_text(path, markdown(result, metrics, pictures, text))
    write_text(folder / PAGE, html)
    return path
