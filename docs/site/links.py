# SPDX-License-Identifier: Apache-2.0
"""mkdocs hook: pages of the repository's root are pages of the site, and links lead to them.

The pages are written for a reader of the repository: ``../README.md``, ``docs/operators.md``,
``../examples/clip_vit_b32.yaml``. In the site all of docs/ lies at the root, and a file from
elsewhere that a page links to is copied beside it, at its path in the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = {name: name.lower() for name in AT_THE_ROOT}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages of the repository's root."""
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between files of the site."""
    folder = Path(page.file.abs_src_path).parent

    def site_link(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if not path.is_file() or not path.is_relative_to(ROOT):
            return match[1]  # mkdocs says what is wrong with it
        name = path.relative_to(ROOT).as_posix()
        uri = PAGES.get(name, name.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        return relpath(uri, str(Path(page.file.src_uri).parent))

    return LINK.sub(site_link, markdown)
