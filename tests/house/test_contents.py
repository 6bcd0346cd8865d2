# SPDX-License-Identifier: Apache-2.0
"""Rules 4 to 7 of the house: an operator, a method, a choice, and rooms that know no images.

The others are tested where they belong: 8 (numbers on pages come from results) and 10 (the
glossary) in tests/docs, 9 (shapes are executed) in test_shapes.py.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.house.source import MODULES, ROOT, nodes, room_of

SOURCES = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
WITHOUT_IMAGES = ("pool", "model", "methods", "learning")
NUMBERS_OF_DRAWINGS = ("drawings", "glyphs", "demo_tasks")  # 0.3 is a hue or a stroke there


def operators(root: Path) -> set[str]:
    """Returns what the schemas define; ``_backward`` and ``_out`` belong to their operator."""
    schemas = "".join(path.read_text() for path in sorted((root / "csrc").glob("*.[ch]*")))
    names = re.findall(r'"(\w+)\(Tensor', schemas)
    return {name.removesuffix("_backward").removesuffix("_out") for name in names}


def misplaced(root: Path, name: str) -> list[str]:
    """4. An operator is one folder in csrc, one file in ops, one test file, one benchmark."""
    files = (
        [f"csrc/{name}/{name}.h"],
        [f"mdft_fast/ops/{name}.py", f"mdft_fast/ops/_{name}.py"],  # _: behind the door's function
        [f"tests/ops/test_{name}.py"],
        [f"benchmarks/bench_{name}.py"],
    )
    return [either[0] for either in files if sum((root / path).is_file() for path in either) != 1]


def choices(source: str) -> Iterator[frozenset[str]]:
    """6. Yields every set of strings that a ``Literal`` chooses from."""
    for node in nodes(source):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            strings = {p.value for p in parts if isinstance(getattr(p, "value", None), str)}
            if len(strings) > 1:
                yield frozenset(strings)


def spelled(source: str) -> Iterator[frozenset[str]]:
    """6. Yields every tuple, list or set that holds strings alone, a ``Literal``'s included."""
    for node in nodes(source):
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            strings = {e.value for e in node.elts if isinstance(e, ast.Constant)}
            if len(strings) == len(node.elts) > 1:
                yield frozenset(strings)


def spelled_twice(sources: Mapping[str, str]) -> list[str]:
    known = {choice for source in sources.values() for choice in choices(source)}
    where = {
        choice: [
            module for module, source in sources.items() for c in spelled(source) if c == choice
        ]
        for choice in known
    }
    return [f"{sorted(c)}: {modules}" for c, modules in where.items() if len(modules) > 1]


def of_task_arithmetic(source: str) -> Iterator[int]:
    """6. Yields the lines that give a name, a key or an argument the value 0.3."""
    for node in nodes(source):
        values: list[ast.AST | None] = []
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            values = [node.value]
        elif isinstance(node, ast.arguments):
            values = [*node.defaults, *node.kw_defaults]
        elif isinstance(node, ast.Dict):
            values = [*node.values]
        elif isinstance(node, ast.Call):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
        for value in values:
            if isinstance(value, ast.Constant) and value.value == 0.3:
                yield value.lineno


def of_images(source: str) -> Iterator[str]:
    """7. Yields names and docstrings that speak of images or pixels; not a library's own keys."""
    for node in nodes(source):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            doc = ast.get_docstring(node) or ""
            yield from (f"{node.__class__.__name__}: {w}" for w in _words(doc))
        for field in ("id", "arg", "attr", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str) and name != "pixel_values":  # transformers' own word
                yield from (f"line {getattr(node, 'lineno', 0)}: {name}" for _ in _words(name))


def _words(text: str) -> list[str]:
    return re.findall(r"(?i)images?|pixels?", text)


def test_an_operator_is_one_name_everywhere() -> None:
    names = operators(ROOT)
    assert {"merge", "merge_dots", "debiased_entropy"} <= names
    assert [path for name in sorted(names) for path in misplaced(ROOT, name)] == []


def test_a_method_is_one_file_one_class_one_row() -> None:
    methods = pytest.importorskip("mdft_fast.methods")
    for name, method in methods.METHODS.items():
        assert method.name == name
        assert dataclasses.is_dataclass(method)
        assert method.__dataclass_params__.frozen
        assert method.__module__.rpartition(".")[2] == name, "the file has the method's name"
    files = [method.__module__ for method in methods.METHODS.values()]
    assert len(set(files)) == len(files)
    kinds = ("Transform", "Merge", "MatrixMerge", "InputMerge")
    bases_in = "mdft_fast.methods.method"  # where the kinds themselves stand
    rest = (m for m in MODULES if room_of(m) == "methods" and m not in (*files, bases_in))
    for module in rest:
        bases = re.findall(r"^class \w+\((.*)\)", SOURCES[module], re.MULTILINE)
        assert not any(b in kinds for b in bases), f"{module}: not in the table"


def test_a_choice_is_spelled_once() -> None:
    assert "\n".join(spelled_twice(SOURCES)) == ""


def test_the_coefficient_of_task_arithmetic_stands_once() -> None:
    places = [
        f"{module}, line {line}"
        for module, source in SOURCES.items()
        if module.rpartition(".")[2] not in NUMBERS_OF_DRAWINGS
        for line in of_task_arithmetic(source)
    ]
    assert len(places) == 1, places


def test_rooms_that_know_no_images() -> None:
    modules = [module for module in MODULES if room_of(module) in WITHOUT_IMAGES]
    lines = [f"{module}, {line}" for module in modules for line in of_images(SOURCES[module])]
    assert "\n".join(lines) == ""


def test_each_rule_sees_an_offence(tmp_path: Path) -> None:
    (tmp_path / "csrc" / "merge").mkdir(parents=True)
    schemas = '"merge(Tensor base) -> Tensor", "b_backward(Tensor x) -> Tensor"'
    (tmp_path / "csrc" / "schemas.h").write_text(schemas)
    (tmp_path / "csrc" / "merge" / "merge.h").touch()
    assert operators(tmp_path) == {"merge", "b"}
    assert misplaced(tmp_path, "merge")[0] == "mdft_fast/ops/merge.py"
    assert len(misplaced(tmp_path, "merge")) == 3

    one, other = "Draw = Literal['kept', 'batch']", "known = ('batch', 'kept')"
    assert spelled_twice({"a": one, "b": other}) == ["['batch', 'kept']: ['a', 'b']"]
    assert spelled_twice({"a": one, "b": "known = ('batch', 'kept', 'none')"}) == []
    assert spelled_twice({"a": f"{one}; {other}"}) == ["['batch', 'kept']: ['a', 'a']"]

    planted = "A = 0.3\ndef f(start=0.3): g(0.3)\nd = {'start': 0.3}\nx = y * 0.3\ng(start=0.3)"
    assert sorted(of_task_arithmetic(planted)) == [1, 2, 2, 3, 5]

    assert list(of_images("def f(images):\n    '''Takes a pixel.'''")) != []
    assert list(of_images("x.image_size")) != []
    assert list(of_images("need('image_size')\ndef f(pixel_values, batch): ...")) == []


# ---- no side effects: "no hidden device"

FLOATING = ("zeros", "ones", "empty", "rand", "randn", "linspace", "eye", "logspace", "normal")
MADE = (
    *FLOATING,
    *("tensor", "as_tensor", "scalar_tensor", "full", "arange", "randint", "randperm"),
    *("tril_indices", "triu_indices"),
)


def hidden_defaults(source: str) -> list[str]:
    """Returns calls that make a tensor on torch's default device, or in its default dtype."""
    found = []
    for node in nodes(source):
        made = getattr(node, "func", None)
        if not isinstance(made, ast.Attribute) or getattr(made.value, "id", "") != "torch":
            continue
        assert isinstance(node, ast.Call)
        given = {keyword.arg for keyword in node.keywords}
        wanted = {"device"} if made.attr in MADE else set()
        wanted |= {"dtype"} if made.attr in FLOATING else set()
        if wanted - given and None not in given:  # None: **options
            found.append(f"line {node.lineno}: torch.{made.attr} without {sorted(wanted - given)}")
    return found


def test_every_tensor_names_its_device_and_dtype() -> None:
    assert hidden_defaults("torch.zeros(3)\ntorch.arange(4, device='cpu')\nx.zeros(3)") == [
        "line 1: torch.zeros without ['device', 'dtype']"
    ]
    found = {name: hidden for name, s in SOURCES.items() if (hidden := hidden_defaults(s))}
    assert found == {}
