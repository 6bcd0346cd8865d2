# SPDX-License-Identifier: Apache-2.0
"""Rooms with one-way doors (DESIGN): a module imports only rooms above its own in this table.

Imports inside functions count like the others: a lazy import backward is still one backward.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mdft_fast"

# Room after room; those on one line do not know each other, except as ALSO says.
ROOMS = (
    ("errors", "files", "_native"),
    ("layout",),
    ("task_vectors",),
    ("reference",),
    ("ops",),
    ("pool",),
    ("data",),
    ("model",),
    ("heads",),
    ("cards", "stages"),
    ("methods",),
    ("recipe", "evaluate", "report", "analysis"),
    ("run",),
    ("demo", "cli"),
)
# Doors between rooms of one line.
ALSO = {("cli", "demo")}
# These read results and change none: only the rooms named here may know them.
READERS = {
    "evaluate": {"run", "cli", "demo"},
    "report": {"run", "cli", "demo"},
    "analysis": {"run", "cli", "demo"},
}
# These use the package as anyone does: they may import its public names from its root.
USERS = {"cli", "demo"}
RANK = {room: rank for rank, line in enumerate(ROOMS) for room in line}


def imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yields line and dotted name of all that a module of mdft_fast imports from mdft_fast."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:  # from . import x
                parents = module.split(".")[: -node.level]
                origin = ".".join([*parents, origin]).strip(".")
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}"


def room_of(name: str) -> str:
    """Returns ``pool`` for ``mdft_fast.pool.readers.read``, nothing for another package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "mdft_fast" and len(parts) > 1 else ""


def complaint(room: str, other: str) -> str:
    """Returns why ``room`` may not import ``other``; nothing where it may."""
    if not other or other == room:
        return ""
    if other not in RANK and room in USERS:
        return ""
    if other not in RANK:
        return f"'{other}' is no room: from the package's root, only its users import"
    if other in READERS and room not in READERS[other]:
        return f"'{other}' only reads results: only {sorted(READERS[other])} may import it"
    if RANK[other] > RANK[room]:
        return f"'{other}' lies behind '{room}'"
    if RANK[other] == RANK[room] and (room, other) not in ALSO:
        return f"'{other}' lies beside '{room}'"
    return ""


def complaints(room: str, module: str, source: str) -> list[str]:
    found = []
    for line, name in imported(source, module):
        why = complaint(room, room_of(name))
        if why:
            found.append(f"{module}, line {line}: imports {name}, but {why}")
    return found


def modules() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_never_point_backwards(path: Path) -> None:
    inside = path.relative_to(ROOT).with_suffix("")
    room, module = inside.parts[0], ".".join(["mdft_fast", *inside.parts])
    assert room in RANK, f"{room} has no place in the table of rooms"
    assert not complaints(room, module, path.read_text())


@pytest.mark.parametrize(
    ("room", "source", "wanted"),
    [
        ("pool", "from mdft_fast.model import MetaModel", "'model' lies behind 'pool'"),
        ("ops", "def f():\n    import mdft_fast.pool.head", "'pool' lies behind 'ops'"),
        ("pool", "from ..stages import construct", "'stages' lies behind 'pool'"),
        ("model", "from mdft_fast import merge", "'merge' is no room"),
        ("stages", "from mdft_fast import report", "'report' only reads results"),
        ("stages", "import mdft_fast.cards", "'cards' lies beside 'stages'"),
        ("model", "from mdft_fast import ops, pool\nfrom . import granularity", ""),
        ("cli", "import torch\nfrom mdft_fast.run import run\nfrom mdft_fast import merge", ""),
    ],
)
def test_the_rule_itself(room: str, source: str, wanted: str) -> None:
    found = complaints(room, f"mdft_fast.{room}.module", source)
    assert wanted in "".join(found)
    assert bool(found) == bool(wanted)
