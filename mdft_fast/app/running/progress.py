# SPDX-License-Identifier: Apache-2.0
"""What a user sees while a run works: bars on a terminal, else a line now and then."""

from __future__ import annotations

import datetime
import json
import sys
import time
from typing import Any, Literal, get_args

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from mdft_fast.errors import MdftError
from mdft_fast.learning import StepRecord
from mdft_fast.terminal import is_terminal, printable

Style = Literal["bars", "lines", "json", "off"]
_EVERY_S = 10.0  # between two lines of the same phase


class Progress:
    """Tells on standard error how far a run is.

    Args:
        style: "bars": one line a stage, that changes; "lines": a line a phase, and within one a
            line every ten seconds; "json": the same, each an object of its own; "off": nothing.
            None: bars where standard error is a terminal, else lines.

    Raises:
        MdftError: for any other style.
    """

    def __init__(self, style: Style | None = None) -> None:
        if style is None:
            style = "bars" if is_terminal(sys.stderr) else "lines"
        if style not in get_args(Style):
            raise MdftError(f"progress: must be one of {list(get_args(Style))}, got {style!r}")
        self.style: Style = style
        self._rows: dict[str, bars.TaskID] = {}
        self._since: dict[str, tuple[float, int]] = {}  # when words were first told, and how far
        self._told = time.monotonic()
        self._bars = bars.Progress(
            bars.TextColumn("{task.description:<28}", markup=False),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(compact=True),
            bars.TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Progress:
        if self.style == "bars":
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.style == "bars":
            self._bars.stop()

    def say(self, text: str) -> None:
        """Tells a sentence."""
        if self.style == "bars":
            self._bars.console.print(Text(printable(text)), soft_wrap=True)
        else:
            self._line(text, "note", text=text)

    def phase(self, name: str, seconds: float) -> None:
        """Tells that a phase has ended."""
        if self.style != "bars":
            self._line(f"{name}: {span(seconds)}", "phase", name=name, seconds=round(seconds, 3))

    def step(self, name: str, record: StepRecord) -> None:
        """Tells of a step of the stage ``name``."""
        if self._is_due(name, record.step):
            values = record.as_dict()
            shown = {key: values[key] for key in ("loss", "kept", "samples_per_s", "lr")}
            self._update(name, record.step, record.steps, _note(record, values), **shown)

    def count(self, words: str, done: int, total: int) -> None:
        """Tells how many of a number of things are done."""
        if self._is_due(words, done):
            self._update(words, done, total)

    def _is_due(self, name: str, done: int) -> bool:
        """Tells whether anything would be shown now; a record is not looked at otherwise."""
        self._since.setdefault(name, (time.monotonic(), done))
        return self.style == "bars" or (
            self.style != "off" and time.monotonic() - self._told >= _EVERY_S
        )

    def _update(self, name: str, done: int, total: int, note: str = "", **values: Any) -> None:
        if self.style == "bars":
            if name not in self._rows:
                self._rows[name] = self._bars.add_task(printable(name), total=total, note="")
            self._bars.update(self._rows[name], completed=done, note=note)
            return
        began, first = self._since[name]
        rate = (time.monotonic() - began) / max(done - first, 1)
        left = rate * (total - done) if done > first else None
        words = f"{name}: {done:,} of {total:,}" + f"  {note}" * bool(note)
        if left is not None:
            words += f"  {span(left)} left"
        left_s = None if left is None else round(left, 1)
        self._line(words, "progress", name=name, done=done, of=total, left_s=left_s, **values)

    def _line(self, words: str, event: str, **values: Any) -> None:
        if self.style == "off":
            return
        now = datetime.datetime.now().astimezone()
        if self.style == "json":
            stamp = now.isoformat(timespec="milliseconds")
            text = json.dumps({"time": stamp, "event": event, **values}, ensure_ascii=False)
        else:
            text = f"{now:%H:%M:%S}  {printable(words)}"
        print(text, file=sys.stderr, flush=True)
        self._told = time.monotonic()


def span(seconds: float) -> str:
    """Returns a length of time in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _note(record: StepRecord, values: dict[str, Any]) -> str:
    note = f"loss {values['loss']:.4f}"
    if record.task is None:
        shares = " ".join(f"{share:.0%}" for share in values["kept"].values())
        note += f"  kept {shares}"
    return note + f"  {values['samples_per_s'] or 0:.0f} images/s"
