# SPDX-License-Identifier: Apache-2.0
"""What a user sees while a run works. Nothing where there is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from mdft_fast.learning import StepRecord


class Progress:
    """A line a stage: bar, loss, kept share, samples a second, time left.

    Args:
        enabled: False: quiet; None: only where standard error is a terminal.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        if self.enabled:
            from rich import progress
            from rich.console import Console

            self._bars = progress.Progress(
                progress.TextColumn("{task.description:<28}"),
                progress.BarColumn(bar_width=24),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(compact=True),
                progress.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        if self._bars is not None:
            self._bars.console.print(text)

    def step(self, name: str, record: StepRecord) -> None:
        """Shows a step of the stage ``name``."""
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=record.steps, note="")
        self._bars.update(self._tasks[name], completed=record.step, note=_note(record))

    def count(self, words: str, done: int, total: int) -> None:
        """Shows how many of a number of things are done."""
        if self._bars is None:
            return
        if words not in self._tasks:
            self._tasks[words] = self._bars.add_task(words, total=total, note="")
        self._bars.update(self._tasks[words], completed=done)


def _note(record: StepRecord) -> str:
    values = record.as_dict()
    note = f"loss {values['loss']:.4f}"
    if record.task is None:
        shares = " ".join(f"{share:.0%}" for share in values["kept"].values())
        note += f"  kept {shares}"
    return note + f"  {values['samples_per_s'] or 0:.0f} images/s"
