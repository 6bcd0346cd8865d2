# SPDX-License-Identifier: Apache-2.0
"""The site is built without a warning, from the pages and the docstrings."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.scripts import script

pytest.importorskip("mkdocs")
griffe = pytest.importorskip("griffe")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_links_docstrings_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pool = (site / "api/pool.html").read_text()
    assert 'id="mdft_fast.pool.Pool.from_checkpoints"' in pool
    data = (site / "api/data.html").read_text()
    assert 'href="checkpoints.html#mdft_fast.checkpoints.Preprocess"' in data
    assert ":func:" not in data + pool
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r'(<script[^>]* src|<link[^>]* href|<img[^>]* src)="https?:', text)


def test_a_role_becomes_a_link_or_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "room/__init__.py").write_text(
        "from house.room.inside import Bed\n__all__ = ['Bed']\n"
    )
    (package / "room/inside.py").write_text(
        'class Bed:\n    """A :class:`Bed`, no :func:`table`."""\n'
    )
    (package / "hall.py").write_text('"""See :class:`~house.room.Bed`, :meth:`Bed.make`."""\n')
    roles = script("docs/site/roles.py")
    with caplog.at_level(logging.WARNING):
        house = griffe.load(
            "house", search_paths=[tmp_path], extensions=griffe.Extensions(roles.Roles())
        )
    assert house["hall"].docstring.value.count('identifier="house.room.inside.Bed"') == 1
    assert "<code>Bed</code>" in house["hall"].docstring.value
    assert {record.args[1] for record in caplog.records} == {":func:`table`", ":meth:`Bed.make`"}


def test_every_room_has_its_page() -> None:
    package = ROOT / "mdft_fast"
    rooms = {door.parent.name for door in package.glob("*/__init__.py")} - {"app"}
    modules = {file.stem for file in package.glob("*.py")}
    pages = {page.stem for page in (ROOT / "docs/api").glob("*.md")}
    assert rooms <= pages
    assert {page for page in pages if not page.startswith("app-")} <= rooms | modules | {"index"}
