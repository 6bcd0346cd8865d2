# SPDX-License-Identifier: Apache-2.0
"""The table, and what is made of it: method n + 1 costs one file, one test, one line."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mdft_fast import MdftError
from mdft_fast.methods import METHODS, Lines, Method, Ties, apply, entry_of, method_of, page
from mdft_fast.options import options
from tests.methods.made_pools import draw, make_pool, tensors
from tests.scripts import script

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> type[Method]:
    """The page's example, as the file that it says it is."""
    _, code = blocks()
    file = tmp_path_factory.mktemp("methods") / "level.py"
    file.write_text(code)
    assert len(code.splitlines()) <= 40
    made: type[Method] = script(str(file)).Level
    return made


def test_the_page_is_made_of_the_table() -> None:
    content = PAGE.read_text(encoding="utf-8")
    assert page(content, METHODS) == content, "python -m mdft_fast.methods docs/methods.md"


def test_the_pages_first_lines_run() -> None:
    names: dict[str, Any] = {"pool": make_pool(draw(2))}
    exec(blocks()[0], names)
    assert names["pool"].methods == (str(Ties()), str(Lines()))


def test_the_pages_example_is_a_method(level: Any) -> None:
    deltas = draw(2)
    deltas["out.weight"][1] = 0
    made = tensors(apply(make_pool(deltas), [level()]))
    for name, tensor in deltas.items():
        lengths = tensor.double().reshape(2, -1).norm(dim=1).tolist()
        for vector, row, length in zip(made[name], tensor.double(), lengths, strict=True):
            wanted = row * (sum(lengths) / 2 / length if length else 1)
            assert torch.allclose(vector.double(), wanted, rtol=1e-6, atol=0), name
    pool = make_pool(deltas)
    assert apply(pool, [level(share=0.0)]).checksum == pool.checksum
    with pytest.raises(MdftError, match=r"level.share: must be in \[0, 1\], got 2"):
        level(share=2)


def test_one_line_and_everyone_knows_it(level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from mdft_fast.app.cli import app
    from mdft_fast.app.recipe import Recipe

    content = {
        "version": 1, "pool": {"folder": "p"}, "tasks": [{"name": "a", "adapt": {"npz": "a.npz"}}],
        "output": "out", "transform": [{"level": {"share": 0.5}}],
    }  # fmt: skip
    with pytest.raises(MdftError, match=r"transform\[0\]: must be one of \['ties', "):
        Recipe.from_mapping(content)
    monkeypatch.setitem(METHODS, "level", level)  # the line
    row = "| `level` | transform | Brings the K vectors of each tensor to their mean length | share"
    assert row in page(PAGE.read_text(encoding="utf-8"), METHODS)
    shown = CliRunner().invoke(app, ["methods"]).stdout
    assert "level        transform: Brings the K vectors of each tensor" in shown
    assert "share: 1.0, how far: 0 leaves lengths as they are" in shown
    recipe = Recipe.from_mapping(content)
    assert recipe.transform == (level(share=0.5),)
    assert "transform:\n- level: {share: 0.5}\n" in recipe.dump()


def test_every_method_says_what_a_table_needs() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.source
        values = {o.name: "x" for o in options(method) if o.default is dataclasses.MISSING}
        made = method_of({name: values}, METHODS)
        assert method_of(entry_of(made), METHODS) == made
        if values:
            with pytest.raises(MdftError, match=rf"{name}.{next(iter(values))}: is missing"):
                method_of(name, METHODS)
        else:
            assert method_of(name, METHODS) == method() == made


def test_entries() -> None:
    assert method_of({"ties": {"density": 0.3}}, METHODS) == Ties(density=0.3)
    assert method_of({"lines": None}, METHODS) == Lines()
    assert str(Lines(beta=2.0)) == "lines(alpha=0.5, beta=2.0)"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("tise", r"must be one of \['ties', .*, got 'tise'; did you mean 'ties'\?"),
        ({"ties": {"densty": 0.2}}, r"ties.densty: unknown key; did you mean 'density'\?"),
        ({"ties": {"x": 0.2}}, r"ties.x: unknown key; known are \['density'\]"),
        ({"ties": 0.2}, r"ties: must be a mapping of \['density'\], got 0.2"),
        ({"ties": {"density": 3}}, r"ties.density: must be in \(0, 1\], got 3"),
        ({"ties": {}, "lines": {}}, "must be a method's name or .*, got {'ties': {}, 'lines': {}}"),
        (3, "must be a method's name or .*, got 3"),
    ],
)
def test_a_wrong_entry_says_what_was_wanted(entry: Any, message: str) -> None:
    with pytest.raises(MdftError, match=message):
        method_of(entry, METHODS)
