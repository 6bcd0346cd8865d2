# SPDX-License-Identifier: Apache-2.0
"""An invented word stands in docs/glossary.md, or is not used."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.pages import DOCS, ROOT, rows

PACKAGE = ROOT / "mdft_fast"
# The field's words and plain English, as they stand in names of public classes and constants.
PLAIN = re.compile(
    "ask|batch|buffer|cache|callback|checkpoint|checksum|choice|choose|clip|config|crop|data|dataset|"
    "dtype|entropy|entry|error|evaluation|fallback|file|folder|form|function|hf|import|info|input|"
    "interpolation|interval|json|kind|labelled|largest|late|layer|learn|learning|least|like|linear|"
    "listed|lock|matrix|mdft|meta|model|module|name|npz|of|"
    "op|optimizer|order|other|positive|precision|record|resize|result|run|sample|schedule|set|share|"
    "step|suffixe|terminal|test|to|torchvision|unlabelled|vector|version|warning|watch|weight|"
    "written"
)


def glossary() -> set[str]:
    cells = [row[0] for row in rows(DOCS / "glossary.md", "| word | what it means here | where |")]
    return {word for cell in cells for word in words(cell)}


def methods() -> set[str]:
    """The methods' own names, which docs/methods.md explains one by one."""
    names = re.findall(r"^\| `(\w+)` \|", (DOCS / "methods.md").read_text(), re.M)
    return {word for name in names for word in words(name)}


def words(name: str) -> list[str]:
    """Returns a name's words in the singular: ``TaskVectors``, ``LARGEST_CODE``."""
    found = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    return [word if word.endswith("ss") else word.removesuffix("s") for word in found]


def rooms() -> list[str]:
    folders = [p.parent.name for p in PACKAGE.glob("*/__init__.py")]
    files = [p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("_")]
    return sorted({*folders, *files} - {"app"})


@pytest.mark.parametrize("room", rooms())
def test_words_of_classes_and_rooms_are_in_the_glossary(room: str) -> None:
    door = importlib.import_module(f"mdft_fast.{room}")
    names = getattr(door, "__all__", None) or [
        name for name, one in vars(door).items() if getattr(one, "__module__", "") == door.__name__
    ]
    coined = [room, *(name for name in names if name[0].isupper())]
    unknown = {
        word: name
        for name in coined
        for word in words(name)
        if not PLAIN.fullmatch(word) and word not in glossary() | methods()
    }
    assert not unknown, "into docs/glossary.md, or PLAIN above, or another name"


def test_the_glossary_is_in_order_and_says_a_word_once() -> None:
    table = rows(DOCS / "glossary.md", "| word | what it means here | where |")
    first = [row[0].lower() for row in table]
    assert first == sorted(set(first))
    assert all(len(row) == 3 and all(row) for row in table)
