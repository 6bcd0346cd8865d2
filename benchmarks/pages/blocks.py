# SPDX-License-Identifier: Apache-2.0
"""Which block of a page is made of which results."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.pages import (
    accuracy,
    end_to_end,
    files,
    memory,
    methods,
    races,
    reliability,
    scaling,
)
from benchmarks.pages.results import RESULTS, ROOT, read
from benchmarks.paper import ITEMS
from benchmarks.paper.command import page

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(
    r"(?P<begin><!-- results:(?P<name>[\w-]+:)?begin -->)\n.*?(?P<end><!-- results:[\w:-]*end -->)",
    re.S,
)
NOTHING = "No result is committed yet."
Section = Callable[[Any], Iterator[str]]
SECTIONS: dict[str, Section] = {  # of docs/results.md: name of a result -> what it gives
    **{name: functools.partial(accuracy.section, name) for name in accuracy.POOLS},
    **{name: functools.partial(races.section, name) for name in races.RACES},
    "end_to_end": end_to_end.section,
    "memory_cpu": memory.section,
    "scaling_cpu": scaling.section,
    "data_cpu": files.loading,
    "pack_cpu": files.packing,
    "codec_accuracy": accuracy.codecs,
    "defaults": accuracy.defaults,
}


def readme(folder: Path) -> str:
    """Returns README's block: accuracies side by side, and a line each on speed and memory."""
    pools = {name: content for name in accuracy.POOLS if (content := read(folder, name))}
    parts = list(accuracy.summary(pools)) if pools else []
    parts += [races.summary(n, content) for n in races.RACES if (content := read(folder, n))]
    parts += [memory.summary(content)] if (content := read(folder, "memory_cpu")) else []
    link = "By task, with intervals, dates, commits and commands: [results](docs/results.md)."
    return "\n\n".join([*parts, link] if parts else [NOTHING])


def results(folder: Path) -> str:
    """Returns the block of docs/results.md: everything."""
    made = ((section, read(folder, name)) for name, section in SECTIONS.items())
    return "\n\n".join(
        [part for section, content in made if content for part in section(content)] or [NOTHING]
    )


def paper(folder: Path) -> str:
    """Returns every table and figure of the paper, in its order."""
    parts = []
    for name, item in ITEMS.items():
        content = read(folder, name)
        missing = f"## {item.title}\n\n{NOTHING}"
        pictures = f"../benchmarks/results/{folder.name}/"
        parts.append(page(content, pictures).strip() if content else missing)
    return "\n\n".join(parts)


def _of(name: str, block: Callable[[Any], str]) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        content = read(folder, name)
        return block(content) if content else NOTHING

    return make


BLOCKS: dict[str, Callable[[Path], str]] = {  # name -> text, from a folder of results
    "readme": readme,
    "results": results,
    "paper": lambda folder: paper(folder / "paper"),
    "paper-real": lambda folder: paper(folder / "paper_real"),
    "calibrate": _of("calibrate_cpu", end_to_end.calibrations),
    "merge": _of("kernels_cpu", functools.partial(races.operator_table, "merge")),
    "merge_dots": _of("kernels_cpu", functools.partial(races.operator_table, "merge_dots")),
    "debiased_entropy": _of("kernels_cpu", races.entropy_table),
    "losses": _of("kernels_cpu", races.losses),
    "step": _of("step_cpu", races.step_table),
    "memory": _of("memory_cpu", memory.peak_table),
    "methods": _of("methods", methods.block),
    "reliability": _of("reliability", reliability.block),
    "unseen": _of("unseen", methods.unseen),
}


def rewritten(page: Path, folder: Path = RESULTS) -> str:
    """Returns a page's text with its blocks made anew.

    Raises:
        ValueError: if a marker names no block, or is not closed by one of its own name.
    """

    def block(match: re.Match[str]) -> str:
        begin, end, name = match["begin"], match["end"], (match["name"] or page.stem).strip(":")
        if name.lower() not in BLOCKS or end != begin.replace("begin", "end"):
            raise ValueError(f"{page.name}: {begin} must name one of {list(BLOCKS)} and be closed")
        return f"{begin}\n\n{BLOCKS[name.lower()](folder)}\n\n{end}"

    text = page.read_text(encoding="utf-8")
    made = BLOCK.sub(block, text)
    if len(BLOCK.findall(made)) != text.count("<!-- results:") / 2:
        raise ValueError(f"{page.name}: every marker must have its other, got an odd one")
    return made


def outdated() -> list[tuple[Path, str]]:
    """Returns the pages whose blocks are not those of the committed results, and what they are."""
    texts = [(page, rewritten(page)) for page in PAGES]
    return [(page, text) for page, text in texts if page.read_text(encoding="utf-8") != text]
