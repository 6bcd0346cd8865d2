# SPDX-License-Identifier: Apache-2.0
"""Writes the report: two templates read the same sections, one a page, the other Markdown."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from mdft_fast.app.report.accuracies import Table, percent
from mdft_fast.app.report.colors import stylesheet
from mdft_fast.app.report.report_sections import Word, report_sections
from mdft_fast.app.report.schema import Metric, Result, check_end, read_metrics, read_result
from mdft_fast.files import read_text, write_text


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Writes ``report.md`` and ``report.html`` from a run folder's results.

    Args:
        folder: holds ``result.json`` and, if they were written, ``metrics.jsonl`` and
            ``recipe.yaml``.

    Returns:
        The path of ``report.md``. An older report is replaced, each file whole or not at all.

    Raises:
        MdftError: if the results are not there or not as :mod:`mdft_fast.app.report.schema` says.
    """
    folder = Path(folder)
    recipe = folder / "recipe.yaml"
    written = read_text(recipe) if recipe.exists() else ""
    result, metrics = read_result(folder), read_metrics(folder)
    check_end(folder, result, metrics)
    sections = report_sections(result, metrics, written)
    path = folder / "report.md"
    markdown = _TEMPLATES.get_template("report.md").render(sections)
    write_text(path, markdown.rstrip() + "\n")
    write_text(folder / "report.html", _page(sections))
    return path


def page(result: Result, metrics: Sequence[Metric], recipe: str = "") -> str:
    """Returns the report as one HTML file.

    Args:
        result: of the run.
        metrics: of the run; may be empty.
        recipe: text of ``recipe.yaml``, shown where the result holds none.

    Returns:
        HTML that refers to nothing outside itself. Equal input gives equal text.

    Raises:
        MdftError: if the confusion counts do not fit the classes.
    """
    return _page(report_sections(result, metrics, recipe))


def _page(sections: dict[str, Any]) -> str:
    style, script = _asset("page.css") + stylesheet(), _asset("page.js")
    if sections["shares"]:
        style += _asset("shares.css")
    # nothing is loaded, and no other code is run
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    links = _Links(sections["legend"])
    template = _TEMPLATES.get_template("page.html")
    return template.render(sections, policy=policy, style=style, script=script, linked=links)


def _digest(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


class _Links:
    """Escapes a text as :func:`_rich` does, and links its words to the legend."""

    def __init__(self, legend: Iterable[Word]) -> None:
        self._anchors = {str(escape(word.word)): word.anchor for word in legend}
        longest_first = sorted(self._anchors, key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str) -> Markup:
        return _rich(Markup(self._words.sub(self._link, str(escape(text)))))

    def _link(self, match: re.Match[str]) -> str:
        word = match.group()
        return f'<a class="word" href="#word-{escape(self._anchors[word])}">{word}</a>'


def _rich(text: str) -> Markup:
    """Returns escaped text, its ``**bold**`` parts bold and its `` `code` `` as code."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", bold))


def _table(table: Table) -> str:
    """Returns a Markdown table."""
    rows = [*table.rows]
    if table.total:
        rows[-1] = [f"**{cell}**" if cell else "" for cell in rows[-1]]
    rule = [":--" if i < table.left else "--:" for i in range(len(table.header))]
    lines = (table.header, rule, *rows)
    plain = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in plain)


_TEMPLATES = Environment(
    loader=PackageLoader("mdft_fast.app.report"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "count": lambda value: f"{value:,}",
    "percent": percent,
    "rich": _rich,
    "table": _table,
}
