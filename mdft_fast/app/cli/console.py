# SPDX-License-Identifier: Apache-2.0
"""Everything that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

if TYPE_CHECKING:  # it loads torch
    from mdft_fast.arena import CodecError

STOPPED = 130  # as a shell reports a program that Ctrl-C ended
_UNBOUNDED = 10_000  # columns: more than any table has
_WORST = 10  # tensors whose codec error is shown unasked


def say(text: object) -> None:
    """Prints to standard output, as it is."""
    typer.echo(text)


def complain(text: str) -> None:
    """Prints to standard error, as it is."""
    typer.echo(text, err=True)


def show_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Prints a table, whole in a narrow terminal too; a last row "average" is set apart."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=True)
    for line in body:
        last = line is body[-1] and line[0] == "average"
        if last:
            table.add_section()
        table.add_row(*line, style="bold" if last else None)
    console = Console(highlight=False)
    unbounded = console.options.update(max_width=_UNBOUNDED)
    needed = Measurement.get(console, unbounded, table).maximum
    console.width = max(console.width, needed)
    console.print(table)


def show_wide_table(header: Sequence[str], body: Sequence[Sequence[str]], *, words: int) -> None:
    """Prints a table of at least 100 columns, whose first ``words`` columns are words."""
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < words else "right")
    for line in body:
        table.add_row(*line)
    Console(width=max(100, Console().width)).print(table)


def show_codec_errors(errors: Mapping[str, CodecError], all_tensors: bool) -> None:
    """Prints what a codec cost, worst first; nothing where nothing was rounded."""
    ranked = sorted(errors.items(), key=lambda item: item[1].relative, reverse=True)
    worst = ranked if all_tensors else ranked[:_WORST]
    if not worst:
        return
    body = [[name, f"{e.absolute:.3g}", f"{100 * e.relative:.3g}"] for name, e in worst]
    show_table(["codec's error, worst of all tasks", "absolute", "% of largest"], body)
    absolute, relative = max(e.absolute for e in errors.values()), 100 * worst[0][1].relative
    say(f"worst of {len(errors)} tensors: {absolute:.3g} absolute, {relative:.3g} % of the largest")
    if len(worst) < len(ranked):
        say(f"{len(ranked) - len(worst)} tensors more: --all shows them, pool.json has them")
