# SPDX-License-Identifier: Apache-2.0
"""Everything that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mdft_fast.terminal import printable

if TYPE_CHECKING:  # it loads torch
    from mdft_fast.arena import CodecError

_UNBOUNDED = 10_000  # columns: more than any table has
_WORST = 10  # tensors whose codec error is shown unasked


def say(text: object) -> None:
    """Prints to standard output, as it is but for what a terminal would obey."""
    typer.echo(printable(str(text)))


def complain(text: str) -> None:
    """Prints to standard error, as :func:`say` does."""
    typer.echo(printable(text), err=True)


def show_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Prints a table, whole in a narrow terminal too; a last row "average" is set apart."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        justify: JustifyMethod = "right" if i else "left"
        table.add_column(_plain(name), justify=justify, overflow="fold", no_wrap=True)
    for line in body:
        last = line is body[-1] and line[0] == "average"
        if last:
            table.add_section()
        table.add_row(*map(_plain, line), style="bold" if last else None)
    _print_whole(table)


def show_wide_table(header: Sequence[str], body: Sequence[Sequence[str]], *, words: int) -> None:
    """Prints a table without lines, whole, too; its first ``words`` columns are words."""
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(_plain(name), justify="left" if i < words else "right")
    for line in body:
        table.add_row(*map(_plain, line))
    _print_whole(table)


def _print_whole(table: Table) -> None:
    console = Console(highlight=False)
    unbounded = console.options.update(max_width=_UNBOUNDED)
    needed = Measurement.get(console, unbounded, table).maximum
    console.width = max(console.width, needed)
    console.print(table)


def _plain(text: str) -> Text:
    """Returns a cell whose brackets and colons are no markup."""
    return Text(printable(text))


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
