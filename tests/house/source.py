# SPDX-License-Identifier: Apache-2.0
"""The repository's Python as source: its modules, and what each imports, in whatever way."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LIBRARY = (
    *("version", "late_imports", "errors", "options", "files", "arena", "reference", "ops"),
    *("checkpoints", "pool", "model", "methods", "learning", "data", "heads", "evaluation"),
    "cards",
)
PROGRAM = ("recipe", "report", "opening", "forecast", "running", "demo", "cli")
ROOMS = ("_native", *LIBRARY, *(f"app.{room}" for room in PROGRAM))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in sorted((ROOT / "mdft_fast").rglob("*.py"))}
DOORS = {"mdft_fast", "mdft_fast.app", *(f"mdft_fast.{room}" for room in ROOMS)}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import: ``of`` is the module that it loads, ``plain`` whether it has no ``from``."""

    line: int
    of: str
    plain: bool = False


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    """Returns every node of a source's tree."""
    return list(ast.walk(ast.parse(source)))


def imports(source: str, module: str = "") -> Iterator[Import]:
    """Yields all that a source imports: at the top, in functions, for types and late."""
    for node in nodes(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, True)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*parents, node.module or ""]).strip(".")
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                loaded = name if name in MODULES or name == "mdft_fast._native" else origin
                yield Import(node.lineno, loaded)
        elif module and isinstance(node, ast.Constant) and node.value in MODULES:
            own_package = f"{module}.".startswith(f"{node.value}.")  # for its resources
            yield from () if own_package else (Import(node.lineno, node.value),)  # late_names, need


def ours(module: str) -> bool:
    return module.partition(".")[0] == "mdft_fast"


def room_of(module: str) -> str:
    """Returns ``pool`` for ``mdft_fast.pool.head``, ``app.cli`` for ``mdft_fast.app.cli.app``."""
    _, *parts = module.split(".")
    return ".".join(parts[: 2 if parts[:1] == ["app"] else 1])


def outside() -> Iterator[tuple[str, str, str]]:
    """Yields path, source and the room that it mirrors of all Python beside the package.

    Of pages, the statements that import are taken; a list in brackets counts as one name.
    """
    for folder in ("benchmarks", "docs", "examples", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("tests/house/"):
                continue  # planted offences
            if path.suffix == ".py":
                yield name, path.read_text(encoding="utf-8"), _mirrored(name)
            elif path.suffix in (".md", ".ipynb"):
                yield name, import_lines(path.read_text(encoding="utf-8")), ""
    yield "README.md", import_lines((ROOT / "README.md").read_text(encoding="utf-8")), ""


def import_lines(page: str) -> str:
    """Returns what a page's examples import, a statement a line."""
    start = r'^[\s"]*(from mdft_fast[\w.]* import [\w, ]*|import mdft_fast[\w.]*)'
    lines = [line.rstrip(", ") for line in re.findall(start, page, re.MULTILINE)]
    return "\n".join(line + " x" * line.endswith("import") for line in lines)


def _mirrored(path: str) -> str:
    """Returns the room whose modules a test may import: that of its folder."""
    folders = path.split("/")[1:-1] if path.startswith("tests/") else []
    return ".".join(folders[: 2 if folders[:1] == ["app"] else 1])
