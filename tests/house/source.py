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
    *("version", "late_imports", "errors", "terminal", "options", "file_locks", "files"),
    *("json_checksums", "cache", "arena", "reference", "ops", "checkpoints", "pool", "model"),
    *("methods", "learning", "data", "heads", "evaluation", "cards"),
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


def outside() -> Iterator[tuple[str, str]]:
    """Yields path and source of what uses the package: benchmarks, examples and pages.

    Tests may look inside a room, by the module's dotted name. Of pages, the statements that import
    are taken; a list in brackets counts as one name.
    """
    pages = [ROOT / "README.md"]
    for folder in ("benchmarks", "docs", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix == ".py":
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
            elif path.suffix in (".md", ".ipynb"):
                pages.append(path)
    for path in pages:
        yield path.relative_to(ROOT).as_posix(), import_lines(path.read_text(encoding="utf-8"))


def import_lines(page: str) -> str:
    """Returns what a page's examples import, a statement a line; not those of a room's new file."""
    page = re.sub(r"```python\n# SPDX.*?```", "", page, flags=re.DOTALL)
    start = r'^[\s"]*(from mdft_fast[\w.]* import [\w, ]*|import mdft_fast[\w.]*)'
    lines = [line.rstrip(", ") for line in re.findall(start, page, re.MULTILINE)]
    return "\n".join(line + " x" * line.endswith("import") for line in lines)
