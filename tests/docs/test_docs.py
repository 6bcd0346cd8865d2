# SPDX-License-Identifier: Apache-2.0
"""The pages say what the code does: links, names, commands and numbers."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import mdft_fast
from benchmarks.pages.blocks import BLOCK
from mdft_fast.app import cli
from tests.docs.pages import DOCS, PAGES, ROOT, blocks, rows

ACCURACY = re.compile(r"(?<![\w.])\d\d\.\d(?![\d.])")
NOTEBOOK = ROOT / "examples" / "own_model.ipynb"
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?![a-z]+://)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, NOTEBOOK], ids=lambda page: page.name)
def test_pages_name_no_place_of_a_machine(page: Path) -> None:
    after = "/" if page == NOTEBOOK else r"\b"  # pictures are text there
    assert not re.search(rf"(?<![\w./+])/(home|root|work|tmp|Users|mnt){after}", page.read_text())


def test_every_public_name_is_in_the_pages() -> None:
    text = "\n".join(page.read_text() for page in [*PAGES, NOTEBOOK])
    assert not [name for name in mdft_fast.__all__ if not re.search(rf"\b{name}\b", text)]


def test_tests_that_pages_name_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "method.md").read_text())
    assert len(named) > 15
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, name


@by_page
def test_files_and_names_of_the_package_on_pages_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`((?:mdft_fast|csrc|tests|examples|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`mdft_fast\.([\w.]+)`", text):
        assert resolved(name) is not None, name


def resolved(name: str) -> Any:
    """Returns what ``mdft_fast.<name>`` is: modules by import, the rest by attribute."""
    value: Any = mdft_fast
    for part in name.split("."):
        try:
            value = importlib.import_module(f"{value.__name__}.{part}")
        except (ImportError, AttributeError):
            value = getattr(value, part)
    return value


def test_names_of_the_heads_page_exist() -> None:
    cells = [row[0] for row in rows(DOCS / "heads.md", "| name | what it gives |")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)\(", cell)]
    assert len(named) > 6
    assert all(resolved(f"heads.{name}") for name in named)


def test_equations_bear_their_numbers_in_the_reference() -> None:
    text = (ROOT / "mdft_fast/reference.py").read_text()
    assert [n for n in range(1, 8) if f"({n})" in text] == [1, 2, 3, 4, 5, 6, 7]
    assert "# (4)" in text  # what method.md and index.md tell readers to search for


@functools.cache
def commands() -> dict[str, Any]:
    return typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@by_page
def test_commands_and_options_that_pages_name_exist(page: Path) -> None:
    for name in re.findall(r"`mdft ([a-z]+)", page.read_text()):
        assert name in commands(), name
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["mdft"]:
            known = {o for p in commands()[words[1]].params for o in p.opts}
            assert {w for w in words if w.startswith("-")} <= known, line


@pytest.mark.parametrize("page", [*DOCS.glob("paper*.md"), DOCS / "results.md"])
def test_accuracies_in_words_are_those_of_the_tables(page: Path) -> None:
    text = page.read_text()
    tables = set(ACCURACY.findall("".join(match[0] for match in BLOCK.finditer(text))))
    assert set(ACCURACY.findall(BLOCK.sub("", text))) <= tables


@by_page
def test_one_page_says_what_has_run_where(page: Path) -> None:
    says = re.search(r"(never|ever|not|yet)\s+(been\s+)?r[au]n\s+on\s+a\s+GPU", page.read_text())
    assert bool(says) == (page == DOCS / "kernels.md")
