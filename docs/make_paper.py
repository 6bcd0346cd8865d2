# SPDX-License-Identifier: Apache-2.0
"""Writes the paper's tables and figures into docs/paper*.md, from committed JSON alone.

    python docs/make_paper.py            # rewrites what stands between the markers
    python docs/make_paper.py --check    # changes nothing; status 1 if a page is out of date

Reads benchmarks/results/<page>/<item>.json, which `python benchmarks/run.py paper` writes. What is
absent is said to be absent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # an installed mdft_fast wins

from benchmarks.paper import ITEMS
from benchmarks.paper.command import page
from docs.make_results import replaced

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {"paper": ROOT / "docs" / "paper.md", "paper_real": ROOT / "docs" / "paper-real.md"}


def block(folder: Path) -> str:
    """Returns every item's Markdown, in the paper's order."""
    parts = []
    for name, item in ITEMS.items():
        file = folder / f"{name}.json"
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            parts.append(page(content, f"../benchmarks/results/{folder.name}/").strip())
        else:
            parts.append(f"## {item.title}\n\nNo result is committed yet.")
    return "\n\n".join(parts)


def main(argv: Sequence[str]) -> int:
    """Rewrites the pages, or says which one is out of date."""
    status = 0
    for name, path in PAGES.items():
        old = path.read_text(encoding="utf-8")
        new = replaced(old, block(RESULTS / name))
        if new == old:
            continue
        if "--check" in argv:
            sys.stderr.write(f"{path.name} is out of date: python docs/make_paper.py\n")
            status = 1
            continue
        path.write_text(new, encoding="utf-8")
        sys.stdout.write(f"wrote {path.name}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
