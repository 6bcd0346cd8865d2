# SPDX-License-Identifier: Apache-2.0
"""What the commands print, and how they end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from mdft_fast.errors import MdftError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mdft_fast.app.forecast import MemoryPlan
    from mdft_fast.arena import CodecError

_WORST = 10  # tensors whose codec error is shown unasked
STOPPED = 130  # as a shell reports a program that Ctrl-C ended


class Group(TyperGroup):
    """Ends a command that raises with one line on standard error, no traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; ``MDFT_DEBUG=1`` lets errors through as they are."""
        try:
            return super().invoke(ctx)
        except MdftError as error:
            if os.environ.get("MDFT_DEBUG") == "1":
                raise
            complain(f"error: {error}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("stopped")
            raise typer.Exit(STOPPED) from None


def show_plan(planned: MemoryPlan, *, every_codec: bool) -> None:
    """Prints a plan's rows, those of the chosen codec or all."""
    from rich.console import Console
    from rich.table import Table

    from mdft_fast.app.forecast import size

    chosen = planned.chosen
    table = Table(box=None, pad_edge=False)
    names = ("", "mode", "codec", "again", "base", "vectors", "weights", "rest", "peak", "moved")
    for name in names:
        table.add_column(name, justify="left" if name in names[:4] else "right")
    for row in planned.rows:
        if every_codec or row.codec == chosen.codec:
            own = f"({size(row.base)})", f"({size(row.vectors)})"
            table.add_row(
                "->" if row == chosen and planned.fits else "", row.mode, row.codec,
                "yes" if row.checkpointing else "no",
                *(own if row.away else (size(row.base), size(row.vectors))),
                size(row.weights), size(row.rest), size(row.peak), size(row.moved),
            )  # fmt: skip
    Console(width=max(100, Console().width)).print(table)
    budget = "budget" if planned.given else "free for a run"
    say(f"{planned.samples} images a forward pass; {budget}: {size(planned.budget)}")
    say("again: memory.checkpointing; rest: gradients, activations, workspace; moved: a step's")
    say("traffic of merge and merge_dots; in brackets: not in memory, but in files or on the host")


def say(text: object = "") -> None:
    """Prints to standard output, as it is."""
    typer.echo(text)


def check_free(target: Path, overwrite: bool) -> None:
    """Refuses a folder as the name of a file to write, and a file that is there already."""
    if target.is_dir():
        raise MdftError(f"{target}: must be a file to write, got a folder")
    if target.exists() and not overwrite:
        raise MdftError(f"{target}: must not exist, got a file; --overwrite replaces it")


def complain(text: str) -> None:
    """Prints to standard error, as it is."""
    typer.echo(text, err=True)


def show_accuracy(result: Mapping[str, Any]) -> None:
    """Prints a result's accuracy table; nothing where nothing was measured."""
    from mdft_fast.app.report import accuracy_table

    models, rows = accuracy_table(result)
    body = [
        [name, *(f"{100 * values[m.name]:.1f}" if m.name in values else "-" for m in models)]
        for name, values in rows
    ]
    if body:
        show_table(["top-1, %", *(model.short for model in models)], body)


def show_codec_errors(errors: Mapping[str, CodecError], all_tensors: bool) -> None:
    """Prints what a codec cost, worst first; nothing where nothing was rounded."""
    ranked = sorted(errors.items(), key=lambda item: item[1].relative, reverse=True)
    shown = ranked if all_tensors else ranked[:_WORST]
    if not shown:
        return
    body = [[name, f"{e.absolute:.3g}", f"{100 * e.relative:.3g}"] for name, e in shown]
    show_table(["codec's error, worst of all tasks", "absolute", "% of largest"], body)
    absolute, relative = max(e.absolute for e in errors.values()), 100 * shown[0][1].relative
    say(f"worst of {len(errors)} tensors: {absolute:.3g} absolute, {relative:.3g} % of the largest")
    if len(shown) < len(ranked):
        say(f"{len(ranked) - len(shown)} tensors more: --all shows them, pool.json has them")


def show_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Prints a table; a last row named "average" is set apart."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=True)
    for i, line in enumerate(body):
        last = i == len(body) - 1 and line[0] == "average"
        if last:
            table.add_section()
        table.add_row(*line, style="bold" if last else None)
    Console(highlight=False).print(table)
