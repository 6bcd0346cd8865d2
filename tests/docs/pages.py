# SPDX-License-Identifier: Apache-2.0
"""The pages, and what stands in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
AT_THE_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [README, *(ROOT / name for name in AT_THE_ROOT), *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def run(code: list[str], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs pieces of code one after another; returns the names that they leave."""
    names = {} if names is None else names
    for piece in code:
        exec(compile(piece, "<page>", "exec", dont_inherit=True), names)
    return names


def rows(page: Path, first: str) -> list[list[str]]:
    """Returns the cells of a page's table that begins with a row ``first``."""
    text = page.read_text().split(first)[1].split("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()[2:]
    ]
