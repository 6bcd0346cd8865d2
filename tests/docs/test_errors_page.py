# SPDX-License-Identifier: Apache-2.0
"""docs/errors.md knows every kind of error that the source raises, and every room that does."""

from __future__ import annotations

import ast
import errno
import re
from collections.abc import Iterator

from mdft_fast.app.cli import boundary
from tests.docs.pages import DOCS, rows
from tests.house.source import MODULES, nodes, room_of

PAGE = DOCS / "errors.md"
OURS = ("MdftError", "RecipeError")


def documented(first: str) -> set[str]:
    """Returns what the first column of a table names."""
    return {word for row in rows(PAGE, first) for word in re.findall(r"`([^`]+)`", row[0])}


def raised() -> Iterator[tuple[str, str]]:
    """Yields room and class of everything that the package raises by name."""
    for module, path in MODULES.items():
        for node in nodes(path.read_text(encoding="utf-8")):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                named = ast.unparse(node.exc.func).rpartition(".")[2]
                if named[:1].isupper():
                    yield room_of(module), named


def test_every_kind_that_is_raised_is_on_the_page() -> None:
    # Answered before a user sees them.
    inside = {"AssertionError", "Exit", "MarkedYAMLError", "PydanticCustomError"}
    assert {kind for _, kind in raised()} - inside <= documented("| kind | is | what to do |")


def test_every_room_that_refuses_is_on_the_page() -> None:
    rooms = {room for room, kind in raised() if kind in OURS}
    known = documented("| room | what was wrong | read on |")
    assert rooms <= known
    assert known - rooms <= {"options", "ops", "arena", "app.cli", "files", "app.report"}


def test_every_code_that_gets_advice_is_on_the_page() -> None:
    codes = {errno.errorcode[code] for code in boundary._ADVICE}
    assert codes == documented("| code | means | what to do |")
