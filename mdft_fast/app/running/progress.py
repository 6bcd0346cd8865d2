# SPDX-License-Identifier: Apache-2.0
"""What a user sees while a run works. Nothing where there is no terminal."""

from __future__ import annotations

import sys

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from mdft_fast.learning import StepRecord
from mdft_fast.terminal import is_terminal, printable


class Progress:
    """A line a stage: bar, loss, kept share, samples a second, time left.

    Args:
        enabled: False: quiet; None: only where standard error is a terminal.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = is_terminal(sys.stderr) if enabled is None else enabled
        self._rows: dict[str, bars.TaskID] = {}
        self._bars = bars.Progress(
            bars.TextColumn("{task.description:<28}", markup=False),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(compact=True),
            bars.TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Progress:
        if self.enabled:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        if self.enabled:
            self._bars.console.print(Text(printable(text)), soft_wrap=True)

    def step(self, name: str, record: StepRecord) -> None:
        """Shows a step of the stage ``name``."""
        if self.enabled:
            self._update(name, record.step, record.steps, _note(record))

    def count(self, words: str, done: int, total: int) -> None:
        """Shows how many of a number of things are done."""
        if self.enabled:
            self._update(words, done, total)

    def _update(self, name: str, done: int, total: int, note: str = "") -> None:
        if name not in self._rows:
            self._rows[name] = self._bars.add_task(printable(name), total=total, note="")
        self._bars.update(self._rows[name], completed=done, note=note)


def _note(record: StepRecord) -> str:
    values = record.as_dict()
    note = f"loss {values['loss']:.4f}"
    if record.task is None:
        shares = " ".join(f"{share:.0%}" for share in values["kept"].values())
        note += f"  kept {shares}"
    return note + f"  {values['samples_per_s'] or 0:.0f} images/s"
