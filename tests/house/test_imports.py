# SPDX-License-Identifier: Apache-2.0
"""Rules 1 to 3 of the house: one direction, no circles, doors, nothing imported in a function."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.house.source import (
    DOORS,
    MODULES,
    PROGRAM,
    ROOMS,
    imports,
    nodes,
    ours,
    outside,
    room_of,
)

SOURCES = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
FRONT = ("mdft_fast", "mdft_fast.app")  # they name every room, and load it when it is asked for


def backward(module: str, source: str) -> Iterator[str]:
    """1. Rooms import only rooms above them; so the library never imports the program."""
    for one in imports(source, module):
        if ours(one.of):
            room, other = room_of(module), room_of(one.of)
            if other not in ROOMS:
                yield f"{module}, line {one.line}: {one.of} is no room"
            elif ROOMS.index(other) > ROOMS.index(room):
                yield f"{module}, line {one.line}: {other} stands below {room}"


def circle(sources: Mapping[str, str]) -> list[str]:
    """1. Returns modules that import each other, whether lazily, in functions or for types."""
    graph = {
        module: {one.of for one in imports(source, module) if one.of in sources}
        for module, source in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        modules: list[str] = error.args[1]
        return modules
    return []


def past_doors(path: str, source: str) -> Iterator[str]:
    """2. A room is entered by its door: ``from mdft_fast.<room> import name``."""
    room = room_of(path)
    for one in imports(source, path if path in MODULES else ""):
        if not ours(one.of) or one.of == "mdft_fast" or (room and room_of(one.of) == room):
            continue
        if one.plain or one.of not in DOORS:
            yield f"{path}, line {one.line}: {one.of} is not entered by its door"


def hidden(module: str, names: list[str]) -> list[str]:
    """2. Returns the names of a door that hide a module behind it."""
    return [name for name in names if f"{module}.{name}" in MODULES]


def in_functions(module: str, source: str) -> Iterator[str]:
    """3. No import in a function, but of optional packages through ``need``."""
    if module in ("mdft_fast.errors", "mdft_fast.late_imports"):
        return  # the helpers themselves
    for function in nodes(source):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)) or _loads(node):
                    name = getattr(function, "name", "lambda ")
                    yield f"{module}, line {node.lineno}: imports in {name}()"


def _loads(node: ast.AST) -> bool:
    """Tells whether a call loads a module; ``need`` may, but for one of the package's own."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    own = any(isinstance(a, ast.Constant) and a.value in MODULES for a in node.args)
    return name in ("import_module", "__import__", "LateModule") or (name == "need" and own)


def everywhere(rule: Callable[..., Iterator[str]]) -> str:
    modules = [m for m in MODULES if m not in FRONT]
    return "\n".join(line for module in modules for line in rule(module, SOURCES[module]))


def test_rooms_import_rooms_above_them() -> None:
    assert everywhere(backward) == ""


def test_no_module_imports_itself_by_a_detour() -> None:
    assert circle(SOURCES) == []


def test_rooms_are_entered_by_their_doors() -> None:
    assert everywhere(past_doors) == ""
    assert "\n".join(line for one in outside() for line in past_doors(*one)) == ""


def test_no_door_hides_a_module() -> None:
    doors = [module for module, path in MODULES.items() if path.stem == "__init__"]
    names = {door: getattr(importlib.import_module(door), "__all__", []) for door in doors}
    assert [f"{d}: {name}" for d in doors for name in hidden(d, names[d])] == []


def test_nothing_is_imported_in_a_function() -> None:
    assert everywhere(in_functions) == ""


def test_no_compiler_is_imported_where_nothing_compiles() -> None:
    code = "import sys, mdft_fast.app.running, mdft_fast.ops; print('torch._dynamo' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_base_names_are_unique() -> None:
    names = sorted(path.name for path in MODULES.values() if not path.stem.startswith("__"))
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_the_table_of_rooms_is_the_package() -> None:
    missing = {room_of(m) for m in MODULES} - {"", "app", *ROOMS}
    assert not missing, f"{missing} have no place in the table of rooms"
    assert set(PROGRAM) == {room_of(m).partition(".")[2] for m in MODULES} - {""}


@pytest.mark.parametrize(
    ("rule", "source", "message"),
    [
        (backward, "from mdft_fast.model import MetaModel", "model stands below pool"),
        (backward, "def f():\n    import mdft_fast.learning", "learning stands below pool"),
        (backward, "from ..learning import construct", "learning stands below pool"),
        (backward, "later = LateModule('mdft_fast.app.running')", "app.running stands below"),
        (backward, "from mdft_fast import merge", "mdft_fast is no room"),
        (backward, "if TYPE_CHECKING:\n    from mdft_fast.app.recipe import Recipe", "app.recipe"),
        (backward, "from mdft_fast import reference\nfrom mdft_fast.ops import merge", ""),
        (in_functions, "def f():\n    from torch import nn", "line 2: imports in f()"),
        (in_functions, "def f():\n    importlib.import_module('timm')", "line 2: imports in f()"),
        (in_functions, "f = lambda: __import__('timm')", "line 1: imports in lambda ()"),
        (in_functions, "def f():\n    LateModule('mdft_fast.pool').Pool", "imports in f()"),
        (in_functions, "def f():\n    need('mdft_fast.pool')", "line 2: imports in f()"),
        (in_functions, "import torch\ndef f():\n    need('timm', 'timm')", ""),
        (past_doors, "from mdft_fast.ops.library import native", "is not entered by its door"),
        (past_doors, "from mdft_fast.arena import layout", "mdft_fast.arena.layout is not"),
        (past_doors, "import mdft_fast.ops", "mdft_fast.ops is not entered by its door"),
        (past_doors, "from mdft_fast.app.recipe.recipe import Recipe", "is not entered by"),
        (past_doors, "import mdft_fast\nfrom mdft_fast.arena import Layout", ""),
        (past_doors, "from mdft_fast.pool.head import Head", ""),
    ],
)
def test_each_rule_sees_an_offence(
    rule: Callable[..., Iterator[str]], source: str, message: str
) -> None:
    offences = list(rule("mdft_fast.pool.head", source))
    assert message in "".join(offences)
    assert bool(offences) == bool(message)


def test_a_planted_circle_and_a_hidden_module_are_seen() -> None:
    one = "def f():\n    from mdft_fast.pool.packing import Packing"
    other = "if TYPE_CHECKING:\n    from mdft_fast.pool.head import Head"
    modules = {"mdft_fast.pool.head": one, "mdft_fast.pool.packing": other}
    assert set(circle(modules)) == set(modules)
    assert circle({"mdft_fast.pool.head": one, "mdft_fast.pool.packing": ""}) == []
    assert hidden("mdft_fast.pool", ["Pool", "packing"]) == ["packing"]
