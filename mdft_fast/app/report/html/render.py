# SPDX-License-Identifier: Apache-2.0
"""Puts the sections into the template, and the policy around them."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from mdft_fast.app.report.html import accuracy, confusion, cost, course, lambdas, samples
from mdft_fast.app.report.html.colors import stylesheet
from mdft_fast.app.report.legend import legend
from mdft_fast.app.report.schema import Metric, Result
from mdft_fast.app.report.verdict import title, verdict

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


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
    style, script = _text("page.css") + stylesheet(), _text("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            result=result,
            title=title(result),
            verdict=[_rich(paragraph) for paragraph in verdict(result)],
            legend=legend(result),
            policy=_policy(style, script),
            style=style,
            script=script,
            accuracy=accuracy.section(result),
            lambdas=lambdas.section(result),
            course=course.section(result, metrics),
            samples=samples.section(result),
            confusions=confusion.section(result),
            cost=cost.section(result, metrics),
            recipe=result.get("recipe", recipe),
        )
    )


def _policy(style: str, script: str) -> str:
    """Returns the Content-Security-Policy: nothing is loaded, and no other code is run."""
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _rich(text: str) -> Markup:
    """Returns escaped text with its ``**bold**`` parts bold."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mdft_fast.app.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,}"
    filters: dict[str, Any] = environment.filters
    filters["percent"] = lambda share: f"{100 * share:.1f}"
    return environment
